/**
 * How a node with an empty disk comes into the group of `_system`: as one of its first members, or as a new replica.
 *
 * Its name says little: the disk that voted under it may be another one (invariant 9). So one of the initial nodes that
 * has nothing asks the others first. It is itself only if a majority of them (this one among them) has nothing either; if
 * anybody has a directory, it joins under a new id, like a node that is not among the initial ones. Those may all have left
 * and been replaced: whoever else speaks up is asked too (simulation, seed 73000054). Until then it neither
 * votes nor answers.
 */
import type { Member } from "../machine/rows.ts";

/**
 * A node that starts first gives the others this long to be heard of, so that all begin as initial members. Who comes
 * later is a new replica in the place of one that never was, and until it has its vote the group bears one loss less.
 * On a busy machine three nodes on different runtimes, started at once, were up to 3.3 s apart.
 */
const GRACE_MS = 10_000;
const ASK_EVERY_MS = 250;

/** What a node has to say to another one that begins with an empty disk. */
export type Acquaintance =
  /** It has nothing itself. */
  | "nothing"
  /** There is a directory: whoever has none can only be new to it. */
  | "directory";

export interface SystemIdentity {
  readonly id: number;
  /** Members of the group before its first log entry. */
  readonly initial: readonly Member[];
  /** Grows with each unsafe recovery; absent: 1. */
  readonly incarnation?: number;
}

export interface EntryHooks {
  alive(node: string): boolean;
  /** Nodes that were heard of, the initial ones among them or not. */
  known(): Iterable<string>;
  ask(node: string, done: (answer: Acquaintance | null) => void): void;
  join(node: string, done: (identity: SystemIdentity | null) => void): void;
  /** It is decided. */
  enter(identity: SystemIdentity): void;
}

/** Ids of the group's first members are given by their names' order. */
export function initialMembers(peers: readonly string[]): readonly Member[] {
  return [...peers].sort().map((node, position) => ({ node, id: position + 1 }));
}

export class Entry {
  readonly #node: string;
  readonly #peers: readonly string[];
  readonly #hooks: EntryHooks;
  readonly #startedAt: number;
  readonly #answers = new Map<string, Acquaintance>();
  /** When the others were asked last, each by itself: one that is heard of later does not wait for its turn. */
  readonly #askedAt = new Map<string, number>();
  #joins: boolean;
  #joining = false;
  #joinedAt = -Infinity;
  #turn = 0;
  #done = false;

  constructor(node: string, peers: readonly string[], now: number, hooks: EntryHooks) {
    this.#node = node;
    this.#peers = peers.filter((peer) => peer !== node);
    this.#joins = !peers.includes(node);
    this.#startedAt = now;
    this.#hooks = hooks;
  }

  /** Call a few times a second until `enter` was called. */
  round(now: number): void {
    if (this.#done) return;
    if (!this.#joins) this.#decide(now);
    if (this.#done) return;
    if (this.#joins) return this.#join(now);
    for (const peer of this.#alive()) this.#ask(peer, now);
  }

  /**
   * Call when `node` asks what this one has; it may not have been heard of yet. With the answer it may begin, and if it had
   * a directory by the time it is asked in turn, this node could only join, and one of the first votes would be lost. So it
   * is asked back at once (simulation, seed 270).
   */
  askedBy(node: string, now: number): void {
    if (this.#done || this.#joins || !this.#peers.includes(node)) return;
    if (!this.#answers.has(node)) this.#ask(node, now);
  }

  #ask(peer: string, now: number): void {
    if (now - (this.#askedAt.get(peer) ?? -Infinity) < ASK_EVERY_MS) return;
    this.#askedAt.set(peer, now);
    this.#hooks.ask(peer, (answer) => {
      if (answer !== null) this.#answers.set(peer, answer);
    });
  }

  #alive(): string[] {
    const nodes = new Set([...this.#peers, ...this.#hooks.known()]);
    return [...nodes].filter((node) => this.#hooks.alive(node));
  }

  #decide(now: number): void {
    if ([...this.#answers.values()].includes("directory")) {
      this.#joins = true;
      return;
    }
    // Others than the initial ones have no say in whether all begins here.
    const answers = this.#peers.filter((peer) => this.#answers.has(peer));
    const hasMajority = (answers.length + 1) * 2 > this.#peers.length + 1;
    const isPatient = answers.length < this.#peers.length && now - this.#startedAt < GRACE_MS;
    if (!hasMajority || isPatient) return;
    const initial = initialMembers([...this.#peers, this.#node]);
    const own = initial.find(({ node }) => node === this.#node);
    if (own !== undefined) this.#enter({ id: own.id, initial });
  }

  #join(now: number): void {
    if (now - this.#joinedAt < ASK_EVERY_MS) return;
    this.#joinedAt = now;
    const alive = this.#alive();
    const peer = alive[this.#turn++ % alive.length];
    if (peer === undefined || this.#joining) return;
    this.#joining = true;
    this.#hooks.join(peer, (identity) => {
      this.#joining = false;
      if (identity !== null && !this.#done) this.#enter(identity);
    });
  }

  #enter(identity: SystemIdentity): void {
    this.#done = true;
    this.#hooks.enter(identity);
  }
}
