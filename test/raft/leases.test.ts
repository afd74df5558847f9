/** Leases from support between nodes: who is bound to a leader, and when that leader may read by itself. */
import { describe, expect, test } from "vitest";
import {
  ChangeKind,
  type Bond,
  type Leadership,
  type LeaseSupport,
  type Message,
} from "../../src/raft/types.ts";
import { bytes, cluster, exchange, Peer, typesOf } from "./helpers.ts";

/** Everybody's node vouches for everybody's in the epochs named here, which the tests end and begin. */
class Support {
  /** `from>to`: the epoch in which the node of `from` vouches for that of `to`. */
  readonly epochs = new Map<string, number>();
  barred = false;

  constructor(ids: readonly number[]) {
    for (const from of ids) for (const to of ids) if (from !== to) this.begin(from, to, 6 + to);
  }

  begin(from: number, to: number, epoch: number): void {
    this.epochs.set(`${from}>${to}`, epoch);
  }

  end(from: number, to: number): void {
    this.epochs.delete(`${from}>${to}`);
  }

  of(self: number): LeaseSupport {
    return {
      given: (id) => this.epochs.get(`${self}>${id}`) ?? 0,
      binds: (epoch) =>
        [...this.epochs].some(([pair, at]) => pair.startsWith(`${self}>`) && at === epoch),
      held: (id) => this.epochs.get(`${id}>${self}`) ?? 0,
      mayBeBound: () => this.barred,
    };
  }
}

function leased(): { support: Support; peers: [Peer, Peer, Peer] } {
  const support = new Support([1, 2, 3]);
  const peers = [1, 2, 3].map((id) => following(support, id));
  peers[0]?.raft.campaign();
  exchange(peers);
  return { support, peers: peers as [Peer, Peer, Peer] };
}

function following(support: Support, id: number, bond: Bond | null = null, term = 0): Peer {
  const supports = (other: number): boolean => support.epochs.has(`${id}>${other}`);
  const leases = support.of(id);
  return new Peer({
    id,
    hard: { term },
    config: { preVote: true, checkQuorum: true, supports, leases, bond },
  });
}

const asks = (from: number, term: number, context = 0): Partial<Message> => ({
  from,
  term,
  index: 9,
  logTerm: term - 1,
  context,
});

describe("a leader that a majority is bound to", () => {
  test("answers a read by itself, and asks a majority without it", () => {
    const { support, peers } = leased();
    const [leader] = peers;
    expect(leader.raft.leaseIndex).toBe(leader.raft.commitIndex);
    leader.raft.readIndex(1);
    expect(typesOf(leader.take())).toEqual([]);
    expect(leader.reads).toEqual([{ index: 1, context: 1 }]);
    support.end(2, 1);
    support.end(3, 1);
    expect(leader.raft.leaseIndex).toBe(-1);
    leader.raft.readIndex(2);
    expect(typesOf(leader.take())).toEqual(["2:heartbeat", "3:heartbeat"]);
  });

  test("reads nothing before the first commit of its own term (thesis §6.4)", () => {
    const support = new Support([1, 2, 3]);
    const peers = [1, 2, 3].map((id) => following(support, id));
    const [leader] = peers as [Peer, Peer, Peer];
    leader.raft.campaign();
    exchange(peers, (m) => m.to === 1 && typesOf([m])[0] === "1:appendEntriesResponse");
    expect(leader.raft.isLeader).toBe(true);
    for (const from of [2, 3])
      leader.step("heartbeatResponse", { from, term: leader.raft.term, index: 7 });
    expect(leader.raft.leaseIndex).toBe(-1);
  });

  test("counts an epoch, not a node: after a lapse its followers have to answer anew", () => {
    const { support, peers } = leased();
    const [leader] = peers;
    support.begin(2, 1, 18);
    expect(leader.raft.leaseIndex).toBe(1);
    support.begin(3, 1, 18);
    expect(leader.raft.leaseIndex).toBe(-1);
    leader.raft.propose(bytes("a"));
    exchange(peers);
    expect(leader.raft.leaseIndex).toBe(2);
    // An answer of the earlier epoch that comes late takes nothing back.
    leader.step("heartbeatResponse", { from: 2, term: leader.raft.term, index: 7 });
    leader.step("heartbeatResponse", { from: 3, term: leader.raft.term, index: 7 });
    expect(leader.raft.leaseIndex).toBe(2);
  });

  test("has no lease from its first timeoutNow on, nor while its members change", () => {
    const first = leased().peers;
    first[0].raft.transferLeadership(2);
    expect(first[0].raft.leaseIndex).toBe(-1);
    const [leader] = leased().peers;
    leader.raft.proposeConfChange({
      transition: "auto",
      changes: [{ kind: ChangeKind.addVoter, id: 4 }],
      context: bytes(""),
    });
    expect(leader.raft.leaseIndex).toBe(-1);
  });

  test("without support between nodes nobody has one", () => {
    const peers = cluster(3, { config: { preVote: true, checkQuorum: true } });
    peers[0]?.raft.campaign();
    exchange(peers);
    expect(peers[0]?.raft.leaseIndex).toBe(-1);
  });
});

describe("a leader that slept", () => {
  /** The leader of `leased`, from what is on its disk and what is kept of it. */
  function woken(
    support: Support,
    leadership: Leadership | null,
    hard: { term?: number; vote?: number } = {},
    terms = [1],
  ): Peer {
    return new Peer({
      id: 1,
      terms,
      applied: 1,
      hard: { term: 1, vote: 1, commit: 1, ...hard },
      config: {
        preVote: true,
        checkQuorum: true,
        supports: () => true,
        leases: support.of(1),
        leadership,
      },
    });
  }

  test("leads on, reads by its lease and replicates as if it had not, without a word", () => {
    const { support, peers } = leased();
    const [slept, ...followers] = peers;
    const leader = woken(support, slept.raft.leadership);
    expect(leader.take()).toEqual([]);
    expect(leader.raft.status()).toEqual(slept.raft.status());
    expect(leader.raft.leaseIndex).toBe(1);
    expect([leader.raft.idle, leader.raft.nobodyLacksAnything]).toEqual([true, true]);
    expect(leader.raft.propose(bytes("x"))).toMatchObject({ index: 2, term: 1 });
    exchange([leader, ...followers]);
    expect(leader.raft.commitIndex).toBe(2);
    expect(followers.map(({ raft }) => [raft.term, raft.commitIndex])).toEqual([
      [1, 2],
      [1, 2],
    ]);
  });

  test("takes no late confirmation of an earlier read for one of a later read", () => {
    const { support, peers } = leased();
    const [slept, ...followers] = peers;
    support.end(2, 1);
    support.end(3, 1);
    slept.raft.readIndex(7);
    const asked = slept.take();
    const late = asked.find(({ to }) => to === 2);
    for (const m of asked) followers.find(({ id }) => id === m.to)?.raft.step(m);
    for (const m of followers.flatMap((one) => one.take())) slept.raft.step(m);
    slept.take();
    expect(slept.reads).toMatchObject([{ context: 7 }]);
    const leader = woken(support, slept.raft.leadership);
    leader.raft.readIndex(1);
    const [again] = leader.take();
    leader.step("heartbeatResponse", { from: 2, term: 1, context: late?.context ?? 0 });
    expect(leader.reads).toEqual([]);
    leader.step("heartbeatResponse", { from: 2, term: 1, context: again?.context ?? 0 });
    expect(leader.reads).toMatchObject([{ context: 1 }]);
  });

  test("counts on no promise of an epoch that ended meanwhile", () => {
    const { support, peers } = leased();
    const { leadership } = peers[0].raft;
    for (const from of [2, 3]) support.begin(from, 1, 50 + from);
    const leader = woken(support, leadership);
    expect([leader.raft.isLeader, leader.raft.leaseIndex]).toEqual([true, -1]);
    leader.raft.readIndex(1);
    expect(typesOf(leader.take())).toEqual(["2:heartbeat", "3:heartbeat"]);
    leader.step("heartbeatResponse", { from: 2, term: 1, context: 1, index: 52 });
    expect(leader.raft.leaseIndex).toBe(1);
  });

  test("keeps nothing when it was handing over, somebody lacks something, or it followed", () => {
    const { peers } = leased();
    const [leader, follower] = peers;
    expect(follower.raft.leadership).toBeNull();
    leader.raft.propose(bytes("x"));
    leader.take();
    leader.step("appendEntriesResponse", { from: 2, term: 1, index: 2, commit: 2 });
    expect(leader.raft.leadership).toBeNull();
    leader.step("appendEntriesResponse", { from: 3, term: 1, index: 2, commit: 2 });
    expect(leader.raft.leadership).toMatchObject({ term: 1 });
    leader.raft.transferLeadership(2);
    leader.tick(20);
    expect([leader.raft.isLeader, leader.raft.isTransferring]).toEqual([true, false]);
    expect(leader.raft.leadership).toBeNull();
  });

  test("does not lead by what is kept of another term, vote or log", () => {
    const { support, peers } = leased();
    const { leadership } = peers[0].raft;
    for (const hard of [{ term: 2 }, { vote: 2 }])
      expect(woken(support, leadership, hard).raft.isLeader).toBe(false);
    expect(woken(support, leadership, {}, [1, 1]).raft.isLeader).toBe(false);
  });
});

describe("a follower that is bound", () => {
  test("stays so when a vote that a transfer forced is asked for once more, in the term that its leader won", () => {
    const support = new Support([1, 2, 3]);
    const follower = following(support, 2);
    const asked = { ...asks(3, 4, 1), to: 2 };
    expect(follower.step("requestVote", asked)).toMatchObject([{ to: 3, term: 4, reject: false }]);
    follower.step("heartbeat", { from: 1, term: 4 });
    const bond = { lead: 1, term: 4 };
    expect(follower.raft.bond).toMatchObject(bond);
    follower.step("requestVote", asked);
    expect(follower.raft.bond).toMatchObject(bond);
    expect(typesOf(follower.step("requestVote", asks(3, 5)))).toEqual(["1:heartbeatResponse"]);
    follower.step("requestVote", asks(3, 5, 1));
    expect(follower.raft.bond).toBe(null);
  });

  test("in a later term asks its leader about the term that it led, not about one that it may yet lead", () => {
    const { peers } = leased();
    const [, follower] = peers;
    const { term } = follower.raft;
    // It comes to know of a later term, which nobody leads yet.
    follower.step("appendEntriesResponse", { from: 3, term: term + 1 });
    const [asked] = follower.step("preVote", asks(3, term + 2));
    expect(asked).toMatchObject({ to: 1, term: term + 1, logTerm: term });
    follower.step("heartbeat", { from: 1, term: term + 1 });
    expect(follower.raft.bond).toMatchObject({ lead: 1, term: term + 1 });
    // The answer, which speaks of the earlier one, was under way for that long: the new promise stands.
    follower.step("forgetLeader", { from: 1, term: asked?.logTerm ?? 0 });
    expect(follower.raft.bond).toMatchObject({ lead: 1, term: term + 1 });
  });

  test("helps nobody else, whatever term they ask about, and does not campaign", () => {
    const { peers } = leased();
    const [, follower] = peers;
    const { term } = follower.raft;
    expect(typesOf(follower.step("preVote", asks(3, term + 1)))).toEqual(["1:heartbeatResponse"]);
    expect(typesOf(follower.step("requestVote", asks(3, term + 1)))).toEqual([
      "1:heartbeatResponse",
    ]);
    follower.raft.campaign();
    expect(typesOf(follower.take())).toEqual(["1:heartbeatResponse"]);
    expect(follower.raft.term).toBe(term);
  });

  test("stays so when it learns of a later term that nobody leads", () => {
    const { peers } = leased();
    const [, follower] = peers;
    const term = follower.raft.term + 1;
    follower.step("preVoteResponse", { from: 3, term, reject: true });
    expect(follower.raft.term).toBe(term);
    expect(follower.step("requestVote", asks(3, term))).toMatchObject([{ reject: true }]);
    expect(typesOf(follower.step("requestVote", asks(3, term + 1)))).toEqual([
      "1:heartbeatResponse",
    ]);
  });

  test("is free when support ends, its leader lets go, transfers, or another one leads", () => {
    const grants = (free: (follower: Peer, support: Support) => void): boolean => {
      const { support, peers } = leased();
      const [, follower] = peers;
      free(follower, support);
      follower.take();
      const answers = follower.step("requestVote", asks(3, follower.raft.term + 1));
      return answers.some((m) => typesOf([m])[0] === "3:requestVoteResponse" && !m.reject);
    };
    expect(grants(() => {})).toBe(false);
    expect(
      grants((follower, support) => {
        support.end(2, 1);
        follower.raft.forgetLeader();
      }),
    ).toBe(true);
    expect(grants((follower) => void follower.step("forgetLeader", { from: 1, term: 1 }))).toBe(
      true,
    );
    // A word from before it led this term.
    expect(grants((follower) => void follower.step("forgetLeader", { from: 1, term: 0 }))).toBe(
      false,
    );
    expect(
      grants((follower, support) => {
        support.end(2, 3);
        follower.step("heartbeat", { from: 3, term: 4 });
      }),
    ).toBe(true);
    const { peers } = leased();
    expect(peers[1].step("requestVote", asks(3, 2, 1))).toMatchObject([{ reject: false }]);
  });

  test("votes for the very leader that asks again", () => {
    const { peers } = leased();
    expect(peers[1].step("requestVote", asks(1, 2))).toMatchObject([{ to: 1, reject: false }]);
  });

  test("and slept is bound as before when it wakes, and knows its leader", () => {
    const { support, peers } = leased();
    const { bond } = peers[1].raft;
    expect(bond).toEqual({ lead: 1, term: 1, epoch: 7 });
    const woken = following(support, 2, bond, 1);
    expect(woken.raft.lead).toBe(1);
    expect(typesOf(woken.step("requestVote", asks(3, 2)))).toEqual(["1:heartbeatResponse"]);
    support.begin(2, 1, 18);
    expect(following(support, 2, bond, 1).raft.lead).toBe(0);
  });
});

describe("a replica whose node was started anew", () => {
  test("helps nobody before what it may have promised is over, but whom a leader sends", () => {
    const support = new Support([1, 2, 3]);
    support.barred = true;
    const peer = following(support, 2);
    expect(peer.step("requestVote", asks(3, 5))).toEqual([]);
    peer.raft.campaign();
    expect(peer.take()).toEqual([]);
    support.barred = false;
    expect(peer.step("requestVote", asks(3, 5))).toMatchObject([{ reject: false }]);
    support.barred = true;
    expect(following(support, 2).step("requestVote", asks(3, 5, 1))).toMatchObject([
      { reject: false },
    ]);
  });

  test("waits for nobody where it always was the only voter", () => {
    const support = new Support([1]);
    support.barred = true;
    const config = {
      preVote: true,
      checkQuorum: true,
      supports: () => false,
      leases: support.of(1),
    };
    const alone = new Peer({ voters: [1], config });
    alone.raft.campaign();
    alone.settle();
    expect(alone.raft.isLeader).toBe(true);
  });
});
