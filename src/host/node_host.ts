/**
 * A node: it makes the rooms of this floor, gives each the few things of the others that it needs, takes what comes in
 * (frames, calls, time, a directory that changed) to whom it concerns, and is what the gateway asks (`ConfigService`).
 *
 *   onFrame / propose / read / tick → Replica (`replicas.ts`) → turn and journal (`turns.ts`) → frames (`outboxes.ts`)
 *     → journal says durable → answers leave, entries commit and are applied → callers are answered (`requests.ts`)
 *
 * Promises begin at the public methods; below them everything is callbacks, so that the simulator can run a NodeHost on
 * virtual time.
 */
import { NotHere, outcomeUnknown, Problem, type ProblemCode } from "../api/problems.ts";
import { assert } from "../lib/assert.ts";
import { Prng } from "../lib/prng.ts";
import {
  levelFirst,
  type Command,
  type NodeRole,
  type Outcome,
  type RejectCode,
  type SystemAction,
} from "../machine/command.ts";
import type { HistoryRow, Member, TenantMeta, TenantRow } from "../machine/rows.ts";
import { emptyMessage, MessageType, NONE, type Message, type ReplicaId } from "../raft/types.ts";
import { Balance } from "./balance.ts";
import { Care } from "./care.ts";
import { checkpointTuningDefaults, Checkpoints, type CheckpointTuning } from "./checkpoints.ts";
import {
  appendRecord,
  decodeHeartbeat,
  frameItems,
  FrameWriter,
  ItemKind,
  parseRaftItem,
  recoveredIncarnation,
  type Heartbeat,
} from "./codec.ts";
import { ColdReplicas } from "./cold_replicas.ts";
import { Directory, SYSTEM_GROUP, SYSTEM_TENANT } from "./directory.ts";
import { Elections } from "./elections.ts";
import {
  Entry,
  initialMembers,
  type Acquaintance,
  type EntryHooks,
  type SystemIdentity,
} from "./entry.ts";
import { Leaderships } from "./leaderships.ts";
import { Leases } from "./leases.ts";
import { Liveness } from "./liveness.ts";
import { Membership, replicaOn } from "./membership.ts";
import { Outboxes } from "./outboxes.ts";
import { placeTenant } from "./placement.ts";
import type {
  Clock,
  ClusterStatus,
  ConfigService,
  DiskSpace,
  Environments,
  GroupStatus,
  Journal,
  JournalRecovery,
  Lane,
  Log,
  Quarantine,
  ReadOptions,
  Replacement,
  TenantSnapshot,
  TenantView,
  ViewOptions,
  Transport,
  WatchListener,
} from "./ports.ts";
import { Pulse, REST_MS } from "./pulse.ts";
import { Reconciler } from "./reconciler.ts";
import type { ProposalResult, Replica, ReplicaHooks, ReplicaSnapshot } from "./replica.ts";
import { Replicas, replicasTuningDefaults, type ReplicasTuning } from "./replicas.ts";
import {
  halted,
  PROPOSE_TIMEOUT_MS,
  READ_TIMEOUT_MS,
  Requests,
  type Done,
  type Found,
} from "./requests.ts";
import { Method, Rpc } from "./rpc.ts";
import { Schedules } from "./schedules.ts";
import { Sleepers } from "./sleepers.ts";
import { SnapshotExchange } from "./snapshots.ts";
import { clusterStatus } from "./status.ts";
import { TenantSettings } from "./tenant_settings.ts";
import { Turns } from "./turns.ts";
import { levelsHere, Versions, type Levels, type NodeNews } from "./versions.ts";
import { WallTime } from "./wall_time.ts";
import { WatchHub } from "./watch_hub.ts";

/** Rejections of the machine are problems of the API; this fails to compile when one is missing there. */
type EveryRejectionIsAProblem = RejectCode extends ProblemCode ? true : never;
const everyRejectionIsAProblem: EveryRejectionIsAProblem = true;
void everyRejectionIsAProblem;

/** How long a gateway waits for a node that has not been heard of. */
const EXCHANGE_SILENT_MS = 2_000;
/** All that waits and all replicas that are busy are gone through this often: whose time is up, and who holds too much. */
const EXPIRE_MS = 100;
/** Answers to other nodes' gateways are frames, and a frame is at most 16 MiB. */
const ANSWER_BYTES_MAX = 15 * 1024 * 1024;
const CLOCK_DRIFT_MAX = 0.1;

/** When things are written behind; the simulator makes them happen more often. */
export interface Tuning extends CheckpointTuning, ReplicasTuning {
  /** Rows of a snapshot that travel together. */
  readonly snapshotPartBytes: number;
  /** Replicas of a node that was not heard of for this long get a place elsewhere. */
  readonly replaceAfterMs: number;
  /** When nodes neither came nor went for this long, those that lead more groups than others give some away. */
  readonly balanceAfterMs: number;
}

const tuningDefaults: Tuning = {
  ...checkpointTuningDefaults,
  ...replicasTuningDefaults,
  snapshotPartBytes: 128 * 1024,
  replaceAfterMs: 5 * 60_000,
  balanceAfterMs: 10_000,
};

/** Snapshots of tenants that are read here at once. */
const SNAPSHOTS_MAX = 80;
/** And those that are sent to other nodes, or come in from them. */
const TRANSFERS_MAX = 16;
/** Groups that move take their next step this often. */
const MEMBERSHIP_MS = 200;
/** Whether others hold all that a stopped replica has is asked this often. */
const GIVE_WAY_MS = 10_000;
/** The directory's own, if it is stopped, gives way when the journal holds so many times its bound of segments. */
const BLIND_SEGMENTS_FACTOR = 8;
export interface NodeHostOptions {
  readonly cluster: string;
  readonly node: string;
  readonly boot: number;
  readonly version: string;
  /** Names of the initial nodes, this one among them; each gets a voter of the system group. */
  readonly peers: readonly string[];
  /** Names the data directory; absent: it is taken for the one that was always there. */
  readonly diskId?: string;
  readonly zone?: string;
  /** Absent: member. A gateway is not one of the initial nodes. */
  readonly role?: NodeRole;
  readonly transportKind: "loopback" | "nats";
  readonly journal: Journal;
  readonly environments: Environments;
  readonly transport: Transport;
  readonly clock: Clock;
  readonly seed: number;
  readonly log: Log;
  /** The process cannot go on: an environment or an invariant of the host itself failed. */
  readonly onFatal: (error: Error) => void;
  /** A part of a restore went to the disk: what it took in memory is of no more use. */
  readonly onBulkStored?: () => void;
  readonly tuning?: Partial<Tuning>;
  /** Without it damage lasts as long as the segments in which it was found. */
  readonly quarantine?: Quarantine;
  /** Levels of commands that this version knows; tests give others. */
  readonly levels?: Levels;
  /** How much a clock may gain or lose, as a part of the time that passes; null: no lease reads here. Default 0.1. */
  readonly clockDriftMax?: number | null;
  /** Without it no write is refused for want of room. */
  readonly disk?: DiskSpace;
}

/** What a node says of itself that wants to be a member. */
interface JoinQuestion {
  readonly disk: string;
  readonly zone?: string;
  readonly role?: NodeRole;
}

const encoder = new TextEncoder();
const EMPTY = new Uint8Array(0);

export class NodeHost implements ConfigService {
  readonly node: string;
  readonly #options: NodeHostOptions;
  readonly #tuning: Tuning;
  readonly #clock: Clock;
  readonly #log: Log;

  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly #leases: Leases;
  readonly #versions: Versions;
  /** All replicas in memory, by group: the one map of them (invariant 4). */
  readonly #replicas: Replicas;
  readonly #sleepers = new Sleepers();
  readonly #cold: ColdReplicas;
  readonly #turns: Turns;
  readonly #outboxes: Outboxes;
  readonly #rpc: Rpc;
  readonly #time: WallTime;
  /** A later start of this node is known to others. */
  #isOutnumbered = false;
  readonly #snapshots: SnapshotExchange;
  readonly #checkpoints: Checkpoints;
  readonly #elections: Elections;
  readonly #leaderships: Leaderships;
  readonly #schedules: Schedules;
  readonly hub: WatchHub;
  /** Changes and reads by callback; who wants a promise asks this class. */
  readonly requests: Requests;
  readonly #settings: TenantSettings;
  readonly #membership: Membership;
  readonly #reconciler: Reconciler;
  readonly #balance: Balance;
  readonly #care: Care;

  /** While it is not decided as which replica of `_system` this node comes in. */
  #entry: Entry | null = null;
  #identity: SystemIdentity | null = null;
  readonly #pulse: Pulse;
  /** What the journal holds is known; before that everybody else is taken for not heard. */
  #isOpen = false;
  #stopping = false;

  // What a pulse did when.
  #expiredAt = 0;
  #movedAt = 0;
  /** What moved when that was looked at last. */
  #moves = 0;

  #givingWay = false;
  /** Before when stopped replicas are not asked about again. */
  readonly #askedToGiveWay = new WeakMap<Replica, number>();
  /** Taken for callers of this node, who close them. */
  readonly #snapshotsOpen = new Set<ReplicaSnapshot>();
  #exchangeHandler: ((from: string, request: Uint8Array) => Promise<Uint8Array>) | null = null;

  constructor(options: NodeHostOptions) {
    const { node, boot, version, seed, clock, clockDriftMax = CLOCK_DRIFT_MAX } = options;
    this.#options = options;
    this.#tuning = { ...tuningDefaults, ...options.tuning };
    this.node = node;
    this.#clock = clock;
    this.#log = options.log;
    const prng = new Prng(seed);
    this.#pulse = new Pulse(clock, {
      heartbeat: () => this.#heartbeat(),
      pulse: () => this.#round(),
      tick: () => this.#turns.tick(),
      isBusy: () => this.#isBusy(),
    });
    const now = clock.monotonicMs();

    this.hub = new WatchHub((error) => {
      this.#log.error({ err: error }, "watch.listener_failed");
    });
    const directory = new Directory(() => this.#replicas.get(SYSTEM_GROUP)?.view ?? null);
    const events = {
      up: (peer: string) => this.#nodeUp(peer),
      down: (peer: string) => this.#nodeDown(peer),
    };
    const liveness = new Liveness(node, now, events, boot);
    this.#time = new WallTime(clock, (aheadMs, follows) => {
      if (follows) this.#log.warn({ aheadMs }, "clock.wrong");
      else this.#log.info({ aheadMs }, "clock.right");
    });
    const rpc = new Rpc(
      boot,
      (peer, item, call) => this.#outboxes.queueRpc(peer, item, call),
      (peer) => liveness.bootOf(peer),
    );
    this.directory = directory;
    this.liveness = liveness;
    this.#rpc = rpc;
    const versions = new Versions(version, options.levels ?? levelsHere, () => {
      const row = directory.system();
      return row === undefined ? null : (row.level ?? levelFirst);
    });
    this.#versions = versions;

    const turns = new Turns(options, {
      present: (group) => this.#replicas.get(group) ?? null,
      isEnding: (group) => this.#cold.isEnding(group),
      // What a new replica writes first goes into the journal with its vote for itself.
      begins: () => this.#elections.runDeferred(),
      flush: () => this.#outboxes.flushAll(),
      scheduled: () => this.#pulse.rouse(),
      halted: (replica) => this.#halted(replica),
      failed: (replica, error) => this.#cannotWrite(replica, error),
    });
    this.#turns = turns;
    this.#outboxes = new Outboxes(node, options.transport, {
      schedule: () => turns.schedule(),
      unreachable: (replica, to) => {
        turns.act(replica, () => replica.raft.reportUnreachable(to));
      },
      notSent: (call) => rpc.notSent(call),
    });

    // What most of the others need of the replicas.
    const hooks = {
      present: (group: number) => this.#replicas.get(group) ?? null,
      wake: (group: number) => this.#replicas.wake(group),
      campaign: (replica: Replica) => this.#elections.soon(replica),
      act: (replica: Replica, run: () => void) => turns.act(replica, run),
      contained: (replica: Replica, run: () => void) => turns.contained(replica, run),
    };
    const supports = (peer: string): boolean => liveness.supports(peer);
    const proposeSystem = (action: SystemAction, ms: number, done: Done<Outcome>): void =>
      this.#proposeSystem(action, ms, done);

    const askDirectory = (done: (isCurrent: boolean) => void): void => {
      this.requests.read(SYSTEM_TENANT, { consistency: "linearizable" }, (error) => {
        done(error === null);
      });
    };

    const cold = new ColdReplicas(options, directory, {
      ...hooks,
      discard: (replica, reason) => this.#discard(replica, reason),
      askDirectory,
      gone: (group) => this.#sleepers.forget(group),
      confirmed: (group) => this.#checkpoints.queue(group),
    });
    this.#cold = cold;
    const leases = new Leases({ clockDriftMax, boot, isNew: () => cold.isNew, clock, liveness });
    this.#leases = leases;
    const { diskId, log } = options;
    const sleepers = this.#sleepers;
    const parts = { node, clock, log, prng, directory, liveness, leases, sleepers, versions, cold };
    this.#elections = new Elections(parts, hooks);
    this.#leaderships = new Leaderships(parts, {
      ...hooks,
      replicas: () => this.#replicas.values(),
      serves: () => !this.#stopping && this.ready,
      isShort: () => this.#diskLevel !== "free" || this.#checkpoints.isBehind,
    });
    this.#replicas = new Replicas(
      { ...parts, ...(diskId !== undefined && { diskId }) },
      this.#tuning,
      {
        ofReplicas: this.#hooksOfReplicas(),
        identity: () => this.#identity,
        woken: ({ group, dueAt }) => this.#schedules.set(group, dueAt),
        mark: (replica) => turns.mark(replica),
        persist: (replica, record) => turns.persist(replica, record, null),
        isNeeded: (replica) => this.#isNeeded(replica),
        checkpoint: (group) => this.#checkpoints.queue(group),
        asleep: (replica) => {
          this.#leaderships.changed();
          turns.forget(replica);
          this.requests.gone(replica.group);
        },
      },
    );
    this.#checkpoints = new Checkpoints(options.journal, cold, this.#tuning, {
      ...hooks,
      busyMax: (max) => this.#busyMax(max),
      giveWay: (replica) => this.#giveWay(replica),
      behindChanged: () => {
        const { segments, bytes } = options.journal.status;
        if (this.#checkpoints.isBehind) log.warn({ segments, bytes }, "checkpoints.behind");
        else log.info({ segments, bytes }, "checkpoints.caught_up");
      },
    });
    const { snapshotPartBytes, balanceAfterMs, replaceAfterMs } = this.#tuning;
    const transfersMax = this.#busyMax(TRANSFERS_MAX);
    this.#snapshots = new SnapshotExchange(boot, snapshotPartBytes, transfersMax, {
      ...hooks,
      now: () => clock.monotonicMs(),
      send: (peer, kind, item) => {
        const frame = new FrameWriter();
        frame.add(kind, item);
        return options.transport.send(peer, "snapshot", frame.take());
      },
      defer: (run) => clock.defer(run),
      receiver: (group, incarnation, message) => {
        const replica = this.#replicaFor(group, incarnation, message);
        const index = message.snapshot?.index ?? 0;
        if (replica === null || replica.raft.appliedIndex < index) return replica;
        // It has it, and who sends it does not know: its word got lost, or it restarted before it could say so. Raft
        // says so; a mere refusal would be followed by the same snapshot for ever (simulation, seed 95021).
        turns.act(replica, () => replica.step(message));
        return null;
      },
      received: (replica, message, staging) => {
        replica.usedAt = clock.monotonicMs();
        turns.act(replica, () => replica.offerSnapshot(message, staging));
      },
      sent: (replica, to, ok) => {
        turns.act(replica, () => replica.raft.reportSnapshot(to, ok));
      },
    });

    this.#schedules = new Schedules(
      { time: this.#time, directory, liveness },
      {
        ...hooks,
        pass: (replica, deadline, done) => {
          const data = this.#systemCommand({ op: "schedule.pass" });
          this.requests.proposeHere(replica, data, deadline, done);
        },
      },
    );
    const schedules = this.#schedules;
    const requests = new Requests(
      { node, clock, directory, liveness, rpc, schedules, disk: options.disk },
      {
        ...hooks,
        isUnreadable: (group) => cold.isUnreadable(group),
        refusal: (replica) => this.#refusal(replica),
        retries: () => this.#pulse.rouse(),
        bytesBehind: () => (this.#checkpoints.isBehind ? options.journal.status.bytes : null),
        disown: (replica, to) => {
          for (const [id, other] of replica.members)
            if (other === to) this.#outboxes.disown(replica, id, replica.raft.term);
        },
      },
    );
    this.requests = requests;
    this.#settings = new TenantSettings(
      { clock, directory, requests },
      {
        ...hooks,
        propose: (replica, action, deadline, done) => {
          replica.propose(this.#systemCommand(action), deadline, done);
          turns.mark(replica);
        },
      },
    );

    this.#membership = new Membership(node, directory, {
      ...hooks,
      supports,
      wake: (group) => {
        const replica = this.#replicas.wake(group);
        if (replica !== null) replica.usedAt = this.#clock.monotonicMs();
        return replica;
      },
      leaderless: (replica) => {
        if (this.#elections.isFirst(replica)) this.#elections.soon(replica);
      },
      propose: proposeSystem,
      askDirectory,
    });
    this.#reconciler = new Reconciler(directory, replaceAfterMs, {
      leads: () => {
        const raft = this.#systemReady ? this.#replicas.get(SYSTEM_GROUP)?.raft : undefined;
        return raft?.isLeader === true && raft.appliedIndex === raft.commitIndex;
      },
      votes: (node) => {
        const system = this.#replicas.get(SYSTEM_GROUP);
        return system === undefined || [...system.voters()].some(([, other]) => other === node);
      },
      supports,
      propose: proposeSystem,
    });
    this.#balance = new Balance(node, balanceAfterMs, now, {
      nodes: () => [node, ...liveness.peers],
      leadersOn: (other) => this.#leaderships.on(other),
      replicas: () => this.#replicas.values(),
      isMoving: ({ group }) => {
        const replicas = directory.byGroup(group)?.placement.replicas ?? [];
        return replicas.some(({ state }) => state !== undefined);
      },
      transfer: (replica, to) => {
        const { tenant, group } = replica;
        this.#log.debug({ tenant, group, to: to.node }, "replica.balanced");
        turns.act(replica, () => replica.raft.transferLeadership(to.id));
      },
    });
    this.#care = new Care(
      { node, clock, directory, liveness, rpc, cold },
      {
        ...hooks,
        find: (tenant, done) => {
          requests.find(tenant, clock.monotonicMs() + READ_TIMEOUT_MS, done);
        },
        reach: (revision, deadline, done) => requests.reach(revision, deadline, done),
      },
    );
    this.#serveCalls();
  }

  #hooksOfReplicas(): ReplicaHooks {
    return {
      send: (replica, message) => this.#outboxes.send(replica, message),
      persist: (replica, append) => {
        const record = appendRecord(replica.takeHardState(append), append.entries);
        this.#turns.persist(replica, record, append);
        this.#turns.schedule();
      },
      sendSnapshot: (replica, message) => {
        const to = replica.nodeOf(message.to);
        if (to !== undefined) this.#snapshots.send(replica, to, message);
      },
      committed: (replica, event) => this.#committed(replica, event),
      contained: (replica, run) => this.#turns.contained(replica, run),
      leaderChanged: (replica) => this.#leaderChanged(replica),
      installed: (replica) => {
        if (replica.group === SYSTEM_GROUP) {
          this.#cold.sweepSoon();
          for (const { group, raft } of this.#replicas.values())
            if (raft.isLeader) this.#membership.look(group);
          for (const { node } of this.directory.nodes()) this.liveness.add(node);
          this.#forgetDeparted();
        }
        this.#schedules.set(replica.group, replica.dueAt);
        this.requests.applied(replica);
        this.hub.end(replica.group, "resync");
      },
      stored: (replica, error) => this.#stored(replica, error),
    };
  }

  // --- life ------------------------------------------------------------------------------------------------------------

  async start(): Promise<void> {
    for (const peer of this.#options.peers) this.liveness.add(peer);
    const { transport, clock } = this.#options;
    await Promise.all([
      this.#openJournal(),
      transport.start((from, boot, lane, bytes) => this.#onFrame(from, boot, lane, bytes)),
    ]);
    if (this.#stopping) throw new Problem("not-ready", "This node is stopping");
    this.#identity = this.#storedIdentity();
    if (this.#identity === null) {
      const { node, peers } = this.#options;
      this.#entry = new Entry(node, peers, clock.monotonicMs(), this.#entryHooks());
    } else {
      this.#enterSystem();
    }
    this.#pulse.start();
    this.#heartbeat();
    // What the journal still holds is brought up one replica at a time, so that its space becomes free; and what is damaged
    // is said at once.
    for (const group of this.#cold.groups()) this.#checkpoints.queue(group);
  }

  async #openJournal(): Promise<void> {
    const found = await new Promise<JournalRecovery>((resolve, reject) => {
      this.#options.journal.open((error, recovery) => {
        if (recovery === null) reject(error ?? new Error("The journal said nothing"));
        else resolve(recovery);
      });
    });
    this.#cold.begin(found);
    this.#isOpen = true;
  }

  /** Who this node is in the group of `_system`: by what is on its disk, or by its name where that is beyond doubt. */
  #storedIdentity(): SystemIdentity | null {
    const { node, peers, diskId } = this.#options;
    const initial = initialMembers(peers);
    const stored = this.#cold.storedSystem;
    if (stored !== null) return { id: stored, initial };
    const own = initial.find((member) => member.node === node);
    const isAlone =
      diskId === undefined || peers.length === 1 || this.#cold.records(SYSTEM_GROUP).length > 0;
    return own !== undefined && isAlone ? { id: own.id, initial } : null;
  }

  #enterSystem(): void {
    const system = this.#replicas.wake(SYSTEM_GROUP);
    assert(system !== null, "the system group did not wake");
    for (const { node } of this.directory.nodes()) this.liveness.add(node);
    if (this.#options.peers.length === 1) this.#elections.soon(system);
  }

  #entryHooks(): EntryHooks {
    const { node, diskId, zone, role } = this.#options;
    const ask = <T>(to: string, method: Method, done: (answer: T | null) => void): void => {
      const deadline = this.#clock.monotonicMs() + PROPOSE_TIMEOUT_MS;
      this.#rpc.ask<T>(to, method, { node, disk: diskId, zone, role }, deadline, done);
    };
    return {
      alive: (peer) => this.liveness.supports(peer),
      known: () => this.liveness.peers,
      ask: (peer, done) => ask<Acquaintance>(peer, Method.acquaintance, done),
      join: (peer, done) => ask<SystemIdentity>(peer, Method.join, done),
      enter: (identity) => {
        this.#log.info({ replica: identity.id }, "node.entered");
        this.#entry = null;
        this.#identity = identity;
        this.#enterSystem();
      },
    };
  }

  /** Null: it cannot be said yet. */
  #acquaintance(): Acquaintance | null {
    if (this.#entry !== null) return "nothing";
    // One that just starts has heard the question before it looked at its own disk (simulation, seed 50129).
    const system = this.#replicas.get(SYSTEM_GROUP);
    if (system === undefined) return null;
    return system.raft.lastIndex === 0 ? "nothing" : "directory";
  }

  /** Members of the group of `_system` before its first log entry, for who registers. */
  get systemInitial(): readonly Member[] {
    return this.#identity?.initial ?? [];
  }

  /** Set once this node and its root key are in the directory: before that its operator could not be known. */
  registered = false;

  /** Ready to serve: the system group is applied here and has a leader. */
  get ready(): boolean {
    return this.registered && this.#systemReady;
  }

  get #systemReady(): boolean {
    const system = this.#replicas.get(SYSTEM_GROUP);
    return (
      !this.#stopping &&
      system !== undefined &&
      system.halted === null &&
      system.initialised &&
      system.raft.lead !== NONE
    );
  }

  /** Ends in good order: leaderships handed over where possible, everything checkpointed, environments closed. */
  async stop(): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    this.requests.stop();
    for (const replica of this.#replicas.values()) {
      if (replica.halted !== null || !replica.raft.isLeader) continue;
      const heir = this.#leaderships.heirOf(replica);
      if (heir !== null) this.#turns.act(replica, () => replica.raft.transferLeadership(heir));
    }
    await this.#until(
      () =>
        ![...this.#replicas.values()].some(
          (replica) =>
            replica.halted === null &&
            replica.raft.isLeader &&
            replica.raft.status().transferee !== NONE,
        ),
      1_000,
    );
    for (const { group } of this.#replicas.values()) this.hub.end(group, "node-stopping");
    this.#pulse.stop();
    // From here on nothing comes in; what is in flight ends.
    await this.#options.transport.close();
    this.#rpc.close();
    const isStored = (): boolean =>
      ![...this.#replicas.values()].some(
        (replica) => replica.halted === null && replica.busyStoring,
      );
    await this.#until(isStored, 5_000);
    const unwritten = [...this.#replicas.values()].filter(
      (replica) => replica.halted === null && replica.needsCheckpoint,
    );
    await this.#until(() => {
      this.#checkpoints.beginSome(unwritten);
      return unwritten.length === 0;
    }, 30_000);
    await this.#until(isStored, 30_000);
    for (const replica of this.#replicas.values()) {
      this.#snapshots.forget(replica);
      replica.abandon();
      if (!replica.busyStoring) await replica.environment.close();
    }
    await this.#cold.ended();
    this.#replicas.clear();
    await this.#options.journal.close();
  }

  async #until(condition: () => boolean, ms: number): Promise<void> {
    const end = this.#clock.monotonicMs() + ms;
    while (!condition() && this.#clock.monotonicMs() < end) {
      await new Promise<void>((resolve) => {
        const stop = this.#clock.every(5, () => {
          stop();
          resolve();
        });
      });
    }
  }

  /** What it threw stopped it: whoever counts on it goes elsewhere. */
  #halted(replica: Replica): void {
    this.requests.gone(replica.group);
    this.hub.end(replica.group, "replica-halted");
    this.#leaderships.changed();
    for (const id of replica.members.keys()) this.#outboxes.disown(replica, id, replica.raft.term);
  }

  /** It must stay awake. */
  #isNeeded(replica: Replica): boolean {
    const { group, raft } = replica;
    if (this.hub.watched(group) || this.requests.isAwaited(group)) return true;
    // Asleep, it would not notice that its members shall be others: it stays to be offered to who has a directory
    // (simulation, seed 450003739).
    return raft.isLeader && this.#leaderships.isBlind && this.#leaderships.hasHeirs(replica);
  }

  // --- what time brings --------------------------------------------------------------------------------------------------

  /** With each pulse. */
  #round(): void {
    const now = this.#clock.monotonicMs();
    this.liveness.check(now);
    this.requests.pulse(now);
    this.#elections.round(now);
    this.#schedules.round(now);
    if (now - this.#expiredAt >= EXPIRE_MS) {
      this.#expiredAt = now;
      this.#expire(now);
    }
    if (this.#turns.journalFull) this.#turns.schedule();
    this.#outboxes.flushAll(true);
    this.#leaderships.round(now);
    this.#cold.round(now, this.#systemReady);
    this.#replicas.makeRoom(now);
    this.#checkpoints.round(this.#diskLevel !== "free");
    if (now - this.#movedAt > MEMBERSHIP_MS) {
      this.#movedAt = now;
      this.#entry?.round(now);
      this.#membership.round();
      this.#reconciler.round(now);
      const { moves } = this.#membership;
      // One that cannot end, for want of a node that is away, holds nothing up.
      if (moves !== this.#moves) this.#balance.disturbed(now);
      this.#moves = moves;
      if (!this.#stopping) this.#balance.round(now);
    }
    this.#replicas.sleepUnused(now);
  }

  /** See `PulseHooks.isBusy`. What is not here may come by the length of a heartbeat later than it could. */
  #isBusy(): boolean {
    return (
      this.#turns.isBusy ||
      this.#elections.isBusy ||
      this.#checkpoints.isBusy ||
      this.requests.isRetrying ||
      this.#cold.isSweeping ||
      this.#schedules.isDueWithin(REST_MS) ||
      this.liveness.mayLoseWithin(REST_MS, this.#clock.monotonicMs())
    );
  }

  /** Ends what waits here and whose time is up, and sees who holds too much. */
  #expire(now: number): void {
    this.#rpc.expire(now);
    this.#snapshots.expire(now);
    for (const replica of this.#turns.ticking) {
      this.#turns.contained(replica, () => replica.expire(now));
      this.#checkpoints.look(replica);
    }
    this.requests.expire(now);
  }

  /** Entries would need room that is not there. Of the directory, which says who goes where, there are few. */
  #takesNothing(group: number): boolean {
    if (this.#diskLevel === "out") return true;
    return this.#checkpoints.isBehind && group !== SYSTEM_GROUP;
  }

  get #diskLevel(): DiskSpace["level"] {
    return this.#options.disk?.level ?? "free";
  }

  // --- frames ----------------------------------------------------------------------------------------------------------

  #onFrame(from: string, boot: number, lane: Lane, bytes: Uint8Array): void {
    if (!this.#isOpen) return;
    // Calls are answered to the end: what is asked of the leader here goes elsewhere then, and is not begun.
    if (this.#stopping && lane === "snapshot") return;
    try {
      // The buffer is the transport's: what outlives this call is copied where it is decoded.
      for (const { kind, item } of frameItems(bytes)) {
        this.#onItem(from, boot, kind, item);
      }
    } catch (error) {
      this.#log.warn({ from, lane, bytes: bytes.length, err: error }, "frame.malformed");
    }
  }

  #onItem(from: string, boot: number, kind: number, item: Uint8Array): void {
    switch (kind) {
      case ItemKind.heartbeat:
        this.liveness.heard(from, boot, this.#clock.monotonicMs());
        this.#takeHeartbeat(from, boot, decodeHeartbeat(item));
        return;
      case ItemKind.recovered:
        return this.#heardRecovered(from, recoveredIncarnation(item));
      case ItemKind.raft: {
        const { group, incarnation, message } = parseRaftItem(item);
        return this.#onRaft(from, group, incarnation, message);
      }
      case ItemKind.rpc:
        this.#rpc.receive(from, boot, item);
        return;
      case ItemKind.snapshot:
        if (this.#diskLevel !== "free") return;
        this.#snapshots.onPart(from, item);
        return;
      case ItemKind.snapshotAck:
        this.#snapshots.onAck(from, item);
        return;
      default:
        // A newer peer may send what this version does not know.
        return;
    }
  }

  /**
   * A replica that is not here any more, or sleeps and cannot wake now, leads nobody. Only of a term that it has led is
   * that said: one that sleeps may come to lead another, and this may arrive after it did, where it would end a promise.
   */
  #disownFor(node: string, group: number, incarnation: number, message: Message): void {
    const term = termLed(message);
    if (term === 0) return;
    this.#sleepers.forget(group);
    const answer = emptyMessage(MessageType.forgetLeader, message.from, message.to, term);
    this.#outboxes.sendFor(node, group, incarnation, answer);
  }

  /** The others went on without this node: what it has is of another history, and nobody may be served from it. */
  #heardRecovered(from: string, incarnation: number): void {
    const system = this.#replicas.get(SYSTEM_GROUP);
    if (system === undefined || system.incarnation >= incarnation) return;
    this.#options.onFatal(
      new Error(
        `The cluster was recovered without this node, as node ${from} says: move its data directory aside and start it with an empty one`,
      ),
    );
  }

  /** Whether a message's sender is where the group has it. Ids are never given twice. */
  #isOn(node: string, replica: Replica, id: ReplicaId): boolean {
    const known = replica.nodeOf(id);
    if (known !== undefined) return known === node;
    // A member by a change that has not arrived here. Of the directory's own group the directory here may know less.
    const row = this.directory.byGroup(replica.group);
    const isPlaced = row?.placement.replicas.some((each) => each.id === id && each.node === node);
    return (isPlaced === true || replica.group === SYSTEM_GROUP) && replica.meet(id, node);
  }

  #onRaft(from: string, group: number, incarnation: number, message: Message): void {
    const replica = this.#replicaFor(group, incarnation, message);
    if (replica === null) {
      if (expectsLeader(message.type)) this.#disownFor(from, group, incarnation, message);
      const isVote = message.type === MessageType.requestVote;
      if (isVote && incarnation > (this.directory.revision ?? 0)) {
        this.#elections.keepEarly({ from, group, incarnation, message });
      }
      return;
    }
    if (!this.#isOn(from, replica, message.from)) return;
    if (replica.halted !== null) {
      // Told to those alone who take it for the leader: a term from here must not disturb an election.
      if (expectsLeader(message.type)) {
        this.#outboxes.disown(replica, message.from, message.term || replica.raft.term);
      }
      return;
    }
    // As if it had been lost on the way: its sender tries again, and a quorum elsewhere does not need it.
    if (message.entries.length > 0 && this.#takesNothing(replica.group)) return;
    this.#turns.act(replica, () => replica.step(message));
    this.#elections.heard(replica, message);
  }

  /** The replica a message is for, woken if it sleeps; null when it is not (or no longer) this node's. */
  #replicaFor(group: number, incarnation: number, message: Message): Replica | null {
    let replica = this.#replicas.get(group) ?? null;
    if (replica !== null) {
      replica.usedAt = this.#clock.monotonicMs();
    } else {
      replica = this.#replicas.wake(group);
      // Whoever sends these believes that this replica leads; it does not remember, so it asks to lead again.
      if (replica !== null && expectsLeader(message.type)) this.#elections.soon(replica);
    }
    if (replica === null || replica.incarnation !== incarnation || replica.id !== message.to)
      return null;
    return replica;
  }

  #heartbeat(): void {
    this.liveness.check(this.#clock.monotonicMs());
    const { incarnation = 1 } = this.#replicas.get(SYSTEM_GROUP) ?? {};
    const news = this.#news;
    this.#refuseOtherLevels();
    for (const node of this.liveness.peers) {
      this.#outboxes.heartbeat(node, { ...this.#leases.heartbeatTo(node), news }, incarnation);
    }
  }

  #takeHeartbeat(from: string, boot: number, heartbeat: Heartbeat | null): void {
    if (heartbeat === null || boot < this.liveness.bootOf(from)) return;
    this.#leases.heard(from, boot, heartbeat);
    this.#time.heard(from, heartbeat.sent.wallMs);
    this.#heardOfSelf(from, heartbeat.echo?.boot ?? 0);
    if (heartbeat.news !== null) this.#versions.heard(from, heartbeat.news);
  }

  /** Starts are numbered upwards: of one that is numbered lower nobody takes anything, and it would wait without a word. */
  #heardOfSelf(from: string, boot: number): void {
    if (boot <= this.#options.boot || this.#isOutnumbered) return;
    this.#isOutnumbered = true;
    const action =
      "End the other process of this name, if there is one; else the disk was emptied while the clock was behind: set the clock, and start with an empty disk once more";
    this.#log.error(
      { peer: from, boot: this.#options.boot, laterBoot: boot, action },
      "node.outnumbered",
    );
  }

  /** Milliseconds since 1970, by this node's wall clock unless most others say that it is wrong. */
  nowMs(): number {
    return this.#time.nowMs();
  }

  /** What this node says of itself. */
  get #news(): NodeNews {
    const { version } = this.#options;
    const { levels, level } = this.#versions;
    return { version, levels, level: level ?? 0, leaders: this.#leaderships.here };
  }

  /** It could not apply what it is sent, and would be one replica less in every group: it says so and ends. */
  #refuseOtherLevels(): void {
    const { refusal } = this.#versions;
    if (refusal === null || this.#stopping) return;
    this.#stopping = true;
    this.#options.onFatal(new Error(refusal));
  }

  /** The newest meaning of commands that all nodes know. */
  get semantics(): number {
    return this.#versions.semantics;
  }

  /** At which level a new cluster begins: what all initial nodes know that were heard. */
  get levelToBegin(): number {
    return this.#versions.common(this.#options.peers);
  }

  get levels(): Levels {
    return this.#versions.levels;
  }

  // --- nodes and leaders that come and go ------------------------------------------------------------------------------------

  #nodeUp(node: string): void {
    this.#log.info({ peer: node }, "node.up");
    this.#balance.disturbed(this.#clock.monotonicMs());
    // Leaders go on with their followers there, followers look whether their leader still is one.
    for (const replica of this.#replicas.values()) {
      if (replica.halted === null && hasMember(replica, node)) this.#turns.mark(replica);
    }
  }

  #nodeDown(node: string): void {
    this.#log.warn({ peer: node }, "node.down");
    this.#leases.lapsed();
    this.#balance.disturbed(this.#clock.monotonicMs());
    this.#rpc.nodeDown(node);
    const now = this.#clock.monotonicMs();
    for (const replica of this.#replicas.values()) {
      if (replica.halted !== null || !hasMember(replica, node)) continue;
      const led = replica.leaderNode === node;
      if (led) this.#turns.contained(replica, () => replica.raft.forgetLeader());
      this.#turns.mark(replica);
      if (led && replica.isVoter) this.#elections.leaderLost(replica, now);
    }
    this.#forgetDeparted();
  }

  /**
   * Nodes that left are no peers any more, once they are silent; who joins again is heard. The initial ones stay: one that
   * comes back with an empty disk asks only those whether there is a cluster, and has to hear of it from somebody.
   */
  #forgetDeparted(): void {
    if (this.directory.nodes().length === 0) return;
    for (const peer of this.liveness.peers) {
      if (this.liveness.supports(peer) || this.#options.peers.includes(peer)) continue;
      if (this.directory.node(peer) !== undefined) continue;
      this.liveness.forget(peer);
      this.#time.forget(peer);
    }
  }

  #leaderChanged(replica: Replica): void {
    const { tenant, group, raft } = replica;
    this.#log.debug(
      { tenant, group, leader: replica.leaderNode, term: raft.term, role: raft.role },
      "replica.leader_changed",
    );
    this.#settings.leaderChanged(replica);
    if (raft.isLeader) {
      this.#membership.look(group);
      this.#balance.leads(replica, this.#clock.monotonicMs());
    }
    this.#leaderships.leaderChanged(replica);
    if (raft.lead !== NONE) this.requests.led(group);
  }

  /** What the turns and the group's beginning have against a proposal to a leader here; null: nothing. */
  #refusal(replica: Replica): ProposalResult | null {
    if (this.#turns.journalFull) return { kind: "overloaded" };
    // A leader of this very turn: what it has to say first is not in its log yet.
    return this.#settings.hasBegun(replica) ? null : { kind: "not-leader" };
  }

  /** What the group's leader proposes by itself. */
  #systemCommand(action: Command["action"]): Uint8Array {
    const at = this.nowMs();
    const actor = { kind: "system", keyId: "system" } as const;
    const command: Command = { at, actor, semantics: this.semantics, action };
    return encoder.encode(JSON.stringify(command));
  }

  // --- checkpoints -------------------------------------------------------------------------------------------------------

  /** Of what keeps an environment open while it lasts, so many at once: four kinds of it share what may be open. */
  #busyMax(max: number): number {
    return Math.min(max, Math.max(1, Math.floor(this.#options.environments.cap / 4)));
  }

  #stored(replica: Replica, error: Error | null): void {
    this.#checkpoints.ended(replica);
    if (error !== null) return this.#cannotWrite(replica, error);
    this.#options.journal.release(replica.group, replica.sequenceStored);
    if (replica.halted === null && replica.restoring) this.#options.onBulkStored?.();
    this.#turns.act(replica, () => replica.resumeLane());
  }

  /** Nobody knows any more what its environment holds, or whether it would be there after a loss of power. */
  #cannotWrite({ tenant }: Replica, cause: Error): void {
    const text = `Cannot write the environment of tenant ${tenant}: ${cause.message}`;
    this.#options.onFatal(new Error(text, { cause }));
  }

  /**
   * Where the others hold all that this stopped replica has, as a repair would demand, the journal lets go of it. Where they
   * do not, it may be the only copy, and the next start, or the next release, may mend what stopped it. One at a time:
   * whole segments are read for it.
   */
  #giveWay(replica: Replica): void {
    const now = this.#clock.monotonicMs();
    if (this.#givingWay || now < (this.#askedToGiveWay.get(replica) ?? 0)) return;
    if (replica.group === SYSTEM_GROUP && !this.#mayLoseDirectory) return;
    this.#givingWay = true;
    this.#askedToGiveWay.set(replica, now + GIVE_WAY_MS);
    this.#care
      .isSpare(replica)
      .then(
        (isSpare) => {
          if (isSpare && this.#replicas.get(replica.group) === replica) this.#cold.keepOut(replica);
        },
        () => undefined,
      )
      .finally(() => {
        this.#givingWay = false;
      });
  }

  /** Without it this node needs an empty disk at its next start, which would be a high price for a few segments. */
  get #mayLoseDirectory(): boolean {
    const { segments } = this.#options.journal.status;
    return (
      segments > BLIND_SEGMENTS_FACTOR * this.#tuning.journalSegments || this.#diskLevel !== "free"
    );
  }

  // --- what was applied ----------------------------------------------------------------------------------------------------

  #committed(replica: Replica, event: HistoryRow): void {
    this.#schedules.set(replica.group, replica.dueAt);
    if (replica.group === SYSTEM_GROUP) this.#directoryChanged(event);
    // What the directory said when the first leader wrote it down may have changed meanwhile.
    else if (event.revision === 1) this.#settings.lookSoon(replica);
    this.hub.publish(replica.group, event, replica.view);
    this.requests.applied(replica);
  }

  #directoryChanged(event: HistoryRow): void {
    // What a restart applies again is no news: its tenants wake when somebody asks for them.
    const isNews = (this.#replicas.get(SYSTEM_GROUP)?.raft.lead ?? NONE) !== NONE;
    for (const change of event.changes) {
      if (change.type === "node") {
        if (this.directory.node(change.name) === undefined) this.#forgetDeparted();
        else this.liveness.add(change.name);
      }
      if (change.type !== "tenant") continue;
      const row = this.directory.tenant(change.name);
      if (row === undefined) {
        this.#forget(change.name, "tenant-deleted");
        // One that slept has no replica to be found by.
        this.#cold.sweepSoon();
        continue;
      }
      // It may have replaced one of the same name: nothing but a restore does.
      if (row.incarnation === event.revision && row.restore !== undefined) {
        // Its keys may be among those that come back, so nobody who watches is told that his does not hold.
        this.#forget(change.name, "restored", row.group);
        this.#cold.sweepSoon();
      }
      this.#leaveIfMoved(row);
      // A new tenant's first replica asks for votes at once; its peers wake by being asked. Of many at a time each group
      // begins when it is used.
      const isAlone = event.changes.length === 1;
      const isFirst = row.placement.replicas[0]?.node === this.node;
      if (isNews && isAlone && isFirst && row.revision === event.revision) {
        // After this turn, which answers who created it.
        this.#clock.defer(() => {
          const replica = this.#replicas.wake(row.group);
          if (replica !== null && replica.raft.lead === NONE) this.#elections.soon(replica);
        });
      }
      const present = row === undefined ? undefined : this.#replicas.get(row.group);
      if (present === undefined) continue;
      this.#settings.lookSoon(present);
      if (present.raft.isLeader) this.#membership.look(row.group);
    }
    this.#takeEarly(event.revision);
  }

  #takeEarly(revision: number): void {
    for (const { from, group, incarnation, message } of this.#elections.takeEarly(revision)) {
      // After this turn, which is the directory's.
      this.#clock.defer(() => this.#onRaft(from, group, incarnation, message));
    }
  }

  /** A purged tenant leaves no bytes on this node. */
  #forget(tenant: string, reason: string, except = SYSTEM_GROUP): void {
    for (const replica of this.#replicas.ofTenant(tenant)) {
      const isKept = replica.group === SYSTEM_GROUP || replica.group === except;
      if (!isKept) this.#discard(replica, reason);
    }
  }

  /** The group went on without the replica here: it leaves no bytes either. */
  #leaveIfMoved({ group, placement }: TenantRow): void {
    const own = replicaOn(placement, this.node);
    const replica = this.#replicas.get(group);
    if (replica !== undefined && replica.id !== own?.id) this.#discard(replica, "moved");
    this.#cold.placed(group, own !== undefined);
  }

  /** Stops a replica that is not this node's any more, and removes what it stored. */
  #discard(replica: Replica, reason: string): void {
    const { group } = replica;
    this.requests.gone(group);
    this.hub.end(group, reason);
    replica.halt(reason);
    this.#leaderships.changed();
    this.#snapshots.forget(replica);
    this.#replicas.delete(group);
    this.#turns.forget(replica);
    this.#cold.removeStopped(replica);
  }

  // --- calls between nodes -------------------------------------------------------------------------------------------------

  #serveCalls(): void {
    this.#rpc.answer(Method.acquaintance, (from, _question, respond) => {
      this.#entry?.askedBy(from, this.#clock.monotonicMs());
      const answer = this.#acquaintance();
      if (answer !== null) respond(answer);
    });
    this.#rpc.answer<JoinQuestion>(Method.join, (from, { disk, zone, role }, respond) => {
      // Nobody joins under another name than its own.
      const action: SystemAction = {
        op: "node.join",
        node: from,
        disk,
        ...(zone !== undefined && { zone }),
        ...(role !== undefined && { role }),
      };
      this.#proposeSystem(action, PROPOSE_TIMEOUT_MS, (error, outcome) => {
        respond(error === null && outcome?.ok === true ? outcome.result : null);
      });
    });
    this.#rpc.serve(Method.exchange, (from, payload, respond) => {
      if (this.#exchangeHandler === null) return;
      this.#exchangeHandler(from, payload.slice())
        .then((answer) => respond(answer.length > ANSWER_BYTES_MAX ? EMPTY : answer))
        .catch((error: unknown) => {
          this.#log.error({ from, err: error }, "exchange.failed");
        });
    });
  }

  // --- public: writes ------------------------------------------------------------------------------------------------------

  propose(tenant: string, command: Command, timeoutMs = PROPOSE_TIMEOUT_MS): Promise<Outcome> {
    return new Promise((resolve, reject) => {
      this.requests.propose(tenant, command, timeoutMs, (error, outcome) => {
        if (error !== null) reject(error);
        else resolve(outcome as Outcome);
      });
    });
  }

  /** A change of the directory by this node itself. */
  #proposeSystem(action: SystemAction, timeoutMs: number, done: Done<Outcome>): void {
    const at = this.nowMs();
    const actor = { kind: "system", keyId: this.node } as const;
    const command: Command = { at, actor, semantics: this.semantics, action };
    this.requests.propose(SYSTEM_TENANT, command, timeoutMs, done);
  }

  // --- public: reads -------------------------------------------------------------------------------------------------------

  read<T>(tenant: string, options: ReadOptions, query: (view: TenantView) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      this.requests.read(tenant, options, (error, view) => {
        if (error !== null) return reject(error);
        try {
          resolve(query(view as TenantView));
        } catch (thrown) {
          reject(thrown instanceof Error ? thrown : new Error(String(thrown)));
        }
      });
    });
  }

  viewNow(tenant: string, options?: ViewOptions): TenantView | null {
    return this.requests.viewNow(tenant, options);
  }

  locateNow(tenant: string): { readonly local: boolean } | undefined {
    return this.requests.locateNow(tenant);
  }

  locate(
    tenant: string,
  ): Promise<
    { readonly local: true } | { readonly local: false; readonly nodes: readonly string[] } | null
  > {
    return new Promise((resolve, reject) => {
      const deadline = this.#clock.monotonicMs() + READ_TIMEOUT_MS;
      const done: Done<Found> = (error, found) => {
        if (error?.code === "not-found") return resolve(null);
        if (error !== null) return reject(error);
        if (this.locateNow(tenant)?.local === true) return resolve({ local: true });
        const nodes = (found as Found).nodes.filter((node) => node !== this.node);
        if (nodes.length === 0) return reject(halted(tenant));
        const alive = nodes.filter((node) => this.liveness.supports(node));
        const rest = nodes.filter((node) => !this.liveness.supports(node));
        resolve({ local: false, nodes: [...alive, ...rest] });
      };
      this.requests.find(tenant, deadline, done, true);
    });
  }

  // --- public: snapshots ---------------------------------------------------------------------------------------------------

  snapshot(tenant: string): Promise<TenantSnapshot> {
    return new Promise((resolve, reject) => {
      this.requests.read(tenant, { consistency: "linearizable" }, (error, view) => {
        if (error !== null) return reject(error);
        const { epoch, revision } = view as TenantView;
        const meta = (view as TenantView).get<TenantMeta>("meta") as TenantMeta;
        const group = this.directory.groupOf(tenant);
        const replica = group === undefined ? undefined : this.#replicas.get(group);
        if (replica === undefined) return reject(halted(tenant));
        if (this.#snapshotsOpen.size >= this.#busyMax(SNAPSHOTS_MAX))
          return reject(
            new Problem("overloaded", "Too many tenants are read as a whole on this node"),
          );
        let taken: ReplicaSnapshot | null = null;
        this.#turns.contained(replica, () => {
          taken = replica.snapshot();
        });
        const snapshot = taken as ReplicaSnapshot | null;
        if (snapshot === null) return reject(halted(tenant));
        this.#snapshotsOpen.add(snapshot);
        const rows = (): Iterable<readonly [key: string, text: string]> =>
          this.#rowsOf(replica, snapshot);
        const close = (): void => {
          this.#snapshotsOpen.delete(snapshot);
          snapshot.close();
        };
        resolve({ epoch, revision, meta, rows, close });
      });
    });
  }

  /** What is read of a replica that went away meanwhile ends with NotHere: it is no fault of anything. */
  *#rowsOf(
    replica: Replica,
    snapshot: ReplicaSnapshot,
  ): Generator<readonly [key: string, text: string]> {
    try {
      yield* snapshot.rows();
    } catch (error) {
      throw this.#replicas.get(replica.group) === replica ? error : new NotHere(replica.tenant);
    }
  }

  // --- public: watches -----------------------------------------------------------------------------------------------------

  watch(
    tenant: string,
    start: (view: TenantView) => void,
    listener: WatchListener,
  ): Promise<() => void> {
    return new Promise((resolve, reject) => {
      this.watchWith(tenant, start, listener, (error, end) => {
        if (error !== null) reject(error);
        else resolve(end as () => void);
      });
    });
  }

  /** `watch` by callback. Wakes the replica first; the subscription itself begins in one synchronous turn. */
  watchWith(
    tenant: string,
    start: (view: TenantView) => void,
    listener: WatchListener,
    done: (error: Error | null, end?: () => void) => void,
  ): void {
    this.requests.read(tenant, { consistency: "stale" }, (error, view) => {
      if (error !== null) return done(error);
      const group = this.directory.groupOf(tenant);
      if (group === undefined) {
        return done(new Problem("not-found", `No tenant is called "${tenant}"`));
      }
      try {
        start(view as TenantView);
      } catch (thrown) {
        return done(thrown instanceof Error ? thrown : new Error(String(thrown)));
      }
      done(null, this.hub.subscribe(group, listener));
    });
  }

  /** What runs here, for status, benches and the simulator's checks. */
  replicas(): Iterable<Replica> {
    return this.#replicas.values();
  }

  // --- public: status and care ---------------------------------------------------------------------------------------------

  group(tenant: string): Promise<GroupStatus> {
    return this.#care.group(tenant);
  }

  directoryReached(revision: number): Promise<void> {
    return this.#care.directoryReached(revision);
  }

  transfer(tenant: string, toNode: string): Promise<void> {
    return this.#care.transfer(tenant, toNode);
  }

  repair(tenant: string): Promise<Replacement> {
    return this.#care.repair(tenant);
  }

  place(
    tenant: string,
    replicas: number | undefined,
    keep: readonly string[] = [],
  ): readonly string[] {
    const supports = (node: string): boolean => this.liveness.supports(node);
    return placeTenant(tenant, replicas, keep, this.directory, this.#options.peers, supports);
  }

  cluster(): ClusterStatus {
    return clusterStatus(this.#options, {
      ready: this.ready,
      news: this.#news,
      directory: this.directory,
      liveness: this.liveness,
      versions: this.#versions,
      admission: this.requests.admission,
      clockAheadMs: this.#time.aheadMs,
      given: this.#balance.given,
      cold: this.#cold,
      replicas: this.#replicas,
    });
  }

  // --- public: the gateway's own calls ---------------------------------------------------------------------------------------

  exchange(node: string, request: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      // One that is silent may still answer, but is not waited for as long.
      const waitMs = this.liveness.supports(node)
        ? timeoutMs
        : Math.min(timeoutMs, EXCHANGE_SILENT_MS);
      const deadline = this.#clock.monotonicMs() + waitMs;
      this.#rpc.call(node, Method.exchange, request, deadline, (result) => {
        if (result.kind === "ok" && result.bytes.length === 0) {
          reject(
            new Problem(
              "overloaded",
              "The answer is too large to be forwarded: ask for less at once",
            ),
          );
        } else if (result.kind === "ok") resolve(result.bytes.slice());
        else if (result.kind === "not-sent")
          reject(new Problem("no-quorum", `Node "${node}" cannot be reached`));
        else reject(outcomeUnknown());
      });
    });
  }

  onExchange(handler: (from: string, request: Uint8Array) => Promise<Uint8Array>): void {
    this.#exchangeHandler = handler;
  }
}

function expectsLeader(type: MessageType): boolean {
  switch (type) {
    case MessageType.appendEntriesResponse:
    case MessageType.heartbeatResponse:
    case MessageType.readIndex:
    case MessageType.propose:
      return true;
    default:
      return false;
  }
}

/** Which term the sender knows to have been led by the replica that it answers; 0: none. */
function termLed({ type, term, logTerm, index, reject }: Message): number {
  if (type === MessageType.heartbeatResponse) return logTerm;
  // Without either it only says that its sender is in a later term.
  return type === MessageType.appendEntriesResponse && (reject || index > 0) ? term : 0;
}

function hasMember(replica: Replica, node: string): boolean {
  for (const member of replica.members.values()) if (member === node) return true;
  return false;
}
