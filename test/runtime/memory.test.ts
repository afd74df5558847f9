import { spawn } from "node:child_process";
import path from "node:path";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { GarbageWatch } from "../../src/runtime/memory.ts";

const root = path.resolve(import.meta.dirname, "../..");
const runtimes = { bun: ["run"], deno: ["run", "--quiet", "-A"], node: [] } as const;
/** Without the threshold held it grows by 2 MiB for each of 100 environments; the collector leaves a few MiB. */
const growthKibMax = 80_000;

// Only Linux tells private memory in /proc, and only glibc has the threshold.
describe.skipIf(process.platform !== "linux")("memory of closed environments", () => {
  test.each(Object.entries(runtimes))(
    "goes back to the system on %s",
    async (runtime, args) => {
      const { MALLOC_MMAP_THRESHOLD_: _, ...env } = process.env;
      const child = spawn(
        path.join(root, "node_modules/.bin", runtime),
        [...args, path.join(root, "test/runtime/child.ts")],
        { env, stdio: ["ignore", "pipe", "inherit"] },
      );
      const [first, last] = (await text(child.stdout)).trim().split(" ").map(Number);
      expect(first).toBeGreaterThan(0);
      expect((last as number) - (first as number)).toBeLessThan(growthKibMax);
    },
    60_000,
  );
});

describe("GarbageWatch", () => {
  const MIB = 2 ** 20;
  /** At which of the looks it would collect. */
  const collections = (watch: GarbageWatch, heaps: readonly number[]): number[] =>
    heaps.flatMap((mib, at) => (watch.look(mib * MIB) ? [at] : []));

  test("collects a heap that grew and came to rest, once", () => {
    const watch = new GarbageWatch();
    expect(collections(watch, [30, 30, 60, 90, 100, 100, 100, 100])).toEqual([]);
    expect(watch.look(100 * MIB)).toBe(true);
    watch.collected(32 * MIB);
    expect(
      collections(
        watch,
        Array.from({ length: 20 }, () => 32),
      ),
    ).toEqual([]);
  });

  test("leaves one that goes on growing, that hardly grew, or in which much is in use", () => {
    expect(collections(new GarbageWatch(), [30, 60, 90, 120, 150, 180, 210])).toEqual([]);
    expect(collections(new GarbageWatch(), [30, 40, 40, 40, 40, 40, 40, 40])).toEqual([]);
    expect(collections(new GarbageWatch(), [500, 900, 900, 900, 900, 900, 900])).toEqual([]);
  });

  test("collects at once when somebody knows that much was dropped", () => {
    const watch = new GarbageWatch();
    expect(watch.dropped(30 * MIB)).toBe(false);
    expect(watch.dropped(40 * MIB)).toBe(false);
    expect(watch.dropped(60 * MIB)).toBe(true);
    watch.collected(45 * MIB);
    expect(watch.dropped(55 * MIB)).toBe(false);
  });

  test("does not take long texts for what makes a collection long", () => {
    const watch = new GarbageWatch();
    expect(watch.dropped(300 * MIB, 20 * MIB)).toBe(false);
    expect(watch.dropped(330 * MIB, 22 * MIB)).toBe(true);
    watch.collected(310 * MIB, 200 * MIB);
    expect(watch.dropped(400 * MIB, 210 * MIB)).toBe(false);
  });
});

test("rows that were restored are collected while the restore goes on", async () => {
  // The one thing that no number shows: the collection is there, and takes what was dropped.
  const child = spawn(
    path.join(root, "node_modules/.bin/bun"),
    [
      "-e",
      `import { collectGarbage } from ${JSON.stringify(path.join(root, "src/runtime/memory.ts"))};
       const dropped = await collectGarbage();
       dropped();
       let rows = Array.from({ length: 64 }, (_, at) => JSON.stringify("x".repeat(1_000_000) + at));
       Bun.gc(true);
       const before = process.memoryUsage().heapUsed;
       rows = [];
       await new Promise((resolve) => setTimeout(resolve, 1));
       dropped();
       console.log(before > 60e6, process.memoryUsage().heapUsed < 20e6);`,
    ],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  expect((await text(child.stdout)).trim()).toBe("true true");
});
