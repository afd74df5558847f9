/**
 * Flags as flagd defines them (https://flagd.dev/reference/flag-definitions/): a definition is compiled once into
 * closures, and evaluated for any number of contexts.
 *
 * The same results as `@openfeature/flagd-core` 4 in its interpreted or compiled mode, which a property test holds
 * (test/model/flags.test.ts); decision 8 in docs/adr says why it is written anew: no code is generated from what tenants
 * write, the work of one evaluation is bounded, and time comes in as an argument. Three places differ on purpose:
 * operators outside of flagd's schema are refused, a custom operator works inside `map` and its like (flagd-core fails
 * there), and texts are hashed as UTF-8, as the daemon does (flagd-core takes UTF-16 units: other buckets beyond ASCII).
 */
import { compareVersions, parseVersion, relations, type Version } from "./semver.ts";
import { escapePointer, shown } from "./names.ts";
import { HashedPrefix, HashedPrefixes, HashedSuffix, murmur3Text } from "./murmur3.ts";

export type FlagContext = Readonly<Record<string, unknown>>;

export interface FlagDefinition {
  readonly state: "ENABLED" | "DISABLED";
  readonly variants: Readonly<Record<string, unknown>>;
  readonly defaultVariant?: string | null;
  /** JsonLogic; absent or empty: the default variant for everybody. */
  readonly targeting?: Readonly<Record<string, unknown>>;
  readonly metadata?: Readonly<Record<string, boolean | string | number>>;
}

/** What a flag gives. `value` is absent where the default of the code applies. */
export interface Resolution {
  readonly key: string;
  readonly reason: "STATIC" | "TARGETING_MATCH" | "DEFAULT" | "DISABLED" | "ERROR";
  readonly value?: unknown;
  readonly variant?: string;
  readonly errorCode?: "PARSE_ERROR" | "GENERAL";
  readonly errorDetails?: string;
  readonly metadata?: Readonly<Record<string, boolean | string | number>>;
  /** For whoever encodes it, in a form of theirs: the same resolution is given again and again. */
  encoded: Encoded | null;
}

export interface Encoded {
  readonly text: string;
  /** In UTF-8. */
  readonly bytes: number;
}

/** Operators of targeting evaluated for one flag, counted where they repeat: in `map` and its like. */
export const flagWorkMax = 10_000;
/** The same over all flags of one set. */
export const setWorkMax = 1_000_000;
/** Operators and values in one targeting. */
export const targetingNodesMax = 10_000;
/** Steps of one path that count like an operator. */
const stepsPerNode = 8;
/** Of what `cat` makes. */
const textLengthMax = 64 * 1024;

let calls = 0;

export type { FlagCall };

/** One evaluation of one flag or of a whole set. */
class FlagCall {
  readonly context: FlagContext;
  /** `$flagd.timestamp`: seconds since 1970, whole. */
  readonly seconds: number;
  /** No other call has it. */
  readonly number = ++calls;
  #left = 0;
  #leftOfSet = setWorkMax;
  #target: HashedSuffix | null | undefined;
  /** All flags of a set look at the same version, so the last one is at hand. */
  #versionText: string | null = null;
  #version: NumberedVersion | null = null;
  #versions: Map<string, NumberedVersion | null> | null = null;
  #whole: { readonly key: string; readonly context: FlagContext } | null = null;

  constructor(context: FlagContext, nowMs: number) {
    this.context = context;
    this.seconds = Math.floor(nowMs / 1_000);
  }

  /** Of the targeting key, which is hashed after the key of each flag; null: there is none. */
  get target(): HashedSuffix | null {
    if (this.#target === undefined) {
      const key = this.context["targetingKey"];
      this.#target = key ? new HashedSuffix(plain(key)) : null;
    }
    return this.#target;
  }

  /** Read once, however many flags look at it; null: it is none. */
  versionOf(value: unknown): NumberedVersion | null {
    const text = plain(value);
    if (text === this.#versionText) return this.#version;
    this.#versions ??= new Map();
    let version = this.#versions.get(text);
    if (version === undefined) {
      version = versionIn(text);
      if (this.#versions.size < versionsMax) this.#versions.set(text, version);
    }
    this.#versionText = text;
    this.#version = version;
    return version;
  }

  /** The context as the flag sees it whole. */
  whole(key: string): FlagContext {
    if (this.#whole?.key !== key) {
      const own = { flagKey: key, timestamp: this.seconds };
      this.#whole = { key, context: { ...this.context, $flagd: own } };
    }
    return this.#whole.context;
  }

  begin(): void {
    this.#left = flagWorkMax;
  }

  charge(work: number): void {
    this.#left -= work;
    this.#leftOfSet -= work;
    if (this.#left < 0 || this.#leftOfSet < 0) fail("it takes more work than one evaluation may");
  }
}

/**
 * Evaluates flags for one context. What they work out together is remembered as long as `evaluate` takes: contexts are
 * the customers', and no part of one stays behind.
 *
 * @param evaluate done when it returns: the call is for nobody after it
 */
export function withFlagCall<T>(
  context: FlagContext,
  nowMs: number,
  evaluate: (call: FlagCall) => T,
): T {
  try {
    return evaluate(new FlagCall(context, nowMs));
  } finally {
    for (const part of remembering) part.forget();
    remembering.length = 0;
  }
}

export class Flag {
  readonly key: string;
  /** Whether the passing of time may change what it gives. */
  readonly usesTime: boolean;
  readonly #metadata: FlagDefinition["metadata"];
  /** Each with its own name: what targeting gives may be a part of a context's text, which it would keep. */
  readonly #variants: ReadonlyMap<string, { readonly variant: string; readonly value: unknown }>;
  readonly #defaultVariant: string | undefined;
  readonly #run: Run | null;
  /** Given whatever the context. */
  readonly fixed: Resolution | null;
  /** It is nothing but a rollout by the targeting key, each share to one of its variants; null: it is anything else. */
  readonly rollout: Rollout | null;
  /** Flags of which this is the same come to the same result, always; null: nothing is known of others. */
  readonly decidesAs: string | null;
  readonly #matched = new Map<string, Resolution>();
  readonly #byDefault: Resolution;
  /** Most contexts get the same. */
  #lastVariant: string | null = null;
  #lastMatched: Resolution;

  constructor(key: string, definition: FlagDefinition) {
    const { state, variants, defaultVariant, targeting, metadata } = definition;
    this.key = key;
    this.#metadata = metadata;
    this.#variants = new Map(
      Object.entries(variants).map(([variant, value]) => [variant, { variant, value }]),
    );
    this.#defaultVariant =
      defaultVariant === null || defaultVariant === "" ? undefined : defaultVariant;
    let run: Run | null = null;
    let usesTime = false;
    let broken: Resolution | null = null;
    let decidesAs: string | null = null;
    let shares: Shares | undefined;
    if (state === "ENABLED" && targeting !== undefined && Object.keys(targeting).length > 0)
      try {
        const compiler = new Compiler(key);
        const part = compiler.compile(targeting, true);
        run = part.run;
        usesTime = compiler.usesTime;
        shares = part.shares;
        if (part.isShareable === true) decidesAs = shareableText(targeting);
      } catch (error) {
        if (!(error instanceof TargetingError)) throw error;
        broken = this.#error("PARSE_ERROR", `Invalid targeting of flag '${key}'`);
      }
    this.#run = run;
    this.usesTime = usesTime;
    this.decidesAs = decidesAs;
    this.#byDefault = this.#variant(this.#defaultVariant, run === null ? "STATIC" : "DEFAULT");
    this.#lastMatched = this.#byDefault;
    if (state === "DISABLED") this.fixed = this.#made({ reason: "DISABLED" });
    else this.fixed = broken ?? (run === null ? this.#byDefault : null);
    this.rollout = shares === undefined ? null : this.#rolloutOf(shares);
  }

  #rolloutOf({ prefix, buckets }: Shares): Rollout | null {
    const { total, ends } = buckets;
    if (total <= 0 || total >= exactTotalMax) return null;
    const resolutions: Resolution[] = [];
    for (const { variant } of ends) {
      const resolution = typeof variant === "string" ? this.#matching(variant) : null;
      if (resolution === null || resolution.reason === "ERROR") return null;
      resolutions.push(resolution);
    }
    return { prefix, buckets, resolutions, byDefault: this.#byDefault };
  }

  evaluate(call: FlagCall): Resolution {
    if (this.fixed !== null) return this.fixed;
    let result: unknown;
    try {
      call.begin();
      result = (this.#run as Run)(call.context, call);
      if (result === null || result === undefined) return this.#byDefault;
      if (typeof result !== "string") result = textOf(result);
    } catch (error) {
      if (!(error instanceof TargetingError)) throw error;
      return this.#error(
        "GENERAL",
        `Cannot evaluate targeting of flag '${this.key}': ${error.message}`,
      );
    }
    const variant = result as string;
    if (variant === this.#lastVariant) return this.#lastMatched;
    const resolution = this.#matching(variant);
    if (resolution.reason === "ERROR") return resolution;
    this.#lastVariant = resolution.variant as string;
    this.#lastMatched = resolution;
    return resolution;
  }

  #matching(variant: string): Resolution {
    const known = this.#matched.get(variant);
    if (known !== undefined) return known;
    const resolution = this.#variant(variant, "TARGETING_MATCH");
    // Targeting may give anything, so only real variants are kept.
    if (resolution.reason !== "ERROR") this.#matched.set(resolution.variant as string, resolution);
    return resolution;
  }

  #variant(variant: string | undefined, reason: Resolution["reason"]): Resolution {
    if (variant === undefined) return this.#made({ reason: "DEFAULT" });
    const known = this.#variants.get(variant);
    return known === undefined || known.value === undefined
      ? this.#error("GENERAL", `Flag '${this.key}' has no variant ${shown(variant)}`)
      : this.#made({ reason, ...known });
  }

  #error(errorCode: "PARSE_ERROR" | "GENERAL", errorDetails: string): Resolution {
    return this.#made({ reason: "ERROR", errorCode, errorDetails });
  }

  #made(parts: Omit<Resolution, "key" | "metadata" | "encoded">): Resolution {
    return {
      key: this.key,
      ...parts,
      ...(this.#metadata !== undefined && { metadata: this.#metadata }),
      encoded: null,
    };
  }
}

interface Rollout extends Shares {
  /** Of each share. */
  readonly resolutions: readonly Resolution[];
  /** Of a context without a targeting key. */
  readonly byDefault: Resolution;
}

/** Flags that are rollouts, decided in one walk: there are many in most sets, and each differs in its hash alone. */
export class Rollouts {
  readonly #prefixes: HashedPrefixes;
  readonly #hashes: Uint32Array;
  readonly #totals: Float64Array;
  /** Ends of all their shares, and where those of each begin. */
  readonly #ends: Float64Array;
  readonly #begins: Int32Array;

  constructor(rollouts: readonly Rollout[]) {
    this.#prefixes = new HashedPrefixes(rollouts.map(({ prefix }) => prefix));
    this.#hashes = new Uint32Array(rollouts.length);
    this.#totals = Float64Array.from(rollouts, ({ buckets }) => buckets.total);
    this.#ends = Float64Array.from(
      rollouts.flatMap(({ buckets }) => buckets.ends.map(({ end }) => end)),
    );
    this.#begins = new Int32Array(rollouts.length);
    for (let i = 1; i < rollouts.length; i++)
      this.#begins[i] =
        (this.#begins[i - 1] as number) + (rollouts[i - 1] as Rollout).buckets.ends.length;
  }

  /** Writes which share each gives. False: the context has no targeting key, so all give their default. */
  decide(call: FlagCall, shares: Uint8Array): boolean {
    const { target } = call;
    if (target === null) return false;
    target.afterEach(this.#prefixes, this.#hashes);
    for (let i = 0; i < this.#hashes.length; i++) {
      const bucket = bucketIn(this.#hashes[i] as number, this.#totals[i] as number);
      const begin = this.#begins[i] as number;
      let at = begin;
      // The last end is the total, which no bucket reaches.
      while ((this.#ends[at] as number) <= bucket) at++;
      shares[i] = at - begin;
    }
    return true;
  }
}

/** What is wrong with a targeting before anybody is evaluated; empty: nothing. */
export function targetingErrors(
  targeting: Readonly<Record<string, unknown>>,
): readonly { readonly pointer: string; readonly detail: string }[] {
  if (Object.keys(targeting).length === 0) return [];
  try {
    new Compiler("", false).compile(targeting, true);
    return [];
  } catch (error) {
    if (!(error instanceof TargetingError)) throw error;
    return [{ pointer: error.pointer, detail: error.message }];
  }
}

// --- compiling -----------------------------------------------------------------------------------------------------------

/** The message says what to do about it; the pointer is known while compiling only. */
class TargetingError extends Error {
  pointer = "";
}

function fail(message: string): never {
  throw new TargetingError(message);
}

/** `data` is what `var` looks into: the context, or the element inside `map` and its like. */
type Run = (data: unknown, call: FlagCall) => unknown;

interface Part {
  readonly run: Run;
  /** Does not depend on what is evaluated: `run` gives always this. */
  readonly constant: { readonly value: unknown } | null;
  /** Operators and values in it. */
  readonly nodes: number;
  /** Whether the context alone decides, and no work is counted: then it is the same in every flag. Absent: no. */
  readonly isShareable?: boolean;
  /** It is a rollout by the targeting key, and nothing else. */
  readonly shares?: Shares;
}

interface Shares {
  readonly prefix: HashedPrefix;
  readonly buckets: Buckets;
}

function constantPart(value: unknown, nodes = 1): Part {
  return { run: () => value, constant: { value }, nodes, isShareable: true };
}

type Operator = (values: readonly unknown[], call: FlagCall) => unknown;

const asGiven: Operator = (values) => values;

class Compiler {
  readonly #key: string;
  readonly #isEvaluated: boolean;
  usesTime = false;
  #nodes = 0;

  /** @param isEvaluated else it is only looked at, and has nothing in common with others */
  constructor(key: string, isEvaluated = true) {
    this.#key = key;
    this.#isEvaluated = isEvaluated;
  }

  /** @param isRoot whether `data` is the context; inside `map` and its like it is not */
  compile(logic: unknown, isRoot: boolean): Part {
    this.#count(1);
    if (Array.isArray(logic)) return this.#list(logic, isRoot);
    if (typeof logic !== "object" || logic === null)
      return { ...constantPart(logic), isShareable: hasOwnText(logic) };
    const names = Object.keys(logic);
    if (names.length === 0) return constantPart(logic);
    const name = names[0] as string;
    if (names.length > 1)
      fail(`Give one operator per object: got ${names.slice(0, 5).map(shown).join(", ")}`);
    try {
      const part = this.#operation(name, (logic as Record<string, unknown>)[name], isRoot);
      return isRoot && part.isShareable === true && this.#isEvaluated ? shared(logic, part) : part;
    } catch (error) {
      if (error instanceof TargetingError)
        error.pointer = `/${escapePointer(name)}${error.pointer}`;
      throw error;
    }
  }

  #count(nodes: number): void {
    this.#nodes += nodes;
    if (this.#nodes > targetingNodesMax)
      fail(`Use at most ${targetingNodesMax} operators and values`);
  }

  #each(list: readonly unknown[], isRoot: boolean): readonly Part[] {
    return list.map((item, index) => {
      try {
        return this.compile(item, isRoot);
      } catch (error) {
        if (error instanceof TargetingError) error.pointer = `/${index}${error.pointer}`;
        throw error;
      }
    });
  }

  #list(list: readonly unknown[], isRoot: boolean): Part {
    return strict(this.#each(list, isRoot), asGiven);
  }

  #operation(name: string, given: unknown, isRoot: boolean): Part {
    switch (name) {
      case "var":
        return this.#variable(given, isRoot);
      case "missing":
        return this.#missing(given, isRoot);
      case "missing_some":
        return this.#missingSome(given, isRoot);
      case "if":
        return branches(this.#each(listOf(given), isRoot));
      case "and":
        return lazy(this.#each(listOf(given), isRoot), false);
      case "or":
        return lazy(this.#each(listOf(given), isRoot), true);
      case "map":
      case "filter":
      case "some":
      case "all":
      case "none":
      case "reduce":
        return this.#iteration(name, given, isRoot);
      case "!":
      case "!!": {
        const [part] = Array.isArray(given)
          ? this.#each(given, isRoot)
          : [this.compile(given, isRoot)];
        const isNot = name === "!";
        return strict([part ?? constantPart(undefined)], ([value]) => truthy(value) !== isNot);
      }
      case "in": {
        const list = this.#each(listOf(given), isRoot);
        return membership(list) ?? strict(list, isIn);
      }
      case "fractional":
        return this.#fractional(given, isRoot);
      default: {
        const comparison = comparisons.get(name);
        if (comparison !== undefined)
          return comparing(this.#each(listOf(given), isRoot), name.length === 3, comparison);
        if (name === "sem_ver" && Array.isArray(given) && given.length === 3)
          return versionCheck(this.#each(given, isRoot));
        const affix = affixes.get(name);
        if (affix !== undefined && Array.isArray(given) && given.length === 2)
          return affixCheck(this.#each(given, isRoot), affix);
        const operator = operators.get(name);
        if (operator === undefined) return fail(`There is no operator ${shown(name)} in flagd`);
        if (Array.isArray(given)) return strict(this.#each(given, isRoot), operator);
        return strict([this.compile(given, isRoot)], ([value], call) =>
          operator(Array.isArray(value) ? value : [value], call),
        );
      }
    }
  }

  // --- data ----------------------------------------------------------------------------------------------------------------

  #variable(given: unknown, isRoot: boolean): Part {
    const [path, fallback = null] = Array.isArray(given) ? (given as unknown[]) : [given];
    const otherwise = this.compile(fallback, isRoot);
    if (typeof path === "object" && path !== null) {
      this.usesTime = true;
      const dynamic = this.compile(path, isRoot);
      const key = this.#key;
      const run: Run = (data, call) => {
        const found = dynamic.run(data, call);
        const value = lookUp(data, foundPath(found, call), isRoot ? key : null, call);
        return value ?? otherwise.run(data, call);
      };
      return { run, constant: null, nodes: 2 + dynamic.nodes };
    }
    const steps = pathOf(path);
    // Known here; the usual beginning of what rollouts hash.
    if (isRoot && steps.length === 2 && steps[0] === "$flagd" && steps[1] === "flagKey")
      return { ...constantPart(this.#key, 2), isShareable: false };
    const more = Math.floor(steps.length / stepsPerNode);
    this.#count(more);
    const nodes = 2 + more;
    if (isRoot && (steps.length === 0 || steps[0] === "$flagd")) {
      this.usesTime ||= steps.length < 2 || steps[1] === "timestamp";
      const key = this.#key;
      const run: Run = (data, call) => lookUp(data, steps, key, call) ?? otherwise.run(data, call);
      return { run, constant: null, nodes };
    }
    const isShareable = otherwise.isShareable === true;
    return { run: reading(steps, otherwise), constant: null, nodes, isShareable };
  }

  #missing(given: unknown, isRoot: boolean): Part {
    const keys = Array.isArray(given) ? this.#list(given, isRoot) : this.compile(given, isRoot);
    const key = isRoot ? this.#key : null;
    const run: Run = (data, call) => {
      const value = keys.run(data, call);
      return missing(data, Array.isArray(value) ? value : [value], key, call);
    };
    return { run, constant: null, nodes: 1 + keys.nodes };
  }

  #missingSome(given: unknown, isRoot: boolean): Part {
    const list = this.#list(listOf(given), isRoot);
    const key = isRoot ? this.#key : null;
    const run: Run = (data, call) => {
      const [need, keys] = list.run(data, call) as readonly unknown[];
      if (!Array.isArray(keys)) return fail("missing_some needs a number and a list of names");
      const lacking = missing(data, keys, key, call);
      return keys.length - lacking.length >= (need as number) ? [] : lacking;
    };
    return { run, constant: null, nodes: 1 + list.nodes };
  }

  // --- iterations ----------------------------------------------------------------------------------------------------------

  #iteration(
    name: "map" | "filter" | "some" | "all" | "none" | "reduce",
    given: unknown,
    isRoot: boolean,
  ): Part {
    const list = listOf(given);
    const selector = this.compile(list[0] ?? null, isRoot);
    const each = this.compile(list[1] ?? null, false);
    const initial = list[2] === undefined ? null : this.compile(list[2], isRoot);
    const cost = 1 + each.nodes;
    const items = (data: unknown, call: FlagCall): readonly unknown[] => {
      const value = selector.run(data, call) || [];
      if (!Array.isArray(value)) return fail(`${name} needs a list`);
      call.charge(value.length * cost);
      return value;
    };
    const holds =
      (call: FlagCall) =>
      (item: unknown): boolean =>
        truthy(each.run(item, call));
    const runs: Readonly<Record<typeof name, Run>> = {
      map: (data, call) => items(data, call).map((item) => each.run(item, call)),
      filter: (data, call) => items(data, call).filter(holds(call)),
      some: (data, call) => items(data, call).some(holds(call)),
      none: (data, call) => !items(data, call).some(holds(call)),
      all: (data, call) => {
        const all = items(data, call);
        return all.length > 0 && all.every(holds(call));
      },
      reduce: (data, call) => {
        const all = items(data, call);
        const step = (accumulator: unknown, current: unknown): unknown =>
          shallow(each.run({ accumulator, current }, call));
        if (initial !== null) return all.reduce(step, shallow(initial.run(data, call)));
        if (all.length === 0) return fail("reduce of an empty list needs a third argument");
        return all.reduce(step);
      },
    };
    return {
      run: runs[name],
      constant: null,
      nodes: cost + selector.nodes + (initial?.nodes ?? 0),
    };
  }

  // --- buckets -------------------------------------------------------------------------------------------------------------

  #fractional(given: unknown, isRoot: boolean): Part {
    const parts = Array.isArray(given) ? this.#each(given, isRoot) : [this.compile(given, isRoot)];
    const key = this.#key;
    const nodes = 1 + parts.reduce((sum, part) => sum + part.nodes, 0);
    // The usual form, all but the first constant: what does not change is worked out once.
    const [first, ...rest] = parts;
    if (first !== undefined && rest.every((part) => part.constant !== null)) {
      const buckets = rest.map((part) => (part.constant as { value: unknown }).value);
      if (first.constant === null) {
        const ready = bucketsOf(buckets);
        const run: Run = (data, call) => {
          const by = first.run(data, call);
          return typeof by === "string"
            ? bucketed(by, ready)
            : fractional([by, ...buckets], key, call);
        };
        return { run, constant: null, nodes };
      }
      if (typeof first.constant.value !== "string") {
        const ready = bucketsOf([first.constant.value, ...buckets]);
        const prefix = new HashedPrefix(key);
        const run: Run = (_, call) => {
          const { target } = call;
          return target === null ? null : bucketAt(target.after(prefix), ready);
        };
        return {
          run,
          constant: null,
          nodes,
          ...(ready !== null && { shares: { prefix, buckets: ready } }),
        };
      }
    }
    const run: Run = (data, call) => {
      const values = parts.map((part) => part.run(data, call));
      const [only] = values;
      return fractional(!Array.isArray(given) && Array.isArray(only) ? only : values, key, call);
    };
    return { run, constant: null, nodes };
  }
}

function listOf(given: unknown): readonly unknown[] {
  return Array.isArray(given) ? given : fail("Give a list of arguments");
}

function areShareable(parts: readonly Part[]): boolean {
  return parts.every((part) => part.isShareable === true);
}

/** All operands are evaluated, in order. */
function strict(parts: readonly Part[], operator: Operator): Part {
  const nodes = 1 + parts.reduce((sum, part) => sum + part.nodes, 0);
  const [first, second] = parts;
  let run: Run = (data, call) =>
    operator(
      parts.map((part) => part.run(data, call)),
      call,
    );
  // One and two operands are most, so they go without a list in between.
  if (parts.length === 1 && first !== undefined)
    run = (data, call) => operator([first.run(data, call)], call);
  else if (parts.length === 2 && first !== undefined && second !== undefined)
    run = (data, call) => operator([first.run(data, call), second.run(data, call)], call);
  const isShareable = !charging.has(operator) && areShareable(parts);
  return folded(parts, { run, constant: null, nodes, isShareable });
}

/** Evaluates operands until one is as true as `end` says, and gives the last that was evaluated. */
function lazy(parts: readonly Part[], end: boolean): Part {
  const nodes = 1 + parts.reduce((sum, part) => sum + part.nodes, 0);
  const runs = parts.map((part) => part.run);
  let run: Run = (data, call) => {
    let value: unknown = null;
    for (let i = 0; i < runs.length; i++) {
      value = (runs[i] as Run)(data, call);
      if (truthy(value) === end) break;
    }
    return value;
  };
  const [first, second, third] = runs;
  if (first !== undefined && second !== undefined && third === undefined)
    run = (data, call) => {
      const value = first(data, call);
      return truthy(value) === end ? value : second(data, call);
    };
  return folded(parts, { run, constant: null, nodes, isShareable: areShareable(parts) });
}

function branches(parts: readonly Part[]): Part {
  const nodes = 1 + parts.reduce((sum, part) => sum + part.nodes, 0);
  const [condition, yes, no] = parts;
  let run: Run;
  if (parts.length === 3 && condition !== undefined && yes !== undefined && no !== undefined)
    run = choice(condition.run, yes, no);
  else
    run = (data, call) => {
      let at = 0;
      for (; at + 1 < parts.length; at += 2)
        if (truthy((parts[at] as Part).run(data, call)))
          return (parts[at + 1] as Part).run(data, call);
      return parts[at]?.run(data, call) ?? null;
    };
  return folded(parts, { run, constant: null, nodes, isShareable: areShareable(parts) });
}

function choice(condition: Run, yes: Part, no: Part): Run {
  if (yes.constant === null || no.constant === null)
    return (data, call) => (truthy(condition(data, call)) ? yes : no).run(data, call);
  const a = yes.constant.value;
  const b = no.constant.value;
  return (data, call) => (truthy(condition(data, call)) ? a : b);
}

/** Of constants it is done now; what fails is left, so that it fails where it is reached. */
function folded(parts: readonly Part[], part: Part): Part {
  if (!parts.every(({ constant }) => constant !== null)) return part;
  try {
    const call = new FlagCall({}, 0);
    call.begin();
    return {
      ...constantPart(part.run(null, call), part.nodes),
      isShareable: part.isShareable === true,
    };
  } catch (error) {
    if (!(error instanceof TargetingError)) throw error;
    return part;
  }
}

// --- what flags have in common ----------------------------------------------------------------------------------------------

/**
 * Flags of one namespace ask the same again and again: who is in a segment, which plan, which version. What was asked in
 * the same words is worked out once for a call, in whichever flag it stands. What fails is asked anew, so it fails
 * everywhere. Nothing of one call is seen by another: each has a number of its own.
 */
class Shared {
  #call = 0;
  #value: unknown = undefined;
  readonly #run: Run;

  constructor(run: Run) {
    this.#run = run;
  }

  readonly run: Run = (data, call) => {
    if (this.#call === call.number) return this.#value;
    const value = this.#run(data, call);
    this.#call = call.number;
    this.#value = value;
    if (typeof value !== "boolean") remembering.push(this);
    return value;
  };

  forget(): void {
    this.#call = 0;
    this.#value = undefined;
  }
}

/** Those with a value of the present call. Most give booleans, which hold nothing of a context: they may stay. */
const remembering: Shared[] = [];

/**
 * Compiled lately, by their text; null: once only. What stands in one place has nothing to remember, and goes without.
 * Forgotten all at once: flags keep theirs, and later ones share anew.
 */
const sharedParts = new Map<string, Shared | null>();
const sharedPartsMax = 10_000;
/** Long ones are rare, and each holds all within it. */
const sharedTextLengthMax = 512;
const sharedNodesMax = 64;

/** JSON has no sign for what is too large for a double. */
function hasOwnText(value: unknown): boolean {
  return typeof value !== "number" || Number.isFinite(value);
}

/** Null: too long. @param logic whose keys have one order: each object within is an operator's or empty */
function shareableText(logic: object): string | null {
  const text = JSON.stringify(logic);
  return text.length > sharedTextLengthMax ? null : text;
}

function shared(logic: object, part: Part): Part {
  if (part.constant !== null || part.nodes < 3 || part.nodes > sharedNodesMax) return part;
  const text = shareableText(logic);
  if (text === null) return part;
  let known = sharedParts.get(text);
  if (known === undefined) {
    if (sharedParts.size >= sharedPartsMax) sharedParts.clear();
    sharedParts.set(text, null);
    return part;
  }
  if (known === null) {
    known = new Shared(part.run);
    sharedParts.set(text, known);
  }
  return { ...part, run: known.run };
}

// --- values --------------------------------------------------------------------------------------------------------------

/** Empty lists and objects are false, as JsonLogic has it. */
function truthy(value: unknown): boolean {
  if (typeof value === "boolean") return value;
  if (typeof value !== "object" || value === null) return Boolean(value);
  return Array.isArray(value) ? value.length > 0 : Object.keys(value).length > 0;
}

/** Null for what has no text in JSON's world. */
function plain(value: unknown): string {
  return typeof value === "string" ? value : textOf(value);
}

/** Text of a value, bounded: lists nest. */
function textOf(value: unknown): string {
  if (Array.isArray(value)) {
    let text = "";
    for (let i = 0; i < value.length; i++) {
      const item: unknown = value[i];
      text += `${i === 0 ? "" : ","}${item === null || item === undefined ? "" : plain(item)}`;
      if (text.length > textLengthMax) fail("it makes a text that is too long");
    }
    return text;
  }
  return String(value);
}

/** A dot ends a step, a backslash before dot, slash or backslash takes that as it is. Empty: the data itself. */
function pathOf(path: unknown): readonly string[] {
  if (path === undefined || path === null || path === "") return [];
  const text = plain(path);
  if (text.startsWith("../"))
    fail("Leave out ../ in var: flagd does not look outside of an element");
  const steps: string[] = [];
  let step = "";
  for (let i = 0; i < text.length; i++) {
    const sign = text[i] as string;
    const next = text[i + 1];
    if (sign === "\\" && (next === "." || next === "/" || next === "\\")) {
      step += next;
      i++;
    } else if (sign === ".") {
      steps.push(step);
      step = "";
    } else step += sign;
  }
  if (steps.length !== text.length) steps.push(step);
  return steps;
}

/** The path in a text that is known only now: reading it is work. */
function foundPath(found: unknown, call: FlagCall): readonly string[] {
  if (Array.isArray(found)) call.charge(found.length);
  const text = found === undefined || found === null ? "" : plain(found);
  call.charge(text.length >> 4);
  return pathOf(text);
}

/** What every object has, but nobody wrote. */
const inherited: ReadonlySet<string> = new Set(
  [
    Object.prototype,
    Array.prototype,
    String.prototype,
    Number.prototype,
    Boolean.prototype,
  ].flatMap((prototype) =>
    Object.getOwnPropertyNames(prototype).filter((name) => name !== "length"),
  ),
);

function stepInto(value: unknown, step: string): unknown {
  if (value === null || value === undefined || inherited.has(step)) return ownOf(value, step);
  return (value as Record<string, unknown>)[step];
}

function ownOf(value: unknown, step: string): unknown {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, step)) return undefined;
  return (value as Record<string, unknown>)[step];
}

/** A path that is known beforehand. */
function reading(steps: readonly string[], otherwise: Part): Run {
  const [only] = steps;
  const fallback = otherwise.constant;
  if (steps.length === 1 && only !== undefined && !inherited.has(only) && fallback !== null) {
    const { value } = fallback;
    return (data) =>
      data === null || data === undefined
        ? value
        : ((data as Record<string, unknown>)[only] ?? value);
  }
  return (data, call) => {
    let value = data;
    for (const step of steps) value = stepInto(value, step);
    return value ?? otherwise.run(data, call);
  };
}

/** @param key the flag's, where `data` is the context: there `$flagd` can be seen */
function lookUp(
  data: unknown,
  steps: readonly string[],
  key: string | null,
  call: FlagCall,
): unknown {
  if (key !== null && steps.length === 0) return call.whole(key);
  const isOwn = key !== null && steps[0] === "$flagd";
  let value = isOwn ? { flagKey: key, timestamp: call.seconds } : data;
  for (let i = isOwn ? 1 : 0; i < steps.length; i++) value = stepInto(value, steps[i] as string);
  return value;
}

/** @param key as in `lookUp` */
function missing(
  data: unknown,
  names: readonly unknown[],
  key: string | null,
  call: FlagCall,
): readonly unknown[] {
  call.charge(names.length);
  return names.filter((name) => {
    const steps = foundPath(name, call);
    let value = key !== null && steps[0] === "$flagd" ? call.whole(key) : data;
    for (const step of steps) {
      if (!value) return true;
      value = stepInto(value, step);
      if (value === undefined) return true;
    }
    return false;
  });
}

/** What `reduce` carries on must not nest: it could double with every step. */
function shallow(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  for (const item of Object.values(value))
    if (typeof item === "object" && item !== null) fail("reduce must not carry on nested values");
  return value;
}

// --- operators -----------------------------------------------------------------------------------------------------------

/** The number that a value stands for. Objects, lists and other texts stand for none, and fail the evaluation. */
function numberOf(value: unknown): number {
  if (typeof value === "object" && value !== null)
    fail("it takes a list or an object for a number");
  const number = Number(value);
  return Number.isNaN(number) ? fail("it takes something for a number that is none") : number;
}

function isTextOrNull(value: unknown): value is string | null {
  return typeof value === "string" || value === null;
}

type Comparison = (a: never, b: never) => boolean;

const comparisons: ReadonlyMap<string, Comparison> = new Map<string, Comparison>([
  // oxlint-disable-next-line eqeqeq -- null and texts, as JsonLogic compares them
  ["==", (a, b) => a == b],
  ["===", (a, b) => a === b],
  // oxlint-disable-next-line eqeqeq -- as above
  ["!=", (a, b) => a != b],
  ["!==", (a, b) => a !== b],
  ["<", (a, b) => a < b],
  ["<=", (a, b) => a <= b],
  [">", (a, b) => a > b],
  [">=", (a, b) => a >= b],
]);

function compared(a: unknown, b: unknown, isStrict: boolean, comparison: Comparison): boolean {
  if (isStrict || (isTextOrNull(a) && isTextOrNull(b))) return comparison(a as never, b as never);
  return comparison(numberOf(a) as never, numberOf(b) as never);
}

function comparing(parts: readonly Part[], isStrict: boolean, comparison: Comparison): Part {
  if (parts.length < 2) fail("Give two values to compare");
  const [first, second] = parts;
  if (parts.length > 2 || first === undefined || second === undefined)
    return strict(parts, (values) =>
      values.every((value, i) => i === 0 || compared(values[i - 1], value, isStrict, comparison)),
    );
  const [a, b] = [first.run, second.run];
  const constant = second.constant?.value;
  let run: Run;
  // Most look whether an attribute is this text: of two texts every comparison is its own operator's.
  if (typeof constant === "string" && comparison === comparisons.get(isStrict ? "===" : "=="))
    run = (data, call) => {
      const value = a(data, call);
      return typeof value === "string"
        ? value === constant
        : compared(value, constant, isStrict, comparison);
    };
  else if (typeof constant === "string")
    run = (data, call) => {
      const value = a(data, call);
      return typeof value === "string"
        ? comparison(value as never, constant as never)
        : compared(value, constant, isStrict, comparison);
    };
  else run = (data, call) => compared(a(data, call), b(data, call), isStrict, comparison);
  const nodes = 1 + first.nodes + second.nodes;
  return folded(parts, { run, constant: null, nodes, isShareable: areShareable(parts) });
}

const isIn: Operator = ([item, within], call) => {
  const place = within || [];
  if (typeof place === "string") {
    call.charge(place.length >> 6);
    return place.includes(plain(item));
  }
  if (!Array.isArray(place)) return fail("in needs a text or a list");
  call.charge(place.length >> 3);
  return place.includes(item);
};

/** Among many constants, found by a look instead of a walk. */
function membership(parts: readonly Part[]): Part | null {
  const [item, within] = parts;
  const list = within?.constant?.value;
  if (item === undefined || item.constant !== null || !Array.isArray(list)) return null;
  const members = new Set<unknown>(list);
  const of = item.run;
  const run: Run = (data, call) => members.has(of(data, call));
  const nodes = 1 + item.nodes + list.length;
  return { run, constant: null, nodes, isShareable: areShareable(parts) };
}

function arithmetic(step: (a: number, b: number) => number): Operator {
  return (values) => {
    const [first, ...rest] = values;
    let result = numberOf(first);
    for (const value of rest) result = numberOf(step(result, numberOf(value)));
    return result;
  };
}

function extreme(isBetter: (a: number, b: number) => boolean): Operator {
  return (values) => {
    let best: number | null = null;
    for (const value of values) {
      if (typeof value !== "number") return fail("min and max compare numbers only");
      if (best === null || isBetter(value, best)) best = value;
    }
    return best ?? fail("min and max need a number");
  };
}

const merge: Operator = (values, call) => {
  const merged: unknown[] = [];
  for (const value of values) {
    call.charge(Array.isArray(value) ? value.length : 1);
    if (Array.isArray(value)) for (const item of value) merged.push(item);
    else merged.push(value);
  }
  return merged;
};

/** Those that count their work. */
const charging: ReadonlySet<Operator> = new Set([isIn, merge]);

const operators: ReadonlyMap<string, Operator> = new Map<string, Operator>([
  ["+", (values) => values.reduce<number>((sum, value) => numberOf(sum + numberOf(value)), 0)],
  ["*", (values) => values.reduce<number>((sum, value) => numberOf(sum * numberOf(value)), 1)],
  [
    "-",
    (values, call) =>
      values.length === 1 ? -numberOf(values[0]) : arithmetic((a, b) => a - b)(values, call),
  ],
  [
    "/",
    (values, call) => {
      const all = values.length === 1 ? [1, values[0]] : values;
      return arithmetic((a, b) => (b === 0 ? fail("it divides by zero") : a / b))(all, call);
    },
  ],
  [
    "%",
    (values, call) =>
      values.length < 2 ? fail("% needs two numbers") : arithmetic((a, b) => a % b)(values, call),
  ],
  ["min", extreme((a, b) => a < b)],
  ["max", extreme((a, b) => a > b)],
  ["merge", merge],
  [
    "cat",
    (values) => {
      let text = "";
      for (const value of values) {
        if (value !== null && value !== undefined) text += plain(value);
        if (text.length > textLengthMax) fail("cat makes a text that is too long");
      }
      return text;
    },
  ],
  [
    "substr",
    ([text, from, length]) => {
      if (typeof text !== "string") return fail("substr needs a text");
      const start = Math.trunc(Number(from ?? 0)) || 0;
      const tail = start < 0 ? text.slice(start) : text.slice(start);
      if (length === undefined) return tail;
      const count = Math.trunc(Number(length)) || 0;
      return count < 0 ? tail.slice(0, Math.max(tail.length + count, 0)) : tail.slice(0, count);
    },
  ],
  // With other than two arguments they give null.
  ["starts_with", () => null],
  ["ends_with", () => null],
  ["sem_ver", semVer],
]);

type Affix = (text: string, part: string) => boolean;

const affixes: ReadonlyMap<string, Affix> = new Map<string, Affix>([
  ["starts_with", (text, part) => text.startsWith(part)],
  ["ends_with", (text, part) => text.endsWith(part)],
]);

/** Null where the arguments are not two texts. */
function affixCheck(parts: readonly Part[], holds: Affix): Part {
  const [first, second] = parts as readonly [Part, Part];
  const [a, b] = [first.run, second.run];
  const run: Run = (data, call) => {
    const text = a(data, call);
    const part = b(data, call);
    return typeof text === "string" && typeof part === "string" ? holds(text, part) : null;
  };
  const nodes = 1 + first.nodes + second.nodes;
  return folded(parts, { run, constant: null, nodes, isShareable: areShareable(parts) });
}

// --- sem_ver -------------------------------------------------------------------------------------------------------------

/** A version whose numbers are exact as doubles. */
interface NumberedVersion extends Version {
  readonly numbers: readonly [number, number, number];
}

/** Of one context, remembered until its call ends. */
const versionsMax = 100;
const digitsMax = 15;

/** With or without v; minor and patch may be left out where nothing follows. */
function versionIn(given: string): NumberedVersion | null {
  const text = given.replace(/^[vV]/, "").trim();
  if (!/^v?\d+\.\d+\.\d+/.test(text) && !/^\d+(?:\.\d+)?$/.test(text)) return null;
  const version = parseVersion(text);
  if (version?.core.every((number) => number.length <= digitsMax) !== true) return null;
  const [major, minor, patch] = version.core;
  return { ...version, numbers: [Number(major), Number(minor), Number(patch)] };
}

function orderOf(a: NumberedVersion, b: NumberedVersion): number {
  for (let i = 0; i < 3; i++) {
    const order = (a.numbers[i] as number) - (b.numbers[i] as number);
    if (order !== 0) return order;
  }
  return a.prerelease.length + b.prerelease.length === 0 ? 0 : compareVersions(a, b);
}

type VersionTest = (a: NumberedVersion, b: NumberedVersion) => boolean;

/** flagd: the same major, the same minor; unlike in release rules, lower versions are not left out. */
const versionTests: ReadonlyMap<unknown, VersionTest> = new Map<unknown, VersionTest>([
  ...Object.entries(relations).map(
    ([operator, holds]) =>
      [operator, (a, b) => holds(orderOf(a, b))] satisfies [string, VersionTest],
  ),
  ["^", (a, b) => a.numbers[0] === b.numbers[0]],
  ["~", (a, b) => a.numbers[0] === b.numbers[0] && a.numbers[1] === b.numbers[1]],
]);

/** Null where an argument is not what it should be. */
function semVer(values: readonly unknown[], call: FlagCall): boolean | null {
  const [left, operator, right] = values;
  if (values.length !== 3) return null;
  const [a, b] = [call.versionOf(left), call.versionOf(right)];
  return a === null || b === null ? null : (versionTests.get(operator)?.(a, b) ?? null);
}

/** The usual form compares with a version that is known beforehand. */
function versionCheck(parts: readonly Part[]): Part {
  const [left, operator, right] = parts;
  if (left === undefined || left.constant !== null || !operator?.constant || !right?.constant)
    return strict(parts, semVer);
  const holds = versionTests.get(operator.constant.value);
  const version = versionIn(plain(right.constant.value));
  const of = left.run;
  let run: Run;
  // What is given may be too much to be a text, and has to fail then.
  if (version === null || holds === undefined)
    run = (data, call) => {
      plain(of(data, call));
      return null;
    };
  else
    run = (data, call) => {
      const given = call.versionOf(of(data, call));
      return given === null ? null : holds(given, version);
    };
  return { run, constant: null, nodes: 3 + left.nodes, isShareable: areShareable(parts) };
}

// --- fractional ------------------------------------------------------------------------------------------------------------

interface Buckets {
  readonly total: number;
  /** Ends of the buckets, exclusive, growing. */
  readonly ends: readonly { readonly end: number; readonly variant: unknown }[];
}

const weightsMax = 2_147_483_647;
/** Below it the product with a hash of 32 bits is exact in a double. */
const exactTotalMax = 0x20_0000;

/** Null: not buckets, or too heavy. */
function bucketsOf(entries: readonly unknown[]): Buckets | null {
  const ends: { end: number; variant: unknown }[] = [];
  let total = 0;
  for (const entry of entries) {
    if (!Array.isArray(entry) || entry.length === 0 || entry.length > 2) return null;
    const [variant = null, weight = 1] = entry as unknown[];
    if (typeof variant === "object" && variant !== null) return null;
    if (typeof weight !== "number" || !Number.isInteger(weight)) return null;
    total += Math.max(0, weight);
    ends.push({ end: total, variant });
  }
  return total > weightsMax ? null : { total, ends };
}

/** Algorithm flagd-v2: (murmur3_x86_32(utf8(text)) × total weight) >> 32, in the order of the entries. */
function bucketed(text: string, buckets: Buckets | null): unknown {
  return bucketAt(murmur3Text(text), buckets);
}

/** @param total below `exactTotalMax` */
function bucketIn(hash: number, total: number): number {
  return Math.floor((hash * total) / 0x1_0000_0000);
}

function bucketAt(hash: number, buckets: Buckets | null): unknown {
  if (buckets === null) return null;
  const { total, ends } = buckets;
  let bucket: number;
  if (total < exactTotalMax) bucket = bucketIn(hash, total);
  else {
    // A product of 63 bits, in two halves that are exact in a double.
    const high = hash * Math.floor(total / 0x1_0000);
    const low = hash * (total % 0x1_0000);
    bucket = Math.floor((high + Math.floor(low / 0x1_0000)) / 0x1_0000);
  }
  for (let i = 0; i < ends.length; i++) {
    const { end, variant } = ends[i] as Buckets["ends"][0];
    if (end > bucket) return variant;
  }
  return null;
}

/** By the first value when that is a text, else by the flag's key and the targeting key. */
function fractional(values: readonly unknown[], key: string, call: FlagCall): unknown {
  const [first, ...rest] = values;
  call.charge(values.length);
  if (typeof first === "string") return bucketed(first, bucketsOf(rest));
  const target = call.context["targetingKey"];
  return target ? bucketed(`${key}${plain(target)}`, bucketsOf(values)) : null;
}
