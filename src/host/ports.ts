/**
 * What the host needs of the world: a journal, environments, a transport and a clock. Adapters see this file and nothing
 * else of the host; the simulator brings its own of each.
 */
import type { Command, Outcome } from "../machine/command.ts";
import type { StateView, StoredChange, TenantMeta } from "../machine/rows.ts";
import type { ReplicaId } from "../raft/types.ts";

// --- clock -----------------------------------------------------------------------------------------------------------

export interface Clock {
  /** Milliseconds from an arbitrary origin; never goes back, never jumps with the wall clock. */
  monotonicMs(): number;
  /** Milliseconds since 1970 for people to read, and to be compared (wall_time.ts); consensus never depends on it. */
  wallMs(): number;
  /** Runs once what has already arrived was handled: the end of this turn of the event loop. */
  defer(run: () => void): void;
  /** Runs about every `ms` until the returned function is called. Late is fine, early is not. */
  every(ms: number, run: () => void): () => void;
}

// --- log ---------------------------------------------------------------------------------------------------------------

/** What the host logs with; pino fits. Values of tenants never go in. */
export interface Log {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

// --- journal: one per node, makes writes durable ---------------------------------------------------------------------

/** One append of one group. `payload` is the host's; the journal knows only whose it is. */
export interface JournalRecord {
  readonly group: number;
  readonly payload: Uint8Array;
}

/** Position of a record in the order of all appends of this node; grows by one per record, also over restarts. */
export type JournalSequence = number;

export interface RecoveredRecord {
  readonly sequence: JournalSequence;
  readonly payload: Uint8Array;
}

/** In the order they were appended. */
export interface RecoveredRecords extends Iterable<RecoveredRecord> {
  readonly length: number;
}

export interface JournalRecovery {
  /** Records not yet released, per group. */
  readonly groups: ReadonlyMap<number, RecoveredRecords>;
  /** Groups with a damaged record in the middle of the journal: they must neither vote nor answer. */
  readonly damaged: ReadonlyMap<number, string>;
  /**
   * Sequences of records that were destroyed together with the name of their group. A group without records here is
   * concerned unless its environment holds everything up to `to`.
   */
  readonly lost: readonly {
    readonly from: JournalSequence;
    readonly to: JournalSequence;
    readonly where: string;
  }[];
  /** Bytes cut from the end because the last append was torn by a crash (0 = clean). */
  readonly tornBytes: number;
}

export interface Journal {
  /**
   * Reads what is there, a piece at a time beside whatever else the process does. Before anything else, once: until `done`
   * nothing can be asked but `status` and `close`.
   * @param done with what was found, which is dropped by the host once every group in it was read; or with an error, when the
   * directory cannot be used or the journal is closed meanwhile
   */
  open(done: (error: Error | null, found: JournalRecovery | null) => void): void;
  /**
   * Appends one turn's records of all groups: one write, durable when `done` is called, in order of the calls. Records
   * are copied before this returns. An error of the disk is fatal to the process and reported by `onFatal`.
   * @returns the sequence of the first record; the others follow by one each
   */
  append(records: readonly JournalRecord[], done: () => void): JournalSequence;
  /** Everything of this group up to and including `sequence` is durable elsewhere; its space may be reused. */
  release(group: number, sequence: JournalSequence): void;
  /** `release` of all that was appended of this group so far, what was damaged of it included: its replica is gone. */
  forget(group: number): void;
  /** What is on the disk of this group after `sequence`, read from there: for one that is set aside while the node runs. */
  records(group: number, sequence: JournalSequence): readonly RecoveredRecord[];
  /** Groups whose unreleased records keep the oldest segments from being dropped, oldest first. */
  pinning(segmentsMax: number): readonly number[];
  readonly status: {
    readonly segments: number;
    readonly bytes: number;
    readonly appends: number;
    readonly syncs: number;
  };
  close(): Promise<void>;
}

// --- quarantine: damage that outlives the journal's segments ------------------------------------------------------------

/** A replica that must neither vote nor answer here until another one takes its place. */
export interface QuarantinedReplica {
  readonly group: number;
  /** Null: which one it was is not known. */
  readonly replica: ReplicaId | null;
  readonly reason: string;
}

/** What the journal still has of one. */
export interface Remains extends QuarantinedReplica {
  readonly records: Iterable<RecoveredRecord>;
}

/** Records up to `to` are gone, and whose they were is not known. */
export interface LostRecords {
  readonly to: JournalSequence;
  readonly where: string;
  /** The environments that were there when it was found: no other one lost anything. Absent: it may be any. */
  readonly environments?: readonly string[];
}

export interface Quarantine {
  readonly replicas: Iterable<QuarantinedReplica>;
  /** The newest of all: who has everything up to there lacks nothing. */
  readonly lost: LostRecords | null;
  /** Durable when it returns. In place of what was kept of the same groups; `lost` null leaves what is there. */
  keep(replicas: readonly Remains[], lost: LostRecords | null): void;
  /** Durable when it returns. */
  remove(group: number): void;
}

// --- room on the disk ------------------------------------------------------------------------------------------------

/** Of the disk that holds journal and environments. */
export interface DiskSpace {
  /**
   * `low`: less than the reserve is free, no new writes are taken here. `out`: less than a part of it, nothing grows that
   * can be refused. Votes, reads, checkpoints and deletions go on in any case.
   */
  readonly level: "free" | "low" | "out";
  readonly freeBytes: number;
  readonly reserveBytes: number;
  /** How long the oldest write under way has been so. */
  readonly oldestWriteMs: number;
}

// --- environments: one per replica, hold log and state between checkpoints -------------------------------------------

/** One durable, atomic change of an environment. Order: deletes, then puts. */
export interface EnvironmentChange {
  readonly meta: Uint8Array;
  /** State rows: JSON text by ASCII key, undefined deletes. */
  readonly rows: Iterable<readonly [key: string, value: string | undefined]>;
  /** Log entries by index. */
  readonly entries: Iterable<readonly [index: number, bytes: Uint8Array]>;
  /** Log entries with low ≤ index < high are deleted. */
  readonly entriesDeleted: readonly { readonly low: number; readonly high: number }[];
}

export interface Range {
  /** First key, inclusive. */
  readonly gte: string;
  /** End, exclusive. */
  readonly lt: string;
  readonly reverse?: boolean;
}

/**
 * The rows as they are when it is taken, whatever is committed afterwards. Holds space of the environment until closed;
 * the environment's own end closes it, and reading it then throws.
 */
export interface EnvironmentSnapshot {
  get(key: string): string | undefined;
  range(range: Range): Iterable<readonly [key: string, value: string]>;
  close(): void;
}

/** Rows that are to replace those of an environment, kept beside them. Nothing of it shows before `install`. */
export interface Staging {
  /** Keys ascend over all calls. Written, durable at the latest with `install`; `done` in order of the calls. */
  add(
    rows: readonly (readonly [key: string, value: string])[],
    done: (error: Error | null) => void,
  ): void;
  discard(): void;
}

/**
 * Reads are synchronous and see the last committed change, and of a commit under way perhaps a part. Between calls it may
 * give up what the system lends it, files and memory, for others, as long as no commit, snapshot or staging is under way:
 * the next call takes some time more.
 */
export interface Environment {
  /**
   * Calls back once it is certain that a loss of power leaves it there: at once, but for one that was just made. What is
   * promised in its name waits for that. With an error nobody knows.
   */
  whenKept(done: (error: Error | null) => void): void;
  meta(): Uint8Array | null;
  get(key: string): string | undefined;
  range(range: Range): Iterable<readonly [key: string, value: string]>;
  entry(index: number): Uint8Array | undefined;
  /**
   * All or nothing; `done` is called once it is on disk, and the environment kept. One at a time per environment. Rows are
   * drawn over many turns and may show one by one before: whoever reads meanwhile must have them itself.
   */
  commit(change: EnvironmentChange, done: (error: Error | null) => void): void;
  snapshot(): EnvironmentSnapshot;
  /** Begins to gather rows for `install`. What was staged before, also in an earlier life, is dropped. */
  stage(): Staging;
  /**
   * Replaces all rows by the staged ones and empties the log, in one durable transaction: after a crash everything is as
   * before or as afterwards. Counts as a commit.
   */
  install(staging: Staging, meta: Uint8Array, done: (error: Error | null) => void): void;
  /** Refused (throws) while a commit is under way. Waits for what is being staged. */
  close(): Promise<void>;
}

export interface Environments {
  /**
   * Opens, or creates, synchronously. As many as one likes: see `Environment`, and its `whenKept`.
   * @throws Problem a retryable one when there is no room just now; anything else means that it cannot be read
   */
  open(name: string): Environment;
  exists(name: string): boolean;
  /** All on the disk, open or not. O(tenants). */
  names(): readonly string[];
  /** Deletes a closed environment from the disk. */
  remove(name: string): Promise<void>;
  /** Those that hold files open at present. */
  readonly open_count: number;
  /** How many may do so at once, computed from the process's limits before anything is opened. What is busy must be fewer. */
  readonly cap: number;
}

// --- transport: frames between nodes ----------------------------------------------------------------------------------

/** control: liveness, votes, wake-ups; append: log entries and their answers; snapshot: chunks; rpc: forwarding. */
export const lanes = ["control", "append", "snapshot", "rpc"] as const;
export type Lane = (typeof lanes)[number];

export interface FrameHandler {
  /** `bytes` may be a view into a receive buffer: copy what outlives the call. `boot` grows with each start of `from`. */
  (from: string, boot: number, lane: Lane, bytes: Uint8Array): void;
}

/**
 * At most once, in order per peer and lane while the path is stable; may drop, may delay for minutes. Nothing is kept
 * over a broken connection: Raft retries.
 */
export interface Transport {
  /** Connects, and calls `handler` from then on. */
  start(handler: FrameHandler): Promise<void>;
  /**
   * False when it was not sent: disconnected, unknown peer, or the lane's window to it is full. Takes up to 16 MiB, and
   * copies what it needs of it before it returns.
   */
  send(to: string, lane: Lane, bytes: Uint8Array): boolean;
  readonly connected: boolean;
  close(): Promise<void>;
}

// --- what the gateway sees of the host ----------------------------------------------------------------------------------

export interface ReadOptions {
  readonly consistency: "linearizable" | "stale";
  /** Wait, bounded, until this revision is applied here. */
  readonly minRevision?: number;
  readonly timeoutMs?: number;
  /** Also of a tenant that is deleted and can be undeleted: for keys, which are told so. */
  readonly evenDeleted?: boolean;
  /** Also while its rows come in from a backup; else that is `restoring`. */
  readonly evenRestoring?: boolean;
  /**
   * Stale: also as the tenant's first command will leave it, while that is on its way and led here. For judging a request
   * whose change is applied after it or not at all; not for answers.
   */
  readonly evenUnborn?: boolean;
}

/** What can be read without waiting: stale unless told. */
export type ViewOptions = Partial<Pick<ReadOptions, "consistency" | "evenUnborn">>;

/** A tenant's applied state, as of one revision, valid during one synchronous call. */
export interface TenantView extends StateView {
  readonly tenant: string;
  readonly epoch: number;
  readonly revision: number;
}

export interface CommitEvent {
  readonly revision: number;
  readonly at: number;
  /** Over how long watchers are told of it; absent: all at once. */
  readonly spreadMs?: number;
  readonly changes: readonly StoredChange[];
}

/** Everything a subscriber gets, in order, without a gap. */
export interface WatchListener {
  /** One applied revision. */
  commit(event: CommitEvent, view: TenantView): void;
  /** The replica here is going away (moved, deleted, node stopping); resume elsewhere with the last cursor. */
  end(reason: string): void;
}

export interface ReplicaStatus {
  readonly node: string;
  readonly id: number;
  readonly role: "leader" | "voter" | "learner";
  /** Highest log index known to be on that replica; null where only the leader would know. */
  readonly match: number | null;
  readonly state: "probe" | "replicate" | "snapshot" | "self" | "unknown";
}

export interface GroupStatus {
  readonly tenant: string;
  readonly group: number;
  readonly leader: string | null;
  readonly term: number;
  readonly commit: number;
  readonly applied: number;
  readonly revision: number;
  readonly epoch: number;
  readonly replicas: readonly ReplicaStatus[];
}

export interface NodeStatus {
  readonly name: string;
  readonly self: boolean;
  readonly alive: boolean;
  /** Milliseconds since this node last heard of it; null = never, or itself. */
  readonly heardMsAgo: number | null;
  readonly boot: number | null;
  /** As it says itself; null where it said nothing. */
  readonly version: string | null;
  /** Levels of commands that it knows, both ends among them. */
  readonly levels: { readonly min: number; readonly max: number } | null;
  /** Groups with other voters that are led there; null: not said, or it takes no more. */
  readonly leaders: number | null;
}

/** How writes of busy tenants are let in beside others, on this node and since its start (admission.ts). */
export interface AdmissionStatus {
  /** Between batches of busy tenants, ms; 0: nobody is held up. */
  readonly paceMs: number;
  /** Writes that wait for their batch. */
  readonly waiting: number;
  /** Those that ever waited, and those that were refused. */
  readonly held: number;
  readonly refused: number;
  /** Writes of quiet tenants beside a busy one, and those of them that were late. */
  readonly quiet: number;
  readonly late: number;
}

export interface ClusterStatus {
  readonly cluster: string;
  readonly node: string;
  readonly version: string;
  readonly ready: boolean;
  readonly transport: "loopback" | "nats";
  readonly connected: boolean;
  readonly nodes: readonly NodeStatus[];
  /** Whom this node lost, oldest first, a bounded number; wall-clock ms. Kept in memory: it begins with this boot. */
  readonly absences: readonly {
    readonly node: string;
    readonly from: number;
    readonly until: number | null;
    readonly reason: "silent" | "restarted";
  }[];
  /** How far this node's wall clock is ahead of the middle of all that it hears, ms; behind: below 0 (wall_time.ts). */
  readonly clockAheadMs: number;
  /** Commands up to this level are proposed; null while this node does not know. */
  readonly level: number | null;
  /** `given`: leaderships that this node gave away since its start, so that nodes lead alike. */
  readonly replicas: { readonly warm: number; readonly leaders: number; readonly given: number };
  readonly admission: AdmissionStatus;
  readonly journal: Journal["status"];
  readonly environments: { readonly open: number; readonly cap: number };
  /** Replicas here that damage keeps from voting and answering, a bounded number; tenant null: not known (yet). */
  readonly quarantine: readonly {
    readonly group: number;
    readonly tenant: string | null;
    readonly reason: string;
  }[];
  /** Null where nobody looks at it. */
  readonly disk: DiskSpace | null;
  readonly tenants: number;
}

/** A tenant's rows as of one revision, for as long as it takes to read them. Close it. */
export interface TenantSnapshot {
  readonly epoch: number;
  readonly revision: number;
  readonly meta: TenantMeta;
  /** In order of keys, as JSON text. Throws when the replica went away meanwhile. */
  rows(): Iterable<readonly [key: string, text: string]>;
  close(): void;
}

/** A change of the directory: the tenant stays on its nodes, and the replicas that are `lost` get others in their place. */
export interface Replacement {
  readonly op: "directory.move";
  readonly tenant: string;
  readonly nodes: readonly string[];
  readonly lost: readonly ReplicaId[];
  readonly generation: number;
}

/**
 * The host as the gateway knows it. Tenant `_system` is addressed like any other. All failures are `Problem`s: NotHere
 * where it is answered from a replica that has just left this node.
 */
export interface ConfigService {
  readonly node: string;
  /** The newest meaning of commands that every node of the cluster knows: what those made now say. */
  readonly semantics: number;
  readonly ready: boolean;
  /** Milliseconds since 1970, by this node's wall clock unless most others say that it is wrong. May go back. */
  nowMs(): number;
  /** Whether this node holds a replica of the tenant; else which nodes do, best first. Unknown tenant: `null`; a deleted one is where it was. */
  locate(
    tenant: string,
  ): Promise<
    { readonly local: true } | { readonly local: false; readonly nodes: readonly string[] } | null
  >;
  /** Same without waiting, from what this node knows; undefined when it must be asked of the directory. */
  locateNow(tenant: string): { readonly local: boolean } | undefined;
  /**
   * The state as this node knows it, like a stale read without waiting, or a linearizable one where it is led here under a
   * lease; null when `read` must be asked. Valid for this turn.
   */
  viewNow(tenant: string, options?: ViewOptions): TenantView | null;
  /** Replicates and applies; forwards to the leader if that is elsewhere. `timeoutMs` over → `outcome-unknown`. */
  propose(tenant: string, command: Command, timeoutMs?: number): Promise<Outcome>;
  /** Runs `query` synchronously on this node's replica once the consistency asked for holds. */
  read<T>(tenant: string, options: ReadOptions, query: (view: TenantView) => T): Promise<T>;
  /**
   * In one synchronous turn: `start` sees the applied state, and from the next revision on the listener is called.
   * @returns a function that ends the subscription
   */
  watch(
    tenant: string,
    start: (view: TenantView) => void,
    listener: WatchListener,
  ): Promise<() => void>;
  /** The tenant's state as it is after every change that was answered before; writing goes on beside it. */
  snapshot(tenant: string): Promise<TenantSnapshot>;
  group(tenant: string): Promise<GroupStatus>;
  cluster(): ClusterStatus;
  /**
   * Nodes for a new tenant's replicas, best first, alive ones before others. `replicas` undefined: 3 where there are
   * three nodes, else 1. Throws `invalid` when there are fewer nodes than replicas were asked for.
   * Those of `keep` come first.
   */
  place(tenant: string, replicas: number | undefined, keep?: readonly string[]): readonly string[];
  /**
   * Resolves when every node that is there knows the directory up to this revision.
   * @throws Problem `outcome-unknown` where one does not come so far within seconds
   */
  directoryReached(revision: number): Promise<void>;
  /** Asks the leadership of the tenant's group to move to this node's replica. */
  transfer(tenant: string, toNode: string): Promise<void>;
  /**
   * What puts a new replica in the place of the one on this node, which does not run any more: fed by its peers.
   * @throws Problem `not-found` without a replica here, `conflict` when it runs, when the tenant moves, or when the others
   * have no leader or no majority that holds everything committed
   */
  repair(tenant: string): Promise<Replacement>;
  /** Sends a request of the gateway to the gateway of another node, and its answer back. */
  exchange(node: string, request: Uint8Array, timeoutMs: number): Promise<Uint8Array>;
  /** Sets who answers `exchange` of other nodes. */
  onExchange(handler: (from: string, request: Uint8Array) => Promise<Uint8Array>): void;
}
