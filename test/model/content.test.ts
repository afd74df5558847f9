import { createHash } from "node:crypto";
import { validate } from "@cfworker/json-schema";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Prng } from "../../src/lib/prng.ts";
import { contentHash, mediaType, prepareContent, useDigest } from "../../src/model/content.ts";
import {
  canonicalJson,
  isAsParsed,
  memberCount,
  parseJsonText,
  repeatedName,
  scanJson,
} from "../../src/model/json.ts";
import {
  checkConfigName,
  checkLabelName,
  checkLabels,
  checkTenantName,
  systemTenant,
} from "../../src/model/names.ts";
import { Pattern } from "../../src/model/pattern.ts";
import { contentFormats } from "../../src/model/release.ts";
import type { ContentFormat } from "../../src/model/release.ts";
import { checkSchema, validateAgainst } from "../../src/model/schema.ts";
import { loneSurrogateAt, utf8Encode, utf8Length } from "../../src/model/utf8.ts";

const anyText = fc.oneof(
  fc.string({ unit: "binary" }),
  fc.array(fc.constantFrom("a", "é", "€", "😀", "\ud800", "\udc00", "\n")).map((a) => a.join("")),
);

describe("utf8", () => {
  test("agrees with TextEncoder, lone surrogates included", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const expected = new TextEncoder().encode(text);
        expect([...utf8Encode(text)]).toEqual([...expected]);
        expect(utf8Length(text)).toBe(expected.length);
      }),
    );
  });
  test("loneSurrogateAt() finds the first half of a pair without the other", () => {
    expect(loneSurrogateAt("a😀b")).toBe(-1);
    expect(loneSurrogateAt("ab\ud800")).toBe(2);
    expect(loneSurrogateAt("a\udc00")).toBe(1);
    expect(loneSurrogateAt("\ud800\ud800\udc00")).toBe(0);
  });
});

describe("contentHash()", () => {
  test("is the sha256 of the bytes served", () => {
    expect(contentHash("abc")).toBe(
      "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    );
    fc.assert(
      fc.property(anyText, (text) => {
        const bytes = new TextEncoder().encode(text);
        expect(contentHash(text)).toBe(
          `sha256:${createHash("sha256").update(bytes).digest("hex")}`,
        );
      }),
    );
  });
});

describe("isAsParsed()", () => {
  test("says yes only to what parsing its text gives", () => {
    const leaf = fc.oneof(
      fc.string(),
      fc.integer(),
      fc.constantFrom<unknown>(
        null,
        true,
        0.5,
        -0,
        Number.NaN,
        Infinity,
        undefined,
        1n,
        new Date(0),
      ),
    );
    const { tree } = fc.letrec((tie) => ({
      tree: fc.oneof(
        { weight: 3, arbitrary: leaf },
        { weight: 1, arbitrary: fc.array(tie("tree"), { maxLength: 4 }) },
        { weight: 1, arbitrary: fc.dictionary(fc.string(), tie("tree"), { maxKeys: 4 }) },
      ),
    }));
    let accepted = 0;
    fc.assert(
      fc.property(tree, (value) => {
        if (!isAsParsed(value)) return;
        accepted += 1;
        // Which tells -0 from 0, and an absent member from one that is undefined.
        expect(JSON.parse(JSON.stringify(value))).toStrictEqual(value);
      }),
      { numRuns: 500 },
    );
    expect(accepted).toBeGreaterThan(50);
  });

  test("says no to what its text leaves out or changes, and to what is large", () => {
    const command = { at: 1, actor: { kind: "root" }, action: { op: "publish", tags: ["a"] } };
    expect(isAsParsed(command)).toBe(true);
    const others = [
      undefined,
      Number.NaN,
      -0,
      new Date(),
      Array(1),
      { toJSON: () => 1 },
      new Map(),
    ];
    for (const other of others) expect(isAsParsed({ ...command, other })).toBe(false);
    expect(isAsParsed(Array(100).fill(1))).toBe(false);
  });
});

describe("canonicalJson()", () => {
  test("writes the example of RFC 8785 §3.2.2", () => {
    const numbers = "[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001]";
    const text = '"\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/"';
    const value: unknown = JSON.parse(
      `{"numbers":${numbers},"string":${text},"literals":[null,true,false]}`,
    );
    expect(canonicalJson(value)).toEqual({
      ok: true,
      text:
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],' +
        '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    });
  });
  test("sorts names by UTF-16 units (RFC 8785 §3.2.3)", () => {
    const names = ["\u20ac", "\r", "\ufb33", "1", "\ud83d\ude00", "\u0080", "\u00f6"];
    const value = Object.fromEntries(names.map((name) => [name, 1]));
    const canonical = canonicalJson(value);
    const sorted = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\ud83d\ude00", "\ufb33"];
    expect(canonical.ok && Object.keys(JSON.parse(canonical.text) as object).sort()).toEqual(
      [...sorted].sort(),
    );
    expect(canonical.ok && canonical.text).toBe(
      `{${sorted.map((name) => `${JSON.stringify(name)}:1`).join(",")}}`,
    );
  });
  test("is the same for equal values, and reads back as them", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const text = JSON.stringify(value);
        const once = canonicalJson(value);
        if (!once.ok) return; // a lone surrogate
        expect(JSON.stringify(canonicalJson(JSON.parse(once.text)))).toBe(JSON.stringify(once));
        expect(JSON.parse(once.text)).toEqual(JSON.parse(text));
      }),
    );
  });
});

describe("parseJsonText()", () => {
  test("reads what JSON.parse should, whatever names came before", () => {
    const names = fc.constantFrom('"', "\\", "\n", "é", "a", '"a', "__proto__", "");
    const value = fc.letrec((tie) => ({
      any: fc.oneof(
        { depthSize: "small" },
        fc.jsonValue({ maxDepth: 0 }),
        tie("list"),
        tie("object"),
      ),
      list: fc.array(tie("any"), { maxLength: 3 }),
      object: fc.array(fc.tuple(names, tie("any")), { maxLength: 3 }).map(Object.fromEntries),
    })).any;
    fc.assert(
      fc.property(value, fc.constantFrom(0, 1, "\t"), (given, indent) => {
        // What poisons the engine.
        for (const name of ["h", ""]) JSON.parse(`{"${name}":0,"\\\\":0}`);
        const text = JSON.stringify(given, null, indent);
        const parsed = parseJsonText(text);
        expect(JSON.stringify(parsed, null, indent)).toBe(text);
      }),
      { numRuns: 500 },
    );
    expect(parseJsonText('{ "\\u0022" : 1 , "x" : [ ] }')).toEqual({ '"': 1, x: [] });
    expect(() => parseJsonText('{"\\"":1')).toThrow(SyntaxError);
  });
});

describe("memberCount() and repeatedName()", () => {
  const name = fc.constantFrom("a", "b", '"', ":", "é", "__proto__", "", "a/b");
  const { any } = fc.letrec<{ any: string }>((tie) => ({
    any: fc.oneof(
      { maxDepth: 3 },
      fc.constantFrom("1", "null", "true", '":"', '"\\u003a"'),
      fc.array(tie("any"), { maxLength: 3 }).map((items) => `[ ${items.join(" , ")} ]`),
      fc
        .array(fc.tuple(name, tie("any")), { maxLength: 3 })
        .map((pairs) => `{${pairs.map(([key, item]) => `${JSON.stringify(key)} : ${item}`)}}`),
    ),
  }));

  test("tell a text that gives a name twice, as the scanner does", () => {
    let twice = 0;
    fc.assert(
      fc.property(any, (text) => {
        const colons = text.replaceAll(/"(?:[^"\\]|\\.)*"/g, "").split(":").length - 1;
        const isTwice = scanJson(text) !== null;
        expect([text, memberCount(parseJsonText(text)) < colons]).toEqual([text, isTwice]);
        expect([text, repeatedName(text) !== null]).toEqual([text, isTwice]);
        if (isTwice) twice++;
      }),
      { numRuns: 1_000 },
    );
    expect(twice).toBeGreaterThan(10);
  });

  test("name the place", () => {
    expect(repeatedName('{"a":[1,{"b":{},"c/d":[{"x":1,"\\u0078":2}]}]}')).toBe("/a/1/c~1d/0/x");
    expect(repeatedName('{"a":1,"b":{"a":1}}')).toBeNull();
  });
});

describe("scanJson()", () => {
  test("takes what JSON.parse takes, but for names given twice", () => {
    const almost = fc
      .tuple(fc.jsonValue(), fc.nat(), fc.constantFrom("", ",", "}", "]", '"', "x", "\\", "\t"))
      .map(([value, at, insert]) => {
        const text = JSON.stringify(value);
        const place = at % (text.length + 1);
        return text.slice(0, place) + insert + text.slice(place);
      });
    fc.assert(
      fc.property(fc.oneof(almost, anyText), (text) => {
        let parses = true;
        try {
          JSON.parse(text);
        } catch {
          parses = false;
        }
        const error = scanJson(text);
        if (error !== null && error.detail.startsWith("Give each name once")) return;
        expect(error === null).toBe(parses);
      }),
      { numRuns: 500 },
    );
  });
  const places: [text: string, line: number, column: number][] = [
    ['{"a":}', 1, 6],
    ['{\n  "a": 1\n  "b": 2\n}', 3, 3],
    ['{"a": 1, "a": 2}', 1, 10],
    ['{"a": 1, "\\u0061": 2}', 1, 10],
    ["[1,]", 1, 4],
    ["", 1, 1],
    ["1 2", 1, 3],
    ['"\n"', 1, 2],
    ["01", 1, 2],
    ["[1.]", 1, 3],
    ["[".repeat(101), 1, 101],
  ];
  test.each(places)("names the place in %j", (text, line, column) => {
    expect(scanJson(text)).toMatchObject({ line, column });
  });
});

function blockMaps(depth: number): string {
  return Array.from({ length: depth }, (_, level) => `${" ".repeat(level)}a:`).join("\n");
}

describe("prepareContent()", () => {
  test("takes YAML that is just not too deep, however it is written", () => {
    const texts = [
      blockMaps(99),
      `${"- ".repeat(99)}a`,
      `${"{a: ".repeat(99)}1${"}".repeat(99)}`,
      Array.from({ length: 49 }, (_, level) => `${" ".repeat(2 * level)}- a:`).join("\n"),
    ];
    for (const text of texts) expect(prepareContent("yaml", text).errors).toEqual([]);
  });

  const good: [format: ContentFormat, input: unknown, text: string, value: unknown][] = [
    ["json", ' {"b": 1, "a": 2}', ' {"b": 1, "a": 2}', { a: 2, b: 1 }],
    ["json", "\uFEFF1", "1", 1],
    ["json", { b: [1, null], a: "x" }, '{"a":"x","b":[1,null]}', { a: "x", b: [1, null] }],
    ["json", null, "null", null],
    ["json", false, "false", false],
    ["yaml", "a: &x [1, 2]\nb: *x\n", "a: &x [1, 2]\nb: *x\n", { a: [1, 2], b: [1, 2] }],
    ["yaml", "", "", null],
    ["yaml", { a: ["1", 2] }, 'a:\n  - "1"\n  - 2\n', { a: ["1", 2] }],
    [
      "toml",
      "a = 1\n[b]\nc = 1979-05-27\n",
      "a = 1\n[b]\nc = 1979-05-27\n",
      { a: 1, b: { c: "1979-05-27" } },
    ],
    [
      "properties",
      "# x\na.b = c\\\n  d\ne:f\ng h\ni\n",
      "# x\na.b = c\\\n  d\ne:f\ng h\ni\n",
      { "a.b": "cd", e: "f", g: "h", i: "" },
    ],
    ["properties", "a\\ b\\=c=\\u0041\\t\\\\", "a\\ b\\=c=\\u0041\\t\\\\", { "a b=c": "A\t\\" }],
    ["text", "any\r\nthing: {", "any\r\nthing: {", "any\r\nthing: {"],
    [
      "flag",
      { state: "ENABLED", variants: { on: true, off: false }, defaultVariant: "on" },
      '{"defaultVariant":"on","state":"ENABLED","variants":{"off":false,"on":true}}',
      { state: "ENABLED", variants: { on: true, off: false }, defaultVariant: "on" },
    ],
  ];
  test.each(good)("takes %s %j", (format, input, text, value) => {
    expect(prepareContent(format, input)).toEqual({ text, value, errors: [] });
  });

  const aliases = ["a: &a [x,x,x,x,x,x,x,x,x]"];
  for (const [name, of] of [
    ["b", "a"],
    ["c", "b"],
    ["d", "c"],
    ["e", "d"],
    ["f", "e"],
  ] as const)
    aliases.push(`${name}: &${name} [${Array.from({ length: 9 }, () => `*${of}`).join(",")}]`);
  const bad: [format: ContentFormat, input: unknown, error: object][] = [
    ["json", '{"a":1,}', { line: 1, column: 8 }],
    ["json", "", { line: 1, column: 1 }],
    ["json", "{'a':1}", { line: 1, column: 2 }],
    ["json", "\ud800", { line: 1, column: 1 }],
    ["json", undefined, { pointer: "" }],
    ["json", { a: { b: Number.NaN } }, { pointer: "/a/b" }],
    ["json", { "a/b": [1n] }, { pointer: "/a~1b/0" }],
    ["yaml", "a: 1\nb: [", { line: 2 }],
    ["yaml", "a: 1\na: 2\n", { line: 2, column: 1 }],
    ["yaml", "a: 1\n---\nb: 1\n", { line: 2, column: 1 }],
    ["yaml", "a: !!js/function x\n", { line: 1 }],
    ["yaml", aliases.join("\n"), { pointer: "" }],
    ["yaml", "a: &a [*a]", { detail: "Nest at most 100 levels deep" }],
    ["yaml", "[".repeat(20_000), { detail: "Nest at most 100 levels deep" }],
    // Before the end was read, which is wrong in another way.
    ["yaml", `${blockMaps(1_400)} "`, { detail: "Nest at most 100 levels deep" }],
    ["yaml", blockMaps(102), { detail: "Nest at most 100 levels deep" }],
    ["yaml", "? [a]\n: 1\n", { line: 1, column: 3 }],
    ["yaml", "a: .inf\n", { pointer: "/a" }],
    ["toml", "a = \n", { line: 1 }],
    ["toml", "a = 1\na = 2\n", { line: 2 }],
    ["toml", `a = ${"[".repeat(5_000)}`, { line: 1 }],
    ["toml", { a: 1 }, { pointer: "" }],
    ["properties", "a=1\na=2", { line: 2 }],
    ["properties", "a=\\u12", { line: 1 }],
    ["text", 1, { pointer: "" }],
    ["flag", "[]", { pointer: "" }],
    ["flag", { state: "on", variants: { a: 1 } }, { pointer: "/state" }],
    ["flag", { state: "ENABLED", variants: {} }, { pointer: "/variants" }],
    ["flag", { state: "ENABLED", variants: { a: 1, b: "x" } }, { pointer: "/variants" }],
    [
      "flag",
      { state: "ENABLED", variants: { a: 1 }, defaultVariant: "b" },
      { pointer: "/defaultVariant" },
    ],
    ["flag", { state: "ENABLED", variants: { a: 1 }, targeting: [] }, { pointer: "/targeting" }],
  ];
  test.each(bad)("refuses %s %#", (format, input, error) => {
    const { text, value, errors } = prepareContent(format, input);
    expect(errors[0]).toMatchObject(error);
    expect(errors[0]?.detail).toMatch(/\S/);
    expect([text, value]).toEqual(["", undefined]);
  });

  test("never throws, whatever the format and the text", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...contentFormats),
        fc.oneof(anyText, fc.anything()),
        (f, input) => {
          const { text, errors } = prepareContent(f, input);
          if (errors.length === 0 && typeof input === "string")
            expect(text).toBe(input.replace(/^\uFEFF/, ""));
        },
      ),
      { numRuns: 1_000 },
    );
  });

  test("every format has a media type", () => {
    for (const format of contentFormats) expect(mediaType(format)).toMatch(/^[a-z]+\/[a-z-]+/);
  });
});

describe("texts of too many parts", () => {
  const lines = (count: number, line: (i: number) => string): string =>
    Array.from({ length: count }, (_, i) => line(i)).join("\n");

  test.each<[what: string, format: ContentFormat, content: unknown]>([
    ["YAML of many keys", "yaml", lines(5_000, (i) => `key${i}: value`)],
    ["YAML of one long flow", "yaml", `[${"1,".repeat(20_000)}]`],
    ["YAML of braces", "yaml", "{".repeat(1_000_000)],
    ["YAML of documents", "yaml", "---\n".repeat(20_000)],
    ["YAML of anchors", "yaml", lines(5_000, (i) => `k${i}: &a${i} v`)],
    ["YAML folded over many lines", "yaml", `a: >\n${" x\n".repeat(40_000)}`],
    ["a structure that would become such YAML", "yaml", Array.from({ length: 6_000 }, () => 1)],
    ["TOML of long dotted names", "toml", lines(1_000, (i) => `k${i}.${"x.".repeat(40)}y = 1`)],
    ["TOML of tables", "toml", lines(40_000, (i) => `[t${i}]`)],
    ["properties of many names", "properties", lines(40_000, (i) => `k${i}`)],
  ])("%s is refused with what to do", (_what, format, content) => {
    const { errors, value } = prepareContent(format, content);
    expect([errors.length, value]).toEqual([1, undefined]);
    expect(errors[0]?.detail).toMatch(/^(Split the config|Give fewer values|Nest at most)/);
  });

  test.each<[what: string, format: ContentFormat, content: string]>([
    ["a block of many signs", "yaml", `a: |\n${lines(14_000, () => `  ${"[x, y]: ".repeat(8)}`)}`],
    ["4,000 lines of YAML", "yaml", lines(4_000, (i) => `key${i}: value`)],
    ["TOML strings of many signs", "toml", `a = """${"=.,[{".repeat(40_000)}"""\nb = 'a.b'`],
    ["TOML comments of many signs", "toml", `${lines(9_000, () => "# a.b.c = [1, 2]")}\na = 1`],
    ["one property continued often", "properties", `a = ${"b\\\n".repeat(100_000)}`],
  ])("%s is not of many parts", (_what, format, content) => {
    expect(prepareContent(format, content).errors).toEqual([]);
  });

  test("what continues a property is joined, and an escaped backslash continues nothing", () => {
    expect(prepareContent("properties", "a = x\\\n   y\\\\\\\n z\\\\\nb = 1\\").value).toEqual({
      a: "xy\\z\\",
      b: "1",
    });
  });
});

describe("Pattern", () => {
  const atom = fc.constantFrom(
    "a",
    "b",
    "[ab]",
    "[^b]",
    ".",
    "\\w",
    "\\.",
    "\\b",
    "^",
    "$",
    "é",
    "\\p{L}",
    "😀",
  );
  const quantifier = fc.constantFrom("", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?");
  const { source } = fc.letrec<{ source: string; item: string }>((tie) => ({
    source: fc
      .array(
        fc.oneof(
          { depthSize: "small" },
          atom.chain((one) =>
            // Assertions take no quantifier.
            /^(?:\\b|\^|\$)$/.test(one) ? fc.constant(one) : quantifier.map((q) => one + q),
          ),
          tie("item"),
        ),
        { maxLength: 3 },
      )
      .map((parts) => parts.join("")),
    item: fc
      .tuple(
        fc.constantFrom("(", "(?:", "(?<n>"),
        tie("source"),
        fc.option(tie("source")),
        quantifier,
      )
      .map(([open, one, other, q]) => `${open}${one}${other === null ? "" : `|${other}`})${q}`),
  }));

  test("agrees with the engine", () => {
    const text = fc.array(fc.constantFrom("a", "b", ".", " ", "é", "😀"), { maxLength: 6 });
    fc.assert(
      fc.property(source, fc.array(text, { minLength: 5, maxLength: 5 }), (one, texts) => {
        let expected: RegExp;
        try {
          expected = new RegExp(one, "u");
        } catch {
          return; // a group name given twice
        }
        const pattern = Pattern.compile(one);
        if (typeof pattern === "string") throw new Error(pattern);
        // The engine tries every way through nested repetitions: seconds for six letters, or it gives up and says no (Bun).
        const isNested = (one.match(/\)(?:[*+]|\{1,\})/g)?.length ?? 0) > 1;
        for (const parts of texts) {
          const joined = parts.slice(0, isNested ? 3 : 6).join("");
          expect([one, joined, pattern.test(joined, () => {})]).toEqual([
            one,
            joined,
            expected.test(joined),
          ]);
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test.each(["(a+)+$", "^(a|a)*$", "(.*a){20}$", "(x+x+)+y", "(a?){30}b", "(\\w+\\w+)*-"])(
    "takes steps in proportion to the text for %s",
    (one) => {
      const pattern = Pattern.compile(one);
      if (typeof pattern === "string") throw new Error(pattern);
      let steps = 0;
      expect(pattern.test(`${"ax".repeat(5_000)}!`, (more) => void (steps += more))).toBe(false);
      expect(steps).toBeLessThan(10_001 * 200);
    },
  );
});

describe("names", () => {
  const names: [name: string, good: boolean][] = [
    ["a", true],
    ["limits.v2_x-y", true],
    ["a".repeat(128), true],
    ["a".repeat(129), false],
    ["", false],
    ["A", false],
    ["-a", false],
    ["a.", false],
    ["a/b", false],
    ["a b", false],
    ["é", false],
    ["..", false],
    ["a\n", false],
  ];
  test.each(names)("config %j: %j", (name, good) => {
    expect(checkConfigName(name) === null).toBe(good);
  });
  const tenants: [name: string, good: boolean][] = [
    ["acme-1", true],
    ["a".repeat(63), true],
    ["a".repeat(64), false],
    ["a.b", false],
    ["a_b", false],
    ["acme-", false],
    [systemTenant, false],
  ];
  test.each(tenants)("tenant %j: %j", (name, good) => {
    expect(checkTenantName(name) === null).toBe(good);
  });
  test("labels: names, values and their number are bounded", () => {
    expect(checkLabels({ region: "eu", "app.example/version": "1.0.0", userId: "" })).toEqual([]);
    expect(checkLabelName("a b")).toMatch(/^Name the label/);
    expect(checkLabels({ "a~/b c": "x" })[0]?.pointer).toBe("/a~0~1b c");
    expect(checkLabels({ a: "x".repeat(1_025) })[0]?.pointer).toBe("/a");
    const many = Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`l${i}`, "x"]));
    expect(checkLabels(many)[0]?.pointer).toBe("");
  });
});

describe("schema", () => {
  const schema = JSON.stringify({
    $schema: "https://json-schema.org/draft/2020-12/schema",
    type: "object",
    properties: {
      port: { $ref: "#/$defs/port" },
      host: { type: "string", pattern: "^[a-z]+(\\.[a-z]+)*$" },
      mail: { type: "string", format: "email" },
      "": { type: "null" },
    },
    required: ["port"],
    additionalProperties: false,
    $defs: { port: { type: "integer", minimum: 1, maximum: 65_535 } },
  });
  const cases: [value: unknown, pointers: string[]][] = [
    [{ port: 80 }, []],
    [{ port: 80, host: "a.example", mail: "a@b.example" }, []],
    [{}, [""]],
    [{ port: 0 }, ["/port"]],
    [{ port: 80, host: "A", mail: "x" }, ["/host", "/mail"]],
    [{ port: 80, extra: 1 }, ["/extra"]],
    [[], [""]],
  ];
  test.each(cases)("on %j fails at %j", (value, pointers) => {
    expect(validateAgainst(schema, value).map(({ pointer }) => pointer)).toEqual(pointers);
  });

  const unusable: [schema: unknown, pointer: string][] = [
    [1, ""],
    [{ type: "strin" }, "/type"],
    [{ properties: [] }, "/properties"],
    [{ properties: { a: 1 } }, "/properties/a"],
    [{ allOf: [] }, "/allOf"],
    [{ minLength: -1 }, "/minLength"],
    [{ $ref: "#/$defs/none" }, "/$ref"],
    [{ $ref: "https://example.com/schema" }, "/$ref"],
    [{ pattern: "[" }, "/pattern"],
    [{ pattern: "((a{99}){99}){99}" }, "/pattern"],
    [{ pattern: "a".repeat(513) }, "/pattern"],
    [{ pattern: "(a)\\1" }, "/pattern"],
    [{ pattern: "(?=a)b" }, "/pattern"],
    [{ pattern: "(?<!a)b" }, "/pattern"],
    [{ patternProperties: { "(": {} } }, "/patternProperties/("],
    [{ $schema: "http://json-schema.org/draft-07/schema#" }, "/$schema"],
    [{ $dynamicRef: "#x" }, "/$dynamicRef"],
  ];
  test.each(unusable)("refuses %j", (one, pointer) => {
    expect(checkSchema(JSON.stringify(one))[0]?.pointer).toBe(pointer);
    expect(validateAgainst(JSON.stringify(one), {}).length).toBeGreaterThan(0);
  });

  test("takes the patterns that people write", () => {
    for (const pattern of [
      "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
      "^(debug|info|warn|error)$",
      "^\\d{1,3}(\\.\\d{1,3}){3}$",
      "^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$",
      "^https?://",
      "^[a-z]+(\\.[a-z]+)*$",
      "^\\d+(ms|s|m|h)$",
      "^#[0-9a-fA-F]{6}$",
      "^v?\\d+\\.\\d+\\.\\d+(-[0-9A-Za-z.-]+)?$",
      "^\\p{L}+$",
    ])
      expect([pattern, ...checkSchema(JSON.stringify({ pattern }))]).toEqual([pattern]);
  });

  test("stops when a check would take too long", () => {
    const chain: Record<string, unknown> = { d30: { type: "string" } };
    for (let i = 0; i < 30; i++)
      chain[`d${i}`] = {
        anyOf: [{ $ref: `#/$defs/d${i + 1}` }, { $ref: `#/$defs/d${i + 1}` }],
      };
    const times = (count: number, schema: unknown) => ({ allOf: Array(count).fill(schema) });
    const list = (count: number): readonly number[] => Array.from({ length: count }, (_, i) => i);
    const object = (count: number): unknown =>
      Object.fromEntries(list(count).map((i) => [`k${i}`, i]));
    const bombs: [schema: unknown, value: unknown][] = [
      [{ $ref: "#" }, 1],
      [{ $ref: "#/$defs/d0", $defs: chain }, 1],
      [{ pattern: "(a?){500}b" }, "a".repeat(100_000)],
      // Steps that read no character are steps too.
      [{ items: { pattern: "(((|||){9}){60})b" } }, Array(100_000).fill("")],
      [times(2_000, { uniqueItems: true }), list(2_000)],
      [
        { $defs: { c: { const: list(10_000) } }, ...times(5_000, { $ref: "#/$defs/c" }) },
        list(10_000),
      ],
      [times(5_000, { maxProperties: 1e6 }), object(10_000)],
      [times(2_000, { minLength: 1 }), "x".repeat(1_000_000)],
      [{ items: { required: list(20_000).map(String) } }, list(9_000).map(() => ({}))],
      [{ items: { format: "url" } }, Array(100).fill("http://a@a@".repeat(300))],
    ];
    // Unbounded, each would outlast the runner's patience by far.
    for (const [one, value] of bombs)
      expect(validateAgainst(JSON.stringify(one), value)[0]?.detail).toMatch(/^Simplify/);
  });

  test("a schema is read in time that its size says", () => {
    let nested: unknown = { type: "string" };
    for (let i = 0; i < 90; i++) nested = { $id: `part-${i}`, not: nested };
    expect(checkSchema(JSON.stringify(nested))).toEqual([]);
    const patterns = Array.from({ length: 2_000 }, (_, i) => ({ pattern: `(a|b|${i}){300}` }));
    expect(checkSchema(JSON.stringify({ anyOf: patterns }))[0]?.detail).toMatch(/^Give fewer/);
  });

  test("references lead to schemas, and to nothing else", () => {
    const $defs = {
      port: { $anchor: "port", type: "integer" },
      "a/b~ %": { type: "null" },
      item: { $id: "item.json", $defs: { part: { minimum: 7 } }, $ref: "#/$defs/part" },
    };
    const held = ($ref: string, value: unknown) =>
      validateAgainst(JSON.stringify({ $id: "https://example.com/s/", $defs, $ref }), value).length;
    expect([held("#port", 1), held("#port", "x")]).toEqual([0, 1]);
    expect([held("#/$defs/a~1b~0%20%25", null), held("#/$defs/a~1b~0%20%25", 1)]).toEqual([0, 1]);
    expect([held("item.json", 7), held("item.json", 6)]).toEqual([0, 1]);
    expect([held("https://example.com/s/item.json#/$defs/part", 6)]).toEqual([1]);
    // What no keyword makes a schema was never checked as one.
    const hidden = { "x-mine": { pattern: "(a+)+$" }, $ref: "#/x-mine" };
    expect(checkSchema(JSON.stringify(hidden))[0]?.pointer).toBe("/$ref");
    expect(checkSchema(JSON.stringify({ enum: [{}], $ref: "#/enum/0" }))).toHaveLength(1);
  });

  test("says the same as the library that the formats come from", () => {
    const rng = new Prng(0x5c4e);
    const pick = <T>(...options: readonly T[]): T => options[rng.below(options.length)] as T;
    const names = ["a", "b", "c"];
    const value = (depth: number): unknown => {
      const kind = rng.below(depth === 0 ? 5 : 7);
      if (kind < 5) return pick<unknown>(null, true, 0, 3, 1.5, -2, "", "a", "abc");
      if (kind === 5) return Array.from({ length: rng.below(4) }, () => value(depth - 1));
      return Object.fromEntries(
        names.filter(() => rng.below(2) === 0).map((name) => [name, value(depth - 1)]),
      );
    };
    const some = <T>(make: () => T, count = 1 + rng.below(2)): readonly T[] =>
      Array.from({ length: count }, make);
    const schema = (depth: number): unknown => {
      if (rng.below(12) === 0) return rng.below(2) === 0;
      const inner = (): unknown => (depth === 0 ? {} : schema(depth - 1));
      const byName = (): unknown =>
        Object.fromEntries(names.filter(() => rng.below(2) === 0).map((name) => [name, inner()]));
      const keywords: Record<string, () => unknown> = {
        type: () => pick("null", "boolean", "object", "array", "number", "string", "integer"),
        const: () => value(1),
        enum: () => some(() => value(1), 3),
        minimum: () => rng.below(3),
        exclusiveMaximum: () => rng.below(4),
        multipleOf: () => pick(0.5, 1, 2),
        minLength: () => rng.below(3),
        maxLength: () => rng.below(3),
        pattern: () => pick("^a", "c$", "^$"),
        minItems: () => rng.below(3),
        maxItems: () => rng.below(3),
        uniqueItems: () => true,
        items: inner,
        prefixItems: () => some(inner),
        contains: inner,
        minProperties: () => rng.below(3),
        maxProperties: () => rng.below(3),
        required: () => names.filter(() => rng.below(2) === 0),
        properties: byName,
        patternProperties: () => ({ "^[ab]$": inner() }),
        additionalProperties: inner,
        propertyNames: inner,
        dependentRequired: () => ({ a: ["b"] }),
        dependentSchemas: byName,
        not: inner,
        allOf: () => some(inner),
        anyOf: () => some(inner),
        oneOf: () => some(inner),
        if: inner,
        then: inner,
        else: inner,
        unevaluatedProperties: inner,
        $ref: () => "#/$defs/d",
      };
      return Object.fromEntries(
        some(() => pick(...Object.keys(keywords))).map((keyword) => [
          keyword,
          (keywords[keyword] as () => unknown)(),
        ]),
      );
    };
    let valid = 0;
    for (let i = 0; i < 3_000; i++) {
      const one = Object.assign({}, schema(3), {
        $defs: { d: { type: pick("object", "number") } },
      });
      const content = value(3);
      const text = JSON.stringify(one);
      const expected = validate(content, JSON.parse(text) as object, "2020-12").valid;
      expect([text, content, validateAgainst(text, content).length === 0]).toEqual([
        text,
        content,
        expected,
      ]);
      if (expected) valid++;
    }
    // Both answers are common, or nothing would have been compared.
    expect(Math.min(valid, 3_000 - valid)).toBeGreaterThan(500);
  });

  test("patternProperties hold for the names that match, and for no others", () => {
    const one = JSON.stringify({
      patternProperties: {
        "^x-": { type: "number" },
        "^x-[a-z]+$": { minimum: 5 },
        "(x+x+)+y": { type: "null" },
        "\\.\\*": { type: "boolean" },
      },
      additionalProperties: false,
    });
    const failing = (value: unknown) =>
      validateAgainst(one, value)
        .map(({ pointer }) => pointer)
        .sort();
    expect(failing({ "x-a": 7, "x-1": 1, "a.*": true })).toEqual([]);
    expect(failing({ "x-a": 1, "x-1": "1", "a.*": 1 })).toEqual(["/a.*", "/x-1", "/x-a"]);
    expect(failing({ [`${"x".repeat(5_000)}z`]: 1, ab: 1 }).length).toBe(2);
    expect(failing({ xxy: null })).toEqual([]);
  });
  test("names of properties that objects have anyway are names like others", () => {
    const own = JSON.stringify({ properties: { constructor: { type: "number" } } });
    expect(validateAgainst(own, {})).toEqual([]);
    expect(validateAgainst(own, { constructor: "x" })[0]?.pointer).toBe("/constructor");
    const proto = '{"properties":{"__proto__":{"type":"number"}},"required":["__proto__"]}';
    expect(validateAgainst(proto, JSON.parse('{"__proto__":"x"}'))[0]?.pointer).toBe("/__proto__");
    expect(validateAgainst(proto, {})[0]?.pointer).toBe("");
  });
});

test("useDigest() takes another SHA-256 and nothing else", () => {
  const texts = ["", "conflux", "é€😀", "\ud800"];
  const before = texts.map(contentHash);
  expect(() => useDigest(() => "abc")).toThrow("not SHA-256");
  expect(texts.map(contentHash)).toEqual(before);
  useDigest((text) => createHash("sha256").update(text).digest("hex"));
  expect(texts.map(contentHash)).toEqual(before);
});
