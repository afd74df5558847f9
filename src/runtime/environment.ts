/**
 * What a runtime reads from its environment before it runs a line of ours. The launchers of this repo set it
 * (infra/bootstrap.mjs, infra/Dockerfile). A node that was started without replaces itself by the same program with it, as
 * the same process: its id, its parent and its standard streams stay. What the operator set wins.
 */
import process from "node:process";
import { mallocThresholdBytes, mallocVariable } from "./memory.ts";
import { bun, runtime, type RuntimeName } from "./runtime.ts";

/** By runtime; the reasons are in docs/adr/0017. */
export const runtimeVariables: Readonly<Record<RuntimeName, Readonly<Record<string, string>>>> = {
  bun: {
    // JavaScriptCore's last compiler comes at 64,000 otherwise: it costs more than all others, and gains a twentieth.
    BUN_JSC_thresholdForFTLOptimizeAfterWarmUp: "400000",
    // Its allocator looks every 100 ms otherwise for holes in pages in use that could go back to the system.
    MIMALLOC_PURGE_HOLES_MIN_INTERVAL: "500",
  },
  deno: {},
  // Memory of closed environments goes back to the system: memory.ts, which tells Bun and Deno while they run.
  node: { [mallocVariable]: String(mallocThresholdBytes) },
};

/** Bun ends with an error where it does not know an option of its engine, and says that they may change. */
const bunVersions = /^1\.4\./;

/** Call before anything is opened or begun. Returns where nothing is missing, or where it cannot be helped. */
export function completeEnvironment(): void {
  if (process.platform !== "linux") return;
  if (bun !== undefined && !bunVersions.test(bun.version)) return;
  const wanted = runtimeVariables[runtime.name];
  if (Object.keys(wanted).every((name) => process.env[name] !== undefined)) return;
  const quiet = runtime.name === "node" ? ["--disable-warning=ExperimentalWarning"] : [];
  const args = [process.execPath, ...quiet, ...process.execArgv, ...process.argv.slice(1)];
  const self = process as { execve?(file: string, args: string[], env: object): never };
  try {
    self.execve?.(process.execPath, args, { ...wanted, ...process.env });
  } catch {
    // No right to: it only costs more.
  }
}
