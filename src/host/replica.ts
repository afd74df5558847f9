/**
 * One replica of one tenant: its Raft, its log, its applied state, and who waits for what. Synchronous and
 * event-driven: messages, ticks, proposals, reads and storage completions come in, `drain` sends what they led to out.
 * No promise, clock or timer lives here, so the simulator runs it whole.
 *
 * Order that is owed (architecture, invariants 2 and 3):
 *  - appends enter the journal in the order Raft asked for them; what depends on one leaves only after `persisted`;
 *  - committed entries are applied in order, and rows, history and applied index move together;
 *  - a snapshot is in the environment, durably, before the journal gets anything that follows it.
 */
import { assert } from "../lib/assert.ts";
import type { Prng } from "../lib/prng.ts";
import { apply } from "../machine/machine.ts";
import { semanticsNow, type Command, type Outcome } from "../machine/command.ts";
import { membersKey } from "../machine/keys.ts";
import { isAsParsed } from "../model/json.ts";
import type { HistoryRow, Member, TenantMeta } from "../machine/rows.ts";
import { decodeConfChange, newReady, Raft } from "../raft/raft.ts";
import {
  EntryKind,
  MessageType,
  NONE,
  type Bond,
  type ConfChange,
  type ConfState,
  type Entry,
  type HardState,
  type Leadership,
  type LeaseSupport,
  type Message,
  type ReadState,
  type Ready,
  type ReplicaId,
  type SnapshotMeta,
  type StorageAppend,
} from "../raft/types.ts";
import type { GroupLog, LogCheckpoint, ReplicaMeta } from "./group_log.ts";
import type { Environment, EnvironmentChange, Staging, TenantView } from "./ports.ts";
import { TenantState, type StateSnapshot } from "./tenant_state.ts";

/** Ticks are this long; the host calls `tick` that often on replicas that need it. */
export const TICK_MS = 100;
const ELECTION_TICKS = 10;
const HEARTBEAT_TICKS = 1;
const MESSAGE_BYTES_MAX = 256 * 1024;
const INFLIGHT_MESSAGES_MAX = 256;
const INFLIGHT_BYTES_MAX = 8 * 1024 * 1024;
const APPLYING_BYTES_MAX = 4 * 1024 * 1024;
const UNCOMMITTED_BYTES_MAX = 32 * 1024 * 1024;
/** Callers that wait for one replica; more are refused as overloaded. */
const WAITING_MAX = 20_000;
/** Addresses learned from messages and not confirmed by the configuration. */
const STRANGERS_MAX = 64;
/** The log kept behind the applied index, so that a follower a little behind needs no snapshot. */
export interface LogKept {
  readonly entries: number;
  readonly bytes: number;
  /** So much more for a live follower that is further behind, or is being sent a snapshot and needs what follows it. */
  readonly bytesForLagging: number;
}

/** A read round that brought no answer in this many ticks is asked for again: its messages may be lost. */
const READ_RETRY_TICKS = 3;

export type ProposalResult =
  | { readonly kind: "applied"; readonly outcome: Outcome }
  /** Certainly not applied and never will be: proposing again cannot do it twice. */
  | { readonly kind: "lost" }
  | { readonly kind: "not-leader" }
  | { readonly kind: "overloaded"; readonly detail?: string }
  /** The disk of the leader's node has too little room left. */
  | { readonly kind: "disk-full"; readonly detail: string }
  /** May have been applied. */
  | { readonly kind: "unknown" }
  | { readonly kind: "halted"; readonly reason: string };

export type ReadResult = "ok" | "no-leader" | "overloaded" | "halted";

/** A replica's state as of one applied entry, for as long as it takes to send or store it. Close it. */
export interface ReplicaSnapshot {
  readonly index: number;
  readonly term: number;
  rows(): Iterable<readonly [key: string, text: string]>;
  close(): void;
}

/** What a replica makes its host do. */
export interface ReplicaHooks {
  send(replica: Replica, message: Message): void;
  /** Make it durable, then call `replica.persisted(append)`. In order. */
  persist(replica: Replica, append: StorageAppend): void;
  /** The leader decided that this peer needs the state itself, not the log. */
  sendSnapshot(replica: Replica, message: Message): void;
  committed(replica: Replica, event: HistoryRow): void;
  /** Runs what the environment calls back; what it throws stops this replica alone. */
  contained(replica: Replica, run: () => void): void;
  /** Leader or role as this replica knows it is another than before. */
  leaderChanged(replica: Replica): void;
  /** A snapshot replaced the state: revisions were skipped, whoever watches must catch up anew. */
  installed(replica: Replica): void;
  /** A checkpoint or install ended; `error` is the environment's. */
  stored(replica: Replica, error: Error | null): void;
}

interface Proposal {
  readonly term: number;
  /** What the entry's data say; null: they are to be parsed. */
  readonly command: Command | null;
  readonly deadline: number;
  readonly done: (result: ProposalResult) => void;
}

interface Read {
  readonly deadline: number;
  /** Served as soon as there is an `unborn` state. */
  readonly evenUnborn: boolean;
  readonly done: (result: ReadResult) => void;
}

interface ReadRound {
  readonly reads: readonly Read[];
  ticks: number;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export class Replica {
  readonly tenant: string;
  readonly group: number;
  readonly incarnation: number;
  readonly id: ReplicaId;
  readonly raft: Raft;
  readonly log: GroupLog;
  readonly view: TenantView;
  /** Highest journal record of this group that was submitted, and that is known to be durable. */
  sequenceSubmitted: number;
  sequenceDurable: number;
  /** Set by the host's turn; kept here so that marking costs nothing. */
  dirty = false;
  /** Why this replica was stopped; null while it runs. */
  halted: string | null = null;
  /** Host time (ms) of the last request or message; decides who sleeps first. */
  usedAt = 0;

  readonly #environment: Environment;
  /** Before the group's first log entry. */
  readonly #initial: readonly Member[];
  #members: ReadonlyMap<ReplicaId, string>;
  /** As of the applied index. Raft takes a snapshot's for its own before the snapshot is installed. */
  #conf: ConfState;
  /** Replicas that wrote to this one and that its configuration, which may be an old one, does not name. */
  readonly #strangers = new Map<ReplicaId, string>();
  readonly #state: TenantState;
  readonly #hooks: ReplicaHooks;
  readonly #logKept: LogKept;
  readonly #supports: (id: ReplicaId) => boolean;
  readonly #semanticsMax: number;
  readonly #ready: Ready = newReady();
  readonly #proposals = new Map<number, Proposal>();
  #readsWaiting: Read[] = [];
  readonly #readRounds = new Map<number, ReadRound>();
  #readsBlocked: { index: number; reads: readonly Read[] }[] = [];
  #readSequence = 0;
  #waiting = 0;
  #appliedTerm: number;
  #durableIndex: number;
  #durableHard: HardState;
  /** The last one on its way into the journal, and a newer commit index that is not. */
  #hardSubmitted: HardState;
  #commitUnwritten: HardState | null = null;
  /** Appends handed to the journal and not yet durable. */
  #appendsInFlight: StorageAppend[] = [];
  /** Those of them that replace entries: until they are durable nobody knows which log a crash would leave. */
  readonly #cutting = new Set<StorageAppend>();
  /** Those of them that are not in the journal themselves, see `#isOnlyCommit`. */
  readonly #unwritten = new Set<StorageAppend>();
  /** Appends waiting behind a snapshot that is being installed. */
  #lane: StorageAppend[] = [];
  #storing = false;
  /** Lowest index cut from the log since the running checkpoint began. */
  #cutSince: number | null = null;
  /** Offered and not installed yet: Raft may take another one while the first waits for its turn. */
  #offered: { meta: SnapshotMeta; staging: Staging }[] = [];
  readonly #snapshots = new Set<ReplicaSnapshot>();
  #staging: Staging | null = null;
  /** The last acknowledgement that was sent. */
  #acknowledged: Message | null = null;
  #leadKnown: ReplicaId = NONE;
  #leaderKnown = false;
  /** What this leader proposed before anything else in a log that held nothing, and the state that this makes. */
  #first: { readonly term: number; readonly data: Uint8Array; view?: TenantView | null } | null =
    null;

  constructor(options: {
    meta: ReplicaMeta;
    /** Journal records newer than the environment, already merged into `log`. */
    log: GroupLog;
    environment: Environment;
    hooks: ReplicaHooks;
    random: Prng;
    supports: (id: ReplicaId) => boolean;
    leases?: LeaseSupport;
    /** What bound it when it went to sleep. */
    bond?: Bond | null;
    /** What it led then. */
    leadership?: Leadership | null;
    sequence: number;
    logKept: LogKept;
    /** The newest meaning of commands that is known here. */
    semanticsMax?: number;
    /** Rows of the environment that are kept parsed. */
    rowsKept?: number;
  }) {
    const { meta, log, environment, random } = options;
    this.tenant = meta.tenant;
    this.group = meta.group;
    this.incarnation = meta.incarnation;
    this.id = meta.replica;
    this.#initial = meta.members;
    this.log = log;
    this.#environment = environment;
    this.#state = new TenantState(environment, options.rowsKept);
    this.#members = this.#storedMembers();
    this.#conf = log.initialState().confState;
    this.#hooks = options.hooks;
    this.#logKept = options.logKept;
    this.#supports = options.supports;
    this.#semanticsMax = options.semanticsMax ?? semanticsNow;
    this.#appliedTerm = meta.appliedTerm;
    this.#durableIndex = log.lastIndex();
    this.#durableHard = log.initialState().hardState;
    this.#hardSubmitted = this.#durableHard;
    this.sequenceSubmitted = options.sequence;
    this.sequenceDurable = options.sequence;
    this.raft = new Raft({
      id: meta.replica,
      log,
      applied: meta.applied,
      electionTicks: ELECTION_TICKS,
      heartbeatTicks: HEARTBEAT_TICKS,
      random: (bound) => random.below(bound),
      preVote: true,
      checkQuorum: true,
      stepDownOnRemoval: true,
      readOnly: "safe",
      messageBytesMax: MESSAGE_BYTES_MAX,
      inflightMessagesMax: INFLIGHT_MESSAGES_MAX,
      inflightBytesMax: INFLIGHT_BYTES_MAX,
      applyingBytesMax: APPLYING_BYTES_MAX,
      uncommittedBytesMax: UNCOMMITTED_BYTES_MAX,
      supports: options.supports,
      ...(options.leases !== undefined && { leases: options.leases }),
      bond: options.bond ?? null,
      leadership: options.leadership ?? null,
      mergeAppends: true,
    });
    log.snapshotNow = () => ({
      index: this.raft.appliedIndex,
      term: this.#appliedTerm,
      confState: this.#conf,
    });
    this.view = viewOf(meta.tenant, this.#state);
  }

  /** Until its first command is applied a tenant has no state to show. */
  get initialised(): boolean {
    // While a snapshot is being installed the rows below and above belong to different states.
    return !this.#installing && this.#state.get("meta") !== undefined;
  }

  /**
   * The tenant as its first command will leave it: while this replica leads, and its log has nothing before that command.
   * What is proposed here is applied after it, or not at all. Null: there is no such state, or it is to be restored.
   */
  get unborn(): TenantView | null {
    const first = this.#first;
    const isHere = first !== null && this.raft.isLeader && first.term === this.raft.term;
    if (!isHere || this.halted !== null || this.initialised) return null;
    if (first.view !== undefined) return first.view;
    // Nothing was ever written here.
    const state = new TenantState(this.#environment);
    apply(state, JSON.parse(decoder.decode(first.data)) as Command);
    const meta = state.get<TenantMeta>("meta");
    const isReady = meta !== undefined && meta.restore === undefined;
    first.view = isReady ? viewOf(this.tenant, state) : null;
    return first.view;
  }

  /** Its rows are coming from a backup. */
  get restoring(): boolean {
    return this.initialised && this.#state.get<TenantMeta>("meta")?.restore !== undefined;
  }

  /** Wall clock (ms) at which a rule begins or ends next; null: none will. */
  get dueAt(): number | null {
    return this.initialised ? (this.#state.get<TenantMeta>("meta")?.dueAt ?? null) : null;
  }

  /** Nodes of the present configuration's replicas, learners among them. */
  get members(): ReadonlyMap<ReplicaId, string> {
    return this.#members;
  }

  /** As of the applied index. */
  get conf(): ConfState {
    return this.#conf;
  }

  get isVoter(): boolean {
    return this.#isVoter(this.id);
  }

  #isVoter(id: ReplicaId): boolean {
    const { voters, votersOutgoing } = this.#conf;
    return voters.includes(id) || votersOutgoing.includes(id);
  }

  /** Nodes of those that have a vote, or half a one while the configuration is joint. */
  *voters(): Generator<readonly [id: ReplicaId, node: string]> {
    for (const member of this.#members) if (this.#isVoter(member[0])) yield member;
  }

  /** Where a replica is, also one that is not (yet, or any more) a member as far as is known here. */
  nodeOf(id: ReplicaId): string | undefined {
    return this.#members.get(id) ?? this.#strangers.get(id);
  }

  /** Notes where a replica is whose joining has not arrived in the log here. @returns false when that is too many */
  meet(id: ReplicaId, node: string): boolean {
    if (id === this.id || this.#strangers.size >= STRANGERS_MAX) return false;
    this.#strangers.set(id, node);
    return true;
  }

  get leaderNode(): string | null {
    return this.nodeOf(this.raft.lead) ?? null;
  }

  /** Nobody waits, nothing is in flight, Raft would not notice a tick. */
  get idle(): boolean {
    return this.raft.idle && this.#waiting === 0 && !this.dirty && !this.busyStoring;
  }

  /** Last index of the log that would be here after a crash now. */
  get durableIndex(): number {
    return this.#durableIndex;
  }

  /** A snapshot is on its way into the environment: log and state are between two histories. */
  get installing(): boolean {
    return this.#installing;
  }

  get busyStoring(): boolean {
    return this.#storing || this.#appendsInFlight.length > 0 || this.#lane.length > 0;
  }

  /**
   * Whether a message on its way out says nothing that its receiver waits for: the acknowledgement that it had before, and
   * a newer commit index.
   */
  onlyTellsCommit(message: Message): boolean {
    const { type, to, term, index, commit, reject } = message;
    if (type !== MessageType.appendEntriesResponse || reject) return false;
    const before = this.#acknowledged;
    this.#acknowledged = message;
    return (
      before?.to === to && before.term === term && before.index === index && before.commit < commit
    );
  }

  // --- inputs --------------------------------------------------------------------------------------------------------

  step(message: Message): void {
    if (this.halted !== null) return;
    this.raft.step(message);
    if (this.raft.isLeader) this.#serveElected();
  }

  /**
   * Reads that were answered by this replica's election. Their callers often write next: before the turn ends, that is
   * replicated along with the leader's first entry.
   */
  #serveElected(): void {
    const reads = this.raft.takeReads();
    if (reads.length > 0) {
      this.#noteReads(reads);
      this.#serveReads();
    }
    if (this.initialised) return;
    // What it says first stands before what they write who wait for that.
    this.#noticeLeader();
    this.#serveUnborn();
  }

  #noteReads(reads: readonly ReadState[]): void {
    for (const { index, context } of reads) {
      const round = this.#readRounds.get(context);
      if (round === undefined) continue;
      this.#readRounds.delete(context);
      this.#readsBlocked.push({ index, reads: round.reads });
    }
  }

  tick(): void {
    if (this.halted !== null) return;
    this.raft.tick();
    for (const [context, round] of this.#readRounds) {
      if (++round.ticks < READ_RETRY_TICKS) continue;
      this.#readRounds.delete(context);
      this.#readsWaiting.push(...round.reads);
      // Its leader's node lives; whether its leader does, and is able to wake, only that node can say.
      this.raft.doubtLeader();
    }
  }

  /**
   * `done` is called exactly once, at the latest by `expire`.
   * @param command the same as `data`, not to be changed any more: parsing it again costs as much as all else that is
   *   done with its bytes
   */
  propose(
    data: Uint8Array,
    deadline: number,
    done: (result: ProposalResult) => void,
    command: Command | null = null,
  ): void {
    if (this.halted !== null) return done({ kind: "halted", reason: this.halted });
    if (this.#waiting >= WAITING_MAX) return done({ kind: "overloaded" });
    const proposed = this.raft.propose(data);
    // Before it there is but this leader's own entry.
    if (proposed.ok && proposed.index === 2 && this.raft.appliedIndex < 2)
      this.#first = { term: proposed.term, data };
    if (!proposed.ok) {
      return done({
        kind: proposed.reason === "too-much-uncommitted" ? "overloaded" : "not-leader",
      });
    }
    this.#waiting += 1;
    const before = this.#proposals.get(proposed.index);
    const { index, term } = proposed;
    // What others apply is the text, and it must be the same to the last member.
    const isSame = command !== null && isAsParsed(command);
    this.#proposals.set(index, { term, command: isSame ? command : null, deadline, done });
    if (before === undefined) return;
    // Proposed in an earlier leadership and cut since: nobody will look for it any more.
    this.#waiting -= 1;
    before.done({ kind: "unknown" });
  }

  /**
   * Proposes a change of the members; `joining` says where those are whom it adds. What became of it shows in the
   * configuration, and it may be proposed again.
   */
  proposeMembers(changes: ConfChange["changes"], joining: readonly Member[]): void {
    if (this.halted !== null) return;
    const nodes = joining.map(({ id, node }) => ({ id, node }));
    const context = encoder.encode(JSON.stringify(nodes));
    this.raft.proposeConfChange({ transition: "auto", changes, context });
  }

  /** A linearizable read: `done("ok")` means that everything acknowledged before this call is applied here. */
  read(deadline: number, done: (result: ReadResult) => void, evenUnborn = false): void {
    if (this.halted !== null) return done("halted");
    if (this.#waiting >= WAITING_MAX) return done("overloaded");
    this.#waiting += 1;
    this.#readsWaiting.push({ deadline, done, evenUnborn });
  }

  /** A linearizable read may be served from the state as it is, at this moment: this replica leads and has a lease. */
  get readableNow(): boolean {
    if (this.halted !== null || !this.initialised) return false;
    const index = this.raft.leaseIndex;
    return index >= 0 && this.raft.appliedIndex >= index;
  }

  /** The journal holds this append, durably. */
  persisted(append: StorageAppend, sequence: number): void {
    if (this.halted !== null) return;
    assert(this.#appendsInFlight.shift() === append, "appends became durable out of order");
    this.sequenceDurable = sequence;
    this.#acknowledge(append);
    for (let next = this.#appendsInFlight[0]; next !== undefined; next = this.#appendsInFlight[0]) {
      if (!this.#unwritten.delete(next)) return;
      this.#appendsInFlight.shift();
      this.#acknowledge(next);
    }
  }

  #acknowledge(append: StorageAppend): void {
    this.#cutting.delete(append);
    if (append.hardState !== null) this.#durableHard = append.hardState;
    const last = append.entries.at(-1);
    if (append.snapshot !== null) this.#durableIndex = append.snapshot.index;
    // A later append may already have cut the log below what this one reached.
    if (last !== undefined) this.#durableIndex = Math.min(last.index, this.log.lastIndex());
    for (const message of append.responses) this.#hooks.send(this, message);
    this.raft.appended(append);
    if (this.raft.isLeader) this.#serveElected();
  }

  /**
   * Where the rows of a snapshot that comes in are gathered, until they are offered or discarded. One at a time: null
   * while one that was offered is not settled yet.
   */
  stage(): Staging | null {
    if (this.halted !== null || this.#installing || this.#offered.length > 0) return null;
    const staging = this.#environment.stage();
    this.#staging = staging;
    return staging;
  }

  /** Nobody will offer it any more. */
  discard(staging: Staging): void {
    if (this.#staging !== staging) return;
    this.#staging = null;
    staging.discard();
  }

  /** Rows of a snapshot, complete; Raft decides whether it is still wanted. */
  offerSnapshot(message: Message, staging: Staging): void {
    if (this.halted !== null || message.snapshot === null || this.#staging !== staging) return;
    this.#staging = null;
    this.#offered.push({ meta: message.snapshot, staging });
    this.raft.step(message);
  }

  /** Ends waits whose time is up. `now` is host time, ms. */
  expire(now: number): void {
    if (this.#waiting === 0) return;
    for (const [index, proposal] of this.#proposals) {
      if (proposal.deadline > now) continue;
      this.#proposals.delete(index);
      this.#waiting -= 1;
      proposal.done({ kind: "unknown" });
    }
    const alive = (read: Read): boolean => {
      if (read.deadline > now) return true;
      this.#waiting -= 1;
      read.done("no-leader");
      return false;
    };
    this.#readsWaiting = this.#readsWaiting.filter(alive);
    for (const [context, round] of this.#readRounds) {
      const reads = round.reads.filter(alive);
      if (reads.length === 0) this.#readRounds.delete(context);
      else this.#readRounds.set(context, { reads, ticks: round.ticks });
    }
    this.#readsBlocked = this.#readsBlocked
      .map(({ index, reads }) => ({ index, reads: reads.filter(alive) }))
      .filter(({ reads }) => reads.length > 0);
  }

  /** Stops for good: a broken invariant, a damaged log. Neighbours go on. */
  halt(reason: string): void {
    if (this.halted !== null) return;
    this.halted = reason;
    // What was proposed is in the log, and its followers may have it already (simulation, seed 200004849).
    this.#failAll({ kind: "unknown" }, "halted");
  }

  /** The replica is closed in good order; whoever waits is told that it is not known how it ended. */
  abandon(): void {
    this.#failAll({ kind: "unknown" }, "no-leader");
  }

  #failAll(proposal: ProposalResult, read: ReadResult): void {
    const proposals = [...this.#proposals.values()];
    this.#proposals.clear();
    const reads = [
      ...this.#readsWaiting,
      ...[...this.#readRounds.values()].flatMap((round) => round.reads),
      ...this.#readsBlocked.flatMap((blocked) => blocked.reads),
    ];
    this.#readsWaiting = [];
    this.#readRounds.clear();
    this.#readsBlocked = [];
    this.#waiting = 0;
    for (const waiter of proposals) waiter.done(proposal);
    for (const waiter of reads) waiter.done(read);
  }

  // --- output --------------------------------------------------------------------------------------------------------

  /**
   * Sends out what the inputs since the last call led to.
   * @returns true when there is more to do at once (bounded work per call keeps neighbours alive)
   */
  drain(): boolean {
    if (this.halted !== null) return false;
    // What a new leader proposes at once goes out with the entry by which it says that it leads.
    this.#noticeLeader();
    this.#askForReads();
    if (this.raft.hasReady()) {
      const ready = this.#ready;
      this.raft.ready(ready);
      for (const message of ready.messages) {
        // The state that a snapshot message stands for is the one before this turn's entries are applied.
        if (message.type === MessageType.installSnapshot) {
          // One that a configuration change led to was made while it was being applied, and more was applied since.
          message.snapshot = this.log.snapshot();
          this.#hooks.sendSnapshot(this, message);
        } else this.#hooks.send(this, message);
      }
      if (ready.append !== null) {
        this.#lane.push(ready.append);
        this.#advanceLane();
      }
      this.#noteReads(ready.reads);
      this.#apply(ready.committed);
      if (ready.committed.length > 0 && this.#isUnread) this.log.compact(this.raft.appliedIndex);
    }
    if (this.#offered.length > 0) this.#dropRefusedOffers();
    this.#serveReads();
    this.#noticeLeader();
    return this.raft.hasReady() || (this.#readsWaiting.length > 0 && this.raft.lead !== NONE);
  }

  /** There is something to `drain`; of a tick that changed nothing there is not. */
  get hasNews(): boolean {
    const { lead, isLeader } = this.raft;
    return (
      this.raft.hasReady() ||
      this.#readsWaiting.length > 0 ||
      this.#readsBlocked.length > 0 ||
      this.#offered.length > 0 ||
      lead !== this.#leadKnown ||
      isLeader !== this.#leaderKnown
    );
  }

  /** Raft had its say: an offer that no append names was not wanted. */
  #dropRefusedOffers(): void {
    this.#offered = this.#offered.filter(({ meta, staging }) => {
      const isWanted = this.#lane.some((append) => append.snapshot?.index === meta.index);
      if (!isWanted) staging.discard();
      return isWanted;
    });
  }

  #askForReads(): void {
    if (this.#readsWaiting.length === 0) return;
    const context = ++this.#readSequence;
    if (!this.raft.readIndex(context)) return;
    this.#readRounds.set(context, { reads: this.#readsWaiting, ticks: 0 });
    this.#readsWaiting = [];
  }

  #serveReads(): void {
    if (this.#readsBlocked.length === 0 || !this.initialised) return;
    const applied = this.raft.appliedIndex;
    const blocked = this.#readsBlocked;
    this.#readsBlocked = blocked.filter(({ index }) => index > applied);
    for (const { index, reads } of blocked) {
      if (index > applied) continue;
      for (const read of reads) {
        this.#waiting -= 1;
        read.done("ok");
      }
    }
  }

  #serveUnborn(): void {
    if (!this.#readsWaiting.some(({ evenUnborn }) => evenUnborn) || this.unborn === null) return;
    const served = this.#readsWaiting.filter(({ evenUnborn }) => evenUnborn);
    this.#readsWaiting = this.#readsWaiting.filter(({ evenUnborn }) => !evenUnborn);
    this.#waiting -= served.length;
    for (const read of served) read.done("ok");
  }

  #noticeLeader(): void {
    const { lead, isLeader } = this.raft;
    if (lead === this.#leadKnown && isLeader === this.#leaderKnown) return;
    this.#leadKnown = lead;
    this.#leaderKnown = isLeader;
    // Whoever led before will not answer what it was asked.
    for (const round of this.#readRounds.values()) this.#readsWaiting.push(...round.reads);
    this.#readRounds.clear();
    this.#hooks.leaderChanged(this);
  }

  #advanceLane(): void {
    while (this.#lane.length > 0 && !this.#installing) {
      const append = this.#lane[0] as StorageAppend;
      if (append.snapshot !== null) {
        // The environment is cleared by the install: nothing of the old log may still be on its way into the journal.
        if (this.#appendsInFlight.length > 0 || this.#storing) return;
        this.#lane.shift();
        this.#install(append, append.snapshot);
        return;
      }
      this.#lane.shift();
      if (this.#isOnlyCommit(append)) {
        // Nobody was promised anything: it rides on the next record (etcd/raft's MustSync says the same). Its
        // acknowledgement speaks of the entries before it, so it keeps its place behind them.
        this.#commitUnwritten = append.hardState ?? this.#commitUnwritten;
        if (this.#appendsInFlight.length === 0) {
          this.#acknowledge(append);
        } else {
          this.#unwritten.add(append);
          this.#appendsInFlight.push(append);
        }
        continue;
      }
      const cut = this.log.append(append.entries);
      if (cut !== null) {
        this.#cutting.add(append);
        this.#cut(cut);
      }
      this.#appendsInFlight.push(append);
      this.#hooks.persist(this, append);
    }
  }

  #isOnlyCommit(append: StorageAppend): boolean {
    const { hardState, entries, responses, own } = append;
    if (entries.length > 0) return false;
    // A pre-vote binds nobody (thesis §9.6): neither does it change what is stored, nor need it outlive a crash.
    for (const { type } of own) if (type !== MessageType.preVoteResponse) return false;
    // Acknowledgements speak of entries that are durable, or on their way into the journal before this.
    for (const { type } of responses) {
      if (type !== MessageType.appendEntriesResponse && type !== MessageType.preVoteResponse)
        return false;
    }
    const { term, vote } = this.#hardSubmitted;
    return hardState === null || (hardState.term === term && hardState.vote === vote);
  }

  /** The hard state that goes into an append's record: its own, or a commit index that waited for one. */
  takeHardState(append: StorageAppend): HardState | null {
    const hard = append.hardState ?? this.#commitUnwritten;
    this.#commitUnwritten = null;
    if (hard !== null) this.#hardSubmitted = hard;
    return hard;
  }

  /** Call after `persisted` and stored completions: a snapshot may have waited for them. */
  resumeLane(): void {
    if (this.halted === null) this.#advanceLane();
  }

  #cut(from: number): void {
    this.#durableIndex = Math.min(this.#durableIndex, from - 1);
    if (this.#storing) this.#cutSince = Math.min(this.#cutSince ?? from, from);
    // What was proposed there keeps waiting: cut here, it may still be on others, and a later leader among them may
    // commit it (Raft figure 8). What is applied in its place tells.
  }

  #apply(entries: readonly Entry[]): void {
    let bytes = 0;
    for (const entry of entries) {
      assert(entry.index === this.raft.appliedIndex + 1, "an entry is applied out of order");
      bytes = entry.data.length;
      const proposal = this.#proposals.get(entry.index);
      // A term has one leader, and its log one entry at an index: this is the one that was proposed here.
      const isOwn = proposal !== undefined && proposal.term === entry.term;
      let outcome: Outcome | null = null;
      if (entry.kind === EntryKind.confChange) {
        this.#applyMembers(decodeConfChange(entry.data));
      } else if (entry.data.length > 0) {
        const command =
          (isOwn ? proposal.command : null) ?? (JSON.parse(decoder.decode(entry.data)) as Command);
        const level = command.semantics ?? 1;
        if (level > this.#semanticsMax) {
          // As this version would take it, the state could become another one than elsewhere.
          const known = `this version knows levels up to ${this.#semanticsMax}`;
          assert(false, `Cannot apply entry ${entry.index}: its level is ${level}, ${known}`);
        }
        const applied = apply(this.#state, command);
        outcome = applied.outcome;
        this.#first = null;
        this.#appliedTerm = entry.term;
        this.raft.applied(entry.index, bytes);
        if (applied.commit !== null) this.#hooks.committed(this, applied.commit);
      }
      if (outcome === null) {
        this.#appliedTerm = entry.term;
        this.raft.applied(entry.index, bytes);
      }
      if (proposal === undefined || !this.#proposals.delete(entry.index)) continue;
      this.#waiting -= 1;
      proposal.done(isOwn && outcome !== null ? { kind: "applied", outcome } : { kind: "lost" });
    }
  }

  /** The members' nodes are part of the state: they go with every checkpoint and snapshot. */
  #applyMembers(change: ConfChange): void {
    const nodes = new Map(this.#members);
    if (change.context.length > 0) {
      for (const { id, node } of JSON.parse(decoder.decode(change.context)) as Member[]) {
        nodes.set(id, node);
      }
    }
    this.#conf = this.raft.applyConfChange(change);
    const { voters, votersOutgoing, learners } = this.#conf;
    const ids = new Set([...voters, ...votersOutgoing, ...learners]);
    const members: Member[] = [...nodes]
      .filter(([id]) => ids.has(id))
      .map(([id, node]) => ({ id, node }));
    this.#state.put(membersKey, members);
    this.#members = asMap(members);
    this.#strangers.clear();
  }

  #storedMembers(): ReadonlyMap<ReplicaId, string> {
    return asMap(this.#state.get<readonly Member[]>(membersKey) ?? this.#initial);
  }

  // --- checkpoints and snapshots -------------------------------------------------------------------------------------

  get checkpointBytes(): number {
    return this.#state.overlayBytes + this.log.tailBytes;
  }

  /** Something is in the journal or in memory that the environment lacks. */
  get needsCheckpoint(): boolean {
    return (
      this.#state.dirty ||
      this.#state.checkpointing ||
      this.sequenceDurable > this.#sequenceStored ||
      this.raft.appliedIndex > this.#appliedStored
    );
  }

  #sequenceStored = 0;
  #appliedStored = 0;
  #installing = false;
  #storedWaiters: (() => void)[] = [];

  #storingEnded(): void {
    this.#storing = false;
    const waiters = this.#storedWaiters;
    this.#storedWaiters = [];
    for (const done of waiters) done();
  }

  /** Called once after construction: what the environment already held. */
  startFrom(sequenceStored: number, appliedStored: number): void {
    this.#sequenceStored = sequenceStored;
    this.#appliedStored = appliedStored;
  }

  get sequenceStored(): number {
    return this.#sequenceStored;
  }

  #meta(parts: {
    hard: HardState;
    conf: ConfState;
    applied: number;
    appliedTerm: number;
    first: number;
    firstTerm: number;
    last: number;
    sequence: number;
  }): ReplicaMeta {
    return {
      format: 1,
      tenant: this.tenant,
      group: this.group,
      incarnation: this.incarnation,
      replica: this.id,
      members: this.#initial,
      ...parts,
    };
  }

  /**
   * Writes log and state as they are durable now into the environment; then the journal may forget them.
   * @returns false when one is under way, or has to wait for an append that cuts the log
   */
  checkpoint(): boolean {
    if (this.halted !== null || this.#storing) return false;
    // Found by a planted bug's test: the entries that it replaces would be forgotten before it is there.
    if (this.#cutting.size > 0) return false;
    this.#storing = true;
    this.#cutSince = null;
    const applied = this.raft.appliedIndex;
    const sequence = this.sequenceDurable;
    const log = this.log.checkpoint(this.#durableIndex, this.#compactTo(applied));
    const change: EnvironmentChange = {
      meta: metaToBytes(
        this.#meta({
          hard: { ...this.#durableHard, commit: Math.max(this.#durableHard.commit, applied) },
          conf: this.#conf,
          applied,
          appliedTerm: this.#appliedTerm,
          first: log.first,
          firstTerm: log.firstTerm,
          last: log.last,
          sequence,
        }),
      ),
      rows: this.#state.freeze(),
      entries: log.entries,
      entriesDeleted: log.entriesDeleted,
    };
    this.#environment.commit(change, (error) => {
      this.#hooks.contained(this, () => {
        if (error === null) this.#checkpointed(log, sequence, applied);
      });
      this.#hooks.stored(this, error);
    });
    return true;
  }

  /** Nobody else is there who could ask for what was applied; who joins begins with a snapshot. */
  get #isUnread(): boolean {
    return this.#members.size === 1 && this.#snapshots.size === 0;
  }

  /** The last entry that nobody needs any more, as far as the bounds allow. */
  #compactTo(applied: number): number {
    if (this.#isUnread) return applied;
    const { entries, bytes, bytesForLagging } = this.#logKept;
    const from = this.log.keepFrom(applied, { entries, bytes });
    const wanted = Math.min(from, this.#neededFrom());
    return (
      (wanted < from
        ? this.log.keepFrom(applied, { from: wanted, bytes: bytesForLagging })
        : from) - 1
    );
  }

  /** The first entry that a live follower, or one that is being sent a snapshot, may still ask for. */
  #neededFrom(): number {
    let needed = Infinity;
    for (const { index } of this.#snapshots) needed = Math.min(needed, index + 1);
    if (!this.raft.isLeader) return needed;
    for (const { id, match, state } of this.raft.status().progress) {
      // One that is sent a snapshot needs what follows that, and of one that was not heard of nobody knows.
      if (id === this.id || state === "snapshot" || match === 0 || !this.#supports(id)) continue;
      needed = Math.min(needed, match + 1);
    }
    return needed;
  }

  #checkpointed(log: LogCheckpoint, sequence: number, applied: number): void {
    this.#state.thaw();
    this.log.checkpointed(log, this.#cutSince);
    this.#cutSince = null;
    this.#sequenceStored = sequence;
    this.#appliedStored = applied;
    this.#storingEnded();
  }

  #install(append: StorageAppend, snapshot: SnapshotMeta): void {
    const offered = this.#offered.find(
      ({ meta }) => meta.index === snapshot.index && meta.term === snapshot.term,
    );
    assert(offered !== undefined, "Raft installs a snapshot that was not offered");
    this.#offered = this.#offered.filter((other) => other !== offered);
    this.#storing = true;
    this.#installing = true;
    // The environment may show the new state before it says so: until then the old one is read beside it.
    this.log.restart(snapshot);
    this.#state.hold();
    const hard = append.hardState ?? this.#commitUnwritten ?? this.#durableHard;
    // From here on the environment holds the newest hard state; an older one must not follow it into the journal.
    this.#commitUnwritten = null;
    this.#hardSubmitted = hard;
    const sequence = this.sequenceDurable;
    const meta = metaToBytes(
      this.#meta({
        hard: { ...hard, commit: Math.max(hard.commit, snapshot.index) },
        conf: snapshot.confState,
        applied: snapshot.index,
        appliedTerm: snapshot.term,
        first: snapshot.index + 1,
        firstTerm: snapshot.term,
        last: snapshot.index,
        sequence,
      }),
    );
    this.#environment.install(offered.staging, meta, (error) => {
      this.#hooks.contained(this, () => {
        if (error === null) this.#installed(append, snapshot, sequence);
      });
      this.#hooks.stored(this, error);
    });
  }

  #installed(append: StorageAppend, snapshot: SnapshotMeta, sequence: number): void {
    this.#appliedTerm = snapshot.term;
    this.#sequenceStored = sequence;
    this.#appliedStored = snapshot.index;
    this.#state.reset();
    this.#installing = false;
    this.#conf = snapshot.confState;
    this.#members = this.#storedMembers();
    this.#storingEnded();
    this.#hooks.installed(this);
    this.#failSkipped();
    if (append.entries.length > 0) {
      // What follows the snapshot goes through the journal like any append; the answer waits for it.
      this.log.append(append.entries);
      this.#appendsInFlight.push(append);
      this.#hooks.persist(this, append);
    } else {
      this.#acknowledge(append);
    }
    this.#advanceLane();
  }

  /** What was proposed here before an installed snapshot was decided where nobody here can see how. */
  #failSkipped(): void {
    const proposals = [...this.#proposals.values()];
    this.#proposals.clear();
    this.#waiting -= proposals.length;
    for (const proposal of proposals) proposal.done({ kind: "unknown" });
  }

  /** The applied state as of this call, whatever is applied, checkpointed or installed afterwards. */
  snapshot(): ReplicaSnapshot {
    assert(!this.#installing, "While a snapshot is installed there is no state to take another of");
    const state: StateSnapshot = this.#state.snapshot();
    const snapshot: ReplicaSnapshot = {
      index: this.raft.appliedIndex,
      term: this.#appliedTerm,
      rows: () => state.rows(),
      close: () => {
        this.#snapshots.delete(snapshot);
        state.close();
      },
    };
    this.#snapshots.add(snapshot);
    return snapshot;
  }

  /** Somebody reads its state over many turns, or a new one is coming in: its environment must stay open. */
  get pinned(): boolean {
    return this.#snapshots.size > 0 || this.#staging !== null || this.#offered.length > 0;
  }

  snapshotMeta(): SnapshotMeta | null {
    return this.log.snapshot();
  }

  /** For asking whether it is kept; and for closing and removing it, once `whenStored` has called back. */
  get environment(): Environment {
    return this.#environment;
  }

  /** Calls back when no commit of the environment is under way (at once, or when it ends). */
  whenStored(done: () => void): void {
    if (this.#storing) this.#storedWaiters.push(done);
    else done();
  }
}

function viewOf(tenant: string, state: TenantState): TenantView {
  return {
    tenant,
    get epoch() {
      return state.get<TenantMeta>("meta")?.epoch ?? 0;
    },
    get revision() {
      return state.get<TenantMeta>("meta")?.revision ?? 0;
    },
    get: (key) => state.get(key),
    range: (range) => state.range(range),
  };
}

function asMap(members: readonly Member[]): ReadonlyMap<ReplicaId, string> {
  return new Map(members.map(({ id, node }) => [id, node]));
}

export function metaToBytes(meta: ReplicaMeta): Uint8Array {
  return encoder.encode(JSON.stringify(meta));
}

export function metaFromBytes(bytes: Uint8Array): ReplicaMeta {
  const meta = JSON.parse(decoder.decode(bytes)) as ReplicaMeta;
  assert(meta.format === 1, `Unknown format of a replica's environment: ${String(meta.format)}`);
  return meta;
}
