/**
 * `bun bench/soak.ts [DIR] [--cycles 50000]`: environments opened, read and closed again and again, and what is left of it.
 *
 * Back of the envelope: a closed environment owes nothing: its three descriptors, its mappings and its native memory
 * come back. What grows with the cycles is a leak; a plateau is the allocator's.
 */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setImmediate as turn } from "node:timers/promises";
import { parseArgs } from "node:util";
import { LmdbEnvironments } from "../src/store/environments.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { cycles: { type: "string", default: "50000" } },
});
const cycles = Number(values.cycles);
const environmentsCount = 50;

const directory = fs.mkdtempSync(join(positionals[0] ?? tmpdir(), "conflux-soak-"));
const environments = new LmdbEnvironments({ data: directory });
const started = performance.now();

function count(path: string): number {
  return path.endsWith("maps")
    ? fs.readFileSync(path, "utf8").split("\n").length
    : fs.readdirSync(path).length;
}

function report(done: number): void {
  const mebibytes = process.memoryUsage.rss() / 2 ** 20;
  const [files, maps] = [count("/proc/self/fd"), count("/proc/self/maps")];
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.log(
    `  ${String(done).padStart(6)} cycles, ${seconds.padStart(4)} s: ${mebibytes.toFixed(0).padStart(4)} MiB, ${files} descriptors, ${maps} mappings`,
  );
}

try {
  for (let n = 0; n < cycles; n++) {
    if (n % Math.ceil(cycles / 10) === 0) report(n);
    const environment = environments.open(`t${n % environmentsCount}`);
    environment.meta();
    environment.get("meta");
    await environment.close();
    // As a node does, which never runs for ever without coming back to its events.
    await turn();
  }
  report(cycles);
} finally {
  fs.rmSync(directory, { recursive: true, force: true });
}
