/**
 * When replicas are written to their environments, so that the journal lets go of what it holds for them: when too much of
 * one waits, when the journal holds too much for any, and all that it held at start. A few at a time.
 */
import type { ColdReplicas } from "./cold_replicas.ts";
import { SYSTEM_GROUP } from "./directory.ts";
import type { Journal } from "./ports.ts";
import type { Replica } from "./replica.ts";

const AT_ONCE = 8;
/** So many more at once for each further `journalSegments` of the journal; 8 a pulse are 320 a second. */
const AT_ONCE_MAX = 64;
/**
 * Up to this part of the most that the journal may hold there is no hurry: of thousands of tenants that are all written to,
 * each checkpoint opens an environment, and is for the more writes the longer it waits.
 */
const CALM_PART = 1 / 4;
/** Of what the journal held at start, so much is applied per pulse: requests are answered in between. */
const RECOVERY_BYTES_PER_PULSE = 256 * 1024;
/** And so many times as much while no changes are taken. */
const RECOVERY_BEHIND_FACTOR = 4;
/** Of the bound of segments, what is left when changes are taken again: each segment that goes would turn it otherwise. */
const CAUGHT_UP_PART = 7 / 8;

export interface CheckpointTuning {
  /** Overlay and log tail of a replica beyond this are written. */
  readonly checkpointBytes: number;
  /**
   * Those of the directory: its rows are not overwritten while they wait, so that a large checkpoint saves nothing and
   * holds memory (100,000 tenants, bench/density).
   */
  readonly directoryCheckpointBytes: number;
  /** Those of a tenant which is being restored: all of it comes at once, and what waits should be no more than this. */
  readonly restoreCheckpointBytes: number;
  /** Journal segments beyond this many make the replicas that pin the oldest ones write. */
  readonly journalSegments: number;
  /** Beyond this many, for want of checkpoints, changes are refused: what is not checkpointed is in memory too. */
  readonly journalSegmentsMax: number;
}

export const checkpointTuningDefaults: CheckpointTuning = {
  checkpointBytes: 16 * 1024 * 1024,
  directoryCheckpointBytes: 4 * 1024 * 1024,
  restoreCheckpointBytes: 2 * 1024 * 1024,
  journalSegments: 4,
  journalSegmentsMax: 64,
};

export interface CheckpointHooks {
  /** The replica of this group that is in memory. */
  present(group: number): Replica | null;
  /** The same, woken if it sleeps; null when there is none, or no room. */
  wake(group: number): Replica | null;
  /** Runs something of a replica; what it throws stops that replica alone. */
  contained(replica: Replica, run: () => void): void;
  /** So many of at most `max` that each keep an environment busy. */
  busyMax(max: number): number;
  /** Of this stopped replica the journal shall hold nothing any more, unless it may be the only one that is left. */
  giveWay(replica: Replica): void;
  /** `isBehind` is another than before. */
  behindChanged(): void;
}

export class Checkpoints {
  readonly #journal: Journal;
  readonly #cold: ColdReplicas;
  readonly #tuning: CheckpointTuning;
  readonly #hooks: CheckpointHooks;
  readonly #queue = new Set<number>();
  readonly #underWay = new Set<Replica>();
  /** Changes come faster than they are checkpointed, and may not be taken until that has changed. */
  isBehind = false;

  constructor(
    journal: Journal,
    cold: ColdReplicas,
    tuning: CheckpointTuning,
    hooks: CheckpointHooks,
  ) {
    this.#journal = journal;
    this.#cold = cold;
    this.#tuning = tuning;
    this.#hooks = hooks;
  }

  /** Some are to be written in the next rounds. */
  get isBusy(): boolean {
    return this.#queue.size > 0 || this.isBehind;
  }

  /** In one of the next rounds; a group that sleeps is woken for it. */
  queue(group: number): void {
    this.#queue.add(group);
  }

  /** Queues it when too much of it waits. */
  look(replica: Replica): void {
    // Whether it is being restored is a row of its own, which only those are asked for that have much.
    if (replica.checkpointBytes <= this.#leastBytes) return;
    this.#hooks.contained(replica, () => {
      if (replica.checkpointBytes > this.#bytesMax(replica)) this.#queue.add(replica.group);
    });
  }

  get #leastBytes(): number {
    const { checkpointBytes, directoryCheckpointBytes, restoreCheckpointBytes } = this.#tuning;
    return Math.min(checkpointBytes, directoryCheckpointBytes, restoreCheckpointBytes);
  }

  #bytesMax({ group, restoring }: Replica): number {
    const { checkpointBytes, directoryCheckpointBytes, restoreCheckpointBytes } = this.#tuning;
    const own =
      group === SYSTEM_GROUP
        ? directoryCheckpointBytes
        : restoring
          ? restoreCheckpointBytes
          : checkpointBytes;
    return Math.min(checkpointBytes, own);
  }

  /** Call with each pulse. `isShort`: the disk is nearly full, and gets its room back early. */
  round(isShort: boolean): void {
    const { journalSegments, journalSegmentsMax } = this.#tuning;
    const { segments } = this.#journal.status;
    this.#lookBehind(segments);
    const bound = isShort ? 1 : journalSegments;
    const pinning = new Set<number>();
    if (segments > bound && this.#queue.size < AT_ONCE_MAX) {
      for (const group of this.#journal.pinning(bound)) {
        pinning.add(group);
        this.#queue.add(group);
      }
    }
    const hurry = Math.max(0, segments - Math.floor(journalSegmentsMax * CALM_PART));
    const pressure = 1 + Math.floor(hurry / journalSegments);
    const atOnce = this.#hooks.busyMax(Math.min(AT_ONCE_MAX, AT_ONCE * pressure));
    const recoveryBytes = RECOVERY_BYTES_PER_PULSE * (this.isBehind ? RECOVERY_BEHIND_FACTOR : 1);
    let recoveredBytes = 0;
    // Some are queued again meanwhile: they wait for the next round.
    let left = this.#queue.size;
    for (const group of this.#queue) {
      if (left-- === 0 || this.#underWay.size >= atOnce) return;
      const records = this.#hooks.present(group) === null ? this.#cold.records(group) : [];
      if (records.length > 0) {
        if (recoveredBytes >= recoveryBytes) continue;
        for (const { payload } of records) recoveredBytes += payload.length;
      }
      this.#queue.delete(group);
      const replica = this.#hooks.wake(group);
      if (replica === null) {
        this.#cold.dropIfUnknown(group);
      } else if (replica.halted !== null) {
        // It would pin its segments, and all that follow. Before that a start may mend what stopped it.
        if (pinning.has(group)) this.#hooks.giveWay(replica);
      } else if (replica.needsCheckpoint) {
        this.#begin(replica);
      }
    }
  }

  /** What only stopped replicas pin takes no memory: the room on the disk bounds it, and they stop nobody else. */
  #lookBehind(segments: number): void {
    const { journalSegmentsMax } = this.#tuning;
    const max = Math.floor(journalSegmentsMax * (this.isBehind ? CAUGHT_UP_PART : 1));
    const isBehind =
      segments > max && this.#journal.pinning(max).some((group) => this.#isAwaited(group));
    if (isBehind === this.isBehind) return;
    this.isBehind = isBehind;
    this.#hooks.behindChanged();
  }

  /** A checkpoint of it will come. */
  #isAwaited(group: number): boolean {
    const replica = this.#hooks.present(group);
    return replica === null ? !this.#cold.isUnreadable(group) : replica.halted === null;
  }

  #begin(replica: Replica): void {
    this.#hooks.contained(replica, () => {
      if (replica.checkpoint()) this.#underWay.add(replica);
    });
  }

  /** Begins as many of these as may be at once, and takes them off the list. */
  beginSome(replicas: Replica[]): void {
    const count = this.#hooks.busyMax(AT_ONCE_MAX) - this.#underWay.size;
    for (const replica of replicas.splice(0, count)) this.#begin(replica);
  }

  /** It is written, or failed. */
  ended(replica: Replica): void {
    this.#underWay.delete(replica);
  }
}
