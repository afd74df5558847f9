/** The SDK as strangers get it: built, packed, installed, and bundled for a browser. */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { doors, packSdk } from "../../infra/sdk_package.mjs";

const root = path.resolve(import.meta.dirname, "../..");
const modules = path.resolve(
  path.dirname(createRequire(import.meta.url).resolve("vitest/package.json")),
  "..",
);
const bin = (name: string): string => path.join(modules, ".bin", name);
const clientBytesMax = 12 * 1024;

let project: string;

function run(command: string, args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: project, encoding: "utf8" });
  expect([stderr, status === 0 ? "" : stdout]).toEqual(["", ""]);
  return stdout;
}

beforeAll(() => {
  project = mkdtempSync(path.join(tmpdir(), "conflux-package-"));
  const built = spawnSync(
    bin("tsc"),
    ["-p", path.join(root, "tsconfig.build.json"), "--outDir", path.join(project, "dist")],
    { encoding: "utf8" },
  );
  expect([built.stdout, built.status]).toEqual(["", 0]);
  const packed = packSdk(root, path.join(project, "dist"));
  mkdirSync(path.join(project, "node_modules", "@sinclair"), { recursive: true });
  cpSync(packed, path.join(project, "node_modules", "conflux-sdk"), { recursive: true });
  for (const name of ["react", "@sinclair/typebox", "@types"])
    symlinkSync(path.join(modules, name), path.join(project, "node_modules", name));
  writeFileSync(path.join(project, "package.json"), '{"type":"module"}');
}, 60_000);

afterAll(() => {
  rmSync(project, { recursive: true });
});

describe("the package", () => {
  test("has every door open on Node, Deno and Bun, and needs nothing but React for its hooks", () => {
    const names = Object.keys(doors).map((door) => `conflux-sdk${door.slice(1)}`);
    writeFileSync(
      path.join(project, "doors.js"),
      `${names.map((name, i) => `import * as door${i} from ${JSON.stringify(name)};`).join("\n")}
console.log([${names.map((_, i) => `Object.keys(door${i}).length > 0`).join(", ")}].every(Boolean));`,
    );
    expect(run(process.execPath, ["doors.js"]).trim()).toBe("true");
    expect(run(bin("bun"), ["doors.js"]).trim()).toBe("true");
    const deno = ["run", "--quiet", "--no-prompt", "--allow-read", "--allow-env", "doors.js"];
    expect(run(bin("deno"), deno).trim()).toBe("true");
  }, 60_000);

  test("has types that a strict program compiles with", () => {
    writeFileSync(
      path.join(project, "program.ts"),
      `import { Conflux } from "conflux-sdk";
import { ConfluxServer } from "conflux-sdk/server";
import { TestConflux } from "conflux-sdk/testing";
import { Admin } from "conflux-sdk/admin";
import { fileCache } from "conflux-sdk/file";
import { useConfig } from "conflux-sdk/react";
interface Configs { limits: { max: number } }
const client: Conflux<Configs> = new TestConflux<Configs>({ limits: { max: 1 } });
export const max: number | undefined = client.get("limits")?.max;
// @ts-expect-error: the types know which configs there are
client.get("limit");
export const loose: number = new Conflux({ url: "http://x", tenant: "t", cache: fileCache("x") }).get("any", 1);
export const hook: (name: string, fallback: number) => number = useConfig;
export { Admin, ConfluxServer };
`,
    );
    const options = [
      "--noEmit",
      "--strict",
      "--target",
      "es2023",
      "--module",
      "nodenext",
      "--types",
      "node",
    ];
    run(bin("tsc"), [...options, "program.ts"]);
  }, 60_000);

  test("costs a browser at most 12 KiB, and what is not used costs nothing", () => {
    const size = (source: string): number => {
      writeFileSync(path.join(project, "page.js"), source);
      run(bin("bun"), [
        "build",
        "--minify",
        "--target",
        "browser",
        "--outfile",
        "out.js",
        "page.js",
      ]);
      return gzipSync(readFileSync(path.join(project, "out.js")), { level: 9 }).length;
    };
    const whole = size('export * from "conflux-sdk";');
    expect(whole).toBeLessThanOrEqual(clientBytesMax);
    expect(size('export { differences } from "conflux-sdk";')).toBeLessThan(1_024);
  }, 60_000);
});
