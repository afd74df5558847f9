/** Nodes of all three runtimes that are started before their NATS is: each says so, and begins when it comes. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { freePorts, startCluster } from "../../infra/cluster.mjs";
import { startNatsServer } from "../../infra/nats_server.mjs";
import { NodeProcess } from "../crash/node_process.ts";
import { ask, eventually } from "./api.ts";

test("nodes without NATS live, say what they lack, and begin when it is there", async () => {
  const ports = await freePorts(4);
  const natsPort = ports.pop() as number;
  const natsUrl = `nats://127.0.0.1:${natsPort}`;
  const starting = startCluster({ ports, natsUrl, runtimes: ["bun", "deno", "node"] });
  const urls = ports.map((port) => `http://127.0.0.1:${port}`);
  await Promise.all(
    urls.map(async (url) => {
      await eventually(`${url} lives`, async () => {
        const answer = await ask(`${url}/livez`).catch(() => null);
        return answer?.status === 200;
      });
      for (const path of ["/readyz", "/v1/tenants", "/metrics"]) {
        const { status, headers, body } = await ask(`${url}${path}`, { token: "any" });
        expect([path, status, body.code]).toEqual([path, 503, "not-ready"]);
        expect(headers.get("content-type")).toBe("application/problem+json");
        expect(Number(headers.get("retry-after"))).toBeGreaterThan(0);
        // Of where it is looked for nobody is told who has no key.
        expect(body.detail).not.toContain(String(natsPort));
        expect(body.detail).toContain("CONFLUX_NATS");
      }
    }),
  );

  const nats = await startNatsServer({ port: natsPort });
  onTestFinished(() => nats.stop());
  const cluster = await starting;
  onTestFinished(() => cluster.stop());
  for (const url of urls) expect((await ask(`${url}/readyz`)).status).toBe(200);
  const made = await ask(`${urls[0]}/v1/tenants`, {
    token: cluster.rootToken,
    body: { id: "acme" },
  });
  expect(made.status, JSON.stringify(made.body)).toBe(201);
}, 60_000);

test.each(["bun", "deno", "node"] as const)(
  "a node on %s that waits for NATS ends in order when it is told to",
  async (runtime) => {
    const [port, natsPort] = (await freePorts(2)) as [number, number];
    const data = mkdtempSync(join(tmpdir(), "conflux-away-"));
    onTestFinished(() => rmSync(data, { recursive: true, force: true }));
    const env = {
      CONFLUX_PORT: `${port}`,
      CONFLUX_NATS: `nats://127.0.0.1:${natsPort}`,
      CONFLUX_NODE: "n1",
      CONFLUX_PEERS: "n1",
    };
    const node = new NodeProcess({ data, runtime, env });
    onTestFinished(() => void node.process.kill("SIGKILL"));
    await eventually("it lives", async () => {
      const answer = await ask(`http://127.0.0.1:${port}/livez`).catch(() => null);
      return answer?.status === 200;
    });
    expect(await node.kill("SIGTERM")).toBe(0);
  },
  60_000,
);
