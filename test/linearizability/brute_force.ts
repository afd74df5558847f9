/**
 * What the checker is checked with, sharing nothing with it but the shape of histories: sequential objects that answer
 * instead of judging answers, a search through every order, and a judge of one order.
 */
import { unknown, type Operation } from "./history.ts";
import type {
  RegisterInput,
  RegisterOutput,
  Versioned,
  VersionedInput,
  VersionedOutput,
} from "./models.ts";

/** All that may happen to the operation in the state. */
export type Sequential<State, Input, Output> = (
  state: State,
  input: Input,
) => readonly { readonly state: State; readonly output: Output }[];

export const sequentialRegister: Sequential<string | number, RegisterInput, RegisterOutput> = (
  state,
  input,
) => {
  if (input.op === "read") return [{ state, output: state }];
  if (input.op === "write") return [{ state: input.value, output: true }];
  return [state === input.from ? { state: input.to, output: true } : { state, output: false }];
};

/** More than the histories it is used on get to. */
const REVISION_MAX = 13;

/** One config. Every revision that the count of the others may have left it. */
export const sequentialVersioned: Sequential<Versioned, VersionedInput, VersionedOutput> = (
  state,
  input,
) => {
  if (input.op === "read") return [{ state, output: state }];
  const outcomes: { state: Versioned; output: number }[] = [];
  for (let revision = state.revision + 1; revision <= REVISION_MAX; revision++)
    outcomes.push({ state: { value: input.value, revision }, output: revision });
  return outcomes;
};

/** Tries the orders one by one, without any memory. */
export function bruteForce<State, Input, Output>(
  sequential: Sequential<State, Input, Output>,
  init: State,
  history: readonly Operation<Input, Output>[],
): boolean {
  const placeFrom = (state: State, left: readonly Operation<Input, Output>[]): boolean => {
    const firstReturn = Math.min(...left.map((operation) => operation.returnedAt));
    if (firstReturn === Infinity) return true;
    return left.some((operation) => {
      if (operation.calledAt > firstReturn) return false;
      const rest = left.filter((other) => other !== operation);
      return sequential(state, operation.input).some(
        (outcome) =>
          (operation.output === unknown || same(outcome.output, operation.output)) &&
          placeFrom(outcome.state, rest),
      );
    });
  };
  return placeFrom(init, history);
}

/** Complaints about an order that is said to serve the history. */
export function orderViolations<State, Input, Output>(
  model: {
    readonly init: State;
    step(state: State, input: Input, output: Output | typeof unknown): State | null;
  },
  history: readonly Operation<Input, Output>[],
  order: readonly Operation<Input, Output>[],
): string[] {
  const complaints: string[] = [];
  const placed = new Set(order);
  if (placed.size !== order.length) complaints.push("an operation has two places");
  for (const operation of history) {
    if (operation.returnedAt !== Infinity && !placed.has(operation))
      complaints.push(`the operation of ${operation.calledAt} has no place`);
  }
  let latestCall = -Infinity;
  let state: State | null = model.init;
  for (const operation of order) {
    latestCall = Math.max(latestCall, operation.calledAt);
    if (operation.returnedAt < latestCall)
      complaints.push(`the operation of ${operation.calledAt} comes after a later one`);
    if (state !== null) state = model.step(state, operation.input, operation.output);
    if (state === null) return [...complaints, `impossible: ${operation.calledAt}`];
  }
  return complaints;
}

/** The history as far as the given time: what had not returned by then might still have. */
export function until<Input, Output>(
  history: readonly Operation<Input, Output>[],
  time: number,
  including: "including" | "excluding",
): Operation<Input, Output>[] {
  return history
    .filter((operation) => operation.calledAt <= time)
    .map((operation) =>
      operation.returnedAt < time || (including === "including" && operation.returnedAt === time)
        ? operation
        : { ...operation, returnedAt: Infinity },
    );
}

function same(left: unknown, right: unknown): boolean {
  return left === right || JSON.stringify(left) === JSON.stringify(right);
}
