/**
 * Power loss, from what a real process asked the kernel for. One life of the child is recorded by strace: every write
 * with its bytes, every sync, every change of a name. A file system model follows the record and knows at each moment
 * what must have reached the disk: what an fsync or fdatasync covered that had returned, what went through a descriptor
 * with O_DSYNC, names whose directory was synced. At a cut anywhere in the record the directory is built anew from that,
 * plus a random part of everything else: writes whole, not at all or by sectors, names up to some change.
 *
 * Why so and not by copies of files at sync points: LMDB writes by itself, from native code, and the kernel keeps what a
 * killed process wrote. Only the system calls show whether it syncs before it says so, and in which order.
 * The model is harsher than the file systems in use: ext4 makes a file's name durable with its first fsync.
 */
import { spawn } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import process from "node:process";
import { runCommand } from "../../infra/bootstrap.mjs";
import { Prng } from "../../src/lib/prng.ts";
import { complaintsAfterCrash, Ledger } from "./check.ts";
import type { Runtime } from "./node_process.ts";

const sectorBytes = 512;
const traced = `
  open openat creat close dup dup2 dup3 fcntl lseek write pwrite64 writev pwritev pwritev2 ftruncate truncate fallocate
  fsync fdatasync rename renameat renameat2 link linkat unlink unlinkat mkdir mkdirat rmdir`
  .trim()
  .split(/\s+/)
  .join();
/** Longer than any write. */
const stringBytesMax = 64 * 1024 * 1024;

export interface PowerLoss {
  /** Where in the record the power went, and how many writes had been acknowledged. */
  readonly line: number;
  readonly acknowledged: number;
  readonly complaints: readonly string[];
}

/** One life, cut at so many places. Yields what is wrong after each, in order of time. */
export async function* powerLosses(options: {
  readonly seed: number;
  readonly runtime: Runtime;
  /** Acknowledgements and the like before the recording ends. */
  readonly lines: number;
  readonly cuts: number;
  readonly lie?: Lie;
}): AsyncGenerator<PowerLoss> {
  const { seed, cuts, lie = null } = options;
  const base = fs.mkdtempSync(join(tmpdir(), "conflux-power-"));
  try {
    const directory = join(base, "data");
    const lines = await record({ ...options, directory, file: join(base, "trace") });
    const prng = new Prng(seed);
    // The last one where all was done; behind it is the line that the record was cut off in.
    const at = new Set(Array.from({ length: cuts - 1 }, () => prng.below(lines.length - 2)));
    at.add(lines.length - 2);
    const model = new PowerModel(directory, lie);
    const after = join(base, "after");
    for (const [line, text] of lines.entries()) {
      model.follow(text);
      if (!at.has(line)) continue;
      model.materialize(after, seed + line);
      const complaints = await complaintsAfterCrash(after, model.ledger);
      fs.rmSync(after, { recursive: true, force: true });
      yield { line, acknowledged: model.ledger.acknowledged, complaints };
    }
  } finally {
    fs.rmSync(base, { recursive: true, force: true });
  }
}

/** Lets a child write until it has said so many lines, and kills it. @returns the lines of the record */
async function record(options: {
  readonly directory: string;
  readonly file: string;
  readonly seed: number;
  readonly lines: number;
  readonly runtime: Runtime;
}): Promise<string[]> {
  const { directory, file, seed, runtime } = options;
  const child = runCommand(runtime, resolve(import.meta.dirname, "child.ts"), [
    directory,
    "1",
    String(seed),
  ]);
  const strace = ["-f", "-qq", "-e", "signal=none", "-e", `trace=${traced}`];
  const started = spawn(
    "strace",
    [...strace, "-s", String(stringBytesMax), "-o", file, child.command, ...child.args],
    { cwd: resolve(import.meta.dirname, "../.."), stdio: ["ignore", "pipe", "inherit"] },
  );
  let said = "";
  let killed = false;
  started.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text;
    const pid = /^pid (\d+)\n/.exec(said)?.[1];
    if (killed || pid === undefined || said.split("\n").length < options.lines) return;
    killed = true;
    process.kill(Number(pid), "SIGKILL");
  });
  await new Promise((done) => started.once("close", done));
  return fs.readFileSync(file, "latin1").split("\n");
}

// --- model ---------------------------------------------------------------------------------------------------------

interface Change {
  /** A write, or, with `size`, a cut or growth of the file. */
  readonly at: number;
  readonly bytes: Uint8Array;
  readonly size: number | null;
  isDurable: boolean;
}

interface Rename {
  readonly changes: readonly (readonly [name: string, inode: Inode | null])[];
  isDurable: boolean;
}

class Inode {
  readonly isDirectory: boolean;
  /** Of a file: all that was done to its bytes, in order. */
  changes: Change[] = [];
  size = 0;
  /** Of a directory: as the running system sees it, and all that was done to it, in order. */
  readonly names = new Map<string, Inode>();
  renames: Rename[] = [];

  constructor(isDirectory: boolean) {
    this.isDirectory = isDirectory;
  }

  rename(changes: Rename["changes"]): Rename {
    for (const [name, inode] of changes)
      if (inode === null) this.names.delete(name);
      else this.names.set(name, inode);
    const rename = { changes, isDurable: false };
    this.renames.push(rename);
    return rename;
  }
}

interface Descriptor {
  readonly inode: Inode;
  readonly isSynced: boolean;
  readonly isAppending: boolean;
  offset: number;
}

/** A system call between its entry and its return. */
interface Call {
  readonly name: string;
  readonly args: string;
  /** What its return makes durable. */
  readonly covers: (Change | Rename)[];
}

/** What a disk pretends to do: to show that the checks would find it. */
type Lie = "fdatasync" | "fsync" | "O_DSYNC" | null;

class PowerModel {
  readonly ledger = new Ledger();
  readonly #root = new Inode(true);
  readonly #directory: string;
  readonly #lie: Lie;
  readonly #descriptors = new Map<number, Descriptor>();
  readonly #calls = new Map<string, Call>();
  #said = "";

  constructor(directory: string, lie: Lie = null) {
    this.#directory = directory;
    this.#lie = lie;
  }

  /** One line of the record: `PID call(args) = result`, or its two halves when another thread's stands between. */
  follow(line: string): void {
    const space = line.indexOf(" ");
    if (space < 0) return;
    const pid = line.slice(0, space);
    const text = line.slice(space).trimStart();
    const resumed = /^<\.\.\. (\w+) resumed>/.exec(text);
    if (resumed !== null) {
      const call = this.#calls.get(pid);
      this.#calls.delete(pid);
      if (call !== undefined) this.#return(call, resultOf(text));
      return;
    }
    const open = text.indexOf("(");
    if (open < 0 || !/^\w+$/.test(text.slice(0, open))) return;
    const unfinished = text.endsWith("<unfinished ...>");
    const end = unfinished ? text.lastIndexOf(" <unfinished") : endOfCall(text);
    if (end < 0) return;
    const call = this.#enter(text.slice(0, open), text.slice(open + 1, end).trimEnd());
    if (unfinished) this.#calls.set(pid, call);
    else this.#return(call, resultOf(text));
  }

  // Writes count from their entry: what was cut short may be on the disk. Names and sizes too.
  #enter(name: string, args: string): Call {
    const covers: Call["covers"] = [];
    const first = /^(\d+)/.exec(args)?.[1];
    const descriptor = first === undefined ? undefined : this.#descriptors.get(Number(first));
    switch (name) {
      case "write":
      case "writev":
      case "pwrite64":
      case "pwritev":
      case "pwritev2": {
        if (name === "write" && first === "1") this.#hear(args);
        if (descriptor === undefined) break;
        const parts = stringsOf(args);
        const bytes = Buffer.concat(parts);
        const isPositioned = name.startsWith("p");
        const tail = args.slice(args.lastIndexOf('"') + 1);
        const numbers = [...tail.matchAll(/-?\d+/g)].map(([digits]) => Number(digits));
        // pwrite64: count, offset. pwritev: [length of the last part,] count of parts, offset[, flags].
        const position = name === "pwritev2" ? numbers.at(-2) : numbers.at(-1);
        const at = isPositioned
          ? (position as number)
          : descriptor.isAppending
            ? descriptor.inode.size
            : descriptor.offset;
        if (!isPositioned) descriptor.offset = at + bytes.byteLength;
        const change = { at, bytes, size: null, isDurable: false };
        descriptor.inode.changes.push(change);
        descriptor.inode.size = Math.max(descriptor.inode.size, at + bytes.byteLength);
        if (descriptor.isSynced && this.#lie !== "O_DSYNC") covers.push(change);
        break;
      }
      case "close":
        // At its entry: before its return the number may be another thread's new file.
        this.#descriptors.delete(Number(args));
        break;
      case "ftruncate":
        if (descriptor !== undefined) resize(descriptor.inode, Number(args.split(", ")[1]));
        break;
      case "fsync":
      case "fdatasync":
        if (descriptor === undefined || this.#lie === name) break;
        covers.push(...descriptor.inode.changes, ...descriptor.inode.renames);
        break;
      default:
    }
    return { name, args, covers };
  }

  #return({ name, args, covers }: Call, result: number): void {
    if (result < 0) return;
    for (const one of covers) one.isDurable = true;
    const words = stringsOf(args).map((bytes) => bytes.toString("utf8"));
    const numbers = [...args.matchAll(/(?:^|, )(AT_FDCWD|\d+)(?=, |$)/g)].map(([, word]) => word);
    switch (name) {
      case "open":
      case "openat":
      case "creat":
        return this.#opened(args, words[0] as string, result);
      case "dup":
      case "dup2":
      case "dup3":
      case "fcntl": {
        if (name === "fcntl" && !args.includes("F_DUPFD")) return;
        const source = this.#descriptors.get(Number(args.split(", ")[0]));
        if (source === undefined) this.#descriptors.delete(result);
        else this.#descriptors.set(result, source);
        return;
      }
      case "lseek": {
        const descriptor = this.#descriptors.get(Number(args.split(", ")[0]));
        if (descriptor !== undefined) descriptor.offset = result;
        return;
      }
      case "rename":
      case "renameat":
      case "renameat2":
      case "link":
      case "linkat": {
        const [from, to] = [this.#place(numbers[0], words[0]), this.#place(numbers[1], words[1])];
        const inode = from?.parent.names.get(from.name);
        if (from === null || to === null || inode === undefined) return;
        const isLink = name.startsWith("link");
        if (isLink) to.parent.rename([[to.name, inode]]);
        else if (from.parent === to.parent)
          to.parent.rename([
            [from.name, null],
            [to.name, inode],
          ]);
        else
          throw new Error(`Not known to happen: a rename from one directory to another: ${args}`);
        return;
      }
      case "unlink":
      case "unlinkat":
      case "rmdir": {
        const place = this.#place(numbers[0], words[0]);
        place?.parent.rename([[place.name, null]]);
        return;
      }
      case "mkdir":
      case "mkdirat": {
        const place = this.#place(numbers[0], words[0]);
        // The directory itself is there before anything is said.
        if (place !== null && place.name !== "")
          place.parent.rename([[place.name, new Inode(true)]]);
        return;
      }
      case "truncate":
      case "fallocate":
        if (this.#place(numbers[0], words[0]) !== null)
          throw new Error(`Not known to happen: ${name}`);
        return;
      default:
    }
  }

  #opened(args: string, path: string, result: number): void {
    this.#descriptors.delete(result);
    const at = /^(AT_FDCWD|\d+), /.exec(args)?.[1];
    const place = this.#place(at, path);
    if (place === null) return;
    const flags = args.slice(args.lastIndexOf('"'));
    let inode = place.name === "" ? place.parent : place.parent.names.get(place.name);
    if (inode === undefined) {
      inode = new Inode(false);
      place.parent.rename([[place.name, inode]]);
    } else if (/O_TRUNC/.test(flags) && inode.size > 0) resize(inode, 0);
    this.#descriptors.set(result, {
      inode,
      isSynced: /O_D?SYNC/.test(flags),
      isAppending: /O_APPEND/.test(flags),
      offset: 0,
    });
  }

  /** Null when it is outside of the directory. */
  #place(at: string | undefined, path: string | undefined): { parent: Inode; name: string } | null {
    if (path === undefined) return null;
    let parent = this.#root;
    let relative = path;
    if (path.startsWith("/")) {
      if (path !== this.#directory && !path.startsWith(`${this.#directory}/`)) return null;
      relative = path.slice(this.#directory.length + 1);
    } else {
      const from = at === undefined ? undefined : this.#descriptors.get(Number(at))?.inode;
      if (from === undefined) return null;
      parent = from;
    }
    const parts = relative.split("/").filter((part) => part !== "" && part !== ".");
    const name = parts.pop() ?? "";
    for (const part of parts) {
      const next = parent.names.get(part);
      if (next === undefined) return null;
      parent = next;
    }
    return { parent, name };
  }

  #hear(args: string): void {
    this.#said += stringsOf(args)
      .map((bytes) => bytes.toString("utf8"))
      .join("");
    const lines = this.#said.split("\n");
    this.#said = lines.pop() ?? "";
    for (const line of lines) this.ledger.take(line);
  }

  // --- the disk after the cut --------------------------------------------------------------------------------------

  /** Writes what the disk holds, should the power go now; the seed decides on what no sync covered. */
  materialize(target: string, seed: number): void {
    const prng = new Prng(seed);
    // Of a disk that stores in order, or of one that stores whatever it likes.
    const chance = prng.pick([0, 0.5, 0.9]);
    this.#materialize(this.#root, target, prng, chance);
  }

  #materialize(inode: Inode, path: string, prng: Prng, chance: number): void {
    if (!inode.isDirectory) {
      fs.writeFileSync(path, contentOf(inode, prng, chance));
      return;
    }
    fs.mkdirSync(path, { recursive: true });
    const names = new Map<string, Inode>();
    const isKept = (rename: Rename): boolean => rename.isDurable || prng.chance(chance);
    for (const rename of inode.renames) {
      // A directory's changes reach the disk in order.
      if (!isKept(rename)) break;
      for (const [name, of] of rename.changes)
        if (of === null) names.delete(name);
        else names.set(name, of);
    }
    for (const [name, of] of names)
      if (!name.endsWith(".sock")) this.#materialize(of, join(path, name), prng, chance);
  }
}

function resize(inode: Inode, size: number): void {
  inode.changes.push({ at: 0, bytes: new Uint8Array(0), size, isDurable: false });
  inode.size = size;
}

function contentOf({ changes }: Inode, prng: Prng, chance: number): Uint8Array {
  let bytes = new Uint8Array(0);
  const grow = (size: number): void => {
    if (size <= bytes.byteLength) return;
    const grown = new Uint8Array(size);
    grown.set(bytes);
    bytes = grown;
  };
  for (const change of changes) {
    const { at, size, isDurable } = change;
    if (!isDurable && !prng.chance(chance)) continue;
    if (size !== null) {
      if (size > bytes.byteLength) grow(size);
      else bytes = bytes.slice(0, size);
      continue;
    }
    const end = at + change.bytes.byteLength;
    grow(end);
    if (isDurable || prng.chance(0.5)) {
      bytes.set(change.bytes, at);
      continue;
    }
    for (let from = at; from < end;) {
      const to = Math.min(end, from - (from % sectorBytes) + sectorBytes);
      if (prng.chance(0.5)) bytes.set(change.bytes.subarray(from - at, to - at), from);
      from = to;
    }
  }
  return bytes;
}

// --- strace's notation ---------------------------------------------------------------------------------------------

/** Where the parenthesis stands that closes the arguments: strace pads what follows it; -1 when there is none. */
function endOfCall(text: string): number {
  const tail = Math.max(0, text.length - 200);
  const found = /\) +=(?= [^"]*$)/.exec(text.slice(tail));
  return found === null ? -1 : tail + found.index;
}

function resultOf(text: string): number {
  const found = /^\) += (-?\d+|0x[0-9a-f]+)/.exec(text.slice(endOfCall(text)))?.[1];
  return found === undefined ? -1 : Number(found);
}

const escapes: Readonly<Record<string, number>> = {
  n: 10,
  t: 9,
  r: 13,
  f: 12,
  v: 11,
  '"': 34,
  "\\": 92,
};

/** The quoted strings in a call's arguments, as bytes. */
function stringsOf(args: string): Buffer[] {
  const found: Buffer[] = [];
  for (let at = args.indexOf('"'); at >= 0; at = args.indexOf('"', at + 1)) {
    const bytes = Buffer.alloc(args.length - at);
    let used = 0;
    for (at += 1; args[at] !== '"'; at++) {
      if (args[at] !== "\\") {
        bytes[used++] = args.charCodeAt(at);
        continue;
      }
      const next = args[++at] as string;
      const escape = escapes[next];
      if (escape !== undefined) bytes[used++] = escape;
      else {
        let digits = next;
        while (digits.length < 3 && /[0-7]/.test(args[at + 1] ?? ""))
          digits += args[++at] as string;
        bytes[used++] = Number.parseInt(digits, 8);
      }
    }
    found.push(bytes.subarray(0, used));
  }
  return found;
}
