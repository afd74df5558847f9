/**
 * The way in: what another system exports, as manifests (see ../apply.ts) that can be looked at, kept, compared and
 * applied like any other. One function per system turns bytes into configs and remarks; here they are found by name,
 * and what they give is written down.
 */
import { createReadStream } from "node:fs";
import { lstat, readdir, readFile, stat } from "node:fs/promises";
import { basename, join, sep } from "node:path";
import process from "node:process";
import type { Readable } from "node:stream";
import { UsageError } from "../arguments.ts";
import { contentIn, extensions, manifestText } from "../export.ts";
import { suggestion } from "../../lib/nearest.ts";
import { fromApollo, fromEnv, fromNacos, fromProperties } from "./documents.ts";
import { fromFlagd } from "./flagd.ts";
import {
  importBytesMax,
  importConfigsMax,
  Importing,
  type Imported,
  type ImportFile,
  type ImportOptions,
} from "./importing.ts";
import { fromConsul, fromEtcd } from "./key_values.ts";
import { fromUnleash } from "./unleash.ts";
import { isZip, unzip } from "./zip.ts";

type Convert = (file: ImportFile, out: Importing) => void;

/** Of one file each; Nacos has many in one. */
const systems = {
  flagd: fromFlagd,
  unleash: fromUnleash,
  etcd: fromEtcd,
  consul: fromConsul,
  apollo: fromApollo,
  nacos: null,
  properties: fromProperties,
  env: fromEnv,
} as const satisfies Record<string, Convert | null>;

type ImportSystem = keyof typeof systems;

export const importSystems = Object.keys(systems) as readonly ImportSystem[];

/** @throws UsageError */
export function importSystemOf(given: string | undefined): ImportSystem {
  const all = importSystems.join(", ");
  if (given === undefined) throw new UsageError(`Name the system that it is from: --from ${all}`);
  if (Object.hasOwn(systems, given)) return given as ImportSystem;
  const hint = suggestion(given, importSystems);
  throw new UsageError(
    `Option --from takes ${all}: got ${given}${hint.startsWith("did") ? `; ${hint}` : ""}`,
  );
}

/**
 * What an export becomes. Pure: the same bytes give the same configs and remarks.
 * @param files one, or those of a folder of Nacos
 * @throws ImportError
 */
export function convertExport(
  system: ImportSystem,
  files: readonly ImportFile[],
  options: ImportOptions,
): Imported {
  const out = new Importing(system, options);
  const isOneConfig = system === "properties" || system === "env";
  if (options.name !== null && !isOneConfig && system !== "apollo")
    out.fail(`Leave --name out: ${system} has names; --rename KEY=NAME gives another`);
  if (options.environment !== null && system !== "unleash")
    out.fail("Leave --environment out: only an export of Unleash has several");
  if (options.prefix !== "" && isOneConfig)
    out.fail("Leave --prefix out: the file becomes one config");
  const convert = systems[system];
  const [file] = files;
  if (convert === null) fromNacos(nacosFiles(files, out), out);
  else if (file === undefined || files.length > 1) out.fail(`Give one file: ${system} exports one`);
  else if (isZip(file.bytes)) out.fail("Unpack the zip, and give the file that is meant");
  else convert(file, out);
  return out.done();
}

/** A folder has its files already. */
function nacosFiles(files: readonly ImportFile[], out: Importing): readonly ImportFile[] {
  const [file] = files;
  if (file === undefined || files.length > 1 || file.path.includes("/")) return files;
  if (!isZip(file.bytes))
    out.fail("Give the zip that Nacos exports, or the folder that it unpacks to");
  return unzip(file.bytes);
}

/** Text by path from the folder of manifests: the manifest, and contents beside it. */
export function manifestOf(
  { tenant, namespace }: { readonly tenant: string; readonly namespace: string },
  { configs }: Imported,
): Map<string, string> {
  const files = new Map([[`${tenant}.yaml`, ""]]);
  const entries = configs.map(({ name, format, content, description, tags }) => {
    const ending = `.${extensions[format]}`;
    let file = `${tenant}/${namespace}/${name}${name.endsWith(ending) ? "" : ending}`;
    // Of `a` and `a.json` the first, as names are in order, has it already.
    while (files.has(file)) file += ending;
    const shape = {
      format,
      ...(description !== undefined && { description }),
      ...(tags !== undefined && { tags }),
    };
    return [name, { ...shape, ...contentIn(files, file, content) }] as const;
  });
  files.set(
    `${tenant}.yaml`,
    manifestText({ tenant, namespaces: { [namespace]: { configs: Object.fromEntries(entries) } } }),
  );
  return files;
}

/** What nobody may lose by an import: files that are there already. */
export async function refuseExisting(folder: string, files: Iterable<string>): Promise<void> {
  for (const file of files) {
    const path = join(folder, file);
    // A link that leads nowhere is there too: what is written to it would go where it points.
    const isThere = await lstat(path).then(
      () => true,
      () => false,
    );
    if (isThere)
      throw new UsageError(
        `There is ${path} already: name another folder (each can be applied by itself), or take it away`,
      );
  }
}

// --- reading -----------------------------------------------------------------------------------------------------------

/**
 * An export from where it lies: a file, standard input for `-`, or a folder for Nacos.
 * @throws UsageError
 */
export async function readExport(system: ImportSystem, path: string): Promise<ImportFile[]> {
  if (path === "-") return [{ path: "", bytes: await bytesOf(process.stdin) }];
  try {
    const found = await stat(path);
    const isFolder = found.isDirectory();
    if (isFolder && system !== "nacos")
      throw new UsageError(`Name a file: ${path} is a folder, which only --from nacos takes`);
    if (isFolder) return await readFolder(path);
    if (found.size > importBytesMax) throw tooLarge();
    // Of pipes and devices nobody knows how much they have.
    const bytes = found.isFile() ? await readFile(path) : await bytesOf(createReadStream(path));
    return [{ path: basename(path), bytes }];
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(`Cannot read ${path}: ${(error as Error).message}`);
  }
}

async function readFolder(folder: string): Promise<ImportFile[]> {
  const files: ImportFile[] = [];
  let total = 0;
  const names = (await readdir(folder, { recursive: true })).toSorted();
  if (names.length > importConfigsMax)
    throw new UsageError(
      `Name a folder of ${importConfigsMax} files at most: ${folder} has ${names.length}`,
    );
  for (const name of names) {
    const path = join(folder, name);
    const found = await lstat(path);
    // A link could lead anywhere.
    if (!found.isFile()) continue;
    total += found.size;
    if (total > importBytesMax) throw tooLarge();
    files.push({ path: name.split(sep).join("/"), bytes: await readFile(path) });
  }
  return files;
}

async function bytesOf(stream: Readable): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  let total = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    total += chunk.length;
    if (total > importBytesMax) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function tooLarge(): UsageError {
  return new UsageError(
    `Import ${importBytesMax / 1024 / 1024} MiB at most at once: export a part`,
  );
}
