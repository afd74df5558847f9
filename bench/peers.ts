/**
 * Conflux beside what one would pick instead, on this machine, by one client: `npm run bench:peers`.
 *
 * Three nodes of each system (Redis: one, for orientation), started anew for every round, all in turn: A B C D A B C D.
 * One load generator drives them over loopback with the same payloads, one request at a time per connection, and shares
 * the cores with them. Prints tables of medians, spreads and ratios and writes bench/results/peers.{json,md,svg}, with
 * --quick peers-quick.*. A run of some scenarios (--scenario write,read) replaces just their rows in those files, one of some
 * systems just their columns; ratios are of one run only.
 *
 * On a machine that does other things at times, rates lie. So each measurement has a probe before it (a fixed loop on all
 * cores, 4 KiB synced) and a count of what other programs used meanwhile; one that was disturbed is marked, and left
 * out of the medians where an undisturbed one exists. Processor time per request hardly depends on any of it.
 *
 * What is not comparable, and must be read with the figures:
 *  - A write of Conflux is a publish: checked against the key, hashed, versioned, released, with history and audit. One of
 *    the others sets bytes under a key, for anybody.
 *  - etcd is driven through its HTTP gateway, as Conflux is; its gRPC is faster. JetStream and Redis speak protocols of
 *    their own, cheaper for client and server than HTTP.
 *  - JetStream 2.9 calls fsync every two minutes, not per write: what it acknowledged dies with the machines' power. Its
 *    reads come from any replica (direct get) and may be old; those of Conflux and etcd are linearizable.
 *  - Redis is one process without replication.
 *  - A tenant is a Raft group in Conflux, a bucket with three replicas in JetStream, and nothing but a prefix in etcd and
 *    Redis: creating one costs nothing there, and isolates nothing.
 *  - A watcher is an event stream in Conflux, a stream of HTTP chunks in etcd, a push consumer in JetStream; Redis has
 *    nothing that keeps what a watcher missed.
 *  - All processes share one machine and its disk: three members do not fail or sync independently here.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { root } from "../infra/bootstrap.mjs";
import { inParallel } from "../test/e2e/api.ts";
import { median, meter, Probe, type Cost, type Steadiness } from "./processes.ts";
import { folder, removeFolders, systems, type Running, type System } from "./systems.ts";

// --- scenarios ---------------------------------------------------------------------------------------------------------------

/** What one figure was taken of. */
interface Cell {
  readonly scenario: string;
  readonly connections: number;
  readonly bytes: number;
  readonly tenants: number;
}

/** One round's figures of it. Latencies in milliseconds. */
interface Sample extends Cost {
  readonly perSecond: number;
  readonly p50: number;
  readonly p99: number;
  readonly failures: number;
  readonly before: Steadiness;
  /** The probe before, or what else ran meanwhile, was out of the ordinary. */
  readonly isDisturbed: boolean;
}

interface Round {
  readonly system: System;
  readonly running: Running;
  /** Load for some seconds. */
  readonly load: (
    cell: Omit<Cell, "tenants">,
    tenants: readonly string[],
    writes: (number: number) => boolean,
  ) => Promise<void>;
  /** Something else that is done `count` times; `act` gives how long each took. */
  readonly time: (cell: Cell, act: () => Promise<readonly number[]>) => Promise<void>;
  /** It cannot be measured here, for this reason, which stands in its place. */
  readonly refuse: (cell: Cell, reason: string) => void;
}

interface Scenario {
  readonly what: string;
  /** Also of systems that are there for orientation. */
  readonly isForAll?: boolean;
  readonly run: (round: Round) => Promise<void>;
}

const { values: args } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
    scenario: { type: "string" },
    systems: { type: "string" },
    rounds: { type: "string", default: "2" },
    seconds: { type: "string" },
    warm: { type: "string" },
    tenants: { type: "string" },
  },
});
const isQuick = args.quick;
const rounds = Number(args.rounds);
const seconds = Number(args.seconds ?? (isQuick ? 1 : 2));
/** Of writes before anything is measured, the same for every system; half as long of reads. */
const warmSeconds = Number(args.warm ?? (isQuick ? 3 : 20));
const concurrencies = isQuick ? [1, 64, 256] : [1, 16, 64, 256];
const sizes = [1_024, 16_384];
const tenantCounts = (args.tenants ?? (isQuick ? "50" : "150,1000")).split(",").map(Number);
const one = ["one"];
const always = (): boolean => true;
const never = (): boolean => false;

const scenarios: Readonly<Record<string, Scenario>> = {
  write: {
    what: "durable writes of 128 bytes into one tenant, by connections",
    isForAll: true,
    run: async ({ load }) => {
      for (const connections of concurrencies)
        await load({ scenario: "write", connections, bytes: 128 }, one, always);
    },
  },
  "write-large": {
    what: "the same of 1 KiB and 16 KiB",
    run: async ({ load }) => {
      for (const bytes of sizes)
        for (const connections of isQuick ? [64] : concurrencies)
          await load({ scenario: "write", connections, bytes }, one, always);
    },
  },
  read: {
    what: "reads (linearizable but of JetStream) of 128 bytes of one tenant, by connections",
    isForAll: true,
    run: async ({ load, running }) => {
      await fill(running, 128);
      for (const connections of concurrencies)
        await load({ scenario: "read", connections, bytes: 128 }, one, never);
    },
  },
  "read-large": {
    what: "the same of 1 KiB and 16 KiB",
    run: async ({ load, running }) => {
      for (const bytes of sizes) {
        await fill(running, bytes);
        for (const connections of isQuick ? [64] : concurrencies)
          await load({ scenario: "read", connections, bytes }, one, never);
      }
    },
  },
  mixed: {
    what: "nine reads to a write, one tenant",
    isForAll: true,
    run: async ({ load }) => {
      for (const connections of isQuick ? [64] : [64, 256])
        await load({ scenario: "mixed 90/10", connections, bytes: 128 }, one, isTenth);
    },
  },
  watch: {
    what: "300 watchers of one tenant, 20 writes a second: from sending a write to a watcher having it",
    run: async (round) => {
      const { running } = round;
      if (running.watch !== null) await watch(round, running.watch, 300, 20);
    },
  },
  tenants: {
    what: "creating tenants (one by one, then ten at a time), and durable writes and reads over all of them",
    run: async (round) => {
      await tenants(round);
    },
  },
  failover: {
    what: "the leader of a tenant is killed: until a write succeeds again",
    run: async ({ running, time }) => {
      const { failover } = running;
      if (failover === null) return;
      const cell = { scenario: "leader killed", connections: 1, bytes: 128, tenants: 1 };
      await time(cell, async () => [await failover()]);
    },
  },
};

const isTenth = (number: number): boolean => number % 10 === 0;

async function fill(running: Running, bytes: number): Promise<void> {
  const plan = { connections: 1, seconds: 0.05, bytes, tenant: () => "one" };
  await running.drive({ ...plan, writes: always });
}

async function watch(
  { running, time }: Round,
  open: NonNullable<Running["watch"]>,
  watchers: number,
  perSecond: number,
): Promise<void> {
  const sentAt = new Map<number, number>();
  let took: number[] = [];
  const closing: (() => void)[] = [];
  const indexes = Array.from({ length: watchers }, (_, index) => index);
  await inParallel(indexes, 20, async (index) => {
    closing.push(
      await open(index, (number) => {
        const at = sentAt.get(number);
        if (at !== undefined) took.push(performance.now() - at);
      }),
    );
  });
  const publish = async (forSeconds: number): Promise<number> => {
    sentAt.clear();
    const writes = (number: number): boolean => {
      sentAt.set(number, performance.now());
      return true;
    };
    const plan = { connections: 1, bytes: 128, tenant: () => "one", everyMs: 1_000 / perSecond };
    return (await running.drive({ ...plan, seconds: forSeconds, writes })).requests;
  };
  await publish(1);
  const cell = { scenario: "watch", connections: watchers, bytes: 128, tenants: 1 };
  await time(cell, async () => {
    took = [];
    const written = await publish(isQuick ? 2 : 3);
    const end = performance.now() + 5_000;
    while (took.length < written * watchers && performance.now() < end) await sleep(10);
    // What never came took for ever.
    const missing = written * watchers - took.length;
    return [...took, ...Array.from({ length: missing }, () => Number.POSITIVE_INFINITY)];
  });
  for (const close of closing) close();
}

/** All tenants asked for are there within this, or the system cannot hold them here. */
const createMsMax = 300_000;

async function tenants({ system, running, load, time, refuse }: Round): Promise<void> {
  const made: string[] = [];
  /** @throws when one cannot be made, or all of them take too long; says how many there are by then */
  const make = async (
    count: number,
    width: number,
    each: (tenant: string) => Promise<void>,
  ): Promise<number[]> => {
    const fresh = Array.from({ length: count }, (_, i) => `t${made.length + i}`);
    const took: number[] = [];
    const begunAt = performance.now();
    let failure: string | null = null;
    await inParallel(fresh, width, async (tenant) => {
      const startedAt = performance.now();
      if (startedAt - begunAt > createMsMax) failure ??= `not in ${createMsMax / 1_000} s`;
      if (failure !== null) return;
      try {
        await each(tenant);
      } catch (error) {
        failure ??= `"${tenant}": ${(error as Error).message}`;
        return;
      }
      took.push(performance.now() - startedAt);
      made.push(tenant);
      if (made.length % 100 === 0)
        console.log(
          `  ${system.name.padEnd(10)} ${made.length} tenants after ${((performance.now() - begunAt) / 1_000).toFixed(0)} s`,
        );
    });
    if (failure !== null) throw new Error(`${made.length} tenants made, then ${failure as string}`);
    return took;
  };
  const create = (tenant: string): Promise<void> => running.create(tenant);
  const whole = async (tenant: string): Promise<void> => {
    await running.create(tenant);
    await running.first(tenant);
  };
  if (system.hasTenants) {
    const few = isQuick ? 3 : 10;
    const cell = { connections: 1, bytes: 0, tenants: few };
    // A median of ten would be that of code that no runtime has compiled yet.
    const many = isQuick ? few : 100;
    await time({ ...cell, tenants: many, scenario: "create" }, () => make(many, 1, create));
    await inParallel(made, 1, (tenant) => running.first(tenant));
    await time({ ...cell, scenario: "create with a first write" }, () => make(few, 1, whole));
  }
  for (const count of tenantCounts) {
    const width = 10;
    const missing = count - made.length;
    const creation: Cell = {
      scenario: "create with a first write",
      connections: width,
      bytes: 0,
      tenants: count,
    };
    const writes = [64, 256].map((connections) => ({
      scenario: "write",
      connections,
      bytes: 128,
      tenants: count,
    }));
    const read = { scenario: "read", connections: 256, bytes: 128, tenants: count };
    try {
      if (system.hasTenants) await time(creation, () => make(missing, width, whole));
      else await make(missing, width, whole);
    } catch (error) {
      for (const cell of [...(system.hasTenants ? [creation] : []), ...writes, read])
        refuse(cell, (error as Error).message);
      return;
    }
    for (const cell of writes) await load(cell, made, always);
    await load(read, made, never);
  }
}

// --- measuring ---------------------------------------------------------------------------------------------------------------

/** So much slower than at the start of the run the probe may be, and so many cores may others use. */
const slowerMax = 1.2;
const otherCoresMax = 0.2;
const probesMax = 4;

/** Samples by cell and system, one per round. */
const samples = new Map<string, Map<string, Sample[]>>();
const cells = new Map<string, Cell>();
/** What a system could not do, by cell and system, in the words of the last round. */
const refusals = new Map<string, Map<string, string>>();
/** What broke off a scenario. */
const broken: string[] = [];

const keyOf = ({ scenario, connections, bytes, tenants }: Cell): string =>
  `${scenario}, ${connections} connections, ${bytes} B, ${tenants} tenants`;

function record(system: string, cell: Cell, sample: Sample): void {
  const key = keyOf(cell);
  cells.set(key, cell);
  const bySystem = samples.get(key) ?? new Map<string, Sample[]>();
  samples.set(key, bySystem);
  bySystem.set(system, [...(bySystem.get(system) ?? []), sample]);
  const { perSecond, p50, p99, failures, serverMicros, clientMicros, clientShare } = sample;
  console.log(
    `  ${system.padEnd(10)} ${key.padEnd(58)} ${perSecond.toFixed(0).padStart(7)}/s  p50 ${p50.toFixed(2)}  p99 ${p99.toFixed(2)} ms  servers ${serverMicros.toFixed(0)} us, client ${clientMicros.toFixed(0)} us (${(clientShare * 100).toFixed(0)} % of a core), others ${sample.otherCores.toFixed(2)} cores${sample.isDisturbed ? `  DISTURBED (spin ${sample.before.spinMs.toFixed(0)} ms, sync ${sample.before.syncMs.toFixed(2)} ms)` : ""}${failures > 0 ? `  ${failures} FAILED` : ""}`,
  );
}

/** Probes until the machine is as it was at the start, a few times at most. */
async function settle(
  probe: Probe,
  usual: Steadiness,
): Promise<{ before: Steadiness; isSlow: boolean }> {
  for (let tries = 1; ; tries++) {
    const before = await probe.take();
    const isSlow =
      before.spinMs > usual.spinMs * slowerMax || before.syncMs > usual.syncMs * slowerMax;
    if (!isSlow || tries === probesMax) return { before, isSlow };
    await sleep(500);
  }
}

async function measure(
  system: System,
  running: Running,
  names: readonly string[],
  probe: Probe,
  usual: Steadiness,
): Promise<void> {
  const measured = async (
    cell: Cell,
    act: () => Promise<
      Pick<Sample, "perSecond" | "p50" | "p99" | "failures"> & { readonly requests: number }
    >,
  ): Promise<void> => {
    const { before, isSlow } = await settle(probe, usual);
    const cost = meter(running.pids());
    const { requests, perSecond, p50, p99, failures } = await act();
    const costs = cost(requests);
    const isDisturbed = isSlow || costs.otherCores > otherCoresMax;
    record(system.name, cell, { perSecond, p50, p99, failures, ...costs, before, isDisturbed });
  };
  const round: Round = {
    system,
    running,
    load: (cell, among, writes) =>
      measured({ ...cell, tenants: among.length }, async () => {
        // Neighbouring requests go to different tenants.
        const tenant = (number: number): string => among[(number * 7_919) % among.length] as string;
        const result = await running.drive({ ...cell, seconds, tenant, writes });
        if (result.firstFailure !== null) console.error(`  first failure: ${result.firstFailure}`);
        return result;
      }),
    time: (cell, act) =>
      measured(cell, async () => {
        const startedAt = performance.now();
        const took = [...(await act())].sort((left, right) => left - right);
        const elapsed = performance.now() - startedAt;
        return {
          requests: took.length,
          perSecond: (took.length / elapsed) * 1_000,
          p50: took[took.length >> 1] ?? Number.NaN,
          p99: took[Math.floor(took.length * 0.99)] ?? Number.NaN,
          failures: took.filter((ms) => !Number.isFinite(ms)).length,
        };
      }),
    refuse: (cell, reason) => {
      const key = keyOf(cell);
      cells.set(key, cell);
      refusals.set(key, (refusals.get(key) ?? new Map<string, string>()).set(system.name, reason));
      console.log(`  ${system.name.padEnd(10)} ${key.padEnd(58)} CANNOT: ${reason}`);
    },
  };
  await running.create("one");
  await running.first("one");
  // Runtimes that compile as they go get the same time for it as those that do not need any.
  const warm = { connections: 64, seconds: warmSeconds, bytes: 128, tenant: () => "one" };
  await running.drive({ ...warm, writes: always });
  if (names.some((name) => /read|mixed|tenants/.test(name)))
    await running.drive({ ...warm, seconds: warmSeconds / 2, writes: never });
  for (const name of names) {
    const scenario = scenarios[name] as Scenario;
    if (scenario.isForAll !== true && system.isForOrientation === true) continue;
    try {
      await scenario.run(round);
    } catch (error) {
      // What the others do, and what it does otherwise, is worth having all the same.
      const reason = `${system.name}, ${name}: ${(error as Error).message}`;
      console.error(`  BROKEN OFF: ${reason}`);
      broken.push(reason);
    }
  }
}

// --- report ------------------------------------------------------------------------------------------------------------------

interface Run {
  readonly command: string;
  readonly at: string;
  readonly sha: string;
  /** Sources were changed since that commit. */
  readonly isChanged?: boolean;
  readonly machine: string;
  readonly loadBefore: number;
  readonly usual: Steadiness;
  readonly rounds: number;
  readonly seconds: number;
  /** Absent: 6, or 3 of a quick one, as before it was written down. */
  readonly warmSeconds?: number;
  /** Scenarios that ended in an error, by system. */
  readonly broken?: readonly string[];
  readonly systems: readonly {
    readonly name: string;
    readonly durability: string;
    /** Null: it was not there. */
    readonly version: string | null;
  }[];
}
interface Row extends Cell {
  /** Which of the runs. */
  readonly run: string;
  /** Of an earlier one are these systems' samples, which the last one left out. */
  readonly earlier?: Readonly<Record<string, string>>;
  readonly systems: Readonly<Record<string, readonly Sample[]>>;
  /** Why a system could not, by its name. */
  readonly refusals?: Readonly<Record<string, string>>;
}
/** What peers.json holds. */
interface Results {
  readonly runs: Readonly<Record<string, Run>>;
  readonly rows: readonly Row[];
}

const runOf = (row: Row, system: string): string => row.earlier?.[system] ?? row.run;

const runsOf = (row: Row): string[] => [...new Set([row.run, ...Object.values(row.earlier ?? {})])];

/** This row as it was measured now, and the systems that were left out as they were before. */
function merged(fresh: Row, old: Row | undefined): Row {
  const kept = Object.keys(old?.systems ?? {}).filter(
    (name) => fresh.systems[name] === undefined && fresh.refusals?.[name] === undefined,
  );
  if (old === undefined || kept.length === 0) return fresh;
  return {
    ...fresh,
    earlier: Object.fromEntries(kept.map((name) => [name, runOf(old, name)])),
    systems: {
      ...fresh.systems,
      ...Object.fromEntries(kept.map((name) => [name, old.systems[name] ?? []])),
    },
  };
}

/** Those of undisturbed rounds, if there are any. */
function best(all: readonly Sample[]): readonly Sample[] {
  const undisturbed = all.filter(({ isDisturbed }) => !isDisturbed);
  return undisturbed.length > 0 ? undisturbed : all;
}

type Figure = "perSecond" | "p50" | "p99" | "serverMicros" | "clientMicros" | "clientShare";

function figure(row: Row, system: string, name: Figure): number {
  // JSON has null for what is not finite.
  return median(best(row.systems[system] ?? []).map((sample) => sample[name] ?? Number.NaN));
}

const short = (number: number): string =>
  !Number.isFinite(number)
    ? "never"
    : number >= 10_000
      ? `${(number / 1_000).toFixed(1)}k`
      : number >= 100
        ? number.toFixed(0)
        : number.toPrecision(3);

/** Of these time counts, not how many there were. */
const isTimed = ({ scenario, connections }: Cell): boolean =>
  connections === 1 || /^(create|leader|watch)/.test(scenario);

function entry(row: Row, system: string): string {
  const all = row.systems[system];
  if (all === undefined || all.length === 0) {
    const reason = row.refusals?.[system];
    return reason === undefined ? "" : `cannot: ${reason}`;
  }
  const counted = best(all);
  const rates = counted.map(({ perSecond }) => perSecond);
  const [least, most] = [Math.min(...rates), Math.max(...rates)];
  const failed = all.reduce((sum, { failures }) => sum + failures, 0);
  const marks =
    (counted.some(({ isDisturbed }) => isDisturbed) ? " †" : "") +
    (figure(row, system, "clientShare") > 0.9 ? " ‡" : "") +
    (failed > 0 ? ` ${failed} failed` : "") +
    (row.earlier?.[system] === undefined ? "" : ` (${row.earlier[system]})`);
  const latency = `p50 ${short(figure(row, system, "p50"))}, p99 ${short(figure(row, system, "p99"))} ms`;
  if (row.scenario.startsWith("leader"))
    return `**${short(figure(row, system, "p50"))} ms** (${counted.map(({ p50 }) => short(p50)).join(", ")})${marks}`;
  const cost = `${short(figure(row, system, "serverMicros"))} + ${short(figure(row, system, "clientMicros"))} µs`;
  const spread = least === most ? "" : ` (${short(least)}–${short(most)})`;
  return isTimed(row)
    ? `**${latency}**${marks}<br>${short(median(rates))}/s${spread}<br>${cost}`
    : `**${short(median(rates))}/s**${spread}${marks}<br>${latency}<br>${cost}`;
}

/** Conflux's figure by another's; null without either, or where they are of two runs. */
function ratio(row: Row | undefined, other: string, name: Figure): number | null {
  if (row === undefined || row.systems["conflux"] === undefined) return null;
  if (row.systems[other] === undefined || runOf(row, other) !== runOf(row, "conflux")) return null;
  return figure(row, "conflux", name) / figure(row, other, name);
}

const times = (number: number | null): string => (number === null ? "" : `${number.toFixed(2)} ×`);

function table(rows: readonly Row[], names: readonly string[], isMixed: boolean): string {
  const against = (row: Row, other: string): string => {
    const main = ratio(row, other, isTimed(row) ? "p50" : "perSecond");
    if (main === null) return "";
    const cost = row.scenario.startsWith("leader")
      ? ""
      : `<br>${times(ratio(row, other, "serverMicros"))} the µs`;
    return `**${times(main)}**${isTimed(row) ? " the p50" : ""}${cost}`;
  };
  return [
    `| connections, bytes, tenants | ${names.join(" | ")} | conflux ÷ etcd | conflux ÷ jetstream |`,
    `| --- |${" ---: |".repeat(names.length + 2)}`,
    ...rows.map(
      (row) =>
        `| ${row.connections}, ${row.bytes} B, ${row.tenants}${isMixed ? ` (${row.run})` : ""} | ${names.map((name) => entry(row, name)).join(" | ")} | ${against(row, "etcd")} | ${against(row, "jetstream")} |`,
    ),
  ].join("\n");
}

/** The figures to reach (bench/README.md) that these results speak of. */
function verdicts(rows: readonly Row[]): string {
  const find = (scenario: string, connections: number, tenants = 1): Row | undefined =>
    rows.find(
      (row) =>
        row.scenario === scenario &&
        row.connections === connections &&
        row.tenants === tenants &&
        (row.bytes === 128 || row.bytes === 0),
    );
  /** Of rates; and of the servers' processor time per request, which says what the rates are where nothing disturbs. */
  const atLeast = (wanted: number, row: Row | undefined, other: string): readonly string[] => {
    const is = ratio(row, other, "perSecond");
    const cost = ratio(row, other, "serverMicros");
    const cannot = [other, "conflux"].find((name) => row?.refusals?.[name] !== undefined);
    return [
      `≥ ${wanted} ×`,
      times(is),
      cost === null ? "" : times(1 / cost),
      is === null
        ? cannot === undefined
          ? ""
          : `${cannot} cannot`
        : is >= wanted
          ? "met"
          : `missed: ${times(is / wanted)} of it`,
    ];
  };
  const atMost = (wanted: number, unit: string, is: number | null): readonly string[] => [
    `≤ ${wanted} ${unit}`,
    is === null ? "" : `${short(is)} ${unit}`,
    "",
    is === null ? "" : is <= wanted ? "met" : `missed: ${times(is / wanted)} of it`,
  ];
  const write64 = find("write", 64);
  const write256 = find("write", 256);
  const besideOne = (over: Row | undefined): readonly string[] => {
    if (over?.systems["conflux"] === undefined || write256?.systems["conflux"] === undefined)
      return ["≥ 1 ×", "", "", ""];
    const of = (name: Figure): number =>
      figure(over, "conflux", name) / figure(write256, "conflux", name);
    const is = of("perSecond");
    const [of1, of2] = [over, write256].map((row) => runOf(row, "conflux")) as [string, string];
    const runs = of1 === of2 ? "" : ` (${of1} ÷ ${of2})`;
    const verdict = `${is >= 1 ? "met" : "missed"}${runs}`;
    return ["≥ 1 ×", times(is), times(1 / of("serverMicros")), verdict];
  };
  const own = (row: Row | undefined): number | null =>
    row?.systems["conflux"] === undefined ? null : figure(row, "conflux", "p50");
  const [create] = rows
    .filter((row) => row.scenario === "create")
    .sort((a, b) => b.tenants - a.tenants);
  const failover = rows.find((row) => row.scenario.startsWith("leader"));
  const lines: (readonly [string, readonly string[]])[] = [
    ["writes at 64 connections ÷ etcd", atLeast(3, write64, "etcd")],
    ["writes at 256 connections ÷ etcd", atLeast(4, write256, "etcd")],
    ["reads at 64 connections ÷ etcd", atLeast(6, find("read", 64), "etcd")],
    ["reads at 256 connections ÷ etcd", atLeast(6, find("read", 256), "etcd")],
    [
      "write at 1 connection, p50 ÷ etcd's",
      atMost(0.7, "×", ratio(find("write", 1), "etcd", "p50")),
    ],
    ...[150, 1_000].flatMap((count): (readonly [string, readonly string[]])[] => {
      const over = find("write", 256, count);
      return [
        [
          `writes over ${count} tenants, 256 connections ÷ JetStream over as many buckets`,
          atLeast(3, over, "jetstream"),
        ],
        ["the same ÷ Conflux over one tenant", besideOne(over)],
      ];
    }),
    ["create a tenant, p50, one by one", atMost(10, "ms", own(create))],
    ["leader killed until writable (one tenant)", atMost(1_500, "ms", own(failover))],
  ];
  return [
    "| figure | wanted | measured | by processor time | |",
    "| --- | ---: | ---: | ---: | --- |",
    ...lines.map(([what, cellsOf]) => `| ${what} | ${cellsOf.join(" | ")} |`),
  ].join("\n");
}

const colours = ["#2f6fde", "#e08a1e", "#3aa76d", "#b0485c"];

function plot(rows: readonly Row[], names: readonly string[]): string {
  const small = rows.filter(({ bytes, connections }) => bytes === 128 && connections > 1);
  const single = (scenario: string): Row[] =>
    small.filter((row) => row.scenario === scenario && row.tenants === 1);
  const byConnections = (list: readonly Row[]) =>
    list.map((row) => [`${row.connections} connections`, row] as const);
  const many = small.filter((row) => row.scenario === "write" && row.tenants > 1);
  const panels: readonly (readonly [string, readonly (readonly [string, Row])[], Figure])[] = [
    ["Durable writes a second, 128 B, one tenant", byConnections(single("write")), "perSecond"],
    ["Reads a second, 128 B, one tenant", byConnections(single("read")), "perSecond"],
    [
      "Durable writes a second over many tenants",
      many.map((row) => [`${row.tenants} tenants, ${row.connections}`, row] as const),
      "perSecond",
    ],
    [
      "Processor time of the servers, µs per request (less is better)",
      small
        .filter(({ scenario, connections }) => /write|read|mixed/.test(scenario) && connections > 1)
        .filter(({ connections }) => connections === 64 || connections === 256)
        .map(
          (row) =>
            [
              `${row.scenario} ${row.connections}${row.tenants > 1 ? `, ${row.tenants} t.` : ""}`,
              row,
            ] as const,
        ),
      "serverMicros",
    ],
  ];
  const shown = panels.filter(([, list]) => list.length > 0);
  const width = 960;
  const tall = 250;
  const parts = shown.flatMap(([title, list, name], p) => {
    const top = p * tall + 40;
    const floor = top + tall - 70;
    const of = (row: Row, system: string): number =>
      row.systems[system] === undefined ? 0 : figure(row, system, name);
    const most = Math.max(1, ...list.flatMap(([, row]) => names.map((system) => of(row, system))));
    const slot = (width - 60) / Math.max(3, list.length);
    const bar = (slot * 0.85) / names.length;
    return [
      `<text x="40" y="${top - 4}" font-size="14">${title}</text>`,
      ...list.flatMap(([label, row], i) => [
        ...names.map((system, n) => {
          const value = of(row, system);
          const high = (value / most) * (tall - 100);
          const x = 40 + i * slot + n * bar;
          return `<rect x="${x.toFixed(1)}" y="${(floor - high).toFixed(1)}" width="${(bar - 1).toFixed(1)}" height="${high.toFixed(1)}" fill="${colours[n]}"/><text x="${(x + bar / 2).toFixed(1)}" y="${(floor - high - 4).toFixed(1)}" font-size="8" text-anchor="middle">${value === 0 ? "" : short(value)}</text>`;
        }),
        `<text x="${(40 + i * slot + slot * 0.42).toFixed(1)}" y="${floor + 14}" font-size="10" text-anchor="middle">${label}</text>`,
      ]),
    ];
  });
  const height = shown.length * tall + 60;
  const legend = names.map(
    (name, n) =>
      `<rect x="${40 + n * 120}" y="${height - 26}" width="12" height="12" fill="${colours[n]}"/><text x="${58 + n * 120}" y="${height - 16}" font-size="12">${name}</text>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>${parts.join("")}${legend.join("")}</svg>\n`;
}

function caveats(): string {
  const source = readFileSync(import.meta.filename, "utf8");
  return (/What is not comparable[^:]*:?\n([\s\S]*?)\*\//.exec(source)?.[1] ?? "")
    .replace(/^ \* {2}- /gm, "- ")
    .replace(/^ \* {4}/gm, "  ")
    .trim();
}

function report({ runs, rows }: Results): string {
  const last = Object.values(runs).at(-1) as Run;
  const names = systems
    .map(({ name }) => name)
    .filter((name) => rows.some((row) => row.systems[name] !== undefined));
  const kinds = [...new Set(rows.map(({ scenario }) => scenario))];
  const sections = kinds.map((kind) => {
    const mine = rows.filter(({ scenario }) => scenario === kind);
    const from = [...new Set(mine.flatMap(runsOf))];
    return `## ${kind}\n\n${table(mine, names, from.length > 1)}\n\nFrom ${from.join(", ")}.`;
  });
  const missing = last.systems.filter(({ version }) => version === null);
  /** What ran in which of the runs, where that differs. */
  const versionsOf = (name: string): string => {
    const by = new Map<string, string[]>();
    for (const [id, run] of Object.entries(runs)) {
      const version = run.systems.find((system) => system.name === name)?.version ?? null;
      if (version !== null) by.set(version, [...(by.get(version) ?? []), id]);
    }
    return by.size === 1
      ? ([...by.keys()][0] as string)
      : [...by].map(([version, ids]) => `${version} (${ids.join(", ")})`).join(" / ");
  };
  const described = systems.filter(({ name }) => names.includes(name));
  return `# Conflux and its peers

Made by \`npm run bench:peers\`; servers and client share the machine: ${last.machine}.
Each entry: median of the rounds (least–most), latencies, processor time of all servers + of the client per request.
Ratios are Conflux's by the other's: of rates, or of the p50 where one connection or one event is timed, and of the servers' processor time.
† in all rounds the machine was disturbed; ‡ the client used over 90 % of a core, and limits.

${described.map(({ name, durability }) => `- **${name}**: ${versionsOf(name)}; ${durability}`).join("\n")}
${missing.length === 0 ? "" : `\nNot measured, as not installed: ${missing.map(({ name }) => name).join(", ")}.\n`}
## Against the figures

${verdicts(rows)}

${sections.join("\n\n")}

## Runs

${Object.entries(runs)
  .map(
    ([id, run]) =>
      `- ${id}: \`${run.command}\`, ${run.at}, commit ${run.sha.slice(0, 9)}${run.isChanged === true ? " with changes" : ""}, ${run.rounds} rounds of ${run.seconds} s${run.warmSeconds === undefined ? "" : ` after ${run.warmSeconds} s of writes at 64 connections`}, load average before ${run.loadBefore}, probe ${run.usual.spinMs.toFixed(1)} ms and ${run.usual.syncMs.toFixed(2)} ms${(run.broken ?? []).map((reason) => `; broken off: ${reason}`).join("")}`,
  )
  .join("\n")}

## Not comparable

${caveats()}

![Plots](${isQuick ? "peers-quick" : "peers"}.svg)
`;
}

/** Adds this run to what there is, in place of the rows that it measured anew. */
function write(run: Run): void {
  const results = join(root, "bench", "results");
  mkdirSync(results, { recursive: true });
  const base = join(results, isQuick ? "peers-quick" : "peers");
  const old: Results =
    isQuick || !existsSync(`${base}.json`)
      ? { runs: {}, rows: [] }
      : (JSON.parse(readFileSync(`${base}.json`, "utf8")) as Results);
  const ids = Object.keys(old.runs).map((id) => Number(id.slice(1)));
  const id = `r${Math.max(0, ...ids) + 1}`;
  const fresh = [...cells].map(([key, cell]): Row => {
    const refused = refusals.get(key);
    return {
      ...cell,
      run: id,
      systems: Object.fromEntries(samples.get(key) ?? []),
      ...(refused !== undefined && { refusals: Object.fromEntries(refused) }),
    };
  });
  const order = ["write", "read", "mixed 90/10", "watch"];
  const rank = (row: Row): number => {
    const at = order.indexOf(row.scenario);
    return at < 0 ? order.length : at;
  };
  const before = new Map(old.rows.map((row) => [keyOf(row), row]));
  const rows = [
    ...old.rows.filter((row) => !cells.has(keyOf(row))),
    ...fresh.map((row) => merged(row, before.get(keyOf(row)))),
  ].sort(
    (left, right) =>
      rank(left) - rank(right) ||
      left.scenario.localeCompare(right.scenario) ||
      left.tenants - right.tenants ||
      left.bytes - right.bytes ||
      left.connections - right.connections,
  );
  const runs = Object.fromEntries(
    Object.entries({ ...old.runs, [id]: run }).filter(([one_]) =>
      rows.some((row) => runsOf(row).includes(one_)),
    ),
  );
  const all: Results = { runs, rows };
  writeFileSync(`${base}.json`, `${JSON.stringify(all, null, 1)}\n`);
  writeFileSync(
    `${base}.svg`,
    plot(
      rows,
      // A system of another kind would dwarf the rest.
      systems.filter((one_) => one_.isForOrientation !== true).map(({ name }) => name),
    ),
  );
  writeFileSync(`${base}.md`, report(all));
  console.log(`\n${verdicts(fresh)}\n\nwritten: ${base.slice(root.length + 1)}.{json,md,svg}`);
}

// --- program -----------------------------------------------------------------------------------------------------------------

function chosen(text: string | undefined, known: readonly string[], what: string): string[] {
  const names = text?.split(",") ?? [...known];
  const wrong = names.find((name) => !known.includes(name));
  if (wrong === undefined) return names;
  console.error(`No ${what} ${wrong}: there are ${known.join(", ")}`);
  process.exit(1);
}

/** The version, or null, said loudly, when it can be neither found nor installed. */
function versionOf(system: System): string | null {
  try {
    return system.version();
  } catch (error) {
    if (system.name === "conflux") throw error;
    const bar = "!".repeat(100);
    console.error(
      `${bar}\n${system.name} IS LEFT OUT, its columns stay empty. ${(error as Error).message}\n${bar}`,
    );
    return null;
  }
}

const git = (...words: readonly string[]): string =>
  spawnSync("git", ["-C", root, ...words], { encoding: "utf8" }).stdout.trim();

async function main(): Promise<void> {
  if (args.list) {
    for (const [name, { what }] of Object.entries(scenarios))
      console.log(`${name.padEnd(12)} ${what}`);
    return;
  }
  const names = chosen(args.scenario, Object.keys(scenarios), "scenario");
  const wanted = chosen(
    args.systems,
    systems.map(({ name }) => name),
    "system",
  );
  const loadBefore = Math.round((loadavg()[0] ?? 0) * 10) / 10;
  const asked = systems.filter(({ name }) => wanted.includes(name));
  const versions = new Map(asked.map((system) => [system.name, versionOf(system)]));
  const probe = new Probe(folder());
  const probes: Steadiness[] = [];
  for (let i = 0; i < 8; i++) probes.push(await probe.take());
  const usual = {
    spinMs: median(probes.map(({ spinMs }) => spinMs)),
    syncMs: median(probes.map(({ syncMs }) => syncMs)),
  };
  console.log(
    `probe: ${usual.spinMs.toFixed(1)} ms of processor, ${usual.syncMs.toFixed(2)} ms for a sync; load average ${loadBefore}${loadBefore > 0.5 ? ": THE MACHINE IS NOT QUIET" : ""}`,
  );
  const run: Run = {
    command: `npm run bench:peers -- ${process.argv.slice(2).join(" ")}`.replace(/ -- $/, ""),
    at: new Date().toISOString(),
    sha: git("rev-parse", "HEAD"),
    isChanged: git("status", "--porcelain", "--", "src", "bench/*.ts", "package.json") !== "",
    machine: `${cpus().length} × ${cpus()[0]?.model ?? "?"}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, data below ${tmpdir()}, client on Bun ${process.versions["bun"]}`,
    loadBefore,
    usual,
    rounds,
    seconds,
    warmSeconds,
    systems: asked.map(({ name, durability }) => ({
      name,
      durability,
      version: versions.get(name) ?? null,
    })),
  };
  for (let round = 1; round <= rounds; round++) {
    for (const system of asked) {
      if (versions.get(system.name) === null) continue;
      console.log(
        `round ${round} of ${rounds}: ${system.name}, after ${performance.now().toFixed(0)} ms`,
      );
      const running = await system.start();
      try {
        await measure(system, running, names, probe, usual);
      } finally {
        await running.stop();
      }
    }
    // After each, so that a run that is ended early leaves what it has.
    write({ ...run, rounds: round, ...(broken.length > 0 && { broken }) });
  }
  probe.close();
}

for (const signal of ["SIGINT", "SIGTERM"])
  process.on(signal, () => {
    removeFolders();
    process.exit(1);
  });
try {
  await main();
} finally {
  removeFolders();
}
process.exit(0);
