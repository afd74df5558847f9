/**
 * Histories of a real object are accepted, however its operations overlap; and on small histories, mostly spoilt ones,
 * the checker says what a search through every order says. Each verdict must really have been asked for.
 */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  bruteForce,
  orderViolations,
  sequentialRegister,
  sequentialVersioned,
  until,
  type Sequential,
} from "./brute_force.ts";
import { check, describeResult, type Model } from "./checker.ts";
import { unknown, type Operation } from "./history.ts";
import {
  register,
  versionedRegister,
  type RegisterInput,
  type RegisterOutput,
  type Versioned,
  type VersionedInput,
  type VersionedOutput,
} from "./models.ts";

/** An operation that takes effect at its place in the list; called before it, returned after it, or lost. */
interface Planned<Input> {
  readonly input: Input;
  readonly before: number;
  readonly after: number;
  /** "dropped" neither takes effect nor returns; "mute" returns without content. */
  readonly fate: "returned" | "lost" | "dropped" | "mute";
  /** Which of the possible outcomes it is. */
  readonly choice: number;
}

const EVERY = 10;

const planned = <Input>(
  input: fc.Arbitrary<Input>,
  overlap: number,
): fc.Arbitrary<Planned<Input>> =>
  fc.record({
    input,
    before: fc.nat({ max: overlap * EVERY }),
    after: fc.nat({ max: overlap * EVERY }),
    fate: fc.constantFrom(
      "returned",
      "returned",
      "returned",
      "returned",
      "lost",
      "dropped",
      "mute",
    ),
    choice: fc.nat({ max: 2 }),
  });

function played<State, Input, Output>(
  sequential: Sequential<State, Input, Output>,
  init: State,
  plan: readonly Planned<Input>[],
): Operation<Input, Output>[] {
  const history: Operation<Input, Output>[] = [];
  let state = init;
  for (const [place, { input, before, after, fate, choice }] of plan.entries()) {
    const outcomes = sequential(state, input);
    const outcome = outcomes[Math.min(choice, outcomes.length - 1)];
    if (outcome === undefined) continue;
    if (fate !== "dropped") state = outcome.state;
    const open = fate === "lost" || fate === "dropped";
    history.push({
      client: place,
      input,
      output: fate === "returned" ? outcome.output : unknown,
      calledAt: place * EVERY - before,
      returnedAt: open ? Infinity : place * EVERY + after,
    });
  }
  return history;
}

/** Ways to spoil a history, which now and then leave it as good as it was. */
interface Mutation<Input, Output> {
  readonly target: number;
  readonly kind: "output" | "earlier" | "later" | "input";
  readonly output: (input: Input) => Output;
  readonly by: number;
}

const mutation = <Input, Output>(
  output: fc.Arbitrary<(input: Input) => Output>,
): fc.Arbitrary<Mutation<Input, Output>> =>
  fc.record({
    target: fc.nat(),
    kind: fc.constantFrom("output", "output", "earlier", "later", "input"),
    output,
    by: fc.nat({ max: 5 * EVERY }),
  });

function mutated<Input extends { readonly op: string }, Output>(
  history: readonly Operation<Input, Output>[],
  { target, kind, output, by }: Mutation<Input, Output>,
): Operation<Input, Output>[] {
  if (history.length === 0) return [];
  const at = target % history.length;
  return history.map((operation, index): Operation<Input, Output> => {
    const { calledAt, returnedAt } = operation;
    if (index !== at) return operation;
    switch (kind) {
      case "output":
        return { ...operation, output: output(operation.input) };
      case "earlier":
        return { ...operation, calledAt: calledAt - by, returnedAt: returnedAt - by };
      case "later":
        return { ...operation, calledAt: calledAt + by, returnedAt: returnedAt + by };
      case "input": {
        const { input } = history[(at + 1 + by) % history.length] as Operation<Input, Output>;
        return input.op === operation.input.op ? { ...operation, input } : operation;
      }
    }
  });
}

/** The verdict, after whatever proves it was looked at. */
function proven<State extends {}, Input, Output>(
  model: Model<State, Input, Output>,
  history: readonly Operation<Input, Output>[],
): boolean {
  const result = check(model, history);
  if (result.verdict === "linearizable") {
    for (const order of result.orders.values())
      expect(orderViolations(model, history, order)).toEqual([]);
    return true;
  }
  expect(result.verdict, describeResult(result)).toBe("not-linearizable");
  const { placed, blocked, unplaced } = result.furthest;
  const before = until(history, blocked.returnedAt, "excluding");
  expect(check(model, before).verdict).toBe("linearizable");
  // Several may return at once: only all of them together are known to be too much.
  const after = until(history, blocked.returnedAt, "including");
  expect(check(model, after).verdict).toBe("not-linearizable");
  const missing = history.filter(
    (operation) => operation.returnedAt < blocked.returnedAt && !placed.includes(operation),
  );
  expect(missing).toEqual([]);
  expect(unplaced.filter(({ operation }) => placed.includes(operation))).toEqual([]);
  expect(unplaced.some(({ operation }) => operation === blocked)).toBe(true);
  return false;
}

// --- a register ----------------------------------------------------------------------------------------------------------

const value = fc.nat({ max: 2 });
const registerInput: fc.Arbitrary<RegisterInput> = fc.oneof(
  fc.constant({ op: "read" } as const),
  fc.record({ op: fc.constant("write" as const), value }),
  fc.record({ op: fc.constant("cas" as const), from: value, to: value }),
);
/** A write always gives true: the model does not look at it. */
const registerOutput = fc
  .record({ seen: value, found: fc.boolean() })
  .map(({ seen, found }) => ({ op }: RegisterInput): RegisterOutput => {
    if (op === "read") return seen;
    return op === "write" || found;
  });

describe("check() of a register", () => {
  test("accepts what a real register did", () => {
    fc.assert(
      fc.property(fc.array(planned(registerInput, 4), { maxLength: 60, size: "max" }), (plan) => {
        expect(proven(register(0), played(sequentialRegister, 0, plan))).toBe(true);
      }),
      { numRuns: 500 },
    );
  });

  test("agrees with every order tried on spoilt histories", () => {
    const verdicts = { true: 0, false: 0 };
    fc.assert(
      fc.property(
        fc.array(planned(registerInput, 2), { minLength: 2, maxLength: 7 }),
        fc.array(mutation(registerOutput), { minLength: 1, maxLength: 4 }),
        (plan, mutations) => {
          const history = mutations.reduce(
            mutated<RegisterInput, RegisterOutput>,
            played(sequentialRegister, 0, plan),
          );
          const verdict = proven(register(0), history);
          verdicts[`${verdict}`] += 1;
          expect(verdict).toBe(bruteForce(sequentialRegister, 0, history));
        },
      ),
      { numRuns: 3_000 },
    );
    expect(Math.min(verdicts.true, verdicts.false)).toBeGreaterThan(50);
  });
});

// --- a versioned register ------------------------------------------------------------------------------------------------

const start: Versioned = { value: null, revision: 0 };
const config = "app";
const versionedInput: fc.Arbitrary<VersionedInput> = fc.oneof(
  fc.constant({ op: "read", config } as const),
  fc.record({ op: fc.constant("publish" as const), config: fc.constant(config), value }),
);
const versionedOutput = fc.record({ value, revision: fc.integer({ min: 1, max: 5 }) }).map(
  (seen) =>
    ({ op }: VersionedInput): VersionedOutput =>
      op === "read" ? seen : seen.revision,
);
/** Mute publishes are left to the register: of two in a row that nobody saw, this model counts one. */
const heard = <Input, Output>(operation: Operation<Input, Output>): Operation<Input, Output> =>
  operation.output === unknown ? { ...operation, returnedAt: Infinity } : operation;

describe("check() of a versioned register", () => {
  test("accepts what a real one did", () => {
    fc.assert(
      fc.property(fc.array(planned(versionedInput, 4), { maxLength: 40, size: "max" }), (plan) => {
        const history = played(countedVersioned, start, plan).map(heard);
        expect(proven(versionedRegister(), history)).toBe(true);
      }),
      { numRuns: 500 },
    );
  });

  test("agrees with every order tried on spoilt histories", () => {
    const verdicts = { true: 0, false: 0 };
    fc.assert(
      fc.property(
        fc.array(planned(versionedInput, 2), { minLength: 2, maxLength: 6 }),
        fc.array(mutation(versionedOutput), { minLength: 1, maxLength: 4 }),
        (plan, mutations) => {
          const history = mutations
            .reduce(mutated<VersionedInput, VersionedOutput>, played(countedVersioned, start, plan))
            .map(heard);
          const verdict = proven(versionedRegister(), history);
          verdicts[`${verdict}`] += 1;
          expect(verdict).toBe(bruteForce(sequentialVersioned, start, history));
        },
      ),
      { numRuns: 3_000 },
    );
    expect(Math.min(verdicts.true, verdicts.false)).toBeGreaterThan(50);
  });
});

/** As the brute force's, but without a last revision, and with few gaps. */
function countedVersioned(
  state: Versioned,
  input: VersionedInput,
): readonly { state: Versioned; output: VersionedOutput }[] {
  if (input.op === "read") return [{ state, output: state }];
  return [1, 1, 2].map((step) => {
    const revision = state.revision + step;
    return { state: { value: input.value, revision }, output: revision };
  });
}
