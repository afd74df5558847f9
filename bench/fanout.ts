/**
 * Fan-out: one tenant's commits to very many watchers, server-sent events through the gateway over real sockets.
 * Publisher and subscribers are processes of their own, on the machine of the node.
 *
 * Estimate before measuring (2 cores for node, subscribers and publisher): one frame to one watcher costs about 5 µs at
 * the node (a queue, a socket write) and as much at the subscriber, so 10,000 watchers take 50 to 100 ms in all, the
 * first thousand 5 ms; 1,000 watchers at 100 commits/s are 100,000 frames/s: half a core for each side when writes are
 * batched per socket, too much when they are not.
 *
 * Measured: one system call for each delivery and no other (`strace -f -c -p` of the node: 20,034 sendto for 20,000
 * deliveries), nearly all of whose 12 to 15 µs are the system's own, also while the subscribers' process is stopped: their
 * cost is on the other core. What is left to gain is in the system's way through the loopback.
 *
 * Latency is from the moment in which the publisher sends its request to the moment in which a subscriber has the frame:
 * commit → client plus the write itself (parsing, journal with its sync).
 *
 * Run: bun bench/fanout.ts [--subscribers 10000] [--steady 1000] [--rate 100] [--seconds 10] [--runtime bun]
 *      [--only bare,burst,steady,stuck,failover] [--write]      --write puts table and plot into bench/results
 */
import { spawn, type ChildProcess } from "node:child_process";
import { loadavg } from "node:os";
import process from "node:process";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startCluster } from "../infra/cluster.mjs";
import { ask } from "../test/e2e/api.ts";
import { quantiles, writeReport, type Curve, type Quantiles, type Row } from "./report.ts";
import { openSocket, type RawSocket } from "./load.ts";
import { microsPerRequest, processorSeconds, residentKiB } from "./processes.ts";

/** Comparable between the processes of one machine. */
function now(): number {
  return performance.timeOrigin + performance.now();
}

// --- subscribers' process ----------------------------------------------------------------------------------------------------

interface OpenCommand {
  readonly urls: readonly string[];
  readonly path: string;
  readonly token: string;
  readonly count: number;
  /** Read nothing after the first bytes. */
  readonly stuck?: boolean;
}

/** One frame as a subscriber needs it. */
interface Told {
  readonly cursor: string;
  /** Null: no commit. */
  readonly commit: { readonly sentAt: number; readonly seen: string } | null;
}

/**
 * Thousands get the same bytes at once, so each piece is read once. What a subscriber costs beside its socket would else
 * be a large part of what is measured: it shares the machine with the node.
 */
const pieces = new Map<string, readonly Told[]>();
const piecesMax = 1_000;

function read(text: string): readonly Told[] {
  let told = pieces.get(text);
  if (told !== undefined) return told;
  told = text.split("\n\n").flatMap((frame) => {
    const cursor = /\nid: (\S+)/.exec(frame)?.[1];
    if (cursor === undefined) return [];
    const sent = frame.includes("event: commit")
      ? /sent\\":([0-9.]+),\\"number\\":(\d+)/.exec(frame)
      : null;
    const seen = sent && `${cursor.slice(cursor.indexOf("-") + 1)}:${sent[2]}`;
    return [{ cursor, commit: sent && seen ? { sentAt: Number(sent[1]), seen } : null }];
  });
  if (pieces.size >= piecesMax) pieces.clear();
  pieces.set(text, told);
  return told;
}

/** One watcher: a socket, what it was told, and how late. */
class Subscriber {
  readonly #open: OpenCommand;
  #at: number;
  #socket: RawSocket | null = null;
  /** The beginning of a frame whose end has not come. */
  #text = "";
  #cursor = "";
  readonly #ready: () => void;
  isClosing = false;
  reconnects = 0;
  /** `<revision>:<number published>`, in the order in which they came. */
  readonly seen: string[] = [];

  constructor(open: OpenCommand, at: number, ready: () => void) {
    this.#open = open;
    this.#at = at;
    this.#ready = ready;
    this.#connect();
  }

  #connect(): void {
    const { urls, path: target, token } = this.#open;
    const url = new URL(urls[this.#at % urls.length] as string);
    this.#text = "";
    const again = (): void => {
      if (this.isClosing) return;
      this.reconnects += 1;
      this.#at += 1;
      setTimeout(() => this.#connect(), 20 + Math.random() * 80);
    };
    openSocket(url, {
      data: (chunk) => this.#received(chunk.toString("latin1")),
      closed: again,
      drain: () => {},
    }).then((socket) => {
      const resume = this.#cursor === "" ? "" : `last-event-id: ${this.#cursor}\r\n`;
      socket.write(
        `GET ${target} HTTP/1.1\r\nhost: ${url.host}\r\nauthorization: Bearer ${token}\r\n${resume}\r\n`,
      );
      this.#socket = socket;
    }, again);
  }

  #received(text: string): void {
    const at = now();
    pieceBytes = text.length;
    const all = this.#text === "" ? text : this.#text + text;
    const end = all.lastIndexOf("\n\n") + 2;
    // The rest of a chunk's own line end is not kept: it belongs to no frame.
    this.#text = all.length - end <= 2 ? "" : all.slice(end);
    if (end > 1) for (const told of read(all.slice(0, end))) this.#told(told, at);
  }

  #told({ cursor, commit }: Told, at: number): void {
    if (this.#cursor === "") {
      this.#ready();
      if (this.#open.stuck === true) this.#socket?.pause();
    }
    this.#cursor = cursor;
    if (commit === null) return;
    latencies.push(at - commit.sentAt);
    this.seen.push(commit.seen);
  }

  close(): void {
    this.isClosing = true;
    this.#socket?.end();
  }
}

let latencies: number[] = [];
/** Of the last piece that came. */
let pieceBytes = 0;

function subscriberProcess(): void {
  let subscribers: Subscriber[] = [];
  const answer = (value: unknown): void => {
    process.stdout.write(`${JSON.stringify(value)}\n`);
  };
  const openOne = (command: OpenCommand): Promise<void> =>
    new Promise((resolve) => {
      subscribers.push(new Subscriber(command, subscribers.length, resolve));
    });
  const commands: Readonly<Record<string, (command: never) => unknown>> = {
    open: async (command: OpenCommand) => {
      // Not all at once: a listener has a backlog.
      for (let left = command.count; left > 0; left -= 100)
        await Promise.all(Array.from({ length: Math.min(100, left) }, () => openOne(command)));
      return subscribers.length;
    },
    /** Waits until every one was told `count`, at most ten seconds longer than anything new comes. */
    counted: async ({ count }: { count: number }) => {
      const done = (): boolean => subscribers.every((one) => one.seen.length >= count);
      for (let before = -1; !done() && before !== latencies.length;) {
        before = latencies.length;
        for (let i = 0; i < 100 && !done(); i++) await sleep(100);
      }
      return { least: Math.min(...subscribers.map((one) => one.seen.length)) };
    },
    take: () => {
      const sorted = quantiles(latencies);
      const first = latencies.slice(0, 1_000);
      latencies = [];
      return { all: sorted, first: quantiles(first), pieceBytes };
    },
    /** What was seen: how many different sequences there were, and the first of them. */
    sequences: () => {
      const different = new Set(subscribers.map((one) => one.seen.join(",")));
      return {
        different: different.size,
        first: subscribers[0]?.seen,
        reconnects: subscribers.reduce((sum, one) => sum + one.reconnects, 0),
      };
    },
    close: () => {
      for (const one of subscribers) one.close();
      subscribers = [];
      latencies = [];
    },
  };
  createInterface({ input: process.stdin }).on("line", (line) => {
    const { name, value } = JSON.parse(line) as { name: string; value: never };
    void Promise.resolve(commands[name]?.(value)).then((result) => answer(result ?? null));
  });
}

// --- publisher's process -----------------------------------------------------------------------------------------------------

interface PublishCommand {
  readonly urls: readonly string[];
  readonly target: string;
  readonly token: string;
  readonly rate: number;
  readonly count: number;
  readonly from: number;
  /** Characters beside what tells the publishes apart. */
  readonly pad?: number;
}

interface Published {
  readonly p50Ms: number;
  readonly slowestMs: number;
}

function publisherProcess(): void {
  const publish = async (command: PublishCommand): Promise<Published> => {
    const { urls, target, token, rate, count, from, pad = 64 } = command;
    const startedAt = performance.now();
    const underWay: Promise<void>[] = [];
    const took: number[] = [];
    for (let i = 0; i < count; i++) {
      // Open loop: each at its time, however long the one before takes.
      const waitMs = startedAt + (i * 1_000) / rate - performance.now();
      if (waitMs > 0) await sleep(waitMs);
      const number = from + i;
      const sent = now();
      const one = async (): Promise<void> => {
        for (let attempt = 0; ; attempt++) {
          try {
            const response = await fetch(`${urls[attempt % urls.length]}${target}`, {
              method: "POST",
              signal: AbortSignal.timeout(10_000),
              headers: {
                authorization: `Bearer ${token}`,
                "content-type": "application/json",
                "idempotency-key": `publish-${number}`,
              },
              body: `{"content":"{\\"sent\\":${sent},\\"number\\":${number},\\"pad\\":\\"${"x".repeat(pad)}\\"}"}`,
            });
            const text = await response.text();
            if (response.ok) break;
            if (response.status < 500) throw new Refused(`${response.status} ${text}`);
          } catch (error) {
            if (error instanceof Refused || attempt > 200) throw error;
          }
          await sleep(50);
        }
        took.push(now() - sent);
      };
      underWay.push(one());
    }
    await Promise.all(underWay);
    const { p50, max } = quantiles(took);
    return { p50Ms: p50, slowestMs: max };
  };
  createInterface({ input: process.stdin }).on("line", (line) => {
    const { value } = JSON.parse(line) as { value: PublishCommand };
    void publish(value).then((result) => process.stdout.write(`${JSON.stringify(result)}\n`));
  });
}

class Refused extends Error {}

// --- a process that does nothing else ----------------------------------------------------------------------------------------

interface BareCommand {
  /** Of what is written to each. */
  readonly bytes: number;
  readonly number: number;
}

interface BareSocket {
  write(bytes: Uint8Array): number;
}

/** What this file uses of Bun; the compiler knows Node's types only. */
interface BareBun {
  listen(options: {
    hostname: string;
    port: number;
    socket: { open(socket: BareSocket): void; data(socket: BareSocket): void; close(): void };
  }): { readonly port: number };
}

/**
 * The least that telling so many can cost in this runtime: a loop that writes the same bytes to every socket. Its clients
 * are the subscribers, who take it for a node.
 */
function bareProcess(): void {
  const { Bun: bun } = globalThis as { readonly Bun?: BareBun };
  if (bun === undefined) throw new Error("The bare loop is written for Bun");
  const sockets: BareSocket[] = [];
  const head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
  const first = Buffer.from(`${head}event: sync\nid: 1-0\ndata: {}\n\n`);
  const server = bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open: (socket) => sockets.push(socket),
      data: (socket) => socket.write(first),
      close: () => {},
    },
  });
  createInterface({ input: process.stdin }).on("line", (line) => {
    const { name, value } = JSON.parse(line) as { name: string; value: BareCommand };
    if (name === "tell") {
      const { bytes, number } = value;
      const told = `event: commit\nid: 1-${number + 1}\ndata: {\\"sent\\":${now()},\\"number\\":${number}`;
      const frame = Buffer.from(`${told}${"}".repeat(Math.max(1, bytes - told.length - 2))}\n\n`);
      for (const socket of sockets) socket.write(frame);
    }
    process.stdout.write(`${JSON.stringify(server.port)}\n`);
  });
}

// --- the measurements ----------------------------------------------------------------------------------------------------------

class Worker {
  readonly #child: ChildProcess;
  readonly #waiting: ((value: unknown) => void)[] = [];

  constructor(role: string) {
    this.#child = spawn(process.execPath, [import.meta.filename, "--role", role], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    createInterface({ input: this.#child.stdout as NodeJS.ReadableStream }).on("line", (line) =>
      this.#waiting.shift()?.(JSON.parse(line)),
    );
    this.#child.on("exit", (code) => {
      if (this.#waiting.length > 0) throw new Error(`The ${role} process ended with ${code}`);
    });
  }

  // oxlint-disable-next-line typescript/no-explicit-any -- each command has its own answer
  ask(name: string, value: unknown = null): Promise<any> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      this.#child.stdin?.write(`${JSON.stringify({ name, value })}\n`);
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  stop(): void {
    this.#child.kill("SIGKILL");
  }
}

const ms = (value: number): string => `${value.toFixed(value < 10 ? 2 : 1)} ms`;

async function measure(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      subscribers: { type: "string", default: "10000" },
      steady: { type: "string", default: "1000" },
      rate: { type: "string", default: "100" },
      seconds: { type: "string", default: "10" },
      runtime: { type: "string", default: "bun" },
      only: { type: "string", default: "bare,burst,steady,stuck,failover" },
      write: { type: "boolean", default: false },
    },
  });
  const only = new Set(values.only.split(","));
  const [subscribers, steady, rate, seconds] = [
    Number(values.subscribers),
    Number(values.steady),
    Number(values.rate),
    Number(values.seconds),
  ] as const;
  const rows: Row[] = [];
  // Whatever else the machine does is in the figures.
  const [load = 0] = loadavg();
  const curves: Curve[] = [];
  const row = (what: string, figure: string, wanted = ""): void => {
    rows.push({ what, figure, wanted });
    console.log(`${what.padEnd(72)} ${figure}${wanted === "" ? "" : `   (wanted: ${wanted})`}`);
  };
  const target = "/v1/tenants/shop/namespaces/app/configs/limits/publish";
  const watchers = new Worker("subscribers");
  const publisher = new Worker("publisher");
  let published = 0;

  /** As a node sends them, unless it was measured. */
  let bareBytes = 320;
  const rounds = 10;
  /** Tells all subscribers something a few times. @returns how many bytes each got at once */
  const burst = async (
    name: string,
    pid: number,
    tell: (number: number) => Promise<unknown>,
    wanted: { readonly first?: string; readonly all?: string } = {},
  ): Promise<number> => {
    const [firsts, lasts]: [number[], number[]] = [[], []];
    const sides = [pid, watchers.pid] as const;
    const spentBefore = sides.map((side) => processorSeconds([side]));
    let bytes = 0;
    for (let i = 0; i < rounds; i++) {
      await tell(i);
      await watchers.ask("counted", { count: i + 1 });
      const {
        all,
        first,
        pieceBytes: got,
      } = (await watchers.ask("take")) as {
        all: Quantiles;
        first: Quantiles;
        pieceBytes: number;
      };
      if (all.count !== subscribers) throw new Error(`${all.count} of ${subscribers} were told`);
      firsts.push(first.p50);
      lasts.push(all.max);
      bytes = got;
      if (i === rounds - 1)
        curves.push({ name: `${name}, ${subscribers} subscribers`, curve: all.curve });
      await sleep(300);
    }
    const of = (list: number[]): string => {
      const { p50, max } = quantiles(list);
      return `${ms(p50)} (median of ${list.length}; worst ${ms(max)})`;
    };
    row(`${name} → p50 of the first 1,000 subscribers`, of(firsts), wanted.first);
    row(`${name} → all ${subscribers} subscribers`, of(lasts), wanted.all);
    const micros = sides.map((side, i) =>
      microsPerRequest(
        processorSeconds([side]) - (spentBefore[i] ?? 0),
        rounds * subscribers,
      ).toFixed(1),
    );
    row(
      `${name}: processor time per delivery: who tells; subscriber`,
      `${micros.join(" µs; ")} µs`,
    );
    return bytes;
  };

  const begin = async (nodes: number) => {
    const cluster = await startCluster({
      nodes,
      runtimes: [values.runtime as "bun"],
      env: { CONFLUX_LOG: "error" },
    });
    const urls = cluster.nodes.map((node) => node.url);
    const made = await ask(`${urls[0]}/v1/tenants`, {
      token: cluster.rootToken,
      body: { id: "shop" },
    });
    const token = made.body.key.token as string;
    await ask(`${urls[0]}/v1/tenants/shop/namespaces/app/configs/limits`, {
      method: "PUT",
      token,
      body: { format: "json", content: "0" },
    });
    const publish = async (
      count: number,
      perSecond: number,
      { to = urls, pad = 64 }: { to?: readonly string[]; pad?: number } = {},
    ): Promise<Published> => {
      const from = published;
      published += count;
      const command = { urls: to, target, token, rate: perSecond, count, from, pad };
      return publisher.ask("publish", command);
    };
    return { cluster, urls, token, publish };
  };

  try {
    if (only.has("burst") || only.has("steady") || only.has("stuck")) {
      const { cluster, urls, token, publish } = await begin(1);
      try {
        const pid = cluster.nodes[0]?.pid ?? 0;
        const values2 = {
          urls,
          path: "/v1/tenants/shop/namespaces/app/watch?label.region=eu",
          token,
        };
        await publish(200, 200); // code and journal warm
        const { p50Ms } = await publish(100, 50);
        row("one publish → answered, nobody watching: p50", ms(p50Ms));
        if (only.has("burst")) {
          // Once before, so that what the runtime allocates once is not counted.
          await watchers.ask("open", { ...values2, count: 200 });
          await watchers.ask("close");
          await sleep(1_000);
          const before = residentKiB(pid);
          const startedAt = performance.now();
          await watchers.ask("open", { ...values2, count: subscribers });
          const openedMs = performance.now() - startedAt;
          await sleep(3_000);
          const idleKiB = (residentKiB(pid) - before) / subscribers;
          row(
            `${subscribers} subscribers open, one after the other's hundred`,
            `${((subscribers * 1_000) / openedMs).toFixed(0)}/s`,
          );
          row(
            "memory of the node per idle subscriber (RSS)",
            `${idleKiB.toFixed(1)} KiB`,
            "< 12 KB",
          );
          bareBytes = await burst("one publish", pid, () => publish(1, 1), {
            first: "< 5 ms",
            all: "< 150 ms",
          });
          row(
            "memory of the node per subscriber afterwards (RSS)",
            `${((residentKiB(pid) - before) / subscribers).toFixed(1)} KiB`,
          );
          await watchers.ask("close");
          await sleep(1_000);
        }
        // What fills the buffers is large, and costs the node by itself: so the same once more with nobody stuck.
        for (const kind of ["steady", "large", "stuck"]) {
          if (!only.has(kind === "large" ? "stuck" : kind)) continue;
          const stuck = new Worker("subscribers");
          try {
            if (kind === "stuck") await stuck.ask("open", { ...values2, count: 1, stuck: true });
            if (kind !== "steady") {
              // Until the buffers of both kernels and of the node are full: small frames alone would all fit in there.
              await publish(250, 200, { pad: 60_000 });
              await publish(1, 1);
            }
            await watchers.ask("open", { ...values2, count: steady });
            const count = rate * seconds;
            const [spentBefore, startedAt] = [processorSeconds([pid]), performance.now()];
            const { slowestMs } = await publish(count, rate);
            const { least } = (await watchers.ask("counted", { count })) as { least: number };
            const spent = processorSeconds([pid]) - spentBefore;
            const share = (spent * 1_000) / (performance.now() - startedAt);
            const { all } = (await watchers.ask("take")) as { all: Quantiles };
            const { different, first } = (await watchers.ask("sequences")) as {
              different: number;
              first: readonly string[];
            };
            const name = `${steady} subscribers, ${rate} publishes/s${{ large: ", after 250 large ones", stuck: ", after 250 large ones, one that reads nothing" }[kind] ?? ""}`;
            curves.push({ name, curve: all.curve });
            row(`${name}: p50`, ms(all.p50));
            row(`${name}: p99`, ms(all.p99), "< 50 ms");
            row(`${name}: slowest; publish itself`, `${ms(all.max)}; ${ms(slowestMs)}`);
            row(
              `${name}: processor of the node`,
              `${(share * 100).toFixed(0)} % of a core, ${microsPerRequest(spent, all.count).toFixed(1)} µs per delivery`,
            );
            const isWhole = least === count && different === 1 && isInOrder(first);
            row(
              `${name}: lost, doubled or out of order`,
              isWhole ? `nothing, of ${all.count} frames` : `least ${least} of ${count}`,
              "nothing",
            );
            await watchers.ask("close");
            await sleep(500);
          } finally {
            stuck.stop();
          }
        }
      } finally {
        await cluster.stop();
      }
    }
    if (only.has("bare")) {
      const bare = new Worker("bare");
      try {
        const port = (await bare.ask("port")) as number;
        const urls = [`http://127.0.0.1:${port}`];
        await watchers.ask("open", { urls, path: "/", token: "none", count: subscribers });
        await sleep(1_000);
        await burst(`a bare loop of writes of ${bareBytes} bytes`, bare.pid, (number) =>
          bare.ask("tell", { bytes: bareBytes, number }),
        );
        await watchers.ask("close");
      } finally {
        bare.stop();
      }
    }
    if (only.has("failover")) {
      const { cluster, urls, token, publish } = await begin(3);
      try {
        const group = await ask(`${urls[0]}/v1/tenants/shop/group`, { token });
        const leader = group.body.leader as string;
        const index = cluster.nodes.findIndex((node) => node.name === leader);
        const others = urls.filter((_, i) => i !== index);
        await watchers.ask("open", {
          urls,
          path: "/v1/tenants/shop/watch?history=every",
          token,
          count: 300,
        });
        const first = published;
        const count = 50 * 6;
        const running = publish(count, 50, { to: others });
        await sleep(2_000);
        await cluster.nodes[index]?.kill("SIGKILL");
        const { slowestMs } = await running;
        await watchers.ask("counted", { count });
        const { all } = (await watchers.ask("take")) as { all: Quantiles };
        const sequences = (await watchers.ask("sequences")) as {
          different: number;
          first: readonly string[];
          reconnects: number;
        };
        const committed = await history(others[0] as string, token, first);
        const isEqual =
          sequences.different === 1 && sequences.first.join(",") === committed.join(",");
        row(
          "leader killed, 300 watchers on three nodes, 50 publishes/s: against the committed history",
          isEqual
            ? `all equal to it (${committed.length} commits)`
            : `${sequences.different} sequences`,
          "no gap, duplicate or change of order",
        );
        row("leader killed: watchers that had to reconnect", String(sequences.reconnects));
        row("leader killed: slowest publish; slowest delivery", `${ms(slowestMs)}; ${ms(all.max)}`);
        await watchers.ask("close");
      } finally {
        await cluster.stop();
      }
    }
  } finally {
    watchers.stop();
    publisher.stop();
  }
  if (values.write)
    writeReport({
      name: "fanout",
      title: "Fan-out",
      args,
      setting: "node, subscribers and publisher on one machine",
      load,
      text: "Latency is from the request to publish being sent to a subscriber having the frame, so it holds the write itself. The bare loop is a process that writes as many bytes to as many sockets in the same runtime, and does nothing else; its latency is from before the loop. The reader that reads nothing has the buffers of both kernels and its queue at the node full before; what fills them are 250 commits of 60 kB, so the same follows on these without such a reader.",
      rows,
      plot: "Latency by share of deliveries",
      curves,
    });
}

function isInOrder(seen: readonly string[]): boolean {
  const revisions = seen.map((one) => Number(one.split(":")[0]));
  return revisions.every((revision, i) => i === 0 || revision === (revisions[i - 1] ?? 0) + 1);
}

/** What was committed from the publish `first` on, as another read of the history tells it. */
async function history(url: string, token: string, first: number): Promise<string[]> {
  const committed: string[] = [];
  for (let since = ""; ;) {
    const answer = await ask(
      `${url}/v1/tenants/shop/watch?history=every&wait=0s${since === "" ? "" : `&since=${since}`}`,
      { token },
    );
    const frames = answer.body.frames as {
      event: string;
      id?: string;
      // oxlint-disable-next-line typescript/no-explicit-any -- the commit's shape is the contract's
      data: any;
    }[];
    if (since === "") {
      // The sync says of which history; all of it is asked for.
      since = `${frames[0]?.id?.split("-")[0]}-1`;
      continue;
    }
    for (const frame of frames) {
      since = frame.id ?? since;
      if (frame.event !== "commit") continue;
      const content = frame.data.changes[0]?.content as string | undefined;
      const number = /"number":(\d+)/.exec(content ?? "")?.[1];
      if (number !== undefined && Number(number) >= first)
        committed.push(`${frame.data.revision}:${number}`);
    }
    if (!frames.some((frame) => frame.event === "goodbye")) return committed;
  }
}

const role = process.argv.indexOf("--role");
if (role === -1) await measure(process.argv.slice(2));
else if (process.argv[role + 1] === "publisher") publisherProcess();
else if (process.argv[role + 1] === "bare") bareProcess();
else subscriberProcess();
