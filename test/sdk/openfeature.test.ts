/** Our providers in the published SDKs of OpenFeature, over the client and the real gateway. */
import {
  OpenFeature as Server,
  ProviderStatus as ServerStatus,
  type Provider as ServerProvider,
} from "@openfeature/server-sdk";
import { OpenFeature as Web, ProviderEvents, ProviderStatus } from "@openfeature/web-sdk";
import * as fc from "fast-check";
import { afterEach, describe, expect, onTestFinished, test } from "vitest";
import type { ReleaseRule } from "../../src/model/release.ts";
import { Conflux } from "../../src/sdk/mod.ts";
import { ConfluxServerProvider, ConfluxWebProvider } from "../../src/sdk/openfeature.ts";
import { ConfluxServer } from "../../src/sdk/server.ts";
import { Served, timing, where } from "./served.ts";

const checkout = {
  state: "ENABLED",
  variants: { on: true, off: false },
  defaultVariant: "off",
  targeting: { if: [{ "==": [{ var: "plan" }, "pro"] }, "on", null] },
  metadata: { team: "shop" },
} as const;

afterEach(async () => {
  await Server.clearProviders();
  await Web.clearProviders();
  await Web.clearContext();
  Web.clearHandlers();
  Server.clearHandlers();
});

const N = "/v1/tenants/acme/namespaces/default";

async function served(): Promise<Served> {
  const at = await Served.start();
  const put = (name: string, body: object) =>
    at.harness.call("PUT", `${N}/configs/${name}`, { body });
  await put("checkout", { format: "flag", content: checkout });
  await put("limits", { format: "json", content: { max: 3 } });
  await put("motd", { format: "text", content: "hello" });
  return at;
}

/** Every config gets a second version, and rules over what contexts may hold. */
async function releaseByOddRules(at: Served): Promise<void> {
  const rules: readonly ReleaseRule[] = [
    { id: "grown", match: { age: { gte: 18 } }, version: 2 },
    { id: "beta", match: { beta: "true" }, version: 2 },
    { id: "long", match: { plan: { prefix: "xx" } }, version: 1 },
    { id: "odd", match: { constructor: { exists: true } }, version: 2 },
    { id: "half", match: {}, rollout: { percentage: 50, by: "user" }, version: 2 },
  ];
  const second = { checkout: { ...checkout, defaultVariant: "on" }, limits: null, motd: "bye" };
  for (const [name, content] of Object.entries(second)) {
    await at.harness.call("POST", `${N}/configs/${name}/versions`, { body: { content } });
    const body = { rules, default: name === "motd" ? null : 1 };
    await at.harness.call("PUT", `${N}/configs/${name}/release`, { body });
  }
  await at.harness.call("PUT", `${N}/configs/plain`, { body: { content: { a: [1] } } });
}

const attribute = fc.oneof(
  fc.constantFrom<unknown>(null, undefined, true, false, 0, -0, 18, 17.5, 1e21, NaN, new Date(0)),
  fc.constantFrom<unknown>("pro", "true", "18", "", "x".repeat(2_000), ["18"], { a: undefined }),
  fc.integer(),
  fc.string({ unit: "grapheme" }),
);
const oddContext = fc.dictionary(
  fc.constantFrom("age", "beta", "plan", "user", "constructor"),
  attribute,
  { noNullPrototype: true },
);

async function publish(at: Served, name: string, content: unknown): Promise<void> {
  const answer = await at.harness.call("POST", `${N}/configs/${name}/publish`, {
    body: { content },
  });
  expect(answer.status).toBe(201);
}

/** The next event of a provider, as its SDK tells it. */
function next(event: ProviderEvents): Promise<readonly string[]> {
  return new Promise((resolve) => {
    Web.addHandler(event, (details) => {
      resolve((details as { flagsChanged?: string[] }).flagsChanged ?? []);
    });
  });
}

describe("on a server", () => {
  async function connect(at: Served) {
    const { token } = await at.harness.key("acme", "read");
    const client = new ConfluxServer({ url: at.url, token, ...where, timing });
    onTestFinished(() => client.close());
    const provider: ServerProvider = new ConfluxServerProvider(client);
    await Server.setProviderAndWait(provider);
    return Server.getClient();
  }

  test("evaluates targeting with the context of each call, and rules by its texts", async () => {
    const at = await served();
    await at.harness.call("POST", `${N}/configs/checkout/versions`, {
      body: { content: { ...checkout, defaultVariant: "on" } },
    });
    await at.harness.call("PUT", `${N}/configs/checkout/release`, {
      body: { rules: [{ id: "beta", match: { tier: "beta" }, version: 2 }], default: 1 },
    });
    const flags = await connect(at);
    expect(await flags.getBooleanDetails("checkout", false, { plan: "pro" })).toMatchObject({
      value: true,
      variant: "on",
      reason: "TARGETING_MATCH",
      flagMetadata: { team: "shop" },
    });
    expect(await flags.getBooleanValue("checkout", true, { plan: "free" })).toBe(false);
    expect(await flags.getBooleanValue("checkout", false, { tier: "beta" })).toBe(true);
    expect(await flags.getObjectValue("limits", {})).toEqual({ max: 3 });
    expect(await flags.getStringDetails("motd", "")).toMatchObject({
      value: "hello",
      variant: "v1",
    });
    // What JSON cannot write is not seen, and costs no other attribute.
    const circle: { self?: unknown } = {};
    circle.self = circle;
    const odd = { plan: "pro", tier: "beta", circle, id: 1n } as never;
    expect(await flags.getBooleanDetails("checkout", false, odd)).toMatchObject({
      value: true,
      reason: "TARGETING_MATCH",
    });
  });

  test("gives what the platform gives by OFREP, whatever the context", async () => {
    const at = await served();
    await releaseByOddRules(at);
    const client = await connect(at);
    const nobody = { nobody: true } as never;
    const here = async (key: string, type: "Object", context: object) => {
      const { value, reason, variant, errorCode } = await client[`get${type}Details`](
        key,
        nobody,
        context as never,
      );
      return { value, reason, variant, errorCode };
    };
    const there = async (key: string, context: object) => {
      const path = `${N}/ofrep/v1/evaluate/flags/${key}`;
      const { status, body } = await at.harness.call("POST", path, { body: { context } });
      const { value = nobody, reason = "ERROR", variant, errorCode } = body;
      return { value: status === 200 ? value : nobody, reason, variant, errorCode };
    };
    const types = {
      checkout: "Boolean",
      limits: "Object",
      motd: "String",
      plain: "Object",
      none: "Object",
    };
    await fc.assert(
      fc.asyncProperty(oddContext, async (context) => {
        for (const [key, type] of Object.entries(types)) {
          const expected = await there(key, context);
          expect([key, await here(key, type as "Object", context)]).toEqual([key, expected]);
        }
      }),
      { numRuns: 150 },
    );
  });

  test("gives the default of the code, and says why", async () => {
    const flags = await connect(await served());
    expect(await flags.getBooleanDetails("missing", true)).toMatchObject({
      value: true,
      errorCode: "FLAG_NOT_FOUND",
    });
    expect(await flags.getNumberDetails("motd", 7)).toMatchObject({
      value: 7,
      errorCode: "TYPE_MISMATCH",
    });
  });

  test("is not ready when there is nothing to serve", async () => {
    const client = new Conflux({ url: "http://127.0.0.1:9", ...where, timing });
    onTestFinished(() => client.close());
    const provider: ServerProvider = new ConfluxServerProvider(client, { timeoutMs: 50 });
    await expect(Server.setProviderAndWait(provider)).rejects.toThrow("cannot be reached");
    expect(Server.getClient().providerStatus).toBe(ServerStatus.ERROR);
    expect(await Server.getClient().getNumberValue("limits", 1)).toBe(1);
  });
});

describe("in a page", () => {
  async function connect(at: Served, context: Record<string, string>) {
    await Web.setContext(context);
    const { token } = at.clientKey;
    const provider = new ConfluxWebProvider({
      url: at.url,
      token,
      ...where,
      timing,
      labels: ["tier"],
    });
    await Web.setProviderAndWait(provider);
    return Web.getClient();
  }

  test("evaluates in the page, and asks anew only for other labels", async () => {
    const at = await served();
    await at.harness.call("POST", `${N}/configs/limits/versions`, {
      body: { content: { max: 9 } },
    });
    await at.harness.call("PUT", `${N}/configs/limits/release`, {
      body: { rules: [{ id: "gold", match: { tier: "gold" }, version: 2 }], default: 1 },
    });
    const flags = await connect(at, { targetingKey: "ann", plan: "pro" });
    expect(flags.getBooleanValue("checkout", false)).toBe(true);
    expect(flags.getObjectValue("limits", {})).toEqual({ max: 3 });
    await Web.setContext({ targetingKey: "ann", plan: "free" });
    expect(flags.getBooleanValue("checkout", true)).toBe(false);
    const reconciling = next(ProviderEvents.Reconciling);
    const changed = Web.setContext({ targetingKey: "ann", plan: "free", tier: "gold" });
    await reconciling;
    expect(flags.getObjectValue("limits", {})).toEqual({ max: 3 });
    await changed;
    expect(flags.getObjectValue("limits", {})).toEqual({ max: 9 });
  });

  test("tells of changes, those of one revision together", async () => {
    const at = await served();
    const flags = await connect(at, { targetingKey: "ann" });
    // States and changes are told from the next turn on.
    await new Promise((resolve) => setTimeout(resolve, 0));
    const changed = next(ProviderEvents.ConfigurationChanged);
    await at.harness.call("POST", "/v1/tenants/acme/transactions", {
      body: {
        then: ["limits", "motd"].map((name) => ({
          op: "publish",
          namespace: "default",
          name,
          content: name === "limits" ? { max: 4 } : "bye",
        })),
      },
    });
    expect([...(await changed)].sort()).toEqual(["limits", "motd"]);
    expect(flags.getObjectValue("limits", {})).toEqual({ max: 4 });
  });

  test("is stale while the platform is away, and serves on", async () => {
    const at = await served();
    const flags = await connect(at, { targetingKey: "ann" });
    await new Promise((resolve) => setTimeout(resolve, 0));
    const stale = next(ProviderEvents.Stale);
    at.harness.gateway().close("stopping");
    await stale;
    expect(flags.providerStatus).toBe(ProviderStatus.STALE);
    expect(flags.getStringValue("motd", "")).toBe("hello");
  });

  test("tells an error when its key is revoked, and serves on", async () => {
    const at = await served();
    const flags = await connect(at, { targetingKey: "ann" });
    await new Promise((resolve) => setTimeout(resolve, 0));
    const error = next(ProviderEvents.Error);
    await at.harness.call("DELETE", `/v1/tenants/acme/keys/${at.clientKey.id}`);
    await error;
    expect(flags.getStringValue("motd", "")).toBe("hello");
    await publish(at, "motd", "unseen");
    expect(flags.getStringValue("motd", "")).toBe("hello");
  });
});
