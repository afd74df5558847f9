import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Harness, type Options } from "./harness.ts";

const h = new Harness();
const N = "/v1/tenants/acme/namespaces/app";
let admin = "";

beforeAll(async () => {
  admin = await h.tenant("acme");
});
afterAll(() => h.close());

const call = (method: string, path: string, options: Options = {}) =>
  h.call(method, path, { token: admin, ...options });
const put = (name: string, body: object) => call("PUT", `${N}/configs/${name}`, { body });
const publish = (name: string, content: unknown) =>
  call("POST", `${N}/configs/${name}/publish`, { body: { content } });

describe("configs", () => {
  test("creation with content makes version 1 and releases it as default", async () => {
    const created = await put("limits", { format: "json", content: { rps: 10 } });
    expect(created.status).toBe(201);
    expect(created.body).toMatchObject({
      name: "limits",
      latestVersion: 1,
      release: 1,
      default: 1,
    });
    expect(created.headers.get("etag")).toBe(`"1-${created.body.revision}"`);
    expect(created.headers.get("location")).toBe(`${N}/configs/limits`);
    const value = await call("GET", `${N}/values/limits`);
    expect(value.body).toEqual({ rps: 10 });
    expect(value.headers.get("conflux-version")).toBe("1");
    expect(value.headers.get("conflux-revision")).toBe(String(created.body.revision));
  });

  test("metadata is changed with 200, and an unchanged PUT makes no revision", async () => {
    await put("meta", { format: "text" });
    const changed = await put("meta", { description: "what for", tags: { team: "a" } });
    expect([changed.status, changed.body.description]).toEqual([200, "what for"]);
    const again = await put("meta", { description: "what for" });
    expect(again.headers.get("conflux-revision")).toBe(changed.headers.get("conflux-revision"));
    const read = await call("GET", `${N}/configs/meta`);
    expect(read.body).toMatchObject({
      tags: { team: "a" },
      release: null,
      rules: [],
      schema: null,
    });
  });

  test("the same content as the latest version is answered with that version", async () => {
    await put("same", { content: "1" });
    const path = `${N}/configs/same/versions`;
    const added = await call("POST", path, { body: { content: "2", message: "two" } });
    expect([added.status, added.body.version, added.body.message]).toEqual([201, 2, "two"]);
    const again = await call("POST", path, { body: { content: "2" } });
    expect([again.status, again.body.version]).toEqual([200, 2]);
  });

  test("versions are read by number and by hash, and may be cached", async () => {
    await put("read", { format: "yaml", content: "a: 1\n" });
    const byNumber = await call("GET", `${N}/configs/read/versions/1`);
    expect(byNumber.body).toMatchObject({ version: 1, content: "a: 1\n", bytes: 5 });
    expect(byNumber.headers.get("cache-control")).toContain("immutable");
    const byHash = await call("GET", `${N}/configs/read/versions/${byNumber.body.hash}`);
    expect(byHash.body).toEqual(byNumber.body);
    const unchanged = await call("GET", `${N}/configs/read/versions/1`, {
      headers: { "if-none-match": byNumber.headers.get("etag") as string },
    });
    expect([unchanged.status, unchanged.text]).toEqual([304, ""]);
    for (const wrong of ["2", `sha256:${"0".repeat(64)}`])
      expect((await call("GET", `${N}/configs/read/versions/${wrong}`)).status).toBe(404);
    for (const wrong of ["x", "-1", "1.5", "sha256:zz"])
      expect((await call("GET", `${N}/configs/read/versions/${wrong}`)).status).toBe(400);
  });

  test("a version in a release cannot be deleted, another one can", async () => {
    await put("prune", { content: 1 });
    await publish("prune", 2);
    const path = `${N}/configs/prune/versions`;
    const used = await call("DELETE", path, { body: { versions: [2] } });
    expect([used.status, used.body.code]).toEqual([409, "in-use"]);
    const gone = await call("DELETE", path, { body: { versions: [1] } });
    expect(gone.body).toEqual({ deleted: [1] });
    expect((await call("GET", `${path}/1`)).status).toBe(404);
  });

  test("a deleted config is gone for readers and comes back whole", async () => {
    await put("back", { content: { a: 1 } });
    expect((await call("DELETE", `${N}/configs/back`)).body.deletedAt).not.toBeNull();
    expect((await call("GET", `${N}/configs/back`)).status).toBe(404);
    expect((await call("GET", `${N}/values/back`)).status).toBe(404);
    const deleted = await call("GET", `${N}/configs?deleted=true`);
    expect(deleted.body.items.map((item: { name: string }) => item.name)).toContain("back");
    expect((await call("POST", `${N}/configs/back/undelete`)).body.deletedAt).toBeNull();
    expect((await call("GET", `${N}/values/back`)).body).toEqual({ a: 1 });
  });

  test("lists come in pages that a cursor joins", async () => {
    const at = "/v1/tenants/acme/namespaces/pages";
    for (const name of ["a", "b", "c", "d", "e"])
      await call("PUT", `${at}/configs/${name}`, { body: { format: "text" } });
    const names: string[] = [];
    let cursor = "";
    for (let page = 0; page < 3; page++) {
      const answer = await call("GET", `${at}/configs?limit=2${cursor}`);
      names.push(...answer.body.items.map((item: { name: string }) => item.name));
      if (page < 2) expect(answer.body.next).toBeDefined();
      else expect(answer.body.next).toBeUndefined();
      cursor = `&cursor=${encodeURIComponent(answer.body.next ?? "")}`;
    }
    expect(names).toEqual(["a", "b", "c", "d", "e"]);
  });

  test("the differences of two versions are shown by line", async () => {
    await put("diff", { format: "text", content: "a\nb\nc\n" });
    await call("POST", `${N}/configs/diff/versions`, { body: { content: "a\nB\nc\n" } });
    const answer = await call("GET", `${N}/configs/diff/diff?from=1&to=2`);
    expect(answer.body.equal).toBe(false);
    expect(answer.body.unified).toBe(
      "--- diff version 1\n+++ diff version 2\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n",
    );
    // Without arguments: what a release of the latest would change.
    expect((await call("GET", `${N}/configs/diff/diff`)).body).toEqual(answer.body);
  });
});

describe("content", () => {
  test.each([
    ["json", "{", "/content"],
    ["json", '{"a":1,"a":2}', "/content"],
    ["yaml", "a: [1", "/content"],
    ["toml", "a = ", "/content"],
    ["properties", "a=\\u12", "/content"],
    ["flag", { state: "ON" }, "/content/state"],
    ["toml", { a: 1 }, "/content"],
  ])("%s %j is refused before anything is proposed", async (format, content, pointer) => {
    const before = h.cluster.service("n1").proposals.length;
    const answer = await put("broken", { format, content });
    expect([answer.status, answer.body.code]).toEqual([422, "invalid-content"]);
    expect(answer.body.errors[0].pointer).toBe(pointer);
    expect(h.cluster.service("n1").proposals).toHaveLength(before);
    expect((await call("GET", `${N}/configs/broken`)).status).toBe(404);
  });

  test("is held against the config's schema", async () => {
    const schema = { type: "object", properties: { rps: { type: "integer" } }, required: ["rps"] };
    await put("typed", { schema, content: { rps: 1 } });
    const wrong = await publish("typed", { rps: "many" });
    expect([wrong.status, wrong.body.code]).toEqual([422, "invalid-content"]);
    expect(wrong.body.errors.length).toBeGreaterThan(0);
    const right = await publish("typed", { rps: 2 });
    expect([right.status, right.body.schemaHash]).toEqual([201, expect.stringMatching(/^sha256:/)]);
    expect((await call("GET", `${N}/configs/typed`)).body.schema).toEqual(schema);
    await put("typed", { schema: null });
    expect((await publish("typed", { rps: "many" })).status).toBe(201);
  });

  test("a schema that is none is refused", async () => {
    const answer = await put("badschema", { schema: { type: "nonsense" } });
    expect([answer.status, answer.body.code]).toEqual([422, "invalid-content"]);
    expect(answer.body.errors[0].pointer).toMatch(/^\/schema/);
  });

  test("over the tenant's quota is refused, also when the body is within its bound", async () => {
    const answer = await put("big", { format: "text", content: "x".repeat(1024 * 1024 + 1) });
    expect([answer.status, answer.body.code]).toEqual([413, "body-too-large"]);
    const fits = await put("big", { format: "text", content: "x".repeat(1024 * 1024) });
    expect(fits.status).toBe(201);
  });

  test("each format is served in its media type", async () => {
    for (const [format, content, type] of [
      ["json", "{}", /^application\/json/],
      ["yaml", "a: 1", /^application\/yaml/],
      ["toml", "a = 1", /^application\/toml/],
      ["properties", "a=1", /^text\/x-java-properties/],
      ["text", "a", /^text\/plain/],
    ] as const) {
      await put(`media-${format}`, { format, content });
      const value = await call("GET", `${N}/values/media-${format}`);
      expect(value.headers.get("content-type")).toMatch(type);
      expect(value.text).toBe(content);
      expect(value.headers.get("x-content-type-options")).toBe("nosniff");
    }
  });
});

describe("releases", () => {
  const rules = [
    { id: "eu", match: { region: "eu" }, version: 2 },
    { id: "gold", match: { tier: ["gold", "silver"] }, version: 3 },
  ];

  test("different labels get different versions", async () => {
    await put("rules", { content: 1 });
    for (const content of [2, 3])
      await call("POST", `${N}/configs/rules/versions`, { body: { content } });
    const released = await call("PUT", `${N}/configs/rules/release`, {
      body: { rules, default: 1, message: "by region" },
    });
    expect(released.status).toBe(200);
    expect(released.body).toMatchObject({ release: 2, default: 1, message: "by region" });
    const value = (query: string) => call("GET", `${N}/values/rules${query}`);
    expect((await value("")).body).toBe(1);
    const eu = await value("?label.region=eu&label.tier=gold");
    expect([eu.body, eu.headers.get("conflux-rule")]).toEqual([2, "eu"]);
    const gold = await value("?label.tier=gold");
    expect([gold.body, gold.headers.get("conflux-rule")]).toEqual([3, "gold"]);
    expect((await value("?label.region=us")).headers.get("conflux-rule")).toBeNull();
    const reasons = await value("?label.tier=gold&explain=true");
    expect(reasons.body).toMatchObject({ version: 3, rule: "gold", namespace: "app" });
    expect(reasons.body.rules.map((rule: { outcome: string }) => rule.outcome)).toEqual([
      "labels",
      "won",
    ]);
  });

  test("the tag of a value changes with what these labels get, and only then", async () => {
    await put("tags", { content: 1 });
    const tag = async (query = ""): Promise<string> =>
      (await call("GET", `${N}/values/tags${query}`)).headers.get("etag") as string;
    const before = await tag();
    await call("POST", `${N}/configs/tags/versions`, { body: { content: 2 } });
    expect(await tag()).toBe(before);
    await call("PUT", `${N}/configs/tags/release`, {
      body: { rules: [{ id: "eu", match: { region: "eu" }, version: 2 }], default: 1 },
    });
    expect(await tag()).toBe(before);
    expect(await tag("?label.region=eu")).not.toBe(before);
    const unchanged = await call("GET", `${N}/values/tags`, {
      headers: { "if-none-match": before },
    });
    expect([unchanged.status, unchanged.headers.get("conflux-version")]).toEqual([304, "1"]);
  });

  test("a default of null gives nothing to those no rule matches", async () => {
    await put("none", { content: 1 });
    await call("PUT", `${N}/configs/none/release`, { body: { rules: [], default: null } });
    const answer = await call("GET", `${N}/values/none`);
    expect([answer.status, answer.body.code]).toEqual([404, "not-found"]);
  });

  test("publish keeps the rules, rollback is a new release of an older one", async () => {
    await put("roll", { content: 1 });
    await call("POST", `${N}/configs/roll/versions`, { body: { content: 2 } });
    await call("PUT", `${N}/configs/roll/release`, {
      body: { rules: [{ id: "eu", match: { region: "eu" }, version: 2 }], default: 1 },
    });
    const published = await publish("roll", 3);
    expect(published.body).toMatchObject({ version: 3, release: { release: 3, default: 3 } });
    expect(published.body.release.rules).toHaveLength(1);
    expect(published.body.revision).toBe(published.body.release.revision);
    const back = await call("POST", `${N}/configs/roll/rollback`);
    expect(back.body).toMatchObject({ release: 4, default: 1, rollbackOf: 2 });
    expect((await call("GET", `${N}/values/roll`)).body).toBe(1);
    const first = await call("POST", `${N}/configs/roll/rollback`, { body: { toRelease: 1 } });
    expect(first.body).toMatchObject({ release: 5, rules: [], rollbackOf: 1 });
    const history = await call("GET", `${N}/configs/roll/history`);
    expect(history.body.items.map((item: { release: number }) => item.release)).toEqual([
      5, 4, 3, 2, 1,
    ]);
    expect((await call("GET", `${N}/configs/roll/release`)).body.release).toBe(5);
  });

  test.each([
    [{ rules: [{ id: "A", match: {}, version: 1 }], default: 1 }, "/rules/0/id"],
    [{ rules: [{ id: "a", match: {}, version: 0 }], default: 1 }, "/rules/0/version"],
    [
      { rules: [{ id: "a", match: { l: { gte: "x" } }, version: 1 }], default: 1 },
      "/rules/0/match/l/gte",
    ],
    [{ rules: [{ id: "a", match: {}, version: 1, extra: 1 }], default: 1 }, "/rules/0/extra"],
    [{ rules: [], default: "1" }, "/default"],
    [{ rules: [] }, "/default"],
  ])("a wrong release %j is told where", async (body, pointer) => {
    const answer = await call("PUT", `${N}/configs/roll/release`, { body });
    expect([answer.status, answer.body.code]).toEqual([400, "invalid"]);
    expect(answer.body.errors[0].pointer).toBe(pointer);
  });

  test("a release of a version that does not exist is a conflict", async () => {
    const answer = await call("PUT", `${N}/configs/roll/release`, {
      body: { rules: [], default: 99 },
    });
    expect([answer.status, answer.body.code]).toEqual([409, "conflict"]);
  });
});

describe("values", () => {
  test("a namespace's values are one snapshot, inherited ones included", async () => {
    const base = "/v1/tenants/acme/namespaces/base";
    const top = "/v1/tenants/acme/namespaces/top";
    await call("PUT", `${base}/configs/a`, { body: { content: "base", format: "text" } });
    await call("PUT", `${base}/configs/b`, { body: { content: "base", format: "text" } });
    await call("PUT", `${top}/configs/b`, { body: { content: "top", format: "text" } });
    const options = await call("PUT", top, { body: { extends: "base" } });
    expect(options.body).toMatchObject({ extends: "base", protected: false });
    const all = await call("GET", `${top}/values`);
    expect(all.body.values).toMatchObject({ a: { content: "base" }, b: { content: "top" } });
    expect(all.body.revision).toBe(Number(all.headers.get("conflux-revision")));
    expect((await call("GET", `${top}/values/a`)).text).toBe("base");
    const unchanged = await call("GET", `${top}/values`, {
      headers: { "if-none-match": all.headers.get("etag") as string },
    });
    expect(unchanged.status).toBe(304);
  });

  test("a protected namespace refuses deletes", async () => {
    await call("PUT", "/v1/tenants/acme/namespaces/safe/configs/a", { body: { content: 1 } });
    await call("PUT", "/v1/tenants/acme/namespaces/safe", { body: { protected: true } });
    const answer = await call("DELETE", "/v1/tenants/acme/namespaces/safe/configs/a");
    expect([answer.status, answer.body.code]).toEqual([409, "protected"]);
  });

  test("an empty namespace has no values, and that is not an error", async () => {
    const answer = await call("GET", "/v1/tenants/acme/namespaces/unborn/values");
    expect([answer.status, answer.body.values]).toEqual([200, {}]);
  });

  test("an answer that many get carries what is its own, and nothing of the ones before", async () => {
    const path = `${N}/values/limits`;
    const names = ["etag", "content-type", "cache-control", "conflux-version"];
    const first = await call("GET", path);
    const known = names.map((name) => first.headers.get(name));
    const foreign = await call("GET", path, {
      headers: { origin: "https://a.example", "x-request-id": "mine" },
    });
    expect(foreign.headers.get("access-control-allow-origin")).toBe("*");
    expect(foreign.headers.get("x-request-id")).toBe("mine");
    await put("beside", { content: 1 });
    const later = await call("GET", path);
    expect(later.text).toBe(first.text);
    expect(names.map((name) => later.headers.get(name))).toEqual(known);
    expect(later.headers.get("access-control-allow-origin")).toBe(null);
    expect([first, foreign, later].map(({ headers }) => headers.get("x-request-id"))).toEqual([
      expect.stringMatching(/^[0-9A-Za-z]+$/),
      "mine",
      expect.stringMatching(/^[0-9A-Za-z]+$/),
    ]);
    expect(later.headers.get("x-request-id")).not.toBe(first.headers.get("x-request-id"));
    expect(Number(later.headers.get("conflux-revision"))).toBeGreaterThan(
      Number(first.headers.get("conflux-revision")),
    );
    await publish("limits", { rps: 4711 });
    const changed = await call("GET", path);
    expect(changed.body).toEqual({ rps: 4711 });
    expect(changed.headers.get("etag")).not.toBe(first.headers.get("etag"));
    const matched = await call("GET", path, {
      headers: { "if-none-match": changed.headers.get("etag") as string },
    });
    expect([matched.status, matched.text]).toEqual([304, ""]);
    await call("DELETE", `${N}/configs/limits`);
    expect((await call("GET", path)).status).toBe(404);
    await call("POST", `${N}/configs/limits/undelete`);
    expect((await call("GET", path)).body).toEqual({ rps: 4711 });
  });

  test("HEAD gives the headers of GET and no body", async () => {
    const get = await call("GET", `${N}/values/limits`);
    const head = await call("HEAD", `${N}/values/limits`);
    expect([head.status, head.text]).toEqual([200, ""]);
    for (const name of ["etag", "content-type", "conflux-version", "conflux-revision"])
      expect(head.headers.get(name)).toBe(get.headers.get(name));
    expect(head.headers.get("content-length")).toBe(String(Buffer.byteLength(get.text)));
    const watch = await call("HEAD", `${N}/watch`);
    expect([watch.status, watch.headers.get("content-type")]).toEqual([200, "text/event-stream"]);
    expect(h.gateway().status().watchers).toBe(0);
  });
});

describe("transactions", () => {
  const T = "/v1/tenants/acme/transactions";

  test("all in one revision, over namespaces, later operations on what earlier ones made", async () => {
    const answer = await call("POST", T, {
      body: {
        then: [
          {
            op: "config.put",
            namespace: "t1",
            name: "a",
            format: "yaml",
            schema: { type: "object" },
          },
          { op: "publish", namespace: "t1", name: "a", content: "x: 1" },
          { op: "config.put", namespace: "t2", name: "b", content: { b: 1 } },
          { op: "namespace.put", namespace: "t1", extends: "t2" },
        ],
      },
    });
    expect(answer.status).toBe(200);
    expect(answer.body.results).toHaveLength(4);
    expect(answer.body.results[1]).toMatchObject({ version: 1, format: "yaml" });
    for (const result of answer.body.results) expect(result.revision).toBe(answer.body.revision);
    const values = await call("GET", "/v1/tenants/acme/namespaces/t1/values");
    expect(Object.keys(values.body.values).sort()).toEqual(["a", "b"]);
  });

  test("a condition that does not hold changes nothing, and says which", async () => {
    const before = await call("GET", "/v1/tenants/acme/usage");
    const answer = await call("POST", T, {
      body: {
        if: [
          { namespace: "t1", name: "none", absent: true },
          { namespace: "t1", name: "a", absent: true },
        ],
        then: [{ op: "publish", namespace: "t1", name: "a", content: "x: 2" }],
      },
    });
    expect([answer.status, answer.body.code]).toEqual([412, "precondition-failed"]);
    expect(answer.body.errors[0].pointer).toBe("/if/1");
    const after = await call("GET", "/v1/tenants/acme/usage");
    expect(after.body.revision).toBe(before.body.revision);
  });

  test.each([
    [{ then: [] }, "/then"],
    [{ then: [{ op: "nonsense" }] }, "/then/0/op"],
    [{ then: [{ op: "publish", namespace: "t1", name: "a" }] }, "/then/0/content"],
    [{ then: [{ op: "config.delete", namespace: "t1", name: "a", extra: 1 }] }, "/then/0/extra"],
    [
      {
        if: [{ namespace: "t1", name: "a" }],
        then: [{ op: "config.delete", namespace: "t1", name: "a" }],
      },
      "/if/0",
    ],
  ])("a wrong one is told where: %j", async (body, pointer) => {
    const answer = await call("POST", T, { body });
    expect([answer.status, answer.body.errors[0].pointer]).toEqual([400, pointer]);
  });

  test("an operation on what does not exist is told where", async () => {
    const publish = { op: "publish", namespace: "t1", content: "x: 9" };
    const answer = await call("POST", T, {
      body: {
        then: [
          { ...publish, name: "a" },
          { ...publish, name: "none" },
        ],
      },
    });
    expect([answer.status, answer.body.code]).toEqual([404, "not-found"]);
    expect(answer.body.errors[0].pointer).toBe("/then/1");
  });

  test("content is held against the schema that an earlier operation gives", async () => {
    const answer = await call("POST", T, {
      body: {
        then: [
          { op: "config.put", namespace: "t3", name: "a", schema: { type: "string" } },
          { op: "publish", namespace: "t3", name: "a", content: { not: "a string" } },
        ],
      },
    });
    expect([answer.status, answer.body.code]).toEqual([422, "invalid-content"]);
    expect(answer.body.errors[0].pointer).toMatch(/^\/then\/1\/content/);
  });

  test("a limited key may touch its namespaces only", async () => {
    const { token } = await h.key("acme", "write", { namespaces: ["t1"] });
    for (const body of [
      { then: [{ op: "publish", namespace: "t2", name: "b", content: { b: 2 } }] },
      {
        if: [{ namespace: "t2", name: "b", absent: true }],
        then: [{ op: "publish", namespace: "t1", name: "a", content: "x: 3" }],
      },
      { then: [{ op: "namespace.put", namespace: "t1", protected: true }] },
    ])
      expect((await call("POST", T, { token, body })).status).toBe(403);
  });
});
