/**
 * Entries and messages as bytes, for the journal and the wire alike. Fixed layout, little-endian.
 *
 * A message writes only the fields that are not zero, under a bit mask: a heartbeat is about 30 bytes. Whatever does
 * not decode to exactly one well-formed value is refused with `MalformedError`, before it can reach the core.
 */
import { ByteReader, ByteWriter, MalformedError } from "../lib/bytes.ts";
import {
  EntryKind,
  MessageType,
  NO_ENTRIES,
  type ConfState,
  type Entry,
  type Message,
  type ReplicaId,
  type SnapshotMeta,
} from "./types.ts";

/** Index, term, kind and length. */
/** Of an encoded entry, beside its data. */
export const ENTRY_HEADER_BYTES = 8 + 8 + 1 + 4;
const TYPE_MAX = MessageType.propose;

const HAS_TERM = 1 << 0;
const HAS_LOG_TERM = 1 << 1;
const HAS_INDEX = 1 << 2;
const HAS_COMMIT = 1 << 3;
const HAS_REJECT_HINT = 1 << 4;
const HAS_CONTEXT = 1 << 5;
const HAS_ENTRIES = 1 << 6;
const HAS_SNAPSHOT = 1 << 7;
const REJECT = 1 << 8;
const ALL = (1 << 9) - 1;

export function encodeEntry(writer: ByteWriter, entry: Entry): void {
  writer.u53(entry.index);
  writer.u53(entry.term);
  writer.u8(entry.kind);
  writer.u32(entry.data.length);
  writer.bytes(entry.data);
}

/** The data is copied: an entry outlives the frame it came in. */
export function decodeEntry(reader: ByteReader): Entry {
  const index = reader.u53();
  const term = reader.u53();
  const kind = reader.u8();
  if (kind !== EntryKind.normal && kind !== EntryKind.confChange) {
    throw new MalformedError(`Unknown kind of entry: ${kind}`);
  }
  return { index, term, kind, data: reader.copy(reader.u32()) };
}

export function entryToBytes(entry: Entry): Uint8Array {
  const writer = new ByteWriter(ENTRY_HEADER_BYTES + entry.data.length);
  encodeEntry(writer, entry);
  return writer.view();
}

export function entryFromBytes(bytes: Uint8Array): Entry {
  const reader = new ByteReader(bytes);
  const entry = decodeEntry(reader);
  reader.end();
  return entry;
}

export function encodeMessage(writer: ByteWriter, m: Message): void {
  let mask = 0;
  if (m.term !== 0) mask |= HAS_TERM;
  if (m.logTerm !== 0) mask |= HAS_LOG_TERM;
  if (m.index !== 0) mask |= HAS_INDEX;
  if (m.commit !== 0) mask |= HAS_COMMIT;
  if (m.rejectHint !== 0) mask |= HAS_REJECT_HINT;
  if (m.context !== 0) mask |= HAS_CONTEXT;
  if (m.entries.length !== 0) mask |= HAS_ENTRIES;
  if (m.snapshot !== null) mask |= HAS_SNAPSHOT;
  if (m.reject) mask |= REJECT;
  writer.u8(m.type);
  writer.u16(mask);
  writer.u53(m.to);
  writer.u53(m.from);
  if (m.term !== 0) writer.u53(m.term);
  if (m.logTerm !== 0) writer.u53(m.logTerm);
  if (m.index !== 0) writer.u53(m.index);
  if (m.commit !== 0) writer.u53(m.commit);
  if (m.rejectHint !== 0) writer.u53(m.rejectHint);
  if (m.context !== 0) writer.u53(m.context);
  if (m.entries.length !== 0) {
    writer.u32(m.entries.length);
    for (const entry of m.entries) encodeEntry(writer, entry);
  }
  if (m.snapshot !== null) encodeSnapshotMeta(writer, m.snapshot);
}

export function decodeMessage(reader: ByteReader): Message {
  const type = reader.u8();
  if (type > TYPE_MAX) throw new MalformedError(`Unknown type of message: ${type}`);
  const mask = reader.u16();
  if ((mask & ~ALL) !== 0) throw new MalformedError(`Unknown fields in a message: ${mask}`);
  return {
    type: type as MessageType,
    to: reader.u53(),
    from: reader.u53(),
    term: (mask & HAS_TERM) === 0 ? 0 : reader.u53(),
    logTerm: (mask & HAS_LOG_TERM) === 0 ? 0 : reader.u53(),
    index: (mask & HAS_INDEX) === 0 ? 0 : reader.u53(),
    commit: (mask & HAS_COMMIT) === 0 ? 0 : reader.u53(),
    reject: (mask & REJECT) !== 0,
    rejectHint: (mask & HAS_REJECT_HINT) === 0 ? 0 : reader.u53(),
    context: (mask & HAS_CONTEXT) === 0 ? 0 : reader.u53(),
    entries: (mask & HAS_ENTRIES) === 0 ? NO_ENTRIES : decodeEntries(reader),
    snapshot: (mask & HAS_SNAPSHOT) === 0 ? null : decodeSnapshotMeta(reader),
  };
}

function decodeEntries(reader: ByteReader): Entry[] {
  const count = reader.u32();
  // A count that the bytes cannot hold must not become an allocation.
  if (count * ENTRY_HEADER_BYTES > reader.remaining) {
    throw new MalformedError(`More entries than bytes: ${count}`);
  }
  const entries: Entry[] = [];
  for (let i = 0; i < count; i++) entries.push(decodeEntry(reader));
  return entries;
}

function encodeSnapshotMeta(writer: ByteWriter, snapshot: SnapshotMeta): void {
  writer.u53(snapshot.index);
  writer.u53(snapshot.term);
  const { voters, votersOutgoing, learners, learnersNext, autoLeave } = snapshot.confState;
  writer.u8(autoLeave ? 1 : 0);
  encodeIds(writer, voters);
  encodeIds(writer, votersOutgoing);
  encodeIds(writer, learners);
  encodeIds(writer, learnersNext);
}

function decodeSnapshotMeta(reader: ByteReader): SnapshotMeta {
  const index = reader.u53();
  const term = reader.u53();
  const leave = reader.u8();
  if (leave > 1) throw new MalformedError(`Not a boolean: ${leave}`);
  const confState: ConfState = {
    voters: decodeIds(reader),
    votersOutgoing: decodeIds(reader),
    learners: decodeIds(reader),
    learnersNext: decodeIds(reader),
    autoLeave: leave === 1,
  };
  return { index, term, confState };
}

function encodeIds(writer: ByteWriter, ids: readonly ReplicaId[]): void {
  writer.u16(ids.length);
  for (const id of ids) writer.u53(id);
}

function decodeIds(reader: ByteReader): ReplicaId[] {
  const count = reader.u16();
  if (count * 8 > reader.remaining) throw new MalformedError(`More ids than bytes: ${count}`);
  const ids: ReplicaId[] = [];
  for (let i = 0; i < count; i++) ids.push(reader.u53());
  return ids;
}
