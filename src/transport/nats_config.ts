/**
 * Configuration of the NATS servers of one Conflux cluster: a user key for each node, with permissions that make the
 * sender's token of a subject unforgeable (see nats.ts), and routes between the servers when there are several.
 *
 * Text and keys only; the `conflux` command writes the files. Keys and the routes' password that exist already are taken
 * over, so that running it again with one node more changes nothing for the others.
 */
import { nkeys } from "nats";
import { assertName } from "./envelope.ts";
import { payloadBytesNeeded } from "./nats.ts";

export interface NatsServerPlace {
  /** Host name or address by which nodes and the other servers reach it. */
  readonly host: string;
  /** For nodes. */
  readonly port: number;
  /** For the other servers. */
  readonly routePort: number;
}

export interface NatsConfigInput {
  readonly cluster: string;
  /** Names of the nodes that may connect, those that join later among them. */
  readonly nodes: readonly string[];
  /** One: a server alone. */
  readonly servers: readonly NatsServerPlace[];
  /** Paths on the servers, as their configuration names them; null: no TLS. */
  readonly tls: { readonly ca: string; readonly cert: string; readonly key: string } | null;
  /** Seeds of nodes that have one. */
  readonly seeds: ReadonlyMap<string, string>;
  /** What servers know each other by; needed with several. */
  readonly routePassword: string;
}

export interface NatsConfig {
  /** Seed of a node's user nkey, `SU…`. */
  readonly seeds: ReadonlyMap<string, string>;
  /** Text of each server's configuration, in the order of `servers`. */
  readonly servers: readonly string[];
}

/** @throws {Error} when a seed that is there already is none of a user */
export function natsConfig(input: NatsConfigInput): NatsConfig {
  const { cluster, nodes, servers } = input;
  assertName(cluster, "Cluster name");
  const seeds = new Map<string, string>();
  const users = nodes.map((node) => {
    assertName(node, "Node name");
    const seed = input.seeds.get(node)?.trim() ?? decode(nkeys.createUser().getSeed());
    seeds.set(node, seed);
    return userOf(cluster, node, publicKeyOf(node, seed));
  });
  return { seeds, servers: servers.map((_, position) => serverText(input, position, users)) };
}

function publicKeyOf(node: string, seed: string): string {
  try {
    const pair = nkeys.fromSeed(new TextEncoder().encode(seed));
    const key = pair.getPublicKey();
    if (key.startsWith("U")) return key;
  } catch {
    // Told below, without the library's words: they may hold the seed.
  }
  throw new Error(
    `Cannot use the key of node ${node}: it is not the seed of a user key, SU…; remove the file to have one made`,
  );
}

function userOf(cluster: string, node: string, key: string): string {
  return `    {
      # ${node}
      nkey: ${key}
      permissions: {
        publish: { allow: ["cfx.${cluster}.*.${node}.*"] }
        subscribe: { allow: ["cfx.${cluster}.${node}.*.*"] }
      }
    }`;
}

function serverText(input: NatsConfigInput, position: number, users: readonly string[]): string {
  const { cluster, servers, tls, routePassword } = input;
  const { host, port, routePort } = servers[position] as NatsServerPlace;
  const files = (block: string): string =>
    tls === null
      ? ""
      : `${block}tls: {
${block}  ca_file: ${JSON.stringify(tls.ca)}
${block}  cert_file: ${JSON.stringify(tls.cert)}
${block}  key_file: ${JSON.stringify(tls.key)}
${block}}
`;
  const routes = servers
    .filter((_, other) => other !== position)
    .map((other) => `    "nats-route://conflux:${routePassword}@${other.host}:${other.routePort}"`);
  const clustered =
    servers.length === 1
      ? ""
      : `
# The servers among themselves.
cluster: {
  name: "${cluster}"
  listen: "0.0.0.0:${routePort}"
  authorization: { user: conflux, password: "${routePassword}", timeout: 2 }
${files("  ")}  routes: [
${routes.join("\n")}
  ]
}
`;
  return `# nats-server of Conflux cluster "${cluster}"${servers.length === 1 ? "" : `, ${position + 1} of ${servers.length}: ${host}`}.
# Written by \`conflux cluster nats-config\`; run it again to add nodes, then reload: nats-server --signal reload
server_name: "${cluster}-${position + 1}"
listen: "0.0.0.0:${port}"

# Frames are ${payloadBytesNeeded} bytes at most; the default suffices, less would not.
max_payload: 1MB
# A node that reads too slowly is cut off, and comes again, before it costs the others memory.
max_pending: 64MB
write_deadline: "2s"
ping_interval: "5s"
ping_max: 2
${files("")}
# A node publishes in its own name alone, and hears what is addressed to it alone.
authorization: {
  timeout: 2
  users: [
${users.join("\n")}
  ]
}
${clustered}`;
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
