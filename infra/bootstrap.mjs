// @ts-check
/**
 * What every command of this repo needs before anything else: a Node new enough, the packages of package-lock.json, and
 * runtimes that really start. Plain JavaScript without dependencies, because it runs before there are any.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** A failure that the person at the terminal can do something about: printed without a stack. */
export class SetupError extends Error {
  /** @override */
  name = "SetupError";
}

/** @typedef {"bun" | "deno" | "node"} Runtime */
/** @type {readonly Runtime[]} */
export const runtimes = ["bun", "deno", "node"];

const nodeMin = [20, 19];

export function ensureNode() {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const [majorMin = 0, minorMin = 0] = nodeMin;
  if (major < majorMin || (major === majorMin && minor < minorMin)) {
    throw new SetupError(
      `Conflux needs Node ${nodeMin.join(".")} or newer to set itself up: this is ${process.version}`,
    );
  }
}

/** @param {string} name */
export const bin = (name) => path.join(root, "node_modules", ".bin", name);

/** Whether node_modules is what the lock says; optional packages of other platforms may be missing. */
function modulesAreCurrent() {
  /** @param {string} file @returns {Record<string, {version: string, optional?: boolean}> | null} */
  const packages = (file) => {
    try {
      return JSON.parse(readFileSync(path.join(root, file), "utf8")).packages;
    } catch {
      return null;
    }
  };
  const wanted = packages("package-lock.json");
  const present = packages("node_modules/.package-lock.json");
  if (!wanted)
    throw new SetupError(`Cannot read package-lock.json in ${root}: is this a whole checkout?`);
  if (!present) return false;
  for (const [key, { version, optional }] of Object.entries(wanted)) {
    if (key === "") continue;
    const found = present[key];
    if (found ? found.version !== version : !optional) return false;
    if (found && !existsSync(path.join(root, key, "package.json"))) return false;
  }
  return true;
}

/**
 * The Node and npm that run this. Under `npm run` the first `node` in PATH is the one in node_modules, which npm is about
 * to replace.
 */
function npmCommand() {
  const node = process.env["npm_node_execpath"] ?? process.execPath;
  const npm = process.env["npm_execpath"];
  return npm?.endsWith(".js") ? { command: node, args: [npm] } : { command: "npm", args: [] };
}

/** Runs npm quietly: its output is shown only if it fails. Says every few seconds that it goes on. @param {string[]} args */
async function npm(args) {
  const { command, args: first } = npmCommand();
  const env = Object.fromEntries(
    Object.entries(process.env).filter(
      ([name]) =>
        !/^npm_(config|package|lifecycle)_/.test(name) || /registry|cache|proxy|cafile/i.test(name),
    ),
  );
  const child = spawn(command, [...first, ...args], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
    env,
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text) => (output += text));
  }
  const started = Date.now();
  const progress = setInterval(() => {
    process.stderr.write(
      `conflux: … still installing, ${Math.round((Date.now() - started) / 1000)} s\n`,
    );
  }, 10_000);
  const code = await new Promise((resolve) => {
    child.on("error", (error) => {
      output += String(error);
      resolve(1);
    });
    child.on("close", resolve);
  });
  clearInterval(progress);
  if (code !== 0) {
    process.stderr.write(output);
    throw new SetupError(`npm ${args.join(" ")} failed (exit ${code}): its output stands above`);
  }
}

const installing = path.join(root, ".conflux", "installing");

/** Takes the right to install; false while another process that lives has it. */
function takeInstalling() {
  mkdirSync(path.dirname(installing), { recursive: true });
  try {
    writeFileSync(installing, String(process.pid), { flag: "wx" });
    return true;
  } catch {
    try {
      process.kill(Number(readFileSync(installing, "utf8")), 0);
    } catch {
      // Its owner is gone: the next attempt takes it.
      rmSync(installing, { force: true });
    }
    return false;
  }
}

/** Installs the packages of the lock when they are missing or older than it. Two commands may start at once. */
export async function ensureModules() {
  ensureNode();
  if (modulesAreCurrent() && !existsSync(installing)) return;
  let waits = 0;
  while (!takeInstalling()) {
    if (waits++ === 1) process.stderr.write("conflux: waiting for another command that installs\n");
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  try {
    if (modulesAreCurrent()) return;
    const started = Date.now();
    const what = existsSync(path.join(root, "node_modules"))
      ? "packages differ from package-lock.json, installing them anew"
      : "installing packages";
    process.stderr.write(`conflux: ${what} (npm ci, half a minute or so)\n`);
    await npm(["ci", "--no-audit", "--no-fund"]);
    const seconds = Math.round((Date.now() - started) / 1000);
    process.stderr.write(`conflux: packages installed in ${seconds} s\n`);
  } finally {
    rmSync(installing, { force: true });
  }
}

/** @param {Runtime} runtime */
const starts = (runtime) =>
  spawnSync(bin(runtime), ["--version"], { stdio: "ignore" }).status === 0;

/**
 * The runtimes are npm packages whose install script puts the binary in place; where npm was told not to run install
 * scripts, they are run here.
 * @param {readonly Runtime[]} wanted
 */
export async function ensureRuntimes(wanted) {
  for (const runtime of new Set(wanted)) {
    if (starts(runtime)) continue;
    process.stderr.write(`conflux: putting ${runtime} in place (npm rebuild ${runtime})\n`);
    await npm(["rebuild", runtime, "--ignore-scripts=false"]);
    if (!starts(runtime))
      throw new SetupError(`Cannot start ${bin(runtime)}: delete node_modules and try again`);
  }
}

/**
 * What runtimes are told by their environment before they begin: see docs/adr/0017. A node would see to it itself
 * (src/runtime/environment.ts), for which it begins again once everything is loaded.
 */
export const runtimeEnv = {
  BUN_JSC_thresholdForFTLOptimizeAfterWarmUp: "400000",
  MIMALLOC_PURGE_HOLES_MIN_INTERVAL: "500",
  MALLOC_MMAP_THRESHOLD_: "262144",
};

/** How `runtime` runs a TypeScript file of this repo. @param {Runtime} runtime @param {string} file @param {string[]} args */
export function runCommand(runtime, file, args = []) {
  switch (runtime) {
    case "bun":
      return { command: bin("bun"), args: [file, ...args] };
    case "deno":
      // Packages come from node_modules, as they are; nothing is fetched, and no lock of Deno's own is written.
      return {
        command: bin("deno"),
        args: [
          "run",
          "-A",
          "--quiet",
          "--no-lock",
          "--node-modules-dir=manual",
          "--cached-only",
          file,
          ...args,
        ],
      };
    case "node":
      // Node 22 strips the types itself and says each time that this is new.
      return {
        command: bin("node"),
        args: ["--disable-warning=ExperimentalWarning", file, ...args],
      };
    default:
      throw new SetupError(
        `Unknown runtime ${JSON.stringify(runtime)}: use ${runtimes.join(", ")}`,
      );
  }
}

/**
 * Kills a process when this one is gone, also by SIGKILL: a small shell reads from a pipe whose other end we hold.
 * @param {number} pid
 * @returns {() => void} to be called when the process has ended by itself
 */
export function killWithUs(pid) {
  const guard = spawn(
    "/bin/sh",
    ["-c", 'read -r _ && exit 0; kill -9 "$1"', "conflux-guard", String(pid)],
    { stdio: ["pipe", "ignore", "ignore"], detached: true },
  );
  const { stdin } = guard;
  guard.on("error", () => {});
  stdin.on("error", () => {});
  guard.unref();
  // A pipe is a socket to Node, which would keep the process alive; its types know only the stream.
  /** @type {{ unref?: () => void }} */ (/** @type {unknown} */ (stdin)).unref?.();
  return () => stdin.end("\n");
}

/** Runs a command's main function; failures end the process with one line. @param {() => Promise<number | void>} main */
export async function runMain(main) {
  try {
    process.exitCode = (await main()) ?? 0;
  } catch (error) {
    process.stderr.write(
      `conflux: ${error instanceof SetupError ? error.message : error instanceof Error ? error.stack : String(error)}\n`,
    );
    process.exitCode = 1;
  }
}

/** Whether this file was started as a program, and not imported. @param {string} url */
export const isProgram = (url) =>
  process.argv[1] !== undefined && path.resolve(process.argv[1]) === fileURLToPath(url);
