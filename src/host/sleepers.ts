/**
 * Leaders that sleep. Sleeping is only paging out: a replica's term, vote, log and state are in its environment, and with
 * the few numbers kept here it wakes as the leader that it was, without an election. That is sound because nothing can
 * have happened to it meanwhile: whatever is addressed to a replica wakes it, or is lost on the way. What is not lost but
 * answered for it, that it leads no more, has to end it here (`forget`).
 *
 * Nothing of this is on the disk: after a start of the node nobody leads by it.
 */
import type { Leadership, ReplicaId } from "../raft/types.ts";

/** Each costs about 150 bytes; beyond it those that slept longest campaign when they wake. */
export const SLEEPING_LEADERS_MAX = 100_000;

interface Sleeper extends Leadership {
  readonly replica: ReplicaId;
}

export class Sleepers {
  readonly #max: number;
  /** By group; who fell asleep first comes first. */
  readonly #leaders = new Map<number, Sleeper>();

  constructor(max = SLEEPING_LEADERS_MAX) {
    this.#max = max;
  }

  /** @param leadership null: it does not lead */
  asleep(group: number, replica: ReplicaId, leadership: Leadership | null): void {
    if (leadership === null) return;
    if (this.#leaders.size >= this.#max)
      for (const oldest of this.#leaders.keys()) {
        this.#leaders.delete(oldest);
        break;
      }
    this.#leaders.set(group, { replica, ...leadership });
  }

  /** What it led, once. */
  awake(group: number, replica: ReplicaId): Leadership | null {
    const sleeper = this.#leaders.get(group);
    this.#leaders.delete(group);
    return sleeper?.replica === replica ? sleeper : null;
  }

  /** Somebody was told that the replica here leads no more, or it is gone. */
  forget(group: number): void {
    this.#leaders.delete(group);
  }
}
