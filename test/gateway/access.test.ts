/**
 * The matrix: every route × every kind of key × own tenant, other tenant, limited to this and to another namespace.
 * The table below is written by hand, so that a slip in the route table shows.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { routes } from "../../src/gateway/gateway.ts";
import type { Route } from "../../src/gateway/route.ts";
import { Harness } from "./harness.ts";

const kinds = ["admin", "write", "read", "client"] as const;
type Kind = (typeof kinds)[number];

/** a admin, w write, r read, c client, - root only, * nobody need show a key; ! not for keys limited to namespaces. */
const allowed: Record<string, string> = {
  livez: "*",
  readyz: "*",
  metrics: "*",
  openapi: "*",
  getProblem: "*",
  getClusterStatus: "-",
  listMembers: "-",
  listClusterTenants: "-",
  createTenant: "-",
  listTenants: "-",
  getTenant: "awr",
  updateTenant: "a!",
  deleteTenant: "-",
  undeleteTenant: "-",
  createKey: "a",
  listKeys: "a",
  getKey: "a",
  deleteKey: "a",
  listNamespaces: "awr",
  getNamespace: "awr",
  putNamespace: "a",
  getUsage: "awr!",
  listAudit: "a!",
  getGroup: "awr!",
  transferGroup: "-",
  putConfig: "aw",
  listConfigs: "awr",
  getConfig: "awr",
  deleteConfig: "aw",
  undeleteConfig: "aw",
  createVersion: "aw",
  listVersions: "awr",
  getVersion: "awr",
  deleteVersions: "aw",
  diffVersions: "awr",
  putRelease: "aw",
  getRelease: "awr",
  publish: "aw",
  rollback: "aw",
  listReleases: "awr",
  runTransaction: "aw",
  getValue: "awrc",
  getValues: "awrc",
  watchTenant: "awr",
  watchValues: "awrc",
};

/** A request of each route that succeeds when it is let through. */
const bodies: Record<string, unknown> = {
  createTenant: { id: "new" },
  updateTenant: { description: "d" },
  createKey: { kind: "read", namespaces: ["app"] },
  putNamespace: { protected: false },
  transferGroup: { to: "n1" },
  putConfig: { description: "d" },
  createVersion: { content: { a: 9 } },
  deleteVersions: { versions: [2] },
  putRelease: { rules: [], default: 1 },
  publish: { content: { a: 9 } },
  rollback: {},
  runTransaction: { then: [{ op: "publish", namespace: "app", name: "cfg", content: { a: 9 } }] },
};
const queries: Record<string, string> = {
  watchTenant: "wait=0s&namespace=app",
  watchValues: "wait=0s",
};

const h = new Harness();
const tokens = new Map<string, string>();
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
  for (const kind of kinds) {
    tokens.set(`${kind} own`, (await h.key("acme", kind)).token);
    tokens.set(`${kind} foreign`, (await h.key("other", kind)).token);
    const inside = await h.key("acme", kind, { namespaces: ["app"] });
    tokens.set(`${kind} inside`, inside.token);
    tokens.set(`${kind} outside`, (await h.key("acme", kind, { namespaces: ["web"] })).token);
    limitedKeyId = inside.id;
  }
});
afterAll(() => h.close());

function pathOf(route: Route): string {
  const path = route.path
    .replace(":tenant", "acme")
    .replace(":namespace", "app")
    .replace(":name", "cfg")
    .replace(":version", "1")
    .replace(":key", limitedKeyId)
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

function rights(route: Route): { kinds: string; anyone: boolean; limited: boolean } {
  const cell = allowed[route.id] ?? "";
  return { kinds: cell, anyone: cell === "*", limited: !cell.endsWith("!") };
}

describe("access", () => {
  test("the table names every route, and no other", () => {
    expect(routes.map((route) => route.id).sort()).toEqual(Object.keys(allowed).sort());
  });

  test.each(routes.map((route) => [route.id, route] as const))("%s", async (_id, route) => {
    const { kinds: letters, anyone, limited } = rights(route);
    const seen: string[] = [];
    const expected: string[] = [];
    const cell = async (
      name: string,
      token: string | null | undefined,
      want: number | "ok",
    ): Promise<void> => {
      const { status } = await ask(route, token);
      seen.push(`${name}: ${status < 300 ? "ok" : status}`);
      expected.push(`${name}: ${want}`);
    };
    await cell("nobody", null, anyone ? "ok" : 401);
    await cell("unknown root", "who-is-this-token", anyone ? "ok" : 401);
    await cell("root", undefined, "ok");
    for (const kind of kinds) {
      const may = anyone || letters.includes(letterOf(kind));
      const token = (which: string): string => tokens.get(`${kind} ${which}`) as string;
      const hasNamespace = route.scope === "namespace" || route.id === "watchTenant";
      await cell(`${kind} own`, token("own"), may ? "ok" : 403);
      await cell(`${kind} foreign`, token("foreign"), anyone ? "ok" : 403);
      await cell(`${kind} inside`, token("inside"), may && (anyone || limited) ? "ok" : 403);
      // What names no namespace is open to any limited key; then its answer is limited instead.
      const outside =
        anyone ||
        (may && limited && !hasNamespace && !["createKey", "runTransaction"].includes(route.id));
      if (["getKey", "deleteKey"].includes(route.id) && may)
        await cell(`${kind} outside`, token("outside"), route.id === "getKey" ? 404 : 403);
      else await cell(`${kind} outside`, token("outside"), outside ? "ok" : 403);
    }
    expect(seen).toEqual(expected);
  });

  test("a limited key learns nothing of namespaces it does not cover, not even that there are none", async () => {
    const token = tokens.get("read outside") as string;
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
      headers: { "x-api-key": tokens.get("read own") as string },
    });
    expect(answer.status).toBe(200);
  });

  test("a mistyped, a strange and an overlong key are all the same 401", async () => {
    const good = tokens.get("read own") as string;
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
      token: tokens.get("read own") as string,
    });
    expect(foreign.status).toBe(403);
    expect((await h.call("GET", "/v1/tenants/nobody/usage", { token: null })).status).toBe(401);
  });
});

function letterOf(kind: Kind): string {
  return kind[0] as string;
}
