/**
 * Memory of closed environments goes back to the system.
 *
 * LMDB allocates a list of dirty pages of 2 MiB per open environment, of which it touches hardly anything. glibc takes
 * such a block from the system, untouched, and raises its threshold for doing so when the first one is freed: from then
 * on every environment costs 2 MiB of heap for good (measured: 1,000 environments closed and opened again 2,300 MB
 * resident; with the threshold held, 3 MB more than the first time). A threshold that is set is not raised.
 *
 * Bun and Deno can call mallopt(3); Node cannot, and replaces itself by the same process with the variable that says it.
 */
import process from "node:process";
import { bun, deno } from "./runtime.ts";

const variable = "MALLOC_MMAP_THRESHOLD_";
/** Below LMDB's smallest large list, above what a runtime allocates often. */
const thresholdBytes = 256 * 1024;
/** M_MMAP_THRESHOLD of malloc.h. */
const parameter = -3;
const library = "libc.so.6";

interface BunFfi {
  dlopen(
    name: string,
    symbols: { mallopt: { args: readonly ["i32", "i32"]; returns: "i32" } },
  ): { readonly symbols: { mallopt(parameter: number, value: number): number } };
}

interface DenoFfi {
  dlopen(
    name: string,
    symbols: { mallopt: { parameters: readonly ["i32", "i32"]; result: "i32" } },
  ): { readonly symbols: { mallopt(parameter: number, value: number): number } };
}

/** Call before anything large is allocated. Elsewhere than on Linux with glibc it does nothing. */
export async function holdMallocThreshold(): Promise<void> {
  if (process.platform !== "linux" || process.env[variable] !== undefined) return;
  try {
    if (bun !== undefined) {
      const module = "bun:ffi";
      const ffi = (await import(module)) as BunFfi;
      const { symbols } = ffi.dlopen(library, {
        mallopt: { args: ["i32", "i32"], returns: "i32" },
      });
      symbols.mallopt(parameter, thresholdBytes);
    } else if (deno !== undefined) {
      const { symbols } = (deno as unknown as DenoFfi).dlopen(library, {
        mallopt: { parameters: ["i32", "i32"], result: "i32" },
      });
      symbols.mallopt(parameter, thresholdBytes);
    } else {
      replaceNode();
    }
  } catch {
    // Another C library, whose threshold does not move, or no right to ask: memory is the only price.
  }
}

function replaceNode(): void {
  const node = process as { execve?(file: string, args: string[], env: object): never };
  const args = [process.execPath, "--disable-warning=ExperimentalWarning", ...process.execArgv];
  node.execve?.(process.execPath, [...args, ...process.argv.slice(1)], {
    ...process.env,
    [variable]: String(thresholdBytes),
  });
}
