/**
 * A cluster that obeys the commands of the transcripts, in both forms of etcd/raft: with storage threads that take
 * their time, and with a turn that writes, applies and acknowledges at once.
 */
import {
  emptyConfState,
  newReady,
  Raft,
  decodeConfChange,
  encodeConfChange,
} from "../../src/raft/raft.ts";
import {
  EntryKind,
  type ConfChange,
  type ConfState,
  type Entry,
  type HardState,
  type Message,
  type ProposeResult,
  type Ready,
  type Role,
  type StorageAppend,
} from "../../src/raft/types.ts";
import { message } from "../raft/helpers.ts";
import { MemoryLog } from "../raft/memory_log.ts";
import type { Directive } from "./datadriven.ts";
import {
  appendAckText,
  appendText,
  applyAckText,
  applyText,
  entryText,
  hardStateText,
  messageName,
  messageText,
  parseChanges,
  progressText,
  snapshotText,
} from "./describe.ts";

const ELECTION_TICKS = 3;
const HEARTBEAT_TICKS = 1;
const ROLE_NAMES: Record<Role, string> = {
  follower: "StateFollower",
  preCandidate: "StatePreCandidate",
  candidate: "StateCandidate",
  leader: "StateLeader",
};
const TRANSITIONS = {
  auto: "auto",
  implicit: "jointImplicit",
  explicit: "jointExplicit",
} as const;

const encoder = new TextEncoder();

/** Something on its way to a replica, from another or from its own storage. */
interface Parcel {
  readonly to: number;
  readonly type: string;
  readonly text: string;
  readonly isLocal: boolean;
  /** False when the replica would not take it. */
  readonly deliver: (replica: Replica) => boolean;
}

interface AppendWork {
  readonly append: StorageAppend;
}

class Replica {
  readonly id: number;
  readonly log: MemoryLog;
  readonly raft: Raft;
  readonly isAsync: boolean;
  readonly appendWork: AppendWork[] = [];
  readonly applyWork: (readonly Entry[])[] = [];
  nextRandom: number | null = null;
  #conf: ConfState;
  #role: Role;
  #lead = 0;
  #hard: HardState;
  readonly #ready: Ready = newReady();

  constructor(id: number, log: MemoryLog, options: Pick<Directive, "named">) {
    const { named } = options;
    const flag = (name: string): boolean => named.get(name)?.[0] === "true";
    const limit = (name: string): number => Number(named.get(name)?.[0] ?? Infinity);
    this.id = id;
    this.log = log;
    this.isAsync = flag("async-storage-writes");
    this.raft = new Raft({
      id,
      log,
      applied: log.base,
      electionTicks: ELECTION_TICKS,
      heartbeatTicks: HEARTBEAT_TICKS,
      random: (bound) => this.nextRandom ?? bound - 1,
      preVote: flag("prevote"),
      checkQuorum: flag("checkquorum"),
      stepDownOnRemoval: flag("step-down-on-removal"),
      readOnly: named.get("read-only")?.[0] === "lease-based" ? "lease" : "safe",
      messageBytesMax: Infinity,
      inflightMessagesMax: limit("inflight"),
      inflightBytesMax: Infinity,
      applyingBytesMax: limit("max-committed-size-per-ready"),
      uncommittedBytesMax: Infinity,
      supports: null,
      applyUnstable: !this.isAsync,
      confChangeUnchecked: flag("disable-conf-change-validation"),
    });
    this.#conf = log.conf;
    this.#role = this.raft.role;
    this.#hard = { term: this.raft.term, vote: 0, commit: this.raft.commitIndex };
  }

  get hasReady(): boolean {
    return this.raft.hasReady() || this.raft.role !== this.#role || this.raft.lead !== this.#lead;
  }

  /** One turn, described. Messages for others go to `send`. */
  handleReady(send: (parcel: Parcel) => void): string[] {
    const { raft, id } = this;
    const ready = this.#ready;
    const soft: string[] = [];
    if (raft.role !== this.#role || raft.lead !== this.#lead) {
      this.#role = raft.role;
      this.#lead = raft.lead;
      soft.push(`Lead:${raft.lead} State:${ROLE_NAMES[raft.role]}`);
    }
    raft.ready(ready);
    const { append, committed } = ready;
    const hard = append?.hardState ?? null;
    const entries = append?.entries ?? [];
    const mustSync =
      entries.length > 0 ||
      (hard !== null && (hard.term !== this.#hard.term || hard.vote !== this.#hard.vote));
    if (hard !== null) this.#hard = hard;

    const body = [...soft];
    if (hard !== null) body.push(hardStateText(hard));
    for (const read of ready.reads) body.push(`ReadState ${read.index} ${read.context}`);
    if (entries.length > 0) body.push("Entries:", ...entries.map(entryText));
    if (append !== null && append.snapshot !== null) {
      body.push(`Snapshot ${snapshotText(append.snapshot)}`);
    }
    if (committed.length > 0) body.push("CommittedEntries:", ...committed.map(entryText));

    const messages = ready.messages.map(messageText);
    const parcels = ready.messages.map(parcelOf);
    if (this.isAsync) {
      if (append !== null) {
        const answers = answersTo(id, append).map(({ text }) => text);
        messages.push(
          answers.length === 0
            ? appendText(id, append)
            : `${appendText(id, append)} Responses:[\n${answers.join("\n")}\n]`,
        );
        this.appendWork.push({ append });
      }
      if (committed.length > 0) {
        messages.push(`${applyText(id, committed)} Responses:[\n${applyAckText(id, committed)}\n]`);
        this.applyWork.push(committed);
      }
    } else if (append !== null) {
      messages.push(...append.responses.map(messageText));
      parcels.push(...append.responses.map(parcelOf));
    }
    if (messages.length > 0) body.push("Messages:", ...messages);
    for (const parcel of parcels) send(parcel);

    if (!this.isAsync) {
      if (append !== null) this.#write(append);
      this.#apply(committed);
      if (append !== null) raft.appended(append);
      const last = committed.at(-1);
      if (last !== undefined) raft.applied(last.index, bytesOf(committed));
    }
    return body.length === 0 ? ["<empty Ready>"] : [`Ready MustSync=${mustSync}:`, ...body];
  }

  processAppend(send: (parcel: Parcel) => void): string[] {
    const work = this.appendWork.shift();
    if (work === undefined) return ["no append work to perform"];
    this.#write(work.append);
    const answers = answersTo(this.id, work.append);
    for (const answer of answers) send(answer);
    return [
      "Processing:",
      appendText(this.id, work.append),
      "Responses:",
      ...answers.map(({ text }) => text),
    ];
  }

  processApply(send: (parcel: Parcel) => void): string[] {
    const entries = this.applyWork.shift();
    if (entries === undefined) return ["no apply work to perform"];
    this.#apply(entries);
    const text = applyAckText(this.id, entries);
    const last = entries.at(-1) as Entry;
    send({
      to: this.id,
      type: "MsgStorageApplyResp",
      text,
      isLocal: true,
      deliver: ({ raft }) => {
        raft.applied(last.index, bytesOf(entries));
        return true;
      },
    });
    return ["Processing:", applyText(this.id, entries), "Responses:", text];
  }

  #write(append: StorageAppend): void {
    this.log.write(append);
    if (append.snapshot !== null) this.#conf = append.snapshot.confState;
  }

  #apply(entries: readonly Entry[]): void {
    for (const entry of entries) {
      if (entry.kind === EntryKind.confChange) {
        this.#conf = this.raft.applyConfChange(decodeConfChange(entry.data));
      }
      this.log.latest = { index: entry.index, term: entry.term, confState: this.#conf };
    }
  }

  propose(entries: readonly { kind: EntryKind; data: Uint8Array }[]): boolean {
    if (this.raft.role === "leader") {
      const [entry] = entries;
      if (entry === undefined) return false;
      const result: ProposeResult =
        entry.kind === EntryKind.normal
          ? this.raft.propose(entry.data)
          : this.raft.proposeConfChange(decodeConfChange(entry.data));
      return result.ok;
    }
    if (this.raft.role !== "follower" || this.raft.lead === 0) return false;
    // As if somebody had sent it here: a follower hands it on.
    const fields = { to: this.id, from: Number.MAX_SAFE_INTEGER, term: 0 };
    this.raft.step(
      message("propose", {
        ...fields,
        entries: entries.map((entry) => ({ index: 0, term: 0, ...entry })),
      }),
    );
    return true;
  }
}

function bytesOf(entries: readonly Entry[]): number {
  return entries.reduce((sum, entry) => sum + entry.data.length, 0);
}

function parcelOf(m: Message): Parcel {
  return {
    to: m.to,
    type: messageName(m.type),
    text: messageText(m),
    isLocal: false,
    deliver: ({ raft }) => raft.step(m),
  };
}

/** What the append thread sends out afterwards. The core takes its own part in one call, with the first of it. */
function answersTo(id: number, append: StorageAppend): Parcel[] {
  const texts = append.own.map(messageText);
  const types = append.own.map((m) => messageName(m.type));
  const ack = appendAckText(id, append);
  if (ack !== null) {
    texts.push(ack);
    types.push("MsgStorageAppendResp");
  }
  const own = texts.map((text, i): Parcel => ({
    to: id,
    type: types[i] as string,
    text,
    isLocal: true,
    deliver: ({ raft }) => {
      if (i === 0) raft.appended(append);
      return true;
    },
  }));
  const others = append.responses.map(parcelOf);
  return ack === null ? [...own, ...others] : [...own.slice(0, -1), ...others, ...own.slice(-1)];
}

export class Environment {
  readonly #replicas: Replica[] = [];
  #parcels: Parcel[] = [];
  #quiet = false;
  readonly #send = (parcel: Parcel): void => {
    this.#parcels.push(parcel);
  };

  /** @returns what the command says, without a logger's lines */
  handle(directive: Directive): string[] {
    const level = directive.named.get("log-level")?.[0];
    const before = this.#quiet;
    if (level !== undefined) this.#quiet = level === "none";
    const output = this.#run(directive);
    const quiet = this.#quiet;
    if (level !== undefined) this.#quiet = before;
    return quiet ? [] : output;
  }

  #run(directive: Directive): string[] {
    const { command, words, named } = directive;
    switch (command) {
      case "log-level":
        this.#quiet = words[0] === "none";
        return [];
      case "add-nodes":
        return this.#addNodes(directive);
      case "campaign":
        this.#replica(words[0]).raft.campaign();
        return [];
      case "propose":
        return this.#propose(words[0], EntryKind.normal, encoder.encode(words[1] ?? ""));
      case "propose-conf-change":
        return this.#proposeConfChange(directive);
      case "process-ready":
        return this.#forEach(words, "handling Ready", (replica) => replica.handleReady(this.#send));
      case "process-append-thread":
        return this.#forEach(words, "processing append thread", (replica) =>
          replica.processAppend(this.#send),
        );
      case "process-apply-thread":
        return this.#forEach(words, "processing apply thread", (replica) =>
          replica.processApply(this.#send),
        );
      case "deliver-msgs": {
        const output = [
          ...words.map((word) => ({ id: Number(word), drop: false })),
          ...(named.get("drop") ?? []).map((word) => ({ id: Number(word), drop: true })),
        ].flatMap(({ id, drop }) => this.#deliver(id, drop, named.get("type")?.[0] ?? null));
        return output.length === 0 ? ["no messages"] : output;
      }
      case "stabilize":
        return this.#stabilize(
          words.length === 0 ? this.#replicas : words.map((word) => this.#replica(word)),
        );
      case "tick-election":
        for (let i = 0; i < ELECTION_TICKS; i++) this.#replica(words[0]).raft.tick();
        return [];
      case "tick-heartbeat":
        for (let i = 0; i < HEARTBEAT_TICKS; i++) this.#replica(words[0]).raft.tick();
        return [];
      case "set-randomized-election-timeout": {
        const replica = this.#replica(words[0]);
        replica.nextRandom = Number(named.get("timeout")?.[0]) - ELECTION_TICKS;
        replica.raft.redrawElectionTimeout();
        replica.nextRandom = null;
        return [];
      }
      case "compact": {
        const replica = this.#replica(words[0]);
        replica.log.compact(Number(words[1]));
        return logText(replica);
      }
      case "raft-log":
        return logText(this.#replica(words[0]));
      case "raft-state":
        return this.#replicas.map(({ id, raft }) => {
          const { voters, votersOutgoing } = raft.confState;
          const isVoter = voters.includes(id) || votersOutgoing.includes(id);
          return (
            `${id}: ${ROLE_NAMES[raft.role]} (${isVoter ? "Voter" : "Non-Voter"}) ` +
            `Term:${raft.term} Lead:${raft.lead}`
          );
        });
      case "status":
        return this.#replica(words[0]).raft.status().progress.map(progressText);
      case "send-snapshot":
        return this.#sendSnapshot(this.#replica(words[0]), Number(words[1]));
      case "transfer-leadership":
        this.#replica(named.get("from")?.[0]).raft.transferLeadership(Number(named.get("to")?.[0]));
        return [];
      case "forget-leader":
        this.#replica(words[0]).raft.forgetLeader();
        return [];
      case "report-unreachable":
        this.#replica(words[0]).raft.reportUnreachable(Number(words[1]));
        return [];
      default:
        throw new Error(`Unknown command in a transcript: ${command}`);
    }
  }

  #replica(word: string | undefined): Replica {
    const replica = this.#replicas[Number(word) - 1];
    if (replica === undefined) throw new Error(`No such replica: ${word}`);
    return replica;
  }

  #addNodes(directive: Directive): string[] {
    const { words, named } = directive;
    const ids = (name: string): number[] => (named.get(name) ?? []).map(Number);
    const index = Number(named.get("index")?.[0] ?? 0);
    for (let i = 0; i < Number(words[0]); i++) {
      const confState: ConfState = {
        ...emptyConfState(),
        voters: ids("voters"),
        learners: ids("learners"),
      };
      const log = new MemoryLog(confState);
      if (index > 0) log.install({ index, term: 1, confState });
      this.#replicas.push(new Replica(this.#replicas.length + 1, log, directive));
    }
    return [];
  }

  #propose(word: string | undefined, kind: EntryKind, data: Uint8Array): string[] {
    return this.#replica(word).propose([{ kind, data }]) ? [] : ["raft proposal dropped"];
  }

  #proposeConfChange({ words, named, input }: Directive): string[] {
    const transition = named.get("transition")?.[0] ?? "auto";
    const change: ConfChange = {
      transition: TRANSITIONS[transition as keyof typeof TRANSITIONS],
      changes: parseChanges(
        input.flatMap((line) => line.split(/\s+/)).filter((word) => word !== ""),
      ),
      context: new Uint8Array(0),
    };
    return this.#propose(words[0], EntryKind.confChange, encodeConfChange(change));
  }

  #forEach(
    words: readonly string[],
    header: string,
    act: (replica: Replica) => string[],
  ): string[] {
    return words.flatMap((word) => {
      const output = act(this.#replica(word));
      return words.length > 1 ? [`> ${word} ${header}`, ...output] : output;
    });
  }

  #take(to: number, drop: boolean, type: string | null): Parcel[] {
    const matches = (parcel: Parcel): boolean =>
      parcel.to === to && !(drop && parcel.isLocal) && (type === null || parcel.type === type);
    const taken = this.#parcels.filter(matches);
    this.#parcels = this.#parcels.filter((parcel) => !matches(parcel));
    return taken;
  }

  #deliver(to: number, drop: boolean, type: string | null): string[] {
    return this.#take(to, drop, type).flatMap((parcel) => {
      if (drop) return [`dropped: ${parcel.text}`];
      return parcel.deliver(this.#replica(String(to)))
        ? [parcel.text]
        : [parcel.text, "raft: cannot step as peer not found"];
    });
  }

  #stabilize(replicas: readonly Replica[]): string[] {
    const output: string[] = [];
    for (let round = 0; ; round++) {
      if (round > 10_000) throw new Error("The cluster does not come to rest");
      const before = output.length;
      for (const replica of replicas) {
        if (!replica.hasReady) continue;
        output.push(`> ${replica.id} handling Ready`, ...replica.handleReady(this.#send));
      }
      for (const { id } of replicas) {
        if (!this.#parcels.some((parcel) => parcel.to === id)) continue;
        output.push(`> ${id} receiving messages`, ...this.#deliver(id, false, null));
      }
      for (const replica of replicas) {
        if (replica.appendWork.length === 0) continue;
        output.push(`> ${replica.id} processing append thread`);
        while (replica.appendWork.length > 0) output.push(...replica.processAppend(this.#send));
      }
      for (const replica of replicas) {
        if (replica.applyWork.length === 0) continue;
        output.push(`> ${replica.id} processing apply thread`);
        while (replica.applyWork.length > 0) output.push(...replica.processApply(this.#send));
      }
      if (output.length === before) return output;
    }
  }

  #sendSnapshot(replica: Replica, to: number): string[] {
    const m = message("installSnapshot", {
      from: replica.id,
      to,
      term: replica.raft.term,
      snapshot: replica.log.snapshot(),
    });
    this.#send(parcelOf(m));
    return [messageText(m)];
  }
}

function logText({ log }: Replica): string[] {
  return log.kept.length === 0
    ? [`log is empty: first index=${log.firstIndex()}, last index=${log.lastIndex()}`]
    : log.kept.map(entryText);
}
