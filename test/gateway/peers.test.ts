/** Several gateways over one cluster: whichever is asked, the answer is the same. */
import { afterEach, describe, expect, test } from "vitest";
import { Problem } from "../../src/api/problems.ts";
import { decode, encode } from "../../src/gateway/peers.ts";
import { FrameReader, Harness, type Frame } from "./harness.ts";
import type { SoloService } from "./solo_service.ts";

const T = "/v1/tenants/acme";
const N = `${T}/namespaces/app`;

let open: Harness[] = [];
afterEach(() => {
  for (const h of open) h.close();
  open = [];
});

/** The tenant has replicas on n1 and n2, the directory on n1; n3 and n4 have nothing. */
async function setup(): Promise<Harness> {
  const h = new Harness({
    nodes: ["n1", "n2", "n3", "n4", "n5"],
    settings: { watch: { bookmarkMs: 60_000 } },
  });
  open.push(h);
  await h.tenant("acme", { replicas: 3 });
  return h;
}

const at = (node: string) => ({ node });

describe("forwarding", () => {
  test("a node without a replica answers like one that has it", async () => {
    const h = await setup();
    const put = await h.call("PUT", `${N}/configs/a`, { ...at("n4"), body: { content: { a: 1 } } });
    expect([put.status, put.headers.get("conflux-revision")]).toEqual([201, "2"]);
    for (const node of ["n1", "n4", "n5"]) {
      const value = await h.call("GET", `${N}/values/a`, {
        ...at(node),
        headers: { "x-request-id": `of-${node}` },
      });
      expect([value.status, value.text]).toEqual([200, '{"a":1}']);
      expect(value.headers.get("content-type")).toContain("application/json");
      expect(value.headers.get("x-request-id")).toBe(`of-${node}`);
    }
    const tag = put.headers.get("etag") as string;
    const guarded = await h.call("PUT", `${N}/configs/a`, {
      ...at("n4"),
      headers: { "if-match": tag, "idempotency-key": "once" },
      body: { description: "d" },
    });
    expect(guarded.status).toBe(200);
    const replay = await h.call("PUT", `${N}/configs/a`, {
      ...at("n5"),
      headers: { "if-match": tag, "idempotency-key": "once" },
      body: { description: "d" },
    });
    expect(replay.headers.get("idempotent-replay")).toBe("true");
    const unchanged = await h.call("GET", `${N}/configs/a`, {
      ...at("n4"),
      headers: { "if-none-match": guarded.headers.get("etag") as string },
    });
    expect([unchanged.status, unchanged.text]).toEqual([304, ""]);
    const head = await h.call("HEAD", `${N}/values/a`, at("n4"));
    expect([head.status, head.text]).toEqual([200, ""]);
  });

  test("keys are checked on either side", async () => {
    const h = await setup();
    const { token, id } = await h.key("acme", "read");
    const get = (node: string) => h.call("GET", `${N}/values`, { ...at(node), token });
    expect((await get("n4")).status).toBe(200);
    const audit = await h.call("GET", `${T}/audit`, { ...at("n4"), token });
    expect([audit.status, audit.body.code]).toEqual([403, "forbidden"]);
    await h.call("DELETE", `${T}/keys/${id}`, at("n5"));
    expect((await get("n4")).status).toBe(401);
    const unknown = await h.call("GET", "/v1/tenants/nobody/usage", at("n4"));
    expect(unknown.status).toBe(404);
  });

  test("problems come back as they are, with the remote address in the audit", async () => {
    const h = await setup();
    const broken = await h.call("PUT", `${N}/configs/a`, { ...at("n4"), body: { content: "{" } });
    expect([broken.status, broken.body.code]).toEqual([422, "invalid-content"]);
    await h.call("PUT", `${N}/configs/a`, { ...at("n4"), body: {} });
    const audit = await h.call("GET", `${T}/audit?limit=1000`);
    expect(audit.body.items.at(-1)).toMatchObject({ address: "192.0.2.1" });
  });

  test("a body over the limit is refused before it is sent anywhere", async () => {
    const h = await setup();
    const service = h.cluster.service("n4");
    service.exchanges.length = 0;
    const raw = "x".repeat(4 * 1024 * 1024 + 1);
    const answer = await h.call("PUT", `${N}/configs/a`, { ...at("n4"), raw });
    expect(answer.status).toBe(413);
    expect(Math.max(0, ...service.exchanges.map((one) => one.bytes))).toBeLessThan(1_000);
  });

  test("a tenant that leaves while it is asked is asked for where it is now", async () => {
    const h = await setup();
    await h.call("PUT", `${N}/configs/a`, { body: { content: 1 } });
    const { token } = await h.key("acme", "write");
    const get = { ...at("n1"), token };
    h.cluster.service("n1").leaving = "acme";
    const value = await h.call("GET", `${N}/values/a?consistency=linearizable`, get);
    expect([value.status, value.text]).toEqual([200, "1"]);
    // Its body was read before what it says was looked at.
    h.cluster.service("n2").leaving = "acme";
    const dry = await h.call("POST", `${N}/configs/a/publish?dryRun=true`, {
      ...at("n2"),
      token,
      body: { content: 2 },
    });
    expect([dry.status, dry.body.version]).toEqual([201, 2]);
    const put = await h.call("POST", `${N}/configs/a/publish`, {
      ...at("n2"),
      token,
      body: { content: 2 },
    });
    expect([put.status, put.body.version]).toEqual([201, 2]);
  });

  test("what a request says is sent on as it came when the tenant leaves after that was read", async () => {
    const h = await setup();
    const { token, id } = await h.key("acme", "admin");
    // No body at all: another node would want to know what it is, if there were one.
    const rotate = `${T}/keys/${id}/rotate`;
    const [n1, n2] = ["n1", "n2"].map((node) => h.cluster.service(node));
    if (n1 === undefined || n2 === undefined) throw new Error("There are two");
    n1.leaving = "acme";
    const rotated = await h.call("POST", rotate, { ...at("n1"), token });
    expect([rotated.status, rotated.body.replaces.id]).toEqual([201, id]);
    // A number that JSON written anew would have no sign for.
    const context = { targetingKey: "u", age: "beyond" };
    const raw = JSON.stringify({ context }).replace('"beyond"', "1e999");
    const old = { ">": [{ var: "age" }, 65] };
    const variants = { on: true, off: false };
    const flag = { state: "ENABLED", variants, defaultVariant: "off" };
    const content = { ...flag, targeting: { if: [old, "on", "off"] } };
    await h.call("PUT", `${N}/configs/old`, { ...at("n3"), body: { format: "flag", content } });
    n2.leaving = "acme";
    const evaluated = await h.call("POST", `${N}/ofrep/v1/evaluate/flags/old`, {
      ...at("n2"),
      token,
      raw,
    });
    expect([evaluated.status, evaluated.body.value]).toEqual([200, true]);
  });

  test("a tenant that is here again after it left is asked for here, with what was said", async () => {
    const h = await setup();
    const { id } = await h.key("acme", "read");
    const n1 = h.cluster.service("n1");
    n1.leaving = "acme";
    n1.comesBack = true;
    const body = { overlapSeconds: 5 };
    const rotated = await h.call("POST", `${T}/keys/${id}/rotate`, { ...at("n1"), body });
    expect([rotated.status, rotated.body.replaces?.id]).toEqual([201, id]);
    expect([n1.leaving, n1.exchanges]).toEqual([null, []]);
  });

  test("who is not let in does not learn how far a tenant was that has left", async () => {
    const h = await setup();
    const { token, id } = await h.key("acme", "read");
    await h.call("DELETE", `${T}/keys/${id}`);
    const n1 = h.cluster.service("n1");
    n1.leaving = "acme";
    n1.staysFor = 1;
    const refused = await h.call("GET", `${N}/values?consistency=stale`, {
      ...at("n1"),
      token,
      headers: { "conflux-min-revision": "1" },
    });
    expect([refused.status, refused.headers.get("conflux-revision")]).toEqual([401, null]);
    expect(n1.exchanges.length).toBeGreaterThan(0);
  });

  test("the next node is asked when one cannot be reached", async () => {
    const h = await setup();
    await h.call("PUT", `${N}/configs/a`, { body: { content: 1 } });
    // The directory is on n1 as well: root keys could not be checked without it.
    const { token } = await h.key("acme", "write");
    h.cluster.service("n1").isDown = true;
    const value = await h.call("GET", `${N}/values/a`, { ...at("n4"), token });
    expect(value.status).toBe(200);
    const body = { content: 2 };
    const publish = () => h.call("POST", `${N}/configs/a/publish`, { ...at("n4"), token, body });
    expect((await publish()).status).toBe(201);
    for (const node of ["n2", "n3"]) h.cluster.service(node).isDown = true;
    const none = await publish();
    expect([none.status, none.body.code]).toEqual([503, "no-quorum"]);
  });

  test("a change whose fate is unknown is not sent again", async () => {
    const h = await setup();
    const { token } = await h.key("acme", "write");
    const service = h.cluster.service("n4");
    const asked: string[] = [];
    service.exchange = (node) => {
      asked.push(node);
      return Promise.reject(new Problem("outcome-unknown", "No answer in time"));
    };
    const put = await h.call("PUT", `${N}/configs/a`, { ...at("n4"), token, body: {} });
    expect([put.status, put.body.code]).toEqual([504, "outcome-unknown"]);
    expect(asked).toEqual(["n1"]);
    // What changes nothing is asked of all, and is no change whose fate is unknown.
    const read = await h.call("GET", `${N}/configs/a`, { ...at("n4"), token });
    expect(asked).toEqual(["n1", "n1", "n2", "n3"]);
    expect([read.status, read.body.code]).toEqual([503, "no-quorum"]);
  });

  test("a forwarded request is never forwarded again", async () => {
    const h = await setup();
    const { token } = await h.key("acme", "read");
    for (const node of ["n4", "n5"]) {
      const service = h.cluster.service(node);
      const others = ["n4", "n5"].filter((other) => other !== node);
      // Both believe that the other one holds the tenant.
      service.locate = async () => ({ local: false, nodes: others });
    }
    const answer = await h.call("GET", `${N}/values`, { ...at("n4"), token });
    expect([answer.status, answer.body.code]).toEqual([503, "not-ready"]);
    expect(h.cluster.service("n5").exchanges).toHaveLength(0);
  });

  test("who is asked too early for a tenant that moves is asked again", async () => {
    const h = await setup();
    const { token } = await h.key("acme", "write");
    const asking = h.cluster.service("n4");
    const locate = asking.locate.bind(asking);
    let early = 0;
    for (const [method, path, body, status] of [
      ["GET", `${N}/values`, undefined, 200],
      ["PUT", `${N}/configs/a`, { content: 1 }, 201],
      ["GET", `${T}/watch?wait=0s`, undefined, 200],
    ] as const) {
      // What the node that asks knows is old, as is what the one that it asks knows; soon both hear of the move.
      early = 2;
      asking.locate = (tenant) =>
        early-- > 0 ? Promise.resolve({ local: false, nodes: ["n5"] }) : locate(tenant);
      const answer = await h.call(method, path, { ...at("n4"), token, ...(body && { body }) });
      expect([path, answer.status, early]).toEqual([path, status, -1]);
    }
    expect((await h.call("GET", `${N}/values/a`, { ...at("n4"), token })).text).toBe("1");
  });

  test("the directory is read and changed through a node that has it", async () => {
    const h = await setup();
    const created = await h.call("POST", "/v1/tenants", { ...at("n5"), body: { id: "far" } });
    expect(created.status).toBe(201);
    const list = await h.call("GET", "/v1/tenants", at("n4"));
    expect(list.body.items.map((item: { id: string }) => item.id)).toEqual(["acme", "far"]);
    const patched = await h.call("PATCH", "/v1/tenants/far", {
      ...at("n4"),
      body: { description: "d" },
    });
    expect(patched.body.description).toBe("d");
    const dry = await h.call("POST", "/v1/tenants?dryRun=true", {
      ...at("n4"),
      body: { id: "dry" },
    });
    expect(dry.status).toBe(201);
    expect((await h.call("GET", "/v1/tenants/dry", at("n4"))).status).toBe(404);
    expect((await h.call("GET", "/v1/cluster/members", at("n4"))).body.items).toHaveLength(5);
    const tenants = await h.call("GET", "/v1/cluster/tenants?limit=1", at("n4"));
    expect(tenants.body).toMatchObject({ items: [{ tenant: "acme" }], next: "acme" });
    h.cluster.service("n2").isDown = true;
    const poor = await h.call("GET", "/v1/cluster/tenants?state=under-replicated", at("n4"));
    expect(poor.body.items).toMatchObject([{ tenant: "acme" }]);
  });
});

describe("relayed watches", () => {
  async function subscribe(h: Harness, path: string, token: string): Promise<FrameReader> {
    const response = await h.gateway("n4").fetch(h.request("GET", path, { token }));
    expect(response.status).toBe(200);
    return new FrameReader(response);
  }
  const publish = (h: Harness, content: number) =>
    h.call("POST", `${N}/configs/a/publish`, { body: { content } });

  test("give the same frames, gapless also when the node behind dies", async () => {
    const h = await setup();
    await h.call("PUT", `${N}/configs/a`, { body: { content: 0 } });
    const { token } = await h.key("acme", "client");
    const reader = await subscribe(h, `${N}/watch`, token);
    expect((await reader.next())?.data.values).toMatchObject({ a: { version: 1 } });
    const seen: number[] = [];
    for (let i = 1; i <= 10; i++) {
      // n1 answers again later; what was published meanwhile is in the history of n2.
      if (i === 4) h.cluster.service("n1").isDown = true;
      if (i === 7) h.cluster.service("n1").isDown = false;
      await publish(h, i);
      if (i % 2 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    }
    while (seen.length < 10) {
      const frame = (await reader.nextNews()) as Frame;
      seen.push(frame.data.changes[0].version as number);
    }
    expect(seen).toEqual(Array.from({ length: 10 }, (_, i) => i + 2));
    await reader.cancel();
    expect(h.gateway("n4").status().watchers).toBe(0);
  });

  test("resume by cursor, and end when the key does", async () => {
    const h = await setup();
    await h.call("PUT", `${N}/configs/a`, { body: { content: 0 } });
    for (let i = 1; i <= 3; i++) await publish(h, i);
    const { token, id } = await h.key("acme", "read");
    const reader = await subscribe(h, `${T}/watch?since=1-3`, token);
    expect((await reader.next())?.id).toBe("1-4");
    expect((await reader.next())?.id).toBe("1-5");
    await h.call("DELETE", `${T}/keys/${id}`);
    let frame = (await reader.next()) as Frame;
    while (frame.event !== "goodbye") frame = (await reader.next()) as Frame;
    expect(frame.data).toEqual({ reason: "unauthorized" });
    const refused = await h.call("GET", `${T}/watch`, { ...at("n4"), token });
    expect(refused.status).toBe(401);
  });

  test("with one key share one relay, each gapless from its own cursor", async () => {
    const h = await setup();
    await h.call("PUT", `${N}/configs/a`, { body: { content: 0 } });
    const { token } = await h.key("acme", "read");
    const first = await subscribe(h, `${T}/watch?since=now`, token);
    expect((await first.next())?.event).toBe("bookmark");
    for (let i = 1; i <= 3; i++) await publish(h, i);
    for (let revision = 4; revision <= 6; revision++)
      expect((await first.nextNews())?.id).toBe(`1-${revision}`);
    const others: FrameReader[] = [];
    for (let i = 0; i < 5; i++) others.push(await subscribe(h, `${T}/watch?since=1-4`, token));
    await publish(h, 4);
    for (const other of others)
      for (let revision = 5; revision <= 7; revision++)
        expect((await other.nextNews())?.id).toBe(`1-${revision}`);
    expect((await first.nextNews())?.id).toBe("1-7");
    // What n4 has open at the node behind: one long poll for all of them.
    expect(h.gateway("n1").status().watchers).toBeLessThanOrEqual(1);
    for (const reader of [first, ...others]) await reader.cancel();
    expect(h.gateway("n4").status().watchers).toBe(0);
  });

  test("hold back what is spread for each by itself, not for all as one", async () => {
    const h = await setup();
    await h.call("PUT", `${N}/configs/a`, { body: { content: 0 } });
    const { token } = await h.key("acme", "client");
    const held = await subscribe(h, `${N}/watch`, token);
    const atOnce = await subscribe(h, `${N}/watch?spread=false`, token);
    for (const reader of [held, atOnce]) expect((await reader.next())?.event).toBe("sync");
    await h.call("POST", `${N}/configs/a/publish?spread=3600s`, { body: { content: 1 } });
    expect((await atOnce.nextNews())?.data).toMatchObject({ spreadMs: 3_600_000 });
    expect(h.gateway("n1").status().watchers).toBeLessThanOrEqual(1);
    await publish(h, 2);
    for (const id of ["1-4", "1-5"]) expect((await held.nextNews())?.id).toBe(id);
    expect((await atOnce.nextNews())?.id).toBe("1-5");
  });

  test("do not say what nodes of the release before refuse, until the cluster is past that", async () => {
    const h = await setup();
    const n4: SoloService = h.cluster.service("n4");
    const targets: string[] = [];
    const exchange = n4.exchange.bind(n4);
    n4.exchange = (node, request) => {
      targets.push(decode<{ target?: string }>(request).header.target ?? "");
      return exchange(node, request);
    };
    const { token } = await h.key("acme", "client");
    for (const semantics of [7, 8]) {
      (n4 as { semantics: number }).semantics = semantics;
      targets.length = 0;
      const reader = await subscribe(h, `${N}/watch?spread=false`, token);
      expect((await reader.next())?.event).toBe("sync");
      await reader.cancel();
      const polls = targets.filter((target) => target.includes("/watch?"));
      expect(polls.length).toBeGreaterThan(0);
      for (const target of polls) expect(target.includes("spread=false")).toBe(semantics === 8);
    }
  });

  test("go on when their polls were too many for the quota", async () => {
    const h = await setup();
    await h.call("PUT", `${N}/configs/a`, { body: { content: 0 } });
    const { token } = await h.key("acme", "client");
    // A burst of five; the next one comes after a second.
    await h.call("PATCH", T, { body: { quotas: { requestsPerSecondPerKey: 1 } } });
    const reader = await subscribe(h, `${N}/watch`, token);
    expect((await reader.next())?.event).toBe("sync");
    for (let version = 2; version <= 8; version++) {
      await publish(h, version);
      const frame = (await reader.nextNews()) as Frame;
      expect(frame.data.changes).toMatchObject([{ name: "a", version }]);
    }
    await reader.cancel();
  });

  test("are held to what the tenant may be sent by the node that sends it, and miss nothing", async () => {
    const h = await setup();
    h.cluster.service("n4").knowsDirectory = true;
    const quotas = async (of: object): Promise<void> => {
      await h.call("PATCH", T, { body: { quotas: of } });
      await h.call("GET", `${T}/usage`);
    };
    const metric = async (name: string): Promise<number> => {
      const { text } = await h.call("GET", "/metrics", { ...at("n4"), token: null });
      return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1]);
    };
    await h.call("PUT", `${N}/configs/a`, { body: { content: 0 } });
    const { token } = await h.key("acme", "client");
    const readers: FrameReader[] = [];
    for (let n = 0; n < 30; n++) readers.push(await subscribe(h, `${N}/watch`, token));
    for (const reader of readers) expect((await reader.next())?.event).toBe("sync");
    // One of each frame for the relay is little, thirty of it for its watchers are too many.
    await quotas({ watchBytesPerSecond: 1_500 });
    const last = 12;
    const told = readers.map(async (reader) => {
      const versions: number[] = [];
      while (versions.at(-1) !== last)
        for (const change of ((await reader.nextNews()) as Frame).data.changes)
          versions.push(change.version as number);
      return versions;
    });
    for (let version = 2; version <= last; version++) await publish(h, version);
    while ((await metric("conflux_watches_held")) < 20)
      await new Promise((resolve) => setTimeout(resolve, 5));
    const late = await subscribe(h, `${N}/watch`, token);
    await quotas({ watchBytesPerSecond: null });
    for (const versions of await Promise.all(told)) {
      expect(versions).toEqual(versions.toSorted((a, b) => a - b));
      expect(new Set(versions).size).toBe(versions.length);
    }
    expect((await late.nextNews())?.data.values).toMatchObject({ a: { version: last } });
    await publish(h, last + 1);
    for (const reader of [...readers, late])
      expect((await reader.nextNews())?.data.changes).toMatchObject([{ version: last + 1 }]);
    expect(await metric("conflux_watches_held")).toBe(0);
    for (const reader of [...readers, late]) await reader.cancel();
  });

  test("count among those that the tenant may have open", async () => {
    const h = await setup();
    h.cluster.service("n4").knowsDirectory = true;
    const { token } = await h.key("acme", "client");
    await h.call("PATCH", T, { body: { quotas: { watchers: 2 } } });
    const readers = [
      await subscribe(h, `${N}/watch`, token),
      await subscribe(h, `${N}/watch`, token),
    ];
    const third = await h.call("GET", `${N}/watch`, { ...at("n4"), token });
    expect(third.body.code).toBe("quota-exceeded");
    expect(h.gateway("n4").status().watchers).toBe(2);
    for (const reader of readers) await reader.cancel();
    const again = await subscribe(h, `${N}/watch`, token);
    await again.cancel();
  });

  test("end with the tenant", async () => {
    const h = await setup();
    const { token } = await h.key("acme", "client");
    const reader = await subscribe(h, `${N}/watch`, token);
    expect((await reader.next())?.event).toBe("sync");
    await h.call("DELETE", T);
    expect((await reader.nextNews())?.data).toEqual({ reason: "unauthorized" });
    expect(await reader.next()).toBeNull();
    expect(h.gateway("n4").status().watchers).toBe(0);
  });

  test("long polls are forwarded as they are", async () => {
    const h = await setup();
    const { token } = await h.key("acme", "client");
    const answer = await h.call("GET", `${N}/watch?wait=0s`, { ...at("n4"), token });
    expect(answer.body.frames).toMatchObject([{ event: "sync" }]);
  });
});

describe("messages between gateways", () => {
  test("carry header and body apart", () => {
    const body = new Uint8Array([0, 1, 255]);
    const header = { kind: "http", status: 200, headers: { a: "ü" } } as const;
    const packed = encode(header, body);
    // A receive buffer is often a view into a larger one.
    const view = new Uint8Array(packed.length + 7);
    view.set(packed, 7);
    expect(decode(view.subarray(7))).toEqual({ header, body });
    expect(decode(encode(header, null)).body).toHaveLength(0);
    for (const cut of [0, 3, 10]) expect(() => decode(packed.subarray(0, cut))).toThrow(Problem);
  });
});
