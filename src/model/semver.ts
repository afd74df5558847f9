/**
 * Version numbers in label matches: semver.org 2.0.0 §11 precedence with the operators = != < <= > >= ^ ~. Several
 * comparators separated by spaces must all hold. A range names full versions; a label may leave out minor and patch
 * (they count as 0) and may begin with "v", because that is what builds report.
 *
 * Numbers are kept as text and compared by length first: they may be larger than a double can hold.
 */

export interface Version {
  readonly core: readonly [string, string, string];
  /** Dot-separated identifiers of the prerelease; empty = a release. */
  readonly prerelease: readonly string[];
}

type Operator = Relation | "^" | "~";

export type Relation = "=" | "!=" | "<" | "<=" | ">" | ">=";

/** Whether a relation holds between two versions of this order, as `compareVersions` gives it. */
export const relations: Readonly<Record<Relation, (order: number) => boolean>> = {
  "=": (order) => order === 0,
  "!=": (order) => order !== 0,
  "<": (order) => order < 0,
  "<=": (order) => order <= 0,
  ">": (order) => order > 0,
  ">=": (order) => order >= 0,
};

interface Comparator {
  readonly operator: Operator;
  readonly version: Version;
}

const identifier = "(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)";
const suffix =
  `(?:-(${identifier}(?:\\.${identifier})*))?` + `(?:\\+[0-9A-Za-z-]+(?:\\.[0-9A-Za-z-]+)*)?`;
const number = "(0|[1-9][0-9]*)";
const strictPattern = new RegExp(`^${number}\\.${number}\\.${number}${suffix}$`);
const loosePattern = new RegExp(`^v?${number}(?:\\.${number}(?:\\.${number})?)?${suffix}$`);
const comparatorPattern = /^(=|!=|<=|<|>=|>|\^|~)?(.+)$/;

/** Bounds the work of one comparison, whatever a label holds. */
const versionLengthMax = 256;
export const comparatorsMax = 16;

function fromMatch(match: RegExpExecArray | null): Version | null {
  if (match === null) return null;
  const [, major, minor, patch, prerelease] = match;
  return {
    core: [major as string, minor ?? "0", patch ?? "0"],
    prerelease: prerelease === undefined ? [] : prerelease.split("."),
  };
}

export function parseVersion(text: string): Version | null {
  return text.length > versionLengthMax ? null : fromMatch(loosePattern.exec(text));
}

function compareNumbers(a: string, b: string): number {
  if (a.length !== b.length) return a.length - b.length;
  return a < b ? -1 : a > b ? 1 : 0;
}

const digits = /^[0-9]+$/;

function compareIdentifiers(a: string, b: string): number {
  const aNumeric = digits.test(a);
  const bNumeric = digits.test(b);
  if (aNumeric && bNumeric) return compareNumbers(a, b);
  // §11.4.3: numeric identifiers have lower precedence than the others.
  if (aNumeric !== bNumeric) return aNumeric ? -1 : 1;
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Negative, zero or positive, as semver.org §11 orders them; build metadata does not count. */
export function compareVersions(a: Version, b: Version): number {
  for (let i = 0; i < 3; i++) {
    const order = compareNumbers(a.core[i] as string, b.core[i] as string);
    if (order !== 0) return order;
  }
  // §11.3: a version without prerelease comes after all its prereleases.
  if (a.prerelease.length === 0 || b.prerelease.length === 0)
    return b.prerelease.length - a.prerelease.length;
  const shared = Math.min(a.prerelease.length, b.prerelease.length);
  for (let i = 0; i < shared; i++) {
    const order = compareIdentifiers(a.prerelease[i] as string, b.prerelease[i] as string);
    if (order !== 0) return order;
  }
  // §11.4.4: a larger set of identifiers wins when all before are equal.
  return a.prerelease.length - b.prerelease.length;
}

export type Range = readonly Comparator[];

/** Null when the text is not a range. */
export function parseRange(text: string): Range | null {
  const parts = text.split(" ").filter((part) => part !== "");
  if (parts.length === 0 || parts.length > comparatorsMax) return null;
  const range: Comparator[] = [];
  for (const part of parts) {
    if (part.length > versionLengthMax) return null;
    const [, operator, rest] = comparatorPattern.exec(part) ?? [];
    const version = rest === undefined ? null : fromMatch(strictPattern.exec(rest));
    if (version === null) return null;
    range.push({ operator: (operator ?? "=") as Operator, version });
  }
  return range;
}

function holds({ operator, version: base }: Comparator, version: Version): boolean {
  const order = compareVersions(version, base);
  switch (operator) {
    case "^": {
      // The leftmost number that is not zero must stay: ^1.2.3 < 2.0.0, ^0.2.3 < 0.3.0, ^0.0.3 < 0.0.4.
      const fixed = base.core[0] !== "0" ? 1 : base.core[1] !== "0" ? 2 : 3;
      return order >= 0 && sameCore(version, base, fixed);
    }
    case "~":
      return order >= 0 && sameCore(version, base, 2);
    default:
      return relations[operator](order);
  }
}

function sameCore(a: Version, b: Version, parts: number): boolean {
  for (let i = 0; i < parts; i++) if (a.core[i] !== b.core[i]) return false;
  return true;
}

export function inRange(range: Range, version: Version): boolean {
  return range.every((comparator) => holds(comparator, version));
}
