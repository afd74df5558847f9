/** What three real nodes owe each other and their callers, in the simulated world with fair weather and chosen faults. */
import { describe, expect, test } from "vitest";
import { Problem } from "../../src/api/problems.ts";
import { frameItems, ItemKind, parseRaftItem } from "../../src/host/codec.ts";
import type { TenantView } from "../../src/host/ports.ts";
import type { Command, Outcome } from "../../src/machine/command.ts";
import { restoredMeta } from "../../src/machine/directory.ts";
import type { TenantMeta } from "../../src/machine/rows.ts";
import { MessageType } from "../../src/raft/types.ts";
import { effective } from "../../src/machine/queries.ts";
import { JournalStoppedError } from "../../src/store/journal.ts";
import type { SimNode } from "../sim/world.ts";
import { Cluster, latest, publish, ready, versions } from "./cluster.ts";
import { command, createTenant } from "./scripted_node.ts";

describe("a leader that was frozen longer than an election takes", () => {
  test("serves nothing old when it goes on, and takes no change for itself", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("old"));
    const frozen = cluster.leader("acme") as SimNode;
    const other = cluster.world.nodes.find((node) => node !== frozen) as SimNode;
    cluster.world.freeze(frozen, 4_000);
    await cluster.until("another leads", () => cluster.leader("acme") !== frozen, 5_000);
    await cluster.change(other, "acme", publish("new"));
    // Asked while it is still frozen: the first thing it does when it goes on.
    const seen = cluster.read(frozen, "acme", latest);
    const answer = cluster.propose(frozen, "acme", publish("newer"), 9_000);
    expect(await seen).toBe("new");
    await cluster.until("an answer", () => answer.outcome !== null);
    for (const node of cluster.world.nodes) {
      expect(await cluster.read(node, "acme", latest)).toBe("newer");
    }
  });
});

describe("a node that still reads its journal", () => {
  test("says nothing and hears nothing, and then has all that it had", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("before"));
    const node = cluster.leader("acme") as SimNode;
    cluster.world.crash(node);
    await cluster.until("another leads", () => cluster.leader("acme") !== null);
    cluster.world.start(node);
    cluster.world.stallDisk(node, 5_000);
    const { disk } = node;
    await cluster.pass(4_000);
    expect(disk.operations).toContain("read");
    expect([...(node.host?.replicas() ?? [])]).toEqual([]);
    expect(node.host?.ready).toBe(false);
    const others = cluster.world.nodes.filter((other) => other !== node);
    for (const other of others) expect(other.host?.liveness.supports(node.name)).toBe(false);
    await cluster.change(others[0] as SimNode, "acme", publish("meanwhile"));
    await cluster.until("it is ready", () => node.host?.ready === true);
    expect(await cluster.read(node, "acme", latest)).toBe("meanwhile");
  });

  test("can be stopped", async () => {
    const cluster = await ready();
    const node = cluster.node(0);
    cluster.world.crash(node);
    const outcome: unknown[] = [];
    cluster.world.onStartFailed = (error) => outcome.push(error);
    cluster.world.start(node);
    cluster.world.stallDisk(node, 5_000);
    let stopped = false;
    void node.host?.stop().then(() => (stopped = true));
    await cluster.until("it has stopped", () => stopped, 2_000);
    expect(outcome).toEqual([new JournalStoppedError("Journal is closed")]);
  });
});

describe("a change with an idempotency key", () => {
  test("gets its first answer from every later leader, also one that got its state as a snapshot", async () => {
    const cluster = await ready({ tuning: { logKeptEntries: 0, checkpointBytes: 1 } });
    await cluster.create("acme");
    const first = await cluster.change(cluster.node(0), "acme", publish("once", "key"));
    const behind = cluster.world.nodes.find((node) => node !== cluster.leader("acme")) as SimNode;
    cluster.world.crash(behind);
    for (const text of ["a", "b", "c"]) {
      await cluster.change(cluster.leader("acme") ?? behind, "acme", publish(text));
    }
    await cluster.pass(2_000);
    cluster.world.start(behind);
    const caughtUp = (): boolean =>
      cluster.replicas("acme").length === 3 &&
      new Set(cluster.replicas("acme").map(({ replica }) => replica.raft.appliedIndex)).size === 1;
    await cluster.until("all caught up", caughtUp);
    for (const leader of [behind, ...cluster.world.nodes.filter((node) => node !== behind)]) {
      const from = cluster.leader("acme") as SimNode;
      if (from !== leader) {
        const { replica } = cluster.replicas("acme").find(({ node }) => node === from) ?? {};
        const to = [...(replica?.members ?? [])].find(([, name]) => name === leader.name)?.[0] ?? 0;
        replica?.raft.transferLeadership(to);
      }
      await cluster.until("it leads", () => cluster.leader("acme") === leader);
      const again = await cluster.change(leader, "acme", publish("once", "key"));
      expect(again).toMatchObject({ ...first, replayed: true });
    }
    expect(await cluster.read(behind, "acme", versions)).toBe(4);
  });

  test("is done once although its leader dies with the answer", async () => {
    for (const afterMs of [0.5, 1, 2, 3, 5, 10]) {
      const cluster = await ready();
      await cluster.create("acme");
      const leader = cluster.leader("acme") as SimNode;
      const caller = cluster.world.nodes.find((node) => node !== leader) as SimNode;
      const answer = cluster.propose(caller, "acme", publish("once", "key"), 8_000);
      await cluster.pass(afterMs);
      cluster.world.crash(leader);
      await cluster.until("an answer", () => answer.outcome !== null || answer.problem !== null);
      expect(answer.outcome?.ok, `${afterMs} ms`).toBe(true);
      expect(await cluster.read(caller, "acme", versions)).toBe(1);
    }
  });
});

describe("a watcher", () => {
  test("is told every revision once and in order while leaders die, or is sent away to resume", async () => {
    const cluster = await ready({ tuning: { logKeptEntries: 0, checkpointBytes: 1 } });
    await cluster.create("acme");
    const told = cluster.world.nodes.map(() => ({ from: 0, revisions: [] as number[], end: "" }));
    for (const [at, node] of cluster.world.nodes.entries()) {
      const mine = told[at] as { from: number; revisions: number[]; end: string };
      let begun = false;
      node.host?.watchWith(
        "acme",
        (view) => {
          mine.from = view.revision;
        },
        {
          commit: ({ revision }) => {
            // Nothing after the end.
            expect(mine.end).toBe("");
            mine.revisions.push(revision);
          },
          end: (reason) => {
            mine.end = reason;
          },
        },
        () => {
          begun = true;
        },
      );
      await cluster.until("the watch began", () => begun);
    }
    let written = 0;
    for (let round = 0; round < 6; round++) {
      const victim = cluster.leader("acme") as SimNode;
      const writer = cluster.world.nodes.find((node) => node !== victim) as SimNode;
      await cluster.change(writer, "acme", publish(`${(written += 1)}`));
      for (const other of cluster.world.nodes) {
        if (other === victim) continue;
        cluster.world.cut(victim, other);
        cluster.world.cut(other, victim);
      }
      await cluster.until("another leads", () => cluster.leader("acme") !== victim);
      for (let i = 0; i < 5; i++) {
        await cluster.change(writer, "acme", publish(`${(written += 1)}`));
      }
      await cluster.pass(1_000);
      cluster.world.heal();
      await cluster.pass(3_000);
    }
    const { revision } = await cluster.read(cluster.node(0), "acme", (view) => ({
      revision: view.revision,
    }));
    for (const { from, revisions, end } of told) {
      expect(revisions).toEqual(revisions.map((_, step) => from + 1 + step));
      if (end === "") expect(from + revisions.length).toBe(revision);
      else expect(end).toBe("resync");
    }
    expect(told.some(({ end }) => end === "resync")).toBe(true);
  });

  test("hears whether its tenant is gone, or comes back from a backup with its keys", async () => {
    const cluster = await ready();
    for (const [tenant, reason] of [
      ["acme", "restored"],
      ["other", "tenant-deleted"],
    ] as const) {
      await cluster.create(tenant);
      const ended: string[] = [];
      let begun = 0;
      for (const node of cluster.world.nodes)
        node.host?.watchWith(
          tenant,
          () => {},
          { commit: () => {}, end: (why) => ended.push(why) },
          () => begun++,
        );
      await cluster.until("they watch", () => begun === 3);
      const { epoch, meta } = await cluster.read(cluster.node(0), tenant, (view) => ({
        epoch: view.epoch,
        meta: view.get<TenantMeta>("meta") as TenantMeta,
      }));
      const source = { tenant, epoch, revision: meta.revision };
      const restore = { source, meta: restoredMeta(meta), adminKey: true };
      const action: Command["action"] =
        reason === "restored"
          ? { ...createTenant(tenant), replace: true, restore }
          : { op: "directory.delete", tenant, purge: true };
      expect((await cluster.change(cluster.node(0), "_system", command(action))).ok).toBe(true);
      await cluster.until("they hear of it", () => ended.length === 3);
      expect(ended).toEqual([reason, reason, reason]);
    }
  });
});

test("whoever asks after a restore ended is not told that it goes on, wherever it asks", async () => {
  const cluster = await ready();
  await cluster.create("acme");
  const { epoch, meta } = await cluster.read(cluster.node(0), "acme", (view) => ({
    epoch: view.epoch,
    meta: view.get<TenantMeta>("meta") as TenantMeta,
  }));
  const source = { tenant: "acme", epoch, revision: meta.revision };
  // Of a backup without any rows, so that none have to be sent.
  const none = { configs: 0, deleted: 0, namespaces: 0, keys: 0, bytes: 0 };
  const restore = { source, meta: { ...restoredMeta(meta), ...none }, adminKey: true };
  const begin = { ...createTenant("acme"), replace: true, restore };
  expect((await cluster.change(cluster.node(0), "_system", command(begin))).ok).toBe(true);
  const askedAt = async (): Promise<string[]> => {
    const answers: string[] = [];
    for (const node of cluster.world.nodes)
      node.host?.requests.read("acme", { consistency: "stale" }, (error) => {
        answers.push(error instanceof Problem ? error.code : String(error));
      });
    await cluster.until("all answer", () => answers.length === 3);
    return answers;
  };
  await cluster.until("it is led", () => cluster.leader("acme") !== null);
  await cluster.pass(3_000);
  expect(await askedAt()).toEqual(["restoring", "restoring", "restoring"]);
  const leader = cluster.leader("acme") as ReturnType<typeof cluster.node>;
  const finish = command({ op: "restore.finish", rows: 0 });
  expect(await cluster.change(leader, "acme", finish)).toMatchObject({ ok: true });
  expect(await askedAt()).toEqual(["null", "null", "null"]);
});

describe("many groups", () => {
  test("all have another leader soon when a node dies, without elections that disturb each other", async () => {
    const cluster = await ready();
    const tenants = Array.from({ length: 150 }, (_, at) => `t${at}`);
    const answers = tenants.map((tenant) =>
      cluster.propose(cluster.node(0), "_system", command(createTenant(tenant))),
    );
    await cluster.until("all are made", () => answers.every(({ outcome }) => outcome !== null));
    const leads = (tenant: string): boolean => cluster.leader(tenant) !== null;
    await cluster.until("all are led", () => tenants.every(leads));
    await cluster.pass(3_000);
    const termOf = (tenant: string): number =>
      Math.max(...cluster.replicas(tenant).map(({ replica }) => replica.raft.term));
    const before = new Map(tenants.map((tenant) => [tenant, termOf(tenant)]));
    const victim = cluster.node(0);
    const orphans = tenants.filter((tenant) => cluster.leader(tenant) === victim);
    expect(orphans.length).toBeGreaterThan(64);
    const asked = new Map<number, number>();
    cluster.world.onSent = (_lane, bytes) => {
      for (const { kind, item } of frameItems(bytes)) {
        if (kind !== ItemKind.raft || parseRaftItem(item).message.type !== MessageType.preVote)
          continue;
        asked.set(cluster.world.now, (asked.get(cluster.world.now) ?? 0) + 1);
      }
    };
    cluster.world.crash(victim);
    // Noticed after a second: sooner than by the groups' own timers, and not all in the same moment.
    await cluster.until("all are led again", () => tenants.every(leads), 1_500);
    expect([...asked.values()].reduce((sum, count) => sum + count)).toBeGreaterThan(2 * 64);
    expect(Math.max(...asked.values())).toBeLessThanOrEqual(2 * 64);
    await cluster.pass(5_000);
    cluster.world.start(victim);
    await cluster.pass(10_000);
    expect(tenants.every(leads)).toBe(true);
    const rises = tenants.map((tenant) => termOf(tenant) - (before.get(tenant) ?? 0));
    expect(Math.max(...rises)).toBeLessThanOrEqual(2);
    const untouched = tenants.filter((tenant) => !orphans.includes(tenant));
    for (const tenant of untouched) expect(termOf(tenant)).toBe(before.get(tenant));
  });

  test("are elected once where somebody waits on every node that is left", async () => {
    const cluster = await ready();
    const tenants = Array.from({ length: 60 }, (_, at) => `t${at}`);
    for (const tenant of tenants) await cluster.create(tenant);
    await cluster.pass(3_000);
    const termOf = (tenant: string): number =>
      Math.max(...cluster.replicas(tenant).map(({ replica }) => replica.raft.term));
    const victim = cluster.node(0);
    const orphans = tenants.filter((tenant) => cluster.leader(tenant) === victim);
    expect(orphans.length).toBeGreaterThan(0);
    const before = orphans.map(termOf);
    cluster.world.crash(victim);
    const answers = orphans.flatMap((tenant) =>
      cluster.world.alive.map((node) =>
        cluster.propose(node, tenant, publish(`${tenant} by ${node.name}`, node.name)),
      ),
    );
    const isAnswered = (): boolean => answers.every(({ outcome }) => outcome !== null);
    await cluster.until("all are written to", isAnswered, 1_500);
    expect(orphans.map(termOf)).toEqual(before.map((term) => term + 1));
  });

  test("are led soon that were made a moment ago, on whichever node somebody waits", async () => {
    const cluster = await ready();
    const put = command({ op: "config.put", namespace: "app", name: "c", format: "text" });
    for (let at = 0; at < 120; at++) {
      const tenant = `t${at}`;
      const made = command(createTenant(tenant));
      expect((await cluster.change(cluster.node(at % 3), "_system", made)).ok).toBe(true);
      const asked = cluster.node(Math.floor(at / 3) % 3);
      const answer = cluster.propose(asked, tenant, put);
      const isAnswered = (): boolean => answer.outcome !== null;
      await cluster.until(`${tenant} is written to on ${asked.name}`, isAnswered, 400);
    }
  });

  test("that are gone are known to be so on every node that is there, before who deletes them is told", async () => {
    const cluster = await ready();
    const knows = (tenant: string): boolean[] =>
      cluster.world.alive.map((node) => node.host?.directory.tenant(tenant) !== undefined);
    const purge = async (tenant: string): Promise<boolean[]> => {
      const action = { op: "directory.delete", tenant, purge: true } as const;
      const asked = cluster.leader("_system") as SimNode;
      const gone = await cluster.change(asked, "_system", command(action));
      let after: boolean[] | null = null;
      void asked.host?.directoryReached(gone.revision).then(() => (after = knows(tenant)));
      // A node that was lost without a word is waited for as long as it may still count as there; and the world runs promises
      // once in many events only.
      await cluster.until("it is told", () => after !== null, 2_000);
      return after ?? [];
    };
    await cluster.create("last");
    for (let at = 0; at < 30; at++) {
      await cluster.create(`t${at}`);
      expect(await purge(`t${at}`)).toEqual([false, false, false]);
    }
    const leader = cluster.leader("_system");
    cluster.world.crash(cluster.world.alive.find((node) => node !== leader) as SimNode);
    expect(await purge("last")).toEqual([false, false]);
  });

  test("that are gone are known to be so before any of a thousand and more who delete them is told, by few questions", async () => {
    const cluster = await ready();
    await cluster.create("gone");
    const asked = cluster.leader("_system") as SimNode;
    const slow = cluster.world.nodes.find((node) => node !== asked) as SimNode;
    const purge = { op: "directory.delete", tenant: "gone", purge: true } as const;
    // It is there, and applies nothing.
    cluster.world.stallDisk(slow, 3_000);
    const { revision } = await cluster.change(asked, "_system", command(purge));
    let calls = 0;
    cluster.world.onSent = (lane) => void (calls += Number(lane === "rpc"));
    const counts = { told: 0, early: 0, failed: 0 };
    // Somebody waits for less already, and is answered soon.
    void asked.host?.directoryReached(revision - 1);
    await cluster.pass(0.05);
    for (let at = 0; at < 1_500; at++)
      void asked.host?.directoryReached(revision - (at % 3)).then(
        () => {
          counts.told += 1;
          if (at % 3 === 0 && slow.host?.directory.tenant("gone") !== undefined) counts.early += 1;
        },
        () => (counts.failed += 1),
      );
    await cluster.pass(2_000);
    expect(slow.host?.directory.tenant("gone")).toBeDefined();
    expect(counts).toMatchObject({ early: 0, failed: 0 });
    await cluster.until("all are told", () => counts.told === 1_500, 3_000);
    expect(slow.host?.directory.tenant("gone")).toBeUndefined();
    // A question each second to each node, and its answer.
    expect(calls).toBeLessThan(30);
  });

  test("that are gone are not said to be so while a node that is there does not know it", async () => {
    const cluster = await ready();
    await cluster.create("gone");
    const asked = cluster.leader("_system") as SimNode;
    const slow = cluster.world.nodes.find((node) => node !== asked) as SimNode;
    const purge = { op: "directory.delete", tenant: "gone", purge: true } as const;
    cluster.world.stallDisk(slow, 30_000);
    const { revision } = await cluster.change(asked, "_system", command(purge));
    // Nobody may wait on it any more: it says no at once, each time.
    slow.host?.requests.stop();
    let calls = 0;
    cluster.world.onSent = (lane) => void (calls += Number(lane === "rpc"));
    const problems: Problem[] = [];
    void asked.host?.directoryReached(revision).catch((error: Problem) => problems.push(error));
    await cluster.until("it is told so", () => problems.length > 0, 7_000);
    expect(asked.host?.liveness.supports(slow.name)).toBe(true);
    expect(problems[0]).toMatchObject({ code: "outcome-unknown" });
    expect(problems[0]?.message).toContain(`node "${slow.name}" does not know`);
    // It was asked again and again.
    expect(calls).toBeGreaterThan(20);
  });

  test("are elected soon although two ask for votes at once and the third is gone", async () => {
    const cluster = await ready();
    const tenants = Array.from({ length: 10 }, (_, at) => createTenant(`t${at}`));
    const made = command({ op: "directory.createMany", tenants });
    expect((await cluster.change(cluster.node(0), "_system", made)).ok).toBe(true);
    await cluster.pass(1_000);
    const [one, other, third] = cluster.world.nodes as [SimNode, SimNode, SimNode];
    cluster.world.crash(third);
    await cluster.pass(3_000);
    const put = command({ op: "config.put", namespace: "app", name: "c", format: "text" });
    const answers = tenants.flatMap(({ tenant }) =>
      [one, other].map((node) => cluster.propose(node, tenant, put)),
    );
    const isAnswered = (): boolean => answers.every(({ outcome }) => outcome !== null);
    await cluster.until("all are answered", isAnswered, 700);
  });

  test("share the disk: a write waits for no more than what is under way of the busiest, and its own", async () => {
    // Another segment is a matter of several operations, once in many megabytes.
    const cluster = await ready({ segmentBytes: 64 * 1024 * 1024 });
    const { world } = cluster;
    for (const tenant of ["busy", "quiet"]) await cluster.create(tenant);
    await cluster.pass(1_000);
    world.weather = { ...world.weather, disk: [20, 20] };
    const leader = (tenant: string): SimNode => cluster.leader(tenant) ?? cluster.node(0);
    const longest = async (name: string): Promise<number> => {
      let ms = 0;
      for (let at = 0; at < 5; at++) {
        const begun = world.now;
        const outcome = await cluster.change(leader("quiet"), "quiet", publish(`${name}${at}`));
        expect(outcome.ok).toBe(true);
        ms = Math.max(ms, world.now - begun);
        await cluster.pass(37);
      }
      return ms;
    };
    const alone = await longest("alone");
    let written = 0;
    let isBusy = true;
    const write = (): void => {
      if (!isBusy) return;
      for (let at = 0; at < 5; at++)
        leader("busy").host?.requests.propose("busy", publish("x".repeat(500)), 5_000, (error) => {
          if (error === null) written += 1;
        });
      world.after(5, write);
    };
    write();
    await cluster.pass(200);
    const beside = await longest("beside");
    isBusy = false;
    // As many as it could, and each of the quiet one's two writes waits for one of it.
    expect(written).toBeGreaterThan(100);
    expect(beside).toBeLessThanOrEqual(2 * alone + 20);
  });
});

describe("a group that sleeps on every node", () => {
  const wakes: Record<string, (cluster: Cluster) => Promise<void>> = {
    "a change": async (cluster) => {
      await cluster.change(cluster.node(2), "acme", publish("b"));
    },
    "a read": async (cluster) => {
      expect(await cluster.read(cluster.node(1), "acme", latest)).toBe("a");
    },
    "a watch": async (cluster) => {
      let revision = 0;
      cluster.node(2).host?.watchWith(
        "acme",
        (view) => {
          revision = view.revision;
        },
        {
          commit: ({ revision: next }) => {
            revision = next;
          },
          end: () => {},
        },
        () => {},
      );
      await cluster.until("the state", () => revision > 0);
      const { revision: written } = await cluster.change(cluster.node(0), "acme", publish("b"));
      await cluster.until("the commit", () => revision === written);
    },
    "a change after its leader's node died": async (cluster) => {
      cluster.world.crash(cluster.node(0));
      await cluster.pass(3_000);
      await cluster.change(cluster.node(2), "acme", publish("b"));
      expect(await cluster.read(cluster.node(1), "acme", latest)).toBe("b");
    },
    "a change after all nodes were started anew": async (cluster) => {
      for (const node of cluster.world.nodes) cluster.world.crash(node);
      for (const node of cluster.world.nodes) cluster.world.start(node);
      await cluster.ready();
      await cluster.change(cluster.node(1), "acme", publish("b"));
      expect(await cluster.read(cluster.node(2), "acme", latest)).toBe("b");
    },
  };
  for (const [cause, wake] of Object.entries(wakes)) {
    test(`is woken by ${cause}`, async () => {
      const cluster = await ready({ tuning: { sleepAfterMs: 2_000 } });
      await cluster.create("acme");
      await cluster.change(cluster.node(0), "acme", publish("a"));
      await cluster.until("all sleep", () => cluster.replicas("acme").length === 0, 20_000);
      await wake(cluster);
    });
  }
});

describe("a node without room for another replica", () => {
  test("answers with a problem, goes on with those it has, and takes it when there is room", async () => {
    const cluster = await ready({ tuning: { sleepAfterMs: 3_000, awakeLimit: 2 } });
    await cluster.create("acme");
    const made = await cluster.change(cluster.node(0), "_system", command(createTenant("beta")));
    expect(made.ok).toBe(true);
    const answer = cluster.propose(cluster.node(0), "beta", publish("x"), 1_000);
    await cluster.until("an answer", () => answer.problem !== null);
    expect(answer.problem?.code).toBe("no-quorum");
    expect((await cluster.change(cluster.node(0), "acme", publish("a"))).ok).toBe(true);
    for (const node of cluster.world.nodes) expect(node.fatal).toBeNull();
    await cluster.until("it sleeps", () => cluster.replicas("acme").length === 0, 20_000);
    const put = command({ op: "config.put", namespace: "app", name: "c", format: "text" });
    expect((await cluster.change(cluster.node(0), "beta", put)).ok).toBe(true);
  });
});

describe("a node whose disk is nearly full", () => {
  const byKey = (text: string): Command => ({
    ...publish(text),
    actor: { kind: "admin", keyId: "kacme" },
  });

  test("takes no writes, gives its leaderships away, and goes on reading and voting", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    const leader = cluster.leader("acme") as SimNode;
    leader.room.level = "low";
    const refused = cluster.propose(leader, "acme", byKey("x"), 1_000);
    await cluster.until("an answer", () => refused.problem !== null);
    expect(refused.problem?.code).toBe("disk-full");
    await cluster.until("another leads", () => {
      const leaders = cluster.replicas("acme").filter(({ replica }) => replica.raft.isLeader);
      return leaders.length === 1 && leaders[0]?.node !== leader;
    });
    expect((await cluster.change(leader, "acme", byKey("a"))).ok).toBe(true);
    expect(await cluster.read(leader, "acme", latest)).toBe("a");
    // All of them: nobody takes writes, everybody votes.
    for (const node of cluster.world.nodes) node.room.level = "low";
    cluster.world.crash(cluster.leader("acme") as SimNode);
    await cluster.until("a leader", () => cluster.leader("acme") !== null);
    const answer = cluster.propose(cluster.world.alive[0] as SimNode, "acme", byKey("y"), 1_000);
    await cluster.until("an answer", () => answer.problem !== null);
    expect(answer.problem?.code).toBe("disk-full");
  });

  const onlyLeader = (cluster: Cluster): SimNode | undefined => {
    const leaders = cluster.replicas("acme").filter(({ replica }) => replica.raft.isLeader);
    return leaders.length === 1 ? leaders[0]?.node : undefined;
  };

  test("gives away what it comes to lead, and only to a node that has room", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    const leader = cluster.leader("acme") as SimNode;
    const [short, fit] = cluster.world.nodes.filter((node) => node !== leader) as [
      SimNode,
      SimNode,
    ];
    for (const node of [short, leader]) node.room.level = "low";
    await cluster.until("the one with room leads", () => onlyLeader(cluster) === fit);
    const given = cluster.replicas("acme").find(({ node }) => node === fit)?.replica;
    const heir = cluster.replicas("acme").find(({ node }) => node === short)?.replica.id as number;
    cluster.world.within(fit, () => given?.raft.transferLeadership(heir));
    await cluster.until("one without room leads", () => onlyLeader(cluster) === short);
    await cluster.until("the one with room leads again", () => onlyLeader(cluster) === fit);
    expect((await cluster.change(short, "acme", byKey("a"))).ok).toBe(true);
    // Where nobody has room it stays where it is, until somebody has.
    fit.room.level = "low";
    await cluster.pass(15_000);
    expect(onlyLeader(cluster)).toBe(fit);
    leader.room.level = "free";
    await cluster.until("who made room leads", () => onlyLeader(cluster) === leader, 15_000);
  });

  test("offers what it leads less and less often to who does not take it over", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    // Whoever has yet to say that it has all of it is offered nothing.
    await cluster.pass(500);
    const leader = cluster.leader("acme") as SimNode;
    const [stopped, away] = cluster.world.nodes.filter((node) => node !== leader) as [
      SimNode,
      SimNode,
    ];
    // Its node takes leaderships, and does not say that this replica takes none.
    cluster
      .replicas("acme")
      .find(({ node }) => node === stopped)
      ?.replica.halt("by the test");
    away.room.level = "low";
    // The leader knows that this one takes nothing.
    await cluster.pass(500);
    let offers = 0;
    cluster.world.onSent = (_lane, bytes) => {
      for (const { kind, item } of frameItems(bytes))
        if (kind === ItemKind.raft && parseRaftItem(item).message.type === MessageType.timeoutNow)
          offers += 1;
    };
    leader.room.level = "low";
    await cluster.pass(75_000);
    // After 10, 20 and 40 s.
    expect([offers > 0, offers <= 5]).toEqual([true, true]);
    offers = 0;
    await cluster.pass(75_000);
    expect(offers).toBeLessThanOrEqual(1);
    expect(onlyLeader(cluster)).toBe(leader);
    // Another one that comes by room need not wait for that.
    away.room.level = "free";
    await cluster.until("who made room leads", () => onlyLeader(cluster) === away, 15_000);
  });

  test("gives away what slept there while it got short, once it wakes", async () => {
    const cluster = await ready({ tuning: { sleepAfterMs: 2_000 } });
    await cluster.create("acme");
    const leader = cluster.leader("acme") as SimNode;
    await cluster.until("all sleep", () => cluster.replicas("acme").length === 0, 20_000);
    leader.room.level = "low";
    await cluster.pass(1_000);
    expect(await cluster.read(leader, "acme", latest)).toBeNull();
    await cluster.until("another leads", () => ![undefined, leader].includes(onlyLeader(cluster)));
    expect((await cluster.change(leader, "acme", byKey("a"))).ok).toBe(true);
  });

  test("takes nothing that can be refused on its last room, and catches up when there is room", async () => {
    const cluster = await ready();
    await cluster.create("acme");
    const leader = cluster.leader("acme") as SimNode;
    const full = cluster.world.nodes.find((node) => node !== leader) as SimNode;
    full.room.level = "out";
    for (let n = 0; n < 5; n++)
      expect(await cluster.change(leader, "acme", byKey(`${n}`))).toMatchObject({ ok: true });
    const on = (node: SimNode): number =>
      cluster.replicas("acme").find((one) => one.node === node)?.replica.durableIndex ?? 0;
    expect(on(full)).toBeLessThan(on(leader));
    full.room.level = "free";
    await cluster.until("it has caught up", () => on(full) === on(leader));
  });
});

describe("a rule whose time comes", () => {
  const start = 1_700_000_000_000;
  const at = (ms: number): string => new Date(start + ms).toISOString();

  async function scheduled(cluster: Cluster, fromMs: number): Promise<void> {
    await cluster.create("acme");
    await cluster.change(cluster.node(0), "acme", publish("now"));
    const create = { ...publish("later").action, op: "version.create" } as Command["action"];
    await cluster.change(cluster.node(0), "acme", command(create));
    const release = await cluster.change(
      cluster.node(0),
      "acme",
      command({
        op: "release.put",
        namespace: "app",
        name: "c",
        rules: [{ id: "later", match: {}, from: at(fromMs), version: 2 }],
        default: 1,
      }),
    );
    expect(release.ok).toBe(true);
    await cluster.until("applied", () =>
      cluster.replicas("acme").every(({ replica }) => replica.view.revision === release.revision),
    );
  }

  const value = (view: TenantView): string | undefined => effective(view, "app", "c", {})?.text;
  const seen = (node: SimNode): string[] => {
    const commits: string[] = [];
    node.host?.watchWith(
      "acme",
      () => {},
      {
        commit: ({ revision, changes }, view) =>
          commits.push(`${revision} ${changes.map(({ type }) => type).join()} ${value(view)}`),
        end: () => {},
      },
      () => {},
    );
    return commits;
  };

  test("begins on all replicas at one revision, though nobody writes", async () => {
    const cluster = await ready();
    await scheduled(cluster, 20_000);
    const commits = cluster.world.nodes.map(seen);
    await cluster.pass(19_000 - cluster.world.now);
    expect(commits).toEqual([[], [], []]);
    await cluster.until("told", () => commits.every((one) => one.length > 0), 2_000);
    expect(new Set(commits.map((one) => one.join()))).toEqual(new Set(["6 schedule later"]));
  });

  test("that is late is not passed over by a read that needs no waiting", async () => {
    const cluster = await ready();
    await scheduled(cluster, 20_000);
    const leader = cluster.leader("acme") as SimNode;
    const now = () => leader.host?.viewNow("acme", { consistency: "linearizable" }) ?? null;
    const revision = now()?.revision;
    expect(revision).toBeDefined();
    await cluster.pass(19_900 - cluster.world.now);
    let late = 0;
    await cluster.until("told", () => {
      const view = now();
      if (view === null) late += 1;
      return view !== null && view.revision !== revision;
    });
    expect(late).toBeGreaterThan(0);
  });

  test("begins although its leader is gone", async () => {
    const cluster = await ready();
    await scheduled(cluster, 20_000);
    const leader = cluster.leader("acme") as SimNode;
    const others = cluster.world.nodes.filter((node) => node !== leader);
    const commits = others.map(seen);
    await cluster.pass(19_950 - cluster.world.now);
    cluster.world.crash(leader);
    await cluster.until("told", () => commits.every((one) => one.length > 0));
    expect(commits.map((one) => one.at(-1))).toEqual(["6 schedule later", "6 schedule later"]);
  });

  test.each([-3_600_000, 3_600_000])(
    "begins in time although its leader's wall clock was set by %d ms",
    async (byMs) => {
      const cluster = await ready();
      await scheduled(cluster, 20_000);
      const commits = cluster.world.nodes.map(seen);
      (cluster.leader("acme") as SimNode).wallOffset = byMs;
      await cluster.pass(19_000 - cluster.world.now);
      expect(commits).toEqual([[], [], []]);
      await cluster.until("told", () => commits.every((one) => one.length > 0), 2_000);
      expect(new Set(commits.map((one) => one.join()))).toEqual(new Set(["6 schedule later"]));
    },
  );

  test("wakes a group that sleeps, and a read never gets the value of before", async () => {
    const cluster = await ready({ tuning: { sleepAfterMs: 500 } });
    await scheduled(cluster, 30_000);
    await cluster.until("asleep", () => cluster.replicas("acme").length === 0, 20_000);
    await cluster.pass(29_900 - cluster.world.now);
    expect(cluster.replicas("acme")).toEqual([]);
    await cluster.until("awake", () => cluster.replicas("acme").length > 0, 1_000);
    // After a start nobody remembers the time: the read itself finds that it has come.
    await cluster.until("asleep again", () => cluster.replicas("acme").length === 0, 20_000);
    const restarted = await ready({ tuning: { sleepAfterMs: 500 } });
    await scheduled(restarted, 30_000);
    await restarted.until("asleep", () => restarted.replicas("acme").length === 0, 20_000);
    for (const node of restarted.world.nodes) restarted.world.crash(node);
    for (const node of restarted.world.nodes) restarted.world.start(node);
    await restarted.ready();
    await restarted.pass(40_000 - restarted.world.now);
    expect(restarted.replicas("acme")).toEqual([]);
    expect(await restarted.read(restarted.node(1), "acme", value)).toBe("later");
  });
});

describe("quotas", () => {
  test("that the directory changes come into force in the tenant, also after its leader went", async () => {
    const cluster = new Cluster();
    await cluster.ready();
    await cluster.create("acme");
    const quotas = (): number | undefined =>
      cluster.replicas("acme")[0]?.replica.view.get<TenantMeta>("meta")?.quotas.configs;
    const set = (configs: number): Promise<Outcome> =>
      cluster.change(
        cluster.node(0),
        "_system",
        command({ op: "directory.update", tenant: "acme", quotaChanges: { configs } }),
      );
    expect((await set(5)).ok).toBe(true);
    await cluster.until("in force", () => quotas() === 5);
    const stale = { op: "tenant.quotas", quotas: { configs: 4 }, revision: 1 } as const;
    await cluster.change(cluster.node(0), "acme", command(stale));
    expect(quotas()).toBe(5);
    const leader = cluster.leader("acme") as SimNode;
    cluster.world.crash(leader);
    const other = cluster.world.nodes.find((node) => node !== leader) as SimNode;
    await cluster.until("a new leader", () => {
      const system = [...(other.host?.replicas() ?? [])].find((one) => one.tenant === "_system");
      return system?.leaderNode !== null && system?.leaderNode !== leader.name;
    });
    expect(
      (
        await cluster.change(
          other,
          "_system",
          command({ op: "directory.update", tenant: "acme", quotaChanges: { configs: 6 } }),
        )
      ).ok,
    ).toBe(true);
    const put = command({ op: "config.put", namespace: "app", name: "d", format: "text" }, "d");
    await cluster.change(other, "acme", put);
    await cluster.until("in force at the successor", () => quotas() === 6);
  });
});
