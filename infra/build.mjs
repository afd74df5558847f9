// @ts-check
/** `npm run build`: the sources as JavaScript with declarations in dist/, for Node 20 and for packages. */
import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import path from "node:path";
import { bin, ensureModules, root, runMain } from "./bootstrap.mjs";

await runMain(async () => {
  await ensureModules();
  rmSync(path.join(root, "dist"), { recursive: true, force: true });
  return (
    spawnSync(bin("tsc"), ["-p", "tsconfig.build.json"], { cwd: root, stdio: "inherit" }).status ??
    1
  );
});
