/** What a node promises is on its disk, and what is on its disk it still has after any crash: on one real NodeHost. */
import { describe, expect, test } from "vitest";
import { ItemKind } from "../../src/host/codec.ts";
import { SUPPORT_MS } from "../../src/host/liveness.ts";
import { emptyConfState } from "../../src/raft/raft.ts";
import { MessageType, type Message } from "../../src/raft/types.ts";
import { message } from "../raft/helpers.ts";
import { rowsOf } from "./memory_environment.ts";
import { onlyPart } from "./snapshot_part.ts";
import {
  beginning,
  createTenant,
  entryOf,
  ScriptedNode,
  tenantOn,
  type ProposeResult,
} from "./scripted_node.ts";

async function started(tuning = {}): Promise<ScriptedNode> {
  const node = new ScriptedNode(tuning);
  await node.start();
  node.turn();
  return node;
}

const vote = { from: 2, term: 5, index: 9, logTerm: 4 };

function ofType(messages: readonly Message[], type: keyof typeof MessageType): Message[] {
  return messages.filter((m) => m.type === MessageType[type]);
}

function isOk(result: ProposeResult | null): boolean {
  return result !== null && "ok" in result && result.ok;
}

describe("a vote", () => {
  test("leaves when the journal has it, and binds after a crash", async () => {
    const node = await started();
    node.diskStalled = true;
    expect(node.step("requestVote", vote)).toEqual([]);
    node.written();
    expect(node.take()).toMatchObject([{ type: MessageType.requestVoteResponse, reject: false }]);
    await node.restart();
    node.now += SUPPORT_MS;
    expect(node.replica().raft.status()).toMatchObject({ term: 5, vote: 2 });
    expect(node.step("requestVote", { ...vote, from: 3 })).toMatchObject([{ reject: true }]);
  });

  test("that was lost in a crash was never given", async () => {
    const node = await started();
    node.diskStalled = true;
    node.step("requestVote", vote);
    await node.restart({ kind: "none" });
    node.now += SUPPORT_MS;
    expect(node.step("requestVote", { ...vote, from: 3 })).toMatchObject([{ reject: false }]);
  });

  test("and its term are one record: a crash anywhere in the write leaves both or neither", async () => {
    const seen = new Set<string>();
    for (let kept = 0; kept <= 72; kept += 3) {
      const node = await started();
      node.diskStalled = true;
      node.step("requestVote", vote);
      await node.restart({ kind: "prefix", bytes: kept });
      const { term, vote: given } = node.replica().raft.status();
      seen.add(`${term}/${given}`);
    }
    expect([...seen].sort()).toEqual(["0/0", "5/2"]);
  });

  test("and its term are kept through checkpoints too, whether the commit under way survives or not", async () => {
    for (const survives of [true, false]) {
      const node = await started({ checkpointBytes: 1 });
      node.follow(5, [beginning]);
      node.commitsStalled = true;
      node.pass(200);
      node.step("requestVote", { ...vote, term: 8, logTerm: 5, context: 1 });
      expect(node.replica().raft.status()).toMatchObject({ term: 8, vote: 2 });
      await node.restart(null, survives);
      expect(node.replica().raft.status()).toMatchObject({ term: 8, vote: 2, lastIndex: 2 });
    }
  });

  test("and its term are in the checkpoint that lets the journal forget them", async () => {
    const node = await started({ checkpointBytes: 1 });
    node.follow(5, [beginning]);
    node.step("requestVote", { ...vote, term: 8, logTerm: 5, context: 1 });
    const entries = [entryOf(3, 8, createTenant("acme"))];
    node.step("appendEntries", { term: 8, index: 2, logTerm: 5, entries, commit: 3 });
    node.pass(300);
    expect(node.replica().needsCheckpoint).toBe(false);
    await node.restart();
    expect(node.replica().raft.status()).toMatchObject({ term: 8, vote: 2, lastIndex: 3 });
  });
});

describe("entries", () => {
  test("are acknowledged when the journal has them, and are there after a crash", async () => {
    const node = await started();
    node.diskStalled = true;
    const entries = [entryOf(1, 5, null), entryOf(2, 5, beginning)];
    expect(
      ofType(node.step("appendEntries", { term: 5, entries }), "appendEntriesResponse"),
    ).toEqual([]);
    node.written();
    expect(node.take()).toMatchObject([{ type: MessageType.appendEntriesResponse, index: 2 }]);
    await node.restart();
    expect(node.replica().raft.status()).toMatchObject({ term: 5, lastIndex: 2 });
  });

  test("are never durable before their term is", async () => {
    const seen = new Set<string>();
    for (let kept = 0; kept <= 400; kept += 4) {
      const node = await started();
      node.diskStalled = true;
      node.step("appendEntries", { term: 5, entries: [entryOf(1, 5, beginning)] });
      await node.restart({ kind: "prefix", bytes: kept });
      const { term, lastIndex } = node.replica().raft.status();
      seen.add(`${term}/${lastIndex}`);
    }
    expect([...seen].sort()).toEqual(["0/0", "5/1"]);
  });

  test("of a leader count for its quorum, and its client is answered, when its own journal has them", async () => {
    const node = await started();
    node.elect();
    expect(node.replica().raft.isLeader).toBe(true);
    node.diskStalled = true;
    const answer = node.propose(createTenant("acme"));
    node.pass(100);
    const index = node.replica().raft.lastIndex;
    node.step("appendEntriesResponse", { from: 2, term: node.replica().raft.term, index });
    expect(node.replica().raft.commitIndex).toBeLessThan(index);
    expect(answer.result).toBeNull();
    node.written();
    expect(node.replica().raft.commitIndex).toBe(index);
    expect(isOk(answer.result)).toBe(true);
  });

  test("acknowledged while a checkpoint is written are not forgotten with it", async () => {
    const node = await started({ checkpointBytes: 1 });
    node.follow(5, [beginning]);
    node.commitsStalled = true;
    node.pass(200);
    const entries = [entryOf(3, 5, createTenant("acme"))];
    node.step("appendEntries", { term: 5, index: 2, logTerm: 5, entries, commit: 2 });
    node.written();
    // What the journal may forget rides on the next write.
    node.step("requestVote", { ...vote, term: 8, logTerm: 5, context: 1 });
    await node.restart();
    expect(node.replica().raft.status()).toMatchObject({ term: 8, vote: 2, lastIndex: 3 });
  });

  test("are applied once each, whichever moment of a checkpoint a crash hits", async () => {
    const actions = [
      beginning,
      createTenant("acme"),
      { op: "directory.delete", tenant: "acme", purge: false } as const,
      { op: "directory.undelete", tenant: "acme" } as const,
    ];
    for (const moment of ["before", "during", "after"] as const) {
      for (const survives of [true, false]) {
        const node = await started({ checkpointBytes: 1, logKeptEntries: 10 });
        node.commitsStalled = moment !== "after";
        const last = node.follow(5, actions);
        if (moment !== "before") node.pass(300);
        const { revision } = node.replica().view;
        expect(revision).toBe(4);
        const rows = rowsOf(node.replica());
        await node.restart(null, survives);
        node.hear("n2", "n3");
        node.step("heartbeat", { from: 2, term: 5, commit: last });
        expect(node.replica().raft.appliedIndex).toBe(last);
        expect(rowsOf(node.replica())).toEqual(rows);
      }
    }
  });
});

describe("a snapshot", () => {
  const newerRows = async (): Promise<readonly (readonly [string, string])[]> => {
    const other = await started();
    const gone = { op: "directory.delete", tenant: "acme", purge: true } as const;
    other.follow(5, [beginning, createTenant("acme"), gone, createTenant("beta")]);
    return rowsOf(other.replica());
  };
  const confState = { ...emptyConfState(), voters: [1, 2, 3] };
  const meta = { index: 40, term: 6, confState };
  let transfers = 0;

  function send(node: ScriptedNode, rows: readonly (readonly [string, string])[]): void {
    const install = message("installSnapshot", { to: 1, from: 2, term: 6, snapshot: meta });
    // Numbers of transfers are never used twice.
    node.frame(
      "n2",
      "snapshot",
      ItemKind.snapshot,
      onlyPart(install, rows, { transfer: ++transfers }),
    );
  }

  test("is acknowledged when the environment holds it, and a crash at any step leaves the old state or the new", async () => {
    const rows = await newerRows();
    const seen = new Set<number>();
    for (const moment of ["offered", "committed", "lost", "installed"] as const) {
      const node = await started({ checkpointBytes: 1 });
      node.follow(5, [beginning, createTenant("acme")]);
      node.pass(300);
      const before = rowsOf(node.replica());
      node.commitsStalled = true;
      node.take();
      if (moment === "offered") node.diskStalled = true;
      send(node, rows);
      expect(ofType(node.take(), "appendEntriesResponse")).toEqual([]);
      if (moment === "installed") {
        node.written();
        expect(ofType(node.take(), "appendEntriesResponse")).toMatchObject([{ index: 40 }]);
      }
      await node.restart(null, moment === "committed");
      const replica = node.replica();
      const { applied, term, lastIndex } = replica.raft.status();
      seen.add(lastIndex);
      if (lastIndex === 40) {
        expect({ applied, term }).toEqual({ applied: 40, term: 6 });
        expect(rowsOf(replica)).toEqual(rows);
        expect(replica.raft.confState.voters).toEqual([1, 2, 3]);
        expect(replica.log.firstIndex()).toBe(41);
      } else {
        expect(moment).not.toBe("installed");
        node.hear("n2", "n3");
        node.step("heartbeat", { from: 2, term: 5, commit: 3 });
        expect(rowsOf(replica)).toEqual(before);
      }
      // Either way it goes on from there.
      node.hear("n2", "n3");
      send(node, rows);
      node.take();
      expect(node.replica().raft.status()).toMatchObject({ commit: 40, lastIndex: 40 });
      const entries = [entryOf(41, 6, createTenant("gamma"))];
      const next = { from: 2, term: 6, index: 40, logTerm: 6, entries, commit: 41 };
      expect(ofType(node.step("appendEntries", next), "appendEntriesResponse")).toMatchObject([
        { index: 41, reject: false },
      ]);
      expect(node.host?.directory.tenant("gamma")).toBeDefined();
    }
    expect([...seen].sort((a, b) => a - b)).toEqual([3, 40]);
  });

  test("of a later term leaves no earlier term behind it in the journal", async () => {
    const rows = await newerRows();
    const node = await started();
    node.follow(5, [beginning]);
    const entries = [entryOf(3, 5, createTenant("acme"))];
    node.step("appendEntries", { term: 5, index: 2, logTerm: 5, entries, commit: 2 });
    // A commit index alone is not written by itself: it rides on what comes next.
    node.step("heartbeat", { term: 5, commit: 3 });
    send(node, rows);
    expect(node.replica().raft.status()).toMatchObject({ term: 6, lastIndex: 40 });
    const next = [entryOf(41, 6, createTenant("gamma"))];
    node.step("appendEntries", { term: 6, index: 40, logTerm: 6, entries: next, commit: 40 });
    await node.restart();
    expect(node.replica().halted).toBeNull();
    expect(node.replica().raft.status()).toMatchObject({ term: 6, lastIndex: 41 });
  });

  test("that is being installed keeps what follows it from the journal, and applying waits", async () => {
    const rows = await newerRows();
    const node = await started();
    node.follow(5, [beginning]);
    node.commitsStalled = true;
    send(node, rows);
    const entries = [entryOf(41, 6, createTenant("gamma"))];
    const next = { from: 2, term: 6, index: 40, logTerm: 6, entries, commit: 41 };
    node.take();
    expect(ofType(node.step("appendEntries", next), "appendEntriesResponse")).toEqual([]);
    expect(node.host?.directory.tenant("gamma")).toBeUndefined();
    expect(node.replica().raft.appliedIndex).toBe(2);
    node.written();
    node.pass(50);
    expect(node.replica().raft.appliedIndex).toBe(41);
    expect(node.host?.directory.tenant("beta")).toBeDefined();
    expect(node.host?.directory.tenant("gamma")).toBeDefined();
  });

  test("that is being installed leaves what was applied to be seen, not what the last checkpoint had", async () => {
    const rows = await newerRows();
    const node = await started();
    node.follow(5, [beginning, createTenant("alpha")]);
    node.commitsStalled = true;
    send(node, rows);
    for (const isShown of [false, true]) {
      if (isShown) node.commitsShow();
      const directory = node.host?.directory;
      expect(directory?.tenant("alpha")).toBeDefined();
      expect(directory?.tenants("", 9).map(({ tenant }) => tenant)).toEqual(["alpha"]);
      expect(directory?.tenant("beta")).toBeUndefined();
    }
    node.written();
    expect(node.host?.directory.tenant("alpha")).toBeUndefined();
    expect(node.host?.directory.tenant("beta")).toBeDefined();
  });
});

describe("what a new replica promises", () => {
  const asks = { term: 1, from: 2 };
  const follows = { term: 1, from: 2, entries: [entryOf(1, 1, null)] };

  /** It votes, and accepts an entry; the journal has both. */
  async function promising() {
    const node = await started();
    node.namesStalled = true;
    // Who is named first asks for votes itself.
    node.follow(5, [beginning, createTenant("acme", ["n2", "n1", "n3"])]);
    const { group, incarnation, to, idOf } = tenantOn(node, "acme");
    const of = { group, incarnation, from: "n2" };
    const said = [
      ...node.step("requestVote", { ...asks, to, from: idOf("n2") }, of),
      ...node.step("appendEntries", { ...follows, to, from: idOf("n2") }, of),
    ];
    expect(node.replica(group).raft.status()).toMatchObject({ term: 1, lastIndex: 1 });
    return { node, group, said, vote: idOf("n2") };
  }

  test("leaves when its environment's name is durable too, in its order", async () => {
    const { node, group, said } = await promising();
    expect(said).toEqual([]);
    node.pass(500);
    expect(node.take(group)).toEqual([]);
    // Others do not wait for it.
    expect(node.step("heartbeat", { from: 2, term: 5 })).toHaveLength(1);
    node.keepNames();
    expect(node.take(group)).toMatchObject([
      { type: MessageType.requestVoteResponse, reject: false },
      { type: MessageType.appendEntriesResponse, index: 1, reject: false },
    ]);
  });

  test("is in the journal where a loss of power took the name", async () => {
    const { node, group, vote } = await promising();
    await node.restart();
    node.pass(100);
    expect(node.stored.size).toBe(2);
    expect(node.replica(group).raft.status()).toMatchObject({ term: 1, vote, lastIndex: 1 });
  });

  test("never leaves where the name could not be made durable, and the node ends", async () => {
    const { node, group } = await promising();
    node.keepNames(new Error("EIO"));
    expect(node.take(group)).toEqual([]);
    expect(node.fatal[0]?.message).toContain("acme: EIO");
  });
});

describe("a storage that fails", () => {
  test("ends the node: no vote leaves, nothing is tried again", async () => {
    const node = await started();
    node.disk.failNext("write", new Error("EIO"));
    expect(node.step("requestVote", vote)).toEqual([]);
    expect(node.fatal).toHaveLength(1);
    const { writes } = node.disk.counts;
    expect(() => node.step("requestVote", { ...vote, term: 6 })).toThrow("Journal is stopped");
    expect(node.take()).toEqual([]);
    expect(node.disk.counts.writes).toBe(writes);
  });

  test("ends the node when it is an environment, and the journal keeps what that lacks", async () => {
    const node = await started({ checkpointBytes: 1 });
    node.commitError = new Error("EIO");
    const last = node.follow(5, [beginning, createTenant("acme")]);
    node.pass(200);
    expect(node.fatal.map((error) => error.message)).toMatchObject([
      expect.stringContaining("EIO"),
    ]);
    await node.restart();
    expect(node.replica().raft.lastIndex).toBe(last);
  });

  test("that shows damage stops the replica: it neither votes, nor acknowledges, nor campaigns", async () => {
    const node = await started();
    const name = node.disk.list()[0] as string;
    const vote5 = node.disk.read(name).length;
    node.step("requestVote", vote);
    node.step("requestVote", { ...vote, term: 6 });
    node.crash();
    // A bit in the term of the earlier vote, behind the header of its record.
    node.disk.flipBit(name, vote5 + 34, 0);
    await node.start();
    expect(node.replica().halted ?? "").toContain("damaged");
    const asked = [
      ...node.step("requestVote", { ...vote, from: 3 }),
      ...node.step("preVote", { ...vote, from: 3, term: 9 }),
      ...node.step("appendEntries", { from: 3, term: 9, entries: [entryOf(1, 9, null)] }),
    ];
    expect(asked.filter((m) => m.type !== MessageType.forgetLeader)).toEqual([]);
    node.pass(10_000, []);
    expect(node.take()).toEqual([]);
    expect(node.fatal).toEqual([]);
  });
});
