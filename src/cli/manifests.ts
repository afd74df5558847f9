/** `apply`, `diff`, `export` and `import`: tenants as folders of manifests. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { unifiedDiff } from "../gateway/diff.ts";
import { checkNamespaceName, checkTenantName } from "../model/names.ts";
import type { Where } from "../sdk/admin.ts";
import { applyManifest, planManifest, readManifests, summaryOf } from "./apply.ts";
import type { Applied, Manifest, Plan, PlanStep, Progress } from "./apply.ts";
import { exportTenant, writeFiles } from "./export.ts";
import { UsageError } from "./arguments.ts";
import type { Options, OptionSpecs } from "./arguments.ts";
import {
  convertExport,
  importSystemOf,
  manifestOf,
  readExport,
  refuseExisting,
} from "./import/import.ts";
import type { Imported } from "./import/importing.ts";
import { plainText, ProgressLine, table } from "./output.ts";
import { keyText, Stop } from "./command.ts";
import type { Context } from "./command.ts";

export const folderOption = {
  file: { type: "string", short: "f", value: "PATH", help: "Folder of manifests, or one manifest" },
} as const satisfies OptionSpecs;

export const pruneOption = {
  prune: { type: "boolean", help: "Delete configs that a tenant's manifest does not name" },
} as const satisfies OptionSpecs;

async function manifestsOf(context: Context): ReturnType<typeof readManifests> {
  const path = context.options.get("file");
  if (path === undefined) throw new UsageError("Name the manifests: -f PATH");
  return readManifests(path);
}

function progressText({ tenant, phase, done, total }: Progress): string {
  return `${tenant}: ${phase === "read" ? "compared" : "applied"} ${done} of ${total}`;
}

export async function apply(context: Context): Promise<void> {
  await applyAll(context, await manifestsOf(context), context.options.has("prune"));
}

async function applyAll(
  context: Context,
  manifests: readonly Manifest[],
  prune: boolean,
): Promise<void> {
  const line = new ProgressLine();
  const applied: Applied[] = [];
  const made: { readonly tenant: string; readonly name: string | null; readonly token: string }[] =
    [];
  // Tokens are shown once: those of keys that were made must not go with the process.
  const stop = new Stop(() => {
    line.end();
    for (const key of made) process.stderr.write(`${keyText(key)}\n`);
    process.stderr.write(
      `error: Stopped: what was applied until now stays, repeat it for the rest\n`,
    );
    process.exit(stop.code ?? 1);
  });
  try {
    for (const manifest of manifests)
      applied.push(
        await applyManifest(context.admin, manifest, {
          onProgress: (now) => line.show(progressText(now)),
          onKey: (tenant, name, token) => made.push({ tenant, name, token }),
          prune,
        }),
      );
  } finally {
    line.end();
    const done = new Set(applied.map(({ tenant }) => tenant));
    // Of tenants that were not finished.
    for (const key of made) if (!done.has(key.tenant)) process.stderr.write(`${keyText(key)}\n`);
    // What was done before an error stays done, and is told.
    if (applied.length > 0)
      context.show(
        applied.map((one) => ({
          ...withoutContents(one),
          keys: made.filter(({ tenant }) => tenant === one.tenant),
        })),
        () => {
          const changes = applied.flatMap(({ tenant, steps }) => stepLines(tenant, steps));
          const keyTexts = made.filter(({ tenant }) => done.has(tenant)).map(keyText);
          return [...changes, ...keyTexts, ...applied.map(summaryOf)].join("\n");
        },
      );
  }
}

export async function exportTenants(context: Context): Promise<void> {
  const { admin, words } = context;
  const folder = context.options.get("file");
  if (folder === undefined) throw new UsageError("Name the folder to write to: -f PATH");
  const tenants =
    words.length > 0
      ? words
      : (await admin.tenants()).filter(({ deletedAt }) => deletedAt === null).map(({ id }) => id);
  const written: string[] = [];
  for (const tenant of tenants) {
    const files = await exportTenant(admin, tenant);
    await writeFiles(folder, files);
    written.push(...files.keys());
  }
  context.show(written, () => written.map((file) => `wrote ${join(folder, file)}`).join("\n"));
}

export async function importConfigs(context: Context): Promise<number> {
  const { options, name: path } = context;
  const ways = ["file", "diff", "apply"].filter((way) => options.has(way));
  if (ways.length > 1) throw new UsageError("Give one of -f FOLDER, --diff and --apply");
  const system = importSystemOf(options.get("from"));
  const imported = convertExport(system, await readExport(system, path), {
    prefix: options.get("prefix") ?? "",
    renames: renamesIn(options),
    name: options.get("name") ?? null,
    environment: options.get("environment") ?? null,
  });
  const isShown = ways.length === 0 && context.format !== "table";
  if (!isShown) showRemarks(imported);
  const isAll = imported.remarks.every(({ kind }) => kind === "note");
  const code = await importedAs(ways[0], context, imported);
  return isAll ? code : 2;
}

async function importedAs(
  way: string | undefined,
  context: Context,
  imported: Imported,
): Promise<number> {
  if (imported.configs.length === 0) {
    context.show(imported, () => "Nothing to import");
    return 0;
  }
  const files =
    way === undefined ? new Map<string, string>() : manifestOf(checked(context.where), imported);
  if (way === "file") {
    const folder = context.options.get("file") as string;
    await refuseExisting(folder, files.keys());
    await writeFiles(folder, files);
    context.show([...files.keys()], () =>
      [
        ...[...files.keys()].map((file) => `wrote ${join(folder, file)}`),
        `Look at it, then make it true: conflux apply -f ${folder}`,
      ].join("\n"),
    );
    return 0;
  }
  if (way === undefined) {
    context.show(imported, () =>
      [
        table(
          ["NAME", "FORMAT", "BYTES", "FROM"],
          imported.configs.map(({ name, format, content, key }) => [
            name,
            format,
            Buffer.byteLength(content),
            key,
          ]),
        ),
        `${imported.configs.length} ${imported.configs.length === 1 ? "config" : "configs"}. Nothing is written yet: -f FOLDER writes a manifest, --diff compares, --apply applies`,
      ].join("\n"),
    );
    return 0;
  }
  const folder = await mkdtemp(join(tmpdir(), "conflux-import-"));
  try {
    await writeFiles(folder, files);
    const manifests = (await readManifests(folder)).map((manifest) => ({
      ...manifest,
      file: context.name,
    }));
    if (way === "diff") return await diffAll(context, manifests, false);
    await applyAll(context, manifests, false);
    return 0;
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** They become names of files. */
function checked(where: Where): Where {
  const wrong = checkTenantName(where.tenant) ?? checkNamespaceName(where.namespace);
  if (wrong !== null) throw new UsageError(wrong);
  return where;
}

/** As many as are read. */
const remarksShownMax = 100;

function showRemarks({ remarks }: Imported): void {
  // What is missing matters most.
  const order = remarks.toSorted((a, b) => Number(a.kind === "note") - Number(b.kind === "note"));
  for (const { key, kind, detail } of order.slice(0, remarksShownMax)) {
    const text = key === "" ? detail : `${key}: ${detail}`;
    process.stderr.write(`${kind === "note" ? "note" : "left out"}: ${plainText(text)}\n`);
  }
  const more = remarks.length - remarksShownMax;
  if (more > 0) process.stderr.write(`… and ${more} more remarks (-o json has all)\n`);
}

/** Keys may hold equals signs, names may not. */
function renamesIn(options: Options): Map<string, string> {
  const renames = new Map<string, string>();
  for (const text of options.all("rename")) {
    const equals = text.lastIndexOf("=");
    if (equals < 1) throw new UsageError(`Option --rename takes KEY=NAME: got ${text}`);
    renames.set(text.slice(0, equals), text.slice(equals + 1));
  }
  return renames;
}

export async function diff(context: Context): Promise<number> {
  return diffAll(context, await manifestsOf(context), context.options.has("prune"));
}

async function diffAll(
  context: Context,
  manifests: readonly Manifest[],
  prune: boolean,
): Promise<number> {
  const { admin } = context;
  const line = new ProgressLine();
  const plans: Plan[] = [];
  const lines: string[] = [];
  for (const manifest of manifests) {
    const plan = await planManifest(admin, manifest, (now) => line.show(progressText(now)), prune);
    plans.push(plan);
    for (const step of plan.steps) {
      lines.push(...stepLines(plan.tenant, [step]));
      if (step.newDefault === null || context.format !== "table") continue;
      const { namespace, name } = step;
      const { content, instead } = step.newDefault;
      const old = await admin.version({ tenant: plan.tenant, namespace }, name, instead);
      const titles = [`${name} version ${instead}`, `${name} in ${manifest.file}`] as const;
      const changes = unifiedDiff(old.content, content, titles);
      lines.push(
        ...changes
          .trimEnd()
          .split("\n")
          .map((one) => `  ${plainText(one)}`),
      );
    }
  }
  line.end();
  context.show(plans.map(withoutContents), () =>
    lines.length === 0 ? "No differences" : lines.join("\n"),
  );
  return lines.length === 0 ? 0 : 2;
}

function stepLines(tenant: string, steps: readonly PlanStep[]): string[] {
  return steps
    .filter(({ action }) => action !== "unchanged")
    .map(({ kind, namespace, name, action, reasons }) => {
      const place =
        kind === "tenant"
          ? tenant
          : [tenant, namespace, name].filter((part) => part !== "").join("/");
      const why = reasons.length === 0 ? "" : `: ${reasons.join(", ")}`;
      const sign = action === "create" ? "+" : action === "delete" ? "-" : "~";
      return `${sign} ${kind} ${place}${why}`;
    });
}

function withoutContents(done: Plan | Applied): object {
  return {
    tenant: done.tenant,
    ...("revision" in done && { revision: done.revision, adminKey: done.adminKey }),
    steps: done.steps.map(({ kind, namespace, name, action, reasons }) => ({
      kind,
      namespace,
      name,
      action,
      reasons,
    })),
  };
}
