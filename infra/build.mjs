// @ts-check
/**
 * `npm run build`: the sources as JavaScript with declarations in dist/, for Node 20; and in dist/conflux-sdk the SDK as
 * a package of its own.
 */
import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import path from "node:path";
import { bin, ensureModules, root, runMain } from "./bootstrap.mjs";
import { packSdk } from "./sdk_package.mjs";

await runMain(async () => {
  await ensureModules();
  const dist = path.join(root, "dist");
  rmSync(dist, { recursive: true, force: true });
  const { status } = spawnSync(bin("tsc"), ["-p", "tsconfig.build.json"], {
    cwd: root,
    stdio: "inherit",
  });
  if (status === 0) packSdk(root, dist);
  return status ?? 1;
});
