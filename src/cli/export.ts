/**
 * A tenant as a manifest (see apply.ts): applied to an empty cluster, it gives every client the values it gets now.
 * Versions that no release names, history, audit and secrets of keys stay behind.
 */
import process from "node:process";
import { mkdir, realpath, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { parse, stringify } from "yaml";
import type { ConfigDetailAnswer, VersionContentAnswer } from "../api/schemas.ts";
import type { ContentFormat, ReleaseRule } from "../model/release.ts";
import { validateAgainst } from "../model/schema.ts";
import { prepareContent } from "../model/content.ts";
import type { Admin, Where } from "../sdk/admin.ts";

/** Longer contents get files of their own. */
const inlineCharsMax = 2_000;

export const extensions: Readonly<Record<ContentFormat, string>> = {
  json: "json",
  flag: "json",
  yaml: "yaml",
  toml: "toml",
  properties: "properties",
  text: "txt",
};

/** Text by path from the folder of manifests: the manifest first, then the contents it names. */
export async function exportTenant(admin: Admin, tenant: string): Promise<Map<string, string>> {
  const files = new Map<string, string>([[`${tenant}.yaml`, ""]]);
  const { description, quotas, replicas } = await admin.tenant(tenant);
  const namespaces: Record<string, unknown> = {};
  for (const { namespace, extends: base, protected: isProtected } of await admin.namespaces(tenant))
    namespaces[namespace] = {
      ...(base !== null && { extends: base }),
      ...(isProtected && { protected: true }),
      ...(await configsOf(admin, { tenant, namespace }, files)),
    };
  const keys = await keysOf(admin, tenant);
  const manifest = {
    tenant,
    ...(description !== "" && { description }),
    replicas: replicas.length,
    ...(Object.keys(quotas).length > 0 && { quotas }),
    ...(Object.keys(keys).length > 0 && { keys }),
    namespaces,
  };
  files.set(`${tenant}.yaml`, manifestText(manifest));
  return files;
}

export async function writeFiles(
  folder: string,
  files: ReadonlyMap<string, string>,
): Promise<void> {
  for (const [file, text] of files) {
    const path = join(folder, file);
    await mkdir(dirname(path), { recursive: true });
    await writeWhole(path, text);
  }
}

/**
 * Under its name there is all of it, or what was there before. A link stays one, and what is no file (a pipe, /dev/stdout)
 * is written to and not replaced. @throws Error naming the file
 */
export async function writeWhole(path: string, text: string): Promise<void> {
  let aside: string | null = null;
  try {
    const before = await stat(path).catch(() => null);
    if (before !== null && !before.isFile()) return await writeFile(path, text);
    const target = before === null ? path : await realpath(path);
    aside = `${target}.part`;
    await writeFile(aside, text, { flush: true, ...(before !== null && { mode: before.mode }) });
    await rename(aside, target);
  } catch (error) {
    if (aside !== null) await rm(aside, { force: true });
    throw new Error(`Cannot write ${path}: ${(error as Error).message}`, { cause: error });
  }
}

/** Keys that have a name nobody else has; the one that was made with the tenant is made with it again. */
async function keysOf(admin: Admin, tenant: string): Promise<Record<string, unknown>> {
  const keys = (await admin.keys(tenant)).filter(({ description }) => description !== "");
  const madeWithTenant = "made with the tenant";
  return Object.fromEntries(
    keys
      .filter(
        (one) =>
          one.description !== madeWithTenant &&
          one.expiresAt === null &&
          keys.filter(({ description }) => description === one.description).length === 1,
      )
      .map(({ description, kind, namespaces }) => [
        description,
        { kind, ...(namespaces !== null && { namespaces }) },
      ]),
  );
}

async function configsOf(
  admin: Admin,
  where: Where,
  files: Map<string, string>,
): Promise<{ configs?: Record<string, unknown> }> {
  const configs: Record<string, unknown> = {};
  for (const { name, secret } of await admin.configs(where)) {
    if (secret) {
      // Files are read by more people, and for longer, than the scope says.
      process.stderr.write(`left out, as it is secret: ${where.namespace}/${name}\n`);
      continue;
    }
    configs[name] = await configOf(admin, where, await admin.config(where, name), files);
  }
  return Object.keys(configs).length === 0 ? {} : { configs };
}

async function configOf(
  admin: Admin,
  where: Where,
  config: ConfigDetailAnswer,
  files: Map<string, string>,
): Promise<unknown> {
  const { name, format, description, tags, schema, release } = config;
  const rules = config.rules as readonly ReleaseRule[];
  const named = new Set(rules.map(({ version }) => version));
  if (config.default !== null) named.add(config.default);
  // What was never released is what somebody prepares: its latest version is kept.
  if (release === null && config.latestHash !== null) named.add(config.latestVersion);
  const variants: Record<string, unknown> = {};
  for (const number of [...named].toSorted((a, b) => a - b)) {
    const version = await admin.version(where, name, number);
    const file = `${where.tenant}/${where.namespace}/${name}.v${number}.${extensions[format]}`;
    variants[`v${number}`] = variantOf(config, version, file, files);
  }
  return {
    format,
    ...(description !== "" && { description }),
    ...(Object.keys(tags).length > 0 && { tags }),
    // As text: how it is written stays as it is.
    ...(schema !== null && { schema: JSON.stringify(schema) }),
    variants,
    ...(release !== null && {
      release: {
        rules: rules.map(({ version, ...rule }) => ({ ...rule, variant: `v${version}` })),
        default: config.default === null ? null : `v${config.default}`,
      },
    }),
  };
}

function variantOf(
  { schema, schemaHash, format }: ConfigDetailAnswer,
  version: VersionContentAnswer,
  file: string,
  files: Map<string, string>,
): unknown {
  const { content, message } = version;
  const fits = (): boolean =>
    validateAgainst(JSON.stringify(schema), prepareContent(format, content).value).length === 0;
  const isOlder = schema !== null && version.schemaHash !== schemaHash && !fits();
  return {
    ...contentIn(files, file, content),
    ...(message !== "" && { message }),
    ...(isOlder && { beforeSchema: true }),
  };
}

/** A content within a manifest, or in a file beside it where it is long or YAML would not give it back as it is. */
export function contentIn(
  files: Map<string, string>,
  file: string,
  content: string,
): { readonly content: string } | { readonly contentFile: string } {
  if (content.length <= inlineCharsMax && parse(stringify(content)) === content) return { content };
  files.set(file, content);
  return { contentFile: file };
}

/** Beside its contents; nothing is folded, so that what changes in a line is what was changed. */
export function manifestText(manifest: object): string {
  return stringify(manifest, { lineWidth: 0, aliasDuplicateObjects: false });
}
