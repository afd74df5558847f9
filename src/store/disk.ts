/**
 * The journal's disk over node:fs, the same on Bun, Deno and Node. (Where Node says null for no error, Deno says undefined.)
 *
 * Durable by O_DSYNC: one system call per write instead of write and fdatasync, and it is durable when it returns, size
 * included. Files grow in steps of zeros, carried by the write that reaches the end: writing into space that exists
 * spares the file system's own journal. Measured (p50 of a 140-byte append, Bun / Node 22): growing file with
 * write+fdatasync 0.34 / 0.35 ms, growing with O_DSYNC 0.26 / 0.28, existing space with O_DSYNC 0.20 / 0.19.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import type { DiskDone, JournalDisk, JournalFile } from "./journal.ts";

const growthBytes = 1024 * 1024;
const readBytesMax = 1024 * 1024;
const descriptorWaitMs = 50;
/** Descriptors that are kept for files, so that sockets cannot have them all: an environment takes three. */
const sparesMax = 32;
/** Given back at a time. */
const sparesAtOnce = 4;

export interface JournalDiskHooks {
  /** A file takes more of the disk. */
  readonly onGrowth?: () => void;
  /** Something was asked of the disk; what it returns is called at the end. */
  readonly begin?: () => () => void;
}

export function openJournalDisk(directory: string, hooks: JournalDiskHooks = {}): JournalDisk {
  const { onGrowth = nothing, begin = () => nothing } = hooks;
  fs.mkdirSync(directory, { recursive: true });
  syncDirectorySync(join(directory, ".."));
  return {
    list: () => namesIn(directory),
    read(name) {
      const { buffer, byteOffset, byteLength } = withDescriptors(() =>
        fs.readFileSync(join(directory, name)),
      );
      // Not as a Buffer: its slice() would be a view where everybody else's is a copy.
      return new Uint8Array(buffer, byteOffset, byteLength);
    },
    load: (name, loaded) => loadFile(join(directory, name), begin, loaded),
    defer: (run) => void setImmediate(run),
    truncate(name, size, truncated) {
      const done = ended(begin(), truncated);
      fs.open(join(directory, name), "r+", (error, descriptor) => {
        if (error) return done(error);
        fs.ftruncate(descriptor, size, (truncateError) => {
          if (truncateError) return closed(descriptor, truncateError, done);
          fs.fsync(descriptor, (syncError) => closed(descriptor, syncError ?? null, done));
        });
      });
    },
    create(name, done) {
      const { O_CREAT, O_EXCL, O_WRONLY, O_DSYNC } = fs.constants;
      // Windows has no O_DSYNC, and Conflux does not run there; anywhere else its absence would lose writes silently.
      if (O_DSYNC === undefined) throw new Error("This system has no O_DSYNC");
      const flags = O_CREAT | O_EXCL | O_WRONLY | O_DSYNC;
      const end = begin();
      const open = (): void =>
        fs.open(join(directory, name), flags, 0o600, (error, descriptor) => {
          if (error && isOutOfDescriptors(error)) return onceThereIsOne(open);
          end();
          keepSpares();
          if (error) done(error, null);
          else done(null, new DiskFile(descriptor, onGrowth, begin));
        });
      open();
    },
    remove(name, removed) {
      const done = ended(begin(), removed);
      fs.unlink(join(directory, name), (error) => done(error ?? null));
    },
    syncDirectory(synced) {
      syncDirectory(directory, ended(begin(), synced));
    },
  };
}

/** In pieces, so that also a runtime that reads on its main thread is never held up for long. */
function loadFile(
  path: string,
  begin: () => () => void,
  loaded: (error: Error | null, bytes: Uint8Array | null) => void,
): void {
  fs.open(path, "r", (openError, descriptor) => {
    if (openError) return loaded(openError, null);
    const finish = (error: Error | null, bytes: Uint8Array | null): void =>
      closed(descriptor, error, (closeError) => loaded(closeError, closeError ? null : bytes));
    fs.fstat(descriptor, (statError, stats) => {
      if (statError) return finish(statError, null);
      const bytes = new Uint8Array(stats.size);
      const readFrom = (at: number): void => {
        const length = Math.min(readBytesMax, bytes.byteLength - at);
        if (length === 0) return finish(null, bytes);
        const end = begin();
        fs.read(descriptor, bytes, at, length, at, (error, count) => {
          end();
          if (error) finish(error, null);
          // Shorter than it said it was: what is missing is missing.
          else if (count === 0) finish(null, bytes.subarray(0, at));
          else readFrom(at + count);
        });
      };
      readFrom(0);
    });
  });
}

/** Closes it whatever happened; what went wrong before counts more than that. */
function closed(descriptor: number, error: Error | null, done: DiskDone): void {
  fs.close(descriptor, (closeError) => done(error ?? closeError ?? null));
}

/** `syncDirectorySync`, of which only the sync itself takes time: this thread is not held up by that. */
export function syncDirectory(directory: string, done: (error: Error | null) => void): void {
  let descriptor: number;
  try {
    descriptor = fs.openSync(directory, "r");
  } catch (error) {
    if (isOutOfDescriptors(error)) onceThereIsOne(() => syncDirectory(directory, done));
    else queueMicrotask(() => done(error as Error));
    return;
  }
  fs.fsync(descriptor, (error) => closed(descriptor, error ?? null, done));
}

// --- descriptors -------------------------------------------------------------------------------------------------

const spares: number[] = [];

/** Takes back what was given, as far as it goes. To be called where descriptors become free. */
export function keepSpares(): void {
  try {
    while (spares.length < sparesMax) spares.push(fs.openSync("/dev/null", "r"));
  } catch {
    // Sockets have all descriptors just now.
  }
}

/** @returns whether there were any: what failed for want of a descriptor may be tried again at once */
export function giveSpares(): boolean {
  const given = spares.splice(-sparesAtOnce);
  for (const descriptor of given) fs.closeSync(descriptor);
  return given.length > 0;
}

export function isOutOfDescriptors(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === "EMFILE" || code === "ENFILE";
}

/** For what leaves nothing open behind it. */
function withDescriptors<T>(run: () => T): T {
  try {
    return run();
  } catch (error) {
    if (!isOutOfDescriptors(error) || !giveSpares()) throw error;
    try {
      return run();
    } finally {
      keepSpares();
    }
  }
}

/**
 * Nothing was asked of the disk yet: sockets have all descriptors just now, and some will be closed. Who asked counts it as
 * a write that has not ended.
 */
function onceThereIsOne(again: () => void): void {
  if (giveSpares()) again();
  else setTimeout(again, descriptorWaitMs);
}

/** Names in a directory. */
export function namesIn(directory: string): string[] {
  return withDescriptors(() => fs.readdirSync(directory));
}

/** Makes a name that was created, renamed or removed in this directory durable. */
export function syncDirectorySync(directory: string): void {
  const descriptor = withDescriptors(() => fs.openSync(directory, "r"));
  try {
    fs.fsyncSync(descriptor);
  } finally {
    fs.closeSync(descriptor);
  }
}

/** The file's bytes are on the disk when it returns; its name is not yet (`syncDirectorySync`). */
export function writeFileDurably(path: string, bytes: Uint8Array | string): void {
  // Not by the `flush` option of writeFileSync: not every runtime has it, and none says so.
  const descriptor = withDescriptors(() => fs.openSync(path, "w", 0o600));
  try {
    fs.writeFileSync(descriptor, bytes);
    fs.fsyncSync(descriptor);
  } finally {
    fs.closeSync(descriptor);
  }
}

class DiskFile implements JournalFile {
  readonly #descriptor: number;
  readonly #onGrowth: () => void;
  readonly #begin: () => () => void;
  #allocated = 0;
  #end = 0;

  constructor(descriptor: number, onGrowth: () => void, begin: () => () => void) {
    this.#descriptor = descriptor;
    this.#onGrowth = onGrowth;
    this.#begin = begin;
  }

  write(position: number, bytes: Uint8Array, written: DiskDone): void {
    const done = ended(this.#begin(), written);
    const end = position + bytes.byteLength;
    const allocate = end > this.#allocated ? Math.ceil(end / growthBytes) * growthBytes : 0;
    const vector = allocate === 0 ? [bytes] : [bytes, new Uint8Array(allocate - end)];
    this.#writeAll(vector, position, (error) => {
      if (error !== null) return done(error);
      if (allocate !== 0) {
        this.#allocated = allocate;
        this.#onGrowth();
      }
      this.#end = end;
      done(null);
    });
  }

  /** Gives back what was allocated and not used, so that a stopped node's directory is small. */
  close(done: DiskDone): void {
    fs.ftruncate(this.#descriptor, this.#end, (truncateError) => {
      fs.close(this.#descriptor, (closeError) => done(truncateError ?? closeError ?? null));
    });
  }

  /** A system call may take less than it was given; going on is no retry of a failed one. */
  #writeAll(vector: readonly Uint8Array[], position: number, done: DiskDone): void {
    fs.writev(this.#descriptor, vector, position, (error, written) => {
      if (error) return done(error);
      const rest = after(vector, written);
      if (rest.length === 0) return done(null);
      if (written === 0) return done(new Error("Disk took no bytes"));
      this.#writeAll(rest, position + written, done);
    });
  }
}

function nothing(): void {}

function ended(end: () => void, done: DiskDone): DiskDone {
  return (error) => {
    end();
    done(error);
  };
}

function after(vector: readonly Uint8Array[], written: number): Uint8Array[] {
  const rest: Uint8Array[] = [];
  let skip = written;
  for (const part of vector) {
    if (part.byteLength > skip) rest.push(part.subarray(skip));
    skip = Math.max(0, skip - part.byteLength);
  }
  return rest;
}
