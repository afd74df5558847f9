/**
 * A gateway-only node: holds nothing of any tenant, answers everything by the others, and its watchers see every revision
 * once, whichever of the others dies.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { ask, eventually, Follower, persist } from "./api.ts";

type Cluster = Awaited<ReturnType<typeof startCluster>>;

const TENANTS = ["a", "b", "c"];
const WATCHERS_EACH = 8;

describe("three nodes and a gateway", () => {
  let cluster: Cluster;

  beforeAll(async () => {
    cluster = await startCluster({
      nodes: 4,
      initial: 3,
      runtimes: ["bun"],
      nodeEnv: (node) => (node === "n4" ? { CONFLUX_ROLE: "gateway" } : {}),
    });
  });

  afterAll(async () => {
    await cluster?.stop();
  });

  test("requests and watches through the gateway, while each of the others dies once", async () => {
    const token = cluster.rootToken;
    const gateway = cluster.nodes[3] as (typeof cluster.nodes)[0];
    const others = cluster.nodes.slice(0, 3);
    gateway.start();
    await gateway.ready();
    const urls = [gateway.url];
    const member = (await persist(urls, "/v1/cluster/members", { token })).body.items.find(
      ({ node }: { node: string }) => node === "n4",
    );
    expect(member).toMatchObject({ role: "gateway", system: "learner", phase: "active" });

    // --- never placed on
    const tooMany = await ask(`${gateway.url}/v1/tenants`, {
      token,
      body: { id: "wide", replicas: 4 },
    });
    expect(tooMany.status).toBe(400);
    for (const tenant of TENANTS) {
      const made = await persist(urls, "/v1/tenants", { token, body: { id: tenant } });
      expect(made.status, JSON.stringify(made.body)).toBe(201);
      expect(made.body.replicas.toSorted()).toEqual(["n1", "n2", "n3"]);
      const config = await persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/c`, {
        method: "PUT",
        token,
        body: { format: "text", content: "start" },
      });
      expect(config.status, JSON.stringify(config.body)).toBe(201);
    }
    const followers = TENANTS.map((tenant) =>
      Array.from(
        { length: WATCHERS_EACH },
        () => new Follower(urls, `/v1/tenants/${tenant}/watch`, token, 0),
      ),
    );
    for (const follower of followers.flat())
      await eventually("a cursor", () => follower.cursor !== null);

    // --- each dies once, under writes
    let writing = true;
    const last = new Map<string, number>();
    const writers = TENANTS.map(async (tenant) => {
      for (let n = 0; writing; n++) {
        const path = `/v1/tenants/${tenant}/namespaces/app/configs/c/publish`;
        const text = `${tenant}-${n}`;
        const headers = { "idempotency-key": text };
        const answer = await persist(urls, path, { token, body: { content: text }, headers });
        expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
        last.set(tenant, Number(answer.headers.get("conflux-revision")));
        await sleep(20);
      }
    });
    for (const node of others) {
      await node.kill();
      // Served again without it.
      for (const tenant of TENANTS) {
        const before = last.get(tenant) ?? 0;
        await eventually("writes go on", () => (last.get(tenant) ?? 0) > before + 5);
      }
      await node.restart();
    }
    writing = false;
    await Promise.all(writers);

    // --- judge
    for (const [at, tenant] of TENANTS.entries()) {
      const path = `/v1/tenants/${tenant}/namespaces/app/values/c`;
      const newest = await persist(urls, path, { token });
      expect(Number(newest.headers.get("conflux-revision"))).toBe(last.get(tenant));
      for (const follower of followers[at] as Follower[]) {
        await eventually(
          "it was told the last write",
          () => Number(follower.cursor?.split("-")[1]) >= (last.get(tenant) ?? 0),
        );
        const revisions = follower.commits.map(({ data }) => data.revision as number);
        const first = revisions[0] as number;
        expect(revisions).toEqual(revisions.map((_, n) => first + n));
        // A death behind the gateway is none of the client's business.
        expect(follower.resumes).toBe(0);
        expect(follower.syncs).toHaveLength(1);
      }
    }

    // --- and what it costs: nothing of a tenant there, one upstream for all who watch the same
    const gauge = async (url: string, name: string): Promise<number> => {
      const text = (await ask(`${url}/metrics`)).body as string;
      return Number(new RegExp(`^${name}(?:\\{.*\\})? (\\d+)$`, "m").exec(text)?.[1]);
    };
    expect(await gauge(gateway.url, "conflux_replicas_warm")).toBe(1);
    expect(await gauge(gateway.url, "conflux_watchers")).toBe(TENANTS.length * WATCHERS_EACH);
    let upstream = 0;
    for (const { url } of others) upstream += await gauge(url, "conflux_watchers");
    expect(upstream).toBeLessThanOrEqual(TENANTS.length);
    await Promise.all(followers.flat().map((follower) => follower.stop()));
  }, 120_000);
});
