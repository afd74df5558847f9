/**
 * The words of the Raft core: entries, messages, and what one turn of it asks of its surroundings.
 *
 * Everything here is data. The core takes messages, ticks and completions in, and hands a `Ready` out; it never waits,
 * never reads a clock and never draws a number that was not injected. The shapes follow the extended Raft paper and
 * etcd/raft in its asynchronous-storage form, because those are the words the field uses.
 */

/** Names one replica within its group. Positive, never reused: a wiped disk comes back under a new id. */
export type ReplicaId = number;

/** No replica: the vote nobody got, the leader nobody knows. */
export const NONE: ReplicaId = 0;

export const EntryKind = { normal: 0, confChange: 1 } as const;
export type EntryKind = (typeof EntryKind)[keyof typeof EntryKind];

/** One slot of the replicated log. `data` is opaque to consensus; empty data is a leader's no-op. */
export interface Entry {
  readonly index: number;
  readonly term: number;
  readonly kind: EntryKind;
  readonly data: Uint8Array;
}

/** What must survive a crash beside the entries. Term and vote are one record: a crash never parts them. */
export interface HardState {
  readonly term: number;
  readonly vote: ReplicaId;
  readonly commit: number;
}

/** Who has a say. Outside of a joint change `votersOutgoing` and `learnersNext` are empty. Sorted ascending. */
export interface ConfState {
  readonly voters: readonly ReplicaId[];
  readonly votersOutgoing: readonly ReplicaId[];
  readonly learners: readonly ReplicaId[];
  readonly learnersNext: readonly ReplicaId[];
  readonly autoLeave: boolean;
}

/** Where a snapshot stands in the log. Its data travels on a lane of its own. */
export interface SnapshotMeta {
  readonly index: number;
  readonly term: number;
  readonly confState: ConfState;
}

export const ChangeKind = { addVoter: 0, removeNode: 1, updateNode: 2, addLearner: 3 } as const;
export type ChangeKind = (typeof ChangeKind)[keyof typeof ChangeKind];

/** Thesis §4.3 (joint consensus), with etcd's transitions: `auto` takes the simple path where one change allows it. */
export interface ConfChange {
  readonly transition: "auto" | "jointImplicit" | "jointExplicit";
  readonly changes: readonly { readonly kind: ChangeKind; readonly id: ReplicaId }[];
  readonly context: Uint8Array;
}

export const MessageType = {
  appendEntries: 0,
  appendEntriesResponse: 1,
  heartbeat: 2,
  heartbeatResponse: 3,
  requestVote: 4,
  requestVoteResponse: 5,
  preVote: 6,
  preVoteResponse: 7,
  installSnapshot: 8,
  timeoutNow: 9,
  readIndex: 10,
  readIndexResponse: 11,
  /** A follower asked to lead hands the wish on to its leader. */
  transferLeader: 12,
  /** With liveness from outside: one who led this term tells that it does so no more. */
  forgetLeader: 13,
  /** Local only: a lane lost bytes to this peer; go back to probing it. */
  unreachable: 14,
  /** Local only: how sending a snapshot ended (`reject` = failed). */
  snapshotStatus: 15,
  propose: 16,
} as const;
export type MessageType = (typeof MessageType)[keyof typeof MessageType];

/** One shape for every kind, so that the engines see one hidden class. Fields that a kind does not use are 0. */
export interface Message {
  type: MessageType;
  to: ReplicaId;
  from: ReplicaId;
  term: number;
  /**
   * appendEntries: term of the entry before; responses with reject: term at the hint; votes: last log term.
   * heartbeatResponse: a term that was led by whom it is for; 0: none that is known.
   */
  logTerm: number;
  /** appendEntries: index of the entry before; responses: matched or rejected index; votes: last log index. */
  index: number;
  /** Requests: what the leader has committed. Responses to appends and heartbeats: what the follower has. */
  commit: number;
  reject: boolean;
  rejectHint: number;
  /**
   * Heartbeats: the number of the read round. Reads: what names the read. Votes: 1 when forced by a transfer.
   * timeoutNow: the last index that the target must hold. appendEntriesResponse: the epoch in which the follower is bound
   * to its leader (`LeaseSupport`), which heartbeatResponse has in `index`; 0 in none.
   */
  context: number;
  entries: readonly Entry[];
  snapshot: SnapshotMeta | null;
}

export const NO_ENTRIES: readonly Entry[] = [];

/** A message that says nothing beyond its kind and its term. */
export function emptyMessage(
  type: MessageType,
  to: ReplicaId,
  from: ReplicaId,
  term: number,
): Message {
  return {
    type,
    to,
    from,
    term,
    logTerm: 0,
    index: 0,
    commit: 0,
    reject: false,
    rejectHint: 0,
    context: 0,
    entries: NO_ENTRIES,
    snapshot: null,
  };
}

export type Role = "follower" | "preCandidate" | "candidate" | "leader";

/** A linearizable read may be served once `applied ≥ index`. `context` is what `readIndex` was given. */
export interface ReadState {
  readonly index: number;
  readonly context: number;
}

/**
 * One write to the log lane of this group. Order among appends of a group is owed; `responses` leave, and
 * `Raft.appended` is called with this very object, only after all of it is durable.
 */
export interface StorageAppend {
  /** The hard state to make durable, or null when it did not change. */
  readonly hardState: HardState | null;
  /** Consecutive. An index at or below the stored last one replaces it and everything after (Raft §5.3). */
  readonly entries: readonly Entry[];
  /** To be installed before the entries, replacing state and log up to its index. */
  readonly snapshot: SnapshotMeta | null;
  /** For other replicas, after durability: votes granted, appends accepted. */
  readonly responses: readonly Message[];
  /** For this replica itself, after durability: its own vote, its own acceptance. `Raft.appended` steps them. */
  readonly own: readonly Message[];
  /** Term, last index and last term at the time of asking: an ack of an older term marks nothing stable (ABA). */
  readonly ackTerm: number;
  readonly ackIndex: number;
  readonly ackLogTerm: number;
}

/** Filled by `Raft.ready`; the arrays are reused by the next call, so take what you keep. */
export interface Ready {
  /** May leave before anything is durable (thesis §10.2.1: the leader writes in parallel with its followers). */
  messages: Message[];
  append: StorageAppend | null;
  /** Committed and locally durable, to be applied in order; answered by `Raft.applied`. */
  committed: readonly Entry[];
  reads: ReadState[];
}

/**
 * What the core reads of its log, synchronously. Holds at least everything acknowledged by `Raft.appended` that was not
 * compacted since.
 */
export interface LogReader {
  initialState(): { hardState: HardState; confState: ConfState };
  /** First index still held; entries below are only in a snapshot. 1 for a fresh log. */
  firstIndex(): number;
  lastIndex(): number;
  /** Term of the entry, also at `firstIndex - 1` (the snapshot's own term); -1 where compacted or beyond the end. */
  term(index: number): number;
  /** Entries low ≤ index < high, as many as fit in `bytesMax`, at least one. Null where compacted. */
  entries(low: number, high: number, bytesMax: number): readonly Entry[] | null;
  /** The newest snapshot that could be sent now, or null while there is none yet. */
  snapshot(): SnapshotMeta | null;
}

/**
 * What nodes promise each other, as leases need it. An epoch is a number for one unbroken time in which one node vouches
 * for another one; no other such time has it, in no life of the node that vouches.
 */
export interface LeaseSupport {
  /** The epoch in which this node vouches for the node of `id`; 0: it does not. */
  given(id: ReplicaId): number;
  /** Whether this node still vouches in this epoch of its own. */
  binds(epoch: number): boolean;
  /** The epoch in which the node of `id` vouches for this one, if that is certain at this very moment; else 0. */
  held(id: ReplicaId): number;
  /** An earlier life of this node may have promised what nobody here remembers, and somebody may count on it still. */
  mayBeBound(): boolean;
}

/** A follower's promise to help nobody else to lead while the epoch lasts: a leader's lease is a quorum of these. */
export interface Bond {
  readonly lead: ReplicaId;
  readonly term: number;
  readonly epoch: number;
}

/** What makes a leader that slept the one that it was. Nothing may have been addressed to it meanwhile. */
export interface Leadership {
  readonly term: number;
  /** The newest round of reads: confirmations of it and of earlier ones may still be under way. */
  readonly round: number;
  /** Epochs in which the members said to be bound to it, in the order of their ids; 0: in none. */
  readonly bound: readonly number[];
}

/** Ticks are the embedder's unit of time; everything else is bytes, entries or messages. */
export interface RaftConfig {
  readonly id: ReplicaId;
  readonly log: LogReader;
  /** Index already applied to the state machine, so that a restart does not apply it again. */
  readonly applied: number;
  /** Followers campaign after electionTicks … 2×electionTicks - 1 ticks without a leader. */
  readonly electionTicks: number;
  readonly heartbeatTicks: number;
  /** Uniform over 0 … bound-1; injected so that runs repeat. */
  readonly random: (bound: number) => number;
  readonly preVote: boolean;
  readonly checkQuorum: boolean;
  readonly stepDownOnRemoval: boolean;
  /** `lease` trusts checkQuorum and the clock; the host turns it on only where it can answer for both. */
  readonly readOnly: "safe" | "lease";
  readonly messageBytesMax: number;
  readonly inflightMessagesMax: number;
  readonly inflightBytesMax: number;
  /** Bytes of entries handed out for applying and not yet reported applied. */
  readonly applyingBytesMax: number;
  /** Proposals beyond this many uncommitted bytes are refused. */
  readonly uncommittedBytesMax: number;
  /**
   * Liveness from outside (node pairs vouch for each other): a peer whose node is supported counts as heard from, for
   * the follower's election timer, the vote lease and the leader's quorum check, and a caught-up peer needs no
   * heartbeat. Null: Raft's own timers and heartbeats decide.
   */
  readonly supports: ((id: ReplicaId) => boolean) | null;
  /** Leases from `supports`; absent: every read asks a majority. */
  readonly leases?: LeaseSupport;
  /** What this replica was bound to when it was put to sleep, earlier in this life of its node. */
  readonly bond?: Bond | null;
  /** What this replica led then. */
  readonly leadership?: Leadership | null;
  /**
   * The embedder writes `Ready.append` before it applies `Ready.committed` of the same turn, so entries may be handed
   * out for applying that are not durable yet: the synchronous form of etcd/raft. Default false.
   */
  readonly applyUnstable?: boolean;
  /** Lets configuration changes into the log that do not fit the configuration as known now. Default false. */
  readonly confChangeUnchecked?: boolean;
  /**
   * Entries proposed in one turn leave in one message per follower instead of one for each proposal, and the leader
   * acknowledges them to itself once. Default false.
   */
  readonly mergeAppends?: boolean;
}

export type ProposeResult =
  /** Appended to the leader's log at this index and term; committed is another matter. */
  | { readonly ok: true; readonly index: number; readonly term: number }
  | { readonly ok: false; readonly reason: "not-leader" | "transferring" | "too-much-uncommitted" };
