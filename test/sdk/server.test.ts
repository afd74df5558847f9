/** The client that evaluates rules in its own process, against the real gateway. */
import fc from "fast-check";
import { describe, expect, onTestFinished, test } from "vitest";
import type { Change } from "../../src/sdk/mod.ts";
import { ConfluxServer } from "../../src/sdk/server.ts";
import { Served, timing, until, where } from "./served.ts";

async function start(labels: Readonly<Record<string, string>> = {}) {
  const served = await Served.start();
  await served.put("limits", { max: 1 });
  await served.admin.createVersion(where, "limits", { content: '{"max":2}' });
  await served.admin.createVersion(where, "limits", { content: '{"max":3}' });
  await served.admin.putRelease(where, "limits", {
    rules: [
      { id: "gold", match: { tier: "gold" }, version: 2 },
      { id: "half", match: {}, rollout: { percentage: 50, by: "user" }, version: 3 },
    ],
    default: 1,
  });
  const { token } = await served.harness.key("acme", "read");
  const conflux = new ConfluxServer<{ limits: { max: number }; big: string; none: number }>({
    url: served.urls,
    token,
    tenant: "acme",
    timing: { ...timing, gatherMs: 5 },
    labels,
  });
  onTestFinished(() => conflux.close());
  expect(await conflux.ready()).toBe("live");
  return { served, conflux };
}

describe("ConfluxServer", () => {
  test("gives each caller what the platform would give", async () => {
    const { served, conflux } = await start();
    expect(conflux.evaluate("limits", { tier: "gold" })).toEqual({ max: 2 });
    expect(conflux.evaluateEntry("limits", { tier: "gold" })).toMatchObject({
      version: 2,
      source: "live",
      format: "json",
    });
    expect(conflux.evaluate("none", {}, 7)).toBe(7);
    expect(conflux.get("limits")).toEqual({ max: 1 });
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          tier: fc.constantFrom("gold", "free"),
          user: fc.stringMatching(/^[a-z0-9]{1,8}$/),
        }),
        async (labels) => {
          const value = await served.admin.value(where, "limits", labels);
          expect(conflux.evaluate("limits", labels)).toEqual(JSON.parse(value.content));
        },
      ),
      { numRuns: 50 },
    );
  });

  test("follows releases; changes tell what its own labels get", async () => {
    const { served, conflux } = await start({ tier: "gold" });
    const changes: Change[] = [];
    conflux.onChange((change) => changes.push(change));
    expect(conflux.get("limits")).toEqual({ max: 2 });
    expect(conflux.evaluate("limits", { tier: "free" })).toEqual({ max: 1 });
    await served.admin.putRelease(where, "limits", { rules: [], default: 3 });
    await until(() => changes.length > 0);
    expect(changes[0]).toMatchObject({ old: { max: 2 }, new: { max: 3 }, entry: { version: 3 } });
    await served.admin.deleteConfig(where, "limits");
    await until(() => conflux.get("limits") === undefined);
  });

  test("fetches releases that are too large for frames", async () => {
    const { served, conflux } = await start();
    const big = "x".repeat(70_000);
    await served.put("big", big);
    await until(() => conflux.get("big") !== undefined);
    expect(conflux.get("big")).toBe(big);
  });

  test("is refused with a key that may not see rules", async () => {
    const served = await Served.start();
    const conflux = new ConfluxServer({
      url: served.urls,
      token: served.clientKey.token,
      tenant: "acme",
      timing,
    });
    onTestFinished(() => conflux.close());
    await expect(conflux.ready()).rejects.toMatchObject({ code: "forbidden" });
  });
});
