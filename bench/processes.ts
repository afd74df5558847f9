/** What other processes cost, from /proc (Linux). */
import { readFileSync } from "node:fs";

/** Clock ticks per second in /proc, on every Linux that there is. */
const ticksPerSecond = 100;

/** Processor time of these so far, user and system; one that ended counts nothing. */
export function processorSeconds(pids: readonly number[]): number {
  let ticks = 0;
  for (const pid of pids) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
      // The second field is a name in parentheses, which may hold anything.
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      ticks += Number(fields[11]) + Number(fields[12]);
    } catch {
      // It ended.
    }
  }
  return ticks / ticksPerSecond;
}

export function microsPerRequest(secondsTaken: number, requests: number): number {
  return (secondsTaken / requests) * 1e6;
}
