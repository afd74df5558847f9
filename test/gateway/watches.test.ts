import { afterEach, describe, expect, test } from "vitest";
import { webStream } from "../../src/gateway/streams.ts";
import type { WatchSettings } from "../../src/gateway/watchers.ts";
import { historyMax } from "../../src/machine/machine.ts";
import { FrameReader, Harness, type Frame } from "./harness.ts";
import type { SoloTenant } from "./solo_service.ts";

const T = "/v1/tenants/acme";
const N = `${T}/namespaces/app`;

let open: Harness[] = [];
let readers: FrameReader[] = [];
afterEach(async () => {
  for (const reader of readers) await reader.cancel().catch(() => {});
  for (const h of open) h.close();
  open = [];
  readers = [];
});

async function setup(watch: Partial<WatchSettings> = {}): Promise<Harness> {
  const h = new Harness({ settings: { watch: { bookmarkMs: 60_000, ...watch } } });
  open.push(h);
  await h.tenant("acme");
  return h;
}

async function subscribe(
  h: Harness,
  path: string,
  options: { token?: string; headers?: Record<string, string> } = {},
): Promise<FrameReader> {
  const response = await h.gateway().fetch(h.request("GET", path, options));
  if (response.status !== 200) throw new Error(`${response.status}: ${await response.text()}`);
  expect(response.headers.get("content-type")).toBe("text/event-stream");
  expect(response.headers.get("cache-control")).toBe("no-cache, no-transform");
  expect(response.headers.get("x-accel-buffering")).toBe("no");
  const reader = new FrameReader(response);
  readers.push(reader);
  return reader;
}

const put = (h: Harness, name: string, content: unknown, namespace = "app") =>
  h.call("PUT", `${T}/namespaces/${namespace}/configs/${name}`, { body: { content } });
const publish = (h: Harness, name: string, content: unknown, namespace = "app") =>
  h.call("POST", `${T}/namespaces/${namespace}/configs/${name}/publish`, { body: { content } });

describe("watch of a tenant", () => {
  test("begins with a comment at once and a sync, then tells each revision whole", async () => {
    const h = await setup();
    await put(h, "a", 1);
    const reader = await subscribe(h, `${T}/watch`);
    const sync = (await reader.next()) as Frame;
    expect(reader.comments).toEqual([": conflux"]);
    expect(sync).toMatchObject({ event: "sync", id: "1-2" });
    expect(sync.data).toMatchObject({ revision: 2, configs: [{ name: "a", content: "1" }] });
    await publish(h, "a", 2);
    const commit = (await reader.next()) as Frame;
    expect(commit).toMatchObject({ event: "commit", id: "1-3" });
    expect(commit.data.changes).toMatchObject([
      { type: "version", namespace: "app", name: "a", version: 2, content: "2" },
      { type: "release", namespace: "app", name: "a", version: 2 },
    ]);
    expect(Date.parse(commit.data.at)).toBeGreaterThan(Date.now() - 60_000);
  });

  test("a transaction is one commit", async () => {
    const h = await setup();
    const reader = await subscribe(h, `${T}/watch?since=now`);
    await h.call("POST", `${T}/transactions`, {
      body: {
        then: ["a", "b", "c"].map((name) => ({
          op: "config.put",
          namespace: name,
          name,
          content: 1,
        })),
      },
    });
    const commit = (await reader.nextNews()) as Frame;
    const puts = commit.data.changes.filter((change: { type: string }) => change.type === "put");
    expect(puts.map((change: { name: string }) => change.name)).toEqual(["a", "b", "c"]);
  });

  test("resumes after its cursor, by query or Last-Event-ID, without a gap or a repeat", async () => {
    const h = await setup();
    await put(h, "a", 1);
    for (let i = 2; i <= 6; i++) await publish(h, "a", i);
    const byQuery = await subscribe(h, `${T}/watch?since=1-4`);
    const byHeader = await subscribe(h, `${T}/watch?since=1-1`, {
      headers: { "last-event-id": "1-4" },
    });
    for (const reader of [byQuery, byHeader]) {
      const ids = [];
      for (let i = 0; i < 3; i++) ids.push((await reader.next())?.id);
      expect(ids).toEqual(["1-5", "1-6", "1-7"]);
    }
    await publish(h, "a", 7);
    expect((await byQuery.next())?.id).toBe("1-8");
    const current = await subscribe(h, `${T}/watch?since=1-8`);
    expect(await current.next()).toMatchObject({ event: "bookmark", id: "1-8" });
  });

  test("a foreign, future or compacted cursor gives a sync, never silence", async () => {
    const h = await setup();
    await put(h, "a", 1);
    for (const cursor of ["9-1", "1-99", "0-1"]) {
      const reader = await subscribe(h, `${T}/watch?since=${cursor}`);
      expect((await reader.next())?.event).toBe("sync");
    }
    const broken = await subscribe(h, `${T}/watch`, { headers: { "last-event-id": "nonsense" } });
    expect((await broken.next())?.event).toBe("sync");
    // Compaction: the oldest rows of the history are gone.
    const state = h.cluster.tenants.get("acme");
    const meta = state?.get<{ revision: number }>("meta");
    state?.rows.put("meta", { ...meta, historyFrom: 2 });
    const old = await subscribe(h, `${T}/watch?since=1-0`);
    expect((await old.next())?.event).toBe("sync");
    expect(historyMax).toBeGreaterThan(1_000);
  });

  test("shows what its filter lets through, and nothing for the rest", async () => {
    const h = await setup();
    const byNamespace = await subscribe(h, `${T}/watch?since=now&namespace=app`);
    const byPrefix = await subscribe(h, `${T}/watch?since=now&prefix=web.`);
    const plain = await subscribe(h, `${T}/watch?since=now&content=false`);
    await put(h, "x", 1, "other");
    await put(h, "web.a", 1, "other");
    await put(h, "y", 1);
    const names = async (reader: FrameReader) =>
      new Set((await reader.nextNews())?.data.changes.map((one: { name: string }) => one.name));
    expect(await names(byNamespace)).toEqual(new Set(["y"]));
    expect(await names(byPrefix)).toEqual(new Set(["web.a"]));
    const first = (await plain.nextNews()) as Frame;
    expect(JSON.stringify(first.data)).not.toContain("content");
  });

  test("a limited key sees its namespaces, a reader no keys", async () => {
    const h = await setup();
    await put(h, "a", 1, "app");
    await put(h, "b", 1, "other");
    const { token } = await h.key("acme", "read", { namespaces: ["app"] });
    const limited = await subscribe(h, `${T}/watch`, { token });
    const sync = (await limited.next()) as Frame;
    expect(sync.data.configs.map((one: { name: string }) => one.name)).toEqual(["a"]);
    const { token: whole } = await h.key("acme", "read");
    const reader = await subscribe(h, `${T}/watch?since=now`, { token: whole });
    const admin = await subscribe(h, `${T}/watch?since=now`);
    await h.key("acme", "read");
    await publish(h, "b", 2, "other");
    await publish(h, "a", 2, "app");
    expect((await reader.nextNews())?.data.changes[0].type).toBe("version");
    expect((await admin.nextNews())?.data.changes[0].type).toBe("key");
    const seen = (await limited.nextNews()) as Frame;
    expect(seen.data.changes[0]).toMatchObject({ namespace: "app", name: "a" });
    const refused = await h.call("GET", `${T}/watch?namespace=other`, { token });
    expect(refused.status).toBe(403);
  });

  test("content over 64 KiB stays out, with its hash to read it by", async () => {
    const h = await setup();
    const reader = await subscribe(h, `${T}/watch?since=now`);
    await h.call("PUT", `${N}/configs/big`, {
      body: { format: "text", content: "x".repeat(64 * 1024 + 1) },
    });
    const commit = (await reader.nextNews()) as Frame;
    const version = commit.data.changes.find((one: { type: string }) => one.type === "version");
    expect(version.hash).toMatch(/^sha256:/);
    expect(version.content).toBeUndefined();
  });
});

describe("watch of effective values", () => {
  test("sends the values for its labels, then only what changes for them", async () => {
    const h = await setup();
    await put(h, "a", 1);
    await h.call("POST", `${N}/configs/a/versions`, { body: { content: 2 } });
    const eu = await subscribe(h, `${N}/watch?label.region=eu`);
    const us = await subscribe(h, `${N}/watch?label.region=us`);
    expect((await eu.next())?.data.values).toMatchObject({ a: { version: 1, content: "1" } });
    expect((await us.next())?.event).toBe("sync");
    await h.call("PUT", `${N}/configs/a/release`, {
      body: { rules: [{ id: "eu", match: { region: "eu" }, version: 2 }], default: 1 },
    });
    expect((await eu.next())?.data.changes).toMatchObject([
      { type: "put", name: "a", version: 2, format: "json", content: "2" },
    ]);
    await publish(h, "a", 3);
    expect((await us.next())?.data.changes).toMatchObject([{ name: "a", version: 3 }]);
    await h.call("DELETE", `${N}/configs/a`);
    for (const reader of [eu, us])
      expect((await reader.next())?.data.changes).toEqual([{ type: "delete", name: "a" }]);
  });

  test("with rules=true sends releases whole, to those who may see rules", async () => {
    const h = await setup();
    await put(h, "a", 1);
    await h.call("POST", `${N}/configs/a/versions`, { body: { content: 2 } });
    const reader = await subscribe(h, `${N}/watch?rules=true`);
    const first = ((await reader.next()) as Frame).data.values.a;
    expect([first.version, JSON.parse(first.content)]).toMatchObject([
      1,
      { release: 1, rules: [], default: 1, versions: { 1: { content: "1", format: "json" } } },
    ]);
    await h.call("PUT", `${N}/configs/a/release`, {
      body: { rules: [{ id: "gold", match: { tier: "gold" }, version: 2 }], default: 1 },
    });
    const [change] = ((await reader.next()) as Frame).data.changes;
    expect(JSON.parse(change.content)).toMatchObject({
      rules: [{ id: "gold", version: 2 }],
      versions: { 1: { content: "1" }, 2: { content: "2" } },
    });
    const whole = await h.call("GET", `${N}/values/a?rules=true`);
    expect([whole.text, whole.headers.get("conflux-version")]).toEqual([change.content, "2"]);
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(whole.text));
    expect(change.hash).toBe(`sha256:${Buffer.from(digest).toString("hex")}`);
    const all = await h.call("GET", `${N}/values?rules=true`);
    expect(all.body.values.a).toEqual({
      version: 2,
      hash: change.hash,
      format: "json",
      content: whole.text,
    });
    const { token } = await h.key("acme", "client");
    for (const path of ["watch", "values", "values/a"]) {
      expect((await h.call("GET", `${N}/${path}?rules=true`, { token })).status).toBe(403);
      expect((await h.call("GET", `${N}/${path}?rules=true&label.a=b`)).status).toBe(400);
    }
  });

  test("what does not exist yet can be watched, one name or all", async () => {
    const h = await setup();
    const { token } = await h.key("acme", "client");
    const all = await subscribe(h, `${T}/namespaces/unborn/watch`, { token });
    const one = await subscribe(h, `${T}/namespaces/unborn/watch?name=later`, { token });
    for (const reader of [all, one]) expect((await reader.next())?.data.values).toEqual({});
    await put(h, "other", 1, "unborn");
    await put(h, "later", 1, "unborn");
    expect((await all.next())?.data.changes[0].name).toBe("other");
    for (const reader of [all, one])
      expect((await reader.next())?.data.changes).toMatchObject([{ name: "later", content: "1" }]);
  });

  test("follows what the namespace extends, and a change of that", async () => {
    const h = await setup();
    await put(h, "a", "1", "base");
    await put(h, "b", "1", "base");
    const reader = await subscribe(h, `${N}/watch`);
    expect((await reader.next())?.data.values).toEqual({});
    await h.call("PUT", N, { body: { extends: "base" } });
    const linked = (await reader.next()) as Frame;
    expect(linked.data.changes.map((one: { name: string }) => one.name)).toEqual(["a", "b"]);
    await publish(h, "a", 2, "base");
    expect((await reader.next())?.data.changes).toMatchObject([{ name: "a", content: "2" }]);
    await put(h, "a", 9);
    expect((await reader.next())?.data.changes).toMatchObject([{ name: "a", content: "9" }]);
    // Hidden by its own value now: nothing changes for this watcher.
    await publish(h, "a", 3, "base");
    await publish(h, "b", 2, "base");
    expect((await reader.next())?.data.changes).toMatchObject([{ name: "b", content: "2" }]);
  });

  test("a reconnect gets exactly what it missed, also once the feed is gone", async () => {
    const h = await setup({ lingerMs: 0 });
    await put(h, "a", 1);
    const reader = await subscribe(h, `${N}/watch`);
    const sync = (await reader.next()) as Frame;
    const beside = await subscribe(h, `${N}/watch`);
    await beside.next();
    await reader.cancel();
    await publish(h, "a", 2);
    await publish(h, "a", 3);
    const back = await subscribe(h, `${N}/watch?since=${sync.id}`);
    expect((await back.next())?.data.changes).toMatchObject([{ version: 2 }]);
    expect((await back.next())?.data.changes).toMatchObject([{ version: 3 }]);
    await back.cancel();
    await beside.cancel();
    await new Promise((resolve) => setTimeout(resolve, 1_200));
    const cold = await subscribe(h, `${N}/watch?since=${sync.id}`);
    const merged = (await cold.next()) as Frame;
    expect(merged).toMatchObject({ event: "commit", id: "1-4" });
    expect(merged.data.changes).toMatchObject([{ version: 3 }]);
  });

  test("a rule whose time comes is told as a commit, to those who were away too", async () => {
    const h = await setup();
    await put(h, "a", 1);
    await h.call("POST", `${N}/configs/a/versions`, { body: { content: 2 } });
    const time = Date.now() + 3_600_000;
    const from = new Date(time).toISOString();
    await h.call("PUT", `${N}/configs/a/release`, {
      body: { rules: [{ id: "later", match: {}, from, version: 2 }], default: 1 },
    });
    const reader = await subscribe(h, `${N}/watch`);
    expect((await reader.next())?.data.values).toMatchObject({ a: { version: 1 } });
    const changes = await subscribe(h, `${T}/watch?since=now`);
    // As the leader does when its clock is there.
    const passed = h.cluster.state("acme").apply({
      at: time,
      actor: { kind: "system", keyId: "system" },
      action: { op: "schedule.pass" },
    });
    const id = `1-${passed.revision}`;
    const told = { type: "put", name: "a", version: 2, content: "2" };
    expect(await reader.next()).toMatchObject({ event: "commit", id, data: { changes: [told] } });
    expect(await changes.nextNews()).toMatchObject({
      event: "commit",
      id,
      data: { changes: [{ type: "schedule", namespace: "app", name: "a", release: 2 }] },
    });
    const away = await h.call("GET", `${N}/watch?wait=0s&since=1-${passed.revision - 1}`);
    expect(away.body.frames).toMatchObject([{ event: "commit", id, data: { changes: [told] } }]);
    const value = await h.call("GET", `${N}/values/a`);
    expect([value.text, value.headers.get("conflux-rule")]).toEqual(["2", "later"]);
  });

  test("a long absence is made up for by commits, as long as they are fewer than the values", async () => {
    const h = await setup({ queueFramesMax: 3 });
    await put(h, "a", 0);
    for (let i = 1; i <= 20; i++) await publish(h, "a", i);
    const reader = await subscribe(h, `${T}/watch?since=1-2`);
    const ids: (string | undefined)[] = [];
    for (let i = 0; i < 20; i++) ids.push((await reader.next())?.id);
    expect(ids).toEqual(Array.from({ length: 20 }, (_, i) => `1-${i + 3}`));
  });
});

describe("bookmarks and goodbyes", () => {
  test("an idle watcher hears a bookmark that moves its cursor", async () => {
    const h = await setup({ bookmarkMs: 30 });
    const reader = await subscribe(h, `${T}/watch?namespace=app&since=now`);
    await put(h, "a", 1, "other");
    let frame = (await reader.next()) as Frame;
    while (frame.id !== "1-2") frame = (await reader.next()) as Frame;
    expect(frame).toMatchObject({ event: "bookmark", data: { revision: 2 } });
  });

  test("revoking a key ends its watches and no others", async () => {
    const h = await setup();
    const { id, token } = await h.key("acme", "client");
    const mine = await subscribe(h, `${N}/watch`, { token });
    const root = await subscribe(h, `${N}/watch`);
    for (const reader of [mine, root]) await reader.next();
    await h.call("DELETE", `${T}/keys/${id}`);
    expect(await mine.next()).toMatchObject({
      event: "goodbye",
      id: undefined,
      data: { reason: "unauthorized" },
    });
    expect(await mine.next()).toBeNull();
    await put(h, "a", 1);
    expect((await root.next())?.event).toBe("commit");
    expect(h.gateway().status().watchers).toBe(1);
  });

  test("so do expiry, and the end of the tenant", async () => {
    const h = await setup({ bookmarkMs: 30 });
    const expiresAt = new Date(Date.now() + 100).toISOString();
    const { token } = await h.key("acme", "client", { expiresAt });
    const mine = await subscribe(h, `${N}/watch`, { token });
    const root = await subscribe(h, `${N}/watch`);
    for (const reader of [mine, root]) await reader.next();
    expect((await mine.nextNews())?.data).toEqual({ reason: "unauthorized" });
    await h.call("DELETE", T);
    expect((await root.nextNews())?.data).toEqual({ reason: "unauthorized" });
    expect(await root.next()).toBeNull();
  });

  test("a node that stops says so", async () => {
    const h = await setup();
    const reader = await subscribe(h, `${N}/watch`);
    await reader.next();
    h.gateway().close();
    expect((await reader.next())?.data).toEqual({ reason: "stopping" });
    expect((await h.call("GET", `${N}/watch`)).status).toBe(503);
  });

  test("one who reads slowly is told the latest state, the others everything", async () => {
    const h = await setup({ queueFramesMax: 3 });
    await put(h, "a", 0);
    const slow = await subscribe(h, `${N}/watch`);
    const fast = await subscribe(h, `${N}/watch`);
    for (const reader of [slow, fast]) await reader.next();
    const versions: number[] = [];
    for (let i = 1; i <= 20; i++) {
      await publish(h, "a", i);
      versions.push((await fast.next())?.data.changes[0].version);
    }
    expect(versions).toEqual(Array.from({ length: 20 }, (_, i) => i + 2));
    let frame = (await slow.next()) as Frame;
    let last = 0;
    while (frame.data.coalesced === undefined) {
      expect(frame.data.revision).toBeGreaterThan(last);
      last = frame.data.revision;
      frame = (await slow.next()) as Frame;
    }
    expect(frame).toMatchObject({ event: "commit", data: { changes: [{ version: 21 }] } });
    expect(frame.data.changes).toHaveLength(1);
    await publish(h, "a", 21);
    expect((await slow.next())?.data.changes).toMatchObject([{ version: 22 }]);
  });

  test("a change is encoded once for all who watch the same", async () => {
    const told: Uint8Array[] = [];
    const h = new Harness({
      settings: {
        watch: { bookmarkMs: 60_000 },
        openStream: (source) =>
          webStream({
            drained: () => source.drained(),
            gone: () => source.gone(),
            open: (sink) =>
              source.open({
                write: (bytes) => {
                  if (Buffer.from(bytes).includes("event: commit")) told.push(bytes);
                  return sink.write(bytes);
                },
                end: () => sink.end(),
              }),
          }),
      },
    });
    open.push(h);
    await h.tenant("acme");
    await put(h, "a", 0);
    const readers = [];
    for (let i = 0; i < 3; i++) readers.push(await subscribe(h, `${N}/watch?label.plan=gold`));
    for (const reader of readers) await reader.next();
    for (let i = 1; i <= 2; i++) {
      await publish(h, "a", i);
      for (const reader of readers) expect((await reader.next())?.event).toBe("commit");
    }
    expect([told.length, new Set(told.map((bytes) => bytes.buffer)).size]).toEqual([6, 2]);
  });

  test("a burst of more than a round may gather is told whole and in order", async () => {
    const h = await setup();
    await put(h, "a", 0);
    const readers = [await subscribe(h, `${N}/watch`), await subscribe(h, `${T}/watch`)];
    for (const reader of readers) await reader.next();
    const count = 1_100;
    // Without a turn of the event loop in between: what is told must wait, or be told at once.
    await Promise.all(Array.from({ length: count }, (_, i) => publish(h, "a", i + 1)));
    for (const reader of readers)
      for (let i = 0; i < count; i++)
        expect((await reader.nextNews())?.data.changes[0].version).toBe(i + 2);
  });

  test("one who is too slow for the history that is kept gets a sync that says why", async () => {
    const h = await setup({ queueFramesMax: 3 });
    await put(h, "a", 0);
    const slow = await subscribe(h, `${T}/watch`);
    expect((await slow.next())?.data.reason).toBe("begin");
    for (let i = 1; i <= 1_010; i++) await publish(h, "a", i);
    let frame = (await slow.next()) as Frame;
    while (frame.event === "commit") frame = (await slow.next()) as Frame;
    expect(frame).toMatchObject({ event: "sync", data: { reason: "slow", revision: 1_012 } });
  });

  test("a tenant's slow watcher is told the latest of each in one commit", async () => {
    const h = await setup({ queueFramesMax: 3 });
    await put(h, "a", 0);
    await put(h, "b", 0);
    const slow = await subscribe(h, `${T}/watch?since=now`);
    expect((await slow.next())?.event).toBe("bookmark");
    // Who hears each before the next keeps them from going out in one piece, which nobody is too slow for.
    const quick = await subscribe(h, `${T}/watch?since=now`);
    for (let i = 1; i <= 20; i++) {
      await publish(h, i === 15 ? "b" : "a", i);
      await quick.nextNews();
    }
    let frame = (await slow.next()) as Frame;
    while (frame.data.coalesced === undefined) frame = (await slow.next()) as Frame;
    expect(frame).toMatchObject({ event: "commit", id: "1-23", data: { revision: 23 } });
    expect(frame.data.changes).toMatchObject([
      { type: "version", name: "b", version: 2, content: "15" },
      { type: "release", name: "b" },
      { type: "version", name: "a", version: 20, content: "20" },
      { type: "release", name: "a" },
    ]);
  });

  test("one who wants every revision gets goodbye instead, and goes on from its cursor", async () => {
    const h = await setup({ queueFramesMax: 3 });
    await put(h, "a", 0);
    const every = `${T}/watch?history=every`;
    const slow = await subscribe(h, `${every}&since=now`);
    let cursor = (await slow.next())?.id;
    const quick = await subscribe(h, `${every}&since=now`);
    for (let i = 1; i <= 20; i++) {
      await publish(h, "a", i);
      await quick.nextNews();
    }
    const seen: number[] = [];
    let frame = (await slow.next()) as Frame;
    for (; frame.event === "commit"; frame = (await slow.next()) as Frame) {
      seen.push(frame.data.revision as number);
      cursor = frame.id;
    }
    expect(frame).toMatchObject({ event: "goodbye", data: { reason: "slow" } });
    const again = await subscribe(h, `${every}&since=${cursor}`);
    while (seen.length < 20) seen.push((await again.next())?.data.revision as number);
    expect(seen).toEqual(Array.from({ length: 20 }, (_, i) => i + 3));
    const foreign = await h.call("GET", `${every}&since=7-3`);
    expect([foreign.status, foreign.body.code]).toEqual([410, "cursor-compacted"]);
  });

  test("one who wants every revision and comes late gets them in parts, by stream and by polls", async () => {
    const h = await setup();
    await put(h, "a", 0);
    await put(h, "b", 0);
    for (let i = 1; i <= 1_100; i++) await publish(h, i > 1_050 ? "b" : "a", i);
    const every = `${T}/watch?history=every&prefix=b`;
    const first = await subscribe(h, `${every}&since=1-3`);
    const part = (await first.next()) as Frame;
    expect(part).toMatchObject({ event: "bookmark", id: "1-1003" });
    expect((await first.next())?.data).toEqual({ reason: "more" });
    const second = await subscribe(h, `${every}&since=${part.id}`);
    expect((await second.next())?.id).toBe("1-1054");
    const polled = await h.call("GET", `${every}&since=1-3&wait=1s`);
    expect(polled.body.frames).toMatchObject([
      { event: "bookmark", id: "1-1003" },
      { event: "goodbye", data: { reason: "more" } },
    ]);
    // Parts do not wait, so the tenant's bandwidth is asked before one is given.
    await h.call("PATCH", T, { body: { quotas: { watchBytesPerSecond: 0 } } });
    await h.call("GET", `${T}/usage`);
    const refused = await h.gateway().fetch(h.request("GET", `${every}&since=1-3`));
    expect([refused.status, refused.headers.get("retry-after")]).toEqual([429, "3600"]);
    await refused.body?.cancel();
  });

  test("a stream ends after its time, give or take a fifth, and is resumed", async () => {
    const h = await setup({ ageMs: 60, bookmarkMs: 10 });
    const reader = await subscribe(h, `${N}/watch`);
    let frame = (await reader.next()) as Frame;
    while (frame.event !== "goodbye") frame = (await reader.next()) as Frame;
    expect(frame.data).toEqual({ reason: "age" });
    expect(await reader.next()).toBeNull();
  });

  test("a tenant's watchers leave room for those of others", async () => {
    const h = await setup({ watchersPerTenantMax: 1 });
    await h.tenant("other");
    const first = await subscribe(h, `${N}/watch`);
    expect((await h.call("GET", `${N}/watch`)).body.code).toBe("overloaded");
    await subscribe(h, "/v1/tenants/other/watch");
    await first.cancel();
    await subscribe(h, `${N}/watch`);
  });

  test("Conflux-Min-Revision is waited for before the watch begins", async () => {
    const h = await setup();
    await put(h, "a", 0);
    const reader = await subscribe(h, `${N}/watch`, { headers: { "conflux-min-revision": "2" } });
    expect((await reader.next())?.data.revision).toBe(2);
    const early = await h.call("GET", `${N}/watch?wait=0s`, {
      headers: { "conflux-min-revision": "9" },
    });
    expect([early.status, early.body.code]).toEqual([503, "not-caught-up"]);
  });

  test("one who does not read at all is sent away", async () => {
    const h = await setup({ queueFramesMax: 3, slowMs: 50, bookmarkMs: 40 });
    await put(h, "a", 0);
    const slow = await subscribe(h, `${N}/watch`);
    for (let i = 1; i <= 20; i++) await publish(h, "a", i);
    await new Promise((resolve) => setTimeout(resolve, 250));
    expect(h.gateway().status().watchers).toBe(0);
    let frame = (await slow.next()) as Frame;
    while (frame.event !== "goodbye") frame = (await slow.next()) as Frame;
    expect(frame.data).toEqual({ reason: "slow" });
    expect(await slow.next()).toBeNull();
  });

  test("more watchers than allowed are refused, and one that goes makes room", async () => {
    const h = await setup({ watchersMax: 2 });
    const first = await subscribe(h, `${N}/watch`);
    await subscribe(h, `${T}/watch`);
    const refused = await h.call("GET", `${N}/watch`);
    expect([refused.status, refused.body.code]).toEqual([503, "overloaded"]);
    await first.cancel();
    await subscribe(h, `${N}/watch`);
    expect(h.gateway().status().watchers).toBe(2);
  });
});

describe("long polling", () => {
  const poll = (h: Harness, query: string) => h.call("GET", `${N}/watch?${query}`);

  test("gives the same frames, at once when there are some", async () => {
    const h = await setup();
    await put(h, "a", 1);
    const first = await poll(h, "wait=30s");
    expect(first.body.frames).toMatchObject([
      { event: "sync", id: "1-2", data: { values: { a: { content: "1" } } } },
    ]);
    await publish(h, "a", 2);
    await publish(h, "a", 3);
    const next = await poll(h, "wait=30s&since=1-2");
    expect(next.body.frames.map((frame: Frame) => frame.id)).toEqual(["1-3", "1-4"]);
    expect(next.headers.get("conflux-revision")).toBe("4");
  });

  test("waits for the first commit, else answers a bookmark", async () => {
    const h = await setup();
    await put(h, "a", 1);
    const idle = await poll(h, "wait=20ms&since=1-2");
    expect(idle.body.frames).toEqual([{ event: "bookmark", id: "1-2", data: { revision: 2 } }]);
    const waiting = poll(h, "wait=30s&since=1-2");
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(h.gateway().status().watchers).toBe(1);
    await publish(h, "a", 2);
    expect((await waiting).body.frames).toMatchObject([{ event: "commit", id: "1-3" }]);
    expect(h.gateway().status().watchers).toBe(0);
    expect((await poll(h, "wait=0s&since=now")).body.frames).toMatchObject([{ event: "bookmark" }]);
  });

  test("a chain of polls sees every commit once", async () => {
    const h = await setup();
    let cursor = (await poll(h, "wait=0s&since=now")).body.frames[0].id as string;
    const seen: number[] = [];
    await put(h, "a", 0);
    const writer = (async () => {
      for (let i = 1; i <= 30; i++) {
        await publish(h, "a", i);
        if (i % 3 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
      }
    })();
    while (seen.length < 31) {
      const { frames } = (await poll(h, `wait=1s&since=${cursor}`)).body as { frames: Frame[] };
      for (const frame of frames) {
        if (frame.event === "commit") seen.push(frame.data.changes[0].version as number);
        cursor = frame.id ?? cursor;
      }
    }
    await writer;
    expect(seen).toEqual(Array.from({ length: 31 }, (_, i) => i + 1));
  });
});

describe("a publish that is spread", () => {
  const spread = (h: Harness, name: string, content: unknown, time: string) =>
    h.call("POST", `${N}/configs/${name}/publish?spread=${time}`, { body: { content } });
  const versionOf = (frame: Frame | null): number => frame?.data.changes[0].version as number;

  test("waits for each watcher's moment; who asks is told at once, and what is not spread takes it along", async () => {
    const h = await setup();
    await put(h, "a", 1);
    await put(h, "b", 1);
    const held = await subscribe(h, `${N}/watch`);
    const ofTenant = await subscribe(h, `${T}/watch?history=every`);
    const atOnce = await subscribe(h, `${N}/watch?spread=false`);
    for (const reader of [held, ofTenant, atOnce]) await reader.next();
    await spread(h, "a", 2, "3600s");
    await spread(h, "a", 3, "3600s");
    expect((await atOnce.next())?.data).toMatchObject({ spreadMs: 3_600_000, revision: 4 });
    expect(versionOf(await atOnce.next())).toBe(3);
    // Reads, and who comes now, see it at once.
    expect((await h.call("GET", `${N}/values/a`)).body).toBe(3);
    const fresh = await subscribe(h, `${N}/watch`);
    expect((await fresh.next())?.data.values.a.version).toBe(3);
    const resumed = await subscribe(h, `${N}/watch?since=1-4`);
    expect(versionOf(await resumed.next())).toBe(3);
    await publish(h, "b", 2);
    for (const reader of [held, ofTenant]) {
      const told = [await reader.next(), await reader.next(), await reader.next()];
      expect(told.map((frame) => frame?.id)).toEqual(["1-4", "1-5", "1-6"]);
    }
    for (const reader of [fresh, resumed, atOnce]) expect((await reader.next())?.id).toBe("1-6");
  });

  test("reaches everybody within its time, by stream and by poll", async () => {
    const h = await setup();
    await put(h, "a", 1);
    const readers = [];
    for (let i = 0; i < 20; i++) readers.push(await subscribe(h, `${N}/watch`));
    for (const reader of readers) await reader.next();
    const poll = h.call("GET", `${N}/watch?since=1-2&wait=60s`);
    await spread(h, "a", 2, "300ms");
    await spread(h, "a", 3, "300ms");
    for (const reader of readers) {
      expect(versionOf(await reader.next())).toBe(2);
      expect(versionOf(await reader.next())).toBe(3);
    }
    expect((await poll).body.frames[0]).toMatchObject({ event: "commit", id: "1-3" });
  });

  test("leaves who waits where it is: bookmarks keep the cursor, and a poll's end tells it", async () => {
    const h = await setup({ bookmarkMs: 30 });
    await put(h, "a", 1);
    const held = await subscribe(h, `${N}/watch`);
    await held.next();
    const poll = h.call("GET", `${N}/watch?since=1-2&wait=1s`);
    await spread(h, "a", 2, "3600s");
    for (let i = 0; i < 3; i++)
      expect(await held.next()).toMatchObject({ event: "bookmark", id: "1-2" });
    const { frames } = (await poll).body;
    expect(frames).toMatchObject([{ event: "commit", id: "1-3" }]);
    await publish(h, "a", 3);
    expect(versionOf(await held.nextNews())).toBe(2);
    expect(versionOf(await held.nextNews())).toBe(3);
  });

  test("is a transaction, a release, a rollback or a deletion; a wrong time is refused, and a repeat is one", async () => {
    const h = await setup();
    await put(h, "a", 1);
    const reader = await subscribe(h, `${N}/watch?spread=false`);
    await reader.next();
    const C = `${N}/configs/a`;
    const then = [{ op: "publish", namespace: "app", name: "a", content: "2" }];
    await h.call("POST", `${T}/transactions?spread=500ms`, { body: { then } });
    await h.call("PUT", `${C}/release?spread=2s`, { body: { rules: [], default: 1 } });
    await h.call("POST", `${C}/rollback?spread=3s`);
    for (const time of ["3601s", "5", "-1s", "1m", ""]) {
      const refused = await spread(h, "a", 3, time);
      expect([refused.status, refused.body.errors[0].pointer]).toEqual([400, "/query/spread"]);
    }
    await h.call("DELETE", `${C}?spread=4s`);
    for (const ms of [500, 2_000, 3_000, 4_000])
      expect((await reader.next())?.data.spreadMs).toBe(ms);
    const { revision } = (await h.call("GET", `${T}/usage`)).body;
    const headers = { "idempotency-key": "once" };
    const send = (time: string) => h.call("POST", `${C}/undelete?spread=${time}`, { headers });
    for (let i = 0; i < 2; i++) expect((await send("1s")).status).toBe(200);
    expect((await send("2s")).body.code).toBe("idempotency-mismatch");
    expect((await h.call("GET", `${T}/usage`)).body.revision).toBe(revision + 1);
  });

  test("and quotas of bandwidth wait for the level of the cluster at which every replica knows them", async () => {
    const h = await setup();
    await put(h, "a", 1);
    (h.cluster.service("n1") as { semantics: number }).semantics = 7;
    const quotas = { watchBytesPerSecond: 1 };
    for (const refused of [
      await spread(h, "a", 2, "30s"),
      await h.call("PATCH", T, { body: { quotas } }),
      await h.call("POST", "/v1/tenants", { body: { id: "new", quotas } }),
    ]) {
      expect([refused.status, refused.body.code]).toEqual([409, "conflict"]);
      expect(refused.body.detail).toContain("`conflux cluster upgrade`");
    }
    expect((await spread(h, "a", 2, "0s")).status).toBe(201);
  });
});

describe("the bandwidth of a tenant's watches", () => {
  const limit = async (h: Harness, watchBytesPerSecond: number | null): Promise<void> => {
    await h.call("PATCH", T, { body: { quotas: { watchBytesPerSecond } } });
    // Here the tenant follows its directory's row when it is asked for.
    await h.call("GET", `${T}/usage`);
  };
  const metric = async (h: Harness, name: string): Promise<number> => {
    const { text } = await h.call("GET", "/metrics", { token: null });
    return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1]);
  };

  test("holds up its own streams only, and then tells the latest of each, or every revision to who wants it", async () => {
    const h = await setup();
    await h.tenant("other");
    await put(h, "a", 0);
    await put(h, "b", 0);
    const state = await subscribe(h, `${N}/watch`);
    const every = await subscribe(h, `${T}/watch?history=every&namespace=app`);
    const other = await subscribe(h, "/v1/tenants/other/watch?since=now");
    for (const reader of [state, every, other]) await reader.next();
    await limit(h, 0);
    for (let i = 1; i <= 6; i++) await publish(h, "a", i);
    await publish(h, "b", 1);
    await h.call("PUT", "/v1/tenants/other/namespaces/app/configs/x", { body: { content: 1 } });
    expect((await other.nextNews())?.event).toBe("commit");
    expect(await metric(h, "conflux_watches_held")).toBeGreaterThan(0);
    const late = await subscribe(h, `${N}/watch`);
    const polled = await h.call("GET", `${N}/watch?wait=0s`);
    expect([polled.status, polled.body.code]).toEqual([429, "too-many-requests"]);
    expect(Number(polled.headers.get("retry-after"))).toBeGreaterThan(0);

    await limit(h, null);
    const versions: number[] = [];
    for (let i = 1; i <= 7; i++)
      versions.push((await every.nextNews())?.data.changes[0].version as number);
    expect(versions).toEqual([2, 3, 4, 5, 6, 7, 2]);
    expect((await late.next())?.data.values).toMatchObject({
      a: { version: 7 },
      b: { version: 2 },
    });
    const told = (await state.nextNews()) as Frame;
    expect(told.data).toMatchObject({
      coalesced: true,
      changes: [
        { name: "a", version: 7 },
        { name: "b", version: 2 },
      ],
    });
    await publish(h, "a", 7);
    for (const reader of [state, late])
      expect((await reader.nextNews())?.data.changes).toMatchObject([{ name: "a", version: 8 }]);
    expect(await metric(h, "conflux_watches_held")).toBe(0);
    await h.gateway().recordUsage();
    const usage = (await h.call("GET", `${T}/usage`)).body;
    expect(usage.watchBytes).toBeGreaterThan(1_000);
    expect(usage.heldWatches).toBeGreaterThanOrEqual(2);
    expect(usage.quotas.watchBytesPerSecond).toBe(1_000_000_000_000);
  });

  test("lets a poll through once it was raised, also when nobody watched meanwhile", async () => {
    const h = await setup({ bookmarkMs: 10, lingerMs: 0 });
    await put(h, "a", 0);
    const poll = () => h.call("GET", `${N}/watch?wait=0s`);
    await limit(h, 0);
    expect((await poll()).status).toBe(200);
    expect((await poll()).status).toBe(429);
    const { listeners } = h.cluster.tenants.get("acme") as SoloTenant;
    while (listeners.size > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await limit(h, null);
    expect((await poll()).status).toBe(200);
  });

  test("lets little wait of what one missed who wants every revision", async () => {
    const h = await setup();
    await put(h, "big", { text: "x".repeat(60_000) });
    await put(h, "bigger", { text: "x".repeat(60_000) });
    await put(h, "small", 0);
    await limit(h, 0);
    const since = (cursor: string): Promise<Response> =>
      Promise.resolve(
        h.gateway().fetch(h.request("GET", `${T}/watch?history=every&since=${cursor}`)),
      );
    expect((await since("1-1")).status).toBe(429);
    const waits = new FrameReader(await since("1-3"));
    readers.push(waits);
    await limit(h, null);
    expect((await waits.nextNews())?.data.changes[0].name).toBe("small");
  });

  test("leaves who waits its signs of life, and its end", async () => {
    const h = await setup({ bookmarkMs: 30, slowMs: 50 });
    await put(h, "a", 0);
    const held = await subscribe(h, `${N}/watch`);
    await held.next();
    await limit(h, 0);
    for (let i = 1; i <= 3; i++) await publish(h, "a", i);
    const late = await subscribe(h, `${N}/watch`);
    const sync = late.next();
    let frame = (await held.next()) as Frame;
    let cursor = frame.id;
    // After what may have gone on the bucket's few bytes: the same cursor again and again, and no goodbye.
    for (let same = 0; same < 5; frame = (await held.next()) as Frame) {
      expect(frame.event).toBe("bookmark");
      same = frame.id === cursor ? same + 1 : 0;
      cursor = frame.id;
    }
    const { token, id } = await h.key("acme", "client");
    const mine = await subscribe(h, `${N}/watch`, { token });
    await h.call("DELETE", `${T}/keys/${id}`);
    expect((await mine.next())?.data).toEqual({ reason: "unauthorized" });
    await limit(h, null);
    expect((await sync)?.event).toBe("sync");
    expect(late.comments).toContain(": waiting");
  });
});
