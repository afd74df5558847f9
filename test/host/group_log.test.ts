import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { GroupLog, type LogCheckpoint } from "../../src/host/group_log.ts";
import type { Entry } from "../../src/raft/types.ts";
import { freshMeta, MemoryEnvironment } from "./memory_environment.ts";

const fresh = freshMeta([1]);

type Step =
  /** Entries of a newer term, from `back` before the end: what Raft does on a conflict. */
  | { readonly kind: "append"; readonly back: number; readonly count: number }
  | { readonly kind: "checkpoint"; readonly kept: number }
  | { readonly kind: "checkpointed" }
  /** What a replica that is alone in its group does with what it applied. */
  | { readonly kind: "compact"; readonly kept: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("append" as const),
      back: fc.nat(4),
      count: fc.integer({ min: 1, max: 5 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("checkpoint" as const), kept: fc.nat(6) }),
  },
  { weight: 2, arbitrary: fc.constant({ kind: "checkpointed" as const }) },
  { arbitrary: fc.record({ kind: fc.constant("compact" as const), kept: fc.nat(6) }), weight: 1 },
);

describe("GroupLog", () => {
  test("is the log that was appended, over checkpoints, compaction, cuts and a restart at any point", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const environment = new MemoryEnvironment();
        const log = new GroupLog(environment, fresh);
        let model: Entry[] = [];
        let first = 1;
        let term = 0;
        let running: { checkpoint: LogCheckpoint; cut: number | null; commit: () => void } | null =
          null;
        let meta = fresh;
        const at = (index: number): Entry => model[index - 1] as Entry;
        for (const one of steps) {
          if (one.kind === "append") {
            term += 1;
            // What is being compacted was applied, and nothing applied is ever replaced.
            const start = Math.max(first, running?.checkpoint.first ?? 1);
            const from = Math.max(start, model.length + 1 - one.back);
            const entries: Entry[] = Array.from({ length: one.count }, (_, offset) => ({
              index: from + offset,
              term,
              kind: 0,
              data: Uint8Array.of(term, offset),
            }));
            const cuts = from <= model.length;
            model = [...model.slice(0, from - 1), ...entries];
            const cut = log.append(entries);
            expect(cut).toBe(cuts ? from : null);
            if (running !== null && cut !== null) running.cut = Math.min(running.cut ?? cut, cut);
          } else if (one.kind === "checkpoint" && running === null) {
            const checkpoint = log.checkpoint(model.length, model.length - one.kept);
            first = Math.max(first, checkpoint.first);
            const change = {
              meta: new Uint8Array(),
              rows: [],
              entries: [...checkpoint.entries],
              entriesDeleted: checkpoint.entriesDeleted,
            };
            running = { checkpoint, cut: null, commit: () => environment.write(change) };
          } else if (one.kind === "checkpointed" && running !== null) {
            running.commit();
            log.checkpointed(running.checkpoint, running.cut);
            const { checkpoint } = running;
            meta = {
              ...fresh,
              first: checkpoint.first,
              firstTerm: checkpoint.firstTerm,
              last: checkpoint.last,
            };
            // Nothing outside the checkpointed log stays in the environment, but what a cut made stale meanwhile.
            for (const index of environment.entryIndexes) {
              expect(index).toBeGreaterThanOrEqual(checkpoint.first);
              expect(index).toBeLessThanOrEqual(checkpoint.last);
            }
            if (running.cut === null) {
              const restarted = new GroupLog(environment, meta);
              for (let index = checkpoint.first; index <= checkpoint.last; index++) {
                expect(restarted.term(index)).toBe(at(index).term);
              }
            }
            running = null;
          } else if (one.kind === "compact") {
            const to = model.length - one.kept;
            log.compact(to);
            // Of what is in the environment nothing goes before the next checkpoint.
            if (log.firstIndex() !== first) expect(log.firstIndex()).toBe(to + 1);
            else if (running === null && to >= first) expect(to).toBeLessThanOrEqual(meta.last);
            first = log.firstIndex();
          }
          expect(log.lastIndex()).toBe(model.length);
          expect(log.firstIndex()).toBe(first);
          for (let index = first; index <= model.length; index++)
            expect(log.term(index)).toBe(at(index).term);
          expect(log.entries(first, model.length + 1, Infinity)).toEqual(model.slice(first - 1));
          expect(log.term(model.length + 1)).toBe(-1);
          if (first > 1) expect(log.entries(first - 1, model.length + 1, 100)).toBeNull();
        }
      }),
      { numRuns: 500 },
    );
  });

  test("what was cut off leaves the environment with the next checkpoint, and nothing of it comes back", () => {
    const environment = new MemoryEnvironment();
    const log = new GroupLog(environment, fresh);
    const entriesOf = (term: number, from: number, to: number): Entry[] =>
      Array.from({ length: to - from + 1 }, (_, offset) => ({
        index: from + offset,
        term,
        kind: 0,
        data: new Uint8Array(1),
      }));
    const store = (durable: number): LogCheckpoint => {
      const checkpoint = log.checkpoint(durable, 0);
      const { entriesDeleted } = checkpoint;
      const entries = [...checkpoint.entries];
      const meta = new Uint8Array();
      environment.write({ meta, rows: [], entries, entriesDeleted });
      log.checkpointed(checkpoint, null);
      return checkpoint;
    };
    log.append(entriesOf(1, 1, 5));
    store(5);
    expect(log.append(entriesOf(2, 3, 3))).toBe(3);
    const { first, firstTerm, last } = store(3);
    expect(environment.entryIndexes).toEqual([1, 2, 3]);
    const restarted = new GroupLog(environment, { ...fresh, first, firstTerm, last });
    expect([1, 2, 3, 4].map((index) => restarted.term(index))).toEqual([1, 1, 2, -1]);
  });

  test("keepFrom() keeps within count and bytes, of what is in the environment whole checkpoints", () => {
    const environment = new MemoryEnvironment();
    const log = new GroupLog(environment, fresh);
    const append = (from: number, to: number): void => {
      for (let index = from; index <= to; index++)
        log.append([{ index, term: 1, kind: 0, data: new Uint8Array(10) }]);
    };
    const store = (durable: number, compactTo: number): void => {
      const checkpoint = log.checkpoint(durable, compactTo);
      const { entriesDeleted } = checkpoint;
      environment.write({
        meta: new Uint8Array(),
        rows: [],
        entries: [...checkpoint.entries],
        entriesDeleted,
      });
      log.checkpointed(checkpoint, null);
    };
    const keep = (bounds: { entries?: number; from?: number; bytes: number }): number =>
      log.keepFrom(30, bounds);
    append(1, 10);
    store(10, 0);
    append(11, 20);
    store(20, 0);
    append(21, 30);
    expect(keep({ entries: 5, bytes: Infinity })).toBe(26);
    expect(keep({ entries: 5, bytes: 25 })).toBe(29);
    expect(keep({ entries: 1_000, bytes: 100 })).toBe(21);
    // 11 to 20 is one checkpoint: it is kept with its 100 bytes, or not at all.
    expect(keep({ entries: 1_000, bytes: 199 })).toBe(21);
    expect(keep({ entries: 1_000, bytes: 200 })).toBe(11);
    expect(keep({ entries: 15, bytes: 200 })).toBe(16);
    expect(keep({ from: 4, bytes: Infinity })).toBe(4);
    expect(keep({ from: 4, bytes: 250 })).toBe(11);
    expect(keep({ entries: 0, bytes: 0 })).toBe(31);
    store(30, 15);
    expect(keep({ entries: 1_000, bytes: Infinity })).toBe(16);
    // What is cut off is not counted any more.
    log.append([{ index: 18, term: 2, kind: 0, data: new Uint8Array(10) }]);
    expect(log.keepFrom(18, { entries: 1_000, bytes: 110 })).toBe(16);
    expect(log.keepFrom(18, { entries: 1_000, bytes: 20 })).toBe(18);
  });

  test("entries() gives at least one entry, and no more than fit", () => {
    const log = new GroupLog(new MemoryEnvironment(), fresh);
    log.append([1, 2, 3].map((index) => ({ index, term: 1, kind: 0, data: new Uint8Array(10) })));
    expect(log.entries(1, 4, 0)).toHaveLength(1);
    expect(log.entries(1, 4, 20)).toHaveLength(2);
    expect(log.entries(1, 4, 29)).toHaveLength(2);
    expect(log.entries(1, 4, 30)).toHaveLength(3);
  });

  test("an append that leaves a hole is refused", () => {
    const log = new GroupLog(new MemoryEnvironment(), fresh);
    expect(() => log.append([{ index: 2, term: 1, kind: 0, data: new Uint8Array() }])).toThrow(
      "hole",
    );
  });
});
