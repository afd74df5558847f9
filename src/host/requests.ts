/**
 * The two flows below `ConfigService`, from a caller on this node to the replica that answers it:
 *
 *   propose → find → #attemptPropose → (its turn, admission.ts) → proposeHere on the leader, or a call to the node of it → #proposed → done, or again
 *   read    → find → #attemptRead → Replica.readableNow, else Replica.read → #onTime → #atRevision → done
 *
 * A request ends exactly once, when its time is up at the latest. An attempt that found no leader waits until one is
 * known, or for a moment; a change is tried again only as long as that cannot apply it twice. Callbacks only.
 */
import { NotHere, outcomeUnknown, Problem } from "../api/problems.ts";
import type { Command, Outcome } from "../machine/command.ts";
import { isLeaving, wasSettled, type TenantMeta, type TenantRow } from "../machine/rows.ts";
import { Admission, type Refusal } from "./admission.ts";
import { SYSTEM_GROUP, SYSTEM_TENANT, type Directory } from "./directory.ts";
import type { Liveness } from "./liveness.ts";
import type {
  AdmissionStatus,
  Clock,
  DiskSpace,
  ReadOptions,
  TenantView,
  ViewOptions,
} from "./ports.ts";
import type { ProposalResult, ReadResult, Replica } from "./replica.ts";
import { encodeJson, Method, type Rpc } from "./rpc.ts";
import type { Schedules } from "./schedules.ts";

export const PROPOSE_TIMEOUT_MS = 5_000;
export const READ_TIMEOUT_MS = 5_000;
/** How long an attempt waits before it looks again who leads, when nothing tells it sooner. */
const RETRY_MS = 50;
/** Attempts that wait on this node; more are refused. */
const ATTEMPTS_MAX = 50_000;
/** Reads that wait for a revision, per group. */
const REVISION_WAITERS_MAX = 1_000;
/** And those of the directory's group with what nodes ask of each other, one at a time each. */
const DIRECTORY_WAITERS_MAX = 10_000;
/** A read waits at most so long for a schedule whose time has come. */
const SCHEDULE_READ_MS = 500;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Called once: with what is wrong, or with null and the value. */
export type Done<T> = (error: Problem | null, value?: T) => void;

/** Where a tenant is, by the directory. */
export interface Found {
  readonly tenant: string;
  readonly group: number;
  readonly local: boolean;
  readonly nodes: readonly string[];
}

export interface RequestsParts {
  readonly node: string;
  readonly clock: Clock;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly rpc: Rpc;
  readonly schedules: Schedules;
  /** Without it no change is refused for want of room. */
  readonly disk: DiskSpace | undefined;
}

export interface RequestsHooks {
  /** The replica of this group here, if it is in memory. */
  present(group: number): Replica | null;
  /** The same, woken if it sleeps; null when there is none, or no room. */
  wake(group: number): Replica | null;
  /** Its environment here does not open. */
  isUnreadable(group: number): boolean;
  /** Nobody is known to lead it. */
  campaign(replica: Replica): void;
  /** Runs something of a replica, whose outcome is then sent out. */
  act(replica: Replica, run: () => void): void;
  /** Why a leader takes nothing at this moment; null: it does. */
  refusal(replica: Replica): ProposalResult | null;
  /** An attempt is to be made again in a while. */
  retries(): void;
  /** Bytes of the journal that wait for checkpoints, where they are too many to take changes; else null. */
  bytesBehind(): number | null;
  /** Tells a node that this replica leads no more. */
  disown(replica: Replica, node: string): void;
}

/** A proposal on its way to being applied somewhere. */
interface PendingProposal {
  found: Found;
  readonly command: Command;
  readonly data: Uint8Array;
  readonly repeatable: boolean;
  readonly deadline: number;
  readonly done: Done<Outcome>;
  /** Who leads, as the last one asked said. */
  hint: string | null;
  /** How many were asked who may know who leads. */
  asked: number;
  /** An earlier attempt may have been applied. */
  uncertain: boolean;
}

/** What another node answers to a proposal. */
type ProposeAnswer =
  | Exclude<ProposalResult, { kind: "not-leader" }>
  | { readonly kind: "not-leader"; readonly leader?: string | null };

interface ForwardedProposal {
  readonly group: number;
  /** By the clock here. */
  readonly deadline: number;
  readonly data: Uint8Array;
}

interface Attempt {
  readonly group: number;
  readonly run: () => void;
  readonly refuse: (problem: Problem) => void;
  readonly due: number;
}

interface RevisionWaiter {
  readonly revision: number;
  readonly deadline: number;
  readonly done: (ok: boolean) => void;
}

export class Requests {
  readonly #parts: RequestsParts;
  readonly #hooks: RequestsHooks;
  readonly #clock: Clock;
  readonly #directory: Directory;
  readonly #liveness: Liveness;
  readonly #admission = new Admission();
  #attempts: Attempt[] = [];
  readonly #revisionWaiters = new Map<number, RevisionWaiter[]>();
  #isStopping = false;

  constructor(parts: RequestsParts, hooks: RequestsHooks) {
    this.#parts = parts;
    this.#hooks = hooks;
    this.#clock = parts.clock;
    this.#directory = parts.directory;
    this.#liveness = parts.liveness;
    parts.rpc.serve(Method.propose, (from, payload, respond) => {
      this.#serveProposal(from, decodeProposal(payload, parts.clock.monotonicMs()), (answer) =>
        respond(encodeJson(answer)),
      );
    });
  }

  // --- where -----------------------------------------------------------------------------------------------------------

  /** Finds a tenant's group; asks the directory's leader before it says that there is none. */
  find(tenant: string, deadline: number, done: Done<Found>, evenDeleted = false): void {
    if (tenant === SYSTEM_TENANT) {
      return done(null, { tenant, group: SYSTEM_GROUP, local: true, nodes: [] });
    }
    const row = this.#directory.tenant(tenant);
    if (row !== undefined) return this.#found(row, evenDeleted, done);
    const timeoutMs = Math.max(1, deadline - this.#clock.monotonicMs());
    this.read(SYSTEM_TENANT, { consistency: "linearizable", timeoutMs }, (error) => {
      if (error !== null) return done(error);
      const now = this.#directory.tenant(tenant);
      if (now === undefined)
        return done(new Problem("not-found", `No tenant is called "${tenant}"`));
      this.#found(now, evenDeleted, done);
    });
  }

  #found(row: TenantRow, evenDeleted: boolean, done: Done<Found>): void {
    if (row.deletedAt !== null && !evenDeleted) {
      return done(
        new Problem("tenant-deleted", `Tenant "${row.tenant}" is deleted: undelete it first`),
      );
    }
    done(null, this.#foundIn(row));
  }

  #foundIn(row: TenantRow): Found {
    const { nodes } = servingNodes(row);
    const local = this.#isServedHere(row);
    return { tenant: row.tenant, group: row.group, local, nodes };
  }

  locateNow(tenant: string): { readonly local: boolean } | undefined {
    if (tenant === SYSTEM_TENANT) return { local: true };
    const row = this.#directory.tenant(tenant);
    if (row === undefined) return undefined;
    return { local: this.#serves(row) };
  }

  /** This node holds a replica of it, and one that works. */
  #serves(row: TenantRow): boolean {
    return (
      this.#isServedHere(row) &&
      (this.#hooks.present(row.group)?.halted ?? null) === null &&
      !this.#hooks.isUnreadable(row.group)
    );
  }

  /** One that leaves may be out of its group already without a word: it serves where nobody is there who stays. */
  #isServedHere(row: TenantRow): boolean {
    const { node } = this.#parts;
    const { nodes, staying } = servingNodes(row);
    if (staying.includes(node)) return true;
    const isThere = (other: string): boolean => this.#liveness.supports(other);
    return nodes.includes(node) && !staying.some(isThere);
  }

  // --- changes -------------------------------------------------------------------------------------------------------------

  /** Tries until the deadline as long as trying again cannot apply the command twice. */
  propose(tenant: string, command: Command, timeoutMs: number, done: Done<Outcome>): void {
    const deadline = this.#clock.monotonicMs() + timeoutMs;
    this.find(tenant, deadline, (error, found) => {
      if (error !== null) return done(error);
      this.#attemptPropose({
        found: found as Found,
        command,
        data: encoder.encode(JSON.stringify(command)),
        repeatable: command.idempotency !== undefined,
        deadline,
        hint: null,
        asked: 0,
        uncertain: false,
        done,
      });
    });
  }

  #proposeAgain(proposal: PendingProposal): void {
    // Its replicas may have moved meanwhile.
    const row = this.#directory.byGroup(proposal.found.group);
    if (row !== undefined) proposal.found = this.#foundIn(row);
    this.#attemptPropose(proposal);
  }

  #attemptPropose(proposal: PendingProposal, isAdmitted = false): void {
    const { deadline } = proposal;
    const now = this.#clock.monotonicMs();
    if (now >= deadline) return failProposal(proposal, noQuorum(proposal.found.tenant));
    const { found } = proposal;
    const replica = this.#proposer(found);
    if (replica !== null) {
      replica.usedAt = now;
      if (replica.halted !== null) return failProposal(proposal, halted(found.tenant));
      if (replica.raft.isLeader) {
        // One that is handing over refuses: a hint from before would bring us here again at once (seed 83017).
        proposal.hint = null;
        const entrant = {
          bytes: proposal.data.length,
          deadline,
          run: () => this.#attemptPropose(proposal, true),
          refuse: (reason: Refusal) => {
            if (reason === "stopping") failProposal(proposal, this.#stoppingProblem());
            else this.#proposed(proposal, { kind: reason });
          },
        };
        if (!isAdmitted && !this.#admission.enter(found.group, entrant, now))
          return this.#hooks.retries();
        const { data, command } = proposal;
        const done = (result: ProposalResult): void => this.#proposed(proposal, result);
        return this.proposeHere(replica, data, deadline, done, command);
      }
    }
    const target = this.#whereToPropose(proposal, replica);
    proposal.hint = null;
    if (target === null) {
      if (replica !== null) this.#hooks.campaign(replica);
      return this.#proposeLater(proposal);
    }
    const payload = encodeProposal(found.group, Math.max(1, deadline - now), proposal.data);
    this.#parts.rpc.call(target, Method.propose, payload, deadline, (result) => {
      if (result.kind === "unknown") return this.#proposed(proposal, { kind: "unknown" });
      if (result.kind === "not-sent") return this.#proposed(proposal, { kind: "not-leader" });
      const answer = parseAnswer(result.bytes);
      if (answer.kind === "not-leader") {
        const leader = answer.leader ?? null;
        if (leader !== target && leader !== this.#parts.node) proposal.hint = leader;
        // It says that it does not lead: so may it not, and its node, being alive, would be trusted for ever.
        if (replica !== null && leader === null && replica.leaderNode === target)
          this.#hooks.act(replica, () => replica.raft.doubtLeader());
      }
      this.#proposed(proposal, answer);
    });
  }

  /**
   * The replica here that takes a change to its group. Of one that joins or leaves, and answers nobody who reads, only if
   * it leads: all others send whoever asks them to it, and the change would wait until leadership is handed over, or the
   * move has ended.
   */
  #proposer({ group, local }: Found): Replica | null {
    if (local) return this.#hooks.wake(group);
    const replica = this.#hooks.present(group);
    return replica?.raft.isLeader === true && replica.halted === null ? replica : null;
  }

  /** The leader if anybody knows it; a node without a replica asks one that has it. */
  #whereToPropose(proposal: PendingProposal, replica: Replica | null): string | null {
    const { found, hint } = proposal;
    const isThere = (node: string): boolean =>
      node !== this.#parts.node && this.#liveness.supports(node);
    const leader = hint ?? replica?.leaderNode ?? null;
    if (leader !== null && isThere(leader)) return leader;
    // Who is not (any more) one of those who elect it may never hear of a leader.
    if (replica?.isVoter === true) return null;
    // Another one each time: one that left its group without a word, or is stopped, would say the same for ever.
    const known = this.#hooks.present(found.group)?.leaderNode ?? null;
    const others = (known === null ? found.nodes : [known, ...found.nodes]).filter(isThere);
    return others[proposal.asked++ % others.length] ?? null;
  }

  /** Somebody waits for a leader: where none is known that is alive, this replica asks to be one. */
  #seekLeader(replica: Replica): void {
    const leader = replica.leaderNode;
    if (leader === null || !this.#liveness.supports(leader)) this.#hooks.campaign(replica);
  }

  #proposed(proposal: PendingProposal, result: ProposeAnswer): void {
    const { found } = proposal;
    switch (result.kind) {
      case "applied":
        return proposal.done(null, result.outcome);
      case "not-leader":
        // A hint is followed at once; without one, whoever comes to lead ends the wait.
        if (proposal.hint !== null) return this.#proposeAgain(proposal);
        return this.#proposeLater(proposal);
      case "lost":
        return this.#proposeLater(proposal);
      case "overloaded":
        return failProposal(
          proposal,
          new Problem(
            "overloaded",
            result.detail ?? `Too many changes wait for tenant "${found.tenant}"`,
          ),
        );
      case "disk-full":
        return failProposal(proposal, new Problem("disk-full", result.detail));
      case "halted":
        return failProposal(proposal, halted(found.tenant));
      case "unknown":
        proposal.uncertain = true;
        // With an idempotency key it cannot be applied twice, whatever became of it.
        if (proposal.repeatable) return this.#proposeLater(proposal);
        return failProposal(proposal, outcomeUnknown());
    }
  }

  #proposeLater(proposal: PendingProposal): void {
    const { found, deadline } = proposal;
    this.retry(
      found.group,
      deadline,
      () => this.#proposeAgain(proposal),
      (problem) => failProposal(proposal, problem),
    );
  }

  /** Another node takes this one for the leader, or for one that knows it. */
  #serveProposal(
    from: string,
    { group, deadline, data }: ForwardedProposal,
    respond: (answer: ProposeAnswer) => void,
    isAdmitted = false,
  ): void {
    if (this.#isStopping) {
      const leader = this.#hooks.present(group)?.leaderNode ?? null;
      return respond({ kind: "not-leader", leader });
    }
    const replica = this.#hooks.wake(group);
    if (replica === null) return respond({ kind: "not-leader" });
    const now = this.#clock.monotonicMs();
    replica.usedAt = now;
    if (replica.halted !== null) {
      // Whoever asks takes it for the leader, which it will never be again.
      this.#hooks.disown(replica, from);
      return respond({ kind: "not-leader" });
    }
    if (!replica.raft.isLeader) {
      this.#seekLeader(replica);
      // Who is taken for the leader asks for one.
      if (replica.leaderNode === from) this.#hooks.act(replica, () => replica.raft.doubtLeader());
      return respond({ kind: "not-leader", leader: replica.leaderNode });
    }
    const entrant = {
      bytes: data.length,
      deadline,
      run: () => this.#serveProposal(from, { group, deadline, data }, respond, true),
      // Whoever comes to lead instead takes it.
      refuse: (reason: Refusal) =>
        respond({ kind: reason === "stopping" ? "not-leader" : "overloaded" }),
    };
    if (!isAdmitted && !this.#admission.enter(group, entrant, now)) return this.#hooks.retries();
    this.proposeHere(replica, data, deadline, respond);
  }

  /** To the leader, which this replica is: `done` is called once, when it is applied or known not to be. */
  proposeHere(
    replica: Replica,
    data: Uint8Array,
    deadline: number,
    done: (result: ProposalResult) => void,
    command: Command | null = null,
  ): void {
    const refusal = this.#hooks.refusal(replica);
    if (refusal !== null) return done(refusal);
    const shortage = this.#shortage();
    if (shortage !== null && takesRoom(data)) return done(shortage);
    let told = false;
    const admitted = this.#admission.began(replica.group, this.#clock.monotonicMs());
    const once = (result: ProposalResult): void => {
      if (told) return;
      told = true;
      this.#admission.ended(admitted, this.#clock.monotonicMs());
      done(result);
    };
    this.#hooks.act(replica, () => replica.propose(data, deadline, once, command));
    if (replica.halted !== null) once({ kind: "unknown" });
  }

  /** Why nothing is taken that needs room, on the disk or in memory. */
  #shortage(): ProposalResult | null {
    const { disk, node } = this.#parts;
    if (disk !== undefined && disk.level !== "free") {
      const [free, reserve] = [disk.freeBytes, disk.reserveBytes].map(mebibytes);
      return {
        kind: "disk-full",
        detail: `Node "${node}" has ${free} MiB of disk left and keeps ${reserve} MiB free: nothing was changed; make room, or delete what is not needed`,
      };
    }
    const behind = this.#hooks.bytesBehind();
    if (behind === null) return null;
    return {
      kind: "overloaded",
      detail: `Node "${node}" has ${mebibytes(behind)} MiB of journal that are not in its tenants' files yet, more than it may: nothing was changed; try again when its disk has caught up`,
    };
  }

  // --- reads ---------------------------------------------------------------------------------------------------------------

  /** The view is valid until `done` returns. */
  read(tenant: string, options: ReadOptions, done: Done<TenantView>): void {
    const deadline = this.#clock.monotonicMs() + (options.timeoutMs ?? READ_TIMEOUT_MS);
    if (options.consistency === "stale") {
      const replica = this.#replicaNow(tenant, options.evenDeleted);
      if (replica !== null && !isRestoring(replica, options))
        return this.#atRevision(replica, options, deadline, done);
    }
    const found: Done<Found> = (error, place) => {
      if (error !== null) return done(error);
      this.#attemptRead(place as Found, options, deadline, done);
    };
    this.find(tenant, deadline, found, options.evenDeleted);
  }

  viewNow(tenant: string, options: ViewOptions = {}): TenantView | null {
    if (options.consistency === "linearizable") return this.#ledNow(tenant);
    const view = this.#replicaNow(tenant)?.view;
    if (view === undefined && options.evenUnborn === true) return this.#unbornNow(tenant);
    // `read` tells that it is being restored.
    return view?.get<TenantMeta>("meta")?.restore === undefined ? (view ?? null) : null;
  }

  /** What `read` would find at once: the moment of the question is this one. */
  #ledNow(tenant: string): TenantView | null {
    const row = this.#directory.tenant(tenant);
    if (row === undefined || row.deletedAt !== null || !this.#isServedHere(row)) return null;
    const replica = this.#hooks.present(row.group);
    if (replica?.readableNow !== true || this.#parts.schedules.overdue(row.group) !== null)
      return null;
    replica.usedAt = this.#clock.monotonicMs();
    return isRestoring(replica, {}) ? null : replica.view;
  }

  #unbornNow(tenant: string): TenantView | null {
    const row = this.#directory.tenant(tenant);
    if (row === undefined || row.deletedAt !== null) return null;
    return this.#hooks.present(row.group)?.unborn ?? null;
  }

  /** The replica here, if it is awake and has a state to show. */
  #replicaNow(tenant: string, evenDeleted = false): Replica | null {
    const row = tenant === SYSTEM_TENANT ? null : this.#directory.tenant(tenant);
    const group = row === null ? SYSTEM_GROUP : row?.group;
    const replica = group === undefined ? null : this.#hooks.present(group);
    const isThere = row?.deletedAt == null || evenDeleted;
    if (replica?.initialised !== true || replica.halted !== null || !isThere) return null;
    replica.usedAt = this.#clock.monotonicMs();
    return replica;
  }

  #attemptRead(found: Found, options: ReadOptions, deadline: number, done: Done<TenantView>): void {
    const now = this.#clock.monotonicMs();
    const again = (): void => this.#attemptRead(found, options, deadline, done);
    if (now >= deadline) return done(noQuorum(found.tenant));
    if (!found.local) return done(new NotHere(found.tenant));
    const replica = this.#hooks.wake(found.group);
    if (replica === null) {
      if (this.#hooks.isUnreadable(found.group)) return done(halted(found.tenant));
      if (this.#hasLeft(found)) return done(new NotHere(found.tenant));
      return this.retry(found.group, deadline, again, done);
    }
    replica.usedAt = now;
    if (replica.halted !== null) return done(halted(found.tenant));
    const isStale = options.consistency === "stale";
    const evenUnborn = isStale && options.evenUnborn === true && found.group !== SYSTEM_GROUP;
    const finish = (result: ReadResult): void => {
      switch (result) {
        case "ok":
          if (evenUnborn && replica.unborn !== null) return done(null, replica.unborn);
          return this.#onTime(replica, deadline, () => {
            // It may have gone away while a schedule was waited for.
            if (this.#hooks.present(found.group) !== replica || replica.halted !== null) again();
            else this.#atRevision(replica, options, deadline, done);
          });
        case "no-leader":
          return done(noQuorum(found.tenant));
        case "overloaded":
          return done(new Problem("overloaded", `Too many reads wait for tenant ${found.tenant}`));
        case "halted":
          return done(this.#hasLeft(found) ? new NotHere(found.tenant) : halted(found.tenant));
      }
    };
    // The moment of this question is within the call, so whatever comes between it and the answer, a stopped process for
    // example, the answer was true after the call began.
    if (replica.readableNow) return finish("ok");
    // A follower may hear of a restore's end later than who asks here, and no value of before it is left to answer with:
    // that question goes to the leader.
    if (isStale && this.#isLed(replica) && !isRestoring(replica, options))
      return this.#atRevision(replica, options, deadline, done);
    this.#seekLeader(replica);
    if (evenUnborn && replica.unborn !== null) return done(null, replica.unborn);
    this.#hooks.act(replica, () => replica.read(deadline, finish, evenUnborn));
  }

  /** The tenant is served by others now, or was purged. */
  #hasLeft({ group }: { readonly group: number }): boolean {
    if (group === SYSTEM_GROUP) return false;
    const row = this.#directory.byGroup(group);
    return row === undefined || !this.#foundIn(row).local;
  }

  /** It slept, and goes on with its leader, or as one: its state is as new as that of any replica that is awake. */
  #isLed(replica: Replica): boolean {
    const leader = replica.leaderNode;
    const isThere = replica.raft.isLeader || (leader !== null && this.#liveness.supports(leader));
    return isThere && replica.initialised;
  }

  /** A rule whose time has come by this node's clock is waited for a little, most of all after a sleep. */
  #onTime(replica: Replica, deadline: number, done: () => void): void {
    const { group } = replica;
    const overdue = this.#parts.schedules.overdue(group);
    if (overdue === null) return done();
    const now = this.#clock.monotonicMs();
    overdue.readsUntil ??= now + SCHEDULE_READ_MS;
    if (overdue.readsUntil <= now) return done();
    const waits = this.#await(group, {
      revision: replica.view.revision + 1,
      deadline: Math.min(deadline, overdue.readsUntil),
      done,
    });
    if (!waits) done();
  }

  #atRevision(
    replica: Replica,
    options: ReadOptions,
    deadline: number,
    done: Done<TenantView>,
  ): void {
    const { minRevision: revision } = options;
    if (isRestoring(replica, options)) {
      const detail = `Tenant "${replica.tenant}" is being restored from a backup`;
      return done(new Problem("restoring", detail));
    }
    const at = replica.view.revision;
    if (revision === undefined || at >= revision) return done(null, replica.view);
    const behind = `Revision ${revision} is not here yet: this replica was at ${at}`;
    const waits = this.#await(replica.group, {
      revision,
      deadline,
      done: (ok) => {
        if (ok && this.#hooks.present(replica.group) === replica) return done(null, replica.view);
        done(
          this.#hasLeft(replica)
            ? new NotHere(replica.tenant)
            : new Problem("not-caught-up", behind),
        );
      },
    });
    if (!waits) done(new Problem("not-caught-up", behind));
  }

  // --- what waits ------------------------------------------------------------------------------------------------------------

  get admission(): AdmissionStatus {
    return this.#admission.status;
  }

  /** Runs again when the group has a leader, or after a while. `refuse`: it does not. */
  retry(
    group: number,
    deadline: number,
    run: () => void,
    refuse: (problem: Problem) => void,
  ): void {
    if (this.#isStopping) return refuse(this.#stoppingProblem());
    if (this.#attempts.length >= ATTEMPTS_MAX)
      return refuse(new Problem("overloaded", "Too many requests wait for a leader on this node"));
    const due = Math.min(deadline, this.#clock.monotonicMs() + RETRY_MS);
    this.#attempts.push({ group, run, refuse, due });
    this.#hooks.retries();
  }

  /** This node ends. What waits to begin, here or elsewhere, is answered as not done, and so is what comes. */
  stop(): void {
    this.#isStopping = true;
    this.#admission.stop();
    const attempts = this.#attempts;
    this.#attempts = [];
    for (const { refuse } of attempts) refuse(this.#stoppingProblem());
    for (const group of this.#revisionWaiters.keys()) this.gone(group);
  }

  #stoppingProblem(): Problem {
    const detail = `Node "${this.#parts.node}" stops, and has not begun this: ask another node`;
    return new Problem("not-ready", detail);
  }

  /** Some attempt waits for its time, or a write for its batch. */
  get isRetrying(): boolean {
    return this.#attempts.length > 0 || this.#admission.status.waiting > 0;
  }

  /** Attempts whose time has come, and writes whose turn it is. Call every PULSE_MS. */
  pulse(now: number): void {
    this.#admission.pulse(now);
    this.#retryNow(({ due }) => due <= now);
  }

  /** The group has a leader, as the replica here knows. */
  led(group: number): void {
    this.#retryNow((attempt) => attempt.group === group);
  }

  #retryNow(isDue: (attempt: Attempt) => boolean): void {
    const attempts = this.#attempts;
    this.#attempts = [];
    for (const attempt of attempts) {
      if (isDue(attempt)) this.#clock.defer(attempt.run);
      else this.#attempts.push(attempt);
    }
  }

  /** False: too many wait. */
  #await(group: number, waiter: RevisionWaiter, waitersMax = REVISION_WAITERS_MAX): boolean {
    const waiters = this.#revisionWaiters.get(group) ?? [];
    if (waiters.length >= waitersMax || this.#isStopping) return false;
    waiters.push(waiter);
    this.#revisionWaiters.set(group, waiters);
    return true;
  }

  /**
   * Whether the directory here comes to this revision in time. Reads that wait do not keep it from being waited for: each
   * node asks one such question at a time (care.ts).
   */
  reach(revision: number, deadline: number, done: (ok: boolean) => void): void {
    if (this.#clock.monotonicMs() >= deadline) return done(false);
    const replica = this.#replicaNow(SYSTEM_TENANT);
    if (replica === null) {
      const again = (): void => this.reach(revision, deadline, done);
      return this.retry(SYSTEM_GROUP, deadline, again, () => done(false));
    }
    if (replica.view.revision >= revision) return done(true);
    if (!this.#await(SYSTEM_GROUP, { revision, deadline, done }, DIRECTORY_WAITERS_MAX))
      done(false);
  }

  /** Whether anybody waits for a revision of it. */
  isAwaited(group: number): boolean {
    return this.#revisionWaiters.has(group);
  }

  /** The replica shows another revision. */
  applied(replica: Replica): void {
    const waiters = this.#revisionWaiters.get(replica.group);
    if (waiters === undefined) return;
    const { revision } = replica.view;
    const left = waiters.filter((waiter) => {
      if (waiter.revision > revision) return true;
      // Not within the replica's own turn: what a reader throws is not its fault.
      this.#clock.defer(() => waiter.done(true));
      return false;
    });
    if (left.length === 0) this.#revisionWaiters.delete(replica.group);
    else this.#revisionWaiters.set(replica.group, left);
  }

  /** Ends the waits whose time is up. */
  expire(now: number): void {
    this.#admission.expire(now);
    for (const [group, waiters] of this.#revisionWaiters) {
      const left = waiters.filter((waiter) => {
        if (waiter.deadline > now) return true;
        waiter.done(false);
        return false;
      });
      if (left.length === 0) this.#revisionWaiters.delete(group);
      else this.#revisionWaiters.set(group, left);
    }
  }

  /** The replica here goes away: whoever waits for a revision of it is told. */
  gone(group: number): void {
    for (const waiter of this.#revisionWaiters.get(group) ?? []) {
      this.#clock.defer(() => waiter.done(false));
    }
    this.#revisionWaiters.delete(group);
  }
}

function parseAnswer(bytes: Uint8Array): ProposeAnswer {
  try {
    return JSON.parse(decoder.decode(bytes)) as ProposeAnswer;
  } catch {
    return { kind: "unknown" };
  }
}

/** Once an attempt may have been applied, no later failure can be told as if nothing had happened. */
function failProposal(proposal: PendingProposal, problem: Problem): void {
  proposal.done(proposal.uncertain ? outcomeUnknown() : problem);
}

interface Serving {
  /** Best first. */
  readonly nodes: readonly string[];
  /** Those of them whose replicas do not leave. */
  readonly staying: readonly string[];
}

/** Where a tenant is served: not by replicas that may have nothing yet, nor by those that lost it. */
function servingNodes(row: TenantRow): Serving {
  let found = serving.get(row);
  if (found === undefined) serving.set(row, (found = servingNodesOf(row)));
  return found;
}
/** Every request asks several times, and a row is never changed. */
const serving = new WeakMap<TenantRow, Serving>();

function servingNodesOf({ placement: { replicas } }: TenantRow): Serving {
  const left = replicas.filter(({ state }) => state !== "lost");
  // One that was to join and leaves again may have got what it came for, when those before it may have gone.
  const settled = left.filter((replica) => isLeaving(replica) || wasSettled(replica));
  const able = settled.length > 0 ? settled : left;
  const staying = able.filter((replica) => !isLeaving(replica)).map(({ node }) => node);
  const leaving = able.filter(isLeaving).map(({ node }) => node);
  return { nodes: [...staying, ...leaving], staying };
}

/** And whoever asks is not the one that brings its rows. */
function isRestoring(
  { view }: Replica,
  { evenRestoring }: Pick<ReadOptions, "evenRestoring">,
): boolean {
  return evenRestoring !== true && view.get<TenantMeta>("meta")?.restore !== undefined;
}

function encodeProposal(group: number, deadlineMs: number, data: Uint8Array): Uint8Array {
  const head = encoder.encode(`${group} ${Math.ceil(deadlineMs)}\n`);
  const bytes = new Uint8Array(head.length + data.length);
  bytes.set(head);
  bytes.set(data, head.length);
  return bytes;
}

function decodeProposal(bytes: Uint8Array, now: number): ForwardedProposal {
  const end = bytes.indexOf(10);
  const [group, deadlineMs] = decoder.decode(bytes.subarray(0, end)).split(" ").map(Number);
  return { group: group ?? 0, deadline: now + (deadlineMs ?? 0), data: bytes.slice(end + 1) };
}

/** What makes room, and what nodes do by themselves, is taken on a disk that is nearly full. */
function takesRoom(data: Uint8Array): boolean {
  const { actor, action } = JSON.parse(decoder.decode(data)) as Command;
  return actor.kind !== "system" && !/(^|\.)delete$/.test(action.op);
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(0);
}

/** Nobody leads its group, as far as is known here. */
export function noQuorum(tenant: string): Problem {
  return new Problem(
    "no-quorum",
    `No leader answers for tenant "${tenant}": too few of its replicas are up`,
  );
}

export function halted(tenant: string): Problem {
  return new Problem(
    "replica-halted",
    `The replica of tenant "${tenant}" on this node was stopped by a fault`,
  );
}
