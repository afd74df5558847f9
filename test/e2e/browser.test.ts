/**
 * A real browser, a page of another origin, real nodes: the SDK's watch, the browser's own EventSource, and OFREP with
 * what the browser lets a page send and see. Takes Debian's chromium, or the one that CONFLUX_CHROMIUM names.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { chromium, type Browser, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bin } from "../../infra/bootstrap.mjs";
import { startCluster } from "../../infra/cluster.mjs";
import { eventually, persist, tenantWithClient } from "./api.ts";

const executablePath = [
  process.env["CONFLUX_CHROMIUM"] ?? "",
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
].find((file) => file !== "" && existsSync(file));
if (executablePath === undefined)
  console.error(
    "SKIPPED test/e2e/browser.test.ts: there is no chromium; install it (apt-get install chromium) or name it in CONFLUX_CHROMIUM",
  );

const root = path.resolve(import.meta.dirname, "../..");
const N = "/v1/tenants/shop/namespaces/web";

let cluster: Awaited<ReturnType<typeof startCluster>>;
let urls: string[];
let admin: string;
let token: string;
let browser: Browser;
let site: Server;
let origin: string;

/** What the page loads, in one file. */
function bundle(): string {
  const folder = mkdtempSync(path.join(tmpdir(), "conflux-browser-"));
  try {
    const entry = path.join(folder, "entry.ts");
    const from = (file: string): string => JSON.stringify(path.join(root, file));
    writeFileSync(
      entry,
      `import { Conflux } from ${from("src/sdk/mod.ts")};
import { OFREPWebProvider } from ${from("node_modules/@openfeature/ofrep-web-provider")};
import { OpenFeature } from ${from("node_modules/@openfeature/web-sdk")};
Object.assign(window, { Conflux, OFREPWebProvider, OpenFeature });`,
    );
    const out = path.join(folder, "page.js");
    const built = spawnSync(
      bin("bun"),
      ["build", entry, "--target=browser", "--format=iife", `--outfile=${out}`],
      { encoding: "utf8", cwd: root },
    );
    if (built.status !== 0) throw new Error(`Cannot bundle the page: ${built.stderr}`);
    return readFileSync(out, "utf8");
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const limit = (value: number) => ({
  state: "ENABLED",
  variants: { now: value },
  defaultVariant: "now",
});

async function publish(name: string, content: unknown, via: readonly string[] = urls) {
  const answer = await persist(via, `${N}/configs/${name}/publish`, {
    token: admin,
    body: { content },
    headers: { "idempotency-key": crypto.randomUUID() },
  });
  expect(answer.status).toBe(201);
}

async function openPage(): Promise<Page> {
  const page = await browser.newPage();
  await page.goto(origin);
  return page;
}

// A machine without a browser cannot run this: it said so above.
describe.skipIf(executablePath === undefined)("a page in chromium", () => {
  beforeAll(async () => {
    cluster = await startCluster({ nodes: 3, runtimes: ["bun"] });
    urls = cluster.nodes.map((node) => node.url);
    const made = await tenantWithClient(urls, cluster.rootToken, "shop");
    admin = made.admin;
    token = made.client.token;
    for (const [name, format, content] of [
      ["limit", "flag", limit(10)],
      ["banner", "json", { text: "one" }],
    ] as const)
      await persist(urls, `${N}/configs/${name}`, {
        method: "PUT",
        token: admin,
        body: { format, content },
      });
    const script = bundle();
    site = createServer((request, response) => {
      const isScript = request.url === "/page.js";
      response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
      response.end(isScript ? script : `<!doctype html><script src="/page.js"></script>`);
    });
    await new Promise<void>((resolve) => site.listen(0, "127.0.0.1", resolve));
    const address = site.address();
    if (address === null || typeof address === "string") throw new Error("No port");
    origin = `http://127.0.0.1:${address.port}/`;
    browser = await chromium.launch({
      ...(executablePath !== undefined && { executablePath }),
      args: ["--no-sandbox", "--disable-dev-shm-usage"],
    });
  });
  afterAll(async () => {
    await browser?.close();
    site?.close();
    await cluster?.stop();
  });

  test("the SDK's watch follows from another origin, and over a node that is killed", async () => {
    const page = await openPage();
    const [first, ...others] = urls as [string, ...string[]];
    const options = { url: [first, ...others], token, tenant: "shop", namespace: "web" };
    const source = await page.evaluate(
      `(window.conflux = new Conflux(${JSON.stringify(options)})).ready({ timeoutMs: 10_000 })`,
    );
    expect(source).toBe("live");
    const text = (): Promise<unknown> => page.evaluate(`conflux.get("banner").text`);
    expect(await text()).toBe("one");
    await publish("banner", { text: "two" });
    await eventually("the page shows two", async () => (await text()) === "two");
    const watched = String(await page.evaluate("conflux.status.url"));
    await cluster.nodes.find((node) => node.url === watched)?.kill();
    await publish(
      "banner",
      { text: "three" },
      urls.filter((url) => url !== watched),
    );
    await eventually("the page shows three", async () => (await text()) === "three");
    await cluster.nodes.find((node) => node.url === watched)?.restart();
    await page.close();
  });

  test("its own EventSource needs nothing but the address, and comes back by itself", async () => {
    const page = await openPage();
    const [url = ""] = urls;
    const bulk = await fetch(`${url}${N}/ofrep/v1/evaluate/flags`, {
      method: "POST",
      headers: { "x-api-key": token },
    });
    const body = (await bulk.json()) as { eventStreams: { endpoint: { requestUri: string } }[] };
    const address = `${url}${body.eventStreams[0]?.endpoint.requestUri}`;
    await page.evaluate(`(() => {
      window.told = [];
      const events = new EventSource(${JSON.stringify(address)});
      events.onmessage = ({ data, lastEventId }) => told.push({ ...JSON.parse(data), lastEventId });
    })()`);
    const refetches = async () =>
      (await page.evaluate<{ type: string; etag: string; lastEventId: string }[]>("told")).filter(
        ({ type }) => type === "refetchEvaluation",
      );
    await eventually("it is told once", async () => (await refetches()).length === 1);
    await publish("limit", limit(11));
    await eventually("it is told again", async () => (await refetches()).length === 2);
    await cluster.nodes[0]?.kill();
    await publish("limit", limit(12), urls.slice(1));
    await cluster.nodes[0]?.restart();
    await eventually("it is told what it missed", async () => (await refetches()).length === 3);
    for (const { etag, lastEventId } of await refetches()) expect(etag).toBe(lastEventId);
    await page.close();
  });

  test("OFREP works from another origin: preflights, ETag, stream, storage", async () => {
    const page = await openPage();
    const statuses: number[] = [];
    page.on("response", (response) => {
      if (response.request().method() === "POST") statuses.push(response.status());
    });
    const connect = `(async () => {
      await OpenFeature.setContext({ targetingKey: "ann" });
      await OpenFeature.setProviderAndWait(new OFREPWebProvider({
        baseUrl: ${JSON.stringify(`${urls[1]}${N}`)},
        headers: [["Authorization", ${JSON.stringify(`Bearer ${token}`)}]],
      }));
      return OpenFeature.getClient().getNumberValue("limit", 0);
    })()`;
    const value = (): Promise<unknown> =>
      page.evaluate(`OpenFeature.getClient().getNumberValue("limit", 0)`);
    await publish("limit", limit(20));
    expect(await page.evaluate(connect)).toBe(20);
    await publish("limit", limit(21));
    await eventually("the page has 21", async () => (await value()) === 21);
    statuses.length = 0;
    await page.reload();
    // From its storage at once; and the tag that it was let see is answered with 304.
    expect(await page.evaluate(connect)).toBe(21);
    await eventually("it has asked", () => statuses.length > 0);
    expect(statuses[0]).toBe(304);
    await publish("limit", limit(22));
    await eventually("the page has 22", async () => (await value()) === 22);
    await page.close();
  });
});
