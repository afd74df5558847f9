/**
 * One follower's whole life against a leader that is only a model: what it answered must survive every crash, what it
 * applied must be what the log says, and nobody who waits or watches may be told anything else. Journal and environment
 * end their work when the seed says so, so that every order of completions, checkpoints, cuts and snapshots occurs.
 */
import { describe, expect, test } from "vitest";
import { appendRecord, createRecord, parseRecord } from "../../src/host/codec.ts";
import { GroupLog } from "../../src/host/group_log.ts";
import { metaFromBytes, Replica, type ReplicaHooks } from "../../src/host/replica.ts";
import { assert } from "../../src/lib/assert.ts";
import { Prng } from "../../src/lib/prng.ts";
import type { Command } from "../../src/machine/command.ts";
import { apply } from "../../src/machine/machine.ts";
import type { HistoryRow, TenantMeta } from "../../src/machine/rows.ts";
import { EntryKind, MessageType, type Entry, type StorageAppend } from "../../src/raft/types.ts";
import { MemoryState } from "../machine/memory_state.ts";
import { message } from "../raft/helpers.ts";
import {
  committedBy,
  freshMeta,
  rowsOf,
  MemoryEnvironment,
  type PreparedChange,
} from "./memory_environment.ts";

const identity = freshMeta([1, 2, 3]);

interface JournalRecord {
  readonly sequence: number;
  readonly payload: Uint8Array;
  readonly append: StorageAppend;
}

const actions = [
  ["append", 12],
  ["extend", 8],
  ["journal", 14],
  ["environment", 6],
  ["checkpoint", 5],
  ["commit", 5],
  ["heartbeat", 3],
  ["read", 3],
  ["arrive", 3],
  ["answer", 3],
  ["lead", 3],
  ["vote", 1],
  ["snapshot", 1],
  ["crash", 2],
] as const;
const weights = actions.reduce((sum, [, weight]) => sum + weight, 0);
type ActionName = (typeof actions)[number][0];

class Life {
  readonly #random: Prng;
  /** The leader as it should be: every log it may ever show agrees up to `commit`. */
  #term = 1;
  #leader = 2;
  #log: Entry[] = [];
  #commit = 0;
  #proposed = 0;
  readonly #states: MemoryState[] = [new MemoryState()];

  /** What was promised by answers that left. */
  #matched = 0;
  #promised = 0;
  #promisedTerm = 0;
  readonly #votes = new Map<number, number>();

  readonly #stored = new MemoryEnvironment();
  #committing: { readonly write: () => void; readonly done: () => void } | null = null;
  #journal: JournalRecord[] = [];
  #pending: JournalRecord[] = [];
  #sequence = 0;
  #life = 0;
  #replica: Replica;

  /** Read requests on their way to the leader, and on their way back with their index. */
  #asked: number[] = [];
  #answered: { readonly context: number; readonly index: number }[] = [];
  /** Revision that watchers saw last; null when they have to look anew. */
  #watched: number | null = null;
  readonly counts = { crashes: 0, installs: 0, cuts: 0, reads: 0, events: 0, checkpoints: 0 };

  constructor(seed: number) {
    this.#random = new Prng(seed);
    this.extend([noop]);
    this.#replica = this.#start();
  }

  run(steps: number): void {
    for (let step = 0; step < steps; step++) {
      this.#act();
      this.settle();
    }
    // In the end everything arrives, is written and applied.
    this.#commit = this.#log.length;
    for (let round = 0; round < 3; round++) {
      while (this.write() || this.store()) this.settle();
      this.append(this.#replica.raft.commitIndex, Infinity);
      this.settle();
    }
    while (this.write() || this.store()) this.settle();
    expect(this.#replica.raft.appliedIndex).toBe(this.#log.length);
    this.crash();
    this.#checkKept();
  }

  // --- the replica's host --------------------------------------------------------------------------------------------

  #start(): Replica {
    const life = this.#life;
    const stored = this.#stored;
    const bytes = stored.meta();
    const meta = bytes === null ? identity : metaFromBytes(bytes);
    const commit = (prepared: PreparedChange, done: (error: Error | null) => void): void => {
      assert(this.#committing === null, "a commit is under way");
      const write = (): void => stored.write(prepared);
      this.#committing = { write, done: () => done(null) };
    };
    const environment = committedBy(stored, commit);
    const log = new GroupLog(environment, meta);
    let { sequence } = meta;
    for (const record of this.#journal) {
      if (record.sequence <= meta.sequence) continue;
      const parsed = parseRecord(record.payload);
      assert(parsed.kind === "append", "only appends are in this journal");
      if (parsed.hard !== null) log.recoverHardState(parsed.hard);
      log.append(parsed.entries);
      sequence = record.sequence;
    }
    log.settleRecovery(meta.applied);
    const hooks: ReplicaHooks & { contained(replica: Replica, run: () => void): void } = {
      send: (_, m) => {
        if (life === this.#life) this.#sent(m);
      },
      persist: (_, append) => {
        this.#sequence += 1;
        this.#replica.sequenceSubmitted = this.#sequence;
        const payload = appendRecord(this.#replica.takeHardState(append), append.entries);
        this.#pending.push({ sequence: this.#sequence, payload: payload.slice(), append });
      },
      sendSnapshot: () => assert(false, "a follower sends no snapshot"),
      committed: (_, event) => this.#told(event),
      contained: (_, run) => run(),
      leaderChanged: () => {},
      installed: () => {
        this.counts.installs += 1;
        this.#watched = null;
      },
      stored: () => {
        const released = this.#replica.sequenceStored;
        this.#journal = this.#journal.filter((record) => record.sequence > released);
        this.#replica.resumeLane();
      },
    };
    const replica = new Replica({
      meta,
      log,
      environment,
      random: this.#random.fork(),
      supports: () => true,
      sequence,
      logKept: {
        entries: this.#random.pick([0, 2, 10]),
        bytes: this.#random.pick([0, 500, 1_000_000]),
        bytesForLagging: this.#random.pick([0, 1_000, 1_000_000]),
      },
      hooks,
    });
    replica.startFrom(bytes === null ? 0 : meta.sequence, bytes === null ? 0 : meta.applied);
    this.#watched = null;
    return replica;
  }

  #sent(m: Parameters<Replica["step"]>[0]): void {
    if (m.type === MessageType.readIndex) {
      this.#asked.push(m.context);
      return;
    }
    // The answer to a heartbeat promises nothing of the disk.
    if (m.type !== MessageType.appendEntriesResponse && m.type !== MessageType.requestVoteResponse)
      return;
    this.#promisedTerm = Math.max(this.#promisedTerm, m.term);
    if (m.reject) return;
    if (m.type === MessageType.requestVoteResponse) {
      const before = this.#votes.get(m.term);
      assert(before === undefined || before === m.to, `voted twice in term ${m.term}`);
      this.#votes.set(m.term, m.to);
    } else if (m.term === this.#term) {
      this.#matched = Math.max(this.#matched, m.index);
      this.#promised = Math.max(this.#promised, m.index);
    }
  }

  #told(event: HistoryRow): void {
    this.counts.events += 1;
    const { view, raft } = this.#replica;
    const shown = revisionOf(this.#state(raft.appliedIndex));
    assert(view.revision === event.revision, "told of a revision that reads do not show");
    assert(shown === event.revision, `told of revision ${event.revision} when ${shown} is applied`);
    const expected = (this.#watched ?? revisionOf(this.#state(raft.appliedIndex - 1))) + 1;
    assert(event.revision === expected, `told of revision ${event.revision} after ${expected - 1}`);
    this.#watched = event.revision;
  }

  settle(): void {
    while (this.#replica.drain());
    const { raft } = this.#replica;
    const index = raft.appliedIndex;
    assert(raft.lastIndex >= raft.commitIndex && raft.commitIndex >= index, "cursors are in order");
    this.#checkRows();
  }

  /** What can be seen is what the applied entries make. */
  #checkRows(): void {
    const index = this.#replica.raft.appliedIndex;
    // Between two states, while a snapshot is being installed, nobody looks.
    if (this.#replica.installing) return;
    const rows = JSON.stringify(rowsOf(this.#replica));
    assert(rows === JSON.stringify(this.#state(index).dump()), `rows are not those of ${index}`);
  }

  write(): boolean {
    const record = this.#pending.shift();
    if (record === undefined) return false;
    this.#journal.push(record);
    this.#replica.persisted(record.append, record.sequence);
    this.#replica.resumeLane();
    return true;
  }

  store(): boolean {
    const committing = this.#committing;
    if (committing === null) return false;
    this.#committing = null;
    committing.write();
    committing.done();
    return true;
  }

  checkpoint(): boolean {
    const begins = this.#replica.checkpoint();
    if (begins) this.counts.checkpoints += 1;
    return begins;
  }

  crash(): void {
    this.counts.crashes += 1;
    this.#life += 1;
    this.#journal.push(...this.#pending.slice(0, this.#random.between(0, this.#pending.length)));
    this.#pending = [];
    if (this.#committing !== null && this.#random.chance(0.5)) this.#committing.write();
    this.#committing = null;
    this.#asked = [];
    this.#answered = [];
    this.#replica = this.#start();
    this.#checkKept();
  }

  /** Everything promised is there after a crash. */
  #checkKept(): void {
    const { raft, log } = this.#replica;
    const { term, vote } = raft.status();
    assert(term >= this.#promisedTerm, `term ${term} is behind the promised ${this.#promisedTerm}`);
    const promisedVote = this.#votes.get(term);
    assert(promisedVote === undefined || vote === promisedVote, `the vote of ${term} is forgotten`);
    assert(log.term(log.lastIndex()) <= term, "an entry is of a later term than this replica");
    this.#checkRows();
    assert(log.lastIndex() >= this.#promised, "accepted entries are gone");
    for (let index = log.firstIndex(); index <= this.#promised; index++)
      assert(log.term(index) === this.#log[index - 1]?.term, `accepted entry ${index} is another`);
  }

  // --- the leader ----------------------------------------------------------------------------------------------------

  #act(): void {
    const random = this.#random;
    switch (this.#pick()) {
      case "append":
        return this.append(
          random.between(this.#knownPrefix(), this.#log.length),
          random.between(0, 4),
        );
      case "extend":
        return this.extend(Array.from({ length: random.between(1, 3) }, () => this.#command()));
      case "journal":
        this.write();
        return;
      case "environment":
        this.store();
        return;
      case "checkpoint":
        this.checkpoint();
        return;
      case "commit":
        this.#commit = random.between(this.#commit, this.#log.length);
        return;
      case "heartbeat": {
        const commit = Math.min(this.#matched, this.#commit);
        this.#step("heartbeat", { commit });
        return;
      }
      case "read": {
        const floor = this.#commit;
        this.#replica.read(Infinity, (result) => {
          if (result !== "ok") return;
          this.counts.reads += 1;
          const applied = this.#replica.raft.appliedIndex;
          assert(applied >= floor, `a read begun at ${floor} is served at ${applied}`);
        });
        return;
      }
      case "arrive": {
        const context = this.#asked.shift();
        if (context !== undefined) this.#answered.push({ context, index: this.#commit });
        return;
      }
      case "answer": {
        const answer = this.#answered.shift();
        if (answer !== undefined) this.#step("readIndexResponse", answer);
        return;
      }
      case "lead":
        return this.lead();
      case "vote":
        return this.#askForVotes();
      case "snapshot":
        return this.#sendSnapshot();
      case "crash":
        return this.crash();
    }
  }

  #pick(): ActionName {
    let dice = this.#random.below(weights);
    for (const [action, weight] of actions) {
      dice -= weight;
      if (dice < 0) return action;
    }
    return "append";
  }

  #step(type: keyof typeof MessageType, fields: Parameters<typeof message>[1]): void {
    this.#replica.step(message(type, { to: 1, from: this.#leader, term: this.#term, ...fields }));
  }

  /** Where a leader may begin: what is compacted here is not asked about. */
  #knownPrefix(): number {
    return Math.min(this.#log.length, Math.max(0, this.#replica.log.firstIndex() - 1));
  }

  append(prev: number, count: number): void {
    this.#step("appendEntries", {
      index: prev,
      logTerm: this.#log[prev - 1]?.term ?? 0,
      entries: this.#log.slice(prev, prev + count),
      commit: this.#commit,
    });
  }

  extend(commands: readonly Uint8Array[]): void {
    for (const data of commands)
      this.#log.push({
        index: this.#log.length + 1,
        term: this.#term,
        kind: EntryKind.normal,
        data,
      });
  }

  /** Another leader, whose log may lack what is not committed. */
  lead(kept = this.#random.between(this.#commit, this.#log.length)): void {
    this.#term += 1;
    this.#leader = this.#random.pick([2, 3]);
    if (kept < this.#log.length) this.counts.cuts += 1;
    this.#log.length = kept;
    this.#states.length = Math.min(this.#states.length, kept + 1);
    this.#matched = 0;
    this.#promised = Math.min(this.#promised, kept);
    this.#asked = [];
    this.#answered = [];
    this.extend([noop]);
  }

  /** Both others ask for a vote in the same term, forced as by a transfer; then one of them leads some later term. */
  #askForVotes(): void {
    this.#term += 1;
    this.#matched = 0;
    const first = this.#random.pick([2, 3]);
    for (const from of [first, 5 - first]) {
      const last = { index: 1_000_000, logTerm: this.#term };
      this.#step("requestVote", { from, context: 1, ...last });
      this.settle();
      while (this.#random.chance(0.5) && this.write()) this.settle();
      if (this.#random.chance(0.3)) this.crash();
    }
    this.lead();
  }

  #sendSnapshot(): void {
    const known = this.#replica.raft.commitIndex;
    if (known >= this.#commit) return;
    // Two at a time may be on their way, the older one last.
    const indexes = [this.#random.between(known + 1, this.#commit), this.#commit];
    for (const index of this.#random.chance(0.5) ? indexes : indexes.reverse()) {
      const term = this.#log[index - 1]?.term as number;
      const snapshot = { index, term, confState: identity.conf };
      const fields = { to: 1, from: this.#leader, term: this.#term, snapshot };
      const staging = this.#replica.stage();
      if (staging === null) continue;
      staging.add(this.#state(index).dump(), () => {});
      this.#replica.offerSnapshot(message("installSnapshot", fields), staging);
      if (this.#random.chance(0.5)) this.settle();
    }
  }

  #command(): Uint8Array {
    const at = 1_700_000_000_000 + this.#proposed;
    const actor = { kind: "system", keyId: "k" } as const;
    this.#proposed += 1;
    const name = `c${this.#random.below(4)}`;
    const description = `d${this.#proposed}`;
    const action: Command["action"] =
      this.#state(this.#log.length).size === 0 && !this.#log.some(({ data }) => data.length > 0)
        ? { op: "tenant.init", tenant: "t", quotas: {}, keys: [] }
        : this.#random.chance(0.2)
          ? { op: "config.delete", namespace: "default", name }
          : { op: "config.put", namespace: "default", name, format: "text", description };
    return new TextEncoder().encode(JSON.stringify({ at, actor, action } satisfies Command));
  }

  /** The state after the entries up to `index`. */
  #state(index: number): MemoryState {
    for (let next = this.#states.length; next <= index; next++) {
      const state = new MemoryState((this.#states[next - 1] as MemoryState).dump());
      const { data } = this.#log[next - 1] as Entry;
      if (data.length > 0) apply(state, JSON.parse(new TextDecoder().decode(data)) as Command);
      this.#states.push(state);
    }
    return this.#states[index] as MemoryState;
  }
}

const noop = new Uint8Array(0);

function revisionOf(state: MemoryState): number {
  return state.get<TenantMeta>("meta")?.revision ?? 0;
}

describe("Replica", () => {
  const slices = [0, 1, 2, 3];
  test.each(slices)("keeps what it answered and tells what it applied: slice %i", (slice) => {
    const sums = { crashes: 0, installs: 0, cuts: 0, reads: 0, events: 0, checkpoints: 0 };
    for (let seed = 1; seed <= 60; seed++) {
      const life = new Life(slice * 1_000 + seed);
      try {
        life.run(300);
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        throw new Error(`Seed ${slice * 1_000 + seed}: ${reason}`, { cause: error });
      }
      for (const key of Object.keys(sums) as (keyof typeof sums)[]) sums[key] += life.counts[key];
    }
    // A life in which nothing happened would prove nothing.
    for (const count of Object.values(sums)) expect(count).toBeGreaterThan(10);
  });
});

describe("checkpoint()", () => {
  /** Five entries durable here, a sixth on its way, and behind it another leader's from the fifth on. */
  function cutUnderWay(): Life {
    const life = new Life(1);
    life.extend([noop, noop, noop, noop]);
    life.append(0, 5);
    life.settle();
    while (life.write()) life.settle();
    life.extend([noop]);
    life.append(5, 1);
    life.settle();
    life.lead(4);
    life.extend([noop, noop]);
    life.append(4, 3);
    life.settle();
    return life;
  }

  test("waits for it also while older appends are under way: else a crash between them leaves a hole", () => {
    const life = cutUnderWay();
    expect(life.checkpoint()).toBe(false);
    life.store();
    expect(life.write()).toBe(true);
    life.crash();
  });

  test("waits for an append that cuts the log: else it could hold entries whose term is not durable", () => {
    const life = cutUnderWay();
    expect(life.write()).toBe(true);
    expect(life.checkpoint()).toBe(false);
    expect(life.write()).toBe(true);
    expect(life.checkpoint()).toBe(true);
    life.store();
    life.crash();
  });
});

describe("a journal record", () => {
  test("gives back hard state and entries as they went in", () => {
    const hard = { term: 7, vote: 3, commit: 5 };
    const entries: Entry[] = [{ index: 6, term: 7, kind: 0, data: Uint8Array.of(1, 2) }];
    expect(parseRecord(appendRecord(hard, entries))).toEqual({ kind: "append", hard, entries });
    expect(parseRecord(appendRecord(null, []))).toEqual({
      kind: "append",
      hard: null,
      entries: [],
    });
    expect(parseRecord(createRecord(identity))).toEqual({ kind: "create", meta: identity });
  });
});
