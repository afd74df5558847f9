/** Replicas for tests: what they send is kept for inspection, what they write is durable when the test says so. */
import {
  decodeConfChange,
  emptyConfState,
  encodeConfChange,
  newReady,
  Raft,
} from "../../src/raft/raft.ts";
import {
  ChangeKind,
  EntryKind,
  emptyMessage,
  MessageType,
  type ConfChange,
  type ConfState,
  type Entry,
  type HardState,
  type Message,
  type RaftConfig,
  type ReadState,
  type StorageAppend,
} from "../../src/raft/types.ts";
import { MemoryLog } from "./memory_log.ts";

export interface Setup {
  readonly id?: number;
  readonly voters?: readonly number[];
  readonly learners?: readonly number[];
  readonly hard?: Partial<HardState>;
  /** Terms of the entries 1, 2, … */
  readonly terms?: readonly number[];
  readonly applied?: number;
  readonly config?: Partial<RaftConfig>;
}

export function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

export function entry(index: number, term: number, text = `${term}.${index}`): Entry {
  return { index, term, kind: EntryKind.normal, data: bytes(text) };
}

export function change(
  transition: ConfChange["transition"],
  ...changes: [keyof typeof ChangeKind, number][]
): ConfChange {
  return {
    transition,
    changes: changes.map(([kind, id]) => ({ kind: ChangeKind[kind], id })),
    context: new Uint8Array(0),
  };
}

export function confEntry(index: number, term: number, of: ConfChange): Entry {
  return { index, term, kind: EntryKind.confChange, data: encodeConfChange(of) };
}

export function message(type: keyof typeof MessageType, fields: Partial<Message>): Message {
  return { ...emptyMessage(MessageType[type], 1, 2, 1), ...fields };
}

export class Peer {
  readonly id: number;
  readonly log: MemoryLog;
  readonly raft: Raft;
  readonly #ready = newReady();
  /** Sent at once, and sent after durability. */
  sent: Message[] = [];
  appends: StorageAppend[] = [];
  applied: Entry[] = [];
  reads: ReadState[] = [];

  constructor(setup: Setup = {}) {
    this.id = setup.id ?? 1;
    const conf: ConfState = {
      ...emptyConfState(),
      voters: setup.voters ?? [1, 2, 3],
      learners: setup.learners ?? [],
    };
    this.log = new MemoryLog(conf);
    this.log.kept = (setup.terms ?? []).map((term, i) => entry(i + 1, term));
    this.log.hard = { term: setup.terms?.at(-1) ?? 0, vote: 0, commit: 0, ...setup.hard };
    this.raft = new Raft({
      id: this.id,
      log: this.log,
      applied: setup.applied ?? 0,
      electionTicks: 10,
      heartbeatTicks: 1,
      random: () => 0,
      preVote: false,
      checkQuorum: false,
      stepDownOnRemoval: true,
      readOnly: "safe",
      messageBytesMax: Infinity,
      inflightMessagesMax: 256,
      inflightBytesMax: Infinity,
      applyingBytesMax: Infinity,
      uncommittedBytesMax: Infinity,
      supports: null,
      ...setup.config,
    });
  }

  /** One turn: what is to be written waits in `appends`, what is committed is applied. */
  turn(): void {
    while (this.raft.hasReady()) {
      this.raft.ready(this.#ready);
      this.sent.push(...this.#ready.messages);
      if (this.#ready.append !== null) this.appends.push(this.#ready.append);
      this.reads.push(...this.#ready.reads);
      for (const each of this.#ready.committed) {
        this.applied.push(each);
        if (each.kind === EntryKind.confChange) {
          this.log.conf = this.raft.applyConfChange(decodeConfChange(each.data));
        }
        this.log.latest = { index: each.index, term: each.term, confState: this.raft.confState };
        this.raft.applied(each.index, each.data.length);
      }
    }
  }

  /** The oldest write is durable now. */
  written(): void {
    const append = this.appends.shift();
    if (append === undefined) return;
    this.log.write(append);
    this.sent.push(...append.responses);
    this.raft.appended(append);
  }

  /** Turns and writes until nothing is left to do. */
  settle(): void {
    this.turn();
    while (this.appends.length > 0) {
      this.written();
      this.turn();
    }
  }

  /** What was sent since the last call, after settling. */
  take(): Message[] {
    this.settle();
    return this.sent.splice(0);
  }

  step(type: keyof typeof MessageType, fields: Partial<Message>): Message[] {
    this.raft.step(message(type, { to: this.id, ...fields }));
    return this.take();
  }

  tick(count: number): Message[] {
    for (let i = 0; i < count; i++) this.raft.tick();
    return this.take();
  }

  /** Elected by the votes of everybody else. */
  elect(): Message[] {
    this.raft.campaign();
    this.take();
    const { voters } = this.raft.confState;
    for (const from of voters) {
      if (from !== this.id) {
        this.raft.step(message("requestVoteResponse", { to: this.id, from, term: this.raft.term }));
      }
    }
    return this.take();
  }
}

/** Carries messages between peers until nobody says anything; `lost` drops some. */
export function exchange(
  peers: readonly Peer[],
  lost: (m: Message) => boolean = () => false,
): void {
  for (let round = 0; round < 1_000; round++) {
    const messages = peers.flatMap((peer) => peer.take());
    if (messages.length === 0) return;
    for (const m of messages) {
      const to = peers.find((peer) => peer.id === m.to);
      if (to !== undefined && !lost(m)) to.raft.step(m);
    }
  }
  throw new Error("Peers talk without end");
}

export function cluster(count: number, setup: Setup = {}): Peer[] {
  const voters = Array.from({ length: count }, (_, i) => i + 1);
  return voters.map((id) => new Peer({ voters, ...setup, id }));
}

export function typesOf(messages: readonly Message[]): string[] {
  return messages.map(
    (m) => `${m.to}:${Object.entries(MessageType).find(([, type]) => type === m.type)?.[0] ?? "?"}`,
  );
}
