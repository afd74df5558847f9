/**
 * What tenants cost that nobody uses: three nodes, many tenants made in bulk, nothing happening.
 *
 * Estimate before measuring: a tenant that was never used is one row of the directory, about 400 bytes on each node's
 * disk and nothing in memory; so a node with 100,000 of them is one with 40 MB of disk, and its processor does what it
 * does without: a heartbeat per pair of nodes. The first request to a tenant opens an environment on each of three nodes
 * (0.4 ms), elects (one journal write each, ~0.3 ms) and commits two entries: about 3 ms.
 *
 * Run: npm run bench -- density, or bun bench/density.ts [--tenants 100000] [--used 2000] [--seconds 10]
 */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startCluster } from "../infra/cluster.mjs";
import { ask } from "../test/e2e/api.ts";

const { values } = parseArgs({
  options: {
    tenants: { type: "string", default: "100000" },
    used: { type: "string", default: "2000" },
    seconds: { type: "string", default: "10" },
  },
});
const tenants = Number(values.tenants);
const used = Number(values.used);
const seconds = Number(values.seconds);
const BATCH = 500;

type Cluster = Awaited<ReturnType<typeof startCluster>>;

function residentMb(pid: number | undefined): number {
  return Math.round(
    (Number(readFileSync(`/proc/${pid}/statm`, "utf8").split(" ")[1]) * 4096) / 1e6,
  );
}

/** Processor time so far, in seconds. */
function processorSeconds(pid: number | undefined): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

async function idle(cluster: Cluster, what: string): Promise<void> {
  const before = cluster.nodes.map(({ pid }) => processorSeconds(pid));
  await sleep(seconds * 1_000);
  const share = cluster.nodes.map(
    ({ pid }, at) => ((processorSeconds(pid) - (before[at] as number)) / seconds) * 100,
  );
  console.log(
    `${what.padEnd(34)} ${share.map((one) => one.toFixed(1)).join(", ")} % of a core; ${cluster.nodes.map(({ pid }) => residentMb(pid)).join(", ")} MB resident`,
  );
}

function percentiles(times: number[]): string {
  times.sort((a, b) => a - b);
  const at = (part: number): string =>
    (times[Math.floor((times.length - 1) * part)] as number).toFixed(1);
  return `p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, longest ${at(1)} ms`;
}

const cluster = await startCluster({ nodes: 3, env: { CONFLUX_LOG: "error" } });
try {
  const token = cluster.rootToken;
  const url = cluster.nodes[0]?.url as string;
  await idle(cluster, "idle, no tenant");
  const startedAt = performance.now();
  for (let made = 0; made < tenants; made += BATCH) {
    const count = Math.min(BATCH, tenants - made);
    const body = { tenants: Array.from({ length: count }, (_, at) => ({ id: `t${made + at}` })) };
    const answer = await ask(`${url}/v1/tenants/batch`, { token, body });
    if (answer.status !== 201) throw new Error(JSON.stringify(answer.body));
  }
  console.log(
    `${tenants} tenants with 3 voters made in ${((performance.now() - startedAt) / 1_000).toFixed(1)} s`,
  );
  await idle(cluster, `idle, ${tenants} tenants`);

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
  console.log(`first request to a tenant, one after the other: ${percentiles(times)}`);
  await idle(cluster, `idle, ${used} of them awake`);

  const node = cluster.nodes[1];
  const at = performance.now();
  await node?.stop();
  const stoppedAt = performance.now();
  await node?.restart();
  console.log(
    `a node stopped in ${((stoppedAt - at) / 1_000).toFixed(2)} s, and was ready ${((performance.now() - stoppedAt) / 1_000).toFixed(2)} s after its start`,
  );
} finally {
  await cluster.stop();
}
