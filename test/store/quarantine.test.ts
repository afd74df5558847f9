import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { QuarantineDirectory, readQuarantine } from "../../src/store/quarantine.ts";

const directories: string[] = [];

function temporary(): string {
  const directory = fs.mkdtempSync(join(tmpdir(), "conflux-quarantine-"));
  directories.push(directory);
  return directory;
}

afterAll(() => {
  for (const directory of directories) fs.rmSync(directory, { recursive: true, force: true });
});

const damaged = {
  group: 7,
  replica: 3,
  reason: "Journal record 12 is damaged",
  records: [{ sequence: 11, payload: Uint8Array.of(1, 2, 255) }],
};

describe("a quarantine", () => {
  test("is there again after a restart, with what the journal still had, until it is removed", () => {
    const data = temporary();
    const first = new QuarantineDirectory(data);
    first.keep([], null);
    // Without damage there is nothing on the disk.
    expect(fs.readdirSync(data)).toEqual([]);
    first.keep([damaged, { ...damaged, group: 8, replica: null }], { to: 40, where: "segment 2" });
    const second = new QuarantineDirectory(data);
    expect([...second.replicas]).toEqual([
      { group: 7, replica: 3, reason: damaged.reason },
      { group: 8, replica: null, reason: damaged.reason },
    ]);
    expect(second.lost).toEqual({ to: 40, where: "segment 2" });
    const file = JSON.parse(fs.readFileSync(join(data, "quarantine", "7.json"), "utf8"));
    expect(file).toMatchObject({ format: 1, records: [{ sequence: 11, payload: "AQL/" }] });
    second.remove(7);
    second.remove(9);
    expect(readQuarantine(data).replicas.map(({ group }) => group)).toEqual([8]);
    expect(new QuarantineDirectory(data).lost?.to).toBe(40);
  });

  test("keeps a group out whose file cannot be read, and starts on no directory that lost what was lost", () => {
    const data = temporary();
    new QuarantineDirectory(data).keep([damaged], { to: 40, where: "segment 2" });
    fs.writeFileSync(join(data, "quarantine", "7.json"), '{"format":1,"gro');
    expect([...new QuarantineDirectory(data).replicas]).toMatchObject([
      { group: 7, replica: null },
    ]);
    fs.writeFileSync(join(data, "quarantine", "lost.json"), "");
    expect(() => new QuarantineDirectory(data)).toThrow("lost.json");
  });

  test("is as before or as afterwards when a crash comes in between", () => {
    const data = temporary();
    const quarantine = new QuarantineDirectory(data);
    quarantine.keep([damaged], null);
    // Written aside and never renamed.
    fs.writeFileSync(join(data, "quarantine", "8.json.new"), '{"format":1');
    const again = new QuarantineDirectory(data);
    expect([...again.replicas].map(({ group }) => group)).toEqual([7]);
    expect(fs.readdirSync(join(data, "quarantine"))).toEqual(["7.json"]);
    again.keep([{ ...damaged, group: 8 }], null);
    expect(readQuarantine(data).replicas.map(({ group }) => group)).toEqual([7, 8]);
  });
});
