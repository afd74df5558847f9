/** The README's programs, run as they stand there against a real gateway. */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { describe, expect, onTestFinished, test } from "vitest";
import { doors } from "../../infra/sdk_package.mjs";
import { serve } from "../../src/runtime/serve.ts";
import { Harness } from "../gateway/harness.ts";

const root = path.resolve(import.meta.dirname, "../..");
const modules = path.resolve(
  path.dirname(createRequire(import.meta.url).resolve("vitest/package.json")),
  "..",
);
const N = "/v1/tenants/shop/namespaces/prod";
const timeoutMs = 60_000;

/** The block of this name, its imports of the package leading to the sources. */
function program(name: string): string {
  const readme = readFileSync(path.join(root, "README.md"), "utf8");
  const block = new RegExp(`\`\`\`tsx? ${name}\\n([\\s\\S]*?)\`\`\``).exec(readme)?.[1];
  if (block === undefined) throw new Error(`The README has no program ${name}`);
  return block.replaceAll(/"conflux-sdk([^"]*)"/g, (_, door: string) => {
    const module = (doors as Record<string, string>)[`.${door}`];
    if (module === undefined) throw new Error(`The package has no door ${door}`);
    return JSON.stringify(pathToFileURL(path.join(root, "src/sdk", `${module}.ts`)).href);
  });
}

async function start(kind: "read" | "client") {
  const harness = new Harness();
  onTestFinished(() => harness.close());
  const server = await serve((request, info) => harness.gateway().fetch(request, info), {
    host: "127.0.0.1",
    port: 0,
  });
  onTestFinished(() => server.stop(0));
  await harness.tenant("shop");
  for (const [name, content] of [
    ["limits", { max: 100 }],
    ["banner", { text: "Hello" }],
  ] as const)
    await harness.call("PUT", `${N}/configs/${name}`, { body: { content } });
  const { token } = await harness.key("shop", kind);
  const publish = (name: string, content: unknown) =>
    harness.call("POST", `${N}/configs/${name}/publish`, { body: { content } });
  return { harness, url: server.url, token, publish };
}

/** Runs files in a folder of their own; gives their lines one by one. */
function run(
  runtime: string,
  files: Readonly<Record<string, string>>,
  main: string,
  env: Readonly<Record<string, string>>,
) {
  const folder = mkdtempSync(path.join(tmpdir(), "conflux-readme-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  symlinkSync(modules, path.join(folder, "node_modules"));
  writeFileSync(path.join(folder, "package.json"), '{"type":"module"}');
  for (const [name, text] of Object.entries(files)) writeFileSync(path.join(folder, name), text);
  const child = spawn(path.join(modules, ".bin", runtime), [main], {
    cwd: folder,
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return async (): Promise<string> => {
    const line = await lines.next();
    return line.done === true ? "(ended)" : line.value;
  };
}

/** Stands for a browser: opens the page's program, and prints what it shows. */
function page(url: string, token: string): string {
  return `import { EventSource } from "eventsource";
import { Window } from "happy-dom";
const window = new Window({ url: ${JSON.stringify(url)} });
window.document.head.innerHTML = '<meta name="conflux-key" content="${token}">';
window.document.body.innerHTML = '<div id="root"></div>';
Object.assign(globalThis, { window, document: window.document, localStorage: window.localStorage, EventSource });
let shown = "";
new window.MutationObserver(() => {
  const text = window.document.body.textContent ?? "";
  if (text !== shown) console.log((shown = text));
}).observe(window.document.body, { childList: true, subtree: true, characterData: true });
await import("./app.tsx");
`;
}

function flag(): Record<string, unknown> {
  const readme = readFileSync(path.join(root, "README.md"), "utf8");
  const block = /```json new-checkout\n([\s\S]*?)```/.exec(readme)?.[1];
  return JSON.parse(block ?? "") as Record<string, unknown>;
}

async function startWithFlag() {
  const started = await start("client");
  const body = { format: "flag", content: flag() };
  const { status } = await started.harness.call("PUT", `${N}/configs/new-checkout`, { body });
  expect(status).toBe(201);
  return started;
}

describe("the README", () => {
  test.each(["node", "bun"])(
    "its service runs on %s",
    async (runtime) => {
      const { harness, url, token, publish } = await start("read");
      await harness.call("POST", `${N}/configs/limits/versions`, {
        body: { content: { max: 1000 } },
      });
      await harness.call("PUT", `${N}/configs/limits/release`, {
        body: { rules: [{ id: "gold", match: { tier: "gold" }, version: 2 }], default: 1 },
      });
      const next = run(
        runtime,
        {
          "service.ts": program("service"),
          "main.ts": `import { limitOf } from "./service.ts"; console.log(limitOf("gold"), limitOf("free"));`,
        },
        "main.ts",
        { CONFLUX_URL: url, CONFLUX_TOKEN: token, NODE_NO_WARNINGS: "1" },
      );
      expect(await next()).toBe("configuration is live");
      expect(await next()).toBe("1000 100");
      const { body } = await publish("limits", { max: 50 });
      expect(await next()).toBe(
        `limits changed in revision ${body.revision}: [{"pointer":"/max","old":100,"new":50}]`,
      );
    },
    timeoutMs,
  );

  test.each(["node", "bun"])(
    "its flags are evaluated on %s",
    async (runtime) => {
      const { url, token } = await startWithFlag();
      const next = run(runtime, { "main.ts": program("flags") }, "main.ts", {
        CONFLUX_URL: url,
        CONFLUX_TOKEN: token,
        NODE_NO_WARNINGS: "1",
        NO_COLOR: "1",
      });
      let text = "";
      while (!text.endsWith("}")) text += await next();
      expect(text).toContain("value: true");
      expect(text).toMatch(/reason: ['"]TARGETING_MATCH['"]/);
    },
    timeoutMs,
  );

  test(
    "its page follows a flag",
    async () => {
      const { url, token, publish } = await startWithFlag();
      const next = run(
        "bun",
        { "app.tsx": program("flags-app"), "main.ts": page(url, token) },
        "main.ts",
        {},
      );
      let line = await next();
      if (line === "The checkout") line = await next();
      expect(line).toBe("The new checkout");
      await publish("new-checkout", { ...flag(), state: "DISABLED" });
      expect(await next()).toBe("The checkout");
    },
    timeoutMs,
  );

  test(
    "its app shows what is published",
    async () => {
      const { url, token, publish } = await start("client");
      const next = run(
        "bun",
        {
          "app.tsx": program("app"),
          "main.ts": page(url, token),
        },
        "main.ts",
        {},
      );
      let line = await next();
      if (line === "Welcome") line = await next();
      expect(line).toBe("Hello");
      await publish("banner", { text: "Sale" });
      expect(await next()).toBe("Sale");
    },
    timeoutMs,
  );
});
