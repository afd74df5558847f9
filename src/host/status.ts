/** What a node says of itself, of the nodes it knows, and of a group that it has a replica of. Reads, and changes nothing. */
import type { ColdReplicas } from "./cold_replicas.ts";
import { SYSTEM_GROUP, SYSTEM_TENANT, type Directory } from "./directory.ts";
import type { Liveness } from "./liveness.ts";
import type {
  Clock,
  ClusterStatus,
  DiskSpace,
  Environments,
  GroupStatus,
  Journal,
  NodeStatus,
  ReplicaStatus,
  Transport,
} from "./ports.ts";
import type { Replica } from "./replica.ts";
import type { Replicas } from "./replicas.ts";
import type { NodeNews, Versions } from "./versions.ts";

/** Damaged replicas that are named. */
const QUARANTINE_SHOWN_MAX = 100;

/** What the node was started with. */
export interface StatusOptions {
  readonly cluster: string;
  readonly node: string;
  readonly boot: number;
  readonly version: string;
  readonly transportKind: ClusterStatus["transport"];
  readonly transport: Transport;
  readonly journal: Journal;
  readonly environments: Environments;
  readonly disk?: DiskSpace;
  readonly clock: Clock;
}

/** What became of it. */
export interface StatusParts {
  readonly ready: boolean;
  /** Of this node. */
  readonly news: NodeNews;
  readonly directory: Directory;
  readonly liveness: Liveness;
  readonly versions: Versions;
  readonly admission: ClusterStatus["admission"];
  readonly clockAheadMs: number;
  /** Leaderships given away. */
  readonly given: number;
  readonly cold: ColdReplicas;
  /** Those in memory, by group. */
  readonly replicas: Pick<Replicas, "get" | "values" | "size">;
}

export function clusterStatus(options: StatusOptions, parts: StatusParts): ClusterStatus {
  const { node: self, clock, journal, environments, disk } = options;
  const { directory, liveness, versions, replicas } = parts;
  const now = clock.monotonicMs();
  const names = new Set([self, ...liveness.peers]);
  for (const { node } of directory.nodes()) names.add(node);
  let leaders = 0;
  for (const { raft } of replicas.values()) if (raft.isLeader) leaders += 1;
  const system = replicas.get(SYSTEM_GROUP);
  return {
    cluster: options.cluster,
    node: self,
    version: options.version,
    ready: parts.ready,
    transport: options.transportKind,
    connected: options.transport.connected,
    nodes: [...names].sort().map((name) => ({
      name,
      self: name === self,
      ...liveness.status(name, now),
      ...(name === self ? { boot: options.boot } : {}),
      ...newsShown(name === self ? parts.news : versions.newsOf(name)),
    })),
    absences: liveness.absences.map(({ from, until, ...rest }) => {
      const wall = (at: number): number => Math.round(clock.wallMs() - (now - at));
      return { ...rest, from: wall(from), until: until === null ? null : wall(until) };
    }),
    clockAheadMs: parts.clockAheadMs,
    level: versions.level,
    replicas: { warm: replicas.size, leaders, given: parts.given },
    admission: parts.admission,
    journal: journal.status,
    environments: { open: environments.open_count, cap: environments.cap },
    quarantine: quarantined(parts),
    disk: disk === undefined ? null : diskStatus(disk),
    tenants: system?.view.get<{ tenants?: number }>("meta")?.tenants ?? 0,
  };
}

function quarantined({ cold, directory, replicas }: StatusParts): ClusterStatus["quarantine"] {
  const reasons = cold.faults();
  for (const { group, halted } of replicas.values())
    if (halted !== null) reasons.set(group, halted);
  return [...reasons].slice(0, QUARANTINE_SHOWN_MAX).map(([group, reason]) => ({
    group,
    tenant: group === SYSTEM_GROUP ? SYSTEM_TENANT : (directory.byGroup(group)?.tenant ?? null),
    reason,
  }));
}

function newsShown(news: NodeNews | undefined): Pick<NodeStatus, "version" | "levels" | "leaders"> {
  const { version = null, levels = null, leaders = null } = news ?? {};
  return { version, levels, leaders };
}

/** The fields alone: what is measured may be more than that. */
function diskStatus({ level, freeBytes, reserveBytes, oldestWriteMs }: DiskSpace): DiskSpace {
  return { level, freeBytes, reserveBytes, oldestWriteMs };
}

/** As far as the replica knows: of the others only its leader does. */
export function groupStatus(replica: Replica): GroupStatus {
  const status = replica.raft.status();
  const replicas: ReplicaStatus[] = [...replica.members].map(([id, node]) => {
    const progress = status.progress.find((peer) => peer.id === id);
    const learner = replica.conf.learners.includes(id);
    return {
      node,
      id,
      role: id === status.lead ? "leader" : learner ? "learner" : "voter",
      match: id === replica.id ? status.lastIndex : (progress?.match ?? null),
      state: id === replica.id ? "self" : (progress?.state ?? "unknown"),
    };
  });
  return {
    tenant: replica.tenant,
    group: replica.group,
    leader: replica.leaderNode,
    term: status.term,
    commit: status.commit,
    applied: status.applied,
    revision: replica.view.revision,
    epoch: replica.view.epoch,
    replicas,
  };
}
