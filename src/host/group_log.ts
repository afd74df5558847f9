/**
 * One group's log on this replica: what Raft reads, synchronously.
 *
 * Recent entries are in memory, in journal order; everything up to the last checkpoint is in the environment. The two
 * overlap by nothing: `tail` starts right after `stored`, or later where nobody needs what comes between (`compact`). An
 * append that replaces entries already in the environment only moves `stored` back; the stale ones are deleted by the
 * next checkpoint, and replay of the journal does the same.
 */
import { assert } from "../lib/assert.ts";
import { entryFromBytes, entryToBytes } from "../raft/codec.ts";
import { emptyConfState } from "../raft/raft.ts";
import {
  NONE,
  type ConfState,
  type Entry,
  type HardState,
  type LogReader,
  type ReplicaId,
  type SnapshotMeta,
} from "../raft/types.ts";
import type { Member } from "../machine/rows.ts";
import type { Environment } from "./ports.ts";

/** What an environment knows of itself: identity, and where log and state stand. Stored as JSON. */
export interface ReplicaMeta {
  readonly format: 1;
  readonly tenant: string;
  readonly group: number;
  readonly incarnation: number;
  readonly replica: number;
  /** Before the group's first log entry; what changed since is in its state (see `membersKey`). */
  readonly members: readonly Member[];
  readonly hard: HardState;
  readonly conf: ConfState;
  readonly applied: number;
  readonly appliedTerm: number;
  /** First entry still held, and the term of the one before it. */
  readonly first: number;
  readonly firstTerm: number;
  readonly last: number;
  /** Journal records of this group up to here are contained. */
  readonly sequence: number;
}

/** Of a replica whose group has nothing here yet: everybody begins with the group's first members. */
export function freshMeta(
  group: Pick<ReplicaMeta, "tenant" | "group" | "incarnation">,
  replica: ReplicaId,
  members: readonly Member[],
): ReplicaMeta {
  return {
    format: 1,
    ...group,
    replica,
    members,
    hard: { term: 0, vote: NONE, commit: 0 },
    conf: {
      ...emptyConfState(),
      voters: members.map(({ id }) => id).sort((a, b) => a - b),
    },
    applied: 0,
    appliedTerm: 0,
    first: 1,
    firstTerm: 0,
    last: 0,
    sequence: 0,
  };
}

/** The log's part of a checkpoint. */
export interface LogCheckpoint {
  readonly first: number;
  readonly firstTerm: number;
  readonly last: number;
  readonly entries: Iterable<readonly [index: number, bytes: Uint8Array]>;
  readonly entriesDeleted: readonly { readonly low: number; readonly high: number }[];
}

export class GroupLog implements LogReader {
  readonly #environment: Environment;
  #hard: HardState;
  #conf: ConfState;
  #first: number;
  #firstTerm: number;
  /** Last index in the environment that is still part of the log. */
  #stored: number;
  /** Its term, once known: appends and votes ask for it, and an environment at rest should stay so. */
  #storedTerm: number | null = null;
  /** Entries base+1 …, consecutive. */
  #tail: Entry[] = [];
  /** `stored`, or beyond it and right before `first`. */
  #base: number;
  /** What the environment may hold of the log, valid or stale, and no checkpoint has deleted yet. */
  #storedFirst: number;
  #storedEnd: number;
  tailBytes = 0;
  /**
   * Bytes of entries in the environment, by checkpoint: those after the mark before, up to `last`. What an earlier life
   * left there is one mark of unknown size, counted as none.
   */
  #marks: { last: number; bytes: number }[] = [];
  /** Where the replica's state stands; what a snapshot sent now would cover. */
  snapshotNow: () => SnapshotMeta | null = () => null;

  constructor(environment: Environment, meta: ReplicaMeta) {
    this.#environment = environment;
    this.#hard = meta.hard;
    this.#conf = meta.conf;
    this.#first = meta.first;
    this.#firstTerm = meta.firstTerm;
    this.#stored = meta.last;
    this.#base = meta.last;
    this.#storedFirst = meta.first;
    this.#storedEnd = meta.last;
    if (meta.last >= meta.first) this.#marks.push({ last: meta.last, bytes: 0 });
    assert(meta.last >= meta.first - 1, "the stored log ends before it begins");
  }

  initialState(): { hardState: HardState; confState: ConfState } {
    return { hardState: this.#hard, confState: this.#conf };
  }

  firstIndex(): number {
    return this.#first;
  }

  lastIndex(): number {
    return this.#base + this.#tail.length;
  }

  term(index: number): number {
    if (index === this.#first - 1) return this.#firstTerm;
    if (index < this.#first || index > this.lastIndex()) return -1;
    if (index > this.#base) return (this.#tail[index - this.#base - 1] as Entry).term;
    if (index !== this.#stored) return this.#storedEntry(index).term;
    this.#storedTerm ??= this.#storedEntry(index).term;
    return this.#storedTerm;
  }

  entries(low: number, high: number, bytesMax: number): readonly Entry[] | null {
    if (low < this.#first) return null;
    assert(high <= this.lastIndex() + 1, "entries beyond the end of the log were asked for");
    const result: Entry[] = [];
    let bytes = 0;
    for (let index = low; index < high; index++) {
      const entry =
        index > this.#base
          ? (this.#tail[index - this.#base - 1] as Entry)
          : this.#storedEntry(index);
      bytes += entry.data.length;
      if (bytes > bytesMax && result.length > 0) break;
      result.push(entry);
    }
    return result;
  }

  snapshot(): SnapshotMeta | null {
    return this.snapshotNow();
  }

  /** Journal recovery only: the newest hard state found. */
  recoverHardState(hard: HardState): void {
    assert(hard.term >= this.#hard.term, "the journal's terms go back");
    this.#hard = hard;
  }

  /** Recovery only: the commit index cannot be behind what was applied, nor ahead of the log. */
  settleRecovery(applied: number): void {
    const commit = Math.max(this.#hard.commit, applied);
    this.#hard = { ...this.#hard, commit: Math.min(commit, this.lastIndex()) };
  }

  /**
   * Takes entries that are on their way into the journal. Entries at and after the first one's index are replaced.
   * @returns the index from which older entries were cut off, or null when none were
   */
  append(entries: readonly Entry[]): number | null {
    const first = entries[0];
    if (first === undefined) return null;
    const last = this.lastIndex();
    assert(first.index >= this.#first, "an append reaches below the start of the log");
    assert(first.index <= last + 1, "an append leaves a hole in the log");
    const cut = first.index <= last;
    if (cut) {
      if (first.index <= this.#stored) {
        this.#stored = first.index - 1;
        this.#base = this.#stored;
        this.#storedTerm = null;
        this.#marks = this.#marks
          .filter((_, at) => (this.#marks[at - 1]?.last ?? 0) < this.#stored)
          .map((mark) => ({ ...mark, last: Math.min(mark.last, this.#stored) }));
        this.#tail = [];
        this.tailBytes = 0;
      } else {
        for (const entry of this.#tail.splice(first.index - this.#base - 1)) {
          this.tailBytes -= entry.data.length;
        }
      }
    }
    for (const entry of entries) {
      this.#tail.push(entry);
      this.tailBytes += entry.data.length;
    }
    return cut ? first.index : null;
  }

  /** Everything up to the snapshot is gone; the environment is being cleared in the same breath. */
  restart(snapshot: SnapshotMeta): void {
    this.#first = snapshot.index + 1;
    this.#firstTerm = snapshot.term;
    this.#stored = snapshot.index;
    this.#base = snapshot.index;
    this.#storedTerm = null;
    this.#storedFirst = snapshot.index + 1;
    this.#storedEnd = snapshot.index;
    this.#tail = [];
    this.#marks = [];
    this.tailBytes = 0;
  }

  /**
   * Nobody will ask for entries up to `to`, which are durable and applied: those in memory go at once, those in the
   * environment with the next checkpoint.
   */
  compact(to: number): void {
    if (to <= this.#base || to < this.#first) return;
    this.#firstTerm = this.term(to);
    this.#first = to + 1;
    for (const entry of this.#tail.splice(0, to - this.#base)) this.tailBytes -= entry.data.length;
    this.#base = to;
  }

  /**
   * Where the log may begin so that what it keeps up to `applied` stays within the bounds. Of what is in the environment
   * whole checkpoints are kept or not.
   */
  keepFrom(
    applied: number,
    bounds: { readonly entries?: number; readonly from?: number; readonly bytes: number },
  ): number {
    const low = Math.max(
      this.#first,
      bounds.from ?? 0,
      bounds.entries === undefined ? 0 : applied + 1 - bounds.entries,
    );
    let bytes = 0;
    let from = applied + 1;
    for (; from > low && from > this.#base + 1; from--) {
      const entry = this.#tail[from - 1 - this.#base - 1] as Entry;
      if (bytes + entry.data.length > bounds.bytes) return from;
      bytes += entry.data.length;
    }
    for (let at = this.#marks.length - 1; at >= 0 && from > low; at--) {
      const mark = this.#marks[at] as { last: number; bytes: number };
      if (bytes + mark.bytes > bounds.bytes) return Math.min(from, mark.last + 1);
      bytes += mark.bytes;
      from = Math.min(from, (this.#marks[at - 1]?.last ?? this.#first - 1) + 1);
    }
    return Math.max(low, from);
  }

  /**
   * What the environment must get so that it holds the log up to `durable`, and nothing below `compactTo` (inclusive).
   * Call `checkpointed` when it is on disk.
   */
  checkpoint(durable: number, compactTo: number): LogCheckpoint {
    const last = Math.max(durable, this.#stored);
    const first = Math.max(this.#first, Math.min(compactTo, last) + 1);
    const firstTerm = this.term(first - 1);
    assert(firstTerm >= 0, "the term before the log's start is unknown");
    const entriesDeleted: { low: number; high: number }[] = [];
    if (this.#storedEnd > this.#stored) {
      entriesDeleted.push({ low: this.#stored + 1, high: this.#storedEnd + 1 });
    }
    const storedFirst = this.#storedFirst;
    if (first > storedFirst && this.#storedEnd >= storedFirst)
      entriesDeleted.push({ low: storedFirst, high: first });
    const entries: [number, Uint8Array][] = [];
    for (let index = Math.max(this.#stored + 1, first); index <= last; index++) {
      const entry = this.#tail[index - this.#base - 1] as Entry;
      entries.push([index, entryToBytes(entry)]);
    }
    // The environment may show its deletions before it says that they are durable: nobody may look there any more.
    this.#storedFirst = first;
    this.#first = first;
    this.#firstTerm = firstTerm;
    return { first, firstTerm, last, entries, entriesDeleted };
  }

  /** The checkpoint is durable: its entries need no memory any more. */
  checkpointed(checkpoint: LogCheckpoint, cutSince: number | null): void {
    // An append may have replaced entries of the checkpoint while it was written: those stay in memory as they are.
    const valid = cutSince === null ? checkpoint.last : Math.min(checkpoint.last, cutSince - 1);
    if (valid > this.#stored) {
      let bytes = 0;
      this.#storedTerm = null;
      for (const entry of this.#tail.splice(0, Math.max(0, valid - this.#base))) {
        bytes += entry.data.length;
        this.#storedTerm = entry.term;
      }
      this.tailBytes -= bytes;
      this.#stored = valid;
      this.#base = Math.max(this.#base, valid);
      this.#marks.push({ last: valid, bytes });
    }
    this.#marks = this.#marks.filter(({ last }) => last >= this.#first);
    this.#storedEnd = Math.max(checkpoint.last, this.#stored);
  }

  #storedEntry(index: number): Entry {
    const bytes = this.#environment.entry(index);
    assert(bytes !== undefined, `Log entry ${index} is missing in the environment`);
    const entry = entryFromBytes(bytes);
    assert(entry.index === index, `Log entry ${index} is stored under another index`);
    return entry;
  }
}
