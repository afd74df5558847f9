/** Leaders that are asleep when somebody wants something of them, and cannot wake, or were given away at that moment. */
import { describe, expect, test } from "vitest";
import type { TenantView } from "../../src/host/ports.ts";
import type { SimNode } from "../sim/world.ts";
import { type Cluster, latest, publish, ready } from "./cluster.ts";
import { command, createTenant } from "./scripted_node.ts";

function sleeps(cluster: Cluster, tenant: string, at?: SimNode): boolean {
  return !cluster.replicas(tenant).some(({ node }) => at === undefined || node === at);
}

async function asleep(): Promise<{ cluster: Cluster; leader: SimNode }> {
  const cluster = await ready({ tuning: { sleepAfterMs: 500 } });
  await cluster.create("acme");
  await cluster.change(cluster.node(0), "acme", publish("a"));
  const leader = cluster.leader("acme") as SimNode;
  await cluster.until("asleep", () => sleeps(cluster, "acme"), 20_000);
  await cluster.pass(2_000);
  return { cluster, leader };
}

async function readAt(cluster: Cluster, node: SimNode, tenant: string): Promise<unknown> {
  let answer: unknown = null;
  node.host?.requests.read(tenant, { consistency: "linearizable" }, (error, view) => {
    answer = error?.code ?? latest(view as TenantView);
  });
  await cluster.until("answered", () => answer !== null, 20_000);
  return answer;
}

describe("a leader whose environment does not open any more", () => {
  test.each([
    ["another node", false],
    ["its own node", true],
  ])("is replaced by others when %s is asked", async (_, isOwn) => {
    const { cluster, leader } = await asleep();
    for (const name of leader.environments.names())
      if (name.startsWith("acme.")) leader.environments.broken.add(name);
    const other = cluster.world.nodes.find((node) => node !== leader) as SimNode;
    const change = cluster.propose(isOwn ? leader : other, "acme", publish("b"));
    await cluster.until(
      "answered",
      () => change.outcome !== null || change.problem !== null,
      20_000,
    );
    expect(change.problem).toBeNull();
    expect(await readAt(cluster, other, "acme")).toBe("b");
    // What it has none of it does not serve, nor lets anybody wait for.
    expect(await readAt(cluster, leader, "acme")).toBe("replica-halted");
    expect(leader.host?.locateNow("acme")).toEqual({ local: false });
  });
});

describe("a leader that sleeps", () => {
  test("wakes to be given to another node", async () => {
    const { cluster, leader } = await asleep();
    const [asked, heir] = cluster.world.nodes.filter((node) => node !== leader);
    let moved: unknown = null;
    asked?.host?.transfer("acme", heir?.name as string).then(
      () => {
        moved = true;
      },
      (error: unknown) => {
        moved = error;
      },
    );
    for (let turn = 0; turn < 50 && moved === null; turn++) {
      await cluster.pass(100);
      await Promise.resolve();
    }
    expect(moved).toBe(true);
    await cluster.until("led there", () => cluster.leader("acme") === heir, 20_000);
  });

  test("reads nothing old after a list of leaderships to be given away outlived its sleep", async () => {
    // More than are given away with one pulse, so that the last of them is asleep when its turn comes.
    const count = 80;
    const tenant = `t${count - 1}`;
    const setUp = async (): Promise<Cluster> => {
      const cluster = await ready({ tuning: { sleepAfterMs: 4_000, balanceAfterMs: 1e9 } });
      for (let at = 0; at < count; at++)
        await cluster.change(
          cluster.node(0),
          "_system",
          command(createTenant(`t${at}`, ["n1", "n2", "n3"])),
        );
      const put = command({ op: "config.put", namespace: "app", name: "c", format: "text" });
      await cluster.change(cluster.node(0), tenant, put);
      await cluster.change(cluster.node(0), tenant, publish("a"));
      return cluster;
    };
    const first = await setUp();
    await first.until("asleep", () => sleeps(first, tenant, first.node(0)), 20_000);
    // The same once more, as the same seed does the same, up to the moment before.
    const second = await setUp();
    const [node, ...others] = second.world.nodes as [SimNode, ...SimNode[]];
    await second.world.run(first.world.now - 1);
    expect(sleeps(second, tenant, node)).toBe(false);
    node.room.level = "low";
    await second.world.run(first.world.now + 1);
    for (const other of others) second.world.cut(other, node);
    await second.world.run(first.world.now + 200);
    let newest = "a";
    const heir = second
      .replicas(tenant)
      .find(({ node: on, replica }) => on !== node && replica.raft.isLeader);
    if (heir !== undefined) {
      const change = second.propose(heir.node, tenant, publish("b"));
      await second.world.run(second.world.now + 300, () => change.outcome !== null);
      if (change.outcome?.ok === true) newest = "b";
    }
    let answer: unknown = null;
    const options = { consistency: "linearizable", timeoutMs: 100 } as const;
    node.host?.requests.read(tenant, options, (error, view) => {
      answer = error?.code ?? latest(view as TenantView);
    });
    await second.world.run(second.world.now + 500, () => answer !== null);
    expect([newest, "no-quorum"]).toContain(answer);
  });
});
