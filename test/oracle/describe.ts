/** The words of the transcripts for what our core says, and which differences between the two are none. */
import { decodeConfChange } from "../../src/raft/conf_codec.ts";
import {
  ChangeKind,
  EntryKind,
  MessageType,
  type ConfChange,
  type ConfState,
  type Entry,
  type HardState,
  type Message,
  type SnapshotMeta,
  type StorageAppend,
} from "../../src/raft/types.ts";
import type { PeerStatus } from "../../src/raft/raft.ts";

const decoder = new TextDecoder();

const MESSAGE_NAMES: Record<MessageType, string> = {
  [MessageType.appendEntries]: "MsgApp",
  [MessageType.appendEntriesResponse]: "MsgAppResp",
  [MessageType.heartbeat]: "MsgHeartbeat",
  [MessageType.heartbeatResponse]: "MsgHeartbeatResp",
  [MessageType.requestVote]: "MsgVote",
  [MessageType.requestVoteResponse]: "MsgVoteResp",
  [MessageType.preVote]: "MsgPreVote",
  [MessageType.preVoteResponse]: "MsgPreVoteResp",
  [MessageType.installSnapshot]: "MsgSnap",
  [MessageType.timeoutNow]: "MsgTimeoutNow",
  [MessageType.readIndex]: "MsgReadIndex",
  [MessageType.readIndexResponse]: "MsgReadIndexResp",
  [MessageType.transferLeader]: "MsgTransferLeader",
  [MessageType.forgetLeader]: "MsgForgetLeader",
  [MessageType.unreachable]: "MsgUnreachable",
  [MessageType.snapshotStatus]: "MsgSnapStatus",
  [MessageType.propose]: "MsgProp",
};

export function messageName(type: MessageType): string {
  return MESSAGE_NAMES[type];
}

const CHANGE_LETTERS = {
  v: ChangeKind.addVoter,
  r: ChangeKind.removeNode,
  u: ChangeKind.updateNode,
  l: ChangeKind.addLearner,
} as const;

export function parseChanges(words: readonly string[]): ConfChange["changes"] {
  return words.map((word) => {
    const kind = CHANGE_LETTERS[word[0] as keyof typeof CHANGE_LETTERS];
    if (kind === undefined) throw new Error(`Unknown change in a transcript: ${word}`);
    return { kind, id: Number(word.slice(1)) };
  });
}

function changesText(change: ConfChange): string {
  const letters = Object.entries(CHANGE_LETTERS);
  return change.changes
    .map(({ kind, id }) => `${letters.find((letter) => letter[1] === kind)?.[0] ?? "?"}${id}`)
    .join(" ");
}

export function entryText({ index, term, kind, data }: Entry): string {
  return kind === EntryKind.normal
    ? `${term}/${index} EntryNormal ${JSON.stringify(decoder.decode(data))}`
    : `${term}/${index} EntryConfChange ${changesText(decodeConfChange(data))}`.trim();
}

function entriesText(entries: readonly Entry[]): string {
  if (entries.length === 0) return "";
  const texts = entries.map(entryText);
  return texts.length === 1 ? ` Entries:[${texts[0]}]` : ` Entries:[\n${texts.join("\n")}\n]`;
}

function idsText(ids: readonly number[]): string {
  return `[${ids.join(" ")}]`;
}

export function snapshotText({ index, term, confState: c }: SnapshotMeta): string {
  return (
    `Index:${index} Term:${term} ConfState:Voters:${idsText(c.voters)} VotersOutgoing:${idsText(c.votersOutgoing)} ` +
    `Learners:${idsText(c.learners)} LearnersNext:${idsText(c.learnersNext)} AutoLeave:${c.autoLeave}`
  );
}

export function hardStateText({ term, vote, commit }: HardState): string {
  return `HardState Term:${term}${vote === 0 ? "" : ` Vote:${vote}`} Commit:${commit}`;
}

/** Commit in answers is ours alone, see DESIGN.md; it is not shown. */
function commitShown(m: Message): number {
  return m.type === MessageType.appendEntriesResponse || m.type === MessageType.heartbeatResponse
    ? 0
    : m.commit;
}

export function messageText(m: Message): string {
  let text = `${m.from}->${m.to} ${MESSAGE_NAMES[m.type]} Term:${m.term} Log:${m.logTerm}/${m.index}`;
  if (m.reject) text += ` Rejected (Hint: ${m.rejectHint})`;
  const commit = commitShown(m);
  if (commit !== 0) text += ` Commit:${commit}`;
  text += entriesText(m.entries);
  if (m.snapshot !== null) text += `\nSnapshot: ${snapshotText(m.snapshot)}`;
  return text;
}

/** The request to the append thread; its answers are shown apart. */
export function appendText(id: number, append: StorageAppend): string {
  const { hardState: hard } = append;
  let text = `${id}->AppendThread MsgStorageAppend Term:${hard?.term ?? 0} Log:0/0`;
  if (hard !== null && hard.commit !== 0) text += ` Commit:${hard.commit}`;
  if (hard !== null && hard.vote !== 0) text += ` Vote:${hard.vote}`;
  text += entriesText(append.entries);
  if (append.snapshot !== null) text += `\nSnapshot: ${snapshotText(append.snapshot)}`;
  return text;
}

/** What the append thread answers to the replica itself, or null when there is nothing to answer. */
export function appendAckText(id: number, append: StorageAppend): string | null {
  if (append.ackIndex === 0 && append.snapshot === null) return null;
  let text = `AppendThread->${id} MsgStorageAppendResp Term:${append.ackTerm} Log:${append.ackLogTerm}/${append.ackIndex}`;
  if (append.snapshot !== null) text += `\nSnapshot: ${snapshotText(append.snapshot)}`;
  return text;
}

export function applyText(id: number, entries: readonly Entry[]): string {
  return `${id}->ApplyThread MsgStorageApply Term:0 Log:0/0${entriesText(entries)}`;
}

export function applyAckText(id: number, entries: readonly Entry[]): string {
  return `ApplyThread->${id} MsgStorageApplyResp Term:0 Log:0/0${entriesText(entries)}`;
}

export function confText(conf: ConfState): string {
  const list = (ids: readonly number[]): string => `(${ids.join(" ")})`;
  let text = `voters=${list(conf.voters)}`;
  if (conf.votersOutgoing.length > 0) text += `&&${list(conf.votersOutgoing)}`;
  if (conf.learners.length > 0) text += ` learners=${list(conf.learners)}`;
  if (conf.learnersNext.length > 0) text += ` learners_next=${list(conf.learnersNext)}`;
  return conf.autoLeave ? `${text} autoleave` : text;
}

const STATE_NAMES = { probe: "StateProbe", replicate: "StateReplicate", snapshot: "StateSnapshot" };

export function progressText(peer: PeerStatus): string {
  let text = `${peer.id}: ${STATE_NAMES[peer.state]} match=${peer.match} next=${peer.next}`;
  if (peer.isLearner) text += " learner";
  if (peer.paused) text += " paused";
  if (peer.pendingSnapshot > 0) text += ` pendingSnap=${peer.pendingSnapshot}`;
  if (!peer.recentActive) text += " inactive";
  if (peer.inflight > 0) text += ` inflight=${peer.inflight}${peer.inflightFull ? "[full]" : ""}`;
  return text;
}

const LOG_LINE = /^(DEBUG|INFO|WARN|ERROR|FATAL)\b/;

/**
 * What a transcript means: its lines without indentation, without what a logger said, and without the two formats of
 * configuration changes, of which we have one. Saying nothing and saying "ok" is the same.
 */
export function meaning(lines: readonly string[]): string[] {
  const kept = lines
    .flatMap((line) => line.split("\n"))
    .map((line) => line.trim().replaceAll("EntryConfChangeV2", "EntryConfChange"))
    .filter((line) => line !== "" && !LOG_LINE.test(line));
  return kept.length === 1 && kept[0] === "ok" ? [] : kept;
}
