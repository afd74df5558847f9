/**
 * JSON Schema 2020-12 over the parsed content, interpreted (never compiled to code, since schemas come from tenants) and
 * bounded: in size, in depth, in steps, and in what a regular expression can cost.
 *
 * The library has no budget of its own. Every schema object gets a prototype with a getter for a keyword that 2020-12
 * does not have and that the library reads once per evaluation of a schema: that is where steps are counted. Regular
 * expressions never reach the engine (see pattern.ts): `pattern` is moved into `format`, the one keyword that calls a
 * function, and `patternProperties` becomes lists of those names of the content that match.
 */
import { dereference, format, validate } from "@cfworker/json-schema";
import { depthMax, parseJsonText, scanJson } from "./json.ts";
import { escapePointer, shown } from "./names.ts";
import { Pattern } from "./pattern.ts";
import { utf8Length } from "./utf8.ts";

export interface SchemaError {
  readonly pointer: string;
  readonly detail: string;
}

export const schemaBytesMax = 262_144;
const errorsMax = 20;
/** Evaluations of a schema per check. */
const stepsMax = 200_000;
/** Steps of regular expressions per check. */
const patternStepsMax = 8_000_000;
/** Lists of names that stand for `patternProperties` are tried on every name: the product of both is bounded. */
const nameTrialsMax = 5_000_000;
/** The longest text that a named format is tried on: some of its expressions are quadratic. */
const formatLengthMax = 4_096;
/** `uniqueItems` compares all pairs. */
const uniqueItemsMax = 2_000;
const patternFormat = "conflux-pattern:";
const namedFormat = "conflux-format:";

type SchemaNode = Record<string, unknown>;

/** Empty when the text can serve as a schema. */
export function checkSchema(text: string): readonly SchemaError[] {
  const compiled = compile(text, []);
  return "errors" in compiled ? compiled.errors : [];
}

/** What in the value breaks the schema; empty = it is valid. A schema that cannot be used is an error too. */
export function validateAgainst(schemaText: string, value: unknown): readonly SchemaError[] {
  try {
    const names = new Set<string>();
    collectNames(value, names, 0);
    const compiled = compile(schemaText, [...names]);
    return "errors" in compiled ? compiled.errors : run(compiled, value);
  } catch (error) {
    if (error instanceof OverBudget) return [{ pointer: "", detail: error.detail }];
    // A reference that leads back to itself recurses without end, and very many errors overflow the stack too.
    if (error instanceof RangeError)
      return [{ pointer: "", detail: "Simplify schema or content: the check went too deep" }];
    throw error;
  }
}

function collectNames(value: unknown, names: Set<string>, depth: number): void {
  if (typeof value !== "object" || value === null) return;
  if (depth > depthMax) overBudget(`Nest at most ${depthMax} levels deep`);
  if (Array.isArray(value)) {
    for (const item of value) collectNames(item, names, depth + 1);
    return;
  }
  for (const [name, item] of Object.entries(value)) {
    names.add(name);
    collectNames(item, names, depth + 1);
  }
}

// --- reading a schema ----------------------------------------------------------------------------------------------------

interface Compiled {
  readonly root: SchemaNode | boolean;
  readonly lookup: ReturnType<typeof dereference>;
  readonly budget: Budget;
  readonly hasUniqueItems: boolean;
  readonly patterns: ReadonlyMap<string, Pattern>;
}

class OverBudget {
  readonly detail: string;
  constructor(detail: string) {
    this.detail = detail;
  }
}

function overBudget(detail: string): never {
  // oxlint-disable-next-line no-throw-literal -- caught in validateAgainst: an answer, not an error
  throw new OverBudget(detail);
}

class Budget {
  #steps = 0;
  #patternSteps = 0;
  #nameTrials = 0;

  step(): void {
    if (++this.#steps > stepsMax)
      overBudget(`Simplify schema or content: the check took ${stepsMax} steps`);
  }

  readonly patternSteps = (steps: number): void => {
    this.#patternSteps += steps;
    if (this.#patternSteps > patternStepsMax)
      overBudget(
        `Simplify the patterns or shorten the texts: matching took ${patternStepsMax} steps`,
      );
  };

  nameTrials(trials: number): void {
    this.#nameTrials += trials;
    if (this.#nameTrials > nameTrialsMax)
      overBudget("Simplify patternProperties or give fewer names: there are too many to try");
  }
}

function fail(detail: string, pointer = ""): { errors: readonly SchemaError[] } {
  return { errors: [{ pointer, detail }] };
}

function compile(
  text: string,
  names: readonly string[],
): Compiled | { readonly errors: readonly SchemaError[] } {
  const bytes = utf8Length(text);
  if (bytes > schemaBytesMax)
    return fail(`Shorten the schema to ${schemaBytesMax} bytes: it has ${bytes}`);
  const broken = scanJson(text);
  if (broken !== null)
    return fail(`${broken.detail} (line ${broken.line}, column ${broken.column} of the schema)`);
  const parsed: unknown = parseJsonText(text);
  if (typeof parsed !== "boolean" && !isNode(parsed))
    return fail("Give the schema as an object, true or false");
  const reader = new SchemaReader(names);
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
  readonly #names: readonly string[];
  readonly #patterns = new Map<string, Pattern>();
  readonly #references: { node: SchemaNode; pointer: string }[] = [];
  #hasUniqueItems = false;

  /** `names`: of all properties in the content. */
  constructor(names: readonly string[]) {
    this.#names = names;
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
    for (const [i, name] of Object.keys(value).entries()) {
      const pointer = `${at}/${escapePointer(name)}`;
      const key = keyword === "patternProperties" ? this.#matching(name, i, pointer) : name;
      define(map, key, this.schema(value[name], pointer));
    }
    return map;
  }

  /** An expression for exactly those names that match, which the engine tries without going back. */
  #matching(source: string, index: number, at: string): string {
    const pattern = this.#pattern(source, at);
    const names =
      pattern === null
        ? []
        : this.#names.filter((name) => pattern.test(name, this.#budget.patternSteps));
    this.#budget.nameTrials(names.length * this.#names.length);
    const list = names.map((name) => name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|");
    // Empty groups at the end keep two expressions apart that the same names match.
    return `^(?:${names.length === 0 ? "(?!)" : list})$${"(?:)".repeat(index)}`;
  }

  #pattern(source: string, at: string): Pattern | null {
    const known = this.#patterns.get(source);
    if (known !== undefined) return known;
    const pattern = Pattern.compile(source);
    if (typeof pattern === "string") {
      this.#add(at, pattern);
      return null;
    }
    this.#patterns.set(source, pattern);
    return pattern;
  }

  #formats(node: SchemaNode, value: SchemaNode, at: string): void {
    const formats: string[] = [];
    const { pattern, format: named } = value;
    if (typeof pattern === "string") {
      if (this.#pattern(pattern, `${at}/pattern`) !== null)
        formats.push(`${patternFormat}${pattern}`);
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
      budget.patternSteps(text.length);
      return text.length <= formatLengthMax && (format[name]?.(text) ?? true);
    });
  for (const [source, pattern] of patterns)
    register(`${patternFormat}${source}`, (text) => pattern.test(text, budget.patternSteps));
  try {
    if (compiled.hasUniqueItems) guardUniqueItems(value);
    return readable(validate(value, root, "2020-12", lookup, false).errors);
  } finally {
    for (const name of registered) delete format[name];
  }
}

function guardUniqueItems(value: unknown): void {
  if (typeof value !== "object" || value === null) return;
  const items: unknown[] = Object.values(value);
  if (Array.isArray(value) && items.length > uniqueItemsMax)
    overBudget(`Shorten arrays to ${uniqueItemsMax} items for a schema with uniqueItems`);
  for (const item of items) guardUniqueItems(item);
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
  const pattern = /^String does not match format "conflux-pattern:([\s\S]*)"\.$/.exec(error);
  if (pattern !== null) return `String does not match the pattern ${shown(pattern[1] as string)}`;
  return error.replace(`"${namedFormat}`, '"').replace(/\.$/, "");
}
