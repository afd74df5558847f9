/**
 * Two of four nodes are gone for good: the offline tool recovers from those that are left, what they had is served, a
 * node that comes back with the old history ends by itself, and with another node there are three replicas again.
 */
import { existsSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { ask, conflux, eventually, Follower, hasItAll, persist, type Answer } from "./api.ts";

type Cluster = Awaited<ReturnType<typeof startCluster>>;

interface Planned {
  readonly tenant: string;
  readonly verdict: string;
  readonly survivor: { readonly node: string };
}

const TENANTS = ["t0", "t1", "t2", "t3", "t4", "t5"];

describe("two of four nodes are gone for good", () => {
  let cluster: Cluster;

  beforeAll(async () => {
    cluster = await startCluster({ nodes: 4, runtimes: ["bun"] });
  });

  afterAll(async () => {
    await cluster?.stop();
  });

  test("what the others had is recovered, served, and grows to three replicas again", async () => {
    const [n1, n2, n3, n4] = cluster.nodes as [
      (typeof cluster.nodes)[0],
      (typeof cluster.nodes)[0],
      (typeof cluster.nodes)[0],
      (typeof cluster.nodes)[0],
    ];
    const token = cluster.rootToken;
    const all = cluster.nodes.map(({ url }) => url);
    const left = [n1.url, n4.url];
    const publish = (urls: readonly string[], tenant: string, text: string): Promise<Answer> =>
      persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/c/publish`, {
        token,
        body: { content: text },
        headers: { "idempotency-key": text },
      });
    const valueOf = async (urls: readonly string[], tenant: string): Promise<string> =>
      (await persist(urls, `/v1/tenants/${tenant}/namespaces/app/values/c`, { token })).body;
    for (const tenant of [...TENANTS, "never-used"])
      await persist(all, "/v1/tenants", { token, body: { id: tenant, replicas: 3 } });
    for (const tenant of TENANTS) {
      const made = await persist(all, `/v1/tenants/${tenant}/namespaces/app/configs/c`, {
        method: "PUT",
        token,
        body: { format: "text", content: "start" },
      });
      expect(made.status, JSON.stringify(made.body)).toBe(201);
      await publish(all, tenant, `${tenant}-kept`);
      // On all of them: what the nodes that are left do not have would be lost, and rightly so.
      await eventually(`${tenant} is everywhere`, () => hasItAll(n1.url, tenant, token));
    }
    const follower = new Follower(left, "/v1/tenants/t0/watch", token, 0);
    await eventually("a cursor", () => follower.cursor !== null);
    await follower.stop();
    const cursor = follower.cursor as string;

    // --- the catastrophe
    await Promise.all(cluster.nodes.map((node) => node.kill()));
    renameSync(n2.dataDir, `${n2.dataDir}.old`);
    rmSync(n3.dataDir, { recursive: true });

    // --- refusals change nothing
    const here = ["cluster", "recover", n1.dataDir, n4.dataDir];
    const listed = await conflux(here);
    expect(listed.code, listed.err).toBe(0);
    expect(listed.out).toContain("_system");
    const open = await conflux([...here, "--gone", "n2"]);
    expect(open.code).toBe(1);
    expect(open.err).toContain("What became of n3?");
    const planned = await conflux([...here, "--gone", "n2,n3"]);
    expect(planned.code, planned.err).toBe(0);
    expect(planned.out).toMatch(/: goes on from n[14] at revision 3\./);
    const hash = /--apply ([0-9a-f]{12})/.exec(planned.out)?.[1] as string;
    const { plan } = JSON.parse((await conflux([...here, "--gone", "n2,n3", "-o", "json"])).out);
    const recovered = (plan.tenants as Planned[])
      .filter(({ verdict }) => verdict === "recover")
      .map(({ tenant }) => tenant);
    // Of four nodes three have each tenant, so some keep two of them and some one.
    expect(recovered.length).toBeGreaterThan(0);
    expect(recovered.length).toBeLessThan(plan.tenants.length);
    const other = await conflux([...here, "--gone", "n2,n3", "--apply", "0"]);
    expect(other.code).toBe(1);
    expect(other.err).toContain(hash);

    // --- the recovery; once begun, no node starts on it
    const marker = path.join(n1.dataDir, "recovery.json");
    writeFileSync(marker, "{}");
    n1.start();
    await eventually("it ends", () => !n1.running);
    expect(n1.lines.join("\n")).toContain("run conflux cluster recover again");
    rmSync(marker);
    const done = await conflux([...here, "--gone", "n2,n3", "--apply", hash]);
    expect(done.code, done.err).toBe(0);
    expect(done.out).toContain("Done.");
    expect(existsSync(marker)).toBe(false);

    // --- it serves
    for (const node of [n1, n4]) node.start();
    await Promise.all([n1.ready(), n4.ready()]);
    for (const tenant of TENANTS) expect(await valueOf(left, tenant)).toBe(`${tenant}-kept`);
    for (const tenant of TENANTS)
      expect((await publish(left, tenant, `${tenant}-after`)).status).toBeLessThan(300);
    const used = await persist(left, "/v1/tenants/never-used/namespaces/app/configs", { token });
    expect(used.status).toBe(200);
    for (const [tenant, action] of [
      [recovered.find((name) => name !== "never-used") as string, "tenant.recover"],
      ["_system", "directory.recover"],
    ]) {
      const audit = await persist(left, `/v1/tenants/${tenant}/audit?limit=1000`, { token });
      const actions = audit.body.items.map((item: { action: string }) => item.action);
      expect(actions, tenant).toContain(action);
    }
    // A cursor of before leads to everything anew where history is another one, and goes on where it is not.
    const watch = `/v1/tenants/t0/watch?since=${cursor}&wait=1s`;
    const [first] = (await persist(left, watch, { token })).body.frames;
    if (recovered.includes("t0")) expect(first.data.reason).toBe("cursor");
    else expect(first.event).toBe("commit");
    const pending = await persist(left, "/v1/cluster/tenants?state=under-replicated", { token });
    const waiting = pending.body.items.map(({ tenant }: { tenant: string }) => tenant);
    for (const tenant of recovered) expect(waiting).toContain(tenant);

    // --- one of the dead comes back with the old history
    renameSync(`${n2.dataDir}.old`, n2.dataDir);
    n2.start();
    await eventually("n2 ends", () => !n2.running);
    expect(n2.lines.join("\n")).toContain("recovered without this node");
    rmSync(n2.dataDir, { recursive: true });

    // --- three again
    n2.start();
    await n2.ready();
    for (const tenant of ["_system", ...TENANTS, "never-used"])
      await eventually(`three replicas of ${tenant}`, async () => {
        const { body } = await persist(left, `/v1/tenants/${tenant}/group`, { token });
        return (
          body.replicas.filter(({ role }: { role: string }) => role !== "learner").length === 3
        );
      });
    await eventually("nothing is under-replicated", async () => {
      const { body } = await ask(`${n4.url}/v1/cluster/tenants?state=under-replicated`, { token });
      return body.items.length === 0;
    });
    await n1.kill();
    for (const tenant of TENANTS) {
      expect(await valueOf([n2.url, n4.url], tenant)).toBe(`${tenant}-after`);
      expect((await publish([n2.url, n4.url], tenant, `${tenant}-3`)).status).toBeLessThan(300);
    }
  }, 120_000);
});
