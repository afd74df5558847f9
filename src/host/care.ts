/**
 * What operators ask of one group, wherever it is led: its status, its leadership moved, its damaged replica here
 * replaced. Decides nothing by itself: Raft moves leaderships, the directory replaces replicas.
 */
import { Problem } from "../api/problems.ts";
import type { ColdReplicas } from "./cold_replicas.ts";
import { SYSTEM_GROUP, type Directory } from "./directory.ts";
import type { Liveness } from "./liveness.ts";
import { replicaOn } from "./membership.ts";
import type { Clock, GroupStatus, Replacement } from "./ports.ts";
import type { ReplicaId } from "../raft/types.ts";
import type { Replica } from "./replica.ts";
import { noQuorum } from "./requests.ts";
import { Method, type Rpc } from "./rpc.ts";
import { groupStatus } from "./status.ts";

const CALL_TIMEOUT_MS = 1_000;
/** A node that is there and does not know of a change of the directory is asked again for so long. */
const REACHED_TIMEOUT_MS = 5_000;
const REACHED_PAUSE_MS = 50;

export interface CareParts {
  readonly node: string;
  readonly clock: Clock;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly rpc: Rpc;
  readonly cold: ColdReplicas;
}

export interface CareHooks {
  /** Calls back when the directory here knows the tenant, or with why not. */
  find(tenant: string, done: (error: Problem | null) => void): void;
  /** The replica of this group here, if it is in memory. */
  present(group: number): Replica | null;
  /** The same, woken if it sleeps; null when there is none, or no room. */
  wake(group: number): Replica | null;
  /** Calls back when the directory here is at this revision, or with false when the time is up. */
  reach(revision: number, deadline: number, done: (ok: boolean) => void): void;
  /** Nobody is known to lead it. */
  campaign(replica: Replica): void;
  /** Runs something of a replica, whose outcome is then sent out. */
  act(replica: Replica, run: () => void): void;
}

/** Whether a node knows the directory up to a revision. Until it has begun it may be for a later one. */
interface ReachedQuestion {
  revision: number;
  isBegun: boolean;
  readonly answer: Promise<boolean>;
}

interface TransferQuestion {
  readonly group: number;
  readonly to: string;
}

export class Care {
  readonly #parts: CareParts;
  readonly #hooks: CareHooks;
  /** Of each node the last one: it may wait for the one before. */
  readonly #reaching = new Map<string, ReachedQuestion>();

  constructor(parts: CareParts, hooks: CareHooks) {
    this.#parts = parts;
    this.#hooks = hooks;
    parts.rpc.answer<number>(Method.status, (_from, group, respond) => {
      const replica = this.#awake(group);
      const leads = replica?.halted === null && replica.raft.isLeader;
      respond(leads ? groupStatus(replica) : null);
    });
    parts.rpc.answer<number>(Method.runs, (_from, group, respond) => {
      respond(this.#awake(group)?.halted === null);
    });
    parts.rpc.answer<number>(Method.reached, (_from, revision, respond) => {
      hooks.reach(revision, parts.clock.monotonicMs() + CALL_TIMEOUT_MS, respond);
    });
    parts.rpc.answer<TransferQuestion>(Method.transfer, (_from, { group, to }, respond) => {
      const replica = this.#awake(group);
      respond(replica !== null && this.#transferHere(replica, to));
    });
  }

  /** A leader that sleeps leads on when it wakes. */
  #awake(group: number): Replica | null {
    const replica = this.#hooks.wake(group);
    if (replica !== null) replica.usedAt = this.#parts.clock.monotonicMs();
    return replica;
  }

  /** As its leader says, or as the replica here knows it when no leader answers. */
  async group(tenant: string): Promise<GroupStatus> {
    await this.#find(tenant);
    const { directory, liveness } = this.#parts;
    const group = directory.groupOf(tenant);
    const replica = group === undefined ? null : this.#hooks.wake(group);
    if (replica === null)
      throw new Problem("not-found", `Tenant "${tenant}" has no replica on this node`);
    if (replica.raft.isLeader) return groupStatus(replica);
    const leader = replica.leaderNode;
    if (leader === null || !liveness.supports(leader)) {
      this.#hooks.campaign(replica);
      return { ...groupStatus(replica), leader: null };
    }
    const answer = await this.#ask<GroupStatus>(leader, Method.status, replica.group);
    return answer ?? groupStatus(replica);
  }

  /**
   * Every node that is there knows the directory up to this revision. One that is behind would take a request to a
   * tenant that is gone, or to its predecessor of the same name, and with it the replicas that do not know yet could
   * even acknowledge it. One that falls silent is waited for until it is no longer counted as there.
   * @throws Problem `outcome-unknown` where one that is there does not come so far in time
   */
  async directoryReached(revision: number): Promise<void> {
    const { node: self, liveness } = this.#parts;
    const others = [...liveness.peers].filter((node) => liveness.supports(node));
    await Promise.all([self, ...others].map((node) => this.#reachedOn(node, revision)));
  }

  async #reachedOn(node: string, revision: number): Promise<void> {
    const { node: self, clock, liveness } = this.#parts;
    const deadline = clock.monotonicMs() + REACHED_TIMEOUT_MS;
    while (!(await this.#askReached(node, revision))) {
      if (node !== self && !liveness.supports(node)) return;
      if (clock.monotonicMs() >= deadline) {
        const detail = `The change was made, and node "${node}" does not know of it yet: repeat it with the same Idempotency-Key to learn when all nodes do`;
        throw new Problem("outcome-unknown", detail);
      }
      // One that stops, for example, says at once that it is not there.
      await this.#pause();
    }
  }

  #pause(): Promise<void> {
    return new Promise((resolve) => {
      const end = this.#parts.clock.every(REACHED_PAUSE_MS, () => {
        end();
        resolve();
      });
    });
  }

  /**
   * One question to a node at a time, and one that waits: it is for all who come meanwhile. So however many wait here,
   * that node holds no more than one of them.
   */
  #askReached(node: string, revision: number): Promise<boolean> {
    const last = this.#reaching.get(node);
    if (last !== undefined && (!last.isBegun || last.revision >= revision)) {
      last.revision = Math.max(last.revision, revision);
      return last.answer;
    }
    const ask = async (): Promise<boolean> => {
      await last?.answer;
      question.isBegun = true;
      const answer = await this.#reach(node, question.revision);
      if (this.#reaching.get(node) === question) this.#reaching.delete(node);
      return answer;
    };
    const question: ReachedQuestion = {
      revision,
      isBegun: false,
      answer: Promise.resolve().then(ask),
    };
    this.#reaching.set(node, question);
    return question.answer;
  }

  async #reach(node: string, revision: number): Promise<boolean> {
    if (node !== this.#parts.node)
      return (await this.#ask<boolean>(node, Method.reached, revision)) === true;
    const deadline = this.#parts.clock.monotonicMs() + CALL_TIMEOUT_MS;
    return new Promise((resolve) => {
      this.#hooks.reach(revision, deadline, resolve);
    });
  }

  async transfer(tenant: string, toNode: string): Promise<void> {
    const { group, leader, replicas } = await this.group(tenant);
    if (!replicas.some(({ node }) => node === toNode))
      throw new Problem("invalid", `Node "${toNode}" holds no replica of tenant "${tenant}"`);
    if (leader === null) throw noQuorum(tenant);
    const replica = this.#hooks.present(group);
    const moves =
      leader === this.#parts.node && replica !== null
        ? this.#transferHere(replica, toNode)
        : await this.#ask<boolean>(leader, Method.transfer, { group, to: toNode });
    if (moves !== true)
      throw new Problem("conflict", "Leadership is not moving: the leader changed meanwhile");
  }

  /** False: it is not led here, or the node has no replica of it. */
  #transferHere(replica: Replica, toNode: string): boolean {
    const target = [...replica.members].find(([, node]) => node === toNode)?.[0];
    if (target === undefined || !replica.raft.isLeader) return false;
    if (target !== replica.id)
      this.#hooks.act(replica, () => replica.raft.transferLeadership(target));
    return true;
  }

  async repair(tenant: string): Promise<Replacement> {
    await this.#find(tenant);
    const { node: self, directory, cold } = this.#parts;
    const row = directory.tenant(tenant);
    const own = row === undefined ? undefined : replicaOn(row.placement, self);
    if (row === undefined || own === undefined)
      throw new Problem("not-found", `Tenant "${tenant}" has no replica on node ${self}`);
    const { group, placement } = row;
    const replica = this.#hooks.wake(group);
    if (replica === null ? !cold.isUnreadable(group) : replica.halted === null)
      throw new Problem(
        "conflict",
        `Leave it: the replica of tenant "${tenant}" on node ${self} runs`,
      );
    if (placement.replicas.some(({ state }) => state !== undefined))
      throw new Problem("conflict", `Try again when tenant "${tenant}" has ended its move`);
    const nodes = placement.replicas.map(({ node }) => node);
    if (!(await this.#isHeldWithout(group, own.id, nodes)))
      throw new Problem(
        "conflict",
        `Bring back the other nodes of tenant "${tenant}" first, or restore it from a backup: without the replica on node ${self} no majority holds everything`,
      );
    return {
      op: "directory.move",
      tenant,
      nodes,
      lost: [own.id],
      generation: placement.generation ?? 0,
    };
  }

  /**
   * Whether nothing acknowledged depends on this stopped replica: what `repair` demands, also of the directory's own, for
   * which no directory speaks.
   */
  async isSpare({ tenant, group, id, members }: Replica): Promise<boolean> {
    if (group === SYSTEM_GROUP) return this.#isHeldWithout(group, id, [...members.values()]);
    return this.repair(tenant).then(
      () => true,
      () => false,
    );
  }

  /**
   * Every committed entry is on a majority that is alive, as the group's leader on one of these nodes says. A node may be
   * alive and its replica stopped, by the same fault: all of these given up would be the end of the group, where a start
   * might have mended them. So each is asked whether it runs.
   */
  async #isHeldWithout(group: number, own: ReplicaId, nodes: readonly string[]): Promise<boolean> {
    const others = nodes.filter((node) => node !== this.#parts.node);
    const answers = await Promise.all(
      others.map((node) => this.#ask<GroupStatus>(node, Method.status, group)),
    );
    const status = answers
      .filter((answer) => answer !== null)
      .reduce<GroupStatus | null>((a, b) => (a !== null && a.term > b.term ? a : b), null);
    if (status === null) return false;
    const voters = status.replicas.filter(({ role }) => role !== "learner");
    const whole = voters.filter(
      ({ node, id, match }) =>
        id !== own && this.#parts.liveness.supports(node) && (match ?? 0) >= status.commit,
    );
    const run = await Promise.all(
      whole.map(({ node }) => this.#ask<boolean>(node, Method.runs, group)),
    );
    return run.filter((runs) => runs === true).length * 2 > voters.length;
  }

  #find(tenant: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#hooks.find(tenant, (error) => {
        if (error === null) resolve();
        else reject(error);
      });
    });
  }

  #ask<T>(node: string, method: Method, question: unknown): Promise<T | null> {
    return new Promise((resolve) => {
      const deadline = this.#parts.clock.monotonicMs() + CALL_TIMEOUT_MS;
      this.#parts.rpc.ask<T>(node, method, question, deadline, resolve);
    });
  }
}
