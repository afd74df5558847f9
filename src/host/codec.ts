/**
 * Bytes of the host: what a journal record holds, and what a frame between nodes holds. Raft's own parts are encoded by
 * raft/codec.ts, the same way on disk and on the wire.
 */
import { ByteReader, ByteWriter } from "../lib/bytes.ts";
import { decodeEntry, decodeMessage, encodeEntry, encodeMessage } from "../raft/codec.ts";
import type { Entry, HardState, Message } from "../raft/types.ts";
import { metaFromBytes, metaToBytes } from "./replica.ts";
import type { ReplicaMeta } from "./group_log.ts";

// --- journal records ---------------------------------------------------------------------------------------------------

const CREATE = 1;
const APPEND = 2;
const END = 0xa5;
const HAS_HARD_STATE = 1;

export type JournalPayload =
  /** The first record of a replica: who it is, until its environment says so itself. */
  | { readonly kind: "create"; readonly meta: ReplicaMeta }
  | {
      readonly kind: "append";
      readonly hard: HardState | null;
      readonly entries: readonly Entry[];
    };

export function createRecord(meta: ReplicaMeta): Uint8Array {
  const bytes = metaToBytes(meta);
  const writer = new ByteWriter(bytes.length + 1);
  writer.u8(CREATE);
  writer.bytes(bytes);
  return writer.view();
}

export function appendRecord(hard: HardState | null, entries: readonly Entry[]): Uint8Array {
  let size = 32;
  for (const entry of entries) size += entry.data.length + 32;
  const writer = new ByteWriter(size);
  writer.u8(APPEND);
  writer.u8(hard === null ? 0 : HAS_HARD_STATE);
  if (hard !== null) {
    writer.u53(hard.term);
    writer.u53(hard.vote);
    writer.u53(hard.commit);
  }
  writer.u32(entries.length);
  for (const entry of entries) encodeEntry(writer, entry);
  // The journal takes a record that ends in zeros for one whose end was never written, should its checksum fail.
  writer.u8(END);
  return writer.view();
}

export function parseRecord(payload: Uint8Array): JournalPayload {
  const reader = new ByteReader(payload);
  if (reader.u8() === CREATE)
    return { kind: "create", meta: metaFromBytes(reader.view(reader.remaining)) };
  const flags = reader.u8();
  const hard =
    (flags & HAS_HARD_STATE) === 0
      ? null
      : { term: reader.u53(), vote: reader.u53(), commit: reader.u53() };
  const entries: Entry[] = [];
  for (let count = reader.u32(); count > 0; count--) entries.push(decodeEntry(reader));
  return { kind: "append", hard, entries };
}

// --- frames between nodes ------------------------------------------------------------------------------------------------

/** First byte of an item of a frame. A frame is items, each with its length before it. */
export const ItemKind = { raft: 1, heartbeat: 2, rpc: 3, snapshot: 4, snapshotAck: 5 } as const;

export function raftItem(group: number, incarnation: number, message: Message): Uint8Array {
  const writer = new ByteWriter(128);
  writer.u53(group);
  writer.u32(incarnation);
  encodeMessage(writer, message);
  return writer.view();
}

export function parseRaftItem(bytes: Uint8Array): {
  group: number;
  incarnation: number;
  message: Message;
} {
  const reader = new ByteReader(bytes);
  const group = reader.u53();
  const incarnation = reader.u32();
  return { group, incarnation, message: decodeMessage(reader) };
}

/** Collects items for one peer and lane until they leave as one frame. */
export class FrameWriter {
  #writer = new ByteWriter(4096);
  #items = 0;

  get empty(): boolean {
    return this.#items === 0;
  }

  get bytes(): number {
    return this.#writer.length;
  }

  add(kind: number, item: Uint8Array): void {
    this.#writer.u8(kind);
    this.#writer.u32(item.length);
    this.#writer.bytes(item);
    this.#items += 1;
  }

  /** The frame's bytes, valid until the next `add`. */
  take(): Uint8Array {
    const frame = this.#writer.view();
    this.#writer = new ByteWriter(4096);
    this.#items = 0;
    return frame;
  }
}

/** Items of a frame, as views into it. A malformed frame throws where it stops making sense. */
export function* frameItems(frame: Uint8Array): Generator<{ kind: number; item: Uint8Array }> {
  const reader = new ByteReader(frame);
  while (reader.remaining > 0) {
    const kind = reader.u8();
    const length = reader.u32();
    yield { kind, item: reader.view(length) };
  }
}

// --- snapshots -----------------------------------------------------------------------------------------------------------

/** One part of a replica's state on its way to a peer. The first carries Raft's message. */
export interface SnapshotChunk {
  readonly transfer: number;
  readonly group: number;
  readonly incarnation: number;
  readonly to: number;
  readonly part: number;
  readonly last: boolean;
  readonly message: Message | null;
  readonly rows: readonly (readonly [key: string, value: string])[];
}

export function encodeChunk(chunk: SnapshotChunk): Uint8Array {
  const rows = new TextEncoder().encode(JSON.stringify(chunk.rows));
  const writer = new ByteWriter(rows.length + 256);
  writer.u53(chunk.transfer);
  writer.u53(chunk.group);
  writer.u32(chunk.incarnation);
  writer.u53(chunk.to);
  writer.u32(chunk.part);
  writer.u8((chunk.last ? 1 : 0) | (chunk.message === null ? 0 : 2));
  if (chunk.message !== null) encodeMessage(writer, chunk.message);
  writer.bytes(rows);
  return writer.view();
}

export function decodeChunk(bytes: Uint8Array): SnapshotChunk {
  const reader = new ByteReader(bytes);
  const transfer = reader.u53();
  const group = reader.u53();
  const incarnation = reader.u32();
  const to = reader.u53();
  const part = reader.u32();
  const flags = reader.u8();
  const message = (flags & 2) === 0 ? null : decodeMessage(reader);
  const rows = JSON.parse(new TextDecoder().decode(reader.view(reader.remaining))) as [
    string,
    string,
  ][];
  return { transfer, group, incarnation, to, part, last: (flags & 1) !== 0, message, rows };
}

export function encodeAck(transfer: number, part: number, ok: boolean): Uint8Array {
  const writer = new ByteWriter(16);
  writer.u53(transfer);
  writer.u32(part);
  writer.u8(ok ? 1 : 0);
  return writer.view();
}

export function decodeAck(bytes: Uint8Array): { transfer: number; part: number; ok: boolean } {
  const reader = new ByteReader(bytes);
  return { transfer: reader.u53(), part: reader.u32(), ok: reader.u8() === 1 };
}
