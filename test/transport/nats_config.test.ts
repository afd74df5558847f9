/** What `conflux cluster nats-config` writes, given to a real nats-server. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { connect, nkeyAuthenticator } from "nats";
import { afterEach, describe, expect, test } from "vitest";
import { startNatsServer } from "../../infra/nats_server.mjs";
import { parseOptions, UsageError } from "../../src/cli/arguments.ts";
import { natsConfigOptions, writeNatsConfig } from "../../src/cli/nats_config.ts";
import { lanes } from "../../src/host/ports.ts";
import { NatsTransport, type NatsOptions, type NatsStatus } from "../../src/transport/nats.ts";
import { bytesOf, listen } from "./contract.ts";
import { until } from "./until.ts";

const tls = path.join(import.meta.dirname, "tls");
const endings: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

function folder(): string {
  const made = mkdtempSync(path.join(tmpdir(), "conflux-nats-config-"));
  endings.push(() => rmSync(made, { recursive: true }));
  return made;
}

const write = (...args: readonly string[]) =>
  writeNatsConfig(parseOptions([...args], natsConfigOptions));

async function server(file: string) {
  const started = await startNatsServer({ config: readFileSync(file, "utf8") });
  endings.push(() => started.stop());
  return started;
}

function seedOf(to: string, node: string): string {
  return readFileSync(path.join(to, `${node}.nk`), "utf8").trim();
}

async function join(node: string, more: Partial<NatsOptions> & { servers: readonly string[] }) {
  const statuses: NatsStatus[] = [];
  const transport = new NatsTransport({
    cluster: "acme",
    node,
    boot: 1,
    onStatus: (status) => statuses.push(status),
    ...more,
  });
  endings.push(() => transport.close());
  return { ...(await listen(transport)), statuses };
}

describe("conflux cluster nats-config", () => {
  test("its nodes hear each other on every lane, and nobody comes in without a key", async () => {
    const to = folder();
    const { servers } = await write("--name", "acme", "--nodes", "a,b", "--to", to);
    const nats = await server(servers[0] as string);
    const auth = (node: string) => ({ nkeySeed: seedOf(to, node) });
    const a = await join("a", { servers: [nats.url], auth: auth("a") });
    const b = await join("b", { servers: [nats.url], auth: auth("b") });
    for (const lane of lanes) expect(a.transport.send("b", lane, bytesOf("x"))).toBe(true);
    await until(() => b.heard.length === lanes.length, "all lanes");
    await expect(join("c", { servers: [nats.url] })).rejects.toThrow("Cannot use NATS");
  });

  test("a node can neither speak in another's name nor listen for it", async () => {
    const to = folder();
    const { servers } = await write("--name", "acme", "--nodes", "a,b,c", "--to", to);
    const nats = await server(servers[0] as string);
    const b = await join("b", { servers: [nats.url], auth: { nkeySeed: seedOf(to, "b") } });
    const intruder = await connect({
      servers: nats.url,
      authenticator: nkeyAuthenticator(bytesOf(seedOf(to, "a"))),
    });
    endings.push(() => intruder.close());
    const refused: string[] = [];
    void (async () => {
      for await (const { permissionContext } of intruder.status())
        if (permissionContext?.operation === "publish")
          refused.push(`${permissionContext.operation} ${permissionContext.subject}`);
    })();
    intruder.publish("cfx.acme.b.c.control", bytesOf("in the name of c"));
    intruder.publish("cfx.other.b.a.control", bytesOf("in another cluster"));
    for (const subject of ["cfx.acme.b.*.control", "cfx.>", ">"])
      intruder.subscribe(subject, {
        callback: (error) => {
          if (error !== null) refused.push(`subscribe ${subject}`);
        },
      });
    await intruder.flush();
    await until(() => refused.length === 5, `five refusals: ${refused.join()}`);
    expect(refused.sort()).toEqual([
      "publish cfx.acme.b.c.control",
      "publish cfx.other.b.a.control",
      "subscribe >",
      "subscribe cfx.>",
      "subscribe cfx.acme.b.*.control",
    ]);
    expect(b.transport.stats.framesIn).toBe(0);
  });

  test("run again with one node more it keeps every key, and files are the owner's alone", async () => {
    const to = folder();
    await write("--nodes", "n1,n2", "--servers", "x,y", "--to", to);
    const before = readdirSync(to).map((file) => readFileSync(path.join(to, file), "utf8"));
    const { nodes, urls } = await write(
      "--nodes",
      "n1,n2,n3",
      "--servers",
      "x,y:14222",
      "--to",
      to,
    );
    expect(nodes.map(({ node, kept }) => [node, kept])).toEqual([
      ["n1", true],
      ["n2", true],
      ["n3", false],
    ]);
    expect(urls).toEqual(["nats://x:4222", "nats://y:14222"]);
    const secrets = ["n1.nk", "n2.nk", "routes.secret"];
    for (const file of secrets) expect(before).toContain(readFileSync(path.join(to, file), "utf8"));
    for (const file of readdirSync(to))
      expect(statSync(path.join(to, file)).mode & 0o077, file).toBe(0);
  });

  test.each([
    [[], "Name the nodes"],
    [["--nodes", "a,B!"], "--nodes takes DNS labels: got B!"],
    [["--nodes", "a", "--name", "x.y"], "--name takes a DNS label"],
    [["--nodes", "a", "--servers", "h:99999"], "--servers takes a host name"],
    [["--nodes", "a", "--servers", 'h"'], "--servers takes a host name"],
  ])("%j is refused, and nothing is written", async (args, message) => {
    const to = path.join(folder(), "inside");
    await expect(write(...args, "--to", to)).rejects.toThrow(message);
    await expect(write(...args, "--to", to)).rejects.toBeInstanceOf(UsageError);
    expect(() => readdirSync(to)).toThrow();
  });
});

describe("NATS over TLS", () => {
  test("works with the right authority, and is refused with another or none", async () => {
    const to = folder();
    const { servers } = await write("--name", "acme", "--nodes", "a,b", "--tls", tls, "--to", to);
    const nats = await server(servers[0] as string);
    const url = nats.url.replace("nats:", "tls:");
    const ca = readFileSync(path.join(tls, "ca.pem"), "utf8");
    const options = (node: string) => ({
      servers: [url],
      auth: { nkeySeed: seedOf(to, node) },
      startTimeoutMs: 3_000,
    });
    const a = await join("a", { ...options("a"), tls: { ca } });
    const b = await join("b", { ...options("b"), tls: { ca } });
    a.transport.send("b", "append", bytesOf("x".repeat(600_000)));
    await until(() => b.heard.length === 1, "a message of several frames");
    await expect(join("b", { ...options("b") })).rejects.toThrow("Cannot reach NATS at tls://");
  });
});
