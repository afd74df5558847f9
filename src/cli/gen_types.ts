/**
 * TypeScript types of a namespace's configs, for `new Conflux<Configs>(…)`: from the JSON Schema of a config where it has
 * one, else from what its content looks like now. Values are shared and frozen, so everything is `readonly`.
 */
import type { ContentFormat } from "../model/release.ts";

export interface TypedConfig {
  readonly name: string;
  readonly format: ContentFormat;
  /** JSON Schema, or null. */
  readonly schema: unknown;
  /** What clients without labels get; null: nothing. */
  readonly content: string | null;
}

/** Deeper than any config that people write; a schema that refers to itself ends here. */
const depthMax = 16;

export function typesDocument(configs: readonly TypedConfig[], of: string): string {
  const members = configs.map(
    (config) => `  readonly ${keyOf(config.name)}: ${typeOf(config).replaceAll("\n", "\n  ")};\n`,
  );
  return `/** Configs of ${of}. Written by \`conflux gen types\`: do not edit, write it anew. */
export interface Configs {
${members.join("")}}
`;
}

function typeOf({ format, schema, content }: TypedConfig): string {
  if (format === "flag") return "Readonly<Record<string, unknown>>";
  // The client parses JSON only; other formats are given as text.
  if (format !== "json") return "string";
  if (schema !== null && schema !== undefined) return new SchemaTypes(schema).root();
  return content === null ? "unknown" : typeOfValue(JSON.parse(content), 0);
}

function typeOfValue(value: unknown, depth: number): string {
  if (value === null) return "null";
  if (typeof value !== "object") return typeof value;
  if (depth > depthMax) return "unknown";
  if (Array.isArray(value)) {
    const types = unionOf(value.map((element) => typeOfValue(element, depth + 1)));
    return `readonly (${value.length === 0 ? "unknown" : types})[]`;
  }
  return objectOf(
    Object.entries(value).map(([name, member]) => [name, typeOfValue(member, depth + 1), false]),
  );
}

type Member = readonly [name: string, type: string, isOptional: boolean];

function objectOf(members: readonly Member[], rest: string | null = null): string {
  if (members.length === 0) return `Readonly<Record<string, ${rest ?? "unknown"}>>`;
  const lines = members.map(
    ([name, type, isOptional]) =>
      `  readonly ${keyOf(name)}${isOptional ? "?" : ""}: ${type.replaceAll("\n", "\n  ")};\n`,
  );
  // Members must fit the signature of all others, so that is as wide as can be.
  return `{\n${lines.join("")}${rest === null ? "" : "  readonly [name: string]: unknown;\n"}}`;
}

function keyOf(name: string): string {
  return /^[A-Za-z_$][\w$]*$/.test(name) ? name : JSON.stringify(name);
}

function unionOf(types: readonly string[]): string {
  return [...new Set(types)].join(" | ");
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** What can be said in types of a JSON Schema (2020-12); the rest stays `unknown`, never wrong. */
class SchemaTypes {
  readonly #schema: unknown;

  constructor(schema: unknown) {
    this.#schema = schema;
  }

  root(): string {
    return this.#type(this.#schema, 0);
  }

  #type(schema: unknown, depth: number): string {
    if (!isObject(schema) || depth > depthMax) return schema === false ? "never" : "unknown";
    const { $ref, const: constant, enum: values, type, anyOf, oneOf, allOf } = schema;
    if (typeof $ref === "string") return this.#type(this.#resolve($ref), depth + 1);
    if ("const" in schema) return literalOf(constant);
    if (Array.isArray(values)) return unionOf(values.map(literalOf));
    for (const choices of [anyOf, oneOf])
      if (Array.isArray(choices))
        return unionOf(choices.map((choice) => `(${this.#type(choice, depth + 1)})`));
    if (Array.isArray(allOf))
      return allOf.map((part) => `(${this.#type(part, depth + 1)})`).join(" & ");
    if (Array.isArray(type))
      return unionOf(type.map((one) => this.#type({ ...schema, type: one }, depth + 1)));
    if (type === "string" || type === "boolean" || type === "null") return type;
    if (type === "number" || type === "integer") return "number";
    if (type === "array") return this.#array(schema, depth);
    return type === "object" || isObject(schema["properties"])
      ? this.#object(schema, depth)
      : "unknown";
  }

  #array({ items, prefixItems }: Readonly<Record<string, unknown>>, depth: number): string {
    // Elements beyond those named first may be anything that `items` allows, and all may be missing.
    if (Array.isArray(prefixItems)) return "readonly unknown[]";
    return `readonly (${this.#type(items ?? true, depth + 1)})[]`;
  }

  #object(schema: Readonly<Record<string, unknown>>, depth: number): string {
    const { properties, required, additionalProperties } = schema;
    const needed = new Set(Array.isArray(required) ? (required as unknown[]) : []);
    const members = Object.entries(isObject(properties) ? properties : {}).map(
      ([name, member]): Member => [name, this.#type(member, depth + 1), !needed.has(name)],
    );
    return objectOf(
      members,
      isObject(additionalProperties) ? this.#type(additionalProperties, depth + 1) : null,
    );
  }

  #resolve(ref: string): unknown {
    if (!ref.startsWith("#")) return true;
    let found: unknown = this.#schema;
    for (const part of ref.slice(1).split("/").slice(1)) {
      const name = decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
      found = isObject(found) && Object.hasOwn(found, name) ? found[name] : true;
    }
    return found;
  }
}

function literalOf(value: unknown): string {
  return typeof value === "object" && value !== null ? "unknown" : JSON.stringify(value);
}
