/**
 * JSON Schema 2020-12 over the parsed content, interpreted (never compiled to code, since schemas come from tenants) and
 * bounded in what it may cost: all checks run in the event loop that every tenant of the node shares.
 *
 * A schema is read once into nodes, its references resolved within itself (nothing is ever fetched), and the nodes are
 * evaluated with a budget that everything is charged to which grows with schema or content: evaluations, names, items
 * compared, characters counted. Regular expressions never reach the engine (see pattern.ts).
 */
import { format as namedFormats } from "@cfworker/json-schema";
import { canonicalJson, parseJsonText, scanJson } from "./json.ts";
import { escapePointer, shown } from "./names.ts";
import { Pattern } from "./pattern.ts";
import { utf8Length } from "./utf8.ts";

export interface SchemaError {
  readonly pointer: string;
  readonly detail: string;
}

export const schemaBytesMax = 262_144;
const errorsMax = 20;
/** Errors kept while a check goes on; some of them are said once in the end. */
const errorsKeptMax = 200;
/** What a check may cost: a name looked up or an item compared is one, an evaluation of a schema four. */
const workMax = 1_000_000;
const evaluationWork = 4;
/** Characters that are counted or compared for one of work. */
const charactersPerWork = 32;
/** Steps of regular expressions per check. */
const patternStepsMax = 3_000_000;
/** Instructions of all patterns of a schema, and characters of their sources: compiling them takes time too. */
const patternInstructionsMax = 40_000;
const patternSourcesMax = 32_768;
/** Schemas within schemas, through references too: what leads back to itself has no end. */
const evaluationDepthMax = 1_000;
/** The longest text that a named format is tried on. */
const formatLengthMax = 4_096;
/** Some of the formats' expressions take time that grows with the cube of the length: what of it is a step of patterns. */
const formatCubePerStep = 16_384;

/** Empty when the text can serve as a schema. */
export function checkSchema(text: string): readonly SchemaError[] {
  const compiled = compile(text);
  return "errors" in compiled ? compiled.errors : [];
}

/** What in the value breaks the schema; empty = it is valid. A schema that cannot be used is an error too. */
export function validateAgainst(schemaText: string, value: unknown): readonly SchemaError[] {
  const compiled = compile(schemaText);
  if ("errors" in compiled) return compiled.errors;
  try {
    const evaluation = new Evaluation(compiled.asksForEvaluated);
    evaluation.holds(compiled.root, value, null, null);
    return distinct(evaluation.errors);
  } catch (error) {
    if (error instanceof OverBudget) return [{ pointer: "", detail: error.detail }];
    throw error;
  }
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

function distinct(errors: readonly SchemaError[]): readonly SchemaError[] {
  const seen = new Set<string>();
  return errors
    .filter(({ pointer, detail }) => {
      const known = seen.size;
      return seen.add(`${pointer}\n${detail}`).size > known;
    })
    .slice(0, errorsMax);
}

// --- reading a schema ----------------------------------------------------------------------------------------------------

type Schema = boolean | SchemaNode;

/** One schema object, with its keywords as the evaluation wants them; null where one is not given. */
class SchemaNode {
  ref: Schema | null = null;
  types: readonly string[] | null = null;
  constant: Choice | null = null;
  choices: readonly Choice[] | null = null;
  not: Schema | null = null;
  anyOf: readonly Schema[] | null = null;
  allOf: readonly Schema[] | null = null;
  oneOf: readonly Schema[] | null = null;
  if: Schema | null = null;
  then: Schema | null = null;
  else: Schema | null = null;
  required: readonly string[] | null = null;
  minProperties: number | null = null;
  maxProperties: number | null = null;
  propertyNames: Schema | null = null;
  dependentRequired: readonly (readonly [string, readonly string[]])[] | null = null;
  dependentSchemas: readonly (readonly [string, Schema])[] | null = null;
  properties: readonly (readonly [string, Schema])[] | null = null;
  patternProperties: readonly (readonly [Pattern, Schema])[] | null = null;
  additionalProperties: Schema | null = null;
  unevaluatedProperties: Schema | null = null;
  minItems: number | null = null;
  maxItems: number | null = null;
  prefixItems: readonly Schema[] | null = null;
  items: Schema | null = null;
  contains: Schema | null = null;
  minContains: number | null = null;
  maxContains: number | null = null;
  unevaluatedItems: Schema | null = null;
  uniqueItems = false;
  minimum: number | null = null;
  maximum: number | null = null;
  exclusiveMinimum: number | null = null;
  exclusiveMaximum: number | null = null;
  multipleOf: number | null = null;
  minLength: number | null = null;
  maxLength: number | null = null;
  pattern: Named<Pattern> | null = null;
  format: Named<(text: string) => boolean> | null = null;
  /** By keyword, or by keyword and name, in the form of a JSON Pointer: what references lead to. */
  readonly children = new Map<string, Schema>();
}

/** A value of `const` or `enum`. */
interface Choice {
  readonly value: unknown;
  /** For messages. */
  readonly text: string;
}

interface Named<T> {
  readonly name: string;
  readonly is: T;
}

interface Compiled {
  readonly root: Schema;
  /** Whether any part of it asks what other parts looked at. */
  readonly asksForEvaluated: boolean;
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
  const parsed: unknown = parseJsonText(text);
  if (typeof parsed !== "boolean" && !isObject(parsed))
    return fail("Give the schema as an object, true or false");
  const reader = new SchemaReader();
  const root = reader.read(parsed);
  if (reader.errors.length > 0) return { errors: reader.errors };
  return { root, asksForEvaluated: reader.asksForEvaluated };
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const typeNames = ["null", "boolean", "object", "array", "number", "string", "integer"];
/** Not of 2020-12, or not supported: to ignore them would let through what their author meant to keep out. */
const foreignKeywords = [
  "$recursiveRef",
  "$recursiveAnchor",
  "$dynamicRef",
  "$dynamicAnchor",
  "dependencies",
  "additionalItems",
];
/** A schema's own address, when it gives none. Never asked. */
const baseDefault = "https://schema.invalid/";

interface Reference {
  readonly node: SchemaNode;
  readonly reference: string;
  readonly base: string;
  readonly pointer: string;
}

/** Reads a schema into nodes and checks the shape of its keywords on the way. */
class SchemaReader {
  readonly errors: SchemaError[] = [];
  asksForEvaluated = false;
  readonly #references: Reference[] = [];
  /** By their addresses without a fragment. */
  readonly #resources = new Map<string, Schema>();
  /** By their addresses with the anchor as fragment. */
  readonly #anchors = new Map<string, Schema>();
  readonly #patterns = new Map<string, Pattern>();
  #patternInstructions = 0;
  #patternSources = 0;

  read(value: unknown): Schema {
    const root = this.#schema(value, "", baseDefault);
    this.#resources.set(baseDefault, root);
    for (const one of this.#references) one.node.ref = this.#resolved(one);
    return root;
  }

  #add(pointer: string, detail: string): void {
    if (this.errors.length < errorsMax) this.errors.push({ pointer, detail });
  }

  #schema(value: unknown, at: string, outerBase: string): Schema {
    if (typeof value === "boolean") return value;
    if (!isObject(value)) {
      this.#add(at, "Give a schema: an object, true or false");
      return true;
    }
    const node = new SchemaNode();
    const base = this.#identify(node, value, at, outerBase);
    for (const keyword of Object.keys(value))
      this.#keyword(node, keyword, value[keyword], at, base);
    return node;
  }

  /** Remembers under which addresses the node can be found. Returns the base of references in it. */
  #identify(
    node: SchemaNode,
    { $id, $anchor }: Readonly<Record<string, unknown>>,
    at: string,
    outerBase: string,
  ): string {
    let base = outerBase;
    if (typeof $id === "string") {
      const [address, fragment] = resolve($id, outerBase) ?? [];
      if (address === undefined || fragment !== "")
        this.#add(`${at}/$id`, "Give $id as a URI reference without a fragment");
      else if (this.#resources.has(address))
        this.#add(`${at}/$id`, "Give each schema its own $id: this one comes twice");
      else this.#resources.set((base = address), node);
    }
    if (typeof $anchor === "string") this.#anchors.set(`${base}#${$anchor}`, node);
    return base;
  }

  #resolved({ reference, base, pointer }: Reference): Schema | null {
    const target = this.#target(reference, base);
    if (target === undefined)
      this.#add(
        `${pointer}/$ref`,
        `Define what is referenced in the schema itself: ${shown(reference)}`,
      );
    return target ?? null;
  }

  #target(reference: string, base: string): Schema | undefined {
    const [address, fragment] = resolve(reference, base) ?? [];
    if (address === undefined || fragment === undefined) return undefined;
    if (fragment !== "" && !fragment.startsWith("/"))
      return this.#anchors.get(`${address}#${fragment}`);
    let schema = this.#resources.get(address);
    const steps = fragment.split("/").slice(1);
    for (let i = 0; i < steps.length && schema !== undefined; i++) {
      const children: ReadonlyMap<string, Schema> | undefined =
        typeof schema === "boolean" ? undefined : schema.children;
      schema = children?.get(steps[i] as string) ?? children?.get(`${steps[i]}/${steps[++i]}`);
    }
    return schema;
  }

  #keyword(node: SchemaNode, keyword: string, value: unknown, above: string, base: string): void {
    const at = `${above}/${escapePointer(keyword)}`;
    const wrong = (detail: string): null => {
      this.#add(at, detail);
      return null;
    };
    const one = (): Schema => {
      const schema = this.#schema(value, at, base);
      node.children.set(keyword, schema);
      return schema;
    };
    const count = (): number | null =>
      Number.isSafeInteger(value) && (value as number) >= 0
        ? (value as number)
        : wrong(`Give a whole number from 0 for ${keyword}`);
    const number = (): number | null =>
      typeof value === "number" ? value : wrong(`Give a number for ${keyword}`);
    switch (keyword) {
      case "not":
      case "if":
      case "then":
      case "else":
      case "items":
      case "contains":
      case "additionalProperties":
      case "propertyNames":
        node[keyword] = one();
        break;
      case "unevaluatedProperties":
      case "unevaluatedItems":
        this.asksForEvaluated = true;
        node[keyword] = one();
        break;
      case "allOf":
      case "anyOf":
      case "oneOf":
      case "prefixItems":
        node[keyword] = this.#list(node, keyword, value, at, base);
        break;
      case "$defs":
      case "definitions":
        this.#map(node, keyword, value, at, base);
        break;
      case "properties":
      case "dependentSchemas":
        node[keyword] = this.#map(node, keyword, value, at, base);
        break;
      case "patternProperties":
        node.patternProperties = this.#map(node, keyword, value, at, base).flatMap(
          ([source, schema]) => {
            const pattern = this.#pattern(source, `${at}/${escapePointer(source)}`);
            return pattern === null ? [] : [[pattern, schema] as const];
          },
        );
        break;
      case "type": {
        const types: readonly unknown[] = Array.isArray(value) ? value : [value];
        const known = new Set(types.filter((type) => typeNames.includes(type as string)));
        if (types.length === 0 || known.size !== types.length)
          wrong(`Give one or more of ${typeNames.join(", ")} for type, each once`);
        else node.types = types as readonly string[];
        break;
      }
      case "const":
        node.constant = choice(value);
        break;
      case "enum":
        if (Array.isArray(value) && value.length <= 1_000) node.choices = value.map(choice);
        else wrong("Give a list of at most 1000 values for enum");
        break;
      case "required":
        if (isTexts(value)) node.required = value;
        else wrong("Give a list of names for required");
        break;
      case "dependentRequired": {
        const lists = isObject(value) ? Object.entries(value) : [];
        if (isObject(value) && lists.every((list): list is [string, string[]] => isTexts(list[1])))
          node.dependentRequired = lists;
        else wrong("Give an object of lists of names for dependentRequired");
        break;
      }
      case "minLength":
      case "maxLength":
      case "minItems":
      case "maxItems":
      case "minContains":
      case "maxContains":
      case "minProperties":
      case "maxProperties":
        node[keyword] = count();
        break;
      case "minimum":
      case "maximum":
      case "exclusiveMinimum":
      case "exclusiveMaximum":
        node[keyword] = number();
        break;
      case "multipleOf":
        // What is computed with is as long as the difference of the exponents.
        if (typeof value === "number" && value >= 1e-12 && value <= 1e15) node.multipleOf = value;
        else wrong("Give a number from 1e-12 to 1e15 for multipleOf");
        break;
      case "uniqueItems":
        if (typeof value === "boolean") node.uniqueItems = value;
        else wrong("Give true or false for uniqueItems");
        break;
      case "pattern": {
        if (typeof value !== "string") {
          wrong("Give a text for pattern");
          break;
        }
        const pattern = this.#pattern(value, at);
        if (pattern !== null) node.pattern = { name: value, is: pattern };
        break;
      }
      case "format":
        if (typeof value !== "string") wrong("Give a text for format");
        else if (Object.hasOwn(namedFormats, value))
          node.format = { name: value, is: namedFormats[value] as (text: string) => boolean };
        break;
      case "$ref":
        if (typeof value !== "string") wrong("Give a text for $ref");
        else this.#references.push({ node, reference: value, base, pointer: above });
        break;
      case "$id":
      case "$anchor":
        if (typeof value !== "string") wrong(`Give a text for ${keyword}`);
        break;
      case "$schema":
        if (
          value !== "https://json-schema.org/draft/2020-12/schema" &&
          value !== "https://json-schema.org/draft/2020-12/schema#"
        )
          wrong(`Give "https://json-schema.org/draft/2020-12/schema" for $schema, or leave it out`);
        break;
      default:
        if (foreignKeywords.includes(keyword)) wrong(`Leave out ${keyword}: it is not supported`);
    }
  }

  #list(
    node: SchemaNode,
    keyword: string,
    value: unknown,
    at: string,
    base: string,
  ): readonly Schema[] | null {
    if (!Array.isArray(value) || value.length === 0) {
      this.#add(at, "Give a list of at least one schema");
      return null;
    }
    return value.map((one: unknown, i) => {
      const schema = this.#schema(one, `${at}/${i}`, base);
      node.children.set(`${keyword}/${i}`, schema);
      return schema;
    });
  }

  #map(
    node: SchemaNode,
    keyword: string,
    value: unknown,
    at: string,
    base: string,
  ): readonly (readonly [string, Schema])[] {
    if (!isObject(value)) {
      this.#add(at, "Give an object of schemas");
      return [];
    }
    return Object.keys(value).map((name) => {
      const step = escapePointer(name);
      const schema = this.#schema(value[name], `${at}/${step}`, base);
      node.children.set(`${keyword}/${step}`, schema);
      return [name, schema];
    });
  }

  #pattern(source: string, at: string): Pattern | null {
    const known = this.#patterns.get(source);
    if (known !== undefined) return known;
    this.#patternSources += source.length;
    const isMore =
      this.#patternSources > patternSourcesMax ||
      this.#patternInstructions > patternInstructionsMax;
    const pattern = isMore
      ? "Give fewer or shorter patterns in one schema"
      : Pattern.compile(source);
    if (typeof pattern === "string") {
      this.#add(at, pattern);
      return null;
    }
    this.#patternInstructions += pattern.size;
    this.#patterns.set(source, pattern);
    return pattern;
  }
}

/** Address and fragment of a reference; null when it is none. */
function resolve(reference: string, base: string): readonly [string, string] | null {
  try {
    const hash = reference.indexOf("#");
    const fragment = hash === -1 ? "" : decodeURIComponent(reference.slice(hash + 1));
    if (hash === 0 || reference === "") return [base, fragment];
    const { href } = new URL(hash === -1 ? reference : reference.slice(0, hash), base);
    return [href, fragment];
  } catch {
    return null;
  }
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((one) => typeof one === "string");
}

const choiceTextMax = 200;

function choice(value: unknown): Choice {
  const text = JSON.stringify(value);
  return {
    value,
    text: text.length <= choiceTextMax ? text : `${text.slice(0, choiceTextMax)}…`,
  };
}

// --- evaluating ----------------------------------------------------------------------------------------------------------

/** Where in the content: built for every value that is looked at, and read only for an error. */
interface Place {
  readonly above: Place | null;
  readonly step: string | number;
}

function pointerTo(place: Place | null): string {
  let pointer = "";
  for (let at = place; at !== null; at = at.above)
    pointer = `/${escapePointer(String(at.step))}${pointer}`;
  return pointer;
}

/** Names of properties, or indexes of items, that some part of a schema has looked at (2020-12 Core §11). */
type Evaluated = Set<string | number>;

function typeOf(value: unknown): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}

class Evaluation {
  readonly errors: SchemaError[] = [];
  /** Whether any schema asks what others looked at. */
  readonly #isTracking: boolean;
  #work = 0;
  #patternSteps = 0;
  #depth = 0;
  /** In how many schemas we are whose failing is no error by itself. */
  #quiet = 0;

  constructor(isTracking: boolean) {
    this.#isTracking = isTracking;
  }

  /** Whether the value is valid. What a valid one had looked at is added to `seen`: null where it is a value of its own. */
  holds(schema: Schema, value: unknown, place: Place | null, seen: Evaluated | null): boolean {
    this.#charge(evaluationWork);
    if (schema === true) return true;
    if (schema === false) return this.#wrong(place, "False boolean schema");
    if (++this.#depth > evaluationDepthMax)
      overBudget("Simplify schema or content: the check went too deep");
    const own = this.#isTracking ? new Set<string | number>() : null;
    const type = typeOf(value);
    let valid = this.#inPlace(schema, value, type, place, own);
    if (type === "object")
      valid = this.#object(schema, value as Readonly<Record<string, unknown>>, place, own) && valid;
    else if (type === "array")
      valid = this.#array(schema, value as readonly unknown[], place, own) && valid;
    else if (type === "string") valid = this.#text(schema, value as string, place) && valid;
    else if (type === "number") valid = this.#number(schema, value as number, place) && valid;
    this.#depth--;
    if (valid && seen !== null && own !== null) this.#merge(own, seen);
    return valid;
  }

  #charge(work: number): void {
    this.#work += work;
    if (this.#work > workMax)
      overBudget("Simplify schema or content: the check takes too many steps");
  }

  readonly #chargeSteps = (steps: number): void => {
    this.#patternSteps += steps;
    if (this.#patternSteps > patternStepsMax)
      overBudget(
        `Simplify the patterns or shorten the texts: matching took ${patternStepsMax} steps`,
      );
  };

  #merge(from: Evaluated, to: Evaluated): void {
    this.#charge(from.size);
    for (const one of from) to.add(one);
  }

  #wrong(place: Place | null, detail: string): false {
    if (this.#quiet === 0 && this.errors.length < errorsKeptMax)
      this.errors.push({ pointer: pointerTo(place), detail });
    return false;
  }

  #quietly(schema: Schema, value: unknown, place: Place | null, seen: Evaluated | null): boolean {
    this.#quiet++;
    const valid = this.holds(schema, value, place, seen);
    this.#quiet--;
    return valid;
  }

  /** What is asked of values of any type. */
  #inPlace(
    node: SchemaNode,
    value: unknown,
    type: string,
    place: Place | null,
    own: Evaluated | null,
  ): boolean {
    let valid = node.ref === null || this.holds(node.ref, value, place, own);
    if (
      node.types !== null &&
      !node.types.includes(type) &&
      !(node.types.includes("integer") && Number.isInteger(value))
    )
      valid = this.#wrong(
        place,
        `Instance type "${type}" is invalid. Expected "${node.types.join('", "')}"`,
      );
    if (node.constant !== null && !this.#equal(value, node.constant.value))
      valid = this.#wrong(place, `Instance does not match ${node.constant.text}`);
    if (node.choices !== null && !node.choices.some((one) => this.#equal(value, one.value)))
      valid = this.#wrong(
        place,
        `Instance does not match any of [${node.choices
          .slice(0, errorsMax)
          .map(({ text }) => text)
          .join(",")}${node.choices.length > errorsMax ? ",…" : ""}]`,
      );
    if (node.not !== null && this.#quietly(node.not, value, place, null))
      valid = this.#wrong(place, `Instance matched "not" schema`);
    if (node.anyOf !== null) {
      const matches = this.#matching(
        node.anyOf,
        value,
        place,
        own,
        "Instance does not match any subschemas",
      );
      valid = matches > 0 && valid;
    }
    for (const one of node.allOf ?? []) valid = this.holds(one, value, place, own) && valid;
    if (node.oneOf !== null) {
      const several = "Instance does not match exactly one subschema";
      const matches = this.#matching(node.oneOf, value, place, own, `${several} (0 matches)`);
      if (matches > 1) this.#wrong(place, `${several} (${matches} matches)`);
      valid = matches === 1 && valid;
    }
    if (node.if !== null) {
      const next = this.#quietly(node.if, value, place, own) ? node.then : node.else;
      if (next !== null) valid = this.holds(next, value, place, own) && valid;
    }
    return valid;
  }

  /** How many of the schemas hold. When none does, the errors say so, and why none did. */
  #matching(
    schemas: readonly Schema[],
    value: unknown,
    place: Place | null,
    own: Evaluated | null,
    none: string,
  ): number {
    const before = this.errors.length;
    this.#wrong(place, none);
    let matches = 0;
    for (const one of schemas) if (this.holds(one, value, place, own)) matches++;
    if (matches > 0) this.errors.length = before;
    return matches;
  }

  #object(
    node: SchemaNode,
    value: Readonly<Record<string, unknown>>,
    place: Place | null,
    own: Evaluated | null,
  ): boolean {
    let valid = true;
    if (node.required !== null) {
      this.#charge(node.required.length);
      for (const name of node.required)
        if (!Object.hasOwn(value, name))
          valid = this.#wrong(place, `Instance does not have required property "${name}"`);
    }
    for (const [name, others] of node.dependentRequired ?? []) {
      this.#charge(1);
      if (!Object.hasOwn(value, name)) continue;
      this.#charge(others.length);
      for (const other of others)
        if (!Object.hasOwn(value, other))
          valid = this.#wrong(place, `Instance has "${name}" but does not have "${other}"`);
    }
    for (const [name, schema] of node.dependentSchemas ?? []) {
      this.#charge(1);
      if (Object.hasOwn(value, name)) valid = this.holds(schema, value, place, own) && valid;
    }
    const looked = node.additionalProperties === null ? own : new Set<string | number>();
    for (const [name, schema] of node.properties ?? []) {
      this.#charge(1);
      if (!Object.hasOwn(value, name)) continue;
      looked?.add(name);
      valid = this.holds(schema, value[name], { above: place, step: name }, null) && valid;
    }
    return this.#everyProperty(node, value, place, own, looked) && valid;
  }

  /** Keywords for which all names of the object have to be known. */
  #everyProperty(
    node: SchemaNode,
    value: Readonly<Record<string, unknown>>,
    place: Place | null,
    own: Evaluated | null,
    looked: Evaluated | null,
  ): boolean {
    const { minProperties, maxProperties, propertyNames, patternProperties } = node;
    const { additionalProperties, unevaluatedProperties } = node;
    if (
      minProperties === null &&
      maxProperties === null &&
      propertyNames === null &&
      patternProperties === null &&
      additionalProperties === null &&
      unevaluatedProperties === null
    )
      return true;
    const names = Object.keys(value);
    this.#charge(names.length);
    let valid = true;
    if (minProperties !== null && names.length < minProperties)
      valid = this.#wrong(place, `Instance does not have at least ${minProperties} properties`);
    if (maxProperties !== null && names.length > maxProperties)
      valid = this.#wrong(place, `Instance does not have at most ${maxProperties} properties`);
    const each = (schema: Schema, name: string): void => {
      valid = this.holds(schema, value[name], { above: place, step: name }, null) && valid;
    };
    for (const name of names) {
      if (propertyNames === null) break;
      const at = { above: place, step: name };
      if (!this.holds(propertyNames, name, at, null))
        valid = this.#wrong(place, `Property name "${name}" does not match schema`);
    }
    for (const [pattern, schema] of patternProperties ?? [])
      for (const name of names) {
        this.#charge(1);
        if (!pattern.test(name, this.#chargeSteps)) continue;
        looked?.add(name);
        each(schema, name);
      }
    if (additionalProperties !== null) {
      for (const name of names) if (looked?.has(name) !== true) each(additionalProperties, name);
      for (const name of names) own?.add(name);
    }
    if (unevaluatedProperties !== null)
      for (const name of names)
        if (own?.has(name) !== true) {
          own?.add(name);
          each(unevaluatedProperties, name);
        }
    return valid;
  }

  #array(
    node: SchemaNode,
    items: readonly unknown[],
    place: Place | null,
    own: Evaluated | null,
  ): boolean {
    const { length } = items;
    const { minItems, maxItems, prefixItems } = node;
    let valid = true;
    const each = (schema: Schema, i: number): void => {
      own?.add(i);
      valid = this.holds(schema, items[i], { above: place, step: i }, null) && valid;
    };
    if (maxItems !== null && length > maxItems)
      valid = this.#wrong(place, `Array has too many items (${length} > ${maxItems})`);
    if (minItems !== null && length < minItems)
      valid = this.#wrong(place, `Array has too few items (${length} < ${minItems})`);
    const prefix = Math.min(length, prefixItems?.length ?? 0);
    for (let i = 0; i < prefix; i++) each((prefixItems as readonly Schema[])[i] as Schema, i);
    if (node.items !== null) for (let i = prefix; i < length; i++) each(node.items, i);
    if (node.contains !== null) valid = this.#contains(node, items, place, own) && valid;
    if (node.unevaluatedItems !== null)
      for (let i = 0; i < length; i++) {
        this.#charge(1);
        if (own?.has(i) !== true) each(node.unevaluatedItems, i);
      }
    if (node.uniqueItems) valid = this.#unique(items, place) && valid;
    return valid;
  }

  #contains(
    { contains, minContains, maxContains }: SchemaNode,
    items: readonly unknown[],
    place: Place | null,
    own: Evaluated | null,
  ): boolean {
    let count = 0;
    for (const [i, item] of items.entries()) {
      if (!this.#quietly(contains as Schema, item, { above: place, step: i }, null)) continue;
      own?.add(i);
      count++;
    }
    const least = minContains ?? 1;
    if (count < least)
      return this.#wrong(
        place,
        `Array must contain at least ${least} items matching schema. Only ${count} items were found`,
      );
    if (maxContains !== null && count > maxContains)
      return this.#wrong(
        place,
        `Array may contain at most ${maxContains} items matching schema. ${count} items were found`,
      );
    return true;
  }

  /** Equal values have the same canonical text, so that each is looked at once. */
  #unique(items: readonly unknown[], place: Place | null): boolean {
    const first = new Map<string, number>();
    for (const [k, item] of items.entries()) {
      const canonical = canonicalJson(item);
      const text = canonical.ok ? canonical.text : "";
      this.#charge(evaluationWork + text.length / 2);
      const j = first.get(text);
      if (j !== undefined) return this.#wrong(place, `Duplicate items at indexes ${j} and ${k}`);
      first.set(text, k);
    }
    return true;
  }

  #text(node: SchemaNode, text: string, place: Place | null): boolean {
    const { minLength, maxLength, pattern, format } = node;
    let valid = true;
    if (minLength !== null || maxLength !== null) {
      this.#charge(text.length / charactersPerWork);
      const length = lengthOf(text);
      if (minLength !== null && length < minLength)
        valid = this.#wrong(place, `String is too short (${length} < ${minLength})`);
      if (maxLength !== null && length > maxLength)
        valid = this.#wrong(place, `String is too long (${length} > ${maxLength})`);
    }
    if (pattern !== null && !pattern.is.test(text, this.#chargeSteps))
      valid = this.#wrong(place, `String does not match the pattern ${shown(pattern.name)}`);
    if (format !== null) {
      this.#chargeSteps(Math.min(text.length, formatLengthMax) ** 3 / formatCubePerStep + 1);
      if (text.length > formatLengthMax || !format.is(text))
        valid = this.#wrong(place, `String does not match format "${format.name}"`);
    }
    return valid;
  }

  #number(node: SchemaNode, value: number, place: Place | null): boolean {
    const { minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf } = node;
    let valid = true;
    if (minimum !== null && value < minimum)
      valid = this.#wrong(place, `${value} is less than ${minimum}`);
    if (maximum !== null && value > maximum)
      valid = this.#wrong(place, `${value} is greater than ${maximum}`);
    if (exclusiveMinimum !== null && value <= exclusiveMinimum)
      valid = this.#wrong(place, `${value} is less than or equal to ${exclusiveMinimum}`);
    if (exclusiveMaximum !== null && value >= exclusiveMaximum)
      valid = this.#wrong(place, `${value} is greater than or equal to ${exclusiveMaximum}`);
    if (multipleOf !== null && !isMultipleOf(value, multipleOf))
      valid = this.#wrong(place, `${value} is not a multiple of ${multipleOf}`);
    return valid;
  }

  #equal(a: unknown, b: unknown): boolean {
    this.#charge(1);
    if (typeof a === "string" && typeof b === "string") {
      // Texts of different lengths are not compared.
      if (a.length === b.length) this.#charge(a.length / charactersPerWork);
      return a === b;
    }
    if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
    if (Array.isArray(a) || Array.isArray(b))
      return (
        Array.isArray(a) &&
        Array.isArray(b) &&
        a.length === b.length &&
        a.every((one, i) => this.#equal(one, b[i]))
      );
    const names = Object.keys(a);
    this.#charge(names.length);
    return (
      names.length === Object.keys(b).length &&
      names.every(
        (name) =>
          Object.hasOwn(b, name) &&
          this.#equal(
            (a as Readonly<Record<string, unknown>>)[name],
            (b as Readonly<Record<string, unknown>>)[name],
          ),
      )
    );
  }
}

/** In code points, as JSON counts characters. */
function lengthOf(text: string): number {
  let pairs = 0;
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) >> 10 === 0x36) pairs++;
  return text.length - pairs;
}

/** Exact, as the numbers are written in decimal. */
function isMultipleOf(value: number, divisor: number): boolean {
  const [a, aExponent] = decimal(value);
  const [b, bExponent] = decimal(divisor);
  const difference = aExponent - bExponent;
  return difference >= 0
    ? (a * 10n ** BigInt(difference)) % b === 0n
    : a % (b * 10n ** BigInt(-difference)) === 0n;
}

/** An integer, and the power of ten that it is to be multiplied by. */
function decimal(value: number): readonly [bigint, number] {
  const [digits, exponent] = Math.abs(value).toString().split("e") as [string, string?];
  const point = digits.indexOf(".");
  const fraction = point === -1 ? 0 : digits.length - point - 1;
  return [BigInt(digits.replace(".", "")), Number(exponent ?? 0) - fraction];
}
