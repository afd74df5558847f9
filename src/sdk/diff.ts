/** What differs between two values of JSON, place by place. */

export interface Difference {
  /** JSON Pointer (RFC 6901) of the place; "" = the value itself. */
  readonly pointer: string;
  /** Undefined: was not there. */
  readonly old: unknown;
  /** Undefined: is no longer there. */
  readonly new: unknown;
}

/** Objects are compared member by member, arrays element by element, everything else as it is. */
export function differences(old: unknown, now: unknown, pointer = ""): readonly Difference[] {
  if (Object.is(old, now)) return [];
  if (!isTree(old) || !isTree(now) || Array.isArray(old) !== Array.isArray(now))
    return [{ pointer, old, new: now }];
  const names = new Set([...Object.keys(old), ...Object.keys(now)]);
  return [...names].flatMap((name) =>
    differences(
      memberOf(old, name),
      memberOf(now, name),
      `${pointer}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`,
    ),
  );
}

function isTree(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}

function memberOf(tree: object, name: string): unknown {
  return Object.hasOwn(tree, name) ? (tree as Record<string, unknown>)[name] : undefined;
}
