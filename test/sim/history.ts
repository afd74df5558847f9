/**
 * What clients saw, judged. Every publish that happened has a revision, and a read shows value and revision, so the
 * order of all operations on a key is known and linearizability is two checks: values fit revisions, and an operation
 * that began after another had ended is not before it. (The general checker is in test/linearizability.)
 */

export interface RegisterOperation {
  readonly client: number;
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

export function checkHistory(history: readonly RegisterOperation[]): string[] {
  const violations: string[] = [];
  const keys = new Map<string, RegisterOperation[]>();
  for (const operation of history) {
    keys.set(operation.key, [...(keys.get(operation.key) ?? []), operation]);
  }
  for (const [key, operations] of keys) violations.push(...checkKey(key, operations));
  return violations;
}

function checkKey(key: string, operations: readonly RegisterOperation[]): string[] {
  const violations: string[] = [];
  const values = new Map<number, string | null>();
  const calledAt = new Map<string, number>();
  for (const { op, call } of operations) {
    if (op?.kind !== "publish") continue;
    calledAt.set(op.value, call);
    if (op.revision === null) continue;
    const other = values.get(op.revision);
    if (other !== undefined)
      violations.push(`${key}: "${other}" and "${op.value}" both have revision ${op.revision}`);
    values.set(op.revision, op.value);
  }
  /** Ends in the order of time, with the highest revision known to be reached by then. */
  const ended = operations
    .filter(({ op, end }) => op !== null && end !== null && op.revision !== null)
    .map(({ op, end }) => ({ end: end as number, revision: (op as { revision: number }).revision }))
    .sort((left, right) => left.end - right.end);
  let reached = 0;
  const reachedBy = ended.map(({ end, revision }) => {
    reached = Math.max(reached, revision);
    return { end, reached };
  });
  for (const { op, call, client } of operations) {
    if (op === null || op.revision === null) continue;
    if (op.kind === "read" && op.value !== null) {
      const known = values.get(op.revision);
      if (known !== undefined && known !== op.value) {
        violations.push(
          `${key}: client ${client} read "${op.value}" at revision ${op.revision}, published was "${known}"`,
        );
      }
      // A publish of unknown outcome shows here that it happened, and when.
      if (known === undefined) values.set(op.revision, op.value);
      const published = calledAt.get(op.value);
      if (published === undefined)
        violations.push(`${key}: client ${client} read "${op.value}", which nobody published`);
    }
    const before = lastBefore(reachedBy, call);
    const stale = op.kind === "read" ? op.revision < before : op.revision <= before;
    if (stale) {
      violations.push(
        `${key}: client ${client} ${op.kind} at revision ${op.revision} began at ${call} after revision ${before} had been answered`,
      );
    }
  }
  return violations;
}

function lastBefore(reachedBy: readonly { end: number; reached: number }[], time: number): number {
  let low = 0;
  let high = reachedBy.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((reachedBy[middle] as { end: number }).end < time) low = middle + 1;
    else high = middle;
  }
  return low === 0 ? 0 : (reachedBy[low - 1] as { reached: number }).reached;
}
