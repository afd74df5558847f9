import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { SortedMap } from "../../src/lib/sorted_map.ts";

const key = fc.constantFrom(
  "a",
  "a/",
  "a/1",
  "a/2",
  "a-b/1",
  "ab",
  "ab/1",
  "b/10",
  "b/9",
  "b0",
  "c",
);
const step = fc.tuple(fc.constantFrom("set", "set", "set", "delete", "range"), key, key, fc.nat(9));

describe("SortedMap", () => {
  test("is a map whose ranges are in key order, whatever came in which order", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const map = new SortedMap<number>();
        const model = new Map<string, number>();
        for (const [kind, one, other, value] of steps) {
          if (kind === "set") {
            map.set(one, value);
            model.set(one, value);
          } else if (kind === "delete") {
            map.delete(one);
            model.delete(one);
          } else {
            const expected = [...model]
              .filter(([at]) => at >= one && at < other)
              .sort(([left], [right]) => (left < right ? -1 : 1));
            expect([...map.range({ gte: one, lt: other })]).toEqual(expected);
            expect([...map.range({ gte: one, lt: other, reverse: true })]).toEqual(
              expected.reverse(),
            );
          }
          expect(map.get(one)).toBe(model.get(one));
          expect(map.size).toBe(model.size);
        }
        expect([...map.entries()].map(([at]) => at)).toEqual([...model.keys()].sort());
      }),
    );
  });

  test("a range under way goes on over what it found when keys are set meanwhile", () => {
    const map = new SortedMap<number>();
    for (const name of ["x/1", "x/3", "x/5"]) map.set(name, 0);
    const seen: string[] = [];
    for (const [name] of map.range({ gte: "x/", lt: "x0" })) {
      seen.push(name);
      map.set("x/2", 0);
      map.set("x/9", 0);
      expect([...map.range({ gte: "x/", lt: "x0" })]).toHaveLength(5);
    }
    expect(seen).toEqual(["x/1", "x/3", "x/5"]);
  });
});
