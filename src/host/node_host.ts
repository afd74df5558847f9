/**
 * All replicas of this node. It owns the one map of what runs here (invariant 4), turns inputs into turns, and turns
 * into one journal write and one frame per peer:
 *
 *   onFrame / propose / read / tick → Replica → `#mark` → (end of the event-loop turn) `#turn`
 *     → every dirty replica drains → journal.append(all of them at once) → frames leave
 *     → journal says durable → `#persisted` → answers leave, entries commit and are applied → callers are answered
 *
 * Promises begin at the public methods; below them everything is callbacks, so that the simulator can run a NodeHost on
 * virtual time.
 */
import { Problem, type ProblemCode } from "../api/problems.ts";
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
import {
  isLost,
  type HistoryRow,
  type Member,
  type PlacedReplica,
  type TenantMeta,
  type TenantRow,
} from "../machine/rows.ts";
import {
  MessageType,
  NONE,
  type Message,
  type ReplicaId,
  type StorageAppend,
} from "../raft/types.ts";
import { Balance, isMovable } from "./balance.ts";
import { Care } from "./care.ts";
import {
  appendRecord,
  createRecord,
  decodeHeartbeat,
  encodeHeartbeat,
  FrameWriter,
  frameItems,
  ItemKind,
  parseRaftItem,
  recoveredIncarnation,
  recoveredItem,
  type Heartbeat,
} from "./codec.ts";
import { checkpointTuningDefaults, Checkpoints, type CheckpointTuning } from "./checkpoints.ts";
import { ColdReplicas } from "./cold_replicas.ts";
import { Directory, SYSTEM_GROUP, SYSTEM_TENANT } from "./directory.ts";
import { freshMeta, type ReplicaMeta } from "./group_log.ts";
import { Leases } from "./leases.ts";
import { HEARTBEAT_MS, Liveness } from "./liveness.ts";
import {
  Entry,
  initialMembers,
  type Acquaintance,
  type EntryHooks,
  type SystemIdentity,
} from "./entry.ts";
import { Membership, replicaOn } from "./membership.ts";
import { placeTenant } from "./placement.ts";
import { Reconciler } from "./reconciler.ts";
import { recoverLog, type RecoveredRecord } from "./recovery.ts";
import type {
  Clock,
  ClusterStatus,
  ConfigService,
  DiskSpace,
  Environment,
  Environments,
  GroupStatus,
  Journal,
  Lane,
  Log,
  Quarantine,
  ReadOptions,
  TenantSnapshot,
  TenantView,
  Transport,
  Replacement,
  WatchListener,
} from "./ports.ts";
import {
  Replica,
  TICK_MS,
  type ProposalResult,
  type ReplicaSnapshot,
  type ReplicaHooks,
} from "./replica.ts";
import {
  halted,
  outcomeUnknown,
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
import { levelsHere, Versions, type Levels, type NodeNews } from "./versions.ts";
import { WatchHub } from "./watch_hub.ts";

/** Rejections of the machine are problems of the API; this fails to compile when one is missing there. */
type EveryRejectionIsAProblem = RejectCode extends ProblemCode ? true : never;
const everyRejectionIsAProblem: EveryRejectionIsAProblem = true;
void everyRejectionIsAProblem;

/** How long a gateway waits for a node that has not been heard of. */
const EXCHANGE_SILENT_MS = 2_000;
/** Retries, campaigns and time-outs are looked at this often. */
const PULSE_MS = 25;
/** All that waits and all replicas that are busy are gone through this often: whose time is up, and who holds too much. */
const EXPIRE_MS = 100;
/** One append to the journal takes up to this; the rest follows in the next. */
const JOURNAL_WRITE_BYTES = 4 * 1024 * 1024;
/** Answers to other nodes' gateways are frames, and a frame is at most 16 MiB. */
const ANSWER_BYTES_MAX = 15 * 1024 * 1024;
/** A frame leaves early when it has grown to this size. */
const FRAME_BYTES = 384 * 1024;
/** After a node died, at most this many of its groups are campaigned for per pulse. */
const CAMPAIGNS_PER_PULSE = 64;
/** A campaign that nobody answered is tried again after this long, plus as much again by chance. */
const CAMPAIGN_RETRY_MS = 1_000;
/** One that was refused, after this long, and twice as long each time up to that, plus as much again by chance. */
const CAMPAIGN_LOST_MS = PULSE_MS;
const CAMPAIGN_TRIES = 10;
/** Nodes do not notice a loss in the same moment, and whoever has not noticed yet refuses its vote. */
const LAPSE_SPREAD_MS = 2 * PULSE_MS;
/**
 * After a loss each further one in line campaigns so much later, also where somebody waits there: of two that ask at once
 * neither may get a majority.
 */
const LAPSE_TURN_MS = 6 * PULSE_MS;
const CLOCK_DRIFT_MAX = 0.1;

/** When things are written behind; the simulator makes them happen more often. */
export interface Tuning extends CheckpointTuning {
  /** Entries kept behind the applied index, so that a follower a little behind needs no snapshot. */
  readonly logKeptEntries: number;
  /** And their bytes: the log is cut where the first of the two bounds is reached. */
  readonly logKeptBytes: number;
  /** Kept for a live follower that is further behind than that, or is being sent a snapshot. */
  readonly logKeptBytesForLagging: number;
  /** Rows of a snapshot that travel together. */
  readonly snapshotPartBytes: number;
  /** Replicas that nobody used for this long go to sleep (decision D4). */
  readonly sleepAfterMs: number;
  /** Replicas of a node that was not heard of for this long get a place elsewhere. */
  readonly replaceAfterMs: number;
  /** When nodes neither came nor went for this long, those that lead more groups than others give some away. */
  readonly balanceAfterMs: number;
  /** Replicas in memory beyond this many sleep as soon as they are unused for SLEEP_FOR_ROOM_MS. */
  readonly awakeMax: number;
  /** Beyond this many none wakes before one sleeps, and requests for it wait. */
  readonly awakeLimit: number;
}

const tuningDefaults: Tuning = {
  ...checkpointTuningDefaults,
  logKeptEntries: 1_000,
  logKeptBytes: 8 * 1024 * 1024,
  logKeptBytesForLagging: 64 * 1024 * 1024,
  snapshotPartBytes: 128 * 1024,
  sleepAfterMs: 10 * 60_000,
  replaceAfterMs: 5 * 60_000,
  balanceAfterMs: 10_000,
  // Each costs about 100 KB (`npm run bench -- density`).
  awakeMax: 10_000,
  awakeLimit: 20_000,
};

/** Snapshots of tenants that are read here at once. */
const SNAPSHOTS_MAX = 80;
/** And those that are sent to other nodes, or come in from them. */
const TRANSFERS_MAX = 16;
/** Beyond `awakeMax` so many replicas more than are too many go to sleep at once. */
const AWAKE_SPARE = 16;
/** For want of room replicas are put to sleep after this long already. */
const SLEEP_FOR_ROOM_MS = 2_000;
const MAKE_ROOM_MS = 250;
const SLEEP_CHECK_MS = 1_000;
/** A node with too many replicas awake says so this often. */
const FULL_NOTICE_MS = 10_000;
/** Groups that move take their next step this often. */
const MEMBERSHIP_MS = 200;
/** Whether others hold all that a stopped replica has is asked this often. */
const GIVE_WAY_MS = 10_000;
/** The directory's own, if it is stopped, gives way when the journal holds so many times its bound of segments. */
const BLIND_SEGMENTS_FACTOR = 8;
/** How long the number of leaders here is taken for what it was, where nothing is known to have changed it. */
const LEADERS_MS = 1_000;
/** Who should not lead looks this often whether somebody would take what it leads. */
const HAND_OVER_MS = 500;
/** The same leadership is offered again after this long: each offer may hold its group up for a moment. */
const OFFER_MS = 10_000;
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

interface Outbox {
  readonly frames: Record<Lane, FrameWriter>;
  /** Calls in the rpc frame, and appends in the append frame: whom to tell when it does not leave. */
  calls: number[];
  appends: { replica: Replica; to: ReplicaId }[];
  /** Nobody waits for what is in the append frame: it leaves with the next that somebody waits for, or with the pulse. */
  canWait: boolean;
}

/** A record on its way into the journal; `append` null: nobody waits for it. */
interface QueuedRecord {
  readonly group: number;
  readonly payload: Uint8Array;
  readonly replica: Replica;
  readonly append: StorageAppend | null;
}

interface Campaign {
  readonly due: number;
  readonly tries: number;
  /** Another one goes first: this one begins early only where it has more than that one. */
  readonly isStandby?: true;
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
  readonly #prng: Prng;

  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly #leases: Leases;
  readonly #sleepers = new Sleepers();
  #givingWay = false;
  /** Before when stopped replicas are not asked about again. */
  readonly #askedToGiveWay = new WeakMap<Replica, number>();
  readonly #versions: Versions;
  readonly #rpc: Rpc;
  readonly #snapshots: SnapshotExchange;
  readonly #cold: ColdReplicas;
  readonly #checkpoints: Checkpoints;
  readonly #schedules: Schedules;
  readonly hub: WatchHub;
  /** Changes and reads by callback; who wants a promise asks this class. */
  readonly requests: Requests;
  readonly #settings: TenantSettings;
  readonly #membership: Membership;
  readonly #reconciler: Reconciler;
  readonly #balance: Balance;
  readonly #care: Care;

  /** All replicas in memory, by group: the one map of them (invariant 4). */
  readonly #replicas = new Map<number, Replica>();
  readonly #replicaHooks = this.#hooksOfReplicas();
  /** While it is not decided as which replica of `_system` this node comes in. */
  #entry: Entry | null = null;
  #identity: SystemIdentity | null = null;
  readonly #timers: (() => void)[] = [];
  #stopping = false;

  // Turns and frames.
  readonly #ticking = new Set<Replica>();
  #dirty: Replica[] = [];
  #scheduled = false;
  #records: QueuedRecord[] = [];
  /** The journal takes no more just now; see `#writeJournal`. */
  #journalFull = false;
  readonly #outboxes = new Map<string, Outbox>();

  // Elections and leaderships.
  readonly #campaigns = new Map<Replica, Campaign>();
  #campaignsDeferred = false;
  /** Led from here, and to be led from a node that is better at it. */
  #handingOver: Replica[] = [];
  #handingOverAt = -Infinity;
  /** How many are led here that others could lead, as last counted; null: that changed since. */
  #leaders: number | null = null;
  #leadersCountedAt = -Infinity;
  /** When leaderships were offered last. */
  readonly #offeredAt = new WeakMap<Replica, number>();

  // What a pulse did when.
  #expiredAt = 0;
  #sleptAt = 0;
  #roomMadeAt = 0;
  #fullToldAt = -Infinity;
  #movedAt = 0;
  /** What moved when that was looked at last. */
  #moves = "";

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
    this.#prng = new Prng(seed);
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
    const rpc = new Rpc(
      boot,
      (peer, item, call) => this.#queueRpc(peer, item, call),
      (peer) => liveness.bootOf(peer),
    );
    this.directory = directory;
    this.liveness = liveness;
    this.#rpc = rpc;
    this.#versions = new Versions(version, options.levels ?? levelsHere, () => {
      const row = directory.system();
      return row === undefined ? null : (row.level ?? levelFirst);
    });

    // What most of the others need of the replicas.
    const hooks = {
      present: (group: number) => this.#replicas.get(group) ?? null,
      wake: (group: number) => this.#wake(group),
      campaign: (replica: Replica) => this.#campaignSoon(replica),
      act: (replica: Replica, run: () => void) => this.#guarded(replica, run),
      contained: (replica: Replica, run: () => void) => this.#contained(replica, run),
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
    const { isNew } = cold;
    this.#leases = new Leases({ clockDriftMax, boot, isNew, clock, liveness });
    this.#checkpoints = new Checkpoints(options.journal, cold, this.#tuning, {
      ...hooks,
      busyMax: (max) => this.#busyMax(max),
      giveWay: (replica) => this.#giveWay(replica),
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
        this.#guarded(replica, () => replica.step(message));
        return null;
      },
      received: (replica, message, staging) => {
        replica.usedAt = clock.monotonicMs();
        this.#guarded(replica, () => replica.offerSnapshot(message, staging));
      },
      sent: (replica, to, ok) => {
        this.#guarded(replica, () => replica.raft.reportSnapshot(to, ok));
      },
    });

    this.#schedules = new Schedules(
      { clock, directory, liveness },
      {
        ...hooks,
        pass: (replica, deadline, done) => {
          const data = this.#systemCommand({ op: "schedule.pass" });
          this.requests.proposeHere(replica, data, deadline, done);
        },
      },
    );
    const { disk } = options;
    const schedules = this.#schedules;
    const requests = new Requests(
      { node, clock, directory, liveness, rpc, schedules, disk },
      {
        ...hooks,
        isUnreadable: (group) => cold.isUnreadable(group),
        refusal: (replica) => this.#refusal(replica),
        disown: (replica, to) => {
          for (const [id, other] of replica.members)
            if (other === to) this.#disown(replica, id, replica.raft.term);
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
          this.#mark(replica);
        },
      },
    );

    this.#membership = new Membership(node, directory, {
      ...hooks,
      supports,
      wake: (group) => {
        const replica = this.#wake(group);
        if (replica !== null) replica.usedAt = this.#clock.monotonicMs();
        return replica;
      },
      leaderless: (replica) => {
        if (this.#isFirstToCampaign(replica)) this.#campaignSoon(replica);
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
      leadersOn: (other) => (other === node ? this.#leadersHere : this.#leadersOn(other)),
      replicas: () => this.#replicas.values(),
      isMoving: ({ group }) => {
        const replicas = directory.byGroup(group)?.placement.replicas ?? [];
        return replicas.some(({ state }) => state !== undefined);
      },
      transfer: (replica, to) => {
        const { tenant, group } = replica;
        this.#log.debug({ tenant, group, to: to.node }, "replica.balanced");
        this.#guarded(replica, () => replica.raft.transferLeadership(to.id));
      },
    });
    this.#care = new Care(
      { node, clock, directory, liveness, rpc, cold },
      {
        ...hooks,
        find: (tenant, done) => {
          requests.find(tenant, clock.monotonicMs() + READ_TIMEOUT_MS, done);
        },
      },
    );
    this.#serveCalls();
  }

  #hooksOfReplicas(): ReplicaHooks {
    return {
      send: (replica, message) => this.#send(replica, message),
      persist: (replica, append) => {
        this.#records.push({
          group: replica.group,
          payload: appendRecord(replica.takeHardState(append), append.entries),
          replica,
          append,
        });
        this.#schedule();
      },
      sendSnapshot: (replica, message) => {
        const to = replica.nodeOf(message.to);
        if (to !== undefined) this.#snapshots.send(replica, to, message);
      },
      committed: (replica, event) => this.#committed(replica, event),
      contained: (replica, run) => this.#contained(replica, run),
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
    await transport.start((from, boot, lane, bytes) => this.#onFrame(from, boot, lane, bytes));
    this.#identity = this.#storedIdentity();
    if (this.#identity === null) {
      const { node, peers } = this.#options;
      this.#entry = new Entry(node, peers, clock.monotonicMs(), this.#entryHooks());
    } else {
      this.#enterSystem();
    }
    this.#timers.push(
      clock.every(TICK_MS, () => this.#tick()),
      clock.every(PULSE_MS, () => this.#pulse()),
      clock.every(HEARTBEAT_MS, () => this.#heartbeat()),
    );
    this.#heartbeat();
    // What the journal still holds is brought up one replica at a time, so that its space becomes free; and what is damaged
    // is said at once.
    for (const group of this.#cold.groups()) this.#checkpoints.queue(group);
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
    const system = this.#wake(SYSTEM_GROUP);
    assert(system !== null, "the system group did not wake");
    for (const { node } of this.directory.nodes()) this.liveness.add(node);
    if (this.#options.peers.length === 1) this.#campaignSoon(system);
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
    for (const replica of this.#replicas.values()) {
      if (replica.halted !== null || !replica.raft.isLeader) continue;
      const heir = this.#heirOf(replica);
      if (heir !== null) this.#guarded(replica, () => replica.raft.transferLeadership(heir));
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
    for (const group of this.#replicas.keys()) this.hub.end(group, "node-stopping");
    for (const stop of this.#timers) stop();
    // From here on nothing comes in; what is in flight ends.
    await this.#options.transport.close();
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

  // --- turns -----------------------------------------------------------------------------------------------------------

  #mark(replica: Replica): void {
    this.#ticking.add(replica);
    if (replica.dirty) return;
    replica.dirty = true;
    this.#dirty.push(replica);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#clock.defer(() => this.#turn());
  }

  /** One turn: everything that came in since the last one goes out together. */
  #turn(): void {
    this.#scheduled = false;
    // What a new replica writes first goes into the journal with its vote for itself.
    this.#runDeferredCampaigns();
    const visiting = this.#dirty;
    this.#dirty = [];
    for (const replica of visiting) {
      replica.dirty = false;
      let more = false;
      this.#contained(replica, () => {
        more = replica.drain();
      });
      if (more) this.#mark(replica);
    }
    this.#writeJournal();
    for (const node of this.#outboxes.keys()) this.#flush(node);
  }

  #writeJournal(): void {
    while (this.#records.length > 0) {
      let bytes = 0;
      let count = 0;
      while (count < this.#records.length && (count === 0 || bytes < JOURNAL_WRITE_BYTES)) {
        bytes += (this.#records[count] as QueuedRecord).payload.length;
        count += 1;
      }
      const batch = this.#records.slice(0, count);
      let first = 0;
      try {
        first = this.#options.journal.append(batch, () => this.#persisted(batch, first));
      } catch (error) {
        if (!(error instanceof Problem) || error.code !== "overloaded") throw error;
        // What Raft asked for must be written in order: it waits here, and nothing new is proposed meanwhile.
        this.#journalFull = true;
        return;
      }
      this.#records = this.#records.slice(count);
      for (const [offset, { replica, group }] of batch.entries()) {
        replica.sequenceSubmitted = first + offset;
        // Of a replica whose environment was removed meanwhile nothing needs to be kept.
        if (this.#replicas.get(group) !== replica && !this.#cold.isEnding(group))
          this.#options.journal.release(group, first + offset);
      }
    }
    this.#journalFull = false;
  }

  #persisted(
    batch: readonly { replica: Replica; append: StorageAppend | null }[],
    first: number,
  ): void {
    for (const [offset, { replica, append }] of batch.entries()) {
      if (append === null) continue;
      this.#guarded(replica, () => {
        replica.persisted(append, first + offset);
        replica.resumeLane();
      });
    }
    for (const node of this.#outboxes.keys()) this.#flush(node);
    if (this.#journalFull) this.#schedule();
  }

  /** Runs something of a replica; what it throws stops that replica and nothing else (invariant 5). */
  #contained(replica: Replica, run: () => void): void {
    try {
      run();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#log.error(
        { tenant: replica.tenant, group: replica.group, replica: replica.id, err: error },
        "replica.halted",
      );
      replica.halt(reason);
      this.#ticking.delete(replica);
      this.requests.gone(replica.group);
      this.hub.end(replica.group, "replica-halted");
      this.#leaders = null;
      for (const id of replica.members.keys()) this.#disown(replica, id, replica.raft.term);
    }
  }

  /** Its node being alive, nobody would notice that this replica leads no more: it says so. */
  #disown(replica: Replica, to: ReplicaId, term: number): void {
    this.#send(replica, {
      type: MessageType.forgetLeader,
      to,
      from: replica.id,
      term,
      logTerm: 0,
      index: 0,
      commit: 0,
      reject: false,
      rejectHint: 0,
      context: 0,
      entries: [],
      snapshot: null,
    });
  }

  /**
   * A replica that is not here any more, or sleeps and cannot wake now, leads nobody. Only of a term that it has led is
   * that said: one that sleeps may come to lead another, and this may arrive after it did, where it would end a promise.
   */
  #disownFor(node: string, group: number, incarnation: number, message: Message): void {
    const term = termLed(message);
    if (term === 0) return;
    this.#sleepers.forget(group);
    const answer: Message = {
      ...message,
      type: MessageType.forgetLeader,
      to: message.from,
      from: message.to,
      term,
      logTerm: 0,
      entries: [],
    };
    const outbox = this.#outbox(node);
    outbox.frames.append.addRaft(group, incarnation, answer);
    outbox.canWait = false;
    this.#schedule();
  }

  #guarded(replica: Replica, run: () => void): void {
    // One that slept or was discarded is another object when it wakes, and would not know of what is done to this one.
    if (replica.halted !== null || this.#replicas.get(replica.group) !== replica) return;
    this.#contained(replica, run);
    if (replica.halted === null) this.#mark(replica);
  }

  #tick(): void {
    for (const replica of this.#ticking) {
      if (replica.halted !== null || replica.idle) {
        this.#ticking.delete(replica);
        continue;
      }
      this.#contained(replica, () => replica.tick());
      if (replica.halted === null) this.#mark(replica);
    }
  }

  #pulse(): void {
    const now = this.#clock.monotonicMs();
    this.liveness.check(now);
    this.requests.pulse(now);
    this.#runCampaigns(now);
    this.#schedules.round(now);
    if (now - this.#expiredAt >= EXPIRE_MS) {
      this.#expiredAt = now;
      this.#expire(now);
      for (const replica of this.#ticking) this.#checkpoints.look(replica);
    }
    if (this.#journalFull) this.#schedule();
    for (const node of this.#outboxes.keys()) this.#flush(node, true);
    this.#watchFitness(now);
    this.#cold.round(now, this.#systemReady);
    this.#makeRoom(now);
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
    if (now - this.#sleptAt > SLEEP_CHECK_MS) {
      this.#sleptAt = now;
      this.#sleep(this.#tuning.sleepAfterMs, Infinity);
    }
  }

  /** Ends what waits here and whose time is up. */
  #expire(now: number): void {
    this.#rpc.expire(now);
    this.#snapshots.expire(now);
    for (const replica of this.#ticking) this.#contained(replica, () => replica.expire(now));
    this.requests.expire(now);
  }

  /**
   * Without room here, tenants are written to where there is some: leaderships are offered to nodes that have it, also
   * those that come later, by an election or by waking. And who has no directory any more cannot move its groups, nor be
   * told that they moved (simulation, seed 200001041): it leads none that somebody else can lead.
   */
  #watchFitness(now: number): void {
    const low = this.#diskLevel !== "free";
    const blind = this.#isBlind;
    if (!low && !blind) {
      this.#handingOver = [];
      return;
    }
    if (this.#handingOver.length === 0 && now - this.#handingOverAt > HAND_OVER_MS) {
      this.#handingOverAt = now;
      this.#handingOver = [...this.#replicas.values()].filter(({ raft }) => raft.isLeader);
    }
    for (const replica of this.#handingOver.splice(0, CAMPAIGNS_PER_PULSE)) {
      if (!replica.raft.isLeader || now < (this.#offeredAt.get(replica) ?? -Infinity) + OFFER_MS)
        continue;
      const heir = this.#fitHeirOf(replica) ?? (blind ? this.#heirOf(replica) : null);
      if (heir === null) continue;
      this.#offeredAt.set(replica, now);
      this.#guarded(replica, () => replica.raft.transferLeadership(heir));
    }
  }

  /** The directory here is stopped. */
  get #isBlind(): boolean {
    return this.#replicas.get(SYSTEM_GROUP)?.halted != null;
  }

  get #diskLevel(): DiskSpace["level"] {
    return this.#options.disk?.level ?? "free";
  }

  /** A voter on another node that is there, another one each time; null when there is none. */
  #heirOf(replica: Replica): ReplicaId | null {
    const heirs = this.#heirs(replica);
    return heirs.length === 0 ? null : this.#prng.pick(heirs);
  }

  #heirs(replica: Replica): readonly ReplicaId[] {
    return [...replica.voters()]
      .filter(([id, node]) => id !== replica.id && this.liveness.supports(node))
      .map(([id]) => id);
  }

  /** One whose node says that it takes leaderships: any other would give them away again, or be no better off. */
  #fitHeirOf(replica: Replica): ReplicaId | null {
    const heirs = this.#heirs(replica).filter((id) => {
      const node = replica.nodeOf(id);
      return node !== undefined && this.#versions.newsOf(node)?.leaders != null;
    });
    return heirs.length === 0 ? null : this.#prng.pick(heirs);
  }

  // --- frames ----------------------------------------------------------------------------------------------------------

  #outbox(node: string): Outbox {
    let outbox = this.#outboxes.get(node);
    if (outbox === undefined) {
      outbox = {
        frames: {
          control: new FrameWriter(),
          append: new FrameWriter(),
          snapshot: new FrameWriter(),
          rpc: new FrameWriter(),
        },
        calls: [],
        appends: [],
        canWait: true,
      };
      this.#outboxes.set(node, outbox);
    }
    return outbox;
  }

  #send(replica: Replica, message: Message): void {
    const node = replica.nodeOf(message.to);
    if (node === undefined || node === this.node) return;
    const outbox = this.#outbox(node);
    const { group, incarnation } = replica;
    if (isUrgent(message.type)) {
      outbox.frames.control.addRaft(group, incarnation, message);
    } else {
      outbox.frames.append.addRaft(group, incarnation, message);
      if (message.type === MessageType.appendEntries && message.entries.length > 0) {
        outbox.appends.push({ replica, to: message.to });
      }
      if (replica.onlyTellsCommit(message)) return;
      outbox.canWait = false;
      if (outbox.frames.append.bytes > FRAME_BYTES) this.#flush(node);
    }
    this.#schedule();
  }

  #queueRpc(node: string, item: Uint8Array, call: number | null): void {
    const outbox = this.#outbox(node);
    outbox.frames.rpc.add(ItemKind.rpc, item);
    if (call !== null) outbox.calls.push(call);
    if (outbox.frames.rpc.bytes > FRAME_BYTES) this.#flush(node);
    this.#schedule();
  }

  #flush(node: string, evenWhatCanWait = false): void {
    const outbox = this.#outbox(node);
    const { frames } = outbox;
    const { transport } = this.#options;
    if (!frames.control.empty) transport.send(node, "control", frames.control.take());
    if (!frames.append.empty && (!outbox.canWait || evenWhatCanWait)) {
      const appends = outbox.appends;
      outbox.appends = [];
      outbox.canWait = true;
      if (!transport.send(node, "append", frames.append.take())) {
        for (const { replica, to } of appends) {
          this.#guarded(replica, () => replica.raft.reportUnreachable(to));
        }
      }
    }
    if (!frames.rpc.empty) {
      const calls = outbox.calls;
      outbox.calls = [];
      if (!transport.send(node, "rpc", frames.rpc.take())) {
        for (const call of calls) this.#rpc.notSent(call);
      }
    }
  }

  #onFrame(from: string, boot: number, lane: Lane, bytes: Uint8Array): void {
    if (this.#stopping && lane !== "control" && lane !== "append") return;
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
        const replica = this.#replicaFor(group, incarnation, message);
        if (replica === null && expectsLeader(message.type)) {
          this.#disownFor(from, group, incarnation, message);
        }
        if (replica === null || !this.#isOn(from, replica, message.from)) return;
        if (replica.halted !== null) {
          // Told to those alone who take it for the leader: a term from here must not disturb an election.
          if (expectsLeader(message.type)) {
            this.#disown(replica, message.from, message.term || replica.raft.term);
          }
          return;
        }
        // As if it had been lost on the way: its sender tries again, and a quorum elsewhere does not need it.
        if (this.#diskLevel === "out" && message.entries.length > 0) return;
        this.#guarded(replica, () => replica.step(message));
        this.#furtherElection(replica, message);
        return;
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

  /** The replica a message is for, woken if it sleeps; null when it is not (or no longer) this node's. */
  #replicaFor(group: number, incarnation: number, message: Message): Replica | null {
    let replica = this.#replicas.get(group) ?? null;
    if (replica !== null) {
      replica.usedAt = this.#clock.monotonicMs();
    } else {
      replica = this.#wake(group);
      // Whoever sends these believes that this replica leads; it does not remember, so it asks to lead again.
      if (replica !== null && expectsLeader(message.type)) this.#campaignSoon(replica);
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
      const { control } = this.#outbox(node).frames;
      const beat = { ...this.#leases.heartbeatTo(node), news };
      control.add(ItemKind.heartbeat, encodeHeartbeat(beat));
      if (incarnation > 1) control.add(ItemKind.recovered, recoveredItem(incarnation));
      this.#flush(node);
    }
  }

  #takeHeartbeat(from: string, boot: number, heartbeat: Heartbeat | null): void {
    if (heartbeat === null || boot < this.liveness.bootOf(from)) return;
    this.#leases.heard(from, boot, heartbeat);
    if (heartbeat.news !== null) this.#versions.heard(from, heartbeat.news);
  }

  /** What this node says of itself. */
  get #news(): NodeNews {
    const { version } = this.#options;
    const { levels, level } = this.#versions;
    return { version, levels, level: level ?? 0, leaders: this.#leadersHere };
  }

  /** It could not apply what it is sent, and would be one replica less in every group: it says so and ends. */
  #refuseOtherLevels(): void {
    const { refusal } = this.#versions;
    if (refusal === null || this.#stopping) return;
    this.#stopping = true;
    this.#options.onFatal(new Error(refusal));
  }

  /** Groups led here that others could lead; null when it should be no more. */
  get #leadersHere(): number | null {
    const phase = this.directory.node(this.node)?.phase;
    if (this.#stopping || !this.ready || phase !== undefined || this.#diskLevel !== "free")
      return null;
    // Each heartbeat says it, and thousands may be awake: counted again when it may have changed, or after a while.
    const now = this.#clock.monotonicMs();
    if (this.#leaders === null || now - this.#leadersCountedAt > LEADERS_MS) {
      this.#leadersCountedAt = now;
      this.#leaders = 0;
      for (const replica of this.#replicas.values()) if (isMovable(replica)) this.#leaders += 1;
    }
    return this.#leaders;
  }

  #leadersOn(node: string): number | null {
    const row = this.directory.node(node);
    if (row === undefined || row.phase !== undefined || row.role === "gateway") return null;
    return this.liveness.supports(node) ? (this.#versions.newsOf(node)?.leaders ?? null) : null;
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

  // --- liveness and elections --------------------------------------------------------------------------------------------

  #nodeUp(node: string): void {
    this.#log.info({ peer: node }, "node.up");
    this.#balance.disturbed(this.#clock.monotonicMs());
    // Leaders go on with their followers there, followers look whether their leader still is one.
    for (const replica of this.#replicas.values()) {
      if (replica.halted === null && hasMember(replica, node)) this.#mark(replica);
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
      if (led) this.#contained(replica, () => replica.raft.forgetLeader());
      this.#mark(replica);
      if (!led || !replica.isVoter) continue;
      const rank = this.#rankAmongLive(replica, NONE);
      const due = now + LAPSE_SPREAD_MS + rank * LAPSE_TURN_MS;
      this.#campaigns.set(replica, {
        due,
        tries: CAMPAIGN_TRIES,
        ...(rank > 0 && { isStandby: true }),
      });
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
      if (this.directory.node(peer) === undefined) this.liveness.forget(peer);
    }
  }

  /** One of the live replicas goes first, another one for each group; the others follow by their own timers. */
  #isFirstToCampaign(replica: Replica): boolean {
    return this.#rankAmongLive(replica, NONE) === 0;
  }

  /** Its place in the order of the live voters without `except`, which is another one for each group. */
  #rankAmongLive(replica: Replica, except: ReplicaId): number {
    const alive = [...replica.voters()]
      .filter(([id, node]) => id !== except && this.liveness.supports(node))
      .map(([id]) => id)
      .sort((left, right) => left - right);
    const place = alive.indexOf(replica.id);
    const first = replica.group % alive.length;
    // One without a vote comes after all that have one.
    return place < 0 ? alive.length : (place - first + alive.length) % alive.length;
  }

  #campaignSoon(replica: Replica): void {
    if (this.#campaigns.has(replica)) return;
    this.#campaigns.set(replica, { due: this.#clock.monotonicMs(), tries: CAMPAIGN_TRIES });
    if (this.#campaignsDeferred) return;
    // Somebody waits: do it in this turn, not at the next pulse.
    this.#campaignsDeferred = true;
    this.#clock.defer(() => this.#runDeferredCampaigns());
  }

  #runDeferredCampaigns(): void {
    if (!this.#campaignsDeferred) return;
    this.#campaignsDeferred = false;
    this.#runCampaigns(this.#clock.monotonicMs());
  }

  /**
   * What is said in an election that brings no leader, so that nobody waits for a timer: who has more than the one that
   * asks for votes asks instead, one after the other; and who was refused asks again.
   */
  #furtherElection(replica: Replica, message: Message): void {
    const { raft } = replica;
    if (replica.halted !== null || raft.isLeader || raft.lead !== NONE) return;
    const campaign = this.#campaigns.get(replica);
    const now = this.#clock.monotonicMs();
    switch (message.type) {
      case MessageType.preVote:
      case MessageType.requestVote: {
        if (raft.role !== "follower" || (campaign !== undefined && campaign.isStandby !== true))
          return;
        if (!raft.isAheadOf(message)) {
          // Who goes first is at it.
          const due = now + LAPSE_TURN_MS;
          if (campaign !== undefined) this.#campaigns.set(replica, { ...campaign, due });
          return;
        }
        this.#campaigns.delete(replica);
        const rank = this.#rankAmongLive(replica, message.from);
        if (rank === 0) return this.#campaignSoon(replica);
        this.#campaigns.set(replica, { due: now + rank * PULSE_MS, tries: CAMPAIGN_TRIES });
        return;
      }
      case MessageType.preVoteResponse:
      case MessageType.requestVoteResponse: {
        // Where two asked at once, and the third is gone, neither ever hears that it lost.
        if (campaign === undefined || !message.reject || raft.awaitsVotes) return;
        const lost = CAMPAIGN_TRIES - campaign.tries - 1;
        // Refused was one that its own timer began; this one keeps its time.
        if (lost < 0) return;
        const wait = Math.min(CAMPAIGN_RETRY_MS, CAMPAIGN_LOST_MS * 2 ** lost);
        const due = now + wait + this.#prng.below(wait);
        if (due < campaign.due) this.#campaigns.set(replica, { ...campaign, due });
        return;
      }
      default:
        return;
    }
  }

  #runCampaigns(now: number): void {
    let started = 0;
    for (const [replica, { due, tries }] of this.#campaigns) {
      if (due > now) continue;
      if (started >= CAMPAIGNS_PER_PULSE) return;
      this.#campaigns.delete(replica);
      const { raft } = replica;
      if (raft.isBarred && replica.halted === null) {
        const end = this.#leases.barredUntilMs + this.#prng.below(PULSE_MS);
        this.#campaigns.set(replica, { due: Math.max(end, now + 1), tries });
        continue;
      }
      const leader = replica.leaderNode;
      const settled = raft.isLeader || (leader !== null && this.liveness.supports(leader));
      if (replica.halted !== null || settled || this.#replicas.get(replica.group) !== replica)
        continue;
      started += 1;
      // A tenant's group without a term has no leader to be disturbed. At a cluster's beginning there is no hurry: what
      // the nodes know of each other by then decides at which level it begins.
      const isFirst = raft.term === 0 && replica.group !== SYSTEM_GROUP;
      this.#guarded(replica, () => raft.campaign(isFirst));
      if (tries > 1) {
        const wait = CAMPAIGN_RETRY_MS + this.#prng.below(CAMPAIGN_RETRY_MS);
        this.#campaigns.set(replica, { due: now + wait, tries: tries - 1 });
      }
    }
  }

  #leaderChanged(replica: Replica): void {
    const { tenant, group, raft } = replica;
    this.#log.debug(
      { tenant, group, leader: replica.leaderNode, term: raft.term, role: raft.role },
      "replica.leader_changed",
    );
    this.#leaders = null;
    this.#settings.leaderChanged(replica);
    if (raft.isLeader) {
      this.#membership.look(group);
      this.#balance.leads(replica, this.#clock.monotonicMs());
    }
    if (this.#diskLevel !== "free" && !this.#isBlind) {
      // What comes back, or begins, is offered at once.
      this.#offeredAt.delete(replica);
      if (raft.isLeader) this.#handingOver.push(replica);
    }
    if (raft.lead !== NONE) this.requests.led(group);
  }

  /** What the turns and the group's beginning have against a proposal to a leader here; null: nothing. */
  #refusal(replica: Replica): ProposalResult | null {
    if (this.#journalFull) return { kind: "overloaded" };
    // A leader of this very turn: what it has to say first is not in its log yet.
    return this.#settings.hasBegun(replica) ? null : { kind: "not-leader" };
  }

  /** What the group's leader proposes by itself. */
  #systemCommand(action: Command["action"]): Uint8Array {
    const at = this.#clock.wallMs();
    const actor = { kind: "system", keyId: "system" } as const;
    const command: Command = { at, actor, semantics: this.semantics, action };
    return encoder.encode(JSON.stringify(command));
  }

  // --- waking and sleeping -----------------------------------------------------------------------------------------------

  /** Brings a replica of this node into memory. Null: it is not this node's, or there is no room now. */
  #wake(group: number): Replica | null {
    const present = this.#replicas.get(group);
    if (present !== undefined) return present;
    if (!this.#cold.mayOpen(group)) return null;
    try {
      return this.#wakeCold(group);
    } catch (error) {
      // Nothing is wrong with it: too many others are busy, and whoever asks asks again.
      if (error instanceof Problem && error.code === "overloaded") return null;
      // One tenant's environment must not stop the others, nor whoever happened to ask for it.
      this.#cold.setAside(group, error);
      return null;
    }
  }

  #wakeCold(group: number): Replica | null {
    const identity = group === SYSTEM_GROUP ? this.#systemMeta() : this.#directoryMeta(group);
    if (identity === null) return null;
    if (this.#replicas.size >= this.#tuning.awakeLimit) {
      const now = this.#clock.monotonicMs();
      if (now - this.#fullToldAt > FULL_NOTICE_MS) {
        this.#fullToldAt = now;
        this.#log.warn({ awake: this.#replicas.size }, "replicas.full");
      }
      return null;
    }
    const found = this.#cold.open(identity);
    if (found === null) return null;
    const { environment, records } = found;
    let { damage } = found;
    let replica: Replica;
    try {
      replica = this.#load(identity, environment, damage === null ? records : null);
    } catch (error) {
      // The journal and the environment contradict each other: this replica cannot be trusted, its neighbours can.
      this.#log.error({ tenant: identity.tenant, group, err: error }, "replica.unreadable");
      damage ??= error instanceof Error ? error.message : String(error);
      replica = this.#load(identity, environment, null);
    }
    this.#replicas.set(group, replica);
    replica.usedAt = this.#clock.monotonicMs();
    this.#schedules.set(group, replica.dueAt);
    if (damage !== null) {
      // A vote or an acknowledged entry may be gone: it must neither vote nor answer (invariant 2).
      this.#log.error({ tenant: replica.tenant, group, damage }, "replica.journal_damaged");
      replica.halt(`Journal is damaged: ${damage}`);
      return replica;
    }
    this.#mark(replica);
    return replica;
  }

  #load(
    identity: ReplicaMeta,
    environment: Environment,
    /** Null: they cannot be trusted. */
    records: readonly RecoveredRecord[] | null,
  ): Replica {
    const isStored = environment.meta() !== null;
    const { meta, log, sequence, isFresh } = recoverLog(environment, identity, records ?? []);
    const replica = new Replica({
      meta,
      log,
      environment,
      hooks: this.#replicaHooks,
      random: this.#prng.fork(),
      supports: (id) => {
        const node = replica.nodeOf(id);
        return node !== undefined && this.liveness.supports(node);
      },
      leases: this.#leases.supportOf((id) => replica.nodeOf(id)),
      bond: this.#leases.awake(identity.group, identity.replica),
      leadership: this.#sleepers.awake(identity.group, identity.replica),
      semanticsMax: this.#versions.levels.max,
      // Every request asks for its tenant's row.
      ...(identity.group === SYSTEM_GROUP && { rowsKept: this.#tuning.awakeMax }),
      sequence,
      logKept: {
        entries: this.#tuning.logKeptEntries,
        bytes: this.#tuning.logKeptBytes,
        bytesForLagging: this.#tuning.logKeptBytesForLagging,
      },
    });
    replica.startFrom(isStored ? meta.sequence : 0, isStored ? meta.applied : 0);
    if (isFresh && records !== null) {
      // Its first record says who it is; the environment says so too from its first checkpoint on.
      this.#records.push({
        group: replica.group,
        payload: createRecord(meta),
        replica,
        append: null,
      });
    }
    return replica;
  }

  #systemMeta(): ReplicaMeta | null {
    if (this.#identity === null) return null;
    const { incarnation = 1 } = this.#identity;
    const system = { tenant: SYSTEM_TENANT, group: SYSTEM_GROUP, incarnation };
    return freshMeta(system, this.#identity.id, this.#identity.initial);
  }

  #directoryMeta(group: number): ReplicaMeta | null {
    const row = this.directory.byGroup(group);
    if (row === undefined) return null;
    const own = replicaOn(row.placement, this.node);
    if (own === undefined || !this.#isOwn(own, row)) return null;
    const initial = row.initial ?? row.placement.replicas;
    const members = initial.map(({ node, id }) => ({ node, id }));
    return freshMeta({ tenant: row.tenant, group, incarnation: row.incarnation }, own.id, members);
  }

  /** It was placed on this disk, and not on one that was here before (invariant 9). */
  #isOwn(replica: PlacedReplica, row: TenantRow): boolean {
    const { diskId } = this.#options;
    if (diskId === undefined) return true;
    const known = this.directory.node(this.node);
    const isInitial = this.systemInitial.some(({ id }) => id === this.#identity?.id);
    if (known === undefined) return isInitial;
    return (known.disk === undefined || known.disk === diskId) && !isLost(replica, row, known);
  }

  /** Beyond `awakeMax` the longest unused replicas sleep early. */
  #makeRoom(now: number): void {
    if (now - this.#roomMadeAt < MAKE_ROOM_MS) return;
    this.#roomMadeAt = now;
    const excess = this.#replicas.size - this.#tuning.awakeMax;
    if (excess > 0) this.#sleep(SLEEP_FOR_ROOM_MS, excess + AWAKE_SPARE);
  }

  /** Puts the longest unused replicas to sleep, or checkpoints them so that they can be next time. */
  #sleep(unusedMs: number, countMax: number): void {
    const now = this.#clock.monotonicMs();
    const sleepers: Replica[] = [];
    for (const replica of this.#replicas.values()) {
      const { group } = replica;
      if (group === SYSTEM_GROUP || now - replica.usedAt <= unusedMs) continue;
      const used = this.hub.watched(group) || this.requests.isAwaited(group) || replica.pinned;
      // Asleep, it would not notice a lagging peer's node come back, whose watchers would wait for the next use.
      if (replica.raft.isLeader && !replica.raft.nobodyLacksAnything) continue;
      // Nor that its members shall be others: it stays to be offered to who has a directory (simulation, seed 450003739).
      if (replica.raft.isLeader && this.#isBlind && this.#heirs(replica).length > 0) continue;
      if (replica.halted === null && replica.idle && !used) sleepers.push(replica);
    }
    sleepers.sort((left, right) => left.usedAt - right.usedAt);
    for (const replica of sleepers.slice(0, countMax)) {
      if (replica.needsCheckpoint) this.#checkpoints.queue(replica.group);
      else this.#close(replica);
    }
  }

  /** Everything of it is in its environment: it is cold once that is closed. */
  #close(replica: Replica): void {
    this.#replicas.delete(replica.group);
    this.#leaders = null;
    this.#ticking.delete(replica);
    this.requests.gone(replica.group);
    this.#leases.asleep(replica.group, replica.id, replica.raft.bond);
    this.#sleepers.asleep(replica.group, replica.id, replica.raft.leadership);
    replica.abandon();
    this.#cold.close(replica);
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

  // --- checkpoints -------------------------------------------------------------------------------------------------------

  /** Of what keeps an environment open while it lasts, so many at once: four kinds of it share what may be open. */
  #busyMax(max: number): number {
    return Math.min(max, Math.max(1, Math.floor(this.#options.environments.cap / 4)));
  }

  #stored(replica: Replica, error: Error | null): void {
    this.#checkpoints.ended(replica);
    if (error !== null) {
      // After a failed commit nobody knows what an environment holds.
      this.#options.onFatal(
        new Error(`Cannot write the environment of tenant ${replica.tenant}: ${error.message}`, {
          cause: error,
        }),
      );
      return;
    }
    this.#options.journal.release(replica.group, replica.sequenceStored);
    if (replica.halted === null && replica.restoring) this.#options.onBulkStored?.();
    this.#guarded(replica, () => replica.resumeLane());
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
        this.#forget(change.name);
        // One that slept has no replica to be found by.
        this.#cold.sweepSoon();
        continue;
      }
      // It may have replaced one of the same name: nothing but a restore does.
      if (row.incarnation === event.revision && row.restore !== undefined) {
        this.#forget(change.name, row.group);
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
          const replica = this.#wake(row.group);
          if (replica !== null && replica.raft.lead === NONE) this.#campaignSoon(replica);
        });
      }
      const present = row === undefined ? undefined : this.#replicas.get(row.group);
      if (present === undefined) continue;
      this.#settings.lookSoon(present);
      if (present.raft.isLeader) this.#membership.look(row.group);
    }
  }

  /** A purged tenant leaves no bytes on this node. */
  #forget(tenant: string, except = SYSTEM_GROUP): void {
    for (const replica of this.#replicas.values()) {
      if (replica.tenant !== tenant || replica.group === SYSTEM_GROUP) continue;
      if (replica.group !== except) this.#discard(replica, "tenant-deleted");
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
    this.#leaders = null;
    this.#snapshots.forget(replica);
    this.#replicas.delete(group);
    this.#ticking.delete(replica);
    this.#cold.removeStopped(replica);
  }

  // --- calls between nodes -------------------------------------------------------------------------------------------------

  #serveCalls(): void {
    this.#rpc.answer(Method.acquaintance, (_from, _question, respond) => {
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
    const at = this.#clock.wallMs();
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

  viewNow(tenant: string): TenantView | null {
    return this.requests.viewNow(tenant);
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
        this.#contained(replica, () => {
          taken = replica.snapshot();
        });
        const snapshot = taken as ReplicaSnapshot | null;
        if (snapshot === null) return reject(halted(tenant));
        this.#snapshotsOpen.add(snapshot);
        const rows = (): Iterable<readonly [key: string, text: string]> => snapshot.rows();
        const close = (): void => {
          this.#snapshotsOpen.delete(snapshot);
          snapshot.close();
        };
        resolve({ epoch, revision, meta, rows, close });
      });
    });
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

/** Few and small, and what elections wait for: they must not queue behind log entries. */
function isUrgent(type: MessageType): boolean {
  switch (type) {
    case MessageType.requestVote:
    case MessageType.requestVoteResponse:
    case MessageType.preVote:
    case MessageType.preVoteResponse:
    case MessageType.timeoutNow:
      return true;
    default:
      return false;
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
