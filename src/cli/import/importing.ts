/**
 * What every import has in common: an export of another system comes in as bytes, configs and remarks come out, and
 * nothing else happens. What cannot be carried over is never dropped silently: a remark says what and why. What makes
 * the export useless as a whole, or leaves it open what was meant, is an `ImportError` with all that was found.
 */
import { LineCounter, parseDocument } from "yaml";
import { prepareContent } from "../../model/content.ts";
import { canonicalJson, parseJsonText, scanJson } from "../../model/json.ts";
import { checkConfigName, checkTagName, shown, tagsMax } from "../../model/names.ts";
import type { ContentFormat } from "../../model/release.ts";
import { defaultQuotas } from "../../machine/rows.ts";
import { suggestion } from "../../lib/nearest.ts";

/** Of an export, also of one that is packed, unpacked. */
export const importBytesMax = 64 * 1024 * 1024;
/** Configs of one import, and entries of one export that are looked at. */
export const importConfigsMax = 20_000;
/** Of YAML, which takes a hundred times as long to read as JSON. */
const yamlBytesMax = 8 * 1024 * 1024;
const keyLengthMax = 4_096;
const tagLengthMax = 1_024;
const descriptionLengthMax = 4_096;
const problemsMax = 20;
const lineLengthMax = 100;
const secretive = /PASSW|SECRET|TOKEN|PRIVATE|CREDENTIAL|API[_.-]?KEY|ACCESS[_.-]?KEY/i;
const secretsShownMax = 5;

/** One file of an export. */
export interface ImportFile {
  /** Its path within the export, or its name; empty when it came without. */
  readonly path: string;
  readonly bytes: Uint8Array;
}

export interface ImportOptions {
  /** Only keys that begin so, and what follows it is their name. */
  readonly prefix: string;
  /** Names of configs by the keys that get them. */
  readonly renames: ReadonlyMap<string, string>;
  /** Of the one config that an export of one file becomes; null: by the file. */
  readonly name: string | null;
  /** The one that is meant, of an export with several; null: there is one. */
  readonly environment: string | null;
}

export interface ImportedConfig {
  readonly name: string;
  /** What the other system calls it. */
  readonly key: string;
  readonly format: ContentFormat;
  readonly content: string;
  readonly description?: string;
  readonly tags?: Readonly<Record<string, string>>;
}

export interface Remark {
  /** What the other system calls it; empty: the export as a whole. */
  readonly key: string;
  /** `left-out`: it is not, or not all of it, in what was made. `note`: it is there, and something is to be known. */
  readonly kind: "left-out" | "note";
  readonly detail: string;
}

export interface Imported {
  /** By name. */
  readonly configs: readonly ImportedConfig[];
  readonly remarks: readonly Remark[];
}

/** An export that nothing was made of. Each problem says where it is and what to do. */
export class ImportError extends Error {
  override readonly name = "ImportError";
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.join("\n"));
    this.problems = problems;
  }
}

export type Fields = Readonly<Record<string, unknown>>;

export function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The name that a key of another system gets: words of camelCase apart by hyphens, all in lower case, dots for slashes,
 * hyphens for what names may not have, and no sign at either end. Empty: nothing is left.
 */
export function nameOf(key: string): string {
  const name = key
    .replaceAll(/([a-z0-9])([A-Z])/g, "$1-$2")
    .toLowerCase()
    .replaceAll("/", ".")
    .replaceAll(/[^a-z0-9._-]+/g, "-");
  let [start, end] = [0, name.length];
  while (start < end && "._-".includes(name[start] as string)) start += 1;
  while (end > start && "._-".includes(name[end - 1] as string)) end -= 1;
  return name.slice(start, end);
}

/** Formats that say themselves, at the end of a key, what they are. */
const formatsByEnding: Readonly<Record<string, ContentFormat>> = {
  json: "json",
  yaml: "yaml",
  yml: "yaml",
  toml: "toml",
  properties: "properties",
};

/** Null: its end says nothing. */
export function formatOfKey(key: string): ContentFormat | null {
  const ending = /\.([a-z]+)$/i.exec(key)?.[1]?.toLowerCase() ?? "";
  return Object.hasOwn(formatsByEnding, ending) ? (formatsByEnding[ending] as ContentFormat) : null;
}

/** Objects and lists are JSON; a bare number or word stays the text that it was. */
export function formatOfText(text: string): ContentFormat {
  const first = text.trimStart()[0];
  return (first === "{" || first === "[") && scanJson(text) === null ? "json" : "text";
}

/** JSON as people lay it out: on one line what fits there. */
export function laidOut(value: unknown, indent = "", before = 0): string {
  const text = JSON.stringify(value);
  if (typeof value !== "object" || value === null) return text;
  const isList = Array.isArray(value);
  const deeper = `${indent}  `;
  const member = ([name, item]: readonly [string, unknown], within: string): string => {
    const label = isList ? "" : `${JSON.stringify(name)}: `;
    return `${label}${laidOut(item, within, label.length)}`;
  };
  const members = Object.entries(value);
  if (members.length === 0) return text;
  const used = indent.length + before;
  if (used + text.length <= lineLengthMax) {
    const all = members.map((one) => member(one, deeper));
    const line = isList ? `[${all.join(", ")}]` : `{ ${all.join(", ")} }`;
    if (used + line.length <= lineLengthMax && !line.includes("\n")) return line;
  }
  const lines = members.map((one) => `${deeper}${member(one, deeper)}`).join(",\n");
  return isList ? `[\n${lines}\n${indent}]` : `{\n${lines}\n${indent}}`;
}

/** Null: it is not UTF-8. */
export function textOf(bytes: Uint8Array): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

/** Null: it is not base64 with its padding, as Go and Java write it. */
export function base64Bytes(text: string): Uint8Array | null {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return null;
  return new Uint8Array(Buffer.from(text, "base64"));
}

export function placeIn({ path }: ImportFile, line: number): string {
  return path === "" ? `line ${line}` : `${path}:${line}`;
}

/** Collects what a converter finds. */
export class Importing {
  readonly options: ImportOptions;
  readonly #system: string;
  readonly #configs = new Map<string, ImportedConfig>();
  readonly #remarks: Remark[] = [];
  readonly #problems: string[] = [];
  readonly #renamed = new Set<string>();
  readonly #secrets: string[] = [];
  readonly #keys: string[] = [];
  /** Of all contents. */
  #bytes = 0;
  #outside = 0;
  #firstOutside = "";

  constructor(system: string, options: ImportOptions) {
    this.#system = system;
    this.options = options;
    if (options.name !== null) {
      const wrong = checkConfigName(options.name);
      if (wrong !== null) this.fail(`--name: ${wrong}`);
    }
    for (const [key, name] of options.renames) {
      const wrong = checkConfigName(name);
      if (wrong !== null) this.#problems.push(`--rename ${shown(key)}: ${wrong}`);
    }
  }

  /** Whether a key is among those asked for. */
  isWanted(key: string): boolean {
    const isWanted = key.startsWith(this.options.prefix);
    if (!isWanted) {
      if (this.#outside === 0) this.#firstOutside = key;
      this.#outside += 1;
    }
    return isWanted;
  }

  /**
   * The name of a wanted key.
   * @param naming what the name is made of, if not the key; null: a problem was noted
   */
  nameOf(key: string, naming = key): string | null {
    this.#keys.push(key);
    const given = this.options.renames.get(key);
    if (given !== undefined) {
      this.#renamed.add(key);
      return given;
    }
    if (naming.length > keyLengthMax) {
      this.problem(`${shown(key)}: Shorten the key to ${keyLengthMax} characters at most`);
      return null;
    }
    const { prefix } = this.options;
    const name = nameOf(naming.startsWith(prefix) ? naming.slice(prefix.length) : naming);
    const wrong = checkConfigName(name);
    if (wrong === null) return name;
    this.problem(
      name === ""
        ? `${shown(key)}: Nothing of this key can stand in a name: give it one by --rename KEY=NAME`
        : `${shown(key)}: Its name would be too long: give it one of 128 characters at most by --rename KEY=NAME, or cut it by --prefix`,
    );
    return null;
  }

  /** What is malformed in its format is kept as text where that is possible, else left out; either is told. */
  add(config: ImportedConfig): void {
    const { key, name } = config;
    let { format } = config;
    const other = this.#configs.get(name);
    if (other !== undefined) {
      this.problem(
        `${shown(other.key)} and ${shown(key)} would both be config ${name}: give one another name by --rename KEY=NAME`,
      );
      return;
    }
    let prepared = prepareContent(format, config.content);
    const [error] = prepared.errors;
    if (error !== undefined) {
      const place = error.line === undefined ? error.pointer : `line ${error.line}`;
      const what = `not valid ${format}: ${error.detail}${place && ` (${place})`}`;
      prepared = prepareContent("text", config.content);
      if (format === "flag" || prepared.errors.length > 0) {
        this.leftOut(key, what);
        return;
      }
      this.note(key, `kept as text, as it is ${what}`);
      format = "text";
    }
    const bytes = Buffer.byteLength(prepared.text);
    if (bytes > defaultQuotas.contentBytes)
      this.note(
        key,
        `has ${bytes} bytes: a tenant takes ${defaultQuotas.contentBytes} unless its quota contentBytes says more`,
      );
    this.#bytes += bytes;
    if (this.#bytes > importBytesMax)
      this.fail(
        `Import ${importBytesMax / 1024 / 1024} MiB at most at once, with what is copied: take a part by --prefix`,
      );
    const tags = this.#tagsOf(config);
    const description = this.#descriptionOf(config);
    this.#configs.set(name, {
      name,
      key,
      format,
      content: prepared.text,
      ...(description !== undefined && { description }),
      ...(Object.keys(tags).length > 0 && { tags }),
    });
    if (this.#configs.size > importConfigsMax)
      this.fail(`Import at most ${importConfigsMax} configs at once: take a part by --prefix`);
  }

  /** Looks whether names tell of secrets; one remark names them all. */
  look(names: Iterable<string>): void {
    for (const name of names) if (secretive.test(name)) this.#secrets.push(name);
  }

  leftOut(key: string, detail: string): void {
    this.#remarks.push({ key, kind: "left-out", detail });
  }

  note(key: string, detail: string): void {
    this.#remarks.push({ key, kind: "note", detail });
  }

  /** Goes on, to find others. */
  problem(text: string): void {
    this.#problems.push(text);
    if (this.#problems.length >= problemsMax) throw new ImportError(this.#problems);
  }

  fail(text: string): never {
    throw new ImportError([...this.#problems, text]);
  }

  /** @param path of the file, for errors */
  text({ path, bytes }: ImportFile): string {
    const at = path === "" ? "" : `${path}: `;
    return (
      textOf(bytes) ??
      this.fail(
        `${at}Give it as UTF-8: it is not (\`iconv -t utf-8\` converts, \`native2ascii\` of Java too)`,
      )
    );
  }

  /** @param hint what to give instead, should it not be JSON at all */
  json(file: ImportFile, hint: string): unknown {
    const text = this.text(file);
    const error = scanJson(text);
    if (error === null) return parseJsonText(text);
    const { line, column, detail } = error;
    return this.fail(`${placeIn(file, line)}, column ${column}: ${detail}. ${hint}`);
  }

  yaml(file: ImportFile, hint: string): unknown {
    const text = this.text(file);
    if (file.bytes.length > yamlBytesMax)
      this.fail(`Give ${yamlBytesMax / 1024 / 1024} MiB of YAML at most, or JSON`);
    const lines = new LineCounter();
    try {
      const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
      const [error] = document.errors;
      if (error !== undefined)
        this.fail(`${placeIn(file, lines.linePos(error.pos[0]).line)}: ${error.message}. ${hint}`);
      const value: unknown = document.toJS();
      // Cycles, numbers that JSON has not, and depth that nobody means.
      const canonical = canonicalJson(value);
      if (canonical.ok) return value;
      return this.fail(`${canonical.pointer}: ${canonical.detail}. ${hint}`);
    } catch (error) {
      // The library's signs for depth and for aliases of aliases.
      if (error instanceof RangeError || error instanceof ReferenceError)
        return this.fail(`${placeIn(file, 1)}: Nest less deep, with fewer aliases. ${hint}`);
      throw error;
    }
  }

  done(): Imported {
    for (const key of this.options.renames.keys())
      if (!this.#renamed.has(key))
        this.#problems.push(
          `--rename: There is no key ${shown(key)} in the export; ${suggestion(key, this.#keys.slice(0, 50))}`,
        );
    if (this.#outside > 0 && this.#keys.length === 0 && this.#remarks.length === 0)
      this.#problems.push(
        `--prefix: No key begins with ${shown(this.options.prefix)}: the first is ${shown(this.#firstOutside)}`,
      );
    if (this.#problems.length > 0) throw new ImportError(this.#problems);
    if (this.#outside > 0)
      this.note(
        "",
        `${this.#outside} ${this.#outside === 1 ? "key does" : "keys do"} not begin with the prefix ${shown(this.options.prefix)}`,
      );
    const secrets = this.#secrets.length;
    if (secrets > 0)
      this.note(
        "",
        `${this.#secrets.slice(0, secretsShownMax).map(shown).join(", ")}${secrets > secretsShownMax ? ` and ${secrets - secretsShownMax} more` : ""} may be secret: manifests are no place for secrets; \`conflux publish NAME --secret --format text\` seals one`,
      );
    return {
      configs: [...this.#configs.values()].toSorted((a, b) => (a.name < b.name ? -1 : 1)),
      remarks: this.#remarks,
    };
  }

  /** The key is kept where the name is another: nobody should have to guess it back. */
  #tagsOf({ key, name, tags = {} }: ImportedConfig): Record<string, string> {
    const kept: Record<string, string> = {};
    const all = key === name ? tags : { [`${this.#system}-key`]: key, ...tags };
    for (const [tag, value] of Object.entries(all))
      if (value.length > tagLengthMax)
        this.leftOut(key, `the tag ${shown(tag)}, as it has more than ${tagLengthMax} characters`);
      else if (checkTagName(tag) !== null || Object.keys(kept).length >= tagsMax)
        this.leftOut(key, `the tag ${shown(tag)}, as it cannot be named so or is one too many`);
      else kept[tag] = value;
    return kept;
  }

  #descriptionOf({ key, description }: ImportedConfig): string | undefined {
    if (description === undefined || description === "") return undefined;
    if (description.length <= descriptionLengthMax) return description;
    this.leftOut(key, `its description, as it has more than ${descriptionLengthMax} characters`);
    return undefined;
  }
}
