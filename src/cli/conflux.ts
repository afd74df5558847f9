#!/usr/bin/env bun
/**
 * The `conflux` command. A table of commands, each a few lines over the management client; parsing, help, output and
 * errors are the same for all. Exit codes: 0 done, 1 not done, 2 `diff` found differences, `import` left something out or
 * `journal` found damage; 128 and the signal's number: stopped.
 */
import process from "node:process";
import { pathToFileURL } from "node:url";
import { contentFormats } from "../model/release.ts";
import { quotaNames, tenantStates } from "../api/schemas.ts";
import { optionHelp, parseOptions, UsageError } from "./arguments.ts";
import { importSystems } from "./import/import.ts";
import { natsConfigOptions } from "./nats_config.ts";
import { suggestion } from "../lib/nearest.ts";
import { programVersion } from "../lib/version.ts";
import { errorText, print } from "./output.ts";
import {
  commonOptions,
  tenantOption,
  whereOptions,
  labelOption,
  messageOption,
  spreadOption,
  waiting,
  Context,
} from "./command.ts";
import type { Command } from "./command.ts";
import {
  folderOption,
  pruneOption,
  apply,
  exportTenants,
  importConfigs,
  diff,
} from "./manifests.ts";
import {
  get,
  describe,
  remove,
  publish,
  release,
  promote,
  rollback,
  evaluate,
  feedback,
  runBench,
  generate,
  watch,
  history,
} from "./configs.ts";
import {
  recoverOptions,
  keys,
  audit,
  secrets,
  issuers,
  namespaces,
  tenants,
  cluster,
  runBackup,
  runRestore,
  journal,
} from "./operate.ts";

// --- commands ----------------------------------------------------------------------------------------------------------------

/** All of them. */
export const commands: readonly Command[] = [
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
    examples: `conflux publish limits -n prod --format json --content '{"max": 100}'
conflux publish limits -n prod -f limits.json -m 'for the launch' --no-release`,
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
    examples: `conflux release limits -n prod --rules - <<'END'
- { id: beta, match: { ring: [canary, staff] }, version: 2 }
- { id: tenth, match: {}, rollout: { percentage: 10, by: user }, version: 2 }
- { id: launch, match: { plan: { not: free } }, from: '2030-01-31T12:00:00Z', version: 2 }
END

The first rule that matches wins. What is said of a label is a text, a list of texts, or some of not, prefix,
suffix, exists, semver, gt, gte, lt, lte. Who is in a rollout stays in when its percentage grows. Pause one by
percentage 0: a rule that is taken away and written anew later holds others.`,
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
    examples: `conflux eval limits -n prod --label plan=pro --label user=u1 --explain
conflux eval -n prod`,
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
    examples: `conflux watch -n prod                          # every change of the namespace
conflux watch limits -n prod --label plan=pro  # what such a client gets, each time that changes`,
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
    examples: `conflux keys create --kind client --only prod --description 'the shop, in browsers'
conflux keys rotate 0zGAFbegNm6lo --overlap 86400

admin may do everything in the tenant, write change configs, read see configs with their rules,
client get effective values and flags.`,
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
    examples: `conflux namespaces set prod --extends base --protect`,
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
    examples: `conflux tenants create acme --replicas 3 --quota configs=500
conflux tenants delete acme   # undelete takes it back`,
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

/** Whoever takes no more of what they write wants no more of them. */
const reading: ReadonlySet<string> = new Set([
  "audit",
  "describe",
  "diff",
  "eval",
  "feedback",
  "gen",
  "get",
  "help",
  "history",
  "journal",
  "watch",
]);

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
    "`journal` found damage, 130 stopped by Ctrl-C.",
  ].join("\n");
}

function commandHelp({ name, summary, usage, options, examples }: Command): string {
  const specs = optionHelp({ ...options, ...commonOptions });
  const shown = examples === undefined ? "" : `\n\nFor example:\n${examples}`;
  return `Usage: conflux ${name} ${usage}\n${summary}.\n\n${specs}${shown}`;
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
  let lost: NodeJS.ErrnoException | null = null;
  const end = (code: number): void => {
    const isLost = lost !== null && lost.code !== "EPIPE";
    if (isLost) process.stderr.write(`error: Cannot write what is to be shown: ${lost?.message}\n`);
    process.exitCode = isLost ? 1 : code;
  };
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    const isFirst = lost === null;
    lost ??= error;
    // What changes something goes on to its end, and to its own exit code. What only reads ends: `conflux watch | head`
    // without a word, and where a disk is full with one.
    if (isFirst && reading.has(process.argv[2] ?? "")) {
      end(Number(process.exitCode ?? 0));
      process.exit();
    }
    if (isFirst && process.exitCode !== undefined) end(Number(process.exitCode));
  });
  main(process.argv.slice(2)).then(end, (error: unknown) => {
    waiting.end();
    process.stderr.write(`${errorText(error)}\n`);
    end(1);
  });
}
