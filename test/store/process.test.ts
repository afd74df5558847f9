/**
 * The store under kill -9, with real processes on the real disk. They run on Bun; CONFLUX_TEST_RUNTIME=node or deno runs
 * them on the others. A killed process loses nothing that the kernel has: power loss is the simulated disk's part.
 */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { afterAll, describe, expect, test } from "vitest";
import { Prng } from "../../src/lib/prng.ts";
import { openDataDirectory } from "../../src/store/data_dir.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import { payloadFor } from "./child_data.ts";
import { openJournalIn } from "./open_journal.ts";

const kills = Number(process.env["CONFLUX_TEST_KILLS"] ?? 30);
const timeoutMs = 10_000 + kills * 1500;
const directories: string[] = [];
const children = new Set<ChildProcess>();

function temporary(): string {
  const directory = fs.mkdtempSync(join(tmpdir(), "conflux-process-"));
  directories.push(directory);
  return directory;
}

afterAll(() => {
  for (const child of children) child.kill("SIGKILL");
  for (const directory of directories) fs.rmSync(directory, { recursive: true, force: true });
});

class Child {
  readonly process: ChildProcess;
  readonly lines: string[] = [];
  errors = "";
  readonly #exited: Promise<void>;
  #waiting: (() => void) | null = null;

  constructor(...options: string[]) {
    const runtime = process.env["CONFLUX_TEST_RUNTIME"] ?? "bun";
    const program = join(import.meta.dirname, "child.ts");
    const binary = join(import.meta.dirname, "../../node_modules/.bin", runtime);
    const before = runtime === "deno" ? ["run", "-A"] : [];
    this.process = spawn(binary, [...before, program, ...options], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    children.add(this.process);
    let rest = "";
    this.process.stdout?.setEncoding("utf8").on("data", (text: string) => {
      const parts = (rest + text).split("\n");
      rest = parts.pop() ?? "";
      this.lines.push(...parts);
      this.#waiting?.();
    });
    this.process.stderr?.setEncoding("utf8").on("data", (text: string) => (this.errors += text));
    this.#exited = new Promise((resolve) => {
      this.process.once("close", () => {
        children.delete(this.process);
        this.#waiting?.();
        resolve();
      });
    });
  }

  /** Waits for so many lines, or for its end. */
  async said(count: number): Promise<void> {
    while (this.lines.length < count && this.process.exitCode === null)
      await new Promise<void>((resolve) => (this.#waiting = resolve));
    if (this.lines.length < count) throw new Error(`Child ended early: ${this.errors}`);
  }

  async kill(): Promise<void> {
    this.process.kill("SIGKILL");
    await this.#exited;
  }

  async end(): Promise<void> {
    await this.#exited;
  }
}

describe("the journal under kill -9", () => {
  test(
    "has every acknowledged record, in order, and whole",
    async () => {
      const directory = temporary();
      const seed = Number(process.env["CONFLUX_TEST_SEED"] ?? 42);
      const prng = new Prng(seed);
      const acknowledged = new Map<number, number[]>();
      const released = new Map<number, number>();
      let total = 0;
      for (let kill = 0; kill < kills; kill++) {
        const child = new Child("journal", directory, String(seed + kill));
        // Sometimes in the midst of opening, mostly under load.
        await child.said(prng.chance(0.2) ? 1 : prng.between(1, 4000));
        await child.kill();
        for (const line of child.lines) {
          const [what, group, sequence] = line.split(" ");
          if (what === "fatal") throw new Error(line);
          if (what === "release") released.set(Number(group), Number(sequence));
          if (what !== "ack") continue;
          const list = acknowledged.get(Number(group)) ?? [];
          list.push(Number(sequence));
          acknowledged.set(Number(group), list);
          total += 1;
        }

        const { journal, recovery } = await openJournalIn(directory, {
          salt: kill,
          onFatal: (error) => {
            throw error;
          },
        });
        expect(recovery.damaged.size).toBe(0);
        expect(recovery.lost).toEqual([]);
        for (const [group, list] of acknowledged) {
          const found = [...(recovery.groups.get(group) ?? [])];
          const sequences = found.map((record) => record.sequence);
          expect(sequences).toEqual([...sequences].sort((a, b) => a - b));
          for (const { payload } of found)
            expect(Buffer.compare(payload, payloadFor(group, payload.byteLength))).toBe(0);
          const present = new Set(sequences);
          const wanted = list.filter((sequence) => sequence > (released.get(group) ?? 0));
          const missing = wanted.filter((sequence) => !present.has(sequence));
          if (missing.length > 0)
            throw new Error(`REPRODUCE: CONFLUX_TEST_SEED=${seed}: lost ${missing.join()}`);
          // The verdict of the next round covers what was found in this one.
          acknowledged.set(group, wanted);
        }
        await journal.close();
      }
      expect(total).toBeGreaterThan(kills * 100);
    },
    timeoutMs,
  );
});

describe("an environment under kill -9", () => {
  test(
    "opens and holds one whole commit, the last acknowledged or the one after",
    async () => {
      const directory = temporary();
      const prng = new Prng(7);
      let last = 0;
      for (let kill = 0; kill < Math.ceil(kills / 2); kill++) {
        const child = new Child("environment", directory);
        await child.said(prng.between(1, 40));
        await child.kill();
        const failed = child.lines.find((line) => line.startsWith("failed"));
        if (failed !== undefined) throw new Error(failed);
        last = Number(child.lines.at(-1)?.split(" ")[1]);

        const environments = new LmdbEnvironments({ data: directory });
        const environment = environments.open("acme");
        const meta = environment.meta();
        const number = meta === null ? 0 : Number(new TextDecoder().decode(meta));
        expect(number).toBeGreaterThanOrEqual(last);
        expect(number).toBeLessThanOrEqual(last + 1);
        if (number > 0) {
          for (let n = 0; n < 30; n++)
            expect(environment.get(`row/${n}`)).toBe(`${number}`.repeat(50));
          // Every fifth is an installation, which leaves no log.
          expect(environment.entry(number) === undefined).toBe(number % 5 === 0);
          expect([...environment.range({ gte: " ", lt: "\x7f" })]).toHaveLength(30);
          expect(environment.entry(number + 1)).toBe(undefined);
        }
        await environment.close();
      }
      expect(last).toBeGreaterThan(50);
    },
    timeoutMs,
  );
});

describe("a data directory", () => {
  test("is refused to a second process, naming the directory and the holder", async () => {
    const directory = temporary();
    const holder = new Child("lock", directory);
    await holder.said(1);
    const boot = Number(holder.lines[0]?.split(" ")[1]);
    const second = new Child("lock", directory);
    await second.end();
    expect(second.lines[0]).toContain(directory);
    expect(second.lines[0]).toContain(`in use by process ${holder.process.pid as number}`);
    await holder.kill();
    const third = new Child("lock", directory);
    await third.said(1);
    expect(third.lines).toEqual([`locked ${boot + 1}`]);
    await third.kill();
  });

  test("is had by one of many that start at once, over a dead holder's lock", async () => {
    const directory = temporary();
    let boot = 0;
    for (let round = 1; round <= 4; round++) {
      const starters = Array.from({ length: 6 }, () => new Child("lock", directory));
      await Promise.all(starters.map((starter) => starter.said(1)));
      const lines = starters.map((starter) => starter.lines[0] as string);
      const boots = lines.flatMap((line) => /^locked (\d+)$/.exec(line)?.[1] ?? []).map(Number);
      expect(boots).toEqual([round === 1 ? boots[0] : boot + 1]);
      boot = boots[0] as number;
      expect(lines.filter((line) => line.includes("in use")).length).toBe(5);
      await Promise.all(starters.map((starter) => starter.kill()));
    }
  });

  test("tells a holder in another namespace by its socket", async () => {
    const directory = temporary();
    const options = { directory, cluster: "test", node: "a", peers: ["a"] };
    const holder = new Child("lock", directory);
    await holder.said(1);
    // As a second container sees the first: the pid means nothing here.
    const file = join(directory, "lock.1");
    const content = JSON.parse(fs.readFileSync(file, "utf8")) as Record<string, unknown>;
    fs.writeFileSync(file, JSON.stringify({ ...content, namespace: "pid:[1]", started: "1" }));
    let message = "";
    await openDataDirectory(options).catch((error: Error) => (message = error.message));
    expect(message).toContain(`in use by process ${holder.process.pid as number}`);
    expect(message).not.toContain("remove");
    await holder.kill();
    const data = await openDataDirectory(options);
    expect(data.boot).toBe(Number(holder.lines[0]?.split(" ")[1]) + 1);
    data.close();
  });

  test("is free again after close, also for this process, and counts its starts", async () => {
    const directory = temporary();
    const options = { directory, cluster: "test", node: "a", peers: ["a"] };
    const first = await openDataDirectory(options);
    let refused = "";
    await openDataDirectory(options).catch((error: Error) => (refused = error.message));
    expect(refused).toContain(`in use by process ${process.pid}`);
    first.close();
    const second = await openDataDirectory(options);
    expect(second.boot).toBe(first.boot + 1);
    expect(second.disk).toBe(first.disk);
    second.close();
    expect(fs.readdirSync(directory).sort()).toEqual(["conflux.json", "lock.2"]);
  });

  test("is taken over when the pid runs again as another process, or the machine was restarted", async () => {
    const directory = temporary();
    const options = { directory, cluster: "test", node: "a", peers: ["a"] };
    (await openDataDirectory(options)).close();
    const file = join(directory, "lock.1");
    const holder = JSON.parse(fs.readFileSync(file, "utf8")) as Record<string, unknown>;
    const alive = { ...holder, released: false };
    let number = 1;
    for (const [change, taken] of [
      [{ started: "1" }, true],
      [{ boot: "another" }, true],
      [{}, false],
      // In a container that shares the directory: no socket, so nobody can tell.
      [{ namespace: "pid:[1]" }, false],
    ] as const) {
      const path = join(directory, `lock.${number}`);
      fs.writeFileSync(path, JSON.stringify({ ...alive, ...change }));
      let message = "";
      try {
        (await openDataDirectory(options)).close();
        number += 1;
      } catch (error) {
        message = (error as Error).message;
      }
      expect(message === "").toBe(taken);
      if ("namespace" in change) expect(message).toContain(`remove ${path}`);
    }
  });

  test("of another node, cluster, format or unknown origin is refused", async () => {
    const directory = temporary();
    const options = { directory, cluster: "test", node: "a", peers: ["a"] };
    (await openDataDirectory(options)).close();
    const refusal = async (change: Partial<typeof options>): Promise<string> => {
      try {
        (await openDataDirectory({ ...options, ...change })).close();
        return "";
      } catch (error) {
        return (error as Error).message;
      }
    };
    expect(await refusal({ node: "b" })).toContain("belongs to node a");
    expect(await refusal({ cluster: "other" })).toContain("belongs to cluster test");
    expect(await refusal({ peers: ["a", "b"] })).toContain(
      "made with CONFLUX_PEERS a, now it is a,b",
    );
    fs.mkdirSync(join(directory, "tenants", "t.2.1"), { recursive: true });
    expect(await refusal({})).toContain("has lost its journal/");
    fs.rmSync(join(directory, "tenants"), { recursive: true });
    const file = join(directory, "conflux.json");
    const identity = JSON.parse(fs.readFileSync(file, "utf8")) as Record<string, unknown>;
    fs.writeFileSync(file, JSON.stringify({ ...identity, format: 99 }));
    expect(await refusal({})).toContain("start the newer program");
    fs.writeFileSync(file, "{");
    expect(await refusal({})).toContain(file);
    fs.rmSync(file);
    fs.mkdirSync(join(directory, "tenants"));
    expect(await refusal({})).toContain("no conflux.json");
    // None of these kept the lock.
    fs.rmdirSync(join(directory, "tenants"));
    expect(await refusal({})).toBe("");
  });
});
