/**
 * Where the time of a request goes: a three-node cluster under publishes and reads, processor time per request of every
 * process, and of each node by stage, from CPU profiles; and, computed from that, what stands against the figures of
 * bench/results/README.md: how many requests the machine has time for. Writes bench/results/budget.md.
 *
 * Estimate beforehand, microseconds of processor time of a publish at 64 connections, warm and on an idle machine: parse
 * and check 10, command and content 10, journal, frames and NATS 20 over three nodes, apply 3 × 8, checkpoint 3 × 8,
 * answer 5, client 10: about 100. Beside other work on the same cores everything is several times that, in proportion.
 *
 * Run: bun bench/budget.ts [--seconds 5] [--connections 64]
 */
import { spawn, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { connect } from "nats";
import { root } from "../infra/bootstrap.mjs";
import { startCluster } from "../infra/cluster.mjs";
import { startNatsServer } from "../infra/nats_server.mjs";
import { ask, inParallel } from "../test/e2e/api.ts";
import { load, type LoadRequest } from "./load.ts";
import {
  median,
  meter,
  microsPerRequest,
  natsServerOf,
  Probe,
  processorSeconds,
} from "./processes.ts";
import { measureSkeleton, type BareRun } from "./skeleton.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "5" },
    connections: { type: "string", default: "64" },
  },
});
const seconds = Number(values.seconds);
const connections = Number(values.connections);

// --- stages ----------------------------------------------------------------------------------------------------------------

/** A sample belongs to the first of its frames, from the innermost outwards, that one of these matches. */
const stages: readonly (readonly [stage: string, url: RegExp, name?: RegExp])[] = [
  ["respond", /gateway\/gateway\.ts/, /respond/],
  ["parse and check", /gateway\/(http|route)\.ts|typebox|elysia|runtime\/serve\.ts/],
  ["authorise and admit", /gateway\/(auth|limits|tokens|access)\.ts/],
  [
    "build the command",
    /gateway\/(changes|contents|configs|config_answers|values|value_routes)\.ts|model\//,
  ],
  ["gateway, rest", /gateway\//],
  ["encode and decode", /host\/codec\.ts|raft\/codec\.ts|lib\/bytes\.ts|host\/rpc\.ts/],
  ["checkpoint", /store\/environments\.ts|lmdb|ordered-binary|msgpackr/],
  ["apply", /machine\/|host\/tenant_state\.ts|lib\/sorted_map\.ts/],
  ["raft", /raft\//],
  ["journal", /store\//],
  [
    "frames and NATS",
    /transport\/|\/nats\/|nats-base-client|node:net|node:stream|internal:streams|nkeys/,
  ],
  ["host", /host\//],
];

interface Profile {
  readonly nodes: readonly {
    readonly id: number;
    readonly callFrame: { readonly functionName: string; readonly url: string };
    readonly children?: readonly number[];
  }[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
}

interface Summary {
  /** Shares of the samples, by stage. */
  readonly stages: ReadonlyMap<string, number>;
  /** Shares of the samples, by the innermost function of ours or a library's. */
  readonly functions: readonly (readonly [name: string, share: number])[];
}

/** @param window of the profile that counts, milliseconds after its beginning: not the start, nor what a stop writes */
function summarise(profile: Profile, window: readonly [from: number, until: number]): Summary {
  const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
  const parents = new Map<number, number>();
  for (const node of profile.nodes)
    for (const child of node.children ?? []) parents.set(child, node.id);
  const byStage = new Map<string, number>();
  const byFunction = new Map<string, number>();
  let total = 0;
  let reached = 0;
  profile.samples.forEach((sample, i) => {
    reached += profile.timeDeltas[i] ?? 0;
    if (reached < window[0] * 1_000 || reached > window[1] * 1_000) return;
    let stage: string | null = null;
    let named: string | null = null;
    for (let at: number | undefined = sample; at !== undefined; at = parents.get(at)) {
      const { functionName, url } = (nodes.get(at) as Profile["nodes"][0]).callFrame;
      named ??=
        url === ""
          ? null
          : `${functionName || "(anonymous)"} ${url.split("/").slice(-2).join("/")}`;
      stage ??=
        stages.find(
          ([, where, name]) => where.test(url) && (name === undefined || name.test(functionName)),
        )?.[0] ?? null;
    }
    const time = profile.timeDeltas[i] ?? 0;
    total += time;
    const add = (map: Map<string, number>, key: string): void =>
      void map.set(key, (map.get(key) ?? 0) + time);
    add(byStage, stage ?? "runtime");
    if (named !== null) add(byFunction, named);
  });
  return {
    stages: new Map([...byStage].map(([stage, time]) => [stage, time / total])),
    functions: [...byFunction]
      .sort(([, left], [, right]) => right - left)
      .slice(0, 15)
      .map(([name, time]) => [name, time / total]),
  };
}

// --- one run -----------------------------------------------------------------------------------------------------------------

type Kind = "publish" | "linearizable read";
interface Run {
  readonly perSecond: number;
  readonly p50: number;
  /** Microseconds per request. */
  readonly leader: number;
  readonly followers: readonly number[];
  readonly nats: number;
  readonly client: number;
  /** What neither these nor the client used meanwhile, in cores. */
  readonly otherCores: number;
  /** Of all nodes, per request: written to files by calls, and how often a thread of theirs waited. */
  readonly fileBytes: number;
  readonly waits: number;
  /** Of the nodes, leader first; empty without profiles. */
  readonly summaries: readonly Summary[];
}

/** Of the third budget, whose writes share little more than their turns. */
const manyTenants = 150;

async function run(
  kind: Kind,
  profiled: boolean,
  width = connections,
  tenantsCount = 1,
): Promise<Run> {
  const profiles = mkdtempSync(join(tmpdir(), "conflux-profiles-"));
  const startedAt = performance.now();
  const cluster = await startCluster({
    nodes: 3,
    runtimes: ["bun"],
    env: {
      CONFLUX_LOG: "error",
      ...(profiled && {
        BUN_OPTIONS: `--cpu-prof --cpu-prof-dir=${profiles} --cpu-prof-interval=500`,
      }),
    },
  });
  const pids = cluster.nodes.map((node) => node.pid as number);
  try {
    const urls = cluster.nodes.map((node) => node.url);
    const tokens: string[] = [];
    const config = (index: number): string => `/v1/tenants/t${index}/namespaces/app`;
    const indexes = Array.from({ length: tenantsCount }, (_, index) => index);
    await inParallel(indexes, 4, async (index) => {
      const made = await ask(`${urls[0]}/v1/tenants`, {
        token: cluster.rootToken,
        body: { id: `t${index}` },
      });
      const token = made.body.key.token as string;
      tokens[index] = token;
      await ask(`${urls[0]}${config(index)}/configs/limits`, {
        method: "PUT",
        token,
        body: { format: "json", content: { n: 0 } },
      });
    });
    const group = await ask(`${urls[0]}/v1/tenants/t0/group`, { token: cluster.rootToken });
    const leads = cluster.nodes.findIndex((node) => node.name === group.body.leader);
    const order = [leads, ...[0, 1, 2].filter((i) => i !== leads)];
    const request = (number: number): LoadRequest => {
      const index = (number * 7_919) % tenantsCount;
      const token = tokens[index] as string;
      return kind === "publish"
        ? {
            method: "POST",
            path: `${config(index)}/configs/limits/publish`,
            token,
            body: `{"content":{"n":${number},"pad":"${"x".repeat(100)}"}}`,
          }
        : { method: "GET", path: `${config(index)}/values/limits`, token };
    };
    await load({ urls, connections, seconds: Math.max(5, seconds), request });
    const usedBefore = used(pids);
    const cost = meter([...pids, natsServerOf(cluster.dataDir)]);
    const all = [...pids, natsServerOf(cluster.dataDir)];
    const before = all.map((pid) => processorSeconds([pid]));
    const own = process.cpuUsage();
    const from = performance.now() - startedAt;
    const result = await load({ urls, connections: width, seconds, request });
    const window = [from, performance.now() - startedAt] as const;
    const { otherCores } = cost(result.requests);
    const usedAfter = used(pids);
    const client = process.cpuUsage(own);
    const micros = all.map((pid, i) =>
      microsPerRequest(processorSeconds([pid]) - (before[i] as number), result.requests),
    );
    await cluster.stop();
    const summaries = profiled
      ? order.map((i) => {
          const file = readdirSync(profiles).find((name) => name.includes(`.${pids[i]}.`));
          return summarise(
            JSON.parse(readFileSync(join(profiles, file as string), "utf8")),
            window,
          );
        })
      : [];
    return {
      perSecond: result.perSecond,
      p50: result.p50,
      leader: micros[order[0] as number] as number,
      followers: order.slice(1).map((i) => micros[i] as number),
      nats: micros[3] as number,
      client: (client.user + client.system) / result.requests,
      otherCores,
      fileBytes: (usedAfter.fileBytes - usedBefore.fileBytes) / result.requests,
      waits: (usedAfter.waits - usedBefore.waits) / result.requests,
      summaries,
    };
  } finally {
    await cluster.stop();
    rmSync(profiles, { recursive: true, force: true });
  }
}

/**
 * Of these processes so far, all threads. What calls wrote to files: `write_bytes` of /proc counts a large folio as a
 * whole for each few bytes written into it (a journal that is filled ahead has such), so it says far too much.
 */
function used(pids: readonly number[]): { fileBytes: number; waits: number } {
  const number = (file: string, name: RegExp): number =>
    Number(name.exec(readFileSync(file, "utf8"))?.[1] ?? 0);
  let [fileBytes, waits] = [0, 0];
  for (const pid of pids) {
    fileBytes += number(`/proc/${pid}/io`, /^wchar: (\d+)/m);
    for (const thread of readdirSync(`/proc/${pid}/task`))
      waits += number(`/proc/${pid}/task/${thread}/status`, /^voluntary_ctxt_switches:\s*(\d+)/m);
  }
  return { fileBytes, waits };
}

// --- report --------------------------------------------------------------------------------------------------------------------

const us = (value: number): string => value.toFixed(value < 10 ? 1 : 0);
const perSecond = (value: number): string => Math.round(value).toLocaleString("en");
const cores = cpus().length;
const names = [...new Set([...stages.map(([stage]) => stage), "runtime"])];

interface Budget {
  readonly kind: Kind;
  readonly tenants: number;
  readonly plain: Run;
  /** By stage, over the three nodes, microseconds. */
  readonly stages: ReadonlyMap<string, number>;
  readonly follower: number;
  readonly total: number;
  readonly summaries: readonly [Summary, Summary];
}

async function budget(kind: Kind, tenants = 1): Promise<Budget> {
  const plain = await run(kind, false, connections, tenants);
  const profiled = await run(kind, true, connections, tenants);
  const follower = (plain.followers[0] as number) / 2 + (plain.followers[1] as number) / 2;
  const [ofLeader, ofFollower] = profiled.summaries as [Summary, Summary];
  return {
    kind,
    tenants,
    plain,
    stages: new Map(
      names.map((stage) => [
        stage,
        (ofLeader.stages.get(stage) ?? 0) * plain.leader +
          (ofFollower.stages.get(stage) ?? 0) * follower * 2,
      ]),
    ),
    follower,
    total: plain.leader + follower * 2 + plain.nats + plain.client,
    summaries: [ofLeader, ofFollower],
  };
}

/** Of many tenants each node leads some: the first node of these led one of them. */
const titleOf = ({ kind, tenants }: Budget): string =>
  tenants === 1 ? kind : `${kind}, over ${tenants} tenants`;

function tables(of: Budget) {
  const { plain, follower, total } = of;
  const [ofLeader, ofFollower] = of.summaries;
  return [
    "",
    `## ${titleOf(of)}: ${perSecond(plain.perSecond)}/s, p50 ${plain.p50.toFixed(2)} ms, ${us(total)} µs in all`,
    "",
    "| stage | leader | each follower |",
    "| --- | ---: | ---: |",
    ...names.map(
      (stage) =>
        `| ${stage} | ${us((ofLeader.stages.get(stage) ?? 0) * plain.leader)} | ${us((ofFollower.stages.get(stage) ?? 0) * follower)} |`,
    ),
    `| **node** | **${us(plain.leader)}** | **${us(follower)}** |`,
    "",
    `nats-server ${us(plain.nats)}, client ${us(plain.client)}. Over the three nodes a request has ${us(plain.fileBytes)} bytes written to files and ${plain.waits.toFixed(2)} waits of a thread. Other programs used ${plain.otherCores.toFixed(2)} cores meanwhile.`,
    "",
    "Functions with most time of their own, leader and a follower:",
    "",
    "| leader | | follower | |",
    "| --- | ---: | --- | ---: |",
    ...ofLeader.functions.map(([name, share], i) => {
      const other = ofFollower.functions[i];
      return `| \`${name}\` | ${(share * 100).toFixed(1)} % | ${other === undefined ? "" : `\`${other[0]}\``} | ${other === undefined ? "" : `${(other[1] * 100).toFixed(1)} %`} |`;
    }),
  ];
}

interface PeerRun {
  readonly perSecond: number;
  readonly serverMicros: number;
  readonly clientMicros: number;
}

/** What another system did on this machine, if `npm run bench:peers` was run; medians. */
function peerOf(scenario: string, system: string, tenants: number): PeerRun | null {
  const file = join(root, "bench", "results", "peers.json");
  if (!existsSync(file)) return null;
  const { rows } = JSON.parse(readFileSync(file, "utf8")) as {
    readonly rows: readonly {
      readonly scenario: string;
      readonly connections: number;
      readonly bytes: number;
      readonly tenants: number;
      readonly systems: Readonly<Record<string, readonly PeerRun[]>>;
    }[];
  };
  const row = rows.find(
    (one) =>
      one.scenario === scenario &&
      one.connections === connections &&
      one.bytes === 128 &&
      one.tenants === tenants,
  );
  const runs = row?.systems[system];
  if (runs === undefined) return null;
  const of = (name: keyof PeerRun): number => median(runs.map((one) => one[name]));
  return {
    perSecond: of("perSecond"),
    serverMicros: of("serverMicros"),
    clientMicros: of("clientMicros"),
  };
}

function ceilings(budgetOf: Budget, wanted: number, floor: BareRun): string[] {
  const { kind, tenants, plain, total, follower, stages: byStage } = budgetOf;
  const ceiling = (micros: number): number => (cores * 1e6) / micros;
  const [peer, name] = tenants === 1 ? ["etcd", "etcd"] : ["jetstream", "JetStream"];
  const theirs = peerOf(kind === "publish" ? "write" : "read", peer, tenants);
  const rate = theirs?.perSecond ?? null;
  const target = rate === null ? null : wanted * rate;
  const theirMicros = theirs === null ? null : theirs.serverMicros + theirs.clientMicros;
  const parts: [string, number][] = [
    ...byStage,
    ["nats-server", plain.nats],
    ["client", plain.client],
  ];
  parts.sort(([, left], [, right]) => right - left);
  return [
    "",
    `### ${titleOf(budgetOf)}`,
    "",
    `${cores} cores have ${perSecond(cores * 1e6)} µs a second for three nodes, nats-server and the client. At ${us(total)} µs that is at most **${perSecond(ceiling(total))}/s**; measured ${perSecond(plain.perSecond)}/s, ${((100 * plain.perSecond) / ceiling(total)).toFixed(0)} % of it: the rest is waiting, or was taken by others.`,
    `With a core of its own for each process the leader, which uses one thread, ends at ${perSecond(1e6 / plain.leader)}/s, a follower at ${perSecond(1e6 / follower)}/s.`,
    target === null
      ? `Wanted: ${wanted} × ${name}'s rate (not measured here: \`npm run bench:peers\`).`
      : `Wanted: ${wanted} × ${name}'s ${perSecond(rate as number)}/s = ${perSecond(target)}/s, which leaves ${us((cores * 1e6) / target)} µs per request: ${total / ((cores * 1e6) / target) <= 1 ? "there is room" : `${(total / ((cores * 1e6) / target)).toFixed(1)} × less than it costs`}.`,
    `A skeleton of this shape in the same run, without Raft, checks, keys and state (bench/skeleton.ts: Elysia on Bun, frames through nats-server, journals with O_DSYNC, a majority before the answer; one group) costs ${us(floor.total)} µs: nodes ${us(floor.nodes)}, nats-server ${us(floor.nats)}, client ${us(floor.client)}. ${theirMicros === null ? "" : `${name} took ${us(theirMicros)} µs, in the run of peers.md, so that by processor time the skeleton itself is ${(theirMicros / floor.total).toFixed(1)} × ${name}, and Conflux ${(theirMicros / total).toFixed(2)} ×. `}Conflux is ${(total / floor.total).toFixed(1)} skeletons.`,
    "",
    "| part, over all processes | µs | share | most requests a second if it cost nothing |",
    "| --- | ---: | ---: | ---: |",
    ...parts.map(
      ([name, micros]) =>
        `| ${name} | ${us(micros)} | ${((100 * micros) / total).toFixed(0)} % | ${perSecond(ceiling(total - micros))} |`,
    ),
  ];
}

/** Frames of Raft between the nodes for a publish that shares its turns with none (test/host/cost.test.ts). */
const loneFrames = 8;

/**
 * A process of this runtime that sends back every frame it gets and does nothing else, one frame at a time: microseconds
 * of it and of nats-server per frame. Below this no exchange of frames between nodes can be.
 */
async function bareFrame(): Promise<{ process: number; nats: number }> {
  const server = await startNatsServer();
  const code = `import { connect } from "nats";
    import { shorten } from "./src/transport/nats.ts";
    const connection = await connect({ servers: ${JSON.stringify(server.url)}, noEcho: true });
    await new Promise((resolve) => setImmediate(resolve));
    shorten(connection);
    const bytes = new Uint8Array(200);
    connection.subscribe("there", { callback: () => connection.publish("back", bytes) });
    await connection.flush();
    console.log("ready");`;
  const child = spawn(process.execPath, ["-e", code], {
    cwd: root,
    stdio: ["ignore", "pipe", "inherit"],
  });
  const connection = await connect({ servers: server.url, noEcho: true });
  try {
    await new Promise((resolve) => child.stdout.once("data", resolve));
    const bytes = new Uint8Array(200);
    const pids = [child.pid as number, server.pid];
    const exchange = async (forMs: number): Promise<readonly [number, number]> => {
      const before = pids.map((pid) => processorSeconds([pid]));
      const end = performance.now() + forMs;
      let frames = 0;
      await new Promise<void>((resolve) => {
        const callback = (): void => {
          frames += 1;
          if (performance.now() < end) return connection.publish("there", bytes);
          subscription.unsubscribe();
          resolve();
        };
        const subscription = connection.subscribe("back", { callback });
        connection.publish("there", bytes);
      });
      return pids.map((pid, i) =>
        microsPerRequest(processorSeconds([pid]) - (before[i] as number), frames),
      ) as [number, number];
    };
    await exchange(1_500);
    const [ofProcess, ofServer] = await exchange(2_000);
    // There and back pass the server.
    return { process: ofProcess, nats: ofServer / 2 };
  } finally {
    await connection.close();
    child.kill("SIGKILL");
    await server.stop();
  }
}

const scratch = mkdtempSync(join(tmpdir(), "conflux-probe-"));
const probe = new Probe(scratch);
const steady = await probe.take();
probe.close();
rmSync(scratch, { recursive: true, force: true });
const publish = await budget("publish");
const read = await budget("linearizable read");
const many = await budget("publish", manyTenants);
const alone = await run("publish", false, 1);
const bare = await bareFrame();
const skeleton = await measureSkeleton(connections, seconds);
const bareMicros = loneFrames * (bare.process + bare.nats);
const aloneMicros = alone.leader + (alone.followers[0] ?? 0) + (alone.followers[1] ?? 0);
const sha = spawnSync("git", ["-C", root, "rev-parse", "--short", "HEAD"], { encoding: "utf8" });
const lines: string[] = [
  "# Where the time of a request goes",
  "",
  `Made by \`npm run bench -- budget ${process.argv.slice(2).join(" ")}`.trim() +
    `\` at ${sha.stdout.trim()} on ${new Date().toISOString().slice(0, 10)}: ${cores} × ${cpus()[0]?.model ?? "?"}, three nodes on Bun, nats-server and the client on it, ${connections} connections over all nodes.`,
  "Microseconds of processor time per request. Stages are shares of a profile, of the time that the node took without one. The profile samples by the clock: where a process is put off the core, in a write to a socket by whom it wakes, counts as if it ran. By `perf`, which counts what ran, all sends together, HTTP answers among them, are 3 % of the main threads (64 connections, 2026-11-22).",
  ...tables(publish),
  ...tables(read),
  ...tables(many),
  "",
  "## What stands against the figures",
  ...ceilings(publish, 3, skeleton.publish),
  ...ceilings(read, 6, skeleton.read),
  ...ceilings(many, 3, skeleton.publish),
  "",
  "### A write alone",
  "",
  `One connection: p50 ${alone.p50.toFixed(2)} ms, of which the disk takes about ${steady.syncMs.toFixed(2)} ms (4 KiB written and synced, median; leader and followers do it at the same time). The nodes use ${us(aloneMicros)} µs of processor for it and nats-server ${us(alone.nats)} µs, in ${alone.waits.toFixed(1)} turns of waiting and waking, most of it one after the other: request, journal, frame to the followers, their journals, frames back, answer.`,
  `A process of the same runtime that does nothing but send back a frame of 200 bytes, one at a time, uses ${us(bare.process)} µs for each and nats-server ${us(bare.nats)}. A write alone is ${loneFrames} frames between the nodes (the entry, the answer, the commit index and its answer, for two followers): ${us(bareMicros)} µs of it, ${((100 * bareMicros) / (aloneMicros + alone.nats)).toFixed(0)} %, before anything is parsed, written or applied. etcd's members speak to each other without a server between them.`,
  `The skeleton's write alone: p50 ${skeleton.alone.p50.toFixed(2)} ms, ${us(skeleton.alone.nodes)} µs of its nodes and ${us(skeleton.alone.nats)} of nats-server.`,
  `Over many tenants that is where the rest goes too: a publish of the one tenant at ${connections} connections has ${publish.plain.waits.toFixed(1)} waits of the nodes' threads, one over ${manyTenants} tenants ${many.plain.waits.toFixed(1)}, because fewer of them share a turn.`,
];
const text = `${lines.join("\n")}\n`;
console.log(text);
mkdirSync(join(root, "bench", "results"), { recursive: true });
writeFileSync(join(root, "bench", "results", "budget.md"), text);
process.exit(0);
