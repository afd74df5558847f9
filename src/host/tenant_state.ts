/**
 * A tenant's rows as applied: an in-memory overlay over its environment.
 *
 * Applying writes into the overlay only. A checkpoint freezes the overlay, writes it into the environment in one durable
 * transaction together with the applied index, and drops it when that is on disk; what is applied meanwhile goes into a
 * fresh one. So a read looks at: active, frozen, environment — and a crash leaves the environment exactly at an index.
 */
import type { StateTransaction } from "../machine/rows.ts";
import { assert } from "../lib/assert.ts";
import { metaKey } from "../machine/keys.ts";
import { deleted, deletion, everything, layered, Overlay, type Cell } from "./overlay.ts";
import type { Environment, EnvironmentSnapshot, Range } from "./ports.ts";

/** What a row costs in memory beside its text; only used to decide when to checkpoint. */
const ROW_BYTES_ASSUMED = 300;
/** Rows of the environment that are kept parsed unless told otherwise, and how long the text of one that was read may be. */
const PARSED_MAX = 128;
const PARSED_LENGTH_MAX = 4_096;

export class TenantState implements StateTransaction {
  readonly #environment: Environment;
  #active = new Overlay();
  #frozen: Overlay | null = null;
  /** Rows of the environment read lately: keys, options of a namespace and the like are asked for by every request. */
  readonly #parsed = new Map<string, unknown>();
  readonly #parsedMax: number;
  /** What is read below the overlays while the environment gets another state. */
  #held: EnvironmentSnapshot | null = null;
  /** Some keys of the frozen overlay whose rows are kept parsed: what is written again and again is read again too. */
  #again: string[] = [];
  /** The row that everybody asks for; undefined: not asked for since it last changed. */
  #meta: unknown = undefined;
  /** Rough size of the active overlay. */
  overlayBytes = 0;

  constructor(environment: Environment, parsedMax = PARSED_MAX) {
    this.#environment = environment;
    this.#parsedMax = parsedMax;
  }

  get<T = unknown>(key: string): T | undefined {
    if (key === metaKey) return (this.#meta ??= this.#find(metaKey)) as T | undefined;
    return this.#find(key) as T | undefined;
  }

  #find(key: string): unknown {
    let cell = this.#active.get(key);
    if (cell === undefined && this.#frozen !== null) cell = this.#frozen.get(key);
    if (cell !== undefined) return cell.row === deleted ? undefined : cell.row;
    return this.#parsed.get(key) ?? this.#read(key);
  }

  #read(key: string): unknown {
    const record = this.#active.record(key) ?? this.#frozen?.record(key);
    if (record !== undefined) return this.#parse(key, record);
    const text = this.#held === null ? this.#environment.get(key) : this.#held.get(key);
    return text === undefined ? undefined : this.#parse(key, text);
  }

  #parse(key: string, text: string): unknown {
    const row: unknown = JSON.parse(text);
    if (text.length <= PARSED_LENGTH_MAX) this.#keep(key, row);
    return row;
  }

  #keep(key: string, row: unknown): void {
    if (this.#parsed.size >= this.#parsedMax) this.#parsed.clear();
    this.#parsed.set(key, row);
  }

  put(key: string, row: unknown): void {
    assert(row !== undefined, "a row cannot be undefined");
    const replaced = this.#active.find(key);
    if (replaced === undefined || replaced === deletion || typeof replaced === "string")
      return this.#set(key, { row, isAdded: isAdded(replaced) }, replaced);
    // Most puts are of what was put before, and changing the cell spares another look for its place.
    this.overlayBytes -= bytesOf(replaced);
    replaced.row = row;
    this.overlayBytes += bytesOf(replaced);
    if (key === metaKey) this.#meta = row;
  }

  /** `put` of a row that does not exist: deleted again before a checkpoint, it costs the environment nothing. */
  add(key: string, row: unknown): void {
    assert(row !== undefined, "a row cannot be undefined");
    // A deletion in an overlay may hide a row of the environment.
    const isHidden = this.#frozen !== null && this.#frozen.find(key) !== undefined;
    const text = isHidden ? null : this.#active.addRecord(key, row);
    if (text !== null) {
      this.overlayBytes += bytesOf(text);
      return;
    }
    const cell: Cell = { row, isAdded: !isHidden };
    this.overlayBytes += bytesOf(cell);
    if (key === metaKey) this.#meta = row;
    if (this.#active.set(key, cell)) return;
    this.overlayBytes -= bytesOf(deletion);
    cell.isAdded = false;
  }

  delete(key: string): void {
    const replaced = this.#active.find(key);
    if (!isAdded(replaced)) return this.#set(key, deletion, replaced);
    if (key === metaKey) this.#meta = undefined;
    if (typeof replaced === "string") this.#parsed.delete(key);
    this.overlayBytes -= bytesOf(replaced);
    this.#active.delete(key);
  }

  #set(key: string, cell: Cell, replaced: Cell | string | undefined): void {
    if (key === metaKey) this.#meta = undefined;
    if (typeof replaced === "string") this.#parsed.delete(key);
    this.#active.set(key, cell);
    this.overlayBytes += bytesOf(cell) - (replaced === undefined ? 0 : bytesOf(replaced));
  }

  *range<T = unknown>(range: Range): Generator<readonly [key: string, row: T]> {
    const below = layered(
      parsed((this.#held ?? this.#environment).range(range)),
      this.#frozen === null ? null : rowsOf(this.#frozen.range(range)),
      range.reverse === true,
    );
    const active = rowsOf(this.#active.range(range));
    for (const [key, row] of layered(below, active, range.reverse === true)) {
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
    this.#active = new Overlay();
    this.overlayBytes = 0;
    return this.#written(frozen);
  }

  *#written(frozen: Overlay): Generator<readonly [string, string | undefined]> {
    for (const [key, cell] of frozen.unordered()) {
      const text = textOf(cell);
      const isSmall = text !== undefined && text.length <= PARSED_LENGTH_MAX;
      // What was new with this overlay is hardly read again.
      if (isSmall && !isAdded(cell) && this.#again.length < PARSED_MAX) this.#again.push(key);
      yield [key, text];
    }
  }

  /** The frozen rows are in the environment, durably. */
  thaw(): void {
    const frozen = this.#frozen;
    assert(frozen !== null, "no checkpoint is under way");
    // What was read of the environment before it had these counts no more.
    for (const key of this.#parsed.keys())
      if (frozen.get(key) !== undefined) this.#parsed.delete(key);
    // An environment at rest should stay so.
    for (const key of this.#again) this.#keep(key, frozen.get(key)?.row);
    this.#frozen = null;
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
    this.#active = new Overlay();
    this.#meta = undefined;
    this.#again = [];
    this.#frozen = null;
    this.#parsed.clear();
    this.overlayBytes = 0;
  }
}

/** A record that waits here is always new. */
function isAdded(cell: Cell | string | undefined): cell is Cell | string {
  return typeof cell === "string" || cell?.isAdded === true;
}

function bytesOf(cell: Cell | string): number {
  const row = typeof cell === "string" ? cell : cell.row;
  return ROW_BYTES_ASSUMED + (typeof row === "string" ? row.length : 0);
}

/** Rows as JSON text, in order of their keys. Drawn over many turns they are still those of one moment. */
export class StateSnapshot {
  readonly #environment: EnvironmentSnapshot;
  readonly #frozen: Overlay | null;
  readonly #active: Overlay;
  #closed = false;

  constructor(environment: EnvironmentSnapshot, frozen: Overlay | null, active: Overlay) {
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
  cells: Iterable<readonly [key: string, cell: Cell | string]>,
): Generator<readonly [string, string | undefined]> {
  for (const [key, cell] of cells) yield [key, textOf(cell)];
}

function textOf(cell: Cell | string): string | undefined {
  if (typeof cell === "string") return cell;
  return cell.row === deleted ? undefined : JSON.stringify(cell.row);
}

function* rowsOf(
  cells: Iterable<readonly [key: string, cell: Cell | string]>,
): Generator<readonly [key: string, row: unknown]> {
  for (const [key, cell] of cells)
    yield [key, typeof cell === "string" ? (JSON.parse(cell) as unknown) : cell.row];
}

function* parsed(
  rows: Iterable<readonly [string, string]>,
): Generator<readonly [key: string, row: unknown]> {
  for (const [key, text] of rows) yield [key, JSON.parse(text)];
}
