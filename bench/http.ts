/**
 * Three nodes, real processes, NATS between them, every write durable on a quorum; the client shares the machine.
 *
 * Estimate before measuring (2 cores for three nodes, nats-server and the client): a durable write costs about 100 µs of
 * processor time over all processes (parse, authorise, propose, encode, three journals, two frames, apply, answer), so
 * 2 cores give at most 20,000 writes/s at high concurrency; alone, a write takes one journal write (~0.2 ms) and one NATS
 * round trip (~0.3 ms) one after the other: about 0.8 ms. A linearizable read costs a batched quorum round: 30–40 µs.
 *
 * Run: bun bench/http.ts [--seconds 3] [--tenants 1000]
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { startCluster } from "../infra/cluster.mjs";
import { ask, inParallel } from "../test/e2e/api.ts";
import { load, type LoadOptions } from "./load.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "3" },
    tenants: { type: "string", default: "1000" },
  },
});
const seconds = Number(values.seconds);
const tenantsCount = Number(values.tenants);

function residentMiB(pid: number | undefined): number {
  const pages = Number(readFileSync(`/proc/${pid}/statm`, "utf8").split(" ")[1]);
  return Math.round((pages * 4096) / 1024 / 1024);
}

const cluster = await startCluster({ nodes: 3, runtimes: ["bun"], env: { CONFLUX_LOG: "error" } });
try {
  const urls = cluster.nodes.map((node) => node.url);
  const tokens = new Map<string, string>();
  const make = async (tenant: string): Promise<number> => {
    const at = performance.now();
    const made = await ask(`${urls[0]}/v1/tenants`, {
      token: cluster.rootToken,
      body: { id: tenant },
    });
    if (made.status !== 201) throw new Error(JSON.stringify(made.body));
    const took = performance.now() - at;
    tokens.set(tenant, made.body.key.token);
    const put = await ask(`${urls[0]}/v1/tenants/${tenant}/namespaces/app/configs/limits`, {
      method: "PUT",
      token: made.body.key.token,
      body: { format: "json", content: { n: 0 } },
    });
    if (put.status !== 201) throw new Error(JSON.stringify(put.body));
    return took;
  };
  await make("one");
  const row = async (
    name: string,
    options: Omit<LoadOptions, "urls" | "seconds">,
  ): Promise<void> => {
    const result = await load({ urls, seconds, ...options });
    console.log(
      `${name.padEnd(44)} ${String(options.connections).padStart(5)} ${result.perSecond.toFixed(0).padStart(8)}/s  p50 ${result.p50.toFixed(2).padStart(7)} ms  p99 ${result.p99.toFixed(2).padStart(7)} ms${result.failures > 0 ? `  ${result.failures} failed: ${result.firstFailure}` : ""}`,
    );
  };
  const publish = (tenant: (number: number) => string) => (number: number) => ({
    method: "POST",
    path: `/v1/tenants/${tenant(number)}/namespaces/app/configs/limits/publish`,
    token: tokens.get(tenant(number)) as string,
    body: `{"content":{"n":${number},"pad":"${"x".repeat(100)}"}}`,
  });
  const value =
    (tenant: (number: number) => string, query = "") =>
    (number: number) => ({
      method: "GET",
      path: `/v1/tenants/${tenant(number)}/namespaces/app/values/limits${query}`,
      token: tokens.get(tenant(number)) as string,
    });
  console.log(`three nodes on Bun, ${seconds} s each; scenario, connections, rate, latency`);
  await row("(warm-up)", { connections: 16, request: publish(() => "one") });
  for (const connections of [1, 64, 256]) {
    await row("publish, one tenant", { connections, request: publish(() => "one") });
  }
  for (const connections of [1, 64, 256]) {
    await row("linearizable read, one tenant", { connections, request: value(() => "one") });
  }
  await row("stale read, one tenant", {
    connections: 64,
    request: value(() => "one", "?consistency=stale"),
  });

  const before = cluster.nodes.map((node) => residentMiB(node.pid));
  const tenants = Array.from({ length: tenantsCount }, (_, index) => `t${index}`);
  const took: number[] = [];
  const startedAt = performance.now();
  await inParallel(tenants, 4, async (tenant) => {
    took.push(await make(tenant));
  });
  took.sort((left, right) => left - right);
  console.log(
    `create ${tenantsCount} tenants with 3 voters, 4 at a time: ${((performance.now() - startedAt) / 1_000).toFixed(1)} s with a config each; tenant p50 ${took[took.length >> 1]?.toFixed(1)} ms, p99 ${took[Math.floor(took.length * 0.99)]?.toFixed(1)} ms`,
  );
  console.log(
    `RSS per node: ${before.join(", ")} MiB before, ${cluster.nodes.map((node) => residentMiB(node.pid)).join(", ")} MiB with ${tenantsCount} tenants`,
  );
  const spread = (number: number): string => `t${(number * 7) % tenantsCount}`;
  await row(`publish, over ${tenantsCount} tenants`, { connections: 64, request: publish(spread) });
  await row(`publish, over ${tenantsCount} tenants`, {
    connections: 256,
    request: publish(spread),
  });
  await row(`linearizable read, over ${tenantsCount} tenants`, {
    connections: 64,
    request: value(spread),
  });
  console.log(
    `RSS per node at the end: ${cluster.nodes.map((node) => residentMiB(node.pid)).join(", ")} MiB`,
  );
} finally {
  await cluster.stop();
}
