// @ts-check
/** `npm run bench [-- NAME...]`: the programs of bench/ one after the other, or those named. */
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

/** What the others use, and what installs other systems and takes an hour: `npm run bench:peers`. */
const apart = new Set(["load", "peers", "processes"]);

await runMain(async () => {
  const known = readdirSync(path.join(root, "bench"))
    .filter((file) => file.endsWith(".ts"))
    .map((file) => file.slice(0, -3))
    .filter((name) => !apart.has(name));
  const wanted = process.argv.length > 2 ? process.argv.slice(2) : known;
  for (const name of wanted) {
    if (!known.includes(name))
      throw new SetupError(`No bench ${JSON.stringify(name)}: there are ${known.join(", ")}`);
  }
  await ensureModules();
  await ensureRuntimes(["bun"]);
  for (const name of wanted) {
    console.log(`== ${name}`);
    const { command, args } = runCommand("bun", `bench/${name}.ts`);
    const child = spawn(command, args, { cwd: root, stdio: "inherit" });
    const code = await new Promise((resolve) => child.on("close", resolve));
    if (code !== 0) throw new SetupError(`Bench ${name} ended with ${code}`);
  }
});
