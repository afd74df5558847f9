/**
 * What the crash suite starts and ends: `child.ts DIRECTORY LIFE SEED [STEP:N]` writes for ever, or until it kills itself
 * when it comes to a named step of a restore or an installation for the n-th time. Every line on standard output is
 * written before the next step, so the killer's knowledge is never ahead of what happened here.
 *
 *   pid PID                                     first of all
 *   ready                                       everything that was there is served again
 *   ack TENANT CONFIG VERSION REVISION ID       a publish was acknowledged
 *   made TENANT, gone TENANT                    a tenant was created, or deleted for good
 *   restoring TENANT DIGEST, restored TENANT    a tenant comes back from another's snapshot; it is all there
 *   installing GENERATION, installed GENERATION an environment's rows are replaced as a whole
 *   fatal MESSAGE                               the store cannot go on; the process ends with 1
 */
import * as fs from "node:fs";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { Prng } from "../../src/lib/prng.ts";
import type { Command, Outcome } from "../../src/machine/command.ts";
import { restoredMeta } from "../../src/machine/directory.ts";
import { membersKey, metaKey } from "../../src/machine/keys.ts";
import {
  digestOf,
  generationMeta,
  generationOf,
  openInstallations,
  rowsOfGeneration,
  type Step,
} from "./restores.ts";
import { command, namespace, node, openStack, textOf, versionsPerConfig } from "./stack.ts";

const [directory, life, seed, fatalStep = ""] = process.argv.slice(2) as [
  string,
  string,
  string,
  string?,
];
const tenants = ["t1", "t2", "t3", "t4", "t5", "t6"];
const configs = ["a", "b", "c"];
const writers = 8;
/** How long a writer stays with a tenant: the others fall asleep meanwhile. */
const stayMs = 120;

function say(line: string): void {
  fs.writeSync(1, `${line}\n`);
}

const [stepAt, stepNth] = fatalStep.split(":");
let stepsLeft = Number(stepNth ?? Infinity);

/** Here the process may end. */
function step(name: Step): void {
  if (name === stepAt && --stepsLeft === 0) process.kill(process.pid, "SIGKILL");
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

const partRows = 25;

/** A tenant comes back as from a backup: a snapshot of another one, part by part. The one before it goes. */
async function restores(): Promise<void> {
  const prng = new Prng(Number(seed) - 2);
  let before: string | null = null;
  for (let n = 1; ; n++) {
    await sleep(30);
    const tenant = `r${life}x${n}`;
    if (!(await restore(tenant, prng.pick(tenants)))) continue;
    if (before !== null) {
      say(`going ${before}`);
      const gone = await propose("_system", {
        op: "directory.delete",
        tenant: before,
        purge: true,
      });
      if (gone?.ok === true) say(`gone ${before}`);
    }
    before = tenant;
  }
}

/** @returns false when somebody refused; what is there of it then is never finished */
async function restore(tenant: string, from: string): Promise<boolean> {
  const snapshot = await host.snapshot(from).catch(() => null);
  if (snapshot === null) return false;
  const { epoch, revision, meta } = snapshot;
  const rows = [...snapshot.rows()]
    .filter(([key]) => key !== metaKey && key !== membersKey)
    .map(([key, text]) => [key, JSON.parse(text) as unknown] as const);
  snapshot.close();
  say(`restoring ${tenant} ${digestOf(rows)}`);
  const adminKey = { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) } as const;
  const source = { tenant: from, epoch, revision, takenAt: Date.now(), sha256: "0".repeat(64) };
  const made = await propose("_system", {
    op: "directory.create",
    tenant,
    quotas: { versionsPerConfig },
    nodes: [node],
    adminKey,
    restore: { source, meta: restoredMeta(meta) },
  });
  if (made?.ok !== true) return false;
  step("restore begun");
  for (let part = 0; part * partRows < rows.length; part++) {
    const some = rows.slice(part * partRows, (part + 1) * partRows);
    const taken = await propose(tenant, { op: "restore.rows", part, rows: some });
    if (taken?.ok !== true) return false;
    step("restore part");
  }
  const finished = propose(tenant, { op: "restore.finish", rows: rows.length });
  step("restore finishing");
  if ((await finished)?.ok !== true) return false;
  say(`restored ${tenant}`);
  step("restore finished");
  return true;
}

/** A follower's part: rows are staged beside those that count, and take their place at once. */
async function installs(): Promise<void> {
  const prng = new Prng(Number(seed) - 3);
  const environment = openInstallations(directory);
  let generation = generationOf(environment);
  // Also when the life before did not come to say so.
  if (generation > 0) say(`installed ${generation}`);
  const done = (act: (done: (error: Error | null) => void) => void): Promise<void> =>
    new Promise((resolve) => {
      act((error) => {
        if (error === null) return resolve();
        say(`fatal ${error.message}`);
        process.exit(1);
      });
    });
  for (;;) {
    await sleep(20);
    const next = generation + 1;
    say(`installing ${next}`);
    const staging = environment.stage();
    const rows = rowsOfGeneration(next);
    for (let from = 0; from < rows.length; from += partRows) {
      const part = rows.slice(from, from + partRows);
      const added = done((told) => staging.add(part, told));
      if (prng.chance(0.5)) await added;
      step("install part");
    }
    if (prng.chance(0.15)) {
      staging.discard();
      continue;
    }
    const installed = done((told) => environment.install(staging, generationMeta(next), told));
    step("install begun");
    await installed;
    generation = next;
    say(`installed ${generation}`);
    step("install done");
  }
}

for (const tenant of tenants) await create(tenant);
say("ready");
await Promise.all([
  churn(),
  restores(),
  installs(),
  ...Array.from({ length: writers }, (_, writer) => write(writer)),
]);
