/**
 * The management client: one method per thing that the API can do, with the contract's own types. What the `conflux`
 * command is made of, and a door of its own, because programs that only read configuration do not need it.
 *
 * Every change carries an Idempotency-Key that stays the same over retries, so a request whose answer was lost may be
 * repeated without being done twice.
 */
import type { Static } from "@sinclair/typebox";
import { Problem, problems } from "../api/problems.ts";
import type {
  AuditPage,
  AuditRecord,
  ClusterMember,
  ClusterTenant,
  ClusterStatusAnswer,
  ConfigAnswer,
  ConfigDetailAnswer,
  ConfigPut,
  ConfigPutAnswer,
  ContentPut,
  DiffAnswer,
  ExplainAnswer,
  FeedbackAnswer,
  GroupAnswer,
  IssuerAnswer,
  IssuerPut,
  KeyAnswer,
  KeyCreate,
  KeyCreated,
  KeyRotate,
  KeyRotated,
  NamespaceAnswer,
  NamespacePut,
  NodeAnswer,
  PublishAnswer,
  ReleaseAnswer,
  ReleasePut,
  RepairAnswer,
  UpgradeAnswer,
  RestoreAnswer,
  RestoreBegin,
  RestoreBegun,
  RestoreFinished,
  RestoreProgress,
  RollbackRequest,
  SecretsRotated,
  TenantAnswer,
  TenantCreate,
  TenantCreated,
  TenantUpdate,
  TransactionAnswer,
  TransactionRequest,
  UsageAnswer,
  ValuesAnswer,
  VersionAnswer,
  VersionContentAnswer,
} from "../api/schemas.ts";
import type { Labels } from "../model/release.ts";
import {
  Backoff,
  baseUrls,
  Foreign,
  path,
  problemOf,
  randomId,
  reasonOf,
  ServerProblem,
  sleep,
  Unanswered,
  Unreachable,
} from "./http.ts";
import type { Fetch, Token } from "./http.ts";
import { EventStreamParser, FrameError, frameOf } from "./watch.ts";
import type { Frame } from "./watch.ts";

export type * from "../api/schemas.ts";
export { Problem, ServerProblem, Unanswered, Unreachable };
export type { Fetch, Frame, Token };

export interface AdminOptions {
  /** Gateway, or several that are tried in turn. */
  readonly url: string | readonly string[];
  readonly token?: Token;
  readonly fetch?: Fetch;
  /** One attempt's time. */
  readonly requestMs?: number;
  /** All attempts' time. */
  readonly totalMs?: number;
  /** All attempts' time as long as nobody answered at all. Default: `totalMs`. */
  readonly unreachableMs?: number;
  /** An attempt failed so, and another one follows. */
  readonly onRetry?: (error: Error) => void;
}

/** A namespace of a tenant. */
export interface Where {
  readonly tenant: string;
  readonly namespace: string;
}

/** Preconditions and the like, for any change. */
export interface ChangeOptions {
  /** ETag that must still hold; `*` = must exist. */
  readonly ifMatch?: string;
  /** Create only. */
  readonly ifNoneMatch?: "*";
  /** Default: a fresh one per call. */
  readonly idempotencyKey?: string;
  readonly dryRun?: boolean;
  /**
   * Of what reaches clients: tell them within this time, each at a moment of its own, e.g. `30s`. Default: all at once.
   */
  readonly spread?: string;
}

export interface Value {
  readonly content: string;
  readonly mediaType: string;
  readonly version: number;
  /** The rule that chose it; null = the default. */
  readonly rule: string | null;
  readonly etag: string;
  readonly revision: number;
}

export interface WatchOptions {
  readonly namespace?: string;
  readonly prefix?: string;
  /** Cursor to go on from, or `now`; default: a snapshot first. */
  readonly since?: string;
  /** Whether frames carry contents. */
  readonly content?: boolean;
  /** `false`: be told at once also of what others are told within a time. */
  readonly spread?: boolean;
  readonly signal?: AbortSignal;
}

interface Query {
  readonly [name: string]: string | number | boolean | undefined;
}

const idleMs = 37_500;
/** In the words of all runtimes: there was no connection, so nothing was sent. */
const neverSent = /ECONNREFUSED|ENOTFOUND|EAI_AGAIN|connection refused|dns error|getaddrinfo/i;
const pageMax = 1_000;

export class Admin {
  readonly #options: AdminOptions;
  readonly #urls: readonly string[];
  readonly #fetch: Fetch;
  /** The url that answered last. */
  #at = 0;

  constructor(options: AdminOptions) {
    this.#options = options;
    this.#urls = baseUrls(options.url);
    this.#fetch = options.fetch ?? ((url, init) => fetch(url, init));
  }

  // --- tenants and keys -------------------------------------------------------------------------------------------------

  tenants(): Promise<TenantAnswer[]> {
    return this.#list("/v1/tenants");
  }

  /** The answer holds the tenant's first admin key: the only time its token is shown. */
  createTenant(tenant: TenantCreate, options?: ChangeOptions): Promise<TenantCreated> {
    return this.#change("POST", "/v1/tenants", tenant, options);
  }

  tenant(tenant: string): Promise<TenantAnswer> {
    return this.#read(tenantPath(tenant));
  }

  updateTenant(
    tenant: string,
    update: TenantUpdate,
    options?: ChangeOptions,
  ): Promise<TenantAnswer> {
    return this.#change("PATCH", tenantPath(tenant), update, options);
  }

  /** Soft, unless `purge`: then it is final. */
  deleteTenant(
    tenant: string,
    options: ChangeOptions & { purge?: boolean } = {},
  ): Promise<unknown> {
    const query = { purge: options.purge === true ? true : undefined };
    return this.#change("DELETE", tenantPath(tenant), undefined, options, query);
  }

  undeleteTenant(tenant: string, options?: ChangeOptions): Promise<TenantAnswer> {
    return this.#change("POST", `${tenantPath(tenant)}/undelete`, undefined, options);
  }

  usage(tenant: string): Promise<UsageAnswer> {
    return this.#read(`${tenantPath(tenant)}/usage`);
  }

  /** One page: records after the sequence `since`, oldest first; at most 1000. */
  auditPage(
    tenant: string,
    options: { readonly since?: number; readonly limit?: number } = {},
  ): Promise<AuditPage> {
    return this.#read(`${tenantPath(tenant)}/audit`, { ...options });
  }

  /** All records after `since`, page by page. */
  async *auditRecords(tenant: string, since = 0): AsyncGenerator<AuditRecord> {
    for (let after = since; ;) {
      const { items, next } = await this.auditPage(tenant, { since: after, limit: pageMax });
      yield* items;
      if (next === undefined) return;
      after = Number(next);
    }
  }

  async audit(tenant: string): Promise<AuditRecord[]> {
    const records: AuditRecord[] = [];
    for await (const record of this.auditRecords(tenant)) records.push(record);
    return records;
  }

  group(tenant: string): Promise<GroupAnswer> {
    return this.#read(`${tenantPath(tenant)}/group`);
  }

  /** Asks the group's leadership to move to `node`; `group` says when it has. */
  transferGroup(tenant: string, node: string): Promise<unknown> {
    return this.#change("POST", `${tenantPath(tenant)}/group/transfer`, { to: node });
  }

  keys(tenant: string): Promise<KeyAnswer[]> {
    return this.#list(`${tenantPath(tenant)}/keys`);
  }

  createKey(tenant: string, key: KeyCreate, options?: ChangeOptions): Promise<KeyCreated> {
    return this.#change("POST", `${tenantPath(tenant)}/keys`, key, options);
  }

  /** The old key holds on for the overlap, 3600 seconds unless said otherwise. */
  rotateKey(
    tenant: string,
    id: string,
    body: KeyRotate = {},
    options?: ChangeOptions,
  ): Promise<KeyRotated> {
    return this.#change("POST", `${tenantPath(tenant)}/keys${path(id)}/rotate`, body, options);
  }

  deleteKey(tenant: string, id: string, options?: ChangeOptions): Promise<unknown> {
    return this.#change("DELETE", `${tenantPath(tenant)}/keys${path(id)}`, undefined, options);
  }

  /** Wraps what is sealed with the active key, some at a time: repeat it while there are more. */
  rotateSecrets(tenant: string, options?: ChangeOptions): Promise<SecretsRotated> {
    return this.#change("POST", `${tenantPath(tenant)}/secrets/rotate`, {}, options);
  }

  // --- issuers (with a root key) --------------------------------------------------------------------------------------

  issuers(): Promise<IssuerAnswer[]> {
    return this.#list("/v1/issuers");
  }

  issuer(name: string): Promise<IssuerAnswer> {
    return this.#read(`/v1/issuers${path(name)}`);
  }

  putIssuer(name: string, issuer: IssuerPut, options?: ChangeOptions): Promise<IssuerAnswer> {
    return this.#change("PUT", `/v1/issuers${path(name)}`, issuer, options);
  }

  deleteIssuer(name: string, options?: ChangeOptions): Promise<unknown> {
    return this.#change("DELETE", `/v1/issuers${path(name)}`, undefined, options);
  }

  // --- configs ------------------------------------------------------------------------------------------------------------

  namespaces(tenant: string): Promise<NamespaceAnswer[]> {
    return this.#list(`${tenantPath(tenant)}/namespaces`);
  }

  namespace(where: Where): Promise<NamespaceAnswer> {
    return this.#read(namespacePath(where));
  }

  putNamespace(
    where: Where,
    body: NamespacePut,
    options?: ChangeOptions,
  ): Promise<NamespaceAnswer> {
    return this.#change("PUT", namespacePath(where), body, options);
  }

  configs(where: Where): Promise<ConfigAnswer[]> {
    return this.#list(`${namespacePath(where)}/configs`);
  }

  config(where: Where, name: string): Promise<ConfigDetailAnswer> {
    return this.#read(configPath(where, name));
  }

  putConfig(
    where: Where,
    name: string,
    body: ConfigPut,
    options?: ChangeOptions,
  ): Promise<ConfigPutAnswer> {
    return this.#change("PUT", configPath(where, name), body, options);
  }

  deleteConfig(where: Where, name: string, options?: ChangeOptions): Promise<unknown> {
    return this.#change("DELETE", configPath(where, name), undefined, options);
  }

  undeleteConfig(where: Where, name: string, options?: ChangeOptions): Promise<ConfigAnswer> {
    return this.#change("POST", `${configPath(where, name)}/undelete`, undefined, options);
  }

  versions(where: Where, name: string): Promise<VersionAnswer[]> {
    return this.#list(`${configPath(where, name)}/versions`);
  }

  /** By number or by hash. */
  version(where: Where, name: string, version: number | string): Promise<VersionContentAnswer> {
    return this.#read(`${configPath(where, name)}/versions${path(String(version))}`);
  }

  createVersion(
    where: Where,
    name: string,
    body: ContentPut,
    options?: ChangeOptions,
  ): Promise<VersionAnswer> {
    return this.#change("POST", `${configPath(where, name)}/versions`, body, options);
  }

  publish(
    where: Where,
    name: string,
    body: ContentPut,
    options?: ChangeOptions,
  ): Promise<PublishAnswer> {
    return this.#change("POST", `${configPath(where, name)}/publish`, body, options);
  }

  release(where: Where, name: string): Promise<ReleaseAnswer> {
    return this.#read(`${configPath(where, name)}/release`);
  }

  putRelease(
    where: Where,
    name: string,
    body: ReleasePut,
    options?: ChangeOptions,
  ): Promise<ReleaseAnswer> {
    return this.#change("PUT", `${configPath(where, name)}/release`, body, options);
  }

  rollback(
    where: Where,
    name: string,
    body: RollbackRequest = {},
    options?: ChangeOptions,
  ): Promise<ReleaseAnswer> {
    return this.#change("POST", `${configPath(where, name)}/rollback`, body, options);
  }

  /** Releases, newest first. */
  history(where: Where, name: string): Promise<ReleaseAnswer[]> {
    return this.#list(`${configPath(where, name)}/history`);
  }

  /** Which instances took or refused which version, as far as they told in the last quarter of an hour. */
  feedback(where: Where, name: string): Promise<FeedbackAnswer> {
    return this.#read(`${configPath(where, name)}/feedback`);
  }

  diff(where: Where, name: string, from: number, to: number): Promise<DiffAnswer> {
    return this.#read(`${configPath(where, name)}/diff`, { from, to });
  }

  transaction(
    tenant: string,
    body: TransactionRequest,
    options?: ChangeOptions,
  ): Promise<Static<typeof TransactionAnswer>> {
    return this.#change("POST", `${tenantPath(tenant)}/transactions`, body, options);
  }

  // --- effective values -----------------------------------------------------------------------------------------------------

  values(where: Where, labels: Labels = {}): Promise<ValuesAnswer> {
    return this.#read(`${namespacePath(where)}/values`, labelQuery(labels));
  }

  async value(where: Where, name: string, labels: Labels = {}): Promise<Value> {
    const target = `${namespacePath(where)}/values${path(name)}`;
    const response = await this.request("GET", target, { query: labelQuery(labels) });
    const { headers } = response;
    return {
      // Not text(): that would take a byte order mark away, which is part of the content.
      content: new TextDecoder("utf-8", { ignoreBOM: true }).decode(await response.arrayBuffer()),
      mediaType: headers.get("content-type") ?? "",
      version: Number(headers.get("conflux-version")),
      rule: headers.get("conflux-rule"),
      etag: headers.get("etag") ?? "",
      revision: Number(headers.get("conflux-revision")),
    };
  }

  explain(where: Where, name: string, labels: Labels = {}): Promise<Static<typeof ExplainAnswer>> {
    const query = { ...labelQuery(labels), explain: true };
    return this.#read(`${namespacePath(where)}/values${path(name)}`, query);
  }

  /**
   * All changes of a tenant, frame by frame (`sync`, `commit`, `bookmark`), over reconnects, without gaps. Ends with the
   * signal; throws what the server refuses for good.
   */
  async *watch(tenant: string, options: WatchOptions = {}): AsyncGenerator<Frame> {
    const { namespace, prefix, content, spread } = options;
    const { signal = new AbortController().signal } = options;
    const backoff = new Backoff(100, 10_000);
    let cursor = options.since ?? "";
    while (!signal.aborted) {
      const wire = new AbortController();
      const end = (): void => wire.abort();
      signal.addEventListener("abort", end);
      let watchdog = setTimeout(end, idleMs);
      try {
        const since = cursor === "" ? undefined : cursor;
        const query = { namespace, prefix, content, spread, since };
        const response = await this.#once("GET", `${tenantPath(tenant)}/watch${queryOf(query)}`, {
          signal: wire.signal,
          headers: { accept: "text/event-stream" },
        });
        if (response.headers.get("x-request-id") === null) throw new Foreign(this.#base, response);
        const parser = new EventStreamParser();
        const reader = (response.body as ReadableStream<Uint8Array>).getReader();
        for (;;) {
          const { done, value } = await reader.read();
          if (done) break;
          clearTimeout(watchdog);
          watchdog = setTimeout(end, idleMs);
          for (const event of parser.push(value)) {
            const frame = frameOf(event);
            if (frame.id !== "") cursor = frame.id;
            if (frame.event === "goodbye") continue;
            backoff.reset();
            yield frame;
          }
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof FrameError) throw error;
        if (error instanceof Problem && !problems[error.code].retryable) throw error;
        this.#options.onRetry?.(error as Error);
      } finally {
        clearTimeout(watchdog);
        signal.removeEventListener("abort", end);
        wire.abort();
      }
      this.#at += 1;
      await sleep(backoff.next(), signal);
    }
  }

  // --- backup and restore -----------------------------------------------------------------------------------------------------

  /**
   * One part of a backup: part 0 begins it, further ones belong to its session and can be asked for again.
   * @returns null when nothing changed since `etag`
   */
  async backupPart(
    tenant: string,
    ask: { session?: string; part: number; etag?: string; signal?: AbortSignal },
  ): Promise<{ bytes: Uint8Array; session: string; isLast: boolean } | null> {
    const { session, part, etag, signal } = ask;
    const target = `${tenantPath(tenant)}/backup`;
    const headers = etag === undefined ? {} : { "if-none-match": etag };
    let response: Response;
    try {
      const query = { session, part };
      response = await this.request("GET", target, { query, headers, ...(signal && { signal }) });
    } catch (error) {
      if (error instanceof ServerProblem && error.status === 304) return null;
      throw error;
    }
    return {
      bytes: new Uint8Array(await response.arrayBuffer()),
      session: response.headers.get("conflux-backup-session") ?? "",
      isLast: response.headers.get("conflux-backup-end") !== null,
    };
  }

  /** No further parts are wanted: the server gives its place to others at once, and not a minute later. */
  async endBackup(tenant: string, session: string, signal?: AbortSignal): Promise<void> {
    const target = `${tenantPath(tenant)}/backup`;
    const query = { session, over: true };
    await this.request("GET", target, { query, ...(signal && { signal }) });
  }

  /** Makes a tenant that takes nothing but the rows of a backup until `finishRestore`. */
  beginRestore(
    tenant: string,
    begin: RestoreBegin,
    options?: ChangeOptions,
  ): Promise<RestoreBegun> {
    return this.#change("POST", `${tenantPath(tenant)}/restore`, begin, options);
  }

  restoreState(tenant: string): Promise<RestoreAnswer> {
    return this.#read(`${tenantPath(tenant)}/restore`);
  }

  /** Key and JSON text of each row, in order of keys over all parts, which are numbered from 0. */
  restoreRows(
    tenant: string,
    part: number,
    rows: readonly (readonly [key: string, text: string])[],
  ): Promise<RestoreProgress> {
    return this.#change("PUT", `${tenantPath(tenant)}/restore/rows/${part}`, { rows });
  }

  finishRestore(tenant: string, rows: number, options?: ChangeOptions): Promise<RestoreFinished> {
    return this.#change("POST", `${tenantPath(tenant)}/restore/finish`, { rows }, options);
  }

  // --- cluster --------------------------------------------------------------------------------------------------------------

  clusterStatus(): Promise<Static<typeof ClusterStatusAnswer>> {
    return this.#read("/v1/cluster/status");
  }

  members(): Promise<{ readonly items: readonly Static<typeof ClusterMember>[] }> {
    return this.#read("/v1/cluster/members");
  }

  /** Where tenants are placed; of a state, only those. */
  clusterTenants(state?: string): Promise<Static<typeof ClusterTenant>[]> {
    return this.#list("/v1/cluster/tenants", { state });
  }

  /** `join` takes back a node that leaves; a new one joins by itself when it is started. `leave` moves everything off. */
  setMember(
    node: string,
    to: "join" | "leave" | "drain" | "undrain",
  ): Promise<Static<typeof NodeAnswer>> {
    return to === "join" || to === "leave"
      ? this.#change("POST", `/v1/cluster/${to}`, { node })
      : this.#change("POST", `/v1/cluster/nodes/${encodeURIComponent(node)}/${to}`, undefined);
  }

  /**
   * All nodes were upgraded: use what they know, up to `level` (default: the highest that all know). Never taken back.
   * @throws Problem `conflict` naming a node that knows less, or that cannot be asked
   */
  upgradeCluster(level?: number): Promise<Static<typeof UpgradeAnswer>> {
    return this.#change("POST", "/v1/cluster/upgrade", { ...(level !== undefined && { level }) });
  }

  /** A tenant's damaged replica on `node` gets another one in its place. @throws Problem `conflict` where that is unsafe */
  repairReplica(node: string, tenant: string): Promise<Static<typeof RepairAnswer>> {
    return this.#change("POST", `/v1/cluster/nodes/${encodeURIComponent(node)}/repair`, { tenant });
  }

  // --- requests -------------------------------------------------------------------------------------------------------------

  /**
   * One request with its retries: on no answer, and where the problem's code says that repeating may help, until
   * `totalMs` is over.
   * @throws Problem as the server told it; Unreachable when nobody answered
   */
  async request(
    method: string,
    target: string,
    options: {
      readonly query?: Query;
      readonly body?: unknown;
      readonly headers?: Readonly<Record<string, string>>;
      /** No answer is wanted any more. */
      readonly signal?: AbortSignal;
    } = {},
  ): Promise<Response> {
    const { requestMs = 15_000, totalMs = 30_000 } = this.#options;
    const isChange = method !== "GET";
    let isSent = false;
    let foreign = 0;
    const backoff = new Backoff(100, 2_000);
    const from = performance.now();
    const { unreachableMs = totalMs } = this.#options;
    const { signal = new AbortController().signal } = options;
    let told: Problem | null = null;
    for (;;) {
      try {
        return await this.#whole(method, `${target}${queryOf(options.query ?? {})}`, {
          method,
          signal: AbortSignal.any([AbortSignal.timeout(requestMs), signal]),
          headers: {
            accept: "application/json, application/problem+json, */*;q=0.5",
            ...(options.body === undefined ? {} : { "content-type": "application/json" }),
            ...options.headers,
          },
          ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
        });
      } catch (error) {
        if (signal.aborted) throw error;
        // It will be no gateway in a moment either; another of the urls may be one.
        if (error instanceof Foreign && ++foreign >= this.#urls.length) throw error;
        if (error instanceof Problem) {
          if (!problems[error.code].retryable) throw error;
          told = error;
        } else if (isChange && !(error instanceof Foreign || neverSent.test(String(error))))
          isSent = true;
        const floorMs = error instanceof Problem ? (error.retryAfter ?? 0) * 1000 : 0;
        const waitMs = backoff.next(Math.min(floorMs, 10_000));
        const spentMs = performance.now() - from + waitMs;
        // What a node said explains more than that another one is away.
        if (spentMs > (told === null ? unreachableMs : totalMs)) {
          if (told !== null) throw told;
          throw isSent && error instanceof Unreachable ? new Unanswered(error) : error;
        }
        this.#options.onRetry?.(error as Error);
        this.#at += 1;
        await sleep(waitMs, signal);
      }
    }
  }

  get #base(): string {
    return this.#urls[this.#at % this.#urls.length] as string;
  }

  /** Read to its end: an answer that breaks off is none. */
  async #whole(method: string, target: string, init: RequestInit): Promise<Response> {
    const response = await this.#once(method, target, init);
    const { status, statusText, headers } = response;
    // Every answer of a gateway has one. What has none is another's, whatever it says: nothing was done.
    if (headers.get("x-request-id") === null) throw new Foreign(this.#base, response);
    try {
      const bytes = await response.arrayBuffer();
      return new Response(bytes.byteLength === 0 ? null : bytes, { status, statusText, headers });
    } catch (error) {
      throw new Unreachable(this.#base, reasonOf(error), error);
    }
  }

  async #once(method: string, target: string, init: RequestInit): Promise<Response> {
    const base = this.#base;
    const { token } = this.#options;
    const key = typeof token === "function" ? await token() : token;
    let response: Response;
    try {
      response = await this.#fetch(`${base}${target}`, {
        ...init,
        method,
        headers: {
          ...(init.headers as Record<string, string>),
          ...(key === undefined ? {} : { authorization: `Bearer ${key}` }),
        },
      });
    } catch (error) {
      throw new Unreachable(base, reasonOf(error), error);
    }
    if (!response.ok) throw await problemOf(response);
    return response;
  }

  async #read<T>(target: string, query: Query = {}): Promise<T> {
    return this.#bodyOf<T>(await this.request("GET", target, { query }));
  }

  async #change<T>(
    method: string,
    target: string,
    body: unknown,
    options: ChangeOptions = {},
    query: Query = {},
  ): Promise<T> {
    const headers: Record<string, string> = {
      "idempotency-key": options.idempotencyKey ?? randomId(),
    };
    if (options.ifMatch !== undefined) headers["if-match"] = options.ifMatch;
    if (options.ifNoneMatch !== undefined) headers["if-none-match"] = options.ifNoneMatch;
    const dryRun = options.dryRun === true ? true : undefined;
    const response = await this.request(method, target, {
      headers,
      query: { ...query, dryRun, spread: options.spread },
      ...(body === undefined ? {} : { body }),
    });
    return this.#bodyOf<T>(response);
  }

  async #bodyOf<T>(response: Response): Promise<T> {
    const text = await response.text();
    try {
      return (text === "" ? null : JSON.parse(text)) as T;
    } catch {
      throw new Foreign(this.#base, response);
    }
  }

  async #list<T>(target: string, query: Query = {}): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | undefined;
    do {
      const page: { items: T[]; next?: string } = await this.#read(target, {
        ...query,
        limit: pageMax,
        cursor,
      });
      items.push(...page.items);
      cursor = page.next;
    } while (cursor !== undefined);
    return items;
  }
}

function tenantPath(tenant: string): string {
  return `/v1/tenants${path(tenant)}`;
}

function namespacePath({ tenant, namespace }: Where): string {
  return `${tenantPath(tenant)}/namespaces${path(namespace)}`;
}

function configPath(where: Where, name: string): string {
  return `${namespacePath(where)}/configs${path(name)}`;
}

function labelQuery(labels: Labels): Query {
  return Object.fromEntries(
    Object.entries(labels).map(([label, value]) => [`label.${label}`, value]),
  );
}

function queryOf(query: Query): string {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    if (value !== undefined) params.append(name, String(value));
  const text = params.toString();
  return text === "" ? "" : `?${text}`;
}
