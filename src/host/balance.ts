/**
 * Leaders spread over the nodes: a node that leads clearly more groups than the others gives some away, a few at a time,
 * to those who lead fewest, and only while nothing else goes on. Nobody plans: each node knows the others' numbers from
 * their heartbeats and parts with its own surplus alone, so that two cannot take from one another in turns.
 */
import type { Member } from "../machine/rows.ts";
import { SYSTEM_GROUP } from "./directory.ts";
import type { ReplicaId } from "../raft/types.ts";
import type { Replica } from "./replica.ts";

/** Above this many times the mean a node gives leaderships away, down to as little above it as one transfer can. */
const SURPLUS = 1.1;
/** Under way at once; the next ones wait until all of these ended. */
const TRANSFERS_MAX = 4;
/** A leadership that came less than so many times the calm ago goes last: an operator may have put it there. */
const SETTLED_CALMS = 60;
/** After transfers the next round: numbers from heartbeats have to show by then what they changed. */
const ROUND_MS = 500;

export interface BalanceHooks {
  /** Nodes may lead now; of this one too. Null: it takes none (full disk, drained, about to stop), or does not say. */
  leadersOn(node: string): number | null;
  /** All nodes that are to be counted, this one among them. */
  nodes(): readonly string[];
  replicas(): Iterable<Replica>;
  /** The directory wants other members for its group: that comes first. */
  isMoving(replica: Replica): boolean;
  transfer(replica: Replica, to: Member): void;
}

/** A group whose leadership could be another's. Those with one voter are nobody's surplus. */
export function isMovable(replica: Replica): boolean {
  const { raft, conf, group } = replica;
  return (
    replica.halted === null && group !== SYSTEM_GROUP && raft.isLeader && conf.voters.length > 1
  );
}

interface Transfer {
  readonly replica: Replica;
  readonly to: ReplicaId;
  readonly term: number;
}

export class Balance {
  readonly #node: string;
  readonly #hooks: BalanceHooks;
  readonly #calmMs: number;
  #changedAt: number;
  #roundAt = -Infinity;
  #underWay: Transfer[] = [];
  /**
   * Who did not take over, in which term of the leader: it may be stopped, which shows by nothing else while nobody
   * writes, and every attempt holds the group up for a while and costs it its lease.
   */
  readonly #failed = new WeakMap<Replica, { readonly term: number; readonly heirs: ReplicaId[] }>();
  /** Since when replicas here lead. */
  readonly #ledSince = new WeakMap<Replica, number>();
  /** Leaderships that this node gave away to balance, since it started. */
  given = 0;

  /** @param calmMs nothing is given away before nodes neither came nor went for so long */
  constructor(node: string, calmMs: number, now: number, hooks: BalanceHooks) {
    this.#node = node;
    this.#calmMs = calmMs;
    this.#changedAt = now;
    this.#hooks = hooks;
  }

  /** A node came or went: what follows from that comes first. */
  disturbed(now: number): void {
    this.#changedAt = now;
  }

  /** The replica has come to lead. */
  leads(replica: Replica, now: number): void {
    this.#ledSince.set(replica, now);
  }

  /** Call a few times a second. `now` is host time, ms. */
  round(now: number): void {
    if (now - this.#roundAt < ROUND_MS || now - this.#changedAt < this.#calmMs) return;
    this.#roundAt = now;
    if (this.#underWay.some(({ replica: { halted, raft } }) => !halted && raft.isTransferring))
      return;
    if (this.#underWay.length > 0) {
      for (const transfer of this.#underWay) this.#ended(transfer);
      this.#underWay = [];
      return;
    }
    const leaders = new Map<string, number>();
    for (const node of this.#hooks.nodes()) {
      const count = this.#hooks.leadersOn(node);
      if (count !== null) leaders.set(node, count);
    }
    const own = leaders.get(this.#node);
    if (own === undefined || leaders.size < 2) return;
    let total = 0;
    for (const count of leaders.values()) total += count;
    const mean = total / leaders.size;
    if (own > mean * SURPLUS) this.#give(leaders, own, mean, now);
  }

  #ended({ replica, to, term }: Transfer): void {
    const { raft } = replica;
    if (!raft.isLeader) this.given += 1;
    else if (raft.term === term)
      this.#failed.set(replica, { term, heirs: [...this.#failedOf(replica), to] });
  }

  #failedOf(replica: Replica): readonly ReplicaId[] {
    const failed = this.#failed.get(replica);
    return failed?.term === replica.raft.term ? failed.heirs : [];
  }

  #give(leaders: Map<string, number>, own: number, mean: number, now: number): void {
    let left = own;
    const give = (wantsSettled: boolean, wantsIdle: boolean): void => {
      for (const replica of this.#hooks.replicas()) {
        if (this.#underWay.length >= TRANSFERS_MAX || left <= mean * SURPLUS) return;
        if (!isMovable(replica) || replica.raft.isTransferring) continue;
        // Those that nobody waits for first, and those that came a moment ago last.
        const isSettled =
          now - (this.#ledSince.get(replica) ?? now) >= SETTLED_CALMS * this.#calmMs;
        if (isSettled !== wantsSettled || replica.idle !== wantsIdle) continue;
        const heir = this.#heirOf(replica, leaders);
        const led = heir === null ? Infinity : (leaders.get(heir.node) ?? Infinity);
        // With less between them it would only change places.
        if (heir === null || left - led < 2 || this.#hooks.isMoving(replica)) continue;
        leaders.set(heir.node, led + 1);
        left -= 1;
        this.#underWay.push({ replica, to: heir.id, term: replica.raft.term });
        this.#hooks.transfer(replica, heir);
      }
    };
    for (const wantsSettled of [true, false])
      for (const wantsIdle of [true, false]) give(wantsSettled, wantsIdle);
  }

  /** Of the voters that have everything, the one whose node leads fewest. */
  #heirOf(replica: Replica, leaders: ReadonlyMap<string, number>): Member | null {
    const { raft } = replica;
    if (raft.hasPendingConfChange || raft.isTransferring) return null;
    const failed = this.#failedOf(replica);
    let best: Member | null = null;
    for (const { id, match, state, isLearner } of raft.status().progress) {
      const node = replica.members.get(id);
      if (node === undefined || id === replica.id || isLearner || failed.includes(id)) continue;
      const led = leaders.get(node);
      if (led === undefined || state !== "replicate" || match < raft.lastIndex) continue;
      if (best === null || led < (leaders.get(best.node) ?? Infinity)) best = { id, node };
    }
    return best;
  }
}
