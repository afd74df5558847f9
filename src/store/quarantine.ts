/**
 * What is known to be damaged on this disk, kept beside the journal, so that the segments in which it was found may go and
 * nobody forgets it: `<data>/quarantine/<group>.json` for a replica that must not run here any more, with what the journal
 * still had of it, and `lost.json` for records that are gone together with the name of their group.
 *
 * What must stay true:
 * - a file is whole or not there: written aside, renamed, and the names made durable before `keep` or `remove` returns;
 * - a file that cannot be read keeps its group out all the same: its name says which one.
 */
import { Buffer } from "node:buffer";
import * as fs from "node:fs";
import { join } from "node:path";
import type { LostRecords, Quarantine, QuarantinedReplica, Remains } from "../host/ports.ts";
import { syncDirectorySync, writeFileDurably } from "./disk.ts";

/** Of both kinds of files. */
const format = 1;
const directoryName = "quarantine";
const lostFile = "lost.json";
const aside = ".new";
const fileGrammar = /^(\d+)\.json$/;

interface ReplicaFile extends QuarantinedReplica {
  readonly format: number;
  /** In base64. */
  readonly records: readonly { readonly sequence: number; readonly payload: string }[];
}

/** What is there, changing nothing. O(damage). */
export function readQuarantine(data: string): {
  readonly replicas: QuarantinedReplica[];
  readonly lost: LostRecords | null;
} {
  const directory = join(data, directoryName);
  const names = fs.existsSync(directory) ? fs.readdirSync(directory) : [];
  const replicas: QuarantinedReplica[] = [];
  for (const name of names) {
    const group = fileGrammar.exec(name)?.[1];
    if (group !== undefined) replicas.push(readReplica(join(directory, name), Number(group)));
  }
  const lost = names.includes(lostFile) ? readLost(join(directory, lostFile)) : null;
  return { replicas: replicas.sort((a, b) => a.group - b.group), lost };
}

export class QuarantineDirectory implements Quarantine {
  readonly #data: string;
  readonly #directory: string;
  readonly #replicas = new Map<number, QuarantinedReplica>();
  #lost: LostRecords | null;

  /** @param data the node's data directory */
  constructor(data: string) {
    this.#data = data;
    this.#directory = join(data, directoryName);
    this.#removeAside();
    const { replicas, lost } = readQuarantine(data);
    for (const replica of replicas) this.#replicas.set(replica.group, replica);
    this.#lost = lost;
  }

  /** What a crash left half written: it never was anything. */
  #removeAside(): void {
    if (!fs.existsSync(this.#directory)) return;
    for (const name of fs.readdirSync(this.#directory))
      if (name.endsWith(aside)) fs.rmSync(join(this.#directory, name), { force: true });
  }

  get replicas(): Iterable<QuarantinedReplica> {
    return this.#replicas.values();
  }

  get lost(): LostRecords | null {
    return this.#lost;
  }

  keep(replicas: readonly Remains[], lost: LostRecords | null): void {
    if (replicas.length === 0 && lost === null) return;
    fs.mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
    syncDirectorySync(this.#data);
    for (const { group, replica, reason, records } of replicas) {
      const file: ReplicaFile = {
        format,
        group,
        replica,
        reason,
        records: Array.from(records, ({ sequence, payload }) => ({
          sequence,
          payload: Buffer.from(payload).toString("base64"),
        })),
      };
      this.#write(`${group}.json`, file);
      this.#replicas.set(group, { group, replica, reason });
    }
    if (lost !== null) {
      this.#write(lostFile, { format, ...lost });
      this.#lost = lost;
    }
    syncDirectorySync(this.#directory);
  }

  remove(group: number): void {
    if (!this.#replicas.delete(group)) return;
    fs.rmSync(join(this.#directory, `${group}.json`), { force: true });
    syncDirectorySync(this.#directory);
  }

  #write(name: string, content: object): void {
    const path = join(this.#directory, name);
    writeFileDurably(path + aside, `${JSON.stringify(content)}\n`);
    fs.renameSync(path + aside, path);
  }
}

function readReplica(path: string, group: number): QuarantinedReplica {
  try {
    const { replica, reason } = JSON.parse(fs.readFileSync(path, "utf8")) as ReplicaFile;
    if (typeof reason === "string") return { group, replica: replica ?? null, reason };
  } catch {
    // What it says is gone; that it is there says enough.
  }
  return { group, replica: null, reason: `${path} cannot be read: why it is there is not known` };
}

function readLost(path: string): LostRecords {
  try {
    const { to, where, environments } = JSON.parse(fs.readFileSync(path, "utf8")) as LostRecords;
    if (Number.isSafeInteger(to) && typeof where === "string")
      return Array.isArray(environments) ? { to, where, environments } : { to, where };
  } catch {
    // As if everything up to now were concerned.
  }
  throw new Error(
    `Cannot read ${path}: which records were lost is not known; restore it, or start with an empty directory as a new disk`,
  );
}
