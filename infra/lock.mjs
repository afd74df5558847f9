// @ts-check
/**
 * Completes package-lock.json. A registry mirror may lack the builds of a package for other platforms; npm then leaves
 * them out of the lock, and `npm ci` refuses the lock everywhere. They are optional and exact, so what they are follows
 * from the entry that names them. Run after every change of dependencies: `npm run lock`.
 */
import { readFileSync, writeFileSync } from "node:fs";

const file = new URL("../package-lock.json", import.meta.url);
const lock = JSON.parse(readFileSync(file, "utf8"));
const systems = [
  "aix",
  "android",
  "darwin",
  "freebsd",
  "linux",
  "netbsd",
  "openbsd",
  "openharmony",
  "sunos",
  "win32",
];
/** @type {Record<string, string>} */
const processors = {
  aarch64: "arm64",
  arm: "arm",
  arm64: "arm64",
  ia32: "ia32",
  loong64: "loong64",
  mips64el: "mips64el",
  ppc64: "ppc64",
  riscv64: "riscv64",
  s390x: "s390x",
  x64: "x64",
};

let added = 0;
for (const [path, entry] of Object.entries(lock.packages)) {
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    const key = `node_modules/${name}`;
    if (lock.packages[key] || lock.packages[`${path}/${key}`]) continue;
    const words = name.split(/[/-]/);
    const cpu = words.flatMap((word) => processors[word] ?? []);
    const os = words.filter((word) => systems.includes(word));
    const libc = words.some((word) => word.startsWith("musl"))
      ? ["musl"]
      : words.some((word) => /^(gnu|glibc)/.test(word))
        ? ["glibc"]
        : [];
    lock.packages[key] = {
      version,
      ...(cpu.length > 0 && { cpu }),
      ...(entry.dev && { dev: true }),
      ...(libc.length > 0 && { libc }),
      optional: true,
      ...(os.length > 0 && { os }),
    };
    added += 1;
  }
}
const { "": root, ...others } = lock.packages;
const sorted = Object.entries(others).toSorted(([a], [b]) => (a < b ? -1 : 1));
lock.packages = { "": root, ...Object.fromEntries(sorted) };
writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`);
console.log(
  added === 0
    ? "package-lock.json is complete"
    : `package-lock.json: ${added} optional packages of other platforms added`,
);
