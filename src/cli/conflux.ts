#!/usr/bin/env bun
/**
 * The `conflux` command. A table of commands, each a few lines over the management client; parsing, help, output and
 * errors are the same for all. Exit codes: 0 done, 1 not done, 2 `diff` found differences, `import` left something out or
 * `journal` found damage.
 */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { text as textOf } from "node:stream/consumers";
import { pathToFileURL } from "node:url";
import { parse as parseYaml } from "yaml";
import { unifiedDiff } from "../gateway/diff.ts";
import { AuditChain } from "../model/audit.ts";
import { checkNamespaceName, checkTenantName, isTenantName } from "../model/names.ts";
import { contentFormats } from "../model/release.ts";
import type { ContentFormat } from "../model/release.ts";
import { quotaNames, tenantStates } from "../api/schemas.ts";
import type { TransactionRequest } from "../api/schemas.ts";
import { Admin, Problem } from "../sdk/admin.ts";
import type {
  ConfigDetailAnswer,
  IssuerPut,
  ReleaseAnswer,
  ReleasePut,
  Where,
} from "../sdk/admin.ts";
import { Conflux } from "../sdk/mod.ts";
import { applyManifest, orNull, planManifest, readManifests, summaryOf } from "./apply.ts";
import type { Applied, Manifest, Plan, PlanStep, Progress } from "./apply.ts";
import { bench } from "./bench.ts";
import type { BenchResult } from "./bench.ts";
import { typesDocument } from "./gen_types.ts";
import type { TypedConfig } from "./gen_types.ts";
import { exportTenant, writeFiles } from "./export.ts";
import { optionHelp, parseOptions, UsageError } from "./arguments.ts";
import { backup, drop, restore, sizeText, tenantsIn, verify } from "./backup.ts";
import type { BackupState } from "./backup.ts";
import type { Options, OptionSpecs } from "./arguments.ts";
import {
  convertExport,
  importSystemOf,
  importSystems,
  manifestOf,
  readExport,
  refuseExisting,
} from "./import/import.ts";
import type { Imported } from "./import/importing.ts";
import { natsConfigOptions, writeNatsConfig } from "./nats_config.ts";
import { suggestion } from "../lib/nearest.ts";
import { programVersion } from "../lib/version.ts";
import {
  errorText,
  fields,
  formats,
  plainText,
  print,
  printContent,
  ProgressLine,
  show,
  table,
} from "./output.ts";
import type { Format } from "./output.ts";

// --- what all commands share -----------------------------------------------------------------------------------------------

const commonOptions = {
  url: {
    type: "string",
    value: "URL",
    help: "Gateway, or several with commas (CONFLUX_URL; default http://127.0.0.1:8080)",
  },
  token: { type: "string", value: "KEY", help: "Key (CONFLUX_TOKEN)" },
  output: { type: "string", short: "o", value: "FORMAT", help: "table (default), json or yaml" },
  help: { type: "boolean", short: "h", help: "This help" },
} as const satisfies OptionSpecs;

const tenantOption = {
  tenant: { type: "string", value: "NAME", help: "Tenant (CONFLUX_TENANT; default: the key's)" },
} as const satisfies OptionSpecs;

const whereOptions = {
  ...tenantOption,
  namespace: {
    type: "string",
    short: "n",
    value: "NAME",
    help: "Namespace (CONFLUX_NAMESPACE; default: default)",
  },
} as const satisfies OptionSpecs;

const labelOption = {
  label: { type: "string", short: "l", multiple: true, value: "K=V", help: "A label; repeatable" },
} as const satisfies OptionSpecs;

/** Each is a socket, and a config. */
const benchConnectionsMax = 1_000;

const messageOption = {
  message: { type: "string", short: "m", value: "TEXT", help: "Why, for the history" },
} as const satisfies OptionSpecs;

const spreadOption = {
  spread: {
    type: "string",
    value: "TIME",
    help: "Tell watchers within this time, each at its own moment, e.g. 30s (default: at once)",
  },
} as const satisfies OptionSpecs;

const recoverOptions = {
  gone: {
    type: "string",
    value: "N1,N2,…",
    help: "recover: nodes that will never come back; without it, what is there is listed",
  },
  apply: { type: "string", value: "HASH", help: "recover: do what the plan of this hash says" },
  yes: { type: "boolean", help: "recover: do it, whatever the plan says" },
} as const satisfies OptionSpecs;

interface Command {
  readonly name: string;
  readonly summary: string;
  /** After the name. */
  readonly usage: string;
  /** How many words may follow. */
  readonly words: readonly [min: number, max: number];
  readonly options: OptionSpecs;
  readonly run: (context: Context) => Promise<number | void>;
}

/** Why it takes longer. */
const waiting = new ProgressLine();

/** A command line with its environment. */
class Context {
  readonly options: Options;
  readonly words: readonly string[];
  readonly format: Format;

  constructor(options: Options) {
    this.options = options;
    this.words = options.positionals;
    const format = options.get("output") ?? "table";
    if (!formats.includes(format as Format))
      throw new UsageError(`Option --output takes ${formats.join(", ")}: got ${format}`);
    this.format = format as Format;
  }

  get url(): string {
    return this.options.get("url") ?? (process.env["CONFLUX_URL"] || "http://127.0.0.1:8080");
  }

  get token(): string | undefined {
    return this.options.get("token") ?? (process.env["CONFLUX_TOKEN"] || undefined);
  }

  get admin(): Admin {
    const { url, token } = this;
    try {
      // A person is waiting: a node that is not there is told soon, one that is busy gets its time.
      return new Admin({
        url,
        unreachableMs: 3_000,
        onRetry: ({ message }) => waiting.show(`Trying again: ${message}`),
        ...(token !== undefined && { token }),
      });
    } catch (error) {
      throw new UsageError((error as Error).message);
    }
  }

  get tenant(): string {
    const given = this.options.get("tenant") ?? (process.env["CONFLUX_TENANT"] || undefined);
    // A tenant's key says whose it is: cfx_<kind>_<tenant>_<keyId>_<secret>.
    const tenant = given ?? /^cfx_(?:admin|write|read|client)_([^_]+)_/.exec(this.token ?? "")?.[1];
    if (tenant === undefined) throw new UsageError("Name the tenant by --tenant or CONFLUX_TENANT");
    return tenant;
  }

  get where(): Where {
    const namespace =
      this.options.get("namespace") ?? (process.env["CONFLUX_NAMESPACE"] || "default");
    return { tenant: this.tenant, namespace };
  }

  /** The first word after the command. */
  get name(): string {
    return this.words[0] as string;
  }

  show(value: unknown, asTable: () => string): void {
    waiting.end();
    show(value, this.format, asTable);
  }
}

// --- commands ----------------------------------------------------------------------------------------------------------------

const folderOption = {
  file: { type: "string", short: "f", value: "PATH", help: "Folder of manifests, or one manifest" },
} as const satisfies OptionSpecs;

const pruneOption = {
  prune: { type: "boolean", help: "Delete configs that a tenant's manifest does not name" },
} as const satisfies OptionSpecs;

const commands: readonly Command[] = [
  {
    name: "start",
    summary: "Run a node",
    usage: "[settings]",
    words: [0, Number.MAX_SAFE_INTEGER],
    options: {},
    // Taken out before parsing: its settings are the node's own.
    run: () => Promise.resolve(),
  },
  {
    name: "apply",
    summary: "Make manifests true",
    usage: "-f PATH [--prune]",
    words: [0, 0],
    options: { ...folderOption, ...pruneOption },
    run: apply,
  },
  {
    name: "diff",
    summary: "What `apply` would change (exit code 2: something)",
    usage: "-f PATH [--prune]",
    words: [0, 0],
    options: { ...folderOption, ...pruneOption },
    run: diff,
  },
  {
    name: "export",
    summary: "Write what tenants have as manifests",
    usage: "[TENANT…] -f FOLDER",
    words: [0, Number.MAX_SAFE_INTEGER],
    options: folderOption,
    run: exportTenants,
  },
  {
    name: "import",
    summary: "Make manifests of what another system exports (exit code 2: something is left out)",
    usage: "FILE --from SYSTEM [-n NAMESPACE] [-f FOLDER | --diff | --apply]",
    words: [1, 1],
    options: {
      from: { type: "string", value: "SYSTEM", help: importSystems.join(", ") },
      ...whereOptions,
      file: { type: "string", short: "f", value: "FOLDER", help: "Write a manifest there" },
      diff: { type: "boolean", help: "What applying would change; nothing is written" },
      apply: { type: "boolean", help: "Make it true at once" },
      prefix: { type: "string", value: "TEXT", help: "Only keys that begin so, named without it" },
      rename: {
        type: "string",
        multiple: true,
        value: "KEY=NAME",
        help: "The name that a key gets; repeatable",
      },
      name: {
        type: "string",
        value: "NAME",
        help: "Of the one config that a file becomes (default: the file's)",
      },
      environment: { type: "string", value: "NAME", help: "Of an export of Unleash with several" },
    },
    run: importConfigs,
  },
  {
    name: "get",
    summary: "List configs, or get one",
    usage: "[NAME] [--content [--version N]]",
    words: [0, 1],
    options: {
      ...whereOptions,
      content: { type: "boolean", help: "Print the content of a version, as it is stored" },
      version: { type: "string", value: "N", help: "Number or hash (default: the released one)" },
    },
    run: get,
  },
  {
    name: "describe",
    summary: "All about a config: release, rules, versions",
    usage: "NAME",
    words: [1, 1],
    options: whereOptions,
    run: describe,
  },
  {
    name: "delete",
    summary: "Delete a config (it can be undeleted)",
    usage: "NAME",
    words: [1, 1],
    options: {
      ...whereOptions,
      undelete: { type: "boolean", help: "The other way round" },
    },
    run: remove,
  },
  {
    name: "publish",
    summary: "A new version, released as default; rules stay",
    usage: "NAME (-f FILE | --content TEXT) [--no-release]",
    words: [1, 1],
    options: {
      ...whereOptions,
      ...messageOption,
      ...spreadOption,
      file: {
        type: "string",
        short: "f",
        value: "FILE",
        help: "File with the content; - reads stdin",
      },
      content: { type: "string", value: "TEXT", help: "The content itself" },
      "no-release": { type: "boolean", help: "Only the version; `release` says later who gets it" },
      format: {
        type: "string",
        value: "FORMAT",
        help: `Create the config if there is none: ${contentFormats.join(", ")}`,
      },
      secret: { type: "boolean", help: "Create it as a secret, sealed for good (with --format)" },
    },
    run: publish,
  },
  {
    name: "release",
    summary: "Set who gets which version",
    usage: "NAME [--default N | --no-default] [--rules FILE | --no-rules]",
    words: [1, 1],
    options: {
      ...whereOptions,
      ...messageOption,
      ...spreadOption,
      default: { type: "string", value: "N", help: "Version for clients that no rule matches" },
      "no-default": { type: "boolean", help: "Nothing for clients that no rule matches" },
      rules: { type: "string", value: "FILE", help: "Rules as YAML or JSON; - reads stdin" },
      "no-rules": { type: "boolean", help: "Take all rules away" },
    },
    run: release,
  },
  {
    name: "promote",
    summary: "Publish in one namespace what another one has, in one transaction",
    usage: "[NAME…] --from NAMESPACE -n NAMESPACE",
    words: [0, Number.MAX_SAFE_INTEGER],
    options: {
      ...whereOptions,
      ...messageOption,
      ...spreadOption,
      from: { type: "string", value: "NAMESPACE", help: "Where it is released as default" },
    },
    run: promote,
  },
  {
    name: "rollback",
    summary: "A new release equal to an earlier one",
    usage: "NAME [--to N]",
    words: [1, 1],
    options: {
      ...whereOptions,
      ...messageOption,
      ...spreadOption,
      to: { type: "string", value: "N", help: "Release (default: the one before)" },
    },
    run: rollback,
  },
  {
    name: "eval",
    summary: "What a client with these labels gets",
    usage: "[NAME] [--label K=V]… [--explain]",
    words: [0, 1],
    options: {
      ...whereOptions,
      ...labelOption,
      explain: { type: "boolean", help: "Rule by rule, why" },
    },
    run: evaluate,
  },
  {
    name: "gen",
    summary: "Write TypeScript types of a namespace's configs",
    usage: "types [-f FILE]",
    words: [1, 1],
    options: {
      ...whereOptions,
      file: { type: "string", short: "f", value: "FILE", help: "Where to (default: printed)" },
    },
    run: generate,
  },
  {
    name: "feedback",
    summary: "Which instances took or refused which version",
    usage: "NAME",
    words: [1, 1],
    options: whereOptions,
    run: feedback,
  },
  {
    name: "watch",
    summary: "Follow changes until interrupted",
    usage: "[NAME] [--label K=V]… | [--all] [--since CURSOR]",
    words: [0, 1],
    options: {
      ...whereOptions,
      ...labelOption,
      values: { type: "boolean", help: "Effective values, as a client without labels gets them" },
      all: { type: "boolean", help: "All namespaces" },
      since: { type: "string", value: "CURSOR", help: "Go on from here (default: now)" },
      count: { type: "string", value: "N", help: "End after so many" },
    },
    run: watch,
  },
  {
    name: "history",
    summary: "Releases of a config",
    usage: "NAME",
    words: [1, 1],
    options: whereOptions,
    run: history,
  },
  {
    name: "keys",
    summary: "Keys of a tenant",
    usage: "list | create --kind KIND | rotate ID [--overlap SECONDS] | delete ID",
    words: [1, 2],
    options: {
      ...tenantOption,
      kind: { type: "string", value: "KIND", help: "admin, write, read or client" },
      only: { type: "string", multiple: true, value: "NAMESPACE", help: "Limit it; repeatable" },
      expires: { type: "string", value: "TIME", help: "When it ends, RFC 3339" },
      scope: { type: "string", value: "NAME", help: "secrets: reads secret values (create)" },
      overlap: {
        type: "string",
        value: "SECONDS",
        help: "How long the old one holds on (rotate; default 3600, 0: not at all)",
      },
      description: { type: "string", value: "TEXT", help: "What it is for" },
    },
    run: keys,
  },
  {
    name: "audit",
    summary: "Who changed what; whether the records are as they were written",
    usage: "list | export | verify [--head HASH]",
    words: [1, 1],
    options: {
      ...tenantOption,
      since: { type: "string", value: "N", help: "Records after this sequence (list, export)" },
      head: {
        type: "string",
        value: "HASH",
        help: "A head that was noted before: it must still be in the chain (verify)",
      },
    },
    run: audit,
  },
  {
    name: "namespaces",
    summary: "Namespaces of a tenant: what they extend, and whether deletes in them are refused",
    usage: "list | set NAME [--extends NAME | --no-extends] [--protect | --unprotect]",
    words: [1, 2],
    options: {
      ...tenantOption,
      extends: { type: "string", value: "NAME", help: "Configs missing in it are looked up there" },
      "no-extends": { type: "boolean", help: "They are not looked up elsewhere" },
      protect: { type: "boolean", help: "Refuse deletes in it" },
      unprotect: { type: "boolean", help: "Allow them" },
    },
    run: namespaces,
  },
  {
    name: "tenants",
    summary: "Tenants (with a root key)",
    usage:
      "list | create NAME | get NAME | update NAME | delete NAME [--purge] | undelete NAME | group NAME | transfer NAME --to NODE | compact NAME --data DIR",
    words: [1, 2],
    options: {
      replicas: { type: "string", value: "N", help: "1, 3 or 5 (create, update)" },
      description: { type: "string", value: "TEXT", help: "What it is for (create, update)" },
      quota: {
        type: "string",
        multiple: true,
        value: "NAME=N",
        help: `Repeatable (create, update: N or default): ${quotaNames.join(", ")}`,
      },
      to: { type: "string", value: "NODE", help: "Who shall lead its group (transfer)" },
      purge: { type: "boolean", help: "Delete for good, with all data" },
      data: { type: "string", value: "DIR", help: "Data directory of a stopped node (compact)" },
    },
    run: tenants,
  },
  {
    name: "secrets",
    summary: "Wrap what is sealed with the newest key of CONFLUX_SECRET_KEY_FILE",
    usage: "rotate",
    words: [1, 1],
    options: tenantOption,
    run: secrets,
  },
  {
    name: "issuers",
    summary: "Identity providers whose tokens are taken as keys (with a root key)",
    usage: "list | get NAME | put NAME -f FILE | delete NAME",
    words: [1, 2],
    options: {
      file: {
        type: "string",
        short: "f",
        value: "FILE",
        help: "The issuer as YAML or JSON; - reads stdin (put)",
      },
    },
    run: issuers,
  },
  {
    name: "backup",
    summary: "Tenants as files, one each; those that did not change are skipped",
    usage: "--to DIR [TENANT…|--all] | verify DIR",
    words: [0, Number.MAX_SAFE_INTEGER],
    options: {
      ...tenantOption,
      to: { type: "string", value: "DIR", help: "Folder of the backups" },
      all: { type: "boolean", help: "All tenants (with a root key)" },
    },
    run: runBackup,
  },
  {
    name: "restore",
    summary: "Make tenants anew from their backups (with a root key)",
    usage: "--from DIR [TENANT…] [--as NAME] [--replace] | --drop NAME",
    words: [0, Number.MAX_SAFE_INTEGER],
    options: {
      from: { type: "string", value: "DIR", help: "Folder of the backups" },
      as: { type: "string", value: "NAME", help: "Another name; gets an admin key of its own" },
      replace: { type: "boolean", help: "Purge a tenant that has the name" },
      drop: { type: "string", value: "NAME", help: "Give up a restore that was begun" },
    },
    run: runRestore,
  },
  {
    name: "cluster",
    summary: "The nodes (with a root key)",
    usage:
      "status | members | tenants [--state STATE] | join N | leave N | drain N | undrain N | repair N TENANT | upgrade | recover DATA… | nats-config --nodes N1,N2,…",
    words: [1, Number.MAX_SAFE_INTEGER],
    options: {
      state: { type: "string", value: "STATE", help: `tenants: ${tenantStates.join(" or ")}` },
      ...natsConfigOptions,
      ...recoverOptions,
    },
    run: cluster,
  },
  {
    name: "bench",
    summary: "Publishes and reads as fast as the nodes answer",
    usage: "[--connections N] [--seconds N] [--bytes N]",
    words: [0, 0],
    options: {
      ...whereOptions,
      connections: { type: "string", value: "N", help: "At the same time (default: 16)" },
      seconds: { type: "string", value: "N", help: "Of publishing, and of reading (default: 5)" },
      bytes: { type: "string", value: "N", help: "Of each content (default: 128)" },
    },
    run: runBench,
  },
  {
    name: "journal",
    summary: "What is in a node's journal, offline (exit code 2: damage)",
    usage: "inspect DIR",
    words: [2, 2],
    options: {
      group: { type: "string", value: "ID", help: "Only this group, and what concerns all" },
    },
    run: journal,
  },
];

async function manifestsOf(context: Context): ReturnType<typeof readManifests> {
  const path = context.options.get("file");
  if (path === undefined) throw new UsageError("Name the manifests: -f PATH");
  return readManifests(path);
}

function progressText({ tenant, phase, done, total }: Progress): string {
  return `${tenant}: ${phase === "read" ? "compared" : "applied"} ${done} of ${total}`;
}

async function apply(context: Context): Promise<void> {
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

function keyText(key: { tenant: string; name: string | null; token: string }): string {
  const { tenant, name, token } = key;
  const which = name === null ? `admin key of ${tenant}` : `key ${name} of ${tenant}`;
  return `${which}, shown this once: ${token}`;
}

async function exportTenants(context: Context): Promise<void> {
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

async function importConfigs(context: Context): Promise<number> {
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

async function diff(context: Context): Promise<number> {
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

async function get(context: Context): Promise<void> {
  const { admin, where, options } = context;
  const head = ["NAME", "FORMAT", "VERSIONS", "DEFAULT", "RULES", "RELEASE", "UPDATED"];
  if (options.has("version") && !options.has("content"))
    throw new UsageError("Option --version goes with --content");
  if (context.words.length === 0) {
    if (options.has("content")) throw new UsageError("Name the config whose content is wanted");
    const list = await admin.configs(where);
    context.show(list, () =>
      table(
        head,
        list.map((one) => [
          one.name,
          one.format,
          one.latestVersion,
          one.default,
          one.ruleCount,
          one.release,
          one.updatedAt,
        ]),
      ),
    );
    return;
  }
  const config = await admin.config(where, context.name);
  if (!options.has("content")) {
    context.show(config, () =>
      table(head, [
        [
          config.name,
          config.format,
          config.latestVersion,
          config.default,
          config.rules.length,
          config.release,
          config.updatedAt,
        ],
      ]),
    );
    return;
  }
  const version = options.get("version") ?? config.default;
  if (version === null) throw new Error(`Nothing is released as default: name a --version`);
  const held = await admin.version(where, context.name, version);
  if (context.format === "table") printContent(held.content);
  else context.show(held, () => "");
}

async function describe(context: Context): Promise<void> {
  const { admin, where, name } = context;
  const config = await admin.config(where, name);
  const versions = await admin.versions(where, name);
  context.show({ ...config, versionList: versions }, () =>
    [
      fields([
        ["name", config.name],
        ["namespace", config.namespace],
        ["format", config.format],
        ["description", config.description],
        [
          "tags",
          Object.entries(config.tags)
            .map(([tag, value]) => `${tag}=${value}`)
            .join(" "),
        ],
        ["schema", config.schemaHash],
        ["revision", config.revision],
        ["created", config.createdAt],
        ["updated", config.updatedAt],
        ["release", config.release],
        ["default", config.default === null ? null : `version ${config.default}`],
      ]),
      "",
      config.rules.length === 0 ? "no rules" : rulesTable(config),
      "",
      table(
        ["VERSION", "HASH", "BYTES", "AT", "BY", "MESSAGE"],
        versions
          .toSorted((a, b) => b.version - a.version)
          .slice(0, 20)
          .map((one) => [
            one.version,
            one.hash.slice(0, 19),
            one.bytes,
            one.at,
            one.by,
            one.message,
          ]),
      ),
    ].join("\n"),
  );
}

function rulesTable({ rules }: Pick<ConfigDetailAnswer, "rules">): string {
  return table(
    ["RULE", "MATCH", "ROLLOUT", "FROM", "UNTIL", "VERSION"],
    rules.map(({ id, match, rollout, from, until, version }) => [
      id,
      JSON.stringify(match),
      rollout === undefined ? null : `${rollout.percentage} % by ${rollout.by}`,
      from,
      until,
      version,
    ]),
  );
}

async function remove(context: Context): Promise<void> {
  const { admin, where, name } = context;
  if (context.options.has("undelete")) {
    const config = await admin.undeleteConfig(where, name);
    context.show(config, () => `Undeleted ${where.namespace}/${name}`);
    return;
  }
  const config = await admin.deleteConfig(where, name);
  const back = `conflux delete ${name} -n ${where.namespace} --undelete`;
  context.show(config, () => `Deleted ${where.namespace}/${name}; \`${back}\` brings it back`);
}

async function publish(context: Context): Promise<void> {
  const { admin, where, name, options } = context;
  const file = options.get("file");
  const given = options.get("content");
  if ((file === undefined) === (given === undefined))
    throw new UsageError("Give the content by either -f FILE or --content TEXT");
  const content = given ?? (await readText(file as string));
  const message = messageOf(options);
  const format = options.get("format");
  if (format !== undefined && !contentFormats.includes(format as ContentFormat))
    throw new UsageError(`Option --format takes ${contentFormats.join(", ")}: got ${format}`);
  try {
    if (options.has("no-release")) {
      if (options.has("spread"))
        throw new UsageError("Give --spread to the release: nobody is told of a version");
      const made = await admin.createVersion(where, name, { content, ...message });
      const text = `${where.namespace}/${name} has version ${made.version}; nobody gets it yet`;
      context.show(made, () => text);
      return;
    }
    const done = await admin.publish(where, name, { content, ...message }, spreadOf(options));
    context.show(
      done,
      () =>
        `Published ${where.namespace}/${name} version ${done.version}, release ${done.release.release}`,
    );
  } catch (error) {
    const isMissing = error instanceof Problem && error.code === "not-found";
    if (!isMissing) throw error;
    if (format === undefined)
      throw new UsageError(
        `There is no config ${where.namespace}/${name}; give its --format to create it`,
      );
    const secret = options.has("secret");
    const body = { format: format as ContentFormat, content, ...(secret && { secret }) };
    const done = await admin.putConfig(where, name, body, { ifNoneMatch: "*" });
    context.show(done, () => `Created ${where.namespace}/${name} with version 1, released`);
  }
}

async function release(context: Context): Promise<void> {
  const { admin, where, name, options } = context;
  const rulesFile = options.get("rules");
  if (options.has("default") && options.has("no-default"))
    throw new UsageError("Give either --default or --no-default");
  if (rulesFile !== undefined && options.has("no-rules"))
    throw new UsageError("Give either --rules or --no-rules");
  const flags = ["default", "no-default", "rules", "no-rules"];
  if (!flags.some((flag) => options.has(flag)))
    throw new UsageError("Say what to release: --default, --no-default, --rules or --no-rules");
  const config = await admin.config(where, name);
  let { rules } = config as Pick<ReleasePut, "rules">;
  if (options.has("no-rules")) rules = [];
  else if (rulesFile !== undefined) {
    const parsed: unknown = parseYaml(await readText(rulesFile));
    const list = Array.isArray(parsed) ? parsed : (parsed as { rules?: unknown } | null)?.rules;
    if (!Array.isArray(list)) throw new UsageError("The file of --rules must hold a list of rules");
    rules = list as ReleasePut["rules"];
  }
  const chosen = options.count("default") ?? config.default;
  const done = await admin.putRelease(
    where,
    name,
    { rules, default: options.has("no-default") ? null : chosen, ...messageOf(options) },
    // What is kept of the release in force was just read: it must still be that.
    { ifMatch: `"${config.revision}"`, ...spreadOf(options) },
  );
  context.show(done, () => releasedText(where, name, done));
}

/** What changes between reading and publishing, on either side, is refused by the conditions of the transaction. */
async function promote(context: Context): Promise<void> {
  const { admin, where, options, words } = context;
  const namespace = options.get("from");
  if (namespace === undefined) throw new UsageError("Name the namespace to take from: --from NAME");
  if (namespace === where.namespace)
    throw new UsageError("Name two namespaces: --from where it is, -n where it shall be");
  const source = { ...where, namespace };
  const names = words.length > 0 ? words : (await admin.configs(source)).map(({ name }) => name);
  if (names.length === 0) throw new UsageError(`There are no configs in namespace ${namespace}`);
  const conditions: NonNullable<TransactionRequest["if"]> = [];
  const operations: TransactionRequest["then"] = [];
  const promoted: string[] = [];
  for (const name of names) {
    const from = await admin.config(source, name);
    if (from.default === null) continue;
    const to = await orNull(admin.config(where, name));
    if (from.secret && to !== null && !to.secret)
      throw new UsageError(`${namespace}/${name} is secret and ${where.namespace}/${name} is not`);
    const { content, hash } = await admin.version(source, name, from.default);
    const held = to?.default == null ? null : await admin.version(where, name, to.default);
    if (held?.hash === hash) continue;
    const target = { namespace: where.namespace, name };
    promoted.push(name);
    conditions.push({ namespace, name, revision: from.revision });
    if (to !== null) {
      conditions.push({ ...target, revision: to.revision });
      operations.push({ op: "publish", ...target, content, ...messageOf(options) });
      continue;
    }
    const { format, description, tags, schema } = from;
    const secret = from.secret;
    const shape = {
      format,
      description,
      tags,
      ...(schema !== null && { schema }),
      ...(secret && { secret }),
    };
    conditions.push({ ...target, absent: true });
    operations.push({ op: "config.put", ...target, ...shape, content });
  }
  const route = `from ${namespace} to ${where.namespace}`;
  if (operations.length === 0) {
    context.show({ promoted }, () => `Nothing to promote ${route}: it is all there`);
    return;
  }
  const { revision } = await admin.transaction(
    where.tenant,
    { if: conditions, then: operations },
    spreadOf(options),
  );
  context.show(
    { revision, promoted },
    () => `Promoted ${promoted.join(", ")} ${route} in revision ${revision}`,
  );
}

async function rollback(context: Context): Promise<void> {
  const { admin, where, name, options } = context;
  const to = options.count("to");
  const body = { ...(to !== undefined && { toRelease: to }), ...messageOf(options) };
  const done = await admin.rollback(where, name, body, spreadOf(options));
  context.show(done, () => `${releasedText(where, name, done)}, equal to ${done.rollbackOf}`);
}

function releasedText({ namespace }: Where, name: string, done: ReleaseAnswer): string {
  const rules = done.rules.length === 1 ? "1 rule" : `${done.rules.length} rules`;
  const fallback = done.default === null ? "no default" : `default version ${done.default}`;
  return `Released ${namespace}/${name} as release ${done.release}: ${rules}, ${fallback}`;
}

async function evaluate(context: Context): Promise<void> {
  const { admin, where, options } = context;
  const labels = options.pairs("label");
  if (context.words.length === 0) {
    if (options.has("explain")) throw new UsageError("Name the config to explain");
    const all = await admin.values(where, labels);
    context.show(all, () =>
      table(
        ["NAME", "VERSION", "FORMAT", "CONTENT"],
        Object.entries(all.values).map(([name, one]) => [
          name,
          one.version,
          one.format,
          one.content?.replaceAll(/\s+/g, " ").trim() ?? "(large)",
        ]),
      ),
    );
    return;
  }
  if (options.has("explain")) {
    const explained = await admin.explain(where, context.name, labels);
    context.show(explained, () => explanation(explained));
    return;
  }
  const value = await admin.value(where, context.name, labels);
  if (context.format === "table") printContent(value.content);
  else context.show(value, () => "");
}

async function feedback(context: Context): Promise<void> {
  const told = await context.admin.feedback(context.where, context.name);
  context.show(told, () =>
    table(
      ["VERSION", "APPLIED", "REJECTED", "LAST REASON"],
      told.versions.map(({ version, applied, rejected, rejections }) => [
        version,
        applied,
        rejected,
        rejections[0] === undefined ? "" : `${rejections[0].instance}: ${rejections[0].reason}`,
      ]),
    ),
  );
}

async function runBench(context: Context): Promise<number> {
  const { admin, where, options } = context;
  const line = new ProgressLine();
  let results: readonly BenchResult[];
  try {
    const asked = {
      connections: options.count("connections") ?? 16,
      seconds: options.count("seconds") ?? 5,
      bytes: options.count("bytes") ?? 128,
    };
    if (asked.connections > benchConnectionsMax)
      throw new UsageError(`Option --connections takes at most ${benchConnectionsMax}`);
    results = await bench(admin, where, asked, (text) => line.show(text));
  } finally {
    line.end();
  }
  context.show(results, () =>
    table(
      ["WHAT", "DONE", "PER SECOND", "P50 MS", "P99 MS", "FAILED"],
      results.map(({ what, done, perSecond, p50, p99, failed }) => [
        what,
        done,
        perSecond,
        p50,
        p99,
        Object.entries(failed)
          .map(([code, count]) => `${count} ${code}`)
          .join(", "),
      ]),
    ),
  );
  return results.some(({ done }) => done === 0) ? 1 : 0;
}

async function generate(context: Context): Promise<void> {
  const { admin, where, options } = context;
  if (context.name !== "types")
    throw new UsageError(
      `There is no ${context.name} here; ${suggestion(context.name, ["types"])}`,
    );
  const { values } = await admin.values(where);
  const own = await admin.configs(where);
  const names = new Set([...own.map((config) => config.name), ...Object.keys(values)]);
  const configs: TypedConfig[] = [];
  for (const name of [...names].sort()) {
    const value = values[name];
    // What is inherited has its schema elsewhere; its content says enough.
    const detail = own.some((one) => one.name === name) ? await admin.config(where, name) : null;
    configs.push({
      name,
      format: detail?.format ?? value?.format ?? "json",
      schema: detail?.schema ?? null,
      content: value?.content ?? null,
    });
  }
  const document = typesDocument(configs, `${where.tenant}/${where.namespace}`);
  const file = options.get("file");
  if (file === undefined) return printContent(document);
  await writeFile(file, document);
  print(`Wrote types of ${configs.length} configs to ${file}`);
}

function explanation(explained: Awaited<ReturnType<Admin["explain"]>>): string {
  const { name, namespace, version, rule, reason, rules, revision } = explained;
  const head = fields([
    ["config", namespace === null ? name : `${namespace}/${name}`],
    ["version", version],
    ["rule", rule ?? (version === null ? null : "the default")],
    ["reason", reason],
    ["revision", revision],
  ]);
  const lines = rules.map((one) => {
    const { rule, outcome, detail } = one;
    return `  ${plainText(`${rule}: ${outcome}. ${detail}`)}`;
  });
  return [head, ...(lines.length === 0 ? [] : ["rules", ...lines])].join("\n");
}

async function watch(context: Context): Promise<void> {
  const { options } = context;
  const stop = new AbortController();
  process.once("SIGINT", () => stop.abort());
  process.once("SIGTERM", () => stop.abort());
  if (options.has("label") || options.has("values")) await watchValues(context, stop.signal);
  else await watchChanges(context, stop.signal);
}

/** Every change of configs, for people who manage them. */
async function watchChanges(context: Context, signal: AbortSignal): Promise<void> {
  const { admin, options, format } = context;
  const { tenant, namespace } = context.where;
  const only = context.words[0];
  const frames = admin.watch(tenant, {
    since: options.get("since") ?? "now",
    spread: false,
    signal,
    ...(!options.has("all") && { namespace }),
    ...(only !== undefined && { prefix: only }),
  });
  let left = options.count("count") ?? Infinity;
  for await (const frame of frames) {
    const { at = "", changes } = frame.data as {
      at?: string;
      changes?: { type: string; namespace: string; name: string; version?: number }[];
    };
    const shown = changes?.filter(({ name }) => only === undefined || name === only);
    if (frame.event === "bookmark" || (changes !== undefined && shown?.length === 0)) continue;
    if (format !== "table") {
      print(JSON.stringify({ cursor: frame.id, event: frame.event, data: frame.data }));
    } else if (shown === undefined) print(`${frame.id}  ${frame.event}`);
    else {
      for (const { type, namespace: ns, name, version } of shown)
        print(
          plainText(
            `${frame.id}  ${at}  ${type} ${ns}${name && `/${name}`}${version === undefined ? "" : ` version ${version}`}`,
          ),
        );
    }
    if (--left <= 0) return;
  }
}

/** What a client with these labels gets, as it changes. */
async function watchValues(context: Context, signal: AbortSignal): Promise<void> {
  const { options, token, format, url } = context;
  const conflux = new Conflux({
    url: url.split(","),
    ...context.where,
    labels: options.pairs("label"),
    ...(token !== undefined && { token }),
    ...(context.words[0] !== undefined && { name: context.words[0] }),
  });
  try {
    const changes = conflux.watch({ signal });
    // Rejects when the key is refused; a server that is away is waited for.
    await conflux.ready();
    let left = options.count("count") ?? Infinity;
    for await (const { name, revision, new: value, entry } of changes) {
      const { version } = entry;
      if (format !== "table") print(JSON.stringify({ name, revision, version, value }));
      else if (version === null) print(`${revision}  ${name} is no longer released`);
      else {
        const text = typeof value === "string" ? value : JSON.stringify(value);
        print(`${revision}  ${name} version ${version}  ${plainText(text)}`);
      }
      if (--left <= 0) return;
    }
  } finally {
    await conflux.close();
  }
}

async function history(context: Context): Promise<void> {
  const { admin, where, name } = context;
  const releases = await admin.history(where, name);
  context.show(releases, () =>
    table(
      ["RELEASE", "REVISION", "AT", "BY", "DEFAULT", "RULES", "MESSAGE"],
      releases.map((one) => [
        one.release,
        one.revision,
        one.at,
        one.by,
        one.default,
        one.rules.length,
        one.rollbackOf === null ? one.message : `rollback to ${one.rollbackOf}  ${one.message}`,
      ]),
    ),
  );
}

const keyKinds = ["admin", "write", "read", "client"] as const;

async function keys(context: Context): Promise<void> {
  const { admin, tenant, options } = context;
  const [verb, id] = verbOf(context, { list: 0, create: 0, rotate: 1, delete: 1 });
  if (verb === "list") {
    const list = await admin.keys(tenant);
    context.show(list, () =>
      table(
        ["ID", "KIND", "NAMESPACES", "EXPIRES", "USED", "CREATED", "DESCRIPTION"],
        list.map((key) => [
          key.id,
          key.kind,
          key.namespaces?.join(",") ?? "all",
          key.expiresAt ?? "never",
          key.lastUsedAt ?? "-",
          key.createdAt,
          key.description,
        ]),
      ),
    );
  } else if (verb === "create") {
    const kind = options.get("kind") as (typeof keyKinds)[number] | undefined;
    if (kind === undefined || !keyKinds.includes(kind))
      throw new UsageError(`Give the key's kind: --kind ${keyKinds.join(" | ")}`);
    const only = options.all("only");
    const scope = options.get("scope");
    if (scope !== undefined && scope !== "secrets")
      throw new UsageError(`Option --scope takes secrets: got ${scope}`);
    const expiresAt = options.get("expires");
    const description = options.get("description");
    const key = await admin.createKey(tenant, {
      kind,
      ...(only.length > 0 && { namespaces: [...only] }),
      ...(scope !== undefined && { scopes: [scope] }),
      ...(expiresAt !== undefined && { expiresAt }),
      ...(description !== undefined && { description }),
    });
    context.show(key, () => `Created key ${key.id}; its token, shown this once:\n${key.token}`);
  } else if (verb === "rotate") {
    const overlap = options.get("overlap");
    if (overlap !== undefined && !/^\d{1,8}$/.test(overlap))
      throw new UsageError(`Option --overlap takes a whole number of seconds: got ${overlap}`);
    const key = await admin.rotateKey(tenant, id as string, {
      ...(overlap !== undefined && { overlapSeconds: Number(overlap) }),
    });
    context.show(
      key,
      () =>
        `Created key ${key.id}; ${id} ends ${key.replaces.expiresAt ?? "now"}; the new token, shown this once:\n${key.token}`,
    );
  } else {
    await admin.deleteKey(tenant, id as string);
    context.show({ id, deleted: true }, () => `Deleted key ${id}`);
  }
}

/** A page, as large as the server gives. */
const auditShownMax = 1_000;

async function audit(context: Context): Promise<number | void> {
  const { admin, tenant, options } = context;
  const [verb] = verbOf(context, { list: 0, export: 0, verify: 0 });
  if (verb === "verify") return verifyAudit(context);
  const since = options.get("since") === undefined ? 0 : (options.count("since") as number);
  if (verb === "export") {
    for await (const record of admin.auditRecords(tenant, since))
      printContent(`${JSON.stringify(record)}\n`);
    return;
  }
  const { items, next } = await admin.auditPage(tenant, { since, limit: auditShownMax });
  context.show(items, () =>
    table(
      ["SEQUENCE", "AT", "ACTOR", "ACTION", "TARGET", "ADDRESS", "REQUEST"],
      items.map((record) => [
        record.sequence,
        record.at,
        `${record.actor.kind} ${record.actor.keyId}`,
        record.action,
        record.target,
        record.address,
        record.requestId,
      ]),
    ),
  );
  if (next !== undefined)
    process.stderr.write(`… and more: go on with --since ${next}, or take all by audit export\n`);
}

/** Goes by the records alone; the server is not asked whether it is honest. */
async function verifyAudit(context: Context): Promise<number> {
  const { admin, tenant, options } = context;
  const noted = options.get("head");
  if (noted !== undefined && !/^sha256:[0-9a-f]{64}$/.test(noted))
    throw new UsageError(`Option --head takes what verify said, sha256:…: got ${noted}`);
  const { anchor } = await admin.auditPage(tenant, { limit: 1 });
  const chain = new AuditChain(anchor);
  let isNotedFound = noted === undefined || noted === anchor?.hash;
  let records = 0;
  let wrong: string | null = null;
  for await (const record of admin.auditRecords(tenant)) {
    records++;
    wrong = chain.next({ ...record, at: Date.parse(record.at) });
    if (wrong !== null) break;
    isNotedFound ||= record.hash === noted;
  }
  if (wrong === null && !isNotedFound) wrong = "The head that was noted is not in the chain";
  const result = { ok: wrong === null, records, head: chain.head, wrong };
  context.show(result, () =>
    wrong === null
      ? `${records} records are as they were written; note the head: ${chain.head ?? "none yet"}`
      : `Tampered with: ${wrong}`,
  );
  return wrong === null ? 0 : 1;
}

async function secrets(context: Context): Promise<void> {
  const { admin, tenant } = context;
  verbOf(context, { rotate: 0 });
  const line = new ProgressLine();
  let rotated = 0;
  let key: string | null;
  for (;;) {
    const done = await admin.rotateSecrets(tenant);
    rotated += done.rotated;
    key = done.key;
    if (!done.more) break;
    line.show(`${tenant}: ${rotated} versions`);
  }
  line.end();
  context.show({ rotated, key }, () => `Wrapped ${rotated} versions with key ${key}`);
}

async function issuers(context: Context): Promise<void> {
  const { admin, options } = context;
  const [verb, given] = verbOf(context, { list: 0, get: 1, put: 1, delete: 1 });
  const name = given as string;
  if (verb === "list") {
    const list = await admin.issuers();
    context.show(list, () =>
      table(
        ["NAME", "ISSUER", "AUDIENCE", "RULES"],
        list.map((one) => [one.name, one.issuer, one.audience.join(","), one.rules.length]),
      ),
    );
  } else if (verb === "delete") {
    await admin.deleteIssuer(name);
    context.show({ name, deleted: true }, () => `Deleted issuer ${name}`);
  } else {
    const file = options.get("file");
    if (verb === "put" && file === undefined) throw new UsageError("Name the file: -f FILE");
    const issuer =
      verb === "get"
        ? await admin.issuer(name)
        : await admin.putIssuer(name, parseYaml(await readText(file as string)) as IssuerPut);
    context.show(issuer, () =>
      fields([
        ["issuer", issuer.issuer],
        ["audience", issuer.audience.join(", ")],
        ["keys", issuer.jwks === null ? (issuer.jwksUri ?? "by discovery") : "given"],
        ["rules", issuer.rules.map((rule) => JSON.stringify(rule)).join("\n")],
      ]),
    );
  }
}

async function namespaces(context: Context): Promise<void> {
  const { admin, tenant, options } = context;
  const [verb, given] = verbOf(context, { list: 0, set: 1 });
  if (options.has("extends") && options.has("no-extends"))
    throw new UsageError("Give either --extends or --no-extends");
  if (options.has("protect") && options.has("unprotect"))
    throw new UsageError("Give either --protect or --unprotect");
  const base = options.has("no-extends") ? null : options.get("extends");
  const isProtected = options.has("protect") ? true : options.has("unprotect") ? false : undefined;
  if (verb === "set" && base === undefined && isProtected === undefined)
    throw new UsageError("Say what to set: --extends NAME, --no-extends, --protect or --unprotect");
  const list =
    verb === "list"
      ? await admin.namespaces(tenant)
      : [
          await admin.putNamespace(
            { tenant, namespace: given as string },
            {
              ...(base !== undefined && { extends: base }),
              ...(isProtected !== undefined && { protected: isProtected }),
            },
          ),
        ];
  context.show(list, () =>
    table(
      ["NAMESPACE", "EXTENDS", "PROTECTED", "CREATED"],
      list.map((one) => [one.namespace, one.extends, one.protected ? "yes" : "no", one.createdAt]),
    ),
  );
}

/** `configs=500`; `configs=default` takes a limit of the tenant's own away. */
function quotasOf(options: Options): Record<string, number | null> {
  return Object.fromEntries(
    Object.entries(options.pairs("quota")).map(([name, text]) => {
      if (!quotaNames.some((one) => one === name))
        throw new UsageError(`There is no quota ${name}; ${suggestion(name, quotaNames)}`);
      if (text === "default") return [name, null];
      if (!/^\d{1,15}$/.test(text))
        throw new UsageError(`Quota ${name} takes a whole number, or default: got ${text}`);
      return [name, Number(text)];
    }),
  );
}

async function tenants(context: Context): Promise<void> {
  const [verb, given] = verbOf(context, {
    list: 0,
    create: 1,
    get: 1,
    update: 1,
    delete: 1,
    undelete: 1,
    group: 1,
    transfer: 1,
    compact: 1,
  });
  const id = given as string;
  if (verb === "compact") return compactTenants(context, id);
  const { admin, options } = context;
  if (verb === "list") {
    const list = await admin.tenants();
    context.show(list, () =>
      table(
        ["TENANT", "REPLICAS", "CREATED", "DELETED", "DESCRIPTION"],
        list.map((one) => [
          one.id,
          one.replicas.join(","),
          one.createdAt,
          one.deletedAt,
          one.description,
        ]),
      ),
    );
  } else if (verb === "create" || verb === "update") {
    const replicas = options.count("replicas");
    const description = options.get("description");
    const quotas = quotasOf(options);
    const body = {
      ...(replicas !== undefined && { replicas }),
      ...(description !== undefined && { description }),
    };
    if (verb === "update") {
      const update = { ...body, ...(options.has("quota") && { quotas }) };
      if (Object.keys(update).length === 0)
        throw new UsageError("Say what to change: --replicas, --description or --quota");
      const one = await admin.updateTenant(id, update);
      context.show(
        one,
        () =>
          `Updated tenant ${id}${replicas === undefined ? "" : `; its replicas are changed while it serves, \`conflux tenants group ${id}\` shows them`}`,
      );
      return;
    }
    const own = Object.entries(quotas).filter((pair): pair is [string, number] => pair[1] !== null);
    const made = await admin.createTenant({
      id,
      ...body,
      ...(own.length > 0 && { quotas: Object.fromEntries(own) }),
    });
    context.show(
      made,
      () => `Created tenant ${id}; its admin key, shown this once:\n${made.key.token}`,
    );
  } else if (verb === "get") {
    const one = await admin.tenant(id);
    const usage = await admin.usage(id);
    context.show({ ...one, usage }, () =>
      fields([
        ["tenant", one.id],
        ["description", one.description],
        ["replicas", one.replicas.join(", ")],
        ["created", one.createdAt],
        ["deleted", one.deletedAt],
        ["revision", usage.revision],
        ["configs", `${usage.configs} of ${usage.quotas.configs}`],
        ["bytes", `${usage.bytes} of ${usage.quotas.bytes}`],
        ["keys", `${usage.keys} of ${usage.quotas.keys}`],
      ]),
    );
  } else if (verb === "group") {
    await showGroup(context, id);
  } else if (verb === "transfer") {
    const to = options.get("to");
    if (to === undefined) throw new UsageError("Name the node that shall lead: --to NODE");
    await admin.transferGroup(id, to);
    context.show({ id, to }, () => `Asked the leader of tenant ${id} to hand over to ${to}`);
  } else if (verb === "delete") {
    const purge = options.has("purge");
    await admin.deleteTenant(id, { purge });
    context.show({ id, deleted: true, purged: purge }, () =>
      purge
        ? `Deleted tenant ${id} for good`
        : `Deleted tenant ${id}; \`conflux tenants undelete ${id}\` brings it back`,
    );
  } else {
    const one = await admin.undeleteTenant(id);
    context.show(one, () => `Undeleted tenant ${id}`);
  }
}

async function showGroup(context: Context, tenant: string): Promise<void> {
  const group = await context.admin.group(tenant);
  context.show(group, () =>
    [
      fields([
        ["leader", group.leader],
        ["term", group.term],
        ["commit", group.commit],
        ["revision", group.revision],
      ]),
      "",
      table(
        ["NODE", "REPLICA", "ROLE", "MATCH", "STATE"],
        group.replicas.map(({ node, id, role, match, state }) => [node, id, role, match, state]),
      ),
    ].join("\n"),
  );
}

async function compactTenants(context: Context, tenant: string): Promise<void> {
  const data = context.options.get("data");
  if (data === undefined) throw new UsageError("Say with --data where the stopped node's data is");
  // Not for every command: the store is the node's.
  const { compactTenant } = await import("../store/compact.ts");
  const compacted = await compactTenant(data, tenant);
  context.show(compacted, () =>
    table(
      ["ENVIRONMENT", "BYTES BEFORE", "BYTES AFTER"],
      compacted.map(({ environment, bytesBefore, bytesAfter }) => [
        environment,
        String(bytesBefore),
        String(bytesAfter),
      ]),
    ),
  );
}

async function cluster(context: Context): Promise<void> {
  if (context.words[0] === "recover") return recoverCluster(context);
  const [verb, node] = verbOf(context, {
    status: 0,
    members: 0,
    tenants: 0,
    join: 1,
    leave: 1,
    drain: 1,
    undrain: 1,
    repair: 2,
    upgrade: 0,
    "nats-config": 0,
  });
  if (verb === "nats-config") return showNatsConfig(context);
  if (verb === "members") return showMembers(context);
  if (verb === "tenants") return showPlacements(context);
  if (verb === "upgrade") {
    const { level, before } = await context.admin.upgradeCluster();
    context.show({ level, before }, () =>
      level === before
        ? `The cluster is at level ${level} already, the highest that all nodes know`
        : `The cluster is at level ${level}, before ${before}: older versions may not come back`,
    );
    return;
  }
  if (verb === "repair") {
    const repair = await context.admin.repairReplica(node as string, context.words[2] as string);
    context.show(
      repair,
      () => `Tenant ${repair.tenant} gets a new replica on node ${repair.node} from the others`,
    );
    return;
  }
  if (verb !== "status") {
    const member = await context.admin.setMember(
      node as string,
      verb as "join" | "leave" | "drain" | "undrain",
    );
    context.show(member, () => `Node ${member.node} is ${member.phase}`);
    return;
  }
  const status = await context.admin.clusterStatus();
  context.show(status, () =>
    [
      fields([
        ["cluster", status.cluster],
        ["asked", `${status.node}, version ${status.version}`],
        ["ready", status.ready ? "yes" : "no"],
        ["transport", `${status.transport}, ${status.connected ? "connected" : "disconnected"}`],
        ["level", status.level ?? "not known yet"],
        ["tenants", status.tenants],
        ["replicas here", `${status.replicas.warm} warm, ${status.replicas.leaders} leaders`],
      ]),
      "",
      table(
        ["NODE", "ALIVE", "HEARD", "BOOT", "VERSION", "LEVELS", "LEADERS"],
        status.nodes.map(({ name, self, alive, heardMsAgo, boot, version, levels, leaders }) => [
          name,
          alive ? "yes" : "no",
          self ? "itself" : heardMsAgo === null ? "never" : `${Math.round(heardMsAgo)} ms ago`,
          boot,
          version ?? "?",
          levels === null ? "?" : `${levels.min}-${levels.max}`,
          // What it said last; others lead them by now.
          alive ? leaders : null,
        ]),
      ),
      ...(status.absences.length === 0
        ? []
        : [
            "",
            table(
              ["LOST", "FROM", "UNTIL", "SECONDS", "WHY"],
              status.absences
                .slice(-10)
                .map(({ node, from, until, seconds, reason }) => [
                  node,
                  from,
                  until ?? "now",
                  seconds.toFixed(1),
                  reason,
                ]),
            ),
          ]),
    ].join("\n"),
  );
}

/** Groups in tables for people; `-o json` has all. */
const groupsShownMax = 50;

async function recoverCluster(context: Context): Promise<void> {
  const { options } = context;
  const directories = context.words.slice(1);
  if (directories.length === 0)
    throw new UsageError("Name the data directories of all nodes that are left, stopped");
  const gone = (options.get("gone") ?? "").split(",").filter((name) => name !== "");
  // Not for every command: host and store are the node's.
  const { groupInWords, recover } = await import("./recover.ts");
  const line = new ProgressLine();
  const apply = options.get("apply") ?? null;
  let recovery: Awaited<ReturnType<typeof recover>>;
  try {
    recovery = await recover(directories, { gone, apply, yes: options.has("yes") }, (text) =>
      line.show(text),
    );
  } finally {
    line.end();
  }
  context.show(recovery, () => {
    const { found, plan, hash, applied } = recovery;
    const parts: string[] = [];
    if (!applied) {
      const shown = found.slice(0, groupsShownMax);
      parts.push(
        table(
          [
            "TENANT",
            "GROUP",
            "NODE",
            "REPLICA",
            "TERM",
            "LAST",
            "COMMIT",
            "APPLIED",
            "REVISION",
            "VOTERS",
            "STATE",
          ],
          shown.map((one) => [
            one.tenant,
            one.group,
            one.node,
            one.id,
            one.term,
            one.index,
            one.commit,
            one.applied,
            one.revision,
            one.voters.join(","),
            one.damaged === null ? "intact" : "damaged",
          ]),
        ),
      );
      if (found.length > shown.length)
        parts.push(`… and ${found.length - shown.length} more (-o json)`);
    }
    if (plan === null) {
      parts.push("To plan a recovery, name the nodes that are gone for good: --gone N1,N2,…");
      return parts.join("\n\n");
    }
    const concerned = plan.tenants.filter(({ verdict }) => verdict !== "whole");
    const words = [plan.system, ...concerned].slice(0, groupsShownMax).map(groupInWords);
    if (concerned.length >= groupsShownMax)
      words.push(`… and ${concerned.length + 1 - groupsShownMax} more tenants (-o json)`);
    const whole = plan.tenants.length - concerned.length;
    words.push(`${whole} of ${plan.tenants.length} tenants keep their majority.`);
    parts.push(words.join("\n"));
    if (plan.system.verdict !== "recover")
      parts.push(
        "Nothing lost its majority: start the nodes, and let the others leave or come back.",
      );
    else if (applied)
      parts.push(
        "Done. Start these nodes; then start new ones in the place of the others, each with an empty data directory.",
      );
    else
      parts.push(
        `Nothing was changed. To do this, with the nodes still stopped: the same command with --apply ${hash}`,
      );
    return parts.join("\n\n");
  });
}

async function showMembers(context: Context): Promise<void> {
  const members = await context.admin.members();
  context.show(members, () =>
    table(
      ["NODE", "ZONE", "ALIVE", "PHASE", "ROLE", "SYSTEM"],
      members.items.map(({ node, zone, alive, phase, role, system }) => [
        node,
        zone,
        alive ? "yes" : "no",
        phase,
        role,
        system,
      ]),
    ),
  );
}

async function showPlacements(context: Context): Promise<void> {
  const state = context.options.get("state");
  if (state !== undefined && !tenantStates.some((one) => one === state))
    throw new UsageError(`Option --state takes ${tenantStates.join(" or ")}: got ${state}`);
  const placed = await context.admin.clusterTenants(state);
  context.show(placed, () =>
    table(
      ["TENANT", "GROUP", "STATE", "NODES"],
      placed.map(({ tenant, group, state: how, replicas }) => [
        tenant,
        group,
        how,
        replicas
          .map(({ node, state: phase, alive }) => {
            const remark = alive ? (phase === "voter" ? "" : phase) : "away";
            return remark === "" ? node : `${node} (${remark})`;
          })
          .join(", "),
      ]),
    ),
  );
}

async function showNatsConfig(context: Context): Promise<void> {
  const { urls, servers, nodes } = await writeNatsConfig(context.options);
  context.show({ urls, servers, nodes }, () =>
    [
      "Start the servers, each on its host:",
      ...servers.map((file) => `  nats-server -c ${file}`),
      "and the nodes, each with its own key:",
      ...nodes.map(
        ({ node, file, kept }) =>
          `  CONFLUX_NODE=${node} CONFLUX_NATS=${urls.join(",")} CONFLUX_NATS_NKEY=${file}${kept ? "" : "  (new)"}`,
      ),
    ].join("\n"),
  );
}

async function runBackup(context: Context): Promise<number> {
  const { options, words } = context;
  const to = options.get("to");
  const line = new ProgressLine();
  const tell = (text: string): void => line.show(text);
  if (to === undefined) {
    const [verb, folder, ...rest] = words;
    if (verb !== "verify" || folder === undefined || rest.length > 0)
      throw new UsageError("Say where backups go (--to DIR), or which to check (verify DIR)");
    return showBackups(context, await verify(folder, tell), line);
  }
  if (options.has("all") && words.length > 0)
    throw new UsageError("Name tenants, or take all of them with --all");
  const { admin } = context;
  const tenants = options.has("all")
    ? (await admin.tenants()).map(({ id }) => id)
    : words.length > 0
      ? words
      : [context.tenant];
  for (const tenant of tenants)
    if (!isTenantName(tenant)) throw new UsageError(`${tenant} is not the name of a tenant`);
  return showBackups(context, await backup(admin, to, tenants, tell), line);
}

async function runRestore(context: Context): Promise<number> {
  const { options, words, admin } = context;
  const from = options.get("from");
  const dropped = options.get("drop");
  if ((from === undefined) === (dropped === undefined))
    throw new UsageError("Say where the backups are (--from DIR), or which restore to --drop");
  if (dropped !== undefined) {
    await drop(admin, dropped);
    print(`Dropped the restore of ${dropped}: nothing of it is left`);
    return 0;
  }
  const folder = from as string;
  const as = options.get("as");
  const tenants = words.length > 0 ? words : await tenantsIn(folder);
  if (tenants.length === 0) throw new UsageError(`There are no backups in ${folder}`);
  if (as !== undefined && tenants.length > 1)
    throw new UsageError("Name the one tenant that gets another name by --as");
  const line = new ProgressLine();
  const states = await restore(
    admin,
    folder,
    tenants,
    { ...(as !== undefined && { as }), replace: options.has("replace") },
    (text) => line.show(text),
  );
  return showBackups(context, states, line);
}

/** @returns 1 when one failed */
function showBackups(context: Context, states: readonly BackupState[], line: ProgressLine): number {
  line.end();
  context.show(states, () =>
    table(
      ["TENANT", "STATE", "EPOCH", "REVISION", "ROWS", "SIZE"],
      states.map(({ tenant, state, epoch, revision, rows, bytes }) => [
        tenant,
        state,
        epoch,
        revision,
        rows,
        bytes === null ? null : sizeText(bytes),
      ]),
    ),
  );
  for (const { tenant, adminKey } of states)
    if (adminKey !== undefined && context.format === "table")
      print(keyText({ tenant, name: null, token: adminKey }));
  const failed = states.filter(({ error }) => error !== undefined);
  for (const { tenant, error } of failed)
    process.stderr.write(`error: ${tenant}: ${plainText(error ?? "")}\n`);
  return failed.length > 0 ? 1 : 0;
}

// --- pieces --------------------------------------------------------------------------------------------------------------------

/** The verb of `keys create` and the like, with the word that must follow it (as many as the table says). */
function verbOf(
  context: Context,
  verbs: Readonly<Record<string, number>>,
): readonly [verb: string, word: string | undefined] {
  const [verb = "", word] = context.words;
  const count = Object.hasOwn(verbs, verb) ? (verbs[verb] as number) : undefined;
  const names = Object.keys(verbs);
  if (count === undefined)
    throw new UsageError(`There is no ${verb} here; ${suggestion(verb, names)}`);
  if (context.words.length - 1 !== count)
    throw new UsageError(
      count === 0 ? `${verb} takes no further words: got ${word}` : `Say which one to ${verb}`,
    );
  return [verb, word];
}

function spreadOf(options: Options): { spread?: string } {
  const spread = options.get("spread");
  return spread === undefined ? {} : { spread };
}

function messageOf(options: Options): { message?: string } {
  const message = options.get("message");
  return message === undefined ? {} : { message };
}

/** A file, or standard input for `-`. */
async function readText(file: string): Promise<string> {
  if (file === "-") return textOf(process.stdin);
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw new UsageError(`Cannot read ${file}: ${(error as Error).message}`);
  }
}

/** Groups shown as a table; JSON has them all. */
async function journal(context: Context): Promise<number> {
  const [verb, directory] = context.words as [string, string];
  if (verb !== "inspect")
    throw new UsageError(`There is no ${verb} here; ${suggestion(verb, ["inspect"])}`);
  // Not for every command: the store is the node's.
  const { inspectJournal } = await import("../store/inspect.ts");
  const report = inspectJournal(directory);
  const only = context.options.count("group");
  const groups = report.groups.filter(({ group }) => only === undefined || group === only);
  const findings = report.findings.filter(
    ({ group }) => only === undefined || group === null || group === only,
  );
  context.show({ ...report, groups, findings }, () => {
    const parts = [
      table(
        ["segment", "state", "file bytes", "used", "records", "groups", "sequences"],
        report.segments.map((segment) => [
          segment.file,
          segment.state,
          segment.fileBytes,
          segment.usedBytes,
          segment.records,
          segment.groups,
          span(segment.firstSequence, segment.lastSequence),
        ]),
      ),
      table(
        ["group", "replica", "records", "unreleased", "payload bytes", "sequences", "state"],
        // What needs a decision first.
        groups
          .toSorted((a, b) => Number(b.damaged !== null) - Number(a.damaged !== null))
          .slice(0, groupsShownMax)
          .map((group) => [
            group.group,
            group.environment,
            group.records,
            group.unreleased,
            group.payloadBytes,
            span(group.firstSequence, group.lastSequence),
            group.damaged === null ? "intact" : "damaged",
          ]),
      ),
    ];
    if (groups.length > groupsShownMax)
      parts.push(`… and ${groups.length - groupsShownMax} more groups (-o json, or --group ID)`);
    for (const { file, at, end, means } of findings)
      parts.push(`${file}${at === null ? "" : `, bytes ${at} to ${end}`}:\n  ${means}`);
    for (const { group, replica, reason } of report.quarantine)
      parts.push(
        `quarantine/${group}.json:\n  replica ${replica ?? "of unknown id"} of group ${group} stays stopped until it is repaired: ${reason}`,
      );
    if (report.lost !== null)
      parts.push(
        `quarantine/lost.json:\n  every replica stays stopped whose checkpoint does not reach ${report.lost.to}: ${report.lost.where}`,
      );
    parts.push(report.damaged ? "The journal is damaged." : "The journal is intact.");
    return parts.join("\n\n");
  });
  return report.damaged ? 2 : 0;
}

function span(first: number | null, last: number | null): string | null {
  if (first === null || last === null) return null;
  return first === last ? String(first) : `${first} to ${last}`;
}

// --- entry ---------------------------------------------------------------------------------------------------------------------

function usage(): string {
  const width = Math.max(...commands.map(({ name }) => name.length)) + 2;
  return [
    "Usage: conflux COMMAND [options]",
    "",
    ...commands.map(({ name, summary }) => `  ${name.padEnd(width)}${summary}`),
    "",
    "`conflux COMMAND --help` says more, `conflux --version` which version this is.",
    "Environment: CONFLUX_URL, CONFLUX_TOKEN, CONFLUX_TENANT, CONFLUX_NAMESPACE.",
    "Exit codes: 0 done, 1 not done, 2 `diff` found differences, `import` left something out or",
    "`journal` found damage.",
  ].join("\n");
}

function commandHelp({ name, summary, usage, options }: Command): string {
  const specs = optionHelp({ ...options, ...commonOptions });
  return `Usage: conflux ${name} ${usage}\n${summary}.\n\n${specs}`;
}

/** @returns the exit code */
async function main(argv: readonly string[]): Promise<number> {
  const [first = "help", ...others] = argv;
  if (first === "--help" || first === "-h" || (first === "help" && others.length === 0)) {
    print(usage());
    return 0;
  }
  if (first === "--version" || first === "-v" || first === "version") {
    print(`conflux ${programVersion}`);
    return 0;
  }
  // `conflux help apply` is `conflux apply --help`.
  const [word = "", ...rest] = first === "help" ? [...others, "--help"] : argv;
  if (word.startsWith("-")) throw new UsageError(`Put the command before its options: got ${word}`);
  const command = commands.find(({ name }) => name === word);
  if (command === undefined) {
    const names = commands.map(({ name }) => name);
    throw new UsageError(`There is no command ${word}; ${suggestion(word, names)}`);
  }
  if (command.name === "start") {
    // The composition root runs on import, reads the same command line, and ends the process by itself.
    await import("../main.ts");
    return 0;
  }
  const options = parseOptions(rest, { ...command.options, ...commonOptions });
  if (options.has("help")) {
    print(commandHelp(command));
    return 0;
  }
  const [least, most] = command.words;
  const count = options.positionals.length;
  if (count < least || count > most)
    throw new UsageError(`Usage: conflux ${command.name} ${command.usage}`);
  return (await command.run(new Context(options))) ?? 0;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  // `conflux watch | head` ends without a word when the reader has gone.
  process.stdout.on("error", () => process.exit(0));
  main(process.argv.slice(2)).then(
    (code) => {
      process.exitCode = code;
    },
    (error: unknown) => {
      waiting.end();
      process.stderr.write(`${errorText(error)}\n`);
      process.exitCode = 1;
    },
  );
}
