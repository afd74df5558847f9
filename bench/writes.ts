/**
 * What a write costs in processor time below the gateway: three hosts in one process, over loopback, journals and LMDB on
 * disk, 64 writers; and the same by one replica's applying alone. `--against REF` runs the same program over the sources of
 * now and those of a commit in turns, so that both see the same machine, and tells the ratio.
 *
 * Estimate: a publish is parsed, judged and applied on three replicas, 10–15 µs each; encoded and decoded as an entry,
 * a record and in frames, 5 µs each; its rows are written into LMDB three times, of which most were overwritten or deleted
 * before, 5 µs each: 60–80 µs in all. Spread over many tenants nothing is shared by a turn but the journal's write and
 * the frame: some 20 µs more per node.
 *
 * Run: bun bench/writes.ts [--tenants 1,50] [--seconds 5] [--rounds 5] [--against REF]
 */
import { execFileSync } from "node:child_process";
import { hash } from "node:crypto";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import type { Environment } from "../src/host/ports.ts";
import { TenantState } from "../src/host/tenant_state.ts";
import { LoopbackNetwork } from "../src/transport/loopback.ts";
import type { Command } from "../src/machine/command.ts";
import { apply } from "../src/machine/machine.ts";
import { useDigest } from "../src/model/content.ts";
import { completeEnvironment } from "../src/runtime/environment.ts";
import { command, namespace, openStack } from "../test/crash/stack.ts";

const writers = 64;
/** Of each tenant, published to in turn. */
const configs = 10;
const actor = { kind: "write", keyId: "k", requestId: "r".repeat(24), address: "127.0.0.1" };

completeEnvironment();
useDigest((text) => hash("sha256", text, "hex"));

let serial = 0;
function publish(name: string): Command {
  const text = `{"n":${++serial},"pad":"${"x".repeat(100)}"}`;
  const hash = `sha256:${String(serial).padStart(64, "0")}`;
  return {
    at: Date.now(),
    actor: actor as Command["actor"],
    semantics: 3,
    action: {
      op: "publish",
      namespace,
      name,
      content: { text, hash, bytes: text.length },
      schemaHash: null,
    },
  };
}

/** Processor time of this thread alone, ms: what compilers and the disk take besides depends on the machine's cores. */
function threadMs(): number {
  const [ns] = fs.readFileSync(`/proc/self/task/${process.pid}/schedstat`, "utf8").split(" ");
  return Number(ns) / 1e6;
}

const key = { id: "k", kind: "write", hash: "0".repeat(64) } as const;

/** @returns microseconds of this thread per publish */
async function hosts(
  tenantsCount: number,
  seconds: number,
): Promise<{ micros: number; all: number }> {
  const folder = fs.mkdtempSync(path.join(tmpdir(), "conflux-writes-"));
  const network = new LoopbackNetwork();
  const peers = ["n1", "n2", "n3"];
  const fatal = (error: Error): void => {
    throw error;
  };
  const stacks = await Promise.all(
    peers.map((name) =>
      openStack(
        path.join(folder, name),
        fatal,
        (message, fields) => console.error(message, fields),
        { tuning: {} },
        { name, peers, network },
      ),
    ),
  );
  const [{ host }] = stacks as [(typeof stacks)[0]];
  const must = async (tenant: string, action: Command["action"]): Promise<void> => {
    const outcome = await host.propose(tenant, command(action), 60_000);
    if (!outcome.ok) throw new Error(outcome.detail);
  };
  const tenants = Array.from({ length: tenantsCount }, (_, n) => `t${n}`);
  for (const tenant of tenants) {
    const adminKey = { id: `a${tenant}`, kind: "admin", hash: "0".repeat(64) } as const;
    await must("_system", { op: "directory.create", tenant, quotas: {}, nodes: peers, adminKey });
    await must(tenant, { op: "key.create", key });
    for (let n = 0; n < (tenantsCount > 1 ? 1 : configs); n++)
      await must(tenant, { op: "config.put", namespace, name: `c${n}` });
  }
  let done = 0;
  let ended = false;
  let next = 0;
  const work = async (writer: number): Promise<void> => {
    const { host } = stacks[writer % 3] as (typeof stacks)[0];
    while (!ended) {
      const tenant = tenants[next++ % tenantsCount] as string;
      const name = `c${tenantsCount > 1 ? 0 : next % configs}`;
      const outcome = await host.propose(tenant, publish(name), 30_000);
      if (!outcome.ok) throw new Error(outcome.detail);
      done += 1;
    }
  };
  const all = Promise.all(Array.from({ length: writers }, (_, n) => work(n)));
  const wait = (ms: number): Promise<void> =>
    new Promise((resolve) => void setTimeout(resolve, ms));
  // Until the compiler is done with most of it.
  await wait(seconds * 1_000);
  const [before, thread, cpu] = [done, threadMs(), process.cpuUsage()];
  await wait(seconds * 1_000);
  const [count, ms] = [done - before, threadMs() - thread];
  const { user, system } = process.cpuUsage(cpu);
  ended = true;
  await all;
  await Promise.all(stacks.map((stack) => stack.close()));
  fs.rmSync(folder, { recursive: true, force: true });
  return { micros: (ms * 1_000) / count, all: (user + system) / count };
}

/** Rows as JSON text in memory. */
class Memory {
  readonly rows = new Map<string, string>();
  get(key: string): string | undefined {
    return this.rows.get(key);
  }
  *range(): Iterable<readonly [string, string]> {}
}

/** A command of an entry as bytes, into an overlay, which is written out every 20,000. @returns µs per publish */
function applying(seconds: number): number {
  const memory = new Memory();
  const state = new TenantState(memory as unknown as Environment);
  const begin: Command["action"][] = [
    { op: "tenant.init", tenant: "t", quotas: {}, keys: [key] },
    ...Array.from(
      { length: configs },
      (_, n) => ({ op: "config.put", namespace, name: `c${n}` }) as const,
    ),
  ];
  for (const action of begin) {
    const { outcome } = apply(state, { ...command(action), semantics: 3 });
    if (!outcome.ok) throw new Error(outcome.detail);
  }
  const [encoder, decoder] = [new TextEncoder(), new TextDecoder()];
  const entries = (count: number): Uint8Array[] =>
    Array.from({ length: count }, (_, n) =>
      encoder.encode(JSON.stringify(publish(`c${n % configs}`))),
    );
  const round = (): number => {
    const datas = entries(20_000);
    const start = threadMs();
    for (const data of datas) {
      const { outcome } = apply(state, JSON.parse(decoder.decode(data)) as Command);
      if (!outcome.ok) throw new Error(outcome.detail);
    }
    for (const [key, text] of state.freeze()) {
      if (text === undefined) memory.rows.delete(key);
      else memory.rows.set(key, text);
    }
    state.thaw();
    return ((threadMs() - start) * 1_000) / datas.length;
  };
  const end = performance.now() + seconds * 2_000;
  const rounds: number[] = [];
  while (performance.now() < end || rounds.length < 8) rounds.push(round());
  return median(rounds.slice(rounds.length >> 1));
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

type Figures = Record<string, number>;

async function run(which: readonly string[], seconds: number): Promise<Figures> {
  const figures: Figures = {};
  for (const one of which) {
    if (one === "apply") figures["applying alone"] = applying(seconds);
    else {
      const { micros, all } = await hosts(Number(one), seconds);
      figures[`three hosts, ${one} tenants`] = micros;
      figures[`three hosts, ${one} tenants, all threads`] = all;
    }
  }
  return figures;
}

/** The sources of another commit, with this program. */
function checkout(ref: string): string {
  const root = path.resolve(import.meta.dirname, "..");
  const folder = fs.mkdtempSync(path.join(tmpdir(), "conflux-writes-at-"));
  const archive = execFileSync(
    "git",
    ["archive", ref, "src", "test/crash", "package.json", "tsconfig.json"],
    {
      cwd: root,
      maxBuffer: 64 * 1024 * 1024,
    },
  );
  execFileSync("tar", ["-x", "-C", folder], { input: archive });
  fs.mkdirSync(path.join(folder, "bench"));
  fs.copyFileSync(import.meta.filename, path.join(folder, "bench/writes.ts"));
  fs.symlinkSync(path.join(root, "node_modules"), path.join(folder, "node_modules"));
  return folder;
}

const { values } = parseArgs({
  options: {
    against: { type: "string" },
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "5" },
    tenants: { type: "string", default: "apply,1,50" },
    json: { type: "boolean", default: false },
  },
});
const which = values.tenants.split(",");
if (values.against === undefined) {
  const figures = await run(which, Number(values.seconds));
  if (values.json) console.log(JSON.stringify(figures));
  else
    for (const [name, micros] of Object.entries(figures))
      console.log(`${name.padEnd(40)} ${micros.toFixed(1)} µs`);
} else {
  const other = checkout(values.against);
  const here = path.resolve(import.meta.dirname, "..");
  const [before, now]: [Figures[], Figures[]] = [[], []];
  const args = [
    "bench/writes.ts",
    "--json",
    "--tenants",
    values.tenants,
    "--seconds",
    values.seconds,
  ];
  try {
    for (let round = 0; round < Number(values.rounds); round++) {
      // Both orders: whoever comes second has the warmer disk.
      for (const own of round % 2 === 0 ? [false, true] : [true, false]) {
        const output = execFileSync(process.execPath, args, { cwd: own ? here : other });
        (own ? now : before).push(JSON.parse(output.toString("utf8")) as Figures);
      }
    }
  } finally {
    fs.rmSync(other, { recursive: true, force: true });
  }
  for (const name of Object.keys(now[0] ?? {})) {
    const [then, today] = [before, now].map((all) =>
      median(all.map((each) => each[name] ?? Number.NaN)),
    );
    const ratio = (then as number) / (today as number);
    console.log(
      `${name.padEnd(40)} ${values.against} ${then?.toFixed(1)} µs, now ${today?.toFixed(1)} µs, ratio ${ratio.toFixed(2)}`,
    );
  }
}
process.exit(0);
