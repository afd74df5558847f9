/**
 * Watches: frames read from the applied log, as a stream of server-sent events or by long polling.
 *
 * A feed is one subscription at the host for one filter; all watchers with that filter share it and its encoded frames.
 * A watcher joins a feed within one synchronous read of the state: it is told what lies between its cursor and that
 * state, and from the next revision on gets what the feed gets. That is what makes it gapless.
 *
 * What must stay true: frames of a watcher go up in revision; what it was not sent is either nothing it asked for or made
 * up for by a `sync`; nothing is kept for a watcher beyond the bounds named here.
 */
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import { WatchPoll } from "../api/schemas.ts";
import type { CommitEvent, ConfigService, TenantView } from "../host/ports.ts";
import { rootKeyKey, tenantKey } from "../machine/keys.ts";
import {
  allConfigs,
  effectiveConfig,
  effectiveConfigs,
  effectiveOf,
  getHistoryRow,
  getText,
  getQuotas,
  getVersion,
  historyAfter,
  namespaceChain,
} from "../machine/queries.ts";
import { judgedAt } from "../machine/schedules.ts";
import type { ConfigRow, StoredChange, TenantRow } from "../machine/rows.ts";
import { unreachable } from "../lib/assert.ts";
import { checkConfigName, checkNamespaceName, isName, systemTenant } from "../model/names.ts";
import type { Labels } from "../model/release.ts";
import { accessOf, type Access } from "./access.ts";
import {
  authorize,
  authorizeNamespace,
  covers,
  credentialOf,
  principalIn,
  unauthorized,
  type Credential,
} from "./auth.ts";
import { configDetail } from "./configs.ts";
import {
  canonical,
  invalid,
  json,
  minRevisionOf,
  time,
  type Answer,
  type Call,
  type Principal,
} from "./http.ts";
import type { Peers } from "./peers.ts";
import { route, type Route } from "./route.ts";
import { concernsChain } from "./namespace_sets.ts";
import { openedText, readsSecrets, type Secrets } from "./secrets.ts";
import {
  labelsOf,
  refuseRules,
  releaseOf,
  releasesOf,
  rulesQuery,
  snapshotBytesMax,
  snapshotOf,
  valueAnswer,
} from "./values.ts";

export interface WatchSettings {
  /** A silent watcher hears a bookmark after this long; below the 15 s that are promised. */
  readonly bookmarkMs: number;
  /** Watches and long polls open at once on this node. */
  readonly watchersMax: number;
  /** Of one tenant: what one has open must leave room for the others. */
  readonly watchersPerTenantMax: number;
  /** Distinct filters watched at once on this node. */
  readonly feedsMax: number;
  /** What is kept for one that reads slowly, before it is only told of the latest state. */
  readonly queueFramesMax: number;
  readonly queueBytesMax: number;
  /** One that reads nothing for this long is sent away. */
  readonly slowMs: number;
  /**
   * A stream ends after this long, give or take a fifth, so that a node that was away gets its share of them back. The
   * client goes on from its cursor.
   */
  readonly ageMs: number;
  /** A feed without watchers is kept this long: polls and reconnects come back to it. */
  readonly lingerMs: number;
}

const settingsDefault: WatchSettings = {
  bookmarkMs: 12_000,
  watchersMax: 20_000,
  watchersPerTenantMax: 15_000,
  feedsMax: 20_000,
  // A burst is applied in one turn, before even a fast reader gets to read; frames are shared, so keeping them is cheap.
  queueFramesMax: 8_192,
  queueBytesMax: 4 * 1024 * 1024,
  slowMs: 30_000,
  ageMs: 3_600_000,
  lingerMs: 60_000,
};

/** Contents up to this size come within frames; of larger ones only version and hash. */
export const frameValueBytesMax = 64 * 1024;
const tickMs = 1_000;
/** Behind by more revisions than this, a `sync` is shorter than what was missed. */
const catchUpRevisionsMax = 1_000;
const catchUpBytesMax = 4 * 1024 * 1024;
/** Frames a feed of effective values remembers, so that reconnects get exactly what they missed. */
const recentFramesMax = 64;
const recentBytesMax = 1024 * 1024;
const waitMsMax = 60_000;
/** How long each poll of a relay waits at the other node. */
const relayWaitMs = 10_000;
const relayGiveUpMs = 30_000;
const relayRetryMs = 200;
/** How often one that joins may find its relay ahead of it again. */
const relayJoinPollsMax = 10;

// --- frames --------------------------------------------------------------------------------------------------------------

const encoder = new TextEncoder();

/** One event. Encoded once, whoever gets it. */
class Frame {
  readonly event: "sync" | "commit" | "bookmark" | "goodbye";
  /** Cursor; null on goodbye, so that the one before stays the last. */
  readonly id: string | null;
  readonly epoch: number;
  readonly revision: number;
  /** JSON text; it holds no line break, so it is one line of the stream. */
  readonly data: string;
  #bytes: Uint8Array | null = null;

  constructor(event: Frame["event"], id: string | null, at: Cursor, data: string) {
    this.event = event;
    this.id = id;
    this.epoch = at.epoch;
    this.revision = at.revision;
    this.data = data;
  }

  /** Of a goodbye. */
  get reason(): string {
    return (JSON.parse(this.data) as { reason?: string }).reason ?? "moved";
  }

  get bytes(): Uint8Array {
    // Clients of OFREP listen to `message` only, and look at the type within.
    const event = this.data.startsWith(`{"type":`) ? "message" : this.event;
    const id = this.id === null ? "" : `id: ${this.id}\n`;
    this.#bytes ??= encoder.encode(`event: ${event}\n${id}data: ${this.data}\n\n`);
    return this.#bytes;
  }

  get json(): string {
    const id = this.id === null ? "" : `"id":${JSON.stringify(this.id)},`;
    return `{"event":"${this.event}",${id}"data":${this.data}}`;
  }
}

/** `<epoch>-<revision>`. */
interface Cursor {
  readonly epoch: number;
  readonly revision: number;
}

function parseCursor(text: string): Cursor | null {
  const match = /^(\d{1,15})-(\d{1,15})$/.exec(text);
  return match === null ? null : { epoch: Number(match[1]), revision: Number(match[2]) };
}

function frame(event: Frame["event"], at: Cursor, data: unknown): Frame {
  const { epoch, revision } = at;
  return new Frame(event, `${epoch}-${revision}`, { epoch, revision }, JSON.stringify(data));
}

function bookmark(at: Cursor, filter?: Filter): Frame {
  const { revision } = at;
  return frame(
    "bookmark",
    at,
    filter?.kind === "flags" ? { type: "bookmark", revision } : { revision },
  );
}

function goodbye(reason: string): Frame {
  return new Frame("goodbye", null, { epoch: 0, revision: 0 }, JSON.stringify({ reason }));
}

const endOfKey = goodbye("unauthorized").data;

function joined(frames: readonly Frame[]): Uint8Array {
  const [first] = frames;
  return frames.length === 1 && first !== undefined
    ? first.bytes
    : Buffer.concat(frames.map((one) => one.bytes));
}

function sizeOf(frames: readonly Frame[]): number {
  return frames.reduce((sum, { data }) => sum + data.length, 0);
}

const hello = encoder.encode(": conflux\nretry: 1000\n\n");

// --- what is watched -------------------------------------------------------------------------------------------------------

interface TenantFilter {
  readonly kind: "tenant";
  readonly tenant: string;
  readonly namespace: string | null;
  readonly prefix: string;
  readonly content: boolean;
  /** Every revision or the end of the stream; else one who is too slow is told what is new, merged. */
  readonly every: boolean;
  /** Those the key is limited to. */
  readonly namespaces: readonly string[] | null;
  /** Whether changes of keys are shown. */
  readonly keys: boolean;
}

interface EffectiveFilter {
  readonly kind: "effective";
  readonly tenant: string;
  readonly namespace: string;
  readonly labels: Labels;
  readonly name: string | null;
  /** Whether rules are shown instead of what they give. */
  readonly rules: boolean;
  /** Whether secret configs are there at all. */
  readonly secrets: boolean;
}

/** All that may change what flags of a namespace give, whatever the context. */
interface FlagFilter {
  readonly kind: "flags";
  readonly tenant: string;
  readonly namespace: string;
}

type Filter = TenantFilter | EffectiveFilter | FlagFilter;

/** begin: no cursor came; cursor: it is of another history, ahead or compacted; slow: too much was missed. */
type SyncReason = "begin" | "cursor" | "slow";

/** What a feed shows, by its filter. All of it runs synchronously within one view. */
interface Source {
  /** The subscription begins at this state. */
  begin(view: TenantView): void;
  /** @param why the watcher is not told what changed, but what is */
  snapshot(view: TenantView, why: SyncReason): Frame;
  /** Null: nothing of it concerns this filter. */
  commit(event: CommitEvent, view: TenantView): Frame | null;
  /** What happened after the cursor; null: only a snapshot helps. */
  since(cursor: Cursor, view: TenantView): readonly Frame[] | null;
  /** The same for one who was too slow to be told one by one: the latest of each, in one frame. */
  merged(cursor: Cursor, view: TenantView): Frame | null;
}

class TenantSource implements Source {
  readonly #filter: TenantFilter;

  constructor(filter: TenantFilter) {
    this.#filter = filter;
  }

  begin(): void {}

  snapshot(view: TenantView, reason: SyncReason): Frame {
    const { namespace, prefix, content, namespaces } = this.#filter;
    const configs: unknown[] = [];
    let bytes = 0;
    for (const row of allConfigs(view, { ...(namespace !== null && { namespace }), prefix })) {
      if (namespaces !== null && !namespaces.includes(row.namespace)) continue;
      const text = content && bytes < snapshotBytesMax ? this.#latestText(view, row) : null;
      bytes += text?.length ?? 0;
      configs.push({ ...configDetail(row), ...(text !== null && { content: text }) });
    }
    return frame("sync", view, { revision: view.revision, reason, configs });
  }

  commit(event: CommitEvent, view: TenantView): Frame | null {
    const changes = event.changes.filter((change) => this.#concerns(change));
    if (changes.length === 0) return null;
    const { revision, at } = event;
    return frame(
      "commit",
      { epoch: view.epoch, revision },
      { revision, at: time(at), changes: changes.map((change) => this.#withContent(change, view)) },
    );
  }

  since({ revision }: Cursor, view: TenantView): readonly Frame[] | null {
    if (this.#filter.every) return this.#part(revision, view);
    if (view.revision - revision > catchUpRevisionsMax) return null;
    const rows = historyAfter(view, revision);
    if (rows === null) return null;
    return rows.flatMap((row) => this.commit(row, view) ?? []);
  }

  /** As much as fits; a bookmark at its end that is behind the state says that there is more. */
  #part(from: number, view: TenantView): readonly Frame[] | null {
    const rows = historyAfter(view, from, catchUpRevisionsMax);
    if (rows === null) return null;
    const frames: Frame[] = [];
    let bytes = 0;
    let revision = from;
    for (const row of rows) {
      const made = this.commit(row, view);
      if (made !== null) frames.push(made);
      bytes += made?.data.length ?? 0;
      ({ revision } = row);
      if (bytes > catchUpBytesMax) break;
    }
    if (revision < view.revision) frames.push(bookmark({ epoch: view.epoch, revision }));
    return frames;
  }

  merged({ revision }: Cursor, view: TenantView): Frame | null {
    if (view.revision - revision > catchUpRevisionsMax) return null;
    const latest = new Map<string, StoredChange>();
    let at = 0;
    for (const row of historyAfter(view, revision) ?? [])
      for (const change of row.changes) {
        if (!this.#concerns(change)) continue;
        const key = `${change.type} ${change.namespace} ${change.name}`;
        // Deleted and set again: the order is that of the latest.
        latest.delete(key);
        latest.set(key, change);
        at = row.at;
      }
    if (latest.size === 0) return null;
    const changes = [...latest.values()].map((change) => this.#withContent(change, view));
    return frame("commit", view, {
      revision: view.revision,
      at: time(at),
      coalesced: true,
      changes,
    });
  }

  #concerns(change: StoredChange): boolean {
    const { namespace, prefix, namespaces, keys } = this.#filter;
    switch (change.type) {
      case "key":
      case "key-delete":
      case "tenant":
      case "issuer":
      case "node":
        return keys && namespace === null && prefix === "";
      default:
        return (
          (namespace === null || change.namespace === namespace) &&
          (namespaces === null || namespaces.includes(change.namespace)) &&
          change.name.startsWith(prefix)
        );
    }
  }

  #withContent(change: StoredChange, view: TenantView): unknown {
    const { type, namespace, name, version } = change;
    if (!this.#filter.content || version === undefined || type === "version-delete") return change;
    // Whoever manages secrets sees that they change, and not to what.
    if (getVersion(view, namespace, name, version)?.secret === true) return change;
    const text = getText(view, namespace, name, version);
    return text === null || !fitsFrame(text) ? change : { ...change, content: text };
  }

  #latestText(view: TenantView, row: ConfigRow): string | null {
    if (row.secret === true) return null;
    const text = getText(view, row.namespace, row.name, row.latestVersion);
    return text === null || !fitsFrame(text) ? null : text;
  }
}

function fitsFrame(text: string): boolean {
  if (text.length * 3 <= frameValueBytesMax) return true;
  return text.length <= frameValueBytesMax && Buffer.byteLength(text) <= frameValueBytesMax;
}

/** What identifies an effective value: the same mark, the same content. */
type Mark = string;

class EffectiveSource implements Source {
  readonly #filter: EffectiveFilter;
  #chain: readonly string[] = [];
  readonly #marks = new Map<string, Mark>();
  #recent: Frame[] = [];
  #recentBytes = 0;
  /** All frames after this revision are among the recent ones. */
  #recentFrom = 0;

  readonly #secrets: Secrets;

  constructor(filter: EffectiveFilter, secrets: Secrets) {
    this.#filter = filter;
    this.#secrets = secrets;
  }

  begin(view: TenantView): void {
    this.#recentFrom = view.revision;
    this.#evaluateAll(view);
  }

  snapshot(view: TenantView, reason: SyncReason): Frame {
    const { namespace, labels, name, rules } = this.#filter;
    const secrets = this.#filter.secrets ? this.#secrets : null;
    const all = rules
      ? releasesOf(view, namespace, snapshotBytesMax, frameValueBytesMax)
      : snapshotOf(view, namespace, labels, secrets, {
          bytesMax: snapshotBytesMax,
          valueBytesMax: frameValueBytesMax,
        });
    const mine = name === null ? null : all[name];
    const values = name === null ? all : mine === undefined ? {} : { [name]: mine };
    return frame("sync", view, { revision: view.revision, reason, values });
  }

  commit(event: CommitEvent, view: TenantView): Frame | null {
    const changes = this.#changes(event.changes, view);
    if (changes.length === 0) return null;
    const { revision, at } = event;
    const made = frame(
      "commit",
      { epoch: view.epoch, revision },
      { revision, at: time(at), changes },
    );
    this.#remember(made);
    return made;
  }

  since({ revision }: Cursor, view: TenantView): readonly Frame[] | null {
    if (revision === view.revision) return [];
    if (revision >= this.#recentFrom)
      return this.#recent.filter((recent) => recent.revision > revision);
    const merged = this.#touchedSince(revision, view);
    return merged === null ? null : merged.size === 0 ? [] : [this.#catchUp(merged, view)];
  }

  merged({ revision }: Cursor, view: TenantView): Frame | null {
    const touched = this.#touchedSince(revision, view);
    return touched === null || touched.size === 0 ? null : this.#catchUp(touched, view);
  }

  /** Names whose values may have changed after the revision; null: not known. */
  #touchedSince(revision: number, view: TenantView): ReadonlySet<string> | null {
    // What these labels got then is not kept, so what may have changed since is sent as it is now, in one commit.
    const rows = historyAfter(view, revision);
    if (rows === null || rows.length > catchUpRevisionsMax) return null;
    const touched = new Set<string>();
    for (const { changes } of rows) {
      if (this.#changesChain(changes)) return null;
      for (const name of this.#touched(changes)) touched.add(name);
    }
    return touched;
  }

  #catchUp(touched: ReadonlySet<string>, view: TenantView): Frame {
    const { revision } = view;
    const at = time(getHistoryRow(view, revision)?.at ?? 0);
    const changes = [...touched].map((name) => this.#describe(view, name));
    return frame("commit", view, { revision, at, coalesced: true, changes });
  }

  #changes(changes: readonly StoredChange[], view: TenantView): unknown[] {
    if (this.#changesChain(changes)) {
      const before = new Map(this.#marks);
      this.#evaluateAll(view);
      const names = new Set([...before.keys(), ...this.#marks.keys()]);
      return [...names]
        .filter((name) => before.get(name) !== this.#marks.get(name))
        .map((name) => this.#describe(view, name));
    }
    const described: unknown[] = [];
    for (const name of this.#touched(changes)) {
      const before = this.#marks.get(name);
      this.#evaluate(view, name);
      if (this.#marks.get(name) !== before) described.push(this.#describe(view, name));
    }
    return described;
  }

  /** Whether what a namespace extends may have changed. */
  #changesChain(changes: readonly StoredChange[]): boolean {
    return changes.some(
      (change) => change.type === "namespace" && this.#chain.includes(change.namespace),
    );
  }

  #touched(changes: readonly StoredChange[]): ReadonlySet<string> {
    const { name } = this.#filter;
    const touched = new Set<string>();
    for (const change of changes)
      if (
        change.name !== "" &&
        this.#chain.includes(change.namespace) &&
        (name === null || change.name === name)
      )
        touched.add(change.name);
    return touched;
  }

  #evaluateAll(view: TenantView): void {
    const { namespace, name } = this.#filter;
    this.#chain = namespaceChain(view, namespace);
    this.#marks.clear();
    if (name !== null) this.#evaluate(view, name);
    else for (const config of effectiveConfigs(view, namespace)) this.#evaluateConfig(view, config);
  }

  #evaluate(view: TenantView, name: string): void {
    this.#marks.delete(name);
    const config = effectiveConfig(view, this.#filter.namespace, name);
    if (config !== null) this.#evaluateConfig(view, config);
  }

  #evaluateConfig(view: TenantView, config: ConfigRow): void {
    if (!this.#shows(config)) return;
    if (this.#filter.rules) {
      this.#marks.set(config.name, `${config.uid} ${config.release} ${judgedAt(config)}`);
      return;
    }
    const value = effectiveOf(view, config, this.#filter.labels);
    if (value !== null) this.#marks.set(config.name, `${value.uid} ${value.version} ${value.hash}`);
  }

  #shows(config: ConfigRow): boolean {
    return config.secret !== true || (this.#filter.secrets && !this.#filter.rules);
  }

  #describe(view: TenantView, name: string): unknown {
    const { namespace, labels, rules } = this.#filter;
    const config = effectiveConfig(view, namespace, name);
    const isShown = config !== null && this.#shows(config);
    if (rules && isShown) {
      const { content, ...released } = releaseOf(view, config);
      return { type: "put", name, ...released, ...(fitsFrame(content) && { content }) };
    }
    const value = isShown ? effectiveOf(view, config, labels) : null;
    if (value === null) return { type: "delete", name };
    const version = { version: value.version, secret: config?.secret === true };
    const text =
      value.bytes <= frameValueBytesMax ? openedText(view, this.#secrets, value, version) : null;
    return { type: "put", name, ...valueAnswer(value, text) };
  }

  #remember(made: Frame): void {
    this.#recent.push(made);
    this.#recentBytes += made.data.length;
    while (this.#recent.length > recentFramesMax || this.#recentBytes > recentBytesMax) {
      const oldest = this.#recent.shift() as Frame;
      this.#recentBytes -= oldest.data.length;
      this.#recentFrom = oldest.revision;
    }
  }
}

/** Says that flags are to be evaluated again, in the words of OFREP. */
class FlagSource implements Source {
  readonly #namespace: string;
  #chain: readonly string[] = [];

  constructor(filter: FlagFilter) {
    this.#namespace = filter.namespace;
  }

  begin(view: TenantView): void {
    this.#chain = namespaceChain(view, this.#namespace);
  }

  snapshot(view: TenantView): Frame {
    return this.#refetch("sync", view, getHistoryRow(view, view.revision)?.at ?? 0);
  }

  commit(event: CommitEvent, view: TenantView): Frame | null {
    if (!event.changes.some((change) => concernsChain(this.#chain, change))) return null;
    this.#chain = namespaceChain(view, this.#namespace);
    const { epoch } = view;
    return this.#refetch("commit", { epoch, revision: event.revision }, event.at);
  }

  since({ revision }: Cursor, view: TenantView): readonly Frame[] | null {
    if (view.revision - revision > catchUpRevisionsMax) return null;
    const rows = historyAfter(view, revision);
    if (rows === null) return null;
    const touched = rows.some(({ changes }) =>
      changes.some((change) => concernsChain(this.#chain, change)),
    );
    return touched ? [this.snapshot(view)] : [];
  }

  merged(): null {
    return null;
  }

  #refetch(event: "sync" | "commit", at: Cursor, atMs: number): Frame {
    const { epoch, revision } = at;
    return frame(event, at, {
      type: "refetchEvaluation",
      etag: `${epoch}-${revision}`,
      lastModified: Math.floor(atMs / 1_000),
    });
  }
}

function sourceOf(filter: Filter, secrets: Secrets): Source {
  switch (filter.kind) {
    case "tenant":
      return new TenantSource(filter);
    case "effective":
      return new EffectiveSource(filter, secrets);
    case "flags":
      return new FlagSource(filter);
    default:
      return unreachable(filter);
  }
}

// --- watchers --------------------------------------------------------------------------------------------------------------

/** One who is told. `push` never blocks and never throws. */
interface Watcher {
  /** Up to where it was told everything. */
  epoch: number;
  revision: number;
  /** What it missed before it joined, or the first part of it. */
  begin(frames: readonly Frame[], isPart: boolean): void;
  principal: Principal;
  readonly credential: Credential;
  push(batch: Batch): void;
  /** The last frame; nothing is pushed afterwards. */
  end(reason: string): void;
  /** Behind what its feed got; a bookmark would promise too much. */
  readonly isBehind: boolean;
  /** Once a second. */
  tick(nowMs: number): void;
}

interface StreamHooks {
  /** The latest state, pushed within one read of it. */
  resync(watcher: StreamWatcher): Promise<void>;
  /** It takes and needs nothing any more. */
  closed(watcher: StreamWatcher): void;
}

/** A stream of server-sent events. */
class StreamWatcher implements Watcher {
  epoch = 0;
  revision = 0;
  principal: Principal;
  readonly credential: Credential;
  readonly stream: ReadableStream<Uint8Array>;
  readonly #settings: WatchSettings;
  readonly #hooks: StreamHooks;
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null;
  #queue: Frame[] = [];
  #queueBytes = 0;
  /** Its queue overflowed: all it is told next is what is new by then. */
  #isLagging = false;
  /** Cursor of the last frame on its way to the client. */
  told: string | null = null;
  readonly #endsAt: number;
  /** Since when it has not read although there was something; 0: it reads. */
  #stuckSince = 0;
  #isClosed = false;

  constructor(
    caller: { readonly principal: Principal; readonly credential: Credential },
    settings: WatchSettings,
    hooks: StreamHooks,
  ) {
    this.principal = caller.principal;
    this.credential = caller.credential;
    this.#settings = settings;
    this.#hooks = hooks;
    this.#endsAt = Date.now() + settings.ageMs * (0.8 + Math.random() * 0.4);
    // Pulled one chunk at a time: what the client has not read stays in our bounded queue.
    this.stream = new ReadableStream<Uint8Array>({
      start: (controller) => {
        this.#controller = controller;
        controller.enqueue(hello);
      },
      pull: () => this.#pull(),
      cancel: () => this.#close(),
    });
  }

  get isBehind(): boolean {
    return this.#isLagging || this.#queue.length > 0;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Leaves in one piece, whatever the bounds of the queue: it is bounded itself, and made up for nothing else. */
  begin(frames: readonly Frame[]): void {
    this.#give(frames);
  }

  #give(frames: readonly Frame[]): void {
    if (frames.length === 0) return;
    this.told = frames.at(-1)?.id ?? this.told;
    this.#controller?.enqueue(joined(frames));
  }

  push(batch: Batch): void {
    if (this.#isClosed || this.#isLagging || this.#controller === null) return;
    if (this.#queue.length === 0 && (this.#controller.desiredSize ?? 0) > 0) {
      this.told = batch.frames.at(-1)?.id ?? this.told;
      this.#controller.enqueue(batch.bytes);
      return;
    }
    if (this.#stuckSince === 0) this.#stuckSince = Date.now();
    for (const frame of batch.frames) if (!this.#isLagging) this.#keep(frame);
  }

  #keep(frame: Frame): void {
    const { queueFramesMax, queueBytesMax } = this.#settings;
    if (
      this.#queue.length > 0 &&
      (this.#queue.length >= queueFramesMax ||
        this.#queueBytes + frame.bytes.length > queueBytesMax)
    ) {
      this.#isLagging = true;
      this.#queue = [];
      this.#queueBytes = 0;
      return;
    }
    this.#queue.push(frame);
    this.#queueBytes += frame.bytes.length;
  }

  #pull(): Promise<void> | void {
    this.#stuckSince = 0;
    if (this.#isLagging) return this.#resync();
    if (this.#queue.length === 0 || this.#controller === null) return;
    const queued = this.#queue;
    this.#queue = [];
    this.#queueBytes = 0;
    this.#give(queued);
  }

  async #resync(): Promise<void> {
    try {
      await this.#hooks.resync(this);
    } catch {
      this.end("moved");
    }
  }

  /** What makes up for all that was left out. Called within a read of the state it leads to. */
  catchUp(frame: Frame): void {
    if (this.#isClosed) return;
    this.#isLagging = false;
    this.epoch = frame.epoch;
    this.revision = frame.revision;
    this.#give([frame]);
  }

  end(reason: string): void {
    if (this.#isClosed) return;
    const controller = this.#controller;
    this.#close();
    try {
      for (const queued of this.#queue) controller?.enqueue(queued.bytes);
      controller?.enqueue(goodbye(reason).bytes);
      controller?.close();
    } catch {
      // The client went away in this moment: nobody is left to be told.
    }
  }

  tick(nowMs: number): void {
    if (this.#stuckSince !== 0 && nowMs - this.#stuckSince > this.#settings.slowMs)
      this.end("slow");
    else if (nowMs >= this.#endsAt) this.end("age");
  }

  #close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#hooks.closed(this);
  }
}

/** A long poll: ends with the first thing that happens. */
class PollWatcher implements Watcher {
  epoch = 0;
  revision = 0;
  principal: Principal;
  readonly credential: Credential;
  readonly frames: Frame[] = [];
  readonly isBehind = false;
  readonly #done: () => void;

  constructor(
    caller: { readonly principal: Principal; readonly credential: Credential },
    done: () => void,
  ) {
    this.principal = caller.principal;
    this.credential = caller.credential;
    this.#done = done;
  }

  begin(frames: readonly Frame[], isPart: boolean): void {
    for (const missed of frames)
      if (isPart || missed.event !== "bookmark") this.frames.push(missed);
    if (this.frames.length > 0) this.#done();
  }

  push(batch: Batch): void {
    this.begin(batch.frames, false);
  }

  end(reason: string): void {
    this.frames.push(goodbye(reason));
    this.#done();
  }

  tick(): void {}
}

// --- telling very many -------------------------------------------------------------------------------------------------------

/** Frames that go out together, in one piece whose bytes all share. */
class Batch {
  readonly frames: readonly Frame[];
  #bytes: Uint8Array | null = null;

  constructor(frames: readonly Frame[]) {
    this.frames = frames;
  }

  get bytes(): Uint8Array {
    this.#bytes ??= joined(this.frames);
    return this.#bytes;
  }
}

/**
 * How many are told in one turn of the event loop: a write to a socket costs about 10 µs, nearly all of it the system's
 * and after this code has returned, so it is a number that bounds the turn, which consensus and everybody else share.
 */
const sliceWatchers = 128;
/** After a round a broadcast rests for as long as the round took, at most this; what comes meanwhile goes together. */
const restMsMax = 10;
/** What may gather between two rounds. Beyond it all are told at once, into their own bounded queues. */
const roundFramesMax = 1_024;
const roundBytesMax = 4 * 1024 * 1024;

/**
 * Tells all watchers of one feed, in rounds: each takes what has gathered and walks the watchers in slices of time. The
 * busier it gets, the more goes out at once, so a write per watcher and round is what a commit costs, never more.
 */
class Broadcast {
  readonly watchers = new Set<Watcher>();
  #waiting: Frame[] = [];
  #waitingBytes = 0;
  #batch: Batch | null = null;
  #round: Iterator<Watcher> | null = null;
  #isScheduled = false;
  #roundAt = 0;

  send(frame: Frame): void {
    if (this.watchers.size === 0) return;
    this.#waiting.push(frame);
    this.#waitingBytes += frame.data.length;
    if (this.#waiting.length > roundFramesMax || this.#waitingBytes > roundBytesMax)
      this.#tellNow();
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    // After this turn: a burst is applied in one.
    queueMicrotask(() => this.#slice());
  }

  /** Tells one at once what it has not been told yet. */
  settle(watcher: Watcher): void {
    if (!this.watchers.has(watcher)) return;
    if (this.#batch !== null) tell(watcher, this.#batch);
    if (this.#waiting.length > 0) tell(watcher, new Batch(this.#waiting));
  }

  /** Ends the round under way, and makes the next, in this turn. */
  #tellNow(): void {
    for (let next = this.#round?.next(); next?.done === false; next = this.#round?.next())
      tell(next.value, this.#batch as Batch);
    const batch = this.#take();
    for (const watcher of this.watchers) tell(watcher, batch);
    this.#round = null;
    this.#batch = null;
  }

  #take(): Batch {
    const batch = new Batch(this.#waiting);
    this.#waiting = [];
    this.#waitingBytes = 0;
    return batch;
  }

  #slice(): void {
    if (this.#round === null) {
      this.#batch = this.#take();
      this.#round = this.watchers.values();
      this.#roundAt = performance.now();
    }
    for (let told = 0; told < sliceWatchers; told++) {
      const next = this.#round.next();
      if (next.done === true) return this.#roundDone();
      tell(next.value, this.#batch as Batch);
    }
    setImmediate(() => this.#slice());
  }

  #roundDone(): void {
    const tookMs = performance.now() - this.#roundAt;
    this.#round = null;
    this.#batch = null;
    if (this.#waiting.length === 0 && tookMs < 1) this.#isScheduled = false;
    else setTimeout(() => this.#rested(), Math.min(tookMs, restMsMax));
  }

  #rested(): void {
    if (this.#waiting.length > 0) this.#slice();
    else this.#isScheduled = false;
  }
}

/** In order of revision, whatever it was told when it joined. */
function tell(watcher: Watcher, batch: Batch): void {
  let { epoch, revision } = watcher;
  const news = batch.frames.filter((frame) => {
    const isNews =
      frame.epoch !== epoch
        ? frame.event === "sync"
        : frame.event === "commit"
          ? frame.revision > revision
          : frame.revision >= revision;
    // A bookmark for one who is behind would promise too much.
    if (!isNews || (frame.event === "bookmark" && watcher.isBehind)) return false;
    ({ epoch, revision } = frame);
    return true;
  });
  if (news.length === 0) return;
  watcher.epoch = epoch;
  watcher.revision = revision;
  watcher.push(news.length === batch.frames.length ? batch : new Batch(news));
}

// --- feeds -----------------------------------------------------------------------------------------------------------------

class Feed {
  readonly key: string;
  readonly filter: Filter;
  readonly source: Source;
  readonly broadcast = new Broadcast();
  epoch = 0;
  revision = 0;
  isEnded = false;
  unsubscribe: () => void = () => {};
  lastFrameAt = Date.now();
  emptySince = Date.now();
  /** Made for one watcher, good for all that come with it; kept until the next tick. */
  #snapshots = new Map<string, Frame>();

  constructor(key: string, filter: Filter, secrets: Secrets) {
    this.key = key;
    this.filter = filter;
    this.source = sourceOf(filter, secrets);
  }

  begin(view: TenantView): void {
    this.epoch = view.epoch;
    this.revision = view.revision;
    this.source.begin(view);
  }

  commit(event: CommitEvent, view: TenantView): void {
    this.revision = event.revision;
    this.#snapshots.clear();
    this.#revoke(event.changes, view);
    const made = this.source.commit(event, view);
    if (made !== null) this.#send(made);
  }

  /** Tells the watcher what lies between its cursor and this state, and counts it in. */
  join(watcher: Watcher, view: TenantView, since: Cursor | "now" | null): void {
    const frames = this.#missed(view, since);
    const last = frames.at(-1) as Frame;
    const isPart = last.revision < view.revision && last.event === "bookmark";
    watcher.epoch = view.epoch;
    watcher.revision = view.revision;
    if (!isPart) this.watchers.add(watcher);
    watcher.begin(frames, isPart);
    // It comes back for the rest when it has read this much.
    if (isPart) watcher.end("more");
  }

  #missed(view: TenantView, since: Cursor | "now" | null): readonly Frame[] {
    const { source } = this;
    if (since === "now") return [bookmark(view, this.filter)];
    if (since === null) return [this.#snapshot(view, "begin")];
    const isOurs = since.epoch === view.epoch && since.revision <= view.revision;
    const frames = isOurs ? source.since(since, view) : null;
    if (frames === null && this.isEvery)
      throw new Problem(
        "cursor-compacted",
        "This cursor is compacted or of another history: list what there is now, and watch from there",
      );
    if (frames === null) return [this.#snapshot(view, "cursor")];
    if (sizeOf(frames) > catchUpBytesMax && !this.isEvery) return [this.#snapshot(view, "slow")];
    return frames.length === 0 ? [bookmark(view, this.filter)] : frames;
  }

  /** Whether its watchers want every revision, or none. */
  get isEvery(): boolean {
    return this.filter.kind === "tenant" && this.filter.every;
  }

  /** One encoding for all who come in the same second and find the same. */
  #snapshot(view: TenantView, why: SyncReason): Frame {
    const key = `${view.epoch} ${view.revision} ${why}`;
    let made = this.#snapshots.get(key);
    if (made === undefined) {
      made = this.source.snapshot(view, why);
      this.#snapshots.set(key, made);
    }
    return made;
  }

  /** What makes up for what was left out since the cursor: the latest of each, or everything. */
  latest(view: TenantView, told: string | null): Frame {
    const cursor = told === null ? null : parseCursor(told);
    const merged =
      cursor === null || cursor.epoch !== view.epoch ? null : this.source.merged(cursor, view);
    return merged === null || merged.data.length > catchUpBytesMax
      ? this.#snapshot(view, "slow")
      : merged;
  }

  get watchers(): Set<Watcher> {
    return this.broadcast.watchers;
  }

  #send(made: Frame): void {
    this.lastFrameAt = Date.now();
    this.broadcast.send(made);
  }

  /** A key that is gone takes its watches with it. */
  #revoke(changes: readonly StoredChange[], view: TenantView): void {
    for (const change of changes) {
      if (change.type !== "key-delete" && change.type !== "key") continue;
      for (const watcher of this.watchers) {
        const { credential, principal } = watcher;
        if (credential.kind !== "tenant" && credential.kind !== "stream") continue;
        if (principal.keyId !== change.name) continue;
        // One that was rotated has an end now.
        const now = principalIn(view, credential, Date.now());
        if (now === null) watcher.end("unauthorized");
        else watcher.principal = now;
      }
    }
  }

  tick(nowMs: number, settings: WatchSettings): void {
    this.#snapshots.clear();
    for (const watcher of this.watchers) {
      const { expiresAt } = watcher.principal;
      if (expiresAt !== null && expiresAt <= nowMs) watcher.end("unauthorized");
      else watcher.tick(nowMs);
    }
    if (nowMs - this.lastFrameAt < settings.bookmarkMs) return;
    this.#send(bookmark(this, this.filter));
  }

  end(reason: string): void {
    if (this.isEnded) return;
    this.isEnded = true;
    this.unsubscribe();
    for (const watcher of this.watchers) watcher.end(reason);
    this.watchers.clear();
  }
}

export interface WatchesOptions {
  readonly secrets: Secrets;
  readonly service: ConfigService;
  readonly peers: Peers;
  readonly settings: Partial<WatchSettings>;
  readonly failed: (error: unknown) => void;
}

interface Caller {
  readonly principal: Principal;
  readonly credential: Credential;
}

export class Watches {
  readonly #service: ConfigService;
  readonly #peers: Peers;
  readonly #secrets: Secrets;
  readonly #settings: WatchSettings;
  readonly #failed: (error: unknown) => void;
  readonly #feeds = new Map<string, Promise<Feed>>();
  readonly #open = new Set<Feed>();
  readonly #relays = new Map<string, Relay>();
  readonly #timer: { unref?: () => void };
  #directory: Promise<() => void> | null = null;
  #isClosed = false;
  /** Watches and long polls open now. */
  count = 0;
  readonly #countOfTenant = new Map<string, number>();

  constructor(options: WatchesOptions) {
    this.#service = options.service;
    this.#secrets = options.secrets;
    this.#peers = options.peers;
    this.#settings = { ...settingsDefault, ...options.settings };
    this.#failed = options.failed;
    this.#timer = setInterval(() => this.#tick(), Math.min(tickMs, this.#settings.bookmarkMs));
    this.#timer.unref?.();
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#timer as ReturnType<typeof setInterval>);
    for (const feed of this.#open) feed.end(reason);
    for (const relay of this.#relays.values()) relay.end(reason);
    this.#relays.clear();
    this.#open.clear();
    this.#feeds.clear();
    void this.#directory?.then((end) => end());
  }

  /** Whether the route is a watch: it is relayed, not forwarded, and waits without being a request under way. */
  isWatch(route: Route): boolean {
    return route.tag === watchTag;
  }

  // --- here ------------------------------------------------------------------------------------------------------------

  async stream(call: Call, filter: Filter, access: Access): Promise<Answer> {
    if (call.head) return streamAnswer(null);
    const caller = callerOf(call);
    const since = sinceOf(call);
    this.#admit(filter.tenant);
    let feed: Feed | null = null;
    const watcher = new StreamWatcher(caller, this.#settings, {
      resync: async (lagging) => {
        const of = feed;
        if (of === null || of.isEnded) return lagging.end("moved");
        if (of.isEvery) return lagging.end("slow");
        await this.#service.read(filter.tenant, { consistency: "stale" }, (view) =>
          lagging.catchUp(of.latest(view, lagging.told)),
        );
      },
      closed: (closing) => {
        this.#dismiss(filter.tenant);
        if (feed !== null) this.#leave(feed, closing);
      },
    });
    try {
      feed = await this.#join(call, filter, access, watcher, since);
      // Closed while it joined: what was meant to clean up did not know the feed yet.
      if (watcher.isClosed) this.#leave(feed, watcher);
    } catch (error) {
      if (!watcher.isClosed) await watcher.stream.cancel();
      throw error;
    }
    return streamAnswer(watcher.stream);
  }

  async poll(call: Call, filter: Filter, access: Access, waitMs: number): Promise<Answer> {
    const caller = callerOf(call);
    const since = sinceOf(call);
    this.#admit(filter.tenant);
    let happened: () => void = () => {};
    const something = new Promise<void>((resolve) => {
      happened = resolve;
    });
    const watcher = new PollWatcher(caller, happened);
    let feed: Feed | null = null;
    try {
      feed = await this.#join(call, filter, access, watcher, since);
      if (watcher.frames.length === 0 && waitMs > 0) {
        const timer = setTimeout(happened, waitMs);
        await something;
        clearTimeout(timer);
        // The time may be over while a round has not come to it yet.
        feed.broadcast.settle(watcher);
      }
      const frames = watcher.frames.length > 0 ? watcher.frames : [bookmark(feed, filter)];
      call.revision = Math.max(feed.revision, call.revision ?? 0);
      return pollAnswer(frames);
    } finally {
      this.#dismiss(filter.tenant);
      if (feed !== null) this.#leave(feed, watcher);
    }
  }

  #admit(tenant: string): void {
    if (this.#isClosed) throw new Problem("not-ready", "This node is stopping");
    const ofTenant = this.#countOfTenant.get(tenant) ?? 0;
    if (ofTenant >= this.#settings.watchersPerTenantMax)
      throw new Problem("overloaded", "This tenant has too many watches open on this node", {
        retryAfter: 5,
      });
    if (this.count >= this.#settings.watchersMax)
      throw new Problem("overloaded", "This node has too many watches open", { retryAfter: 5 });
    this.count++;
    this.#countOfTenant.set(tenant, ofTenant + 1);
  }

  #dismiss(tenant: string): void {
    this.count--;
    const left = (this.#countOfTenant.get(tenant) ?? 1) - 1;
    if (left === 0) this.#countOfTenant.delete(tenant);
    else this.#countOfTenant.set(tenant, left);
  }

  async #join(
    call: Call,
    filter: Filter,
    access: Access,
    watcher: Watcher,
    since: Cursor | "now" | null,
  ): Promise<Feed> {
    const minRevision = minRevisionOf(call.request);
    for (;;) {
      const feed = await this.#feed(filter);
      const enter = (view: TenantView, isNewest: boolean): boolean => {
        if (feed.isEnded) return false;
        // Seen elsewhere, and not yet here: what this node knows would lead back in time.
        if (!isNewest && isAhead(since, view))
          throw new Problem("not-caught-up", "This node is behind the cursor", { retryAfter: 1 });
        call.revision = view.revision;
        recheck(view, watcher, access, filter);
        const watchersMax = getQuotas(view).watchers;
        if ((this.#countOfTenant.get(filter.tenant) ?? 0) > watchersMax)
          throw new Problem(
            "quota-exceeded",
            `Close watches that are not needed: the tenant may have ${watchersMax} open on each node`,
          );
        feed.join(watcher, view, since);
        return true;
      };
      if (await this.#readNewest(filter.tenant, minRevision, enter)) return feed;
    }
  }

  /** The newest state where that can be had; without a quorum what is known here, which a later commit continues. */
  async #readNewest<T>(
    tenant: string,
    minRevision: number | undefined,
    query: (view: TenantView, isNewest: boolean) => T,
  ): Promise<T> {
    const atLeast = minRevision === undefined ? {} : { minRevision };
    let isNewest = true;
    // What is thrown inside must not look to the host like a fault of the replica.
    const attempt = (view: TenantView): { value: T } | { error: unknown } => {
      try {
        return { value: query(view, isNewest) };
      } catch (error) {
        return { error };
      }
    };
    let result: { value: T } | { error: unknown };
    try {
      result = await this.#service.read(
        tenant,
        { consistency: "linearizable", timeoutMs: 2_000, ...atLeast },
        attempt,
      );
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "no-quorum") throw error;
      isNewest = false;
      result = await this.#service.read(tenant, { consistency: "stale", ...atLeast }, attempt);
    }
    if ("error" in result) throw result.error;
    return result.value;
  }

  #leave(feed: Feed, watcher: Watcher): void {
    feed.watchers.delete(watcher);
    if (feed.watchers.size === 0) feed.emptySince = Date.now();
  }

  #feed(filter: Filter): Promise<Feed> {
    const key = canonical(filter);
    let feed = this.#feeds.get(key);
    if (feed === undefined) {
      if (this.#feeds.size >= this.#settings.feedsMax) this.#dropEmpty();
      if (this.#feeds.size >= this.#settings.feedsMax)
        throw new Problem("overloaded", "This node watches too many different things");
      feed = this.#openFeed(key, filter);
      this.#feeds.set(key, feed);
      feed.catch(() => this.#feeds.delete(key));
    }
    return feed;
  }

  async #openFeed(key: string, filter: Filter): Promise<Feed> {
    this.#followDirectory();
    const feed = new Feed(key, filter, this.#secrets);
    feed.unsubscribe = await this.#service.watch(filter.tenant, (view) => feed.begin(view), {
      commit: (event, view) =>
        // Another history: cursors of the old one get a sync when they come back.
        view.epoch === feed.epoch ? feed.commit(event, view) : this.#endFeed(feed, "restored"),
      end: (reason) => this.#endFeed(feed, reason),
    });
    this.#open.add(feed);
    return feed;
  }

  #endFeed(feed: Feed, reason: string): void {
    this.#feeds.delete(feed.key);
    this.#open.delete(feed);
    feed.end(reason === "tenant-deleted" ? "unauthorized" : reason);
  }

  #dropEmpty(): void {
    for (const feed of this.#open) if (feed.watchers.size === 0) this.#endFeed(feed, "moved");
  }

  /** Deleted tenants and revoked root keys are known there first. */
  #followDirectory(): void {
    this.#directory ??= this.#service
      .watch(systemTenant, () => {}, {
        commit: (event, view) => this.#directoryChanged(event, view),
        end: () => {
          this.#directory = null;
        },
      })
      .catch((error: unknown) => {
        this.#directory = null;
        this.#failed(error);
        return () => {};
      });
  }

  #directoryChanged(event: CommitEvent, view: TenantView): void {
    for (const change of event.changes) {
      if (change.type === "tenant") {
        const row = view.get<TenantRow>(tenantKey(change.name));
        if (row !== undefined && row.deletedAt === null) continue;
        for (const feed of this.#open)
          if (feed.filter.tenant === change.name) this.#endFeed(feed, "tenant-deleted");
      }
      if (change.type !== "key" && change.type !== "issuer") continue;
      for (const feed of this.#open)
        for (const watcher of feed.watchers) {
          const { credential } = watcher;
          const isGone =
            change.type === "issuer"
              ? // Whoever still may comes back with a token that is checked anew.
                watcher.principal.issuer === change.name
              : credential.kind === "root" && view.get(rootKeyKey(credential.hash)) === undefined;
          if (isGone) watcher.end("unauthorized");
        }
    }
  }

  #tick(): void {
    const now = Date.now();
    for (const feed of this.#open) {
      if (feed.watchers.size === 0 && now - feed.emptySince > this.#settings.lingerMs) {
        this.#endFeed(feed, "moved");
        continue;
      }
      feed.tick(now, this.#settings);
    }
    for (const relay of this.#relays.values())
      for (const watcher of relay.watchers) watcher.tick(now);
  }

  // --- for tenants that are elsewhere ------------------------------------------------------------------------------------

  /**
   * Watches through a node that holds the tenant, by its long-poll form. The cursor makes it gapless also when that node
   * dies and another one goes on. All watchers with the same filter and key share one relay, and each first catches up
   * with it by polls of its own.
   */
  async relay(call: Call, nodes: readonly string[]): Promise<Answer> {
    const wait = call.query.get("wait");
    if (wait !== null)
      return this.#peers.forward(call, nodes, null, { timeoutMs: waitMsOf(wait) + 5_000 });
    const first = await this.#relayPoll(call, nodes, null, 0);
    if (first.frames === null) return first.answer;
    if (call.head) return streamAnswer(null);
    const tenant = call.params["tenant"] as string;
    this.#admit(tenant);
    let relay: Relay | null = null;
    const watcher = new StreamWatcher(
      { principal: relayPrincipal, credential: { kind: "broken" } },
      this.#settings,
      {
        // What it missed is not kept here: it comes back for it with its cursor.
        resync: async (lagging) => lagging.end("slow"),
        closed: (closing) => {
          this.#dismiss(tenant);
          if (relay !== null) this.#leaveRelay(relay, closing);
        },
      },
    );
    let { cursor, frames } = first;
    watcher.begin(frames.filter((one) => one.event !== "goodbye"));
    const key = relayKey(call);
    for (let polls = 0; !watcher.isClosed; polls++) {
      const end = frames.find((one) => one.event === "goodbye");
      // Also one whose relay runs away from it for so long goes on anew.
      if (end !== undefined || polls === relayJoinPollsMax) {
        watcher.end(end === undefined ? "moved" : end.reason);
        break;
      }
      const running = this.#relays.get(key);
      const at = parseCursor(cursor ?? "");
      if (running === undefined || (at !== null && !running.isAheadOf(at))) {
        relay = running ?? this.#openRelay(key, call, cursor);
        watcher.epoch = at?.epoch ?? 0;
        watcher.revision = at?.revision ?? 0;
        relay.watchers.add(watcher);
        break;
      }
      const next = await this.#relayPoll(call, nodes, cursor, 0);
      if (next.frames === null) {
        watcher.end("moved");
        break;
      }
      cursor = next.cursor ?? cursor;
      ({ frames } = next);
      watcher.push(new Batch(frames.filter((one) => one.event !== "goodbye")));
    }
    return streamAnswer(watcher.stream);
  }

  #openRelay(key: string, call: Call, cursor: string | null): Relay {
    const relay = new Relay(key, cursor);
    this.#relays.set(key, relay);
    void this.#relayOn(call, relay);
    return relay;
  }

  #leaveRelay(relay: Relay, watcher: StreamWatcher): void {
    relay.watchers.delete(watcher);
    if (relay.watchers.size === 0) this.#endRelay(relay, "moved");
  }

  #endRelay(relay: Relay, reason: string): void {
    if (this.#relays.get(relay.key) === relay) this.#relays.delete(relay.key);
    relay.end(reason);
  }

  async #relayOn(call: Call, relay: Relay): Promise<void> {
    const tenant = call.params["tenant"] as string;
    let heardAt = Date.now();
    while (!relay.isEnded) {
      try {
        const place = await this.#service.locate(tenant);
        // It moved to this node: the clients come back and are served here.
        if (place === null || place.local) return this.#endRelay(relay, "moved");
        const polled = await this.#relayPoll(call, place.nodes, relay.cursor, relayWaitMs);
        if (polled.frames === null) {
          if (polled.answer.status < 500) return this.#endRelay(relay, "unauthorized");
          throw new Problem("no-quorum", "The other node cannot watch it now");
        }
        heardAt = Date.now();
        for (const relayed of polled.frames)
          if (relayed.event !== "goodbye") relay.send(relayed);
          else if (relayed.data === endOfKey) return this.#endRelay(relay, "unauthorized");
          else await Promise.race([relay.ended, pause(relayRetryMs)]);
      } catch (error) {
        // The tenant was deleted: waiting does not help.
        if (error instanceof Problem && error.status < 500)
          return this.#endRelay(relay, "unauthorized");
        if (Date.now() - heardAt > relayGiveUpMs) {
          this.#failed(error);
          return this.#endRelay(relay, "moved");
        }
        await Promise.race([relay.ended, pause(relayRetryMs)]);
      }
    }
  }

  /** One poll; `frames` is null when it was refused, and `answer` says why. */
  async #relayPoll(
    call: Call,
    nodes: readonly string[],
    cursor: string | null,
    waitMs: number,
  ): Promise<{ frames: Frame[] | null; cursor: string | null; answer: Answer }> {
    const query = new URLSearchParams(call.query);
    query.set("wait", `${waitMs}ms`);
    if (cursor !== null) query.set("since", cursor);
    const path = call.target.split("?", 1)[0] as string;
    // A resumed stream names its cursor in a header that would outweigh ours.
    const answer = await this.#peers.forward(call, nodes, null, {
      target: `${path}?${query}`,
      timeoutMs: waitMs + 5_000,
      ...(cursor !== null && { without: "last-event-id" }),
    });
    if (answer.status !== 200) return { frames: null, cursor: null, answer };
    const text = new TextDecoder().decode(answer.body as Uint8Array);
    const { frames } = JSON.parse(text) as {
      frames: { event: Frame["event"]; id?: string; data: unknown }[];
    };
    const made = frames.map(
      ({ event, id, data }) =>
        new Frame(
          event,
          id ?? null,
          parseCursor(id ?? "") ?? { epoch: 0, revision: 0 },
          JSON.stringify(data),
        ),
    );
    return { frames: made, cursor: made.findLast((one) => one.id !== null)?.id ?? null, answer };
  }
}

/** A feed whose frames come from another node. */
class Relay {
  readonly key: string;
  readonly broadcast = new Broadcast();
  readonly ended: Promise<void>;
  isEnded = false;
  /** Of the last frame it was given. */
  cursor: string | null;
  #end: () => void = () => {};

  constructor(key: string, cursor: string | null) {
    this.key = key;
    this.cursor = cursor;
    this.ended = new Promise((resolve) => (this.#end = resolve));
  }

  /** Whether it has sent what one at this cursor was not told. */
  isAheadOf(at: Cursor): boolean {
    const own = parseCursor(this.cursor ?? "");
    if (own === null) return false;
    if (own.epoch !== at.epoch) return own.epoch > at.epoch;
    return own.revision > at.revision;
  }

  get watchers(): Set<Watcher> {
    return this.broadcast.watchers;
  }

  send(relayed: Frame): void {
    this.cursor = relayed.id ?? this.cursor;
    this.broadcast.send(relayed);
  }

  end(reason: string): void {
    if (this.isEnded) return;
    this.isEnded = true;
    this.#end();
    for (const watcher of this.watchers) watcher.end(reason);
    this.watchers.clear();
  }
}

/** What its watchers share: what is watched, and the key that may. */
function relayKey(call: Call): string {
  const query = new URLSearchParams(call.query);
  query.delete("since");
  query.sort();
  const path = call.target.split("?", 1)[0] as string;
  return `${call.token} ${path}?${query}`;
}

/** Who watches through a relay is known to the other node, which checks the key at every poll. */
const relayPrincipal: Principal = { kind: "client", keyId: "", namespaces: null, expiresAt: null };

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The key may have gone between its check and this moment, from which on its end is heard of. */
function recheck(view: TenantView, watcher: Watcher, access: Access, filter: Filter): void {
  const { credential } = watcher;
  if (credential.kind !== "tenant" && credential.kind !== "stream") return;
  const principal = principalIn(view, credential, Date.now());
  if (principal === null) throw unauthorized();
  authorize(access, principal, filter.namespace ?? undefined);
}

function isAhead(since: Cursor | "now" | null, view: TenantView): boolean {
  return (
    since !== null &&
    since !== "now" &&
    since.epoch === view.epoch &&
    since.revision > view.revision
  );
}

function callerOf(call: Call): Caller {
  if (call.principal === null || call.token === null) throw new Error("A watch needs a principal");
  return { principal: call.principal, credential: credentialOf(call.token) };
}

function streamAnswer(body: ReadableStream<Uint8Array> | null): Answer {
  return {
    status: 200,
    headers: {
      "content-type": "text/event-stream",
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
    },
    body,
  };
}

function pollAnswer(frames: readonly Frame[]): Answer {
  const answer = json(null);
  return { ...answer, body: `{"frames":[${frames.map((one) => one.json).join(",")}]}` };
}

// --- routes ----------------------------------------------------------------------------------------------------------------

const watchTag = "watch";
const T = "/v1/tenants/:tenant";

const watchQuery = {
  since: Type.Optional(
    Type.String({
      maxLength: 64,
      description:
        "Cursor of the last frame received, as its id gave it, or now; without it, of another epoch, compacted or ahead, the watch begins with a sync. A Last-Event-ID header outweighs it",
    }),
  ),
  wait: Type.Optional(
    Type.String({
      description: "Long polling: wait at most this long, e.g. 30s or 500ms, up to 60s",
    }),
  ),
};

const watchResponses = {
  200: {
    description:
      "Frames as server-sent events (event, id, data); with `wait` as one JSON object (WatchPoll)",
    schema: WatchPoll,
  },
};

export const watchRoutes: readonly Route[] = [
  route({
    method: "GET",
    path: `${T}/watch`,
    id: "watchTenant",
    tag: watchTag,
    summary: "Changes of a tenant's configs, each revision whole and in order",
    query: {
      ...watchQuery,
      namespace: Type.Optional(Type.String()),
      prefix: Type.Optional(Type.String({ maxLength: 128, description: "Of the config's name" })),
      content: Type.Optional(
        Type.Boolean({ description: "Contents up to 64 KiB come along; default true" }),
      ),
      history: Type.Optional(
        Type.Union([Type.Literal("latest"), Type.Literal("every")], {
          description:
            "latest (default): whoever reads too slowly, or comes too late, is told the latest of each, in one commit that says coalesced, or in a sync. every: each revision, or goodbye; a cursor that is compacted gives 410",
        }),
      ),
    },
    responses: watchResponses,
    handle: (call, { query }, { watches }) => {
      const { principal } = call;
      if (principal === null) throw new Error("A watch needs a principal");
      const { namespace = null, prefix = "", content = true, history = "latest", wait } = query;
      if (namespace !== null) {
        if (!isName(namespace))
          throw new Problem("invalid-name", checkNamespaceName(namespace) ?? "Wrong namespace");
        authorizeNamespace(principal, namespace);
      }
      const filter: TenantFilter = {
        kind: "tenant",
        tenant: call.params["tenant"] as string,
        namespace,
        prefix,
        content,
        every: history === "every",
        // A key that covers the one namespace sees what any other sees of it, and shares the feed.
        namespaces: namespace === null ? principal.namespaces : null,
        keys: covers(principal, "") && (principal.kind === "admin" || principal.kind === "root"),
      };
      const access = tenantAccess;
      return wait === undefined
        ? watches.stream(call, filter, access)
        : watches.poll(call, filter, access, waitMsOf(wait));
    },
  }),
  route({
    method: "GET",
    path: `${T}/namespaces/:namespace/watch`,
    id: "watchValues",
    tag: watchTag,
    summary: "The effective values for these labels, then their changes only",
    labels: true,
    query: {
      ...watchQuery,
      name: Type.Optional(Type.String({ description: "Only this config" })),
      ...rulesQuery,
    },
    responses: watchResponses,
    handle: (call, { query }, { watches }) => {
      const { name = null, wait, rules = false } = query;
      if (rules) refuseRules(call.query, call.principal);
      if (name !== null && !isName(name))
        throw new Problem("invalid-name", checkConfigName(name) ?? "Wrong name");
      const filter: EffectiveFilter = {
        kind: "effective",
        tenant: call.params["tenant"] as string,
        namespace: call.params["namespace"] as string,
        labels: labelsOf(call.query),
        name,
        rules,
        secrets: readsSecrets(call.principal),
      };
      return wait === undefined
        ? watches.stream(call, filter, valuesAccess)
        : watches.poll(call, filter, valuesAccess, waitMsOf(wait));
    },
  }),
  route({
    method: "GET",
    path: `${T}/namespaces/:namespace/ofrep/v1/events`,
    id: "watchFlags",
    tag: watchTag,
    summary: "When flags are to be evaluated again: the event stream of OFREP",
    query: {
      ...watchQuery,
      token: Type.Optional(
        Type.String({
          maxLength: 512,
          description:
            "Instead of a key in a header; part of the address that a bulk evaluation gave",
        }),
      ),
    },
    responses: watchResponses,
    handle: (call, { query: { wait } }, { watches }) => {
      const { tenant, namespace } = call.params as { tenant: string; namespace: string };
      const filter: FlagFilter = { kind: "flags", tenant, namespace };
      return wait === undefined
        ? watches.stream(call, filter, valuesAccess)
        : watches.poll(call, filter, valuesAccess, waitMsOf(wait));
    },
  }),
];

const tenantAccess = accessOf("watchTenant");
const valuesAccess = accessOf("watchValues");

/** @throws Problem `invalid` */
function waitMsOf(text: string): number {
  const match = /^(\d{1,5})(ms|s)$/.exec(text);
  const ms = match === null ? null : Number(match[1]) * (match[2] === "s" ? 1_000 : 1);
  if (ms === null || ms > waitMsMax)
    throw invalid(`Give wait as 500ms or 30s, at most ${waitMsMax / 1_000}s`, [
      { pointer: "/query/wait", detail: "Not such a duration" },
    ]);
  return ms;
}

/** Where the caller left off; null: nowhere. @throws Problem `invalid` */
function sinceOf(call: Call): Cursor | "now" | null {
  // Browsers send it when they reconnect, to the address with the cursor that they began with.
  const last = call.request.headers.get("last-event-id");
  if (last !== null && last !== "") return parseCursor(last);
  const since = call.query.get("since");
  if (since === null || since === "") return null;
  if (since === "now") return "now";
  const cursor = parseCursor(since);
  if (cursor === null)
    throw invalid("Give since as <epoch>-<revision>, as a frame's id gave it, or as now", [
      { pointer: "/query/since", detail: "Not a cursor" },
    ]);
  return cursor;
}
