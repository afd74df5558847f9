/**
 * One node of three dies, freezes or is cut off, with very many tenants awake and under load: how long until each can be
 * written to again, what was lost, and whether its return costs anybody a leader.
 *
 * Estimate before measuring: a node is given up after 1 s of silence, noticed within 150 ms; it led a third of the groups.
 * Their campaigns begin in portions of 64 every 25 ms, so 333 of them within 130 ms; an election is two exchanges and two
 * journal writes, shared by all that are under way. So half of those tenants are back 1.1 s after the fault, and nearly
 * all 1.3 s after it; the others were never away. The probes, one for every tenant within the
 * first second, wait for that and come together then: 333 writes are 0.3 s of work for two cores.
 *
 * Run: npm run bench -- failover, or bun bench/failover.ts [--tenants 1000] [--rate 200] [--watched 50] [--write]
 *      [--only kill,stop,partition]
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { loadavg, tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startCluster } from "../infra/cluster.mjs";
import { ensureNatsServer, startNatsServer } from "../infra/nats_server.mjs";
import { ask, eventually, Follower, inParallel, persist } from "../test/e2e/api.ts";
import { printRows, quantiles, writeReport, type Curve, type Row } from "./report.ts";

/**
 * Bun sends 256 requests at a time by itself. Those to tenants without a leader would take up all of them, and whoever
 * comes later would seem to be without one too.
 */
const requestsMax = "BUN_CONFIG_MAX_HTTP_REQUESTS";
if (process.env[requestsMax] === undefined) {
  const env = { ...process.env, [requestsMax]: "8192" };
  const { status } = spawnSync(process.execPath, process.argv.slice(1), { stdio: "inherit", env });
  process.exit(status ?? 1);
}

const { values } = parseArgs({
  options: {
    tenants: { type: "string", default: "1000" },
    rate: { type: "string", default: "200" },
    watched: { type: "string", default: "50" },
    only: { type: "string", default: "kill,stop,partition" },
    write: { type: "boolean", default: false },
  },
});
const [count, rate, watched] = [values.tenants, values.rate, values.watched].map(Number) as [
  number,
  number,
  number,
];
const load = loadavg()[0] ?? 0;
/** How long the fault lasts, and how long its end is watched. */
const FAULT_MS = 6_000;
const RETURN_MS = 6_000;
/** All tenants are asked within this time from the fault on: before anybody can have another leader. */
const PROBING_MS = 1_000;

/** A node that returned leads nothing; before the next fault, others give it its share again: each no more than 1.2 × the mean. */
const BALANCE_MS = 120_000;
const LEADERS_OF_MEAN = 1.2;

/** Stands between one node and NATS: what it is told to keep back arrives nowhere, and no connection is closed. */
class Wire {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #isCut = false;

  constructor(to: { readonly host: string; readonly port: number }) {
    this.#server = createServer((near) => {
      const far = connect(to);
      for (const [from, other] of [
        [near, far],
        [far, near],
      ] as const) {
        this.#sockets.add(from);
        from.setNoDelay(true);
        from.on("data", (bytes) => other.write(bytes));
        from.on("error", () => {});
        from.on("close", () => {
          this.#sockets.delete(from);
          other.destroy();
        });
        if (this.#isCut) from.pause();
      }
    });
  }

  listen(): Promise<string> {
    return new Promise((resolve) => {
      this.#server.listen(0, "127.0.0.1", () =>
        resolve(`nats://127.0.0.1:${(this.#server.address() as AddressInfo).port}`),
      );
    });
  }

  cut(): void {
    this.#isCut = true;
    for (const socket of this.#sockets) socket.pause();
  }

  heal(): void {
    this.#isCut = false;
    for (const socket of this.#sockets) socket.resume();
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

interface Acknowledged {
  readonly revision: number;
  readonly version: number;
}

const names = Array.from({ length: count }, (_, at) => `t${at}`);
const written = new Map<string, Acknowledged[]>(names.map((name) => [name, []]));
let sequence = 0;

async function publish(urls: readonly string[], tenant: string, token: string): Promise<void> {
  const text = `${tenant} ${sequence++}`;
  const answer = await persist(urls, `/v1/tenants/${tenant}/namespaces/app/configs/c/publish`, {
    token,
    body: { content: text },
    headers: { "idempotency-key": `w${sequence}` },
    timeoutMs: 3_000,
  });
  if (answer.status >= 300) throw new Error(`${answer.status} ${JSON.stringify(answer.body)}`);
  written.get(tenant)?.push({
    revision: Number(answer.headers.get("conflux-revision")),
    version: answer.body.version.version ?? answer.body.version,
  });
}

type Cluster = Awaited<ReturnType<typeof startCluster>>;
type Node = Cluster["nodes"][0];

interface Fault {
  readonly name: string;
  readonly strike: (node: Node) => Promise<unknown> | void;
  readonly end: (node: Node) => Promise<unknown> | void;
}

interface Group {
  readonly term: number;
  readonly leader: string | null;
}

async function groupsAt(url: string, token: string): Promise<Map<string, Group>> {
  const groups = new Map<string, Group>();
  await inParallel(names, 16, async (tenant) => {
    const { body } = await persist([url], `/v1/tenants/${tenant}/group`, { token });
    groups.set(tenant, body);
  });
  return groups;
}

/** The groups when no node leads many more than another, as nodes see to by and by; or, after a while, as they are. */
async function balanced(url: string, token: string): Promise<Map<string, Group>> {
  const give = performance.now() + BALANCE_MS;
  for (;;) {
    const groups = await groupsAt(url, token);
    const leaders = new Map<string, number>();
    for (const { leader } of groups.values())
      if (leader !== null) leaders.set(leader, (leaders.get(leader) ?? 0) + 1);
    const most = Math.max(...leaders.values());
    if (most <= (LEADERS_OF_MEAN * groups.size) / 3) return groups;
    const shares = [...leaders].map(([node, led]) => `${node} ${led}`).join(", ");
    if (performance.now() > give) {
      console.log(`not balanced after ${BALANCE_MS / 1_000} s: leaders ${shares}`);
      return groups;
    }
    console.log(`… until leaders are balanced: ${shares}`);
    await sleep(5_000);
  }
}

const folder = mkdtempSync(path.join(tmpdir(), "conflux-failover-"));
await ensureNatsServer({ log: (line) => console.log(line) });
const nats = await startNatsServer({ dir: path.join(folder, "nats") });
const address = new URL(nats.url);
const wire = new Wire({ host: address.hostname, port: Number(address.port) });
const wireUrl = await wire.listen();
const cluster = await startCluster({
  nodes: 3,
  natsUrl: nats.url,
  env: { CONFLUX_LOG: "error" },
  // The last one reaches the others over the wire that is cut.
  nodeEnv: (name) => (name === "n3" ? { CONFLUX_NATS: wireUrl } : {}),
});
try {
  const token = cluster.rootToken;
  const all = cluster.nodes.map(({ url }) => url);
  for (let made = 0; made < count; made += 500) {
    const tenants = names.slice(made, made + 500).map((id) => ({ id }));
    const answer = await ask(`${all[0]}/v1/tenants/batch`, { token, body: { tenants } });
    if (answer.status !== 201) throw new Error(JSON.stringify(answer.body));
  }
  await inParallel(names, 16, async (tenant) => {
    const at = all[sequence++ % all.length] as string;
    await persist([at], `/v1/tenants/${tenant}/namespaces/app/configs/c`, {
      method: "PUT",
      token,
      body: { format: "text", content: "start" },
    });
  });
  const followers = names
    .slice(0, watched)
    .map((tenant, at) => new Follower(all, `/v1/tenants/${tenant}/watch`, token, at));
  await eventually("cursors", () => followers.every(({ cursor }) => cursor !== null));

  let urls = all;
  let isOver = false;
  const inFlight = new Set<Promise<void>>();
  const writers = (async () => {
    for (let at = 0; !isOver; at += 1) {
      // Those who wait for a node that is away must not become ever more.
      if (inFlight.size < 2 * rate) {
        const one: Promise<void> = publish(urls, names[at % count] as string, token).finally(() =>
          inFlight.delete(one),
        );
        inFlight.add(one);
      }
      await sleep(1_000 / rate);
    }
    await Promise.all(inFlight);
  })();

  const faults: readonly Fault[] = [
    { name: "kill", strike: (node) => node.kill(), end: (node) => node.restart() },
    { name: "stop", strike: (node) => node.kill("SIGSTOP"), end: (node) => node.kill("SIGCONT") },
    { name: "partition", strike: () => wire.cut(), end: () => wire.heal() },
  ];
  const rows: Row[] = [];
  const curves: Curve[] = [];
  const wanted = new Set(values.only.split(","));
  for (const [at, fault] of faults.entries()) {
    if (!wanted.has(fault.name)) continue;
    const victim = cluster.nodes[at] as Node;
    urls = all.filter((url) => url !== victim.url);
    await sleep(2_000);
    const led = await balanced(urls[0] as string, token);
    const began = performance.now();
    await fault.strike(victim);
    const [times, others]: [number[], number[]] = [[], []];
    await Promise.all(
      names.map(async (tenant, position) => {
        const sent = (position / count) * PROBING_MS;
        await sleep(sent);
        await publish(urls, tenant, token);
        // Without a leader since the fault; the others are only as late as they were asked.
        if (led.get(tenant)?.leader === victim.name) times.push(performance.now() - began);
        else others.push(performance.now() - began - sent);
      }),
    );
    await sleep(Math.max(0, FAULT_MS - (performance.now() - began)));
    const before = await groupsAt(urls[0] as string, token);
    await fault.end(victim);
    await sleep(RETURN_MS);
    const after = await groupsAt(urls[0] as string, token);
    const elections = [...after].filter(
      ([tenant, { term }]) => term !== before.get(tenant)?.term,
    ).length;
    const { p50, p99, max, curve } = quantiles(times);
    rows.push(
      {
        what: `${fault.name}: writable again, p50 of the ${times.length} tenants that it led`,
        figure: `${p50.toFixed(0)} ms`,
        wanted: "",
      },
      {
        what: `${fault.name}: writable again, p99 (and the last)`,
        figure: `${p99.toFixed(0)} ms (${max.toFixed(0)} ms)`,
        wanted: "< 1500 ms",
      },
      {
        what: `${fault.name}: a write to one of the ${others.length} others meanwhile, p99`,
        figure: `${quantiles(others).p99.toFixed(0)} ms`,
        wanted: "",
      },
      {
        what: `${fault.name}: groups with another term ${RETURN_MS / 1_000} s after its return`,
        figure: String(elections),
        wanted: "0",
      },
    );
    curves.push({ name: fault.name, curve });
    urls = all;
    await victim.ready();
  }
  isOver = true;
  await writers;

  let acknowledged = 0;
  let lost = 0;
  await inParallel(names, 16, async (tenant) => {
    const mine = written.get(tenant) ?? [];
    acknowledged += mine.length;
    const { body } = await persist(
      all,
      `/v1/tenants/${tenant}/namespaces/app/configs/c/versions?limit=1000`,
      { token },
    );
    const kept = new Set(body.items.map(({ version }: { version: number }) => version));
    const distinct = new Set(mine.map(({ version }) => version));
    lost += mine.length - distinct.size + [...distinct].filter((one) => !kept.has(one)).length;
  });
  let seen = 0;
  let missed = 0;
  for (const [at, follower] of followers.entries()) {
    const mine = written.get(names[at] as string) ?? [];
    const last = Math.max(0, ...mine.map(({ revision }) => revision));
    await eventually("the last event", () => Number(follower.cursor?.split("-")[1]) >= last);
    const revisions = follower.commits.map(({ data }) => data.revision as number);
    seen += revisions.length;
    const told = new Set(revisions);
    missed += mine.filter(({ revision }) => !told.has(revision)).length;
    missed += revisions.length - told.size;
  }
  await Promise.all(followers.map((follower) => follower.stop()));
  rows.push(
    {
      what: `acknowledged writes lost or doubled, of ${acknowledged}`,
      figure: String(lost),
      wanted: "0",
    },
    {
      what: `events lost or doubled of ${watched} watches, of ${seen}`,
      figure: String(missed),
      wanted: "0",
    },
  );
  printRows(rows);
  if (values.write)
    writeReport({
      name: "failover",
      title: "One of three nodes fails",
      args: process.argv.slice(2),
      setting: "three nodes, nats-server and all clients on one machine",
      load,
      text: `${count} tenants with three voters, all awake; ${rate} writes/s to all of them in turn, ${watched} watched. Within ${PROBING_MS} ms from the fault on every tenant is written to once more through the other two nodes; before each fault leaders are balanced; for those that were led by the node the time is from the fault until that write is acknowledged. kill: SIGKILL; stop: SIGSTOP for ${FAULT_MS / 1_000} s; partition: nothing passes between the node and NATS for as long, and no connection is closed.`,
      rows,
      plot: "Time until a tenant can be written to again, by share of tenants",
      curves,
    });
} finally {
  await cluster.stop();
  wire.close();
  await nats.stop();
  rmSync(folder, { recursive: true, force: true });
}
