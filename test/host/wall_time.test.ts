import { expect, test } from "vitest";
import { CLOCK_TRUST_MS, WallTime } from "../../src/host/wall_time.ts";
import { publish, ready } from "./cluster.ts";

const hourMs = 3_600_000;
const begin = 1_700_000_000_000;

function node(): {
  readonly time: WallTime;
  readonly told: boolean[];
  wall: number;
  monotonic: number;
} {
  const told: boolean[] = [];
  const self = { told, wall: begin, monotonic: 500 };
  const clock = { wallMs: () => self.wall, monotonicMs: () => self.monotonic };
  const time = new WallTime(clock, (_aheadMs, follows) => told.push(follows));
  return Object.assign(self, { time });
}

test("nowMs() is this node's wall clock while it is alone, or two disagree", () => {
  const one = node();
  expect(one.time.nowMs()).toBe(begin);
  one.time.heard("n2", begin - hourMs);
  expect(one.time.nowMs()).toBe(begin);
  one.time.heard("n2", begin + hourMs);
  expect([one.time.nowMs(), one.time.aheadMs, one.told]).toEqual([begin, 0, []]);
});

test("nowMs() is the middle where most others say that this node's clock is wrong, at once and without a heartbeat", () => {
  const one = node();
  one.time.heard("n2", begin - 50);
  one.time.heard("n3", begin + 50);
  for (const byMs of [-hourMs, hourMs]) {
    one.wall = begin + byMs;
    expect(Math.abs(one.time.nowMs() - begin)).toBeLessThanOrEqual(50);
    expect(Math.abs(one.time.aheadMs - byMs)).toBeLessThanOrEqual(50);
  }
  one.time.heard("n2", begin - 50);
  expect(one.told).toEqual([true]);
  one.wall = begin + CLOCK_TRUST_MS;
  expect(one.time.nowMs()).toBe(one.wall);
  one.time.heard("n2", begin - 50);
  expect(one.told).toEqual([true, false]);
});

test("nowMs() of the others is their own where one of them is wrong, also once one is silent", () => {
  const one = node();
  one.time.heard("n2", begin + 5);
  one.time.heard("n3", begin + hourMs);
  expect(one.time.nowMs()).toBe(begin);
  // n2 is heard no more; an hour passes here, and then the wall clock is set.
  one.wall += hourMs;
  one.monotonic += hourMs;
  one.time.heard("n3", begin + 2 * hourMs);
  expect(one.time.nowMs()).toBe(begin + hourMs);
  one.wall += 3 * hourMs;
  expect(one.time.nowMs()).toBe(begin + hourMs + 5);
  one.time.forget("n2");
  expect(one.time.nowMs()).toBe(one.wall);
});

test("a leader whose clock is put forward by years takes neither its tenants' time nor another node with it", async () => {
  const cluster = await ready();
  await cluster.create("t");
  const leader = cluster.leader("t");
  if (leader === null) throw new Error("Nobody leads");
  const now = (): number => begin + Math.floor(cluster.world.now);
  const at = async (): Promise<number> =>
    cluster.read(leader, "t", (view) => (view.get("meta") as { at: number }).at);
  leader.wallOffset = 20 * 365 * 24 * hourMs;
  await cluster.pass(500);
  expect(leader.host?.cluster().clockAheadMs).toBeGreaterThan(19 * 365 * 24 * hourMs);
  const write = { ...publish("x"), at: leader.host?.nowMs() as number };
  expect((await cluster.change(leader, "t", write)).ok).toBe(true);
  expect(Math.abs((await at()) - now())).toBeLessThan(CLOCK_TRUST_MS);
  for (const { host } of cluster.world.alive)
    expect(Math.abs((host?.nowMs() as number) - now())).toBeLessThan(CLOCK_TRUST_MS);
});
