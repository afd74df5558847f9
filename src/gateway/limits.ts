/**
 * How much a tenant and each of its keys may ask of this node, and how much they did.
 *
 * Token buckets: each holds what a few seconds may take, and fills at the rate of the quota. They are this node's own, so
 * a tenant that is served by several nodes gets its rates on each. What is counted is told to the tenant's replicated
 * state once in a while, in one command, so that it outlives leaders and nodes.
 *
 * What must stay true: a request without limits costs two lookups and no promise; everything kept here is bounded by the
 * tenants and keys that were active within the last interval.
 */
import { Problem } from "../api/problems.ts";
import type { ConfigService, TenantView } from "../host/ports.ts";
import { usageKeysMax } from "../machine/machine.ts";
import { getQuotas } from "../machine/queries.ts";
import { defaultQuotas, type Quotas } from "../machine/rows.ts";
import type { Call, Principal } from "./http.ts";

/** A bucket holds what this many seconds may take, so that a burst after a pause is no offence. */
export const burstSeconds = 5;
/** Tenants told of at the same time. */
const recordsAtOnce = 16;

/** Says what it is in the words of draft-ietf-httpapi-ratelimit-headers-11. */
class Bucket {
  readonly name: string;
  rate: number;
  #tokens: number;
  #atMs: number;

  constructor(name: string, rate: number, nowMs: number) {
    this.name = name;
    this.rate = rate;
    this.#tokens = this.capacity;
    this.#atMs = nowMs;
  }

  get capacity(): number {
    return this.rate * burstSeconds;
  }

  refill(nowMs: number): void {
    // The wall clock may go back; then nothing was gained.
    const gained = (Math.max(0, nowMs - this.#atMs) * this.rate) / 1_000;
    this.#tokens = Math.min(this.capacity, this.#tokens + gained);
    this.#atMs = nowMs;
  }

  get isEmpty(): boolean {
    return this.#tokens < 1;
  }

  take(): void {
    this.#tokens -= 1;
  }

  /** Seconds until there is one again; at a rate of 0 there never is, and once an hour is often enough to ask. */
  get waitSeconds(): number {
    return this.rate === 0 ? 3_600 : Math.max(1, Math.ceil((1 - this.#tokens) / this.rate));
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

class TenantLimits {
  /** Of the state that the quotas are from; -1: none yet. */
  revision = -1;
  quotas: Required<Quotas> = defaultQuotas;
  /** Null: without a limit that anybody set. */
  requests: Bucket | null = null;
  writes: Bucket | null = null;
  readonly keys = new Map<string, Bucket>();
  // Since they were last told.
  asked = 0;
  limited = 0;
  usedKeys = new Map<string, number>();

  /** Settings change live: a bucket keeps what it holds, and fills at the new rate. */
  follow(view: TenantView, nowMs: number): void {
    if (view.revision === this.revision) return;
    this.revision = view.revision;
    this.quotas = getQuotas(view);
    this.requests = adjusted(this.requests, "requests", this.quotas.requestsPerSecond, nowMs);
    this.writes = adjusted(this.writes, "writes", this.quotas.writesPerSecond, nowMs);
    const rate = this.quotas.requestsPerSecondPerKey;
    if (rate >= defaultQuotas.requestsPerSecondPerKey) this.keys.clear();
    for (const bucket of this.keys.values()) bucket.rate = rate;
  }

  key(id: string, nowMs: number): Bucket | null {
    const rate = this.quotas.requestsPerSecondPerKey;
    if (rate >= defaultQuotas.requestsPerSecondPerKey) return null;
    let bucket = this.keys.get(id);
    if (bucket === undefined) {
      bucket = new Bucket("key", rate, nowMs);
      this.keys.set(id, bucket);
    }
    return bucket;
  }
}

function adjusted(
  before: Bucket | null,
  name: "requests" | "writes",
  rate: number,
  nowMs: number,
): Bucket | null {
  if (rate >= defaultQuotas[`${name}PerSecond`]) return null;
  if (before === null) return new Bucket(name, rate, nowMs);
  before.rate = rate;
  return before;
}

export class Limits {
  readonly #service: ConfigService;
  #tenants = new Map<string, TenantLimits>();

  constructor(service: ConfigService) {
    this.#service = service;
  }

  /**
   * Counts the request of a known key, and takes what it costs. Root keys are counted and never limited.
   * @throws Problem `too-many-requests`
   */
  admit(
    view: TenantView,
    call: Call,
    principal: Principal,
    isChange: boolean,
    nowMs: number,
  ): void {
    const limits = this.#of(view.tenant);
    limits.asked++;
    if (principal.kind === "root") return;
    if (!limits.usedKeys.has(principal.keyId) && limits.usedKeys.size < usageKeysMax)
      limits.usedKeys.set(principal.keyId, nowMs);
    limits.follow(view, nowMs);
    const key = limits.key(principal.keyId, nowMs);
    if (limits.requests === null && limits.writes === null && key === null) return;
    const buckets = [limits.requests, isChange ? limits.writes : null, key].filter(
      (bucket) => bucket !== null,
    );
    for (const bucket of buckets) bucket.refill(nowMs);
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

  /** Counts a request of a root key that looked at no state of the tenant. */
  count(tenant: string): void {
    this.#of(tenant).asked++;
  }

  #of(tenant: string): TenantLimits {
    let limits = this.#tenants.get(tenant);
    if (limits === undefined) {
      limits = new TenantLimits();
      this.#tenants.set(tenant, limits);
    }
    return limits;
  }

  /** Tells what was counted since the last time, and forgets tenants that nobody asked for. */
  async record(): Promise<void> {
    const active: [tenant: string, TenantLimits][] = [];
    for (const [tenant, limits] of this.#tenants)
      if (limits.asked > 0) active.push([tenant, limits]);
      else this.#tenants.delete(tenant);
    for (let i = 0; i < active.length; i += recordsAtOnce)
      await Promise.all(
        active.slice(i, i + recordsAtOnce).map(([tenant, limits]) => this.#tell(tenant, limits)),
      );
  }

  async #tell(tenant: string, limits: TenantLimits): Promise<void> {
    const { asked, limited, usedKeys } = limits;
    limits.asked = 0;
    limits.limited = 0;
    limits.usedKeys = new Map();
    for (const id of limits.keys.keys()) if (!usedKeys.has(id)) limits.keys.delete(id);
    try {
      await this.#service.propose(tenant, {
        at: Date.now(),
        actor: { kind: "system", keyId: this.#service.node },
        semantics: this.#service.semantics,
        action: {
          op: "usage.record",
          requests: asked,
          limited,
          keys: Array.from(usedKeys, ([id, at]) => ({ id, at })),
        },
      });
    } catch (error) {
      // What may have been counted is not counted twice; what was not is told the next time.
      if (error instanceof Problem && error.code === "outcome-unknown") return;
      if (error instanceof Problem && error.status < 500) return;
      limits.asked += asked;
      limits.limited += limited;
    }
  }
}
