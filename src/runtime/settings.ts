/**
 * The settings of a node: one table from which flags, environment variables, the settings file and the documentation are
 * read. Flags > environment > file > defaults. Whatever is unknown, out of range or contradictory stops the start with
 * one line that names the setting, its value and what is allowed: a node that guesses is a node that surprises.
 */
import { parse as parseYaml } from "yaml";
import { nearest, suggestion } from "../lib/nearest.ts";

export type LogLevel = "fatal" | "error" | "warn" | "info" | "debug" | "trace" | "silent";

export interface Settings {
  readonly port: number;
  readonly host: string;
  readonly data: string;
  /** Null: read from `<data>/root-token`, made there at the first start. */
  readonly rootToken: string | null;
  readonly cluster: string;
  readonly node: string;
  /** NATS URLs; null: single process, loopback. */
  readonly nats: readonly string[] | null;
  /** File with the seed of this node's NATS user key. */
  readonly natsNkey: string | null;
  /** File with NATS credentials (`.creds`). */
  readonly natsCreds: string | null;
  /** PEM files: whose certificates to trust, and this node's own. */
  readonly natsCa: string | null;
  readonly natsCert: string | null;
  readonly natsKey: string | null;
  /** Names of the initial nodes; null outside cluster mode. */
  readonly peers: readonly string[] | null;
  /** Where this node is: replicas of a tenant go to different zones where they can. */
  readonly zone: string | null;
  /** `gateway`: holds no replicas of tenants. */
  readonly role: "member" | "gateway";
  /** Seconds after which the replicas of a node that is not heard of get a place elsewhere. */
  readonly replaceAfter: number;
  /** Seconds after which a tenant that nobody used leaves this node's memory. */
  readonly sleepAfter: number;
  /** Percent of the time that passes; null: no leader reads by a lease. */
  readonly clockDriftMax: number | null;
  /** Folder of manifests applied at start. */
  readonly tenants: string | null;
  /** Days that a deleted tenant is kept; Infinity: until somebody purges it. */
  readonly tenantRetention: number;
  /** Seconds after which a watch is told to come back, give or take a fifth. */
  readonly watchAge: number;
  /** Keys for secret configs; both null: there are none. */
  readonly secretKeyFile: string | null;
  readonly secretKeyCommand: string | null;
  readonly log: LogLevel;
  /** Mebibytes of the disk that writes leave free; 0 = none. */
  readonly diskReserveMib: number;
  /** Seconds after which a write that the disk does not end ends the node; 0 = never. */
  readonly diskStall: number;
  /** Requests that a node makes of a cluster of its own once it is ready, see src/rehearsal.ts; 0 = none. */
  readonly rehearsal: number;
}

export type SettingName = keyof Settings;

export interface Setting {
  readonly name: SettingName;
  readonly env: string;
  readonly flag: string;
  /** As written by the user; null: none. */
  readonly default: string | null;
  readonly allowed: string;
  readonly meaning: string;
  /** Its value never appears in a message. */
  readonly secret: boolean;
  readonly read: (text: string) => unknown;
}

/** A setting that stops the start. The message is the whole line to print. */
export class SettingsError extends Error {
  override readonly name = "SettingsError";
}

export const logLevels: readonly LogLevel[] = [
  "fatal",
  "error",
  "warn",
  "info",
  "debug",
  "trace",
  "silent",
];

// Names become NATS subject tokens and file names: no dots, spaces or wildcards.
const name = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;
const rootTokenLengthMin = 8;
const rootTokenLengthMax = 512;
const natsUrl = /^(nats|tls):\/\/[^\s,/]+\/?$|^[a-zA-Z0-9.-]+(:\d{1,5})?$/;

/** Whether the text may be a root token, given or kept. */
export function isRootToken(text: string): boolean {
  return (
    text.length >= rootTokenLengthMin &&
    text.length <= rootTokenLengthMax &&
    /^[\x21-\x7e]+$/.test(text) &&
    !/^cfx_(admin|write|read|client)_/.test(text) &&
    // Nor that of a JSON Web Token, which would be taken for one.
    !/^eyJ[\w-]*\.[\w-]+\.[\w-]+$/.test(text)
  );
}

/** What a reader returns when the text is not allowed. */
const refused = Symbol("refused");

const readName = (text: string): unknown => (name.test(text) ? text : refused);
const readText = (text: string): unknown => (text.trim() === "" ? refused : text);

const readSeconds =
  (min: number) =>
  (text: string): unknown =>
    /^\d{1,6}$/.test(text) && Number(text) >= min && Number(text) <= 604_800
      ? Number(text)
      : refused;

const readList =
  (item: RegExp) =>
  (text: string): unknown => {
    const items = text.split(",").map((part) => part.trim());
    const good = items.every((part) => item.test(part)) && new Set(items).size === items.length;
    return good ? items : refused;
  };

export const settingsTable: readonly Setting[] = [
  {
    name: "port",
    env: "CONFLUX_PORT",
    flag: "--port",
    default: "8080",
    allowed: "a whole number from 0 to 65535",
    meaning: "port of the gateway; 0 picks a free one and logs it",
    secret: false,
    read: (text) => (/^\d{1,5}$/.test(text) && Number(text) <= 65_535 ? Number(text) : refused),
  },
  {
    name: "host",
    env: "CONFLUX_HOST",
    flag: "--host",
    default: "127.0.0.1",
    allowed: "an address or name of this machine",
    meaning: "address the gateway listens on",
    secret: false,
    read: (text) => (/^[a-zA-Z0-9:._-]+$/.test(text) ? text : refused),
  },
  {
    name: "data",
    env: "CONFLUX_DATA",
    flag: "--data",
    default: "./data",
    allowed: "a directory",
    meaning: "data directory of this node; locked, a second process on it is refused",
    secret: false,
    read: readText,
  },
  {
    name: "rootToken",
    env: "CONFLUX_ROOT_TOKEN",
    flag: "--root-token",
    default: null,
    allowed: `${rootTokenLengthMin} to ${rootTokenLengthMax} visible ASCII characters, not in the form of a tenant's key`,
    meaning:
      "the operator's key; without it one is made at the first start and written to <data>/root-token",
    secret: true,
    read: (text) => (isRootToken(text) ? text : refused),
  },
  {
    name: "cluster",
    env: "CONFLUX_CLUSTER",
    flag: "--cluster",
    default: "conflux",
    allowed: "lower-case letters, digits and dashes, at most 63",
    meaning: "name of the cluster; nodes of different names never talk to each other",
    secret: false,
    read: readName,
  },
  {
    name: "node",
    env: "CONFLUX_NODE",
    flag: "--node",
    default: "n1",
    allowed: "lower-case letters, digits and dashes, at most 63",
    meaning: "name of this node, unique in the cluster",
    secret: false,
    read: readName,
  },
  {
    name: "nats",
    env: "CONFLUX_NATS",
    flag: "--nats",
    default: null,
    allowed: "comma-separated NATS URLs, e.g. nats://127.0.0.1:4222",
    meaning: "servers that carry the cluster's messages; without it this is a single process",
    secret: true,
    read: readList(natsUrl),
  },
  ...(
    [
      ["natsNkey", "NKEY", "nkey", "the seed of this node's NATS user key (`SU…`)"],
      ["natsCreds", "CREDS", "creds", "NATS credentials (`.creds`), instead of a key"],
      [
        "natsCa",
        "CA",
        "ca",
        "the certificates (PEM) that NATS's own is checked against; turns TLS on",
      ],
      ["natsCert", "CERT", "cert", "this node's certificate (PEM), where NATS asks for one"],
      ["natsKey", "KEY", "key", "its private key (PEM)"],
    ] as const
  ).map(([name, env, flag, what]): Setting => ({
    name,
    env: `CONFLUX_NATS_${env}`,
    flag: `--nats-${flag}`,
    default: null,
    allowed: "a file",
    meaning: `file with ${what}`,
    secret: false,
    read: readText,
  })),
  {
    name: "peers",
    env: "CONFLUX_PEERS",
    flag: "--peers",
    default: null,
    allowed: "comma-separated, distinct node names, e.g. n1,n2,n3",
    meaning: "names of the initial nodes; a node whose name is not among them joins as new",
    secret: false,
    read: readList(name),
  },
  {
    name: "zone",
    env: "CONFLUX_ZONE",
    flag: "--zone",
    default: null,
    allowed: "lower-case letters, digits and dashes, at most 63",
    meaning: "where this node is; a tenant's replicas go to different zones where they can",
    secret: false,
    read: readName,
  },
  {
    name: "role",
    env: "CONFLUX_ROLE",
    flag: "--role",
    default: "member",
    allowed: "member, gateway",
    meaning:
      "gateway: holds no replicas, answers by asking nodes that do; its name must not be among CONFLUX_PEERS",
    secret: false,
    read: (text) => (text === "member" || text === "gateway" ? text : refused),
  },
  {
    name: "replaceAfter",
    env: "CONFLUX_REPLACE_AFTER",
    flag: "--replace-after",
    default: "300",
    allowed: "a whole number of seconds from 10 to 604800",
    meaning: "how long a node may be away before its replicas get a place elsewhere",
    secret: false,
    read: readSeconds(10),
  },
  {
    name: "sleepAfter",
    env: "CONFLUX_SLEEP_AFTER",
    flag: "--sleep-after",
    default: "600",
    allowed: "a whole number of seconds from 1 to 604800",
    meaning:
      "how long a tenant that nobody reads, writes or watches stays in this node's memory; the next request wakes it",
    secret: false,
    read: readSeconds(1),
  },
  {
    name: "clockDriftMax",
    env: "CONFLUX_CLOCK_DRIFT_MAX",
    flag: "--clock-drift-max",
    default: "10",
    allowed: "a number of percent from 0.1 to 50, or off",
    meaning:
      "how much faster or slower than the others' this node's clock may run while leaders read without asking anybody; off where that cannot be said: every linearizable read then asks a majority",
    secret: false,
    read: (text) => {
      if (text === "off") return null;
      const percent = /^\d{1,2}(\.\d{1,3})?$/.test(text) ? Number(text) : 0;
      return percent >= 0.1 && percent <= 50 ? percent : refused;
    },
  },
  {
    name: "tenants",
    env: "CONFLUX_TENANTS",
    flag: "--tenants",
    default: null,
    allowed: "a directory",
    meaning: "manifests applied at start",
    secret: false,
    read: readText,
  },
  {
    name: "watchAge",
    env: "CONFLUX_WATCH_AGE",
    flag: "--watch-age",
    default: "3600",
    allowed: "a whole number of seconds from 10 to 604800",
    meaning:
      "how long a watch may stay on one connection, give or take a fifth; then it comes back, to any node",
    secret: false,
    read: readSeconds(10),
  },
  {
    name: "tenantRetention",
    env: "CONFLUX_TENANT_RETENTION",
    flag: "--tenant-retention",
    default: "30",
    allowed: "a whole number of days from 1 to 3650, or forever",
    meaning: "how long a deleted tenant can be undeleted before it is purged",
    secret: false,
    read: (text) => {
      if (text === "forever") return Number.POSITIVE_INFINITY;
      return /^\d{1,4}$/.test(text) && Number(text) >= 1 && Number(text) <= 3_650
        ? Number(text)
        : refused;
    },
  },
  {
    name: "secretKeyFile",
    env: "CONFLUX_SECRET_KEY_FILE",
    flag: "--secret-key-file",
    default: null,
    allowed: "a file with a line <id>:<32 bytes in base64> for each key",
    meaning:
      "keys that seal secret configs, the same on every node; the first seals, the others still open; without it there are no secrets",
    secret: false,
    read: readText,
  },
  {
    name: "secretKeyCommand",
    env: "CONFLUX_SECRET_KEY_COMMAND",
    flag: "--secret-key-command",
    default: null,
    allowed: "an executable that prints such a file within 30 s",
    meaning: "asked for the keys once at the start, instead of a file: the door to a KMS",
    secret: false,
    read: readText,
  },
  {
    name: "log",
    env: "CONFLUX_LOG",
    flag: "--log",
    default: "info",
    allowed: logLevels.join(", "),
    meaning: "what is logged",
    secret: false,
    read: (text) => (logLevels.includes(text as LogLevel) ? text : refused),
  },
  {
    name: "diskReserveMib",
    env: "CONFLUX_DISK_RESERVE_MIB",
    flag: "--disk-reserve-mib",
    default: "256",
    allowed: "a whole number from 0 to 1048576",
    meaning:
      "MiB of the disk that writes leave free: below it they are answered with `disk-full`, while votes, reads and deletions go on; 0 turns it off",
    secret: false,
    read: (text) => (/^\d{1,7}$/.test(text) && Number(text) <= 2 ** 20 ? Number(text) : refused),
  },
  {
    name: "diskStall",
    env: "CONFLUX_DISK_STALL",
    flag: "--disk-stall",
    default: "20",
    allowed: "a whole number of seconds from 0 to 3600",
    meaning:
      "a write that the disk has not ended after so long ends the node, so that others take over from it; logged as `disk.slow` after a quarter of it; 0 turns it off",
    secret: false,
    read: (text) => (/^\d{1,4}$/.test(text) && Number(text) <= 3_600 ? Number(text) : refused),
  },
  {
    name: "rehearsal",
    env: "CONFLUX_REHEARSAL",
    flag: "--rehearsal",
    default: "100",
    allowed: "a whole number from 0 to 10000",
    meaning:
      "requests that a node rehearses once it is ready, in a cluster of its own that nobody sees, so that the first ones it is asked find compiled code; its own requests come first; 0 turns it off",
    secret: false,
    read: (text) => (/^\d{1,5}$/.test(text) && Number(text) <= 10_000 ? Number(text) : refused),
  },
];

/** Variables of the same prefix that other parts of Conflux read: known, and not for the server. */
export const foreignVariables: ReadonlySet<string> = new Set([
  "CONFLUX_URL",
  "CONFLUX_TOKEN",
  "CONFLUX_TENANT",
  "CONFLUX_NAMESPACE",
  "CONFLUX_ORACLES",
  "CONFLUX_NATS_SERVER",
]);

export interface SettingsSources {
  /** What follows `conflux start`. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Reads the settings file; throws when there is none. */
  readonly readFile: (path: string) => string;
}

interface Given {
  readonly text: string;
  /** How the user wrote it, for the message. */
  readonly source: string;
}

/** @throws SettingsError */
export function readSettings(sources: SettingsSources): Settings {
  const flags = readFlags(sources.args);
  const file =
    flags.config === null ? new Map<string, Given>() : readSettingsFile(flags.config, sources);
  const environment = readEnvironment(sources.env);
  const values: Record<string, unknown> = {};
  const givenBy = new Map<string, string>();
  for (const setting of settingsTable) {
    const given =
      flags.given.get(setting.name) ?? environment.get(setting.name) ?? file.get(setting.name);
    if (given !== undefined) givenBy.set(setting.name, given.source);
    const text = given?.text ?? setting.default;
    if (text === null) {
      values[setting.name] = null;
      continue;
    }
    const value = setting.read(text);
    if (value === refused)
      throw new SettingsError(
        `${given?.source ?? setting.env} is ${setting.secret ? "not valid" : JSON.stringify(text)}: allowed is ${setting.allowed}`,
      );
    values[setting.name] = value;
  }
  const settings = values as unknown as Settings;
  refuseContradictions(settings, givenBy);
  return settings;
}

function refuseContradictions(settings: Settings, givenBy: ReadonlyMap<string, string>): void {
  if (settings.secretKeyFile !== null && settings.secretKeyCommand !== null)
    throw new SettingsError(
      `${givenBy.get("secretKeyCommand")} is set beside ${givenBy.get("secretKeyFile")}: set one of them`,
    );
  if (settings.peers !== null && settings.nats === null)
    throw new SettingsError(
      `${givenBy.get("peers")} is ${JSON.stringify(settings.peers.join(","))} but CONFLUX_NATS is not set: peers are reached over NATS, so set both or neither`,
    );
  for (const name of ["natsNkey", "natsCreds", "natsCa", "natsCert", "natsKey"] as const)
    if (settings[name] !== null && settings.nats === null)
      throw new SettingsError(
        `${givenBy.get(name)} is ${JSON.stringify(settings[name])} but CONFLUX_NATS is not set: set it, or leave both out`,
      );
  if (settings.natsNkey !== null && settings.natsCreds !== null)
    throw new SettingsError(
      `${givenBy.get("natsNkey")} and ${givenBy.get("natsCreds")} are both set: allowed is one of them`,
    );
  if ((settings.natsCert === null) !== (settings.natsKey === null))
    throw new SettingsError(
      `${givenBy.get("natsCert") ?? givenBy.get("natsKey")} is set alone: a certificate and its key (CONFLUX_NATS_CERT, CONFLUX_NATS_KEY) belong together`,
    );
  if (settings.role === "gateway" && settings.nats === null)
    throw new SettingsError(
      `${givenBy.get("role")} is "gateway" but CONFLUX_NATS is not set: a gateway reaches the nodes that hold tenants over NATS`,
    );
  if (settings.role === "gateway" && settings.peers?.includes(settings.node) === true)
    throw new SettingsError(
      `${givenBy.get("role")} is "gateway" but CONFLUX_PEERS names ${settings.node}: allowed is a node outside the initial ones`,
    );
  if (settings.nats !== null && settings.peers === null)
    throw new SettingsError(
      `${givenBy.get("nats")} is set but CONFLUX_PEERS is not: a cluster must know its initial nodes, e.g. n1,n2,n3`,
    );
}

function readFlags(args: readonly string[]): { given: Map<string, Given>; config: string | null } {
  const given = new Map<string, Given>();
  let config: string | null = null;
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] as string;
    const equals = arg.indexOf("=");
    const flag = equals === -1 ? arg : arg.slice(0, equals);
    const setting = settingsTable.find((known) => known.flag === flag);
    if (setting === undefined && flag !== "--config")
      throw new SettingsError(
        `${JSON.stringify(flag)} is not a flag: ${suggestion(flag, flagsAllowed())}`,
      );
    const next = equals === -1 ? args[++i] : arg.slice(equals + 1);
    if (next === undefined || (equals === -1 && next.startsWith("--")))
      throw new SettingsError(
        `${flag} has no value: allowed is ${setting?.allowed ?? "the path of a settings file"}`,
      );
    if (setting === undefined ? config !== null : given.has(setting.name))
      throw new SettingsError(`${flag} is given twice: allowed is once`);
    if (setting === undefined) config = next;
    else given.set(setting.name, { text: next, source: flag });
  }
  return { given, config };
}

function flagsAllowed(): string[] {
  return [...settingsTable.map((setting) => setting.flag), "--config", "--help"];
}

/** All settings, each with its flag, its variable, what it may be and what it means. */
export function settingsHelp(): string {
  const rows = settingsTable.map(
    ({ flag, env, default: otherwise, allowed, meaning }) =>
      `  ${flag.padEnd(22)}${env}${otherwise === null ? "" : `, default ${otherwise}`}: ${allowed}\n      ${meaning}\n`,
  );
  return [
    "Usage: conflux start [settings]\n",
    "Runs a node.\n\n",
    "Each setting is a flag (--port 8080), a variable of the environment (CONFLUX_PORT=8080) or a line of the\n",
    "YAML file given by --config (port: 8080). Flags win over variables, these over the file.\n\n",
    ...rows,
  ].join("");
}

function readEnvironment(env: SettingsSources["env"]): Map<string, Given> {
  const given = new Map<string, Given>();
  for (const [variable, text] of Object.entries(env)) {
    if (!variable.startsWith("CONFLUX_") || foreignVariables.has(variable)) continue;
    const setting = settingsTable.find((known) => known.env === variable);
    if (setting === undefined)
      throw new SettingsError(`${variable} is not a setting: ${variableMeant(variable)}`);
    // `CONFLUX_NATS=${NATS:-}` in a compose file means unset.
    if (text === undefined || text === "") continue;
    given.set(setting.name, { text, source: variable });
  }
  return given;
}

/** What all begin with says nothing about which one was meant. */
function variableMeant(variable: string): string {
  const rest = (name: string): string => name.slice("CONFLUX_".length);
  const near = nearest(
    rest(variable),
    settingsTable.map(({ env }) => rest(env)),
  );
  return near === null
    ? `allowed are ${settingsTable.map(({ env }) => env).join(", ")}`
    : `did you mean CONFLUX_${near}?`;
}

function readSettingsFile(path: string, sources: SettingsSources): Map<string, Given> {
  let document: unknown;
  try {
    document = parseYaml(sources.readFile(path), { maxAliasCount: 0 });
  } catch (error) {
    const reason = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    throw new SettingsError(
      `--config is ${JSON.stringify(path)}: it cannot be read as YAML (${reason})`,
      { cause: error },
    );
  }
  if (document === null || document === undefined) return new Map();
  if (typeof document !== "object" || Array.isArray(document))
    throw new SettingsError(
      `--config is ${JSON.stringify(path)}: allowed is a YAML mapping of settings`,
    );
  const given = new Map<string, Given>();
  for (const [key, value] of Object.entries(document)) {
    const setting = settingsTable.find((known) => known.name === key);
    if (setting === undefined)
      throw new SettingsError(
        `${JSON.stringify(key)} in ${path} is not a setting: ${suggestion(
          key,
          settingsTable.map((known) => known.name),
        )}`,
      );
    if (value === null) continue;
    const text = Array.isArray(value) ? value.join(",") : value;
    if (typeof text !== "string" && typeof text !== "number")
      throw new SettingsError(
        `${key} in ${path} is ${setting.secret ? "not valid" : JSON.stringify(value)}: allowed is ${setting.allowed}`,
      );
    given.set(setting.name, { text: String(text), source: `${key} in ${path}` });
  }
  return given;
}
