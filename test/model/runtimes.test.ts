/** Bun, Deno and Node agree on every hash, bucket and decision. */
import { execFile } from "node:child_process";
import path from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { root, runCommand, runtimes } from "../../infra/bootstrap.mjs";

const run = promisify(execFile);

test("the same inputs give the same digests on every runtime", async () => {
  const printed = await Promise.all(
    runtimes.map(async (runtime) => {
      const file = path.join(root, "test/model/vectors.ts");
      const { command, args } = runCommand(runtime, file);
      const { stdout } = await run(command, args, { cwd: root });
      return JSON.parse(stdout) as Record<string, string>;
    }),
  );
  const [first, ...others] = printed;
  expect(Object.keys(first ?? {}).length).toBe(10);
  for (const other of others) expect(other).toEqual(first);
}, 60_000);
