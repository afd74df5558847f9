/** On which nodes a tenant's replicas are put: one order of nodes per tenant, zones before names. */
import { Problem } from "../api/problems.ts";
import { isLeaving, type NodeRow } from "../machine/rows.ts";
import type { Directory } from "./directory.ts";

/** Replicas of a tenant that nobody said a number for, where there are as many nodes. */
const REPLICAS = 3;

export interface Candidate {
  readonly node: string;
  readonly zone: string | null;
}

/**
 * Nodes for a tenant's replicas, best first: `keep` as long as they are candidates, then by rendezvous hashing (each
 * tenant has its own order of nodes, and a node more or less moves few tenants), another zone before the same one.
 */
export function chooseNodes(
  tenant: string,
  count: number,
  candidates: readonly Candidate[],
  keep: readonly string[] = [],
): string[] {
  const order = [...candidates].sort(
    (left, right) =>
      Number(keep.includes(right.node)) - Number(keep.includes(left.node)) ||
      hash32(`${tenant}/${right.node}`) - hash32(`${tenant}/${left.node}`) ||
      (left.node < right.node ? -1 : 1),
  );
  const chosen: Candidate[] = [];
  while (chosen.length < count && order.length > 0) {
    const isOtherZone = ({ zone }: Candidate): boolean =>
      zone === null || !chosen.some((other) => other.zone === zone);
    const next = order.find((one) => keep.includes(one.node) || isOtherZone(one)) ?? order[0];
    if (next === undefined) break;
    chosen.push(next);
    order.splice(order.indexOf(next), 1);
  }
  return chosen.map(({ node }) => node);
}

/** Nodes that may get replicas of tenants. */
export function isPlaceable({
  phase,
  role,
}: {
  readonly phase?: NodeRow["phase"] | undefined;
  readonly role?: NodeRow["role"];
}): boolean {
  return phase === undefined && role !== "gateway";
}

/**
 * Nodes for a new tenant, as `ConfigService.place` gives them.
 * @param peers the initial nodes, which are candidates before the first of them registered
 */
export function placeTenant(
  tenant: string,
  replicas: number | undefined,
  keep: readonly string[],
  directory: Directory,
  peers: readonly string[],
  supports: (node: string) => boolean,
): readonly string[] {
  const candidates = candidatesIn(directory, peers);
  const count = candidates.length;
  const wanted = replicas ?? (count >= REPLICAS ? REPLICAS : 1);
  if (wanted > count) {
    throw new Problem(
      "invalid",
      `Cannot place ${wanted} replicas: the cluster has ${count} ${count === 1 ? "node" : "nodes"}`,
      { errors: [{ pointer: "/replicas", detail: `must be at most ${count}` }] },
    );
  }
  const alive = candidates.filter(({ node }) => supports(node));
  const chosen = chooseNodes(tenant, wanted, alive, keep);
  // Rather on nodes that are away just now than fewer than was asked for.
  return chosen.length === wanted ? chosen : chooseNodes(tenant, wanted, candidates, chosen);
}

/** Registered nodes and members that are about to be, unless they are drained or leave. */
function candidatesIn(directory: Directory, peers: readonly string[]): readonly Candidate[] {
  const system = directory.system()?.placement.replicas.filter((one) => !isLeaving(one));
  const names = new Set(system?.map(({ node }) => node) ?? peers);
  const rows = directory.nodes();
  for (const { node } of rows) names.add(node);
  return [...names]
    .map((node) => rows.find((row) => row.node === node) ?? { node, zone: null, phase: undefined })
    .filter(isPlaceable);
}

/** FNV-1a with a final mix: spreads names that differ in one character. */
function hash32(text: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < text.length; index++) {
    hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193);
  }
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  return (hash ^ (hash >>> 13)) >>> 0;
}
