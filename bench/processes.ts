/** What processes cost, and how steady the machine is that measures them: from /proc (Linux) and a fixed piece of work. */
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  openSync,
  readdirSync,
  readFileSync,
  writeSync,
} from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";

/** Clock ticks per second in /proc, on every Linux that there is. */
const ticksPerSecond = 100;

/** Processor time of these so far, user and system; one that ended counts nothing. A thread is `<pid>/task/<thread>`. */
export function processorSeconds(pids: readonly (number | string)[]): number {
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

export function residentKiB(pid: number | undefined): number {
  return Number(readFileSync(`/proc/${pid}/statm`, "utf8").split(" ")[1]) * 4;
}

export function microsPerRequest(secondsTaken: number, requests: number): number {
  return (secondsTaken / requests) * 1e6;
}

/** The nats-server that infra/cluster.mjs started with its files below `dataDir`; 0: there is none. */
export function natsServerOf(dataDir: string): number {
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const command = readFileSync(`/proc/${name}/cmdline`, "utf8").split("\0");
      if (command[0]?.endsWith("nats-server") && command.some((word) => word.startsWith(dataDir)))
        return Number(name);
    } catch {
      // It ended meanwhile.
    }
  }
  return 0;
}

/** Processor time of everything on the machine, without interrupts, with what its host took away. */
function machineSeconds(): number {
  const [, user, nice, system, , , , , steal] = (
    readFileSync("/proc/stat", "utf8").split("\n", 1)[0] as string
  )
    .split(/ +/)
    .map(Number) as [number, number, number, number, number, number, number, number, number];
  return (user + nice + system + steal) / ticksPerSecond;
}

export interface Cost {
  /** Processor time of the servers, microseconds per request. */
  readonly serverMicros: number;
  /** Of this process, microseconds per request. */
  readonly clientMicros: number;
  /** Of this process, of one core: near 1 it is what limits. */
  readonly clientShare: number;
  /** What neither the servers nor this process used, in cores: other programs, and the machine's host. */
  readonly otherCores: number;
}

/** Starts to count. @returns what it cost since, divided by so many requests */
export function meter(pids: readonly number[]): (requests: number) => Cost {
  const startedAt = performance.now();
  const servers = processorSeconds(pids);
  const machine = machineSeconds();
  const own = process.cpuUsage();
  return (requests) => {
    const seconds = (performance.now() - startedAt) / 1_000;
    const ended = pids.some((pid) => !existsSync(`/proc/${pid}`));
    // What a process used that ended meanwhile is not known any more.
    const used = ended ? Number.NaN : processorSeconds(pids) - servers;
    const { user, system } = process.cpuUsage(own);
    const client = (user + system) / 1e6;
    return {
      serverMicros: microsPerRequest(used, requests),
      clientMicros: microsPerRequest(client, requests),
      clientShare: client / seconds,
      otherCores: ended ? 0 : Math.max(0, (machineSeconds() - machine - used - client) / seconds),
    };
  };
}

// --- steadiness --------------------------------------------------------------------------------------------------------------

export interface Steadiness {
  /** A fixed loop on every core at once, milliseconds of the slowest. */
  readonly spinMs: number;
  /** 4 KiB written and synced, median, milliseconds. */
  readonly syncMs: number;
}

/** Also run in other threads, from its text. @returns milliseconds */
function spin(): number {
  const startedAt = performance.now();
  let x = 1;
  for (let i = 0; i < 1e7; i++) x = (Math.imul(x, 1_103_515_245) + 12_345) | 0;
  return performance.now() - startedAt + (x === 0 ? 1e-9 : 0);
}
const syncs = 40;
const block = Buffer.alloc(4_096, 1);

/** The same work each time: what it takes tells how much of the machine is left for a measurement. */
export class Probe {
  readonly #file: number;
  readonly #others: readonly Worker[];

  constructor(folder: string) {
    this.#file = openSync(join(folder, "probe"), "w");
    // Blocks that are there already: syncing them writes no metadata.
    writeSync(this.#file, Buffer.alloc(block.length * syncs));
    this.#others = Array.from(
      { length: cpus().length - 1 },
      () =>
        new Worker(
          `${spin.toString()} const { parentPort } = require("node:worker_threads"); parentPort.on("message", () => parentPort.postMessage(spin()));`,
          { eval: true },
        ),
    );
    for (const other of this.#others) other.unref();
  }

  async take(): Promise<Steadiness> {
    const spins: number[] = [];
    for (let i = 0; i < 3; i++) {
      const others = this.#others.map(
        (other) =>
          new Promise<number>((resolve) => {
            other.once("message", resolve);
            // oxlint-disable-next-line unicorn/require-post-message-target-origin -- threads have no origin
            other.postMessage(null);
          }),
      );
      const own = spin();
      spins.push(Math.max(own, ...(await Promise.all(others))));
    }
    const took: number[] = [];
    for (let i = 0; i < syncs; i++) {
      const startedAt = performance.now();
      writeSync(this.#file, block, 0, block.length, i * block.length);
      fdatasyncSync(this.#file);
      took.push(performance.now() - startedAt);
    }
    return { spinMs: median(spins), syncMs: median(took) };
  }

  close(): void {
    for (const other of this.#others) void other.terminate();
    closeSync(this.#file);
  }
}

export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((left, right) => left - right);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}
