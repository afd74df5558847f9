/**
 * Finds, installs and runs nats-server, for tests, for the local cluster and for `node infra/nats_server.mjs ensure`.
 * Plain JavaScript without dependencies, because it runs before anything is installed.
 *
 * A server started here ends with the process that started it, also when that crashes: a small shell holds the other
 * end of a pipe and kills the server when the pipe breaks.
 */
import { spawn, spawnSync } from "node:child_process";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";

/** How long a server may take to answer after its start. */
const startMsMax = 10_000;
/** How long a server may take to end when asked to, before it is killed. */
const stopMsMax = 5000;
const pollMs = 10;

/**
 * @typedef {object} NatsServer
 * @property {string} url `nats://<host>:<port>`
 * @property {number} port
 * @property {number} pid
 * @property {() => Promise<void>} stop ends it in order, or by force after five seconds
 * @property {() => Promise<void>} kill ends it at once, as a crash would
 * @property {(signal: NodeJS.Signals) => void} signal e.g. SIGSTOP, SIGCONT, SIGHUP (reads its configuration again)
 */

/**
 * Looks in CONFLUX_NATS_SERVER, the PATH, /usr/sbin and /usr/local/bin.
 * @returns {string | null} path of the executable
 * @throws {Error} when CONFLUX_NATS_SERVER names none
 */
export function findNatsServer() {
  const named = process.env["CONFLUX_NATS_SERVER"];
  if (named !== undefined && named !== "") {
    if (!isExecutable(named))
      throw new Error(`Cannot run nats-server: CONFLUX_NATS_SERVER is not an executable: ${named}`);
    return named;
  }
  const folders = (process.env["PATH"] ?? "").split(delimiter).filter((folder) => folder !== "");
  // Distributions put it into /usr/sbin, which is not on every user's PATH.
  for (const folder of [...folders, "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin"]) {
    const path = join(folder, "nats-server");
    if (isExecutable(path)) return path;
  }
  return null;
}

/**
 * Finds nats-server, or installs it by the system's package manager.
 * @param {{ log?: (line: string) => void }} [options] `log` hears what is being done
 * @returns {Promise<string>} path of the executable
 * @throws {Error} that says how to get it
 */
export async function ensureNatsServer({ log = () => {} } = {}) {
  const found = findNatsServer();
  if (found !== null) return found;

  /** @type {string[]} */
  const tried = [];
  for (const { manager, steps, root } of installers) {
    if (!onPath(manager)) continue;
    const prefix = root ? rootPrefix() : [];
    if (prefix === null) {
      tried.push(`${manager} needs root, and sudo asks for a password`);
      continue;
    }
    for (const step of steps) {
      const [command, ...args] = /** @type {[string, ...string[]]} */ ([...prefix, ...step]);
      log(`nats-server is not installed: running ${[command, ...args].join(" ")}`);
      const { code, tail } = await run(command, args);
      if (code !== 0) tried.push(`${step.join(" ")} ended with ${code}: ${tail}`);
    }
    const installed = findNatsServer();
    if (installed !== null) return installed;
  }
  throw new Error(
    [
      "Cannot find nats-server, and cannot install it.",
      ...tried.map((line) => `  tried: ${line}`),
      "Install it in one of these ways, then run the command again:",
      "  Debian, Ubuntu:  sudo apt-get install nats-server",
      "  Fedora:          sudo dnf install nats-server",
      "  Alpine:          sudo apk add nats-server",
      "  macOS:           brew install nats-server",
      "  otherwise:       https://github.com/nats-io/nats-server/releases",
      "or set CONFLUX_NATS_SERVER to where it is.",
    ].join("\n"),
  );
}

/**
 * Starts a nats-server on 127.0.0.1, or another address of this machine, and waits until it answers. It ends with this process.
 * @param {object} [options]
 * @param {number} [options.port] a free one is picked without it
 * @param {string} [options.host] 127.0.0.1 without it
 * @param {string} [options.config] text of a configuration file; host and port are set beside it
 * @param {string} [options.dir] folder to keep its log in, made if need be; else the log goes when the server does
 * @param {string} [options.logFile] or the file to log to
 * @returns {Promise<NatsServer>}
 * @throws {Error} with the end of its log when it does not come up
 */
export async function startNatsServer({ port, host = "127.0.0.1", config, dir, logFile } = {}) {
  const path = findNatsServer();
  if (path === null)
    throw new Error("Cannot find nats-server: run `node infra/nats_server.mjs ensure`");
  const folder = mkdtempSync(join(tmpdir(), "conflux-nats-"));
  if (dir !== undefined) mkdirSync(dir, { recursive: true });
  const log = logFile ?? join(dir ?? folder, "nats-server.log");
  // Port -1 lets the server pick one, so that nobody else can take it in between. It tells in a file once it listens;
  // asking the port alone could be answered by another server there.
  const args = ["-a", host, "-p", String(port ?? -1), "-l", log, "--ports_file_dir", folder];
  if (config !== undefined) {
    const file = join(folder, "nats.conf");
    writeFileSync(file, config, { mode: 0o600 });
    args.push("-c", file);
  }

  // Out of this process group: an interrupt at the terminal is for us, who end the server last.
  const child = spawn(path, args, { stdio: "ignore", detached: true });
  const life = { ended: false };
  /** @type {Promise<void>} */
  const end = new Promise((resolve) => {
    const finish = () => {
      life.ended = true;
      resolve();
    };
    child.once("exit", finish);
    child.once("error", finish);
  });
  const { pid } = child;
  if (pid === undefined) {
    await end;
    rmSync(folder, { recursive: true, force: true });
    throw new Error(`Cannot start nats-server: ${path} does not run`);
  }
  const guard = startGuard(pid, folder);
  // Nobody who forgets to stop it shall hang on it.
  child.unref();
  void end.then(() => guard.release());

  /** @param {NodeJS.Signals} signal */
  const signal = (signal) => {
    if (!life.ended) child.kill(signal);
  };
  const kill = async () => {
    child.ref();
    signal("SIGKILL");
    await end;
    rmSync(folder, { recursive: true, force: true });
  };
  const stop = async () => {
    child.ref();
    // A stopped process cannot end itself.
    signal("SIGCONT");
    signal("SIGTERM");
    const timer = setTimeout(() => signal("SIGKILL"), stopMsMax);
    await end;
    clearTimeout(timer);
    rmSync(folder, { recursive: true, force: true });
  };

  const deadline = performance.now() + startMsMax;
  while (!life.ended && performance.now() < deadline) {
    const open = readPort(folder);
    if (open !== null && (await greets(host, open)))
      return { url: `nats://${host}:${open}`, port: open, pid, stop, kill, signal };
    await sleep(pollMs);
  }
  const tail = existsSync(log) ? readFileSync(log, "utf8").split("\n").slice(-6).join("\n") : "";
  const why = life.ended ? "it ended at once" : `it did not answer within ${startMsMax} ms`;
  await kill();
  throw new Error(`Cannot start nats-server${port ? ` on port ${port}` : ""}: ${why}\n${tail}`);
}

// --- keeping it from outliving us ------------------------------------------------------------------------------------

// Reads a line or the end of the pipe. A line: all is well, the server has ended. The end: our process is gone.
const guardScript = 'read -r _ && exit 0; kill -9 "$1"; rm -rf -- "$2"';

/**
 * @param {number} pid
 * @param {string} folder
 */
function startGuard(pid, folder) {
  const guard = spawn("/bin/sh", ["-c", guardScript, "conflux-guard", String(pid), folder], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true,
  });
  guard.on("error", () => {});
  const { stdin } = guard;
  stdin.on("error", () => {});
  guard.unref();
  // A pipe is a socket to Node, which would keep the process alive; its types know only the stream.
  /** @type {{ unref?: () => void }} */ (/** @type {unknown} */ (stdin)).unref?.();
  return { release: () => stdin.end("\n") };
}

// --- helpers ---------------------------------------------------------------------------------------------------------

/** @type {readonly { manager: string, steps: string[][], root: boolean }[]} */
const installers = [
  {
    manager: "apt-get",
    steps: [
      ["apt-get", "update"],
      ["apt-get", "install", "-y", "--no-install-recommends", "nats-server"],
    ],
    root: true,
  },
  { manager: "dnf", steps: [["dnf", "install", "-y", "nats-server"]], root: true },
  { manager: "apk", steps: [["apk", "add", "nats-server"]], root: true },
  { manager: "brew", steps: [["brew", "install", "nats-server"]], root: false },
];

/**
 * What makes a command run as root, or null where only a password would.
 * @returns {string[] | null}
 */
function rootPrefix() {
  if (process.getuid?.() === 0) return [];
  const sudo = onPath("sudo") && spawnSync("sudo", ["-n", "true"], { stdio: "ignore" });
  return sudo && sudo.status === 0 ? ["sudo", "-n"] : null;
}

/**
 * @param {string} command
 * @param {string[]} args
 * @returns {Promise<{ code: number | null, tail: string }>} `tail`: the last line it wrote
 */
function run(command, args) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    const keep = (/** @type {Buffer} */ chunk) => {
      output = (output + chunk.toString()).slice(-2000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.once("error", (error) => resolve({ code: null, tail: error.message }));
    child.once("close", (code) => resolve({ code, tail: output.trim().split("\n").at(-1) ?? "" }));
  });
}

/** @param {string} name */
function onPath(name) {
  return (process.env["PATH"] ?? "")
    .split(delimiter)
    .some((folder) => folder !== "" && isExecutable(join(folder, name)));
}

/** @param {string} path */
function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/**
 * @param {string} folder
 * @returns {number | null} null until the server has written it
 */
function readPort(folder) {
  const name = readdirSync(folder).find((file) => file.endsWith(".ports"));
  if (name === undefined) return null;
  try {
    const { nats } = JSON.parse(readFileSync(join(folder, name), "utf8"));
    return Number(new URL(nats[0]).port);
  } catch {
    // Half written.
    return null;
  }
}

/**
 * Whether a NATS server greets there.
 * @param {string} host
 * @param {number} port
 * @returns {Promise<boolean>}
 */
function greets(host, port) {
  return new Promise((resolve) => {
    const socket = createConnection({ host, port });
    const finish = (/** @type {boolean} */ answer) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(answer);
    };
    const timer = setTimeout(() => finish(false), 1000);
    socket.on("error", () => finish(false));
    socket.once("close", () => finish(false));
    socket.once("data", (/** @type {Buffer} */ data) => finish(data.toString().startsWith("INFO")));
  });
}

/** @param {number} ms */
function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

// --- as a command ----------------------------------------------------------------------------------------------------

const usage = `usage: node infra/nats_server.mjs ensure            find nats-server or install it, print its path
       node infra/nats_server.mjs start [port]      run it on 127.0.0.1 until interrupted`;

/** @param {string[]} args */
async function main([command, ...args]) {
  const log = (/** @type {string} */ line) => console.error(line);
  switch (command) {
    case "ensure":
      console.log(await ensureNatsServer({ log }));
      return 0;
    case "start": {
      await ensureNatsServer({ log });
      const server = await startNatsServer({ port: Number(args[0] ?? 4222) });
      console.log(server.url);
      await new Promise((resolve) => {
        const held = setInterval(() => {}, 60_000);
        for (const name of /** @type {const} */ (["SIGINT", "SIGTERM"]))
          process.once(name, () => resolve(clearInterval(held)));
      });
      await server.stop();
      return 0;
    }
    default:
      console.error(usage);
      return 2;
  }
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main(process.argv.slice(2)).then(
    (code) => {
      process.exitCode = code;
    },
    (/** @type {Error} */ error) => {
      console.error(error.message);
      process.exitCode = 1;
    },
  );
}
