/**
 * When the replicas of this node ask for votes: at once where somebody waits, one after the other where a node died, at
 * most so many at a time, and again where that brought no leader. Safe without all of it (raft): it decides how soon a
 * group is led again, not by whom it may be.
 */
import type { Prng } from "../lib/prng.ts";
import { MessageType, NONE, type Message, type ReplicaId } from "../raft/types.ts";
import { SYSTEM_GROUP } from "./directory.ts";
import type { Leases } from "./leases.ts";
import type { Liveness } from "./liveness.ts";
import type { Clock } from "./ports.ts";
import { PULSE_MS } from "./pulse.ts";
import type { Replica } from "./replica.ts";

/** Of what wakes or leads many groups at a time, at most this many are looked at per pulse. */
export const CAMPAIGNS_PER_PULSE = 64;
/** A campaign that nobody answered is tried again after this long, plus as much again by chance. */
const CAMPAIGN_RETRY_MS = 1_000;
/** One that was refused, after this long, and twice as long each time up to that, plus as much again by chance. */
const CAMPAIGN_LOST_MS = PULSE_MS;
const CAMPAIGN_TRIES = 10;
/** Nodes do not notice a loss in the same moment, and whoever has not noticed yet refuses its vote. */
const LAPSE_SPREAD_MS = 2 * PULSE_MS;
/**
 * After a loss each further one in line campaigns so much later, also where somebody waits there: of two that ask at once
 * neither may get a majority.
 */
const LAPSE_TURN_MS = 6 * PULSE_MS;
/** Groups of which a request for votes is kept until the directory here knows them. */
const EARLY_MAX = 256;
const NONE_EARLY: readonly EarlyRequest[] = [];

interface Campaign {
  readonly due: number;
  readonly tries: number;
  /** In which term it was when it asked for votes last; absent: it has not yet. */
  readonly askedIn?: number;
  /** Another one goes first: this one begins early only where it has more than that one. */
  readonly isStandby?: true;
}

/** A request for votes of a group that is not known here yet. */
export interface EarlyRequest {
  /** The node that sent it. */
  readonly from: string;
  readonly group: number;
  readonly incarnation: number;
  readonly message: Message;
}

export interface ElectionsParts {
  readonly clock: Clock;
  readonly prng: Prng;
  readonly liveness: Liveness;
  readonly leases: Leases;
}

export interface ElectionsHooks {
  /** The replica of this group that is in memory. */
  present(group: number): Replica | null;
  /** Runs something of a replica, whose outcome is then sent out. */
  act(replica: Replica, run: () => void): void;
}

export class Elections {
  readonly #clock: Clock;
  readonly #prng: Prng;
  readonly #liveness: Liveness;
  readonly #leases: Leases;
  readonly #hooks: ElectionsHooks;
  readonly #campaigns = new Map<Replica, Campaign>();
  /** The last one of each group, the oldest group first. */
  readonly #early = new Map<number, EarlyRequest>();
  #campaignsDeferred = false;
  /** Elections begun since the last pulse. */
  #started = 0;

  constructor({ clock, prng, liveness, leases }: ElectionsParts, hooks: ElectionsHooks) {
    this.#clock = clock;
    this.#prng = prng;
    this.#liveness = liveness;
    this.#leases = leases;
    this.#hooks = hooks;
  }

  /** One of the live replicas goes first, another one for each group; the others follow by their own timers. */
  isFirst(replica: Replica): boolean {
    return this.#rankAmongLive(replica, NONE) === 0;
  }

  /** Its place in the order of the live voters without `except`, which is another one for each group. */
  #rankAmongLive(replica: Replica, except: ReplicaId): number {
    const alive = [...replica.voters()]
      .filter(([id, node]) => id !== except && this.#liveness.supports(node))
      .map(([id]) => id)
      .sort((left, right) => left - right);
    const place = alive.indexOf(replica.id);
    const first = replica.group % alive.length;
    // One without a vote comes after all that have one.
    return place < 0 ? alive.length : (place - first + alive.length) % alive.length;
  }

  /** The node died that led the group of this voter. */
  leaderLost(replica: Replica, now: number): void {
    const rank = this.#rankAmongLive(replica, NONE);
    const due = now + LAPSE_SPREAD_MS + rank * LAPSE_TURN_MS;
    this.#campaigns.set(replica, {
      due,
      tries: CAMPAIGN_TRIES,
      ...(rank > 0 && { isStandby: true }),
    });
  }

  soon(replica: Replica): void {
    if (this.#campaigns.has(replica)) return;
    this.#campaigns.set(replica, { due: this.#clock.monotonicMs(), tries: CAMPAIGN_TRIES });
    this.#runSoon();
  }

  /** Somebody waits: in this turn, not at the next pulse. */
  #runSoon(): void {
    if (this.#campaignsDeferred) return;
    this.#campaignsDeferred = true;
    this.#clock.defer(() => this.runDeferred());
  }

  runDeferred(): void {
    if (!this.#campaignsDeferred) return;
    this.#campaignsDeferred = false;
    this.#begin(this.#clock.monotonicMs());
  }

  /**
   * What is said in an election that brings no leader, so that nobody waits for a timer: who has more than the one that
   * asks for votes asks instead, one after the other; and who was refused asks again.
   */
  heard(replica: Replica, message: Message): void {
    const { raft } = replica;
    if (replica.halted !== null || raft.isLeader || raft.lead !== NONE) return;
    const campaign = this.#campaigns.get(replica);
    const now = this.#clock.monotonicMs();
    switch (message.type) {
      case MessageType.preVote:
      case MessageType.requestVote: {
        if (raft.role !== "follower") return;
        if (message.type === MessageType.requestVote && raft.hasVotedFor(message)) {
          // Whom it has just made leader it must not ask to step down, though somebody waits here too.
          const tries = campaign?.tries ?? 1;
          this.#campaigns.set(replica, { due: now + LAPSE_TURN_MS, tries, isStandby: true });
          return;
        }
        if (campaign !== undefined && campaign.isStandby !== true) return;
        if (!raft.isAheadOf(message)) {
          // Who goes first is at it.
          const due = now + LAPSE_TURN_MS;
          if (campaign !== undefined) this.#campaigns.set(replica, { ...campaign, due });
          return;
        }
        this.#campaigns.delete(replica);
        const rank = this.#rankAmongLive(replica, message.from);
        if (rank === 0) return this.soon(replica);
        this.#campaigns.set(replica, { due: now + rank * PULSE_MS, tries: CAMPAIGN_TRIES });
        return;
      }
      case MessageType.preVoteResponse:
      case MessageType.requestVoteResponse: {
        // Where two asked at once, and the third is gone, neither ever hears that it lost.
        if (campaign === undefined || !message.reject || raft.awaitsVotes) return;
        const lost = CAMPAIGN_TRIES - campaign.tries - 1;
        // Refused was one that its own timer began; this one keeps its time.
        if (lost < 0) return;
        const isNews = message.term === raft.term && message.term > (campaign.askedIn ?? Infinity);
        if (isNews && message.type === MessageType.preVoteResponse && raft.role === "follower") {
          // It asked about a term that has passed, which says nothing against it. It knows now, and terms only grow.
          this.#campaigns.set(replica, { ...campaign, due: now });
          this.#runSoon();
          return;
        }
        const wait = Math.min(CAMPAIGN_RETRY_MS, CAMPAIGN_LOST_MS * 2 ** lost);
        const due = now + wait + this.#prng.below(wait);
        if (due < campaign.due) this.#campaigns.set(replica, { ...campaign, due });
        return;
      }
      default:
        return;
    }
  }

  /**
   * Keeps a request for votes of a group that was made after what the directory here has applied: who asks may hear of a
   * new tenant before this node does, and without an answer would wait for a timer. Bounded: the oldest gives way.
   */
  keepEarly(request: EarlyRequest): void {
    this.#early.delete(request.group);
    this.#early.set(request.group, request);
    if (this.#early.size <= EARLY_MAX) return;
    for (const group of this.#early.keys()) return void this.#early.delete(group);
  }

  /** Those that wait for no more than this revision of the directory; they are kept no longer. */
  takeEarly(revision: number): readonly EarlyRequest[] {
    if (this.#early.size === 0) return NONE_EARLY;
    const known = [...this.#early.values()].filter(({ incarnation }) => incarnation <= revision);
    for (const { group } of known) this.#early.delete(group);
    return known;
  }

  /** Somebody is to ask for votes, or to look whether that is still needed. */
  get isBusy(): boolean {
    return this.#campaigns.size > 0;
  }

  /** Call with each pulse. */
  round(now: number): void {
    this.#started = 0;
    this.#begin(now);
  }

  #begin(now: number): void {
    for (const [replica, { due, tries }] of this.#campaigns) {
      if (this.#started >= CAMPAIGNS_PER_PULSE) return;
      if (due > now) continue;
      this.#campaigns.delete(replica);
      const { raft } = replica;
      if (raft.isBarred && replica.halted === null) {
        const end = this.#leases.barredUntilMs + this.#prng.below(PULSE_MS);
        this.#campaigns.set(replica, { due: Math.max(end, now + 1), tries });
        continue;
      }
      const leader = replica.leaderNode;
      const settled = raft.isLeader || (leader !== null && this.#liveness.supports(leader));
      if (replica.halted !== null || settled || this.#hooks.present(replica.group) !== replica)
        continue;
      this.#started += 1;
      // A tenant's group without a term has no leader to be disturbed. At a cluster's beginning there is no hurry: what
      // the nodes know of each other by then decides at which level it begins.
      const isFirst = raft.term === 0 && replica.group !== SYSTEM_GROUP;
      const askedIn = raft.term;
      this.#hooks.act(replica, () => raft.campaign(isFirst));
      if (tries > 1) {
        const wait = CAMPAIGN_RETRY_MS + this.#prng.below(CAMPAIGN_RETRY_MS);
        this.#campaigns.set(replica, { due: now + wait, tries: tries - 1, askedIn });
      }
    }
  }
}
