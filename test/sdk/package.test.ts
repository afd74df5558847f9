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
import { createContext, runInContext } from "node:vm";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { doors, packSdk } from "../../infra/sdk_package.mjs";
import { serve } from "../../src/runtime/serve.ts";
import type * as Sdk from "../../src/sdk/mod.ts";
import { Harness } from "../gateway/harness.ts";

const root = path.resolve(import.meta.dirname, "../..");
const modules = path.resolve(
  path.dirname(createRequire(import.meta.url).resolve("vitest/package.json")),
  "..",
);
const bin = (name: string): string => path.join(modules, ".bin", name);
/** Of the Minimum Common Web API (WinterTC), what edge workers have, too; the language's own come by themselves. */
const workerGlobals = [
  "AbortController",
  "AbortSignal",
  "Headers",
  "ReadableStream",
  "Request",
  "Response",
  "TextDecoder",
  "TextEncoder",
  "URL",
  "URLSearchParams",
  "clearTimeout",
  "console",
  "crypto",
  "fetch",
  "performance",
  "queueMicrotask",
  "setTimeout",
  "structuredClone",
] as const;
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
    const options = ["--noEmit", "--strict", "--target", "es2023", "--types", "node"];
    for (const [module, resolution] of [
      ["nodenext", "nodenext"],
      ["node16", "node16"],
      ["esnext", "bundler"],
    ] as const) {
      const how = ["--module", module, "--moduleResolution", resolution];
      run(bin("tsc"), [...options, ...how, "program.ts"]);
    }
  }, 60_000);

  test("is packed with a README of its own, whose doors are those of the package", () => {
    const packed = path.join(project, "node_modules", "conflux-sdk");
    const [{ files }] = JSON.parse(
      run("npm", ["pack", "--dry-run", "--json", "--loglevel=silent", packed]),
    ) as [{ files: { path: string }[] }];
    const names = files.map((file) => file.path);
    expect(names).toEqual(expect.arrayContaining(["README.md", "LICENSE", "package.json"]));
    const readme = readFileSync(path.join(packed, "README.md"), "utf8");
    const shown = [...readme.matchAll(/^\| `conflux-sdk(\/\w+)?` \|/gm)].map(
      ([, door]) => `.${door ?? ""}`,
    );
    expect(shown.toSorted()).toEqual(Object.keys(doors).toSorted());
    expect(readme).not.toContain("npm run build");
  }, 60_000);

  test("needs only what workers have: no Node, no window", async () => {
    writeFileSync(path.join(project, "worker.js"), 'export * from "conflux-sdk";');
    run(bin("bun"), [
      "build",
      "--target",
      "browser",
      "--format",
      "cjs",
      "--outfile",
      "worker.cjs",
      "worker.js",
    ]);
    const harness = new Harness();
    const server = await serve((request, info) => harness.gateway().fetch(request, info), {
      host: "127.0.0.1",
      port: 0,
    });
    try {
      await harness.tenant("shop");
      const limits = "/v1/tenants/shop/namespaces/prod/configs/limits";
      await harness.call("PUT", limits, { body: { content: { max: 100 } } });
      const { token } = await harness.key("shop", "client");
      const module = { exports: {} as typeof Sdk };
      const web = Object.fromEntries(workerGlobals.map((name) => [name, globalThis[name]]));
      const context = createContext({ ...web, module, exports: module.exports });
      runInContext(readFileSync(path.join(project, "worker.cjs"), "utf8"), context);
      const client = new module.exports.Conflux<{ limits: { max: number } }>({
        url: server.url,
        token,
        tenant: "shop",
        namespace: "prod",
      });
      expect(await client.ready({ timeoutMs: 10_000 })).toBe("live");
      expect(client.get("limits")).toEqual({ max: 100 });
      const changed = new Promise((resolve) => client.onChange(resolve));
      await harness.call("POST", `${limits}/publish`, { body: { content: { max: 200 } } });
      await changed;
      expect(client.get("limits")).toEqual({ max: 200 });
      await client.close();
    } finally {
      harness.close();
      await server.stop(0);
    }
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
