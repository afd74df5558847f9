/** How a candidate counts: each voter once, by what it said first (Raft §5.2). */
import { describe, expect, test } from "vitest";
import { Peer } from "./helpers.ts";

describe("a candidate of five", () => {
  function candidate(): { peer: Peer; answer: (from: number, reject: boolean) => void } {
    const peer = new Peer({ voters: [1, 2, 3, 4, 5] });
    peer.raft.campaign();
    peer.take();
    return {
      peer,
      answer: (from, reject) => peer.step("requestVoteResponse", { from, reject, term: 1 }),
    };
  }

  test("keeps a vote whose giver is heard again with a refusal", () => {
    const { peer, answer } = candidate();
    answer(2, false);
    answer(2, true);
    answer(3, false);
    expect(peer.raft.role).toBe("leader");
  });

  test("keeps a refusal whose giver is heard again with a vote", () => {
    const { peer, answer } = candidate();
    answer(2, true);
    answer(2, false);
    answer(3, false);
    expect(peer.raft.role).toBe("candidate");
  });

  test("counts a vote that arrives twice once", () => {
    const { peer, answer } = candidate();
    for (let times = 0; times < 5; times++) answer(2, false);
    expect(peer.raft.role).toBe("candidate");
  });
});
