/**
 * Content as it comes in: checked against its format and turned into the text that will be stored and served, before
 * anything is proposed. A string is text in the format, kept as it was sent; a structure becomes canonical JSON (or
 * YAML). What is malformed never becomes a version.
 *
 * Every parser works on input of at most the content quota, to a bounded depth and of a bounded number of parts, without
 * code or custom tags from it: all of them run in the event loop that every tenant of the node shares.
 */
import { sha256 } from "@noble/hashes/sha2.js";
import { parse as parseToml, TomlDate, TomlError } from "smol-toml";
import {
  Composer,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  Parser,
  stringify as stringifyYaml,
  visit,
} from "yaml";
import { assert, unreachable } from "../lib/assert.ts";
import { targetingErrors } from "./flags.ts";
import { canonicalJson, depthMax, parseJsonText, placeOf, scanJson } from "./json.ts";
import { escapePointer, shown } from "./names.ts";
import type { ContentFormat } from "./release.ts";
import { loneSurrogateAt, utf8Encode } from "./utf8.ts";

export interface ContentError {
  /** Where in the parsed content, or "" when the text itself is wrong. */
  readonly pointer: string;
  readonly detail: string;
  /** Where in the text, from 1. */
  readonly line?: number;
  readonly column?: number;
}

export interface PreparedContent {
  /** What is stored and served; empty when there are errors. */
  readonly text: string;
  /** The parsed value, for the schema check; undefined when there are errors. */
  readonly value: unknown;
  /** Empty: the content is good. */
  readonly errors: readonly ContentError[];
}

/** How many nodes of YAML all aliases together may stand for. */
const aliasesMax = 100;
/** Tokens of YAML as its grammar counts them (a line `key: value` has seven); parsing costs some microseconds each. */
const yamlTokensMax = 30_000;
/** Collections and the like that are open at one place, at least as many as levels: the exact depth is looked at later. */
const yamlOpenMax = 2 * depthMax + 8;
/** Folding makes lines of one token cost as much. */
const yamlLinesMax = 30_000;
/** Values of a structure that is to become YAML: each becomes several tokens. */
const yamlValuesMax = 5_000;
/** Dots, commas, brackets and equals signs of TOML outside of its strings. */
const tomlPartsMax = 30_000;
/** Names of a properties text. */
const propertiesMax = 30_000;
const errorsMax = 20;

const tooDeep: ContentError = { pointer: "", detail: `Nest at most ${depthMax} levels deep` };

export function prepareContent(format: ContentFormat, input: unknown): PreparedContent {
  if (typeof input !== "string") return prepareStructure(format, input);
  const text = input.startsWith("\uFEFF") ? input.slice(1) : input;
  const lone = loneSurrogateAt(text);
  if (lone >= 0)
    return failed({
      pointer: "",
      detail: "Give well-formed Unicode: half of a surrogate pair is missing",
      ...placeOf(text, lone),
    });
  switch (format) {
    case "text":
      return { text, value: text, errors: [] };
    case "json":
      return prepareJson(text);
    case "flag":
      return checkedFlag(prepareJson(text));
    case "yaml":
      return prepareYaml(text);
    case "toml":
      return prepareToml(text);
    case "properties":
      return prepareProperties(text);
    default:
      return unreachable(format);
  }
}

const mediaTypes: Readonly<Record<ContentFormat, string>> = {
  json: "application/json",
  flag: "application/json",
  // RFC 9512
  yaml: "application/yaml",
  // Registered with IANA; see https://www.iana.org/assignments/media-types/application/toml
  toml: "application/toml",
  properties: "text/x-java-properties; charset=utf-8",
  text: "text/plain; charset=utf-8",
};

export function mediaType(format: ContentFormat): string {
  return mediaTypes[format];
}

/** SHA-256 of the text's UTF-8, as lower-case hex. */
type Digest = (text: string) => string;

let digest: Digest = (text) => {
  let hex = "";
  for (const byte of sha256(utf8Encode(text))) hex += byte.toString(16).padStart(2, "0");
  return hex;
};

/**
 * Replaces the digest of this floor, which runs everywhere, by the runtime's own, which is several times faster: each
 * replica hashes for every change. Replicas must agree, so one that is none is refused.
 */
export function useDigest(native: Digest): void {
  const text = "conflux é \u{1f600} \ud800";
  assert(native(text) === digest(text), "A digest was given that is not SHA-256 in lower-case hex");
  digest = native;
}

/** `sha256:<hex>` over the bytes that are served. */
export function contentHash(text: string): string {
  return `sha256:${digest(text)}`;
}

function failed(...errors: readonly ContentError[]): PreparedContent {
  return { text: "", value: undefined, errors: errors.slice(0, errorsMax) };
}

// --- structures --------------------------------------------------------------------------------------------------------

function prepareStructure(format: ContentFormat, input: unknown): PreparedContent {
  if (format !== "json" && format !== "flag" && format !== "yaml")
    return failed({
      pointer: "",
      detail: `Give the content as a string: format ${format} takes text only`,
    });
  const canonical = canonicalJson(input);
  if (!canonical.ok) return failed({ pointer: canonical.pointer, detail: canonical.detail });
  const { text } = canonical;
  // Parsed again, so that the value is what a reader of the text will see, and nothing of the caller's.
  if (format === "yaml") {
    const value = parseJsonText(text);
    if (countValues(value) > yamlValuesMax)
      return failed({
        pointer: "",
        detail: `Give fewer values (at most ${yamlValuesMax} become YAML), or split the config`,
      });
    return prepareYaml(stringifyYaml(value, { lineWidth: 0, aliasDuplicateObjects: false }));
  }
  if (format === "flag") return checkedFlag({ text, value: parseJsonText(text), errors: [] });
  // Only a schema asks for it.
  return {
    text,
    get value(): unknown {
      return parseJsonText(text);
    },
    errors: [],
  };
}

function countValues(value: unknown): number {
  if (typeof value !== "object" || value === null) return 1;
  let count = 1;
  for (const item of Object.values(value)) count += countValues(item);
  return count;
}

// --- json and flags ------------------------------------------------------------------------------------------------------

function prepareJson(text: string): PreparedContent {
  const error = scanJson(text);
  if (error !== null) return failed({ pointer: "", ...error });
  return { text, value: parseJsonText(text), errors: [] };
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A flag definition of flagd (https://flagd.dev/reference/flag-definitions/), without the set around it. */
function checkedFlag(prepared: PreparedContent): PreparedContent {
  if (prepared.errors.length > 0) return prepared;
  const errors = flagErrors(prepared.value);
  return errors.length === 0 ? prepared : failed(...errors);
}

function kindOf(value: unknown): string {
  return value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
}

function flagErrors(flag: unknown): ContentError[] {
  if (!isObject(flag))
    return [{ pointer: "", detail: "Give a flag as an object of state, variants, defaultVariant" }];
  const errors: ContentError[] = [];
  const add = (pointer: string, detail: string): void => void errors.push({ pointer, detail });
  const { state, variants, defaultVariant, targeting, metadata } = flag as Record<string, unknown>;
  if (state !== "ENABLED" && state !== "DISABLED")
    add("/state", `Give "ENABLED" or "DISABLED" as the state`);
  const names = isObject(variants) ? Object.keys(variants) : [];
  if (!isObject(variants) || names.length === 0)
    add("/variants", "Give at least one variant, as an object from name to value");
  else {
    const kinds = new Set(names.map((name) => kindOf(variants[name])));
    const [kind] = kinds;
    if (kinds.size > 1) add("/variants", `Give variants of one type: got ${[...kinds].join(", ")}`);
    else if (kind === "null" || kind === "array")
      add("/variants", `Give variants that are boolean, string, number or object: not ${kind}`);
  }
  if (defaultVariant !== undefined && defaultVariant !== null) {
    if (typeof defaultVariant !== "string")
      add("/defaultVariant", "Name a variant, or null for the default of the code");
    else if (!names.includes(defaultVariant))
      add(
        "/defaultVariant",
        `Name one of the variants: ${names.slice(0, 20).map(shown).join(", ")}`,
      );
  }
  if (targeting !== undefined && !isObject(targeting))
    add("/targeting", "Give targeting as an object (JsonLogic), or leave it out");
  else if (targeting !== undefined)
    for (const { pointer, detail } of targetingErrors(targeting))
      add(`/targeting${pointer}`, detail);
  if (metadata !== undefined) {
    if (!isObject(metadata)) add("/metadata", "Give metadata as an object, or leave it out");
    else
      for (const name of Object.keys(metadata))
        if (!["boolean", "string", "number"].includes(typeof metadata[name]))
          add(`/metadata/${escapePointer(name)}`, "Give a boolean, string or number");
  }
  return errors;
}

// --- yaml ----------------------------------------------------------------------------------------------------------------

function prepareYaml(text: string): PreparedContent {
  const lines = new LineCounter();
  const at = (offset: number | undefined): { line?: number; column?: number } => {
    if (offset === undefined) return {};
    const { line, col } = lines.linePos(offset);
    return { line, column: col };
  };
  try {
    const composer = new Composer({
      version: "1.2",
      schema: "core",
      merge: false,
      strict: true,
      // Its own check compares every pair of keys; below is one that does not.
      uniqueKeys: false,
      prettyErrors: false,
      logLevel: "silent",
    });
    const tokens = boundedTokens(text, lines);
    if (tokens === "deep") return failed(tooDeep);
    if (tokens === "many")
      return failed({
        pointer: "",
        detail: `Split the config, or give it as JSON: YAML may have ${yamlTokensMax} tokens (about ${Math.floor(yamlTokensMax / 7)} keys with values) and ${yamlLinesMax} lines`,
      });
    const [document, second] = [...composer.compose(tokens)];
    if (document === undefined) return { text, value: null, errors: [] };
    if (second !== undefined)
      return failed({
        pointer: "",
        detail: "Give one document: another begins here",
        ...at(second.range[0]),
      });
    // A warning is a tag that could not be resolved: its value would not be what its author meant.
    const problems = [...document.errors, ...document.warnings];
    // The parser recurses: what is deeper than the stack is deeper than allowed.
    if (problems.some(({ code }) => code === "RESOURCE_EXHAUSTION")) return failed(tooDeep);
    if (problems.length > 0)
      return failed(
        ...problems.slice(0, errorsMax).map((problem) => ({
          pointer: "",
          detail: firstLine(problem.message),
          ...at(problem.pos[0]),
        })),
      );
    const errors: ContentError[] = [];
    visit(document, {
      Map(_, map) {
        const names = new Set<string>();
        for (const { key } of map.items) {
          if (!isScalar(key)) {
            const offset = isMap(key) || isSeq(key) || isAlias(key) ? key.range?.[0] : undefined;
            errors.push({ pointer: "", detail: "Give plain scalars as keys", ...at(offset) });
          } else if (names.has(String(key.value)))
            errors.push({
              pointer: "",
              detail: "Give each key once: this one comes twice in its map",
              ...at(key.range?.[0]),
            });
          else names.add(String(key.value));
          if (errors.length >= errorsMax) return visit.BREAK;
        }
        return undefined;
      },
    });
    if (errors.length > 0) return failed(...errors);
    const value: unknown = document.toJS({ maxAliasCount: aliasesMax });
    // YAML knows .nan and .inf, cycles through anchors, and depth that JSON's consumers do not expect.
    const canonical = canonicalJson(value);
    if (!canonical.ok) return failed({ pointer: canonical.pointer, detail: canonical.detail });
    return { text, value: parseJsonText(canonical.text), errors: [] };
  } catch (error) {
    if (error instanceof RangeError) return failed(tooDeep);
    // The library's sign for too many aliases.
    if (error instanceof ReferenceError)
      return failed({
        pointer: "",
        detail: `Use fewer aliases: all together may stand for ${aliasesMax} nodes`,
      });
    throw error;
  }
}

/** Counted while they are read, so that nothing is built of what is refused. */
function boundedTokens(text: string, lines: LineCounter) {
  for (let at = -1, n = 0; (at = text.indexOf("\n", at + 1)) >= 0;)
    if (++n > yamlLinesMax) return "many";
  const parser = new Parser(lines.addNewLine);
  lines.addNewLine(0);
  const tokens = [];
  let count = 0;
  for (const lexeme of new Lexer().lex(text)) {
    if (++count > yamlTokensMax) return "many";
    tokens.push(...parser.next(lexeme));
    // What comes out deep takes time that grows with the square of the depth.
    if (parser.stack.length > yamlOpenMax) return "deep";
  }
  tokens.push(...parser.end());
  return tokens;
}

function firstLine(message: string): string {
  return message.split("\n", 1)[0] as string;
}

// --- toml ----------------------------------------------------------------------------------------------------------------

function prepareToml(text: string): PreparedContent {
  if (countTomlParts(text) > tomlPartsMax)
    return failed({
      pointer: "",
      detail: `Split the config: TOML may have ${tomlPartsMax} keys, values and parts of names`,
    });
  try {
    const table: unknown = parseToml(text, { maxDepth: depthMax, unsafeKeyBehaviour: "keep" });
    const canonical = canonicalJson(plain(table, 0));
    if (!canonical.ok) return failed({ pointer: canonical.pointer, detail: canonical.detail });
    return { text, value: parseJsonText(canonical.text), errors: [] };
  } catch (error) {
    if (error instanceof TomlError)
      return failed({
        pointer: "",
        detail: firstLine(error.message).replace(/^Invalid TOML document: /, ""),
        line: error.line,
        column: error.column,
      });
    if (error instanceof RangeError) return failed(tooDeep);
    throw error;
  }
}

/** One pass that knows strings and comments; what is not TOML at all is left to the parser to say. */
function countTomlParts(text: string): number {
  let parts = 0;
  for (let i = 0; i < text.length; i++) {
    const char = text[i] as string;
    if (char === "#") i = endOr(text.indexOf("\n", i), text);
    else if (char === '"' || char === "'") {
      const fence = char.repeat(3);
      i = text.startsWith(fence, i)
        ? endOr(text.indexOf(fence, i + 3), text) + 2
        : endOfLineString(text, i, char);
    } else if ("=.,[{".includes(char)) parts++;
  }
  return parts;
}

function endOr(at: number, text: string): number {
  return at === -1 ? text.length : at;
}

function endOfLineString(text: string, start: number, quote: string): number {
  for (let i = start + 1; i < text.length; i++) {
    if (text[i] === "\\" && quote === '"') i++;
    else if (text[i] === quote || text[i] === "\n") return i;
  }
  return text.length;
}

/** Dates and times of TOML become texts, infinities and NaN too: JSON has neither, and a schema should see something. */
function plain(value: unknown, depth: number): unknown {
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  if (typeof value !== "object" || value === null || depth > depthMax) return value;
  if (value instanceof TomlDate) return value.toISOString();
  if (Array.isArray(value)) return value.map((item) => plain(item, depth + 1));
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [name, plain(item, depth + 1)]),
  );
}

// --- properties ----------------------------------------------------------------------------------------------------------

/** The line rules of java.util.Properties (JDK API, `load(Reader)`); a name given twice is refused. */
function prepareProperties(text: string): PreparedContent {
  const entries = new Map<string, string>();
  const lines = text.split(/\r\n|\r|\n/);
  for (let i = 0; i < lines.length; i++) {
    const first = i + 1;
    let part = (lines[i] as string).replace(/^[ \t\f]+/, "");
    if (part === "" || part.startsWith("#") || part.startsWith("!")) continue;
    const parts: string[] = [];
    // What a backslash at the end continues: an even number before it are escapes of their own.
    while (endsWithOddBackslash(part) && i < lines.length) {
      parts.push(part.slice(0, -1));
      part = (lines[++i] ?? "").replace(/^[ \t\f]+/, "");
    }
    parts.push(part);
    const split = splitProperty(parts.join(""));
    const name = unescapeProperty(split.name);
    const value = unescapeProperty(split.value);
    if (name === null || value === null)
      return failed({
        pointer: "",
        detail: "Give four hex digits after \\u",
        line: first,
        column: 1,
      });
    if (entries.has(name))
      return failed({
        pointer: "",
        detail: "Give each name once: this one comes twice",
        line: first,
        column: 1,
      });
    entries.set(name, value);
    if (entries.size > propertiesMax)
      return failed({
        pointer: "",
        detail: `Split the config: properties may have ${propertiesMax} names`,
      });
  }
  const value = Object.fromEntries(entries);
  return { text, value, errors: [] };
}

function endsWithOddBackslash(line: string): boolean {
  let count = 0;
  while (line[line.length - 1 - count] === "\\") count++;
  return count % 2 === 1;
}

/** The name ends at the first `=`, `:` or white space that is not escaped. */
function splitProperty(line: string): { name: string; value: string } {
  let end = 0;
  for (; end < line.length; end++) {
    if (line[end] === "\\") end++;
    else if ("=: \t\f".includes(line[end] as string)) break;
  }
  const rest = line.slice(end).replace(/^[ \t\f]*[=:]?[ \t\f]*/, "");
  return { name: line.slice(0, end), value: rest };
}

function unescapeProperty(text: string): string | null {
  if (!text.includes("\\")) return text;
  let isBroken = false;
  const plainText = text.replace(/\\(u[0-9a-fA-F]{4}|[\s\S]|$)/g, (_, escape: string) => {
    if (escape.length === 5) return String.fromCharCode(Number.parseInt(escape.slice(1), 16));
    if (escape === "u") isBroken = true;
    return { t: "\t", n: "\n", r: "\r", f: "\f" }[escape] ?? escape;
  });
  return isBroken ? null : plainText;
}
