/**
 * What a node does with what is not for it, with what it cannot go on with, and with callers whose change or read goes
 * another way than they thought: on one real NodeHost among played ones.
 */
import { describe, expect, test } from "vitest";
import { ItemKind } from "../../src/host/codec.ts";
import type { ProposalResult } from "../../src/host/replica.ts";
import { Method, Rpc } from "../../src/host/rpc.ts";
import { emptyConfState } from "../../src/raft/raft.ts";
import { MessageType, type Message } from "../../src/raft/types.ts";
import { message } from "../raft/helpers.ts";
import { rowsOf } from "./memory_environment.ts";
import { onlyPart } from "./snapshot_part.ts";
import {
  beginning,
  command,
  createTenant,
  entryOf,
  ScriptedNode,
  tenantOn,
} from "./scripted_node.ts";

async function started(tuning = {}): Promise<ScriptedNode> {
  const node = new ScriptedNode(tuning);
  await node.start();
  return node;
}

function ofType(messages: readonly Message[], type: keyof typeof MessageType): Message[] {
  return messages.filter((m) => m.type === MessageType[type]);
}

describe("frames", () => {
  test("of another group, incarnation, replica or node than they say change nothing", async () => {
    const node = await started();
    node.follow(5, [beginning]);
    const before = node.replica().raft.status();
    const later = { from: 3, term: 9, index: 2, logTerm: 5 };
    for (const [fields, wrong] of [
      [{ to: 2 }, {}],
      [{}, { incarnation: 2 }],
      [{}, { from: "n2" }],
      [{}, { group: 77 }],
    ] as const) {
      expect(node.step("heartbeat", { ...later, ...fields }, wrong)).toEqual([]);
      expect(node.step("requestVote", { ...later, context: 1, ...fields }, wrong)).toEqual([]);
    }
    expect(node.replica().raft.status()).toEqual(before);
    expect([...(node.host?.replicas() ?? [])]).toHaveLength(1);
    node.step("heartbeat", later);
    expect(node.replica().raft.term).toBe(9);
  });

  test("of a replica that the directory never placed are not taken, of one that joins they are", async () => {
    const node = await started();
    const last = node.follow(5, [beginning, createTenant("acme")]);
    const { group, incarnation, to } = tenantOn(node, "acme");
    const of = { group, incarnation, from: "n3" };
    const speaks = (from: number, term: number): void => {
      node.step("heartbeat", { to, from, term }, of);
    };
    speaks(3, 3);
    expect(node.replica(group).raft.term).toBe(3);
    for (const id of [2, 4, 7]) speaks(id, 9);
    expect(node.replica(group).raft.term).toBe(3);
    // n3 lost its disk: it is replica 4 from now on.
    const nodes = ["n1", "n2", "n3"];
    const move = { op: "directory.move", tenant: "acme", nodes, lost: [3], generation: 0 } as const;
    const entries = [entryOf(last + 1, 5, move)];
    const fields = { from: 2, term: 5, index: last, logTerm: 5, entries, commit: last + 1 };
    node.step("appendEntries", fields);
    speaks(4, 9);
    expect(node.replica(group).raft.term).toBe(9);
  });

  test("that say a node is alive say nothing of any group", async () => {
    const node = await started();
    node.step("appendEntries", {
      term: 5,
      entries: [entryOf(1, 5, null), entryOf(2, 5, beginning)],
      commit: 1,
    });
    const before = node.replica().raft.status();
    node.pass(5_000, ["n2", "n3"]);
    expect(node.replica().raft.status()).toEqual(before);
    expect(before.commit).toBe(1);
  });

  test("of an earlier life of their node do not make it look alive", async () => {
    const node = await started();
    const nothing = new Uint8Array(0);
    node.frame("n2", "control", ItemKind.heartbeat, nothing, 2);
    expect(node.host?.liveness.supports("n2")).toBe(true);
    for (let late = 0; late < 15; late++) {
      node.pass(100, []);
      node.frame("n2", "control", ItemKind.heartbeat, nothing, 1);
    }
    expect(node.host?.liveness.supports("n2")).toBe(false);
  });

  test("that are cut short or of unknown kind are dropped, and the node goes on", async () => {
    const node = await started();
    node.frame("n2", "append", ItemKind.raft, Uint8Array.of(1, 2, 3));
    node.frame("n2", "append", 99, Uint8Array.of(1, 2, 3));
    expect(node.logged).toContain("frame.malformed");
    expect(node.replica().halted).toBeNull();
    expect(node.step("requestVote", { term: 5 })).toMatchObject([{ reject: false }]);
  });
});

describe("a replica that cannot go on", () => {
  test("because entries it had acknowledged are gone stops alone, and its node and neighbours do not", async () => {
    const node = await started();
    node.follow(5, [beginning, createTenant("acme")]);
    const { group, incarnation, to, idOf } = tenantOn(node, "acme");
    node.step("heartbeat", { to, from: idOf("n2"), term: 3 }, { group, incarnation, from: "n2" });
    expect(node.replica(group).raft.term).toBe(3);
    node.step(
      "heartbeat",
      { to, from: idOf("n2"), term: 3, commit: 7 },
      { group, incarnation, from: "n2" },
    );
    expect(node.replica(group).halted ?? "").toContain("the log ends at 0");
    expect(node.fatal).toEqual([]);
    const asks = { to, from: idOf("n3"), term: 9, index: 9, logTerm: 9 };
    const answered = node.step("requestVote", asks, { group, incarnation, from: "n3" });
    expect(answered.filter((m) => m.type !== MessageType.forgetLeader)).toEqual([]);
    node.pass(5_000, ["n3"]);
    expect(node.take(group)).toEqual([]);
    // The system's group is the neighbour: it answers.
    const entries = [entryOf(4, 5, createTenant("beta"))];
    const next = { term: 5, index: 3, logTerm: 5, entries, commit: 4 };
    expect(ofType(node.step("appendEntries", next), "appendEntriesResponse")).toHaveLength(1);
    expect(node.host?.directory.tenant("beta")).toBeDefined();
  });

  test("as a leader says so, since its node being alive would keep the others waiting", async () => {
    const node = await started();
    node.elect();
    node.take();
    const { term } = node.replica().raft;
    const told = node.step("heartbeat", { from: 3, term });
    expect(node.replica().halted ?? "").toContain(`leads term ${term}`);
    expect(ofType(told, "forgetLeader").map((m) => [m.to, m.term])).toEqual([
      [2, term],
      [3, term],
    ]);
    // Again to whoever still takes it for the leader.
    const again = node.step("heartbeatResponse", { from: 2, term });
    expect(again).toMatchObject([{ type: MessageType.forgetLeader, to: 2, term }]);
  });
});

describe("a replica that sleeps", () => {
  test("remembers its vote when it wakes, and takes nothing while it is being closed", async () => {
    const node = await started({ sleepAfterMs: 500 });
    node.follow(5, [beginning, createTenant("acme")]);
    const { group, incarnation, to, idOf } = tenantOn(node, "acme");
    const asks = { to, term: 3, index: 9, logTerm: 2 };
    const of = (from: string) => ({ group, incarnation, from });
    const awake = (): boolean =>
      [...(node.host?.replicas() ?? [])].some((replica) => replica.group === group);
    const first = node.step("requestVote", { ...asks, from: idOf("n2") }, of("n2"));
    expect(ofType(first, "requestVoteResponse")).toMatchObject([{ term: 3, reject: false }]);
    node.step("heartbeat", { to, from: idOf("n2"), term: 3 }, of("n2"));
    for (let waited = 0; awake() && waited < 100; waited++) node.pass(100);
    expect(awake()).toBe(false);
    expect(node.step("requestVote", { ...asks, from: idOf("n3") }, of("n3"))).toEqual([]);
    expect(awake()).toBe(false);
    // Who takes it for the leader is told that it leads no more, of a term that it led: it may yet lead a later one.
    const expects = { to, from: idOf("n2"), term: 9 };
    for (const [type, of3] of [
      ["heartbeatResponse", { logTerm: 3 }],
      ["heartbeatResponse", {}],
      ["appendEntriesResponse", {}],
    ] as const) {
      const told = node.step(type, { ...expects, ...of3 }, of("n2"));
      expect(told.map((m) => [m.type, m.term])).toEqual(
        "logTerm" in of3 ? [[MessageType.forgetLeader, 3]] : [],
      );
    }
    const follows = { ...expects, term: 3, index: 2 };
    expect(node.step("appendEntriesResponse", follows, of("n2"))).toMatchObject([
      { type: MessageType.forgetLeader, term: 3 },
    ]);
    expect(awake()).toBe(false);
    for (let turn = 0; turn < 8; turn++) await Promise.resolve();
    const later = node.step("requestVote", { ...asks, from: idOf("n3") }, of("n3"));
    expect(later).toMatchObject([{ term: 3, reject: true }]);
    expect(node.replica(group).raft.status()).toMatchObject({ term: 3, vote: idOf("n2") });
  });
});

describe("a read", () => {
  test("is served here when everything up to its index is applied here (thesis §6.4)", async () => {
    const node = await started();
    node.follow(5, [beginning]);
    let seen: boolean | null = null;
    node.host?.requests.read("_system", { consistency: "linearizable" }, () => {
      seen = node.host?.directory.tenant("acme") !== undefined;
    });
    node.turn();
    const [asked] = ofType(node.take(), "readIndex");
    expect(asked).toMatchObject({ to: 2 });
    node.step("readIndexResponse", { term: 5, index: 3, context: asked?.context ?? 0 });
    expect(seen).toBeNull();
    node.diskStalled = true;
    const entries = [entryOf(3, 5, createTenant("acme"))];
    node.step("appendEntries", { term: 5, index: 2, logTerm: 5, entries, commit: 3 });
    node.pass(200);
    expect(node.replica().raft.commitIndex).toBe(3);
    expect(seen).toBeNull();
    node.written();
    expect(seen).toBe(true);
  });

  test("of one who leads is not answered from memory: a majority has to confirm it, or it ends without", async () => {
    const node = await started();
    node.elect();
    node.take();
    const answers: string[] = [];
    node.host?.requests.read(
      "_system",
      { consistency: "linearizable", timeoutMs: 900 },
      (error) => void answers.push(error?.code ?? "ok"),
    );
    node.turn();
    const beats = ofType(node.take(), "heartbeat");
    expect(beats.map((m) => m.to)).toEqual([2, 3]);
    expect(answers).toEqual([]);
    node.pass(1_000);
    expect(answers).toEqual(["no-quorum"]);
  });
});

describe("who proposed here", () => {
  const data = (tenant: string): Uint8Array =>
    new TextEncoder().encode(JSON.stringify(command(createTenant(tenant))));

  /** Leads, and has proposed something that nobody else has yet. */
  async function proposed(): Promise<{ node: ScriptedNode; results: ProposalResult[] }> {
    const node = await started();
    node.elect();
    const results: ProposalResult[] = [];
    node.replica().propose(data("acme"), node.now + 2_000, (result) => results.push(result));
    node.pass(100);
    expect(results).toEqual([]);
    return { node, results };
  }

  test("learns that another entry took the place: it was not applied and never will be", async () => {
    const { node, results } = await proposed();
    const { term, lastIndex } = node.replica().raft.status();
    node.step("appendEntries", {
      from: 3,
      term: term + 1,
      index: lastIndex - 1,
      logTerm: term,
      entries: [entryOf(lastIndex, term + 1, createTenant("beta"))],
      commit: lastIndex,
    });
    expect(results).toEqual([{ kind: "lost" }]);
    expect(node.host?.directory.tenant("acme")).toBeUndefined();
    expect(node.host?.directory.tenant("beta")).toBeDefined();
  });

  test("is not told that it is lost because it was cut from this log: others may still hold it (figure 8)", async () => {
    const { node, results } = await proposed();
    const { term, lastIndex } = node.replica().raft.status();
    const original = node.replica().log.entries(lastIndex, lastIndex + 1, Infinity) ?? [];
    const from = { index: lastIndex - 1, logTerm: term, commit: lastIndex - 1 };
    const other = [entryOf(lastIndex, term + 1, createTenant("beta"))];
    node.step("appendEntries", { from: 3, term: term + 1, ...from, entries: other });
    expect(results.filter(({ kind }) => kind !== "unknown")).toEqual([]);
    const entries = [...original, entryOf(lastIndex + 1, term + 2, null)];
    const commit = lastIndex + 1;
    node.step("appendEntries", { from: 2, term: term + 2, ...from, entries, commit });
    expect(node.host?.directory.tenant("acme")).toBeDefined();
    expect(results).toHaveLength(1);
    expect(results[0]?.kind).not.toBe("lost");
  });

  test("learns the outcome also when another leader commits the entry", async () => {
    const { node, results } = await proposed();
    const { term, lastIndex } = node.replica().raft.status();
    node.step("appendEntries", {
      from: 3,
      term: term + 1,
      index: lastIndex,
      logTerm: term,
      entries: [entryOf(lastIndex + 1, term + 1, null)],
      commit: lastIndex + 1,
    });
    expect(results).toMatchObject([{ kind: "applied", outcome: { ok: true } }]);
  });

  test("learns that a snapshot went over it: how it was decided cannot be seen here", async () => {
    const { node, results } = await proposed();
    const { term } = node.replica().raft;
    const other = await started();
    other.follow(term, [beginning, createTenant("beta")]);
    const confState = { ...emptyConfState(), voters: [1, 2, 3] };
    const snapshot = { index: 50, term: term + 1, confState };
    const install = message("installSnapshot", { from: 3, term: term + 1, snapshot });
    const rows = rowsOf(other.replica());
    node.frame("n3", "snapshot", ItemKind.snapshot, onlyPart(install, rows));
    expect(node.replica().raft.appliedIndex).toBe(50);
    expect(results).toEqual([{ kind: "unknown" }]);
  });

  test("learns at its deadline that nobody knows, and nothing twice", async () => {
    const { node, results } = await proposed();
    node.pass(3_000);
    expect(results).toEqual([{ kind: "unknown" }]);
    node.acknowledge(2);
    expect(node.host?.directory.tenant("acme")).toBeDefined();
    expect(results).toHaveLength(1);
  });

  test("is not told that nothing was done when the replica stops", async () => {
    const { node, results } = await proposed();
    node.step("heartbeat", { from: 3, term: node.replica().raft.term });
    // It is in the log, and others may commit it.
    expect(results).toEqual([{ kind: "unknown" }]);
    const late: unknown[] = [];
    node.replica().propose(new Uint8Array(1), 0, (result) => late.push(result));
    expect(late).toMatchObject([{ kind: "halted" }]);
  });
});

describe("a snapshot that is here already", () => {
  test("is answered by Raft, over a restart too: a refusal alone would bring it again for ever", async () => {
    const node = await started();
    node.follow(5, [beginning, createTenant("beta")]);
    const confState = { ...emptyConfState(), voters: [1, 2, 3] };
    const snapshot = { index: 50, term: 6, confState };
    const install = message("installSnapshot", { from: 3, term: 6, snapshot });
    const rows = rowsOf(node.replica());
    const arrives = (transfer: number): Message[] => {
      node.take();
      node.frame("n3", "snapshot", ItemKind.snapshot, onlyPart(install, rows, { transfer }));
      return ofType(node.take(), "appendEntriesResponse");
    };
    expect(arrives(1)).toMatchObject([{ to: 3, index: 50, reject: false }]);
    expect(arrives(2)).toMatchObject([{ to: 3, index: 50, reject: false }]);
    node.crash();
    await node.start();
    expect(arrives(3)).toMatchObject([{ to: 3, index: 50, reject: false }]);
  });
});

describe("an answer", () => {
  test("to a call of an earlier life of this node is not taken for one to a call of this life", () => {
    const sent: Uint8Array[] = [];
    const queue = (_node: string, item: Uint8Array): void => void sent.push(item.slice());
    const respond: ((bytes: Uint8Array) => void)[] = [];
    const answering = new Rpc(1, queue);
    answering.serve(Method.propose, (_from, _payload, done) => void respond.push(done));
    const results: string[] = [];
    for (const boot of [1, 2]) {
      const rpc = new Rpc(boot, queue);
      rpc.call("n2", Method.propose, new Uint8Array(1), 100, ({ kind }) => results.push(kind));
      answering.receive("n1", boot, sent.pop() as Uint8Array);
      if (boot === 1) continue;
      respond[0]?.(new Uint8Array(1));
      rpc.receive("n2", 1, sent.pop() as Uint8Array);
      expect(results).toEqual([]);
      respond[1]?.(new Uint8Array(1));
      rpc.receive("n2", 1, sent.pop() as Uint8Array);
      expect(results).toEqual(["ok"]);
    }
  });
});

describe("a change that left for the leader and was not answered", () => {
  /** Follows n2, hands a change on to it, and hears no more of n2. */
  async function forwarded(idempotency?: string) {
    const node = await started();
    node.follow(5, [beginning]);
    node.take();
    const answer = node.propose(createTenant("acme"), idempotency);
    const sent = node.takeItems(ItemKind.rpc);
    expect(sent.map(({ to }) => to)).toEqual(["n2"]);
    node.pass(1_500, ["n3"]);
    return { node, answer };
  }

  test("is of unknown outcome, and not sent again", async () => {
    const { node, answer } = await forwarded();
    expect(answer.result).toMatchObject({ code: "outcome-unknown" });
    node.step("heartbeat", { from: 3, term: 9, commit: 2 });
    node.pass(500, ["n3"]);
    expect(node.takeItems(ItemKind.rpc)).toEqual([]);
  });

  test("goes to the next leader when its key keeps it from being done twice", async () => {
    const { node, answer } = await forwarded("once");
    expect(answer.result).toBeNull();
    node.takeItems(ItemKind.rpc);
    node.step("heartbeat", { from: 3, term: 9, commit: 2 });
    node.pass(200, ["n3"]);
    const again = node.takeItems(ItemKind.rpc);
    expect(again.map(({ to }) => to)).toEqual(["n3"]);
    node.pass(3_000, ["n3"]);
    expect(answer.result).toMatchObject({ code: "outcome-unknown" });
  });
});
