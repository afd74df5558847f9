/**
 * Which time counts where a time has to be said: in commands, for rules whose time comes, for what expires.
 *
 * Each node has a wall clock, and any of them may be wrong: not set yet, set by hand, stepped by hours. A tenant's time
 * never goes back, so what is committed by a clock that runs ahead stays, and takes the ends of keys and records with it.
 * Heartbeats carry their sender's wall clock, for leases; here these are compared. Who finds its own more than
 * CLOCK_TRUST_MS beyond the middle of all, its own among them, goes by the middle instead.
 *
 * What must stay true: nothing that consensus or a lease rests on looks at this; a minority of wrong clocks moves nobody
 * else; two nodes that disagree both go by their own, since nobody can say who is right.
 */
import type { Clock } from "./ports.ts";

/** Clocks that are kept by NTP are within a tenth of a second; heartbeats may be late by much more. */
export const CLOCK_TRUST_MS = 10_000;

export class WallTime {
  readonly #clock: Pick<Clock, "monotonicMs" | "wallMs">;
  readonly #told: (aheadMs: number, follows: boolean) => void;
  /**
   * What each node's wall clock showed, less this node's monotonic clock then: it holds also when the wall clock here is
   * set, and for a node that is silent now.
   */
  readonly #bases = new Map<string, number>();
  /** Of the same, this node's own among them, the two in the middle: one where their number is odd. Null: it is alone. */
  #middle: { readonly low: number; readonly high: number } | null = null;
  #follows = false;

  /** @param told when this node begins or ends to go by the others' clocks */
  constructor(
    clock: Pick<Clock, "monotonicMs" | "wallMs">,
    told: (aheadMs: number, follows: boolean) => void,
  ) {
    this.#clock = clock;
    this.#told = told;
  }

  /** @param wallMs of `node` when it sent what was heard just now */
  heard(node: string, wallMs: number): void {
    this.#bases.set(node, wallMs - this.#clock.monotonicMs());
    this.#compare();
  }

  /** It is no member any more. */
  forget(node: string): void {
    if (this.#bases.delete(node)) this.#compare();
  }

  /** Milliseconds since 1970. May go back: what must not is bounded below by who keeps it. */
  nowMs(): number {
    const own = this.#clock.wallMs();
    return own - this.#beyond(own);
  }

  /** How far the clock here is ahead of the others' middle, ms; behind: below 0; within what they say: 0. */
  get aheadMs(): number {
    const own = this.#clock.wallMs() - this.#clock.monotonicMs();
    const { low, high } = this.#middle ?? { low: own, high: own };
    return Math.round(own > high ? own - high : Math.min(0, own - low));
  }

  /** The same where it is more than can be trusted, else 0. */
  #beyond(own: number): number {
    if (this.#middle === null) return 0;
    const monotonic = this.#clock.monotonicMs();
    const [low, high] = [this.#middle.low + monotonic, this.#middle.high + monotonic];
    if (own > high + CLOCK_TRUST_MS) return Math.ceil(own - high);
    return own < low - CLOCK_TRUST_MS ? Math.floor(own - low) : 0;
  }

  #compare(): void {
    const own = this.#clock.wallMs() - this.#clock.monotonicMs();
    const all = [own, ...this.#bases.values()].sort((a, b) => a - b);
    const [low, high] = [all[(all.length - 1) >> 1] as number, all[all.length >> 1] as number];
    this.#middle = this.#bases.size === 0 ? null : { low, high };
    const follows = this.#beyond(this.#clock.wallMs()) !== 0;
    if (follows === this.#follows) return;
    this.#follows = follows;
    this.#told(this.aheadMs, follows);
  }
}
