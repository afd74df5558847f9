/**
 * The HTTP door of a node: every request for any tenant, answered here or by a node that holds the tenant.
 *
 * The way of a request: route → key → parameters → (elsewhere? forward it whole) → body → handler → headers that every
 * answer carries. Whatever goes wrong on the way is a problem document; nothing internal is ever told, only a request id
 * under which the log has it whole.
 */
import type { TSchema } from "@sinclair/typebox";
import { Elysia } from "elysia";
import { NotHere, outcomeUnknown, Problem, problems } from "../api/problems.ts";
import type { ConfigService, ReadOptions, TenantView } from "../host/ports.ts";
import {
  checkConfigName,
  checkKeyId,
  checkNamespaceName,
  checkTenantName,
  systemTenant,
} from "../model/names.ts";
import {
  authorize,
  credentialOf,
  principalIn,
  rootPrincipal,
  unauthorized,
  type Credential,
} from "./auth.ts";
import { Backups } from "./backup.ts";
import { backupRoutes } from "./backup_routes.ts";
import { clusterRoutes } from "./cluster.ts";
import { configRoutes } from "./configs.ts";
import { Feedback } from "./feedback.ts";
import { feedbackRoutes } from "./feedback_routes.ts";
import {
  bodyBytes,
  bodyInit,
  check,
  givenRequestId,
  jsonBody,
  minRevisionOf,
  noneMatch,
  parseQuery,
  problemAnswer,
  readQuery,
  tokenOf,
  type Answer,
  type Call,
  type RequestInfo,
} from "./http.ts";
import { Metrics } from "./metrics.ts";
import { issuerRoutes, Issuers } from "./issuers.ts";
import { Limits } from "./limits.ts";
import { NamespaceSets } from "./namespace_sets.ts";
import { ofrepFailure, ofrepRoutes } from "./ofrep.ts";
import { notHereAnswer, Peers } from "./peers.ts";
import type { Context, Input, Route } from "./route.ts";
import { secretRoutes } from "./secret_routes.ts";
import { Secrets, type SecretKey } from "./secrets.ts";
import { purgeExpired, SteadyClock } from "./retention.ts";
import { tenantRoutes } from "./tenants.ts";
import { webStream, type OpenStream } from "./streams.ts";
import { base62 } from "./tokens.ts";
import { valueRoutes } from "./value_routes.ts";
import { watchRoutes } from "./watch_routes.ts";
import type { WatchSettings } from "./watchers.ts";
import { Watches } from "./watches.ts";

/** What the gateway needs of a logger; pino has it. */
export interface Logger {
  debug(fields: object, event: string): void;
  info(fields: object, event: string): void;
  warn(fields: object, event: string): void;
  error(fields: object, event: string): void;
  /** Absent: debug is off. */
  isLevelEnabled?(level: string): boolean;
}

export interface GatewaySettings {
  /** Version of the software, for answers and OpenAPI. */
  readonly version: string;
  /** Requests under way at once, watches not counted; more are refused with 503. */
  readonly requestsMax?: number;
  readonly watch?: Partial<WatchSettings>;
  /** How watches and long answers leave, where the runtime knows a faster way than that of the web. */
  readonly openStream?: OpenStream | undefined;
  /** How often tenants are told how much they were used. */
  readonly usageMs?: number;
  /** How long a deleted tenant can be undeleted before it is purged; absent: for ever. */
  readonly retentionMs?: number;
  /** For secret configs; absent: there can be none. */
  readonly secretKeys?: readonly SecretKey[];
  /** What the node lacks before it can begin, for people, and what they can do; null: nothing. */
  readonly lacks?: () => string | null;
}

export interface Gateway {
  fetch(request: Request, info?: RequestInfo): Response | Promise<Response>;
  readonly routes: readonly Route[];
  /** Says goodbye to every watcher; they come back to another node. */
  close(reason?: string): void;
  /** Writes down in the tenants' state what was counted here; before a node stops, and now and then. */
  recordUsage(): Promise<void>;
  status(): { readonly requests: number; readonly watchers: number };
}

/** How long a tenant is looked for that nobody has who should have it, and how often. */
const movedWaitMs = 1_000;
const movedRetryMs = 25;
/** Answered whatever the node lacks. */
const alwaysAnswered: ReadonlySet<string> = new Set(["livez", "openapi", "getProblem"]);
const requestsMaxDefault = 4_096;
const usageMsDefault = 60_000;
const retentionCheckMs = 3_600_000;

/** The one table. */
export const routes: readonly Route[] = [
  ...clusterRoutes,
  ...issuerRoutes,
  ...secretRoutes,
  ...tenantRoutes,
  ...configRoutes,
  ...valueRoutes,
  ...ofrepRoutes,
  ...watchRoutes,
  ...feedbackRoutes,
  ...backupRoutes,
];

const methodsKnown: ReadonlySet<string> = new Set([
  ...routes.map(({ method }) => method),
  "HEAD",
  "OPTIONS",
]);

export function createGateway(options: {
  readonly service: ConfigService;
  readonly log: Logger;
  readonly settings: GatewaySettings;
}): Gateway {
  const door = new Door(options.service, options.log, options.settings);
  return {
    fetch: (request, info) => door.fetch(request, info ?? {}),
    routes,
    close: (reason) => door.close(reason ?? "stopping"),
    recordUsage: () => door.recordUsage(),
    status: () => door.status(),
  };
}

/** What Elysia does not carry through: who sent a request, and that its answer must have no body. */
interface Origin {
  readonly request: Request;
  readonly info: RequestInfo;
  readonly head: boolean;
  readonly requestId: string;
}

class Door {
  readonly #service: ConfigService;
  readonly #log: Logger;
  readonly #context: Context;
  readonly #app: { fetch(request: Request): Response | Promise<Response> };
  /** Of the request that is being routed: that is done within one call. */
  #origin: Origin | null = null;
  readonly #limits: Limits;
  readonly #issuers: Issuers;
  readonly #timers: ReturnType<typeof setInterval>[] = [];
  readonly #requestsMax: number;
  readonly #lacks: () => string | null;
  readonly #isVerbose: boolean;
  readonly #openStream: OpenStream;
  readonly #metrics = new Metrics();
  #requests = 0;
  #turn = 0;
  #isTurnAsked = false;
  // Unique over nodes and starts without drawing chance for every request.
  readonly #idPrefix = base62(crypto.getRandomValues(new Uint8Array(6)), 9);
  #idCount = 0;

  constructor(service: ConfigService, log: Logger, settings: GatewaySettings) {
    this.#service = service;
    this.#log = log;
    this.#isVerbose = log.isLevelEnabled?.("debug") ?? false;
    this.#requestsMax = settings.requestsMax ?? requestsMaxDefault;
    this.#lacks = settings.lacks ?? (() => null);
    this.#openStream = settings.openStream ?? webStream;
    const peers = new Peers(service, (request, info) => this.fetch(request, info));
    this.#limits = new Limits(service);
    const secrets = new Secrets(settings.secretKeys ?? []);
    this.#context = {
      service,
      peers,
      secrets,
      watches: new Watches({
        limits: this.#limits,
        secrets,
        service,
        peers,
        settings: settings.watch ?? {},
        openStream: this.#openStream,
        failed: (error) => log.error({ err: error }, "gateway.watch_failed"),
      }),
      sets: new NamespaceSets(),
      feedback: new Feedback(),
      backups: new Backups(service, peers, secrets, settings.version),
      version: settings.version,
      routes,
      metrics: () => this.#metrics.text(this.#context, this.#requests, this.#limits.watches),
    };
    this.#issuers = new Issuers(peers, () => service.nowMs());
    this.#every(settings.usageMs ?? usageMsDefault, "gateway.usage_failed", () =>
      this.recordUsage(),
    );
    const { retentionMs } = settings;
    if (retentionMs !== undefined) {
      const clock = new SteadyClock(service.nowMs(), performance.now());
      this.#every(retentionCheckMs, "gateway.retention_failed", async () => {
        const now = service.nowMs();
        if (!clock.isSteady(now, performance.now()))
          return log.warn({ now }, "gateway.purge_put_off");
        const tenants = await purgeExpired(service, retentionMs, now);
        if (tenants.length > 0) log.info({ tenants }, "gateway.tenants_purged");
      });
    }
    this.#app = this.#router();
  }

  #every(ms: number, failure: string, act: () => Promise<void>): void {
    const timer = setInterval(() => {
      // Done again the next time.
      act().catch((error: unknown) => this.#log.warn({ err: error }, failure));
    }, ms);
    timer.unref?.();
    this.#timers.push(timer);
  }

  recordUsage(): Promise<void> {
    return this.#limits.record();
  }

  /**
   * Elysia routes; what a route does is ours, so its body parsing and its schemas stay out of the way. It has no hooks,
   * and a handler names what it takes of the context: then Elysia composes a plain function, without a promise of its own,
   * and leaves bodies alone.
   */
  #router(): { fetch(request: Request): Response | Promise<Response> } {
    const app = new Elysia({ strictPath: true, normalize: false });
    for (const route of routes)
      app.route(
        route.method,
        route.path,
        // A path without parameters has none, not even an empty object of them.
        ({ request, params = {} }: { request: Request; params?: Record<string, string> }) =>
          this.#guarded(request, (origin) => this.#run(route, origin, params)),
      );
    for (const path of ["/*", "/"])
      app.all(path, ({ request }: { request: Request }) =>
        this.#guarded(request, (origin) => this.#nowhere(origin)),
      );
    return app;
  }

  /** What is thrown outside of a route's own way Elysia would tell to the client as it is. */
  #guarded(
    request: Request,
    run: (origin: Origin) => Response | Promise<Response>,
  ): Response | Promise<Response> {
    const origin = this.#origin;
    if (origin?.request !== request) return this.#failed(request, this.#nextId(), unrouted);
    try {
      return run(origin);
    } catch (error) {
      return this.#failed(request, origin.requestId, error);
    }
  }

  status(): { readonly requests: number; readonly watchers: number } {
    return { requests: this.#requests, watchers: this.#context.watches.count };
  }

  close(reason: string): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#context.watches.close(reason);
    this.#context.backups.close();
  }

  fetch(given: Request, info: RequestInfo): Response | Promise<Response> {
    let request = given;
    const { method, url } = request;
    const head = method === "HEAD";
    const requestId = givenRequestId(given) ?? this.#nextId();
    // Elysia looks for the path from the 11th character on, so a very short host would be taken for part of it.
    const shortHost = url.indexOf("/", "http://".length) < 11;
    if (head || shortHost) {
      // Some runtimes bring methods here that no Request can be made with.
      if (!methodsKnown.has(method)) return this.#nowhere({ request, info, head, requestId });
      request = new Request(`http://localhost${partsOf(url).target}`, {
        method: head ? "GET" : method,
        headers: request.headers,
        ...(request.body !== null && { body: request.body, duplex: "half" }),
      });
    }
    const origin = { request, info, head, requestId };
    this.#origin = origin;
    try {
      if (request.method === "OPTIONS") return this.#options(origin);
      return this.#app.fetch(request);
    } catch (error) {
      return this.#failed(request, requestId, error);
    }
  }

  #nextId(): string {
    return `${this.#idPrefix}${(this.#idCount++).toString(36)}`;
  }

  /** At once where nothing has to be waited for: a promise costs more than many a read. */
  #run(
    route: Route,
    { request, info, head, requestId }: Origin,
    params: Record<string, string>,
  ): Response | Promise<Response> {
    const { target, query } = partsOf(request.url);
    const call: Call = {
      request,
      requestId,
      info,
      target,
      params,
      query,
      head,
      dryRun: false,
      bytes: null,
      body: undefined,
      proposed: false,
      // Browsers cannot send headers with an event stream.
      token: tokenOf(request) ?? (route.id === "watchFlags" ? query.get("token") : null),
      principal: null,
      revision: null,
      rateLimit: null,
    };
    // Long polls wait, and have a bound of their own.
    const isCounted = !this.#context.watches.isWatch(route);
    const startedAt = performance.now();
    if (isCounted) this.#requests++;
    const ended = (answer: Answer, isLate: boolean): Response => {
      if (isCounted) this.#requests--;
      return this.#ended(route, call, answer, { isCounted, startedAt, isLate });
    };
    let answer: Answer | Promise<Answer>;
    try {
      const lack = this.#lacks();
      if (lack !== null && !alwaysAnswered.has(route.id)) throw new Problem("not-ready", lack);
      if (this.#requests > this.#requestsMax && isCounted && route.access.scope !== "public")
        throw new Problem("overloaded", "This node has too many requests under way");
      answer = this.#answer(route, call);
    } catch (error) {
      answer = this.#refused(route, call, error);
    }
    if (!(answer instanceof Promise)) return ended(answer, false);
    const turn = this.#turnNow();
    return answer.then(
      (late) => ended(late, turn !== this.#turn),
      async (error: unknown) => {
        const refused = await this.#refused(route, call, error);
        return ended(refused, turn !== this.#turn);
      },
    );
  }

  /** Of the event loop. Counted only where somebody asks. */
  #turnNow(): number {
    if (!this.#isTurnAsked) {
      this.#isTurnAsked = true;
      setImmediate(() => {
        this.#turn++;
        this.#isTurnAsked = false;
      });
    }
    return this.#turn;
  }

  #ended(
    route: Route,
    call: Call,
    answer: Answer,
    how: { readonly isCounted: boolean; readonly startedAt: number; readonly isLate: boolean },
  ): Response {
    try {
      const ms = performance.now() - how.startedAt;
      if (how.isCounted) this.#metrics.ended(route, answer.status, ms / 1000);
      if (this.#isVerbose)
        this.#log.debug(
          {
            requestId: call.requestId,
            route: route.id,
            status: answer.status,
            ms: Math.round(ms),
            tenant: call.params["tenant"],
            key: call.principal?.keyId,
          },
          "gateway.request",
        );
      // What is not read from the tenant's rows is answered at some revision of theirs all the same.
      if (answer.status < 400) call.revision ??= this.#revisionHere(route, call);
      return this.#respond(answer, call, how.isLate);
    } catch (error) {
      return this.#failed(call.request, call.requestId, error);
    }
  }

  /** Only who has a key of the tenant learns that it was deleted. */
  #refused(route: Route, call: Call, error: unknown): Answer | Promise<Answer> {
    if (!(error instanceof Problem) || error.code !== "tenant-deleted" || call.token === null)
      return this.#problem(route, error, call);
    const credential = credentialOf(call.token);
    if (credential.kind !== "tenant") return this.#problem(route, error, call);
    return this.#isKeyOfDeleted(credential.key.tenant, credential).then((isKnown) =>
      this.#problem(route, isKnown ? error : unauthorized(), call),
    );
  }

  #problem(route: Route, error: unknown, call: Call): Answer {
    const told = (problem: Problem): Answer => {
      call.revision = this.#revisionAt(route, problem, call);
      const answer = problemAnswer(problem, call.requestId);
      return route.errors === "ofrep" ? ofrepFailure(problem, call, answer) : answer;
    };
    if (error instanceof Problem && error.code !== "internal") return told(error);
    this.#log.error(
      { err: error, requestId: call.requestId, method: call.request.method, path: pathOf(call) },
      logOfFailure,
    );
    return told(internal());
  }

  /** Who was not let in does not learn how far a tenant is; everybody else does, also where nothing was read. */
  #revisionAt(route: Route, { code }: Problem, call: Call): number | null {
    const { status } = problems[code];
    if (call.principal === null || status === 401 || status === 403) return null;
    return call.revision ?? this.#revisionHere(route, call);
  }

  #revisionHere(route: Route, { params: { tenant } }: Call): number | null {
    return tenant === undefined || route.byDirectory
      ? null
      : (this.#service.viewNow(tenant)?.revision ?? null);
  }

  #failed(request: Request, requestId: string, error: unknown): Response {
    const path = partsOf(request.url).target.split("?", 1)[0];
    this.#log.error({ err: error, requestId, method: request.method, path }, logOfFailure);
    const { status, headers, body } = problemAnswer(internal(), requestId);
    return new Response(body, { status, headers: { ...headers, "x-request-id": requestId } });
  }

  /** Adds what every answer carries, and builds the Response. */
  #respond(answer: Answer, call: Call, isLate: boolean): Response {
    const { shared } = answer;
    if (shared !== undefined && isOrdinary(call)) {
      shared.set("x-request-id", call.requestId);
      shared.set("conflux-revision", String(call.revision));
      const body = bodyInit(answer.body, isLate ? this.#openStream : null);
      return new Response(body, { status: answer.status, headers: shared });
    }
    const headers = shared === undefined ? answer.headers : { ...answer.headers };
    headers["x-request-id"] = call.requestId;
    if (call.revision !== null) headers["conflux-revision"] ??= String(call.revision);
    if (call.rateLimit !== null) {
      headers["ratelimit-policy"] = call.rateLimit.policy;
      headers["ratelimit"] = call.rateLimit.state;
    }
    if (call.request.headers.get("origin") !== null) allowOrigin(headers);
    const etag = headers["etag"];
    if (etag !== undefined && answer.status === 200 && call.request.method === "GET") {
      const given = call.request.headers.get("if-none-match");
      if (given !== null && noneMatch(given, etag)) {
        delete headers["content-type"];
        return new Response(null, { status: 304, headers });
      }
    }
    if (!call.head)
      return new Response(bodyInit(answer.body, isLate ? this.#openStream : null), {
        status: answer.status,
        headers,
      });
    if (answer.body instanceof ReadableStream) void answer.body.cancel();
    // Left out, it would be filled in as zero: the length of the body that is not sent.
    else if (answer.body !== null)
      headers["content-length"] = String(Buffer.byteLength(answer.body));
    return new Response(null, { status: answer.status, headers });
  }

  // --- keys and places ---------------------------------------------------------------------------------------------------

  #answer(route: Route, call: Call): Answer | Promise<Answer> {
    checkDecoded(call.params);
    if (route.access.scope === "public") return this.#handle(route, call);
    if (call.token === null)
      throw unauthorized("Send a key as Authorization: Bearer or as X-API-Key");
    const credential = credentialOf(call.token);
    if (credential.kind === "broken") throw unauthorized();
    // It was made for one route, and may stand in logs and browsers.
    if (credential.kind === "stream" && route.id !== "watchFlags") throw unauthorized();
    if (route.access.scope === "cluster") return this.#ofCluster(route, call, credential);
    const tenant = call.params["tenant"] as string;
    if (credential.kind === "tenant" && credential.key.tenant !== tenant)
      throw new Problem("forbidden", "This key belongs to another tenant");
    if (credential.kind === "tenant" || credential.kind === "stream") {
      checkParams(route, call.params);
      return this.#ofTenant(route, call, tenant, credential);
    }
    return this.#ofOthers(route, call, tenant, credential);
  }

  async #ofCluster(route: Route, call: Call, credential: Credential): Promise<Answer> {
    // Checked all the same: who sends no token that holds is told so, and nothing else.
    if (credential.kind === "issued") await this.#issuers.principal(call.token as string, null);
    if (credential.kind !== "root") throw new Problem("forbidden", "Only root keys may do that");
    call.principal = await this.#root(credential.hash);
    return this.#handle(route, call);
  }

  /** Keys that are not in the tenant's own state. */
  async #ofOthers(
    route: Route,
    call: Call,
    tenant: string,
    credential: Credential,
  ): Promise<Answer> {
    if (credential.kind === "root") call.principal = await this.#root(credential.hash);
    if (credential.kind === "issued")
      call.principal = await this.#issuers.principal(call.token as string, tenant);
    checkParams(route, call.params);
    if (credential.kind === "root" && route.byDirectory) return this.#handle(route, call);
    return this.#ofTenant(route, call, tenant, credential);
  }

  async #isKeyOfDeleted(
    tenant: string,
    credential: Credential & { readonly kind: "tenant" },
  ): Promise<boolean> {
    try {
      return await this.#service.read(
        tenant,
        { consistency: "stale", evenDeleted: true },
        (view) => principalIn(view, credential, this.#service.nowMs()) !== null,
      );
    } catch {
      return false;
    }
  }

  #ofTenant(
    route: Route,
    call: Call,
    tenant: string,
    credential: Credential,
  ): Answer | Promise<Answer> {
    const here = (): Answer | Promise<Answer> =>
      route.read === undefined
        ? this.#change(route, call, tenant, credential)
        : this.#read(route, call, tenant, credential);
    if (this.#service.locateNow(tenant)?.local !== true)
      return this.#wherever(route, call, tenant, credential, here);
    const answer = here();
    if (!(answer instanceof Promise)) return answer;
    return answer.catch((error: unknown) => {
      guardNotHere(error, call);
      return this.#wherever(route, call, tenant, credential, here);
    });
  }

  /**
   * While a tenant moves, no node may know better than another: who is asked for it may not have it any more, or not have
   * heard yet that it has.
   */
  async #wherever(
    route: Route,
    call: Call,
    tenant: string,
    credential: Credential,
    here: () => Answer | Promise<Answer>,
  ): Promise<Answer> {
    const until = performance.now() + movedWaitMs;
    for (;;) {
      const nodes = await this.#elsewhere(tenant, credential);
      try {
        return await (nodes === null ? here() : this.#forward(route, call, nodes));
      } catch (error) {
        guardNotHere(error, call);
        if (performance.now() >= until) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, movedRetryMs));
    }
  }

  async #root(hash: string): Promise<Call["principal"]> {
    const principal = await rootPrincipal(this.#context.peers, hash);
    if (principal === null) throw unauthorized();
    return principal;
  }

  /** Null when the tenant has a replica here, else the nodes that have one. */
  async #elsewhere(tenant: string, credential: Credential): Promise<readonly string[] | null> {
    const place = await this.#service.locate(tenant);
    if (place !== null) return place.local ? null : place.nodes;
    // Only root may learn which tenants there are.
    if (credential.kind === "root") throw new Problem("not-found", `There is no tenant ${tenant}`);
    throw unauthorized();
  }

  async #forward(route: Route, call: Call, nodes: readonly string[]): Promise<Answer> {
    if (call.info.forwardedBy !== undefined)
      return notHereAnswer(
        problemAnswer(
          new Problem("not-ready", "The tenant has no replica on this node"),
          call.requestId,
        ),
      );
    if (this.#context.watches.isWatch(route)) return this.#context.watches.relay(call, nodes);
    if (route.id === "getBackup") {
      readQuery(call.query, route.query, route.labels);
      return this.#context.backups.relay(call, nodes);
    }
    const body =
      route.method === "GET"
        ? null
        : (call.bytes ??= await bodyBytes(call.request, route.bodyBytesMax));
    return this.#context.peers.forward(call, nodes, body, { safe: !route.change });
  }

  // --- here ----------------------------------------------------------------------------------------------------------------

  #handle(route: Route, call: Call): Answer | Promise<Answer> {
    const { handle } = route;
    if (handle === undefined) throw new Error(`Route ${route.id} has no handler`);
    const query = readQuery(call.query, route.query, route.labels);
    if (query["dryRun"] === true) call.dryRun = true;
    if (route.body === null) return handle(call, { query, body: undefined }, this.#context);
    return this.#body(route, route.body, call).then((body) =>
      handle(call, { query, body }, this.#context),
    );
  }

  #body(route: Route, schema: TSchema, call: Call): Promise<unknown> {
    return jsonBody(call, route.bodyBytesMax).then((given) => {
      const body = given === undefined && !route.bodyRequired ? {} : given;
      check(schema, body);
      call.body = body;
      return body;
    });
  }

  #change(
    route: Route,
    call: Call,
    tenant: string,
    credential: Credential,
  ): Answer | Promise<Answer> {
    if (credential.kind !== "root") {
      const later = this.#letIn(route, call, tenant, credential);
      if (later !== null) return later.then(() => this.#handle(route, call));
    } else {
      if (call.principal === null) throw unauthorized();
      this.#limits.count(tenant);
    }
    return this.#handle(route, call);
  }

  /** Who asks, whether they may, and whether not too often. @throws Problem */
  #admit(
    route: Route,
    call: Call,
    view: TenantView,
    credential: Credential,
  ): NonNullable<Call["principal"]> {
    const now = this.#service.nowMs();
    const isStream = credential.kind === "stream";
    if (credential.kind === "tenant" || isStream)
      call.principal = principalIn(view, credential, now);
    const { principal } = call;
    if (principal === null) throw unauthorized(isStream ? addressEnded : undefined);
    authorize(route.access, principal, call.params["namespace"]);
    this.#limits.admit(view, call, principal, route.change, now);
    return principal;
  }

  /** Null: it may, as the state here knows already. @throws Problem */
  #letIn(route: Route, call: Call, tenant: string, credential: Credential): Promise<void> | null {
    const admit = (view: TenantView): Failed | null => {
      try {
        this.#admit(route, call, view, credential);
        return null;
      } catch (error) {
        return new Failed(error);
      }
    };
    const view = this.#service.viewNow(tenant, { evenUnborn: true });
    const first = view === null ? null : admit(view);
    if (view !== null && first === null) return null;
    return this.#letInLater(tenant, first, admit);
  }

  async #letInLater(
    tenant: string,
    first: Failed | null,
    admit: (view: TenantView) => Failed | null,
  ): Promise<void> {
    const options = { consistency: "stale", evenUnborn: true } as const;
    let failed = first ?? (await this.#service.read(tenant, options, admit));
    // It may have been made a moment ago through another node.
    if (failed?.isUnauthorized === true)
      failed = await this.#service.read(tenant, { consistency: "linearizable" }, admit);
    if (failed !== null) throw failed.error;
  }

  /** One read checks the key and answers. */
  #read(
    route: Route,
    call: Call,
    tenant: string,
    credential: Credential,
  ): Answer | Promise<Answer> {
    const query = readQuery(call.query, route.query, route.labels);
    if (route.body === null)
      return this.#readWith(route, call, tenant, credential, { query, body: undefined });
    return this.#body(route, route.body, call).then((body) =>
      this.#readWith(route, call, tenant, credential, { query, body }),
    );
  }

  #readWith(
    route: Route,
    call: Call,
    tenant: string,
    credential: Credential,
    input: Input,
  ): Answer | Promise<Answer> {
    const { read } = route;
    if (read === undefined) throw new Error(`Route ${route.id} does not read`);
    // What is thrown inside must not look to the host like a fault of the replica.
    const attempt = (view: TenantView): Answer | Failed => {
      try {
        call.revision = view.revision;
        this.#admit(route, call, view, credential);
        return read(view, call, input, this.#context);
      } catch (error) {
        return new Failed(error);
      }
    };
    const minRevision = minRevisionOf(call.request);
    const isStale = input.query["consistency"] === "stale";
    const consistency = isStale ? "stale" : "linearizable";
    const view = minRevision === undefined ? this.#service.viewNow(tenant, { consistency }) : null;
    if (view !== null) {
      const answer = attempt(view);
      // It may have been made a moment ago through another node.
      if (isStale && answer instanceof Failed && answer.isUnauthorized)
        return this.#service.read(tenant, { consistency: "linearizable" }, attempt).then(succeeded);
      return succeeded(answer);
    }
    const options: ReadOptions = { consistency, ...(minRevision !== undefined && { minRevision }) };
    const answered = this.#readAs(route, tenant, options, attempt);
    if (!isStale) return answered.then(succeeded);
    return answered.then((answer) =>
      answer instanceof Failed && answer.isUnauthorized
        ? this.#service.read(tenant, { consistency: "linearizable" }, attempt).then(succeeded)
        : succeeded(answer),
    );
  }

  #readAs<T>(
    route: Route,
    tenant: string,
    options: ReadOptions,
    query: (view: TenantView) => T,
  ): Promise<T> {
    if (!route.available || options.consistency === "stale")
      return this.#service.read(tenant, options, query);
    return this.#service
      .read(tenant, { ...options, timeoutMs: quorumWaitMs }, query)
      .catch((error: unknown) => {
        if (!(error instanceof Problem) || error.code !== "no-quorum") throw error;
        return this.#service.read(tenant, { ...options, consistency: "stale" }, query);
      });
  }

  // --- no route --------------------------------------------------------------------------------------------------------------

  #nowhere(origin: Origin): Response {
    const { request } = origin;
    const { target } = partsOf(request.url);
    const allowed = methodsAt(target);
    const headers: Record<string, string> = { "x-request-id": origin.requestId };
    if (allowed.length > 0) headers["allow"] = allowed.join(", ");
    if (request.headers.get("origin") !== null) allowOrigin(headers);
    const answer = problemAnswer(
      allowed.length === 0
        ? new Problem("not-found", "There is no such route; /openapi.json lists them all")
        : new Problem("method-not-allowed", `Use ${allowed.join(", ")} here`),
      origin.requestId,
    );
    const body = answer.body as string;
    if (origin.head) headers["content-length"] = String(Buffer.byteLength(body));
    return new Response(origin.head ? null : body, {
      status: answer.status,
      headers: { ...answer.headers, ...headers },
    });
  }

  /** Preflights of browsers, and plain OPTIONS. */
  #options(origin: Origin): Response {
    const { request, requestId } = origin;
    const allowed = methodsAt(partsOf(request.url).target);
    if (allowed.length === 0) return this.#nowhere(origin);
    const headers: Record<string, string> = {
      allow: allowed.join(", "),
      "x-request-id": requestId,
    };
    if (request.headers.get("origin") !== null) {
      allowOrigin(headers);
      headers["access-control-allow-methods"] = allowed.join(", ");
      headers["access-control-allow-headers"] = allowedHeaders;
      headers["access-control-max-age"] = "600";
    }
    return new Response(null, { status: 204, headers });
  }
}

/** How long what would rather be old than late waits for a quorum. */
const quorumWaitMs = 2_000;

const addressEnded =
  "This address of an event stream is not known, or no longer valid: evaluate all flags again, which gives a new one";

const unrouted = new Error("A request was not routed within the call that brought it");
const logOfFailure = "gateway.request_failed";

function internal(): Problem {
  return new Problem("internal", "The request failed here; the log has it under its request id");
}

/** @throws what was thrown inside */
function succeeded(answer: Answer | Failed): Answer {
  if (answer instanceof Failed) throw answer.error;
  return answer;
}

/** Goes on only if it can be asked for elsewhere. @throws what it is given, or `outcome-unknown` */
function guardNotHere(error: unknown, call: Call): void {
  if (!(error instanceof NotHere)) throw error;
  // Once something was proposed, to ask again might do it twice.
  if (call.proposed) throw outcomeUnknown();
  // Who is not let in there must not learn how far the tenant was here.
  call.revision = null;
}

/** Something thrown inside a read, carried out of it. */
class Failed {
  readonly error: unknown;

  constructor(error: unknown) {
    this.error = error;
  }

  get isUnauthorized(): boolean {
    return this.error instanceof Problem && this.error.code === "unauthorized";
  }
}

const allowedHeaders = [
  "authorization",
  "conflux-min-revision",
  "content-type",
  "idempotency-key",
  "if-match",
  "if-none-match",
  "last-event-id",
  "x-api-key",
  "x-request-id",
].join(", ");

const exposedHeaders = [
  "Conflux-Dry-Run",
  "Conflux-Revision",
  "Conflux-Rule",
  "Conflux-Version",
  "ETag",
  "Idempotent-Replay",
  "Location",
  "RateLimit",
  "RateLimit-Policy",
  "Retry-After",
  "X-Request-Id",
].join(", ");

/** A read whose answer carries nothing beside what every answer does. */
function isOrdinary({ request, head, rateLimit }: Call): boolean {
  const { headers } = request;
  return (
    !head &&
    rateLimit === null &&
    headers.get("origin") === null &&
    headers.get("if-none-match") === null
  );
}

/** Keys travel in headers that a page must hold itself, never in cookies: so any page may ask. */
function allowOrigin(headers: Record<string, string>): void {
  headers["access-control-allow-origin"] = "*";
  headers["access-control-expose-headers"] = exposedHeaders;
}

const noQuery = new URLSearchParams();
/** Asked for lately: the same client asks for the same again and again. Not mutated, and not those with a key in them. */
const queries = new Map<string, URLSearchParams>();
const queriesMax = 1_000;
const queryLengthMax = 256;

function queryOf(text: string): URLSearchParams {
  let query = queries.get(text);
  if (query !== undefined) return query;
  query = parseQuery(text);
  if (text.length > queryLengthMax || query.has("token")) return query;
  if (queries.size >= queriesMax) queries.clear();
  queries.set(text, query);
  return query;
}

/** Path and query of an absolute URL. */
function partsOf(url: string): { readonly target: string; readonly query: URLSearchParams } {
  const start = url.indexOf("/", url.indexOf("//") + 2);
  const target = start === -1 ? "/" : url.slice(start);
  const mark = target.indexOf("?");
  return { target, query: mark === -1 ? noQuery : queryOf(target.slice(mark + 1)) };
}

function pathOf(call: Call): string {
  return call.target.split("?", 1)[0] as string;
}

const segments = routes.map((route) => ({ method: route.method, parts: route.path.split("/") }));

function methodsAt(target: string): readonly string[] {
  const parts = (target.split("?", 1)[0] as string).split("/");
  const methods = new Set<string>();
  for (const route of segments) {
    if (route.parts.length !== parts.length) continue;
    if (
      !route.parts.every(
        (part, i) => part === parts[i] || (part.startsWith(":") && parts[i] !== ""),
      )
    )
      continue;
    methods.add(route.method);
    if (route.method === "GET") methods.add("HEAD");
  }
  if (methods.size > 0) methods.add("OPTIONS");
  return [...methods];
}

/** The router gives null for what is percent-encoded, but not as UTF-8. @throws Problem `invalid-name` */
function checkDecoded(params: Readonly<Record<string, string | null>>): void {
  // No array of pairs for each request: that was 2 % of a read.
  for (const parameter in params) {
    if (params[parameter] !== null) continue;
    const detail = "Percent-encode the path as UTF-8";
    throw new Problem("invalid-name", detail, {
      errors: [{ pointer: `/path/${parameter}`, detail }],
    });
  }
}

/** @throws Problem `invalid-name` */
function checkParams(route: Route, params: Readonly<Record<string, string>>): void {
  const { tenant, namespace, name, key } = params as Partial<Record<string, string>>;
  const wrong = (parameter: string, detail: string | null): void => {
    if (detail !== null)
      throw new Problem("invalid-name", detail, {
        errors: [{ pointer: `/path/${parameter}`, detail }],
      });
  };
  if (tenant !== undefined && !(route.system && tenant === systemTenant))
    wrong("tenant", checkTenantName(tenant));
  if (namespace !== undefined) wrong("namespace", checkNamespaceName(namespace));
  if (name !== undefined) wrong("name", checkConfigName(name));
  if (key !== undefined) wrong("key", checkKeyId(key));
}
