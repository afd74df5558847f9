import { describe, expect, test } from "vitest";
import {
  decodeHeartbeat,
  encodeHeartbeat,
  ItemKind,
  type Heartbeat,
} from "../../src/host/codec.ts";
import { Leases } from "../../src/host/leases.ts";
import { Liveness, SUPPORT_MS } from "../../src/host/liveness.ts";
import type { Clock } from "../../src/host/ports.ts";
import type { SimNode } from "../sim/world.ts";
import { Cluster } from "./cluster.ts";
import { beginning, ScriptedNode } from "./scripted_node.ts";

/** A node's part in it, on clocks that the test turns. */
class Node {
  now = 5_000;
  wall = 1_700_000_000_000;
  readonly liveness: Liveness;
  readonly leases: Leases;
  readonly boot: number;

  constructor(name: string, boot = 2, clockDriftMax: number | null = 0.1) {
    this.boot = boot;
    const clock: Clock = {
      monotonicMs: () => this.now,
      wallMs: () => this.wall,
      defer: () => {},
      every: () => () => {},
    };
    this.liveness = new Liveness(name, this.now, { up() {}, down() {} }, boot);
    this.leases = new Leases({
      clockDriftMax,
      boot,
      isNew: () => false,
      clock,
      liveness: this.liveness,
    });
  }

  hear(from: string, boot: number, beat: Omit<Heartbeat, "news"> | null): void {
    this.liveness.heard(from, boot, this.now);
    if (beat !== null) this.leases.heard(from, boot, beat);
  }

  pass(ms: number): void {
    this.now += ms;
    this.wall += ms;
  }

  /** The epoch in which the other one certainly supports it. */
  get held(): number {
    return this.leases.supportOf(() => "other").held(2);
  }
}

const LEASE_MS = (SUPPORT_MS * 0.9) / 1.1;

/** One heartbeat there, and after a while one back. */
function exchanged(leader: Node, follower: Node, backAfterMs = 0): void {
  const item = leader.leases.heartbeatTo("other");
  follower.hear("other", leader.boot, item);
  leader.pass(backAfterMs);
  leader.hear("other", follower.boot, follower.leases.heartbeatTo("other"));
}

describe("support that a node holds", () => {
  test("counts from when its heartbeat left, less what clocks may differ", () => {
    const [leader, follower] = [new Node("a"), new Node("b")];
    expect(leader.held).toBe(0);
    exchanged(leader, follower, 300);
    expect(leader.held).toBe(follower.liveness.epochOf("other"));
    leader.pass(LEASE_MS - 301);
    expect(leader.held).not.toBe(0);
    leader.pass(2);
    expect(leader.held).toBe(0);
  });

  test("ends for a machine that was suspended, whose monotonic clock stood still, or whose wall clock was set", () => {
    const [leader, follower] = [new Node("a"), new Node("b")];
    exchanged(leader, follower);
    leader.wall += SUPPORT_MS;
    expect(leader.held).toBe(0);
    leader.pass(1);
    exchanged(leader, follower);
    expect(leader.held).not.toBe(0);
    leader.wall -= 3_600_000;
    expect(leader.held).toBe(0);
    leader.pass(1);
    exchanged(leader, follower);
    expect(leader.held).not.toBe(0);
  });

  test("is of one epoch: an answer of an earlier one, of another life, or to one, counts for nothing", () => {
    const [leader, follower] = [new Node("a"), new Node("b")];
    exchanged(leader, follower);
    const [old, epoch] = [follower.leases.heartbeatTo("other"), leader.held];
    follower.pass(3 * SUPPORT_MS);
    leader.pass(3 * SUPPORT_MS);
    for (let beat = 0; beat < 20; beat++) follower.liveness.check(follower.now + beat * 150);
    expect(follower.liveness.lasts(epoch)).toBe(false);
    exchanged(leader, follower);
    expect(leader.held).toBeGreaterThan(epoch);
    const later = leader.held;
    leader.hear("other", follower.boot, old);
    expect(leader.held).toBe(later);

    const restarted = new Node("b", follower.boot + 1);
    restarted.hear("other", leader.boot, leader.leases.heartbeatTo("other"));
    leader.hear("other", restarted.boot, restarted.leases.heartbeatTo("other"));
    expect(leader.held).toBeGreaterThan(later);
    const now = leader.held;
    leader.hear("other", follower.boot, follower.leases.heartbeatTo("other"));
    expect(leader.held).toBe(now);

    const anew = new Node("a", leader.boot + 1);
    anew.hear("other", restarted.boot, restarted.leases.heartbeatTo("other"));
    expect(anew.held).toBe(0);
  });

  test("is none from nodes that say nothing of it, nor where leases are off", () => {
    const leader = new Node("a");
    leader.hear("other", 1, decodeHeartbeat(new Uint8Array(0)));
    expect(leader.held).toBe(0);
    const off = new Node("a", 2, null);
    exchanged(off, new Node("b"));
    expect(off.held).toBe(0);
  });

  test("a heartbeat may grow at its end", () => {
    const news = { version: "1.2.3", levels: { min: 2, max: 9 }, level: 4, leaders: null };
    const beat = { sent: { monotonicUs: 5, wallMs: 6 }, epoch: 7, echo: null, news };
    const item = encodeHeartbeat(beat);
    const longer = new Uint8Array(item.length + 9);
    longer.set(item);
    expect(decodeHeartbeat(longer)).toEqual(beat);
  });
});

describe("what binds a replica that sleeps", () => {
  test("is given back to it alone, once, and forgotten when support ends", () => {
    const node = new Node("a");
    node.hear("other", 1, null);
    const bond = { lead: 2, term: 3, epoch: node.liveness.epochOf("other") };
    node.leases.asleep(8, 1, bond);
    expect(node.leases.awake(8, 1)).toEqual(bond);
    expect(node.leases.awake(8, 1)).toBe(null);
    node.leases.asleep(8, 1, bond);
    expect(node.leases.awake(8, 4)).toBe(null);
    node.leases.asleep(8, 1, bond);
    node.hear("other", 2, null);
    node.leases.lapsed();
    expect(node.leases.awake(8, 1)).toBe(null);
  });
});

describe("a node that starts again", () => {
  const vote = { from: 2, term: 7, index: 9, logTerm: 6 };

  test("neither votes nor campaigns for as long as it supported anybody before", async () => {
    const node = new ScriptedNode();
    await node.start();
    node.follow(5, [beginning]);
    await node.restart();
    expect(node.step("requestVote", vote)).toEqual([]);
    node.now += SUPPORT_MS - 1;
    expect(node.step("requestVote", vote)).toEqual([]);
    node.now += 1;
    expect(node.step("requestVote", vote)).toMatchObject([{ reject: false }]);
  });

  test("says in its heartbeats whom it heard", async () => {
    const node = new ScriptedNode();
    await node.start();
    const sent = { monotonicUs: 123_456, wallMs: 1_700_000_000_000 };
    const item = encodeHeartbeat({ sent, epoch: 0, echo: null, news: null });
    node.frame("n2", "control", ItemKind.heartbeat, item, 4);
    node.takeItems(ItemKind.heartbeat);
    node.pass(150, []);
    const beats = node
      .takeItems(ItemKind.heartbeat)
      .map(({ to, item: bytes }) => [to, decodeHeartbeat(bytes)] as const);
    expect(beats.find(([to]) => to === "n2")?.[1]).toMatchObject({ echo: { boot: 4, ...sent } });
    expect(beats.find(([to]) => to === "n2")?.[1]?.epoch).toBeGreaterThan(0);
    expect(beats.find(([to]) => to === "n3")?.[1]).toMatchObject({ epoch: 0, echo: null });
  });
});

describe("a linearizable read", () => {
  test("on a leader with a lease sends nothing and is answered in the call", async () => {
    const cluster = new Cluster();
    await cluster.ready();
    await cluster.create("acme");
    await cluster.pass(1_000);
    const leader = cluster.world.nodes.find((node) =>
      [...(node.host?.replicas() ?? [])].some(
        ({ tenant, raft }) => tenant === "acme" && raft.isLeader,
      ),
    );
    let sent = 0;
    cluster.world.onSent = () => {
      sent += 1;
    };
    let answered = 0;
    for (let read = 0; read < 100; read++)
      leader?.host?.requests.read("acme", { consistency: "linearizable" }, (error) => {
        if (error === null) answered += 1;
      });
    expect([answered, sent]).toEqual([100, 0]);
  });

  test("needs no waiting only where the tenant is led under a lease", async () => {
    const now = (node: SimNode) => node.host?.viewNow("acme", { consistency: "linearizable" });
    const cluster = new Cluster();
    await cluster.ready();
    await cluster.create("acme");
    await cluster.pass(1_000);
    const leader = cluster.leader("acme") as SimNode;
    expect(cluster.world.nodes.filter((node) => now(node) != null)).toEqual([leader]);
    expect(now(leader)).toBe(leader.host?.viewNow("acme"));
    expect(leader.host?.viewNow("none", { consistency: "linearizable" })).toBe(null);
    // Nobody vouches for it any more.
    for (const node of cluster.world.nodes) if (node !== leader) cluster.world.crash(node);
    await cluster.pass(SUPPORT_MS);
    expect(now(leader)).toBe(null);
    expect(leader.host?.viewNow("acme")).not.toBe(null);
  });
});
