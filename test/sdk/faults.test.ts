/** The live client against peers and networks that misbehave. */
import { createHash } from "node:crypto";
import { describe, expect, onTestFinished, test } from "vitest";
import { Conflux } from "../../src/sdk/mod.ts";
import type { Change, ConfluxOptions } from "../../src/sdk/mod.ts";
import {
  answer,
  bookmark,
  commit,
  goodbye,
  Peer,
  polled,
  problem,
  streamHead,
  sync,
} from "./peer.ts";

const timing = {
  backoffBaseMs: 5,
  backoffCapMs: 40,
  firstBytesMs: 150,
  idleMs: 300,
  pollWaitMs: 1000,
  pollingMs: 400,
  refusedMs: 60_000,
};

function client(url: string | string[], more: Partial<ConfluxOptions> = {}): Conflux {
  const conflux = new Conflux({ url, token: "t", tenant: "acme", timing, ...more });
  onTestFinished(() => conflux.close());
  return conflux;
}

/** Collects changes until `count` are there. */
async function changes(
  iterator: AsyncIterableIterator<Change>,
  count: number,
): Promise<[string, unknown, unknown, number][]> {
  const list: [string, unknown, unknown, number][] = [];
  for await (const change of iterator) {
    list.push([change.name, change.old, change.new, change.revision]);
    if (list.length === count) break;
  }
  return list;
}

/** Waits for something that becomes true within the test's time. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}

describe("ready()", () => {
  test("gives `default` in time when nobody answers, and goes on trying", async () => {
    let open = false;
    let cut = (): void => {};
    await using peer = await Peer.start((socket) => {
      if (open) socket.write(streamHead + sync("1-1", { a: "1" }));
      else socket.destroy();
      cut = () => socket.destroy();
    });
    const told: unknown[] = [];
    const conflux = client(peer.url, { defaults: { a: 0 }, onError: (error) => told.push(error) });
    expect(await conflux.ready({ timeoutMs: 60 })).toBe("default");
    expect(conflux.get("a")).toBe(0);
    expect(conflux.getEntry("a")).toMatchObject({ source: "default", version: null, revision: 0 });
    expect(conflux.get("b", 7)).toBe(7);
    expect(conflux.status).toMatchObject({ state: "connecting" });
    await until(() => conflux.status.problem !== null);
    expect(conflux.status.problem?.message).toMatch(/Cannot reach/);
    await until(() => peer.requests.length >= 3);
    // Once, however often it is tried.
    expect(told.map(String)).toEqual([expect.stringMatching(/Cannot reach/)]);
    open = true;
    expect(await conflux.ready()).toBe("live");
    expect(conflux.getEntry("a")).toMatchObject({ value: 1, source: "live", revision: 1 });
    expect(conflux.status).toMatchObject({ state: "live", problem: null });
    open = false;
    cut();
    await until(() => conflux.status.problem !== null);
    expect(told).toHaveLength(1);
  });

  test("tells that nobody answers, once, also when the first attempt only fell silent", async () => {
    let attempts = 0;
    await using peer = await Peer.start((socket) => {
      attempts += 1;
      if (attempts > 1) socket.destroy();
    });
    const told: unknown[] = [];
    client(peer.url, { onError: (error) => told.push(error) });
    await until(() => attempts >= 4);
    expect(told.map(String)).toEqual([expect.stringMatching(/Cannot reach/)]);
  });

  test("says what is wrong where something else answers", async () => {
    await using peer = await Peer.start((socket) =>
      socket.end("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nNope"),
    );
    const told: unknown[] = [];
    const conflux = client(peer.url, {
      labels: { plan: "gold" },
      onError: (error) => told.push(error),
    });
    await until(() => told.length > 0);
    expect(String(told[0])).toContain(
      `HTTP 404 of ${peer.url}/v1/tenants/acme/namespaces/default/watch, without a reason: is this Conflux?`,
    );
    expect(await conflux.ready({ timeoutMs: 10 })).toBe("default");
  });

  test("rejects with the problem when the key is refused, and does not hammer", async () => {
    await using peer = await Peer.start((socket) => socket.end(problem(401, "unauthorized")));
    const told: unknown[] = [];
    const conflux = client(peer.url, { onError: (error) => told.push(error) });
    await expect(conflux.ready()).rejects.toMatchObject({
      code: "unauthorized",
      requestId: "r1",
      status: 401,
    });
    await expect(conflux.ready()).rejects.toMatchObject({ code: "unauthorized" });
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(peer.requests).toHaveLength(1);
    expect(told).toMatchObject([{ code: "unauthorized" }]);
    expect(conflux.status.state).toBe("refused");
  });

  test("gives `default` when closed meanwhile", async () => {
    await using peer = await Peer.start(() => undefined);
    const conflux = client(peer.url);
    const ready = conflux.ready();
    await conflux.close();
    expect(await ready).toBe("default");
    expect(conflux.status.state).toBe("closed");
  });
});

describe("the stream", () => {
  test("that is cut within a frame is resumed by cursor; nothing is lost, nothing comes twice", async () => {
    const second = commit("1-2", { a: "2", b: "1" });
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1) {
        socket.write(streamHead + sync("1-1", { a: "1" }) + second.slice(0, second.length - 20));
        setTimeout(() => socket.destroy(), 20);
      } else {
        // A server that repeats what was seen.
        socket.write(streamHead + commit("1-1", { a: "0" }) + second + commit("1-3", { a: null }));
      }
    });
    const conflux = client(peer.url, { labels: { region: "eu" } });
    expect(await changes(conflux.watch(), 4)).toEqual([
      ["a", undefined, 1, 1],
      ["a", 1, 2, 2],
      ["b", undefined, 1, 2],
      ["a", 2, undefined, 3],
    ]);
    expect(peer.requests[0]).toMatchObject({
      method: "GET",
      url: "/v1/tenants/acme/namespaces/default/watch?label.region=eu",
      headers: { authorization: "Bearer t", accept: "text/event-stream" },
    });
    expect(peer.requests[0]?.headers["last-event-id"]).toBeUndefined();
    expect(peer.requests[1]?.headers["last-event-id"]).toBe("1-1");
  });

  test("may come byte by byte", async () => {
    const text = sync("1-1", { a: '"ä😀"' }) + commit("1-2", { a: '{"x":[1]}' });
    await using peer = await Peer.start((socket) => {
      socket.setNoDelay(true);
      socket.write(streamHead);
      const bytes = Buffer.from(text);
      let at = 0;
      const step = (): void => {
        if (at >= bytes.length || socket.destroyed) return;
        socket.write(bytes.subarray(at, at + 3), step);
        at += 3;
      };
      step();
    });
    const conflux = client(peer.url);
    expect(await changes(conflux.watch(), 2)).toEqual([
      ["a", undefined, "ä😀", 1],
      ["a", "ä😀", { x: [1] }, 2],
    ]);
  });

  test("that falls silent is left and resumed", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1) socket.write(streamHead + sync("1-1", { a: "1" }));
      else socket.write(streamHead + commit("1-2", { a: "2" }));
    });
    const conflux = client(peer.url);
    expect(await changes(conflux.watch(), 2)).toHaveLength(2);
    expect(peer.requests).toHaveLength(2);
    expect(peer.requests[1]?.headers["last-event-id"]).toBe("1-1");
  });

  test("of a machine that slept is left soon after it woke, and until then is as old as the sleep was long", async () => {
    const sleptMs = 8 * 3_600_000;
    const dateNow = Date.now;
    onTestFinished(() => {
      Date.now = dateNow;
    });
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1) socket.write(streamHead + sync("1-1", { a: "1" }));
      else socket.write(streamHead + commit("1-2", { a: "2" }));
    });
    const conflux = client(peer.url, { timing: { ...timing, idleMs: 60_000, lookMs: 20 } });
    await conflux.ready();
    // The monotonic clock and all timers stood still meanwhile: nothing else says that time has passed.
    Date.now = () => dateNow() + sleptMs;
    expect(conflux.getEntry("a").staleMs).toBeGreaterThanOrEqual(sleptMs);
    expect(conflux.status.silentMs).toBeGreaterThanOrEqual(sleptMs);
    await until(() => conflux.get("a") === 2);
    expect(conflux.getEntry("a").staleMs).toBeLessThan(sleptMs);
    expect(peer.requests[1]?.headers["last-event-id"]).toBe("1-1");
    // Set back it says nothing: what is heard is as old as the other clock says.
    Date.now = () => dateNow() - sleptMs;
    expect(conflux.status.silentMs).toBeGreaterThanOrEqual(0);
  });

  test("that was alive as long as the longest wait is followed by a short one, however many failed before it", async () => {
    const random = Math.random;
    onTestFinished(() => {
      Math.random = random;
    });
    let chance = 0;
    Math.random = () => chance;
    await using peer = await Peer.start((socket, _, number) => {
      if (number <= 30) {
        socket.destroy();
        return;
      }
      socket.write(streamHead + sync("1-1", { a: String(number) }));
      if (number > 31) return;
      chance = 0.9;
      // Nothing but the sync is heard of it: a proxy cuts it before the first bookmark.
      setTimeout(() => socket.destroy(), 60);
    });
    const patient = { ...timing, backoffCapMs: 1_000_000_000, healthyMs: 40, idleMs: 10_000 };
    const conflux = client(peer.url, { timing: patient, onError: () => {} });
    await until(() => conflux.get("a") === 32);
  });

  test("with bytes (comments, bookmarks) is alive", async () => {
    await using peer = await Peer.start((socket) => {
      socket.write(streamHead + sync("1-1", { a: "1" }));
      let revision = 1;
      const timer = setInterval(() => {
        revision += 1;
        socket.write(revision % 2 === 0 ? ": still here\n\n" : bookmark(`1-${revision}`));
      }, 50);
      socket.on("close", () => clearInterval(timer));
    });
    const conflux = client(peer.url);
    await until(() => conflux.status.revision >= 13);
    expect(peer.requests).toHaveLength(1);
    expect(conflux.status.cursor).toBe(`1-${conflux.status.revision}`);
  });

  test("with garbage is left and begun anew with a full snapshot", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1)
        socket.write(
          `${streamHead}${sync("1-1", { a: "1" })}event: commit\nid: 1-2\ndata: {"ch\n\n`,
        );
      else socket.write(streamHead + sync("1-3", { b: "1" }));
    });
    const conflux = client(peer.url);
    expect(await changes(conflux.watch(), 3)).toEqual([
      ["a", undefined, 1, 1],
      ["a", 1, undefined, 3],
      ["b", undefined, 1, 3],
    ]);
    expect(peer.requests[1]?.headers["last-event-id"]).toBeUndefined();
  });

  test("of another kind (a proxy's page) is not taken for one", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1) socket.end(answer(200, "<html>", { "content-type": "text/html" }));
      else socket.write(streamHead + sync("1-1", { a: "1" }));
    });
    expect(await client(peer.url).ready()).toBe("live");
  });

  test("that says goodbye is followed by another, from the cursor", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1) socket.write(streamHead + sync("1-1", { a: "1" }) + goodbye("slow"));
      else socket.write(streamHead + commit("1-2", { a: "2" }));
    });
    const conflux = client(peer.url);
    expect(await changes(conflux.watch(), 2)).toHaveLength(2);
    expect(peer.requests[1]?.headers["last-event-id"]).toBe("1-1");
  });

  test("of a server that is behind is not taken; the revision never goes back", async () => {
    await using ahead = await Peer.start((socket, _, number) => {
      if (number === 1) socket.end(streamHead + sync("1-9", { a: "9" }));
      else socket.write(streamHead + commit("1-10", { a: "10" }));
    });
    await using behind = await Peer.start((socket) =>
      socket.write(streamHead + sync("1-4", { a: "4" })),
    );
    const conflux = client([ahead.url, behind.url]);
    expect(await changes(conflux.watch(), 2)).toEqual([
      ["a", undefined, 9, 9],
      ["a", 9, 10, 10],
    ]);
    expect(behind.requests.length).toBeGreaterThan(0);
  });

  test("of a restored tenant (another epoch) replaces the snapshot", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1) socket.end(streamHead + sync("1-9", { a: "9" }));
      else socket.write(streamHead + sync("2-3", { a: "3" }));
    });
    const conflux = client(peer.url);
    expect(await changes(conflux.watch(), 2)).toMatchObject([{}, ["a", 9, 3, 3]]);
    expect(conflux.status.cursor).toBe("2-3");
  });
});

describe("a refusal that passes", () => {
  test.each([
    [503, "no-quorum"],
    [503, "not-ready"],
    [429, "too-many-requests"],
    [500, "internal"],
    [404, "not-found"],
  ])("%i %s is retried at the next url", async (status, code) => {
    await using one = await Peer.start((socket) => socket.end(problem(status, code)));
    await using two = await Peer.start((socket) =>
      socket.write(streamHead + sync("1-1", { a: "1" })),
    );
    const conflux = client([one.url, two.url]);
    expect(await conflux.ready()).toBe("live");
    expect(conflux.status.url).toBe(two.url);
  });

  // If these waits doubled, the 30th would be half of 2^30 ms, which is 6 days.
  const steady = { ...timing, backoffBaseMs: 1, backoffCapMs: 2 ** 30 };

  test("a node that is there and says when is asked as often at the end as at the beginning", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number <= 30) socket.end(problem(503, "restoring", { "retry-after": "0" }));
      else socket.write(streamHead + sync("1-1", { a: "1" }));
    });
    const conflux = client([peer.url, `${peer.url}/b`, `${peer.url}/c`], { timing: steady });
    expect(await conflux.ready()).toBe("live");
  });

  test("one that is told to come back does so, however often", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number <= 30) socket.end(streamHead + sync(`${number}-1`, { a: "1" }) + goodbye("moved"));
      else socket.write(streamHead + sync(`${number}-1`, { a: "2" }));
    });
    const conflux = client(peer.url, { timing: steady });
    await until(() => conflux.get("a") === 2);
  });

  test("Retry-After is kept", async () => {
    await using peer = await Peer.start((socket, _, number) => {
      if (number === 1) socket.end(problem(429, "too-many-requests", { "retry-after": "1" }));
      else socket.write(streamHead + sync("1-1", { a: "1" }));
    });
    const from = performance.now();
    expect(await client(peer.url).ready()).toBe("live");
    expect(performance.now() - from).toBeGreaterThanOrEqual(990);
  });

  test("a key function is asked again", async () => {
    await using peer = await Peer.start((socket, { headers }) => {
      if (headers["authorization"] === "Bearer new")
        socket.write(streamHead + sync("1-1", { a: "1" }));
      else socket.end(problem(401, "unauthorized"));
    });
    let key = "old";
    const conflux = client(peer.url, {
      token: () => Promise.resolve(key),
      timing: { ...timing, refusedMs: 20 },
    });
    await expect(conflux.ready()).rejects.toMatchObject({ code: "unauthorized" });
    key = "new";
    await until(() => conflux.status.state === "live");
    expect(await conflux.ready()).toBe("live");
  });
});

describe("long polling", () => {
  test("takes over where streams open and stay silent, and gives way again", async () => {
    let swallow = true;
    let revision = 1;
    await using peer = await Peer.start((socket, { url, headers }) => {
      const polls = url.includes("wait=1s");
      if (!polls) {
        if (swallow) socket.write(streamHead);
        else socket.write(streamHead + commit("1-100", { a: "100" }));
      } else if (headers["last-event-id"] === undefined)
        socket.end(polled(sync("1-1", { a: "1" })));
      else {
        revision += 1;
        const frames = commit(`1-${revision}`, { a: String(revision) });
        setTimeout(() => socket.end(polled(frames)), 20);
      }
    });
    const conflux = client(peer.url);
    expect(await conflux.ready()).toBe("live");
    expect(conflux.status).toMatchObject({ via: "poll", state: "live" });
    await until(() => conflux.status.revision >= 4);
    swallow = false;
    await until(() => conflux.status.revision === 100);
    expect(conflux.status.via).toBe("stream");
  });

  test("takes over where not even the headers come", async () => {
    await using peer = await Peer.start((socket, { url }) => {
      if (url.includes("wait=")) socket.end(polled(sync("1-1", { a: "1" })));
    });
    expect(await client(peer.url).ready()).toBe("live");
  });
});

describe("large values", () => {
  const big = JSON.stringify({ text: "x".repeat(100_000) });
  const hash = `sha256:${createHash("sha256").update(big).digest("hex")}`;
  const announce = `event: commit\nid: 1-2\ndata: ${JSON.stringify({
    revision: 2,
    at: 0,
    changes: [
      { name: "big", version: 4, hash, format: "json" },
      { name: "a", version: 2, hash: "h2", format: "json", content: "2" },
    ],
  })}\n\n`;

  test("are fetched before the commit is served", async () => {
    await using peer = await Peer.start((socket, { url }) => {
      if (url.includes("/watch")) socket.write(streamHead + sync("1-1", { a: "1" }) + announce);
      else setTimeout(() => socket.end(answer(200, big, { "conflux-version": "4" })), 30);
    });
    const conflux = client(peer.url, { labels: { tier: "gold" } });
    const seen: unknown[] = [];
    conflux.onChange(() => seen.push([conflux.get("a"), conflux.get("big") !== undefined]));
    await changes(conflux.watch(), 3);
    expect(seen).toEqual([
      [1, false],
      [2, true],
      [2, true],
    ]);
    const fetched = peer.requests.find(({ url }) => url.includes("/values/"));
    expect(fetched?.url).toBe("/v1/tenants/acme/namespaces/default/values/big?label.tier=gold");
    expect(fetched?.headers["conflux-min-revision"]).toBe("2");
  });

  test("of another hash are not used: the frame that says so comes", async () => {
    await using peer = await Peer.start((socket, { url }) => {
      if (url.includes("/watch")) {
        socket.write(streamHead + sync("1-1", { a: "1" }) + announce);
        setTimeout(() => socket.write(commit("1-3", { big: "3" })), 50);
      } else socket.end(answer(200, '"newer"'));
    });
    const conflux = client(peer.url);
    expect(await changes(conflux.watch(), 3)).toEqual([
      ["a", undefined, 1, 1],
      ["big", undefined, 3, 3],
      ["a", 1, 2, 3],
    ]);
  });

  test("that cannot be fetched now are fetched after a reconnect", async () => {
    let tries = 0;
    await using peer = await Peer.start((socket, { url, headers }) => {
      if (url.includes("/watch")) {
        const resumed = headers["last-event-id"] === "1-1";
        socket.write(streamHead + (resumed ? "" : sync("1-1", { a: "1" })) + announce);
      } else if ((tries += 1) < 3) socket.end(problem(503, "not-caught-up"));
      else socket.end(answer(200, big));
    });
    const conflux = client(peer.url);
    await until(() => conflux.status.revision === 2);
    expect(conflux.get<{ text: string }>("big")?.text).toHaveLength(100_000);
    expect(tries).toBe(3);
  });
});

describe("consumers", () => {
  test("one that throws or rejects does not touch the others", async () => {
    await using peer = await Peer.start((socket) => {
      socket.write(streamHead + sync("1-1", { a: "1" }));
      setTimeout(() => socket.write(commit("1-2", { a: "2" })), 10);
    });
    const errors: unknown[] = [];
    const conflux = client(peer.url, { onError: (error) => errors.push(error) });
    const seen: unknown[] = [];
    conflux.onChange(() => {
      throw new Error("one");
    });
    conflux.onChange(() => Promise.reject(new Error("two")));
    const end = conflux.onChange((change) => seen.push(change.new));
    await until(() => errors.length === 4);
    expect(seen).toEqual([1, 2]);
    end();
    expect(conflux.status.state).toBe("live");
  });

  test("a slow one gets the latest per name, in order of revision", async () => {
    await using peer = await Peer.start((socket) => {
      let frames = sync("1-1", { a: "0", b: "0", c: "0" });
      for (let n = 2; n <= 500; n += 1) frames += commit(`1-${n}`, { a: String(n) });
      frames +=
        commit("1-501", { b: "1" }) + commit("1-502", { c: "1" }) + commit("1-503", { a: "503" });
      socket.write(streamHead + frames);
    });
    const conflux = client(peer.url);
    const slow = conflux.watch();
    const only = conflux.watch({ name: "b" });
    await until(() => conflux.status.revision === 503);
    expect(await changes(slow, 3)).toEqual([
      ["b", undefined, 1, 501],
      ["c", undefined, 1, 502],
      ["a", undefined, 503, 503],
    ]);
    expect(await changes(only, 1)).toEqual([["b", undefined, 1, 501]]);
  });

  test("iterators end with their signal, with `break` and with close()", async () => {
    await using peer = await Peer.start((socket) =>
      socket.write(streamHead + sync("1-1", { a: "1" })),
    );
    const conflux = client(peer.url);
    const abort = new AbortController();
    const one = conflux.watch({ signal: abort.signal });
    const two = conflux.watch();
    await conflux.ready();
    expect((await one.next()).done).toBe(false);
    const waiting = one.next();
    abort.abort();
    expect((await waiting).done).toBe(true);
    expect((await two.next()).done).toBe(false);
    const last = two.next();
    await conflux.close();
    expect((await last).done).toBe(true);
    expect((await conflux.watch().next()).done).toBe(true);
    expect(conflux.get("a")).toBe(1);
  });

  test("share a value that none of them can change", async () => {
    await using peer = await Peer.start((socket) =>
      socket.write(streamHead + sync("1-1", { a: '{"list":[1]}' })),
    );
    const conflux = client(peer.url);
    await conflux.ready();
    const value = conflux.get<{ list: number[] }>("a");
    expect(() => value?.list.push(2)).toThrow(TypeError);
    expect(conflux.get("a")).toBe(value);
  });
});

test("an address that is none is refused at once", () => {
  for (const url of ["localhost:8080", "ftp://x", "", "http://"])
    expect(() => new Conflux({ url, tenant: "t" })).toThrow(TypeError);
});
