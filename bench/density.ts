/**
 * What tenants cost that nobody uses: three nodes, many tenants made in bulk, nothing happening.
 *
 * Estimate before measuring: a tenant that was never used is one row of the directory, about 400 bytes on each node's
 * disk and nothing in memory; so a node with 100,000 of them is one with 40 MB of disk, and its processor does what it
 * does without: a heartbeat per pair of nodes. The first request to a tenant opens an environment on each of three nodes
 * (0.4 ms), elects (one journal write each, ~0.3 ms) and commits two entries: about 3 ms.
 *
 * What a runtime compiles and collects after so much was made takes half a minute; what an operator pays for is what
 * comes after. So the state at rest is measured twice: at once, and when it has settled.
 *
 * Run: npm run bench -- density, or bun bench/density.ts [--tenants 100000] [--used 2000] [--seconds 10] [--settle 60]
 *      [--write]
 */
import { readFileSync } from "node:fs";
import { loadavg } from "node:os";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startCluster } from "../infra/cluster.mjs";
import { ask } from "../test/e2e/api.ts";
import { processorSeconds } from "./processes.ts";
import { quantiles, writeReport, type Curve, type Row } from "./report.ts";

const { values } = parseArgs({
  options: {
    tenants: { type: "string", default: "100000" },
    used: { type: "string", default: "2000" },
    seconds: { type: "string", default: "10" },
    settle: { type: "string", default: "60" },
    write: { type: "boolean", default: false },
  },
});
const tenants = Number(values.tenants);
const used = Number(values.used);
const seconds = Number(values.seconds);
const settle = Number(values.settle);
const BATCH = 500;

type Cluster = Awaited<ReturnType<typeof startCluster>>;

function residentMb(pid: number | undefined): number {
  return Math.round(
    (Number(readFileSync(`/proc/${pid}/statm`, "utf8").split(" ")[1]) * 4096) / 1e6,
  );
}

const load = loadavg()[0] ?? 0;
const rows: Row[] = [];
const curves: Curve[] = [];

function row(what: string, figure: string, wanted = ""): void {
  rows.push({ what, figure, wanted });
  console.log(`${what.padEnd(52)} ${figure}${wanted === "" ? "" : `   (wanted: ${wanted})`}`);
}

async function share(cluster: Cluster, what: string, wanted: string): Promise<void> {
  const so = (): number[] =>
    cluster.nodes.map(({ pid }) => processorSeconds(pid === undefined ? [] : [pid]));
  const before = so();
  const at = performance.now();
  await sleep(seconds * 1_000);
  const passed = (performance.now() - at) / 1_000;
  const shares = so().map((after, node) => ((after - (before[node] as number)) / passed) * 100);
  row(
    what,
    `${shares.map((one) => one.toFixed(1)).join(", ")} % of a core; ${cluster.nodes.map(({ pid }) => residentMb(pid)).join(", ")} MB resident`,
    wanted,
  );
}

async function idle(cluster: Cluster, what: string, wanted = ""): Promise<void> {
  await share(cluster, `idle, ${what}, at once`, "");
  await sleep(Math.max(0, settle - seconds) * 1_000);
  await share(cluster, `idle, ${what}, after ${settle} s`, wanted);
}

// As nodes are by default: what they rehearse once they are ready stays in their memory.
const cluster = await startCluster({ nodes: 3, rehearse: true, env: { CONFLUX_LOG: "error" } });
try {
  const token = cluster.rootToken;
  const url = cluster.nodes[0]?.url as string;
  await idle(cluster, "no tenant");
  const startedAt = performance.now();
  for (let made = 0; made < tenants; made += BATCH) {
    const count = Math.min(BATCH, tenants - made);
    const body = { tenants: Array.from({ length: count }, (_, at) => ({ id: `t${made + at}` })) };
    const answer = await ask(`${url}/v1/tenants/batch`, { token, body });
    if (answer.status !== 201) throw new Error(JSON.stringify(answer.body));
  }
  row(
    `${tenants} tenants with 3 voters made in bulk`,
    `${((performance.now() - startedAt) / 1_000).toFixed(1)} s`,
  );
  await idle(cluster, `${tenants} tenants`, "each < 2 %, < 400 MB");

  const times: number[] = [];
  const stride = Math.max(1, Math.floor(tenants / used));
  for (let number = 0; number < used; number += 1) {
    const at = performance.now();
    const asked = cluster.nodes[number % 3]?.url as string;
    const path = `/v1/tenants/t${(number * stride) % tenants}/namespaces/app/configs`;
    const answer = await ask(asked + path, { token });
    if (answer.status !== 200) throw new Error(JSON.stringify(answer.body));
    times.push(performance.now() - at);
  }
  const { p50, p99, max, curve } = quantiles(times);
  row(
    "first request to a tenant, one after the other",
    `p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms, longest ${max.toFixed(1)} ms`,
  );
  curves.push({ name: "first request to a tenant", curve });
  await idle(cluster, `${used} of them awake`);

  const node = cluster.nodes[1];
  const at = performance.now();
  await node?.stop();
  const stoppedAt = performance.now();
  await node?.restart();
  const readyMs = performance.now() - stoppedAt;
  row("a node stops in order", `${((stoppedAt - at) / 1_000).toFixed(2)} s`);
  row("and is ready after its start", `${(readyMs / 1_000).toFixed(2)} s`, "< 3 s");
  if (values.write)
    writeReport({
      name: "density",
      title: "What tenants cost that nobody uses",
      args: process.argv.slice(2),
      setting: "three nodes and nats-server on one machine; figures of each node",
      load,
      text: `Idle is measured over ${seconds} s: at once after what the row above says, while what that left behind is compiled and collected, and ${settle} s later, which is what it costs from then on. The first requests are to tenants that were never used, which make their environments on all three nodes; then ${used} replicas are awake on each.`,
      rows,
      plot: "First request to a tenant, by share of tenants",
      curves,
    });
} finally {
  await cluster.stop();
}
