/** An environment in memory: atomic like the real one, durable when its owner says so. Used by host tests and the simulator. */
import { freshMeta as freshMetaOf, type ReplicaMeta } from "../../src/host/group_log.ts";
import type { Replica } from "../../src/host/replica.ts";
import { SortedMap } from "../../src/lib/sorted_map.ts";
import type {
  Environment,
  EnvironmentChange,
  EnvironmentSnapshot,
  Range,
  Staging,
} from "../../src/host/ports.ts";

/** All rows of a replica, as a snapshot of it has them. */
export function rowsOf(replica: Replica): (readonly [key: string, text: string])[] {
  const snapshot = replica.snapshot();
  const rows = [...snapshot.rows()];
  snapshot.close();
  return rows;
}

/** A change with everything lazy in it already drawn, as the real store does before it starts writing. */
export interface PreparedChange {
  /** An installation: everything before is gone. */
  readonly clear?: boolean;
  readonly meta: Uint8Array;
  readonly rows: readonly (readonly [string, string | undefined])[];
  readonly entries: readonly (readonly [number, Uint8Array])[];
  readonly entriesDeleted: EnvironmentChange["entriesDeleted"];
}

/** Of replica 1 of a group that has done nothing yet; replica i lives on node n<i>. */
export function freshMeta(voters: readonly number[]): ReplicaMeta {
  const members = voters.map((id) => ({ id, node: `n${id}` }));
  return freshMetaOf({ tenant: "t", group: 2, incarnation: 1 }, 1, members);
}

/** `stored`, to which changes are committed as `commit` will have it. */
export function committedBy(
  stored: MemoryEnvironment,
  commit: (prepared: PreparedChange, done: (error: Error | null) => void) => void,
): Environment {
  let isClosed = false;
  const open = (): void => {
    if (isClosed) throw new Error("Snapshot is closed");
  };
  return {
    whenKept: (done) => stored.whenKept(done),
    meta: () => stored.meta(),
    get: (key) => stored.get(key),
    range: (range) => stored.range(range),
    entry: (index) => stored.entry(index),
    snapshot: () => {
      const taken = stored.snapshot();
      return {
        get: (key) => {
          open();
          return taken.get(key);
        },
        range: (range) => {
          open();
          return taken.range(range);
        },
        close: () => taken.close(),
      };
    },
    stage: () => stored.stage(),
    commit: (change, done) => commit(prepare(change), done),
    install: (staging, meta, done) => commit(prepareInstall(staging, meta), done),
    close: async () => {
      isClosed = true;
    },
  };
}

export function prepare(change: EnvironmentChange): PreparedChange {
  return { ...change, rows: [...change.rows], entries: [...change.entries] };
}

/** What an installation writes, in one. */
export function prepareInstall(staging: Staging, meta: Uint8Array): PreparedChange {
  const { rows } = staging as MemoryStaging;
  return { clear: true, meta, rows, entries: [], entriesDeleted: [] };
}

/** Staged rows in memory; a crash forgets them, as the real one's next life does. */
export class MemoryStaging implements Staging {
  readonly rows: (readonly [string, string])[] = [];
  discarded = false;
  readonly #schedule: (run: () => void) => void;
  /** Called in their order, whatever order the schedule has: the port owes it. */
  readonly #dones: ((error: Error | null) => void)[] = [];

  constructor(schedule: (run: () => void) => void = (run) => run()) {
    this.#schedule = schedule;
  }

  add(rows: readonly (readonly [string, string])[], done: (error: Error | null) => void): void {
    this.rows.push(...rows);
    this.#dones.push(done);
    this.#schedule(() => this.#dones.shift()?.(null));
  }

  discard(): void {
    this.discarded = true;
  }
}

export class MemoryEnvironment implements Environment {
  #meta: Uint8Array | null = null;
  #rows = new SortedMap<string>();
  #entries = new Map<number, Uint8Array>();
  #staging: MemoryStaging | null = null;
  /** Who waits until it is certain to be there after a crash; null: it is. */
  #keptWaiters: ((error: Error | null) => void)[] | null = null;

  whenKept(done: (error: Error | null) => void): void {
    if (this.#keptWaiters === null) done(null);
    else this.#keptWaiters.push(done);
  }

  get isKept(): boolean {
    return this.#keptWaiters === null;
  }

  /** From now on, until `keep`, a crash may take it away as a whole. */
  keepLater(): void {
    this.#keptWaiters = [];
  }

  /** A crash that left it there: who waited is gone. */
  survived(): void {
    this.#keptWaiters = null;
  }

  keep(error: Error | null = null): void {
    const waiters = this.#keptWaiters ?? [];
    this.#keptWaiters = null;
    for (const done of waiters) done(error);
  }

  meta(): Uint8Array | null {
    return this.#meta;
  }

  get(key: string): string | undefined {
    return this.#rows.get(key);
  }

  range(range: Range): Iterable<readonly [string, string]> {
    return rangeOf(this.#rows, range);
  }

  snapshot(): EnvironmentSnapshot {
    const rows = this.#rows.clone();
    return {
      get: (key) => rows.get(key),
      range: (range) => rangeOf(rows, range),
      close: () => {},
    };
  }

  /** As on disk there is room for one: another one takes the place of the first. */
  stage(schedule?: (run: () => void) => void): Staging {
    if (this.#staging !== null) this.#staging.rows.length = 0;
    this.#staging = new MemoryStaging(schedule);
    return this.#staging;
  }

  install(staging: Staging, meta: Uint8Array, done: (error: Error | null) => void): void {
    this.write(prepareInstall(staging, meta));
    done(null);
  }

  entry(index: number): Uint8Array | undefined {
    return this.#entries.get(index);
  }

  get entryIndexes(): readonly number[] {
    return [...this.#entries.keys()].sort((left, right) => left - right);
  }

  commit(change: EnvironmentChange, done: (error: Error | null) => void): void {
    this.write(prepare(change));
    done(null);
  }

  write(change: PreparedChange): void {
    if (change.clear === true) {
      this.#rows = new SortedMap();
      this.#entries = new Map();
    }
    for (const { low, high } of change.entriesDeleted) {
      for (let index = low; index < high; index++) this.#entries.delete(index);
    }
    for (const [key, value] of change.rows) {
      if (value === undefined) this.#rows.delete(key);
      else this.#rows.set(key, value);
    }
    for (const [index, bytes] of change.entries) this.#entries.set(index, bytes);
    this.#meta = change.meta;
  }

  async close(): Promise<void> {}
}

/** All of it at once, as of the first call. */
function* rangeOf(all: SortedMap<string>, range: Range): Generator<readonly [string, string]> {
  const rows = [...all.range(range)];
  yield* rows;
}
