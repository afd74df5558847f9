/**
 * What a leader knows of one replica, and how fast it may send to it.
 *
 *   probe      the last common entry is not known: one message with entries at a time, waiting for its answer
 *   replicate  it is known: messages are sent ahead, as many as the window of `Inflights` allows
 *   snapshot   the follower needs what the log no longer holds: nothing is sent until the state has arrived
 */
import { Vote } from "./quorum.ts";
import type { ReplicaId } from "./types.ts";

export type ProgressState = "probe" | "replicate" | "snapshot";

/** Shared by all windows that nothing went through yet; never written to. */
const NO_RING: number[] = [];

/** Messages sent and not yet acknowledged: a window limited by count and by bytes. */
export class Inflights {
  readonly #countMax: number;
  readonly #bytesMax: number;
  /** A ring; it grows as far as it is needed, most groups being quiet. */
  #indexes: number[] = NO_RING;
  #sizes: number[] = NO_RING;
  #start = 0;
  #count = 0;
  #bytes = 0;

  constructor(countMax: number, bytesMax: number) {
    this.#countMax = countMax;
    this.#bytesMax = bytesMax;
  }

  get count(): number {
    return this.#count;
  }

  get full(): boolean {
    return this.#count >= this.#countMax || this.#bytes >= this.#bytesMax;
  }

  /** `index` is the last one in the message. The caller looked at `full` before. */
  add(index: number, bytes: number): void {
    if (this.#count === this.#indexes.length) this.#grow();
    const at = (this.#start + this.#count) % this.#indexes.length;
    this.#indexes[at] = index;
    this.#sizes[at] = bytes;
    this.#count += 1;
    this.#bytes += bytes;
  }

  /** The message last added got longer before it was sent. */
  extend(index: number, bytes: number): void {
    const at = (this.#start + this.#count - 1) % this.#indexes.length;
    this.#indexes[at] = index;
    this.#sizes[at] = (this.#sizes[at] as number) + bytes;
    this.#bytes += bytes;
  }

  /** Everything up to `index` arrived. */
  freeTo(index: number): void {
    while (this.#count > 0 && (this.#indexes[this.#start] as number) <= index) {
      this.#bytes -= this.#sizes[this.#start] as number;
      this.#start = (this.#start + 1) % this.#indexes.length;
      this.#count -= 1;
    }
  }

  reset(): void {
    this.#start = 0;
    this.#count = 0;
    this.#bytes = 0;
  }

  #grow(): void {
    const indexes: number[] = [];
    const sizes: number[] = [];
    const length = this.#indexes.length;
    for (let i = 0; i < this.#count; i++) {
      indexes.push(this.#indexes[(this.#start + i) % length] as number);
      sizes.push(this.#sizes[(this.#start + i) % length] as number);
    }
    for (let i = length; i < Math.max(4, length * 2); i++) {
      indexes.push(0);
      sizes.push(0);
    }
    this.#indexes = indexes;
    this.#sizes = sizes;
    this.#start = 0;
  }
}

export class Progress {
  readonly id: ReplicaId;
  isLearner: boolean;
  state: ProgressState = "probe";
  /** Highest index known to be durable there. */
  match = 0;
  /** What to send next; always above `match`. */
  next: number;
  /** Highest commit index sent, and the highest one it said to have. */
  sentCommit = 0;
  knownCommit = 0;
  /** Index of the snapshot under way; 0 outside of `snapshot`. */
  pendingSnapshot = 0;
  /** Heard from since the last quorum check. */
  recentActive = false;
  /** An answer has to come before more is sent. */
  paused = false;
  readonly inflights: Inflights;
  /** Its answer in the election of this term. */
  vote: Vote = Vote.none;
  /** Highest read round that it confirmed in this term. */
  readConfirmed = 0;
  /** The newest epoch in which it said to be bound to this leader; 0: in none. */
  boundEpoch = 0;
  /** In which turn of the leader a sign of life last made it send anew. */
  resentTurn = -1;

  constructor(id: ReplicaId, isLearner: boolean, next: number, inflights: Inflights) {
    this.id = id;
    this.isLearner = isLearner;
    this.next = next;
    this.inflights = inflights;
  }

  /** A new term knows nothing of what the last one knew. */
  reset(next: number, match: number): void {
    this.#enter("probe");
    this.match = match;
    this.next = next;
    this.sentCommit = 0;
    this.knownCommit = 0;
    this.recentActive = false;
    this.vote = Vote.none;
    this.readConfirmed = 0;
    this.boundEpoch = 0;
  }

  /** It has everything up to `last`, and knows that all of it is committed. */
  resume(last: number, boundEpoch: number): void {
    this.reset(last + 1, last);
    this.#enter("replicate");
    this.sentCommit = last;
    this.knownCommit = last;
    // It had no chance to be heard yet.
    this.recentActive = true;
    this.boundEpoch = boundEpoch;
  }

  get isPaused(): boolean {
    return this.state === "snapshot" || this.paused;
  }

  becomeProbe(): void {
    // After a snapshot the next entry is the one behind it, even if its acknowledgement is still on the way.
    const next = Math.max(this.match, this.state === "snapshot" ? this.pendingSnapshot : 0) + 1;
    this.#enter("probe");
    this.next = next;
    this.sentCommit = Math.min(this.sentCommit, next - 1);
  }

  becomeReplicate(): void {
    this.#enter("replicate");
    this.next = this.match + 1;
  }

  becomeSnapshot(index: number): void {
    this.#enter("snapshot");
    this.pendingSnapshot = index;
    this.next = index + 1;
    this.sentCommit = index;
  }

  sentEntries(count: number, bytes: number): void {
    if (this.state === "replicate") {
      if (count > 0) {
        this.next += count;
        this.inflights.add(this.next - 1, bytes);
      }
      this.paused = this.inflights.full;
    } else if (count > 0) {
      this.paused = true;
    }
  }

  /** Whether a message with this commit index would tell it something: it can commit no further than what was sent. */
  canBumpCommit(commit: number): boolean {
    return commit > this.sentCommit && this.sentCommit < this.next - 1;
  }

  /** @returns false when the acknowledgement is old news */
  maybeUpdate(index: number): boolean {
    if (index <= this.match) return false;
    this.match = index;
    this.next = Math.max(this.next, index + 1);
    this.paused = false;
    return true;
  }

  /**
   * A message whose previous entry was `rejected` did not fit; the logs agree at `hint` at the latest.
   * @returns false when the rejection is an old one
   */
  maybeDecrease(rejected: number, hint: number): boolean {
    if (this.state === "replicate") {
      if (rejected <= this.match) return false;
      this.next = this.match + 1;
    } else {
      // Only the answer to the one probe under way counts.
      if (this.next - 1 !== rejected) return false;
      this.next = Math.max(Math.min(rejected, hint + 1), this.match + 1);
      this.paused = false;
    }
    this.sentCommit = Math.min(this.sentCommit, this.next - 1);
    return true;
  }

  #enter(state: ProgressState): void {
    this.state = state;
    this.paused = false;
    this.pendingSnapshot = 0;
    this.inflights.reset();
  }
}
