import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { runtimeEnv } from "../../infra/bootstrap.mjs";
import { runtimeVariables } from "../../src/runtime/environment.ts";

const root = path.resolve(import.meta.dirname, "../..");
const runtimes = { bun: ["run"], deno: ["run", "--quiet", "-A"], node: [] } as const;
const names = Object.values(runtimeVariables).flatMap((variables) => Object.keys(variables));

/** What a process says that completes its environment, each time it begins, and its id as its parent knows it. */
async function begun(runtime: keyof typeof runtimes, given: Record<string, string>) {
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !names.includes(name)),
  );
  const child = spawn(
    path.join(root, "node_modules/.bin", runtime),
    [...runtimes[runtime], path.join(root, "test/runtime/environment/child.ts"), "a word"],
    { env: { ...env, ...given }, stdio: ["pipe", "pipe", "inherit"] },
  );
  child.stdin.end("said");
  const lines = (await text(child.stdout)).trim().split("\n");
  return { pid: child.pid, said: lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

test("launchers say what a node would have to begin again for", () => {
  const all = Object.assign({}, ...Object.values(runtimeVariables)) as Record<string, string>;
  expect(runtimeEnv).toEqual(all);
  const image = readFileSync(path.join(root, "infra/Dockerfile"), "utf8");
  for (const [name, value] of Object.entries(runtimeVariables.bun))
    expect(image).toContain(`${name}=${value}`);
});

// Elsewhere a node goes on as it is.
describe.skipIf(process.platform !== "linux")("a process that was told nothing", () => {
  for (const runtime of ["bun", "node"] as const)
    test(`begins again, once, as the same process on ${runtime}`, async () => {
      const { pid, said } = await begun(runtime, {});
      const [first, last] = said as [Record<string, unknown>, Record<string, unknown>];
      expect(said.map((one) => one["pid"])).toEqual([pid, pid, pid]);
      expect(first["variables"]).toEqual({});
      expect(last["variables"]).toEqual(runtimeVariables[runtime]);
      expect(last["words"]).toEqual(["a word"]);
      expect(said[2]).toEqual({ pid, input: "said" });
    });
});

test.each(Object.keys(runtimes) as (keyof typeof runtimes)[])(
  "what the operator set wins, and where all is said nothing begins again: %s",
  async (runtime) => {
    const own = Object.fromEntries(
      Object.keys(runtimeVariables[runtime]).map((name) => [name, "300000"]),
    );
    const { said } = await begun(runtime, own);
    expect(said).toHaveLength(2);
    expect(said[0]).toMatchObject({ variables: own });
  },
);
