/** A slice of `npm run crash`, and that its check finds what it is there for. */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, expect, onTestFinished, test } from "vitest";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import { complaintsAfterCrash, Ledger } from "./check.ts";
import { canInject, CrashRun, describeHow } from "./kills.ts";
import type { Runtime } from "./node_process.ts";
import { powerLosses } from "./power.ts";
import { generationMeta, openInstallations, rowsOfGeneration } from "./restores.ts";
import { command, namespace, node, openStack, textOf, versionsPerConfig } from "./stack.ts";

/** The suite runs on two runners; one of them has the larger part. */
const kills = Number(process.env["CONFLUX_CRASH_KILLS"] ?? (process.versions["bun"] ? 4 : 12));
const timeoutMs = 60_000 + kills * 10_000;
const runtimes: readonly Runtime[] = ["bun", "bun", "node", "deno"];

describe("processes that are killed under load", () => {
  test(
    "leave every acknowledged write, nothing half there, and environments exactly at their index",
    async () => {
      if (!canInject) console.warn("strace may not trace here: kills are at random only");
      const run = new CrashRun(process.versions["bun"] ? 2 : 1);
      onTestFinished(() => run.close());
      for (let kill = 0; kill < kills; kill++) {
        const runtime = runtimes[kill % runtimes.length] as Runtime;
        const { how, complaints } = await run.crash(runtime);
        expect(complaints, `${runtime}, ${describeHow(how)}`).toEqual([]);
      }
      expect(run.ledger.acknowledged).toBeGreaterThan(kills * 5);
    },
    timeoutMs,
  );
});

describe("a power loss", () => {
  const [cuts, lines] = process.versions["bun"] ? [3, 60] : [8, 150];

  // Skipped where strace may not trace: there is no record then.
  test.skipIf(!canInject)(
    "anywhere keeps every acknowledged write: nothing is said before it is synced",
    async () => {
      let acknowledged = 0;
      for await (const loss of powerLosses({ seed: 1, runtime: "bun", lines, cuts })) {
        expect(loss.complaints, `cut at line ${loss.line}`).toEqual([]);
        acknowledged = loss.acknowledged;
      }
      expect(acknowledged).toBeGreaterThan(lines / 4);
    },
    timeoutMs,
  );

  // Skipped for the same reason.
  test.skipIf(!canInject)(
    "under a disk that says synced and is not is found",
    async () => {
      let found = 0;
      const options = { seed: 2, runtime: "bun", lines: 60, cuts: 4, lie: "O_DSYNC" } as const;
      for await (const { complaints } of powerLosses(options)) found += complaints.length;
      expect(found).toBeGreaterThan(0);
    },
    timeoutMs,
  );
});

describe("complaintsAfterCrash()", () => {
  /** A directory with ten acknowledged publishes, written by a stack that was closed in good order. */
  async function written(): Promise<{ directory: string; ledger: Ledger }> {
    const directory = fs.mkdtempSync(join(tmpdir(), "conflux-planted-"));
    onTestFinished(() => fs.rmSync(directory, { recursive: true, force: true }));
    const ledger = new Ledger();
    const { host, close } = await openStack(directory, (error) => {
      throw error;
    });
    await host.propose(
      "_system",
      command({
        op: "directory.create",
        tenant: "t1",
        quotas: { versionsPerConfig },
        nodes: [node],
        adminKey: { id: "k", kind: "admin", hash: "0".repeat(64) },
      }),
    );
    await host.propose("t1", command({ op: "config.put", namespace, name: "a", format: "text" }));
    for (let n = 1; n <= 10; n++) {
      const text = textOf(`1.1.${n}`, 50);
      const content = { text, hash: `sha256:${n}`, bytes: text.length };
      const outcome = await host.propose(
        "t1",
        command({ op: "publish", namespace, name: "a", content, schemaHash: null }),
      );
      if (!outcome.ok) throw new Error(outcome.detail);
      ledger.take(`ack t1 a ${n} ${outcome.revision} 1.1.${n}`);
    }
    await close();
    return { directory, ledger };
  }

  /** Changes rows of the tenant behind the store's back. */
  async function change(directory: string, rows: [string, string | undefined][]): Promise<void> {
    const environments = new LmdbEnvironments({ data: directory });
    const name = environments.names().find((one) => one.startsWith("t1")) as string;
    const environment = environments.open(name);
    const meta = environment.meta() as Uint8Array;
    await new Promise((done) => {
      environment.commit({ meta, rows, entries: [], entriesDeleted: [] }, done);
    });
    await environment.close();
  }

  test("has none of a directory that is as it must be", async () => {
    const { directory, ledger } = await written();
    expect(await complaintsAfterCrash(directory, ledger)).toEqual([]);
  });

  test("finds an acknowledged write that is gone", async () => {
    const { directory, ledger } = await written();
    ledger.take("ack t1 a 11 999 1.1.11");
    const complaints = (await complaintsAfterCrash(directory, ledger)).join("\n");
    expect(complaints).toContain("LOST: 1.1.11, version 11 of a; it is at 10");
    expect(complaints).toContain("revision 999 was acknowledged");
  });

  test("finds half a write, and rows that are not at their applied index", async () => {
    const half = await written();
    await change(half.directory, [["txt/default/a/0000000000000009", '"1.1.9 50 half"']]);
    const complaints = (await complaintsAfterCrash(half.directory, half.ledger)).join("\n");
    expect(complaints).toContain("version 9 of a is not whole");
    expect(complaints).toContain("LOST: 1.1.9");
    const behind = await written();
    await change(behind.directory, [["txt/default/a/0000000000000010", '"1.1.3 50 x"']]);
    expect((await complaintsAfterCrash(behind.directory, behind.ledger)).join("\n")).toContain(
      "LOST: 1.1.10, version 10 of a; there is 1.1.3",
    );
  });

  async function metaOf(directory: string): Promise<object> {
    const environments = new LmdbEnvironments({ data: directory });
    const name = environments.names().find((one) => one.startsWith("t1")) as string;
    const environment = environments.open(name);
    const row = JSON.parse(environment.get("meta") as string) as object;
    await environment.close();
    return row;
  }

  test("finds a tenant that came back, and one that is missing", async () => {
    const { directory, ledger } = await written();
    ledger.take("gone t1");
    ledger.take("made t2");
    const complaints = (await complaintsAfterCrash(directory, ledger)).join("\n");
    expect(complaints).toContain("t1 was deleted for good and is there");
    expect(complaints).toContain("t2 was made and is not there");
  });

  test("finds a restored tenant that is another, and one that is not restored to its end", async () => {
    const { directory, ledger } = await written();
    ledger.take("restoring t1 0123456789abcdef");
    const meta = (of: object): [string, string][] => [["meta", JSON.stringify(of)]];
    const another = "t1: LOST: it is not what it was restored from";
    expect(await complaintsAfterCrash(directory, ledger)).toEqual([another]);
    const begun = { source: {}, part: 1, rows: 7, last: "cfg/x", counts: {}, keys: [] };
    const row = await metaOf(directory);
    await change(directory, meta({ ...row, restore: begun }));
    ledger.take("restored t1");
    const complaints = (await complaintsAfterCrash(directory, ledger)).join("\n");
    expect(complaints).toContain("restored, 7 up to cfg/x counted");
    expect(complaints).toContain("t1: LOST: it was restored, and waits for rows");
  });

  test("finds an installation that is half there, and one that is gone", async () => {
    const { directory, ledger } = await written();
    ledger.take("installing 2");
    ledger.take("installed 2");
    expect(await complaintsAfterCrash(directory, ledger)).toEqual([
      "LOST: generation 2 that was installed",
    ]);
    const environment = openInstallations(directory);
    const install = async (rows: [string, string][]): Promise<void> => {
      const staging = environment.stage();
      await new Promise((done) => staging.add(rows, done));
      await new Promise((done) => environment.install(staging, generationMeta(2), done));
    };
    await install(rowsOfGeneration(2).map(([key, text]) => [key, text]));
    await environment.close();
    expect(await complaintsAfterCrash(directory, ledger)).toEqual([]);
    const again = openInstallations(directory);
    const rows = [[rowsOfGeneration(2)[3]?.[0] as string, undefined]] as const;
    await new Promise((done) => {
      again.commit({ meta: generationMeta(2), rows, entries: [], entriesDeleted: [] }, done);
    });
    await again.close();
    ledger.take("installed 3");
    expect(await complaintsAfterCrash(directory, ledger)).toEqual([
      "the rows installed are not those of generation 2 alone",
    ]);
    ledger.take("installing 4");
    expect((await complaintsAfterCrash(directory, ledger)).join("\n")).toContain(
      "LOST: generation 3 was installed, 2 is there",
    );
  });

  test("finds damage", async () => {
    const { directory, ledger } = await written();
    const journal = join(directory, "journal");
    const [first = ""] = fs.readdirSync(journal).sort();
    const bytes = fs.readFileSync(join(journal, first));
    bytes[100] = (bytes[100] as number) ^ 1;
    fs.writeFileSync(join(journal, first), bytes);
    expect((await complaintsAfterCrash(directory, ledger)).join("\n")).toContain("is damaged");
  });
});
