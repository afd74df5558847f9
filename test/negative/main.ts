/**
 * Plants every bug of mutations.ts, one at a time, and demands that each is found: `bun test/negative/main.ts`, with
 * `--only id,id` for some of them or `--slice 2/4` for the second quarter. What is to find them has to pass on the sound
 * sources first, always. `--results FILE` keeps each verdict as it comes, and a later run goes on from there as far as
 * the sources are still the same. Once there is a verdict on all of them the table docs/planted-bugs.md is written. Ends
 * with 1 when one survives. `--by sim` (or `test`) lets only killers of that kind loose, to see what the simulator finds
 * by itself.
 */
import { writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { mutations } from "./mutations.ts";
import { checkPlaces, Greenhouse, killerNamed, root } from "./planting.ts";
import type { Mutation, Verdict } from "./planting.ts";
import { Results } from "./results.ts";

const { values } = parseArgs({
  options: {
    only: { type: "string" },
    slice: { type: "string" },
    by: { type: "string" },
    results: { type: "string" },
  },
});

checkPlaces(mutations);
const asked = limited(choose());
const greenhouse = new Greenhouse();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    greenhouse.remove();
    process.exit(130);
  });
// Of the copy: the working tree may change while this runs.
const results = new Results(greenhouse.folder, values.results ?? null);
const verdicts = new Map(mutations.map((mutation) => [mutation.id, results.verdictOf(mutation)]));
const chosen = asked.filter(({ id }) => verdicts.get(id) === null);
const startedAt = performance.now();
const planted: { mutation: Mutation; verdict: Verdict }[] = [];
try {
  await control();
  for (const [index, mutation] of chosen.entries()) {
    tell(`${index + 1}/${chosen.length} ${mutation.id} `);
    const verdict = await greenhouse.try(mutation);
    if (verdict.killed) await confirm(mutation, verdict);
    planted.push({ mutation, verdict });
    verdicts.set(mutation.id, verdict);
    results.keep(mutation, verdict);
    const end = verdict.killed ? "killed" : "SURVIVED";
    tell(`${end} after ${(verdict.ms / 1_000).toFixed(1)} s: ${verdict.by}\n`);
  }
} finally {
  greenhouse.remove();
}
const survivors = planted.filter(({ verdict }) => !verdict.killed);
const seconds = Math.round((performance.now() - startedAt) / 1_000);
tell(`${planted.length} planted, ${planted.length - survivors.length} killed, in ${seconds} s\n`);
for (const { mutation } of survivors) tell(`survived: ${mutation.id} (${mutation.file})\n`);
if (values.by === undefined) {
  const all = mutations.flatMap((mutation) => {
    const verdict = verdicts.get(mutation.id) ?? null;
    return verdict === null ? [] : [{ mutation, verdict }];
  });
  if (all.length === mutations.length)
    writeFileSync(path.join(root, "docs/planted-bugs.md"), table(all));
  else tell(`${mutations.length - all.length} without a verdict: no table\n`);
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
  for (const killer of results.unproved(chosen.flatMap(({ killers }) => killers))) {
    const what =
      killer.kind === "test" ? `${killer.files.length} test files` : `${killer.seeds} seeds`;
    tell(`control: ${what} on the sound sources `);
    const found = await greenhouse.unleash(killer);
    if (found !== null) throw new Error(`The sound sources do not pass: ${found.by}`);
    results.prove(killer);
    tell("pass\n");
  }
}

/** A test that fails now and then, and a machine too busy to end in time, are no proof either. Seeds always do the same. */
async function confirm(mutation: Mutation, { by, file }: Verdict): Promise<void> {
  if (by.startsWith("seed ")) return;
  for (const killer of file === null ? mutation.killers : [killerNamed(file, by)]) {
    const found = await greenhouse.unleash(killer);
    if (found !== null)
      throw new Error(`${mutation.id} proves nothing, the sound sources do not pass: ${found.by}`);
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
