/**
 * Rows that were applied and are not in the environment yet. Most are cells in a map; what is written once with each
 * command and hardly ever read, history and audit, is kept apart from it as text, several records in one: ten thousand
 * tenants that wait for their checkpoints have millions of these, and each object of its own is looked at by every
 * collection, and by the map when it grows.
 */
import { assert } from "../lib/assert.ts";
import { SortedMap } from "../lib/sorted_map.ts";
import { isRecordKey, padded } from "../machine/keys.ts";
import type { Range } from "./ports.ts";

export interface Cell {
  /** `deleted` hides the row of the environment. Changed only by the overlay that is active: a snapshot of it has its own. */
  row: unknown;
  /** Neither the environment nor the overlay below has it. */
  isAdded: boolean;
}
export const deleted = Symbol("deleted");
export const deletion: Readonly<Cell> = { row: deleted, isAdded: false };

/** Keys are printable ASCII. */
export const everything = { gte: "", lt: "\x7f" } as const;

/** Of an overlay's rows a cell, or the JSON text of a record, which is one that was added. */
export type Waiting = readonly [key: string, cell: Cell | string];

export class Overlay {
  readonly #cells: SortedMap<Cell>;
  /** By what stands before the number in their keys, in order. */
  readonly #runs: Run[];
  /** Some cell has the key of a record. */
  #hasRecordCells = false;

  constructor(cells = new SortedMap<Cell>(), runs: Run[] = []) {
    this.#cells = cells;
    this.#runs = runs;
  }

  get size(): number {
    let size = this.#cells.size;
    for (const run of this.#runs) size += run.count;
    return size;
  }

  /** What is a cell: a record is taken out of its run by `record`, which costs more than to have it parsed at hand. */
  get(key: string): Cell | undefined {
    return this.#cells.get(key);
  }

  record(key: string): string | undefined {
    return this.#runs.length === 0 ? undefined : this.#runOf(key)?.get(numberOf(key));
  }

  find(key: string): Cell | string | undefined {
    return this.#cells.get(key) ?? this.record(key);
  }

  /** @returns whether there was none under this key */
  set(key: string, cell: Cell): boolean {
    if (isRecordKey(key)) this.#hasRecordCells = true;
    return this.#cells.set(key, cell);
  }

  /** @returns its text; null: it is no record, or may not be a new one after the last, and has to be a cell */
  addRecord(key: string, row: unknown): string | null {
    if (!isRecordKey(key) || (this.#hasRecordCells && this.#cells.has(key))) return null;
    const n = numberOf(key);
    let run = this.#runOf(key);
    if (run === undefined) {
      if (n < 0) return null;
      run = new Run(key.slice(0, key.indexOf("/") + 1), n);
      this.#runs.push(run);
      this.#runs.sort((a, b) => (a.prefix < b.prefix ? -1 : 1));
    }
    if (n !== run.end) return null;
    const text = JSON.stringify(row);
    run.push(text);
    return text;
  }

  /** Of what was added here. */
  delete(key: string): void {
    const isCell = this.#cells.delete(key);
    if (isCell && !this.#hasRecordCells) return;
    // Records go from the oldest on; of another one the environment is told in vain.
    if (this.#runOf(key)?.dropFirst(numberOf(key)) === false) this.set(key, deletion);
  }

  range(range: Range): Iterable<Waiting> {
    const cells = this.#cells.range(range);
    const runs = this.#runs.filter(({ prefix }) => range.lt > prefix && range.gte < `${prefix}:`);
    if (runs.length === 0) return cells;
    return layered<Cell | string>(recordsOf(runs, range), cells, range.reverse === true);
  }

  /** Everything, ascending. */
  entries(): Iterable<Waiting> {
    return this.range(everything);
  }

  /** Everything, the cells as they were first set: putting many keys in order takes long. */
  *unordered(): Generator<Waiting> {
    yield* this.#cells.unordered();
    for (const run of this.#runs)
      for (const record of run.range(everything)) if (!this.#cells.has(record[0])) yield record;
  }

  /** A copy of its own, as of now. */
  clone(): Overlay {
    const copy = new Overlay(
      this.#cells.clone(({ row, isAdded }) => ({ row, isAdded })),
      this.#runs.map((run) => run.clone()),
    );
    copy.#hasRecordCells = this.#hasRecordCells;
    return copy;
  }

  #runOf(key: string): Run | undefined {
    for (const run of this.#runs) if (key.startsWith(run.prefix)) return run;
    return undefined;
  }
}

/** -1: no number ends this key. */
function numberOf(key: string): number {
  const digits = key.slice(key.indexOf("/") + 1);
  const n = digits.length === numberLength ? Number(digits) : -1;
  return Number.isSafeInteger(n) ? n : -1;
}

const numberLength = padded(0).length;

function* recordsOf(runs: readonly Run[], range: Range): Generator<readonly [string, string]> {
  for (const run of range.reverse === true ? runs.toReversed() : runs) yield* run.range(range);
}

/** As many records become one text: JSON has no line ends of its own. */
const blockRecords = 8;

/** Records numbered one after the other, as JSON text. */
class Run {
  readonly prefix: string;
  /** Number of the first record of the first block. */
  #base: number;
  /** Records of the first block that are gone. */
  #gone = 0;
  #blocks: string[] = [];
  /** What is no block yet. */
  #recent: string[] = [];

  constructor(prefix: string, first: number) {
    this.prefix = prefix;
    this.#base = first;
  }

  /** The number that the next one has. */
  get end(): number {
    return this.#base + this.#blocks.length * blockRecords + this.#recent.length;
  }

  get count(): number {
    return this.end - this.#base - this.#gone;
  }

  push(text: string): void {
    if (this.#recent.push(text) < blockRecords) return;
    this.#blocks.push(this.#recent.join("\n"));
    this.#recent = [];
  }

  get(n: number): string | undefined {
    if (n < this.#base + this.#gone || n >= this.end) return undefined;
    const at = n - this.#base;
    return this.#texts(Math.floor(at / blockRecords))[at % blockRecords];
  }

  /** @returns false when it is here and not the first */
  dropFirst(n: number): boolean {
    if (this.get(n) === undefined) return true;
    if (n !== this.#base + this.#gone) return false;
    this.#gone += 1;
    if (this.#blocks.length > 0 && this.#gone === blockRecords) {
      this.#blocks.shift();
      this.#base += blockRecords;
      this.#gone = 0;
    }
    return true;
  }

  /** As of the call, whatever is added or dropped meanwhile. */
  *range(range: Range): Generator<readonly [key: string, text: string]> {
    const own = this.clone();
    const low = own.#lowerBound(range.gte);
    const high = own.#lowerBound(range.lt);
    let block = -1;
    let texts: readonly string[] = [];
    for (let step = 0; step < high - low; step++) {
      const n = range.reverse === true ? high - 1 - step : low + step;
      const at = Math.floor((n - own.#base) / blockRecords);
      if (at !== block) [block, texts] = [at, own.#texts(at)];
      const text = texts[(n - own.#base) % blockRecords];
      assert(text !== undefined, "A run of records has a hole");
      yield [own.prefix + padded(n), text];
    }
  }

  /** Of the records from this key on the first number. */
  #lowerBound(key: string): number {
    let low = this.#base + this.#gone;
    let high = this.end;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (this.prefix + padded(middle) < key) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  clone(): Run {
    const copy = new Run(this.prefix, this.#base);
    copy.#gone = this.#gone;
    copy.#blocks = [...this.#blocks];
    copy.#recent = [...this.#recent];
    return copy;
  }

  #texts(block: number): readonly string[] {
    return block < this.#blocks.length ? (this.#blocks[block] as string).split("\n") : this.#recent;
  }
}

/** Merges two ordered sources; at equal keys the upper one wins, also with a deletion. */
export function* layered<T>(
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
