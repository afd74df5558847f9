/**
 * The node's journal: one append-only sequence of records of all groups, made durable by one write per turn.
 *
 * What must stay true:
 * - `done` is called only after the bytes are on the disk, in the order of the appends;
 * - one write at a time: the next starts when the last one ends, with everything appended meanwhile (no timers);
 * - an error of the disk ends it: nothing is written, acknowledged or retried afterwards (a failed fsync may have thrown
 *   the pages away, so a later success would prove nothing);
 * - segments are deleted oldest first, once all their records are released, and never the newest: so a gap in their
 *   numbers is damage, and sequences go on growing over restarts;
 * - segments of earlier openings are only read. Each opening starts a segment of its own.
 *
 * Callbacks only, no promises or timers, except in `close`: the simulator runs this very code over a disk of its own.
 * Layout: journal_format.ts. Why so: DESIGN.md.
 */
import { Problem } from "../api/problems.ts";
import type { Journal, JournalRecord, JournalRecovery, JournalSequence } from "../host/ports.ts";
import { assert } from "../lib/assert.ts";
import {
  assertGroup,
  decodePairs,
  encodePairs,
  encodeSegmentHeader,
  hasRecordBytes,
  payloadOf,
  payloadStart,
  readSegment,
  readSegmentHeader,
  recordBytes,
  recordHeaderBytes,
  recordKinds,
  sealRecord,
  segmentHeaderBytes,
  segmentName,
  segmentNumber,
} from "./journal_format.ts";
import type { Damage, ReadRecord, ReadSegment } from "./journal_format.ts";

// --- port --------------------------------------------------------------------------------------------------------

/** `done` of a port call; the error of a disk is never retried. */
export type DiskDone = (error: Error | null) => void;

/** A file that is being written. One call at a time. */
export interface JournalFile {
  /** Durable, file size included, when `done` is called. `bytes` must not change meanwhile. */
  write(position: number, bytes: Uint8Array, done: DiskDone): void;
  close(done: DiskDone): void;
}

/**
 * One flat directory. The synchronous calls are made only while opening, and `read` for a group that is set aside. Reads return zeros or less for space that was
 * never written.
 */
export interface JournalDisk {
  list(): readonly string[];
  read(name: string): Uint8Array;
  /** Durable when it returns. */
  truncate(name: string, size: number): void;
  /** Fails when the name exists. */
  create(name: string, done: (error: Error | null, file: JournalFile | null) => void): void;
  remove(name: string, done: DiskDone): void;
  /** Makes creations and removals durable. */
  syncDirectory(done: DiskDone): void;
}

// --- options -----------------------------------------------------------------------------------------------------

export const journalDefaults = {
  /** A segment is closed when the next write would pass this. */
  segmentBytes: 16 * 1024 * 1024,
  /** Appends go into one write up to this; a single larger append still goes alone. */
  writeBytesMax: 8 * 1024 * 1024,
  /** Appended and not yet durable. Beyond it `append` refuses. */
  pendingBytesMax: 64 * 1024 * 1024,
} as const;

/** With more groups than this that have unreleased records, a new segment does not list them: 2 MiB. */
const liveGroupsMax = 128 * 1024;
/** One note of released groups is kept small, so that it rides on an ordinary write. */
const releasesPerWriteMax = 4096;
const writeBufferBytesMin = 64 * 1024;
/** Buffers up to this are kept for the next write. */
const writeBufferKeptMax = 2 * 1024 * 1024;

/**
 * Distance between the sequences of two openings. More records than this cannot be pending (64 MiB of 32-byte records
 * are two million), so a sequence handed out before a crash is never handed out again.
 */
const sequencesPerOpening = 2 ** 24;

export interface JournalOptions {
  readonly disk: JournalDisk;
  /** Called once. The process has to end: what was appended and not yet acknowledged is in an unknown state. */
  readonly onFatal: (error: Error) => void;
  /** 32 random bits, new at each opening (see journal_format.ts). */
  readonly salt: number;
  readonly segmentBytes?: number;
  readonly writeBytesMax?: number;
  readonly pendingBytesMax?: number;
}

/** Records that are gone and whose group is not known. */
export interface LostRange {
  readonly from: JournalSequence;
  readonly to: JournalSequence;
  readonly where: string;
}

export interface NodeJournalRecovery extends JournalRecovery {
  /**
   * Sequences of records that were destroyed together with the name of their group, in a segment behind which none says who
   * had records there. Every group with unreleased records here is among `damaged` because of them; a group without any is concerned unless its environment holds a
   * checkpointed sequence ≥ `to`, or it did not exist then.
   */
  readonly lost: readonly LostRange[];
}

export class JournalStoppedError extends Error {
  override readonly name = "JournalStoppedError";
}

// --- journal -----------------------------------------------------------------------------------------------------

interface Segment {
  readonly number: number;
  bytes: number;
  /** Of header and list; a segment takes at least one write behind them. */
  readonly start: number;
  /** Highest sequence per group with unreleased records here. */
  readonly live: Map<number, JournalSequence>;
}

/** What becomes one write. Records are encoded into it as they are appended. */
interface Batch {
  bytes: Uint8Array;
  view: DataView;
  used: number;
  firstSequence: JournalSequence;
  readonly live: Map<number, JournalSequence>;
  readonly dones: (() => void)[];
}

export class NodeJournal implements Journal {
  readonly #disk: JournalDisk;
  readonly #onFatal: (error: Error) => void;
  readonly #salt: number;
  readonly #segmentBytes: number;
  readonly #writeBytesMax: number;
  readonly pendingBytesMax: number;

  /** Of the next segment. */
  #number: number;
  /** Oldest first; the last one is being written once `#file` is open. */
  readonly #segments: Segment[] = [];
  #file: JournalFile | null = null;
  #nextSequence = sequencesPerOpening;
  /** In order; the first is `#writing` while it is on its way to the disk. */
  readonly #batches: Batch[] = [];
  #writing: Batch | null = null;
  #spare: Batch | null = null;
  #pendingBytes = 0;
  #busy = false;
  #acknowledging = false;
  #removing = false;
  /** Released and not yet noted in the journal. */
  #releases = new Map<number, JournalSequence>();
  #recovery: NodeJournalRecovery | null;
  /** What is live is known, and may be listed at the start of a segment: not while this opening has yet to say what is lost. */
  #isLiveKnown: boolean;
  #stopped: Error | null = null;
  #closing: { resolve: () => void; reject: (error: Error) => void } | null = null;
  #closed: Promise<void> | null = null;

  #appends = 0;
  #syncs = 0;

  /** Reads what is there, cuts a torn end, and begins a new segment. Throws when the directory cannot be used. */
  constructor(options: JournalOptions) {
    this.#disk = options.disk;
    this.#onFatal = options.onFatal;
    this.#salt = options.salt >>> 0;
    this.#segmentBytes = options.segmentBytes ?? journalDefaults.segmentBytes;
    this.#writeBytesMax = options.writeBytesMax ?? journalDefaults.writeBytesMax;
    this.pendingBytesMax = options.pendingBytesMax ?? journalDefaults.pendingBytesMax;
    assert(this.#segmentBytes >= 4096, "A journal segment holds at least 4096 bytes");
    assert(
      this.pendingBytesMax / recordHeaderBytes <= sequencesPerOpening / 2,
      "More records could be pending than sequences are left out between two openings",
    );

    const replayed = readJournal(this.#disk);
    if (replayed.torn !== null) this.#disk.truncate(replayed.torn.name, replayed.torn.at);
    this.#segments.push(...replayed.segments);
    this.#nextSequence =
      (Math.floor(replayed.sequenceMax / sequencesPerOpening) + 1) * sequencesPerOpening;
    this.#recovery = replayed.recovery;
    this.#isLiveKnown = replayed.isWhole;
    // The name of a segment whose creation was cut short is taken again.
    this.#number = replayed.numberNext;
    this.#busy = true;
    this.#removeFiles(replayed.unused, () => this.#startSegment());
  }

  /**
   * Handed over once, so that the records do not stay in memory after the host read them. Payloads of one segment share
   * a buffer: copy what is kept for long.
   */
  recovery(): NodeJournalRecovery {
    const recovery = this.#recovery;
    assert(recovery !== null, "The journal's recovery was taken already");
    this.#recovery = null;
    return recovery;
  }

  append(records: readonly JournalRecord[], done: () => void): JournalSequence {
    if (this.#stopped !== null)
      throw new JournalStoppedError("Journal is stopped", { cause: this.#stopped });
    if (this.#closed !== null) throw new JournalStoppedError("Journal is closed");
    let bytes = 0;
    for (const record of records) {
      assertGroup(record.group);
      bytes += recordBytes(record.payload.byteLength);
    }
    if (this.#pendingBytes + bytes > this.pendingBytesMax)
      throw new Problem(
        "overloaded",
        `Journal has ${this.#pendingBytes} bytes waiting for the disk, ${bytes} more would pass its bound of ${this.pendingBytesMax}`,
      );

    const first = this.#nextSequence;
    const batch = this.#batchFor(bytes);
    for (const { group, payload } of records) {
      batch.bytes.set(payload, batch.used + recordHeaderBytes);
      const payloadBytes = payload.byteLength;
      this.#seal(batch, recordKinds.data, group, payloadBytes);
      batch.live.set(group, this.#nextSequence - 1);
    }
    batch.dones.push(done);
    this.#pendingBytes += bytes;
    this.#appends += 1;
    this.#turn();
    return first;
  }

  release(group: number, sequence: JournalSequence): void {
    assert(sequence < this.#nextSequence, "Released a sequence that was never appended");
    let held = false;
    for (const { live } of this.#segments) held = forget(live, group, sequence) || held;
    // Not yet written, but the host has it durable elsewhere already: it does not pin the segment it will land in.
    for (const { live } of this.#batches) held = forget(live, group, sequence) || held;
    if (!held) return;
    const noted = this.#releases.get(group) ?? 0;
    if (noted < sequence) this.#releases.set(group, sequence);
    this.#dropReleased();
  }

  forget(group: number): void {
    this.release(group, this.#nextSequence - 1);
  }

  records(group: number, sequence: JournalSequence): ReturnType<Journal["records"]> {
    const found: { sequence: JournalSequence; payload: Uint8Array }[] = [];
    for (const { number, live } of this.#segments) {
      if (!live.has(group)) continue;
      const name = segmentName(number);
      const bytes = this.#disk.read(name);
      // A write that is under way looks torn, and nothing in it was acknowledged.
      for (const record of readSegment(bytes, name, number === this.#number - 1).records)
        if (record.group === group && record.kind === recordKinds.data)
          if (record.sequence > sequence)
            found.push({ sequence: record.sequence, payload: payloadOf(bytes, record).slice() });
    }
    return found;
  }

  pinning(segmentsMax: number): readonly number[] {
    const groups = new Set<number>();
    const surplus = this.#segments.length - Math.max(1, segmentsMax);
    for (let at = 0; at < surplus; at++) {
      const { live } = this.#segments[at] as Segment;
      for (const group of live.keys()) groups.add(group);
    }
    return [...groups];
  }

  /** Bytes appended and not yet durable; at `pendingBytesMax` appends are refused. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  get status(): Journal["status"] & { readonly pendingBytes: number } {
    return {
      segments: this.#segments.length,
      bytes: this.#segments.reduce((sum, segment) => sum + segment.bytes, 0),
      appends: this.#appends,
      syncs: this.#syncs,
      pendingBytes: this.#pendingBytes,
    };
  }

  /** Waits for what was appended, notes the releases, closes the file. Rejects when the disk failed. */
  close(): Promise<void> {
    this.#closed ??= new Promise((resolve, reject) => {
      this.#closing = { resolve, reject };
      if (this.#stopped !== null) this.#fail(this.#stopped);
      else this.#turn();
    });
    return this.#closed;
  }

  // --- writing ---------------------------------------------------------------------------------------------------

  /** The batch that is still open, with room for `bytes` more. */
  #batchFor(bytes: number): Batch {
    const last = this.#batches.at(-1);
    if (last !== undefined && last !== this.#writing && last.used + bytes <= this.#writeBytesMax) {
      reserve(last, bytes);
      return last;
    }
    const batch = this.#spareBatch();
    this.#batches.push(batch);
    reserve(batch, bytes);
    return batch;
  }

  #spareBatch(): Batch {
    const batch = this.#spare ?? emptyBatch();
    this.#spare = null;
    batch.firstSequence = this.#nextSequence;
    return batch;
  }

  #seal(batch: Batch, kind: 1 | 2, group: number, payloadBytes: number): void {
    const sequence = this.#nextSequence++;
    sealRecord(batch, batch.used, { kind, group, sequence, payloadBytes }, this.#salt);
    batch.used += recordBytes(payloadBytes);
  }

  /** Starts the next step when none is under way: a segment, a write, or the end. */
  #turn(): void {
    if (this.#busy || this.#acknowledging || this.#stopped !== null) return;
    if (this.#batches.length === 0) {
      if (this.#closing === null || this.#removing) return;
      if (this.#releases.size === 0 || this.#file === null) return this.#finish();
      this.#batches.push(this.#spareBatch());
    }
    const batch = this.#batches[0] as Batch;
    const segment = this.#segments.at(-1);
    const full =
      segment !== undefined &&
      segment.bytes > segment.start &&
      segment.bytes + batch.used > this.#segmentBytes;
    this.#busy = true;
    if (this.#file === null || segment === undefined || full) this.#startSegment();
    else this.#write(this.#file, segment, batch);
  }

  #write(file: JournalFile, segment: Segment, batch: Batch): void {
    // The notes ride on the write and cost no sync of their own. They take the sequences after this batch's, so no
    // later batch may have taken those yet.
    if (this.#releases.size > 0 && this.#batches.length === 1) this.#noteReleases(batch);
    const bytes = batch.bytes.subarray(0, batch.used);
    for (const [group, sequence] of batch.live) segment.live.set(group, sequence);
    this.#writing = batch;
    file.write(segment.bytes, bytes, (error) => {
      if (error !== null) return this.#fail(error);
      segment.bytes += bytes.byteLength;
      this.#syncs += 1;
      this.#busy = false;
      this.#writing = null;
      this.#batches.shift();
      this.#acknowledge(batch);
    });
  }

  #noteReleases(batch: Batch): void {
    const releases = [...this.#releases].slice(0, releasesPerWriteMax);
    const payloadBytes = releases.length * 16;
    reserve(batch, recordBytes(payloadBytes));
    encodePairs(batch, batch.used, releases);
    this.#seal(batch, recordKinds.release, 0, payloadBytes);
    for (const [group] of releases) this.#releases.delete(group);
  }

  #acknowledge(batch: Batch): void {
    this.#pendingBytes = this.#batches.reduce((sum, waiting) => sum + waiting.used, 0);
    // What waits goes to the disk before the acknowledged are told: their work and the disk's overlap. With nothing
    // waiting, all their next appends shall share one write.
    if (this.#batches.length > 0) this.#turn();
    this.#acknowledging = true;
    let failure: { error: unknown } | null = null;
    for (const done of batch.dones) {
      try {
        done();
      } catch (error) {
        // One group's fault must not keep the others from their acknowledgement.
        failure ??= { error };
      }
    }
    this.#acknowledging = false;
    this.#recycle(batch);
    this.#dropReleased();
    this.#turn();
    if (failure !== null) throw failure.error;
  }

  #recycle(batch: Batch): void {
    if (this.#spare !== null || batch.bytes.byteLength > writeBufferKeptMax) return;
    batch.used = 0;
    batch.live.clear();
    batch.dones.length = 0;
    this.#spare = batch;
  }

  #fail(error: Error): void {
    const first = this.#stopped === null;
    this.#stopped = error;
    this.#batches.length = 0;
    this.#pendingBytes = 0;
    this.#closing?.reject(new JournalStoppedError("Journal is stopped", { cause: error }));
    this.#closing = null;
    if (first) this.#onFatal(error);
  }

  #finish(): void {
    const closing = this.#closing;
    assert(closing !== null, "A journal ends only when it is asked to");
    this.#closing = null;
    const file = this.#file;
    if (file === null) return closing.resolve();
    this.#file = null;
    file.close((error) => {
      if (error === null) closing.resolve();
      else closing.reject(error);
    });
  }

  // --- segments --------------------------------------------------------------------------------------------------

  /** Creates the file, writes its header, then makes its name durable: only then may anything in it count. */
  #startSegment(): void {
    const previous = this.#segments.at(-1);
    const number = this.#number++;
    const old = this.#file;
    this.#file = null;
    const create = (): void =>
      this.#disk.create(segmentName(number), (error, file) => {
        if (error !== null || file === null)
          return this.#fail(error ?? new Error("Disk opened no file"));
        // Of the first record that will be in it.
        const firstSequence = this.#batches[0]?.firstSequence ?? this.#nextSequence;
        const previousEnd = previous?.bytes ?? 0;
        const header = { number, firstSequence, previousEnd, salt: this.#salt };
        file.write(0, encodeSegmentHeader(header), (headerError) => {
          if (headerError !== null) return this.#fail(headerError);
          // In a write of its own: a header whose sector is missing must not have anything behind it.
          const list = this.#liveRecord(firstSequence - 1);
          if (list === null) return this.#beginSegment(file, number, segmentHeaderBytes);
          file.write(segmentHeaderBytes, list, (listError) => {
            if (listError !== null) return this.#fail(listError);
            this.#syncs += 1;
            this.#beginSegment(file, number, segmentHeaderBytes + list.byteLength);
          });
        });
      });
    if (old === null) return create();
    old.close((error) => {
      if (error !== null) return this.#fail(error);
      create();
    });
  }

  #beginSegment(file: JournalFile, number: number, bytes: number): void {
    this.#disk.syncDirectory((error) => {
      if (error !== null) return this.#fail(error);
      this.#syncs += 2;
      this.#file = file;
      this.#segments.push({ number, bytes, start: bytes, live: new Map() });
      this.#busy = false;
      this.#isLiveKnown = true;
      this.#dropReleased();
      this.#turn();
    });
  }

  /** Who has unreleased records in the segments so far: should a part of one be lost, nobody else lost anything in it. */
  #liveRecord(sequence: JournalSequence): Uint8Array | null {
    if (!this.#isLiveKnown || this.#segments.length === 0) return null;
    const groups = new Map<number, JournalSequence>();
    for (const { live } of this.#segments)
      for (const [group, last] of live) groups.set(group, Math.max(last, groups.get(group) ?? 0));
    if (groups.size > liveGroupsMax) return null;
    const payloadBytes = groups.size * 16;
    const bytes = new Uint8Array(recordBytes(payloadBytes));
    const target = { bytes, view: new DataView(bytes.buffer) };
    encodePairs(target, 0, groups);
    sealRecord(target, 0, { kind: recordKinds.live, group: 0, sequence, payloadBytes }, this.#salt);
    return bytes;
  }

  /** Oldest first, one by one, each removal durable before the next: a gap in the numbers is never our own doing. */
  #dropReleased(): void {
    const oldest = this.#segments[0];
    if (this.#removing || this.#stopped !== null) return;
    if (oldest === undefined || this.#segments.length === 1 || oldest.live.size > 0) return;
    this.#removing = true;
    this.#removeFiles([segmentName(oldest.number)], () => {
      this.#removing = false;
      this.#segments.shift();
      this.#dropReleased();
      this.#turn();
    });
  }

  #removeFiles(names: readonly string[], done: () => void): void {
    const [name, ...others] = names;
    if (name === undefined) return done();
    this.#disk.remove(name, (error) => {
      if (error !== null) return this.#fail(error);
      this.#disk.syncDirectory((syncError) => {
        if (syncError !== null) return this.#fail(syncError);
        this.#removeFiles(others, done);
      });
    });
  }
}

// --- opening -----------------------------------------------------------------------------------------------------

/** The view is made when it is read: making a million at once kept Node's collector busy for seconds. */
class RecoveredRecord {
  readonly sequence: JournalSequence;
  readonly #bytes: Uint8Array;
  readonly #start: number;
  readonly #length: number;

  constructor(sequence: JournalSequence, bytes: Uint8Array, start: number, length: number) {
    this.sequence = sequence;
    this.#bytes = bytes;
    this.#start = start;
    this.#length = length;
  }

  get payload(): Uint8Array {
    return this.#bytes.subarray(this.#start, this.#start + this.#length);
  }
}

/** A place in a journal that is not as it was written. */
export interface JournalFinding {
  readonly kind:
    | "torn"
    | "segment-header"
    | "record"
    | "released-record"
    | "release-note"
    | "live-list"
    | "unknown-group"
    | "end-missing"
    | "segments-missing";
  readonly file: string;
  /** Bytes from `at` up to `end`; null where a whole file or its end is missing. */
  readonly at: number | null;
  readonly end: number | null;
  /** Null where it cannot be told. */
  readonly group: number | null;
  /** Whose records may be among those that are gone without a name; null: anybody's. */
  readonly groups: readonly number[] | null;
  /** Sequences of the records that are gone; empty when `from` > `to`. */
  readonly from: JournalSequence;
  readonly to: JournalSequence;
}

/** What of a segment is of interest beside its records' fate. */
export interface SeenSegment {
  readonly name: string;
  readonly fileBytes: number;
  /** Null: its creation was cut short, nothing was ever in it. */
  readonly read: ReadSegment | null;
}

export interface ReadJournal {
  readonly segments: Segment[];
  readonly torn: { readonly name: string; readonly at: number } | null;
  /** Segments whose creation was cut short: nothing was ever in them. */
  readonly unused: readonly string[];
  /** Of the segment that is begun next. */
  readonly numberNext: number;
  readonly sequenceMax: JournalSequence;
  /** Nothing is gone without the name of its group. */
  readonly isWhole: boolean;
  readonly recovery: NodeJournalRecovery;
  readonly findings: readonly JournalFinding[];
}

/**
 * Reads the directory and changes nothing. From the newest segment to the oldest and backwards within each, since the
 * note that releases a record always stands behind it: what is released is never copied, and one segment at a time is in
 * memory.
 */
export function readJournal(
  disk: Pick<JournalDisk, "list" | "read">,
  seen: (segment: SeenSegment) => void = () => undefined,
): ReadJournal {
  const numbers = disk
    .list()
    .map(segmentNumber)
    .filter((number) => number !== undefined)
    .sort((a, b) => a - b);
  const unused: string[] = [];
  const segments: Segment[] = [];
  const groups = new Map<number, RecoveredRecord[]>();
  const released = new Map<number, JournalSequence>();
  const damaged = new Map<number, string>();
  const lost: LostRange[] = [];
  const findings: JournalFinding[] = [];
  let torn: { name: string; at: number; bytes: number } | null = null;
  let sequenceMax = 0;
  /** What the segment behind the one being read says of it. */
  let newer: {
    readonly number: number;
    readonly firstSequence: number;
    readonly previousEnd: number;
    readonly live: ReadSegment["live"];
  } | null = null;
  let isWhole = true;

  for (const number of numbers.toReversed()) {
    const name = segmentName(number);
    const bytes = disk.read(name);
    const last = newer === null;
    if (last && readSegmentHeader(bytes, name) === null && !hasRecordBytes(bytes)) {
      unused.push(name);
      seen({ name, fileBytes: bytes.byteLength, read: null });
      continue;
    }
    const read = readSegment(bytes, name, last);
    seen({ name, fileBytes: bytes.byteLength, read });
    if (read.header !== null && read.header.number !== number)
      throw new Error(
        `Cannot read journal: file ${name} says it is segment ${read.header.number}; undo the renaming`,
      );
    const final = read.records.at(-1)?.sequence ?? (read.header?.firstSequence ?? 1) - 1;
    const found = (
      kind: JournalFinding["kind"],
      place: { at: number; end: number } | null,
      group: number | null,
      from: JournalSequence,
      to: JournalSequence,
    ): void => {
      const { at, end } = place ?? { at: null, end: null };
      findings.push({ kind, file: name, at, end, group, groups: null, from, to });
    };
    const live = new Map<number, JournalSequence>();
    /** Records are gone without a name. Those of a segment are of the groups that the one behind it lists, if it does. */
    const gone = (
      kind: JournalFinding["kind"],
      place: { at: number; end: number } | null,
      { from, to, where }: LostRange,
    ): void => {
      const listed = newer?.live ?? null;
      const groupsGone: number[] = [];
      for (const [group, last] of listed ?? []) {
        const upTo = Math.min(last, to);
        if (last < from || (released.get(group) ?? 0) >= upTo) continue;
        groupsGone.push(group);
        live.set(group, Math.max(live.get(group) ?? 0, upTo));
        if (!damaged.has(group) && from <= to)
          damaged.set(
            group,
            `Journal records ${from} to ${to}, some of this group, are gone: ${where}`,
          );
      }
      const { at, end } = place ?? { at: null, end: null };
      const whose = listed === null ? null : groupsGone;
      findings.push({ kind, file: name, at, end, group: null, groups: whose, from, to });
      if (from > to) return;
      isWhole = false;
      if (listed === null) lost.push({ from, to, where });
    };
    if (read.torn !== null) {
      torn = { name, ...read.torn };
      const { at } = read.torn;
      found("torn", { at, end: at + read.torn.bytes }, null, final + 1, final);
    }
    if (read.header === null)
      found("segment-header", { at: 0, end: segmentHeaderBytes }, null, 1, 0);

    sequenceMax = Math.max(sequenceMax, final, ...read.damage.map(lastPossible));
    // Where its sequences began nothing in it says any more: not its header, and not a record.
    const isBlank = read.header === null && final === 0 && read.damage.every(isNameless);
    if (isBlank) sequenceMax = Math.max(sequenceMax, sequencesUpTo(number));
    const behind: JournalSequence =
      newer?.firstSequence ??
      (Math.floor(sequenceMax / sequencesPerOpening) + 1) * sequencesPerOpening;
    if (newer !== null && newer.number !== number + 1) {
      const where = `between ${name} and ${segmentName(newer.number)}: segments are missing`;
      gone("segments-missing", null, { from: final + 1, to: behind - 1, where });
    } else if (newer !== null && newer.previousEnd > read.end) {
      const where = `${name}: its end is missing`;
      gone("end-missing", null, { from: final + 1, to: behind - 1, where });
    }

    const kept: ReadRecord[] = [];
    let keptBytes = 0;
    for (const record of read.records.toReversed()) {
      const { kind, group, sequence, payloadBytes } = record;
      if (kind === recordKinds.release) {
        for (const [of, upTo] of decodePairs(payloadOf(bytes, record)))
          if ((released.get(of) ?? 0) < upTo) released.set(of, upTo);
      } else if ((released.get(group) ?? 0) < sequence) {
        if ((live.get(group) ?? 0) < sequence) live.set(group, sequence);
        kept.push(record);
        keptBytes += payloadBytes;
      }
    }
    // A segment of which little is left does not stay in memory for that little.
    const arena = keptBytes * 2 < bytes.byteLength ? new Uint8Array(keptBytes) : bytes;
    let used = 0;
    for (const record of kept) {
      let start = payloadStart(record);
      if (arena !== bytes) {
        arena.set(payloadOf(bytes, record), used);
        start = used;
        used += record.payloadBytes;
      }
      const recovered = new RecoveredRecord(record.sequence, arena, start, record.payloadBytes);
      const list = groups.get(record.group);
      if (list === undefined) groups.set(record.group, [recovered]);
      else list.push(recovered);
    }
    for (const place of read.damage) {
      const where = `${name}, bytes ${place.at} to ${place.end}`;
      if (place.record === null) {
        const range = { from: place.after + 1, to: (place.before ?? behind) - 1 };
        gone("unknown-group", place, { ...range, where });
        continue;
      }
      const { group, sequence, kind } = place.record;
      // A release note that is gone only means that more is read again.
      if (kind === recordKinds.release) {
        found("release-note", place, null, sequence, sequence);
        continue;
      }
      // Only what is gone in the segment before concerns more than it would have to.
      if (kind === recordKinds.live) {
        found("live-list", place, null, 1, 0);
        continue;
      }
      const isReleased = (released.get(group) ?? 0) >= sequence;
      found(isReleased ? "released-record" : "record", place, group, sequence, sequence);
      if (isReleased) continue;
      damaged.set(group, `Journal record ${sequence} is damaged: ${where}`);
      live.set(group, Math.max(live.get(group) ?? 0, sequence));
    }
    segments.push({ number, bytes: read.end, start: segmentHeaderBytes, live });
    newer = {
      number,
      firstSequence: read.header?.firstSequence ?? read.records[0]?.sequence ?? behind,
      previousEnd: read.header?.previousEnd ?? 0,
      live: read.live,
    };
  }

  const numberMax = numbers.at(-1) ?? 0;
  // One segment alone, without records, whose header rotted (simulation, seed 400000152).
  if (segments.length === 0 && unused.length > 0) sequenceMax = sequencesUpTo(numberMax);
  for (const group of groups.keys())
    for (const { from, to, where } of lost)
      if ((released.get(group) ?? 0) < to && !damaged.has(group))
        damaged.set(
          group,
          `Journal records ${from} to ${to}, of unknown groups, are gone: ${where}`,
        );
  for (const list of groups.values()) list.reverse();
  return {
    segments: segments.reverse(),
    torn,
    unused,
    numberNext: unused.length > 0 ? numberMax : numberMax + 1,
    sequenceMax,
    isWhole,
    recovery: { groups, damaged, tornBytes: torn?.bytes ?? 0, lost },
    findings: findings.reverse(),
  };
}

/**
 * Where nobody can say any more where a segment's sequences began, while environments hold what was given before: by its
 * number they were fewer than this, since each segment is begun by an opening or holds fewer records than two openings lie
 * apart.
 */
function sequencesUpTo(number: number): JournalSequence {
  return number * 2 * sequencesPerOpening;
}

function isNameless({ record }: Damage): boolean {
  return record === null;
}

/** The last sequence that a damaged place can have held. */
function lastPossible({ at, end, record, after, before }: Damage): JournalSequence {
  return record === null && before === null
    ? after + Math.ceil((end - at) / recordHeaderBytes)
    : after;
}

// --- batches -----------------------------------------------------------------------------------------------------

function emptyBatch(): Batch {
  const bytes = new Uint8Array(writeBufferBytesMin);
  return {
    bytes,
    view: new DataView(bytes.buffer),
    used: 0,
    firstSequence: 0,
    live: new Map(),
    dones: [],
  };
}

function reserve(batch: Batch, bytes: number): void {
  const needed = batch.used + bytes;
  if (needed <= batch.bytes.byteLength) return;
  const grown = new Uint8Array(Math.max(needed, batch.bytes.byteLength * 2));
  grown.set(batch.bytes.subarray(0, batch.used));
  batch.bytes = grown;
  batch.view = new DataView(grown.buffer);
}

/** @returns whether the group had unreleased records there */
function forget(
  live: Map<number, JournalSequence>,
  group: number,
  sequence: JournalSequence,
): boolean {
  const last = live.get(group);
  if (last === undefined) return false;
  if (last <= sequence) live.delete(group);
  return true;
}
