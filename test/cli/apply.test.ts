import { createHash } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { ManifestError, planConfig, readManifests } from "../../src/cli/apply.ts";
import type { ManifestConfig } from "../../src/cli/apply.ts";
import type { ConfigDetailAnswer } from "../../src/sdk/admin.ts";

const hashOf = (text: string): string =>
  `sha256:${createHash("sha256").update(text).digest("hex")}`;

async function folderWith(files: Readonly<Record<string, string | Uint8Array>>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "conflux-manifests-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(join(folder, name)), { recursive: true });
    await writeFile(join(folder, name), text);
  }
  return folder;
}

async function problemsOf(files: Readonly<Record<string, string | Uint8Array>>): Promise<string[]> {
  const folder = await folderWith(files);
  try {
    await readManifests(folder);
  } catch (error) {
    expect(error).toBeInstanceOf(ManifestError);
    return (error as ManifestError).message
      .split("\n")
      .map((line) => line.replace(`${folder}/`, ""));
  }
  return [];
}

describe("readManifests()", () => {
  test("reads the manifests of this repository", async () => {
    const [acme] = await readManifests("tenants");
    expect(acme?.tenant).toBe("acme");
    const limits = acme?.namespaces[0]?.configs[0];
    expect([...(limits?.variants.keys() ?? [])]).toEqual(["standard", "gold", "patient"]);
    expect(limits?.release?.rules?.map(({ variant }) => variant)).toEqual(["gold", "patient"]);
  });

  test("reads JSON, content files and contents that are values", async () => {
    const folder = await folderWith({
      "a.json": JSON.stringify({
        tenant: "a",
        namespaces: {
          base: {},
          x: {
            extends: null,
            configs: {
              file: { format: "text", contentFile: "a/file.txt" },
              value: { format: "json", content: { max: 1 } },
              list: { format: "yaml", content: ["x"] },
              stored: { format: "text", variants: { v: { content: "1", message: "m" } } },
            },
          },
        },
      }),
      // Stored without the mark at its beginning: with it, it would differ from what is stored for ever.
      "a/file.txt": "\uFEFFhello\r\n",
      "notes.md": "not a manifest",
    });
    const [a] = await readManifests(folder);
    expect(a?.namespaces[0]).toEqual({ namespace: "base", configs: [] });
    const content = (i: number): string | undefined =>
      a?.namespaces[1]?.configs[i]?.variants.values().next().value?.content;
    expect([0, 1, 2].map(content)).toEqual(["hello\r\n", '{\n  "max": 1\n}', "- x\n"]);
    expect(a?.namespaces[1]?.extends).toBeNull();
    expect(a?.namespaces[1]?.configs[3]?.release).toBeUndefined();
    expect(a?.namespaces[1]?.configs[0]?.variants.get("content")?.hash).toBe(hashOf("hello\r\n"));
  });

  const config = (text: string): string =>
    `tenant: a\nnamespaces:\n  x:\n    configs:\n      c:\n${text.replaceAll(/^/gm, "        ")}\n`;

  test.each([
    [
      "a field that there is not",
      "tenant: a\nnamespace: {}",
      "a.yaml:2: /namespace: There is no field namespace; did you mean namespaces?",
    ],
    ["no tenant", "namespaces: {}", "a.yaml:1: Name the tenant: `tenant: name`"],
    ["a tenant outside the grammar", "tenant: A_b", /^a\.yaml:1: \/tenant: Name the tenant with/],
    [
      "a namespace outside the grammar",
      "tenant: a\nnamespaces:\n  X/y: {}",
      /^a\.yaml:3: \/namespaces\/X~1y: Name the namespace/,
    ],
    [
      "replicas that there cannot be",
      "tenant: a\nreplicas: 2",
      "a.yaml:2: /replicas: Give 1, 3 or 5 replicas",
    ],
    [
      "a quota that is no number",
      "tenant: a\nquotas: { configs: many }",
      "a.yaml:2: /quotas/configs: Give a whole number from 0",
    ],
    [
      "an unknown format",
      config("format: xml\ncontent: x"),
      /^a\.yaml:6: \/namespaces\/x\/configs\/c\/format: Give one of the formats json/,
    ],
    ["no format", config("content: x"), /^a\.yaml:5: \/namespaces\/x\/configs\/c\/format: /],
    [
      "content and variants",
      config("format: text\ncontent: x\nvariants: {}"),
      /^a\.yaml:8: .*\/variants: Give either/,
    ],
    [
      "content and contentFile",
      config("format: text\ncontent: x\ncontentFile: y"),
      /Give either content or contentFile/,
    ],
    [
      "text that is none",
      config("format: text\ncontent: { a: 1 }"),
      /\/content: Give the content as text/,
    ],
    [
      "content that breaks its format",
      config("format: json\ncontent: |\n  {\n    bad"),
      /^a\.yaml:7: .*\/content: Not valid json: .* \(line 2, column 3\)$/,
    ],
    [
      "a flag without a state",
      config("format: flag\ncontent: { variants: { on: true } }"),
      /^a\.yaml:7: .*\/content: Not valid flag: .* \(\/state\)$/,
    ],
    [
      "an integer that would lose digits",
      config("format: json\ncontent:\n  id: 12345678901234567890"),
      "a.yaml:8: Put 12345678901234567890 in quotes, or give the whole content as text: as a number it would lose digits",
    ],
    [
      "a file that is not there",
      config("format: text\ncontentFile: y.txt"),
      /^a\.yaml:7: .*\/contentFile: Cannot read .*y\.txt: there is no such file/,
    ],
    [
      "a file outside",
      config("format: text\ncontentFile: ../y.txt"),
      /Give a path within the manifest's folder/,
    ],
    [
      "an absolute file",
      config("format: text\ncontentFile: /etc/passwd"),
      /Give a path within the manifest's folder/,
    ],
    [
      "a schema that is no JSON",
      config("format: json\ncontent: '1'\nschema: '{'"),
      /^a\.yaml:8: .*\/schema: Give the schema as JSON/,
    ],
    [
      "a tag that is no text",
      config("format: json\ncontent: '1'\ntags: { v: 1 }"),
      /\/tags\/v: Give a text/,
    ],
    [
      "a rule without a known variant",
      config(
        "format: json\nvariants:\n  gold: { content: '1' }\nrelease:\n  default: gold\n  rules:\n    - id: r\n      match: {}\n      variant: glod",
      ),
      /^a\.yaml:14: .*\/release\/rules\/0\/variant: Name one of the variants: "glod" is none; did you mean gold\?/,
    ],
    [
      "a default that is no variant",
      config("format: json\nvariants:\n  gold: { content: '1' }\nrelease: { default: silver }"),
      /\/release\/default: Name one of the variants/,
    ],
    [
      "a release without default",
      config("format: json\nvariants:\n  gold: { content: '1' }\nrelease: { rules: [] }"),
      /\/release: Give a default/,
    ],
    [
      "a rule with a version",
      config(
        "format: json\nvariants:\n  v: { content: '1' }\nrelease: { default: v, rules: [{ id: r, match: {}, variant: v, version: 2 }] }",
      ),
      /\/rules\/0\/version: Name a variant instead/,
    ],
    [
      "a rule that matches wrongly",
      config(
        "format: json\nvariants:\n  v: { content: '1' }\nrelease: { default: v, rules: [{ id: r, match: { tier: 1 }, variant: v }] }",
      ),
      /\/release\/rules\/0\/match\/tier: Give a text/,
    ],
    ["a key that comes twice", "tenant: a\ntenant: b", /^a\.yaml:2: Map keys must be unique/],
    ["broken YAML", "tenant: [a", /^a\.yaml:1: /],
    [
      "a list",
      "- a",
      "a.yaml:1: Give fields: tenant, description, replicas, quotas, keys, namespaces",
    ],
    [
      "nothing",
      "",
      "a.yaml:1: Give fields: tenant, description, replicas, quotas, keys, namespaces",
    ],
  ])("refuses %s", async (_, text, expected) => {
    const problems = await problemsOf({ "a.yaml": text });
    expect(problems).toHaveLength(1);
    if (typeof expected === "string") expect(problems[0]).toBe(expected);
    else expect(problems[0]).toMatch(expected);
  });

  test("tells everything that is wrong, in all files", async () => {
    expect(
      await problemsOf({ "a.yaml": "tenant: A\nreplicas: 0", "b.yml": "tenant: b\nx: 1" }),
    ).toHaveLength(3);
  });

  test("refuses two manifests of one tenant, and files that are not UTF-8", async () => {
    expect(await problemsOf({ "a.yaml": "tenant: a", "b.yaml": "tenant: a" })).toEqual([
      "b.yaml: Tenant a has a manifest already: a.yaml",
    ]);
    expect(
      await problemsOf({
        "a.yaml": config("format: text\ncontentFile: bytes"),
        bytes: new Uint8Array([0xff, 0xfe]),
      }),
    ).toMatchObject([expect.stringMatching(/it is not UTF-8/)]);
  });

  test("refuses folders without manifests and paths that are not there", async () => {
    expect((await problemsOf({ "a.md": "" }))[0]).toMatch(/There is no manifest/);
    await expect(readManifests("/nowhere/at/all")).rejects.toThrow(
      /there is no such file or folder/,
    );
  });
});

describe("planConfig()", () => {
  const variant = (content: string): { content: string; hash: string } => ({
    content,
    hash: hashOf(content),
  });
  const single = (content: string): ManifestConfig => ({
    name: "c",
    format: "text",
    variants: new Map([["content", variant(content)]]),
    release: { rules: null, default: "content" },
  });
  const held = (more: Partial<ConfigDetailAnswer> = {}): ConfigDetailAnswer => ({
    namespace: "x",
    name: "c",
    uid: "u",
    format: "text",
    description: "",
    tags: {},
    secret: false,
    schema: null,
    schemaHash: null,
    revision: 7,
    createdAt: "",
    updatedAt: "",
    latestVersion: 1,
    latestHash: hashOf("one"),
    versions: 1,
    release: 1,
    default: 1,
    rules: [],
    ruleCount: 0,
    deletedAt: null,
    ...more,
  });
  const versions = [{ hash: hashOf("one"), version: 1 }];
  const target = { namespace: "x", name: "c" };

  test("creates what is not there, on the condition that it is still not there", () => {
    expect(planConfig("x", single("one"), null, [])).toMatchObject({
      action: "create",
      condition: { ...target, absent: true },
      operations: [
        { op: "config.put", ...target, format: "text" },
        { op: "version.create", ...target, content: "one" },
        { op: "release.put", ...target, rules: [], default: 1 },
      ],
    });
  });

  test("leaves alone what is as it should be", () => {
    expect(planConfig("x", single("one"), held(), versions)).toMatchObject({
      action: "unchanged",
      operations: [],
    });
  });

  test("publishes another content and keeps the rules of a config with one content", () => {
    const rules = [{ id: "r", match: {}, version: 1 }];
    const plan = planConfig("x", single("two"), held({ rules }), versions);
    expect(plan).toMatchObject({
      action: "update",
      reasons: ["content"],
      newDefault: { content: "two", instead: 1 },
      condition: { ...target, revision: 7 },
      operations: [
        { op: "version.create", content: "two" },
        { op: "release.put", rules, default: 2 },
      ],
    });
  });

  test("releases an older version again instead of storing it twice", () => {
    const older = [...versions, { hash: hashOf("two"), version: 2 }];
    const now = held({ latestVersion: 2, latestHash: hashOf("two"), default: 2 });
    expect(planConfig("x", single("one"), now, older)).toMatchObject({
      reasons: ["default"],
      operations: [{ op: "release.put", default: 1 }],
    });
  });

  const rollout: ManifestConfig = {
    name: "c",
    format: "text",
    variants: new Map([
      ["a", variant("one")],
      ["b", variant("two")],
      ["same", variant("two")],
    ]),
    release: {
      rules: [{ id: "r", match: { t: "g" }, rollout: { percentage: 10, by: "u" }, variant: "b" }],
      default: "a",
    },
  };

  test("stores equal variants once and names versions by number", () => {
    expect(planConfig("x", rollout, held(), versions).operations).toEqual([
      { op: "version.create", ...target, content: "two" },
      {
        op: "release.put",
        ...target,
        rules: [{ id: "r", match: { t: "g" }, rollout: { percentage: 10, by: "u" }, version: 2 }],
        default: 1,
      },
    ]);
  });

  test("keeps the salt that the server chose, so that a larger percentage moves nobody", () => {
    const fixed = { percentage: 5, by: "u", salt: "s", algorithm: "murmur3-100k" as const };
    const now = held({
      latestVersion: 2,
      latestHash: hashOf("two"),
      rules: [{ id: "r", match: { t: "g" }, rollout: fixed, version: 2 }],
    });
    const both = [...versions, { hash: hashOf("two"), version: 2 }];
    expect(planConfig("x", rollout, now, both)).toMatchObject({
      reasons: ["rules"],
      operations: [{ op: "release.put", rules: [{ rollout: { ...fixed, percentage: 10 } }] }],
    });
    const done = held({
      latestVersion: 2,
      rules: [{ id: "r", match: { t: "g" }, rollout: { ...fixed, percentage: 10 }, version: 2 }],
    });
    expect(planConfig("x", rollout, done, both).action).toBe("unchanged");
  });

  test("changes metadata field by field; what the manifest does not say stays", () => {
    const wanted = { ...single("one"), description: "new", tags: { a: "1" }, schema: null };
    const now = held({ description: "old", tags: { a: "1" }, schema: { type: "string" } });
    expect(planConfig("x", wanted, now, versions)).toMatchObject({
      reasons: ["description", "schema"],
      operations: [{ op: "config.put", ...target, description: "new", schema: null }],
    });
    expect(planConfig("x", single("one"), now, versions).action).toBe("unchanged");
  });

  test("releases what was never released, and leaves releases alone that it does not name", () => {
    const never = held({ release: null, default: null });
    expect(planConfig("x", single("one"), never, versions)).toMatchObject({
      reasons: ["release"],
      operations: [{ op: "release.put", default: 1 }],
    });
    const { release: _release, ...stored } = single("two");
    expect(planConfig("x", stored, held(), versions).operations).toEqual([
      { op: "version.create", ...target, content: "two" },
    ]);
  });
});
