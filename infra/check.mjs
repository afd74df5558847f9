// @ts-check
/**
 * `npm run check`: everything that can be said about the sources without running them, plus the tidy test. It reads only;
 * `npm run fix` writes. All checks run, also after one failed.
 */
import { spawn } from "node:child_process";
import { bin, ensureModules, isProgram, root, runMain } from "./bootstrap.mjs";

/** @typedef {{name: string, command: string, args: string[]}} Check */

/** @type {readonly Check[]} */
export const staticChecks = [
  { name: "format (oxfmt)", command: "oxfmt", args: ["--check"] },
  { name: "lint (oxlint, type-aware)", command: "oxlint", args: ["--type-aware"] },
  { name: "types (tsc)", command: "tsc", args: ["-p", "tsconfig.json"] },
  { name: "pure floors (tsc)", command: "tsc", args: ["-p", "tsconfig.core.json"] },
  { name: "unused code (knip)", command: "knip", args: [] },
];

/** @type {Check} */
const tidy = { name: "tidy", command: "vitest", args: ["run", "test/tidy.test.ts"] };

/** @param {Check} check @returns {Promise<boolean>} */
async function passes({ name, command, args }) {
  process.stdout.write(`${name} … `);
  const started = performance.now();
  const child = spawn(bin(command), args, { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (text) => (output += text));
  const code = await new Promise((resolve) => {
    child.on("error", (error) => {
      output += error.message;
      resolve(1);
    });
    child.on("close", (exit, signal) => resolve(exit ?? signal));
  });
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  process.stdout.write(
    code === 0
      ? `ok (${seconds} s)\n`
      : `FAILED (${seconds} s, exit ${code})\n${output.trimEnd()}\n\n`,
  );
  return code === 0;
}

/** Runs the checks one after the other. @param {readonly Check[]} checks @returns {Promise<string[]>} names of the failed ones */
export async function runChecks(checks) {
  const failed = [];
  for (const check of checks) if (!(await passes(check))) failed.push(check.name);
  return failed;
}

if (isProgram(import.meta.url)) {
  await runMain(async () => {
    await ensureModules();
    const failed = await runChecks([...staticChecks, tidy]);
    if (failed.length > 0) console.log(`checks failed: ${failed.join(", ")}`);
    return failed.length === 0 ? 0 : 1;
  });
}
