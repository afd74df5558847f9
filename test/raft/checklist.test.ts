/**
 * Rules of docs/rules.md that no other test of the core would miss: one criterion each, on single replicas whose peers
 * are played by the test.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Prng } from "../../src/lib/prng.ts";
import { changeMembers, simple } from "../../src/raft/confchange.ts";
import { RaftLog } from "../../src/raft/log.ts";
import { Inflights, Progress } from "../../src/raft/progress.ts";
import { emptyConfState, encodeConfChange } from "../../src/raft/raft.ts";
import { EntryKind, MessageType, type ConfState, type Message } from "../../src/raft/types.ts";
import {
  bytes,
  change,
  cluster,
  confEntry,
  entry,
  exchange,
  message,
  Peer,
  typesOf,
} from "./helpers.ts";
import { MemoryLog } from "./memory_log.ts";

/** Old half 1, 2, 3; new half 1, 4, 5. */
const joint: ConfState = {
  voters: [1, 4, 5],
  votersOutgoing: [1, 2, 3],
  learners: [],
  learnersNext: [],
  autoLeave: false,
};

/** The first replica of a group that is in this configuration by a snapshot at 5, or joins it. */
function withConf(confState: ConfState, setup: ConstructorParameters<typeof Peer>[0] = {}): Peer {
  const peer = new Peer(setup);
  peer.step("installSnapshot", { from: 2, term: 1, snapshot: { index: 5, term: 1, confState } });
  return peer;
}

function answers(peer: Peer, type: keyof typeof MessageType, from: readonly number[]): void {
  for (const each of from) peer.step(type, { from: each, term: peer.raft.term });
}

function ofType(messages: readonly Message[], type: keyof typeof MessageType): Message[] {
  return messages.filter((m) => m.type === MessageType[type]);
}

describe("elections", () => {
  test("who voted for itself in a term grants no other in it, also after it led and stepped down (§5.2)", () => {
    const peer = new Peer({ config: { checkQuorum: true } });
    const asks = { from: 3, term: 1, index: 99, logTerm: 1, context: 1 };
    peer.raft.campaign();
    expect(peer.step("requestVote", asks).at(-1)).toMatchObject({ reject: true });
    peer.step("requestVoteResponse", { from: 2 });
    expect(peer.raft.isLeader).toBe(true);
    expect(peer.step("requestVote", asks).at(-1)).toMatchObject({ reject: true });
    peer.tick(10);
    expect(peer.raft.status()).toMatchObject({ role: "follower", term: 1, lead: 0 });
    expect(peer.step("requestVote", asks)).toMatchObject([{ reject: true }]);
  });

  test("a leader told to hand over does not vote for another in its term (thesis §3.10)", () => {
    const peer = new Peer();
    peer.elect();
    peer.step("appendEntriesResponse", { from: 2, index: 1 });
    peer.raft.transferLeadership(2);
    peer.take();
    expect(peer.step("requestVote", { from: 2, term: 1, index: 1, logTerm: 1 })).toMatchObject([
      { reject: true },
    ]);
  });

  test("a grant of a pre-vote that comes after the campaign began is no vote (thesis §9.6)", () => {
    const peer = new Peer({ voters: [1, 2, 3, 4, 5], config: { preVote: true } });
    peer.raft.campaign();
    peer.settle();
    for (const from of [2, 3]) peer.step("preVoteResponse", { from, term: 1 });
    expect(peer.raft.status()).toMatchObject({ role: "candidate", term: 1 });
    for (const from of [4, 5]) peer.step("preVoteResponse", { from, term: 1 });
    expect(peer.raft.status()).toMatchObject({ role: "candidate", term: 1 });
    for (const from of [4, 5]) peer.step("requestVoteResponse", { from, term: 1 });
    expect(peer.raft.isLeader).toBe(true);
  });

  for (const type of ["appendEntries", "heartbeat"] as const) {
    test(`who is ahead of a leader answers its ${type} with its own term, and that deposes it`, () => {
      const config = { checkQuorum: true, preVote: true };
      const leader = new Peer({ config });
      leader.elect();
      leader.step("preVoteResponse", { from: 2, term: 1 });
      leader.step("requestVoteResponse", { from: 2, term: 1 });
      expect(leader.raft.isLeader).toBe(true);
      const ahead = new Peer({ id: 3, hard: { term: 5 }, config });
      const [answer] = ahead.step(type, { from: 1, term: 1 });
      expect(answer).toMatchObject({ type: MessageType.appendEntriesResponse, term: 5, index: 0 });
      expect(ahead.raft.status()).toMatchObject({ term: 5, lead: 0 });
      leader.raft.step(answer as Message);
      expect(leader.raft.status()).toMatchObject({ role: "follower", term: 5 });
    });
  }

  for (const type of [
    "appendEntriesResponse",
    "heartbeatResponse",
    "requestVoteResponse",
    "readIndexResponse",
    "preVoteResponse",
  ] as const) {
    test(`a ${type} of a later term deposes a leader (§5.1)`, () => {
      const peer = new Peer();
      peer.elect();
      peer.step(type, { from: 2, term: 9, reject: true });
      expect(peer.raft.status()).toMatchObject({ role: "follower", term: 9, vote: 0 });
    });
  }

  test("a leader whose disk stands still steps down all the same without a quorum (thesis §6.2)", () => {
    const peer = new Peer({ config: { checkQuorum: true } });
    peer.elect();
    peer.raft.propose(bytes("a"));
    peer.turn();
    expect(peer.appends).toHaveLength(1);
    for (let i = 0; i < 20; i++) {
      peer.raft.tick();
      peer.turn();
    }
    expect(peer.appends.length).toBeGreaterThan(0);
    expect(peer.raft.isLeader).toBe(false);
  });

  test("the timeout is drawn anew by each campaign, so that two who split the votes do not go on so (§5.2)", () => {
    const draws: number[] = [];
    const random = new Prng(7);
    const peer = new Peer({
      config: {
        random: (bound) => {
          const drawn = random.below(bound);
          draws.push(drawn);
          return drawn;
        },
      },
    });
    const waits: number[] = [];
    for (let campaign = 0; campaign < 20; campaign++) {
      let waited = 0;
      while (peer.tick(1).length === 0) waited += 1;
      waits.push(waited + 1);
    }
    expect(draws).toHaveLength(21);
    expect(waits).toEqual(draws.slice(0, 20).map((drawn) => 10 + drawn));
    expect(new Set(waits).size).toBeGreaterThan(5);
  });

  test("two that always start together end with a leader", () => {
    for (let seed = 1; seed <= 20; seed++) {
      const peers = [1, 2].map((id) => {
        const random = new Prng(seed * 10 + id);
        return new Peer({ id, voters: [1, 2], config: { random: (bound) => random.below(bound) } });
      });
      let ticks = 0;
      for (; !peers.some((peer) => peer.raft.isLeader) && ticks < 500; ticks++) {
        for (const peer of peers) peer.raft.tick();
        // All that was said in a tick arrives in the next: both may have campaigned.
        const said = peers.flatMap((peer) => peer.take());
        for (const m of said) peers.find((peer) => peer.id === m.to)?.raft.step(m);
      }
      expect(ticks).toBeLessThan(500);
    }
  });

  test("neither who was removed nor who waits for a snapshot campaigns", () => {
    const removed = new Peer({ voters: [2, 3] });
    expect(removed.tick(50)).toEqual([]);
    removed.raft.campaign();
    expect(removed.raft.role).toBe("follower");
    removed.step("timeoutNow", { from: 2, term: 1 });
    expect(removed.raft.role).toBe("follower");

    const waiting = new Peer();
    const snapshot = { index: 5, term: 1, confState: { ...emptyConfState(), voters: [1, 2, 3] } };
    waiting.raft.step(message("installSnapshot", { from: 2, snapshot }));
    waiting.turn();
    for (let i = 0; i < 50; i++) waiting.raft.tick();
    waiting.raft.campaign();
    expect(waiting.raft.role).toBe("follower");
    waiting.settle();
    waiting.raft.campaign();
    expect(waiting.raft.role).toBe("candidate");
  });

  test("an only voter leads when its vote is durable, and commits its whole log anew by an entry of its own", () => {
    const peer = new Peer({ voters: [1], terms: [1, 1, 1], hard: { term: 1, commit: 1 } });
    peer.raft.campaign();
    peer.turn();
    expect(peer.raft.role).toBe("candidate");
    peer.written();
    expect(peer.log.hard).toMatchObject({ term: 2, vote: 1 });
    expect(peer.raft.isLeader).toBe(true);
    peer.turn();
    // The entry of its own is on its way to the disk: nothing more is known to be committed.
    expect(peer.raft.commitIndex).toBe(1);
    peer.raft.readIndex(1);
    peer.turn();
    expect(peer.reads).toEqual([]);
    peer.settle();
    expect(peer.raft.commitIndex).toBe(4);
    expect(peer.applied.map((each) => each.index)).toEqual([1, 2, 3, 4]);
    expect(peer.reads).toEqual([{ index: 4, context: 1 }]);
  });
});

describe("replication", () => {
  test("a heartbeat names no commit beyond what its receiver is known to hold", () => {
    const peer = new Peer();
    peer.elect();
    peer.raft.propose(bytes("a"));
    peer.settle();
    peer.step("appendEntriesResponse", { from: 2, index: 2 });
    expect(peer.raft.commitIndex).toBe(2);
    const beats = ofType(peer.tick(1), "heartbeat");
    expect(beats.map((m) => [m.to, m.commit])).toEqual([
      [2, 2],
      [3, 0],
    ]);
  });

  test("what is known of a replica never goes back, and what is sent next is always above it", () => {
    const step = fc.record({
      kind: fc.constantFrom("ack", "reject", "sent", "probe", "replicate", "snapshot"),
      index: fc.nat(30),
      hint: fc.nat(30),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const peer = new Progress(2, false, 1, new Inflights(4, Infinity));
        let last = 1;
        for (const { kind, index, hint } of steps) {
          const before = peer.match;
          if (kind === "ack") peer.maybeUpdate(Math.min(index, last));
          else if (kind === "reject") peer.maybeDecrease(index, hint);
          else if (kind === "sent" && !peer.isPaused) {
            if (peer.state === "replicate") last = Math.max(last, peer.next);
            peer.sentEntries(1, 1);
          } else if (kind === "probe") peer.becomeProbe();
          else if (kind === "replicate") peer.becomeReplicate();
          else if (kind === "snapshot" && index > peer.match) {
            peer.becomeSnapshot(index);
            last = Math.max(last, index);
          }
          expect(peer.match).toBeGreaterThanOrEqual(before);
          expect(peer.next).toBeGreaterThan(peer.match);
        }
      }),
    );
  });

  test("answers of an earlier term, and acknowledgements beyond the log, count for nothing", () => {
    const peer = new Peer({ terms: [1], hard: { term: 4 } });
    peer.elect();
    expect(peer.raft.status()).toMatchObject({ role: "leader", term: 5, lastIndex: 2 });
    const known = peer.raft.status().progress;
    peer.step("appendEntriesResponse", { from: 2, term: 4, index: 2 });
    peer.step("appendEntriesResponse", { from: 2, term: 4, index: 1, reject: true });
    peer.step("heartbeatResponse", { from: 2, term: 4 });
    expect(peer.raft.status().progress).toEqual(known);
    peer.step("appendEntriesResponse", { from: 2, term: 5, index: 3 });
    expect(peer.raft.commitIndex).toBe(0);
    expect(peer.raft.status().progress[1]).toMatchObject({ match: 0 });
  });

  test("a window that was lost altogether is sent again, with its entries", () => {
    const peers = cluster(3, { config: { inflightMessagesMax: 2 } }) as [Peer, Peer, Peer];
    const [leader, , third] = peers;
    leader.raft.campaign();
    exchange(peers);
    const lost = (m: Message): boolean =>
      m.to === 3 && m.type === MessageType.appendEntries && m.entries.length > 0;
    for (const text of ["a", "b", "c"]) leader.raft.propose(bytes(text));
    exchange(peers, lost);
    expect(leader.raft.status().progress[2]).toMatchObject({ inflightFull: true, match: 1 });
    expect(third.raft.lastIndex).toBe(1);
    for (let i = 0; i < 3; i++) {
      leader.raft.tick();
      exchange(peers);
    }
    expect(third.raft.status()).toMatchObject({ commit: 4, lastIndex: 4 });
  });

  test("a probe that was lost is sent again with its entries, after a sign of life", () => {
    const peer = new Peer({ terms: [1, 1] });
    const probes = ofType(peer.elect(), "appendEntries").filter((m) => m.to === 2);
    expect(probes).toMatchObject([{ index: 2, entries: [{ index: 3 }] }]);
    expect(peer.raft.propose(bytes("x")).ok).toBe(true);
    // One at a time.
    expect(ofType(peer.take(), "appendEntries")).toEqual([]);
    const again = ofType(peer.step("heartbeatResponse", { from: 2, term: 2 }), "appendEntries");
    expect(again).toMatchObject([{ to: 2, index: 2, entries: [{ index: 3 }, { index: 4 }] }]);
  });

  test("one that has everything and is probed is replicated to again without anything new", () => {
    const peers = cluster(3) as [Peer, Peer, Peer];
    const [leader] = peers;
    leader.raft.campaign();
    exchange(peers);
    leader.raft.reportUnreachable(2);
    expect(leader.raft.status().progress[1]).toMatchObject({ state: "probe", match: 1 });
    leader.raft.tick();
    exchange(peers);
    expect(leader.raft.status()).toMatchObject({ lastIndex: 1 });
    expect(leader.raft.status().progress[1]).toMatchObject({ state: "replicate", match: 1 });
  });

  test("an acknowledgement of storage that comes late moves nothing back", () => {
    const stored = new MemoryLog(emptyConfState());
    const log = new RaftLog(stored, {
      commit: 0,
      applied: 0,
      applyingBytesMax: Infinity,
      applyUnstable: false,
    });
    log.append([entry(1, 1), entry(2, 1), entry(3, 1)]);
    stored.append(log.takeUnstable());
    log.stableTo(3, 1);
    log.stableTo(1, 1);
    expect(log.hasUnstable).toBe(false);
    log.append([entry(4, 1)]);
    log.stableTo(2, 1);
    expect(log.takeUnstable()).toMatchObject([{ index: 4 }]);
    expect(log.lastIndex).toBe(4);
  });

  test("the cap on uncommitted bytes begins anew with a term, and holds up no entry that leaves a joint configuration", () => {
    const peer = new Peer({ config: { uncommittedBytesMax: 10 } });
    peer.elect();
    peer.raft.propose(new Uint8Array(50));
    expect(peer.raft.propose(bytes("x")).ok).toBe(false);
    expect(peer.raft.proposeConfChange(change("auto")).ok).toBe(true);
    peer.step("heartbeat", { from: 2, term: 2 });
    peer.raft.campaign();
    peer.settle();
    answers(peer, "requestVoteResponse", [2]);
    expect(peer.raft.status()).toMatchObject({ role: "leader", term: 3, commit: 0 });
    expect(peer.raft.propose(bytes("x")).ok).toBe(true);
  });
});

describe("snapshots", () => {
  /** Leads at term 2, its log begins at 4, and the third needs what is before. */
  function leaderWithGap(): Peer {
    const peer = new Peer({ terms: [1, 1, 1, 1, 1] });
    peer.elect();
    peer.step("appendEntriesResponse", { from: 2, term: 2, index: 6 });
    peer.log.compact(3);
    return peer;
  }

  test("bring the whole joint configuration, and nothing that is not committed", () => {
    const leader = new Peer({ terms: [1, 1] });
    leader.elect();
    leader.step("appendEntriesResponse", { from: 2, term: 2, index: 3 });
    const next = change("jointExplicit", ["addVoter", 4], ["addLearner", 3], ["addLearner", 5]);
    leader.raft.proposeConfChange(next);
    leader.settle();
    leader.log.compact(3);
    const before = ofType(
      leader.step("appendEntriesResponse", { from: 3, term: 2, index: 2, reject: true }),
      "installSnapshot",
    );
    expect(before[0]?.snapshot).toMatchObject({ index: 3, confState: { voters: [1, 2, 3] } });
    leader.raft.reportSnapshot(3, false);
    leader.step("appendEntriesResponse", { from: 2, term: 2, index: 4 });
    const whole = {
      voters: [1, 2, 4],
      votersOutgoing: [1, 2, 3],
      learners: [5],
      learnersNext: [3],
      autoLeave: false,
    };
    expect(leader.raft.confState).toEqual(whole);
    leader.log.compact(4);
    const [after] = ofType(
      leader.step("heartbeatResponse", { from: 4, term: 2 }),
      "installSnapshot",
    );
    expect(after?.snapshot).toMatchObject({ index: 4, confState: whole });
    const joining = new Peer({ id: 4, voters: [4, 9] });
    joining.raft.step(after as Message);
    joining.settle();
    expect(joining.raft.confState).toEqual(whole);
    expect(joining.log.conf).toEqual(whole);
  });

  test("succeed by any acknowledgement that connects to the log, also of an older state than the one sent", () => {
    const peer = leaderWithGap();
    peer.step("appendEntriesResponse", { from: 3, term: 2, index: 5, reject: true });
    expect(peer.raft.status().progress[2]).toMatchObject({ state: "snapshot", pendingSnapshot: 6 });
    expect(peer.step("appendEntriesResponse", { from: 3, term: 2, index: 2 })).toEqual([]);
    expect(peer.raft.status().progress[2]).toMatchObject({ state: "snapshot", match: 2 });
    const sent = peer.step("appendEntriesResponse", { from: 3, term: 2, index: 3 });
    expect(peer.raft.status().progress[2]).toMatchObject({ state: "replicate", match: 3 });
    expect(ofType(sent, "appendEntries")).toMatchObject([{ to: 3, index: 3, logTerm: 1 }]);
  });

  test("that are not there yet are asked for again by the next sign of life, with nothing new to say", () => {
    const peer = leaderWithGap();
    const { latest } = peer.log;
    peer.log.latest = null;
    const rejection = { from: 3, term: 2, index: 5, reject: true };
    expect(peer.step("appendEntriesResponse", rejection)).toEqual([]);
    peer.log.latest = latest;
    const sent = peer.step("heartbeatResponse", { from: 3, term: 2 });
    expect(typesOf(sent)).toEqual(["3:installSnapshot"]);
  });

  test("already covered are answered with what is committed, not with what is only there", () => {
    const peer = new Peer({ terms: [1, 1, 1, 1, 1], hard: { commit: 4 } });
    const snapshot = { index: 3, term: 1, confState: peer.raft.confState };
    expect(peer.step("installSnapshot", { snapshot })).toMatchObject([{ index: 4 }]);
    expect(peer.raft.lastIndex).toBe(5);
  });

  test("for others than their members are not taken", () => {
    const peer = new Peer({ terms: [1] });
    const snapshot = { index: 9, term: 1, confState: { ...emptyConfState(), voters: [2, 3] } };
    expect(peer.step("installSnapshot", { snapshot })).toMatchObject([{ index: 0 }]);
    expect(peer.raft.status()).toMatchObject({ commit: 0, lastIndex: 1 });
  });

  test("a restart begins with the configuration of its applied index, and replays the changes behind it", () => {
    const peer = new Peer({ terms: [1, 1, 1], hard: { commit: 2 }, applied: 1 });
    peer.log.kept[1] = confEntry(2, 1, change("auto", ["addVoter", 4]));
    const { raft } = peer;
    expect(raft.confState.voters).toEqual([1, 2, 3]);
    // Before the change is replayed, two of the three would be too few.
    raft.campaign();
    expect(raft.role).toBe("follower");
    peer.settle();
    expect(peer.applied.map((each) => each.index)).toEqual([2]);
    expect(raft.confState.voters).toEqual([1, 2, 3, 4]);
    raft.campaign();
    peer.settle();
    answers(peer, "requestVoteResponse", [2]);
    expect(raft.isLeader).toBe(false);
    answers(peer, "requestVoteResponse", [3]);
    expect(raft.isLeader).toBe(true);
  });
});

describe("members (thesis §4)", () => {
  test("a change asked for right after the election takes no effect before an entry of the new term is committed", () => {
    const peer = new Peer({ terms: [1, 1], hard: { commit: 2 }, applied: 1 });
    peer.raft.campaign();
    peer.settle();
    answers(peer, "requestVoteResponse", [2]);
    expect(peer.raft.proposeConfChange(change("auto", ["removeNode", 3])).ok).toBe(true);
    peer.settle();
    expect(peer.raft.confState.voters).toEqual([1, 2, 3]);
    // An acknowledgement of the old log is not enough, however many have it.
    answersAt(peer, [2, 3], 2);
    expect(peer.raft.confState.voters).toEqual([1, 2, 3]);
    answersAt(peer, [2], 4);
    expect(peer.raft.confState.voters).toEqual([1, 2]);
  });

  test("while something before the term is not applied, a change becomes an empty entry", () => {
    const peer = new Peer({ terms: [1, 1] });
    peer.elect();
    expect(peer.raft.hasPendingConfChange).toBe(true);
    expect(peer.raft.proposeConfChange(change("auto", ["removeNode", 3])).ok).toBe(true);
    answersAt(peer, [2], 4);
    expect(peer.raft.status()).toMatchObject({ commit: 4, applied: 4 });
    expect(peer.raft.confState.voters).toEqual([1, 2, 3]);
    expect(peer.applied.at(-1)).toMatchObject({ kind: EntryKind.normal });
  });

  test("in a joint configuration a vote needs both majorities", () => {
    const peer = withConf(joint);
    peer.raft.campaign();
    expect(ofType(peer.take(), "requestVote").map((m) => m.to)).toEqual([2, 3, 4, 5]);
    answers(peer, "requestVoteResponse", [4, 5]);
    expect(peer.raft.role).toBe("candidate");
    answers(peer, "requestVoteResponse", [2]);
    expect(peer.raft.role).toBe("leader");
  });

  /** Leads, and its first entry is committed. */
  function jointLeader(setup: ConstructorParameters<typeof Peer>[0] = {}): Peer {
    const peer = withConf(joint, setup);
    peer.raft.campaign();
    peer.settle();
    answers(peer, "requestVoteResponse", [2, 4]);
    answersAt(peer, [2, 4], 6);
    expect(peer.raft.status()).toMatchObject({ role: "leader", commit: 6 });
    return peer;
  }

  test("so does a read, which the new half alone does not confirm", () => {
    const peer = jointLeader();
    peer.raft.readIndex(1);
    const [beat] = ofType(peer.take(), "heartbeat");
    const confirms = { term: peer.raft.term, context: beat?.context ?? 0 };
    peer.step("heartbeatResponse", { from: 4, ...confirms });
    peer.step("heartbeatResponse", { from: 5, ...confirms });
    expect(peer.reads).toEqual([]);
    peer.step("heartbeatResponse", { from: 3, ...confirms });
    expect(peer.reads).toEqual([{ index: 6, context: 1 }]);
  });

  test("so does a leader that wants to stay one", () => {
    for (const [from, stays] of [
      [[4, 5], false],
      [[2, 3], false],
      [[3, 5], true],
    ] as const) {
      const peer = jointLeader({ config: { checkQuorum: true } });
      peer.tick(10);
      answers(peer, "heartbeatResponse", from);
      peer.tick(10);
      expect(peer.raft.isLeader).toBe(stays);
    }
  });

  test("so does an entry: acknowledgements of those who are new do not stand for the old ones", () => {
    const apart: ConfState = { ...joint, voters: [4, 5, 6] };
    const peer = withConf(apart);
    peer.raft.campaign();
    peer.settle();
    answers(peer, "requestVoteResponse", [2, 4, 5]);
    expect(peer.raft.isLeader).toBe(true);
    answersAt(peer, [4, 5, 6], 6);
    expect(peer.raft.commitIndex).toBe(5);
    answersAt(peer, [3], 6);
    expect(peer.raft.commitIndex).toBe(6);
  });

  test("an outgoing voter may still be handed leadership, who is no voter may not", () => {
    const peer = jointLeader();
    peer.raft.transferLeadership(9);
    expect(peer.raft.status().transferee).toBe(0);
    peer.raft.transferLeadership(2);
    expect(ofType(peer.take(), "timeoutNow")).toMatchObject([{ to: 2, context: 6 }]);
  });

  test("a change that is cut from the log leaves no trace, and no other one waits for it", () => {
    const peer = new Peer();
    const removal = confEntry(1, 1, change("auto", ["removeNode", 3]));
    peer.step("appendEntries", { entries: [removal] });
    expect(peer.raft.confState.voters).toEqual([1, 2, 3]);
    peer.step("appendEntries", { from: 3, term: 2, entries: [entry(1, 2)], commit: 1 });
    expect(peer.raft.confState.voters).toEqual([1, 2, 3]);
    expect(peer.log.conf.voters).toEqual([1, 2, 3]);
    peer.elect();
    answersAt(peer, [2], 2);
    expect(peer.raft.hasPendingConfChange).toBe(false);
  });

  test("a leader that is removed commits that, steps down and never leads again", () => {
    const peers = cluster(3) as [Peer, Peer, Peer];
    const [leader, second, third] = peers;
    leader.raft.campaign();
    exchange(peers);
    leader.raft.proposeConfChange(change("auto", ["removeNode", 1]));
    exchange(peers);
    expect(leader.raft.status()).toMatchObject({ role: "follower", commit: 2, lead: 0 });
    expect(leader.raft.confState.voters).toEqual([2, 3]);
    leader.tick(100);
    leader.raft.campaign();
    expect(leader.raft.role).toBe("follower");
    // Those who stay learn of it from the log, and elect one of them.
    second.raft.campaign();
    exchange([second, third]);
    expect(second.raft.isLeader).toBe(true);
    expect(second.raft.confState.voters).toEqual([2, 3]);
  });

  test("who was removed and asks for votes does not disturb those who have a leader (thesis §4.2.3)", () => {
    const peer = new Peer({ voters: [1, 2], config: { checkQuorum: true, preVote: true } });
    peer.step("heartbeat", { from: 2, term: 3 });
    const asks = { from: 3, index: 99, logTerm: 9 };
    expect(peer.step("preVote", { ...asks, term: 4 })).toEqual([]);
    expect(peer.step("requestVote", { ...asks, term: 4 })).toEqual([]);
    expect(peer.raft.status()).toMatchObject({ term: 3, lead: 2 });
  });

  test("removing the last voter is refused, and so are two voters at once without a joint configuration", () => {
    const create = (id: number, isLearner: boolean): Progress =>
      new Progress(id, isLearner, 1, new Inflights(1, 1));
    const nobody = { conf: emptyConfState(), peers: [] };
    const one = changeMembers(nobody, change("auto", ["addVoter", 1]), create);
    expect(one.ok).toBe(true);
    if (!one.ok) return;
    for (const transition of ["auto", "jointImplicit"] as const) {
      expect(changeMembers(one.members, change(transition, ["removeNode", 1]), create)).toEqual({
        ok: false,
        reason: "removed all voters",
      });
    }
    const two = change("auto", ["addVoter", 2], ["addVoter", 3]).changes;
    expect(simple(one.members, two, create)).toMatchObject({ ok: false });
    expect(one.members.conf.voters).toEqual([1]);
  });

  test("any leader leaves a joint configuration that is to be left, after an entry of its own is committed by both halves", () => {
    const peer = withConf({ ...joint, autoLeave: true });
    peer.raft.campaign();
    peer.settle();
    answers(peer, "requestVoteResponse", [2, 4]);
    expect(peer.raft.status()).toMatchObject({ role: "leader", lastIndex: 6, commit: 5 });
    answersAt(peer, [4, 5], 6);
    expect(peer.raft.lastIndex).toBe(6);
    const sent = ofType(answersAt(peer, [2], 6), "appendEntries").flatMap((m) => m.entries);
    expect(sent[0]).toMatchObject({ index: 7, kind: EntryKind.confChange });
    expect(peer.raft.confState.votersOutgoing).toEqual([1, 2, 3]);
    answersAt(peer, [4, 5], 7);
    expect(peer.raft.confState.votersOutgoing).toEqual([1, 2, 3]);
    answersAt(peer, [3], 7);
    expect(peer.raft.confState).toMatchObject({ voters: [1, 4, 5], votersOutgoing: [] });
  });

  test("an inherited change into a joint configuration is left only once it is committed and applied itself", () => {
    const enter = change("jointImplicit", ["addVoter", 4], ["removeNode", 3]);
    const peer = new Peer({ terms: [1, 1] });
    peer.log.kept[1] = confEntry(2, 1, enter);
    peer.elect();
    expect(peer.raft.status()).toMatchObject({ role: "leader", term: 2, lastIndex: 3 });
    answersAt(peer, [2], 2);
    expect(peer.raft.status()).toMatchObject({ commit: 0, lastIndex: 3 });
    answersAt(peer, [2], 3);
    expect(peer.raft.status()).toMatchObject({ commit: 3, lastIndex: 4 });
    expect(peer.raft.confState).toMatchObject({ voters: [1, 2, 4], votersOutgoing: [1, 2, 3] });
  });

  test("of changes asked for at once one wins, and everybody ends with it", () => {
    const peers = cluster(3) as [Peer, Peer, Peer];
    const [leader, second] = peers;
    leader.raft.campaign();
    exchange(peers);
    leader.raft.proposeConfChange(change("auto", ["addLearner", 8]));
    leader.raft.proposeConfChange(change("auto", ["addLearner", 9]));
    const data = encodeConfChange(change("auto", ["addLearner", 7]));
    const entries = [{ index: 0, term: 0, kind: EntryKind.confChange, data }];
    second.raft.step(message("propose", { to: 2, from: 3, term: 0, entries }));
    exchange(peers);
    leader.raft.tick();
    exchange(peers);
    for (const peer of peers) {
      expect(peer.raft.confState).toMatchObject({ voters: [1, 2, 3], learners: [8] });
      expect(peer.raft.commitIndex).toBe(4);
    }
  });

  test("a transfer ends when its target is removed, or becomes a learner", () => {
    for (const kind of ["removeNode", "addLearner"] as const) {
      const peer = new Peer();
      peer.elect();
      answersAt(peer, [2], 1);
      peer.raft.proposeConfChange(change("auto", [kind, 3]));
      peer.raft.transferLeadership(3);
      expect(peer.raft.status().transferee).toBe(3);
      answersAt(peer, [2], 2);
      expect(peer.raft.confState.voters).toEqual([1, 2]);
      expect(peer.raft.status()).toMatchObject({ role: "leader", transferee: 0 });
    }
  });
});

describe("reads (thesis §6.4)", () => {
  test("a confirmation of an earlier term's round confirms none of a later one", () => {
    const peer = new Peer();
    peer.elect();
    answersAt(peer, [2], 1);
    peer.raft.readIndex(1);
    const [early] = ofType(peer.take(), "heartbeat");
    peer.step("heartbeatResponse", { from: 2, context: early?.context ?? 0 });
    expect(peer.reads).toHaveLength(1);
    peer.step("heartbeat", { from: 3, term: 2 });
    peer.elect();
    answersAt(peer, [2], 2);
    expect(peer.raft.status()).toMatchObject({ role: "leader", term: 3, commit: 2 });
    peer.raft.readIndex(2);
    const [late] = ofType(peer.take(), "heartbeat");
    expect(late?.context).toBe(early?.context);
    peer.step("heartbeatResponse", { from: 2, term: 1, context: early?.context ?? 0 });
    peer.step("heartbeatResponse", { from: 2, term: 3, context: 0 });
    expect(peer.reads).toHaveLength(1);
    peer.step("heartbeatResponse", { from: 2, term: 3, context: late?.context ?? 0 });
    expect(peer.reads.at(-1)).toEqual({ index: 2, context: 2 });
  });

  test("names that clients use again do not mix up their reads", () => {
    const peer = new Peer();
    peer.elect();
    answersAt(peer, [2], 1);
    peer.step("readIndex", { from: 3, term: 0, context: 7 });
    peer.raft.propose(bytes("a"));
    peer.settle();
    answersAt(peer, [2], 2);
    const [second] = ofType(peer.step("readIndex", { from: 3, term: 0, context: 7 }), "heartbeat");
    const round = second?.context ?? 0;
    const first = ofType(
      peer.step("heartbeatResponse", { from: 2, context: round - 1 }),
      "readIndexResponse",
    );
    expect(first).toMatchObject([{ to: 3, context: 7, index: 1 }]);
    const then = ofType(
      peer.step("heartbeatResponse", { from: 2, context: round }),
      "readIndexResponse",
    );
    expect(then).toMatchObject([{ to: 3, context: 7, index: 2 }]);
  });

  test("a read during a transfer asks a majority, so that one who took over meanwhile is noticed", () => {
    const peer = new Peer();
    peer.elect();
    answersAt(peer, [2], 1);
    peer.raft.transferLeadership(2);
    peer.take();
    peer.raft.readIndex(1);
    expect(typesOf(peer.take())).toEqual(["2:heartbeat", "3:heartbeat"]);
    peer.step("heartbeatResponse", { from: 2, term: 2, context: 1 });
    expect(peer.reads).toEqual([]);
    expect(peer.raft.isLeader).toBe(false);
  });

  const lease = { checkQuorum: true, readOnly: "lease" } as const;

  test("a lease runs from when its heartbeat was sent, however late the answer comes (thesis §6.4.1)", () => {
    const peer = new Peer({ config: lease });
    peer.elect();
    answersAt(peer, [2], 1);
    const [beat] = ofType(peer.tick(1), "heartbeat");
    peer.tick(8);
    peer.step("heartbeatResponse", { from: 2, context: beat?.context ?? 0 });
    peer.raft.readIndex(1);
    peer.turn();
    expect(peer.reads).toEqual([{ index: 1, context: 1 }]);
    peer.tick(1);
    peer.step("heartbeatResponse", { from: 3, context: beat?.context ?? 0 });
    peer.raft.readIndex(2);
    peer.turn();
    expect(peer.reads).toHaveLength(1);
  });

  test("there are no lease reads without quorum checks, nor with liveness from outside", () => {
    expect(() => new Peer({ config: { ...lease, checkQuorum: false } })).toThrow("leases rest on");
    expect(() => new Peer({ config: { ...lease, supports: () => true } })).toThrow(
      "leases rest on",
    );
  });

  test("a follower that counts on a lease does not forget its leader, nor answer reads itself", () => {
    const peer = new Peer({ config: lease });
    peer.step("heartbeat", { from: 2 });
    peer.raft.forgetLeader();
    expect(peer.raft.lead).toBe(2);
    expect(peer.step("requestVote", { from: 3, term: 2, index: 9, logTerm: 9 })).toEqual([]);
    peer.raft.readIndex(1);
    expect(typesOf(peer.take())).toEqual(["2:readIndex"]);
    expect(peer.reads).toEqual([]);
  });
});

describe("a group at rest", () => {
  const supported = { preVote: true, checkQuorum: true, supports: (): boolean => true };

  function resting(): [Peer, Peer, Peer] {
    const peers = cluster(3, { config: supported }) as [Peer, Peer, Peer];
    peers[0].raft.campaign();
    exchange(peers);
    for (let i = 0; i < 3; i++) {
      peers[0].raft.tick();
      exchange(peers);
    }
    expect(peers.map((peer) => peer.raft.idle)).toEqual([true, true, true]);
    return peers;
  }

  const causes: Record<string, (peers: [Peer, Peer, Peer]) => void> = {
    "an entry is not committed": ([leader]) => leader.raft.propose(bytes("a")),
    "a read waits": ([leader]) => leader.raft.readIndex(1),
    "a transfer is under way": ([leader]) => leader.raft.transferLeadership(2),
    "a change of members is under way": ([leader]) =>
      leader.raft.proposeConfChange(change("auto", ["addLearner", 4])),
    "a joint configuration is to be left": (peers) => {
      peers[0].raft.proposeConfChange(change("jointExplicit", ["addVoter", 2]));
      for (let i = 0; i < 5; i++) {
        exchange(peers);
        peers[0].raft.tick();
      }
      expect(peers[0].raft.confState.votersOutgoing).toEqual([1, 2, 3]);
      expect(peers[0].raft.status()).toMatchObject({ applied: 2, lastIndex: 2 });
    },
    "somebody has to be probed": ([leader]) => leader.raft.reportUnreachable(3),
  };
  for (const [cause, happens] of Object.entries(causes)) {
    test(`is not at rest while ${cause}`, () => {
      const peers = resting();
      happens(peers);
      expect(peers[0].raft.idle).toBe(false);
    });
  }

  test("is not at rest without a leader", () => {
    const [, second] = resting();
    second.raft.forgetLeader();
    expect(second.raft.idle).toBe(false);
  });
});

function answersAt(peer: Peer, from: readonly number[], index: number): Message[] {
  return from.flatMap((each) =>
    peer.step("appendEntriesResponse", { from: each, term: peer.raft.term, index }),
  );
}
