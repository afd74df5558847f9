/**
 * What must hold for every sequence of commands. Sequences are random and short-sighted: few names, few texts, so that
 * most commands meet something.
 */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Action, Command, ConfigAction, Content } from "../../src/machine/command.ts";
import { apply, dryRun } from "../../src/machine/machine.ts";
import * as queries from "../../src/machine/queries.ts";
import type { ConfigRow, TenantMeta } from "../../src/machine/rows.ts";
import { nextTimeOf } from "../../src/model/evaluate.ts";
import type { ReleaseRule } from "../../src/model/release.ts";
import { MemoryState } from "./memory_state.ts";

function contentOf(text: string): Content {
  return { text, hash: `sha256:${text}`, bytes: text.length };
}

const target = fc.oneof(
  { weight: 3, arbitrary: fc.constant({ namespace: "app", name: "a" }) },
  {
    weight: 1,
    arbitrary: fc.record({
      namespace: fc.constantFrom("app", "base"),
      name: fc.constantFrom("a", "b", "Bad"),
    }),
  },
);
const content = fc.constantFrom("x", "yy", "zzz").map(contentOf);
const number = fc.integer({ min: 0, max: 5 });
const instant = fc.integer({ min: 0, max: 1_200 }).map((ms) => new Date(ms).toISOString());
const rules: fc.Arbitrary<ReleaseRule[]> = fc.array(
  fc.record(
    {
      id: fc.constantFrom("r1", "r2"),
      match: fc.constantFrom({}, { region: "eu" }),
      rollout: fc.record({ percentage: fc.constantFrom(10, 50), by: fc.constant("user") }),
      version: fc.integer({ min: 1, max: 4 }),
      // Within the times of the commands.
      from: instant,
      until: instant,
    },
    { requiredKeys: ["id", "match", "version"] },
  ),
  { maxLength: 2 },
);
const precondition = fc.oneof(
  { weight: 6, arbitrary: fc.constant({}) },
  { weight: 1, arbitrary: fc.constant({ ifNoneMatch: "*" as const }) },
  { weight: 1, arbitrary: fc.constant({ ifMatch: "*" as const }) },
  { weight: 1, arbitrary: fc.record({ ifMatch: fc.array(fc.integer({ min: 1, max: 20 })) }) },
);

const bare: fc.Arbitrary<ConfigAction>[] = [
  target.map((t) => ({ op: "config.put", ...t })),
  fc.tuple(target, content).map(([t, c]) => ({ op: "config.put", ...t, content: c })),
  fc
    .tuple(target, fc.constantFrom("", "d"))
    .map(([t, description]) => ({ op: "config.put", ...t, description })),
  target.map((t) => ({ op: "config.delete", ...t })),
  target.map((t) => ({ op: "config.undelete", ...t })),
  fc
    .tuple(target, content)
    .map(([t, c]) => ({ op: "version.create", ...t, content: c, schemaHash: null })),
  fc
    .tuple(target, content)
    .map(([t, c]) => ({ op: "publish", ...t, content: c, schemaHash: null })),
  fc
    .tuple(target, fc.array(number, { maxLength: 2 }))
    .map(([t, versions]) => ({ op: "version.delete", ...t, versions })),
  fc
    .tuple(target, rules, fc.option(number))
    .map(([t, list, fallback]) => ({ op: "release.put", ...t, rules: list, default: fallback })),
  target.map((t) => ({ op: "rollback", ...t })),
  fc.tuple(target, number).map(([t, toRelease]) => ({ op: "rollback", ...t, toRelease })),
  fc
    .record({
      namespace: fc.constantFrom("app", "base"),
      extends: fc.constantFrom("app", "base", null),
      protected: fc.boolean(),
    })
    .map((options) => ({ op: "namespace.put", ...options })),
];
const configAction: fc.Arbitrary<ConfigAction> = fc
  .tuple(fc.oneof(...bare), precondition)
  .map(([action, condition]) => ({ ...action, ...condition }));

const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 10, arbitrary: configAction },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant("transaction" as const),
      if: fc.array(
        fc.tuple(target, fc.boolean()).map(([t, absent]) => ({ ...t, absent })),
        {
          maxLength: 1,
        },
      ),
      then: fc.array(configAction, { maxLength: 4 }),
    }),
  },
  { weight: 2, arbitrary: fc.constant({ op: "schedule.pass" as const }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom("k1", "k2").map((id) => ({
      op: "key.create" as const,
      key: { id, kind: "write" as const, hash: id },
    })),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom("k1", "k2").map((id) => ({ op: "key.delete" as const, id })),
  },
);

const command: fc.Arbitrary<Command> = fc.record(
  {
    at: fc.integer({ min: 0, max: 1_000 }),
    actor: fc.oneof(
      { weight: 5, arbitrary: fc.constant({ kind: "root" as const, keyId: "root" }) },
      { weight: 1, arbitrary: fc.constant({ kind: "write" as const, keyId: "k1" }) },
    ),
    idempotency: fc.record({
      key: fc.constantFrom("i1", "i2", "i3"),
      fingerprint: fc.constantFrom("f1", "f2"),
    }),
    action,
  },
  { requiredKeys: ["at", "actor", "action"] },
);
const commands = fc.array(command, { maxLength: 40 });

function initialised(): MemoryState {
  const state = new MemoryState();
  const quotas = { versionsPerConfig: 4, configs: 3 };
  apply(state, {
    at: 0,
    actor: { kind: "system", keyId: "system" },
    action: { op: "tenant.init", tenant: "acme", quotas, keys: [] },
  });
  return state;
}

/** Counts recomputed from the rows, and what rows must say of each other. */
function checkRows(state: MemoryState): void {
  const meta: TenantMeta = queries.getMeta(state);
  const rows = state.dump();
  const count = (prefix: string): number => rows.filter(([key]) => key.startsWith(prefix)).length;
  expect(count("ns/")).toBe(meta.namespaces);
  expect(count("key/")).toBe(meta.keys);
  expect(count("del/")).toBe(meta.deleted);
  expect(count("cfg/")).toBe(meta.configs + meta.deleted);
  expect(count("txt/")).toBe(count("ver/"));
  expect(count("aud/")).toBe(meta.audits);
  expect(count("hist/")).toBe(meta.revision);
  let bytes = 0;
  for (const [key, text] of rows)
    if (key.startsWith("txt/")) bytes += (JSON.parse(text) as string).length;
  expect(bytes).toBe(meta.bytes);
  const due = rows.filter(([key]) => key.startsWith("due/")).map(([key]) => key.split("/"));
  expect(meta.dueAt ?? null).toBe(due.length === 0 ? null : Number(due[0]?.[1]));
  expect(due.map(([, at, namespace, name]) => `${namespace}/${name} ${Number(at)}`).sort()).toEqual(
    rows
      .filter(([key]) => key.startsWith("cfg/"))
      .map(([, text]) => JSON.parse(text) as ConfigRow)
      .filter((row) => row.deletedAt === null && row.release > 0)
      .map((row) => ({ row, at: nextTimeOf(row.rules, row.judgedAt as number) }))
      .filter(({ at }) => at !== null)
      .map(({ row, at }) => `${row.namespace}/${row.name} ${at}`)
      .sort(),
  );
  for (const namespace of ["app", "base"])
    for (const name of ["a", "b"]) {
      const config = queries.getConfigRow(state, namespace, name);
      if (config === null) {
        expect(count(`ver/${namespace}/${name}/`)).toBe(0);
        continue;
      }
      expect(count(`ver/${namespace}/${name}/`)).toBe(config.versions);
      expect(config.versions).toBeLessThanOrEqual(4);
      const named = config.rules.map(({ version }) => version);
      if (config.default !== null) named.push(config.default);
      for (const version of named)
        expect(queries.getVersion(state, namespace, name, version)).not.toBe(null);
      if (config.release > 0) {
        const { rules: list, default: fallback } = config;
        expect(queries.getRelease(state, namespace, name, config.release)).toMatchObject({
          rules: list,
          default: fallback,
        });
      }
    }
}

describe("apply()", () => {
  test("is deterministic: two replicas have the same outcomes and rows, byte for byte", () => {
    fc.assert(
      fc.property(commands, (list) => {
        const [one, two] = [initialised(), initialised()];
        for (const each of list) {
          const decoded = JSON.parse(JSON.stringify(each)) as Command;
          expect(JSON.stringify(apply(one, each))).toBe(JSON.stringify(apply(two, decoded)));
        }
        expect(one.dump()).toEqual(two.dump());
      }),
    );
  });

  test("raises the revision by one per commit; history is gapless; time never goes back", () => {
    fc.assert(
      fc.property(commands, (list) => {
        const state = initialised();
        let revision = 1;
        for (const each of list) {
          const { outcome, commit } = apply(state, each);
          if (commit !== null) {
            revision++;
            expect(commit.revision).toBe(revision);
            expect(commit.changes.length).toBeGreaterThan(0);
            expect(queries.getHistoryRow(state, revision)).toEqual(commit);
          }
          if (!outcome.ok || outcome.replayed !== true) expect(outcome.revision).toBe(revision);
          expect(queries.getMeta(state).revision).toBe(revision);
        }
        const rows = queries.historyAfter(state, 0) ?? [];
        expect(rows.map((row) => row.revision)).toEqual(rows.map((_, i) => i + 1));
        rows.forEach((row, i) => expect(row.at).toBeGreaterThanOrEqual(rows[i - 1]?.at ?? 0));
        checkRows(state);
      }),
      { numRuns: 300 },
    );
  });

  test("changes nothing at all when it refuses, and only what dryRun() foretold", () => {
    fc.assert(
      fc.property(commands, (list) => {
        const state = initialised();
        for (const each of list) {
          const before = state.dump();
          const foretold = dryRun(state, each);
          expect(state.dump()).toEqual(before);
          const { outcome, commit } = apply(state, each);
          expect(outcome).toEqual(foretold);
          if (!outcome.ok) expect(state.dump()).toEqual(before);
          if (!outcome.ok || outcome.replayed === true) expect(commit).toBe(null);
        }
      }),
      { numRuns: 50 },
    );
  });

  test("gives the first outcome to every repeat of a command with an idempotency key", () => {
    fc.assert(
      fc.property(commands, fc.nat(), (list, seed) => {
        const state = initialised();
        const first = new Map<string, { command: Command; answer: string }>();
        list.forEach((each, i) => {
          const own = { key: `c${i}`, fingerprint: "f" };
          const keyed: Command = {
            ...each,
            actor: { kind: "root", keyId: "root" },
            idempotency: own,
          };
          const { outcome } = apply(state, keyed);
          if (outcome.ok) first.set(own.key, { command: keyed, answer: JSON.stringify(outcome) });
          const earlier = [...first.values()][seed % Math.max(first.size, 1)];
          if (earlier === undefined) return;
          const before = state.dump();
          const repeat = apply(state, earlier.command);
          expect(JSON.stringify(repeat.outcome)).toBe(
            earlier.answer.replace(/}$/, ',"replayed":true}'),
          );
          expect(state.dump()).toEqual(before);
        });
      }),
      { numRuns: 50 },
    );
  });
});

// --- a naive model -----------------------------------------------------------------------------------------------------

interface ModelConfig {
  versions: Map<number, string>;
  latest: number;
  releases: {
    rules: readonly {
      match: object;
      version: number;
      rolls: boolean;
      from: string | undefined;
      until: string | undefined;
    }[];
    default: number | null;
  }[];
  isDeleted: boolean;
}

/** What a tenant should do, written for clearness: no rows, no revisions, only what a client sees. */
class Model {
  configs = new Map<string, ModelConfig>();
  bases = new Map<string, string | null>();
  guarded = new Set<string>();

  /** True when it takes the action. */
  apply(one: ConfigAction): boolean {
    if (one.op === "namespace.put") {
      for (let at = one.extends ?? null; at !== null; at = this.bases.get(at) ?? null)
        if (at === one.namespace) return false;
      this.bases.set(one.namespace, one.extends ?? null);
      if (one.protected === true) this.guarded.add(one.namespace);
      else this.guarded.delete(one.namespace);
      return true;
    }
    if (one.name === "Bad") return false;
    const id = `${one.namespace}/${one.name}`;
    const config = this.configs.get(id);
    if (one.op === "config.undelete") {
      if (config === undefined) return false;
      config.isDeleted = false;
      return true;
    }
    if (one.op === "config.put") {
      if (config !== undefined && !config.isDeleted)
        return one.content === undefined || config.versions.get(config.latest) === one.content.text;
      const fresh: ModelConfig = { versions: new Map(), latest: 0, releases: [], isDeleted: false };
      this.configs.set(id, fresh);
      if (one.content !== undefined) {
        this.add(fresh, one.content.text);
        fresh.releases.push({ rules: [], default: 1 });
      }
      return true;
    }
    if (config === undefined || config.isDeleted) return false;
    const inForce = config.releases.at(-1) ?? { rules: [], default: null };
    const named = new Set([...inForce.rules.map(({ version }) => version), inForce.default]);
    switch (one.op) {
      case "config.delete":
        if (this.guarded.has(one.namespace)) return false;
        config.isDeleted = true;
        return true;
      case "version.create":
        this.add(config, one.content.text);
        return true;
      case "publish": {
        const version = this.add(config, one.content.text);
        if (inForce.default !== version || config.releases.length === 0)
          config.releases.push({ rules: inForce.rules, default: version });
        return true;
      }
      case "version.delete":
        if (one.versions.length === 0) return false;
        if (one.versions.some((v) => !config.versions.has(v) || named.has(v))) return false;
        for (const version of one.versions) config.versions.delete(version);
        return true;
      case "release.put":
        if (new Set(one.rules.map((rule) => rule.id)).size < one.rules.length) return false;
        if (one.default !== null && !config.versions.has(one.default)) return false;
        if (one.rules.some((rule) => !config.versions.has(rule.version))) return false;
        config.releases.push({
          rules: one.rules.map((rule) => ({
            match: rule.match,
            version: rule.version,
            rolls: rule.rollout !== undefined,
            from: rule.from,
            until: rule.until,
          })),
          default: one.default,
        });
        return true;
      case "rollback": {
        const present = config.releases.length;
        const to = one.toRelease ?? present - 1;
        const older = to < present ? config.releases[to - 1] : undefined;
        if (older === undefined) return false;
        const needed = [...older.rules.map(({ version }) => version), older.default];
        if (needed.some((version) => version !== null && !config.versions.has(version)))
          return false;
        config.releases.push(older);
        return true;
      }
      default:
        return false;
    }
  }

  add(config: ModelConfig, text: string): number {
    if (config.versions.get(config.latest) === text) return config.latest;
    config.versions.set(++config.latest, text);
    return config.latest;
  }

  /** For a client without the label that rollouts go by: rules with one never hold it. */
  value(namespace: string, name: string, region: string | undefined, now: number): string | null {
    for (let at: string | null = namespace; at !== null; at = this.bases.get(at) ?? null) {
      const config = this.configs.get(`${at}/${name}`);
      const release = config?.releases.at(-1);
      if (config === undefined || release === undefined || config.isDeleted) continue;
      const rule = release.rules.find(
        (one) =>
          !one.rolls &&
          ("region" in one.match ? region === one.match.region : true) &&
          (one.from === undefined || Date.parse(one.from) <= now) &&
          (one.until === undefined || Date.parse(one.until) > now),
      );
      const version = rule === undefined ? release.default : rule.version;
      return version === null ? null : (config.versions.get(version) as string);
    }
    return null;
  }
}

describe("the machine and a naive model", () => {
  test("agree on what is taken and on what every client gets", () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(...bare), { maxLength: 60 }), (list) => {
        const state = new MemoryState();
        // The leader passes schedules after each action: then each rule holds exactly within its times.
        let now = 0;
        const run = (one: Action) =>
          apply(state, { at: now, actor: { kind: "system", keyId: "system" }, action: one })
            .outcome;
        run({ op: "tenant.init", tenant: "acme", quotas: {}, keys: [] });
        const model = new Model();
        for (const one of list) {
          now += 20;
          const outcome = run(one);
          expect(run({ op: "schedule.pass" }).ok).toBe(true);
          expect([one.op, outcome.ok]).toEqual([one.op, model.apply(one)]);
          for (const namespace of ["app", "base"])
            for (const name of ["a", "b"])
              for (const region of ["eu", undefined]) {
                const labels = region === undefined ? {} : { region };
                const value = queries.effective(state, namespace, name, labels);
                expect(value?.text ?? null).toBe(model.value(namespace, name, region, now));
              }
        }
      }),
      { numRuns: 300 },
    );
  });
});
