// @ts-check
/**
 * Puts the SDK into a package of its own, without what only a node needs: `npm pack dist/conflux-sdk` gives what can be
 * installed anywhere.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";

/** Subpath of the package → module of src/sdk. */
export const doors = {
  ".": "mod",
  "./server": "server",
  "./react": "react",
  "./openfeature": "openfeature",
  "./file": "file",
  "./testing": "testing",
  "./admin": "admin",
};

const imports = /(?:from|import|import\()\s*"(\.[^"]+)\.[jt]s"/g;

/**
 * @param {string} root of the repository
 * @param {string} dist what `tsc` wrote
 * @returns {string} the package's folder
 */
export function packSdk(root, dist) {
  const out = path.join(dist, "conflux-sdk");
  rmSync(out, { recursive: true, force: true });
  const files = new Set(Object.values(doors).map((door) => `sdk/${door}.js`));
  for (const file of files) {
    for (const kind of [file, file.replace(/\.js$/, ".d.ts")]) {
      const source = path.join(dist, kind);
      if (!existsSync(source)) throw new Error(`The build has no ${kind}`);
      mkdirSync(path.dirname(path.join(out, kind)), { recursive: true });
      cpSync(source, path.join(out, kind));
      for (const [, to] of readFileSync(source, "utf8").matchAll(imports))
        files.add(`${path.posix.join(path.posix.dirname(file), /** @type {string} */ (to))}.js`);
    }
  }
  const { version, license, dependencies } = JSON.parse(
    readFileSync(path.join(root, "package.json"), "utf8"),
  );
  const manifest = {
    name: "conflux-sdk",
    version,
    description: "Live configuration from Conflux, for Bun, Deno, Node, browsers and edge workers",
    license,
    type: "module",
    sideEffects: false,
    exports: Object.fromEntries(
      Object.entries(doors).map(([subpath, door]) => [
        subpath,
        { types: `./sdk/${door}.d.ts`, default: `./sdk/${door}.js` },
      ]),
    ),
    // Types of the management client only; nothing of it is loaded.
    dependencies: { "@sinclair/typebox": dependencies["@sinclair/typebox"] },
    peerDependencies: { react: ">=18" },
    peerDependenciesMeta: { react: { optional: true } },
  };
  writeFileSync(path.join(out, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  cpSync(path.join(root, "LICENSE"), path.join(out, "LICENSE"));
  return out;
}
