import { describe, expect, test } from "vitest";
import { callBackLevel, semanticsNow } from "../../src/machine/command.ts";
import type { Action, Actor, Command, Content, RejectCode } from "../../src/machine/command.ts";
import { deletedKept, releasesKept } from "../../src/machine/configs.ts";
import {
  actionsPerTransactionMax,
  apply,
  auditsMax,
  dryRun,
  historyMax,
  idempotencyAgeMs,
} from "../../src/machine/machine.ts";
import type { Applied } from "../../src/machine/machine.ts";
import * as queries from "../../src/machine/queries.ts";
import type { ResultOf } from "../../src/machine/results.ts";
import { auditKey, metaKey, under } from "../../src/machine/keys.ts";
import { settledReplicas, type AuditRow, type NewKey } from "../../src/machine/rows.ts";
import { AuditChain } from "../../src/model/audit.ts";
import { MemoryState } from "./memory_state.ts";

const system: Actor = { kind: "system", keyId: "system" };
const root: Actor = { kind: "root", keyId: "r1" };

function key(id: string, kind: NewKey["kind"], more: Partial<NewKey> = {}): NewKey {
  return { id, kind, hash: `hash-${id}`, ...more };
}

function content(text: string): Content {
  return { text, hash: `sha256:${text}`, bytes: text.length };
}

class Tenant {
  readonly state = new MemoryState();
  at = 1_000;

  constructor(name: string | null = "acme", keys: readonly NewKey[] = [], quotas = {}) {
    if (name !== null) this.ok({ op: "tenant.init", tenant: name, quotas, keys });
  }

  apply(action: Action, more: Partial<Command> = {}): Applied {
    return apply(this.state, { at: this.at++, actor: system, action, ...more });
  }

  ok<A extends Action>(action: A, more: Partial<Command> = {}) {
    const before = queries.getMeta(this.state).revision;
    const { outcome, commit } = this.apply(action, more);
    if (!outcome.ok) throw new Error(`refused: ${outcome.code}: ${outcome.detail}`);
    if (outcome.replayed !== true)
      expect(outcome.revision).toBe(before + (commit === null ? 0 : 1));
    return { ...outcome, commit, result: outcome.result as ResultOf<A["op"]> };
  }

  /** Refused with this code, and not one byte of the state has changed. */
  no(code: RejectCode, action: Action, more: Partial<Command> = {}): string {
    const before = this.state.dump();
    const { outcome, commit } = this.apply(action, more);
    if (outcome.ok) throw new Error(`accepted: ${action.op}`);
    expect([outcome.code, outcome.detail]).toEqual([code, outcome.detail]);
    expect(outcome.detail).toMatch(/^[A-Z].*[^.]$/);
    expect(commit).toBe(null);
    expect(this.state.dump()).toEqual(before);
    return outcome.detail;
  }

  put(name: string, text?: string, more: object = {}) {
    return this.ok({
      op: "config.put",
      namespace: "app",
      name,
      ...(text === undefined ? {} : { content: content(text) }),
      ...more,
    });
  }

  publish(name: string, text: string, more: object = {}) {
    const action = { ...target(name), content: content(text), schemaHash: null, ...more };
    return this.ok({ op: "publish", ...action });
  }

  value(name: string, labels = {}, namespace = "app"): string | undefined {
    return queries.effective(this.state, namespace, name, labels)?.text;
  }
}

function target(name: string) {
  return { namespace: "app", name };
}

function version(name: string, text: string, more: object = {}) {
  return {
    op: "version.create" as const,
    ...target(name),
    content: content(text),
    schemaHash: null,
    ...more,
  };
}

describe("tenant.init", () => {
  test("is the first command, and changes nothing the second time", () => {
    const tenant = new Tenant(null);
    tenant.no("not-found", { op: "config.put", namespace: "app", name: "a" });
    const init = {
      op: "tenant.init",
      tenant: "acme",
      quotas: {},
      keys: [key("k1", "admin")],
    } as const;
    expect(tenant.ok(init)).toMatchObject({ revision: 1, created: true, result: { epoch: 1 } });
    expect(queries.getKey(tenant.state, "k1")?.hash).toBe("hash-k1");
    expect(tenant.ok(init)).toMatchObject({ revision: 1, created: false, commit: null });
    tenant.no("conflict", { ...init, tenant: "other" });
  });
  test("refuses names outside the grammar", () => {
    new Tenant(null).no("invalid", { op: "tenant.init", tenant: "A/b", quotas: {}, keys: [] });
  });
});

describe("config.put", () => {
  test("creates with content: version 1, released as default", () => {
    const tenant = new Tenant();
    const { created, result, commit } = tenant.put("limits", "one", { description: "d" });
    expect(created).toBe(true);
    expect(result.config).toMatchObject({ latestVersion: 1, release: 1, default: 1, revision: 2 });
    expect(result.version).toMatchObject({
      version: 1,
      hash: "sha256:one",
      bytes: 3,
      by: "system",
    });
    expect(result.release).toMatchObject({ release: 1, default: 1, rules: [] });
    expect(commit?.changes).toEqual([
      { type: "put", namespace: "app", name: "limits" },
      { type: "version", namespace: "app", name: "limits", version: 1, hash: "sha256:one" },
      {
        type: "release",
        namespace: "app",
        name: "limits",
        release: 1,
        version: 1,
        hash: "sha256:one",
      },
    ]);
    expect(tenant.value("limits")).toBe("one");
    expect(queries.getNamespace(tenant.state, "app")).toMatchObject({ extends: null });
  });
  test("changes metadata, once", () => {
    const tenant = new Tenant();
    tenant.put("a");
    const change = { description: "x", tags: { team: "core" }, format: "yaml" };
    expect(tenant.put("a", undefined, change)).toMatchObject({ created: false, revision: 3 });
    expect(tenant.put("a", undefined, change)).toMatchObject({ revision: 3, commit: null });
    expect(queries.getConfig(tenant.state, "app", "a")).toMatchObject(change);
  });
  test("keeps the format once there are versions", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    tenant.no("conflict", { op: "config.put", ...target("a"), format: "yaml" });
    tenant.put("a", undefined, { format: "json" });
  });
  test("answers a creation that is sent twice, and never loses content silently", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    expect(tenant.put("a", "one").commit).toBe(null);
    tenant.no("conflict", { op: "config.put", ...target("a"), content: content("two") });
  });
  test("honours preconditions", () => {
    const tenant = new Tenant();
    const put = { op: "config.put", ...target("a"), description: "x" } as const;
    tenant.no("precondition-failed", { ...put, ifMatch: "*" });
    tenant.ok({ ...put, ifNoneMatch: "*" });
    tenant.no("precondition-failed", { ...put, ifNoneMatch: "*" });
    tenant.no("precondition-failed", { ...put, ifMatch: [1, 7] });
    tenant.ok({ ...put, description: "y", ifMatch: [1, 2] });
    tenant.ok({ ...put, description: "z", ifMatch: "*" });
  });
  test("refuses names outside the grammar before they become keys", () => {
    const tenant = new Tenant();
    for (const name of ["", "A", "a/b", "..", "a".repeat(129)]) {
      tenant.no("invalid", { op: "config.put", namespace: "app", name });
      tenant.no("invalid", { op: "config.put", namespace: name, name: "a" });
    }
  });
});

describe("versions", () => {
  test("have numbers that are never given again", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    expect(tenant.ok(version("a", "two")).result.version.version).toBe(2);
    expect(tenant.ok(version("a", "two"))).toMatchObject({ created: false, commit: null });
    tenant.ok({ op: "version.delete", ...target("a"), versions: [2] });
    expect(queries.getText(tenant.state, "app", "a", 2)).toBe(null);
    expect(queries.getConfig(tenant.state, "app", "a")).toMatchObject({
      latestVersion: 2,
      latestHash: null,
    });
    expect(
      queries.latestVersion(tenant.state, queries.getConfig(tenant.state, "app", "a")!),
    ).toMatchObject({ version: 1 });
    expect(tenant.ok(version("a", "two")).result.version.version).toBe(3);
    expect(tenant.ok(version("a", "three")).result.version.version).toBe(4);
    expect(tenant.value("a")).toBe("one");
  });
  test("are found by number and by hash", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    tenant.ok(version("a", "two"));
    tenant.ok(version("a", "one"));
    const { state } = tenant;
    expect(queries.getVersion(state, "app", "a", 2)?.hash).toBe("sha256:two");
    expect(queries.getVersion(state, "app", "a", "sha256:one")?.version).toBe(3);
    expect(queries.getVersion(state, "app", "a", "sha256:none")).toBe(null);
    expect(queries.getVersion(state, "app", "a", 9)).toBe(null);
  });
  test("are not deleted while a release names them", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    tenant.ok(version("a", "two"));
    tenant.ok(version("a", "three"));
    const rules = [{ id: "r", match: {}, version: 2 }];
    tenant.ok({ op: "release.put", ...target("a"), rules, default: 1 });
    const remove = { op: "version.delete", ...target("a") } as const;
    tenant.no("in-use", { ...remove, versions: [1] });
    tenant.no("in-use", { ...remove, versions: [3, 2] });
    tenant.no("not-found", { ...remove, versions: [9] });
    tenant.no("invalid", { ...remove, versions: [] });
    expect(tenant.ok({ ...remove, versions: [3, 3] }).result.deleted).toEqual([3]);
  });
  test("were checked with the schema and format that the config still has", () => {
    const tenant = new Tenant();
    tenant.put("a", undefined, { schema: { text: "{}", hash: "s1" } });
    tenant.no("conflict", version("a", "one"));
    tenant.no("conflict", version("a", "one", { schemaHash: "s0" }));
    tenant.no("conflict", version("a", "one", { schemaHash: "s1", format: "yaml" }));
    const made = tenant.ok(version("a", "one", { schemaHash: "s1", format: "json" }));
    expect(made.result.version.schemaHash).toBe("s1");
    tenant.put("a", undefined, { schema: null });
    tenant.ok(version("a", "two"));
  });
  test("beyond the quota the oldest that is not in force goes", () => {
    const tenant = new Tenant("acme", [], { versionsPerConfig: 3 });
    tenant.put("a", "v1");
    for (const text of ["v2", "v3", "v4", "v5"]) tenant.ok(version("a", text));
    const kept = queries.listVersions(tenant.state, "app", "a").items.map((one) => one.version);
    expect(kept).toEqual([5, 4, 1]);
    expect(queries.getConfig(tenant.state, "app", "a")?.versions).toBe(3);
    const rules = [4, 5].map((number) => ({ id: `r${number}`, match: {}, version: number }));
    tenant.ok({ op: "release.put", ...target("a"), rules, default: 1 });
    tenant.no("quota-exceeded", version("a", "v6"));
    // What a release held back is the first to go once no release names it.
    tenant.ok({ op: "release.put", ...target("a"), rules: [], default: 5 });
    tenant.ok(version("a", "v6"));
    tenant.ok(version("a", "v7"));
    const left = queries.listVersions(tenant.state, "app", "a").items.map((one) => one.version);
    expect(left).toEqual([7, 6, 5]);
  });
});

describe("releases", () => {
  test("choose by rules, else the default", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    tenant.ok(version("a", "two"));
    const rules = [{ id: "eu", match: { region: "eu" }, version: 2 }];
    expect(
      tenant.ok({ op: "release.put", ...target("a"), rules, default: null }).result.release.release,
    ).toBe(2);
    expect(tenant.value("a", { region: "eu" })).toBe("two");
    expect(tenant.value("a", { region: "us" })).toBe(undefined);
    const { rule, version: number } = queries.explainEffective(tenant.state, "app", "a", {
      region: "eu",
    });
    expect([rule, number]).toEqual(["eu", 2]);
  });
  test("name only versions that exist, each rule once, within the quota", () => {
    const tenant = new Tenant("acme", [], { rulesPerRelease: 2 });
    tenant.put("a", "one");
    const put = { op: "release.put", ...target("a"), default: 1 } as const;
    const rule = (id: string, number: number) => ({ id, match: {}, version: number });
    tenant.no("conflict", { ...put, rules: [], default: 2 });
    tenant.no("conflict", { ...put, rules: [rule("a", 2)] });
    tenant.no("conflict", { ...put, rules: [], default: 1.5 });
    tenant.no("invalid", { ...put, rules: [rule("a", 1), rule("a", 1)] });
    tenant.no("quota-exceeded", { ...put, rules: ["a", "b", "c"].map((id) => rule(id, 1)) });
    tenant.no("not-found", { ...put, name: "none", rules: [] });
  });
  test("give a rollout its salt at creation and keep it through edits", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    const release = (percentage: number, id = "canary") =>
      tenant.ok({
        op: "release.put",
        ...target("a"),
        rules: [{ id, match: {}, rollout: { percentage, by: "user" }, version: 1 }],
        default: 1,
      }).result.release.rules[0]?.rollout;
    const first = release(10);
    expect(first).toEqual({
      percentage: 10,
      by: "user",
      salt: "3.canary",
      algorithm: "murmur3-100k",
    });
    expect(release(20)?.salt).toBe("3.canary");
    expect(release(20, "other")?.salt).toBe("5.other");
    tenant.publish("a", "two");
    expect(queries.getConfig(tenant.state, "app", "a")?.rules[0]?.rollout?.salt).toBe("5.other");
  });
  test("publish makes version and release in one revision and keeps the rules", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    const rules = [{ id: "eu", match: { region: "eu" }, version: 1 }];
    tenant.ok({ op: "release.put", ...target("a"), rules, default: 1 });
    const { result, commit } = tenant.publish("a", "two", { message: "m" });
    expect(commit?.changes.map(({ type }) => type)).toEqual(["version", "release"]);
    expect(result).toMatchObject({
      version: { version: 2 },
      release: { release: 3, rules, message: "m" },
    });
    expect(tenant.value("a", { region: "eu" })).toBe("one");
    expect(tenant.value("a")).toBe("two");
    expect(tenant.publish("a", "two")).toMatchObject({ created: false, commit: null });
    tenant.no("not-found", {
      op: "publish",
      ...target("b"),
      content: content("x"),
      schemaHash: null,
    });
  });
  test("publish releases a version that was only created", () => {
    const tenant = new Tenant();
    tenant.put("a");
    expect(tenant.value("a")).toBe(undefined);
    tenant.ok(version("a", "one"));
    const { result, commit } = tenant.publish("a", "one");
    expect(result).toMatchObject({ version: { version: 1 }, release: { release: 1, default: 1 } });
    expect(commit?.changes.map(({ type }) => type)).toEqual(["release"]);
  });
  test("rollback is a new release equal to an older one", () => {
    const tenant = new Tenant();
    tenant.put("a");
    const rollback = { op: "rollback", ...target("a") } as const;
    tenant.no("conflict", rollback);
    tenant.publish("a", "one");
    tenant.no("conflict", rollback);
    tenant.publish("a", "two");
    tenant.publish("a", "three");
    expect(tenant.ok(rollback).result.release).toMatchObject({
      release: 4,
      default: 2,
      rollbackOf: 2,
    });
    expect(tenant.value("a")).toBe("two");
    expect(tenant.ok({ ...rollback, toRelease: 1 }).result.release.default).toBe(1);
    tenant.no("conflict", { ...rollback, toRelease: 5 });
    tenant.no("not-found", { ...rollback, toRelease: 9 });
    tenant.no("not-found", { ...rollback, toRelease: 0 });
    tenant.ok({ op: "version.delete", ...target("a"), versions: [3] });
    tenant.no("conflict", { ...rollback, toRelease: 3 });
    expect(queries.listReleases(tenant.state, "app", "a", { limit: 2 })).toMatchObject({
      items: [{ release: 5 }, { release: 4 }],
      next: expect.any(String) as string,
    });
  });
  test("are kept by count", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    for (let i = 0; i < releasesKept + 5; i++)
      tenant.ok({ op: "release.put", ...target("a"), rules: [], default: 1, message: `${i}` });
    const all = queries.listReleases(tenant.state, "app", "a", { limit: 1_000 }).items;
    expect(all.length).toBe(releasesKept);
    expect(all.at(-1)?.release).toBe(7);
    expect(queries.getRelease(tenant.state, "app", "a")?.release).toBe(releasesKept + 6);
  });
});

describe("deletion", () => {
  test("is soft, and can be undone", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    const remove = { op: "config.delete", ...target("a") } as const;
    tenant.no("precondition-failed", { ...remove, ifMatch: [1] });
    tenant.ok(remove);
    expect(tenant.value("a")).toBe(undefined);
    tenant.no("not-found", remove);
    tenant.no("not-found", version("a", "two"));
    expect(queries.listConfigs(tenant.state, "app").items).toEqual([]);
    expect(queries.listConfigs(tenant.state, "app", { deleted: true }).items.length).toBe(1);
    const undelete = { op: "config.undelete", ...target("a") } as const;
    expect(tenant.ok(undelete).commit?.changes[0]?.type).toBe("undelete");
    expect(tenant.ok(undelete).commit).toBe(null);
    expect(tenant.value("a")).toBe("one");
    tenant.no("not-found", { ...undelete, name: "b" });
    expect(queries.getMeta(tenant.state)).toMatchObject({ configs: 1, deleted: 0, bytes: 3 });
  });
  test("gives up the name to a new config, which inherits nothing", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    tenant.publish("a", "two");
    const { uid } = queries.getConfig(tenant.state, "app", "a")!;
    tenant.ok({ op: "config.delete", ...target("a") });
    tenant.ok({ op: "config.put", ...target("a"), ifNoneMatch: "*" });
    const config = queries.getConfig(tenant.state, "app", "a")!;
    expect(config).toMatchObject({ latestVersion: 0, release: 0, versions: 0 });
    expect(config.uid).not.toBe(uid);
    expect(queries.listVersions(tenant.state, "app", "a").items).toEqual([]);
    expect(queries.listReleases(tenant.state, "app", "a").items).toEqual([]);
    expect(queries.getText(tenant.state, "app", "a", 1)).toBe(null);
    expect(queries.getMeta(tenant.state)).toMatchObject({ configs: 1, deleted: 0, bytes: 0 });
  });
  test("is refused in a protected namespace", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    tenant.ok({ op: "namespace.put", namespace: "app", protected: true });
    tenant.no("protected", { op: "config.delete", ...target("a") });
    tenant.ok({ op: "namespace.put", namespace: "app", protected: false });
    tenant.ok({ op: "config.delete", ...target("a") });
  });
  test("keeps the last ones only", () => {
    const tenant = new Tenant();
    for (let i = 0; i < deletedKept + 2; i++) {
      tenant.put(`c${i}`, "x");
      tenant.ok({ op: "config.delete", ...target(`c${i}`) });
    }
    expect(queries.getMeta(tenant.state)).toMatchObject({
      configs: 0,
      deleted: deletedKept,
      bytes: deletedKept,
    });
    tenant.no("not-found", { op: "config.undelete", ...target("c1") });
    tenant.ok({ op: "config.undelete", ...target("c2") });
  });
});

describe("namespaces", () => {
  test("are looked up along what they extend", () => {
    const tenant = new Tenant();
    const put = (namespace: string, name: string, text?: string) =>
      tenant.ok({
        op: "config.put",
        namespace,
        name,
        ...(text === undefined ? {} : { content: content(text) }),
      });
    put("base", "a", "base-a");
    put("base", "b", "base-b");
    tenant.ok({ op: "namespace.put", namespace: "mid", extends: "base" });
    tenant.ok({ op: "namespace.put", namespace: "app", extends: "mid" });
    put("app", "a", "app-a");
    expect(tenant.value("a")).toBe("app-a");
    expect(tenant.value("b")).toBe("base-b");
    // A config that is only being prepared does not hide what is inherited.
    put("app", "b");
    expect(tenant.value("b")).toBe("base-b");
    const all = queries.effectiveAll(tenant.state, "app", {});
    expect(all.map(({ namespace, name }) => `${namespace}/${name}`)).toEqual(["app/a", "base/b"]);
    expect(queries.namespaceChain(tenant.state, "app")).toEqual(["app", "mid", "base"]);
    tenant.ok({ op: "namespace.put", namespace: "app", extends: null });
    expect(tenant.value("b")).toBe(undefined);
  });
  test("never extend themselves, nor too many", () => {
    const tenant = new Tenant();
    const put = (namespace: string, base: string) =>
      ({ op: "namespace.put", namespace, extends: base }) as const;
    tenant.no("conflict", put("a", "a"));
    tenant.ok(put("a", "b"));
    tenant.ok(put("b", "c"));
    tenant.no("conflict", put("c", "a"));
    tenant.no("invalid", put("c", "C/"));
    for (let i = 0; i < 6; i++) tenant.ok(put(i === 0 ? "c" : `n${i - 1}`, `n${i}`));
    expect(queries.namespaceChain(tenant.state, "a").length).toBe(9);
    tenant.no("invalid", put("n5", "n6"));
    tenant.no("invalid", put("x", "a"));
  });
  test("answer a repeat and honour preconditions", () => {
    const tenant = new Tenant();
    const put = { op: "namespace.put", namespace: "a", protected: true } as const;
    expect(tenant.ok({ ...put, ifNoneMatch: "*" }).created).toBe(true);
    expect(tenant.ok(put)).toMatchObject({ created: false, commit: null });
    tenant.no("precondition-failed", { ...put, ifNoneMatch: "*" });
    tenant.no("precondition-failed", { ...put, ifMatch: [1] });
    tenant.ok({ ...put, protected: false, ifMatch: [2] });
  });
});

describe("quotas", () => {
  test("bound configs, contents and keys", () => {
    const tenant = new Tenant("acme", [], { configs: 1, contentBytes: 3, keys: 1, bytes: 5 });
    tenant.put("a", "one");
    tenant.no("quota-exceeded", { op: "config.put", ...target("b") });
    tenant.no("quota-exceeded", version("a", "four"));
    tenant.no("quota-exceeded", version("a", "xyz"));
    tenant.ok(version("a", "xy"));
    tenant.ok({ op: "key.create", key: key("k1", "read") });
    tenant.no("quota-exceeded", { op: "key.create", key: key("k2", "read") });
    tenant.ok({ op: "config.delete", ...target("a") });
    tenant.put("b");
    tenant.no("quota-exceeded", { op: "config.undelete", ...target("a") });
    const raised = { op: "tenant.quotas", quotas: { configs: 2 } } as const;
    expect(tenant.ok(raised).result.quotas).toMatchObject({ configs: 2, keys: 1_000 });
    expect(tenant.ok(raised).commit).toBe(null);
    tenant.ok({ op: "config.undelete", ...target("a") });
  });
});

describe("transactions", () => {
  test("do all in one revision, each action seeing those before", () => {
    const tenant = new Tenant();
    const { result, revision, commit } = tenant.ok({
      op: "transaction",
      if: [{ ...target("a"), absent: true }],
      then: [
        { op: "config.put", ...target("a"), content: content("one") },
        { op: "publish", ...target("a"), content: content("two"), schemaHash: null },
        { op: "config.put", namespace: "other", name: "b" },
      ],
    });
    expect([result.results.length, revision, commit?.changes.length]).toEqual([3, 2, 6]);
    expect(tenant.value("a")).toBe("two");
    expect(queries.getConfig(tenant.state, "app", "a")?.uid).not.toBe(
      queries.getConfig(tenant.state, "other", "b")?.uid,
    );
    expect(queries.listAudit(tenant.state, { since: 1 }).items.map(({ action }) => action)).toEqual(
      ["config.put", "publish", "config.put"],
    );
  });
  test("do nothing when one condition or action fails, and say which", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    const act = { op: "config.put", ...target("b") } as const;
    const refused = (
      conditions: Extract<Action, { op: "transaction" }>["if"],
      then: Extract<Action, { op: "transaction" }>["then"],
    ) => {
      const before = tenant.state.dump();
      const { outcome } = tenant.apply({ op: "transaction", if: conditions, then });
      expect(tenant.state.dump()).toEqual(before);
      return outcome;
    };
    expect(
      refused(
        [
          { ...target("a"), revision: 2 },
          { ...target("a"), absent: true },
        ],
        [act],
      ),
    ).toMatchObject({
      code: "precondition-failed",
      place: { list: "if", index: 1 },
    });
    expect(refused([{ ...target("x"), revision: 2 }], [act])).toMatchObject({
      code: "precondition-failed",
    });
    expect(refused([{ ...target("a"), revision: 1 }], [act])).toMatchObject({
      code: "precondition-failed",
    });
    expect(refused([], [act, { op: "config.delete", ...target("x") }])).toMatchObject({
      code: "not-found",
      place: { list: "then", index: 1 },
    });
    // What one action deleted, the next does not find.
    tenant.ok(version("a", "two"));
    const gone = { op: "version.delete", ...target("a"), versions: [2] } as const;
    const release = { op: "release.put", ...target("a"), rules: [], default: 2 } as const;
    expect(refused([], [gone, release])).toMatchObject({ code: "conflict" });
    expect(refused([], [gone, gone])).toMatchObject({ code: "not-found" });
    tenant.ok({ op: "version.delete", ...target("a"), versions: [2] });
    expect(refused([], [])).toMatchObject({ code: "invalid" });
    const many = Array.from({ length: actionsPerTransactionMax + 1 }, () => act);
    expect(refused([], many)).toMatchObject({ code: "invalid" });
    tenant.ok({ op: "transaction", if: [{ ...target("a"), revision: 4 }], then: [act] });
  });
});

describe("idempotency", () => {
  const once = { idempotency: { key: "k", fingerprint: "f" } };
  test("gives the first answer again, and refuses the key for another request", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    const first = tenant.ok(version("a", "two"), once);
    tenant.ok(version("a", "three"));
    const { commit: _, ...answer } = first;
    expect(tenant.apply(version("a", "two"), once)).toEqual({
      outcome: { ...answer, replayed: true },
      commit: null,
    });
    expect(queries.getConfig(tenant.state, "app", "a")?.latestVersion).toBe(3);
    tenant.no("idempotency-mismatch", version("a", "two"), {
      idempotency: { key: "k", fingerprint: "g" },
    });
    tenant.no("invalid", version("a", "two"), { idempotency: { key: "a b", fingerprint: "g" } });
  });
  test("is kept also for what changed nothing", () => {
    const tenant = new Tenant();
    tenant.put("a", "one");
    expect(tenant.ok(version("a", "one"), once)).toMatchObject({ created: false, revision: 2 });
    tenant.ok(version("a", "two"));
    expect(tenant.ok(version("a", "one"), once)).toMatchObject({ replayed: true, created: false });
    expect(queries.getConfig(tenant.state, "app", "a")?.latestVersion).toBe(2);
  });
  test("is not kept for a refusal: the same key may succeed later", () => {
    const tenant = new Tenant();
    tenant.no("not-found", version("a", "one"), once);
    tenant.put("a");
    expect(tenant.ok(version("a", "one"), once).created).toBe(true);
  });
  test("ends after a day of the tenant's time", () => {
    const tenant = new Tenant();
    tenant.put("a");
    tenant.ok(version("a", "one"), once);
    tenant.at += idempotencyAgeMs;
    tenant.ok(
      { op: "config.put", ...target("a"), description: "x" },
      once.idempotency && {
        idempotency: { key: "k", fingerprint: "other" },
      },
    );
    const records = tenant.state.dump().filter(([name]) => name.startsWith("id"));
    expect(records.map(([name]) => name)).toEqual(["idem/k", "idq/0000000000000002"]);
  });
});

describe("time", () => {
  test("never goes back within a tenant", () => {
    const tenant = new Tenant();
    tenant.ok({ op: "config.put", ...target("a") }, { at: 9_000 });
    const { commit } = tenant.ok({ op: "config.put", ...target("b") }, { at: 10 });
    expect(commit?.at).toBe(9_000);
  });
});

describe("actors", () => {
  const tenant = new Tenant("acme", [
    key("admin", "admin"),
    key("write", "write"),
    key("scoped", "write", { namespaces: ["app"] }),
    key("local", "admin", { namespaces: ["app"] }),
    key("read", "read"),
    key("client", "client"),
    key("brief", "write", { expiresAt: 50_000 }),
  ]);
  tenant.put("a", "one");
  const put = (namespace: string): Action => ({ op: "config.put", namespace, name: "n" });
  const options = (namespace: string, base: string | null = null): Action => ({
    op: "namespace.put",
    namespace,
    extends: base,
  });
  const create = (namespaces?: string[]): Action => ({
    op: "key.create",
    key: key("new", "read", namespaces === undefined ? {} : { namespaces }),
  });
  const quotas: Action = { op: "tenant.quotas", quotas: { configs: 5 } };
  const cases: [id: string, action: Action, expected: RejectCode | "ok"][] = [
    ["admin", put("app"), "ok"],
    ["admin", options("app"), "ok"],
    ["admin", create(), "ok"],
    ["admin", { op: "key.delete", id: "read" }, "ok"],
    ["admin", quotas, "forbidden"],
    ["admin", { op: "tenant.init", tenant: "acme", quotas: {}, keys: [] }, "forbidden"],
    ["write", put("app"), "ok"],
    ["write", put("other"), "ok"],
    ["write", options("app"), "forbidden"],
    ["write", create(), "forbidden"],
    ["write", { op: "key.delete", id: "read" }, "forbidden"],
    ["scoped", put("app"), "ok"],
    ["scoped", put("other"), "forbidden"],
    [
      "scoped",
      { op: "transaction", if: [], then: [put("app"), put("other")] as never },
      "forbidden",
    ],
    [
      "scoped",
      {
        op: "transaction",
        if: [{ namespace: "other", name: "x", absent: true }],
        then: [put("app")] as never,
      },
      "forbidden",
    ],
    ["scoped", { op: "transaction", if: [], then: [put("app")] as never }, "ok"],
    ["local", options("app"), "ok"],
    ["local", options("app", "other"), "forbidden"],
    ["local", options("other"), "forbidden"],
    ["local", create(), "forbidden"],
    ["local", create(["app", "other"]), "forbidden"],
    ["local", create(["app"]), "ok"],
    ["local", { op: "key.delete", id: "scoped" }, "ok"],
    ["local", { op: "key.delete", id: "admin" }, "forbidden"],
    ["read", put("app"), "forbidden"],
    ["client", put("app"), "forbidden"],
    ["none", put("app"), "unauthorized"],
    ["../meta", put("app"), "unauthorized"],
  ];
  test.each(cases)("%s: %j → %s", (id, action, expected) => {
    const kind = queries.getKey(tenant.state, id)?.kind ?? "write";
    const outcome = dryRun(tenant.state, { at: 2_000, actor: { kind, keyId: id }, action });
    expect(outcome.ok ? "ok" : outcome.code).toBe(expected);
  });
  test("a key of another kind than it says, an expired and a deleted one are none", () => {
    const as = (keyId: string, kind: Actor["kind"], at: number) =>
      dryRun(tenant.state, { at, actor: { keyId, kind }, action: put("app") });
    expect(as("read", "admin", 2_000)).toMatchObject({ code: "unauthorized" });
    expect(as("brief", "write", 49_999)).toMatchObject({ ok: true });
    expect(as("brief", "write", 50_000)).toMatchObject({ code: "unauthorized" });
    expect(dryRun(tenant.state, { at: 1, actor: root, action: quotas })).toMatchObject({
      ok: true,
    });
  });
  test("keys are made once, without the hash in the answer", () => {
    const own = new Tenant();
    const made = own.ok({ op: "key.create", key: key("k1", "client", { description: "d" }) });
    expect(made.result.key).toEqual({
      id: "k1",
      kind: "client",
      namespaces: null,
      expiresAt: null,
      description: "d",
      createdAt: 1_001,
    });
    own.no("already-exists", { op: "key.create", key: key("k1", "read") });
    own.no("invalid", { op: "key.create", key: key("a/b", "read") });
    own.no("invalid", { op: "key.create", key: key("k2", "read", { expiresAt: 1 }) });
    own.no("invalid", { op: "key.create", key: key("k2", "read", { namespaces: [] }) });
    own.ok({ op: "key.delete", id: "k1" });
    own.no("not-found", { op: "key.delete", id: "k1" });
    own.no("not-found", { op: "key.delete", id: "" });
    expect(queries.getMeta(own.state).keys).toBe(0);
  });
});

describe("the directory", () => {
  const create = (tenant: string, nodes: readonly string[] = ["n1", "n2", "n3"]) =>
    ({ op: "directory.create", tenant, quotas: {}, nodes, adminKey: key("k1", "admin") }) as const;

  test("takes many tenants at once, all or none", () => {
    const directory = new Tenant("_system");
    const { op: _one, ...beta } = create("beta", ["n2"]);
    const { op: _two, ...acme } = create("acme");
    const made = directory.ok({ op: "directory.createMany", tenants: [acme, beta] });
    expect(made.result.tenants).toEqual([
      { tenant: "acme", group: 2, adminKeyId: "k1", nodes: ["n1", "n2", "n3"] },
      { tenant: "beta", group: 3, adminKeyId: "k1", nodes: ["n2"] },
    ]);
    const { op: _three, ...gamma } = create("gamma");
    const revision = queries.getMeta(directory.state).revision;
    directory.no("already-exists", { op: "directory.createMany", tenants: [gamma, acme] });
    directory.no("already-exists", { op: "directory.createMany", tenants: [gamma, gamma] });
    directory.no("invalid", { op: "directory.createMany", tenants: [] });
    expect(queries.getTenant(directory.state, "gamma")).toBe(null);
    expect(queries.getMeta(directory.state)).toMatchObject({ revision, tenants: 2 });
  });

  test("numbers groups and replicas, and never gives a number twice", () => {
    const directory = new Tenant("_system");
    const { state } = directory;
    expect(directory.ok(create("acme")).result.tenant).toMatchObject({
      group: 2,
      nextReplica: 4,
      adminKeyId: "k1",
      placement: {
        replicas: [
          { node: "n1", id: 1 },
          { node: "n2", id: 2 },
          { node: "n3", id: 3 },
        ],
      },
    });
    directory.no("already-exists", create("acme"));
    expect(directory.ok(create("beta", ["n1"])).result.tenant.group).toBe(3);
    expect(queries.tenantOfGroup(state, 3)).toBe("beta");
    directory.ok({ op: "directory.delete", tenant: "beta", purge: true });
    expect(queries.getTenant(state, "beta")).toBe(null);
    expect(queries.tenantOfGroup(state, 3)).toBe(null);
    const again = directory.ok(create("beta", ["n1"])).result.tenant;
    expect(again.group).toBe(4);
    expect(again.incarnation).toBeGreaterThan(1);
    expect(queries.listTenants(state).items.map(({ tenant }) => tenant)).toEqual(["acme", "beta"]);
    expect(queries.getMeta(state).tenants).toBe(2);
    // However many were purged: the number of tenants is not the next group's.
    expect(directory.ok(create("gamma")).result.tenant.group).toBe(5);
    expect(directory.ok(create("delta")).result.tenant.group).toBe(6);
  });
  test("refuses what could not be placed", () => {
    const directory = new Tenant("_system");
    directory.no("invalid", create("Acme"));
    directory.no("invalid", create("acme", []));
    directory.no("invalid", create("acme", ["n1", "n1"]));
    directory.no("invalid", create("acme", ["n/1"]));
    directory.no("invalid", create("_system"));
  });
  test("deletes softly, undeletes and updates", () => {
    const directory = new Tenant("_system");
    directory.ok(create("acme"));
    const update = { op: "directory.update", tenant: "acme", quotas: { keys: 5 } } as const;
    expect(directory.ok(update).result.tenant.quotas).toEqual({ keys: 5 });
    expect(directory.ok(update).commit).toBe(null);
    const remove = { op: "directory.delete", tenant: "acme", purge: false } as const;
    directory.ok(remove);
    directory.no("tenant-deleted", remove);
    directory.no("tenant-deleted", update);
    directory.no("already-exists", create("acme"));
    expect(queries.listTenants(directory.state, { deleted: false }).items).toEqual([]);
    directory.ok({ op: "directory.undelete", tenant: "acme" });
    expect(directory.ok({ op: "directory.undelete", tenant: "acme" }).commit).toBe(null);
    directory.no("not-found", { ...remove, tenant: "none" });
  });
  test("moves in two steps, and gives no replica's number twice", () => {
    const directory = new Tenant("_system");
    const { state } = directory;
    directory.ok(create("acme"));
    const move = (generation: number, nodes: readonly string[], lost: readonly number[] = []) =>
      ({ op: "directory.move", tenant: "acme", nodes, lost, generation }) as const;
    const settle = (generation: number) =>
      ({ op: "directory.settle", tenant: "acme", generation }) as const;
    const states = () =>
      queries
        .getTenant(state, "acme")
        ?.placement.replicas.map(({ node, id, state: is }) => `${node}:${id}:${is ?? "voter"}`);
    const moving = () => [...state.range(under("move"))].map(([, tenant]) => tenant);
    directory.no("invalid", move(0, []));
    directory.no("invalid", move(0, ["n1", "n1"]));
    directory.no("invalid", move(0, ["n/1"]));
    directory.no("conflict", move(1, ["n1"]));
    expect(directory.ok(move(0, ["n1", "n2", "n3"])).commit).toBe(null);
    directory.ok(move(0, ["n1", "n2", "n4"]));
    expect(states()).toEqual(["n1:1:voter", "n2:2:voter", "n3:3:leaving", "n4:4:joining"]);
    expect(moving()).toEqual(["acme"]);
    // Back again before anybody acted: n3 is still itself.
    directory.ok(move(1, ["n1", "n2", "n3"]));
    expect(states()).toEqual(["n1:1:voter", "n2:2:voter", "n3:3:joining", "n4:4:leaving"]);
    directory.no("conflict", settle(1));
    directory.ok(settle(2));
    expect(directory.ok(settle(2)).commit).toBe(null);
    expect(states()).toEqual(["n1:1:voter", "n2:2:voter", "n3:3:voter"]);
    expect(moving()).toEqual([]);
    // Gone is gone: the node gets another replica, and so does one whose disk was lost.
    directory.ok(move(2, ["n1", "n2", "n4"], [2]));
    expect(states()).toEqual([
      "n1:1:voter",
      "n2:2:lost",
      "n3:3:leaving",
      "n2:5:joining",
      "n4:6:joining",
    ]);
    directory.ok(move(3, ["n1", "n2", "n3"]));
    expect(states()).toEqual([
      "n1:1:voter",
      "n2:2:lost",
      "n3:3:joining",
      "n2:5:joining",
      "n4:6:leaving",
    ]);
    // Also when its node was not wanted meanwhile.
    directory.ok(move(4, ["n1", "n3"]));
    directory.ok(move(5, ["n1", "n2", "n3"]));
    expect(states()?.filter((text) => text.startsWith("n2"))).toEqual([
      "n2:2:lost",
      "n2:5:joining",
    ]);
    expect(queries.getTenant(state, "acme")).toMatchObject({
      nextReplica: 7,
      initial: [
        { node: "n1", id: 1 },
        { node: "n2", id: 2 },
        { node: "n3", id: 3 },
      ],
    });
    directory.ok({ op: "directory.delete", tenant: "acme", purge: true });
    expect(moving()).toEqual([]);
  });
  test("remembers while a tenant moves who had a vote before", () => {
    const before = new Tenant("_system");
    const directory = new Tenant("_system");
    for (const one of [before, directory]) one.ok(create("acme"));
    const move = (generation: number, nodes: readonly string[], lost: readonly number[] = []) => {
      const action = { op: "directory.move", tenant: "acme", nodes, lost, generation } as const;
      before.ok(action, { semantics: 6 });
      directory.ok(action, { semantics: semanticsNow });
    };
    const replicas = ({ state }: Tenant) =>
      queries.getTenant(state, "acme")?.placement.replicas ?? [];
    const settled = (of: Tenant) => settledReplicas(replicas(of)).map(({ id }) => id);
    move(0, ["n4"]);
    expect(settled(directory)).toEqual([1, 2, 3]);
    move(1, ["n1", "n2", "n5"]);
    move(2, ["n1", "n4", "n5"], [5]);
    expect(replicas(directory).map(({ id, state, settled: was }) => [id, state, was])).toEqual([
      [1, "joining", true],
      [2, "leaving", true],
      [3, "leaving", true],
      [4, "joining", false],
      [5, "lost", false],
      [6, "joining", undefined],
    ]);
    expect(settled(directory)).toEqual([1, 2, 3]);
    // What is asked for again changes nothing.
    const again = { op: "directory.move", tenant: "acme", nodes: ["n1", "n4", "n5"] } as const;
    const repeat = { ...again, generation: 3 };
    expect(directory.ok(repeat, { semantics: semanticsNow }).commit).toBe(null);
    // A command of before means what it meant, and those that nobody can tell apart all count.
    expect(replicas(before).some((replica) => "settled" in replica)).toBe(false);
    expect(settled(before)).toEqual([2, 3, 5]);
    const back = new Tenant("_system");
    back.ok(create("acme"));
    for (const [generation, nodes] of [["n4"], ["n1", "n2", "n3", "n4"]].entries())
      back.ok({ ...again, nodes, generation }, { semantics: 6 });
    expect(settled(back)).toEqual([1, 2, 3, 4]);
    const settle = { op: "directory.settle", tenant: "acme", generation: 3 } as const;
    for (const one of [before, directory]) one.ok(settle);
    expect(replicas(directory)).toEqual(replicas(before));
    expect(replicas(directory)[0]).toEqual({ node: "n1", id: 1 });
  });
  test("places nothing on a node that leaves, or has left", () => {
    const directory = new Tenant("_system");
    const now = { semantics: semanticsNow } as const;
    const initial = ["n1", "n2", "n3"].map((node, at) => ({ node, id: at + 1 }));
    for (const { node } of initial)
      directory.ok({ op: "node.register", node, boot: 1, initial }, now);
    directory.ok(create("acme"), now);
    const phase = (to: "leaving" | "active") =>
      directory.ok({ op: "node.phase", node: "n3", phase: to }, now);
    const move = (generation: number, nodes: readonly string[], lost: readonly number[] = []) =>
      ({ op: "directory.move", tenant: "acme", nodes, lost, generation }) as const;
    phase("leaving");
    directory.no("conflict", create("beta"), now);
    // What is there may stay, and no other one may come.
    directory.no("conflict", move(0, ["n1", "n2", "n3"], [3]), now);
    directory.ok(move(0, ["n1", "n3"]), now);
    directory.ok(move(1, ["n1", "n2"]), now);
    // While it has yet to leave it may come back, as long as it has its disk; at the level before only to who stays.
    directory.no("conflict", move(2, ["n1", "n3"]), { semantics: callBackLevel - 1 });
    directory.no("conflict", move(2, ["n1", "n3"], [3]), now);
    directory.ok(move(2, ["n1", "n3"]), now);
    directory.ok(move(3, ["n1", "n2"]), now);
    directory.ok({ op: "directory.settle", tenant: "acme", generation: 4 }, now);
    directory.no("conflict", move(4, ["n1", "n3"]), now);
    phase("active");
    directory.ok({ op: "node.remove", node: "n3" }, now);
    directory.no("conflict", create("beta"), now);
    directory.no("conflict", move(4, ["n1", "n3"]), now);
    directory.no("conflict", move(4, ["n1", "n9"]), now);
    // A command of before means what it meant.
    directory.ok(move(4, ["n1", "n9"]), { semantics: 5 });
    directory.ok(create("beta"), { semantics: 5 });
  });
  test("knows its nodes and their root keys", () => {
    const directory = new Tenant("_system");
    const { state } = directory;
    const register = { op: "node.register", node: "n1", boot: 1, zone: "a" } as const;
    expect(directory.ok(register).created).toBe(true);
    expect(directory.ok(register).commit).toBe(null);
    expect(directory.ok({ op: "node.register", node: "n1", boot: 2 }).result.node).toEqual({
      node: "n1",
      boot: 2,
      zone: "a",
      registeredAt: 1_001,
    });
    const [one, two] = ["a".repeat(64), "b".repeat(64)];
    const put = (node: string, hash: string) =>
      ({ op: "rootKey.put", node, keyId: "r", hash }) as const;
    directory.ok(put("n1", one));
    directory.ok(put("n2", one));
    expect(directory.ok(put("n1", one)).commit).toBe(null);
    // n2 still has the first token: it stays good until that one changes too.
    directory.ok(put("n1", two));
    expect(queries.getRootKey(state, one)?.nodes).toEqual(["n2"]);
    directory.ok(put("n2", two));
    expect(queries.getRootKey(state, one)).toBe(null);
    expect(queries.getRootKey(state, two)?.nodes).toEqual(["n1", "n2"]);
    directory.no("invalid", put("n1", "x"));
    expect(queries.listNodes(state).map(({ node }) => node)).toEqual(["n1"]);
  });
  test("takes no configs, and other tenants take none of its commands", () => {
    const directory = new Tenant("_system");
    directory.no("invalid", { op: "config.put", ...target("a") });
    directory.no("invalid", { op: "key.create", key: key("k1", "admin") });
    new Tenant().no("invalid", create("beta"));
    directory.no("unauthorized", create("beta"), { actor: { kind: "admin", keyId: "k1" } });
  });
});

describe("history and audit", () => {
  test("have every change, and are bounded by count", () => {
    const tenant = new Tenant();
    tenant.put("a");
    const total = historyMax + 20;
    for (let i = 3; i <= total; i++) tenant.put("a", undefined, { description: `${i}` });
    const { state } = tenant;
    expect(queries.getMeta(state)).toMatchObject({
      revision: total,
      historyFrom: 21,
      audits: total,
    });
    expect(queries.historyAfter(state, 19)).toBe(null);
    expect(queries.historyAfter(state, total + 1)).toBe(null);
    expect(queries.historyAfter(state, total)).toEqual([]);
    const rows = queries.historyAfter(state, 20) ?? [];
    expect(rows.length).toBe(historyMax);
    rows.forEach((row, i) => expect(row.revision).toBe(21 + i));
    expect(queries.historyAfter(state, 20, 2)?.map(({ revision }) => revision)).toEqual([21, 22]);
    expect(auditsMax).toBeGreaterThan(historyMax);
  });
  test("audit says who did what", () => {
    const tenant = new Tenant("acme", [key("k1", "write")]);
    const actor = { kind: "write", keyId: "k1", requestId: "req", address: "::1" } as const;
    tenant.ok({ op: "config.put", ...target("a") }, { actor });
    expect(queries.listAudit(tenant.state, { since: 2 }).items).toEqual([
      {
        sequence: 3,
        revision: 2,
        at: 1_001,
        actor: { kind: "write", keyId: "k1" },
        action: "config.put",
        target: "app/a",
        requestId: "req",
        address: "::1",
      },
    ]);
  });
});

describe("the audit's chain", () => {
  const now = { semantics: semanticsNow } as const;
  const verified = (tenant: Tenant): string | null => {
    const chain = new AuditChain(queries.getMeta(tenant.state).auditAnchor ?? null);
    for (const row of queries.listAudit(tenant.state, { limit: 1_000 }).items) {
      const { before = null, after = null, previous = null, hash = null } = row;
      const wrong = chain.next({ ...row, before, after, previous, hash });
      if (wrong !== null) return wrong;
    }
    expect(chain.head).toBe(queries.getMeta(tenant.state).auditHead ?? null);
    return null;
  };

  test("begins with the first command that asks for it, and never ends", () => {
    const tenant = new Tenant();
    tenant.put("a");
    expect(verified(tenant)).toBeNull();
    expect(queries.getMeta(tenant.state).auditHead).toBeUndefined();
    tenant.ok({ op: "config.put", ...target("b") }, now);
    tenant.put("c");
    const hashes = queries.listAudit(tenant.state).items.map(({ hash }) => hash !== undefined);
    expect(hashes).toEqual([false, false, true, true]);
    expect(verified(tenant)).toBeNull();
  });

  test("says what each change found and left", () => {
    const tenant = new Tenant();
    tenant.ok({ op: "config.put", ...target("a") }, now);
    tenant.ok({ op: "config.put", ...target("a"), description: "d" }, now);
    tenant.ok({ op: "key.create", key: key("k1", "read") }, now);
    tenant.ok({ op: "key.delete", id: "k1" }, now);
    const rows = queries.listAudit(tenant.state, { since: 1 }).items;
    const [made, changed, keyMade, keyGone] = rows;
    expect(made?.before).toBeNull();
    expect(changed?.before).toBe(made?.after);
    expect(changed?.after).not.toBe(made?.after);
    expect(keyGone?.before).toBe(keyMade?.after);
    expect(keyGone?.after).toBeNull();
  });

  test("shows a row that was tampered with", () => {
    const tenant = new Tenant();
    for (const name of ["a", "b", "c"]) tenant.ok({ op: "config.put", ...target(name) }, now);
    const row = queries.listAudit(tenant.state, { since: 2, limit: 1 }).items[0] as AuditRow;
    tenant.state.put(auditKey(3), { ...row, actor: { kind: "admin", keyId: "someone" } });
    expect(verified(tenant)).toBe("Record 3 was changed");
    tenant.state.put(auditKey(3), row);
    expect(verified(tenant)).toBeNull();
  });

  test("is anchored where old records are dropped, by count and by age", () => {
    const tenant = new Tenant("acme", [], { auditRecords: 3, auditDays: 10 });
    for (let i = 0; i < 9; i++) tenant.ok({ op: "config.put", ...target(`c${i}`) }, now);
    const kept = (): number[] =>
      queries.listAudit(tenant.state).items.map(({ sequence }) => sequence);
    expect(kept()).toEqual([8, 9, 10]);
    expect(queries.getMeta(tenant.state).auditAnchor?.sequence).toBe(7);
    expect(verified(tenant)).toBeNull();
    tenant.at += 11 * 86_400_000;
    tenant.ok({ op: "config.put", ...target("late") }, now);
    expect(kept()).toEqual([11]);
    expect(verified(tenant)).toBeNull();
  });
});

describe("sealed contents", () => {
  const sealed = (text: string, version: number): Content => ({
    ...content(text),
    secret: { version },
  });
  const publish = (of: Content) =>
    ({ op: "publish", ...target("s"), content: of, schemaHash: null }) as const;

  test("come only into secret configs, as the version they were sealed for", () => {
    const tenant = new Tenant();
    tenant.put("open");
    tenant.no("conflict", { ...publish(sealed("x", 1)), ...target("open") });
    tenant.no("conflict", {
      op: "config.put",
      ...target("s"),
      secret: true,
      content: content("x"),
    });
    tenant.ok({ op: "config.put", ...target("s"), secret: true, content: sealed("x", 1) });
    tenant.no("conflict", publish(content("plain")));
    tenant.no("conflict", publish(sealed("y", 3)));
    const { result } = tenant.ok(publish(sealed("y", 2)));
    expect(result.version).toMatchObject({ version: 2, secret: true });
    // The same content is the same version, whatever it was sealed for.
    expect(tenant.ok(publish(sealed("y", 3))).commit).toBeNull();
    tenant.no("conflict", { op: "config.put", ...target("s"), secret: false });
    expect(queries.getConfig(tenant.state, "app", "s")?.secret).toBe(true);
  });

  test("are wrapped anew without a revision, and only where they are meant", () => {
    const tenant = new Tenant("acme", [key("k1", "admin"), key("k2", "write")]);
    tenant.ok({ op: "config.put", ...target("s"), secret: true, content: sealed("x", 1) });
    const { revision } = queries.getMeta(tenant.state);
    const rewrap = (hash: string, text: string) =>
      ({ op: "secrets.rewrap", items: [{ ...target("s"), version: 1, hash, text }] }) as const;
    expect(tenant.ok(rewrap("sha256:other", "no")).result.rewrapped).toBe(0);
    const actor = { kind: "admin", keyId: "k1" } as const;
    expect(tenant.ok(rewrap("sha256:x", "new"), { actor }).result.rewrapped).toBe(1);
    expect(queries.getText(tenant.state, "app", "s", 1)).toBe("new");
    expect(queries.getMeta(tenant.state).revision).toBe(revision);
    const weak = { kind: "write", keyId: "k2" } as const;
    tenant.no("forbidden", rewrap("sha256:x", "weak"), { actor: weak });
  });
});

describe("over how long watchers are told", () => {
  test("is in the history, where the command says so, and at most an hour", () => {
    const tenant = new Tenant("acme");
    const put = (name: string) => ({ op: "config.put", ...target(name) }) as const;
    const now = { semantics: semanticsNow } as const;
    const { commit } = tenant.ok(put("a"), { ...now, spreadMs: 30_000 });
    expect(commit).toMatchObject({ revision: 2, spreadMs: 30_000 });
    expect(queries.getHistoryRow(tenant.state, 2)).toEqual(commit);
    for (const spreadMs of [undefined, 0]) {
      const plain = tenant.ok(put(`b${spreadMs}`), { ...now, ...(spreadMs === 0 && { spreadMs }) });
      expect(Object.keys(plain.commit as object)).toEqual(["revision", "at", "changes"]);
    }
    for (const spreadMs of [-1, 0.5, 3_600_001])
      tenant.no("invalid", put("c"), { ...now, spreadMs });
  });
});

describe("what nodes tell", () => {
  test("of usage adds up without a revision", () => {
    const tenant = new Tenant("acme", [key("k1", "read")]);
    const { revision } = queries.getMeta(tenant.state);
    const told = { op: "usage.record", requests: 3, limited: 1, keys: [{ id: "k1", at: 900 }] };
    tenant.ok(told as Action);
    tenant.ok(told as Action);
    tenant.ok({ op: "usage.record", requests: 1, limited: 0, keys: [{ id: "k1", at: 800 }] });
    tenant.ok({ op: "usage.record", requests: 0, limited: 0, keys: [{ id: "gone", at: 1 }] });
    const meta = queries.getMeta(tenant.state);
    expect([meta.revision, meta.usage]).toEqual([revision, { requests: 7, limited: 2 }]);
    expect(queries.getKey(tenant.state, "k1")?.lastUsedAt).toBe(900);
    expect(queries.getKey(tenant.state, "gone")).toBeNull();
    tenant.no("invalid", { op: "usage.record", requests: -1, limited: 0, keys: [] });
    const watched = { ...(told as object), watchBytes: 5, watchesHeld: 2 } as unknown as Action;
    for (let i = 0; i < 2; i++) tenant.ok(watched);
    tenant.ok(told as Action);
    const { usage } = queries.getMeta(tenant.state);
    expect(usage).toEqual({ requests: 16, limited: 5, watchBytes: 10, watchesHeld: 4 });
    tenant.no("invalid", { ...(watched as object), watchBytes: -1 } as unknown as Action);
    const actor = { kind: "read", keyId: "k1" } as const;
    tenant.no("forbidden", told as Action, { actor });
  });

  test("of quotas counts only when it is news", () => {
    const tenant = new Tenant();
    tenant.ok({ op: "tenant.quotas", quotas: { configs: 2 }, revision: 9 });
    expect(
      tenant.ok({ op: "tenant.quotas", quotas: { configs: 1 }, revision: 9 }).commit,
    ).toBeNull();
    expect(queries.getQuotas(tenant.state).configs).toBe(2);
  });
});

describe("pages", () => {
  test("go through everything once, by a cursor that survives changes", () => {
    const tenant = new Tenant();
    for (const name of ["a", "b", "b.c", "b-c", "c", "d"]) tenant.put(name, "x");
    const seen: string[] = [];
    let cursor: string | undefined;
    do {
      const page = queries.listConfigs(tenant.state, "app", {
        limit: 2,
        ...(cursor === undefined ? {} : { cursor }),
      });
      seen.push(...page.items.map(({ name }) => name));
      cursor = page.next;
      if (cursor !== undefined && seen.length === 2)
        tenant.ok({ op: "config.delete", ...target(seen[1] as string) });
    } while (cursor !== undefined);
    expect(seen).toEqual(["a", "b", "b-c", "b.c", "c", "d"]);
    const names = (options: object) =>
      queries.listConfigs(tenant.state, "app", options).items.map(({ name }) => name);
    expect(names({ prefix: "b" })).toEqual(["b-c", "b.c"]);
    expect(names({ prefix: "b", limit: 1 })).toEqual(["b-c"]);
    expect(names({ prefix: "b", cursor: "b-c" })).toEqual(["b.c"]);
    expect(names({ cursor: "é" })).toEqual([]);
    expect(names({ cursor: "zz" })).toEqual([]);
    expect(names({ prefix: "/" })).toEqual([]);
    expect(queries.listConfigs(tenant.state, "../x").items).toEqual([]);
    expect([...queries.allConfigs(tenant.state, { prefix: "b" })].length).toBe(2);
    expect(tenant.state.get(metaKey)).toMatchObject({ configs: 5, deleted: 1 });
  });
});
