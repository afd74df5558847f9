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

const intro = `# conflux-sdk

Live configuration from Conflux, typed, for Bun, Deno, Node, browsers and edge workers. Nothing native, and nothing is loaded but itself: \`fetch\` and streams are all it needs.

\`\`\`sh
npm install ./conflux-sdk-VERSION.tgz   # it is not in the registry yet
\`\`\`

| door | what it is |
| --- | --- |
| \`conflux-sdk\` | the client: effective values for its labels, always there, always live |
| \`conflux-sdk/server\` | the same for services: it holds the rules and decides for each caller in its own process |
| \`conflux-sdk/react\` | hooks |
| \`conflux-sdk/openfeature\` | providers for OpenFeature's server and web SDKs |
| \`conflux-sdk/file\` | keeps what was known last on disk (Node, Deno, Bun) |
| \`conflux-sdk/testing\` | the same client for tests, its values set by them |
| \`conflux-sdk/admin\` | manages configs, releases, keys and tenants |
`;
/** Sections of the repository's README that are for who installs the package; tests run their programs. */
const sections = ["From a service in Node, Deno or Bun", "From a React app"];
/** How the package is made: whoever reads it has it. */
const aboutPacking = /^`npm run build && .*\n/m;

/**
 * @param {string} readme the repository's
 * @param {string} version
 */
function packageReadme(readme, version) {
  const parts = readme.split(/^## /m);
  const found = sections.map((title) => {
    const part = parts.find((one) => one.startsWith(`${title}\n`));
    if (part === undefined) throw new Error(`README.md has no section ${title}`);
    return `## ${part.replace(aboutPacking, "").trimEnd()}\n`;
  });
  return [intro.replace("VERSION", version), ...found].join("\n");
}

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
  const readme = readFileSync(path.join(root, "README.md"), "utf8");
  writeFileSync(path.join(out, "README.md"), packageReadme(readme, version));
  return out;
}
