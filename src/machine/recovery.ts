/**
 * After an unsafe recovery (host/recovery.ts): groups that lost their quorum go on from one replica, as a new incarnation
 * with an epoch of its own. These commands are not proposed by anybody: the offline tool puts them at the end of the log
 * of the replica that goes on, so what was done is in history and audit like any other change.
 */
import type { RecoveredSystem, RecoveredTenant, SystemAction, TenantAction } from "./command.ts";
import { leaveFirstHistory, refuse } from "./draft.ts";
import type { Draft } from "./draft.ts";
import { moveKey, nodeKey, regrowKey, systemKey, tenantKey, under } from "./keys.ts";
import type { ResultOf } from "./results.ts";
import { isLeaving } from "./rows.ts";
import type { PlacedReplica, RootKeyRow, SystemRow, TenantRow } from "./rows.ts";

/** Tenants in one command. */
export const recoveredPerCommandMax = 500;

/** Cursors, entity tags and clients' caches of before belong to another history from here on. */
function beginEpoch(draft: Draft, epoch: number): string {
  if (!Number.isSafeInteger(epoch) || epoch < 0) refuse("invalid", "Give the epoch as a time");
  const { epoch: before, revision } = draft.meta;
  draft.meta.epoch = Math.max(epoch, before + 1);
  leaveFirstHistory(draft);
  return `${before}-${revision}`;
}

export function recoverTenant(
  draft: Draft,
  action: Extract<TenantAction, { op: "tenant.recover" }>,
): { created: false; result: ResultOf<"tenant.recover"> } {
  const { tenant } = draft.meta;
  const from = beginEpoch(draft, action.epoch);
  draft.change({ type: "tenant", namespace: "", name: tenant });
  draft.audits.push({
    action: "tenant.recover",
    target: `${tenant}@${from} on ${action.replica.node}`,
  });
  return { created: false, result: { tenant, epoch: draft.meta.epoch } };
}

export function recoverDirectory(
  draft: Draft,
  action: Extract<SystemAction, { op: "directory.recover" }>,
): { created: false; result: ResultOf<"directory.recover"> } {
  const { system, gone, tenants } = action;
  if (tenants.length > recoveredPerCommandMax)
    refuse("invalid", `Recover at most ${recoveredPerCommandMax} tenants at once`);
  if (system !== undefined) recoverSystem(draft, system, action.epoch);
  for (const node of gone) forgetNode(draft, node);
  const recovered = tenants.filter((one) => recoverRow(draft, one)).map(({ tenant }) => tenant);
  draft.change({ type: "tenant", namespace: "", name: "_system" });
  return { created: false, result: { tenants: recovered } };
}

function recoverSystem(draft: Draft, recovered: RecoveredSystem, epoch: number): void {
  const before = draft.get<SystemRow>(systemKey);
  if (before === undefined) refuse("conflict", "Let the first nodes register before");
  const { incarnation, voter, learners } = recovered;
  beginEpoch(draft, epoch);
  const replicas: PlacedReplica[] = [
    voter,
    ...learners.map((one) => ({ ...one, state: "learner", since: draft.revision }) as const),
  ];
  draft.put(systemKey, {
    placement: { replicas, generation: (before.placement.generation ?? 0) + 1 },
    initial: [voter],
    nextReplica: Math.max(before.nextReplica, ...replicas.map(({ id }) => id + 1)),
    incarnation,
    // Nothing lowers it; before level 7 a recovery did.
    ...(draft.semantics >= 7 && before.level !== undefined && { level: before.level }),
  });
}

/** As if it had left: what it brought with it goes too. */
function forgetNode(draft: Draft, node: string): void {
  draft.delete(nodeKey(node));
  dropRootKeys(draft, node);
  draft.change({ type: "node", namespace: "", name: node });
}

/** A root key is valid for as long as a node has it that belongs to the cluster. */
export function dropRootKeys(draft: Draft, node: string): void {
  for (const [key, row] of draft.range<RootKeyRow>(under("root"))) {
    const nodes = row.nodes.filter((one) => one !== node);
    if (nodes.length === row.nodes.length) continue;
    const last = nodes.at(-1);
    if (last === undefined) draft.delete(key);
    else draft.put(key, { ...row, node: last, nodes });
    draft.change({ type: "key", namespace: "", name: row.keyId });
  }
}

/** @returns false when it is another tenant, or none, by now */
function recoverRow(draft: Draft, recovered: RecoveredTenant): boolean {
  const { tenant, group, incarnation, epoch, replica } = recovered;
  const before = draft.get<TenantRow>(tenantKey(tenant));
  if (before === undefined || before.group !== group || before.incarnation >= incarnation)
    return false;
  const { placement } = before;
  const placed = placement.replicas.find(({ id }) => id === replica.id);
  const wanted = placement.replicas.filter((one) => !isLeaving(one)).length;
  const row: TenantRow = {
    ...before,
    incarnation,
    epoch,
    placement: {
      replicas: [{ ...replica, since: placed?.since ?? before.incarnation }],
      generation: (placement.generation ?? 0) + 1,
    },
    initial: [replica],
    ...(wanted > 1 && { regrow: wanted }),
    revision: draft.revision,
  };
  draft.put(tenantKey(tenant), row);
  draft.meta.lastEpoch = Math.max(draft.meta.lastEpoch ?? 0, epoch);
  draft.delete(moveKey(group));
  if (wanted > 1) draft.put(regrowKey(group), tenant);
  draft.change({ type: "tenant", namespace: "", name: tenant });
  return true;
}
