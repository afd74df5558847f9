/** A tenant from its backup: every row, in bounded parts, once; nothing else meanwhile; a history of its own. */
import { describe, expect, test } from "vitest";
import type { Action, Command, Outcome, RejectCode } from "../../src/machine/command.ts";
import { semanticsNow, tagsLevel } from "../../src/machine/command.ts";
import { apply } from "../../src/machine/machine.ts";
import { getMeta } from "../../src/machine/queries.ts";
import { restoredMeta } from "../../src/machine/directory.ts";
import { isRestorable } from "../../src/machine/restore.ts";
import type { AuditRow, ConfigRow, TenantMeta, TenantRow } from "../../src/machine/rows.ts";
import { MemoryState } from "./memory_state.ts";

type Row = readonly [key: string, row: unknown];

class Group {
  readonly state = new MemoryState();
  at: number;

  constructor(at = 1_700_000_000_000) {
    this.at = at;
  }

  apply(action: Action, more: Partial<Command> = {}): Outcome {
    const actor = { kind: "root", keyId: "r1" } as const;
    const command = { at: this.at++, actor, semantics: semanticsNow, action, ...more };
    return apply(this.state, JSON.parse(JSON.stringify(command)) as Command).outcome;
  }

  ok(action: Action, more: Partial<Command> = {}): Outcome & { readonly ok: true } {
    const outcome = this.apply(action, more);
    if (!outcome.ok) throw new Error(`refused: ${outcome.code}: ${outcome.detail}`);
    return outcome;
  }

  no(code: RejectCode, action: Action, more: Partial<Command> = {}): string {
    const before = this.state.dump();
    const outcome = this.apply(action, more);
    expect(outcome).toMatchObject({ ok: false, code });
    expect(this.state.dump()).toEqual(before);
    return outcome.ok ? "" : outcome.detail;
  }

  get rows(): readonly Row[] {
    return [...this.state.range({ gte: "", lt: "\x7f" })].filter(([key]) => key !== "meta");
  }

  get meta(): TenantMeta {
    return getMeta(this.state);
  }
}

const hash = "a".repeat(64);

/** A tenant with a bit of everything. */
function tenant(): Group {
  const group = new Group();
  group.ok({
    op: "tenant.init",
    tenant: "acme",
    quotas: { configs: 50 },
    keys: [{ id: "k1", kind: "admin", hash }],
    epoch: 1_700_000_000,
  });
  const put = (name: string, text: string): void => {
    const content = { text, hash: `sha256:${text}`, bytes: text.length };
    const target = { namespace: "app", name };
    group.ok({ op: "config.put", ...target, format: "text", content });
    group.ok(
      { op: "publish", ...target, content: { ...content, text: `${text}!` }, schemaHash: null },
      { idempotency: { key: `once/${name}`, fingerprint: "f" } },
    );
  };
  put("a", "one");
  put("b", "two");
  const later = new Date(group.at + 3_600_000).toISOString();
  const rule = { id: "r", match: {}, from: later, version: 1 };
  group.ok({ op: "release.put", namespace: "app", name: "a", rules: [rule], default: 1 });
  group.ok({ op: "config.delete", namespace: "app", name: "b" });
  group.ok({ op: "key.create", key: { id: "k2", kind: "read", hash, namespaces: ["app"] } });
  return group;
}

function restoreOf(from: Group): NonNullable<TenantRow["restore"]> {
  const { epoch, revision, tenant: name } = from.meta;
  return { source: { tenant: name, epoch, revision }, meta: restoredMeta(from.meta) };
}

function begun(from: Group, name = "acme", epoch = 1_800_000_000): Group {
  const group = new Group(5_000);
  group.ok({
    op: "tenant.init",
    tenant: name,
    quotas: {},
    keys: [],
    epoch,
    restore: restoreOf(from),
  });
  return group;
}

function send(group: Group, rows: readonly Row[], size: number): void {
  for (let part = 0; part * size < rows.length; part++)
    group.ok({ op: "restore.rows", part, rows: rows.slice(part * size, (part + 1) * size) });
}

describe("a restore", () => {
  test("gives all rows back, a revision after the backup's, and an epoch of its own", () => {
    const from = tenant();
    for (const size of [1, 4, 1_000]) {
      const group = begun(from, "copy");
      send(group, from.rows, size);
      const done = group.ok({ op: "restore.finish", rows: from.rows.length });
      const { revision } = from.meta;
      expect(done).toMatchObject({ revision: revision + 1, result: { tenant: "copy" } });
      const expected = new Map(from.rows);
      const rest = group.rows.filter(([key, row]) => {
        const isSame = JSON.stringify(expected.get(key)) === JSON.stringify(row);
        expected.delete(key);
        return !isSame;
      });
      expect([...expected]).toEqual([]);
      // What is new is its own first entry in history and audit.
      expect(rest.map(([key]) => key.split("/")[0])).toEqual(["aud", "hist"]);
      expect(group.meta).toMatchObject({
        tenant: "copy",
        revision: revision + 1,
        epoch: 1_800_000_000,
        configs: 1,
        deleted: 1,
        keys: 2,
        dueAt: from.meta.dueAt,
        idempotencyTo: from.meta.idempotencyTo,
      });
      expect(group.meta.restore).toBeUndefined();
      // The chain of audit rows goes on where it was.
      const newest = group.rows.findLast(([key]) => key.startsWith("aud/"))?.[1] as AuditRow;
      expect([newest.previous, newest.action]).toEqual([from.meta.auditHead, "tenant.restore"]);
      // The source's time was later than this group's.
      expect(group.meta.at).toBeGreaterThanOrEqual(from.meta.at);
      // It goes on: histories without a gap, repeats recognised.
      const again = group.ok(
        {
          op: "publish",
          namespace: "app",
          name: "a",
          content: { text: "x", hash: "sha256:x", bytes: 1 },
          schemaHash: null,
        },
        { idempotency: { key: "once/a", fingerprint: "f" } },
      );
      expect(again.replayed).toBe(true);
      expect(group.ok({ op: "key.delete", id: "k2" }).revision).toBe(revision + 2);
      expect(group.meta.at).toBeGreaterThanOrEqual(from.meta.at);
    }
  });

  test("makes the key that was asked for when it is done", () => {
    const from = tenant();
    const group = new Group();
    const restore = restoreOf(from);
    const keys = [{ id: "new", kind: "admin", hash }] as const;
    group.ok({ op: "tenant.init", tenant: "copy", quotas: {}, keys, epoch: 7, restore });
    expect(group.rows).toEqual([]);
    send(group, from.rows, 10);
    group.ok({ op: "restore.finish", rows: from.rows.length });
    expect(group.state.get("key/new")).toMatchObject({ kind: "admin", hash });
    expect(group.meta.keys).toBe(3);
  });

  test("leaves nothing that a tag or a revision from before could match", () => {
    const from = tenant();
    const target = { namespace: "app", name: "a" } as const;
    const put = { op: "config.put", ...target, description: "mine" } as const;
    const { revision } = from.state.get<ConfigRow>("cfg/app/a") as ConfigRow;
    const { epoch } = from.meta;
    const then = [{ op: "config.put", ...target, description: "mine" }] as const;
    const guarded = (condition: object): Action => ({
      op: "transaction",
      if: [{ ...target, ...condition }],
      then,
    });
    const group = begun(from);
    send(group, from.rows, 10);
    group.ok({ op: "restore.finish", rows: from.rows.length });
    // It is as it was, at the revision that it was at, and the revision is that of no other change yet.
    expect(group.state.get("cfg/app/a")).toEqual(from.state.get("cfg/app/a"));
    for (const ifMatch of [
      [revision],
      [`${epoch}-${revision}`],
      [`${epoch}-${revision}`, revision],
    ])
      group.no("precondition-failed", { ...put, ifMatch });
    group.no("precondition-failed", guarded({ tag: `${epoch}-${revision}` }));
    expect(group.no("precondition-failed", guarded({ revision }))).toContain("give its etag");
    expect(group.no("precondition-failed", guarded({ revision: revision + 1 }))).toContain("is at");
    const now = group.meta.epoch;
    const done = group.ok({ ...put, ifMatch: [1, `${now}-${revision}`] });
    expect(done.epoch).toBe(now);
    group.no("precondition-failed", { ...put, ifMatch: [`${now}-${revision}`] });
    group.ok(guarded({ tag: `${now}-${done.revision}` }));
    // Where nothing was restored a revision alone still does.
    from.ok({ ...put, ifMatch: [revision] });
    from.ok(guarded({ revision: from.meta.revision }));
  });

  test("begun below the level of tags takes revisions as before", () => {
    const from = tenant();
    const group = new Group();
    const init = { op: "tenant.init", tenant: "acme", quotas: {}, keys: [], epoch: 9 } as const;
    group.ok({ ...init, restore: restoreOf(from) }, { semantics: tagsLevel - 1 });
    send(group, from.rows, 10);
    group.ok({ op: "restore.finish", rows: from.rows.length }, { semantics: tagsLevel - 1 });
    const { revision } = from.state.get<ConfigRow>("cfg/app/a") as ConfigRow;
    const put = { op: "config.put", namespace: "app", name: "a", description: "mine" } as const;
    group.ok({ ...put, ifMatch: [revision] }, { semantics: tagsLevel - 1 });
  });

  test("takes nothing else until it is done", () => {
    const from = tenant();
    const group = begun(from);
    group.no("restoring", { op: "config.put", namespace: "app", name: "c", format: "text" });
    group.no("restoring", { op: "key.create", key: { id: "k9", kind: "admin", hash } });
    group.ok({ op: "tenant.quotas", quotas: { configs: 3 }, revision: 9 });
    send(group, from.rows, 5);
    group.no("restoring", { op: "config.delete", namespace: "app", name: "a" });
    group.ok({ op: "restore.finish", rows: from.rows.length });
    expect(group.meta.quotas).toEqual({ configs: 3 });
    group.no("conflict", { op: "restore.rows", part: 0, rows: from.rows });
    group.no("conflict", { op: "restore.finish", rows: from.rows.length });
    const admin = { actor: { kind: "admin", keyId: "k1" } as const };
    begun(from).no("unauthorized", { op: "restore.finish", rows: 0 }, admin);
    group.no("conflict", { op: "restore.rows", part: 0, rows: [] });
  });

  test("takes each part once and in order, so that it can be sent again and gone on with", () => {
    const from = tenant();
    const group = begun(from);
    const [first, second] = [from.rows.slice(0, 3), from.rows.slice(3)];
    group.no("conflict", { op: "restore.rows", part: 1, rows: second });
    group.ok({ op: "restore.rows", part: 0, rows: first });
    const before = group.state.dump();
    expect(group.ok({ op: "restore.rows", part: 0, rows: first }).result).toEqual({
      part: 1,
      rows: 3,
    });
    expect(group.state.dump()).toEqual(before);
    expect(group.meta.restore).toMatchObject({ part: 1, rows: 3, last: first.at(-1)?.[0] });
    group.no("invalid", { op: "restore.rows", part: 1, rows: first });
    group.no("invalid", { op: "restore.rows", part: 1, rows: second.toReversed() });
    group.no("conflict", { op: "restore.finish", rows: from.rows.length });
    group.ok({ op: "restore.rows", part: 1, rows: second });
    group.ok({ op: "restore.finish", rows: from.rows.length });
  });

  test("is not finished with rows missing, whatever number of them is claimed", () => {
    const from = tenant();
    for (const prefix of ["cfg/app/a", "cfg/app/b", "ns/", "key/k2", "ver/"]) {
      const group = begun(from);
      const rows = from.rows.filter(([key]) => !key.startsWith(prefix));
      expect(rows.length).toBeLessThan(from.rows.length);
      send(group, rows, 100);
      group.no("conflict", { op: "restore.finish", rows: rows.length });
    }
  });

  test("lets in only what can be a row of a tenant", () => {
    const from = tenant();
    for (const [key, row] of from.rows) expect([key, isRestorable(key, row)]).toEqual([key, true]);
    const good = new Map(from.rows);
    const version = from.rows.find(([key]) => key.startsWith("ver/app/a/"))?.[0] as string;
    const bad: Row[] = [
      ["meta", from.meta],
      ["", {}],
      ["x/y", {}],
      ["cfg/app/ä", good.get("cfg/app/a")],
      ["cfg/app/other", good.get("cfg/app/a")],
      ["cfg/app/a", 5],
      ["cfg/app/a", null],
      ["cfg/app/a", { ...(good.get("cfg/app/a") as object), rules: undefined }],
      [`idem/${"k".repeat(3_000)}`, { sequence: 1, at: 1, revision: 1 }],
      ["key/k1", { ...(good.get("key/k1") as object), kind: "root" }],
      ["key/k1", { ...(good.get("key/k1") as object), hash: "short" }],
      ["key/k2", good.get("key/k1")],
      ["hist/0000000000000002", { revision: 3, at: 1, changes: [] }],
      ["hist/2", { revision: 2, at: 1, changes: [] }],
      [version, { version: 7 }],
      [version.replace("ver/", "txt/"), { text: "x" }],
      ["ten/acme", {}],
      ["root/" + hash, {}],
      ["__proto__/x", {}],
      ["constructor", {}],
    ];
    for (const [key, row] of bad) expect([key, isRestorable(key, row)]).toEqual([key, false]);
    const group = begun(from);
    for (const row of bad.slice(2))
      group.no("invalid", { op: "restore.rows", part: 0, rows: [row] });
  });

  test("begins only with counters that are some", () => {
    const from = tenant();
    const restore = restoreOf(from);
    for (const wrong of [-1, 1.5, "1", null]) {
      const group = new Group();
      const meta = { ...restore.meta, revision: wrong as number };
      const init = { op: "tenant.init", tenant: "acme", quotas: {}, keys: [] } as const;
      group.no("invalid", { ...init, restore: { ...restore, meta } });
    }
  });
});

describe("the directory's epochs", () => {
  function directory(): Group {
    const group = new Group();
    group.ok({ op: "tenant.init", tenant: "_system", quotas: {}, keys: [] });
    return group;
  }
  const create = (name: string, restore?: TenantRow["restore"]): Action => ({
    op: "directory.create",
    tenant: name,
    quotas: {},
    nodes: ["n1"],
    adminKey: { id: "k1", kind: "admin", hash },
    ...(restore !== undefined && { restore }),
  });
  const epochOf = (group: Group, name: string): number =>
    group.state.get<TenantRow>(`ten/${name}`)?.epoch ?? 0;

  test("differ for every tenant made, also within a second, and under a name that was purged", () => {
    const group = directory();
    const epochs = new Set<number>();
    for (let n = 0; n < 20; n++) {
      group.ok(create("acme"));
      epochs.add(epochOf(group, "acme"));
      group.ok({ op: "directory.delete", tenant: "acme", purge: true });
    }
    expect(epochs.size).toBe(20);
  });

  test("of a restored tenant are later than its backup's, whatever the clocks say", () => {
    const group = directory();
    const from = tenant();
    const restore = restoreOf(from);
    group.ok(create("acme", restore));
    expect(epochOf(group, "acme")).toBeGreaterThan(from.meta.epoch);
    const ahead = { ...restore, source: { ...restore.source, epoch: from.meta.epoch + 90_000 } };
    group.ok(create("ahead", ahead));
    expect(epochOf(group, "ahead")).toBe(from.meta.epoch + 90_001);
    // Who comes later does not get an earlier one.
    group.ok(create("next"));
    expect(epochOf(group, "next")).toBe(from.meta.epoch + 90_002);
    for (const epoch of [2 ** 52, -1, 0.5]) {
      const far = { ...restore, source: { ...restore.source, epoch } };
      group.no("invalid", create("far", far));
    }
  });

  test("are not given by commands that were made before there were any", () => {
    const group = directory();
    group.ok(create("acme"), { semantics: 3 });
    expect(group.state.get<TenantRow>("ten/acme")?.epoch).toBeUndefined();
  });
});
