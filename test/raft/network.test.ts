import { describe, expect, test } from "vitest";
import { Network, type NetworkOptions } from "./network.ts";

const STEPS = 1_200;

function runSeeds(from: number, count: number, options: Omit<NetworkOptions, "seed">): void {
  const total = { elections: 0, applied: 0, reads: 0, snapshots: 0, crashes: 0, changes: 0 };
  for (let seed = from; seed < from + count; seed++) {
    const network = new Network({ seed, ...options });
    try {
      network.run(STEPS);
      network.heal();
    } catch (cause) {
      throw new Error(`seed ${seed} of ${JSON.stringify(options)}`, { cause });
    }
    for (const key of Object.keys(total) as (keyof typeof total)[]) {
      total[key] += network.stats[key];
    }
  }
  // A run in which nothing happens proves nothing.
  expect(total.elections).toBeGreaterThan(count);
  expect(total.applied).toBeGreaterThan(count * 10);
  expect(total.reads).toBeGreaterThan(count);
  if (options.noCrashes === true) return;
  expect(total.crashes).toBeGreaterThan(count);
  expect(total.snapshots).toBeGreaterThan(count / 10);
}

describe("a network that loses, repeats and reorders, with crashes that lose what was not durable", () => {
  test("three replicas stay safe and come back", () => {
    runSeeds(1, 60, { replicas: 3, supports: false, changes: false });
  });

  test("five replicas stay safe and come back", () => {
    runSeeds(1_001, 40, { replicas: 5, supports: false, changes: false });
  });

  test("three replicas with liveness from outside come to rest", () => {
    runSeeds(2_001, 60, { replicas: 3, supports: true, changes: false });
  });

  test("five replicas with liveness from outside come to rest", () => {
    runSeeds(3_001, 40, { replicas: 5, supports: true, changes: false });
  });

  test("configurations change under way", () => {
    runSeeds(4_001, 50, { replicas: 5, supports: false, changes: true });
  });

  test("configurations change under way, with liveness from outside", () => {
    runSeeds(5_001, 50, { replicas: 5, supports: true, changes: true });
  });

  test("merged appends change nothing of that", () => {
    runSeeds(6_001, 25, {
      replicas: 3,
      supports: true,
      changes: false,
      config: { mergeAppends: true },
    });
    runSeeds(7_001, 25, {
      replicas: 5,
      supports: false,
      changes: true,
      config: { mergeAppends: true },
    });
  });

  test("lease reads are as new as others while nobody crashes", () => {
    const config = { readOnly: "lease" } as const;
    runSeeds(9_001, 60, { replicas: 3, supports: false, changes: false, noCrashes: true, config });
  });

  test("without pre-votes and quorum checks it is still safe", () => {
    runSeeds(8_001, 30, {
      replicas: 3,
      supports: false,
      changes: false,
      config: { preVote: false, checkQuorum: false },
    });
  });
});
