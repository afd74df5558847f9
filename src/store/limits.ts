/**
 * How many LMDB environments this process may hold open. Measured: an environment takes three file descriptors and three
 * to four memory mappings, and lmdb ends Node and Bun with a segmentation fault when descriptors run out. So the number
 * is fixed before the first one is opened, and half of the descriptors stay for sockets and the journal.
 */
import { readFileSync } from "node:fs";

export const descriptorsPerEnvironment = 3;
const mappingsPerEnvironment = 4;
/** What a runtime with its threads, code and heap maps by itself; Deno and Node stay below 2,000. */
const mappingsReserved = 8192;
/** Where the limits cannot be read: the smallest defaults in use. */
const fallbackDescriptors = 256;
const fallbackMappings = 65_530;

export interface ProcessLimits {
  readonly descriptors: number;
  readonly mappings: number;
}

export function readProcessLimits(): ProcessLimits {
  const limits = readText("/proc/self/limits");
  const soft = /^Max open files\s+(\d+|unlimited)/m.exec(limits)?.[1];
  const mappings = Number.parseInt(readText("/proc/sys/vm/max_map_count"), 10);
  return {
    descriptors:
      soft === undefined
        ? fallbackDescriptors
        : soft === "unlimited"
          ? Number.MAX_SAFE_INTEGER
          : Number(soft),
    mappings: Number.isNaN(mappings) ? fallbackMappings : mappings,
  };
}

export function environmentCap({ descriptors, mappings }: ProcessLimits): number {
  const byDescriptors = Math.floor(descriptors / 2 / descriptorsPerEnvironment);
  const byMappings = Math.floor((mappings - mappingsReserved) / mappingsPerEnvironment);
  return Math.max(1, Math.min(byDescriptors, byMappings));
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    // Not Linux, or not allowed: the fallbacks hold.
    return "";
  }
}
