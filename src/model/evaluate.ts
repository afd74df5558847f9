/**
 * Which version a client gets: the first rule whose labels all hold, whose time has come and whose rollout holds the
 * client; else the default. The same code decides on the server and in the SDK, so it takes its clock as an argument.
 *
 * A label that is missing fails every condition except `not` and `exists: false`; a value that cannot be read as what an
 * operator compares (a number, a version) fails it. Nothing here throws on odd rules or labels: a rule that cannot be
 * understood does not match.
 */
import { murmur3Text } from "./murmur3.ts";
import type { LabelMatch, Labels, Release, ReleaseRule } from "./release.ts";
import { inRange, parseRange, parseVersion } from "./semver.ts";
import type { Range, Version } from "./semver.ts";
import { parseTime } from "./time.ts";

/** Parts of a rollout: a step of 0.001 % is one part. */
export const bucketParts = 100_000;

export interface Evaluation {
  readonly version: number | null;
  /** Id of the rule that won, null for the default. */
  readonly rule: string | null;
}

export function evaluate(release: Release, labels: Labels, nowMs: number): Evaluation {
  for (const rule of release.rules) {
    if (!inSchedule(rule, nowMs) || !labelsHold(rule, labels)) continue;
    if (rule.rollout !== undefined && !inRollout(rule, labels)) continue;
    return { version: rule.version, rule: rule.id };
  }
  return { version: release.default, rule: null };
}

/** 0 … 99,999. Depends on the salt and the value alone: a larger percentage only adds buckets. */
export function bucketOf(salt: string, value: string): number {
  // A product below 2^49: exact in a double.
  return Math.floor((murmur3Text(`${salt}/${value}`) * bucketParts) / 0x1_0000_0000);
}

/** The buckets below this are in. */
export function bucketsOf(percentage: number): number {
  return Math.round(percentage * 1_000);
}

function labelOf(labels: Labels, name: string): string | undefined {
  return Object.hasOwn(labels, name) ? labels[name] : undefined;
}

/**
 * The labels in an OpenFeature evaluation context: its texts, and numbers and booleans as JSON writes them.
 * @param names of the attributes that rules look at; what is null, a list or an object is no label
 */
export function contextLabels(
  context: Readonly<Record<string, unknown>>,
  names: readonly string[],
): Labels {
  const labels: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const name of names) {
    const value = Object.hasOwn(context, name) ? context[name] : undefined;
    if (typeof value === "string") labels[name] = value;
    else if (typeof value === "boolean" || Number.isFinite(value))
      labels[name] = JSON.stringify(value);
  }
  return labels;
}

function labelsHold(rule: ReleaseRule, labels: Labels): boolean {
  for (const name of Object.keys(rule.match))
    if (!labelHolds(rule.match[name] as LabelMatch, labelOf(labels, name))) return false;
  return true;
}

function isList(match: LabelMatch): match is readonly string[] {
  return Array.isArray(match);
}

const decimal = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?$/;

function numberOf(value: string): number {
  return value.length <= 64 && decimal.test(value) ? Number(value) : Number.NaN;
}

function labelHolds(match: LabelMatch, value: string | undefined): boolean {
  if (typeof match === "string") return value === match;
  if (isList(match)) return value !== undefined && match.includes(value);
  if (match.exists !== undefined && match.exists !== (value !== undefined)) return false;
  if (match.not !== undefined && value !== undefined) {
    if (typeof match.not === "string" ? match.not === value : match.not.includes(value))
      return false;
  }
  if (match.prefix !== undefined && !(value?.startsWith(match.prefix) ?? false)) return false;
  if (match.suffix !== undefined && !(value?.endsWith(match.suffix) ?? false)) return false;
  if (match.semver !== undefined && !versionHolds(match.semver, value)) return false;
  const { gt, gte, lt, lte } = match;
  if (gt === undefined && gte === undefined && lt === undefined && lte === undefined) return true;
  // NaN fails every comparison, so what is no number is never in.
  const number = value === undefined ? Number.NaN : numberOf(value);
  return (
    (gt === undefined || number > gt) &&
    (gte === undefined || number >= gte) &&
    (lt === undefined || number < lt) &&
    (lte === undefined || number <= lte)
  );
}

/** What was parsed lately: the same ranges come with every request, and clients have few versions at a time. */
const ranges = new Map<string, Range | null>();
const versions = new Map<string, Version | null>();
const parsedMax = 1_000;

function parsed<T>(cache: Map<string, T | null>, text: string, parse: (text: string) => T | null) {
  let value = cache.get(text);
  if (value === undefined) {
    if (cache.size >= parsedMax) cache.clear();
    value = parse(text);
    // Long texts are odd, and a thousand of them would be much to keep.
    if (text.length <= 64) cache.set(text, value);
  }
  return value;
}

function versionHolds(text: string, value: string | undefined): boolean {
  const version = value === undefined ? null : parsed(versions, value, parseVersion);
  if (version === null) return false;
  const range = parsed(ranges, text, parseRange);
  return range !== null && inRange(range, version);
}

/** When the schedule of any rule begins or ends next after `afterMs`; null: none does. */
export function nextTimeOf(rules: readonly ReleaseRule[], afterMs: number): number | null {
  let next: number | null = null;
  for (const { from, until } of rules)
    for (const text of [from, until]) {
      const at = text === undefined ? null : parseTime(text);
      if (at !== null && at > afterMs && (next === null || at < next)) next = at;
    }
  return next;
}

function inSchedule(rule: ReleaseRule, nowMs: number): boolean {
  if (rule.from !== undefined) {
    const from = parseTime(rule.from);
    if (from === null || nowMs < from) return false;
  }
  if (rule.until !== undefined) {
    const until = parseTime(rule.until);
    if (until === null || nowMs >= until) return false;
  }
  return true;
}

/** The id stands in for the salt of a rule that was never stored: the machine gives every stored rollout one. */
function saltOf(rule: ReleaseRule): string {
  return rule.rollout?.salt ?? rule.id;
}

function inRollout(rule: ReleaseRule, labels: Labels): boolean {
  const { rollout } = rule;
  if (rollout === undefined) return true;
  const value = labelOf(labels, rollout.by);
  return value !== undefined && bucketOf(saltOf(rule), value) < bucketsOf(rollout.percentage);
}

// --- why ---------------------------------------------------------------------------------------------------------------

export interface LabelReason {
  readonly label: string;
  readonly expected: LabelMatch;
  /** Null when the client did not send it. */
  readonly actual: string | null;
  readonly holds: boolean;
}

export interface RolloutReason {
  readonly by: string;
  /** Null when the client did not send the label. */
  readonly value: string | null;
  readonly bucket: number | null;
  /** Buckets below this are in. */
  readonly below: number;
  readonly of: number;
  readonly holds: boolean;
}

export interface RuleReason {
  readonly rule: string;
  readonly version: number;
  /** Why it did not win, or that it did. `not-reached`: an earlier rule had won. */
  readonly outcome: "won" | "schedule" | "labels" | "rollout" | "not-reached";
  readonly detail: string;
  readonly labels: readonly LabelReason[];
  readonly rollout: RolloutReason | null;
}

export interface Explanation extends Evaluation {
  readonly detail: string;
  readonly rules: readonly RuleReason[];
}

/** The same decision as `evaluate`, with the reasons of every rule. */
export function explain(release: Release, labels: Labels, nowMs: number): Explanation {
  let winner: ReleaseRule | null = null;
  const rules: RuleReason[] = [];
  for (const rule of release.rules) {
    const reason = reasonOf(rule, labels, nowMs, winner);
    if (reason.outcome === "won") winner = rule;
    rules.push(reason);
  }
  const version = winner === null ? release.default : winner.version;
  return {
    version,
    rule: winner?.id ?? null,
    detail:
      winner !== null
        ? `Rule ${winner.id} gives version ${winner.version}`
        : version === null
          ? "No rule matches, and the release has no default"
          : `No rule matches: the default gives version ${version}`,
    rules,
  };
}

function reasonOf(
  rule: ReleaseRule,
  labels: Labels,
  nowMs: number,
  winner: ReleaseRule | null,
): RuleReason {
  const labelReasons = Object.keys(rule.match).map((label): LabelReason => {
    const expected = rule.match[label] as LabelMatch;
    const actual = labelOf(labels, label);
    return { label, expected, actual: actual ?? null, holds: labelHolds(expected, actual) };
  });
  const rollout = rolloutReason(rule, labels);
  const failed = labelReasons.find((reason) => !reason.holds);
  const base = { rule: rule.id, version: rule.version, labels: labelReasons, rollout };
  if (winner !== null)
    return { ...base, outcome: "not-reached", detail: `Rule ${winner.id} had won before` };
  if (!inSchedule(rule, nowMs))
    return { ...base, outcome: "schedule", detail: scheduleDetail(rule) };
  if (failed !== undefined)
    return {
      ...base,
      outcome: "labels",
      detail:
        failed.actual === null
          ? `Label ${failed.label} is missing`
          : `Label ${failed.label} does not match`,
    };
  if (rollout !== null && !rollout.holds)
    return {
      ...base,
      outcome: "rollout",
      detail:
        rollout.bucket === null
          ? `Label ${rollout.by}, which decides the bucket, is missing`
          : `Bucket ${rollout.bucket} is not below ${rollout.below} of ${rollout.of}`,
    };
  return { ...base, outcome: "won", detail: `All conditions hold: version ${rule.version}` };
}

function scheduleDetail(rule: ReleaseRule): string {
  const from = rule.from === undefined ? "" : ` from ${rule.from}`;
  const until = rule.until === undefined ? "" : ` until ${rule.until}`;
  return `The rule is considered only${from}${until}`;
}

function rolloutReason(rule: ReleaseRule, labels: Labels): RolloutReason | null {
  const { rollout } = rule;
  if (rollout === undefined) return null;
  const value = labelOf(labels, rollout.by);
  return {
    by: rollout.by,
    value: value ?? null,
    bucket: value === undefined ? null : bucketOf(saltOf(rule), value),
    below: bucketsOf(rollout.percentage),
    of: bucketParts,
    holds: inRollout(rule, labels),
  };
}
