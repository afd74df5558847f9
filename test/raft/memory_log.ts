/** A log in memory for tests: what a disk holds. A crash keeps it and loses everything else. */
import type {
  ConfState,
  Entry,
  HardState,
  LogReader,
  SnapshotMeta,
  StorageAppend,
} from "../../src/raft/types.ts";
import { assert } from "../../src/lib/assert.ts";

export class MemoryLog implements LogReader {
  hard: HardState = { term: 0, vote: 0, commit: 0 };
  conf: ConfState;
  /** Index and term of what stands before the first entry. */
  base = 0;
  baseTerm = 0;
  kept: Entry[] = [];
  /** What `snapshot` gives; set by whoever applies. */
  latest: SnapshotMeta | null = null;

  constructor(conf: ConfState) {
    this.conf = conf;
  }

  initialState(): { hardState: HardState; confState: ConfState } {
    return { hardState: this.hard, confState: this.conf };
  }

  firstIndex(): number {
    return this.base + 1;
  }

  lastIndex(): number {
    return this.base + this.kept.length;
  }

  term(index: number): number {
    if (index === this.base) return this.baseTerm;
    return this.kept[index - this.base - 1]?.term ?? -1;
  }

  entries(low: number, high: number, bytesMax: number): readonly Entry[] | null {
    if (low <= this.base) return null;
    assert(high <= this.lastIndex() + 1, "entries beyond the end were asked for");
    const result: Entry[] = [];
    let bytes = 0;
    for (let index = low; index < high; index++) {
      const entry = this.kept[index - this.base - 1] as Entry;
      bytes += entry.data.length;
      if (bytes > bytesMax && result.length > 0) break;
      result.push(entry);
    }
    return result;
  }

  snapshot(): SnapshotMeta | null {
    return this.latest;
  }

  write(append: StorageAppend): void {
    if (append.hardState !== null) this.hard = append.hardState;
    if (append.snapshot !== null) this.install(append.snapshot);
    this.append(append.entries);
  }

  append(entries: readonly Entry[]): void {
    for (const entry of entries) {
      // The log may have been compacted since; committed entries below need not come back.
      if (entry.index <= this.base) continue;
      assert(entry.index <= this.lastIndex() + 1, "an append leaves a hole in the log");
      this.kept.length = entry.index - this.base - 1;
      this.kept.push(entry);
    }
  }

  install(snapshot: SnapshotMeta): void {
    this.base = snapshot.index;
    this.baseTerm = snapshot.term;
    this.kept = [];
    this.conf = snapshot.confState;
    this.latest = snapshot;
  }

  /** Drops everything up to and including `index`. */
  compact(index: number): void {
    if (index <= this.base) return;
    const term = this.term(index);
    assert(term >= 0, "only what is there can be compacted");
    this.kept = this.kept.slice(index - this.base);
    this.base = index;
    this.baseTerm = term;
  }
}
