import { describe, expect, test } from "vitest";
import { Cluster } from "./cluster.ts";
import type { SimNode } from "../sim/world.ts";

const TENANTS = 18;
const names = Array.from({ length: TENANTS }, (_, at) => `t${at + 1}`);

/** How many of the tenants each node leads. */
function led(cluster: Cluster): number[] {
  const countOn = (node: SimNode): number =>
    [...(node.host?.replicas() ?? [])].filter(
      ({ tenant, raft, halted }) => tenant !== "_system" && raft.isLeader && halted === null,
    ).length;
  return cluster.world.nodes.map(countOn);
}

const most = (counts: readonly number[]): number => Math.max(...counts);
const total = (counts: readonly number[]): number => counts.reduce((sum, count) => sum + count, 0);

async function crowded(
  options: { nodes?: number; balanceAfterMs?: number } = {},
): Promise<Cluster> {
  const { nodes = 3, balanceAfterMs = 1_000 } = options;
  const cluster = new Cluster({ nodes, tuning: { balanceAfterMs } });
  await cluster.ready();
  for (const name of names) await cluster.create(name, ["n1", "n2", "n3"]);
  // All on one.
  const first = cluster.node(0);
  for (const name of names) {
    if (cluster.leader(name) === first) continue;
    const asked = first.host?.transfer(name, first.name);
    await cluster.until("it is moved", () => cluster.leader(name) === first);
    await asked;
  }
  return cluster;
}

describe("leaders", () => {
  test("spread until no node leads more than 1.2 times the mean, and then stay", async () => {
    const cluster = await crowded();
    await cluster.until(
      "leaders spread",
      () => total(led(cluster)) === TENANTS && most(led(cluster)) <= (TENANTS / 3) * 1.2,
      60_000,
    );
    await cluster.pass(5_000);
    const before = led(cluster);
    const given = cluster.world.nodes.map((node) => node.host?.cluster().replicas.given ?? 0);
    expect(most(before)).toBeLessThanOrEqual((TENANTS / 3) * 1.2);
    await cluster.pass(20_000);
    expect(led(cluster)).toEqual(before);
    expect(cluster.world.nodes.map((node) => node.host?.cluster().replicas.given)).toEqual(given);
    const status = cluster.node(0).host?.cluster();
    expect(status?.nodes.map(({ leaders }) => leaders)).toEqual(before);
  });

  test("are not given away while nodes come and go, nor to one that is drained", async () => {
    const cluster = await crowded({ balanceAfterMs: 5_000 });
    const third = cluster.node(2);
    const action = { op: "node.phase", node: "n3", phase: "draining" } as const;
    await cluster.change(cluster.node(0), "_system", {
      at: 1_700_000_000_000,
      actor: { kind: "system", keyId: "test" },
      action,
    });
    // It is where the directory still has replicas: there is nowhere else for them.
    await cluster.pass(30_000);
    const status = cluster.node(0).host?.cluster();
    expect(status?.nodes.find(({ name }) => name === "n3")?.leaders).toBe(null);
    const [one = 0, two = 0] = led(cluster);
    expect(Math.abs(one - two)).toBeLessThanOrEqual(2);

    const before = cluster.world.nodes.map((node) => node.host?.cluster().replicas.given);
    for (let round = 0; round < 5; round++) {
      cluster.world.crash(third);
      await cluster.pass(1_500);
      cluster.world.start(third);
      await cluster.pass(1_500);
    }
    expect(
      cluster.world.nodes.slice(0, 2).map((node) => node.host?.cluster().replicas.given),
    ).toEqual(before.slice(0, 2));
  });

  test("are offered once to who does not take them over, then to the others", async () => {
    const cluster = await crowded({ balanceAfterMs: 5_000 });
    await cluster.until("n1 leads all", () => led(cluster)[0] === TENANTS, 5_000);
    // Nobody writes, so nothing tells the leaders.
    for (const replica of cluster.node(2).host?.replicas() ?? [])
      if (replica.tenant !== "_system") replica.halt("stopped by the test");
    const offered: string[] = [];
    let before = new Set<string>();
    await cluster.until(
      "leaders spread",
      () => {
        const now = new Set<string>();
        for (const { tenant, raft } of cluster.node(0).host?.replicas() ?? [])
          if (raft.isTransferring) now.add(`${tenant} to ${raft.status().transferee}`);
        for (const offer of now) if (!before.has(offer)) offered.push(offer);
        before = now;
        const [one = 0, two = 0] = led(cluster);
        return one + two === TENANTS && Math.abs(one - two) <= 2;
      },
      120_000,
    );
    await cluster.pass(10_000);
    expect(new Set(offered).size).toBe(offered.length);
  });

  test("stay where an operator put them: others go for them", async () => {
    const cluster = await crowded();
    const isSpread = (): boolean =>
      total(led(cluster)) === TENANTS && most(led(cluster)) <= (TENANTS / 3) * 1.1;
    await cluster.until("leaders spread", isSpread, 60_000);
    await cluster.pass(65_000);
    const from = cluster.leader("t1") as SimNode;
    const to = cluster.world.nodes.find((node) => node !== from) as SimNode;
    const before = to.host?.cluster().replicas.given ?? 0;
    const asked = from.host?.transfer("t1", to.name);
    await cluster.until("it was moved", () => cluster.leader("t1") === to);
    await asked;
    await cluster.until(
      "another one went for it",
      () => (to.host?.cluster().replicas.given ?? 0) > before && isSpread(),
      60_000,
    );
    await cluster.pass(20_000);
    expect(cluster.leader("t1")).toBe(to);
    expect(isSpread()).toBe(true);
  });

  // Of more than one round looks at, each one looks at others.
  test.each([1, 70])("spread although moves of %i other tenants cannot end", async (count) => {
    const cluster = await crowded({ balanceAfterMs: 20_000 });
    const third = cluster.node(2);
    const stuck = Array.from({ length: count }, (_, at) => `stuck${at}`);
    for (const name of stuck) await cluster.create(name, ["n3"]);
    cluster.world.crash(third);
    await cluster.until("n1 leads all", () => led(cluster)[0] === TENANTS, 5_000);
    // Until the others know that it is gone, and have a directory again.
    await cluster.pass(2_500);
    const actor = { kind: "system", keyId: "test" } as const;
    for (const tenant of stuck) {
      const { placement } = cluster.node(0).host?.directory.tenant(tenant) ?? {};
      const generation = placement?.generation ?? 0;
      const action = { op: "directory.move", tenant, nodes: ["n1"], generation } as const;
      const moved = await cluster.change(cluster.node(0), "_system", { at: 1, actor, action });
      expect(moved.ok).toBe(true);
    }
    await cluster.until(
      "leaders spread",
      () => {
        const [one = 0, two = 0] = led(cluster);
        return one + two === TENANTS && Math.abs(one - two) <= 2;
      },
      60_000,
    );
    expect(
      cluster
        .node(0)
        .host?.directory.moving(0, 2 * count)
        .map(({ tenant }) => tenant),
    ).toEqual(stuck);
  });

  test("with one voter are nobody's to give", async () => {
    const cluster = new Cluster({ tuning: { balanceAfterMs: 500 } });
    await cluster.ready();
    for (const name of names.slice(0, 6)) await cluster.create(name, ["n1"]);
    await cluster.pass(10_000);
    expect(led(cluster)[0]).toBe(6);
    expect(cluster.node(0).host?.cluster().replicas.given).toBe(0);
    expect(
      cluster
        .node(0)
        .host?.cluster()
        .nodes.map(({ leaders }) => leaders),
    ).toEqual([0, 0, 0]);
  });
});
