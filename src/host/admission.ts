/**
 * Which writes may begin now, on a node that leads many tenants and has no processor left.
 *
 * Where turns come in time, every write begins at once. When writes of tenants that write little begin to take long beside
 * one that writes much, the latter's are gathered: they begin in batches of a bounded size, the next one not before the
 * last is through and the pace's time is over. A round through three nodes costs some ten times what one write more in it
 * does, so that fewer and fuller rounds free far more processor than fewer writes in as many rounds would.
 *
 * - Whoever has fewer than BUSY_WRITES at a time, or writes no more than others, is never held up: so is nobody who is alone.
 * - The pace follows from what it is for: it rises when more than one in thirty quiet writes is late, and falls otherwise.
 * - Nothing here is replicated, and nothing is lost: what waits was not proposed, and who waits too long is told so.
 *
 * Times are milliseconds of a monotonic clock, passed in.
 */
import { SYSTEM_GROUP } from "./directory.ts";
import type { AdmissionStatus } from "./ports.ts";

/** What a quiet tenant's write may take, from being proposed to being applied, beyond twice the least of the last minute. */
export const LATE_MS = 5;
/** A tenant with as many writes at a time, counting those that wait, and more than others, may be held up. */
export const BUSY_WRITES = 4;
/** What begins together, of all busy tenants of the node, in turn. */
export const BATCH_WRITES = 32;
const BATCH_BYTES = 256 * 1024;
/** One step of the pace: at full speed a batch begins with each pulse of the host. */
export const PACE_STEP_MS = 25;
/** The slowest pace, in steps: however late others are, a batch begins so often. */
export const PACE_MAX = 4;
/** Where nobody needs to wait any more, so much of what is held begins with each pulse: all at once would delay everybody. */
export const RELEASE_WRITES = 8 * BATCH_WRITES;
const RELEASE_BYTES = 8 * BATCH_BYTES;
/** What waits beyond that is refused: writes and bytes of one tenant, and bytes of all. */
export const HELD_WRITES_MAX = 1_000;
const HELD_BYTES_MAX = 16 * 1024 * 1024;
const HELD_BYTES_OF_ALL_MAX = 64 * 1024 * 1024;
/** A late write adds so much to the pace. One in time takes a 29th of it back: so one in thirty is late where it rests. */
const PACE_RISE = 0.5;
const PACE_FALL = PACE_RISE / 29;
/** Two late ones within this are no accident: the pace is this at least, for it must not take long to find. */
const STANDING_MS = 100;
const PACE_STANDING = 2;
/** What a span without a late one takes back. */
const PACE_RELIEF = 0.5;
/** Writes are counted by such spans: what a tenant writes is that of the present one and of the one before. */
const SPAN_MS = 1_000;
const LEAST_SPAN_MS = 30_000;

/** A write that wants to begin. */
export interface Entrant {
  readonly bytes: number;
  readonly deadline: number;
  /** Its turn has come; the replica may lead no more. */
  readonly run: () => void;
  /** It does not begin: too many wait or its time is up, or this node stops. */
  readonly refuse: (reason: Refusal) => void;
}

export type Refusal = "overloaded" | "stopping";

/** What a tenant that wrote within the last two spans does. */
interface Load {
  underWay: number;
  writes: number;
  writesBefore: number;
  /** What it writes is held, and begins in batches. */
  isPaced: boolean;
  held: Entrant[];
  heldBytes: number;
}

/** A write under way. */
export interface Admitted {
  readonly group: number;
  readonly at: number;
  /** What it takes says how it fares with those who write little. */
  readonly isQuiet: boolean;
}

export class Admission {
  readonly #loads = new Map<number, Load>();
  /** Those whose writes are held, who was served last at the end. */
  readonly #paced = new Set<Load>();
  #writes = 0;
  #writesBefore = 0;
  #spanAt = -Infinity;
  /** In steps; below one nobody is held up. */
  #pace = 0;
  #dueAt = -Infinity;
  #busyAt = -Infinity;
  #lateAt = -Infinity;
  /** What a quiet write took at least, in this span and in the one before. */
  #least = Infinity;
  #leastBefore = Infinity;
  #leastAt = -Infinity;
  #heldBytes = 0;
  #waiting = 0;
  #held = 0;
  #refused = 0;
  #quiet = 0;
  #late = 0;
  #isStopping = false;

  /** Whether a write may begin now. If not, its `run` or its `refuse` is called later, or `refuse` now: too many wait. */
  enter(group: number, write: Entrant, now: number): boolean {
    // What nodes and operators do must not wait for tenants.
    if (group === SYSTEM_GROUP) return true;
    const load = this.#of(group);
    if (load.underWay + load.held.length + 1 >= BUSY_WRITES && this.#share(load) > 1) {
      this.#busyAt = now;
      if (this.#pace >= 1 && !load.isPaced) {
        load.isPaced = true;
        this.#paced.add(load);
      }
    }
    // Those that are held from before begin by and by; others need not line up behind them.
    if (!load.isPaced || this.#pace < 1) return true;
    if (this.#isStopping || !this.#hasRoom(load, write.bytes)) {
      this.#refuse(write);
      return false;
    }
    load.held.push(write);
    load.heldBytes += write.bytes;
    this.#heldBytes += write.bytes;
    this.#waiting += 1;
    this.#held += 1;
    return false;
  }

  #refuse(write: Entrant): void {
    this.#refused += 1;
    write.refuse(this.#isStopping ? "stopping" : "overloaded");
  }

  #hasRoom(load: Load, bytes: number): boolean {
    if (load.held.length >= HELD_WRITES_MAX) return false;
    if (this.#heldBytes + bytes > HELD_BYTES_OF_ALL_MAX) return false;
    return load.heldBytes === 0 || load.heldBytes + bytes <= HELD_BYTES_MAX;
  }

  /** A write begins; `ended` is owed. */
  began(group: number, now: number): Admitted {
    const load = this.#of(group);
    const isQuiet = load.underWay === 0 && !load.isPaced && this.#share(load) < 0.5;
    load.underWay += 1;
    load.writes += 1;
    this.#writes += 1;
    return { group, at: now, isQuiet };
  }

  ended({ group, at, isQuiet }: Admitted, now: number): void {
    this.#of(group).underWay -= 1;
    if (!isQuiet) return;
    const took = now - at;
    const late = LATE_MS + 2 * Math.min(this.#least, this.#leastBefore);
    this.#least = Math.min(this.#least, took);
    // Nobody is there who could be held up.
    if (now - this.#busyAt > SPAN_MS) return;
    this.#quiet += 1;
    if (took <= late) return this.#setPace(this.#pace - PACE_FALL);
    this.#late += 1;
    const least = now - this.#lateAt < STANDING_MS ? PACE_STANDING : 0;
    this.#lateAt = now;
    this.#setPace(Math.max(least, this.#pace + PACE_RISE));
  }

  /** Call every PACE_STEP_MS. */
  pulse(now: number): void {
    if (now - this.#leastAt > LEAST_SPAN_MS) {
      this.#leastBefore = this.#least;
      this.#least = Infinity;
      this.#leastAt = now;
    }
    if (now - this.#spanAt > SPAN_MS) {
      this.#spanAt = now;
      this.#nextSpan();
      // However few quiet writes there are, or none any more.
      if (now - this.#lateAt > SPAN_MS) this.#setPace(this.#pace - PACE_RELIEF);
    }
    if (this.#paced.size === 0) return;
    if (this.#pace < 1) return this.#releaseSome(now);
    // Pulses are not exact: one that is nearly due is not worth waiting for.
    if (now < this.#dueAt - PACE_STEP_MS / 2) return;
    if (this.#releaseBatch(now))
      this.#dueAt = Math.max(this.#dueAt, now - PACE_STEP_MS) + this.#pace * PACE_STEP_MS;
  }

  /** Refuses those whose time is up: those before them may be long under way. Call now and then. */
  expire(now: number): void {
    this.#refuseHeld(({ deadline }) => deadline <= now);
  }

  /** This node stops: what is held was not begun, and may be begun elsewhere. Nothing is held from here on. */
  stop(): void {
    this.#isStopping = true;
    this.#refuseHeld(() => true);
  }

  #refuseHeld(isRefused: (write: Entrant) => boolean): void {
    for (const load of this.#paced) {
      const refused = load.held.filter(isRefused);
      if (refused.length === 0) continue;
      load.held = load.held.filter((write) => !isRefused(write));
      this.#left(load, refused);
      for (const write of refused) this.#refuse(write);
    }
  }

  get status(): AdmissionStatus {
    return {
      paceMs: this.#pace < 1 ? 0 : this.#pace * PACE_STEP_MS,
      waiting: this.#waiting,
      held: this.#held,
      refused: this.#refused,
      quiet: this.#quiet,
      late: this.#late,
    };
  }

  #of(group: number): Load {
    let load = this.#loads.get(group);
    if (load === undefined) {
      load = { underWay: 0, writes: 0, writesBefore: 0, isPaced: false, held: [], heldBytes: 0 };
      this.#loads.set(group, load);
    }
    return load;
  }

  /** What it writes, by what those write on average who write at all. */
  #share(load: Load): number {
    const writes = this.#writes + this.#writesBefore;
    return writes === 0 ? 1 : ((load.writes + load.writesBefore) * this.#loads.size) / writes;
  }

  #setPace(pace: number): void {
    this.#pace = Math.min(PACE_MAX, Math.max(0, pace));
  }

  #nextSpan(): void {
    for (const [group, load] of this.#loads) {
      if (load.writes === 0 && load.underWay === 0 && !load.isPaced) this.#loads.delete(group);
      load.writesBefore = load.writes;
      load.writes = 0;
    }
    this.#writesBefore = this.#writes;
    this.#writes = 0;
  }

  /** Nobody needs to wait any more. Each gets its part of what may begin now; who has more held waits for the next pulse. */
  #releaseSome(now: number): void {
    let writes = RELEASE_WRITES;
    let bytes = RELEASE_BYTES;
    const loads = [...this.#paced];
    for (const [at, load] of loads.entries()) {
      if (writes <= 0 || bytes <= 0) return;
      const share = Math.max(1, Math.floor(writes / (loads.length - at)));
      const begun = this.#release(load, share, bytes, now);
      writes -= begun.writes;
      bytes -= begun.bytes;
      this.#paced.delete(load);
      load.isPaced = load.held.length > 0;
      if (load.isPaced) this.#paced.add(load);
    }
  }

  /** @returns whether anything began */
  #releaseBatch(now: number): boolean {
    const ready = [...this.#paced].filter((load) => load.underWay === 0);
    let writes = BATCH_WRITES;
    let bytes = BATCH_BYTES;
    for (const [at, load] of ready.entries()) {
      if (writes <= 0 || bytes <= 0) break;
      this.#paced.delete(load);
      // It writes no more than anybody may.
      load.isPaced = load.held.length >= BUSY_WRITES;
      const share = load.isPaced ? Math.max(1, Math.floor(writes / (ready.length - at))) : Infinity;
      const begun = this.#release(load, share, bytes, now);
      // What is too much for this batch waits for another.
      load.isPaced ||= load.held.length > 0;
      if (load.isPaced) this.#paced.add(load);
      writes -= begun.writes;
      bytes -= begun.bytes;
    }
    return writes < BATCH_WRITES;
  }

  #release(
    load: Load,
    writesMax: number,
    bytesMax: number,
    now: number,
  ): { writes: number; bytes: number } {
    const begun = { writes: 0, bytes: 0 };
    const batch: Entrant[] = [];
    while (batch.length < load.held.length) {
      const next = load.held[batch.length] as Entrant;
      const isDue = next.deadline > now;
      if (isDue && (begun.writes >= writesMax || begun.bytes >= bytesMax)) break;
      batch.push(next);
      begun.writes += Number(isDue);
      begun.bytes += isDue ? next.bytes : 0;
    }
    load.held.splice(0, batch.length);
    this.#left(load, batch);
    for (const write of batch) {
      if (write.deadline > now) write.run();
      else this.#refuse(write);
    }
    return begun;
  }

  /** These wait no more. */
  #left(load: Load, batch: readonly Entrant[]): void {
    for (const { bytes } of batch) {
      load.heldBytes -= bytes;
      this.#heldBytes -= bytes;
    }
    this.#waiting -= batch.length;
  }
}
