/** Tokens of identity providers, with one that runs here. */
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { exportJWK, exportSPKI, generateKeyPair, SignJWT, UnsecuredJWT } from "jose";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { FrameReader, Harness } from "./harness.ts";

type Key = Awaited<ReturnType<typeof generateKeyPair>>;

/** An identity provider: discovery and keys over HTTP. */
class Provider {
  url = "";
  keys: object[] = [];
  fetches: string[] = [];
  /** What is answered instead of the keys. */
  answer: { status: number; body?: string; location?: string } | null = null;
  readonly #server: Server = createServer((request, response) => {
    this.fetches.push(request.url ?? "");
    if (request.url === "/.well-known/openid-configuration")
      return response.end(JSON.stringify({ issuer: this.url, jwks_uri: `${this.url}/keys` }));
    if (this.answer !== null) {
      const { status, body = "", location } = this.answer;
      response.writeHead(status, location === undefined ? {} : { location });
      return response.end(body);
    }
    return response.end(JSON.stringify({ keys: this.keys }));
  });

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

const h = new Harness();
const provider = new Provider();
let key: Key;
let other: Key;

beforeAll(async () => {
  await provider.start();
  [key, other] = [
    await generateKeyPair("ES256", { extractable: true }),
    await generateKeyPair("ES256", { extractable: true }),
  ];
  provider.keys = [{ ...(await exportJWK(key.publicKey)), kid: "k1", alg: "ES256" }];
  for (const id of ["acme", "beta"]) {
    await h.tenant(id);
    for (const namespace of ["app", "web"])
      await h.call("PUT", `/v1/tenants/${id}/namespaces/${namespace}/configs/c`, {
        body: { content: { a: 1 } },
      });
  }
});
afterAll(async () => {
  h.close();
  await provider.stop();
});

const rules = [
  { match: { role: "boss" }, tenant: "acme", kind: "admin" },
  { match: { "/team/name": ["core", "edge"] }, tenant: "acme", kind: "write", namespaces: ["app"] },
  {
    match: { role: "guest" },
    tenant: { claim: "orgs" },
    kind: "read",
    namespaces: { claim: "ns" },
  },
];

/** As root names it; keys by discovery unless said otherwise. */
async function name(change: object = {}): Promise<void> {
  const { body, status } = await h.call("PUT", "/v1/issuers/idp", {
    body: { issuer: provider.url, audience: "conflux", insecureHttp: true, rules, ...change },
  });
  if (status > 201) throw new Error(JSON.stringify(body));
}

interface Made {
  readonly by?: Key;
  readonly header?: object;
  readonly expires?: number | null;
  readonly issuer?: string;
  readonly audience?: string;
}

function token(claims: object, made: Made = {}): Promise<string> {
  const {
    by = key,
    header = {},
    expires = 300,
    issuer = provider.url,
    audience = "conflux",
  } = made;
  const jwt = new SignJWT({ sub: "ann@example.com", ...claims })
    .setProtectedHeader({ alg: "ES256", kid: "k1", ...header })
    .setIssuer(issuer)
    .setAudience(audience)
    .setIssuedAt();
  if (expires !== null) jwt.setExpirationTime(Math.floor(Date.now() / 1_000) + expires);
  return jwt.sign(by.privateKey);
}

async function status(bearer: string, path = "/v1/tenants/acme/usage"): Promise<number> {
  return (await h.call("GET", path, { token: bearer })).status;
}

const N = "/v1/tenants/acme/namespaces";

describe("a token", () => {
  beforeEach(() => name());

  test("does what the first rule for the tenant allows", async () => {
    const boss = await token({ role: "boss" });
    expect(await status(boss)).toBe(200);
    expect(await status(boss, "/v1/tenants/beta/usage")).toBe(403);
    expect(await status(boss, "/v1/tenants")).toBe(403);
    const core = await token({ team: { name: "edge" } });
    const publish = (namespace: string) =>
      h.call("POST", `${N}/${namespace}/configs/c/publish`, { token: core, body: { content: {} } });
    expect((await publish("app")).status).toBe(201);
    expect((await publish("web")).status).toBe(403);
    expect(await status(core, "/v1/tenants/acme/keys")).toBe(403);
    expect(await status(await token({ role: "nobody" }))).toBe(403);
  });

  test("names tenants and namespaces by its claims", async () => {
    const guest = await token({ role: "guest", orgs: ["acme", "beta"], ns: "app UPPER" });
    expect(await status(guest, `${N}/app/configs`)).toBe(200);
    expect(await status(guest, `${N}/web/configs`)).toBe(403);
    expect(await status(guest, "/v1/tenants/beta/namespaces/app/configs")).toBe(200);
    // Limited to nothing is not unlimited.
    const unlimited = await token({ role: "guest", orgs: "acme" });
    expect(await status(unlimited, `${N}/app/configs`)).toBe(403);
  });

  test("is named in history and audit", async () => {
    const boss = await token({ role: "boss" });
    await h.call("POST", `${N}/app/configs/c/publish`, {
      token: boss,
      body: { content: { b: 1 } },
    });
    const { body } = await h.call("GET", `${N}/app/configs/c/history?limit=1`);
    expect(body.items[0].by).toBe("idp:ann@example.com");
    const audit = await h.call("GET", "/v1/tenants/acme/audit?limit=1000");
    expect(audit.body.items.at(-1).actor).toEqual({ kind: "admin", keyId: "idp:ann@example.com" });
  });

  test("that does not hold is refused, whatever is wrong with it", async () => {
    const claims = { role: "boss" };
    const pem = await exportSPKI(key.publicKey);
    const symmetric = new SignJWT({ sub: "x", ...claims })
      .setProtectedHeader({ alg: "HS256", kid: "k1" })
      .setIssuer(provider.url)
      .setAudience("conflux")
      .setExpirationTime("5m");
    const good = await token(claims);
    const wrong = {
      expired: await token(claims, { expires: -60 }),
      endless: await token(claims, { expires: null }),
      audience: await token(claims, { audience: "another" }),
      issuer: await token(claims, { issuer: "https://unknown.example" }),
      key: await token(claims, { by: other }),
      kid: await token(claims, { header: { kid: "k9" } }),
      // The public key taken for a shared secret.
      confused: await symmetric.sign(new TextEncoder().encode(pem)),
      unsigned: `${new UnsecuredJWT({ sub: "x", ...claims })
        .setIssuer(provider.url)
        .setAudience("conflux")
        .setExpirationTime("5m")
        .encode()}eA`,
      cut: good.slice(0, -8),
      changed: good.replace(/\.[\w-]+\./, `.${Buffer.from('{"sub":"x"}').toString("base64url")}.`),
      nothing: "eyJ9.e30.eA",
      long: `${good.slice(0, 20)}.${"a".repeat(9_000)}.b`,
    };
    for (const [what, bearer] of Object.entries(wrong)) {
      const answer = await h.call("GET", "/v1/tenants/acme/usage", { token: bearer });
      expect([what, answer.status, answer.body.code]).toEqual([what, 401, "unauthorized"]);
    }
    // Within the clocks' difference allowed.
    expect(await status(await token(claims, { expires: -5 }))).toBe(200);
  });

  test("that was good is no more once its issuer is gone, and its watch ends", async () => {
    const boss = await token({ role: "boss" });
    const response = await h
      .gateway()
      .fetch(h.request("GET", "/v1/tenants/acme/watch", { token: boss }));
    const reader = new FrameReader(response);
    expect((await reader.next())?.event).toBe("sync");
    await h.call("DELETE", "/v1/issuers/idp");
    expect((await reader.nextNews())?.data).toEqual({ reason: "unauthorized" });
    expect(await status(boss)).toBe(401);
  });

  test("allows less as soon as the rules do", async () => {
    const boss = await token({ role: "boss" });
    expect(await status(boss, "/v1/tenants/acme/keys")).toBe(200);
    await name({ rules: [{ tenant: "acme", kind: "read" }] });
    expect(await status(boss, "/v1/tenants/acme/keys")).toBe(403);
  });
});

describe("an issuer's keys", () => {
  test("are fetched once, and anew after a while only", async () => {
    await name();
    provider.fetches = [];
    await name({ clockSkewSeconds: 31 });
    for (let i = 0; i < 5; i++) expect(await status(await token({ role: "boss", i }))).toBe(200);
    for (let i = 0; i < 5; i++)
      await status(await token({ role: "boss", i }, { header: { kid: "k9" } }));
    expect(provider.fetches).toEqual(["/.well-known/openid-configuration", "/keys"]);
  });

  test.each([
    ["fail", { status: 500 }],
    ["lead elsewhere", { status: 302, location: "/.well-known/openid-configuration" }],
    ["have no end", { status: 200, body: " ".repeat(300 * 1024) }],
    ["are none", { status: 200, body: "[]" }],
  ])(
    "that %s make a token unknown for now, and are not asked for at every request",
    async (what, answer) => {
      await name({ jwksUri: `${provider.url}/keys/${what.length}` });
      provider.answer = answer;
      provider.fetches = [];
      try {
        for (let i = 0; i < 3; i++) {
          const refused = await h.call("GET", "/v1/tenants/acme/usage", {
            token: await token({ role: "boss", i }),
          });
          expect([refused.status, refused.body.code]).toEqual([503, "issuer-unavailable"]);
          expect(refused.headers.get("retry-after")).toBe("5");
        }
        if (what !== "are none") expect(provider.fetches.length).toBe(1);
      } finally {
        provider.answer = null;
      }
    },
  );

  test("may be given, so that nothing is fetched", async () => {
    provider.fetches = [];
    await name({ issuer: "urn:ours", jwks: { keys: provider.keys }, insecureHttp: false });
    expect(await status(await token({ role: "boss" }, { issuer: "urn:ours" }))).toBe(200);
    expect(provider.fetches).toEqual([]);
  });

  test.each([
    [{ jwksUri: "http://10.0.0.1/keys" }, "/jwksUri"],
    [{ jwksUri: "http://127.0.0.1/keys", insecureHttp: false }, "/jwksUri"],
    [{ jwksUri: "http://127.0.0.1.evil.example/keys" }, "/jwksUri"],
    [{ jwksUri: "https://user:secret@id.example/keys" }, "/jwksUri"],
    [{ jwksUri: "file:///etc/passwd" }, "/jwksUri"],
    [{ issuer: "http://id.example" }, "/issuer"],
    [{ jwksUri: "https://id.example/k", jwks: { keys: [{}] } }, "/jwksUri"],
    [{ jwks: { keys: [{ kty: "oct", k: "c2VjcmV0" }] } }, "/jwks/keys/0"],
    [{ jwks: { keys: [{ kty: "RSA", n: "AQAB", e: "AQAB", p: "AQ" }] } }, "/jwks/keys/0"],
    [{ jwks: { keys: [{ kty: "EC", crv: "P-256", x: "AA", y: "AA" }] } }, "/jwks/keys/0"],
    [{ algorithms: ["HS256"] }, "/algorithms/0"],
    [{ algorithms: ["none"] }, "/algorithms/0"],
    [{ rules: [] }, "/rules"],
    [{ rules: [{ tenant: "acme", kind: "root" }] }, "/rules/0/kind"],
  ])("%j is refused", async (change, pointer) => {
    const answer = await h.call("PUT", "/v1/issuers/odd", {
      body: { issuer: provider.url, audience: "a", insecureHttp: true, rules, ...change },
    });
    expect([answer.status, answer.body.errors?.[0].pointer]).toEqual([400, pointer]);
  });

  test("one name for each, guarded like everything", async () => {
    await name();
    const twin = await h.call("PUT", "/v1/issuers/twin", {
      body: { issuer: provider.url, audience: "a", insecureHttp: true, rules },
    });
    expect(twin.body.code).toBe("already-exists");
    const read = await h.call("GET", "/v1/issuers/idp");
    const headers = { "if-match": '"1"' };
    expect((await h.call("DELETE", "/v1/issuers/idp", { headers })).status).toBe(412);
    expect((await h.call("GET", "/v1/issuers")).body.items).toEqual([read.body]);
    expect((await h.call("GET", "/v1/issuers/none")).status).toBe(404);
    expect((await h.call("GET", "/v1/issuers/NO")).body.code).toBe("invalid-name");
  });
});
