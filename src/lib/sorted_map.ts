/**
 * A map from strings that iterates in key order (a B+ tree of the library sorted-btree, ordered by UTF-16 units, which
 * for the ASCII keys used here is byte order).
 */
import imported from "sorted-btree";

// The library is CommonJS: Bun hands out the class itself, Node and Deno the module that holds it.
const BTree = ((imported as { default?: unknown }).default ?? imported) as typeof imported.default;

export class SortedMap<V> extends BTree<string, V> {
  constructor() {
    super(undefined, byCodeUnit);
  }
}

function byCodeUnit(left: string, right: string): number {
  return left < right ? -1 : left > right ? 1 : 0;
}
