/**
 * What leaves for other nodes: frames, one of each lane for each peer and turn. A frame takes up what is said to its node
 * until the turn ends, and leaves early when it has grown large.
 */
import { emptyMessage, MessageType, type Message, type ReplicaId } from "../raft/types.ts";
import { encodeHeartbeat, FrameWriter, ItemKind, recoveredItem, type Heartbeat } from "./codec.ts";
import type { Lane, Transport } from "./ports.ts";
import type { Replica } from "./replica.ts";

/** A frame leaves early when it has grown to this size. */
const FRAME_BYTES = 384 * 1024;

interface Outbox {
  readonly frames: Record<Lane, FrameWriter>;
  /** Calls in the rpc frame, and appends in the append frame: whom to tell when it does not leave. */
  calls: number[];
  appends: { replica: Replica; to: ReplicaId }[];
  /** Nobody waits for what is in the append frame: it leaves with the next that somebody waits for, or with the pulse. */
  canWait: boolean;
}

export interface OutboxesHooks {
  /** There is something to send: `flushAll` at the end of this turn. */
  schedule(): void;
  /** Entries for this peer did not leave. */
  unreachable(replica: Replica, to: ReplicaId): void;
  /** This call did not leave. */
  notSent(call: number): void;
}

export class Outboxes {
  readonly #node: string;
  readonly #transport: Transport;
  readonly #hooks: OutboxesHooks;
  readonly #outboxes = new Map<string, Outbox>();

  constructor(node: string, transport: Transport, hooks: OutboxesHooks) {
    this.#node = node;
    this.#transport = transport;
    this.#hooks = hooks;
  }

  #outbox(node: string): Outbox {
    let outbox = this.#outboxes.get(node);
    if (outbox === undefined) {
      outbox = {
        frames: {
          control: new FrameWriter(),
          append: new FrameWriter(),
          snapshot: new FrameWriter(),
          rpc: new FrameWriter(),
        },
        calls: [],
        appends: [],
        canWait: true,
      };
      this.#outboxes.set(node, outbox);
    }
    return outbox;
  }

  /** A message of a replica here, to the node where its receiver is. */
  send(replica: Replica, message: Message): void {
    const node = replica.nodeOf(message.to);
    if (node === undefined || node === this.#node) return;
    const outbox = this.#outbox(node);
    const { group, incarnation } = replica;
    if (isUrgent(message.type)) {
      outbox.frames.control.addRaft(group, incarnation, message);
    } else {
      outbox.frames.append.addRaft(group, incarnation, message);
      if (message.type === MessageType.appendEntries && message.entries.length > 0) {
        outbox.appends.push({ replica, to: message.to });
      }
      if (replica.onlyTellsCommit(message)) return;
      outbox.canWait = false;
      if (outbox.frames.append.bytes > FRAME_BYTES) this.flush(node);
    }
    this.#hooks.schedule();
  }

  /** A message in the name of a replica that is not in memory. */
  sendFor(node: string, group: number, incarnation: number, message: Message): void {
    const outbox = this.#outbox(node);
    outbox.frames.append.addRaft(group, incarnation, message);
    outbox.canWait = false;
    this.#hooks.schedule();
  }

  /** Its node being alive, nobody would notice that this replica leads no more: it says so. */
  disown(replica: Replica, to: ReplicaId, term: number): void {
    this.send(replica, emptyMessage(MessageType.forgetLeader, to, replica.id, term));
  }

  /** @param call whom to tell when it does not leave; null: nobody */
  queueRpc(node: string, item: Uint8Array, call: number | null): void {
    const outbox = this.#outbox(node);
    outbox.frames.rpc.add(ItemKind.rpc, item);
    if (call !== null) outbox.calls.push(call);
    if (outbox.frames.rpc.bytes > FRAME_BYTES) this.flush(node);
    this.#hooks.schedule();
  }

  /** Leaves at once, with all that is to go to the node. @param incarnation of `_system` here */
  heartbeat(node: string, beat: Heartbeat, incarnation: number): void {
    const { control } = this.#outbox(node).frames;
    control.add(ItemKind.heartbeat, encodeHeartbeat(beat));
    if (incarnation > 1) control.add(ItemKind.recovered, recoveredItem(incarnation));
    this.flush(node);
  }

  flush(node: string, evenWhatCanWait = false): void {
    const outbox = this.#outbox(node);
    const { frames } = outbox;
    const transport = this.#transport;
    if (!frames.control.empty) transport.send(node, "control", frames.control.take());
    if (!frames.append.empty && (!outbox.canWait || evenWhatCanWait)) {
      const appends = outbox.appends;
      outbox.appends = [];
      outbox.canWait = true;
      if (!transport.send(node, "append", frames.append.take())) {
        for (const { replica, to } of appends) this.#hooks.unreachable(replica, to);
      }
    }
    if (!frames.rpc.empty) {
      const calls = outbox.calls;
      outbox.calls = [];
      if (!transport.send(node, "rpc", frames.rpc.take())) {
        for (const call of calls) this.#hooks.notSent(call);
      }
    }
  }

  flushAll(evenWhatCanWait = false): void {
    for (const node of this.#outboxes.keys()) this.flush(node, evenWhatCanWait);
  }
}

/** Few and small, and what elections wait for: they must not queue behind log entries. */
function isUrgent(type: MessageType): boolean {
  switch (type) {
    case MessageType.requestVote:
    case MessageType.requestVoteResponse:
    case MessageType.preVote:
    case MessageType.preVoteResponse:
    case MessageType.timeoutNow:
      return true;
    default:
      return false;
  }
}
