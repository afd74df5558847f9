/**
 * Routes of the node and the cluster: health, the contract itself, members, and which tenants are in trouble.
 */
import { Type } from "@sinclair/typebox";
import {
  ClusterMember,
  ClusterStatusAnswer,
  ClusterTenant,
  HealthAnswer,
  JoinRequest,
  listOf,
  NodeAnswer,
  NodeRequest,
  ProblemTypeAnswer,
  RepairAnswer,
  RepairRequest,
  tenantStates,
  UpgradeAnswer,
  UpgradeRequest,
} from "../api/schemas.ts";
import { Problem, problems, type ProblemCode } from "../api/problems.ts";
import type { ClusterStatus } from "../host/ports.ts";
import { levelFirst } from "../machine/command.ts";
import { systemKey, under } from "../machine/keys.ts";
import {
  isLeaving,
  isLost,
  settledReplicas,
  type NodeRow,
  type SystemRow,
  type TenantRow,
} from "../machine/rows.ts";
import { changeDirectory, changedAnswer } from "./changes.ts";
import { json, time, type Answer, type Call } from "./http.ts";
import { openApi } from "./openapi.ts";
import { listLimitDefault, listQuery, route, type Context, type Route } from "./route.ts";

/** More nodes than any cluster has. */
const nodesMax = 10_000;
/** Tenants looked at to fill one page of a filtered list. */
const tenantsLookedAtMax = 10_000;

let document: string | null = null;

export const clusterRoutes: readonly Route[] = [
  route({
    method: "GET",
    path: "/livez",
    id: "livez",
    tag: "node",
    summary: "Whether the process answers",
    responses: { 200: { description: "It does", schema: HealthAnswer } },
    handle: () => json({ status: "ok" }),
  }),
  route({
    method: "GET",
    path: "/readyz",
    id: "readyz",
    tag: "node",
    summary: "Whether the node serves: its journal is replayed and the system group has a leader",
    responses: {
      200: { description: "It does", schema: HealthAnswer },
      503: {
        description: "Not yet; a problem `not-ready` that says what the node lacks to begin with",
        schema: HealthAnswer,
      },
    },
    handle: (_call, _input, { service }) =>
      service.ready
        ? json({ status: "ok" })
        : json({ status: "starting" }, { status: 503, headers: { "retry-after": "1" } }),
  }),
  route({
    method: "GET",
    path: "/metrics",
    id: "metrics",
    tag: "node",
    summary: "Metrics of this node, in Prometheus' text format",
    responses: { 200: { description: "Metrics", media: "text/plain", schema: Type.String() } },
    handle: async (_call, _input, context) => ({
      status: 200,
      headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
      body: await context.metrics(),
    }),
  }),
  route({
    method: "GET",
    path: "/openapi.json",
    id: "openapi",
    tag: "node",
    summary: "This contract as OpenAPI 3.1",
    responses: { 200: { description: "OpenAPI document", schema: Type.Unknown() } },
    handle: (_call, _input, { routes, version }) => {
      document ??= JSON.stringify(openApi(routes, version));
      return {
        status: 200,
        headers: { "content-type": "application/json; charset=utf-8" },
        body: document,
      };
    },
  }),
  route({
    method: "GET",
    path: "/problems/:code",
    id: "getProblem",
    tag: "node",
    summary: "What the type of a problem means",
    responses: { 200: { description: "The problem", schema: ProblemTypeAnswer } },
    handle: (call) => {
      const code = call.params["code"] as string;
      if (!Object.hasOwn(problems, code))
        throw new Problem("not-found", "There is no such problem");
      return json({ code, ...problems[code as ProblemCode] });
    },
  }),
  route({
    method: "GET",
    path: "/v1/cluster/status",
    id: "getClusterStatus",
    tag: "cluster",
    summary: "The cluster as this node sees it",
    responses: { 200: { description: "Status", schema: ClusterStatusAnswer } },
    handle: (_call, _input, { service }) => json(statusOf(service.cluster(), Date.now())),
  }),
  route({
    method: "GET",
    path: "/v1/cluster/members",
    id: "listMembers",
    tag: "cluster",
    summary: "Nodes of the cluster, and which of them this node hears",
    responses: { 200: { description: "Members", schema: listOf(ClusterMember) } },
    handle: async (_call, _input, context) => {
      const system = await context.peers.systemRow<SystemRow>(systemKey, "linearizable");
      return json({
        items: membersOf(context.service.cluster(), await nodeRows(context), system),
      });
    },
  }),
  route({
    method: "POST",
    path: "/v1/cluster/join",
    id: "joinNode",
    tag: "cluster",
    summary:
      "Take a node that was leaving, or is drained, as a full member again, and say its zone",
    body: JoinRequest,
    responses: { 200: { description: "The node as it is now", schema: NodeAnswer } },
    handle: async (call, { body }, context) => {
      const rows = await nodeRows(context);
      if (!rows.some((row) => row.node === body.node))
        throw new Problem(
          "not-found",
          `Start node "${body.node}" with CONFLUX_PEERS naming nodes that are up: it joins by itself`,
        );
      return await setPhase(call, context, body.node, "active", body.zone);
    },
  }),
  route({
    method: "POST",
    path: "/v1/cluster/leave",
    id: "leaveNode",
    tag: "cluster",
    summary: "Move everything off a node, then remove it from the cluster",
    body: NodeRequest,
    responses: { 200: { description: "The node as it is now", schema: NodeAnswer } },
    handle: async (call, { body }, context) => {
      await guardLeave(body.node, context);
      return await setPhase(call, context, body.node, "leaving");
    },
  }),
  route({
    method: "POST",
    path: "/v1/cluster/nodes/:node/drain",
    id: "drainNode",
    tag: "cluster",
    summary: "Move the replicas of a node elsewhere, and place none on it",
    responses: { 200: { description: "The node as it is now", schema: NodeAnswer } },
    handle: (call, _input, context) =>
      setPhase(call, context, call.params["node"] as string, "draining"),
  }),
  route({
    method: "POST",
    path: "/v1/cluster/nodes/:node/undrain",
    id: "undrainNode",
    tag: "cluster",
    summary: "Place replicas on a node again",
    responses: { 200: { description: "The node as it is now", schema: NodeAnswer } },
    handle: (call, _input, context) =>
      setPhase(call, context, call.params["node"] as string, "active"),
  }),
  route({
    method: "POST",
    path: "/v1/cluster/upgrade",
    id: "upgradeCluster",
    tag: "cluster",
    summary:
      "Use what all nodes know since they were upgraded; from then on no older version may come back",
    body: UpgradeRequest,
    responses: { 200: { description: "The cluster's level", schema: UpgradeAnswer } },
    handle: async (call, { body }, context) => {
      const most = levelOfAll(context.service.cluster(), await nodeRows(context));
      const { level = most.level } = body;
      if (level > most.level)
        throw new Problem(
          "conflict",
          `Upgrade node "${most.node}" first: its version ${most.version} knows levels up to ${most.level}, not ${level}`,
        );
      const changed = await changeDirectory<"system.level">(call, context, {
        op: "system.level",
        level,
      });
      return changedAnswer(changed, changed.result);
    },
  }),
  route({
    method: "POST",
    path: "/v1/cluster/nodes/:node/repair",
    id: "repairReplica",
    tag: "cluster",
    summary:
      "Have a tenant's damaged replica on a node replaced by a new one, which its peers feed; what is left of the old one is removed",
    body: RepairRequest,
    responses: { 200: { description: "Under way", schema: RepairAnswer } },
    handle: async (call, { body }, context) => {
      const { tenant } = body;
      const node = call.params["node"] as string;
      const { service, peers } = context;
      if (!(await nodeRows(context)).some((row) => row.node === node))
        throw new Problem("not-found", `There is no node "${node}"`);
      // Only the node itself knows what is wrong with its replica.
      if (node !== service.node)
        return await peers.forward(call, [node], new TextEncoder().encode(JSON.stringify(body)), {
          safe: false,
        });
      const replacement = await service.repair(tenant);
      const changed = await changeDirectory<"directory.move">(call, context, replacement);
      return changedAnswer(changed, { node, tenant });
    },
  }),
  route({
    method: "GET",
    path: "/v1/cluster/tenants",
    id: "listClusterTenants",
    tag: "cluster",
    summary: "Where tenants are placed and, by which nodes are alive, how they are",
    query: {
      ...listQuery,
      state: Type.Optional(Type.Union(tenantStates.map((state) => Type.Literal(state)))),
    },
    responses: { 200: { description: "Tenants", schema: listOf(ClusterTenant) } },
    handle: async (_call, { query }, context) => {
      const { state, cursor, limit = listLimitDefault } = query;
      return json(await clusterTenants(context, { state, cursor, limit }));
    },
  }),
];

function statusOf(status: ClusterStatus, now: number): object {
  const absences = status.absences.map(({ node, from, until, reason }) => ({
    node,
    from: time(from),
    until: time(until),
    seconds: Math.max(0, ((until ?? now) - from) / 1000),
    reason,
  }));
  return { ...status, absences };
}

/** The highest level that every node knows, and one that knows no more. Who cannot be asked cannot be counted on. */
function levelOfAll(
  { nodes }: ClusterStatus,
  rows: readonly NodeRow[],
): { readonly level: number; readonly node: string; readonly version: string } {
  // A level is never lowered: without nodes to ask there is none that all know.
  if (rows.length === 0)
    throw new Problem(
      "conflict",
      "No node has registered yet: try again when the cluster is ready",
    );
  let most = { level: Infinity, node: "", version: "" };
  for (const { node } of rows) {
    const seen = nodes.find(({ name }) => name === node);
    if (seen === undefined || !(seen.alive || seen.self))
      throw new Problem(
        "conflict",
        `Bring back node "${node}" first, or let it leave: what its version knows cannot be asked`,
      );
    const { levels, version } = seen;
    // One that says nothing of levels is of a version before there were any.
    const level = levels?.max ?? levelFirst;
    if (level < most.level) most = { level, node, version: version ?? "unknown" };
  }
  return most;
}

async function nodeRows({ peers }: Context): Promise<NodeRow[]> {
  const rows = await peers.systemRows<NodeRow>({ ...under("node"), limit: nodesMax });
  return rows.map(([, row]) => row);
}

async function setPhase(
  call: Call,
  context: Context,
  node: string,
  phase: "active" | "draining" | "leaving",
  zone?: string,
): Promise<Answer> {
  const changed = await changeDirectory<"node.phase">(call, context, {
    op: "node.phase",
    node,
    phase,
    ...(zone !== undefined && { zone }),
  });
  const row = changed.result.node;
  return changedAnswer(changed, {
    node: row.node,
    zone: row.zone,
    phase: row.phase ?? "active",
  });
}

/** What could never end, or would end the cluster, is not begun. */
async function guardLeave(node: string, context: Context): Promise<void> {
  const rows = await nodeRows(context);
  if (!rows.some((row) => row.node === node))
    throw new Problem("not-found", `There is no node "${node}"`);
  const stay = rows.filter(
    (row) => row.node !== node && row.phase === undefined && row.role !== "gateway",
  );
  if (stay.length === 0)
    throw new Problem("conflict", `Node "${node}" is the last one that is not drained or leaving`);
  const { nodes } = context.service.cluster();
  const isAlive = (name: string): boolean =>
    nodes.some((one) => one.name === name && (one.alive || one.self));
  const system = await context.peers.systemRow<SystemRow>(systemKey, "linearizable");
  const voters = (system?.placement.replicas ?? []).filter(({ state }) => state === undefined);
  const left = voters.filter((voter) => voter.node !== node && isAlive(voter.node));
  if (voters.length > 1 && left.length * 2 < voters.length)
    throw new Problem(
      "conflict",
      `Without node "${node}" too few voters of the system group are up: bring back ${voters
        .filter((voter) => !isAlive(voter.node))
        .map((voter) => voter.node)
        .join(", ")} first`,
    );
  const tenants = await context.peers.systemRows<TenantRow>({
    ...under("ten"),
    limit: tenantsLookedAtMax,
  });
  const wide = tenants.find(([, row]) => {
    const wanted = row.placement.replicas.filter((replica) => !isLeaving(replica));
    return wanted.length > stay.length && wanted.some((replica) => replica.node === node);
  });
  if (wide !== undefined)
    throw new Problem(
      "conflict",
      `Tenant "${wide[1].tenant}" has more replicas than nodes would be left: PATCH its replicas, or add a node first`,
    );
}

function membersOf(
  cluster: ClusterStatus,
  rows: readonly NodeRow[],
  system: SystemRow | undefined,
): unknown[] {
  const registered = new Map(rows.map((row) => [row.node, row]));
  const replicas = (system?.placement.replicas ?? []).filter(({ state }) => state !== "lost");
  const names = new Set([...cluster.nodes.map((node) => node.name), ...registered.keys()]);
  return [...names].sort().map((name) => {
    const seen = cluster.nodes.find((node) => node.name === name);
    const row = registered.get(name);
    const replica = replicas.find((one) => one.node === name);
    return {
      node: name,
      zone: row?.zone ?? null,
      alive: seen?.alive ?? false,
      self: seen?.self ?? false,
      heardMsAgo: seen?.heardMsAgo ?? null,
      boot: seen?.boot ?? row?.boot ?? null,
      registeredAt: time(row?.registeredAt ?? null),
      phase: row?.phase ?? "active",
      role: row?.role ?? "member",
      system: replica === undefined ? null : (replica.state ?? "voter"),
    };
  });
}

async function clusterTenants(
  context: Context,
  options: { state: string | undefined; cursor: string | undefined; limit: number },
): Promise<{ items: unknown[]; next?: string }> {
  const { service, peers } = context;
  const nodes = new Map((await nodeRows(context)).map((row) => [row.node, row]));
  const alive = new Set(
    service
      .cluster()
      .nodes.filter((node) => node.alive || node.self)
      .map((node) => node.name),
  );
  const { gte, lt } = under("ten");
  // A key directly after the cursor's: keys hold no zero byte.
  const from = options.cursor === undefined ? gte : `ten/${options.cursor}\u0000`;
  const rows = await peers.systemRows<TenantRow>({ gte: from, lt, limit: tenantsLookedAtMax });
  const items: unknown[] = [];
  for (const [, row] of rows) {
    if (row.deletedAt !== null) continue;
    const replicas = row.placement.replicas.map((replica) => ({
      ...replica,
      alive: alive.has(replica.node),
    }));
    const isUp = (replica: (typeof replicas)[number]): boolean =>
      replica.alive && replica.state !== "lost" && !isLost(replica, row, nodes.get(replica.node));
    // Who joins has no vote yet.
    const voters = settledReplicas(replicas);
    const state =
      voters.filter(isUp).length * 2 <= voters.length
        ? "leaderless"
        : !replicas.every(isUp) || row.regrow !== undefined
          ? "under-replicated"
          : "ok";
    if (options.state !== undefined && options.state !== state) continue;
    const shown = replicas.map(({ node, id, state: how = "voter", alive: isHeard }) => ({
      node,
      id,
      state: how,
      alive: isHeard,
    }));
    items.push({ tenant: row.tenant, group: row.group, replicas: shown, state });
    if (items.length === options.limit) return { items, next: row.tenant };
  }
  const last = rows.length === tenantsLookedAtMax ? rows.at(-1)?.[1].tenant : undefined;
  return { items, ...(last !== undefined && { next: last }) };
}
