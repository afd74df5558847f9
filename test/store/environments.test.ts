import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import type { EnvironmentChange } from "../../src/host/ports.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import type { LmdbEnvironment } from "../../src/store/environments.ts";
import { environmentCap } from "../../src/store/limits.ts";

const directories: string[] = [];

function temporary(): string {
  const directory = fs.mkdtempSync(join(tmpdir(), "conflux-env-"));
  directories.push(directory);
  return directory;
}

afterAll(() => {
  for (const directory of directories) fs.rmSync(directory, { recursive: true, force: true });
});

function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function commit(environment: LmdbEnvironment, change: Partial<EnvironmentChange>): Promise<void> {
  return new Promise((resolve, reject) => {
    environment.commit(
      { clear: false, meta: bytes("m"), rows: [], entries: [], entriesDeleted: [], ...change },
      (error) => (error === null ? resolve() : reject(error)),
    );
  });
}

function rows(entries: Iterable<readonly [string, string]>): Record<string, string> {
  return Object.fromEntries(entries);
}

const everything = { gte: " ", lt: "\x7f" };

describe("commit()", () => {
  test("changes rows, entries and meta together, visible when it is done", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    expect(environment.meta()).toBe(null);
    expect(environment.get("a")).toBe(undefined);
    await commit(environment, {
      meta: bytes("first"),
      rows: [
        ["a", '{"x":"ä€😀"}'],
        ["b", ""],
        ["gone", undefined],
      ],
      entries: [
        [1, bytes("one")],
        [2 ** 33, bytes("far")],
      ],
    });
    expect(new TextDecoder().decode(environment.meta() as Uint8Array)).toBe("first");
    expect(environment.get("a")).toBe('{"x":"ä€😀"}');
    expect(environment.get("b")).toBe("");
    expect(environment.entry(1)).toEqual(Uint8Array.from(bytes("one")));
    expect(environment.entry(2 ** 33)).toEqual(Uint8Array.from(bytes("far")));
    expect(environment.entry(2)).toBe(undefined);
    await environment.close();
    const again = environments.open("acme");
    expect(rows(again.range(everything))).toEqual({ a: '{"x":"ä€😀"}', b: "" });
    await again.close();
  });

  test("replaces everything on clear, in the same transaction", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    await commit(environment, {
      rows: [
        ["old", "1"],
        ["both", "1"],
      ],
      entries: [
        [1, bytes("1")],
        [2, bytes("2")],
      ],
    });
    await commit(environment, {
      clear: true,
      meta: bytes("snapshot"),
      rows: [
        ["both", "2"],
        ["new", "2"],
        ["old", undefined],
      ],
      entries: [[9, bytes("9")]],
      entriesDeleted: [{ low: 0, high: 100 }],
    });
    expect(rows(environment.range(everything))).toEqual({ both: "2", new: "2" });
    expect(environment.entry(1)).toBe(undefined);
    expect(environment.entry(9)).toEqual(Uint8Array.from(bytes("9")));
    await environment.close();
  });

  test("deletes ranges of entries before it puts", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    const all = Array.from({ length: 20 }, (_, n) => [n + 1, bytes(`${n + 1}`)] as const);
    await commit(environment, { entries: all });
    await commit(environment, {
      entriesDeleted: [
        { low: 1, high: 5 },
        { low: 10, high: Number.MAX_SAFE_INTEGER },
        { low: 7, high: 7 },
      ],
      entries: [[12, bytes("again")]],
    });
    const left = all.map(([index]) => index).filter((index) => environment.entry(index));
    expect(left).toEqual([5, 6, 7, 8, 9, 12]);
    await environment.close();
  });

  test("takes nothing of a change that breaks while it is drawn", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    await commit(environment, { rows: [["a", "1"]] });
    function* broken(): Generator<readonly [string, string]> {
      yield ["a", "2"];
      throw new Error("planted");
    }
    expect(() =>
      environment.commit(
        { clear: true, meta: bytes("x"), rows: broken(), entries: [], entriesDeleted: [] },
        () => undefined,
      ),
    ).toThrow("planted");
    expect(() =>
      environment.commit(
        {
          clear: false,
          meta: bytes("x"),
          rows: [["k".repeat(5000), "v"]],
          entries: [],
          entriesDeleted: [],
        },
        () => undefined,
      ),
    ).toThrow("Row key");
    expect(environment.get("a")).toBe("1");
    await commit(environment, { rows: [["b", "2"]] });
    expect(rows(environment.range(everything))).toEqual({ a: "1", b: "2" });
    await environment.close();
  });

  test("is one at a time, and close() refuses meanwhile", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    const first = commit(environment, { rows: [["a", "1"]] });
    let refused = "";
    await commit(environment, { rows: [["b", "1"]] }).catch((error: Error) => {
      refused = error.message;
    });
    expect(refused).toContain("second commit");
    await environment.close().catch((error: Error) => {
      refused = error.message;
    });
    expect(refused).toContain("closed while a commit");
    await first;
    expect(rows(environment.range(everything))).toEqual({ a: "1" });
    await environment.close();
  });

  test("grows the map as it is needed", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    const value = "v".repeat(100_000);
    for (let round = 0; round < 5; round++)
      await commit(environment, {
        rows: Array.from({ length: 40 }, (_, n) => [`${round}/${n}`, value] as const),
      });
    let count = 0;
    for (const [, found] of environment.range(everything)) {
      expect(found.length).toBe(100_000);
      count += 1;
    }
    expect(count).toBe(200);
    await environment.close();
  });
});

describe("range()", () => {
  test("agrees with a sorted list, both ways", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const key = fc.stringMatching(/^[\x20-\x7e]{1,12}$/);
    let number = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(key, { maxLength: 40 }),
        key,
        key,
        fc.boolean(),
        async (keys, gte, lt, reverse) => {
          const environment = environments.open(`t${number++}`);
          await commit(environment, { rows: keys.map((each) => [each, `=${each}`] as const) });
          const expected = keys.filter((each) => each >= gte && each < lt).sort();
          if (reverse) expected.reverse();
          const found = [...environment.range({ gte, lt, reverse })];
          expect(found).toEqual(expected.map((each) => [each, `=${each}`]));
          await environment.close();
        },
      ),
      { numRuns: 60 },
    );
  });

  test("reads page by page, also over commits in between, with many unfinished", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    const keys = Array.from({ length: 1000 }, (_, n) => String(n).padStart(4, "0"));
    await commit(environment, { rows: keys.map((key) => [key, key] as const) });
    expect([...environment.range(everything)].map(([key]) => key)).toEqual(keys);
    expect([...environment.range({ ...everything, reverse: true })].map(([key]) => key)).toEqual(
      keys.toReversed(),
    );
    // More readers than reader slots: none of them holds one between two pages.
    const open = Array.from({ length: 50 }, () => environment.range(everything));
    for (const iterator of open) expect(iterator.next().value?.[0]).toBe("0000");
    await commit(environment, {
      rows: [
        ["0500", undefined],
        ["0500x", "new"],
      ],
    });
    for (const iterator of open) {
      const rest = [...iterator].map(([key]) => key);
      expect(rest.length).toBe(999);
      expect(rest).toContain("0500x");
    }
    await environment.close();
  });
});

describe("environments", () => {
  test("refuse to open beyond the cap, and take one again after a close", async () => {
    const environments = new LmdbEnvironments({ data: temporary(), capMax: 2 });
    expect(environments.cap).toBe(2);
    const a = environments.open("a");
    const b = environments.open("b");
    expect(environments.open_count).toBe(2);
    expect(() => environments.open("c")).toThrow("ulimit -n");
    expect(environments.exists("c")).toBe(false);
    await a.close();
    const c = environments.open("c");
    await Promise.all([b.close(), c.close()]);
    expect(environments.open_count).toBe(0);
  });

  test("compute the cap from the process's limits", () => {
    expect(environmentCap({ descriptors: 20_000, mappings: 65_530 })).toBe(3333);
    expect(environmentCap({ descriptors: 1_000_000, mappings: 65_530 })).toBe(14_334);
    expect(environmentCap({ descriptors: 256, mappings: 65_530 })).toBe(42);
    expect(environmentCap({ descriptors: 0, mappings: 0 })).toBe(1);
  });

  test("remove from the disk, and clean up after a crash in the middle", async () => {
    const data = temporary();
    const environments = new LmdbEnvironments({ data });
    const environment = environments.open("acme");
    await commit(environment, { rows: [["a", "1"]] });
    expect(environments.exists("acme")).toBe(true);
    await environment.close();
    await environments.remove("acme");
    await environments.remove("never-was");
    expect(environments.exists("acme")).toBe(false);
    expect(environments.names()).toEqual([]);
    fs.mkdirSync(join(data, "tenants", ".removing-1-acme"));
    fs.mkdirSync(join(data, "tenants", ".making-b"));
    expect(new LmdbEnvironments({ data }).exists("acme")).toBe(false);
    expect(fs.readdirSync(join(data, "tenants"))).toEqual([]);
  });

  test("refuse names that leave their directory", () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    for (const name of ["", "..", ".x", "a/b", "a\\b", "a\0b", "x".repeat(200)])
      expect(() => environments.open(name)).toThrow("name is not valid");
  });

  test.each(["garbage", "empty", "cut", "zeros"])(
    "say which one does not open, instead of ending the process (%s)",
    async (how) => {
      const data = temporary();
      const environments = new LmdbEnvironments({ data });
      const environment = environments.open("bad");
      await commit(environment, { rows: [["a", "1"]] });
      await environment.close();
      const file = join(data, "tenants", "bad", "data.mdb");
      const whole = fs.readFileSync(file);
      const broken = {
        garbage: Buffer.alloc(whole.length, "no such format"),
        empty: Buffer.alloc(0),
        cut: whole.subarray(0, 3 * 4096),
        zeros: Buffer.alloc(whole.length),
      }[how];
      fs.writeFileSync(file, broken as Uint8Array);
      expect(() => environments.open("bad")).toThrow(join(data, "tenants", "bad"));
      expect(environments.open_count).toBe(0);
    },
  );
});
