/**
 * Keeps the cluster as the directory wants it: replicas of nodes that are gone, drained, leaving or have a new disk go
 * elsewhere, `_system` has as many voters as it should, and a node that holds nothing any more leaves. Runs where
 * `_system` is led, one bounded step at a time, each a replicated command, so that any successor goes on.
 */
import { callBackLevel, levelFirst, type SystemAction } from "../machine/command.ts";
import {
  isLeaving,
  isLost,
  settledReplicas,
  type NodeRow,
  type PlacedReplica,
  type TenantRow,
} from "../machine/rows.ts";
import type { Directory } from "./directory.ts";
import { chooseNodes, isPlaceable, type Candidate } from "./placement.ts";

/** Tenants that move at once by what is decided here. */
const MOVES_MAX = 16;
/** Of those that move by the directory, so many are looked at; more count as too many. */
const MOVES_LOOKED_AT_MAX = 1_024;
/** Rows looked at in one step. */
const ROWS_PER_STEP = 256;
/** Of them, of tenants that shall have more replicas. */
const REGROWING_PER_STEP = 64;
const SYSTEM_VOTERS_MAX = 5;
const PROPOSE_TIMEOUT_MS = 3_000;
/** With nothing to do, all rows are looked at again after this long, ms. */
const REST_MS = 30_000;

export interface ReconcilerHooks {
  /** This node leads `_system`, and applied all of it. */
  leads(): boolean;
  supports(node: string): boolean;
  /** It has a vote in the group of `_system`, by the configuration as applied here. */
  votes(node: string): boolean;
  propose(action: SystemAction, timeoutMs: number, done: () => void): void;
}

export class Reconciler {
  readonly #directory: Directory;
  readonly #hooks: ReconcilerHooks;
  readonly #replaceAfterMs: number;
  /** Since when nodes are not heard of, as the leader here saw it. */
  readonly #silentSince = new Map<string, number>();
  #proposing = false;
  #led = false;
  /** Where the pass over the tenants is; null: at rest. */
  #cursor: string | null = null;
  /** And over those that shall grow again: a group. */
  #regrowCursor = 0;
  /** Nodes that a tenant was seen on in this pass. */
  #seenOn = new Set<string>();
  /** Nodes that leave and had no tenant any more when a pass ended. */
  readonly #emptied = new Set<string>();
  /**
   * The directory's revision at which there was nothing to do, with the nodes that were all heard of then: until one of
   * the two changes, nothing can come of another look, and five of them a second cost more than all else that idles.
   */
  #still: { readonly revision: number | null; readonly nodes: readonly string[] } | null = null;
  /** Why the last pass was made; another reason begins another one. */
  #reason = "";
  #restedAt = -Infinity;

  constructor(directory: Directory, replaceAfterMs: number, hooks: ReconcilerHooks) {
    this.#directory = directory;
    this.#replaceAfterMs = replaceAfterMs;
    this.#hooks = hooks;
  }

  /** Call a few times a second. `now` is host time, ms. */
  round(now: number): void {
    if (!this.#hooks.leads()) {
      this.#led = false;
      return;
    }
    if (!this.#led) {
      this.#led = true;
      this.#silentSince.clear();
      this.#reason = "";
      this.#still = null;
    }
    const { revision } = this.#directory;
    const still = this.#still;
    if (still?.revision === revision && still.nodes.every((node) => this.#hooks.supports(node)))
      return;
    this.#still = null;
    const nodes = this.#directory.nodes();
    for (const { node } of nodes) {
      if (this.#hooks.supports(node)) this.#silentSince.delete(node);
      else if (!this.#silentSince.has(node)) this.#silentSince.set(node, now);
    }
    for (const node of this.#silentSince.keys())
      if (!nodes.some((row) => row.node === node)) this.#silentSince.delete(node);
    if (this.#proposing) return;
    const isGone = ({ node }: NodeRow): boolean =>
      now - (this.#silentSince.get(node) ?? now) > this.#replaceAfterMs;
    const action =
      this.#system(nodes, isGone) ??
      this.#regrow(nodes, isGone) ??
      this.#tenants(nodes, isGone, now);
    if (action === null) {
      const isCalm =
        this.#silentSince.size === 0 &&
        nodes.every(({ phase, diskSince }) => phase === undefined && diskSince === undefined) &&
        this.#directory.regrowing(0, 1).length === 0;
      if (isCalm) this.#still = { revision, nodes: nodes.map(({ node }) => node) };
      return;
    }
    this.#proposing = true;
    this.#hooks.propose(action, PROPOSE_TIMEOUT_MS, () => {
      this.#proposing = false;
    });
  }

  /**
   * The largest odd number of voters up to five that there are nodes for, those who have a vote already first. A node that
   * is gone, or leaves and may never be done with it, or has yet to register, keeps its vote until another can take it:
   * with fewer voters fewer losses would be survived (simulation, seed 7340053: the first one to register was the only
   * voter for a moment, and its disk was wiped). What is under way ends first, but for a vote whose node will not take it:
   * that one goes to another.
   */
  #system(nodes: readonly NodeRow[], isGone: (node: NodeRow) => boolean): SystemAction | null {
    const placement = this.#directory.system()?.placement;
    if (placement === undefined) return null;
    const { replicas, generation = 0 } = placement;
    const rowOf = ({ node }: PlacedReplica): NodeRow | undefined =>
      nodes.find((other) => other.node === node);
    const isStuck = replicas.some(
      (replica) => replica.state === "joining" && this.#isAway(replica, rowOf(replica), isGone),
    );
    if (!isStuck && replicas.some((one) => one.state === "joining" || isLeaving(one))) return null;
    const staying = replicas.filter((replica) => !isLeaving(replica));
    const members = staying.filter((replica) => {
      const row = rowOf(replica);
      if (row === undefined) return replica.state !== "learner";
      return !this.#emptied.has(row.node) && row.role !== "gateway";
    });
    const gone = members.filter((replica) => {
      const row = rowOf(replica);
      if (replica.state === "joining") return this.#isAway(replica, row, isGone);
      return row === undefined || isGone(row);
    });
    // Who is just away keeps a vote; a learner that is away gets none.
    const able = members.filter(
      (replica) =>
        !gone.includes(replica) &&
        (replica.state !== "learner" || this.#hooks.supports(replica.node)),
    );
    const odd = largestOdd(Math.min(SYSTEM_VOTERS_MAX, members.length));
    if (odd < 1) return null;
    const zoneOf = (node: string): string | null =>
      nodes.find((other) => other.node === node)?.zone ?? null;
    const voting = staying.filter(({ state }) => state !== "learner");
    const candidates = able.map(({ node }) => ({ node, zone: zoneOf(node) }));
    const isDraining = ({ node }: Candidate): boolean =>
      nodes.find((other) => other.node === node)?.phase !== undefined;
    const keep = voting.map(({ node }) => node);
    const best = chooseNodes(
      "_system",
      odd,
      candidates.filter((one) => !isDraining(one)),
      keep,
    );
    // A drained node votes only where somebody has to.
    const rest = candidates.filter(isDraining);
    const chosen = [...best, ...chooseNodes("_system", odd - best.length, rest, keep)];
    for (const { node, state } of gone)
      if (chosen.length < odd && state !== "learner" && state !== "joining") chosen.push(node);
    chosen.length = largestOdd(chosen.length);
    if (chosen.length === 0) return null;
    // Who has the votes is not told by a row that never came true: no vote is taken for want of another place.
    if (isStuck && chosen.length < staying.filter(({ node }) => this.#hooks.votes(node)).length)
      return null;
    const voters = members.filter(({ node }) => chosen.includes(node)).map(({ id }) => id);
    const isSame = voters.length === voting.length && voting.every(({ id }) => voters.includes(id));
    return isSame ? null : { op: "system.place", voters, generation };
  }

  /** What a recovery left with one replica gets as many again as it had, as soon as there are nodes for an odd number. */
  #regrow(nodes: readonly NodeRow[], isGone: (node: NodeRow) => boolean): SystemAction | null {
    const rows = this.#directory.regrowing(this.#regrowCursor, REGROWING_PER_STEP);
    this.#regrowCursor = rows.length < REGROWING_PER_STEP ? 0 : (rows.at(-1)?.group ?? 0);
    if (rows.length === 0 || this.#isBusy(nodes)) return null;
    const candidates = nodes.filter(
      (one) => isPlaceable(one) && !isGone(one) && this.#hooks.supports(one.node),
    );
    for (const { tenant, regrow = 1, placement } of rows) {
      const { replicas, generation = 0 } = placement;
      const present = replicas.filter((replica) => !isLeaving(replica)).map(({ node }) => node);
      const count = largestOdd(Math.min(regrow, candidates.length));
      if (count <= present.length || replicas.some(({ state }) => state !== undefined)) continue;
      const chosen = chooseNodes(tenant, count, candidates, present);
      return { op: "directory.move", tenant, nodes: chosen, generation };
    }
    return null;
  }

  /** A node to be left alone, one at a time, and what was on it found places elsewhere. */
  #tenants(
    nodes: readonly NodeRow[],
    isGone: (node: NodeRow) => boolean,
    now: number,
  ): SystemAction | null {
    const bad = nodes.filter((row) => row.phase !== undefined || isGone(row));
    const changed = nodes.filter(({ diskSince }) => diskSince !== undefined);
    const reason = [
      ...bad.map(({ node, phase }) => `${node} ${phase ?? "gone"}`),
      ...changed.map(({ node, diskSince }) => `${node} ${diskSince}`),
      nodes.length,
    ].join();
    if (reason !== this.#reason || (this.#cursor === null && now - this.#restedAt > REST_MS)) {
      this.#reason = reason;
      this.#emptied.clear();
      this.#begin();
    }
    if (this.#cursor === null || bad.length + changed.length === 0) return null;
    if (this.#isBusy(nodes)) return null;
    const rows = this.#directory.tenants(this.#cursor, ROWS_PER_STEP);
    for (const row of rows) {
      this.#cursor = row.tenant;
      for (const { node } of row.placement.replicas) this.#seenOn.add(node);
      const action = this.#move(row, nodes, isGone);
      if (action !== null) return action;
    }
    if (rows.length === ROWS_PER_STEP) return null;
    // The pass is over. Where nobody was seen is nothing left.
    const left = bad.find(({ node, phase }) => phase === "leaving" && !this.#seenOn.has(node));
    if (left !== undefined && nodes.length > 1) {
      this.#begin();
      this.#emptied.add(left.node);
      return this.#hasVote(left.node) ? null : { op: "node.remove", node: left.node };
    }
    if (bad.some(({ phase }) => phase === "leaving")) this.#begin();
    else this.#cursor = null;
    this.#restedAt = now;
    return null;
  }

  #begin(): void {
    this.#cursor = "";
    this.#seenOn = new Set();
  }

  /** By the directory, or in fact: that it shall have none is decided before it has none (simulation, seed 72000069). */
  #hasVote(node: string): boolean {
    if (this.#hooks.votes(node)) return true;
    const replicas = this.#directory.system()?.placement.replicas ?? [];
    return replicas.some((replica) => replica.node === node && replica.state !== "learner");
  }

  /** As many move as may at once. Moves that wait for voters who may never come back do not hold up the others. */
  #isBusy(nodes: readonly NodeRow[]): boolean {
    const rows = this.#directory.moving(0, MOVES_LOOKED_AT_MAX);
    if (rows.length < MOVES_MAX) return false;
    if (rows.length === MOVES_LOOKED_AT_MAX) return true;
    return rows.filter((row) => this.#canMove(row, nodes)).length >= MOVES_MAX;
  }

  /** A majority of its voters is there to agree to other members. */
  #canMove(row: TenantRow, nodes: readonly NodeRow[]): boolean {
    const voters = settledReplicas(row.placement.replicas);
    const present = voters.filter(
      (replica) =>
        replica.state !== "lost" &&
        this.#hooks.supports(replica.node) &&
        !isLost(
          replica,
          row,
          nodes.find(({ node }) => node === replica.node),
        ),
    );
    return present.length * 2 > voters.length;
  }

  /** Its node is not there, and may never be again. */
  #isAway(
    { node }: PlacedReplica,
    row: NodeRow | undefined,
    isGone: (row: NodeRow) => boolean,
  ): boolean {
    if (row === undefined) return true;
    return !this.#hooks.supports(node) && (row.phase === "leaving" || isGone(row));
  }

  /** It was sent away, and is still there. */
  #canComeBack(replica: PlacedReplica, row: TenantRow, node: NodeRow | undefined): boolean {
    const level = this.#directory.system()?.level ?? levelFirst;
    return (
      replica.state === "leaving" &&
      this.#hooks.supports(replica.node) &&
      !isLost(replica, row, node) &&
      (node?.phase !== "leaving" || level >= callBackLevel)
    );
  }

  #move(
    row: TenantRow,
    nodes: readonly NodeRow[],
    isGone: (node: NodeRow) => boolean,
  ): SystemAction | null {
    const { replicas, generation = 0 } = row.placement;
    const rowOf = (node: string): NodeRow | undefined => nodes.find((one) => one.node === node);
    const wanted = replicas.filter((replica) => !isLeaving(replica));
    const lost = wanted.filter((replica) => isLost(replica, row, rowOf(replica.node)));
    const isGood = (node: string): boolean => {
      const known = rowOf(node);
      return known !== undefined && isPlaceable(known) && !isGone(known);
    };
    const stay = wanted.filter(({ node }) => isGood(node)).map(({ node }) => node);
    if (stay.length === wanted.length && lost.length === 0) return null;
    // New replicas go where somebody is.
    const candidates = nodes.filter(
      (one) => isGood(one.node) && (stay.includes(one.node) || this.#hooks.supports(one.node)),
    );
    const chosen = chooseNodes(row.tenant, wanted.length, candidates, stay);
    // Without enough good nodes the others are kept rather than given up for nothing: those that are there, then, instead
    // of one that may never be, who was to go for it. Else the move would wait for ever (simulation, seed 77310115).
    const isAway = (replica: PlacedReplica): boolean =>
      this.#isAway(replica, rowOf(replica.node), isGone);
    const rest = wanted.filter(({ node }) => !chosen.includes(node));
    const back = replicas.filter(
      (replica) =>
        this.#canComeBack(replica, row, rowOf(replica.node)) && !chosen.includes(replica.node),
    );
    const others = [...rest.filter((one) => !isAway(one)), ...back, ...rest.filter(isAway)];
    const places = others.slice(0, wanted.length - chosen.length).map(({ node }) => node);
    const target = [...chosen, ...places];
    const same = target.every((node) => wanted.some((replica) => replica.node === node));
    if (same && lost.length === 0) return null;
    // Without a majority nothing would come of it; when its nodes are back, it may not be needed.
    if (!this.#canMove(row, nodes)) return null;
    return {
      op: "directory.move",
      tenant: row.tenant,
      nodes: target,
      lost: lost.map(({ id }) => id),
      generation,
    };
  }
}

function largestOdd(most: number): number {
  return most % 2 === 0 ? Math.max(0, most - 1) : most;
}
