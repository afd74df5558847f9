/**
 * What a change may cost, counted and not timed: the simulated world is the same on every machine. A bound that breaks
 * is either a mistake or has to be raised here, with a reason in the commit.
 */
import { expect, test } from "vitest";
import { frameItems, ItemKind, parseRaftItem } from "../../src/host/codec.ts";
import { SYSTEM_GROUP } from "../../src/host/directory.ts";
import { CAMPAIGNS_PER_PULSE } from "../../src/host/elections.ts";
import type { Command, Outcome } from "../../src/machine/command.ts";
import type { TenantView } from "../../src/host/ports.ts";
import { apply } from "../../src/machine/machine.ts";
import { getKey } from "../../src/machine/queries.ts";
import type { StateTransaction } from "../../src/machine/rows.ts";
import { MessageType } from "../../src/raft/types.ts";
import { World, type SimNode } from "../sim/world.ts";
import { ready } from "./cluster.ts";
import { command, createTenant } from "./scripted_node.ts";

function publish(text: string): Command {
  const content = { text, hash: `sha256:${text}`, bytes: text.length };
  return command({ op: "publish", namespace: "app", name: "c", content, schemaHash: null });
}

interface Cost {
  /** Journal writes of all three nodes. */
  journalWrites: number;
  frames: number;
  /** Of those frames, without what a transport adds. */
  bytes: number;
  /** Messages of Raft by type. */
  readonly messages: Map<string, number>;
}

async function until(world: World, condition: () => boolean): Promise<void> {
  await world.run(world.now + 10_000, condition);
  expect(condition()).toBe(true);
}

async function threeNodes(): Promise<World> {
  const world = new World({ seed: 1, nodes: 3 });
  for (const node of world.nodes) world.start(node);
  await until(world, () => world.nodes.every((node) => node.host?.ready === true));
  return world;
}

async function change(
  world: World,
  node: SimNode,
  tenant: string,
  commands: readonly Command[],
): Promise<void> {
  await changeAll(
    world,
    node,
    commands.map((one) => [tenant, one]),
  );
}

async function changeAll(
  world: World,
  node: SimNode,
  commands: readonly (readonly [tenant: string, of: Command])[],
): Promise<void> {
  const outcomes: Outcome[] = [];
  for (const [tenant, one] of commands)
    node.host?.requests.propose(tenant, one, 5_000, (error, outcome) => {
      expect(error).toBeNull();
      outcomes.push(outcome as Outcome);
    });
  await until(world, () => outcomes.length === commands.length);
  expect(outcomes.every(({ ok }) => ok)).toBe(true);
}

function leaderOf(world: World, tenant: string): SimNode {
  const leads = (node: SimNode): boolean =>
    [...(node.host?.replicas() ?? [])].some(
      (replica) => replica.tenant === tenant && replica.raft.isLeader,
    );
  return world.nodes.find(leads) as SimNode;
}

/** What it costs until half a second after it is done. */
async function count(world: World, act: () => Promise<void>): Promise<Cost> {
  const appends = (): number =>
    world.nodes.reduce((sum, { host }) => sum + (host?.cluster().journal.appends ?? 0), 0);
  const before = appends();
  const cost: Cost = { journalWrites: 0, frames: 0, bytes: 0, messages: new Map() };
  world.onSent = (_lane, bytes) => {
    let holdsRaft = false;
    for (const { kind, item } of frameItems(bytes)) {
      if (kind !== ItemKind.raft) continue;
      holdsRaft = true;
      const { type } = parseRaftItem(item).message;
      const name = Object.entries(MessageType).find(([, value]) => value === type)?.[0] ?? "";
      cost.messages.set(name, (cost.messages.get(name) ?? 0) + 1);
    }
    if (!holdsRaft) return;
    cost.frames += 1;
    cost.bytes += bytes.length;
  };
  await act();
  // The followers learn that it is committed, and the last heartbeat finds that they did.
  await world.run(world.now + 500);
  cost.journalWrites = appends() - before;
  return cost;
}

/** Three nodes, a tenant with a config, and what so many publishes at once cost. */
async function costOf(publishes: number): Promise<Cost> {
  const world = await threeNodes();
  const [first] = world.nodes as [SimNode];
  await change(world, first, "_system", [command(createTenant("t"))]);
  const config = { op: "config.put", namespace: "app", name: "c", format: "text" } as const;
  await change(world, first, "t", [command(config), publish("first")]);
  const leader = leaderOf(world, "t");
  // Elections and followers that catch up are over.
  await world.run(world.now + 3_000);
  const texts = Array.from({ length: publishes }, (_, i) => publish(`text ${i}`));
  return count(world, () => change(world, leader, "t", texts));
}

test("a tenant's beginning costs three journal writes per node: its row, its first vote, its first entries", async () => {
  const world = await threeNodes();
  await world.run(world.now + 3_000);
  const leader = leaderOf(world, "_system");
  const cost = await count(world, () =>
    change(world, leader, "_system", [command(createTenant("t"))]),
  );
  expect(leaderOf(world, "t")).toBeDefined();
  // Eight where a follower hears of the first entries in the turn in which it votes.
  expect(cost.journalWrites).toBeLessThanOrEqual(9);
  // Two requests for votes, of which one is enough; the row, its commit, the first entries, their commit.
  expect(cost.messages.get("preVote") ?? 0).toBe(0);
  expect(cost.messages.get("requestVote")).toBe(2);
  expect(cost.messages.get("appendEntries")).toBe(8);
  // The directory's leader is asked nothing.
  expect(cost.messages.get("readIndex") ?? 0).toBe(0);
});

test("of many tenants made in a few turns no more begin between two pulses than one pulse may", async () => {
  const world = await threeNodes();
  const [first] = world.nodes as [SimNode];
  const names = Array.from({ length: 160 }, (_, at) => `t${at}`);
  const asked: number[] = [];
  world.onSent = (_lane, bytes) => {
    for (const { kind, item } of frameItems(bytes)) {
      if (kind !== ItemKind.raft) continue;
      const { message, group } = parseRaftItem(item);
      const isFirst = message.type === MessageType.requestVote && message.to === 2;
      if (isFirst && group !== SYSTEM_GROUP) asked.push(world.now);
    }
  };
  const nodes = ["n1", "n2", "n3"];
  const creates = names.map((name) => ["_system", command(createTenant(name, nodes))] as const);
  for (let at = 0; at < creates.length; at += 20)
    await changeAll(world, first, creates.slice(at, at + 20));
  await until(world, () => asked.length >= names.length);
  // A pulse may be within such a span, and as many begin behind it as before it.
  const within = asked.map((at) => asked.filter((other) => other >= at && other < at + 20).length);
  expect(Math.max(...within)).toBeLessThanOrEqual(2 * CAMPAIGNS_PER_PULSE);
  expect(asked).toHaveLength(names.length);
});

test("the first write of a tenant that nobody leads yet goes out with its beginning: two exchanges, two journal writes per node", async () => {
  const world = await threeNodes();
  const [first] = world.nodes as [SimNode];
  const { op: _op, ...tenant } = createTenant("t");
  // Of several at once each begins when it is used.
  const tenants = [tenant, { ...tenant, tenant: "u" }];
  await change(world, first, "_system", [command({ op: "directory.createMany", tenants })]);
  await world.run(world.now + 3_000);
  const seen: unknown[] = [];
  const cost = await count(world, async () => {
    const outcomes: unknown[] = [];
    const options = { consistency: "stale", evenUnborn: true } as const;
    first.host?.requests.read("t", options, (error, view) => {
      seen.push(error, view?.revision, getKey(view as TenantView, "kt")?.kind);
      const config = { op: "config.put", namespace: "app", name: "c", format: "text" } as const;
      first.host?.requests.propose("t", command(config), 5_000, (_error, outcome) => {
        outcomes.push(outcome);
      });
    });
    await until(world, () => outcomes.length > 0);
    expect(outcomes).toMatchObject([{ ok: true, revision: 2 }]);
  });
  expect(seen).toEqual([null, 1, "admin"]);
  expect(cost.messages.get("requestVote")).toBe(2);
  expect(cost.messages.get("appendEntries")).toBe(4);
  expect(cost.journalWrites).toBeLessThanOrEqual(6);
});

test("a lone publish costs one journal write per node, two messages and two answers per follower", async () => {
  const cost = await costOf(1);
  expect(cost.journalWrites).toBe(3);
  // The entry, and that it is committed. Left unanswered, the second cost a round of heartbeats.
  expect(cost.messages.get("appendEntries")).toBe(4);
  expect(cost.messages.get("appendEntriesResponse")).toBe(4);
  expect(cost.messages.get("heartbeat") ?? 0).toBe(0);
  expect(cost.frames).toBe(8);
});

test("publishes of one turn share journal writes and messages", async () => {
  const lone = await costOf(1);
  const many = await costOf(200);
  expect(many.journalWrites).toBeLessThanOrEqual(lone.journalWrites + 1);
  expect(many.frames).toBeLessThanOrEqual(lone.frames + 4);
});

test("publishes to many tenants share journal writes and frames with those of the same turn", async () => {
  const world = await threeNodes();
  const [first] = world.nodes as [SimNode];
  const tenants = Array.from({ length: 40 }, (_, i) => `t${i}`);
  const config = { op: "config.put", namespace: "app", name: "c", format: "text" } as const;
  for (const tenant of tenants) {
    await change(world, first, "_system", [command(createTenant(tenant))]);
    await change(world, first, tenant, [command(config), publish("first")]);
  }
  await world.run(world.now + 3_000);
  const leader = leaderOf(world, "t0");
  const led = tenants.filter((tenant) => leaderOf(world, tenant) === leader);
  expect(led.length).toBeGreaterThanOrEqual(8);
  const lone = await count(world, () => change(world, leader, "t0", [publish("lone")]));
  const all = await count(world, () =>
    changeAll(
      world,
      leader,
      led.map((tenant) => [tenant, publish("at once")]),
    ),
  );
  // Each group has messages of its own, and none has a frame or a write of its own.
  expect(all.messages.get("appendEntries")).toBe(4 * led.length);
  expect(all.messages.get("appendEntriesResponse")).toBe(4 * led.length);
  expect(all.journalWrites).toBeLessThanOrEqual(lone.journalWrites + 1);
  expect(all.frames).toBeLessThanOrEqual(lone.frames + 4);
});

test("a publish travels once to each follower, with few bytes around it", async () => {
  const [lone, many] = [await costOf(1), await costOf(200)];
  const command_ = new TextEncoder().encode(JSON.stringify(publish("text 123"))).length;
  // Index, term, kind, length.
  expect((many.bytes - lone.bytes) / 199).toBeLessThanOrEqual(2 * (command_ + 21) + 8);
  // Four messages of at most 70 bytes each way, beside the entry.
  expect(lone.bytes).toBeLessThanOrEqual(2 * (command_ + 21) + 8 * 70);
});

test("a publish reads and writes few rows, however many versions there are", () => {
  const rows = new Map<string, unknown>();
  const counts = { get: 0, put: 0, delete: 0, range: 0 };
  const state: StateTransaction = {
    get: <T>(key: string) => {
      counts.get += 1;
      return rows.get(key) as T | undefined;
    },
    range: () => {
      counts.range += 1;
      return [];
    },
    put: (key, row) => {
      counts.put += 1;
      rows.set(key, row);
    },
    add: (key, row) => {
      counts.put += 1;
      rows.set(key, row);
    },
    delete: (key) => {
      counts.delete += 1;
      rows.delete(key);
    },
  };
  const done = (one: Command): void => expect(apply(state, one).outcome.ok).toBe(true);
  done(command({ op: "tenant.init", tenant: "t", quotas: {}, keys: [] }));
  done(command({ op: "config.put", namespace: "app", name: "c", format: "text" }));
  for (let i = 0; i < 1_100; i++) done(publish(`text ${i}`));
  Object.assign(counts, { get: 0, put: 0, delete: 0, range: 0 });
  done(publish("the last"));
  expect(counts.range).toBe(0);
  // meta, config, the version that is pruned, the release in force
  expect(counts.get).toBe(4);
  // meta, config, version, text, release, history, audit
  expect(counts.put).toBe(7);
  // The oldest version with its text, and the oldest release.
  expect(counts.delete).toBe(3);
});

test("an election costs two journal writes at each node that takes part: votes and the first entry, no pre-votes", async () => {
  const cluster = await ready();
  await cluster.create("t");
  await cluster.pass(3_000);
  const victim = cluster.leader("t") as SimNode;
  const led = [...(victim.host?.replicas() ?? [])].filter(({ raft }) => raft.isLeader).length;
  const survivors = cluster.world.nodes.filter((node) => node !== victim);
  const appends = (): number =>
    survivors.reduce((sum, { host }) => sum + (host?.cluster().journal.appends ?? 0), 0);
  const before = appends();
  cluster.world.crash(victim);
  await cluster.until("led again", () => {
    const leader = cluster.leader("t");
    return leader !== null && leader !== victim;
  });
  await cluster.pass(1_000);
  // Groups whose elections fall into one turn share their writes.
  expect(appends() - before).toBeLessThanOrEqual(4 * led);
  expect(appends() - before).toBeGreaterThanOrEqual(4);
});
