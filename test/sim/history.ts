/** What clients of a run saw, handed to the linearizability checker, each config by itself. */
import { check, describeResult } from "../linearizability/checker.ts";
import { unknown, type Operation } from "../linearizability/history.ts";
import {
  versionedRegister,
  type VersionedInput,
  type VersionedOutput,
} from "../linearizability/models.ts";

export interface RegisterOperation {
  readonly client: number;
  /** Tenant and config. */
  readonly key: string;
  /** Virtual ms. */
  readonly call: number;
  /** Null: no answer, so it may have taken effect at any time after the call, or never. */
  end: number | null;
  /** Null: certainly did not happen. */
  op:
    | { readonly kind: "publish"; readonly value: string; readonly revision: number | null }
    | { readonly kind: "read"; readonly value: string | null; readonly revision: number }
    | null;
}

/**
 * @param created revision of each config when it was made, without content
 * @param published what was published in the end, at which revision: it decides what became of changes that nobody
 *   answered, where it is known, and leaves the search little to try
 * @returns what is wrong, in words; a search that gave up counts as wrong, or nobody would notice
 */
export function checkHistory(
  history: readonly RegisterOperation[],
  created: ReadonlyMap<string, number>,
  published: ReadonlyMap<string, ReadonlyMap<string, number>> = new Map(),
): string[] {
  const keys = new Map<string, Operation<VersionedInput, VersionedOutput>[]>();
  for (const operation of history) {
    const judged = asOperation(operation, published.get(operation.key));
    if (judged === null) continue;
    const { key } = operation;
    keys.set(key, [...(keys.get(key) ?? []), judged]);
  }
  const violations: string[] = [];
  for (const [key, operations] of keys) {
    const model = versionedRegister({ value: null, revision: created.get(key) ?? 0 });
    const result = check(model, operations);
    if (result.verdict !== "linearizable")
      violations.push(`linearizability of ${key}: ${describeResult(result)}`);
  }
  return violations;
}

function asOperation(
  { client, key, call, end, op }: RegisterOperation,
  published: ReadonlyMap<string, number> | undefined,
): Operation<VersionedInput, VersionedOutput> | null {
  if (op === null) return null;
  const times = { client, calledAt: call, returnedAt: end ?? Infinity };
  if (op.kind === "read") {
    if (end === null) return null;
    const { value, revision } = op;
    return { ...times, input: { op: "read", config: key }, output: { value, revision } };
  }
  const { value } = op;
  const revision = op.revision ?? published?.get(value) ?? null;
  // Never made. Whoever saw it all the same saw what nobody published.
  if (revision === null && published !== undefined) return null;
  return { ...times, input: { op: "publish", config: key, value }, output: revision ?? unknown };
}
