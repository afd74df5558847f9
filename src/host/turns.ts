/**
 * Turns: what came in for any replica since the last one goes out together, into one journal write and one frame per peer.
 *
 *   something is done to a replica (`act`, `mark`) → end of the event-loop turn
 *     → every marked replica drains → journal.append(all of them at once) → frames leave
 *     → journal says durable, and so is the environment's name → acknowledged to the replicas, in the order of their
 *       appends → frames leave
 *
 * Whatever runs of a replica runs in `contained`: what it throws stops that replica and nothing else (invariant 5).
 */
import { Problem } from "../api/problems.ts";
import type { StorageAppend } from "../raft/types.ts";
import type { Clock, Journal, Log } from "./ports.ts";
import type { Replica } from "./replica.ts";

/** One append to the journal takes up to this; the rest follows in the next. */
const JOURNAL_WRITE_BYTES = 4 * 1024 * 1024;

/** A record on its way into the journal; `append` null: nobody waits for it. */
interface QueuedRecord {
  readonly group: number;
  readonly payload: Uint8Array;
  readonly replica: Replica;
  readonly append: StorageAppend | null;
}

export interface TurnsHooks {
  /** The replica of this group that is in memory. */
  present(group: number): Replica | null;
  /** The environment of this group is being closed or removed. */
  isEnding(group: number): boolean;
  /** A turn begins. */
  begins(): void;
  /** Frames leave. */
  flush(): void;
  /** There will be a turn. */
  scheduled(): void;
  /** The replica was halted by what it threw. */
  halted(replica: Replica): void;
  /** Nobody knows whether its environment would outlive a loss of power. */
  failed(replica: Replica, error: Error): void;
}

export class Turns {
  readonly #clock: Clock;
  readonly #journal: Journal;
  readonly #log: Log;
  readonly #hooks: TurnsHooks;
  /** Those that have something to do with time. */
  readonly #ticking = new Set<Replica>();
  #dirty: Replica[] = [];
  #scheduled = false;
  #records: QueuedRecord[] = [];
  #journalFull = false;

  constructor(
    { clock, journal, log }: { clock: Clock; journal: Journal; log: Log },
    hooks: TurnsHooks,
  ) {
    this.#clock = clock;
    this.#journal = journal;
    this.#log = log;
    this.#hooks = hooks;
  }

  /** Replicas that are busy. */
  get ticking(): Iterable<Replica> {
    return this.#ticking;
  }

  /** Some replica needs ticks, or the journal is to be asked again. */
  get isBusy(): boolean {
    return this.#ticking.size > 0 || this.#journalFull;
  }

  /** The journal takes no more just now; see `#writeJournal`. */
  get journalFull(): boolean {
    return this.#journalFull;
  }

  mark(replica: Replica): void {
    this.#ticking.add(replica);
    if (replica.dirty) return;
    replica.dirty = true;
    this.#dirty.push(replica);
    this.schedule();
  }

  /** It goes out of memory. */
  forget(replica: Replica): void {
    this.#ticking.delete(replica);
  }

  schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#hooks.scheduled();
    this.#clock.defer(() => this.#turn());
  }

  /** Into the journal with this turn. */
  persist(replica: Replica, payload: Uint8Array, append: StorageAppend | null): void {
    this.#records.push({ group: replica.group, payload, replica, append });
  }

  /** One turn: everything that came in since the last one goes out together. */
  #turn(): void {
    this.#scheduled = false;
    this.#hooks.begins();
    const visiting = this.#dirty;
    this.#dirty = [];
    for (const replica of visiting) {
      replica.dirty = false;
      let more = false;
      this.contained(replica, () => {
        more = replica.drain();
      });
      if (more) this.mark(replica);
    }
    this.#writeJournal();
    this.#hooks.flush();
  }

  #writeJournal(): void {
    while (this.#records.length > 0) {
      let bytes = 0;
      let count = 0;
      while (count < this.#records.length && (count === 0 || bytes < JOURNAL_WRITE_BYTES)) {
        bytes += (this.#records[count] as QueuedRecord).payload.length;
        count += 1;
      }
      const batch = this.#records.slice(0, count);
      let first = 0;
      try {
        first = this.#journal.append(batch, () => this.#persisted(batch, first));
      } catch (error) {
        if (!(error instanceof Problem) || error.code !== "overloaded") throw error;
        // What Raft asked for must be written in order: it waits here, and nothing new is proposed meanwhile.
        this.#journalFull = true;
        return;
      }
      this.#records = this.#records.slice(count);
      // By index, here and below: `entries` makes a pair for each of thousands.
      for (let offset = 0; offset < batch.length; offset++) {
        const { replica, group } = batch[offset] as QueuedRecord;
        replica.sequenceSubmitted = first + offset;
        // Of a replica whose environment was removed meanwhile nothing needs to be kept.
        if (this.#hooks.present(group) !== replica && !this.#hooks.isEnding(group))
          this.#journal.release(group, first + offset);
      }
    }
    this.#journalFull = false;
  }

  #persisted(batch: readonly QueuedRecord[], first: number): void {
    for (let offset = 0; offset < batch.length; offset++) {
      const { replica, append } = batch[offset] as QueuedRecord;
      if (append === null) continue;
      // What a new replica says must not outlive that it was there: damage of the journal could hide that it ever spoke.
      replica.environment.whenKept((error) => {
        if (error !== null) return this.#hooks.failed(replica, error);
        this.act(replica, () => {
          replica.persisted(append, first + offset);
          replica.resumeLane();
        });
      });
    }
    this.#hooks.flush();
    if (this.#journalFull) this.schedule();
  }

  /** Runs something of a replica; what it throws stops that replica and nothing else (invariant 5). */
  contained(replica: Replica, run: () => void): void {
    try {
      run();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.#log.error(
        { tenant: replica.tenant, group: replica.group, replica: replica.id, err: error },
        "replica.halted",
      );
      replica.halt(reason);
      this.#ticking.delete(replica);
      this.#hooks.halted(replica);
    }
  }

  /** The same, and what it leads to goes out with the next turn. */
  act(replica: Replica, run: () => void): void {
    // One that slept or was discarded is another object when it wakes, and would not know of what is done to this one.
    if (replica.halted !== null || this.#hooks.present(replica.group) !== replica) return;
    this.contained(replica, run);
    if (replica.halted === null) this.mark(replica);
  }

  /** Call every TICK_MS. */
  tick(): void {
    for (const replica of this.#ticking) {
      if (replica.halted !== null || replica.idle) {
        this.#ticking.delete(replica);
        continue;
      }
      this.contained(replica, () => replica.tick());
      if (replica.halted === null && replica.hasNews) this.mark(replica);
    }
  }
}
