import { describe, expect, test } from "vitest";
import { routes } from "../../src/gateway/gateway.ts";
import { openApi } from "../../src/gateway/openapi.ts";

type Json = Record<string, unknown>;

const document = JSON.parse(JSON.stringify(openApi(routes, "1.2.3"))) as Json;
const paths = document["paths"] as Record<string, Record<string, Json>>;
const schemas = (document["components"] as { schemas: Json }).schemas;

function* walk(value: unknown): Generator<Json> {
  if (typeof value !== "object" || value === null) return;
  if (!Array.isArray(value)) yield value as Json;
  for (const child of Object.values(value)) yield* walk(child);
}

describe("OpenAPI", () => {
  test("is 3.1 and has every route once, with its own operationId", () => {
    expect(document["openapi"]).toBe("3.1.0");
    const operations = Object.values(paths).flatMap((path) => Object.values(path));
    expect(operations).toHaveLength(routes.length);
    const ids = operations.map((operation) => operation["operationId"]);
    expect(new Set(ids).size).toBe(ids.length);
  });

  test("declares exactly the parameters that its paths have", () => {
    for (const [path, operations] of Object.entries(paths))
      for (const operation of Object.values(operations)) {
        const parameters = (operation["parameters"] ?? []) as Json[];
        const declared = parameters
          .filter((parameter) => parameter["in"] === "path")
          .map((parameter) => parameter["name"]);
        expect(declared).toEqual([...path.matchAll(/\{([a-z]+)\}/g)].map((match) => match[1]));
        const keys = parameters.map((parameter) => `${parameter["in"]} ${parameter["name"]}`);
        expect(new Set(keys).size).toBe(keys.length);
        for (const parameter of parameters) expect(parameter["schema"]).toBeDefined();
      }
  });

  test("every reference leads somewhere, and every component is referred to", () => {
    const used = new Set<string>();
    for (const object of walk(document)) {
      const reference = object["$ref"];
      if (typeof reference !== "string") continue;
      const name = reference.replace("#/components/schemas/", "");
      expect(schemas[name]).toBeDefined();
      used.add(name);
    }
    expect([...used].sort()).toEqual(Object.keys(schemas).sort());
  });

  test("has operations of well-formed parts", () => {
    for (const operations of Object.values(paths))
      for (const operation of Object.values(operations)) {
        const responses = operation["responses"] as Record<string, Json>;
        expect(Object.keys(responses)).toContain("default");
        for (const [status, response] of Object.entries(responses)) {
          expect(status).toMatch(/^([1-5]\d\d|default)$/);
          expect(typeof response["description"]).toBe("string");
        }
        expect(Array.isArray(operation["security"])).toBe(true);
      }
  });

  test("schemas hold nothing but JSON Schema", () => {
    for (const object of walk(schemas)) {
      expect(Object.keys(object)).not.toContain("$id");
      const type = object["type"];
      // A property may be called "type" itself; then it is a schema.
      if (typeof type === "string")
        expect(["object", "array", "string", "number", "integer", "boolean", "null"]).toContain(
          type,
        );
    }
    const rule = schemas["ReleasePut"] as { properties: { rules: { items: Json } } };
    expect(rule.properties.rules.items).toEqual({ $ref: "#/components/schemas/Rule" });
    const key = schemas["KeyCreate"] as { properties: { kind: Json } };
    expect(key.properties.kind).toMatchObject({
      type: "string",
      enum: ["admin", "write", "read", "client"],
    });
  });

  test("who may do what is told", () => {
    expect(paths["/v1/tenants/{tenant}/keys"]?.["post"]?.["x-conflux-access"]).toEqual({
      scope: "tenant",
      kinds: ["root", "admin"],
      limited: "named",
    });
    expect(paths["/livez"]?.["get"]?.["security"]).toEqual([]);
  });
});
