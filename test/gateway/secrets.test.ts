/** Secret configs: sealed in everything that is kept, shown to keys with the scope and to nobody else. */
import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readSecretKeys, Secrets, type SecretKey } from "../../src/gateway/secrets.ts";
import { FrameReader, Harness } from "./harness.ts";

const value = "hunter2-the-secret-value";
const newKey = (id: string): SecretKey => ({ id, key: randomBytes(32) });
const one = newKey("k1");

const h = new Harness({ settings: { secretKeys: [one] }, isDebug: true });
afterAll(() => h.close());

const N = "/v1/tenants/acme/namespaces/app";
const C = `${N}/configs/password`;
let admin = "";
let reader = "";
let plain = "";
let client = "";

async function keyOf(body: object): Promise<string> {
  const answer = await h.call("POST", "/v1/tenants/acme/keys", { token: admin, body });
  return answer.body.token as string;
}

beforeAll(async () => {
  admin = await h.tenant("acme");
  reader = await keyOf({ kind: "client", scopes: ["secrets"] });
  plain = await keyOf({ kind: "read" });
  client = await keyOf({ kind: "client" });
  await h.call("PUT", `${N}/configs/open`, { token: admin, body: { content: { a: 1 } } });
  const made = await h.call("PUT", C, {
    token: admin,
    headers: { "idempotency-key": "make" },
    body: { format: "text", secret: true, content: value },
  });
  expect([made.status, made.body.secret]).toEqual([201, true]);
});

/** All that is kept of the tenant, and all that was proposed and logged. */
function kept(): string {
  const state = h.cluster.tenants.get("acme");
  const rows = [...(state?.rows.range({ gte: "", lt: "~" }) ?? [])];
  const { proposals } = h.cluster.service("n1");
  return JSON.stringify([rows, proposals, h.logged]);
}

describe("a secret", () => {
  test("is nowhere in what is kept, proposed or logged", () => {
    expect(kept()).toContain("app/password");
    expect(kept()).not.toContain(value);
    expect(kept()).not.toContain(Buffer.from(value).toString("base64").slice(0, -4));
  });

  test("is a value for keys with the scope, and only for them", async () => {
    const got = await h.call("GET", `${N}/values/password`, { token: reader });
    expect([got.status, got.text]).toEqual([200, value]);
    expect(got.headers.get("cache-control")).toBe("no-store");
    for (const token of [plain, client, admin, undefined]) {
      const refused = await h.call("GET", `${N}/values/password`, {
        ...(token !== undefined && { token }),
      });
      expect([refused.status, refused.body.code]).toEqual([403, "forbidden"]);
      expect(
        (await h.call("GET", `${C}/versions/1`, { ...(token !== undefined && { token }) })).status,
      ).toBe(403);
    }
    const all = await h.call("GET", `${N}/values`, { token: reader });
    expect(all.body.values.password).toMatchObject({ version: 1, content: value });
    expect(all.headers.get("cache-control")).toBe("no-store");
    const some = await h.call("GET", `${N}/values`, { token: client });
    expect(Object.keys(some.body.values)).toEqual(["open"]);
  });

  test("is not quoted where it is refused, neither by a parser nor by a pointer", async () => {
    const mark = "Zq81f3";
    const schema = {
      type: "object",
      additionalProperties: false,
      properties: { a: { enum: [1] } },
    };
    const path = `${N}/configs/strict`;
    const body = { format: "json", secret: true, schema, content: { a: 1 } };
    expect((await h.call("PUT", path, { token: admin, body })).status).toBe(201);
    for (const content of [
      `{"${mark}`,
      `{"a":"${mark}"}`,
      `{"${mark}":1}`,
      `{"${mark}":1,"${mark}":2}`,
    ]) {
      const refused = await h.call("POST", `${path}/publish`, { token: admin, body: { content } });
      expect([refused.status, refused.body.code]).toEqual([422, "invalid-content"]);
      expect(refused.text).not.toContain(mark);
      expect(refused.body.errors[0].pointer).toBe("/content");
    }
    await h.call("DELETE", path, { token: admin });
  });

  test("shows nothing of itself to those who manage it", async () => {
    await h.call("POST", `${C}/versions`, { token: admin, body: { content: "another-secret" } });
    const seen: string[] = [];
    for (const path of [
      C,
      `${N}/configs`,
      `${C}/versions`,
      `${C}/history`,
      `${C}/release`,
      `${C}/diff?from=1&to=2`,
      `${N}/values/password?explain=true`,
      `${N}/flagd.json`,
      "/v1/tenants/acme/audit",
      "/v1/tenants/acme/watch?wait=0s",
    ]) {
      const answer = await h.call("GET", path, { token: admin });
      expect([path, answer.status]).toEqual([path, 200]);
      seen.push(answer.text);
    }
    const flags = await h.call("POST", `${N}/ofrep/v1/evaluate/flags`, {
      token: admin,
      body: { context: { targetingKey: "x" } },
    });
    seen.push(flags.text);
    expect(flags.text).toContain("open");
    expect(flags.text).not.toContain("password");
    const all = await h.call("GET", `${N}/values?rules=true`, { token: admin });
    expect(Object.keys(all.body.values)).toEqual(["open"]);
    const polled = await h.call("GET", `${N}/watch?rules=true&wait=0s`, { token: admin });
    expect(Object.keys(polled.body.frames[0].data.values)).toEqual(["open"]);
    expect((await h.call("GET", `${N}/values/password?rules=true`, { token: admin })).status).toBe(
      403,
    );
    seen.push(all.text, polled.text);
    for (const text of seen) {
      expect(text).not.toContain(value);
      expect(text).not.toContain("another-secret");
      expect(text).not.toContain("sealed");
    }
  });

  test("is watched in plain with the scope, and is not there without", async () => {
    const open = async (token: string, path: string): Promise<FrameReader> =>
      new FrameReader(await h.gateway().fetch(h.request("GET", path, { token })));
    const [mine, theirs, managed] = [
      await open(reader, `${N}/watch`),
      await open(client, `${N}/watch`),
      await open(plain, "/v1/tenants/acme/watch"),
    ];
    expect((await mine.next())?.data.values.password.content).toBe(value);
    expect(Object.keys((await theirs.next())?.data.values)).toEqual(["open"]);
    expect(JSON.stringify((await managed.next())?.data)).not.toContain("sealed");
    await h.call("POST", `${C}/publish`, { token: admin, body: { content: "turned" } });
    await h.call("POST", `${N}/configs/open/publish`, {
      token: admin,
      body: { content: { a: 2 } },
    });
    expect((await mine.nextNews())?.data.changes).toMatchObject([
      { name: "password", content: "turned" },
    ]);
    expect((await theirs.nextNews())?.data.changes).toMatchObject([{ name: "open" }]);
    const told = await managed.nextNews();
    expect(told?.data.changes[0]).toMatchObject({ type: "version", name: "password" });
    expect(JSON.stringify(told)).not.toMatch(/turned|sealed/);
    for (const one of [mine, theirs, managed]) await one.cancel();
  });

  test("published twice is one version, and its hash tells nothing without the key", async () => {
    const publish = (content: string) =>
      h.call("POST", `${C}/publish`, { token: admin, body: { content } });
    const first = await publish("same");
    expect(first.status).toBe(201);
    const second = await publish("same");
    expect([second.status, second.body.version]).toEqual([200, first.body.version]);
    const { createHash } = await import("node:crypto");
    const guess = createHash("sha256").update("same").digest("hex");
    expect(first.body.hash).not.toContain(guess);
  });

  test("in a transaction is sealed as the version it becomes", async () => {
    const then = ["t1", "t2"].map((content) => ({
      op: "publish",
      namespace: "app",
      name: "password",
      content,
    }));
    const made = {
      op: "config.put",
      namespace: "app",
      name: "made",
      format: "json",
      secret: true,
      content: { pass: "word-in-json" },
    };
    const done = await h.call("POST", "/v1/tenants/acme/transactions", {
      token: admin,
      headers: { "idempotency-key": "tx" },
      body: { then: [...then, made] },
    });
    expect(done.status).toBe(200);
    expect((await h.call("GET", `${N}/values/password`, { token: reader })).text).toBe("t2");
    const json = await h.call("GET", `${N}/values/made`, { token: reader });
    expect(JSON.parse(json.text)).toEqual({ pass: "word-in-json" });
    expect(kept()).not.toContain("word-in-json");
    const rolled = await h.call("POST", `${C}/rollback`, { token: admin, body: {} });
    expect(rolled.status).toBe(200);
    expect((await h.call("GET", `${N}/values/password`, { token: reader })).text).toBe("t1");
  });

  test("published by many at once becomes as many versions", async () => {
    const many = await Promise.all(
      Array.from({ length: 8 }, (_, i) =>
        h.call("POST", `${C}/publish`, { token: admin, body: { content: `many-${i}` } }),
      ),
    );
    expect(many.map(({ status }) => status)).toEqual(many.map(() => 201));
    const versions = many.map(({ body }) => body.version as number);
    expect(new Set(versions).size).toBe(8);
    const last = many[versions.indexOf(Math.max(...versions))];
    expect(last?.body.version).toBe(Math.max(...versions));
    const got = await h.call("GET", `${N}/values/password`, { token: reader });
    expect(got.text).toMatch(/^many-\d$/);
  });

  test("stays what it is, is no flag, and is not large", async () => {
    const put = (name: string, body: object) =>
      h.call("PUT", `${N}/configs/${name}`, { token: admin, body });
    expect((await put("open", { secret: true })).body.code).toBe("conflict");
    expect((await put("password", { secret: false })).body.code).toBe("conflict");
    expect((await put("flag", { format: "flag", secret: true })).body.code).toBe("invalid");
    const large = { format: "text", secret: true, content: "x".repeat(64 * 1024 + 1) };
    expect((await put("large", large)).body.code).toBe("body-too-large");
  });
});

describe("keys of secrets", () => {
  const place = { tenant: "t", namespace: "n", name: "c", version: 1 };

  test("bind a sealed text to its place", () => {
    const secrets = new Secrets([one]);
    const sealed = secrets.seal(place, "text");
    expect(secrets.open(place, sealed)).toBe("text");
    for (const other of [
      { ...place, tenant: "u" },
      { ...place, namespace: "m" },
      { ...place, name: "d" },
      { ...place, version: 2 },
    ])
      expect(() => secrets.open(other, sealed)).toThrow("does not open it");
    const { data, ...rest } = JSON.parse(sealed) as { data: string };
    const bytes = Buffer.from(data, "base64");
    bytes[20] = (bytes[20] as number) ^ 1;
    const changed = JSON.stringify({ ...rest, data: bytes.toString("base64") });
    expect(() => secrets.open(place, changed)).toThrow("does not open it");
    expect(secrets.seal(place, "text")).not.toBe(sealed);
  });

  test("are read from a file, of which no message tells anything", () => {
    const line = `k1:${Buffer.from(one.key).toString("base64")}`;
    expect(readSecretKeys(`# now\n${line}\n\n`)).toEqual([{ id: "k1", key: Buffer.from(one.key) }]);
    expect(() => readSecretKeys("")).toThrow("it holds no key");
    expect(() => readSecretKeys(`${line}\n${line}`)).toThrow("line 2 repeats an id");
    for (const wrong of ["k1:short", `k1 ${line}`, "k1:"]) {
      expect(() => readSecretKeys(wrong)).toThrow("line 1 is not <id>:");
      expect(() => readSecretKeys(wrong)).not.toThrow("short");
    }
  });

  test("rotate: all is wrapped by the newest, and the old one may go", async () => {
    const two = newKey("k2");
    const before = new Harness({ settings: { secretKeys: [one] } });
    const token = await before.tenant("acme");
    const scoped = await before.call("POST", "/v1/tenants/acme/keys", {
      token,
      body: { kind: "client", scopes: ["secrets"] },
    });
    for (let i = 0; i < 205; i++)
      await before.call("PUT", `${N}/configs/s${i}`, {
        token,
        body: { format: "text", secret: true, content: `v${i}` },
      });
    const withKeys = (...secretKeys: SecretKey[]): Harness =>
      new Harness({ settings: { secretKeys }, cluster: before.cluster });
    const both = withKeys(two, one);
    // Rotation raises no revision, and yet a backup from before opens with the old key only.
    const backup = async (known: string): Promise<[status: number, etag: string]> => {
      const headers = { "if-none-match": known };
      const { status, headers: given } = await both.call("GET", "/v1/tenants/acme/backup", {
        token,
        headers,
      });
      return [status, given.get("etag") as string];
    };
    const [, early] = await backup('"none"');
    expect(await backup(early)).toEqual([304, early]);
    const rotate = () => both.call("POST", "/v1/tenants/acme/secrets/rotate", { token, body: {} });
    expect((await rotate()).body).toEqual({ rotated: 200, key: "k2", more: true });
    expect((await rotate()).body).toEqual({ rotated: 5, key: "k2", more: false });
    expect((await rotate()).body).toEqual({ rotated: 0, key: "k2", more: false });
    const [status, late] = await backup(early);
    expect(status).toBe(200);
    expect(await backup(late)).toEqual([304, late]);
    const read = (from: Harness) =>
      from.call("GET", `${N}/values/s7`, { token: scoped.body.token as string });
    expect((await read(both)).text).toBe("v7");
    expect((await read(withKeys(two))).text).toBe("v7");
    for (const wrong of [withKeys(one), withKeys(newKey("k2")), withKeys()]) {
      const refused = await read(wrong);
      expect([refused.status, refused.body.code]).toEqual([503, "secrets-unavailable"]);
      expect(refused.body.detail).toContain("CONFLUX_SECRET_KEY_FILE");
    }
  });

  test("without any there are no secrets", async () => {
    const bare = new Harness();
    const token = await bare.tenant("acme");
    const ask = (body: object) => bare.call("PUT", C, { token, body });
    for (const body of [{ secret: true }, { secret: true, format: "text", content: "x" }]) {
      const refused = await ask(body);
      expect([refused.status, refused.body.code]).toEqual([503, "secrets-unavailable"]);
      expect(refused.body.detail).toContain("CONFLUX_SECRET_KEY_FILE");
    }
    expect((await bare.call("GET", C, { token })).status).toBe(404);
    bare.close();
  });
});
