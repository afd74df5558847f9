import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { optionHelp, parseOptions, UsageError } from "../../src/cli/arguments.ts";
import type { OptionSpecs } from "../../src/cli/arguments.ts";
import { commonOptions } from "../../src/cli/command.ts";
import { commands } from "../../src/cli/conflux.ts";
import { nearest } from "../../src/lib/nearest.ts";
import { errorText, table } from "../../src/cli/output.ts";
import { validateRules } from "../../src/model/rules.ts";
import { ServerProblem, Unreachable } from "../../src/sdk/admin.ts";

const specs = {
  namespace: { type: "string", short: "n", value: "NAME", help: "Where" },
  label: { type: "string", short: "l", multiple: true, help: "Who" },
  explain: { type: "boolean", help: "Why" },
  to: { type: "string", help: "Which" },
} as const satisfies OptionSpecs;

test("every example in the help of a command is one that it takes", () => {
  let count = 0;
  for (const { name, examples = "", options, words } of commands) {
    for (const [, line = ""] of examples.matchAll(/^conflux (.+)$/gm)) {
      const argv = [...line.replace(/ +# .*$|<<.*$/, "").matchAll(/'([^']*)'|(\S+)/g)];
      const [first, ...others] = argv.map(([, quoted, plain]) => quoted ?? plain ?? "");
      expect(first).toBe(name);
      const { positionals } = parseOptions(others, { ...options, ...commonOptions });
      expect(positionals.length).toBeGreaterThanOrEqual(words[0]);
      expect(positionals.length).toBeLessThanOrEqual(words[1]);
      count += 1;
    }
    // Rules are read as the command reads them.
    for (const [, rules = ""] of examples.matchAll(/<<'END'\n([\s\S]*?)^END$/gm))
      expect(validateRules(parse(rules))).toEqual([]);
  }
  expect(count).toBeGreaterThan(10);
});

describe("parseOptions()", () => {
  test("takes long, short, inline and repeated options around words", () => {
    const options = parseOptions(
      ["a", "-n", "prod", "--label=x=1", "b", "-l", "y=a=b", "--explain", "--", "--c"],
      specs,
    );
    expect(options.positionals).toEqual(["a", "b", "--c"]);
    expect(options.get("namespace")).toBe("prod");
    expect(options.pairs("label")).toEqual({ x: "1", y: "a=b" });
    expect(options.has("explain")).toBe(true);
    expect(options.has("to")).toBe(false);
  });

  test.each([
    [["--namspace", "x"], /no option --namspace; did you mean --namespace\?/],
    [["--explane"], /did you mean --explain\?/],
    [["--zzzzzzzz"], /allowed are --namespace, --label/],
    [["-x"], /no option -x/],
    [["--namespace"], /--namespace needs a value/],
    [["--namespace", "--explain"], /--namespace needs a value/],
    [["--explain=yes"], /--explain takes no value/],
    [["-n", "a", "-n", "b"], /Give option -n once/],
    [["--toString"], /no option --toString/],
  ])("refuses %j", (argv, message) => {
    expect(() => parseOptions(argv, specs)).toThrow(UsageError);
    expect(() => parseOptions(argv, specs)).toThrow(message);
  });

  test("checks numbers and pairs", () => {
    for (const text of ["0", "-0", "1.5", "x", "", "99999999999999999999"])
      expect(() => parseOptions([`--to=${text}`], specs).count("to")).toThrow(UsageError);
    expect(parseOptions(["--to", "12"], specs).count("to")).toBe(12);
    expect(() => parseOptions(["-l", "x"], specs).pairs("label")).toThrow(/key=value/);
    expect(() => parseOptions(["-l", "=x"], specs).pairs("label")).toThrow(/key=value/);
  });

  test("optionHelp() shows every option", () => {
    expect(optionHelp(specs).split("\n")).toEqual([
      "  -n, --namespace NAME  Where",
      "  -l, --label           Who",
      "      --explain         Why",
      "      --to              Which",
    ]);
  });
});

test("nearest() finds what was meant, and nothing where nothing is near", () => {
  const words = ["get", "describe", "delete", "rollback"];
  expect(nearest("gte", words)).toBe("get");
  expect(nearest("desc", words)).toBe("describe");
  expect(nearest("rolback", words)).toBe("rollback");
  for (const other of ["xyzxyz", "dev", "x"]) expect(nearest(other, words)).toBeNull();
});

test("table() aligns, and nothing in a cell reaches the terminal as a control", () => {
  expect(
    table(
      ["A", "B"],
      [
        ["long", null],
        ["x", "\u001b[2J"],
      ],
    ),
  ).toBe("A     B\nlong  -\nx     \\u001b[2J");
});

test("errorText() says what, why, which request and what to do", () => {
  const problem = new ServerProblem("invalid-content", "Content does not fit", {
    status: 422,
    title: "Content does not fit its format or schema",
    requestId: "r9",
    errors: [{ pointer: "/content/max", detail: "must be a number" }],
  });
  expect(errorText(problem)).toBe(
    [
      "error: Content does not fit its format or schema (invalid-content, HTTP 422)",
      "  Content does not fit",
      "  at /content/max: must be a number",
      "  request id: r9",
    ].join("\n"),
  );
  expect(errorText(new Unreachable("http://x", "connection refused"))).toMatch(
    /Cannot reach http:\/\/x: connection refused\n {2}Start a node/,
  );
});
