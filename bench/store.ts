/**
 * The store against the bare disk, in one run: `bun bench/store.ts [DIR] [--write]`.
 *
 * Back of the envelope, before measuring. A small synced write costs the device about 0.2 ms, 180 KB about 0.4 ms, so a
 * turn of 1,000 records of 140 bytes can be had 2,000 to 3,000 times a second: 2 to 3 million records/s for the bare
 * loop. The journal adds per record: copying 140 bytes and two checksums, about 0.4 µs together, so 0.4 ms per turn:
 * about half of the bare loop's rate when the turn waits for the disk, more when the next turn is encoded meanwhile. A
 * lone append adds only microseconds to the device's time, and O_DSYNC into allocated space saves a system call and the
 * file system's own journal: it should be below the bare write+fdatasync. Opening an environment is three open()s, an
 * mmap and a few pages: about 1 ms. Reading 256 MiB back at 1 GB/s and checking 1.4 million records at 0.5 µs: 1 s.
 */
import * as fs from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { holdMallocThreshold } from "../src/runtime/memory.ts";
import { openJournalDisk } from "../src/store/disk.ts";
import { LmdbEnvironments } from "../src/store/environments.ts";
import { NodeJournal } from "../src/store/journal.ts";
import { recordBytes } from "../src/store/journal_format.ts";
import { printRows, writeReport, type Row } from "./report.ts";

const groups = 1000;
const payloadBytes = 140;
const turnBytes = groups * recordBytes(payloadBytes);
const slices = 9;
const sliceMs = 200;
const lone = 1000;
const replayBytes = 256 * 1024 * 1024;
const environmentsCount = 300;
const soakCycles = 3000;

await holdMallocThreshold();
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { write: { type: "boolean", default: false } },
});
const [load = 0] = loadavg();
const base = positionals[0] ?? tmpdir();
const directory = fs.mkdtempSync(join(base, "conflux-bench-"));
const rows: Row[] = [];

function row(what: string, figure: string, against = "", wanted = ""): void {
  rows.push({ what, figure: against === "" ? figure : `${figure}: ${against}`, wanted });
}

function percentile(sorted: readonly number[], p: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] as number;
}

function ascending(values: readonly number[]): number[] {
  return [...values].sort((a, b) => a - b);
}

function ms(value: number): string {
  return `${value.toFixed(3)} ms`;
}

function perSecond(value: number): string {
  return `${Math.round(value / 1000)}k/s`;
}

function openJournal(name: string): NodeJournal {
  return new NodeJournal({
    disk: openJournalDisk(join(directory, name)),
    salt: 1,
    onFatal: (error) => {
      throw error;
    },
  });
}

/** The plain loop anyone would write first. */
class Raw {
  readonly #descriptor: number;
  readonly #sync: boolean;
  readonly #allocated: number;
  #position = 0;

  constructor(name: string, options: { sync: "fdatasync" | "O_DSYNC"; allocated: number }) {
    const { O_CREAT, O_RDWR, O_DSYNC } = fs.constants;
    const path = join(directory, name);
    fs.writeFileSync(path, new Uint8Array(options.allocated));
    this.#sync = options.sync === "fdatasync";
    this.#allocated = options.allocated;
    this.#descriptor = fs.openSync(path, O_CREAT | O_RDWR | (this.#sync ? 0 : O_DSYNC));
    fs.fsyncSync(this.#descriptor);
  }

  append(bytes: Uint8Array): Promise<void> {
    // Over again from the start, where only allocated space is wanted.
    if (!this.#sync && this.#position + bytes.byteLength > this.#allocated) this.#position = 0;
    const position = this.#position;
    this.#position += bytes.byteLength;
    return new Promise((resolve, reject) => {
      const finish = (error: Error | null): void => {
        if (error) reject(error);
        else resolve();
      };
      fs.write(this.#descriptor, bytes, 0, bytes.byteLength, position, (error) => {
        if (error || !this.#sync) finish(error);
        else fs.fdatasync(this.#descriptor, finish);
      });
    });
  }

  close(): void {
    fs.closeSync(this.#descriptor);
  }
}

interface Contender {
  readonly turn: () => Promise<void>;
  readonly inFlight: number;
}

/**
 * Turns per second of each. They take turns by short slices, so that a neighbour's load on the machine or the disk's own
 * mood meets all of them; the median slice counts.
 */
async function turnsPerSecond(contenders: readonly Contender[]): Promise<number[]> {
  const rates = contenders.map((): number[] => []);
  for (let slice = 0; slice <= slices; slice++)
    for (const [n, { turn, inFlight }] of contenders.entries()) {
      const start = performance.now();
      let turns = 0;
      const run = async (): Promise<void> => {
        while (performance.now() - start < sliceMs) {
          await turn();
          turns += 1;
        }
      };
      await Promise.all(Array.from({ length: inFlight }, run));
      // The first slice warms up.
      if (slice > 0) rates[n]?.push((turns * 1000) / (performance.now() - start));
    }
  return rates.map((of) => percentile(ascending(of), 0.5));
}

/** One step of each after the other, for the same reason. */
async function latencies(
  count: number,
  steps: readonly (() => Promise<void>)[],
): Promise<number[][]> {
  const times = steps.map((): number[] => []);
  for (let n = 0; n < count; n++)
    for (const [at, step] of steps.entries()) {
      const start = performance.now();
      await step();
      times[at]?.push(performance.now() - start);
    }
  return times.map(ascending);
}

async function throughput(): Promise<void> {
  const payload = new Uint8Array(payloadBytes).fill(7);
  const records = Array.from({ length: groups }, (_, n) => ({ group: n + 1, payload }));
  const bytes = new Uint8Array(turnBytes).fill(7);
  const journal = openJournal("throughput");
  let turns = 0;
  const turn = (): Promise<void> =>
    new Promise((resolve) => {
      const first = journal.append(records, resolve);
      // As a node does: what was checkpointed is released, and its segments go.
      if (++turns % 200 === 0)
        for (let group = 1; group <= groups; group++) journal.release(group, first - 1);
    });
  const raw = new Raw("raw-grow", { sync: "fdatasync", allocated: 0 });
  const rawAllocated = new Raw("raw-allocated", { sync: "O_DSYNC", allocated: 1 << 26 });
  const [bare, allocated, one, three] = (await turnsPerSecond([
    { turn: () => raw.append(bytes), inFlight: 1 },
    { turn: () => rawAllocated.append(bytes), inFlight: 1 },
    { turn, inFlight: 1 },
    { turn, inFlight: 3 },
  ])) as [number, number, number, number];
  raw.close();
  rawAllocated.close();
  await journal.close();
  const ratio = (rate: number): string => `${((100 * rate) / bare).toFixed(0)} % of bare`;
  row("bare append+fdatasync, 1,000 records a write", perSecond(bare * groups));
  row("bare O_DSYNC into allocated space, same", perSecond(allocated * groups), ratio(allocated));
  row(
    "journal, 1,000 groups, one turn at a time",
    perSecond(one * groups),
    ratio(one),
    "≥ 50 % of bare",
  );
  row(
    "journal, 1,000 groups, three turns in flight",
    perSecond(three * groups),
    ratio(three),
    "≥ 50 % of bare",
  );
}

async function latency(): Promise<void> {
  const payload = new Uint8Array(payloadBytes).fill(7);
  const bytes = new Uint8Array(recordBytes(payloadBytes)).fill(7);
  const journal = openJournal("latency");
  const append = (): Promise<void> =>
    new Promise((resolve) => void journal.append([{ group: 1, payload }], resolve));
  const raw = new Raw("raw-lone", { sync: "fdatasync", allocated: 0 });
  const allocated = new Raw("raw-lone-allocated", { sync: "O_DSYNC", allocated: 1 << 20 });
  const [bare, best, ours] = (await latencies(lone, [
    () => raw.append(bytes),
    () => allocated.append(bytes),
    append,
  ])) as [number[], number[], number[]];
  raw.close();
  allocated.close();
  await journal.close();
  const ratio = (of: number[], p: number): string =>
    `${(percentile(of, p) / percentile(bare, p)).toFixed(2)} × bare`;
  row("bare append+fdatasync, lone, p50 / p99", both(bare));
  row("bare O_DSYNC into allocated space, lone, p50 / p99", both(best), ratio(best, 0.5));
  row("journal, lone durable append, p50 / p99", both(ours), ratio(ours, 0.5), "p50 ≤ 1.5 × bare");
}

function both(times: number[]): string {
  return `${ms(percentile(times, 0.5))} / ${ms(percentile(times, 0.99))}`;
}

async function replay(): Promise<void> {
  const journal = openJournal("replay");
  const payload = new Uint8Array(payloadBytes).fill(7);
  const records = Array.from({ length: 10_000 }, (_, n) => ({ group: (n % groups) + 1, payload }));
  while (journal.status.bytes < replayBytes)
    await new Promise<void>((resolve) => void journal.append(records, resolve));
  const { bytes } = journal.status;
  await journal.close();
  const start = performance.now();
  const again = openJournal("replay");
  const recovery = again.recovery();
  const took = performance.now() - start;
  const count = [...recovery.groups.values()].reduce((sum, list) => sum + list.length, 0);
  row(
    `journal opened with ${Math.round(bytes / 1024 / 1024)} MiB, ${count} records`,
    `${(took / 1000).toFixed(2)} s`,
  );
  await again.close();
}

async function environments(): Promise<void> {
  const opened = new LmdbEnvironments({ data: join(directory, "env") });
  const meta = new Uint8Array(100);
  const value = "v".repeat(200);
  const creations: number[] = [];
  const commits: number[] = [];
  for (let n = 0; n < environmentsCount; n++) {
    let start = performance.now();
    const environment = opened.open(`tenant-${n}`);
    creations.push(performance.now() - start);
    start = performance.now();
    await new Promise<void>((resolve, reject) =>
      environment.commit(
        {
          meta,
          rows: Array.from({ length: 50 }, (_, k) => [`cfg/default/config-${k}`, value] as const),
          entries: [[n, meta]],
          entriesDeleted: [],
        },
        (error) => (error === null ? resolve() : reject(error)),
      ),
    );
    commits.push(performance.now() - start);
    await environment.close();
  }
  const reads: number[] = [];
  const cycle = async (n: number): Promise<void> => {
    const start = performance.now();
    const environment = opened.open(`tenant-${n % environmentsCount}`);
    environment.meta();
    environment.get("cfg/default/config-7");
    reads.push(performance.now() - start);
    await environment.close();
  };
  for (let n = 0; n < environmentsCount; n++) await cycle(n);
  const first = ascending(reads);
  const before = process.memoryUsage.rss();
  for (let n = 0; n < soakCycles; n++) await cycle(n);
  const grown = (process.memoryUsage.rss() - before) / 1024 / 1024;
  row("environment created, p50 / p99", both(ascending(creations)));
  row("environment, durable commit of 50 rows, p50 / p99", both(ascending(commits)));
  row("environment opened + first reads, p50 / p99", both(first), "", "p99 < 5 ms");
  row(`memory after ${soakCycles} more open/close cycles`, `${grown.toFixed(1)} MiB more`);
  row("environments that may be open at once here", String(opened.cap));
}

try {
  fs.mkdirSync(join(directory, "env"));
  await throughput();
  await latency();
  await replay();
  await environments();
  const runtime = process.versions["bun"] ?? process.versions["deno"] ?? process.versions.node;
  const name = process.versions["bun"] ? "bun" : process.versions["deno"] ? "deno" : "node";
  console.log(`\nstore, ${name} ${runtime}, ${base}`);
  printRows(rows);
  if (values.write)
    writeReport({
      name: "store",
      title: "The store against the bare disk",
      args: process.argv.slice(2),
      setting: `${name} ${runtime}, one process`,
      load,
      text: `The bare loop appends the same bytes to a growing file and calls fdatasync; both take turns by slices of ${sliceMs} ms, and the median of ${slices} counts.`,
      rows,
      plot: "",
      curves: [],
    });
} finally {
  fs.rmSync(directory, { recursive: true, force: true });
}
