/** Directories written by earlier versions are read by this one, on every runtime, with the same result. */
import { execFile } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, onTestFinished, test } from "vitest";
import { runCommand, runtimes } from "../../infra/bootstrap.mjs";
import { formatsNow, readGolden } from "./golden.ts";

const folder = join(import.meta.dirname, "golden");
const goldens = fs
  .readdirSync(folder)
  .filter((name) => /^v\d+\.json\.gz$/.test(name))
  .map((name) => join(folder, name));
const timeoutMs = 60_000;

function check(file: string, runtime: (typeof runtimes)[number]): Promise<string> {
  const { command, args } = runCommand(runtime, join(import.meta.dirname, "golden.ts"), [
    "check",
    file,
  ]);
  return new Promise((done) => {
    execFile(command, args, { maxBuffer: 2 ** 26 }, (error, out, err) => {
      done(error === null ? "" : `${out}${err}` || String(error));
    });
  });
}

describe("a data directory of an earlier version", () => {
  for (const runtime of runtimes)
    test(
      `opens on ${runtime}, and every row is what it was`,
      async () => {
        expect(goldens.length).toBeGreaterThan(0);
        // If this fails because a row or a command changed its meaning: CONTRIBUTING, How formats change.
        for (const file of goldens) expect(await check(file, runtime), file).toBe("");
      },
      timeoutMs,
    );

  test("is there for the formats that are written now", () => {
    expect(goldens.map((file) => readGolden(file).formats)).toContainEqual(formatsNow);
  });

  test(
    "is told apart when a row of it is another",
    async () => {
      const file = join(fs.mkdtempSync(join(tmpdir(), "conflux-golden-")), "v1.json.gz");
      onTestFinished(() => fs.rmSync(join(file, ".."), { recursive: true, force: true }));
      const golden = readGolden(goldens.at(-1) as string);
      const rows = {
        ...golden.rows,
        acme: { ...golden.rows["acme"], "txt/default/limits/1": "x" },
      };
      fs.writeFileSync(file, gzipSync(JSON.stringify({ ...golden, rows })));
      expect(await check(file, "bun")).toContain('acme txt/default/limits/1: was "x"');
    },
    timeoutMs,
  );
});
