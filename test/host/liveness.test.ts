import { describe, expect, test } from "vitest";
import { HEARTBEAT_MS, Liveness, SUPPORT_MS } from "../../src/host/liveness.ts";

function watched(): { liveness: Liveness; events: string[] } {
  const events: string[] = [];
  const liveness = new Liveness("n1", 0, {
    up: (node) => events.push(`up ${node}`),
    down: (node) => events.push(`down ${node}`),
  });
  return { liveness, events };
}

/** Checks as the host does, every heartbeat, from one time to another. */
function pass(liveness: Liveness, from: number, to: number): void {
  for (let now = from; now <= to; now += HEARTBEAT_MS) liveness.check(now);
}

describe("Liveness", () => {
  test("a node is supported from the first time it is heard until it is silent for the support time", () => {
    const { liveness, events } = watched();
    liveness.add("n2");
    expect(liveness.supports("n2")).toBe(false);
    liveness.heard("n2", 1, 100);
    expect(liveness.supports("n2")).toBe(true);
    pass(liveness, 100, 100 + SUPPORT_MS);
    expect(liveness.supports("n2")).toBe(true);
    liveness.check(101 + SUPPORT_MS);
    expect(liveness.supports("n2")).toBe(false);
    expect(events).toEqual(["up n2", "down n2"]);
  });

  test("a node that comes back under a new boot was down in between, however short", () => {
    const { liveness, events } = watched();
    liveness.heard("n2", 1, 100);
    liveness.heard("n2", 2, 110);
    expect(events).toEqual(["up n2", "down n2", "up n2"]);
    expect(liveness.status("n2", 110)).toEqual({ alive: true, heardMsAgo: 0, boot: 2 });
  });

  test("a node that is no member and comes back under a new boot is known, also where its loss made it forgotten", () => {
    const liveness: Liveness = new Liveness("n1", 0, {
      up: () => undefined,
      down: (node) => liveness.forget(node),
    });
    liveness.heard("n2", 1, 100);
    liveness.heard("n2", 2, 110);
    expect(liveness.supports("n2")).toBe(true);
    expect(liveness.bootOf("n2")).toBe(2);
    pass(liveness, 110, 110 + SUPPORT_MS + HEARTBEAT_MS);
    expect([...liveness.peers]).toEqual([]);
  });

  test("a pause of this process itself does not make the others look dead", () => {
    const { liveness, events } = watched();
    liveness.heard("n2", 1, 0);
    liveness.check(HEARTBEAT_MS);
    liveness.check(HEARTBEAT_MS + 30_000);
    expect(events).toEqual(["up n2"]);
    pass(liveness, 2 * HEARTBEAT_MS + 30_000, 32_000 + SUPPORT_MS);
    expect(events).toEqual(["up n2", "down n2"]);
  });

  test("after such a pause a loss is noticed as soon as ever, though somebody was heard before the pause was seen", () => {
    const { liveness, events } = watched();
    liveness.heard("n2", 1, 0);
    liveness.check(HEARTBEAT_MS);
    // What arrived meanwhile is read first when the process goes on.
    liveness.heard("n2", 1, 30_000);
    pass(liveness, 30_000, 30_000 + SUPPORT_MS + 2 * HEARTBEAT_MS);
    expect(events).toEqual(["up n2", "down n2"]);
  });

  test("remembers whom it lost, when and for how long", () => {
    const { liveness } = watched();
    liveness.heard("n2", 1, 100);
    pass(liveness, 100, 102 + SUPPORT_MS + HEARTBEAT_MS);
    expect(liveness.absences).toEqual([{ node: "n2", from: 100, until: null, reason: "silent" }]);
    liveness.heard("n2", 1, 5_000);
    liveness.heard("n2", 2, 6_000);
    expect(liveness.absences).toEqual([
      { node: "n2", from: 100, until: 5_000, reason: "silent" },
      { node: "n2", from: 5_000, until: 6_000, reason: "restarted" },
    ]);
    for (let boot = 3; boot < 500; boot++) liveness.heard("n2", boot, 6_000);
    expect(liveness.absences.length).toBe(100);
  });

  test("this node always supports itself, and never somebody it does not know", () => {
    const { liveness } = watched();
    expect(liveness.supports("n1")).toBe(true);
    expect(liveness.supports("n9")).toBe(false);
  });
});
