/**
 * What a run over the planted bugs found so far. It can go on from a file, but only over what did not change meanwhile:
 * a verdict holds for the sources it was made on, and the test that gave it for the bytes that passed without the bug.
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import type { Killer, Mutation, Verdict } from "./planting.ts";

interface Kept {
  /** Of the sources and of what tests and simulator share. */
  readonly sources: string;
  /** Test files, with the hash of what passed on the sound sources, and ranges of seeds. */
  readonly passed: [string, string][];
  /** By mutation, with the hash of it and of the test file that noticed. */
  readonly verdicts: [id: string, hash: string, verdict: Verdict][];
}

export class Results {
  readonly #root: string;
  readonly #file: string | null;
  readonly #sources: string;
  readonly #passed = new Map<string, string>();
  readonly #verdicts = new Map<string, { hash: string; verdict: Verdict }>();

  /** @param file where they are kept, and taken from when it is there; null keeps them in memory */
  constructor(root: string, file: string | null) {
    this.#root = root;
    this.#file = file;
    this.#sources = sourcesOf(root);
    if (file === null || !existsSync(file)) return;
    const kept = JSON.parse(readFileSync(file, "utf8")) as Kept;
    if (kept.sources !== this.#sources) return;
    for (const [key, hash] of kept.passed) this.#passed.set(key, hash);
    for (const [id, hash, verdict] of kept.verdicts) this.#verdicts.set(id, { hash, verdict });
  }

  /** @returns null when it has to be planted: never was, survived, or is not what it was */
  verdictOf(mutation: Mutation): Verdict | null {
    const kept = this.#verdicts.get(mutation.id);
    if (kept === undefined || !kept.verdict.killed) return null;
    if (kept.hash !== this.#hashOf(mutation, kept.verdict)) return null;
    return kept.verdict.file === null || this.#hasPassed(kept.verdict.file) ? kept.verdict : null;
  }

  keep(mutation: Mutation, verdict: Verdict): void {
    this.#verdicts.set(mutation.id, { hash: this.#hashOf(mutation, verdict), verdict });
    this.#write();
  }

  /** @returns what of these killers has not yet passed on the sound sources as they are, each once, room by room */
  unproved(killers: readonly Killer[]): Killer[] {
    const left: Killer[] = [];
    const seen = new Set<string>();
    const seeds = new Map<number, number>();
    for (const killer of killers) {
      if (killer.kind === "sim") {
        seeds.set(killer.from, Math.max(seeds.get(killer.from) ?? 0, killer.seeds));
        continue;
      }
      const files = killer.files.filter((file) => !seen.has(file) && !this.#hasPassed(file));
      for (const file of files) seen.add(file);
      if (files.length > 0) left.push({ kind: "test", files });
    }
    for (const [from, count] of seeds)
      if (Number(this.#passed.get(`seeds from ${from}`) ?? 0) < count)
        left.push({ kind: "sim", from, seeds: count });
    return left;
  }

  /** The killer passes on the sound sources. */
  prove(killer: Killer): void {
    if (killer.kind === "sim") this.#passed.set(`seeds from ${killer.from}`, String(killer.seeds));
    else for (const file of killer.files) this.#passed.set(file, this.#hashOfFile(file));
    this.#write();
  }

  #hasPassed(file: string): boolean {
    return this.#passed.get(file) === this.#hashOfFile(file);
  }

  /** Of the bug and of the test that noticed it. */
  #hashOf({ file, find, replace }: Mutation, verdict: Verdict): string {
    const test = verdict.file === null ? "" : this.#hashOfFile(verdict.file);
    return hashOf(JSON.stringify([file, find, replace, test]));
  }

  #hashOfFile(file: string): string {
    const name = path.join(this.#root, file);
    return existsSync(name) ? hashOf(readFileSync(name)) : "gone";
  }

  #write(): void {
    if (this.#file === null) return;
    const verdicts = [...this.#verdicts].map(
      ([id, { hash, verdict }]) => [id, hash, verdict] as Kept["verdicts"][number],
    );
    const kept: Kept = { sources: this.#sources, passed: [...this.#passed], verdicts };
    writeFileSync(this.#file, JSON.stringify(kept));
  }
}

function hashOf(data: string | Buffer): string {
  return createHash("sha256").update(data).digest("hex");
}

/** Everything that can change what a killer finds, but for the bugs and the test files, which are looked at one by one. */
function sourcesOf(root: string): string {
  const hash = createHash("sha256");
  for (const folder of ["src", "test"])
    for (const entry of readdirSync(path.join(root, folder), {
      recursive: true,
      encoding: "utf8",
    }).sort()) {
      if (!/\.tsx?$/.test(entry) || entry.endsWith(".test.ts")) continue;
      const name = path.join(folder, entry);
      if (name.startsWith(path.join("test", "negative"))) continue;
      hash
        .update(`${name}\0`)
        .update(readFileSync(path.join(root, name)))
        .update("\0");
    }
  return hash.digest("hex");
}
