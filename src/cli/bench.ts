/**
 * `conflux bench`: what one machine gets out of the nodes at --url, in publishes and in reads. A figure to start from: the
 * client's own time is in it, and a tenant's quotas may be what is measured. Its configs are deleted in the end.
 */
import { Problem, type Admin, type Where } from "../sdk/admin.ts";

export interface BenchOptions {
  readonly connections: number;
  /** Of each of the two parts. */
  readonly seconds: number;
  /** Of each content, at least. */
  readonly bytes: number;
}

export interface BenchResult {
  readonly what: "publish" | "read";
  readonly done: number;
  readonly perSecond: number;
  /** Milliseconds; null when none was done. */
  readonly p50: number | null;
  readonly p99: number | null;
  /** By the code of the problem, or the name of the error. */
  readonly failed: Readonly<Record<string, number>>;
}

/** So long a client that was refused waits, if it is not told how long. */
const refusedMs = 100;

export async function bench(
  admin: Admin,
  where: Where,
  { connections, seconds, bytes }: BenchOptions,
  progress: (line: string) => void,
): Promise<readonly BenchResult[]> {
  const run = `bench-${Date.now().toString(36)}`;
  const names = Array.from({ length: connections }, (_, i) => `${run}-${i}`);
  // Content equal to the latest would be no change.
  const content = (count: number): string => `${count} `.padEnd(bytes, ".");
  try {
    await Promise.all(
      names.map((name) => admin.putConfig(where, name, { format: "text", content: content(0) })),
    );
    const part = async (
      what: BenchResult["what"],
      act: (name: string, count: number) => Promise<unknown>,
    ): Promise<BenchResult> => {
      progress(`${what} for ${seconds} s over ${connections} connections`);
      return measure(what, names, seconds, act);
    };
    return [
      await part("publish", (name, count) =>
        admin.publish(where, name, { content: content(count) }),
      ),
      await part("read", (name) => admin.value(where, name)),
    ];
  } finally {
    await Promise.allSettled(names.map((name) => admin.deleteConfig(where, name)));
  }
}

async function measure(
  what: BenchResult["what"],
  names: readonly string[],
  seconds: number,
  act: (name: string, count: number) => Promise<unknown>,
): Promise<BenchResult> {
  const took: number[] = [];
  const failed: Record<string, number> = {};
  const started = performance.now();
  const end = started + seconds * 1_000;
  await Promise.all(
    names.map(async (name) => {
      for (let count = 1; performance.now() < end; count++) {
        const began = performance.now();
        try {
          await act(name, count);
          took.push(performance.now() - began);
        } catch (error) {
          const code = error instanceof Problem ? error.code : "unreachable";
          failed[code] = (failed[code] ?? 0) + 1;
          await new Promise((resolve) => setTimeout(resolve, refusedMs));
        }
      }
    }),
  );
  const elapsed = (performance.now() - started) / 1_000;
  took.sort((a, b) => a - b);
  const quantile = (part: number): number | null => {
    const ms = took[Math.min(took.length - 1, Math.floor(took.length * part))];
    return ms === undefined ? null : Math.round(ms * 100) / 100;
  };
  return {
    what,
    done: took.length,
    perSecond: Math.round(took.length / elapsed),
    p50: quantile(0.5),
    p99: quantile(0.99),
    failed,
  };
}
