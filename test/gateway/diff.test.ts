import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { unifiedDiff } from "../../src/gateway/diff.ts";

const names = ["a", "b"] as const;

/** What `patch` does. */
function patch(from: string, diff: string): string {
  const lines = from === "" ? [] : from.slice(0, -1).split("\n");
  const out: string[] = [];
  let at = 0;
  for (const line of diff.split("\n").slice(2, -1)) {
    const hunk = /^@@ -(\d+),(\d+) \+\d+,\d+ @@$/.exec(line);
    if (hunk !== null) {
      const start = hunk[2] === "0" ? Number(hunk[1]) : Number(hunk[1]) - 1;
      while (at < start) out.push(lines[at++] as string);
    } else if (line.startsWith("+")) out.push(line.slice(1));
    else {
      expect(lines[at]).toBe(line.slice(1));
      if (line.startsWith(" ")) out.push(line.slice(1));
      at++;
    }
  }
  while (at < lines.length) out.push(lines[at++] as string);
  return out.length === 0 ? "" : `${out.join("\n")}\n`;
}

describe("unifiedDiff()", () => {
  test("of equal texts is empty", () => {
    expect(unifiedDiff("a\nb\n", "a\nb\n", names)).toBe("");
  });

  test("shows three lines around, and distant changes apart", () => {
    const from = Array.from({ length: 20 }, (_, i) => `${i}\n`).join("");
    const to = from.replace("2\n", "two\n").replace("18\n", "");
    expect(unifiedDiff(from, to, names)).toMatchInlineSnapshot(`
      "--- a
      +++ b
      @@ -1,6 +1,6 @@
       0
       1
      -2
      +two
       3
       4
       5
      @@ -16,5 +16,4 @@
       15
       16
       17
      -18
       19
      "
    `);
  });

  test("applied to the one text gives the other", () => {
    const line = fc.constantFrom("a", "b", "c", "d", "");
    const text = fc
      .array(line, { maxLength: 40 })
      .map((lines) => lines.map((one) => `${one}\n`).join(""));
    fc.assert(
      fc.property(text, text, (from, to) => {
        const diff = unifiedDiff(from, to, names);
        if (from === to) expect(diff).toBe("");
        else expect(patch(from, diff)).toBe(to);
      }),
      { numRuns: 500 },
    );
  });

  test("of texts that differ everywhere is bounded, and still right", () => {
    const text = (word: string): string =>
      Array.from({ length: 5_000 }, (_, i) => `${word} ${i}\n`).join("");
    expect(patch(text("from"), unifiedDiff(text("from"), text("to"), names))).toBe(text("to"));
  });

  test("of much that is equal around a little that is not shows the little", () => {
    const text = (word: string): string =>
      `${"above\n".repeat(10_000)}${`${word}\n`.repeat(600)}${"below\n".repeat(10_000)}`;
    const diff = unifiedDiff(text("from"), text("to"), names);
    expect(patch(text("from"), diff)).toBe(text("to"));
    expect(diff.split("\n").filter((line) => line.startsWith(" "))).toHaveLength(6);
    expect(diff).toContain("@@ -9998,606 +9998,606 @@\n above\n above\n above\n-from\n");
  });
});
