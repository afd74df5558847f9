/**
 * Three nats-servers as `conflux cluster nats-config` sets them up (keys per node, TLS, routes), three nodes. Each server
 * is killed once under writes: no group may lose its leader by it, and nothing acknowledged may be missing.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { freePorts, startCluster } from "../../infra/cluster.mjs";
import { startNatsServer, type NatsServer } from "../../infra/nats_server.mjs";
import { parseOptions } from "../../src/cli/arguments.ts";
import { natsConfigOptions, writeNatsConfig } from "../../src/cli/nats_config.ts";
import { ask, eventually, persist } from "./api.ts";

const TENANTS = 12;
const SERVERS = 3;
/** Long enough for a lost leader to be noticed: node pairs vouch for each other for a second. */
const AFTER_KILL_MS = 2_500;

const tls = path.resolve(import.meta.dirname, "../transport/tls");

describe("three NATS servers, each killed once under writes", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "conflux-nats-cluster-"));
  const servers: NatsServer[] = [];
  let files: readonly string[] = [];
  let ports: readonly number[] = [];
  let cluster: Awaited<ReturnType<typeof startCluster>>;

  const startServer = async (at: number): Promise<void> => {
    servers[at] = await startNatsServer({
      port: ports[at] as number,
      config: readFileSync(files[at] as string, "utf8"),
    });
  };

  beforeAll(async () => {
    ports = await freePorts(2 * SERVERS);
    const places = Array.from(
      { length: SERVERS },
      (_, at) => `127.0.0.1:${ports[at]}:${ports[SERVERS + at]}`,
    ).join(",");
    const args = ["--nodes", "n1,n2,n3", "--servers", places, "--tls", tls, "--to", folder];
    const written = await writeNatsConfig(parseOptions(args, natsConfigOptions));
    files = written.servers;
    for (let at = 0; at < SERVERS; at++) await startServer(at);
    cluster = await startCluster({
      natsUrl: written.urls.join(","),
      env: { CONFLUX_NATS_CA: path.join(tls, "ca.pem") },
      nodeEnv: (node) => ({ CONFLUX_NATS_NKEY: path.join(folder, `${node}.nk`) }),
    });
  }, 90_000);

  afterAll(async () => {
    await cluster?.stop();
    for (const server of servers) await server.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  test("no group loses its leader, no acknowledged write is lost", async () => {
    const urls = cluster.nodes.map((node) => node.url);
    const token = cluster.rootToken;
    const names = Array.from({ length: TENANTS }, (_, at) => `t${at}`);
    for (const id of names) {
      const made = await persist(urls, "/v1/tenants", { token, body: { id, replicas: 3 } });
      expect(made.status).toBe(201);
    }
    const leaders = async (): Promise<string[]> => {
      const found: string[] = [];
      for (const name of names) {
        let known = "";
        await eventually("a leader", async () => {
          const { status, body } = await ask(`${urls[0]}/v1/tenants/${name}/group`, { token });
          known = `${name} ${body.leader} in term ${body.term}`;
          return status === 200 && body.leader !== null;
        });
        found.push(known);
      }
      return found;
    };
    // Leaderships that are given away to spread them are not lost: that comes first.
    let before: string[] = [];
    const share = TENANTS / urls.length;
    await eventually(
      "leaders spread evenly",
      async () => {
        before = await leaders();
        return cluster.nodes.every(
          ({ name }) => before.filter((led) => led.includes(` ${name} in term `)).length === share,
        );
      },
      60_000,
    );

    for (const tenant of names)
      await persist(urls, `/v1/tenants/${tenant}/namespaces/default/configs/c`, {
        token,
        method: "PUT",
        body: { format: "text" },
      });
    const acknowledged: { tenant: string; text: string; version: number }[] = [];
    let writing = true;
    const writers = names.map(async (tenant, at) => {
      for (let count = 0; writing; count++) {
        const text = `${tenant}-${count}`;
        const answer = await persist(
          [urls[at % urls.length] as string],
          `/v1/tenants/${tenant}/namespaces/default/configs/c/publish`,
          {
            token,
            body: { content: text },
            headers: { "idempotency-key": text },
          },
        );
        expect([200, 201]).toContain(answer.status);
        acknowledged.push({ tenant, text, version: answer.body.version });
        await sleep(20);
      }
    });
    for (let at = 0; at < SERVERS; at++) {
      await (servers[at] as NatsServer).kill();
      await sleep(AFTER_KILL_MS);
      await startServer(at);
    }
    writing = false;
    await Promise.all(writers);
    expect(await leaders()).toEqual(before);
    expect(acknowledged.length).toBeGreaterThan(TENANTS * SERVERS);
    for (const { tenant, text, version } of acknowledged) {
      const at = `/v1/tenants/${tenant}/namespaces/default/configs/c/versions/${version}`;
      const answer = await persist(urls, at, { token });
      expect(answer.body.content, `${at} of ${tenant}`).toBe(text);
    }
  }, 120_000);
});
