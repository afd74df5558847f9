/**
 * Reads of a tenant's state, all synchronous and as of one revision. They take names as they come from outside: what is
 * outside the grammar is simply not there.
 */
import { evaluate, explain } from "../model/evaluate.ts";
import type { Explanation } from "../model/evaluate.ts";
import { checkKeyId, isName, isTenantName } from "../model/names.ts";
import type { ContentFormat, Labels } from "../model/release.ts";
import { extendsDepthMax } from "./configs.ts";
import { isSha256 } from "./directory.ts";
import { emptyMeta } from "./draft.ts";
import {
  auditKey,
  configKey,
  groupKey,
  historyKey,
  keyKey,
  metaKey,
  namespaceKey,
  releaseKey,
  rootKeyKey,
  tenantKey,
  textKey,
  under,
  versionKey,
} from "./keys.ts";
import { defaultQuotas } from "./rows.ts";
import { judgedAt } from "./schedules.ts";
import type {
  AuditRow,
  ConfigRow,
  HistoryRow,
  KeyRow,
  NamespaceRow,
  NodeRow,
  Quotas,
  ReleaseRow,
  RootKeyRow,
  StateView,
  TenantMeta,
  TenantRow,
  VersionRow,
} from "./rows.ts";

// --- pages -------------------------------------------------------------------------------------------------------------

export const pageLimitDefault = 100;
export const pageLimitMax = 1_000;

export interface PageOptions {
  /** 1 … 1,000; outside it, the nearest. */
  readonly limit?: number;
  /** `next` of the page before. */
  readonly cursor?: string;
}

export interface Page<T> {
  readonly items: readonly T[];
  /** Absent on the last page. A cursor is a name: it stays good when rows come and go around it. */
  readonly next?: string;
}

/** What a key can have after its prefix: anything else would only trouble the store. */
const cursorPattern = /^[\x21-\x7e]{1,300}$/;

/** Cursors are what the key has after the prefix; they are compared only, so a forged one reads nothing else. */
function page<T>(
  view: StateView,
  { prefix, start = "", reverse = false }: { prefix: string; start?: string; reverse?: boolean },
  options: PageOptions,
  keep: (row: T) => boolean = () => true,
): Page<T> {
  const limit = Math.min(
    Math.max(Math.trunc(options.limit ?? pageLimitDefault) || 1, 1),
    pageLimitMax,
  );
  // "~" follows every character of a name, so it ends those that begin with `start`.
  let { gte, lt } =
    start === "" ? under(prefix) : { gte: `${prefix}/${start}`, lt: `${prefix}/${start}~` };
  let after = "";
  if (options.cursor !== undefined) {
    if (!cursorPattern.test(options.cursor)) return { items: [] };
    after = `${prefix}/${options.cursor}`;
    if (reverse) lt = after < lt ? after : lt;
    else gte = after > gte ? after : gte;
    if (gte >= lt) return { items: [] };
  }
  const items: T[] = [];
  let last = "";
  for (const [key, row] of view.range<T>({ gte, lt, reverse })) {
    if (key === after || !keep(row)) continue;
    if (items.length === limit) return { items, next: last };
    items.push(row);
    last = key.slice(prefix.length + 1);
  }
  return { items };
}

// --- tenant ------------------------------------------------------------------------------------------------------------

export function getMeta(view: StateView): TenantMeta {
  return view.get<TenantMeta>(metaKey) ?? emptyMeta;
}

export function getQuotas(view: StateView): Readonly<Required<Quotas>> {
  const { quotas } = getMeta(view);
  let whole = wholeQuotas.get(quotas);
  if (whole === undefined) wholeQuotas.set(quotas, (whole = { ...defaultQuotas, ...quotas }));
  return whole;
}
/** Of each row of quotas, which stays the same object while the quotas do: every request asks. */
const wholeQuotas = new WeakMap<Quotas, Required<Quotas>>();

export function getKey(view: StateView, id: string): KeyRow | null {
  return checkKeyId(id) === null ? (view.get<KeyRow>(keyKey(id)) ?? null) : null;
}

export function listKeys(view: StateView, options: PageOptions = {}): Page<KeyRow> {
  return page(view, { prefix: "key" }, options);
}

/** Oldest first, from the sequence after `since`. */
export function listAudit(
  view: StateView,
  options: { readonly since?: number; readonly limit?: number } = {},
): Page<AuditRow> {
  const { since, limit } = options;
  return page(
    view,
    { prefix: "aud" },
    {
      ...(limit === undefined ? {} : { limit }),
      ...(since === undefined ? {} : { cursor: auditKey(since).slice("aud/".length) }),
    },
  );
}

/**
 * The revisions after `revision`, oldest first; null when they are no longer all kept, or were never given here, so that
 * only a snapshot helps.
 */
export function historyAfter(
  view: StateView,
  revision: number,
  limit: number = Number.POSITIVE_INFINITY,
): readonly HistoryRow[] | null {
  const meta = getMeta(view);
  if (!Number.isSafeInteger(revision) || revision < 0 || revision > meta.revision) return null;
  if (revision + 1 < meta.historyFrom) return null;
  const rows: HistoryRow[] = [];
  if (revision === meta.revision) return rows;
  const range = { gte: historyKey(revision + 1), lt: under("hist").lt };
  for (const [, row] of view.range<HistoryRow>(range)) {
    if (rows.length >= limit) break;
    rows.push(row);
  }
  return rows;
}

export function getHistoryRow(view: StateView, revision: number): HistoryRow | null {
  return view.get<HistoryRow>(historyKey(revision)) ?? null;
}

// --- namespaces --------------------------------------------------------------------------------------------------------

export function getNamespace(view: StateView, namespace: string): NamespaceRow | null {
  return isName(namespace) ? (view.get<NamespaceRow>(namespaceKey(namespace)) ?? null) : null;
}

export function listNamespaces(view: StateView, options: PageOptions = {}): Page<NamespaceRow> {
  return page(view, { prefix: "ns" }, options);
}

/** The namespace itself and those it extends, nearest first. */
export function namespaceChain(view: StateView, namespace: string): readonly string[] {
  if (!isName(namespace)) return [];
  const chain: string[] = [];
  let at: string | null = namespace;
  while (at !== null && chain.length <= extendsDepthMax && !chain.includes(at)) {
    chain.push(at);
    at = view.get<NamespaceRow>(namespaceKey(at))?.extends ?? null;
  }
  return chain;
}

// --- configs -----------------------------------------------------------------------------------------------------------

/** Also a deleted one: see `deletedAt`. */
export function getConfigRow(view: StateView, namespace: string, name: string): ConfigRow | null {
  if (!isName(namespace) || !isName(name)) return null;
  return view.get<ConfigRow>(configKey(namespace, name)) ?? null;
}

/** Null when there is none, or it is deleted. */
export function getConfig(view: StateView, namespace: string, name: string): ConfigRow | null {
  const row = getConfigRow(view, namespace, name);
  return row === null || row.deletedAt !== null ? null : row;
}

/** By name; a `prefix` of the name narrows it. */
export function listConfigs(
  view: StateView,
  namespace: string,
  options: PageOptions & { readonly prefix?: string; readonly deleted?: boolean } = {},
): Page<ConfigRow> {
  if (!isName(namespace)) return { items: [] };
  const { prefix = "", deleted = false } = options;
  if (!prefixPattern.test(prefix)) return { items: [] };
  return page<ConfigRow>(
    view,
    { prefix: `cfg/${namespace}`, start: prefix },
    options,
    (row) => (row.deletedAt !== null) === deleted,
  );
}

/** The beginning of a name. */
const prefixPattern = /^[a-z0-9._-]{0,128}$/;

/** All configs of all namespaces that are not deleted, by namespace and name: what a watch starts from. */
export function* allConfigs(
  view: StateView,
  filter: { readonly namespace?: string; readonly prefix?: string } = {},
): Iterable<ConfigRow> {
  const { namespace, prefix = "" } = filter;
  if (namespace !== undefined && !isName(namespace)) return;
  const range = under(namespace === undefined ? "cfg" : `cfg/${namespace}`);
  for (const [, row] of view.range<ConfigRow>(range))
    if (row.deletedAt === null && row.name.startsWith(prefix)) yield row;
}

/** Newest first. */
export function listVersions(
  view: StateView,
  namespace: string,
  name: string,
  options: PageOptions = {},
): Page<VersionRow> {
  if (!isName(namespace) || !isName(name)) return { items: [] };
  return page(view, { prefix: `ver/${namespace}/${name}`, reverse: true }, options);
}

/** By number or by hash (`sha256:…`): of versions with the same content, the newest. */
export function getVersion(
  view: StateView,
  namespace: string,
  name: string,
  version: number | string,
): VersionRow | null {
  if (!isName(namespace) || !isName(name)) return null;
  if (typeof version === "number") {
    if (!Number.isSafeInteger(version) || version < 1) return null;
    return view.get<VersionRow>(versionKey(namespace, name, version)) ?? null;
  }
  const range = { ...under(`ver/${namespace}/${name}`), reverse: true };
  for (const [, row] of view.range<VersionRow>(range)) if (row.hash === version) return row;
  return null;
}

/** The newest version that is kept. */
export function latestVersion(view: StateView, config: ConfigRow): VersionRow | null {
  if (config.versions === 0) return null;
  const { namespace, name } = config;
  const latest = view.get<VersionRow>(versionKey(namespace, name, config.latestVersion));
  return latest ?? listVersions(view, namespace, name, { limit: 1 }).items[0] ?? null;
}

export function getText(
  view: StateView,
  namespace: string,
  name: string,
  version: number,
): string | null {
  if (!isName(namespace) || !isName(name)) return null;
  return view.get<string>(textKey(namespace, name, version)) ?? null;
}

/** Newest first. */
export function listReleases(
  view: StateView,
  namespace: string,
  name: string,
  options: PageOptions = {},
): Page<ReleaseRow> {
  if (!isName(namespace) || !isName(name)) return { items: [] };
  return page(view, { prefix: `rel/${namespace}/${name}`, reverse: true }, options);
}

/** Without a number, the one in force. */
export function getRelease(
  view: StateView,
  namespace: string,
  name: string,
  release?: number,
): ReleaseRow | null {
  const number = release ?? getConfig(view, namespace, name)?.release ?? 0;
  if (!isName(namespace) || !isName(name) || !Number.isSafeInteger(number) || number < 1)
    return null;
  return view.get<ReleaseRow>(releaseKey(namespace, name, number)) ?? null;
}

// --- effective values ----------------------------------------------------------------------------------------------------

export interface EffectiveValue {
  /** Where the config was found: the namespace asked for, or one that it extends. */
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly version: number;
  readonly hash: string;
  readonly bytes: number;
  readonly format: ContentFormat;
  /** The rule that chose the version, null for the default. */
  readonly rule: string | null;
  readonly release: number;
  /** Revision of the config. */
  readonly revision: number;
}

export interface EffectiveText extends EffectiveValue {
  readonly text: string;
}

/**
 * The config that answers for a name: the nearest in the chain that was ever released. One that is only being prepared
 * does not hide what is inherited; one that is released and gives these labels nothing does.
 */
export function effectiveConfig(
  view: StateView,
  namespace: string,
  name: string,
): ConfigRow | null {
  if (!isName(name)) return null;
  for (const one of namespaceChain(view, namespace)) {
    const row = view.get<ConfigRow>(configKey(one, name));
    if (row !== undefined && row.deletedAt === null && row.release > 0) return row;
  }
  return null;
}

/** What a client with these labels gets, null for nothing. */
export function effective(
  view: StateView,
  namespace: string,
  name: string,
  labels: Labels,
): EffectiveText | null {
  const config = effectiveConfig(view, namespace, name);
  const value = config === null ? null : effectiveOf(view, config, labels);
  return value === null ? null : withText(view, value);
}

export function effectiveOf(
  view: StateView,
  config: ConfigRow,
  labels: Labels,
): EffectiveValue | null {
  const { version, rule } = evaluate(config, labels, judgedAt(config));
  if (version === null) return null;
  const { namespace, name, uid, release, revision } = config;
  const row = view.get<VersionRow>(versionKey(namespace, name, version));
  if (row === undefined) return null;
  const { hash, bytes, format } = row;
  return { namespace, name, uid, version, hash, bytes, format, rule, release, revision };
}

export function withText(view: StateView, value: EffectiveValue): EffectiveText | null {
  const text = getText(view, value.namespace, value.name, value.version);
  return text === null ? null : { ...value, text };
}

/** Configs of the namespace and of those it extends that answer for their names, by name within each namespace. */
export function effectiveConfigs(view: StateView, namespace: string): readonly ConfigRow[] {
  const chain = namespaceChain(view, namespace);
  const found: ConfigRow[] = [];
  const names = chain.length > 1 ? new Set<string>() : null;
  for (const one of chain)
    for (const [, row] of view.range<ConfigRow>(under(`cfg/${one}`))) {
      if (row.deletedAt !== null || row.release === 0 || names?.has(row.name) === true) continue;
      names?.add(row.name);
      found.push(row);
    }
  return found;
}

/** All values of a namespace, inherited ones included, without their texts (see `withText`). */
export function effectiveAll(
  view: StateView,
  namespace: string,
  labels: Labels,
): readonly EffectiveValue[] {
  const values: EffectiveValue[] = [];
  for (const config of effectiveConfigs(view, namespace)) {
    const value = effectiveOf(view, config, labels);
    if (value !== null) values.push(value);
  }
  return values;
}

export interface EffectiveExplanation extends Explanation {
  /** Namespaces looked at, nearest first. */
  readonly chain: readonly string[];
  /** Where the config was found; null when nothing of this name is released in the chain. */
  readonly namespace: string | null;
  readonly release: number;
}

export function explainEffective(
  view: StateView,
  namespace: string,
  name: string,
  labels: Labels,
): EffectiveExplanation {
  const chain = namespaceChain(view, namespace);
  const config = effectiveConfig(view, namespace, name);
  if (config === null) {
    const detail = "Nothing of this name is released here or in what the namespace extends";
    return { version: null, rule: null, detail, rules: [], chain, namespace: null, release: 0 };
  }
  const explanation = explain(config, labels, judgedAt(config));
  return { ...explanation, chain, namespace: config.namespace, release: config.release };
}

// --- directory (`_system` only) --------------------------------------------------------------------------------------------

/** Also a deleted one: see `deletedAt`. */
export function getTenant(view: StateView, tenant: string): TenantRow | null {
  return isTenantName(tenant) ? (view.get<TenantRow>(tenantKey(tenant)) ?? null) : null;
}

export function listTenants(
  view: StateView,
  options: PageOptions & { readonly deleted?: boolean } = {},
): Page<TenantRow> {
  const { deleted } = options;
  return page<TenantRow>(
    view,
    { prefix: "ten" },
    options,
    (row) => deleted === undefined || deleted === (row.deletedAt !== null),
  );
}

export function tenantOfGroup(view: StateView, group: number): string | null {
  return view.get<string>(groupKey(group)) ?? null;
}

export function listNodes(view: StateView): readonly NodeRow[] {
  return Array.from(view.range<NodeRow>(under("node")), ([, row]) => row);
}

/** `hash`: sha256 of the whole token, hex. */
export function getRootKey(view: StateView, hash: string): RootKeyRow | null {
  return isSha256(hash) ? (view.get<RootKeyRow>(rootKeyKey(hash)) ?? null) : null;
}
