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
  killWithUs,
  root,
  runCommand,
  runMain,
  runtimeEnv,
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
    args.some((arg) => /^--(tenants|config)(=|$)/.test(arg)) ||
    process.env["CONFLUX_TENANTS"] !== undefined;
  const env = {
    ...runtimeEnv,
    ...(!tenantsGiven && { CONFLUX_TENANTS: "./tenants" }),
    ...process.env,
  };
  // A process group of its own: Ctrl-C in a terminal reaches every process of the group, and the node would take the copy
  // passed on from here for a second one, which means "at once".
  const child = spawn(program.command, program.args, {
    cwd: root,
    stdio: "inherit",
    env,
    detached: true,
  });
  for (const signal of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"])) {
    process.on(signal, () => child.kill(signal));
  }
  const release = child.pid === undefined ? () => {} : killWithUs(child.pid);
  return new Promise((resolve, reject) => {
    child.on("error", (error) =>
      reject(new SetupError(`Cannot start ${program.command}: ${error.message}`)),
    );
    child.on("exit", (code, signal) => {
      release();
      resolve(code ?? 128 + (signal ? constants.signals[signal] : 0));
    });
  });
});
