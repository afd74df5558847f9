/** How often a node looks at the time: rarely while nothing is under way, and no less exactly for that. */
import { describe, expect, test } from "vitest";
import { HEARTBEAT_MS, SUPPORT_MS } from "../../src/host/liveness.ts";
import type { Clock } from "../../src/host/ports.ts";
import { Pulse, PULSE_MS } from "../../src/host/pulse.ts";
import { publish, ready } from "./cluster.ts";

/** Virtual time. */
class Timers implements Clock {
  now = 0;
  readonly #timers = new Set<{ due: number; readonly ms: number; readonly run: () => void }>();

  monotonicMs(): number {
    return this.now;
  }
  wallMs(): number {
    return this.now;
  }
  defer(run: () => void): void {
    run();
  }
  every(ms: number, run: () => void): () => void {
    const timer = { due: this.now + ms, ms, run };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  }

  pass(ms: number): void {
    for (const end = this.now + ms; this.now < end; this.now += 1)
      for (const timer of this.#timers) {
        if (timer.due > this.now) continue;
        timer.due += timer.ms;
        timer.run();
      }
  }
}

interface Beating {
  readonly clock: Timers;
  readonly pulse: Pulse;
  readonly counts: { heartbeats: number; pulses: number; ticks: number };
  busy: boolean;
}

function beating(): Beating {
  const clock = new Timers();
  const counts = { heartbeats: 0, pulses: 0, ticks: 0 };
  const state = { clock, counts, busy: false };
  const pulse = new Pulse(clock, {
    heartbeat: () => (counts.heartbeats += 1),
    pulse: () => (counts.pulses += 1),
    tick: () => (counts.ticks += 1),
    isBusy: () => state.busy,
  });
  pulse.start();
  return Object.assign(state, { pulse });
}

describe("a pulse", () => {
  test("comes with each heartbeat alone when nothing is under way, and there are no ticks then", () => {
    const { clock, counts } = beating();
    clock.pass(1_000);
    Object.assign(counts, { heartbeats: 0, pulses: 0, ticks: 0 });
    clock.pass(3_000);
    expect(counts).toEqual({ heartbeats: 20, pulses: 20, ticks: 0 });
  });

  test("is as fast as it gets from the moment at which something is under way", () => {
    const { clock, counts, pulse } = beating();
    clock.pass(1_000);
    const before = counts.pulses;
    pulse.rouse();
    clock.pass(PULSE_MS + 1);
    expect(counts.pulses).toBe(before + 1);
    clock.pass(4 * PULSE_MS);
    expect(counts.pulses).toBe(before + 5);
  });

  test("stays so for as long as something waits for one, also what nobody roused it for", () => {
    const state = beating();
    state.clock.pass(1_000);
    state.busy = true;
    state.clock.pass(HEARTBEAT_MS);
    Object.assign(state.counts, { pulses: 0, ticks: 0 });
    state.clock.pass(3_000);
    expect(state.counts.pulses).toBe(3_000 / PULSE_MS);
    expect(state.counts.ticks).toBe(30);
  });

  test("comes no more when the node has stopped, whoever rouses it", () => {
    const { clock, counts, pulse } = beating();
    pulse.stop();
    const before = { ...counts };
    pulse.rouse();
    clock.pass(1_000);
    expect(counts).toEqual(before);
  });
});

describe("three nodes at rest", () => {
  test("do little but send each other heartbeats", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("a"));
    // What the nodes look for on their disks after a start is done.
    await cluster.pass(5_000);
    const { events } = cluster.world;
    await cluster.pass(3_000);
    // Each has its timer, and sends to two others: its way, and its coming in.
    const heartbeats = 3 * (3_000 / HEARTBEAT_MS) * (1 + 2 * 2);
    expect(cluster.world.events - events).toBeLessThan(1.2 * heartbeats);
  });

  test("notice that one of them fell silent as soon as if they were busy", async () => {
    for (let phase = 0; phase < HEARTBEAT_MS; phase += 13) {
      const cluster = await ready();
      await cluster.pass(3_000 + phase);
      const [dead, ...others] = cluster.world.nodes;
      const crashedAt = cluster.world.now;
      cluster.world.crash(dead as (typeof others)[number]);
      const name = dead?.name ?? "";
      for (const { host } of others)
        await cluster.until("lost", () => host?.liveness.supports(name) === false);
      // What was on its way arrives a moment after its end.
      expect(cluster.world.now - crashedAt).toBeLessThan(SUPPORT_MS + 2 * PULSE_MS);
    }
  });
});
