import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { recover } from "../../src/cli/recover.ts";
import type { NodeHost } from "../../src/host/node_host.ts";
import type { Action } from "../../src/machine/command.ts";
import type { TenantMeta } from "../../src/machine/rows.ts";
import { useDigest } from "../../src/model/content.ts";
import { readJournal } from "../../src/store/journal.ts";
import { QuarantineDirectory } from "../../src/store/quarantine.ts";
import { LoopbackNetwork } from "../../src/transport/loopback.ts";
import { command, openStack } from "../crash/stack.ts";

const names = ["n1", "n2", "n3"];
const quiet = (): void => {};

async function change(host: NodeHost, tenant: string, action: Action): Promise<void> {
  const outcome = await host.propose(tenant, command(action), 10_000);
  if (!outcome.ok) throw new Error(outcome.detail);
}

/** Data directories of three nodes, stopped, with tenants a, b and c on all of them. */
async function stoppedCluster(): Promise<string> {
  useDigest((bytes) => createHash("sha256").update(bytes).digest("hex"));
  const base = fs.mkdtempSync(join(tmpdir(), "conflux-recover-"));
  onTestFinished(() => fs.rmSync(base, { recursive: true, force: true }));
  const network = new LoopbackNetwork();
  const fatal = (error: Error): never => {
    throw error;
  };
  const initial = names.map((node, at) => ({ node, id: at + 1 }));
  const stacks = await Promise.all(
    names.map((name) =>
      openStack(join(base, name), fatal, quiet, { tuning: {} }, { name, peers: names, network }),
    ),
  );
  const { host } = stacks[0] as (typeof stacks)[0];
  for (const node of names)
    await change(host, "_system", { op: "node.register", node, boot: 1, initial });
  for (const tenant of ["a", "b", "c"]) {
    const adminKey = { id: "adm", kind: "admin", hash: "h" } as const;
    await change(host, "_system", {
      op: "directory.create",
      tenant,
      quotas: {},
      nodes: names,
      adminKey,
    });
    await change(host, tenant, { op: "config.put", namespace: "n", name: "c", format: "text" });
  }
  for (const { close } of stacks) await close();
  return base;
}

describe("recover", () => {
  test("lists, plans the same each time, and refuses what is not accounted for", async () => {
    const base = await stoppedCluster();
    const directory = join(base, "n1");
    const files = (): string[] =>
      (fs.readdirSync(directory, { recursive: true }) as string[])
        .filter((name) => !/lock|data\.mdb-lock/.test(name))
        .map((name) => join(directory, name))
        .filter((path) => fs.statSync(path).isFile())
        .map((path) => createHash("sha256").update(fs.readFileSync(path)).digest("hex"))
        .sort();
    const before = files();
    const run = (gone: readonly string[], apply: string | null = null) =>
      recover([directory], { gone, apply, yes: false }, quiet);
    const listed = await run([]);
    expect(listed.plan).toBe(null);
    expect(listed.found.map(({ tenant }) => tenant).sort()).toEqual(["_system", "a", "b", "c"]);
    for (const { damaged, voters, index, applied } of listed.found) {
      expect(damaged).toBe(null);
      expect(voters).toEqual([1, 2, 3]);
      expect(index).toBeGreaterThanOrEqual(applied);
    }
    const planned = await run(["n2", "n3"]);
    expect(planned.applied).toBe(false);
    expect((await run(["n3", "n2"])).hash).toBe(planned.hash);
    expect(planned.plan?.tenants.map(({ verdict }) => verdict)).toEqual(Array(3).fill("recover"));
    await expect(run(["n2"])).rejects.toThrow("What became of n3?");
    await expect(run(["n1", "n2", "n3"])).rejects.toThrow("named as gone");
    await expect(run(["n2", "n3", "n4"])).rejects.toThrow("not known");
    await expect(run(["n2", "n3"], "000000000000")).rejects.toThrow(String(planned.hash));
    await expect(
      recover([directory, directory], { gone: [], apply: null, yes: false }, quiet),
    ).rejects.toThrow("given twice");
    await expect(run([], String(planned.hash))).rejects.toThrow("Name the nodes");
    // With two of three nothing is lost, and nothing to be done.
    const two = await recover(
      [directory, join(base, "n2")],
      { gone: ["n3"], apply: null, yes: true },
      quiet,
    );
    expect(two.plan?.system.verdict).toBe("whole");
    expect(two.applied).toBe(false);
    expect(files()).toEqual(before);
  }, 30_000);

  test("takes for damaged whom a lost record may concern, and nobody whose environment was made later", async () => {
    const base = await stoppedCluster();
    const directory = join(base, "n1");
    const damagedBy = async (lost: object): Promise<(string | undefined)[]> => {
      new QuarantineDirectory(directory).keep([], { to: 2 ** 40, where: "segment 7", ...lost });
      const { found } = await recover([directory], { gone: [], apply: null, yes: false }, quiet);
      expect(found.length).toBe(4);
      const damaged = found.filter((replica) => replica.damaged === "segment 7");
      return damaged.map(({ tenant }) => tenant).sort();
    };
    // Of whom the journal still has a record, what a late message left behind, that record tells enough.
    const journal = join(directory, "journal");
    const { groups } = readJournal({
      list: () => fs.readdirSync(journal),
      read: (name) => new Uint8Array(fs.readFileSync(join(journal, name))),
    }).recovery;
    const { found } = await recover([directory], { gone: [], apply: null, yes: false }, quiet);
    const without = found.filter(({ group }) => !groups.has(group)).map(({ tenant }) => tenant);
    expect(await damagedBy({})).toEqual(without.toSorted());
    const environments = fs.readdirSync(join(directory, "tenants"));
    const old = environments.filter((name) => name.startsWith("a.") || name.startsWith("c."));
    expect(old.length).toBe(2);
    expect(await damagedBy({ environments: old })).toEqual(
      ["a", "c"].filter((tenant) => without.includes(tenant)),
    );
    // All of them have everything up to there.
    expect(await damagedBy({ to: 1 })).toEqual([]);
  }, 30_000);

  test("goes on where it was interrupted, and no node starts before it is done", async () => {
    const base = await stoppedCluster();
    const directory = join(base, "n1");
    const options = { gone: ["n2", "n3"], apply: null, yes: true };
    const interrupted = recover([directory], options, (text) => {
      if (text.startsWith("2 of 3 groups")) throw new Error("interrupted");
    });
    await expect(interrupted).rejects.toThrow("interrupted");
    const place = { name: "n1", peers: names, network: new LoopbackNetwork() };
    const start = () => openStack(directory, quiet, quiet, { tuning: {} }, place);
    await expect(start()).rejects.toThrow("begun and not finished");
    const unfinished = recover([directory], { ...options, yes: false }, quiet);
    await expect(unfinished).rejects.toThrow("go on with it by --apply");
    const done = await recover([directory], options, quiet);
    expect(done.applied).toBe(true);

    const { host, close } = await start();
    const epochs = new Set<number>();
    const epochOf = (tenant: string): Promise<number> =>
      host.read(tenant, { consistency: "linearizable" }, ({ epoch }) => epoch);
    for (const tenant of ["a", "b", "c"]) {
      await change(host, tenant, { op: "config.delete", namespace: "n", name: "c" });
      epochs.add(await epochOf(tenant));
      const group = await host.group(tenant);
      expect(group.replicas.map(({ node }) => node)).toEqual(["n1"]);
      const meta = await host.read(tenant, { consistency: "linearizable" }, (view) =>
        view.get<TenantMeta>("meta"),
      );
      expect(meta).toMatchObject({ tenant, configs: 0, revision: 4 });
    }
    // One recovery, one epoch, whenever its parts were done.
    expect(epochs.size).toBe(1);
    expect(host.directory.tenant("a")).toMatchObject({ regrow: 3 });
    expect(host.directory.nodes().map(({ node }) => node)).toEqual(["n1"]);
    await close();
  }, 30_000);
});
