/**
 * One process per data directory, without native code, on a file system that has hard links.
 *
 * The lock is the file `lock.<n>` with the highest n; its content says who holds it. It is taken by hard-linking a
 * finished file to the next number, which the kernel lets succeed once only. A live holder's file is never touched by
 * anybody: a dead holder's lock is not removed but overtaken by the next number. So two starters that find the same dead
 * holder race for one name, and one of them wins.
 *
 * Whether a holder lives is asked in this order, the first that can answer decides:
 * 1. another boot of the machine: dead;
 * 2. the same process namespace: alive if its pid runs with the start time it wrote down, so a reused pid is told apart;
 * 3. another namespace (a container that shares the directory) or no /proc: alive if somebody listens on its socket
 *    beside the lock, which the kernel closes with the process;
 * 4. else it counts as alive, and the error says which file to remove.
 */
import * as fs from "node:fs";
import * as net from "node:net";
import { join } from "node:path";
import { writeFileDurably } from "./disk.ts";

/** How often a starter looks again when others start or stop at the same moment. */
const attemptsMax = 100;
/** Longest socket path that every Unix takes. */
const socketPathMax = 100;
const connectTimeoutMs = 1000;

interface Holder {
  readonly pid: number;
  /** Start of the process in clock ticks since boot; null where /proc does not tell. */
  readonly started: string | null;
  readonly boot: string | null;
  readonly namespace: string | null;
  readonly released: boolean;
}

export class DirectoryInUseError extends Error {
  override readonly name = "DirectoryInUseError";
}

export interface DirectoryLock {
  /** Of the lock, as long as nobody removed or replaced it. */
  readonly path: string;
  release(): void;
}

/** @throws DirectoryInUseError naming the directory and the holder */
export async function lockDirectory(directory: string): Promise<DirectoryLock> {
  const unique = `${process.pid}-${Math.random().toString(36).slice(2)}`;
  const draft = join(directory, `lock-${unique}.draft`);
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    const highest = numbers(directory).at(-1);
    if (highest !== undefined) await assertDead(directory, highest);
    const number = (highest ?? 0) + 1;
    const socket = await listen(join(directory, `lock-${unique}.sock`));
    // Whole before it has its name: nobody ever reads half a lock.
    writeFileDurably(draft, JSON.stringify(self()));
    const won = linked(draft, join(directory, lockName(number)));
    fs.rmSync(draft, { force: true });
    // Our list may have been read while names came and went; the winner is who holds the highest number.
    if (won && numbers(directory).at(-1) === number) {
      // Until it has this name nobody can be told that we live, and who cannot be told takes us for alive.
      socket.name(join(directory, socketName(number)));
      removeLeftovers(directory, number);
      return hold(directory, number, socket);
    }
    if (won) fs.rmSync(join(directory, lockName(number)), { force: true });
    socket.close();
  }
  throw new DirectoryInUseError(
    `Cannot lock data directory ${directory}: other processes start and stop on it all the time`,
  );
}

function hold(directory: string, number: number, socket: Socket): DirectoryLock {
  let released = false;
  return {
    path: join(directory, lockName(number)),
    release() {
      if (released) return;
      released = true;
      // Replaced, not removed: the number must not become free for one who read the list before.
      const draft = join(directory, `lock-${process.pid}-released.draft`);
      writeFileDurably(draft, JSON.stringify({ ...self(), released: true }));
      fs.renameSync(draft, join(directory, lockName(number)));
      fs.rmSync(join(directory, socketName(number)), { force: true });
      socket.close();
    },
  };
}

async function assertDead(directory: string, number: number): Promise<void> {
  const path = join(directory, lockName(number));
  let text: string;
  try {
    text = fs.readFileSync(path, "utf8");
  } catch (error) {
    // Overtaken between the listing and here; the next attempt sees by whom.
    if (isMissing(error)) return;
    throw error;
  }
  const holder = parseHolder(text, directory, path);
  if (holder.released) return;
  const me = self();
  if (holder.boot !== null && me.boot !== null && holder.boot !== me.boot) return;
  let sure = true;
  if (holder.namespace !== null && holder.namespace === me.namespace) {
    if (startTime(holder.pid) !== holder.started) return;
  } else {
    const answer = await connects(join(directory, socketName(number)));
    if (answer === "dead") return;
    sure = answer === "alive";
  }
  throw new DirectoryInUseError(
    `Data directory ${directory} is in use by process ${holder.pid}; stop it, or set another CONFLUX_DATA` +
      (sure ? "" : ` (if no such process runs anywhere, remove ${path})`),
  );
}

function parseHolder(text: string, directory: string, path: string): Holder {
  try {
    return JSON.parse(text) as Holder;
  } catch (cause) {
    throw new DirectoryInUseError(
      `Cannot tell who holds data directory ${directory}: ${path} is not readable; remove it if no process uses the directory`,
      { cause },
    );
  }
}

// --- who is who --------------------------------------------------------------------------------------------------

function self(): Holder {
  return {
    pid: process.pid,
    started: startTime(process.pid),
    boot: readLine("/proc/sys/kernel/random/boot_id"),
    namespace: readLink("/proc/self/ns/pid"),
    released: false,
  };
}

/** Null when no such process runs (a zombie runs no more), or when /proc is missing. */
function startTime(pid: number): string | null {
  const stat = readLine(`/proc/${pid}/stat`);
  if (stat === null) return null;
  // The second field is the program's name in parentheses and may hold anything; the state is the first after it.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const state = fields[0];
  if (state === "Z" || state === "X") return null;
  return fields[19] ?? null;
}

function readLine(path: string): string | null {
  try {
    return fs.readFileSync(path, "utf8").trim();
  } catch {
    return null;
  }
}

function readLink(path: string): string | null {
  try {
    return fs.readlinkSync(path);
  } catch {
    return null;
  }
}

// --- socket ------------------------------------------------------------------------------------------------------

interface Socket {
  /** Gives the socket the name under which others look for it. */
  name(path: string): void;
  close(): void;
}

/** Where a socket cannot be made (long path, odd file system), the lock does without; step 4 then answers. */
function listen(path: string): Promise<Socket> {
  const none: Socket = { name: () => undefined, close: () => undefined };
  if (path.length > socketPathMax) return Promise.resolve(none);
  return new Promise((resolve) => {
    const server = net.createServer((connection) => connection.destroy());
    server.once("error", () => resolve(none));
    server.listen(path, () => {
      server.unref();
      resolve({
        name: (final) => {
          if (linked(path, final)) fs.rmSync(path, { force: true });
        },
        close: () => {
          server.close();
          fs.rmSync(path, { force: true });
        },
      });
    });
  });
}

function connects(path: string): Promise<"alive" | "dead" | "unknown"> {
  return new Promise((resolve) => {
    const connection = net.connect(path);
    const answer = (result: "alive" | "dead" | "unknown"): void => {
      connection.destroy();
      resolve(result);
    };
    connection.setTimeout(connectTimeoutMs, () => answer("unknown"));
    connection.once("connect", () => answer("alive"));
    connection.once("error", (error: NodeJS.ErrnoException) =>
      // Without a socket nothing can be said: the holder may have had to do without.
      answer(error.code === "ECONNREFUSED" ? "dead" : "unknown"),
    );
  });
}

// --- names -------------------------------------------------------------------------------------------------------

function lockName(number: number): string {
  return `lock.${number}`;
}

function socketName(number: number): string {
  return `lock.${number}.sock`;
}

function numbers(directory: string): number[] {
  return fs
    .readdirSync(directory)
    .map((name) => /^lock\.(\d+)$/.exec(name)?.[1])
    .filter((digits) => digits !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
}

/** @returns false when the name is taken */
function linked(from: string, to: string): boolean {
  try {
    fs.linkSync(from, to);
    return true;
  } catch (error) {
    // Missing: a holder took our draft for a dead starter's, so there is a holder.
    if ((error as NodeJS.ErrnoException).code === "EEXIST" || isMissing(error)) return false;
    throw error;
  }
}

/** The dead holders' files, and what starters that were killed left behind. */
function removeLeftovers(directory: string, number: number): void {
  for (const name of fs.readdirSync(directory)) {
    const below = /^lock\.(\d+)(\.sock)?$/.exec(name)?.[1];
    const starter = /^lock-(\d+)-\w+\.(draft|sock)$/.exec(name)?.[1];
    const dead = starter !== undefined && startTime(Number(starter)) === null;
    if (dead || (below !== undefined && Number(below) < number))
      fs.rmSync(join(directory, name), { force: true });
  }
}

function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === "ENOENT";
}
