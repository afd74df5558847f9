import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { open } from "lmdb";
import { afterAll, describe, expect, test } from "vitest";
import type { EnvironmentChange, Staging } from "../../src/host/ports.ts";
import { compactTenant } from "../../src/store/compact.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import type { LmdbEnvironment } from "../../src/store/environments.ts";
import { environmentCap } from "../../src/store/limits.ts";
import { DirectoryInUseError, lockDirectory } from "../../src/store/lock.ts";

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
      { meta: bytes("m"), rows: [], entries: [], entriesDeleted: [], ...change },
      (error) => (error === null ? resolve() : reject(error)),
    );
  });
}

function rows(entries: Iterable<readonly [string, string]>): Record<string, string> {
  return Object.fromEntries(entries);
}

const everything = { gte: " ", lt: "\x7f" };

/** The environment of acme as LMDB sees it. */
function rawMeta(data: string) {
  const root = open({
    path: join(data, "tenants", "acme", "data.mdb"),
    noSubdir: true,
    maxDbs: 4,
  });
  const meta = root.openDB<Uint8Array, Uint8Array>("meta", {
    encoding: "binary",
    keyEncoding: "binary",
  });
  return { root, meta };
}

function kept(environment: LmdbEnvironment): Promise<Error | null> {
  return new Promise((resolve) => {
    environment.whenKept(resolve);
  });
}

describe("whenKept()", () => {
  test("calls back when the name is synced: once for all that are made together, and at once for one that was there", async () => {
    let [begun, ended] = [0, 0];
    const begin = (): (() => void) => {
      begun += 1;
      return () => void (ended += 1);
    };
    const data = temporary();
    const environments = new LmdbEnvironments({ data, begin });
    const made = Array.from({ length: 20 }, (_, at) => environments.open(`t${at}`));
    let early = 0;
    const all = made.map((environment) => {
      const done = kept(environment).then((error) => {
        expect(error).toBe(null);
        expect(ended).toBeGreaterThan(0);
      });
      early += ended;
      return done;
    });
    expect(early).toBe(0);
    await Promise.all(all);
    expect([begun, ended]).toEqual([1, 1]);
    // Those that come while a sync is under way need another one.
    const first = environments.open("u1");
    await Promise.resolve();
    const second = [environments.open("u2"), environments.open("u3")];
    expect(await Promise.all([first, ...second].map(kept))).toEqual([null, null, null]);
    expect([begun, ended]).toEqual([3, 3]);
    const again = new LmdbEnvironments({ data, begin }).open("t0");
    let isKept = false;
    again.whenKept(() => (isKept = true));
    expect(isKept).toBe(true);
    expect(begun).toBe(3);
  });

  test("tells where it failed, and so does a commit", async () => {
    const data = temporary();
    const environments = new LmdbEnvironments({ data });
    const environment = environments.open("acme");
    fs.renameSync(join(data, "tenants"), join(data, "elsewhere"));
    expect((await kept(environment))?.message).toContain("ENOENT");
    fs.renameSync(join(data, "elsewhere"), join(data, "tenants"));
    await expect(commit(environment, {})).rejects.toThrow("ENOENT");
    expect((await kept(environment))?.message).toContain("ENOENT");
    await environment.close();
  });
});

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
        { meta: bytes("x"), rows: broken(), entries: [], entriesDeleted: [] },
        () => undefined,
      ),
    ).toThrow("planted");
    expect(() =>
      environment.commit(
        {
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

  test("of many rows lets others have their turn, and shows nothing of one that breaks", async () => {
    const environments = new LmdbEnvironments({ data: temporary(), rowsPerTurn: 10 });
    let environment = environments.open("acme");
    const many = Array.from(
      { length: 1_000 },
      (_, n) => [`k${1_000 + n}`, `"ä\\t\\n${n}"`] as const,
    );
    let drawnPerTurn = 0;
    let turns = 0;
    function* counted(): Generator<readonly [string, string | undefined]> {
      for (const row of many) {
        if (drawnPerTurn++ === 0) setImmediate(() => ((turns += 1), (drawnPerTurn = 0)));
        expect(drawnPerTurn).toBeLessThanOrEqual(20);
        yield row;
      }
    }
    await commit(environment, { meta: bytes("all"), rows: counted(), entries: [[1, bytes("e")]] });
    expect(turns).toBeGreaterThan(40);
    expect(rows(environment.range(everything))).toEqual(Object.fromEntries(many));
    const half = many.map(([key], n) => [key, n % 2 === 0 ? undefined : "new"] as const);
    await commit(environment, { rows: half });
    function* broken(): Generator<readonly [string, string]> {
      for (const [key] of many) yield [key, "never"];
      throw new Error("planted");
    }
    await expect(commit(environment, { meta: bytes("x"), rows: broken() })).rejects.toThrow("LMDB");
    await environment.close();
    environment = environments.open("acme");
    const left = many.filter((_, n) => n % 2 === 1).map(([key]) => [key, "new"]);
    expect(rows(environment.range(everything))).toEqual(Object.fromEntries(left));
    expect(new TextDecoder().decode(environment.meta() as Uint8Array)).toBe("m");
    await environment.close();
  });

  test("of many rows is watched one transaction at a time: all of them may take long on a slow disk", async () => {
    let under = 0;
    let underMost = 0;
    let ended = 0;
    const begin = (): (() => void) => {
      under += 1;
      underMost = Math.max(underMost, under);
      return () => ((under -= 1), (ended += 1));
    };
    const environments = new LmdbEnvironments({ data: temporary(), rowsPerTurn: 10, begin });
    const environment = environments.open("acme");
    // Of its name, which goes on beside the rest.
    expect(await kept(environment)).toBe(null);
    [underMost, ended] = [0, 0];
    await commit(environment, { rows: [["a", "1"]] });
    // The file was made for it.
    expect(ended).toBe(2);
    const many = Array.from({ length: 45 }, (_, n) => [`k${n}`, "1"] as const);
    await commit(environment, { rows: many });
    // Five times ten rows, and the text before and after.
    expect([ended, underMost, under]).toEqual([2 + 7, 1, 0]);
    await environment.close();
  });

  test("of many rows whose text is damaged opens nothing", async () => {
    const data = temporary();
    const environments = new LmdbEnvironments({ data });
    await environments.open("acme").close();
    const { root, meta } = rawMeta(data);
    await meta.put(Uint8Array.of(4, 0, 0), bytes("a\t1\nb\t"));
    await root.close();
    for (let time = 0; time < 2; time++) {
      expect(() => environments.open("acme")).toThrow("Cannot open environment");
      expect(environments.open_count).toBe(0);
    }
  });

  test("of many rows that a crash cut short is ended by the next opening", async () => {
    const data = temporary();
    const environments = new LmdbEnvironments({ data });
    let environment = environments.open("acme");
    await commit(environment, {
      rows: [
        ["a", "1"],
        ["b", "1"],
        ["c", "1"],
      ],
    });
    await environment.close();
    // What stands there between the first transaction of such a commit and its last.
    const { root, meta } = rawMeta(data);
    await meta.put(Uint8Array.of(4, 0, 0), bytes('a\t"\\tä"\nb\n'));
    await meta.put(Uint8Array.of(4, 0, 1), bytes("d\t4\n"));
    await root.close();
    for (let life = 0; life < 2; life++) {
      environment = environments.open("acme");
      expect(rows(environment.range(everything))).toEqual({ a: '"\\tä"', c: "1", d: "4" });
      await commit(environment, { rows: [["e", life === 0 ? "5" : undefined]] });
      await commit(environment, { rows: [["e", undefined]] });
      await environment.close();
    }
    const again = open({
      path: join(data, "tenants", "acme", "data.mdb"),
      noSubdir: true,
      maxDbs: 4,
    });
    const keys = again
      .openDB<Uint8Array, Uint8Array>("meta", { encoding: "binary", keyEncoding: "binary" })
      .getKeys();
    expect([...keys].map((key) => key[0])).toEqual([1]);
    await again.close();
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
  test("are more than may be open: those that are not used are closed for others, and open again by themselves", async () => {
    const data = temporary();
    const environments = new LmdbEnvironments({ data, capMax: 3 });
    const held = Array.from({ length: 10 }, (_, n) => environments.open(`t${n}`));
    const atMostThree = (): void => {
      expect(environments.open_count).toBeLessThanOrEqual(3);
      if (!fs.existsSync("/proc/self/fd")) return;
      const files = fs.readdirSync("/proc/self/fd").map((descriptor) => {
        try {
          return fs.readlinkSync(`/proc/self/fd/${descriptor}`);
        } catch {
          return "";
        }
      });
      // A data file twice, for pages and for roots, and its lock.
      expect(files.filter((file) => file.startsWith(data)).length).toBeLessThanOrEqual(9);
    };
    for (let round = 0; round < 3; round++) {
      for (const [n, environment] of held.entries()) {
        await commit(environment, {
          meta: bytes(`${round}`),
          rows: [[`r${round}`, `${n}`]],
          entries: [[round + 1, bytes(`${n}`)]],
        });
        atMostThree();
      }
    }
    for (const [n, environment] of held.entries()) {
      expect([...environment.range(everything)].map(([, value]) => value)).toEqual([
        `${n}`,
        `${n}`,
        `${n}`,
      ]);
      expect(environment.get("r1")).toBe(`${n}`);
      expect(environment.meta()).toEqual(bytes("2"));
      expect(environment.entry(3)).toEqual(bytes(`${n}`));
      atMostThree();
    }
    for (const environment of held) await environment.close();
    expect(environments.open_count).toBe(0);
  });

  test("are kept open as many as are soon used again, and few where the cap would not do either", async () => {
    const environments = new LmdbEnvironments({ data: temporary(), capMax: 24, openFew: 4 });
    const hold = async (count: number): Promise<LmdbEnvironment[]> => {
      const held = Array.from({ length: count }, (_, n) => environments.open(`t${n}`));
      for (const environment of held)
        await commit(environment, { meta: bytes("m"), rows: [["r", "1"]] });
      return held;
    };
    const held = await hold(60);
    for (let round = 0; round < 3; round++) for (const each of held) each.get("r");
    expect(environments.open_count).toBeLessThanOrEqual(5);
    for (let round = 0; round < 6; round++) for (const each of held.slice(0, 12)) each.get("r");
    expect(held.slice(0, 12).every(({ isOpen }) => isOpen)).toBe(true);
    for (const each of held.splice(0)) await each.close();
    expect(environments.open_count).toBe(0);
  });

  test("are read without LMDB where a few values are wanted, and by it from then on that more are, or something is written", async () => {
    const data = temporary();
    const environments = new LmdbEnvironments({ data, capMax: 4 });
    const lock = join(data, "tenants", "acme", "data.mdb-lock");
    const isLmdbs = (): boolean => fs.existsSync(lock);
    let environment = environments.open("acme");
    await commit(environment, {
      meta: bytes("one"),
      rows: Array.from({ length: 200 }, (_, at) => [`r${at}`, `ä${at}`.repeat(50)] as const),
      entries: [[7, bytes("seven")]],
    });
    const anew = async (): Promise<void> => {
      await environment.close();
      fs.rmSync(lock, { force: true });
      environment = environments.open("acme");
    };
    await anew();
    expect(environment.meta()).toEqual(Uint8Array.from(bytes("one")));
    expect(environment.get("r150")).toBe("ä150".repeat(50));
    expect([environment.get("r200"), environment.entry(8)]).toEqual([undefined, undefined]);
    expect(environment.entry(7)).toEqual(Uint8Array.from(bytes("seven")));
    expect([isLmdbs(), environment.isOpen, environments.open_count]).toEqual([false, true, 1]);
    for (let at = 0; at < 200; at++) expect(environment.get(`r${at}`)).toBe(`ä${at}`.repeat(50));
    expect([isLmdbs(), environments.open_count]).toEqual([true, 1]);
    await anew();
    expect([environment.get("r1"), isLmdbs()]).toEqual(["ä1".repeat(50), false]);
    await commit(environment, { meta: bytes("two"), rows: [["r1", "new"]] });
    expect([isLmdbs(), environments.open_count]).toEqual([true, 1]);
    expect(environment.get("r1")).toBe("new");
    await anew();
    expect([...environment.range({ gte: "r1", lt: "r10" })]).toEqual([["r1", "new"]]);
    expect(isLmdbs()).toBe(true);
    await anew();
    expect(environment.get("r1")).toBe("new");
    expect(environment.meta()).toEqual(Uint8Array.from(bytes("two")));
    // Of those that are read so no more are open than of others.
    const others = Array.from({ length: 9 }, (_, at) => environments.open(`t${at}`));
    for (const other of others) await commit(other, { rows: [["k", "v"]] });
    for (const other of others) other.rest();
    for (const other of others) expect(other.get("k")).toBe("v");
    expect(environments.open_count).toBeLessThanOrEqual(4);
    for (const each of [environment, ...others]) await each.close();
    expect(environments.open_count).toBe(0);
  });

  test("stay open beyond the cap while something is under way in them, and no longer", async () => {
    const environments = new LmdbEnvironments({ data: temporary(), capMax: 2 });
    const [a, b, c, d] = ["a", "b", "c", "d"].map((name) => environments.open(name)) as [
      LmdbEnvironment,
      LmdbEnvironment,
      LmdbEnvironment,
      LmdbEnvironment,
    ];
    for (const [name, environment] of Object.entries({ a, c, d }))
      await commit(environment, { rows: [["k", name]] });
    const snapshot = a.snapshot();
    const staging = b.stage();
    const committing = commit(c, { rows: [["l", "c"]] });
    expect(d.get("k")).toBe("d");
    expect(environments.open_count).toBe(4);
    await committing;
    // What was begun in them is still there.
    expect([...snapshot.range(everything)]).toEqual([["k", "a"]]);
    await new Promise<void>((resolve) => staging.add([["k", "b"]], () => resolve()));
    await new Promise<void>((resolve) => b.install(staging, bytes("new"), () => resolve()));
    snapshot.close();
    expect([a, b, c, d].map((environment) => environment.get("k"))).toEqual(["a", "b", "c", "d"]);
    // Only now is there something else that needs room.
    a.get("k");
    await commit(environments.open("e"), { rows: [["k", "e"]] });
    expect(environments.open_count).toBe(2);
    for (const environment of [a, b, c, d]) await environment.close();
  });

  test("are refused when too many are busy at once, before descriptors run out", async () => {
    const environments = new LmdbEnvironments({ data: temporary(), capMax: 1 });
    const busy = Array.from({ length: 17 }, (_, n) => {
      const environment = environments.open(`t${n}`);
      environment.snapshot();
      return environment;
    });
    const more = environments.open("more");
    expect(() => more.snapshot()).toThrow(expect.objectContaining({ code: "overloaded" }));
    await busy[0]?.close();
    more.snapshot();
    for (const environment of [...busy, more]) await environment.close();
  });

  test("have a data file from their first commit on, whatever is done with them before", async () => {
    const data = temporary();
    const environments = new LmdbEnvironments({ data });
    const file = (name: string): boolean => fs.existsSync(join(data, "tenants", name, "data.mdb"));
    let environment = environments.open("acme");
    expect(environment.meta()).toBeNull();
    expect([environment.get("k"), environment.entry(1)]).toEqual([undefined, undefined]);
    expect([...environment.range(everything)]).toEqual([]);
    expect([environments.exists("acme"), environments.names()]).toEqual([true, ["acme"]]);
    await environment.close();
    expect([file("acme"), environments.open_count]).toEqual([false, 0]);
    // As empty in the next life, also after a crash in the middle of making it.
    fs.mkdirSync(join(data, "tenants", ".making-7-acme"));
    const again = new LmdbEnvironments({ data });
    environment = again.open("acme");
    const range = environment.range(everything);
    const committing = commit(environment, { rows: [["k", "v"]] });
    // Somebody asks for a snapshot while its file is being made.
    const snapshot = environment.snapshot();
    expect([...snapshot.range(everything)]).toEqual([]);
    await committing;
    expect([...range]).toEqual([["k", "v"]]);
    await environment.close();
    expect(fs.readdirSync(join(data, "tenants"))).toEqual(["acme"]);
    expect([file("acme"), again.open("acme").get("k")]).toEqual([true, "v"]);
    // One that nothing was committed to is compacted and removed like any other.
    await again.open("other").close();
    expect(await again.compact("other")).toEqual({ before: 0, after: 0 });
    await again.remove("other");
    expect(again.names()).toEqual(["acme"]);
  });

  test("lose what was half staged when they are opened anew", async () => {
    const environments = new LmdbEnvironments({ data: temporary(), capMax: 1 });
    const a = environments.open("a");
    await commit(a, { rows: [["k", "old"]] });
    const staging = a.stage();
    await new Promise<void>((resolve) => staging.add([["k", "new"]], () => resolve()));
    staging.discard();
    await commit(a, { rows: [["l", "1"]] });
    const b = environments.open("b");
    expect(environments.open_count).toBe(1);
    expect([...a.range(everything)]).toEqual([
      ["k", "old"],
      ["l", "1"],
    ]);
    await Promise.all([a.close(), b.close()]);
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

describe("install()", () => {
  function add(staging: Staging, ...staged: (readonly [string, string])[]): Promise<void> {
    return new Promise((resolve, reject) => {
      staging.add(staged, (error) => (error === null ? resolve() : reject(error)));
    });
  }

  function install(environment: LmdbEnvironment, staging: Staging, meta: string): Promise<void> {
    return new Promise((resolve, reject) => {
      environment.install(staging, bytes(meta), (error) =>
        error === null ? resolve() : reject(error),
      );
    });
  }

  test("replaces rows and log by what was staged, again and again, and over restarts", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    let environment = environments.open("acme");
    for (let round = 1; round <= 3; round++) {
      await commit(environment, {
        meta: bytes("before"),
        rows: [
          ["old", "1"],
          ["both", "1"],
        ],
        entries: [[round, bytes("1")]],
      });
      const staging = environment.stage();
      await add(staging, ["both", `${round}`]);
      // Commits go on meanwhile, and see nothing of it.
      await commit(environment, { meta: bytes("meanwhile"), rows: [["more", "1"]] });
      expect(rows(environment.range(everything))).toEqual({
        ...(round > 1 && { new: `${round - 1}` }),
        old: "1",
        both: "1",
        more: "1",
      });
      await add(staging, ["new", `${round}`]);
      await install(environment, staging, `installed ${round}`);
      const state = { both: `${round}`, new: `${round}` };
      expect(rows(environment.range(everything))).toEqual(state);
      expect(environment.get("new")).toBe(`${round}`);
      expect(environment.entry(round)).toBe(undefined);
      await environment.close();
      environment = environments.open("acme");
      expect(rows(environment.range(everything))).toEqual(state);
      expect(new TextDecoder().decode(environment.meta() ?? undefined)).toBe(`installed ${round}`);
    }
    await environment.close();
  });

  test("takes nothing of what an earlier life, or an earlier staging, left half done", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    let environment = environments.open("acme");
    await commit(environment, { rows: [["a", "1"]] });
    await add(environment.stage(), ["half", "1"]);
    await environment.close();
    environment = environments.open("acme");
    expect(rows(environment.range(everything))).toEqual({ a: "1" });
    await add(environment.stage(), ["superseded", "1"]);
    const dropped = environment.stage();
    await add(dropped, ["dropped", "1"]);
    dropped.discard();
    const staging = environment.stage();
    await add(staging, ["b", "2"]);
    await install(environment, staging, "installed");
    expect(rows(environment.range(everything))).toEqual({ b: "2" });
    await environment.close();
  });
});

describe("snapshot()", () => {
  test("shows the rows of its moment, whatever is committed and installed while it is read", async () => {
    const environments = new LmdbEnvironments({ data: temporary() });
    const environment = environments.open("acme");
    const many = Array.from({ length: 1_000 }, (_, n) => [`k${1_000 + n}`, `first ${n}`] as const);
    await commit(environment, { rows: many });
    const snapshot = environment.snapshot();
    const reading = snapshot.range(everything)[Symbol.iterator]();
    const seen = [reading.next().value];
    await commit(environment, { rows: many.map(([key]) => [key, "second"] as const) });
    const staging = environment.stage();
    await new Promise<void>((resolve) => {
      staging.add([["k0", "third"]], () => resolve());
    });
    await new Promise<void>((resolve) => {
      environment.install(staging, bytes("m"), () => resolve());
    });
    for (let next = reading.next(); next.done !== true; next = reading.next())
      seen.push(next.value);
    expect(seen).toEqual(many);
    expect([...snapshot.range({ ...everything, reverse: true })]).toEqual(many.toReversed());
    expect(rows(environment.range(everything))).toEqual({ k0: "third" });
    snapshot.close();
    expect(() => [...snapshot.range(everything)]).toThrow("closed");
    const left = environment.snapshot();
    await environment.close();
    expect(() => [...left.range(everything)]).toThrow("closed");
  });
});

describe("an environment that is closed", () => {
  // Skipped where the system does not tell what a process holds.
  test.skipIf(!fs.existsSync("/proc/self/fd"))(
    "gives back its descriptors: hundreds of cycles hold none",
    async () => {
      const data = temporary();
      const environments = new LmdbEnvironments({ data });
      const names = Array.from({ length: 20 }, (_, n) => `t${n}`);
      const cycle = async (count: number): Promise<number> => {
        for (let n = 0; n < count; n++) {
          const environment = environments.open(names[n % names.length] as string);
          environment.get("meta");
          await environment.close();
        }
        // Of these environments only: runners and other tests open and close others meanwhile.
        return fs.readdirSync("/proc/self/fd").filter((descriptor) => {
          try {
            return fs.readlinkSync(`/proc/self/fd/${descriptor}`).startsWith(data);
          } catch {
            return false;
          }
        }).length;
      };
      expect(await cycle(40)).toBe(0);
      expect(await cycle(120)).toBe(0);
      expect(environments.open_count).toBe(0);
    },
  );
});

describe("compact()", () => {
  test("gives free pages back to the disk, and keeps rows, log and meta as they are", async () => {
    const data = temporary();
    fs.writeFileSync(join(data, "conflux.json"), "{}");
    const environments = new LmdbEnvironments({ data });
    const name = "acme.7.1";
    const environment = environments.open(name);
    const large = "x".repeat(10_000);
    const keys = Array.from({ length: 400 }, (_, n) => `k${String(n).padStart(3, "0")}`);
    const kept = keys.slice(0, 20);
    await commit(environment, {
      rows: keys.map((key) => [key, large] as const),
      entries: [[5, bytes("five")]],
    });
    await commit(environment, {
      meta: bytes("last"),
      rows: keys.slice(20).map((key) => [key, undefined] as const),
    });
    await environment.close();
    const file = join(data, "tenants", name, "data.mdb");
    const before = fs.statSync(file).size;
    const [compacted] = await compactTenant(data, "acme");
    expect(compacted).toEqual({
      environment: name,
      bytesBefore: before,
      bytesAfter: fs.statSync(file).size,
    });
    expect(fs.statSync(file).size * 5).toBeLessThan(before);
    expect(fs.readdirSync(join(data, "tenants"))).toEqual([name]);
    // What a crash left of an earlier attempt is in nobody's way, and twice is once.
    fs.mkdirSync(join(data, "tenants", `.making-${name}`));
    await compactTenant(data, "acme");
    const again = new LmdbEnvironments({ data }).open(name);
    expect(rows(again.range(everything))).toEqual(
      Object.fromEntries(kept.map((key) => [key, large])),
    );
    expect(again.entry(5)).toEqual(Uint8Array.from(bytes("five")));
    expect(new TextDecoder().decode(again.meta() as Uint8Array)).toBe("last");
    await commit(again, { rows: [["new", "1"]] });
    expect(again.get("new")).toBe("1");
    await again.close();
  });

  test("keeps off a directory that is in use, is none, or has nothing of the tenant", async () => {
    const data = temporary();
    await expect(compactTenant(data, "acme")).rejects.toThrow("no data directory");
    fs.writeFileSync(join(data, "conflux.json"), "{}");
    await expect(compactTenant(data, "acme")).rejects.toThrow("nothing of it");
    const lock = await lockDirectory(data);
    await expect(compactTenant(data, "acme")).rejects.toThrow(DirectoryInUseError);
    lock.release();
  });
});
