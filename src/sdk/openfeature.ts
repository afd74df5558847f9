/**
 * OpenFeature providers over the client: flags are evaluated in this process from values that are here already, so an
 * evaluation costs no request, and goes on when the platform cannot be reached.
 *
 * Two layers decide, as on the server: the release rules choose the version of each config, a config of format `flag`
 * then evaluates its own targeting with the whole evaluation context. Configs of other formats are flags too, with their
 * content as the value and `v<version>` as the variant.
 *
 * The types here have the shape that `@openfeature/server-sdk` and `@openfeature/web-sdk` ask for, so that neither has
 * to be installed for the other.
 */
import { contextLabels } from "../model/evaluate.ts";
import { Flag, withFlagCall, type FlagContext, type FlagDefinition } from "../model/flags.ts";
import { isAsParsed } from "../model/json.ts";
import { checkLabelName, checkLabelValue } from "../model/names.ts";
import type { Labels } from "../model/release.ts";
import { Conflux } from "./client.ts";
import type { ConfluxOptions, Entry, State } from "./client.ts";

type FlagType = "boolean" | "string" | "number" | "object";

/** What one evaluation gives. Without `errorCode` the value is the flag's, or the default of the code where it has none. */
export interface FlagDetails<T> {
  readonly value: T;
  readonly reason: string;
  readonly variant?: string;
  readonly flagMetadata?: Record<string, boolean | string | number>;
  /** FLAG_NOT_FOUND, TYPE_MISMATCH, PARSE_ERROR or GENERAL; the type is an enum of theirs. */
  readonly errorCode?: never;
  readonly errorMessage?: string;
}

// --- events --------------------------------------------------------------------------------------------------------------

/** Theirs takes details of each event's own type, which are not known here. */
type Handler = (details?: never) => unknown;

const events = {
  ready: "PROVIDER_READY",
  error: "PROVIDER_ERROR",
  stale: "PROVIDER_STALE",
  changed: "PROVIDER_CONFIGURATION_CHANGED",
} as const;

/** As much of an emitter as their SDKs use. */
export class ProviderEvents {
  readonly #handlers = new Map<string, Set<Handler>>();

  emit(event: string, details: Record<string, unknown> = {}): void {
    for (const handler of this.#handlers.get(event) ?? []) handler(details as never);
  }

  addHandler(event: string, handler: Handler): void {
    const handlers = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, handlers.add(handler));
  }

  removeHandler(event: string, handler: Handler): void {
    this.#handlers.get(event)?.delete(handler);
  }

  removeAllHandlers(event?: string): void {
    if (event === undefined) this.#handlers.clear();
    else this.#handlers.delete(event);
  }

  getHandlers(event: string): never[] {
    return [...(this.#handlers.get(event) ?? [])] as never[];
  }

  setLogger(): this {
    return this;
  }
}

/** Tells OpenFeature what becomes of a client: its state, and its changes, those of one revision together. */
class Follower {
  readonly #client: Conflux;
  readonly #events: ProviderEvents;
  readonly #ends: (() => void)[];
  #changed = new Set<string>();
  #told: State | null = null;

  constructor(client: Conflux, to: ProviderEvents) {
    this.#client = client;
    this.#events = to;
    this.#ends = [
      client.onChange(({ name }) => {
        if (this.#changed.size === 0) queueMicrotask(() => this.#tellChanges());
        this.#changed.add(name);
      }),
      client.onState(() => this.#tellState()),
    ];
  }

  /** From now on states are told: what comes before is what `initialize` answers with. */
  begin(): void {
    this.#told = "live";
    this.#tellState();
  }

  end(): void {
    this.#told = null;
    for (const end of this.#ends) end();
  }

  #tellChanges(): void {
    const flagsChanged = [...this.#changed];
    this.#changed = new Set();
    if (this.#told !== null) this.#events.emit(events.changed, { flagsChanged });
  }

  #tellState(): void {
    const { state, problem } = this.#client.status;
    if (this.#told === null || state === this.#told || state === "connecting") return;
    this.#told = state;
    const message = problem?.message ?? state;
    if (state === "live") this.#events.emit(events.ready);
    else if (state === "refused") this.#events.emit(events.error, { message });
    else if (state !== "closed") this.#events.emit(events.stale, { message });
  }
}

/** @throws Error when there is nothing to serve yet */
async function untilReady(client: Conflux, timeoutMs: number | undefined): Promise<void> {
  const source = await client.ready(timeoutMs === undefined ? {} : { timeoutMs });
  if (source === "default" && client.names().length === 0 && client.status.state !== "live")
    throw new Error("Conflux cannot be reached: the defaults of the code are served meanwhile");
}

// --- evaluation ------------------------------------------------------------------------------------------------------------

/** By the definition: the client gives the same object until the flag changes. */
const flags = new WeakMap<object, Flag>();

function evaluated<T>(
  key: string,
  type: FlagType,
  otherwise: T,
  entry: Entry,
  context: FlagContext,
): FlagDetails<T> {
  const { value, version, format, rule } = entry;
  if (version === null)
    return value === undefined
      ? failed(otherwise, "FLAG_NOT_FOUND", `There is no flag ${key}`)
      : fitting(key, type, otherwise, { value, reason: "DEFAULT" });
  if (format !== "flag") {
    const reason = rule === undefined ? "STATIC" : rule === null ? "DEFAULT" : "TARGETING_MATCH";
    const variant = value === null ? {} : { variant: `v${version}` };
    return fitting(key, type, otherwise, { value, reason, ...variant });
  }
  const definition = value as FlagDefinition;
  let flag = flags.get(definition);
  if (flag === undefined) {
    flag = new Flag(key, definition);
    flags.set(definition, flag);
  }
  const {
    encoded: _,
    key: __,
    errorCode,
    errorDetails,
    metadata,
    ...given
  } = withFlagCall(context, Date.now(), (call) => flag.evaluate(call));
  if (errorCode !== undefined) return failed(otherwise, errorCode, errorDetails ?? errorCode);
  return {
    ...fitting(key, type, otherwise, given),
    ...(metadata !== undefined && { flagMetadata: { ...metadata } }),
  };
}

/** Null is nobody's value, as is none: there the default of the code applies. */
function fitting<T>(
  key: string,
  type: FlagType,
  otherwise: T,
  given: { readonly value?: unknown; readonly reason: string; readonly variant?: string },
): FlagDetails<T> {
  const { value = null } = given;
  if (value === null) return { ...given, value: otherwise };
  if (typeof value !== type)
    return failed(otherwise, "TYPE_MISMATCH", `Flag ${key} is a ${typeof value}, not a ${type}`);
  return { ...given, value: value as T };
}

function failed<T>(value: T, errorCode: string, errorMessage: string): FlagDetails<T> {
  return { value, reason: "ERROR", errorCode: errorCode as never, errorMessage };
}

/**
 * What a server would be sent of it: a Date as its text, nothing that is undefined. Then both give the same. What JSON
 * cannot write (a circle, a bigint) is left out: one such attribute must not cost every flag its value.
 */
function asSent(context: FlagContext): FlagContext {
  if (isAsParsed(context)) return context;
  const sent: FlagContext = {};
  for (const [name, value] of Object.entries(context)) {
    let text: string | undefined;
    try {
      text = JSON.stringify(value);
    } catch {
      continue;
    }
    if (text !== undefined)
      Object.defineProperty(sent, name, { ...ownProperty, value: JSON.parse(text) as unknown });
  }
  return sent;
}

const ownProperty = { enumerable: true, configurable: true, writable: true };

/** Labels that can travel in an address. */
function sentLabels(context: FlagContext, names: readonly string[]): Labels {
  return Object.fromEntries(
    Object.entries(contextLabels(context, names)).filter(
      ([name, value]) => checkLabelName(name) === null && checkLabelValue(value) === null,
    ),
  );
}

// --- on a server -------------------------------------------------------------------------------------------------------------

interface WithRules {
  evaluateEntry(name: string, labels: Labels): Entry;
}

/**
 * For `@openfeature/server-sdk`. With a `ConfluxServer` the texts, numbers and booleans of each evaluation context
 * are labels for the release rules too; with a `Conflux` the labels that it was made with choose the versions for everybody.
 */
export class ConfluxServerProvider {
  readonly metadata = { name: "conflux-server" };
  readonly runsOn = "server" as const;
  readonly events = new ProviderEvents();
  readonly #client: Conflux;
  readonly #timeoutMs: number | undefined;
  readonly #follower: Follower;

  /** The client stays the program's own: it is not closed with the provider. */
  constructor(client: Conflux, options: { readonly timeoutMs?: number } = {}) {
    this.#client = client;
    this.#timeoutMs = options.timeoutMs;
    this.#follower = new Follower(client, this.events);
  }

  async initialize(): Promise<void> {
    try {
      await untilReady(this.#client, this.#timeoutMs);
    } finally {
      // After what the SDK itself tells of this.
      setTimeout(() => this.#follower.begin(), 0);
    }
  }

  onClose(): Promise<void> {
    this.#follower.end();
    return Promise.resolve();
  }

  resolveBooleanEvaluation(key: string, otherwise: boolean, context: FlagContext) {
    return this.#resolve(key, "boolean", otherwise, context);
  }

  resolveStringEvaluation(key: string, otherwise: string, context: FlagContext) {
    return this.#resolve(key, "string", otherwise, context);
  }

  resolveNumberEvaluation(key: string, otherwise: number, context: FlagContext) {
    return this.#resolve(key, "number", otherwise, context);
  }

  resolveObjectEvaluation<T>(key: string, otherwise: T, context: FlagContext) {
    return this.#resolve(key, "object", otherwise, context);
  }

  #resolve<T>(key: string, type: FlagType, otherwise: T, given: FlagContext) {
    const context = asSent(given);
    const client = this.#client as Conflux & Partial<WithRules>;
    const entry =
      client.evaluateEntry?.(key, contextLabels(context, Object.keys(context))) ??
      client.getEntry(key);
    return Promise.resolve(evaluated(key, type, otherwise, entry, context));
  }
}

// --- in a browser ------------------------------------------------------------------------------------------------------------

export interface ConfluxWebOptions extends Omit<ConfluxOptions, "labels"> {
  /**
   * Attributes of the evaluation context that are labels for the release rules. They travel in the address; all others
   * stay in the page, where flags evaluate them. Default: none.
   */
  readonly labels?: readonly string[];
  readonly timeoutMs?: number;
}

/** For `@openfeature/web-sdk` and what is built on it, such as `@openfeature/react-sdk`. */
export class ConfluxWebProvider {
  readonly metadata = { name: "conflux-web" };
  readonly runsOn = "client" as const;
  readonly events = new ProviderEvents();
  readonly #options: ConfluxOptions;
  readonly #labelNames: readonly string[];
  readonly #timeoutMs: number | undefined;
  #connection: Connection | null = null;

  constructor(options: ConfluxWebOptions) {
    const { labels = [], timeoutMs, ...others } = options;
    this.#options = others;
    this.#labelNames = labels;
    this.#timeoutMs = timeoutMs;
  }

  async initialize(context: FlagContext = {}): Promise<void> {
    const connection = this.#connect(sentLabels(asSent(context), this.#labelNames));
    this.#connection = connection;
    try {
      await untilReady(connection.client, this.#timeoutMs);
    } finally {
      setTimeout(() => connection.follower.begin(), 0);
    }
  }

  /** Only other labels need other values; until these are here the ones before are served. */
  async onContextChange(_before: FlagContext, context: FlagContext): Promise<void> {
    const labels = sentLabels(asSent(context), this.#labelNames);
    const before = this.#connection;
    if (before === null || sameLabels(before.labels, labels)) return;
    const connection = this.#connect(labels);
    this.#connection = connection;
    connection.before = before;
    try {
      await untilReady(connection.client, this.#timeoutMs);
    } finally {
      connection.before = null;
      await before.end();
      setTimeout(() => connection.follower.begin(), 0);
    }
  }

  async onClose(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    await connection?.before?.end();
    await connection?.end();
  }

  resolveBooleanEvaluation(key: string, otherwise: boolean, context: FlagContext) {
    return this.#resolve(key, "boolean", otherwise, context);
  }

  resolveStringEvaluation(key: string, otherwise: string, context: FlagContext) {
    return this.#resolve(key, "string", otherwise, context);
  }

  resolveNumberEvaluation(key: string, otherwise: number, context: FlagContext) {
    return this.#resolve(key, "number", otherwise, context);
  }

  resolveObjectEvaluation<T>(key: string, otherwise: T, context: FlagContext) {
    return this.#resolve(key, "object", otherwise, context);
  }

  #connect(labels: Labels): Connection {
    const client = new Conflux({ ...this.#options, labels });
    return new Connection(client, labels, new Follower(client, this.events));
  }

  #resolve<T>(key: string, type: FlagType, otherwise: T, context: FlagContext): FlagDetails<T> {
    const connection = this.#connection?.before ?? this.#connection;
    if (connection === null) return failed(otherwise, "GENERAL", "The provider is closed");
    return evaluated(key, type, otherwise, connection.client.getEntry(key), asSent(context));
  }
}

class Connection {
  readonly client: Conflux;
  readonly labels: Labels;
  readonly follower: Follower;
  /** Serves while this one is not ready. */
  before: Connection | null = null;

  constructor(client: Conflux, labels: Labels, follower: Follower) {
    this.client = client;
    this.labels = labels;
    this.follower = follower;
  }

  async end(): Promise<void> {
    this.follower.end();
    await this.client.close();
  }
}

function sameLabels(a: Labels, b: Labels): boolean {
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name]);
}
