/** Flags against `@openfeature/flagd-core`, which nobody here wrote, and what is ours on purpose. */
import { isDeepStrictEqual } from "node:util";
import { ErrorCode } from "@openfeature/core";
import { FlagdCore } from "@openfeature/flagd-core";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  Flag,
  Rollouts,
  targetingErrors,
  withFlagCall,
  type FlagCall,
  type FlagDefinition,
  type Resolution,
} from "../../src/model/flags.ts";
import { murmur3 } from "../../src/model/murmur3.ts";

const silent = { debug() {}, info() {}, warn() {}, error() {} };
const key = "checkout";
const variants = { on: 1, off: 2, true: 3, false: 4, "1": 5, red: 6, blue: 7 };

interface Outcome {
  readonly reason: string;
  readonly value?: unknown;
  readonly variant?: string | undefined;
}

function ours(definition: FlagDefinition, context: Record<string, unknown>): Outcome {
  const flag = new Flag(key, definition);
  return withFlagCall(context, Date.now(), (call) => outcomeOf(flag.evaluate(call)));
}

function outcomeOf({ reason, value, variant }: Resolution): Outcome {
  return { reason, ...(value !== undefined && { value, variant }) };
}

/** Null: refused as a whole. */
function theirs(
  definition: FlagDefinition,
  context: Record<string, unknown>,
  disableDynamicCodeGeneration: boolean,
): Outcome | null {
  const core = new FlagdCore(undefined, silent, { disableDynamicCodeGeneration });
  core.setConfigurations(JSON.stringify({ flags: { [key]: definition } }));
  const none = -1;
  const { reason, value, variant, errorCode } = core.resolveNumberEvaluation(
    key,
    none,
    context as never,
  );
  if (errorCode === ErrorCode.PARSE_ERROR) return null;
  return { reason: reason ?? "", ...(value !== none && { value, variant }) };
}

function flagOf(targeting: unknown, defaultVariant: string | null = "off"): FlagDefinition {
  return {
    state: "ENABLED",
    variants,
    defaultVariant,
    targeting: targeting as Record<string, unknown>,
  };
}

// --- generated targeting ---------------------------------------------------------------------------------------------------

const scalar = fc.oneof(
  fc.constantFrom<unknown>(null, true, false, 0, 1, -1, 2.5, 18, "", "0", "1", "abc", "de", "pro"),
  fc.constantFrom("1.2.3", "v1.2.4", "1.3", "2.0.0-rc.1", "a@example.com"),
);
/** Where there is null, one of its modes takes the default of `var` and the other does not. */
const present = scalar.filter((value) => value !== null);
const contextArbitrary = fc.record(
  {
    targetingKey: fc.constantFrom<unknown>("user-1", "user-2", "u", ""),
    plan: present,
    age: present,
    version: present,
    email: present,
    groups: fc.array(present, { maxLength: 4 }),
    company: fc.record({ name: present, size: present }, { requiredKeys: [] }),
  },
  { requiredKeys: [] },
);
const variable = fc.oneof(
  fc.constantFrom("plan", "age", "version", "email", "company.name", "company.size", "nothing"),
  fc.constantFrom("groups.0", "company.nothing.deep", "targetingKey", "$flagd.flagKey"),
);
const read = fc.oneof(
  variable.map((name) => ({ var: name })),
  variable.map((name) => ({ var: [name] })),
  fc.tuple(variable, scalar).map(([name, fallback]) => ({ var: [name, fallback] })),
);

function mayBeList(value: unknown): boolean {
  const [name = ""] = Object.keys(value ?? {});
  return ["map", "filter", "merge", "missing", "missing_some", "if", "and", "or"].includes(name);
}

const text = fc.constantFrom<unknown>("a", "abc", "1", 7, true);
const readText = fc.tuple(variable, text).map(([name, fallback]) => ({ var: [name, fallback] }));

/** `inner`: an element of `map` and its like is looked into. */
function logic(depth: number, inner: boolean): fc.Arbitrary<unknown> {
  const leaf = inner ? fc.oneof(scalar, fc.constant({ var: "" })) : fc.oneof(scalar, read);
  if (depth === 0) return leaf;
  const sub = logic(depth - 1, inner);
  // Of a list, one of its modes negates the first element.
  const single = sub.filter((value) => !mayBeList(value));
  const two = fc.tuple(sub, sub);
  const list = fc.oneof(
    fc.array(scalar, { maxLength: 4 }),
    inner ? fc.constant({ var: "" }) : fc.constant({ var: "groups" }),
    fc.array(sub, { maxLength: 3 }).map((items) => ({ merge: items })),
  );
  const choices: fc.Arbitrary<unknown>[] = [
    leaf,
    fc
      .tuple(fc.constantFrom("==", "!=", "===", "!==", "<", "<=", ">", ">="), two)
      .map(([name, args]) => ({ [name]: args })),
    fc.array(sub, { minLength: 1, maxLength: 5 }).map((args) => ({ if: args })),
    fc
      .tuple(fc.constantFrom("and", "or"), fc.array(sub, { minLength: 1, maxLength: 3 }))
      .map(([name, args]) => ({ [name]: args })),
    fc.tuple(fc.constantFrom("!", "!!"), single).map(([name, arg]) => ({ [name]: [arg] })),
    fc.tuple(sub, list).map((args) => ({ in: args })),
    fc.tuple(sub, fc.constantFrom("abc", "example.com")).map((args) => ({ in: args })),
    fc
      .tuple(fc.constantFrom("+", "*", "-", "/", "%"), two)
      .map(([name, args]) => ({ [name]: args })),
    fc
      .tuple(fc.constantFrom("min", "max"), fc.array(sub, { minLength: 1, maxLength: 3 }))
      .map(([name, args]) => ({ [name]: args })),
    // Null in a text is "null" in one of its modes, and nothing or an error in the other.
    fc
      .array(inner ? text : fc.oneof(text, readText), { minLength: 2, maxLength: 3 })
      .map((args) => ({
        cat: args,
      })),
    fc
      .tuple(sub, fc.integer({ min: -4, max: 4 }), fc.integer({ min: -4, max: 4 }))
      .map((args) => ({ substr: args })),
  ];
  if (!inner) {
    const element = logic(depth - 1, true);
    choices.push(
      fc
        .tuple(fc.constantFrom("map", "filter", "some", "all", "none"), list, element)
        .map(([name, items, each]) => ({ [name]: [items, each] })),
      fc.tuple(list, fc.constantFrom(0, 1, 2.5)).map(([items, initial]) => ({
        reduce: [items, { "+": [{ var: "accumulator" }, { var: "current" }] }, initial],
      })),
      fc.array(variable, { maxLength: 3 }).map((names) => ({ missing: names })),
      fc
        .tuple(fc.integer({ min: 0, max: 3 }), fc.array(variable, { maxLength: 3 }))
        .map((args) => ({ missing_some: args })),
      fc
        .tuple(fc.constantFrom("starts_with", "ends_with"), two)
        .map(([name, args]) => ({ [name]: args })),
      fc
        .tuple(read, fc.constantFrom("=", "!=", "<", "<=", ">", ">=", "^", "~", "?"), scalar)
        .map((args) => ({ sem_ver: args })),
      fractional(sub),
    );
  }
  return fc.oneof(...choices);
}

function fractional(sub: fc.Arbitrary<unknown>): fc.Arbitrary<unknown> {
  const weight = fc.oneof(fc.integer({ min: -5, max: 2 ** 31 }), fc.constantFrom(1, 25, 50, 1.5));
  const bucket = fc.oneof(
    fc.tuple(fc.constantFrom("on", "off", "red", "blue", true, null)),
    fc.tuple(fc.oneof(fc.constantFrom("on", "off", "red", "blue"), sub), weight),
  );
  const buckets = fc.array(bucket, { minLength: 1, maxLength: 5 });
  return fc.oneof(
    buckets.map((list) => ({ fractional: list })),
    fc.tuple(fc.oneof(read, sub), buckets).map(([by, list]) => ({ fractional: [by, ...list] })),
  );
}

const operator = logic(3, false).filter(
  (value) => typeof value === "object" && value !== null && !Array.isArray(value),
);
/** Every variant is within reach, so that results can be told apart. */
const targeting = fc.oneof(
  operator,
  fc.tuple(operator, operator).map(([a, b]) => ({ if: [a, "on", b, "red", "blue"] })),
  fractional(logic(1, false)),
);

describe("a flag gives what flagd-core gives", () => {
  test("for generated targeting and contexts", () => {
    fc.assert(
      fc.property(
        targeting,
        contextArbitrary,
        fc.constantFrom("off", null),
        (rule, context, defaultVariant) => {
          const flag = flagOf(rule, defaultVariant);
          const compiled = theirs(flag, context, false);
          // A constant that fails, like {"min": ["a"]}: there the whole flag does, here where it is reached.
          fc.pre(compiled !== null);
          const interpreted = theirs(flag, context, true);
          // Its two modes differ in corners, such as what is compared with no number: there, nothing is asked.
          fc.pre(isDeepStrictEqual(compiled, interpreted));
          expect(ours(flag, context)).toEqual(compiled);
        },
      ),
      { numRuns: Number(process.env["FLAG_RUNS"] ?? 400) },
    );
  });
  test("where most of what is generated tells something", () => {
    const outcomes = new Set<string>();
    let agreed = 0;
    const runs = 120;
    for (const [rule, context] of fc.sample(fc.tuple(targeting, contextArbitrary), runs)) {
      const compiled = theirs(flagOf(rule), context, false);
      const interpreted = theirs(flagOf(rule), context, true);
      if (compiled === null || !isDeepStrictEqual(compiled, interpreted)) continue;
      agreed++;
      outcomes.add(`${compiled.reason} ${compiled.variant}`);
    }
    expect(agreed).toBeGreaterThan(runs / 3);
    expect(outcomes.size).toBeGreaterThan(5);
  });
});

const doubled = { var: "accumulator" };
const thousands = Array.from({ length: 1_000 }, (_, i) => i);

describe("a flag", () => {
  const of = (definition: Partial<FlagDefinition>, context: Record<string, unknown> = {}) => {
    const flag = new Flag("fractional-flag", {
      state: "ENABLED",
      variants: { clubs: 1, diamonds: 2, hearts: 3, spades: 4 },
      ...definition,
    });
    return withFlagCall(context, 1_700_000_000_999, (call) => flag.evaluate(call));
  };
  const suits = ["clubs", "diamonds", "hearts", "spades"].map((suit) => [suit, 25]);

  test.each([
    ["jack", "hearts"],
    ["queen", "spades"],
    ["ten", "clubs"],
    ["nine", "diamonds"],
    ["3", "clubs"],
  ])("puts %s into the bucket that flagd publishes for it: %s", (name, suit) => {
    const by = { cat: [{ var: "$flagd.flagKey" }, { var: "user.name" }] };
    const targeting = { fractional: [by, ...suits] };
    expect(of({ targeting }, { user: { name } }).variant).toBe(suit);
  });

  test("without targeting is static; disabled it leaves the value to the code", () => {
    expect(of({ defaultVariant: "hearts" })).toMatchObject({
      reason: "STATIC",
      variant: "hearts",
      value: 3,
    });
    const disabled = of({ state: "DISABLED", defaultVariant: "hearts", metadata: { team: "a" } });
    expect(disabled).toEqual({
      key: "fractional-flag",
      reason: "DISABLED",
      metadata: { team: "a" },
      encoded: null,
    });
    expect(of({ defaultVariant: null })).toMatchObject({ reason: "DEFAULT" });
    expect(of({ defaultVariant: null })).not.toHaveProperty("value");
  });

  test("sees the time that it is given, in whole seconds", () => {
    const targeting = {
      if: [{ "===": [{ var: "$flagd.timestamp" }, 1_700_000_000] }, "hearts", "clubs"],
    };
    expect(of({ targeting }).variant).toBe("hearts");
    const flag = (rule: unknown): boolean => new Flag(key, flagOf(rule)).usesTime;
    expect(flag(targeting)).toBe(true);
    expect(flag({ if: [{ var: "$flagd.flagKey" }, "on", "off"] })).toBe(false);
    expect(flag({ if: [{ var: { var: "which" } }, "on", "off"] })).toBe(true);
  });

  test("hashes texts as UTF-8, as the daemon does", () => {
    const targeting = { fractional: [{ var: "name" }, ...suits] };
    const bytes = new TextEncoder().encode("\u00fc1");
    const quarter = Math.floor((murmur3(bytes) / 2 ** 32) * 4);
    expect(of({ targeting }, { name: "\u00fc1" }).variant).toBe(suits[quarter]?.[0]);
  });

  test("gives nothing that nobody wrote into the context", () => {
    for (const name of ["__proto__", "constructor", "toString", "email.constructor.name"])
      expect(
        of({ targeting: { if: [{ var: name }, "hearts", "clubs"] } }, { email: "a" }).variant,
      ).toBe("clubs");
  });

  test("works custom operators inside map and its like", () => {
    const targeting = {
      if: [
        { some: [{ var: "roles" }, { starts_with: [{ var: "name" }, "adm"] }] },
        "hearts",
        "clubs",
      ],
    };
    expect(of({ targeting }, { roles: [{ name: "user" }, { name: "admin" }] }).variant).toBe(
      "hearts",
    );
  });

  test.each([
    ["doubling lists", { reduce: [{ var: "l" }, { merge: [doubled, doubled] }, [1]] }],
    ["nested maps", { map: [{ var: "l" }, { map: [{ merge: [thousands] }, { var: "" }] }] }],
    ["doubling texts", { reduce: [{ var: "l" }, { cat: [doubled, doubled] }, "x"] }],
  ])("ends what would take too much work: %s", (_, targeting) => {
    const context = { l: Array.from({ length: 5_000 }, (_, i) => i) };
    expect(of({ targeting }, context)).toMatchObject({ reason: "ERROR", errorCode: "GENERAL" });
  });

  test.each([
    ["in missing", { missing: Array.from({ length: 4_000 }, () => ({ var: "path" })) }],
    ["in var", { and: Array.from({ length: 1_000 }, () => ({ "!": { var: { var: "path" } } })) }],
    ["from a list", { missing: Array.from({ length: 2_000 }, () => ({ cat: { var: "l" } })) }],
  ])("ends where long paths come with the context: %s", (_, targeting) => {
    const context = { path: "a.".repeat(30_000), l: Array.from({ length: 9_000 }, (_, i) => i) };
    const errorDetails = expect.stringMatching(/more work than one evaluation may$/) as string;
    expect(of({ targeting }, context)).toMatchObject({ reason: "ERROR", errorDetails });
  });

  test("takes no targeting whose paths are longer than operators may be many", () => {
    const long = { var: "a.".repeat(900) };
    const errors = targetingErrors({ and: Array.from({ length: 1_000 }, () => long) });
    expect(errors[0]?.detail).toMatch(/^Use at most/);
    expect(targetingErrors({ and: [long, { var: "a.b.c" }] })).toEqual([]);
  });

  test("of a whole set has a bound of its own", () => {
    const flag = new Flag(
      key,
      flagOf({ if: [{ some: [{ var: "l" }, { "==": [{ var: "" }, -1] }] }, "on", "off"] }),
    );
    const context = { l: Array.from({ length: 2_000 }, (_, i) => i) };
    const reasons = withFlagCall(context, 0, (call) =>
      Array.from({ length: 300 }, () => flag.evaluate(call).reason),
    );
    expect(reasons[0]).toBe("TARGETING_MATCH");
    expect(reasons.at(-1)).toBe("ERROR");
  });
});

describe("what flags have in common is worked out once for a call", () => {
  const variantsOf = (flags: readonly Flag[], context: Record<string, unknown>) =>
    withFlagCall(context, 0, (call) => flags.map((flag) => flag.evaluate(call).variant));

  test("for each call anew, as flagd-core gives it for each flag", () => {
    const rules = fc.array(targeting, { minLength: 1, maxLength: 3 });
    const contexts = fc.array(contextArbitrary, { minLength: 2, maxLength: 2 });
    fc.assert(
      fc.property(rules, contexts, (list, all) => {
        // Each twice, so that all they hold is in common.
        const flags = [...list, ...list].map((rule) => new Flag(key, flagOf(rule)));
        for (const context of all) {
          const given = withFlagCall(context, Date.now(), (call) =>
            flags.map((flag) => outcomeOf(flag.evaluate(call))),
          );
          list.forEach((rule, i) => {
            const [compiled, interpreted] = [false, true].map((isInterpreted) =>
              theirs(flagOf(rule), context, isInterpreted),
            );
            // As above.
            if (compiled === null || !isDeepStrictEqual(compiled, interpreted)) return;
            expect([given[i], given[i + list.length]]).toEqual([compiled, compiled]);
          });
        }
      }),
    );
  });

  test("and where one fails, all fail", () => {
    const broken = { if: [{ "<": [{ var: "age" }, 18] }, "on", "off"] };
    const flags = ["a", "b", "c"].map((name) => new Flag(name, flagOf(broken)));
    for (const [age, variant] of [
      ["old", undefined],
      [17, "on"],
      ["old", undefined],
      [18, "off"],
    ] as const) {
      expect(variantsOf(flags, { age })).toEqual(flags.map(() => variant));
    }
  });

  test("where it is the flag's own it stays apart", () => {
    const mine = { if: [{ "==": [{ cat: [{ var: "$flagd.flagKey" }, "!"] }, "b!"] }, "on", "off"] };
    const flags = ["a", "b", "a", "b"].map((name) => new Flag(name, flagOf(mine)));
    expect(variantsOf(flags, {})).toEqual(["off", "on", "off", "on"]);
  });

  test("numbers that JSON cannot tell from null are not taken for it", () => {
    const above = (most: unknown): Flag =>
      new Flag(key, flagOf({ if: [{ "<": [{ var: "age" }, most] }, "on", "off"] }));
    const flags = [above(null), above(Number.POSITIVE_INFINITY), above(null)];
    expect(variantsOf(flags, { age: 18 })).toEqual(["off", "on", "off"]);
  });

  test.each(["returned", "failed"])("and forgotten when the call has %s", (how) => {
    const rule = { substr: [{ var: how }, 0] };
    // The first one stood alone when it was made.
    const [, ...flags] = ["a", "b", "c"].map((name) => new Flag(name, flagOf(rule)));
    const context = { [how]: "on" };
    const given: (string | undefined)[] = [];
    // No caller keeps one: here it asks the flags whether they still know.
    let kept: FlagCall | undefined;
    const evaluate = (call: FlagCall): void => {
      kept = call;
      for (const flag of flags) given.push(flag.evaluate(call).variant);
      context[how] = "off";
      for (const flag of flags) given.push(flag.evaluate(call).variant);
      if (how === "failed") throw new Error("expected");
    };
    try {
      withFlagCall(context, 0, evaluate);
    } catch (error) {
      expect((error as Error).message).toBe("expected");
    }
    expect(given).toEqual(["on", "on", "on", "on"]);
    expect(flags.map((flag) => flag.evaluate(kept as FlagCall).variant)).toEqual(["off", "off"]);
  });
});

describe("rollouts by the targeting key", () => {
  test("decided together are what each gives alone", () => {
    const weight = fc.oneof(fc.integer({ min: 0, max: 5 }), fc.constantFrom(1_000_000, 100));
    const share = fc.tuple(fc.constantFrom("on", "off", "red", "1"), weight);
    const name = fc.string({ unit: fc.constantFrom("a", "b", "c", "é", "€"), maxLength: 9 });
    let decided = 0;
    fc.assert(
      fc.property(
        fc.array(fc.tuple(name, fc.array(share, { minLength: 1, maxLength: 9 })), { maxLength: 9 }),
        fc.oneof(fc.string({ maxLength: 12 }), fc.constantFrom("ß1", 7, null, true, undefined)),
        (given, targetingKey) => {
          const flags = given
            .map(([one, shares]) => new Flag(one, flagOf({ fractional: shares })))
            .filter(({ rollout }) => rollout !== null);
          const all = flags.flatMap(({ rollout }) => (rollout === null ? [] : [rollout]));
          const shares = new Uint8Array(flags.length);
          withFlagCall({ targetingKey }, 0, (call) => {
            const hasTarget = new Rollouts(all).decide(call, shares);
            expect(hasTarget).toBe(Boolean(targetingKey));
            flags.forEach((flag, i) => {
              const { resolutions, byDefault } = all[i] as (typeof all)[0];
              const together = hasTarget ? resolutions[shares[i] as number] : byDefault;
              expect(together).toBe(flag.evaluate(call));
              decided++;
            });
          });
        },
      ),
      { numRuns: 500 },
    );
    expect(decided).toBeGreaterThan(500);
  });

  test("are only those whose shares are variants", () => {
    const rolloutOf = (targeting: unknown) => new Flag(key, flagOf(targeting)).rollout;
    expect(rolloutOf({ fractional: [["on", 1], ["off"]] })).not.toBeNull();
    for (const targeting of [
      {
        fractional: [
          ["on", 1],
          ["none", 1],
        ],
      },
      {
        fractional: [
          ["on", 1],
          [null, 1],
        ],
      },
      {
        fractional: [
          ["on", 1],
          [true, 1],
        ],
      },
      { fractional: [["on", 0]] },
      { fractional: [["on", 2_000_000_000]] },
      { fractional: [{ var: "email" }, ["on", 1]] },
      { if: [true, { fractional: [["on", 1]] }] },
      {},
    ])
      expect([targeting, rolloutOf(targeting)]).toEqual([targeting, null]);
    const disabled = { ...flagOf({ fractional: [["on", 1]] }), state: "DISABLED" as const };
    expect(new Flag(key, disabled).rollout).toBeNull();
  });
});

describe("targetingErrors()", () => {
  test.each<[unknown, string, string]>([
    [{ if: [{ equals: [1, 1] }, "a"] }, "/if/0/equals", "no operator"],
    [{ "==": [1, 1], "!=": [1, 1] }, "", "one operator per object"],
    [{ if: "x" }, "/if", "list of arguments"],
    [{ "==": [1] }, "/==", "two values"],
    [{ var: "../x" }, "/var", "../"],
    [{ merge: Array.from({ length: 10_001 }, () => 1) }, "", "at most"],
  ])("points at what flagd does not know: %#", (rule, pointer, detail) => {
    const [error] = targetingErrors(rule as Record<string, unknown>);
    expect(error?.detail).toContain(detail);
    expect(error?.pointer.startsWith(pointer)).toBe(true);
  });
  test("takes all that flagd has", () => {
    expect(targetingErrors({})).toEqual([]);
    const all = fc.sample(targeting, 200) as Record<string, unknown>[];
    for (const rule of all) expect(targetingErrors(rule)).toEqual([]);
  });
});
