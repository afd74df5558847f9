// @ts-check
/**
 * `npm run bench [-- NAME... [--FLAG...]]`: the programs of bench/ one after the other, or those named, with their flags.
 */
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import {
  ensureModules,
  ensureRuntimes,
  root,
  runCommand,
  runMain,
  SetupError,
} from "./bootstrap.mjs";

/** What the others use. */
const parts = new Set(["load", "processes", "report", "spread", "systems"]);
/** Installs other systems and takes a quarter of an hour: when it is named only. */
const apart = "peers";

await runMain(async () => {
  const known = readdirSync(path.join(root, "bench"))
    .filter((file) => file.endsWith(".ts"))
    .map((file) => file.slice(0, -3))
    .filter((name) => !parts.has(name));
  const words = process.argv.slice(2);
  const flagsAt = words.findIndex((word) => word.startsWith("-"));
  const named = flagsAt < 0 ? words : words.slice(0, flagsAt);
  const flags = flagsAt < 0 ? [] : words.slice(flagsAt);
  const wanted = named.length > 0 ? named : known.filter((name) => name !== apart);
  for (const name of wanted) {
    if (!known.includes(name))
      throw new SetupError(`No bench ${JSON.stringify(name)}: there are ${known.join(", ")}`);
  }
  await ensureModules();
  await ensureRuntimes(["bun"]);
  for (const name of wanted) {
    console.log(`== ${name}`);
    const { command, args } = runCommand("bun", `bench/${name}.ts`, flags);
    const child = spawn(command, args, { cwd: root, stdio: "inherit" });
    const code = await new Promise((resolve) => child.on("close", resolve));
    if (code !== 0) throw new SetupError(`Bench ${name} ended with ${code}`);
  }
});
