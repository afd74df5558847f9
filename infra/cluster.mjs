// @ts-check
/**
 * A cluster on this machine: one nats-server and a few nodes, each a process of its own. `npm run cluster` is the program;
 * the end-to-end tests import `startCluster`, so what they prove is what people run.
 *
 * Each process is the leader of its own process group: Ctrl-C reaches the launcher alone, which then stops the nodes in
 * order and waits for them. None outlives the launcher, whatever ends it.
 */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import {
  ensureModules,
  ensureRuntimes,
  isProgram,
  killWithUs,
  root,
  runCommand,
  runMain,
  runtimeEnv,
  runtimes as allRuntimes,
  SetupError,
} from "./bootstrap.mjs";

/** @typedef {import("./bootstrap.mjs").Runtime} Runtime */

/**
 * @typedef {object} Place
 * @property {string} host where its gateway is reached; it listens on all addresses of its place
 * @property {readonly string[]} command what runs a command there, e.g. ["ip", "netns", "exec", "n1"]
 */

/**
 * @typedef {object} ClusterOptions
 * @property {number} [nodes] how many; 3 unless told
 * @property {number} [initial] so many of them are the initial nodes and are started; the others join when `start`ed
 * @property {number} [basePort] node i listens on basePort + i; 0 (the default) picks free ports
 * @property {readonly number[]} [ports] one port for each node, instead of basePort
 * @property {string} [dataDir] node n1 keeps its data in dataDir/n1; without it a temporary one, removed by stop()
 * @property {readonly Runtime[]} [runtimes] used in turn: ["bun", "deno", "node"] makes a mixed cluster
 * @property {Readonly<Record<string, string>>} [env] added to every node's environment
 * @property {(node: string) => Readonly<Record<string, string>>} [nodeEnv] added to one node's
 * @property {(node: string) => Place} [place] where one runs, if not just here
 * @property {string} [tenants] folder of manifests, applied by the first node
 * @property {string} [rootToken] made if not given
 * @property {boolean} [rehearse] nodes rehearse once they are ready, as by default (CONFLUX_REHEARSAL); not unless told
 * @property {string} [natsUrl] of a server that runs already; without it one is started, and stopped with the cluster
 * @property {string} [main] the program of a node
 * @property {number} [readyTimeoutMs] how long a node may take until /readyz says 200
 * @property {(node: string, line: string) => void} [onLine] every line a node prints
 * @property {(node: ClusterNode, how: string) => void} [onDeath] a node ended without being told to
 */

const readyTimeoutMsDefault = 60_000;
const stopTimeoutMs = 15_000;
const readyPollMs = 50;
/** Lines of a node's output kept for the message when it does not start. */
const linesMax = 40;

/** @param {number} ms */
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Listens on 127.0.0.1:port. @param {number} port @returns {Promise<net.Server>} */
function listen(port) {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on("error", reject);
    server.listen({ port, host: "127.0.0.1", exclusive: true }, () => resolve(server));
  });
}

/** Free ports, held until all are found so that they differ. @param {number} count */
export async function freePorts(count) {
  const servers = [];
  for (let i = 0; i < count; i += 1) servers.push(await listen(0));
  const ports = servers.map((server) => /** @type {net.AddressInfo} */ (server.address()).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

/** @param {number} port @param {string} node */
async function ensurePortFree(port, node) {
  try {
    const server = await listen(port);
    await new Promise((resolve) => server.close(resolve));
  } catch (error) {
    const { code } = /** @type {NodeJS.ErrnoException} */ (error);
    if (code !== "EADDRINUSE") throw error;
    throw new SetupError(
      `Cannot start ${node}: port ${port} is taken by another process; stop it or choose others with --base-port`,
    );
  }
}

/** A token for the whole cluster: any text will do for a root key, this one cannot be guessed. */
const makeRootToken = () => `cfx_root_${randomBytes(32).toString("hex")}`;

/** One node's process, which may be ended and started again on the same port and data. */
export class ClusterNode {
  /** @type {import("node:child_process").ChildProcess | null} */
  #child = null;
  /** @type {Promise<string>} how the present process ended */
  #exit = Promise.resolve("never started");
  #expectedToEnd = false;
  /** @type {string[]} */
  #lines = [];
  #options;

  /**
   * @param {object} options
   * @param {string} options.name
   * @param {number} options.port
   * @param {string} options.dataDir
   * @param {Runtime} options.runtime
   * @param {string} options.main
   * @param {Record<string, string | undefined>} options.env
   * @param {Place} [options.place]
   * @param {number} options.readyTimeoutMs
   * @param {ClusterOptions["onLine"]} options.onLine
   * @param {ClusterOptions["onDeath"]} options.onDeath
   */
  constructor(options) {
    this.#options = options;
  }

  get name() {
    return this.#options.name;
  }
  get url() {
    return `http://${this.#options.place?.host ?? "127.0.0.1"}:${this.#options.port}`;
  }
  get dataDir() {
    return this.#options.dataDir;
  }
  get runtime() {
    return this.#options.runtime;
  }
  /** Of the present process; undefined when none runs. */
  get pid() {
    return this.running ? this.#child?.pid : undefined;
  }
  get running() {
    return this.#child !== null && this.#child.exitCode === null && this.#child.signalCode === null;
  }
  /** The last lines it printed. */
  get lines() {
    return [...this.#lines];
  }

  /** Starts the process; does not wait until it is ready. */
  start() {
    if (this.running) return;
    const { name, runtime, main, env, place, onLine, onDeath } = this.#options;
    const { command, args } = runCommand(runtime, main, ["start"]);
    const [program, ...words] = [...(place?.command ?? []), command, ...args];
    const child = spawn(/** @type {string} */ (program), words, {
      cwd: root,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    this.#child = child;
    this.#expectedToEnd = false;
    for (const stream of [child.stdout, child.stderr]) {
      let rest = "";
      stream.setEncoding("utf8").on("data", (/** @type {string} */ text) => {
        const lines = (rest + text).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) {
          this.#lines.push(line);
          if (this.#lines.length > linesMax) this.#lines.shift();
          onLine?.(name, line);
        }
      });
    }
    this.#exit = new Promise((resolve) => {
      child.on("error", (error) => resolve(`cannot be started: ${error.message}`));
      child.on("close", (code, signal) => resolve(signal ? `killed by ${signal}` : `exit ${code}`));
    });
    const release = child.pid === undefined ? () => {} : killWithUs(child.pid);
    void this.#exit.then((how) => {
      release();
      if (!this.#expectedToEnd && this.#child === child) onDeath?.(this, how);
    });
  }

  /**
   * Waits until /readyz answers 200 and the root token is known. Throws, with what the node printed, when it ends before
   * or takes too long.
   */
  async ready() {
    const { name, readyTimeoutMs, env } = this.#options;
    const authorization = `Bearer ${env["CONFLUX_ROOT_TOKEN"]}`;
    const deadline = Date.now() + readyTimeoutMs;
    let last = "no answer yet";
    while (Date.now() < deadline) {
      if (!this.running) {
        const how = await this.#exit;
        throw new SetupError(`${name} ended before it was ready (${how}):\n${this.#tail()}`);
      }
      try {
        let path = "/readyz";
        let status = await this.#status(path, {});
        if (status === 200) {
          path = "/v1/cluster/status";
          status = await this.#status(path, { authorization });
        }
        if (status === 200) return;
        last = `${path} says ${status}`;
      } catch (error) {
        last = String(error instanceof Error ? (error.cause ?? error.message) : error);
      }
      await sleep(readyPollMs);
    }
    throw new SetupError(
      `${name} was not ready within ${readyTimeoutMs} ms (${last}):\n${this.#tail()}`,
    );
  }

  /** @param {string} path @param {Record<string, string>} headers */
  async #status(path, headers) {
    const response = await fetch(this.url + path, { headers, signal: AbortSignal.timeout(2_000) });
    await response.arrayBuffer();
    return response.status;
  }

  #tail() {
    return this.#lines.length === 0
      ? "  (it printed nothing)"
      : this.#lines.map((line) => `  ${line}`).join("\n");
  }

  /**
   * Sends a signal. Unless it only pauses or continues the process, waits until it has ended.
   * @param {NodeJS.Signals} [signal]
   * @returns {Promise<string>} how it ended
   */
  async kill(signal = "SIGKILL") {
    if (!this.running) return this.#exit;
    const pausing = signal === "SIGSTOP" || signal === "SIGCONT";
    if (!pausing) this.#expectedToEnd = true;
    this.#child?.kill(signal);
    return pausing ? "" : this.#exit;
  }

  /** Asks it to stop and waits; after 15 s it is killed. */
  async stop() {
    if (!this.running) return this.#exit;
    // A paused process would not hear of it.
    this.#child?.kill("SIGCONT");
    const timer = setTimeout(() => this.#child?.kill("SIGKILL"), stopTimeoutMs);
    const how = await this.kill("SIGTERM");
    clearTimeout(timer);
    return how;
  }

  /** Ends it if it runs, starts it on the same data and port, and waits until it is ready. */
  async restart() {
    await this.stop();
    this.start();
    await this.ready();
  }
}

/**
 * Starts a cluster and waits until every node is ready.
 * @param {ClusterOptions} [options]
 */
export async function startCluster(options = {}) {
  const {
    basePort = 0,
    runtimes = ["bun"],
    readyTimeoutMs = readyTimeoutMsDefault,
    main = "src/main.ts",
  } = options;
  const count = options.ports?.length ?? options.nodes ?? 3;
  const initial = options.initial ?? count;
  const names = Array.from({ length: count }, (_, i) => `n${i + 1}`);
  await ensureRuntimes(runtimes);
  const ports =
    options.ports ?? (basePort === 0 ? await freePorts(count) : names.map((_, i) => basePort + i));
  for (const [i, name] of names.entries())
    await ensurePortFree(/** @type {number} */ (ports[i]), name);

  const temporary = options.dataDir === undefined;
  const dataDir = options.dataDir ?? mkdtempSync(path.join(tmpdir(), "conflux-cluster-"));
  mkdirSync(dataDir, { recursive: true });
  const rootToken = options.rootToken ?? makeRootToken();
  const nats =
    options.natsUrl === undefined
      ? await startNats(dataDir)
      : { url: options.natsUrl, stop: async () => {} };

  // What is set in the shell for another Conflux must not leak into these nodes.
  const inherited = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith("CONFLUX_")),
  );
  const nodes = names.map((name, i) => {
    const port = /** @type {number} */ (ports[i]);
    return new ClusterNode({
      name,
      port,
      dataDir: path.join(dataDir, name),
      runtime: /** @type {Runtime} */ (runtimes[i % runtimes.length]),
      main,
      readyTimeoutMs,
      ...(options.place && { place: options.place(name) }),
      onLine: options.onLine,
      onDeath: options.onDeath,
      env: {
        ...runtimeEnv,
        ...inherited,
        ...(options.place && { CONFLUX_HOST: "0.0.0.0" }),
        CONFLUX_PORT: String(port),
        CONFLUX_DATA: path.join(dataDir, name),
        CONFLUX_NODE: name,
        CONFLUX_NATS: nats.url,
        CONFLUX_PEERS: names.slice(0, initial).join(","),
        CONFLUX_ROOT_TOKEN: rootToken,
        ...(options.rehearse !== true && { CONFLUX_REHEARSAL: "0" }),
        ...(options.tenants !== undefined && i === 0 && { CONFLUX_TENANTS: options.tenants }),
        ...options.env,
        ...options.nodeEnv?.(name),
      },
    });
  });

  let stopped = false;
  const stop = async () => {
    if (stopped) return;
    stopped = true;
    await Promise.all(nodes.map((node) => node.stop()));
    await nats.stop();
    if (temporary) rmSync(dataDir, { recursive: true, force: true });
  };
  try {
    const first = nodes.slice(0, initial);
    for (const node of first) node.start();
    await Promise.all(first.map((node) => node.ready()));
  } catch (error) {
    await stop();
    throw error;
  }
  return { nodes, natsUrl: nats.url, rootToken, dataDir, stop, [Symbol.asyncDispose]: stop };
}

/**
 * @param {string} dataDir
 * @returns {Promise<{ url: string, stop: () => Promise<void> }>}
 */
async function startNats(dataDir) {
  const { ensureNatsServer, startNatsServer } = await import("./nats_server.mjs");
  try {
    await ensureNatsServer({ log: (line) => process.stderr.write(`conflux: ${line}\n`) });
    return await startNatsServer({ dir: path.join(dataDir, "nats") });
  } catch (error) {
    throw new SetupError(error instanceof Error ? error.message : String(error), { cause: error });
  }
}

const usage = `npm run cluster [-- OPTIONS]
  --nodes N            how many nodes (3)
  --base-port PORT     first port; the others follow (8081)
  --data DIR           where the nodes keep their data (data/cluster)
  --runtimes LIST      used in turn, e.g. bun,deno,node (bun)
  --tenants DIR        manifests that the first node applies
  --restart            start a node again when it dies`;

async function main() {
  let values;
  try {
    ({ values } = parseArgs({
      options: {
        nodes: { type: "string", default: "3" },
        "base-port": { type: "string", default: "8081" },
        data: { type: "string", default: "data/cluster" },
        runtimes: { type: "string", default: "bun" },
        tenants: { type: "string" },
        restart: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    }));
  } catch (error) {
    throw new SetupError(`${error instanceof Error ? error.message : error}\n${usage}`);
  }
  if (values.help) {
    console.log(usage);
    return 0;
  }
  const runtimes = values.runtimes.split(",").map((name) => {
    const runtime = allRuntimes.find((one) => one === name);
    if (!runtime)
      throw new SetupError(
        `Unknown runtime ${JSON.stringify(name)}: use ${allRuntimes.join(", ")}`,
      );
    return runtime;
  });
  const count = wholeNumber("--nodes", values.nodes, 1, 9);
  const basePort = wholeNumber("--base-port", values["base-port"], 1, 65_535 - count);
  await ensureModules();

  const dataDir = path.resolve(root, values.data);
  mkdirSync(dataDir, { recursive: true });
  const tokenFile = path.join(dataDir, "root-token");
  if (!existsSync(tokenFile)) writeFileSync(tokenFile, `${makeRootToken()}\n`, { mode: 0o600 });
  chmodSync(tokenFile, 0o600);
  const rootToken = readFileSync(tokenFile, "utf8").trim();

  const colour = process.stdout.isTTY;
  /** @param {string} node @param {string} line */
  const print = (node, line) => {
    const hue = 31 + (Number(node.slice(1)) % 6);
    process.stdout.write(`${colour ? `\x1b[${hue}m${node}\x1b[0m` : node} ${line}\n`);
  };
  let started = false;
  let stopping = false;
  /** @type {(code: number) => void} */
  let end = () => {};
  const ended = new Promise((resolve) => (end = resolve));

  console.log(
    `conflux: starting nats-server and ${count} nodes (${runtimes.join(", ")}) in ${path.relative(root, dataDir) || "."}`,
  );
  /** @type {NodeJS.Signals[]} */
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"];
  const early = () => {
    console.log("conflux: stopped before the cluster was ready");
    process.exit(130);
  };
  for (const signal of signals) process.on(signal, early);
  const cluster = await startCluster({
    rehearse: true,
    nodes: count,
    basePort,
    dataDir,
    runtimes,
    rootToken,
    ...(process.env["CONFLUX_LOG"] && { env: { CONFLUX_LOG: process.env["CONFLUX_LOG"] } }),
    ...(values.tenants !== undefined && { tenants: path.resolve(root, values.tenants) }),
    onLine: print,
    onDeath: (node, how) => {
      // Before all are ready, a death is why the start fails, and is told as that.
      if (stopping || !started) return;
      console.log(
        `conflux: ${node.name} died (${how})${values.restart ? ", starting it again" : "; the others go on"}`,
      );
      if (values.restart) {
        setTimeout(() => {
          if (!stopping) node.start();
        }, 1_000);
      } else if (cluster.nodes.every((one) => !one.running)) {
        console.log("conflux: no node is left");
        end(1);
      }
    },
  });
  started = true;
  for (const signal of signals) process.off(signal, early);

  const tokenShown = path.relative(process.cwd(), tokenFile);
  console.log("conflux: the cluster is ready");
  for (const node of cluster.nodes)
    console.log(`  ${node.name}  ${node.url}  ${node.runtime}  pid ${node.pid}`);
  console.log(`  root token: ${tokenShown}`);
  console.log(`  nats: ${cluster.natsUrl}`);
  console.log("Try:");
  console.log(
    `  curl -H "Authorization: Bearer $(cat ${tokenShown})" ${cluster.nodes[0]?.url}/v1/cluster/status`,
  );
  console.log("Ctrl-C ends all.");

  for (const signal of signals) {
    process.on(signal, () => {
      if (stopping) process.exit(130);
      stopping = true;
      console.log("conflux: stopping (once more: at once)");
      end(0);
    });
  }
  const code = await ended;
  stopping = true;
  await cluster.stop();
  console.log("conflux: stopped");
  return code;
}

/** @param {string} name @param {string} text @param {number} min @param {number} max */
function wholeNumber(name, text, min, max) {
  const value = Number(text);
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new SetupError(
      `${name} is ${JSON.stringify(text)}: use a whole number from ${min} to ${max}`,
    );
  }
  return value;
}

if (isProgram(import.meta.url)) await runMain(main);
