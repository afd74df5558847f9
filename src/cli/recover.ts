/**
 * `conflux cluster recover`: for a cluster of which too many nodes are gone for good. Works on the data directories of the
 * nodes that are left, all of them stopped; host/recovery.ts says what becomes of each group.
 *
 * Without --gone it lists what is there. With it, it says what would be done and what may be lost, and a hash of that
 * plan; nothing is changed before the same plan is asked for by --apply. What is under way is written into each directory
 * first, and no node starts on it before it is finished: the same command goes on after any interruption.
 */
import { hash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import type { Command } from "../machine/command.ts";
import { semanticsNow } from "../machine/command.ts";
import { systemKey, under } from "../machine/keys.ts";
import { recoveredPerCommandMax } from "../machine/recovery.ts";
import type { Member, NodeRow, SystemRow, TenantRow } from "../machine/rows.ts";
import type { ReplicaId } from "../raft/types.ts";
import { useDigest } from "../model/content.ts";
import { environmentName, newestLost, replicaNamed } from "../host/cold_replicas.ts";
import { SYSTEM_GROUP } from "../host/directory.ts";
import { freshMeta } from "../host/group_log.ts";
import {
  describeReplica,
  learnerMeta,
  mostKnowing,
  planRecovery,
  recoveredChange,
  recoverLog,
  RecoveryError,
  stateAtEnd,
  type DirectoryFound,
  type GroupPlan,
  type RecoveredLog,
  type RecoveryPlan,
  type ReplicaFound,
} from "../host/recovery.ts";
import type { EnvironmentChange, LostRecords } from "../host/ports.ts";
import { metaFromBytes } from "../host/replica.ts";
import { identityOf, recoveryFile } from "../store/data_dir.ts";
import { syncDirectorySync, writeFileDurably } from "../store/disk.ts";
import { LmdbEnvironments, type LmdbEnvironment } from "../store/environments.ts";
import { readJournal, type NodeJournalRecovery } from "../store/journal.ts";
import { lockDirectory } from "../store/lock.ts";
import { QuarantineDirectory } from "../store/quarantine.ts";

/** What is written down before anything is changed. */
interface Begun {
  readonly format: 1;
  readonly hash: string;
  /** Wall clock, ms; incarnations and epochs are made of it. */
  readonly at: number;
  readonly incarnation: number;
  readonly plan: RecoveryPlan;
}

export interface Recovery {
  /** Of all groups on the given nodes; the group that was looked at first is the directory. */
  readonly found: readonly ReplicaFound[];
  /** Null: nobody is gone, so there is nothing to plan. */
  readonly plan: RecoveryPlan | null;
  readonly hash: string | null;
  readonly applied: boolean;
}

/** Tells how far it is: groups done, of how many. */
export type RecoverTell = (text: string) => void;

/** @throws RecoveryError, DataDirectoryError, DirectoryInUseError, JournalError: nothing was changed */
export async function recover(
  directories: readonly string[],
  options: {
    readonly gone: readonly string[];
    readonly apply: string | null;
    readonly yes: boolean;
  },
  tell: RecoverTell,
): Promise<Recovery> {
  useDigest((text) => hash("sha256", text, "hex"));
  const stopped: StoppedNode[] = [];
  refuseTwice(directories);
  try {
    for (const directory of directories) stopped.push(await StoppedNode.open(directory));
    refuseMixture(stopped);
    const begun = begunIn(stopped);
    if (begun !== null) {
      if (!options.yes && options.apply !== begun.hash)
        throw new RecoveryError(
          `A recovery was begun here and not finished: go on with it by --apply ${begun.hash}`,
        );
      await apply(stopped, begun, tell);
      return { found: [], plan: begun.plan, hash: begun.hash, applied: true };
    }
    const found: ReplicaFound[] = [];
    for (const node of stopped) for await (const one of node.survey(tell)) found.push(one);
    if (options.gone.length === 0) {
      if (options.apply !== null || options.yes)
        throw new RecoveryError("Name the nodes that are gone for good, as for the plan: --gone …");
      return { found, plan: null, hash: null, applied: false };
    }
    const plan = planRecovery({
      cluster: stopped[0]?.cluster ?? "",
      nodes: stopped.map(({ node }) => node),
      gone: options.gone,
      directory: await directoryOf(stopped, found),
      found,
    });
    const hash = hashOf(plan);
    const isNeeded = plan.system.verdict === "recover";
    if (!isNeeded || (!options.yes && options.apply === null))
      return { found, plan, hash, applied: false };
    if (options.apply !== null && options.apply !== hash)
      throw new RecoveryError(
        `The plan is another one by now, ${hash}: look at it again without --apply`,
      );
    const at = Date.now();
    const newest = Math.max(...found.map(({ incarnation }) => incarnation));
    const incarnation = Math.max(Math.floor(at / 1_000), newest + 1);
    await apply(stopped, { format: 1, hash, at, incarnation, plan }, tell);
    return { found, plan, hash, applied: true };
  } finally {
    for (const node of stopped) node.close();
  }
}

/** Not over when it was made: the same directories give the same plan again. */
function hashOf(plan: RecoveryPlan): string {
  return hash("sha256", JSON.stringify(plan), "hex").slice(0, 12);
}

function refuseTwice(directories: readonly string[]): void {
  const paths = directories.map((directory) => resolve(directory));
  const twice = paths.find((path, at) => paths.indexOf(path) < at);
  if (twice !== undefined) throw new RecoveryError(`${twice} is given twice`);
}

function refuseMixture(stopped: readonly StoppedNode[]): void {
  const [first] = stopped;
  for (const [at, { path, node, cluster }] of stopped.entries()) {
    if (cluster !== first?.cluster)
      throw new RecoveryError(`${path} is of cluster ${cluster}, not ${first?.cluster}`);
    if (stopped.findIndex((other) => other.node === node) < at)
      throw new RecoveryError(`Node ${node} is given twice: once more as ${path}`);
  }
}

function begunIn(stopped: readonly StoppedNode[]): Begun | null {
  const all = stopped.flatMap(({ begun }) => (begun === null ? [] : [begun]));
  const [first] = all;
  if (first === undefined) return null;
  if (all.some(({ hash, at }) => hash !== first.hash || at !== first.at))
    throw new RecoveryError(
      "Different recoveries were begun in these directories: give one's alone",
    );
  const missing = first.plan.nodes.find((name) => !stopped.some(({ node }) => node === name));
  const other = stopped.find(({ node }) => !first.plan.nodes.includes(node));
  if (missing !== undefined || other !== undefined)
    throw new RecoveryError(
      `A recovery of ${first.plan.nodes.join(", ")} was begun here and not finished: give the directories of these nodes`,
    );
  return first;
}

// --- the directory, as the one who knows most has it -------------------------------------------------------------------------

async function directoryOf(
  stopped: readonly StoppedNode[],
  found: readonly ReplicaFound[],
): Promise<DirectoryFound> {
  const best = mostKnowing(found.filter(({ group }) => group === SYSTEM_GROUP));
  const node = stopped.find((one) => one.node === best?.node);
  const damaged = found.find((one) => one.group === SYSTEM_GROUP && one.damaged !== null);
  if (best === null || node === undefined)
    throw new RecoveryError(
      damaged === undefined
        ? "None of these directories holds a replica of _system: nothing says which tenants there were"
        : `The only replicas of _system here are damaged (${damaged.damaged}): restore the tenants from their backups into a new cluster`,
    );
  return node.with(nameOf(best), async (environment, recovered) => {
    const state = stateAtEnd(environment, recovered);
    const system = state.get<SystemRow>(systemKey);
    if (system === undefined) throw new RecoveryError("The directory here is empty");
    return Promise.resolve({
      system,
      nodes: [...state.range<NodeRow>(under("node"))].map(([, row]) => row),
      tenants: [...state.range<TenantRow>(under("ten"))].map(([, row]) => row),
    });
  });
}

// --- doing it ----------------------------------------------------------------------------------------------------------------

async function apply(
  stopped: readonly StoppedNode[],
  begun: Begun,
  tell: RecoverTell,
): Promise<void> {
  for (const node of stopped) node.begin(begun);
  const nodeOf = (name: string): StoppedNode => {
    const node = stopped.find((one) => one.node === name);
    if (node === undefined) throw new RecoveryError(`The directory of node ${name} is missing`);
    return node;
  };
  const { plan, incarnation, at } = begun;
  const epoch = Math.floor(at / 1_000);
  const tenants = plan.tenants.filter(({ verdict }) => verdict === "recover");
  for (const [done, { tenant, group, survivor }] of tenants.entries()) {
    tell(`${done} of ${tenants.length} groups`);
    const replica = survivor as Member;
    const command = encoded(at, { op: "tenant.recover", epoch, replica });
    await nodeOf(replica.node).goOn({ tenant, group, replica: replica.id }, begun, replica, [
      command,
    ]);
  }
  // The directory comes last: until it knows of the new incarnations, none of them counts.
  const voter = plan.system.survivor as Member;
  const rows = tenants.map(({ tenant, group, survivor }) => ({
    tenant,
    group,
    incarnation,
    epoch,
    replica: survivor as Member,
  }));
  const commands: Uint8Array[] = [];
  for (let from = 0; from === 0 || from < rows.length; from += recoveredPerCommandMax) {
    const part = rows.slice(from, from + recoveredPerCommandMax);
    const system = { incarnation, voter, learners: plan.learners };
    const isFirst = from === 0;
    commands.push(
      encoded(at, {
        op: "directory.recover",
        epoch,
        ...(isFirst && { system }),
        gone: isFirst ? plan.gone : [],
        tenants: part,
      }),
    );
  }
  const system = { tenant: plan.system.tenant, group: SYSTEM_GROUP };
  await nodeOf(voter.node).goOn({ ...system, replica: voter.id }, begun, voter, commands);
  for (const { node, id } of plan.learners)
    await nodeOf(node).beginLearner({ ...system, replica: id }, incarnation, voter);
  for (const node of stopped) node.end();
}

function encoded(at: number, action: Command["action"]): Uint8Array {
  const command: Command = {
    at,
    actor: { kind: "system", keyId: "recovery" },
    semantics: semanticsNow,
    action,
  };
  return new TextEncoder().encode(JSON.stringify(command));
}

interface Named {
  readonly tenant: string;
  readonly group: number;
  readonly replica: number;
}

function nameOf({ tenant, group, id }: ReplicaFound): Named {
  return { tenant, group, replica: id };
}

/** A node's data directory while no process of the node has it. */
class StoppedNode {
  readonly path: string;
  readonly node: string;
  readonly cluster: string;
  readonly #environments: LmdbEnvironments;
  readonly #journal: NodeJournalRecovery;
  readonly #quarantine: QuarantineDirectory;
  /** As a node that starts here would say. */
  readonly #lost: LostRecords | null;
  readonly #release: () => void;
  begun: Begun | null;

  private constructor(path: string, release: () => void) {
    const { node, cluster } = identityOf(path);
    this.path = path;
    this.node = node;
    this.cluster = cluster;
    this.#environments = new LmdbEnvironments({ data: path });
    const journal = join(path, "journal");
    this.#journal = readJournal({
      list: () => readdirSync(journal),
      read: (name) => new Uint8Array(readFileSync(join(journal, name))),
    }).recovery;
    this.#quarantine = new QuarantineDirectory(path);
    this.#lost = newestLost(this.#journal, this.#quarantine.lost, () => this.#environments.names());
    this.#release = release;
    const file = join(path, recoveryFile);
    this.begun = existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Begun) : null;
  }

  static async open(directory: string): Promise<StoppedNode> {
    const path = resolve(directory);
    // Before it is locked: a lock would be made in whatever it is.
    identityOf(path);
    const lock = await lockDirectory(path);
    try {
      return new StoppedNode(path, () => lock.release());
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  close(): void {
    this.#release();
  }

  /** All replicas here, one environment open at a time. */
  async *survey(tell: RecoverTell): AsyncGenerator<ReplicaFound> {
    const names = this.#environments.names();
    for (const [at, name] of names.entries()) {
      tell(`${this.node}: ${at} of ${names.length} replicas read`);
      const named = replicaNamed(name);
      if (named === null) continue;
      const { tenant, group, id } = named;
      try {
        yield await this.with({ tenant, group, replica: id }, (environment, recovered) =>
          Promise.resolve(
            describeReplica(
              this.node,
              environment,
              recovered,
              this.#damageOf(name, group, id, recovered),
            ),
          ),
        );
      } catch (error) {
        // One that cannot be read is one that is not there; the others are not concerned.
        const reason = error instanceof Error ? error.message : String(error);
        yield { ...unreadable, node: this.node, tenant, group, id, damaged: reason };
      }
    }
  }

  #damageOf(name: string, group: number, id: ReplicaId, { sequence }: RecoveredLog): string | null {
    const { damaged, groups } = this.#journal;
    const known = damaged.get(group);
    if (known !== undefined) return known;
    for (const kept of this.#quarantine.replicas)
      if (kept.group === group && (kept.replica ?? id) === id) return kept.reason;
    if (groups.has(group)) return null;
    const lost = this.#lost;
    if (lost === null || sequence >= lost.to) return null;
    // Made after the loss was found, and nothing of it was in the journal then: it lacks nothing.
    const { environments } = lost;
    return environments?.includes(name) === false ? null : lost.where;
  }

  async with<T>(
    named: Named,
    act: (environment: LmdbEnvironment, recovered: RecoveredLog) => Promise<T>,
  ): Promise<T> {
    const environment = this.#environments.open(environmentName(named));
    try {
      const identity = freshMeta({ ...named, incarnation: 1 }, named.replica, []);
      const records = this.#journal.groups.get(named.group) ?? [];
      return await act(environment, recoverLog(environment, identity, records));
    } finally {
      await environment.close();
    }
  }

  begin(begun: Begun): void {
    if (this.begun !== null) return;
    const aside = join(this.path, `${recoveryFile}.new`);
    writeFileDurably(aside, JSON.stringify(begun));
    renameSync(aside, join(this.path, recoveryFile));
    syncDirectorySync(this.path);
    this.begun = begun;
  }

  end(): void {
    rmSync(join(this.path, recoveryFile), { force: true });
    syncDirectorySync(this.path);
  }

  /** Makes this replica its group's only voter, in the next incarnation. Doing it twice changes nothing. */
  async goOn(
    named: Named,
    { incarnation }: Begun,
    member: Member,
    commands: readonly Uint8Array[],
  ): Promise<void> {
    // A tenant that was never used has nothing here, and begins as any other when it is.
    if (!this.#environments.exists(environmentName(named))) return;
    await this.with(named, async (environment, recovered) => {
      const { meta, log, isFresh } = recovered;
      if (meta.incarnation === incarnation || (isFresh && log.lastIndex() === 0)) return;
      await commit(
        environment,
        recoveredChange(environment, recovered, incarnation, member, commands),
      );
    });
  }

  /** In the place of its replica of `_system`, one of the new incarnation that has nothing yet. */
  async beginLearner(named: Named, incarnation: number, voter: Member): Promise<void> {
    const name = environmentName(named);
    for (const other of this.#environments.names()) {
      if (other === name || replicaNamed(other)?.group !== SYSTEM_GROUP) continue;
      await this.#environments.remove(other);
    }
    const environment = this.#environments.open(name);
    try {
      const stored = environment.meta();
      if (stored !== null && metaFromBytes(stored).incarnation === incarnation) return;
      let sequence = 0;
      for (const record of this.#journal.groups.get(SYSTEM_GROUP) ?? []) ({ sequence } = record);
      const meta = learnerMeta(
        incarnation,
        named.replica,
        voter,
        Math.max(sequence, this.#lost?.to ?? 0),
      );
      await commit(environment, { meta, rows: [], entries: [], entriesDeleted: [] });
      this.#quarantine.remove(SYSTEM_GROUP);
    } finally {
      await environment.close();
    }
  }
}

const unreadable = {
  incarnation: 0,
  term: 0,
  index: 0,
  commit: 0,
  applied: 0,
  revision: 0,
  voters: [],
  votersOutgoing: [],
  pending: [],
} as const;

function commit(environment: LmdbEnvironment, change: EnvironmentChange): Promise<void> {
  return new Promise((done, failed) => {
    environment.commit(change, (error) => {
      if (error === null) done();
      else failed(error);
    });
  });
}

// --- in words ----------------------------------------------------------------------------------------------------------------

/** What is done to a group, and what may be lost. */
export function groupInWords({
  tenant,
  verdict,
  survivor,
  found,
  gone,
  damaged,
}: GroupPlan): string {
  const bad = damaged
    .map(({ node, reason }) => ` Its replica on ${node} is damaged: ${reason}.`)
    .join("");
  if (verdict === "whole") return `${tenant}: keeps its majority; nothing is done to it.${bad}`;
  if (verdict === "lost")
    return `${tenant}: LOST. All its replicas were on ${gone.join(", ") || "damaged disks"}; restore it from a backup (conflux restore --replace).${bad}`;
  const node = survivor?.node ?? "";
  const others = gone.length === 0 ? "the others" : gone.join(" and ");
  if (found === null)
    return `${tenant}: begins empty on ${node}, which never had anything of it. If ${others} had something, it is lost.${bad}`;
  const open = found.index - Math.max(found.commit, found.applied);
  const kept =
    open > 0
      ? ` ${open} ${open === 1 ? "entry" : "entries"} at its end may never have been acknowledged, and ${open === 1 ? "counts" : "count"} as committed from now on.`
      : "";
  return `${tenant}: goes on from ${node} at revision ${found.revision}.${kept} What ${others} acknowledged after that without ${node} is lost, if there was anything.${bad}`;
}
