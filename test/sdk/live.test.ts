/** Both clients against the real gateway over real HTTP. */
import { connect, createServer } from "node:net";
import type { Socket } from "node:net";
import { describe, expect, onTestFinished, test } from "vitest";
import { Prng } from "../../src/lib/prng.ts";
import { Admin, Problem, Unreachable } from "../../src/sdk/admin.ts";
import type { Change } from "../../src/sdk/mod.ts";
import { rootToken } from "../gateway/solo_service.ts";
import { Served, timing, until, where } from "./served.ts";

async function next(changes: AsyncIterator<Change>): Promise<[string, unknown, unknown]> {
  const { done, value } = await changes.next();
  if (done === true) throw new Error("The changes have ended");
  return [value.name, value.old, value.new];
}

describe("Conflux", () => {
  test("serves what these labels get, and follows it", async () => {
    const served = await Served.start();
    await served.put("limits", { max: 1 });
    await served.admin.createVersion(where, "limits", { content: '{"max":9}' });
    const rule = { id: "gold", match: { tier: "gold" }, version: 2 };
    await served.admin.putRelease(where, "limits", { rules: [rule], default: 1 });

    const plain = served.conflux();
    const gold = served.conflux({ labels: { tier: "gold" } });
    expect(await Promise.all([plain.ready(), gold.ready()])).toEqual(["live", "live"]);
    expect(plain.getEntry("limits")).toMatchObject({
      value: { max: 1 },
      version: 1,
      format: "json",
    });
    expect(gold.get("limits")).toEqual({ max: 9 });
    expect(plain.getEntry("limits").revision).toBe(plain.status.revision);

    const changes = plain.watch();
    const goldChanges = gold.watch();
    await served.publish("limits", { max: 2 });
    expect(await next(changes)).toEqual(["limits", { max: 1 }, { max: 2 }]);
    // Gold clients keep their version: nothing changed for them.
    await served.put("banner", "hello");
    expect(await next(goldChanges)).toEqual(["banner", undefined, "hello"]);
    expect(await next(changes)).toEqual(["banner", undefined, "hello"]);
    await served.admin.deleteConfig(where, "limits");
    expect(await next(changes)).toEqual(["limits", { max: 2 }, undefined]);
    expect(plain.get("limits", "none")).toBe("none");
    await served.admin.undeleteConfig(where, "limits");
    expect(await next(changes)).toEqual(["limits", undefined, { max: 2 }]);
    expect(plain.names().toSorted()).toEqual(["banner", "limits"]);
  });

  test("may watch what does not exist yet", async () => {
    const served = await Served.start();
    const conflux = served.conflux({ namespace: "later", name: "a" });
    expect(await conflux.ready()).toBe("live");
    const changes = conflux.watch();
    const later = { tenant: "acme", namespace: "later" };
    await served.admin.putConfig(later, "b", { format: "text", content: "other" });
    await served.admin.putConfig(later, "a", { format: "text", content: "x" });
    expect(await next(changes)).toEqual(["a", undefined, "x"]);
    expect(conflux.names()).toEqual(["a"]);
  });

  test("is told of what is deleted as a change, on the same connection", async () => {
    const served = await Served.start();
    await served.put("a", 1);
    const conflux = served.conflux();
    await conflux.ready();
    const states: string[] = [];
    conflux.onChange(() => states.push(conflux.status.state));
    await served.admin.deleteConfig(where, "a");
    await until(() => states.length > 0);
    expect([states, conflux.get("a"), conflux.status.problem]).toEqual([["live"], undefined, null]);
  });

  test("gets values that are too large for frames, whole and with the rest of their revision", async () => {
    const served = await Served.start();
    const large = (sign: string): string => sign.repeat(200_000);
    await served.put("large", large("a"));
    await served.put("small", 1);
    const conflux = served.conflux();
    expect([await conflux.ready(), conflux.status.state]).toEqual(["live", "live"]);
    expect(conflux.get("large")).toBe(large("a"));
    const seen: unknown[] = [];
    conflux.onChange(() =>
      seen.push([conflux.get<string>("large")?.slice(0, 1), conflux.get("small")]),
    );
    const target = { namespace: "default" };
    await served.admin.transaction("acme", {
      then: [
        { op: "publish", ...target, name: "small", content: "2" },
        { op: "publish", ...target, name: "large", content: JSON.stringify(large("b")) },
      ],
    });
    await until(() => seen.length === 2);
    expect(seen).toEqual([
      ["b", 2],
      ["b", 2],
    ]);
  });

  test("is refused with a wrong key, and told when its key is taken away", async () => {
    const served = await Served.start();
    await expect(served.conflux({ token: "cfx_wrong" }).ready()).rejects.toMatchObject({
      code: "unauthorized",
      status: 401,
    });
    await expect(served.conflux({ tenant: "other" }).ready()).rejects.toMatchObject({
      code: "forbidden",
    });
    await served.put("a", 1);
    const conflux = served.conflux();
    await conflux.ready();
    await served.admin.deleteKey("acme", served.clientKey.id);
    await until(() => conflux.status.state === "refused");
    expect(conflux.status.problem).toMatchObject({ code: "unauthorized" });
    expect(conflux.get("a")).toBe(1);
    expect(await conflux.ready()).toBe("live");
  });

  test("polls the same frames where streams are swallowed", async () => {
    const served = await Served.start();
    await served.put("a", 1);
    const conflux = served.conflux({
      timing: { ...timing, firstBytesMs: 50 },
      fetch: (url, init) => {
        if (!/\/watch(\?(?!wait=)|$)/.test(url)) return fetch(url, init);
        const headers = { "content-type": "text/event-stream" };
        return Promise.resolve(new Response(new ReadableStream(), { headers }));
      },
    });
    expect(await conflux.ready()).toBe("live");
    expect(conflux.status.via).toBe("poll");
    const changes = conflux.watch();
    await served.publish("a", 2);
    expect(await next(changes)).toEqual(["a", 1, 2]);
    await served.publish("a", 3);
    expect(await next(changes)).toEqual(["a", 2, 3]);
  });

  test("goes to another node when one says goodbye", async () => {
    const served = await Served.start(["n1", "n2", "n3"]);
    await served.put("a", 1);
    const conflux = served.conflux();
    await conflux.ready();
    const changes = conflux.watch();
    served.harness.gateway("n1").close("stopping");
    await served.publish("a", 2);
    expect(await next(changes)).toEqual(["a", 1, 2]);
  });

  // Pairs are written together; connections are cut at random places, also within frames.
  test.each([1, 2, 3])(
    "misses nothing and sees no revision by halves over cut connections (seed %i)",
    async (seed) => {
      const prng = new Prng(seed);
      const served = await Served.start();
      await served.put("left", 0);
      await served.put("right", 0);
      const sockets = new Set<Socket>();
      const target = new URL(served.url);
      const proxy = createServer((near) => {
        const far = connect(Number(target.port), target.hostname);
        let left = prng.between(200, 6_000);
        // Ended, not destroyed: a reset would also take away what the client has received and not read.
        const end = (): void => {
          near.end();
          far.destroy();
        };
        for (const socket of [near, far]) {
          sockets.add(socket);
          socket.on("error", end);
          socket.on("close", end);
        }
        near.pipe(far);
        far.on("data", (bytes: Buffer) => {
          if (left <= 0) return;
          near.write(bytes.subarray(0, left));
          left -= bytes.length;
          if (left <= 0) end();
        });
      });
      await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
      onTestFinished(() => {
        for (const socket of sockets) socket.destroy();
        proxy.close();
      });
      const { port } = proxy.address() as { port: number };
      const conflux = served.conflux({ url: `http://127.0.0.1:${port}` });
      expect(await conflux.ready()).toBe("live");

      const last = 300;
      const told = { left: 0, right: 0 };
      let revision = 0;
      const wrong: unknown[] = [];
      conflux.onChange((change) => {
        const name = change.name as "left" | "right";
        if (change.old !== told[name] || change.revision < revision) wrong.push(change);
        if (conflux.get("left") !== conflux.get("right")) wrong.push(change);
        told[name] = change.new as number;
        revision = change.revision;
      });
      for (let n = 1; n <= last; n += 1) {
        const content = String(n);
        await served.admin.transaction("acme", {
          then: [
            { op: "publish", namespace: "default", name: "left", content },
            { op: "publish", namespace: "default", name: "right", content },
          ],
        });
      }
      await until(() => conflux.get("left") === last);
      expect(wrong).toEqual([]);
      expect(told).toEqual({ left: last, right: last });
      expect(sockets.size).toBeGreaterThan(4);
    },
    30_000,
  );
});

describe("Admin", () => {
  test("gives the server's problems as they are", async () => {
    const served = await Served.start();
    const missing = served.admin.config(where, "nope");
    await expect(missing).rejects.toBeInstanceOf(Problem);
    await expect(missing).rejects.toMatchObject({ code: "not-found", status: 404 });
    await expect(missing).rejects.toHaveProperty("requestId", expect.stringMatching(/.+/));
    await expect(
      served.admin.putConfig(where, "a", { format: "json", content: "{" }),
    ).rejects.toMatchObject({ code: "invalid-content", errors: [{ pointer: "/content" }] });
    const stale = served.admin.putConfig(where, "a", {}, { ifMatch: '"7"' });
    await expect(stale).rejects.toMatchObject({ code: "precondition-failed" });
  });

  test("repeats a change whose answer was lost without doing it twice", async () => {
    const served = await Served.start();
    await served.put("a", 0);
    let lost = 0;
    const admin = new Admin({
      url: served.url,
      token: served.adminKey,
      fetch: async (url, init) => {
        const response = await fetch(url, init);
        if (init.method !== "GET" && lost < 2) {
          lost += 1;
          await response.text();
          if (lost === 1) throw new TypeError("connection was reset");
          return new Response("", { status: 504 });
        }
        return response;
      },
    });
    const done = await admin.publish(where, "a", { content: "1" });
    expect(lost).toBe(2);
    expect(done.version).toBe(2);
    expect(await admin.history(where, "a")).toHaveLength(2);
  });

  test("does not repeat what would be answered the same again, and tells of what it repeats", async () => {
    const served = await Served.start();
    await served.put("a", 0);
    let asked = 0;
    let busy = 1;
    const retried: Error[] = [];
    const admin = new Admin({
      url: served.url,
      token: served.adminKey,
      onRetry: (error) => retried.push(error),
      fetch: (url, init) => {
        asked += 1;
        if (busy-- > 0) return Promise.resolve(new Response("", { status: 503 }));
        return fetch(url, init);
      },
    });
    // The server has no keys for secrets, and will not have any in a second either.
    const secret = { format: "text", content: "x", secret: true } as const;
    await expect(admin.putConfig(where, "s", secret)).rejects.toMatchObject({
      code: "secrets-unavailable",
      status: 503,
    });
    expect(asked).toBe(2);
    expect(retried).toMatchObject([{ code: "overloaded" }]);
  });

  test("believes a node that says why over one that is away", async () => {
    const busy = { code: "no-quorum", title: "Too few replicas answer", detail: "1 of 3" };
    const asking = (...urls: string[]): Promise<unknown> =>
      new Admin({
        url: urls,
        unreachableMs: 0,
        totalMs: 300,
        fetch: (url) =>
          url.startsWith("http://away.test")
            ? Promise.reject(new TypeError("connection refused"))
            : Promise.resolve(
                Response.json(busy, { status: 503, headers: { "retry-after": "0" } }),
              ),
      }).tenants();
    await expect(asking("http://away.test")).rejects.toBeInstanceOf(Unreachable);
    await expect(asking("http://there.test", "http://away.test")).rejects.toMatchObject({
      code: busy.code,
    });
  });

  test("lists over pages", async () => {
    const served = await Served.start();
    const names = Array.from({ length: 1_050 }, (_, i) => `c${String(i).padStart(4, "0")}`);
    for (let at = 0; at < names.length; at += 200)
      await served.admin.transaction("acme", {
        then: names.slice(at, at + 200).map((name) => ({
          op: "config.put" as const,
          namespace: "default",
          name,
          format: "text" as const,
          content: name,
        })),
      });
    expect((await served.admin.configs(where)).map(({ name }) => name)).toEqual(names);
  });

  test("watches all changes of a tenant, over a lost connection", async () => {
    const served = await Served.start();
    let streams = 0;
    const stop = new AbortController();
    const cutters: AbortController[] = [];
    const admin = new Admin({
      url: served.url,
      token: served.adminKey,
      fetch: (url, init) => {
        if (url.includes("/watch")) streams += 1;
        const cutter = new AbortController();
        cutters.push(cutter);
        const signal = AbortSignal.any([init.signal as AbortSignal, cutter.signal]);
        return fetch(url, { ...init, signal });
      },
    });
    const frames = admin.watch("acme", { signal: stop.signal });
    expect((await frames.next()).value).toMatchObject({ event: "sync" });
    await served.put("a", 1);
    let frame = (await frames.next()).value;
    while (frame?.event === "bookmark") frame = (await frames.next()).value;
    expect(frame).toMatchObject({ event: "commit", data: { changes: [{ name: "a" }, {}, {}] } });
    cutters.at(-1)?.abort();
    await served.publish("a", 2);
    frame = (await frames.next()).value;
    while (frame?.event === "bookmark") frame = (await frames.next()).value;
    expect(frame).toMatchObject({ event: "commit" });
    expect(streams).toBe(2);
    stop.abort();
    expect((await frames.next()).done).toBe(true);
  });

  test("manages tenants and keys", async () => {
    const served = await Served.start();
    const root = new Admin({ url: served.url, token: rootToken });
    const { key } = await root.createTenant({ id: "shop", replicas: 1, description: "A shop" });
    expect((await root.tenants()).map(({ id }) => id)).toEqual(["acme", "shop"]);
    const shop = new Admin({ url: served.url, token: key.token });
    const made = await shop.createKey("shop", { kind: "read", namespaces: ["x"] });
    expect((await shop.keys("shop")).map(({ id }) => id).toSorted()).toEqual(
      [key.id, made.id].toSorted(),
    );
    await shop.deleteKey("shop", made.id);
    expect((await shop.usage("shop")).keys).toBe(1);
    await root.deleteTenant("shop");
    await root.undeleteTenant("shop");
    await root.deleteTenant("shop", { purge: true });
    await expect(root.tenant("shop")).rejects.toMatchObject({ code: "not-found" });
  });
});
