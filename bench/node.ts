/**
 * The stack below the gateway with many tenants, on one node: `bun bench/node.ts [DIR] [--tenants N] [--seconds S] [--cold N] [--parts spread,journal,cold] [--write]`.
 *
 * Back of the envelope, before measuring. A write of 200 bytes is a command of about 450 bytes of JSON: raft, journal and
 * applying it cost some 30 µs of one core, so one process takes about 30,000 a second. Its record is about 550 bytes: 11
 * MB/s of journal at 20,000/s, 22 with the zeros before it. Ten thousand tenants written to in turn all pin the oldest
 * segment, so each is checkpointed once per round of the journal's bound: of 256 MiB, once in 23 s, 430 checkpoints a
 * second of about 0.3 ms on this thread: 13 % of the time. Each dirties ten pages or so of LMDB.
 * A restart reads the journal (1 s per 256 MiB) and asks for no cold tenant: it must not matter how many there are.
 */
import { execFileSync } from "node:child_process";
import { hash } from "node:crypto";
import * as fs from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import type { TenantRow } from "../src/machine/rows.ts";
import { completeEnvironment } from "../src/runtime/environment.ts";
import { holdMallocThreshold } from "../src/runtime/memory.ts";
import { useDigest } from "../src/model/content.ts";
import { LmdbEnvironments } from "../src/store/environments.ts";
import { command, namespace, node, openStack } from "../test/crash/stack.ts";
import { longestBlock } from "./block.ts";
import { writeReport, type Row } from "./report.ts";
import { publication, spreadWrites } from "./spread.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tenants: { type: "string", default: "10000" },
    seconds: { type: "string", default: "20" },
    rate: { type: "string", default: "20000" },
    cold: { type: "string", default: "100000" },
    parts: { type: "string", default: "spread,journal,cold" },
    write: { type: "boolean", default: false },
  },
});
// As main.ts does.
completeEnvironment();
await holdMallocThreshold();
useDigest((text) => hash("sha256", text, "hex"));
const tenantsCount = Number(values.tenants);
const seconds = Number(values.seconds);
const rate = Number(values.rate);
const coldCount = Number(values.cold);

const directory = fs.mkdtempSync(join(positionals[0] ?? tmpdir(), "conflux-bench-"));
const rows: Row[] = [];
const [load = 0] = loadavg();

function row(what: string, figure: string, note = "", wanted = ""): void {
  rows.push({ what: what.trim(), figure: note === "" ? figure : `${figure}; ${note}`, wanted });
  console.log(`  ${what.padEnd(64)} ${figure.padStart(22)}  ${note}`);
}

function fatal(error: Error): void {
  throw error;
}

function open(path: string, tuning = {}): ReturnType<typeof openStack> {
  return openStack(path, fatal, (message, fields) => console.error(message, fields), { tuning });
}

type Stack = Awaited<ReturnType<typeof openStack>>;

async function createTenant(stack: Stack, tenant: string): Promise<void> {
  const made = await stack.host.propose(
    "_system",
    command({
      op: "directory.create",
      tenant,
      quotas: { versionsPerConfig: 10 },
      nodes: [node],
      adminKey: { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) },
    }),
    60_000,
  );
  if (!made.ok) throw new Error(made.detail);
  const put = await stack.host.propose(
    tenant,
    command({ op: "config.put", namespace, name: "c", format: "text" }),
    60_000,
  );
  if (!put.ok) throw new Error(put.detail);
}

async function inTurn(
  count: number,
  width: number,
  act: (n: number) => Promise<void>,
): Promise<void> {
  let next = 0;
  const work = async (): Promise<void> => {
    while (next < count) await act(next++);
  };
  await Promise.all(Array.from({ length: width }, work));
}

async function publish(stack: Stack, tenant: string, bytes?: number): Promise<void> {
  const outcome = await stack.host.propose(tenant, publication(bytes), 30_000);
  if (!outcome.ok) throw new Error(outcome.detail);
}

async function spread(): Promise<void> {
  const stack = await open(join(directory, "spread"));
  const tenants = Array.from({ length: tenantsCount }, (_, n) => `t${n}`);
  const start = performance.now();
  await inTurn(tenantsCount, 32, (n) => createTenant(stack, tenants[n] as string));
  const each = (performance.now() - start) / tenantsCount;
  row(`${tenantsCount} tenants created`, `${each.toFixed(2)} ms each`);
  const load = { tenants: tenantsCount, rate, seconds };
  for (const { what, figure, wanted } of await spreadWrites(load, (n) =>
    publish(stack, tenants[n] as string),
  ))
    row(what, figure, "", wanted);
  const { environments, journal } = stack;
  row(
    "environments open, of at most; journal",
    `${environments.open_count} of ${environments.cap}`,
    `${journal.status.segments} segments, ${Math.round(journal.status.bytes / 2 ** 20)} MiB`,
  );
  await stack.close();
}

/** What was copied or linked behind the store's back goes to the disk now, and not within the time that is taken. */
function settle(): void {
  execFileSync("sync");
}

/** A journal that nothing was checkpointed from, as a crash leaves it at worst. */
async function restartWithJournal(): Promise<void> {
  const path = join(directory, "journal");
  const stack = await open(path, { checkpointBytes: 2 ** 40, journalSegments: 1_000 });
  await inTurn(1_000, 32, (n) => createTenant(stack, `t${n}`));
  while (stack.journal.status.bytes < 256 * 2 ** 20)
    await inTurn(2_000, 500, (n) => publish(stack, `t${n % 1_000}`, 1_000));
  const { bytes } = stack.journal.status;
  const copy = join(directory, "copy");
  fs.cpSync(path, copy, { recursive: true, filter: (name) => !/lock\./.test(name) });
  await stack.close();
  settle();
  const held = longestBlock();
  const start = performance.now();
  const again = await open(copy);
  const seconds = (performance.now() - start) / 1000;
  row(
    `ready again with ${Math.round(bytes / 2 ** 20)} MiB of journal, 1,000 tenants`,
    `${seconds.toFixed(2)} s`,
    `the thread held for ${held().toFixed(0)} ms at most`,
    "< 3 s",
  );
  const read = performance.now();
  await again.host.read("t500", { consistency: "linearizable" }, (view) => view.revision);
  row("  and a tenant of it answers after another", `${(performance.now() - read).toFixed(0)} ms`);
  await again.close();
}

async function restartWithCold(count: number): Promise<number> {
  const path = join(directory, `cold-${count}`);
  const stack = await open(path);
  await createTenant(stack, "warm");
  await stack.close();
  // Made behind the store's back: creating them all would take minutes and is not what is measured.
  const environments = new LmdbEnvironments({ data: path });
  const system = environments.open("_system.1.1");
  const row = JSON.parse(system.get("ten/warm") as string) as TenantRow;
  const state = JSON.parse(system.get("meta") as string) as { nextGroup: number };
  const added: [string, string][] = [];
  let file = join(path, "tenants", `warm.${row.group}.1`, "data.mdb");
  for (let n = 0; n < count; n++) {
    const [tenant, group] = [`cold${n}`, state.nextGroup + n];
    added.push([`ten/${tenant}`, JSON.stringify({ ...row, tenant, group })]);
    added.push([`grp/${String(group).padStart(16, "0")}`, JSON.stringify(tenant)]);
    const place = join(path, "tenants", `${tenant}.${group}.1`);
    fs.mkdirSync(place);
    const data = join(place, "data.mdb");
    // A file has at most 65,000 names on ext4.
    if (n % 50_000 > 0) fs.linkSync(file, data);
    else {
      fs.copyFileSync(file, data);
      file = data;
    }
  }
  added.push(["meta", JSON.stringify({ ...state, nextGroup: state.nextGroup + count })]);
  await new Promise<void>((done, fail) => {
    const change = {
      meta: system.meta() as Uint8Array,
      rows: added,
      entries: [],
      entriesDeleted: [],
    };
    system.commit(change, (error) => (error === null ? done() : fail(error)));
  });
  await system.close();
  settle();
  // The better of two: the machine is not ours alone.
  return Math.min(await restarted(path), await restarted(path));
}

async function restarted(path: string): Promise<number> {
  const start = performance.now();
  const again = await open(path);
  await again.host.read("warm", { consistency: "linearizable" }, (view) => view.revision);
  const took = performance.now() - start;
  await again.close();
  return took;
}

try {
  console.log(
    `\nnode, ${process.versions["bun"] ? "bun" : process.versions["deno"] ? "deno" : "node"}, ${directory}`,
  );
  const parts = values.parts.split(",");
  if (parts.includes("spread")) await spread();
  if (parts.includes("journal")) await restartWithJournal();
  for (const count of parts.includes("cold") ? [10, coldCount] : []) {
    const ms = await restartWithCold(count);
    const what = `restart and first read, ${count} cold tenants on disk`;
    row(what, `${ms.toFixed(0)} ms`, "", count > 10 ? "not slower than with 10" : "");
  }
  if (values.write)
    writeReport({
      name: "node",
      title: "Many tenants on one node",
      args: process.argv.slice(2),
      setting: `${process.versions["bun"] ? `bun ${process.versions["bun"]}` : "not bun"}, one process, no HTTP`,
      load,
      text: "Writes, journal, applying and checkpoints of one node below the gateway; each tenant has one voter.",
      rows,
      plot: "",
      curves: [],
    });
} finally {
  fs.rmSync(directory, { recursive: true, force: true });
}
process.exit(0);
