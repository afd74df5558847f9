/**
 * Apply feedback: which instances took which version of a config, and which refused it and why.
 *
 * Kept in the memory of the node that was told: it is what holds now, not history, and instances tell it anew every few
 * minutes. What is forgotten by a restart, by age or by the bounds below comes back by itself.
 */
import type { FeedbackItem } from "../api/schemas.ts";
import { time } from "./http.ts";

/** What is not told anew for so long is forgotten: three times the clients' interval. */
export const keptMs = 15 * 60_000;
/** One entry per instance and config; beyond it the one told longest ago is forgotten. */
export const perTenantMax = 50_000;
export const perNodeMax = 200_000;

interface Entry {
  readonly version: number;
  /** Null: applied. */
  readonly reason: string | null;
  readonly at: number;
  /** The same on the monotonic clock: what it is forgotten by. */
  readonly toldMs: number;
}

export class Feedback {
  /** By tenant and epoch; in it by config and instance, what was told longest ago first. */
  readonly #tenants = new Map<string, Map<string, Entry>>();
  #count = 0;

  /** When the node is full, the tenant that told most gives way. */
  add(tenant: string, config: string, instance: string, entry: Entry): void {
    const entries = this.#tenants.get(tenant) ?? new Map<string, Entry>();
    const key = `${config} ${instance}`;
    if (entries.delete(key)) this.#count--;
    if (entries.size >= perTenantMax) this.#forgetOldest(tenant, entries);
    else if (this.#count >= perNodeMax) this.#forgetOldest(...this.#largest());
    entries.set(key, entry);
    this.#tenants.set(tenant, entries);
    this.#count++;
  }

  #forgetOldest(tenant: string, entries: Map<string, Entry>): void {
    const [oldest] = entries.keys();
    if (oldest !== undefined && entries.delete(oldest)) this.#count--;
    if (entries.size === 0) this.#tenants.delete(tenant);
  }

  #largest(): [tenant: string, entries: Map<string, Entry>] {
    let largest: [string, Map<string, Entry>] = ["", new Map()];
    for (const one of this.#tenants) if (one[1].size > largest[1].size) largest = one;
    return largest;
  }

  /** What instances told of a config, each the last. */
  of(tenant: string, config: string, nowMs = performance.now()): FeedbackItem[] {
    const entries = this.#tenants.get(tenant);
    const items: FeedbackItem[] = [];
    const prefix = `${config} `;
    for (const [key, { version, reason, at, toldMs }] of entries ?? []) {
      if (toldMs < nowMs - keptMs) {
        entries?.delete(key);
        this.#count--;
      } else if (key.startsWith(prefix))
        items.push({
          instance: key.slice(prefix.length),
          version,
          state: reason === null ? "applied" : "rejected",
          ...(reason !== null && { reason }),
          at: time(at),
        });
    }
    if (entries?.size === 0) this.#tenants.delete(tenant);
    return items;
  }
}
