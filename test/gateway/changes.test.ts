import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { tagsLevel } from "../../src/machine/command.ts";
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
const revision = async (): Promise<number> =>
  (await call("GET", "/v1/tenants/acme/usage")).body.revision as number;

describe("Idempotency-Key", () => {
  test("a repeat gives the first answer, also after other changes", async () => {
    const headers = { "idempotency-key": "k-1" };
    const body = { content: { a: 1 } };
    const first = await call("PUT", `${N}/configs/idem`, { headers, body });
    expect([first.status, first.headers.get("idempotent-replay")]).toEqual([201, null]);
    await call("POST", `${N}/configs/idem/publish`, { body: { content: { a: 2 } } });
    const again = await call("PUT", `${N}/configs/idem`, {
      headers,
      // The order of fields and spaces is not the body.
      raw: ' { "content" : {"a":1} } ',
    });
    expect([again.status, again.headers.get("idempotent-replay")]).toEqual([201, "true"]);
    expect(again.body).toEqual(first.body);
    expect((await call("GET", `${N}/values/idem`)).body).toEqual({ a: 2 });
  });

  test("with another body, path or method it is refused", async () => {
    const headers = { "idempotency-key": "k-2" };
    await call("POST", `${N}/configs/idem/publish`, { headers, body: { content: 1 } });
    for (const [method, path, body] of [
      ["POST", `${N}/configs/idem/publish`, { content: 2 }],
      ["POST", `${N}/configs/idem/versions`, { content: 1 }],
      ["POST", `${N}/configs/idem/publish?dryRun=false`, { content: 1 }],
    ] as const) {
      const answer = await call(method, path, { headers, body });
      expect([answer.status, answer.body.code]).toEqual([422, "idempotency-mismatch"]);
    }
  });

  test("a repeated creation of a key or tenant gives the same token, which works", async () => {
    const headers = { "idempotency-key": "k-3" };
    const make = () => call("POST", "/v1/tenants/acme/keys", { headers, body: { kind: "read" } });
    const [first, again] = [await make(), await make()];
    expect(again.body).toEqual(first.body);
    expect(again.headers.get("idempotent-replay")).toBe("true");
    const used = await h.call("GET", "/v1/tenants/acme", { token: first.body.token });
    expect(used.status).toBe(200);

    const tenant = () => h.call("POST", "/v1/tenants", { headers, body: { id: "twice" } });
    const [made, repeated] = [await tenant(), await tenant()];
    expect(repeated.body).toEqual(made.body);
    const token = repeated.body.key.token as string;
    expect((await h.call("GET", "/v1/tenants/twice/keys", { token })).status).toBe(200);
  });

  test("the token of a repeat is not shown to another caller", async () => {
    const headers = { "idempotency-key": "k-4" };
    const body = { kind: "read" };
    await call("POST", "/v1/tenants/acme/keys", { headers, body });
    const other = await h.call("POST", "/v1/tenants/acme/keys", { headers, body });
    expect([other.status, other.body.code]).toEqual([422, "idempotency-mismatch"]);
    expect(other.text).not.toContain("cfx_");
  });

  test("of one tenant means nothing to another, also where the directory keeps them", async () => {
    const tokens = [await h.tenant("north"), await h.tenant("south")];
    const describe_ = (token: string | undefined, tenant: string, description: string) =>
      h.call("PATCH", `/v1/tenants/${tenant}`, {
        ...(token !== undefined && { token }),
        headers: { "idempotency-key": "k-5" },
        body: { description },
      });
    for (const description of ["theirs", "theirs", "another"]) {
      const north = await describe_(tokens[0], "north", description);
      const south = await describe_(tokens[1], "south", description);
      const isSame = description === "theirs";
      expect([north.status, south.status]).toEqual(isSame ? [200, 200] : [422, 422]);
      if (isSame) expect([north.body.id, south.body.id]).toEqual(["north", "south"]);
    }
    const byRoot = await describe_(undefined, "north", "the operator's");
    expect([byRoot.status, byRoot.headers.get("idempotent-replay")]).toEqual([200, null]);
  });

  test("must be 1 to 255 visible ASCII characters", async () => {
    for (const key of ["a b", "x".repeat(256), "é"]) {
      const answer = await call("POST", `${N}/configs/idem/publish`, {
        headers: { "idempotency-key": key },
        body: { content: 1 },
      });
      expect([answer.status, answer.body.code]).toEqual([400, "invalid"]);
    }
  });
});

describe("preconditions", () => {
  test("If-Match guards every change of a config", async () => {
    const created = await call("PUT", `${N}/configs/guard`, { body: { content: 1 } });
    const stale = { "if-match": created.headers.get("etag") as string };
    const next = await call("POST", `${N}/configs/guard/publish`, {
      headers: stale,
      body: { content: 2 },
    });
    expect(next.status).toBe(201);
    const before = await revision();
    for (const [method, path, body] of [
      ["PUT", "", { description: "d" }],
      ["DELETE", "", undefined],
      ["POST", "/publish", { content: 3 }],
      ["POST", "/versions", { content: 3 }],
      ["DELETE", "/versions", { versions: [1] }],
      ["PUT", "/release", { rules: [], default: 1 }],
      ["POST", "/rollback", undefined],
    ] as const) {
      const answer = await call(method, `${N}/configs/guard${path}`, {
        headers: stale,
        ...(body !== undefined && { body }),
      });
      expect([path, answer.status, answer.body.code]).toEqual([path, 412, "precondition-failed"]);
    }
    expect(await revision()).toBe(before);
    const now = { "if-match": `"1", ${next.headers.get("etag")}` };
    const done = await call("PUT", `${N}/configs/guard`, {
      headers: now,
      body: { description: "d" },
    });
    expect(done.status).toBe(200);
  });

  test("a weak or foreign tag never matches, * matches what exists", async () => {
    const etag = (await call("GET", `${N}/configs/guard`)).headers.get("etag") as string;
    for (const tag of [`W/${etag}`, '"abc"', "nonsense"]) {
      const answer = await call("POST", `${N}/configs/guard/publish`, {
        headers: { "if-match": tag },
        body: { content: 9 },
      });
      expect(answer.status).toBe(412);
    }
    const headers = { "if-match": "*" };
    const any = await call("POST", `${N}/configs/guard/publish`, { headers, body: { content: 9 } });
    expect(any.status).toBe(201);
    const none = await call("PUT", `${N}/configs/missing`, { headers, body: {} });
    expect(none.status).toBe(412);
  });

  test("a tag names the epoch, and bodies carry it for the conditions of transactions", async () => {
    const path = `${N}/configs/tagged`;
    const made = await call("PUT", path, { body: { content: 1 } });
    const { epoch } = (await call("GET", "/v1/tenants/acme/usage")).body;
    const tag = `"${epoch}-${made.body.revision}"`;
    const read = await call("GET", path);
    const { items } = (await call("GET", `${N}/configs?prefix=tagged`)).body;
    for (const one of [made.headers.get("etag"), made.body.etag, read.body.etag, items[0].etag])
      expect(one).toBe(tag);
    expect(read.headers.get("etag")).toBe(tag);
    const target = { namespace: "app", name: "tagged" };
    const run = (condition: object) =>
      call("POST", "/v1/tenants/acme/transactions", {
        body: {
          if: [{ ...target, ...condition }],
          then: [{ op: "config.put", ...target, description: String(Math.random()) }],
        },
      });
    const other = `"${epoch - 1}-${made.body.revision}"`;
    const refused = await run({ etag: other });
    expect([refused.status, refused.body.code]).toEqual([412, "precondition-failed"]);
    expect(refused.body.errors[0].pointer).toBe("/if/0");
    for (const condition of [
      { etag: `${epoch}-3` },
      { etag: tag, revision: 3 },
      { etag: `W/${tag}` },
    ])
      expect((await run(condition)).status).toBe(400);
    const done = await run({ etag: tag });
    expect(done.status).toBe(200);
    expect(done.body.results[0].etag).toBe(`"${epoch}-${done.body.revision}"`);
    expect((await run({ etag: tag })).status).toBe(412);
    // As older clients know it: the revision alone, in a tenant that was never restored.
    const bare = { "if-match": `"${done.body.revision}"` };
    expect((await call("PUT", path, { headers: bare, body: { description: "d" } })).status).toBe(
      200,
    );
    for (const match of [other, `"0${epoch}-${done.body.revision}"`]) {
      const stale = { "if-match": match };
      expect((await call("PUT", path, { headers: stale, body: {} })).status).toBe(412);
    }
  });

  test("below the level of such tags they are as they were, and one of them never holds", async () => {
    const older = new Harness();
    const token = await older.tenant("acme");
    Object.assign(older.cluster.service("n1"), { semantics: tagsLevel - 1 });
    const path = `${N}/configs/old`;
    const made = await older.call("PUT", path, { token, body: { content: 1 } });
    const { revision: at } = made.body;
    expect([made.headers.get("etag"), made.body.etag]).toEqual([`"${at}"`, undefined]);
    const read = await older.call("GET", path, { token });
    expect([read.headers.get("etag"), read.body.etag]).toEqual([`"${at}"`, undefined]);
    const { epoch } = (await older.call("GET", "/v1/tenants/acme/usage", { token })).body;
    const put = (match: string) =>
      older.call("PUT", path, {
        token,
        headers: { "if-match": match },
        body: { description: "d" },
      });
    expect((await put(`"${epoch}-${at}"`)).status).toBe(412);
    const target = { namespace: "app", name: "old" };
    const body = {
      if: [{ ...target, etag: `"${epoch}-${at}"` }],
      then: [{ op: "config.delete", ...target }],
    };
    const refused = await older.call("POST", "/v1/tenants/acme/transactions", { token, body });
    expect([refused.status, refused.body.code]).toEqual([412, "precondition-failed"]);
    expect((await put(`"${at}"`)).status).toBe(200);
    older.close();
  });

  test("If-None-Match: * only creates", async () => {
    const headers = { "if-none-match": "*" };
    const body = { content: 1 };
    expect((await call("PUT", `${N}/configs/once`, { headers, body })).status).toBe(201);
    expect((await call("PUT", `${N}/configs/once`, { headers, body })).status).toBe(412);
    const other = await call("PUT", `${N}/configs/once`, {
      headers: { "if-none-match": '"5"' },
      body,
    });
    expect(other.status).toBe(400);
  });

  test("If-Match also guards namespaces and tenants", async () => {
    const made = await call("PUT", "/v1/tenants/acme/namespaces/ns", { body: { protected: true } });
    const headers = { "if-match": '"1"' };
    const body = { protected: false };
    expect((await call("PUT", "/v1/tenants/acme/namespaces/ns", { headers, body })).status).toBe(
      412,
    );
    const good = { "if-match": made.headers.get("etag") as string };
    const done = await call("PUT", "/v1/tenants/acme/namespaces/ns", { headers: good, body });
    expect(done.status).toBe(200);
    const tenant = await call("PATCH", "/v1/tenants/acme", { headers, body: { description: "d" } });
    expect(tenant.status).toBe(412);
    for (const method of ["PATCH", "DELETE"] as const) {
      const none = await h.call(method, "/v1/tenants/acme", {
        headers: { "if-none-match": "*" },
        ...(method === "PATCH" && { body: { description: "d" } }),
      });
      expect([none.status, none.body.code]).toEqual([412, "precondition-failed"]);
    }
  });
});

describe("dryRun", () => {
  test("answers what would be and changes nothing", async () => {
    const before = await revision();
    const created = await call("PUT", `${N}/configs/dry?dryRun=true`, { body: { content: 1 } });
    expect([created.status, created.headers.get("conflux-dry-run")]).toEqual([201, "true"]);
    // The next change has that revision: a tag of it would guard something else.
    expect(Number(created.headers.get("conflux-revision"))).toBe(before);
    for (const name of ["etag", "location"]) expect(created.headers.get(name)).toBeNull();
    expect((await call("GET", `${N}/configs/dry`)).status).toBe(404);
    const key = await call("POST", "/v1/tenants/acme/keys?dryRun=true", { body: { kind: "read" } });
    expect(key.body.token).toBeUndefined();
    const tenant = await h.call("POST", "/v1/tenants?dryRun=true", { body: { id: "dry" } });
    expect(tenant.status).toBe(201);
    expect((await h.call("GET", "/v1/tenants/dry")).status).toBe(404);
    expect(await revision()).toBe(before);
  });

  test("refuses what would be refused", async () => {
    const answer = await call("POST", `${N}/configs/none/publish?dryRun=true`, {
      body: { content: 1 },
    });
    expect(answer.status).toBe(404);
    const broken = await call("PUT", `${N}/configs/dry?dryRun=true`, { body: { content: "{" } });
    expect(broken.status).toBe(422);
  });

  test("leaves no idempotency record behind", async () => {
    const headers = { "idempotency-key": "dry-1" };
    await call("PUT", `${N}/configs/dry?dryRun=true`, { headers, body: { content: 1 } });
    const real = await call("PUT", `${N}/configs/dry`, { headers, body: { content: 1 } });
    expect([real.status, real.headers.get("idempotent-replay")]).toEqual([201, null]);
  });
});

describe("consistency", () => {
  test("a revision that is not here yet is 503 not-caught-up, one that is here is read", async () => {
    const now = await revision();
    const read = (value: string) =>
      call("GET", `${N}/values`, { headers: { "conflux-min-revision": value } });
    expect((await read(String(now))).status).toBe(200);
    const ahead = await read(String(now + 100));
    expect([ahead.status, ahead.body.code]).toEqual([503, "not-caught-up"]);
    expect(ahead.headers.get("retry-after")).toBe("1");
    expect((await read("soon")).status).toBe(400);
  });

  test("stale and linearizable are known, others are not", async () => {
    for (const [mode, status] of [
      ["stale", 200],
      ["linearizable", 200],
      ["eventual", 400],
    ] as const)
      expect((await call("GET", `${N}/values?consistency=${mode}`)).status).toBe(status);
  });
});

describe("audit", () => {
  test("says who did what from where, with the request's id", async () => {
    await call("PUT", `${N}/configs/audited`, {
      headers: { "x-request-id": "my-request" },
      body: { format: "text", content: "secret text" },
    });
    const all = await call("GET", "/v1/tenants/acme/audit?limit=1000");
    const record = all.body.items.find(
      (item: { requestId: string }) => item.requestId === "my-request",
    );
    expect(record).toMatchObject({
      action: "config.put",
      target: "app/audited",
      address: "192.0.2.1",
      actor: { kind: "admin" },
    });
    const page = await call("GET", "/v1/tenants/acme/audit?limit=2");
    const next = await call("GET", `/v1/tenants/acme/audit?limit=2&since=${page.body.next}`);
    expect(next.body.items[0].sequence).toBe(page.body.items[1].sequence + 1);
    expect(JSON.stringify(h.logged)).not.toContain("secret text");
  });
});
