/**
 * The first request to a tenant that is nowhere in memory: three nodes, tenants with three voters each. And, one after
 * the other too, how long it takes to make one.
 *
 * Estimate before measuring: nobody leads such a group, so the first request opens its environment (0.4 ms), asks for
 * votes twice (two exchanges over NATS of about 0.3 ms; each vote is one journal write of 0.25 ms, and the others open
 * their environments first); those votes answer a read, a write goes out with the new leader's own first entry (one
 * exchange, one write): about 3 ms. A tenant that was never used also makes its environment on all three. One that fell asleep in
 * this life of its nodes has a leader: a read opens its environment and asks nobody, on a follower's node it asks the
 * leader.
 *
 * What a node has not done often since it started takes several times as long, until its runtime compiled it; therefore
 * nodes rehearse (src/rehearsal.ts), which ends before the first request here is made. `--no-rehearse` leaves that out.
 *
 * Run: npm run bench -- wake, or bun bench/wake.ts [--tenants 300] [--no-rehearse] [--write]
 */
import { loadavg } from "node:os";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startCluster } from "../infra/cluster.mjs";
import { ask } from "../test/e2e/api.ts";
import { processorSeconds } from "./processes.ts";
import { printRows, quantiles, writeReport, type Quantiles } from "./report.ts";

const { values } = parseArgs({
  options: {
    tenants: { type: "string", default: "300" },
    write: { type: "boolean", default: false },
    rehearse: { type: "boolean", default: true },
  },
  allowNegative: true,
});
const tenants = Number(values.tenants);
const load = loadavg()[0] ?? 0;

type Cluster = Awaited<ReturnType<typeof startCluster>>;

interface Phase {
  readonly name: string;
  readonly times: Quantiles;
  readonly processorMs: number;
}

async function firstRequests(
  cluster: Cluster,
  name: string,
  request: (url: string, number: number) => Promise<{ status: number; body: unknown }>,
): Promise<Phase> {
  const pids = (): number[] => cluster.nodes.flatMap(({ pid }) => pid ?? []);
  // Connections are open, what a node that just started owes to earlier promises is over, and so is what it rehearses:
  // about a second of each node's processor.
  for (const { url } of cluster.nodes) await ask(`${url}/readyz`);
  await sleep(values.rehearse ? 8_000 : 3_000);
  const before = processorSeconds(pids());
  const times: number[] = [];
  for (let number = 0; number < tenants; number += 1) {
    const url = cluster.nodes[number % cluster.nodes.length]?.url as string;
    const at = performance.now();
    const answer = await request(url, number);
    times.push(performance.now() - at);
    if (answer.status >= 300) throw new Error(JSON.stringify(answer.body));
  }
  const processorMs = ((processorSeconds(pids()) - before) / tenants) * 1_000;
  return { name, times: quantiles(times), processorMs };
}

/** Nothing but the directory is in memory on any node. */
async function allAsleep(cluster: Cluster, token: string): Promise<void> {
  for (const { url } of cluster.nodes)
    for (;;) {
      const { body } = await ask(`${url}/v1/cluster/status`, { token });
      if ((body as { replicas: { warm: number } }).replicas.warm === 1) break;
      await sleep(200);
    }
}

async function restartAll(cluster: Cluster): Promise<void> {
  await Promise.all(cluster.nodes.map((node) => node.stop()));
  for (const node of cluster.nodes) node.start();
  await Promise.all(cluster.nodes.map((node) => node.ready()));
}

/** A cluster with all tenants; no phase has begun. */
async function withTenants(
  env: Record<string, string>,
  measure: (cluster: Cluster, token: string) => Promise<void>,
): Promise<void> {
  const cluster = await startCluster({
    nodes: 3,
    rehearse: values.rehearse,
    env: { CONFLUX_LOG: "error", ...env },
  });
  try {
    const token = cluster.rootToken;
    const url = cluster.nodes[0]?.url as string;
    for (let made = 0; made < tenants; made += 500) {
      const count = Math.min(500, tenants - made);
      const body = { tenants: Array.from({ length: count }, (_, at) => ({ id: `t${made + at}` })) };
      const answer = await ask(`${url}/v1/tenants/batch`, { token, body });
      if (answer.status !== 201) throw new Error(JSON.stringify(answer.body));
    }
    await measure(cluster, token);
  } finally {
    await cluster.stop();
  }
}

const MAKING = "a tenant with three voters is made";
const phases: Phase[] = [];
const requests = (token: string) => {
  const config = (at: string, number: number): string =>
    `${at}/v1/tenants/t${number}/namespaces/app/configs/c`;
  return {
    put: (at: string, number: number) =>
      ask(config(at, number), { method: "PUT", token, body: { format: "text", content: "x" } }),
    publish: (at: string, number: number) =>
      ask(`${config(at, number)}/publish`, { token, body: { content: "y" } }),
    read: (at: string, number: number) =>
      ask(`${at}/v1/tenants/t${number}/namespaces/app/values/c`, { token }),
    make: (at: string, number: number) =>
      ask(`${at}/v1/tenants`, { token, body: { id: `made-${number}`, replicas: 3 } }),
  };
};
await withTenants({}, async (cluster, token) => {
  const { put, publish, read, make } = requests(token);
  phases.push(await firstRequests(cluster, MAKING, make));
  phases.push(await firstRequests(cluster, "never used: the first write", put));
  phases.push(await firstRequests(cluster, "awake: a read, to compare", read));
  await restartAll(cluster);
  phases.push(await firstRequests(cluster, "asleep since the nodes started: a read", read));
  await restartAll(cluster);
  phases.push(await firstRequests(cluster, "asleep since the nodes started: a write", publish));
});
await withTenants({ CONFLUX_SLEEP_AFTER: "2" }, async (cluster, token) => {
  const { put, publish, read } = requests(token);
  await firstRequests(cluster, "", put);
  for (const [name, request] of [
    ["fell asleep since: a read", read],
    ["fell asleep since: a write", publish],
  ] as const) {
    await allAsleep(cluster, token);
    phases.push(await firstRequests(cluster, name, request));
  }
});
function wantedOf(name: string): string {
  if (name === MAKING) return "p50 < 10 ms, p99 < 50 ms";
  return name.startsWith("awake") ? "" : "p50 < 3 ms, p99 < 10 ms";
}

const rows = phases.map(({ name, times, processorMs }) => ({
  what: name,
  figure: `p50 ${times.p50.toFixed(1)} ms, p99 ${times.p99.toFixed(1)} ms, longest ${times.max.toFixed(1)} ms; ${processorMs.toFixed(1)} ms of processor on all three nodes`,
  wanted: wantedOf(name),
}));
printRows(rows);
if (values.write)
  writeReport({
    name: "wake",
    title: "The first request to a tenant that sleeps",
    args: process.argv.slice(2),
    setting: "three nodes, nats-server and the client on one machine",
    load,
    text: `${tenants} tenants with three voters, one request after the other, in turn to each node, over HTTP; the nodes ${values.rehearse ? "rehearse when they have started" : "do not rehearse"}.`,
    rows,
    plot: "First request by share of tenants",
    curves: phases.map(({ name, times }) => ({ name, curve: times.curve })),
  });
