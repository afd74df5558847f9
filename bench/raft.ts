/**
 * How many entries per second three replicas in one thread commit, without network or disk.
 *
 * Estimate: an entry by itself costs the leader one append, two messages out and two answers in, and the same four again
 * to tell the commit, its own acknowledgement, and three writes and three turns each on three replicas: about 25 objects
 * of 100–200 bytes and 40 calls of 0.1 µs, so 4–6 µs, or 200,000 entries per second. In batches of 64 all of that is
 * shared; what is left is the entry itself, appended and applied three times: 0.3–0.5 µs, or 2–3 million per second.
 */
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

function measure(
  name: string,
  rounds: number,
  perRound: number,
  mode: "one" | "batch" | "merge",
): void {
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
  const begin = performance.now();
  for (let i = 0; i < rounds; i++) round();
  const ms = performance.now() - begin;
  const entries = leader.raft.appliedIndex - first;
  if (entries !== rounds * perRound) throw new Error(`${entries} entries committed`);
  const rate = Math.round((entries / ms) * 1_000).toLocaleString("en");
  const each = ((ms / entries) * 1_000).toFixed(2);
  console.log(`| ${name.padEnd(34)} | ${rate.padStart(12)} | ${each.padStart(8)} |`);
}

/** Ticking a node full of quiet groups: what it costs to ask each one whether it is idle, and to tick it if not. */
function measureIdle(groups: number): void {
  const replicas = IDS.map((id) => start(id, false));
  const [leader] = replicas as [Replica];
  leader.raft.campaign();
  settle(replicas);
  leader.raft.tick();
  settle(replicas);
  if (!leader.raft.idle) throw new Error("the group is not at rest");
  const passes = 20;
  let idle = 0;
  const begin = performance.now();
  for (let i = 0; i < passes * groups; i++) if (leader.raft.idle) idle += 1;
  const ms = (performance.now() - begin) / passes;
  if (idle !== passes * groups) throw new Error("a group woke up");
  console.log(
    `\n${groups} idle leaders asked in ${ms.toFixed(1)} ms a pass (one group, warm caches).`,
  );
}

console.log(`| three replicas, ${PAYLOAD_BYTES} B entries       | entries/s    | µs/entry |`);
console.log(`| ---------------------------------- | ------------ | -------- |`);
measure("one at a time", 60_000, 1, "one");
measure("64 single proposals a turn", 2_000, 64, "one");
measure("64 single proposals a turn, merged", 4_000, 64, "merge");
measure("batches of 64", 6_000, 64, "batch");
measureIdle(100_000);
