/**
 * What a majority says. Two questions only: how far is something acknowledged, and is a vote decided. A joint
 * configuration asks both of its halves (thesis §4.3) and believes the more cautious one.
 */
import { assert } from "../lib/assert.ts";
import type { ReplicaId } from "./types.ts";

/** What a voter answered so far. */
export const Vote = { none: 0, granted: 1, refused: 2 } as const;
export type Vote = (typeof Vote)[keyof typeof Vote];

export type VoteResult = "pending" | "lost" | "won";

/** Sorted in place on every call; quorums are small, and calls never nest. */
const scratch: number[] = [];

/**
 * The highest index that a majority of `voters` acknowledged. A voter that said nothing counts as 0. Without voters
 * nothing limits the index, so that an empty half of a joint configuration has no say.
 */
export function majorityCommitted(
  voters: readonly ReplicaId[],
  acknowledged: (id: ReplicaId) => number,
): number {
  const count = voters.length;
  if (count === 0) return Infinity;
  for (let i = 0; i < count; i++) {
    const index = acknowledged(voters[i] as ReplicaId);
    let at = i;
    while (at > 0 && (scratch[at - 1] as number) > index) {
      scratch[at] = scratch[at - 1] as number;
      at -= 1;
    }
    scratch[at] = index;
  }
  // Ascending: a majority has at least what stands this far from the end.
  const result = scratch[count - (Math.floor(count / 2) + 1)];
  assert(result !== undefined, "a quorum has a middle");
  return result;
}

export function jointCommitted(
  incoming: readonly ReplicaId[],
  outgoing: readonly ReplicaId[],
  acknowledged: (id: ReplicaId) => number,
): number {
  const first = majorityCommitted(incoming, acknowledged);
  return outgoing.length === 0 ? first : Math.min(first, majorityCommitted(outgoing, acknowledged));
}

/** Without voters a vote is won, for the same reason as above. */
export function majorityVote(
  voters: readonly ReplicaId[],
  vote: (id: ReplicaId) => Vote,
): VoteResult {
  const count = voters.length;
  if (count === 0) return "won";
  let granted = 0;
  let open = 0;
  for (let i = 0; i < count; i++) {
    const answer = vote(voters[i] as ReplicaId);
    if (answer === Vote.granted) granted += 1;
    else if (answer === Vote.none) open += 1;
  }
  const quorum = Math.floor(count / 2) + 1;
  if (granted >= quorum) return "won";
  return granted + open >= quorum ? "pending" : "lost";
}

export function jointVote(
  incoming: readonly ReplicaId[],
  outgoing: readonly ReplicaId[],
  vote: (id: ReplicaId) => Vote,
): VoteResult {
  const first = majorityVote(incoming, vote);
  if (outgoing.length === 0) return first;
  const second = majorityVote(outgoing, vote);
  if (first === second) return first;
  return first === "lost" || second === "lost" ? "lost" : "pending";
}
