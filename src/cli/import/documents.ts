/**
 * Whole documents: Java properties, .env files, namespaces of Apollo, configs of Nacos. What is released together there
 * stays together here: a file or a namespace becomes one config.
 */
import { prepareContent } from "../../model/content.ts";
import { shown } from "../../model/names.ts";
import type { ContentFormat } from "../../model/release.ts";
import {
  formatOfKey,
  isFields,
  laidOut,
  placeIn,
  type Fields,
  type ImportFile,
  type Importing,
} from "./importing.ts";

// --- properties and .env -----------------------------------------------------------------------------------------------

/** Kept as it is written, comments and all. */
export function fromProperties(file: ImportFile, out: Importing): void {
  const content = out.text(file);
  const { value, errors } = prepareContent("properties", content);
  const [error] = errors;
  if (error !== undefined) out.fail(`${placeIn(file, error.line ?? 1)}: ${error.detail}`);
  const { key, name } = named(file, out);
  if (name === null) return;
  out.look(Object.keys(value as Fields));
  out.add({ key, name, format: "properties", content });
}

/**
 * One JSON object from name to text, which every client can read. As dotenv does it: `export` in front, comments, values
 * bare, in 'single', "double" or \`back\` quotes, quoted ones over several lines, escapes in double quotes.
 */
export function fromEnv(file: ImportFile, out: Importing): void {
  const { key, name } = named(file, out);
  const variables = new Map<string, { readonly line: number; readonly value: string }>();
  for (const { line, variable, value, refers } of variablesIn(file, out)) {
    const before = variables.get(variable);
    if (before !== undefined)
      out.problem(
        `${placeIn(file, line)}: ${variable} was given on line ${before.line} already: leave one`,
      );
    variables.set(variable, { line, value });
    if (refers)
      out.note(
        variable,
        `refers to other variables by $, which is kept as it is written: nothing fills it in`,
      );
  }
  if (name === null) return;
  const entries = [...variables].map(([variable, { value }]) => [variable, value] as const);
  out.look(variables.keys());
  out.add({
    key,
    name,
    format: "json",
    content: laidOut(Object.fromEntries(entries)),
  });
}

interface Variable {
  readonly line: number;
  readonly variable: string;
  readonly value: string;
  /** Whether a shell would put another variable's value into it. */
  readonly refers: boolean;
}

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t" };

function* variablesIn(file: ImportFile, out: Importing): Generator<Variable> {
  const lines = out.text(file).split(/\r\n|\r|\n/);
  for (let i = 0; i < lines.length; i += 1) {
    const line = i + 1;
    const text = (lines[i] as string).trim();
    if (text === "" || text.startsWith("#")) continue;
    const [, variable, rest] =
      /^(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(.*)$/.exec(text) ?? [];
    if (variable === undefined || rest === undefined) {
      out.problem(`${placeIn(file, line)}: Give NAME=value, or a comment after #`);
      continue;
    }
    const quote = rest[0] ?? "";
    if (!`'"\``.includes(quote) || quote === "") {
      const value = withoutComment(rest);
      yield { line, variable, value, refers: /\$[\w{]/.test(value) };
      continue;
    }
    // The raw line, as what is quoted keeps its blanks.
    const raw = lines[i] as string;
    let open = raw.slice(raw.indexOf(quote, raw.indexOf("=")) + 1);
    const parts: string[] = [];
    let end = closing(open, quote);
    while (end === -1 && i + 1 < lines.length) {
      parts.push(open);
      i += 1;
      open = lines[i] as string;
      end = closing(open, quote);
    }
    if (end === -1)
      return out.fail(`${placeIn(file, line)}: Close the value of ${variable} with ${quote}`);
    if (!/^\s*(?:#.*)?$/.test(open.slice(end + 1)))
      out.problem(`${placeIn(file, i + 1)}: End the line after the closing ${quote}`);
    const value = [...parts, open.slice(0, end)].join("\n");
    if (quote !== '"') yield { line, variable, value, refers: false };
    else
      yield {
        line,
        variable,
        value: value.replaceAll(/\\([nrt"\\$])/g, (_, sign: string) => escapes[sign] ?? sign),
        refers: /(?:^|[^\\])\$[\w{]/.test(value),
      };
  }
}

/** A comment begins with a # that nothing or a blank stands before. */
function withoutComment(text: string): string {
  for (let at = text.indexOf("#"); at !== -1; at = text.indexOf("#", at + 1))
    if (at === 0 || /\s/.test(text[at - 1] as string)) return text.slice(0, at).trimEnd();
  return text;
}

/** Where a quoted value ends on its line; -1: on a later one. */
function closing(text: string, quote: string): number {
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\" && quote === '"') at += 1;
    else if (text[at] === quote) return at;
  }
  return -1;
}

/** The one config that a file becomes. */
function named({ path }: ImportFile, out: Importing): { key: string; name: string | null } {
  const key = path.split(/[/\\]/).at(-1) ?? "";
  if (out.options.name !== null)
    return { key: key === "" ? out.options.name : key, name: out.options.name };
  if (key === "")
    return out.fail("Name the config by --name: what comes by standard input has no name");
  // As Apollo packs them: application, cluster and namespace.
  const last = key.split("+").at(-1) as string;
  return { key, name: out.nameOf(key, last.replace(/\.properties$/i, "")) };
}

// --- Apollo --------------------------------------------------------------------------------------------------------------

const apolloHint =
  "Give a namespace as the portal exports it (.properties), or the JSON of …/namespaces or …/releases/latest of the open API";

const apolloFormats: Readonly<Record<string, ContentFormat>> = {
  properties: "properties",
  json: "json",
  yml: "yaml",
  yaml: "yaml",
  xml: "text",
  txt: "text",
};

export function fromApollo(file: ImportFile, out: Importing): void {
  if (!/^\s*[[{]/.test(out.text(file))) {
    fromProperties(file, out);
    return;
  }
  const answer = out.json(file, apolloHint);
  const list: readonly unknown[] = Array.isArray(answer) ? answer : [answer];
  const isItems =
    list.length > 0 && list.every((one) => isFields(one) && "key" in one && "value" in one);
  if (!isItems && out.options.name !== null)
    out.fail("Leave --name out: namespaces have names; --rename KEY=NAME gives another");
  // A zip of the portal has the items of one namespace in each file, and what they belong to in its name.
  const namespaces = isItems
    ? [
        {
          namespaceName: (file.path.split(/[/\\+]/).at(-1) ?? "").replace(/\.properties$/i, ""),
          items: list,
        },
      ]
    : list;
  for (const [index, one] of namespaces.entries()) {
    const at = Array.isArray(answer) && !isItems ? `/${index}` : "";
    if (!isFields(one)) return out.fail(`${at}: Give an object. ${apolloHint}`);
    const key = isItems && out.options.name !== null ? out.options.name : one["namespaceName"];
    if (typeof key !== "string" || key === "")
      return out.fail(`${at}/namespaceName: Give the name of the namespace. ${apolloHint}`);
    apolloNamespace(key, one, at, out);
  }
}

function apolloNamespace(key: string, namespace: Fields, at: string, out: Importing): void {
  if (!out.isWanted(key)) return;
  const ending = /\.(json|yml|yaml|xml|txt)$/.exec(key)?.[1] ?? "properties";
  const { format: given = ending, comment, isPublic, appId, clusterName } = namespace;
  const format = Object.hasOwn(apolloFormats, String(given))
    ? apolloFormats[String(given)]
    : undefined;
  if (format === undefined) {
    out.leftOut(key, `a namespace of format ${shown(String(given))}`);
    return;
  }
  const items = apolloItems(namespace, at, out);
  const name = out.nameOf(key);
  if (name === null) return;
  let content: string;
  if (given === "properties") content = items.map(propertiesOf).join("");
  else {
    const whole = items.find((item) => item.key === "content");
    if (whole === undefined) {
      out.leftOut(key, "a namespace that has no content");
      return;
    }
    content = whole.value;
  }
  out.look(items.map((item) => item.key));
  if (isPublic === true)
    out.note(
      key,
      "is public: give the namespaces of those who use it `extends`, then they inherit it",
    );
  out.add({
    key,
    name,
    format,
    content,
    ...(typeof comment === "string" && { description: comment }),
    tags: {
      ...(typeof appId === "string" && appId !== "" && { "apollo-app": appId }),
      ...(typeof clusterName === "string" &&
        clusterName !== "default" && { "apollo-cluster": clusterName }),
    },
  });
}

interface ApolloItem {
  readonly key: string;
  readonly value: string;
  readonly comment: string;
}

function apolloItems({ items, configurations }: Fields, at: string, out: Importing): ApolloItem[] {
  // The latest release has them by key.
  if (isFields(configurations))
    return Object.entries(configurations).map(([key, value]) => {
      if (typeof value !== "string") out.problem(`${at}/configurations/${key}: Give a text`);
      return { key, value: String(value), comment: "" };
    });
  if (!Array.isArray(items)) return out.fail(`${at}/items: Give the items. ${apolloHint}`);
  return (items as unknown[]).map((item, index) => {
    const { key = "", value = "", comment } = isFields(item) ? item : { key: null };
    if (typeof key !== "string" || typeof value !== "string")
      return out.fail(`${at}/items/${index}: Give an item with key and value as texts`);
    return { key, value, comment: typeof comment === "string" ? comment : "" };
  });
}

/** An item as lines of a properties text. Without a key it is a comment or an empty line. */
export function propertiesOf({ key, value, comment }: ApolloItem): string {
  const comments = comment
    .split(/\r\n|\r|\n/)
    .filter((line) => line.trim() !== "")
    .map((line) => (/^\s*[#!]/.test(line) ? `${line}\n` : `# ${line}\n`))
    .join("");
  if (key === "") return comments === "" ? "\n" : comments;
  return `${comments}${escaped(key, /[\s\\=:#!]/g)}=${escaped(value, /^[ \t\f]|[\\\n\r]/g)}\n`;
}

const propertyEscapes: Readonly<Record<string, string>> = {
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\f": "\\f",
};

function escaped(text: string, signs: RegExp): string {
  return text.replaceAll(signs, (sign) => propertyEscapes[sign] ?? `\\${sign}`);
}

// --- Nacos -----------------------------------------------------------------------------------------------------------------

const nacosFormats: Readonly<Record<string, ContentFormat>> = {
  json: "json",
  yaml: "yaml",
  yml: "yaml",
  toml: "toml",
  properties: "properties",
  text: "text",
  xml: "text",
  html: "text",
};

/** Nobody chose it. */
const defaultGroup = "DEFAULT_GROUP/";
const metadataPath = ".metadata.yml";
const formerMetadataPath = ".meta.yml";

/** @param files each at GROUP/DATA_ID, beside a file of metadata */
export function fromNacos(files: readonly ImportFile[], out: Importing): void {
  const about = nacosMetadata(files, out);
  for (const file of files) {
    const { path } = file;
    if (path === formerMetadataPath && file.bytes.length > 0)
      out.leftOut(path, "the applications that it names, as versions of Nacos before 2 wrote them");
    if (path === metadataPath || path === formerMetadataPath) continue;
    const [group = "", dataId = "", more] = path.split("/");
    if (group === "" || dataId === "" || more !== undefined) {
      out.leftOut(path, "a file that does not stand in the folder of a group");
      continue;
    }
    if (!out.isWanted(path)) continue;
    if (dataId.startsWith("cipher-")) {
      out.leftOut(
        path,
        "it is encrypted in Nacos and was exported in the clear: manifests are no place for it; `conflux publish NAME --secret --format text -f FILE` seals it",
      );
      continue;
    }
    const name = out.nameOf(path, path.startsWith(defaultGroup) ? dataId : path);
    if (name === null) continue;
    const { type, desc, appName } = about.get(path) ?? {};
    const stated = typeof type === "string" ? type.toLowerCase() : "";
    const format = Object.hasOwn(nacosFormats, stated)
      ? (nacosFormats[stated] as ContentFormat)
      : null;
    out.add({
      key: path,
      name,
      format: format ?? formatOfKey(dataId) ?? "text",
      content: out.text(file),
      ...(typeof desc === "string" && { description: desc }),
      tags: typeof appName === "string" && appName !== "" ? { "nacos-app": appName } : {},
    });
  }
  for (const path of about.keys())
    if (!files.some((file) => file.path === path))
      out.leftOut(path, "it is in the metadata of the export, and its content is not there");
}

/** By path. */
function nacosMetadata(files: readonly ImportFile[], out: Importing): ReadonlyMap<string, Fields> {
  const about = new Map<string, Fields>();
  const file = files.find(({ path }) => path === metadataPath);
  if (file === undefined) return about;
  const metadata = out.yaml(file, "Take .metadata.yml away, then formats go by the ends of names");
  const list = isFields(metadata) ? metadata["metadata"] : undefined;
  for (const one of Array.isArray(list) ? (list as unknown[]) : [])
    if (isFields(one)) about.set(`${String(one["group"])}/${String(one["dataId"])}`, one);
  return about;
}
