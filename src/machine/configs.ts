/**
 * Changes of configs and namespaces. Each function takes the draft and its action, refuses or changes the draft, and
 * gives the result; whether anything changed is seen by the changes it noted.
 *
 * What must stay true: versions are immutable and their numbers are never given twice to one config (`uid`); a release
 * names only versions that exist while it is in force; everything one command does has one revision.
 */
import { unreachable } from "../lib/assert.ts";
import { defaultFormat } from "../model/release.ts";
import type { ReleaseRule } from "../model/release.ts";
import { isName } from "../model/names.ts";
import type { Action, ConfigAction, Content, Precondition } from "./command.ts";
import { guardPrecondition, refuse } from "./draft.ts";
import type { Draft, Writable } from "./draft.ts";
import {
  configKey,
  deletedKey,
  namespaceKey,
  releaseKey,
  textKey,
  under,
  versionKey,
} from "./keys.ts";
import { configInfo } from "./results.ts";
import type { ResultOf } from "./results.ts";
import type { ConfigRow, NamespaceRow, ReleaseRow, VersionRow } from "./rows.ts";
import { judged, judgment } from "./schedules.ts";

/** Releases kept of each config, whatever their age. */
export const releasesKept = 200;
/** How many namespaces are looked at from one that extends another. */
export const extendsDepthMax = 8;
/** Deleted configs that can be undeleted; the longest deleted go first. */
export const deletedKept = 1_000;

type Of<Op extends ConfigAction["op"]> = Extract<ConfigAction, { op: Op }>;

interface Done<Op extends ConfigAction["op"]> {
  readonly created: boolean;
  readonly result: ResultOf<Op>;
}

const configOps: ReadonlySet<string> = new Set<ConfigAction["op"]>([
  "config.put",
  "config.delete",
  "config.undelete",
  "version.create",
  "version.delete",
  "release.put",
  "publish",
  "rollback",
  "namespace.put",
]);

export function isConfigAction(action: Action): action is ConfigAction {
  return configOps.has(action.op);
}

export function applyConfigAction(
  draft: Draft,
  action: ConfigAction,
  by: string,
): Done<ConfigAction["op"]> {
  const changesBefore = draft.changes.length;
  const done = dispatch(draft, action, by);
  if (draft.changes.length > changesBefore) {
    const { op, namespace } = action;
    draft.audits.push(
      op === "namespace.put"
        ? { action: op, target: namespace, key: namespaceKey(namespace) }
        : {
            action: op,
            target: `${namespace}/${action.name}`,
            key: configKey(namespace, action.name),
          },
    );
  }
  return done;
}

function dispatch(draft: Draft, action: ConfigAction, by: string): Done<ConfigAction["op"]> {
  if (!isName(action.namespace)) refuse("invalid", "Name a namespace within its grammar");
  if (action.op === "namespace.put") return putNamespace(draft, action);
  if (!isName(action.name)) refuse("invalid", "Name a config within its grammar");
  switch (action.op) {
    case "config.put":
      return putConfig(draft, action, by);
    case "config.delete":
      return deleteConfig(draft, action);
    case "config.undelete":
      return undeleteConfig(draft, action);
    case "version.create":
      return createVersion(draft, action, by);
    case "version.delete":
      return deleteVersions(draft, action);
    case "release.put":
      return putRelease(draft, action, by);
    case "publish":
      return publish(draft, action, by);
    case "rollback":
      return rollback(draft, action, by);
    default:
      return unreachable(action);
  }
}

// --- shared ----------------------------------------------------------------------------------------------------------

function rowOf(draft: Draft, action: { namespace: string; name: string }): ConfigRow | undefined {
  return draft.get<ConfigRow>(configKey(action.namespace, action.name));
}

function liveOf(draft: Draft, action: { namespace: string; name: string }): ConfigRow | undefined {
  const row = rowOf(draft, action);
  return row === undefined || row.deletedAt !== null ? undefined : row;
}

function existing(
  draft: Draft,
  action: { namespace: string; name: string } & Precondition,
): ConfigRow {
  const row = liveOf(draft, action);
  if (row === undefined)
    refuse("not-found", `Create the config first: there is no ${action.namespace}/${action.name}`);
  guardPrecondition(draft, action, row);
  return row;
}

/** The row as changed by this command: revision and time are its. */
function changed(draft: Draft, row: ConfigRow, change: Partial<ConfigRow>): ConfigRow {
  return kept(draft, Object.assign(revised(draft, row), change));
}

/** A copy of the row with this command's revision and time, to be changed by whoever asked for it, and then `kept`. */
function revised(draft: Draft, row: ConfigRow): Writable<ConfigRow> {
  // One copy and then assignments: engines copy what they know the shape of several times as fast as they merge.
  const next: Writable<ConfigRow> = { ...row };
  next.revision = draft.revision;
  next.updatedAt = draft.at;
  return next;
}

function kept(draft: Draft, row: ConfigRow): ConfigRow {
  draft.put(configKey(row.namespace, row.name), row);
  return row;
}

function guardChecked(
  row: ConfigRow,
  checked: { readonly schemaHash: string | null; readonly format?: string },
): void {
  if (checked.schemaHash !== (row.schema?.hash ?? null))
    refuse("conflict", "Check the content again: the config's schema has changed meanwhile");
  if (checked.format !== undefined && checked.format !== row.format)
    refuse("conflict", `Check the content again: the config's format is now ${row.format}`);
}

function versionOf(draft: Draft, row: ConfigRow, version: number): VersionRow | undefined {
  if (!Number.isSafeInteger(version) || version < 1) return undefined;
  return draft.get<VersionRow>(versionKey(row.namespace, row.name, version));
}

function releaseOf(draft: Draft, row: ConfigRow, release: number): ReleaseRow | undefined {
  if (!Number.isSafeInteger(release) || release < 1) return undefined;
  return draft.get<ReleaseRow>(releaseKey(row.namespace, row.name, release));
}

function isProtected(draft: Draft, namespace: string): boolean {
  return draft.get<NamespaceRow>(namespaceKey(namespace))?.protected === true;
}

function isReleased(row: Pick<ConfigRow, "rules" | "default">, version: number): boolean {
  return row.default === version || row.rules.some((rule) => rule.version === version);
}

// --- versions ----------------------------------------------------------------------------------------------------------

interface Added {
  /** As it was given when nothing was added; else with the version, and not `kept` yet. */
  readonly row: ConfigRow;
  readonly version: VersionRow;
}

/** Adds a version, or gives the latest when its content is the same. */
function addVersion(
  draft: Draft,
  row: ConfigRow,
  { content, message, by }: { content: Content; message: string; by: string },
): Added {
  const { namespace, name } = row;
  const bytesMax = draft.quota("contentBytes");
  if (content.bytes > bytesMax)
    refuse(
      "quota-exceeded",
      `Shorten the content to ${bytesMax} bytes of UTF-8: it has ${content.bytes}`,
    );
  // A config was made anew meanwhile: plain text must not come into one that is secret, nor the other way round.
  if ((content.secret !== undefined) !== (row.secret === true))
    refuse(
      "conflict",
      "Check the content again: whether the config is secret has changed meanwhile",
    );
  if (row.latestHash === content.hash) {
    const latest = versionOf(draft, row, row.latestVersion);
    if (latest !== undefined) return { row, version: latest };
  }
  if (content.secret !== undefined && content.secret.version !== row.latestVersion + 1)
    refuse("conflict", "Seal the content again: another version came first");
  const { pruned, pruneFrom } = pruneVersions(draft, row);
  if (draft.meta.bytes + content.bytes > draft.quota("bytes"))
    refuse(
      "quota-exceeded",
      `Delete versions that are not needed: all contents together may have ${draft.quota("bytes")} bytes`,
    );
  const version: Writable<VersionRow> = {
    version: row.latestVersion + 1,
    hash: content.hash,
    bytes: content.bytes,
    format: row.format,
    schemaHash: row.schema?.hash ?? null,
    message,
    at: draft.at,
    revision: draft.revision,
    by,
  };
  if (content.secret !== undefined) version.secret = true;
  draft.add(versionKey(namespace, name, version.version), version);
  draft.add(textKey(namespace, name, version.version), content.text);
  draft.meta.bytes += content.bytes;
  draft.change({
    type: "version",
    namespace,
    name,
    version: version.version,
    hash: version.hash,
  });
  const next = revised(draft, row);
  next.latestVersion = version.version;
  next.latestHash = version.hash;
  next.versions = row.versions - pruned + 1;
  next.pruneFrom = pruneFrom;
  return { row: next, version };
}

function removeVersion(draft: Draft, row: ConfigRow, version: VersionRow): void {
  draft.delete(versionKey(row.namespace, row.name, version.version));
  draft.delete(textKey(row.namespace, row.name, version.version));
  draft.meta.bytes -= version.bytes;
}

/** Makes place for one more version: the oldest that nothing in force names go. */
function pruneVersions(
  draft: Draft,
  row: ConfigRow,
): { readonly pruned: number; readonly pruneFrom: number } {
  const max = draft.quota("versionsPerConfig");
  let pruneFrom = row.pruneFrom ?? 1;
  let excess = row.versions + 1 - max;
  if (excess <= 0) return { pruned: 0, pruneFrom };
  const doomed: VersionRow[] = [];
  // By number and not as a range: versions are nearly dense, and what was pruned lately would have to be passed again.
  for (; excess > 0 && pruneFrom <= row.latestVersion; pruneFrom++) {
    const version = versionOf(draft, row, pruneFrom);
    if (version === undefined || isReleased(row, pruneFrom)) continue;
    doomed.push(version);
    excess -= 1;
  }
  // A lowered quota leaves many at once; those that a release needs may stay above it, but no new one comes on top.
  if (doomed.length === 0)
    refuse(
      "quota-exceeded",
      `Release fewer versions at once: ${max} are kept of each config and all of them are in force`,
    );
  for (const version of doomed) removeVersion(draft, row, version);
  return { pruned: doomed.length, pruneFrom };
}

function createVersion(
  draft: Draft,
  action: Of<"version.create">,
  by: string,
): Done<"version.create"> {
  const before = existing(draft, action);
  guardChecked(before, action);
  const { row, version } = addVersion(draft, before, {
    content: action.content,
    message: action.message ?? "",
    by,
  });
  if (row !== before) kept(draft, row);
  return { created: row !== before, result: { config: configInfo(row), version } };
}

function deleteVersions(draft: Draft, action: Of<"version.delete">): Done<"version.delete"> {
  const before = existing(draft, action);
  const { kind } = draft.actor;
  if (
    draft.semantics >= 2 &&
    kind !== "admin" &&
    kind !== "root" &&
    isProtected(draft, action.namespace)
  )
    refuse(
      "protected",
      `Use an admin key: namespace ${action.namespace} is protected, and deleted versions do not come back`,
    );
  if (action.versions.length === 0) refuse("invalid", "Name at least one version to delete");
  const deleted = [...new Set(action.versions)];
  for (const number of deleted) {
    const version = versionOf(draft, before, number);
    if (version === undefined)
      refuse("not-found", `Name versions that exist: there is no version ${number}`);
    if (isReleased(before, number))
      refuse("in-use", `Release another version first: ${number} is in release ${before.release}`);
    removeVersion(draft, before, version);
    draft.change({
      type: "version-delete",
      namespace: before.namespace,
      name: before.name,
      version: number,
      hash: version.hash,
    });
  }
  const row = changed(draft, before, {
    versions: before.versions - deleted.length,
    // Without the latest there is nothing to compare new content with; its number is not given again.
    latestHash: deleted.includes(before.latestVersion) ? null : before.latestHash,
  });
  return { created: false, result: { config: configInfo(row), deleted } };
}

// --- releases ----------------------------------------------------------------------------------------------------------

interface Released {
  readonly row: ConfigRow;
  readonly release: ReleaseRow;
}

/**
 * @param released the version that is the default
 * @param next a copy of the row that this command may change
 */
function addRelease(
  draft: Draft,
  row: ConfigRow,
  content: Pick<ReleaseRow, "rules" | "default" | "message" | "by" | "rollbackOf">,
  released: VersionRow | undefined = content.default === null
    ? undefined
    : versionOf(draft, row, content.default),
  next: Writable<ConfigRow> = revised(draft, row),
): Released {
  const { namespace, name } = row;
  const release: ReleaseRow = {
    release: row.release + 1,
    rules: content.rules,
    default: content.default,
    message: content.message,
    at: draft.at,
    revision: draft.revision,
    by: content.by,
    rollbackOf: content.rollbackOf,
  };
  draft.add(releaseKey(namespace, name, release.release), release);
  const oldest = release.release - releasesKept;
  if (oldest >= 1) draft.delete(releaseKey(namespace, name, oldest));
  const change = { type: "release", namespace, name, release: release.release } as const;
  draft.change(
    released === undefined ? change : { ...change, version: released.version, hash: released.hash },
  );
  // What was in force until now may be pruned from here on.
  let pruneFrom = row.pruneFrom ?? 1;
  const pruneAlso = (version: number): void => {
    if (!isReleased(content, version)) pruneFrom = Math.min(pruneFrom, version);
  };
  if (row.default !== null) pruneAlso(row.default);
  for (const { version } of row.rules) pruneAlso(version);
  const { rules } = release;
  const { judgedAt, dueAt } = judgment(draft, row, rules);
  next.release = release.release;
  next.rules = rules;
  next.default = release.default;
  next.pruneFrom = pruneFrom;
  next.judgedAt = judgedAt;
  next.dueAt = dueAt;
  return { row: kept(draft, next), release };
}

function requireVersion(draft: Draft, row: ConfigRow, version: number, of: string): void {
  if (versionOf(draft, row, version) === undefined)
    refuse("conflict", `Name versions that exist: ${of} names version ${version}, which does not`);
}

/**
 * Gives every rollout its algorithm and, if it has none, a salt: that of the rule with its id in force, so that an edit
 * moves nobody, else a new one, so that the same clients are not always the first.
 */
function salted(draft: Draft, row: ConfigRow, rules: readonly ReleaseRule[]): ReleaseRule[] {
  return rules.map((rule) => {
    if (rule.rollout === undefined) return rule;
    const before = row.rules.find((one) => one.id === rule.id)?.rollout?.salt;
    return {
      ...rule,
      rollout: {
        ...rule.rollout,
        salt: rule.rollout.salt ?? before ?? `${draft.revision}.${rule.id}`,
        algorithm: rule.rollout.algorithm ?? "murmur3-100k",
      },
    };
  });
}

function putRelease(draft: Draft, action: Of<"release.put">, by: string): Done<"release.put"> {
  const before = existing(draft, action);
  const rulesMax = draft.quota("rulesPerRelease");
  if (action.rules.length > rulesMax)
    refuse("quota-exceeded", `Give at most ${rulesMax} rules: there are ${action.rules.length}`);
  const ids = new Set(action.rules.map((rule) => rule.id));
  if (ids.size < action.rules.length) refuse("invalid", "Give each rule of the release its own id");
  if (action.default !== null) requireVersion(draft, before, action.default, "the default");
  for (const rule of action.rules) requireVersion(draft, before, rule.version, `rule ${rule.id}`);
  const { row, release } = addRelease(draft, before, {
    rules: salted(draft, before, action.rules),
    default: action.default,
    message: action.message ?? "",
    by,
    rollbackOf: null,
  });
  return { created: true, result: { config: configInfo(row), release } };
}

/** A version and its release as default in one; nothing changes when that content is the default already. */
function publish(draft: Draft, action: Of<"publish">, by: string): Done<"publish"> {
  const before = existing(draft, action);
  guardChecked(before, action);
  const message = action.message ?? "";
  const { row, version } = addVersion(draft, before, { content: action.content, message, by });
  const inForce = releaseOf(draft, row, row.release);
  if (inForce !== undefined && inForce.default === version.version)
    return { created: false, result: { config: configInfo(row), version, release: inForce } };
  const released = addRelease(
    draft,
    row,
    { rules: row.rules, default: version.version, message, by, rollbackOf: null },
    version,
    row === before ? revised(draft, row) : row,
  );
  return {
    created: true,
    result: { config: configInfo(released.row), version, release: released.release },
  };
}

/** A new release equal to an older one. Without `toRelease` that is the one before, so twice is back again. */
function rollback(draft: Draft, action: Of<"rollback">, by: string): Done<"rollback"> {
  const before = existing(draft, action);
  if (before.release === 0) refuse("conflict", "Release a version first: nothing is released yet");
  if (action.toRelease === undefined && before.release === 1)
    refuse("conflict", "Release something else first: the first release has none before it");
  const number = action.toRelease ?? before.release - 1;
  if (number === before.release)
    refuse("conflict", `Choose an earlier release: ${number} is the one in force`);
  const target = releaseOf(draft, before, number);
  if (target === undefined)
    refuse(
      action.toRelease === undefined ? "conflict" : "not-found",
      `Choose a release that is kept: there is no release ${number} before ${before.release}`,
    );
  if (target.default !== null)
    requireVersion(draft, before, target.default, `the default of release ${number}`);
  for (const rule of target.rules)
    requireVersion(draft, before, rule.version, `rule ${rule.id} of release ${number}`);
  const { row, release } = addRelease(draft, before, {
    rules: target.rules,
    default: target.default,
    message: action.message ?? "",
    by,
    rollbackOf: number,
  });
  return { created: true, result: { config: configInfo(row), release } };
}

// --- configs -----------------------------------------------------------------------------------------------------------

function putConfig(draft: Draft, action: Of<"config.put">, by: string): Done<"config.put"> {
  const row = liveOf(draft, action);
  guardPrecondition(draft, action, row);
  return row === undefined ? createConfig(draft, action, by) : changeConfig(draft, action, row);
}

function createConfig(draft: Draft, action: Of<"config.put">, by: string): Done<"config.put"> {
  const { namespace, name } = action;
  guardConfigsQuota(draft);
  // A deleted config gives up its name here, and everything it had: the new one must not inherit its history.
  const deleted = rowOf(draft, action);
  if (deleted !== undefined) purgeConfig(draft, deleted);
  draft.ensureNamespace(namespace);
  const created: ConfigRow = {
    namespace,
    name,
    uid: `${draft.meta.epoch}-${draft.revision}-${draft.changes.length}`,
    format: action.format ?? defaultFormat,
    description: action.description ?? "",
    tags: action.tags ?? {},
    schema: action.schema ?? null,
    ...(action.secret === true && { secret: true }),
    revision: draft.revision,
    createdAt: draft.at,
    updatedAt: draft.at,
    latestVersion: 0,
    latestHash: null,
    versions: 0,
    release: 0,
    rules: [],
    default: null,
    deletedAt: null,
  };
  draft.meta.configs++;
  draft.put(configKey(namespace, name), created);
  draft.change({ type: "put", namespace, name });
  if (action.content === undefined)
    return {
      created: true,
      result: { config: configInfo(created), version: null, release: null },
    };
  const added = addVersion(draft, created, { content: action.content, message: "", by });
  const { row, release } = addRelease(
    draft,
    added.row,
    { rules: [], default: added.version.version, message: "", by, rollbackOf: null },
    added.version,
  );
  return {
    created: true,
    result: { config: configInfo(row), version: added.version, release },
  };
}

function guardConfigsQuota(draft: Draft): void {
  const max = draft.quota("configs");
  if (draft.meta.configs >= max)
    refuse("quota-exceeded", `Delete configs that are not needed: there are ${max} already`);
}

function changeConfig(draft: Draft, action: Of<"config.put">, row: ConfigRow): Done<"config.put"> {
  // A creation that is sent twice is answered; other content would be lost here without a word.
  if (action.content !== undefined && action.content.hash !== row.latestHash)
    refuse(
      "conflict",
      `Publish the content instead: ${row.namespace}/${row.name} exists with other content`,
    );
  if (action.secret !== undefined && action.secret !== (row.secret === true))
    refuse(
      "conflict",
      `Create another config instead: ${row.namespace}/${row.name} ${row.secret === true ? "is secret" : "is not secret"}, and stays so`,
    );
  const change: { -readonly [K in keyof ConfigRow]?: ConfigRow[K] } = {};
  if (action.format !== undefined && action.format !== row.format) {
    if (row.versions > 0)
      refuse("conflict", `Keep the format ${row.format}: there are versions in it`);
    change.format = action.format;
  }
  if (action.description !== undefined && action.description !== row.description)
    change.description = action.description;
  if (action.tags !== undefined && !sameTags(action.tags, row.tags)) change.tags = action.tags;
  if (action.schema !== undefined && (action.schema?.hash ?? null) !== (row.schema?.hash ?? null))
    change.schema = action.schema;
  const isSame = Object.keys(change).length === 0;
  if (!isSame) draft.change({ type: "put", namespace: row.namespace, name: row.name });
  const next = isSame ? row : changed(draft, row, change);
  return { created: false, result: { config: configInfo(next), version: null, release: null } };
}

function sameTags(a: ConfigRow["tags"], b: ConfigRow["tags"]): boolean {
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length &&
    names.every((name) => Object.hasOwn(b, name) && a[name] === b[name])
  );
}

function deleteConfig(draft: Draft, action: Of<"config.delete">): Done<"config.delete"> {
  const before = existing(draft, action);
  const { namespace, name } = before;
  if (isProtected(draft, namespace))
    refuse("protected", `Take the protection off namespace ${namespace} first: it forbids deletes`);
  const row = changed(draft, judged(draft, { ...before, deletedAt: draft.at }), {});
  draft.meta.configs--;
  draft.meta.deleted++;
  draft.put(deletedKey(draft.revision, namespace, name), true);
  draft.change({ type: "delete", namespace, name });
  if (draft.meta.deleted > deletedKept) {
    for (const [key] of draft.range(under("del"))) {
      const [, , oldNamespace, oldName] = key.split("/") as [string, string, string, string];
      const old = draft.get<ConfigRow>(configKey(oldNamespace, oldName));
      if (old !== undefined) purgeConfig(draft, old);
      break;
    }
  }
  return { created: false, result: { config: configInfo(row) } };
}

function undeleteConfig(draft: Draft, action: Of<"config.undelete">): Done<"config.undelete"> {
  const before = rowOf(draft, action);
  if (before === undefined)
    refuse(
      "not-found",
      `Create the config anew: no deleted ${action.namespace}/${action.name} is kept`,
    );
  guardPrecondition(draft, action, before);
  if (before.deletedAt === null) return { created: false, result: { config: configInfo(before) } };
  guardConfigsQuota(draft);
  draft.delete(deletedKey(before.revision, before.namespace, before.name));
  draft.meta.configs++;
  draft.meta.deleted--;
  const row = changed(draft, judged(draft, { ...before, deletedAt: null }), {});
  draft.change({ type: "undelete", namespace: row.namespace, name: row.name });
  return { created: false, result: { config: configInfo(row) } };
}

/** Removes a deleted config with all it has. Bounded by the quota of versions and the releases kept. */
function purgeConfig(draft: Draft, row: ConfigRow): void {
  const { namespace, name } = row;
  for (const [, version] of draft.range<VersionRow>(under(`ver/${namespace}/${name}`)))
    removeVersion(draft, row, version);
  for (const [key] of draft.range(under(`rel/${namespace}/${name}`))) draft.delete(key);
  draft.delete(configKey(namespace, name));
  draft.delete(deletedKey(row.revision, namespace, name));
  draft.meta.deleted--;
}

// --- namespaces ----------------------------------------------------------------------------------------------------------

function putNamespace(draft: Draft, action: Of<"namespace.put">): Done<"namespace.put"> {
  const { namespace } = action;
  const before = draft.get<NamespaceRow>(namespaceKey(namespace));
  guardPrecondition(draft, action, before);
  const base = action.extends === undefined ? (before?.extends ?? null) : action.extends;
  const protects = action.protected ?? before?.protected ?? false;
  if (before !== undefined && before.extends === base && before.protected === protects)
    return { created: false, result: { namespace: before } };
  if (base !== null && base !== before?.extends) guardExtends(draft, namespace, base);
  const row: NamespaceRow = {
    namespace,
    extends: base,
    protected: protects,
    revision: draft.revision,
    createdAt: before?.createdAt ?? draft.at,
  };
  if (before === undefined) draft.addNamespace(row);
  else draft.put(namespaceKey(namespace), row);
  draft.change({ type: "namespace", namespace, name: "" });
  return { created: before === undefined, result: { namespace: row } };
}

/** The base need not exist yet: manifests may come in any order, and what is not there simply has no configs. */
function guardExtends(draft: Draft, namespace: string, base: string): void {
  if (!isName(base)) refuse("invalid", "Name a namespace within its grammar to extend");
  let above = 0;
  for (let at: string | null = base; at !== null; above++) {
    if (at === namespace)
      refuse("conflict", `Extend another namespace: ${base} extends ${namespace} already`);
    if (above > extendsDepthMax) break;
    at = draft.get<NamespaceRow>(namespaceKey(at))?.extends ?? null;
  }
  const depth = above + depthBelow(draft, namespace);
  if (depth > extendsDepthMax)
    refuse(
      "invalid",
      `Extend fewer namespaces in a row: at most ${extendsDepthMax} are looked at, and here are ${depth}`,
    );
}

/** How many namespaces extend this one in a row. */
function depthBelow(draft: Draft, namespace: string): number {
  const children = new Map<string, string[]>();
  for (const [, row] of draft.range<NamespaceRow>(under("ns"))) {
    if (row.extends === null) continue;
    const list = children.get(row.extends);
    if (list === undefined) children.set(row.extends, [row.namespace]);
    else list.push(row.namespace);
  }
  let depth = 0;
  // Bounded by the depth allowed: what is deeper is refused anyway.
  for (
    let level = children.get(namespace) ?? [];
    level.length > 0 && depth <= extendsDepthMax;
    depth++
  )
    level = level.flatMap((child) => children.get(child) ?? []);
  return depth;
}
