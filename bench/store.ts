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
import { execFileSync } from "node:child_process";
import { hash } from "node:crypto";
import * as fs from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setImmediate as nextTurn } from "node:timers/promises";
import { parseArgs } from "node:util";
import { checkpointTuningDefaults, Checkpoints } from "../src/host/checkpoints.ts";
import { appendRecord } from "../src/host/codec.ts";
import { environmentName, type ColdReplicas } from "../src/host/cold_replicas.ts";
import { freshMeta, GroupLog } from "../src/host/group_log.ts";
import type { Clock } from "../src/host/ports.ts";
import { Replica, type ProposalResult } from "../src/host/replica.ts";
import { Turns } from "../src/host/turns.ts";
import { Prng } from "../src/lib/prng.ts";
import type { Command } from "../src/machine/command.ts";
import { useDigest } from "../src/model/content.ts";
import { completeEnvironment } from "../src/runtime/environment.ts";
import { holdMallocThreshold } from "../src/runtime/memory.ts";
import { LmdbEnvironments } from "../src/store/environments.ts";
import type { NodeJournal } from "../src/store/journal.ts";
import { recordBytes } from "../src/store/journal_format.ts";
import { command, namespace } from "../test/crash/stack.ts";
import { openJournalIn } from "../test/store/open_journal.ts";
import { longestBlock } from "./block.ts";
import { printRows, writeReport, type Row } from "./report.ts";
import { publication, spreadWrites } from "./spread.ts";

const groups = 1000;
const payloadBytes = 140;
const turnBytes = groups * recordBytes(payloadBytes);
const slices = 9;
const sliceMs = 200;
const lone = 1000;
const replayBytes = 256 * 1024 * 1024;
const environmentsCount = 300;
const soakCycles = 50_000;
const encoder = new TextEncoder();

// As main.ts does.
completeEnvironment();
await holdMallocThreshold();
useDigest((text) => hash("sha256", text, "hex"));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    parts: { type: "string", default: "journal,environments,spread" },
    tenants: { type: "string", default: "10000" },
    rate: { type: "string", default: "20000" },
    seconds: { type: "string", default: "30" },
    write: { type: "boolean", default: false },
  },
});
const [load = 0] = loadavg();
const base = positionals[0] ?? tmpdir();
const tenantsCount = Number(values.tenants);
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

function openJournal(name: string): ReturnType<typeof openJournalIn> {
  return openJournalIn(join(directory, name), {
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
  const { journal } = await openJournal("throughput");
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
  const { journal } = await openJournal("latency");
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
  const { journal } = await openJournal("replay");
  const payload = new Uint8Array(payloadBytes).fill(7);
  const records = Array.from({ length: 10_000 }, (_, n) => ({ group: (n % groups) + 1, payload }));
  while (journal.status.bytes < replayBytes)
    await new Promise<void>((resolve) => void journal.append(records, resolve));
  const { bytes } = journal.status;
  await journal.close();
  const held = longestBlock();
  const start = performance.now();
  const { journal: again, recovery } = await openJournal("replay");
  const took = performance.now() - start;
  const blockMs = held();
  const count = [...recovery.groups.values()].reduce((sum, list) => sum + list.length, 0);
  row(
    `journal opened with ${Math.round(bytes / 1024 / 1024)} MiB, ${count} records`,
    `${(took / 1000).toFixed(2)} s`,
    `the thread held for ${blockMs.toFixed(0)} ms at most`,
  );
  await again.close();
}

/**
 * Everything of the store under the load of many tenants, and nothing else of a node: real replicas of one voter, their
 * journal, environments, turns and checkpoints; no directory, no requests, no heartbeats, no ticks.
 */
class ManyTenants {
  readonly journal: NodeJournal;
  readonly #environments = new LmdbEnvironments({ data: join(directory, "spread-env") });
  readonly #replicas = new Map<number, Replica>();
  readonly #checkpoints: Checkpoints;
  readonly #turns: Turns;
  readonly #pulse: NodeJS.Timeout;

  constructor(journal: NodeJournal, count: number) {
    this.journal = journal;
    const cold = { records: () => [], dropIfUnknown: () => undefined } as unknown as ColdReplicas;
    const present = (group: number): Replica | null => this.#replicas.get(group) ?? null;
    this.#checkpoints = new Checkpoints(journal, cold, checkpointTuningDefaults, {
      present,
      wake: present,
      contained: (_replica, run) => run(),
      busyMax: (max) => max,
      giveWay: () => undefined,
      behindChanged: () => undefined,
    });
    const clock: Clock = {
      monotonicMs: () => performance.now(),
      wallMs: () => Date.now(),
      defer: (run) => {
        setImmediate(run);
      },
      every: () => () => undefined,
    };
    const fail = (fields: object): void => {
      throw new Error("A replica was halted", { cause: fields });
    };
    const log = { debug: fail, info: fail, warn: fail, error: fail };
    this.#turns = new Turns(
      { clock, journal, log },
      {
        present,
        isEnding: () => false,
        scheduled: () => undefined,
        begins: () => undefined,
        flush: () => undefined,
        halted: () => undefined,
        failed: () => undefined,
      },
    );
    for (let group = 1; group <= count; group++) this.#replicas.set(group, this.#open(group));
    // As often as a node does.
    let pulses = 0;
    this.#pulse = setInterval(() => {
      if (pulses++ % 4 === 0)
        for (const replica of this.#replicas.values()) this.#checkpoints.look(replica);
      this.#checkpoints.round(false);
    }, 25);
  }

  #open(group: number): Replica {
    const tenant = `t${group}`;
    const meta = freshMeta({ tenant, group, incarnation: 1 }, 1, [{ node: "n1", id: 1 }]);
    const environment = this.#environments.open(environmentName({ tenant, group, replica: 1 }));
    const replica = new Replica({
      meta,
      log: new GroupLog(environment, meta),
      environment,
      hooks: {
        send: () => undefined,
        persist: (from, append) => {
          const record = appendRecord(from.takeHardState(append), append.entries);
          this.#turns.persist(from, record, append);
          this.#turns.schedule();
        },
        sendSnapshot: () => undefined,
        committed: () => undefined,
        contained: (_replica, run) => run(),
        leaderChanged: () => undefined,
        installed: () => undefined,
        stored: (of, error) => {
          if (error !== null) throw error;
          this.#checkpoints.ended(of);
          this.journal.release(of.group, of.sequenceStored);
          this.#turns.act(of, () => of.resumeLane());
        },
      },
      random: new Prng(group),
      supports: () => true,
      sequence: 0,
      logKept: { entries: 1_000, bytes: 2 ** 23, bytesForLagging: 2 ** 26 },
    });
    replica.startFrom(0, 0);
    replica.raft.campaign();
    this.#turns.mark(replica);
    return replica;
  }

  /** Resolves when it is durable and applied. */
  propose(group: number, command: Command): Promise<void> {
    const replica = this.#replicas.get(group) as Replica;
    return new Promise((resolve, reject) => {
      const data = encoder.encode(JSON.stringify(command));
      this.#turns.act(replica, () => {
        const done = (result: ProposalResult): void => {
          if (result.kind === "applied" && result.outcome.ok) resolve();
          else reject(new Error(JSON.stringify(result)));
        };
        // As a host does.
        replica.propose(data, Infinity, done, command);
      });
    });
  }

  /** Until each leads itself. */
  async elected(): Promise<void> {
    while (![...this.#replicas.values()].every(({ raft }) => raft.isLeader))
      await new Promise((resolve) => setTimeout(resolve, 5));
  }

  get environmentsOpen(): string {
    return `${this.#environments.open_count} of ${this.#environments.cap}`;
  }

  /** Leaves what is not checkpointed. */
  async close(): Promise<void> {
    clearInterval(this.#pulse);
    for (const replica of this.#replicas.values())
      await new Promise<void>((done) => replica.whenStored(done));
    await this.journal.close();
    for (const replica of this.#replicas.values()) await replica.environment.close();
  }
}

async function spread(): Promise<void> {
  const data = join(directory, "spread-env");
  // Made behind the store's back, as copies of one: what is measured is not their creation, which syncs each.
  const sample = environmentName({ tenant: "t1", group: 1, replica: 1 });
  const made = new LmdbEnvironments({ data }).open(sample);
  const change = { meta: new Uint8Array(1), rows: [], entries: [], entriesDeleted: [] };
  await new Promise((done) => made.commit(change, done));
  await made.close();
  for (let group = 2; group <= tenantsCount; group++) {
    const place = join(
      data,
      "tenants",
      environmentName({ tenant: `t${group}`, group, replica: 1 }),
    );
    fs.mkdirSync(place);
    fs.copyFileSync(join(data, "tenants", sample, "data.mdb"), join(place, "data.mdb"));
  }
  execFileSync("sync");
  const tenants = new ManyTenants((await openJournal("spread")).journal, tenantsCount);
  await tenants.elected();
  const everywhere = async (action: (tenant: string) => Command["action"]): Promise<void> => {
    for (let from = 1; from <= tenantsCount; from += 1_000)
      await Promise.all(
        Array.from({ length: Math.min(1_000, tenantsCount + 1 - from) }, (_, n) =>
          tenants.propose(from + n, command(action(`t${from + n}`))),
        ),
      );
  };
  await everywhere((tenant) => ({
    op: "tenant.init",
    tenant,
    quotas: { versionsPerConfig: 10 },
    keys: [],
  }));
  await everywhere(() => ({ op: "config.put", namespace, name: "c", format: "text" }));
  const load = {
    tenants: tenantsCount,
    rate: Number(values.rate),
    seconds: Number(values.seconds),
  };
  rows.push(...(await spreadWrites(load, (n) => tenants.propose(n + 1, publication()))));
  const { segments, bytes } = tenants.journal.status;
  row(
    "environments open meanwhile",
    tenants.environmentsOpen,
    `journal ${segments} segments, ${Math.round(bytes / 2 ** 20)} MiB`,
  );
  await tenants.close();
}

/** Resident bytes once garbage is collected and given back: before, they tell where in its saw tooth the heap stands. */
async function settledMemory(): Promise<number> {
  const { Bun, gc } = globalThis as {
    Bun?: { gc(isSynchronous: boolean): void };
    gc?: () => void;
  };
  if (Bun === undefined) gc?.();
  else Bun.gc(true);
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  return process.memoryUsage.rss();
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
    // As a node does, which never runs for ever without coming back to its events: what was closed is freed there.
    await nextTurn();
  };
  for (let n = 0; n < environmentsCount; n++) await cycle(n);
  const first = ascending(reads);
  const before = await settledMemory();
  const grown: string[] = [];
  for (let half = 0; half < 2; half++) {
    for (let n = 0; n < soakCycles / 2; n++) await cycle(n);
    grown.push((((await settledMemory()) - before) / 1024 / 1024).toFixed(1));
  }
  row("environment created, p50 / p99", both(ascending(creations)));
  row("environment, durable commit of 50 rows, p50 / p99", both(ascending(commits)));
  row("environment opened + first reads, p50 / p99", both(first), "", "p99 < 5 ms");
  row(
    `memory after ${soakCycles / 2} and ${soakCycles} more open/close cycles, heap collected`,
    `${grown.join(" and ")} MiB more`,
    "",
    "returns",
  );
  row("environments that may be open at once here", String(opened.cap));
}

try {
  fs.mkdirSync(join(directory, "env"));
  fs.mkdirSync(join(directory, "spread-env"));
  const parts = values.parts.split(",");
  if (parts.includes("journal")) await throughput();
  if (parts.includes("journal")) await latency();
  if (parts.includes("journal")) await replay();
  if (parts.includes("environments")) await environments();
  if (parts.includes("spread")) await spread();
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
