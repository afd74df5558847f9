/**
 * JSON Schema 2020-12 over the parsed content, interpreted (never compiled to code, since schemas come from tenants) and
 * bounded: in size, in depth, in steps, and in what a regular expression can cost.
 *
 * The library has no budget of its own. Every schema object gets a prototype with a getter for a keyword that 2020-12
 * does not have and that the library reads once per evaluation of a schema: that is where steps are counted. Regular
 * expressions are moved into `format`, the one keyword that calls a function, so that their cost is counted as well.
 */
import { dereference, format, validate } from "@cfworker/json-schema";
import { depthMax, scanJson } from "./json.ts";
import { escapePointer, shown } from "./names.ts";
import { utf8Length } from "./utf8.ts";

export interface SchemaError {
  readonly pointer: string;
  readonly detail: string;
}

export const schemaBytesMax = 262_144;
const errorsMax = 20;
/** Evaluations of a schema per check. */
const stepsMax = 200_000;
/** Steps of regular expressions per check, as estimated from above. */
const patternStepsMax = 200_000_000;
const patternLengthMax = 512;
/** The longest text that a named format is tried on: some of its expressions are quadratic. */
const formatLengthMax = 4_096;
/** `uniqueItems` compares all pairs. */
const uniqueItemsMax = 2_000;
const patternFormat = "conflux-pattern:";
const namedFormat = "conflux-format:";

type SchemaNode = Record<string, unknown>;

/** Null when the text can serve as a schema. */
export function checkSchema(text: string): readonly SchemaError[] {
  const compiled = compile(text);
  return "errors" in compiled ? compiled.errors : [];
}

/** What in the value breaks the schema; empty = it is valid. A schema that cannot be used is an error too. */
export function validateAgainst(schemaText: string, value: unknown): readonly SchemaError[] {
  const compiled = compile(schemaText);
  return "errors" in compiled ? compiled.errors : run(compiled, value);
}

// --- reading a schema ----------------------------------------------------------------------------------------------------

interface Compiled {
  readonly root: SchemaNode | boolean;
  readonly lookup: ReturnType<typeof dereference>;
  readonly budget: Budget;
  /** Cost exponents of the expressions of `patternProperties`, which are tried on every name. */
  readonly namePatterns: readonly number[];
  readonly hasUniqueItems: boolean;
  readonly patterns: ReadonlyMap<string, RegExp>;
}

class OverBudget {
  readonly detail: string;
  constructor(detail: string) {
    this.detail = detail;
  }
}

class Budget {
  #steps = 0;
  #patternSteps = 0;

  step(): void {
    if (++this.#steps > stepsMax)
      // oxlint-disable-next-line no-throw-literal -- caught in run: an answer, not an error
      throw new OverBudget(`Simplify schema or content: the check took ${stepsMax} steps`);
  }

  pattern(length: number, exponent: number): void {
    this.#patternSteps += (length + 1) ** exponent;
    if (this.#patternSteps > patternStepsMax)
      // oxlint-disable-next-line no-throw-literal -- caught in run: an answer, not an error
      throw new OverBudget(
        "Simplify the patterns or shorten the texts: matching could take too long",
      );
  }
}

function fail(detail: string, pointer = ""): { errors: readonly SchemaError[] } {
  return { errors: [{ pointer, detail }] };
}

function compile(text: string): Compiled | { readonly errors: readonly SchemaError[] } {
  const bytes = utf8Length(text);
  if (bytes > schemaBytesMax)
    return fail(`Shorten the schema to ${schemaBytesMax} bytes: it has ${bytes}`);
  const broken = scanJson(text);
  if (broken !== null)
    return fail(`${broken.detail} (line ${broken.line}, column ${broken.column} of the schema)`);
  const parsed: unknown = JSON.parse(text);
  if (typeof parsed !== "boolean" && !isNode(parsed))
    return fail("Give the schema as an object, true or false");
  const reader = new SchemaReader();
  const root = reader.schema(parsed, "") as SchemaNode | boolean;
  if (reader.errors.length > 0) return { errors: reader.errors };
  let lookup: Compiled["lookup"];
  try {
    lookup = dereference(root);
  } catch {
    return fail("Give $id and $ref as valid URI references: one of them is not");
  }
  for (const { reference, pointer } of reader.references(lookup))
    return fail(`Define what is referenced in the schema itself: ${shown(reference)}`, pointer);
  return { root, lookup, ...reader.facts() };
}

function isNode(value: unknown): value is SchemaNode {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const schemaKeywords = [
  "not",
  "if",
  "then",
  "else",
  "items",
  "contains",
  "additionalProperties",
  "unevaluatedProperties",
  "unevaluatedItems",
  "propertyNames",
];
const schemaListKeywords = ["allOf", "anyOf", "oneOf", "prefixItems"];
const schemaMapKeywords = [
  "$defs",
  "definitions",
  "properties",
  "patternProperties",
  "dependentSchemas",
];
const numberKeywords = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
const countKeywords = [
  "minLength",
  "maxLength",
  "minItems",
  "maxItems",
  "minContains",
  "maxContains",
  "minProperties",
  "maxProperties",
];
const typeNames = ["null", "boolean", "object", "array", "number", "string", "integer"];
/** Not of 2020-12, and the library would follow them. */
const foreignKeywords = [
  "$recursiveRef",
  "$recursiveAnchor",
  "$dynamicRef",
  "$dynamicAnchor",
  "dependencies",
  "additionalItems",
  "__absolute_ref__",
  "__absolute_recursive_ref__",
  "__absolute_uri__",
];

/** Copies a schema into the form described at the top, and checks the shape of its keywords on the way. */
class SchemaReader {
  readonly errors: SchemaError[] = [];
  readonly #budget = new Budget();
  readonly #prototype: object;
  readonly #namePatterns: number[] = [];
  readonly #patterns = new Map<string, RegExp>();
  readonly #exponents = new Map<string, number>();
  readonly #references: { node: SchemaNode; pointer: string }[] = [];
  #hasUniqueItems = false;

  constructor() {
    const budget = this.#budget;
    this.#prototype = Object.create(Object.prototype, {
      $recursiveAnchor: {
        get(): undefined {
          budget.step();
        },
      },
    }) as object;
  }

  facts(): Omit<Compiled, "root" | "lookup"> {
    return {
      budget: this.#budget,
      namePatterns: this.#namePatterns,
      hasUniqueItems: this.#hasUniqueItems,
      patterns: this.#patterns,
    };
  }

  /** References that lead nowhere. Nothing is ever fetched. */
  *references(
    lookup: Compiled["lookup"],
  ): Iterable<{ readonly reference: string; readonly pointer: string }> {
    for (const { node, pointer } of this.#references) {
      const reference = String(node["$ref"]);
      const absolute = node["__absolute_ref__"];
      if (lookup[typeof absolute === "string" ? absolute : reference] === undefined)
        yield { reference, pointer: `${pointer}/$ref` };
    }
  }

  schema(value: unknown, at: string): unknown {
    if (typeof value === "boolean") return value;
    if (!isNode(value)) {
      this.#add(at, "Give a schema: an object, true or false");
      return true;
    }
    const node = Object.create(this.#prototype) as SchemaNode;
    for (const keyword of Object.keys(value)) {
      const pointer = `${at}/${escapePointer(keyword)}`;
      const copied = this.#keyword(keyword, value[keyword], pointer);
      if (copied !== undefined) define(node, keyword, copied);
    }
    this.#formats(node, value, at);
    if (node["$ref"] !== undefined) this.#references.push({ node, pointer: at });
    return node;
  }

  #add(pointer: string, detail: string): void {
    if (this.errors.length < errorsMax) this.errors.push({ pointer, detail });
  }

  /** The value as the library shall see it; undefined leaves it out. */
  #keyword(keyword: string, value: unknown, at: string): unknown {
    if (schemaKeywords.includes(keyword)) return this.schema(value, at);
    if (schemaListKeywords.includes(keyword)) return this.#list(value, at);
    if (schemaMapKeywords.includes(keyword)) return this.#map(keyword, value, at);
    if (foreignKeywords.includes(keyword)) {
      this.#add(at, `Leave out ${keyword}: it is not supported`);
      return undefined;
    }
    if (keyword === "pattern" || keyword === "format") {
      if (typeof value !== "string") this.#add(at, `Give a text for ${keyword}`);
      return undefined;
    }
    const detail = shapeError(keyword, value);
    if (detail !== null) this.#add(at, detail);
    if (keyword === "uniqueItems" && value === true) this.#hasUniqueItems = true;
    return value;
  }

  #list(value: unknown, at: string): unknown {
    if (Array.isArray(value) && value.length > 0)
      return value.map((one: unknown, i) => this.schema(one, `${at}/${i}`));
    this.#add(at, "Give a list of at least one schema");
    return undefined;
  }

  #map(keyword: string, value: unknown, at: string): unknown {
    if (!isNode(value)) {
      this.#add(at, "Give an object of schemas");
      return undefined;
    }
    // Without a prototype: a property named like a method of objects must not find that method.
    const map = Object.create(null) as SchemaNode;
    for (const name of Object.keys(value)) {
      const pointer = `${at}/${escapePointer(name)}`;
      if (keyword === "patternProperties") {
        const exponent = this.#pattern(name, pointer);
        if (exponent !== null) this.#namePatterns.push(exponent);
      }
      define(map, name, this.schema(value[name], pointer));
    }
    return map;
  }

  /** Registers an expression; its exponent, or null after an error. */
  #pattern(source: string, at: string): number | null {
    const known = this.#exponents.get(source);
    if (known !== undefined) return known;
    const cost = patternCost(source);
    if (typeof cost === "string") {
      this.#add(at, cost);
      return null;
    }
    try {
      this.#patterns.set(source, new RegExp(source, "u"));
    } catch {
      this.#add(at, "Give a regular expression of ECMAScript with the u flag: this is none");
      return null;
    }
    this.#exponents.set(source, cost);
    return cost;
  }

  #formats(node: SchemaNode, value: SchemaNode, at: string): void {
    const formats: string[] = [];
    const { pattern, format: named } = value;
    if (typeof pattern === "string") {
      const exponent = this.#pattern(pattern, `${at}/pattern`);
      if (exponent !== null) formats.push(`${patternFormat}${exponent}:${pattern}`);
    }
    if (typeof named === "string" && Object.hasOwn(format, named))
      formats.push(`${namedFormat}${named}`);
    if (formats.length === 0) return;
    const both = formats.map((one) => {
      const wrapper = Object.create(this.#prototype) as SchemaNode;
      wrapper["format"] = one;
      return wrapper;
    });
    if (both.length === 1) node["format"] = formats[0];
    else node["allOf"] = [...((node["allOf"] as unknown[] | undefined) ?? []), ...both];
  }
}

function define(node: SchemaNode, name: string, value: unknown): void {
  Object.defineProperty(node, name, {
    value,
    enumerable: true,
    configurable: true,
    writable: true,
  });
}

function isTexts(value: unknown): boolean {
  return Array.isArray(value) && value.every((one) => typeof one === "string");
}

function shapeError(keyword: string, value: unknown): string | null {
  if (countKeywords.includes(keyword))
    return Number.isSafeInteger(value) && (value as number) >= 0
      ? null
      : `Give a whole number from 0 for ${keyword}`;
  if (numberKeywords.includes(keyword))
    return typeof value === "number" ? null : `Give a number for ${keyword}`;
  switch (keyword) {
    case "type": {
      const types: unknown[] = Array.isArray(value) ? value : [value];
      return types.length > 0 && types.every((type) => typeNames.includes(type as string))
        ? null
        : `Give one or more of ${typeNames.join(", ")} for type`;
    }
    case "multipleOf":
      // The library computes with integers as long as the difference of the exponents.
      return typeof value === "number" && value >= 1e-12 && value <= 1e15
        ? null
        : "Give a number from 1e-12 to 1e15 for multipleOf";
    case "enum":
      return Array.isArray(value) && value.length <= 1_000
        ? null
        : "Give a list of at most 1000 values for enum";
    case "required":
      return isTexts(value) ? null : "Give a list of names for required";
    case "dependentRequired":
      return isNode(value) && Object.values(value).every(isTexts)
        ? null
        : "Give an object of lists of names for dependentRequired";
    case "uniqueItems":
      return typeof value === "boolean" ? null : "Give true or false for uniqueItems";
    case "$id":
    case "$ref":
    case "$anchor":
      return typeof value === "string" ? null : `Give a text for ${keyword}`;
    case "$schema":
      return value === "https://json-schema.org/draft/2020-12/schema" ||
        value === "https://json-schema.org/draft/2020-12/schema#"
        ? null
        : `Give "https://json-schema.org/draft/2020-12/schema" for $schema, or leave it out`;
    default:
      return null;
  }
}

// --- what a regular expression can cost ----------------------------------------------------------------------------------

interface Group {
  /** The literal it begins with: where a repetition of it can begin is then beyond doubt … */
  lead: string | null;
  /** … unless something inside can match that literal too. */
  isClear: boolean;
  /** It can match in several ways: by a quantifier of varying length, or alternatives. */
  hasChoice: boolean;
}

/**
 * An exponent e such that matching a text of n characters takes at most about n^e steps, or a sentence that says what is
 * not allowed. Engines backtrack: repeating a group that can match the same text in several ways is exponential, and is
 * refused; each unbounded quantifier beside others multiplies by n; so does a start that is not anchored.
 */
function patternCost(source: string): number | string {
  if (source.length > patternLengthMax)
    return `Shorten the pattern to ${patternLengthMax} characters: it has ${source.length}`;
  let exponent = source.startsWith("^") && !source.includes("|") ? 0 : 1;
  const open: Group[] = [];
  /** What a quantifier at this place would repeat. */
  let atom: string | Group = "";
  for (let i = 0; i < source.length;) {
    const unit = source[i] as string;
    const group = open.at(-1);
    const quantifier = quantifierAt(source, i);
    if (quantifier !== null) {
      const { min, max, length } = quantifier;
      if (max > 1 && typeof atom !== "string" && atom.hasChoice && !atom.isClear)
        if (max > 4 || ++exponent > exponentMax)
          return "Write the pattern without repeating a group that can match in several ways";
      if (max > 16) exponent++;
      else if (max !== min && max > 1) exponent += 0.5;
      if (group !== undefined && max !== min) {
        group.hasChoice = true;
        if (typeof atom !== "string" || canBe(atom, group.lead)) group.isClear = false;
      }
      i += length;
      if (source[i] === "?") i++;
    } else if (unit === "(") {
      if (/^\(\?(?:[=!]|<[=!])/.test(source.slice(i, i + 4)))
        return "Write the pattern without looking ahead or behind";
      i += source.startsWith("(?:", i) ? 3 : 1;
      open.push({ lead: leadAt(source, i), isClear: true, hasChoice: false });
    } else if (unit === ")") {
      const closed = open.pop();
      const outer = open.at(-1);
      if (outer !== undefined && closed?.hasChoice === true) {
        outer.hasChoice = true;
        outer.isClear = false;
      }
      if (closed?.lead === null) closed.isClear = false;
      atom = closed ?? "";
      i++;
    } else if (unit === "|") {
      if (group !== undefined) {
        group.hasChoice = true;
        group.isClear = false;
      }
      i++;
    } else {
      const end = atomEnd(source, i);
      atom = source.slice(i, end);
      if (/^\\(?:[1-9]|k)/.test(atom)) return "Write the pattern without back references";
      i = end;
    }
  }
  return exponent > exponentMax
    ? "Write the pattern with fewer repetitions: it could take too long"
    : exponent;
}

const exponentMax = 6;

/** The character that a group beginning here must begin with, if that is one and is not itself repeated. */
function leadAt(source: string, at: number): string | null {
  const lead = /^(?:\\([^A-Za-z0-9])|([^\\[\](){}*+?.|^$]))/.exec(source.slice(at, at + 2));
  if (lead === null || quantifierAt(source, at + lead[0].length) !== null) return null;
  return lead[1] ?? lead[2] ?? null;
}

function canBe(atom: string, lead: string | null): boolean {
  if (lead === null) return true;
  try {
    return new RegExp(`^(?:${atom})$`, "u").test(lead);
  } catch {
    return true;
  }
}

function atomEnd(source: string, at: number): number {
  if (source[at] === "[") return classEnd(source, at);
  if (source[at] !== "\\") return at + ((source.codePointAt(at) as number) > 0xffff ? 2 : 1);
  const escape =
    /^\\(?:[pP]\{[^}]*\}|u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[A-Za-z]|[\s\S]|$)/u;
  return at + (escape.exec(source.slice(at, at + 64))?.[0].length ?? 1);
}

function classEnd(source: string, start: number): number {
  for (let i = start + 1; i < source.length; i++) {
    if (source[i] === "\\") i++;
    else if (source[i] === "]") return i + 1;
  }
  return source.length;
}

function quantifierAt(
  source: string,
  at: number,
): { min: number; max: number; length: number } | null {
  const unit = source[at];
  if (unit === "*") return { min: 0, max: Number.POSITIVE_INFINITY, length: 1 };
  if (unit === "+") return { min: 1, max: Number.POSITIVE_INFINITY, length: 1 };
  if (unit === "?") return { min: 0, max: 1, length: 1 };
  if (unit !== "{") return null;
  const match = /^\{(\d+)(,(\d*))?\}/.exec(source.slice(at, at + 32));
  if (match === null) return null;
  const min = Number(match[1]);
  const max =
    match[2] === undefined ? min : match[3] === "" ? Number.POSITIVE_INFINITY : Number(match[3]);
  return { min, max, length: match[0].length };
}

// --- running -------------------------------------------------------------------------------------------------------------

function run(compiled: Compiled, value: unknown): readonly SchemaError[] {
  const { root, lookup, budget, patterns } = compiled;
  const registered: string[] = [];
  const register = (name: string, test: (text: string) => boolean): void => {
    format[name] = test;
    registered.push(name);
  };
  for (const name of Object.keys(format))
    register(`${namedFormat}${name}`, (text) => {
      budget.pattern(text.length, 1.5);
      return text.length <= formatLengthMax && (format[name]?.(text) ?? true);
    });
  for (const [source, expression] of patterns) {
    const exponent = patternCost(source) as number;
    register(`${patternFormat}${exponent}:${source}`, (text) => {
      budget.pattern(text.length, exponent);
      return expression.test(text);
    });
  }
  try {
    guardValue(compiled, value, 0);
    const { errors } = validate(value, root, "2020-12", lookup, false);
    return readable(errors);
  } catch (error) {
    if (error instanceof OverBudget) return [{ pointer: "", detail: error.detail }];
    // A reference that leads back to itself recurses without end, and very many errors overflow the stack too.
    if (error instanceof RangeError)
      return [{ pointer: "", detail: "Simplify schema or content: the check went too deep" }];
    throw error;
  } finally {
    for (const name of registered) delete format[name];
  }
}

/** Bounds what is not counted in steps, and keeps out what the library does not take. */
function guardValue(compiled: Compiled, value: unknown, depth: number): void {
  if (typeof value !== "object" || value === null) return;
  // oxlint-disable-next-line no-throw-literal -- caught in run
  if (depth > depthMax) throw new OverBudget(`Nest at most ${depthMax} levels deep`);
  if (Array.isArray(value)) {
    if (compiled.hasUniqueItems && value.length > uniqueItemsMax)
      // oxlint-disable-next-line no-throw-literal -- caught in run
      throw new OverBudget(
        `Shorten arrays to ${uniqueItemsMax} items for a schema with uniqueItems`,
      );
    for (const item of value) guardValue(compiled, item, depth + 1);
    return;
  }
  for (const [name, item] of Object.entries(value)) {
    for (const exponent of compiled.namePatterns) compiled.budget.pattern(name.length, exponent);
    guardValue(compiled, item, depth + 1);
  }
}

/** The innermost reasons: that something around them is invalid too says nothing new. */
function readable(
  errors: readonly { keyword: string; instanceLocation: string; error: string }[],
): readonly SchemaError[] {
  const around = new Set(["properties", "items", "prefixItems", "allOf", "$ref", "if"]);
  around.add("additionalProperties").add("patternProperties").add("dependentSchemas");
  const inner = errors.filter(({ keyword }) => !around.has(keyword));
  const seen = new Set<string>();
  const result: SchemaError[] = [];
  for (const { instanceLocation, error } of inner.length > 0 ? inner : errors) {
    const pointer = instanceLocation.replace(/^#/, "");
    const detail = sentence(error);
    if (seen.has(`${pointer}\n${detail}`)) continue;
    seen.add(`${pointer}\n${detail}`);
    result.push({ pointer, detail });
    if (result.length >= errorsMax) break;
  }
  return result;
}

function sentence(error: string): string {
  const pattern = /^String does not match format "conflux-pattern:[0-9.]+:([\s\S]*)"\.$/.exec(
    error,
  );
  if (pattern !== null) return `String does not match the pattern ${shown(pattern[1] as string)}`;
  return error.replace(`"${namedFormat}`, '"').replace(/\.$/, "");
}
