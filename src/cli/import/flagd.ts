/**
 * Flag sets as flagd reads them, JSON or YAML (https://flagd.dev/reference/flag-definitions/). Each flag becomes a
 * config of format `flag`, which evaluates to the same: shared evaluators and metadata of the set are copied into each
 * flag, and where a flag gets another name, its buckets go on by the old one.
 */
import { targetingNodesMax } from "../../model/flags.ts";
import { shown } from "../../model/names.ts";
import { isFields, laidOut, type Fields, type ImportFile, type Importing } from "./importing.ts";

const hint = "Give a flag set of flagd: an object with `flags`, as JSON or YAML";

export function fromFlagd(file: ImportFile, out: Importing): void {
  const isJson = out.text(file).trimStart().startsWith("{");
  const set = isJson ? out.json(file, hint) : out.yaml(file, hint);
  if (!isFields(set)) return out.fail(hint);
  const { flags, $evaluators: evaluators = {}, metadata } = set;
  if (!isFields(evaluators)) return out.fail("/$evaluators: Give an object from name to rule");
  if (metadata !== undefined && !isFields(metadata)) return out.fail("/metadata: Give an object");
  for (const [at, key, flag] of flagsIn(flags, out)) {
    if (!out.isWanted(key)) continue;
    if (!isFields(flag)) {
      out.problem(`${at}: Give a flag as an object of state, variants, defaultVariant, targeting`);
      continue;
    }
    const name = out.nameOf(key);
    if (name === null) continue;
    try {
      const content = flagOf(flag, metadata, new Targeting(evaluators, key, name));
      out.add({ key, name, format: "flag", content: laidOut(content) });
    } catch (error) {
      if (!(error instanceof NotCarried)) throw error;
      out.leftOut(key, error.message);
      continue;
    }
    if (name !== key)
      out.note(key, `its name is ${name} now: that is the key that clients have to ask for`);
  }
}

/** By key, or in a list with the key in each. */
function flagsIn(
  flags: unknown,
  out: Importing,
): (readonly [at: string, key: string, flag: unknown])[] {
  if (isFields(flags))
    return Object.entries(flags).map(([key, flag]) => [`/flags/${key}`, key, flag] as const);
  if (!Array.isArray(flags)) return out.fail(`/flags: Give the flags. ${hint}`);
  return (flags as unknown[]).map((flag, index) => {
    const at = `/flags/${index}`;
    const { key, ...definition } = isFields(flag) ? flag : {};
    if (typeof key !== "string" || key === "")
      return out.fail(`${at}/key: Give the key of the flag`);
    return [at, key, definition] as const;
  });
}

function flagOf(flag: Fields, shared: Fields | undefined, targeting: Targeting): Fields {
  const { targeting: logic, metadata, ...rest } = flag;
  // What is neither object nor nothing stays, to be refused with the place where it is.
  const ofBoth = isFields(metadata ?? {})
    ? { ...shared, ...(metadata as Fields | undefined) }
    : metadata;
  return {
    ...rest,
    ...(logic !== undefined && logic !== null && { targeting: targeting.carried(logic, true) }),
    ...((!isFields(ofBoth) || Object.keys(ofBoth).length > 0) && { metadata: ofBoth }),
  };
}

/** A flag that cannot become a config; the message says why. */
class NotCarried extends Error {}

const iterations: ReadonlySet<string> = new Set(["map", "filter", "some", "all", "none", "reduce"]);

/** Targeting without references to what stands elsewhere in the set, or to a key that the flag has no more. */
class Targeting {
  readonly #evaluators: Fields;
  /** Null: the flag has it still. */
  readonly #formerKey: string | null;
  /** Evaluators that are being copied. */
  readonly #open = new Set<string>();
  #nodes = 0;

  constructor(evaluators: Fields, key: string, name: string) {
    this.#evaluators = evaluators;
    this.#formerKey = key === name ? null : key;
  }

  /** @param isRoot whether `var` looks into the context; within `map` and its like it does not */
  carried(logic: unknown, isRoot: boolean): unknown {
    // Copies within copies grow fast.
    this.#nodes += 1;
    if (this.#nodes > targetingNodesMax)
      throw new NotCarried(`its targeting has more than ${targetingNodesMax} operators and values`);
    if (Array.isArray(logic)) return logic.map((item: unknown) => this.carried(item, isRoot));
    if (!isFields(logic)) return logic;
    const [operator, more] = Object.keys(logic);
    // None or several: refused later, with the place.
    if (operator === undefined || more !== undefined) return logic;
    const given = logic[operator];
    if (operator === "$ref") return this.#copy(given, isRoot);
    if (iterations.has(operator) && Array.isArray(given))
      return {
        [operator]: (given as unknown[]).map((item, i) => this.carried(item, isRoot && i !== 1)),
      };
    const within = this.carried(given, isRoot);
    if (this.#formerKey === null) return { [operator]: within };
    if (operator === "var" && isRoot && pathOf(given) === "$flagd.flagKey") return this.#formerKey;
    if (operator === "fractional" && Array.isArray(given) && Array.isArray(given[0]))
      return bucketsBy(this.#formerKey, within as unknown[], isRoot);
    return { [operator]: within };
  }

  #copy(given: unknown, isRoot: boolean): unknown {
    const name = typeof given === "string" ? given : "";
    if (!Object.hasOwn(this.#evaluators, name))
      throw new NotCarried(`its targeting refers to ${shown(name)}, which is not in $evaluators`);
    if (this.#open.has(name))
      throw new NotCarried(`its targeting refers to ${shown(name)}, which refers to itself`);
    this.#open.add(name);
    const copied = this.carried(this.#evaluators[name], isRoot);
    this.#open.delete(name);
    return copied;
  }
}

function pathOf(given: unknown): unknown {
  return Array.isArray(given) ? (given as unknown[])[0] : given;
}

/** A rollout that names nothing to go by goes by the flag's key and the targeting key: so it says that itself. */
function bucketsBy(key: string, buckets: readonly unknown[], isRoot: boolean): unknown {
  if (!isRoot)
    throw new NotCarried(
      "its targeting has a rollout within map or its like, which goes by the key",
    );
  const target = { var: "targetingKey" };
  return { if: [target, { fractional: [{ cat: [key, target] }, ...buckets] }, null] };
}
