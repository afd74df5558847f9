/** Nodes that leave, on real nodes in the simulated world, and one that lost its directory. */
import { describe, expect, test } from "vitest";
import { semanticsNow } from "../../src/machine/command.ts";
import type { Tuning } from "../../src/host/node_host.ts";
import { readJournal } from "../../src/store/journal.ts";
import { payloadStart, readSegment, recordsIn } from "../../src/store/journal_format.ts";
import type { SimNode } from "../sim/world.ts";
import { Cluster, latest, publish, ready } from "./cluster.ts";
import { command } from "./scripted_node.ts";

const SYSTEM = "_system";
const INITIAL = ["n1", "n2", "n3"];

async function setPhase(
  cluster: Cluster,
  node: string,
  phase: "active" | "draining" | "leaving",
): Promise<void> {
  const at = cluster.world.alive.find(({ name }) => name !== node) as SimNode;
  const outcome = await cluster.change(at, SYSTEM, command({ op: "node.phase", node, phase }));
  expect(outcome.ok).toBe(true);
}

/** By the one that leads it. */
function systemConf(cluster: Cluster) {
  const leader = cluster.leader(SYSTEM);
  return cluster.replicas(SYSTEM).find(({ node }) => node === leader)?.replica.conf;
}

function placed(cluster: Cluster, tenant: string): string[] {
  const directory = cluster.leader(SYSTEM)?.host?.directory;
  const replicas = directory?.tenant(tenant)?.placement.replicas ?? [];
  return replicas.every(({ state }) => state === undefined)
    ? replicas.map(({ node }) => node).sort()
    : [];
}

/** Until the directory knows the node no more, and that it has no vote and no tenant then. */
async function untilLeft(cluster: Cluster, name: string): Promise<void> {
  const knows = ({ host }: SimNode): boolean => host?.directory.node(name) !== undefined;
  const others = (): SimNode[] => cluster.world.alive.filter((node) => node.name !== name);
  await cluster.until(`${name} has left`, () => !others().every(knows), 60_000);
  const own = cluster.replicas(SYSTEM).find(({ node }) => node.name === name)?.replica.id ?? 0;
  const conf = systemConf(cluster);
  expect([...(conf?.voters ?? []), ...(conf?.votersOutgoing ?? [])]).not.toContain(own);
  const node = cluster.world.nodes.find((each) => each.name === name) as SimNode;
  cluster.world.crash(node);
  cluster.world.wipe(node);
  const isPeer = ({ host }: SimNode): boolean => [...(host?.liveness.peers ?? [])].includes(name);
  await cluster.until(
    "nobody's peer any more, but for the initial ones, which could begin anew",
    () => others().every((other) => isPeer(other) === INITIAL.includes(name)),
    5_000,
  );
}

/** With one more node that has joined. */
async function withSpare(tuning: Partial<Tuning> = {}): Promise<Cluster> {
  const cluster = await ready({ nodes: 3, spares: 1, tuning });
  for (const spare of cluster.world.nodes.slice(3)) {
    cluster.world.start(spare);
    await cluster.until("joined", () => spare.host?.ready === true);
  }
  return cluster;
}

describe("a node that leaves", () => {
  test("is taken out when nothing is on it any more, and has lost its vote before", async () => {
    const cluster = await withSpare();
    await cluster.create("acme");
    await cluster.change(cluster.node(1), "acme", publish("kept"));
    await setPhase(cluster, "n1", "leaving");
    await untilLeft(cluster, "n1");
    expect(placed(cluster, "acme")).toEqual(["n2", "n3", "n4"]);
    await cluster.until("three votes", () => systemConf(cluster)?.voters.length === 3);
    expect(await cluster.read(cluster.node(3), "acme", latest)).toBe("kept");
    // The next one has nowhere to send its tenant: until then all stay what they are.
    await setPhase(cluster, "n2", "leaving");
    await cluster.pass(5_000);
    expect(systemConf(cluster)?.voters.length).toBe(3);
    expect(placed(cluster, "acme")).toEqual(["n2", "n3", "n4"]);
    const generation = cluster.node(2).host?.directory.tenant("acme")?.placement.generation ?? 0;
    const nodes = ["n3", "n4"];
    const move = { op: "directory.move", tenant: "acme", nodes, generation } as const;
    expect((await cluster.change(cluster.node(2), SYSTEM, command(move))).ok).toBe(true);
    await untilLeft(cluster, "n2");
    expect(systemConf(cluster)?.voters.length).toBe(1);
    expect((await cluster.change(cluster.node(2), "acme", publish("still"))).ok).toBe(true);
  });

  test("is forgotten by the others, unless it is an initial one", async () => {
    const cluster = await withSpare();
    await setPhase(cluster, "n4", "leaving");
    await untilLeft(cluster, "n4");
  });

  test("comes again with an empty disk as another one, also where none of the first nodes is left", async () => {
    const cluster = await withSpare();
    for (const name of ["n1", "n2", "n3"]) {
      await setPhase(cluster, name, "leaving");
      await untilLeft(cluster, name);
    }
    // Two of the three initial ones: by themselves they would begin anew.
    for (const at of [0, 1]) cluster.world.start(cluster.node(at));
    await cluster.until(
      "back",
      () => cluster.world.alive.every(({ host }) => host?.ready === true),
      20_000,
    );
    const ids = cluster.replicas(SYSTEM).map(({ replica }) => replica.id);
    expect(Math.min(...ids)).toBeGreaterThan(3);
    await cluster.until("known", () => cluster.node(3).host?.directory.nodes().length === 3);
  });
});

test("initial nodes that have yet to register have their votes, from the first moment on", async () => {
  const cluster = new Cluster();
  // The third of them comes an hour later.
  cluster.world.crash(cluster.node(2));
  const fewest = (): number =>
    Math.min(
      ...cluster.replicas(SYSTEM).map(({ replica: { conf } }) => {
        const { voters, votersOutgoing } = conf;
        return votersOutgoing.length === 0 ? voters.length : 0;
      }),
    );
  let least = 3;
  const watch = (done: boolean): boolean => {
    least = Math.min(least, fewest());
    return done;
  };
  await cluster.until(
    "two are ready",
    () => watch(cluster.world.alive.every(({ host }) => host?.ready === true)),
    15_000,
  );
  const end = cluster.world.now + 5_000;
  await cluster.world.run(end, () => watch(false));
  expect(least).toBe(3);
});

describe("a node that is gone for good", () => {
  test("is replaced where a majority is left, whatever had its only replica there", async () => {
    const cluster = await withSpare({ replaceAfterMs: 2_000 });
    // More than may move at once, and first by name.
    const alone = Array.from({ length: 20 }, (_, at) => `alone${at}`);
    for (const tenant of alone) await cluster.create(tenant, ["n3"]);
    await cluster.create("shared", ["n1", "n2", "n3"]);
    cluster.world.crash(cluster.node(2));
    await cluster.until("replaced", () => placed(cluster, "shared").join() === "n1,n2,n4", 60_000);
    // Back with its disk it serves what only it has.
    cluster.world.start(cluster.node(2));
    await cluster.until("back", () => cluster.node(2).host?.ready === true, 20_000);
    for (const tenant of alone) {
      expect((await cluster.change(cluster.node(2), tenant, publish("still"))).ok).toBe(true);
      expect(placed(cluster, tenant)).toEqual(["n3"]);
    }
  });
});

describe("a replica whose new place is gone before it came there", () => {
  /** n4, where it was to go instead of to stay on n3, ends with the news of it. */
  async function withoutItsPlace(
    phase: "draining" | "leaving",
    tuning: Partial<Tuning>,
  ): Promise<Cluster> {
    const cluster = await withSpare(tuning);
    await cluster.create("acme", INITIAL);
    await cluster.change(cluster.node(0), "acme", publish("kept"));
    await setPhase(cluster, "n3", phase);
    const isMoving = (): boolean =>
      cluster.leader(SYSTEM)?.host?.directory.moving(0, 1).length === 1;
    await cluster.until("moves", isMoving);
    cluster.world.crash(cluster.node(3));
    await cluster.until("missed", () =>
      cluster.world.alive.every(({ host }) => host?.liveness.supports("n4") === false),
    );
    expect(isMoving()).toBe(true);
    return cluster;
  }

  test("stays where it is when that node leaves, until there is another place", async () => {
    const cluster = await withoutItsPlace("leaving", { replaceAfterMs: 600_000 });
    // Who is just away is waited for.
    await cluster.pass(5_000);
    expect(placed(cluster, "acme")).toEqual([]);
    await setPhase(cluster, "n4", "leaving");
    await untilLeft(cluster, "n4");
    await cluster.until("settled", () => placed(cluster, "acme").join() === "n1,n2,n3");
    // Another machine of that name.
    cluster.world.start(cluster.node(3));
    await cluster.until("joined", () => cluster.node(3).host?.ready === true);
    await untilLeft(cluster, "n3");
    expect(placed(cluster, "acme")).toEqual(["n1", "n2", "n4"]);
    expect(await cluster.read(cluster.node(3), "acme", latest)).toBe("kept");
  });

  test("stays where it is when that node is given up, also if it comes again", async () => {
    const cluster = await withoutItsPlace("draining", { replaceAfterMs: 2_000 });
    await cluster.until("called back", () => placed(cluster, "acme").join() === "n1,n2,n3", 60_000);
    cluster.world.start(cluster.node(3));
    await cluster.until("moved", () => placed(cluster, "acme").join() === "n1,n2,n4", 60_000);
  });
});

describe("a vote of `_system` whose new place is gone before it had it", () => {
  test("goes to another one that is there", async () => {
    const cluster = await withSpare({ replaceAfterMs: 2_000 });
    await setPhase(cluster, "n3", "draining");
    const replicas = () =>
      cluster.leader(SYSTEM)?.host?.directory.system()?.placement.replicas ?? [];
    await cluster.until("moves", () =>
      replicas().some(({ node, state }) => node === "n4" && state === "joining"),
    );
    cluster.world.crash(cluster.node(3));
    await cluster.until(
      "settled",
      () =>
        cluster.leader(SYSTEM) !== null &&
        replicas().every(({ state }) => state === undefined || state === "learner"),
      60_000,
    );
    expect(systemConf(cluster)?.voters).toEqual([1, 2, 3]);
  });

  test.each([
    ["and chosen for another", true],
    ["and not yet made a member", false],
  ])("waits for no node that was let in %s before it was gone", async (_, isHeard) => {
    const cluster = await ready({ nodes: 3, spares: 2, tuning: { replaceAfterMs: 2_000 } });
    const [fourth, fifth] = [cluster.node(3), cluster.node(4)];
    cluster.world.start(fourth);
    await cluster.until("joined", () => fourth.host?.ready === true);
    const leader = cluster.leader(SYSTEM) as SimNode;
    if (!isHeard) {
      cluster.world.cut(fifth, leader);
      cluster.world.cut(leader, fifth);
    }
    cluster.world.start(fifth);
    const isLetIn = (): boolean =>
      cluster.leader(SYSTEM)?.host?.directory.node(fifth.name) !== undefined;
    await cluster.until("let in", isLetIn);
    cluster.world.crash(fifth);
    cluster.world.heal();
    await cluster.until("missed", () =>
      cluster.world.alive.every(({ host }) => host?.liveness.supports(fifth.name) === false),
    );
    const members = [
      ...(systemConf(cluster)?.voters ?? []),
      ...(systemConf(cluster)?.learners ?? []),
    ];
    expect(members.includes(5)).toBe(isHeard);
    await setPhase(cluster, "n1", "leaving");
    await untilLeft(cluster, "n1");
    const isSettled = (): boolean => {
      const system = cluster.leader(SYSTEM)?.host?.directory.system();
      return (
        system?.placement.replicas.every(({ state }) => state?.endsWith("ing") !== true) === true
      );
    };
    await cluster.until("settled", isSettled, 30_000);
    expect(systemConf(cluster)?.voters).toEqual([2, 3, 4]);
    cluster.world.start(fifth);
    await cluster.until("a member", () => fifth.host?.ready === true);
    await cluster.until("in fact", () => systemConf(cluster)?.learners.length === 1);
  });
});

describe("replicas that are sent away and called back", () => {
  test("serve and count as before, until the move is settled", async () => {
    const cluster = await withSpare({ replaceAfterMs: 600_000 });
    await cluster.create("acme", ["n1", "n2", "n3"]);
    cluster.world.crash(cluster.node(3));
    cluster.world.crash(cluster.node(2));
    await cluster.until("missed", () =>
      cluster.world.alive.every(({ host }) => host?.liveness.supports("n3") === false),
    );
    const isLed = (tenant: string) => cluster.leader(tenant) !== null;
    await cluster.until("led", () => [SYSTEM, "acme"].every(isLed));
    const move = async (generation: number, nodes: readonly string[]): Promise<void> => {
      const action = { op: "directory.move", tenant: "acme", nodes, generation } as const;
      const asked = { ...command(action, `move-${generation}`), semantics: semanticsNow };
      expect(await cluster.change(cluster.node(0), SYSTEM, asked)).toMatchObject({ ok: true });
    };
    // Nobody can go where nobody is.
    await move(0, ["n4"]);
    await move(1, ["n1", "n2", "n4"]);
    const row = () => cluster.leader(SYSTEM)?.host?.directory.tenant("acme");
    expect(row()?.placement.replicas.map(({ state }) => state)).toEqual([
      "joining",
      "joining",
      "leaving",
      "joining",
    ]);
    expect(cluster.node(0).host?.locateNow("acme")).toEqual({ local: true });
    expect((await cluster.change(cluster.node(1), "acme", publish("kept"))).ok).toBe(true);
    // What was placed there is gone, and n3, which is away, is not asked: two of the three before are a majority.
    cluster.world.wipe(cluster.node(3));
    cluster.world.start(cluster.node(3));
    await cluster.until("settled", () => placed(cluster, "acme").join() === "n1,n2,n4", 30_000);
    expect(row()?.placement.replicas).toEqual([
      { node: "n1", id: 1 },
      { node: "n2", id: 2 },
      { node: "n4", id: 5, since: expect.any(Number) as number },
    ]);
    await cluster.until("told", () => cluster.node(3).host?.locateNow("acme")?.local === true);
    expect(await cluster.read(cluster.node(3), "acme", latest)).toBe("kept");
  });
});

describe("a node without a directory", () => {
  // The moments of what looks for sleepers and of what offers leaderships are apart by another amount each time.
  const offsets = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900];
  test.each([
    ["", 600_000, 0] as const,
    ...offsets.map((ms) => [`, nor puts to sleep whom it leads (${ms} ms)`, 100, ms] as const),
  ])("leads nobody whom another one can lead%s", async (_, sleepAfterMs, offsetMs) => {
    const cluster = await ready({ tuning: { checkpointBytes: 1, sleepAfterMs } });
    await cluster.create("acme");
    await cluster.pass(500);
    const node = cluster.node(2);
    // Its environment knows the tenant, and its journal has more of the directory.
    cluster
      .replicas(SYSTEM)
      .find((each) => each.node === node)
      ?.replica.checkpoint();
    await cluster.pass(500);
    await cluster.create("later", ["n1", "n2"]);
    await cluster.pass(500);
    cluster.world.crash(node);
    // One bit of what its journal has of the directory.
    const rotten = node.disk.list().find((name) => {
      const bytes = node.disk.read(name);
      const records = [...recordsIn(bytes, readSegment(bytes, name, false))];
      const record = records.findLast(({ group }) => group === 1);
      if (record === undefined) return false;
      node.disk.flipBit(name, payloadStart(record) + 1, 0);
      return true;
    });
    expect(rotten).toBeDefined();
    expect(readJournal(node.disk).recovery.damaged.has(1)).toBe(true);
    cluster.world.start(node);
    const halted = (): string | null =>
      cluster.replicas(SYSTEM).find((each) => each.node === node)?.replica.halted ?? null;
    await cluster.until("stopped", () => halted() !== null);
    await cluster.pass(offsetMs);
    expect((await cluster.change(cluster.node(0), "acme", publish(`${offsetMs}`))).ok).toBe(true);
    void cluster.leader("acme")?.host?.transfer("acme", node.name);
    await cluster.until("led there", () => cluster.leader("acme") === node);
    await cluster.until(
      "led elsewhere",
      () => cluster.leader("acme") !== null && cluster.leader("acme") !== node,
      30_000,
    );
    expect((await cluster.change(cluster.node(0), "acme", publish("still"))).ok).toBe(true);
  });
});
