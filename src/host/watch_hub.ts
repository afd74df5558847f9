/**
 * Who is told of what is applied here. A subscription begins in the same synchronous turn in which it read the state,
 * so that nothing lies between what it saw and what it is told (decision D8).
 */
import type { HistoryRow } from "../machine/rows.ts";
import type { TenantView, WatchListener } from "./ports.ts";

export class WatchHub {
  readonly #listeners = new Map<number, Set<WatchListener>>();
  readonly #failed: (error: unknown) => void;
  count = 0;

  /** `failed` gets what a listener throws: it must not keep the others from hearing. */
  constructor(failed: (error: unknown) => void) {
    this.#failed = failed;
  }

  subscribe(group: number, listener: WatchListener): () => void {
    let listeners = this.#listeners.get(group);
    if (listeners === undefined) {
      listeners = new Set();
      this.#listeners.set(group, listeners);
    }
    listeners.add(listener);
    this.count += 1;
    return () => {
      if (!listeners.delete(listener)) return;
      this.count -= 1;
      if (listeners.size === 0) this.#listeners.delete(group);
    };
  }

  watched(group: number): boolean {
    return this.#listeners.has(group);
  }

  publish(group: number, event: HistoryRow, view: TenantView): void {
    const listeners = this.#listeners.get(group);
    if (listeners === undefined) return;
    for (const listener of listeners) {
      try {
        listener.commit(event, view);
      } catch (error) {
        this.#failed(error);
      }
    }
  }

  /** The replica here goes away, or jumped over revisions (a snapshot): resume with the last cursor. */
  end(group: number, reason: string): void {
    const listeners = this.#listeners.get(group);
    if (listeners === undefined) return;
    this.#listeners.delete(group);
    this.count -= listeners.size;
    for (const listener of listeners) {
      try {
        listener.end(reason);
      } catch (error) {
        this.#failed(error);
      }
    }
  }
}
