/**
 * The slice of the planted bugs that every change passes: each has its place in the sources, and some are planted and
 * found. All of them: `npm run test:negative`.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { mutations } from "./mutations.ts";
import { checkPlaces, Greenhouse, plant } from "./planting.ts";
import type { Mutation } from "./planting.ts";

/** One or two of each room, and the file that finds it within a second. */
const quick: readonly (readonly [id: string, file: string])[] = [
  ["half-commits", "test/raft/parts.test.ts"],
  ["acknowledgement-of-replaced-entry", "test/raft/parts.test.ts"],
  ["old-terms-counted", "test/raft/paper.test.ts"],
  ["cut-entries-stay-stored", "test/host/group_log.test.ts"],
  ["call-of-older-boot", "test/host/rpc.test.ts"],
  ["failed-sync-retried", "test/store/journal.test.ts"],
  ["idempotency-by-key-only", "test/machine/machine.test.ts"],
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
    const files = [...new Set(quick.map(([, file]) => file))];
    expect(await greenhouse?.unleash({ kind: "test", files })).toBeNull();
  }, 120_000);

  test.each(quick)(
    "%s is found by %s",
    async (id, file) => {
      const mutation: Mutation = { ...named(id), killers: [{ kind: "test", files: [file] }] };
      expect((await greenhouse?.try(mutation))?.killed).toBe(true);
    },
    120_000,
  );
});

function named(id: string): Mutation {
  const mutation = mutations.find((one) => one.id === id);
  if (mutation === undefined) throw new Error(`No mutation is called ${id}`);
  return mutation;
}
