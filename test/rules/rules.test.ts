/** That docs/rules.md has every rule once, and names no test that is not there. */
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";

const root = path.resolve(import.meta.dirname, "../..");
const read = (file: string): string => readFileSync(path.join(root, file), "utf8");

/** How many rules each section has: 115 in all. */
const SECTIONS = { E: 19, L: 22, S: 12, M: 15, R: 10, D: 8, C: 5, W: 14, T: 10 };
const STATES = ["held", "core", "part", "not built"];

interface Rule {
  readonly id: string;
  readonly says: string;
  readonly state: string;
  /** What stands between backticks and has an arrow in it: a file, then names. */
  readonly citations: readonly (readonly string[])[];
  /** What is said beside them. */
  readonly note: string;
}

function rulesOf(document: string): Rule[] {
  return document
    .split("\n")
    .filter((line) => /^\| [A-Z]\d+ \|/.test(line))
    .map((line) => {
      const cells = line.slice(1, -1).split(/(?<!\\)\|/);
      const [id, says, state, last] = cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
      const quoted = [...(last ?? "").matchAll(/`([^`]+ › [^`]+)`/g)].map(
        (match) => match[1] ?? "",
      );
      let note = last ?? "";
      for (const one of quoted) note = note.replace(`\`${one}\``, "");
      return {
        id: id ?? "",
        says: says ?? "",
        state: state ?? "",
        citations: quoted.map((one) => one.split(" › ")),
        note: note.replaceAll("<br>", "").trim(),
      };
    });
}

/** `host/rpc` is test/host/rpc.test.ts; a name with its ending is that file. */
function fileOf(name: string): string {
  return `test/${name.endsWith(".ts") ? name : `${name}.test.ts`}`;
}

/** A test's name stands in quotes of one kind or another; what a simulator checks is part of what it says. */
function contains(source: string, name: string, isTest: boolean): boolean {
  if (!isTest) return source.includes(name);
  return ['"', "'", "`"].some((quote) => source.includes(`${quote}${name}${quote}`));
}

function complaintsOf(
  rules: readonly Rule[],
  sourceOf: (file: string) => string | undefined,
): string[] {
  const complaints: string[] = [];
  const expected = Object.entries(SECTIONS).flatMap(([letter, count]) =>
    Array.from({ length: count }, (_, at) => `${letter}${at + 1}`),
  );
  for (const id of expected) {
    const times = rules.filter((rule) => rule.id === id).length;
    if (times !== 1) complaints.push(`${id} is there ${times} times`);
  }
  for (const { id, says, state, citations, note } of rules) {
    if (!expected.includes(id)) complaints.push(`${id} is no rule`);
    if (says === "") complaints.push(`${id} says nothing`);
    if (!STATES.includes(state)) complaints.push(`${id} is in no known state: ${state}`);
    if (state !== "not built" && citations.length === 0) complaints.push(`${id} names no test`);
    if ((state === "part" || state === "not built") && note === "")
      complaints.push(`${id} does not say what is missing`);
    for (const [name, ...parts] of citations) {
      const file = fileOf(name ?? "");
      const source = sourceOf(file);
      if (source === undefined) complaints.push(`${id} names ${file}, which is not there`);
      for (const part of parts)
        if (source !== undefined && !contains(source, part, file.endsWith(".test.ts")))
          complaints.push(`${id} names "${part}", which is not in ${file}`);
    }
  }
  return complaints;
}

describe("docs/rules.md", () => {
  const rules = rulesOf(read("docs/rules.md"));

  test("has every rule once, says how it is held, and names tests that are there", () => {
    expect(Object.values(SECTIONS).reduce((sum, count) => sum + count)).toBe(115);
    const sourceOf = (file: string): string | undefined =>
      existsSync(path.join(root, file)) ? read(file) : undefined;
    expect(complaintsOf(rules, sourceOf)).toEqual([]);
    // A table that names nothing would not complain either.
    expect(rules.flatMap(({ citations }) => citations).length).toBeGreaterThan(150);
  });

  test("is complained about when a rule, a file or a name is gone", () => {
    const rows = (cell: string): Rule[] => [
      ...rules.filter(({ id }) => id !== "E1"),
      ...rulesOf(`| E1 | Votes are durable | held | ${cell} |`),
    ];
    const sourceOf = (file: string): string | undefined =>
      file === "test/a/b.test.ts" ? 'test("one | two", () => {});' : `"${file}"`;
    const own = (cell: string): string[] =>
      complaintsOf(rows(cell), sourceOf).filter((complaint) => complaint.startsWith("E1 "));
    expect(own("`a/b › one \\| two`")).toEqual([]);
    expect(own("`a/b › one`")).toEqual(['E1 names "one", which is not in test/a/b.test.ts']);
    expect(own("nothing")).toEqual(["E1 names no test"]);
    expect(complaintsOf(rules.slice(1), sourceOf)).toContain("E1 is there 0 times");
    expect(complaintsOf([...rules, ...rules], sourceOf)).toContain("E2 is there 2 times");
    expect(complaintsOf(rows("`a/b › one`"), () => undefined)).toContain(
      "E1 names test/a/b.test.ts, which is not there",
    );
  });
});
