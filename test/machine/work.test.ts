/**
 * How much work the pure floors do per operation, counted by V8 and not timed: calls of functions, which are the same on
 * every machine and in every run, and bytes allocated, as a ratio to those of a JSON round trip in the same run. A bound
 * that breaks is either a mistake or has to be raised here, with a reason in the commit. Bun counts neither.
 */
import { Session } from "node:inspector";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FrameWriter, frameItems, parseRaftItem } from "../../src/host/codec.ts";
import type { Command } from "../../src/machine/command.ts";
import { apply } from "../../src/machine/machine.ts";
import { evaluate } from "../../src/model/evaluate.ts";
import { EntryKind, MessageType, type Message } from "../../src/raft/types.ts";
import { MemoryState } from "./memory_state.ts";

interface CallFrames {
  readonly selfSize: number;
  readonly children: readonly CallFrames[];
}
interface Coverage {
  readonly result: readonly {
    readonly url: string;
    readonly functions: readonly { readonly ranges: readonly { readonly count: number }[] }[];
  }[];
}

const actor = { kind: "system", keyId: "system" } as const;
const command = (action: Command["action"]): Command => ({ at: 1, actor, semantics: 3, action });

/** Of one config; each with another content, as equal ones are not published. */
function publish(text: string): Command {
  const content = { text, hash: `sha256:${text}`, bytes: text.length };
  return command({ op: "publish", namespace: "app", name: "c", content, schemaHash: null });
}

function must(state: MemoryState, one: Command): void {
  const { outcome } = apply(state, one);
  if (!outcome.ok) throw new Error(outcome.detail);
}

/** A tenant with a config of so many versions. */
function tenant(versions: number): MemoryState {
  const state = new MemoryState();
  must(state, command({ op: "tenant.init", tenant: "t", quotas: {}, keys: [] }));
  must(state, command({ op: "config.put", namespace: "app", name: "c", format: "text" }));
  for (let i = 0; i < versions; i++) must(state, publish(`first ${i}`));
  return state;
}

// Only V8 tells how often what was called, and what was allocated by whom.
describe.skipIf("Bun" in globalThis || "Deno" in globalThis)("work per operation", () => {
  const session = new Session();
  const ask = <T>(method: string, parameters: object = {}): T => {
    let answer: unknown;
    session.post(method, parameters, (error, result) => {
      if (error !== null) throw new Error(`${method}: ${error.message}`);
      answer = result;
    });
    return answer as T;
  };
  beforeAll(() => {
    session.connect();
    ask("Profiler.enable");
    ask("HeapProfiler.enable");
  });
  afterAll(() => session.disconnect());

  /** Calls of functions of src/, per run. */
  function calls(runs: number, run: (i: number) => void): number {
    ask("Profiler.startPreciseCoverage", { callCount: true, detailed: false });
    for (let i = 0; i < runs; i++) run(i);
    const { result } = ask<Coverage>("Profiler.takePreciseCoverage");
    ask("Profiler.stopPreciseCoverage");
    let sum = 0;
    for (const { url, functions } of result) {
      if (!url.includes("/src/")) continue;
      for (const { ranges } of functions) sum += ranges[0]?.count ?? 0;
    }
    return sum / runs;
  }

  /** Bytes, also of what is garbage by the end, per run. */
  function allocated(runs: number, run: (i: number) => void): number {
    ask("HeapProfiler.startSampling", {
      samplingInterval: 64,
      includeObjectsCollectedByMajorGC: true,
      includeObjectsCollectedByMinorGC: true,
    });
    for (let i = 0; i < runs; i++) run(i);
    const { profile } = ask<{ profile: { head: CallFrames } }>("HeapProfiler.stopSampling");
    const sizeOf = (frames: CallFrames): number =>
      frames.children.reduce((sum, child) => sum + sizeOf(child), frames.selfSize);
    return sizeOf(profile.head) / runs;
  }

  test("the counters count", () => {
    const state = tenant(20);
    const once = calls(10, (i) => must(state, publish(`once ${i}`)));
    const twice = calls(10, (i) => {
      must(state, publish(`one ${i}`));
      must(state, publish(`two ${i}`));
    });
    expect(twice / once).toBeCloseTo(2, 1);
    const numbers = (length: number) => (): unknown => Array.from({ length }, (_, i) => i + 0.5);
    const [small, large] = [allocated(20, numbers(500)), allocated(20, numbers(2_000))];
    expect(large / small).toBeGreaterThan(3);
    expect(large / small).toBeLessThan(5);
  });

  test("a publish is some 170 calls, and memory in proportion to its JSON", () => {
    const state = tenant(1_100);
    const of = Array.from({ length: 100 }, (_, i) => publish(`text ${i}`));
    const bytes = allocated(100, (i) => must(state, of[i] as Command));
    const baseline = allocated(100, (i) => JSON.parse(JSON.stringify(of[i])));
    expect(bytes / baseline).toBeLessThan(35);
    expect(calls(20, (i) => must(state, publish(`more ${i}`)))).toBeLessThan(185);
  });

  test("a publish is as many calls with ten versions as with the most that are kept", () => {
    const [few, most] = [tenant(10), tenant(1_100)].map((state) =>
      calls(20, (i) => must(state, publish(`text ${i}`))),
    ) as [number, number];
    // The oldest version and the oldest release are dropped.
    expect(most - few).toBeLessThan(40);
  });

  test("an entry among others is few calls and little memory, on its way out and in", () => {
    const data = new TextEncoder().encode(JSON.stringify(publish("text")));
    const message = (entries: number): Message => ({
      type: MessageType.appendEntries,
      to: 2,
      from: 1,
      term: 3,
      logTerm: 3,
      index: 7,
      commit: 6,
      reject: false,
      rejectHint: 0,
      context: 0,
      entries: Array.from({ length: entries }, (_, i) => ({
        index: 8 + i,
        term: 3,
        kind: EntryKind.normal,
        data,
      })),
      snapshot: null,
    });
    const there = (one: Message): void => {
      const frame = new FrameWriter();
      frame.addRaft(9, 1, one);
      for (const { item } of frameItems(frame.take())) parseRaftItem(item);
    };
    const [one, many] = [message(1), message(101)];
    const callsEach = (calls(10, () => there(many)) - calls(10, () => there(one))) / 100;
    expect(callsEach).toBeLessThan(40);
    // A frame grows by doubling, and what comes out is a copy.
    const bytesEach = (allocated(20, () => there(many)) - allocated(20, () => there(one))) / 100;
    expect(bytesEach).toBeLessThan(6 * data.length);
  });

  test("an evaluation is calls in proportion to its rules", () => {
    const rules = (count: number) =>
      Array.from({ length: count }, (_, i) => ({
        id: `r${i}`,
        match: { region: { prefix: `nowhere-${i}` } },
        version: 2,
      }));
    const labels = { region: "eu", user: "u" };
    const [one, eleven] = [1, 11].map((count) => {
      const release = { rules: rules(count), default: 1 };
      return calls(100, () => evaluate(release, labels, 0));
    }) as [number, number];
    expect((eleven - one) / 10).toBeLessThan(10);
  });
});
