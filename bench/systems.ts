/** Conflux and what one would pick instead, each started on this machine and driven by one client: for bench/peers.ts. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectNats, type NatsConnection } from "nats";
import { killWithUs, root } from "../infra/bootstrap.mjs";
import { freePorts, startCluster } from "../infra/cluster.mjs";
import { findNatsServer } from "../infra/nats_server.mjs";
import { ask, eventually } from "../test/e2e/api.ts";
import { follow, load, natsConnect, type LoadRequest, type LoadResult } from "./load.ts";
import { natsServerOf } from "./processes.ts";

export interface Plan {
  readonly connections: number;
  readonly seconds: number;
  /** Of a value. */
  readonly bytes: number;
  readonly tenant: (number: number) => string;
  /** Which requests write; called right before they are sent. */
  readonly writes: (number: number) => boolean;
  readonly everyMs?: number;
}

export interface Running {
  /** Of the servers, for their processor time. */
  readonly pids: () => readonly number[];
  /** Makes the tenant (bucket, prefix), ready for writes. */
  readonly create: (tenant: string) => Promise<void>;
  /** Its first value. */
  readonly first: (tenant: string) => Promise<void>;
  readonly drive: (plan: Plan) => Promise<LoadResult>;
  /** One more watcher of tenant `one`, told of the number of every write. @returns what closes it */
  readonly watch:
    | ((index: number, onWrite: (number: number) => void) => Promise<() => void>)
    | null;
  /** Ends whoever leads tenant `one` as a crash would. @returns milliseconds until a write succeeds again */
  readonly failover: (() => Promise<number>) | null;
  readonly stop: () => Promise<void>;
}

export interface System {
  readonly name: string;
  readonly durability: string;
  /** Throws when it is not there. */
  readonly version: () => string;
  readonly start: () => Promise<Running>;
  /** A tenant there is something that is made. */
  readonly hasTenants: boolean;
  /** Too different to be a peer: measured in a few scenarios, to tell what the machine can do. */
  readonly isForOrientation?: boolean;
}

// --- processes -----------------------------------------------------------------------------------------------------------

const folders: string[] = [];

/** Removed by `removeFolders()`. */
export function folder(): string {
  const made = mkdtempSync(join(tmpdir(), "conflux-peers-"));
  folders.push(made);
  return made;
}

export function removeFolders(): void {
  for (const one of folders.splice(0)) rmSync(one, { recursive: true, force: true });
}

interface Process {
  readonly pid: number;
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
  return { pid, kill };
}

async function untilReady(what: string, isReady: () => Promise<boolean>): Promise<void> {
  await eventually(`${what} is ready`, async () => await isReady().catch(() => false));
}

/** Programs asked for that were neither found nor installed: asked for once only. */
const absent = new Set<string>();

/** From the PATH and where Debian puts servers, else from Debian itself. */
function program(name: string, debian: string): string {
  const find = (): string | undefined =>
    [...(process.env["PATH"] ?? "").split(":"), "/usr/sbin", "/usr/bin"]
      .map((path) => join(path, name))
      .find((path) => existsSync(path));
  const found = find();
  if (found !== undefined) return found;
  if (!absent.has(name)) {
    console.error(`${name} is not installed: apt-get install ${debian}`);
    const prefix = process.getuid?.() === 0 ? [] : ["sudo", "-n"];
    const apt = [...prefix, "apt-get", "install", "-y", "--no-install-recommends", debian];
    spawnSync(apt[0] as string, apt.slice(1), { stdio: "inherit" });
  }
  const installed = find();
  if (installed !== undefined) return installed;
  absent.add(name);
  throw new Error(`Cannot find ${name}: install the Debian package ${debian}`);
}

const natsServer = (): string => findNatsServer() ?? program("nats-server", "nats-server");

const firstLine = (command: string, args: readonly string[]): string =>
  spawnSync(command, args, { encoding: "utf8" }).stdout.split("\n")[0]?.trim() ?? "";

// --- payloads --------------------------------------------------------------------------------------------------------------

const pads = new Map<number, { readonly text: string; readonly base64: string }>();
/** What makes a value of `bytes` in all; also in base64, joined to the rest, which is of whole triples. */
function pad(bytes: number): { readonly text: string; readonly base64: string } {
  let made = pads.get(bytes);
  if (made === undefined) {
    const text = "x".repeat(bytes - '{"n":"000000000","pad":""}'.length);
    made = { text, base64: base64(`${text}"}`) };
    pads.set(bytes, made);
  }
  return made;
}
const digits = (number: number): string => String(number % 1e9).padStart(9, "0");
const base64 = (text: string): string => Buffer.from(text).toString("base64");
/** The value of write `number`: JSON of `bytes` bytes. */
const value = (number: number, bytes: number): string =>
  `{"n":"${digits(number)}","pad":"${pad(bytes).text}"}`;
/** The number of a value in text, escaped or not. */
const numbered = /"n\\?":\\?"(\d{9})/g;

/** Tries every 20 ms, whether or not the last try has ended. @returns milliseconds from the call to the first success */
async function untilWritten(
  kill: () => Promise<void>,
  attempt: (number: number) => Promise<boolean>,
): Promise<number> {
  const startedAt = performance.now();
  await kill();
  return await new Promise((resolve) => {
    let number = 900_000;
    const end = (ms: number): void => {
      clearInterval(timer);
      resolve(ms);
    };
    const timer = setInterval(() => {
      if (performance.now() - startedAt > 60_000) return end(Number.NaN);
      attempt(number++).then(
        (isWritten) => isWritten && end(performance.now() - startedAt),
        () => {},
      );
    }, 20);
  });
}

async function post(url: string, body: string, token?: string): Promise<boolean> {
  const answer = await fetch(url, {
    method: "POST",
    body,
    headers: {
      "content-type": "application/json",
      ...(token !== undefined && { authorization: `Bearer ${token}` }),
    },
    signal: AbortSignal.timeout(1_000),
  });
  await answer.arrayBuffer();
  return answer.ok;
}

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
  const nats = natsServerOf(dataDir);
  const config = (tenant: string): string => `/v1/tenants/${tenant}/namespaces/app`;
  const write = (tenant: string, number: number, bytes: number): LoadRequest => ({
    method: "POST",
    path: `${config(tenant)}/configs/limits/publish`,
    token: tokens.get(tenant) as string,
    body: `{"content":${value(number, bytes)}}`,
  });
  return {
    pids: () => [...cluster.nodes.map((node) => node.pid ?? 0), nats],
    create: async (tenant) => {
      const made = await ask(`${urls[0]}/v1/tenants`, {
        token: cluster.rootToken,
        body: { id: tenant },
      });
      if (made.status !== 201) throw new Error(JSON.stringify(made.body));
      tokens.set(tenant, made.body.key.token);
    },
    first: async (tenant) => {
      const put = await ask(`${urls[0]}${config(tenant)}/configs/limits`, {
        method: "PUT",
        token: tokens.get(tenant) as string,
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
    watch: (index, onItem) => {
      const url = urls[index % urls.length] as string;
      return follow({
        url,
        opening: `GET /v1/tenants/one/watch?since=now HTTP/1.1\r\nhost: ${new URL(url).host}\r\naccept: text/event-stream\r\nauthorization: Bearer ${tokens.get("one")}\r\n\r\n`,
        ready: /^event: (sync|bookmark)/m,
        refused: /^HTTP\/1.1 [^2]/,
        item: numbered,
        onItem,
      });
    },
    failover: async () => {
      const status = await ask(`${urls[0]}/v1/tenants/one/group`, { token: cluster.rootToken });
      const leader = cluster.nodes.find((node) => node.name === status.body.leader);
      if (leader === undefined) throw new Error(`Nobody leads: ${JSON.stringify(status.body)}`);
      const others = cluster.nodes.filter((node) => node !== leader).map((node) => node.url);
      return await untilWritten(
        async () => void (await leader.kill("SIGKILL")),
        async (number) => {
          const { path, token, body } = write("one", number, 128);
          return await post(`${others[number % 2]}${path}`, body as string, token);
        },
      );
    },
    stop: async () => {
      await cluster.stop();
    },
  };
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
  const flags = (member: (typeof members)[0]): Record<string, string> => ({
    name: member.name,
    "data-dir": folder(),
    "initial-cluster-state": "new",
    "listen-client-urls": member.client,
    "advertise-client-urls": member.client,
    "listen-peer-urls": member.peer,
    "initial-advertise-peer-urls": member.peer,
    "initial-cluster": members.map((one) => `${one.name}=${one.peer}`).join(","),
    "quota-backend-bytes": String(8 * 2 ** 30),
    logger: "zap",
    "log-level": "error",
  });
  const processes = members.map((member) =>
    run(
      path,
      Object.entries(flags(member)).flatMap(([name, text]) => [`--${name}`, text]),
    ),
  );
  const urls = members.map((member) => member.client);
  const call = async (url: string, api: string, body: unknown) => {
    const answer = await ask(`${url}/v3/${api}`, { body });
    if (answer.status !== 200) throw new Error(`etcd ${api}: ${JSON.stringify(answer.body)}`);
    return answer.body as Record<string, unknown>;
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
    await untilReady("etcd", async () => {
      await call(url, "kv/put", { key: keyOf("ready"), value: "" });
      return true;
    });
  return {
    pids: () => processes.map(({ pid }) => pid),
    create: () => Promise.resolve(),
    first: async (tenant) => {
      await call(urls[0] as string, "kv/put", { key: keyOf(tenant), value: base64('{"n":0}') });
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
    watch: (index, onItem) => {
      const url = urls[index % urls.length] as string;
      const body = `{"create_request":{"key":"${keyOf("one")}"}}`;
      return follow({
        url,
        opening: `POST /v3/watch HTTP/1.1\r\nhost: ${new URL(url).host}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
        ready: /"created":true/,
        refused: /^HTTP\/1.1 [^2]/,
        // {"n":" is eyJuIjoi in base64, and the nine digits are three triples.
        item: /eyJuIjoi([A-Za-z0-9+/]{12})/g,
        decode: (group) => Buffer.from(group, "base64").toString(),
        onItem,
      });
    },
    failover: async () => {
      const states = await Promise.all(urls.map((url) => call(url, "maintenance/status", {})));
      const leads = states.findIndex(
        ({ leader, header }) => leader === (header as { member_id: string }).member_id,
      );
      const others = urls.filter((_, i) => i !== leads);
      return await untilWritten(
        async () => await processes[leads]?.kill(),
        async (number) => {
          const { path: target, body } = put("one", number, 128);
          return await post(`${others[number % 2]}${target}`, body as string);
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
  const path = natsServer();
  const ports = await freePorts(6);
  const routes = [0, 1, 2].map((i) => `"nats://127.0.0.1:${ports[i * 2 + 1]}"`).join(",");
  const processes = [0, 1, 2].map((i) => {
    const dir = folder();
    const file = join(dir, "nats.conf");
    writeFileSync(
      file,
      `server_name: s${i}\nlisten: "127.0.0.1:${ports[i * 2]}"\n` +
        `jetstream { store_dir: "${dir}", max_file_store: 40GB }\n` +
        `cluster { name: peers, listen: "127.0.0.1:${ports[i * 2 + 1]}", routes: [${routes}] }\n`,
    );
    return run(path, ["-c", file]);
  });
  const servers = [0, 1, 2].map((i) => `127.0.0.1:${ports[i * 2]}`);
  const urls = servers.map((server) => `http://${server}`);
  // For what is done seldom; load and watchers have sockets of their own.
  let line: NatsConnection | null = null;
  await untilReady("nats-server", async () => {
    line ??= await connectNats({ servers: servers[0] as string });
    return true;
  });
  const stream = (line as unknown as NatsConnection).jetstream({ timeout: 20_000 });
  const subject = (tenant: string): string => `$KV.${tenant}.limits`;
  const create = async (tenant: string): Promise<void> => {
    await stream.views.kv(tenant, { replicas: 3, history: 64 });
  };
  await untilReady("JetStream", async () => {
    await create("ready");
    return true;
  });
  return {
    pids: () => processes.map(({ pid }) => pid),
    create,
    first: async (tenant) => {
      await stream.publish(subject(tenant), '{"n":0}');
    },
    drive: (plan) =>
      load({
        urls,
        protocol: "nats",
        ...plan,
        request: (number) => {
          const tenant = plan.tenant(number);
          return plan.writes(number)
            ? { method: "", path: subject(tenant), body: value(number, plan.bytes) }
            : { method: "", path: `$JS.API.DIRECT.GET.KV_${tenant}.${subject(tenant)}` };
        },
      }),
    watch: (index, onItem) => {
      const deliver = `_INBOX.watcher.${index}`;
      const request = JSON.stringify({
        stream_name: "KV_one",
        config: {
          deliver_subject: deliver,
          deliver_policy: "new",
          ack_policy: "none",
          max_deliver: 1,
          num_replicas: 1,
          mem_storage: true,
        },
      });
      return follow({
        url: urls[index % urls.length] as string,
        opening: `CONNECT ${natsConnect}\r\nSUB ${deliver} 1\r\nSUB ${deliver}.made 2\r\nPUB $JS.API.CONSUMER.CREATE.KV_one ${deliver}.made ${request.length}\r\n${request}\r\n`,
        ready: /"stream_name":"KV_one"/,
        refused: /"error":|-ERR/,
        item: numbered,
        onItem,
      });
    },
    failover: async () => {
      const manager = await line?.jetstreamManager();
      const info = await manager?.streams.info("KV_one");
      const leads = Number(info?.cluster?.leader?.slice(1) ?? 0);
      const other = await connectNats({ servers: servers[(leads + 1) % 3] as string });
      const publisher = other.jetstream({ timeout: 1_000 });
      const took = await untilWritten(
        async () => await processes[leads]?.kill(),
        async (number) => {
          await publisher.publish(subject("one"), value(number, 128));
          return true;
        },
      );
      await other.close();
      return took;
    },
    stop: async () => {
      await line?.close().catch(() => {});
      await Promise.all(processes.map((process_) => process_.kill()));
    },
  };
}

// --- Redis -----------------------------------------------------------------------------------------------------------------------

async function startRedis(): Promise<Running> {
  const path = program("redis-server", "redis-server");
  const [port] = await freePorts(1);
  const flags = {
    port: String(port),
    bind: "127.0.0.1",
    dir: folder(),
    save: "",
    appendonly: "yes",
    appendfsync: "always",
  };
  const process_ = run(
    path,
    Object.entries(flags).flatMap(([name, text]) => [`--${name}`, text]),
  );
  const urls = [`http://127.0.0.1:${port}`];
  const command = (...words: readonly string[]): string =>
    `*${words.length}\r\n${words.map((word) => `$${word.length}\r\n${word}\r\n`).join("")}`;
  const drive = (plan: Plan, raw: (number: number) => string): Promise<LoadResult> =>
    load({
      urls,
      protocol: "redis",
      ...plan,
      request: (number) => ({ method: "", path: "", raw: raw(number) }),
    });
  const once = { connections: 1, seconds: 0, bytes: 128, tenant: () => "", writes: () => true };
  await untilReady(
    "redis-server",
    async () => (await drive(once, () => command("PING"))).failures === 0,
  );
  return {
    pids: () => [process_.pid],
    create: () => Promise.resolve(),
    first: async (tenant) => {
      await drive(once, () => command("SET", `${tenant}/limits`, '{"n":0}'));
    },
    drive: (plan) =>
      drive(plan, (number) => {
        const key = `${plan.tenant(number)}/limits`;
        return plan.writes(number)
          ? command("SET", key, value(number, plan.bytes))
          : command("GET", key);
      }),
    watch: null,
    failover: null,
    stop: () => process_.kill(),
  };
}

// --- all of them -----------------------------------------------------------------------------------------------------------------

export const systems: readonly System[] = [
  {
    name: "conflux",
    durability: "every write on a majority's disks before its answer (O_DSYNC)",
    version: () =>
      `${firstLine("git", ["-C", root, "rev-parse", "--short", "HEAD"])} on Bun ${firstLine(join(root, "node_modules/.bin/bun"), ["--version"])}, ${firstLine(natsServer(), ["--version"])}`,
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
    version: () => firstLine(natsServer(), ["--version"]),
    start: startJetStream,
    hasTenants: true,
  },
  {
    name: "redis",
    durability: "one disk before its answer (appendfsync always), no replication",
    version: () =>
      firstLine(program("redis-server", "redis-server"), ["--version"])
        .split(" ")
        .slice(0, 3)
        .join(" "),
    start: startRedis,
    hasTenants: false,
    isForOrientation: true,
  },
];
