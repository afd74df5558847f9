/**
 * Rules whose time comes: the leader says so by a command, so that all replicas and watchers see it at one revision.
 * Every node remembers the next time of every group that was applied here since the start, also while it sleeps: a group
 * that sleeps, or lost its leader, is woken for it. Only times are kept; the state has the rest (machine/schedules.ts).
 */
import type { Directory } from "./directory.ts";
import type { Liveness } from "./liveness.ts";
import type { Replica } from "./replica.ts";
import type { WallTime } from "./wall_time.ts";

/** Groups that are woken or proposed to per round. */
const GROUPS_PER_ROUND = 64;
/** What was proposed may take so long; afterwards it is proposed again. */
const PASS_TIMEOUT_MS = 5_000;
/** A follower gives its leader so long to see to it, then wakes it. */
const LEADER_GRACE_MS = 1_000;

interface Entry {
  readonly dueAt: number;
  /** Monotonic ms before which nothing more is proposed for it. */
  proposedUntil: number;
  /** Monotonic ms until which a follower leaves it to its leader; null: it did not ask yet. */
  leaderUntil: number | null;
  /** Monotonic ms until which reads wait for it; null: none does yet. */
  readsUntil: number | null;
}

export interface SchedulesParts {
  readonly time: Pick<WallTime, "nowMs">;
  readonly directory: Directory;
  readonly liveness: Liveness;
}

export interface SchedulesHooks {
  /** The replica of this group that is in memory. */
  present(group: number): Replica | null;
  /** The same, woken if it sleeps; null when there is none, or no room. */
  wake(group: number): Replica | null;
  /** Nobody is known to lead it. */
  campaign(replica: Replica): void;
  /** Runs something of a replica, whose outcome is then sent out. */
  act(replica: Replica, run: () => void): void;
  /** Proposes to this leader that the time has come. */
  pass(replica: Replica, deadline: number, done: () => void): void;
}

export class Schedules {
  readonly #parts: SchedulesParts;
  readonly #hooks: SchedulesHooks;
  readonly #entries = new Map<number, Entry>();
  /** No entry is due before this: saves looking at all of them. */
  #earliest = Number.POSITIVE_INFINITY;

  constructor(parts: SchedulesParts, hooks: SchedulesHooks) {
    this.#parts = parts;
    this.#hooks = hooks;
  }

  /** `dueAt`: wall clock, ms; null: none. */
  set(group: number, dueAt: number | null): void {
    const before = this.#entries.get(group);
    if ((before?.dueAt ?? null) === dueAt) return;
    if (dueAt === null) {
      this.#entries.delete(group);
      return;
    }
    this.#entries.set(group, {
      dueAt,
      proposedUntil: 0,
      leaderUntil: null,
      readsUntil: null,
    });
    this.#earliest = Math.min(this.#earliest, dueAt);
  }

  /** Whether the next time comes within so many ms. */
  isDueWithin(ms: number): boolean {
    return this.#earliest <= this.#parts.time.nowMs() + ms;
  }

  /** The group's entry when its time has come. */
  overdue(group: number): Entry | null {
    const wallMs = this.#parts.time.nowMs();
    if (wallMs < this.#earliest) return null;
    const entry = this.#entries.get(group);
    return entry !== undefined && entry.dueAt <= wallMs ? entry : null;
  }

  /** Call with each pulse. */
  round(now: number): void {
    let started = 0;
    for (const [group, entry] of this.#due()) {
      if (started >= GROUPS_PER_ROUND) return;
      if (this.#hooks.present(group) === null) started += 1;
      const replica = this.#hooks.wake(group);
      if (replica?.halted != null || this.#parts.directory.byGroup(group) === undefined) {
        this.set(group, null);
        continue;
      }
      if (replica === null) continue;
      if (!replica.raft.isLeader) {
        this.#follow(replica, entry, now);
        continue;
      }
      if (entry.proposedUntil > now) continue;
      started += 1;
      entry.proposedUntil = now + PASS_TIMEOUT_MS;
      this.#hooks.pass(replica, entry.proposedUntil, () => {
        entry.proposedUntil = 0;
      });
    }
  }

  *#due(): Iterable<readonly [group: number, entry: Entry]> {
    const wallMs = this.#parts.time.nowMs();
    if (wallMs < this.#earliest) return;
    let earliest = Number.POSITIVE_INFINITY;
    for (const [group, entry] of this.#entries) {
      earliest = Math.min(earliest, entry.dueAt);
      if (entry.dueAt <= wallMs) yield [group, entry];
    }
    this.#earliest = earliest;
  }

  #follow(replica: Replica, entry: Entry, now: number): void {
    const leader = replica.leaderNode;
    if (leader === null || !this.#parts.liveness.supports(leader))
      return this.#hooks.campaign(replica);
    const isFirst = entry.leaderUntil === null;
    if (entry.leaderUntil !== null && entry.leaderUntil > now) return;
    entry.leaderUntil = now + LEADER_GRACE_MS;
    // It may sleep there and not know of it: a read wakes it.
    if (!isFirst) this.#hooks.act(replica, () => replica.read(now + LEADER_GRACE_MS, () => {}));
  }
}
