/**
 * A node's data directory: whose it is, how often it was started, and that one process has it.
 *
 *   conflux.json   {"format", "cluster", "node", "disk", "boot"}
 *   lock.<n>       who has it now (lock.ts)
 *   journal/       the node's journal (journal.ts)
 *   quarantine/    damage that outlives the journal's segments (quarantine.ts)
 *   recovery.json  a recovery that was begun and not finished (cli/recover.ts)
 *   tenants/       one LMDB environment per replica (environments.ts)
 *
 * `boot` grows by one, durably, before anything else happens: messages of an earlier start can be told apart, and no
 * start is ever mistaken for another. It begins with the time, so that a node whose disk was replaced is not taken for an
 * earlier life of itself. `disk` is drawn when the directory is made: a wiped disk is a new replica.
 */
import { randomUUID } from "node:crypto";
import * as fs from "node:fs";
import { join, resolve } from "node:path";
import { syncDirectorySync, writeFileDurably } from "./disk.ts";
import { lockDirectory } from "./lock.ts";

/**
 * Of the directory as a whole; the journal's segments carry their own. Since 2 there may be a quarantine/, and environments
 * with the text of a large commit: whoever passes over the one lets a damaged replica vote, over the other serves half of
 * a commit. An older directory is read as it is, and is of this format from then on.
 */
export const dataFormat = 2;

const identityFile = "conflux.json";
/** While it is there some groups are of the new incarnation and some of the old one. */
export const recoveryFile = "recovery.json";
const watchMs = 1000;
/** Keeps the numbers short. */
const bootsSince = Date.UTC(2026, 0);

export interface DataDirectoryOptions {
  readonly directory: string;
  readonly cluster: string;
  readonly node: string;
  /** The initial nodes: replica ids of the system group are given by them, so they are for life. */
  readonly peers: readonly string[];
}

export interface DataDirectory {
  readonly path: string;
  readonly journal: string;
  /** Grows with each start, also over the loss of the directory. */
  readonly boot: number;
  readonly disk: string;
  /**
   * Looks every second whether the directory, and what is in it by name, is still the one that was opened: a process goes
   * on writing into files that were removed, and everything it acknowledges is gone with it. Call once all is open.
   */
  watch(onLost: (error: DataDirectoryError) => void): void;
  /** The same, looked at now: what may stand behind another error of a file in it. Null: nothing is lost that is watched. */
  lost(): DataDirectoryError | null;
  /** Lets the next process have it. */
  close(): void;
}

/** The directory belongs to somebody else, or to a later version of this program. */
export class DataDirectoryError extends Error {
  override readonly name = "DataDirectoryError";
}

interface Identity {
  readonly format: number;
  readonly cluster: string;
  readonly node: string;
  readonly disk: string;
  readonly boot: number;
  /** Sorted. */
  readonly peers: readonly string[];
}

/** @throws DirectoryInUseError, DataDirectoryError; either names the directory and what to do */
export async function openDataDirectory(options: DataDirectoryOptions): Promise<DataDirectory> {
  const path = resolve(options.directory);
  try {
    fs.mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new DataDirectoryError(
      `Cannot make data directory ${path}: ${String(cause)}; set CONFLUX_DATA to one that this user may write`,
      { cause },
    );
  }
  const lock = await lockDirectory(path);
  try {
    const before = readIdentity(path) ?? newIdentity(path, options);
    assertOurs(path, before, options);
    assertWhole(path);
    if (fs.existsSync(join(path, recoveryFile)))
      throw new DataDirectoryError(
        `A recovery of data directory ${path} was begun and not finished: run conflux cluster recover again, with the same directories`,
      );
    const identity: Identity = { ...before, format: dataFormat, boot: before.boot + 1 };
    writeIdentity(path, identity);
    const names = [lock.path, join(path, "journal"), join(path, "tenants")];
    const lossOf = (lost: string): DataDirectoryError =>
      new DataDirectoryError(
        `Data directory ${path} was removed or replaced while the node ran (${lost} is not what it was): nothing more can be kept; put it back, or start with an empty directory as a new node`,
      );
    let inodes = new Map<string, number>();
    let stopWatching = (): void => undefined;
    return {
      path,
      journal: join(path, "journal"),
      boot: identity.boot,
      disk: identity.disk,
      watch(onLost) {
        inodes = new Map(names.map((name) => [name, fs.statSync(name).ino]));
        stopWatching = watchPaths(inodes, (name) => onLost(lossOf(name)));
      },
      lost: () => {
        try {
          for (const [name, inode] of inodes)
            if (fs.statSync(name, { throwIfNoEntry: false })?.ino !== inode) return lossOf(name);
        } catch {
          // It cannot be asked.
        }
        return null;
      },
      close: () => {
        stopWatching();
        lock.release();
      },
    };
  } catch (error) {
    lock.release();
    throw error;
  }
}

/** @returns a function that ends it; it ends by itself with the first loss */
function watchPaths(
  inodes: ReadonlyMap<string, number>,
  onLost: (path: string) => void,
): () => void {
  const timer = setInterval(() => {
    for (const [path, inode] of inodes)
      fs.stat(path, (error, stats) => {
        // What cannot be asked now is no loss: only a name that leads nowhere, or elsewhere, is.
        const isGone = error ? error.code === "ENOENT" : stats.ino !== inode;
        if (!isGone || ended) return;
        end();
        onLost(path);
      });
  }, watchMs);
  timer.unref();
  let ended = false;
  const end = (): void => {
    ended = true;
    clearInterval(timer);
  };
  return end;
}

/** Environments without the journal that they were written behind have forgotten what was promised last. */
function assertWhole(path: string): void {
  const tenants = join(path, "tenants");
  const isUsed = fs.existsSync(tenants) && fs.readdirSync(tenants).length > 0;
  if (isUsed && !fs.existsSync(join(path, "journal")))
    throw new DataDirectoryError(
      `Data directory ${path} has lost its journal/: votes and acknowledged writes may be gone; restore it, or set CONFLUX_DATA to an empty directory and CONFLUX_NODE to another name`,
    );
}

function newIdentity(path: string, { cluster, node, peers }: DataDirectoryOptions): Identity {
  // Without its identity nobody knows whose votes these are.
  for (const name of ["journal", "tenants"])
    if (fs.existsSync(join(path, name)))
      throw new DataDirectoryError(
        `Data directory ${path} holds ${name}/ but no ${identityFile}: it was not written by a node, or lost a file; restore ${identityFile} or set CONFLUX_DATA to an empty directory`,
      );
  return {
    format: dataFormat,
    cluster,
    node,
    disk: randomUUID(),
    // No node starts more often than once a second.
    boot: Math.max(0, Math.floor((Date.now() - bootsSince) / 1_000)),
    peers: peers.toSorted(),
  };
}

function assertOurs(
  path: string,
  found: Identity,
  { cluster, node, peers }: DataDirectoryOptions,
): void {
  if (found.cluster !== cluster)
    throw new DataDirectoryError(
      `Data directory ${path} belongs to cluster ${found.cluster}, this node is of cluster ${cluster}; set the right CONFLUX_DATA or CONFLUX_CLUSTER`,
    );
  if (found.node !== node)
    throw new DataDirectoryError(
      `Data directory ${path} belongs to node ${found.node}, this is node ${node}; set the right CONFLUX_DATA or CONFLUX_NODE`,
    );
  const given = peers.toSorted().join(",");
  if (found.peers.join(",") !== given)
    throw new DataDirectoryError(
      `Data directory ${path} was made with CONFLUX_PEERS ${found.peers.join(",")}, now it is ${given}; the initial nodes cannot be changed afterwards, set them as they were`,
    );
}

/** Of a directory that a node wrote. @throws DataDirectoryError */
export function identityOf(path: string): Pick<Identity, "cluster" | "node"> {
  const identity = readIdentity(path);
  if (identity === null)
    throw new DataDirectoryError(
      `${path} is no node's data directory: there is no ${identityFile} in it`,
    );
  assertWhole(path);
  return identity;
}

function readIdentity(path: string): Identity | null {
  const file = join(path, identityFile);
  if (!fs.existsSync(file)) return null;
  let found: Partial<Identity>;
  try {
    found = JSON.parse(fs.readFileSync(file, "utf8")) as Partial<Identity>;
  } catch (cause) {
    throw new DataDirectoryError(`Cannot read ${file}: it is not JSON; restore it`, { cause });
  }
  const { format, cluster, node, disk, boot, peers } = found;
  if (
    typeof format !== "number" ||
    typeof cluster !== "string" ||
    typeof node !== "string" ||
    typeof disk !== "string" ||
    !Number.isSafeInteger(boot) ||
    !Array.isArray(peers)
  )
    throw new DataDirectoryError(
      `Cannot read ${file}: format, cluster, node, disk, boot or peers is missing; restore it`,
    );
  if (format > dataFormat)
    throw new DataDirectoryError(
      `Data directory ${path} has format ${format}, this program knows up to ${dataFormat}; start the newer program`,
    );
  return { format, cluster, node, disk, boot: boot as number, peers };
}

/** Whole or not at all: written aside, renamed, and the name made durable. */
function writeIdentity(path: string, identity: Identity): void {
  const aside = join(path, `${identityFile}.new`);
  writeFileDurably(aside, `${JSON.stringify(identity)}\n`);
  fs.renameSync(aside, join(path, identityFile));
  syncDirectorySync(path);
}
