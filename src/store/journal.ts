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
import type {
  Journal,
  JournalRecord,
  JournalRecovery,
  JournalSequence,
  RecoveredRecord,
  RecoveredRecords,
} from "../host/ports.ts";
import { assert } from "../lib/assert.ts";
import {
  assertGroup,
  decodePairs,
  encodePairs,
  encodeSegmentHeader,
  hasRecordBytes,
  payloadOf,
  readSegment,
  readSegmentHeader,
  recordAt,
  recordBytes,
  recordHeaderBytes,
  recordKinds,
  recordsIn,
  sealRecord,
  segmentHeaderBytes,
  segmentName,
  segmentNumber,
  SegmentReader,
  viewOf,
} from "./journal_format.ts";
import type { Damage, ReadSegment } from "./journal_format.ts";

// --- port --------------------------------------------------------------------------------------------------------

/** `done` of a port call; the error of a disk is never retried. */
export type DiskDone = (error: Error | null) => void;

/** A file that is being written. One call at a time. */
export interface JournalFile {
  /** Durable, file size included, when `done` is called. `bytes` must not change meanwhile. */
  write(position: number, bytes: Uint8Array, done: DiskDone): void;
  close(done: DiskDone): void;
}

/** One flat directory. Reads return zeros or less for space that was never written. */
export interface JournalDisk {
  list(): readonly string[];
  /** Holds the thread: for a group that is set aside while the node runs. */
  read(name: string): Uint8Array;
  /** The whole file, read beside whatever else the process does. The bytes are the caller's. */
  load(name: string, done: (error: Error | null, bytes: Uint8Array | null) => void): void;
  /** Runs once what else has arrived was handled. */
  defer(run: () => void): void;
  /** Durable when `done` is called. */
  truncate(name: string, size: number, done: DiskDone): void;
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
/** So many records are gone through before others have their turn. */
const recordsPerStep = 4096;
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

type Opened = (error: Error | null, found: NodeJournalRecovery | null) => void;

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
  #number = 1;
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
  #opening: Opening | null = null;
  #isOpen = false;
  /** What is live is known, and may be listed at the start of a segment: not while this opening has yet to say what is lost. */
  #isLiveKnown = false;
  #stopped: Error | null = null;
  #closing: { resolve: () => void; reject: (error: Error) => void } | null = null;
  #closed: Promise<void> | null = null;

  #appends = 0;
  #syncs = 0;

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
  }

  /**
   * Reads what is there, cuts a torn end, and begins a new segment. Of what is handed over, payloads of one segment share a
   * buffer: copy what is kept for long.
   */
  open(done: Opened): void {
    assert(this.#opening === null && !this.#isOpen, "The journal was opened already");
    assert(this.#closed === null, "The journal was closed");
    const opening = new Opening(this.#disk, (error, replayed) => {
      if (error !== null || replayed === null) return this.#cannotOpen(error, done);
      const { torn } = replayed;
      if (torn === null) return this.#opened(replayed, done);
      this.#disk.truncate(torn.name, torn.at, (truncateError) => {
        if (truncateError === null) this.#opened(replayed, done);
        else this.#cannotOpen(truncateError, done);
      });
    });
    this.#opening = opening;
    opening.begin();
  }

  #cannotOpen(error: Error | null, done: Opened): void {
    this.#opening = null;
    this.#stopped = error ?? new Error("The journal was not read");
    this.#closing?.resolve();
    this.#closing = null;
    done(this.#stopped, null);
  }

  #opened(replayed: ReadJournal, done: Opened): void {
    this.#opening = null;
    this.#isOpen = true;
    this.#segments.push(...replayed.segments);
    this.#nextSequence =
      (Math.floor(replayed.sequenceMax / sequencesPerOpening) + 1) * sequencesPerOpening;
    this.#isLiveKnown = replayed.isWhole;
    // The name of a segment whose creation was cut short is taken again.
    this.#number = replayed.numberNext;
    this.#busy = true;
    this.#removeFiles(replayed.unused, () => this.#startSegment());
    done(null, replayed.recovery);
  }

  append(records: readonly JournalRecord[], done: () => void): JournalSequence {
    if (this.#stopped !== null)
      throw new JournalStoppedError("Journal is stopped", { cause: this.#stopped });
    if (this.#closed !== null) throw new JournalStoppedError("Journal is closed");
    assert(this.#isOpen, "Appended to a journal that is not open");
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
      const read = readSegment(bytes, name, number === this.#number - 1);
      for (const record of recordsIn(bytes, read)) {
        if (record.group !== group || record.kind !== recordKinds.data) continue;
        if (record.sequence <= sequence) continue;
        found.push({ sequence: record.sequence, payload: payloadOf(bytes, record).slice() });
      }
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

  /** How many segments were read of those that were there; null: it is open, or was not asked to. */
  get opening(): { readonly segments: number; readonly of: number } | null {
    return this.#opening?.progress ?? null;
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
      else if (this.#opening !== null) this.#opening.stop();
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

/** Bytes of a segment, or of what is left of one. */
interface Arena {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

const arenaBytesMax = 2 ** 32;

/**
 * Places of one group's records, found from the newest to the oldest. Eight bytes for each: a million objects kept the
 * collector busy for seconds. A record is made of its place each time that one goes through them.
 */
class GroupRecords implements RecoveredRecords {
  /** Those that hold records of the group, in the order in which they were found. */
  readonly #arenas: Arena[] = [];
  /** Which arena, times 2^32, and where in it. */
  readonly #places: number[] = [];

  add(arena: Arena, at: number): void {
    if (this.#arenas.at(-1) !== arena) this.#arenas.push(arena);
    this.#places.push((this.#arenas.length - 1) * arenaBytesMax + at);
  }

  get length(): number {
    return this.#places.length;
  }

  *[Symbol.iterator](): Generator<RecoveredRecord> {
    for (let n = this.#places.length - 1; n >= 0; n--) {
      const place = this.#places[n] as number;
      const { bytes, view } = this.#arenas[Math.floor(place / arenaBytesMax)] as Arena;
      const record = recordAt(view, place % arenaBytesMax);
      yield { sequence: record.sequence, payload: payloadOf(bytes, record) };
    }
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
  readonly bytes: Uint8Array;
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

/** Reads the directory at once, and changes nothing. */
export function readJournal(
  disk: Pick<JournalDisk, "list" | "read">,
  seen: (segment: SeenSegment) => void = () => undefined,
): ReadJournal {
  const reading = replay(segmentNumbers(disk.list()), seen);
  for (let step = reading.next(); ;) {
    if (step.done === true) return step.value;
    step = reading.next(step.value === null ? null : disk.read(step.value));
  }
}

/** The same while the process does other things: while one segment is gone through, the next one is read. */
class Opening {
  readonly #disk: JournalDisk;
  readonly #done: (error: Error | null, read: ReadJournal | null) => void;
  /** Newest first. */
  #names: readonly string[] = [];
  #reading: ReturnType<typeof replay> | null = null;
  /** How many were asked of the disk: at most one that nobody waits for yet. */
  #asked = 0;
  #taken = 0;
  /** The one that was read ahead. */
  #ahead: Uint8Array | null = null;
  #waiting = false;
  #ended = false;

  constructor(disk: JournalDisk, done: (error: Error | null, read: ReadJournal | null) => void) {
    this.#disk = disk;
    this.#done = done;
  }

  get progress(): { readonly segments: number; readonly of: number } {
    return { segments: this.#taken, of: this.#names.length };
  }

  begin(): void {
    this.#disk.defer(() => {
      this.#within(() => {
        const numbers = segmentNumbers(this.#disk.list());
        this.#names = numbers.map(segmentName).reverse();
        this.#reading = replay(numbers);
        this.#go(null);
      });
    });
  }

  /** Ends it where it is, as if it had failed. */
  stop(): void {
    this.#end(new JournalStoppedError("Journal is closed"), null);
  }

  /** One step; the next one comes when others had their turn, or the disk gave what it needs. */
  #go(bytes: Uint8Array | null): void {
    if (this.#ended || this.#reading === null) return;
    const { done, value } = this.#reading.next(bytes);
    if (done === true) return this.#end(null, value);
    if (value === null) return this.#disk.defer(() => this.#within(() => this.#go(null)));
    this.#waiting = true;
    if (this.#asked === this.#taken) this.#load();
    else this.#take();
  }

  #load(): void {
    const name = this.#names[this.#asked];
    if (name === undefined) return;
    this.#asked += 1;
    this.#disk.load(name, (error, bytes) => {
      this.#within(() => {
        if (error !== null) throw error;
        this.#ahead = bytes;
        this.#take();
      });
    });
  }

  #take(): void {
    const bytes = this.#ahead;
    if (bytes === null || !this.#waiting) return;
    this.#ahead = null;
    this.#waiting = false;
    this.#taken += 1;
    this.#load();
    this.#go(bytes);
  }

  #within(run: () => void): void {
    if (this.#ended) return;
    try {
      run();
    } catch (error) {
      // What was to be done with what was read is not this one's failure, and must not end in silence.
      if (this.#ended) throw error;
      this.#end(error as Error, null);
    }
  }

  #end(error: Error | null, read: ReadJournal | null): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#done(error, read);
  }
}

/** Ascending. */
function segmentNumbers(names: readonly string[]): readonly number[] {
  return names
    .map(segmentNumber)
    .filter((number) => number !== undefined)
    .sort((a, b) => a - b);
}

/**
 * From the newest segment to the oldest and backwards within each, since the note that releases a record always stands
 * behind it: what is released is never copied, and one segment at a time is in memory beside what is kept.
 *
 * Gives the name of a segment where it needs the bytes of that, one after the other, and null where it has worked for some
 * milliseconds and others may have their turn.
 */
function* replay(
  numbers: readonly number[],
  seen: (segment: SeenSegment) => void = () => undefined,
): Generator<string | null, ReadJournal, Uint8Array | null> {
  const unused: string[] = [];
  const segments: Segment[] = [];
  const groups = new Map<number, GroupRecords>();
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
    const bytes = yield name;
    assert(bytes !== null, "A segment that is asked for is given");
    const last = newer === null;
    if (last && readSegmentHeader(bytes, name) === null && !hasRecordBytes(bytes)) {
      unused.push(name);
      seen({ name, bytes, read: null });
      continue;
    }
    const reader = new SegmentReader(bytes, name, last);
    while (!reader.advance()) yield null;
    const read = reader.result();
    yield null;
    const view = viewOf(bytes);
    seen({ name, bytes, read });
    if (read.header !== null && read.header.number !== number)
      throw new Error(
        `Cannot read journal: file ${name} says it is segment ${read.header.number}; undo the renaming`,
      );
    const sequenceAt = (n: number): JournalSequence | undefined => {
      const at = read.records.at(n);
      return at === undefined ? undefined : recordAt(view, at).sequence;
    };
    const final = sequenceAt(-1) ?? (read.header?.firstSequence ?? 1) - 1;
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

    const firstRead = sequenceAt(0);
    // Those that are kept gather at the end of the list of all, in their order.
    const { records } = read;
    let keptFrom = records.length;
    let keptBytes = 0;
    for (let n = records.length - 1; n >= 0; n--) {
      const at = records[n] as number;
      const { kind, group, sequence, payloadBytes } = recordAt(view, at);
      if (kind === recordKinds.release) {
        for (const [of, upTo] of decodePairs(payloadOf(bytes, { at, payloadBytes })))
          if ((released.get(of) ?? 0) < upTo) released.set(of, upTo);
      } else if ((released.get(group) ?? 0) < sequence) {
        if ((live.get(group) ?? 0) < sequence) live.set(group, sequence);
        records[--keptFrom] = at;
        keptBytes += recordBytes(payloadBytes);
      }
      if (n % recordsPerStep === 0) yield null;
    }
    // A segment of which little is left does not stay in memory for that little.
    const isCopied = keptBytes * 2 < bytes.byteLength;
    const left = isCopied ? new Uint8Array(keptBytes) : bytes;
    const arena: Arena = isCopied ? { bytes: left, view: viewOf(left) } : { bytes, view };
    let used = 0;
    for (let n = records.length - 1; n >= keptFrom; n--) {
      let at = records[n] as number;
      const { group, payloadBytes } = recordAt(view, at);
      if (isCopied) {
        left.set(bytes.subarray(at, at + recordBytes(payloadBytes)), used);
        at = used;
        used += recordBytes(payloadBytes);
      }
      let list = groups.get(group);
      if (list === undefined) groups.set(group, (list = new GroupRecords()));
      list.add(arena, at);
      if (n % recordsPerStep === 0) yield null;
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
      firstSequence: read.header?.firstSequence ?? firstRead ?? behind,
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
