/**
 * Plants every bug of mutations.ts, one at a time, and demands that each is found: `bun test/negative/main.ts`, with
 * `--only id,id` for some of them or `--slice 2/4` for the second quarter. A run over all of them writes the table
 * docs/planted-bugs.md, and so does one that goes on where another ended (`--results FILE` keeps each verdict as it comes). Ends with 1 when one survives. `--by sim` (or `test`) lets only killers of that kind loose, to see
 * what the simulator finds by itself.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { mutations } from "./mutations.ts";
import { checkPlaces, Greenhouse, root } from "./planting.ts";
import type { Killer, Mutation, Verdict } from "./planting.ts";

const { values } = parseArgs({
  options: {
    only: { type: "string" },
    slice: { type: "string" },
    by: { type: "string" },
    results: { type: "string" },
    "skip-control": { type: "boolean", default: false },
  },
});

/** By mutation, of earlier runs and of this one. */
const known = new Map<string, Verdict>();
if (values.results !== undefined && existsSync(values.results))
  for (const [id, verdict] of JSON.parse(readFileSync(values.results, "utf8")) as [
    string,
    Verdict,
  ][])
    known.set(id, verdict);
const chosen = limited(choose()).filter(({ id }) => !known.has(id));
checkPlaces(mutations);
const greenhouse = new Greenhouse();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    greenhouse.remove();
    process.exit(130);
  });
const startedAt = performance.now();
const results: { mutation: Mutation; verdict: Verdict }[] = [];
try {
  if (!values["skip-control"]) await control();
  for (const [index, mutation] of chosen.entries()) {
    tell(`${index + 1}/${chosen.length} ${mutation.id} `);
    const verdict = await greenhouse.try(mutation);
    results.push({ mutation, verdict });
    known.set(mutation.id, verdict);
    if (values.results !== undefined) writeFileSync(values.results, JSON.stringify([...known]));
    const end = verdict.killed ? "killed" : "SURVIVED";
    tell(`${end} after ${(verdict.ms / 1_000).toFixed(1)} s: ${verdict.by}\n`);
  }
} finally {
  greenhouse.remove();
}
const survivors = results.filter(({ verdict }) => !verdict.killed);
const seconds = Math.round((performance.now() - startedAt) / 1_000);
tell(`${results.length} planted, ${results.length - survivors.length} killed, in ${seconds} s\n`);
for (const { mutation } of survivors) tell(`survived: ${mutation.id} (${mutation.file})\n`);
if (values.by === undefined) {
  const all = mutations.flatMap((mutation) => {
    const verdict = known.get(mutation.id);
    return verdict === undefined ? [] : [{ mutation, verdict }];
  });
  if (all.length === mutations.length)
    writeFileSync(path.join(root, "docs/planted-bugs.md"), table(all));
}
process.exit(survivors.length === 0 ? 0 : 1);

function tell(text: string): void {
  process.stdout.write(text);
}

function choose(): readonly Mutation[] {
  if (values.only !== undefined) {
    const ids = values.only.split(",");
    for (const id of ids)
      if (!mutations.some((mutation) => mutation.id === id))
        throw new Error(`No mutation is called ${id}`);
    return mutations.filter(({ id }) => ids.includes(id));
  }
  if (values.slice === undefined) return mutations;
  const [part = 0, parts = 0] = values.slice.split("/").map(Number);
  if (!(part >= 1 && part <= parts)) throw new Error("Give a slice as 1/4 to 4/4");
  return mutations.filter((_, index) => index % parts === part - 1);
}

function limited(all: readonly Mutation[]): readonly Mutation[] {
  const { by } = values;
  if (by === undefined) return all;
  return all
    .map((mutation) => ({
      ...mutation,
      killers: mutation.killers.filter(({ kind }) => kind === by),
    }))
    .filter(({ killers }) => killers.length > 0);
}

/** Killers that fail on sound code would prove nothing. */
async function control(): Promise<void> {
  const files = new Set<string>();
  const seeds = new Map<number, number>();
  for (const { killers } of chosen)
    for (const killer of killers)
      if (killer.kind === "test") for (const file of killer.files) files.add(file);
      else seeds.set(killer.from, Math.max(seeds.get(killer.from) ?? 0, killer.seeds));
  const controls: Killer[] = [{ kind: "test", files: [...files].sort() }];
  for (const [from, count] of seeds) controls.push({ kind: "sim", seeds: count, from });
  for (const killer of controls) {
    const what =
      killer.kind === "test" ? `${killer.files.length} test files` : `${killer.seeds} seeds`;
    tell(`control: ${what} on the sound sources `);
    const found = await greenhouse.unleash(killer);
    if (found !== null) throw new Error(`The sound sources do not pass: ${found}`);
    tell("pass\n");
  }
}

function table(all: readonly { mutation: Mutation; verdict: Verdict }[]): string {
  const lines = [
    "# Planted bugs",
    "",
    "Generated by `npm run test:negative`; do not edit.",
    "Each row is one change to sound sources that brings a known mistake back, and what noticed it.",
    "Rules are those of `docs/rules.md`; H, J and M0 are this project's own, of host, journal and machine. The changes themselves are in `test/negative/mutations.ts`.",
    "",
    "| bug | rule | where | what it breaks | killed by | s |",
    "| --- | --- | --- | --- | --- | --- |",
  ];
  for (const { mutation, verdict } of all) {
    const cells = [
      mutation.id,
      mutation.rule,
      `\`${mutation.file.replace("src/", "")}\``,
      mutation.breaks,
      verdict.killed ? verdict.by : "**survives**",
      (verdict.ms / 1_000).toFixed(1),
    ];
    lines.push(`| ${cells.map(cell).join(" | ")} |`);
  }
  const bySeed = all.filter(({ verdict }) => verdict.by.startsWith("seed ")).length;
  const killed = all.filter(({ verdict }) => verdict.killed).length;
  lines.push(
    "",
    `${all.length} planted: ${killed - bySeed} killed by a test, ${bySeed} by the simulator, ${all.length - killed} survive.`,
    "",
  );
  return lines.join("\n");
}

/** One line of a table, short enough to be read. */
function cell(text: string): string {
  const line = text.replaceAll("|", "\\|").replaceAll("\n", " ");
  return line.length > 160 ? `${line.slice(0, 157)}…` : line;
}
