/**
 * Three nodes in network namespaces of their own. A node's link is cut, in both directions and in each alone, and made
 * slow: who is left goes on, what was acknowledged is kept, watchers miss nothing, and the cluster says who was lost.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { ensureNatsServer, startNatsServer } from "../../infra/nats_server.mjs";
import { ask, eventually, Follower, persist, type Answer } from "./api.ts";
import { Networks, whyNoNamespaces } from "./namespaces.ts";

type Cluster = Awaited<ReturnType<typeof startCluster>>;

const TENANTS = ["a", "b", "c", "d", "e", "f"];
const obstacle = whyNoNamespaces();
if (obstacle !== null)
  process.stderr.write(
    `SKIPPED, NOTHING OF IT WAS CHECKED: partitions by namespaces: ${obstacle}\n`,
  );

// Skipped where the machine has no namespaces for us: Linux and root are needed, and said so above.
describe.skipIf(obstacle !== null)("a node behind a broken link", () => {
  let networks: Networks;
  let cluster: Cluster;
  let nats: Awaited<ReturnType<typeof startNatsServer>>;
  const urls: string[] = [];

  beforeAll(async () => {
    await ensureNatsServer();
    networks = new Networks();
    nats = await startNatsServer({ host: networks.host });
    cluster = await startCluster({
      nodes: 3,
      runtimes: ["bun"],
      natsUrl: nats.url,
      place: (node) => networks.add(node),
    });
    urls.push(...cluster.nodes.map(({ url }) => url));
  });

  afterAll(async () => {
    await cluster?.stop();
    await nats?.stop();
    networks?.close();
  });

  test("costs the others a moment, and nobody an acknowledged write", async () => {
    const token = cluster.rootToken;
    for (const tenant of TENANTS) {
      await persist(urls, "/v1/tenants", { token, body: { id: tenant } });
      const made = await persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/c`, {
        method: "PUT",
        token,
        body: { format: "text", content: "start" },
      });
      expect(made.status, JSON.stringify(made.body)).toBe(201);
    }
    const followers = TENANTS.map(
      (tenant, at) => new Follower(urls, `/v1/tenants/${tenant}/watch`, token, at),
    );
    for (const follower of followers) await eventually("a cursor", () => follower.cursor !== null);

    const written = new Map(TENANTS.map((tenant) => [tenant, [] as [number, number][]]));
    let isWriting = true;
    const writers = TENANTS.map(async (tenant, first) => {
      // Stays with a node for as long as that answers.
      let at = first;
      for (let n = 0; isWriting; n++) {
        const text = `${tenant}-${n}`;
        const path = `/v1/tenants/${tenant}/namespaces/app/configs/c/publish`;
        const headers = { "idempotency-key": text };
        const send = (): Promise<Answer | null> =>
          ask(`${urls[at % urls.length]}${path}`, {
            token,
            headers,
            body: { content: text },
            timeoutMs: 3_000,
          }).catch(() => null);
        let answer = await send();
        while (answer === null || [429, 503, 504].includes(answer.status)) {
          at += 1;
          await sleep(50);
          answer = await send();
        }
        expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
        const revision = Number(answer.headers.get("conflux-revision"));
        written.get(tenant)?.push([revision, answer.body.version.version ?? answer.body.version]);
        await sleep(20);
      }
    });
    const leaderOf = async (tenant: string, at: readonly string[]): Promise<string | null> =>
      (await persist(at, `/v1/tenants/${tenant}/group`, { token, timeoutMs: 2_000 })).body.leader;
    /** Every tenant is written to that many times from now on. */
    const goesOn = async (times: number): Promise<void> => {
      for (const tenant of TENANTS) {
        const before = written.get(tenant)?.length ?? 0;
        await eventually(
          `writes to ${tenant}`,
          () => (written.get(tenant)?.length ?? 0) >= before + times,
        );
      }
    };
    const absencesOf = async (name: string, at: readonly string[]) => {
      const { body } = await persist(at, "/v1/cluster/status", { token });
      return (body.absences as { node: string; until: string | null; seconds: number }[]).filter(
        ({ node }) => node === name,
      );
    };

    for (const [what, harm] of [
      ["cut", (name: string) => networks.cut(name)],
      ["mute", (name: string) => networks.mute(name)],
      ["deaf", (name: string) => networks.deafen(name)],
    ] as const) {
      let led: string | null = null;
      await eventually("a leader", async () => {
        led = await leaderOf("a", urls);
        return led !== null;
      });
      const name = led as unknown as string;
      const others = cluster.nodes.filter((node) => node.name !== name).map(({ url }) => url);
      const before = (await absencesOf(name, [others[0] as string])).length;
      harm(name);
      await eventually(`another leader than ${name}, which is ${what}`, async () => {
        const leader = await leaderOf("a", others);
        return leader !== null && leader !== name;
      });
      await goesOn(5);
      networks.heal(name);
      await eventually(`${name} is heard again`, async () => {
        const seen = await absencesOf(name, [others[0] as string]);
        return seen.length > before && seen.every(({ until }) => until !== null);
      });
      const last = (await absencesOf(name, [others[0] as string])).at(-1);
      expect(last?.seconds).toBeGreaterThan(1);
      await eventually(`${name} has everything`, async () => {
        const { body } = await persist(urls, "/v1/tenants/a/group", { token });
        const replica = body.replicas.find(({ node }: { node: string }) => node === name);
        return replica?.match >= body.commit - 5;
      });
    }

    const slow = cluster.nodes[0]?.name as string;
    networks.slow(slow);
    await goesOn(5);
    networks.heal(slow);
    await goesOn(5);
    isWriting = false;
    await Promise.all(writers);

    for (const [at, tenant] of TENANTS.entries()) {
      const mine = written.get(tenant) ?? [];
      const follower = followers[at] as Follower;
      const newest = mine.at(-1)?.[0] ?? 0;
      await eventually(
        "it was told the last write",
        () => Number(follower.cursor?.split("-")[1]) >= newest,
      );
      const revisions = follower.commits.map(({ data }) => data.revision as number);
      const first = revisions[0] ?? 0;
      expect(revisions).toEqual(revisions.map((_, n) => first + n));
      const path = `/v1/tenants/${tenant}/namespaces/app/configs/c/versions?limit=1000`;
      const kept = await ask(`${urls[at % urls.length]}${path}`, { token });
      const versions = new Set(kept.body.items.map((item: { version: number }) => item.version));
      for (const [, version] of mine) expect(versions.has(version)).toBe(true);
      expect(new Set(mine.map(([, version]) => version)).size).toBe(mine.length);
    }
    await Promise.all(followers.map((follower) => follower.stop()));
  }, 150_000);
});
