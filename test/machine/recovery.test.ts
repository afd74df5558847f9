import { describe, expect, test } from "vitest";
import { semanticsNow, type Action, type SystemAction } from "../../src/machine/command.ts";
import { under } from "../../src/machine/keys.ts";
import { apply } from "../../src/machine/machine.ts";
import * as queries from "../../src/machine/queries.ts";
import { recoveredPerCommandMax } from "../../src/machine/recovery.ts";
import type { AuditRow, SystemRow, TenantRow } from "../../src/machine/rows.ts";
import { MemoryState } from "./memory_state.ts";

class Machine {
  readonly state = new MemoryState();

  constructor(tenant: string) {
    this.do({ op: "tenant.init", tenant, quotas: {}, keys: [], epoch: 50 });
  }

  do(action: Action, semantics = semanticsNow): unknown {
    const actor = { kind: "system", keyId: "system" } as const;
    const { outcome } = apply(this.state, { at: 1_000, actor, semantics, action });
    if (!outcome.ok) throw new Error(`${outcome.code}: ${outcome.detail}`);
    return outcome.result;
  }

  audits(action: string): string[] {
    return [...this.state.range<AuditRow>(under("aud"))]
      .filter(([, row]) => row.action === action)
      .map(([, { target }]) => target);
  }
}

function directory(): Machine {
  const machine = new Machine("_system");
  const initial = ["n1", "n2", "n3"].map((node, at) => ({ node, id: at + 1 }));
  for (const { node } of initial) {
    machine.do({ op: "node.register", node, boot: 1, disk: `disk-${node}`, initial });
    machine.do({ op: "rootKey.put", node, keyId: node, hash: node[1]?.repeat(64) as string });
  }
  for (const tenant of ["acme", "other"])
    machine.do({
      op: "directory.create",
      tenant,
      quotas: {},
      nodes: ["n1", "n2", "n3"],
      adminKey: { id: "adm", kind: "admin", hash: "h" },
    });
  return machine;
}

const recovery = {
  op: "directory.recover",
  epoch: 1_000_000,
  system: {
    incarnation: 1_000_000,
    voter: { node: "n1", id: 1 },
    learners: [{ node: "n3", id: 4 }],
  },
  gone: ["n2"],
  tenants: [
    {
      tenant: "acme",
      group: 2,
      incarnation: 1_000_000,
      epoch: 1_000_000,
      replica: { node: "n3", id: 3 },
    },
  ],
} satisfies SystemAction;

describe("directory.recover", () => {
  test("leaves one replica of each group, and remembers how many there were", () => {
    const machine = directory();
    const { state } = machine;
    machine.do({ op: "directory.move", tenant: "acme", nodes: ["n1", "n3"], generation: 0 });
    machine.do(recovery);
    expect(queries.getTenant(state, "acme")).toMatchObject({
      incarnation: 1_000_000,
      epoch: 1_000_000,
      placement: { replicas: [{ node: "n3", id: 3 }], generation: 2 },
      initial: [{ node: "n3", id: 3 }],
      nextReplica: 4,
      regrow: 2,
    });
    expect([...state.range(under("move"))]).toEqual([]);
    expect([...state.range(under("regrow"))].map(([, tenant]) => tenant)).toEqual(["acme"]);
    expect(queries.getTenant(state, "other")?.placement.replicas).toHaveLength(3);
    expect(state.get<SystemRow>("system")).toEqual({
      placement: {
        replicas: [
          { node: "n1", id: 1 },
          expect.objectContaining({ node: "n3", id: 4, state: "learner" }),
        ],
        generation: 1,
      },
      initial: [{ node: "n1", id: 1 }],
      nextReplica: 5,
      incarnation: 1_000_000,
    });
    expect(queries.getMeta(state)).toMatchObject({ epoch: 1_000_000, lastEpoch: 1_000_000 });
    expect(machine.audits("directory.recover")).toEqual(["_system", "n2", "acme"]);
  });

  test("leaves nothing of the directory that a tag from before could match", () => {
    const machine = directory();
    const { revision } = queries.getTenant(machine.state, "other") as TenantRow;
    machine.do(recovery);
    const update = { op: "directory.update", tenant: "other", description: "mine" } as const;
    for (const ifMatch of [[revision], [`50-${revision}`]])
      expect(() => machine.do({ ...update, ifMatch })).toThrow("precondition-failed");
    machine.do({ ...update, ifMatch: [`1000000-${revision}`] });
  });

  test("forgets nodes that are gone, with the root tokens that only they had", () => {
    const machine = directory();
    machine.do(recovery);
    expect(queries.listNodes(machine.state).map(({ node }) => node)).toEqual(["n1", "n3"]);
    expect(queries.getRootKey(machine.state, "2".repeat(64))).toBe(null);
    expect(queries.getRootKey(machine.state, "1".repeat(64))).not.toBe(null);
    // Who joins is told of which incarnation the group is.
    expect(machine.do({ op: "node.join", node: "n2", disk: "new" })).toEqual({
      id: 5,
      initial: [{ node: "n1", id: 1 }],
      incarnation: 1_000_000,
    });
  });

  test("leaves alone what became another tenant, and what was recovered already", () => {
    const machine = directory();
    machine.do({ op: "directory.delete", tenant: "acme", purge: true });
    expect(machine.do(recovery)).toEqual({ tenants: [] });
    const again = directory();
    expect(again.do(recovery)).toEqual({ tenants: ["acme"] });
    expect(again.do({ ...recovery, gone: [] })).toEqual({ tenants: [] });
    const [one] = recovery.tenants;
    const many = Array.from({ length: recoveredPerCommandMax + 1 }, () => one as typeof one & {});
    expect(() => again.do({ ...recovery, tenants: many })).toThrow("at most");
  });

  test("lets a tenant grow to what it had, and is over then", () => {
    const machine = directory();
    machine.do(recovery);
    machine.do({ op: "node.join", node: "n4", disk: "disk-n4" });
    const row = (): TenantRow => queries.getTenant(machine.state, "acme") as TenantRow;
    const move = (nodes: readonly string[]): unknown => {
      const { generation = 0 } = row().placement;
      return machine.do({ op: "directory.move", tenant: "acme", nodes, generation });
    };
    move(["n3", "n1"]);
    expect(row().regrow).toBe(3);
    move(["n3", "n1", "n4"]);
    expect(row()).not.toHaveProperty("regrow");
    expect([...machine.state.range(under("regrow"))]).toEqual([]);
    // Ids are never given twice, also not those of replicas that are gone.
    expect(row().placement.replicas.map(({ id }) => id)).toEqual([3, 4, 5]);
  });
});

describe("tenant.recover", () => {
  test("begins another epoch, whatever the clock says, and is in history and audit", () => {
    const tenant = new Machine("acme");
    const before = queries.getMeta(tenant.state);
    const replica = { node: "n1", id: 1 };
    expect(tenant.do({ op: "tenant.recover", epoch: 70, replica })).toEqual({
      tenant: "acme",
      epoch: 70,
    });
    expect(tenant.do({ op: "tenant.recover", epoch: 3, replica })).toMatchObject({ epoch: 71 });
    expect(queries.getMeta(tenant.state).revision).toBe(before.revision + 2);
    expect(tenant.audits("tenant.recover")).toEqual(["acme@50-1 on n1", "acme@70-2 on n1"]);
  });
});

describe("a gateway", () => {
  test("joins as one, and nobody becomes one who may hold replicas", () => {
    const machine = directory();
    const rowOf = (node: string) =>
      queries.listNodes(machine.state).find((row) => row.node === node);
    machine.do({ op: "node.join", node: "g1", disk: "disk-g1", role: "gateway" });
    const register = { op: "node.register", boot: 2 } as const;
    machine.do({ ...register, node: "g1", disk: "disk-g1", role: "gateway" });
    // A program that knows nothing of roles leaves it as it is.
    machine.do({ ...register, node: "g1", disk: "disk-g1", boot: 3 });
    expect(rowOf("g1")?.role).toBe("gateway");
    expect(() => machine.do({ ...register, node: "n1", disk: "disk-n1", role: "gateway" })).toThrow(
      "Let node n1 leave first",
    );
    machine.do({ ...register, node: "g1", disk: "disk-g1", boot: 4, role: "member" });
    expect(rowOf("g1")).not.toHaveProperty("role");
  });
});

describe("node.remove", () => {
  test("takes the root token along that only this node had", () => {
    const leave = (semantics: number): Machine => {
      const machine = directory();
      machine.do({ op: "node.remove", node: "n3" }, semantics);
      return machine;
    };
    expect(queries.getRootKey(leave(semanticsNow).state, "3".repeat(64))).toBe(null);
    expect(queries.getRootKey(leave(semanticsNow).state, "1".repeat(64))).not.toBe(null);
    // What was committed before it did so means the same for ever.
    expect(queries.getRootKey(leave(4).state, "3".repeat(64))).not.toBe(null);
  });
});
