/**
 * Plants one bug at a time into a copy of the sources and lets the tests and the simulator look for it. A suite that
 * finds nothing in broken code says nothing about sound code.
 *
 * The working tree is never touched: everything happens in a temporary copy, in processes of its own that are ended when
 * they take too long.
 */
import { spawn } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";

export type Killer =
  /** `bun test` over these files, or only over what matches `name`. */
  | { readonly kind: "test"; readonly files: readonly string[]; readonly name?: string }
  /** Seeds of the simulator, stopping at the first that breaks something. */
  | { readonly kind: "sim"; readonly seeds: number; readonly from: number };

export interface Mutation {
  readonly id: string;
  /** Rule of the research's checklist that the bug breaks. */
  readonly rule: string;
  /** What goes wrong, in the words of somebody who would report it. */
  readonly breaks: string;
  readonly file: string;
  /** Stands in the file exactly once. */
  readonly find: string;
  readonly replace: string;
  /** Tried in this order until one of them notices. */
  readonly killers: readonly Killer[];
}

export interface Verdict {
  readonly killed: boolean;
  /** Test name, or seed and broken invariant. */
  readonly by: string;
  /** Of the test that noticed; null for a seed, and for what nobody noticed. */
  readonly file: string | null;
  readonly ms: number;
}

type Found = Pick<Verdict, "by" | "file">;

const TEST_TIMEOUT_MS = 300_000;
const SIM_TIMEOUT_MS = 900_000;
const OUTPUT_MAX = 4 * 1024 * 1024;

export const root = path.resolve(import.meta.dirname, "../..");

/** @returns the file's text with the bug in it; throws when the place is not there exactly once */
export function plant(source: string, mutation: Mutation): string {
  const { id, file, find, replace } = mutation;
  const places = source.split(find).length - 1;
  if (places !== 1)
    throw new Error(
      `Cannot plant ${id}: its text stands ${places} times in ${file}; adapt test/negative/mutations.ts`,
    );
  if (find === replace) throw new Error(`Cannot plant ${id}: it changes nothing`);
  return source.replace(find, () => replace);
}

/** Throws when places in the sources are gone or ambiguous, and names them all. */
export function checkPlaces(mutations: readonly Mutation[]): void {
  const complaints: string[] = [];
  for (const mutation of mutations) {
    try {
      plant(readFileSync(path.join(root, mutation.file), "utf8"), mutation);
    } catch (error) {
      complaints.push(error instanceof Error ? error.message : String(error));
    }
  }
  if (complaints.length > 0) throw new Error(complaints.join("\n"));
}

/** A copy of what the killers need. Dependencies are linked, not copied. */
export class Greenhouse {
  readonly folder: string;

  constructor() {
    this.folder = mkdtempSync(path.join(tmpdir(), "negative-"));
    for (const name of ["src", "test"])
      cpSync(path.join(root, name), path.join(this.folder, name), { recursive: true });
    for (const name of ["package.json", "tsconfig.json", "bunfig.toml"])
      cpSync(path.join(root, name), path.join(this.folder, name));
    symlinkSync(path.join(root, "node_modules"), path.join(this.folder, "node_modules"));
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Plants the bug, lets its killers loose one after the other, and restores the file. */
  async try(mutation: Mutation): Promise<Verdict> {
    const file = path.join(this.folder, mutation.file);
    const sound = readFileSync(file, "utf8");
    writeFileSync(file, plant(sound, mutation));
    const startedAt = performance.now();
    try {
      for (const killer of mutation.killers) {
        const found = await this.unleash(killer);
        if (found !== null)
          return { killed: true, ...found, ms: Math.round(performance.now() - startedAt) };
      }
      const ms = Math.round(performance.now() - startedAt);
      return { killed: false, by: "nothing", file: null, ms };
    } finally {
      writeFileSync(file, sound);
    }
  }

  /** @returns what the killer found, or null when it passes */
  async unleash(killer: Killer): Promise<Found | null> {
    const bun = path.join(root, "node_modules/.bin/bun");
    if (killer.kind === "test") {
      // With a path before it bun takes the file itself and not everything of a similar name.
      const files = killer.files.map((file) => `./${file}`);
      const filter = killer.name === undefined ? [] : ["--test-name-pattern", killer.name];
      // A machine that is busy with something else must not be what kills.
      const args = ["test", "--bail", "--timeout", String(TEST_TIMEOUT_MS), ...filter, ...files];
      const { code, output } = await run(bun, args, this.folder, TEST_TIMEOUT_MS);
      if (code === 0) return null;
      if (code === null) return { by: `time-out of ${killer.files.join(", ")}`, file: null };
      const error = (): string => `an error in ${killer.files.join(", ")}: ${firstError(output)}`;
      return failedTest(output) ?? { by: error(), file: null };
    }
    const args = ["test/sim/main.ts", "--stop-at-first", "--failures-to", ".conflux/sim"];
    const seeds = ["--seeds", String(killer.seeds), "--from", String(killer.from)];
    const { code, output } = await run(bun, [...args, ...seeds], this.folder, SIM_TIMEOUT_MS);
    if (code === 0) return null;
    const by =
      code === null
        ? "time-out of the simulation"
        : (failedSeed(output, killer.from) ?? `an error in the simulation: ${firstError(output)}`);
    return { by, file: null };
  }
}

/** One test alone, by the name that a run of `bun test` gave it. */
export function killerNamed(file: string, by: string): Killer {
  const parts = by.split(" > ").map((part) => part.replaceAll(/[^\w ]/g, "."));
  return { kind: "test", files: [file], name: parts.join(".*") };
}

interface Ended {
  /** Null when it was ended for taking too long. */
  readonly code: number | null;
  readonly output: string;
}

function run(command: string, args: string[], cwd: string, timeoutMs: number): Promise<Ended> {
  return new Promise((resolve, reject) => {
    // A group of its own, so that ending it ends what it started too.
    const child = spawn(command, args, {
      cwd,
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: "0" },
    });
    let output = "";
    let late = false;
    const take = (chunk: Buffer): void => {
      if (output.length < OUTPUT_MAX) output += chunk.toString("utf8");
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    const timer = setTimeout(() => {
      late = true;
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    }, timeoutMs);
    child.on("error", (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      resolve({ code: late ? null : (code ?? 1), output });
    });
  });
}

function failedTest(output: string): Found | null {
  const found = /^\(fail\) (.*?)(?: \[[\d.]+m?s\])?$/m.exec(output);
  if (found === null) return null;
  // Results stand below the file they are of.
  const file = [...output.slice(0, found.index).matchAll(/^(test\/\S+\.test\.ts):$/gm)].at(-1)?.[1];
  return { by: found[1] as string, file: file ?? null };
}

function failedSeed(output: string, from: number): string | null {
  const found = /^seed (\d+) broke \d+ invariants:\n\s+(.*)$/m.exec(output);
  if (found === null) return null;
  const [, seed, violation] = found as unknown as [string, string, string];
  const count = Number(seed) - from + 1;
  return `seed ${seed} (the ${ordinal(count)} tried): ${violation}`;
}

function firstError(output: string): string {
  const found = /^.*(?:error|panic).*$/im.exec(output);
  return (found?.[0] ?? output.slice(-200)).trim();
}

function ordinal(count: number): string {
  const teens = count % 100 >= 11 && count % 100 <= 13;
  const suffix = teens ? "th" : (["th", "st", "nd", "rd"][count % 10] ?? "th");
  return `${count}${suffix}`;
}
