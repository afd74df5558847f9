/** Bad input: each gets a clear, specific answer, and nothing is half done. */
import { gzipSync } from "node:zlib";
import * as fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { problems } from "../../src/api/problems.ts";
import { Harness, type Options } from "./harness.ts";

const h = new Harness();
const N = "/v1/tenants/acme/namespaces/app";
let admin = "";

beforeAll(async () => {
  admin = await h.tenant("acme");
  await h.call("PUT", `${N}/configs/cfg`, { token: admin, body: { content: 1 } });
});
afterAll(() => h.close());

const call = (method: string, path: string, options: Options = {}) =>
  h.call(method, path, { token: admin, ...options });

describe("problems", () => {
  test("every one is RFC 9457 with a code of the table and the request's id", async () => {
    const answer = await call("GET", `${N}/configs/none`, { headers: { "x-request-id": "abc.1" } });
    expect(answer.headers.get("content-type")).toBe("application/problem+json");
    expect(answer.headers.get("x-request-id")).toBe("abc.1");
    expect(answer.body).toEqual({
      type: "/problems/not-found",
      title: problems["not-found"].title,
      status: 404,
      detail: "There is no config app/none",
      code: "not-found",
      requestId: "abc.1",
    });
  });

  test("one says how far the tenant is to whoever was let in, also where nothing was read", async () => {
    const far = (await call("GET", `${N}/configs/cfg`)).headers.get("conflux-revision");
    expect(far).toMatch(/^\d+$/);
    const wrong = { format: "json", content: "{" };
    const refused = [
      await call("PUT", `${N}/configs/other`, { body: wrong }),
      await h.call("PUT", `${N}/configs/other`, { body: wrong }),
      await call("POST", `${N}/configs/none/publish`, { body: { content: 1 } }),
      await call("POST", `${N}/configs/cfg/publish`, { body: {} }),
    ];
    expect(refused.map(({ status }) => status)).toEqual([422, 422, 404, 400]);
    for (const { headers } of refused) expect(headers.get("conflux-revision")).toBe(far);
    const key = await call("POST", "/v1/tenants/acme/keys", { body: { kind: "client" } });
    const client = await h.call("GET", `${N}/configs/cfg`, { token: key.body.token });
    await call("DELETE", `/v1/tenants/acme/keys/${key.body.id}`);
    const revoked = await h.call("GET", `${N}/configs/cfg`, { token: key.body.token });
    expect([client.status, revoked.status]).toEqual([403, 401]);
    for (const { headers } of [client, revoked]) expect(headers.get("conflux-revision")).toBe(null);
  });

  test("one says what is taken where there is a choice", async () => {
    const quotas = { quotas: { configs: -1 }, replicas: 2 };
    const answer = await h.call("PATCH", "/v1/tenants/acme", { body: quotas });
    expect(answer.body.errors).toEqual([
      { pointer: "/quotas/configs", detail: "Expected integer from 0 or null" },
      { pointer: "/replicas", detail: "Expected one of 1, 3, 5" },
    ]);
  });

  test("a request id that is not fit to be logged is replaced", async () => {
    for (const id of ["a b", "x".repeat(200), "<script>"]) {
      const answer = await call("GET", "/livez", { headers: { "x-request-id": id } });
      expect(answer.headers.get("x-request-id")).not.toBe(id);
      expect(answer.headers.get("x-request-id")).toMatch(/^[0-9A-Za-z]+$/);
    }
  });

  test("what is unexpected is told as internal only, and logged whole", async () => {
    const service = h.cluster.service("n1");
    const read = service.read.bind(service);
    service.read = () => Promise.reject(new Error("secret detail of the disk"));
    service.leads = false;
    const answer = await call("GET", `${N}/configs/cfg`, { token: admin });
    service.read = read;
    service.leads = true;
    expect([answer.status, answer.body.code]).toEqual([500, "internal"]);
    expect(answer.text).not.toContain("secret");
    const line = h.logged.find((one) => one.event === "gateway.request_failed");
    expect(line?.fields).toMatchObject({ requestId: answer.body.requestId });
    const { err } = (line?.fields ?? {}) as { err: Error };
    expect(err.message).toContain("secret detail");
  });

  test("with debug logging every answer is the same, and each request is logged", async () => {
    const debugged = new Harness({ isDebug: true });
    for (const path of ["/livez", "/openapi.json", "/v1/tenants", "/v1/tenants/none/usage"]) {
      const [expected, answer] = [await h.call("GET", path), await debugged.call("GET", path)];
      expect([path, answer.status]).toEqual([path, expected.status]);
      expect(debugged.logged.at(-1)).toMatchObject({ level: "debug", event: "gateway.request" });
    }
    debugged.close();
  });

  test("what fails outside of a route is internal, too", async () => {
    const failing = new Harness({ isDebug: true });
    const { logged } = failing;
    const push = logged.push.bind(logged);
    logged.push = (line) => {
      if (line.level === "debug") throw new Error("secret detail of the log");
      return push(line);
    };
    const answer = await failing.call("GET", "/livez", { headers: { "x-request-id": "abc.2" } });
    expect([answer.status, answer.body.code]).toEqual([500, "internal"]);
    expect(answer.headers.get("x-request-id")).toBe("abc.2");
    expect(answer.text).not.toContain("secret");
    expect(logged.map((line) => line.event)).toEqual(["gateway.request_failed"]);
    failing.close();
  });
});

describe("routes", () => {
  test("an unknown one is 404, a wrong method 405 with what is allowed", async () => {
    for (const path of ["/", "/v1", "/v1/tenant", `${N}/configs/cfg/`, "/v1/tenants//keys"]) {
      const answer = await call("GET", path);
      expect([path, answer.status, answer.body.code]).toEqual([path, 404, "not-found"]);
    }
    const wrong = await call("PATCH", `${N}/configs/cfg`, { body: {} });
    expect([wrong.status, wrong.body.code]).toEqual([405, "method-not-allowed"]);
    expect(wrong.headers.get("allow")).toBe("PUT, GET, HEAD, DELETE, OPTIONS");
    expect((await call("PROPFIND", `${N}/configs`)).status).toBe(405);
  });

  test("HEAD says the length of what GET would answer, also where nothing is", async () => {
    const headers = { "x-request-id": "same" };
    for (const path of ["/livez", "/nowhere", `${N}/configs/none`, `${N}/values/cfg`]) {
      const head = await call("HEAD", path, { headers });
      const { status, text } = await call("GET", path, { headers });
      expect([path, head.status, head.text]).toEqual([path, status, ""]);
      expect(head.headers.get("content-length")).toBe(String(Buffer.byteLength(text)));
    }
  });

  test("a short host name does not confuse the router", async () => {
    const response = await h
      .gateway()
      .fetch(new Request("http://n1/livez", { headers: { authorization: "x" } }));
    expect(response.status).toBe(200);
    const put = await h.gateway().fetch(
      new Request("http://n/v1/tenants/acme/namespaces/app/configs/short", {
        method: "PUT",
        headers: { authorization: `Bearer ${admin}`, "content-type": "application/json" },
        body: JSON.stringify({ content: 1 }),
      }),
    );
    expect(put.status).toBe(201);
  });

  test("preflights are answered, and answers may be read by pages", async () => {
    const response = await h.gateway().fetch(
      new Request(`http://localhost${N}/values`, {
        method: "OPTIONS",
        headers: {
          origin: "https://app.example",
          "access-control-request-method": "GET",
          "access-control-request-headers": "authorization,if-none-match",
        },
      }),
    );
    expect(response.status).toBe(204);
    expect(response.headers.get("access-control-allow-origin")).toBe("*");
    expect(response.headers.get("access-control-allow-methods")).toContain("GET");
    const allowed = response.headers.get("access-control-allow-headers") ?? "";
    for (const name of [
      "content-type",
      "if-none-match",
      "if-match",
      "authorization",
      "x-api-key",
      "idempotency-key",
      "last-event-id",
      "conflux-min-revision",
    ])
      expect(allowed).toContain(name);
    const answer = await call("GET", `${N}/values`, { headers: { origin: "https://app.example" } });
    const exposed = answer.headers.get("access-control-expose-headers") ?? "";
    for (const name of ["ETag", "Retry-After", "Location", "Conflux-Revision", "Conflux-Version"])
      expect(exposed).toContain(name);
    const refused = await call("GET", `${N}/configs/none`, {
      headers: { origin: "https://a.example" },
    });
    expect(refused.headers.get("access-control-allow-origin")).toBe("*");
    expect((await call("OPTIONS", "/nowhere")).status).toBe(404);
  });
});

describe("bodies", () => {
  test.each(["{", "", "nul", '{"content":1}}', '{"content":1', "\u0000", "[1,]"])(
    "%j is malformed",
    async (raw) => {
      const answer = await call("PUT", `${N}/configs/bad`, { raw });
      const empty = raw === "";
      expect(answer.status).toBe(empty ? 201 : 400);
      if (!empty) expect(answer.body.code).toBe("malformed-json");
    },
  );

  test("no body where one is needed, and one that is no object", async () => {
    expect((await call("POST", `${N}/configs/cfg/publish`)).body.code).toBe("invalid");
    for (const raw of ["null", "1", '"x"', "[]"]) {
      const answer = await call("POST", `${N}/configs/cfg/publish`, { raw });
      expect([answer.status, answer.body.code]).toEqual([400, "invalid"]);
    }
  });

  test("bytes that are not UTF-8 are malformed, not replaced", async () => {
    const raw = new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]);
    const answer = await call("PUT", `${N}/configs/bad`, { raw });
    expect([answer.status, answer.body.code]).toEqual([400, "malformed-json"]);
  });

  test.each([
    ['{"content": 1,}', "Give a name in double quotes, or close the object (line 1, column 15)"],
    ['{"content":\n 01}', "line 2, column 3"],
    [
      '{"content": NaN}',
      "Give an object, array, string in double quotes, number, true, false or null",
    ],
    ['{"content": "', "Close the string: its end is missing (line 1, column 13)"],
  ])("%j is told what is wrong and where, alike on every runtime", async (raw, detail) => {
    const answer = await call("PUT", `${N}/configs/bad`, { raw });
    expect([answer.status, answer.body.code]).toEqual([400, "malformed-json"]);
    expect(answer.body.detail).toContain(detail);
  });

  test("the text of a body is never told back", async () => {
    const answer = await call("PUT", `${N}/configs/bad`, { raw: '{"content": my-secret }' });
    expect(answer.text).not.toContain("my-secret");
  });

  test("another content type is 415", async () => {
    for (const type of ["text/plain", "application/yaml", "multipart/form-data"]) {
      const answer = await call("PUT", `${N}/configs/bad`, {
        raw: "{}",
        headers: { "content-type": type },
      });
      expect([answer.status, answer.body.code]).toEqual([415, "unsupported-media-type"]);
    }
    const good = await call("PUT", `${N}/configs/charset`, {
      raw: "{}",
      headers: { "content-type": "Application/JSON; charset=utf-8" },
    });
    expect(good.status).toBe(201);
  });

  test("one that is compressed is 415, and not taken for broken JSON", async () => {
    const body = new Uint8Array(gzipSync('{"content":2}'));
    const answer = await call("POST", `${N}/configs/cfg/publish`, {
      raw: body,
      headers: { "content-encoding": "gzip" },
    });
    expect([answer.status, answer.body.code]).toEqual([415, "unsupported-media-type"]);
    expect(answer.body.detail).toContain("Content-Encoding");
    const identity = { "content-encoding": "identity" };
    const plain = { body: { content: 2 }, headers: identity };
    expect((await call("POST", `${N}/configs/cfg/publish`, plain)).status).toBe(201);
  });

  test("one over the limit is 413, also when it does not say how long it is", async () => {
    const whole = await call("PUT", `${N}/configs/bad`, { raw: "x".repeat(4 * 1024 * 1024 + 1) });
    expect([whole.status, whole.body.code]).toEqual([413, "body-too-large"]);
    let sent = 0;
    const endless = new ReadableStream<Uint8Array>({
      pull(controller) {
        sent += 64 * 1024;
        controller.enqueue(new Uint8Array(64 * 1024).fill(0x20));
      },
    });
    const chunked = await call("PUT", `${N}/configs/bad`, { raw: endless });
    expect(chunked.status).toBe(413);
    expect(sent).toBeLessThan(5 * 1024 * 1024);
    const small = await call("POST", "/v1/tenants/acme/keys", { raw: " ".repeat(70_000) });
    expect(small.status).toBe(413);
  });

  test("a bomb of brackets is refused before it is parsed", async () => {
    const answer = await call("PUT", `${N}/configs/bad`, {
      raw: `{"content":${"[".repeat(1_000_000)}`,
    });
    expect([answer.status, answer.body.code]).toEqual([400, "malformed-json"]);
  });

  test.each([
    ['{"content":{"id":12345678901234567890}}', "line 1, column 18", "1234567890"],
    ['{"content":\n[-9007199254740993]}', "line 2, column 3", "900719"],
    [`{"content":${"9".repeat(400)}}`, "line 1, column 12", "9999"],
    [
      '{"message":"\\"","content":1,"content":{"a":[0,10000000000000000001]}}',
      "line 1, column 47",
      "10000000",
    ],
  ])(
    "an integer that would lose digits is refused, and not quoted: %s",
    async (raw, place, digits) => {
      const answer = await call("PUT", `${N}/configs/digits`, { raw });
      expect([answer.status, answer.body.code]).toEqual([400, "invalid"]);
      expect(answer.body.detail).toContain(place);
      // It may be meant for a secret.
      expect(answer.text).not.toContain(digits);
      expect((await call("GET", `${N}/configs/digits`)).status).toBe(404);
    },
  );

  test.each([
    ['{"content":{"max":1,"max":2}}', "/content/max"],
    ['{"content":1,"content":2}', "/content"],
    ['{"content":[{"a/b":{"x":1,"~":2,"\\u007e":3}}]}', "/content/0/a~1b/~0"],
    ['{"content":{"a":{"__proto__":1},"":{"__proto__":1,"__proto__":1}}}', "/content//__proto__"],
    ['{"content":"a:b","message":"{\\"a\\":1}","content":"a:b"}', "/content"],
  ])("a name given twice is refused, not the last one taken: %s", async (raw, pointer) => {
    const answer = await call("PUT", `${N}/configs/twice`, { raw });
    expect([answer.status, answer.body.code]).toEqual([400, "invalid"]);
    expect(answer.body.errors).toEqual([{ pointer, detail: "Given more than once" }]);
    expect((await call("GET", `${N}/configs/twice`)).status).toBe(404);
  });

  test("what looks like a name given twice passes", async () => {
    for (const content of [
      [{ a: 1 }, { a: 1 }],
      { a: { a: { a: 1 } }, "a:": ":", ":": '"a":' },
      { constructor: 1, toString: 2, "": { "": null } },
    ]) {
      const answer = await call("PUT", `${N}/configs/once?dryRun=true`, { body: { content } });
      expect([content, answer.status]).toEqual([content, 201]);
    }
    const proto = '{"content":{"__proto__":{"__proto__":1}}}';
    expect((await call("PUT", `${N}/configs/once?dryRun=true`, { raw: proto })).status).toBe(201);
  });

  test("numbers that stay what they are, and digits within strings, pass", async () => {
    const text = '{"a":12345678901234567890}';
    const exact =
      "[9007199254740991,10000000000000000000,-1152921504606846976,1e300,0.10000000000000001]";
    for (const raw of [`{"content":${JSON.stringify(text)}}`, `{"content":${exact}}`]) {
      const answer = await call("PUT", `${N}/configs/digits?dryRun=true`, { raw });
      expect([raw, answer.status]).toEqual([raw, 201]);
    }
  });

  test("unknown fields are named", async () => {
    const answer = await call("PUT", `${N}/configs/bad`, { body: { contents: 1, formats: 2 } });
    expect(answer.body.errors.map((error: { pointer: string }) => error.pointer)).toEqual([
      "/contents",
      "/formats",
    ]);
    expect(answer.body.detail).toMatch(
      /^\/contents: This field is not known here: known are format, content, .* \(and 1 more\)$/,
    );
    const proto = await call("PUT", `${N}/configs/bad`, { raw: '{"__proto__":{"content":1}}' });
    expect([proto.status, proto.body.code]).toEqual([400, "invalid"]);
  });
});

describe("names and queries", () => {
  test.each([
    "/v1/tenants/ACME/usage",
    "/v1/tenants/a_b/usage",
    "/v1/tenants/acme/namespaces/App/configs",
    "/v1/tenants/acme/namespaces/.app/configs",
    `${N}/configs/UPPER`,
    `${N}/configs/-a`,
    `${N}/configs/${"x".repeat(129)}`,
    `${N}/configs/a%2Fb`,
    `${N}/configs/a%00b`,
    `${N}/configs/%E2%82%AC`,
    `${N}/configs/a b`,
    `${N}/values/a%20b`,
  ])("%s is outside the grammar", async (path) => {
    const answer = await h.call("GET", path);
    expect([answer.status, answer.body.code]).toEqual([400, "invalid-name"]);
    expect(answer.body.errors[0].pointer).toMatch(/^\/path\//);
  });

  test("a path that cannot be decoded is refused", async () => {
    for (const name of ["%", "%zz", "%ff", "%e2%82", "%C3%28", "a%ff"])
      for (const [method, path, pointer] of [
        ["PUT", `${N}/configs/${name}`, "/path/name"],
        ["GET", `${N}/configs/${name}`, "/path/name"],
        ["GET", `${N}/values/${name}`, "/path/name"],
        ["PUT", `/v1/tenants/acme/namespaces/${name}/configs/a`, "/path/namespace"],
        ["GET", `/v1/tenants/${name}/usage`, "/path/tenant"],
        ["DELETE", `/v1/tenants/acme/keys/${name}`, "/path/key"],
      ] as const) {
        const options = method === "PUT" ? { body: { content: 1 } } : {};
        const answer = await h.call(method, path, options);
        expect([path, answer.status, answer.body.code]).toEqual([path, 400, "invalid-name"]);
        expect(answer.body.errors[0].pointer).toBe(pointer);
      }
    // What could not be decoded was once taken for the text "null".
    expect((await h.call("GET", `${N}/configs/null`)).status).toBe(404);
  });

  test.each([
    [`${N}/configs?limt=1`, "/query/limt"],
    [`${N}/configs?limit=0`, "/query/limit"],
    [`${N}/configs?limit=x`, "/query/limit"],
    [`${N}/configs?limit=1&limit=2`, "/query/limit"],
    [`${N}/configs?deleted=yes`, "/query/deleted"],
    [`${N}/configs/cfg?label.a=b`, "/query/label.a"],
    [`${N}/values/cfg?lable.a=b`, "/query/lable.a"],
    [`${N}/values/cfg?label.a=b&label.a=c`, "/query/label.a"],
    [`${N}/values/cfg?label.=b`, "/query/label."],
    [`${N}/values/cfg?label.a%20b=c`, "/query/label.a b"],
    [`${N}/watch?since=yesterday`, "/query/since"],
    [`${N}/watch?wait=forever`, "/query/wait"],
    [`${N}/watch?wait=61s`, "/query/wait"],
  ])("%s is refused at %s", async (path, pointer) => {
    const answer = await h.call("GET", path);
    expect([answer.status, answer.body.code]).toEqual([400, "invalid"]);
    expect(answer.body.errors[0].pointer).toBe(pointer);
  });

  test.each([
    [`${N}/values/cfg?label.a=%ff`, "/query/label.a"],
    [`${N}/values?label.a=b&label.c=x%C3`, "/query/label.c"],
    [`${N}/values/cfg?label.%e2%82=b`, "/query/label.\ufffd"],
    [`${N}/watch?wait=0s&prefix=%ed%a0%80`, "/query/prefix"],
    [`${N}/flagd.json?label.a=%ff`, "/query/label.a"],
    [`/v1/tenants?cursor=%ff`, "/query/cursor"],
    [`${N}/values/cfg?label.a=${"x".repeat(300)}%ff`, "/query/label.a"],
  ])("%s, which is not UTF-8, is refused and not replaced", async (path, pointer) => {
    for (let times = 0; times < 2; times++) {
      const answer = await h.call("GET", path);
      expect([answer.status, answer.body.code]).toEqual([400, "invalid"]);
      expect(answer.body.errors).toEqual([
        { pointer, detail: "Percent-encode the query as UTF-8" },
      ]);
    }
  });

  test("a label may hold any text, the sign of replacement and a percent sign too", async () => {
    for (const text of ["%EF%BF%BD", "%f0%9f%98%80", "50%", "%zz"])
      expect((await h.call("GET", `${N}/values/cfg?label.a=${text}`)).status).toBe(200);
  });

  test("64 labels are fine, 65 are not", async () => {
    const labels = (count: number): string =>
      Array.from({ length: count }, (_, i) => `label.l${i}=v`).join("&");
    expect((await h.call("GET", `${N}/values/cfg?${labels(64)}`)).status).toBe(200);
    const many = await h.call("GET", `${N}/values/cfg?${labels(65)}`);
    expect([many.status, many.body.code]).toEqual([400, "invalid"]);
    expect((await h.call("GET", `${N}/values/cfg?label.a=${"x".repeat(1_025)}`)).status).toBe(400);
  });

  test("labels of any name within their grammar cannot reach prototypes", async () => {
    for (const name of ["__proto__", "constructor", "toString"]) {
      const answer = await h.call("GET", `${N}/values/cfg?label.${name}=x`);
      expect([200, 400]).toContain(answer.status);
    }
  });
});

describe("limits", () => {
  test("more requests at once than allowed are refused with 503, health is not", async () => {
    const busy = new Harness({ settings: { requestsMax: 2 } });
    await busy.tenant("acme");
    const service = busy.cluster.service("n1");
    service.leads = false;
    const read = service.read.bind(service);
    let release: () => void = () => {};
    const gate = new Promise<void>((resolve) => (release = resolve));
    service.read = async (tenant, options, query) => {
      if (tenant === "acme") await gate;
      return read(tenant, options, query);
    };
    const slow = [1, 2].map(() => busy.call("GET", "/v1/tenants/acme/usage"));
    await new Promise((resolve) => setTimeout(resolve, 5));
    const refused = await busy.call("GET", "/v1/tenants/acme/usage");
    expect([refused.status, refused.body.code]).toEqual([503, "overloaded"]);
    expect(refused.headers.get("retry-after")).toBe("1");
    expect((await busy.call("GET", "/livez")).status).toBe(200);
    release();
    expect((await Promise.all(slow)).map((answer) => answer.status)).toEqual([200, 200]);
    expect((await busy.call("GET", "/v1/tenants/acme/usage")).status).toBe(200);
    busy.close();
  });

  test("a quota that is used up is 429", async () => {
    const token = await h.tenant("small", { quotas: { configs: 1 } });
    const at = "/v1/tenants/small/namespaces/app/configs";
    expect((await h.call("PUT", `${at}/a`, { token, body: {} })).status).toBe(201);
    const refused = await h.call("PUT", `${at}/b`, { token, body: {} });
    expect([refused.status, refused.body.code]).toEqual([429, "quota-exceeded"]);
  });
});

describe("anything", () => {
  test("never a 500, never a change after a 4xx", async () => {
    const json = fc.jsonValue({ maxDepth: 3 });
    const path = fc.constantFrom(
      `${N}/configs/fuzz`,
      `${N}/configs/fuzz/publish`,
      `${N}/configs/fuzz/versions`,
      `${N}/configs/fuzz/release`,
      `${N}/configs/fuzz/rollback`,
      "/v1/tenants/acme/transactions",
      "/v1/tenants/acme/keys",
      "/v1/tenants",
    );
    const method = fc.constantFrom("PUT", "POST", "DELETE", "PATCH");
    const field = fc.constantFrom(
      "content",
      "rules",
      "default",
      "then",
      "kind",
      "id",
      "tags",
      "schema",
    );
    const body = fc.oneof(json, fc.dictionary(field, json));
    await fc.assert(
      fc.asyncProperty(method, path, body, async (m, p, b) => {
        const before = h.cluster.tenants.get("acme")?.revision;
        const answer = await h.call(m, p, { body: b });
        expect(answer.status).toBeLessThan(500);
        if (answer.status >= 400) expect(h.cluster.tenants.get("acme")?.revision).toBe(before);
      }),
      { numRuns: 300 },
    );
  });
});
