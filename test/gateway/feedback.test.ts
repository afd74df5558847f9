import { afterEach, describe, expect, test } from "vitest";
import { Feedback, perNodeMax, perTenantMax } from "../../src/gateway/feedback.ts";
import { Harness } from "./harness.ts";

const N = "/v1/tenants/acme/namespaces/app";

let open: Harness[] = [];
afterEach(() => {
  for (const h of open) h.close();
  open = [];
});

async function setup(nodes: readonly string[] = ["n1"]): Promise<Harness> {
  const h = new Harness({ nodes });
  open.push(h);
  await h.tenant("acme", { replicas: Math.min(nodes.length, 3) });
  await h.call("PUT", `${N}/configs/a`, { body: { content: 1 } });
  return h;
}

const tell = (
  h: Harness,
  instance: string,
  version: number,
  reason?: string,
  options: { token?: string; node?: string; query?: string } = {},
) => {
  const { query = "", ...others } = options;
  const state = reason === undefined ? "applied" : "rejected";
  return h.call("POST", `${N}/feedback${query}`, {
    ...others,
    body: {
      instance,
      values: [{ name: "a", version, state, ...(reason !== undefined && { reason }) }],
    },
  });
};

describe("apply feedback", () => {
  test("tells per version how many took and refused it, and why", async () => {
    const h = await setup();
    const { token } = await h.key("acme", "client");
    for (const pod of ["pod-1", "pod-2", "pod-3"])
      expect((await tell(h, pod, 1, undefined, { token })).status).toBe(204);
    await tell(h, "pod-2", 2, undefined, { token });
    await tell(h, "pod-3", 2, "port must be a number", { token });
    const { body, status } = await h.call("GET", `${N}/configs/a/feedback`);
    expect(status).toBe(200);
    expect(body).toMatchObject({
      instances: 3,
      versions: [
        {
          version: 2,
          applied: 1,
          rejected: 1,
          rejections: [{ instance: "pod-3", reason: "port must be a number" }],
        },
        { version: 1, applied: 1, rejected: 0, rejections: [] },
      ],
      missing: [],
    });
    expect((await h.call("GET", `${N}/configs/a/feedback`, { token })).status).toBe(403);
    expect((await h.call("GET", `${N}/configs/b/feedback`)).body.versions).toEqual([]);
  });

  test("is gathered from the nodes that were told, each instance's last word", async () => {
    const h = await setup(["n1", "n2", "n3", "n4"]);
    await tell(h, "pod-1", 1, undefined, { node: "n1" });
    await tell(h, "pod-2", 1, undefined, { node: "n2" });
    // The clock's resolution decides between words of one instance.
    await new Promise((resolve) => setTimeout(resolve, 5));
    await tell(h, "pod-1", 2, "no", { node: "n2" });
    for (const node of ["n3", "n4"]) {
      const { body } = await h.call("GET", `${N}/configs/a/feedback`, { node });
      expect(body).toMatchObject({
        instances: 2,
        versions: [
          { version: 2, applied: 0, rejected: 1 },
          { version: 1, applied: 1, rejected: 0 },
        ],
        missing: [],
      });
    }
    const local = await h.call("GET", `${N}/configs/a/feedback?local=true`, { node: "n1" });
    expect(local.body.items).toMatchObject([{ instance: "pod-1", version: 1, state: "applied" }]);
    h.cluster.service("n2").isDown = true;
    const { body } = await h.call("GET", `${N}/configs/a/feedback`, { node: "n3" });
    expect([body.missing, body.instances]).toEqual([["n2"], 1]);
  });

  test("a dry run and what is not valid change nothing", async () => {
    const h = await setup();
    expect((await tell(h, "pod", 1, undefined, { query: "?dryRun=true" })).status).toBe(204);
    expect((await tell(h, "pod 1", 1)).status).toBe(400);
    expect((await tell(h, "pod", 0)).status).toBe(400);
    expect((await tell(h, "pod", 1, "x".repeat(501))).status).toBe(400);
    const wrong = await h.call("POST", `${N}/feedback`, {
      body: { instance: "pod", values: [{ name: "Ä", version: 1, state: "applied" }] },
    });
    expect([wrong.status, wrong.body.errors[0].pointer]).toEqual([400, "/values/0/name"]);
    expect((await h.call("GET", `${N}/configs/a/feedback`)).body.instances).toBe(0);
  });
});

test("what is kept is bounded by age and by number, the oldest goes first", () => {
  const feedback = new Feedback();
  const entry = (toldMs: number) => ({ version: 1, reason: null, at: 0, toldMs });
  feedback.add("acme", "app/a", "old", entry(0));
  feedback.add("acme", "app/a", "young", entry(1_000_000));
  expect(feedback.of("acme", "app/a", 1_000_001).map((item) => item.instance)).toEqual(["young"]);
  for (let i = 0; i < perTenantMax; i++) feedback.add("acme", "app/b", `i${i}`, entry(1_000_000));
  expect(feedback.of("acme", "app/a", 1_000_001)).toEqual([]);
  expect(feedback.of("acme", "app/b", 1_000_001)).toHaveLength(perTenantMax);
});

test("tenants that fill a node make room for those that told less", () => {
  const feedback = new Feedback();
  const entry = { version: 1, reason: null, at: 0, toldMs: 0 };
  for (let i = 0; i < perNodeMax; i++)
    feedback.add(`t${i % (perNodeMax / perTenantMax)}`, "app/a", `i${i}`, entry);
  feedback.add("acme", "app/a", "first", entry);
  feedback.add("acme", "app/a", "second", entry);
  expect(feedback.of("acme", "app/a", 0).map((item) => item.instance)).toEqual(["first", "second"]);
  expect(feedback.of("t0", "app/a", 0)).toHaveLength(perTenantMax - 1);
  expect(feedback.of("t1", "app/a", 0)).toHaveLength(perTenantMax - 1);
});
