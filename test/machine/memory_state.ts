/** State of a tenant in memory, for tests: rows kept as JSON text as the store does, so that nothing can be shared. */
import type { StateTransaction } from "../../src/machine/rows.ts";

export class MemoryState implements StateTransaction {
  readonly #rows = new Map<string, string>();
  #sorted: string[] | null = null;

  constructor(rows: Iterable<readonly [string, string]> = []) {
    for (const [key, text] of rows) this.#rows.set(key, text);
  }

  get<T = unknown>(key: string): T | undefined {
    const text = this.#rows.get(key);
    return text === undefined ? undefined : (JSON.parse(text) as T);
  }

  *range<T = unknown>(range: {
    gte: string;
    lt: string;
    reverse?: boolean;
  }): Iterable<readonly [key: string, row: T]> {
    this.#sorted ??= [...this.#rows.keys()].sort();
    const keys = this.#sorted;
    const low = firstAtLeast(keys, range.gte);
    const high = firstAtLeast(keys, range.lt);
    for (let n = 0; n < high - low; n++) {
      const key = keys[range.reverse === true ? high - 1 - n : low + n] as string;
      yield [key, this.get<T>(key) as T];
    }
  }

  put(key: string, row: unknown): void {
    if (!/^[\x20-\x7e]+$/.test(key)) throw new Error(`Cannot put a row: key is not ASCII: ${key}`);
    if (!this.#rows.has(key)) this.#sorted = null;
    this.#rows.set(key, JSON.stringify(row));
  }

  add(key: string, row: unknown): void {
    if (this.#rows.has(key)) throw new Error(`A row is added that exists: ${key}`);
    this.put(key, row);
  }
  delete(key: string): void {
    if (this.#rows.delete(key)) this.#sorted = null;
  }

  /** All rows in order of their keys: two states are the same when these are. */
  dump(): [string, string][] {
    return [...this.#rows].sort(([a], [b]) => (a < b ? -1 : 1));
  }

  get size(): number {
    return this.#rows.size;
  }
}

function firstAtLeast(keys: readonly string[], key: string): number {
  let low = 0;
  let high = keys.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((keys[middle] as string) < key) low = middle + 1;
    else high = middle;
  }
  return low;
}
