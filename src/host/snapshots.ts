/**
 * A replica's whole state on its way to a peer whose log is too far behind.
 *
 * The sender reads a frozen view of its state part by part, as credit comes back: neither does it stop writing nor does
 * it hold more than the parts under way. What is lost is sent again, so a transfer survives a broken connection; it is
 * given up only when nothing moves for a while, and Raft then asks anew. The receiver stages what comes beside its own
 * state, acknowledges a part once it is written, and hands the whole to the replica, or nothing.
 *
 * What must stay true: at most CREDIT_PARTS parts of a transfer are in memory on either side; parts are staged in order,
 * each once, and only if the chain of checksums from the first part on is unbroken.
 */
import type { Message, ReplicaId } from "../raft/types.ts";
import {
  chainOf,
  decodeAck,
  decodePart,
  decodeRows,
  encodeAck,
  encodePart,
  encodeRows,
  ItemKind,
} from "./codec.ts";
import type { Staging } from "./ports.ts";
import type { Replica, ReplicaSnapshot } from "./replica.ts";
import { firstId } from "./rpc.ts";

/** Parts sent and not yet acknowledged, per transfer. */
const CREDIT_PARTS = 8;
/** Parts that nobody acknowledged for this long are sent again. */
const RESEND_MS = 400;
/** A transfer without progress for this long is given up; Raft asks again. */
const STALL_MS = 20_000;

interface Outgoing {
  readonly replica: Replica;
  readonly node: string;
  readonly to: ReplicaId;
  readonly view: ReplicaSnapshot;
  readonly parts: Iterator<PartRows>;
  /** As Raft last asked for it; what it names is `view`. */
  message: Message;
  unacknowledged: PartMade[];
  next: number;
  chain: number;
  finished: boolean;
  /** A part is being made at the end of this turn. */
  scheduled: boolean;
  sentAt: number;
  progressAt: number;
}

interface PartRows {
  readonly bytes: Uint8Array;
  readonly last: boolean;
}

interface PartMade extends PartRows {
  readonly part: number;
  readonly chain: number;
}

interface Incoming {
  /** Numbers of transfers are the sender's: two senders may use the same. */
  readonly from: string;
  readonly transfer: number;
  readonly term: number;
  readonly replica: Replica;
  readonly staging: Staging;
  /** Parts taken and parts written. */
  next: number;
  stored: number;
  chain: number;
  /** Parts that came before one that is missing; no more than credit allows. */
  readonly early: Map<number, Uint8Array>;
  /** Handed to the replica, or refused: late parts are answered, nothing more is taken. */
  ended: "offered" | "refused" | null;
  progressAt: number;
}

export interface SnapshotHooks {
  now(): number;
  /** At the end of this turn. */
  defer(run: () => void): void;
  /** False: not sent now. It will be sent again. */
  send(node: string, kind: number, item: Uint8Array): boolean;
  /** The replica that a snapshot is for, if it is this node's and wants one. */
  receiver(group: number, incarnation: number, message: Message): Replica | null;
  /** All rows are staged. */
  received(replica: Replica, message: Message, staging: Staging): void;
  sent(replica: Replica, to: ReplicaId, ok: boolean): void;
  /** Runs something of a replica; what it throws stops that replica alone. */
  contained(replica: Replica, run: () => void): void;
}

export class SnapshotExchange {
  readonly #hooks: SnapshotHooks;
  readonly #partBytes: number;
  readonly #transfersMax: number;
  readonly #outgoing = new Map<number, Outgoing>();
  readonly #incoming = new Map<string, Incoming>();
  #next: number;

  /**
   * @param partBytes a part leaves when its rows have grown to this size: making or taking one must be no long turn
   * @param transfersMax so many are sent at once, and as many received; each holds CREDIT_PARTS parts at most
   */
  constructor(boot: number, partBytes: number, transfersMax: number, hooks: SnapshotHooks) {
    this.#partBytes = partBytes;
    this.#transfersMax = transfersMax;
    this.#next = firstId(boot);
    this.#hooks = hooks;
  }

  /** Transfers under way, for status and tests. */
  get status(): { readonly sending: number; readonly receiving: number } {
    let receiving = 0;
    for (const { ended } of this.#incoming.values()) if (ended === null) receiving += 1;
    return { sending: this.#outgoing.size, receiving };
  }

  // --- sending ---------------------------------------------------------------------------------------------------------

  send(replica: Replica, node: string, message: Message): void {
    for (const outgoing of this.#outgoing.values()) {
      if (outgoing.replica !== replica || outgoing.to !== message.to) continue;
      // Asked again while the first is on its way: what was sent is not sent twice, and log entries follow it.
      outgoing.message = { ...message, snapshot: outgoing.message.snapshot };
      return;
    }
    if (this.#outgoing.size >= this.#transfersMax) {
      this.#hooks.sent(replica, message.to, false);
      return;
    }
    const transfer = this.#next++;
    // Taken here, in the turn in which the message was made: state and index belong together.
    const view = replica.snapshot();
    const now = this.#hooks.now();
    this.#outgoing.set(transfer, {
      replica,
      node,
      to: message.to,
      view,
      parts: partsOf(view, this.#partBytes),
      message,
      unacknowledged: [],
      next: 0,
      chain: 0,
      finished: false,
      scheduled: false,
      sentAt: now,
      progressAt: now,
    });
    this.#pump(transfer);
  }

  /** One part per turn, as long as there is credit. */
  #pump(transfer: number): void {
    const outgoing = this.#outgoing.get(transfer);
    if (outgoing === undefined) return;
    if (outgoing.finished && outgoing.unacknowledged.length === 0) return this.#end(transfer, true);
    if (outgoing.finished || outgoing.unacknowledged.length >= CREDIT_PARTS) return;
    // Eight acknowledgements that come together are no reason to make eight parts in one turn.
    if (outgoing.scheduled) return;
    let made: PartRows | undefined;
    this.#hooks.contained(outgoing.replica, () => {
      made = outgoing.parts.next().value as PartRows;
    });
    // Its replica was stopped.
    if (made === undefined) return this.#end(transfer, false);
    outgoing.chain = chainOf(outgoing.chain, made.bytes);
    const part: PartMade = { ...made, part: outgoing.next++, chain: outgoing.chain };
    outgoing.unacknowledged.push(part);
    outgoing.finished = made.last;
    outgoing.sentAt = this.#hooks.now();
    this.#transmit(transfer, outgoing, part);
    if (outgoing.finished || outgoing.scheduled) return;
    outgoing.scheduled = true;
    this.#hooks.defer(() => {
      outgoing.scheduled = false;
      this.#pump(transfer);
    });
  }

  #transmit(transfer: number, outgoing: Outgoing, part: PartMade): boolean {
    const { replica, message } = outgoing;
    const head = {
      transfer,
      group: replica.group,
      incarnation: replica.incarnation,
      to: outgoing.to,
      part: part.part,
      last: part.last,
      message: part.part === 0 || part.last ? message : null,
      chain: part.chain,
    };
    return this.#hooks.send(outgoing.node, ItemKind.snapshot, encodePart(head, part.bytes));
  }

  #end(transfer: number, ok: boolean): void {
    const outgoing = this.#outgoing.get(transfer);
    if (outgoing === undefined) return;
    this.#outgoing.delete(transfer);
    outgoing.view.close();
    this.#hooks.sent(outgoing.replica, outgoing.to, ok);
  }

  onAck(from: string, item: Uint8Array): void {
    const { transfer, stored, ok } = decodeAck(item);
    const outgoing = this.#outgoing.get(transfer);
    if (outgoing === undefined || outgoing.node !== from) return;
    if (!ok) {
      // Without the first part the others are nobody's: the first is sent again.
      if (stored > 0 && outgoing.unacknowledged[0]?.part === 0) return;
      return this.#end(transfer, false);
    }
    const left = outgoing.unacknowledged.filter(({ part }) => part >= stored);
    if (left.length < outgoing.unacknowledged.length) outgoing.progressAt = this.#hooks.now();
    outgoing.unacknowledged = left;
    this.#pump(transfer);
  }

  // --- receiving -------------------------------------------------------------------------------------------------------

  onPart(from: string, item: Uint8Array): void {
    const part = decodePart(item);
    // Damaged on the way: as good as lost.
    if (part === null) return;
    const key = `${part.group}/${part.to}`;
    let incoming = this.#incoming.get(key);
    const isOfAnother = incoming?.from !== from || incoming.transfer !== part.transfer;
    if (isOfAnother) {
      const { message } = part;
      const next =
        part.part === 0 && message !== null ? this.#begin(from, key, part, message) : null;
      if (next === null) return this.#acknowledge(from, part.transfer, part.part, false);
      incoming = next;
    }
    if (incoming === undefined) return;
    if (incoming.ended !== null || part.part < incoming.next) {
      // Doubled: what is written is told again.
      const ok = incoming.ended !== "refused";
      return this.#acknowledge(from, part.transfer, incoming.stored, ok);
    }
    if (part.part > incoming.next) {
      // The buffer is the transport's.
      if (part.part < incoming.next + CREDIT_PARTS) incoming.early.set(part.part, item.slice());
      return;
    }
    this.#take(incoming, part);
    for (;;) {
      const bytes = incoming.early.get(incoming.next);
      incoming.early.delete(incoming.next);
      const next = bytes === undefined ? null : decodePart(bytes);
      if (next === null || incoming.ended !== null) return;
      this.#take(incoming, next);
    }
  }

  #begin(
    from: string,
    key: string,
    { transfer, group, incarnation }: { transfer: number; group: number; incarnation: number },
    message: Message,
  ): Incoming | null {
    const before = this.#incoming.get(key);
    // Of two leaders' transfers the later leader's goes on.
    if (before !== undefined && before.ended === null && before.term > message.term) return null;
    if (before !== undefined) this.#refuse(key, before);
    if (this.status.receiving >= this.#transfersMax) return null;
    const replica = this.#hooks.receiver(group, incarnation, message);
    let staging: Staging | null = null;
    if (replica === null) return null;
    this.#hooks.contained(replica, () => {
      staging = replica.stage();
    });
    if (staging === null) return null;
    const incoming: Incoming = {
      from,
      transfer,
      term: message.term,
      replica,
      staging,
      next: 0,
      stored: 0,
      chain: 0,
      early: new Map(),
      ended: null,
      progressAt: this.#hooks.now(),
    };
    this.#incoming.set(key, incoming);
    return incoming;
  }

  /** The next part, if its rows and all before it are as they were sent. */
  #take(incoming: Incoming, part: NonNullable<ReturnType<typeof decodePart>>): void {
    if (chainOf(incoming.chain, part.rows) !== part.chain) return;
    const { replica, staging, from, transfer } = incoming;
    const rows = decodeRows(part.rows);
    incoming.next += 1;
    incoming.chain = part.chain;
    this.#hooks.contained(replica, () =>
      staging.add(rows, (error) => {
        if (incoming.ended !== null) return;
        if (error !== null) {
          // The next commit of the environment tells the host what is wrong with it.
          incoming.ended = "refused";
          replica.discard(staging);
          return this.#acknowledge(from, transfer, 0, false);
        }
        incoming.stored += 1;
        incoming.progressAt = this.#hooks.now();
        if (part.last && part.message !== null) {
          incoming.ended = "offered";
          this.#hooks.received(replica, part.message, staging);
        }
        this.#acknowledge(from, transfer, incoming.stored, true);
      }),
    );
    if (replica.halted !== null) incoming.ended = "refused";
  }

  #acknowledge(node: string, transfer: number, stored: number, ok: boolean): void {
    this.#hooks.send(node, ItemKind.snapshotAck, encodeAck(transfer, stored, ok));
  }

  #refuse(key: string, incoming: Incoming): void {
    this.#incoming.delete(key);
    incoming.early.clear();
    if (incoming.ended !== null) return;
    incoming.ended = "refused";
    this.#hooks.contained(incoming.replica, () => incoming.replica.discard(incoming.staging));
  }

  expire(now: number): void {
    for (const [transfer, outgoing] of this.#outgoing) {
      const { replica, unacknowledged } = outgoing;
      const isOver =
        now - outgoing.progressAt > STALL_MS || replica.halted !== null || !replica.raft.isLeader;
      if (isOver) {
        this.#end(transfer, false);
        continue;
      }
      if (unacknowledged.length === 0 || now - outgoing.sentAt < RESEND_MS) continue;
      outgoing.sentAt = now;
      // Where one does not go the next does not either.
      for (const part of unacknowledged) if (!this.#transmit(transfer, outgoing, part)) break;
    }
    for (const [key, incoming] of this.#incoming) {
      if (now - incoming.progressAt > 2 * STALL_MS || incoming.replica.halted !== null)
        this.#refuse(key, incoming);
    }
  }

  /** The replica goes away: nothing of it is sent or received any more. */
  forget(replica: Replica): void {
    for (const [transfer, outgoing] of this.#outgoing) {
      if (outgoing.replica !== replica) continue;
      this.#outgoing.delete(transfer);
      outgoing.view.close();
    }
    for (const [key, incoming] of this.#incoming)
      if (incoming.replica === replica) this.#refuse(key, incoming);
  }
}

/** Always at least one part, and the last one says so. */
function* partsOf(view: ReplicaSnapshot, bytesMax: number): Generator<PartRows, undefined> {
  let rows: (readonly [string, string])[] = [];
  let bytes = 0;
  for (const row of view.rows()) {
    if (bytes >= bytesMax) {
      yield { bytes: encodeRows(rows), last: false };
      rows = [];
      bytes = 0;
    }
    rows.push(row);
    bytes += row[0].length + row[1].length;
  }
  yield { bytes: encodeRows(rows), last: true };
}
