/** An environment in memory: atomic like the real one, durable when its owner says so. Used by host tests and the simulator. */
import { SortedMap } from "../../src/lib/sorted_map.ts";
import type { Environment, EnvironmentChange, Range } from "../../src/host/ports.ts";

/** A change with everything lazy in it already drawn, as the real store does before it starts writing. */
export interface PreparedChange {
  readonly clear: boolean;
  readonly meta: Uint8Array;
  readonly rows: readonly (readonly [string, string | undefined])[];
  readonly entries: readonly (readonly [number, Uint8Array])[];
  readonly entriesDeleted: EnvironmentChange["entriesDeleted"];
}

export function prepare(change: EnvironmentChange): PreparedChange {
  return { ...change, rows: [...change.rows], entries: [...change.entries] };
}

export class MemoryEnvironment implements Environment {
  #meta: Uint8Array | null = null;
  #rows = new SortedMap<string>();
  #entries = new Map<number, Uint8Array>();

  meta(): Uint8Array | null {
    return this.#meta;
  }

  get(key: string): string | undefined {
    return this.#rows.get(key);
  }

  *range(range: Range): Generator<readonly [string, string]> {
    const rows: (readonly [string, string])[] = [];
    for (const row of this.#rows.entries(range.gte)) {
      if (row[0] >= range.lt) break;
      rows.push([row[0], row[1]]);
    }
    if (range.reverse === true) rows.reverse();
    yield* rows;
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
    if (change.clear) {
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
