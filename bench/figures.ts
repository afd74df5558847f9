/**
 * Where the proof of each figure is: gathers from bench/results every row that says what was wanted into
 * bench/results/README.md, with what was measured and how that file was made. Measures nothing itself.
 *
 * Run: npm run bench -- figures
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";

const results = path.join(import.meta.dirname, "results");

interface Figure {
  readonly what: string;
  readonly wanted: string;
  readonly measured: string;
}

const cellsOf = (line: string): string[] =>
  line
    .split("|")
    .slice(1, -1)
    .map((cell) => cell.trim());

/** Of each table with a column `wanted`, the rows in which it is not empty. */
function figuresOf(text: string): Figure[] {
  const found: Figure[] = [];
  let [wanted, measured] = [-1, -1];
  for (const line of text.split("\n")) {
    const cells = cellsOf(line);
    if (!line.startsWith("|")) [wanted, measured] = [-1, -1];
    else if (cells.includes("wanted")) {
      wanted = cells.indexOf("wanted");
      measured = cells.indexOf("measured");
      if (measured < 0) measured = 1;
    } else if (wanted > 0 && !/^-+:?$/.test(cells[1] ?? "") && (cells[wanted] ?? "") !== "") {
      const [what = ""] = cells;
      // What was not measured in the runs that the file holds.
      if ((cells[measured] ?? "") === "") continue;
      found.push({ what, wanted: cells[wanted] ?? "", measured: cells[measured] ?? "" });
    }
  }
  return found;
}

/** The sentence below the title, that names command, commit, date and machine. */
const madeBy = (text: string): string =>
  text
    .split("\n")
    .slice(1)
    .find((line) => line.trim() !== "") ?? "";

const files = readdirSync(results)
  .filter((name) => name.endsWith(".md") && name !== "README.md")
  .sort();
const texts = files.map((name) => [name, readFileSync(path.join(results, name), "utf8")] as const);
const rows = texts.flatMap(([name, text]) =>
  figuresOf(text).map(
    ({ what, wanted, measured }) =>
      `| ${what} | ${wanted} | ${measured} | [${name.slice(0, -3)}](${name}) |`,
  ),
);
writeFileSync(
  path.join(results, "README.md"),
  `# Figures

What was aimed at and what was measured: each row is one of a result file, gathered by \`npm run bench -- figures\`.
Why a figure is missed is said in [bench/README.md](../README.md). How busy the machine was is said in each file: a load average above a few tenths makes rates and latencies worse than they are.

| figure | wanted | measured | from |
| --- | --- | --- | --- |
${rows.join("\n")}

## How they were made

${texts.map(([name, text]) => `- [${name.slice(0, -3)}](${name}): ${madeBy(text)}`).join("\n")}
`,
);
console.log(`${rows.length} figures of ${files.length} files: bench/results/README.md`);
