/**
 * Sets of 350 flags per second and core: what one page asks for when it opens.
 *
 * Estimate beforehand: a flag without targeting is a look-up, 10 ns; one with a comparison or a fractional rollout reads
 * one or two attributes and hashes twenty characters, 100 ns; joining 350 texts of 90 characters and encoding 30 KB takes
 * another 30 µs. So a set is 60 µs, and one over HTTP 150 µs: 16,000/s and 7,000/s. flagd-core copies the context for
 * every flag and makes an object of every result, about 1 µs each: 3,000/s.
 *
 * Counted per second of processor time of whoever evaluates: the client, and who else works here, shares the machine.
 *
 * Run: bun bench/ofrep.ts [--seconds 3]
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { FlagdCore } from "@openfeature/flagd-core";
import { startCluster } from "../infra/cluster.mjs";
import { Flag, FlagCall, type FlagDefinition } from "../src/model/flags.ts";
import { ask, inParallel } from "../test/e2e/api.ts";
import { load } from "./load.ts";

const { values } = parseArgs({ options: { seconds: { type: "string", default: "3" } } });
const seconds = Number(values.seconds);

const count = 350;
const variants = { on: true, off: false };
const targetings: readonly object[] = [
  {},
  { if: [{ "==": [{ var: "plan" }, "pro"] }, "on", "off"] },
  {
    fractional: [
      ["on", 20],
      ["off", 80],
    ],
  },
  {
    if: [
      {
        and: [
          { in: [{ var: "country" }, ["de", "fr", "it"]] },
          { sem_ver: [{ var: "version" }, ">=", "2.1.0"] },
        ],
      },
      "on",
      { if: [{ ends_with: [{ var: "email" }, "@example.com"] }, "on", "off"] },
    ],
  },
];

/** A quarter each: static, one comparison, a rollout, three conditions. */
function definitionOf(i: number): FlagDefinition {
  return {
    state: "ENABLED",
    variants,
    defaultVariant: "off",
    targeting: targetings[i % targetings.length] as Record<string, unknown>,
  };
}

function contextOf(i: number): Record<string, string> {
  return {
    targetingKey: `user-${i}`,
    plan: i % 2 === 0 ? "pro" : "free",
    country: "de",
    version: `2.${i % 4}.1`,
    email: `user-${i}@example.org`,
  };
}

function row(name: string, perSecond: number, more = ""): void {
  console.log(
    `${name.padEnd(58)} ${Math.round(perSecond).toLocaleString("en").padStart(10)}/s ${more}`,
  );
}

function measure(name: string, run: (i: number) => string): void {
  let i = 0;
  /** Runs per second of this process's own time. */
  const during = (ms: number): number => {
    const from = i;
    const before = process.cpuUsage();
    const startedAt = performance.now();
    while (performance.now() - startedAt < ms) run(i++);
    const { user, system } = process.cpuUsage(before);
    return ((i - from) / (user + system)) * 1_000_000;
  };
  during((seconds * 1_000) / 4);
  row(name, during(seconds * 1_000), "per core");
}

// --- in this process -------------------------------------------------------------------------------------------------------

const flags = Array.from({ length: count }, (_, i) => new Flag(`flag-${i}`, definitionOf(i)));
measure("ours, evaluated and encoded", (i) => {
  const call = new FlagCall(contextOf(i), Date.now());
  return flags.map((flag) => (flag.evaluate(call).text ??= "{}")).join(",");
});
const definitions = Object.fromEntries(flags.map((flag, i) => [flag.key, definitionOf(i)]));
const silent = { debug() {}, info() {}, warn() {}, error() {} };
for (const disableDynamicCodeGeneration of [false, true]) {
  const core = new FlagdCore(undefined, silent, { disableDynamicCodeGeneration });
  core.setConfigurations(JSON.stringify({ flags: definitions }));
  const mode = disableDynamicCodeGeneration ? "interpreted" : "compiled to code";
  measure(`@openfeature/flagd-core, ${mode}`, (i) =>
    JSON.stringify(core.resolveAll(contextOf(i), silent)),
  );
}

// --- over HTTP ---------------------------------------------------------------------------------------------------------------

function processorSeconds(pid: number | undefined): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  const ticksPerSecond = 100;
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

const cluster = await startCluster({ nodes: 1, runtimes: ["bun"], env: { CONFLUX_LOG: "error" } });
try {
  const [node] = cluster.nodes;
  if (node === undefined) throw new Error("No node");
  const { url, pid } = node;
  const made = await ask(`${url}/v1/tenants`, {
    token: cluster.rootToken,
    // The default rate is for tenants, not for benches.
    body: { id: "bench", quotas: {} },
  });
  if (made.status !== 201) throw new Error(JSON.stringify(made.body));
  const admin = made.body.key.token as string;
  const N = "/v1/tenants/bench/namespaces/app";
  await inParallel(flags, 8, async (flag) => {
    const i = flags.indexOf(flag);
    const put = await ask(`${url}${N}/configs/${flag.key}`, {
      method: "PUT",
      token: admin,
      body: { format: "flag", content: definitionOf(i) },
    });
    if (put.status !== 201) throw new Error(JSON.stringify(put.body));
  });
  const key = await ask(`${url}/v1/tenants/bench/keys`, { token: admin, body: { kind: "client" } });
  const token = key.body.token as string;
  const over = async (
    name: string,
    request: (i: number) => { method: string; path: string; token: string; body?: string },
  ): Promise<void> => {
    await load({ urls: [url], connections: 32, seconds: seconds / 4, request });
    const before = processorSeconds(pid);
    const result = await load({ urls: [url], connections: 32, seconds, request });
    const spent = processorSeconds(pid) - before;
    if (result.failures > 0) throw new Error(`${result.failures} failed: ${result.firstFailure}`);
    row(
      `HTTP, ${name}`,
      result.requests / spent,
      `per core (${result.perSecond.toFixed(0)}/s here, p50 ${result.p50.toFixed(1)} ms)`,
    );
  };
  await over("OFREP bulk, another context each", (i) => ({
    method: "POST",
    path: `${N}/ofrep/v1/evaluate/flags`,
    token,
    body: JSON.stringify({ context: contextOf(i) }),
  }));
  await over("OFREP, one flag", (i) => ({
    method: "POST",
    path: `${N}/ofrep/v1/evaluate/flags/flag-${i % count}`,
    token,
    body: JSON.stringify({ context: contextOf(i) }),
  }));
  await over("all values of the namespace", () => ({ method: "GET", path: `${N}/values`, token }));
} finally {
  await cluster.stop();
}
