/**
 * The replicated state machine of a tenant: `apply` takes the state and a command and gives an outcome, the same on
 * every replica. No clock, no chance, no parsing of content: what needs those was done before the command was proposed.
 *
 * What must stay true:
 * - a refused command changes nothing at all; an accepted one that changed something raises the revision by one, and
 *   history has a row for every revision from `historyFrom` on;
 * - time never goes back within a tenant; everything that expires does so by the time of commands;
 * - a command with an idempotency key has one outcome for as long as its record is kept.
 */
import { unreachable } from "../lib/assert.ts";
import { auditGenesis, auditHash } from "../model/audit.ts";
import { contentHash } from "../model/content.ts";
import {
  isIdempotencyKey,
  isName,
  systemTenant,
  checkKeyId,
  isTenantName,
} from "../model/names.ts";
import type {
  Action,
  Actor,
  Command,
  ConfigAction,
  Outcome,
  TransactionCondition,
} from "./command.ts";
import { applyConfigAction, isConfigAction } from "./configs.ts";
import { applySystemAction, isSystemAction } from "./directory.ts";
import { Draft, emptyMeta, refuse, Refusal, tagOf } from "./draft.ts";
import {
  auditKey,
  configKey,
  historyKey,
  idempotencyKey,
  idempotencyQueueKey,
  keyKey,
  metaKey,
  textKey,
  versionKey,
} from "./keys.ts";
import { earliestDue, passSchedules } from "./schedules.ts";
import { recoverTenant } from "./recovery.ts";
import { beginRestore, finishRestore, restoreRows } from "./restore.ts";
import { keyInfo } from "./results.ts";
import type { ResultOf } from "./results.ts";
import { defaultQuotas, sameQuotas } from "./rows.ts";
import type {
  AuditRow,
  ConfigRow,
  HistoryRow,
  IdempotencyRow,
  KeyRow,
  NewKey,
  StateTransaction,
  StateView,
  TenantMeta,
  VersionRow,
} from "./rows.ts";

export const historyMax = 10_000;
/** Of records without a chain. */
export const auditsMax = 50_000;
const dayMs = 86_400_000;
export const idempotencyMax = 10_000;
export const idempotencyAgeMs = 24 * 3_600_000;
export const actionsPerTransactionMax = 500;
/** Over which watchers may be told of a commit. */
export const spreadMsMax = 3_600_000;
/** Old rows dropped per command: each adds at most a few, so this catches up with a lowered bound too. */
const dropsPerCommandMax = 1_000;
/** Expired idempotency records dropped per command. */
const expiredPerCommandMax = 16;

export interface Applied {
  readonly outcome: Outcome;
  /** What watchers are told; null when nothing changed. */
  readonly commit: HistoryRow | null;
}

/** Applies one command. Writes go to `state` only if the outcome is ok (all or nothing). */
export function apply(state: StateTransaction, command: Command): Applied {
  const meta = state.get<TenantMeta>(metaKey) ?? emptyMeta;
  const draft = new Draft(state, meta, command);
  try {
    return judge(draft, command);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const { code, detail, place } = error;
    const refused: Outcome = { ok: false, code, detail, revision: meta.revision };
    return { outcome: place === null ? refused : { ...refused, place }, commit: null };
  }
}

/** What `apply` would answer, without changing anything. */
export function dryRun(view: StateView, command: Command): Outcome {
  const state: StateTransaction = {
    get: (key) => view.get(key),
    range: (range) => view.range(range),
    put: () => {},
    add: () => {},
    delete: () => {},
  };
  return apply(state, command).outcome;
}

function judge(draft: Draft, command: Command): Applied {
  const { actor, action, idempotency, spreadMs = 0 } = command;
  if (!Number.isSafeInteger(spreadMs) || spreadMs < 0 || spreadMs > spreadMsMax)
    refuse("invalid", `Spread it over at most ${spreadMsMax} ms`);
  guardRoom(draft, action);
  authorize(draft, actor, action);
  if (idempotency !== undefined) {
    const first = firstOutcome(draft, idempotency);
    if (first !== null) return { outcome: first, commit: null };
  }
  const { created, result } = perform(draft, action, actor.keyId);
  if (draft.dueMoved) draft.meta.dueAt = earliestDue(draft);
  const commit = draft.changes.length === 0 ? null : recordCommit(draft, command);
  const revision = draft.meta.revision;
  if (idempotency !== undefined) recordOutcome(draft, idempotency, { revision, created, result });
  if (commit !== null || draft.isTouched || idempotency !== undefined) {
    draft.meta.at = draft.at;
    draft.flush();
  }
  return { outcome: { ok: true, revision, epoch: draft.meta.epoch, created, result }, commit };
}

// --- who may do what -----------------------------------------------------------------------------------------------------

const whileRestoring: ReadonlySet<Action["op"]> = new Set([
  "restore.rows",
  "restore.finish",
  "tenant.quotas",
  "tenant.recover",
]);

/** Which ops a tenant's state takes at all: the directory's are only for `_system`, which takes no configs. */
function guardRoom(draft: Draft, action: Action): void {
  const { tenant } = draft.meta;
  if (action.op === "tenant.init") return;
  if (tenant === "") refuse("not-found", "Initialise the tenant first: it is empty");
  if (draft.meta.restore !== undefined && !whileRestoring.has(action.op))
    refuse("restoring", `Wait for the end of its restore: ${tenant} takes nothing else until then`);
  if (isSystemAction(action) !== (tenant === systemTenant))
    refuse("invalid", `Send ${action.op} to another tenant: ${tenant} does not take it`);
}

function authorize(draft: Draft, actor: Actor, action: Action): void {
  if (actor.kind === "system" || actor.kind === "root") return;
  const key = rightsOf(draft, actor);
  if (isConfigAction(action)) return guardConfigAction(key, action);
  if (action.op === "secrets.rewrap") {
    guardKind(key, "admin", action.op);
    return guardKeyScope(key, null);
  }
  if (action.op === "transaction") {
    for (const condition of action.if) guardScope(key, condition.namespace);
    for (const one of action.then) guardConfigAction(key, one);
  } else if (action.op === "key.create") {
    guardKind(key, "admin", action.op);
    guardKeyScope(key, action.key.namespaces ?? null);
  } else if (action.op === "key.delete") {
    guardKind(key, "admin", action.op);
    guardKeyScope(key, keyOf(draft, action.id)?.namespaces ?? null);
  } else if (action.op === "key.rotate") {
    guardKind(key, "admin", action.op);
    guardKeyScope(key, keyOf(draft, action.id)?.namespaces ?? null);
  } else refuse("forbidden", `Use a root key: a key of kind ${key.kind} may not do ${action.op}`);
}

/** What of a key decides what it may do. */
type Rights = Pick<KeyRow, "kind" | "namespaces">;

function rightsOf(draft: Draft, actor: Actor): Rights {
  if (actor.issuer !== undefined)
    return { kind: actor.kind as KeyRow["kind"], namespaces: actor.namespaces ?? null };
  const key = keyOf(draft, actor.keyId);
  if (key === undefined || key.kind !== actor.kind)
    refuse("unauthorized", "Use a key that exists: this one was deleted");
  if (key.expiresAt !== null && key.expiresAt <= draft.at)
    refuse("unauthorized", "Use a key that is valid: this one has expired");
  return key;
}

/** Ids that no key can have never get as far as the store. */
function keyOf(draft: Draft, id: string): KeyRow | undefined {
  return checkKeyId(id) === null ? draft.get<KeyRow>(keyKey(id)) : undefined;
}

function guardConfigAction(key: Rights, action: ConfigAction): void {
  // Options of a namespace decide what its keys can read and delete, so they are not for those keys.
  guardKind(key, action.op === "namespace.put" ? "admin" : "write", action.op);
  guardScope(key, action.namespace);
  if (action.op === "namespace.put" && typeof action.extends === "string")
    guardScope(key, action.extends);
}

function guardKind(key: Rights, least: "admin" | "write", op: string): void {
  if (key.kind !== "admin" && key.kind !== least)
    refuse("forbidden", `Use a key of kind ${least}: one of kind ${key.kind} may not do ${op}`);
}

function guardScope(key: Rights, namespace: string): void {
  if (key.namespaces !== null && !key.namespaces.includes(namespace))
    refuse("forbidden", `Use a key for namespace ${namespace}: this one is limited to others`);
}

/** A limited admin key must not make, or take away, keys that reach further than itself. */
function guardKeyScope(key: Rights, namespaces: readonly string[] | null): void {
  if (key.namespaces === null) return;
  if (namespaces === null)
    refuse("forbidden", "Use a key for all namespaces: this one is limited to some");
  for (const namespace of namespaces) guardScope(key, namespace);
}

// --- what is done ----------------------------------------------------------------------------------------------------------

interface Done {
  readonly created: boolean;
  readonly result: unknown;
}

function perform(draft: Draft, action: Action, by: string): Done {
  if (isConfigAction(action)) return applyConfigAction(draft, action, by);
  if (isSystemAction(action)) return applySystemAction(draft, action);
  switch (action.op) {
    case "transaction":
      return transact(draft, action.if, action.then, by);
    case "schedule.pass":
      return passSchedules(draft);
    case "key.create":
      return createKey(draft, action.key);
    case "secrets.rewrap":
      return rewrapSecrets(draft, action);
    case "key.delete":
      return deleteKey(draft, action.id);
    case "key.rotate":
      return rotateKey(draft, action);
    case "usage.record":
      return recordUsage(draft, action);
    case "tenant.init":
      return initialise(draft, action);
    case "restore.rows":
      return restoreRows(draft, action);
    case "restore.finish": {
      const { keys, ...done } = finishRestore(draft, action);
      for (const key of keys) addKey(draft, key);
      return done;
    }
    case "tenant.quotas":
      return setQuotas(draft, action);
    case "tenant.recover":
      return recoverTenant(draft, action);
    default:
      return unreachable(action);
  }
}

/** Conditions are judged before any action; each action sees those before it. */
function transact(
  draft: Draft,
  conditions: readonly TransactionCondition[],
  actions: readonly ConfigAction[],
  by: string,
): { created: boolean; result: ResultOf<"transaction"> } {
  if (actions.length === 0 || actions.length + conditions.length > actionsPerTransactionMax)
    refuse(
      "invalid",
      `Give 1 to ${actionsPerTransactionMax} conditions and actions in all: ` +
        `there are ${conditions.length} and ${actions.length}`,
    );
  conditions.forEach((condition, index) =>
    placed("if", index, () => guardCondition(draft, condition)),
  );
  const results = actions.map((action, index) =>
    placed("then", index, () => applyConfigAction(draft, action, by)),
  );
  return { created: results.some(({ created }) => created), result: { results } };
}

function placed<T>(list: "if" | "then", index: number, run: () => T): T {
  try {
    return run();
  } catch (error) {
    if (error instanceof Refusal) error.place = { list, index };
    throw error;
  }
}

function guardCondition(draft: Draft, condition: TransactionCondition): void {
  const { namespace, name, revision, tag, absent } = condition;
  if (!isName(namespace) || !isName(name))
    refuse("invalid", "Name namespace and config within their grammar");
  const row = draft.get<ConfigRow>(configKey(namespace, name));
  const live = row === undefined || row.deletedAt !== null ? undefined : row;
  if (absent === true && live !== undefined)
    refuse("precondition-failed", `Read ${namespace}/${name} again: it exists`);
  if (revision === undefined && tag === undefined) return;
  if (live === undefined)
    refuse("precondition-failed", `Read ${namespace}/${name} again: it does not exist`);
  const { epoch, isContinued } = draft.meta;
  const isOther =
    (tag !== undefined && tag !== tagOf(epoch, live.revision)) ||
    (revision !== undefined && revision !== live.revision);
  if (isOther)
    refuse(
      "precondition-failed",
      `Read ${namespace}/${name} again: it is at revision ${live.revision}`,
    );
  if (revision !== undefined && isContinued === true)
    refuse(
      "precondition-failed",
      `Read ${namespace}/${name} again and give its etag: the tenant was restored or recovered, and a revision of before may be of another change`,
    );
}

function createKey(draft: Draft, key: NewKey): { created: true; result: ResultOf<"key.create"> } {
  guardNewKey(draft, key.id);
  if (key.expiresAt !== undefined && key.expiresAt <= draft.at)
    refuse("invalid", "Let the key expire in the future: the time given has passed");
  if (key.namespaces?.length === 0)
    refuse("invalid", "Name at least one namespace, or none for all of them");
  return { created: true, result: { key: keyInfo(addKey(draft, key)) } };
}

function guardNewKey(draft: Draft, id: string): void {
  const idError = checkKeyId(id);
  if (idError !== null) refuse("invalid", idError);
  if (draft.get(keyKey(id)) !== undefined)
    refuse("already-exists", `Make a key with another id: ${id} exists`);
  const max = draft.quota("keys");
  if (draft.meta.keys >= max)
    refuse("quota-exceeded", `Delete keys that are not needed: there are ${max} already`);
}

/** The new key reaches as far as the old one, which expires when the overlap ends, or earlier if it would anyway. */
function rotateKey(
  draft: Draft,
  action: Extract<Action, { op: "key.rotate" }>,
): { created: true; result: ResultOf<"key.rotate"> } {
  const old = keyOf(draft, action.id);
  if (old === undefined) refuse("not-found", "Name a key that exists: there is none with this id");
  if (old.expiresAt !== null && old.expiresAt <= draft.at)
    refuse("conflict", "Create a key instead: this one has expired");
  if (old.replacedBy !== undefined)
    refuse("conflict", `Rotate ${old.replacedBy} instead: it takes the place of this one already`);
  if (!Number.isSafeInteger(action.overlapMs) || action.overlapMs < 0)
    refuse("invalid", "Give the overlap as a whole number of milliseconds");
  const { expiresAt: end, kind, namespaces, description } = old;
  let replaced: KeyRow = old;
  if (action.overlapMs === 0) deleteKey(draft, old.id);
  guardNewKey(draft, action.key.id);
  const key = addKey(draft, {
    id: action.key.id,
    hash: action.key.hash,
    kind,
    ...(namespaces !== null && { namespaces }),
    ...(end !== null && { expiresAt: end }),
    ...(old.scopes !== undefined && { scopes: old.scopes }),
    description,
  });
  if (action.overlapMs > 0) {
    const expiresAt = Math.min(end ?? Number.POSITIVE_INFINITY, draft.at + action.overlapMs);
    replaced = { ...old, expiresAt, replacedBy: key.id };
    draft.put(keyKey(old.id), replaced);
    draft.change({ type: "key", namespace: "", name: old.id });
  }
  draft.audits.push({ action: "key.rotate", target: old.id, key: keyKey(old.id) });
  return { created: true, result: { key: keyInfo(key), replaced: keyInfo(replaced) } };
}

/** No revision: nothing that anybody can read has changed. */
function rewrapSecrets(
  draft: Draft,
  { items }: Extract<Action, { op: "secrets.rewrap" }>,
): { created: false; result: ResultOf<"secrets.rewrap"> } {
  let rewrapped = 0;
  for (const { namespace, name, version, hash, text } of items) {
    if (!isName(namespace) || !isName(name) || !Number.isSafeInteger(version)) continue;
    const row = draft.get<VersionRow>(versionKey(namespace, name, version));
    if (row?.secret !== true || row.hash !== hash) continue;
    draft.put(textKey(namespace, name, version), text);
    draft.isTouched = true;
    rewrapped++;
  }
  return { created: false, result: { rewrapped } };
}

/** Keys a node tells of at once. */
export const usageKeysMax = 1_000;

function recordUsage(
  draft: Draft,
  { requests, limited, watchBytes, watchesHeld, keys }: Extract<Action, { op: "usage.record" }>,
): { created: false; result: ResultOf<"usage.record"> } {
  const counts = [requests, limited, watchBytes ?? 0, watchesHeld ?? 0];
  if (counts.some((n) => !Number.isSafeInteger(n) || n < 0) || keys.length > usageKeysMax)
    refuse("invalid", "Give whole numbers, and not too many keys at once");
  const { usage } = draft.meta;
  draft.meta.usage = {
    requests: (usage?.requests ?? 0) + requests,
    limited: (usage?.limited ?? 0) + limited,
    ...added("watchBytes", usage?.watchBytes, watchBytes),
    ...added("watchesHeld", usage?.watchesHeld, watchesHeld),
  };
  for (const { id, at } of keys) {
    const row = keyOf(draft, id);
    // Deleted meanwhile.
    if (row === undefined || at <= (row.lastUsedAt ?? 0)) continue;
    draft.put(keyKey(id), { ...row, lastUsedAt: Math.min(at, draft.at) });
  }
  draft.isTouched = true;
  return { created: false, result: { keys: keys.length } };
}

/** Absent until something was told, as in rows from before there was such a count. */
function added<Name extends string>(
  name: Name,
  before: number | undefined,
  told: number | undefined,
): { readonly [N in Name]?: number } {
  if (before === undefined && told === undefined) return {};
  return { [name]: (before ?? 0) + (told ?? 0) } as { readonly [N in Name]?: number };
}

function addKey(draft: Draft, key: NewKey): KeyRow {
  const row: KeyRow = {
    id: key.id,
    kind: key.kind,
    hash: key.hash,
    namespaces: key.namespaces ?? null,
    expiresAt: key.expiresAt ?? null,
    description: key.description ?? "",
    createdAt: draft.at,
    ...(key.scopes !== undefined && key.scopes.length > 0 && { scopes: key.scopes }),
  };
  draft.meta.keys++;
  draft.put(keyKey(key.id), row);
  draft.change({ type: "key", namespace: "", name: key.id });
  draft.audits.push({ action: "key.create", target: key.id, key: keyKey(key.id) });
  return row;
}

function deleteKey(draft: Draft, id: string): { created: false; result: ResultOf<"key.delete"> } {
  if (keyOf(draft, id) === undefined)
    refuse("not-found", "Name a key that exists: there is none with this id");
  draft.meta.keys--;
  draft.delete(keyKey(id));
  draft.change({ type: "key-delete", namespace: "", name: id });
  draft.audits.push({ action: "key.delete", target: id, key: keyKey(id) });
  return { created: false, result: { id } };
}

/** The first leader proposes it, and so may its successor: the second time changes nothing. */
function initialise(
  draft: Draft,
  action: Extract<Action, { op: "tenant.init" }>,
): { created: boolean; result: ResultOf<"tenant.init"> } {
  const { tenant } = action;
  if (tenant !== systemTenant && !isTenantName(tenant))
    refuse("invalid", "Name the tenant within its grammar");
  const { meta } = draft;
  if (meta.tenant !== "") {
    if (meta.tenant !== tenant)
      refuse("conflict", `Send this to the group of ${tenant}: this one is of ${meta.tenant}`);
    return { created: false, result: { tenant, epoch: meta.epoch } };
  }
  meta.tenant = tenant;
  // Of its own for each history: a tenant made again under its name, or on a wiped disk, counts its revisions anew, and
  // a cursor of before must not be taken for one of now.
  meta.epoch = action.epoch ?? Math.max(1, Math.floor(draft.at / 1_000));
  meta.quotas = action.quotas;
  if (action.restore !== undefined) {
    for (const { id } of action.keys)
      if (checkKeyId(id) !== null) refuse("invalid", checkKeyId(id) ?? "");
    beginRestore(draft, action.restore, action.keys);
    return { created: true, result: { tenant, epoch: meta.epoch } };
  }
  if (tenant === systemTenant) {
    meta.nextGroup = 2;
    meta.tenants = 0;
  }
  draft.change({ type: "tenant", namespace: "", name: tenant });
  draft.audits.push({ action: "tenant.init", target: tenant });
  for (const key of action.keys) {
    const error = checkKeyId(key.id);
    if (error !== null) refuse("invalid", error);
    addKey(draft, key);
  }
  return { created: true, result: { tenant, epoch: meta.epoch } };
}

function setQuotas(
  draft: Draft,
  { quotas, revision }: Extract<Action, { op: "tenant.quotas" }>,
): { created: false; result: ResultOf<"tenant.quotas"> } {
  const inForce = draft.meta.quotasRevision ?? 0;
  const isNews = revision === undefined || revision > inForce;
  if (isNews && !sameQuotas(quotas, draft.meta.quotas)) {
    draft.meta.quotas = quotas;
    if (revision !== undefined) draft.meta.quotasRevision = revision;
    draft.change({ type: "tenant", namespace: "", name: draft.meta.tenant });
    draft.audits.push({ action: "tenant.quotas", target: draft.meta.tenant });
  }
  return { created: false, result: { quotas: { ...defaultQuotas, ...draft.meta.quotas } } };
}

// --- what is kept of it -------------------------------------------------------------------------------------------------------

function recordCommit(draft: Draft, { actor, spreadMs = 0 }: Command): HistoryRow {
  const { meta, revision, at } = draft;
  meta.revision = revision;
  const { changes } = draft;
  const commit: HistoryRow = { revision, at, ...(spreadMs > 0 && { spreadMs }), changes };
  draft.add(historyKey(revision), commit);
  for (let n = 0; revision - meta.historyFrom >= historyMax && n < dropsPerCommandMax; n++)
    draft.delete(historyKey(meta.historyFrom++));
  recordAudits(draft, actor);
  return commit;
}

function recordAudits(draft: Draft, actor: Actor): void {
  const { meta, revision, at } = draft;
  // Once there is a chain everything is in it, whatever an older node proposed.
  const isChained = draft.semantics >= 3 || meta.auditHead !== undefined;
  const { kind, keyId, requestId = null, address = null } = actor;
  for (const { action, target, key } of draft.audits) {
    const sequence = ++meta.audits;
    const by = { kind, keyId };
    if (isChained) {
      const hashOf = contentActions.has(action) ? latestHashOf : rowHash;
      const before = key === undefined ? null : hashOf(draft.before(key));
      const after = key === undefined ? null : hashOf(draft.get(key));
      const previous = meta.auditHead ?? auditGenesis;
      // Written out, here and below: spreading facts that both share costs more than all of the row.
      const row = {
        sequence,
        revision,
        at,
        actor: by,
        action,
        target,
        requestId,
        address,
        before,
        after,
        previous,
        hash: "",
      };
      row.hash = auditHash(previous, row);
      meta.auditHead = row.hash;
      draft.add(auditKey(sequence), row satisfies AuditRow);
    } else {
      const row = { sequence, revision, at, actor: by, action, target, requestId, address };
      draft.add(auditKey(sequence), row satisfies AuditRow);
      if (sequence > auditsMax) draft.delete(auditKey(sequence - auditsMax));
    }
  }
  if (isChained) dropAudits(draft);
}

/** The newest record is always kept: a tenant that slept for long must not begin anew. */
function dropAudits(draft: Draft): void {
  const { meta, at } = draft;
  const keptMax = Math.max(1, draft.quota("auditRecords"));
  const oldestAt = at - draft.quota("auditDays") * dayMs;
  let from = meta.auditFrom ?? Math.max(1, meta.audits - draft.audits.length - auditsMax + 1);
  for (let n = 0; from < meta.audits && n < dropsPerCommandMax; n++, from++) {
    const row = draft.get<AuditRow>(auditKey(from));
    if (row === undefined) continue;
    if (meta.audits - from < keptMax && row.at >= oldestAt) break;
    draft.delete(auditKey(from));
    if (row.hash !== undefined) meta.auditAnchor = { sequence: from, hash: row.hash };
  }
  meta.auditFrom = from;
}

/** The frequent ones: the hash of the content came with the command, and hashing costs more than all else here. */
const contentActions: ReadonlySet<string> = new Set<Action["op"]>(["publish", "version.create"]);

function latestHashOf(row: unknown): string | null {
  return (row as ConfigRow | undefined)?.latestHash ?? null;
}

/** Rows are JSON that every replica holds alike; of a schema, which may be large, its own hash stands for it. */
function rowHash(row: unknown): string | null {
  if (row === undefined) return null;
  const { schema } = row as Partial<ConfigRow>;
  const short = schema == null ? row : { ...(row as ConfigRow), schema: schema.hash };
  return contentHash(JSON.stringify(short));
}

function firstOutcome(
  draft: Draft,
  { key, fingerprint }: { key: string; fingerprint: string },
): Outcome | null {
  if (!isIdempotencyKey(key))
    refuse("invalid", "Give an idempotency key of 1 to 255 printable ASCII characters");
  const row = draft.get<IdempotencyRow>(idempotencyKey(key));
  if (row === undefined || isExpired(draft, row)) return null;
  if (row.fingerprint !== fingerprint)
    refuse(
      "idempotency-mismatch",
      `Use a new idempotency key for a new request: this one was used at revision ${row.revision}`,
    );
  const { revision, created, result } = row;
  // A restored answer is of this history: what was changed since has a later revision.
  return { ok: true, revision, epoch: draft.meta.epoch, created, result, replayed: true };
}

function isExpired(draft: Draft, row: IdempotencyRow): boolean {
  return row.at < draft.at - idempotencyAgeMs;
}

/** Kept also when nothing changed: the same request later must not do what it did not do the first time. */
function recordOutcome(
  draft: Draft,
  { key, fingerprint }: { key: string; fingerprint: string },
  outcome: { revision: number; created: boolean; result: unknown },
): void {
  const { meta } = draft;
  const sequence = meta.idempotencyTo++;
  const row: IdempotencyRow = { fingerprint, sequence, at: draft.at, ...outcome };
  draft.put(idempotencyKey(key), row);
  draft.add(idempotencyQueueKey(sequence), key);
  for (let n = 0; n < expiredPerCommandMax; n++) {
    const oldest = meta.idempotencyFrom;
    const oldestKey = draft.get<string>(idempotencyQueueKey(oldest));
    if (oldestKey === undefined) break;
    const record = draft.get<IdempotencyRow>(idempotencyKey(oldestKey));
    // The key may have been used again after its record expired: then the record has another place.
    const isOwn = record?.sequence === oldest;
    const isOver = meta.idempotencyTo - oldest > idempotencyMax;
    if (isOwn && !isOver && !isExpired(draft, record)) break;
    if (isOwn) draft.delete(idempotencyKey(oldestKey));
    draft.delete(idempotencyQueueKey(oldest));
    meta.idempotencyFrom++;
  }
}
