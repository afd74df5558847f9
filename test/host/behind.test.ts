/** What a node does whose checkpoints do not keep up with its journal: on one real NodeHost whose commits stand still. */
import { expect, test } from "vitest";
import { Problem } from "../../src/api/problems.ts";
import type { Command } from "../../src/machine/command.ts";
import { MessageType } from "../../src/raft/types.ts";
import {
  command,
  createTenant,
  entryOf,
  ScriptedNode,
  tenantOn,
  type ProposeResult,
} from "./scripted_node.ts";

const journalSegmentsMax = 6;

/** Leads the directory, a tenant that is on this node alone, and is followed by nobody else's. */
async function nodeWithTenants(): Promise<ScriptedNode> {
  const node = new ScriptedNode({ journalSegments: 1, journalSegmentsMax }, 4_096);
  await node.start();
  node.elect();
  for (const action of [createTenant("acme", ["n1"]), createTenant("far")]) {
    const made = node.propose(action);
    node.acknowledge(2);
    expect(made.result).toMatchObject({ ok: true });
  }
  node.pass(200);
  return node;
}

function byClient(action: Command["action"]): Command {
  return { ...command(action), actor: { kind: "root", keyId: "root" } };
}

let texts = 0;

/** A config with a text that nearly fills a segment. */
function put(node: ScriptedNode, name: string): ProposeResult | null {
  const text = `${++texts} `.padEnd(3_000, "x");
  const content = { text, hash: `sha256:${texts}`, bytes: text.length };
  const action = { op: "config.put", namespace: "app", name, format: "text", content } as const;
  return node.proposeTo("acme", byClient(action)).result;
}

/** Until a change is refused. @returns how many were taken */
function fill(node: ScriptedNode): number {
  for (let taken = 0; taken < 100; taken++) {
    const result = put(node, `c${taken}`);
    if (result instanceof Problem) return taken;
    expect(result).toMatchObject({ ok: true });
    node.pass(25);
  }
  throw new Error("Nothing was refused");
}

function segments(node: ScriptedNode): number {
  return node.host?.cluster().journal.segments ?? 0;
}

test("changes are refused with the journal at its bound, and taken again when it has gone down", async () => {
  const node = await nodeWithTenants();
  node.commitsStalled = true;
  expect(fill(node)).toBeGreaterThan(journalSegmentsMax / 2);
  expect(node.logged).toContain("checkpoints.behind");
  const { revision } = node.host?.viewNow("acme") ?? {};
  const { lastIndex } = node.replica(tenantOn(node, "acme").group).raft;
  for (let at = 0; at < 20; at++) {
    const refused = put(node, `more${at}`);
    expect(refused).toBeInstanceOf(Problem);
    expect(refused).toMatchObject({ code: "overloaded", status: 503, retryAfter: 1 });
    expect((refused as Problem).message).toMatch(
      /MiB of journal .* nothing was changed; try again/,
    );
    node.pass(25);
  }
  // One more than the bound when that is noticed, and the one that was being filled.
  expect(segments(node)).toBeLessThanOrEqual(journalSegmentsMax + 2);
  expect(node.host?.viewNow("acme")?.revision).toBe(revision);
  expect(node.replica(tenantOn(node, "acme").group).raft.lastIndex).toBe(lastIndex);
  // What takes no room, and what nodes do by themselves, goes on.
  const removal = { op: "config.delete", namespace: "app", name: "c0" } as const;
  expect(node.proposeTo("acme", byClient(removal)).result).toMatchObject({ ok: true });
  const made = node.propose(createTenant("other", ["n2"]));
  node.acknowledge(2);
  expect(made.result).toMatchObject({ ok: true });

  node.written();
  node.pass(500);
  expect(node.logged).toContain("checkpoints.caught_up");
  expect(segments(node)).toBeLessThan(journalSegmentsMax);
  expect(put(node, "after")).toMatchObject({ ok: true });
  expect(node.fatal).toEqual([]);
});

test("entries of other leaders are as if lost until then, votes are given", async () => {
  const node = await nodeWithTenants();
  node.commitsStalled = true;
  fill(node);
  const { group, incarnation, to, idOf } = tenantOn(node, "far");
  const from = idOf("n2");
  const place = { group, incarnation, from: "n2" };
  const append = { to, from, term: 5, entries: [entryOf(1, 5, null)] };
  const answers = (fields: object, type: "appendEntries" | "requestVote"): number[] => {
    // What it said before, when it asked for votes itself.
    node.take(group);
    return node.step(type, { to, from, term: 5, ...fields }, place).map((message) => message.type);
  };
  expect(answers({ index: 0, logTerm: 0 }, "requestVote")).toEqual([
    MessageType.requestVoteResponse,
  ]);
  expect(answers(append, "appendEntries")).toEqual([]);
  expect(node.replica(group).raft.lastIndex).toBe(0);

  node.written();
  node.pass(500);
  expect(answers(append, "appendEntries")).toEqual([MessageType.appendEntriesResponse]);
});

test("what a stopped replica alone pins stops nobody else", async () => {
  const node = await nodeWithTenants();
  // Something of it is in the journal, and no checkpoint of it will come.
  node.commitsStalled = true;
  const stopped = node.replica(tenantOn(node, "far").group);
  expect(stopped.needsCheckpoint).toBe(true);
  stopped.halt("stopped by the test");
  node.written();
  for (let at = 0; at < 3 * journalSegmentsMax; at++) {
    expect(put(node, `c${at}`)).toMatchObject({ ok: true });
    node.pass(50);
  }
  expect(segments(node)).toBeGreaterThan(journalSegmentsMax);
});
