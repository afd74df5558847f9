/**
 * `npm run crash -- --kills 1000`: real processes on a real disk, ended hard again and again, and after each everything
 * that was acknowledged looked for. A failure keeps its directory and prints the seed. Then the power goes, at random places of
 * recorded lives.
 *
 *   --kills N        how many (100)
 *   --cuts N         of the power (50)
 *   --seed N         decides how each ends (1); what the processes do in between is the machine's to decide
 *   --runtimes A,B   used in turn (bun,bun,node,deno)
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { addCounts, canInject, CrashRun, describeHow } from "./kills.ts";
import type { Runtime } from "./node_process.ts";
import { powerLosses } from "./power.ts";

const { values } = parseArgs({
  options: {
    kills: { type: "string", default: "100" },
    cuts: { type: "string", default: "50" },
    seed: { type: "string", default: "1" },
    runtimes: { type: "string", default: "bun,bun,node,deno" },
  },
});
const kills = Number(values.kills);
const cuts = canInject ? Number(values.cuts) : 0;
const runtimes = values.runtimes.split(",") as Runtime[];
/** A directory is begun anew after so many lives: recovery of a young one is worth as much as of an old one. */
const livesEach = 25;
/** Cuts of one recorded life, which lasts for so many lines. */
const cutsEach = 10;
const linesEach = 400;

if (!canInject)
  console.error(
    "conflux: strace is missing or may not trace here: kills are at random only, no points, no EIO, no ENOSPC, no power loss",
  );

const started = performance.now();
const sum = { random: 0, step: 0, point: 0, error: 0, missed: 0 };
let acknowledged = 0;
let seed = Number(values.seed);
let failed = false;

for (let done = 0; done < kills && !failed; seed++) {
  const run = new CrashRun(seed);
  for (let life = 0; life < livesEach && done < kills; life++, done++) {
    const runtime = runtimes[done % runtimes.length] as Runtime;
    const { how, complaints } = await run.crash(runtime);
    if (complaints.length > 0) {
      failed = true;
      console.error(`\nseed ${seed}, life ${life + 1} on ${runtime}, ${describeHow(how)}:`);
      for (const complaint of complaints) console.error(`  ${complaint}`);
      console.error(`kept: ${run.directory}`);
      break;
    }
    progress("kills", done + 1, kills);
  }
  addCounts(sum, run.counts);
  acknowledged += run.ledger.acknowledged;
  if (!failed) run.close();
}

let powerLost = 0;
for (let recorded = 0; powerLost < cuts && !failed; recorded++, seed++) {
  const runtime = runtimes[recorded % runtimes.length] as Runtime;
  let said = 0;
  for await (const loss of powerLosses({ seed, runtime, lines: linesEach, cuts: cutsEach })) {
    powerLost += 1;
    said = loss.acknowledged;
    progress("power losses", powerLost, cuts);
    if (loss.complaints.length === 0) continue;
    failed = true;
    console.error(`\nseed ${seed} on ${runtime}, power lost at line ${loss.line} of the record:`);
    for (const complaint of loss.complaints) console.error(`  ${complaint}`);
    break;
  }
  acknowledged += said;
}

function progress(what: string, done: number, of: number): void {
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  if (process.stderr.isTTY)
    process.stderr.write(`\r\u001b[2K${done} of ${of} ${what}, ${seconds} s`);
  else if (done % 25 === 0) process.stderr.write(`${done} of ${of} ${what}, ${seconds} s\n`);
}

const total = sum.random + sum.step + sum.point + sum.error + sum.missed;
console.log(
  `${process.stderr.isTTY ? "\n" : ""}${total} kills (${sum.random} at random, ${sum.step} at a step of a restore or installation, ${sum.point} at a named system call, ${sum.error} by EIO or ENOSPC, ${sum.missed} that did not come to theirs), ${powerLost} power losses, ` +
    `${acknowledged} acknowledged writes, ${failed ? "NOT ALL AS THEY MUST BE" : "0 lost, 0 half there"}, ${((performance.now() - started) / 1000).toFixed(0)} s`,
);
process.exit(failed ? 1 : 0);
