/**
 * Assertions stay on in production: a broken invariant must stop the replica it was found in, never be carried on with.
 */

/** A broken invariant: a mistake in this program, never in its input. */
export class AssertionError extends Error {
  override readonly name = "AssertionError";
}

export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** Closes an exhaustive switch; the compiler proves that it is never reached. */
export function unreachable(value: never): never {
  throw new AssertionError(`Unreachable: ${String(value)}`);
}

/** Log indexes, terms and revisions are plain numbers; past 2^53 they would lose steps silently. */
export function assertSafeInteger(value: number, name: string): void {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new AssertionError(`${name} is not a safe integer: ${value}`);
}
