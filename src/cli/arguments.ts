/** Command lines: what is allowed is data, from which parsing, errors and help are made. */
import { parseArgs } from "node:util";
import { suggestion } from "../lib/nearest.ts";

export interface OptionSpec {
  readonly type: "string" | "boolean";
  readonly short?: string;
  readonly multiple?: boolean;
  /** Stands for the value in help. */
  readonly value?: string;
  readonly help: string;
}

export type OptionSpecs = Readonly<Record<string, OptionSpec>>;

/** A command line that cannot be followed. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** Options as they were given. */
export class Options {
  readonly #values: ReadonlyMap<string, readonly string[]>;
  readonly positionals: readonly string[];

  constructor(values: ReadonlyMap<string, readonly string[]>, positionals: readonly string[]) {
    this.#values = values;
    this.positionals = positionals;
  }

  /** Of those that were given. */
  get names(): Iterable<string> {
    return this.#values.keys();
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  get(name: string): string | undefined {
    return this.#values.get(name)?.at(-1);
  }

  all(name: string): readonly string[] {
    return this.#values.get(name) ?? [];
  }

  /** A whole number from 1. */
  count(name: string): number | undefined {
    const text = this.get(name);
    if (text === undefined) return undefined;
    const value = Number(text);
    if (!/^[0-9]+$/.test(text) || !Number.isSafeInteger(value) || value < 1)
      throw new UsageError(`Option --${name} takes a whole number from 1: got ${text}`);
    return value;
  }

  /** `k=v` pairs. */
  pairs(name: string): Record<string, string> {
    const pairs: Record<string, string> = {};
    for (const text of this.all(name)) {
      const equals = text.indexOf("=");
      if (equals < 1) throw new UsageError(`Option --${name} takes key=value: got ${text}`);
      pairs[text.slice(0, equals)] = text.slice(equals + 1);
    }
    return pairs;
  }
}

/** @throws UsageError for options that are not allowed, with the nearest that is */
export function parseOptions(argv: readonly string[], specs: OptionSpecs): Options {
  const { tokens } = parseArgs({
    args: [...argv],
    options: Object.fromEntries(
      Object.entries(specs).map(([name, { type, short }]) => [
        name,
        { type, ...(short !== undefined && { short }) },
      ]),
    ),
    // Strict errors of the platforms differ and know no neighbours: the tokens are checked here.
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const values = new Map<string, string[]>();
  const positionals: string[] = [];
  for (const token of tokens) {
    if (token.kind === "positional") positionals.push(token.value);
    if (token.kind !== "option") continue;
    const spec = Object.hasOwn(specs, token.name) ? specs[token.name] : undefined;
    if (spec === undefined) {
      const names = Object.keys(specs).map((name) => `--${name}`);
      const hint = suggestion(`--${token.name}`, names);
      throw new UsageError(`There is no option ${token.rawName}; ${hint}`);
    }
    const given = token.value;
    if (spec.type === "boolean") {
      if (given !== undefined) throw new UsageError(`Option ${token.rawName} takes no value`);
      values.set(token.name, []);
      continue;
    }
    const isMissing =
      given === undefined || (!token.inlineValue && given.startsWith("-") && given !== "-");
    if (isMissing) throw new UsageError(`Option ${token.rawName} needs a value`);
    const before = values.get(token.name) ?? [];
    if (before.length > 0 && spec.multiple !== true)
      throw new UsageError(`Give option ${token.rawName} once`);
    values.set(token.name, [...before, given]);
  }
  return new Options(values, positionals);
}

/** Options with their help, two columns. */
export function optionHelp(specs: OptionSpecs): string {
  const rows = Object.entries(specs).map(([name, { short, value, help }]) => {
    const dash = short === undefined ? "    " : `-${short}, `;
    return [`  ${dash}--${name}${value === undefined ? "" : ` ${value}`}`, help] as const;
  });
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  return rows.map(([left, right]) => `${left.padEnd(width)}${right}`).join("\n");
}
