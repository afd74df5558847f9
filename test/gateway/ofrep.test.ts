/** OFREP and flagd.json as their clients meet them; the published clients themselves are in test/openfeature. */
import { FlagdCore } from "@openfeature/flagd-core";
import * as fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { canonical } from "../../src/gateway/http.ts";
import { NamespaceSets } from "../../src/gateway/namespace_sets.ts";
import { Bodies } from "../../src/gateway/ofrep.ts";
import { hashToken, streamToken, streamWindow } from "../../src/gateway/tokens.ts";
import { FrameReader, Harness, type Answer } from "./harness.ts";
import { rootToken } from "./solo_service.ts";

const N = "/v1/tenants/acme/namespaces/app";
const bulkPath = `${N}/ofrep/v1/evaluate/flags`;

let h: Harness;
let admin: string;
let client: { id: string; token: string };

beforeEach(async () => {
  h = new Harness();
  admin = await h.tenant("acme");
  client = await h.key("acme", "client");
});
afterEach(() => h.close());

const boolean = {
  state: "ENABLED",
  variants: { on: true, off: false },
  defaultVariant: "off",
  metadata: { team: "shop" },
};
const byPlan = { ...boolean, targeting: { if: [{ "==": [{ var: "plan" }, "pro"] }, "on", "off"] } };

async function flag(name: string, content: object, format = "flag"): Promise<void> {
  const answer = await h.call("PUT", `${N}/configs/${name}`, {
    token: admin,
    body: { format, content },
  });
  expect(answer.status).toBe(201);
}

function bulk(context?: object, headers: Record<string, string> = {}): Promise<Answer> {
  return h.call("POST", bulkPath, {
    token: client.token,
    body: context === undefined ? {} : { context },
    headers,
  });
}

/** Clients look flags up by key; in which order they come is not said. */
function inOrder(a: { key: string }, b: { key: string }): number {
  return a.key < b.key ? -1 : 1;
}

function byKey(answer: Answer): { key: string }[] {
  return [...(answer.body.flags as { key: string }[])].sort(inOrder);
}

function single(key: string, context: object = {}): Promise<Answer> {
  return h.call("POST", `${bulkPath}/${key}`, { token: client.token, body: { context } });
}

describe("bulk evaluation", () => {
  test("gives every flag of the namespace for the context", async () => {
    await flag("new-checkout", byPlan);
    await flag("static", boolean);
    await flag("old", { ...boolean, state: "DISABLED" });
    const answer = await bulk({ targetingKey: "u1", plan: "pro" });
    expect(answer.status).toBe(200);
    const metadata = { team: "shop" };
    expect(byKey(answer)).toEqual([
      { key: "new-checkout", reason: "TARGETING_MATCH", value: true, variant: "on", metadata },
      { key: "old", reason: "DISABLED", metadata },
      { key: "static", reason: "STATIC", value: false, variant: "off", metadata },
    ]);
    expect(answer.body.metadata).toEqual({ flagSetId: "app" });
    expect(answer.headers.get("cache-control")).toBe("no-cache");
  });

  test("needs neither context nor targeting key", async () => {
    await flag("static", boolean);
    for (const body of [undefined, {}, { context: {} }]) {
      const answer = await h.call("POST", bulkPath, {
        token: client.token,
        ...(body !== undefined && { body }),
      });
      expect(answer.body.flags[0].value).toBe(false);
    }
  });

  test("a flag that fails tells so in its place", async () => {
    await flag("broken", { ...boolean, targeting: { ">": [{ var: "age" }, 18] } });
    await flag("static", boolean);
    const [broken, fixed] = byKey(await bulk({ age: "old" }));
    expect(broken).toMatchObject({ key: "broken", errorCode: "GENERAL" });
    expect(broken).not.toHaveProperty("reason");
    expect(fixed).toMatchObject({ key: "static", reason: "STATIC" });
  });

  test("flags of one targeting, which are decided together, get what each gets alone", async () => {
    const targeting = { var: "variant" };
    const byVariant = { ...boolean, targeting };
    const keys = ["first", "fewer", "disabled", "without", "metadata", "ruled", "other"];
    await flag("first", byVariant);
    await flag("fewer", { ...byVariant, variants: { off: false } });
    await flag("disabled", { ...byVariant, state: "DISABLED" });
    await flag("without", { ...byVariant, defaultVariant: null });
    await flag("metadata", { ...byVariant, metadata: { team: "other" } });
    await flag("ruled", byVariant);
    await h.call("PUT", `${N}/configs/ruled/release`, {
      token: admin,
      body: { rules: [{ id: "beta", match: { tier: "beta" }, version: 1 }], default: 1 },
    });
    await flag("other", { ...boolean, targeting: { var: "plan" } });
    // Each twice: what was joined once is given again.
    for (const variant of ["on", "off", null, "none", 1, "on", "off", null, "none", 1]) {
      const context = { variant, plan: "on" };
      const answer = await bulk({ ...context, another: Math.random() });
      const alone = await Promise.all(keys.map(async (key) => (await single(key, context)).body));
      expect(byKey(answer)).toEqual(alone.sort(inOrder));
    }
  });

  test("rollouts, which are decided together, get what each gets alone", async () => {
    const keys: string[] = [];
    const rollout = async (name: string, shares: readonly unknown[], more: object = {}) => {
      keys.push(name);
      await flag(name, { ...boolean, targeting: { fractional: shares }, ...more });
    };
    for (let i = 0; i < 9; i++)
      await rollout(`two-${i}`, [
        ["on", 1 + i],
        ["off", 3],
      ]);
    await rollout("three", [["on"], ["off"], ["on"]]);
    await rollout("one", [["on"]]);
    await rollout(
      "nine",
      Array.from({ length: 9 }, (_, i) => [i % 2 === 0 ? "on" : "off", i]),
    );
    await rollout("long", [["on"], ["off"]], { metadata: { why: "x".repeat(600) } });
    await rollout("without", [["on", 1], ["off"]], { defaultVariant: null });
    const seen = new Set<string>();
    for (let i = 0; i < 30; i++) {
      const targetingKey = i === 0 ? undefined : i === 1 ? "ä€" : `user-${i % 20}`;
      const answer = await bulk({ targetingKey, i });
      const alone = await Promise.all(
        keys.map(async (one) => (await single(one, { targetingKey })).body),
      );
      expect(byKey(answer)).toEqual(alone.sort(inOrder));
      seen.add(JSON.stringify(byKey(answer)));
    }
    expect(seen.size).toBeGreaterThan(15);
  });

  test("takes the texts of the context for labels, and then the whole context for targeting", async () => {
    await flag("layered", byPlan);
    const everyone = { ...boolean, defaultVariant: "on", metadata: { team: "beta" } };
    await h.call("POST", `${N}/configs/layered/versions`, {
      token: admin,
      body: { content: everyone },
    });
    await h.call("PUT", `${N}/configs/layered/release`, {
      token: admin,
      body: { rules: [{ id: "beta", match: { tier: "beta" }, version: 2 }], default: 1 },
    });
    const of = async (context: object) => (await bulk(context)).body.flags[0];
    expect(await of({ tier: "beta" })).toMatchObject({ value: true, metadata: { team: "beta" } });
    expect(await of({ tier: "other", plan: "pro" })).toMatchObject({ variant: "on" });
    expect(await of({ tier: ["beta"] })).toMatchObject({ value: false });
  });

  test("what is released in no version for these labels is no flag", async () => {
    await flag("inner", boolean);
    const rules = [{ id: "staff", match: { role: "staff" }, version: 1 }];
    const body = { rules, default: null };
    await h.call("PUT", `${N}/configs/inner/release`, { token: admin, body });
    expect((await bulk({ role: "guest" })).body.flags).toEqual([]);
    expect((await bulk({ role: "staff" })).body.flags).toHaveLength(1);
    expect((await single("inner", { role: "guest" })).status).toBe(404);
  });

  test("other configs are flags with their content as the value", async () => {
    await flag("limits", { max: 3 }, "json");
    await h.call("PUT", `${N}/configs/motd`, {
      token: admin,
      body: { format: "text", content: "hello" },
    });
    await h.call("PUT", `${N}/configs/nothing`, {
      token: admin,
      body: { format: "json", content: null },
    });
    const { body } = await bulk({});
    expect(body.flags).toEqual([
      { key: "limits", reason: "STATIC", value: { max: 3 }, variant: "v1" },
      { key: "motd", reason: "STATIC", value: "hello", variant: "v1" },
      { key: "nothing", reason: "STATIC" },
    ]);
  });

  test("inherits from the namespace that it extends", async () => {
    await flag("shared", boolean);
    await h.call("PUT", "/v1/tenants/acme/namespaces/child", {
      token: admin,
      body: { extends: "app" },
    });
    const path = "/v1/tenants/acme/namespaces/child/ofrep/v1/evaluate/flags";
    const answer = await h.call("POST", path, { token: client.token, body: {} });
    expect(answer.body.flags).toHaveLength(1);
    await h.call("POST", `${N}/configs/shared/publish`, {
      token: admin,
      body: { content: { ...boolean, defaultVariant: "on" } },
    });
    const after = await h.call("POST", path, { token: client.token, body: {} });
    expect(after.body.flags[0].value).toBe(true);
  });
});

describe("the same again", () => {
  const context = { targetingKey: "u1", plan: "pro" };

  test("is the same, until the flags change", async () => {
    await flag("one", byPlan);
    const first = await bulk(context);
    for (let i = 0; i < 3; i++) expect((await bulk(context)).text).toBe(first.text);
    await h.call("POST", `${N}/configs/one/publish`, {
      token: admin,
      body: { content: { ...byPlan, metadata: { team: "other" } } },
    });
    const after = await bulk(context);
    expect(after.body.flags).toMatchObject([{ value: true, metadata: { team: "other" } }]);
    expect((await bulk({ ...context, plan: "free" })).body.flags[0].value).toBe(false);
  });

  test("of another tenant is that tenant's, though it did the same in the same order", async () => {
    const others = await h.tenant("umbra");
    await h.key("umbra", "client");
    const of = (tenant: string): string => `/v1/tenants/${tenant}/namespaces/app`;
    for (const [tenant, token] of [
      ["acme", admin],
      ["umbra", others],
    ] as const)
      await h.call("PUT", `${of(tenant)}/configs/one`, {
        token,
        body: { format: "flag", content: { ...byPlan, metadata: { team: tenant } } },
      });
    // A root key has no address of its own in the answer.
    for (let i = 0; i < 3; i++)
      for (const tenant of ["acme", "umbra"]) {
        const answer = await h.call("POST", `${of(tenant)}/ofrep/v1/evaluate/flags`, {
          token: rootToken,
          body: { context },
        });
        expect(answer.body.flags).toMatchObject([{ key: "one", metadata: { team: tenant } }]);
      }
  });
});

describe("the ETag", () => {
  const tagOf = (answer: Answer): string => answer.headers.get("etag") ?? "";

  test("answers 304 without a body for the same flags and context, however that is written", async () => {
    await flag("f", byPlan);
    const first = await bulk({ targetingKey: "u", plan: "pro" });
    const again = await bulk({ plan: "pro", targetingKey: "u" }, { "if-none-match": tagOf(first) });
    expect(again.status).toBe(304);
    expect(again.text).toBe("");
    expect(tagOf(again)).toBe(tagOf(first));
  });

  test("changes with any part of the context", async () => {
    await flag("f", byPlan);
    const first = await bulk({ targetingKey: "u", plan: "free" });
    const other = await bulk({ targetingKey: "u", plan: "pro" }, { "if-none-match": tagOf(first) });
    expect(other.status).toBe(200);
    expect(other.body.flags[0].value).toBe(true);
  });

  test("tells halves of pairs apart, which are all the same in UTF-8", async () => {
    await flag("f", {
      ...boolean,
      targeting: { if: [{ "==": [{ var: "a" }, { var: "b" }] }, "on", "off"] },
    });
    const [same, other] = [
      { a: "\ud800", b: "\ud800" },
      { a: "\ud800", b: "\ud801" },
    ];
    // From the second time on answers are kept.
    for (let i = 0; i < 3; i++) {
      expect((await bulk(same)).body.flags).toMatchObject([{ key: "f", value: true }]);
      expect((await bulk(other)).body.flags).toMatchObject([{ key: "f", value: false }]);
    }
  });

  test("tells a number beyond every double from null", async () => {
    const old = { if: [{ ">": [{ var: "age" }, 65] }, "on", "off"] };
    await flag("f", { ...boolean, targeting: old });
    const of = (age: string): Promise<Answer> =>
      h.call("POST", bulkPath, {
        token: client.token,
        raw: `{"context":{"age":${age}}}`,
        headers: { "content-type": "application/json" },
      });
    const values = [
      ["1e999", true],
      ["null", false],
      ["-1e999", false],
    ] as const;
    const tags = new Set<string>();
    // From the second time on answers are kept.
    for (let i = 0; i < 3; i++)
      for (const [age, value] of values) {
        const answer = await of(age);
        expect(answer.body.flags).toMatchObject([{ key: "f", value }]);
        tags.add(tagOf(answer));
      }
    expect(tags.size).toBe(values.length);
  });

  test("has every finite number as JSON has it: idempotency keys are told apart by that text", () => {
    fc.assert(
      fc.property(fc.double({ noDefaultInfinity: true, noNaN: true }), (number) => {
        expect(canonical([number, { n: -number }])).toBe(JSON.stringify([number, { n: -number }]));
      }),
    );
    expect(canonical([-0, 1e21, 1e-7, 5e-324])).toBe("[0,1e+21,1e-7,5e-324]");
  });

  test("changes with the flags, not with what does not concern them", async () => {
    await flag("f", byPlan);
    const tag = tagOf(await bulk({}));
    await h.key("acme", "read");
    await h.call("PUT", "/v1/tenants/acme/namespaces/elsewhere/configs/x", {
      token: admin,
      body: { content: { a: 1 } },
    });
    expect((await bulk({}, { "if-none-match": tag })).status).toBe(304);
    await flag("g", boolean);
    expect((await bulk({}, { "if-none-match": tag })).status).toBe(200);
  });

  test("is another one for another key: the address of the stream is part of the answer", async () => {
    await flag("f", boolean);
    const first = await bulk({});
    const { token } = await h.key("acme", "client");
    const answer = await h.call("POST", bulkPath, {
      token,
      body: {},
      headers: { "if-none-match": tagOf(first) },
    });
    expect(answer.status).toBe(200);
  });

  test("covers what flags make of the time", async () => {
    const now = { var: "$flagd.timestamp" };
    const targeting = { if: [{ "==": [{ "%": [now, 2] }, 0] }, "on", "off"] };
    await flag("blinking", { ...boolean, targeting });
    const first = await bulk({});
    const value = first.body.flags[0].value;
    // Seconds alternate, so within a few of them there are both.
    for (let i = 0; i < 40; i++) {
      const answer = await bulk({}, { "if-none-match": tagOf(first) });
      if (answer.status === 200) {
        expect(answer.body.flags[0].value).toBe(!value);
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error("The flag did not blink");
  });
});

describe("a single flag", () => {
  test("is evaluated", async () => {
    await flag("f", byPlan);
    const answer = await single("f", { plan: "pro" });
    expect(answer.status).toBe(200);
    expect(answer.body).toEqual({
      key: "f",
      reason: "TARGETING_MATCH",
      value: true,
      variant: "on",
      metadata: { team: "shop" },
    });
  });

  test.each(["missing", "Not-A-Name", "%20", "constructor"])("%s is not found", async (key) => {
    const answer = await single(key);
    expect(answer.status).toBe(404);
    expect(answer.body).toMatchObject({
      key: decodeURIComponent(key),
      errorCode: "FLAG_NOT_FOUND",
    });
  });

  test("that fails answers 400 with its key", async () => {
    await flag("f", { ...boolean, targeting: { ">": [{ var: "age" }, 18] } });
    const answer = await single("f", { age: "old" });
    expect(answer.status).toBe(400);
    expect(answer.body).toMatchObject({ key: "f", errorCode: "GENERAL" });
  });
});

describe("errors are in OFREP's form", () => {
  test.each([
    ["{", "PARSE_ERROR"],
    ["[]", "INVALID_CONTEXT"],
    [`{"context": 1}`, "INVALID_CONTEXT"],
    [`{"context": {"targetingKey": 1}}`, "INVALID_CONTEXT"],
  ])("%s", async (raw, errorCode) => {
    await flag("f", boolean);
    for (const [path, key] of [
      [bulkPath, undefined],
      [`${bulkPath}/f`, "f"],
    ] as const) {
      const answer = await h.call("POST", path, {
        token: client.token,
        raw,
        headers: { "content-type": "application/json; charset=utf-8" },
      });
      expect(answer.status).toBe(400);
      expect(answer.body.errorCode).toBe(errorCode);
      expect(answer.body.key).toBe(key);
      expect(answer.headers.get("content-type")).toContain("application/json");
    }
  });

  test("a flag that cannot even be decoded is told by the key that came", async () => {
    const answer = await h.call("POST", `${bulkPath}/a%ff?x=/1`, { token: client.token, body: {} });
    expect(answer.status).toBe(400);
    expect(answer.body).toMatchObject({ key: "a%ff", errorCode: "GENERAL" });
  });

  test("without a key 401, with one of another namespace 403", async () => {
    const none = await h.call("POST", bulkPath, { token: null, body: {} });
    expect([none.status, none.body.errorCode]).toEqual([401, "GENERAL"]);
    const { token } = await h.key("acme", "client", { namespaces: ["other"] });
    expect((await h.call("POST", bulkPath, { token, body: {} })).status).toBe(403);
  });

  test("a context that is too large is refused", async () => {
    const answer = await h.call("POST", `${bulkPath}/f`, {
      token: client.token,
      body: { context: { text: "x".repeat(70_000) } },
    });
    expect(answer.status).toBe(413);
  });
});

describe("flagd.json", () => {
  test("is a flag set that flagd-core takes, with an ETag", async () => {
    await flag("f", byPlan);
    await flag("limits", { max: 3 }, "json");
    const { token } = await h.key("acme", "read");
    const answer = await h.call("GET", `${N}/flagd.json`, { token });
    expect(Object.keys(answer.body.flags)).toEqual(["f"]);
    const core = new FlagdCore();
    core.setConfigurations(answer.text);
    expect(core.resolveBooleanEvaluation("f", false, { plan: "pro" }).value).toBe(true);
    const etag = answer.headers.get("etag") ?? "";
    const again = await h.call("GET", `${N}/flagd.json`, {
      token,
      headers: { "if-none-match": etag },
    });
    expect(again.status).toBe(304);
    await flag("g", boolean);
    const changed = await h.call("GET", `${N}/flagd.json`, {
      token,
      headers: { "if-none-match": etag },
    });
    expect(changed.status).toBe(200);
  });

  test("shows rules, so client keys may not have it", async () => {
    const answer = await h.call("GET", `${N}/flagd.json`, { token: client.token });
    expect(answer.status).toBe(403);
  });
});

describe("the event stream", () => {
  async function addressOf(token = client.token): Promise<string> {
    const answer = await h.call("POST", bulkPath, { token, body: {} });
    const [stream] = answer.body.eventStreams;
    expect(stream).toMatchObject({ type: "sse", inactivityDelaySec: 120 });
    return stream.endpoint.requestUri as string;
  }
  const open = async (address: string, headers: Record<string, string> = {}) => {
    const response = await h.gateway().fetch(h.request("GET", address, { token: null, headers }));
    return { response, frames: new FrameReader(response) };
  };
  const refetch = { type: "refetchEvaluation" };

  test("says at once that flags are to be evaluated, and again when they change", async () => {
    await flag("f", boolean);
    const { response, frames } = await open(await addressOf());
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    expect(response.headers.get("cache-control")).toBe("no-cache, no-transform");
    expect(response.headers.get("x-accel-buffering")).toBe("no");
    const first = await frames.next();
    expect(first).toMatchObject({ event: "message", data: refetch });
    await h.call("PUT", "/v1/tenants/acme/namespaces/other/configs/x", {
      token: admin,
      body: { content: { a: 1 } },
    });
    await flag("g", boolean);
    const second = await frames.next();
    expect(second).toMatchObject({ event: "message", data: refetch });
    expect(second?.data.etag).toBe(second?.id);
    expect(second?.data.lastModified).toBeGreaterThan(1_600_000_000);
    expect(second?.id).not.toBe(first?.id);
    await frames.cancel();
  });

  test("has a stable address, the same for every context", async () => {
    expect(await addressOf()).toBe(await addressOf());
  });

  test("says nothing new to one who comes back and missed nothing", async () => {
    await flag("f", boolean);
    const address = await addressOf();
    const { frames } = await open(address);
    const id = (await frames.next())?.id ?? "";
    await frames.cancel();
    const same = await open(address, { "last-event-id": id });
    expect((await same.frames.next())?.data.type).toBe("bookmark");
    await same.frames.cancel();
    await flag("g", boolean);
    const missed = await open(address, { "last-event-id": id });
    expect((await missed.frames.next())?.data).toMatchObject(refetch);
    await missed.frames.cancel();
  });

  test("ends when its key is revoked, and does not open again", async () => {
    const address = await addressOf();
    const { frames } = await open(address);
    await frames.next();
    await h.call("DELETE", `/v1/tenants/acme/keys/${client.id}`, { token: admin });
    expect(await frames.next()).toMatchObject({ event: "goodbye" });
    expect((await open(address)).response.status).toBe(401);
  });

  test("takes a key in a header too", async () => {
    const path = `${N}/ofrep/v1/events?wait=0s`;
    expect((await h.call("GET", path, { token: client.token })).status).toBe(200);
    expect((await h.call("GET", path, { token: null })).status).toBe(401);
  });

  test("refuses an address that expired, is of another history, tenant, namespace or key", async () => {
    const epoch = Number(
      new URL(await addressOf(), "http://x").searchParams.get("token")?.split("_")[3],
    );
    const window = streamWindow(Date.now());
    const valid = { tenant: "acme", namespace: "app", keyId: client.id, epoch, window };
    const hash = hashToken(client.token);
    const status = async (token: string, path = `${N}/ofrep/v1/events`): Promise<number> =>
      (await h.call("GET", `${path}?wait=0s&token=${token}`, { token: null })).status;
    expect(await status(streamToken(valid, hash))).toBe(200);
    // The node that gave it, or this one, may be a little ahead.
    for (const near of [window - 1, window + 1])
      expect(await status(streamToken({ ...valid, window: near }, hash))).toBe(200);
    for (const wrong of [
      { window: window - 2 },
      { window: window + 2 },
      { epoch: epoch - 1 },
      { tenant: "other" },
      { keyId: "unknown" },
    ])
      expect(await status(streamToken({ ...valid, ...wrong }, hash))).toBe(401);
    expect(await status(streamToken(valid, hashToken("guess")))).toBe(401);
    expect(await status(`${streamToken(valid, hash)}x`)).toBe(401);
    expect(
      await status(streamToken(valid, hash), "/v1/tenants/acme/namespaces/web/ofrep/v1/events"),
    ).toBe(403);
    expect(await status(streamToken({ ...valid, namespace: "other" }, hash))).toBe(403);
    const used = await h.call("POST", bulkPath, { token: streamToken(valid, hash), body: {} });
    expect(used.status).toBe(401);
  });

  test("is not given to root keys", async () => {
    const answer = await h.call("POST", bulkPath, { token: rootToken, body: {} });
    expect(answer.body).not.toHaveProperty("eventStreams");
  });
});

describe("from another origin", () => {
  const origin = { origin: "https://app.example" };

  test("a preflight allows what clients send, and answers show what they need", async () => {
    const preflight = await h.call("OPTIONS", bulkPath, {
      token: null,
      headers: { ...origin, "access-control-request-method": "POST" },
    });
    expect(preflight.status).toBe(204);
    const allowed = preflight.headers.get("access-control-allow-headers") ?? "";
    for (const name of ["content-type", "if-none-match", "authorization", "x-api-key"])
      expect(allowed.split(", ")).toContain(name);
    const answer = await bulk({}, origin);
    expect(answer.headers.get("access-control-allow-origin")).toBe("*");
    const exposed = answer.headers.get("access-control-expose-headers") ?? "";
    for (const name of ["ETag", "Retry-After"]) expect(exposed.split(", ")).toContain(name);
  });
});

describe("on a node without the tenant", () => {
  test("flags and their stream come through", async () => {
    const two = new Harness({ nodes: ["n1", "n2"] });
    try {
      const token = await two.tenant("acme", { replicas: 1 });
      const key = await two.key("acme", "client");
      const body = { format: "flag", content: boolean };
      await two.call("PUT", `${N}/configs/f`, { token, body });
      const nodes = ["n1", "n2"];
      const answers = await Promise.all(
        nodes.map((node) => two.call("POST", bulkPath, { token: key.token, body: {}, node })),
      );
      expect(answers[0]?.text).toBe(answers[1]?.text);
      expect(answers[0]?.headers.get("etag")).toBe(answers[1]?.headers.get("etag"));
      for (const node of nodes) {
        const address = answers[0]?.body.eventStreams[0].endpoint.requestUri as string;
        const request = two.request("GET", address, { token: null });
        const frames = new FrameReader(await two.gateway(node).fetch(request));
        expect(await frames.next()).toMatchObject({ event: "message", data: refetch });
        await two.call("POST", `${N}/configs/f/publish`, {
          token,
          body: { content: { ...boolean, metadata: { node } } },
        });
        expect(await frames.next(15_000)).toMatchObject({ event: "message", data: refetch });
        await frames.cancel();
      }
    } finally {
      two.close();
    }
  });
  const refetch = { type: "refetchEvaluation" };
});

describe("bodies kept", () => {
  test("are kept from the second time on, and as many as there is room for", () => {
    const bodies = new Bodies();
    bodies.put("a", "{}");
    expect(bodies.get("a")).toBeNull();
    bodies.put("a", "{}");
    expect(bodies.get("a")).toBe("{}");
    const mebi = "x".repeat(1024 * 1024);
    for (let i = 0; i < 8; i++) {
      for (let j = 0; j < 2; j++) bodies.put(`b${i}`, mebi);
      // In use all the time.
      expect(bodies.get("a")).toBe("{}");
    }
    expect(bodies.get("b0")).toBeNull();
    expect(bodies.get("b7")).toBe(mebi);
  });
});

describe("sets kept ready", () => {
  test("forget what was used longest ago, and give the same again", async () => {
    await flag("f", boolean);
    const sets = new NamespaceSets({ setsMax: 2, bytesMax: 1_000_000 });
    const service = h.cluster.services.get("n1");
    if (service === undefined) throw new Error("No service");
    const mark = (namespace: string): Promise<string> =>
      service.read("acme", { consistency: "stale" }, (view) => sets.of(view, namespace).mark);
    const before = await mark("app");
    for (const namespace of ["a", "b", "c"]) await mark(namespace);
    expect(sets.size.sets).toBe(2);
    expect(await mark("app")).toBe(before);
    expect(sets.size.bytes).toBeLessThan(10_000);
  });
});
