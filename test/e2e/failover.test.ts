/**
 * The promise the whole system stands on, on real processes: nodes are killed with SIGKILL under writes, service goes on,
 * every acknowledged write is there afterwards exactly once, and watchers miss nothing and see nothing twice.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { ask, eventually, Follower, inParallel, persist } from "./api.ts";

const TENANTS = 200;
const WRITES = 5_000;
const CLIENTS = 8;
const WATCHED = 20;

type Cluster = Awaited<ReturnType<typeof startCluster>>;

interface Written {
  readonly tenant: string;
  readonly text: string;
  readonly revision: number;
  readonly version: number;
}

describe("three nodes, each killed once under writes", () => {
  let cluster: Cluster;
  let urls: string[];

  beforeAll(async () => {
    cluster = await startCluster({ nodes: 3, runtimes: ["bun"] });
    urls = cluster.nodes.map((node) => node.url);
  });

  afterAll(async () => {
    await cluster?.stop();
  });

  test(`${TENANTS} tenants, ${WRITES} writes: nothing acknowledged is lost or doubled, watchers see it all once`, async () => {
    const tenants = Array.from({ length: TENANTS }, (_, index) => `t${index}`);
    const tokens = new Map<string, string>();
    await inParallel(tenants, CLIENTS, async (tenant) => {
      const made = await persist(urls, "/v1/tenants", {
        token: cluster.rootToken,
        body: { id: tenant },
        headers: { "idempotency-key": `make-${tenant}` },
      });
      expect(made.status, JSON.stringify(made.body)).toBe(201);
      tokens.set(tenant, made.body.key.token);
      const config = await persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/limits`, {
        method: "PUT",
        token: made.body.key.token,
        body: { format: "text", content: "start" },
        headers: { "idempotency-key": `config-${tenant}` },
      });
      expect(config.status, JSON.stringify(config.body)).toBe(201);
    });

    const watched = tenants.slice(0, WATCHED);
    const followers = watched.map(
      (tenant, index) =>
        new Follower(
          urls,
          `/v1/tenants/${tenant}/watch?content=true`,
          tokens.get(tenant) as string,
          index,
        ),
    );
    await eventually("every watcher has its first sync", () =>
      followers.every((one) => one.syncs.length > 0),
    );

    const written: Written[] = [];
    let started = 0;
    let slowestMs = 0;
    const writer = async (): Promise<void> => {
      for (let number = started++; number < WRITES; number = started++) {
        // The watched tenants get their share twice, so that their watchers have something to see.
        const tenant = tenants[
          number % 2 === 0 ? number % TENANTS : (number * 7) % WATCHED
        ] as string;
        const text = `w${number}`;
        const at = performance.now();
        const answer = await persist(
          urls,
          `/v1/tenants/${tenant}/namespaces/app/configs/limits/publish`,
          {
            token: tokens.get(tenant) as string,
            body: { content: text },
            headers: { "idempotency-key": text },
          },
        );
        slowestMs = Math.max(slowestMs, performance.now() - at);
        expect(answer.status, `${tenant} ${text}: ${JSON.stringify(answer.body)}`).toBeLessThan(
          300,
        );
        written.push({
          tenant,
          text,
          revision: Number(answer.headers.get("conflux-revision")),
          version: answer.body.version.version ?? answer.body.version,
        });
      }
    };
    const killer = async (): Promise<void> => {
      for (const [index, node] of cluster.nodes.entries()) {
        const at = Math.floor((WRITES * (index + 1)) / 5);
        await eventually(`${at} writes`, () => written.length >= at, 120_000);
        await node.kill("SIGKILL");
        const before = written.length;
        await eventually("service goes on", () => written.length > before + CLIENTS * 2, 30_000);
        node.start();
        await node.ready();
      }
    };
    await Promise.all([killer(), ...Array.from({ length: CLIENTS }, writer)]);
    expect(written).toHaveLength(WRITES);

    // Every acknowledged write is there, once, in the order of its revision.
    await inParallel(tenants, CLIENTS, async (tenant) => {
      const mine = written
        .filter((write) => write.tenant === tenant)
        .sort((a, b) => a.revision - b.revision);
      const listed: { version: number }[] = [];
      for (let cursor = ""; ;) {
        const page = await persist(
          urls,
          `/v1/tenants/${tenant}/namespaces/app/configs/limits/versions?limit=500${cursor}`,
          { token: tokens.get(tenant) as string },
        );
        expect(page.status, JSON.stringify(page.body)).toBe(200);
        listed.push(...page.body.items);
        if (page.body.next === undefined || page.body.next === null) break;
        cursor = `&cursor=${encodeURIComponent(page.body.next)}`;
      }
      expect(listed.length, `versions of ${tenant}`).toBe(mine.length + 1);
      expect(mine.map((write) => write.version)).toEqual(mine.map((_, index) => index + 2));
      const last = mine.at(-1);
      if (last === undefined) return;
      for (const write of [mine[0], mine[mine.length >> 1], last]) {
        if (write === undefined) continue;
        const version = await persist(
          urls,
          `/v1/tenants/${tenant}/namespaces/app/configs/limits/versions/${write.version}`,
          { token: tokens.get(tenant) as string },
        );
        expect(version.body.content, `${tenant} version ${write.version}`).toBe(write.text);
      }
    });

    // Every watcher was told every commit after its first sync: no gap, no repeat, the right content.
    for (const [index, follower] of followers.entries()) {
      const tenant = watched[index] as string;
      const mine = written
        .filter((write) => write.tenant === tenant)
        .sort((a, b) => a.revision - b.revision);
      const last = mine.at(-1)?.revision ?? 0;
      await eventually(
        `the watcher of ${tenant} reaches revision ${last}`,
        () => (follower.commits.at(-1)?.data.revision ?? 0) >= last,
      );
      await follower.stop();
      expect(follower.syncs, `${tenant} was never told to start over`).toHaveLength(1);
      const revisions = follower.commits.map((frame) => frame.data.revision as number);
      const from = follower.syncs[0]?.data.revision as number;
      expect(revisions).toEqual(Array.from({ length: last - from }, (_, step) => from + 1 + step));
      const told = follower.commits.flatMap((frame) =>
        (frame.data.changes as { type: string; content?: string }[])
          .filter((change) => change.type === "version")
          .map((change) => change.content),
      );
      expect(told).toEqual(mine.map((write) => write.text));
    }
    const status = await ask(`${urls[0]}/v1/cluster/status`, { token: cluster.rootToken });
    expect(status.status).toBe(200);
    console.log(
      `${WRITES} writes over ${TENANTS} tenants, 3 kills: slowest write ${Math.round(slowestMs)} ms, ` +
        `watchers resumed ${followers.reduce((sum, one) => sum + one.resumes, 0)} times`,
    );
  });
});
