/** Opens and closes environments in rounds, and prints the private memory (KiB) after the first and the last round. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { completeEnvironment } from "../../src/runtime/environment.ts";
import { holdMallocThreshold } from "../../src/runtime/memory.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";

const ENVIRONMENTS = 100;
const ROUNDS = 4;

completeEnvironment();
await holdMallocThreshold();
const data = mkdtempSync(join(tmpdir(), "conflux-memory-"));
const environments = new LmdbEnvironments({ data });
const memory: number[] = [];
for (let round = 0; round < ROUNDS; round++) {
  const open = Array.from({ length: ENVIRONMENTS }, (_, at) => environments.open(`t${at}`));
  for (const environment of open) environment.get("row");
  for (const environment of open) await environment.close();
  const status = readFileSync("/proc/self/status", "utf8");
  memory.push(Number(/^RssAnon:\s+(\d+)/m.exec(status)?.[1]));
}
rmSync(data, { recursive: true });
process.stdout.write(`${memory[0]} ${memory.at(-1)}\n`);
