/**
 * One life of a child, ended hard in one of four ways, and the check of what it left:
 * - at random: SIGKILL after so many lines;
 * - at a named point: SIGKILL on entry of the n-th system call of a kind, by strace's injection;
 * - at a step: SIGKILL by its own hand at the n-th time it comes to a named step of a restore, or of the installation of a
 *   snapshot;
 * - by an error: the n-th system call of a kind fails with EIO or ENOSPC and does nothing. The child ends by itself where
 *   its journal or an environment is concerned; where it may go on it is killed later.
 */
import { spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import process from "node:process";
import { runCommand } from "../../infra/bootstrap.mjs";
import { Prng } from "../../src/lib/prng.ts";
import { complaintsAfterCrash, Ledger } from "./check.ts";
import type { Runtime } from "./node_process.ts";
import { steps, type Step } from "./restores.ts";

/** Kinds of system calls by what they are to the store, and how many one thread surely makes in a second or two. */
const points = {
  write: { calls: "pwrite64,pwritev", often: 150 },
  "data sync": { calls: "fdatasync", often: 25 },
  "file or directory sync": { calls: "fsync", often: 25 },
  rename: { calls: "rename,renameat,renameat2", often: 15 },
  removal: { calls: "unlink,unlinkat,rmdir", often: 10 },
  lock: { calls: "link,linkat", often: 2 },
  "cut of a file": { calls: "ftruncate", often: 8 },
  "new directory": { calls: "mkdir,mkdirat", often: 12 },
} as const;
type Point = keyof typeof points;
const stepNames = Object.keys(steps) as Step[];
const pointNames = Object.keys(points) as Point[];
/** Of these an error is never without consequence: the child has to end by itself. */
const mustEnd: readonly Point[] = ["write", "data sync"];
/** Where a process is killed that was to end by itself, or by a point it did not come to. */
const linesMax = 800;
const lifeMsMax = 20_000;

export type How =
  | { readonly kind: "random"; readonly lines: number }
  | { readonly kind: "step"; readonly step: Step; readonly nth: number }
  | { readonly kind: "point"; readonly point: Point; readonly nth: number }
  | { readonly kind: "error"; readonly point: Point; readonly nth: number; readonly error: string };

export function describeHow(how: How): string {
  if (how.kind === "random") return `killed after ${how.lines} lines`;
  if (how.kind === "point") return `killed at ${how.point} ${how.nth}`;
  if (how.kind === "step") return `killed at ${how.step} ${how.nth}`;
  return `${how.error} at ${how.point} ${how.nth}`;
}

export function drawHow(prng: Prng): How {
  if (prng.chance(0.2)) {
    const step = prng.pick(stepNames);
    return { kind: "step", step, nth: prng.between(1, steps[step]) };
  }
  if (!canInject || prng.chance(0.3)) {
    const early = prng.chance(0.2);
    return { kind: "random", lines: early ? prng.between(0, 3) : prng.between(4, 500) };
  }
  const point = prng.pick(pointNames);
  const nth = prng.between(1, points[point].often);
  if (prng.chance(0.75)) return { kind: "point", point, nth };
  return { kind: "error", point, nth, error: prng.pick(["EIO", "ENOSPC"]) };
}

/** strace is there and may trace; else there are kills at random only, and whoever runs this must be told. */
export const canInject =
  spawnSync("strace", ["-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"], {
    stdio: "ignore",
  }).status === 0;

/** Adds what the kills so far were to what there was. */
export function addCounts(to: Counts, counts: Counts): void {
  for (const kind of ["random", "step", "point", "error", "missed"] as const)
    to[kind] += counts[kind];
}

/** How many lives ended how: at the step, point or error that was meant, or later because they did not come to it. */
export interface Counts {
  random: number;
  step: number;
  point: number;
  error: number;
  missed: number;
}

interface Ended {
  readonly lines: readonly string[];
  readonly errors: string;
  /** By the injected signal or error, not by us because it took too long. */
  readonly byItself: boolean;
}

function runChild(
  directory: string,
  life: number,
  seed: number,
  how: How,
  runtime: Runtime,
): Promise<Ended> {
  const child = runCommand(runtime, resolve(import.meta.dirname, "child.ts"), [
    directory,
    String(life),
    String(seed),
    ...(how.kind === "step" ? [`${how.step}:${how.nth}`] : []),
  ]);
  const command = [child.command, ...child.args];
  if (how.kind === "point" || how.kind === "error") {
    const { calls } = points[how.point];
    const what = how.kind === "point" ? "signal=KILL" : `error=${how.error}`;
    const inject = `inject=${calls}:${what}:when=${how.nth}`;
    const quiet = ["-f", "-qq", "-o", "/dev/null", "-e", "signal=none"];
    command.unshift("strace", ...quiet, "-e", `trace=${calls}`, "-e", inject);
  }
  return new Promise((done) => {
    const [program, ...args] = command as [string, ...string[]];
    const started = spawn(program, args, {
      cwd: resolve(import.meta.dirname, "../.."),
      stdio: ["ignore", "pipe", "pipe"],
    });
    const lines: string[] = [];
    let rest = "";
    let errors = "";
    let killed = false;
    const kill = (): void => {
      killed = true;
      // The tracer dies with its tracee, not the other way round.
      const pid = Number(/^pid (\d+)$/.exec(lines[0] ?? "")?.[1] ?? started.pid);
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It ended meanwhile.
      }
    };
    const timer = setTimeout(kill, lifeMsMax);
    const linesEnough = how.kind === "random" ? how.lines : linesMax;
    started.stdout.setEncoding("utf8").on("data", (text: string) => {
      const parts = (rest + text).split("\n");
      rest = parts.pop() ?? "";
      lines.push(...parts);
      if (!killed && lines.length > linesEnough) kill();
    });
    started.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text));
    started.once("close", () => {
      clearTimeout(timer);
      done({ lines, errors, byItself: !killed });
    });
  });
}

/** Lives one after the other on one directory, so that each starts on what the crash before left. */
export class CrashRun {
  readonly directory = fs.mkdtempSync(join(tmpdir(), "conflux-crash-"));
  readonly ledger = new Ledger();
  readonly #prng: Prng;
  readonly #seed: number;
  #life = 0;
  readonly counts: Counts = { random: 0, step: 0, point: 0, error: 0, missed: 0 };

  constructor(seed: number) {
    this.#seed = seed;
    this.#prng = new Prng(seed);
  }

  /** @returns how it ended, and what is wrong with what it left */
  async crash(runtime: Runtime): Promise<{ how: How; complaints: readonly string[] }> {
    const how = drawHow(this.#prng);
    this.#life += 1;
    const data = join(this.directory, "data");
    const { lines, errors, byItself } = await runChild(
      data,
      this.#life,
      this.#seed * 1000 + this.#life,
      how,
      runtime,
    );
    this.counts[how.kind === "random" || byItself ? how.kind : "missed"] += 1;
    for (const line of lines) this.ledger.take(line);
    const complaints: string[] = [];
    const fatal = lines.find((line) => line.startsWith("fatal"));
    if (fatal !== undefined && how.kind !== "error") complaints.push(fatal);
    if (
      how.kind === "error" &&
      mustEnd.includes(how.point) &&
      !byItself &&
      lines.length <= linesMax
    )
      complaints.push(`It did not end: ${lines.at(-1)}`);
    // Ended by itself without an error injected: a fault of ours.
    if (how.kind === "random" && byItself) complaints.push(`It ended by itself: ${errors}`);
    complaints.push(...(await this.#check(data)));
    return { how, complaints };
  }

  /** On a copy: the next life starts on what the crash left, not on what the check made of it. */
  async #check(data: string): Promise<string[]> {
    if (!fs.existsSync(data)) return [];
    const copy = join(this.directory, "copy");
    fs.cpSync(data, copy, { recursive: true, filter: (path) => !path.endsWith(".sock") });
    try {
      return await complaintsAfterCrash(copy, this.ledger);
    } finally {
      fs.rmSync(copy, { recursive: true, force: true });
    }
  }

  close(): void {
    fs.rmSync(this.directory, { recursive: true, force: true });
  }
}
