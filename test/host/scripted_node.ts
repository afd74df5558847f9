/**
 * One real NodeHost, with a real journal, whose whole surroundings are played by the test: the other nodes' messages,
 * the disk, the environments and the time. Nothing happens by itself; a stalled disk stays stalled, and a crash leaves
 * what the disk had. The node is n1 of n1, n2, n3, so in the system's group it is replica 1 of 1, 2, 3.
 */
import type { Problem } from "../../src/api/problems.ts";
import {
  FrameWriter,
  frameItems,
  ItemKind,
  parseRaftItem,
  raftItem,
} from "../../src/host/codec.ts";
import { NodeHost, type Tuning } from "../../src/host/node_host.ts";
import type { Environment, Environments, FrameHandler, Lane, Log } from "../../src/host/ports.ts";
import type { Replica } from "../../src/host/replica.ts";
import type { Command, Outcome } from "../../src/machine/command.ts";
import { EntryKind, type Entry, type Message, type MessageType } from "../../src/raft/types.ts";
import { NodeJournal } from "../../src/store/journal.ts";
import { message } from "../raft/helpers.ts";
import { SimDisk, type Survival } from "../store/sim_disk.ts";
import { committedBy, MemoryEnvironment, type PreparedChange } from "./memory_environment.ts";

const STEP_MS = 5;

interface Timer {
  readonly ms: number;
  readonly run: () => void;
  due: number;
  active: boolean;
}

interface Item {
  readonly to: string;
  readonly lane: Lane;
  readonly kind: number;
  readonly item: Uint8Array;
}

export const system: Command["actor"] = { kind: "system", keyId: "test" };

export function command(action: Command["action"], idempotency?: string): Command {
  return {
    at: 1_700_000_000_000,
    actor: system,
    action,
    ...(idempotency === undefined
      ? {}
      : { idempotency: { key: idempotency, fingerprint: idempotency } }),
  };
}

export function createTenant(tenant: string, nodes: readonly string[] = ["n1", "n2", "n3"]) {
  return {
    op: "directory.create",
    tenant,
    quotas: {},
    nodes: [...nodes],
    adminKey: { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) },
  } as const satisfies Command["action"];
}

/** What the system's group begins with when somebody else leads it: the leader's entry, and the tenant's beginning. */
export const beginning: Command["action"] = {
  op: "tenant.init",
  tenant: "_system",
  quotas: {},
  keys: [],
};

export function entryOf(index: number, term: number, of: Command["action"] | null): Entry {
  const text = of === null ? "" : JSON.stringify(command(of));
  return { index, term, kind: EntryKind.normal, data: new TextEncoder().encode(text) };
}

export class ScriptedNode {
  readonly disk = new SimDisk({ seed: 1 });
  readonly stored = new Map<string, MemoryEnvironment>();
  /** While set, writes stay under way until they are lifted, or lost in a crash. */
  diskStalled = false;
  commitsStalled = false;
  /** While set, nobody knows whether a new environment would be there after a loss of power. */
  namesStalled = false;
  /** Fails the next commit of an environment. */
  commitError: Error | null = null;
  fatal: Error[] = [];
  logged: string[] = [];
  now = 1_000;
  boot = 0;
  host: NodeHost | null = null;
  readonly #tuning: Partial<Tuning>;
  readonly #segmentBytes: number | undefined;
  #handler: FrameHandler | null = null;
  #deferred: (() => void)[] = [];
  #timers: Timer[] = [];
  #commits: { apply: () => void; done: () => void }[] = [];
  #sent: Item[] = [];

  constructor(tuning: Partial<Tuning> = {}, segmentBytes?: number) {
    this.#tuning = tuning;
    this.#segmentBytes = segmentBytes;
  }

  // --- life ----------------------------------------------------------------------------------------------------------

  async start(): Promise<void> {
    this.boot += 1;
    const { boot } = this;
    const fatal = (error: Error): void => void (this.boot === boot && this.fatal.push(error));
    const log = (_fields: object, text: string): void => void this.logged.push(text);
    const logs: Log = { debug: log, info: log, warn: log, error: log };
    const host = new NodeHost({
      cluster: "test",
      node: "n1",
      boot,
      version: "test",
      peers: ["n1", "n2", "n3"],
      transportKind: "loopback",
      journal: new NodeJournal({
        disk: this.disk,
        salt: boot,
        onFatal: fatal,
        ...(this.#segmentBytes !== undefined && { segmentBytes: this.#segmentBytes }),
      }),
      environments: this.#environments(),
      transport: {
        connected: true,
        start: async (handler) => {
          if (this.boot === boot) this.#handler = handler;
        },
        close: async () => {},
        send: (to, lane, bytes) => {
          if (this.boot !== boot) return false;
          for (const { kind, item } of frameItems(bytes.slice()))
            this.#sent.push({ to, lane, kind, item });
          return true;
        },
      },
      clock: {
        monotonicMs: () => this.now,
        wallMs: () => 1_700_000_000_000 + this.now,
        defer: (run) => void (this.boot === boot && this.#deferred.push(run)),
        every: (ms, run) => {
          const timer: Timer = { ms, run, due: this.now + ms, active: true };
          this.#timers.push(timer);
          return () => {
            timer.active = false;
          };
        },
      },
      seed: boot,
      tuning: this.#tuning,
      log: logs,
      onFatal: fatal,
    });
    host.registered = true;
    this.host = host;
    const started = host.start();
    // The journal is read, one thing of the disk after the other.
    const reading = ["read", "turn", "truncate"];
    while (reading.includes(this.disk.operations[0] ?? "")) this.disk.step(0);
    await started;
    this.turn();
  }

  /** The process and the power go. */
  crash(survival: Survival | null = null, commitsSurvive = false): void {
    this.host = null;
    this.#handler = null;
    this.#deferred = [];
    this.#timers = [];
    this.#sent = [];
    if (commitsSurvive) for (const { apply } of this.#commits) apply();
    this.#commits = [];
    for (const [name, { isKept }] of this.stored) if (!isKept) this.stored.delete(name);
    this.disk.crash(survival);
  }

  async restart(survival: Survival | null = null, commitsSurvive = false): Promise<void> {
    this.crash(survival, commitsSurvive);
    this.diskStalled = false;
    this.commitsStalled = false;
    await this.start();
  }

  /** Names of new environments are durable now, or that failed. */
  keepNames(error: Error | null = null): void {
    this.namesStalled = false;
    for (const environment of this.stored.values()) environment.keep(error);
    this.turn();
  }

  #environments(): Environments {
    return {
      cap: 100,
      open_count: 0,
      exists: (name) => this.stored.has(name),
      names: () => [...this.stored.keys()],
      remove: async (name) => void this.stored.delete(name),
      open: (name): Environment => {
        const isNew = !this.stored.has(name);
        const stored = this.stored.get(name) ?? new MemoryEnvironment();
        this.stored.set(name, stored);
        if (isNew && this.namesStalled) stored.keepLater();
        const commit = (prepared: PreparedChange, done: (error: Error | null) => void): void => {
          const error = this.commitError;
          this.commitError = null;
          this.#commits.push({
            apply: () => {
              if (error === null) stored.write(prepared);
            },
            done: () => done(error),
          });
        };
        return committedBy(stored, commit);
      },
    };
  }

  // --- time ----------------------------------------------------------------------------------------------------------

  /** Everything that can happen without time passing. */
  turn(): void {
    for (;;) {
      const run = this.#deferred.shift();
      if (run !== undefined) run();
      else if (!this.diskStalled && this.disk.pending > 0) this.disk.step(0);
      else if (!this.commitsStalled && this.#commits.length > 0) {
        const [commit] = this.#commits.splice(0, 1);
        commit?.apply();
        commit?.done();
      } else return;
    }
  }

  /** Lets time pass; `alive` nodes are heard meanwhile. */
  pass(ms: number, alive: readonly string[] = ["n2", "n3"]): void {
    for (const end = this.now + ms; this.now < end;) {
      this.now += STEP_MS;
      if (this.now % 100 === 0) this.hear(...alive);
      for (const timer of this.#timers) {
        if (!timer.active || timer.due > this.now) continue;
        timer.due = this.now + timer.ms;
        timer.run();
      }
      this.turn();
    }
  }

  /** The disk, and the environments, do what they were asked to. */
  written(): void {
    this.diskStalled = false;
    this.commitsStalled = false;
    this.turn();
  }

  /** Commits under way can be read already, though nobody was told that they are durable. */
  commitsShow(): void {
    for (const commit of this.#commits) {
      commit.apply();
      commit.apply = () => {};
    }
  }

  // --- the others ----------------------------------------------------------------------------------------------------

  hear(...nodes: readonly string[]): void {
    for (const node of nodes) this.frame(node, "control", ItemKind.heartbeat, new Uint8Array(0));
  }

  frame(from: string, lane: Lane, kind: number, item: Uint8Array, boot = 1): void {
    const frame = new FrameWriter();
    frame.add(kind, item);
    this.#handler?.(from, boot, lane, frame.take().slice());
    this.turn();
  }

  /** A message of Raft from the node of that replica. @returns what was said since */
  step(
    type: keyof typeof MessageType,
    fields: Partial<Message>,
    wrong: { from?: string; group?: number; incarnation?: number } = {},
  ): Message[] {
    const m = message(type, { to: 1, ...fields });
    const item = raftItem(wrong.group ?? 1, wrong.incarnation ?? 1, m);
    this.frame(wrong.from ?? `n${m.from}`, "append", ItemKind.raft, item);
    return this.take(wrong.group);
  }

  /** Messages of a group that left since the last call. */
  take(group = 1): Message[] {
    return this.takeItems(ItemKind.raft, ({ item }) => parseRaftItem(item).group === group).map(
      ({ item }) => parseRaftItem(item).message,
    );
  }

  /** Items of another kind that left since the last call. */
  takeItems(kind: number, wanted: (item: Item) => boolean = () => true): Item[] {
    const items = this.#sent.filter((item) => item.kind === kind && wanted(item));
    this.#sent = this.#sent.filter((item) => !items.includes(item));
    return items;
  }

  // --- this node -----------------------------------------------------------------------------------------------------

  replica(group = 1): Replica {
    for (const replica of this.host?.replicas() ?? []) if (replica.group === group) return replica;
    throw new Error(`No replica of group ${group} is awake`);
  }

  /** Leads the system's group in its next term, by the votes and acknowledgements of n2. */
  elect(): void {
    const { raft } = this.replica();
    raft.campaign();
    this.pass(100);
    const term = raft.term + 1;
    this.step("preVoteResponse", { from: 2, term });
    this.step("requestVoteResponse", { from: 2, term });
    this.acknowledge(2);
  }

  /** That node has everything that this leader has in its log. */
  acknowledge(from: number, group = 1): void {
    const { raft } = this.replica(group);
    for (let index = 0; index < raft.lastIndex;) {
      index = raft.lastIndex;
      const fields = { from, term: raft.term, index, commit: index };
      this.step("appendEntriesResponse", fields, { group });
      this.pass(100);
    }
  }

  /** Follows n2 in this term, with these commands applied. @returns the last index */
  follow(term: number, actions: readonly Command["action"][]): number {
    const entries = [null, ...actions].map((action, at) => entryOf(at + 1, term, action));
    this.hear("n2", "n3");
    this.step("appendEntries", { from: 2, term, entries, commit: entries.length });
    return entries.length;
  }

  propose(action: Command["action"], idempotency?: string): { result: ProposeResult | null } {
    return this.proposeTo("_system", command(action, idempotency));
  }

  proposeTo(tenant: string, of: Command): { result: ProposeResult | null } {
    const answer: { result: ProposeResult | null } = { result: null };
    this.host?.requests.propose(tenant, of, 3_000, (error, outcome) => {
      answer.result = error ?? (outcome as Outcome);
    });
    this.turn();
    return answer;
  }
}

export type ProposeResult = Problem | Outcome;

/** How a tenant's group is spoken to on this node. */
export function tenantOn(node: ScriptedNode, tenant: string) {
  const row = node.host?.directory.tenant(tenant);
  if (row === undefined) throw new Error(`No tenant ${tenant} here`);
  const { group, incarnation, placement } = row;
  const idOf = (name: string): number =>
    placement.replicas.find((each) => each.node === name)?.id ?? 0;
  return { group, incarnation, to: idOf("n1"), idOf };
}
