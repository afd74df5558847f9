/**
 * From the members a group has to those the directory wants for it. The directory says where (`directory.move`); the
 * group's leader makes it so, one replicated step at a time, and then settles the move in the directory. Whoever leads
 * next goes on from what is replicated: every step is decided anew from the configuration and the row.
 *
 *   learner added ─► caught up ─► one change promotes the new and removes the old ─► settled ─► the old drop their bytes
 *
 * A leader that is to leave hands leadership over first and never removes itself (raft/DESIGN.md, What remains).
 */
import type { SystemAction } from "../machine/command.ts";
import {
  isLeaving,
  type Member,
  type PlacedReplica,
  type StoredPlacement,
  type TenantRow,
} from "../machine/rows.ts";
import type { RaftStatus } from "../raft/raft.ts";
import {
  ChangeKind,
  NONE,
  type ConfChange,
  type ConfState,
  type ReplicaId,
} from "../raft/types.ts";
import { SYSTEM_GROUP, type Directory } from "./directory.ts";
import type { Replica } from "./replica.ts";

/** A learner this close to the leader's log is promoted: what is left takes no longer than one more turn or two. */
const LEARNER_LAG_MAX = 100;

/** Members as they shall be. */
export interface Target {
  readonly voters: readonly Member[];
  readonly learners: readonly Member[];
  readonly leaving: readonly ReplicaId[];
}

export type Step =
  /** Nothing can be done now: a change is under way, a learner behind, or too few are alive. */
  | { readonly kind: "wait" }
  | { readonly kind: "settled" }
  | { readonly kind: "transfer"; readonly to: ReplicaId }
  | {
      readonly kind: "change";
      readonly changes: ConfChange["changes"];
      /** Where those are whom it adds. */
      readonly joining: readonly Member[];
    };

const wait: Step = { kind: "wait" };

export function targetOf({ replicas }: StoredPlacement): Target {
  return {
    voters: replicas.filter((replica) => !isLeaving(replica) && replica.state !== "learner"),
    learners: replicas.filter(({ state }) => state === "learner"),
    leaving: replicas.filter(isLeaving).map(({ id }) => id),
  };
}

/** The replica that a placement gives to `node`. One that lost its disk is nobody's any more. */
export function replicaOn({ replicas }: StoredPlacement, node: string): PlacedReplica | undefined {
  return replicas.find((replica) => replica.node === node && replica.state !== "lost");
}

/** What the leader does next. `status` is its own, `conf` as applied. */
export function nextStep(
  { id: self, progress, lastIndex }: Pick<RaftStatus, "id" | "progress" | "lastIndex">,
  conf: ConfState,
  target: Target,
  supports: (node: string) => boolean,
): Step {
  const isMember = (id: ReplicaId): boolean =>
    conf.voters.includes(id) || conf.learners.includes(id);
  const isVoter = (id: ReplicaId): boolean => conf.voters.includes(id);
  const wanted = target.voters.map(({ id }) => id);

  const missing = [...target.voters, ...target.learners].find(
    ({ id, node }) => !isMember(id) && supports(node),
  );
  if (missing !== undefined) {
    const changes = [{ kind: ChangeKind.addLearner, id: missing.id }];
    return { kind: "change", changes, joining: [missing] };
  }
  const keepsUp = (id: ReplicaId): boolean => {
    const peer = progress.find((other) => other.id === id);
    return peer?.state === "replicate" && lastIndex - peer.match <= LEARNER_LAG_MAX;
  };
  if (!wanted.every((id) => isVoter(id) || keepsUp(id))) return wait;

  // Added by a leader whose directory was behind, for a placement that was given up meanwhile (simulation, seed 3002046).
  const known = new Set([
    ...[...target.voters, ...target.learners].map(({ id }) => id),
    ...target.leaving,
  ]);
  // Or with a vote, before leaders asked whether their directory is current (simulation, seed 710020103).
  const strays = [...conf.learners, ...conf.voters].filter((id) => !known.has(id));

  const promotions = wanted
    .filter((id) => !isVoter(id))
    .map((id) => ({ kind: ChangeKind.addVoter, id }));
  const others = [
    ...target.learners.filter(({ id }) => isVoter(id)).map(({ id }) => demotion(id)),
    ...[...target.leaving.filter(isMember), ...strays].map((id) => ({
      kind: ChangeKind.removeNode,
      id,
    })),
  ];
  if (promotions.length + others.length === 0) {
    // A learner that is not there has nothing to vote on, and is added whenever it comes: nobody's vote waits for it.
    return { kind: "settled" };
  }
  // Into a configuration that could not act there is no way back. Its node says nothing of a replica that was stopped.
  const able = target.voters.filter(
    ({ id, node }) => id === self || (supports(node) && keepsUp(id)),
  );
  if (able.length * 2 <= wanted.length) return wait;

  if (wanted.includes(self)) {
    return { kind: "change", changes: [...promotions, ...others], joining: [] };
  }
  const heir = target.voters
    .filter(({ id, node }) => isVoter(id) && supports(node))
    .map(({ id }) => progress.find((peer) => peer.id === id))
    .filter((peer) => peer?.state === "replicate")
    .reduce((best, peer) => ((peer?.match ?? 0) > (best?.match ?? -1) ? peer : best), undefined);
  if (heir !== undefined) return { kind: "transfer", to: heir.id };
  // Nobody who stays has a vote yet: they come first, and one of them removes this one.
  const rest = others.filter(({ id }) => id !== self);
  return promotions.length === 0
    ? wait
    : { kind: "change", changes: [...promotions, ...rest], joining: [] };
}

function demotion(id: ReplicaId): {
  readonly kind: typeof ChangeKind.addLearner;
  readonly id: ReplicaId;
} {
  return { kind: ChangeKind.addLearner, id };
}

// --- the groups that move ------------------------------------------------------------------------------------------------

/** Groups looked at in one round; the rest has its turn in the next ones. */
const GROUPS_PER_ROUND = 64;
/** After so many rounds a follower asks whether its leader, to whom it leaves a move, is there at all. */
const DOUBT_ROUNDS = 20;
/** Settling is proposed again after this long, ms. */
const SETTLE_TIMEOUT_MS = 2_000;

export interface MembershipHooks {
  supports(node: string): boolean;
  /** The replica of this group here, woken if it sleeps; null when there is none, or no room. */
  wake(group: number): Replica | null;
  /** The same, only if it is awake. */
  present(group: number): Replica | null;
  /** Nobody is known to lead it. */
  leaderless(replica: Replica): void;
  /** Runs something of a replica, whose outcome is then sent out. */
  act(replica: Replica, run: () => void): void;
  propose(action: SystemAction, timeoutMs: number, done: () => void): void;
  /** Whether the directory here has everything that was committed before this call. */
  askDirectory(done: (isCurrent: boolean) => void): void;
}

/** Takes the next step of every group that moves and is led from this node. */
export class Membership {
  readonly #node: string;
  readonly #directory: Directory;
  readonly #hooks: MembershipHooks;
  /** Entries by whose commit the last change of each group is known to be known, see `isKnown`. */
  readonly #marks = new Map<number, Mark>();
  /** Groups whose settling is being proposed. */
  readonly #settling = new Set<number>();
  /** Groups led here that may not be as the directory wants them, though they do not move. */
  readonly #doubted = new Set<number>();
  /** In which term of its leadership the directory was found to be current. */
  readonly #currentIn = new WeakMap<Replica, number>();
  /** Leaders and their terms for which that is to be asked. */
  #toAsk = new Map<Replica, number>();
  #asking = false;
  /** Of followers of groups that move: in how many rounds that was left to their leaders. */
  readonly #leftFor = new WeakMap<Replica, number>();
  /** Where the last round ended. */
  #cursor = 0;
  /** Which groups move and how far they are, as one number: as the last look at all of them found, and this one so far. */
  #moves = 0;
  #movesSoFar = 0;
  /** The directory's revision at which nothing moved; looking through it costs more than all the rest of a round. */
  #stillAt: number | null = null;
  /** In which configuration, at which revision, `_system` was found as the directory wants it: likewise. */
  #systemStill: { readonly conf: ConfState; readonly revision: number | null } | null = null;

  constructor(node: string, directory: Directory, hooks: MembershipHooks) {
    this.#node = node;
    this.#directory = directory;
    this.#hooks = hooks;
  }

  /**
   * Call when a replica here has come to lead the group, and when the directory has news of one that is led here. A
   * leader whose directory is behind goes on with a move that was given up: when another leader has settled what was
   * wanted instead, the directory calls nothing moving, and the group is not what it says (simulation, seed 200004630).
   */
  look(group: number): void {
    if (group !== SYSTEM_GROUP) this.#doubted.add(group);
  }

  #lookAgain(): void {
    const groups: number[] = [];
    for (const group of this.#doubted) if (groups.push(group) === GROUPS_PER_ROUND) break;
    for (const group of groups) {
      // Those that are not done come again behind the others.
      this.#doubted.delete(group);
      const row = this.#directory.byGroup(group);
      const replica = this.#hooks.present(group);
      if (row === undefined || replica?.raft.isLeader !== true || replica.halted !== null) continue;
      if (row.placement.replicas.some(({ state }) => state !== undefined)) continue;
      let settled = false;
      this.#step(replica, row.placement, () => {
        settled = true;
      });
      if (!settled) this.#doubted.add(group);
    }
  }

  /** Call a few times a second. */
  round(): void {
    this.#advanceSystem();
    this.#lookAgain();
    this.#advanceMoving();
    this.#ask();
  }

  /**
   * Another number when something moved since, or is done. Of more groups than one round looks at it is told when all had
   * their turn: those of one round after the other would seem to move for as long as there are others.
   */
  get moves(): number {
    return this.#moves;
  }

  #advanceMoving(): void {
    const { revision } = this.#directory;
    if (revision !== null && revision === this.#stillAt) return;
    const rows = this.#directory.moving(this.#cursor, GROUPS_PER_ROUND);
    for (const { group, placement } of rows)
      this.#movesSoFar = mixed(mixed(this.#movesSoFar, group), placement.generation ?? 0);
    this.#stillAt = this.#cursor === 0 && rows.length === 0 ? revision : null;
    this.#cursor = rows.length < GROUPS_PER_ROUND ? 0 : (rows.at(-1)?.group ?? 0);
    if (this.#cursor === 0) {
      this.#moves = this.#movesSoFar;
      this.#movesSoFar = 0;
    }
    for (const row of rows) this.#advance(row);
  }

  /**
   * Who comes to lead a group acts only on a directory that it has looked at since. Then no step goes back behind the
   * placement that an earlier leader settled: a replica without a place, whose node drops what it holds, would get its
   * vote back from a leader that just restarted and has yet to hear again what it knew before (simulation, seed
   * 710020103). While it leads, nobody else changes its members, so nobody settles anything that it has not heard of.
   */
  #mayAct(leader: Replica): boolean {
    const { term } = leader.raft;
    if (this.#currentIn.get(leader) === term) return true;
    this.#toAsk.set(leader, term);
    return false;
  }

  /** For all of them at once. */
  #ask(): void {
    if (this.#asking || this.#toAsk.size === 0) return;
    this.#asking = true;
    const asked = this.#toAsk;
    this.#toAsk = new Map();
    this.#hooks.askDirectory((isCurrent) => {
      this.#asking = false;
      // Without an answer the next round asks again for those that still have something to do.
      if (isCurrent) for (const [leader, term] of asked) this.#currentIn.set(leader, term);
    });
  }

  #advanceSystem(): void {
    const replica = this.#hooks.wake(SYSTEM_GROUP);
    if (replica?.raft.isLeader !== true) return;
    const { revision } = this.#directory;
    const { conf } = replica;
    if (this.#systemStill?.conf === conf && this.#systemStill.revision === revision) return;
    const placement = this.#directory.system()?.placement;
    if (placement === undefined) return;
    const { replicas, generation = 0 } = placement;
    // What it knows is what it says itself.
    takeStep(replica, targetOf(placement), this.#hooks, EVER, () => {
      if (replicas.some((each) => each.state === "joining" || isLeaving(each)))
        this.#whenKnown(replica, generation, { op: "system.settle", generation });
      else if (hasAll(conf, replicas)) this.#systemStill = { conf, revision };
    });
  }

  #whenKnown(replica: Replica, generation: number, action: SystemAction): void {
    const { group } = replica;
    if (this.#settling.has(group)) return;
    if (this.#isKnown(replica, generation)) this.#settle(group, action);
  }

  #advance(row: TenantRow): void {
    const own = replicaOn(row.placement, this.#node);
    if (own === undefined) return;
    const replica = this.#hooks.wake(row.group);
    if (replica === null || replica.halted !== null || replica.id !== own.id) return;
    if (!replica.raft.isLeader) {
      if (replica.isVoter && replica.leaderNode === null) this.#hooks.leaderless(replica);
      else this.#leaveToLeader(replica);
      return;
    }
    const { tenant, placement } = row;
    const { generation = 0 } = placement;
    this.#step(replica, placement, () => {
      this.#whenKnown(replica, generation, { op: "directory.settle", tenant, generation });
    });
  }

  /** Its leader may sleep where nobody knows of the move: on a node without its directory, say. To be asked wakes it. */
  #leaveToLeader(follower: Replica): void {
    const rounds = (this.#leftFor.get(follower) ?? 0) + 1;
    this.#leftFor.set(follower, rounds);
    if (rounds % DOUBT_ROUNDS === 0) this.#hooks.act(follower, () => follower.raft.doubtLeader());
  }

  #step(replica: Replica, placement: StoredPlacement, settled: () => void): void {
    takeStep(replica, targetOf(placement), this.#hooks, () => this.#mayAct(replica), settled);
  }

  /**
   * A quorum of those who stay knows, durably, that the last change is committed. Commit indexes are not written by
   * themselves, and who knew after a restart of the old members alone would ask those who left for their votes, in vain
   * (simulation, seed 20317). What is proposed after the change was applied takes its commit index along.
   */
  #isKnown(replica: Replica, generation: number): boolean {
    const { raft, group } = replica;
    const mark = this.#marks.get(group);
    if (mark !== undefined && mark.term === raft.term && mark.generation === generation) {
      if (raft.appliedIndex < mark.index) return false;
      this.#marks.delete(group);
      return true;
    }
    this.#hooks.act(replica, () => {
      const proposed = raft.propose(NOTHING);
      if (proposed.ok)
        this.#marks.set(group, { generation, term: raft.term, index: proposed.index });
    });
    return false;
  }

  #settle(group: number, action: SystemAction): void {
    this.#settling.add(group);
    this.#hooks.propose(action, SETTLE_TIMEOUT_MS, () => {
      this.#settling.delete(group);
    });
  }
}

interface Mark {
  readonly generation: number;
  readonly term: number;
  readonly index: number;
}

/** A learner may be away still, and is looked for until it is a member. */
function hasAll({ voters, learners }: ConfState, replicas: readonly PlacedReplica[]): boolean {
  return replicas.every(({ id }) => voters.includes(id) || learners.includes(id));
}

/** One number of many, in their order: FNV-1a over whole numbers. */
function mixed(hash: number, value: number): number {
  return Math.imul(hash ^ value, 0x01000193) + 1;
}

const NOTHING = new Uint8Array(0);
const EVER = (): boolean => true;

function takeStep(
  replica: Replica,
  target: Target,
  hooks: MembershipHooks,
  mayAct: () => boolean,
  settled: () => void,
): void {
  const { raft } = replica;
  const status = raft.status();
  if (raft.hasPendingConfChange || status.transferee !== NONE || !replica.initialised) return;
  const step = nextStep(status, replica.conf, target, (node) => hooks.supports(node));
  switch (step.kind) {
    case "wait":
      return;
    case "settled":
      return settled();
    case "transfer":
      if (mayAct()) hooks.act(replica, () => raft.transferLeadership(step.to));
      return;
    case "change":
      if (mayAct()) hooks.act(replica, () => replica.proposeMembers(step.changes, step.joining));
  }
}
