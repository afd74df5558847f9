/**
 * What a crash may meet in the middle: a tenant that comes back from a backup, and an environment whose rows are replaced
 * as a whole, as those of a follower that gets a snapshot. What child.ts does and what check.ts looks for.
 */
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { join } from "node:path";
import type { Environment } from "../../src/host/ports.ts";
import { syncDirectorySync } from "../../src/store/disk.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import { textOf } from "./stack.ts";

/** Places in both where the child may be told to end itself, and how often it surely comes there in a second or two. */
export const steps = {
  "restore begun": 6,
  "restore part": 30,
  "restore finishing": 6,
  "restore finished": 6,
  "install part": 60,
  "install begun": 15,
  "install done": 15,
} as const;
export type Step = keyof typeof steps;

/** Rows that a restore brings and that nothing changes afterwards: contents, by key. */
const restoredFamilies = ["cfg/", "txt/", "ver/"];

/** In order of the keys. */
export function digestOf(rows: Iterable<readonly [key: string, row: unknown]>): string {
  const hash = createHash("sha256");
  for (const [key, row] of rows)
    if (restoredFamilies.some((family) => key.startsWith(family)))
      hash.update(`${key} ${JSON.stringify(row)}\n`);
  return hash.digest("hex").slice(0, 16);
}

const installations = "installations";
const environmentName = "follower.1.1";
const rowsEach = 80;

/** It is no replica: it stands beside the tenants' environments, where no node looks. */
export function openInstallations(directory: string): Environment {
  const data = join(directory, installations);
  fs.mkdirSync(data, { recursive: true });
  syncDirectorySync(directory);
  return new LmdbEnvironments({ data, rowsPerTurn: 16 }).open(environmentName);
}

export function hasInstallations(directory: string): boolean {
  return fs.existsSync(join(directory, installations, "tenants", environmentName, "data.mdb"));
}

export function generationMeta(generation: number): Uint8Array {
  return new TextEncoder().encode(String(generation));
}

/** 0: none was installed yet. */
export function generationOf(environment: Environment): number {
  const meta = environment.meta();
  return meta === null ? 0 : Number(new TextDecoder().decode(meta));
}

/** Of two generations some keys are the same and some are not. */
export function rowsOfGeneration(generation: number): (readonly [key: string, text: string])[] {
  return Array.from({ length: rowsEach }, (_, n) => {
    const number = n + (generation % 3) * 20;
    return [`row/${String(number).padStart(4, "0")}`, textOf(`${generation}.${number}`, n * 12)];
  });
}
