/**
 * Backups taken from a running cluster while it is written to, with the command as operators run it, and given back to a
 * fresh one: exactly one revision, nothing acknowledged until then missing, and a history of its own afterwards.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { ask, conflux, frames, inParallel, persist, type Answer, type Ask } from "./api.ts";

type Cluster = Awaited<ReturnType<typeof startCluster>>;

/** One with a replica on each node, one on a single node: asked through the others. */
const tenants = { wide: 3, narrow: 1 } as const;
const filling = 40;

interface Written {
  readonly revision: number;
  readonly text: string;
}

async function command(url: string, token: string, ...words: string[]): Promise<string> {
  const env = { CONFLUX_URL: url, CONFLUX_TOKEN: token };
  const { code, out, err } = await conflux([...words, "-o", "json"], env);
  expect([words[0], code, err]).toEqual([words[0], 0, ""]);
  return out;
}

describe("a backup of a cluster under load", () => {
  let from: Cluster;
  let to: Cluster;
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(path.join(tmpdir(), "conflux-e2e-backup-"));
    from = await startCluster({ nodes: 3, runtimes: ["bun"] });
    // Fewer nodes than one of the tenants has replicas.
    to = await startCluster({ nodes: 1, runtimes: ["bun"] });
  });

  afterAll(async () => {
    await from?.stop();
    await to?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  test("is one revision of each tenant, and a fresh cluster serves it as it was", async () => {
    const urls = from.nodes.map(({ url }) => url);
    const token = from.rootToken;
    for (const [tenant, replicas] of Object.entries(tenants)) {
      const made = await persist(urls, "/v1/tenants", { token, body: { id: tenant, replicas } });
      expect(made.status, JSON.stringify(made.body)).toBe(201);
      await inParallel([...Array(filling).keys()], 4, async (n) => {
        const put = await persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/fill${n}`, {
          method: "PUT",
          token,
          body: { format: "text", content: `${n} ${"x".repeat(50_000)}` },
        });
        expect(put.status).toBe(201);
      });
      for (const name of ["left", "right"])
        await persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/${name}`, {
          method: "PUT",
          token,
          body: { format: "text", content: "0" },
        });
    }

    // Two configs that always change together.
    const written = new Map<string, Written[]>();
    let stopping = false;
    const writers = Object.keys(tenants).map(async (tenant) => {
      const acknowledged: Written[] = [];
      written.set(tenant, acknowledged);
      for (let n = 1; !stopping; n++) {
        const content = `${tenant} ${n}`;
        const then = ["left", "right"].map((name) => ({
          op: "publish",
          namespace: "app",
          name,
          content,
        }));
        const answer = await ask(`${urls[n % urls.length]}/v1/tenants/${tenant}/transactions`, {
          method: "POST",
          token,
          body: { then },
        });
        if (answer.status < 300)
          acknowledged.push({ revision: answer.body.revision as number, text: content });
      }
    });
    const taken = JSON.parse(
      await command(urls[1] as string, token, "backup", "--to", folder, "--all"),
    ) as { tenant: string; epoch: number; revision: number; state: string }[];
    stopping = true;
    await Promise.all(writers);
    expect(taken.map(({ tenant, state }) => `${tenant} ${state}`).sort()).toEqual([
      "narrow taken",
      "wide taken",
    ]);
    await command(urls[0] as string, token, "backup", "verify", folder);

    const target = to.nodes.map(({ url }) => url);
    const restored = JSON.parse(
      await command(target[0] as string, to.rootToken, "restore", "--from", folder),
    ) as { tenant: string; epoch: number; revision: number }[];

    for (const { tenant, epoch, revision } of taken) {
      const back = restored.find((one) => one.tenant === tenant);
      expect(back?.revision).toBe(revision + 1);
      expect(back?.epoch).toBeGreaterThan(epoch);
      const N = `/v1/tenants/${tenant}/namespaces/app`;
      const get = (node: number, of: string): Promise<Answer> =>
        persist([target[node] as string], of, { token: to.rootToken });
      const [left, right] = await Promise.all([
        get(0, `${N}/values/left`),
        get(0, `${N}/values/right`),
      ]);
      expect(left.body).toEqual(right.body);
      // Everything acknowledged at or before the backup's revision, and nothing after it.
      const versions = await get(0, `${N}/configs/left/versions?limit=1000`);
      const kept = versions.body.items as { version: number; revision: number }[];
      const acknowledged = written.get(tenant) as Written[];
      expect(acknowledged.length).toBeGreaterThan(3);
      const at = new Set(kept.map((version) => version.revision));
      for (const one of acknowledged)
        expect([one.revision, at.has(one.revision)]).toEqual([
          one.revision,
          one.revision <= revision,
        ]);
      const newest = acknowledged.findLast((one) => one.revision <= revision)?.text ?? "0";
      if (
        kept.every(
          (one) => one.version === 1 || acknowledged.some((w) => w.revision === one.revision),
        )
      )
        expect(left.body).toBe(newest);
      for (const path of [`${N}/configs/fill7`, `${N}/configs/left/history?limit=1000`]) {
        const [before, after] = await Promise.all([persist(urls, path, { token }), get(0, path)]);
        if (!path.includes("history")) {
          // It is the same, but not of the same history.
          expect({ ...after.body, etag: before.body.etag }).toEqual(before.body);
          expect(after.body.etag).not.toBe(before.body.etag);
        } else {
          const releases = after.body.items as { release: number }[];
          expect(releases.length).toBeGreaterThan(0);
          for (const release of releases) expect(before.body.items).toContainEqual(release);
        }
      }
      // A cursor of the old cluster gets a sync, and then the changes of here.
      const headers = {
        authorization: `Bearer ${to.rootToken}`,
        "last-event-id": `${epoch}-${revision}`,
      };
      const abort = new AbortController();
      const seen: string[] = [];
      for await (const frame of frames(
        `${target[0]}/v1/tenants/${tenant}/watch`,
        headers,
        abort.signal,
      )) {
        seen.push(frame.event);
        expect(frame.id).toMatch(new RegExp(`^${back?.epoch}-`));
        if (frame.event === "commit") break;
        const put = await persist([target[0] as string], `${N}/configs/left/publish`, {
          method: "POST",
          token: to.rootToken,
          body: { content: "after" },
        });
        expect(put.status).toBe(201);
      }
      abort.abort();
      expect(seen).toEqual(["sync", "commit"]);
    }
    // The writers went on for a moment; then nothing changed any more, and nothing is read again.
    const again = async (): Promise<string> =>
      JSON.parse(await command(urls[2] as string, token, "backup", "--to", folder, "narrow"))[0]
        .state as string;
    await again();
    expect(await again()).toBe("unchanged");
  }, 120_000);

  test("given back in place, no tag of before it matches what came after it", async () => {
    const urls = from.nodes.map(({ url }) => url);
    const token = from.rootToken;
    const tenant = "over";
    const T = `/v1/tenants/${tenant}`;
    const N = `${T}/namespaces/app`;
    const call = (path: string, options: Ask = {}): Promise<Answer> =>
      persist(urls, path, { token, ...options });
    const change = async (method: string, path: string, body: unknown): Promise<void> => {
      const answer = await call(path, { method, body });
      expect([path, Math.floor(answer.status / 100)]).toEqual([path, 2]);
    };
    const made = await call("/v1/tenants", { body: { id: tenant, replicas: 3 } });
    expect(made.status).toBe(201);
    await change("PUT", `${N}/configs/one`, { format: "text", content: "0" });
    const backup = path.join(folder, "over");
    await command(urls[0] as string, token, "backup", "--to", backup, tenant);

    // The same changes twice, with contents of their own: at the same revisions, with a restore in between.
    const live = async (life: string): Promise<void> => {
      await change("PUT", N, { protected: true });
      await change("PUT", `${N}/configs/two`, { format: "text", content: life });
      for (const n of [1, 2])
        await change("POST", `${N}/configs/one/publish`, { content: life + n });
    };
    const tagged = [N, `${N}/configs/one`, `${N}/configs/two`, `${N}/configs/one/release`];
    const seen = async (): Promise<{ tags: string[]; revisions: number[] }> => {
      const answers = await Promise.all(tagged.map((one) => call(one)));
      return {
        tags: answers.map(({ headers }) => headers.get("etag") as string),
        revisions: answers.map(({ body }) => body.revision as number),
      };
    };
    await live("before");
    const before = await seen();
    const value = (await call(`${N}/values/two`)).headers.get("etag") as string;
    await command(urls[1] as string, token, "restore", "--from", backup, "--replace", tenant);
    // Its own first revision came with the restore.
    const restored = (await call(`${N}/configs/one`)).body;
    expect(before.tags).not.toContain(restored.etag);
    await live("after");
    const after = await seen();
    const both = before.revisions.filter((revision) => after.revisions.includes(revision));
    expect(both.length, `${before.revisions} and ${after.revisions}`).toBeGreaterThan(0);

    const then = [{ op: "config.put", namespace: "app", name: "one", description: "lost" }];
    const changes = (tag: string): Promise<Answer>[] => {
      const headers = { "if-match": tag };
      return [
        call(N, { method: "PUT", headers, body: { protected: false } }),
        call(`${N}/configs/one`, { method: "PUT", headers, body: { description: "lost" } }),
        call(`${N}/configs/one/publish`, { headers, body: { content: "lost" } }),
        call(`${N}/configs/two/versions`, { headers, body: { content: "lost" } }),
        call(`${N}/configs/one/release`, {
          method: "PUT",
          headers,
          body: { rules: [], default: 1 },
        }),
        call(`${N}/configs/one/rollback`, { method: "POST", headers }),
        call(`${N}/configs/two`, { method: "DELETE", headers }),
        call(`${T}/transactions`, {
          body: { if: [{ namespace: "app", name: "one", etag: tag }], then },
        }),
      ];
    };
    const bare = [...before.revisions, ...after.revisions].map((revision) => `"${revision}"`);
    for (const tag of new Set([...before.tags, ...bare])) {
      for (const answer of await Promise.all(changes(tag)))
        expect([tag, answer.status, answer.body.code]).toEqual([tag, 412, "precondition-failed"]);
      const headers = { "if-none-match": tag };
      for (const answer of await Promise.all(tagged.map((one) => call(one, { headers }))))
        expect([tag, answer.status]).toEqual([tag, 200]);
    }
    const headers = { "if-none-match": value };
    expect((await call(`${N}/values/two`, { headers })).body).toBe("after");
    for (const revision of both) {
      const condition = { namespace: "app", name: "one", revision };
      const answer = await call(`${T}/transactions`, { body: { if: [condition], then } });
      expect([revision, answer.status]).toEqual([revision, 412]);
    }
    expect((await seen()).tags).toEqual(after.tags);
    for (const [i, one] of tagged.slice(0, 3).entries()) {
      const same = await call(one, { headers: { "if-none-match": after.tags[i] as string } });
      expect(same.status).toBe(304);
    }
    const kept = { "if-match": after.tags[1] as string };
    const held = await call(`${N}/configs/one/publish`, { headers: kept, body: { content: "x" } });
    expect(held.status).toBe(201);
  }, 120_000);
});
