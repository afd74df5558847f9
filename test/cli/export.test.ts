/** A tenant, exported and applied to an empty cluster, gives every client what it got before. */
import * as fc from "fast-check";
import { randomBytes } from "node:crypto";
import {
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { applyManifest, planManifest, readManifests, type Manifest } from "../../src/cli/apply.ts";
import { exportTenant, writeFiles } from "../../src/cli/export.ts";
import type { ContentFormat } from "../../src/model/release.ts";
import { Admin } from "../../src/sdk/admin.ts";
import { Harness } from "../gateway/harness.ts";
import { rootToken } from "../gateway/solo_service.ts";

function adminOf(h: Harness, token = rootToken): Admin {
  return new Admin({
    url: "http://localhost",
    token,
    fetch: async (to, init) => h.gateway().fetch(new Request(to, init)),
  });
}

const namespaces = ["base", "prod", "dev"];
const names = ["a", "b.c"];
const clients = [{}, { tier: "gold" }, { tier: "x", user: "u1" }, { user: "u2" }, { user: "u3" }];

const json = fc.jsonValue({ maxDepth: 2 }).map((value) => JSON.stringify(value));
/** Text that YAML must be careful with, some of it too long to stand within a manifest. */
const anyText = fc.oneof(
  fc.string({ unit: "grapheme", maxLength: 20 }),
  fc.constantFrom(
    "",
    " ",
    "\n",
    "a\r\nb",
    "- x",
    "a: b # c",
    "\ttab ",
    "yes",
    "1e3",
    "|",
    "\u2028",
    "\0",
  ),
  fc.constant("long line\n".repeat(400)),
);
const contentOf: Readonly<Partial<Record<ContentFormat, fc.Arbitrary<string>>>> = {
  json,
  text: anyText,
  yaml: fc.constantFrom("a: 1\n", "# c\nb: [1, 2]\n", "x"),
  toml: fc.constantFrom("a = 1\n", "[t]\nd = 2020-01-01\n"),
  properties: fc.constantFrom("a=1\r\nb = x\\\n  y\n", "# none\n"),
};

const version = fc.integer({ min: 0, max: 2 });
const rule = fc.record(
  {
    match: fc.constantFrom(
      {},
      { tier: "gold" },
      { tier: { not: ["gold", "x"] } },
      { user: { prefix: "u" } },
    ),
    rollout: fc.record({
      percentage: fc.constantFrom(0, 12.345, 50, 100),
      by: fc.constant("user"),
    }),
    from: fc.constantFrom("2020-01-01T00:00:00Z", "2999-01-01T00:00:00+01:00"),
    version,
  },
  { requiredKeys: ["match", "version"] },
);

const config = fc.constantFrom(...(Object.keys(contentOf) as ContentFormat[])).chain((format) =>
  fc.record(
    {
      namespace: fc.constantFrom(...namespaces),
      name: fc.constantFrom(...names),
      format: fc.constant(format),
      description: anyText,
      tags: fc.dictionary(fc.constantFrom("team", "__proto__", "a b"), fc.string()),
      contents: fc.array(contentOf[format] as fc.Arbitrary<string>, { minLength: 1, maxLength: 3 }),
      /** Put after the first version, which need not fit it. */
      schema: fc.constantFrom({ type: "object" }, { not: { type: "null" } }, true),
      release: fc.record({ rules: fc.array(rule, { maxLength: 3 }), default: fc.option(version) }),
    },
    { requiredKeys: ["namespace", "name", "format", "contents"] },
  ),
);

const tenant = fc.record(
  {
    description: anyText,
    quotas: fc.record({ configs: fc.integer({ min: 100, max: 200 }) }, { requiredKeys: [] }),
    keys: fc.uniqueArray(
      fc.record(
        {
          description: fc.constantFrom("ci", "app", "yes: no"),
          kind: fc.constantFrom("write" as const, "client" as const),
          namespaces: fc.constantFrom(["prod"], ["dev", "base"]),
        },
        { requiredKeys: ["description", "kind"] },
      ),
      { selector: ({ description }) => description, maxLength: 2 },
    ),
    options: fc.array(
      fc.record(
        {
          namespace: fc.constantFrom(...namespaces),
          extends: fc.constantFrom(...namespaces, null),
          protected: fc.boolean(),
        },
        { requiredKeys: ["namespace"] },
      ),
      { maxLength: 3 },
    ),
    configs: fc.array(config, { maxLength: 5 }),
  },
  { requiredKeys: ["description", "quotas", "keys", "options", "configs"] },
);

type Tenant = typeof tenant extends fc.Arbitrary<infer T> ? T : never;

/** Some of it may be refused (a cycle, a version that there is not): then there is so much less to export. */
async function make(
  h: Harness,
  { description, quotas, keys, options, configs }: Tenant,
): Promise<void> {
  const T = "/v1/tenants/acme";
  await h.tenant("acme", { description, quotas, replicas: 1 });
  for (const key of keys) await h.call("POST", `${T}/keys`, { body: key });
  for (const { namespace, ...body } of options)
    await h.call("PUT", `${T}/namespaces/${namespace}`, { body });
  for (const one of configs) {
    const at = `${T}/namespaces/${one.namespace}/configs/${one.name}`;
    const { format, contents, schema, release, description: about = "", tags = {} } = one;
    await h.call("PUT", at, { body: { format, description: about, tags } });
    for (const [i, content] of contents.entries()) {
      await h.call("POST", `${at}/versions`, { body: { content, message: `number ${i}` } });
      if (i === 0 && schema !== undefined) await h.call("PUT", at, { body: { schema } });
    }
    if (release === undefined) continue;
    const rules = release.rules.map((each, i) => ({
      ...each,
      id: `r${i}`,
      version: each.version + 1,
    }));
    const byDefault = release.default === null ? null : release.default + 1;
    await h.call("PUT", `${at}/release`, { body: { rules, default: byDefault } });
  }
}

async function valuesIn(h: Harness): Promise<unknown> {
  const seen: unknown[] = [];
  for (const namespace of namespaces)
    for (const labels of clients) {
      const query = Object.entries(labels).map(([name, value]) => `label.${name}=${value}`);
      const path = `/v1/tenants/acme/namespaces/${namespace}/values?${query.join("&")}`;
      const { values } = (await h.call("GET", path)).body as {
        values: Record<string, { hash: string; format: string; content?: string }>;
      };
      for (const [name, { hash, format, content }] of Object.entries(values))
        seen.push([namespace, labels, name, hash, format, content]);
    }
  return seen;
}

async function inFolder<T>(run: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "conflux-export-"));
  try {
    return await run(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function exported(h: Harness): Promise<{ files: Map<string, string>; manifest: Manifest }> {
  const files = await exportTenant(adminOf(h), "acme");
  return inFolder(async (folder) => {
    await writeFiles(folder, files);
    const [manifest] = await readManifests(folder);
    return { files, manifest: manifest as Manifest };
  });
}

test("a file that is there is replaced by all of the new one; a link stays, a device is written to", () =>
  inFolder(async (folder) => {
    const at = (name: string): string => join(folder, name);
    await writeFile(at("file"), "before", { mode: 0o600 });
    await symlink(at("file"), at("link"));
    await symlink("/dev/null", at("device"));
    await writeFiles(
      folder,
      new Map([
        ["link", "after"],
        ["device", "nowhere"],
        ["new", "new"],
      ]),
    );
    expect(await readlink(at("link"))).toBe(at("file"));
    expect(await readFile(at("file"), "utf8")).toBe("after");
    expect((await stat(at("file"))).mode & 0o777).toBe(0o600);
    expect(await readlink(at("device"))).toBe("/dev/null");
    expect((await readdir(folder)).sort()).toEqual(["device", "file", "link", "new"]);
  }));

describe("export → apply on an empty cluster", () => {
  test("gives the same effective values, and applying again changes nothing", async () => {
    await fc.assert(
      fc.asyncProperty(tenant, async (given) => {
        const [from, to] = [new Harness(), new Harness()];
        try {
          await make(from, given);
          const { manifest } = await exported(from);
          const tokens: string[] = [];
          const applied = await applyManifest(adminOf(to), manifest, {
            onKey: (_tenant, name, token) => tokens.push(`${name} ${token.split("_")[1]}`),
          });
          expect(await valuesIn(to)).toEqual(await valuesIn(from));
          expect(tokens.slice(1).sort()).toEqual(
            given.keys.map(({ description, kind }) => `${description} ${kind}`).sort(),
          );
          // All of it in one transaction.
          const { proposals } = to.cluster.service("n1");
          expect(
            proposals.filter(({ command }) => command.action.op === "transaction").length,
          ).toBe(applied.revision === null ? 0 : 1);
          const again = await planManifest(adminOf(to), manifest, undefined, true);
          expect(again.steps.filter(({ action }) => action !== "unchanged")).toEqual([]);
          const second = await exported(to);
          const third = await planManifest(adminOf(from), second.manifest, undefined, true);
          expect(third.steps.filter(({ action }) => action !== "unchanged")).toEqual([]);
        } finally {
          from.close();
          to.close();
        }
      }),
      { numRuns: 40 },
    );
  }, 60_000);
});

describe("applyManifest()", () => {
  const manifest = (configs: object, more: object = {}): Manifest => ({
    file: "acme.yaml",
    tenant: "acme",
    keys: [],
    namespaces: [{ namespace: "app", configs: Object.values(configs) as [] }],
    ...more,
  });

  test("prunes only when told, and nothing of a protected namespace", async () => {
    const h = new Harness();
    await h.tenant("acme");
    for (const [namespace, name] of [
      ["app", "kept"],
      ["app", "left"],
      ["old", "left"],
    ] as const)
      await h.call("PUT", `/v1/tenants/acme/namespaces/${namespace}/configs/${name}`, {
        body: { content: 1 },
      });
    const kept = manifest([{ name: "kept", format: "json", variants: new Map() }]);
    await applyManifest(adminOf(h), kept);
    expect((await h.call("GET", "/v1/tenants/acme/usage")).body.configs).toBe(3);
    const planned = await planManifest(adminOf(h), kept, undefined, true);
    expect(
      planned.steps
        .filter(({ action }) => action === "delete")
        .map(({ namespace, name }) => `${namespace}/${name}`),
    ).toEqual(["app/left", "old/left"]);
    await h.call("PUT", "/v1/tenants/acme/namespaces/old", { body: { protected: true } });
    await expect(applyManifest(adminOf(h), kept, { prune: true })).rejects.toMatchObject({
      code: "protected",
    });
    expect((await h.call("GET", "/v1/tenants/acme/usage")).body.configs).toBe(3);
    await h.call("PUT", "/v1/tenants/acme/namespaces/old", { body: { protected: false } });
    await applyManifest(adminOf(h), kept, { prune: true });
    expect((await h.call("GET", "/v1/tenants/acme/usage")).body.configs).toBe(1);
    h.close();
  });

  test("leaves secret configs out of manifests, and alone when it prunes", async () => {
    const h = new Harness({ settings: { secretKeys: [{ id: "k1", key: randomBytes(32) }] } });
    await h.tenant("acme");
    const at = "/v1/tenants/acme/namespaces/app/configs";
    await h.call("PUT", `${at}/open`, { body: { content: 1 } });
    const put = await h.call("PUT", `${at}/hidden`, {
      body: { secret: true, content: { a: "hidden" } },
    });
    const { files, manifest: exportedOne } = await exported(h);
    expect([...files.values()].join()).not.toContain("hidden");
    await applyManifest(adminOf(h), exportedOne, { prune: true });
    expect([put.status, (await h.call("GET", `${at}/hidden`)).status]).toEqual([201, 200]);
    h.close();
  });

  test("makes keys by name once, and does not take rights of one that is there for others", async () => {
    const h = new Harness();
    const keys = [{ name: "ci", kind: "write", namespaces: ["app"] }] as const;
    const made: string[] = [];
    const onKey = (_tenant: string, name: string | null): unknown => made.push(name ?? "admin");
    // Where nobody would see a secret, none is made.
    await applyManifest(adminOf(h), manifest([], { keys }));
    await applyManifest(adminOf(h), manifest([], { keys }), { onKey });
    await applyManifest(adminOf(h), manifest([], { keys }), { onKey });
    expect(made).toEqual(["ci"]);
    const other = [{ name: "ci", kind: "write" }];
    await expect(planManifest(adminOf(h), manifest([], { keys: other }))).rejects.toMatchObject({
      code: "conflict",
    });
    h.close();
  });

  test("makes one key of a name when two apply at once, and another one when it was deleted", async () => {
    const h = new Harness();
    const token = await h.tenant("acme");
    const made: (readonly [string, string])[] = [];
    const apply = (admin: Admin): Promise<unknown> =>
      applyManifest(
        admin,
        manifest([], { keys: ["ci", "app"].map((name) => ({ name, kind: "client" })) }),
        { onKey: (_tenant, name, secret) => made.push([name ?? "admin", secret]) },
      );
    const held = async (): Promise<readonly string[]> =>
      (await adminOf(h).keys("acme")).flatMap(({ kind, description }) =>
        kind === "client" ? [description] : [],
      );
    const other = adminOf(h, token);
    for (const callers of [
      [adminOf(h), adminOf(h)],
      [other, adminOf(h)],
      [adminOf(h), other, adminOf(h)],
    ]) {
      made.length = 0;
      await Promise.all(callers.map(apply));
      expect((await held()).toSorted()).toEqual(["app", "ci"]);
      // Who is told a token is told the one that holds.
      expect(new Set(made.map(String)).size).toBe(2);
      for (const { id, kind } of await adminOf(h).keys("acme"))
        if (kind === "client") await adminOf(h).deleteKey("acme", id);
    }
    h.close();
  });
});

test("secrets are left out: files are read by more people than keys with the scope", async () => {
  const h = new Harness({ settings: { secretKeys: [{ id: "k1", key: new Uint8Array(32) }] } });
  await h.tenant("acme");
  const N = "/v1/tenants/acme/namespaces/app/configs";
  const of = (secret: boolean, content: string) => ({ format: "text", secret, content });
  await h.call("PUT", `${N}/open`, { body: of(false, "for everybody") });
  await h.call("PUT", `${N}/password`, { body: of(true, "hunter2") });
  const files = JSON.stringify([...(await exportTenant(adminOf(h), "acme"))]);
  expect(files).toContain("for everybody");
  expect(files).not.toMatch(/hunter2|password|sealed/);
  h.close();
});
