import { execFile } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { inspectJournal } from "../../src/store/inspect.ts";
import type { JournalReport } from "../../src/store/inspect.ts";
import type { NodeJournal } from "../../src/store/journal.ts";
import { recordBytes, segmentName } from "../../src/store/journal_format.ts";
import { QuarantineDirectory } from "../../src/store/quarantine.ts";
import { openJournalIn } from "./open_journal.ts";

const directories: string[] = [];

afterAll(() => {
  for (const directory of directories) fs.rmSync(directory, { recursive: true, force: true });
});

function open(directory: string): ReturnType<typeof openJournalIn> {
  return openJournalIn(join(directory, "journal"), {
    salt: 99,
    onFatal: (error) => {
      throw error;
    },
    segmentBytes: 4096,
  });
}

function append(journal: NodeJournal, group: number, bytes: number): Promise<number> {
  return new Promise((done) => {
    const payload = new Uint8Array(bytes).fill(group);
    const sequence = journal.append([{ group, payload }], () => done(sequence));
  });
}

/** The list of three groups that the second and the third begin with. */
const listBytes = recordBytes(3 * 16);

/** Three segments, groups 1 to 3, the first record of group 1 released; the sequence of the first record of all. */
async function written(): Promise<{ directory: string; first: number }> {
  const directory = fs.mkdtempSync(join(tmpdir(), "conflux-inspect-"));
  directories.push(directory);
  fs.mkdirSync(join(directory, "tenants/acme.2.1"), { recursive: true });
  const { journal } = await open(directory);
  const first = await append(journal, 1, 1000);
  for (const group of [2, 3, 1, 2, 3, 1, 2, 3]) await append(journal, group, 1000);
  journal.release(1, first);
  await append(journal, 2, 10);
  await journal.close();
  return { directory, first };
}

function change(directory: string, segment: number, at: number, byte: number): void {
  const path = join(directory, "journal", segmentName(segment));
  const bytes = fs.readFileSync(path);
  bytes[at] = byte;
  fs.writeFileSync(path, bytes);
}

function command(...words: string[]): Promise<{ code: number; out: string; err: string }> {
  const root = resolve(import.meta.dirname, "../..");
  return new Promise((done) => {
    execFile(
      join(root, "node_modules/.bin/bun"),
      [join(root, "src/cli/conflux.ts"), ...words],
      (error, out, err) => done({ code: Number(error?.code ?? 0), out, err }),
    );
  });
}

describe("inspectJournal()", () => {
  test("shows segments, groups and what is not released of an intact journal", async () => {
    const { directory, first } = await written();
    const report = inspectJournal(directory);
    expect(report.damaged).toBe(false);
    expect(report.findings).toEqual([]);
    expect(report.segments.map(({ file, state, records }) => [file, state, records])).toEqual([
      [segmentName(1), "intact", 3],
      [segmentName(2), "intact", 3],
      // The note of the release is a record too.
      [segmentName(3), "intact", 5],
    ]);
    expect(
      report.groups.map((group) => [
        group.group,
        group.environment,
        group.records,
        group.unreleased,
      ]),
    ).toEqual([
      [1, null, 3, 2],
      [2, "acme.2.1", 4, 4],
      [3, null, 3, 3],
    ]);
    expect(report.groups[0]).toMatchObject({ firstSequence: first, lastSequence: first + 6 });
    // The journal itself may be named too, and looking changes nothing.
    expect(inspectJournal(join(directory, "journal"))).toEqual(report);
  });

  test("names the group of a rotten payload, and whether it is still needed", async () => {
    const { directory, first } = await written();
    const header = 64 + 32;
    change(directory, 1, header + 5, 0xff);
    const released = inspectJournal(directory);
    expect(released.findings).toMatchObject([
      { kind: "released-record", file: segmentName(1), at: 64, group: 1, from: first, to: first },
    ]);
    expect(released.groups.every(({ damaged }) => damaged === null)).toBe(true);
    change(directory, 2, header + listBytes + 5, 0xff);
    const report = inspectJournal(directory);
    expect(report.damaged).toBe(true);
    expect(report.segments.map(({ state }) => state)).toEqual(["damaged", "damaged", "intact"]);
    expect(report.findings.at(-1)).toMatchObject({ kind: "record", group: 1, from: first + 3 });
    expect(report.groups.map(({ damaged }) => damaged !== null)).toEqual([true, false, false]);
  });

  test("tells which records a missing segment took, and that of unknown groups", async () => {
    const { directory, first } = await written();
    fs.rmSync(join(directory, "journal", segmentName(2)));
    const report = inspectJournal(directory);
    expect(report.findings).toMatchObject([
      {
        kind: "segments-missing",
        file: segmentName(1),
        group: null,
        from: first + 3,
        to: first + 5,
      },
    ]);
    expect(report.findings[0]?.means).toContain(
      `${first + 3} to ${first + 5} are gone, of whom is not known, but that only groups 1, 2, 3`,
    );
    expect(report.groups.every(({ damaged }) => damaged !== null)).toBe(true);
  });

  test("takes a torn end for what it is, and no damage", async () => {
    const { directory } = await written();
    const path = join(directory, "journal", segmentName(3));
    fs.truncateSync(path, fs.statSync(path).size - 20);
    const report = inspectJournal(directory);
    expect(report.damaged).toBe(false);
    expect(report.segments.at(-1)?.state).toBe("torn");
    expect(report.findings).toMatchObject([{ kind: "torn" }]);
  });

  test("says the same as a node that starts on the directory", async () => {
    const { directory } = await written();
    change(directory, 2, 64 + listBytes + 10, 0xff);
    change(directory, 3, 64 + listBytes + 32 + 1, 0xff);
    const report = inspectJournal(directory);
    const { journal, recovery } = await open(directory);
    const { damaged } = recovery;
    await journal.close();
    expect(damaged.size).toBeGreaterThan(0);
    expect(
      Object.fromEntries(
        report.groups.filter((group) => group.damaged !== null).map((g) => [g.group, g.damaged]),
      ),
    ).toEqual(Object.fromEntries(damaged));
  });
});

describe("what a node keeps of damage of before", () => {
  test("is shown, and is damage, whatever the journal looks like by now", async () => {
    const { directory } = await written();
    new QuarantineDirectory(directory).keep(
      [{ group: 2, replica: 1, reason: "record 5", records: [] }],
      { to: 9, where: "segment 1" },
    );
    const report = inspectJournal(directory);
    expect(report.findings).toEqual([]);
    expect(report.damaged).toBe(true);
    expect(report.quarantine).toEqual([{ group: 2, replica: 1, reason: "record 5" }]);
    const { code, out } = await command("journal", "inspect", directory);
    expect(code).toBe(2);
    expect(out).toContain("replica 1 of group 2 stays stopped until it is repaired: record 5");
    expect(out).toContain("whose checkpoint does not reach 9");
  });
});

describe("conflux journal inspect", () => {
  test("prints a table or JSON, and ends with 2 when there is damage", async () => {
    const { directory, first } = await written();
    const intact = await command("journal", "inspect", directory);
    expect(intact).toMatchObject({ code: 0, err: "" });
    expect(intact.out).toContain("The journal is intact.");
    expect(intact.out).toContain("acme.2.1");
    change(directory, 1, 64 + 32 + 1040 + 5, 0xff);
    const damaged = await command("journal", "inspect", directory);
    expect(damaged.code).toBe(2);
    expect(damaged.out).toContain(`record ${first + 1} of group 2 cannot be trusted`);
    const json = await command("journal", "inspect", directory, "-o", "json", "--group", "2");
    const report = JSON.parse(json.out) as JournalReport;
    expect(report.groups.map(({ group }) => group)).toEqual([2]);
    const missing = await command("journal", "inspect", join(directory, "nothing"));
    expect(missing.code).toBe(1);
    expect(missing.err).toContain("there is no such directory");
  }, 30_000);
});
