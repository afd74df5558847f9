/**
 * How much a tenant and each of its keys may ask of this node, and how much they did.
 *
 * Token buckets: each holds what a few seconds may take, and fills at the rate of the quota. They are this node's own, so
 * a tenant that is served by several nodes gets its rates on each. Requests are admitted where they are answered, which
 * is at a replica, so gateways add none; watches are limited by the node that sends to the client. What is counted is
 * told to the tenant's replicated state once in a while, in one command, so that it outlives leaders and nodes.
 *
 * What must stay true: a request without limits costs two lookups and no promise; everything kept here is bounded by the
 * tenants and keys that were active within the last interval.
 */
import { Problem } from "../api/problems.ts";
import type { ConfigService, TenantView } from "../host/ports.ts";
import { watchesLevel } from "../machine/command.ts";
import { usageKeysMax } from "../machine/machine.ts";
import { getQuotas } from "../machine/queries.ts";
import { defaultQuotas, type Quotas } from "../machine/rows.ts";
import type { Call, Principal } from "./http.ts";

/** A bucket holds what this many seconds may take, so that a burst after a pause is no offence. */
export const burstSeconds = 5;
/** What was sent to watches is told beside something else, or once it is so much. */
const toldBytesMin = 1024 * 1024;
/** Tenants told of at the same time. */
const recordsAtOnce = 16;

/** Says what it is in the words of draft-ietf-httpapi-ratelimit-headers-11. Its time is monotonic. */
class Bucket {
  readonly name: string;
  rate: number;
  #tokens: number;
  #atMs = performance.now();

  constructor(name: string, rate: number) {
    this.name = name;
    this.rate = rate;
    this.#tokens = this.capacity;
  }

  get capacity(): number {
    return this.rate * burstSeconds;
  }

  refill(): void {
    const nowMs = performance.now();
    const gained = ((nowMs - this.#atMs) * this.rate) / 1_000;
    this.#tokens = Math.min(this.capacity, this.#tokens + gained);
    this.#atMs = nowMs;
  }

  get isEmpty(): boolean {
    return this.#tokens < 1;
  }

  /** What is larger than what is left is taken too, and holds up what follows. */
  take(tokens = 1): void {
    this.#tokens -= tokens;
  }

  /** As much of it as is there: nothing is owed. */
  takeLeft(tokens: number): void {
    this.#tokens = Math.max(Math.min(0, this.#tokens), this.#tokens - tokens);
  }

  /** Until there is one again; at a rate of 0 there never is, and once an hour is often enough to ask. */
  get waitMs(): number {
    return this.rate === 0 ? 3_600_000 : Math.max(0, ((1 - this.#tokens) * 1_000) / this.rate);
  }

  get waitSeconds(): number {
    return Math.max(1, Math.ceil(this.waitMs / 1_000));
  }

  get policy(): string {
    return `"${this.name}";q=${this.capacity};w=${burstSeconds}`;
  }

  get state(): string {
    const left = Math.max(0, Math.floor(this.#tokens));
    const full = this.rate === 0 ? 3_600 : Math.ceil((this.capacity - this.#tokens) / this.rate);
    return `"${this.name}";r=${left};t=${full}`;
  }
}

/** A stream that waits until its tenant may be sent more. */
export interface Held {
  /** It may send now. Settles once it has, or needs nothing any more; does not throw. */
  turn(): Promise<void>;
}

/** Of all tenants since this node's start, but for those that wait now. */
export interface WatchTotals {
  bytes: number;
  held: number;
  waiting: number;
}

/** How many that waited go on in one turn of the event loop, and how long it is at least until the next ones. */
const turnsAtOnce = 128;
const turnsMsMin = 10;
const turnsMsMax = 60_000;

/**
 * What this node may send to the watches of a tenant. Who finds the bucket empty waits here for a turn, first come, first
 * served; what has to be told meanwhile is the watch's own affair, and bounded there.
 */
export class Bandwidth {
  #bucket: Bucket | null = null;
  readonly #waiting = new Set<Held>();
  /** Null: nobody waits, or turns are being given. */
  #timer: ReturnType<typeof setTimeout> | null = null;
  #isTurning = false;
  /** Streams and polls open now: it is kept as long as there are any. */
  open = 0;
  // Since they were last told.
  bytes = 0;
  held = 0;
  readonly #totals: WatchTotals;

  constructor(totals: WatchTotals) {
    this.#totals = totals;
  }

  limit(bytesPerSecond: number): void {
    if (bytesPerSecond === (this.#bucket?.rate ?? defaultQuotas.watchBytesPerSecond)) return;
    this.#bucket?.refill();
    this.#bucket = adjusted(this.#bucket, "watchBytes", bytesPerSecond);
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#later();
  }

  /** Whether anything may be sent now. */
  get isOpen(): boolean {
    if (this.#bucket === null) return true;
    this.#bucket.refill();
    return !this.#bucket.isEmpty;
  }

  /** The same, with nobody waiting who came before. */
  get isFree(): boolean {
    return this.#waiting.size === 0 && this.isOpen;
  }

  /** Seconds until it is. */
  get waitSeconds(): number {
    return this.#bucket?.waitSeconds ?? 1;
  }

  /** Whether whoever comes next finds it no other than a new one would be. */
  get isForgettable(): boolean {
    return this.open === 0 && (this.isOpen || this.#bucket?.rate === 0);
  }

  /** So much is sent, whether it had to wait or not. */
  sent(bytes: number): void {
    this.#count(bytes);
    this.#bucket?.take(bytes);
  }

  /** Signs of life never wait, so news must not wait until they are paid for: very many would cost more than there is. */
  sentQuietly(bytes: number): void {
    this.#count(bytes);
    this.#bucket?.takeLeft(bytes);
  }

  #count(bytes: number): void {
    this.bytes += bytes;
    this.#totals.bytes += bytes;
  }

  /** A turn in line with the streams, for one that can wait only so long; false: none came. */
  turnWithin(ms: number): Promise<boolean> {
    if (this.isFree) return Promise.resolve(true);
    if (this.#bucket !== null && this.#bucket.waitMs > ms) return Promise.resolve(false);
    return new Promise((resolve) => {
      const one = {
        turn: async () => {
          clearTimeout(timer);
          resolve(true);
        },
      };
      const timer = setTimeout(() => {
        this.leave(one);
        resolve(false);
      }, ms);
      this.wait(one);
    });
  }

  wait(one: Held): void {
    if (this.#waiting.has(one)) return;
    this.#waiting.add(one);
    this.held++;
    this.#totals.held++;
    this.#totals.waiting++;
    this.#later();
  }

  leave(one: Held): void {
    if (this.#waiting.delete(one)) this.#totals.waiting--;
  }

  #later(): void {
    if (this.#timer !== null || this.#isTurning || this.#waiting.size === 0) return;
    const waitMs = this.isOpen ? 0 : (this.#bucket as Bucket).waitMs;
    this.#timer = setTimeout(
      () => void this.#turns(),
      Math.min(turnsMsMax, Math.max(turnsMsMin, waitMs)),
    );
    this.#timer.unref?.();
  }

  async #turns(): Promise<void> {
    this.#timer = null;
    this.#isTurning = true;
    let given = 0;
    for (const one of this.#waiting) {
      if (given++ === turnsAtOnce || !this.isOpen) break;
      this.leave(one);
      await one.turn();
    }
    this.#isTurning = false;
    this.#later();
  }
}

class TenantLimits {
  /** Of the state that the quotas are from; -1: none yet. A tenant that is made again counts its revisions anew. */
  revision = -1;
  epoch = -1;
  quotas: Required<Quotas> = defaultQuotas;
  /** Null: without a limit that anybody set. */
  requests: Bucket | null = null;
  writes: Bucket | null = null;
  readonly keys = new Map<string, Bucket>();
  readonly bandwidth: Bandwidth;
  // Since they were last told.
  asked = 0;
  limited = 0;
  usedKeys = new Map<string, number>();

  constructor(totals: WatchTotals) {
    this.bandwidth = new Bandwidth(totals);
  }

  /** Whether there is something to tell. Bookmarks alone are not worth a command for each tenant that is watched. */
  get isActive(): boolean {
    const { bytes, held, open } = this.bandwidth;
    return this.asked > 0 || held > 0 || bytes >= (open > 0 ? toldBytesMin : 1);
  }

  /** Settings change live: a bucket keeps what it holds, and fills at the new rate. */
  follow(view: TenantView): void {
    if (view.revision === this.revision && view.epoch === this.epoch) return;
    this.revision = view.revision;
    this.epoch = view.epoch;
    this.quotas = getQuotas(view);
    this.requests = adjusted(this.requests, "requests", this.quotas.requestsPerSecond);
    this.writes = adjusted(this.writes, "writes", this.quotas.writesPerSecond);
    this.bandwidth.limit(this.quotas.watchBytesPerSecond);
    const rate = this.quotas.requestsPerSecondPerKey;
    if (rate >= defaultQuotas.requestsPerSecondPerKey) this.keys.clear();
    for (const bucket of this.keys.values()) bucket.rate = rate;
  }

  key(id: string): Bucket | null {
    const rate = this.quotas.requestsPerSecondPerKey;
    if (rate >= defaultQuotas.requestsPerSecondPerKey) return null;
    let bucket = this.keys.get(id);
    if (bucket === undefined) {
      bucket = new Bucket("key", rate);
      this.keys.set(id, bucket);
    }
    return bucket;
  }
}

function adjusted(
  before: Bucket | null,
  name: "requests" | "writes" | "watchBytes",
  rate: number,
): Bucket | null {
  if (rate >= defaultQuotas[`${name}PerSecond`]) return null;
  if (before === null) return new Bucket(name, rate);
  before.rate = rate;
  return before;
}

export class Limits {
  readonly #service: ConfigService;
  #tenants = new Map<string, TenantLimits>();
  readonly watches: WatchTotals = { bytes: 0, held: 0, waiting: 0 };

  constructor(service: ConfigService) {
    this.#service = service;
  }

  /**
   * Counts the request of a known key, and takes what it costs. Root keys are counted and never limited.
   * @param at when it came, wall clock: what is told of the key's last use
   * @throws Problem `too-many-requests`
   */
  admit(view: TenantView, call: Call, principal: Principal, isChange: boolean, at: number): void {
    const limits = this.#of(view.tenant);
    limits.asked++;
    if (principal.kind === "root") return;
    if (!limits.usedKeys.has(principal.keyId) && limits.usedKeys.size < usageKeysMax)
      limits.usedKeys.set(principal.keyId, at);
    limits.follow(view);
    const key = limits.key(principal.keyId);
    if (limits.requests === null && limits.writes === null && key === null) return;
    const buckets = [limits.requests, isChange ? limits.writes : null, key].filter(
      (bucket) => bucket !== null,
    );
    for (const bucket of buckets) bucket.refill();
    const empty = buckets.find((bucket) => bucket.isEmpty);
    // All or nothing: what is refused by one takes nothing of the others.
    if (empty === undefined) for (const bucket of buckets) bucket.take();
    call.rateLimit = {
      policy: buckets.map((bucket) => bucket.policy).join(", "),
      state: buckets.map((bucket) => bucket.state).join(", "),
    };
    if (empty === undefined) return;
    limits.limited++;
    throw new Problem(
      "too-many-requests",
      `Ask at most ${empty.rate} times a second: this is the limit of ${empty.name === "key" ? "each key" : `the tenant's ${empty.name}`} on each node`,
      { retryAfter: empty.waitSeconds },
    );
  }

  /** Of the tenant's watches here. Whoever counts one into it gets the same one until that is counted out. */
  bandwidth(tenant: string): Bandwidth {
    return this.#of(tenant).bandwidth;
  }

  /** The same, bounded as the directory says: of a tenant whose state is elsewhere. */
  bandwidthBy(tenant: string, { watchBytesPerSecond }: Required<Quotas>): Bandwidth {
    const { bandwidth } = this.#of(tenant);
    bandwidth.limit(watchBytesPerSecond);
    return bandwidth;
  }

  /** The same, bounded as this state says. */
  bandwidthIn(view: TenantView): Bandwidth {
    const limits = this.#of(view.tenant);
    limits.follow(view);
    return limits.bandwidth;
  }

  /** Counts a request of a root key that looked at no state of the tenant. */
  count(tenant: string): void {
    this.#of(tenant).asked++;
  }

  #of(tenant: string): TenantLimits {
    let limits = this.#tenants.get(tenant);
    if (limits === undefined) {
      limits = new TenantLimits(this.watches);
      this.#tenants.set(tenant, limits);
    }
    return limits;
  }

  /** Tells what was counted since the last time, and forgets tenants that nobody asked for. */
  async record(): Promise<void> {
    const active: [tenant: string, TenantLimits][] = [];
    for (const [tenant, limits] of this.#tenants)
      if (limits.isActive) active.push([tenant, limits]);
      else if (limits.bandwidth.isForgettable) this.#tenants.delete(tenant);
    for (let i = 0; i < active.length; i += recordsAtOnce)
      await Promise.all(
        active.slice(i, i + recordsAtOnce).map(([tenant, limits]) => this.#tell(tenant, limits)),
      );
  }

  async #tell(tenant: string, limits: TenantLimits): Promise<void> {
    const { asked, limited, usedKeys, bandwidth } = limits;
    const { bytes, held } = bandwidth;
    limits.asked = 0;
    limits.limited = 0;
    bandwidth.bytes = 0;
    bandwidth.held = 0;
    limits.usedKeys = new Map();
    for (const id of limits.keys.keys()) if (!usedKeys.has(id)) limits.keys.delete(id);
    try {
      await this.#service.propose(tenant, {
        at: this.#service.nowMs(),
        actor: { kind: "system", keyId: this.#service.node },
        semantics: this.#service.semantics,
        action: {
          op: "usage.record",
          requests: asked,
          limited,
          ...(this.#service.semantics >= watchesLevel && { watchBytes: bytes, watchesHeld: held }),
          keys: Array.from(usedKeys, ([id, at]) => ({ id, at })),
        },
      });
    } catch (error) {
      // What may have been counted is not counted twice; what was not is told the next time.
      if (error instanceof Problem && error.code === "outcome-unknown") return;
      if (error instanceof Problem && error.status < 500) return;
      limits.asked += asked;
      limits.limited += limited;
      bandwidth.bytes += bytes;
      bandwidth.held += held;
    }
  }
}
