/** Exports of other systems: what becomes of them, what is told about the rest, and that nothing makes it fall over. */
import * as fc from "fast-check";
import { mkdir, mkdtemp, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32, deflateRawSync } from "node:zlib";
import { FlagdCore } from "@openfeature/flagd-core";
import { describe, expect, test } from "vitest";
import { readManifests } from "../../src/cli/apply.ts";
import { writeFiles } from "../../src/cli/export.ts";
import { propertiesOf } from "../../src/cli/import/documents.ts";
import {
  convertExport,
  importSystems,
  manifestOf,
  readExport,
  refuseExisting,
} from "../../src/cli/import/import.ts";
import {
  importBytesMax,
  ImportError,
  laidOut,
  nameOf,
  type Imported,
  type ImportFile,
  type ImportOptions,
} from "../../src/cli/import/importing.ts";
import { prepareContent } from "../../src/model/content.ts";
import { Flag, withFlagCall, type FlagDefinition } from "../../src/model/flags.ts";
import { isName } from "../../src/model/names.ts";
import { loneSurrogateAt } from "../../src/model/utf8.ts";

type System = Parameters<typeof convertExport>[0];
type Context = Record<string, unknown>;

const plain: ImportOptions = { prefix: "", renames: new Map(), name: null, environment: null };

function fileOf(content: unknown, path = "export"): ImportFile {
  const text = typeof content === "string" ? content : JSON.stringify(content);
  return { path, bytes: Buffer.from(text) };
}

function converted(
  system: System,
  content: unknown,
  options: Partial<ImportOptions> = {},
  path?: string,
): Imported {
  return convertExport(system, [fileOf(content, path)], { ...plain, ...options });
}

/** What was wrong. */
function refused(
  system: System,
  content: unknown,
  options: Partial<ImportOptions> = {},
  path?: string,
): string {
  try {
    converted(system, content, options, path);
  } catch (error) {
    if (error instanceof ImportError) return error.message;
    throw error;
  }
  throw new Error("it was not refused");
}

function contents({ configs }: Imported): Record<string, string> {
  return Object.fromEntries(configs.map(({ name, content }) => [name, content]));
}

function leftOut({ remarks }: Imported): string[] {
  return remarks
    .filter(({ kind }) => kind === "left-out")
    .map(({ key, detail }) => `${key}: ${detail}`);
}

function notes({ remarks }: Imported): string[] {
  return remarks
    .filter(({ kind }) => kind === "note")
    .map(({ key, detail }) => `${key}: ${detail}`);
}

/** Anything that a text can hold, and more often what means something. */
function units(maxLength: number): fc.Arbitrary<string> {
  const unit = fc.oneof(fc.integer({ min: 0, max: 127 }), fc.integer({ min: 0, max: 0xffff }));
  return fc.array(unit, { maxLength }).map((codes) => String.fromCharCode(...codes));
}

function base64(text: string): string {
  return Buffer.from(text).toString("base64");
}

/** What clients get of an imported flag: its value, or undefined for the default of their code. */
function valueOf(imported: Imported, name: string, context: Context, now = Date.now()): unknown {
  return evaluator(imported, name)(context, now);
}

function evaluator(imported: Imported, name: string): (context: Context, now?: number) => unknown {
  const { content } = imported.configs.find((config) => config.name === name) as {
    content: string;
  };
  const flag = new Flag(name, JSON.parse(content) as FlagDefinition);
  return (context, now = Date.now()) => {
    const resolution = withFlagCall(context, now, (call) => flag.evaluate(call));
    if (resolution.errorCode !== undefined) throw new Error(resolution.errorDetails);
    return resolution.value;
  };
}

// --- names -----------------------------------------------------------------------------------------------------------------

describe("names", () => {
  test.each([
    ["/app/db/url", "app.db.url"],
    ["newCheckout", "new-checkout"],
    ["HTTPServer2Port", "httpserver2-port"],
    ["DATABASE_URL", "database_url"],
    ["com.acme:orders (eu)", "com.acme-orders-eu"],
    ["_private_", "private"],
    ["größe", "gr-e"],
    ["///", ""],
  ])("%j becomes %j", (key, name) => {
    expect(nameOf(key)).toBe(name);
  });

  test("are names or empty, whatever the key", () => {
    fc.assert(
      fc.property(units(100), (key) => {
        const name = nameOf(key);
        expect(name === "" || isName(name)).toBe(true);
        expect(nameOf(name)).toBe(name);
      }),
    );
  });

  test("that would be the same are refused, each with its key", () => {
    const pairs = [pair("a/b", "1"), pair("a.b", "2"), pair("A/B", "3"), pair("c", "4")];
    const wrong = refused("consul", pairs);
    expect(wrong).toContain('"a/b" and "a.b" would both be config a.b');
    expect(wrong).toContain('"a/b" and "A/B" would both be config a.b');
    const renames = new Map([
      ["a.b", "x"],
      ["A/B", "y"],
    ]);
    expect(contents(converted("consul", pairs, { renames }))).toEqual({
      "a.b": "1",
      x: "2",
      y: "3",
      c: "4",
    });
  });

  test("that cannot be made, and renames that mean nothing, are refused", () => {
    expect(refused("consul", [pair("//", "1")])).toMatch(
      /^"\/\/": Nothing of this key .+ --rename KEY=NAME/,
    );
    expect(refused("consul", [pair("x".repeat(129), "1")])).toMatch(/too long: .+ 128 characters/);
    expect(refused("consul", [pair("x".repeat(5_000), "1")])).toMatch(/Shorten the key/);
    expect(refused("consul", [pair("a", "1")], { renames: new Map([["b", "c"]]) })).toMatch(
      /no key "b"/,
    );
    expect(refused("consul", [pair("a", "1")], { renames: new Map([["a", "C!"]]) })).toMatch(
      /--rename "a": Name the config/,
    );
  });

  test("a prefix chooses, and is cut", () => {
    const imported = converted("consul", [pair("app/a", "1"), pair("other", "2")], {
      prefix: "app/",
    });
    expect(contents(imported)).toEqual({ a: "1" });
    expect(imported.configs[0]?.tags).toEqual({ "consul-key": "app/a" });
    expect(notes(imported)).toEqual([': 1 key does not begin with the prefix "app/"']);
    expect(refused("consul", [pair("app/a", "1")], { prefix: "/app" })).toBe(
      '--prefix: No key begins with "/app": the first is "app/a"',
    );
  });
});

// --- etcd and Consul ---------------------------------------------------------------------------------------------------------

function kv(key: string, value: string, more: object = {}): object {
  return {
    key: base64(key),
    create_revision: 4,
    mod_revision: 7,
    version: 2,
    value: base64(value),
    ...more,
  };
}

function etcd(...kvs: object[]): object {
  return {
    header: { cluster_id: 1, member_id: 2, revision: 7, raft_term: 3 },
    kvs,
    count: kvs.length,
  };
}

function pair(key: string, value: string, more: object = {}): object {
  return { key, flags: 0, value: base64(value), ...more };
}

describe("etcd", () => {
  test("each key becomes a config whose format its value or its end says", () => {
    const imported = converted(
      "etcd",
      etcd(
        kv("/app/limits", '{"max": 100}'),
        kv("/app/hosts", "[1]"),
        kv("/app/port", "8080"),
        kv("/app/routes.yaml", "a: 1\n"),
        kv("/app/broken.json", "{"),
        kv("/app/greeting", "Grüße\n"),
      ),
    );
    expect(imported.configs.map(({ name, format }) => [name, format])).toEqual([
      ["app.broken.json", "text"],
      ["app.greeting", "text"],
      ["app.hosts", "json"],
      ["app.limits", "json"],
      ["app.port", "text"],
      ["app.routes.yaml", "yaml"],
    ]);
    expect(contents(imported)["app.greeting"]).toBe("Grüße\n");
    expect(imported.configs[1]?.tags).toEqual({ "etcd-key": "/app/greeting" });
    expect(leftOut(imported)).toEqual([]);
    expect(notes(imported)).toEqual([
      expect.stringMatching(/^\/app\/broken\.json: kept as text, as it is not valid json/),
    ]);
  });

  test("what cannot be a config is told", () => {
    const bytes = Buffer.from([0xff, 0xfe]).toString("base64");
    const imported = converted("etcd", {
      ...etcd(
        kv("/bin", "", { value: bytes }),
        { key: bytes, value: base64("x") },
        kv("/lock", "me", { lease: 7587862094073587 }),
        { key: base64("/empty") },
      ),
      more: true,
    });
    expect(contents(imported)).toEqual({ lock: "me", empty: "" });
    expect(leftOut(imported)).toEqual([
      expect.stringMatching(/^: the keys beyond the limit/),
      expect.stringMatching(/^\/bin: its value is not UTF-8 \(2 bytes\)/),
      expect.stringMatching(/a key that is not UTF-8$/),
    ]);
    expect(notes(imported)).toEqual([expect.stringMatching(/^\/lock: hangs on a lease/)]);
  });

  test("what is no answer of etcd is refused, with its place", () => {
    expect(refused("etcd", "/app/limits\n{}\n")).toMatch(
      /^export:1, column 1: .+etcdctl get --prefix \/ -w json/,
    );
    expect(refused("etcd", JSON.stringify(etcd(kv("/a", "1"))).slice(0, -5))).toMatch(
      /^export:1, column \d+: /,
    );
    expect(refused("etcd", [])).toMatch(/no answer of etcd/);
    expect(refused("etcd", { ...etcd(), kvs: {} })).toMatch(/^\/kvs: /);
    expect(refused("etcd", etcd(kv("/a", "1"), kv("/b", "", { value: "a?==" })))).toBe(
      "/kvs/1/value: Give the value in base64",
    );
    expect(refused("etcd", '{"header":{},"kvs":[],"kvs":[]}')).toMatch(/comes twice/);
    expect(refused("etcd", `{"header":{},"kvs":${"[".repeat(50_000)}`)).toMatch(
      /at most 100 levels/,
    );
    expect(refused("etcd", etcd(kv("/a", "1"), kv("/a", "2")))).toMatch(
      /"\/a" and "\/a" would both/,
    );
  });
});

describe("consul", () => {
  test("keys, with flags and namespaces as tags; folders have nothing to keep", () => {
    const imported = converted("consul", [
      pair("app/", ""),
      pair("app/timeout", "500", { flags: 42, namespace: "team" }),
      pair("app/huge", "1", { flags: 2 ** 60 }),
      { Key: "api", Flags: 0, Value: null, LockIndex: 0, CreateIndex: 1, ModifyIndex: 1 },
    ]);
    expect(contents(imported)).toEqual({ api: "", "app.huge": "1", "app.timeout": "500" });
    expect(imported.configs[2]?.tags).toEqual({
      "consul-key": "app/timeout",
      "consul-flags": "42",
      "consul-namespace": "team",
    });
    expect(leftOut(imported)).toEqual([expect.stringMatching(/^app\/huge: its flags/)]);
    expect(notes(imported)).toEqual([expect.stringMatching(/^app\/: a folder/)]);
  });

  test("what is no export of Consul is refused, with its place", () => {
    expect(refused("consul", {})).toMatch(/consul kv export/);
    expect(refused("consul", [pair("a", "1"), 7])).toMatch(/^\/1: /);
    expect(
      refused("consul", [
        { key: "a", value: "$" },
        { key: "", value: "" },
      ]),
    ).toBe('/0/value: Give the value of "a" in base64\n/1/key: Give the key as a text');
  });

  test("an import of more configs than one may have is refused", () => {
    const pairs = Array.from({ length: 20_001 }, (_, i) => pair(`k${i}`, ""));
    expect(refused("consul", pairs)).toMatch(
      /at most 20000 configs at once: take a part by --prefix/,
    );
  });
});

// --- flagd -------------------------------------------------------------------------------------------------------------------

describe("flagd", () => {
  const staff = { ends_with: [{ var: "email" }, "@shop.example"] };
  const checkout = {
    state: "ENABLED",
    variants: { on: true, off: false },
    defaultVariant: "off",
    targeting: {
      if: [
        { $ref: "staff" },
        "on",
        {
          fractional: [
            ["on", 10],
            ["off", 90],
          ],
        },
      ],
    },
  };

  test("evaluators and metadata of the set come into each flag", () => {
    const imported = converted("flagd", {
      $schema: "https://flagd.dev/schema/v0/flags.json",
      flags: { checkout: { ...checkout, metadata: { owner: "web", flagSetId: "own" } } },
      $evaluators: { staff },
      metadata: { flagSetId: "shop", version: 3 },
    });
    expect(JSON.parse(contents(imported)["checkout"] ?? "")).toEqual({
      ...checkout,
      targeting: {
        if: [
          staff,
          "on",
          {
            fractional: [
              ["on", 10],
              ["off", 90],
            ],
          },
        ],
      },
      metadata: { flagSetId: "own", version: 3, owner: "web" },
    });
    expect(imported.remarks).toEqual([]);
    expect(imported.configs[0]?.tags).toBeUndefined();
  });

  test("a list of flags, and YAML", () => {
    const { state, variants, defaultVariant } = checkout;
    expect(
      contents(converted("flagd", { flags: [{ key: "a", state, variants, defaultVariant }] })),
    ).toEqual({
      a: laidOut({ state, variants, defaultVariant }),
    });
    const yaml =
      "flags:\n  a:\n    state: ENABLED\n    variants: { x: 1, y: 2 }\n    defaultVariant: x\n    targeting:\n";
    expect(valueOf(converted("flagd", yaml), "a", {})).toBe(1);
    // In the order that it was written in.
    expect(contents(converted("flagd", yaml))["a"]).toMatch(/^\{ "state": .+"x": 1, "y": 2/);
    expect(refused("flagd", "flags:\n  a: 1\n  a: 2\n", {}, "flags.yaml")).toMatch(
      /^flags\.yaml:3: .*unique/,
    );
    expect(refused("flagd", `a: ${"[".repeat(5_000)}`)).toMatch(/: /);
    expect(refused("flagd", "x: &x [*x]\nflags: *x\n")).toMatch(/: /);
    expect(refused("flagd", "flags: 7")).toMatch(/^\/flags: /);
    expect(refused("flagd", { flags: [{ state }] })).toMatch(/^\/flags\/0\/key: /);
    expect(refused("flagd", { flags: { a: 7 } })).toMatch(/^\/flags\/a: /);
  });

  test("flags that nobody could evaluate are left out, and told", () => {
    const doubling = Object.fromEntries(
      Array.from({ length: 40 }, (_, i) => [
        `e${i}`,
        { and: [{ $ref: `e${i + 1}` }, { $ref: `e${i + 1}` }] },
      ]),
    );
    const flag = (targeting: unknown): object => ({ ...checkout, targeting });
    const imported = converted("flagd", {
      flags: {
        good: checkout,
        state: { ...checkout, state: "ON" },
        operator: flag({ regex: [1, 2] }),
        nowhere: flag({ $ref: "nothing" }),
        circle: flag({ $ref: "a" }),
        bomb: flag({ $ref: "e0" }),
      },
      $evaluators: { staff, a: { "!": [{ $ref: "b" }] }, b: { $ref: "a" }, ...doubling, e40: true },
    });
    expect(imported.configs.map(({ name }) => name)).toEqual(["good"]);
    expect(leftOut(imported)).toEqual([
      expect.stringMatching(/^state: .+"ENABLED" or "DISABLED"/),
      expect.stringMatching(/^operator: .+no operator "regex"/),
      expect.stringMatching(/^nowhere: .+"nothing", which is not in \$evaluators/),
      expect.stringMatching(/^circle: .+"a", which refers to itself/),
      expect.stringMatching(/^bomb: .+more than 10000/),
    ]);
  });

  // What names say about a flag's own key is in them, so that new names are held too.
  const keys = ["plain", "newCheckout", "Shop/Banner"] as const;
  const variable = fc.constantFrom("plan", "email", "targetingKey", "nothing", "$flagd.flagKey");
  const read = fc.oneof(
    variable.map((name) => ({ var: name })),
    variable.map((name) => ({ var: [name, "x"] })),
  );
  const buckets = fc
    .tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 1, max: 9 }))
    .map(([a, b]) => [
      ["a", a],
      ["b", b],
    ]);
  // What is not there is "null" within `cat` in one of flagd-core's modes.
  const rollout = fc.oneof(
    buckets.map((list) => ({ fractional: list })),
    fc.tuple(fc.constantFrom("plan", "email", "$flagd.flagKey"), buckets).map(([name, list]) => ({
      fractional: [{ cat: [{ var: [name, ""] }, { var: ["email", ""] }] }, ...list],
    })),
  );
  const condition = fc.oneof(
    fc
      .tuple(read, fc.constantFrom("pro", "free", "newCheckout", "plain"))
      .map((args) => ({ "==": args })),
    fc.constantFrom({ $ref: "staff" }, { $ref: "paying" }),
    fc.tuple(read, fc.constantFrom("a", "b@x")).map((args) => ({ starts_with: args })),
  );
  const targeting = fc.oneof(
    fc.constant({}),
    fc.constant({ $ref: "rollout" }),
    rollout,
    fc
      .tuple(condition, fc.oneof(rollout, fc.constantFrom("a", "b")), rollout)
      .map((args) => ({ if: args })),
    fc.tuple(condition, condition).map((args) => ({ if: [{ or: args }, "a", "b"] })),
  );
  const evaluators = {
    staff,
    paying: { in: [{ var: "plan" }, ["pro", "team"]] },
    rollout: {
      fractional: [
        ["a", 1],
        ["b", 3],
      ],
    },
  };
  const context = fc.record(
    {
      targetingKey: fc.constantFrom("user-1", "user-2", "u3", ""),
      plan: fc.constantFrom("pro", "free"),
      email: fc.constantFrom("a@shop.example", "b@x"),
    },
    { requiredKeys: [] },
  );

  test("an imported flag evaluates as flagd-core does the original, under a new name too", () => {
    const silent = { debug() {}, info() {}, warn() {}, error() {} };
    fc.assert(
      fc.property(
        fc.record({ targeting, defaultVariant: fc.constantFrom("a", "b") }),
        context,
        (parts, given) => {
          const flag = { state: "ENABLED", variants: { a: 1, b: 2 }, ...parts };
          const set = {
            flags: Object.fromEntries(keys.map((key) => [key, flag])),
            $evaluators: evaluators,
          };
          const core = new FlagdCore(undefined, silent);
          core.setConfigurations(JSON.stringify(set));
          const imported = converted("flagd", set);
          expect(leftOut(imported)).toEqual([]);
          for (const key of keys)
            expect(valueOf(imported, nameOf(key), given)).toBe(
              core.resolveNumberEvaluation(key, -1, given as never).value,
            );
        },
      ),
      { numRuns: 150 },
    );
  });

  test("a rollout within map cannot go on by the former key", () => {
    const flag = { ...checkout, targeting: { map: [[1], { fractional: [["on", 1]] }] } };
    expect(leftOut(converted("flagd", { flags: { newCheckout: flag } }))).toEqual([
      expect.stringMatching(/^newCheckout: its targeting has a rollout within map/),
    ]);
    expect(leftOut(converted("flagd", { flags: { checkout: flag } }))).toEqual([]);
  });
});

// --- Unleash -----------------------------------------------------------------------------------------------------------------

describe("unleash", () => {
  const week = Date.parse("2026-11-20T00:00:00Z");

  function features(...list: object[]): object {
    return { version: 2, features: list, segments: [] };
  }

  function feature(name: string, strategies: readonly object[], more: object = {}): object {
    return { name, enabled: true, strategies, ...more };
  }

  function constrained(...constraints: object[]): object {
    return { name: "default", parameters: {}, constraints };
  }

  function rollout(percentage: number, more: object = {}): object {
    return {
      name: "flexibleRollout",
      parameters: { groupId: "g", rollout: String(percentage), stickiness: "default", ...more },
    };
  }

  const users = Array.from({ length: 2_000 }, (_, i) => `user-${i}`);

  /** Users who have it. */
  function having(imported: Imported, name: string, value: unknown = true): Set<string> {
    const give = evaluator(imported, name);
    return new Set(users.filter((targetingKey) => give({ targetingKey }) === value));
  }

  test("constraints hold for whom they held", () => {
    // By what Unleash's SDKs do with texts (https://docs.getunleash.io/reference/activation-strategies#constraints).
    const operators: Record<
      string,
      (given: string | undefined, values: readonly string[], value: string) => boolean
    > = {
      IN: (given, values) => given !== undefined && values.includes(given),
      NOT_IN: (given, values) => given === undefined || !values.includes(given),
      STR_STARTS_WITH: (given, values) => values.some((text) => given?.startsWith(text) === true),
      STR_ENDS_WITH: (given, values) => values.some((text) => given?.endsWith(text) === true),
      STR_CONTAINS: (given, values) => values.some((text) => given?.includes(text) === true),
      NUM_EQ: (given, _, value) => given !== undefined && Number(given) === Number(value),
      NUM_GT: (given, _, value) => given !== undefined && Number(given) > Number(value),
      NUM_GTE: (given, _, value) => given !== undefined && Number(given) >= Number(value),
      NUM_LT: (given, _, value) => given !== undefined && Number(given) < Number(value),
      NUM_LTE: (given, _, value) => given !== undefined && Number(given) <= Number(value),
    };
    const text = fc.constantFrom("1", "2", "10", "-3", "2.5");
    const one = fc.record({
      contextName: fc.constantFrom("userId", "plan.name", "region"),
      operator: fc.constantFrom(...Object.keys(operators)),
      values: fc.array(text, { maxLength: 3 }),
      value: text,
      inverted: fc.boolean(),
    });
    const context = fc.record(
      { userId: text, "plan.name": text, region: text },
      { requiredKeys: [] },
    );
    const strategies = fc.array(fc.array(one, { maxLength: 3 }), { minLength: 1, maxLength: 3 });
    fc.assert(
      fc.property(strategies, context, (constraints, given) => {
        const wanted = constraints.some((all) =>
          all.every(({ contextName, operator, values, value, inverted }) => {
            const at = given[contextName];
            return operators[operator]?.(at, values, value) !== inverted;
          }),
        );
        const made = converted(
          "unleash",
          features(
            feature(
              "f",
              constraints.map((all) => constrained(...all)),
            ),
          ),
        );
        const { userId, ...rest } = given;
        expect(leftOut(made)).toEqual([]);
        expect(
          valueOf(made, "f", { ...rest, ...(userId !== undefined && { targetingKey: userId }) }),
        ).toBe(wanted);
      }),
      { numRuns: 200 },
    );
  });

  test("versions and times", () => {
    const made = converted(
      "unleash",
      features(
        feature("version", [
          constrained({ contextName: "app", operator: "SEMVER_GT", value: "1.9.0" }),
        ]),
        feature("after", [
          constrained({
            contextName: "currentTime",
            operator: "DATE_AFTER",
            value: "2026-11-20T00:00:00Z",
          }),
        ]),
        feature("before", [
          constrained({
            contextName: "currentTime",
            operator: "DATE_BEFORE",
            value: "2026-11-20T00:00:00Z",
          }),
        ]),
        feature("never", [
          constrained({ contextName: "currentTime", operator: "DATE_AFTER", value: "soon" }),
        ]),
      ),
    );
    expect(valueOf(made, "version", { app: "1.10.0" })).toBe(true);
    expect(valueOf(made, "version", { app: "1.9.0" })).toBe(false);
    expect(valueOf(made, "version", {})).toBe(false);
    for (const [now, isAfter] of [
      [week + 1_000, true],
      [week - 1_000, false],
    ] as const) {
      expect(valueOf(made, "after", {}, now)).toBe(isAfter);
      expect(valueOf(made, "before", {}, now)).toBe(!isAfter);
      expect(valueOf(made, "never", {}, now)).toBe(false);
    }
  });

  test("ranges of addresses, and texts whatever their case where there is none", () => {
    const at = (values: readonly string[], more: object = {}): object =>
      constrained({ contextName: "ip", operator: "IN_CIDR", values, ...more });
    const anyCase = { contextName: "plan", operator: "IN", caseInsensitive: true };
    const made = converted(
      "unleash",
      features(
        feature("range", [at(["127.0.0.1", "160.33.0.0/16", "10.0.0.0/8", "::1"])]),
        feature("outside", [at(["160.33.0.0/16"], { inverted: true })]),
        feature("odd", [at(["10.0.0.0/9"], { inverted: true })]),
        feature("digits", [constrained({ ...anyCase, values: ["1", "2"] })]),
        feature("letters", [constrained({ ...anyCase, values: ["pro"] })]),
      ),
    );
    for (const ip of ["127.0.0.1", "160.33.9.9", "10.200.0.1", "::1"])
      expect(valueOf(made, "range", { ip })).toBe(true);
    for (const ip of ["127.0.0.10", "160.3.3.0", "100.0.0.1"])
      expect(valueOf(made, "range", { ip })).toBe(false);
    expect(valueOf(made, "outside", { ip: "1.1.1.1" })).toBe(true);
    expect(valueOf(made, "outside", { ip: "160.33.1.1" })).toBe(false);
    expect(valueOf(made, "digits", { plan: "2" })).toBe(true);
    expect(leftOut(made)).toEqual([
      expect.stringMatching(/^odd: .+ranges other than/),
      expect.stringMatching(/^letters: .+without regard to case/),
    ]);
  });

  test("strategies: any of them, everybody without one, nobody where all are disabled", () => {
    const made = converted(
      "unleash",
      features(
        feature("open", []),
        feature("default", [{ name: "default", parameters: {} }]),
        feature("people", [
          { name: "userWithId", parameters: { userIds: "anna, ben,,anna" } },
          { name: "remoteAddress", parameters: { IPs: "10.1.2.3, 192.168.0.0/16,127.0.0.1" } },
        ]),
        feature("paused", [{ name: "default", parameters: {}, disabled: true }]),
        feature("off", [{ name: "default", parameters: {} }], { enabled: false }),
      ),
    );
    expect(leftOut(made)).toEqual([]);
    expect(valueOf(made, "open", {})).toBe(true);
    expect(valueOf(made, "default", {})).toBe(true);
    expect(valueOf(made, "paused", {})).toBe(false);
    // The default of the code.
    expect(valueOf(made, "off", {})).toBeUndefined();
    expect(notes(made)).toContainEqual(expect.stringMatching(/1 flag is disabled/));
    for (const context of [
      { targetingKey: "ben" },
      { remoteAddress: "192.168.9.9" },
      { remoteAddress: "127.0.0.1" },
    ])
      expect(valueOf(made, "people", context)).toBe(true);
    for (const context of [{}, { targetingKey: "eve" }, { remoteAddress: "192.16.0.1" }])
      expect(valueOf(made, "people", context)).toBe(false);
  });

  test("a percentage holds, and who is in stays in when it grows", () => {
    const made = converted(
      "unleash",
      features(
        feature("none", [rollout(0)]),
        feature("tenth", [rollout(10)]),
        feature("third", [rollout(33)]),
        feature("all", [rollout(100)]),
        feature("session", [rollout(100, { stickiness: "sessionId" })]),
        feature("former", [
          { name: "gradualRolloutUserId", parameters: { percentage: "33", groupId: "g" } },
        ]),
        feature("random", [{ name: "gradualRolloutRandom", parameters: { percentage: "33" } }]),
      ),
    );
    const [tenth, third] = [having(made, "tenth"), having(made, "third")];
    expect(having(made, "none").size).toBe(0);
    expect(tenth.size / users.length).toBeCloseTo(0.1, 1);
    expect(third.size / users.length).toBeCloseTo(0.33, 1);
    expect([...tenth].every((user) => third.has(user))).toBe(true);
    // One group, one order of users.
    expect(having(made, "former")).toEqual(third);
    expect(valueOf(made, "all", {})).toBe(true);
    expect(valueOf(made, "tenth", {})).toBe(false);
    expect(valueOf(made, "session", { sessionId: "s" })).toBe(true);
    expect(valueOf(made, "session", { targetingKey: "u" })).toBe(false);
    expect(notes(made)).toContainEqual(expect.stringMatching(/^random: .+ sticks to the user/));
    expect(notes(made)).toContainEqual(
      expect.stringMatching(/^: 4 flags have percentages: .+ not the same ones/),
    );
  });

  const variants = [
    { name: "red", weight: 500, payload: { type: "number", value: "1" } },
    { name: "blue", weight: 500, payload: { type: "number", value: "2" } },
  ];

  test("variants whose flag would have too long a name are refused", () => {
    const long = "x".repeat(125);
    const given = features(feature(long, [{ ...rollout(20), variants }]));
    expect(refused("unleash", given)).toMatch(/^"x{64}…": Its name would be too long: .+ --rename/);
    const renames = new Map([[`${long}.variant`, "short"]]);
    expect(converted("unleash", given, { renames }).configs.map(({ name }) => name)).toEqual([
      "short",
      long,
    ]);
  });

  test("variants are a second flag, and do not go by what the rollout goes by", () => {
    const made = converted("unleash", features(feature("color", [{ ...rollout(20), variants }])));
    expect(made.configs.map(({ name }) => name)).toEqual(["color", "color.variant"]);
    const isIn = having(made, "color");
    const [red, blue] = [having(made, "color.variant", 1), having(made, "color.variant", 2)];
    expect(new Set([...red, ...blue])).toEqual(isIn);
    // Else the first fifth of users would all be red.
    expect(red.size / isIn.size).toBeCloseTo(0.5, 1);
    expect(valueOf(made, "color.variant", {})).toBeUndefined();
  });

  test("variants of a feature: overrides, types of payloads, and one that is a value for all", () => {
    const override = [{ contextName: "plan", values: ["pro"] }];
    const made = converted(
      "unleash",
      features(
        feature("a", [], { variants: [variants[0], { ...variants[1], overrides: override }] }),
        feature("b", [constrained({ contextName: "x", operator: "IN", values: ["1"] })], {
          variants: [{ name: "only", weight: 1000, payload: { type: "json", value: '{"k":[1]}' } }],
        }),
        feature("c", [], {
          variants: [
            { name: "x", weight: 1 },
            { name: "y", weight: 0, payload: { type: "json", value: "[1]" } },
          ],
        }),
        feature("d", [{ ...rollout(100), variants: [variants[0]] }], {
          variants: [{ name: "red", weight: 1, payload: { type: "number", value: "9" } }],
        }),
      ),
    );
    for (const targetingKey of users.slice(0, 50))
      expect(valueOf(made, "a.variant", { targetingKey, plan: "pro" })).toBe(2);
    expect(valueOf(made, "b.variant", { x: "1" })).toEqual({ k: [1] });
    expect(valueOf(made, "b.variant", { x: "2" })).toBeUndefined();
    expect(valueOf(made, "c.variant", {})).toBe("x");
    expect(notes(made)).toContainEqual(
      expect.stringMatching(/^c\.variant: its payloads .+ as texts/),
    );
    expect(leftOut(made)).toEqual([
      expect.stringMatching(/^d\.variant: the payload of another variant "red"/),
    ]);
  });

  test("what cannot be said goes with its whole strategy: nobody gets a flag by it", () => {
    const pro = { contextName: "plan", operator: "IN", values: ["pro"] };
    const made = converted(
      "unleash",
      features(
        feature("regex", [
          constrained(pro, { contextName: "email", operator: "REGEX", value: ".*" }),
          constrained({ ...pro, values: ["team"] }),
        ]),
        feature("case", [
          constrained({
            contextName: "plan",
            operator: "STR_CONTAINS",
            values: ["P"],
            caseInsensitive: true,
            inverted: true,
          }),
        ]),
        feature("own", [{ name: "byMoon", parameters: {} }]),
        feature("host", [{ name: "applicationHostname", parameters: { hostNames: "a" } }]),
        feature("segment", [{ ...constrained(pro), segments: [9] }]),
        feature("range", [{ name: "remoteAddress", parameters: { IPs: "10.0.0.0/9" } }]),
        feature("shown", [], { impressionData: true }),
      ),
    );
    expect(valueOf(made, "regex", { plan: "team" })).toBe(true);
    for (const name of ["regex", "case", "own", "host", "segment", "range"])
      expect(valueOf(made, name, { plan: "pro", email: "x", remoteAddress: "10.0.0.1" })).toBe(
        false,
      );
    expect(leftOut(made).map((text) => text.split(":")[0])).toEqual(
      expect.arrayContaining(["regex", "case", "own", "host", "segment", "range", "shown"]),
    );
  });

  test("segments and parents are copied in", () => {
    const made = converted("unleash", {
      features: [
        feature("parent", [{ ...constrained(), segments: [3] }]),
        feature("off", [], { enabled: false }),
        feature("child", [constrained({ contextName: "plan", operator: "IN", values: ["pro"] })], {
          dependencies: [{ feature: "parent" }],
        }),
        feature("inverse", [], { dependencies: [{ feature: "parent", enabled: false }] }),
        feature("orphan", [], { dependencies: [{ feature: "nobody" }] }),
        feature("of-off", [], { dependencies: [{ feature: "off" }] }),
        feature("painted", [], { dependencies: [{ feature: "color", variants: ["red"] }] }),
        feature("unpainted", [], {
          dependencies: [{ feature: "color", variants: ["disabled", "blue"] }],
        }),
        feature("bare", [], { dependencies: [{ feature: "plain", variants: ["disabled"] }] }),
        feature("plain", []),
        feature("color", [], { variants }),
      ],
      segments: [
        {
          id: 3,
          name: "eu",
          constraints: [{ contextName: "country", operator: "IN", values: ["DE", "FR"] }],
        },
      ],
    });
    expect(valueOf(made, "parent", { country: "DE" })).toBe(true);
    expect(valueOf(made, "child", { country: "DE", plan: "pro" })).toBe(true);
    expect(valueOf(made, "child", { country: "US", plan: "pro" })).toBe(false);
    expect(valueOf(made, "inverse", { country: "US" })).toBe(true);
    expect(valueOf(made, "inverse", { country: "FR" })).toBe(false);
    expect(valueOf(made, "of-off", {})).toBe(false);
    expect(valueOf(made, "orphan", {})).toBe(false);
    expect(valueOf(made, "bare", {})).toBe(true);
    expect(valueOf(made, "unpainted", {})).toBe(true);
    expect(having(made, "unpainted")).toEqual(having(made, "color.variant", 2));
    expect(having(made, "painted")).toEqual(having(made, "color.variant", 1));
    expect(leftOut(made)).toEqual([
      expect.stringMatching(/^orphan: it depends on "nobody", which is not in the export/),
    ]);
  });

  test("an export of the admin UI: one of its environments, tags, order of strategies", () => {
    const exported = {
      features: [
        { name: "a", description: "First", type: "release", project: "web", stale: true },
        { name: "gone", archived: true },
      ],
      featureStrategies: [
        {
          featureName: "a",
          name: "userWithId",
          parameters: { userIds: "anna" },
          constraints: [],
          sortOrder: 2,
        },
        {
          featureName: "a",
          name: "default",
          disabled: true,
          parameters: {},
          constraints: [],
          sortOrder: 1,
        },
      ],
      featureEnvironments: [
        { featureName: "a", environment: "production", enabled: true, variants: [] },
      ],
      featureTags: [
        { featureName: "a", tagType: "simple", tagValue: "x" },
        { featureName: "a", tagType: "simple", tagValue: "y" },
      ],
      dependencies: [{ feature: "a", dependencies: [] }],
      segments: [{ id: 1, name: "eu" }],
    };
    const made = converted("unleash", exported);
    expect(made.configs).toMatchObject([
      {
        name: "a",
        description: "First",
        tags: {
          "unleash-type": "release",
          "unleash-project": "web",
          "unleash-stale": "true",
          "unleash-simple": "x, y",
        },
      },
    ]);
    expect(valueOf(made, "a", { targetingKey: "anna" })).toBe(true);
    expect(valueOf(made, "a", { targetingKey: "ben" })).toBe(false);
    expect(leftOut(made)).toEqual(["gone: it is archived"]);
    const both = {
      ...exported,
      featureEnvironments: [
        ...exported.featureEnvironments,
        { featureName: "a", environment: "test", enabled: false },
      ],
    };
    expect(refused("unleash", both)).toBe(
      "Name one by --environment: the export has production, test",
    );
    expect(refused("unleash", both, { environment: "prod" })).toMatch(
      /no "prod" in the export: it has production, test/,
    );
    expect(
      valueOf(converted("unleash", both, { environment: "test" }), "a", { targetingKey: "anna" }),
    ).toBeUndefined();
  });

  test("what is none of these is refused, with its place", () => {
    expect(refused("unleash", {})).toMatch(/^\/features: .+\/api\/client\/features/);
    expect(refused("unleash", features({ enabled: true }))).toMatch(/^\/features\/0\/name: /);
    expect(refused("unleash", features(feature("a", []), feature("a", [])))).toMatch(
      /^\/features\/1: Feature "a" comes twice/,
    );
    expect(refused("unleash", features({ name: "a", strategies: {} }))).toMatch(
      /^\/features\/0\/strategies: Give a list/,
    );
  });
});

// --- documents ---------------------------------------------------------------------------------------------------------------

describe("properties and .env", () => {
  test("properties are kept as they are written, under the file's name", () => {
    const text = "# limits\nlimits.max = 100\ngreeting: Gr\\u00fc\\u00df \\\n   dich\n";
    const made = converted("properties", text, {}, "Application.properties");
    expect(made.configs).toMatchObject([
      { name: "application", format: "properties", content: text },
    ]);
    expect(refused("properties", "a=1\n\na=2\n", {}, "x.properties")).toMatch(
      /^x\.properties:3: Give each name once/,
    );
    expect(refused("properties", "a=1", {}, "")).toMatch(/--name/);
    expect(contents(converted("properties", "a=1", { name: "app" }, ""))).toEqual({ app: "a=1" });
    expect(refused("properties", "a=1", { name: "App" })).toMatch(/^--name: /);
    const latin = { path: "x", bytes: Buffer.from([0x61, 0x3d, 0xfc]) };
    expect(() => convertExport("properties", [latin], plain)).toThrow(/x: Give it as UTF-8/);
  });

  test(".env becomes one JSON object", () => {
    const text = [
      "# database",
      'export DATABASE_URL="postgres://db/shop?x=1#y" # main',
      "DB_PASSWORD='it''",
      "PLAIN = hello world # greeting",
      "HASH=a#b",
      'ESCAPED="a\\nb\\t\\"c\\" \\$X"',
      "PEM=`line 1",
      "  line 2` # end",
      "EMPTY=",
      "PATHS=$HOME/bin",
      "",
    ].join("\r\n");
    const fixed = text.replace("'it''", "'it'");
    const made = converted("env", fixed, {}, ".env.production");
    expect(made.configs).toMatchObject([{ name: "env.production", format: "json" }]);
    expect(JSON.parse(contents(made)["env.production"] ?? "")).toEqual({
      DATABASE_URL: "postgres://db/shop?x=1#y",
      DB_PASSWORD: "it",
      PLAIN: "hello world",
      HASH: "a#b",
      ESCAPED: 'a\nb\t"c" $X',
      PEM: "line 1\n  line 2",
      EMPTY: "",
      PATHS: "$HOME/bin",
    });
    expect(notes(made)).toEqual([
      expect.stringMatching(/^PATHS: refers to other variables/),
      expect.stringMatching(/^: "DB_PASSWORD" may be secret: .+--secret/),
    ]);
    expect(refused("env", text, {}, ".env")).toMatch(/^\.env:3: End the line after the closing '/);
    expect(refused("env", "A=1\nB='x\n", {}, ".env")).toBe(".env:2: Close the value of B with '");
    expect(refused("env", "A=1\n-\nA=2\n", {}, ".env")).toBe(
      ".env:2: Give NAME=value, or a comment after #\n.env:3: A was given on line 1 already: leave one",
    );
  });
});

describe("apollo", () => {
  const application = {
    appId: "shop",
    clusterName: "default",
    namespaceName: "application",
    comment: "Of the app",
    format: "properties",
    isPublic: false,
    items: [
      { key: "", value: "", comment: "# limits" },
      { key: "batch", value: "100", comment: "how many" },
      { key: "a b", value: " x\ny" },
    ],
  };

  test("a namespace becomes a config", () => {
    const made = converted("apollo", [
      application,
      {
        ...application,
        clusterName: "eu",
        namespaceName: "FX.rules.yml",
        format: "yml",
        isPublic: true,
        items: [{ key: "content", value: "a: 1\n" }],
      },
      {
        ...application,
        namespaceName: "page.xml",
        format: "xml",
        items: [{ key: "content", value: "<a/>" }],
      },
      { ...application, namespaceName: "empty.json", format: "json", items: [] },
      { ...application, namespaceName: "odd", format: "ini" },
    ]);
    expect(made.configs).toMatchObject([
      {
        name: "application",
        format: "properties",
        description: "Of the app",
        content: "# limits\n# how many\nbatch=100\na\\ b=\\ x\\ny\n",
        tags: { "apollo-app": "shop" },
      },
      {
        name: "fx.rules.yml",
        format: "yaml",
        content: "a: 1\n",
        tags: { "apollo-cluster": "eu", "apollo-key": "FX.rules.yml" },
      },
      { name: "page.xml", format: "text", content: "<a/>" },
    ]);
    expect(notes(made)).toEqual([expect.stringMatching(/^FX\.rules\.yml: is public: .+`extends`/)]);
    expect(leftOut(made)).toEqual([
      "empty.json: a namespace that has no content",
      'odd: a namespace of format "ini"',
    ]);
  });

  test("one namespace, the latest release, what the portal exports, and the items in its zip", () => {
    expect(contents(converted("apollo", application))["application"]).toContain("batch=100");
    const release = {
      appId: "shop",
      clusterName: "default",
      namespaceName: "application",
      configurations: { timeout: "3000" },
    };
    expect(contents(converted("apollo", release))).toEqual({ application: "timeout=3000\n" });
    expect(contents(converted("apollo", "a = 1\n", {}, "application.properties"))).toEqual({
      application: "a = 1\n",
    });
    expect(
      contents(converted("apollo", application.items, {}, "shop+default+application.properties"))[
        "application"
      ],
    ).toContain("batch=100");
    expect(
      contents(converted("apollo", [{ key: "content", value: "{}" }], {}, "shop+default+x.json")),
    ).toEqual({ "x.json": "{}" });
    expect(refused("apollo", [{ items: [] }])).toMatch(/^\/0\/namespaceName: /);
    expect(refused("apollo", { namespaceName: "a" })).toMatch(/^\/items: /);
    expect(refused("apollo", { namespaceName: "a", items: [{ key: 1 }] })).toMatch(/^\/items\/0: /);
    expect(refused("apollo", [application, application])).toMatch(
      /"application" and "application" would both/,
    );
  });

  test("items keep their names and values, whatever is in them", () => {
    const item = fc.record({
      key: units(12).filter((text) => text !== "" && loneSurrogateAt(text) === -1),
      value: fc
        .string({ unit: "binary", maxLength: 20 })
        .filter((text) => loneSurrogateAt(text) === -1),
      comment: fc.string({ maxLength: 20 }),
    });
    fc.assert(
      fc.property(fc.uniqueArray(item, { selector: ({ key }) => key }), (items) => {
        const { value, errors } = prepareContent("properties", items.map(propertiesOf).join(""));
        expect(errors).toEqual([]);
        expect(value).toEqual(Object.fromEntries(items.map(({ key, value: text }) => [key, text])));
      }),
    );
  });
});

/** A zip as Java writes it, but for what `change` does to it. */
function zipOf(files: Readonly<Record<string, string>>, method = 8): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const [path, text] of Object.entries(files)) {
    const name = Buffer.from(path);
    const content = Buffer.from(text);
    const packed = method === 8 ? deflateRawSync(content) : content;
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt16LE(method, 8);
    local.writeUInt16LE(name.length, 26);
    const entry = Buffer.alloc(46);
    entry.writeUInt32LE(0x02014b50, 0);
    entry.writeUInt16LE(method, 10);
    entry.writeUInt32LE(crc32(content), 16);
    entry.writeUInt32LE(packed.length, 20);
    entry.writeUInt32LE(content.length, 24);
    entry.writeUInt16LE(name.length, 28);
    entry.writeUInt32LE(at, 42);
    directory.push(entry, name);
    parts.push(local, name, packed);
    at += local.length + name.length + packed.length;
  }
  const length = directory.reduce((sum, part) => sum + part.length, 0);
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(Object.keys(files).length, 8);
  end.writeUInt16LE(Object.keys(files).length, 10);
  end.writeUInt32LE(length, 12);
  end.writeUInt32LE(at, 16);
  return Buffer.concat([...parts, ...directory, end]);
}

describe("nacos", () => {
  const files = {
    "DEFAULT_GROUP/user-service.yaml": "a: 1\n",
    "PAY/gateway": "x=1\n",
    "PAY/cipher-aes-key": "geheim",
    "PAY/notes": "hello",
    ".metadata.yml": [
      "metadata:",
      "- {appName: pay, dataId: gateway, desc: The gateway, group: PAY, type: properties}",
      "- {dataId: user-service.yaml, group: DEFAULT_GROUP, type: yaml}",
      "- {dataId: lost, group: PAY, type: text}",
      "",
    ].join("\n"),
  };
  const nacos = (bytes: Uint8Array): Imported =>
    convertExport("nacos", [{ path: "export.zip", bytes }], plain);

  test("a zip and its folder give the same configs", () => {
    const made = nacos(zipOf(files));
    expect(made.configs).toMatchObject([
      {
        name: "pay.gateway",
        format: "properties",
        description: "The gateway",
        tags: { "nacos-key": "PAY/gateway", "nacos-app": "pay" },
      },
      { name: "pay.notes", format: "text", content: "hello" },
      { name: "user-service.yaml", format: "yaml", content: "a: 1\n" },
    ]);
    expect(leftOut(made)).toEqual([
      expect.stringMatching(/^PAY\/cipher-aes-key: it is encrypted in Nacos .+--secret/),
      expect.stringMatching(/^PAY\/lost: .+its content is not there/),
    ]);
    const folder = Object.entries(files).map(([path, text]) => fileOf(text, path));
    expect(convertExport("nacos", folder, plain)).toEqual(made);
    expect(nacos(zipOf(files, 0))).toEqual(made);
  });

  test("what does not stand in a group, and former metadata, are told", () => {
    const made = nacos(
      zipOf({ a: "1", "G/b/c": "2", "G/": "", "G/d": "3", ".meta.yml": "G.d.app=x" }),
    );
    expect(contents(made)).toEqual({ "g.d": "3" });
    expect(leftOut(made)).toEqual([
      expect.stringMatching(/^a: a file that does not stand/),
      expect.stringMatching(/^G\/b\/c: /),
      expect.stringMatching(/^\.meta\.yml: the applications/),
    ]);
  });

  test("a zip that is cut off or changed anywhere is refused or gives what it held", () => {
    const whole = zipOf({ "G/a": "x".repeat(200), "G/b": "y" });
    const good = nacos(whole);
    for (let length = 0; length < whole.length; length += 1)
      if (length === 0 || length >= 22)
        expect(() => nacos(whole.subarray(0, length)), `cut at ${length}`).toThrow(ImportError);
    let refusals = 0;
    for (let at = 0; at < whole.length; at += 1) {
      const changed = Buffer.from(whole);
      changed[at] = (changed[at] as number) ^ 0x81;
      try {
        expect(contents(nacos(changed))).toBeDefined();
      } catch (error) {
        expect(error).toBeInstanceOf(ImportError);
        refusals += 1;
      }
    }
    expect(refusals).toBeGreaterThan(whole.length / 3);
    expect(contents(good)).toEqual({ "g.a": "x".repeat(200), "g.b": "y" });
  });

  test("a zip that would unpack to more than an import may have is refused before it does", () => {
    const bomb = zipOf({ "G/a": "0".repeat(1_000_000) });
    const entry = bomb.indexOf(Buffer.from([0x50, 0x4b, 1, 2]));
    const claimed = Buffer.from(bomb);
    claimed.writeUInt32LE(2 ** 31, entry + 24);
    expect(() => nacos(claimed)).toThrow(/more than 64 MiB/);
    // It says less than it holds.
    const lying = Buffer.from(bomb);
    lying.writeUInt32LE(10, entry + 24);
    expect(() => nacos(lying)).toThrow(/"G\/a" in it is damaged/);
    const locked = Buffer.from(bomb);
    locked.writeUInt16LE(1, entry + 8);
    expect(() => nacos(locked)).toThrow(/is encrypted/);
    expect(() => converted("etcd", "")).toThrow(ImportError);
    expect(() => convertExport("etcd", [{ path: "a.zip", bytes: bomb }], plain)).toThrow(
      /Unpack the zip/,
    );
  });
});

// --- reading and writing -----------------------------------------------------------------------------------------------------

test("options that mean nothing to a system are refused", () => {
  expect(refused("etcd", etcd(), { name: "a" })).toMatch(/^Leave --name out: etcd has names/);
  expect(refused("apollo", [], { name: "a" })).toMatch(/^Leave --name out: namespaces have names/);
  expect(refused("etcd", etcd(), { environment: "a" })).toMatch(/^Leave --environment out/);
  expect(refused("env", "A=1", { prefix: "a" })).toMatch(/^Leave --prefix out/);
});

test("what looks like a secret by its name is told once, and tags that cannot be are", () => {
  const pairs = ["db/password", "api-key/1", "auth.token", "a/secret", "b/secret", "c/secret", "d"];
  expect(
    notes(
      converted(
        "consul",
        pairs.map((key) => pair(key, "")),
      ),
    ),
  ).toEqual([expect.stringMatching(/^: "db\/password", .+, "b\/secret" and 1 more may be secret/)]);
  const tagged = converted("unleash", {
    features: [{ name: "a" }],
    featureEnvironments: [],
    featureTags: [
      { featureName: "a", tagType: 'a"b', tagValue: "x" },
      { featureName: "a", tagType: "long", tagValue: "x".repeat(2_000) },
      { featureName: "a", tagType: "team", tagValue: "web" },
    ],
  });
  expect(tagged.configs[0]?.tags).toEqual({ "unleash-team": "web" });
  expect(leftOut(tagged)).toEqual([
    expect.stringMatching(/^a: the tag "unleash-a\\"b", as it cannot be named so/),
    expect.stringMatching(/^a: the tag "unleash-long", as it has more than 1024/),
  ]);
});

describe("an export is read", () => {
  async function inFolder(run: (folder: string) => Promise<void>): Promise<void> {
    const folder = await mkdtemp(join(tmpdir(), "conflux-import-test-"));
    try {
      await run(folder);
    } finally {
      await rm(folder, { recursive: true });
    }
  }

  test("from a folder without its links, which only Nacos has", () =>
    inFolder(async (folder) => {
      await mkdir(join(folder, "G"));
      await writeFile(join(folder, "G", "a"), "1");
      await symlink("/etc/hostname", join(folder, "G", "link"));
      const files = await readExport("nacos", folder);
      expect(files.map(({ path }) => path)).toEqual(["G/a"]);
      expect(contents(convertExport("nacos", files, plain))).toEqual({ "g.a": "1" });
      await expect(readExport("etcd", folder)).rejects.toThrow(
        /is a folder, which only --from nacos takes/,
      );
      await expect(readExport("etcd", join(folder, "none"))).rejects.toThrow(/^Cannot read .+none/);
    }));

  test("of 64 MiB at most, and written over nothing", () =>
    inFolder(async (folder) => {
      const path = join(folder, "large");
      await writeFile(path, "");
      await truncate(path, importBytesMax + 1);
      await expect(readExport("etcd", path)).rejects.toThrow(/Import 64 MiB at most at once/);
      await expect(readExport("nacos", folder)).rejects.toThrow(/Import 64 MiB at most at once/);
      await expect(refuseExisting(folder, ["other", "large"])).rejects.toThrow(
        /There is .+large already/,
      );
      await expect(refuseExisting(folder, ["other"])).resolves.toBeUndefined();
      // What has no size, and what leads to where nothing is yet.
      await expect(readExport("env", "/dev/zero")).rejects.toThrow(/Import 64 MiB at most/);
      await symlink(join(folder, "elsewhere"), join(folder, "link"));
      await expect(refuseExisting(folder, ["link"])).rejects.toThrow(/There is .+link already/);
    }));
});

// --- all of them -------------------------------------------------------------------------------------------------------------

test("what would grow beyond measure is refused before it does", () => {
  // Each of these would take minutes.
  const blanks = `A=x${" ".repeat(300_000)}y\n`;
  expect(JSON.parse(contents(converted("env", blanks, {}, ".env"))["env"] ?? "")).toEqual({
    A: `x${" ".repeat(300_000)}y`,
  });
  const constraint = { contextName: "a", operator: "IN", values: ["b"] };
  const segments = Array.from({ length: 5_000 }, () => 1);
  const parent = {
    features: [{ name: "a", enabled: true, strategies: [{ name: "default", segments }] }],
    segments: [{ id: 1, constraints: Array.from({ length: 1_000 }, () => constraint) }],
  };
  expect(refused("unleash", parent)).toMatch(/250000 constraints at most/);
  const features = Array.from({ length: 5_000 }, (_, i) => ({ name: `f${i}` }));
  const many = {
    features,
    featureEnvironments: features.map(({ name }) => ({ featureName: name, enabled: true })),
    featureStrategies: features.map(({ name }) => ({ featureName: name, name: "default" })),
  };
  expect(converted("unleash", many).configs.length).toBe(5_000);
});

test("whatever an export holds, it is converted or refused by an ImportError", () => {
  const words = fc.constantFrom(
    ..."header kvs key value lease flags state variants targeting $evaluators $ref features strategies constraints".split(
      " ",
    ),
    ..."name segments parameters rollout weight overrides dependencies items namespaceName format metadata".split(
      " ",
    ),
    "__proto__",
    "constructor",
  );
  const { value } = fc.letrec((tie) => ({
    value: fc.oneof(
      { maxDepth: 5, withCrossShrink: true },
      fc.oneof(
        fc.constantFrom<unknown>(null, true, 0, -1, 1e300, "", "a", "ENABLED", "YQ=="),
        words,
      ),
      fc.array(tie("value"), { maxLength: 4 }),
      fc.dictionary(words, tie("value"), { maxKeys: 5, noNullPrototype: true }),
    ),
  }));
  const shaped = fc.oneof(
    value,
    value.map((kvs) => ({ header: {}, kvs })),
    fc.dictionary(words, value).map((flags) => ({ flags, $evaluators: flags })),
    fc.array(fc.dictionary(words, value)).map((features) => ({
      features: features.map((one, i) => ({ name: `f${i}`, enabled: true, ...one })),
      segments: features,
    })),
    fc.array(fc.dictionary(words, value)).map((items) => [{ namespaceName: "n", items }]),
  );
  fc.assert(
    fc.property(
      fc.oneof(
        shaped.map((one) => JSON.stringify(one)),
        fc.string(),
      ),
      (text) => {
        for (const system of importSystems)
          try {
            for (const { name, format, content } of converted(system, text, {}, "G/a").configs) {
              expect(isName(name)).toBe(true);
              expect(prepareContent(format, content).errors).toEqual([]);
            }
          } catch (error) {
            expect(error).toBeInstanceOf(ImportError);
          }
      },
    ),
    { numRuns: 500 },
  );
});

test("a manifest of an import holds what was imported, to the last sign", async () => {
  const texts = [
    "",
    " ",
    "\n",
    "a\r\nb",
    "- x",
    "yes",
    "1e3",
    "\ttab ",
    "x\n".repeat(3_000),
    "\u2028",
    "a: b # c",
  ];
  const imported = converted("consul", [
    ...texts.map((text, i) => pair(`App/key_${i}`, text)),
    pair("limits.json", '{"max": 12345678901234567890}'),
    // Too long to stand within the manifest: each needs a file of its own.
    ...["long", "long.json", "long.json.json"].map((key) =>
      pair(key, JSON.stringify({ key, text: "x".repeat(3_000) })),
    ),
  ]);
  const folder = await mkdtemp(join(tmpdir(), "conflux-import-test-"));
  try {
    await writeFiles(folder, manifestOf({ tenant: "shop", namespace: "prod" }, imported));
    const [manifest] = await readManifests(folder);
    expect(manifest?.tenant).toBe("shop");
    expect(manifest?.namespaces[0]?.namespace).toBe("prod");
    const held = manifest?.namespaces[0]?.configs.map(({ name, format, tags, variants }) => ({
      name,
      format,
      tags,
      content: variants.get("content")?.content,
    }));
    expect(held).toEqual(
      imported.configs.map(({ name, format, tags, content }) => ({ name, format, tags, content })),
    );
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("laid out JSON is the same JSON", () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      expect(JSON.parse(laidOut(value))).toEqual(JSON.parse(JSON.stringify(value)));
    }),
  );
  expect(laidOut({ a: [], b: ["x", 1], c: {} })).toBe('{ "a": [], "b": ["x", 1], "c": {} }');
  expect(laidOut([["x".repeat(60)], ["y".repeat(60)]])).toBe(
    `[\n  ["${"x".repeat(60)}"],\n  ["${"y".repeat(60)}"]\n]`,
  );
});
