/**
 * A map from strings that can also be iterated in key order (that of UTF-16 units, which for the ASCII keys used here is
 * byte order).
 *
 * Made for what an overlay does: nearly all of its calls name one key, ranges are rare, and most new keys of a family
 * (what stands before the first slash) come in rising order. So a hash map answers for single keys, and each family
 * keeps its keys in an array that is put in order when a range asks. A B+ tree compared keys that begin alike a dozen
 * times per call, which was a tenth of all the work of a write.
 */

interface Family {
  /** In order. Replaced, never changed but at its end, so that a range under way keeps its own. */
  sorted: string[];
  /** Keys that came out of order since the last range. */
  fresh: string[];
}

export class SortedMap<V> {
  readonly #rows = new Map<string, V>();
  /** Null before the first range. */
  #families: Map<string, Family> | null = null;
  /** New keys since the last range; null: there was none yet, and all of them have no place. */
  #unplaced: string[] | null = null;
  /** Names of the families, in order; null after a new one. */
  #order: readonly string[] | null = null;

  get size(): number {
    return this.#rows.size;
  }

  has(key: string): boolean {
    return this.#rows.has(key);
  }

  get(key: string): V | undefined {
    return this.#rows.get(key);
  }

  /** @returns whether there was none under this key */
  set(key: string, value: V): boolean {
    const before = this.#rows.size;
    this.#rows.set(key, value);
    if (this.#rows.size === before) return false;
    this.#unplaced?.push(key);
    return true;
  }

  /**
   * Its place in the order stays until the next time the family is put in order; ranges pass over it.
   * @returns whether there was one
   */
  delete(key: string): boolean {
    return this.#rows.delete(key);
  }

  /** Ascending over gte ≤ key < lt, or descending. Keys set meanwhile may or may not come. */
  *range({
    gte,
    lt,
    reverse = false,
  }: {
    readonly gte: string;
    readonly lt: string;
    readonly reverse?: boolean;
  }): Generator<readonly [key: string, value: V]> {
    this.#place();
    const families = (this.#families ??= new Map<string, Family>());
    this.#order ??= [...families.keys()].sort();
    const names = reverse ? [...this.#order].reverse() : this.#order;
    for (const name of names) {
      // All keys of a family lie between its name and what follows every key that begins with it.
      if (name >= lt || (name < gte && !gte.startsWith(name))) continue;
      const sorted = ordered(families.get(name) as Family);
      const low = lowerBound(sorted, gte);
      const high = lowerBound(sorted, lt);
      for (let step = 0; step < high - low; step++) {
        const key = sorted[reverse ? high - 1 - step : low + step] as string;
        if (this.#rows.has(key)) yield [key, this.#rows.get(key) as V];
      }
    }
  }

  /** A copy of its own, as of now. @param copied what it has in place of each value */
  clone(copied: (value: V) => V = (value) => value): SortedMap<V> {
    const copy = new SortedMap<V>();
    for (const [key, value] of this.#rows) copy.set(key, copied(value));
    return copy;
  }

  /** Everything as it was first set: putting many keys in order takes long. */
  unordered(): Iterable<readonly [key: string, value: V]> {
    return this.#rows;
  }

  /** Everything, ascending. */
  *entries(): Generator<readonly [key: string, value: V]> {
    yield* this.range({ gte: "", lt: "\uffff" });
  }

  #place(): void {
    if (this.#unplaced?.length === 0) return;
    for (const key of this.#unplaced ?? this.#rows.keys()) {
      if (!this.#rows.has(key)) continue;
      const { sorted, fresh } = this.#familyOf(key);
      const last = sorted.length === 0 ? undefined : sorted[sorted.length - 1];
      if (last === undefined || last < key) sorted.push(key);
      // Deleted and set again it may have its place already.
      else if (last !== key) fresh.push(key);
    }
    this.#unplaced = [];
  }

  #familyOf(key: string): Family {
    const name = key.slice(0, key.indexOf("/") + 1) || key;
    const families = (this.#families ??= new Map<string, Family>());
    let family = families.get(name);
    if (family === undefined) {
      family = { sorted: [], fresh: [] };
      families.set(name, family);
      this.#order = null;
    }
    return family;
  }
}

function ordered(family: Family): readonly string[] {
  if (family.fresh.length === 0) return family.sorted;
  const fresh = family.fresh.sort();
  const { sorted } = family;
  const merged: string[] = [];
  let at = 0;
  for (const key of fresh) {
    while (at < sorted.length && (sorted[at] as string) < key) merged.push(sorted[at++] as string);
    if (sorted[at] !== key && merged.at(-1) !== key) merged.push(key);
  }
  while (at < sorted.length) merged.push(sorted[at++] as string);
  family.sorted = merged;
  family.fresh = [];
  return merged;
}

/** Position of the first key that is not below `key`. */
function lowerBound(keys: readonly string[], key: string): number {
  let low = 0;
  let high = keys.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((keys[middle] as string) < key) low = middle + 1;
    else high = middle;
  }
  return low;
}
