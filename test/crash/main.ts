/**
 * `npm run crash -- --kills 1000`: real processes on a real disk, ended hard again and again, and after each everything
 * that was acknowledged looked for. A failure keeps its directory and prints the seed.
 *
 *   --kills N        how many (100)
 *   --seed N         decides how each ends (1); what the processes do in between is the machine's to decide
 *   --runtimes A,B   used in turn (bun,bun,node,deno)
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { addCounts, canInject, CrashRun, describeHow } from "./kills.ts";
import type { Runtime } from "./node_process.ts";

const { values } = parseArgs({
  options: {
    kills: { type: "string", default: "100" },
    seed: { type: "string", default: "1" },
    runtimes: { type: "string", default: "bun,bun,node,deno" },
  },
});
const kills = Number(values.kills);
const runtimes = values.runtimes.split(",") as Runtime[];
/** A directory is begun anew after so many lives: recovery of a young one is worth as much as of an old one. */
const livesEach = 25;

if (!canInject)
  console.error(
    "conflux: strace is missing or may not trace here: kills are at random only, no points, no EIO, no ENOSPC",
  );

const started = performance.now();
const sum = { random: 0, point: 0, error: 0, missed: 0 };
let acknowledged = 0;
let seed = Number(values.seed);
let failed = false;

for (let done = 0; done < kills && !failed; seed++) {
  const run = new CrashRun(seed);
  for (let life = 0; life < livesEach && done < kills; life++, done++) {
    const runtime = runtimes[done % runtimes.length] as Runtime;
    const { how, complaints } = await run.crash(runtime);
    if (complaints.length > 0) {
      failed = true;
      console.error(`\nseed ${seed}, life ${life + 1} on ${runtime}, ${describeHow(how)}:`);
      for (const complaint of complaints) console.error(`  ${complaint}`);
      console.error(`kept: ${run.directory}`);
      break;
    }
    const seconds = (performance.now() - started) / 1000;
    if (process.stderr.isTTY || (done + 1) % 25 === 0)
      process.stderr.write(
        `${process.stderr.isTTY ? "\r\u001b[2K" : ""}${done + 1} of ${kills}, ${seconds.toFixed(0)} s${process.stderr.isTTY ? "" : "\n"}`,
      );
  }
  addCounts(sum, run.counts);
  acknowledged += run.ledger.acknowledged;
  if (!failed) run.close();
}

const total = sum.random + sum.point + sum.error + sum.missed;
console.log(
  `${process.stderr.isTTY ? "\n" : ""}${total} kills (${sum.random} at random, ${sum.point} at a named system call, ${sum.error} by EIO or ENOSPC, ${sum.missed} that did not come to theirs), ` +
    `${acknowledged} acknowledged writes, ${failed ? "NOT ALL AS THEY MUST BE" : "0 lost, 0 half there"}, ${((performance.now() - started) / 1000).toFixed(0)} s`,
);
process.exit(failed ? 1 : 0);
