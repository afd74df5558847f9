/**
 * When rules of which group begin or end next, as far as this node knows: of every group that was applied here since the
 * start, also while it sleeps. Only times are kept; the state has the rest (machine/schedules.ts).
 */

interface Entry {
  readonly dueAt: number;
  /** Monotonic ms before which nothing more is proposed for it. */
  proposedUntil: number;
  /** Monotonic ms until which a follower leaves it to its leader; null: it did not ask yet. */
  leaderUntil: number | null;
  /** Monotonic ms until which reads wait for it; null: none does yet. */
  readsUntil: number | null;
}

export class Schedules {
  readonly #entries = new Map<number, Entry>();
  /** No entry is due before this: saves looking at all of them. */
  #earliest = Number.POSITIVE_INFINITY;

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

  /** Groups whose time has come. */
  *due(wallMs: number): Iterable<readonly [group: number, entry: Entry]> {
    if (wallMs < this.#earliest) return;
    let earliest = Number.POSITIVE_INFINITY;
    for (const [group, entry] of this.#entries) {
      earliest = Math.min(earliest, entry.dueAt);
      if (entry.dueAt <= wallMs) yield [group, entry];
    }
    this.#earliest = earliest;
  }

  /** The group's entry when its time has come. */
  overdue(group: number, wallMs: number): Entry | null {
    if (wallMs < this.#earliest) return null;
    const entry = this.#entries.get(group);
    return entry !== undefined && entry.dueAt <= wallMs ? entry : null;
  }
}
