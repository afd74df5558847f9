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

/** A row in an overlay; undefined is a deletion that hides the environment's row. */
type Overlay = SortedMap<unknown>;
/** What is read of one. */
interface Rows {
  entries(): Iterable<readonly [key: string, row: unknown]>;
}

/** Keys are printable ASCII. */
const everything = { gte: "", lt: "\x7f" } as const;

/** What a row costs in memory beside its text; only used to decide when to checkpoint. */
const ROW_BYTES_ASSUMED = 300;

interface KeyRange {
  readonly gte: string;
  readonly lt: string;
  readonly reverse?: boolean;
}

export class TenantState implements StateTransaction {
  readonly #environment: Environment;
  #active: Overlay = new SortedMap();
  #frozen: Overlay | null = null;
  /** Rough size of the active overlay. */
  overlayBytes = 0;

  constructor(environment: Environment) {
    this.#environment = environment;
  }

  get<T = unknown>(key: string): T | undefined {
    if (this.#active.size > 0) {
      const row = this.#active.get(key);
      if (row !== undefined || this.#active.has(key)) return row as T | undefined;
    }
    if (this.#frozen !== null && this.#frozen.has(key))
      return this.#frozen.get(key) as T | undefined;
    const text = this.#environment.get(key);
    return text === undefined ? undefined : (JSON.parse(text) as T);
  }

  put(key: string, row: unknown): void {
    assert(row !== undefined, "a row cannot be undefined");
    this.#active.set(key, row);
    this.overlayBytes += ROW_BYTES_ASSUMED + (typeof row === "string" ? row.length : 0);
  }

  delete(key: string): void {
    this.#active.set(key, undefined);
    this.overlayBytes += ROW_BYTES_ASSUMED;
  }

  *range<T = unknown>(range: KeyRange): Generator<readonly [key: string, row: T]> {
    const below = layered(
      parsed(this.#environment.range(range)),
      this.#frozen === null ? null : overlayRange(this.#frozen, range),
      range.reverse === true,
    );
    for (const [key, row] of layered(
      below,
      overlayRange(this.#active, range),
      range.reverse === true,
    )) {
      if (row !== undefined) yield [key, row as T];
    }
  }

  /** The state as it is now, for as long as it is open: applying, checkpoints and installations go on beside it. */
  snapshot(): StateSnapshot {
    // The clone shares everything with the overlay until one of them changes; the frozen one never changes again.
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
    this.#active = new SortedMap();
    this.overlayBytes = 0;
    return encoded(frozen);
  }

  /** The frozen rows are in the environment, durably. */
  thaw(): void {
    assert(this.#frozen !== null, "no checkpoint is under way");
    this.#frozen = null;
  }

  /** A snapshot replaced everything in the environment. */
  reset(): void {
    this.#active = new SortedMap();
    this.#frozen = null;
    this.overlayBytes = 0;
  }
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
    if (this.#frozen !== null) below = layered(below, encoded(this.#frozen), false);
    for (const [key, text] of layered(below, encoded(this.#active), false)) {
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

function* encoded(rows: Rows): Generator<readonly [string, string | undefined]> {
  for (const [key, row] of rows.entries()) {
    yield [key, row === undefined ? undefined : JSON.stringify(row)];
  }
}

function* parsed(
  rows: Iterable<readonly [string, string]>,
): Generator<readonly [key: string, row: unknown]> {
  for (const [key, text] of rows) yield [key, JSON.parse(text)];
}

function* overlayRange(rows: Overlay, range: KeyRange): Generator<readonly [string, unknown]> {
  if (range.reverse === true) {
    // Strictly below `lt`: the library's third argument skips that key itself.
    for (const [key, row] of rows.entriesReversed(range.lt, undefined, true)) {
      if (key < range.gte) return;
      yield [key, row];
    }
    return;
  }
  for (const [key, row] of rows.entries(range.gte)) {
    if (key >= range.lt) return;
    yield [key, row];
  }
}

/** Merges two ordered sources; at equal keys the upper one wins. Deletions stay visible as undefined rows. */
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
