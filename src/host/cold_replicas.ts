/**
 * What this node's disk holds of replicas that are not in memory: journal records found at start, environments, and what
 * is known to be damaged of either. It says how a replica may begin from that, and removes what is nobody's any more.
 *
 * - A directory that is behind knows less than the disk: nothing is removed, and after a crash nothing begins anew,
 *   before the directory's leader was asked.
 * - A replica that goes leaves its environment first, then what the journal has of it, then what was known of its damage.
 *   After a crash in between a directory that is behind may name it once more, and must find it whole or not at all,
 *   never without its votes (simulation, seed 200006333).
 */
import type { PlacedReplica } from "../machine/rows.ts";
import type { ReplicaId } from "../raft/types.ts";
import { parseRecord } from "./codec.ts";
import { SYSTEM_GROUP, type Directory } from "./directory.ts";
import type { ReplicaMeta } from "./group_log.ts";
import { replicaOn } from "./membership.ts";
import type {
  Environment,
  Environments,
  Journal,
  JournalRecovery,
  Log,
  LostRecords,
  Quarantine,
  QuarantinedReplica,
  RecoveredRecords,
  Remains,
} from "./ports.ts";
import { metaFromBytes, type Replica } from "./replica.ts";

/** Environments that are nobody's are looked for at most this often, and only when there may be some. */
const SWEEP_MS = 2_000;
/** So many of all names with each pulse: whose one is costs two reads of the directory. */
const SWEEP_AT_ONCE = 250;

export interface ColdReplicasOptions {
  readonly node: string;
  readonly journal: Journal;
  readonly environments: Environments;
  readonly quarantine?: Quarantine;
  readonly log: Log;
}

export interface ColdReplicasHooks {
  /** The replica of this group that is in memory. */
  present(group: number): Replica | null;
  /** Stops one that is in memory and is not this node's any more; it comes back as `removeStopped`. */
  discard(replica: Replica, reason: string): void;
  /** Asks the directory's leader, so that the directory here is no older than the question. False: nobody answered. */
  askDirectory(done: (isCurrent: boolean) => void): void;
  /** What is on the disk of the group's replica is being removed. */
  gone(group: number): void;
  /** The directory's leader says that the group has a replica here, which `open` refused. */
  confirmed(group: number): void;
}

/** A replica's beginning. */
export interface ColdReplica {
  readonly environment: Environment;
  readonly records: RecoveredRecords;
  /** Why it must neither vote nor answer; null when nothing is known to be gone. */
  readonly damage: string | null;
}

export class ColdReplicas {
  readonly #options: ColdReplicasOptions;
  readonly #directory: Directory;
  readonly #hooks: ColdReplicasHooks;
  #isNew = false;
  #storedSystem: ReplicaId | null = null;
  /** Journal records found at start, until their replica is opened. */
  readonly #records = new Map<number, RecoveredRecords>();
  readonly #damaged = new Map<number, QuarantinedReplica>();
  /** The newest of the records that are gone without the name of their group. */
  #lost: LostRecords | null = null;
  /** Those that were there when that was found, and may have lost something; null: any may. */
  #mayLack: ReadonlySet<string> | null = null;
  /** Why groups could not be opened; until the next start, or another place, nothing of them runs here. */
  readonly #unreadable = new Map<number, string>();
  /** Groups that could not be kept out, and pin the journal until the next start. */
  readonly #pinsOn = new Set<number>();
  /** Environments that are being closed or removed; their replica is opened only after that. */
  readonly #ending = new Map<number, Promise<void>>();
  /** By group, until the next round: many groups end at a time, and the disk is read as a whole. */
  #names: Map<number, string[]> | null = null;
  /**
   * The directory here is no older than what this node ever knew: asked of its leader in this life, or nothing was ever
   * known. Until then a replica that is not on the disk may be one that was removed, and must not begin anew.
   */
  #directoryIsCurrent = false;
  #isAsking = false;
  /** Groups about which the directory's leader is being asked. */
  readonly #asked = new Set<number>();
  /** Groups that it said are there. */
  readonly #confirmed = new Set<number>();
  /** No environment that is nobody's is on the disk, as far as is known. */
  #swept = false;
  /** When they were looked for last; at first, when the first round was: who starts answers before it looks around. */
  #sweptAt: number | null = null;
  /** Names that are still to be looked at, last first. */
  #sweeping: string[] = [];

  constructor(options: ColdReplicasOptions, directory: Directory, hooks: ColdReplicasHooks) {
    this.#options = options;
    this.#directory = directory;
    this.#hooks = hooks;
  }

  /** With what was found in the journal; before that nothing may be opened. */
  begin(recovery: JournalRecovery): void {
    for (const [group, records] of recovery.groups) this.#records.set(group, records);
    const names = this.#options.environments.names();
    this.#isNew = recovery.groups.size === 0 && !names.some((name) => replicaNamed(name) !== null);
    // A loss of power may leave the journal what a new environment's name was not yet kept for.
    this.#storedSystem =
      newestOf(names.filter((name) => replicaNamed(name)?.group === SYSTEM_GROUP)) ??
      creationIn(this.records(SYSTEM_GROUP));
    this.#directoryIsCurrent = this.#isNew;
    this.#lost = this.#quarantine(recovery);
    this.#mayLack =
      this.#lost?.environments === undefined ? null : new Set(this.#lost.environments);
  }

  /**
   * Damage that was found goes where it outlives the journal's segments, which then may go.
   * @returns the newest of the records that are gone without the name of their group
   */
  #quarantine(recovery: JournalRecovery): LostRecords | null {
    const { journal, quarantine } = this.#options;
    for (const known of quarantine?.replicas ?? []) this.#damaged.set(known.group, known);
    const found: Remains[] = [...recovery.damaged].map(([group, reason]) => {
      const records = this.records(group);
      return { group, replica: this.#storedReplica(group) ?? creationIn(records), reason, records };
    });
    for (const { group, replica, reason } of found)
      this.#damaged.set(group, { group, replica, reason });
    const known = quarantine?.lost ?? null;
    const lost = newestLost(recovery, known, () => this.#options.environments.names());
    if (quarantine === undefined) return lost;
    quarantine.keep(found, lost === known ? null : lost);
    for (const { group } of found) {
      this.#records.delete(group);
      journal.forget(group);
    }
    return lost;
  }

  /** Nothing was on the disk when this node started. */
  get isNew(): boolean {
    return this.#isNew;
  }

  /** Which replica of the directory was on the disk then. */
  get storedSystem(): ReplicaId | null {
    return this.#storedSystem;
  }

  // --- what is there -----------------------------------------------------------------------------------------------------

  /** Groups that the journal holds, then those that are damaged; one may be both. */
  *groups(): Iterable<number> {
    yield* this.#records.keys();
    yield* this.#damaged.keys();
  }

  records(group: number): RecoveredRecords {
    return this.#records.get(group) ?? [];
  }

  /** Which replica of the group has an environment; of several the newest, since the others are left over. */
  #storedReplica(group: number): ReplicaId | null {
    return newestOf(this.#environments.get(group) ?? []);
  }

  /** What keeps replicas from running here, by group. */
  faults(): Map<number, string> {
    const reasons = new Map<number, string>();
    for (const { group, reason } of this.#damaged.values()) reasons.set(group, reason);
    for (const [group, reason] of this.#unreadable) reasons.set(group, reason);
    return reasons;
  }

  get #environments(): Map<number, string[]> {
    if (this.#names !== null) return this.#names;
    const names = new Map<number, string[]>();
    for (const name of this.#options.environments.names()) {
      const named = replicaNamed(name);
      if (named === null) continue;
      const others = names.get(named.group);
      if (others === undefined) names.set(named.group, [name]);
      else others.push(name);
    }
    this.#names = names;
    return names;
  }

  // --- opening and closing -----------------------------------------------------------------------------------------------

  /** Its environment is being closed or removed. */
  isEnding(group: number): boolean {
    return this.#ending.has(group);
  }

  mayOpen(group: number): boolean {
    return !this.#ending.has(group) && !this.#unreadable.has(group);
  }

  /**
   * One that a fault stopped while it was in memory keeps out like one whose damage was found at start, so that what the
   * journal has of it pins no segment any more.
   */
  keepOut(replica: Replica): void {
    const { group, id, halted: reason, sequenceStored } = replica;
    const { journal, quarantine, log } = this.#options;
    if (reason === null || quarantine === undefined || this.#pinsOn.has(group)) return;
    if (this.#damaged.get(group)?.replica !== id) {
      try {
        const records = journal.records(group, sequenceStored);
        quarantine.keep([{ group, replica: id, reason, records }], null);
        log.error({ group, records: records.length }, "replica.kept_out");
      } catch (error) {
        // Without room for what it has, say, or where that cannot be read. It is all in the journal still, and looked at again at the next start.
        this.#pinsOn.add(group);
        log.error({ group, err: error }, "quarantine.keep_failed");
        return;
      }
      this.#damaged.set(group, { group, replica: id, reason });
    }
    journal.forget(group);
  }

  /** It could not be opened, and is not tried again. */
  setAside(group: number, error: unknown): void {
    this.#unreadable.set(group, error instanceof Error ? error.message : String(error));
    this.#options.log.error({ group, err: error }, "replica.cannot_wake");
  }

  isUnreadable(group: number): boolean {
    return this.#unreadable.has(group);
  }

  /**
   * What a replica begins from. Null when it must not begin yet: the directory's leader is asked, or what a predecessor
   * left is removed first.
   * @throws what the environment throws when it does not open
   */
  open(identity: ReplicaMeta): ColdReplica | null {
    const { environments } = this.#options;
    const { group, replica, members } = identity;
    const name = environmentName(identity);
    const existed = environments.exists(name);
    const records = this.records(group);
    if (!existed && isTail(records) && !this.#confirmed.has(group)) {
      // The rest of a group whose beginning is gone: purged, most likely, and the directory here has not heard of it.
      this.dropIfUnknown(group);
      return null;
    }
    const isFresh = !existed && !beginsIn(records, replica) && group !== SYSTEM_GROUP;
    if (isFresh && !this.#directoryIsCurrent && !this.#confirmed.has(group)) return null;
    const joins = isFresh && !members.some(({ id }) => id === replica);
    if (joins && (records.length > 0 || this.#damaged.has(group))) {
      // Of its predecessor nothing may be left when it begins.
      this.#dropLeftovers(group);
      return null;
    }
    const environment = environments.open(name);
    if (!existed) this.#names = null;
    this.#records.delete(group);
    // What the journal lost of a group cannot have been of a replica that joins just now.
    const isKnown = existed && records.length === 0;
    const damage = joins ? null : this.#damageOf(identity, isKnown ? environment : null);
    return { environment, records, damage };
  }

  /** @param stored the environment, when it alone says how far the replica was */
  #damageOf({ tenant, group, replica }: ReplicaMeta, stored: Environment | null): string | null {
    const known = this.#damaged.get(group);
    // One that took the damaged one's place has nothing of it.
    if (known !== undefined && (known.replica ?? replica) === replica) return known.reason;
    if (stored === null || this.#lost === null) return null;
    // It was made later, and nothing of it was in the journal then.
    if (this.#mayLack?.has(environmentName({ tenant, group, replica })) === false) return null;
    // Never checkpointed, and all it ever wrote may be among what was lost.
    const meta = stored.meta();
    const sequence = meta === null ? 0 : metaFromBytes(meta).sequence;
    return sequence < this.#lost.to ? this.#lost.where : null;
  }

  /** Everything of a replica that was in memory is in its environment. */
  close({ group, tenant, environment }: Replica): void {
    const closed = environment
      .close()
      .catch((error: unknown) => {
        this.#options.log.error({ tenant, err: error }, "environment.close_failed");
      })
      .then(() => {
        this.#ending.delete(group);
      });
    this.#ending.set(group, closed);
  }

  /** Resolves when those are closed or removed that are at present. */
  async ended(): Promise<void> {
    await Promise.all(this.#ending.values());
  }

  // --- what is nobody's any more -------------------------------------------------------------------------------------------

  /** Call with each pulse; `isReady`: the directory's leader can be asked. */
  round(now: number, isReady: boolean): void {
    this.#names = null;
    if (isReady && !this.#directoryIsCurrent) this.#askWhetherCurrent();
    if (isReady) this.#sweepSome();
    this.#sweptAt ??= now;
    // Begun anew with each tenant that goes, it would never come to the names that are looked at last.
    if (this.#swept || this.#sweeping.length > 0 || !isReady || now - this.#sweptAt <= SWEEP_MS)
      return;
    this.#sweptAt = now;
    this.#sweep();
  }

  /** New replicas wait for it, and not for the sweep, which gives a node that starts time to answer first. */
  #askWhetherCurrent(): void {
    if (this.#isAsking) return;
    this.#isAsking = true;
    this.#hooks.askDirectory((isCurrent) => {
      this.#isAsking = false;
      if (isCurrent) this.#directoryIsCurrent = true;
    });
  }

  /** Environments may have become nobody's whose replicas sleep, or could not be opened. */
  sweepSoon(): void {
    this.#swept = false;
  }

  /** The directory has news of where the group is. */
  placed(group: number, isHere: boolean): void {
    // Of one that could not be opened the sweep finds what is left; another one may take its place now.
    if (this.#unreadable.delete(group)) this.#swept = false;
    // One that sleeps is found by its name.
    if (!isHere) this.#swept = false;
  }

  /**
   * Environments of tenants that were purged while this node was down, or while they slept. Asks the directory's leader
   * first: one that is behind knows less than the disk.
   */
  #sweep(): void {
    this.#hooks.askDirectory((isCurrent) => {
      // Without a leader now: the next change of the directory asks again.
      if (!isCurrent) return;
      this.#swept = true;
      for (const { group, replica } of this.#damaged.values()) {
        const own = this.#placed(group);
        if (group !== SYSTEM_GROUP && own?.id !== (replica ?? own?.id)) this.#endQuarantine(group);
      }
      // Those that are made from here on are somebody's. The others are looked at while requests are answered.
      this.#sweeping = [...this.#options.environments.names()];
      this.#sweepSome();
    });
  }

  /** Names are being gone through, some with each pulse. */
  get isSweeping(): boolean {
    return this.#sweeping.length > 0;
  }

  #sweepSome(): void {
    for (const name of this.#sweeping.splice(-SWEEP_AT_ONCE)) this.#removeUnlessOwn(name);
  }

  #removeUnlessOwn(environment: string): void {
    const named = replicaNamed(environment);
    if (named === null || named.group === SYSTEM_GROUP) return;
    const { group, id } = named;
    const row = this.#directory.byGroup(group);
    if (row !== undefined && replicaOn(row.placement, this.#options.node)?.id === id) return;
    const replica = this.#hooks.present(group);
    if (replica?.id === id) {
      this.#hooks.discard(replica, row === undefined ? "tenant-deleted" : "moved");
    } else if (!this.#ending.has(group)) {
      this.#remove(group, environment);
    }
  }

  /**
   * Journal records of a group that is not this node's any more are of no use. But a directory that is behind knows less
   * than the journal: its leader is asked first (simulation, seeds 44 and 10106: an acknowledged log was dropped).
   */
  dropIfUnknown(group: number): void {
    if (this.#ending.has(group) || this.#asked.has(group)) return;
    // It has its place here, was told so once, and cannot be opened: what it pins would have it asked with each pulse.
    if (this.#confirmed.has(group) && this.#unreadable.has(group)) return;
    this.#asked.add(group);
    this.#hooks.askDirectory((isCurrent) => {
      this.#asked.delete(group);
      if (!isCurrent) return;
      if (this.#placed(group) !== undefined) {
        this.#confirmed.add(group);
        if (!this.#unreadable.has(group)) this.#hooks.confirmed(group);
        return;
      }
      if (this.#hooks.present(group) === null && !this.#ending.has(group))
        this.#dropLeftovers(group);
    });
  }

  /** The replica of the group that the directory gives to this node. */
  #placed(group: number): PlacedReplica | undefined {
    const row = this.#directory.byGroup(group);
    return row === undefined ? undefined : replicaOn(row.placement, this.#options.node);
  }

  /** Of a group that has nothing in memory: all that is on the disk. */
  #dropLeftovers(group: number): void {
    const { environments } = this.#options;
    const names = this.#environments.get(group) ?? [];
    this.#environments.delete(group);
    this.#endAll(
      group,
      Promise.all(names.map((name) => environments.remove(name))).then(() => {}),
    );
  }

  /** All that is on the disk of a replica that was stopped and is not in memory any more. */
  removeStopped(replica: Replica): void {
    this.#endAll(replica.group, this.#removeWhenStored(replica));
  }

  async #removeWhenStored(replica: Replica): Promise<void> {
    const { tenant, group, id } = replica;
    await new Promise<void>((resolve) => {
      replica.whenStored(resolve);
    });
    await replica.environment.close();
    await this.#options.environments.remove(environmentName({ tenant, group, replica: id }));
  }

  /** The journal's records go when the environments have gone. */
  #endAll(group: number, removed: Promise<void>): void {
    this.#hooks.gone(group);
    const ended = removed
      .then(
        () => this.#forgetRecords(group),
        (error: unknown) => {
          this.#options.log.error({ group, err: error }, "environment.remove_failed");
        },
      )
      .then(() => {
        this.#ending.delete(group);
        this.#endQuarantine(group);
      });
    this.#ending.set(group, ended);
  }

  /** One environment, of a replica of which the journal has nothing. */
  #remove(group: number, environment: string): void {
    this.#hooks.gone(group);
    const removed = this.#options.environments
      .remove(environment)
      .catch((error: unknown) => {
        this.#options.log.error({ environment, err: error }, "environment.remove_failed");
      })
      .then(() => {
        this.#ending.delete(group);
        this.#endQuarantine(group);
      });
    this.#ending.set(group, removed);
  }

  /** The replica that the journal's records of this group speak of is gone. */
  #forgetRecords(group: number): void {
    this.#records.delete(group);
    this.#options.journal.forget(group);
    // Without a name it would be taken for its successor's.
    if (this.#damaged.get(group)?.replica === null) this.#endQuarantine(group);
  }

  /** Only when nothing is left of the replica that could be opened: a directory that is behind may name it once more. */
  #endQuarantine(group: number): void {
    const known = this.#damaged.get(group);
    if (known === undefined) return;
    // It is rare, and what was removed just now may be among the names.
    this.#names = null;
    const names = this.#environments.get(group) ?? [];
    if (names.some((name) => replicaNamed(name)?.id === known.replica)) return;
    this.#damaged.delete(group);
    try {
      this.#options.quarantine?.remove(group);
    } catch (error) {
      // It concerns nobody any more, and is looked at again with the next sweep after a start.
      this.#options.log.error({ group, err: error }, "quarantine.remove_failed");
    }
  }
}

// --- records that are gone without the name of their group ----------------------------------------------------------------

/** Of what a reading of the journal found, and what was known before: the newest, and which environments it may concern. */
export function newestLost(
  { lost }: Pick<JournalRecovery, "lost">,
  known: LostRecords | null,
  names: () => readonly string[],
): LostRecords | null {
  const environments = lost.length === 0 ? [] : names();
  return lost.reduce<LostRecords | null>(
    (newest, { to, where }) =>
      newest === null || newest.to < to ? { to, where, environments } : newest,
    known,
  );
}

// --- names of environments -------------------------------------------------------------------------------------------------

export function environmentName(identity: {
  readonly tenant: string;
  readonly group: number;
  readonly replica: ReplicaId;
}): string {
  return `${identity.tenant}.${identity.group}.${identity.replica}`;
}

/** Of several of one group: the others are left over. */
function newestOf(names: readonly string[]): ReplicaId | null {
  return names.length === 0 ? null : Math.max(...names.map((name) => replicaNamed(name)?.id ?? 0));
}

/** Tenant, group and replica in an environment's name; null for a name that is none. */
export function replicaNamed(
  environment: string,
): { tenant: string; group: number; id: ReplicaId } | null {
  const match = /^(.+)\.(\d+)\.(\d+)$/.exec(environment);
  return match === null
    ? null
    : { tenant: match[1] as string, group: Number(match[2]), id: Number(match[3]) };
}

// --- records of the journal ------------------------------------------------------------------------------------------------

/** They do not begin with the replica's first one. */
function isTail(records: RecoveredRecords): boolean {
  for (const { payload } of records) return parseRecord(payload).kind !== "create";
  return false;
}

/** Which replica they began; null when they do not say. */
function creationIn(records: RecoveredRecords): ReplicaId | null {
  let id: ReplicaId | null = null;
  for (const { payload } of records) {
    const parsed = parseRecord(payload);
    if (parsed.kind === "create") id = parsed.meta.replica;
  }
  return id;
}

/** They still have the beginning of this replica. */
function beginsIn(records: RecoveredRecords, id: ReplicaId): boolean {
  for (const { payload } of records) {
    const parsed = parseRecord(payload);
    if (parsed.kind === "create" && parsed.meta.replica === id) return true;
  }
  return false;
}
