/**
 * Bytes of the host: what a journal record holds, and what a frame between nodes holds. Raft's own parts are encoded by
 * raft/codec.ts, the same way on disk and on the wire.
 */
import { ByteReader, ByteWriter } from "../lib/bytes.ts";
import { crc32Table } from "../lib/crc32.ts";
import {
  decodeEntry,
  decodeMessage,
  encodeEntry,
  encodeMessage,
  ENTRY_HEADER_BYTES,
} from "../raft/codec.ts";
import type { Entry, HardState, Message } from "../raft/types.ts";
import { metaFromBytes, metaToBytes } from "./replica.ts";
import type { ReplicaMeta } from "./group_log.ts";
import type { NodeNews } from "./versions.ts";

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
  let size = hard === null ? 7 : 31;
  for (const entry of entries) size += ENTRY_HEADER_BYTES + entry.data.length;
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

/**
 * First byte of an item of a frame. A frame is items, each with its length before it. 4 and 5 were the parts of snapshots
 * and their acknowledgements before these had checksums.
 */
export const ItemKind = {
  raft: 1,
  heartbeat: 2,
  rpc: 3,
  snapshot: 14,
  snapshotAck: 15,
  /** Beside heartbeats, once there was an unsafe recovery: the incarnation of `_system`. */
  recovered: 16,
} as const;

export function recoveredItem(incarnation: number): Uint8Array {
  const writer = new ByteWriter(4);
  writer.u32(incarnation);
  return writer.view();
}

export function recoveredIncarnation(item: Uint8Array): number {
  return new ByteReader(item).u32();
}

export function raftItem(group: number, incarnation: number, message: Message): Uint8Array {
  const writer = new ByteWriter(128);
  writeRaftItem(writer, group, incarnation, message);
  return writer.view();
}

function writeRaftItem(
  writer: ByteWriter,
  group: number,
  incarnation: number,
  message: Message,
): void {
  writer.u53(group);
  writer.u32(incarnation);
  encodeMessage(writer, message);
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

/** Memory of a frame that is kept for the next one. */
const FRAME_BYTES_KEPT = 1024 * 1024;

/** Collects items for one peer and lane until they leave as one frame. */
export class FrameWriter {
  #writer = new ByteWriter(4096);
  #items = 0;
  /** The frame was taken: the next item begins another one in its place. */
  #taken = false;

  get empty(): boolean {
    return this.#items === 0;
  }

  get bytes(): number {
    return this.#items === 0 ? 0 : this.#writer.length;
  }

  add(kind: number, item: Uint8Array): void {
    const writer = this.#begin(kind);
    writer.u32(item.length);
    writer.bytes(item);
  }

  /** The same as `add` of a `raftItem`, which is written in place. */
  addRaft(group: number, incarnation: number, message: Message): void {
    const writer = this.#begin(ItemKind.raft);
    const at = writer.length;
    writer.u32(0);
    writeRaftItem(writer, group, incarnation, message);
    writer.patchU32(at, writer.length - at - 4);
  }

  /** The frame's bytes, valid until the next item. */
  take(): Uint8Array {
    this.#items = 0;
    this.#taken = true;
    return this.#writer.view();
  }

  #begin(kind: number): ByteWriter {
    if (this.#taken) {
      this.#taken = false;
      if (this.#writer.length > FRAME_BYTES_KEPT) this.#writer = new ByteWriter(4096);
      else this.#writer.clear();
    }
    this.#items += 1;
    this.#writer.u8(kind);
    return this.#writer;
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

// --- heartbeats between nodes --------------------------------------------------------------------------------------------

/** When a heartbeat left, by both clocks of its sender: whole µs from the monotonic clock's origin, and ms since 1970. */
export interface SentAt {
  readonly boot: number;
  readonly monotonicUs: number;
  readonly wallMs: number;
}

export interface Heartbeat {
  readonly sent: Omit<SentAt, "boot">;
  /** The epoch in which its sender supports the receiver, 0 in none; and the receiver's newest heartbeat that it heard. */
  readonly epoch: number;
  readonly echo: SentAt | null;
  /** Null from nodes that say nothing of the kind. */
  readonly news: NodeNews | null;
}

/** In the place of a number of leaders: none are to be added. */
const TAKES_NO_LEADERS = 0xffff_ffff;
const VERSION_BYTES_MAX = 64;

export function encodeHeartbeat({ sent, epoch, echo, news }: Heartbeat): Uint8Array {
  const writer = new ByteWriter(128);
  writer.u53(sent.monotonicUs);
  writer.u53(sent.wallMs);
  writer.u53(epoch);
  writer.u53(echo?.boot ?? 0);
  writer.u53(echo?.monotonicUs ?? 0);
  writer.u53(echo?.wallMs ?? 0);
  if (news === null) return writer.view();
  writer.u32(news.levels.min);
  writer.u32(news.levels.max);
  writer.u32(news.level);
  writer.u32(news.leaders ?? TAKES_NO_LEADERS);
  const version = utf8.encode(news.version).subarray(0, VERSION_BYTES_MAX);
  writer.u16(version.length);
  writer.bytes(version);
  return writer.view();
}

/** Null: a sign of life and no more, as from nodes that know of no leases. What a newer node adds is left alone. */
export function decodeHeartbeat(item: Uint8Array): Heartbeat | null {
  if (item.length === 0) return null;
  const reader = new ByteReader(item);
  const sent = { monotonicUs: reader.u53(), wallMs: reader.u53() };
  const epoch = reader.u53();
  const echo = { boot: reader.u53(), monotonicUs: reader.u53(), wallMs: reader.u53() };
  const beat = { sent, epoch, echo: echo.boot === 0 ? null : echo };
  if (reader.remaining === 0) return { ...beat, news: null };
  const levels = { min: reader.u32(), max: reader.u32() };
  const level = reader.u32();
  const leaders = reader.u32();
  const version = new TextDecoder().decode(reader.view(reader.u16()));
  const news = { version, levels, level, leaders: leaders === TAKES_NO_LEADERS ? null : leaders };
  return { ...beat, news };
}

// --- snapshots -----------------------------------------------------------------------------------------------------------

/** One part of a replica's state on its way to a peer. */
export interface SnapshotPart {
  readonly transfer: number;
  readonly group: number;
  readonly incarnation: number;
  readonly to: number;
  readonly part: number;
  readonly last: boolean;
  /** Raft's message, on the first part and on the last: leader and term may be others by then. */
  readonly message: Message | null;
  /** Over the checksums of all parts up to this one, so that none is missing, doubled or another transfer's. */
  readonly chain: number;
  readonly rows: readonly (readonly [key: string, value: string])[];
}

const utf8 = new TextEncoder();
/** Rows come from a peer that read them from its own disk: what is not UTF-8 there is damage. */
const strictUtf8 = new TextDecoder("utf-8", { fatal: true });

/** Rows as bytes: number, then for each the lengths of key and value and both. */
export function encodeRows(rows: readonly (readonly [key: string, value: string])[]): Uint8Array {
  let size = 4;
  for (const [key, value] of rows) size += 6 + key.length + value.length;
  const writer = new ByteWriter(size);
  writer.u32(rows.length);
  for (const [key, value] of rows) {
    const [keyBytes, valueBytes] = [utf8.encode(key), utf8.encode(value)];
    writer.u16(keyBytes.length);
    writer.u32(valueBytes.length);
    writer.bytes(keyBytes);
    writer.bytes(valueBytes);
  }
  return writer.view();
}

export function decodeRows(bytes: Uint8Array): [key: string, value: string][] {
  const reader = new ByteReader(bytes);
  const rows: [string, string][] = [];
  for (let count = reader.u32(); count > 0; count--) {
    const keyLength = reader.u16();
    const valueLength = reader.u32();
    const key = strictUtf8.decode(reader.view(keyLength));
    rows.push([key, strictUtf8.decode(reader.view(valueLength))]);
  }
  reader.end();
  return rows;
}

/** The next link: of the parts before this one and of this one's rows. */
export function chainOf(before: number, rows: Uint8Array): number {
  const link = new ByteWriter(8);
  link.u32(before);
  link.u32(crc32Table(rows, 0, rows.length));
  return crc32Table(link.view(), 0, 8);
}

/** @param rows as `encodeRows` gave them */
export function encodePart(part: Omit<SnapshotPart, "rows">, rows: Uint8Array): Uint8Array {
  const writer = new ByteWriter(rows.length + 256);
  writer.u53(part.transfer);
  writer.u53(part.group);
  writer.u32(part.incarnation);
  writer.u53(part.to);
  writer.u32(part.part);
  writer.u32(part.chain);
  writer.u8((part.last ? 1 : 0) | (part.message === null ? 0 : 2));
  if (part.message !== null) encodeMessage(writer, part.message);
  // Of the head: a part that went to another transfer or place would be worse than one that is lost.
  writer.u32(crc32Table(writer.view(), 0, writer.length));
  writer.bytes(rows);
  return writer.view();
}

/** Null: not as it was sent. `rows` is a view; its bytes are the next link's. */
export function decodePart(
  bytes: Uint8Array,
): (Omit<SnapshotPart, "rows"> & { readonly rows: Uint8Array }) | null {
  const reader = new ByteReader(bytes);
  const transfer = reader.u53();
  const group = reader.u53();
  const incarnation = reader.u32();
  const to = reader.u53();
  const part = reader.u32();
  const chain = reader.u32();
  const flags = reader.u8();
  const message = (flags & 2) === 0 ? null : decodeMessage(reader);
  const headEnd = reader.offset;
  if (reader.u32() !== crc32Table(bytes, 0, headEnd)) return null;
  const last = (flags & 1) !== 0;
  const rows = reader.view(reader.remaining);
  return { transfer, group, incarnation, to, part, last, message, chain, rows };
}

/** `stored`: all parts below this number are; with a refusal, the part that was refused. */
export function encodeAck(transfer: number, stored: number, ok: boolean): Uint8Array {
  const writer = new ByteWriter(16);
  writer.u53(transfer);
  writer.u32(stored);
  writer.u8(ok ? 1 : 0);
  return writer.view();
}

export function decodeAck(bytes: Uint8Array): { transfer: number; stored: number; ok: boolean } {
  const reader = new ByteReader(bytes);
  return { transfer: reader.u53(), stored: reader.u32(), ok: reader.u8() === 1 };
}
