/**
 * A cluster in one thread on virtual time: real NodeHosts (floors 0–2 whole), the real journal over a simulated disk,
 * environments and network made of memory. One seed decides everything; the same seed gives the same trace.
 *
 * Nothing of the host's below its promises is replaced: clock, disk, environments and transport are its own ports.
 */
import { Problem } from "../../src/api/problems.ts";
import { Prng } from "../../src/lib/prng.ts";
import { NodeHost, type Tuning } from "../../src/host/node_host.ts";
import type { Levels } from "../../src/host/versions.ts";
import type {
  Clock,
  DiskSpace,
  Environment,
  Environments,
  FrameHandler,
  Lane,
  Transport,
  Log,
} from "../../src/host/ports.ts";
import { NodeJournal, type JournalDisk } from "../../src/store/journal.ts";
import { committedBy, MemoryEnvironment, type PreparedChange } from "../host/memory_environment.ts";
import { MemoryQuarantine } from "../host/memory_quarantine.ts";
import { SimDisk } from "../store/sim_disk.ts";

/** What the network and the disks do; drawn from the seed, changed by the nemesis. */
export interface Weather {
  drop: number;
  duplicate: number;
  /** Milliseconds, drawn evenly. */
  delay: readonly [min: number, max: number];
  /** Chance of a frame being held back for `lateMs`. */
  late: number;
  lateMs: number;
  /** Milliseconds one operation of a disk takes. */
  disk: readonly [min: number, max: number];
}

export const calm: Weather = {
  drop: 0,
  duplicate: 0,
  delay: [0.1, 1],
  late: 0,
  lateMs: 0,
  disk: [0.1, 0.5],
};

interface Happening {
  readonly at: number;
  readonly order: number;
  readonly run: () => void;
}

/** Binary heap by time, then by order of scheduling: ties never depend on anything else. */
class Agenda {
  readonly #heap: Happening[] = [];

  get size(): number {
    return this.#heap.length;
  }

  push(happening: Happening): void {
    const heap = this.#heap;
    let at = heap.push(happening) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(heap[at] as Happening, heap[parent] as Happening)) break;
      [heap[at], heap[parent]] = [heap[parent] as Happening, heap[at] as Happening];
      at = parent;
    }
  }

  pop(): Happening | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (heap.length === 0 || last === undefined) return top;
    heap[0] = last;
    for (let at = 0; ;) {
      const left = 2 * at + 1;
      const right = left + 1;
      let least = at;
      if (left < heap.length && before(heap[left] as Happening, heap[least] as Happening))
        least = left;
      if (right < heap.length && before(heap[right] as Happening, heap[least] as Happening))
        least = right;
      if (least === at) return top;
      [heap[at], heap[least]] = [heap[least] as Happening, heap[at] as Happening];
      at = least;
    }
  }
}

function before(left: Happening, right: Happening): boolean {
  return left.at < right.at || (left.at === right.at && left.order < right.order);
}

// --- environments -------------------------------------------------------------------------------------------------------

/**
 * Environments in memory: commits are atomic and take time; a crash leaves the one under way done or not done. One that is
 * new is kept after a while; before that a crash may leave nothing of it.
 */
class SimEnvironments implements Environments {
  readonly cap: number;
  readonly stored = new Map<string, MemoryEnvironment>();
  /** Of purged tenants. */
  readonly removed = new Set<string>();
  /** Of these the files are not to be read. */
  readonly broken = new Set<string>();
  /** Names for which there is no room just now. */
  readonly busy = new Set<string>();
  /** The disk takes none that is not there. */
  full = false;
  readonly #schedule: (run: () => void) => void;
  readonly #prng: Prng;
  /** The next commit fails, having been made or not. */
  failNext: Error | null = null;
  #open = new Set<string>();
  #underWay: (() => void)[] = [];

  readonly #settle: () => void;

  /** `settle`: somebody awaits what was just done. */
  constructor(prng: Prng, cap: number, schedule: (run: () => void) => void, settle: () => void) {
    this.#settle = settle;
    this.#prng = prng;
    this.cap = cap;
    this.#schedule = schedule;
  }

  get open_count(): number {
    return this.#open.size;
  }

  exists(name: string): boolean {
    return this.stored.has(name);
  }

  names(): readonly string[] {
    return [...this.stored.keys()];
  }

  async remove(name: string): Promise<void> {
    this.#settle();
    this.stored.delete(name);
    this.broken.delete(name);
    this.removed.add(name);
  }

  /** The process is gone: each commit under way is on disk, or is not. */
  crash(): void {
    for (const apply of this.#underWay) if (this.#prng.chance(0.5)) apply();
    this.#underWay = [];
    this.#open = new Set();
    for (const [name, environment] of this.stored) {
      if (environment.isKept) continue;
      if (this.#prng.chance(0.5)) this.stored.delete(name);
      // The next start syncs what it finds.
      else environment.survived();
    }
  }

  #make(name: string): MemoryEnvironment {
    const made = new MemoryEnvironment();
    made.keepLater();
    this.stored.set(name, made);
    this.#schedule(() => made.keep());
    return made;
  }

  open(name: string): Environment {
    if (this.busy.has(name)) throw new Problem("overloaded", "Too many are busy at once");
    if (this.full && !this.stored.has(name)) throw new Problem("disk-full", "No inode is free");
    if (this.broken.has(name)) throw new Error(`Environment ${name} cannot be read`);
    if (this.#open.has(name)) throw new Error(`Environment ${name} is open already`);
    this.#open.add(name);
    const stored = this.stored.get(name) ?? this.#make(name);
    let busy = false;
    const commit = (prepared: PreparedChange, done: (error: Error | null) => void): void => {
      if (busy) throw new Error("A commit is under way");
      busy = true;
      const apply = (): void => stored.write(prepared);
      this.#underWay.push(apply);
      // The real one's deletions show before it says that all is durable.
      const early = this.#prng.chance(0.5);
      this.#schedule(() => {
        if (early) apply();
        this.#schedule(() => {
          this.#underWay = this.#underWay.filter((other) => other !== apply);
          const failure = this.failNext;
          this.failNext = null;
          if (!early && (failure === null || this.#prng.chance(0.5))) apply();
          stored.whenKept(() => {
            busy = false;
            this.#settle();
            done(failure);
          });
        });
      });
    };
    const environment = committedBy(stored, commit);
    return {
      ...environment,
      stage: () => stored.stage(this.#schedule),
      close: async () => {
        this.#settle();
        if (busy) throw new Error("Closed while a commit is under way");
        this.#open.delete(name);
        await environment.close();
      },
    };
  }
}

// --- nodes --------------------------------------------------------------------------------------------------------------

export interface SimNode {
  readonly name: string;
  /** Null while the process is down. */
  host: NodeHost | null;
  disk: SimDisk;
  environments: SimEnvironments;
  quarantine: MemoryQuarantine;
  /** What its host is told of the room on its disk. */
  readonly room: {
    level: DiskSpace["level"];
    readonly freeBytes: number;
    readonly reserveBytes: number;
    readonly oldestWriteMs: number;
  };
  /** Names the disk: one that replaces it has another name. */
  diskName: string;
  boot: number;
  /** Everything of an earlier life checks this before it runs. */
  life: number;
  handler: FrameHandler | null;
  /** Until when this process is stopped (SIGSTOP): its events wait. */
  frozenUntil: number;
  clockOffset: number;
  /** How fast its monotonic clock runs: crystals differ, and some are bad. */
  readonly clockRate: number;
  /** How far its wall clock is off; it may jump. */
  wallOffset: number;
  diskStalledUntil: number;
  /** Which version of the program it runs, and the levels of commands that this knows; null: of these sources. */
  version: string;
  levels: Levels | null;
  /** Why the process had to end; the world then kills it. */
  fatal: Error | null;
}

export interface WorldOptions {
  readonly seed: number;
  /** Initial ones. */
  readonly nodes: number;
  /** That may be started later, and join. */
  readonly spares?: number;
  readonly environmentsMax?: number;
  readonly clockSkew?: boolean;
  /** How fast the nodes' monotonic clocks run, instead of what the seed draws. */
  readonly clockRates?: readonly number[];
  readonly segmentBytes?: number;
  readonly tuning?: Partial<Tuning>;
  readonly log?: (node: string) => Log;
}

const silent: Log = { debug() {}, info() {}, warn() {}, error() {} };

const PROMISES_EVERY = 64;
/** A registration that failed is repeated after this long. */
const REGISTER_MS = 200;

export class World {
  readonly prng: Prng;
  readonly nodes: SimNode[] = [];
  weather: Weather = calm;
  now = 0;
  events = 0;
  /** What went on, one line each; equal seeds give equal traces. */
  traceHash = 0;
  trace: ((line: string) => void) | null = null;
  /** What nobody caught would have ended the process. */
  onThrown: (error: unknown) => void = (error) => {
    throw error;
  };
  onStartFailed: (error: unknown) => void = (error) => this.onThrown(error);
  /** Sees everything that leaves a node. */
  onSent: (lane: Lane, bytes: Uint8Array) => void = () => {};
  readonly #agenda = new Agenda();
  readonly #options: WorldOptions;
  readonly #cut = new Set<string>();
  #order = 0;

  constructor(options: WorldOptions) {
    this.#options = options;
    this.prng = new Prng(options.seed);
    for (let index = 1; index <= options.nodes + (options.spares ?? 0); index++) {
      const prng = this.prng.fork();
      const node: SimNode = {
        name: `n${index}`,
        host: null,
        disk: new SimDisk({ seed: prng.uint32() }),
        environments: new SimEnvironments(
          prng.fork(),
          options.environmentsMax ?? 1_000,
          (run) => this.#inLife(node, this.#diskDelay() * 3, run),
          () => this.settle(),
        ),
        quarantine: new MemoryQuarantine(),
        room: { level: "free", freeBytes: 1, reserveBytes: 2, oldestWriteMs: 0 },
        diskName: `n${index}/1`,
        boot: 0,
        life: 0,
        handler: null,
        frozenUntil: 0,
        clockOffset: prng.below(100_000),
        clockRate:
          options.clockRates?.[index - 1] ??
          (options.clockSkew === true ? 0.9 + prng.below(200) / 1_000 : 1),
        wallOffset: 0,
        diskStalledUntil: 0,
        version: "sim",
        levels: null,
        fatal: null,
      };
      this.nodes.push(node);
    }
  }

  // --- time ---------------------------------------------------------------------------------------------------------

  after(ms: number, run: () => void): void {
    this.#agenda.push({ at: this.now + ms, order: this.#order++, run });
  }

  /** Runs events until `until` (virtual ms) or until `stop` says so after one. */
  async run(until: number, stop: () => boolean = () => false): Promise<void> {
    for (;;) {
      const next = this.#agenda.pop();
      if (next === undefined) return;
      if (next.at > until) {
        this.#agenda.push(next);
        this.now = until;
        return;
      }
      this.now = Math.max(this.now, next.at);
      this.events += 1;
      try {
        next.run();
      } catch (error) {
        this.onThrown(error);
      }
      // Closing and removing environments are the only promises below the public methods; what they wait for elsewhere
      // ends within a few events.
      if (this.#promised || this.events % PROMISES_EVERY === 0) {
        this.#promised = false;
        for (let turn = 0; turn < 8; turn++) await Promise.resolve();
      }
      if (stop()) return;
    }
  }

  #promised = false;

  /** Says that something just done needs the microtasks to run before the next event. */
  settle(): void {
    this.#promised = true;
  }

  note(line: string): void {
    let hash = this.traceHash;
    for (let index = 0; index < line.length; index++) {
      hash = Math.imul(hash ^ line.charCodeAt(index), 0x01000193);
    }
    this.traceHash = hash >>> 0;
    this.trace?.(`${this.now.toFixed(3)} ${line}`);
  }

  #inLife(node: SimNode, ms: number, run: () => void): void {
    const { life } = node;
    const attempt = (): void => {
      if (node.life !== life) return;
      if (node.frozenUntil > this.now) this.after(node.frozenUntil - this.now, attempt);
      else {
        run();
        this.#pumpDisk(node);
      }
    };
    this.after(ms, attempt);
  }

  // --- disks --------------------------------------------------------------------------------------------------------

  readonly #diskBusy = new Set<SimNode>();

  #diskDelay(): number {
    const [min, max] = this.weather.disk;
    return min + (this.prng.uint32() / 0x1_0000_0000) * (max - min);
  }

  /** One operation of a node's disk at a time, each taking its while. */
  #pumpDisk(node: SimNode): void {
    if (node.disk.pending === 0 || this.#diskBusy.has(node)) return;
    this.#diskBusy.add(node);
    const { life } = node;
    const stalled = Math.max(0, node.diskStalledUntil - this.now);
    this.after(stalled + this.#diskDelay(), () => {
      this.#diskBusy.delete(node);
      if (node.life !== life) return this.#pumpDisk(node);
      this.#inLife(node, 0, () => {
        node.disk.step();
      });
    });
  }

  // --- network ------------------------------------------------------------------------------------------------------

  /** Nothing goes from one to the other any more. */
  cut(from: SimNode, to: SimNode): void {
    this.#cut.add(`${from.name}>${to.name}`);
  }

  heal(): void {
    this.#cut.clear();
  }

  #transport(node: SimNode): Transport {
    const { life } = node;
    return {
      connected: true,
      start: async (handler) => {
        node.handler = handler;
      },
      close: async () => {
        node.handler = null;
      },
      send: (to, lane, bytes) => {
        const peer = this.nodes.find((other) => other.name === to);
        if (peer === undefined || node.life !== life) return false;
        this.onSent(lane, bytes);
        const { drop, duplicate, late, lateMs, delay } = this.weather;
        const copies = this.prng.chance(drop) ? 0 : this.prng.chance(duplicate) ? 2 : 1;
        for (let copy = 0; copy < copies; copy++) {
          const spread = (this.prng.uint32() / 0x1_0000_0000) * (delay[1] - delay[0]);
          const wait = delay[0] + spread + (this.prng.chance(late) ? this.prng.below(lateMs) : 0);
          this.#deliver(node, peer, lane, bytes.slice(), wait);
        }
        return true;
      },
    };
  }

  #deliver(from: SimNode, to: SimNode, lane: Lane, bytes: Uint8Array, wait: number): void {
    const { boot } = from;
    this.after(wait, () => {
      if (this.#cut.has(`${from.name}>${to.name}`) || to.host === null) return;
      this.note(`${from.name}>${to.name} ${lane} ${bytes.length}`);
      this.#inLife(to, 0, () => to.handler?.(from.name, boot, lane, bytes));
    });
  }

  // --- processes ----------------------------------------------------------------------------------------------------

  start(node: SimNode): void {
    node.boot += 1;
    node.life += 1;
    const { life } = node;
    this.note(`start ${node.name} boot ${node.boot}`);
    const journal = new NodeJournal({
      disk: this.#diskInLife(node),
      salt: this.prng.uint32(),
      segmentBytes: this.#options.segmentBytes ?? 256 * 1024,
      onFatal: (error) => {
        if (node.life === life) node.fatal = error;
      },
    });
    const clock: Clock = {
      monotonicMs: () => this.now * node.clockRate + node.clockOffset,
      wallMs: () => 1_700_000_000_000 + Math.floor(this.now) + node.wallOffset,
      defer: (run) => this.#inLife(node, 0, run),
      every: (ms, run) => {
        let active = true;
        const again = (): void => {
          if (!active) return;
          run();
          this.#inLife(node, ms / node.clockRate + this.prng.below(3), again);
        };
        this.#inLife(node, ms / node.clockRate, again);
        return () => {
          active = false;
        };
      },
    };
    const host = new NodeHost({
      cluster: "sim",
      node: node.name,
      boot: node.boot,
      version: node.version,
      ...(node.levels !== null && { levels: node.levels }),
      peers: this.nodes.slice(0, this.#options.nodes).map((peer) => peer.name),
      diskId: node.diskName,
      transportKind: "loopback",
      journal,
      environments: node.environments,
      quarantine: node.quarantine,
      transport: this.#transport(node),
      clock,
      disk: node.room,
      seed: this.prng.uint32(),
      tuning: this.#options.tuning ?? {},
      log: this.#options.log?.(node.name) ?? silent,
      onFatal: (error) => {
        if (node.life === life) node.fatal = error;
      },
    });
    // What main does once the node is in the directory; nothing here asks for root keys.
    host.registered = true;
    node.host = host;
    // `start` awaits nothing but the simulated transport and the journal.
    host.start().catch((error: unknown) => this.onStartFailed(error));
    this.settle();
    this.#pumpDisk(node);
    this.#register(node, host);
  }

  /** What main does, until it is done. */
  #register(node: SimNode, host: NodeHost): void {
    const again = (): void => this.#inLife(node, REGISTER_MS, () => this.#register(node, host));
    const initial = host.systemInitial;
    if (initial.length === 0) return again();
    const { name, boot, diskName } = node;
    const { levelToBegin: level, levels } = host;
    const of = { node: name, boot, disk: diskName, initial, level, levels };
    const action = { op: "node.register", ...of } as const;
    const at = 1_700_000_000_000 + Math.floor(this.now);
    const actor = { kind: "system", keyId: name } as const;
    host.requests.propose("_system", { at, actor, action }, 3_000, (error, outcome) => {
      if (error !== null || outcome?.ok !== true) again();
    });
  }

  /** What promises of a process that is gone still come to do touches no disk any more. */
  #diskInLife(node: SimNode): JournalDisk {
    const { life, disk } = node;
    const living =
      <Args extends unknown[]>(act: (...args: Args) => void) =>
      (...args: Args): void => {
        if (node.life === life) act(...args);
      };
    return {
      list: () => disk.list(),
      read: (name) => disk.read(name),
      load: living((name: string, done: Parameters<JournalDisk["load"]>[1]) =>
        disk.load(name, (error, bytes) => {
          // The host awaits that the journal is open.
          this.settle();
          done(error, bytes);
        }),
      ),
      defer: living((run: () => void) =>
        disk.defer(() => {
          this.settle();
          run();
        }),
      ),
      truncate: living((name: string, size: number, done: Parameters<JournalDisk["truncate"]>[2]) =>
        disk.truncate(name, size, (error) => {
          // As above: else the host of a process that is gone would go on (seed 771400107).
          this.settle();
          done(error);
        }),
      ),
      create: living((...args: Parameters<JournalDisk["create"]>) => disk.create(...args)),
      remove: living((...args: Parameters<JournalDisk["remove"]>) => disk.remove(...args)),
      syncDirectory: living((...args: Parameters<JournalDisk["syncDirectory"]>) =>
        disk.syncDirectory(...args),
      ),
    };
  }

  /** Another disk, empty, takes the place of this one. Only while the process is down. */
  wipe(node: SimNode): void {
    node.diskName = `${node.name}/${Number(node.diskName.split("/")[1]) + 1}`;
    this.note(`wipe ${node.diskName}`);
    node.disk = new SimDisk({ seed: this.prng.uint32() });
    node.environments = this.#environments(node);
    node.quarantine = new MemoryQuarantine();
  }

  #environments(node: SimNode): SimEnvironments {
    return new SimEnvironments(
      this.prng.fork(),
      this.#options.environmentsMax ?? 1_000,
      (run) => this.#inLife(node, this.#diskDelay() * 3, run),
      () => this.settle(),
    );
  }

  /** Ends what said that it cannot go on. @returns whom */
  reap(): SimNode | null {
    for (const node of this.nodes) {
      if (node.fatal === null) continue;
      this.crash(node);
      return node;
    }
    return null;
  }

  /** kill -9 with the power: what was not synced is lost or half there. */
  crash(node: SimNode): void {
    this.note(`crash ${node.name}`);
    node.life += 1;
    node.host = null;
    node.handler = null;
    node.frozenUntil = 0;
    node.diskStalledUntil = 0;
    node.fatal = null;
    node.environments.failNext = null;
    node.disk.crash();
    node.environments.crash();
  }

  freeze(node: SimNode, ms: number): void {
    this.note(`freeze ${node.name} ${ms}`);
    node.frozenUntil = this.now + ms;
  }

  /** The whole machine stands still, its monotonic clock too; its wall clock is right when it goes on. */
  suspend(node: SimNode, ms: number): void {
    this.freeze(node, ms);
    node.clockOffset -= ms * node.clockRate;
  }

  /** Runs within this life of the node's process, once it is not stopped. */
  within(node: SimNode, run: () => void): void {
    this.#inLife(node, 0, run);
  }

  /** The disk answers nothing for a while, and then goes on. */
  stallDisk(node: SimNode, ms: number): void {
    this.note(`stall ${node.name} ${ms}`);
    node.diskStalledUntil = this.now + ms;
  }

  /** The next write of the journal, or the next commit of an environment, fails: an I/O error, or no space left. */
  failDisk(node: SimNode): void {
    this.note(`fail ${node.name}`);
    const error = new Error(
      this.prng.chance(0.5) ? "EIO: i/o error" : "ENOSPC: no space left on device",
    );
    if (this.prng.chance(0.7)) node.disk.failNext("write", error);
    else node.environments.failNext = error;
  }

  /** One bit of the journal rots while the process is down. @returns false when there is nothing to rot */
  flipBit(node: SimNode): boolean {
    const names = node.disk.list().filter((name) => node.disk.read(name).length > 0);
    if (names.length === 0) return false;
    const name = this.prng.pick(names.sort());
    const bytes = node.disk.read(name);
    let end = bytes.length;
    while (end > 0 && bytes[end - 1] === 0) end -= 1;
    if (end === 0) return false;
    const at = this.prng.below(end);
    this.note(`flip ${node.name} ${name} ${at}`);
    node.disk.flipBit(name, at, this.prng.below(8));
    return true;
  }

  get alive(): SimNode[] {
    return this.nodes.filter((node) => node.host !== null);
  }
}
