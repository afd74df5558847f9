/**
 * Rules with times. A replica never asks its clock whether a rule has begun: each config's row says as of when its rules
 * are judged, and that moves by commands only. So all replicas, and whoever watches them, see a rule begin or end at the
 * same revision, also when nobody writes: the leader proposes `schedule.pass` when its clock reaches `meta.dueAt`.
 *
 * What must stay true: a live config whose rules begin or end after `judgedAt` has exactly one row in due/, at the first
 * of these times, and `dueAt` names it; `meta.dueAt` is the first of all.
 */
import { nextTimeOf } from "../model/evaluate.ts";
import type { Draft } from "./draft.ts";
import { configKey, dueKey, under } from "./keys.ts";
import type { ResultOf } from "./results.ts";
import type { ConfigRow } from "./rows.ts";

/** Configs judged anew per command; the leader proposes again for the rest. */
export const passedPerCommandMax = 500;

/** As of when the config's rules are judged, milliseconds since 1970. */
export function judgedAt(row: ConfigRow): number {
  return row.judgedAt ?? row.updatedAt;
}

/** The row with its rules judged as of this command; its place in due/ moves along. A deleted one has none. */
export function judged(draft: Draft, row: ConfigRow): ConfigRow {
  return { ...row, ...judgment(draft, row, row.rules) };
}

/** What `judged` changes of a row that gets these rules. */
export function judgment(
  draft: Draft,
  row: ConfigRow,
  rules: ConfigRow["rules"],
): Required<Pick<ConfigRow, "judgedAt" | "dueAt">> {
  const dueAt = row.deletedAt === null ? nextTimeOf(rules, draft.at) : null;
  move(draft, row, dueAt);
  return { judgedAt: draft.at, dueAt };
}

function move(draft: Draft, row: ConfigRow, dueAt: number | null): void {
  const before = row.dueAt ?? null;
  if (before === dueAt) return;
  const { namespace, name } = row;
  if (before !== null) draft.delete(dueKey(before, namespace, name));
  if (dueAt !== null) draft.put(dueKey(dueAt, namespace, name), true);
  draft.dueMoved = true;
}

export function passSchedules(draft: Draft): {
  created: false;
  result: ResultOf<"schedule.pass">;
} {
  const due: string[] = [];
  for (const [key] of draft.range(under("due"))) {
    if (dueOf(key).dueAt > draft.at || due.length >= passedPerCommandMax) break;
    due.push(key);
  }
  for (const key of due) {
    const { namespace, name } = dueOf(key);
    const row = draft.get<ConfigRow>(configKey(namespace, name));
    if (row === undefined) continue;
    // Its revision stays: nothing was changed that an editor's ETag is for.
    draft.put(configKey(namespace, name), judged(draft, row));
    draft.change({ type: "schedule", namespace, name, release: row.release });
    draft.audits.push({
      action: "schedule.pass",
      target: `${namespace}/${name}`,
      key: configKey(namespace, name),
    });
  }
  return { created: false, result: { passed: due.length } };
}

function dueOf(key: string): { dueAt: number; namespace: string; name: string } {
  const [, time, namespace, name] = key.split("/") as [string, string, string, string];
  return { dueAt: Number(time), namespace, name };
}

/** What `meta.dueAt` must be after the changes of this draft. */
export function earliestDue(draft: Draft): number | null {
  for (const [key] of draft.range(under("due"))) return dueOf(key).dueAt;
  return null;
}
