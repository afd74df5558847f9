/**
 * The live client: holds the effective values of one namespace for one set of labels, as one consistent snapshot that
 * follows the server. Reads are synchronous and never fail; everything that can fail happens behind, is retried, and
 * shows in `status`. Until the server is heard, it serves what was kept from before (`cache`) or came with the program
 * (`bootstrap`). A value that does not parse or does not fit its schema is not served: the last good one stays.
 *
 * One loop owns the connection. It prefers the event stream and falls back to long polling (the same frames) where
 * something between here and the server swallows streams. Memory is bounded by the namespace's size: a consumer that
 * does not keep up gets the newest change per name, never a queue that grows.
 */
import { Problem } from "../api/problems.ts";
import type { ContentFormat, Labels } from "../model/release.ts";
import {
  Backoff,
  baseUrls,
  path,
  problemOf,
  reasonOf,
  ServerProblem,
  sleep,
  Unreachable,
} from "./http.ts";
import type { Fetch, Token } from "./http.ts";
import { EventStreamParser, FrameError, frameOf, framesOf, same, Snapshot } from "./watch.ts";
import type { Frame, Held, HeldChange } from "./watch.ts";
import { differences } from "./diff.ts";
import type { Difference } from "./diff.ts";
import { Reports } from "./feedback.ts";

/** Names and types of configs; by default any name, of unknown type. `conflux gen types` writes one. */
export type ConfigTypes = object;

export interface ConfluxOptions<T extends ConfigTypes = Record<string, unknown>> {
  /** Gateway, or several that are tried in turn. Not needed with `offline`. */
  readonly url?: string | readonly string[];
  /** A key of kind `client` is enough (any kind but root's works within its namespaces). */
  readonly token?: Token;
  readonly tenant: string;
  /** Default: `default`. */
  readonly namespace?: string;
  /** What this client says of itself; the release rules look at it. */
  readonly labels?: Labels;
  /** Values to serve until the first snapshot is here, and for names that are not released. */
  readonly defaults?: Readonly<Record<string, unknown>>;
  /** Follow only this config. Default: all of the namespace. */
  readonly name?: string;
  /** By name: what values must fit (zod, valibot, arktype, … of any maker that follows Standard Schema). */
  readonly schemas?: { readonly [K in keyof T]?: StandardSchema<T[K]> };
  /** Where the last known good values are kept over starts. */
  readonly cache?: Cache;
  /** What to serve until the server is heard: what `snapshot()` or `GET …/values` gave, as object or JSON text. */
  readonly bootstrap?: Bootstrap | string;
  /** Never connects: serves cache, bootstrap and defaults. */
  readonly offline?: boolean;
  /** Tells the platform which versions this instance took or refused, under this name. */
  readonly instance?: string;
  /**
   * What is reported here never stops the client: failing callbacks, content that does not parse; that no server answers,
   * once and only before any did; that one refuses the key or the request. Default: console.error.
   */
  readonly onError?: (error: unknown) => void;
  readonly fetch?: Fetch;
  readonly timing?: Partial<Timing>;
}

/** All waits, in milliseconds. */
export interface Timing {
  /** Until the server asks for another one by `retry:`. */
  readonly backoffBaseMs: number;
  readonly backoffCapMs: number;
  /**
   * A connection that was alive this long makes the next wait short again. No less than the longest wait: so a server
   * that takes and drops connections is asked no more often than one that is gone, and a proxy that cuts each stream
   * after a while costs a moment each time.
   */
  readonly healthyMs: number;
  /** A stream that shows no byte in this time is swallowed by something. */
  readonly firstBytesMs: number;
  /** No byte for this long: the connection is dead. 2.5 bookmark intervals. */
  readonly idleMs: number;
  /** How often that is looked at: who slept meanwhile finds the connection dead so soon after it woke. */
  readonly lookMs: number;
  /** How long one long poll is held by the server. */
  readonly pollWaitMs: number;
  /** How long to poll before the stream is tried again. */
  readonly pollingMs: number;
  /** Between attempts when the key or the request is refused. */
  readonly refusedMs: number;
  readonly requestMs: number;
  /** Changes are kept in the cache, and told to the platform, together for this long. */
  readonly gatherMs: number;
  /** How often the platform is told everything anew. */
  readonly renewMs: number;
}

export const defaultTiming: Timing = {
  backoffBaseMs: 100,
  backoffCapMs: 10_000,
  healthyMs: 10_000,
  firstBytesMs: 3_000,
  idleMs: 37_500,
  lookMs: 5_000,
  pollWaitMs: 30_000,
  pollingMs: 300_000,
  refusedMs: 60_000,
  requestMs: 10_000,
  gatherMs: 1_000,
  renewMs: 300_000,
};

/** Where a value comes from: the server, an earlier start's memory of it, the bootstrap, or the caller's default. */
export type Source = "live" | "cache" | "file" | "default";

export interface Entry<T = unknown> {
  readonly name: string;
  /** JSON and flags parsed (and frozen: all readers share it), other formats as text. */
  readonly value: T;
  /** Null when the value is a default. */
  readonly version: number | null;
  readonly hash: string | null;
  readonly format: ContentFormat | null;
  /**
   * Id of the release rule that gave this version, null when none of its rules did. Absent where there are no rules, or
   * they are not known here: only a `ConfluxServer` has them.
   */
  readonly rule?: string | null;
  readonly source: Source;
  /** Milliseconds since a server last said that this is so; null: never, as far as is known. */
  readonly staleMs: number | null;
  /** Of the snapshot it was read from: entries read in one turn have the same. 0 = no snapshot yet. */
  readonly revision: number;
}

export interface Change {
  readonly name: string;
  /** Undefined (or the default) when there was none. */
  readonly old: unknown;
  /** Undefined (or the default) when it is no longer released for these labels. */
  readonly new: unknown;
  readonly revision: number;
  /** The new value with its version and hash. */
  readonly entry: Entry;
  /** What differs between old and new, where; worked out when asked for. */
  readonly diff: readonly Difference[];
}

/** Standard Schema 1, as much of it as is used here (https://standardschema.dev). */
export interface StandardSchema<T = unknown> {
  readonly "~standard": {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => StandardResult | Promise<StandardResult>;
    readonly types?: { readonly input: unknown; readonly output: T } | undefined;
  };
}

interface StandardResult {
  readonly value?: unknown;
  readonly issues?: readonly { readonly message: string }[] | undefined;
}

/** Values as of one revision, to begin with. */
export interface Bootstrap {
  readonly values: Readonly<Record<string, Held>>;
  /** Where to go on from; without it the server sends everything. */
  readonly cursor?: string;
  /** When a server last said so, milliseconds since 1970. */
  readonly at?: number;
}

/** Keeps one text. May answer at once (then values are there at once), or later. */
export interface Cache {
  load(): string | null | Promise<string | null>;
  save(text: string): void | Promise<void>;
}

/** Names are any where no types are given. */
type AnyName<T> = string extends keyof T ? string : never;

export type State = "connecting" | "live" | "reconnecting" | "refused" | "offline" | "closed";

export interface Status {
  /** `reconnecting`: values are served and may be old. `refused`: the server will not have this key or request. */
  readonly state: State;
  readonly revision: number;
  readonly cursor: string;
  readonly via: "stream" | "poll";
  readonly url: string;
  /** Since the server was last heard; null = never. */
  readonly silentMs: number | null;
  /** The last failure, until a connection works again. */
  readonly problem: Error | null;
}

/** Repeating such a request without changing it cannot help. 404 is left out: a tenant may be on its way. */
const refusals: ReadonlySet<number> = new Set([400, 401, 403, 405, 406, 410, 413, 414, 415, 431]);

const fetchesAtOnce = 4;

export class Conflux<T extends ConfigTypes = Record<string, unknown>> {
  readonly #options: ConfluxOptions<T>;
  readonly #timing: Timing;
  readonly #urls: readonly string[];
  readonly #fetch: Fetch;
  readonly #base: string;
  readonly #query: string;
  readonly #snapshot = new Snapshot();
  readonly #backoff: Backoff;
  readonly #stop = new AbortController();
  readonly #queues = new Set<ChangeQueue>();
  readonly #callbacks = new Set<(change: Change) => unknown>();
  readonly #stateCallbacks = new Set<(status: Status) => unknown>();
  readonly #waiting = new Set<() => void>();
  /** What is served: of each name the latest that could be read. */
  readonly #good = new Map<string, Good>();
  readonly #done: Promise<void>;
  /** Where the snapshot is from. */
  #origin: Source = "default";
  /** Of a snapshot that is not from a server heard by us: when one last said so. */
  #knownAt: number | null = null;
  #saving: ReturnType<typeof setTimeout> | undefined;
  #reports: Reports | null = null;
  /** That no url ever answered is reported once. */
  #isUnheardTold = false;

  #state: State = "connecting";
  #problem: Error | null = null;
  #attempt = 0;
  #heardAt: number | null = null;
  /** The same by the wall clock: the other one may stand still while the machine sleeps. */
  #heardWallMs = 0;
  /** For how long the last stream had signs of life. */
  #aliveMs = 0;
  /** Until when to poll instead of streaming; 0 = stream. */
  #pollUntil = 0;
  /** Evidence that streams are swallowed here: 2 is enough. */
  #swallowed = 0;
  /** After a frame that could not be understood, ask for everything anew. */
  #resync = false;

  /** Connects in the background at once. Call `close()` when done: an open stream keeps a process alive. */
  constructor(options: ConfluxOptions<T>) {
    this.#options = options;
    this.#timing = { ...defaultTiming, ...options.timing };
    this.#urls = options.offline === true ? [] : baseUrls(options.url ?? []);
    this.#fetch = options.fetch ?? ((url, init) => fetch(url, init));
    this.#base = path(
      "v1",
      "tenants",
      options.tenant,
      "namespaces",
      options.namespace ?? "default",
    );
    const query = new URLSearchParams();
    for (const [label, value] of Object.entries(options.labels ?? {}))
      query.append(`label.${label}`, value);
    for (const [parameter, value] of Object.entries(this.parameters()))
      query.append(parameter, value);
    this.#query = query.toString();
    this.#backoff = new Backoff(this.#timing.backoffBaseMs, this.#timing.backoffCapMs);
    if (options.instance !== undefined && options.offline !== true)
      this.#reports = new Reports(options.instance, this.#timing, (body, signal) =>
        this.#post("feedback", body, signal),
      );
    const loading = this.#begin();
    this.#done = loading.then(() => (options.offline === true ? undefined : this.#run()));
  }

  /** What else to ask for, besides labels. */
  protected parameters(): Readonly<Record<string, string>> {
    return {};
  }

  /** The value in a content. @throws what is wrong with it */
  protected read(name: string, held: Held): unknown {
    return this.fitting(name, valueOf(held));
  }

  /** The value as its schema gives it. @throws when it does not fit */
  protected fitting(name: string, value: unknown): unknown {
    const schemas = this.#options.schemas as Readonly<Record<string, StandardSchema>> | undefined;
    if (schemas === undefined || !Object.hasOwn(schemas, name)) return value;
    const result = schemas[name]?.["~standard"].validate(value);
    if (result instanceof Promise) {
      result.catch(() => undefined);
      throw new TypeError("Schemas must answer at once, not by a promise");
    }
    if (result?.issues !== undefined)
      throw new TypeError(result.issues.map((issue) => issue.message).join("; "));
    return frozen(result?.value);
  }

  /** The value to give now, of what `read` gave; null: none. */
  protected valueFor(read: unknown): ValueFound | null {
    return { value: read };
  }

  /** What `read` gave for the name; undefined: nothing is held. */
  protected readOf(name: string): unknown {
    return this.#good.get(name)?.read;
  }

  /** Takes a frame as if a server had sent it. */
  protected take(frame: Frame): void {
    const taken = this.#snapshot.take(frame);
    if (taken.kind === "swapped") this.#swappedLive(taken.changes, taken.revision);
  }

  // --- reads ------------------------------------------------------------------------------------------------------------

  /**
   * Waits for the first snapshot of a server, bounded. When the time is over, or the client offline or closed, it tells
   * what is served meanwhile, and goes on trying behind.
   * @throws Problem when the server refuses the key or the request and there is nothing else to serve
   */
  ready(options: { readonly timeoutMs?: number } = {}): Promise<Source> {
    const { timeoutMs = 5_000 } = options;
    return new Promise((resolve, reject) => {
      const settle = (over: boolean): void => {
        const isRefused = this.#state === "refused";
        if (isRefused && this.#origin === "default") reject(this.#problem);
        else if (
          over ||
          this.#snapshot.live ||
          isRefused ||
          this.#state === "closed" ||
          this.#state === "offline"
        )
          resolve(this.#origin);
        else return;
        clearTimeout(timer);
        this.#waiting.delete(check);
      };
      const check = (): void => settle(false);
      const timer = setTimeout(() => settle(true), timeoutMs);
      this.#waiting.add(check);
      check();
    });
  }

  /** The value now; `fallback`, else the one of `defaults`, where nothing is released. Never waits, never throws. */
  get<V = unknown>(name: AnyName<T>): V | undefined;
  get<V>(name: AnyName<T>, fallback: V): V;
  get<K extends keyof T & string>(name: K): T[K] | undefined;
  get<K extends keyof T & string>(name: K, fallback: T[K]): T[K];
  get(name: string, fallback?: unknown): unknown {
    return this.#value(this.#good.get(name) ?? null, name, fallback);
  }

  /** The value with where it comes from. */
  getEntry<V = unknown>(name: AnyName<T>, fallback?: V): Entry<V | undefined>;
  getEntry<K extends keyof T & string>(name: K, fallback?: T[K]): Entry<T[K] | undefined>;
  getEntry(name: string, fallback?: unknown): Entry {
    return this.#entry(name, this.#good.get(name) ?? null, fallback);
  }

  /** Names that have a released value. */
  names(): string[] {
    return this.#snapshot.names();
  }

  /** All that is held, to begin with elsewhere: as `bootstrap` in a browser that a server rendered for, or as a file. */
  snapshot(): Bootstrap {
    const values = this.names().map((name) => [name, this.#snapshot.get(name) as Held] as const);
    const staleMs = this.#staleMs();
    return {
      values: Object.fromEntries(values),
      cursor: this.#snapshot.cursor,
      ...(staleMs !== null && { at: Date.now() - staleMs }),
    };
  }

  /**
   * Tells the platform that this instance could not use a version although it parses and fits, and why: a program that
   * failed to apply it. The version stays served. Needs `instance`.
   */
  reject(name: string, reason: string): void {
    const held = this.#good.get(name)?.held;
    if (held !== undefined) this.#reports?.add(name, held.version, reason);
  }

  get status(): Status {
    return {
      state: this.#state,
      revision: this.#snapshot.revision,
      cursor: this.#snapshot.cursor,
      via: this.#pollUntil === 0 ? "stream" : "poll",
      url: this.#url,
      silentMs: this.#silentMs(),
      problem: this.#problem,
    };
  }

  // --- changes ----------------------------------------------------------------------------------------------------------

  /**
   * Changes from this call on, in order of revision. A consumer that is slower than the changes gets the latest per name
   * (`old` is then what it saw last), and nothing for a name that came back to what it saw last. Ends with the signal or
   * with `close()`.
   */
  watch(
    options: { readonly name?: string; readonly signal?: AbortSignal } = {},
  ): AsyncIterableIterator<Change> {
    const queue = new ChangeQueue(options.name ?? null, (change, revision) =>
      this.#change(change, revision),
    );
    const end = (): void => queue.end();
    queue.onEnd = () => {
      this.#queues.delete(queue);
      options.signal?.removeEventListener("abort", end);
    };
    if (this.#state === "closed" || options.signal?.aborted === true) queue.end();
    else {
      this.#queues.add(queue);
      options.signal?.addEventListener("abort", end);
    }
    return queue;
  }

  /**
   * Calls `callback` for every change, after the snapshot was swapped. One that throws or rejects is reported to
   * `onError` and called again for the next change.
   * @returns a function that ends it
   */
  onChange(callback: (change: Change) => unknown): () => void {
    // A wrapper, so that the same function registered twice is called twice and ended one by one.
    const own = (change: Change): unknown => callback(change);
    this.#callbacks.add(own);
    return () => {
      this.#callbacks.delete(own);
    };
  }

  /**
   * Calls `callback` whenever the state of the connection becomes another one.
   * @returns a function that ends it
   */
  onState(callback: (status: Status) => unknown): () => void {
    const own = (status: Status): unknown => callback(status);
    this.#stateCallbacks.add(own);
    return () => {
      this.#stateCallbacks.delete(own);
    };
  }

  /** Ends the connection and all iterators. Values stay readable. */
  async close(): Promise<void> {
    this.#setState("closed");
    this.#stop.abort();
    for (const queue of this.#queues) queue.end();
    this.#callbacks.clear();
    this.#stateCallbacks.clear();
    this.#reports?.close();
    await this.#save();
    await this.#done;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  // --- the connection ---------------------------------------------------------------------------------------------------

  get #url(): string {
    return this.#urls[this.#attempt % this.#urls.length] ?? "";
  }

  // --- what was kept ----------------------------------------------------------------------------------------------------

  /** Serves the bootstrap, and the cache as soon as it is read. */
  #begin(): Promise<void> {
    const { bootstrap, cache, offline } = this.#options;
    if (bootstrap !== undefined) {
      const kept = this.#readKept(bootstrap, "bootstrap");
      if (kept !== null) this.#seed(kept, "file");
    }
    const done = (): void => {
      if (offline === true) this.#setState("offline");
    };
    const take = (text: string | null): void => {
      const kept = text === null ? null : this.#readKept(text, "cache");
      if (kept !== null && !this.#isOlder(kept)) this.#seed(kept, "cache");
      done();
    };
    const failed = (error: unknown): void => {
      this.#report(new Error("Cannot load the cache", { cause: error }));
      done();
    };
    try {
      const loaded = cache?.load() ?? null;
      if (loaded instanceof Promise) {
        // A disk that hangs must not keep the client from connecting.
        const late = sleep(this.#timing.gatherMs, this.#stop.signal);
        return Promise.race([loaded.then(take, failed), late]);
      }
      take(loaded);
    } catch (error) {
      failed(error);
    }
    return Promise.resolve();
  }

  #readKept(kept: Bootstrap | string, what: string): (Bootstrap & { readonly of?: string }) | null {
    try {
      const read =
        typeof kept === "string" ? (JSON.parse(kept) as Bootstrap & { of?: string }) : kept;
      const of = (read as { of?: string }).of;
      // Another tenant's, namespace's or label's values may lie in the same place.
      if (of !== undefined && of !== this.#of()) return null;
      for (const value of Object.values(read.values))
        if (typeof value.content !== "string") throw new TypeError("A value has no content");
      return read;
    } catch (error) {
      this.#report(new Error(`Cannot use the ${what}`, { cause: error }));
      return null;
    }
  }

  /** Whether the bootstrap that is served already is newer: the program was deployed after the cache was written. */
  #isOlder(kept: Bootstrap): boolean {
    return this.#origin === "file" && this.#knownAt !== null && (kept.at ?? 0) < this.#knownAt;
  }

  #seed(kept: Bootstrap, origin: Source): void {
    const taken = this.#snapshot.seed(kept.values, kept.cursor ?? "");
    if (taken.kind !== "swapped") return;
    this.#origin = origin;
    this.#knownAt = kept.at ?? null;
    this.#swapped(taken.changes, taken.revision);
  }

  #of(): string {
    return `${this.#base}?${this.#query}&${this.#options.name ?? ""}`;
  }

  #saveSoon(): void {
    if (this.#options.cache === undefined || this.#saving !== undefined) return;
    this.#saving = setTimeout(() => void this.#save(), this.#timing.gatherMs);
  }

  async #save(): Promise<void> {
    if (this.#saving === undefined) return;
    clearTimeout(this.#saving);
    this.#saving = undefined;
    try {
      await this.#options.cache?.save(JSON.stringify({ of: this.#of(), ...this.snapshot() }));
    } catch (error) {
      this.#report(new Error("Cannot save the cache", { cause: error }));
    }
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const from = performance.now();
      this.#aliveMs = 0;
      let failure: { readonly error: unknown } | null = null;
      let isToldToComeBack = false;
      try {
        isToldToComeBack = await (this.#pollUntil === 0 ? this.#stream() : this.#poll());
      } catch (error) {
        failure = { error };
      }
      if (signal.aborted) break;
      // First: it is the wait after this connection that is to be short.
      if (this.#aliveMs >= this.#timing.healthyMs) this.#backoff.reset();
      let waitMs: number | null = null;
      // One that is sent away as soon as it came is not let to do so in a tight loop.
      const { baseMs } = this.#backoff;
      if (failure !== null) waitMs = this.#failed(failure.error);
      else if (isToldToComeBack)
        waitMs = this.#backoff.soon(performance.now() - from < baseMs ? baseMs : 0);
      if (this.#state === "live") this.#setState("reconnecting");
      this.#attempt += 1;
      await sleep(waitMs ?? this.#backoff.next(), signal);
    }
  }

  /** Takes note of a failed connection; gives how long to wait before the next. */
  #failed(error: unknown): number {
    this.#problem = error instanceof Error ? error : new Error(String(error));
    this.#pollUntil = 0;
    // Who was never heard has a wrong address, most likely: values that stay defaults would be the only sign of it.
    const isUnheard = this.#heardAt === null && this.#attempt + 1 >= this.#urls.length;
    const isRefused = error instanceof Problem && refusals.has(error.status);
    const isToTell = isUnheard && !this.#isUnheardTold && !(error instanceof Silence);
    if (isRefused ? this.#state !== "refused" : isToTell) this.#report(this.#problem);
    this.#isUnheardTold ||= isToTell || isRefused;
    if (error instanceof FrameError) this.#resync = true;
    if (error instanceof Silence) {
      this.#swallowed += error.opened ? 2 : 1;
      if (this.#swallowed >= 2) {
        this.#swallowed = 0;
        this.#pollUntil = performance.now() + this.#timing.pollingMs;
      }
    }
    if (error instanceof Problem) {
      if (isRefused) {
        this.#setState("refused");
        // Jittered downwards, so that a fleet with one revoked key does not come as one.
        return this.#timing.refusedMs * (0.5 + Math.random() / 2);
      }
      const floorMs = Math.min((error.retryAfter ?? 0) * 1000, 60_000);
      // 429 is the tenant's everywhere. Other trouble may be that node's alone: the next url is tried soon.
      if (error.status === 429) return this.#backoff.next(floorMs);
      const lastOfRound = (this.#attempt + 1) % this.#urls.length === 0;
      // A node that is there, and says when to come back: what it waits for (a restore, an election) may end any moment,
      // so the waits do not grow. Where an intermediary says it, nobody may be there at all.
      if (error.status === 503 && error instanceof ServerProblem && error.requestId !== "")
        return this.#backoff.soon(lastOfRound ? floorMs : 0);
      return this.#backoff.next(lastOfRound ? Math.min(floorMs, 1_000) : 0);
    }
    return this.#backoff.next();
  }

  /** True: ended by goodbye. False: it only ended. */
  async #stream(): Promise<boolean> {
    let opened = false;
    let frames = 0;
    let aliveFrom: number | null = null;
    const wire = new Wire(this.#stop.signal, this.#timing.lookMs);
    try {
      wire.expectWithin(this.#timing.firstBytesMs);
      const response = await this.#ask("watch", "text/event-stream", wire);
      opened = true;
      const parser = new EventStreamParser();
      this.#snapshot.restart();
      const reader = (response.body as ReadableStream<Uint8Array>).getReader();
      for (;;) {
        const { done, value } = await wire.race(reader.read());
        if (done) return false;
        wire.expectWithin(this.#timing.idleMs);
        this.#heard();
        aliveFrom ??= performance.now();
        // A resumed stream may have nothing to say before its first bookmark: the server took the cursor, that is enough.
        if (this.#snapshot.live && !this.#resync) this.#connected();
        for (const event of parser.push(value)) {
          frames += 1;
          // The server's wish for the first wait, unless the program has its own.
          if (parser.retryMs !== null && this.#options.timing?.backoffBaseMs === undefined)
            this.#backoff.baseMs = parser.retryMs;
          if (!(await this.#take(frameOf(event), wire))) return true;
        }
      }
    } catch (error) {
      if (wire.lapsed && frames === 0) throw new Silence(this.#url, opened);
      if (wire.lapsed) throw new Unreachable(this.#url, "the stream fell silent");
      throw told(error) ? error : new Unreachable(this.#url, reasonOf(error), error);
    } finally {
      wire.close();
      if (frames > 0) this.#swallowed = 0;
      // How long it took to be found dead is no health.
      const aliveTo = wire.lapsed ? (this.#heardAt ?? 0) : performance.now();
      if (aliveFrom !== null) this.#aliveMs = aliveTo - aliveFrom;
    }
  }

  /** Polls until it is time to try the stream again, or goodbye. Each answer holds the frames since the cursor. */
  async #poll(): Promise<true> {
    while (performance.now() < this.#pollUntil && !this.#stop.signal.aborted) {
      const wire = new Wire(this.#stop.signal, this.#timing.lookMs);
      const from = performance.now();
      let news = 0;
      try {
        wire.expectWithin(this.#timing.pollWaitMs + this.#timing.requestMs);
        const wait = `wait=${Math.ceil(this.#timing.pollWaitMs / 1000)}s`;
        const response = await this.#ask(`watch?${wait}`, "application/json", wire);
        this.#snapshot.restart();
        const body = await wire.race(response.text());
        this.#heard();
        for (const frame of framesOf(parsed(body))) {
          if (frame.event !== "bookmark") news += 1;
          if (!(await this.#take(frame, wire))) return true;
        }
      } catch (error) {
        if (wire.lapsed) throw new Unreachable(this.#url, "no answer to a long poll in time");
        throw told(error) ? error : new Unreachable(this.#url, reasonOf(error), error);
      } finally {
        wire.close();
      }
      this.#backoff.reset();
      // A server (or a proxy) that answers at once with nothing must not be asked in a tight loop.
      if (news === 0 && performance.now() - from < 1_000)
        await sleep(this.#backoff.next(500), this.#stop.signal);
    }
    this.#pollUntil = 0;
    return true;
  }

  async #ask(
    what: string,
    accept: string,
    wire: Wire,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Response> {
    const base = `${this.#url}${this.#base}/${what}`;
    const more = [this.#query];
    if (what.startsWith("watch") && this.#options.name !== undefined)
      more.push(`name=${encodeURIComponent(this.#options.name)}`);
    const query = more.filter((part) => part !== "").join("&");
    const url = query === "" ? base : `${base}${base.includes("?") ? "&" : "?"}${query}`;
    const { token } = this.#options;
    const key = typeof token === "function" ? await wire.race(Promise.resolve(token())) : token;
    const cursor = this.#resync || !what.startsWith("watch") ? "" : this.#snapshot.cursor;
    let response: Response;
    try {
      response = await wire.race(
        this.#fetch(url, {
          signal: wire.signal,
          cache: "no-store",
          headers: {
            accept,
            ...(key === undefined ? {} : { authorization: `Bearer ${key}` }),
            ...(cursor === "" ? {} : { "last-event-id": cursor }),
            ...headers,
          },
        }),
      );
    } catch (error) {
      throw new Unreachable(this.#url, reasonOf(error), error);
    }
    if (!response.ok) throw await wire.race(problemOf(response));
    const type = response.headers.get("content-type") ?? "";
    if (accept !== "*/*" && !type.startsWith(accept)) {
      throw new Unreachable(this.#url, `the answer is ${type || "of no type"}, not ${accept}`);
    }
    return response;
  }

  /** @throws what the server answered, or Unreachable */
  async #post(what: string, body: unknown, signal: AbortSignal): Promise<void> {
    const { token } = this.#options;
    const key = typeof token === "function" ? await token() : token;
    const response = await this.#fetch(`${this.#url}${this.#base}/${what}`, {
      method: "POST",
      signal,
      headers: {
        "content-type": "application/json",
        ...(key === undefined ? {} : { authorization: `Bearer ${key}` }),
      },
      body: JSON.stringify(body),
    });
    if (!response.ok) throw await problemOf(response);
    await response.body?.cancel();
  }

  /** Takes one frame. False: this connection has given all it will. */
  async #take(frame: Frame, wire: Wire): Promise<boolean> {
    const taken = this.#snapshot.take(frame);
    if (taken.kind === "goodbye") return false;
    if (taken.kind === "behind")
      throw new Unreachable(this.#url, "it is behind what was seen elsewhere");
    this.#resync = false;
    if (taken.kind === "swapped") this.#swappedLive(taken.changes, taken.revision);
    else if (taken.kind === "incomplete") await this.#fetchMissing(wire);
    if (this.#snapshot.live) this.#connected();
    return true;
  }

  #connected(): void {
    this.#problem = null;
    if (this.#state !== "live") this.#setState("live");
  }

  /**
   * Fetches the contents that were too large for a frame. The server may have moved on: then what it gives has another
   * hash, is not used, and the frame that says so is already on its way.
   */
  async #fetchMissing(wire: Wire): Promise<void> {
    const missing = this.#snapshot.missing();
    for (let at = 0; at < missing.length; at += fetchesAtOnce) {
      wire.expectWithin(this.#timing.requestMs + this.#timing.idleMs);
      await Promise.all(
        missing.slice(at, at + fetchesAtOnce).map(async ({ name, value, revision }) => {
          let response: Response;
          try {
            response = await this.#ask(`values/${encodeURIComponent(name)}`, "*/*", wire, {
              "conflux-min-revision": String(revision),
            });
          } catch (error) {
            if (error instanceof Problem && error.status === 404) return; // gone meanwhile
            throw error;
          }
          const bytes = new Uint8Array(await wire.race(response.arrayBuffer()));
          if (!(await matches(bytes, value.hash, response, value.version))) return;
          const content = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
          const taken = this.#snapshot.fill(name, value.hash, content);
          if (taken.kind !== "swapped") return;
          this.#swappedLive(taken.changes, taken.revision);
          // In the same turn: who waits in ready() reads the state next.
          if (this.#snapshot.live) this.#connected();
        }),
      );
    }
    wire.expectWithin(this.#timing.idleMs);
  }

  // --- telling ----------------------------------------------------------------------------------------------------------

  #setState(state: State): void {
    if (this.#state === "closed") return;
    const isNew = state !== this.#state;
    this.#state = state;
    for (const check of this.#waiting) check();
    if (isNew) this.#call(this.#stateCallbacks, this.status);
  }

  #swappedLive(changes: readonly HeldChange[], revision: number): void {
    this.#origin = "live";
    this.#swapped(changes, revision);
    if (changes.length > 0) this.#saveSoon();
  }

  /** Tells of what changed in what is served. */
  #swapped(swapped: readonly HeldChange[], revision: number): void {
    const changes = swapped.flatMap((change) => this.#accept(change) ?? []);
    for (const check of this.#waiting) check();
    if (changes.length === 0) return;
    for (const queue of this.#queues) for (const change of changes) queue.push(change, revision);
    if (this.#callbacks.size === 0) return;
    for (const change of changes) this.#call(this.#callbacks, this.#change(change, revision));
  }

  /** One that throws or rejects keeps nobody else from being called. */
  #call<A>(callbacks: ReadonlySet<(told: A) => unknown>, told: A): void {
    for (const callback of callbacks) {
      try {
        const result = callback(told);
        if (result instanceof Promise) result.catch((error: unknown) => this.#report(error));
      } catch (error) {
        this.#report(error);
      }
    }
  }

  /** Serves the new value when it can be read; null when what is served stays. */
  #accept({ name, new: held }: HeldChange): GoodChange | null {
    const old = this.#good.get(name) ?? null;
    if (held === null) {
      this.#good.delete(name);
      this.#reports?.forget(name);
      return old === null ? null : { name, old, new: null };
    }
    try {
      const good = { held, read: this.read(name, held) };
      this.#good.set(name, good);
      this.#reports?.add(name, held.version, null);
      return old !== null && same(old.held, held) ? null : { name, old, new: good };
    } catch (error) {
      this.#reports?.add(name, held.version, reasonOf(error));
      const kept = old === null ? "nothing is served" : `version ${old.held.version} stays`;
      this.#report(
        new Error(`Cannot use version ${held.version} of ${name}, ${kept}: ${reasonOf(error)}`, {
          cause: error,
        }),
      );
      return null;
    }
  }

  #change({ name, old, new: now }: GoodChange, revision: number): Change {
    const entry = { ...this.#entry(name, now, undefined), revision };
    const before = this.#value(old, name, undefined);
    return {
      name,
      old: before,
      new: entry.value,
      revision,
      entry,
      get diff() {
        return differences(before, entry.value);
      },
    };
  }

  #value(good: Good | null, name: string, fallback: unknown): unknown {
    const found = good === null ? null : this.valueFor(good.read);
    return found === null ? this.defaultOf(name, fallback) : found.value;
  }

  protected defaultOf(name: string, fallback: unknown): unknown {
    const { defaults } = this.#options;
    return fallback === undefined && defaults !== undefined && Object.hasOwn(defaults, name)
      ? defaults[name]
      : fallback;
  }

  protected entryOf(
    name: string,
    fallback: unknown,
    find: (read: unknown) => ValueFound | null,
  ): Entry {
    return this.#entry(name, this.#good.get(name) ?? null, fallback, find);
  }

  #entry(
    name: string,
    good: Good | null,
    fallback: unknown,
    find = (read: unknown): ValueFound | null => this.valueFor(read),
  ): Entry {
    const { revision } = this.#snapshot;
    const found = good === null ? null : find(good.read);
    if (good !== null && found !== null) {
      const { value, rule } = found;
      const { version, hash, format } = { ...good.held, ...found };
      const [source, staleMs] = [this.#origin, this.#staleMs()];
      const entry = { name, value, version, hash, format, source, staleMs, revision };
      return rule === undefined ? entry : { ...entry, rule };
    }
    return {
      name,
      value: this.defaultOf(name, fallback),
      version: null,
      hash: null,
      format: null,
      source: "default",
      staleMs: null,
      revision,
    };
  }

  #staleMs(): number | null {
    if (this.#origin === "live" && this.#heardAt !== null) return this.#silentMs();
    return this.#knownAt === null ? null : Math.max(0, Date.now() - this.#knownAt);
  }

  #heard(): void {
    this.#heardAt = performance.now();
    this.#heardWallMs = Date.now();
  }

  /** By the clock that says more: one stands still over a sleep, the other may be set back. */
  #silentMs(): number | null {
    if (this.#heardAt === null) return null;
    const [awakeMs, wallMs] = [performance.now() - this.#heardAt, Date.now() - this.#heardWallMs];
    return Math.round(Math.max(awakeMs, wallMs));
  }

  #report(error: unknown): void {
    try {
      if (this.#options.onError !== undefined) this.#options.onError(error);
      else console.error("conflux:", error);
    } catch {
      // A failing error handler has nowhere left to be reported to.
    }
  }
}

/** A value with what identifies it, where that is not what the content says. */
export interface ValueFound {
  readonly value: unknown;
  readonly version?: number;
  readonly hash?: string;
  readonly format?: ContentFormat;
  readonly rule?: string | null;
}

/** A content with what was read from it. */
interface Good {
  readonly held: Held;
  readonly read: unknown;
}

interface GoodChange {
  readonly name: string;
  readonly old: Good | null;
  readonly new: Good | null;
}

/** Errors that say themselves what they are; all others are a platform's words for a cut connection. */
function told(error: unknown): boolean {
  return error instanceof Problem || error instanceof FrameError || error instanceof Unreachable;
}

/** A stream without a sign of life: `opened` tells whether at least the headers came through. */
class Silence extends Unreachable {
  readonly opened: boolean;

  constructor(url: string, opened: boolean) {
    super(url, opened ? "the stream opened and stayed silent" : "no answer in time");
    this.opened = opened;
  }
}

/**
 * One connection's lifetime: ends with the client, by its watchdog, or when closed. Timers stand still while a machine
 * sleeps, and what it was connected to is gone when it wakes: so the watchdog looks at the wall clock too, every few seconds.
 */
class Wire {
  readonly #abort = new AbortController();
  readonly #parent: AbortSignal;
  readonly #onParent = (): void => this.#abort.abort();
  readonly #waiting = new Set<(error: Error) => void>();
  readonly #lookMs: number;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #dueAt = 0;
  #dueWallMs = 0;
  lapsed = false;

  constructor(parent: AbortSignal, lookMs: number) {
    this.#parent = parent;
    this.#lookMs = lookMs;
    this.signal.addEventListener("abort", () => {
      for (const reject of this.#waiting) reject(new Error("Connection is closed"));
    });
    if (parent.aborted) this.#abort.abort();
    else parent.addEventListener("abort", this.#onParent);
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Arms the watchdog anew. */
  expectWithin(ms: number): void {
    this.#dueAt = performance.now() + ms;
    this.#dueWallMs = Date.now() + ms;
    clearTimeout(this.#timer);
    this.#look();
  }

  #look(): void {
    const leftMs = Math.min(this.#dueAt - performance.now(), this.#dueWallMs - Date.now());
    if (leftMs <= 0) {
      this.lapsed = true;
      this.#abort.abort();
    } else this.#timer = setTimeout(() => this.#look(), Math.min(leftMs, this.#lookMs));
  }

  /**
   * A platform's promise may outlive its abort signal; ours may not. (Not Promise.race: each call would stay attached to
   * the one promise that lasts as long as the connection, with every chunk that was ever read.)
   */
  race<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const { signal } = this;
      if (signal.aborted) reject(new Error("Connection is closed"));
      else this.#waiting.add(reject);
      promise.then(
        (value) => {
          this.#waiting.delete(reject);
          resolve(value);
        },
        (error: unknown) => {
          this.#waiting.delete(reject);
          reject(error instanceof Error ? error : new Error(String(error)));
        },
      );
    });
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#parent.removeEventListener("abort", this.#onParent);
    this.#abort.abort();
  }
}

/** The changes a consumer has not taken yet: at most one per name. */
class ChangeQueue implements AsyncIterableIterator<Change> {
  readonly #name: string | null;
  readonly #render: (change: GoodChange, revision: number) => Change;
  readonly #changes = new Map<string, { readonly change: GoodChange; readonly revision: number }>();
  readonly #takers: ((result: IteratorResult<Change>) => void)[] = [];
  #ended = false;
  onEnd: () => void = () => undefined;

  constructor(name: string | null, render: (change: GoodChange, revision: number) => Change) {
    this.#name = name;
    this.#render = render;
  }

  push(change: GoodChange, revision: number): void {
    if (this.#ended || (this.#name !== null && this.#name !== change.name)) return;
    const taker = this.#takers.shift();
    if (taker !== undefined) return taker({ done: false, value: this.#render(change, revision) });
    const waiting = this.#changes.get(change.name);
    // Deleted and set again, so that the order stays that of revisions.
    this.#changes.delete(change.name);
    const old = waiting === undefined ? change.old : waiting.change.old;
    if (!same(old?.held ?? null, change.new?.held ?? null))
      this.#changes.set(change.name, { change: { ...change, old }, revision });
  }

  next(): Promise<IteratorResult<Change>> {
    const [first] = this.#changes;
    if (first !== undefined) {
      const [name, { change, revision }] = first;
      this.#changes.delete(name);
      return Promise.resolve({ done: false, value: this.#render(change, revision) });
    }
    if (this.#ended) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve) => this.#takers.push(resolve));
  }

  /** What is waiting is still given. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.onEnd();
    for (const taker of this.#takers.splice(0)) taker({ done: true, value: undefined });
  }

  return(): Promise<IteratorResult<Change>> {
    this.#changes.clear();
    this.end();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FrameError("The answer to a long poll is not JSON", { cause: error });
  }
}

export function valueOf(held: Pick<Held, "format" | "content">): unknown {
  if (held.format !== "json" && held.format !== "flag") return held.content;
  return frozen(JSON.parse(held.content));
}

/** All readers share one parsed value: a reader that writes into it must fail, not surprise the others. */
function frozen(value: unknown): unknown {
  if (typeof value === "object" && value !== null) {
    for (const member of Object.values(value)) frozen(member);
    Object.freeze(value);
  }
  return value;
}

/** Whether these bytes are the value that was announced. */
async function matches(
  bytes: Uint8Array<ArrayBuffer>,
  hash: string,
  response: Response,
  version: number,
): Promise<boolean> {
  // Browsers give `subtle` to secure origins only; there the version number has to do.
  const subtle = (globalThis.crypto as Crypto | undefined)?.subtle;
  if (subtle === undefined) return response.headers.get("conflux-version") === String(version);
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hash === `sha256:${hex}`;
}
