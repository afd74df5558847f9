import { spawn } from "node:child_process";
import path from "node:path";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";

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
