/** Nodes of two versions in one cluster: what is proposed, what raises it, and who has to end. */
import { describe, expect, test } from "vitest";
import { levelsHere, Versions } from "../../src/host/versions.ts";
import type { Command } from "../../src/machine/command.ts";
import type { SimNode } from "../sim/world.ts";
import { Cluster } from "./cluster.ts";
import { command } from "./scripted_node.ts";

const OLD = levelsHere;
const NEW = { min: 1, max: OLD.max + 1 };

/** A cluster of these versions from its beginning. */
async function running(levels: readonly (typeof OLD)[]): Promise<Cluster> {
  const cluster = new Cluster({ levels });
  await cluster.ready();
  await cluster.create("acme");
  return cluster;
}

/** The same disk under another version. */
function upgrade(cluster: Cluster, node: SimNode, levels: typeof OLD, version: string): void {
  cluster.world.crash(node);
  Object.assign(node, { levels, version });
  cluster.world.start(node);
}

const raise = (level: number): Command => command({ op: "system.level", level });

describe("a cluster of two versions", () => {
  test("begins at what all know, and proposes so until it is raised", async () => {
    const cluster = await running([OLD, NEW, OLD]);
    expect(cluster.node(1).host?.semantics).toBe(OLD.max);
    for (const node of [cluster.node(0), cluster.node(2)]) upgrade(cluster, node, NEW, "2.0.0");
    await cluster.ready();
    await cluster.until("heard", () =>
      cluster.world.nodes.every(
        ({ host }) => host?.cluster().nodes.every(({ levels }) => levels?.max === NEW.max) === true,
      ),
    );
    // That all know it changes nothing by itself: they could still go back.
    for (const { host } of cluster.world.nodes) expect(host?.semantics).toBe(OLD.max);
    await cluster.change(cluster.node(0), "_system", raise(NEW.max));
    await cluster.until("raised", () =>
      cluster.world.nodes.every(({ host }) => host?.semantics === NEW.max),
    );
    expect(cluster.node(2).host?.cluster().level).toBe(NEW.max);
    expect(await cluster.change(cluster.node(0), "_system", raise(OLD.max))).toMatchObject({
      ok: false,
      code: "conflict",
    });
  });

  test("once raised ends a node that knows less, with a line that says what to do", async () => {
    const cluster = await running([NEW, NEW, NEW]);
    const node = cluster.node(2);
    upgrade(cluster, node, OLD, "1.0.0");
    await cluster.until("ended", () => node.fatal !== null);
    expect(node.fatal?.message).toMatch(
      new RegExp(
        `^Version 1\\.0\\.0 knows levels 1 to ${OLD.max} and the cluster is at level ${NEW.max}.*: install the version that the other nodes run$`,
      ),
    );
    cluster.world.crash(node);
    // The others go on, and it comes back as it was.
    upgrade(cluster, node, NEW, "2.0.0");
    await cluster.ready();
  });

  test("takes no new node that knows less: it hears so before it is anybody", async () => {
    const cluster = new Cluster({ spares: 1, levels: [NEW, NEW, NEW, OLD] });
    await cluster.ready();
    const spare = cluster.node(3);
    cluster.world.start(spare);
    await cluster.until("ended", () => spare.fatal !== null);
    expect(spare.fatal?.message).toMatch(/where node n[123] runs version sim/);
    expect(cluster.node(0).host?.directory.node("n4")).toBe(undefined);
  });

  test("a command of a later level stops the replica of who does not know it, and is not taken for another", async () => {
    const cluster = await running([OLD, OLD, OLD]);
    const of = { ...command({ op: "schedule.pass" }), semantics: OLD.max + 1 };
    cluster.propose(cluster.node(0), "acme", of);
    await cluster.until("stopped", () =>
      [...(cluster.node(0).host?.replicas() ?? [])].some(
        ({ tenant, halted }) => tenant === "acme" && halted !== null,
      ),
    );
    const halted = [...(cluster.node(0).host?.replicas() ?? [])].map((one) => one.halted);
    expect(halted.join()).toContain(
      `its level is ${OLD.max + 1}, this version knows levels up to ${OLD.max}`,
    );
  });
});

describe("Versions", () => {
  test("refuses a cluster that is below what it knows, naming the way", () => {
    const versions = new Versions("9.0.0", { min: 7, max: 9 }, () => 6);
    expect(versions.refusal).toBe(
      "Version 9.0.0 knows levels 7 to 9 and the cluster is at level 6: run a version that knows level 6 until the cluster's level was raised",
    );
    expect(new Versions("9.0.0", { min: 7, max: 9 }, () => null).refusal).toBe(null);
  });

  test("takes nobody's word for a lower level than others name: it has yet to hear that it was raised", () => {
    const news = (level: number) => ({
      version: "8.0.0",
      levels: { min: 6, max: 8 },
      level,
      leaders: 0,
    });
    const member = new Versions("9.0.0", { min: 7, max: 9 }, () => 7);
    member.heard("n2", news(6));
    expect(member.refusal).toBe(null);
    member.heard("n3", news(10));
    expect(member.refusal).toContain("is at level 10, where node n3 runs version 8.0.0");
    const joins = new Versions("9.0.0", { min: 7, max: 9 }, () => null);
    joins.heard("n3", news(7));
    joins.heard("n2", news(6));
    expect(joins.refusal).toBe(null);
  });
});
