/**
 * JSON texts: a scanner that says where a text breaks the grammar, the same on every engine (`JSON.parse` names places
 * in some and not in others), and that refuses what it would let pass: names given twice and unbounded depth. And the
 * canonical form of RFC 8785, so that equal values have equal hashes.
 */
import { escapePointer } from "./names.ts";
import { loneSurrogateAt } from "./utf8.ts";

export const depthMax = 100;

export interface TextError {
  readonly detail: string;
  /** From 1; columns count UTF-16 units. */
  readonly line: number;
  readonly column: number;
}

export function placeOf(text: string, offset: number): { line: number; column: number } {
  let line = 1;
  let start = 0;
  for (let i = text.indexOf("\n"); i >= 0 && i < offset; i = text.indexOf("\n", i + 1)) {
    line++;
    start = i + 1;
  }
  return { line, column: offset - start + 1 };
}

class Stop {
  readonly offset: number;
  readonly detail: string;
  constructor(offset: number, detail: string) {
    this.offset = offset;
    this.detail = detail;
  }
}

function stop(offset: number, detail: string): never {
  // oxlint-disable-next-line no-throw-literal -- caught in scanJson: an answer, not an error
  throw new Stop(offset, detail);
}

/** Null when the text is one JSON value without duplicate names and not too deep. */
export function scanJson(text: string): TextError | null {
  try {
    const end = skipSpace(text, scanValue(text, skipSpace(text, 0), 0));
    if (end < text.length) stop(end, "End the text after the value: more follows");
    return null;
  } catch (error) {
    if (!(error instanceof Stop)) throw error;
    return { detail: error.detail, ...placeOf(text, error.offset) };
  }
}

function skipSpace(text: string, from: number): number {
  let at = from;
  for (; at < text.length; at++) {
    const unit = text.charCodeAt(at);
    if (unit !== 0x20 && unit !== 0x0a && unit !== 0x0d && unit !== 0x09) break;
  }
  return at;
}

const numberPattern = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const wordPattern = /true|false|null/y;
/** Returns the offset after the value. */
function scanValue(text: string, at: number, depth: number): number {
  if (at >= text.length) stop(at, "Give a JSON value: the text ends here");
  const first = text[at];
  if (first === "{" || first === "[") {
    if (depth >= depthMax) stop(at, `Nest at most ${depthMax} levels deep`);
    return first === "{" ? scanObject(text, at, depth + 1) : scanArray(text, at, depth + 1);
  }
  if (first === '"') return scanString(text, at);
  const end = matchEnd(numberPattern, text, at) ?? matchEnd(wordPattern, text, at);
  if (end === null)
    stop(at, "Give an object, array, string in double quotes, number, true, false or null");
  return end;
}

function matchEnd(pattern: RegExp, text: string, at: number): number | null {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : null;
}

function scanString(text: string, at: number): number {
  // A loop, not a pattern: some engines recurse in long matches of a group.
  for (let i = at + 1; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit === 0x22) return i + 1;
    if (unit < 0x20) stop(i, "Escape control characters in strings, such as \\n for a new line");
    if (unit !== 0x5c) continue;
    const escape = text[i + 1] ?? "";
    if (escape === "u") {
      if (!/^[0-9a-fA-F]{4}$/.test(text.slice(i + 2, i + 6)))
        stop(i, "Give four hex digits after \\u");
      i += 5;
    } else if (escape !== "" && '"\\/bfnrt'.includes(escape)) i++;
    else stop(i, 'Escape only ", \\, /, b, f, n, r, t and u with a backslash');
  }
  return stop(at, "Close the string: its end is missing");
}

function scanObject(text: string, start: number, depth: number): number {
  const names = new Set<string>();
  let at = skipSpace(text, start + 1);
  if (text[at] === "}") return at + 1;
  for (;;) {
    if (text[at] !== '"') stop(at, "Give a name in double quotes, or close the object");
    const end = scanString(text, at);
    const raw = text.slice(at, end);
    const name = raw.includes("\\") ? (JSON.parse(raw) as string) : raw.slice(1, -1);
    if (names.has(name)) stop(at, "Give each name once: this one comes twice in its object");
    names.add(name);
    at = skipSpace(text, end);
    if (text[at] !== ":") stop(at, "Put a colon between name and value");
    at = skipSpace(text, scanValue(text, skipSpace(text, at + 1), depth));
    if (text[at] === "}") return at + 1;
    if (text[at] !== ",") stop(at, "Put a comma between members, or close the object");
    at = skipSpace(text, at + 1);
  }
}

function scanArray(text: string, start: number, depth: number): number {
  let at = skipSpace(text, start + 1);
  if (text[at] === "]") return at + 1;
  for (;;) {
    at = skipSpace(text, scanValue(text, at, depth));
    if (text[at] === "]") return at + 1;
    if (text[at] !== ",") stop(at, "Put a comma between items, or close the array");
    at = skipSpace(text, at + 1);
  }
}

/**
 * Members of all objects in a parsed value. A text with more of them, which is as many as it has colons outside of
 * strings, gives some name twice.
 */
export function memberCount(value: unknown): number {
  if (typeof value !== "object" || value === null) return 0;
  let count = 0;
  if (Array.isArray(value)) {
    for (const item of value) if (typeof item === "object") count += memberCount(item);
    return count;
  }
  const object = value as Readonly<Record<string, unknown>>;
  for (const name of Object.keys(object)) {
    count++;
    const item = object[name];
    if (typeof item === "object") count += memberCount(item);
  }
  return count;
}

/**
 * Where an object first gives a name again, as a JSON Pointer.
 * @param text that is known to be JSON, of bounded depth
 */
export function repeatedName(text: string): string | null {
  return repeatedIn(text, 0).pointer;
}

/** @returns the pointer from this value on, if there is one; else the offset after it */
function repeatedIn(
  text: string,
  from: number,
): { readonly pointer: string | null; readonly end: number } {
  let at = skipSpace(text, from);
  const isObject = text[at] === "{";
  if (!isObject && text[at] !== "[") return { pointer: null, end: readValue(text, at).end };
  const close = isObject ? "}" : "]";
  const names = new Set<string>();
  let index = 0;
  at = skipSpace(text, at + 1);
  while (text[at] !== close) {
    let step = String(index++);
    if (isObject) {
      const name = readValue(text, at);
      step = name.value as string;
      if (names.has(step)) return { pointer: `/${escapePointer(step)}`, end: at };
      names.add(step);
      at = skipSpace(text, name.end) + 1;
    }
    const item = repeatedIn(text, at);
    if (item.pointer !== null)
      return { pointer: `/${escapePointer(step)}${item.pointer}`, end: at };
    at = skipSpace(text, item.end);
    if (text[at] === ",") at = skipSpace(text, at + 1);
  }
  return { pointer: null, end: at + 1 };
}

/** A name that is one escaped character. */
const oneEscaped = /"\\(?:u[0-9a-fA-F]{4}|[^u])"[ \t\n\r]*:/;

/**
 * `JSON.parse`, but right: V8 (in Node 24 and Deno 2, https://github.com/nodejs/node/issues/63785) gives a name that is
 * one escaped character as a backslash, once it has seen an object with that name. Texts with such a name are read here.
 * @throws SyntaxError
 */
export function parseJsonText(text: string): unknown {
  const value: unknown = JSON.parse(text);
  return text.includes("\\") && oneEscaped.test(text) ? readValue(text, 0).value : value;
}

interface Read {
  readonly value: unknown;
  /** Offset after it. */
  readonly end: number;
}

/** Of a text that is known to be JSON. */
function readValue(text: string, from: number): Read {
  const start = skipSpace(text, from);
  const first = text[start];
  if (first === "{") return readObject(text, start);
  if (first === "[") return readArray(text, start);
  const end =
    first === '"'
      ? scanString(text, start)
      : (matchEnd(numberPattern, text, start) ?? matchEnd(wordPattern, text, start) ?? text.length);
  return { value: JSON.parse(text.slice(start, end)), end };
}

function readObject(text: string, start: number): Read {
  const value: Record<string, unknown> = {};
  let at = skipSpace(text, start + 1);
  while (text[at] !== "}") {
    const name = readValue(text, at);
    const item = readValue(text, skipSpace(text, name.end) + 1);
    // Defined, not assigned: a name may be __proto__.
    Object.defineProperty(value, name.value as string, {
      value: item.value,
      enumerable: true,
      configurable: true,
      writable: true,
    });
    at = skipSpace(text, item.end);
    if (text[at] === ",") at = skipSpace(text, at + 1);
  }
  return { value, end: at + 1 };
}

function readArray(text: string, start: number): Read {
  const value: unknown[] = [];
  let at = skipSpace(text, start + 1);
  while (text[at] !== "]") {
    const item = readValue(text, at);
    value.push(item.value);
    at = skipSpace(text, item.end);
    if (text[at] === ",") at = skipSpace(text, at + 1);
  }
  return { value, end: at + 1 };
}

export type Canonical =
  | { readonly ok: true; readonly text: string }
  | { readonly ok: false; readonly pointer: string; readonly detail: string };

/** RFC 8785. Takes what JSON can say and nothing else. */
export function canonicalJson(value: unknown): Canonical {
  const parts: string[] = [];
  const problem = writeCanonical(value, "", 0, parts);
  return problem === null ? { ok: true, text: parts.join("") } : { ok: false, ...problem };
}

function writeCanonical(
  value: unknown,
  pointer: string,
  depth: number,
  parts: string[],
): { pointer: string; detail: string } | null {
  if (value === null || typeof value === "boolean") {
    parts.push(String(value));
    return null;
  }
  if (typeof value === "number") {
    if (!Number.isFinite(value)) return { pointer, detail: "Give a finite number" };
    // ECMAScript's own form of numbers is the canonical one (RFC 8785 §3.2.2.3); -0 becomes 0 in it.
    parts.push(JSON.stringify(value));
    return null;
  }
  if (typeof value === "string") {
    if (loneSurrogateAt(value) >= 0)
      return { pointer, detail: "Give well-formed Unicode: half of a surrogate pair is missing" };
    parts.push(JSON.stringify(value));
    return null;
  }
  if (typeof value !== "object")
    return { pointer, detail: `Give only what JSON can say: not a ${typeof value}` };
  // A pointer to the place would be longer than anyone reads.
  if (depth >= depthMax) return { pointer: "", detail: `Nest at most ${depthMax} levels deep` };
  if (Array.isArray(value)) {
    parts.push("[");
    for (let i = 0; i < value.length; i++) {
      if (i > 0) parts.push(",");
      const problem = writeCanonical(value[i], `${pointer}/${i}`, depth + 1, parts);
      if (problem !== null) return problem;
    }
    parts.push("]");
    return null;
  }
  const object = value as Readonly<Record<string, unknown>>;
  parts.push("{");
  // The default order is by UTF-16 units, as RFC 8785 §3.2.3 wants it.
  const names = Object.keys(object).sort();
  for (let i = 0; i < names.length; i++) {
    const name = names[i] as string;
    if (loneSurrogateAt(name) >= 0)
      return { pointer, detail: "Give well-formed Unicode names: half of a pair is missing" };
    parts.push(i > 0 ? "," : "", JSON.stringify(name), ":");
    const at = `${pointer}/${escapePointer(name)}`;
    const problem = writeCanonical(object[name], at, depth + 1, parts);
    if (problem !== null) return problem;
  }
  parts.push("}");
  return null;
}

/**
 * Whether a value is what parsing its own JSON text would give, so that either may be used: nothing is left out of the
 * text or written as something else (undefined, NaN, -0, a Date, what has `toJSON`).
 * @param membersMax beyond so many members in all the answer is no: parsing costs less than looking
 */
export function isAsParsed(value: unknown, membersMax = 64): boolean {
  return membersLeft(value, membersMax) >= 0;
}

/** -1: it is not as parsed, or there are none left. */
function membersLeft(value: unknown, membersMax: number): number {
  if (typeof value === "string" || typeof value === "boolean" || value === null) return membersMax;
  if (typeof value === "number")
    return Number.isFinite(value) && !Object.is(value, -0) ? membersMax : -1;
  if (typeof value !== "object") return -1;
  const isPlain = Array.isArray(value)
    ? Object.keys(value).length === value.length
    : Object.getPrototypeOf(value) === Object.prototype;
  if (!isPlain) return -1;
  let left = membersMax;
  for (const member of Object.values(value)) {
    left = left > 0 ? membersLeft(member, left - 1) : -1;
    if (left < 0) return -1;
  }
  return left;
}
