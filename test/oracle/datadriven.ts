/**
 * The file format of the transcripts: `cmd args key=value key=(a,b)`, lines of input, `----`, the expected output up to
 * an empty line. Output that itself holds empty lines stands between doubled separators.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative } from "node:path";

export interface Directive {
  readonly line: number;
  readonly command: string;
  /** Arguments without a value. */
  readonly words: readonly string[];
  readonly named: ReadonlyMap<string, readonly string[]>;
  readonly input: readonly string[];
  readonly expected: readonly string[];
}

export function parseDirectives(text: string): Directive[] {
  const lines = text.split("\n");
  const directives: Directive[] = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at] as string;
    if (line.trim() === "" || line.startsWith("#")) {
      at += 1;
      continue;
    }
    const first = at;
    at += 1;
    const input: string[] = [];
    while (at < lines.length && lines[at] !== "----") input.push(lines[at++] as string);
    at += 1;
    const doubled = lines[at] === "----";
    if (doubled) at += 1;
    const expected: string[] = [];
    while (at < lines.length) {
      if (doubled ? lines[at] === "----" && lines[at + 1] === "----" : lines[at] === "") break;
      expected.push(lines[at++] as string);
    }
    if (doubled) at += 2;
    directives.push({ line: first + 1, ...parseCommand(line), input, expected });
  }
  return directives;
}

function parseCommand(line: string): Pick<Directive, "command" | "words" | "named"> {
  const words: string[] = [];
  const named = new Map<string, readonly string[]>();
  for (const [, key, list, value] of line.matchAll(/([^\s=()]+)(?:=(?:\(([^)]*)\)|(\S*)))?/g)) {
    if (key === undefined) continue;
    if (list !== undefined) {
      const items = list.split(/[\s,]+/).filter((item) => item !== "");
      named.set(key, items);
    } else if (value === undefined) words.push(key);
    else named.set(key, [value]);
  }
  return { command: words.shift() ?? "", words, named };
}

/** Every transcript below the folder, wherever it lies; what kind it is shows in its commands. */
export function transcripts(root: string): { name: string; directives: Directive[] }[] {
  const found: { name: string; directives: Directive[] }[] = [];
  const visit = (folder: string): void => {
    for (const name of readdirSync(folder).sort()) {
      const path = join(folder, name);
      if (statSync(path).isDirectory()) visit(path);
      else if (name.endsWith(".txt")) {
        found.push({
          name: relative(root, path),
          directives: parseDirectives(readFileSync(path, "utf8")),
        });
      }
    }
  };
  visit(root);
  return found;
}
