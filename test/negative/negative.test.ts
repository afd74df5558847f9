/**
 * The slice of the planted bugs that every change passes: each has its place in the sources, and some are planted and
 * found. All of them: `npm run test:negative`.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { mutations } from "./mutations.ts";
import { checkPlaces, Greenhouse, plant } from "./planting.ts";
import type { Killer, Mutation, Verdict } from "./planting.ts";
import { Results } from "./results.ts";

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

describe("a run that goes on from a file", () => {
  const mutation = mutations[0] as Mutation;
  const killer: Killer = { kind: "test", files: ["test/one.test.ts", "test/two.test.ts"] };
  const killed: Verdict = { killed: true, by: "a test", file: "test/one.test.ts", ms: 1 };
  let root = "";
  const write = (name: string, text: string): void => writeFileSync(path.join(root, name), text);
  const results = (): Results => new Results(root, path.join(root, "results.json"));
  const found = (one = mutation): Verdict | null => results().verdictOf(one);

  beforeEach(() => {
    root = mkdtempSync(path.join(tmpdir(), "results-"));
    for (const folder of ["src", "test"]) mkdirSync(path.join(root, folder));
    for (const name of ["src/a.ts", "test/shared.ts", ...killer.files]) write(name, "sound");
    const run = results();
    run.prove(killer);
    run.keep(mutation, killed);
  });
  afterEach(() => rmSync(root, { recursive: true, force: true }));

  test("takes a verdict over while nothing it rests on is changed", () => {
    write("test/two.test.ts", "another");
    expect(found()).toEqual(killed);
    expect(found({ ...mutation, replace: "another" })).toBeNull();
    write("test/one.test.ts", "another");
    expect(found()).toBeNull();
  });

  test.each(["src/a.ts", "src/new.ts", "test/shared.ts"])(
    "knows nothing when %s is changed",
    (name) => {
      write(name, "another");
      expect(found()).toBeNull();
      expect(results().unproved([killer])).toEqual([killer]);
    },
  );

  test("plants again what survived", () => {
    results().keep(mutation, { killed: false, by: "nothing", file: null, ms: 1 });
    expect(found()).toBeNull();
  });

  test("proves each killer on the sound sources as they are, once", () => {
    expect(results().unproved([killer, killer])).toEqual([]);
    write("test/two.test.ts", "another");
    expect(results().unproved([killer])).toEqual([{ ...killer, files: ["test/two.test.ts"] }]);
    // Who passed before it was changed is no proof of what it noticed since.
    write("test/one.test.ts", "another");
    results().keep(mutation, killed);
    expect(found()).toBeNull();
    results().prove(killer);
    expect(found()).toEqual(killed);
    const seeds = (count: number): Killer => ({ kind: "sim", from: 1, seeds: count });
    const run = results();
    run.prove(seeds(10));
    expect(run.unproved([seeds(5), seeds(10)])).toEqual([]);
    expect(run.unproved([seeds(5), seeds(11)])).toEqual([seeds(11)]);
  });
});

function named(id: string): Mutation {
  const mutation = mutations.find((one) => one.id === id);
  if (mutation === undefined) throw new Error(`No mutation is called ${id}`);
  return mutation;
}
