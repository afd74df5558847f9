/** One cluster of three nodes, one on each runtime: the same sources, the same smoke test through every node. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { attack } from "../fuzz/attacks.ts";
import { ask, eventually, frames, persist, type Frame } from "./api.ts";

type Cluster = Awaited<ReturnType<typeof startCluster>>;

describe("Bun, Deno and Node in one cluster", () => {
  let cluster: Cluster;
  let urls: string[];
  let token: string;
  const base = "/v1/tenants/shop/namespaces/app";

  beforeAll(async () => {
    cluster = await startCluster({ nodes: 3, runtimes: ["bun", "deno", "node"] });
    urls = cluster.nodes.map((node) => node.url);
    const made = await persist(urls, "/v1/tenants", {
      token: cluster.rootToken,
      body: { id: "shop" },
      headers: { "idempotency-key": "make-shop" },
    });
    expect(made.status, JSON.stringify(made.body)).toBe(201);
    token = made.body.key.token;
  });

  afterAll(async () => {
    await cluster?.stop();
  });

  test("different labels get different versions, through every node", async () => {
    const put = await ask(`${urls[0]}${base}/configs/limits`, {
      method: "PUT",
      token,
      body: { format: "json", content: { rate: 1 } },
    });
    expect(put.status, JSON.stringify(put.body)).toBe(201);
    const second = await ask(`${urls[1]}${base}/configs/limits/versions`, {
      token,
      body: { content: { rate: 2 } },
    });
    expect(second.status, JSON.stringify(second.body)).toBe(201);
    const release = await ask(`${urls[2]}${base}/configs/limits/release`, {
      method: "PUT",
      token,
      body: { rules: [{ id: "eu", match: { region: "eu" }, version: 2 }], default: 1 },
    });
    expect(release.status, JSON.stringify(release.body)).toBe(200);
    for (const url of urls) {
      const eu = await ask(`${url}${base}/values/limits?label.region=eu`, { token });
      expect(eu.body).toEqual({ rate: 2 });
      expect(eu.headers.get("conflux-rule")).toBe("eu");
      const us = await ask(`${url}${base}/values/limits?label.region=us`, { token });
      expect(us.body).toEqual({ rate: 1 });
      expect(us.headers.get("conflux-version")).toBe("1");
    }
  });

  test("watchers on every node see a publish made on any", async () => {
    const abort = new AbortController();
    const seen: Frame[][] = urls.map(() => []);
    const watching = urls.map(async (url, index) => {
      try {
        const headers = { authorization: `Bearer ${token}` };
        for await (const frame of frames(
          `${url}/v1/tenants/shop/watch?content=true`,
          headers,
          abort.signal,
        )) {
          seen[index]?.push(frame);
        }
      } catch (error) {
        if (!abort.signal.aborted) throw error;
      }
    });
    await eventually("every watcher is synced", () =>
      seen.every((some) => some[0]?.event === "sync"),
    );
    for (const [index, url] of urls.entries()) {
      const published = await ask(`${url}${base}/configs/limits/publish`, {
        token,
        body: { content: { rate: 10 + index } },
      });
      expect(published.status, JSON.stringify(published.body)).toBeLessThan(300);
    }
    await eventually("every watcher sees all three", () =>
      seen.every((some) => some.filter((frame) => frame.event === "commit").length === urls.length),
    );
    abort.abort();
    await Promise.all(watching);
    const [first, ...others] = seen.map((some) => some.filter((frame) => frame.event === "commit"));
    for (const other of others) expect(other).toEqual(first);
  });

  test("what no HTTP client would send is refused, cut or harmless on each", async () => {
    for (const node of cluster.nodes)
      expect([node.runtime, await attack(node.url, token)]).toEqual([node.runtime, []]);
  });

  test("each node's death is survived, and it comes back", async () => {
    for (const [index, node] of cluster.nodes.entries()) {
      await node.kill("SIGKILL");
      const others = urls.filter((_, other) => other !== index);
      const written = await persist(others, `${base}/configs/limits/publish`, {
        token,
        body: { content: { rate: 100 + index } },
        headers: { "idempotency-key": `after-${node.name}` },
      });
      expect(written.status, JSON.stringify(written.body)).toBeLessThan(300);
      node.start();
      await node.ready();
      const read = await persist([node.url], `${base}/values/limits`, { token });
      expect(read.body).toEqual({ rate: 100 + index });
    }
  });

  test("all of them stop in good order when asked", async () => {
    for (const node of cluster.nodes) {
      expect(
        await node.kill("SIGTERM"),
        `${node.name} on ${node.runtime}: ${node.lines.join("\n")}`,
      ).toBe("exit 0");
      node.start();
      await node.ready();
    }
    const read = await persist(urls, `${base}/values/limits`, { token });
    expect(read.body).toEqual({ rate: 102 });
  });
});
