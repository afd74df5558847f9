/**
 * A node finds what it was given to keep rotten on its disk: that replica stays out, nobody else notices, and the command
 * that operators run has it replaced from the others, unless without it no majority would hold everything.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startCluster } from "../../infra/cluster.mjs";
import {
  payloadStart,
  readSegment,
  recordKinds,
  recordsIn,
} from "../../src/store/journal_format.ts";
import { ask, conflux, eventually, hasItAll, persist, type Answer } from "./api.ts";

type Cluster = Awaited<ReturnType<typeof startCluster>>;
type Node = Cluster["nodes"][0];

/** Flips a bit in a record of the group, in the journal of a node that does not run. */
function rot(dataDir: string, group: number): void {
  const journal = path.join(dataDir, "journal");
  for (const name of readdirSync(journal).sort()) {
    const bytes = readFileSync(path.join(journal, name));
    const record = [...recordsIn(bytes, readSegment(bytes, name, false))].find(
      (one) => one.group === group && one.kind === recordKinds.data,
    );
    if (record === undefined) continue;
    const at = payloadStart(record) + 1;
    bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
    writeFileSync(path.join(journal, name), bytes);
    return;
  }
  throw new Error(`Nothing of group ${group} in ${journal}`);
}

describe("one of three replicas is damaged on its disk", () => {
  let cluster: Cluster;

  beforeAll(async () => {
    cluster = await startCluster({ nodes: 3, runtimes: ["bun"] });
  });

  afterAll(async () => {
    await cluster?.stop();
  });

  test("it stays out, is replaced on command when a majority has everything, and counts again", async () => {
    const [n1, n2, n3] = cluster.nodes as [Node, Node, Node];
    const token = cluster.rootToken;
    const all = cluster.nodes.map(({ url }) => url);
    const publish = (urls: readonly string[], text: string): Promise<Answer> =>
      persist(urls, "/v1/tenants/acme/namespaces/app/configs/c/publish", {
        token,
        body: { content: text },
        headers: { "idempotency-key": text },
      });
    const value = async (urls: readonly string[]): Promise<string> =>
      (await persist(urls, "/v1/tenants/acme/namespaces/app/values/c", { token })).body;
    const quarantined = async (node: Node): Promise<string[]> => {
      const { body } = await persist([node.url], "/v1/cluster/status", { token });
      return body.quarantine.map(({ tenant }: { tenant: string }) => tenant);
    };
    const repair = (node: Node): ReturnType<typeof conflux> =>
      conflux(["cluster", "repair", node.name, "acme", "-o", "json"], {
        CONFLUX_URL: n1.url,
        CONFLUX_TOKEN: token,
      });

    const made = await persist(all, "/v1/tenants", { token, body: { id: "acme", replicas: 3 } });
    expect(made.status, JSON.stringify(made.body)).toBe(201);
    await persist(all, "/v1/tenants/acme/namespaces/app/configs/c", {
      method: "PUT",
      token,
      body: { format: "text", content: "start" },
    });
    expect((await publish(all, "kept")).status).toBeLessThan(300);
    await eventually("all have it", () => hasItAll(n1.url, "acme", token));
    const { body: whole } = await ask(`${n1.url}/v1/tenants/acme/group`, { token });

    await n3.kill("SIGKILL");
    rot(n3.dataDir, whole.group);
    n3.start();
    await n3.ready();
    await eventually("n3 says it", async () => (await quarantined(n3)).includes("acme"));
    expect(await quarantined(n1)).toEqual([]);

    // --- what is refused changes nothing
    const runs = await repair(n2);
    expect([runs.code, runs.err]).toEqual([1, expect.stringContaining("runs")]);
    await n2.kill("SIGKILL");
    const alone = await ask(`${n1.url}/v1/cluster/nodes/n3/repair`, {
      token,
      body: { tenant: "acme" },
    });
    expect([alone.status, alone.body.code]).toEqual([409, "conflict"]);
    expect(alone.body.detail).toContain("no majority holds everything");
    n2.start();
    await n2.ready();
    expect((await publish(all, "without-n3")).status).toBeLessThan(300);

    // --- replaced
    await eventually("the others have it all", async () => {
      const { body } = await persist(all, "/v1/tenants/acme/group", { token });
      return body.replicas.every(
        ({ node, match }: { node: string; match: number | null }) =>
          node === "n3" || (match ?? -1) >= body.commit,
      );
    });
    const repaired = await repair(n3);
    expect([repaired.code, repaired.err]).toEqual([0, ""]);
    expect(JSON.parse(repaired.out)).toMatchObject({ node: "n3", tenant: "acme" });
    await eventually("a new replica is on n3, and has it all", async () => {
      const { body } = await persist(all, "/v1/tenants/acme/group", { token });
      const before = new Set(whole.replicas.map(({ id }: { id: number }) => id));
      return body.replicas.some(
        (one: { id: number; node: string; role: string; match: number | null }) =>
          one.node === "n3" &&
          !before.has(one.id) &&
          one.role !== "learner" &&
          (one.match ?? -1) >= body.commit,
      );
    });
    await eventually("nothing is left of the old one", async () => {
      const files = readdirSync(path.join(n3.dataDir, "quarantine"));
      return files.length === 0 && (await quarantined(n3)).length === 0;
    });

    // --- its vote and its disk count: with another one gone nothing is decided without it
    await n1.kill("SIGKILL");
    const left = [n2.url, n3.url];
    expect((await publish(left, "with-n3")).status).toBeLessThan(300);
    expect(await value([n3.url])).toBe("with-n3");
  }, 60_000);
});
