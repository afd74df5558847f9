/**
 * Unsafe recovery: groups that lost their quorum for good go on from one replica. Pure; the offline tool
 * (cli/recover.ts) brings the directories.
 *
 * For each such group the surviving replica with the greatest (term, index) becomes the only voter of a new incarnation.
 * All it has in its log counts as committed: it may hold more than was acknowledged, and what was acknowledged by the
 * others alone is lost. Replicas of the old incarnation are strangers from then on, whoever brings them back.
 *
 * What was done is a command at the end of the log (machine/recovery.ts), so it is in the history and in the audit. The
 * log in front of what was applied is dropped: who joins the new incarnation begins with a snapshot, and never applies a
 * change of members of the old one. Those that are not applied yet are made void.
 */
import { apply } from "../machine/machine.ts";
import type { Command } from "../machine/command.ts";
import { membersKey } from "../machine/keys.ts";
import { isLost, settledReplicas } from "../machine/rows.ts";
import type { Member, NodeRow, SystemRow, TenantMeta, TenantRow } from "../machine/rows.ts";
import { decodeConfChange, emptyConfState } from "../raft/raft.ts";
import { entryToBytes } from "../raft/codec.ts";
import { ChangeKind, EntryKind, NONE, type ConfState, type Entry } from "../raft/types.ts";
import { parseRecord } from "./codec.ts";
import { SYSTEM_GROUP, SYSTEM_TENANT } from "./directory.ts";
import { GroupLog, type ReplicaMeta } from "./group_log.ts";
import type { Environment, EnvironmentChange, RecoveredRecord } from "./ports.ts";
import { metaFromBytes, metaToBytes } from "./replica.ts";
import { TenantState } from "./tenant_state.ts";

const NO_BYTES = new Uint8Array(0);
const decoder = new TextDecoder();

/** What an environment and the journal's records of the same group make together. */
export interface RecoveredLog {
  readonly meta: ReplicaMeta;
  readonly log: GroupLog;
  /** Of the newest record that is in it. */
  readonly sequence: number;
  /** Neither of the two knows this replica. */
  readonly isFresh: boolean;
}

/** @param identity who it is, when nothing says so here */
export function recoverLog(
  environment: Environment,
  identity: ReplicaMeta,
  records: Iterable<RecoveredRecord>,
): RecoveredLog {
  const stored = environment.meta();
  let meta = stored === null ? null : metaFromBytes(stored);
  let appends: RecoveredRecord[] = [];
  // Records name the replica only at their beginning: those before may be of one that was here and left.
  const isInitial = identity.members.some(({ id }) => id === identity.replica);
  let owner = stored !== null || isInitial ? identity.replica : NONE;
  for (const record of records) {
    if (meta !== null && record.sequence <= meta.sequence) continue;
    const parsed = parseRecord(record.payload);
    if (parsed.kind === "create") {
      if (parsed.meta.replica !== owner) appends = [];
      owner = parsed.meta.replica;
      if (owner === identity.replica) meta ??= parsed.meta;
    } else if (owner === identity.replica) {
      appends.push(record);
    }
  }
  const isFresh = meta === null;
  meta ??= identity;
  const log = new GroupLog(environment, meta);
  let { sequence } = meta;
  for (const record of appends) {
    const parsed = parseRecord(record.payload);
    if (parsed.kind !== "append") continue;
    if (parsed.hard !== null) log.recoverHardState(parsed.hard);
    log.append(parsed.entries);
    ({ sequence } = record);
  }
  log.settleRecovery(meta.applied);
  return { meta, log, sequence, isFresh };
}

/** Everything behind what was applied. */
export function unapplied({ meta, log }: RecoveredLog): readonly Entry[] {
  return log.entries(meta.applied + 1, log.lastIndex() + 1, Number.POSITIVE_INFINITY) ?? [];
}

/** The state at the end of the log, whether all of it was committed or not. The environment stays as it is. */
export function stateAtEnd(environment: Environment, recovered: RecoveredLog): TenantState {
  const state = new TenantState(environment);
  for (const { kind, data } of unapplied(recovered))
    if (kind === EntryKind.normal && data.length > 0)
      apply(state, JSON.parse(decoder.decode(data)) as Command);
  return state;
}

// --- what is there ---------------------------------------------------------------------------------------------------------

/** One replica as it is found on a stopped node. */
export interface ReplicaFound {
  readonly node: string;
  readonly tenant: string;
  readonly group: number;
  readonly id: number;
  readonly incarnation: number;
  /** Of the last entry of its log. */
  readonly term: number;
  readonly index: number;
  readonly commit: number;
  readonly applied: number;
  /** The tenant's revision with all of the log applied. */
  readonly revision: number;
  readonly voters: readonly number[];
  readonly votersOutgoing: readonly number[];
  /** Changes of members that are in the log and were not applied. */
  readonly pending: readonly { readonly adds: boolean; readonly id: number }[];
  /** Why it could not be trusted; null: it can. */
  readonly damaged: string | null;
}

export function describeReplica(
  node: string,
  environment: Environment,
  recovered: RecoveredLog,
  damaged: string | null,
): ReplicaFound {
  const { meta, log } = recovered;
  const conf: ConfState = log.initialState().confState;
  const last = log.lastIndex();
  return {
    node,
    tenant: meta.tenant,
    group: meta.group,
    id: meta.replica,
    incarnation: meta.incarnation,
    term: Math.max(0, log.term(last)),
    index: last,
    commit: log.initialState().hardState.commit,
    applied: meta.applied,
    revision: stateAtEnd(environment, recovered).get<TenantMeta>("meta")?.revision ?? 0,
    voters: conf.voters,
    votersOutgoing: conf.votersOutgoing,
    pending: unapplied(recovered)
      .filter(({ kind }) => kind === EntryKind.confChange)
      .flatMap(({ data }) => decodeConfChange(data).changes)
      .map(({ kind, id }) => ({ adds: kind === ChangeKind.addVoter, id })),
    damaged,
  };
}

/** The directory as one of the survivors has it. */
export interface DirectoryFound {
  readonly system: SystemRow;
  readonly nodes: readonly NodeRow[];
  readonly tenants: readonly TenantRow[];
}

// --- plan ------------------------------------------------------------------------------------------------------------------

export interface GroupPlan {
  readonly tenant: string;
  readonly group: number;
  /**
   * whole: a majority of its voters is here. recover: it goes on from `survivor`. lost: nothing of it is here that could
   * be trusted.
   */
  readonly verdict: "whole" | "recover" | "lost";
  readonly survivor: Member | null;
  /** What the survivor has; null: it never had anything. */
  readonly found: ReplicaFound | null;
  /** Nodes whose replicas are given up. */
  readonly gone: readonly string[];
  readonly damaged: readonly { readonly node: string; readonly reason: string }[];
}

export interface RecoveryPlan {
  readonly cluster: string;
  /** Whose directories were looked at. */
  readonly nodes: readonly string[];
  readonly gone: readonly string[];
  readonly system: GroupPlan;
  /** New replicas of `_system` without a vote, for the other nodes that are here. */
  readonly learners: readonly Member[];
  readonly tenants: readonly GroupPlan[];
}

/** A plan cannot be made from what was given. */
export class RecoveryError extends Error {
  override readonly name = "RecoveryError";
}

/**
 * The replica that knows most: who has the greatest last term, and of those the longest log, has everything that was
 * committed as far as any of these can tell (Raft §5.4.1).
 */
export function mostKnowing(replicas: readonly ReplicaFound[]): ReplicaFound | null {
  return replicas
    .filter(({ damaged }) => damaged === null)
    .reduce<ReplicaFound | null>((best, one) => {
      if (best === null) return one;
      const ahead = one.term - best.term || one.index - best.index || best.id - one.id;
      return ahead > 0 ? one : best;
    }, null);
}

/**
 * @param found replicas on the nodes that are here
 * @throws RecoveryError when nodes are neither here nor gone
 */
export function planRecovery(options: {
  readonly cluster: string;
  readonly nodes: readonly string[];
  readonly gone: readonly string[];
  readonly directory: DirectoryFound;
  readonly found: readonly ReplicaFound[];
}): RecoveryPlan {
  const { cluster, directory, found } = options;
  const nodes = [...options.nodes].sort();
  const gone = [...options.gone].sort();
  refuseUnaccounted(nodes, gone, directory);
  const byGroup = new Map<number, ReplicaFound[]>();
  for (const one of found) byGroup.set(one.group, [...(byGroup.get(one.group) ?? []), one]);
  const { system } = directory;
  const own = planGroup(
    {
      tenant: SYSTEM_TENANT,
      group: SYSTEM_GROUP,
      incarnation: system.incarnation ?? 1,
      replicas: system.placement.replicas.filter(({ state }) => state !== "lost"),
      voters: system.placement.replicas.filter(({ state }) => state !== "learner"),
    },
    byGroup.get(SYSTEM_GROUP) ?? [],
    nodes,
  );
  const tenants = directory.tenants.map((row) => {
    const replicas = row.placement.replicas.filter(
      (replica) =>
        replica.state !== "lost" &&
        !isLost(
          replica,
          row,
          directory.nodes.find(({ node }) => node === replica.node),
        ),
    );
    return planGroup(
      {
        tenant: row.tenant,
        group: row.group,
        incarnation: row.incarnation,
        replicas,
        voters: settledReplicas(row.placement.replicas),
      },
      byGroup.get(row.group) ?? [],
      nodes,
    );
  });
  const isNeeded = own.verdict !== "whole" || tenants.some(({ verdict }) => verdict === "recover");
  // Of a majority the most knowing has everything: where the directory is whole, nothing of it is lost this way.
  const planned: GroupPlan = isNeeded ? { ...own, verdict: "recover" } : own;
  const learners = isNeeded
    ? nodes
        .filter((node) => node !== planned.survivor?.node)
        .map((node, at) => ({ node, id: system.nextReplica + at }))
    : [];
  return { cluster, nodes, gone, system: planned, learners, tenants };
}

function refuseUnaccounted(
  nodes: readonly string[],
  gone: readonly string[],
  { system, nodes: rows }: DirectoryFound,
): void {
  const both = gone.find((node) => nodes.includes(node));
  if (both !== undefined)
    throw new RecoveryError(
      `Node ${both} is named as gone, and its directory is here: leave one out`,
    );
  const known = new Set([
    ...rows.map(({ node }) => node),
    ...system.placement.replicas.filter(({ state }) => state !== "lost").map(({ node }) => node),
  ]);
  const open = [...known].filter((node) => !nodes.includes(node) && !gone.includes(node)).sort();
  if (open.length > 0)
    throw new RecoveryError(
      `What became of ${open.join(", ")}? Stop them and give their data directories too, or name those that are gone for good: --gone ${[...gone, ...open].join(",")}`,
    );
  const stranger = gone.find((node) => !known.has(node));
  if (stranger !== undefined)
    throw new RecoveryError(
      `Node ${stranger} is not known to the directory: it knows ${[...known].sort().join(", ")}. After a recovery, whoever was gone is forgotten: then start the nodes`,
    );
}

interface GroupPlaced {
  readonly tenant: string;
  readonly group: number;
  readonly incarnation: number;
  readonly replicas: readonly Member[];
  /** Before anything was logged. */
  readonly voters: readonly Member[];
}

function planGroup(
  placed: GroupPlaced,
  all: readonly ReplicaFound[],
  nodes: readonly string[],
): GroupPlan {
  const { tenant, group, replicas } = placed;
  const mine = all
    .filter((one) => replicas.some(({ id, node }) => id === one.id && node === one.node))
    .map((one) =>
      one.damaged !== null || one.incarnation === placed.incarnation
        ? one
        : {
            ...one,
            damaged: `it is of incarnation ${one.incarnation}, and the directory knows ${placed.incarnation}`,
          },
    );
  const damaged = mine.flatMap(({ node, damaged: reason }) =>
    reason === null ? [] : [{ node, reason }],
  );
  const here = replicas.filter(
    ({ node }) => nodes.includes(node) && !damaged.some((one) => one.node === node),
  );
  const best = mostKnowing(mine);
  // One that was never used has nothing on any disk.
  const survivor: Member | null = best ?? here[0] ?? null;
  const gone = replicas.map(({ node }) => node).filter((node) => !nodes.includes(node));
  const ids = new Set(here.map(({ id }) => id));
  const isWhole = configurationsOf(best, placed.voters).every((voters) => {
    const present = voters.filter((id) => ids.has(id)).length;
    return present * 2 > voters.length;
  });
  return {
    tenant,
    group,
    verdict: survivor === null ? "lost" : isWhole ? "whole" : "recover",
    survivor: survivor === null ? null : { node: survivor.node, id: survivor.id },
    found: best,
    gone: gone.sort(),
    damaged,
  };
}

/** Voters whose majority is needed, now and after what is in the log. */
function configurationsOf(
  found: ReplicaFound | null,
  initial: readonly Member[],
): readonly (readonly number[])[] {
  if (found === null) return [initial.map(({ id }) => id)];
  const after = new Set(found.voters);
  for (const { adds, id } of found.pending) {
    if (adds) after.add(id);
    else after.delete(id);
  }
  return [found.voters, found.votersOutgoing, [...after]].filter((voters) => voters.length > 0);
}

// --- what is written -------------------------------------------------------------------------------------------------------

/** The replica as the only voter of its group's next incarnation, with `commands` at the end of its log. */
export function recoveredChange(
  environment: Environment,
  { meta, log, sequence }: RecoveredLog,
  incarnation: number,
  member: Member,
  commands: readonly Uint8Array[],
): EnvironmentChange {
  const { hardState } = log.initialState();
  const last = log.lastIndex();
  const term = Math.max(hardState.term, log.term(last)) + 1;
  const kept = (log.entries(meta.applied + 1, last + 1, Number.POSITIVE_INFINITY) ?? []).map(
    (entry) =>
      entry.kind === EntryKind.confChange
        ? { ...entry, kind: EntryKind.normal, data: NO_BYTES }
        : entry,
  );
  const added = commands.map((data, at) => ({
    index: last + 1 + at,
    term,
    kind: EntryKind.normal,
    data,
  }));
  const end = last + added.length;
  const members = [{ node: member.node, id: member.id }];
  const next: ReplicaMeta = {
    ...meta,
    incarnation,
    members,
    hard: { term, vote: NONE, commit: end },
    conf: { ...emptyConfState(), voters: [member.id] },
    first: meta.applied + 1,
    firstTerm: meta.appliedTerm,
    last: end,
    sequence,
  };
  const hasMembers = environment.get(membersKey) !== undefined;
  return {
    meta: metaToBytes(next),
    rows: hasMembers ? [[membersKey, JSON.stringify(members)]] : [],
    entries: [...kept, ...added].map((entry) => [entry.index, entryToBytes(entry)] as const),
    entriesDeleted: [{ low: meta.first, high: meta.applied + 1 }],
  };
}

/** A replica of `_system` that has nothing yet and learns from the one that went on. */
export function learnerMeta(
  incarnation: number,
  replica: number,
  voter: Member,
  sequence: number,
): Uint8Array {
  return metaToBytes({
    format: 1,
    tenant: SYSTEM_TENANT,
    group: SYSTEM_GROUP,
    incarnation,
    replica,
    members: [voter],
    hard: { term: 0, vote: NONE, commit: 0 },
    conf: { ...emptyConfState(), voters: [voter.id] },
    applied: 0,
    appliedTerm: 0,
    first: 1,
    firstTerm: 0,
    last: 0,
    sequence,
  });
}
