import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { typesDocument } from "../../src/cli/gen_types.ts";

const configs = [
  {
    name: "limits",
    format: "json",
    content: "{}",
    schema: {
      type: "object",
      required: ["max", "mode"],
      properties: {
        max: { type: "integer" },
        mode: { enum: ["soft", "hard"] },
        note: { type: ["string", "null"] },
        hosts: { type: "array", items: { $ref: "#/$defs/host" } },
      },
      $defs: {
        host: {
          type: "object",
          properties: { "host-name": { type: "string" } },
          additionalProperties: { type: "number" },
        },
      },
    },
  },
  {
    name: "tree",
    format: "json",
    content: null,
    schema: { type: "object", properties: { next: { $ref: "#" } } },
  },
  {
    name: "from-content",
    format: "json",
    content: '{"a":[1,"x"],"b":{"c":null,"d":true},"e":[]}',
    schema: null,
  },
  { name: "motd", format: "text", content: "hello", schema: null },
  { name: "odd", format: "json", content: "1", schema: { anyOf: [{ const: 1 }, false] } },
] as const;

test("typesDocument() gives types that fit the values, and refuse others", () => {
  const document = typesDocument(configs, "shop/prod");
  expect(document).toContain(`  readonly limits: {
    readonly max: number;
    readonly mode: "soft" | "hard";
    readonly note?: string | null;
    readonly hosts?: readonly ({`);
  const folder = mkdtempSync(path.join(tmpdir(), "conflux-types-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  writeFileSync(path.join(folder, "configs.ts"), document);
  writeFileSync(
    path.join(folder, "program.ts"),
    `import type { Configs } from "./configs.ts";
export const good: Configs = {
  limits: { max: 1, mode: "soft", note: null, hosts: [{ "host-name": "a", port: 1 }] },
  tree: { next: { next: {} } },
  "from-content": { a: [1, "y"], b: { c: null, d: false }, e: [1] },
  motd: "hi",
  odd: 1,
};
// @ts-expect-error: not one of the values
export const mode: Configs["limits"] = { max: 1, mode: "none" };
// @ts-expect-error: read only
good.limits.max = 2;
`,
  );
  const tsc = path.join(
    path.dirname(createRequire(import.meta.url).resolve("vitest/package.json")),
    "../.bin/tsc",
  );
  const { stdout } = spawnSync(
    tsc,
    [
      "--noEmit",
      "--strict",
      "--module",
      "nodenext",
      "--allowImportingTsExtensions",
      "--types",
      "",
      "program.ts",
    ],
    { cwd: folder, encoding: "utf8" },
  );
  expect(stdout).toBe("");
}, 60_000);
