/** When each of many watchers is told, by a clock that stands still until it is moved. */
import { describe, expect, test } from "vitest";
import { Bandwidth } from "../../src/gateway/limits.ts";
import type { Sink } from "../../src/gateway/streams.ts";
import { Broadcast, StreamWatcher, type Watcher } from "../../src/gateway/watchers.ts";
import { Batch, bookmark, frame } from "../../src/gateway/watch_frames.ts";

/** Moves the clock, and lets everything happen that is due by then. */
class Clock {
  at = 0;
  #timers: { readonly at: number; readonly run: () => void }[] = [];

  now(): number {
    return this.at;
  }

  after(ms: number, run: () => void): () => void {
    const timer = { at: this.at + ms, run };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((one) => one !== timer);
    };
  }

  get waiting(): number {
    return this.#timers.length;
  }

  async to(at: number): Promise<void> {
    for (;;) {
      // A round takes a turn of the event loop for each slice.
      for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
      const next = this.#timers.toSorted((a, b) => a.at - b.at)[0];
      if (next === undefined || next.at > at) break;
      this.#timers = this.#timers.filter((one) => one !== next);
      this.at = Math.max(this.at, next.at);
      next.run();
    }
    this.at = at;
  }
}

class Told implements Watcher {
  epoch = 1;
  revision = 1;
  readonly principal = { kind: "client", keyId: "", namespaces: null, expiresAt: null } as const;
  readonly credential = { kind: "broken" } as const;
  readonly isBehind = false;
  readonly phase: number;
  readonly #clock: Clock;
  /** `<time>:<revision>,…` of each write. */
  readonly writes: string[] = [];

  constructor(clock: Clock, phase: number) {
    this.#clock = clock;
    this.phase = phase;
  }

  begin(): void {}

  push(batch: Batch): void {
    const told = batch.frames.map(({ event, revision }) =>
      event === "bookmark" ? `bookmark ${revision}` : revision,
    );
    this.writes.push(`${this.#clock.at}:${told.join(",")}`);
  }

  end(): void {}

  reassure(): void {}

  tick(): void {}
}

function setup(phases: readonly number[]): {
  clock: Clock;
  broadcast: Broadcast;
  watchers: readonly Told[];
  commit: (revision: number, spreadMs?: number) => void;
  writes: () => string[][];
} {
  const clock = new Clock();
  const broadcast = new Broadcast(clock);
  const watchers = phases.map((phase) => new Told(clock, phase));
  for (const watcher of watchers) broadcast.watchers.add(watcher);
  const commit = (revision: number, spreadMs?: number): void =>
    broadcast.send(
      frame(
        "commit",
        { epoch: 1, revision },
        { revision, ...(spreadMs !== undefined && { spreadMs }) },
      ),
    );
  return { clock, broadcast, watchers, commit, writes: () => watchers.map((one) => one.writes) };
}

describe("a commit that is spread", () => {
  test("is told to each at its moment, and over when its time is", async () => {
    const { clock, commit, writes, broadcast, watchers } = setup([0, 0.25, 0.5, 0.9]);
    commit(2, 1_000);
    await clock.to(0);
    expect(writes()).toEqual([["0:2"], [], [], []]);
    expect(watchers.map((one) => broadcast.holdsBack(one))).toEqual([false, true, true, true]);
    await clock.to(5_000);
    expect(writes()).toEqual([["0:2"], ["250:2"], ["500:2"], ["900:2"]]);
    expect(clock.waiting).toBe(0);
    commit(3);
    await clock.to(5_001);
    expect(watchers.map((one) => one.writes[1])).toEqual(Array(4).fill("5000:3"));
  });

  test("goes with the next one that is due earlier, and at once with one that is not spread", async () => {
    const { clock, commit, writes } = setup([0, 0.5, 0.9]);
    commit(2, 1_000);
    await clock.to(400);
    commit(3, 200);
    await clock.to(450);
    expect(writes()).toEqual([["0:2", "400:3"], [], []]);
    // 0.5: its second at 500, its first then too; 0.9: its second at 580, long before its first.
    await clock.to(600);
    expect(writes()).toEqual([["0:2", "400:3"], ["500:2,3"], ["580:2,3"]]);
    commit(4, 1_000);
    await clock.to(700);
    commit(5);
    await clock.to(701);
    expect(writes().map((one) => one.at(-1))).toEqual(["700:5", "700:4,5", "700:4,5"]);
  });

  test("is told to all when there are more of them than are kept", async () => {
    const { clock, commit, writes } = setup([0.999]);
    for (let revision = 2; revision <= 66; revision++) commit(revision, 3_600_000);
    await clock.to(1);
    const [first = ""] = writes()[0] as string[];
    expect(first.split(",").length).toBe(64);
    expect(writes()[0]).toHaveLength(1);
    await clock.to(3_600_000);
    expect(writes()[0]).toHaveLength(2);
  });

  test("lets nobody be told by a bookmark that there was nothing", async () => {
    const { clock, broadcast, commit, writes, watchers } = setup([0, 0.9]);
    commit(2, 1_000);
    await clock.to(10);
    broadcast.send(bookmark({ epoch: 1, revision: 2 }));
    await clock.to(20);
    expect(writes()).toEqual([["0:2", "10:bookmark 2"], []]);
    // Who leaves a poll now takes along what it would have been told.
    broadcast.settle(watchers[1] as Told);
    expect(writes()[1]).toEqual(["20:2"]);
    await clock.to(2_000);
    expect(writes()[1]).toEqual(["20:2"]);
  });

  test("is dropped with the last watcher, in that moment", async () => {
    const { clock, broadcast, commit, watchers } = setup([0.8, 0.9]);
    commit(2, 3_600_000);
    await clock.to(10);
    expect(clock.waiting).toBe(1);
    for (const watcher of watchers) broadcast.leave(watcher);
    expect(clock.waiting).toBe(0);
    for (const watcher of watchers) broadcast.watchers.add(watcher);
    commit(3, 3_600_000);
    await clock.to(20);
    broadcast.end("moved");
    expect([clock.waiting, broadcast.watchers.size]).toEqual([0, 0]);
  });

  test("does not gather beyond its bound where very many come in one turn", () => {
    const { commit, writes } = setup([0.5]);
    for (let revision = 2; revision <= 2_000; revision++) commit(revision, 1_000);
    // Seventeen times what is held back, in this turn.
    const [first = ""] = writes()[0] as string[];
    expect(first.split(",").length).toBe(17 * 64);
  });
});

describe("signs of life", () => {
  const settings = {
    bookmarkMs: 12_000,
    watchersMax: 1,
    watchersPerTenantMax: 1,
    feedsMax: 1,
    queueFramesMax: 1,
    queueBytesMax: 1,
    slowMs: 1_000_000,
    ageMs: 1_000_000,
    lingerMs: 1,
  };

  function streamOf(bandwidth: Bandwidth): { watcher: StreamWatcher; written: string[] } {
    const written: string[] = [];
    const sink: Sink = {
      write: (bytes) => written.push(new TextDecoder().decode(bytes)) > 0,
      end: () => {},
    };
    const watcher = new StreamWatcher(
      {
        principal: { kind: "client", keyId: "", namespaces: null, expiresAt: null },
        credential: { kind: "broken" },
        phase: 0,
        told: "1-1",
        every: false,
        flags: false,
        bandwidth,
        settings,
        openStream: () => new ReadableStream(),
      },
      { resync: async () => {}, closed: () => {} },
    );
    watcher.open(sink);
    return { watcher, written };
  }

  test("come so long after the last thing that was written, whenever that was", () => {
    const bandwidth = new Bandwidth({ bytes: 0, held: 0, waiting: 0 });
    const { watcher, written } = streamOf(bandwidth);
    const from = Math.ceil(performance.now());
    const at: number[] = [];
    for (let second = 1; second <= 60; second++) {
      // Something comes at 20 s.
      if (second === 20) watcher.push(new Batch([bookmark({ epoch: 1, revision: 1 })]));
      const before = written.length;
      watcher.tick(from + second * 1_000);
      watcher.reassure(from + second * 1_000);
      if (written.length > before) at.push(second);
    }
    // Counted from the tick that finds it: never more than 14 s apart.
    expect(at).toEqual([13, 32, 45, 58]);
    watcher.gone();
  });

  test("owe nothing, so what is news is never behind them", () => {
    const bandwidth = new Bandwidth({ bytes: 0, held: 0, waiting: 0 });
    bandwidth.limit(100);
    const { watcher, written } = streamOf(bandwidth);
    const quiet = new Batch([bookmark({ epoch: 1, revision: 1 })]);
    for (let i = 0; i < 1_000; i++) watcher.push(quiet);
    expect(written).toHaveLength(1_001);
    expect(bandwidth.bytes).toBeGreaterThan(30_000);
    expect(bandwidth.waitSeconds).toBe(1);
    watcher.gone();
  });
});

describe("a turn for one who waits only so long", () => {
  test("comes in line with the streams, or not at all", async () => {
    const totals = { bytes: 0, held: 0, waiting: 0 };
    const bandwidth = new Bandwidth(totals);
    expect(await bandwidth.turnWithin(0)).toBe(true);
    bandwidth.limit(1_000);
    bandwidth.sent(5_050);
    const turns: string[] = [];
    bandwidth.wait({
      turn: async () => {
        turns.push("stream");
        bandwidth.sent(50);
      },
    });
    const poll = bandwidth.turnWithin(60_000).then((came) => turns.push(`poll ${came}`));
    // It would be too late for it.
    expect(await bandwidth.turnWithin(1)).toBe(false);
    await poll;
    expect(turns).toEqual(["stream", "poll true"]);
    // That there is enough does not help who is last in line.
    bandwidth.limit(1);
    bandwidth.wait({ turn: async () => {} });
    bandwidth.sent(1_000);
    expect(await bandwidth.turnWithin(10_000)).toBe(false);
    expect(totals.waiting).toBe(1);
    bandwidth.limit(1_000_000_000_000);
    expect(await bandwidth.turnWithin(10_000)).toBe(true);
    expect(totals.waiting).toBe(0);
  });
});
