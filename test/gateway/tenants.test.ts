import { afterAll, describe, expect, test } from "vitest";
import { Harness } from "./harness.ts";

const h = new Harness();
afterAll(() => h.close());

describe("tenants", () => {
  test("creation gives a first admin key that works", async () => {
    const created = await h.call("POST", "/v1/tenants", {
      body: { id: "shop", description: "the shop", quotas: { configs: 5 } },
    });
    expect(created.status).toBe(201);
    expect(created.body).toMatchObject({ id: "shop", description: "the shop", replicas: ["n1"] });
    expect(created.headers.get("location")).toBe("/v1/tenants/shop");
    const { token, kind } = created.body.key;
    expect(kind).toBe("admin");
    const usage = await h.call("GET", "/v1/tenants/shop/usage", { token });
    expect(usage.body.quotas).toMatchObject({ configs: 5, keys: 1_000 });
  });

  test("a name is given once", async () => {
    const again = await h.call("POST", "/v1/tenants", { body: { id: "shop" } });
    expect([again.status, again.body.code]).toEqual([409, "already-exists"]);
  });

  test.each([
    [{ id: "Shop" }, "invalid-name", "/id"],
    [{ id: "_system" }, "invalid-name", "/id"],
    [{ id: "x".repeat(64) }, "invalid-name", "/id"],
    [{}, "invalid", "/id"],
    [{ id: "a", replicas: 2 }, "invalid", "/replicas"],
    [{ id: "a", replicas: 3 }, "invalid", "/replicas"],
    [{ id: "a", replicas: 4 }, "invalid", "/replicas"],
    [{ id: "a", replicas: "3" }, "invalid", "/replicas"],
    [{ id: "a", quotas: { configs: -1 } }, "invalid", "/quotas/configs"],
    [{ id: "a", quotas: { unknown: 1 } }, "invalid", "/quotas/unknown"],
    [{ id: "a", unknown: 1 }, "invalid", "/unknown"],
  ])("%j is refused: %s at %s", async (body, code, pointer) => {
    const answer = await h.call("POST", "/v1/tenants", { body });
    expect([answer.status, answer.body.code]).toEqual([400, code]);
    expect(answer.body.errors[0].pointer).toBe(pointer);
  });

  test("many are created at once, all or none, each with a key that works", async () => {
    const ids = Array.from({ length: 20 }, (_, at) => `many-${at}`);
    const body = { tenants: ids.map((id) => ({ id })) };
    const headers = { "idempotency-key": "many" };
    const made = await h.call("POST", "/v1/tenants/batch", { body, headers });
    expect([made.status, made.body.items.map(({ id }: { id: string }) => id)]).toEqual([201, ids]);
    const { token } = made.body.items[7].key;
    const put = await h.call("PUT", "/v1/tenants/many-7/namespaces/a/configs/b", {
      token,
      body: { format: "text", content: "x" },
    });
    expect(put.status).toBe(201);
    const again = await h.call("POST", "/v1/tenants/batch", { body, headers });
    expect([again.headers.get("idempotent-replay"), again.body]).toEqual(["true", made.body]);
    const clash = await h.call("POST", "/v1/tenants/batch", {
      body: { tenants: [{ id: "not-yet" }, { id: "many-3" }] },
    });
    expect([clash.status, clash.body.code]).toEqual([409, "already-exists"]);
    const wrong = await h.call("POST", "/v1/tenants/batch", {
      body: { tenants: [{ id: "not-yet" }, { id: "Not" }] },
    });
    expect([wrong.status, wrong.body.errors[0].pointer]).toEqual([400, "/tenants/1/id"]);
    expect((await h.call("GET", "/v1/tenants/not-yet")).status).toBe(404);
  });

  test("an admin changes the description, only root the quotas", async () => {
    const token = await h.tenant("own");
    const described = await h.call("PATCH", "/v1/tenants/own", {
      token,
      body: { description: "mine" },
    });
    expect([described.status, described.body.description]).toEqual([200, "mine"]);
    const quotas = { quotas: { configs: 1_000_000 } };
    expect((await h.call("PATCH", "/v1/tenants/own", { token, body: quotas })).status).toBe(403);
    const raised = await h.call("PATCH", "/v1/tenants/own", { body: quotas });
    expect(raised.body).toMatchObject({ description: "mine", quotas: { configs: 1_000_000 } });
  });

  test("deletion is soft, undelete takes it back, purge is final", async () => {
    const token = await h.tenant("gone");
    expect((await h.call("DELETE", "/v1/tenants/gone", { token })).status).toBe(403);
    expect((await h.call("DELETE", "/v1/tenants/gone")).body.deletedAt).not.toBeNull();
    const refused = await h.call("GET", "/v1/tenants/gone/usage", { token });
    expect([refused.status, refused.body.code]).toEqual([410, "tenant-deleted"]);
    expect((await h.call("GET", "/v1/tenants/gone")).body.deletedAt).not.toBeNull();
    const deleted = await h.call("GET", "/v1/tenants?deleted=true");
    expect(deleted.body.items.map((item: { id: string }) => item.id)).toEqual(["gone"]);
    expect((await h.call("POST", "/v1/tenants/gone/undelete")).body.deletedAt).toBeNull();
    expect((await h.call("GET", "/v1/tenants/gone/usage", { token })).status).toBe(200);
    expect((await h.call("DELETE", "/v1/tenants/gone?purge=true")).status).toBe(200);
    expect((await h.call("GET", "/v1/tenants/gone")).status).toBe(404);
    expect((await h.call("GET", "/v1/tenants/gone/usage", { token })).status).toBe(401);
  });

  test("the list comes in pages", async () => {
    for (let i = 0; i < 5; i++) await h.tenant(`page-${i}`);
    const ids: string[] = [];
    let cursor = "";
    for (;;) {
      const page = await h.call("GET", `/v1/tenants?limit=2${cursor}`);
      ids.push(...page.body.items.map((item: { id: string }) => item.id));
      if (page.body.next === undefined) break;
      cursor = `&cursor=${page.body.next}`;
    }
    expect(ids).toEqual([...new Set(ids)].sort());
    expect(ids.filter((id) => id.startsWith("page-"))).toHaveLength(5);
  });
});

describe("keys", () => {
  test("are listed without secrets and revoked", async () => {
    const admin = await h.tenant("keys");
    const created = await h.call("POST", "/v1/tenants/keys/keys", {
      token: admin,
      body: { kind: "write", namespaces: ["app"], description: "ci" },
    });
    expect(created.body.token).toMatch(/^cfx_write_keys_/);
    const list = await h.call("GET", "/v1/tenants/keys/keys", { token: admin });
    expect(list.body.items).toHaveLength(2);
    expect(list.text).not.toContain("hash");
    expect(list.text).not.toContain(created.body.token);
    const path = `/v1/tenants/keys/keys/${created.body.id}`;
    expect((await h.call("GET", path, { token: admin })).body.namespaces).toEqual(["app"]);
    expect((await h.call("DELETE", path, { token: admin })).body).toEqual({ id: created.body.id });
    expect((await h.call("DELETE", path, { token: admin })).status).toBe(404);
  });

  test.each([
    [{ kind: "root" }, "/kind"],
    [{ kind: "read", expiresAt: "tomorrow" }, "/expiresAt"],
    [{ kind: "read", expiresAt: "2020-01-01T00:00:00Z" }, "/expiresAt"],
    [{ kind: "read", namespaces: [] }, "/namespaces"],
    [{ kind: "read", namespaces: ["NO"] }, "/namespaces/0"],
  ])("%j is refused", async (body, pointer) => {
    const answer = await h.call("POST", "/v1/tenants/keys/keys", { body });
    expect(answer.status).toBe(400);
    expect(answer.body.errors[0].pointer).toBe(pointer);
  });

  test("a limited admin makes and sees keys of its namespaces only", async () => {
    await h.tenant("limits");
    const { token } = await h.key("limits", "admin", { namespaces: ["app"] });
    const make = (body: object) => h.call("POST", "/v1/tenants/limits/keys", { token, body });
    expect((await make({ kind: "admin" })).status).toBe(403);
    expect((await make({ kind: "read", namespaces: ["app", "web"] })).status).toBe(403);
    expect((await make({ kind: "read", namespaces: ["app"] })).status).toBe(201);
    const list = await h.call("GET", "/v1/tenants/limits/keys", { token });
    expect(list.body.items).toHaveLength(2);
  });
});

describe("cluster", () => {
  test("status, members and tenants", async () => {
    const status = await h.call("GET", "/v1/cluster/status");
    expect(status.body).toMatchObject({ node: "n1", ready: true });
    const members = await h.call("GET", "/v1/cluster/members");
    expect(members.body.items).toMatchObject([{ node: "n1", self: true, alive: true }]);
    const tenants = await h.call("GET", "/v1/cluster/tenants");
    expect(tenants.body.items[0]).toMatchObject({ state: "ok" });
    expect(tenants.body.items[0].replicas).toEqual([
      { node: "n1", id: 1, state: "voter", alive: true },
    ]);
    expect((await h.call("GET", "/v1/cluster/tenants?state=leaderless")).body.items).toEqual([]);
    expect((await h.call("GET", "/v1/cluster/tenants?state=sad")).status).toBe(400);
  });

  test("health needs no key", async () => {
    for (const path of ["/livez", "/readyz", "/metrics", "/openapi.json"])
      expect((await h.call("GET", path, { token: null })).status).toBe(200);
    h.cluster.service("n1").ready = false;
    expect((await h.call("GET", "/readyz", { token: null })).status).toBe(503);
    h.cluster.service("n1").ready = true;
    const metrics = await h.call("GET", "/metrics", { token: null });
    expect(metrics.text).toMatch(/^conflux_ready 1$/m);
    expect(metrics.text).toMatch(/^conflux_node_alive\{node="n1"\} 1$/m);
    expect(metrics.text).toMatch(/^process_resident_memory_bytes [1-9]\d+$/m);
    // The one that was told 503, and three of the four others: this request itself ends after it was counted.
    const ended =
      /^conflux_http_request_duration_seconds_count\{route="(\w+)",status="(\dxx)"\} (\d+)$/gm;
    const counts = [...metrics.text.matchAll(ended)].map(([, ...found]) => found.join(" "));
    expect(counts).toEqual(
      expect.arrayContaining(["livez 2xx 1", "readyz 5xx 1", "metrics 2xx 1"]),
    );
  });

  test("the directory's own group is shown to root", async () => {
    const group = await h.call("GET", "/v1/tenants/_system/group");
    expect(group.body).toMatchObject({ leader: "n1", group: 1 });
    const put = await h.call("PUT", "/v1/tenants/_system/namespaces/a/configs/b", { body: {} });
    expect(put.status).toBe(400);
    const moved = await h.call("POST", "/v1/tenants/shop/group/transfer", { body: { to: "n1" } });
    expect(moved.status).toBe(200);
    const nowhere = await h.call("POST", "/v1/tenants/shop/group/transfer", { body: { to: "n9" } });
    expect(nowhere.status).toBe(400);
  });
});
