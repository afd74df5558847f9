/** One cluster of three nodes, one on each runtime: the same sources, the same smoke test through every node. */
import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { exportJWK, generateKeyPair, SignJWT } from "jose";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import { routes } from "../../src/gateway/gateway.ts";
import { attack } from "../fuzz/attacks.ts";
import {
  ask,
  conflux,
  eventually,
  frames,
  persist,
  type Answer,
  type Ask,
  type Frame,
} from "./api.ts";

type Cluster = Awaited<ReturnType<typeof startCluster>>;

describe("Bun, Deno and Node in one cluster", () => {
  let cluster: Cluster;
  let urls: string[];
  let token: string;
  let keyFile: string;
  const lines: string[] = [];
  const base = "/v1/tenants/shop/namespaces/app";

  beforeAll(async () => {
    keyFile = path.join(mkdtempSync(path.join(tmpdir(), "conflux-e2e-")), "keys");
    writeFileSync(keyFile, `k1:${randomBytes(32).toString("base64")}\n`, { mode: 0o600 });
    cluster = await startCluster({
      nodes: 3,
      runtimes: ["bun", "deno", "node"],
      env: { CONFLUX_SECRET_KEY_FILE: keyFile, CONFLUX_LOG: "trace" },
      dataDir: path.join(path.dirname(keyFile), "nodes"),
      onLine: (_node, line) => lines.push(line),
    });
    urls = cluster.nodes.map((node) => node.url);
    const made = await persist(urls, "/v1/tenants", {
      token: cluster.rootToken,
      body: { id: "shop" },
      headers: { "idempotency-key": "make-shop" },
    });
    expect(made.status, JSON.stringify(made.body)).toBe(201);
    token = made.body.key.token;
  });

  afterAll(async () => {
    await cluster?.stop();
    rmSync(path.dirname(keyFile), { recursive: true });
  });

  test("different labels get different versions, through every node", async () => {
    const put = await ask(`${urls[0]}${base}/configs/limits`, {
      method: "PUT",
      token,
      body: { format: "json", content: { rate: 1 } },
    });
    expect(put.status, JSON.stringify(put.body)).toBe(201);
    const second = await ask(`${urls[1]}${base}/configs/limits/versions`, {
      token,
      body: { content: { rate: 2 } },
    });
    expect(second.status, JSON.stringify(second.body)).toBe(201);
    const release = await ask(`${urls[2]}${base}/configs/limits/release`, {
      method: "PUT",
      token,
      body: { rules: [{ id: "eu", match: { region: "eu" }, version: 2 }], default: 1 },
    });
    expect(release.status, JSON.stringify(release.body)).toBe(200);
    for (const url of urls) {
      const eu = await ask(`${url}${base}/values/limits?label.region=eu`, { token });
      expect(eu.body).toEqual({ rate: 2 });
      expect(eu.headers.get("conflux-rule")).toBe("eu");
      const us = await ask(`${url}${base}/values/limits?label.region=us`, { token });
      expect(us.body).toEqual({ rate: 1 });
      expect(us.headers.get("conflux-version")).toBe("1");
    }
  });

  test("a name is free again on every node once its tenant is purged", async () => {
    const names = ["again", "anew", "afresh"];
    const lives = async (tenant: string, which: number): Promise<void> => {
      // Each step on another node than the one before.
      const [one, other, third] = [0, 1, 2].map((at) => urls[(which + at) % 3] as string);
      const body = { format: "json", content: { life: 0 } };
      for (let life = 0; life < 15; life++) {
        const made = await ask(`${one}/v1/tenants`, {
          token: cluster.rootToken,
          body: { id: tenant },
        });
        expect(made.status, JSON.stringify(made.body)).toBe(201);
        const key = made.body.key.token;
        const path = `${other}/v1/tenants/${tenant}/namespaces/app/configs/life`;
        const put = await ask(path, { method: "PUT", token: key, body });
        expect(put.status, JSON.stringify(put.body)).toBe(201);
        const purge = `${third}/v1/tenants/${tenant}?purge=true`;
        const gone = await ask(purge, { method: "DELETE", token: cluster.rootToken });
        expect(gone.status, JSON.stringify(gone.body)).toBe(200);
        for (const url of urls) {
          const after = await ask(`${url}/v1/tenants/${tenant}/group`, {
            token: cluster.rootToken,
          });
          expect(after.status, JSON.stringify(after.body)).toBe(404);
        }
      }
    };
    await Promise.all(names.map(lives));
  });

  test("watchers on every node see a publish made on any", async () => {
    const abort = new AbortController();
    const seen: Frame[][] = urls.map(() => []);
    const watching = urls.map(async (url, index) => {
      try {
        const headers = { authorization: `Bearer ${token}` };
        for await (const frame of frames(
          `${url}/v1/tenants/shop/watch?content=true`,
          headers,
          abort.signal,
        )) {
          seen[index]?.push(frame);
        }
      } catch (error) {
        if (!abort.signal.aborted) throw error;
      }
    });
    await eventually("every watcher is synced", () =>
      seen.every((some) => some[0]?.event === "sync"),
    );
    for (const [index, url] of urls.entries()) {
      // One is held back for nearly all, until the next one takes it along.
      const spread = index === 1 ? "?spread=3600s" : "";
      const published = await ask(`${url}${base}/configs/limits/publish${spread}`, {
        token,
        body: { content: { rate: 10 + index } },
      });
      expect(published.status, JSON.stringify(published.body)).toBeLessThan(300);
    }
    await eventually("every watcher sees all three", () =>
      seen.every((some) => some.filter((frame) => frame.event === "commit").length === urls.length),
    );
    abort.abort();
    await Promise.all(watching);
    const [first, ...others] = seen.map((some) => some.filter((frame) => frame.event === "commit"));
    for (const other of others) expect(other).toEqual(first);
  });

  test("the head of a long answer leaves each of them in one piece", async () => {
    const put = await ask(`${urls[0]}${base}/configs/long`, {
      method: "PUT",
      token,
      body: { format: "text", content: "x".repeat(50_000) },
    });
    expect(put.status, JSON.stringify(put.body)).toBe(201);
    const head = `Host: localhost\r\nAuthorization: Bearer ${token}\r\n`;
    for (const url of urls)
      // In pieces it would still arrive together now and then.
      for (let i = 0; i < 20; i++) {
        const first = await new Promise<string>((resolve, reject) => {
          const socket = connect(Number(new URL(url).port), "127.0.0.1", () => {
            socket.write(`GET ${base}/values/long HTTP/1.1\r\n${head}\r\n`);
          });
          socket.on("error", reject);
          socket.once("data", (bytes) => {
            socket.destroy();
            resolve(bytes.toString("latin1"));
          });
        });
        expect(first).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
        expect(first).toContain("\r\n\r\n");
      }
  });

  test("what no HTTP client would send is refused, cut or harmless on each", async () => {
    for (const node of cluster.nodes)
      expect([node.runtime, await attack(node.url, token)]).toEqual([node.runtime, []]);
  });

  test("a secret is opened by each of them, and is on no disk", async () => {
    const secret = `secret-${randomBytes(16).toString("hex")}`;
    const reader = await ask(`${urls[0]}/v1/tenants/shop/keys`, {
      token,
      body: { kind: "client", scopes: ["secrets"] },
    });
    for (const [index, url] of urls.entries()) {
      const made = await ask(`${url}${base}/configs/secret-${index}`, {
        method: "PUT",
        token,
        body: { format: "text", secret: true, content: secret },
      });
      expect(made.status, JSON.stringify(made.body)).toBe(201);
      for (const other of urls) {
        const read = await ask(`${other}${base}/values/secret-${index}`, {
          token: reader.body.token,
        });
        expect(read.body).toBe(secret);
      }
    }
    const rotated = await ask(`${urls[1]}/v1/tenants/shop/secrets/rotate`, { token, body: {} });
    expect(rotated.body).toEqual({ rotated: 0, key: "k1", more: false });
    const files = cluster.nodes.flatMap((node) =>
      readdirSync(node.dataDir, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => path.join(entry.parentPath, entry.name)),
    );
    expect(files.length).toBeGreaterThan(cluster.nodes.length);
    let sealed = 0;
    for (const file of files) {
      const bytes = readFileSync(file);
      expect(bytes.includes(secret), file).toBe(false);
      if (bytes.includes('"sealed')) sealed++;
      else if (bytes.includes('\\"sealed')) sealed++;
    }
    expect(sealed).toBeGreaterThan(0);
    for (const node of cluster.nodes) expect(node.lines.join("\n")).not.toContain(secret);
  });

  test("an identity provider's tokens are checked by each of them", async () => {
    const { privateKey, publicKey } = await generateKeyPair("RS256", { extractable: true });
    const jwk = { ...(await exportJWK(publicKey)), kid: "k1", alg: "RS256" };
    const provider = createServer((request, response) => {
      response.end(JSON.stringify(request.url === "/keys" ? { keys: [jwk] } : {}));
    });
    await new Promise<void>((resolve) => provider.listen(0, "127.0.0.1", resolve));
    const issuer = `http://127.0.0.1:${(provider.address() as AddressInfo).port}`;
    try {
      const named = await ask(`${urls[0]}/v1/issuers/idp`, {
        method: "PUT",
        token: cluster.rootToken,
        body: {
          issuer,
          audience: "conflux",
          jwksUri: `${issuer}/keys`,
          insecureHttp: true,
          rules: [{ match: { groups: "ops" }, tenant: "shop", kind: "write" }],
        },
      });
      expect(named.status, JSON.stringify(named.body)).toBe(201);
      const jwt = (groups: string[], expires: number): Promise<string> =>
        new SignJWT({ sub: "ann", groups })
          .setProtectedHeader({ alg: "RS256", kid: "k1" })
          .setIssuer(issuer)
          .setAudience("conflux")
          .setExpirationTime(Math.floor(Date.now() / 1_000) + expires)
          .sign(privateKey);
      const [ann, bob, late] = [await jwt(["ops"], 60), await jwt([], 60), await jwt(["ops"], -60)];
      for (const url of urls) {
        const published = await ask(`${url}${base}/configs/limits/publish`, {
          token: ann,
          body: { content: { by: url } },
        });
        expect(published.status, JSON.stringify(published.body)).toBe(201);
        expect(published.body.by).toBe("idp:ann");
        for (const [refused, status] of [
          [bob, 403],
          [late, 401],
        ] as const)
          expect((await ask(`${url}${base}/values/limits`, { token: refused })).status).toBe(
            status,
          );
      }
    } finally {
      await new Promise((resolve) => provider.close(resolve));
    }
  });

  test("each node's death is survived, and it comes back", async () => {
    for (const [index, node] of cluster.nodes.entries()) {
      await node.kill("SIGKILL");
      const others = urls.filter((_, other) => other !== index);
      const written = await persist(others, `${base}/configs/limits/publish`, {
        token,
        body: { content: { rate: 100 + index } },
        headers: { "idempotency-key": `after-${node.name}` },
      });
      expect(written.status, JSON.stringify(written.body)).toBeLessThan(300);
      node.start();
      await node.ready();
      const read = await persist([node.url], `${base}/values/limits`, { token });
      expect(read.body).toEqual({ rate: 100 + index });
    }
  });

  test("all of them stop in good order when asked", async () => {
    for (const node of cluster.nodes) {
      expect(
        await node.kill("SIGTERM"),
        `${node.name} on ${node.runtime}: ${node.lines.join("\n")}`,
      ).toBe("exit 0");
      node.start();
      await node.ready();
    }
    const read = await persist(urls, `${base}/values/limits`, { token });
    expect(read.body).toEqual({ rate: 102 });
  });

  test("a secret's text is in no answer without the scope, in no file, and in no line of a log", async () => {
    const mark = `Zq${randomBytes(12).toString("hex")}`;
    const canary = `Op${randomBytes(12).toString("hex")}`;
    const T = "/v1/tenants/shop";
    const N = `${T}/namespaces/hidden`;
    const keyOf = async (body: object): Promise<string> =>
      (await persist(urls, `${T}/keys`, { token, body })).body.token as string;
    const tokens = [
      cluster.rootToken,
      token,
      await keyOf({ kind: "write" }),
      await keyOf({ kind: "read" }),
      await keyOf({ kind: "client" }),
      // With the scope, for another place.
      await keyOf({ kind: "client", scopes: ["secrets"], namespaces: ["app"] }),
    ];
    const scoped = await keyOf({ kind: "client", scopes: ["secrets"] });
    const seen: string[] = [];
    const leaked: string[] = [];
    const leaks = (of: string, text: string): void => {
      seen.push(text);
      const shown = text.includes(mark) || text.includes(Buffer.from(mark).toString("base64"));
      if (shown) leaked.push(`${of}: ${text}`);
    };
    let turn = 0;
    const call = async (target: string, options: Ask = {}): Promise<Answer> => {
      const answer = await persist([urls[turn++ % urls.length] as string], target, {
        token,
        ...options,
      });
      if (options.token === scoped) return answer;
      const shown = [JSON.stringify(answer.body), ...answer.headers].join("\n");
      leaks(`${options.method ?? ""} ${target} ${JSON.stringify(options.body)}`, shown);
      return answer;
    };

    const schema = {
      type: "object",
      additionalProperties: false,
      properties: { password: { type: "string", maxLength: 60 }, kind: { enum: ["a"] } },
    };
    const good = {
      json: `{"password": "${mark}"}`,
      yaml: `password: ${mark}\n`,
      toml: `password = "${mark}"\n`,
      properties: `password=${mark}\n`,
      text: mark,
    };
    for (const [format, content] of Object.entries(good)) {
      const body = { format, content, secret: true, ...(format === "json" && { schema }) };
      const put = await call(`${N}/configs/${format}`, { method: "PUT", body });
      expect([format, put.status]).toEqual([format, 201]);
    }
    await call(`${N}/configs/open`, { method: "PUT", body: { format: "text", content: canary } });
    await call(`${T}/namespaces/child`, { method: "PUT", body: { extends: "hidden" } });

    // What is refused, on every runtime, and not in the words of its parser.
    const bad: readonly (readonly [name: string, content: string])[] = [
      ["json", `{"password": "${mark}`],
      ["json", `{"password": ${mark}}`],
      ["json", mark],
      ["json", `{"password": "${mark}${mark}${mark}"}`],
      ["json", `{"kind": "${mark}"}`],
      ["json", `{"${mark}": 1}`],
      ["json", `{"${mark}": 1, "${mark}": 2}`],
      ["yaml", `a: [${mark}`],
      ["yaml", `${mark}: 1\n${mark}: 2\n`],
      ["yaml", `a: *${mark}`],
      ["toml", `a = ${mark}`],
      ["toml", `${mark} = 1\n${mark} = 2`],
      ["properties", `a=\\u${mark}`],
      ["text", mark.repeat(4_000)],
    ];
    for (const [name, content] of bad)
      for (const _ of urls) {
        const target = `${N}/configs/${name}`;
        const { status } = await call(`${target}/publish`, { body: { content } });
        if (name !== "properties")
          expect([name, content.length, status >= 400]).toEqual([name, content.length, true]);
        await call(`${target}/versions?dryRun=true`, { body: { content } });
        const then = [{ op: "publish", namespace: "hidden", name, content }];
        await call(`${T}/transactions`, { body: { then } });
        await call(`${N}/configs/new`, {
          method: "PUT",
          body: { format: name, content, secret: true, scret: 1 },
        });
      }
    for (const url of urls)
      for (const raw of [`{"content": "${mark}`, `{"content": ${mark}}`, mark]) {
        const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
        const target = `${url}${N}/configs/text/publish`;
        const answer = await fetch(target, { method: "POST", headers, body: raw });
        expect(answer.status).toBe(400);
        leaks(raw, await answer.text());
      }

    const filled = (route: string): string =>
      route
        .replace(":tenant", "shop")
        .replace(":namespace", "hidden")
        .replace(":version", "1")
        .replace(":node", "n1");
    // That stream never ends, and says no more than that flags are to be asked for again.
    const reads = routes.filter(
      ({ method, path: of }) => method === "GET" && !of.endsWith("/events"),
    );
    expect(reads.length).toBeGreaterThan(30);
    const targets = new Set<string>(["/metrics", "/livez", "/readyz", "/openapi.json"]);
    for (const one of reads)
      for (const name of ["json", "text"]) {
        const target = filled(one.path).replace(":name", name);
        const query = target.endsWith("/watch") ? "?wait=0s" : "";
        targets.add(`${target}${query}`);
        if (!target.includes("/values") && !target.endsWith("/watch")) continue;
        const sign = query === "" ? "?" : "&";
        for (const more of ["rules=true", "explain=true", "content=true"])
          targets.add(`${target}${query}${sign}${more}`);
        targets.add(`${target.replace("/hidden/", "/child/")}${query}`);
      }
    for (const target of targets)
      for (const one of tokens) {
        const headers = { authorization: `Bearer ${one}` };
        const got = await fetch(`${urls[turn++ % urls.length]}${target}`, { headers });
        leaks(`${got.status} ${target}`, [await got.text(), ...got.headers].join("\n"));
      }
    for (const one of tokens) {
      const body = { context: { targetingKey: "x" } };
      await call(`${N}/ofrep/v1/evaluate/flags`, { token: one, body });
      await call(`${N}/ofrep/v1/evaluate/flags/text`, { token: one, body });
    }

    const folder = path.join(path.dirname(keyFile), "out");
    const words = [
      "get -n hidden",
      "describe text -n hidden",
      "history text -n hidden",
      "eval text -n hidden",
      "eval json -n hidden --explain",
      "get text -n hidden -o yaml",
      "audit export",
      `export shop -f ${folder}/manifests`,
      `diff -f ${folder}/manifests`,
      `gen types -n hidden -f ${folder}/types.d.ts`,
      `backup --to ${folder}/backups shop`,
    ];
    for (const [i, one] of words.entries()) {
      const env = { CONFLUX_URL: urls[i % 3] as string, CONFLUX_TOKEN: token };
      const { out, err } = await conflux(one.split(" "), env);
      leaks(one, `${out}\n${err}`);
    }

    // Who may has it, from everywhere, and what is not secret is found in all of these places.
    for (const url of urls) {
      const value = await persist([url], `${N}/values/text`, { token: scoped });
      expect([value.status, value.body]).toEqual([200, mark]);
    }
    expect(seen.some((text) => text.includes(canary))).toBe(true);
    expect(leaked).toEqual([]);
    await cluster.stop();
    const files = readdirSync(path.dirname(keyFile), { recursive: true, withFileTypes: true })
      .filter((one) => one.isFile())
      .map((one) => path.join(one.parentPath, one.name));
    const holding = (text: string): string[] =>
      files.filter((file) => readFileSync(file).includes(text));
    expect(holding(canary).length).toBeGreaterThan(2);
    expect(holding(mark)).toEqual([]);
    expect(lines.length).toBeGreaterThan(10);
    expect(lines.filter((line) => line.includes(mark))).toEqual([]);
  }, 180_000);
});
