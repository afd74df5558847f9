/** The slice of storms for leases that every change passes; `npm run sim -- --leases --seeds N` goes on from there. */
import { expect, test } from "vitest";
import { runLeases } from "./leases.ts";

const SEEDS = 16;

test("no read by a lease is stale, through cuts, stops, suspensions, transfers and restarts on uneven clocks", async () => {
  let [byLease, leaders, woken] = [0, 0, 0];
  for (let seed = 1; seed <= SEEDS; seed++) {
    const result = await runLeases(seed);
    expect(result.violations, `REPRODUCE: npm run sim -- --leases --seed ${seed}`).toEqual([]);
    byLease += result.byLease;
    leaders += result.leaders;
    woken += result.woken;
  }
  // Without leases, or with one leader for ever, nothing would be proven.
  expect(byLease).toBeGreaterThan(SEEDS * 500);
  expect(leaders).toBeGreaterThan(SEEDS * 2);
  expect(woken).toBeGreaterThan(SEEDS / 8);
}, 120_000);
