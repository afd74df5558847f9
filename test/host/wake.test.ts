/** How a group that sleeps, or that nobody leads, comes by a leader when somebody asks for it. */
import { describe, expect, test } from "vitest";
import { frameItems, ItemKind, parseRaftItem } from "../../src/host/codec.ts";
import { SYSTEM_GROUP } from "../../src/host/directory.ts";
import { Sleepers } from "../../src/host/sleepers.ts";
import { MessageType, type Message } from "../../src/raft/types.ts";
import type { SimNode } from "../sim/world.ts";
import { type Cluster, latest, publish, ready } from "./cluster.ts";
import { beginning, createTenant, entryOf, ScriptedNode, tenantOn } from "./scripted_node.ts";

function asked(messages: readonly Message[]): number {
  return messages.filter((m) => m.type === MessageType.preVote).length;
}

async function following(): Promise<ScriptedNode> {
  const node = new ScriptedNode();
  await node.start();
  node.follow(5, [beginning]);
  return node;
}

describe("who is asked for its vote by one that has less", () => {
  const behind = { from: 2, term: 6, index: 1, logTerm: 5 };

  test("asks for votes itself in the same turn", async () => {
    const node = await following();
    node.pass(1_200, ["n2"]);
    node.take();
    const said = node.step("preVote", behind);
    expect(said.find((m) => m.type === MessageType.preVoteResponse)).toMatchObject({
      reject: true,
    });
    expect(asked(said)).toBe(2);
  });

  test("lets another one go first that may have it too, and follows a moment later", async () => {
    const node = await following();
    // In the group of `_system` the order of 1 and 3 begins with 3.
    expect(asked(node.step("preVote", behind))).toBe(0);
    node.pass(50);
    expect(asked(node.take())).toBe(2);
  });

  test("stays quiet while it knows of a leader, or has no more than that", async () => {
    const node = await following();
    node.step("preVote", { ...behind, from: 3 });
    node.pass(100);
    expect(asked(node.take())).toBe(0);
    node.step("preVote", { ...behind, index: 2 });
    node.pass(100);
    expect(asked(node.take())).toBe(0);
  });
});

describe("a campaign that is refused", () => {
  /** The leader is gone, and somebody asks for it. */
  const firstAsking = (node: ScriptedNode): ReturnType<ScriptedNode["take"]> => {
    node.pass(1_200, ["n3"]);
    node.host?.requests.read("_system", { consistency: "linearizable" }, () => {});
    node.turn();
    let said = node.take();
    // Another one may go first, and is given a moment.
    for (let ms = 0; asked(said) === 0 && ms < 200; ms += 5, said = node.take())
      node.pass(5, ["n3"]);
    return said;
  };

  test("is tried again soon, and less often each time", async () => {
    const node = await following();
    let said = firstAsking(node);
    for (let tried = 0; tried < 4; tried++) {
      expect(asked(said)).toBe(2);
      for (const from of [2, 3]) node.step("preVoteResponse", { from, term: 5, reject: true });
      const since = node.now;
      for (said = []; asked(said) === 0 && node.now < since + 1_000; said = node.take())
        node.pass(5, ["n3"]);
      // The pulse beats every 25 ms.
      const least = 25 * 2 ** tried;
      expect(node.now - since).toBeGreaterThanOrEqual(least);
      expect(node.now - since).toBeLessThanOrEqual(2 * least + 25);
    }
  });

  test("for a term that has passed is tried again in the same turn, and no sooner for that term", async () => {
    const node = await following();
    firstAsking(node);
    const refused = { reject: true, term: 9 };
    const said = node.step("preVoteResponse", { ...refused, from: 3 });
    const requests = said.filter(({ type }) => type === MessageType.preVote);
    expect(requests.map(({ to, term }) => [to, term])).toEqual([
      [2, 10],
      [3, 10],
    ]);
    expect(asked(node.step("preVoteResponse", { ...refused, from: 3 }))).toBe(0);
    expect(asked(node.step("preVoteResponse", { ...refused, from: 2 }))).toBe(0);
  });
});

describe("what a tenant's beginning will be", () => {
  const start = async (entries: readonly ReturnType<typeof entryOf>[]): Promise<ScriptedNode> => {
    const node = new ScriptedNode();
    await node.start();
    node.hear("n2", "n3");
    if (entries.length > 0) node.step("appendEntries", { from: 2, term: 1, entries });
    node.step("forgetLeader", { from: 2, term: 1 });
    const { raft } = node.replica();
    raft.campaign();
    node.pass(100);
    node.step("preVoteResponse", { from: 2, term: raft.term + 1 });
    node.step("requestVoteResponse", { from: 2, term: raft.term });
    expect(raft.isLeader).toBe(true);
    return node;
  };

  test("is known to its first leader from its election until that is applied", async () => {
    const node = await start([]);
    const replica = node.replica();
    expect([replica.initialised, replica.unborn?.revision]).toEqual([false, 1]);
    node.acknowledge(2);
    expect([replica.initialised, replica.unborn, replica.view.revision]).toEqual([true, null, 1]);
  });

  test("is nothing to go by once another one may lead", async () => {
    const node = await start([]);
    node.step("appendEntriesResponse", { from: 3, term: 9 });
    expect(node.replica().raft.isLeader).toBe(false);
    expect(node.replica().unborn).toBeNull();
  });

  test("is not said where the log may hold more, though nothing of it is applied here", async () => {
    const rest = entryOf(3, 1, createTenant("acme"));
    for (const entries of [[], [beginning], [beginning, null]]) {
      const log = [null, ...entries].map((action, at) => entryOf(at + 1, 1, action));
      const node = await start([...log, ...(entries.length === 1 ? [rest] : [])]);
      expect(node.replica().initialised).toBe(false);
      expect(node.replica().unborn).toBeNull();
    }
  });
});

describe("a leader that slept", () => {
  const SLEEP_MS = 500;

  async function asleep(): Promise<{ cluster: Cluster; leader: SimNode; term: number }> {
    const cluster = await ready({ tuning: { sleepAfterMs: SLEEP_MS } });
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("a"));
    const leader = cluster.leader("acme") as SimNode;
    const term = termOn(cluster, leader);
    await sleeps(cluster);
    return { cluster, leader, term };
  }

  async function sleeps(cluster: Cluster): Promise<void> {
    await cluster.until("all sleep", () => cluster.replicas("acme").length === 0, 20_000);
  }

  function termOn(cluster: Cluster, node: SimNode): number {
    return cluster.replicas("acme").find((one) => one.node === node)?.replica.raft.term ?? 0;
  }

  /** Counts what nodes say of tenants' groups from now on. */
  function listen(cluster: Cluster): () => number {
    let said = 0;
    cluster.world.onSent = (_lane, bytes) => {
      for (const { kind, item } of frameItems(bytes))
        if (kind === ItemKind.raft && parseRaftItem(item).group !== SYSTEM_GROUP) said += 1;
    };
    return () => said;
  }

  test("answers a read without waking anybody, and without a word to them", async () => {
    const { cluster, leader, term } = await asleep();
    const said = listen(cluster);
    const answers: unknown[] = [];
    leader.host?.requests.read("acme", { consistency: "linearizable" }, (error, view) => {
      answers.push(error ?? latest(view as never));
    });
    expect([answers, said()]).toEqual([["a"], 0]);
    await cluster.pass(SLEEP_MS / 2);
    expect([said(), termOn(cluster, leader)]).toEqual([0, term]);
    expect(cluster.replicas("acme")).toHaveLength(1);
  });

  test("takes what its followers were asked for, again and again, in its term", async () => {
    const { cluster, leader, term } = await asleep();
    for (const node of cluster.world.nodes) {
      const outcome = await cluster.change(node, "acme", publish(`at ${node.name}`));
      expect(outcome.ok).toBe(true);
      expect([cluster.leader("acme"), termOn(cluster, leader)]).toEqual([leader, term]);
      await sleeps(cluster);
      expect(await cluster.read(node, "acme", latest)).toBe(`at ${node.name}`);
      await sleeps(cluster);
    }
  });

  test("asks a majority, when the nodes of its followers started anew meanwhile", async () => {
    const { cluster, leader } = await asleep();
    for (const node of cluster.world.nodes) if (node !== leader) cluster.world.crash(node);
    for (const node of cluster.world.nodes) if (node.host === null) cluster.world.start(node);
    // Their nodes vouch for its own again, and nobody has looked for a leader yet, to whom it would say that it is there.
    await cluster.ready();
    const said = listen(cluster);
    const answers: unknown[] = [];
    leader.host?.requests.read("acme", { consistency: "linearizable" }, (error, view) => {
      answers.push(error ?? latest(view as never));
    });
    expect(answers).toEqual([]);
    await cluster.until("an answer", () => answers.length > 0);
    expect(answers).toEqual(["a"]);
    expect(said()).toBeGreaterThan(0);
  });

  test("serves nothing old when others went on without it", async () => {
    const { cluster, leader, term } = await asleep();
    const [one, other] = cluster.world.nodes.filter((node) => node !== leader) as [
      SimNode,
      SimNode,
    ];
    for (const node of [one, other]) {
      cluster.world.cut(node, leader);
      cluster.world.cut(leader, node);
    }
    await cluster.pass(2_000);
    expect((await cluster.change(one, "acme", publish("b"))).ok).toBe(true);
    const answers: unknown[] = [];
    leader.host?.requests.read(
      "acme",
      { consistency: "linearizable", timeoutMs: 1_000 },
      (error, view) => {
        answers.push(error?.code ?? latest(view as never));
      },
    );
    await cluster.until("an answer", () => answers.length > 0);
    expect(answers).toEqual(["no-quorum"]);
    cluster.world.heal();
    await cluster.pass(2_000);
    expect(await cluster.read(leader, "acme", latest)).toBe("b");
    expect(termOn(cluster, leader)).toBeGreaterThan(term);
  });

  test("asks to be elected anew, when its node said meanwhile that it leads no more", async () => {
    const node = new ScriptedNode({ sleepAfterMs: SLEEP_MS });
    await node.start();
    node.follow(5, [beginning, createTenant("acme")]);
    const { group, incarnation, to, idOf } = tenantOn(node, "acme");
    const of = (from: string) => ({ group, incarnation, from });
    const awake = (): boolean =>
      [...(node.host?.replicas() ?? [])].some((replica) => replica.group === group);
    // A new tenant's first replica asks at once.
    for (const type of ["preVoteResponse", "requestVoteResponse"] as const)
      node.step(type, { to, from: idOf("n2"), term: 1 }, of("n2"));
    for (const isDisowned of [false, true]) {
      const { raft } = node.replica(group);
      for (let waited = 0; awake() && waited < 100; waited++) {
        // Whatever is said to it keeps it awake.
        for (const name of raft.nobodyLacksAnything ? [] : ["n2", "n3"]) {
          const { term, lastIndex: index } = raft;
          const fields = { to, from: idOf(name), term, index, commit: index };
          node.step("appendEntriesResponse", fields, of(name));
        }
        node.pass(100);
      }
      const { term } = raft;
      // It is being closed: nobody can be answered by itself.
      const follows = { to, from: idOf("n2"), term, index: 1 };
      expect(awake()).toBe(false);
      if (isDisowned) node.step("appendEntriesResponse", follows, of("n2"));
      for (let turn = 0; turn < 8; turn++) await Promise.resolve();
      const said = node.step("heartbeatResponse", { to, from: idOf("n2"), term }, of("n2"));
      expect(node.replica(group).raft.isLeader).toBe(!isDisowned);
      expect(asked(said)).toBe(isDisowned ? 2 : 0);
    }
  });
});

describe("a group whose nodes all started anew", () => {
  /** What is said of the tenant's group from then on, a message a line. */
  async function restarted(): Promise<{ cluster: Cluster; said: string[] }> {
    const cluster = await ready({ tuning: { sleepAfterMs: 500 } });
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("a"));
    const group = cluster.node(0).host?.directory.groupOf("acme");
    await cluster.until("all sleep", () => cluster.replicas("acme").length === 0, 20_000);
    // With what is written next the journals forget it, so that no node brings it up to date when it starts.
    await cluster.create("other");
    for (const node of cluster.world.nodes) cluster.world.crash(node);
    for (const node of cluster.world.nodes) cluster.world.start(node);
    await cluster.ready();
    // What their earlier lives may have promised is over.
    await cluster.pass(2_000);
    const said: string[] = [];
    cluster.world.onSent = (_lane, bytes) => {
      for (const { kind, item } of frameItems(bytes)) {
        if (kind !== ItemKind.raft) continue;
        const { group: of, message } = parseRaftItem(item);
        const name = Object.entries(MessageType).find(([, value]) => value === message.type)?.[0];
        if (of === group) said.push(`${name} ${message.entries.length}`);
      }
    };
    return { cluster, said };
  }

  test("answers a read by the votes alone, and writes what its caller then writes with the leader's first entry", async () => {
    const { cluster, said } = await restarted();
    const node = cluster.node(1);
    const seen: string[] = [];
    node.host?.requests.read("acme", { consistency: "linearizable" }, (error, view) => {
      seen.push(error?.code ?? `${latest(view as never)} after ${new Set(said).size} kinds`);
      cluster.propose(node, "acme", publish("b"));
    });
    await cluster.until("a leader that is followed", () =>
      said.some((line) => line.startsWith("appendEntriesResponse")),
    );
    // preVote, requestVote, and an answer to each.
    expect(seen).toEqual(["a after 4 kinds"]);
    const appends = said.filter((line) => line.startsWith("appendEntries "));
    expect(appends.slice(0, 2)).toEqual(["appendEntries 2", "appendEntries 2"]);
    expect(await cluster.read(cluster.node(2), "acme", latest)).toBe("b");
  });
});

describe("a follower that slept", () => {
  test("answers at once what may be stale, its leader being where it was", async () => {
    const cluster = await ready({ tuning: { sleepAfterMs: 500 } });
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("a"));
    const leader = cluster.leader("acme");
    await cluster.until("all sleep", () => cluster.replicas("acme").length === 0, 20_000);
    const follower = cluster.world.nodes.find((node) => node !== leader) as SimNode;
    const answers: unknown[] = [];
    follower.host?.requests.read("acme", { consistency: "stale" }, (error, view) => {
      answers.push(error ?? latest(view as never));
    });
    expect(answers).toEqual(["a"]);
    // Nobody else woke for it.
    await cluster.pass(100);
    expect(cluster.replicas("acme").map(({ node }) => node)).toEqual([follower]);
  });

  test("looks for a leader first, when its own is gone", async () => {
    const cluster = await ready({ tuning: { sleepAfterMs: 500 } });
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("a"));
    const leader = cluster.leader("acme") as SimNode;
    await cluster.until("all sleep", () => cluster.replicas("acme").length === 0, 20_000);
    cluster.world.crash(leader);
    await cluster.pass(3_000);
    const follower = cluster.world.nodes.find((node) => node !== leader) as SimNode;
    const answers: unknown[] = [];
    follower.host?.requests.read("acme", { consistency: "stale" }, (error, view) => {
      answers.push(error ?? latest(view as never));
    });
    expect(answers).toEqual([]);
    await cluster.until("an answer", () => answers.length > 0);
    expect([answers, cluster.leader("acme")]).not.toContain(null);
    expect(answers).toEqual(["a"]);
  });
});

describe("what is kept of leaders that sleep", () => {
  const leadership = { term: 3, round: 1, bound: [0, 7, 8] };

  test("is given back once, to the replica that led", () => {
    const sleepers = new Sleepers();
    sleepers.asleep(8, 1, leadership);
    expect(sleepers.awake(8, 1)).toMatchObject(leadership);
    expect(sleepers.awake(8, 1)).toBeNull();
    sleepers.asleep(8, 1, leadership);
    expect(sleepers.awake(8, 2)).toBeNull();
    sleepers.asleep(8, 1, leadership);
    sleepers.forget(8);
    expect(sleepers.awake(8, 1)).toBeNull();
    sleepers.asleep(8, 1, null);
    expect(sleepers.awake(8, 1)).toBeNull();
  });

  test("is bounded: who slept longest is forgotten first", () => {
    const sleepers = new Sleepers(2);
    for (const group of [2, 3, 4]) sleepers.asleep(group, 1, leadership);
    expect([2, 3, 4].map((group) => sleepers.awake(group, 1) !== null)).toEqual([
      false,
      true,
      true,
    ]);
  });
});
