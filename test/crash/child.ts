/**
 * What the crash suite starts and ends: `child.ts DIRECTORY LIFE SEED` writes for ever. Every line on standard output is
 * written before the next step, so the killer's knowledge is never ahead of what happened here.
 *
 *   pid PID                                     first of all
 *   ready                                       everything that was there is served again
 *   ack TENANT CONFIG VERSION REVISION ID       a publish was acknowledged
 *   made TENANT, gone TENANT                    a tenant was created, or deleted for good
 *   fatal MESSAGE                               the store cannot go on; the process ends with 1
 */
import * as fs from "node:fs";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { Prng } from "../../src/lib/prng.ts";
import type { Command, Outcome } from "../../src/machine/command.ts";
import { command, namespace, node, openStack, textOf, versionsPerConfig } from "./stack.ts";

const [directory, life, seed] = process.argv.slice(2) as [string, string, string];
const tenants = ["t1", "t2", "t3", "t4", "t5", "t6"];
const configs = ["a", "b", "c"];
const writers = 8;
/** How long a writer stays with a tenant: the others fall asleep meanwhile. */
const stayMs = 120;

function say(line: string): void {
  fs.writeSync(1, `${line}\n`);
}

say(`pid ${process.pid}`);
const { host } = await openStack(directory, (error) => {
  say(`fatal ${error.message}`);
  process.exit(1);
});

async function propose(tenant: string, action: Command["action"]): Promise<Outcome | null> {
  try {
    return await host.propose(tenant, command(action));
  } catch {
    // A problem: whether it was done is not known, and need not be.
    return null;
  }
}

async function create(tenant: string): Promise<boolean> {
  const made = await propose("_system", {
    op: "directory.create",
    tenant,
    quotas: { versionsPerConfig },
    nodes: [node],
    adminKey: { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) },
  });
  if (made === null || (!made.ok && made.code !== "already-exists")) return false;
  for (const name of configs)
    await propose(tenant, { op: "config.put", namespace, name, format: "text" });
  return true;
}

async function publish(tenant: string, name: string, id: string, length: number): Promise<void> {
  const text = textOf(id, length);
  const content = { text, hash: `sha256:${id}`, bytes: text.length };
  const outcome = await propose(tenant, {
    op: "publish",
    namespace,
    name,
    content,
    schemaHash: null,
  });
  if (outcome?.ok !== true) return;
  const { version } = outcome.result as { version: { version: number } };
  say(`ack ${tenant} ${name} ${version.version} ${outcome.revision} ${id}`);
}

async function write(writer: number): Promise<void> {
  const prng = new Prng(Number(seed) + writer);
  for (let n = 0; ;) {
    const tenant = prng.pick(tenants);
    const until = performance.now() + stayMs;
    while (performance.now() < until) {
      const length = prng.chance(0.1) ? prng.between(1_000, 30_000) : prng.between(0, 400);
      await publish(tenant, prng.pick(configs), `${life}.${writer}.${++n}`, length);
    }
  }
}

/** Tenants come and go: environments are made, and removed. */
async function churn(): Promise<void> {
  const prng = new Prng(Number(seed) - 1);
  for (let n = 1; ; n++) {
    const tenant = `e${life}x${n}`;
    if (await create(tenant)) {
      say(`made ${tenant}`);
      await publish(tenant, "a", `${life}.churn.${n}`, 100);
      await sleep(prng.below(60));
      if (prng.chance(0.8)) {
        say(`going ${tenant}`);
        const gone = await propose("_system", { op: "directory.delete", tenant, purge: true });
        if (gone?.ok === true) say(`gone ${tenant}`);
      }
    }
    await sleep(20);
  }
}

for (const tenant of tenants) await create(tenant);
say("ready");
await Promise.all([churn(), ...Array.from({ length: writers }, (_, writer) => write(writer))]);
