import { TypeCompiler } from "@sinclair/typebox/compiler";
import type { TSchema } from "@sinclair/typebox";
import { describe, expect, test } from "vitest";
import * as schemas from "../../src/api/schemas.ts";
import { contentFormats } from "../../src/model/release.ts";
import { defaultQuotas } from "../../src/machine/rows.ts";

function isSchema(value: unknown): value is TSchema {
  return typeof value === "object" && value !== null && ("type" in value || "anyOf" in value);
}

describe("schemas", () => {
  const named = Object.entries(schemas).filter(([, value]) => isSchema(value));

  test.each(named)("%s compiles", (_name, schema) => {
    expect(() => TypeCompiler.Compile(schema as TSchema)).not.toThrow();
  });

  test("no two have the same name", () => {
    const ids = named.flatMap(([, schema]) => (schema as TSchema).$id ?? []);
    expect(new Set(ids).size).toBe(ids.length);
  });

  test("know the formats and quotas that the model and the machine know", () => {
    const formats = (schemas.Format as unknown as { anyOf: { const: string }[] }).anyOf;
    expect(formats.map((one) => one.const)).toEqual([...contentFormats]);
    expect(Object.keys(schemas.QuotasSchema.properties).sort()).toEqual(
      Object.keys(defaultQuotas).sort(),
    );
  });

  test("have an operation of a transaction for every change of a config", () => {
    for (const [op, schema] of Object.entries(schemas.transactionOperations))
      expect(
        (schema as unknown as { properties: { op: { const: string } } }).properties.op.const,
      ).toBe(op);
  });
});
