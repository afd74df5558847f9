/**
 * How many entries per second three replicas in one thread commit, without network or disk. `--against REF` runs the same
 * program over the core of now and that of a commit (59efca5 and later) in turns, so that both see the same machine, and
 * tells the ratio; `--write` puts the table into bench/results/raft.md.
 *
 * Estimate: an entry by itself costs the leader one append, two messages out and two answers in, and the same four again
 * to tell the commit, its own acknowledgement, and three writes and three turns each on three replicas: about 25 objects
 * of 100–200 bytes and 40 calls of 0.1 µs, so 4–6 µs, or 200,000 entries per second. In batches of 64 all of that is
 * shared; what is left is the entry itself, appended and applied three times: 0.3–0.5 µs, or 2–3 million per second.
 */
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { Prng } from "../src/lib/prng.ts";
import { emptyConfState, newReady, Raft } from "../src/raft/raft.ts";
import type { Message, Ready } from "../src/raft/types.ts";
import { MemoryLog } from "../test/raft/memory_log.ts";

interface Replica {
  readonly raft: Raft;
  readonly log: MemoryLog;
  readonly ready: Ready;
}

const IDS = [1, 2, 3];
const PAYLOAD_BYTES = 128;
/** Entries kept: the log of a benchmark must not be what is measured. */
const KEPT = 4_096;

function start(id: number, mergeAppends: boolean): Replica {
  const log = new MemoryLog({ ...emptyConfState(), voters: IDS });
  const random = new Prng(id);
  const raft = new Raft({
    id,
    log,
    applied: 0,
    electionTicks: 10,
    heartbeatTicks: 1,
    random: (bound) => random.below(bound),
    preVote: true,
    checkQuorum: true,
    stepDownOnRemoval: true,
    readOnly: "safe",
    messageBytesMax: 256 * 1024,
    inflightMessagesMax: 256,
    inflightBytesMax: 8 * 1024 * 1024,
    applyingBytesMax: 4 * 1024 * 1024,
    uncommittedBytesMax: 32 * 1024 * 1024,
    supports: () => true,
    mergeAppends,
  });
  return { raft, log, ready: newReady() };
}

/** Turns until nobody has anything to do; every write is durable at once. */
function settle(replicas: readonly Replica[]): void {
  const inbox: Message[] = [];
  for (;;) {
    for (const { raft, log, ready } of replicas) {
      while (raft.hasReady()) {
        raft.ready(ready);
        for (const m of ready.messages) inbox.push(m);
        const { append } = ready;
        if (append !== null) {
          log.write(append);
          for (const m of append.responses) inbox.push(m);
          raft.appended(append);
        }
        for (const entry of ready.committed) raft.applied(entry.index, entry.data.length);
      }
    }
    if (inbox.length === 0) return;
    for (const m of inbox) (replicas[m.to - 1] as Replica).raft.step(m);
    inbox.length = 0;
  }
}

/** @returns microseconds of processor time per entry */
function measure(rounds: number, perRound: number, mode: "one" | "batch" | "merge"): number {
  const replicas = IDS.map((id) => start(id, mode === "merge"));
  const [leader] = replicas as [Replica];
  leader.raft.campaign();
  settle(replicas);
  const data = new Uint8Array(PAYLOAD_BYTES);
  const batch = Array.from({ length: perRound }, () => data);
  const round = (): void => {
    if (mode === "batch") leader.raft.propose(batch);
    else for (let i = 0; i < perRound; i++) leader.raft.propose(data);
    settle(replicas);
    for (const { log, raft } of replicas) {
      if (log.kept.length > 2 * KEPT) log.compact(raft.appliedIndex - KEPT);
    }
  };
  for (let i = 0; i < rounds / 5; i++) round();
  const first = leader.raft.appliedIndex;
  const begin = process.cpuUsage();
  for (let i = 0; i < rounds; i++) round();
  const { user, system } = process.cpuUsage(begin);
  const entries = leader.raft.appliedIndex - first;
  if (entries !== rounds * perRound) throw new Error(`${entries} entries committed`);
  return (user + system) / entries;
}

/** Asking a node full of quiet groups whether they are idle. @returns ms of processor time for all of them */
function measureIdle(groups: number): number {
  const replicas = IDS.map((id) => start(id, false));
  const [leader] = replicas as [Replica];
  leader.raft.campaign();
  settle(replicas);
  leader.raft.tick();
  settle(replicas);
  if (!leader.raft.idle) throw new Error("the group is not at rest");
  const passes = 20;
  let idle = 0;
  const begin = process.cpuUsage();
  for (let i = 0; i < passes * groups; i++) if (leader.raft.idle) idle += 1;
  const { user, system } = process.cpuUsage(begin);
  if (idle !== passes * groups) throw new Error("a group woke up");
  return (user + system) / 1_000 / passes;
}

const IDLE_GROUPS = 100_000;
/** What is measured, and its unit. */
const cases = {
  "one at a time": () => measure(60_000, 1, "one"),
  "64 single proposals a turn": () => measure(2_000, 64, "one"),
  "64 single proposals a turn, merged": () => measure(4_000, 64, "merge"),
  "batches of 64": () => measure(6_000, 64, "batch"),
  idle: () => measureIdle(IDLE_GROUPS),
} as const;
type Figures = Record<keyof typeof cases, number>;

function run(): Figures {
  const names = Object.keys(cases) as (keyof Figures)[];
  return Object.fromEntries(names.map((name) => [name, cases[name]()])) as Figures;
}

/** This program over the core of another commit. */
class Other {
  readonly folder = mkdtempSync(path.join(tmpdir(), "core-"));

  constructor(ref: string) {
    const root = path.resolve(import.meta.dirname, "..");
    const parts = ["src/lib", "src/raft", "test/raft", "package.json", "tsconfig.json"];
    const archive = execFileSync("git", ["archive", ref, ...parts], {
      cwd: root,
      maxBuffer: 64 * 1024 * 1024,
    });
    execFileSync("tar", ["-x", "-C", this.folder], { input: archive });
    mkdirSync(path.join(this.folder, "bench"));
    copyFileSync(import.meta.filename, path.join(this.folder, "bench/raft.ts"));
    symlinkSync(path.join(root, "node_modules"), path.join(this.folder, "node_modules"));
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

function runIn(folder: string): Figures {
  const output = execFileSync(process.execPath, ["bench/raft.ts", "--json"], { cwd: folder });
  return JSON.parse(output.toString("utf8")) as Figures;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

function said(name: keyof Figures, figure: number): string {
  if (name === "idle") return `${figure.toFixed(1)} ms`;
  const rate = Math.round(1_000_000 / figure).toLocaleString("en");
  return `${figure.toFixed(2)} µs (${rate}/s)`;
}

const { values } = parseArgs({
  options: {
    against: { type: "string" },
    rounds: { type: "string", default: "5" },
    write: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
  },
});
const label = (name: keyof Figures): string =>
  name === "idle" ? `asking ${IDLE_GROUPS} idle leaders (one group, warm caches)` : name;

if (values.json) {
  console.log(JSON.stringify(run()));
} else if (values.against === undefined) {
  console.log(`three replicas, ${PAYLOAD_BYTES} B entries, processor time per entry`);
  const figures = run();
  for (const name of Object.keys(figures) as (keyof Figures)[])
    console.log(`${label(name).padEnd(60)} ${said(name, figures[name])}`);
} else {
  // Only here: the core of an earlier commit comes without it.
  const { printRows, writeReport } = await import("./report.ts");
  const load = loadavg()[0] ?? 0;
  const other = new Other(values.against);
  const before: Figures[] = [];
  const now: Figures[] = [];
  try {
    for (let round = 0; round < Number(values.rounds); round++) {
      before.push(runIn(other.folder));
      now.push(runIn(path.resolve(import.meta.dirname, "..")));
    }
  } finally {
    other.remove();
  }
  const rows = (Object.keys(cases) as (keyof Figures)[]).map((name) => {
    const [then, today] = [before, now].map((all) => median(all.map((each) => each[name])));
    if (then === undefined || today === undefined) throw new Error("nothing was measured");
    return {
      what: label(name),
      figure: `${said(name, today)}; ${values.against}: ${said(name, then)}; ratio ${(then / today).toFixed(2)}`,
      wanted: "",
    };
  });
  printRows(rows);
  if (values.write)
    writeReport({
      name: "raft",
      title: "The core by itself",
      args: process.argv.slice(2),
      setting: "one thread",
      load,
      text: `Three replicas in one thread, without network or disk; ${PAYLOAD_BYTES} B entries. Processor time per entry from being proposed until all three applied it, median of ${values.rounds} runs of each, taken in turns. ${values.against} is an earlier commit of the core; a ratio above 1 says that it is cheaper now.`,
      rows,
      plot: "",
      curves: [],
    });
}
