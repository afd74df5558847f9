/**
 * Sets of 350 flags per second and core: what one page asks for when it opens.
 *
 * Estimate beforehand: a flag without targeting is a look-up, 10 ns; one with a comparison or a fractional rollout reads
 * one or two attributes and hashes twenty characters, 100 ns; joining 350 pieces of 90 bytes takes another 10 µs. So a set
 * is 40 µs, and one over HTTP 140 µs: 25,000/s and 7,000/s. flagd-core copies the context for every flag and makes an
 * object of every result, about 1 µs each: 3,000/s.
 *
 * Counted per second of processor time of whoever evaluates: the client, and who else works here, shares the machine.
 * Beside it stands what the runtime's HTTP server takes to read the same request and send the same bytes, and nothing else.
 *
 * Run: bun bench/ofrep.ts [--seconds 3] [--runtime bun] [--write]      --write puts the table into bench/results
 */
import { spawn } from "node:child_process";
import { loadavg } from "node:os";
import process from "node:process";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { FlagdCore } from "@openfeature/flagd-core";
import { runCommand, runtimes } from "../infra/bootstrap.mjs";
import { startCluster } from "../infra/cluster.mjs";
import { Flag, withFlagCall, type FlagDefinition } from "../src/model/flags.ts";
import { serve } from "../src/runtime/serve.ts";
import { ask, inParallel } from "../test/e2e/api.ts";
import { load, type LoadRequest } from "./load.ts";
import { microsPerRequest, processorSeconds, residentKiB } from "./processes.ts";
import { printRows, writeReport, type Row } from "./report.ts";

const count = 350;
/** Before anything is counted, but no longer than so. */
const warmRequests = 10_000;
const warmMsMax = 15_000;
const variants = { on: true, off: false };

/**
 * A quarter each: static, one comparison, a rollout, three conditions.
 * @param own what its conditions compare with is no other flag's; else flags ask for the same few things, as they mostly do
 */
function definitionOf(i: number, own: boolean): FlagDefinition {
  const mark = own ? `-${i}` : "";
  const targetings: readonly Record<string, unknown>[] = [
    {},
    { if: [{ "==": [{ var: "plan" }, `pro${mark}`] }, "on", "off"] },
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
            { in: [{ var: "country" }, ["de", "fr", "it", ...(own ? [mark] : [])]] },
            { sem_ver: [{ var: "version" }, ">=", own ? `2.1.${i}` : "2.1.0"] },
          ],
        },
        "on",
        { if: [{ ends_with: [{ var: "email" }, `${mark}@example.com`] }, "on", "off"] },
      ],
    },
  ];
  const targeting = targetings[i % targetings.length] as Record<string, unknown>;
  return { state: "ENABLED", variants, defaultVariant: "off", targeting };
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

// --- in this process -------------------------------------------------------------------------------------------------------

/** Microseconds of this process's own time that one run takes. */
function microsOf(seconds: number, run: (i: number) => unknown): number {
  let i = 0;
  const during = (ms: number): number => {
    const from = i;
    const before = process.cpuUsage();
    const startedAt = performance.now();
    while (performance.now() - startedAt < ms) run(i++);
    const { user, system } = process.cpuUsage(before);
    return (user + system) / (i - from);
  };
  during(seconds * 500);
  return during(seconds * 1_000);
}

function evaluated(own: boolean): (i: number) => unknown {
  const flags = Array.from(
    { length: count },
    (_, i) => new Flag(`flag-${i}`, definitionOf(i, own)),
  );
  return (i) =>
    withFlagCall(contextOf(i), Date.now(), (call) => {
      let seen = 0;
      for (const flag of flags) seen += flag.evaluate(call).key.length;
      return seen;
    });
}

function byFlagdCore(disableDynamicCodeGeneration: boolean): (i: number) => unknown {
  const silent = { debug() {}, info() {}, warn() {}, error() {} };
  const core = new FlagdCore(undefined, silent, { disableDynamicCodeGeneration });
  const flags = Object.fromEntries(
    Array.from({ length: count }, (_, i) => [`flag-${i}`, definitionOf(i, false)]),
  );
  core.setConfigurations(JSON.stringify({ flags }));
  return (i) => core.resolveAll(contextOf(i), silent);
}

// --- a server that does nothing else -----------------------------------------------------------------------------------------

/** Reads requests, and answers each with a body of so many bytes under the headers of an evaluation. */
async function bareProcess(length: number): Promise<void> {
  const bytes = new TextEncoder().encode("x".repeat(length));
  const server = await serve(
    async (request) => {
      await request.arrayBuffer();
      const headers = {
        "content-type": "application/json; charset=utf-8",
        "cache-control": "no-cache",
        etag: `"${"x".repeat(32)}"`,
        "x-request-id": "0123456789abcdef",
        "conflux-revision": "1000",
      };
      return new Response(bytes, { headers });
    },
    { host: "127.0.0.1", port: 0 },
  );
  console.log(server.url);
}

type Runtime = (typeof runtimes)[number];

async function startBare(
  runtime: Runtime,
  length: number,
): Promise<{ url: string; pid: number; stop: () => void }> {
  const { command, args } = runCommand(runtime, import.meta.filename, ["--bare", String(length)]);
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
  const url = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).once("line", resolve);
    child.once("exit", (code) => reject(new Error(`The bare server ended with ${code}`)));
  });
  return { url, pid: child.pid ?? 0, stop: () => child.kill("SIGKILL") };
}

// --- the measurements --------------------------------------------------------------------------------------------------------

async function measure(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      seconds: { type: "string", default: "3" },
      runtime: { type: "string", default: "bun" },
      write: { type: "boolean", default: false },
    },
  });
  const seconds = Number(values.seconds);
  const runtime = runtimes.find((one) => one === values.runtime);
  if (runtime === undefined) throw new Error(`Unknown runtime ${values.runtime}`);
  const [loadBefore = 0] = loadavg();
  const rows: Row[] = [];
  const row = (what: string, micros: number, more = "", wanted = ""): void => {
    const rate = Math.round(1_000_000 / micros).toLocaleString("en");
    const one = { what, figure: `${rate}/s per core (${micros.toFixed(1)} µs${more})`, wanted };
    rows.push(one);
    printRows([one]);
  };

  row(
    "in process: a set evaluated, flags that ask for the same",
    microsOf(seconds, evaluated(false)),
  );
  row(
    "in process: a set evaluated, each flag asks for its own",
    microsOf(seconds, evaluated(true)),
  );
  row("in process: @openfeature/flagd-core, compiled", microsOf(seconds, byFlagdCore(false)));
  row("in process: @openfeature/flagd-core, interpreted", microsOf(seconds, byFlagdCore(true)));

  const over = async (
    what: string,
    at: { readonly url: string; readonly pid: number | undefined },
    request: (i: number) => LoadRequest,
    wanted = "",
  ): Promise<void> => {
    const pids = at.pid === undefined ? [] : [at.pid];
    const options = { urls: [at.url], connections: 32, request };
    // Its code is compiled while it runs, and that is not what is asked.
    const until = performance.now() + warmMsMax;
    for (let warm = 0; warm < warmRequests && performance.now() < until;)
      warm += (await load({ ...options, seconds: 1 })).requests;
    const before = processorSeconds(pids);
    const result = await load({ ...options, seconds });
    const spent = processorSeconds(pids) - before;
    if (result.failures > 0) throw new Error(`${result.failures} failed: ${result.firstFailure}`);
    const here = `${result.perSecond.toFixed(0)}/s here, p50 ${result.p50.toFixed(1)} ms`;
    row(`HTTP: ${what}`, microsPerRequest(spent, result.requests), `; ${here}`, wanted);
  };

  const cluster = await startCluster({
    nodes: 1,
    runtimes: [runtime],
    env: { CONFLUX_LOG: "error" },
  });
  try {
    const [node] = cluster.nodes;
    if (node === undefined) throw new Error("No node");
    const { url } = node;
    const made = await ask(`${url}/v1/tenants`, {
      token: cluster.rootToken,
      // The default rate is for tenants, not for benches.
      body: { id: "bench", quotas: {} },
    });
    if (made.status !== 201) throw new Error(JSON.stringify(made.body));
    const admin = made.body.key.token as string;
    const of = (namespace: string): string => `/v1/tenants/bench/namespaces/${namespace}`;
    for (const namespace of ["alike", "own"])
      await inParallel(
        Array.from({ length: count }, (_, i) => i),
        8,
        async (i) => {
          const put = await ask(`${url}${of(namespace)}/configs/flag-${i}`, {
            method: "PUT",
            token: admin,
            body: { format: "flag", content: definitionOf(i, namespace === "own") },
          });
          if (put.status !== 201) throw new Error(JSON.stringify(put.body));
        },
      );
    const key = await ask(`${url}/v1/tenants/bench/keys`, {
      token: admin,
      body: { kind: "client" },
    });
    const token = key.body.token as string;
    const bulk =
      (namespace: string, contexts = Number.POSITIVE_INFINITY) =>
      (i: number): LoadRequest => ({
        method: "POST",
        path: `${of(namespace)}/ofrep/v1/evaluate/flags`,
        token,
        body: JSON.stringify({ context: contextOf(i % contexts) }),
      });
    const first = bulk("alike")(0);
    const asked = await fetch(`${url}${first.path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: first.body ?? "",
    });
    const length = (await asked.arrayBuffer()).byteLength;
    const etag = asked.headers.get("etag") ?? "";
    if (asked.status !== 200 || length < 20_000)
      throw new Error(`${asked.status}, ${length} bytes`);

    const bare = await startBare(runtime, length);
    try {
      await over(`a bare server, the same request, ${length} bytes back`, bare, bulk("alike"));
    } finally {
      bare.stop();
    }
    const wanted = "≥ 7,000/s";
    await over("OFREP bulk, always another context", node, bulk("alike"), wanted);
    await over(
      "OFREP bulk, another context, each flag asks for its own",
      node,
      bulk("own"),
      wanted,
    );
    await over("OFREP bulk, a hundred contexts again and again", node, bulk("alike", 100), wanted);
    await over("OFREP bulk, If-None-Match that holds (304)", node, () => ({
      method: "",
      path: "",
      raw: `POST ${first.path} HTTP/1.1\r\nhost: node\r\nauthorization: Bearer ${token}\r\nif-none-match: ${etag}\r\ncontent-type: application/json\r\ncontent-length: ${first.body?.length}\r\n\r\n${first.body}`,
    }));
    await over("OFREP, one flag", node, (i) => ({
      ...bulk("alike")(i),
      path: `${first.path}/flag-${i % count}`,
    }));
    const all = { method: "GET", path: `${of("alike")}/values`, token };
    await over("all values of the namespace", node, () => all);
    await over("one value", node, (i) => ({ ...all, path: `${all.path}/flag-${i % count}` }));
    // What a server keeps of every request is a leak: it would grow by the same again.
    const resident = [residentKiB(node.pid)];
    for (let round = 0; round < 2; round++) {
      await load({ urls: [url], connections: 32, seconds: seconds * 2, request: bulk("alike") });
      resident.push(residentKiB(node.pid));
    }
    const mebibytes = resident.map((kibi) => (kibi / 1024).toFixed(0)).join(", ");
    const figure = `${mebibytes} MiB, ${seconds * 2} s of load between each`;
    rows.push({ what: "memory of the node (RSS): now and after more sets", figure, wanted: "" });
    printRows(rows.slice(-1));
  } finally {
    await cluster.stop();
  }
  if (values.write)
    writeReport({
      name: runtime === "bun" ? "ofrep" : `ofrep-${runtime}`,
      title: `OFREP, sets of ${count} flags`,
      args,
      setting: `one node on ${runtime} and its client on one machine; in process on Bun`,
      load: loadBefore,
      text: "Per second of processor time of the process that evaluates, all its threads. A quarter of the flags each is static, has one comparison, a rollout, three conditions.",
      rows,
      plot: "",
      curves: [],
    });
}

const bare = process.argv.indexOf("--bare");
if (bare === -1) await measure(process.argv.slice(2));
else await bareProcess(Number(process.argv[bare + 1]));
