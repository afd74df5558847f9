/**
 * What the compiler and the linter cannot hold: the direction of imports, purity by name, and that the documents tell the
 * truth. Each checker is a function from sources to complaints, and is proven on planted violations first: a checker that
 * finds nothing proves nothing.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { problems } from "../src/api/problems.ts";
import { readManifests } from "../src/cli/apply.ts";
import { accessDocument } from "../src/gateway/access.ts";
import { routes } from "../src/gateway/gateway.ts";
import { settingsTable } from "../src/runtime/settings.ts";

type Sources = ReadonlyMap<string, string>;

const root = path.resolve(import.meta.dirname, "..");
const read = (file: string): string => readFileSync(path.join(root, file), "utf8");

// --- the repo's files --------------------------------------------------------------------------------------------------

const generated = new Set(["node_modules", "dist", "data", ".git", ".results", ".conflux"]);

/** Files that are or could be committed: what git says, or, in a copy without git, everything that is not generated. */
function repoFiles(): string[] {
  try {
    const listed = execFileSync(
      "git",
      ["ls-files", "--cached", "--others", "--exclude-standard", "-z"],
      { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] },
    );
    return listed.split("\0").filter((file) => file !== "" && existsSync(path.join(root, file)));
  } catch {
    const walk = (folder: string): string[] =>
      readdirSync(path.join(root, folder), { withFileTypes: true }).flatMap((entry) => {
        const file = path.posix.join(folder, entry.name);
        if (generated.has(entry.name)) return [];
        return entry.isDirectory() ? walk(file) : [file];
      });
    return walk("");
  }
}

const files = repoFiles();
const sourcesOf = (pattern: RegExp): Sources =>
  new Map(files.filter((file) => pattern.test(file)).map((file) => [file, read(file)]));

// --- code without what is not code ---------------------------------------------------------------------------------------

/**
 * Replaces comments with blanks, and the insides of strings, templates and regular expressions too unless told to keep
 * them. Lines and columns stay. Good enough for our own style; code inside `${}` stays code.
 */
function strip(source: string, keep: { strings: boolean } = { strings: false }): string {
  let out = "";
  let at = 0;
  const blank = (text: string): string => text.replace(/[^\n]/g, " ");
  const literal = (text: string): string => (keep.strings ? text : blank(text));
  /** Copies code until `end` (or the end of the source) at depth 0. */
  const code = (end: string | null): void => {
    let depth = 0;
    while (at < source.length) {
      const rest = source.slice(at, at + 2);
      const char = source[at] as string;
      if (end !== null && depth === 0 && char === end) return;
      if (rest === "//" || rest === "/*") {
        const close = rest === "//" ? source.indexOf("\n", at) : source.indexOf("*/", at + 2) + 2;
        const stop = close < at + 2 ? source.length : close;
        out += blank(source.slice(at, stop));
        at = stop;
      } else if (char === '"' || char === "'") {
        const stop = closing(at + 1, char);
        out += char + literal(source.slice(at + 1, stop)) + char;
        at = stop + 1;
      } else if (char === "`") {
        template();
      } else if (
        char === "/" &&
        /(^|[(,=:[!&|?{};+\-*%<>~^]|\b(return|typeof|case|of|in))\s*$/.test(out)
      ) {
        const stop = closing(at + 1, "/");
        out += `/${literal(source.slice(at + 1, stop))}/`;
        at = stop + 1;
      } else {
        if (char === "{") depth += 1;
        if (char === "}") depth -= 1;
        out += char;
        at += 1;
      }
    }
  };
  /** Index of the unescaped `end`; inside a character class a slash does not end a regular expression. */
  const closing = (from: number, end: string): number => {
    let inClass = false;
    for (let i = from; i < source.length; i += 1) {
      const char = source[i];
      if (char === "\\") i += 1;
      else if (end === "/" && char === "[") inClass = true;
      else if (end === "/" && char === "]") inClass = false;
      else if ((char === end && !inClass) || char === "\n") return i;
    }
    return source.length;
  };
  const template = (): void => {
    out += "`";
    at += 1;
    while (at < source.length && source[at] !== "`") {
      if (source.startsWith("${", at)) {
        out += "${";
        at += 2;
        code("}");
        out += "}";
        at += 1;
      } else {
        const length = source[at] === "\\" ? 2 : 1;
        out += literal(source.slice(at, at + length));
        at += length;
      }
    }
    out += "`";
    at += 1;
  };
  code(null);
  return out;
}

// --- floors ----------------------------------------------------------------------------------------------------------------

const floors: Readonly<Record<string, number>> = {
  lib: 0,
  model: 1,
  api: 1,
  raft: 1,
  machine: 1,
  host: 2,
  store: 3,
  transport: 3,
  gateway: 3,
  runtime: 4,
  cli: 4,
  rehearsal: 4,
  main: 5,
};
/** A tower beside the floors, because it also runs in a browser. */
const sdkSees: ReadonlySet<string> = new Set(["model", "api", "lib"]);
const sdkSeenBy: ReadonlySet<string> = new Set(["cli", "main"]);
/** Rooms of one floor do not know each other, but for this. */
const sideways: ReadonlySet<string> = new Set(["machine → model"]);
/** `conflux start` is the program itself: the command hands over to it. */
const upwards: ReadonlySet<string> = new Set(["src/cli/conflux.ts → src/main.ts"]);
const pureRooms: ReadonlySet<string> = new Set(["lib", "model", "machine", "raft"]);

/** `src/host/ports.ts` → `host`, `src/main.ts` → `main`. */
const roomOf = (file: string): string => file.split("/")[1]?.replace(/\.ts$/, "") ?? "";

interface Import {
  readonly to: string;
  readonly typeOnly: boolean;
  readonly line: number;
}

function importsOf(source: string): Import[] {
  const code = strip(source, { strings: true });
  const pattern =
    /\b(?:import|export)\s+(type\s)?(?:[\w*\s{},$]+?\sfrom\s+)?["']([^"']+)["']|\bimport\(\s*["']([^"']+)["']/g;
  return [...code.matchAll(pattern)].map((match) => ({
    to: match[2] ?? match[3] ?? "",
    typeOnly: match[1] !== undefined,
    line: code.slice(0, match.index).split("\n").length,
  }));
}

function mayImport(from: string, to: string): string | null {
  const [a, b] = [roomOf(from), roomOf(to)];
  if (a === b || upwards.has(`${from} → ${to}`)) return null;
  if (a === "sdk") return sdkSees.has(b) ? null : "the SDK sees model, api and lib only";
  if (b === "sdk") return sdkSeenBy.has(a) ? null : "only the command sees the SDK";
  const [above, below] = [floors[a], floors[b]];
  if (above === undefined || below === undefined) {
    return `no floor is known for ${above === undefined ? a : b}`;
  }
  if (sideways.has(`${a} → ${b}`)) return null;
  if (above === below) return "rooms on one floor do not know each other";
  if (above < below) return "imports point down";
  if (above === 3 && b === "host" && to !== "src/host/ports.ts") {
    return "adapters see host/ports.ts only";
  }
  return null;
}

const resolved = (from: string, to: string): string =>
  path.posix.join(path.posix.dirname(from), to);

/** The SDK's door to files: browsers have none, and never load it. */
const sdkOnFiles = new Set(["src/sdk/file.ts"]);

/** Complaints about imports that go up, sideways, out of src or into the void. */
function floorViolations(sources: Sources): string[] {
  const complaints: string[] = [];
  for (const [file, source] of sources) {
    for (const { to, line } of importsOf(source)) {
      const where = `${file}:${line} imports ${to}`;
      if (!to.startsWith(".")) {
        const pure =
          pureRooms.has(roomOf(file)) || (roomOf(file) === "sdk" && !sdkOnFiles.has(file));
        if (pure && /^(node:|bun$|bun:)/.test(to)) complaints.push(`${where}: no platform here`);
        continue;
      }
      const target = resolved(file, to);
      const reason = !target.startsWith("src/")
        ? target === "package.json"
          ? null
          : "src knows nothing outside src"
        : !to.endsWith(".ts")
          ? "write the .ts of relative imports"
          : mayImport(file, target);
      if (reason !== null) complaints.push(`${where}: ${reason}`);
    }
  }
  return complaints;
}

/**
 * Files import each other in one direction, types included, so that each can be read after those below it: the first
 * circle found from each file on, as `a → b → a`.
 */
function circles(sources: Sources): string[] {
  const found: string[] = [];
  const isDone = new Set<string>();
  const visit = (file: string, above: readonly string[]): void => {
    const at = above.indexOf(file);
    if (at !== -1) found.push([...above.slice(at), file].join(" → "));
    if (at !== -1 || isDone.has(file)) return;
    for (const { to } of importsOf(sources.get(file) ?? ""))
      if (to.startsWith(".")) visit(resolved(file, to), [...above, file]);
    isDone.add(file);
  };
  for (const file of sources.keys()) visit(file, []);
  return found;
}

/** The pure rooms' files, and those that host/replica.ts brings along at run time. */
function pureFiles(sources: Sources): string[] {
  const found = new Set([...sources.keys()].filter((file) => pureRooms.has(roomOf(file))));
  const visit = (file: string): void => {
    const source = sources.get(file);
    if (source === undefined || found.has(file)) return;
    found.add(file);
    for (const { to, typeOnly } of importsOf(source)) {
      if (!typeOnly && to.startsWith(".")) visit(resolved(file, to));
    }
  };
  visit("src/host/replica.ts");
  return [...found].filter((file) => !file.endsWith(".d.ts")).toSorted();
}

// `instanceof Date` asks what a library gave us; it does not ask what time it is.
const impure =
  /(?<![.\w$])(?<!instanceof )(?:async|await|Promise|Date|setTimeout|setInterval|setImmediate|queueMicrotask|console|process|performance|crypto|fetch|globalThis)\b(?!\??\s*:)|\bMath\s*\.\s*random\b/g;

/** Complaints about words that bring time, chance, waiting or the outside into a pure file. */
function purityViolations(sources: Sources): string[] {
  const complaints: string[] = [];
  for (const [file, source] of sources) {
    const code = strip(source);
    for (const match of code.matchAll(impure)) {
      const line = code.slice(0, match.index).split("\n").length;
      complaints.push(`${file}:${line} says ${match[0]}`);
    }
  }
  return complaints;
}

const src = sourcesOf(/^src\/.*\.ts$/);

describe("strip()", () => {
  const cases: [string, string][] = [
    ['a("Date"); // Date', 'a("    ");        '],
    ["a /* Date\nDate */ b", "a        \n        b"],
    ["`x ${Date.now(`y`)} z`", "`  ${Date.now(` `)}  `"],
    ["`\\`Date` + Date", "`      ` + Date"],
    // The slash inside the class does not end the expression.
    [`x.replace(/["'/]/g, "'")`, `x.replace(/${" ".repeat(5)}/g, " ")`],
    ["a / b / Date", "a / b / Date"],
    ["({ a: `${{ b: 1 }.b}` })", "({ a: `${{ b: 1 }.b}` })"],
  ];
  test.each(cases)("leaves only code of %j", (source, expected) => {
    expect(strip(source)).toBe(expected);
  });

  test("keeps strings when asked to", () => {
    expect(strip('import "a"; // "b"', { strings: true })).toBe('import "a";       ');
  });
});

describe("floors", () => {
  const planted: [what: string, file: string, source: string, complaint: RegExp | null][] = [
    ["down", "src/host/x.ts", 'import { a } from "../raft/raft.ts";', null],
    ["own room", "src/raft/x.ts", 'export * from "./log.ts";', null],
    ["machine to model", "src/machine/x.ts", 'import "../model/release.ts";', null],
    ["adapter to the ports", "src/store/x.ts", 'import type { A } from "../host/ports.ts";', null],
    ["the command to the program", "src/cli/conflux.ts", 'await import("../main.ts");', null],
    ["a comment", "src/lib/x.ts", '// import "../host/ports.ts"', null],
    ["up", "src/raft/x.ts", 'import { a } from "../host/ports.ts";', /imports point down/],
    ["up by type", "src/lib/x.ts", 'import type { A } from "../api/a.ts";', /imports point down/],
    ["sideways", "src/raft/x.ts", 'import { a } from "../machine/rows.ts";', /one floor/],
    ["model to machine", "src/model/x.ts", 'import "../machine/rows.ts";', /one floor/],
    ["re-export", "src/store/x.ts", 'export { a } from "../gateway/app.ts";', /one floor/],
    [
      "multi-line",
      "src/api/x.ts",
      'import {\n  a,\n  b,\n} from "../model/names.ts";',
      /:1 .*floor/,
    ],
    ["dynamic", "src/host/x.ts", 'await import("../store/journal.ts");', /imports point down/],
    ["past the ports", "src/gateway/x.ts", 'import "../host/replica.ts";', /ports\.ts only/],
    ["sdk to machine", "src/sdk/x.ts", 'import "../machine/rows.ts";', /the SDK sees/],
    ["sdk to the platform", "src/sdk/x.ts", 'import "node:fs";', /no platform/],
    ["gateway to sdk", "src/gateway/x.ts", 'import "../sdk/mod.ts";', /only the command/],
    ["pure to the platform", "src/raft/x.ts", 'import fs from "node:fs";', /no platform/],
    ["out of src", "src/host/x.ts", 'import "../../test/x.ts";', /outside src/],
    ["to main", "src/runtime/x.ts", 'import "../main.ts";', /imports point down/],
    ["unknown room", "src/kitchen/x.ts", 'import "../lib/assert.ts";', /no floor is known/],
    ["without .ts", "src/host/x.ts", 'import "../lib/assert";', /write the \.ts/],
  ];
  test.each(planted)("judge a planted import: %s", (_what, file, source, complaint) => {
    const found = floorViolations(new Map([[file, source]])).join("\n");
    if (complaint === null) expect(found).toBe("");
    else expect(found).toMatch(complaint);
  });

  test("hold in src", () => {
    expect(src.size).toBeGreaterThan(0);
    expect(floorViolations(src)).toEqual([]);
  });
});

describe("circles", () => {
  test("are found, through types and other files", () => {
    const sources = new Map([
      ["src/gateway/a.ts", 'import type { B } from "./b.ts";'],
      ["src/gateway/b.ts", 'import { c } from "./c.ts";\nimport { d } from "./d.ts";'],
      ["src/gateway/c.ts", 'import { a } from "./a.ts";'],
      ["src/gateway/d.ts", ""],
    ]);
    expect(circles(sources)).toEqual([
      "src/gateway/a.ts → src/gateway/b.ts → src/gateway/c.ts → src/gateway/a.ts",
    ]);
  });

  test("are nowhere", () => {
    expect(circles(src)).toEqual([]);
  });
});

describe("pure floors", () => {
  const planted: [source: string, complaints: number][] = [
    ["const now = Date.now();", 1],
    ["export async function f() {}", 1],
    ["const p: Promise<void> = x;", 1],
    ["Math.random() + Math\n.random()", 2],
    ["setTimeout(f, 1); console.log(process.pid)", 3],
    ["`${Date.now()}`", 1],
    ["if (value instanceof Date) return 1;", 0],
    ["// Date, Promise and console may be spoken of", 0],
    ['const text = "async Date";', 0],
    ["interface A { readonly async: boolean; process?: number } a.process()", 0],
  ];
  test.each(planted)("judge planted code: %s", (source, complaints) => {
    expect(purityViolations(new Map([["src/raft/x.ts", source]]))).toHaveLength(complaints);
  });

  test("what the replica imports counts as pure, types do not", () => {
    const sources = new Map([
      ["src/raft/raft.ts", ""],
      ["src/host/replica.ts", 'import "./log.ts"; import type { A } from "./ports.ts";'],
      ["src/host/log.ts", 'import { b } from "./deep.ts";'],
      ["src/host/deep.ts", ""],
      ["src/host/ports.ts", ""],
    ]);
    expect(pureFiles(sources)).toEqual([
      "src/host/deep.ts",
      "src/host/log.ts",
      "src/host/replica.ts",
      "src/raft/raft.ts",
    ]);
  });

  const pure = pureFiles(src);

  test("name neither time nor chance nor the outside", () => {
    expect(purityViolations(new Map(pure.map((file) => [file, src.get(file) ?? ""])))).toEqual([]);
  });

  const tsc = (...args: string[]): { status: number | null; output: string } => {
    const done = spawnSync(path.join(root, "node_modules/.bin/tsc"), args, {
      cwd: root,
      encoding: "utf8",
    });
    return { status: done.status, output: done.stdout + done.stderr };
  };

  test("are all compiled under tsconfig.core.json", () => {
    const { output } = tsc("-p", "tsconfig.core.json", "--listFilesOnly");
    const compiled = new Set(
      output.split("\n").map((file) => path.relative(root, path.resolve(root, file))),
    );
    expect(pure.filter((file) => !compiled.has(file))).toEqual([]);
    expect(
      [...compiled].filter((file) => /node_modules\/(@types\/node|bun-types)\//.test(file)),
    ).toEqual([]);
  });

  test("do not compile with a planted impurity", () => {
    const folder = mkdtempSync(path.join(tmpdir(), "conflux-tidy-"));
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
    const plants = [
      "console.log(1);",
      "setTimeout(() => {}, 1);",
      "process.exit(1);",
      "performance.now();",
      "crypto.randomUUID();",
      'fetch("http://localhost");',
      "queueMicrotask(() => {});",
      'import "node:fs";',
      "Bun.version;",
      "document.title;",
    ];
    writeFileSync(path.join(folder, "package.json"), '{ "type": "module" }');
    writeFileSync(path.join(folder, "planted.ts"), `${plants.join("\n")}\nexport {};\n`);
    writeFileSync(
      path.join(folder, "clean.ts"),
      'export const bytes: Uint8Array = new TextEncoder().encode([..."abc"].toSorted().join(""));\n',
    );
    writeFileSync(
      path.join(folder, "tsconfig.json"),
      JSON.stringify({
        extends: path.join(root, "tsconfig.core.json"),
        files: ["planted.ts", "clean.ts", path.join(root, "src/lib/pure_globals.d.ts")],
        include: [],
      }),
    );
    const { status, output } = tsc("-p", folder, "--pretty", "false");
    expect(status).not.toBe(0);
    const lines = [...output.matchAll(/planted\.ts\((\d+),/g)].map((match) => Number(match[1]));
    expect([...new Set(lines)]).toEqual(plants.map((_, i) => i + 1));
    expect(output).not.toContain("clean.ts");
  });
});

// --- tests -----------------------------------------------------------------------------------------------------------------

/** Complaints about tests that run alone, and about skipped ones without a comment on or above the line. */
function testViolations(sources: Sources): string[] {
  const complaints: string[] = [];
  for (const [file, source] of sources) {
    const code = strip(source).split("\n");
    const text = source.split("\n");
    for (const [i, line] of code.entries()) {
      const where = `${file}:${i + 1}`;
      if (/\b(?:test|it|describe|suite)(?:\.\w+)*\.only\b/.test(line))
        complaints.push(`${where} runs alone`);
      const skips =
        /\b(?:test|it|describe|suite)(?:\.\w+)*\.(?:skip|skipIf|runIf|todo|fails)\b|\b[xf](?:it|describe|test)\(/;
      const reason = /\/\/|\*\//;
      if (skips.test(line) && !reason.test(text[i] ?? "") && !reason.test(text[i - 1] ?? "")) {
        complaints.push(`${where} is skipped without a reason`);
      }
    }
  }
  return complaints;
}

describe("tests", () => {
  test.each([
    ["test.only('a', f)", 1],
    ["describe.concurrent.only('a', f)", 1],
    ["test.skip('a', f)", 1],
    ["test.skipIf(x)('a', f)", 1],
    ["test.skipIf(x)('a', f) // needs two disks", 0],
    ["// Needs two disks.\ntest.skip('a', f)", 0],
    ["test('test.only', f)", 0],
  ])("judge planted ones: %s", (source, complaints) => {
    expect(testViolations(new Map([["test/x.test.ts", source]]))).toHaveLength(complaints);
  });

  test("all run", () => {
    expect(testViolations(sourcesOf(/^(test|src)\/.*\.ts$/))).toEqual([]);
  });
});

// --- documents -------------------------------------------------------------------------------------------------------------

const withoutFences = (text: string): string => text.replace(/^```[^]*?^```/gm, "");
const headings = (text: string): string[] =>
  [...withoutFences(text).matchAll(/^#+ (.*)$/gm)].map((match) => match[1] as string);
/** The anchor that the usual renderers give a heading. */
const anchorOf = (heading: string): string =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");

function documentViolations(sources: Sources, exists: (file: string) => boolean): string[] {
  const complaints: string[] = [];
  for (const [file, text] of sources) {
    const titles = [...withoutFences(text).matchAll(/^# /gm)].length;
    if (titles !== 1) complaints.push(`${file} has ${titles} titles`);
    for (const match of withoutFences(text).matchAll(/\]\(([^)\s]+)\)/g)) {
      const link = match[1] as string;
      if (/^[a-z]+:/.test(link)) continue;
      const [to = "", anchor] = link.split("#");
      const target = to === "" ? file : path.posix.join(path.posix.dirname(file), to);
      if (!exists(target)) complaints.push(`${file} links to ${link}, which is not there`);
      else if (anchor !== undefined && target.endsWith(".md")) {
        const known = headings(sources.get(target) ?? "").map(anchorOf);
        if (!known.includes(anchor)) complaints.push(`${file} links to ${link}: no such heading`);
      }
    }
  }
  return complaints;
}

/** Rows of the Markdown tables of a text, cells trimmed. */
const tableRows = (text: string): string[][] =>
  text
    .split("\n")
    .filter((line) => line.startsWith("|") && !/^\|[\s:|-]+\|$/.test(line))
    .map((line) =>
      line
        .slice(1, -1)
        .split(/(?<!\\)\|/)
        .map((cell) => cell.trim().replaceAll("\\|", "|")),
    );

describe("documents", () => {
  test("planted mistakes are found", () => {
    const sources = new Map([
      [
        "a.md",
        "# A\n\n[b](docs/b.md#two-words) [self](#a) [web](https://example.org)\n```\n# no\n```\n",
      ],
      ["docs/b.md", "# B\n## Two words\n"],
      ["docs/c.md", "# C\n# D\n[x](../nowhere.md) [y](b.md#three)\n"],
    ]);
    expect(documentViolations(sources, (file) => sources.has(file))).toEqual([
      "docs/c.md has 2 titles",
      "docs/c.md links to ../nowhere.md, which is not there",
      "docs/c.md links to b.md#three: no such heading",
    ]);
  });

  test("have one title each and link to what is there", () => {
    const present = new Set(files.flatMap((file) => [file, ...parents(file)]));
    expect(
      documentViolations(sourcesOf(/\.md$/), (file) => present.has(file.replace(/\/$/, ""))),
    ).toEqual([]);
  });

  test("docs/problems.md lists every problem code as it is", () => {
    const listed = tableRows(read("docs/problems.md"))
      .slice(1)
      .map((row) => row.slice(0, 4));
    const expected = Object.entries(problems).map(([code, { status, title, retryable }]) => [
      `\`${code}\``,
      String(status),
      title,
      retryable ? "yes" : "no",
    ]);
    expect(listed).toEqual(expected);
  });

  test("docs/settings.md lists every setting as it is", () => {
    const listed = tableRows(read("docs/settings.md")).slice(1);
    const expected = settingsTable.map((setting) => [
      `\`${setting.env}\``,
      `\`${setting.flag}\``,
      setting.default === null ? "none" : `\`${setting.default}\``,
      setting.allowed,
      setting.meaning,
    ]);
    expect(listed).toEqual(expected);
  });

  test("docs/access.md is what `npm run docs` writes", () => {
    expect(read("docs/access.md")).toBe(accessDocument(routes));
  });

  test("docs/adr names every runtime dependency", () => {
    const decisions = [...sourcesOf(/^docs\/adr\/.*\.md$/).values()].join("\n");
    const { dependencies } = JSON.parse(read("package.json")) as { dependencies: object };
    expect(Object.keys(dependencies).filter((name) => !decisions.includes(`\`${name}\``))).toEqual(
      [],
    );
  });
});

function parents(file: string): string[] {
  const folder = path.posix.dirname(file);
  return folder === "." ? [] : [folder, ...parents(folder)];
}

// --- the repo ---------------------------------------------------------------------------------------------------------------

/** Complaints about what is true on one machine only. */
function machineViolations(sources: Sources): string[] {
  const patterns = [
    /(?<![\w.$}-])\/(?:work|home|root|Users)\/[\w.-]+/g,
    /\bregistry\.[a-z0-9-]+\.[a-z]+|\b(?:npm|pypi|debian)[a-z-]*\.(?:mirror|proxy|internal)\b/g,
  ];
  return [...sources].flatMap(([file, text]) =>
    patterns.flatMap((pattern) =>
      [...text.matchAll(pattern)].map((match) => `${file} names ${match[0]}`),
    ),
  );
}

describe("repo", () => {
  test("planted paths of a machine are found", () => {
    const lines = ["cd /ho" + "me/me/x", '"/wo' + 'rk/y"', "https://regis" + "try.example.org/z"];
    expect(machineViolations(new Map([["a", lines.join("\n")]]))).toHaveLength(3);
    expect(machineViolations(new Map([["a", "dist/root/x src/home/y ./home/z"]]))).toEqual([]);
  });

  test("names no machine's paths and no registry's host", () => {
    const text = sourcesOf(/\.(ts|mjs|js|json|md|yaml|yml|toml|txt)$|^\.ci\/|Dockerfile$|rc$/);
    expect(machineViolations(text)).toEqual([]);
  });

  test("package-lock.json is complete, so that npm ci takes it everywhere", () => {
    type Entry = { resolved?: string; optionalDependencies?: object };
    const { packages } = JSON.parse(read("package-lock.json")) as {
      packages: Record<string, Entry>;
    };
    const missing = Object.entries(packages).flatMap(([where, entry]) =>
      Object.keys(entry.optionalDependencies ?? {})
        .filter(
          (name) => !packages[`node_modules/${name}`] && !packages[`${where}/node_modules/${name}`],
        )
        .map((name) => `${name}: run npm run lock`),
    );
    expect(missing).toEqual([]);
    expect(Object.keys(packages).filter((name) => packages[name]?.resolved !== undefined)).toEqual(
      [],
    );
  });
});

// --- manifests --------------------------------------------------------------------------------------------------------------

describe("manifests", () => {
  test("a planted mistake is found", async () => {
    const folder = mkdtempSync(path.join(tmpdir(), "conflux-tidy-"));
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
    writeFileSync(
      path.join(folder, "acme.yaml"),
      "tenant: acme\nnamespaces:\n  app:\n    configs:\n      a: { format: json, colour: 1 }\n",
    );
    await expect(readManifests(folder)).rejects.toThrow(/acme\.yaml:5: .*colour/);
  });

  test("those in tenants are in shape", async () => {
    expect(await readManifests(path.join(root, "tenants"))).not.toHaveLength(0);
  });
});
