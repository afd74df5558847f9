/** What keeps tenants apart and within their bounds: quotas, rates, usage, rotation of keys, preconditions, protection. */
import { afterAll, describe, expect, test } from "vitest";
import { purgeExpired } from "../../src/gateway/retention.ts";
import { makeToken } from "../../src/gateway/tokens.ts";
import { FrameReader, Harness } from "./harness.ts";

const h = new Harness();
afterAll(() => h.close());

describe("a tenant's settings", () => {
  test("are changed only as they were read", async () => {
    await h.tenant("guarded");
    const read = await h.call("GET", "/v1/tenants/guarded");
    const etag = read.headers.get("etag") as string;
    const change = (headers: Record<string, string>, body: object) =>
      h.call("PATCH", "/v1/tenants/guarded", { headers, body });
    expect((await change({ "if-match": etag }, { description: "one" })).status).toBe(200);
    const late = await change({ "if-match": etag }, { description: "two" });
    expect([late.status, late.body.code]).toEqual([412, "precondition-failed"]);
    expect((await change({ "if-none-match": "*" }, { description: "two" })).status).toBe(412);
    const deleted = await h.call("DELETE", "/v1/tenants/guarded", {
      headers: { "if-match": etag },
    });
    expect(deleted.status).toBe(412);
    const now = await h.call("GET", "/v1/tenants/guarded");
    expect(now.body).toMatchObject({ description: "one", deletedAt: null });
  });

  test("quotas merge in the directory, so that two changes at once both count", async () => {
    await h.tenant("merged", { quotas: { configs: 3 } });
    const path = "/v1/tenants/merged";
    await Promise.all([
      h.call("PATCH", path, { body: { quotas: { keys: 7 } } }),
      h.call("PATCH", path, { body: { quotas: { bytes: 9_000 } } }),
    ]);
    expect((await h.call("GET", path)).body.quotas).toEqual({ configs: 3, keys: 7, bytes: 9_000 });
    const reset = await h.call("PATCH", path, { body: { quotas: { configs: null } } });
    expect(reset.body.quotas).toEqual({ keys: 7, bytes: 9_000 });
    const usage = await h.call("GET", `${path}/usage`);
    expect(usage.body.quotas).toMatchObject({ configs: 10_000, keys: 7, bytes: 9_000 });
  });

  test("a quota that was lowered is in force at once", async () => {
    await h.tenant("lowered");
    const put = (name: string) =>
      h.call("PUT", `/v1/tenants/lowered/namespaces/app/configs/${name}`, { body: {} });
    expect((await put("one")).status).toBe(201);
    await h.call("PATCH", "/v1/tenants/lowered", { body: { quotas: { configs: 1 } } });
    const refused = await put("two");
    expect([refused.status, refused.body.code]).toEqual([429, "quota-exceeded"]);
  });
});

describe("rates", () => {
  const limited = async (
    id: string,
    quotas: object,
  ): Promise<(path: string) => Promise<Response>> => {
    const token = await h.tenant(id, { quotas });
    return async (path) =>
      h.gateway().fetch(h.request("GET", `/v1/tenants/${id}${path}`, { token }));
  };

  test("what is beyond is refused with what is left and when to come back", async () => {
    const ask = await limited("slow", { requestsPerSecond: 1 });
    const left: (string | null)[] = [];
    let answer = await ask("/usage");
    expect(answer.headers.get("ratelimit-policy")).toBe('"requests";q=5;w=5');
    while (answer.status === 200) {
      left.push(answer.headers.get("ratelimit"));
      answer = await ask("/usage");
    }
    expect(left[0]).toBe('"requests";r=4;t=1');
    expect(left.length).toBeGreaterThanOrEqual(5);
    expect(answer.status).toBe(429);
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
    expect(answer.headers.get("ratelimit")).toMatch(/^"requests";r=0;t=\d+$/);
    expect(await answer.json()).toMatchObject({ code: "too-many-requests" });
  });

  test("root is never limited, and lifts the limit at once", async () => {
    const ask = await limited("stopped", { requestsPerSecond: 0 });
    expect((await ask("/usage")).status).toBe(429);
    expect((await h.call("GET", "/v1/tenants/stopped/usage")).status).toBe(200);
    await h.call("PATCH", "/v1/tenants/stopped", { body: { quotas: { requestsPerSecond: null } } });
    const free = await ask("/usage");
    expect(free.status).toBe(200);
    expect(free.headers.has("ratelimit")).toBe(false);
  });

  test("a key that asks too much leaves the others theirs", async () => {
    await h.tenant("shared", { quotas: { requestsPerSecondPerKey: 1 } });
    const [one, two] = [await h.key("shared", "read"), await h.key("shared", "read")];
    const ask = (token: string) => h.call("GET", "/v1/tenants/shared/usage", { token });
    let status = 200;
    for (let i = 0; i < 50 && status === 200; i++) status = (await ask(one.token)).status;
    expect(status).toBe(429);
    expect((await ask(two.token)).status).toBe(200);
  });

  test("changes have a rate of their own, and refused ones change nothing", async () => {
    const token = await h.tenant("calm", { quotas: { writesPerSecond: 0 } });
    const path = "/v1/tenants/calm/namespaces/app/configs/c";
    const refused = await h.call("PUT", path, { token, body: {} });
    expect([refused.status, refused.body.code]).toEqual([429, "too-many-requests"]);
    expect(refused.headers.get("ratelimit-policy")).toContain('"writes";q=0;w=5');
    expect((await h.call("GET", path, { token })).status).toBe(404);
  });

  test("who has no key of the tenant takes nothing of its rate", async () => {
    const ask = await limited("robbed", { requestsPerSecond: 1 });
    const token = makeToken({ kind: "read", tenant: "robbed", keyId: "x" }, new Uint8Array(32));
    for (let i = 0; i < 20; i++)
      expect((await h.call("GET", "/v1/tenants/robbed/usage", { token })).status).toBe(401);
    expect((await ask("/usage")).headers.get("ratelimit")).toBe('"requests";r=4;t=1');
  });

  test("watches beyond the quota are refused, and those that closed make room", async () => {
    const token = await h.tenant("seen", { quotas: { watchers: 1 } });
    const watch = () =>
      h.gateway().fetch(h.request("GET", "/v1/tenants/seen/watch", { token })) as Promise<Response>;
    const first = await watch();
    const reader = new FrameReader(first);
    expect((await reader.next())?.event).toBe("sync");
    const second = await watch();
    expect([second.status, (await second.json()).code]).toEqual([429, "quota-exceeded"]);
    await reader.cancel();
    const third = await watch();
    expect(third.status).toBe(200);
    await third.body?.cancel();
  });
});

describe("usage", () => {
  test("is told to the tenant's state, with when keys were used", async () => {
    const token = await h.tenant("counted");
    const key = await h.key("counted", "read");
    const before = await h.call("GET", `/v1/tenants/counted/keys/${key.id}`, { token });
    expect(before.body.lastUsedAt).toBeNull();
    for (let i = 0; i < 3; i++)
      await h.call("GET", "/v1/tenants/counted/usage", { token: key.token });
    const { revision } = (await h.call("GET", "/v1/tenants/counted/usage")).body;
    await h.gateway().recordUsage();
    const usage = await h.call("GET", "/v1/tenants/counted/usage");
    expect(usage.body).toMatchObject({ revision, requests: 6, limitedRequests: 0 });
    const after = await h.call("GET", `/v1/tenants/counted/keys/${key.id}`, { token });
    expect(Math.abs(Date.parse(after.body.lastUsedAt) - Date.now())).toBeLessThan(60_000);
    await h.gateway().recordUsage();
    await h.gateway().recordUsage();
    // The two reads after the first telling, once; and with it nothing that was told before.
    const again = await h.call("GET", "/v1/tenants/counted/usage");
    expect(again.body).toMatchObject({ revision, requests: 8 });
  });
});

describe("audit", () => {
  test("comes as JSON with its chain's ends, and as NDJSON page by page", async () => {
    const token = await h.tenant("watched");
    const path = "/v1/tenants/watched/namespaces/app/configs";
    for (let i = 0; i < 520; i++)
      await h.call("PUT", `${path}/c${i}`, { token, headers: { "x-request-id": `r${i}` } });
    const page = await h.call("GET", "/v1/tenants/watched/audit?limit=1000", { token });
    // The twin makes its tenants in 1970: what was written then is older than records are kept.
    expect(page.body.items).toHaveLength(520);
    expect(page.body.anchor.sequence).toBe(2);
    expect(page.body.items.at(-1)).toMatchObject({
      action: "config.put",
      target: "app/c519",
      requestId: "r519",
      address: "192.0.2.1",
      before: null,
      hash: page.body.head,
    });
    const lines = (text: string): unknown[] =>
      text
        .split("\n")
        .slice(0, -1)
        .map((line) => JSON.parse(line) as unknown);
    const ndjson = await h.call("GET", "/v1/tenants/watched/audit?format=ndjson", { token });
    expect(ndjson.headers.get("content-type")).toBe("application/x-ndjson");
    expect(lines(ndjson.text)).toEqual(page.body.items);
    const part = "/v1/tenants/watched/audit?format=ndjson&since=5&limit=502";
    const some = await h.call("GET", part, { token });
    expect(lines(some.text)).toEqual(page.body.items.slice(3, 505));
    const none = await h.call("GET", "/v1/tenants/watched/audit?format=ndjson&since=522", {
      token,
    });
    expect(none.text).toBe("");
  });
});

describe("rotation", () => {
  test("gives a new key, and the old one an end", async () => {
    const admin = await h.tenant("turned");
    const old = await h.key("turned", "write", { namespaces: ["app"] });
    const path = `/v1/tenants/turned/keys/${old.id}/rotate`;
    const rehearsed = await h.call("POST", `${path}?dryRun=true`, { token: admin });
    expect(rehearsed.body.token).toBeUndefined();
    const made = await h.call("POST", path, { token: admin, body: { overlapSeconds: 600 } });
    expect(made.status).toBe(201);
    expect(made.body).toMatchObject({ kind: "write", namespaces: ["app"] });
    expect(made.body.replaces.id).toBe(old.id);
    const left = Date.parse(made.body.replaces.expiresAt) - Date.now();
    expect(left).toBeGreaterThan(590_000);
    const configs = "/v1/tenants/turned/namespaces/app/configs";
    for (const token of [old.token, made.body.token])
      expect((await h.call("GET", configs, { token })).status).toBe(200);
    const twice = await h.call("POST", path, { token: admin });
    expect([twice.status, twice.body.code]).toEqual([409, "conflict"]);
    const listed = await h.call("GET", `/v1/tenants/turned/keys/${old.id}`, { token: admin });
    expect(listed.body.replacedBy).toBe(made.body.id);
  });

  test("without overlap the old one ends at once, with its watches", async () => {
    const admin = await h.tenant("swapped");
    const old = await h.key("swapped", "read");
    const response = await h
      .gateway()
      .fetch(h.request("GET", "/v1/tenants/swapped/watch", { token: old.token }));
    const reader = new FrameReader(response);
    expect((await reader.next())?.event).toBe("sync");
    const made = await h.call("POST", `/v1/tenants/swapped/keys/${old.id}/rotate`, {
      token: admin,
      body: { overlapSeconds: 0 },
    });
    expect(made.status).toBe(201);
    expect((await reader.nextNews())?.data).toEqual({ reason: "unauthorized" });
    const status = async (token: string): Promise<number> =>
      (await h.call("GET", "/v1/tenants/swapped/usage", { token })).status;
    expect([await status(old.token), await status(made.body.token)]).toEqual([401, 200]);
  });

  test("repeated with its Idempotency-Key gives the same token", async () => {
    const admin = await h.tenant("repeated");
    const old = await h.key("repeated", "read");
    const ask = () =>
      h.call("POST", `/v1/tenants/repeated/keys/${old.id}/rotate`, {
        token: admin,
        headers: { "idempotency-key": "turn-1" },
      });
    const [first, second] = [await ask(), await ask()];
    expect(second.headers.get("idempotent-replay")).toBe("true");
    expect(second.body.token).toBe(first.body.token);
  });
});

test("a dry run shows no token that will never work", async () => {
  const token = await h.tenant("dry");
  const key = await h.call("POST", "/v1/tenants/dry/keys?dryRun=true", {
    token,
    body: { kind: "read" },
  });
  expect([key.status, key.body.token]).toEqual([201, undefined]);
  const tenant = await h.call("POST", "/v1/tenants?dryRun=true", { body: { id: "dryer" } });
  expect([tenant.status, tenant.body.key.token]).toEqual([201, undefined]);
});

test("a deleted tenant is kept for its time, then purged", async () => {
  await h.tenant("expired");
  await h.tenant("taken-back");
  const { body } = await h.call("DELETE", "/v1/tenants/expired");
  await h.call("DELETE", "/v1/tenants/taken-back");
  await h.call("POST", "/v1/tenants/taken-back/undelete");
  const service = h.cluster.service("n1");
  const deletedAt = Date.parse(body.deletedAt);
  expect(await purgeExpired(service, 1_000, deletedAt + 999)).toEqual([]);
  expect(await purgeExpired(service, 1_000, deletedAt + 1_000)).toEqual(["expired"]);
  expect((await h.call("GET", "/v1/tenants/expired")).status).toBe(404);
  expect((await h.call("GET", "/v1/tenants/taken-back")).status).toBe(200);
});

test("only a key of a deleted tenant learns that it was deleted", async () => {
  const own = await h.tenant("buried");
  const foreign = await h.tenant("neighbour");
  await h.call("DELETE", "/v1/tenants/buried");
  const forged = makeToken({ kind: "read", tenant: "buried", keyId: "x" }, new Uint8Array(32));
  const ask = async (token?: string): Promise<number> =>
    (await h.call("GET", "/v1/tenants/buried/usage", { ...(token !== undefined && { token }) }))
      .status;
  expect([await ask(own), await ask(foreign), await ask(forged), await ask()]).toEqual([
    410, 403, 401, 410,
  ]);
});

test("a protected namespace keeps its versions from write keys", async () => {
  const admin = await h.tenant("kept");
  const { token } = await h.key("kept", "write");
  const N = "/v1/tenants/kept/namespaces/prod";
  for (const a of [1, 2, 3])
    await (a === 1
      ? h.call("PUT", `${N}/configs/c`, { token, body: { content: { a } } })
      : h.call("POST", `${N}/configs/c/versions`, { token, body: { content: { a } } }));
  await h.call("PUT", N, { token: admin, body: { protected: true } });
  const body = { versions: [2] };
  const refused = await h.call("DELETE", `${N}/configs/c/versions`, { token, body });
  expect([refused.status, refused.body.code]).toEqual([409, "protected"]);
  const inOne = await h.call("POST", "/v1/tenants/kept/transactions", {
    token,
    body: { then: [{ op: "version.delete", namespace: "prod", name: "c", versions: [2] }] },
  });
  expect(inOne.body.code).toBe("protected");
  expect((await h.call("DELETE", `${N}/configs/c/versions`, { token: admin, body })).status).toBe(
    200,
  );
});
