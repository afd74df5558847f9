/** From the members a group has to those the directory wants: step by step, and on real nodes in the simulated world. */
import { describe, expect, test } from "vitest";
import { NotHere } from "../../src/api/problems.ts";
import { environmentName } from "../../src/host/cold_replicas.ts";
import { nextStep, type Target } from "../../src/host/membership.ts";
import type { Replacement } from "../../src/host/ports.ts";
import type { Replica } from "../../src/host/replica.ts";
import type { HistoryRow } from "../../src/machine/rows.ts";
import type { PeerStatus } from "../../src/raft/raft.ts";
import { emptyConfState } from "../../src/raft/raft.ts";
import { ChangeKind, type ConfState } from "../../src/raft/types.ts";
import { readJournal } from "../../src/store/journal.ts";
import { payloadStart, readSegment, recordsIn } from "../../src/store/journal_format.ts";
import type { SimNode } from "../sim/world.ts";
import { type Cluster, latest, publish, ready, versions } from "./cluster.ts";
import { MemoryEnvironment } from "./memory_environment.ts";
import { command } from "./scripted_node.ts";

const { addVoter, addLearner, removeNode } = ChangeKind;

describe("the next step", () => {
  const conf = (voters: number[], learners: number[] = []): ConfState => ({
    ...emptyConfState(),
    voters,
    learners,
  });
  const peer = (
    id: number,
    match: number,
    state: PeerStatus["state"] = "replicate",
  ): PeerStatus => ({
    id,
    match,
    next: match + 1,
    state,
    recentActive: true,
    isLearner: false,
    paused: false,
    pendingSnapshot: 0,
    inflight: 0,
    inflightFull: false,
  });
  const target = (voters: number[], leaving: number[] = [], learners: number[] = []): Target => ({
    voters: voters.map((id) => ({ id, node: `n${id}` })),
    learners: learners.map((id) => ({ id, node: `n${id}` })),
    leaving,
  });
  /** Led by 1, whose log is 1,000 long. */
  const step = (
    now: ConfState,
    wanted: Target,
    progress: PeerStatus[] = [],
    dead: string[] = [],
    id = 1,
  ) =>
    nextStep(
      { id, progress: [peer(id, 1_000), ...progress], lastIndex: 1_000 },
      now,
      wanted,
      (node) => !dead.includes(node),
    );

  test("of who has what it wants is to say so", () => {
    expect(step(conf([1, 2, 3]), target([1, 2, 3]))).toEqual({ kind: "settled" });
    expect(step(conf([1, 2, 3]), target([1, 2, 3], [7]))).toEqual({ kind: "settled" });
    expect(step(conf([1], [4]), target([1], [], [4]))).toEqual({ kind: "settled" });
    // A learner that is away is added when it comes.
    expect(step(conf([1, 2]), target([1, 2], [7], [4]), [], ["n4"])).toEqual({ kind: "settled" });
  });
  test("adds who is alive as a learner, one at a time", () => {
    expect(step(conf([1]), target([1, 4, 5]), [], ["n4"])).toEqual({
      kind: "change",
      changes: [{ kind: addLearner, id: 5 }],
      joining: [{ id: 5, node: "n5" }],
    });
    expect(step(conf([1]), target([1, 4]), [], ["n4"])).toEqual({ kind: "wait" });
  });
  test("promotes the new and removes the old at once, when the new are caught up", () => {
    const now = conf([1, 2, 3], [4]);
    const wanted = target([1, 2, 4], [3]);
    // Enough to act without the new one: what counts is that it is behind.
    const others = [peer(2, 1_000), peer(3, 1_000)];
    expect(step(now, wanted, [...others, peer(4, 800)])).toEqual({ kind: "wait" });
    expect(step(now, wanted, [...others, peer(4, 999, "probe")])).toEqual({ kind: "wait" });
    expect(step(now, wanted, [...others, peer(4, 950)])).toEqual({
      kind: "change",
      changes: [
        { kind: addVoter, id: 4 },
        { kind: removeNode, id: 3 },
      ],
      joining: [],
    });
    expect(step(conf([1, 2, 3]), target([1], [], [2, 3]))).toEqual({
      kind: "change",
      changes: [
        { kind: addLearner, id: 2 },
        { kind: addLearner, id: 3 },
      ],
      joining: [],
    });
  });
  test("sends away a learner that no placement knows", () => {
    const followers = [peer(2, 1_000), peer(3, 1_000), peer(9, 0, "probe")];
    expect(step(conf([1, 2, 3], [9]), target([1, 2, 3]), followers)).toEqual({
      kind: "change",
      changes: [{ kind: removeNode, id: 9 }],
      joining: [],
    });
  });
  test("takes the vote of one that no placement knows", () => {
    const followers = [peer(2, 1_000), peer(9, 0, "probe")];
    expect(step(conf([1, 2, 9]), target([1, 2]), followers)).toEqual({
      kind: "change",
      changes: [{ kind: removeNode, id: 9 }],
      joining: [],
    });
  });
  test("is none into a configuration that could not act", () => {
    const now = conf([1, 2, 3]);
    const followers = [peer(2, 1_000), peer(3, 1_000)];
    expect(step(now, target([1, 3], [2]), followers, ["n3"])).toEqual({ kind: "wait" });
    expect(step(now, target([1, 2], [3]), followers, ["n3"])).toMatchObject({ kind: "change" });
    // Its node is alive, and its replica far behind, or stopped.
    expect(step(now, target([1, 2], [3]), [peer(2, 800), peer(3, 1_000)])).toEqual({
      kind: "wait",
    });
    expect(step(now, target([1, 2], [3]), [peer(2, 1_000, "probe"), peer(3, 1_000)])).toEqual({
      kind: "wait",
    });
  });
  test("of a leader that leaves is to hand over, and never to remove itself", () => {
    const followers = [peer(2, 900), peer(3, 990)];
    const wanted = target([2, 3], [1]);
    expect(step(conf([1, 2, 3]), wanted, followers)).toEqual({ kind: "transfer", to: 3 });
    expect(step(conf([1, 2, 3]), wanted, followers, ["n3"])).toEqual({ kind: "wait" });
    const all = target([2, 3, 4], [1]);
    expect(step(conf([1, 2, 3]), all, followers, ["n3"])).toMatchObject({ kind: "change" });
    // To other nodes altogether: they vote first, and one of them removes the old.
    expect(step(conf([1, 2], [4]), target([4], [1, 2]), [peer(2, 1_000), peer(4, 1_000)])).toEqual({
      kind: "change",
      changes: [
        { kind: addVoter, id: 4 },
        { kind: removeNode, id: 2 },
      ],
      joining: [],
    });
    expect(step(conf([1, 4]), target([4], [1, 2]), [peer(4, 1_000)])).toEqual({
      kind: "transfer",
      to: 4,
    });
    expect(step(conf([1, 4]), target([4], [1, 2]), [], [], 4)).toEqual({
      kind: "change",
      changes: [{ kind: removeNode, id: 1 }],
      joining: [],
    });
  });
});

async function move(cluster: Cluster, tenant: string, nodes: readonly string[]): Promise<void> {
  const node = cluster.world.alive[0] as SimNode;
  const generation = node.host?.directory.tenant(tenant)?.placement.generation ?? 0;
  const action = { op: "directory.move", tenant, nodes, generation } as const;
  expect((await cluster.change(node, "_system", command(action))).ok).toBe(true);
}

/** Whose replica is here, by node. */
function whereabouts(cluster: Cluster, tenant: string): string[] {
  return cluster.world.nodes
    .filter(({ environments }) =>
      environments.names().some((name) => name.startsWith(`${tenant}.`)),
    )
    .map(({ name }) => name);
}

async function settled(cluster: Cluster, tenant: string, nodes: readonly string[]): Promise<void> {
  const isSettled = (node: SimNode): boolean =>
    node.host?.directory
      .tenant(tenant)
      ?.placement.replicas.every(({ state }) => state === undefined) === true;
  await cluster.until(
    `${tenant} on ${nodes.join()}`,
    () =>
      cluster.world.alive.every(isSettled) &&
      whereabouts(cluster, tenant).join() === [...nodes].sort().join(),
    20_000,
  );
}

describe("a tenant", () => {
  test("grows, moves away altogether, and shrinks, with everything it was told", async () => {
    const cluster = await ready({ nodes: 5 });
    await cluster.create("acme", ["n1"]);
    await cluster.change(cluster.node(0), "acme", publish("one"));
    for (const [round, nodes] of [
      ["n1", "n2", "n3"],
      ["n1", "n2", "n3", "n4", "n5"],
      ["n2", "n4", "n5"],
      ["n1", "n3"],
      ["n2"],
    ].entries()) {
      await move(cluster, "acme", nodes);
      const during = await cluster.change(cluster.node(4), "acme", publish(`during ${round}`));
      expect(during.ok).toBe(true);
      await settled(cluster, "acme", nodes);
      const [first] = cluster.replicas("acme");
      expect([...(first?.replica.members.values() ?? [])].sort()).toEqual([...nodes].sort());
      const holder = cluster.world.nodes.find(({ name }) => name === nodes[0]) as SimNode;
      expect(await cluster.read(holder, "acme", latest)).toBe(`during ${round}`);
      expect(await cluster.read(holder, "acme", versions)).toBe(2 + round);
    }
  });

  test("of one replica keeps no log behind what is applied, and grows by a snapshot all the same", async () => {
    const cluster = await ready({ tuning: { checkpointBytes: 1 } });
    await cluster.create("acme", ["n1"]);
    for (const text of ["a", "b", "c"])
      await cluster.change(cluster.node(0), "acme", publish(text));
    const [only] = cluster.replicas("acme");
    const isCut = (): boolean =>
      only !== undefined && only.replica.log.firstIndex() === only.replica.raft.appliedIndex + 1;
    await cluster.until("checkpointed", isCut);
    await move(cluster, "acme", ["n1", "n2", "n3"]);
    await settled(cluster, "acme", ["n1", "n2", "n3"]);
    for (const node of cluster.world.nodes)
      expect(await cluster.read(node, "acme", latest)).toBe("c");
    // With peers it keeps what one a little behind may ask for.
    await cluster.change(cluster.node(0), "acme", publish("d"));
    await cluster.pass(1_000);
    expect(isCut()).toBe(false);
  });

  test("goes to a new replica as a snapshot, members and all, when its log is gone", async () => {
    const cluster = await ready({ nodes: 4, tuning: { logKeptEntries: 0, checkpointBytes: 1 } });
    await cluster.create("acme");
    for (const text of ["a", "b", "c"]) {
      await cluster.change(cluster.node(0), "acme", publish(text));
      await cluster.pass(200);
    }
    await move(cluster, "acme", ["n2", "n3", "n4"]);
    await settled(cluster, "acme", ["n2", "n3", "n4"]);
    // What it knows of its members outlives it.
    cluster.world.crash(cluster.node(3));
    cluster.world.start(cluster.node(3));
    await cluster.pass(3_000);
    expect(await cluster.read(cluster.node(3), "acme", latest)).toBe("c");
    const replica = cluster.replicas("acme").find(({ node }) => node === cluster.node(3))?.replica;
    expect([...(replica?.members ?? [])]).toEqual([
      [2, "n2"],
      [3, "n3"],
      [4, "n4"],
    ]);
    expect(replica?.conf).toEqual({ ...emptyConfState(), voters: [2, 3, 4] });
  });

  test("is served all the time while it moves, also when its leader leaves, on whichever node somebody asks", async () => {
    const cluster = await ready({ nodes: 5 });
    await cluster.create("acme", ["n1"]);
    const sets = [["n1", "n2", "n3"], ["n3"], ["n3", "n4", "n5"], ["n4"], ["n1", "n2", "n4"]];
    const slow: string[] = [];
    let writes = 0;
    for (let round = 0; round < 20; round++) {
      for (const nodes of sets) {
        await move(cluster, "acme", nodes);
        for (let asked = 0; asked < 3; asked++) {
          const node = cluster.node((round + asked) % 5);
          // Each time at another moment of the steps that a move takes, one in 200 ms.
          await cluster.pass((37 * writes++) % 251);
          const since = cluster.world.now;
          const answer = cluster.propose(node, "acme", publish(`${round}`));
          const isAnswered = (): boolean => answer.outcome !== null || answer.problem !== null;
          await cluster.until("answered", isAnswered);
          const took = cluster.world.now - since;
          if (took > 200 || answer.problem !== null)
            slow.push(
              `write to ${nodes.join()} on ${node.name}: ${took} ms ${answer.problem?.message ?? ""}`,
            );
          if (!whereabouts(cluster, "acme").includes(node.name)) continue;
          const seen = await cluster.read(node, "acme", latest).catch((error: unknown) => error);
          // The gateway goes on with the nodes that have it.
          if (seen !== `${round}` && !(seen instanceof NotHere))
            slow.push(`read of ${nodes.join()} on ${node.name}: ${String(seen)}`);
        }
        // Every second one is moved on before it has arrived.
        if (round % 2 === 0) await settled(cluster, "acme", nodes);
      }
    }
    expect(slow).toEqual([]);
  });

  test("is written to from a node that has none of its replicas, also where the first that is asked is stopped", async () => {
    const cluster = await ready({ nodes: 4 });
    await cluster.create("acme", ["n1", "n2", "n3"]);
    const first = (): Replica =>
      cluster.replicas("acme").find(({ node }) => node === cluster.node(0))?.replica as Replica;
    first().raft.transferLeadership(2);
    await cluster.until("led by another", () => cluster.leader("acme") === cluster.node(1));
    first().halt("stopped by the test");
    const outcome = await cluster.change(cluster.node(3), "acme", publish("elsewhere"));
    expect(outcome.ok).toBe(true);
  });

  test("is led again after its move by who stayed, whatever of that was written down", async () => {
    const cluster = await ready({ nodes: 3 });
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("kept"));
    const stays = cluster.leader("acme") as SimNode;
    await move(cluster, "acme", [stays.name]);
    const row = () => stays.host?.directory.tenant("acme");
    await cluster.until("settled", () => row()?.placement.replicas.length === 1);
    cluster.world.crash(stays);
    await cluster.pass(2_000);
    cluster.world.start(stays);
    expect(whereabouts(cluster, "acme")).toEqual([stays.name]);
    await cluster.until("led", () => cluster.node(1).host?.ready === true);
    expect(await cluster.read(stays, "acme", latest)).toBe("kept");
  });

  test("is made what the directory wants also when a leader that was behind did what was given up", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    const row = cluster.node(0).host?.directory.tenant("acme");
    expect(row?.placement.replicas.every(({ state }) => state === undefined)).toBe(true);
    const conf = (): string =>
      String(
        cluster.replicas("acme").find(({ replica }) => replica.raft.isLeader)?.replica.conf.voters,
      );
    for (const news of ["another leader", "the directory"]) {
      const leader = cluster.replicas("acme").find(({ replica }) => replica.raft.isLeader);
      const { id, raft } = (leader as { replica: Replica }).replica;
      const others = [1, 2, 3].filter((other) => other !== id);
      // What it would do for a placement that names it alone.
      leader?.replica.proposeMembers(
        others.map((other) => ({ kind: removeNode, id: other })),
        [],
      );
      raft.tick();
      await cluster.until("alone", () => conf() === String(id));
      if (news === "another leader") {
        cluster.world.crash(leader?.node as SimNode);
        cluster.world.start(leader?.node as SimNode);
      } else {
        const update = { op: "directory.update", tenant: "acme", description: "x" } as const;
        expect((await cluster.change(cluster.node(0), "_system", command(update))).ok).toBe(true);
      }
      await cluster.until(`three again by ${news}`, () => conf() === "1,2,3");
      const outcome = await cluster.change(cluster.node(1), "acme", publish(news));
      expect(outcome.ok).toBe(true);
    }
  });

  test("is changed by a new leader only when it knows what the directory says now", async () => {
    const cluster = await ready({ nodes: 3, spares: 1, tuning: { balanceAfterMs: 600_000 } });
    const [n1, n2, n3, n4] = [0, 1, 2, 3].map((at) => cluster.node(at)) as [
      SimNode,
      SimNode,
      SimNode,
      SimNode,
    ];
    cluster.world.start(n4);
    await cluster.until("joined", () => n4.host?.ready === true);
    await cluster.create("acme", ["n1", "n2", "n4"]);
    const lead = async (tenant: string, by: SimNode): Promise<void> => {
      await cluster.until(`${tenant} led`, () => cluster.leader(tenant) !== null);
      void cluster.leader(tenant)?.host?.transfer(tenant, by.name);
      await cluster.until(`${tenant} led by ${by.name}`, () => cluster.leader(tenant) === by);
    };
    await lead("_system", n1);
    await lead("acme", n2);
    cluster.world.crash(n3);
    const to = {
      op: "directory.move",
      tenant: "acme",
      nodes: ["n1", "n4"],
      generation: 0,
    } as const;
    cluster.propose(n1, "_system", command(to));
    const { host } = n1;
    await cluster.until("known", () => host?.directory.tenant("acme")?.placement.generation === 1);
    // n1 knows what is wanted, and of all who could know better nobody is there.
    cluster.world.crash(n2);
    await lead("acme", n1);
    const conf = (): string =>
      String(cluster.replicas("acme").find(({ node }) => node === n1)?.replica.conf.voters);
    await cluster.pass(5_000);
    expect(cluster.leader("acme")).toBe(n1);
    expect(conf()).toBe("1,2,3");
    cluster.world.start(n3);
    await cluster.until("moved", () => conf() === "1,3", 20_000);
  });

  test("is whole or gone on a node that it leaves, when the power fails while it goes", async () => {
    let wholes = 0;
    for (let round = 0; round < 8; round++) {
      const cluster = await ready();
      await cluster.create("acme");
      await cluster.create("beta");
      cluster.world.weather = { ...cluster.world.weather, disk: [20, 20] };
      // Who leads the directory hears of every change of it first.
      const leads = cluster.replicas("_system").find(({ replica }) => replica.raft.isLeader)?.node;
      const node = cluster.world.nodes.find((one) => one !== leads) as SimNode;
      const others = cluster.world.nodes.filter((one) => one !== node);
      const own = (): Replica | undefined =>
        cluster.replicas("acme").find((each) => each.node === node)?.replica;
      // Each round draws another fate for the commit that is under way in the end.
      for (let drawn = 0; drawn < round; drawn++) {
        own()?.checkpoint();
        await cluster.pass(200);
        await cluster.change(cluster.node(0), "acme", publish(`${drawn}`));
      }
      await move(
        cluster,
        "acme",
        others.map(({ name }) => name),
      );
      await cluster.until("settled", () =>
        cluster.world.alive.some(
          ({ host }) => host?.directory.tenant("acme")?.placement.replicas.length === 2,
        ),
      );
      // It heard of it first.
      if (own() === undefined) continue;
      // The environment gets what was promised here; it takes a while.
      const before = own()?.raft.status();
      expect(own()?.checkpoint()).toBe(true);
      await cluster.until("gone from memory", () => own() === undefined);
      // What the journal forgets goes to the disk with somebody else's records.
      expect((await cluster.change(cluster.node(0), "beta", publish("x"))).ok).toBe(true);
      for (const each of cluster.world.nodes) cluster.world.crash(each);
      cluster.world.start(node);
      await cluster.pass(1_000);
      const after = own()?.raft.status();
      if (after === undefined) continue;
      wholes += 1;
      expect(after.term).toBe(before?.term);
      expect(after.lastIndex).toBeGreaterThanOrEqual(before?.lastIndex ?? Infinity);
    }
    // Otherwise nothing was seen.
    expect(wholes).toBeGreaterThan(0);
  });

  test("that went from a node does not begin anew on it, when the directory there has yet to hear of it again", async () => {
    const cluster = await ready({ tuning: { balanceAfterMs: 600_000 } });
    await cluster.create("acme");
    await cluster.create("beta");
    const leads = cluster.replicas("_system").find(({ replica }) => replica.raft.isLeader)?.node;
    const node = cluster.world.nodes.find((one) => one !== leads) as SimNode;
    const others = cluster.world.nodes.filter((one) => one !== node);
    const own = (): boolean => cluster.replicas("acme").some((each) => each.node === node);
    const rest = others.map(({ name }) => name);
    await move(cluster, "acme", rest);
    await settled(cluster, "acme", rest);
    // What the journal forgets goes to the disk with somebody else's records.
    expect((await cluster.change(cluster.node(0), "beta", publish("x"))).ok).toBe(true);
    for (const each of cluster.world.nodes) cluster.world.crash(each);
    cluster.world.start(node);
    await cluster.pass(1_000);
    const placed = node.host?.directory.tenant("acme")?.placement.replicas;
    expect(placed?.map(({ node: name }) => name)).toContain(node.name);
    // It had a vote, and gave it, who knows to whom.
    cluster.propose(node, "acme", publish("x"), 500);
    await cluster.pass(1_000);
    expect(own()).toBe(false);
    for (const each of others) cluster.world.start(each);
    await cluster.until("led", () => cluster.leader("acme") !== null);
    expect((await cluster.change(node, "acme", publish("y"))).ok).toBe(true);
    expect(own()).toBe(false);
  });

  test("is served by those who were sent away and called back, when nobody else ever had it", async () => {
    const cluster = await ready();
    await cluster.create("acme", ["n1"]);
    const node = cluster.node(0);
    const to = (nodes: readonly string[], generation: number, lost: readonly number[]) =>
      command({ op: "directory.move", tenant: "acme", nodes, generation, lost });
    expect((await cluster.change(node, "_system", to(["n2"], 0, []))).ok).toBe(true);
    expect((await cluster.change(node, "_system", to(["n1"], 1, [2]))).ok).toBe(true);
    const placement = () => node.host?.directory.tenant("acme")?.placement;
    await cluster.until("called back", () => placement()?.generation === 2);
    expect(placement()?.replicas.map(({ state }) => state)).toEqual(["joining", "lost"]);
    expect(node.host?.locateNow("acme")).toEqual({ local: true });
    await settled(cluster, "acme", ["n1"]);
  });

  test("that sleeps is woken to move", async () => {
    const cluster = await ready({ nodes: 4, tuning: { sleepAfterMs: 300 } });
    await cluster.create("acme");
    await cluster.until("asleep", () => cluster.replicas("acme").length === 0);
    await move(cluster, "acme", ["n1", "n2", "n4"]);
    await settled(cluster, "acme", ["n1", "n2", "n4"]);
    await cluster.until("asleep again", () => cluster.replicas("acme").length === 0);
  });

  test("goes on moving under the next leader, and waits while a quorum of the new ones is down", async () => {
    const cluster = await ready({ nodes: 5 });
    await cluster.create("acme");
    cluster.world.crash(cluster.node(3));
    cluster.world.crash(cluster.node(4));
    await cluster.until("the directory is led", () => cluster.leader("_system") !== null);
    await move(cluster, "acme", ["n1", "n4", "n5"]);
    await cluster.pass(2_000);
    const before = cluster.leader("acme") as SimNode;
    cluster.world.crash(before);
    await cluster.until("another leads", () => cluster.leader("acme") !== null, 10_000);
    const after = cluster.leader("acme") as SimNode;
    expect((await cluster.change(after, "acme", publish("still"))).ok).toBe(true);
    for (const node of [before, cluster.node(3), cluster.node(4)]) cluster.world.start(node);
    await settled(cluster, "acme", ["n1", "n4", "n5"]);
    expect(await cluster.read(cluster.node(4), "acme", latest)).toBe("still");
  });

  test("tells who watches or waits where it leaves that they have to go on elsewhere", async () => {
    const cluster = await ready({ nodes: 4 });
    await cluster.create("acme");
    const told: HistoryRow[] = [];
    const ended: string[] = [];
    const waits: unknown[] = [];
    cluster
      .node(0)
      .host?.read("acme", { consistency: "stale", minRevision: 100, timeoutMs: 60_000 }, () => {})
      .catch((error: unknown) => waits.push(error));
    cluster.node(0).host?.watchWith(
      "acme",
      () => {},
      { commit: (event) => told.push(event), end: (reason) => ended.push(reason) },
      (error) => expect(error).toBe(null),
    );
    const snapshot = await cluster.node(0).host?.snapshot("acme");
    await move(cluster, "acme", ["n2", "n3", "n4"]);
    await settled(cluster, "acme", ["n2", "n3", "n4"]);
    expect(ended).toEqual(["moved"]);
    expect(() => [...(snapshot?.rows() ?? [])]).toThrow(NotHere);
    snapshot?.close();
    await cluster.until("it is told", () => waits.length === 1);
    expect(waits[0]).toBeInstanceOf(NotHere);
    expect(cluster.node(0).host?.locateNow("acme")).toEqual({ local: false });
  });
});

describe("a damaged replica", () => {
  /** The node comes back, and one bit of what the journal has of the group is another. */
  function rot(node: SimNode, group: number): void {
    for (const name of node.disk.list().toSorted().toReversed()) {
      const bytes = node.disk.read(name);
      const records = [...recordsIn(bytes, readSegment(bytes, name, false))];
      const record = records.findLast((each) => each.group === group);
      if (record === undefined) continue;
      node.disk.flipBit(name, payloadStart(record) + 1, 0);
      return;
    }
    throw new Error(`Nothing of group ${group} in the journal`);
  }

  async function repair(cluster: Cluster, node: SimNode): Promise<Replacement | string> {
    let answer: Replacement | string | null = null;
    void node.host?.repair("acme").then(
      (action) => (answer = action),
      (error: unknown) => (answer = String(error)),
    );
    // Its promises settle between two steps of the world.
    for (let at = 0; at < 50 && answer === null; at++) await cluster.pass(100);
    return answer ?? "no answer";
  }

  async function repaired(cluster: Cluster, node: SimNode): Promise<void> {
    const action = (await repair(cluster, node)) as Replacement;
    const outcome = await cluster.change(node, "_system", command(action));
    expect(outcome.ok).toBe(true);
    await settled(cluster, "acme", ["n1", "n2", "n3"]);
  }

  const haltOf = (cluster: Cluster, node: SimNode): string | null =>
    cluster.replicas("acme").find((each) => each.node === node)?.replica.halted ?? null;

  test("is replaced by one that its peers feed, over restarts, and holds the journal no longer", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    const [one, two, node] = cluster.world.nodes as [SimNode, SimNode, SimNode];
    expect((await cluster.change(one, "acme", publish("kept"))).ok).toBe(true);
    expect(await repair(cluster, two)).toContain("runs");
    await cluster.pass(500);
    const group = one.host?.directory.tenant("acme")?.group ?? 0;
    cluster.world.crash(node);
    rot(node, group);
    cluster.world.start(node);
    await cluster.until("here again", () => node.host?.ready === true);
    expect((await cluster.change(one, "acme", publish("later"))).ok).toBe(true);
    await cluster.until("stopped", () => (haltOf(cluster, node) ?? "").includes("damaged"));
    expect([...node.quarantine.replicas].map((each) => each.group)).toEqual([group]);
    expect(node.host?.cluster().quarantine).toMatchObject([{ group, tenant: "acme" }]);
    // The other one that has it all is away: nothing would be left but the damaged one.
    cluster.world.crash(two);
    await cluster.pass(3_000);
    expect(await repair(cluster, node)).toContain("no majority");
    cluster.world.start(two);
    await cluster.until("led", () => cluster.leader("acme") !== null);
    expect((await cluster.change(one, "acme", publish("last"))).ok).toBe(true);
    await cluster.pass(500);
    await repaired(cluster, node);
    expect(haltOf(cluster, node)).toBe(null);
    expect(await cluster.read(node, "acme", latest)).toBe("last");
    cluster.world.crash(node);
    await cluster.pass(2_000);
    cluster.world.start(node);
    await cluster.until("here again", () => node.host?.locateNow("acme")?.local === true);
    expect(await cluster.read(node, "acme", latest)).toBe("last");
    expect(haltOf(cluster, node)).toBe(null);
    expect(readJournal(node.disk).recovery.damaged.has(group)).toBe(false);
    expect([...node.quarantine.replicas]).toEqual([]);
    expect(node.host?.cluster().quarantine).toEqual([]);
  });

  test("stays out over restarts when the journal has nothing of its damage any more", async () => {
    const cluster = await ready({ tuning: { checkpointBytes: 1, journalSegments: 1 } });
    await cluster.create("acme");
    const [one, , node] = cluster.world.nodes as [SimNode, SimNode, SimNode];
    expect((await cluster.change(one, "acme", publish("kept"))).ok).toBe(true);
    const group = one.host?.directory.tenant("acme")?.group ?? 0;
    cluster.world.crash(node);
    rot(node, group);
    const damagedIn = new Set(node.disk.list());
    for (let life = 0; life < 3; life++) {
      cluster.world.start(node);
      await cluster.until("stopped", () => (haltOf(cluster, node) ?? "").includes("damaged"));
      // What else happens lets the segments go, which the damage pins no longer.
      expect((await cluster.change(one, "acme", publish(`${life}`))).ok).toBe(true);
      await cluster.create(`t${life}`);
      await cluster.until("gone", () => !node.disk.list().some((name) => damagedIn.has(name)));
      expect(haltOf(cluster, node)).toContain("damaged");
      cluster.world.crash(node);
    }
    expect(readJournal(node.disk).recovery.damaged.size).toBe(0);
    cluster.world.start(node);
    await cluster.until("here again", () => node.host?.ready === true);
    await cluster.until("led", () => cluster.leader("acme") !== null);
    await cluster.pass(2_000);
    await repaired(cluster, node);
    expect(await cluster.read(node, "acme", latest)).toBe("2");
    expect([...node.quarantine.replicas]).toEqual([]);
  });

  test("stays out and pins no segment when a fault stopped it while it ran", async () => {
    const cluster = await ready({ tuning: { journalSegments: 1 } });
    await cluster.create("acme");
    const [one, , node] = cluster.world.nodes as [SimNode, SimNode, SimNode];
    expect((await cluster.change(one, "acme", publish("kept"))).ok).toBe(true);
    await cluster.pass(500);
    const group = one.host?.directory.tenant("acme")?.group ?? 0;
    const { replica } = cluster.replicas("acme").find((each) => each.node === node) as {
      replica: Replica;
    };
    const pinned = node.disk.list()[0] as string;
    const inJournal = readJournal(node.disk).recovery.groups.get(group)?.length ?? 0;
    expect(inJournal).toBeGreaterThan(0);
    await cluster.create("other");
    replica.halt("stopped by the test");
    for (let at = 0; node.disk.list().includes(pinned) && at < 100; at++) {
      expect((await cluster.change(one, "other", publish(`${at}`.repeat(8_000)))).ok).toBe(true);
      await cluster.pass(50);
    }
    expect(node.disk.list()).not.toContain(pinned);
    expect([...node.quarantine.replicas]).toEqual([
      { group, replica: replica.id, reason: "stopped by the test" },
    ]);
    expect(node.quarantine.records.get(group)).toHaveLength(inJournal);
    cluster.world.crash(node);
    cluster.world.start(node);
    await cluster.until("stopped", () => (haltOf(cluster, node) ?? "").includes("by the test"));
    expect((await cluster.change(one, "acme", publish("last"))).ok).toBe(true);
    await cluster.pass(500);
    await repaired(cluster, node);
    expect(await cluster.read(node, "acme", latest)).toBe("last");
    expect([...node.quarantine.replicas]).toEqual([]);
  });

  test("does not give way while another one is stopped too: a start may mend both", async () => {
    const cluster = await ready({ tuning: { journalSegments: 1 } });
    await cluster.create("acme");
    const [one] = cluster.world.nodes as [SimNode];
    expect((await cluster.change(one, "acme", publish("kept"))).ok).toBe(true);
    await cluster.pass(500);
    await cluster.create("other");
    const stopped = cluster.replicas("acme").filter(({ replica }) => !replica.raft.isLeader);
    expect(stopped).toHaveLength(2);
    for (const { replica } of stopped) replica.halt("stopped by the test");
    for (let at = 0; at < 60; at++) {
      expect((await cluster.change(one, "other", publish(`${at}`.repeat(8_000)))).ok).toBe(true);
      await cluster.pass(200);
    }
    for (const { node } of stopped) {
      expect(node.disk.list().length).toBeGreaterThan(1);
      expect([...node.quarantine.replicas]).toEqual([]);
      cluster.world.crash(node);
      cluster.world.start(node);
    }
    await cluster.until("here again", () => stopped.every(({ node }) => node.host?.ready === true));
    expect((await cluster.change(one, "acme", publish("last"))).ok).toBe(true);
  });

  test("of the directory gives way in the end too: its node needs an empty disk, and is fed again", async () => {
    const cluster = await ready({ tuning: { journalSegments: 1 } });
    await cluster.create("acme");
    await cluster.pass(500);
    const { node, replica } = cluster
      .replicas("_system")
      .find((each) => !each.replica.raft.isLeader) as { node: SimNode; replica: Replica };
    const one = cluster.world.nodes.find((each) => each !== node) as SimNode;
    const pinned = node.disk.list()[0] as string;
    replica.halt("stopped by the test");
    const segments: number[] = [];
    for (let at = 0; node.disk.list().includes(pinned) && at < 300; at++) {
      expect((await cluster.change(one, "acme", publish(`${at}`.repeat(8_000)))).ok).toBe(true);
      await cluster.pass(50);
      segments.push(node.disk.list().length);
    }
    expect(node.disk.list()).not.toContain(pinned);
    // Before that a start may mend what stopped it.
    expect(Math.max(...segments)).toBeGreaterThanOrEqual(8);
    const reason = "stopped by the test";
    expect([...node.quarantine.replicas]).toEqual([{ group: 1, replica: replica.id, reason }]);
    cluster.world.crash(node);
    cluster.world.start(node);
    await cluster.pass(3_000);
    expect(node.host?.ready).toBe(false);
    cluster.world.crash(node);
    cluster.world.wipe(node);
    cluster.world.start(node);
    await cluster.until("here again", () => node.host?.ready === true);
    expect((await cluster.change(one, "acme", publish("last"))).ok).toBe(true);
    const isFed = (): boolean => node.host?.locateNow("acme")?.local === true;
    await cluster.until("fed", isFed, 60_000);
    expect(await cluster.read(node, "acme", latest)).toBe("last");
  });

  test("is any that slept when records of unknown groups were lost, and none that was made later", async () => {
    const cluster = await ready({ tuning: { checkpointBytes: 1, sleepAfterMs: 500 } });
    await cluster.create("acme");
    const [one, , node] = cluster.world.nodes as [SimNode, SimNode, SimNode];
    expect((await cluster.change(one, "acme", publish("kept"))).ok).toBe(true);
    await cluster.until("asleep", () => cluster.replicas("acme").length === 0);
    // Until something is written the journal does not say that it needs nothing of it any more.
    await cluster.create("other");
    await cluster.pass(500);
    cluster.world.crash(node);
    node.quarantine.lost = {
      to: 2 ** 40,
      where: "segment 9",
      environments: node.environments.names(),
    };
    await cluster.pass(3_000);
    await cluster.create("young");
    const group = one.host?.directory.tenant("young")?.group ?? 0;
    // The power failed again before the journal had anything of it.
    const name = environmentName({ tenant: "young", group, replica: 3 });
    await node.environments.open(name).close();
    cluster.world.start(node);
    await cluster.until("here again", () => node.host?.ready === true);
    for (const tenant of ["acme", "young"])
      expect((await cluster.change(one, tenant, publish("later"))).ok).toBe(true);
    await cluster.pass(500);
    expect(haltOf(cluster, node)).toContain("segment 9");
    expect(cluster.replicas("young").find((each) => each.node === node)?.replica.halted).toBe(null);
  });

  test("is replaced when its environment cannot be opened", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    const [one, , node] = cluster.world.nodes as [SimNode, SimNode, SimNode];
    await cluster.change(one, "acme", publish("kept"));
    await cluster.pass(500);
    cluster.world.crash(node);
    const name = node.environments.names().find((each) => each.startsWith("acme.")) as string;
    node.environments.broken.add(name);
    cluster.world.start(node);
    await cluster.until("here again", () => node.host?.ready === true);
    expect((await cluster.change(one, "acme", publish("last"))).ok).toBe(true);
    await cluster.pass(500);
    await repaired(cluster, node);
    await cluster.until("its files are gone", () => !node.environments.names().includes(name));
    expect(await cluster.read(node, "acme", latest)).toBe("last");
  });
});

test("a replica for which there is no room just now wakes when there is", async () => {
  const cluster = await ready();
  await cluster.create("acme");
  const node = cluster.node(2);
  cluster.world.crash(node);
  const name = node.environments.names().find((each) => each.startsWith("acme.")) as string;
  node.environments.busy.add(name);
  cluster.world.start(node);
  await cluster.until("here again", () => node.host?.ready === true);
  expect((await cluster.change(cluster.node(0), "acme", publish("kept"))).ok).toBe(true);
  await cluster.pass(500);
  expect(cluster.replicas("acme").map((each) => each.node)).not.toContain(node);
  node.environments.busy.clear();
  expect(await cluster.read(node, "acme", latest)).toBe("kept");
  await cluster.until("awake", () => cluster.replicas("acme").some((each) => each.node === node));
});

test("a replica that a full disk has no directory for begins when there is room", async () => {
  const cluster = await ready();
  const [, , node] = cluster.world.nodes as [SimNode, SimNode, SimNode];
  node.environments.full = true;
  await cluster.create("acme", ["n1", "n2", "n3"]);
  expect((await cluster.change(cluster.node(0), "acme", publish("kept"))).ok).toBe(true);
  await cluster.pass(2_000);
  expect(cluster.replicas("acme").map((each) => each.node)).not.toContain(node);
  node.environments.full = false;
  expect(await cluster.read(node, "acme", latest)).toBe("kept");
  expect((await cluster.change(cluster.node(0), "acme", publish("fed"))).ok).toBe(true);
  await cluster.until("fed", () => {
    const here = cluster.replicas("acme").find((each) => each.node === node);
    return here !== undefined && latest(here.replica.view) === "fed";
  });
});

describe("a replica that was removed", () => {
  test("leaves no bytes behind, also beside tens of thousands of others and while tenants go all the time", async () => {
    const cluster = await ready();
    const [node] = cluster.world.nodes as [SimNode];
    const { stored } = node.environments;
    const some = new MemoryEnvironment();
    stored.set("gone.900.1", some);
    // Those of the directory itself are left alone, and stand for tenants that are this node's.
    for (let id = 1; id <= 30_000; id++) stored.set(`here.1.${1_000 + id}`, some);
    for (let at = 0; stored.has("gone.900.1") && at < 6; at++) {
      await cluster.create(`t${at}`);
      const purge = { op: "directory.delete", tenant: `t${at}`, purge: true } as const;
      expect((await cluster.change(node, "_system", command(purge))).ok).toBe(true);
      await cluster.pass(1_000);
    }
    expect(stored.has("gone.900.1")).toBe(false);
  });

  test("and has not heard of it deposes nobody, and drops its bytes when it hears", async () => {
    const cluster = await ready({ nodes: 4 });
    await cluster.create("acme");
    const leader = cluster.leader("acme") as SimNode;
    const leaving = cluster.world.nodes.find(
      (node) => node !== leader && node !== cluster.node(3),
    ) as SimNode;
    for (const node of cluster.world.nodes) {
      if (node === leaving) continue;
      cluster.world.cut(node, leaving);
      cluster.world.cut(leaving, node);
    }
    const rest = cluster.world.nodes.filter((node) => node !== leaving).map(({ name }) => name);
    await cluster.pass(2_000);
    const asked = cluster.world.alive.find((node) => node !== leaving) as SimNode;
    const action = { op: "directory.move", tenant: "acme", nodes: rest, generation: 0 } as const;
    expect((await cluster.change(asked, "_system", command(action))).ok).toBe(true);
    await cluster.until(
      "settled without it",
      () => asked.host?.directory.tenant("acme")?.placement.replicas.length === 3,
    );
    const led = cluster.leader("acme") as SimNode;
    const term = (): number | undefined =>
      cluster.replicas("acme").find(({ node }) => node === led)?.replica.raft.term;
    const before = term();
    // It has been without a leader all the time, and now it can ask for votes.
    cluster.world.heal();
    await settled(cluster, "acme", rest);
    await cluster.pass(3_000);
    expect(term()).toBe(before);
    expect(cluster.leader("acme")).toBe(led);
  });
});

/** `_system` as its leader has it: nodes of its voters, and whether the directory agrees. */
function systemVoters(cluster: Cluster): string[] | null {
  const leader = cluster.leader("_system");
  const row = leader?.host?.directory.system();
  const replica = cluster.replicas("_system").find(({ node }) => node === leader)?.replica;
  if (row === undefined || replica === undefined) return null;
  const isSettled = row.placement.replicas.every(
    ({ state }) => state === undefined || state === "learner",
  );
  const { voters, votersOutgoing } = replica.conf;
  const wanted = row.placement.replicas.filter(({ state }) => state === undefined);
  const agrees = wanted.map(({ id }) => id).join() === voters.join();
  if (!isSettled || votersOutgoing.length > 0 || !agrees) return null;
  return [...replica.voters()].map(([, node]) => node).sort();
}

function phase(node: string, to: "active" | "draining" | "leaving") {
  return command({ op: "node.phase", node, phase: to });
}

describe("a cluster", () => {
  test("grows from one node to five while it serves, and back to three", async () => {
    const cluster = await ready({ nodes: 1, spares: 4 });
    await cluster.create("acme", ["n1"]);
    let written = 0;
    const write = async (): Promise<void> => {
      const text = `w${++written}`;
      const node = cluster.world.alive[written % cluster.world.alive.length] as SimNode;
      expect((await cluster.change(node, "acme", publish(text, text))).ok).toBe(true);
    };
    await write();
    for (let at = 1; at < 5; at++) {
      cluster.world.start(cluster.node(at));
      await write();
      await cluster.until(
        `${at + 1} nodes`,
        () =>
          cluster.node(at).host?.ready === true &&
          systemVoters(cluster)?.length === (at % 2 === 0 ? at + 1 : at),
        20_000,
      );
    }
    await move(cluster, "acme", ["n1", "n2", "n3"]);
    await settled(cluster, "acme", ["n1", "n2", "n3"]);
    for (const name of ["n1", "n2"]) {
      await cluster.change(cluster.node(4), "_system", phase(name, "leaving"));
      await write();
      await cluster.until(
        `${name} is gone`,
        () => cluster.node(4).host?.directory.node(name) === undefined,
        30_000,
      );
      const node = cluster.world.nodes.find((one) => one.name === name) as SimNode;
      await cluster.until("without it", () => {
        const voters = systemVoters(cluster);
        return voters !== null && !voters.includes(name);
      });
      cluster.world.crash(node);
      await write();
    }
    await cluster.until("three voters", () => systemVoters(cluster)?.length === 3);
    await settled(cluster, "acme", ["n3", "n4", "n5"]);
    for (const node of cluster.world.alive)
      expect(await cluster.read(node, "acme", versions)).toBe(written);
  });

  test("gives replicas of a node that stays away another place, and lets a drained one go", async () => {
    const cluster = await ready({ nodes: 4, tuning: { replaceAfterMs: 3_000 } });
    await cluster.pass(2_000);
    await cluster.create("acme", ["n1", "n2", "n3"]);
    await cluster.change(cluster.node(0), "acme", publish("kept"));
    cluster.world.crash(cluster.node(2));
    const on = (): string =>
      cluster
        .node(0)
        .host?.directory.tenant("acme")
        ?.placement.replicas.map(({ node, state }) => node + (state ?? ""))
        .sort()
        .join() ?? "";
    await cluster.until("elsewhere", () => on() === "n1,n2,n4", 20_000);
    cluster.world.start(cluster.node(2));
    await settled(cluster, "acme", ["n1", "n2", "n4"]);
    await cluster.change(cluster.node(0), "_system", phase("n2", "draining"));
    await settled(cluster, "acme", ["n1", "n3", "n4"]);
    expect(cluster.node(0).host?.place("beta", 3)).not.toContain("n2");
    await cluster.change(cluster.node(0), "_system", phase("n2", "active"));
    // Another node may have led that change.
    await cluster.until(
      "n2 counts again",
      () => cluster.node(0).host?.directory.node("n2")?.phase === undefined,
    );
    expect(cluster.node(0).host?.place("beta", 4)).toContain("n2");
    expect(await cluster.read(cluster.node(2), "acme", latest)).toBe("kept");
  });
});

describe("the voters of _system", () => {
  test("are not fewer because one of three is gone, and a fourth node takes its place", async () => {
    const cluster = await ready({ spares: 1, tuning: { replaceAfterMs: 3_000 } });
    await cluster.until("three voters", () => systemVoters(cluster)?.length === 3, 20_000);
    cluster.world.crash(cluster.node(2));
    await cluster.pass(15_000);
    expect(systemVoters(cluster)?.join()).toBe("n1,n2,n3");
    cluster.world.start(cluster.node(3));
    await cluster.until("a fourth", () => systemVoters(cluster)?.join() === "n1,n2,n4", 20_000);
  });
});

describe("a node whose disk was lost", () => {
  test("comes back as another replica everywhere, and the old one never votes again", async () => {
    const cluster = await ready();
    await cluster.pass(2_000);
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("kept"));
    const lost = cluster.node(2);
    cluster.world.crash(lost);
    cluster.world.wipe(lost);
    await cluster.pass(3_000);
    cluster.world.start(lost);
    const idOf = (tenant: string): number | undefined =>
      cluster.replicas(tenant).find(({ node }) => node === lost)?.replica.id;
    await cluster.until("in again", () => idOf("_system") === 4 && idOf("acme") === 4, 20_000);
    await cluster.until("three voters", () => systemVoters(cluster)?.join() === "n1,n2,n3", 20_000);
    await settled(cluster, "acme", ["n1", "n2", "n3"]);
    expect(await cluster.read(lost, "acme", latest)).toBe("kept");
    expect(cluster.node(0).host?.directory.system()?.placement.replicas).toMatchObject([
      { node: "n1", id: 1 },
      { node: "n2", id: 2 },
      { node: "n3", id: 4 },
    ]);
  });

  test("begins a new cluster only with a majority that has nothing", async () => {
    const cluster = await ready();
    await cluster.pass(2_000);
    for (const node of [cluster.node(1), cluster.node(2)]) {
      cluster.world.crash(node);
      cluster.world.wipe(node);
      cluster.world.start(node);
    }
    // One still knows: nobody is elected with votes that were forgotten.
    await cluster.pass(15_000);
    expect(cluster.node(1).host?.ready).toBe(false);
    expect(cluster.leader("_system")).toBe(null);
  });
});
