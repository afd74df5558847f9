// @ts-check
/**
 * `npm test`: installs what is missing, then the static checks, the whole suite on Vitest, the suite without the
 * end-to-end tests once more on Bun, and a slice of the simulator's seeds. All of it runs, also after something failed. The last line counts the tests.
 */
import { spawn } from "node:child_process";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import {
  bin,
  ensureModules,
  ensureRuntimes,
  root,
  runMain,
  runtimes,
  SetupError,
} from "./bootstrap.mjs";
import { runChecks, staticChecks } from "./check.mjs";

/** @typedef {{passed: number, failed: number, skipped: number}} Counts */

const results = path.join(root, ".results");

/** @param {string} command @param {string[]} args @returns {Promise<number>} */
function run(command, args) {
  return new Promise((resolve) => {
    const child = spawn(bin(command), args, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
    child.on("error", () => resolve(1));
    child.on("close", (code) => resolve(code ?? 1));
  });
}

/** @param {string} file @param {(text: string) => Counts} read @returns {Counts | null} */
function counts(file, read) {
  try {
    return read(readFileSync(file, "utf8"));
  } catch {
    return null;
  }
}

/** @returns {Promise<{ok: boolean, counts: Counts | null}>} */
async function vitest() {
  const file = path.join(results, "vitest.json");
  const code = await run("vitest", [
    "run",
    "--reporter=default",
    "--reporter=json",
    `--outputFile.json=${file}`,
  ]);
  const found = counts(file, (text) => {
    const result = JSON.parse(text);
    // A file that fails outside its tests (an import, a beforeAll) counts as one failed test.
    const broken = result.testResults.filter(
      (/** @type {any} */ file) =>
        file.status === "failed" &&
        !file.assertionResults.some((/** @type {any} */ one) => one.status === "failed"),
    );
    return {
      passed: result.numPassedTests,
      failed: result.numFailedTests + broken.length,
      skipped: result.numPendingTests + result.numTodoTests,
    };
  });
  return { ok: code === 0, counts: found };
}

/** @returns {Promise<{ok: boolean, counts: Counts | null}>} */
async function bunTest() {
  const file = path.join(results, "bun.xml");
  const code = await run("bun", [
    "test",
    "--only-failures",
    "--path-ignore-patterns=test/e2e/**",
    "--reporter=junit",
    `--reporter-outfile=${file}`,
  ]);
  const found = counts(file, (text) => {
    const head = /<testsuites [^>]*>/.exec(text)?.[0] ?? "";
    /** @param {string} name */
    const number = (name) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(head)?.[1]);
    const [tests, failed, skipped] = [number("tests"), number("failures"), number("skipped")];
    if (Number.isNaN(tests + failed + skipped)) throw new Error("Cannot read Bun's report");
    return { passed: tests - failed - skipped, failed, skipped };
  });
  return { ok: code === 0, counts: found };
}

/** Seeds of the simulator that every change passes, on as many processes as the machine should have cores for. */
const seedsEach = 1_000;
const simulators = 2;

/** @returns {Promise<{ok: boolean, counts: Counts | null}>} */
async function simulation() {
  const codes = await Promise.all(
    Array.from({ length: simulators }, (_, i) =>
      run("bun", [
        "test/sim/main.ts",
        "--seeds",
        String(seedsEach),
        "--from",
        String(1 + i * seedsEach),
      ]),
    ),
  );
  const failed = codes.filter((code) => code !== 0).length;
  return { ok: failed === 0, counts: { passed: simulators - failed, failed, skipped: 0 } };
}

await runMain(async () => {
  await ensureModules();
  await ensureRuntimes(runtimes);
  const { ensureNatsServer } = await import("./nats_server.mjs");
  await ensureNatsServer({ log: (line) => console.error(`conflux: ${line}`) }).catch(
    (/** @type {Error} */ error) => {
      throw new SetupError(error.message, { cause: error });
    },
  );
  rmSync(results, { recursive: true, force: true });
  mkdirSync(results);

  console.log("\n== checks");
  const failed = await runChecks(staticChecks);
  console.log("\n== tests on Vitest (Node)");
  const onNode = await vitest();
  if (!onNode.ok) failed.push("vitest");
  console.log("\n== tests on Bun, without the end-to-end ones");
  const onBun = await bunTest();
  if (!onBun.ok) failed.push("bun test");
  console.log(`\n== simulation, ${simulators * seedsEach} seeds`);
  const simulated = await simulation();
  if (!simulated.ok) failed.push("simulation");

  console.log("");
  if (failed.length > 0) console.log(`FAILED: ${failed.join(", ")}`);
  const sum = { passed: 0, failed: 0, skipped: 0 };
  for (const [name, result] of /** @type {const} */ ([
    ["vitest", onNode],
    ["bun test", onBun],
    ["simulation", simulated],
  ])) {
    if (result.counts === null) {
      console.log(`${name} wrote no result`);
      if (result.ok) failed.push(name);
      continue;
    }
    const { passed, failed: failures, skipped } = result.counts;
    console.log(`${name}: ${passed} passed, ${failures} failed, ${skipped} skipped`);
    sum.passed += passed;
    sum.failed += failures;
    sum.skipped += skipped;
  }
  console.log(
    `tests: ${sum.passed} passed, ${sum.failed} failed${sum.skipped > 0 ? `, ${sum.skipped} skipped` : ""}`,
  );
  return failed.length === 0 ? 0 : 1;
});
