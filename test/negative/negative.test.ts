/**
 * The slice of the planted bugs that every change passes: each has its place in the sources, and some are planted and
 * found. All of them: `npm run test:negative`.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { mutations } from "./mutations.ts";
import { checkPlaces, Greenhouse, plant } from "./planting.ts";
import type { Mutation } from "./planting.ts";

/** One or two of each room, found within a second by a single test file. */
const quick: readonly string[] = [
  "half-commits",
  "acknowledgement-of-replaced-entry",
  "cut-entries-stay-stored",
  "call-of-older-boot",
  "failed-sync-retried",
  "idempotency-by-key-only",
];

describe("the planted bugs", () => {
  let greenhouse: Greenhouse | null = null;
  beforeAll(() => {
    greenhouse = new Greenhouse();
  });
  afterAll(() => greenhouse?.remove());

  test("are at least sixty, each with a name and a place of its own", () => {
    expect(mutations.length).toBeGreaterThanOrEqual(60);
    expect(new Set(mutations.map(({ id }) => id)).size).toBe(mutations.length);
    checkPlaces(mutations);
  });

  test("a place that is gone, or is there twice, is an error", () => {
    const mutation: Mutation = { ...(mutations[0] as Mutation), find: "x", replace: "y" };
    expect(plant("a x b", mutation)).toBe("a y b");
    expect(() => plant("a b", mutation)).toThrow("stands 0 times");
    expect(() => plant("x x", mutation)).toThrow("stands 2 times");
  });

  test("sound sources pass what is to find the bugs", async () => {
    const killers = quick.map((id) => named(id).killers[0]);
    const files = new Set(
      killers.flatMap((killer) => (killer?.kind === "test" ? killer.files : [])),
    );
    expect(await greenhouse?.unleash({ kind: "test", files: [...files].sort() })).toBeNull();
  }, 120_000);

  test.each(quick)(
    "%s is found",
    async (id) => {
      expect((await greenhouse?.try(named(id)))?.killed).toBe(true);
    },
    120_000,
  );
});

function named(id: string): Mutation {
  const mutation = mutations.find((one) => one.id === id);
  if (mutation === undefined) throw new Error(`No mutation is called ${id}`);
  return mutation;
}
