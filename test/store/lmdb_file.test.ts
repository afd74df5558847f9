import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { open } from "lmdb";
import { afterAll, expect, test } from "vitest";
import { LmdbFile, pageBytes } from "../../src/store/lmdb_file.ts";

const directory = fs.mkdtempSync(join(tmpdir(), "conflux-file-"));
let made = 0;

afterAll(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

type Rows = Map<string, string>;

/** Writes each step in a transaction of its own, as LMDB does it; undefined removes. @returns the file */
async function written(
  steps: readonly (readonly (readonly [key: string, value: string | undefined])[])[],
): Promise<string> {
  const path = join(directory, `${++made}.mdb`);
  const root = open({ path, pageSize: pageBytes, noSubdir: true, maxDbs: 3 });
  const rows = root.openDB<string, string>("rows", { encoding: "string" });
  root.openDB("empty", { encoding: "string" });
  for (const step of steps) {
    await root.batch(() => {
      for (const [key, value] of step)
        void (value === undefined ? rows.remove(key) : rows.put(key, value));
    });
  }
  await root.close();
  return path;
}

function after(steps: Parameters<typeof written>[0]): Rows {
  const rows: Rows = new Map();
  for (const [key, value] of steps.flat())
    if (value === undefined) rows.delete(key);
    else rows.set(key, value);
  return rows;
}

function expectSame(path: string, rows: Rows, others: readonly string[]): number {
  const file = new LmdbFile(path);
  const root = file.root("rows");
  for (const [key, value] of rows) expect(file.get(root, Buffer.from(key))?.toString()).toBe(value);
  for (const key of others)
    if (!rows.has(key)) expect(file.get(root, Buffer.from(key))).toBe(undefined);
  expect(file.root("empty")).toBe(null);
  expect(file.root("row")).toBe(null);
  expect(file.get(file.root("empty"), Buffer.from("a"))).toBe(undefined);
  file.close();
  return file.pagesRead;
}

test("what LMDB wrote is read as LMDB has it: small and large values, deep trees, after removals", async () => {
  const key = fc.stringMatching(/^[a-z/.]{1,6}$/);
  const value = fc.oneof(
    fc.string({ unit: "grapheme", maxLength: 40 }),
    fc.integer({ min: 1_900, max: 9_000 }).map((length) => "ä".repeat(length)),
  );
  const step = fc.array(fc.tuple(key, fc.option(value, { nil: undefined })), { maxLength: 200 });
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { maxLength: 4 }),
      fc.array(key, { maxLength: 50 }),
      async (steps, others) => {
        expectSame(await written(steps), after(steps), others);
      },
    ),
    { numRuns: 40 },
  );
});

test("ten thousand rows are three levels, of which a value costs one page each", async () => {
  const steps = [
    Array.from({ length: 10_000 }, (_, at) => [`key/${at}`, `${at}`.repeat(20)] as const),
  ];
  const path = await written(steps);
  expectSame(path, after(steps), ["key/", "key/10000", "a", "z"]);
  const file = new LmdbFile(path);
  const root = file.root("rows");
  expect(file.pagesRead).toBe(1);
  file.get(root, Buffer.from("key/5000"));
  expect(file.pagesRead).toBe(4);
  file.close();
});

test("a file that is none, was cut off, or has a page overwritten is not read", async () => {
  const path = await written([
    Array.from({ length: 300 }, (_, at) => [`key/${at}`, "x".repeat(100)] as const),
  ]);
  const bytes = fs.readFileSync(path);
  const broken = join(directory, "broken.mdb");
  const readBroken = (content: Uint8Array): void => {
    fs.writeFileSync(broken, content);
    const file = new LmdbFile(broken);
    try {
      const root = file.root("rows");
      for (let at = 0; at < 300; at++) file.get(root, Buffer.from(`key/${at}`));
    } finally {
      file.close();
    }
  };
  expect(() => readBroken(bytes)).not.toThrow();
  expect(() => readBroken(bytes.subarray(0, pageBytes))).toThrow("shorter than its two meta pages");
  expect(() => readBroken(Buffer.alloc(bytes.length))).toThrow("not an LMDB environment");
  expect(() => readBroken(bytes.subarray(0, 2 * pageBytes))).toThrow("was cut off");
  const file = new LmdbFile(path);
  const root = file.root("rows") as number;
  file.close();
  const [zeros, other] = [Buffer.from(bytes), Buffer.from(bytes)];
  zeros.fill(0, root * pageBytes, (root + 1) * pageBytes);
  expect(() => readBroken(zeros)).toThrow("damaged");
  bytes.copy(other, root * pageBytes, (root - 1) * pageBytes, root * pageBytes);
  expect(() => readBroken(other)).toThrow("damaged");
});

test("whatever a damaged page holds, reading ends: with a value, with nothing, or with an error that names the file", async () => {
  const path = await written([
    Array.from({ length: 300 }, (_, at) => [`key/${at}`, "x".repeat(100)] as const),
  ]);
  const bytes = fs.readFileSync(path);
  const broken = join(directory, "noise.mdb");
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(bytes.length - 1 - 2 * pageBytes), fc.nat(255)), {
        minLength: 1,
        maxLength: 40,
      }),
      (changes) => {
        const noise = Buffer.from(bytes);
        for (const [at, byte] of changes) noise[2 * pageBytes + at] = byte;
        fs.writeFileSync(broken, noise);
        const file = new LmdbFile(broken);
        try {
          const root = file.root("rows");
          for (let at = 0; at < 300; at += 7) file.get(root, Buffer.from(`key/${at}`));
        } catch (error) {
          expect(String(error)).toContain(broken);
        } finally {
          file.close();
        }
      },
    ),
    { numRuns: 100 },
  );
});
