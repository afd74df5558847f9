/**
 * A node without gateway and command line: directory, journal, environments and host, as main.ts wires them, with small
 * bounds so that checkpoints, segments, sleep and compaction come many times a second. What is written is known from its
 * own first words, so that whatever is found can be told to be whole.
 */
import { randomInt } from "node:crypto";
import { NodeHost } from "../../src/host/node_host.ts";
import type { Tuning } from "../../src/host/node_host.ts";
import type { Clock } from "../../src/host/ports.ts";
import type { Command } from "../../src/machine/command.ts";
import { openDataDirectory } from "../../src/store/data_dir.ts";
import { openJournalDisk } from "../../src/store/disk.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import { NodeJournal } from "../../src/store/journal.ts";
import { QuarantineDirectory } from "../../src/store/quarantine.ts";
import { LoopbackNetwork } from "../../src/transport/loopback.ts";

const smallBounds: Partial<Tuning> = {
  checkpointBytes: 24 * 1024,
  journalSegments: 2,
  logKeptEntries: 20,
  sleepAfterMs: 150,
};
const smallSegmentBytes = 128 * 1024;
export const node = "n1";
const cluster = "crash";

const silent = { debug() {}, info() {}, warn() {}, error() {} };

const clock: Clock = {
  monotonicMs: () => performance.now(),
  wallMs: () => Date.now(),
  defer: (run) => {
    setImmediate(run);
  },
  every: (ms, run) => {
    const timer = setInterval(run, ms);
    return () => clearInterval(timer);
  },
};

interface Stack {
  readonly host: NodeHost;
  readonly journal: NodeJournal;
  readonly environments: LmdbEnvironments;
  readonly close: () => Promise<void>;
}

/** Ready when it returns. `onError` is told what the host logs as an error. */
export async function openStack(
  directory: string,
  onFatal: (error: Error) => void,
  onError: (message: string, fields: object) => void = () => undefined,
  bounds: { tuning: Partial<Tuning>; segmentBytes?: number; rowsPerTurn?: number } = {
    tuning: smallBounds,
    segmentBytes: smallSegmentBytes,
    // So few that most checkpoints are large commits, which are not one transaction.
    rowsPerTurn: 16,
  },
  place: { name: string; peers: readonly string[]; network: LoopbackNetwork } = {
    name: node,
    peers: [node],
    network: new LoopbackNetwork(),
  },
): Promise<Stack> {
  const { name, peers, network } = place;
  const data = await openDataDirectory({ directory, cluster, node: name, peers });
  const environments = new LmdbEnvironments({
    data: data.path,
    ...(bounds.rowsPerTurn !== undefined && { rowsPerTurn: bounds.rowsPerTurn }),
  });
  const journal = new NodeJournal({
    disk: openJournalDisk(data.journal),
    salt: randomInt(2 ** 32 - 1),
    ...(bounds.segmentBytes !== undefined && { segmentBytes: bounds.segmentBytes }),
    onFatal,
  });
  const host = new NodeHost({
    cluster,
    node: name,
    boot: data.boot,
    version: "crash",
    peers,
    transportKind: "loopback",
    journal,
    environments,
    quarantine: new QuarantineDirectory(data.path),
    transport: network.join({ cluster, node: name, boot: data.boot }),
    clock,
    seed: randomInt(2 ** 32 - 1),
    log: { ...silent, error: (fields, message) => onError(message, fields) },
    onFatal,
    tuning: bounds.tuning,
  });
  const close = async (): Promise<void> => {
    await host.stop();
    data.close();
  };
  await host.start();
  host.registered = true;
  try {
    await host.read("_system", { consistency: "linearizable", timeoutMs: 20_000 }, () => null);
  } catch (error) {
    // Left open, it would write into a directory that its test has removed.
    await close();
    throw error;
  }
  return { host, journal, environments, close };
}

export function command(action: Command["action"]): Command {
  return { at: Date.now(), actor: { kind: "system", keyId: "crash" }, action };
}

// --- what is written -----------------------------------------------------------------------------------------------

export const namespace = "default";
/** So few that old ones are deleted all the time. */
export const versionsPerConfig = 8;

/** A text that says what it must be: `id length filler`. */
export function textOf(id: string, length: number): string {
  const head = `${id} ${length} `;
  let sum = length;
  for (const char of id) sum = (sum * 31 + char.charCodeAt(0)) % 9973;
  return head + `${sum}.`.repeat(Math.ceil(length / 2)).slice(0, length);
}

/** The id of a text that is whole; null for any other. */
export function idOf(text: string): string | null {
  const [id = "", length = "0"] = text.split(" ", 2);
  return textOf(id, Number(length)) === text ? id : null;
}
