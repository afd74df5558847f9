/**
 * What one core can apply and evaluate, without journal, consensus or network.
 *
 * Estimate beforehand: a publish reads 4 rows and writes 9 (meta, config, version, text, release, history, audit and two
 * for idempotency), 3 KB of objects; at about 300 ns a row that is 4 µs, so 200,000/s. An evaluation of three rules
 * compares a few short texts, 100 ns, and hashes one label for the rollout, another 200 ns: 3 million/s.
 *
 * Run: node bench/machine.ts (or bun, deno run -A)
 */
import type { Command, Outcome } from "../src/machine/command.ts";
import { apply, dryRun } from "../src/machine/machine.ts";
import type { StateTransaction } from "../src/machine/rows.ts";
import { effectiveAll } from "../src/machine/queries.ts";
import { evaluate } from "../src/model/evaluate.ts";
import type { ReleaseRule } from "../src/model/release.ts";

/** Objects by key, as the host's overlay keeps them; ranges are only for what the bench reads. */
class Rows implements StateTransaction {
  readonly rows = new Map<string, unknown>();
  get<T>(key: string): T | undefined {
    return this.rows.get(key) as T | undefined;
  }
  *range<T>({ gte, lt }: { gte: string; lt: string }): Iterable<readonly [string, T]> {
    for (const key of [...this.rows.keys()].filter((one) => one >= gte && one < lt).sort())
      yield [key, this.rows.get(key) as T];
  }
  put(key: string, row: unknown): void {
    this.rows.set(key, row);
  }
  add(key: string, row: unknown): void {
    this.put(key, row);
  }
  delete(key: string): void {
    this.rows.delete(key);
  }
}

function measure(name: string, count: number, run: (i: number) => void): void {
  for (let i = 0; i < count / 10; i++) run(i);
  const started = performance.now();
  for (let i = 0; i < count; i++) run(count + i);
  const seconds = (performance.now() - started) / 1_000;
  const perSecond = Math.round(count / seconds).toLocaleString("en");
  console.log(`${name.padEnd(52)} ${perSecond.padStart(12)}/s`);
}

const rows = new Rows();
const actor = { kind: "system", keyId: "system" } as const;
apply(rows, {
  at: 1,
  actor,
  action: { op: "tenant.init", tenant: "bench", quotas: { bytes: 1e12 }, keys: [] },
});
const configs = 350;
for (let i = 0; i < configs; i++)
  apply(rows, { at: 1, actor, action: { op: "config.put", namespace: "app", name: `c${i}` } });

const text = JSON.stringify({ limits: { requests: 100, burst: 20 }, hosts: ["a", "b", "c"] });
function publish(i: number, isIdempotent: boolean): Command {
  return {
    at: i,
    actor,
    ...(isIdempotent ? { idempotency: { key: `k${i}`, fingerprint: "f" } } : {}),
    action: {
      op: "publish",
      namespace: "app",
      name: `c${i % configs}`,
      content: { text, hash: `sha256:${i}`, bytes: text.length },
      schemaHash: null,
    },
  };
}
function must(outcome: Outcome): void {
  if (!outcome.ok) throw new Error(outcome.detail);
}
// Rows are kept in the second: there the growing map and its garbage are most of the time.
measure("publish, rows dropped", 200_000, (i) => must(dryRun(rows, publish(i, false))));
measure("publish with an idempotency key, rows dropped", 200_000, (i) =>
  must(dryRun(rows, publish(i, true))),
);
measure("publish, rows kept in a map", 50_000, (i) => must(apply(rows, publish(i, true)).outcome));

const rules: ReleaseRule[] = [
  { id: "staff", match: { email: { suffix: "@example.com" } }, version: 3 },
  {
    id: "canary",
    match: { region: ["eu", "us"] },
    rollout: { percentage: 10, by: "user", salt: "7.canary" },
    version: 2,
  },
  { id: "old", match: { app: { semver: "<2.0.0" } }, version: 1 },
];
const release = { rules, default: 4 };
const users = Array.from({ length: 1_000 }, (_, i) => ({
  email: `u${i}@example.org`,
  region: "eu",
  user: `user-${i}`,
  app: `2.${i % 50}.0`,
}));
let sum = 0;
measure("evaluate: three rules, a rollout and a version range", 2_000_000, (i) => {
  sum += evaluate(release, users[i % 1_000] as (typeof users)[0], 0).version ?? 0;
});
measure("evaluate: one rule on a label", 5_000_000, (i) => {
  const one = { rules: rules.slice(0, 1), default: 1 };
  sum += evaluate(one, users[i % 1_000] as (typeof users)[0], 0).version ?? 0;
});

const sorted = new Rows();
for (const key of [...rows.rows.keys()].filter((one) => /^(cfg|ns|ver)\//.test(one)).sort())
  sorted.put(key, rows.rows.get(key));
sorted.range = <T>() =>
  Array.from({ length: configs }, (_, i) => {
    const key = `cfg/app/c${i}`;
    return [key, sorted.get<T>(key) as T] as const;
  });
measure("effectiveAll: 350 configs, rows in memory", 2_000, (i) => {
  sum += effectiveAll(sorted, "app", users[i % 1_000] as (typeof users)[0]).length;
});
if (sum === 0) throw new Error("nothing was evaluated");
