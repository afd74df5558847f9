/**
 * From one configuration to the next (thesis §4). One change that moves at most one voter may take the simple path;
 * everything else goes through a joint configuration, in which both the old and the new majority must agree.
 *
 * Nothing is changed before the whole result has been checked: a refused change leaves no trace.
 */
import { assert } from "../lib/assert.ts";
import type { Progress } from "./progress.ts";
import { ChangeKind, NONE, type ConfChange, type ConfState, type ReplicaId } from "./types.ts";

type Changes = ConfChange["changes"];

/** A configuration, and the progress of everybody in it, sorted by id. */
export interface Members {
  readonly conf: ConfState;
  readonly peers: readonly Progress[];
}

export type ChangeResult =
  | { readonly ok: true; readonly members: Members }
  | { readonly ok: false; readonly reason: string };

/** Progress for somebody not known before. */
export type NewProgress = (id: ReplicaId, isLearner: boolean) => Progress;

export function emptyConfState(): ConfState {
  return { voters: [], votersOutgoing: [], learners: [], learnersNext: [], autoLeave: false };
}

export function isJoint(conf: ConfState): boolean {
  return conf.votersOutgoing.length > 0;
}

/** What a change asks for, by itself: an empty one leaves a joint configuration. */
export function pathOf(change: ConfChange): "leave" | "simple" | "joint" {
  if (change.changes.length === 0) return "leave";
  return change.transition === "auto" && change.changes.length === 1 ? "simple" : "joint";
}

/** Whether anybody would be left to vote. Nobody could ever take back a change after which nobody is. */
export function leavesVoters(conf: ConfState, { changes }: ConfChange): boolean {
  const voters = new Set(conf.voters);
  for (const { kind, id } of changes) {
    if (id === NONE || kind === ChangeKind.updateNode) continue;
    if (kind === ChangeKind.addVoter) voters.add(id);
    else voters.delete(id);
  }
  return voters.size > 0;
}

export function changeMembers(
  members: Members,
  change: ConfChange,
  create: NewProgress,
): ChangeResult {
  switch (pathOf(change)) {
    case "leave":
      return leaveJoint(members, create);
    case "simple":
      return simple(members, change.changes, create);
    case "joint":
      return enterJoint(members, change.changes, change.transition !== "jointExplicit", create);
  }
}

export function simple(members: Members, changes: Changes, create: NewProgress): ChangeResult {
  if (isJoint(members.conf)) return refuse("can't apply simple config change in joint config");
  const draft = new Draft(members);
  const refused = draft.apply(changes);
  if (refused !== null) return refuse(refused);
  if (draft.votersChanged(members.conf.voters) > 1) {
    return refuse("more than one voter changed without entering joint config");
  }
  return draft.finish(create);
}

export function enterJoint(
  members: Members,
  changes: Changes,
  autoLeave: boolean,
  create: NewProgress,
): ChangeResult {
  if (isJoint(members.conf)) return refuse("config is already joint");
  if (members.conf.voters.length === 0) return refuse("can't make a zero-voter config joint");
  const draft = new Draft(members);
  draft.split(autoLeave);
  const refused = draft.apply(changes);
  return refused === null ? draft.finish(create) : refuse(refused);
}

export function leaveJoint(members: Members, create: NewProgress): ChangeResult {
  if (!isJoint(members.conf)) return refuse("can't leave a non-joint config");
  const draft = new Draft(members);
  draft.merge();
  return draft.finish(create);
}

/** Members as a snapshot or a restart names them, with nothing known of their progress. */
export function restoreMembers(conf: ConfState, create: NewProgress): Members {
  const draft = new Draft({ conf, peers: [] });
  for (const id of [...conf.voters, ...conf.votersOutgoing]) draft.track(id, false);
  for (const id of conf.learners) draft.track(id, true);
  const result = draft.finish(create);
  assert(result.ok, "a restored configuration is well-formed");
  return result.members;
}

function refuse(reason: string): ChangeResult {
  return { ok: false, reason };
}

function sorted(ids: Iterable<ReplicaId>): ReplicaId[] {
  return [...ids].sort((a, b) => a - b);
}

/** The next configuration while it is being put together. */
class Draft {
  readonly #known: readonly Progress[];
  readonly #voters: Set<ReplicaId>;
  readonly #outgoing: Set<ReplicaId>;
  readonly #learners: Set<ReplicaId>;
  readonly #learnersNext: Set<ReplicaId>;
  /** Who is followed, and as what; `kept` says that the progress known so far goes on. */
  readonly #tracked = new Map<ReplicaId, { isLearner: boolean; kept: boolean }>();
  #autoLeave: boolean;

  constructor({ conf, peers }: Members) {
    this.#known = peers;
    this.#voters = new Set(conf.voters);
    this.#outgoing = new Set(conf.votersOutgoing);
    this.#learners = new Set(conf.learners);
    this.#learnersNext = new Set(conf.learnersNext);
    this.#autoLeave = conf.autoLeave;
    for (const { id, isLearner } of peers) this.#tracked.set(id, { isLearner, kept: true });
  }

  track(id: ReplicaId, isLearner: boolean): void {
    this.#tracked.set(id, { isLearner, kept: false });
  }

  split(autoLeave: boolean): void {
    for (const id of this.#voters) this.#outgoing.add(id);
    this.#autoLeave = autoLeave;
  }

  merge(): void {
    for (const id of this.#learnersNext) {
      this.#learners.add(id);
      const tracked = this.#tracked.get(id);
      if (tracked !== undefined) tracked.isLearner = true;
    }
    this.#learnersNext.clear();
    for (const id of this.#outgoing) {
      if (!this.#voters.has(id) && !this.#learners.has(id)) this.#tracked.delete(id);
    }
    this.#outgoing.clear();
    this.#autoLeave = false;
  }

  apply(changes: Changes): string | null {
    for (const { kind, id } of changes) {
      // Whoever manages the members blanks a change out by setting its id to none.
      if (id === NONE) continue;
      if (kind === ChangeKind.addVoter) this.#addVoter(id);
      else if (kind === ChangeKind.addLearner) this.#addLearner(id);
      else if (kind === ChangeKind.removeNode) this.#remove(id);
    }
    return this.#voters.size === 0 ? "removed all voters" : null;
  }

  votersChanged(before: readonly ReplicaId[]): number {
    let changed = 0;
    for (const id of before) if (!this.#voters.has(id)) changed += 1;
    for (const id of this.#voters) if (!before.includes(id)) changed += 1;
    return changed;
  }

  #addVoter(id: ReplicaId): void {
    const tracked = this.#tracked.get(id);
    if (tracked === undefined) this.track(id, false);
    else tracked.isLearner = false;
    this.#learners.delete(id);
    this.#learnersNext.delete(id);
    this.#voters.add(id);
  }

  #addLearner(id: ReplicaId): void {
    const tracked = this.#tracked.get(id);
    if (tracked === undefined) {
      this.track(id, true);
      this.#learners.add(id);
      return;
    }
    if (tracked.isLearner) return;
    this.#voters.delete(id);
    this.#learnersNext.delete(id);
    // It still votes in the outgoing half; a learner it can only be once that half is gone.
    if (this.#outgoing.has(id)) {
      this.#learnersNext.add(id);
    } else {
      tracked.isLearner = true;
      this.#learners.add(id);
    }
  }

  #remove(id: ReplicaId): void {
    if (!this.#tracked.has(id)) return;
    this.#voters.delete(id);
    this.#learners.delete(id);
    this.#learnersNext.delete(id);
    if (!this.#outgoing.has(id)) this.#tracked.delete(id);
  }

  finish(create: NewProgress): ChangeResult {
    this.#check();
    const conf: ConfState = {
      voters: sorted(this.#voters),
      votersOutgoing: sorted(this.#outgoing),
      learners: sorted(this.#learners),
      learnersNext: sorted(this.#learnersNext),
      autoLeave: this.#autoLeave,
    };
    const peers: Progress[] = [];
    for (const id of sorted(this.#tracked.keys())) {
      const tracked = this.#tracked.get(id);
      assert(tracked !== undefined, "a tracked replica is tracked");
      const known = tracked.kept ? this.#known.find((peer) => peer.id === id) : undefined;
      if (known !== undefined) known.isLearner = tracked.isLearner;
      peers.push(known ?? create(id, tracked.isLearner));
    }
    return { ok: true, members: { conf, peers } };
  }

  #check(): void {
    const is = (id: ReplicaId): boolean | undefined => this.#tracked.get(id)?.isLearner;
    for (const id of this.#voters) assert(is(id) === false, "a voter is followed as a voter");
    for (const id of this.#outgoing) assert(is(id) === false, "an outgoing voter is still a voter");
    for (const id of this.#learners) {
      assert(is(id) === true, "a learner is followed as a learner");
      assert(!this.#voters.has(id) && !this.#outgoing.has(id), "nobody is voter and learner");
    }
    for (const id of this.#learnersNext) {
      assert(this.#outgoing.has(id), "who becomes a learner later is an outgoing voter now");
      assert(!this.#voters.has(id), "who becomes a learner later is no incoming voter");
    }
    assert(
      this.#outgoing.size > 0 || (this.#learnersNext.size === 0 && !this.#autoLeave),
      "only a joint configuration has something to leave",
    );
  }
}
