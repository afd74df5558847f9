import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Harness } from "./harness.ts";

const h = new Harness();
const N = "/v1/tenants/acme/namespaces/app";
let admin = "";

beforeAll(async () => {
  admin = await h.tenant("acme");
});
afterAll(() => h.close());

describe("configs", () => {
  test("creation with content makes version 1 and releases it as default", async () => {
    const created = await h.call("PUT", `${N}/configs/limits`, {
      token: admin,
      body: { format: "json", content: { rps: 10 } },
    });
    expect(created.status).toBe(201);
    expect(created.body).toMatchObject({
      name: "limits",
      latestVersion: 1,
      release: 1,
      default: 1,
    });
    expect(created.headers.get("etag")).toBe(`"${created.body.revision}"`);
    const value = await h.call("GET", `${N}/values/limits`, { token: admin });
    expect(value.status).toBe(200);
    expect(value.body).toEqual({ rps: 10 });
    expect(value.headers.get("conflux-version")).toBe("1");
    expect(value.headers.get("conflux-revision")).toBe(String(created.body.revision));
  });
});
