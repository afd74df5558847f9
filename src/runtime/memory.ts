/**
 * Memory that is of no more use goes back to the system: LMDB's, and Bun's.
 *
 * LMDB allocates a list of dirty pages of 2 MiB per open environment, of which it touches hardly anything. glibc takes
 * such a block from the system, untouched, and raises its threshold for doing so when the first one is freed: from then
 * on every environment costs 2 MiB of heap for good (measured: 1,000 environments closed and opened again 2,300 MB
 * resident; with the threshold held, 3 MB more than the first time). A threshold that is set is not raised.
 *
 * Bun and Deno can call mallopt(3); Node cannot, and has to be told by its environment (environment.ts).
 */
import process from "node:process";
import { bun, deno } from "./runtime.ts";

// --- closed environments --------------------------------------------------------------------------------------------------

/** What glibc reads when a process begins (mallopt(3)). */
export const mallocVariable = "MALLOC_MMAP_THRESHOLD_";
/** Below LMDB's smallest large list, above what a runtime allocates often. */
export const mallocThresholdBytes = 256 * 1024;
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
  if (process.platform !== "linux" || process.env[mallocVariable] !== undefined) return;
  try {
    if (bun !== undefined) {
      const module = "bun:ffi";
      const ffi = (await import(module)) as BunFfi;
      const { symbols } = ffi.dlopen(library, {
        mallopt: { args: ["i32", "i32"], returns: "i32" },
      });
      symbols.mallopt(parameter, mallocThresholdBytes);
    } else if (deno !== undefined) {
      const { symbols } = (deno as unknown as DenoFfi).dlopen(library, {
        mallopt: { parameters: ["i32", "i32"], result: "i32" },
      });
      symbols.mallopt(parameter, mallocThresholdBytes);
    }
  } catch {
    // Another C library, whose threshold does not move, or no right to ask: memory is the only price.
  }
}

// --- what a burst left behind ---------------------------------------------------------------------------------------------

const MIB = 2 ** 20;
const lookMs = 500;
/** Less than this is not worth a collection. */
const garbageBytesMin = 16 * MIB;
/** A heap that changed by less since the last look is at rest for so many looks. */
const quietBytes = MIB / 4;
const quietLooks = 4;
/**
 * A whole collection stops the process for about 0.6 ms for each MiB of cells in use: beyond this that is too long. Texts and
 * buffers beside them cost it next to nothing (100 MB of them 2 ms), and of a bulk they are most.
 */
const usedCellsMax = 192 * MIB;

/**
 * When to collect the whole heap. JavaScriptCore collects its old generation when the heap is some times as large as what
 * survived the last time, and never while nothing is allocated; what lived for a moment too long in a burst (rows on their
 * way to a checkpoint, parts of a restore) stays until then. Measured on Bun 1.4.5: 40 MiB restored left a heap of 185 MB
 * of which 41 were in use, 20,000 tenants made in bulk 98 of 30, both for as long as nobody asked for more.
 */
export class GarbageWatch {
  /** What was in use after the last collection, or less. */
  #used = Infinity;
  /** Of that, what a collection goes through. */
  #cells = Infinity;
  #last = 0;
  #quiet = 0;

  /**
   * Call it every `lookMs`.
   * @param heapBytes now
   * @param cellBytes of them without what texts and buffers hold
   * @returns whether to collect because the heap is at rest
   */
  look(heapBytes: number, cellBytes = heapBytes): boolean {
    const isQuiet = Math.abs(heapBytes - this.#last) < quietBytes;
    this.#quiet = isQuiet ? this.#quiet + 1 : 0;
    this.#last = heapBytes;
    return this.#isWorthIt(heapBytes, cellBytes) && this.#quiet >= quietLooks;
  }

  /** Much is of no more use just now, as somebody knows. @returns whether to collect */
  dropped(heapBytes: number, cellBytes = heapBytes): boolean {
    return this.#isWorthIt(heapBytes, cellBytes);
  }

  #isWorthIt(heapBytes: number, cellBytes: number): boolean {
    this.#used = Math.min(this.#used, heapBytes);
    this.#cells = Math.min(this.#cells, cellBytes);
    return heapBytes - this.#used >= garbageBytesMin && this.#cells <= usedCellsMax;
  }

  collected(heapBytes: number, cellBytes = heapBytes): void {
    this.#used = heapBytes;
    this.#cells = cellBytes;
  }
}

/**
 * Collects on Bun what it would leave; Node and Deno give memory back of themselves.
 * @returns to be called when much was dropped while work goes on
 */
export async function collectGarbage(): Promise<() => void> {
  if (bun === undefined) return () => {};
  const module = "bun:jsc";
  const jsc = (await import(module)) as { fullGC(): number };
  const watch = new GarbageWatch();
  /** Null: no descriptor is left to look with, since sockets have them all just now. */
  const heap = (): [bytes: number, cells: number] | null => {
    try {
      const { heapUsed, external } = process.memoryUsage();
      return [heapUsed, heapUsed - external];
    } catch {
      return null;
    }
  };
  const collect = (): void => {
    jsc.fullGC();
    const found = heap();
    if (found !== null) watch.collected(...found);
  };
  setInterval(() => {
    const found = heap();
    if (found !== null && watch.look(...found)) collect();
  }, lookMs).unref();
  return () => {
    const found = heap();
    if (found !== null && watch.dropped(...found)) collect();
  };
}
