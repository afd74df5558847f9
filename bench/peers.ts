/**
 * Conflux beside what one would pick instead, on this machine, by one client: `npm run bench:peers [-- --quick]`.
 *
 * Three nodes of each system (Redis: one, for orientation), started anew for every round, all in turn: A B C D A B C D.
 * The same load generator drives them over loopback with the same payloads, and shares the cores with them. Prints a
 * table of medians, spreads and ratios, and writes bench/results/peers.{json,md,svg}, with --quick peers-quick.*.
 *
 * What is not comparable, and must be read with the figures:
 *  - A write of Conflux is a publish: checked against the key, hashed, versioned, released, with history and audit. One of
 *    the others sets bytes under a key.
 *  - etcd is driven through its HTTP gateway, as Conflux is; its gRPC is faster. JetStream and Redis speak protocols of
 *    their own, cheaper for the client than HTTP.
 *  - JetStream 2.9 calls fsync every two minutes, not per write: what it acknowledged dies with the machines' power. Its
 *    reads come from any replica (direct get), those of Conflux and etcd are linearizable.
 *  - Redis is one process without replication.
 *  - A tenant is a Raft group in Conflux, a bucket with three replicas in JetStream, and nothing but a prefix in etcd and
 *    Redis: creating one costs nothing there, and isolates nothing.
 */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { connect as connectNats, type KV, type NatsConnection } from "nats";
import { killWithUs, root } from "../infra/bootstrap.mjs";
import { freePorts, startCluster } from "../infra/cluster.mjs";
import { findNatsServer } from "../infra/nats_server.mjs";
import { ask, inParallel } from "../test/e2e/api.ts";
import { load, type LoadRequest, type LoadResult } from "./load.ts";
import { microsPerRequest, processorSeconds } from "./processes.ts";

const { values } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    rounds: { type: "string" },
    seconds: { type: "string" },
    systems: { type: "string", default: "conflux,etcd,jetstream,redis" },
    scenarios: { type: "string", default: "write,read,tenants,mixed,create,failover" },
    tenants: { type: "string" },
  },
});
const isQuick = values.quick;
const rounds = Number(values.rounds ?? 2);
const seconds = Number(values.seconds ?? (isQuick ? 2 : 5));
const warmSeconds = isQuick ? 5 : 10;
const tenantCounts = (values.tenants ?? (isQuick ? "100" : "100,1000")).split(",").map(Number);
const wanted = new Set(values.scenarios.split(","));
/** What else the machine was doing: above a few tenths, figures are to be compared with each other only. */
const loadBefore = Math.round((loadavg()[0] ?? 0) * 10) / 10;

// --- what a system can do ------------------------------------------------------------------------------------------------

interface Running {
  /** Of the servers, for their processor time. */
  readonly pids: () => readonly number[];
  /** Makes the tenant (bucket, prefix) with a first value of its own. */
  create(tenant: string): Promise<void>;
  drive(plan: {
    readonly connections: number;
    readonly seconds: number;
    readonly bytes: number;
    readonly tenant: (number: number) => string;
    /** Which requests write. */
    readonly writes: (number: number) => boolean;
  }): Promise<LoadResult>;
  /** Ends whoever leads tenant `one` like a crash would. @returns milliseconds until a write succeeds again */
  failover: (() => Promise<number>) | null;
  stop(): Promise<void>;
}

interface System {
  readonly name: string;
  readonly durability: string;
  readonly version: () => string;
  readonly start: () => Promise<Running>;
  /** A tenant there is something that is made. */
  readonly hasTenants: boolean;
}

// --- processes -----------------------------------------------------------------------------------------------------------

const folders: string[] = [];
function folder(): string {
  const made = mkdtempSync(join(tmpdir(), "conflux-peers-"));
  folders.push(made);
  return made;
}

interface Process {
  readonly pid: number;
  readonly child: ChildProcess;
  kill(): Promise<void>;
}

function run(command: string, args: readonly string[]): Process {
  const child = spawn(command, args, { stdio: "ignore", detached: true });
  const pid = child.pid as number;
  const release = killWithUs(pid);
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  void ended.then(release);
  const kill = async (): Promise<void> => {
    child.kill("SIGKILL");
    await ended;
  };
  return { pid, child, kill };
}

async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + 30_000;
  while (Date.now() < end) {
    if (await isSo().catch(() => false)) return;
    await sleep(50);
  }
  throw new Error(`${what}: not within 30 s`);
}

/** From the PATH and where Debian puts servers, else from Debian itself. */
function program(name: string, debian: string): string {
  const find = (): string | undefined =>
    [...(process.env["PATH"] ?? "").split(":"), "/usr/sbin", "/usr/bin"]
      .map((path) => join(path, name))
      .find((path) => existsSync(path));
  const found = find();
  if (found !== undefined) return found;
  console.error(`${name} is not installed: apt-get install ${debian}`);
  const prefix = process.getuid?.() === 0 ? [] : ["sudo", "-n"];
  const apt = [...prefix, "apt-get", "install", "-y", "--no-install-recommends", debian];
  spawnSync(apt[0] as string, apt.slice(1), { stdio: "inherit" });
  const installed = find();
  if (installed === undefined)
    throw new Error(
      `Cannot find ${name}: install the Debian package ${debian}, or leave it out by --systems`,
    );
  return installed;
}

// --- payloads --------------------------------------------------------------------------------------------------------------

const pads = new Map<number, { text: string; base64: string }>();
/** `bytes` of JSON text in all, that differ by their number. Lengths in whole triples, so that base64 can be joined. */
function pad(bytes: number): { text: string; base64: string } {
  let made = pads.get(bytes);
  if (made === undefined) {
    const text = "x".repeat(bytes - 30);
    made = { text, base64: Buffer.from(`${"x".repeat(bytes - 30)}"}`).toString("base64") };
    pads.set(bytes, made);
  }
  return made;
}
const digits = (number: number): string => String(number % 1e9).padStart(9, "0");
const base64 = (text: string): string => Buffer.from(text).toString("base64");

// --- Conflux -----------------------------------------------------------------------------------------------------------------

async function startConflux(): Promise<Running> {
  const dataDir = folder();
  const cluster = await startCluster({
    nodes: 3,
    runtimes: ["bun"],
    dataDir,
    env: { CONFLUX_LOG: "error" },
  });
  const urls = cluster.nodes.map((node) => node.url);
  const tokens = new Map<string, string>();
  const natsPid = spawnSync("pgrep", ["-f", `nats-server.*${dataDir}`], { encoding: "utf8" });
  const nats = natsPid.stdout.split("\n").filter(Boolean).map(Number);
  const config = (tenant: string): string => `/v1/tenants/${tenant}/namespaces/app`;
  const write = (tenant: string, number: number, bytes: number): LoadRequest => ({
    method: "POST",
    path: `${config(tenant)}/configs/limits/publish`,
    token: tokens.get(tenant) as string,
    body: `{"content":{"n":"${digits(number)}","pad":"${pad(bytes).text}"}}`,
  });
  return {
    pids: () => [...cluster.nodes.map((node) => node.pid ?? 0), ...nats],
    create: async (tenant) => {
      const made = await ask(`${urls[0]}/v1/tenants`, {
        token: cluster.rootToken,
        body: { id: tenant },
      });
      if (made.status !== 201) throw new Error(JSON.stringify(made.body));
      tokens.set(tenant, made.body.key.token);
      const put = await ask(`${urls[0]}${config(tenant)}/configs/limits`, {
        method: "PUT",
        token: made.body.key.token,
        body: { format: "json", content: { n: 0 } },
      });
      if (put.status !== 201) throw new Error(JSON.stringify(put.body));
    },
    drive: (plan) =>
      load({
        urls,
        ...plan,
        request: (number) => {
          const tenant = plan.tenant(number);
          if (plan.writes(number)) return write(tenant, number, plan.bytes);
          const token = tokens.get(tenant) as string;
          return { method: "GET", path: `${config(tenant)}/values/limits`, token };
        },
      }),
    failover: async () => {
      const status = await ask(`${urls[0]}/v1/tenants/one/group`, { token: cluster.rootToken });
      const leader = cluster.nodes.find((node) => node.name === status.body.leader);
      if (leader === undefined) throw new Error(`Nobody leads: ${JSON.stringify(status.body)}`);
      const others = cluster.nodes.filter((node) => node !== leader);
      await leader.kill("SIGKILL");
      return await untilWritten(
        others.map((node) => node.url),
        (number) => {
          const { path, token, body } = write("one", number, 128);
          return { path, body: body as string, token: token as string };
        },
      );
    },
    stop: async () => {
      await cluster.stop();
    },
  };
}

async function untilWritten(
  urls: readonly string[],
  request: (number: number) => { path: string; body: string; token?: string },
): Promise<number> {
  const startedAt = performance.now();
  for (let number = 900_000; performance.now() - startedAt < 60_000; number++) {
    const { path, body, token } = request(number);
    try {
      const answer = await fetch(`${urls[number % urls.length]}${path}`, {
        method: "POST",
        body,
        headers: {
          "content-type": "application/json",
          ...(token !== undefined && { authorization: `Bearer ${token}` }),
        },
        signal: AbortSignal.timeout(1_000),
      });
      await answer.arrayBuffer();
      if (answer.ok) return performance.now() - startedAt;
    } catch {
      // Not yet.
    }
    await sleep(10);
  }
  return Number.NaN;
}

// --- etcd ----------------------------------------------------------------------------------------------------------------------

async function startEtcd(): Promise<Running> {
  const path = program("etcd", "etcd-server");
  const ports = await freePorts(6);
  const members = [0, 1, 2].map((i) => ({
    name: `m${i}`,
    client: `http://127.0.0.1:${ports[i * 2]}`,
    peer: `http://127.0.0.1:${ports[i * 2 + 1]}`,
  }));
  const processes = members.map(({ name, client, peer }) =>
    run(path, [
      "--name",
      name,
      "--data-dir",
      folder(),
      "--initial-cluster-state",
      "new",
      "--listen-client-urls",
      client,
      "--advertise-client-urls",
      client,
      "--listen-peer-urls",
      peer,
      "--initial-advertise-peer-urls",
      peer,
      "--initial-cluster",
      members.map((one) => `${one.name}=${one.peer}`).join(","),
      "--quota-backend-bytes",
      String(8 * 2 ** 30),
      "--logger",
      "zap",
      "--log-level",
      "error",
    ]),
  );
  const urls = members.map((member) => member.client);
  const post = async (url: string, api: string, body: unknown) => {
    const answer = await fetch(`${url}/v3/${api}`, { method: "POST", body: JSON.stringify(body) });
    if (!answer.ok) throw new Error(`etcd ${api}: ${answer.status} ${await answer.text()}`);
    return (await answer.json()) as Record<string, unknown>;
  };
  const keys = new Map<string, string>();
  const keyOf = (tenant: string): string => {
    let key = keys.get(tenant);
    if (key === undefined) keys.set(tenant, (key = base64(`${tenant}/app/limits`)));
    return key;
  };
  const put = (tenant: string, number: number, bytes: number): LoadRequest => ({
    method: "POST",
    path: "/v3/kv/put",
    body: `{"key":"${keyOf(tenant)}","value":"${base64(`{"n":"${digits(number)}","pad":"`)}${pad(bytes).base64}"}`,
  });
  for (const url of urls)
    await until("etcd", async () => {
      await post(url, "kv/put", { key: keyOf("first"), value: "" });
      return true;
    });
  return {
    pids: () => processes.map(({ pid }) => pid),
    create: async (tenant) => {
      await post(urls[0] as string, "kv/put", { key: keyOf(tenant), value: base64('{"n":0}') });
    },
    drive: (plan) =>
      load({
        urls,
        ...plan,
        request: (number) => {
          const tenant = plan.tenant(number);
          if (plan.writes(number)) return put(tenant, number, plan.bytes);
          return { method: "POST", path: "/v3/kv/range", body: `{"key":"${keyOf(tenant)}"}` };
        },
      }),
    failover: async () => {
      const states = await Promise.all(urls.map((url) => post(url, "maintenance/status", {})));
      const leads = states.findIndex(
        ({ leader, header }) => leader === (header as { member_id: string }).member_id,
      );
      await processes[leads]?.kill();
      return await untilWritten(
        urls.filter((_, i) => i !== leads),
        (number) => {
          const { path: target, body } = put("one", number, 128);
          return { path: target, body: body as string };
        },
      );
    },
    stop: async () => {
      await Promise.all(processes.map((process_) => process_.kill()));
    },
  };
}

// --- JetStream -------------------------------------------------------------------------------------------------------------------

async function startJetStream(): Promise<Running> {
  const path = findNatsServer() ?? program("nats-server", "nats-server");
  const ports = await freePorts(6);
  const routes = [0, 1, 2].map((i) => `nats://127.0.0.1:${ports[i * 2 + 1]}`);
  const processes = [0, 1, 2].map((i) => {
    const dir = folder();
    const file = join(dir, "nats.conf");
    writeFileSync(
      file,
      `server_name: s${i}\nlisten: "127.0.0.1:${ports[i * 2]}"\n` +
        `jetstream { store_dir: "${dir}", max_file_store: 40GB }\n` +
        `cluster { name: peers, listen: "127.0.0.1:${ports[i * 2 + 1]}", routes: [${routes.map((r) => `"${r}"`).join(",")}] }\n`,
    );
    return run(path, ["-c", file]);
  });
  const servers = [0, 1, 2].map((i) => `127.0.0.1:${ports[i * 2]}`);
  let lines: NatsConnection[] = [];
  await until("nats-server", async () => {
    lines = await Promise.all(
      Array.from({ length: 12 }, (_, i) => connectNats({ servers: servers[i % 3] as string })),
    );
    return true;
  });
  const buckets = new Map<string, KV>();
  const streams = lines.map((line) => line.jetstream({ timeout: 20_000 }));
  const create = async (tenant: string): Promise<void> => {
    const bucket = await (streams[0] as (typeof streams)[0]).views.kv(tenant, {
      replicas: 3,
      history: 64,
    });
    await bucket.put("limits", '{"n":0}');
    buckets.set(tenant, bucket);
  };
  await until("JetStream", async () => {
    await create("ready");
    return true;
  });
  const subjects = (tenant: string): string => `$KV.${tenant}.limits`;
  return {
    pids: () => processes.map(({ pid }) => pid),
    create,
    drive: async (plan) => {
      const latencies: number[] = [];
      let failures = 0;
      let firstFailure: string | null = null;
      let number = 0;
      const startedAt = performance.now();
      const endAt = startedAt + plan.seconds * 1_000;
      await Promise.all(
        Array.from({ length: plan.connections }, async (_, connection) => {
          const stream = streams[connection % streams.length] as (typeof streams)[0];
          while (performance.now() < endAt) {
            const at = number++;
            const tenant = plan.tenant(at);
            const sentAt = performance.now();
            try {
              if (plan.writes(at))
                await stream.publish(
                  subjects(tenant),
                  `{"n":"${digits(at)}","pad":"${pad(plan.bytes).text}"}`,
                );
              else await buckets.get(tenant)?.get("limits");
            } catch (error) {
              failures++;
              firstFailure ??= String(error);
            }
            latencies.push(performance.now() - sentAt);
          }
        }),
      );
      const took = (performance.now() - startedAt) / 1_000;
      latencies.sort((left, right) => left - right);
      return {
        requests: latencies.length,
        perSecond: latencies.length / took,
        p50: latencies[Math.floor(latencies.length * 0.5)] ?? Number.NaN,
        p99: latencies[Math.floor(latencies.length * 0.99)] ?? Number.NaN,
        failures,
        firstFailure,
      };
    },
    failover: async () => {
      const manager = await lines[0]?.jetstreamManager();
      const info = await manager?.streams.info("KV_one");
      const leads = Number(info?.cluster?.leader?.slice(1) ?? 0);
      await processes[leads]?.kill();
      const startedAt = performance.now();
      const line = await connectNats({ servers: servers.filter((_, i) => i !== leads) });
      while (performance.now() - startedAt < 60_000) {
        try {
          await line.jetstream({ timeout: 500 }).publish(subjects("one"), "{}");
          break;
        } catch {
          // Not yet.
        }
      }
      await line.close();
      return performance.now() - startedAt;
    },
    stop: async () => {
      await Promise.all(lines.map((line) => line.close().catch(() => {})));
      await Promise.all(processes.map((process_) => process_.kill()));
    },
  };
}

// --- Redis -----------------------------------------------------------------------------------------------------------------------

async function startRedis(): Promise<Running> {
  const path = program("redis-server", "redis-server");
  const [port] = await freePorts(1);
  const process_ = run(path, [
    "--port",
    String(port),
    "--bind",
    "127.0.0.1",
    "--dir",
    folder(),
    "--save",
    "",
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
  ]);
  const urls = [`http://127.0.0.1:${port}`];
  const command = (...words: readonly string[]): string =>
    `*${words.length}\r\n${words.map((word) => `$${word.length}\r\n${word}\r\n`).join("")}`;
  const one = (raw: string) =>
    load({ urls, connections: 1, seconds: 0, request: () => ({ method: "", path: "", raw }) });
  await until("redis-server", async () => (await one(command("PING"))).failures === 0);
  return {
    pids: () => [process_.pid],
    create: async (tenant) => {
      await one(command("SET", `${tenant}/limits`, '{"n":0}'));
    },
    drive: (plan) =>
      load({
        urls,
        ...plan,
        request: (number) => {
          const key = `${plan.tenant(number)}/limits`;
          const raw = plan.writes(number)
            ? command("SET", key, `{"n":"${digits(number)}","pad":"${pad(plan.bytes).text}"}`)
            : command("GET", key);
          return { method: "", path: "", raw };
        },
      }),
    failover: null,
    stop: () => process_.kill(),
  };
}

// --- the systems -------------------------------------------------------------------------------------------------------------------

const firstLine = (command: string, args: readonly string[]): string =>
  spawnSync(command, args, { encoding: "utf8" }).stdout.split("\n")[0]?.trim() ?? "";

const systems: readonly System[] = [
  {
    name: "conflux",
    durability: "every write on a majority's disks before its answer (O_DSYNC)",
    version: () => {
      const sha = firstLine("git", ["-C", root, "rev-parse", "--short", "HEAD"]);
      return `${sha} on Bun ${firstLine(join(root, "node_modules/.bin/bun"), ["--version"])}, ${firstLine(findNatsServer() ?? "nats-server", ["--version"])}`;
    },
    start: startConflux,
    hasTenants: true,
  },
  {
    name: "etcd",
    durability: "every write on a majority's disks before its answer (fdatasync)",
    version: () => firstLine(program("etcd", "etcd-server"), ["--version"]),
    start: startEtcd,
    hasTenants: false,
  },
  {
    name: "jetstream",
    durability: "a majority's page cache; fsync every 2 minutes",
    version: () => firstLine(findNatsServer() ?? "nats-server", ["--version"]),
    start: startJetStream,
    hasTenants: true,
  },
  {
    name: "redis",
    durability: "one disk before its answer (appendfsync always), no replication",
    version: () => firstLine(program("redis-server", "redis-server"), ["--version"]),
    start: startRedis,
    hasTenants: false,
  },
];

// --- scenarios ---------------------------------------------------------------------------------------------------------------------

interface Cell {
  readonly scenario: string;
  readonly connections: number;
  readonly bytes: number;
  readonly tenants: number;
}
interface Sample {
  readonly perSecond: number;
  readonly p50: number;
  readonly p99: number;
  readonly failures: number;
  /** Processor time of the servers, microseconds per request. */
  readonly serverMicros: number;
}
/** Samples by cell and system, one per round. */
const samples = new Map<string, Map<string, Sample[]>>();
const cells = new Map<string, Cell>();

function record(system: string, cell: Cell, sample: Sample): void {
  const key = `${cell.scenario}, ${cell.connections} conn, ${cell.bytes} B, ${cell.tenants} tenants`;
  cells.set(key, cell);
  const bySystem = samples.get(key) ?? new Map<string, Sample[]>();
  samples.set(key, bySystem);
  bySystem.set(system, [...(bySystem.get(system) ?? []), sample]);
  console.log(
    `  ${system.padEnd(10)} ${key.padEnd(52)} ${sample.perSecond.toFixed(0).padStart(8)}/s  p50 ${sample.p50.toFixed(2)} ms  p99 ${sample.p99.toFixed(2)} ms  ${sample.serverMicros.toFixed(0)} us of servers each${sample.failures > 0 ? `  ${sample.failures} FAILED` : ""}`,
  );
}

const concurrencies = isQuick ? [1, 64, 256] : [1, 16, 64, 256];

async function measure(system: System, running: Running): Promise<void> {
  const cell = async (
    scenario: string,
    connections: number,
    bytes: number,
    tenants: readonly string[],
    writes: (number: number) => boolean,
  ): Promise<void> => {
    const pids = running.pids();
    const before = processorSeconds(pids);
    // Neighbouring requests go to different tenants.
    const tenant = (number: number): string => tenants[(number * 7_919) % tenants.length] as string;
    const result = await running.drive({ connections, seconds, bytes, tenant, writes });
    if (result.firstFailure !== null) console.error(`  first failure: ${result.firstFailure}`);
    record(
      system.name,
      { scenario, connections, bytes, tenants: tenants.length },
      {
        ...result,
        serverMicros: microsPerRequest(processorSeconds(pids) - before, result.requests),
      },
    );
  };
  await running.create("one");
  const always = (): boolean => true;
  const never = (): boolean => false;
  // Runtimes that compile as they go get the same time for it as those that do not need any.
  const warm = { connections: 64, seconds: warmSeconds, bytes: 128, tenant: () => "one" };
  await running.drive({ ...warm, writes: always });
  await running.drive({ ...warm, seconds: warmSeconds / 2, writes: never });
  if (wanted.has("write")) {
    for (const connections of concurrencies) await cell("write", connections, 128, ["one"], always);
    const larger = isQuick ? [64] : concurrencies;
    for (const bytes of [1_024, 16_384])
      for (const connections of larger) await cell("write", connections, bytes, ["one"], always);
  }
  if (wanted.has("read")) {
    await running.drive({ ...warm, connections: 1, seconds: 0.1, writes: always });
    for (const connections of concurrencies) await cell("read", connections, 128, ["one"], never);
  }
  if (wanted.has("mixed"))
    await cell("mixed 90/10", 64, 128, ["one"], (number) => number % 10 === 0);
  let made = 0;
  const tenants: string[] = [];
  for (const count of tenantCounts) {
    if (!wanted.has("tenants") && !wanted.has("create")) break;
    const fresh = Array.from({ length: count - made }, (_, i) => `t${made + i}`);
    const took: number[] = [];
    const startedAt = performance.now();
    const at = 10;
    await inParallel(fresh, at, async (tenant) => {
      const sentAt = performance.now();
      await running.create(tenant);
      took.push(performance.now() - sentAt);
    });
    const perSecond = (fresh.length / (performance.now() - startedAt)) * 1_000;
    took.sort((left, right) => left - right);
    made = count;
    tenants.push(...fresh);
    if (wanted.has("create") && system.hasTenants)
      record(
        system.name,
        {
          scenario: "create a tenant with its first value",
          connections: at,
          bytes: 0,
          tenants: count,
        },
        {
          perSecond,
          p50: took[took.length >> 1] ?? 0,
          p99: took[Math.floor(took.length * 0.99)] ?? 0,
          failures: 0,
          serverMicros: 0,
        },
      );
    if (wanted.has("tenants"))
      for (const connections of [64, 256]) await cell("write", connections, 128, tenants, always);
  }
  if (wanted.has("failover") && running.failover !== null) {
    const ms = await running.failover();
    record(
      system.name,
      { scenario: "leader killed, until writable (ms)", connections: 1, bytes: 128, tenants: 1 },
      { perSecond: 1_000 / ms, p50: ms, p99: ms, failures: 0, serverMicros: 0 },
    );
  }
}

// --- report ------------------------------------------------------------------------------------------------------------------------

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((left, right) => left - right);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

const short = (value: number): string =>
  value >= 10_000
    ? `${(value / 1_000).toFixed(1)}k`
    : value >= 100
      ? value.toFixed(0)
      : value.toPrecision(3);

function table(names: readonly string[]): string {
  const byLatency = (scenario: string): boolean =>
    scenario.startsWith("create") || scenario.startsWith("leader");
  const lines = [
    `| scenario | ${names.join(" | ")} | conflux ÷ etcd | conflux ÷ jetstream |`,
    `| --- |${" ---: |".repeat(names.length + 2)}`,
  ];
  for (const [key, bySystem] of samples) {
    const cell = cells.get(key) as Cell;
    const columns = names.map((name) => {
      const all = bySystem.get(name);
      if (all === undefined) return "";
      const rates = all.map(({ perSecond }) => perSecond);
      const p50 = median(all.map((one) => one.p50));
      if (byLatency(cell.scenario)) return `${short(p50)} ms`;
      const spread =
        all.length > 1 ? ` (${short(Math.min(...rates))}–${short(Math.max(...rates))})` : "";
      const micros = median(all.map((one) => one.serverMicros));
      const failed = all.reduce((sum, one) => sum + one.failures, 0);
      return `${short(median(rates))}/s${spread}, p50 ${short(p50)} ms, p99 ${short(median(all.map((one) => one.p99)))} ms, ${short(micros)} µs${failed > 0 ? `, ${failed} failed` : ""}`;
    });
    const ratio = (other: string): string => {
      const mine = bySystem.get("conflux");
      const theirs = bySystem.get(other);
      if (mine === undefined || theirs === undefined) return "";
      // Alone and for things done once, time counts; else throughput.
      if (cell.connections === 1 || byLatency(cell.scenario))
        return `${(median(mine.map((one) => one.p50)) / median(theirs.map((one) => one.p50))).toFixed(2)} × the p50`;
      const of = (list: readonly Sample[]): number => median(list.map((one) => one.perSecond));
      return `${(of(mine) / of(theirs)).toFixed(2)} ×`;
    };
    lines.push(`| ${key} | ${columns.join(" | ")} | ${ratio("etcd")} | ${ratio("jetstream")} |`);
  }
  return lines.join("\n");
}

const colours = ["#2f6fde", "#e08a1e", "#3aa76d", "#b0485c"];

/** Bars: throughput of writes and reads over one tenant by connections. */
function plot(names: readonly string[]): string {
  const keys = [...cells].filter(
    ([, cell]) =>
      (cell.scenario === "write" || cell.scenario === "read") &&
      cell.bytes === 128 &&
      cell.connections > 1,
  );
  const width = 960;
  const height = 380;
  const floor = height - 70;
  const value = (key: string, name: string): number =>
    median((samples.get(key)?.get(name) ?? []).map(({ perSecond }) => perSecond)) || 0;
  const top = Math.max(1, ...keys.flatMap(([key]) => names.map((name) => value(key, name))));
  const slot = (width - 60) / Math.max(1, keys.length);
  const bar = (slot * 0.8) / names.length;
  const parts = keys.flatMap(([key, cell], i) => [
    ...names.map((name, n) => {
      const tall = (value(key, name) / top) * (floor - 40);
      const x = 40 + i * slot + n * bar;
      return `<rect x="${x.toFixed(1)}" y="${(floor - tall).toFixed(1)}" width="${(bar - 2).toFixed(1)}" height="${tall.toFixed(1)}" fill="${colours[n]}"><title>${name}: ${short(value(key, name))}/s</title></rect><text x="${(x + bar / 2).toFixed(1)}" y="${(floor - tall - 4).toFixed(1)}" font-size="9" text-anchor="middle">${short(value(key, name))}</text>`;
    }),
    `<text x="${(40 + i * slot + slot * 0.4).toFixed(1)}" y="${floor + 16}" font-size="11" text-anchor="middle">${cell.scenario} ${cell.connections}</text><text x="${(40 + i * slot + slot * 0.4).toFixed(1)}" y="${floor + 30}" font-size="10" text-anchor="middle">${cell.tenants} ${cell.tenants === 1 ? "tenant" : "tenants"}</text>`,
  ]);
  const legend = names.map(
    (name, n) =>
      `<rect x="${40 + n * 120}" y="${height - 24}" width="12" height="12" fill="${colours[n]}"/><text x="${58 + n * 120}" y="${height - 14}" font-size="12">${name}</text>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/><text x="40" y="22" font-size="14">Requests per second, 128 B, by connections (median of ${rounds} rounds)</text>${parts.join("")}${legend.join("")}</svg>\n`;
}

function write(names: readonly string[]): void {
  const results = join(root, "bench", "results");
  mkdirSync(results, { recursive: true });
  const base = join(results, isQuick ? "peers-quick" : "peers");
  const machine = `${cpus().length} × ${cpus()[0]?.model ?? "?"}, ${Math.round(totalmem() / 2 ** 30)} GiB`;
  const chosen = systems.filter(({ name }) => names.includes(name));
  const about = {
    command: `npm run bench:peers -- ${process.argv.slice(2).join(" ")}`.trim(),
    at: new Date().toISOString(),
    machine,
    loadBefore,
    rounds,
    seconds,
    systems: chosen.map(({ name, durability, version }) => ({
      name,
      durability,
      version: version(),
    })),
  };
  const data = [...samples].map(([key, bySystem]) => ({
    ...(cells.get(key) as Cell),
    systems: Object.fromEntries(bySystem),
  }));
  writeFileSync(`${base}.json`, `${JSON.stringify({ about, data }, null, 1)}\n`);
  writeFileSync(`${base}.svg`, plot(names));
  const source = readFileSync(import.meta.filename, "utf8");
  const caveats = /What is not comparable[^:]*:?\n([\s\S]*?)\*\//.exec(source)?.[1] ?? "";
  const notes = caveats
    .replace(/^ \* {2}- /gm, "- ")
    .replace(/^ \* {4}/gm, "  ")
    .trim();
  writeFileSync(
    `${base}.md`,
    `# Conflux and its peers\n\nMade by \`${about.command}\` on ${about.at.slice(0, 10)}: ${machine}; servers and client share it. Load average before: ${about.loadBefore}.\n` +
      `Medians of ${rounds} rounds of ${seconds} s (spread), latencies, and processor time of all servers per request.\n\n` +
      about.systems
        .map((one) => `- **${one.name}**: ${one.version}; ${one.durability}`)
        .join("\n") +
      `\n\n${table(names)}\n\n## Not comparable\n\n${notes}\n`,
  );
  console.log(`\n${table(names)}\n\nwritten: ${base.slice(root.length + 1)}.{json,md,svg}`);
}

const names = values.systems.split(",");
for (const name of names)
  if (!systems.some((system) => system.name === name))
    throw new Error(
      `No system ${name}: there are ${systems.map((system) => system.name).join(", ")}`,
    );
try {
  for (let round = 1; round <= rounds; round++) {
    for (const system of systems) {
      if (!names.includes(system.name)) continue;
      console.log(`round ${round}: ${system.name}`);
      const running = await system.start();
      try {
        await measure(system, running);
      } finally {
        await running.stop();
        for (const one of folders.splice(0)) rmSync(one, { recursive: true, force: true });
      }
    }
  }
  write(names);
} finally {
  for (const one of folders.splice(0)) rmSync(one, { recursive: true, force: true });
}
process.exit(0);
