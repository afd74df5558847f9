/**
 * The simulator's program: `bun test/sim/main.ts --seed 42` repeats one run and prints its trace's hash (`--trace` the
 * trace itself); `--seeds 500 [--from 1]` runs that many; `--minutes 30` goes on until then. With `--stop-at-first` it ends
 * at the first seed that breaks something. `--leases` runs the storms that are made for leader leases instead.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { runLeases } from "./leases.ts";
import { runSeed } from "./run.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string" },
    seeds: { type: "string" },
    from: { type: "string", default: "1" },
    minutes: { type: "string" },
    trace: { type: "boolean", default: false },
    leases: { type: "boolean", default: false },
    "stop-at-first": { type: "boolean", default: false },
    "failures-to": { type: "string", default: ".conflux/sim" },
  },
});

async function one(seed: number): Promise<boolean> {
  const result = await runSeed({
    seed,
    ...(values.trace ? { trace: (line: string) => process.stdout.write(`${line}\n`) } : {}),
  });
  totals.seeds += 1;
  totals.events += result.events;
  totals.virtualMs += result.virtualMs;
  totals.acknowledged += result.acknowledged;
  totals.crashes += result.crashes;
  totals.elections += result.elections;
  totals.moves += result.moves;
  totals.departures += result.departures;
  if (result.violations.length === 0) return true;
  process.stdout.write(
    `\nseed ${seed} broke ${result.violations.length} invariants:\n${result.violations
      .slice(0, 5)
      .map((violation) => `  ${violation}\n`)
      .join("")}REPRODUCE: npm run sim -- --seed ${seed}\n`,
  );
  mkdirSync(values["failures-to"], { recursive: true });
  writeFileSync(
    `${values["failures-to"]}/seed-${seed}.json`,
    `${JSON.stringify(result, null, 2)}\n`,
  );
  return false;
}

const totals = {
  seeds: 0,
  events: 0,
  virtualMs: 0,
  acknowledged: 0,
  crashes: 0,
  elections: 0,
  moves: 0,
  departures: 0,
};
const startedAt = performance.now();
let failed = 0;
if (values.leases) await leases();
if (values.seed !== undefined) {
  const seed = Number(values.seed);
  const result = await runSeed({
    seed,
    ...(values.trace ? { trace: (line: string) => process.stdout.write(`${line}\n`) } : {}),
  });
  process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
  process.exit(result.violations.length === 0 ? 0 : 1);
}
const until = values.minutes === undefined ? null : startedAt + Number(values.minutes) * 60_000;
const seedsMax =
  values.seeds === undefined ? (until === null ? 100 : Infinity) : Number(values.seeds);
let seed = Number(values.from);
let told = startedAt;
while (totals.seeds < seedsMax && (until === null || performance.now() < until)) {
  if (!(await one(seed++))) failed += 1;
  if (failed > 0 && values["stop-at-first"]) break;
  if (process.stdout.isTTY && performance.now() - told > 2_000) {
    told = performance.now();
    process.stdout.write(`\r${summary()}   `);
  }
}
process.stdout.write(`\r${summary()}\n`);
process.exit(failed === 0 ? 0 : 1);

/** Ends the process. */
async function leases(): Promise<never> {
  const first = Number(values.seed ?? values.from);
  const count = values.seed === undefined ? Number(values.seeds ?? 100) : 1;
  let [reads, byLease, writes, leaders, woken] = [0, 0, 0, 0, 0];
  for (let each = first; each < first + count; each++) {
    const result = await runLeases(each);
    reads += result.reads;
    byLease += result.byLease;
    writes += result.writes;
    leaders += result.leaders;
    woken += result.woken;
    if (result.violations.length === 0) continue;
    failed += 1;
    process.stdout.write(
      `seed ${each}: ${result.violations[0] ?? ""}\nREPRODUCE: npm run sim -- --leases --seed ${each}\n`,
    );
    if (values["stop-at-first"]) break;
  }
  process.stdout.write(
    `${count} seeds, ${failed} failed, ${reads} reads, ${byLease} of them by lease, ${writes} writes, ${leaders} leaders, ${woken} times one slept and led on\n`,
  );
  process.exit(failed === 0 ? 0 : 1);
}

function summary(): string {
  const seconds = (performance.now() - startedAt) / 1_000;
  return `${totals.seeds} seeds, ${failed} failed, ${totals.events} events (${Math.round(totals.events / seconds)}/s), ${Math.round(totals.virtualMs / 60_000)} virtual minutes, ${totals.crashes} crashes, ${totals.elections} elections, ${totals.moves} moves, ${totals.departures} nodes that left, ${totals.acknowledged} acknowledged writes, ${seconds.toFixed(0)} s`;
}
