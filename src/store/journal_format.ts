/**
 * The journal's bytes, version 2: what a segment file looks like, and how one is read back. Pure; the journal writes
 * with it, the journal's opening and the inspection of a directory read with it. All numbers are little-endian.
 *
 *   segment   64-byte header, then records, then zeros (space that was allocated and not yet used)
 *   header    0 "cfxjrnl\n"   8 u32 version   12 u32 zero   16 u64 segment number   24 u64 first sequence
 *             32 u64 end of the previous segment's records (0 = there was none)   40 u32 salt   44 zeros
 *             60 u32 crc of 0 … 60
 *   record    0 u32 crc of 4 … 32, xor the segment's salt   4 u32 payload length   8 u32 crc of the payload
 *             12 u32 offset of this record from the start of the write that carried it
 *             16 u64 sequence   24 u56 group   31 u8 kind   32 payload, padded with zeros to a multiple of 8
 *   kinds     1 data: the payload is the host's   2 release: pairs of u64 group, u64 sequence
 *             3 live: the same pairs, of all groups with unreleased records in segments before this one and the newest of
 *             them; it stands right behind the header, in a write of its own, with the sequence before the segment's first
 *
 * Version 1 had no kind 3, and is read. A segment need not have one: then nothing is said of who has records before it.
 *
 * Why the header of a record has a checksum of its own: a payload that rotted still says whose it was, so one group
 * stops and its neighbours do not.
 * Why it knows its offset in the write: only the last write of a journal can have been cut by a crash, since each write
 * starts after the one before was durable. The offset of any surviving record gives that write's beginning, also when
 * the disk stored its pages out of order; damage before it is damage, whatever it looks like.
 * Why the salt: after damage the reader looks for the next record inside bytes that customers may have chosen. A payload
 * that spells a record does not know the salt.
 */
import { assert, assertSafeInteger } from "../lib/assert.ts";
import { crc32Table } from "../lib/crc32.ts";
import { crc32 } from "./crc32.ts";

export const formatVersion = 2;
export const segmentHeaderBytes = 64;
export const recordHeaderBytes = 32;

export const recordKinds = { data: 1, release: 2, live: 3 } as const;
export type RecordKind = (typeof recordKinds)[keyof typeof recordKinds];

const magic = Uint8Array.from("cfxjrnl\n", (char) => char.charCodeAt(0));
/** The unit a disk writes whole or not at all. Larger real ones only make larger holes. */
const sectorBytes = 512;
/** A step of a reading ends with so many records, or as soon as it has passed so many bytes: some milliseconds. */
const stepRecords = 4096;
const stepBytes = 1024 * 1024;
/** Room for the places of so many, to begin with. */
const recordsAtFirst = 1024;
const twoTo32 = 0x1_0000_0000;

export function segmentName(number: number): string {
  return `${String(number).padStart(12, "0")}.cfxj`;
}

/** Undefined for a file that is not a segment. */
export function segmentNumber(name: string): number | undefined {
  const match = /^(\d{12})\.cfxj$/.exec(name);
  return match === null ? undefined : Number(match[1]);
}

// --- writing -----------------------------------------------------------------------------------------------------

export interface SegmentHeader {
  readonly number: number;
  readonly firstSequence: number;
  readonly previousEnd: number;
  readonly salt: number;
}

export function encodeSegmentHeader(header: SegmentHeader): Uint8Array {
  const bytes = new Uint8Array(segmentHeaderBytes);
  const view = new DataView(bytes.buffer);
  bytes.set(magic, 0);
  view.setUint32(8, formatVersion, true);
  putUint64(view, 16, header.number);
  putUint64(view, 24, header.firstSequence);
  putUint64(view, 32, header.previousEnd);
  view.setUint32(40, header.salt, true);
  view.setUint32(60, crc32Table(bytes, 0, 60), true);
  return bytes;
}

/** What a record of this payload takes on disk. */
export function recordBytes(payloadBytes: number): number {
  return recordHeaderBytes + align8(payloadBytes);
}

/** Puts the header in front of a payload that stands already at `at + 32`, and zeros behind it. */
export function sealRecord(
  target: { readonly bytes: Uint8Array; readonly view: DataView },
  at: number,
  record: { kind: RecordKind; group: number; sequence: number; payloadBytes: number },
  salt: number,
): void {
  const { bytes, view } = target;
  const payloadStart = at + recordHeaderBytes;
  const payloadEnd = payloadStart + record.payloadBytes;
  bytes.fill(0, payloadEnd, payloadStart + align8(record.payloadBytes));
  view.setUint32(at + 4, record.payloadBytes, true);
  view.setUint32(at + 8, crc32(bytes, payloadStart, payloadEnd), true);
  view.setUint32(at + 12, at, true);
  putUint64(view, at + 16, record.sequence);
  view.setUint32(at + 24, record.group >>> 0, true);
  // The kind stands in the top byte: the last byte of a header is never zero, so a header cut short shows.
  view.setUint32(at + 28, Math.floor(record.group / twoTo32) + record.kind * 0x1_00_00_00, true);
  view.setUint32(at, (crc32Table(bytes, at + 4, at + recordHeaderBytes) ^ salt) >>> 0, true);
}

/** The payload of kinds 2 and 3. */
export function encodePairs(
  target: { readonly bytes: Uint8Array; readonly view: DataView },
  at: number,
  pairs: Iterable<readonly [group: number, sequence: number]>,
): void {
  let position = at + recordHeaderBytes;
  for (const [group, sequence] of pairs) {
    putUint64(target.view, position, group);
    putUint64(target.view, position + 8, sequence);
    position += 16;
  }
}

export function* decodePairs(
  payload: Uint8Array,
): Generator<readonly [group: number, sequence: number]> {
  const view = viewOf(payload);
  for (let at = 0; at + 16 <= payload.byteLength; at += 16)
    yield [getUint64(view, at), getUint64(view, at + 8)];
}

// --- reading -----------------------------------------------------------------------------------------------------

export interface ReadRecord {
  readonly at: number;
  readonly kind: RecordKind;
  readonly group: number;
  readonly sequence: number;
  readonly payloadBytes: number;
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** What the header of a record that was found whole says. */
export function recordAt(view: DataView, at: number): ReadRecord {
  return {
    at,
    kind: kindOf(view, at),
    group: groupOf(view, at),
    sequence: sequenceOf(view, at),
    payloadBytes: payloadBytesOf(view, at),
  };
}

/** All of a segment, in order. */
export function* recordsIn(
  bytes: Uint8Array,
  { records }: Pick<ReadSegment, "records">,
): Generator<ReadRecord> {
  const view = viewOf(bytes);
  for (const at of records) yield recordAt(view, at);
}

export function payloadStart({ at }: Pick<ReadRecord, "at">): number {
  return at + recordHeaderBytes;
}

/** A view into the segment's bytes. */
export function payloadOf(
  bytes: Uint8Array,
  record: Pick<ReadRecord, "at" | "payloadBytes">,
): Uint8Array {
  const start = payloadStart(record);
  return bytes.subarray(start, start + record.payloadBytes);
}

function kindOf(view: DataView, at: number): RecordKind {
  return view.getUint8(at + 31) as RecordKind;
}

function groupOf(view: DataView, at: number): number {
  return view.getUint32(at + 24, true) + (view.getUint32(at + 28, true) & 0xff_ff_ff) * twoTo32;
}

function sequenceOf(view: DataView, at: number): number {
  return getUint64(view, at + 16);
}

function payloadBytesOf(view: DataView, at: number): number {
  return view.getUint32(at + 4, true);
}

/** A place that does not verify. */
export interface Damage {
  readonly at: number;
  readonly end: number;
  /** Null when not even the record's header could be read. */
  readonly record: {
    readonly group: number;
    readonly sequence: number;
    readonly kind: RecordKind;
  } | null;
  /** Sequences that may have stood here: after < lost < before. `before` is null at the end of the segment. */
  readonly after: number;
  readonly before: number | null;
}

export interface ReadSegment {
  /** Null when the header does not verify; records are found without it. */
  readonly header: SegmentHeader | null;
  /** Where the records begin, ascending; without the list of live groups. See `recordAt`. */
  readonly records: Uint32Array;
  /** Groups with unreleased records in segments before, and the newest of them; null when that is not said. */
  readonly live: ReadonlyMap<number, number> | null;
  readonly damage: readonly Damage[];
  /** Where the records end. */
  readonly end: number;
  /** Set when the last write was cut short: records from here on are no part of `records`. */
  readonly torn: { readonly at: number; readonly bytes: number } | null;
}

/** A segment written by a later version of this program. */
export class NewerFormatError extends Error {
  override readonly name = "NewerFormatError";
}

/** @param last whether a write may have been cut here, that is: no later segment exists */
export function readSegment(bytes: Uint8Array, name: string, last: boolean): ReadSegment {
  const reader = new SegmentReader(bytes, name, last);
  while (!reader.advance());
  return reader.result();
}

/** Reads a segment a step at a time, so that whoever has an event loop can give it back in between. */
export class SegmentReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #last: boolean;
  readonly #header: SegmentHeader | null;
  readonly #written: number;
  readonly #salt: number;
  readonly #damage: Damage[] = [];
  #live: ReadonlyMap<number, number> | null = null;
  #records = new Uint32Array(recordsAtFirst);
  #count = 0;
  #position = segmentHeaderBytes;
  #sequence: number;
  #lastWrite = segmentHeaderBytes;

  constructor(bytes: Uint8Array, name: string, last: boolean) {
    this.#bytes = bytes;
    this.#view = viewOf(bytes);
    this.#last = last;
    this.#header = readSegmentHeader(bytes, name);
    this.#written = lengthWithoutZeros(bytes);
    this.#salt = this.#header === null ? guessSalt(bytes, this.#view) : this.#header.salt;
    this.#sequence = this.#header === null ? -1 : this.#header.firstSequence - 1;
    this.#readList();
  }

  #readList(): void {
    const bytes = this.#bytes;
    const position = this.#position;
    if (!isRecordHeader(bytes, this.#view, position, this.#sequence - 1, this.#salt)) return;
    const list = recordAt(this.#view, position);
    if (list.kind !== recordKinds.live) return;
    const end = position + recordBytes(list.payloadBytes);
    if (hasPayload(bytes, this.#view, position))
      this.#live = new Map(decodePairs(payloadOf(bytes, list)));
    else
      this.#damage.push({
        at: position,
        end,
        record: { group: 0, sequence: list.sequence, kind: list.kind },
        after: list.sequence,
        before: list.sequence + 1,
      });
    this.#sequence = list.sequence;
    this.#position = end;
  }

  /** Reads on, at most `stepRecords` records or `stepBytes`. @returns whether all was read */
  advance(): boolean {
    const bytes = this.#bytes;
    const view = this.#view;
    const written = this.#written;
    const salt = this.#salt;
    let position = this.#position;
    let sequence = this.#sequence;
    let lastWrite = this.#lastWrite;
    const until = Math.min(written, position + stepBytes);
    const countMax = this.#count + stepRecords;
    while (position < until && this.#count < countMax) {
      if (!isRecordHeader(bytes, view, position, sequence, salt)) {
        const next = this.#nextHeader(position + 8, sequence);
        const before = next < written ? sequenceOf(view, next) : null;
        const end = before === null ? written : next;
        this.#damage.push({ at: position, end, record: null, after: sequence, before });
        position = before === null ? align8(written) : next;
        continue;
      }
      lastWrite = Math.max(lastWrite, position - view.getUint32(position + 12, true));
      sequence = sequenceOf(view, position);
      const end = position + recordBytes(payloadBytesOf(view, position));
      if (hasPayload(bytes, view, position)) this.#push(position);
      else
        this.#damage.push({
          at: position,
          end,
          record: { group: groupOf(view, position), sequence, kind: kindOf(view, position) },
          after: sequence - 1,
          before: sequence + 1,
        });
      position = end;
    }
    this.#position = position;
    this.#sequence = sequence;
    this.#lastWrite = lastWrite;
    return position >= written;
  }

  /** Behind damage; `written` where none follows. */
  #nextHeader(from: number, sequence: number): number {
    let next = from;
    while (
      next < this.#written &&
      !isRecordHeader(this.#bytes, this.#view, next, sequence, this.#salt)
    )
      next += 8;
    return Math.min(next, this.#written);
  }

  #push(position: number): void {
    if (this.#count === this.#records.length) {
      const grown = new Uint32Array(this.#count * 2);
      grown.set(this.#records);
      this.#records = grown;
    }
    this.#records[this.#count++] = position;
  }

  result(): ReadSegment {
    const bytes = this.#bytes;
    const header = this.#header;
    const live = this.#live;
    const damage = this.#damage;
    const lastWrite = this.#lastWrite;
    const records = this.#records.subarray(0, this.#count);
    const end = Math.min(this.#position, Math.max(bytes.byteLength, segmentHeaderBytes));
    if (!this.#last) return { header, records, live, damage, end, torn: null };
    const cut = damage.find((place) => place.at >= lastWrite && looksUnwritten(bytes, place));
    if (cut === undefined) return { header, records, live, damage, end, torn: null };
    return {
      header,
      records: records.filter((at) => at < cut.at),
      live,
      damage: damage.filter((place) => place.at < cut.at),
      end: cut.at,
      torn: { at: cut.at, bytes: this.#written - cut.at },
    };
  }
}

/** Whether anything but allocated space follows the segment's header. */
export function hasRecordBytes(bytes: Uint8Array): boolean {
  return lengthWithoutZeros(bytes) > segmentHeaderBytes;
}

export function readSegmentHeader(bytes: Uint8Array, name: string): SegmentHeader | null {
  if (bytes.byteLength < segmentHeaderBytes) return null;
  if (!magic.every((byte, at) => bytes[at] === byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, segmentHeaderBytes);
  if (view.getUint32(60, true) !== crc32Table(bytes, 0, 60)) return null;
  const version = view.getUint32(8, true);
  if (version > formatVersion)
    throw new NewerFormatError(
      `Cannot read journal segment ${name}: it has format version ${version}, this program knows up to ${formatVersion}; start the newer program`,
    );
  return {
    number: getUint64(view, 16),
    firstSequence: getUint64(view, 24),
    previousEnd: getUint64(view, 32),
    salt: view.getUint32(40, true),
  };
}

/** With the segment's header gone, the record that always stands behind it tells the salt it was written with. */
function guessSalt(bytes: Uint8Array, view: DataView): number {
  const at = segmentHeaderBytes;
  if (at + recordHeaderBytes > bytes.byteLength) return 0;
  return (view.getUint32(at, true) ^ crc32Table(bytes, at + 4, at + recordHeaderBytes)) >>> 0;
}

/**
 * Whether a record's header stands here whole. Cheap refusals first: looking for the next record after damage tries this at
 * every eighth byte.
 */
function isRecordHeader(
  bytes: Uint8Array,
  view: DataView,
  at: number,
  after: number,
  salt: number,
): boolean {
  if (at + recordHeaderBytes > bytes.byteLength) return false;
  const kind = bytes[at + 31];
  const isList = kind === recordKinds.live && at === segmentHeaderBytes;
  if (kind !== recordKinds.data && kind !== recordKinds.release && !isList) return false;
  // A payload that reaches past the end of the file was cut with the file; its header still says whose it was.
  const offsetInWrite = view.getUint32(at + 12, true);
  if (offsetInWrite % 8 !== 0 || offsetInWrite > at - segmentHeaderBytes) return false;
  const crc = (crc32Table(bytes, at + 4, at + recordHeaderBytes) ^ salt) >>> 0;
  return view.getUint32(at, true) === crc && sequenceOf(view, at) > after;
}

/** Whether the payload of a record whose header is whole is so too. */
function hasPayload(bytes: Uint8Array, view: DataView, at: number): boolean {
  const start = at + recordHeaderBytes;
  const end = start + payloadBytesOf(view, at);
  return end <= bytes.byteLength && crc32(bytes, start, end) === view.getUint32(at + 8, true);
}

/**
 * Whether a place that does not verify shows space that was never written, as a write cut by a crash leaves it: zeros
 * at its end, or a hole the size of a sector. Bytes that are all there and wrong are damage, not a torn write.
 */
function looksUnwritten(bytes: Uint8Array, place: Damage): boolean {
  const start = place.record === null ? place.at : place.at + recordHeaderBytes;
  const end = place.record === null ? place.at + recordHeaderBytes : place.end;
  if (end > bytes.byteLength) return true;
  // The padding behind a payload is zero in any case.
  const lastByte = place.record === null ? end - 1 : start + payloadLength(bytes, place.at) - 1;
  if (bytes[lastByte] === 0) return true;
  for (let from = start; from < end;) {
    const to = Math.min(end, from - (from % sectorBytes) + sectorBytes);
    if (isZero(bytes, from, to)) return true;
    from = to;
  }
  return false;
}

function payloadLength(bytes: Uint8Array, at: number): number {
  return payloadBytesOf(viewOf(bytes), at);
}

function isZero(bytes: Uint8Array, start: number, end: number): boolean {
  for (let at = start; at < end; at++) if (bytes[at] !== 0) return false;
  return true;
}

const zeros = new Uint8Array(64 * 1024);

function lengthWithoutZeros(bytes: Uint8Array): number {
  let end = bytes.byteLength;
  // Allocated space is most of a young segment: whole blocks by a native comparison, the rest by hand.
  while (end >= zeros.byteLength) {
    const block = bytes.subarray(end - zeros.byteLength, end);
    if (Buffer.compare(block, zeros) !== 0) break;
    end -= zeros.byteLength;
  }
  while (end > 0 && bytes[end - 1] === 0) end--;
  return end;
}

function align8(length: number): number {
  return Math.ceil(length / 8) * 8;
}

function putUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / twoTo32), true);
}

function getUint64(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * twoTo32;
}

export function assertGroup(group: number): void {
  assertSafeInteger(group, "Group");
  assert(group > 0, "Group must be above zero");
}
