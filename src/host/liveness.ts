/**
 * Which nodes are alive, as this node sees it: by pairs of nodes, never per group (decision D3).
 *
 * Each node sends every other a heartbeat every HEARTBEAT_MS; one that was not heard for SUPPORT_MS is not supported any
 * more: the groups it leads look for another leader. Each unbroken time of support has a number of its own, its epoch,
 * and lasts at least SUPPORT_MS by this node's clock from the last heartbeat that came in: leases rest on that
 * (leases.ts); nothing else that must be safe rests on this room.
 */

export const HEARTBEAT_MS = 150;
/** Every node counts on it that the others have the same: another number needs a way to say so between versions. */
export const SUPPORT_MS = 1_000;

export interface LivenessEvents {
  /** `node` is heard again, or for the first time, or came back under a new boot. */
  up(node: string): void;
  down(node: string): void;
}

/** A time in which a peer was not supported. */
export interface Absence {
  readonly node: string;
  /** On this node's monotonic clock, ms; `until` null: it lasts. */
  readonly from: number;
  readonly until: number | null;
  readonly reason: "silent" | "restarted";
}

/** Absences remembered; the oldest are forgotten first. */
const ABSENCES_MAX = 100;

interface Peer {
  heardAt: number;
  boot: number;
  alive: boolean;
  /** Of the support that lasts; 0 while there is none. */
  epoch: number;
}

/** Epochs of one life of a node: those of the next one are greater. Beyond, nothing is promised any more. */
const EPOCHS_PER_BOOT = 2 ** 20;

export class Liveness {
  readonly #peers = new Map<string, Peer>();
  readonly #self: string;
  readonly #events: LivenessEvents;
  #checkedAt: number;
  #absences: Absence[] = [];
  /** Epochs that last. */
  readonly #epochs = new Set<number>();
  readonly #epochMax: number;
  #epochNext: number;

  /** @param boot of this node: epochs of different lives differ */
  constructor(self: string, now: number, events: LivenessEvents, boot = 0) {
    this.#self = self;
    this.#events = events;
    this.#checkedAt = now;
    this.#epochNext = boot * EPOCHS_PER_BOOT + 1;
    this.#epochMax = (boot + 1) * EPOCHS_PER_BOOT - 1;
  }

  get peers(): Iterable<string> {
    return this.#peers.keys();
  }

  /** Takes up a node to watch. A node never heard of counts as not alive. */
  add(node: string): void {
    if (node === this.#self || this.#peers.has(node)) return;
    this.#peers.set(node, { heardAt: -Infinity, boot: 0, alive: false, epoch: 0 });
  }

  /** It is no member any more: nothing is sent to it, until it is heard again. Not one that is alive. */
  forget(node: string): void {
    if (this.#peers.get(node)?.alive === false) this.#peers.delete(node);
  }

  heard(node: string, boot: number, now: number): void {
    if (node === this.#self) return;
    this.add(node);
    const peer = this.#peers.get(node) as Peer;
    // A frame of an earlier life says nothing of this one.
    if (boot < peer.boot) return;
    // Back under a new boot before its silence was noticed: whatever it led, it leads no more.
    if (peer.alive && boot > peer.boot) this.#lose(node, peer, "restarted");
    // Who was told of it may have forgotten one that is no member.
    this.#peers.set(node, peer);
    const news = !peer.alive;
    peer.heardAt = now;
    peer.boot = Math.max(peer.boot, boot);
    peer.alive = true;
    if (!news) return;
    if (this.#epochNext <= this.#epochMax && Number.isSafeInteger(this.#epochMax)) {
      peer.epoch = this.#epochNext++;
      this.#epochs.add(peer.epoch);
    }
    this.#absences = this.#absences.map((absence) =>
      absence.node === node && absence.until === null ? { ...absence, until: now } : absence,
    );
    this.#events.up(node);
  }

  #lose(node: string, peer: Peer, reason: Absence["reason"]): void {
    peer.alive = false;
    this.#epochs.delete(peer.epoch);
    peer.epoch = 0;
    this.#absences.push({ node, from: peer.heardAt, until: null, reason });
    if (this.#absences.length > ABSENCES_MAX) this.#absences.shift();
    this.#events.down(node);
  }

  /** Who was lost when and for how long, oldest first; counted from when a node was last heard. */
  get absences(): readonly Absence[] {
    return this.#absences;
  }

  /** Whether some node is lost within so many ms if it is not heard until then. */
  mayLoseWithin(ms: number, now: number): boolean {
    for (const { alive, heardAt } of this.#peers.values())
      if (alive && now + ms - heardAt > SUPPORT_MS) return true;
    return false;
  }

  /** Call about every HEARTBEAT_MS. */
  check(now: number): void {
    // A process that was frozen hears nothing meanwhile: its own pause must not make everybody else look dead.
    const pause = now - this.#checkedAt - 2 * HEARTBEAT_MS;
    this.#checkedAt = now;
    for (const [node, peer] of this.#peers) {
      // What came in at its end was heard before this: nobody is taken to have been heard in the future.
      if (pause > 0) peer.heardAt = Math.min(now, peer.heardAt + pause);
      if (peer.alive && now - peer.heardAt > SUPPORT_MS) this.#lose(node, peer, "silent");
    }
  }

  /** Under which boot a node was heard last; 0: never. */
  bootOf(node: string): number {
    return this.#peers.get(node)?.boot ?? 0;
  }

  /** The number of the time for which `node` is supported; 0: it is not, or is this node itself. */
  epochOf(node: string): number {
    return this.#peers.get(node)?.epoch ?? 0;
  }

  /** Whether some node is supported under this number. */
  lasts(epoch: number): boolean {
    return this.#epochs.has(epoch);
  }

  supports(node: string): boolean {
    return node === this.#self || this.#peers.get(node)?.alive === true;
  }

  status(
    node: string,
    now: number,
  ): { alive: boolean; heardMsAgo: number | null; boot: number | null } {
    if (node === this.#self) return { alive: true, heardMsAgo: null, boot: null };
    const peer = this.#peers.get(node);
    if (peer === undefined || peer.boot === 0)
      return { alive: false, heardMsAgo: null, boot: null };
    return {
      alive: peer.alive,
      heardMsAgo: Math.max(0, Math.round(now - peer.heardAt)),
      boot: peer.boot,
    };
  }
}
