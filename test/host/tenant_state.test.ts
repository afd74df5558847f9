import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TenantState } from "../../src/host/tenant_state.ts";
import { auditKey, historyKey } from "../../src/machine/keys.ts";
import { MemoryEnvironment } from "./memory_environment.ts";

type Step =
  | { readonly kind: "put"; readonly key: string; readonly value: number }
  | { readonly kind: "add"; readonly key: string; readonly value: number }
  | { readonly kind: "delete"; readonly key: string }
  /** The next so many numbers, as commands add them, and the oldest of them go. */
  | { readonly kind: "records"; readonly added: number; readonly dropped: number }
  | { readonly kind: "freeze" }
  | { readonly kind: "thaw" };

/** Records are numbered, and kept in another way: in their order, with gaps, and with a prefix on either side. */
const records = Array.from({ length: 20 }, (_, n) => historyKey(n + 1));
const names = ["a", "a/1", "a/2", "aud/x", "b", "b/1", "c", "d/10", "d/11", "d/2", ...records];
names.push(auditKey(1), auditKey(2), "hist/", "hist0");
const key = fc.constantFrom(...names);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({ kind: fc.constant("put" as const), key, value: fc.nat(99) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant("add" as const), key, value: fc.nat(99) }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("delete" as const), key }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("records" as const),
      added: fc.nat(12),
      dropped: fc.nat(12),
    }),
  },
  { weight: 1, arbitrary: fc.constant({ kind: "freeze" as const }) },
  { weight: 1, arbitrary: fc.constant({ kind: "thaw" as const }) },
);

describe("TenantState", () => {
  test("reads and ranges are those of one map, whatever lies in overlay, frozen overlay or environment", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), key, key, (steps, gte, lt) => {
        const environment = new MemoryEnvironment();
        const state = new TenantState(environment);
        const model = new Map<string, number>();
        let commit: (() => void) | null = null;
        let [first, next] = [1, 1];
        for (const one of steps) {
          switch (one.kind) {
            case "put":
              state.put(one.key, one.value);
              model.set(one.key, one.value);
              break;
            case "add":
              // Only what does not exist may be added.
              if (model.has(one.key)) break;
              state.add(one.key, one.value);
              model.set(one.key, one.value);
              break;
            case "delete":
              state.delete(one.key);
              model.delete(one.key);
              break;
            case "records":
              for (let n = 0; n < one.added; n++, next++) {
                if (model.has(historyKey(next))) continue;
                state.add(historyKey(next), next);
                model.set(historyKey(next), next);
              }
              for (let n = 0; n < one.dropped && first < next; n++, first++) {
                state.delete(historyKey(first));
                model.delete(historyKey(first));
              }
              break;
            case "freeze": {
              if (commit !== null) break;
              const rows = [...state.freeze()];
              commit = () => {
                environment.write({
                  meta: new Uint8Array(),
                  rows,
                  entries: [],
                  entriesDeleted: [],
                });
                state.thaw();
              };
              break;
            }
            case "thaw":
              commit?.();
              commit = null;
          }
          expect(state.checkpointing).toBe(commit !== null);
          // Reading keeps rows parsed, which must not outlive what they were read of.
          for (const name of ["key" in one ? one.key : historyKey(first), historyKey(next - 1)])
            expect(state.get<number>(name)).toBe(model.get(name));
        }
        for (const name of [...names, "zz", historyKey(25)]) {
          expect(state.get<number>(name)).toBe(model.get(name));
        }
        const expected = [...model]
          .filter(([name]) => name >= gte && name < lt)
          .sort(([a], [b]) => (a < b ? -1 : 1));
        expect([...state.range({ gte, lt })]).toEqual(expected);
        expect([...state.range({ gte, lt, reverse: true })]).toEqual(expected.toReversed());
        const whole = [...model].sort(([a], [b]) => (a < b ? -1 : 1));
        const snapshot = state.snapshot();
        for (const name of names) state.put(name, -1);
        state.put("z", 0);
        state.add(historyKey(1_000), 0);
        expect([...snapshot.rows()]).toEqual(whole.map(([name, n]) => [name, String(n)]));
        snapshot.close();
      }),
      { numRuns: 500 },
    );
  });

  test("reset() forgets the overlays: a snapshot replaced the environment", () => {
    const environment = new MemoryEnvironment();
    const state = new TenantState(environment);
    state.put("a", 1);
    state.freeze();
    state.put("b", 2);
    state.reset();
    expect(state.get("a")).toBeUndefined();
    expect(state.dirty).toBe(false);
    expect(state.checkpointing).toBe(false);
  });

  test("hold() keeps what there is to be read, whatever happens to the environment", () => {
    const environment = new MemoryEnvironment();
    const state = new TenantState(environment);
    const write = (rows: (readonly [string, string | undefined])[]): void =>
      environment.write({ meta: new Uint8Array(), rows, entries: [], entriesDeleted: [] });
    write([
      ["a", "1"],
      ["b", "1"],
    ]);
    state.put("b", 2);
    state.hold();
    write([
      ["a", "9"],
      ["b", "9"],
      ["c", "9"],
    ]);
    const everything = { gte: "", lt: "z" };
    expect([state.get("a"), state.get("b"), state.get("c")]).toEqual([1, 2, undefined]);
    expect([...state.range(everything)].map(([, row]) => row)).toEqual([1, 2]);
    expect(() => state.hold()).toThrow("under way");
    state.reset();
    expect([state.get("a"), state.get("b"), state.get("c")]).toEqual([9, 9, 9]);
    expect([...state.range(everything)].map(([, row]) => row)).toEqual([9, 9, 9]);
  });

  test("a second freeze before the thaw is a mistake of the caller", () => {
    const state = new TenantState(new MemoryEnvironment());
    state.freeze();
    expect(() => state.freeze()).toThrow("already under way");
  });
});
