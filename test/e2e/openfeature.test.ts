/**
 * Published clients of OpenFeature, unmodified, against real nodes: what they were not written for must work with them.
 * They evaluate, follow changes, change their context; nodes are killed under them, and addresses of their storage expire.
 */
import { OFREPProvider } from "@openfeature/ofrep-provider";
import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";
import {
  OpenFeatureProvider,
  useBooleanFlagValue,
  useNumberFlagValue,
} from "@openfeature/react-sdk";
import { OpenFeature as ServerOpenFeature } from "@openfeature/server-sdk";
import { OpenFeature, ProviderEvents, type Provider } from "@openfeature/web-sdk";
import { EventSource } from "eventsource";
import { Window } from "happy-dom";
import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { hashToken, streamToken, streamWindow } from "../../src/gateway/tokens.ts";
import { ask, eventually, persist, tenantWithClient } from "./api.ts";

const N = "/v1/tenants/shop/namespaces/web";

let cluster: Awaited<ReturnType<typeof startCluster>>;
let urls: string[];
let admin: string;
let client: { readonly id: string; readonly token: string };

const checkout = {
  state: "ENABLED",
  variants: { on: true, off: false },
  defaultVariant: "off",
  targeting: { if: [{ "==": [{ var: "plan" }, "pro"] }, "on", null] },
};
const limit = (value: number) => ({
  state: "ENABLED",
  variants: { now: value },
  defaultVariant: "now",
});
const theme = {
  state: "ENABLED",
  variants: { dark: { color: "black" }, light: { color: "white" } },
  defaultVariant: "dark",
};

/** What a browser has: the storage outlives the page, a page brings its own streams. */
class Storage {
  readonly entries = new Map<string, string>();
  getItem(key: string): string | null {
    return this.entries.get(key) ?? null;
  }
  setItem(key: string, value: string): void {
    this.entries.set(key, value);
  }
  removeItem(key: string): void {
    this.entries.delete(key);
  }
}
const storage = new Storage();
Object.assign(globalThis, { EventSource, localStorage: storage });

async function change(
  name: string,
  content: unknown,
  method = "POST",
  via: readonly string[] = urls,
): Promise<void> {
  const path = `${N}/configs/${name}${method === "POST" ? "/publish" : ""}`;
  const body = { content, ...(method === "PUT" && { format: "flag" }) };
  const headers = { "idempotency-key": `${name}-${crypto.randomUUID()}` };
  const answer = await persist(via, path, { method, token: admin, body, headers });
  expect([200, 201]).toContain(answer.status);
}

beforeAll(async () => {
  cluster = await startCluster({ nodes: 3, runtimes: ["bun"] });
  urls = cluster.nodes.map((node) => node.url);
  ({ admin, client } = await tenantWithClient(urls, cluster.rootToken, "shop"));
  await change("new-checkout", checkout, "PUT");
  await change("limit", limit(10), "PUT");
  await change("theme", theme, "PUT");
});

afterEach(async () => {
  await OpenFeature.clearProviders();
  await OpenFeature.clearContext();
  OpenFeature.clearHandlers();
  await ServerOpenFeature.clearProviders();
  storage.entries.clear();
  for (const node of cluster.nodes) if (!node.running) await node.restart();
});
afterAll(async () => {
  await cluster?.stop();
});

/** Its own types leave out what this compiler is told to mind. */
function webProvider(url: string): Provider {
  const baseUrl = `${url}${N}`;
  const given = () => Promise.resolve(headersFactory());
  return new OFREPWebProvider({ baseUrl, headersFactory: given }) as Provider;
}

const headersFactory = (): [string, string][] => [["Authorization", `Bearer ${client.token}`]];

/** The node that serves the client, and one that does not. */
async function leaderAndOther(): Promise<{ leader: number; other: number }> {
  let leader = -1;
  await eventually("there is a leader", async () => {
    const { body } = await persist(urls, "/v1/tenants/shop/group", { token: admin });
    leader = cluster.nodes.findIndex((node) => node.name === body.leader);
    return leader >= 0;
  });
  return { leader, other: (leader + 1) % 3 };
}

describe("@openfeature/server-sdk with @openfeature/ofrep-provider", () => {
  const connect = async (url: string, headers = headersFactory) => {
    await ServerOpenFeature.setProviderAndWait(
      new OFREPProvider({ baseUrl: `${url}${N}`, headersFactory: headers }),
    );
    return ServerOpenFeature.getClient();
  };

  test("evaluates every type, with the context of each call", async () => {
    const flags = await connect(urls[0] as string);
    expect(await flags.getBooleanDetails("new-checkout", false, { plan: "pro" })).toMatchObject({
      value: true,
      variant: "on",
      reason: "TARGETING_MATCH",
    });
    expect(await flags.getBooleanValue("new-checkout", true, { plan: "free" })).toBe(false);
    expect(await flags.getNumberValue("limit", 0)).toBe(10);
    expect(await flags.getObjectValue("theme", {})).toEqual({ color: "black" });
  });

  test("gives the default of the code, and says why", async () => {
    const flags = await connect(urls[1] as string);
    expect(await flags.getStringDetails("missing", "code")).toMatchObject({
      value: "code",
      errorCode: "FLAG_NOT_FOUND",
    });
    expect(await flags.getStringDetails("limit", "code")).toMatchObject({
      value: "code",
      errorCode: "TYPE_MISMATCH",
    });
    const strangers = await connect(urls[1] as string, () => [["Authorization", "Bearer nobody"]]);
    expect(await strangers.getNumberDetails("limit", 7)).toMatchObject({
      value: 7,
      reason: "ERROR",
    });
  });

  test("goes on when the leader is killed", async () => {
    const { leader, other } = await leaderAndOther();
    const flags = await connect(urls[other] as string);
    expect(await flags.getNumberValue("limit", 0)).toBe(10);
    await cluster.nodes[leader]?.kill();
    // Without a quorum for a moment it is answered from what is known here: never the default.
    for (let i = 0; i < 10; i++) expect(await flags.getNumberValue("limit", 0)).toBe(10);
    await change("limit", limit(11), "POST", [urls[other] as string]);
    expect(await flags.getNumberValue("limit", 0)).toBe(11);
    await change("limit", limit(10), "POST", [urls[other] as string]);
  });
});

describe("@openfeature/web-sdk with @openfeature/ofrep-web-provider", () => {
  const flagsChanged: string[] = [];
  const seen: string[] = [];

  const connect = async (url: string, context: Record<string, string>) => {
    flagsChanged.length = 0;
    seen.length = 0;
    OpenFeature.addHandler(ProviderEvents.ConfigurationChanged, (details) => {
      const changed = details?.["flagsChanged"];
      if (Array.isArray(changed)) flagsChanged.push(...(changed as string[]));
    });
    for (const event of [ProviderEvents.Stale, ProviderEvents.Error, ProviderEvents.Ready])
      OpenFeature.addHandler(event, () => void seen.push(event));
    await OpenFeature.setContext(context);
    await OpenFeature.setProviderAndWait(webProvider(url));
    return OpenFeature.getClient();
  };
  /** The provider is told by an event of its own when its stream stands, so its storage is looked at instead. */
  const entry = (): { key: string; value: Stored } => {
    const [[key, text]] = [...storage.entries] as [[string, string]];
    return { key, value: JSON.parse(text) as Stored };
  };
  interface Stored {
    etag: string;
    eventStreams: { endpoint: { requestUri: string } }[];
  }

  test("evaluates for its context, anew for another one, and is told of changes", async () => {
    const flags = await connect(urls[0] as string, { targetingKey: "ann", plan: "free" });
    expect(flags.getBooleanValue("new-checkout", true)).toBe(false);
    await OpenFeature.setContext({ targetingKey: "ann", plan: "pro" });
    // For the same targeting key it serves what it stored until the answer is here.
    await eventually("it is told", () => flagsChanged.includes("new-checkout"));
    expect(flags.getBooleanValue("new-checkout", false)).toBe(true);
    flagsChanged.length = 0;
    await change("limit", limit(20));
    await eventually("the change is told", () => flagsChanged.length > 0);
    expect(flagsChanged).toEqual(["limit"]);
    expect(flags.getNumberValue("limit", 0)).toBe(20);
    await change("limit", limit(10));
    await eventually("limit is 10", () => flags.getNumberValue("limit", 0) === 10);
  });

  test("does not notice that the leader is killed", async () => {
    const { leader, other } = await leaderAndOther();
    const flags = await connect(urls[other] as string, { targetingKey: "ann" });
    await change("limit", limit(30));
    await eventually("limit is 30", () => flags.getNumberValue("limit", 0) === 30);
    seen.length = 0;
    await cluster.nodes[leader]?.kill();
    await change("limit", limit(31), "POST", [urls[other] as string]);
    await eventually("limit is 31", () => flags.getNumberValue("limit", 0) === 31);
    expect(seen).toEqual([]);
  });

  test("comes back to a node that was killed, and gets what it missed", async () => {
    const flags = await connect(urls[0] as string, { targetingKey: "ann" });
    await change("limit", limit(40));
    await eventually("limit is 40", () => flags.getNumberValue("limit", 0) === 40);
    await cluster.nodes[0]?.kill();
    await eventually("it is stale", () => seen.includes(ProviderEvents.Stale));
    expect(flags.getNumberValue("limit", 0)).toBe(40);
    await change("limit", limit(41), "POST", urls.slice(1));
    await cluster.nodes[0]?.restart();
    await eventually("limit is 41", () => flags.getNumberValue("limit", 0) === 41, 60_000);
  });

  test.each([
    ["expired", { window: -2 }],
    ["is from before a restore", { epoch: -1 }],
  ])(
    "gets a new address when the stored one %s",
    async (_, off: { window?: number; epoch?: number }) => {
      const context = { targetingKey: "ann" };
      await connect(urls[0] as string, context);
      const { key, value } = entry();
      await OpenFeature.clearProviders();
      const address = value.eventStreams[0]?.endpoint.requestUri ?? "";
      const epoch = Number(address.split("_")[3]);
      const old = streamToken(
        {
          tenant: "shop",
          namespace: "web",
          keyId: client.id,
          epoch: epoch + (off.epoch ?? 0),
          window: streamWindow(Date.now()) + (off.window ?? 0),
        },
        hashToken(client.token),
      );
      const stored = {
        ...value,
        // The tag that it was given with covered that address, so it is not the one of today.
        etag: `"of-another-time"`,
        eventStreams: [
          {
            type: "sse",
            endpoint: { requestUri: `${address.split("=")[0]}=${old}` },
            inactivityDelaySec: 120,
          },
        ],
      };
      expect((await fetch(`${urls[0]}${stored.eventStreams[0]?.endpoint.requestUri}`)).status).toBe(
        401,
      );
      storage.entries.set(key, JSON.stringify(stored));
      const flags = await connect(urls[0] as string, context);
      await eventually(
        "it has the new address",
        () => entry().value.eventStreams[0]?.endpoint.requestUri === address,
      );
      await change("limit", limit(50));
      await eventually("limit is 50", () => flags.getNumberValue("limit", 0) === 50, 30_000);
      await change("limit", limit(10));
      await eventually("limit is 10", () => flags.getNumberValue("limit", 0) === 10, 30_000);
    },
  );

  test("is refused with a key that is not known", async () => {
    const { status, body } = await ask(`${urls[0]}${N}/ofrep/v1/evaluate/flags`, {
      token: "nobody",
      body: {},
    });
    expect([status, body.errorCode]).toEqual([401, "GENERAL"]);
    const provider = new OFREPWebProvider({
      baseUrl: `${urls[0]}${N}`,
      headers: [["X-API-Key", "nobody"]],
    }) as Provider;
    await expect(OpenFeature.setProviderAndWait(provider)).rejects.toThrow();
  });
});

describe("@openfeature/react-sdk", () => {
  function App() {
    const isOn = useBooleanFlagValue("new-checkout", false);
    const max = useNumberFlagValue("limit", 0);
    return createElement("p", null, `${isOn ? "new" : "old"} checkout, at most ${max}`);
  }

  test("renders what is released, and again when that changes", async () => {
    const window = new Window({ url: "http://localhost/" });
    Object.assign(globalThis, { window, document: window.document });
    try {
      await OpenFeature.setContext({ targetingKey: "ann", plan: "pro" });
      await OpenFeature.setProviderAndWait(webProvider(urls[2] as string));
      const container = window.document.createElement("div");
      const root = createRoot(container as never);
      const shows = (text: string): Promise<void> =>
        eventually(text, () => container.textContent === text);
      root.render(createElement(OpenFeatureProvider, null, createElement(App)));
      await eventually("it is rendered", () => container.textContent !== "");
      expect(container.textContent).toMatch(/^new checkout, at most \d+$/);
      await change("limit", limit(60));
      await shows("new checkout, at most 60");
      await OpenFeature.setContext({ targetingKey: "ann", plan: "free" });
      await shows("old checkout, at most 60");
      root.unmount();
    } finally {
      await window.happyDOM.close();
      for (const name of ["window", "document"]) Reflect.deleteProperty(globalThis, name);
    }
  });
});
