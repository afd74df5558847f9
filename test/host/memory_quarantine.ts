/** What a node's quarantine holds, over its lives: durable at once, as the real one is when it returns. */
import type { LostRecords, Quarantine, QuarantinedReplica, Remains } from "../../src/host/ports.ts";

export class MemoryQuarantine implements Quarantine {
  readonly #replicas = new Map<number, QuarantinedReplica>();
  /** What the journal still had, by group. */
  readonly records = new Map<number, Remains["records"]>();
  lost: LostRecords | null = null;

  get replicas(): Iterable<QuarantinedReplica> {
    return this.#replicas.values();
  }

  keep(replicas: readonly Remains[], lost: LostRecords | null): void {
    for (const { group, replica, reason, records } of replicas) {
      this.#replicas.set(group, { group, replica, reason });
      this.records.set(group, records);
    }
    this.lost = lost ?? this.lost;
  }

  remove(group: number): void {
    this.#replicas.delete(group);
  }
}
