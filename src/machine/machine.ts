/**
 * The replicated state machine of a tenant: `apply` takes the state and a command and gives an outcome, the same on
 * every replica. No clock, no chance, no parsing of content: what needs those was done before the command was proposed.
 */
import type { HistoryRow } from "./rows.ts";
import type { Command, Outcome } from "./command.ts";

/** Rows by key, synchronously. Rows must not be changed in place. */
export interface StateView {
  get<T = unknown>(key: string): T | undefined;
  /** Ascending (or descending) over gte ≤ key < lt. */
  range<T = unknown>(range: {
    gte: string;
    lt: string;
    reverse?: boolean;
  }): Iterable<readonly [key: string, row: T]>;
}

export interface StateTransaction extends StateView {
  put(key: string, row: unknown): void;
  delete(key: string): void;
}

export interface Applied {
  readonly outcome: Outcome;
  /** What watchers are told; null when nothing changed. */
  readonly commit: HistoryRow | null;
}

/** Applies one command. Writes go to `state` only if the outcome is ok (all or nothing). */
export declare function apply(state: StateTransaction, command: Command): Applied;
