/**
 * One LMDB environment per replica: `<data>/tenants/<name>/data.mdb`, with the named databases `state` (row key → JSON
 * text), `log` (index, 8 bytes big-endian → entry) and `meta` (one row). A directory is complete in itself.
 *
 * What must stay true:
 * - a commit is on the disk when `done(null)` is called (`overlappingSync: false`: lmdb then syncs data and writes its
 *   meta page through an O_DSYNC descriptor before the promise resolves; seen with strace on Bun, Deno and Node);
 * - an error of a commit is final for that environment: it takes no further one;
 * - a directory under its own name is always a whole environment: it is made and removed under names of its own;
 * - no more than `cap` are open, and no cursor or read snapshot outlives a call.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import { open } from "lmdb";
import type { Database, RootDatabase } from "lmdb";
import { Problem } from "../api/problems.ts";
import type { Environment, EnvironmentChange, Environments, Range } from "../host/ports.ts";
import { assert, assertSafeInteger } from "../lib/assert.ts";
import { syncDirectorySync, writeFileDurably } from "./disk.ts";
import { environmentCap, readProcessLimits } from "./limits.ts";

/** A range is read in pages of at most this, so that a large one is neither held in memory nor holds a snapshot. */
const pageRowsMax = 256;
const pageBytesMax = 256 * 1024;

const dataFile = "data.mdb";
const making = ".making-";
const removing = ".removing-";
const templateName = ".template";
const nameGrammar = /^[A-Za-z0-9_][A-Za-z0-9._@-]{0,127}$/;
/** lmdb's bound for pages of 4 KiB. */
const keyBytesMax = 1978;
/** Printable, so that lmdb's key encoding keeps the order of the text. */
const keyGrammar = /^[\x20-\x7e]+$/;
const metaKey = Uint8Array.of(1);

/** Said aloud, so that a directory is the same on every machine. */
const pageBytes = 4096;

const rootOptions = {
  pageSize: pageBytes,
  noSubdir: true,
  // An awaited commit is durable; with the default it would only be visible.
  overlappingSync: false,
  // Each commit is one `batch`; there is nothing else in a turn to gather.
  eventTurnBatching: false,
  // Grows by itself; address space only.
  mapSize: 1024 * 1024,
  maxDbs: 3,
  // One process, one thread, synchronous reads.
  maxReaders: 8,
  compression: false,
  cache: false,
} as const;

export interface EnvironmentsOptions {
  /** The node's data directory; the environments are in `tenants/` below it. */
  readonly data: string;
  /** Lowers the number of environments open at once below what the process's limits allow. */
  readonly capMax?: number;
}

export class LmdbEnvironments implements Environments {
  readonly #directory: string;
  readonly #open = new Map<string, LmdbEnvironment>();
  readonly cap: number;
  #template: Uint8Array | null = null;
  #removals = 0;

  constructor(options: EnvironmentsOptions) {
    this.cap = Math.min(
      environmentCap(readProcessLimits()),
      options.capMax ?? Number.POSITIVE_INFINITY,
    );
    this.#directory = join(options.data, "tenants");
    fs.mkdirSync(this.#directory, { recursive: true });
    // What a crash left half made or half removed.
    for (const name of fs.readdirSync(this.#directory))
      if (name.startsWith("."))
        fs.rmSync(join(this.#directory, name), { recursive: true, force: true });
    syncDirectorySync(this.#directory);
    syncDirectorySync(options.data);
  }

  open(name: string): LmdbEnvironment {
    assert(!this.#open.has(name), `Environment ${name} is open already`);
    if (this.#open.size >= this.cap)
      throw new Problem(
        "overloaded",
        `${this.#open.size} tenants are open on this node, its cap; raise the limit of open files (ulimit -n) or spread the tenants over more nodes`,
      );
    const path = this.#path(name);
    if (!fs.existsSync(join(path, dataFile))) this.#create(name, path);
    let environment: LmdbEnvironment;
    try {
      checkDataFile(join(path, dataFile));
      environment = new LmdbEnvironment(join(path, dataFile), () => this.#open.delete(name));
    } catch (error) {
      throw new Error(`Cannot open environment ${path}`, { cause: error });
    }
    this.#open.set(name, environment);
    return environment;
  }

  exists(name: string): boolean {
    return fs.existsSync(join(this.#path(name), dataFile));
  }

  /** Gone when the promise resolves, and as a whole or not at all after a crash. Nothing to do when it is not there. */
  async remove(name: string): Promise<void> {
    assert(!this.#open.has(name), `Environment ${name} is removed while open`);
    const path = this.#path(name);
    if (!fs.existsSync(path)) return;
    const aside = join(this.#directory, `${removing}${++this.#removals}-${name}`);
    fs.renameSync(path, aside);
    syncDirectorySync(this.#directory);
    await fs.promises.rm(aside, { recursive: true, force: true });
  }

  /** Names on the disk, open or not. O(tenants): for tools, never at start. */
  names(): string[] {
    return fs.readdirSync(this.#directory).filter((name) => nameGrammar.test(name));
  }

  get open_count(): number {
    return this.#open.size;
  }

  #path(name: string): string {
    if (!nameGrammar.test(name)) throw new Error(`Environment name is not valid: ${name}`);
    return join(this.#directory, name);
  }

  /**
   * An empty environment is a copied file: lmdb would make the three databases in three synced transactions on this
   * thread, and a crash between its first writes would leave a file that does not open.
   */
  #create(name: string, path: string): void {
    this.#template ??= emptyEnvironment(join(this.#directory, templateName));
    const aside = join(this.#directory, `${making}${name}`);
    fs.rmSync(aside, { recursive: true, force: true });
    fs.mkdirSync(aside);
    writeFileDurably(join(aside, dataFile), this.#template);
    syncDirectorySync(aside);
    // A directory without its data file is no environment: nothing was ever acknowledged in it.
    fs.rmSync(path, { recursive: true, force: true });
    fs.renameSync(aside, path);
    syncDirectorySync(this.#directory);
  }
}

function emptyEnvironment(directory: string): Uint8Array {
  fs.rmSync(directory, { recursive: true, force: true });
  fs.mkdirSync(directory);
  const path = join(directory, dataFile);
  const { root } = openDatabases(path);
  // Nothing is pending, so lmdb closes before it returns; the promise is a formality.
  void root.close();
  const bytes = fs.readFileSync(path);
  fs.rmSync(directory, { recursive: true, force: true });
  return bytes;
}

/**
 * lmdb ends the process with a segmentation fault when it is given a file that is not its own (seen on Bun and Node), so
 * the two meta pages are looked at first. The layout is lmdb 1.0's: a page header of 24 bytes, magic, version, address,
 * map size, two database records of 48 bytes with the root page as their last number, last page, transaction.
 */
function checkDataFile(path: string): void {
  const descriptor = fs.openSync(path, "r");
  const size = fs.fstatSync(descriptor).size;
  const pages = Buffer.alloc(2 * pageBytes);
  fs.readSync(descriptor, pages, 0, pages.byteLength, 0);
  fs.closeSync(descriptor);
  if (size < pages.byteLength) throw new Error("Data file is shorter than its two meta pages");
  const metas = [pages.subarray(0, pageBytes), pages.subarray(pageBytes)];
  for (const meta of metas)
    if (meta.readUInt32LE(24) !== 0xbeefc0de || (meta.readUInt32LE(28) & 0xffff) !== 2)
      throw new Error("Data file is not an LMDB environment of data format 2");
  const newest = metas.sort((a, b) => Number(b.readBigUInt64LE(152) - a.readBigUInt64LE(152)))[0];
  for (const at of [88, 136]) {
    const root = newest?.readBigUInt64LE(at) ?? 0n;
    if (root !== 0xffff_ffff_ffff_ffffn && (root + 1n) * BigInt(pageBytes) > BigInt(size))
      throw new Error(`Data file was cut off: page ${root} lies behind its end of ${size} bytes`);
  }
}

interface Databases {
  readonly root: RootDatabase;
  readonly state: Database<string, string>;
  readonly log: Database<Uint8Array, Uint8Array>;
  readonly meta: Database<Uint8Array, Uint8Array>;
}

function openDatabases(path: string): Databases {
  const root = open({ path, ...rootOptions });
  const binary = { encoding: "binary", keyEncoding: "binary" } as const;
  return {
    root,
    state: root.openDB<string, string>("state", { encoding: "string" }),
    log: root.openDB<Uint8Array, Uint8Array>("log", binary),
    meta: root.openDB<Uint8Array, Uint8Array>("meta", binary),
  };
}

/** Made by `LmdbEnvironments.open`. */
export class LmdbEnvironment implements Environment {
  readonly #databases: Databases;
  readonly #onClose: () => void;
  #committing = false;
  #failed: Error | null = null;
  #closed = false;

  constructor(path: string, onClose: () => void) {
    this.#databases = openDatabases(path);
    this.#onClose = onClose;
  }

  meta(): Uint8Array | null {
    this.#assertOpen();
    return copy(this.#databases.meta.get(metaKey)) ?? null;
  }

  get(key: string): string | undefined {
    this.#assertOpen();
    return this.#databases.state.get(key);
  }

  entry(index: number): Uint8Array | undefined {
    this.#assertOpen();
    return copy(this.#databases.log.get(indexKey(index)));
  }

  /** Each page sees the last committed change at the time it is read. */
  *range(range: Range): Generator<readonly [key: string, value: string]> {
    const { gte, lt } = range;
    const reverse = range.reverse === true;
    if (gte >= lt) return;
    let from = reverse ? lt : gte;
    let exclusive = false;
    for (;;) {
      const page = this.#page(from, reverse ? gte : lt, reverse, exclusive);
      yield* page.rows;
      const last = page.rows.at(-1);
      if (page.complete || last === undefined) return;
      from = last[0];
      exclusive = true;
    }
  }

  commit(change: EnvironmentChange, done: (error: Error | null) => void): void {
    this.#assertOpen();
    assert(!this.#committing, "A second commit while one is under way");
    if (this.#failed !== null) {
      const error = new Error("Environment failed before", { cause: this.#failed });
      queueMicrotask(() => done(error));
      return;
    }
    const operations = gather(change);
    this.#committing = true;
    const finish = (error: Error | null): void => {
      this.#committing = false;
      this.#failed = error;
      done(error);
    };
    this.#write(operations).then(
      () => finish(null),
      async (error: unknown) => finish(await commitError(error)),
    );
  }

  async close(): Promise<void> {
    assert(!this.#committing, "An environment is closed while a commit is under way");
    if (this.#closed) return;
    this.#closed = true;
    const { root } = this.#databases;
    try {
      await root.close();
    } finally {
      this.#onClose();
    }
  }

  /** Everything queued inside one `batch` is one transaction, in this order. */
  async #write(operations: Operations): Promise<void> {
    const { root, state, log, meta } = this.#databases;
    const pending = new Set<Promise<unknown>>();
    const deleted: Uint8Array[] = [];
    for (const range of operations.entriesDeleted)
      for (const key of log.getKeys(range)) deleted.push(key);
    const committed = root.batch(() => {
      if (operations.clear) pending.add(state.clearAsync()).add(log.clearAsync());
      for (const key of operations.rowsDeleted) pending.add(state.remove(key));
      for (const key of deleted) pending.add(log.remove(key));
      for (const [key, value] of operations.rows) pending.add(state.put(key, value));
      for (const [key, bytes] of operations.entries) pending.add(log.put(key, bytes));
      pending.add(meta.put(metaKey, operations.meta));
    });
    // Inside a batch these are one and the same settled promise; none may float all the same.
    await Promise.all([committed, ...pending]);
  }

  #page(
    start: string,
    end: string,
    reverse: boolean,
    exclusiveStart: boolean,
  ): { rows: (readonly [key: string, value: string])[]; complete: boolean } {
    this.#assertOpen();
    const rows: (readonly [key: string, value: string])[] = [];
    let bytes = 0;
    const options = { start, end, reverse, snapshot: false };
    for (const { key, value } of this.#databases.state.getRange(options)) {
      // lmdb excludes the end and includes the start, in the direction of travel; a range of ours includes `gte` and
      // excludes `lt` whichever way it is read.
      if (key === start && (exclusiveStart || reverse)) continue;
      rows.push([key, value]);
      bytes += key.length + value.length;
      if (rows.length >= pageRowsMax || bytes >= pageBytesMax) return { rows, complete: false };
    }
    const first = reverse ? this.#databases.state.get(end) : undefined;
    if (first !== undefined) rows.push([end, first]);
    return { rows, complete: true };
  }

  #assertOpen(): void {
    assert(!this.#closed, "Environment is closed");
  }
}

interface Operations {
  readonly clear: boolean;
  readonly rowsDeleted: readonly string[];
  readonly rows: readonly (readonly [key: string, value: string])[];
  readonly entriesDeleted: readonly { readonly start: Uint8Array; readonly end: Uint8Array }[];
  readonly entries: readonly (readonly [key: Uint8Array, bytes: Uint8Array])[];
  readonly meta: Uint8Array;
}

/**
 * Draws and checks everything before the first operation is queued: lmdb commits what a batch holds, also when the code
 * that fills it throws in the middle.
 */
function gather(change: EnvironmentChange): Operations {
  const rowsDeleted: string[] = [];
  const rows: (readonly [key: string, value: string])[] = [];
  for (const [key, value] of change.rows) {
    assert(key.length <= keyBytesMax && keyGrammar.test(key), "Row key is not short ASCII text");
    if (value !== undefined) rows.push([key, value]);
    else if (!change.clear) rowsDeleted.push(key);
  }
  const entries: (readonly [key: Uint8Array, bytes: Uint8Array])[] = [];
  for (const [index, bytes] of change.entries) entries.push([indexKey(index), bytes]);
  const entriesDeleted = change.clear
    ? []
    : change.entriesDeleted
        .filter(({ low, high }) => low < high)
        .map(({ low, high }) => ({ start: indexKey(low), end: indexKey(high) }));
  return { clear: change.clear, rowsDeleted, rows, entriesDeleted, entries, meta: change.meta };
}

/** lmdb may hand out a view of memory it uses again. */
function copy(bytes: Uint8Array | undefined): Uint8Array | undefined {
  return bytes === undefined ? undefined : Uint8Array.from(bytes);
}

function indexKey(index: number): Uint8Array {
  assertSafeInteger(index, "Log index");
  const key = new Uint8Array(8);
  const view = new DataView(key.buffer);
  view.setUint32(0, Math.floor(index / 2 ** 32));
  view.setUint32(4, index >>> 0);
  return key;
}

/** lmdb puts the cause into a promise of its own, which would otherwise end the process as an unhandled rejection. */
async function commitError(error: unknown): Promise<Error> {
  const attached = error instanceof Error && "commitError" in error ? error.commitError : null;
  try {
    await attached;
  } catch (cause) {
    return new Error("LMDB commit failed", { cause });
  }
  return new Error("LMDB commit failed", { cause: error });
}
