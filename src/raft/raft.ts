/**
 * One replica's part in Raft: the extended paper, and the thesis' PreVote, CheckQuorum, leadership transfer, joint
 * consensus and linearizable reads, with etcd/raft's semantics in its asynchronous-storage form.
 *
 * Messages, ticks, proposals and completions come in; `ready` hands out what they led to. Nothing here waits, and
 * nothing here is durable: whatever promises durability (a vote, an acceptance) is handed out with the append that makes
 * it true, for others in `StorageAppend.responses`, for this replica in `own`, stepped by `appended`.
 *
 * How it is meant, and where it departs from etcd/raft and from the paper: DESIGN.md.
 */
import { assert, assertSafeInteger } from "../lib/assert.ts";
import { MalformedError } from "../lib/bytes.ts";
import { decodeConfChange, encodeConfChange } from "./conf_codec.ts";
import {
  changeMembers,
  emptyConfState,
  isJoint,
  leavesVoters,
  restoreMembers,
  type Members,
  type NewProgress,
} from "./confchange.ts";
import { RaftLog, UNKNOWN_TERM } from "./log.ts";
import { Inflights, Progress, type ProgressState } from "./progress.ts";
import { jointCommitted, jointVote, Vote } from "./quorum.ts";
import { ReadRounds } from "./reads.ts";
import {
  emptyMessage,
  EntryKind,
  MessageType,
  NO_ENTRIES,
  NONE,
  type Bond,
  type ConfChange,
  type ConfState,
  type Entry,
  type HardState,
  type Leadership,
  type LeaseSupport,
  type Message,
  type ProposeResult,
  type RaftConfig,
  type ReadState,
  type Ready,
  type ReplicaId,
  type Role,
  type SnapshotMeta,
  type StorageAppend,
} from "./types.ts";

export { decodeConfChange, emptyConfState, encodeConfChange };

const NO_BYTES = new Uint8Array(0);
const NO_MESSAGES: readonly Message[] = [];
const NO_READS: readonly ReadState[] = [];
/** Context of a vote request that a transfer forced. */
const FORCED = 1;
/** Reads handed on to a leader and not answered; beyond it the oldest are given up, their callers ask again. */
const FORWARDED_READS_MAX = 1_024;
/** Reads that wait for this replica's own election; more are asked again when there is a leader. */
const READS_ASKED_MAX = 1_024;

export interface PeerStatus {
  readonly id: ReplicaId;
  readonly match: number;
  readonly next: number;
  readonly state: ProgressState;
  readonly recentActive: boolean;
  readonly isLearner: boolean;
  readonly paused: boolean;
  readonly pendingSnapshot: number;
  readonly inflight: number;
  readonly inflightFull: boolean;
}

export interface RaftStatus {
  readonly id: ReplicaId;
  readonly role: Role;
  readonly term: number;
  readonly vote: ReplicaId;
  readonly lead: ReplicaId;
  readonly commit: number;
  readonly applied: number;
  readonly lastIndex: number;
  readonly transferee: ReplicaId;
  /** Of every member, sorted by id; empty unless this replica leads. */
  readonly progress: readonly PeerStatus[];
}

export function newReady(): Ready {
  return { messages: [], append: null, committed: NO_ENTRIES, reads: [] };
}

export class Raft {
  readonly #config: RaftConfig;
  readonly #id: ReplicaId;
  readonly #log: RaftLog;
  readonly #storage: RaftConfig["log"];
  readonly #supports: RaftConfig["supports"];
  readonly #leases: LeaseSupport | null;
  readonly #reads = new ReadRounds();

  #role: Role = "follower";
  #term: number;
  #vote: ReplicaId;
  #lead: ReplicaId = NONE;
  #conf: ConfState;
  #peers: readonly Progress[];
  /** This replica's own progress; null while it is not a member. */
  #self: Progress | null = null;

  #electionElapsed = 0;
  #heartbeatElapsed = 0;
  #electionTimeout = 0;
  /** Ticks of this leadership, to date its heartbeats. */
  #leaderTicks = 0;
  /** With `supports`: quorum checks until one has counted only who answered, see `#beChallenged`; 0: none has to. */
  #challenge = 0;
  #transferee: ReplicaId = NONE;
  /** A transfer lets somebody past the vote lease, at a time that this leader no longer controls. */
  #leaseVoid = false;
  /** Whom this replica follows so that it counts on it, until that leader lets go, a later one speaks or support ends. */
  #bond: Bond | null = null;
  /** This replica was here in an earlier life of its node. */
  #wasHere: boolean;
  /** The newest configuration change may stand up to here; another one waits until this is applied. */
  #pendingConfIndex = 0;
  #uncommittedBytes = 0;
  /** Removed by the change at this index, and leading on until enough of those who stay know of it; 0 otherwise. */
  #leavingAt = 0;
  /** It led this term and told the others that it does so no more; again, while nobody leads. */
  #retired = false;
  /** Reads that wait for the first commit of this leader's own term. */
  #readsEarly: Message[] = [];
  /** Contexts of reads that were asked here before this replica asked for the votes of its present term, or will. */
  #readsAsked: number[] = [];
  /** Drawn for the requests for votes that are to answer those reads; 0: they cannot. */
  #askedAs = 0;
  /** Reads handed on to the leader: under our own number, the caller's. */
  #readsForwarded: Map<number, number> | null = null;
  #forwardSequence = 0;
  /** How often what it led to was handed out. */
  #turn = 0;

  #messages: Message[] = [];
  #readStates: ReadState[] = [];
  #after: Message[] = [];
  #own: Message[] = [];
  /** With `mergeAppends`: appends are owed, and made out when the turn is handed out. */
  #appendsOwed = false;
  #handedOut: HardState;

  /** Made once, so that counting a quorum allocates nothing. */
  readonly #matchOf = (id: ReplicaId): number => this.#peer(id)?.match ?? 0;
  /** Where log and commit index stood at the last beat. */
  #lastAtBeat = 0;
  #commitAtBeat = 0;
  readonly #knownCommitOf = (id: ReplicaId): number => this.#peer(id)?.knownCommit ?? 0;
  readonly #voteOf = (id: ReplicaId): Vote => this.#peer(id)?.vote ?? Vote.none;
  readonly #readConfirmedOf = (id: ReplicaId): number => this.#peer(id)?.readConfirmed ?? 0;
  readonly #activeOf = (id: ReplicaId): Vote => {
    const peer = this.#peer(id);
    return peer !== undefined && this.#isActive(peer) ? Vote.granted : Vote.refused;
  };
  readonly #answeredOf = (id: ReplicaId): Vote =>
    this.#peer(id)?.recentActive === true ? Vote.granted : Vote.refused;
  readonly #supportOf = (id: ReplicaId): Vote =>
    id === this.#id || this.#supports?.(id) === true ? Vote.granted : Vote.refused;
  readonly #leaseOf = (id: ReplicaId): Vote => {
    if (id === this.#id) return Vote.granted;
    const epoch = this.#peer(id)?.boundEpoch ?? 0;
    return epoch !== 0 && this.#leases?.held(id) === epoch ? Vote.granted : Vote.refused;
  };
  readonly #newProgress: NewProgress = (id, isLearner) => {
    const { inflightMessagesMax, inflightBytesMax } = this.#config;
    const inflights = new Inflights(inflightMessagesMax, inflightBytesMax);
    const peer = new Progress(id, isLearner, Math.max(this.#log.lastIndex, 1), inflights);
    // Whoever is new had no chance to be heard yet; the next quorum check must not hold that against it.
    peer.recentActive = true;
    return peer;
  };

  constructor(config: RaftConfig) {
    assert(config.id !== NONE, "a replica has an id");
    assert(config.heartbeatTicks > 0, "heartbeats take time");
    assert(config.electionTicks > config.heartbeatTicks, "elections wait longer than heartbeats");
    assert(config.inflightMessagesMax > 0, "a window lets one message through");
    assert(
      config.readOnly !== "lease" || (config.checkQuorum && config.supports === null),
      "leases rest on checkQuorum and on the clock of this group alone",
    );
    assert(
      config.leases === undefined || (config.checkQuorum && config.supports !== null),
      "leases from support rest on support",
    );
    const { hardState, confState } = config.log.initialState();
    this.#config = config;
    this.#id = config.id;
    this.#storage = config.log;
    this.#supports = config.supports;
    this.#leases = config.leases ?? null;
    this.#log = new RaftLog(config.log, {
      commit: hardState.commit,
      applied: config.applied,
      applyingBytesMax: config.applyingBytesMax,
      applyUnstable: config.applyUnstable ?? false,
    });
    this.#term = hardState.term;
    this.#vote = hardState.vote;
    const members = restoreMembers(confState, this.#newProgress);
    this.#conf = members.conf;
    this.#peers = members.peers;
    this.#self = this.#peer(this.#id) ?? null;
    this.#becomeFollower(this.#term, NONE);
    this.#wasHere = this.#leases?.mayBeBound() === true && !this.#isOnlyVoterForSure();
    const bond = config.bond ?? null;
    if (bond !== null && this.#leases?.binds(bond.epoch) === true) {
      this.#bond = bond;
      if (bond.term === this.#term) this.#lead = bond.lead;
    }
    const leadership = config.leadership ?? null;
    if (leadership !== null) this.#resume(leadership);
    this.#handedOut = { term: this.#term, vote: this.#vote, commit: this.#log.commit };
  }

  // --- what can be seen ----------------------------------------------------------------------------------------------

  get role(): Role {
    return this.#role;
  }

  get term(): number {
    return this.#term;
  }

  get lead(): ReplicaId {
    return this.#lead;
  }

  get isLeader(): boolean {
    return this.#role === "leader";
  }

  get commitIndex(): number {
    return this.#log.commit;
  }

  get appliedIndex(): number {
    return this.#log.applied;
  }

  get lastIndex(): number {
    return this.#log.lastIndex;
  }

  get confState(): ConfState {
    return this.#conf;
  }

  /** This leader is handing over. */
  get isTransferring(): boolean {
    return this.#role === "leader" && this.#transferee !== NONE;
  }

  /** This leader would refuse another configuration change now, or has a joint one to leave. */
  get hasPendingConfChange(): boolean {
    return this.#pendingConfIndex > this.#log.applied || isJoint(this.#conf);
  }

  /** Ticking would change nothing: the embedder may stop until a message, a proposal or a loss of support. */
  get idle(): boolean {
    if (this.#role === "follower") return this.#supports !== null && this.#leadIsSupported();
    if (this.#role !== "leader" || this.#self === null || this.#leavingAt !== 0) return false;
    if (this.#peers.length > 1) {
      if (this.#supports === null || this.#challenge > 0 || !this.#quorumIsSupported())
        return false;
      for (const peer of this.#peers) {
        if (peer.id === this.#id) continue;
        // One whose node is gone is not waited for: the embedder ticks again when it is back.
        if (!this.#isCaughtUp(peer) && this.#supports(peer.id)) return false;
      }
    }
    return (
      !this.#reads.pending &&
      this.#readsEarly.length === 0 &&
      this.#transferee === NONE &&
      !this.hasPendingConfChange &&
      this.#log.commit === this.#log.lastIndex
    );
  }

  /** To be given to this replica when it wakes again in this life of its node. */
  get bond(): Bond | null {
    return this.#bond !== null && this.#leases?.binds(this.#bond.epoch) === true
      ? this.#bond
      : null;
  }

  /**
   * To be given to this replica when it wakes again in this life of its node, unless somebody was told meanwhile that it
   * leads no more; null: it does not lead, or cannot go on as if it had not slept.
   */
  get leadership(): Leadership | null {
    // After a transfer it has no lease for the rest of its term, which another election ends.
    if (this.#role !== "leader" || this.#supports === null || this.#leaseVoid) return null;
    if (!this.idle || !this.nobodyLacksAnything || this.hasReady()) return null;
    const bound = this.#peers.map(({ boundEpoch }) => boundEpoch);
    return { term: this.#term, round: this.#reads.round, bound };
  }

  /** It does not ask for votes yet, for what an earlier life of its node may have promised. */
  get isBarred(): boolean {
    if (this.#wasHere) this.#wasHere = this.#leases?.mayBeBound() === true;
    return this.#wasHere;
  }

  /**
   * The index up to which a linearizable read must see, where that is certain at this moment without asking anybody: an
   * only voter, or a leader with a lease; -1 where it is not.
   */
  get leaseIndex(): number {
    if (this.#role !== "leader" || this.#log.term(this.#log.commit) !== this.#term) return -1;
    return this.#isOnlyVoter() || this.#holdsLease() ? this.#log.commit : -1;
  }

  /** Everybody has everything and knows it, also those whose node is gone: this leader may be put to sleep. */
  get nobodyLacksAnything(): boolean {
    return this.#peers.every((peer) => peer.id === this.#id || this.#isCaughtUp(peer));
  }

  status(): RaftStatus {
    return {
      id: this.#id,
      role: this.#role,
      term: this.#term,
      vote: this.#vote,
      lead: this.#lead,
      commit: this.#log.commit,
      applied: this.#log.applied,
      lastIndex: this.#log.lastIndex,
      transferee: this.#transferee,
      progress: this.#role === "leader" ? this.#peers.map(statusOf) : [],
    };
  }

  // --- inputs --------------------------------------------------------------------------------------------------------

  /**
   * A message from another replica.
   * @returns false when it is not taken: not for this replica, of a kind that is only local, or an answer from one that
   * is not a member (any more), which counts for nothing, not even for its term
   */
  step(m: Message): boolean {
    assertSafeInteger(m.term, "term");
    assertSafeInteger(m.index, "index");
    assertSafeInteger(m.logTerm, "logTerm");
    assertSafeInteger(m.commit, "commit");
    assertSafeInteger(m.rejectHint, "rejectHint");
    assertSafeInteger(m.context, "context");
    if (m.to !== this.#id || m.from === this.#id || m.from === NONE) return false;
    if (m.type === MessageType.unreachable || m.type === MessageType.snapshotStatus) return false;
    const termless = m.type === MessageType.propose || m.type === MessageType.readIndex;
    if (termless !== (m.term === 0)) return false;
    if (isAnswer(m.type) && this.#peer(m.from) === undefined) return false;
    this.#step(m);
    return true;
  }

  tick(): void {
    if (this.#role === "leader") this.#tickLeader();
    else this.#tickElection();
  }

  /** Who sent this request for votes has its vote, in the term that is now. */
  hasVotedFor(request: Message): boolean {
    return request.term === this.#term && request.from === this.#vote;
  }

  /** It asked for votes, and somebody who is there has yet to answer. */
  get awaitsVotes(): boolean {
    if (this.#role !== "candidate" && this.#role !== "preCandidate") return false;
    for (const { id, vote } of this.#peers) {
      if (vote !== Vote.none || !this.#isVoter(id)) continue;
      if (id === this.#id || this.#supports === null || this.#supports(id)) return true;
    }
    return false;
  }

  /** This replica may be elected, and has more in its log than who sent this request for votes. */
  isAheadOf(request: Message): boolean {
    return this.#isPromotable() && !this.#log.isUpToDate(request.index, request.logTerm);
  }

  /**
   * Asks to be elected now, without waiting for the timer; not while a leader counts on a lease given here.
   * @param outright without asking first who would agree, which keeps a term that a leader has from being disturbed: no
   *   use where there was none yet, and two messages per member and a round trip
   */
  campaign(outright = false): void {
    const { readOnly, electionTicks, preVote } = this.#config;
    if (readOnly === "lease" && this.#lead !== NONE && this.#electionElapsed < electionTicks)
      return;
    this.#startElection(preVote && !outright ? "preVote" : "vote");
  }

  /** Appends to the leader's log, all or nothing. The result names the last entry. */
  propose(data: readonly Uint8Array[] | Uint8Array): ProposeResult {
    const refused = this.#refusal();
    if (refused !== null) return { ok: false, reason: refused };
    const payloads = data instanceof Uint8Array ? [data] : data;
    assert(payloads.length > 0, "a proposal holds something");
    const entries: Entry[] = [];
    let index = this.#log.lastIndex;
    for (const payload of payloads) {
      index += 1;
      entries.push({ index, term: this.#term, kind: EntryKind.normal, data: payload });
    }
    return this.#appendProposals(entries);
  }

  /**
   * A change that cannot be made now (another one pending, or the configuration is joint, or is not), or that would leave
   * no voter, becomes an empty entry instead, so that the answer is the log's: look at what is applied at the index.
   */
  proposeConfChange(change: ConfChange): ProposeResult {
    const refused = this.#refusal();
    if (refused !== null) return { ok: false, reason: refused };
    const index = this.#log.lastIndex + 1;
    const data = encodeConfChange(change);
    const entry: Entry = { index, term: this.#term, kind: EntryKind.confChange, data };
    return this.#appendProposals([this.#checkedConfChange(entry, change)]);
  }

  /** A configuration change was applied, which is when it takes effect. To be called for every one. */
  applyConfChange(change: ConfChange): ConfState {
    const members: Members = { conf: this.#conf, peers: this.#peers };
    const result = changeMembers(members, change, this.#newProgress);
    assert(
      result.ok,
      `A committed configuration change does not apply: ${String(!result.ok && result.reason)}`,
    );
    this.#switchMembers(result.members);
    return this.#conf;
  }

  /**
   * Asks for a linearizable read; the answer comes in `Ready.reads` under this context, or never: ask again, under
   * another context, after a while.
   * @returns false when it cannot even be tried: no leader is known, and this replica does not ask to be one
   */
  readIndex(context: number): boolean {
    assertSafeInteger(context, "context");
    if (this.#role === "leader") {
      this.#readAsLeader(this.#id, context);
      return true;
    }
    if (this.#lead === NONE) {
      // The votes are yet to be asked for. Not of a candidate: some may have been given before this.
      if (this.#role !== "preCandidate" || this.#readsAsked.length >= READS_ASKED_MAX) return false;
      this.#readsAsked.push(context);
      return true;
    }
    if (this.#forwardSequence === 0) {
      // An answer to a read of an earlier life of this replica must not pass for an answer to one of this life.
      this.#forwardSequence = this.#config.random(0x1_0000_0000) * 0x10_0000;
    }
    this.#forwardSequence += 1;
    const forwarded = (this.#readsForwarded ??= new Map());
    if (forwarded.size >= FORWARDED_READS_MAX) {
      for (const oldest of forwarded.keys()) {
        forwarded.delete(oldest);
        break;
      }
    }
    forwarded.set(this.#forwardSequence, context);
    const m = this.#message(MessageType.readIndex, this.#lead);
    m.term = 0;
    m.context = this.#forwardSequence;
    this.#messages.push(m);
    return true;
  }

  /** Hands leadership to a voter that is, or can be brought, up to date; given up after one election timeout. */
  transferLeadership(to: ReplicaId): void {
    if (this.#role === "leader") this.#transferTo(to);
    else if (this.#role === "follower") this.#forwardTransfer(to);
  }

  /** A follower that has reason to think its leader gone may forget it, and then vote or campaign at once. */
  forgetLeader(): void {
    // With lease reads the leader counts on this follower's silence.
    if (this.#role !== "follower" || this.#config.readOnly === "lease") return;
    this.#lead = NONE;
  }

  /** Something sent to this peer was lost: probe before sending more. */
  reportUnreachable(id: ReplicaId): void {
    const peer = this.#peer(id);
    if (this.#role === "leader" && peer?.state === "replicate") peer.becomeProbe();
  }

  /** How sending a snapshot to this peer ended. */
  reportSnapshot(id: ReplicaId, ok: boolean): void {
    const peer = this.#peer(id);
    if (this.#role !== "leader" || peer === undefined || peer.state !== "snapshot") return;
    // A snapshot that never arrived must not be what is probed from.
    if (!ok) peer.pendingSnapshot = 0;
    peer.becomeProbe();
    // Sent: the follower will say so. Failed: wait for a sign of life before the next try.
    peer.paused = true;
  }

  /** Draws the election timeout anew, as every change of role does. */
  redrawElectionTimeout(): void {
    const { electionTicks, random } = this.#config;
    this.#electionTimeout = electionTicks + random(electionTicks);
  }

  // --- output --------------------------------------------------------------------------------------------------------

  hasReady(): boolean {
    return (
      this.#messages.length > 0 ||
      this.#appendsOwed ||
      this.#readStates.length > 0 ||
      this.#log.hasCommitted ||
      this.#hasAppend()
    );
  }

  /** Reads that are answered, ahead of the turn's `ready`: what their callers do next goes out with the rest of it. */
  takeReads(): readonly ReadState[] {
    if (this.#readStates.length === 0) return NO_READS;
    const reads = this.#readStates;
    this.#readStates = [];
    return reads;
  }

  /** Hands out what the inputs led to. What it fills is the caller's until the next call. */
  ready(out: Ready): void {
    this.#turn += 1;
    if (this.#appendsOwed) this.#sendOwedAppends();
    this.#reads.close();
    const messages = out.messages;
    messages.length = 0;
    out.messages = this.#messages;
    this.#messages = messages;
    const reads = out.reads;
    reads.length = 0;
    out.reads = this.#readStates;
    this.#readStates = reads;
    out.append = this.#hasAppend() ? this.#takeAppend() : null;
    out.committed = this.#log.takeCommitted();
  }

  /** All of this append is durable. Appends are acknowledged in the order in which they were handed out. */
  appended(append: StorageAppend): void {
    for (const m of append.own) this.#step(m);
    // An ack asked for in an older term may speak of entries that were replaced since and look the same (ABA): what it
    // covers is covered again by a later one.
    if (append.ackIndex !== 0 && append.ackTerm === this.#term) {
      this.#log.stableTo(append.ackIndex, append.ackLogTerm);
    }
    if (append.snapshot !== null) {
      this.#log.snapshotStable(append.snapshot.index);
      this.applied(append.snapshot.index, 0);
    }
  }

  /** Entries up to `index` are applied; `bytes` is what their data weighed. */
  applied(index: number, bytes: number): void {
    this.#log.appliedTo(index, bytes);
    this.#uncommittedBytes = Math.max(0, this.#uncommittedBytes - bytes);
    this.#leaveJointIfDue();
  }

  #hasAppend(): boolean {
    const { term, vote, commit } = this.#handedOut;
    return (
      this.#own.length > 0 ||
      this.#after.length > 0 ||
      this.#log.hasUnstableToHandOut ||
      this.#log.hasSnapshotToHandOut ||
      term !== this.#term ||
      vote !== this.#vote ||
      commit !== this.#log.commit
    );
  }

  #takeAppend(): StorageAppend {
    const log = this.#log;
    const before = this.#handedOut;
    let hardState: HardState | null = null;
    if (before.term !== this.#term || before.vote !== this.#vote || before.commit !== log.commit) {
      hardState = { term: this.#term, vote: this.#vote, commit: log.commit };
      this.#handedOut = hardState;
    }
    const responses = this.#after.length > 0 ? this.#after : NO_MESSAGES;
    if (responses !== NO_MESSAGES) this.#after = [];
    const own = this.#own.length > 0 ? this.#own : NO_MESSAGES;
    if (own !== NO_MESSAGES) this.#own = [];
    // Every append carries the ack while anything is unstable: one that was void (ABA) is made up for by the next.
    const unstable = log.hasUnstable;
    return {
      hardState,
      entries: log.takeUnstable(),
      snapshot: log.takeSnapshot(),
      responses,
      own,
      ackTerm: this.#term,
      ackIndex: unstable ? log.lastIndex : 0,
      ackLogTerm: unstable ? log.lastTerm : 0,
    };
  }

  // --- terms and votes -----------------------------------------------------------------------------------------------

  #step(m: Message): void {
    if (m.type === MessageType.forgetLeader) this.#letGo(m);
    if (m.term > this.#term) {
      if (m.type === MessageType.requestVote || m.type === MessageType.preVote) {
        // Our leader asks about a term after its own: it restarted or stepped down, and nobody leads. It may have lost
        // entries that are here, so that only one of us can be elected; and with its node alive, support would keep us
        // quiet for ever. (A late request from before it led asks about no later term.)
        if (m.from === this.#lead && this.#supports !== null) this.forgetLeader();
        if (m.from === this.#bond?.lead && m.term > this.#bond.term) this.#bond = null;
        if (m.context !== FORCED && (this.#isBound(m.from) || this.#inLease(m.from))) {
          // Thesis §4.2.3: who hears from a leader does not help to depose it. But the sender did not hear from it.
          this.#introduceTo(m.from);
          this.#beChallenged(m.from);
          this.doubtLeader();
          return;
        }
      }
      this.#adoptTerm(m);
    } else if (m.term < this.#term && m.term !== 0) {
      this.#answerOutdated(m);
      return;
    }
    if (m.reject && isVoteResponse(m.type)) this.#learnCommit(m);
    if (m.type === MessageType.requestVote || m.type === MessageType.preVote) {
      this.#castVote(m);
    } else if (this.#role === "leader") {
      this.#stepLeader(m);
    } else if (this.#role === "follower") {
      this.#stepFollower(m);
    } else {
      this.#stepCandidate(m);
    }
  }

  #adoptTerm(m: Message): void {
    switch (m.type) {
      case MessageType.preVote:
        // A request about a term that nobody has entered yet.
        return;
      case MessageType.preVoteResponse:
        // Granted for the term that we asked about, which we enter only with a majority. Refused: the answer of one
        // who is ahead of us.
        if (m.reject) this.#becomeFollower(m.term, NONE);
        return;
      case MessageType.appendEntries:
      case MessageType.heartbeat:
      case MessageType.installSnapshot:
        this.#becomeFollower(m.term, m.from);
        return;
      default:
        this.#becomeFollower(m.term, NONE);
    }
  }

  #answerOutdated(m: Message): void {
    const { checkQuorum, preVote } = this.#config;
    switch (m.type) {
      case MessageType.appendEntries:
      case MessageType.heartbeat:
        // With these, higher terms spread no more by campaigning alone: a leader that we are ahead of has to learn it
        // from the answer, or it would never reach us again.
        if (checkQuorum || preVote) {
          this.#after.push(this.#message(MessageType.appendEntriesResponse, m.from));
        }
        return;
      case MessageType.forgetLeader:
        // It may stop telling us: we know of a newer term.
        this.#after.push(this.#message(MessageType.appendEntriesResponse, m.from));
        return;
      case MessageType.preVote: {
        // An answer and not silence, or two groups of pre-candidates with different terms could block each other.
        this.#refuseVote(MessageType.preVoteResponse, m.from);
        return;
      }
      case MessageType.requestVote:
        this.#introduceTo(m.from);
        return;
      case MessageType.heartbeatResponse:
        this.#introduceTo(m.from);
        this.#disownTo(m.from);
        return;
      default:
        return;
    }
  }

  /**
   * Somebody looks for a leader where this replica knows one whose node is alive. That one may have been deposed and
   * removed since, so that it neither leads nor campaigns, and nobody else would say so (simulation, seed 10104): it is
   * spoken to as the leader that it is taken for.
   */
  doubtLeader(): void {
    const lead = this.#lead === NONE ? (this.#bond?.lead ?? NONE) : this.#lead;
    if (this.#role !== "follower" || this.#supports === null || lead === NONE) return;
    const m = this.#message(MessageType.heartbeatResponse, lead);
    m.commit = this.#log.commit;
    m.logTerm = this.#lead === NONE ? (this.#bond?.term ?? 0) : this.#term;
    this.#messages.push(m);
  }

  /** The sender takes this replica for a leader, which it is not. */
  #disownTo(id: ReplicaId): void {
    // A candidate may lead this very term yet, and the word would outlive the moment.
    const mayLead = this.#role === "leader" || this.#role === "candidate";
    if (mayLead || this.#supports === null) return;
    this.#messages.push(this.#message(MessageType.forgetLeader, id));
  }

  /** Raft §5.2, §5.4.1. Learners vote too: whoever asks may know of a promotion that has not been applied here. */
  #castVote(m: Message): void {
    const isPreVote = m.type === MessageType.preVote;
    const type = isPreVote ? MessageType.preVoteResponse : MessageType.requestVoteResponse;
    const isBound = m.context !== FORCED && this.#isBound(m.from);
    const free =
      this.#vote === m.from ||
      (this.#vote === NONE && this.#lead === NONE) ||
      (isPreVote && m.term > this.#term);
    if (free && !isBound && this.#log.isUpToDate(m.index, m.logTerm)) {
      const answer = this.#message(type, m.from);
      // The term asked about, which for a pre-vote is not ours: with ours the sender would take the answer for old.
      answer.term = m.term;
      if (!isPreVote) {
        this.#electionElapsed = 0;
        this.#vote = m.from;
        answer.rejectHint = m.rejectHint;
        // The leader that is handing over reads by no lease any more. One of this very term did not hand over: this is a
        // request that it won against, and which comes late or once more.
        if (m.context === FORCED && this.#bond !== null && m.term > this.#bond.term)
          this.#bond = null;
      }
      this.#after.push(answer);
    } else {
      this.#refuseVote(type, m.from);
    }
  }

  /**
   * With what is committed here, in place of a leader: whoever was removed may have the longer log, and refuse for ever the
   * one who needs its vote because it does not know of the removal yet.
   */
  #refuseVote(type: MessageType, to: ReplicaId): void {
    const answer = this.#message(type, to);
    answer.reject = true;
    if (this.#supports !== null) {
      const { commit } = this.#log;
      const term = this.#log.term(commit);
      if (term !== UNKNOWN_TERM) {
        answer.commit = commit;
        answer.logTerm = term;
      }
    }
    this.#after.push(answer);
    this.#introduceTo(to);
  }

  /** Committed there, and the same entry here: committed (log matching, Raft §5.3). */
  #learnCommit({ commit, logTerm }: Message): void {
    const log = this.#log;
    if (commit <= log.commit || commit > log.lastIndex || !log.matches(commit, logTerm)) return;
    log.commitTo(commit);
    const isCandidate = this.#role === "candidate" || this.#role === "preCandidate";
    // What is counted now may be no majority any more.
    if (isCandidate && this.#hasUnappliedConfChange()) this.#becomeFollower(this.#term, NONE);
  }

  #inLease(from: ReplicaId): boolean {
    // The very replica that we take for the leader is one no more if it asks for votes.
    if (!this.#config.checkQuorum || this.#lead === NONE || from === this.#lead) return false;
    if (this.#supports !== null && this.#role !== "leader" && this.#isVoter(this.#lead)) {
      return this.#supports(this.#lead);
    }
    return this.#electionElapsed < this.#config.electionTicks;
  }

  /**
   * Whether a promise stands against helping `candidate` to lead. It outlives what this replica knows of a leader: a later
   * term, a configuration without it, a sleep. It ends with the epoch, by the leader's own word, by its transfer, or when
   * one leads a later term, who was elected by a majority that was free.
   */
  #isBound(candidate: ReplicaId): boolean {
    if (this.#leases === null) return false;
    if (this.isBarred) return true;
    const bond = this.#bond;
    return bond !== null && bond.lead !== candidate && this.#leases.binds(bond.epoch);
  }

  /** Binds this replica to the leader whom it answers. @returns the epoch, for the answer */
  #bind(): number {
    const epoch = this.#leases?.given(this.#lead) ?? 0;
    const before = this.#bond;
    if (epoch === 0) this.#bond = null;
    else if (before?.epoch !== epoch || before.lead !== this.#lead || before.term !== this.#term)
      this.#bond = { lead: this.#lead, term: this.#term, epoch };
    return epoch;
  }

  /** Who was followed leads no more, by its own word. One from before it led does not count. */
  #letGo(m: Message): void {
    if (m.from === this.#bond?.lead && m.term >= this.#bond.term) this.#bond = null;
  }

  /** Somebody looks for a leader where there is one; without regular heartbeats it would not learn of it. */
  #introduceTo(id: ReplicaId): void {
    if (this.#role !== "leader" || this.#supports === null) return;
    const peer = this.#peer(id);
    if (peer !== undefined) this.#sendHeartbeat(peer, this.#reads.asking);
  }

  /**
   * One that is no member, as far as is known here, wants to be elected. While this leader heard of nobody its group may
   * have gone on without it and let others in: its voters' nodes are alive, those replicas may be there no more, and it
   * would lead for ever what nobody follows, and refuse a vote that is needed (simulation, seed 710022034). So a quorum
   * has to answer, over one whole round of checks, or it steps down.
   */
  #beChallenged(by: ReplicaId): void {
    const isLeader = this.#role === "leader" && this.#supports !== null;
    if (isLeader && this.#challenge === 0 && this.#peer(by) === undefined) this.#challenge = 2;
  }

  #startElection(kind: "preVote" | "vote" | "transfer"): void {
    if (this.#role === "leader" || !this.#isPromotable() || this.#hasUnappliedConfChange()) return;
    if (kind === "transfer") {
      this.#bond = null;
    } else if (this.#isBound(this.#id)) {
      this.doubtLeader();
      return;
    }
    this.#campaign(kind);
  }

  #campaign(kind: "preVote" | "vote" | "transfer"): void {
    let request: MessageType;
    let term: number;
    if (kind === "preVote") {
      this.#becomePreCandidate();
      request = MessageType.preVote;
      term = this.#term + 1;
    } else {
      this.#becomeCandidate();
      request = MessageType.requestVote;
      term = this.#term;
      this.#askedAs = this.#readsAsked.length === 0 ? 0 : 1 + this.#config.random(0xffff_ffff);
    }
    const asked = kind === "preVote" ? 0 : this.#askedAs;
    for (const { id } of this.#peers) {
      if (!this.#isVoter(id)) continue;
      if (id === this.#id) {
        // Its own vote counts once it is durable, like everybody's.
        const own = this.#message(
          kind === "preVote" ? MessageType.preVoteResponse : MessageType.requestVoteResponse,
          id,
        );
        own.term = term;
        this.#own.push(own);
        continue;
      }
      const m = this.#message(request, id);
      m.term = term;
      m.index = this.#log.lastIndex;
      m.logTerm = this.#log.lastTerm;
      m.rejectHint = asked;
      if (kind === "transfer") m.context = FORCED;
      this.#messages.push(m);
    }
  }

  #stepCandidate(m: Message): void {
    switch (m.type) {
      case MessageType.appendEntries:
        this.#becomeFollower(m.term, m.from);
        this.#takeEntries(m);
        return;
      case MessageType.heartbeat:
        this.#becomeFollower(m.term, m.from);
        this.#takeHeartbeat(m);
        return;
      case MessageType.installSnapshot:
        this.#becomeFollower(m.term, m.from);
        this.#takeSnapshot(m);
        return;
      case MessageType.requestVoteResponse:
        if (this.#role === "candidate") this.#countVote(m);
        return;
      case MessageType.preVoteResponse:
        if (this.#role === "preCandidate") this.#countVote(m);
        return;
      case MessageType.heartbeatResponse:
        this.#disownTo(m.from);
        return;
      default:
        return;
    }
  }

  #countVote(m: Message): void {
    const voter = this.#peer(m.from);
    // The first answer of each counts, and only those of the present members.
    if (voter !== undefined && voter.vote === Vote.none) {
      voter.vote = m.reject ? Vote.refused : Vote.granted;
      // Asked for by an earlier life of this replica, which a crash made forget the term: given before the reads were
      // asked, it does not say that nobody led later.
      const isOld = this.#role === "candidate" && m.rejectHint !== this.#askedAs;
      if (isOld && !m.reject && m.from !== this.#id) this.#askedAs = 0;
    }
    const result = jointVote(this.#conf.voters, this.#conf.votersOutgoing, this.#voteOf);
    if (result === "won") {
      // Enough without its own, which is not durable yet: a crash would make it forget the term, lead it once more by the
      // same votes, and put other entries where this leadership put some.
      if (this.#role === "candidate" && this.#self?.vote === Vote.none) return;
      if (this.#role === "preCandidate") {
        this.#campaign("vote");
      } else {
        this.#becomeLeader();
        this.#broadcastAppend();
      }
    } else if (result === "lost") {
      // For a pre-vote, m.term is one that nobody entered.
      this.#becomeFollower(this.#term, NONE);
    }
  }

  /** A member that votes, and that is not about to become something else by a snapshot. */
  #isPromotable(): boolean {
    return this.#self !== null && !this.#self.isLearner && !this.#log.hasSnapshot;
  }

  /** Changes take effect when applied: one that is committed and not applied here could make this a rival quorum. */
  #hasUnappliedConfChange(): boolean {
    let low = this.#log.applied + 1;
    const high = this.#log.commit + 1;
    while (low < high) {
      const entries = this.#log.slice(low, high, this.#config.messageBytesMax);
      if (entries === null) return true;
      for (const entry of entries) if (entry.kind === EntryKind.confChange) return true;
      low += entries.length;
    }
    return false;
  }

  // --- roles ---------------------------------------------------------------------------------------------------------

  #reset(term: number): void {
    if (term !== this.#term) {
      assert(term > this.#term, "terms only grow");
      this.#term = term;
      this.#vote = NONE;
      this.#retired = false;
    }
    this.#lead = NONE;
    this.#electionElapsed = 0;
    this.#heartbeatElapsed = 0;
    this.#leaderTicks = 0;
    this.#challenge = 0;
    this.redrawElectionTimeout();
    this.#transferee = NONE;
    this.#leaseVoid = false;
    this.#leavingAt = 0;
    const last = this.#log.lastIndex;
    for (const peer of this.#peers) peer.reset(last + 1, peer.id === this.#id ? last : 0);
    this.#pendingConfIndex = 0;
    this.#uncommittedBytes = 0;
    this.#appendsOwed = false;
    this.#reads.reset();
    if (this.#readsEarly.length > 0) this.#readsEarly = [];
    if (this.#readsAsked.length > 0) this.#readsAsked = [];
    this.#readsForwarded = null;
  }

  #becomeFollower(term: number, lead: ReplicaId): void {
    const retires = this.#role === "leader" && term === this.#term && this.#supports !== null;
    this.#reset(term);
    this.#role = "follower";
    this.#lead = lead;
    if (retires) this.#retire();
  }

  #becomeCandidate(): void {
    assert(this.#role !== "leader", "a leader does not campaign");
    const asked = this.#readsAsked;
    this.#reset(this.#term + 1);
    this.#readsAsked = asked;
    this.#role = "candidate";
    this.#vote = this.#id;
  }

  /** Neither the term nor the vote changes; nothing that was promised is touched. */
  #becomePreCandidate(): void {
    assert(this.#role !== "leader", "a leader does not campaign");
    for (const peer of this.#peers) peer.vote = Vote.none;
    this.#lead = NONE;
    this.#role = "preCandidate";
  }

  #becomeLeader(): void {
    assert(this.#role === "candidate", "only a candidate becomes leader");
    const asked = this.#readsAsked;
    this.#reset(this.#term);
    this.#role = "leader";
    this.#lead = this.#id;
    this.#bond = null;
    const self = this.#self;
    assert(self !== null, "a leader is a member when it is elected");
    self.becomeReplicate();
    self.recentActive = true;
    // Whatever is in the log may be a configuration change; not looking is cheaper than reading the tail.
    this.#pendingConfIndex = this.#log.lastIndex;
    for (const context of asked) this.#answerAsked(context);
    // Raft §8: an entry of its own term tells it what is committed.
    const index = this.#log.lastIndex + 1;
    this.#appendOwn([{ index, term: this.#term, kind: EntryKind.normal, data: NO_BYTES }]);
  }

  /**
   * A read that was asked here before the votes that made this replica the leader, which is before its first own entry.
   * Who gave them had by then what was committed when the read was asked, so it is in this log (leader completeness), and
   * they say that nobody else led later. Where the log is known to be committed to its end, nothing is left to ask.
   */
  #answerAsked(context: number): void {
    const { commit, lastIndex } = this.#log;
    if (commit === lastIndex && this.#askedAs !== 0) this.#answerRead(this.#id, context, commit);
    else this.#readAsLeader(this.#id, context);
  }

  /**
   * It slept, and nothing reached it: it still is the only one that can lead this term, and everybody has what it has. What
   * they promised it holds for as long as their nodes' support does, which is looked at with each read.
   */
  #resume({ term, round, bound }: Leadership): void {
    const log = this.#log;
    const last = log.lastIndex;
    const isWhole = log.commit === last && log.applied === last && log.term(last) === term;
    const isSame = term === this.#term && this.#vote === this.#id;
    const isMember = this.#isPromotable() && bound.length === this.#peers.length;
    if (!isWhole || !isSame || !isMember) return;
    this.#role = "leader";
    this.#lead = this.#id;
    this.#reads.resume(round);
    this.#lastAtBeat = last;
    this.#commitAtBeat = last;
    for (const [at, peer] of this.#peers.entries()) peer.resume(last, bound[at] as number);
  }

  /**
   * It led this term and stopped, by a missing quorum or by its removal. Followers whose liveness comes from outside
   * would go on trusting it, its node being alive, so it tells them, again until somebody else is heard of.
   */
  #retire(): void {
    this.#retired = true;
    for (const { id } of this.#peers) {
      if (id !== this.#id) this.#messages.push(this.#message(MessageType.forgetLeader, id));
    }
  }

  // --- time ----------------------------------------------------------------------------------------------------------

  #tickElection(): void {
    if (this.#role === "follower" && this.#leadIsSupported()) {
      this.#electionElapsed = 0;
      return;
    }
    this.#electionElapsed += 1;
    if (this.#electionElapsed < this.#electionTimeout) return;
    if (this.#retired && this.#lead === NONE) this.#retire();
    if (this.#isPromotable()) {
      this.#electionElapsed = 0;
      this.campaign();
    } else if (this.#retired) {
      this.#electionElapsed = 0;
    } else if (this.#supports !== null && this.#role === "follower" && this.#lead === NONE) {
      this.#electionElapsed = 0;
      this.#seekLeader();
    }
  }

  /**
   * A learner starts no election by which a leader would learn that it is not known here. One that has nothing more for
   * this replica would never speak to it again: it is asked to (simulation, seed 3000159).
   */
  #seekLeader(): void {
    for (const { id } of this.#peers) {
      if (id === this.#id || !this.#isVoter(id)) continue;
      const m = this.#message(MessageType.heartbeatResponse, id);
      m.commit = this.#log.commit;
      m.reject = true;
      this.#messages.push(m);
    }
  }

  #leadIsSupported(): boolean {
    return (
      this.#supports !== null &&
      this.#lead !== NONE &&
      this.#isVoter(this.#lead) &&
      this.#supports(this.#lead)
    );
  }

  #tickLeader(): void {
    const { electionTicks, heartbeatTicks, checkQuorum } = this.#config;
    this.#heartbeatElapsed += 1;
    this.#electionElapsed += 1;
    this.#leaderTicks += 1;
    if (this.#electionElapsed >= electionTicks) {
      this.#electionElapsed = 0;
      if (checkQuorum) this.#checkQuorum();
      if (this.#role !== "leader") return;
      // The target did not take over in time: lead on.
      if (this.#transferee !== NONE) {
        this.#transferee = NONE;
        this.#leaveJointIfDue();
      }
    }
    if (this.#heartbeatElapsed >= heartbeatTicks) {
      this.#heartbeatElapsed = 0;
      this.#beat();
    }
  }

  #checkQuorum(): void {
    const { voters, votersOutgoing } = this.#conf;
    const activeOf = this.#challenge === 1 ? this.#answeredOf : this.#activeOf;
    if (jointVote(voters, votersOutgoing, activeOf) !== "won") {
      this.#becomeFollower(this.#term, NONE);
      return;
    }
    if (this.#challenge > 0) this.#challenge -= 1;
    for (const peer of this.#peers) if (peer.id !== this.#id) peer.recentActive = false;
  }

  #beat(): void {
    let round = this.#reads.asking;
    if (this.#config.readOnly === "lease") round = this.#beginLeaseRound();
    const leaves = this.#self === null || this.#leavingAt !== 0;
    if (this.#supports === null || leaves || round !== 0 || this.#challenge > 0) {
      this.#broadcastHeartbeat(round);
      return;
    }
    // Without enough support from outside, peers are asked for signs of life themselves.
    const quorum = this.#quorumIsSupported();
    for (const peer of this.#peers) {
      if (peer.id === this.#id) continue;
      // Thousands of groups calling a node that is gone would be the heartbeats that D3 did away with.
      const needed = this.#supports(peer.id) ? this.#lags(peer) : !quorum;
      if (needed) this.#sendHeartbeat(peer, round);
    }
    this.#lastAtBeat = this.#log.lastIndex;
    this.#commitAtBeat = this.#log.commit;
  }

  /** It is not caught up with what was here a beat ago: what was sent since may be on its way. */
  #lags(peer: Progress): boolean {
    return (
      peer.state !== "replicate" ||
      peer.match < this.#lastAtBeat ||
      peer.knownCommit < this.#commitAtBeat
    );
  }

  #broadcastHeartbeat(round: number): void {
    for (const peer of this.#peers) if (peer.id !== this.#id) this.#sendHeartbeat(peer, round);
  }

  #sendHeartbeat(peer: Progress, round: number): void {
    const m = this.#message(MessageType.heartbeat, peer.id);
    // Never beyond what it is known to hold: its tail may still be another one.
    m.commit = Math.min(peer.match, this.#log.commit);
    m.context = round;
    peer.sentCommit = m.commit;
    this.#messages.push(m);
  }

  #isActive(peer: Progress): boolean {
    return peer.recentActive || this.#supports?.(peer.id) === true;
  }

  #quorumIsSupported(): boolean {
    return jointVote(this.#conf.voters, this.#conf.votersOutgoing, this.#supportOf) === "won";
  }

  /** It has every entry, knows that all of them are committed, and nothing sent to it is in doubt. */
  #isCaughtUp(peer: Progress): boolean {
    return (
      peer.state === "replicate" &&
      peer.match === this.#log.lastIndex &&
      peer.knownCommit >= this.#log.commit
    );
  }

  // --- follower ------------------------------------------------------------------------------------------------------

  #stepFollower(m: Message): void {
    switch (m.type) {
      case MessageType.appendEntries:
        this.#hearFrom(m.from);
        this.#takeEntries(m);
        return;
      case MessageType.heartbeat:
        this.#hearFrom(m.from);
        this.#takeHeartbeat(m);
        return;
      case MessageType.installSnapshot:
        this.#hearFrom(m.from);
        this.#takeSnapshot(m);
        return;
      case MessageType.timeoutNow:
        // Thesis §3.10. No pre-vote: the leader itself asked. But only with the log that it thinks is here.
        if (this.#log.lastIndex >= m.context) this.#startElection("transfer");
        return;
      case MessageType.forgetLeader:
        if (m.from === this.#lead) this.forgetLeader();
        return;
      case MessageType.heartbeatResponse:
        this.#disownTo(m.from);
        return;
      case MessageType.readIndexResponse: {
        const context = this.#readsForwarded?.get(m.context);
        if (context === undefined) return;
        this.#readsForwarded?.delete(m.context);
        this.#readStates.push({ index: m.index, context });
        return;
      }
      case MessageType.propose:
        if (this.#lead !== NONE) this.#messages.push({ ...m, from: this.#id, to: this.#lead });
        return;
      case MessageType.readIndex:
      case MessageType.transferLeader:
        // It took us for the leader. An answer goes straight back to it.
        if (this.#lead !== NONE && this.#lead !== m.from) {
          this.#messages.push({ ...m, to: this.#lead });
        }
        return;
      default:
        return;
    }
  }

  #hearFrom(leader: ReplicaId): void {
    this.#electionElapsed = 0;
    this.#lead = leader;
  }

  #forwardTransfer(to: ReplicaId): void {
    if (this.#lead === NONE) return;
    const m = this.#message(MessageType.transferLeader, this.#lead);
    m.from = to;
    this.#messages.push(m);
  }

  #takeEntries(m: Message): void {
    const log = this.#log;
    const answer = this.#message(MessageType.appendEntriesResponse, m.from);
    if (m.index < log.commit) {
      // Everything up to the commit index is settled; let the leader go on from there.
      answer.index = log.commit;
    } else {
      const matched = log.maybeAppend(m.index, m.logTerm, m.entries, m.commit);
      if (matched >= 0) {
        answer.index = matched;
      } else {
        // Raft §5.3, with the faster way back: the last index here whose term could still be common with the leader's.
        const hint = log.findConflictByTerm(Math.min(m.index, log.lastIndex), m.logTerm);
        const term = log.term(hint);
        answer.index = m.index;
        answer.reject = true;
        answer.rejectHint = hint;
        answer.logTerm = term === UNKNOWN_TERM ? 0 : term;
      }
    }
    answer.commit = log.commit;
    answer.context = this.#bind();
    this.#after.push(answer);
  }

  #takeHeartbeat(m: Message): void {
    this.#log.commitTo(m.commit);
    const answer = this.#message(MessageType.heartbeatResponse, m.from);
    answer.context = m.context;
    answer.commit = this.#log.commit;
    // Without word of nodes there are no leases, nor replicas that sleep, for which it matters.
    answer.logTerm = this.#supports === null ? 0 : this.#term;
    answer.index = this.#bind();
    this.#messages.push(answer);
  }

  #takeSnapshot(m: Message): void {
    if (m.snapshot === null) return;
    const restored = this.#restore(m.snapshot);
    const answer = this.#message(MessageType.appendEntriesResponse, m.from);
    answer.index = restored ? this.#log.lastIndex : this.#log.commit;
    answer.commit = this.#log.commit;
    answer.context = this.#bind();
    this.#after.push(answer);
  }

  /** @returns false when it is not wanted: old, not for us, or covered by the log */
  #restore(snapshot: SnapshotMeta): boolean {
    const log = this.#log;
    const { index, term, confState } = snapshot;
    if (index <= log.commit) {
      const own = log.term(index);
      assert(own === UNKNOWN_TERM || own === term, "a snapshot contradicts what is committed here");
      return false;
    }
    const { voters, votersOutgoing, learners } = confState;
    const isMember =
      voters.includes(this.#id) || votersOutgoing.includes(this.#id) || learners.includes(this.#id);
    if (!isMember) return false;
    if (log.matches(index, term)) {
      log.commitTo(index);
      return false;
    }
    log.restore(snapshot);
    this.#switchMembers(restoreMembers(confState, this.#newProgress));
    return true;
  }

  // --- leader --------------------------------------------------------------------------------------------------------

  #stepLeader(m: Message): void {
    switch (m.type) {
      case MessageType.appendEntries:
      case MessageType.heartbeat:
      case MessageType.installSnapshot:
        assert(false, `Replica ${m.from} leads term ${m.term}, and so does this one`);
        return;
      case MessageType.propose:
        if (this.#refusal() === null) this.#appendForwarded(m.entries);
        return;
      case MessageType.readIndex:
        this.#readAsLeader(m.from, m.context);
        return;
      case MessageType.transferLeader:
        this.#transferTo(m.from);
        return;
      case MessageType.appendEntriesResponse: {
        const peer = this.#peer(m.from);
        if (peer !== undefined) this.#takeAppendResponse(peer, m);
        return;
      }
      case MessageType.heartbeatResponse: {
        const peer = this.#peer(m.from);
        if (peer !== undefined) this.#takeHeartbeatResponse(peer, m);
        return;
      }
      default:
        return;
    }
  }

  #takeAppendResponse(peer: Progress, m: Message): void {
    peer.recentActive = true;
    peer.knownCommit = Math.max(peer.knownCommit, m.commit);
    peer.boundEpoch = Math.max(peer.boundEpoch, m.context);
    if (this.#leavesNow()) return;
    if (m.reject) {
      // Raft §5.3: a whole term at a time. The follower skipped what cannot match by its terms, now we do by ours.
      const hint =
        m.logTerm > 0 ? this.#log.findConflictByTerm(m.rejectHint, m.logTerm) : m.rejectHint;
      if (peer.maybeDecrease(m.index, hint)) {
        if (peer.state === "replicate") peer.becomeProbe();
        this.#sendAppend(peer);
      }
      return;
    }
    if (m.index > this.#log.lastIndex) return;
    const moved = peer.maybeUpdate(m.index);
    if (!moved && !(peer.match === m.index && peer.state === "probe")) return;
    if (peer.state === "probe") {
      peer.becomeReplicate();
    } else if (peer.state === "snapshot") {
      // Whatever way it came by its state: what it has now connects to the log again.
      if (peer.match + 1 >= this.#log.firstIndex) peer.becomeReplicate();
    } else {
      peer.inflights.freeTo(m.index);
    }
    const other = peer.id !== this.#id;
    if (this.#maybeCommit()) {
      this.#broadcastAppend();
    } else if (other && peer.canBumpCommit(this.#log.commit)) {
      this.#sendAppend(peer);
    }
    if (!other) return;
    while (this.#maybeSendAppend(peer, false)) {
      // The window moved: as much as it takes.
    }
    if (peer.id === this.#transferee && peer.match === this.#log.lastIndex)
      this.#sendTimeoutNow(peer);
  }

  #takeHeartbeatResponse(peer: Progress, m: Message): void {
    peer.recentActive = true;
    peer.knownCommit = Math.max(peer.knownCommit, m.commit);
    peer.boundEpoch = Math.max(peer.boundEpoch, m.index);
    if (m.reject) this.#introduceTo(peer.id);
    if (this.#leavesNow()) return;
    peer.paused = false;
    // Also when its window is full, then without entries: what filled the window may have been lost.
    if (peer.match < this.#log.lastIndex || peer.state === "probe") this.#sendAnew(peer);
    if (m.context > peer.readConfirmed) {
      peer.readConfirmed = m.context;
      if (this.#reads.pending) this.#answerReads();
    }
  }

  /**
   * Once a turn is enough. A peer that was frozen answers all it was asked meanwhile at once, and each answer would read
   * and send the same entries again (measured: the leader stood still for seconds).
   */
  #sendAnew(peer: Progress): void {
    if (this.#supports !== null && peer.resentTurn === this.#turn) return;
    peer.resentTurn = this.#turn;
    this.#sendAppend(peer);
  }

  /** Raft §5.4.2: only entries of the own term are committed by counting; they take the older ones with them. */
  #maybeCommit(): boolean {
    const { voters, votersOutgoing } = this.#conf;
    const index = jointCommitted(voters, votersOutgoing, this.#matchOf);
    if (index === Infinity || index <= this.#log.commit) return false;
    if (this.#log.term(index) !== this.#term) return false;
    this.#log.commitTo(index);
    this.#releaseEarlyReads();
    return true;
  }

  #refusal(): "not-leader" | "transferring" | null {
    // A leader that was removed still replicates, but takes nothing on.
    if (this.#role !== "leader" || this.#self === null || this.#leavingAt !== 0)
      return "not-leader";
    return this.#transferee === NONE ? null : "transferring";
  }

  #appendForwarded(forwarded: readonly Entry[]): void {
    const entries: Entry[] = [];
    for (const { kind, data } of forwarded) {
      const entry: Entry = {
        index: this.#log.lastIndex + 1 + entries.length,
        term: this.#term,
        kind,
        data,
      };
      if (kind === EntryKind.confChange) {
        let change: ConfChange;
        try {
          change = decodeConfChange(data);
        } catch (error) {
          if (error instanceof MalformedError) return;
          throw error;
        }
        entries.push(this.#checkedConfChange(entry, change));
      } else {
        entries.push(entry);
      }
    }
    if (entries.length > 0) this.#appendProposals(entries);
  }

  /** The entry itself, or an empty one in its place when the change does not fit now. One change at a time. */
  #checkedConfChange(entry: Entry, change: ConfChange): Entry {
    const pending = this.#pendingConfIndex > this.#log.applied;
    const joint = isJoint(this.#conf);
    const leaves = change.changes.length === 0;
    const unfit = pending || joint !== leaves || !leavesVoters(this.#conf, change);
    if (!this.#config.confChangeUnchecked && unfit) {
      return { index: entry.index, term: entry.term, kind: EntryKind.normal, data: NO_BYTES };
    }
    this.#pendingConfIndex = entry.index;
    return entry;
  }

  #appendProposals(entries: readonly Entry[]): ProposeResult {
    let bytes = 0;
    for (const entry of entries) bytes += entry.data.length;
    // One proposal of any size passes when nothing else waits, and empty ones always: a leader's first entry and the
    // leaving of a joint configuration must not be held up.
    const waiting = this.#uncommittedBytes;
    if (waiting > 0 && bytes > 0 && waiting + bytes > this.#config.uncommittedBytesMax) {
      return { ok: false, reason: "too-much-uncommitted" };
    }
    this.#uncommittedBytes += bytes;
    this.#appendOwn(entries);
    this.#broadcastAppend();
    return { ok: true, index: this.#log.lastIndex, term: this.#term };
  }

  #appendOwn(entries: readonly Entry[]): void {
    this.#log.append(entries);
    const index = this.#log.lastIndex;
    const last = this.#own.at(-1);
    if (
      this.#config.mergeAppends === true &&
      last?.type === MessageType.appendEntriesResponse &&
      last.term === this.#term
    ) {
      last.index = index;
      return;
    }
    // Thesis §10.2.1: the leader counts itself when its own write is done, which may be after its followers'.
    const own = this.#message(MessageType.appendEntriesResponse, this.#id);
    own.index = index;
    this.#own.push(own);
  }

  #broadcastAppend(): void {
    if (this.#config.mergeAppends === true) {
      this.#appendsOwed = true;
      return;
    }
    for (const peer of this.#peers) if (peer.id !== this.#id) this.#sendAppend(peer);
  }

  #sendOwedAppends(): void {
    this.#appendsOwed = false;
    for (const peer of this.#peers) {
      if (peer.id === this.#id) continue;
      let more = this.#maybeSendAppend(peer, true);
      while (more) more = this.#maybeSendAppend(peer, false);
    }
  }

  #sendAppend(peer: Progress): void {
    this.#maybeSendAppend(peer, true);
  }

  /** @returns whether something was sent */
  #maybeSendAppend(peer: Progress, evenEmpty: boolean): boolean {
    if (peer.isPaused) return false;
    const log = this.#log;
    const index = peer.next - 1;
    const logTerm = log.term(index);
    if (logTerm === UNKNOWN_TERM) return this.#maybeSendSnapshot(peer);
    let entries: readonly Entry[] | null = NO_ENTRIES;
    // With a full window only empty messages, so that losing the whole window does not end replication.
    if (peer.state !== "replicate" || !peer.inflights.full) {
      entries = log.entriesFrom(peer.next, this.#config.messageBytesMax);
    }
    if (entries === null) return this.#maybeSendSnapshot(peer);
    if (entries.length === 0 && !evenEmpty) return false;
    const m = this.#message(MessageType.appendEntries, peer.id);
    m.index = index;
    m.logTerm = logTerm;
    m.entries = entries;
    m.commit = log.commit;
    this.#messages.push(m);
    let bytes = 0;
    for (const entry of entries) bytes += entry.data.length;
    peer.sentEntries(entries.length, bytes);
    peer.sentCommit = log.commit;
    return true;
  }

  /** What it needs next is compacted. One that is not heard of would not take a snapshot either. */
  #maybeSendSnapshot(peer: Progress): boolean {
    if (!this.#isActive(peer)) return false;
    const snapshot = this.#storage.snapshot();
    if (snapshot === null) return false;
    assert(snapshot.index > 0, "a snapshot covers something");
    peer.becomeSnapshot(snapshot.index);
    const m = this.#message(MessageType.installSnapshot, peer.id);
    m.snapshot = snapshot;
    this.#messages.push(m);
    return true;
  }

  #transferTo(to: ReplicaId): void {
    const peer = this.#peer(to);
    if (peer === undefined || peer.isLearner || to === this.#transferee) return;
    this.#transferee = NONE;
    if (to === this.#id) return;
    // It has one election timeout from now on.
    this.#electionElapsed = 0;
    this.#transferee = to;
    if (peer.match === this.#log.lastIndex) this.#sendTimeoutNow(peer);
    else this.#sendAppend(peer);
  }

  #sendTimeoutNow(peer: Progress): void {
    this.#leaseVoid = true;
    const m = this.#message(MessageType.timeoutNow, peer.id);
    m.context = this.#log.lastIndex;
    this.#messages.push(m);
  }

  // --- reads ---------------------------------------------------------------------------------------------------------

  #readAsLeader(from: ReplicaId, context: number): void {
    // Thesis §6.4: before its first own commit a leader does not know what is committed. That holds for an only voter
    // too, which after a restart may have acknowledged more than it wrote down as committed (simulation, seed 10104).
    if (this.#log.term(this.#log.commit) !== this.#term) {
      const m = this.#message(MessageType.readIndex, this.#id);
      m.from = from;
      m.context = context;
      this.#readsEarly.push(m);
      return;
    }
    if (this.#isOnlyVoter() || this.#holdsLease()) {
      this.#answerRead(from, context, this.#log.commit);
      return;
    }
    if (!this.#reads.add(this.#log.commit, from, context)) return;
    if (this.#self !== null) this.#self.readConfirmed = this.#reads.round;
    this.#broadcastHeartbeat(this.#reads.round);
    // Nobody else may be needed: the only voter, with learners.
    this.#answerReads();
  }

  #releaseEarlyReads(): void {
    if (this.#readsEarly.length === 0) return;
    const early = this.#readsEarly;
    this.#readsEarly = [];
    for (const m of early) this.#readAsLeader(m.from, m.context);
  }

  #answerReads(): void {
    const { voters, votersOutgoing } = this.#conf;
    const round = jointCommitted(voters, votersOutgoing, this.#readConfirmedOf);
    for (const read of this.#reads.confirmed(round)) {
      this.#answerRead(read.from, read.context, read.index);
    }
  }

  #answerRead(from: ReplicaId, context: number, index: number): void {
    if (from === this.#id) {
      this.#readStates.push({ index, context });
      return;
    }
    const m = this.#message(MessageType.readIndexResponse, from);
    m.index = index;
    m.context = context;
    this.#messages.push(m);
  }

  #beginLeaseRound(): number {
    const round = this.#reads.beginLeaseRound(this.#leaderTicks, this.#config.electionTicks);
    if (this.#self !== null) this.#self.readConfirmed = round;
    return round;
  }

  /**
   * Thesis §6.4.1: a majority heard a heartbeat that left so recently that none of them helps anybody else yet. Counted
   * from sending; one tick is lost to counting in ticks, another to those who count them.
   */
  #holdsLease(): boolean {
    if (this.#leaseVoid) return false;
    const { voters, votersOutgoing } = this.#conf;
    if (this.#leases !== null) {
      // While a change of the members is under way there may be replicas that count other majorities.
      const isSettled = this.#self !== null && !this.#self.isLearner && !this.hasPendingConfChange;
      return isSettled && jointVote(voters, votersOutgoing, this.#leaseOf) === "won";
    }
    if (this.#config.readOnly !== "lease") return false;
    const began = this.#reads.beganAt(
      jointCommitted(voters, votersOutgoing, this.#readConfirmedOf),
    );
    return began >= 0 && this.#leaderTicks - began <= this.#config.electionTicks - 2;
  }

  // --- members -------------------------------------------------------------------------------------------------------

  #switchMembers(members: Members): void {
    this.#conf = members.conf;
    this.#peers = members.peers;
    this.#self = this.#peer(this.#id) ?? null;
    if (this.#role !== "leader") return;
    if (this.#self === null || this.#self.isLearner) {
      // Thesis §4.2.2: it led until its own removal was committed, and must not lead on.
      if (!this.#config.stepDownOnRemoval) return;
      if (this.#supports === null) {
        this.#becomeFollower(this.#term, NONE);
        return;
      }
      // At once would be too early: those who stay may still need its vote until they know that they do not.
      this.#leavingAt = this.#log.applied + 1;
      this.#broadcastAppend();
      this.#leavesNow();
      return;
    }
    this.#leavingAt = 0;
    if (this.#maybeCommit()) {
      // A smaller quorum may have committed more.
      this.#broadcastAppend();
    } else {
      for (const peer of this.#peers) {
        if (peer.id !== this.#id) this.#maybeSendAppend(peer, false);
      }
    }
    if (this.#reads.pending) this.#answerReads();
    if (this.#transferee !== NONE && !this.#isVoter(this.#transferee)) this.#transferee = NONE;
  }

  /** A removed leader leaves when those who stay can elect another, and calls on the one that is furthest to try. */
  #leavesNow(): boolean {
    if (this.#leavingAt === 0) return false;
    const { voters, votersOutgoing } = this.#conf;
    if (jointCommitted(voters, votersOutgoing, this.#knownCommitOf) < this.#leavingAt) return false;
    let heir: Progress | null = null;
    for (const peer of this.#peers) {
      if (peer.id === this.#id || !this.#isVoter(peer.id)) continue;
      if (heir === null || peer.match > heir.match) heir = peer;
    }
    const expected = heir?.match ?? 0;
    this.#becomeFollower(this.#term, NONE);
    if (heir !== null) {
      const m = this.#message(MessageType.timeoutNow, heir.id);
      m.context = expected;
      this.#messages.push(m);
    }
    return true;
  }

  /** Any leader finishes what is to be left by itself, whoever began it. */
  #leaveJointIfDue(): void {
    if (!this.#conf.autoLeave || this.#role !== "leader" || this.#refusal() !== null) return;
    if (this.#log.applied < this.#pendingConfIndex) return;
    this.proposeConfChange({ transition: "auto", changes: [], context: NO_BYTES });
  }

  #isOnlyVoter(): boolean {
    const { voters, votersOutgoing } = this.#conf;
    return voters.length === 1 && votersOutgoing.length === 0 && voters[0] === this.#id;
  }

  /** Also by every configuration that its log may yet lead to: no leader elsewhere can ever have counted on it. */
  #isOnlyVoterForSure(): boolean {
    if (!this.#isOnlyVoter()) return false;
    const end = this.#log.lastIndex + 1;
    for (let low = this.#log.applied + 1; low < end;) {
      const entries = this.#log.slice(low, end, this.#config.messageBytesMax);
      if (entries === null || entries.some(({ kind }) => kind === EntryKind.confChange))
        return false;
      low += entries.length;
    }
    return true;
  }

  #isVoter(id: ReplicaId): boolean {
    return this.#conf.voters.includes(id) || this.#conf.votersOutgoing.includes(id);
  }

  #peer(id: ReplicaId): Progress | undefined {
    for (const peer of this.#peers) if (peer.id === id) return peer;
    return undefined;
  }

  #message(type: MessageType, to: ReplicaId): Message {
    return emptyMessage(type, to, this.#id, this.#term);
  }
}

function isAnswer(type: MessageType): boolean {
  return (
    type === MessageType.appendEntriesResponse ||
    type === MessageType.heartbeatResponse ||
    type === MessageType.readIndexResponse ||
    isVoteResponse(type)
  );
}

function isVoteResponse(type: MessageType): boolean {
  return type === MessageType.requestVoteResponse || type === MessageType.preVoteResponse;
}

function statusOf(peer: Progress): PeerStatus {
  return {
    id: peer.id,
    match: peer.match,
    next: peer.next,
    state: peer.state,
    recentActive: peer.recentActive,
    isLearner: peer.isLearner,
    paused: peer.isPaused,
    pendingSnapshot: peer.pendingSnapshot,
    inflight: peer.inflights.count,
    inflightFull: peer.inflights.full,
  };
}
