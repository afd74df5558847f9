/** Who waits beside whom: the controller on a time of its own, and in a cluster whose disks are slow. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  Admission,
  BATCH_WRITES,
  BUSY_WRITES,
  HELD_WRITES_MAX,
  PACE_MAX,
  PACE_STEP_MS,
  RELEASE_WRITES,
} from "../../src/host/admission.ts";
import type { Problem } from "../../src/api/problems.ts";
import type { SimNode } from "../sim/world.ts";
import { latest, publish, ready, versions } from "./cluster.ts";

const [busy, quiet, third] = [10, 11, 12] as const;
const slowest = PACE_MAX * PACE_STEP_MS;

/** An `Admission`, and writers to it whose writes take as long as the test says. */
class Writers {
  readonly admission = new Admission();
  now = 1_000;
  tookMs = 2;
  begun = new Map<number, number>();
  asked = 0;
  refused = 0;
  /** Asked for and not answered, by group. */
  readonly #open = new Map<number, number>();
  #underWay: { readonly end: number; readonly ended: () => void }[] = [];

  write(group: number, { bytes = 100, waitMs = 5_000 } = {}): void {
    this.asked += 1;
    this.#count(this.#open, group, 1);
    const run = (): void => {
      this.#count(this.begun, group, 1);
      const admitted = this.admission.began(group, this.now);
      const ended = (): void => {
        this.#count(this.#open, group, -1);
        this.admission.ended(admitted, this.now);
      };
      this.#underWay.push({ end: this.now + this.tookMs, ended });
    };
    const refuse = (): void => {
      this.refused += 1;
      this.#count(this.#open, group, -1);
    };
    const entrant = { bytes, deadline: this.now + waitMs, run, refuse };
    if (this.admission.enter(group, entrant, this.now)) run();
  }

  #count(counts: Map<number, number>, group: number, by: number): void {
    counts.set(group, (counts.get(group) ?? 0) + by);
  }

  open(group: number): number {
    return this.#open.get(group) ?? 0;
  }

  /** Until the next pulse: who is answered writes again, as many at a time as are given for each group. */
  step(writers: ReadonlyMap<number, number>): void {
    for (const [group, most] of writers) while (this.open(group) < most) this.write(group);
    for (const end = this.now + PACE_STEP_MS; this.now < end;) {
      this.now += 1;
      const due = this.#underWay.filter((one) => one.end <= this.now);
      this.#underWay = this.#underWay.filter((one) => one.end > this.now);
      for (const { ended } of due) ended();
      for (const [group, most] of writers) while (this.open(group) < most) this.write(group);
    }
    this.admission.pulse(this.now);
  }

  /** @returns how many began, by group; every fourth step one of the quiet tenant */
  run(ms: number, writers: readonly (readonly [number, number])[], withQuiet = true) {
    const before = new Map(this.begun);
    for (let at = 0; at * PACE_STEP_MS < ms; at++) {
      if (withQuiet && at % 4 === 0) this.write(quiet);
      this.step(new Map(writers));
    }
    return (group: number): number => (this.begun.get(group) ?? 0) - (before.get(group) ?? 0);
  }
}

describe("admission", () => {
  test("holds nobody up while writes are in time, however many they are", () => {
    const writers = new Writers();
    const begun = writers.run(5_000, [[busy, 64]]);
    expect(begun(busy)).toBe(64 * (5_000 / writers.tookMs + 1));
    expect(writers.admission.status).toMatchObject({ paceMs: 0, held: 0, late: 0 });
    expect(writers.admission.status.quiet).toBeGreaterThan(0);
  });

  test("holds nobody up who is alone, however long writes take", () => {
    const writers = new Writers();
    writers.tookMs = 50;
    const begun = writers.run(10_000, [[busy, 256]], false);
    expect(begun(busy)).toBe(256 * (10_000 / 50 + 1));
    expect(writers.admission.status).toMatchObject({ paceMs: 0, held: 0 });
  });

  test("holds nobody up where all write alike", () => {
    const writers = new Writers();
    writers.run(2_000, [[busy, 8]], false);
    writers.tookMs = 100;
    const groups = Array.from({ length: 50 }, (_, at) => [100 + at, 8] as const);
    writers.run(10_000, groups, false);
    expect(writers.admission.status).toMatchObject({ paceMs: 0, held: 0 });
  });

  test("gathers a busy tenant's writes while quiet ones are late, those never, and lets go again", () => {
    const writers = new Writers();
    writers.run(1_000, [[busy, 64]]);
    writers.tookMs = 40;
    writers.run(2_000, [[busy, 64]]);
    expect(writers.admission.status.paceMs).toBe(slowest);
    expect(writers.admission.status.waiting).toBeGreaterThan(0);
    const slow = writers.run(4_000, [[busy, 64]]);
    expect(slow(busy)).toBe(BATCH_WRITES * (4_000 / slowest));
    // Each began when it was asked for.
    expect(slow(quiet)).toBe(40);
    writers.tookMs = 2;
    writers.run(10_000, [[busy, 64]]);
    const fast = writers.run(1_000, [[busy, 64]]);
    expect(writers.admission.status).toMatchObject({ paceMs: 0, waiting: 0, refused: 0 });
    expect(fast(busy)).toBe(64 * 500);
  });

  test("lets go when the quiet ones are gone", () => {
    const writers = new Writers();
    writers.run(1_000, [[busy, 64]]);
    writers.tookMs = 40;
    writers.run(2_000, [[busy, 64]]);
    expect(writers.admission.status.paceMs).toBe(slowest);
    writers.run(10_000, [[busy, 64]], false);
    expect(writers.admission.status).toMatchObject({ paceMs: 0, waiting: 0 });
  });

  test("shares a batch between busy tenants, however many more one of them asks for", () => {
    const writers = new Writers();
    writers.run(1_000, [[busy, 64]]);
    writers.tookMs = 40;
    const both = [
      [busy, 500],
      [third, 2 * BUSY_WRITES],
    ] as const;
    writers.run(3_000, both);
    const begun = writers.run(4_000, both);
    const batches = 4_000 / slowest;
    expect(begun(third)).toBe(2 * BUSY_WRITES * batches);
    expect(begun(busy) + begun(third)).toBeLessThanOrEqual(BATCH_WRITES * batches);
    expect(begun(busy)).toBeGreaterThanOrEqual((BATCH_WRITES / 2) * batches);
  });

  test("bounds what waits, in number, bytes and time, and tells who is refused", () => {
    const writers = new Writers();
    writers.run(1_000, [[busy, 64]]);
    writers.tookMs = 40;
    writers.run(2_000, [[busy, 64]]);
    expect(writers.refused).toBe(0);
    for (let i = 0; i < 2 * HELD_WRITES_MAX; i++) writers.write(busy);
    expect(writers.admission.status.waiting).toBe(HELD_WRITES_MAX);
    expect(writers.refused).toBe(writers.admission.status.refused);
    expect(writers.refused).toBeGreaterThanOrEqual(HELD_WRITES_MAX);
    // All that wait have their turn within the time that a write may take.
    writers.run((HELD_WRITES_MAX / BATCH_WRITES + 2) * slowest, []);
    expect(writers.open(busy)).toBe(0);
    const before = writers.refused;
    writers.run(1_000, [[busy, 64]]);
    writers.run(1_000, [[busy, 64]]);
    const waiting = writers.admission.status.waiting;
    for (let i = 0; i < 100; i++) writers.write(busy, { bytes: 1024 * 1024 });
    const taken = writers.admission.status.waiting - waiting;
    expect(taken).toBeGreaterThan(0);
    expect(taken).toBeLessThanOrEqual(16);
    expect(writers.refused - before).toBe(100 - taken);
    // Not proposed any more once nobody waits for it.
    const late = new Writers();
    late.run(1_000, [[busy, 64]]);
    late.tookMs = 40;
    late.run(2_000, [[busy, 64]]);
    for (let i = 0; i < 64; i++) late.write(busy, { waitMs: 60 });
    const begun = late.run(1_000, []);
    expect(late.refused).toBeGreaterThan(0);
    expect(begun(busy) + late.refused).toBeGreaterThanOrEqual(64);
    expect(late.open(busy)).toBe(0);
  });

  test("forgets no write that a batch has no bytes left for", () => {
    const writers = new Writers();
    writers.run(1_000, [[busy, 64]]);
    writers.tookMs = 40;
    writers.run(2_000, [[busy, 64]]);
    while (writers.open(busy) > 0) writers.step(new Map());
    // Few enough to be held up no longer, and more bytes than one batch has.
    for (let i = 0; i < BUSY_WRITES - 1; i++) writers.write(busy, { bytes: 200 * 1024 });
    expect(writers.admission.status.waiting).toBe(BUSY_WRITES - 1);
    for (let i = 0; i < 20; i++) writers.step(new Map());
    expect(writers.open(busy)).toBe(0);
    expect(writers.refused).toBe(0);
    expect(writers.admission.status.waiting).toBe(0);
  });

  test("begins or refuses every write once, whatever it weighs, takes and has time for", () => {
    const some = fc.record({
      group: fc.constantFrom(busy, quiet, third),
      count: fc.integer({ min: 1, max: 12 }),
      bytes: fc.integer({ min: 1, max: 300 * 1024 }),
      waitMs: fc.integer({ min: 50, max: 5_000 }),
      tookMs: fc.integer({ min: 1, max: 300 }),
      steps: fc.nat(8),
    });
    fc.assert(
      fc.property(fc.array(some, { minLength: 10, maxLength: 40 }), (all) => {
        const writers = new Writers();
        writers.run(1_000, [[busy, 16]]);
        writers.tookMs = 40;
        writers.run(2_000, [[busy, 16]]);
        for (const { group, count, bytes, waitMs, tookMs, steps } of all) {
          writers.tookMs = tookMs;
          for (let i = 0; i < count; i++) writers.write(group, { bytes, waitMs });
          for (let i = 0; i < steps; i++) writers.step(new Map());
          writers.admission.expire(writers.now);
        }
        for (let i = 0; i < 400; i++) writers.step(new Map());
        const begun = [...writers.begun.values()].reduce((sum, count) => sum + count, 0);
        expect(begun + writers.refused).toBe(writers.asked);
        for (const group of [busy, quiet, third]) expect(writers.open(group)).toBe(0);
        expect(writers.admission.status).toMatchObject({ waiting: 0, refused: writers.refused });
      }),
      { numRuns: 50 },
    );
  });

  test("lets go of all that is held by and by, and of what comes meanwhile at once", () => {
    const writers = new Writers();
    writers.run(1_000, [[busy, 64]]);
    writers.tookMs = 40;
    writers.run(2_000, [[busy, 64]]);
    for (let i = 0; i < HELD_WRITES_MAX; i++) {
      writers.write(busy, { waitMs: 60_000 });
      writers.write(third, { waitMs: 60_000 });
    }
    // What is under way does not end, so that the pace falls while much is held.
    writers.tookMs = 60_000;
    let most = 0;
    let waiting = writers.admission.status.waiting;
    expect(waiting).toBeGreaterThan(4 * RELEASE_WRITES);
    while (writers.admission.status.paceMs > 0) writers.step(new Map());
    while (writers.admission.status.waiting > 0) {
      waiting = writers.admission.status.waiting;
      const before = writers.begun.get(third) ?? 0;
      writers.write(third);
      expect(writers.begun.get(third)).toBe(before + 1);
      writers.step(new Map());
      most = Math.max(most, waiting - writers.admission.status.waiting);
      expect(writers.admission.status.waiting).toBeLessThan(waiting);
    }
    expect(most).toBe(RELEASE_WRITES);
    expect(writers.refused).toBe(writers.admission.status.refused);
  });

  test("tells who waits behind what does not end when the time is up", () => {
    const writers = new Writers();
    writers.run(1_000, [[busy, 64]]);
    writers.tookMs = 40;
    writers.run(2_000, [[busy, 64]]);
    while (writers.open(busy) > 0) writers.step(new Map());
    writers.tookMs = 60_000;
    for (let i = 0; i < 10; i++) writers.write(busy, { waitMs: 1_000 });
    const { waiting } = writers.admission.status;
    expect(waiting).toBeGreaterThan(0);
    writers.now += 999;
    writers.admission.expire(writers.now);
    expect(writers.refused).toBe(0);
    writers.now += 1;
    writers.admission.expire(writers.now);
    expect(writers.refused).toBe(waiting);
    expect(writers.admission.status).toMatchObject({ waiting: 0, refused: waiting });
  });
});

test("on a leader with slow disks a quiet tenant passes what waits of a busy one, and all of it is made", async () => {
  const cluster = await ready();
  await cluster.create("busy");
  await cluster.create("quiet");
  await cluster.pass(3_000);
  const node = cluster.node(0);
  expect(cluster.leader("busy")).toBe(node);
  expect(cluster.leader("quiet")).toBe(node);
  const { world } = cluster;
  let [made, asked] = [0, 0];
  const again = (): void => {
    if (asked >= 1_200) return;
    asked += 1;
    node.host?.requests.propose("busy", publish(`${asked}`), 5_000, (problem, outcome) => {
      expect(problem).toBeNull();
      expect(outcome?.ok).toBe(true);
      made += 1;
      again();
    });
  };
  for (let i = 0; i < 64; i++) again();
  for (let i = 0; i < 10; i++) await cluster.change(node, "quiet", publish(`before ${i}`));
  const status = () => node.host?.cluster().admission;
  expect(status()).toMatchObject({ paceMs: 0, held: 0 });
  world.weather = { ...world.weather, disk: [20, 20] };
  let passed = 0;
  for (let i = 0; i < 20; i++) {
    const [waiting, madeBefore] = [status()?.waiting ?? 0, made];
    await cluster.change(node, "quiet", publish(`beside ${i}`));
    if (waiting > made - madeBefore) passed += 1;
  }
  expect(status()?.paceMs).toBeGreaterThan(0);
  expect(passed).toBeGreaterThan(5);
  await cluster.until("all are made", () => made === 1_200, 60_000);
  expect(status()).toMatchObject({ waiting: 0, refused: 0 });
  expect(await cluster.read(cluster.node(1), "busy", versions)).toBe(1_200);
  expect(await cluster.read(cluster.node(1), "quiet", latest)).toBe("beside 19");
});

test("writes that are held when their node stops are answered at once as not begun, and none of them is made", async () => {
  const cluster = await ready();
  await cluster.create("busy");
  await cluster.create("quiet");
  await cluster.pass(3_000);
  const [node, other] = [cluster.node(0), cluster.node(1)];
  expect(cluster.leader("busy")).toBe(node);
  const { world } = cluster;
  const made = { here: 0, there: 0 };
  let isStopping = false;
  const problems: Problem[] = [];
  let [open, asked] = [0, 0];
  const again = (at: SimNode, where: "here" | "there"): void => {
    if (isStopping) return;
    open += 1;
    asked += 1;
    at.host?.requests.propose("busy", publish(`${asked}`), 5_000, (problem) => {
      open -= 1;
      if (problem === null) made[where] += 1;
      else if (where === "here") problems.push(problem);
      again(at, where);
    });
  };
  const waiting = (): number => node.host?.cluster().admission.waiting ?? 0;
  world.weather = { ...world.weather, disk: [20, 20] };
  for (let i = 0; i < 32; i++) again(node, "here");
  for (let i = 0; i < 32; i++) again(other, "there");
  for (let i = 0; i < 100 && waiting() < 20; i++)
    await cluster.change(node, "quiet", publish(`beside ${i}`));
  expect(waiting()).toBeGreaterThanOrEqual(20);
  isStopping = true;
  let isStopped = false;
  void node.host?.stop().then(() => (isStopped = true));
  expect(waiting()).toBe(0);
  expect(problems.length).toBeGreaterThan(5);
  for (const { code, message } of problems) {
    expect(code).toBe("not-ready");
    expect(message).toContain("stops");
  }
  // What came from elsewhere goes on with the next leader.
  await cluster.until("all are answered", () => open === 0, 5_000);
  await cluster.until("it has stopped", () => isStopped, 60_000);
  const unknown = problems.filter(({ code }) => code === "outcome-unknown").length;
  const there = await cluster.read(other, "busy", versions);
  expect(there).toBeGreaterThanOrEqual(made.here + made.there);
  expect(there).toBeLessThanOrEqual(made.here + made.there + unknown);
});
