/**
 * What leader leases rest on: which nodes vouch for this one, and until when that is certain.
 *
 * A heartbeat carries its sender's clocks. Who hears it supports the sender for SUPPORT_MS by its own clock, and its next
 * heartbeat gives those clocks back, with the epoch of its support. So the sender knows that it is supported until
 * SUPPORT_MS after it SENT, less what two clocks may differ: the receiver counted from receipt, which was later. No two
 * clocks are ever compared.
 *
 * A replica that answers its leader says in which epoch it is bound to it (`LeaseSupport`, raft/types.ts); it helps nobody
 * else until that epoch ends. A leader with a quorum of such answers, in epochs that are certain now, may read its own
 * state. What binds a replica is in memory: over a sleep it is kept here, and after a start the node waits as long as
 * anybody may count on what it promised in an earlier life. The argument is docs/adr/0012.
 */
import type { Bond, LeaseSupport, ReplicaId } from "../raft/types.ts";
import type { Heartbeat, SentAt } from "./codec.ts";
import { SUPPORT_MS, type Liveness } from "./liveness.ts";
import type { Clock } from "./ports.ts";

export interface LeaseOptions {
  /** How much a node's clock may gain or lose, as a part of the time that passes; null: no leases are used here. */
  readonly clockDriftMax: number | null;
  readonly boot: number;
  /** Nothing of an earlier life is on the disk. */
  readonly isNew: () => boolean;
  readonly clock: Clock;
  readonly liveness: Liveness;
}

interface Peer {
  /** Newest heartbeat heard from it. */
  heard: SentAt;
  /** Epoch in which it supports this node, and when the newest heartbeat left that it is known to have heard in it. */
  epoch: number;
  sent: SentAt | null;
}

interface SleepingBond {
  readonly replica: ReplicaId;
  readonly bond: Bond;
}

export class Leases {
  readonly #options: LeaseOptions;
  readonly #leaseMs: number;
  readonly #barredUntilMs: number;
  readonly #peers = new Map<string, Peer>();
  /** Of replicas that sleep, by group: at most one for each replica of this node, and only while the epoch lasts. */
  readonly #sleeping = new Map<number, SleepingBond>();

  constructor(options: LeaseOptions) {
    this.#options = options;
    const drift = options.clockDriftMax;
    // The slowest clock of a leader against the fastest one of a follower.
    this.#leaseMs = drift === null ? 0 : (SUPPORT_MS * (1 - drift)) / (1 + drift);
    this.#barredUntilMs = options.clock.monotonicMs() + SUPPORT_MS;
  }

  /** Until then (monotonic ms) replicas that were here before this start neither vote nor campaign. */
  get barredUntilMs(): number {
    return this.#barredUntilMs;
  }

  /** What the heartbeat to `node` carries that leaves now. */
  heartbeatTo(node: string): Omit<Heartbeat, "news"> {
    const { clock, liveness } = this.#options;
    const heard = this.#peers.get(node)?.heard;
    return {
      // Rounded down: an earlier time of sending is the safe one.
      sent: {
        monotonicUs: Math.floor(clock.monotonicMs() * 1_000),
        wallMs: Math.max(0, Math.floor(clock.wallMs())),
      },
      epoch: liveness.epochOf(node),
      echo: heard ?? null,
    };
  }

  /** To be called after `Liveness.heard` of the same heartbeat, so that what is given back was heard in the epoch named. */
  heard(node: string, boot: number, { sent, epoch, echo }: Omit<Heartbeat, "news">): void {
    let peer = this.#peers.get(node);
    if (peer === undefined || boot > peer.heard.boot) {
      peer = { heard: { boot, ...sent }, epoch: 0, sent: null };
      this.#peers.set(node, peer);
    }
    // A frame of an earlier life.
    if (boot < peer.heard.boot) return;
    if (sent.monotonicUs > peer.heard.monotonicUs) peer.heard = { boot, ...sent };
    // Of an earlier life of this node the clock began elsewhere.
    if (echo?.boot !== this.#options.boot || epoch === 0 || epoch < peer.epoch) return;
    if (epoch > peer.epoch || echo.monotonicUs > (peer.sent?.monotonicUs ?? -1)) peer.sent = echo;
    peer.epoch = epoch;
  }

  /** The epoch in which `node` supports this one, if that is certain at this moment; else 0. */
  #held(node: string): number {
    const peer = this.#peers.get(node);
    if (peer === undefined || peer.sent === null) return 0;
    const { clock } = this.#options;
    if (clock.monotonicMs() >= peer.sent.monotonicUs / 1_000 + this.#leaseMs) return 0;
    // The monotonic clock stands still while a machine is suspended. The other one does not: it may only end a lease, and
    // does so too when it was set meanwhile, one way or the other.
    const wallMs = clock.wallMs() - peer.sent.wallMs;
    if (wallMs < 0 || wallMs >= this.#leaseMs) return 0;
    return peer.epoch;
  }

  /** For a replica of this node; `nodeOf` says where the others of its group are. */
  supportOf(nodeOf: (id: ReplicaId) => string | undefined): LeaseSupport {
    const { liveness, clock, isNew } = this.#options;
    return {
      given: (id) => {
        const node = nodeOf(id);
        return node === undefined ? 0 : liveness.epochOf(node);
      },
      binds: (epoch) => liveness.lasts(epoch),
      held: (id) => {
        const node = this.#leaseMs === 0 ? undefined : nodeOf(id);
        return node === undefined ? 0 : this.#held(node);
      },
      mayBeBound: () => !isNew() && clock.monotonicMs() < this.#barredUntilMs,
    };
  }

  /** A replica goes to sleep: what binds it is kept, or it would wake free while its leader counts on it. */
  asleep(group: number, replica: ReplicaId, bond: Bond | null): void {
    if (bond !== null) this.#sleeping.set(group, { replica, bond });
  }

  /** What it was bound to, once. */
  awake(group: number, replica: ReplicaId): Bond | null {
    const sleeping = this.#sleeping.get(group);
    this.#sleeping.delete(group);
    return sleeping?.replica === replica ? sleeping.bond : null;
  }

  /** Support for some node ended: what it bound is free. */
  lapsed(): void {
    for (const [group, { bond }] of this.#sleeping)
      if (!this.#options.liveness.lasts(bond.epoch)) this.#sleeping.delete(group);
  }
}
