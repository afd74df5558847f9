/**
 * A few replicas in memory, and a network that loses, repeats and reorders. Writes become durable when the seed says so;
 * a crash takes everything that was not. After every step it is checked that Raft's safety properties hold (paper §5.2,
 * figure 3), and that what was read is not older than what was known to be committed when the read was asked for.
 */
import { assert } from "../../src/lib/assert.ts";
import { ByteReader, ByteWriter } from "../../src/lib/bytes.ts";
import { Prng } from "../../src/lib/prng.ts";
import { decodeMessage, encodeMessage } from "../../src/raft/codec.ts";
import { decodeConfChange, emptyConfState, newReady, Raft } from "../../src/raft/raft.ts";
import {
  ChangeKind,
  EntryKind,
  MessageType,
  type ConfState,
  type Entry,
  type Message,
  type RaftConfig,
  type Ready,
  type SnapshotMeta,
  type StorageAppend,
} from "../../src/raft/types.ts";
import { MemoryLog } from "./memory_log.ts";

export interface NetworkOptions {
  readonly seed: number;
  readonly replicas: number;
  /** Liveness from outside, and replicas are ticked only while they are not idle. */
  readonly supports: boolean;
  readonly changes: boolean;
  readonly config?: Partial<RaftConfig>;
  /** Leases hold only among those who do not forget what they promised. */
  readonly noCrashes?: boolean;
}

/** What is applied, and up to where. */
interface State {
  readonly index: number;
  readonly term: number;
  readonly conf: ConfState;
  readonly values: readonly string[];
}

interface Packet {
  readonly from: number;
  readonly to: number;
  readonly isSnapshot: boolean;
  readonly bytes: Uint8Array;
}

interface Node {
  readonly id: number;
  readonly log: MemoryLog;
  readonly ready: Ready;
  raft: Raft | null;
  state: State;
  /** What a restart begins with. */
  saved: State;
  appends: StorageAppend[];
  /** Seen commit and term, which never go back while it runs; the term not even by a crash. */
  term: number;
  commit: number;
  reads: Map<number, number>;
  /** Ticks since it went up or down, for those who notice late. */
  changedAt: number;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const ELECTION_TICKS = 10;
/** Ticks until the others notice that a node went or came. */
const NOTICE_TICKS = 8;

type Action =
  | "deliver"
  | "write"
  | "tick"
  | "propose"
  | "read"
  | "crash"
  | "revive"
  | "save"
  | "transfer"
  | "campaign"
  | "forget"
  | "unreachable"
  | "change"
  | "cut"
  | "isolate"
  | "join";

export class Network {
  readonly #options: NetworkOptions;
  readonly #random: Prng;
  readonly #nodes: Node[] = [];
  readonly #leaders = new Map<number, number>();
  /** Every entry that anybody applied, by index: nobody may ever apply another one there. */
  readonly #committed: Entry[] = [];
  /** Snapshots by index: the state of a replicated machine depends on nothing else. */
  readonly #states = new Map<number, State>();
  readonly #weights: readonly (readonly [Action, number])[];
  #weightSum = 0;
  #packets: Packet[] = [];
  #proposals = 0;
  #reads = 0;
  #now = 0;
  #healed = false;
  /** Pairs that do not reach each other. */
  readonly #cut = new Set<string>();
  readonly stats = { elections: 0, applied: 0, reads: 0, snapshots: 0, crashes: 0, changes: 0 };

  constructor(options: NetworkOptions) {
    this.#options = options;
    this.#random = new Prng(options.seed);
    // Every seed has a character: slow disks, many crashes, long partitions.
    const random = this.#random;
    this.#weights = [
      ["deliver", 500],
      ["write", random.pick([40, 160, 300])],
      ["tick", random.pick([80, 140, 300])],
      ["propose", 100],
      ["read", 40],
      ["crash", options.noCrashes === true ? 0 : random.pick([4, 10, 40])],
      ["revive", 12],
      ["save", 8],
      ["transfer", random.pick([1, 8])],
      ["campaign", random.pick([1, 10])],
      ["forget", 3],
      ["unreachable", 4],
      ["change", 8],
      ["cut", 4],
      ["isolate", random.pick([1, 6])],
      ["join", random.pick([3, 10])],
    ];
    for (const [, weight] of this.#weights) this.#weightSum += weight;
    const ids = Array.from({ length: options.replicas }, (_, i) => i + 1);
    // With changes one begins outside.
    const voters = options.changes ? ids.slice(0, -1) : ids;
    const conf: ConfState = { ...emptyConfState(), voters };
    for (const id of ids) {
      const state: State = { index: 0, term: 0, conf, values: [] };
      const node: Node = {
        id,
        log: new MemoryLog(conf),
        ready: newReady(),
        raft: null,
        state,
        saved: state,
        appends: [],
        term: 0,
        commit: 0,
        reads: new Map(),
        changedAt: -NOTICE_TICKS,
      };
      this.#nodes.push(node);
      this.#start(node);
    }
  }

  #start(node: Node): void {
    node.log.conf = node.saved.conf;
    const { index, term, conf } = node.saved;
    node.log.latest = index > 0 ? { index, term, confState: conf } : null;
    node.state = node.saved;
    node.appends = [];
    node.reads = new Map();
    node.commit = 0;
    const random = this.#random.fork();
    node.raft = new Raft({
      id: node.id,
      log: node.log,
      applied: node.saved.index,
      electionTicks: ELECTION_TICKS,
      heartbeatTicks: 1,
      random: (bound) => random.below(bound),
      preVote: true,
      checkQuorum: true,
      stepDownOnRemoval: true,
      readOnly: "safe",
      messageBytesMax: 64,
      inflightMessagesMax: 4,
      inflightBytesMax: 200,
      applyingBytesMax: 100,
      uncommittedBytesMax: 1_000,
      supports: this.#options.supports ? (id) => this.#supports(node.id, id) : null,
      ...this.#options.config,
    });
    // A term that was not durable yet was not promised to anybody.
    node.term = node.raft.term;
  }

  /** What the node of `viewer` says about the node of `id`: the truth, late. */
  #supports(viewer: number, id: number): boolean {
    const node = this.#node(id);
    if (this.#cut.has(`${viewer}-${id}`) || this.#cut.has(`${id}-${viewer}`)) return false;
    const noticed = this.#now - node.changedAt >= NOTICE_TICKS;
    return noticed ? node.raft !== null : node.raft === null || viewer % 2 === 0;
  }

  #node(id: number): Node {
    const node = this.#nodes[id - 1];
    assert(node !== undefined, "no such node");
    return node;
  }

  // --- chaos ---------------------------------------------------------------------------------------------------------

  run(steps: number): void {
    for (let i = 0; i < steps; i++) {
      this.#act();
      this.#check();
    }
  }

  #act(): void {
    const random = this.#random;
    const node = random.pick(this.#nodes);
    const raft = node.raft;
    switch (this.#pick()) {
      case "deliver":
        for (let i = 0; i < this.#nodes.length; i++) this.#deliverOne();
        break;
      case "write":
        for (const each of this.#nodes) if (random.chance(0.7)) this.#completeAppend(each);
        break;
      case "tick":
        this.#tickAll();
        break;
      case "propose":
        this.#propose(node);
        break;
      case "read":
        // Whoever believes to lead is the one who can be wrong.
        for (const each of this.#nodes) if (each.raft?.isLeader === true) this.#read(each);
        this.#read(node);
        break;
      case "crash":
        this.#crash(node);
        break;
      case "revive":
        this.#revive(node);
        break;
      case "save":
        this.#save(node);
        break;
      case "transfer":
        raft?.transferLeadership(1 + random.below(this.#nodes.length));
        break;
      case "campaign":
        raft?.campaign();
        break;
      case "forget":
        raft?.forgetLeader();
        break;
      case "unreachable":
        raft?.reportUnreachable(1 + random.below(this.#nodes.length));
        break;
      case "change":
        this.#changeMembers(node);
        break;
      case "cut":
        this.#cutPair();
        break;
      case "isolate":
        for (const { id } of this.#nodes) {
          this.#cut.add(`${id}-${node.id}`);
          this.#cut.add(`${node.id}-${id}`);
        }
        break;
      case "join":
        this.#cut.clear();
        break;
    }
    for (const each of this.#nodes) this.#drain(each);
  }

  #pick(): Action {
    let dice = this.#random.below(this.#weightSum);
    for (const [action, weight] of this.#weights) {
      dice -= weight;
      if (dice < 0) return action;
    }
    return "tick";
  }

  #cutPair(): void {
    const { length } = this.#nodes;
    this.#cut.add(`${1 + this.#random.below(length)}-${1 + this.#random.below(length)}`);
  }

  #deliverOne(): void {
    if (this.#packets.length === 0) return;
    // Mostly in order, sometimes not.
    const at = this.#random.chance(0.7) ? 0 : this.#random.below(this.#packets.length);
    const [packet] = this.#packets.splice(at, 1);
    if (packet === undefined) return;
    if (this.#random.chance(0.1)) this.#packets.push(packet);
    if (this.#random.chance(0.1)) this.#ended(packet, false);
    else this.#deliver(packet);
  }

  /** Whoever sends a snapshot is told how that ended. */
  #ended({ from, to, isSnapshot }: Packet, ok: boolean): void {
    if (isSnapshot) this.#node(from).raft?.reportSnapshot(to, ok);
  }

  #deliver(packet: Packet): void {
    const { to, bytes } = packet;
    const { raft } = this.#node(to);
    this.#ended(packet, raft !== null);
    if (raft === null) return;
    const reader = new ByteReader(bytes);
    const m = decodeMessage(reader);
    reader.end();
    raft.step(m);
  }

  #tickAll(): void {
    this.#now += 1;
    for (const { raft } of this.#nodes) {
      if (raft !== null && !(this.#options.supports && raft.idle)) raft.tick();
    }
  }

  #propose({ id, raft }: Node): void {
    raft?.propose(encoder.encode(`${id}:${++this.#proposals}`));
  }

  #read({ raft, reads }: Node): void {
    const context = ++this.#reads;
    if (raft?.readIndex(context) === true) reads.set(context, this.#committed.length);
  }

  #changeMembers({ raft }: Node): void {
    if (!this.#options.changes || raft === null) return;
    const random = this.#random;
    const count = random.between(0, 3);
    const changes = Array.from({ length: count }, () => ({
      kind: random.pick([
        ChangeKind.addVoter,
        ChangeKind.addVoter,
        ChangeKind.removeNode,
        ChangeKind.addLearner,
      ]),
      id: random.between(1, this.#nodes.length),
    }));
    const transition = random.pick(["auto", "jointImplicit", "jointExplicit"] as const);
    if (fits(raft.confState, changes, this.#nodes.length)) {
      raft.proposeConfChange({ transition, changes, context: new Uint8Array(0) });
    }
  }

  #crash(node: Node): void {
    const down = this.#nodes.filter(({ raft }) => raft === null).length;
    if (node.raft === null || down >= Math.floor(this.#nodes.length / 2)) return;
    this.stats.crashes += 1;
    // What was being written may be durable and not acknowledged; the rest is gone.
    const survive = this.#random.below(node.appends.length + 1);
    for (const append of node.appends.slice(0, survive)) this.#write(node, append);
    node.appends = [];
    node.raft = null;
    node.changedAt = this.#now;
    if (this.#random.chance(0.5)) this.#revive(node);
  }

  #revive(node: Node): void {
    if (node.raft !== null) return;
    this.#start(node);
    node.changedAt = this.#now;
  }

  /** State goes to disk; then the log before it is not needed, or only a little of it. */
  #save(node: Node): void {
    if (node.raft === null || node.appends.some(({ snapshot }) => snapshot !== null)) return;
    node.saved = node.state;
    node.log.compact(Math.min(node.state.index, node.log.lastIndex()) - this.#random.below(3));
  }

  #write(node: Node, append: StorageAppend): void {
    if (append.snapshot !== null) {
      const state = this.#states.get(append.snapshot.index);
      assert(state !== undefined, "a snapshot nobody took is installed");
      node.saved = state;
      this.stats.snapshots += 1;
    }
    const { hardState } = append;
    assert(hardState === null || hardState.term >= node.log.hard.term, "a durable term went back");
    node.log.write(append);
  }

  #completeAppend(node: Node): void {
    const append = node.appends.shift();
    if (append === undefined || node.raft === null) return;
    this.#write(node, append);
    if (append.snapshot !== null) node.state = node.saved;
    for (const m of append.responses) this.#send(m);
    node.raft.appended(append);
  }

  // --- what a host does ----------------------------------------------------------------------------------------------

  #drain(node: Node): void {
    const { ready } = node;
    for (let turn = 0; node.raft?.hasReady() === true; turn++) {
      assert(turn < 1_000, "a replica does not come to rest");
      const raft = node.raft;
      raft.ready(ready);
      for (const m of ready.messages) this.#send(m);
      if (ready.append !== null) node.appends.push(ready.append);
      for (const { index, context } of ready.reads) {
        const known = node.reads.get(context);
        assert(known !== undefined, "a read is answered that nobody asked for, or twice");
        node.reads.delete(context);
        assert(index >= known, `a read at ${index} missed what was applied before it: ${known}`);
        this.stats.reads += 1;
      }
      this.#apply(node, raft, ready.committed);
    }
  }

  #send(m: Message): void {
    if (m.type === MessageType.appendEntries) {
      assert(m.entries.length <= 64, "a message is too long");
    }
    const writer = new ByteWriter();
    encodeMessage(writer, m);
    const isSnapshot = m.type === MessageType.installSnapshot;
    const packet: Packet = { from: m.from, to: m.to, isSnapshot, bytes: writer.copy() };
    const congested = !this.#healed && this.#packets.length > 200;
    if (congested || this.#cut.has(`${m.from}-${m.to}`)) this.#ended(packet, false);
    else this.#packets.push(packet);
  }

  #apply(node: Node, raft: Raft, entries: readonly Entry[]): void {
    for (const entry of entries) {
      assert(entry.index === node.state.index + 1, "an entry is applied out of order");
      assert(
        node.log.term(entry.index) === entry.term,
        "an entry is applied that is not durable here",
      );
      const known = this.#committed[entry.index - 1];
      if (known === undefined) {
        assert(entry.index === this.#committed.length + 1, "entries are committed with a hole");
        this.#committed.push(entry);
        this.stats.applied += 1;
      } else {
        // State machine safety.
        assert(known.term === entry.term, `two entries are committed at ${entry.index}`);
        assert(decoder.decode(known.data) === decoder.decode(entry.data), "two data for an entry");
      }
      let conf = node.state.conf;
      if (entry.kind === EntryKind.confChange) {
        conf = raft.applyConfChange(decodeConfChange(entry.data));
        this.stats.changes += 1;
      }
      const value = entry.kind === EntryKind.normal ? decoder.decode(entry.data) : "";
      node.state = {
        index: entry.index,
        term: entry.term,
        conf,
        values: value === "" ? node.state.values : [...node.state.values, value],
      };
      const meta: SnapshotMeta = { index: entry.index, term: entry.term, confState: conf };
      node.log.latest = meta;
      if (!this.#states.has(entry.index)) this.#states.set(entry.index, node.state);
      raft.applied(entry.index, entry.data.length);
    }
  }

  // --- what must hold ------------------------------------------------------------------------------------------------

  #check(): void {
    for (const node of this.#nodes) {
      const { raft } = node;
      if (raft === null) continue;
      assert(raft.term >= node.term, "a term went back");
      assert(raft.commitIndex >= node.commit, "a commit index went back");
      assert(raft.appliedIndex <= raft.commitIndex, "applied beyond the commit index");
      assert(raft.commitIndex <= raft.lastIndex, "committed beyond the log");
      node.term = raft.term;
      node.commit = raft.commitIndex;
      if (!raft.isLeader) continue;
      const known = this.#leaders.get(raft.term);
      assert(known === undefined || known === node.id, `two leaders in term ${raft.term}`);
      if (known === undefined) {
        this.#leaders.set(raft.term, node.id);
        this.stats.elections += 1;
        // Leader completeness: what was committed before is in the log of every later leader.
        for (const entry of this.#committed) {
          const term = termOf(node, entry.index);
          assert(term === entry.term || term === null, `leader ${node.id} lacks ${entry.index}`);
        }
      }
    }
    this.#checkLogs();
  }

  /** Log matching, on the disks: the same index and term, then the same entries up to there. */
  #checkLogs(): void {
    const [a, b] = [this.#random.pick(this.#nodes).log, this.#random.pick(this.#nodes).log];
    let index = Math.min(a.lastIndex(), b.lastIndex());
    const low = Math.max(a.firstIndex(), b.firstIndex());
    while (index >= low && a.term(index) !== b.term(index)) index -= 1;
    for (; index >= low; index--) {
      assert(a.term(index) === b.term(index), `logs that agree later differ at ${index}`);
    }
  }

  // --- peace ---------------------------------------------------------------------------------------------------------

  /** Everybody is up and reaches everybody: there has to be a leader soon, and everybody has to get everything. */
  heal(): void {
    this.#healed = true;
    this.#cut.clear();
    for (const node of this.#nodes) this.#revive(node);
    this.#settle(() => this.#leader() !== null, "nobody is elected");
    let leader = this.#leader() as Node;
    // Whatever is joint has to be left before the end.
    const before = this.#proposals;
    this.#settle(() => {
      const now = this.#leader();
      if (now === null) return false;
      leader = now;
      const raft = leader.raft as Raft;
      if (raft.confState.votersOutgoing.length > 0) {
        raft.proposeConfChange({ transition: "auto", changes: [], context: new Uint8Array(0) });
      } else if (this.#proposals < before + 3) {
        this.#propose(leader);
      }
      this.#drain(leader);
      return this.#proposals >= before + 3 && this.#converged(leader);
    }, "logs do not converge");
    const last = leader.state.values;
    for (const id of members(leader.state.conf)) {
      const { values } = this.#node(id).state;
      assert(JSON.stringify(values) === JSON.stringify(last), "states differ");
    }
    if (this.#options.supports) {
      this.#settle(
        () => members(leader.state.conf).every((id) => this.#node(id).raft?.idle === true),
        "the group does not come to rest",
      );
    }
  }

  #leader(): Node | null {
    let leader: Node | null = null;
    for (const node of this.#nodes) {
      if (node.raft?.isLeader !== true) continue;
      if (leader === null || node.raft.term > (leader.raft as Raft).term) leader = node;
    }
    return leader;
  }

  #converged(leader: Node): boolean {
    const raft = leader.raft as Raft;
    if (raft.confState.votersOutgoing.length > 0 || raft.appliedIndex < raft.lastIndex)
      return false;
    return members(raft.confState).every((id) => {
      const peer = this.#node(id);
      return peer.raft?.appliedIndex === raft.lastIndex && peer.raft.lead === leader.id;
    });
  }

  #settle(done: () => boolean, otherwise: string): void {
    for (let round = 0; round < 400; round++) {
      if (done()) return;
      this.#tickAll();
      for (let hop = 0; hop < 40; hop++) {
        for (const node of this.#nodes) {
          this.#drain(node);
          while (node.appends.length > 0) this.#completeAppend(node);
          this.#drain(node);
        }
        const packets = this.#packets;
        this.#packets = [];
        for (const packet of packets) this.#deliver(packet);
        if (packets.length === 0) break;
      }
      this.#check();
    }
    const views = this.#nodes.map(({ id, raft, appends }) => {
      const { progress, ...rest } = raft?.status() ?? { progress: [] };
      return JSON.stringify({ id, idle: raft?.idle, appends: appends.length, ...rest, progress });
    });
    assert(false, `${otherwise}\n${views.join("\n")}`);
  }
}

/** Term of an entry on disk or on its way there; null where it is compacted, -1 where it is missing. */
function termOf({ log, appends }: Node, index: number): number | null {
  for (const { entries, snapshot } of appends.toReversed()) {
    const [first] = entries;
    if (first !== undefined && index >= first.index)
      return entries[index - first.index]?.term ?? -1;
    if (snapshot !== null) return index <= snapshot.index ? null : -1;
  }
  return index < log.firstIndex() ? null : log.term(index);
}

function members({ voters, votersOutgoing, learners }: ConfState): number[] {
  return [...new Set([...voters, ...votersOutgoing, ...learners])];
}

/**
 * Changes that a careful administrator would ask for: at least three voters are left. With two, a leader that is removed
 * and crashes before the other knows can leave that one waiting for its vote (DESIGN.md, what remains).
 */
function fits(
  conf: ConfState,
  changes: readonly { kind: ChangeKind; id: number }[],
  count: number,
): boolean {
  const voters = new Set(conf.voters);
  for (const { kind, id } of changes) {
    if (kind === ChangeKind.addVoter) voters.add(id);
    else voters.delete(id);
  }
  return voters.size >= Math.min(3, count - 1);
}
