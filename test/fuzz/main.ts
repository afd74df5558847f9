/**
 * The fuzzer's program: `npm run fuzz -- --minutes 30` starts three nodes, one on each runtime, and sends requests made
 * from their OpenAPI document to all of them in turn, with attacks over plain sockets in between. `--seed N` begins with
 * that batch (each batch is told by its seed), `--batches N` ends after so many. What it finds goes to standard output.
 */
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { startCluster } from "../../infra/cluster.mjs";
import { ask, persist } from "../e2e/api.ts";
import { attack } from "./attacks.ts";
import type { OpenApi } from "./requests.ts";
import { describeFinding, Fuzzer, prepare, type Sent } from "./run.ts";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "1" },
    seed: { type: "string", default: "1" },
    batches: { type: "string" },
  },
});
const attackEveryBatches = 50;

const folder = mkdtempSync(path.join(tmpdir(), "conflux-fuzz-"));
process.on("exit", () => rmSync(folder, { recursive: true }));
const keyFile = path.join(folder, "keys");
writeFileSync(keyFile, `k1:${randomBytes(32).toString("base64")}\n`);

const cluster = await startCluster({
  nodes: 3,
  runtimes: ["bun", "deno", "node"],
  env: { CONFLUX_SECRET_KEY_FILE: keyFile },
});
const { rootToken } = cluster;
const urls = cluster.nodes.map((node) => node.url);
let turn = 0;
const next = (): string => urls[turn++ % urls.length] as string;

async function post(path: string, body: object): Promise<unknown> {
  const answer = await persist(urls, path, { token: rootToken, body });
  if (answer.status >= 400) throw new Error(`${path}: ${JSON.stringify(answer.body)}`);
  return answer.body;
}

/** A stream may take until its first frame to say anything: its head is enough. */
async function send(url: string, init: RequestInit, isStream: boolean): Promise<Sent> {
  const response = await fetch(url, init);
  const { status, headers } = response;
  if (isStream && headers.get("content-type") === "text/event-stream") {
    await response.body?.cancel();
    return { status, headers, text: "" };
  }
  return { status, headers, text: await response.text() };
}

async function state(): Promise<string> {
  const read = async (path: string): Promise<Record<string, unknown>> =>
    (await ask((urls[0] as string) + path, { token: rootToken })).body as Record<string, unknown>;
  const { revision, configs, deletedConfigs, namespaces, keys, bytes } =
    await read("/v1/tenants/acme/usage");
  const { items } = (await read("/v1/tenants?limit=1000")) as {
    items: { id: string; revision: number }[];
  };
  const tenants = items.map(({ id, revision: at }) => `${id} ${at}`);
  return JSON.stringify([revision, configs, deletedConfigs, namespaces, keys, bytes, tenants]);
}

let failed = 0;
try {
  const document = (await ask(`${urls[0]}/openapi.json`)).body as OpenApi;
  const made = await prepare(rootToken, post);
  const shop = (await post("/v1/tenants", { id: "shop" })) as { key: { token: string } };
  const fuzzer = new Fuzzer(document, {
    ...made,
    state,
    send: ({ method, target, headers, body, isStream }) =>
      send(next() + target, { method, headers, body, redirect: "manual" }, isStream),
  });
  const startedAt = performance.now();
  const until = startedAt + Number(values.minutes) * 60_000;
  const batchesMax = values.batches === undefined ? Infinity : Number(values.batches);
  const first = Number(values.seed);
  let told = 0;
  let shown = 0;
  for (let batch = 0; batch < batchesMax && performance.now() < until; batch++) {
    const seed = first + batch;
    await fuzzer.batch(seed);
    const { findings, requests, byStatus, operations } = fuzzer.report;
    for (; shown < findings.length; shown++)
      process.stdout.write(
        `\nbatch ${seed}: ${describeFinding(findings[shown] as (typeof findings)[number])}\nREPRODUCE: npm run fuzz -- --seed ${first} --batches ${batch + 1}\n`,
      );
    failed = findings.length;
    if (batch % attackEveryBatches === 0)
      for (const url of urls)
        for (const wrong of await attack(url, shop.key.token)) {
          failed += 1;
          process.stdout.write(`\n${url}: ${wrong}\n`);
        }
    if (process.stdout.isTTY && performance.now() - told > 2_000) {
      told = performance.now();
      process.stdout.write(`\r${requests} requests, ${findings.length} findings   `);
    }
    if (performance.now() >= until || batch + 1 >= batchesMax || findings.length >= 20) {
      const seconds = (performance.now() - startedAt) / 1_000;
      const statuses = [...byStatus].sort(([a], [b]) => a - b).map((pair) => pair.join(": "));
      process.stdout.write(
        `\r${requests} requests in ${seconds.toFixed(0)} s (batches ${first} to ${seed}), ${failed} findings; ${operations.size} of ${fuzzer.operations.length} operations succeeded; ${statuses.join(", ")}\n`,
      );
      if (findings.length >= 20) break;
    }
  }
} finally {
  await cluster.stop();
}
process.exit(failed === 0 ? 0 : 1);
