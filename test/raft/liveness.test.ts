/** Liveness from outside: no heartbeats in a group that is at rest, and nobody left behind because of it. */
import { describe, expect, test } from "vitest";
import { MessageType, type Message, type RaftConfig } from "../../src/raft/types.ts";
import { bytes, change, cluster, exchange, message, Peer, typesOf } from "./helpers.ts";

const everybody: Partial<RaftConfig> = { preVote: true, checkQuorum: true, supports: () => true };

function resting(config: Partial<RaftConfig> = {}): [Peer, Peer, Peer] {
  const peers = cluster(3, { config: { ...everybody, ...config } });
  const [leader] = peers;
  leader?.raft.campaign();
  exchange(peers);
  for (let i = 0; i < 3; i++) {
    leader?.raft.tick();
    exchange(peers);
  }
  return peers as [Peer, Peer, Peer];
}

describe("a peer that was frozen", () => {
  test("and answers all it was asked meanwhile at once is sent its entries once a turn", () => {
    const peers = resting();
    const [leader] = peers;
    leader.raft.propose(bytes("a"));
    exchange(peers, (m) => m.to === 3);
    const { term } = leader.raft;
    const answer = (): Message => message("heartbeatResponse", { from: 3, term });
    leader.raft.reportUnreachable(3);
    const appends = (): number => {
      for (let i = 0; i < 50; i++) leader.raft.step(answer());
      return typesOf(leader.take()).filter((type) => type === "3:appendEntries").length;
    };
    expect(appends()).toBe(1);
    expect(appends()).toBe(1);
  });
});

describe("a group at rest", () => {
  test("is idle, and ticks change nothing", () => {
    const peers = resting();
    for (const peer of peers) {
      expect(peer.raft.idle).toBe(true);
      expect(peer.tick(100)).toEqual([]);
      expect(peer.raft.idle).toBe(true);
    }
    expect(peers[0].raft.isLeader).toBe(true);
  });

  test("without others is idle by itself", () => {
    const peer = new Peer({ voters: [1] });
    expect(peer.raft.idle).toBe(false);
    peer.elect();
    peer.settle();
    expect(peer.raft.idle).toBe(true);
    peer.raft.propose(bytes("a"));
    expect(peer.raft.idle).toBe(false);
    peer.settle();
    expect(peer.raft.idle).toBe(true);
  });

  test("is never idle on its own timers", () => {
    const peers = resting({ supports: null });
    expect(peers.map((peer) => peer.raft.idle)).toEqual([false, false, false]);
  });

  test("tells a commit without heartbeats, again if that is lost", () => {
    const peers = resting();
    const [leader, , third] = peers;
    leader.raft.propose(bytes("a"));
    // The entry arrives, that it is committed does not.
    exchange(peers, (m) => m.to === 3 && m.type === MessageType.appendEntries && m.commit > 1);
    expect(third.raft.commitIndex).toBe(1);
    expect(leader.raft.idle).toBe(false);
    // What was sent since the last beat may be on its way still.
    leader.raft.tick();
    leader.raft.tick();
    exchange(peers);
    expect(third.raft.commitIndex).toBe(2);
    expect(leader.raft.idle).toBe(true);
  });

  test("confirms a read by a round of heartbeats", () => {
    const peers = resting();
    peers[0].raft.readIndex(1);
    expect(peers[0].raft.idle).toBe(false);
    exchange(peers);
    expect(peers[0].reads).toEqual([{ index: 1, context: 1 }]);
    expect(peers[0].raft.idle).toBe(true);
  });

  test("does not elect against a leader that is vouched for, however long it is silent", () => {
    const [, second] = resting();
    second.tick(100);
    // It is only asked whether it leads, and says nothing, as it does.
    expect(second.step("preVote", { from: 3, term: 2, logTerm: 1, index: 9 })).toMatchObject([
      { type: MessageType.heartbeatResponse, to: 1 },
    ]);
    expect(second.raft.status()).toMatchObject({ term: 1, lead: 1 });
  });

  test("elects as soon as nobody vouches for the leader", () => {
    let alive = true;
    const [, second, third] = resting({ supports: (id) => id !== 1 || alive });
    alive = false;
    expect(second.raft.idle).toBe(false);
    // The lease binds no more, although the leader was just heard.
    expect(third.step("preVote", { from: 2, term: 2, logTerm: 1, index: 1 })).toMatchObject([
      { reject: false },
    ]);
    second.raft.tick();
    for (let i = 0; i < 10; i++) second.raft.tick();
    exchange([second, third]);
    expect(second.raft.isLeader).toBe(true);
  });
});

describe("a leader with liveness from outside", () => {
  test("stays while a quorum is vouched for, without a word from it", () => {
    const [leader] = resting();
    leader.tick(100);
    expect(leader.raft.isLeader).toBe(true);
  });

  test("asks for signs of life, then steps down and says so, when no quorum is vouched for", () => {
    let alive = true;
    const [leader] = resting({ supports: () => alive });
    alive = false;
    expect(leader.raft.idle).toBe(false);
    expect(typesOf(leader.tick(1))).toEqual(["2:heartbeat", "3:heartbeat"]);
    const last = leader.tick(20);
    expect(typesOf(last)).toContain("2:forgetLeader");
    expect(leader.raft.isLeader).toBe(false);
  });

  test("introduces itself to one that restarted and looks for a leader", () => {
    const [leader] = resting();
    const said = leader.step("preVote", { from: 2, term: 2, logTerm: 1, index: 1 });
    expect(typesOf(said)).toEqual(["2:heartbeat"]);
    expect(leader.raft.idle).toBe(true);
  });

  test("that one who is no member would depose leads on while a quorum answers", () => {
    const peers = resting();
    const [leader] = peers;
    // However long ago the last check of the quorum was.
    for (let ticks = 100; ticks < 120; ticks++) {
      expect(leader.tick(ticks)).toEqual([]);
      expect(leader.step("preVote", { from: 4, term: 3, logTerm: 2, index: 9 })).toEqual([]);
      expect(leader.raft.idle).toBe(false);
      for (let i = 0; i < 20; i++) {
        leader.raft.tick();
        exchange(peers, (m) => m.from === 3 || m.to === 3);
      }
      expect(leader.raft.isLeader).toBe(true);
      expect(leader.raft.idle).toBe(true);
    }
  });

  test("whose group went on without it votes for one that it does not know, though all nodes are alive", () => {
    const [leader] = resting();
    const asked = { from: 4, term: 3, logTerm: 2, index: 9 } as const;
    expect(leader.step("preVote", asked)).toEqual([]);
    expect(typesOf(leader.tick(1))).toEqual(["2:heartbeat", "3:heartbeat"]);
    leader.tick(20);
    expect(leader.raft.isLeader).toBe(false);
    expect(leader.step("preVote", asked)).toMatchObject([{ to: 4, term: 3, reject: false }]);
  });

  test("is asked for by a learner that forgot it, and lacks nothing: it starts no election that would tell", () => {
    const peers = [1, 2, 3].map(
      (id) => new Peer({ voters: [1, 2], learners: [3], id, config: everybody }),
    );
    const [leader, , learner] = peers as [Peer, Peer, Peer];
    leader.raft.campaign();
    exchange(peers);
    for (let i = 0; i < 3; i++) {
      leader.raft.tick();
      exchange(peers);
    }
    expect(learner.raft.lead).toBe(1);
    learner.raft.forgetLeader();
    expect(learner.raft.lead).toBe(0);
    expect(leader.raft.idle).toBe(true);
    expect(learner.raft.idle).toBe(false);
    for (let i = 0; i < 25; i++) {
      for (const peer of peers) peer.raft.tick();
      exchange(peers);
    }
    expect(learner.raft.lead).toBe(1);
    expect(learner.raft.idle).toBe(true);
    expect(leader.raft.isLeader).toBe(true);
  });

  test("that restarted is forgotten by those who hold more of the log than it", () => {
    const [, second] = resting();
    const [answer] = second.step("preVote", { from: 1, term: 2, logTerm: 0, index: 0 });
    expect(answer).toMatchObject({ reject: true });
    expect(second.raft.lead).toBe(0);
    expect(second.raft.idle).toBe(false);
  });

  test("is not forgotten for a late request from before it led", () => {
    const [, second] = resting();
    second.step("preVote", { from: 1, term: 1 });
    expect(second.raft.lead).toBe(1);
  });

  test("that is removed leads until those who stay know it, then one of them leads", () => {
    const peers = resting();
    const [leader, second, third] = peers;
    expect(leader.raft.proposeConfChange(change("auto", ["removeNode", 1])).ok).toBe(true);
    const telling = (m: Message): boolean =>
      m.type === MessageType.appendEntries && m.from === 1 && m.commit >= 2;
    exchange(peers, telling);
    expect(leader.raft.isLeader).toBe(true);
    expect(leader.raft.propose(bytes("x"))).toEqual({ ok: false, reason: "not-leader" });
    leader.raft.tick();
    exchange(peers);
    expect(leader.raft.isLeader).toBe(false);
    expect([second.raft.isLeader, third.raft.isLeader]).toContain(true);
    expect(second.raft.confState.voters).toEqual([2, 3]);
  });

  test("and lost its lead with the longer log lets the last voter lead, who does not know of the removal", () => {
    let alive = true;
    const peers = cluster(2, { config: { ...everybody, supports: () => alive } });
    const [leader, second] = peers as [Peer, Peer];
    leader.raft.campaign();
    exchange(peers);
    expect(leader.raft.proposeConfChange(change("auto", ["removeNode", 1])).ok).toBe(true);
    leader.settle();
    const [append] = leader.sent.splice(0);
    leader.raft.propose(bytes("x"));
    leader.settle();
    // Only the change arrives, and of its answer the leader alone hears.
    second.raft.step(append as Message);
    second.settle();
    for (const m of second.sent.splice(0)) leader.raft.step(m);
    leader.settle();
    expect(leader.raft.confState.voters).toEqual([2]);
    expect(second.raft.confState.voters).toEqual([1, 2]);
    leader.sent.length = 0;
    alive = false;
    leader.tick(40);
    expect(leader.raft.isLeader).toBe(false);
    for (let i = 0; i < 100 && !second.raft.isLeader; i++) {
      second.raft.tick();
      exchange(peers, (m) => m.type === MessageType.appendEntries);
    }
    expect(second.raft.isLeader).toBe(true);
    expect(second.raft.confState.voters).toEqual([2]);
    expect(second.raft.commitIndex).toBeGreaterThan(2);
  });

  test("that was deposed and removed tells who takes it for the leader still, when asked", () => {
    const peers = resting();
    const [leader, second, third] = peers;
    leader.raft.transferLeadership(2);
    // The third hears neither of the new term, nor of the removal.
    exchange(peers, (m) => m.to === 3);
    expect(second.raft.isLeader).toBe(true);
    expect(second.raft.proposeConfChange(change("auto", ["removeNode", 1])).ok).toBe(true);
    exchange(peers, (m) => m.to === 3);
    expect(leader.raft.confState.voters).toEqual([2, 3]);
    expect(third.raft.status()).toMatchObject({ lead: 1, term: 1 });
    const asks = { from: 2, term: 3, index: 9, logTerm: 2 };
    const [doubt] = third.step("preVote", asks);
    const [answer] = leader.step("heartbeatResponse", { ...doubt, from: 3 });
    expect(answer).toMatchObject({ type: MessageType.forgetLeader, to: 3 });
    third.step("forgetLeader", { ...answer, from: 1 });
    expect(third.raft.lead).toBe(0);
    expect(third.step("preVote", asks)).toMatchObject([{ reject: false }]);
  });
});
