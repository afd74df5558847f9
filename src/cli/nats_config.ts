/** `conflux cluster nats-config`: the files that nats-server and the nodes of one cluster need to trust each other. */
import { randomBytes } from "node:crypto";
import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { natsConfig } from "../transport/nats_config.ts";
import type { NatsServerPlace } from "../transport/nats_config.ts";
import { isName } from "../transport/envelope.ts";
import { UsageError } from "./arguments.ts";
import type { Options, OptionSpecs } from "./arguments.ts";

export const natsConfigOptions = {
  name: { type: "string", value: "NAME", help: "Name of the cluster (default: conflux)" },
  nodes: { type: "string", value: "N1,N2,…", help: "Nodes that may connect" },
  servers: {
    type: "string",
    value: "HOST[:PORT[:ROUTES]],…",
    help: "The NATS servers (default: 127.0.0.1:4222:6222, one alone)",
  },
  tls: {
    type: "string",
    value: "DIR",
    help: "TLS by ca.pem, cert.pem and key.pem in this folder of each server",
  },
  to: { type: "string", value: "DIR", help: "Where the files go (default: ./nats)" },
} as const satisfies OptionSpecs;

export interface WrittenNatsConfig {
  /** For CONFLUX_NATS. */
  readonly urls: readonly string[];
  /** Configuration files, in the order of `--servers`. */
  readonly servers: readonly string[];
  readonly nodes: readonly {
    readonly node: string;
    readonly file: string;
    /** The key was there before and stays. */
    readonly kept: boolean;
  }[];
}

/** @throws {UsageError} names the option that is wrong */
export async function writeNatsConfig(options: Options): Promise<WrittenNatsConfig> {
  const cluster = options.get("name") ?? "conflux";
  if (!isName(cluster)) throw new UsageError(`Option --name takes a DNS label: got ${cluster}`);
  const nodes = namesOf(options.get("nodes") ?? "");
  if (nodes.length === 0) throw new UsageError("Name the nodes: --nodes n1,n2,n3");
  for (const node of nodes)
    if (!isName(node)) throw new UsageError(`Option --nodes takes DNS labels: got ${node}`);
  const servers = namesOf(options.get("servers") ?? "127.0.0.1").map(placeOf);
  const tls = options.get("tls");
  const folder = path.resolve(options.get("to") ?? "nats");
  await mkdir(folder, { recursive: true, mode: 0o700 });

  const seedFile = (node: string): string => path.join(folder, `${node}.nk`);
  const seeds = new Map<string, string>();
  for (const node of nodes) {
    const seed = await readIfThere(seedFile(node));
    if (seed !== null) seeds.set(node, seed);
  }
  const routesFile = path.join(folder, "routes.secret");
  const routePassword =
    (await readIfThere(routesFile))?.trim() ?? randomBytes(24).toString("base64url");
  const made = natsConfig({
    cluster,
    nodes,
    servers,
    tls:
      tls === undefined
        ? null
        : { ca: `${tls}/ca.pem`, cert: `${tls}/cert.pem`, key: `${tls}/key.pem` },
    seeds,
    routePassword,
  });

  if (servers.length > 1) await writeSecret(routesFile, `${routePassword}\n`);
  const serverFiles = made.servers.map((_, at) => path.join(folder, `nats-${at + 1}.conf`));
  for (const [at, text] of made.servers.entries())
    await writeSecret(serverFiles[at] as string, text);
  for (const [node, seed] of made.seeds)
    if (!seeds.has(node)) await writeSecret(seedFile(node), `${seed}\n`);
  const scheme = tls === undefined ? "nats" : "tls";
  return {
    urls: servers.map(({ host, port }) => `${scheme}://${host}:${port}`),
    servers: serverFiles,
    nodes: nodes.map((node) => ({ node, file: seedFile(node), kept: seeds.has(node) })),
  };
}

function namesOf(list: string): string[] {
  const names = list
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");
  return [...new Set(names)];
}

function placeOf(text: string): NatsServerPlace {
  const parts = /^([a-zA-Z0-9.-]+)(?::(\d{1,5}))?(?::(\d{1,5}))?$/.exec(text);
  const port = Number(parts?.[2] ?? 4222);
  const routePort = Number(parts?.[3] ?? 6222);
  const isPort = (number: number): boolean => number >= 1 && number <= 65_535;
  if (parts === null || !isPort(port) || !isPort(routePort))
    throw new UsageError(
      `Option --servers takes a host name or IPv4 address, with a port and a port for routes if need be: got ${text}`,
    );
  return { host: parts[1] as string, port, routePort };
}

async function readIfThere(file: string): Promise<string | null> {
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

async function writeSecret(file: string, text: string): Promise<void> {
  await writeFile(file, text, { mode: 0o600 });
  // The mode above counts only for a file that was not there.
  await chmod(file, 0o600);
}
