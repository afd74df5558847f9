/**
 * A large tenant on its way: as a snapshot from one environment to another, and as a backup out of a node and back into
 * it: `bun bench/backup.ts [MIB]` (default 300).
 *
 * Back of the envelope, before measuring. Parts of 128 KiB: reading one from LMDB, encoding it and its checksum is about
 * 0.4 ms, decoding and queueing it for LMDB as much; writing it, synced, 1 to 2 ms off this thread. So 300 MiB are 2,400
 * parts, and with eight under way the disk decides: 50 to 100 MB/s, no turn above a few milliseconds, and not more
 * memory than the parts and what LMDB maps. A restore sends rows of 512 KiB through Raft and one journal, which writes
 * them twice (zeros first), and again at the checkpoint: 20 to 40 MB/s.
 */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { startCluster } from "../infra/cluster.mjs";
import { backup, restore, verify } from "../src/cli/backup.ts";
import type { Replica } from "../src/host/replica.ts";
import { SnapshotExchange, type SnapshotHooks } from "../src/host/snapshots.ts";
import { TenantState } from "../src/host/tenant_state.ts";
import { emptyConfState } from "../src/raft/raft.ts";
import { Admin } from "../src/sdk/admin.ts";
import { LmdbEnvironments, type LmdbEnvironment } from "../src/store/environments.ts";
import { message } from "../test/raft/helpers.ts";
import { processorSeconds } from "./processes.ts";

const mib = Number(process.argv[2] ?? 300);
const rowBytes = 50_000;
const rowCount = Math.round((mib * 1024 * 1024) / rowBytes);
const directory = fs.mkdtempSync(join(tmpdir(), "conflux-bench-"));
const lines: [what: string, figure: string][] = [];

function rssMiB(pid: number | "self" = "self"): number {
  const status = fs.readFileSync(`/proc/${pid}/status`, "utf8");
  // Without the pages of mapped files: those are the disk's cache.
  return Number(/RssAnon:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1024;
}

function rate(ms: number): string {
  return `${((mib * 1.048576) / (ms / 1000)).toFixed(0)} MB/s (${(ms / 1000).toFixed(1)} s)`;
}

function percentile(values: readonly number[], p: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] as number;
}

function committed(run: (done: (error: Error | null) => void) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    run((error) => (error === null ? resolve() : reject(error)));
  });
}

/** Not the same byte again and again: nobody's values are. */
function text(n: number): string {
  let line = "";
  for (let seed = n + 1; line.length < rowBytes; seed = (seed * 48_271) % 2_147_483_647)
    line += seed.toString(36);
  return line.slice(0, rowBytes);
}

// --- a snapshot -----------------------------------------------------------------------------------------------------------

async function fill(environment: LmdbEnvironment): Promise<void> {
  for (let from = 0; from < rowCount; from += 100) {
    const rows = Array.from({ length: Math.min(100, rowCount - from) }, (_, at) => {
      const key = `txt/app/c${String(from + at).padStart(6, "0")}`;
      return [key, JSON.stringify(text(from + at))] as const;
    });
    await committed((done) =>
      environment.commit({ meta: new Uint8Array(1), rows, entries: [], entriesDeleted: [] }, done),
    );
  }
}

async function snapshot(): Promise<void> {
  const environments = new LmdbEnvironments({ data: directory });
  const [from, to] = [environments.open("from"), environments.open("to")];
  await fill(from);
  const state = new TenantState(from);
  const turns: number[] = [];
  let parts = 0;
  const turn = (run: () => void): void => {
    const at = performance.now();
    run();
    turns.push(performance.now() - at);
  };
  const later = (run: () => void): void => void setImmediate(() => turn(run));
  const sender = {
    group: 2,
    incarnation: 1,
    halted: null,
    raft: { isLeader: true },
    snapshot: () => {
      const taken = state.snapshot();
      return { index: 1, term: 1, rows: () => taken.rows(), close: () => taken.close() };
    },
  } as unknown as Replica;
  const receiver = {
    group: 2,
    halted: null,
    stage: () => to.stage(),
    discard: () => {},
  } as unknown as Replica;
  let installed: () => void = () => {};
  const whole = new Promise<void>((resolve) => {
    installed = resolve;
  });
  const hooks = (deliver: (item: Uint8Array) => void): SnapshotHooks => ({
    now: () => performance.now(),
    defer: later,
    send: (_node, _kind, item) => {
      const copy = item.slice();
      parts += 1;
      later(() => deliver(copy));
      return true;
    },
    receiver: () => receiver,
    received: (_replica, _message, staging) => {
      to.install(staging, new Uint8Array(1), (error) => {
        if (error !== null) throw error;
        installed();
      });
    },
    sent: () => {},
    contained: (_replica, run) => run(),
  });
  const left: SnapshotExchange = new SnapshotExchange(
    1,
    128 * 1024,
    16,
    hooks((item) => right.onPart("n1", item)),
  );
  const right: SnapshotExchange = new SnapshotExchange(
    1,
    128 * 1024,
    16,
    hooks((item) => left.onAck("n2", item)),
  );
  const sent = message("installSnapshot", {
    to: 2,
    from: 1,
    snapshot: {
      index: 1,
      term: 1,
      confState: { ...emptyConfState(), voters: [1, 2] },
    },
  });
  const before = rssMiB();
  let most = before;
  const watching = setInterval(() => {
    most = Math.max(most, rssMiB());
  }, 20);
  const at = performance.now();
  turn(() => left.send(sender, "n2", sent));
  await whole;
  const ms = performance.now() - at;
  clearInterval(watching);
  lines.push(
    [`snapshot of ${mib} MiB, both ends in one process`, rate(ms)],
    [
      `turns of it (${parts} items)`,
      // On a busy machine the longest are those in which somebody else had the processor.
      [0.5, 0.99, 1].map((p) => `p${p * 100} ${percentile(turns, p).toFixed(1)} ms`).join(", "),
    ],
    ["memory on top, without mapped files", `${(most - before).toFixed(0)} MiB`],
  );
  let rows = 0;
  for (const _row of to.range({ gte: "", lt: "\x7f" })) rows += 1;
  if (rows !== rowCount) throw new Error(`${rows} rows arrived instead of ${rowCount}`);
  await from.close();
  await to.close();
}

// --- a backup -------------------------------------------------------------------------------------------------------------

/** The longest answer of something small while `run` goes on, and what the node took on top. */
async function beside(url: string, pid: number, run: () => Promise<void>): Promise<string> {
  let running = true;
  let longest = 0;
  const before = rssMiB(pid);
  let most = before;
  const probing = (async () => {
    while (running) {
      const at = performance.now();
      await (await fetch(`${url}/livez`)).text();
      longest = Math.max(longest, performance.now() - at);
      most = Math.max(most, rssMiB(pid));
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  })();
  const at = performance.now();
  const processorBefore = processorSeconds([pid]);
  const ownBefore = process.cpuUsage();
  await run();
  const ms = performance.now() - at;
  const processor = processorSeconds([pid]) - processorBefore;
  const { user, system } = process.cpuUsage(ownBefore);
  running = false;
  await probing;
  return `${rate(ms)}; ${processor.toFixed(1)} s of processor of the node and ${((user + system) / 1e6).toFixed(1)} s of this client; slowest /livez beside it ${longest.toFixed(0)} ms, memory from ${before.toFixed(0)} to at most ${most.toFixed(0)} MiB`;
}

function guard(states: readonly { readonly error?: string }[]): void {
  for (const { error } of states) if (error !== undefined) throw new Error(error);
}

async function backups(): Promise<void> {
  const cluster = await startCluster({ nodes: 1, runtimes: ["bun"] });
  try {
    const [node] = cluster.nodes;
    if (node === undefined) throw new Error("The cluster has no node");
    const { url } = node;
    const pid = node.pid as number;
    const admin = new Admin({ url, token: cluster.rootToken });
    await admin.createTenant({ id: "large" });
    let next = 0;
    const write = async (): Promise<void> => {
      for (let n = next++; n < rowCount; n = next++)
        await admin.putConfig({ tenant: "large", namespace: "app" }, `c${n}`, {
          format: "text",
          content: text(n),
        });
    };
    await Promise.all(Array.from({ length: 8 }, write));
    const to = join(directory, "backups");
    const tell = (): void => {};
    lines.push([
      "backup over HTTP into a file",
      await beside(url, pid, async () => guard(await backup(admin, to, ["large"], tell))),
    ]);
    const at = performance.now();
    guard(await verify(to, tell));
    lines.push(["verify", rate(performance.now() - at)]);
    lines.push([
      "restore, verified first, one replica",
      await beside(url, pid, async () =>
        guard(await restore(admin, to, ["large"], { as: "copy" }, tell)),
      ),
    ]);
  } finally {
    await cluster.stop();
  }
}

function tell(): void {
  const width = Math.max(...lines.map(([what]) => what.length));
  for (const [what, figure] of lines.splice(0)) console.log(`${what.padEnd(width)}  ${figure}`);
}

try {
  await snapshot();
  tell();
  await backups();
  tell();
} finally {
  fs.rmSync(directory, { recursive: true, force: true });
}
