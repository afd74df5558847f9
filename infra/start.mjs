// @ts-check
/**
 * `npm start`: one Conflux process on the defaults (loopback transport, data in ./data, the tenants of ./tenants), on Bun,
 * in the foreground. Arguments are passed on: `npm start -- --port 9000`. `--runtime bun|deno|node` picks the runtime.
 */
import { spawn } from "node:child_process";
import { constants } from "node:os";
import {
  ensureModules,
  ensureRuntimes,
  root,
  runCommand,
  runMain,
  SetupError,
} from "./bootstrap.mjs";

await runMain(async () => {
  const args = process.argv.slice(2);
  const at = args.indexOf("--runtime");
  const runtime = /** @type {import("./bootstrap.mjs").Runtime} */ (
    at < 0 ? "bun" : (args.splice(at, 2)[1] ?? "")
  );
  const program = runCommand(runtime, "src/main.ts", ["start", ...args]);
  await ensureModules();
  await ensureRuntimes([runtime]);

  const tenantsGiven =
    args.some((arg) => arg === "--tenants" || arg.startsWith("--tenants=")) ||
    process.env["CONFLUX_TENANTS"] !== undefined;
  const env = tenantsGiven ? process.env : { ...process.env, CONFLUX_TENANTS: "./tenants" };
  const child = spawn(program.command, program.args, { cwd: root, stdio: "inherit", env });
  // Ctrl-C reaches the child from the terminal as well; it takes a second one as "now", so only pass on what was sent to us.
  for (const signal of /** @type {const} */ (["SIGTERM", "SIGHUP"]))
    process.on(signal, () => child.kill(signal));
  process.on("SIGINT", () => {
    if (!process.stdin.isTTY) child.kill("SIGINT");
  });
  return new Promise((resolve, reject) => {
    child.on("error", (error) =>
      reject(new SetupError(`Cannot start ${program.command}: ${error.message}`)),
    );
    child.on("exit", (code, signal) =>
      resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)),
    );
  });
});
