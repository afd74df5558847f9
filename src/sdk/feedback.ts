/**
 * What an instance tells the platform of the versions it got: applied, or rejected and why. Gathered for a while, the
 * latest per name, and all of it anew from time to time, because the platform keeps it in memory only.
 */
import { Backoff, sleep } from "./http.ts";

interface Report {
  readonly name: string;
  readonly version: number;
  readonly state: "applied" | "rejected";
  readonly reason?: string;
}

/** As many as the server takes in one request. */
export const reportsPerRequestMax = 200;
export const reasonLengthMax = 500;

export class Reports {
  readonly #instance: string;
  readonly #timing: { readonly gatherMs: number; readonly renewMs: number };
  readonly #post: (body: unknown, signal: AbortSignal) => Promise<void>;
  readonly #stop = new AbortController();
  /** The latest of each name: bounded by the namespace. */
  readonly #latest = new Map<string, Report>();
  readonly #unsent = new Set<string>();
  #isSending = false;
  #renewal: ReturnType<typeof setTimeout> | undefined;

  constructor(
    instance: string,
    timing: { readonly gatherMs: number; readonly renewMs: number },
    post: (body: unknown, signal: AbortSignal) => Promise<void>,
  ) {
    this.#instance = instance;
    this.#timing = timing;
    this.#post = post;
  }

  /** @param reason null: applied */
  add(name: string, version: number, reason: string | null): void {
    this.#latest.set(
      name,
      reason === null
        ? { name, version, state: "applied" }
        : { name, version, state: "rejected", reason: reason.slice(0, reasonLengthMax) },
    );
    this.#unsent.add(name);
    void this.#send();
  }

  forget(name: string): void {
    this.#latest.delete(name);
    this.#unsent.delete(name);
  }

  close(): void {
    clearTimeout(this.#renewal);
    this.#stop.abort();
  }

  async #send(): Promise<void> {
    if (this.#isSending) return;
    this.#isSending = true;
    const { signal } = this.#stop;
    const backoff = new Backoff(this.#timing.gatherMs, 60_000);
    // Spread out: all instances hear of a version in the same moment.
    await sleep(this.#timing.gatherMs * (1 + 9 * Math.random()), signal);
    while (this.#unsent.size > 0 && !signal.aborted) {
      const names = [...this.#unsent].slice(0, reportsPerRequestMax);
      for (const name of names) this.#unsent.delete(name);
      const values = names.flatMap((name) => this.#latest.get(name) ?? []);
      try {
        await this.#post({ instance: this.#instance, values }, signal);
        backoff.reset();
      } catch {
        // It only informs: nothing else waits for it, and the connection says in its own way what is wrong.
        for (const { name } of values) this.#unsent.add(name);
        await sleep(backoff.next(this.#timing.gatherMs), signal);
      }
    }
    this.#isSending = false;
    clearTimeout(this.#renewal);
    if (!signal.aborted) this.#renewal = setTimeout(() => this.#renew(), this.#timing.renewMs);
  }

  #renew(): void {
    for (const name of this.#latest.keys()) this.#unsent.add(name);
    if (this.#unsent.size > 0) void this.#send();
  }
}
