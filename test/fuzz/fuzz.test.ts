/** A slice of the fuzzer, in this process: the real gateway and machine. `npm run fuzz` goes on for as long as it is told. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { TenantRow } from "../../src/machine/rows.ts";
import { Harness } from "../gateway/harness.ts";
import { rootToken } from "../gateway/solo_service.ts";
import type { OpenApi } from "./requests.ts";
import { describeFinding, Fuzzer, prepare, type Sent, type Target } from "./run.ts";

const h = new Harness({ settings: { secretKeys: [{ id: "k1", key: new Uint8Array(32) }] } });
let fuzzer: Fuzzer;

async function send(request: Request, isStream: boolean): Promise<Sent> {
  const response = await h.gateway().fetch(request, { remoteAddress: "192.0.2.1" });
  const { status, headers } = response;
  if (isStream && headers.get("content-type") === "text/event-stream") {
    await response.body?.cancel();
    return { status, headers, text: "" };
  }
  return { status, headers, text: await response.text() };
}

function dump(): string {
  const rows: unknown[] = [];
  // The twin of the host makes a tenant's state when it is first asked for.
  for (const [key, row] of h.cluster.system.range<TenantRow>({ gte: "ten/", lt: "ten0" }))
    if (row.deletedAt === null) h.cluster.state(key.slice("ten/".length));
  for (const [tenant, state] of h.cluster.tenants)
    rows.push(tenant, [...state.range({ gte: "", lt: "\x7f" })]);
  return JSON.stringify(rows);
}

beforeAll(async () => {
  const document = (await h.call("GET", "/openapi.json")).body as OpenApi;
  const made = await prepare(
    rootToken,
    async (path, body) => (await h.call("POST", path, { body })).body,
  );
  const target: Target = {
    ...made,
    state: () => Promise.resolve(dump()),
    send: ({ method, target: path, headers, body, isStream }) =>
      send(new Request(`http://localhost${path}`, { method, headers, body }), isStream),
  };
  fuzzer = new Fuzzer(document, target);
});
afterAll(() => h.close());

describe("any request made from the OpenAPI document", () => {
  test("is answered as documented, never by a fault, and changes nothing when it is refused", async () => {
    for (let seed = 1; seed <= 15; seed++) await fuzzer.batch(seed);
    const { findings, byStatus, operations } = fuzzer.report;
    expect(findings.map(describeFinding)).toEqual([]);
    // That it gets past the door: most operations succeed sometimes, and refusals are of many kinds.
    expect(operations.size).toBeGreaterThan(fuzzer.operations.length * 0.5);
    expect([...byStatus.keys()]).toEqual(
      expect.arrayContaining([200, 201, 400, 401, 403, 404, 422]),
    );
  });

  test("a fault, a change by a refused request and an undocumented answer are found", async () => {
    const document = (await h.call("GET", "/openapi.json")).body as OpenApi;
    let state = "";
    const answer: { status: number; body: object; changes: boolean } = {
      status: 200,
      body: {},
      changes: false,
    };
    const planted = new Fuzzer(document, {
      tokens: { root: "", admin: "", write: "", read: "", client: "", scoped: "", foreign: "" },
      keyIds: [],
      state: () => Promise.resolve(state),
      send: () => {
        if (answer.changes) state += "x";
        const headers = new Headers({
          "x-request-id": "r",
          "content-type": answer.status < 400 ? "application/json" : "application/problem+json",
        });
        return Promise.resolve({
          status: answer.status,
          headers,
          text: JSON.stringify(answer.body),
        });
      },
    });
    const operation = planted.operations.find(({ id }) => id === "listConfigs");
    if (operation === undefined) throw new Error("No such operation");
    const request = {
      operation,
      mood: "valid",
      who: null,
      target: "/",
      headers: {},
      body: null,
    } as const;
    const problem = { code: "not-found", status: 404, detail: "x", requestId: "r" };
    const seen = async (status: number, body: object, changes = false): Promise<string> => {
      Object.assign(answer, { status, body, changes });
      const before = planted.report.findings.length;
      await planted.send(request);
      return planted.report.findings
        .slice(before)
        .map(({ what }) => what.split(":")[0])
        .join();
    };
    expect(await seen(200, { items: [] })).toBe("");
    expect(await seen(404, problem)).toBe("");
    expect(await seen(200, { items: [{}] })).toBe("not as documented");
    expect(await seen(202, {})).toBe("listConfigs does not document 202");
    expect(await seen(500, { ...problem, code: "internal", status: 500 })).toBe("a fault");
    expect(await seen(404, { ...problem, code: "conflict" })).toBe("another status than its code");
    expect(await seen(404, problem, true)).toBe("404, and yet something changed");
  });
});
