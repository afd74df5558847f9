import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { bucketOf, bucketParts, bucketsOf, evaluate, explain } from "../../src/model/evaluate.ts";
import { murmur3, murmur3Text } from "../../src/model/murmur3.ts";
import type { LabelMatch, Labels, ReleaseRule } from "../../src/model/release.ts";
import { validateRules } from "../../src/model/rules.ts";
import { compareVersions, inRange, parseRange, parseVersion } from "../../src/model/semver.ts";
import type { Version } from "../../src/model/semver.ts";
import { parseTime } from "../../src/model/time.ts";

function rule(match: Record<string, LabelMatch>, more: Partial<ReleaseRule> = {}): ReleaseRule {
  return { id: "r1", match, version: 2, ...more };
}

function wins(one: ReleaseRule, labels: Labels, now = 0): boolean {
  return evaluate({ rules: [one], default: 1 }, labels, now).rule === "r1";
}

describe("evaluate()", () => {
  const cases: [match: LabelMatch, value: string | undefined, expected: boolean][] = [
    ["eu", "eu", true],
    ["eu", "EU", false],
    ["eu", undefined, false],
    ["", "", true],
    [["eu", "us"], "us", true],
    [["eu", "us"], "ap", false],
    [["eu", "us"], undefined, false],
    [{ not: "eu" }, "us", true],
    [{ not: "eu" }, "eu", false],
    [{ not: "eu" }, undefined, true],
    [{ not: ["eu", "us"] }, "us", false],
    [{ not: "eu", exists: true }, undefined, false],
    [{ prefix: "ios-" }, "ios-17", true],
    [{ prefix: "ios-" }, "android", false],
    [{ prefix: "" }, undefined, false],
    [{ suffix: ".example" }, "a.example", true],
    [{ suffix: ".example" }, "a.test", false],
    [{ prefix: "a", suffix: "c" }, "abc", true],
    [{ prefix: "a", suffix: "c" }, "abd", false],
    [{ exists: true }, "", true],
    [{ exists: true }, undefined, false],
    [{ exists: false }, undefined, true],
    [{ exists: false }, "x", false],
    [{ semver: ">=1.2.0" }, "1.2.0", true],
    [{ semver: ">=1.2.0 <2.0.0" }, "2.0.0", false],
    [{ semver: ">=1.2.0" }, "v1.3", true],
    [{ semver: ">=1.2.0" }, "soon", false],
    [{ semver: "!=1.2.0" }, undefined, false],
    [{ semver: "nonsense" }, "1.0.0", false],
    [{ gt: 3 }, "3.5", true],
    [{ gt: 3 }, "3", false],
    [{ gte: 3 }, "3", true],
    [{ lt: 10, gte: 3 }, "9", true],
    [{ lt: 10 }, "10", false],
    [{ lte: 10 }, "1e1", true],
    [{ gt: -5 }, "-4.5", true],
    [{ gt: 3 }, "many", false],
    [{ gt: 3 }, "", false],
    [{ gt: 3 }, "0x10", false],
    [{ lt: 3 }, undefined, false],
  ];
  test.each(cases)("condition %j on %j gives %j", (match, value, expected) => {
    expect(wins(rule({ region: match }), value === undefined ? {} : { region: value })).toBe(
      expected,
    );
  });

  test("takes the first rule that matches, else the default", () => {
    const rules = [
      rule({ tier: "gold" }, { id: "a", version: 3 }),
      rule({ region: "eu" }, { id: "b", version: 4 }),
      rule({ region: "eu", tier: "gold" }, { id: "c", version: 5 }),
    ];
    const release = { rules, default: 1 };
    expect(evaluate(release, { region: "eu", tier: "gold" }, 0)).toEqual({ version: 3, rule: "a" });
    expect(evaluate(release, { region: "eu" }, 0)).toEqual({ version: 4, rule: "b" });
    expect(evaluate(release, {}, 0)).toEqual({ version: 1, rule: null });
    expect(evaluate({ rules, default: null }, {}, 0)).toEqual({ version: null, rule: null });
  });

  test("does not take what objects inherit for labels", () => {
    expect(wins(rule({ constructor: { exists: true } }), {})).toBe(false);
    expect(wins(rule({ toString: { exists: true } }), {})).toBe(false);
  });

  test("considers a rule from its beginning until before its end", () => {
    const one = rule({}, { from: "2030-01-01T00:00:00Z", until: "2030-01-02T00:00:00+00:00" });
    const from = Date.UTC(2030, 0, 1);
    expect(wins(one, {}, from - 1)).toBe(false);
    expect(wins(one, {}, from)).toBe(true);
    expect(wins(one, {}, from + 86_399_999)).toBe(true);
    expect(wins(one, {}, from + 86_400_000)).toBe(false);
  });

  test("a rollout without its label holds nobody, at 100 % everyone, at 0 % no one", () => {
    const rollout = (percentage: number): ReleaseRule =>
      rule({}, { rollout: { percentage, by: "user", salt: "s" } });
    expect(wins(rollout(100), {})).toBe(false);
    fc.assert(
      fc.property(fc.string(), (user) => {
        expect(wins(rollout(100), { user })).toBe(true);
        expect(wins(rollout(0), { user })).toBe(false);
      }),
    );
  });

  test("a larger percentage never moves a client that was in", () => {
    fc.assert(
      fc.property(
        fc.string(),
        fc.string(),
        fc.integer({ min: 0, max: bucketParts }),
        fc.integer({ min: 0, max: bucketParts }),
        (salt, user, a, b) => {
          const at = (parts: number): boolean =>
            wins(rule({}, { rollout: { percentage: parts / 1_000, by: "user", salt } }), { user });
          if (at(Math.min(a, b))) expect(at(Math.max(a, b))).toBe(true);
        },
      ),
    );
  });

  test("a step of 0.001 % is one bucket, whatever the rounding of doubles", () => {
    for (let parts = 0; parts <= bucketParts; parts++)
      if (bucketsOf(parts / 1_000) !== parts) throw new Error(`${parts} parts are rounded away`);
    expect(bucketsOf(1.001)).toBe(1_001);
  });

  test("buckets are spread within one percent", () => {
    const counts = Array.from({ length: 10 }, () => 0);
    const users = 1_000_000;
    for (let i = 0; i < users; i++) {
      const tenth = Math.floor(bucketOf("salt", `user-${i}`) / (bucketParts / 10));
      counts[tenth] = (counts[tenth] ?? 0) + 1;
    }
    for (const count of counts) expect(Math.abs((count * 10) / users - 1)).toBeLessThan(0.01);
  });
});

describe("explain()", () => {
  const value = fc.constantFrom("eu", "us", "1.2.3", "7", "");
  const match: fc.Arbitrary<LabelMatch> = fc.oneof(
    value,
    fc.array(value, { minLength: 1, maxLength: 3 }),
    fc.record({ not: value }),
    fc.record({ prefix: value }),
    fc.record({ exists: fc.boolean() }),
    fc.record({ semver: fc.constantFrom(">=1.0.0", "^2.0.0") }),
    fc.record({ gt: fc.integer({ min: 0, max: 9 }) }),
  );
  const rules = fc.array(
    fc.record(
      {
        id: fc.constantFrom("a", "b", "c"),
        match: fc.dictionary(fc.constantFrom("x", "y"), match, { maxKeys: 2 }),
        rollout: fc.record({
          percentage: fc.constantFrom(0, 12.5, 50, 100),
          by: fc.constantFrom("x", "user"),
          salt: fc.constant("s"),
        }),
        from: fc.constantFrom("1970-01-01T00:00:01Z", "bad"),
        version: fc.integer({ min: 1, max: 9 }),
      },
      { requiredKeys: ["id", "match", "version"] },
    ),
    { maxLength: 4 },
  );

  test("agrees with evaluate(), and its reasons with its decision", () => {
    fc.assert(
      fc.property(
        rules,
        fc.dictionary(fc.constantFrom("x", "y", "user"), value),
        fc.constantFrom(0, 1_000, 2_000),
        (list, labels, now) => {
          const release = { rules: list, default: 1 };
          const { version, rule: winner, rules: reasons } = explain(release, labels, now);
          expect({ version, rule: winner }).toEqual(evaluate(release, labels, now));
          expect(reasons.length).toBe(list.length);
          expect(reasons.filter(({ outcome }) => outcome === "won").length).toBe(
            winner === null ? 0 : 1,
          );
          for (const reason of reasons)
            if (reason.outcome === "labels")
              expect(reason.labels.some(({ holds }) => !holds)).toBe(true);
        },
      ),
    );
  });

  test("names the label and the bucket", () => {
    const one = rule({ tier: "gold" }, { rollout: { percentage: 10, by: "user", salt: "s" } });
    const { rules: noLabel } = explain({ rules: [one], default: 1 }, { user: "u" }, 0);
    expect(noLabel[0]).toMatchObject({ outcome: "labels", detail: "Label tier is missing" });
    const { rules: noUser } = explain({ rules: [one], default: 1 }, { tier: "gold" }, 0);
    expect(noUser[0]).toMatchObject({
      outcome: "rollout",
      rollout: { bucket: null, below: 10_000 },
    });
  });
});

describe("murmur3()", () => {
  // Vectors of SMHasher's MurmurHash3_x86_32 as collected at https://en.wikipedia.org/wiki/MurmurHash (section Test
  // vectors) and https://stackoverflow.com/a/31929528 (byte patterns).
  const texts: [text: string, seed: number, expected: number][] = [
    ["", 0, 0],
    ["", 1, 0x514e28b7],
    ["", 0xffffffff, 0x81f16f39],
    ["test", 0, 0xba6bd213],
    ["test", 0x9747b28c, 0x704b81dc],
    ["Hello, world!", 0, 0xc0363e43],
    ["Hello, world!", 0x9747b28c, 0x24884cba],
    ["The quick brown fox jumps over the lazy dog", 0, 0x2e4ff723],
    ["The quick brown fox jumps over the lazy dog", 0x9747b28c, 0x2fa826cd],
    ["ππππππππ", 0x9747b28c, 0xd58063c1],
  ];
  test.each(texts)("of %j with seed %d", (text, seed, expected) => {
    expect(murmur3Text(text, seed)).toBe(expected);
  });
  test("of a text is that of its UTF-8 bytes", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.nat(), (text, seed) => {
        expect(murmur3Text(text, seed)).toBe(murmur3(new TextEncoder().encode(text), seed));
      }),
    );
  });
  const bytes: [bytes: number[], seed: number, expected: number][] = [
    [[0xff, 0xff, 0xff, 0xff], 0, 0x76293b50],
    [[0x21, 0x43, 0x65, 0x87], 0, 0xf55b516b],
    [[0x21, 0x43, 0x65, 0x87], 0x5082edee, 0x2362f9de],
    [[0x21, 0x43, 0x65], 0, 0x7e4a8634],
    [[0x21, 0x43], 0, 0xa0f7b07a],
    [[0x21], 0, 0x72661cf4],
    [[0, 0, 0, 0], 0, 0x2362f9de],
    [[0, 0, 0], 0, 0x85f0b427],
    [[0, 0], 0, 0x30f4c306],
    [[0], 0, 0x514e28b7],
  ];
  test.each(bytes)("of bytes %j with seed %d", (input, seed, expected) => {
    expect(murmur3(Uint8Array.from(input), seed)).toBe(expected);
  });
});

describe("semver", () => {
  // The order given in semver.org §11.4.4, and §11.2.
  const ordered = [
    "0.0.1",
    "0.1.0",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "2.0.0",
    "2.1.0",
    "2.1.1",
    "10.0.0",
    "90071992547409930.0.0",
    "90071992547409931.0.0",
  ].map((text) => parseVersion(text) as Version);

  test("orders versions as semver.org §11", () => {
    for (const [i, a] of ordered.entries())
      for (const [j, b] of ordered.entries())
        expect(Math.sign(compareVersions(a, b))).toBe(Math.sign(i - j));
  });

  const cases: [range: string, version: string, expected: boolean][] = [
    ["1.2.3", "1.2.3+build.7", true],
    ["=1.2.3", "1.2.4", false],
    ["!=1.2.3", "1.2.4", true],
    ["^1.2.3", "1.9.0", true],
    ["^1.2.3", "2.0.0-alpha", false],
    ["^1.2.3", "1.2.3-rc.1", false],
    ["^0.2.3", "0.2.9", true],
    ["^0.2.3", "0.3.0", false],
    ["^0.0.3", "0.0.3", true],
    ["^0.0.3", "0.0.4", false],
    ["~1.2.3", "1.2.9", true],
    ["~1.2.3", "1.3.0", false],
    [">1.0.0 <=1.5.0 !=1.3.0", "1.3.0", false],
    [">1.0.0 <=1.5.0 !=1.3.0", "1.5.0", true],
    ["<1.0.0", "1.0.0-rc.1", true],
  ];
  test.each(cases)("range %s on %s gives %j", (range, version, expected) => {
    const parsed = parseRange(range);
    if (parsed === null) throw new Error("the range did not parse");
    expect(inRange(parsed, parseVersion(version) as Version)).toBe(expected);
  });

  test.each(["", " ", "1.2", ">=1.2", "01.2.3", ">= 1.2.3", "1.2.3-", "latest", "1.2.3-01"])(
    "refuses the range %j",
    (range) => {
      expect(parseRange(range)).toBe(null);
    },
  );
});

describe("parseTime()", () => {
  test("agrees with Date.parse where that is defined", () => {
    fc.assert(
      fc.property(
        fc.date({
          min: new Date("0001-01-01T00:00:00Z"),
          max: new Date("9999-12-31T23:59:59Z"),
          noInvalidDate: true,
        }),
        (date) => {
          expect(parseTime(date.toISOString())).toBe(date.getTime());
        },
      ),
    );
  });
  const cases: [text: string, expected: number | null][] = [
    ["1970-01-01T00:00:00Z", 0],
    ["1970-01-01T01:00:00+01:00", 0],
    ["1969-12-31T19:00:00.5-05:00", 500],
    ["2024-02-29T00:00:00Z", Date.UTC(2024, 1, 29)],
    ["2023-02-29T00:00:00Z", null],
    ["2023-13-01T00:00:00Z", null],
    ["2023-01-01T24:00:00Z", null],
    ["2023-01-01 00:00:00Z", null],
    ["2023-01-01T00:00:00", null],
    ["2023-01-01", null],
  ];
  test.each(cases)("of %s is %j", (text, expected) => {
    expect(parseTime(text)).toBe(expected);
  });
});

describe("validateRules()", () => {
  const good: ReleaseRule = {
    id: "gold",
    match: { tier: "gold", app: { semver: ">=1.0.0" }, n: { gt: 1 } },
    rollout: { percentage: 12.345, by: "user" },
    from: "2030-01-01T00:00:00Z",
    version: 1,
  };
  test("takes what is complete", () => {
    expect(validateRules([good])).toEqual([]);
    expect(validateRules([])).toEqual([]);
  });
  const bad: [rules: unknown, pointers: string[]][] = [
    [{}, [""]],
    [[1], ["/0"]],
    [[{ ...good, id: "A" }], ["/0/id"]],
    [[good, good], ["/1/id"]],
    [[{ ...good, extra: 1 }], ["/0/extra"]],
    [[{ ...good, version: 0 }], ["/0/version"]],
    [[{ ...good, match: [] }], ["/0/match"]],
    [[{ ...good, match: { "a b": "x" } }], ["/0/match/a b"]],
    [[{ ...good, match: { a: 1 } }], ["/0/match/a"]],
    [[{ ...good, match: { a: {} } }], ["/0/match/a"]],
    [[{ ...good, match: { a: { like: "x" } } }], ["/0/match/a/like"]],
    [[{ ...good, match: { a: { semver: "1.x" } } }], ["/0/match/a/semver"]],
    [[{ ...good, match: { a: { gt: "1" } } }], ["/0/match/a/gt"]],
    [[{ ...good, match: { a: { exists: "yes" } } }], ["/0/match/a/exists"]],
    [[{ ...good, rollout: { percentage: 0.0005, by: "u" } }], ["/0/rollout/percentage"]],
    [[{ ...good, rollout: { percentage: 101, by: "u" } }], ["/0/rollout/percentage"]],
    [[{ ...good, rollout: { percentage: 1 } }], ["/0/rollout/by"]],
    [[{ ...good, rollout: { percentage: 1, by: "u", salt: "" } }], ["/0/rollout/salt"]],
    [[{ ...good, from: "tomorrow" }], ["/0/from"]],
    [[{ ...good, until: "2029-01-01T00:00:00Z" }], ["/0/until"]],
    [[{ ...good, version: 9 }], ["/0/version"]],
  ];
  test.each(bad)("refuses %j", (rules, pointers) => {
    const errors = validateRules(rules, { hasVersion: (version) => version < 9 });
    expect(errors.map(({ pointer }) => pointer)).toEqual(pointers);
    for (const { detail } of errors) expect(detail).toMatch(/^[A-Z].*[^.]$/);
  });
});
