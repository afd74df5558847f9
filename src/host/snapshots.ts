/**
 * A replica's whole state on its way to a peer whose log is too far behind: in parts, with credit, one transfer at a
 * time per group and peer. What arrives is handed to the replica complete or not at all.
 */
import type { Message, ReplicaId } from "../raft/types.ts";
import {
  decodeAck,
  decodeChunk,
  encodeAck,
  encodeChunk,
  ItemKind,
  type SnapshotChunk,
} from "./codec.ts";
import type { Replica } from "./replica.ts";
import { firstId } from "./rpc.ts";

/** A part leaves when its rows have grown to this size. */
const PART_BYTES = 256 * 1024;
/** Parts sent and not yet acknowledged, per transfer. */
const CREDIT_PARTS = 4;
/** A transfer without progress for this long is given up; Raft asks again. */
const STALL_MS = 5_000;
/** All snapshots being received by this node together; more are refused. */
const RECEIVING_BYTES_MAX = 256 * 1024 * 1024;
const SENDING_MAX = 16;

interface Outgoing {
  readonly replica: Replica;
  readonly node: string;
  readonly to: ReplicaId;
  readonly parts: Generator<SnapshotChunk>;
  unacknowledged: number;
  finished: boolean;
  progressAt: number;
}

interface Incoming {
  /** Numbers of transfers are the sender's: two senders may use the same. */
  readonly from: string;
  readonly transfer: number;
  readonly message: Message;
  readonly rows: (readonly [string, string])[];
  next: number;
  bytes: number;
  progressAt: number;
}

export interface SnapshotHooks {
  now(): number;
  send(node: string, kind: number, item: Uint8Array): boolean;
  received(
    group: number,
    incarnation: number,
    message: Message,
    rows: readonly (readonly [string, string])[],
  ): void;
  sent(replica: Replica, to: ReplicaId, ok: boolean): void;
}

export class SnapshotExchange {
  readonly #hooks: SnapshotHooks;
  readonly #outgoing = new Map<number, Outgoing>();
  readonly #incoming = new Map<string, Incoming>();
  #next: number;
  #receiving = 0;

  constructor(boot: number, hooks: SnapshotHooks) {
    this.#next = firstId(boot);
    this.#hooks = hooks;
  }

  send(replica: Replica, node: string, message: Message): void {
    if (this.#outgoing.size >= SENDING_MAX) {
      this.#hooks.sent(replica, message.to, false);
      return;
    }
    const transfer = this.#next++;
    // The rows are taken here, in the turn in which the message was made: state and index belong together.
    const rows = [...replica.snapshotRows()];
    this.#outgoing.set(transfer, {
      replica,
      node,
      to: message.to,
      parts: parts(transfer, replica, message, rows),
      unacknowledged: 0,
      finished: false,
      progressAt: this.#hooks.now(),
    });
    this.#pump(transfer);
  }

  #pump(transfer: number): void {
    const outgoing = this.#outgoing.get(transfer);
    if (outgoing === undefined) return;
    while (outgoing.unacknowledged < CREDIT_PARTS && !outgoing.finished) {
      const part = outgoing.parts.next();
      if (part.done === true) {
        outgoing.finished = true;
        break;
      }
      outgoing.unacknowledged += 1;
      if (!this.#hooks.send(outgoing.node, ItemKind.snapshot, encodeChunk(part.value))) {
        this.#end(transfer, false);
        return;
      }
    }
    if (outgoing.finished && outgoing.unacknowledged === 0) this.#end(transfer, true);
  }

  #end(transfer: number, ok: boolean): void {
    const outgoing = this.#outgoing.get(transfer);
    if (outgoing === undefined) return;
    this.#outgoing.delete(transfer);
    outgoing.parts.return(undefined);
    this.#hooks.sent(outgoing.replica, outgoing.to, ok);
  }

  onAck(from: string, item: Uint8Array): void {
    const { transfer, ok } = decodeAck(item);
    const outgoing = this.#outgoing.get(transfer);
    if (outgoing === undefined || outgoing.node !== from) return;
    if (!ok) return this.#end(transfer, false);
    outgoing.unacknowledged -= 1;
    outgoing.progressAt = this.#hooks.now();
    this.#pump(transfer);
  }

  onChunk(from: string, item: Uint8Array): void {
    const chunk = decodeChunk(item);
    const key = `${chunk.group}/${chunk.to}`;
    let incoming = this.#incoming.get(key);
    if (chunk.part === 0 && chunk.message !== null) {
      // A new transfer replaces one that was cut off.
      if (incoming !== undefined) this.#drop(key, incoming);
      incoming = {
        from,
        transfer: chunk.transfer,
        message: chunk.message,
        rows: [],
        next: 0,
        bytes: 0,
        progressAt: this.#hooks.now(),
      };
      this.#incoming.set(key, incoming);
    }
    if (incoming === undefined || incoming.from !== from || incoming.transfer !== chunk.transfer) {
      // A late part of a transfer that was given up: the present one, if any, is none of its business.
      this.#hooks.send(from, ItemKind.snapshotAck, encodeAck(chunk.transfer, chunk.part, false));
      return;
    }
    if (incoming.next !== chunk.part || this.#receiving + item.length > RECEIVING_BYTES_MAX) {
      this.#drop(key, incoming);
      this.#hooks.send(from, ItemKind.snapshotAck, encodeAck(chunk.transfer, chunk.part, false));
      return;
    }
    const receiving = incoming;
    receiving.next += 1;
    receiving.bytes += item.length;
    receiving.progressAt = this.#hooks.now();
    this.#receiving += item.length;
    for (const row of chunk.rows) receiving.rows.push(row);
    this.#hooks.send(from, ItemKind.snapshotAck, encodeAck(chunk.transfer, chunk.part, true));
    if (!chunk.last) return;
    this.#drop(key, receiving);
    this.#hooks.received(chunk.group, chunk.incarnation, receiving.message, receiving.rows);
  }

  #drop(key: string, incoming: Incoming): void {
    this.#incoming.delete(key);
    this.#receiving -= incoming.bytes;
  }

  expire(now: number): void {
    for (const [transfer, outgoing] of this.#outgoing) {
      if (now - outgoing.progressAt > STALL_MS) this.#end(transfer, false);
    }
    for (const [key, incoming] of this.#incoming) {
      if (now - incoming.progressAt > 2 * STALL_MS) this.#drop(key, incoming);
    }
  }
}

function* parts(
  transfer: number,
  replica: Replica,
  message: Message,
  rows: readonly (readonly [string, string])[],
): Generator<SnapshotChunk> {
  const head = { transfer, group: replica.group, incarnation: replica.incarnation, to: message.to };
  let part = 0;
  let at = 0;
  do {
    const from = at;
    for (let bytes = 0; at < rows.length && bytes < PART_BYTES; at++) {
      const [key, value] = rows[at] as readonly [string, string];
      bytes += key.length + value.length;
    }
    yield {
      ...head,
      part,
      last: at >= rows.length,
      message: part === 0 ? message : null,
      rows: rows.slice(from, at),
    };
    part += 1;
  } while (at < rows.length);
}
