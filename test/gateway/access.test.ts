/**
 * The matrix: every route × every kind of key, none, strange ones, expired and revoked ones × own and other tenant ×
 * limited to this and to another namespace. What is expected comes from the table of access, which docs/access.md shows:
 * a slip in the table shows there, a slip in what enforces it shows here.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { accessTable, verdict, type Caller } from "../../src/gateway/access.ts";
import { routes } from "../../src/gateway/gateway.ts";
import { route as defineRoute, type Route } from "../../src/gateway/route.ts";
import { makeToken } from "../../src/gateway/tokens.ts";
import { Harness } from "./harness.ts";

const kinds = ["admin", "write", "read", "client"] as const;
const tenants = ["own", "foreign"] as const;
const limits = ["none", "inside", "outside"] as const;

const counters = {
  revision: 1,
  historyFrom: 1,
  at: 1,
  configs: 0,
  deleted: 0,
  namespaces: 0,
  keys: 0,
  bytes: 0,
  audits: 0,
  idempotencyFrom: 1,
  idempotencyTo: 1,
};
/** A request of each route that succeeds when it is let through. */
const bodies: Record<string, unknown> = {
  createTenant: { id: "new" },
  createTenants: { tenants: [{ id: "many" }] },
  updateTenant: { description: "d" },
  createKey: { kind: "read", namespaces: ["app"] },
  putNamespace: { protected: false },
  transferGroup: { to: "n1" },
  joinNode: { node: "n2" },
  leaveNode: { node: "n2" },
  repairReplica: { tenant: "acme" },
  upgradeCluster: {},
  rotateKey: { overlapSeconds: 60 },
  putIssuer: {
    issuer: "https://id.example",
    audience: "conflux",
    rules: [{ tenant: "acme", kind: "read" }],
  },
  beginRestore: {
    source: { tenant: "acme", epoch: 1, revision: 1 },
    meta: counters,
    replace: true,
  },
  putRestoreRows: { rows: [] },
  finishRestore: { rows: 0 },
  putConfig: { description: "d" },
  createVersion: { content: { a: 9 } },
  deleteVersions: { versions: [2] },
  putRelease: { rules: [], default: 1 },
  publish: { content: { a: 9 } },
  rollback: {},
  postFeedback: { instance: "pod", values: [{ name: "a", version: 1, state: "applied" }] },
  runTransaction: { then: [{ op: "publish", namespace: "app", name: "cfg", content: { a: 9 } }] },
};
/** Who is let in meets a tenant that is not being restored. */
const lateRefusals: Record<string, number> = {
  getRestore: 404,
  putRestoreRows: 409,
  finishRestore: 409,
};
const queries: Record<string, string> = {
  watchTenant: "wait=0s&namespace=app",
  watchValues: "wait=0s",
  watchFlags: "wait=0s",
};

const h = new Harness({
  nodes: ["n1", "n2"],
  settings: { secretKeys: [{ id: "k1", key: new Uint8Array(32) }] },
});
/** Who calls, by name. */
const callers = new Map<string, { caller: Caller; token: string | null | undefined }>();
let limitedKeyId = "";

beforeAll(async () => {
  await h.tenant("acme");
  await h.tenant("other");
  const N = "/v1/tenants/acme/namespaces/app";
  await h.call("PUT", `${N}/configs/cfg`, { body: { content: { a: 1 } } });
  await h.call("POST", `${N}/configs/cfg/versions`, { body: { content: { a: 2 } } });
  await h.call("PUT", `${N}/configs/cfg/release`, {
    body: { rules: [], default: 1, message: "m" },
  });
  await h.call("PUT", "/v1/issuers/idp", { body: bodies["putIssuer"] });
  callers.set("nobody", { caller: { key: "none" }, token: null });
  callers.set("unknown root", { caller: { key: "garbage" }, token: "who-is-this-token" });
  callers.set("root", { caller: { key: "root" }, token: undefined });
  for (const tenant of tenants) {
    const id = tenant === "own" ? "acme" : "other";
    for (const kind of kinds)
      for (const limit of limits) {
        const { id: keyId, token } = await h.key(
          id,
          kind,
          limit === "none" ? {} : { namespaces: [limit === "inside" ? "app" : "web"] },
        );
        callers.set(`${kind} ${tenant} ${limit}`, { caller: { key: kind, tenant, limit }, token });
        if (tenant === "own" && limit === "inside") limitedKeyId = keyId;
      }
    const revoked = await h.key(id, "admin");
    await h.call("DELETE", `/v1/tenants/${id}/keys/${revoked.id}`);
    callers.set(`revoked ${tenant}`, { caller: { key: "revoked", tenant }, token: revoked.token });
    const expiresAt = new Date(Date.now() + 50).toISOString();
    const expired = await h.key(id, "admin", { expiresAt });
    callers.set(`expired ${tenant}`, { caller: { key: "expired", tenant }, token: expired.token });
  }
  // Anybody can make what looks like a key: form and checksum hold no secret.
  const forged = { kind: "admin", tenant: "acme", keyId: limitedKeyId } as const;
  callers.set("forged", {
    caller: { key: "revoked", tenant: "own" },
    token: makeToken(forged, new Uint8Array(32)),
  });
  const mistyped = `${callers.get("admin own none")?.token?.slice(0, -1)}~`;
  callers.set("mistyped", { caller: { key: "garbage" }, token: mistyped });
  await new Promise((resolve) => setTimeout(resolve, 60));
});
afterAll(() => h.close());

function pathOf(route: Route): string {
  const path = route.path
    .replace(":tenant", "acme")
    .replace(":namespace", "app")
    .replace(":node", "n2")
    .replace(":name", "cfg")
    .replace(":flag", "cfg")
    .replace(":version", "1")
    .replace(":key", limitedKeyId)
    .replace(":issuer", "idp")
    .replace(":part", "0")
    .replace(":code", "not-found");
  // Nothing is changed by a cell, so that the next one meets the same state.
  const query = [queries[route.id], route.change ? "dryRun=true" : undefined].filter(Boolean);
  return query.length === 0 ? path : `${path}?${query.join("&")}`;
}

function ask(route: Route, token: string | null | undefined) {
  const body = bodies[route.id];
  return h.call(route.method, pathOf(route), {
    ...(token !== undefined && { token }),
    ...(body !== undefined && { body }),
  });
}

describe("access", () => {
  test("the table has a row for every route, and for no other", () => {
    expect(routes.map((route) => route.id).sort()).toEqual(Object.keys(accessTable).sort());
  });

  test("a route without a row cannot be defined", () => {
    const unlisted = "toString" as keyof typeof accessTable;
    expect(() =>
      defineRoute({ method: "GET", path: "/x", id: unlisted, tag: "", summary: "", responses: {} }),
    ).toThrow("no row in the table of access");
  });

  test("a test of every route says what to send", () => {
    const bodied = routes.filter((route) => route.bodyRequired).map((route) => route.id);
    expect(bodied.filter((id) => !Object.hasOwn(bodies, id))).toEqual([]);
  });

  test.each(routes.map((route) => [route.id, route] as const))("%s", async (_id, route) => {
    const seen: string[] = [];
    const expected: string[] = [];
    for (const [name, { caller, token }] of callers) {
      const { status } = await ask(route, token);
      const isIn = status < 300 || (name === "root" && status === lateRefusals[route.id]);
      seen.push(`${name}: ${isIn ? "ok" : status}`);
      expected.push(`${name}: ${verdict(route.access, caller)}`);
    }
    expect(seen).toEqual(expected);
  });

  test("a limited key learns nothing of namespaces it does not cover, not even that there are none", async () => {
    const token = callers.get("read own outside")?.token as string;
    for (const namespace of ["app", "nothing-here"]) {
      const answer = await h.call("GET", `/v1/tenants/acme/namespaces/${namespace}/configs`, {
        token,
      });
      expect(answer.status).toBe(403);
    }
    const list = await h.call("GET", "/v1/tenants/acme/namespaces", { token });
    expect(list.body.items).toEqual([]);
  });

  test("a revoked key is refused at once", async () => {
    const { id, token } = await h.key("acme", "read");
    const path = "/v1/tenants/acme/namespaces/app/configs/cfg";
    expect((await h.call("GET", path, { token })).status).toBe(200);
    await h.call("DELETE", `/v1/tenants/acme/keys/${id}`);
    const refused = await h.call("GET", path, { token });
    expect(refused.status).toBe(401);
    expect(refused.body.code).toBe("unauthorized");
    expect(refused.headers.get("www-authenticate")).toContain("Bearer");
  });

  test("a key is refused from its expiry on", async () => {
    const expiresAt = new Date(Date.now() + 150).toISOString();
    const { token } = await h.key("acme", "read", { expiresAt });
    const path = "/v1/tenants/acme/namespaces/app/configs/cfg";
    expect((await h.call("GET", path, { token })).status).toBe(200);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect((await h.call("GET", path, { token })).status).toBe(401);
  });

  test("a key also comes as X-API-Key", async () => {
    const answer = await h.call("GET", "/v1/tenants/acme", {
      token: null,
      headers: { "x-api-key": callers.get("read own none")?.token as string },
    });
    expect(answer.status).toBe(200);
  });

  test("a mistyped, a strange and an overlong key are all the same 401", async () => {
    const good = callers.get("read own none")?.token as string;
    for (const token of [`${good.slice(0, -1)}?`, `${good}x`, "Basic", "x".repeat(10_000)]) {
      const answer = await h.call("GET", "/v1/tenants/acme", { token });
      expect([answer.status, answer.body.code]).toEqual([401, "unauthorized"]);
    }
    const basic = await h.call("GET", "/v1/tenants/acme", {
      token: null,
      headers: { authorization: "Basic dXNlcjpwYXNz" },
    });
    expect(basic.status).toBe(401);
  });

  test("only root learns whether a tenant exists", async () => {
    const root = await h.call("GET", "/v1/tenants/nobody/usage");
    expect([root.status, root.body.code]).toEqual([404, "not-found"]);
    const foreign = await h.call("GET", "/v1/tenants/nobody/usage", {
      token: callers.get("read own none")?.token as string,
    });
    expect(foreign.status).toBe(403);
    expect((await h.call("GET", "/v1/tenants/nobody/usage", { token: null })).status).toBe(401);
  });
});
