/**
 * The log as Raft sees it: what storage acknowledged, and behind it what storage has yet to acknowledge.
 *
 *   … stored …            | unstable                                |
 *   firstIndex … offset-1 | offset … inProgress-1 | inProgress … last |
 *                           handed to storage       not yet handed out
 *
 * Commit and apply are cursors into it: applied ≤ applying ≤ commit ≤ last. A snapshot that is being installed stands
 * before the unstable entries and hides everything stored. Storage is read only below `offset`, where it is settled.
 */
import { assert } from "../lib/assert.ts";
import { NO_ENTRIES, type Entry, type LogReader, type SnapshotMeta } from "./types.ts";

/** Term of an index that cannot be known: compacted, or not there yet. */
export const UNKNOWN_TERM = -1;

export class RaftLog {
  readonly #stored: LogReader;
  readonly #applyingBytesMax: number;
  readonly #applyUnstable: boolean;
  #entries: Entry[] = [];
  #offset: number;
  #inProgress: number;
  #snapshot: SnapshotMeta | null = null;
  #snapshotInProgress = false;
  commit: number;
  applied: number;
  applying: number;
  #applyingBytes = 0;
  /** The quota is used up, or left out entries that did not fit: wait until something is applied. */
  #applyingPaused = false;

  constructor(
    stored: LogReader,
    options: {
      commit: number;
      applied: number;
      applyingBytesMax: number;
      applyUnstable: boolean;
    },
  ) {
    this.#stored = stored;
    this.#applyingBytesMax = options.applyingBytesMax;
    this.#applyUnstable = options.applyUnstable;
    this.#offset = stored.lastIndex() + 1;
    this.#inProgress = this.#offset;
    const base = stored.firstIndex() - 1;
    this.applied = Math.max(options.applied, base);
    this.applying = this.applied;
    // The commit index is not synced by itself; what is applied or compacted was committed.
    this.commit = Math.max(options.commit, this.applied);
    assert(
      this.commit <= this.lastIndex,
      `The log ends at ${this.lastIndex}, before its commit index ${this.commit}`,
    );
  }

  get firstIndex(): number {
    return this.#snapshot !== null ? this.#snapshot.index + 1 : this.#stored.firstIndex();
  }

  get lastIndex(): number {
    return this.#offset + this.#entries.length - 1;
  }

  get lastTerm(): number {
    const last = this.#entries.length;
    if (last > 0) return (this.#entries[last - 1] as Entry).term;
    const term = this.term(this.lastIndex);
    assert(term !== UNKNOWN_TERM, "the term of the last entry is unknown");
    return term;
  }

  /** Term of the entry, or of the snapshot that ends there; `UNKNOWN_TERM` where neither is held. */
  term(index: number): number {
    if (index >= this.#offset) {
      const entry = this.#entries[index - this.#offset];
      return entry === undefined ? UNKNOWN_TERM : entry.term;
    }
    if (this.#snapshot !== null) {
      return index === this.#snapshot.index ? this.#snapshot.term : UNKNOWN_TERM;
    }
    if (index === 0) return this.#stored.firstIndex() === 1 ? 0 : UNKNOWN_TERM;
    return this.#stored.term(index);
  }

  matches(index: number, term: number): boolean {
    const known = this.term(index);
    return known !== UNKNOWN_TERM && known === term;
  }

  /** Raft §5.4.1: later last term, or the same and at least as long. */
  isUpToDate(lastIndex: number, lastTerm: number): boolean {
    const own = this.lastTerm;
    return lastTerm > own || (lastTerm === own && lastIndex >= this.lastIndex);
  }

  /**
   * Walks back from `index` to the first place where this log's term is at most `term`: nothing above it can be common
   * with a log that has `term` at `index`.
   * @returns that index; its term is `term(index)`, or unknown below the start of the log
   */
  findConflictByTerm(index: number, term: number): number {
    let at = index;
    while (at > 0) {
      const own = this.term(at);
      if (own === UNKNOWN_TERM || own <= term) return at;
      at -= 1;
    }
    return 0;
  }

  /** Entries from `low`, as many as fit, at least one if there is one. Null where the log is compacted. */
  entriesFrom(low: number, bytesMax: number): readonly Entry[] | null {
    return low > this.lastIndex ? NO_ENTRIES : this.slice(low, this.lastIndex + 1, bytesMax);
  }

  /** Entries low ≤ index < high, as many as fit, at least one. Null where the log is compacted. */
  slice(low: number, high: number, bytesMax: number): readonly Entry[] | null {
    if (low < this.firstIndex) return null;
    assert(high <= this.lastIndex + 1, "a slice reaches beyond the end of the log");
    if (low >= high) return NO_ENTRIES;
    let bytes = 0;
    let result: Entry[] | null = null;
    if (low < this.#offset) {
      const cut = Math.min(high, this.#offset);
      const stored = this.#stored.entries(low, cut, bytesMax);
      if (stored === null) return null;
      assert(stored.length > 0, "storage gave no entries where it has some");
      if (stored.length < cut - low || high <= this.#offset) return stored;
      for (const entry of stored) bytes += entry.data.length;
      if (bytes >= bytesMax) return stored;
      result = stored.slice();
    }
    const from = Math.max(low, this.#offset) - this.#offset;
    let to = from;
    for (const end = high - this.#offset; to < end; to++) {
      bytes += (this.#entries[to] as Entry).data.length;
      if (bytes > bytesMax && (to > from || result !== null)) break;
    }
    if (result === null) return this.#entries.slice(from, to);
    for (let i = from; i < to; i++) result.push(this.#entries[i] as Entry);
    return result;
  }

  /** Adds to the end, or replaces from the first entry's index on (Raft §5.3). */
  append(entries: readonly Entry[]): void {
    const first = entries[0];
    if (first === undefined) return;
    assert(first.index > this.commit, `Entry ${first.index} is committed and cannot be replaced`);
    assert(first.index <= this.lastIndex + 1, "an append leaves a hole in the log");
    if (first.index < this.#offset) {
      this.#entries = [];
      this.#offset = first.index;
      this.#inProgress = first.index;
    } else {
      // In place would change what was handed out to storage as a slice only if slices shared memory; they are copies.
      this.#entries.length = first.index - this.#offset;
      this.#inProgress = Math.min(this.#inProgress, first.index);
    }
    for (const entry of entries) {
      assert(entry.index === this.lastIndex + 1, "an append has a hole");
      this.#entries.push(entry);
    }
  }

  /**
   * A follower's append. Only a real conflict removes entries: a late, shorter message deletes nothing.
   * @returns the last index known to match, or -1 when the entry before does not
   */
  maybeAppend(index: number, term: number, entries: readonly Entry[], commit: number): number {
    if (!this.matches(index, term)) return -1;
    let at = 0;
    while (at < entries.length) {
      const entry = entries[at] as Entry;
      assert(entry.index === index + 1 + at, "a message has a hole between its entries");
      if (!this.matches(entry.index, entry.term)) break;
      at += 1;
    }
    if (at < entries.length) this.append(at === 0 ? entries : entries.slice(at));
    const last = index + entries.length;
    // Only as far as this very message vouches for what is here.
    this.commitTo(Math.min(commit, last));
    return last;
  }

  commitTo(index: number): void {
    if (index <= this.commit) return;
    // A leader knows more to be here than there is: this replica lost entries that it had acknowledged.
    assert(index <= this.lastIndex, `Cannot commit ${index}: the log ends at ${this.lastIndex}`);
    this.commit = index;
  }

  // --- storage -------------------------------------------------------------------------------------------------------

  get hasUnstable(): boolean {
    return this.#entries.length > 0;
  }

  get hasUnstableToHandOut(): boolean {
    return this.#inProgress <= this.lastIndex;
  }

  get hasSnapshotToHandOut(): boolean {
    return this.#snapshot !== null && !this.#snapshotInProgress;
  }

  get hasSnapshot(): boolean {
    return this.#snapshot !== null;
  }

  /** The snapshot that storage has yet to be asked to install; asking is what this call is. */
  takeSnapshot(): SnapshotMeta | null {
    if (this.#snapshotInProgress) return null;
    this.#snapshotInProgress = this.#snapshot !== null;
    return this.#snapshot;
  }

  /** The entries that storage has yet to be asked to write; asking is what this call is. */
  takeUnstable(): readonly Entry[] {
    if (!this.hasUnstableToHandOut) return NO_ENTRIES;
    const entries = this.#entries.slice(this.#inProgress - this.#offset);
    this.#inProgress = this.lastIndex + 1;
    return entries;
  }

  /** Storage holds everything up to this entry, provided that it still is this entry. */
  stableTo(index: number, term: number): void {
    if (index < this.#offset) return;
    const entry = this.#entries[index - this.#offset];
    if (entry === undefined || entry.term !== term) return;
    this.#entries = index === this.lastIndex ? [] : this.#entries.slice(index + 1 - this.#offset);
    this.#offset = index + 1;
    this.#inProgress = Math.max(this.#inProgress, this.#offset);
  }

  snapshotStable(index: number): void {
    if (this.#snapshot === null || this.#snapshot.index !== index) return;
    this.#snapshot = null;
    this.#snapshotInProgress = false;
  }

  /** Replaces the log by a snapshot that storage is still to install. */
  restore(snapshot: SnapshotMeta): void {
    assert(snapshot.index > this.commit, "a snapshot takes nothing committed back");
    this.#snapshot = snapshot;
    this.#snapshotInProgress = false;
    this.#entries = [];
    this.#offset = snapshot.index + 1;
    this.#inProgress = this.#offset;
    this.commit = snapshot.index;
  }

  // --- applying ------------------------------------------------------------------------------------------------------

  /** Up to where entries may be applied: committed and, unless the embedder writes first, durable here. */
  get #appliable(): number {
    return this.#applyUnstable ? this.commit : Math.min(this.commit, this.#offset - 1);
  }

  get hasCommitted(): boolean {
    return !this.#applyingPaused && this.#snapshot === null && this.applying < this.#appliable;
  }

  /** Entries to apply now, within the quota of what may be outstanding. */
  takeCommitted(): readonly Entry[] {
    if (!this.hasCommitted) return NO_ENTRIES;
    const high = this.#appliable + 1;
    const quota = this.#applyingBytesMax - this.#applyingBytes;
    assert(quota > 0, "entries are handed out beyond the quota");
    const entries = this.slice(this.applying + 1, high, quota);
    assert(entries !== null && entries.length > 0, "committed entries were compacted unapplied");
    for (const entry of entries) this.#applyingBytes += entry.data.length;
    this.applying += entries.length;
    this.#applyingPaused =
      this.#applyingBytes >= this.#applyingBytesMax || this.applying < high - 1;
    return entries;
  }

  appliedTo(index: number, bytes: number): void {
    assert(index <= this.commit, `Cannot have applied ${index}: committed is ${this.commit}`);
    this.applied = Math.max(this.applied, index);
    this.applying = Math.max(this.applying, this.applied);
    this.#applyingBytes = Math.max(0, this.#applyingBytes - bytes);
    this.#applyingPaused = this.#applyingBytes >= this.#applyingBytesMax;
  }
}
