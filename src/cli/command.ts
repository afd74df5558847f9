/** What all commands of `conflux` share: how one is described, and what it is run with. */
import { readFile } from "node:fs/promises";
import process from "node:process";
import { text as textOf } from "node:stream/consumers";
import { Admin } from "../sdk/admin.ts";
import type { Where } from "../sdk/admin.ts";
import { UsageError } from "./arguments.ts";
import type { Options, OptionSpecs } from "./arguments.ts";
import { suggestion } from "../lib/nearest.ts";
import { formats, ProgressLine, show } from "./output.ts";
import type { Format } from "./output.ts";

export const commonOptions = {
  url: {
    type: "string",
    value: "URL",
    help: "Gateway, or several with commas (CONFLUX_URL; default http://127.0.0.1:8080)",
  },
  token: { type: "string", value: "KEY", help: "Key (CONFLUX_TOKEN)" },
  output: { type: "string", short: "o", value: "FORMAT", help: "table (default), json or yaml" },
  help: { type: "boolean", short: "h", help: "This help" },
} as const satisfies OptionSpecs;

export const tenantOption = {
  tenant: { type: "string", value: "NAME", help: "Tenant (CONFLUX_TENANT; default: the key's)" },
} as const satisfies OptionSpecs;

export const whereOptions = {
  ...tenantOption,
  namespace: {
    type: "string",
    short: "n",
    value: "NAME",
    help: "Namespace (CONFLUX_NAMESPACE; default: default)",
  },
} as const satisfies OptionSpecs;

export const labelOption = {
  label: { type: "string", short: "l", multiple: true, value: "K=V", help: "A label; repeatable" },
} as const satisfies OptionSpecs;

export const messageOption = {
  message: { type: "string", short: "m", value: "TEXT", help: "Why, for the history" },
} as const satisfies OptionSpecs;

export const spreadOption = {
  spread: {
    type: "string",
    value: "TIME",
    help: "Tell watchers within this time, each at its own moment, e.g. 30s (default: at once)",
  },
} as const satisfies OptionSpecs;

export interface Command {
  readonly name: string;
  readonly summary: string;
  /** After the name. */
  readonly usage: string;
  /** How many words may follow. */
  readonly words: readonly [min: number, max: number];
  readonly options: OptionSpecs;
  /** Shown as they are, below what they are about. */
  readonly examples?: string;
  readonly run: (context: Context) => Promise<number | void>;
}

/** Why it takes longer. */
export const waiting = new ProgressLine();

/**
 * Somebody pressed Ctrl-C, or a supervisor wants an end: what is under way ends itself, with the exit code that shells
 * expect. The second time the process just ends.
 */
export class Stop {
  readonly #told = new AbortController();
  #code: number | null = null;

  constructor(onStop: () => void = () => {}) {
    for (const [name, number] of [
      ["SIGHUP", 1],
      ["SIGINT", 2],
      ["SIGTERM", 15],
    ] as const)
      process.once(name, () => {
        this.#code ??= 128 + number;
        this.#told.abort();
        onStop();
      });
  }

  get signal(): AbortSignal {
    return this.#told.signal;
  }

  /** Null: nobody did. */
  get code(): number | null {
    return this.#code;
  }
}

/** A command line with its environment. */
export class Context {
  readonly options: Options;
  readonly words: readonly string[];
  readonly format: Format;
  /** A request failed, and is repeated. */
  onRetry = ({ message }: Error): void => waiting.show(`Trying again: ${message}`);

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
        onRetry: (error) => this.onRetry(error),
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

/** What a verb of a command takes: words after it, and options beside those of every command and of where. */
type Verb = readonly [words: number, ...options: string[]];

/** The verb of `keys create` and the like, with the word that must follow it (as many as the table says). */
export function verbOf(
  context: Context,
  verbs: Readonly<Record<string, Verb>>,
): readonly [verb: string, word: string | undefined] {
  const [verb = "", word] = context.words;
  if (!Object.hasOwn(verbs, verb))
    throw new UsageError(`There is no ${verb} here; ${suggestion(verb, Object.keys(verbs))}`);
  const [count, ...options] = verbs[verb] as Verb;
  if (context.words.length - 1 !== count)
    throw new UsageError(
      count === 0 ? `${verb} takes no further words: got ${word}` : `Say which one to ${verb}`,
    );
  refuseOthers(context.options, verb, options);
  return [verb, word];
}

/** An option of another verb would be left aside in silence: `delete --purge` is not what `list --purge` does. */
export function refuseOthers(options: Options, verb: string, own: readonly string[]): void {
  const shared = { ...commonOptions, ...whereOptions };
  for (const name of options.names) {
    if (own.includes(name) || Object.hasOwn(shared, name)) continue;
    const taken = own.map((one) => `--${one}`).join(", ");
    throw new UsageError(`${verb} takes no --${name}${taken === "" ? "" : `; it takes ${taken}`}`);
  }
}

export function spreadOf(options: Options): { spread?: string } {
  const spread = options.get("spread");
  return spread === undefined ? {} : { spread };
}

export function messageOf(options: Options): { message?: string } {
  const message = options.get("message");
  return message === undefined ? {} : { message };
}

/** A file, or standard input for `-`. */
export async function readText(file: string): Promise<string> {
  if (file === "-") return textOf(process.stdin);
  try {
    return await readFile(file, "utf8");
  } catch (error) {
    throw new UsageError(`Cannot read ${file}: ${(error as Error).message}`);
  }
}

export function keyText(key: { tenant: string; name: string | null; token: string }): string {
  const { tenant, name, token } = key;
  const which = name === null ? `admin key of ${tenant}` : `key ${name} of ${tenant}`;
  return `${which}, shown this once: ${token}`;
}
