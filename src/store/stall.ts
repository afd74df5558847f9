/**
 * A disk that takes a write and never says that it is done. Nothing fails then, and nothing goes on: the node vouches for
 * itself to its peers, so its groups keep a leader that acknowledges nothing. Ending the process is what helps: others
 * take over within seconds, and what was not acknowledged is not owed. (etcd keeps such a leader; CockroachDB ends the
 * process, as here, and after as long: `storage.max_sync_duration`.)
 *
 * What must stay true: time in which this process did not run at all (stopped, or its machine suspended) counts for
 * little, since the disk may have answered meanwhile.
 */

/** Between two looks. */
export const stallLookMs = 500;
/** After this part of the limit it is said for the first time. */
const slowPart = 1 / 4;

export interface DiskStallOptions {
  /** Milliseconds after which a write that is under way ends the process; 0 = never. */
  readonly limitMs: number;
  /** Once per time of slowness, and once, with 0, when it is over. */
  readonly onSlow: (oldestMs: number) => void;
  /** Once. */
  readonly onStall: (error: Error) => void;
}

interface Write {
  seenMs: number;
}

export class DiskStall {
  readonly #options: DiskStallOptions;
  readonly #writes = new Set<Write>();
  #lookedAt: number | null = null;
  #slow = false;
  #stalled = false;

  constructor(options: DiskStallOptions) {
    this.#options = options;
  }

  /** @returns what is to be called when the write has ended, well or not */
  begin(): () => void {
    const write: Write = { seenMs: 0 };
    this.#writes.add(write);
    return () => void this.#writes.delete(write);
  }

  /** How long the oldest write has been under way, as far as this process looked on. */
  get oldestMs(): number {
    // A set remembers the order of its members.
    for (const { seenMs } of this.#writes) return seenMs;
    return 0;
  }

  /** Every `stallLookMs`. @param nowMs of a monotonic clock */
  look(nowMs: number): void {
    const passed = Math.min(nowMs - (this.#lookedAt ?? nowMs), 2 * stallLookMs);
    this.#lookedAt = nowMs;
    for (const write of this.#writes) write.seenMs += passed;
    const { limitMs, onSlow, onStall } = this.#options;
    if (limitMs === 0 || this.#stalled) return;
    const { oldestMs } = this;
    const slow = oldestMs >= limitMs * slowPart;
    if (slow !== this.#slow) onSlow(slow ? oldestMs : 0);
    this.#slow = slow;
    if (oldestMs < limitMs) return;
    this.#stalled = true;
    onStall(
      new Error(
        `The disk has not ended a write within ${limitMs / 1000} s (CONFLUX_DISK_STALL): this node gives way to the others; look after the disk and start it again`,
      ),
    );
  }
}
