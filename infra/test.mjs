// @ts-check
/**
 * `npm test`: installs what is missing, then the static checks; then, two at a time as each keeps about one core busy,
 * the suite without the end-to-end tests on Vitest, the same once more on Bun, and a slice of the simulator's seeds; and
 * last the end-to-end tests, which have the machine to themselves. All of it runs, also after something failed. What ran
 * beside something else is printed when it ends. The last lines name what failed, with its message, and count the tests.
 */
import { spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
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

/**
 * @param {string | null} name of the log in .results that its output goes to; null: to the terminal
 * @param {string} command
 * @param {string[]} args
 * @returns {Promise<number>} its exit code
 */
function run(name, command, args) {
  return new Promise((resolve) => {
    const log = name === null ? null : openSync(logOf(name), "w");
    const output = log ?? "inherit";
    const child = spawn(bin(command), args, { cwd: root, stdio: ["ignore", output, output] });
    if (log !== null) closeSync(log);
    child.on("error", () => resolve(1));
    child.on("close", (code) => resolve(code ?? 1));
  });
}

/** @param {string} name */
const logOf = (name) => path.join(results, `${name}.log`);

/**
 * @param {number} code that the run ended with
 * @param {string} file
 * @param {(text: string) => Report} read
 * @returns {Outcome}
 */
function outcome(code, file, read) {
  const ok = code === 0;
  try {
    return { ok, ...read(readFileSync(file, "utf8")) };
  } catch {
    return { ok, counts: null, failures: [] };
  }
}

/** @typedef {{title: string, message: string}} Failure of a test, or of a file outside its tests */
/** @typedef {{ok: boolean, counts: Counts | null, failures: Failure[]}} Outcome */
/** @typedef {{counts: Counts, failures: Failure[]}} Report */

/** @param {"unit" | "e2e"} project @param {string | null} log @returns {Promise<Outcome>} */
async function vitest(project, log) {
  const file = path.join(results, `vitest-${project}.json`);
  const code = await run(log, "vitest", [
    "run",
    `--project=${project}`,
    "--reporter=default",
    "--reporter=json",
    `--outputFile.json=${file}`,
  ]);
  return outcome(code, file, (text) => {
    const result = JSON.parse(text);
    /** @type {Failure[]} */
    const failures = [];
    for (const { name, status, message, assertionResults } of result.testResults) {
      if (status !== "failed") continue;
      const where = path.relative(root, name);
      const own = assertionResults.filter((/** @type {any} */ one) => one.status === "failed");
      for (const { fullName, failureMessages } of own) {
        failures.push({ title: `${where}: ${fullName}`, message: failureMessages.join("\n") });
      }
      // A file that fails outside its tests (an import, a beforeAll) counts as one failed test.
      if (own.length === 0) failures.push({ title: where, message });
    }
    const counts = {
      passed: result.numPassedTests,
      failed: failures.length,
      skipped: result.numPendingTests + result.numTodoTests,
    };
    return { counts, failures };
  });
}

/** @param {string} log @returns {Promise<Outcome>} */
async function bunTest(log) {
  const file = path.join(results, "bun.xml");
  const code = await run(log, "bun", [
    "test",
    "--only-failures",
    // Five seconds are too few on a busy machine, and bunfig.toml cannot say so (Bun 1.4).
    "--timeout=20000",
    "--path-ignore-patterns=test/e2e/**",
    "--reporter=junit",
    `--reporter-outfile=${file}`,
  ]);
  return outcome(code, file, (text) => {
    const head = /<testsuites [^>]*>/.exec(text)?.[0] ?? "";
    /** @param {string} name */
    const number = (name) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(head)?.[1]);
    const [tests, failed, skipped] = [number("tests"), number("failures"), number("skipped")];
    if (Number.isNaN(tests + failed + skipped)) throw new Error("Cannot read Bun's report");
    /** @type {Failure[]} */
    const failures = [];
    for (const [, test = "", , failure = ""] of text.matchAll(failedOnBun)) {
      const title = `${attribute(test, "file")}: ${attribute(test, "classname")} > ${attribute(test, "name")}`;
      failures.push({ title, message: attribute(failure, "message") });
    }
    return { counts: { passed: tests - failed - skipped, failed, skipped }, failures };
  });
}

/** A test of Bun's JUnit report that failed: its attributes, and those of the failure. */
const failedOnBun =
  /<testcase ((?:[\w-]+="[^"]*" ?)*)>\s*<(failure|error)\b((?: [\w-]+="[^"]*")*)/g;

/** @param {string} attributes @param {string} name */
function attribute(attributes, name) {
  const escaped = new RegExp(`(?:^| )${name}="([^"]*)"`).exec(attributes)?.[1] ?? "";
  return escaped.replaceAll(/&(?:#(\d+)|(\w+));/g, (whole, code, entity) =>
    code === undefined ? (entities.get(entity) ?? whole) : String.fromCodePoint(Number(code)),
  );
}

const entities = new Map(Object.entries({ amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" }));

/** Seeds of the simulator that every change passes, in parts that fill what the suites leave free. */
const seedsEach = 400;
const simulators = 4;

/** @param {number} part @param {string} log @returns {Promise<Outcome>} */
async function simulation(part, log) {
  const from = String(1 + part * seedsEach);
  const args = ["test/sim/main.ts", "--seeds", String(seedsEach), "--from", from];
  const ok = (await run(log, "bun", args)) === 0;
  const message = ok ? "" : readFileSync(logOf(log), "utf8").slice(-messageLength);
  return {
    ok,
    counts: { passed: ok ? 1 : 0, failed: ok ? 0 : 1, skipped: 0 },
    failures: ok ? [] : [{ title: `seeds from ${from}`, message }],
  };
}

/** Characters of a failure's message that the end of the run repeats. */
const messageLength = 1_200;

const stillMs = 60_000;

/**
 * Runs all of them, so many at a time, in this order, and prints each one's output when it has ended.
 * @param {readonly {title: string, log: string, act: (log: string) => Promise<Outcome>}[]} tasks
 * @param {number} width
 * @returns {Promise<Outcome[]>}
 */
async function together(tasks, width) {
  /** @type {Outcome[]} */
  const outcomes = [];
  const running = new Set();
  const still = setInterval(() => console.log(`… ${[...running].join(", ")}`), stillMs);
  let next = 0;
  const work = async () => {
    while (next < tasks.length) {
      const at = next++;
      const task = tasks[at];
      if (task === undefined) return;
      const { title, log, act } = task;
      running.add(title);
      const startedAt = performance.now();
      outcomes[at] = await act(log);
      running.delete(title);
      const took = ((performance.now() - startedAt) / 1_000).toFixed(0);
      console.log(`\n== ${title}: ${outcomes[at]?.ok ? "ok" : "FAILED"} after ${took} s`);
      process.stdout.write(readFileSync(logOf(log), "utf8"));
    }
  };
  await Promise.all(Array.from({ length: width }, work));
  clearInterval(still);
  return outcomes;
}

/** @param {Counts} counts */
const inWords = ({ passed, failed, skipped }) =>
  `${passed} passed, ${failed} failed, ${skipped} skipped`;

/** @param {readonly Outcome[]} outcomes @returns {Outcome} of all of them; what wrote no counts adds none */
function total(outcomes) {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const one of outcomes) {
    counts.passed += one.counts?.passed ?? 0;
    counts.failed += one.counts?.failed ?? 0;
    counts.skipped += one.counts?.skipped ?? 0;
  }
  const failures = outcomes.flatMap((one) => one.failures);
  return { ok: outcomes.every(({ ok }) => ok), counts, failures };
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
  const parts = Array.from({ length: simulators }, (_, part) => ({
    title: `simulation, seeds from ${1 + part * seedsEach}`,
    log: `simulation-${part}`,
    act: (/** @type {string} */ log) => simulation(part, log),
  }));
  console.log(
    "\n== tests on Vitest (Node) and on Bun, simulation; each is shown when it has ended",
  );
  const [onNode, onBun, ...simulated] = await together(
    [
      { title: "tests on Vitest", log: "vitest", act: (log) => vitest("unit", log) },
      { title: "tests on Bun", log: "bun", act: bunTest },
      ...parts,
    ],
    Math.min(2, availableParallelism()),
  );
  console.log("\n== end-to-end tests on Vitest");
  const endToEnd = await vitest("e2e", null);
  /** @type {(readonly [string, Outcome])[]} */
  const outcomes = [
    ["vitest", /** @type {Outcome} */ (onNode)],
    ["bun test", /** @type {Outcome} */ (onBun)],
    ["end to end", endToEnd],
    ["simulation", total(simulated)],
  ];
  for (const [name, { ok }] of outcomes) if (!ok) failed.push(name);

  for (const [name, { failures }] of outcomes) {
    for (const { title, message } of failures) {
      console.log(`\nFAILED: ${name}: ${title}\n${message.slice(0, messageLength)}`);
    }
  }
  console.log("");
  if (failed.length > 0) console.log(`FAILED: ${failed.join(", ")}`);
  for (const [name, { ok, counts }] of outcomes) {
    if (counts !== null) console.log(`${name}: ${inWords(counts)}`);
    else console.log(`${name} wrote no result`);
    if (counts === null && ok) failed.push(name);
  }
  const {
    passed,
    failed: failures,
    skipped,
  } = /** @type {Counts} */ (total(outcomes.map(([, one]) => one)).counts);
  console.log(
    `tests: ${passed} passed, ${failures} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`,
  );
  return failed.length === 0 ? 0 : 1;
});
