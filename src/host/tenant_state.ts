/**
 * A tenant's rows as applied: an in-memory overlay over its environment.
 *
 * Applying writes into the overlay only. A checkpoint freezes the overlay, writes it into the environment in one durable
 * transaction together with the applied index, and drops it when that is on disk; what is applied meanwhile goes into a
 * fresh one. So a read looks at: active, frozen, environment — and a crash leaves the environment exactly at an index.
 */
import type { StateTransaction } from "../machine/machine.ts";
import { assert } from "../lib/assert.ts";
import { SortedMap } from "../lib/sorted_map.ts";
import type { Environment, EnvironmentSnapshot } from "./ports.ts";

/** A row in an overlay; `deleted` hides the environment's row. */
type Overlay = SortedMap<unknown>;
const deleted = Symbol("deleted");
/** What is read of one. */
interface Rows {
  entries(): Iterable<readonly [key: string, row: unknown]>;
}

/** Keys are printable ASCII. */
const everything = { gte: "", lt: "\x7f" } as const;

/** What a row costs in memory beside its text; only used to decide when to checkpoint. */
const ROW_BYTES_ASSUMED = 300;
/** Rows of the environment that are kept parsed, and how long the text of one that was read may be. */
const PARSED_MAX = 128;
const PARSED_LENGTH_MAX = 4_096;

interface KeyRange {
  readonly gte: string;
  readonly lt: string;
  readonly reverse?: boolean;
}

export class TenantState implements StateTransaction {
  readonly #environment: Environment;
  #active: Overlay = new SortedMap();
  #frozen: Overlay | null = null;
  /** Rows of the environment read lately: keys, options of a namespace and the like are asked for by every request. */
  readonly #parsed = new Map<string, unknown>();
  /** What is read below the overlays while the environment gets another state. */
  #held: EnvironmentSnapshot | null = null;
  /** Keys of the active overlay that neither the environment nor the frozen overlay has. */
  #added = new Set<string>();
  /** Those of the frozen overlay that were new with it: they are hardly read again. */
  #unread: ReadonlySet<string> = new Set();
  /** Some of the others, whose rows are kept parsed: what is written again and again is read again too. */
  #again: string[] = [];
  /** Rough size of the active overlay. */
  overlayBytes = 0;

  constructor(environment: Environment) {
    this.#environment = environment;
  }

  get<T = unknown>(key: string): T | undefined {
    let row = this.#active.get(key);
    if (row === undefined && this.#frozen !== null) row = this.#frozen.get(key);
    if (row === undefined) row = this.#parsed.get(key);
    if (row === undefined) row = this.#read(key);
    return (row === deleted ? undefined : row) as T | undefined;
  }

  #read(key: string): unknown {
    const text = this.#held === null ? this.#environment.get(key) : this.#held.get(key);
    if (text === undefined) return undefined;
    const row: unknown = JSON.parse(text);
    if (text.length <= PARSED_LENGTH_MAX) this.#keep(key, row);
    return row;
  }

  #keep(key: string, row: unknown): void {
    if (this.#parsed.size >= PARSED_MAX) this.#parsed.clear();
    this.#parsed.set(key, row);
  }

  put(key: string, row: unknown): void {
    assert(row !== undefined, "a row cannot be undefined");
    this.#set(key, row);
  }

  /** `put` of a row that does not exist: deleted again before a checkpoint, it costs the environment nothing. */
  add(key: string, row: unknown): void {
    assert(row !== undefined, "a row cannot be undefined");
    // A deletion in an overlay may hide a row of the environment.
    if (this.#active.has(key)) return this.#set(key, row);
    if (this.#frozen?.has(key) !== true) this.#added.add(key);
    this.#active.set(key, row);
    this.overlayBytes += bytesOf(row);
  }

  delete(key: string): void {
    if (this.#added.delete(key)) {
      this.overlayBytes -= bytesOf(this.#active.get(key));
      this.#active.delete(key);
    } else {
      this.#set(key, deleted);
    }
  }

  #set(key: string, row: unknown): void {
    const replaced = this.#active.get(key);
    const isNew = this.#active.set(key, row);
    this.overlayBytes += bytesOf(row) - (isNew ? 0 : bytesOf(replaced));
  }

  *range<T = unknown>(range: KeyRange): Generator<readonly [key: string, row: T]> {
    const below = layered(
      parsed((this.#held ?? this.#environment).range(range)),
      this.#frozen === null ? null : this.#frozen.range(range),
      range.reverse === true,
    );
    for (const [key, row] of layered(below, this.#active.range(range), range.reverse === true)) {
      if (row !== deleted) yield [key, row as T];
    }
  }

  /** The state as it is now, for as long as it is open: applying, checkpoints and installations go on beside it. */
  snapshot(): StateSnapshot {
    // A copy of what still changes; the frozen one never changes again.
    return new StateSnapshot(this.#environment.snapshot(), this.#frozen, this.#active.clone());
  }

  get dirty(): boolean {
    return this.#active.size > 0;
  }

  get checkpointing(): boolean {
    return this.#frozen !== null;
  }

  /** Freezes what was applied so far and returns it as the environment's rows. */
  freeze(): Iterable<readonly [key: string, value: string | undefined]> {
    assert(this.#frozen === null, "a checkpoint is already under way");
    const frozen = this.#active;
    this.#frozen = frozen;
    this.#unread = this.#added;
    this.#active = new SortedMap();
    this.#added = new Set();
    this.overlayBytes = 0;
    return this.#written(frozen);
  }

  *#written(frozen: Overlay): Generator<readonly [string, string | undefined]> {
    for (const row of encoded(frozen.unordered())) {
      const [key, text] = row;
      const isSmall = text !== undefined && text.length <= PARSED_LENGTH_MAX;
      if (isSmall && this.#again.length < PARSED_MAX && !this.#unread.has(key))
        this.#again.push(key);
      yield row;
    }
  }

  /** The frozen rows are in the environment, durably. */
  thaw(): void {
    const frozen = this.#frozen;
    assert(frozen !== null, "no checkpoint is under way");
    // What was read of the environment before it had these counts no more.
    for (const key of this.#parsed.keys()) if (frozen.has(key)) this.#parsed.delete(key);
    // An environment at rest should stay so.
    for (const key of this.#again) this.#keep(key, frozen.get(key));
    this.#frozen = null;
    this.#unread = new Set();
    this.#again = [];
  }

  /**
   * A snapshot is about to replace everything in the environment: what was applied is there to be read until `reset`,
   * whole. What is only in the environment is older, and a directory that goes back lets removed replicas begin anew
   * (simulation, seed 200004932).
   */
  hold(): void {
    assert(this.#frozen === null && this.#held === null, "a checkpoint or a snapshot is under way");
    this.#held = this.#environment.snapshot();
  }

  /** The snapshot is there: nothing of before counts any more. */
  reset(): void {
    this.#held?.close();
    this.#held = null;
    this.#active = new SortedMap();
    this.#added = new Set();
    this.#unread = new Set();
    this.#again = [];
    this.#frozen = null;
    this.#parsed.clear();
    this.overlayBytes = 0;
  }
}

function bytesOf(row: unknown): number {
  return ROW_BYTES_ASSUMED + (typeof row === "string" ? row.length : 0);
}

/** Rows as JSON text, in order of their keys. Drawn over many turns they are still those of one moment. */
export class StateSnapshot {
  readonly #environment: EnvironmentSnapshot;
  readonly #frozen: Rows | null;
  readonly #active: Rows;
  #closed = false;

  constructor(environment: EnvironmentSnapshot, frozen: Rows | null, active: Rows) {
    this.#environment = environment;
    this.#frozen = frozen;
    this.#active = active;
  }

  *rows(): Generator<readonly [key: string, text: string]> {
    let below: Iterable<readonly [string, string | undefined]> =
      this.#environment.range(everything);
    if (this.#frozen !== null) below = layered(below, encoded(this.#frozen.entries()), false);
    for (const [key, text] of layered(below, encoded(this.#active.entries()), false)) {
      assert(!this.#closed, "A snapshot was closed while it was read");
      if (text !== undefined) yield [key, text];
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#environment.close();
  }
}

function* encoded(
  rows: Iterable<readonly [key: string, row: unknown]>,
): Generator<readonly [string, string | undefined]> {
  for (const [key, row] of rows) {
    yield [key, row === deleted ? undefined : JSON.stringify(row)];
  }
}

function* parsed(
  rows: Iterable<readonly [string, string]>,
): Generator<readonly [key: string, row: unknown]> {
  for (const [key, text] of rows) yield [key, JSON.parse(text)];
}

/** Merges two ordered sources; at equal keys the upper one wins, also with a deletion. */
function* layered<T>(
  lower: Iterable<readonly [string, T]>,
  upper: Iterable<readonly [string, T]> | null,
  reverse: boolean,
): Generator<readonly [string, T]> {
  if (upper === null) {
    yield* lower;
    return;
  }
  const below = lower[Symbol.iterator]();
  const above = upper[Symbol.iterator]();
  try {
    let low = below.next();
    let high = above.next();
    while (low.done !== true || high.done !== true) {
      if (low.done === true) {
        yield (high as IteratorYieldResult<readonly [string, T]>).value;
        high = above.next();
      } else if (high.done === true) {
        yield low.value;
        low = below.next();
      } else if (low.value[0] === high.value[0]) {
        low = below.next();
      } else if (low.value[0] < high.value[0] !== reverse) {
        yield low.value;
        low = below.next();
      } else {
        yield high.value;
        high = above.next();
      }
    }
  } finally {
    below.return?.();
    above.return?.();
  }
}
