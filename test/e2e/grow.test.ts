/**
 * A cluster of real processes grows from one node to five and goes back to three, none of them the first, while clients
 * write and watch: nothing acknowledged is lost, and watchers see every revision once.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { ask, eventually, Follower, inParallel, persist } from "./api.ts";

const TENANTS = 12;

type Cluster = Awaited<ReturnType<typeof startCluster>>;

interface Member {
  readonly node: string;
  readonly system: string | null;
}

describe("from one node to five and back to three", () => {
  let cluster: Cluster;
  const urls: string[] = [];

  beforeAll(async () => {
    cluster = await startCluster({ nodes: 5, initial: 1, runtimes: ["bun"] });
    urls.push(cluster.nodes[0]?.url as string);
  });

  afterAll(async () => {
    await cluster?.stop();
  });

  const members = async (): Promise<readonly Member[]> =>
    (await persist(urls, "/v1/cluster/members", { token: cluster.rootToken })).body.items;
  const voters = async (): Promise<string[]> =>
    (await members()).filter(({ system }) => system === "voter").map(({ node }) => node);
  const nodesOf = async (tenant: string): Promise<string[]> => {
    const group = await persist(urls, `/v1/tenants/${tenant}/group`, { token: cluster.rootToken });
    return group.body.replicas.map((replica: { node: string }) => replica.node).sort();
  };

  test("no acknowledged write is lost, no watcher misses one", async () => {
    const token = cluster.rootToken;
    const tenants = Array.from({ length: TENANTS }, (_, index) => `t${index}`);
    for (const tenant of tenants) {
      const made = await persist(urls, "/v1/tenants", { token, body: { id: tenant } });
      expect(made.status, JSON.stringify(made.body)).toBe(201);
      expect(made.body.replicas).toEqual(["n1"]);
      const config = await persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/c`, {
        method: "PUT",
        token,
        body: { format: "text", content: "start" },
      });
      expect(config.status, JSON.stringify(config.body)).toBe(201);
    }
    const followers = tenants.map(
      (tenant, index) => new Follower(urls, `/v1/tenants/${tenant}/watch`, token, index),
    );
    // Writers go on all the time, each repeating what it was not answered.
    const written = new Map<string, { text: string; revision: number; version: number }[]>();
    let writing = true;
    const writers = tenants.map(async (tenant) => {
      const done: { text: string; revision: number; version: number }[] = [];
      written.set(tenant, done);
      for (let n = 0; writing; n++) {
        const text = `${tenant}-${n}`;
        const answer = await persist(
          urls,
          `/v1/tenants/${tenant}/namespaces/app/configs/c/publish`,
          {
            token,
            body: { content: text },
            headers: { "idempotency-key": text },
          },
        );
        expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
        const revision = Number(answer.headers.get("conflux-revision"));
        done.push({ text, revision, version: answer.body.version.version ?? answer.body.version });
        await sleep(40);
      }
    });

    // --- grow
    for (const node of cluster.nodes.slice(1)) {
      node.start();
      await node.ready();
      urls.push(node.url);
    }
    await eventually("five voters", async () => (await voters()).length === 5);
    await inParallel(tenants, 4, async (tenant) => {
      const resized = await persist(urls, `/v1/tenants/${tenant}`, {
        method: "PATCH",
        token,
        body: { replicas: 3 },
      });
      expect(resized.status, JSON.stringify(resized.body)).toBe(200);
    });
    for (const tenant of tenants)
      await eventually("three replicas", async () => (await nodesOf(tenant)).length === 3);

    // --- shrink: the first nodes go, and nothing of the cluster was only there
    for (const name of ["n1", "n2"]) {
      const left = await persist(urls, "/v1/cluster/leave", { token, body: { node: name } });
      expect(left.status, JSON.stringify(left.body)).toBe(200);
      await eventually(`${name} has left`, async () => {
        const all = await members();
        return (all.find(({ node }) => node === name)?.system ?? null) === null;
      });
      const node = cluster.nodes.find((one) => one.name === name);
      urls.splice(urls.indexOf(node?.url as string), 1);
      await node?.stop();
    }
    await eventually("three voters", async () => (await voters()).sort().join() === "n3,n4,n5");
    const refused = await ask(`${urls[0]}/v1/cluster/leave`, { token, body: { node: "n3" } });
    expect(refused.status).toBe(409);
    expect(refused.body.detail).toContain("more replicas than nodes");
    await sleep(500);
    writing = false;
    await Promise.all(writers);

    // --- judge
    let total = 0;
    for (const [index, tenant] of tenants.entries()) {
      const done = written.get(tenant) ?? [];
      total += done.length;
      expect(await nodesOf(tenant)).toEqual(["n3", "n4", "n5"]);
      const last = done.at(-1);
      const follower = followers[index] as Follower;
      await eventually(
        "it was told the last write",
        () => Number(follower.cursor?.split("-")[1]) >= (last?.revision ?? 0),
      );
      const revisions = follower.commits.map(({ data }) => data.revision as number);
      const first = revisions[0] ?? 0;
      expect(revisions).toEqual(revisions.map((_, at) => first + at));
      const kept = await persist(
        urls,
        `/v1/tenants/${tenant}/namespaces/app/configs/c/versions?limit=1000`,
        {
          token,
        },
      );
      const versions = new Set(kept.body.items.map((item: { version: number }) => item.version));
      for (const { version, text } of done) expect(versions.has(version), text).toBe(true);
      expect(new Set(done.map(({ version }) => version)).size).toBe(done.length);
    }
    expect(total).toBeGreaterThan(TENANTS * 20);
    await Promise.all(followers.map((follower) => follower.stop()));
  }, 180_000);
});
