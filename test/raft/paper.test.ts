/** What the extended Raft paper and the thesis say, one sentence at a time. */
import { describe, expect, test } from "vitest";
import { MessageType, type Message } from "../../src/raft/types.ts";
import { bytes, cluster, entry, exchange, message, Peer, typesOf } from "./helpers.ts";

describe("terms (§5.1)", () => {
  for (const role of ["follower", "candidate", "leader"] as const) {
    test(`a ${role} that sees a later term becomes a follower of it`, () => {
      const peer = new Peer();
      if (role === "candidate") peer.raft.campaign();
      if (role === "leader") peer.elect();
      peer.settle();
      expect(peer.raft.role).toBe(role);
      peer.step("appendEntries", { term: 7 });
      expect(peer.raft.status()).toMatchObject({ role: "follower", term: 7, lead: 2 });
    });
  }

  test("an append of an earlier term changes nothing", () => {
    const peer = new Peer({ hard: { term: 3 } });
    peer.step("appendEntries", { term: 2, entries: [entry(1, 2)] });
    expect(peer.raft.status()).toMatchObject({ term: 3, lead: 0, lastIndex: 0 });
  });
});

describe("elections (§5.2, §5.4.1)", () => {
  test("a follower campaigns when it hears nothing for an election timeout", () => {
    const peer = new Peer();
    expect(peer.tick(9)).toEqual([]);
    expect(typesOf(peer.tick(1))).toEqual(["2:requestVote", "3:requestVote"]);
    expect(peer.raft.status()).toMatchObject({ role: "candidate", term: 1 });
  });

  test("the timeout is drawn between one and two election timeouts", () => {
    const peer = new Peer({ config: { random: (bound) => bound - 1 } });
    expect(peer.tick(18)).toEqual([]);
    expect(peer.tick(1)).toHaveLength(2);
  });

  test("a candidate that gets nowhere asks again in a later term", () => {
    const peer = new Peer();
    peer.tick(10);
    expect(peer.tick(10).map((m) => m.term)).toEqual([2, 2]);
  });

  for (const [voters, grants, refusals, role] of [
    [1, 0, 0, "leader"],
    [3, 1, 0, "leader"],
    [3, 0, 1, "candidate"],
    [3, 0, 2, "follower"],
    [5, 2, 2, "leader"],
    [5, 1, 3, "follower"],
    [5, 1, 2, "candidate"],
  ] as const) {
    test(`with ${grants} votes and ${refusals} refusals of ${voters} one is ${role}`, () => {
      const ids = Array.from({ length: voters }, (_, i) => i + 1);
      const peer = new Peer({ voters: ids });
      peer.raft.campaign();
      peer.settle();
      for (let i = 0; i < grants + refusals; i++) {
        peer.step("requestVoteResponse", { from: i + 2, reject: i >= grants });
      }
      expect(peer.raft.role).toBe(role);
    });
  }

  test("a vote counts once, and only a member's", () => {
    const peer = new Peer({ voters: [1, 2, 3, 4, 5] });
    peer.raft.campaign();
    peer.settle();
    for (const from of [2, 2, 2, 77]) peer.step("requestVoteResponse", { from });
    expect(peer.raft.role).toBe("candidate");
  });

  test("the own vote counts when it is durable", () => {
    const peer = new Peer();
    peer.raft.campaign();
    peer.turn();
    peer.raft.step(message("requestVoteResponse", { from: 2 }));
    peer.turn();
    expect(peer.raft.role).toBe("candidate");
    peer.written();
    expect(peer.raft.role).toBe("leader");
  });

  test("enough votes of others make no leader before its own is durable: after a crash it would lead the term once more", () => {
    const peer = new Peer();
    peer.raft.campaign();
    peer.turn();
    for (const from of [2, 3]) peer.raft.step(message("requestVoteResponse", { from }));
    peer.turn();
    expect([peer.raft.role, peer.raft.lastIndex]).toEqual(["candidate", 0]);
    peer.written();
    expect([peer.raft.role, peer.raft.lastIndex]).toEqual(["leader", 1]);
    expect(peer.log.hard).toMatchObject({ term: 1, vote: 1 });
  });

  test("a vote is given once a term, and leaves when it is durable", () => {
    const peer = new Peer();
    peer.raft.step(message("requestVote", { from: 2, term: 4 }));
    peer.turn();
    expect(peer.sent).toEqual([]);
    peer.written();
    expect(peer.log.hard).toMatchObject({ term: 4, vote: 2 });
    expect(peer.take().map((m) => m.reject)).toEqual([false]);
    expect(peer.step("requestVote", { from: 3, term: 4 }).map((m) => m.reject)).toEqual([true]);
    expect(peer.step("requestVote", { from: 2, term: 4 }).map((m) => m.reject)).toEqual([false]);
  });

  test("a vote given before a restart binds after it", () => {
    const peer = new Peer({ hard: { term: 4, vote: 3 } });
    expect(peer.step("requestVote", { from: 2, term: 4 })[0]?.reject).toBe(true);
  });

  for (const [terms, logTerm, index, reject] of [
    [[1], 1, 1, false],
    [[1], 1, 2, false],
    [[1, 1], 1, 1, true],
    [[1], 2, 1, false],
    [[2], 1, 9, true],
    [[1, 1], 2, 1, false],
  ] as const) {
    test(`log ${terms.join()} ${reject ? "refuses" : "grants"} a candidate at ${logTerm}/${index}`, () => {
      const peer = new Peer({ terms, hard: { term: 2 } });
      const [answer] = peer.step("requestVote", { term: 3, logTerm, index });
      expect(answer?.reject).toBe(reject);
    });
  }

  test("a candidate follows a leader of its own term", () => {
    const peer = new Peer();
    peer.raft.campaign();
    peer.step("appendEntries", { from: 3, term: 1 });
    expect(peer.raft.status()).toMatchObject({ role: "follower", lead: 3 });
  });

  test("two leaders of one term are a broken invariant", () => {
    const peer = new Peer();
    peer.elect();
    expect(() => peer.step("appendEntries", { from: 3, term: 1 })).toThrow("leads term 1");
  });

  test("a leader sends heartbeats, and a new one an entry of its own", () => {
    const peer = new Peer();
    const [first] = peer.elect();
    expect(first).toMatchObject({ type: MessageType.appendEntries, index: 0, logTerm: 0 });
    expect(first?.entries).toMatchObject([{ index: 1, term: 1 }]);
    expect(typesOf(peer.tick(1))).toEqual(["2:heartbeat", "3:heartbeat"]);
  });
});

describe("replication (§5.3)", () => {
  test("an append names the entry before; without it, it is refused", () => {
    const peer = new Peer({ terms: [1, 1] });
    const [missing] = peer.step("appendEntries", { term: 1, index: 3, logTerm: 1 });
    expect(missing).toMatchObject({ reject: true, index: 3, rejectHint: 2, logTerm: 1 });
    const [other] = peer.step("appendEntries", { term: 3, index: 2, logTerm: 3 });
    expect(other).toMatchObject({ reject: true, rejectHint: 2, logTerm: 1 });
  });

  for (const [terms, index, logTerm, sent, result] of [
    [[1, 2], 2, 2, [3], [1, 2, 3]],
    [[1, 2], 1, 1, [3, 4], [1, 3, 4]],
    [[1, 2], 0, 0, [1], [1, 2]],
    [[1, 2], 0, 0, [3], [3]],
    [[1, 2, 2], 1, 1, [2], [1, 2, 2]],
    [[1, 2, 2], 1, 1, [], [1, 2, 2]],
  ] as const) {
    test(`terms ${terms.join()} with ${sent.join() || "nothing"} after ${index} are ${result.join()}`, () => {
      const peer = new Peer({ terms });
      const entries = sent.map((term, i) => entry(index + 1 + i, term));
      const [answer] = peer.step("appendEntries", { term: 5, index, logTerm, entries });
      expect(answer).toMatchObject({ reject: false, index: index + sent.length });
      expect(peer.log.kept.map((each) => each.term)).toEqual([...result]);
    });
  }

  for (const [index, count, leaderCommit, commit] of [
    [1, 0, 9, 1],
    [1, 1, 9, 2],
    [2, 0, 1, 1],
    [3, 0, 2, 2],
  ] as const) {
    test(`with ${count} entries after ${index} and the leader at ${leaderCommit} one commits ${commit}`, () => {
      const peer = new Peer({ terms: [1, 1, 1] });
      const entries = Array.from({ length: count }, (_, i) => entry(index + 1 + i, 1));
      peer.step("appendEntries", { index, logTerm: 1, entries, commit: leaderCommit });
      expect(peer.raft.commitIndex).toBe(commit);
    });
  }

  test("what is committed is not compared again: the answer says where to go on", () => {
    const peer = new Peer({ terms: [1, 1], hard: { commit: 2 } });
    const [answer] = peer.step("appendEntries", { term: 2, entries: [entry(1, 2)] });
    expect(answer).toMatchObject({ reject: false, index: 2 });
    expect(peer.log.kept.map((each) => each.term)).toEqual([1, 1]);
  });

  test("an acceptance leaves when the entries are durable", () => {
    const peer = new Peer();
    peer.raft.step(message("appendEntries", { entries: [entry(1, 1)] }));
    peer.turn();
    expect(peer.sent).toEqual([]);
    peer.written();
    expect(peer.take()).toMatchObject([{ type: MessageType.appendEntriesResponse, index: 1 }]);
  });

  for (const [name, terms] of [
    ["a", [1, 1, 1, 4, 4, 5, 5, 6, 6]],
    ["b", [1, 1, 1, 4]],
    ["c", [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]],
    ["d", [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]],
    ["e", [1, 1, 1, 4, 4, 4, 4]],
    ["f", [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]],
  ] as const) {
    test(`follower ${name} of figure 7 is brought in line, by one probe a term at most`, () => {
      const leader = new Peer({ id: 1, terms: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6], hard: { term: 7 } });
      const follower = new Peer({ id: 2, terms, hard: { term: 7 } });
      leader.raft.campaign();
      leader.settle();
      leader.raft.step(message("requestVoteResponse", { from: 3, term: 8 }));
      let rejected = 0;
      exchange([leader, follower], (m) => {
        if (m.type === MessageType.appendEntriesResponse && m.reject) rejected += 1;
        return false;
      });
      const logOf = (peer: Peer): number[] => peer.log.kept.map((each) => each.term);
      expect(logOf(follower)).toEqual(logOf(leader));
      expect(rejected).toBeLessThanOrEqual(new Set(terms).size);
    });
  }
});

describe("commitment (§5.4.2)", () => {
  test("an entry of an earlier term is not committed by counting (figure 8)", () => {
    const peer = new Peer({ terms: [1, 2], hard: { term: 3 } });
    peer.elect();
    expect(peer.raft.term).toBe(4);
    peer.step("appendEntriesResponse", { term: 4, index: 2 });
    peer.step("appendEntriesResponse", { from: 3, term: 4, index: 2 });
    expect(peer.raft.commitIndex).toBe(0);
    peer.step("appendEntriesResponse", { term: 4, index: 3 });
    expect(peer.raft.commitIndex).toBe(3);
  });

  test("the leader counts itself when its entry is durable (thesis §10.2.1)", () => {
    const peer = new Peer();
    peer.elect();
    peer.step("appendEntriesResponse", { index: 1 });
    peer.raft.propose(bytes("a"));
    peer.turn();
    peer.raft.step(message("appendEntriesResponse", { index: 2 }));
    expect(peer.raft.commitIndex).toBe(1);
    peer.written();
    expect(peer.raft.commitIndex).toBe(2);
  });

  test("followers may commit what the leader has not written yet", () => {
    const peer = new Peer();
    peer.elect();
    peer.raft.propose(bytes("a"));
    peer.turn();
    peer.raft.step(message("appendEntriesResponse", { from: 2, index: 2 }));
    peer.raft.step(message("appendEntriesResponse", { from: 3, index: 2 }));
    expect(peer.raft.commitIndex).toBe(2);
    peer.turn();
    // Committed, and not durable here: nothing to apply yet.
    expect(peer.applied.map((each) => each.index)).toEqual([1]);
    peer.written();
    peer.turn();
    expect(peer.applied.map((each) => each.index)).toEqual([1, 2]);
  });

  test("a single voter commits when its own write is durable", () => {
    const peer = new Peer({ voters: [1] });
    peer.elect();
    peer.raft.propose(bytes("a"));
    peer.turn();
    expect(peer.raft.commitIndex).toBe(1);
    peer.settle();
    expect(peer.applied).toHaveLength(2);
  });
});

describe("safety beside the log (thesis §4.2, §6.4, §9.6)", () => {
  test("a pre-vote changes neither term nor vote of who is asked", () => {
    const peer = new Peer({ hard: { term: 2, vote: 3 } });
    const [answer] = peer.step("preVote", { term: 3 });
    expect(answer).toMatchObject({ type: MessageType.preVoteResponse, term: 3, reject: false });
    expect(peer.raft.status()).toMatchObject({ term: 2 });
    expect(peer.log.hard).toMatchObject({ term: 2, vote: 3 });
  });

  test("a pre-vote of an earlier term is answered, not dropped, and the answer taken for what it says", () => {
    const ahead = new Peer({ hard: { term: 5 } });
    const [answer] = ahead.step("preVote", { term: 3 });
    expect(answer).toMatchObject({ term: 5, reject: true });
    const behind = new Peer({ id: 2, hard: { term: 2 }, config: { preVote: true } });
    behind.raft.campaign();
    behind.settle();
    behind.step("preVoteResponse", { from: 1, term: 5, reject: true });
    expect(behind.raft.status()).toMatchObject({ role: "follower", term: 5 });
  });

  test("a late grant of a pre-vote starts nothing", () => {
    const peer = new Peer({ config: { preVote: true } });
    peer.raft.campaign();
    peer.settle();
    peer.step("preVoteResponse", { from: 2, term: 1 });
    peer.step("requestVoteResponse", { from: 2, term: 1 });
    expect(peer.raft.status()).toMatchObject({ role: "leader", term: 1 });
    peer.step("preVoteResponse", { from: 3, term: 1 });
    expect(peer.raft.status()).toMatchObject({ role: "leader", term: 1 });
  });

  test("with a leader in sight nobody helps to depose it, unless it asked for that", () => {
    const peer = new Peer({ config: { checkQuorum: true } });
    peer.step("heartbeat", { from: 2, term: 1 });
    expect(peer.step("requestVote", { from: 3, term: 2 })).toEqual([]);
    expect(peer.step("requestVote", { from: 3, term: 2, context: 1 })[0]?.reject).toBe(false);
  });

  test("the leader itself is not refused for its own lease", () => {
    const peer = new Peer({ config: { checkQuorum: true, preVote: true } });
    peer.step("heartbeat", { from: 2, term: 1 });
    expect(peer.step("preVote", { from: 2, term: 2 })[0]?.reject).toBe(false);
  });

  test("a leader without a quorum steps down within two election timeouts", () => {
    const peer = new Peer({ config: { checkQuorum: true } });
    peer.elect();
    peer.step("heartbeatResponse", {});
    peer.tick(10);
    expect(peer.raft.isLeader).toBe(true);
    peer.tick(10);
    expect(peer.raft.status()).toMatchObject({ role: "follower", term: 1, lead: 0 });
  });

  test("a read waits for the first commit of the leader's own term", () => {
    const peer = new Peer({ terms: [1], hard: { commit: 1 } });
    peer.elect();
    expect(peer.raft.readIndex(7)).toBe(true);
    expect(peer.take()).toEqual([]);
    const [beat] = peer
      .step("appendEntriesResponse", { term: 2, index: 2 })
      .filter((m) => m.type === MessageType.heartbeat);
    peer.step("heartbeatResponse", { term: 2, context: beat?.context ?? 0 });
    expect(peer.reads).toEqual([{ index: 2, context: 7 }]);
  });

  describe("a read asked before the votes", () => {
    const asked = (commit: number): Peer => {
      const peer = new Peer({ terms: [1, 1], hard: { commit }, config: { preVote: true } });
      peer.raft.campaign();
      expect(peer.raft.readIndex(7)).toBe(true);
      const [request] = peer
        .step("preVoteResponse", { term: 2 })
        .filter(({ type }) => type === MessageType.requestVote);
      const { rejectHint = 0 } = request ?? {};
      peer.step("requestVoteResponse", { term: 2, rejectHint });
      expect(peer.raft.isLeader).toBe(true);
      return peer;
    };

    test("is answered by them, when the log is committed to its end", () => {
      expect(asked(2).reads).toEqual([{ index: 2, context: 7 }]);
    });

    test("waits for the leader's first commit, when more than it knows may be committed", () => {
      const peer = asked(1);
      expect(peer.reads).toEqual([]);
      const [beat] = peer
        .step("appendEntriesResponse", { term: 2, index: 3 })
        .filter((m) => m.type === MessageType.heartbeat);
      peer.step("heartbeatResponse", { term: 2, context: beat?.context ?? 0 });
      expect(peer.reads).toEqual([{ index: 3, context: 7 }]);
    });

    test("is not answered by votes that an earlier life asked for, whose term a crash made forget", () => {
      const durable = { terms: [1, 1], hard: { commit: 2 } };
      const life = (drawn: number): Peer =>
        new Peer({ ...durable, config: { preVote: true, random: () => drawn } });
      const [second, third] = [2, 3].map((id) => new Peer({ ...durable, id })) as [Peer, Peer];
      const first = life(0);
      first.raft.campaign();
      first.raft.readIndex(1);
      const [request] = first
        .step("preVoteResponse", { term: 2 })
        .filter(({ to, type }) => to === 2 && type === MessageType.requestVote);
      second.raft.step(request as Message);
      const late = second.take();
      expect(late).toMatchObject([{ term: 2, reject: false }]);
      const next = life(1);
      next.raft.campaign();
      for (const each of next.take()) if (each.to === 2) second.raft.step(each);
      const agreed = second.take();
      // The third one leads a later term, and somebody is told that what it wrote is committed.
      for (let term = 2; term <= 3; term++) {
        third.raft.campaign();
        exchange([second, third], ({ to }) => to === 1);
      }
      expect(third.raft.propose(bytes("acknowledged")).ok).toBe(true);
      exchange([second, third], ({ to }) => to === 1);
      expect(third.raft.status()).toMatchObject({ role: "leader", term: 3, commit: 4 });
      expect(next.raft.readIndex(7)).toBe(true);
      for (const each of [...agreed, ...late]) {
        next.raft.step(each);
        next.settle();
      }
      expect(next.raft.status()).toMatchObject({ role: "leader", term: 2 });
      expect(next.reads).toEqual([]);
    });

    test("does not wait on after an election that is lost", () => {
      const peer = new Peer({ terms: [1, 1], hard: { commit: 2 }, config: { preVote: true } });
      peer.raft.campaign();
      peer.raft.readIndex(7);
      peer.step("heartbeat", { from: 2, term: 2 });
      peer.step("timeoutNow", { from: 2, term: 2 });
      peer.step("requestVoteResponse", { term: 3 });
      expect(peer.raft.isLeader).toBe(true);
      expect(peer.reads).toEqual([]);
    });
  });

  test("a read asked while votes are on their way is not tried", () => {
    const peer = new Peer({ terms: [1, 1], hard: { commit: 2 }, config: { preVote: true } });
    peer.raft.campaign();
    peer.step("preVoteResponse", { term: 2 });
    expect(peer.raft.status().role).toBe("candidate");
    expect(peer.raft.readIndex(7)).toBe(false);
    peer.step("requestVoteResponse", { term: 2 });
    expect(peer.reads).toEqual([]);
  });

  test("only heartbeats sent after a read confirm it", () => {
    const peer = new Peer();
    peer.elect();
    peer.step("appendEntriesResponse", { index: 1 });
    peer.raft.readIndex(1);
    const [first] = peer.take();
    peer.raft.readIndex(2);
    const [second] = peer.take();
    expect(second?.context).toBeGreaterThan(first?.context ?? 0);
    peer.step("heartbeatResponse", { context: first?.context ?? 0 });
    expect(peer.reads.map((read) => read.context)).toEqual([1]);
    peer.step("heartbeatResponse", { from: 3, context: second?.context ?? 0 });
    expect(peer.reads.map((read) => read.context)).toEqual([1, 2]);
  });

  test("a follower hands its reads on, and takes no answer to an earlier life's", () => {
    const [leader, follower] = cluster(3) as [Peer, Peer];
    leader.elect();
    exchange([leader, follower]);
    leader.raft.tick();
    exchange([leader, follower]);
    expect(follower.raft.readIndex(5)).toBe(true);
    exchange([leader, follower]);
    expect(follower.reads).toEqual([{ index: 1, context: 5 }]);
    follower.step("readIndexResponse", { from: 1, index: 1, context: 5 });
    expect(follower.reads).toHaveLength(1);
  });

  test("a transfer ends in the target leading, or after an election timeout", () => {
    const peers = cluster(3, { config: { preVote: true, checkQuorum: true } });
    const [first, second] = peers as [Peer, Peer];
    first.raft.campaign();
    exchange(peers);
    first.raft.transferLeadership(2);
    expect(first.raft.propose(bytes("x"))).toEqual({ ok: false, reason: "transferring" });
    exchange(peers);
    expect(second.raft.isLeader).toBe(true);
    second.raft.transferLeadership(3);
    exchange(peers, (m) => m.to === 3);
    second.tick(10);
    expect(second.raft.status().transferee).toBe(0);
  });

  test("the target of a transfer does not campaign without the entries expected of it", () => {
    const peer = new Peer({ terms: [1] });
    peer.step("heartbeat", { from: 2 });
    expect(peer.step("timeoutNow", { from: 2, context: 2 })).toEqual([]);
    expect(typesOf(peer.step("timeoutNow", { from: 2, context: 1 }))).toEqual([
      "2:requestVote",
      "3:requestVote",
    ]);
  });
});
