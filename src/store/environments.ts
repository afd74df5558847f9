/**
 * One LMDB environment per replica: `<data>/tenants/<name>/data.mdb`, with the named databases `state` (row key → JSON
 * text), `log` (index, 8 bytes big-endian → entry) and `meta` (the host's row, and which of two databases holds the
 * state). A directory is complete in itself.
 *
 * A tenant that is awake holds an environment, not its descriptors: its file is opened when something is read, by LMDB
 * when much is read or something written, and closed for another's sake, so that more tenants are awake than environments
 * may be open.
 *
 * What must stay true:
 * - a commit is on the disk when `done(null)` is called (`overlappingSync: false`: lmdb then syncs data and writes its
 *   meta page through an O_DSYNC descriptor before the promise resolves; seen with strace on Bun, Deno and Node);
 * - an error of a commit is final for that environment: it takes no further one;
 * - a commit is all or nothing, also a large one, which is not one transaction (see `#commitLarge`);
 * - a directory under its own name is always a whole environment, or an empty one: its data file is made aside, with its
 *   first commit, and comes as a whole; nothing was ever committed where there is none;
 * - the name of a new one is synced behind, of many together; `whenKept` and the end of a commit wait for that;
 * - no more than `cap` are open, but for those that a commit, a snapshot or a staging keeps busy, at most `busyMax`;
 * - no cursor outlives a call, and no read transaction does but a snapshot's.
 */
import * as fs from "node:fs";
import { dirname, join } from "node:path";
import { asBinary, open } from "lmdb";
import type { Database, RootDatabase, Transaction } from "lmdb";
import { Problem } from "../api/problems.ts";
import type {
  Environment,
  EnvironmentChange,
  Environments,
  EnvironmentSnapshot,
  Range,
  Staging,
} from "../host/ports.ts";
import { assert, assertSafeInteger } from "../lib/assert.ts";
import {
  giveSpares,
  isOutOfDescriptors,
  keepSpares,
  namesIn,
  syncDirectory,
  syncDirectorySync,
  writeFileDurably,
} from "./disk.ts";
import { descriptorsPerEnvironment, environmentCap, readProcessLimits } from "./limits.ts";
import { LmdbFile, pageBytes } from "./lmdb_file.ts";

/** Environments that may be open beyond the cap while all within it are busy: the host keeps below, but for tiny caps. */
const busyMax = 16;
/**
 * So many may be open in any case. Each that is open makes every other one dearer to open and close (their runtimes look
 * through a list of them: 0.5 ms with 300, 1 ms with 3,000, measured on Bun), and holds 75 KB of memory.
 */
const openFew = 512;
/** By how much more may be open for each that should not have been closed. */
const openMore = 8;
/** Who reads more values of an environment at rest, or more of its pages (80 KB are kept), has LMDB open it. */
const glancesMax = 128;
const glancePagesMax = 20;
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
/** In `meta`: which database holds the rows (absent: the first), and that the other one holds staged ones. */
const holderKey = Uint8Array.of(2);
const stagedKey = Uint8Array.of(3);
/** In `meta`: rows of a large commit that may not all be in their place yet. The parts' numbers follow in two bytes. */
const redoKey = 4;
/** The second one is made when a snapshot first comes in; each installation makes the other one the state. */
const stateNames = ["state", "state2"] as const;

/** Rows of a commit that are encoded or queued in one turn: each costs some microseconds, and everybody else waits. */
const rowsPerTurnDefault = 1_000;

const rootOptions = {
  // Said aloud, so that a directory is the same on every machine.
  pageSize: pageBytes,
  noSubdir: true,
  // An awaited commit is durable; with the default it would only be visible.
  overlappingSync: false,
  // Each commit is one `batch`; there is nothing else in a turn to gather.
  eventTurnBatching: false,
  // Grows by itself; address space only.
  mapSize: 1024 * 1024,
  maxDbs: 4,
  // One process, one thread, synchronous reads; each open snapshot takes a slot.
  maxReaders: 64,
  compression: false,
  cache: false,
} as const;

export interface EnvironmentsOptions {
  /** The node's data directory; the environments are in `tenants/` below it. */
  readonly data: string;
  /** Lowers the number of environments open at once below what the process's limits allow. */
  readonly capMax?: number;
  /** How many may be open in any case. For tests. */
  readonly openFew?: number;
  /** Of a commit; more of them make it a large one. For tests. */
  readonly rowsPerTurn?: number;
  /** A transaction of a commit begins; what it returns is called when it has ended. */
  readonly begin?: () => () => void;
}

export class LmdbEnvironments implements Environments {
  readonly #directory: string;
  /** Those that somebody holds. */
  readonly #held = new Map<string, LmdbEnvironment>();
  /** Those of them whose LMDB is open, in the order in which the clock of second chances comes to them. */
  readonly #open = new Set<LmdbEnvironment>();
  readonly #pool: Pool = {
    begin: () => this.#begin(),
    opening: () => this.#makeRoom(),
    spare: () => this.#spare(),
    opened: (environment) => this.#opened(environment),
    closed: (environment) => this.#closed(environment),
  };
  readonly cap: number;
  /** How many to keep open, up to the cap: as many as are used again before all that the cap allows would have been. */
  #enough: number;
  readonly #few: number;
  #openings = 0;
  readonly #begin: () => () => void;
  #template: Uint8Array | null = null;
  readonly #rowsPerTurn: number;
  #removals = 0;
  /** Who waits for the next sync of the names; one is under way, or about to begin. */
  #unsynced: ((error: Error | null) => void)[] = [];
  #isSyncing = false;
  /** All names as they were found at first, until they are asked for or change. */
  #listed: string[] | null;

  constructor(options: EnvironmentsOptions) {
    this.#rowsPerTurn = options.rowsPerTurn ?? rowsPerTurnDefault;
    this.cap = Math.min(
      environmentCap(readProcessLimits()),
      options.capMax ?? Number.POSITIVE_INFINITY,
    );
    this.#few = Math.min(this.cap, options.openFew ?? openFew);
    this.#enough = this.#few;
    this.#begin = options.begin ?? (() => () => undefined);
    this.#directory = join(options.data, "tenants");
    fs.mkdirSync(this.#directory, { recursive: true });
    const names = fs.readdirSync(this.#directory);
    // What a crash left half made or half removed.
    for (const name of names)
      if (name.startsWith("."))
        fs.rmSync(join(this.#directory, name), { recursive: true, force: true });
    this.#listed = names;
    syncDirectorySync(this.#directory);
    syncDirectorySync(options.data);
    keepSpares();
  }

  open(name: string): LmdbEnvironment {
    assert(!this.#held.has(name), `Environment ${name} is open already`);
    const path = this.#path(name);
    const isMade = fs.existsSync(join(path, dataFile));
    const isNew = !isMade && !fs.existsSync(path);
    if (isNew) {
      this.#listed = null;
      makeDirectory(path);
    }
    const environment = new LmdbEnvironment(join(path, dataFile), this.#rowsPerTurn, this.#pool, {
      closed: () => this.#held.delete(name),
      isKept: !isNew,
      make: isMade
        ? null
        : { atOnce: () => this.#makeAtOnce(path), behind: () => this.#makeBehind(path) },
    });
    if (isMade) environment.look();
    this.#held.set(name, environment);
    if (isNew) this.#syncNames((error) => environment.kept(error));
    return environment;
  }

  /** That there was one outlives what is acknowledged in its name, whatever becomes of the journal. */
  #syncNames(done: (error: Error | null) => void): void {
    this.#unsynced.push(done);
    if (this.#isSyncing) return;
    this.#isSyncing = true;
    // What else is made in this call, by a turn that wakes many, goes along.
    queueMicrotask(() => this.#syncNext());
  }

  #syncNext(): void {
    const waiting = this.#unsynced;
    this.#unsynced = [];
    this.#isSyncing = waiting.length > 0;
    if (!this.#isSyncing) return;
    const end = this.#begin();
    syncDirectory(this.#directory, (error) => {
      end();
      for (const done of waiting) done(error);
      this.#syncNext();
    });
  }

  /** Before one more opens: closes those that were not used since this last came by, and are not busy. */
  #makeRoom(): void {
    if (this.#open.size < this.#enough) return;
    let chances = 2 * this.#open.size;
    for (const environment of this.#open) {
      if (this.#open.size < this.#enough || chances-- === 0) break;
      if (!environment.used && environment.rest()) continue;
      environment.used = false;
      // To the end of the line; the iteration meets it again.
      this.#open.delete(environment);
      this.#open.add(environment);
    }
    if (this.#open.size >= this.cap + busyMax)
      throw new Problem(
        "overloaded",
        `${this.#open.size} tenants are written, sent or saved at once on this node, its cap; raise the limit of open files (ulimit -n) or spread the tenants over more nodes`,
      );
  }

  /** Where sockets have all descriptors: gives some that were kept, or those of an environment that may rest. */
  #spare(): boolean {
    if (giveSpares()) return true;
    for (const environment of this.#open) if (environment.isOpen && environment.rest()) return true;
    return false;
  }

  #opened(environment: LmdbEnvironment): void {
    this.#openings += 1;
    // With all that the cap allows it would be open still: of these, more are kept. Of others it makes no difference.
    const isEarly = this.#openings - environment.closedAt < this.cap - this.#enough;
    this.#enough = isEarly
      ? Math.min(this.cap, this.#enough + openMore)
      : Math.max(this.#few, this.#enough - 1);
    this.#open.add(environment);
  }

  #closed(environment: LmdbEnvironment): void {
    environment.closedAt = this.#openings;
    this.#open.delete(environment);
    keepSpares();
  }

  exists(name: string): boolean {
    return fs.existsSync(this.#path(name));
  }

  /** Gone when the promise resolves, and as a whole or not at all after a crash. Nothing to do when it is not there. */
  async remove(name: string): Promise<void> {
    assert(!this.#held.has(name), `Environment ${name} is removed while open`);
    const path = this.#path(name);
    if (!fs.existsSync(path)) return;
    this.#listed = null;
    const aside = join(this.#directory, `${removing}${++this.#removals}-${name}`);
    fs.renameSync(path, aside);
    syncDirectorySync(this.#directory);
    await fs.promises.rm(aside, { recursive: true, force: true });
  }

  /**
   * Gives the pages back that nothing uses any more: the data is copied without them, and the copy takes the file's
   * place by one rename. After a crash it is the one file or the other.
   * @returns bytes of the file before and after
   */
  async compact(name: string): Promise<{ readonly before: number; readonly after: number }> {
    assert(!this.#held.has(name), `Environment ${name} is compacted while open`);
    const path = join(this.#path(name), dataFile);
    if (!fs.existsSync(path)) return { before: 0, after: 0 };
    new LmdbFile(path).close();
    const aside = join(this.#directory, `${making}${name}`);
    fs.rmSync(aside, { recursive: true, force: true });
    fs.mkdirSync(aside);
    const copy = join(aside, dataFile);
    const { root } = openDatabases(path);
    try {
      await root.backup(copy, true);
    } finally {
      await root.close();
    }
    new LmdbFile(copy).close();
    const file = fs.openSync(copy, "r+");
    fs.fsyncSync(file);
    fs.closeSync(file);
    const [before, after] = [path, copy].map((each) => fs.statSync(each).size) as [number, number];
    fs.renameSync(copy, path);
    syncDirectorySync(this.#path(name));
    fs.rmSync(aside, { recursive: true, force: true });
    return { before, after };
  }

  /** Names on the disk, open or not. O(tenants): for tools, never at start. */
  names(): string[] {
    // A start asks for them right after this has read them: of 100,000 that takes a tenth of a second.
    const names = this.#listed ?? namesIn(this.#directory);
    this.#listed = null;
    return names.filter((name) => nameGrammar.test(name));
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
  #emptyFile(): Uint8Array {
    this.#template ??= emptyEnvironment(join(this.#directory, templateName));
    return this.#template;
  }

  #makeAtOnce(path: string): void {
    // It may be there since a moment, and about to be synced.
    if (!fs.existsSync(join(path, dataFile))) {
      const aside = join(path, `${making}now`);
      writeFileDurably(aside, this.#emptyFile());
      fs.renameSync(aside, join(path, dataFile));
    }
    syncDirectorySync(path);
  }

  /** The same, on other threads: many may be made at a time. */
  async #makeBehind(path: string): Promise<void> {
    const aside = join(path, `${making}behind`);
    const bytes = this.#emptyFile();
    const file = await fs.promises.open(aside, "w", 0o600);
    try {
      await file.writeFile(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    // Unless it was made meanwhile, for a snapshot that comes in. In one call: nothing comes between.
    if (fs.existsSync(join(path, dataFile))) fs.rmSync(aside);
    else fs.renameSync(aside, join(path, dataFile));
    const directory = await fs.promises.open(path, "r");
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  }
}

function makeDirectory(path: string): void {
  try {
    fs.mkdirSync(path);
  } catch (error) {
    if (!isForWantOfRoom(error)) throw error;
    throw new Problem(
      "disk-full",
      `The disk of this node takes no further tenant (${error.code}): make room, or inodes, on it`,
    );
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

type State = Database<string, string>;

interface Databases {
  readonly root: RootDatabase;
  /** 0 or 1: which of `stateNames` holds the rows. */
  readonly holder: number;
  readonly state: State;
  /** Something was being staged when the environment was last closed, or its process died. */
  readonly isStaged: boolean;
  readonly log: Database<Uint8Array, Uint8Array>;
  readonly meta: Database<Uint8Array, Uint8Array>;
}

/** Where LMDB finds no descriptor it ends the process. @throws what the system says where there are too few */
function assertDescriptors(path: string): void {
  const held: number[] = [];
  try {
    while (held.length < descriptorsPerEnvironment) held.push(fs.openSync(path, "r"));
  } finally {
    for (const descriptor of held) fs.closeSync(descriptor);
  }
}

function openDatabases(path: string): Databases {
  const root = open({ path, ...rootOptions });
  const binary = { encoding: "binary", keyEncoding: "binary" } as const;
  // Always all three: a file made here is the template of every other.
  const first = openState(root, 0);
  const log = root.openDB<Uint8Array, Uint8Array>("log", binary);
  const meta = root.openDB<Uint8Array, Uint8Array>("meta", binary);
  const holder = meta.get(holderKey)?.[0] === 1 ? 1 : 0;
  const isStaged = meta.get(stagedKey) !== undefined;
  return { root, holder, isStaged, state: holder === 0 ? first : openState(root, 1), log, meta };
}

/**
 * Of one in which nothing is pending. lmdb's own `close` waits a few microtasks after any write, and a turn that opens
 * many would meanwhile have more descriptors than it counted; so its native part is called at once, and finds nothing to
 * do when lmdb calls it again.
 */
function closeNow(root: RootDatabase): void {
  void root.close();
  const { env } = root as unknown as { readonly env: { close(): void } };
  try {
    env.close();
  } catch {
    // Closed by the call before, as one that was only read is.
  }
}

/** A few values of a file that LMDB does not have open. */
class Glance {
  readonly #file: LmdbFile;
  readonly #state: number | null;
  readonly #log: number | null;
  readonly #meta: number | null;
  /** An earlier life left something half done. */
  readonly isUnsettled: boolean;
  #left = glancesMax;

  constructor(path: string) {
    this.#file = new LmdbFile(path);
    try {
      this.#meta = this.#file.root("meta");
      const holder = this.meta(holderKey)?.[0] === 1 ? 1 : 0;
      this.#state = this.#file.root(stateNames[holder]);
      this.#log = this.#file.root("log");
      this.isUnsettled = [stagedKey, redoPartKey(0)].some((key) => this.meta(key) !== undefined);
    } catch (error) {
      this.#file.close();
      throw error;
    }
  }

  get isEnough(): boolean {
    return this.#left <= 0 || this.#file.pagesRead > glancePagesMax;
  }

  meta(key: Uint8Array): Uint8Array | undefined {
    return this.#file.get(this.#meta, key);
  }

  row(key: string): string | undefined {
    this.#left -= 1;
    return this.#file.get(this.#state, Buffer.from(key))?.toString();
  }

  entry(index: number): Uint8Array | undefined {
    this.#left -= 1;
    return this.#file.get(this.#log, indexKey(index));
  }

  close(): void {
    this.#file.close();
  }
}

function openState(root: RootDatabase, holder: number): State {
  return root.openDB<string, string>(stateNames[holder] as string, { encoding: "string" });
}

/** What an environment asks of the one that made it. */
interface Making {
  closed(): void;
  /** Its name outlives a loss of power; else `kept` is called when it does. */
  readonly isKept: boolean;
  /** Of one that has no data file yet: makes an empty one; null: it has one. */
  readonly make: { atOnce(): void; behind(): Promise<void> } | null;
}

/** What an environment tells the one that counts the open ones. */
interface Pool {
  begin(): () => void;
  opening(): void;
  /** @returns whether descriptors were made free */
  spare(): boolean;
  opened(environment: LmdbEnvironment): void;
  closed(environment: LmdbEnvironment): void;
}

/** Made by `LmdbEnvironments.open`. */
export class LmdbEnvironment implements Environment {
  readonly #path: string;
  readonly #rowsPerTurn: number;
  readonly #pool: Pool;
  readonly #making: Making;
  /** There is no data file yet, and nothing to read. */
  #isEmpty: boolean;
  /** Null while it rests: no mapping, no memory of LMDB's. */
  #databases: Databases | null = null;
  /** Never beside it: LMDB would write to the same file. */
  #glance: Glance | null = null;
  #holder = 0;
  #state: State | null = null;
  /** The database that does not hold the state, once it was needed. */
  #other: State | null = null;
  #staging: LmdbStaging | null = null;
  readonly #snapshots = new Set<LmdbSnapshot>();
  #committing = false;
  #installing = false;
  #failed: Error | null = null;
  #closed = false;
  /** Who waits until its name is durable; null: it is, or that failed. */
  #keptWaiters: ((error: Error | null) => void)[] | null;
  #keptError: Error | null = null;
  /** Its file was looked at, and nobody but this process has written to it since. */
  #isChecked = false;
  /** Read or written since this was last set to false. */
  used = false;
  /** How many had been opened when it was last closed. */
  closedAt = -Infinity;

  constructor(path: string, rowsPerTurn: number, pool: Pool, made: Making) {
    this.#path = path;
    this.#rowsPerTurn = rowsPerTurn;
    this.#pool = pool;
    this.#making = made;
    this.#isEmpty = made.make !== null;
    this.#keptWaiters = made.isKept ? null : [];
  }

  whenKept(done: (error: Error | null) => void): void {
    if (this.#keptWaiters === null) done(this.#keptError);
    else this.#keptWaiters.push(done);
  }

  /** Its name is synced, or that failed. */
  kept(error: Error | null): void {
    this.#keptError = error;
    const waiters = this.#keptWaiters ?? [];
    this.#keptWaiters = null;
    for (const done of waiters) done(error);
  }

  get isOpen(): boolean {
    return this.#databases !== null || this.#glance !== null;
  }

  /** Opens the file to read a few values, unless LMDB has it open. Null: LMDB is to be asked. */
  look(): Glance | null {
    assert(!this.#closed, "Environment is closed");
    this.used = true;
    if (this.#databases !== null) return null;
    if (this.#glance !== null) return this.#glance.isEnough ? null : this.#glance;
    this.#pool.opening();
    const glance = this.#opened(() => new Glance(this.#path));
    this.#isChecked = true;
    this.#glance = glance;
    this.#pool.opened(this);
    if (!glance.isUnsettled) return glance;
    this.wake();
    return null;
  }

  #opened<T>(open: () => T): T {
    for (let tries = 0; ; tries++) {
      try {
        const opened = open();
        if (tries > 0) keepSpares();
        return opened;
      } catch (cause) {
        if (!isOutOfDescriptors(cause))
          throw new Error(`Cannot open environment ${dirname(this.#path)}`, { cause });
        if (this.#pool.spare()) continue;
        throw new Problem(
          "overloaded",
          "Connections have all files that this node may have open: close some, or raise the limit of open files (ulimit -n)",
          { cause },
        );
      }
    }
  }

  /** Opens the LMDB behind it, unless it is open. */
  wake(): Databases {
    assert(!this.#closed, "Environment is closed");
    this.used = true;
    if (this.#databases !== null) return this.#databases;
    if (this.#isEmpty) {
      this.#making.make?.atOnce();
      this.#isEmpty = false;
    }
    const isCounted = this.#glance !== null;
    this.#glance?.close();
    this.#glance = null;
    if (!isCounted) this.#pool.opening();
    let databases: Databases;
    try {
      databases = this.#opened(() => {
        assertDescriptors(this.#path);
        if (!this.#isChecked) new LmdbFile(this.#path).close();
        this.#isChecked = true;
        const all = openDatabases(this.#path);
        redo(all);
        return all;
      });
    } catch (error) {
      if (isCounted) this.#pool.closed(this);
      throw error;
    }
    this.#databases = databases;
    this.#holder = databases.holder;
    this.#state = databases.state;
    this.#other = null;
    if (!isCounted) this.#pool.opened(this);
    // What an earlier life left half received would otherwise keep its space.
    if (databases.isStaged) this.stage().discard();
    return databases;
  }

  /**
   * Closes what is open of it until it is needed again.
   * @returns false while something is under way in it
   */
  rest(): boolean {
    if (this.#glance !== null) {
      this.#glance.close();
      this.#glance = null;
      this.#pool.closed(this);
    }
    if (this.#databases === null) return true;
    const isBusy = this.#committing || this.#snapshots.size > 0 || this.#staging?.busy === true;
    if (isBusy) return false;
    const { root } = this.#databases;
    this.#databases = null;
    this.#state = null;
    this.#other = null;
    this.#staging = null;
    closeNow(root);
    this.#pool.closed(this);
    return true;
  }

  #rows(): State {
    this.wake();
    return this.#state as State;
  }

  meta(): Uint8Array | null {
    if (this.#isEmpty) return null;
    const glance = this.look();
    return copy(glance === null ? this.wake().meta.get(metaKey) : glance.meta(metaKey)) ?? null;
  }

  get(key: string): string | undefined {
    if (this.#isEmpty) return undefined;
    const glance = this.look();
    return glance === null ? this.#rows().get(key) : glance.row(key);
  }

  entry(index: number): Uint8Array | undefined {
    if (this.#isEmpty) return undefined;
    const glance = this.look();
    return copy(glance === null ? this.wake().log.get(indexKey(index)) : glance.entry(index));
  }

  /** Each page sees the last committed change at the time it is read. */
  range(range: Range): Generator<readonly [key: string, value: string]> {
    return paged(range, (page) =>
      this.#isEmpty ? { rows: [], complete: true } : readPage(this.#rows(), page),
    );
  }

  snapshot(): EnvironmentSnapshot {
    const snapshot = new LmdbSnapshot(this.#rows(), () => this.#snapshots.delete(snapshot));
    this.#snapshots.add(snapshot);
    return snapshot;
  }

  stage(): Staging {
    const { root, meta } = this.wake();
    assert(!this.#installing, "Staged rows are being installed");
    this.#staging?.supersede();
    this.#other ??= openState(root, 1 - this.#holder);
    const staging = new LmdbStaging(root, this.#other, meta, (error) => {
      this.#failed ??= error;
    });
    this.#staging = staging;
    return staging;
  }

  install(staging: Staging, meta: Uint8Array, done: (error: Error | null) => void): void {
    const { root, log, meta: metas } = this.wake();
    assert(staging === this.#staging, "What is installed is not what was staged");
    const [before, after] = [this.#state as State, this.#other as State];
    const holder = 1 - this.#holder;
    const write = async (): Promise<void> => {
      await (staging as LmdbStaging).settled();
      const pending: Promise<unknown>[] = [];
      pending.push(
        root.batch(() => {
          pending.push(before.clearAsync(), log.clearAsync());
          pending.push(metas.put(holderKey, Uint8Array.of(holder)), metas.remove(stagedKey));
          pending.push(metas.put(metaKey, meta));
        }),
      );
      await this.#watched(Promise.all(pending));
    };
    this.#installing = true;
    this.#run(write, (error) => {
      this.#installing = false;
      if (error === null) {
        [this.#state, this.#other, this.#holder] = [after, before, holder];
        this.#staging = null;
      }
      done(error);
    });
  }

  commit(change: EnvironmentChange, done: (error: Error | null) => void): void {
    // What cannot be opened throws here; what is empty can be made.
    if (!this.#isEmpty) this.wake();
    const rows = new Drawing(change.rows);
    const first = rows.next(this.#rowsPerTurn);
    const log = gatherLog(change);
    const encoded = rows.ended ? encodedAtOnce(first).rows : null;
    this.#run(async () => {
      if (this.#isEmpty) await this.#watched(this.#made());
      const databases = this.wake();
      if (encoded === null) return this.#commitLarge(databases, log, first, rows);
      const state = this.#state as State;
      return this.#watched(write(databases, state, { ...log, rows: encoded }));
    }, done);
  }

  async #made(): Promise<void> {
    await this.#making.make?.behind();
    this.#isEmpty = false;
    // It is the copy of one that LMDB made in this process.
    this.#isChecked = true;
  }

  #run(write: () => Promise<void>, done: (error: Error | null) => void): void {
    assert(!this.#committing, "A second commit while one is under way");
    if (this.#failed !== null) {
      const error = new Error("Environment failed before", { cause: this.#failed });
      queueMicrotask(() => done(error));
      return;
    }
    this.#committing = true;
    const finish = (error: Error | null): void => {
      this.#committing = false;
      this.#failed = error;
      done(error);
    };
    write().then(
      () => this.whenKept(finish),
      async (error: unknown) => finish(await commitError(error)),
    );
  }

  /** A transaction by itself: a large commit is many, and all of them together take as long as they are many. */
  async #watched(written: Promise<unknown>): Promise<void> {
    const end = this.#pool.begin();
    try {
      await written;
    } finally {
      end();
    }
  }

  async close(): Promise<void> {
    assert(!this.#committing, "An environment is closed while a commit is under way");
    if (this.#closed) return;
    this.#closed = true;
    for (const snapshot of this.#snapshots) snapshot.close();
    try {
      await this.#staging?.settled();
    } catch {
      // Nobody will install it.
    }
    const databases = this.#databases;
    this.#databases = null;
    this.#glance?.close();
    this.#glance = null;
    try {
      await databases?.root.close();
      await new Promise<void>((resolve) => {
        this.whenKept(() => resolve());
      });
    } finally {
      this.#pool.closed(this);
      this.#making.closed();
    }
  }

  /**
   * A large commit, a little per turn, since thousands of operations at once kept everybody waiting for a tenth of a
   * second. All of it is made durable first, in one transaction and as text; then the rows go to their places, and then
   * the text. After a crash in between, opening puts them there: twice is as good as once. Whoever reads meanwhile has
   * the rows of the commit in memory, as has the host.
   */
  async #commitLarge(
    databases: Databases,
    log: LogOperations,
    first: readonly Row[],
    drawn: Drawing,
  ): Promise<void> {
    const state = this.#state as State;
    const batches: (readonly EncodedRow[])[] = [];
    const parts: (readonly [key: Uint8Array, bytes: Uint8Array])[] = [];
    for (let rows = first; ; rows = drawn.next(this.#rowsPerTurn)) {
      const part = encodedAtOnce(rows);
      batches.push(part.rows);
      if (part.bytes.byteLength > 0) parts.push([redoPartKey(parts.length), part.bytes]);
      if (drawn.ended) break;
      await nextTurn();
    }
    await this.#watched(write(databases, state, { ...log, rows: [], redo: parts }));
    for (const rows of batches) await this.#watched(write(databases, state, { rows }));
    const redone = parts.map(([key]) => key);
    await this.#watched(write(databases, state, { rows: [], redone }));
  }
}

/** Everything queued inside one `batch` is one transaction, in this order. */
async function write(
  { root, log, meta }: Databases,
  state: State,
  { rows, entriesDeleted = [], entries = [], redo = [], redone = [], ...rest }: Operations,
): Promise<void> {
  const pending = new Set<Promise<unknown>>();
  const deleted: Uint8Array[] = [];
  for (const range of entriesDeleted) for (const key of log.getKeys(range)) deleted.push(key);
  const committed = root.batch(() => {
    for (const key of deleted) pending.add(log.remove(key));
    for (const row of rows) pending.add(putEncoded(state, row));
    for (const [key, bytes] of entries) pending.add(log.put(key, bytes));
    for (const [key, bytes] of redo) pending.add(meta.put(key, bytes));
    for (const key of redone) pending.add(meta.remove(key));
    if (rest.meta !== undefined) pending.add(meta.put(metaKey, rest.meta));
  });
  // Inside a batch these are one and the same settled promise; none may float all the same.
  await Promise.all([committed, ...pending]);
}

/**
 * Rows with their values as bytes, all views into one piece of memory: a buffer for each cost, with the question for its
 * address, more than the rest of queueing it. A line per row: its key, and after a tab its text. Neither holds a line's
 * end: JSON escapes it.
 */
function encodedAtOnce(rows: readonly Row[]): EncodedRows {
  let text = "";
  for (const [key, value] of rows) text += value === undefined ? `${key}\n` : `${key}\t${value}\n`;
  const bytes = Buffer.from(text);
  const isAscii = bytes.byteLength === text.length;
  const encoded: EncodedRow[] = [];
  let at = 0;
  for (const [key, value] of rows) {
    at += key.length + 1;
    if (value === undefined) encoded.push([key, null]);
    else {
      const end = at + (isAscii ? value.length : Buffer.byteLength(value));
      encoded.push([key, bytes.subarray(at, end)]);
      at = end + 1;
    }
  }
  return { bytes, rows: encoded };
}

/** What lmdb does with a string, but for encoding it: its types do not know that any database takes bytes. */
function putEncoded(state: State, [key, value]: EncodedRow): Promise<unknown> {
  return value === null ? state.remove(key) : state.put(key, asBinary(value) as unknown as string);
}

function putRow(state: State, [key, value]: Row): Promise<unknown> {
  return value === undefined ? state.remove(key) : state.put(key, value);
}

/** Ends what a large commit of an earlier life began: it was durable already. */
function redo({ root, state, meta }: Databases): void {
  const parts: Uint8Array[] = [];
  for (;;) {
    const part = copy(meta.get(redoPartKey(parts.length)));
    if (part === undefined) break;
    parts.push(part);
  }
  if (parts.length === 0) return;
  try {
    const rows = parts.map(redoRows);
    root.transactionSync(() => {
      for (const row of rows.flat()) void putRow(state, row);
      for (const at of parts.keys()) void meta.remove(redoPartKey(at));
    });
  } catch (error) {
    // With half of the rows in their places nobody may read it: it stays closed.
    closeNow(root);
    throw error;
  }
}

/** Made by `LmdbEnvironment.snapshot`. */
class LmdbSnapshot implements EnvironmentSnapshot {
  readonly #state: State;
  readonly #transaction: Transaction;
  readonly #onClose: () => void;
  #closed = false;

  constructor(state: State, onClose: () => void) {
    this.#state = state;
    this.#transaction = state.useReadTransaction();
    this.#onClose = onClose;
  }

  get(key: string): string | undefined {
    assert(!this.#closed, "Snapshot is closed");
    return this.#state.get(key, { transaction: this.#transaction });
  }

  range(range: Range): Generator<readonly [key: string, value: string]> {
    return paged(range, (page) => {
      assert(!this.#closed, "Snapshot is closed");
      return readPage(this.#state, page, this.#transaction);
    });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#transaction.done();
    this.#onClose();
  }
}

/** Made by `LmdbEnvironment.stage`. Each `add` is a transaction of its own: memory holds no more than one. */
class LmdbStaging implements Staging {
  readonly #root: RootDatabase;
  readonly #rows: State;
  readonly #meta: Database<Uint8Array, Uint8Array>;
  readonly #failed: (error: Error) => void;
  #begun = false;
  #ended = false;
  #writing = 0;
  #writes: Promise<void> = Promise.resolve();

  constructor(
    root: RootDatabase,
    rows: State,
    meta: Database<Uint8Array, Uint8Array>,
    failed: (error: Error) => void,
  ) {
    this.#root = root;
    this.#rows = rows;
    this.#meta = meta;
    this.#failed = failed;
  }

  add(
    rows: readonly (readonly [key: string, value: string])[],
    done: (error: Error | null) => void,
  ): void {
    assert(!this.#ended, "Rows are staged after the end");
    for (const [key] of rows) assertRowKey(key);
    this.#write((pending) => {
      for (const [key, value] of rows) pending.push(this.#rows.put(key, value));
    }, done);
  }

  discard(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#write(
      (pending) => {
        // The first write of every staging begins with the same.
        pending.push(this.#rows.clearAsync(), this.#meta.remove(stagedKey));
      },
      () => {},
    );
  }

  /** It may get more rows, or some are being written. */
  get busy(): boolean {
    return !this.#ended || this.#writing > 0;
  }

  /** Another one takes its place, and clears what is there. */
  supersede(): void {
    this.#ended = true;
  }

  /** Everything added so far is written. Rejects when something was not. */
  settled(): Promise<void> {
    if (!this.#begun)
      this.#write(
        () => {},
        () => {},
      );
    return this.#writes;
  }

  #write(
    fill: (pending: Promise<unknown>[]) => void,
    written: (error: Error | null) => void,
  ): void {
    const first = !this.#begun;
    this.#begun = true;
    const pending: Promise<unknown>[] = [];
    pending.push(
      this.#root.batch(() => {
        if (first)
          pending.push(this.#rows.clearAsync(), this.#meta.put(stagedKey, Uint8Array.of(1)));
        fill(pending);
      }),
    );
    const write = Promise.all(pending).then(() => {});
    const before = this.#writes;
    this.#writes = before.then(() => write);
    this.#writing += 1;
    this.#writes.then(
      () => {
        this.#writing -= 1;
        written(null);
      },
      async (error: unknown) => {
        this.#writing -= 1;
        const failure = await commitError(error);
        this.#failed(failure);
        written(failure);
      },
    );
  }
}

interface Page {
  readonly start: string;
  readonly end: string;
  readonly reverse: boolean;
  readonly exclusiveStart: boolean;
}

interface PageRead {
  readonly rows: (readonly [key: string, value: string])[];
  readonly complete: boolean;
}

/** A range page by page, each a cursor that is closed before its rows are handed out. */
function* paged(
  range: Range,
  read: (page: Page) => PageRead,
): Generator<readonly [key: string, value: string]> {
  const { gte, lt } = range;
  const reverse = range.reverse === true;
  if (gte >= lt) return;
  let start = reverse ? lt : gte;
  let exclusiveStart = false;
  for (;;) {
    const page = read({ start, end: reverse ? gte : lt, reverse, exclusiveStart });
    yield* page.rows;
    const last = page.rows.at(-1);
    if (page.complete || last === undefined) return;
    start = last[0];
    exclusiveStart = true;
  }
}

function readPage(state: State, page: Page, transaction?: Transaction): PageRead {
  const { start, end, reverse, exclusiveStart } = page;
  const rows: (readonly [key: string, value: string])[] = [];
  let bytes = 0;
  const options = {
    start,
    end,
    reverse,
    snapshot: false,
    ...(transaction !== undefined && { transaction }),
  };
  for (const { key, value } of state.getRange(options)) {
    // lmdb excludes the end and includes the start, in the direction of travel; a range of ours includes `gte` and
    // excludes `lt` whichever way it is read.
    if (key === start && (exclusiveStart || reverse)) continue;
    rows.push([key, value]);
    bytes += key.length + value.length;
    if (rows.length >= pageRowsMax || bytes >= pageBytesMax) return { rows, complete: false };
  }
  const first = reverse
    ? state.get(end, transaction === undefined ? {} : { transaction })
    : undefined;
  if (first !== undefined) rows.push([end, first]);
  return { rows, complete: true };
}

function assertRowKey(key: string): void {
  assert(key.length <= keyBytesMax && keyGrammar.test(key), "Row key is not short ASCII text");
}

/** Undefined deletes. */
type Row = readonly [key: string, value: string | undefined];
/** Null deletes. */
type EncodedRow = readonly [key: string, value: Uint8Array | null];

interface EncodedRows {
  /** All of them as text, which `redoRows` reads. */
  readonly bytes: Uint8Array;
  readonly rows: readonly EncodedRow[];
}

interface LogOperations {
  readonly entriesDeleted: readonly { readonly start: Uint8Array; readonly end: Uint8Array }[];
  readonly entries: readonly (readonly [key: Uint8Array, bytes: Uint8Array])[];
  readonly meta: Uint8Array;
}

interface Operations extends Partial<LogOperations> {
  readonly rows: readonly EncodedRow[];
  readonly redo?: readonly (readonly [key: Uint8Array, bytes: Uint8Array])[];
  readonly redone?: readonly Uint8Array[];
}

/** Rows are checked before the first operation is queued: lmdb commits what a batch holds, also when what fills it throws. */
class Drawing {
  readonly #rows: Iterator<Row>;
  ended = false;

  constructor(rows: Iterable<Row>) {
    this.#rows = rows[Symbol.iterator]();
  }

  next(count: number): readonly Row[] {
    const rows: Row[] = [];
    while (rows.length < count) {
      const step = this.#rows.next();
      this.ended = step.done === true;
      if (step.done === true) break;
      assertRowKey(step.value[0]);
      rows.push(step.value);
    }
    return rows;
  }
}

function gatherLog(change: EnvironmentChange): LogOperations {
  const entries: (readonly [key: Uint8Array, bytes: Uint8Array])[] = [];
  for (const [index, bytes] of change.entries) entries.push([indexKey(index), bytes]);
  const entriesDeleted = change.entriesDeleted
    .filter(({ low, high }) => low < high)
    .map(({ low, high }) => ({ start: indexKey(low), end: indexKey(high) }));
  return { entriesDeleted, entries, meta: change.meta };
}

function redoPartKey(part: number): Uint8Array {
  return Uint8Array.of(redoKey, part >>> 8, part);
}

function redoRows(part: Uint8Array): Row[] {
  const lines = new TextDecoder("utf-8", { fatal: true }).decode(part).split("\n");
  assert(lines.pop() === "", "The rows of a large commit end early");
  return lines.map((line) => {
    const tab = line.indexOf("\t");
    return tab < 0 ? [line, undefined] : [line.slice(0, tab), line.slice(tab + 1)];
  });
}

/** Neither the directory nor what it is in is at fault: it is made when something went. */
function isForWantOfRoom(error: unknown): error is NodeJS.ErrnoException {
  const { code } = error as NodeJS.ErrnoException;
  return code === "ENOSPC" || code === "EDQUOT";
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

/** lmdb may hand out a view of memory it uses again; of a page that was read it would keep all. */
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
