import { describe, expect, test } from "vitest";
import { appendRecord } from "../../src/host/codec.ts";
import type { ReplicaMeta } from "../../src/host/group_log.ts";
import {
  describeReplica,
  mostKnowing,
  planRecovery,
  recoveredChange,
  recoverLog,
  stateAtEnd,
  type DirectoryFound,
  type ReplicaFound,
} from "../../src/host/recovery.ts";
import { metaToBytes } from "../../src/host/replica.ts";
import { membersKey } from "../../src/machine/keys.ts";
import type { TenantMeta, TenantRow } from "../../src/machine/rows.ts";
import { encodeConfChange } from "../../src/raft/raft.ts";
import { ChangeKind, EntryKind, type Entry } from "../../src/raft/types.ts";
import { freshMeta, MemoryEnvironment } from "./memory_environment.ts";

const encode = (action: object): Uint8Array =>
  new TextEncoder().encode(
    JSON.stringify({ at: 1, actor: { kind: "system", keyId: "s" }, semantics: 5, action }),
  );
const init = encode({ op: "tenant.init", tenant: "t", quotas: {}, keys: [], epoch: 7 });
const recovery = encode({ op: "tenant.recover", epoch: 90, replica: { node: "n1", id: 1 } });
const normal = (index: number, term: number, data: Uint8Array = new Uint8Array(0)): Entry => ({
  index,
  term,
  kind: EntryKind.normal,
  data,
});
const joins4: Entry = {
  index: 5,
  term: 3,
  kind: EntryKind.confChange,
  data: new Uint8Array(
    encodeConfChange({
      transition: "auto",
      changes: [{ kind: ChangeKind.addVoter, id: 4 }],
      context: new TextEncoder().encode(JSON.stringify([{ node: "n4", id: 4 }])),
    }),
  ),
};

/** Applied up to 3; what follows is in the journal, a change of members among it. */
function crashed(): {
  environment: MemoryEnvironment;
  records: { sequence: number; payload: Uint8Array }[];
} {
  const environment = new MemoryEnvironment();
  const meta: ReplicaMeta = {
    ...freshMeta([1, 2, 3]),
    hard: { term: 2, vote: 1, commit: 3 },
    applied: 3,
    appliedTerm: 2,
    first: 2,
    firstTerm: 1,
    last: 3,
    sequence: 50,
  };
  environment.write({
    meta: metaToBytes(meta),
    rows: [[membersKey, JSON.stringify(meta.members)]],
    entries: [],
    entriesDeleted: [],
  });
  const hard = { term: 3, vote: 1, commit: 4 };
  const records = [
    // Contained already.
    { sequence: 50, payload: appendRecord({ ...hard, term: 1 }, [normal(3, 1)]) },
    { sequence: 60, payload: appendRecord(hard, [normal(4, 3, init), joins4]) },
    { sequence: 61, payload: appendRecord(null, [normal(6, 3)]) },
  ];
  return { environment, records };
}

describe("what is found", () => {
  test("is environment and journal together, with the state at the end of the log", () => {
    const { environment, records } = crashed();
    const recovered = recoverLog(environment, freshMeta([1, 2, 3]), records);
    expect(describeReplica("n1", environment, recovered, null)).toEqual({
      node: "n1",
      tenant: "t",
      group: 2,
      id: 1,
      incarnation: 1,
      term: 3,
      index: 6,
      commit: 4,
      applied: 3,
      revision: 1,
      voters: [1, 2, 3],
      votersOutgoing: [],
      pending: [{ adds: true, id: 4 }],
      damaged: null,
    });
    // Looking changes nothing.
    expect(environment.get("meta")).toBeUndefined();
  });
});

describe("the replica that goes on", () => {
  test("is alone in the next incarnation, keeps its log, and none of the old changes of members", () => {
    const { environment, records } = crashed();
    const before = recoverLog(environment, freshMeta([1, 2, 3]), records);
    const member = { node: "n1", id: 1 };
    const change = recoveredChange(environment, before, 9, member, [recovery]);
    environment.write({
      meta: change.meta,
      rows: [...change.rows],
      entries: [...change.entries],
      entriesDeleted: change.entriesDeleted,
    });
    // The journal still has its records; they are contained now.
    const after = recoverLog(environment, freshMeta([1, 2, 3]), records);
    expect(after.meta).toMatchObject({
      incarnation: 9,
      members: [member],
      conf: { voters: [1], learners: [], votersOutgoing: [] },
      hard: { term: 4, vote: 0, commit: 7 },
      applied: 3,
      first: 4,
      firstTerm: 2,
      last: 7,
      sequence: 61,
    });
    const entries = after.log.entries(4, 8, Infinity) as readonly Entry[];
    expect(entries.map(({ index, term, kind }) => [index, term, kind])).toEqual([
      [4, 3, EntryKind.normal],
      [5, 3, EntryKind.normal],
      [6, 3, EntryKind.normal],
      [7, 4, EntryKind.normal],
    ]);
    expect(entries[1]?.data).toHaveLength(0);
    expect(environment.get(membersKey)).toBe(JSON.stringify([member]));
    expect(stateAtEnd(environment, after).get<TenantMeta>("meta")).toMatchObject({
      epoch: 90,
      revision: 2,
    });
  });

  test("is the one with the greatest term, then index, and not damaged", () => {
    const found = (node: string, term: number, index: number, damaged: string | null = null) =>
      ({ node, id: Number(node[1]), term, index, damaged }) as ReplicaFound;
    const of = (...all: ReplicaFound[]) => mostKnowing(all)?.node ?? null;
    expect(of(found("n1", 3, 90), found("n2", 4, 10))).toBe("n2");
    expect(of(found("n1", 4, 9), found("n2", 4, 10), found("n3", 4, 10))).toBe("n2");
    expect(of(found("n1", 1, 1), found("n2", 9, 9, "rotten"))).toBe("n1");
    expect(of(found("n2", 9, 9, "rotten"))).toBe(null);
  });
});

describe("a plan", () => {
  const members = (...ids: number[]) => ids.map((id) => ({ node: `n${id}`, id }));
  const tenant = (name: string, group: number, ...ids: number[]): TenantRow =>
    ({
      tenant: name,
      group,
      incarnation: 1,
      placement: { replicas: members(...ids) },
    }) as unknown as TenantRow;
  const directory = (...tenants: TenantRow[]): DirectoryFound => ({
    system: {
      placement: { replicas: members(1, 2, 3, 4, 5) },
      initial: members(1, 2, 3, 4, 5),
      nextReplica: 6,
    },
    nodes: members(1, 2, 3, 4, 5).map(({ node }) => ({
      node,
      zone: null,
      boot: 1,
      registeredAt: 1,
    })),
    tenants,
  });
  const replica = (group: number, id: number, more: Partial<ReplicaFound> = {}): ReplicaFound => ({
    node: `n${id}`,
    tenant: "",
    group,
    id,
    incarnation: 1,
    term: 2,
    index: 5,
    commit: 5,
    applied: 5,
    revision: 3,
    voters: [1, 2, 3],
    votersOutgoing: [],
    pending: [],
    damaged: null,
    ...more,
  });
  const plan = (row: TenantRow, found: readonly ReplicaFound[]) =>
    planRecovery({
      cluster: "c",
      nodes: ["n1", "n2", "n4"],
      gone: ["n3", "n5"],
      directory: directory(row),
      found: [
        ...found,
        ...[1, 2, 4].map((id) => replica(1, id, { voters: [1, 2, 3, 4, 5], index: 9 - id })),
      ],
    });
  const verdict = (row: TenantRow, ...found: ReplicaFound[]) => {
    const one = plan(row, found).tenants[0];
    return `${one?.verdict} ${one?.survivor?.node ?? "nobody"}`;
  };

  test("leaves alone what has its majority", () => {
    const row = tenant("t", 2, 1, 2, 3);
    const whole = plan(row, [replica(2, 1), replica(2, 2)]);
    expect(whole.tenants[0]?.verdict).toBe("whole");
    // Nothing to be done: neither is the directory touched.
    expect(whole.system.verdict).toBe("whole");
    expect(whole.learners).toEqual([]);
  });

  test("recovers the others from who is left, and the directory along with them", () => {
    const row = tenant("t", 2, 1, 3, 5);
    const made = plan(row, [replica(2, 1, { voters: [1, 3, 5] })]);
    expect(made.tenants[0]).toMatchObject({ verdict: "recover", gone: ["n3", "n5"] });
    expect(made.system).toMatchObject({ verdict: "recover", survivor: { node: "n1", id: 1 } });
    expect(made.learners).toEqual([
      { node: "n2", id: 6 },
      { node: "n4", id: 7 },
    ]);
  });

  test("counts both halves of a joint configuration, and what is in the log and not applied", () => {
    const row = tenant("t", 2, 1, 2, 3);
    const both = (more: Partial<ReplicaFound>) =>
      verdict(row, replica(2, 1, more), replica(2, 2, more));
    expect(both({})).toBe("whole n1");
    expect(both({ votersOutgoing: [1, 3, 5] })).toBe("recover n1");
    expect(both({ pending: [{ adds: true, id: 4 }] })).toBe("recover n1");
    expect(both({ pending: [{ adds: false, id: 3 }] })).toBe("whole n1");
  });

  test("trusts no damage, no stranger and no other incarnation", () => {
    const row = tenant("t", 2, 1, 2, 3);
    const good = replica(2, 2);
    expect(verdict(row, replica(2, 1, { damaged: "rotten", index: 99 }), good)).toBe("recover n2");
    expect(verdict(row, replica(2, 1, { incarnation: 8, index: 99 }), good)).toBe("recover n2");
    expect(verdict(row, replica(2, 4, { id: 9, index: 99 }), good, replica(2, 1))).toBe("whole n1");
    const bad = { damaged: "rotten" };
    expect(verdict(row, replica(2, 1, bad), replica(2, 2, bad))).toBe("lost nobody");
  });

  test("knows what nobody has, and what nobody ever used", () => {
    expect(verdict(tenant("t", 2, 3, 5))).toBe("lost nobody");
    expect(verdict(tenant("t", 2, 1, 2, 3))).toBe("whole n1");
    expect(verdict(tenant("t", 2, 1, 3, 5))).toBe("recover n1");
  });
});
