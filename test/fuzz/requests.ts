/**
 * Requests made from the served OpenAPI document: valid ones, ones that are wrong in one place, and hostile ones. What
 * the document says decides the shape; pools decide the values, so that many requests meet what others made.
 */
import * as fc from "fast-check";
import { loneSurrogateAt } from "../../src/model/utf8.ts";
import { bombs, contents, hostileBodies, hostileHeaders, hostileTexts, schemas } from "./pools.ts";

type Json = Readonly<Record<string, unknown>>;

export interface OpenApi {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Json>>>>;
  readonly components: { readonly schemas: Readonly<Record<string, Json>> };
}

export interface Operation {
  readonly id: string;
  readonly method: string;
  readonly path: string;
  readonly isWatch: boolean;
  /** Kinds of keys that may; empty: it asks for none. */
  readonly kinds: readonly string[];
  /** How often it is drawn. */
  readonly weight: number;
  /** Schema of the answer by status; null: nothing is said of it, or it is not JSON. */
  readonly answers: Readonly<Record<string, Json | null>>;
}

export type Mood = "valid" | "wrong" | "hostile";
export type Who = (typeof whoNames)[number];

/** The target has a token for each; `scoped` is an admin of one namespace, `foreign` one of another tenant. */
const whoNames = ["root", "admin", "write", "read", "client", "scoped", "foreign"] as const;

export interface FuzzRequest {
  readonly operation: Operation;
  readonly mood: Mood;
  /** Whose token is sent; null: none, or what stands in the headers. */
  readonly who: Who | null;
  readonly target: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | null;
}

const anyJson = fc.jsonValue({ maxDepth: 3 });
const names = ["a", "b", "x.y-z_1"];
const namespaces = ["app", "app", "base", "dev"];
/** Tenants that may come and go; `acme` is left alone, so that there is always one to work on. */
const passingTenants = ["t1", "t2", "t3"];

function weighted<T>(
  ...choices: readonly (readonly [weight: number, arbitrary: fc.Arbitrary<T>])[]
): fc.Arbitrary<T> {
  return fc.oneof(...choices.map(([weight, arbitrary]) => ({ weight, arbitrary })));
}

// --- values by schema ----------------------------------------------------------------------------------------------------

/** Values that a property of this name usually has; null: any that fit its schema. */
function pooled(name: string): fc.Arbitrary<unknown> | null {
  switch (name) {
    case "name":
      return fc.constantFrom(...names);
    case "namespace":
    case "extends":
      return fc.constantFrom(...namespaces);
    case "id":
      return fc.constantFrom("r1", "r2", ...passingTenants);
    case "content":
      return weighted<unknown>(
        [3, fc.record({ max: fc.nat(9) })],
        [1, fc.constantFrom<unknown>(...contents)],
      );
    case "format":
      return fc.constantFrom("json", "json", "json", "json", "yaml", "toml", "text", "flag");
    case "if":
      return fc.constant([]);
    case "versions":
      return fc.uniqueArray(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 2 });
    case "schema":
      return fc.constantFrom<unknown>(...schemas);
    case "version":
    case "default":
    case "toRelease":
    case "release":
      return fc.integer({ min: 1, max: 6 });
    case "revision":
      return fc.integer({ min: 1, max: 60 });
    case "from":
    case "until":
    case "expiresAt":
      return fc.constantFrom("2020-01-01T00:00:00Z", "2999-12-31T23:59:59.999+14:00");
    case "by":
      return fc.constantFrom("user", "region");
    default:
      return null;
  }
}

/** Where most of the state is changed. */
const workTags = ["configs", "versions", "releases", "transactions"];

export class Generator {
  readonly #document: OpenApi;
  readonly operations: readonly Operation[];

  readonly #keyIds: readonly string[];

  /** `keyIds`: of keys that may go. */
  constructor(document: OpenApi, keyIds: readonly string[]) {
    this.#document = document;
    this.#keyIds = keyIds;
    this.operations = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, spec]) => ({
        id: spec["operationId"] as string,
        method: method.toUpperCase(),
        path,
        isWatch: (spec["tags"] as string[]).includes("watch") || path.endsWith("/event-stream"),
        kinds: (spec["x-conflux-access"] as { kinds: string[] }).kinds,
        weight: workTags.some((tag) => (spec["tags"] as string[]).includes(tag)) ? 8 : 1,
        answers: answersOf(spec),
      })),
    );
  }

  #resolve(schema: Json): Json {
    const reference = schema["$ref"];
    if (typeof reference !== "string") return schema;
    return this.#document.components.schemas[
      reference.replace("#/components/schemas/", "")
    ] as Json;
  }

  /** What fits the schema. */
  fitting(given: Json, name = ""): fc.Arbitrary<unknown> {
    const usual = pooled(name);
    const schema = this.#resolve(given);
    const exact = this.#exact(schema);
    return usual === null ? exact : weighted([9, usual], [1, exact]);
  }

  #exact(schema: Json): fc.Arbitrary<unknown> {
    if ("const" in schema) return fc.constant(schema["const"]);
    if (Array.isArray(schema["enum"])) return fc.constantFrom<unknown>(...schema["enum"]);
    if (Array.isArray(schema["anyOf"]))
      return fc.oneof(...(schema["anyOf"] as Json[]).map((one) => this.fitting(one)));
    const number = (keyword: string, otherwise: number): number =>
      typeof schema[keyword] === "number" ? schema[keyword] : otherwise;
    switch (schema["type"]) {
      case "string":
        return fc.string({
          minLength: number("minLength", 0),
          maxLength: Math.min(12, number("maxLength", 12)),
        });
      case "integer":
        return fc.integer({
          min: number("minimum", 0),
          max: Math.min(number("maximum", 1_000), 1_000),
        });
      case "number":
        return fc.double({
          min: number("minimum", -1_000),
          max: number("maximum", 1_000),
          noNaN: true,
        });
      case "boolean":
        return fc.boolean();
      case "null":
        return fc.constant(null);
      case "array": {
        const items = this.fitting((schema["items"] ?? {}) as Json);
        const minLength = number("minItems", 0);
        const maxLength = Math.max(minLength, Math.min(3, number("maxItems", 3)));
        return schema["uniqueItems"] === true
          ? fc.uniqueArray(items, { minLength, maxLength })
          : fc.array(items, { minLength, maxLength });
      }
      case "object":
        return this.#object(schema);
      default:
        return anyJson;
    }
  }

  #object(schema: Json): fc.Arbitrary<unknown> {
    const properties = (schema["properties"] ?? {}) as Readonly<Record<string, Json>>;
    const pattern = Object.values((schema["patternProperties"] ?? {}) as Record<string, Json>)[0];
    if (pattern !== undefined)
      return fc.dictionary(fc.constantFrom("region", "tier", "user"), this.fitting(pattern), {
        maxKeys: 2,
      });
    const fields = Object.fromEntries(
      Object.entries(properties).map(([name, property]) => [name, this.fitting(property, name)]),
    );
    const required = (schema["required"] ?? []) as string[];
    return fc.record(fields, { requiredKeys: required });
  }

  // --- requests ------------------------------------------------------------------------------------------------------------

  /** `exclude`: operations that would take away what the run stands on. */
  request(exclude: (operation: Operation, who: Who | null) => boolean): fc.Arbitrary<FuzzRequest> {
    const mood = weighted<Mood>(
      [4, fc.constant("valid")],
      [4, fc.constant("wrong")],
      [3, fc.constant("hostile")],
    );
    const operation = fc.oneof(
      ...this.operations.map((one) => ({ weight: one.weight, arbitrary: fc.constant(one) })),
    );
    return fc
      .tuple(operation, mood)
      .chain(([one, how]) => fc.tuple(fc.constant(one), fc.constant(how), caller(one)))
      .filter(([one, , who]) => !exclude(one, who))
      .chain(([one, how, who]) => this.#of(one, how, who));
  }

  #of(operation: Operation, mood: Mood, who: Who | null): fc.Arbitrary<FuzzRequest> {
    const spec = this.#document.paths[operation.path]?.[operation.method.toLowerCase()] as Json;
    const parameters = (spec["parameters"] ?? []) as Json[];
    const isIn = (place: string) => parameters.filter((one) => one["in"] === place);
    const changes = operation.method !== "GET";
    return fc
      .record({
        path: this.#path(operation, mood),
        query: fc.tuple(...isIn("query").map((one) => this.#parameter(operation, one, mood))),
        extra: mood === "hostile" ? fc.option(fc.constantFrom(...hostileTexts)) : fc.constant(null),
        headers: this.#headers(isIn("header"), mood),
        body: changes ? this.#body(spec, mood) : fc.constant(null),
        type: weighted<string | null>(
          [40, fc.constant("application/json")],
          [
            1,
            fc.constantFrom(
              "text/plain",
              "application/json; charset=latin1",
              "multipart/form-data",
            ),
          ],
          [1, fc.constant(null)],
        ),
      })
      .map(({ path, query, extra, headers, body, type }): FuzzRequest => {
        const pairs = query.filter((pair) => pair !== null);
        if (extra !== null) pairs.push([extra, extra]);
        const search = pairs.map(([name, value]) => `${encode(name)}=${encode(value)}`).join("&");
        return {
          operation,
          mood,
          who: "authorization" in headers || "x-api-key" in headers ? null : who,
          target: `${path}${search === "" ? "" : `?${search}`}`,
          headers: { ...(body !== null && type !== null && { "content-type": type }), ...headers },
          body,
        };
      });
  }

  #path(operation: Operation, mood: Mood): fc.Arbitrary<string> {
    const parts = operation.path.split("/").map((part): fc.Arbitrary<string> => {
      const name = /^\{(\w+)\}$/.exec(part)?.[1];
      if (name === undefined) return fc.constant(part);
      const usual = fc.constantFrom(...pathPool(name, operation, this.#keyIds));
      if (mood === "valid") return usual;
      return weighted([8, usual], [1, fc.constantFrom(...hostileTexts).map(encode)]);
    });
    return fc.tuple(...parts).map((all) => all.join("/"));
  }

  #parameter(
    operation: Operation,
    parameter: Json,
    mood: Mood,
  ): fc.Arbitrary<readonly [string, string] | null> {
    const name = (parameter["name"] as string).replace("{name}", "region");
    const fitting: fc.Arbitrary<string> =
      name === "wait"
        ? fc.constantFrom("0s", "10ms")
        : name === "since"
          ? fc.constantFrom("now", "1-1", "999-3", "")
          : this.fitting(parameter["schema"] as Json).map((value) =>
              typeof value === "string" ? value : text(value),
            );
    const value =
      mood === "valid"
        ? fitting
        : weighted([4, fitting], [1, fc.constantFrom(...hostileTexts)], [1, fc.string()]);
    // Long polls that are given a long time would only be waited for.
    const safe = operation.isWatch
      ? value.filter((text) => !/^\d+(ms|s)$/.test(text) || text.length < 5)
      : value;
    return fc.option(
      safe.map((text) => [name, text] as const),
      { freq: 2 },
    );
  }

  #headers(
    parameters: readonly Json[],
    mood: Mood,
  ): fc.Arbitrary<Readonly<Record<string, string>>> {
    const known: Record<string, fc.Arbitrary<string>> = {};
    for (const { name } of parameters)
      switch (name) {
        case "Idempotency-Key":
          known["idempotency-key"] = fc.constantFrom("k1", "k2", "k3");
          break;
        case "If-Match":
          known["if-match"] = fc.constantFrom("*", '"3"', '"1", "2"', '"x"', 'W/"1"');
          break;
        case "If-None-Match":
          known["if-none-match"] = fc.constantFrom("*", '"1"');
          break;
        case "Conflux-Min-Revision":
          known["conflux-min-revision"] = fc.constantFrom("0", "1");
          break;
      }
    const usual = fc.record(known, { requiredKeys: [] }) as fc.Arbitrary<Record<string, string>>;
    const some = fc
      .tuple(usual, fc.array(fc.boolean(), { minLength: 8, maxLength: 8 }))
      .map(([all, keep]) => Object.fromEntries(Object.entries(all).filter((_, i) => keep[i])));
    if (mood !== "hostile") return some;
    return fc
      .tuple(some, fc.constantFrom(...hostileHeaders))
      .map(([all, hostile]) => ({ ...all, ...hostile }));
  }

  #body(spec: Json, mood: Mood): fc.Arbitrary<string | null> {
    const body = spec["requestBody"] as
      | { readonly content: Readonly<Record<string, { readonly schema: Json }>> }
      | undefined;
    const schema = body?.content["application/json"]?.schema;
    if (schema === undefined)
      return mood === "valid" ? fc.constant(null) : fc.option(anyJson.map(text), { freq: 2 });
    const fitting = this.fitting(schema);
    switch (mood) {
      case "valid":
        return fitting.map(text);
      case "wrong":
        return fc.tuple(fitting, fc.nat(), fc.constantFrom(...bombs), anyJson).map(spoiled);
      case "hostile":
        return weighted(
          [2, fc.constantFrom(...hostileBodies)],
          [3, fc.tuple(fitting, fc.nat(), fc.constantFrom(...bombs), anyJson).map(spoiled)],
        );
    }
  }
}

/** Mostly one who may. */
function caller({ kinds }: Operation): fc.Arbitrary<Who | null> {
  const allowed = whoNames.filter((who) => kinds.includes(who) && who !== "root");
  return weighted<Who | null>(
    [8, fc.constantFrom<Who>(...(allowed.length === 0 ? (["root"] as const) : allowed))],
    [2, fc.constantFrom(...whoNames)],
    [1, fc.constant(null)],
  );
}

function answersOf(spec: Json): Record<string, Json | null> {
  const responses = spec["responses"] as Readonly<
    Record<string, { readonly content?: Readonly<Record<string, { readonly schema?: Json }>> }>
  >;
  return Object.fromEntries(
    Object.entries(responses).map(([status, { content }]) => [
      status,
      content?.["application/json"]?.schema ?? null,
    ]),
  );
}

function pathPool(
  name: string,
  { path, method }: Operation,
  keyIds: readonly string[],
): readonly string[] {
  switch (name) {
    case "tenant":
      return path === "/v1/tenants/{tenant}" ||
        (path.endsWith("/undelete") && !path.includes("configs"))
        ? method === "GET"
          ? ["acme", ...passingTenants]
          : passingTenants
        : [...Array.from({ length: 20 }, () => "acme"), "other", "t1", "none", "_system"];
    case "namespace":
      return namespaces;
    case "name":
      return names;
    case "key":
      return ["nokey1", ...keyIds];
    case "version":
      return ["1", "2", "3", "4", "5", "99", `sha256:${"0".repeat(64)}`];
    case "code":
      return ["invalid", "none"];
    default:
      return ["n1", "none", "1"];
  }
}

function text(value: unknown): string {
  return JSON.stringify(value) ?? "null";
}

/** A lone surrogate cannot be percent-encoded: it goes as the bytes that UTF-8 forbids. */
function encode(value: string): string {
  return loneSurrogateAt(value) < 0 ? encodeURIComponent(value) : "%ed%a0%80";
}

/** The value with one place of it replaced, dropped or added. */
function spoiled([value, at, bomb, other]: readonly [unknown, number, unknown, unknown]): string {
  const places: (readonly [object: Record<string, unknown>, key: string])[] = [];
  const visit = (one: unknown): void => {
    if (typeof one !== "object" || one === null) return;
    for (const key of Object.keys(one)) {
      places.push([one as Record<string, unknown>, key]);
      visit((one as Record<string, unknown>)[key]);
    }
  };
  const copy = structuredClone(value);
  visit(copy);
  const place = places[at % Math.max(1, places.length)];
  if (place === undefined) return text(at % 2 === 0 ? bomb : other);
  const [object, key] = place;
  switch (at % 5) {
    case 0:
      delete object[key];
      break;
    case 1:
      object[key] = other;
      break;
    case 2:
      Object.defineProperty(object, "__proto__", { value: bomb, enumerable: true });
      break;
    default:
      object[key] = bomb;
  }
  return text(copy);
}
