/**
 * The replicas of this node that are in memory: the one map of them (invariant 4), how they come into it (`wake`) and
 * leave it (`sleepUnused`, `makeRoom`). What the disk holds of the others is `cold_replicas.ts`.
 */
import { Problem } from "../api/problems.ts";
import type { Prng } from "../lib/prng.ts";
import { isLost, type PlacedReplica, type TenantRow } from "../machine/rows.ts";
import { createRecord } from "./codec.ts";
import type { ColdReplicas } from "./cold_replicas.ts";
import { SYSTEM_GROUP, SYSTEM_TENANT, type Directory } from "./directory.ts";
import type { SystemIdentity } from "./entry.ts";
import { freshMeta, type ReplicaMeta } from "./group_log.ts";
import type { Leases } from "./leases.ts";
import type { Liveness } from "./liveness.ts";
import { replicaOn } from "./membership.ts";
import type { Clock, Environment, Log, RecoveredRecords } from "./ports.ts";
import { recoverLog } from "./recovery.ts";
import { Replica, type ReplicaHooks } from "./replica.ts";
import type { Sleepers } from "./sleepers.ts";
import type { Versions } from "./versions.ts";

/** Beyond `awakeMax` so many replicas more than are too many go to sleep at once. */
const AWAKE_SPARE = 16;
/** For want of room replicas are put to sleep after this long already. */
const SLEEP_FOR_ROOM_MS = 2_000;
const MAKE_ROOM_MS = 250;
const SLEEP_CHECK_MS = 1_000;
/** A node with too many replicas awake says so this often. */
const FULL_NOTICE_MS = 10_000;

export interface ReplicasTuning {
  /** Entries kept behind the applied index, so that a follower a little behind needs no snapshot. */
  readonly logKeptEntries: number;
  /** And their bytes: the log is cut where the first of the two bounds is reached. */
  readonly logKeptBytes: number;
  /** Kept for a live follower that is further behind than that, or is being sent a snapshot. */
  readonly logKeptBytesForLagging: number;
  /** Replicas that nobody used for this long go to sleep (decision D4). */
  readonly sleepAfterMs: number;
  /** Replicas in memory beyond this many sleep as soon as they are unused for SLEEP_FOR_ROOM_MS. */
  readonly awakeMax: number;
  /** Beyond this many none wakes before one sleeps, and requests for it wait. */
  readonly awakeLimit: number;
}

export const replicasTuningDefaults: ReplicasTuning = {
  logKeptEntries: 1_000,
  logKeptBytes: 8 * 1024 * 1024,
  logKeptBytesForLagging: 64 * 1024 * 1024,
  sleepAfterMs: 10 * 60_000,
  // Each costs about 100 KB (`npm run bench -- density`).
  awakeMax: 10_000,
  awakeLimit: 20_000,
};

export interface ReplicasParts {
  readonly node: string;
  /** Names the data directory; absent: it is taken for the one that was always there. */
  readonly diskId?: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly prng: Prng;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly leases: Leases;
  readonly sleepers: Sleepers;
  readonly versions: Versions;
  readonly cold: ColdReplicas;
}

export interface ReplicasHooks {
  /** Of every replica that is made here. */
  readonly ofReplicas: ReplicaHooks;
  /** As which replica of `_system` this node came in; null: it has yet to. */
  identity(): SystemIdentity | null;
  /** It is in memory now. */
  woken(replica: Replica): void;
  /** It has something to do. */
  mark(replica: Replica): void;
  /** Into the journal with this turn. */
  persist(replica: Replica, record: Uint8Array): void;
  /** Somebody needs it awake. */
  isNeeded(replica: Replica): boolean;
  /** It must be written to its environment before it can sleep. */
  checkpoint(group: number): void;
  /** It goes out of memory, and nobody may wait for it there. */
  asleep(replica: Replica): void;
}

export class Replicas {
  readonly #parts: ReplicasParts;
  readonly #tuning: ReplicasTuning;
  readonly #hooks: ReplicasHooks;
  readonly #replicas = new Map<number, Replica>();
  /** The same by tenant: one that is restored, or made anew, may have two for a moment. */
  readonly #byTenant = new Map<string, Set<Replica>>();
  #sleptAt = 0;
  #roomMadeAt = 0;
  #fullToldAt = -Infinity;

  constructor(parts: ReplicasParts, tuning: ReplicasTuning, hooks: ReplicasHooks) {
    this.#parts = parts;
    this.#tuning = tuning;
    this.#hooks = hooks;
  }

  get(group: number): Replica | undefined {
    return this.#replicas.get(group);
  }

  /** As they are now: the caller may discard them. */
  ofTenant(tenant: string): readonly Replica[] {
    return [...(this.#byTenant.get(tenant) ?? [])];
  }

  values(): Iterable<Replica> {
    return this.#replicas.values();
  }

  get size(): number {
    return this.#replicas.size;
  }

  /** Brings a replica of this node into memory. Null: it is not this node's, or there is no room now. */
  wake(group: number): Replica | null {
    const present = this.#replicas.get(group);
    if (present !== undefined) return present;
    if (!this.#parts.cold.mayOpen(group)) return null;
    try {
      return this.#wakeCold(group);
    } catch (error) {
      // Nothing is wrong with it: too many others are busy, or the disk is full, and whoever asks asks again.
      if (error instanceof Problem && error.retryAfter !== null) return this.#noRoom(group, error);
      // One tenant's environment must not stop the others, nor whoever happened to ask for it.
      this.#parts.cold.setAside(group, error);
      return null;
    }
  }

  #wakeCold(group: number): Replica | null {
    const identity = group === SYSTEM_GROUP ? this.#systemMeta() : this.#directoryMeta(group);
    if (identity === null) return null;
    if (this.#replicas.size >= this.#tuning.awakeLimit) {
      if (this.#mayTell()) this.#parts.log.warn({ awake: this.#replicas.size }, "replicas.full");
      return null;
    }
    const found = this.#parts.cold.open(identity);
    if (found === null) return null;
    const { environment, records } = found;
    let { damage } = found;
    let replica: Replica;
    try {
      replica = this.#load(identity, environment, damage === null ? records : null);
    } catch (error) {
      // The journal and the environment contradict each other: this replica cannot be trusted, its neighbours can.
      this.#parts.log.error({ tenant: identity.tenant, group, err: error }, "replica.unreadable");
      damage ??= error instanceof Error ? error.message : String(error);
      replica = this.#load(identity, environment, null);
    }
    this.#replicas.set(group, replica);
    const ofTenant = this.#byTenant.get(replica.tenant);
    if (ofTenant === undefined) this.#byTenant.set(replica.tenant, new Set([replica]));
    else ofTenant.add(replica);
    replica.usedAt = this.#parts.clock.monotonicMs();
    this.#hooks.woken(replica);
    if (damage !== null) {
      // A vote or an acknowledged entry may be gone: it must neither vote nor answer (invariant 2).
      this.#parts.log.error({ tenant: replica.tenant, group, damage }, "replica.journal_damaged");
      replica.halt(`Journal is damaged: ${damage}`);
      return replica;
    }
    this.#hooks.mark(replica);
    return replica;
  }

  #noRoom(group: number, error: Problem): null {
    if (this.#mayTell()) this.#parts.log.warn({ group, err: error }, "replica.no_room");
    return null;
  }

  /** It is asked for again and again, and each time it cannot wake for the same reason. */
  #mayTell(): boolean {
    const now = this.#parts.clock.monotonicMs();
    if (now - this.#fullToldAt <= FULL_NOTICE_MS) return false;
    this.#fullToldAt = now;
    return true;
  }

  #load(
    identity: ReplicaMeta,
    environment: Environment,
    /** Null: they cannot be trusted. */
    records: RecoveredRecords | null,
  ): Replica {
    const { prng, liveness, leases, sleepers, versions } = this.#parts;
    const isStored = environment.meta() !== null;
    const { meta, log, sequence, isFresh } = recoverLog(environment, identity, records ?? []);
    const replica = new Replica({
      meta,
      log,
      environment,
      hooks: this.#hooks.ofReplicas,
      random: prng.fork(),
      supports: (id) => {
        const node = replica.nodeOf(id);
        return node !== undefined && liveness.supports(node);
      },
      leases: leases.supportOf((id) => replica.nodeOf(id)),
      bond: leases.awake(identity.group, identity.replica),
      leadership: sleepers.awake(identity.group, identity.replica),
      semanticsMax: versions.levels.max,
      // Every request asks for its tenant's row.
      ...(identity.group === SYSTEM_GROUP && { rowsKept: this.#tuning.awakeMax }),
      sequence,
      logKept: {
        entries: this.#tuning.logKeptEntries,
        bytes: this.#tuning.logKeptBytes,
        bytesForLagging: this.#tuning.logKeptBytesForLagging,
      },
    });
    replica.startFrom(isStored ? meta.sequence : 0, isStored ? meta.applied : 0);
    if (isFresh && records !== null) {
      // Its first record says who it is; the environment says so too from its first checkpoint on.
      this.#hooks.persist(replica, createRecord(meta));
    }
    return replica;
  }

  #systemMeta(): ReplicaMeta | null {
    const identity = this.#hooks.identity();
    if (identity === null) return null;
    const { id, initial, incarnation = 1 } = identity;
    return freshMeta({ tenant: SYSTEM_TENANT, group: SYSTEM_GROUP, incarnation }, id, initial);
  }

  #directoryMeta(group: number): ReplicaMeta | null {
    const { directory, node } = this.#parts;
    const row = directory.byGroup(group);
    if (row === undefined) return null;
    const own = replicaOn(row.placement, node);
    if (own === undefined || !this.#isOwn(own, row)) return null;
    const initial = row.initial ?? row.placement.replicas;
    const members = initial.map(({ node, id }) => ({ node, id }));
    return freshMeta({ tenant: row.tenant, group, incarnation: row.incarnation }, own.id, members);
  }

  /** It was placed on this disk, and not on one that was here before (invariant 9). */
  #isOwn(replica: PlacedReplica, row: TenantRow): boolean {
    const { diskId, directory, node } = this.#parts;
    if (diskId === undefined) return true;
    const known = directory.node(node);
    const identity = this.#hooks.identity();
    const isInitial = identity?.initial.some(({ id }) => id === identity.id) === true;
    if (known === undefined) return isInitial;
    return (known.disk === undefined || known.disk === diskId) && !isLost(replica, row, known);
  }

  /** Call with each pulse. Those that nobody used for long sleep. */
  sleepUnused(now: number): void {
    if (now - this.#sleptAt <= SLEEP_CHECK_MS) return;
    this.#sleptAt = now;
    this.#sleep(this.#tuning.sleepAfterMs, Infinity);
  }

  /** Call with each pulse. Beyond `awakeMax` the longest unused sleep early. */
  makeRoom(now: number): void {
    if (now - this.#roomMadeAt < MAKE_ROOM_MS) return;
    this.#roomMadeAt = now;
    const excess = this.#replicas.size - this.#tuning.awakeMax;
    if (excess > 0) this.#sleep(SLEEP_FOR_ROOM_MS, excess + AWAKE_SPARE);
  }

  /** Puts the longest unused replicas to sleep, or checkpoints them so that they can be next time. */
  #sleep(unusedMs: number, countMax: number): void {
    const now = this.#parts.clock.monotonicMs();
    const sleepers: Replica[] = [];
    for (const replica of this.#replicas.values()) {
      if (replica.group === SYSTEM_GROUP || now - replica.usedAt <= unusedMs) continue;
      // Asleep, it would not notice a lagging peer's node come back, whose watchers would wait for the next use.
      if (replica.raft.isLeader && !replica.raft.nobodyLacksAnything) continue;
      const isUsed = replica.pinned || this.#hooks.isNeeded(replica);
      if (replica.halted === null && replica.idle && !isUsed) sleepers.push(replica);
    }
    sleepers.sort((left, right) => left.usedAt - right.usedAt);
    for (const replica of sleepers.slice(0, countMax)) {
      if (replica.needsCheckpoint) this.#hooks.checkpoint(replica.group);
      else this.#close(replica);
    }
  }

  /** Everything of it is in its environment: it is cold once that is closed. */
  #close(replica: Replica): void {
    const { leases, sleepers, cold } = this.#parts;
    this.delete(replica.group);
    this.#hooks.asleep(replica);
    leases.asleep(replica.group, replica.id, replica.raft.bond);
    sleepers.asleep(replica.group, replica.id, replica.raft.leadership);
    replica.abandon();
    cold.close(replica);
  }

  /** It goes out of memory. */
  delete(group: number): void {
    const replica = this.#replicas.get(group);
    if (replica === undefined) return;
    this.#replicas.delete(group);
    const ofTenant = this.#byTenant.get(replica.tenant);
    ofTenant?.delete(replica);
    if (ofTenant?.size === 0) this.#byTenant.delete(replica.tenant);
  }

  /** The node ends, and has closed them. */
  clear(): void {
    this.#replicas.clear();
    this.#byTenant.clear();
  }
}
