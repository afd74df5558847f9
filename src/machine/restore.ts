/**
 * A tenant's rows coming back from a backup, as a new incarnation of it. The first command says of which state they are
 * (`tenant.init` with `restore`), bounded ones bring the rows in order of their keys, and the last one makes it a tenant.
 * In between it takes nothing else, so nobody sees half a state.
 *
 * What must stay true: a part has effect once, whoever repeats it; at the end there are exactly the rows that the
 * backup's own counters tell of; the restored state has an epoch of its own, given by the directory.
 */
import { checkKeyId, isName } from "../model/names.ts";
import type { Action } from "./command.ts";
import { checkRestoredMeta, isSha256, restoredMeta } from "./directory.ts";
import { leaveFirstHistory, refuse } from "./draft.ts";
import type { Draft } from "./draft.ts";
import { padded } from "./keys.ts";
import type { ResultOf } from "./results.ts";
import type { NewKey, RestoreCounts, RestoreState } from "./rows.ts";

export const restoreRowsMax = 10_000;
/** The store's bound. */
const keyLengthMax = 1_978;

type Of<Op extends Action["op"]> = Extract<Action, { op: Op }>;

const noCounts: RestoreCounts = { configs: 0, deleted: 0, namespaces: 0, keys: 0, bytes: 0 };

/** The tenant begins as what it will be, but takes only rows. */
export function beginRestore(
  draft: Draft,
  restore: NonNullable<Of<"tenant.init">["restore"]>,
  keys: readonly NewKey[],
): void {
  const { source, meta } = restore;
  const wrong = checkRestoredMeta(meta);
  if (wrong !== null) refuse("invalid", wrong);
  Object.assign(draft.meta, restoredMeta(meta));
  // Time does not go back within a tenant, also not by way of another cluster.
  draft.at = Math.max(draft.at, draft.meta.at);
  leaveFirstHistory(draft);
  draft.meta.restore = { source, part: 0, rows: 0, last: "", counts: noCounts, keys };
  draft.isTouched = true;
}

function restoring(draft: Draft): RestoreState {
  const { restore } = draft.meta;
  if (restore === undefined)
    refuse("conflict", "Begin a restore first: this tenant is not being restored");
  return restore;
}

export function restoreRows(
  draft: Draft,
  { part, rows }: Of<"restore.rows">,
): { created: false; result: ResultOf<"restore.rows"> } {
  const state = restoring(draft);
  // Sent again, because its answer was lost.
  if (part < state.part) return { created: false, result: { part: state.part, rows: state.rows } };
  if (part > state.part)
    refuse("conflict", `Send part ${state.part} next: parts before ${part} are missing`);
  if (rows.length > restoreRowsMax) refuse("invalid", `Send at most ${restoreRowsMax} rows a part`);
  let { last } = state;
  const counts = { ...state.counts };
  for (const [key, row] of rows) {
    if (key <= last) refuse("invalid", "Send rows in order of their keys, each once");
    last = key;
    if (!isRestorable(key, row))
      refuse("invalid", `Leave out what is no row of a tenant: ${shownKey(key)}`);
    count(counts, key, row);
    draft.put(key, row);
  }
  draft.meta.restore = {
    source: state.source,
    part: part + 1,
    rows: state.rows + rows.length,
    last,
    counts,
    keys: state.keys,
  };
  draft.isTouched = true;
  return { created: false, result: { part: part + 1, rows: state.rows + rows.length } };
}

export function finishRestore(
  draft: Draft,
  { rows }: Of<"restore.finish">,
): { created: true; result: ResultOf<"restore.finish">; keys: readonly NewKey[] } {
  const state = restoring(draft);
  const { meta } = draft;
  if (rows !== state.rows)
    refuse("conflict", `Send all rows first: ${state.rows} of ${rows} are there`);
  for (const field of Object.keys(noCounts) as (keyof RestoreCounts)[])
    if (state.counts[field] !== meta[field])
      refuse(
        "conflict",
        `Restore a whole backup: it tells of ${meta[field]} ${field}, and ${state.counts[field]} came`,
      );
  delete draft.meta.restore;
  draft.dueMoved = true;
  draft.change({ type: "tenant", namespace: "", name: meta.tenant });
  const { tenant, epoch, revision } = state.source;
  draft.audits.push({ action: "tenant.restore", target: `${tenant}@${epoch}-${revision}` });
  return {
    created: true,
    result: { tenant: meta.tenant, epoch: meta.epoch, rows },
    keys: state.keys,
  };
}

function count(
  counts: { -readonly [K in keyof RestoreCounts]: number },
  key: string,
  row: unknown,
): void {
  const of = row as { deletedAt?: number | null; bytes?: number };
  switch (key.slice(0, key.indexOf("/"))) {
    case "cfg":
      if (of.deletedAt === null) counts.configs += 1;
      else counts.deleted += 1;
      return;
    case "ns":
      counts.namespaces += 1;
      return;
    case "key":
      counts.keys += 1;
      return;
    case "ver":
      counts.bytes += of.bytes ?? 0;
  }
}

// --- what can be a row ---------------------------------------------------------------------------------------------------

type Fields = Readonly<Record<string, unknown>>;
type Check = (rest: readonly string[], row: unknown) => boolean;

function isNumberText(text: string | undefined): text is string {
  return text !== undefined && /^\d{16}$/.test(text) && padded(Number(text)) === text;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function fieldsOf(row: unknown): Fields | null {
  return typeof row === "object" && row !== null && !Array.isArray(row) ? (row as Fields) : null;
}

function hasCounts(row: Fields, ...names: string[]): boolean {
  return names.every((name) => isCount(row[name]));
}

function isNamed(rest: readonly string[]): boolean {
  return isName(rest[0] ?? "") && isName(rest[1] ?? "");
}

const keyKinds: ReadonlySet<unknown> = new Set(["admin", "write", "read", "client"]);

/** By the first part of the key: its other parts must be what the row says of itself, and what readers rely on is there. */
const checks: Readonly<Record<string, Check>> = {
  ns: (rest, row) => {
    const of = fieldsOf(row);
    return rest.length === 1 && isName(rest[0] ?? "") && of?.["namespace"] === rest[0];
  },
  cfg: (rest, row) => {
    const of = fieldsOf(row);
    return (
      rest.length === 2 &&
      isNamed(rest) &&
      of !== null &&
      of["namespace"] === rest[0] &&
      of["name"] === rest[1] &&
      hasCounts(of, "revision", "createdAt", "updatedAt", "latestVersion", "versions", "release") &&
      Array.isArray(of["rules"]) &&
      fieldsOf(of["tags"]) !== null &&
      (of["default"] === null || isCount(of["default"])) &&
      (of["deletedAt"] === null || isCount(of["deletedAt"]))
    );
  },
  ver: (rest, row) => {
    const of = fieldsOf(row);
    return isNumbered(rest, of, "version") && hasCounts(of as Fields, "bytes", "at", "revision");
  },
  txt: (rest, row) =>
    rest.length === 3 && isNamed(rest) && isNumberText(rest[2]) && typeof row === "string",
  rel: (rest, row) => {
    const of = fieldsOf(row);
    return isNumbered(rest, of, "release") && Array.isArray(of?.["rules"]);
  },
  key: (rest, row) => {
    const of = fieldsOf(row);
    const { hash, kind, namespaces, expiresAt } = of ?? {};
    return (
      rest.length === 1 &&
      checkKeyId(rest[0] ?? "") === null &&
      of?.["id"] === rest[0] &&
      typeof hash === "string" &&
      isSha256(hash) &&
      keyKinds.has(kind) &&
      (namespaces === null ||
        (Array.isArray(namespaces) && namespaces.every((one) => isName(one)))) &&
      (expiresAt === null || isCount(expiresAt))
    );
  },
  hist: (rest, row) => {
    const of = fieldsOf(row);
    return (
      rest.length === 1 &&
      isNumberText(rest[0]) &&
      of?.["revision"] === Number(rest[0]) &&
      isCount(of["at"]) &&
      (of["spreadMs"] === undefined || isCount(of["spreadMs"])) &&
      Array.isArray(of["changes"])
    );
  },
  aud: (rest, row) => {
    const of = fieldsOf(row);
    return (
      rest.length === 1 &&
      isNumberText(rest[0]) &&
      of?.["sequence"] === Number(rest[0]) &&
      isCount(of["at"]) &&
      fieldsOf(of["actor"]) !== null
    );
  },
  // Keys of clients may hold slashes.
  idem: (rest, row) => {
    const of = fieldsOf(row);
    return rest.length > 0 && of !== null && hasCounts(of, "sequence", "at", "revision");
  },
  idq: (rest, row) => rest.length === 1 && isNumberText(rest[0]) && typeof row === "string",
  del: (rest, row) => isDated(rest, row),
  due: (rest, row) => isDated(rest, row),
};

function isDated(rest: readonly string[], row: unknown): boolean {
  return rest.length === 3 && isNumberText(rest[0]) && isNamed(rest.slice(1)) && row === true;
}

function isNumbered(rest: readonly string[], of: Fields | null, field: string): boolean {
  return (
    rest.length === 3 && isNamed(rest) && isNumberText(rest[2]) && of?.[field] === Number(rest[2])
  );
}

/** A row that a tenant's state can hold. The meta row is none: it travels by itself. */
export function isRestorable(key: string, row: unknown): boolean {
  if (key.length > keyLengthMax || !/^[\x20-\x7e]+$/.test(key)) return false;
  const [prefix = "", ...rest] = key.split("/");
  return Object.hasOwn(checks, prefix) && (checks[prefix] as Check)(rest, row);
}

function shownKey(key: string): string {
  return key.slice(0, 80).replaceAll(/[^\x20-\x7e]/g, "?");
}
