/**
 * What this node leads: how many groups, so that others can compare (balance.ts), and to whom it offers them when it
 * should lead none: short of disk, without a directory, or about to stop.
 */
import type { Prng } from "../lib/prng.ts";
import type { ReplicaId } from "../raft/types.ts";
import { isMovable } from "./balance.ts";
import { SYSTEM_GROUP, type Directory } from "./directory.ts";
import { CAMPAIGNS_PER_PULSE } from "./elections.ts";
import type { Liveness } from "./liveness.ts";
import type { Clock } from "./ports.ts";
import type { Replica } from "./replica.ts";
import type { Versions } from "./versions.ts";

/** How long the number of leaders here is taken for what it was, where nothing is known to have changed it. */
const LEADERS_MS = 1_000;
/** Who should not lead looks this often whether somebody would take what it leads. */
const HAND_OVER_MS = 500;
/** The same leadership is offered again after this long: each offer may hold its group up for a moment. */
const OFFER_MS = 10_000;
/** And after twice as long each time that nobody took it, up to this. */
const OFFER_MAX_MS = 10 * 60_000;

/** What came of offering a leadership. */
interface Offer {
  /** Of the leader that offered it. */
  readonly term: number;
  readonly at: number;
  /** So long after that it is offered again to who did not take it over. */
  readonly waitMs: number;
  /** Those: a replica may be stopped, which shows by nothing else while nobody writes. */
  readonly inVain: readonly ReplicaId[];
}

export interface LeadershipsParts {
  readonly node: string;
  readonly clock: Clock;
  readonly prng: Prng;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly versions: Versions;
}

export interface LeadershipsHooks {
  /** The replica of this group that is in memory. */
  present(group: number): Replica | null;
  /** All that are. */
  replicas(): Iterable<Replica>;
  /** This node is ready to serve, and not about to stop. */
  serves(): boolean;
  /** It takes no changes for want of room, on the disk or in memory. */
  isShort(): boolean;
  /** Runs something of a replica, whose outcome is then sent out. */
  act(replica: Replica, run: () => void): void;
}

export class Leaderships {
  readonly #parts: LeadershipsParts;
  readonly #hooks: LeadershipsHooks;
  /** Led from here, and to be led from a node that is better at it. */
  #handingOver: Replica[] = [];
  #handingOverAt = -Infinity;
  /** How many are led here that others could lead, as last counted; null: that changed since. */
  #leaders: number | null = null;
  #leadersCountedAt = -Infinity;
  #offers = new WeakMap<Replica, Offer>();

  constructor(parts: LeadershipsParts, hooks: LeadershipsHooks) {
    this.#parts = parts;
    this.#hooks = hooks;
  }

  // --- how many there are ------------------------------------------------------------------------------------------------

  /** Another number may be led here than before. */
  changed(): void {
    this.#leaders = null;
  }

  /** Groups led here that others could lead; null when it should be no more. */
  get here(): number | null {
    const { node, clock, directory } = this.#parts;
    const phase = directory.node(node)?.phase;
    if (!this.#hooks.serves() || phase !== undefined || this.#hooks.isShort()) return null;
    // Each heartbeat says it, and thousands may be awake: counted again when it may have changed, or after a while.
    const now = clock.monotonicMs();
    if (this.#leaders === null || now - this.#leadersCountedAt > LEADERS_MS) {
      this.#leadersCountedAt = now;
      this.#leaders = 0;
      for (const replica of this.#hooks.replicas()) if (isMovable(replica)) this.#leaders += 1;
    }
    return this.#leaders;
  }

  /** The same of any node; null too where nothing is known of it. */
  on(node: string): number | null {
    const { directory, liveness, versions } = this.#parts;
    if (node === this.#parts.node) return this.here;
    const row = directory.node(node);
    if (row === undefined || row.phase !== undefined || row.role === "gateway") return null;
    return liveness.supports(node) ? (versions.newsOf(node)?.leaders ?? null) : null;
  }

  // --- who leads instead -------------------------------------------------------------------------------------------------

  /** The replica has another leader than before, itself perhaps. */
  leaderChanged(replica: Replica): void {
    this.changed();
    if (!this.#hooks.isShort() || this.isBlind) return;
    // What comes back, or begins, is offered at once.
    this.#offers.delete(replica);
    if (replica.raft.isLeader) this.#handingOver.push(replica);
  }

  /**
   * Call with each pulse. Without room here, tenants are written to where there is some: leaderships are offered to nodes
   * that have it, also those that come later, by an election or by waking. And who has no directory any more cannot move
   * its groups, nor be told that they moved (simulation, seed 200001041): it leads none that somebody else can lead.
   */
  round(now: number): void {
    const blind = this.isBlind;
    if (!this.#hooks.isShort() && !blind) {
      if (this.#handingOver.length === 0 && this.#handingOverAt === -Infinity) return;
      this.#handingOver = [];
      this.#handingOverAt = -Infinity;
      this.#offers = new WeakMap();
      return;
    }
    if (this.#handingOver.length === 0 && now - this.#handingOverAt > HAND_OVER_MS) {
      this.#handingOverAt = now;
      this.#handingOver = [...this.#hooks.replicas()].filter(({ raft }) => raft.isLeader);
    }
    for (const replica of this.#handingOver.splice(0, CAMPAIGNS_PER_PULSE)) {
      if (replica.raft.isLeader) this.#offer(replica, now);
    }
  }

  #offer(replica: Replica, now: number): void {
    const { term } = replica.raft;
    const last = this.#offers.get(replica);
    const known: Omit<Offer, "term"> =
      last?.term === term ? last : { at: -Infinity, waitMs: OFFER_MS, inVain: [] };
    let { waitMs, inVain } = known;
    if (now < known.at + OFFER_MS) return;
    const fit = this.#fitHeirs(replica);
    const heirs = fit.length === 0 && this.isBlind ? this.#heirs(replica) : fit;
    if (heirs.length === 0) return;
    if (heirs.every((id) => inVain.includes(id))) {
      if (now < known.at + waitMs) return;
      // From the beginning, and less often.
      waitMs = Math.min(2 * waitMs, OFFER_MAX_MS);
      inVain = [];
    }
    const heir = this.#parts.prng.pick(heirs.filter((id) => !inVain.includes(id)));
    this.#offers.set(replica, { term, at: now, waitMs, inVain: [...inVain, heir] });
    this.#hooks.act(replica, () => replica.raft.transferLeadership(heir));
  }

  /** The directory here is stopped. */
  get isBlind(): boolean {
    return this.#hooks.present(SYSTEM_GROUP)?.halted != null;
  }

  /** A voter on another node that is there, another one each time; null when there is none. */
  heirOf(replica: Replica): ReplicaId | null {
    const heirs = this.#heirs(replica);
    return heirs.length === 0 ? null : this.#parts.prng.pick(heirs);
  }

  hasHeirs(replica: Replica): boolean {
    return this.#heirs(replica).length > 0;
  }

  #heirs(replica: Replica): readonly ReplicaId[] {
    return [...replica.voters()]
      .filter(([id, node]) => id !== replica.id && this.#parts.liveness.supports(node))
      .map(([id]) => id);
  }

  /** Those whose nodes say that they take leaderships: any other would give them away again, or be no better off. */
  #fitHeirs(replica: Replica): readonly ReplicaId[] {
    return this.#heirs(replica).filter((id) => {
      const node = replica.nodeOf(id);
      return node !== undefined && this.#parts.versions.newsOf(node)?.leaders != null;
    });
  }
}
