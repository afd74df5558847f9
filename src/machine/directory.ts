/**
 * Changes of the directory: what only the group of `_system` knows. Tenants, their groups and places, nodes, root keys.
 *
 * What must stay true: a group number and a replica id are given once and never again; `grp/` names exactly the tenants
 * of `ten/`; `move/` names exactly the groups of those with replicas that are joining or leaving; no node has two replicas
 * of a tenant that are not leaving.
 */
import { unreachable } from "../lib/assert.ts";
import { checkKeyId, isName, isTenantName } from "../model/names.ts";
import {
  callBackLevel,
  levelFirst,
  type Action,
  type NodeRole,
  type SystemAction,
} from "./command.ts";
import { guardPrecondition, refuse } from "./draft.ts";
import type { Draft } from "./draft.ts";
import {
  groupKey,
  issuerKey,
  moveKey,
  nodeKey,
  regrowKey,
  rootKeyKey,
  systemKey,
  tenantKey,
  under,
} from "./keys.ts";
import { dropRootKeys, recoverDirectory } from "./recovery.ts";
import { tenantInfo } from "./results.ts";
import type { ResultOf } from "./results.ts";
import { defaultQuotas, isLeaving, sameQuotas, wasSettled } from "./rows.ts";
import type {
  IssuerRow,
  NodeRow,
  PlacedReplica,
  QuotaChanges,
  Quotas,
  RootKeyRow,
  RestoredMeta,
  SystemRow,
  TenantRow,
} from "./rows.ts";

/** The group of `_system` itself. */
export const systemGroup = 1;
export const replicasMax = 16;
export const tenantsPerCommandMax = 500;
/** How far the epoch of a backup may be ahead of this directory's clock, seconds: epochs are never used up. */
const epochAheadMax = 366 * 86_400;
/** Nodes, and those that are just leaving. */
const systemReplicasMax = 256;

const nodePattern = /^[A-Za-z0-9_-]{1,128}$/;
const hashPattern = /^[0-9a-f]{64}$/;

const restoredCounts = [
  "revision",
  "historyFrom",
  "at",
  "configs",
  "deleted",
  "namespaces",
  "keys",
  "bytes",
  "audits",
  "idempotencyFrom",
  "idempotencyTo",
] as const satisfies readonly (keyof RestoredMeta)[];

/** The fields of a meta row that a restore brings back. */
export function restoredMeta(meta: RestoredMeta): RestoredMeta {
  const { auditHead, auditFrom, auditAnchor } = meta;
  return {
    ...(Object.fromEntries(restoredCounts.map((field) => [field, meta[field]])) as Pick<
      RestoredMeta,
      (typeof restoredCounts)[number]
    >),
    ...(auditHead !== undefined && { auditHead }),
    ...(auditFrom !== undefined && { auditFrom }),
    ...(auditAnchor !== undefined && { auditAnchor }),
  };
}

function isChainHash(hash: unknown): boolean {
  return typeof hash === "string" && hash.startsWith("sha256:") && isSha256(hash.slice(7));
}

/** What is wrong with it; null: nothing. */
export function checkRestoredMeta(
  meta: Partial<Record<keyof RestoredMeta, unknown>>,
): string | null {
  const isCount = (value: unknown): boolean =>
    Number.isSafeInteger(value) && (value as number) >= 0;
  const wrong = restoredCounts.find((field) => !isCount(meta[field]));
  if (wrong !== undefined) return `Give ${wrong} of the backup's meta row as a whole number`;
  const { auditHead, auditFrom, auditAnchor } = meta;
  const anchor = auditAnchor as { sequence?: unknown; hash?: unknown } | undefined;
  const isChain =
    (auditHead === undefined || isChainHash(auditHead)) &&
    (auditFrom === undefined || isCount(auditFrom)) &&
    (anchor === undefined || (isCount(anchor?.sequence) && isChainHash(anchor?.hash)));
  return isChain ? null : "Give the audit chain of the backup's meta row as it was";
}

type Of<Op extends SystemAction["op"]> = Extract<SystemAction, { op: Op }>;

interface Done<Op extends SystemAction["op"]> {
  readonly created: boolean;
  readonly result: ResultOf<Op>;
}

const systemOps: ReadonlySet<string> = new Set<SystemAction["op"]>([
  "directory.create",
  "directory.createMany",
  "directory.update",
  "directory.delete",
  "directory.undelete",
  "directory.move",
  "directory.settle",
  "node.register",
  "node.join",
  "node.phase",
  "node.remove",
  "system.place",
  "system.settle",
  "system.level",
  "directory.recover",
  "issuer.put",
  "issuer.delete",
  "rootKey.put",
]);

export function isSystemAction(action: Action): action is SystemAction {
  return systemOps.has(action.op);
}

export function applySystemAction(draft: Draft, action: SystemAction): Done<SystemAction["op"]> {
  const changesBefore = draft.changes.length;
  const done = dispatch(draft, action);
  if (draft.changes.length > changesBefore) {
    for (const { target, key } of targetsOf(action))
      draft.audits.push({ action: action.op, target, key });
  }
  return done;
}

interface AuditTarget {
  readonly target: string;
  readonly key: string;
}

function targetsOf(action: SystemAction): readonly AuditTarget[] {
  if (action.op === "directory.createMany")
    return action.tenants.map(({ tenant }) => ({ target: tenant, key: tenantKey(tenant) }));
  if (action.op === "directory.recover")
    return [
      ...(action.system === undefined ? [] : [{ target: "_system", key: systemKey }]),
      ...action.gone.map((node) => ({ target: node, key: nodeKey(node) })),
      ...action.tenants.map(({ tenant }) => ({ target: tenant, key: tenantKey(tenant) })),
    ];
  return [targetOf(action)];
}

function targetOf(
  action: Exclude<SystemAction, Of<"directory.createMany"> | Of<"directory.recover">>,
): AuditTarget {
  if ("tenant" in action) return { target: action.tenant, key: tenantKey(action.tenant) };
  if ("node" in action) return { target: action.node, key: nodeKey(action.node) };
  if (action.op === "system.place" || action.op === "system.settle" || action.op === "system.level")
    return { target: "_system", key: systemKey };
  const name = action.op === "issuer.put" ? action.issuer.name : action.name;
  return { target: name, key: issuerKey(name) };
}

function dispatch(draft: Draft, action: SystemAction): Done<SystemAction["op"]> {
  switch (action.op) {
    case "directory.create":
      return createTenant(draft, action);
    case "directory.createMany":
      return createTenants(draft, action);
    case "directory.update":
      return updateTenant(draft, action);
    case "directory.delete":
      return deleteTenant(draft, action);
    case "directory.undelete":
      return undeleteTenant(draft, action);
    case "directory.move":
      return moveTenant(draft, action);
    case "directory.settle":
      return settleTenant(draft, action);
    case "node.register":
      return registerNode(draft, action);
    case "node.join":
      return joinNode(draft, action);
    case "node.phase":
      return setPhase(draft, action);
    case "node.remove":
      return removeNode(draft, action);
    case "system.place":
      return placeSystem(draft, action);
    case "system.settle":
      return settleSystem(draft, action);
    case "system.level":
      return raiseLevel(draft, action);
    case "directory.recover":
      return recoverDirectory(draft, action);
    case "issuer.put":
      return putIssuer(draft, action);
    case "issuer.delete":
      return deleteIssuer(draft, action);
    case "rootKey.put":
      return putRootKey(draft, action);
    default:
      return unreachable(action);
  }
}

export function isNodeName(node: string): boolean {
  return nodePattern.test(node);
}

/** 64 hex digits. */
export function isSha256(hash: string): boolean {
  return hashPattern.test(hash);
}

function guardNode(node: string): void {
  if (!isNodeName(node)) refuse("invalid", "Name nodes with letters, digits, _ and -");
}

function tenantOf(draft: Draft, tenant: string): TenantRow {
  const row = isTenantName(tenant) ? draft.get<TenantRow>(tenantKey(tenant)) : undefined;
  if (row === undefined) refuse("not-found", `Create the tenant first: there is no ${tenant}`);
  return row;
}

function liveTenantOf(draft: Draft, tenant: string): TenantRow {
  const row = tenantOf(draft, tenant);
  if (row.deletedAt !== null)
    refuse("tenant-deleted", `Undelete the tenant first: ${tenant} is deleted`);
  return row;
}

function putTenant(draft: Draft, row: TenantRow): TenantRow {
  const next = { ...row, revision: draft.revision };
  draft.put(tenantKey(row.tenant), next);
  draft.change({ type: "tenant", namespace: "", name: row.tenant });
  return next;
}

function createTenants(
  draft: Draft,
  action: Of<"directory.createMany">,
): Done<"directory.createMany"> {
  if (action.tenants.length === 0 || action.tenants.length > tenantsPerCommandMax)
    refuse("invalid", `Create 1 to ${tenantsPerCommandMax} tenants at once`);
  const tenants = action.tenants.map((one) => {
    const { tenant, group, adminKeyId, placement } = createTenant(draft, one).result.tenant;
    return { tenant, group, adminKeyId, nodes: placement.replicas.map(({ node }) => node) };
  });
  return { created: true, result: { tenants } };
}

function createTenant(
  draft: Draft,
  action: Omit<Of<"directory.create">, "op">,
): Done<"directory.create"> {
  const { tenant, nodes } = action;
  if (!isTenantName(tenant)) refuse("invalid", "Name the tenant within its grammar");
  const before = draft.get<TenantRow>(tenantKey(tenant));
  if (before !== undefined && action.replace !== true)
    refuse(
      "already-exists",
      before.deletedAt === null
        ? `Choose another name: tenant ${tenant} exists`
        : `Undelete or purge it first: a deleted tenant ${tenant} is kept`,
    );
  guardNodes(nodes);
  guardPlaces(draft, nodes);
  const keyError = checkKeyId(action.adminKey.id);
  if (keyError !== null) refuse("invalid", keyError);
  // Its group could not begin with it.
  const wrongMeta = action.restore === undefined ? null : checkRestoredMeta(action.restore.meta);
  if (wrongMeta !== null) refuse("invalid", wrongMeta);
  const epoch =
    draft.semantics >= 4 ? newEpoch(draft, action.restore?.source.epoch ?? 0) : undefined;
  const group = draft.meta.nextGroup ?? systemGroup + 1;
  draft.meta.nextGroup = group + 1;
  if (before !== undefined) {
    draft.delete(groupKey(before.group));
    draft.delete(moveKey(before.group));
    draft.delete(regrowKey(before.group));
  } else draft.meta.tenants = (draft.meta.tenants ?? 0) + 1;
  draft.put(groupKey(group), tenant);
  const row = putTenant(draft, {
    tenant,
    group,
    incarnation: draft.revision,
    placement: { replicas: nodes.map((node, i) => ({ node, id: i + 1 })) },
    nextReplica: nodes.length + 1,
    description: action.description ?? "",
    quotas: action.quotas,
    adminKey: { id: action.adminKey.id, hash: action.adminKey.hash },
    ...(epoch !== undefined && { epoch }),
    ...(action.restore !== undefined && { restore: action.restore }),
    createdAt: draft.at,
    deletedAt: null,
    revision: draft.revision,
  });
  return { created: true, result: { tenant: tenantInfo(row) } };
}

/**
 * Later than every epoch that this directory gave and than the one restored from, also within a second: a cursor of
 * another history must never be taken for one of this.
 */
function newEpoch(draft: Draft, restored: number): number {
  const now = Math.floor(draft.at / 1_000);
  if (!Number.isSafeInteger(restored) || restored < 0 || restored > now + epochAheadMax)
    refuse("invalid", "Restore a backup whose epoch is a time: this one's lies far ahead");
  const epoch = Math.max(now, (draft.meta.lastEpoch ?? 0) + 1, restored + 1);
  draft.meta.lastEpoch = epoch;
  return epoch;
}

function updateTenant(draft: Draft, action: Of<"directory.update">): Done<"directory.update"> {
  const before = liveTenantOf(draft, action.tenant);
  guardPrecondition(draft, action, before);
  const description = action.description ?? before.description;
  const quotas = mergedQuotas(action.quotas ?? before.quotas, action.quotaChanges);
  const row =
    description === before.description && sameQuotas(quotas, before.quotas)
      ? before
      : putTenant(draft, { ...before, description, quotas });
  return { created: false, result: { tenant: tenantInfo(row) } };
}

function mergedQuotas(quotas: Quotas, changes: QuotaChanges | undefined): Quotas {
  if (changes === undefined) return quotas;
  const names = Object.keys(defaultQuotas) as (keyof Quotas)[];
  const merged: { -readonly [Name in keyof Quotas]: number } = {};
  for (const name of names) {
    const change = changes[name];
    const value = change === undefined ? quotas[name] : change;
    if (value !== null && value !== undefined) merged[name] = value;
  }
  return merged;
}

function deleteTenant(draft: Draft, action: Of<"directory.delete">): Done<"directory.delete"> {
  const before = tenantOf(draft, action.tenant);
  guardPrecondition(draft, action, before);
  if (action.purge) {
    draft.delete(tenantKey(before.tenant));
    draft.delete(groupKey(before.group));
    draft.delete(moveKey(before.group));
    draft.delete(regrowKey(before.group));
    draft.meta.tenants = (draft.meta.tenants ?? 1) - 1;
    draft.change({ type: "tenant", namespace: "", name: before.tenant });
    return { created: false, result: { tenant: tenantInfo(before), purged: true } };
  }
  if (before.deletedAt !== null)
    refuse("tenant-deleted", `Purge or undelete it: tenant ${action.tenant} is deleted already`);
  const row = putTenant(draft, { ...before, deletedAt: draft.at });
  return { created: false, result: { tenant: tenantInfo(row), purged: false } };
}

function undeleteTenant(
  draft: Draft,
  action: Of<"directory.undelete">,
): Done<"directory.undelete"> {
  const before = tenantOf(draft, action.tenant);
  const row = before.deletedAt === null ? before : putTenant(draft, { ...before, deletedAt: null });
  return { created: false, result: { tenant: tenantInfo(row) } };
}

function moveTenant(draft: Draft, action: Of<"directory.move">): Done<"directory.move"> {
  const { nodes, lost = [], generation } = action;
  // A deleted one moves too: its node may have to go.
  const before = tenantOf(draft, action.tenant);
  const current = before.placement.generation ?? 0;
  if (generation !== current)
    refuse("conflict", `Look again: the placement is of generation ${current}, not ${generation}`);
  guardNodes(nodes);
  const staying = before.placement.replicas.filter(
    (replica) => !isLeaving(replica) && !lost.includes(replica.id),
  );
  guardPlaces(
    draft,
    nodes.filter((node) => !staying.some((replica) => replica.node === node)),
    before.placement.replicas.filter(({ id, state }) => state === "leaving" && !lost.includes(id)),
  );
  let nextReplica = before.nextReplica;
  const replicas = before.placement.replicas.map((replica): PlacedReplica => {
    if (replica.state === "lost" || lost.includes(replica.id))
      return inState(draft, replica, "lost");
    if (!nodes.includes(replica.node)) return inState(draft, replica, "leaving");
    // Whether it has left already only its group knows: it joins again, and remembers what it promised.
    return replica.state === "leaving" ? inState(draft, replica, "joining") : replica;
  });
  for (const node of nodes) {
    if (replicas.some((replica) => replica.node === node && !isLeaving(replica))) continue;
    // A replica that lost its disk, or left, is another one when it comes again: its votes are forgotten.
    replicas.push({ node, id: nextReplica++, state: "joining", since: draft.revision });
  }
  if (replicas.length > replicasMax)
    refuse("conflict", `Wait for the moves before: at most ${replicasMax} replicas come and go`);
  if (JSON.stringify(replicas) === JSON.stringify(before.placement.replicas))
    return { created: false, result: { tenant: tenantInfo(before) } };
  const row = putTenant(draft, {
    ...regrown(draft, before, nodes.length),
    placement: { replicas, generation: current + 1 },
    initial: before.initial ?? before.placement.replicas.map(({ node, id }) => ({ node, id })),
    nextReplica,
  });
  draft.put(moveKey(row.group), row.tenant);
  return { created: false, result: { tenant: tenantInfo(row) } };
}

/** Sent away and called back, a new one and one that had its vote all along would look the same without a note. */
function inState(
  draft: Draft,
  replica: PlacedReplica,
  state: "joining" | "leaving" | "lost",
): PlacedReplica {
  if (draft.semantics < 7 || replica.state === state) return { ...replica, state };
  return { ...replica, state, settled: wasSettled(replica) };
}

/** Once as many replicas are wanted as there were before a recovery, it is as any other tenant. */
function regrown(draft: Draft, row: TenantRow, replicas: number): TenantRow {
  if (row.regrow === undefined || replicas < row.regrow) return row;
  draft.delete(regrowKey(row.group));
  const { regrow: _reached, ...rest } = row;
  return rest;
}

function settleTenant(draft: Draft, action: Of<"directory.settle">): Done<"directory.settle"> {
  const before = tenantOf(draft, action.tenant);
  const { replicas, generation = 0 } = before.placement;
  if (action.generation !== generation)
    refuse("conflict", `The placement is of generation ${generation}, not ${action.generation}`);
  if (replicas.every(({ state }) => state === undefined))
    return { created: false, result: { tenant: tenantInfo(before) } };
  const kept = replicas
    .filter((replica) => !isLeaving(replica))
    .map(({ state: _state, settled: _settled, ...replica }) => replica);
  const row = putTenant(draft, { ...before, placement: { replicas: kept, generation } });
  draft.delete(moveKey(row.group));
  return { created: false, result: { tenant: tenantInfo(row) } };
}

function guardNodes(nodes: readonly string[]): void {
  if (nodes.length === 0 || nodes.length > replicasMax || new Set(nodes).size < nodes.length)
    refuse("invalid", `Name 1 to ${replicasMax} different nodes for the replicas`);
  nodes.forEach(guardNode);
}

/**
 * Who placed it may not have heard yet that the node leaves; the reconciler, which takes a node out where it sees nothing
 * on it any more, would not see what comes behind it. What has yet to leave is seen as long as it may be called back.
 */
function guardPlaces(
  draft: Draft,
  nodes: readonly string[],
  stillThere: readonly PlacedReplica[] = [],
): void {
  const system = draft.get<SystemRow>(systemKey);
  if (draft.semantics < 6 || system === undefined) return;
  for (const node of nodes) {
    const isMember = systemReplicaOf(system, node) !== undefined;
    const row = draft.get<NodeRow>(nodeKey(node));
    const isSeen =
      draft.semantics >= callBackLevel && stillThere.some((replica) => replica.node === node);
    if (!isMember || (row?.phase === "leaving" && !isSeen) || row?.role === "gateway")
      refuse(
        "conflict",
        `Look again for places: node ${node} leaves, or is no member that holds any`,
      );
  }
}

function registerNode(draft: Draft, action: Of<"node.register">): Done<"node.register"> {
  guardNode(action.node);
  const before = draft.get<NodeRow>(nodeKey(action.node));
  const zone = action.zone ?? before?.zone ?? null;
  const disk = before?.disk ?? action.disk;
  if (action.disk !== undefined && disk !== action.disk)
    refuse("conflict", `Let it join: node ${action.node} is known with another disk`);
  const role = action.role === undefined ? before?.role : roleOf(action);
  if (role === "gateway" && before?.role !== "gateway")
    refuse(
      "conflict",
      `Let node ${action.node} leave first: it has been a member, and may hold replicas`,
    );
  const system = draft.get<SystemRow>(systemKey);
  const { initial } = action;
  if (system === undefined && initial !== undefined) {
    const replicas = initial.map(({ node, id }) => ({ node, id }));
    const nextReplica = Math.max(0, ...replicas.map(({ id }) => id)) + 1;
    const { level } = action;
    const row: SystemRow = { placement: { replicas }, initial: replicas, nextReplica };
    draft.put(systemKey, { ...row, ...(level !== undefined && { level }) });
  }
  const level = draft.get<SystemRow>(systemKey)?.level ?? levelFirst;
  const { levels } = action;
  if (levels !== undefined && (level < levels.min || level > levels.max))
    refuse(
      "conflict",
      `Install another version on node ${action.node}: its own knows levels ${levels.min} to ${levels.max}, the cluster is at level ${level}`,
    );
  if (system !== undefined && systemReplicaOf(system, action.node) === undefined)
    refuse("conflict", `Let it join: node ${action.node} is not a member, or has left`);
  if (
    before !== undefined &&
    before.boot === action.boot &&
    before.zone === zone &&
    before.disk === disk &&
    before.role === role
  )
    return { created: false, result: { node: before } };
  const { role: _before, ...rest } = before ?? {};
  const row: NodeRow = {
    ...rest,
    node: action.node,
    zone,
    boot: action.boot,
    registeredAt: before?.registeredAt ?? draft.at,
    ...(disk !== undefined && { disk }),
    ...(role !== undefined && { role }),
  };
  return { created: before === undefined, result: { node: putNode(draft, row) } };
}

function roleOf({ role }: { readonly role?: NodeRole }): "gateway" | undefined {
  return role === "gateway" ? role : undefined;
}

function putNode(draft: Draft, row: NodeRow): NodeRow {
  draft.put(nodeKey(row.node), row);
  draft.change({ type: "node", namespace: "", name: row.node });
  return row;
}

function systemReplicaOf({ placement }: SystemRow, node: string): PlacedReplica | undefined {
  return placement.replicas.find((replica) => replica.node === node && !isLeaving(replica));
}

function joinNode(draft: Draft, action: Of<"node.join">): Done<"node.join"> {
  const { node, disk } = action;
  guardNode(node);
  const before = draft.get<NodeRow>(nodeKey(node));
  const system = systemOf(draft);
  const { placement, nextReplica } = system;
  const present = systemReplicaOf(system, node);
  // Asked again, its answer having been lost. One that was there from the beginning would not ask with its memory.
  if (present !== undefined && before?.disk === disk && before.diskSince !== undefined)
    return { created: false, result: admission(system, present.id) };
  const replicas = placement.replicas.map((replica): PlacedReplica =>
    replica.node === node ? { ...replica, state: "lost" } : replica,
  );
  if (replicas.length >= systemReplicasMax)
    refuse("conflict", `Let others leave first: at most ${systemReplicasMax} nodes`);
  replicas.push({ node, id: nextReplica, state: "learner", since: draft.revision });
  draft.put(systemKey, {
    ...system,
    placement: { replicas, generation: (placement.generation ?? 0) + 1 },
    nextReplica: nextReplica + 1,
  });
  putNode(draft, {
    node,
    zone: action.zone ?? before?.zone ?? null,
    boot: before?.boot ?? 0,
    registeredAt: before?.registeredAt ?? draft.at,
    disk,
    diskSince: draft.revision,
    ...(action.role === "gateway" && { role: action.role }),
  });
  return { created: true, result: admission(system, nextReplica) };
}

function admission({ initial, incarnation }: SystemRow, id: number): ResultOf<"node.join"> {
  return { id, initial, ...(incarnation !== undefined && { incarnation }) };
}

function nodeOf(draft: Draft, node: string): NodeRow {
  const row = isNodeName(node) ? draft.get<NodeRow>(nodeKey(node)) : undefined;
  if (row === undefined) refuse("not-found", `There is no node ${node}`);
  return row;
}

function setPhase(draft: Draft, action: Of<"node.phase">): Done<"node.phase"> {
  const before = nodeOf(draft, action.node);
  const { phase: _before, ...rest } = before;
  const { phase } = action;
  const row: NodeRow = {
    ...rest,
    zone: action.zone ?? before.zone,
    ...(phase !== "active" && { phase }),
  };
  const isSame = row.phase === before.phase && row.zone === before.zone;
  return { created: false, result: { node: isSame ? before : putNode(draft, row) } };
}

function removeNode(draft: Draft, action: Of<"node.remove">): Done<"node.remove"> {
  const { node } = nodeOf(draft, action.node);
  const system = systemOf(draft);
  const { placement } = system;
  if (placement.replicas.every((replica) => replica.node === node || isLeaving(replica)))
    refuse("conflict", `Node ${node} is the last one`);
  const replicas = placement.replicas.map((replica) =>
    replica.node === node && !isLeaving(replica)
      ? { ...replica, state: "leaving" as const }
      : replica,
  );
  draft.put(systemKey, {
    ...system,
    placement: { replicas, generation: (placement.generation ?? 0) + 1 },
  });
  draft.delete(nodeKey(node));
  if (draft.semantics >= 5) dropRootKeys(draft, node);
  draft.change({ type: "node", namespace: "", name: node });
  return { created: false, result: { node } };
}

function placeSystem(draft: Draft, action: Of<"system.place">): Done<"system.place"> {
  const system = systemOf(draft, action.generation);
  const { replicas } = system.placement;
  const { voters } = action;
  const known = replicas.filter((replica) => !isLeaving(replica)).map(({ id }) => id);
  if (voters.length === 0 || !voters.every((id) => known.includes(id)))
    refuse("invalid", "Name replicas that are there and not leaving");
  const next = replicas.map((replica): PlacedReplica => {
    if (isLeaving(replica)) return replica;
    const { state, ...rest } = replica;
    if (!voters.includes(replica.id)) return { ...rest, state: "learner" };
    return state === "learner" ? { ...rest, state: "joining" } : replica;
  });
  const generation = action.generation + 1;
  draft.put(systemKey, { ...system, placement: { replicas: next, generation } });
  draft.change({ type: "tenant", namespace: "", name: "_system" });
  return { created: false, result: { generation } };
}

function settleSystem(draft: Draft, action: Of<"system.settle">): Done<"system.settle"> {
  const { generation } = action;
  const system = systemOf(draft, generation);
  const replicas = system.placement.replicas
    .filter((replica) => !isLeaving(replica))
    .map((replica): PlacedReplica => {
      if (replica.state !== "joining") return replica;
      const { state: _settled, ...rest } = replica;
      return rest;
    });
  draft.put(systemKey, { ...system, placement: { replicas, generation } });
  draft.change({ type: "tenant", namespace: "", name: "_system" });
  return { created: false, result: { generation } };
}

function raiseLevel(draft: Draft, { level }: Of<"system.level">): Done<"system.level"> {
  const system = systemOf(draft);
  const before = system.level ?? levelFirst;
  if (level < before)
    refuse("conflict", `Leave it: the cluster is at level ${before}, which is never lowered`);
  if (level > before) {
    draft.put(systemKey, { ...system, level });
    draft.change({ type: "tenant", namespace: "", name: "_system" });
  }
  return { created: false, result: { level, before } };
}

function systemOf(draft: Draft, generation?: number): SystemRow {
  const row = draft.get<SystemRow>(systemKey);
  if (row === undefined) refuse("conflict", "Let the first nodes register before");
  const current = row.placement.generation ?? 0;
  if (generation !== undefined && generation !== current)
    refuse("conflict", `Look again: the placement is of generation ${current}, not ${generation}`);
  return row;
}

function putRootKey(draft: Draft, action: Of<"rootKey.put">): Done<"rootKey.put"> {
  const { node, keyId, hash } = action;
  guardNode(node);
  if (!isSha256(hash)) refuse("invalid", "Give the root key's sha256 as 64 hex digits");
  const result = { keyId, node };
  const before = draft.get<RootKeyRow>(rootKeyKey(hash));
  if (before?.nodes.includes(node) === true) return { created: false, result };
  for (const [key, row] of draft.range<RootKeyRow>(under("root"))) {
    const nodes = row.nodes.filter((one) => one !== node);
    if (nodes.length === row.nodes.length) continue;
    // Other nodes may have been started with the same token: it stays valid for as long as one of them has it.
    if (nodes.length === 0) draft.delete(key);
    else draft.put(key, { ...row, node: nodes.at(-1), nodes });
  }
  const row: RootKeyRow = {
    node,
    nodes: [...(before?.nodes ?? []), node],
    keyId,
    createdAt: before?.createdAt ?? draft.at,
  };
  draft.put(rootKeyKey(hash), row);
  draft.change({ type: "key", namespace: "", name: keyId });
  return { created: before === undefined, result };
}

/** Each is looked at for every new token. */
export const issuersMax = 100;

function putIssuer(draft: Draft, action: Of<"issuer.put">): Done<"issuer.put"> {
  const { issuer } = action;
  if (!isName(issuer.name)) refuse("invalid", "Name the issuer within the grammar of names");
  const before = draft.get<IssuerRow>(issuerKey(issuer.name));
  guardPrecondition(draft, action, before);
  let others = 0;
  for (const [, row] of draft.range<IssuerRow>(under("iss"))) {
    if (row.name === issuer.name) continue;
    others++;
    // Of two that claim the same tokens nobody could tell which rules count.
    if (row.issuer === issuer.issuer)
      refuse("already-exists", `Change issuer ${row.name} instead: it is the same one`);
  }
  if (others >= issuersMax) refuse("quota-exceeded", `Delete an issuer: there are ${others}`);
  const row: IssuerRow = {
    ...issuer,
    createdAt: before?.createdAt ?? draft.at,
    revision: draft.revision,
  };
  draft.put(issuerKey(row.name), row);
  draft.change({ type: "issuer", namespace: "", name: row.name });
  return { created: before === undefined, result: { issuer: row } };
}

function deleteIssuer(draft: Draft, action: Of<"issuer.delete">): Done<"issuer.delete"> {
  const { name } = action;
  const before = isName(name) ? draft.get<IssuerRow>(issuerKey(name)) : undefined;
  if (before === undefined) refuse("not-found", "Name an issuer that exists: there is none so");
  guardPrecondition(draft, action, before);
  draft.delete(issuerKey(name));
  draft.change({ type: "issuer", namespace: "", name });
  return { created: false, result: { name } };
}
