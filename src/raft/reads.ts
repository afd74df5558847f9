/**
 * Linearizable reads without writing to the log (thesis §6.4). A leader notes its commit index, then asks a majority
 * whether it still leads; only confirmations of heartbeats sent after the read arrived count.
 *
 * Heartbeats carry the number of a round, which only grows within a term. A confirmation names a round and so confirms
 * that round and all before it; names given by clients never take part, because clients use them again.
 */
import type { ReplicaId } from "./types.ts";

export interface PendingRead {
  readonly round: number;
  readonly index: number;
  readonly from: ReplicaId;
  readonly context: number;
}

interface LeaseRound {
  readonly round: number;
  readonly tick: number;
}

export class ReadRounds {
  #round = 0;
  /** The heartbeats of the current round have not left yet: reads may still join it. */
  #open = false;
  #pending: PendingRead[] = [];
  /** When the newest rounds began, oldest first. */
  #began: LeaseRound[] = [];

  get round(): number {
    return this.#round;
  }

  get pending(): boolean {
    return this.#pending.length > 0;
  }

  /** The round that heartbeats should ask for; 0 when nobody waits. */
  get asking(): number {
    return this.#pending.length === 0 ? 0 : this.#round;
  }

  reset(): void {
    this.#round = 0;
    this.#open = false;
    if (this.#pending.length > 0) this.#pending = [];
    if (this.#began.length > 0) this.#began = [];
  }

  /** Goes on after this round: who confirms it, or an earlier one, does not confirm what is asked from now on. */
  resume(round: number): void {
    this.#round = round;
  }

  /** @returns true when a round began for it, whose heartbeats are to be sent */
  add(index: number, from: ReplicaId, context: number): boolean {
    const begins = !this.#open;
    if (begins) {
      this.#round += 1;
      this.#open = true;
    }
    this.#pending.push({ round: this.#round, index, from, context });
    return begins;
  }

  /** What was to be sent is leaving: a read that comes now needs another round. */
  close(): void {
    this.#open = false;
  }

  /** @returns the reads that are answered once a majority confirmed `round` */
  confirmed(round: number): readonly PendingRead[] {
    let count = 0;
    while (count < this.#pending.length && (this.#pending[count] as PendingRead).round <= round) {
      count += 1;
    }
    return count === 0 ? [] : this.#pending.splice(0, count);
  }

  /** For leases: every heartbeat is a round of its own, and it is known when it began. */
  beginLeaseRound(tick: number, kept: number): number {
    this.#round += 1;
    this.#began.push({ round: this.#round, tick });
    if (this.#began.length > kept) this.#began.shift();
    return this.#round;
  }

  /** The tick at which the newest round up to `round` began, or -1. */
  beganAt(round: number): number {
    for (let i = this.#began.length - 1; i >= 0; i--) {
      const began = this.#began[i] as LeaseRound;
      if (began.round <= round) return began.tick;
    }
    return -1;
  }
}
