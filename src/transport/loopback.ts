/**
 * Transport within one process: what a single node runs on, and what tests join several nodes with. Frames go through
 * the same envelope as on the wire and are delivered later and in order, so that code which works here only by being
 * called back at once, or by sharing memory, fails here already.
 */
import type { FrameHandler, Lane, Transport } from "../host/ports.ts";
import { assert } from "../lib/assert.ts";
import type { Identity, RefusalReason, TransportStats } from "./envelope.ts";
import { assertIdentity, FrameEncoder, FrameReceiver, newStats } from "./envelope.ts";

/** Bytes a node may have under way to one peer on one lane; the message that crosses it is the last one taken. */
const pendingBytesMax = 8 * 1024 * 1024;

interface Parcel {
  readonly from: LoopbackTransport;
  readonly to: string;
  readonly lane: Lane;
  readonly frames: readonly Uint8Array[];
  /** Key and size in the sender's account of what is under way. */
  readonly account: string;
  readonly bytes: number;
}

/** Joins the nodes of one process. A single node is a network of one: it has no peers, and is none of its own. */
export class LoopbackNetwork {
  readonly #members = new Map<string, LoopbackTransport>();
  readonly #cuts = new Set<string>();
  #parcels: Parcel[] = [];
  #scheduled = false;

  /** A node's transport; the node is reachable from its `start` until its `close`. */
  join(identity: Identity): LoopbackTransport {
    return new LoopbackTransport(this, identity);
  }

  /** Loses everything between two nodes, also what is under way; `send` does not notice, as on a network. */
  cut(a: string, b: string): void {
    this.#cuts.add(`${a} ${b}`).add(`${b} ${a}`);
  }

  /** Loses everything from one node to another; the other direction stays. */
  cutOneWay(from: string, to: string): void {
    this.#cuts.add(`${from} ${to}`);
  }

  heal(a: string, b: string): void {
    this.#cuts.delete(`${a} ${b}`);
    this.#cuts.delete(`${b} ${a}`);
  }

  /** Called by members. @internal */
  enter(member: LoopbackTransport): void {
    const key = memberKey(member.identity.cluster, member.identity.node);
    // A node that starts anew before its old life closed: the address is the new one's.
    this.#members.set(key, member);
  }

  /** Called by members. @internal */
  leave(member: LoopbackTransport): void {
    const key = memberKey(member.identity.cluster, member.identity.node);
    if (this.#members.get(key) === member) this.#members.delete(key);
  }

  /** Called by members. @internal */
  knows(cluster: string, node: string): boolean {
    return this.#members.has(memberKey(cluster, node));
  }

  /** Called by members. @internal */
  post(parcel: Parcel): void {
    this.#parcels.push(parcel);
    if (this.#scheduled) return;
    this.#scheduled = true;
    // Not a microtask: nodes that answer each other for ever must not keep timers and sockets from their turn.
    setImmediate(() => this.#deliver());
  }

  #deliver(): void {
    this.#scheduled = false;
    const parcels = this.#parcels;
    this.#parcels = [];
    for (const parcel of parcels) {
      const { cluster, node } = parcel.from.identity;
      parcel.from.settle(parcel.account, parcel.bytes);
      if (this.#cuts.has(`${node} ${parcel.to}`)) continue;
      const to = this.#members.get(memberKey(cluster, parcel.to));
      for (const frame of parcel.frames) to?.receive(node, parcel.lane, frame);
    }
  }
}

export class LoopbackTransport implements Transport {
  readonly identity: Identity;
  readonly stats: TransportStats = newStats();
  readonly #network: LoopbackNetwork;
  readonly #encoder: FrameEncoder;
  readonly #pendingBytes = new Map<string, number>();
  #receiver: FrameReceiver | null = null;
  #closed = false;

  /** Made by `LoopbackNetwork.join`. */
  constructor(network: LoopbackNetwork, identity: Identity) {
    assertIdentity(identity);
    this.#network = network;
    this.identity = identity;
    this.#encoder = new FrameEncoder(identity);
  }

  get connected(): boolean {
    return this.#receiver !== null;
  }

  start(handler: FrameHandler): Promise<void> {
    assert(this.#receiver === null && !this.#closed, "transport was started before");
    const { cluster } = this.identity;
    this.#receiver = new FrameReceiver({ cluster, handler, stats: this.stats });
    this.#network.enter(this);
    return Promise.resolve();
  }

  send(to: string, lane: Lane, bytes: Uint8Array): boolean {
    const { cluster, node } = this.identity;
    if (this.#receiver === null) return this.#refuse("disconnected");
    if (to === node || !this.#network.knows(cluster, to)) return this.#refuse("unknown-peer");
    const account = `${to} ${lane}`;
    const pending = this.#pendingBytes.get(account) ?? 0;
    if (pendingBytesMax <= pending) return this.#refuse("window");

    const frames: Uint8Array[] = [];
    this.#encoder.encode(lane, bytes, (frame) => {
      frames.push(frame);
      this.stats.framesOut++;
      this.stats.bytesOut += frame.length;
    });
    this.stats.messagesOut++;
    const wireBytes = this.#encoder.wireBytes(bytes.length);
    this.#pendingBytes.set(account, pending + wireBytes);
    this.#network.post({ from: this, to, lane, frames, account, bytes: wireBytes });
    return true;
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#receiver = null;
    this.#network.leave(this);
    return Promise.resolve();
  }

  /** Called by the network. @internal */
  receive(from: string, lane: Lane, frame: Uint8Array): void {
    this.#receiver?.accept({ from, lane }, frame, performance.now());
  }

  /** Called by the network when a message of this node has left it. @internal */
  settle(account: string, bytes: number): void {
    const pending = (this.#pendingBytes.get(account) ?? 0) - bytes;
    if (pending > 0) this.#pendingBytes.set(account, pending);
    else this.#pendingBytes.delete(account);
  }

  #refuse(reason: RefusalReason): false {
    this.stats.refused[reason]++;
    return false;
  }
}

function memberKey(cluster: string, node: string): string {
  return `${cluster} ${node}`;
}
