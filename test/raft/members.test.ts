/** Changes of the configuration, snapshots, limits: what the paper leaves to whoever builds it. */
import { describe, expect, test } from "vitest";
import { encodeConfChange } from "../../src/raft/raft.ts";
import { EntryKind, MessageType, type Entry } from "../../src/raft/types.ts";
import { bytes, change, cluster, entry, exchange, message, Peer, typesOf } from "./helpers.ts";

function led(count: number): [Peer, ...Peer[]] {
  const peers = cluster(count) as [Peer, ...Peer[]];
  peers[0].raft.campaign();
  exchange(peers);
  return peers;
}

describe("configuration changes (thesis §4)", () => {
  test("take effect when they are applied", () => {
    const peers = led(3);
    const [leader] = peers;
    leader.raft.proposeConfChange(change("auto", ["removeNode", 3]));
    leader.settle();
    expect(leader.raft.confState.voters).toEqual([1, 2, 3]);
    exchange(peers);
    expect(leader.raft.confState.voters).toEqual([1, 2]);
  });

  test("wait for each other: the second becomes an empty entry", () => {
    const peers = led(3);
    const [leader] = peers;
    leader.raft.proposeConfChange(change("auto", ["addLearner", 4]));
    expect(leader.raft.hasPendingConfChange).toBe(true);
    expect(leader.raft.proposeConfChange(change("auto", ["removeNode", 2])).ok).toBe(true);
    exchange(peers);
    expect(leader.raft.confState).toMatchObject({ voters: [1, 2, 3], learners: [4] });
    expect(leader.applied.at(-1)).toMatchObject({ kind: EntryKind.normal, data: bytes("") });
    expect(leader.raft.hasPendingConfChange).toBe(false);
  });

  test("after which nobody could vote become an empty entry too", () => {
    const peers = led(1);
    const [leader] = peers;
    for (const last of [
      change("auto", ["removeNode", 1]),
      change("auto", ["addLearner", 1]),
      change("auto", ["removeNode", 1], ["addLearner", 2]),
    ]) {
      expect(leader.raft.proposeConfChange(last).ok).toBe(true);
      exchange(peers);
      expect(leader.raft.confState).toMatchObject({ voters: [1], learners: [] });
      expect(leader.applied.at(-1)).toMatchObject({ kind: EntryKind.normal, data: bytes("") });
    }
  });

  test("of several voters go through a joint configuration and leave it by themselves", () => {
    const peers = led(3);
    const [leader] = peers;
    const joining = [4, 5].map((id) => new Peer({ id }));
    leader.raft.proposeConfChange(
      change("auto", ["addVoter", 4], ["addVoter", 5], ["removeNode", 3]),
    );
    const seen: string[] = [];
    for (let i = 0; i < 30 && leader.raft.confState.voters.length !== 4; i++) {
      exchange([...peers, ...joining]);
      leader.raft.tick();
    }
    exchange([...peers, ...joining]);
    for (const each of leader.applied) {
      if (each.kind === EntryKind.confChange) seen.push(each.data.length === 0 ? "leave" : "enter");
    }
    expect(seen).toEqual(["enter", "leave"]);
    expect(leader.raft.confState).toMatchObject({ voters: [1, 2, 4, 5], votersOutgoing: [] });
    expect(joining[0]?.raft.confState.voters).toEqual([1, 2, 4, 5]);
  });

  test("that are joint explicitly stay so until told, and need both majorities", () => {
    const peers = led(3);
    const [leader] = peers;
    leader.raft.proposeConfChange(change("jointExplicit", ["addVoter", 4], ["addVoter", 5]));
    exchange(peers);
    expect(leader.raft.confState.votersOutgoing).toEqual([1, 2, 3]);
    const { commitIndex } = leader.raft;
    leader.raft.propose(bytes("a"));
    // Old majority, and two of the new five.
    exchange(peers, (m) => m.to === 3);
    expect(leader.raft.commitIndex).toBe(commitIndex);
    leader.step("appendEntriesResponse", { from: 4, index: commitIndex + 1 });
    expect(leader.raft.commitIndex).toBe(commitIndex + 1);
    leader.raft.proposeConfChange(change("auto"));
    exchange(peers);
    expect(leader.raft.confState).toMatchObject({ voters: [1, 2, 3, 4, 5], votersOutgoing: [] });
  });

  test("committed and not applied keep a replica from campaigning", () => {
    const data = encodeConfChange(change("auto", ["removeNode", 3]));
    const entries: Entry[] = [{ index: 2, term: 1, kind: EntryKind.confChange, data }];
    const restarted = new Peer({ hard: { term: 1, commit: 0 } });
    restarted.step("appendEntries", { entries: [entry(1, 1), ...entries] });
    restarted.raft.step(message("heartbeat", { commit: 2 }));
    restarted.raft.campaign();
    expect(restarted.raft.role).toBe("follower");
    restarted.settle();
    restarted.raft.campaign();
    expect(restarted.raft.role).toBe("candidate");
  });

  test("a removed replica's answers count for nothing, not even for their term", () => {
    const peers = led(3);
    const [leader] = peers;
    leader.raft.proposeConfChange(change("auto", ["removeNode", 3]));
    exchange(peers);
    expect(leader.raft.step(message("heartbeatResponse", { from: 3, term: 9 }))).toBe(false);
    expect(leader.raft.status()).toMatchObject({ role: "leader", term: 1 });
  });

  test("a learner gets everything, and neither campaigns nor counts", () => {
    const leader = new Peer({ voters: [1, 2], learners: [3] });
    const learner = new Peer({ id: 3, voters: [1, 2], learners: [3] });
    leader.elect();
    leader.step("appendEntriesResponse", { from: 3, index: 1 });
    expect(leader.raft.commitIndex).toBe(0);
    learner.tick(50);
    expect(learner.raft.role).toBe("follower");
    expect(learner.step("requestVote", { from: 2, term: 2 })[0]?.reject).toBe(false);
  });
});

describe("snapshots", () => {
  /** The third was not reached, and what it lacks is compacted. */
  function compacted(): [Peer, Peer, Peer] {
    const peers = cluster(3) as [Peer, Peer, Peer];
    const [leader] = peers;
    const apart = (m: { to: number }): boolean => m.to === 3;
    leader.raft.campaign();
    exchange(peers, apart);
    for (const text of ["a", "b", "c"]) leader.raft.propose(bytes(text));
    exchange(peers, apart);
    leader.log.compact(4);
    leader.raft.tick();
    return peers;
  }

  test("go to who needs what is compacted, and end in replication", () => {
    const peers = compacted();
    const [leader, , third] = peers;
    exchange(peers);
    expect(third.raft.status()).toMatchObject({ commit: 4, applied: 4, lastIndex: 4 });
    expect(third.log.kept).toEqual([]);
    expect(leader.raft.status().progress[2]).toMatchObject({ state: "replicate", match: 4 });
    leader.raft.propose(bytes("d"));
    exchange(peers);
    expect(third.applied.map((each) => each.index)).toEqual([5]);
  });

  test("under way keep the leader from sending more, until one is reported lost", () => {
    const peers = compacted();
    const [leader, , third] = peers;
    const lost = (m: { type: MessageType }): boolean => m.type === MessageType.installSnapshot;
    exchange(peers, lost);
    expect(leader.raft.status().progress[2]).toMatchObject({ state: "snapshot", paused: true });
    leader.raft.propose(bytes("d"));
    leader.raft.tick();
    exchange(peers);
    expect(third.raft.lastIndex).toBe(0);
    leader.raft.reportSnapshot(3, false);
    leader.raft.tick();
    exchange(peers);
    expect(third.raft.status()).toMatchObject({ commit: 5, lastIndex: 5 });
  });

  test("already covered are answered with the commit index", () => {
    const follower = new Peer({
      id: 2,
      voters: [1, 2],
      terms: [1, 1, 1, 1, 1],
      hard: { commit: 5 },
    });
    const snapshot = { index: 4, term: 1, confState: follower.raft.confState };
    expect(follower.step("installSnapshot", { from: 1, term: 1, snapshot })).toMatchObject([
      { index: 5 },
    ]);
    expect(() =>
      follower.step("installSnapshot", { from: 1, term: 1, snapshot: { ...snapshot, term: 9 } }),
    ).toThrow("contradicts");
  });

  test("at a place that the log has only move the commit index", () => {
    const follower = new Peer({ id: 2, voters: [1, 2], terms: [1, 1, 1] });
    const snapshot = { index: 2, term: 1, confState: follower.raft.confState };
    follower.step("installSnapshot", { from: 1, term: 1, snapshot });
    expect(follower.raft.status()).toMatchObject({ commit: 2, lastIndex: 3 });
  });
});

describe("limits", () => {
  test("proposals beyond the uncommitted bytes are refused, an only one and empty ones are not", () => {
    const peer = new Peer({ config: { uncommittedBytesMax: 10 } });
    peer.elect();
    expect(peer.raft.propose(new Uint8Array(50)).ok).toBe(true);
    expect(peer.raft.propose(new Uint8Array(1))).toEqual({
      ok: false,
      reason: "too-much-uncommitted",
    });
    expect(peer.raft.propose(new Uint8Array(0)).ok).toBe(true);
    peer.step("appendEntriesResponse", { index: 3 });
    expect(peer.raft.propose(new Uint8Array(1)).ok).toBe(true);
  });

  test("messages hold as much as they may, and the window as many", () => {
    const peer = new Peer({
      terms: [1, 1, 1, 1, 1, 1],
      config: { messageBytesMax: 7, inflightMessagesMax: 2 },
    });
    peer.elect();
    const sent = peer.step("appendEntriesResponse", { term: 2, index: 0 });
    const appends = sent.filter((m) => m.type === MessageType.appendEntries && m.to === 2);
    expect(appends.map((m) => m.entries.length)).toEqual([2, 2]);
    expect(peer.raft.status().progress[1]).toMatchObject({ paused: true, inflightFull: true });
  });

  test("proposals of one turn leave in one message when appends are merged", () => {
    const peers = cluster(3, { config: { mergeAppends: true } }) as [Peer, Peer, Peer];
    const [leader] = peers;
    leader.raft.campaign();
    exchange(peers);
    for (const text of ["a", "b", "c"]) leader.raft.propose(bytes(text));
    const sent = leader.take();
    expect(typesOf(sent)).toEqual(["2:appendEntries", "3:appendEntries"]);
    expect(sent.map((m) => m.entries.length)).toEqual([3, 3]);
  });
});

describe("storage that takes its time", () => {
  test("an acknowledgement from an earlier term marks nothing durable (ABA)", () => {
    const peer = new Peer({ id: 2 });
    // The same entry, another in its place, the same again; three writes under way.
    peer.raft.step(message("appendEntries", { to: 2, from: 1, term: 1, entries: [entry(1, 1)] }));
    peer.turn();
    peer.raft.step(message("appendEntries", { to: 2, from: 1, term: 2, entries: [entry(1, 2)] }));
    peer.turn();
    peer.raft.step(
      message("appendEntries", { to: 2, from: 1, term: 3, entries: [entry(1, 1)], commit: 1 }),
    );
    peer.turn();
    expect(peer.appends).toHaveLength(3);
    peer.written();
    peer.turn();
    expect(peer.applied).toEqual([]);
    peer.written();
    peer.turn();
    expect(peer.applied).toEqual([]);
    peer.written();
    peer.turn();
    expect(peer.applied).toMatchObject([{ index: 1, term: 1 }]);
  });

  test("a restart applies nothing twice", () => {
    const peer = new Peer({ terms: [1, 1, 1], hard: { commit: 3 }, applied: 2 });
    peer.settle();
    expect(peer.applied.map((each) => each.index)).toEqual([3]);
  });
});

describe("lease reads (thesis §6.4.1)", () => {
  function leased(): [Peer, ...Peer[]] {
    const peers = cluster(3, { config: { checkQuorum: true, readOnly: "lease" } }) as [
      Peer,
      ...Peer[],
    ];
    peers[0].raft.campaign();
    exchange(peers);
    peers[0].raft.tick();
    exchange(peers);
    return peers;
  }

  test("ask nobody while a majority was heard recently", () => {
    const [leader] = leased();
    leader.raft.readIndex(1);
    expect(leader.take()).toEqual([]);
    expect(leader.reads).toEqual([{ index: 1, context: 1 }]);
  });

  test("ask when the last answered heartbeat is too old, though the leader still leads", () => {
    const [leader] = leased();
    leader.tick(9);
    expect(leader.raft.isLeader).toBe(true);
    leader.raft.readIndex(1);
    expect(typesOf(leader.take())).toEqual(["2:heartbeat", "3:heartbeat"]);
    expect(leader.reads).toEqual([]);
  });

  test("ask once a transfer let somebody past the lease", () => {
    const peers = leased();
    const [leader] = peers;
    leader.raft.transferLeadership(2);
    exchange(peers, (m) => m.type === MessageType.timeoutNow);
    leader.raft.readIndex(1);
    expect(typesOf(leader.take())).toEqual(["2:heartbeat", "3:heartbeat"]);
  });
});
