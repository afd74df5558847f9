/**
 * Composition root: reads the settings, opens the adapters, wires them to the host, starts. The only place that wires.
 */
import { execFileSync } from "node:child_process";
import { hash, randomInt } from "node:crypto";
import { chmodSync, existsSync, readFileSync, renameSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { Problem } from "./api/problems.ts";
import { applyDirectory, ManifestError, readManifests } from "./cli/apply.ts";
import { createGateway, type Gateway } from "./gateway/gateway.ts";
import { readSecretKeys, type SecretKey } from "./gateway/secrets.ts";
import { hashToken, makeRootToken } from "./gateway/tokens.ts";
import { SYSTEM_TENANT } from "./host/directory.ts";
import { NodeHost } from "./host/node_host.ts";
import type { Clock, Transport } from "./host/ports.ts";
import { programVersion } from "./lib/version.ts";
import type { Action } from "./machine/command.ts";
import { rehearse } from "./rehearsal.ts";
import { completeEnvironment } from "./runtime/environment.ts";
import { collectGarbage, holdMallocThreshold } from "./runtime/memory.ts";
import { useDigest } from "./model/content.ts";
import { runtime } from "./runtime/runtime.ts";
import { ListenError, serve } from "./runtime/serve.ts";
import {
  isRootToken,
  readSettings,
  SettingsError,
  settingsHelp,
  type Settings,
} from "./runtime/settings.ts";
import { onStopSignal } from "./runtime/signals.ts";
import { openStream } from "./runtime/streams.ts";
import { DataDirectoryError, openDataDirectory } from "./store/data_dir.ts";
import { DirectoryInUseError } from "./store/lock.ts";
import { openJournalDisk } from "./store/disk.ts";
import { LmdbEnvironments } from "./store/environments.ts";
import { NodeJournal } from "./store/journal.ts";
import { QuarantineDirectory } from "./store/quarantine.ts";
import { DiskMonitor } from "./store/space.ts";
import { DiskStall, stallLookMs } from "./store/stall.ts";
import { LoopbackNetwork } from "./transport/loopback.ts";
import { type NatsOptions, NatsTransport, TransportError } from "./transport/nats.ts";

/** How long requests under way may take to end when the node stops. */
const STOP_GRACE_MS = 2_000;
const DAY_MS = 86_400_000;
const SECRET_COMMAND_MS = 30_000;
const WAITING_NOTICE_MS = 5_000;
const REGISTER_RETRY_MS = 200;
const REHEARSAL_MS = 30_000;

/** Ends the process with one line that says why. */
function die(message: string): never {
  process.stderr.write(`conflux: ${message}\n`);
  process.exit(1);
}

function systemClock(): Clock {
  return {
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
}

/** Before anything is started: a node without the keys that it was promised must not serve. */
function readSecretKeysOf(settings: Settings): readonly SecretKey[] {
  const { secretKeyFile: file, secretKeyCommand: command } = settings;
  if (file === null && command === null) return [];
  const name = file === null ? "CONFLUX_SECRET_KEY_COMMAND" : "CONFLUX_SECRET_KEY_FILE";
  let text: string;
  try {
    text =
      file === null
        ? execFileSync(command as string, {
            encoding: "utf8",
            timeout: SECRET_COMMAND_MS,
            stdio: ["ignore", "pipe", "inherit"],
          })
        : readFileSync(file, "utf8");
  } catch (error) {
    // Not the error itself: that of a command holds what it printed.
    const { code } = error as NodeJS.ErrnoException;
    throw new SettingsError(
      `${name} is "${file ?? command}": it cannot be read (${code ?? "it failed"})`,
    );
  }
  try {
    return readSecretKeys(text);
  } catch (error) {
    throw new SettingsError(`${name} is "${file ?? command}": ${(error as Error).message}`);
  }
}

/** The operator's token: given, or kept beside the data from the first start on. */
function rootToken(settings: Settings): { readonly token: string; readonly file: string | null } {
  if (settings.rootToken !== null) return { token: settings.rootToken, file: null };
  const file = join(settings.data, "root-token");
  if (!existsSync(file)) {
    // Whole or not at all: an end half-way must not leave a file that nobody can log in with.
    const aside = `${file}.new`;
    writeFileSync(aside, `${makeRootToken()}\n`, { mode: 0o600, flush: true });
    chmodSync(aside, 0o600);
    renameSync(aside, file);
  }
  const token = readFileSync(file, "utf8").trim();
  if (!isRootToken(token))
    throw new DataDirectoryError(
      `${file} holds no root token: remove it to have one made, or set CONFLUX_ROOT_TOKEN`,
    );
  return { token, file };
}

/** What the settings' files say of how to log in to NATS, and whom to trust there. */
function natsIdentity(settings: Settings): Pick<NatsOptions, "auth" | "tls"> {
  const read = (env: string, file: string): string => {
    try {
      return readFileSync(file, "utf8");
    } catch (error) {
      throw new SettingsError(
        `${env} is ${JSON.stringify(file)}: the file cannot be read (${(error as NodeJS.ErrnoException).code})`,
      );
    }
  };
  const { natsNkey, natsCreds, natsCa, natsCert, natsKey } = settings;
  return {
    ...(natsNkey !== null && { auth: { nkeySeed: read("CONFLUX_NATS_NKEY", natsNkey).trim() } }),
    ...(natsCreds !== null && { auth: { credentials: read("CONFLUX_NATS_CREDS", natsCreds) } }),
    ...((natsCa !== null || natsCert !== null) && {
      tls: {
        ...(natsCa !== null && { ca: read("CONFLUX_NATS_CA", natsCa) }),
        ...(natsCert !== null && { cert: read("CONFLUX_NATS_CERT", natsCert) }),
        ...(natsKey !== null && { key: read("CONFLUX_NATS_KEY", natsKey) }),
      },
    }),
  };
}

async function main(args: readonly string[]): Promise<void> {
  if (args.includes("--help") || args.includes("-h")) {
    process.stdout.write(settingsHelp());
    return;
  }
  useDigest((text) => hash("sha256", text, "hex"));
  completeEnvironment();
  await holdMallocThreshold();
  const onBulkStored = await collectGarbage();
  const settings = readSettings({
    args: args[0] === "start" ? args.slice(1) : args,
    env: process.env,
    readFile: (path) => readFileSync(path, "utf8"),
  });
  if (settings.tenants !== null) await checkTenants(settings.tenants);
  const secretKeys = readSecretKeysOf(settings);
  // Standard output is for people; the log goes beside it.
  const log = pino({ level: settings.log, base: { node: settings.node } }, pino.destination(2));
  const peers = settings.peers ?? [settings.node];
  const directory = await openDataDirectory({
    directory: settings.data,
    node: settings.node,
    cluster: settings.cluster,
    peers,
  });
  const root = rootToken(settings);
  const fatal = (error: Error): void => {
    try {
      log.fatal({ err: error }, "node.fatal");
      // A file that is not there any more says less than that all of them are not.
      const { message } = directory.lost() ?? error;
      // Not by process.stderr, which may still hold it when the process is gone.
      writeSync(2, `conflux: ${message}\n`);
    } finally {
      // Nothing may be acknowledged any more, and nothing that is open can be trusted to close; also when nobody reads
      // what it says (a full pipe refuses it).
      process.kill(process.pid, "SIGKILL");
    }
  };
  const disk = new DiskMonitor({
    directory: directory.path,
    reserveBytes: settings.diskReserveMib * 2 ** 20,
    onChange: ({ level, freeBytes, reserveBytes }) =>
      log[level === "free" ? "info" : "error"]({ level, freeBytes, reserveBytes }, "disk.space"),
  });
  const stall = new DiskStall({
    limitMs: settings.diskStall * 1_000,
    onSlow: (oldestMs) =>
      log[oldestMs === 0 ? "info" : "error"]({ oldestWriteSeconds: oldestMs / 1_000 }, "disk.slow"),
    onStall: fatal,
  });
  setInterval(() => {
    stall.look(performance.now());
    disk.oldestWriteMs = stall.oldestMs;
  }, stallLookMs).unref();
  const begin = (): (() => void) => stall.begin();
  const journal = new NodeJournal({
    disk: openJournalDisk(directory.journal, { onGrowth: () => disk.look(), begin }),
    salt: randomInt(2 ** 32 - 1),
    onFatal: fatal,
  });
  const environments = new LmdbEnvironments({ data: directory.path, begin });
  directory.watch(fatal);
  const { cluster, node } = settings;
  let isStarting = true;
  // Anybody may ask: where it was looked for, and why that failed, is for the log.
  const lacks = (): string | null => {
    if (!isStarting) return null;
    if (journal.opening !== null) return `This node is starting: ${readSoFar(journal.opening)}`;
    return nats === null || nats.connected
      ? "This node is starting"
      : "This node cannot reach NATS and goes on trying: start nats-server, or correct CONFLUX_NATS; the node's log says where it tried, and what happened";
  };
  let reason: string | null = null;
  const nats =
    settings.nats === null
      ? null
      : new NatsTransport({
          cluster,
          node,
          boot: directory.boot,
          servers: settings.nats,
          ...natsIdentity(settings),
          startTimeoutMs: null,
          onStatus: ({ type, link, detail }) => {
            if (type === "unreachable") reason = detail;
            log[type === "connected" ? "info" : "warn"](
              { status: type, link, detail },
              "transport.status",
            );
          },
        });
  const transport: Transport =
    nats ?? new LoopbackNetwork().join({ cluster, node, boot: directory.boot });
  const host = new NodeHost({
    cluster,
    node,
    boot: directory.boot,
    version: programVersion,
    peers,
    diskId: directory.disk,
    ...(settings.zone !== null && { zone: settings.zone }),
    role: settings.role,
    tuning: {
      replaceAfterMs: settings.replaceAfter * 1_000,
      sleepAfterMs: settings.sleepAfter * 1_000,
    },
    clockDriftMax: settings.clockDriftMax === null ? null : settings.clockDriftMax / 100,
    transportKind: settings.nats === null ? "loopback" : "nats",
    journal,
    environments,
    quarantine: new QuarantineDirectory(directory.path),
    transport,
    clock: systemClock(),
    seed: randomInt(2 ** 32 - 1),
    log,
    disk,
    onFatal: fatal,
    onBulkStored,
  });
  const gateway = createGateway({
    service: host,
    log,
    settings: {
      version: programVersion,
      watch: { ageMs: settings.watchAge * 1_000 },
      openStream,
      ...(Number.isFinite(settings.tenantRetention) && {
        retentionMs: settings.tenantRetention * DAY_MS,
      }),
      secretKeys,
      lacks,
    },
  });
  // Before there is anything to serve: who looks after the process learns that it lives, and what it waits for.
  const server = await serve((request, info) => gateway.fetch(request, info), {
    host: settings.host,
    port: settings.port,
  });

  let isStopping = false;
  onStopSignal((signal) => {
    log.info({ signal }, "node.stopping");
    isStopping = true;
    stop().then(
      () => process.exit(0),
      (error: unknown) => die(`Cannot stop in good order: ${String(error)}`),
    );
  });
  const rehearsing = new AbortController();
  let rehearsed: Promise<unknown> = Promise.resolve();
  const stop = async (): Promise<void> => {
    gateway.close();
    rehearsing.abort();
    await server.stop(STOP_GRACE_MS);
    // What was counted and cannot be told in time is lost, and nothing else.
    await Promise.race([gateway.recordUsage(), sleep(STOP_GRACE_MS)]);
    await host.stop();
    await Promise.race([rehearsed, sleep(STOP_GRACE_MS)]);
    disk.close();
    directory.close();
  };

  const notice = setInterval(() => {
    const { opening } = journal;
    if (opening !== null) log.info(opening, "journal.reading");
    if (nats !== null && !nats.connected)
      log.warn({ lack: lacks(), servers: nats.servers, reason }, "node.waiting_for_nats");
  }, WAITING_NOTICE_MS);
  try {
    await host.start();
  } catch (error) {
    if (isStopping) return;
    throw error;
  } finally {
    clearInterval(notice);
  }
  isStarting = false;
  await whenReady(host, log, settings);
  const change = async (action: Action): Promise<void> => {
    const outcome = await host.propose(SYSTEM_TENANT, {
      at: host.nowMs(),
      actor: { kind: "system", keyId: node },
      semantics: host.semantics,
      action,
    });
    if (!outcome.ok) throw new Problem(outcome.code, outcome.detail);
  };
  await untilDone(() =>
    change({
      op: "node.register",
      node,
      boot: directory.boot,
      disk: directory.disk,
      initial: host.systemInitial,
      level: host.levelToBegin,
      levels: host.levels,
      role: settings.role,
      ...(settings.zone !== null && { zone: settings.zone }),
    }),
  );
  const keyId = hashToken(root.token).slice(0, 13);
  await untilDone(() => change({ op: "rootKey.put", node, keyId, hash: hashToken(root.token) }));
  host.registered = true;
  process.stdout.write(
    `Conflux ${programVersion} (${runtime.name} ${runtime.version}) listens on ${server.url} · root token in ${root.file ?? "CONFLUX_ROOT_TOKEN"}\n`,
  );
  // Whoever started it by hand may not know what comes next.
  if (process.stdout.isTTY && root.file !== null)
    process.stdout.write(
      `Try: curl -H "Authorization: Bearer $(cat ${root.file})" ${server.url}/v1/tenants\n`,
    );
  log.info({ url: server.url, runtime: runtime.name, pid: process.pid }, "node.ready");
  if (settings.rehearsal > 0)
    rehearsed = rehearse({
      requests: settings.rehearsal,
      limitMs: REHEARSAL_MS,
      name: directory.disk,
      isBusy: () => gateway.status().requests > 0,
      signal: rehearsing.signal,
    }).then(({ requests, ms, error }) => {
      const fields = { requests, ms: Math.round(ms), ...(error !== null && { err: error }) };
      log[error === null ? "debug" : "warn"](fields, "node.rehearsed");
    });
  if (settings.tenants !== null) await applyTenants(settings.tenants, gateway, root.token);
}

/** For people: how far the reading of the journal is. */
function readSoFar({ segments, of }: NonNullable<NodeJournal["opening"]>): string {
  return `${segments} of ${of} segments of its journal are read`;
}

/** Waits for the system group; says every few seconds what it is waiting for. */
async function whenReady(host: NodeHost, log: pino.Logger, settings: Settings): Promise<void> {
  for (let waited = 0; ; waited += WAITING_NOTICE_MS) {
    try {
      await host.read(
        SYSTEM_TENANT,
        { consistency: "linearizable", timeoutMs: WAITING_NOTICE_MS },
        () => null,
      );
      return;
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "no-quorum") throw error;
      const heard = host
        .cluster()
        .nodes.filter((peer) => peer.alive && !peer.self)
        .map((peer) => peer.name);
      const hint =
        (heard.length + 1) * 2 > (settings.peers?.length ?? 1)
          ? "Enough nodes are heard, but no leader answers: look whether they are ready themselves"
          : "Too few nodes are heard: start the others, or correct CONFLUX_NATS and CONFLUX_PEERS";
      log.warn(
        { peers: settings.peers, heard, waitedMs: waited + WAITING_NOTICE_MS, hint },
        "node.waiting_for_peers",
      );
    }
  }
}

/** Registering is repeated until it is known to be done: doing it twice changes nothing. */
async function untilDone(act: () => Promise<void>): Promise<void> {
  for (;;) {
    try {
      await act();
      return;
    } catch (error) {
      if (!(error instanceof Problem) || error.retryAfter === null) throw error;
    }
    await sleep(REGISTER_RETRY_MS);
  }
}

/** Before anything is started: a node that serves must not end over a file. */
async function checkTenants(folder: string): Promise<void> {
  if (!existsSync(folder))
    throw new SettingsError(`CONFLUX_TENANTS is "${folder}": no such folder`);
  await readManifests(folder);
}

async function applyTenants(folder: string, gateway: Gateway, token: string): Promise<void> {
  const summary = await applyDirectory({
    folder,
    token,
    url: "http://localhost",
    fetch: async (request: Request) => await gateway.fetch(request, {}),
  });
  process.stdout.write(`${summary}\n`);
}

process.on("unhandledRejection", (error) => {
  // A promise nobody looks after is a mistake of ours: better a loud end than a silent half.
  process.stderr.write(
    `conflux: Unhandled rejection: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
  );
  process.exit(70);
});

main(process.argv.slice(2)).catch((error: unknown) => {
  const known =
    error instanceof SettingsError ||
    error instanceof ListenError ||
    error instanceof TransportError ||
    error instanceof DataDirectoryError ||
    error instanceof DirectoryInUseError ||
    error instanceof ManifestError ||
    error instanceof Problem;
  if (known) die((error as Error).message);
  die(error instanceof Error ? (error.stack ?? error.message) : String(error));
});
