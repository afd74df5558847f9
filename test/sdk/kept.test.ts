/** What the client serves when no server is heard, and what it refuses to serve. */
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { fileCache } from "../../src/sdk/file.ts";
import { Conflux, differences, storageCache } from "../../src/sdk/mod.ts";
import type {
  Bootstrap,
  Cache,
  Change,
  ConfluxOptions,
  StandardSchema,
} from "../../src/sdk/mod.ts";
import { TestConflux } from "../../src/sdk/testing.ts";
import { commit, Peer, streamHead, sync } from "./peer.ts";
import { Served, timing, until } from "./served.ts";

const quick = { ...timing, gatherMs: 5 };

function client(options: Partial<ConfluxOptions>): Conflux {
  const conflux = new Conflux({ tenant: "acme", timing: quick, ...options });
  onTestFinished(() => conflux.close());
  return conflux;
}

/** A number that a config may have; what a schema library would make. */
const positive: StandardSchema<{ readonly max: number }> = {
  "~standard": {
    version: 1,
    vendor: "test",
    validate: (value) => {
      const { max } = value as { max?: unknown };
      return typeof max === "number" && max > 0
        ? { value: { max } }
        : { issues: [{ message: "max must be positive" }] };
    },
  },
};

const bootstrap: Bootstrap = {
  values: { limits: { version: 3, hash: "h3", format: "json", content: '{"max":3}' } },
  at: Date.now() - 60_000,
};

async function folder(): Promise<string> {
  const made = await mkdtemp(path.join(tmpdir(), "conflux-sdk-"));
  onTestFinished(() => rm(made, { recursive: true }));
  return made;
}

describe("offline", () => {
  test("serves the bootstrap, then defaults, and says so", async () => {
    const conflux = client({ offline: true, bootstrap, defaults: { other: 1 } });
    expect(await conflux.ready()).toBe("file");
    const { staleMs, ...entry } = conflux.getEntry("limits");
    expect(entry).toEqual({
      name: "limits",
      value: { max: 3 },
      version: 3,
      hash: "h3",
      format: "json",
      source: "file",
      revision: 0,
    });
    expect(staleMs).toBeGreaterThanOrEqual(60_000);
    expect(conflux.getEntry("other")).toMatchObject({ value: 1, source: "default", staleMs: null });
    expect(conflux.status.state).toBe("offline");
  });

  test("without anything it is ready with defaults at once", async () => {
    const conflux = client({ offline: true });
    expect(await conflux.ready({ timeoutMs: 60_000 })).toBe("default");
    expect(conflux.get("limits", 7)).toBe(7);
  });
});

describe("the cache", () => {
  test("serves the last known good values when nobody answers, from the first moment", async () => {
    const file = path.join(await folder(), "made", "conflux.json");
    await using peer = await Peer.start((socket) =>
      socket.write(streamHead + sync("1-4", { limits: '{"max":4}' })),
    );
    const first = client({ url: peer.url, cache: fileCache(file) });
    expect(await first.ready()).toBe("live");
    await first.close();
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    peer.cut();
    await using silent = await Peer.start(() => {});
    const second = client({ url: silent.url, cache: fileCache(file), bootstrap });
    expect(await second.ready({ timeoutMs: 50 })).toBe("cache");
    const entry = second.getEntry("limits");
    expect(entry).toMatchObject({ value: { max: 4 }, source: "cache" });
    expect(entry.staleMs).toBeLessThan(60_000);
  });

  test("is resumed from: the server tells only what changed since", async () => {
    const stored = new Map<string, string>();
    const storage = {
      getItem: (key: string) => stored.get(key) ?? null,
      setItem: (key: string, text: string) => void stored.set(key, text),
    };
    await using peer = await Peer.start((socket, _, number) =>
      socket.write(
        streamHead + (number === 1 ? sync("1-4", { a: "1", b: "1" }) : commit("1-5", { b: "2" })),
      ),
    );
    const first = client({ url: peer.url, cache: storageCache(storage) });
    await first.ready();
    await first.close();
    const second = client({ url: peer.url, cache: storageCache(storage) });
    // A storage that answers at once is served at once.
    expect(second.get("a")).toBe(1);
    expect(second.getEntry("a").source).toBe("cache");
    const changes: Change[] = [];
    second.onChange((change) => changes.push(change));
    expect(await second.ready()).toBe("live");
    expect(peer.requests[1]?.headers["last-event-id"]).toBe("1-4");
    expect([second.get("a"), second.get("b"), second.getEntry("a").source]).toEqual([1, 2, "live"]);
    expect(changes.map(({ name, old, new: now }) => [name, old, now])).toEqual([["b", 1, 2]]);
  });

  test("of another server's history is replaced, also by an older revision", async () => {
    const kept = JSON.stringify({ ...bootstrap, cursor: "1-900" });
    await using peer = await Peer.start((socket) =>
      socket.write(streamHead + sync("1-2", { limits: '{"max":1}' })),
    );
    const conflux = client({ url: peer.url, cache: { load: () => kept, save: () => {} } });
    expect(await conflux.ready()).toBe("live");
    expect(conflux.get("limits")).toEqual({ max: 1 });
  });

  test.each<[string, Cache]>([
    ["is broken", { load: () => "{", save: () => {} }],
    [
      "throws",
      {
        load: () => {
          throw new Error("no storage");
        },
        save: () => {},
      },
    ],
    [
      "rejects",
      {
        load: () => Promise.reject(new Error("disk")),
        save: () => Promise.reject(new Error("disk")),
      },
    ],
    ["never answers", { load: () => new Promise(() => {}), save: () => {} }],
    [
      "holds another tenant's values",
      { load: () => JSON.stringify({ of: "/other", ...bootstrap }), save: () => {} },
    ],
  ])("that %s does not keep the client from its work", async (_, cache) => {
    const errors: unknown[] = [];
    await using peer = await Peer.start((socket) =>
      socket.write(streamHead + sync("1-2", { a: "1" })),
    );
    const conflux = client({ url: peer.url, cache, onError: (error) => errors.push(error) });
    expect(conflux.get("limits")).toBeUndefined();
    expect(await conflux.ready()).toBe("live");
    await conflux.close();
    expect(errors.every((error) => /cache/.test(String(error)))).toBe(true);
  });

  test("is outweighed by a bootstrap that is newer", async () => {
    const cache = { load: () => JSON.stringify({ values: {}, at: 1 }), save: () => {} };
    const conflux = client({ offline: true, bootstrap, cache });
    expect(await conflux.ready()).toBe("file");
    expect(conflux.get("limits")).toEqual({ max: 3 });
  });

  test("a refused key is told only when there is nothing to serve", async () => {
    const served = await Served.start();
    const conflux = served.conflux({ token: "cfx_wrong", bootstrap });
    expect(await conflux.ready()).toBe("file");
    expect(conflux.status).toMatchObject({ state: "refused", problem: { status: 401 } });
  });
});

test("snapshot() begins another client where this one was", async () => {
  const served = await Served.start();
  await served.put("limits", { max: 1 });
  const conflux = served.conflux();
  await conflux.ready();
  const text = JSON.stringify(conflux.snapshot());
  const file = path.join(await folder(), "bootstrap.json");
  await writeFile(file, text);
  const other = served.conflux({ bootstrap: await readFile(file, "utf8") });
  expect(other.getEntry("limits")).toMatchObject({ value: { max: 1 }, source: "file" });
  expect(await other.ready()).toBe("live");
  expect(other.status.revision).toBe(conflux.status.revision);
  // What `GET …/values` answers will do as well.
  const values = await served.admin.values({ tenant: "acme", namespace: "default" });
  const third = client({ offline: true, bootstrap: values as Bootstrap });
  expect(third.get("limits")).toEqual({ max: 1 });
});

describe("schemas", () => {
  test("a value that does not fit is not served: the last good one stays", async () => {
    const served = await Served.start();
    await served.put("limits", { max: 1 });
    const errors: Error[] = [];
    const { token } = served.clientKey;
    const conflux = new Conflux({
      url: served.urls,
      token,
      tenant: "acme",
      timing: quick,
      schemas: { limits: positive },
      instance: "pod-7",
      onError: (error) => errors.push(error as Error),
    });
    onTestFinished(() => conflux.close());
    await conflux.ready();
    const max: number | undefined = conflux.get("limits")?.max;
    expect(max).toBe(1);
    const changes: Change[] = [];
    conflux.onChange((change) => changes.push(change));
    await served.publish("limits", { max: -1 });
    await until(() => errors.length > 0);
    expect(errors[0]?.message).toBe(
      "Cannot use version 2 of limits, version 1 stays: max must be positive",
    );
    expect(conflux.getEntry("limits")).toMatchObject({ value: { max: 1 }, version: 1 });
    await served.publish("limits", { max: 3 });
    await until(() => changes.length > 0);
    expect(changes).toMatchObject([{ old: { max: 1 }, new: { max: 3 } }]);
    expect(changes[0]?.diff).toEqual([{ pointer: "/max", old: 1, new: 3 }]);
    // And the author can see who took what.
    const feedback = async () => {
      // Asked in this process: without a pause the client would never get its turn.
      await new Promise((resolve) => setTimeout(resolve, 2));
      return served.harness.call(
        "GET",
        "/v1/tenants/acme/namespaces/default/configs/limits/feedback",
      );
    };
    let seen = await feedback();
    while (seen.body.versions[0]?.version !== 3) seen = await feedback();
    expect(seen.body.versions).toMatchObject([{ version: 3, applied: 1, rejected: 0 }]);
    conflux.reject("limits", "pool did not start");
    while (seen.body.versions[0].rejected !== 1) seen = await feedback();
    expect(seen.body.versions[0].rejections).toMatchObject([
      { instance: "pod-7", reason: "pool did not start" },
    ]);
  });

  test("that answer by a promise are refused", async () => {
    const errors: Error[] = [];
    const schema: StandardSchema<number> = {
      "~standard": { version: 1, vendor: "test", validate: async (value) => ({ value }) },
    };
    const conflux = new Conflux({
      tenant: "acme",
      offline: true,
      bootstrap,
      schemas: { limits: schema },
      onError: (error) => errors.push(error as Error),
    });
    expect(conflux.get("limits", 5)).toBe(5);
    expect(errors[0]?.message).toContain("must answer at once");
  });
});

test("differences() names each place that differs", () => {
  const old = { a: 1, "b/c": { d: [1, 2] }, gone: true, same: { x: 1 } };
  const now = { a: 1, "b/c": { d: [1, 3, 4] }, same: { x: 1 }, came: null };
  expect(differences(old, now)).toEqual([
    { pointer: "/b~1c/d/1", old: 2, new: 3 },
    { pointer: "/b~1c/d/2", old: undefined, new: 4 },
    { pointer: "/gone", old: true, new: undefined },
    { pointer: "/came", old: undefined, new: null },
  ]);
  expect(differences(1, [1])).toEqual([{ pointer: "", old: 1, new: [1] }]);
});

describe("TestConflux", () => {
  test("serves what the test sets, at once and typed", async () => {
    const conflux = new TestConflux<{ limits: { max: number }; name: string }>({
      limits: { max: 1 },
    });
    const changes: unknown[] = [];
    conflux.onChange(({ name, new: now, revision }) => changes.push([name, now, revision]));
    const iterator = conflux.watch({ name: "name" });
    expect(await conflux.ready()).toBe("live");
    expect(conflux.get("limits")?.max).toBe(1);
    conflux.setAll({ limits: { max: 2 }, name: "x" });
    expect(conflux.get("limits", { max: 0 }).max).toBe(2);
    conflux.delete("name");
    conflux.set("name", "y");
    expect(changes).toEqual([
      ["limits", { max: 2 }, 3],
      ["name", "x", 3],
      ["name", undefined, 4],
      ["name", "y", 5],
    ]);
    expect((await iterator.next()).value).toMatchObject({ name: "name", new: "y" });
    // @ts-expect-error: there is no such config
    expect(conflux.get("nmae")).toBeUndefined();
    await conflux.close();
  });
});
