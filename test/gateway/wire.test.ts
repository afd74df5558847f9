/** Long answers of a gateway that is really served. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { serve, type HttpServer } from "../../src/runtime/serve.ts";
import { Harness } from "./harness.ts";

const h = new Harness();
const N = "/v1/tenants/acme/namespaces/app";
const long = "ä".repeat(50_000);
let server: HttpServer;
let admin = "";

beforeAll(async () => {
  admin = await h.tenant("acme");
  await h.call("PUT", `${N}/configs/long`, {
    token: admin,
    body: { format: "text", content: long },
  });
  server = await serve((request, info) => h.gateway().fetch(request, info), {
    host: "127.0.0.1",
    port: 0,
  });
});
afterAll(async () => {
  await server.stop(0);
  h.close();
});

test("a long answer arrives whole, and HEAD tells its length", async () => {
  const url = `${server.url}${N}/values/long`;
  const headers = { authorization: `Bearer ${admin}` };
  const response = await fetch(url, { headers });
  expect(await response.text()).toBe(long);
  const head = await fetch(url, { headers, method: "HEAD" });
  expect(head.headers.get("content-length")).toBe(String(Buffer.byteLength(long)));
  expect(head.headers.get("etag")).toBe(response.headers.get("etag"));
  const same = await fetch(url, {
    headers: { ...headers, "if-none-match": response.headers.get("etag") ?? "" },
  });
  expect([same.status, await same.text()]).toEqual([304, ""]);
});
