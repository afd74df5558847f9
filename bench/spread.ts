/**
 * Writes spread evenly over many tenants at a steady rate, and what they cost: the same load for the store alone
 * (store.ts) and for all of a node below its gateway (node.ts).
 */
import { readFileSync } from "node:fs";
import process from "node:process";
import { Replica } from "../src/host/replica.ts";
import type { Command } from "../src/machine/command.ts";
import { LmdbEnvironment } from "../src/store/environments.ts";
import { command, namespace } from "../test/crash/stack.ts";
import { processorSeconds } from "./processes.ts";
import type { Row } from "./report.ts";

const valueBytes = 200;
/** Not more in flight than is sensible. */
const inFlightMax = 2_000;

const thisThread = `self/task/${process.pid}`;
let serial = 0;
let filler = "";

/** One more version of config `c`, with another text each time. */
export function publication(bytes = valueBytes): Command {
  const head = `${++serial} `;
  if (filler.length < bytes) filler = "v".repeat(bytes);
  const text = head + filler.slice(0, Math.max(0, bytes - head.length));
  const content = { text, hash: `sha256:${serial}`, bytes };
  return command({ op: "publish", namespace, name: "c", content, schemaHash: null });
}

/**
 * Bytes that this process gave to calls that write, which here are the journal's and LMDB's alone: records, the zeros before
 * them, pages. (`write_bytes` beside it counts whole folios of the page cache for every journal write that touches one.)
 */
function written(): number {
  return Number(/^wchar: (\d+)/m.exec(readFileSync("/proc/self/io", "utf8"))?.[1]);
}

/** MiB. Without the pages of mapped files: those are the disk's cache, which the system takes back when it needs room. */
function memory(): number {
  const status = readFileSync("/proc/self/status", "utf8");
  return Number(/^RssAnon:\s+(\d+)/m.exec(status)?.[1]) / 1024;
}

/**
 * Time of this thread in checkpoints, from the replica's decision to the end of what the durable commit calls back: rows
 * and entries encoded, an environment opened for it and another closed. And how often one was opened for anything.
 */
function timeCheckpoints(): { ms: number; count: number; opened: number } {
  const spent = { ms: 0, count: 0, opened: 0 };
  const timed = <T>(run: () => T): T => {
    const start = performance.now();
    try {
      return run();
    } finally {
      spent.ms += performance.now() - start;
    }
  };
  // oxlint-disable-next-line typescript/unbound-method
  const { checkpoint } = Replica.prototype;
  Replica.prototype.checkpoint = function measured(this: Replica) {
    spent.count += 1;
    return timed(() => checkpoint.call(this));
  };
  // oxlint-disable-next-line typescript/unbound-method
  const { commit, wake } = LmdbEnvironment.prototype;
  LmdbEnvironment.prototype.commit = function measured(this: LmdbEnvironment, change, done) {
    commit.call(this, change, (error) => timed(() => done(error)));
  };
  LmdbEnvironment.prototype.wake = function measured(this: LmdbEnvironment) {
    const isOpen = this.isOpen;
    const databases = wake.call(this);
    if (!isOpen) spent.opened += 1;
    return databases;
  };
  return spent;
}

/** @param publish resolves when the write to tenant number `n` is acknowledged */
export async function spreadWrites(
  options: { readonly tenants: number; readonly rate: number; readonly seconds: number },
  publish: (n: number) => Promise<void>,
): Promise<Row[]> {
  const { tenants, rate, seconds } = options;
  const problems = new Map<string, number>();
  const checkpoints = timeCheckpoints();
  const writtenBefore = written();
  const cpuBefore = process.cpuUsage();
  const threadBefore = processorSeconds([thisThread]);
  let [done, inFlight, issued, memoryMost] = [0, 0, 0, 0];
  const start = performance.now();
  for (let turn = 0; performance.now() - start < seconds * 1000; turn++) {
    const due = ((performance.now() - start) / 1000) * rate;
    // As many as the clock allows so far.
    while (issued < due && inFlight < inFlightMax) {
      inFlight += 1;
      publish(issued++ % tenants).then(
        () => {
          inFlight -= 1;
          done += 1;
        },
        (error: Error) => {
          inFlight -= 1;
          const code = (error as { code?: string }).code ?? "";
          const key = `${code} ${error.message.replace(/t\d+/, "T")}`;
          problems.set(key, (problems.get(key) ?? 0) + 1);
        },
      );
    }
    if (turn % 100 === 0) memoryMost = Math.max(memoryMost, memory());
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  const elapsed = performance.now() - start;
  const cpu = process.cpuUsage(cpuBefore);
  const cpuMs = (cpu.user + cpu.system) / 1000;
  const threadMs = 1000 * (processorSeconds([thisThread]) - threadBefore);
  const perSecond = (count: number): number => Math.round(count / (elapsed / 1000));
  const bytes = (written() - writtenBefore) / done;
  const refused = problems.size === 0 ? "none refused" : JSON.stringify([...problems]);
  return [
    {
      what: `writes of ${valueBytes} bytes spread over ${tenants} tenants, ${rate}/s asked for`,
      figure: `${perSecond(done)}/s; ${refused}; ${((1000 * threadMs) / done).toFixed(0)} µs of this thread each, which had ${(threadMs / elapsed).toFixed(2)} of a core; ${((1000 * cpuMs) / done).toFixed(0)} µs with the collector's and the disk's`,
      wanted: `${rate}/s, none refused`,
    },
    {
      what: "of this thread's time in checkpoints meanwhile",
      figure: `${((100 * checkpoints.ms) / elapsed).toFixed(1)} %; ${perSecond(checkpoints.count)} checkpoints/s of ${(checkpoints.ms / Math.max(1, checkpoints.count)).toFixed(2)} ms, ${perSecond(checkpoints.opened)} environments opened/s`,
      wanted: "< 20 %",
    },
    {
      what: "write amplification: bytes given to write calls per write",
      figure: `${Math.round(bytes)}: ${(bytes / valueBytes).toFixed(1)} × its ${valueBytes} bytes`,
      wanted: "",
    },
    {
      what: "memory meanwhile, at most, without the pages of LMDB's files",
      figure: `${Math.round(memoryMost)} MiB`,
      wanted: "",
    },
  ];
}
