/**
 * What is watched: a tenant's changes, the effective values for some labels, or a namespace's flags; and the frames that
 * each makes of commits, of the state, and of what lies between a cursor and the state.
 *
 * All of it runs synchronously within one view.
 */
import { unreachable } from "../lib/assert.ts";
import type { CommitEvent, TenantView } from "../host/ports.ts";
import {
  allConfigs,
  effectiveConfig,
  effectiveConfigs,
  effectiveOf,
  getHistoryRow,
  getText,
  getVersion,
  historyAfter,
  namespaceChain,
} from "../machine/queries.ts";
import { judgedAt } from "../machine/schedules.ts";
import type { ConfigRow, StoredChange } from "../machine/rows.ts";
import type { Labels } from "../model/release.ts";
import { configDetail } from "./config_answers.ts";
import { time } from "./http.ts";
import { concernsChain } from "./namespace_sets.ts";
import { openedText, type Secrets } from "./secrets.ts";
import { releaseOf, releasesOf, snapshotBytesMax, snapshotOf, valueAnswer } from "./values.ts";
import { bookmark, frame, type Cursor, type Frame } from "./watch_frames.ts";

/** Contents up to this size come within frames; of larger ones only version and hash. */
export const frameValueBytesMax = 64 * 1024;
/** Behind by more revisions than this, a `sync` is shorter than what was missed. */
const catchUpRevisionsMax = 1_000;
export const catchUpBytesMax = 4 * 1024 * 1024;
/** Frames a feed of effective values remembers, so that reconnects get exactly what they missed. */
const recentFramesMax = 64;
const recentBytesMax = 1024 * 1024;

export interface TenantFilter {
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

export interface EffectiveFilter {
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
export interface FlagFilter {
  readonly kind: "flags";
  readonly tenant: string;
  readonly namespace: string;
}

export type Filter = TenantFilter | EffectiveFilter | FlagFilter;

/** begin: no cursor came; cursor: it is of another history, ahead or compacted; slow: too much was missed. */
export type SyncReason = "begin" | "cursor" | "slow";

/** What a feed shows, by its filter. All of it runs synchronously within one view. */
export interface Source {
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
      configs.push({ ...configDetail(row, null), ...(text !== null && { content: text }) });
    }
    return frame("sync", view, { revision: view.revision, reason, configs });
  }

  commit(event: CommitEvent, view: TenantView): Frame | null {
    const changes = event.changes.filter((change) => this.#concerns(change));
    if (changes.length === 0) return null;
    const { revision } = event;
    return frame(
      "commit",
      { epoch: view.epoch, revision },
      { ...whenOf(event), changes: changes.map((change) => this.#withContent(change, view)) },
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

/** As the data of a commit begins. */
function whenOf({ revision, at, spreadMs }: CommitEvent): object {
  return { revision, at: time(at), ...(spreadMs !== undefined && { spreadMs }) };
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
    const { revision } = event;
    const made = frame("commit", { epoch: view.epoch, revision }, { ...whenOf(event), changes });
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
    const { revision, at, spreadMs } = event;
    return this.#refetch("commit", { epoch, revision }, at, spreadMs);
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

  #refetch(event: "sync" | "commit", at: Cursor, atMs: number, spreadMs?: number): Frame {
    const { epoch, revision } = at;
    return frame(event, at, {
      type: "refetchEvaluation",
      etag: `${epoch}-${revision}`,
      lastModified: Math.floor(atMs / 1_000),
      ...(spreadMs !== undefined && { spreadMs }),
    });
  }
}

export function sourceOf(filter: Filter, secrets: Secrets): Source {
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
