/**
 * What is in a journal, read the way a starting node reads it and with the same conclusions, changing nothing. Works on a
 * directory that no node would start on: what cannot be read is reported, and the rest is shown.
 *
 * Beside a node that runs it shows the moment: a write that is under way may look torn.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import type { LostRecords, QuarantinedReplica } from "../host/ports.ts";
import { readJournal } from "./journal.ts";
import type { JournalFinding } from "./journal.ts";
import { recordKinds, recordsIn, segmentNumber } from "./journal_format.ts";
import { readQuarantine } from "./quarantine.ts";

const groupsShownMax = 20;

export interface JournalReport {
  readonly directory: string;
  /** Something that a node would act on: a torn end and an unused segment are none. */
  readonly damaged: boolean;
  /** Oldest first. */
  readonly segments: readonly SegmentReport[];
  /** By group id. */
  readonly groups: readonly GroupReport[];
  readonly findings: readonly (JournalFinding & { readonly means: string })[];
  /** Damage of before, that the node keeps beside its journal: those replicas do not run. Empty for a journal alone. */
  readonly quarantine: readonly QuarantinedReplica[];
  readonly lost: LostRecords | null;
}

interface SegmentReport {
  readonly file: string;
  readonly state: "intact" | "torn" | "damaged" | "unused" | "unreadable";
  /** Of the file, and of header and records in it. */
  readonly fileBytes: number;
  readonly usedBytes: number;
  readonly records: number;
  readonly groups: number;
  /** Null when there is no record. */
  readonly firstSequence: number | null;
  readonly lastSequence: number | null;
}

interface GroupReport {
  readonly group: number;
  /** `tenant.group.replica`, of the environment that belongs to it; null when there is none beside the journal. */
  readonly environment: string | null;
  readonly records: number;
  /** Not yet in the environment, as far as the journal was told. */
  readonly unreleased: number;
  readonly payloadBytes: number;
  readonly firstSequence: number;
  readonly lastSequence: number;
  /** Why a node would not let it vote; null when it would. */
  readonly damaged: string | null;
}

/**
 * @param directory a node's data directory, or the journal in it
 * @throws Error when there is no journal, or a later version of the program wrote it
 */
export function inspectJournal(directory: string): JournalReport {
  const within = join(directory, "journal");
  const journal = fs.existsSync(within) ? within : directory;
  if (!fs.existsSync(journal))
    throw new Error(`Cannot inspect ${directory}: there is no such directory`);
  const names = fs.readdirSync(journal);
  if (!names.some((name) => segmentNumber(name) !== undefined))
    throw new Error(
      `Cannot inspect ${directory}: neither it nor journal/ in it holds segments (*.cfxj)`,
    );

  const unreadable = new Map<string, string>();
  const segments: SegmentReport[] = [];
  const counts = new Map<number, { records: number; bytes: number; first: number; last: number }>();
  const disk = {
    list: () => names,
    read(name: string): Uint8Array {
      try {
        return fs.readFileSync(join(journal, name));
      } catch (error) {
        unreadable.set(name, (error as Error).message);
        return new Uint8Array(0);
      }
    },
  };
  // From the newest to the oldest, as a node reads them.
  const read = readJournal(disk, ({ name, bytes, read: segment }) => {
    const groups = new Set<number>();
    let firstSequence: number | null = null;
    let lastSequence: number | null = null;
    for (const record of segment === null ? [] : recordsIn(bytes, segment)) {
      const { kind, group, sequence, payloadBytes } = record;
      firstSequence ??= sequence;
      lastSequence = sequence;
      if (kind !== recordKinds.data) continue;
      groups.add(group);
      const count = counts.get(group) ?? { records: 0, bytes: 0, first: sequence, last: sequence };
      count.records += 1;
      count.bytes += payloadBytes;
      count.first = Math.min(count.first, sequence);
      count.last = Math.max(count.last, sequence);
      counts.set(group, count);
    }
    segments.push({
      file: name,
      state: unreadable.has(name) ? "unreadable" : segment === null ? "unused" : "intact",
      fileBytes: bytes.byteLength,
      usedBytes: segment?.end ?? 0,
      records: segment?.records.length ?? 0,
      groups: groups.size,
      firstSequence,
      lastSequence,
    });
  });
  const environments = environmentNames(journal);
  const quarantine = readQuarantine(join(journal, ".."));
  const findings = read.findings.map((finding) => ({
    ...finding,
    means: meaning(finding, unreadable.get(finding.file)),
  }));
  return {
    directory: journal,
    damaged:
      unreadable.size > 0 ||
      read.findings.some(isDamage) ||
      quarantine.replicas.length > 0 ||
      quarantine.lost !== null,
    segments: segments.reverse().map((segment) => {
      const here = read.findings.filter(({ file }) => file === segment.file);
      if (segment.state !== "intact" || here.length === 0) return segment;
      return { ...segment, state: here.some(isDamage) ? "damaged" : "torn" };
    }),
    groups: [...new Set([...counts.keys(), ...read.recovery.damaged.keys()])]
      .sort((a, b) => a - b)
      .map((group) => {
        const count = counts.get(group);
        return {
          group,
          environment: environments.get(group) ?? null,
          records: count?.records ?? 0,
          unreleased: read.recovery.groups.get(group)?.length ?? 0,
          payloadBytes: count?.bytes ?? 0,
          firstSequence: count?.first ?? 0,
          lastSequence: count?.last ?? 0,
          damaged: read.recovery.damaged.get(group) ?? null,
        };
      }),
    findings,
    quarantine: quarantine.replicas,
    lost: quarantine.lost,
  };
}

function isDamage({ kind }: JournalFinding): boolean {
  return kind !== "torn";
}

/** What a finding means for whoever has to decide what to do. */
function meaning(finding: JournalFinding, unreadable: string | undefined): string {
  const { kind, group, groups, from, to } = finding;
  const range = from === to ? `record ${from}` : `records ${from} to ${to}`;
  if (unreadable !== undefined)
    return `the file cannot be read (${unreadable}): no node starts on this directory`;
  switch (kind) {
    case "torn":
      return "the last write was cut by a crash; nothing of it was acknowledged, the next start cuts it off";
    case "segment-header":
      return "the segment's own header does not verify; its records are read all the same";
    case "record":
      return `${range} of group ${group} cannot be trusted: that replica stops here, the group's others go on`;
    case "released-record":
      return `${range} of group ${group} does not verify, and is not needed any more: nothing is lost`;
    case "release-note":
      return "a note of what is not needed any more: more is read at the next start, nothing is lost";
    case "live-list":
      return "a list of who has records in the segments before does not verify: nothing is lost";
    case "unknown-group":
    case "end-missing":
    case "segments-missing":
      if (from > to) return "no record can have stood there: nothing is lost";
      return groups !== null
        ? `${range} are gone, of whom is not known, but that only ${groupsText(groups)} had any there: those replicas stop here`
        : `${range}, of unknown groups, are gone: every replica stops here whose checkpoint does not reach ${to}`;
  }
}

function groupsText(groups: readonly number[]): string {
  if (groups.length === 0) return "groups that need nothing of them any more";
  const shown = groups.slice(0, groupsShownMax).join(", ");
  const more = groups.length - groupsShownMax;
  return `${groups.length === 1 ? "group" : "groups"} ${shown}${more > 0 ? ` and ${more} more` : ""}`;
}

function environmentNames(journal: string): Map<number, string> {
  const tenants = join(journal, "..", "tenants");
  const names = new Map<number, string>();
  if (!fs.existsSync(tenants)) return names;
  for (const name of fs.readdirSync(tenants)) {
    const group = /^[A-Za-z0-9_].*\.(\d+)\.\d+$/.exec(name)?.[1];
    if (group !== undefined) names.set(Number(group), name);
  }
  return names;
}
