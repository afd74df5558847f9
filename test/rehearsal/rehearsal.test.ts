/** What a node rehearses ends by itself, leaves nothing, and its failure is told and not thrown. */
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { afterEach, expect, test } from "vitest";
import { rehearse, type RehearsalOptions } from "../../src/rehearsal.ts";

const name = `test-${process.pid}`;
const above = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();
const left = (): string[] => readdirSync(above).filter((each) => each.includes(name));

afterEach(() => {
  for (const each of left()) rmSync(join(above, each), { recursive: true });
});

const options = (given: Partial<RehearsalOptions> = {}): RehearsalOptions => ({
  requests: 50,
  limitMs: 60_000,
  name,
  isBusy: () => false,
  signal: new AbortController().signal,
  ...given,
});

test("a rehearsal makes as many requests as it is told, over new starts of its hosts, and leaves nothing", async () => {
  // What an earlier start left that was killed in the middle of it.
  const leftover = join(above, `conflux-rehearsal-${name}`, "r1", "tenants");
  mkdirSync(leftover, { recursive: true });
  writeFileSync(join(leftover, "x"), "x");
  // Twelve tenants take 37, the rest is after a new start.
  expect(await rehearse(options())).toMatchObject({ requests: 50, error: null });
  expect(left()).toEqual([]);
});

test("a rehearsal waits while the node has something to do, and ends when it stops", async () => {
  const stopping = new AbortController();
  let looked = 0;
  const isBusy = (): boolean => {
    looked += 1;
    if (looked === 5) stopping.abort();
    return true;
  };
  const { requests, error } = await rehearse(options({ isBusy, signal: stopping.signal }));
  expect([looked, error]).toEqual([5, null]);
  expect(requests).toBeLessThanOrEqual(1);
  expect(left()).toEqual([]);
});

test("what fails in a rehearsal is told, and nothing is left", async () => {
  const { requests, error } = await rehearse(options({ name: `${name}/no-such-directory` }));
  expect([requests, error?.message]).toEqual([0, expect.stringContaining("ENOENT")]);
  expect(left()).toEqual([]);
});
