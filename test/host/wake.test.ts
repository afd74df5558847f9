/** How a group that nobody leads comes by a leader when somebody asks for it, without waiting for a timer. */
import { describe, expect, test } from "vitest";
import { MessageType, type Message } from "../../src/raft/types.ts";
import { beginning, ScriptedNode } from "./scripted_node.ts";

function asked(messages: readonly Message[]): number {
  return messages.filter((m) => m.type === MessageType.preVote).length;
}

async function following(): Promise<ScriptedNode> {
  const node = new ScriptedNode();
  await node.start();
  node.follow(5, [beginning]);
  return node;
}

describe("who is asked for its vote by one that has less", () => {
  const behind = { from: 2, term: 6, index: 1, logTerm: 5 };

  test("asks for votes itself in the same turn", async () => {
    const node = await following();
    node.pass(1_200, ["n2"]);
    node.take();
    const said = node.step("preVote", behind);
    expect(said.find((m) => m.type === MessageType.preVoteResponse)).toMatchObject({
      reject: true,
    });
    expect(asked(said)).toBe(2);
  });

  test("lets another one go first that may have it too, and follows a moment later", async () => {
    const node = await following();
    // In the group of `_system` the order of 1 and 3 begins with 3.
    expect(asked(node.step("preVote", behind))).toBe(0);
    node.pass(50);
    expect(asked(node.take())).toBe(2);
  });

  test("stays quiet while it knows of a leader, or has no more than that", async () => {
    const node = await following();
    node.step("preVote", { ...behind, from: 3 });
    node.pass(100);
    expect(asked(node.take())).toBe(0);
    node.step("preVote", { ...behind, index: 2 });
    node.pass(100);
    expect(asked(node.take())).toBe(0);
  });
});

describe("a campaign that is refused", () => {
  test("is tried again soon, and less often each time", async () => {
    const node = await following();
    node.pass(1_200, ["n3"]);
    node.host?.requests.read("_system", { consistency: "linearizable" }, () => {});
    node.turn();
    let said = node.take();
    for (let tried = 0; tried < 4; tried++) {
      expect(asked(said)).toBe(2);
      for (const from of [2, 3]) node.step("preVoteResponse", { from, term: 5, reject: true });
      const since = node.now;
      for (said = []; asked(said) === 0 && node.now < since + 1_000; said = node.take())
        node.pass(5, ["n3"]);
      // The pulse beats every 25 ms.
      const least = 25 * 2 ** tried;
      expect(node.now - since).toBeGreaterThanOrEqual(least);
      expect(node.now - since).toBeLessThanOrEqual(2 * least + 25);
    }
  });
});
