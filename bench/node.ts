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
import { Replica } from "../src/host/replica.ts";
import type { TenantRow } from "../src/machine/rows.ts";
import { holdMallocThreshold } from "../src/runtime/memory.ts";
import { useDigest } from "../src/model/content.ts";
import { LmdbEnvironment, LmdbEnvironments } from "../src/store/environments.ts";
import { command, namespace, node, openStack } from "../test/crash/stack.ts";
import { writeReport, type Row } from "./report.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tenants: { type: "string", default: "10000" },
    seconds: { type: "string", default: "30" },
    rate: { type: "string", default: "20000" },
    cold: { type: "string", default: "100000" },
    parts: { type: "string", default: "spread,journal,cold" },
    write: { type: "boolean", default: false },
  },
});
await holdMallocThreshold();
// As main.ts does.
useDigest((text) => hash("sha256", text, "hex"));
const tenantsCount = Number(values.tenants);
const seconds = Number(values.seconds);
const rate = Number(values.rate);
const coldCount = Number(values.cold);
const valueBytes = 200;
const inFlightMax = 2_000;

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

let serial = 0;
async function publish(stack: Stack, tenant: string, bytes: number): Promise<void> {
  const text = `${++serial} `.padEnd(bytes, "v");
  const content = { text, hash: `sha256:${serial}`, bytes };
  const outcome = await stack.host.propose(
    tenant,
    command({ op: "publish", namespace, name: "c", content, schemaHash: null }),
    30_000,
  );
  if (!outcome.ok) throw new Error(outcome.detail);
}

/**
 * Bytes that this process gave to calls that write, which here are the journal's and LMDB's alone: records, the zeros before
 * them, pages. (`write_bytes` beside it counts whole folios of the page cache for every journal write that touches one.)
 */
function written(): number {
  return Number(/^wchar: (\d+)/m.exec(fs.readFileSync("/proc/self/io", "utf8"))?.[1]);
}

/** MiB of this process; pages of mapped files are the disk's cache, which the system takes back when it needs room. */
function resident(kind: "RssAnon" | "RssFile"): number {
  const status = fs.readFileSync("/proc/self/status", "utf8");
  return Number(new RegExp(`^${kind}:\\s+(\\d+)`, "m").exec(status)?.[1]) / 1024;
}

/**
 * Time of this thread in checkpoints, from the replica's decision to the end of what the durable commit calls back: rows
 * and entries encoded, an environment opened for it and another closed. And how often one was opened for anything.
 */
function timeCheckpoints(): { ms: number; count: number; opened: number } {
  const spent = { ms: 0, count: 0, opened: 0 };
  const timed = <T>(run: () => T): T => {
    const start = performance.now();
    try {
      return run();
    } finally {
      spent.ms += performance.now() - start;
    }
  };
  // oxlint-disable-next-line typescript/unbound-method
  const { checkpoint } = Replica.prototype;
  Replica.prototype.checkpoint = function measured(this: Replica) {
    spent.count += 1;
    return timed(() => checkpoint.call(this));
  };
  // oxlint-disable-next-line typescript/unbound-method
  const { commit, wake } = LmdbEnvironment.prototype;
  LmdbEnvironment.prototype.commit = function measured(this: LmdbEnvironment, change, done) {
    commit.call(this, change, (error) => timed(() => done(error)));
  };
  LmdbEnvironment.prototype.wake = function measured(this: LmdbEnvironment) {
    const isOpen = this.isOpen;
    const databases = wake.call(this);
    if (!isOpen) spent.opened += 1;
    return databases;
  };
  return spent;
}

async function spread(): Promise<void> {
  const stack = await open(join(directory, "spread"));
  const tenants = Array.from({ length: tenantsCount }, (_, n) => `t${n}`);
  let start = performance.now();
  await inTurn(tenantsCount, 32, (n) => createTenant(stack, tenants[n] as string));
  const each = (performance.now() - start) / tenantsCount;
  row(`${tenantsCount} tenants created`, `${each.toFixed(2)} ms each`);
  const problems = new Map<string, number>();
  const commits = timeCheckpoints();
  const bytesBefore = written();
  const cpuBefore = process.cpuUsage();
  let done = 0;
  let inFlight = 0;
  let issued = 0;
  start = performance.now();
  // As many as the clock allows so far, not more in flight than is sensible.
  while (performance.now() - start < seconds * 1000) {
    const due = ((performance.now() - start) / 1000) * rate;
    while (issued < due && inFlight < inFlightMax) {
      inFlight += 1;
      publish(stack, tenants[issued++ % tenantsCount] as string, valueBytes).then(
        () => {
          inFlight -= 1;
          done += 1;
        },
        (error: Error) => {
          inFlight -= 1;
          const key = `${(error as { code?: string }).code ?? ""} ${error.message.replace(/t\d+/, "T")}`;
          problems.set(key, (problems.get(key) ?? 0) + 1);
        },
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  const elapsed = performance.now() - start;
  const cpu = process.cpuUsage(cpuBefore);
  row(
    `writes of ${valueBytes} bytes spread over all, ${rate}/s asked for`,
    `${Math.round(done / (elapsed / 1000))}/s`,
    problems.size === 0 ? "no refusal" : JSON.stringify([...problems]),
    "20000/s, no refusal",
  );
  row(
    "  of this thread's time in checkpoints",
    `${((100 * commits.ms) / elapsed).toFixed(1)} %`,
    `${Math.round(commits.count / (elapsed / 1000))} checkpoints/s of ${(commits.ms / commits.count).toFixed(2)} ms, ${Math.round(commits.opened / (elapsed / 1000))} environments opened/s; ${((cpu.user + cpu.system) / 1000 / elapsed).toFixed(2)} cores in all`,
    "< 20 %",
  );
  row(
    "  memory, without the pages of LMDB's files",
    `${Math.round(resident("RssAnon"))} MiB`,
    `with them ${Math.round(process.memoryUsage.rss() / 2 ** 20)} MiB`,
  );
  row(
    "  bytes given to write calls per write",
    `${Math.round((written() - bytesBefore) / done)}`,
    `${((written() - bytesBefore) / done / valueBytes).toFixed(1)} × its ${valueBytes} bytes`,
  );
  const { environments, journal } = stack;
  row(
    "  environments open, of at most; journal",
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
  const start = performance.now();
  const again = await open(copy);
  row(
    `ready again with ${Math.round(bytes / 2 ** 20)} MiB of journal, 1,000 tenants`,
    `${((performance.now() - start) / 1000).toFixed(2)} s`,
    "",
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
  const file = join(path, "tenants", `warm.${row.group}.1`, "data.mdb");
  for (let n = 0; n < count; n++) {
    const [tenant, group] = [`cold${n}`, state.nextGroup + n];
    added.push([`ten/${tenant}`, JSON.stringify({ ...row, tenant, group })]);
    added.push([`grp/${String(group).padStart(16, "0")}`, JSON.stringify(tenant)]);
    const place = join(path, "tenants", `${tenant}.${group}.1`);
    fs.mkdirSync(place);
    fs.linkSync(file, join(place, "data.mdb"));
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
  // Taken in turns, and the better of two: the machine is not ours alone.
  const rounds = parts.includes("cold") ? 2 : 0;
  const times: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++)
    for (const [at, count] of [10, coldCount].entries()) {
      times[at as 0 | 1].push(await restartWithCold(count));
      fs.rmSync(join(directory, `cold-${count}`), { recursive: true });
    }
  for (const [at, count] of rounds === 0 ? [] : [10, coldCount].entries())
    row(
      `restart and first read, ${count} cold tenants on disk`,
      `${Math.min(...times[at as 0 | 1]).toFixed(0)} ms`,
    );
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
