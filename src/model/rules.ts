/**
 * Checks of release rules as a client sent them. Takes anything, so that the same sentences serve the gateway, the CLI
 * and the SDK; pointers are relative to the array of rules.
 */
import { checkLabelName, checkRuleId, escapePointer, shown } from "./names.ts";
import { comparatorsMax, parseRange } from "./semver.ts";
import { parseTime } from "./time.ts";
import { utf8Length } from "./utf8.ts";

export interface RuleError {
  readonly pointer: string;
  readonly detail: string;
}

export const rulesMax = 100;
export const labelsPerRuleMax = 64;
export const valuesPerLabelMax = 1_000;
export const matchValueLengthMax = 1_024;
export const saltLengthMax = 128;
/** A release is copied into the row of its config, so all its rules together stay small. */
export const rulesBytesMax = 262_144;
const errorsMax = 20;

const ruleFields = ["id", "match", "rollout", "from", "until", "version"];
const rolloutFields = ["percentage", "by", "salt", "algorithm"];
const operators = ["not", "prefix", "suffix", "exists", "semver", "gt", "gte", "lt", "lte"];

export function validateRules(
  rules: unknown,
  options: {
    /** Default: 100. */
    readonly rulesMax?: number;
    /** Whether such a version exists; without it any number ≥ 1 is taken. */
    readonly hasVersion?: (version: number) => boolean;
  } = {},
): readonly RuleError[] {
  if (!Array.isArray(rules))
    return [{ pointer: "", detail: "Give the rules as an array, first match first" }];
  const max = options.rulesMax ?? rulesMax;
  if (rules.length > max)
    return [{ pointer: "", detail: `Give at most ${max} rules: there are ${rules.length}` }];
  const check = new RuleCheck(options.hasVersion ?? null);
  rules.forEach((rule: unknown, i) => check.rule(rule, `/${i}`));
  if (check.errors.length === 0) {
    const bytes = utf8Length(JSON.stringify(rules));
    if (bytes > rulesBytesMax)
      check.add("", `Shorten the rules to ${rulesBytesMax} bytes of JSON: they have ${bytes}`);
  }
  return check.errors;
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

class RuleCheck {
  readonly errors: RuleError[] = [];
  readonly #ids = new Set<string>();
  readonly #hasVersion: ((version: number) => boolean) | null;

  constructor(hasVersion: ((version: number) => boolean) | null) {
    this.#hasVersion = hasVersion;
  }

  add(pointer: string, detail: string | null): void {
    if (detail !== null && this.errors.length < errorsMax) this.errors.push({ pointer, detail });
  }

  rule(rule: unknown, at: string): void {
    if (!isObject(rule))
      return this.add(at, "Give each rule as an object with id, match and version");
    this.#unknown(rule, ruleFields, at);
    if (typeof rule["id"] !== "string")
      this.add(`${at}/id`, "Give each rule an id, unique in the release");
    else {
      this.add(`${at}/id`, checkRuleId(rule["id"]));
      if (this.#ids.has(rule["id"]))
        this.add(`${at}/id`, `Give each rule its own id: ${shown(rule["id"])} comes twice`);
      this.#ids.add(rule["id"]);
    }
    this.#version(rule["version"], `${at}/version`);
    this.#match(rule["match"], `${at}/match`);
    if (rule["rollout"] !== undefined) this.#rollout(rule["rollout"], `${at}/rollout`);
    this.#schedule(rule, at);
  }

  #unknown(object: Readonly<Record<string, unknown>>, known: readonly string[], at: string): void {
    for (const field of Object.keys(object))
      if (!known.includes(field))
        this.add(
          `${at}/${escapePointer(field)}`,
          `Leave out ${shown(field)}: known are ${known.join(", ")}`,
        );
  }

  #version(version: unknown, at: string): void {
    if (typeof version !== "number" || !Number.isSafeInteger(version) || version < 1)
      return this.add(at, "Name the version by its number, from 1");
    if (this.#hasVersion !== null && !this.#hasVersion(version))
      this.add(at, `Name a version that exists: there is no version ${version}`);
  }

  #match(match: unknown, at: string): void {
    if (!isObject(match))
      return this.add(at, "Give match as an object from label to condition; {} matches everyone");
    const names = Object.keys(match);
    if (names.length > labelsPerRuleMax)
      return this.add(at, `Match at most ${labelsPerRuleMax} labels: there are ${names.length}`);
    for (const name of names) {
      const pointer = `${at}/${escapePointer(name)}`;
      this.add(pointer, checkLabelName(name));
      this.#condition(match[name], pointer);
    }
  }

  #condition(condition: unknown, at: string): void {
    if (typeof condition === "string") return this.#text(condition, at);
    if (Array.isArray(condition)) return this.#list(condition, at);
    if (!isObject(condition))
      return this.add(
        at,
        `Give a text, a list of texts, or an object of ${operators.join(", ")} for the label`,
      );
    if (Object.keys(condition).length === 0)
      return this.add(at, `Give at least one of ${operators.join(", ")}`);
    this.#unknown(condition, operators, at);
    const { not, prefix, suffix, exists, semver } = condition as Record<string, unknown>;
    if (not !== undefined) {
      if (Array.isArray(not)) this.#list(not, `${at}/not`);
      else this.#text(not, `${at}/not`);
    }
    if (prefix !== undefined) this.#text(prefix, `${at}/prefix`);
    if (suffix !== undefined) this.#text(suffix, `${at}/suffix`);
    if (exists !== undefined && typeof exists !== "boolean")
      this.add(`${at}/exists`, "Give true or false for exists");
    if (semver !== undefined && (typeof semver !== "string" || parseRange(semver) === null))
      this.add(
        `${at}/semver`,
        `Give 1 to ${comparatorsMax} comparators separated by spaces, each =, !=, <, <=, >, >=, ^ or ~ ` +
          `and a full version such as ">=1.2.0 <2.0.0"`,
      );
    for (const operator of ["gt", "gte", "lt", "lte"]) {
      const bound = condition[operator];
      if (bound !== undefined && (typeof bound !== "number" || !Number.isFinite(bound)))
        this.add(`${at}/${operator}`, `Give a number for ${operator}`);
    }
  }

  #list(list: readonly unknown[], at: string): void {
    if (list.length === 0 || list.length > valuesPerLabelMax)
      return this.add(at, `List 1 to ${valuesPerLabelMax} values: there are ${list.length}`);
    list.forEach((value, i) => this.#text(value, `${at}/${i}`));
  }

  #text(value: unknown, at: string): void {
    if (typeof value !== "string")
      return this.add(at, "Give a text: values of labels are always texts");
    if (value.length > matchValueLengthMax)
      this.add(
        at,
        `Shorten the value to ${matchValueLengthMax} characters: it has ${value.length}`,
      );
  }

  #rollout(rollout: unknown, at: string): void {
    if (!isObject(rollout)) return this.add(at, "Give rollout as an object of percentage and by");
    this.#unknown(rollout, rolloutFields, at);
    const { percentage, by, salt, algorithm } = rollout as Record<string, unknown>;
    if (typeof percentage !== "number" || !isPercentage(percentage))
      this.add(`${at}/percentage`, "Give a percentage from 0 to 100 in steps of 0.001");
    if (typeof by !== "string")
      this.add(`${at}/by`, "Name the label whose value decides the bucket, such as userId");
    else this.add(`${at}/by`, checkLabelName(by));
    if (
      salt !== undefined &&
      (typeof salt !== "string" || salt === "" || salt.length > saltLengthMax)
    )
      this.add(`${at}/salt`, `Give a salt of 1 to ${saltLengthMax} characters, or none`);
    if (algorithm !== undefined && algorithm !== "murmur3-100k")
      this.add(`${at}/algorithm`, `Leave the algorithm out or give "murmur3-100k"`);
  }

  #schedule(rule: Readonly<Record<string, unknown>>, at: string): void {
    const times = ["from", "until"].map((field) => {
      const text = rule[field];
      if (text === undefined) return null;
      const time = typeof text === "string" ? parseTime(text) : null;
      if (time === null)
        this.add(`${at}/${field}`, "Give an RFC 3339 time such as 2030-01-31T12:00:00Z");
      return time;
    });
    const [from, until] = times as [number | null, number | null];
    if (from !== null && until !== null && until <= from)
      this.add(`${at}/until`, "Give an until that is after from");
  }
}

function isPercentage(value: number): boolean {
  if (!(value >= 0 && value <= 100)) return false;
  const parts = value * 1_000;
  // 12.345 * 1000 is not exactly 12345 in a double; what is nearer than any step is meant.
  return Math.abs(parts - Math.round(parts)) < 1e-6;
}
