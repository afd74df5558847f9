import { describe, expect, test } from "vitest";
import { Problem } from "../../src/api/problems.ts";
import { Prng } from "../../src/lib/prng.ts";
import { JournalStoppedError, NodeJournal, readJournal } from "../../src/store/journal.ts";
import type { JournalOptions, NodeJournalRecovery } from "../../src/store/journal.ts";
import { crc32 } from "../../src/store/crc32.ts";
import {
  formatVersion,
  recordBytes,
  segmentHeaderBytes,
  segmentName,
} from "../../src/store/journal_format.ts";
import { openJournalOn, SimDisk } from "./sim_disk.ts";

function open(disk: SimDisk, options: Partial<JournalOptions> = {}) {
  const fatal: Error[] = [];
  const onFatal = (error: Error): void => void fatal.push(error);
  return { ...openJournalOn(disk, { salt: 0x5eed, onFatal, ...options }), fatal };
}

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

function ascending(numbers: Iterable<number>): number[] {
  return [...numbers].sort((a, b) => a - b);
}

/** Per group what a new opening finds, as text. */
function recovered(disk: SimDisk, options: Partial<JournalOptions> = {}) {
  const { journal, recovery } = open(disk, options);
  disk.run();
  const groups: Record<number, string[]> = {};
  for (const [group, records] of recovery.groups)
    groups[group] = Array.from(records, ({ payload }) => new TextDecoder().decode(payload));
  return { journal, recovery, groups };
}

describe("open()", () => {
  /** A disk with some segments of another opening, and a journal over it that was not opened yet. */
  function unopened() {
    const disk = new SimDisk({ seed: 1 });
    const { journal: before } = open(disk, { segmentBytes: 4096 });
    for (let n = 1; n <= 9; n++) {
      before.append([{ group: n, payload: new Uint8Array(1000).fill(n) }], () => undefined);
      disk.run();
    }
    disk.crash();
    const journal = new NodeJournal({ disk, salt: 7, onFatal: () => undefined });
    const told: (Error | NodeJournalRecovery | null)[] = [];
    return { disk, journal, told };
  }

  test("reads a segment ahead, and lets others have their turn in between", () => {
    const { disk, journal, told } = unopened();
    const of = disk.list().length;
    expect(of).toBeGreaterThan(2);
    journal.open((error, found) => told.push(error ?? found));
    const seen: string[] = [];
    while (told.length === 0) {
      seen.push([...disk.operations].sort().join("+"));
      expect(journal.opening?.of ?? of).toBe(seen.length === 1 ? 0 : of);
      disk.step(0);
    }
    expect(new Set(seen)).toEqual(new Set(["turn", "read", "read+turn"]));
    expect(journal.opening).toBeNull();
    const { groups } = told[0] as NodeJournalRecovery;
    expect(ascending(groups.keys())).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  });

  test("tells of an error while it reads, and begins nothing", () => {
    for (let after = 0; after < 3; after++) {
      const { disk, journal, told } = unopened();
      const names = disk.list();
      disk.failNext("read", new Error("EIO"), after);
      journal.open((error, found) => told.push(error ?? found));
      disk.run();
      expect(told).toEqual([new Error("EIO")]);
      expect(disk.list()).toEqual(names);
    }
  });

  test("ends where it is when the journal is closed meanwhile", async () => {
    for (let steps = 0; steps < 6; steps++) {
      const { disk, journal, told } = unopened();
      const names = disk.list();
      journal.open((error, found) => told.push(error ?? found));
      for (let step = 0; step < steps; step++) disk.step(0);
      await journal.close();
      disk.run();
      expect(told).toEqual([new JournalStoppedError("Journal is closed")]);
      expect(disk.list()).toEqual(names);
    }
  });

  test("is loud about what fails once all is read: nobody else would hear of it", () => {
    const { disk, journal, told } = unopened();
    disk.create = () => {
      throw new Error("This system has no O_DSYNC");
    };
    journal.open((error, found) => told.push(error ?? found));
    expect(() => disk.run()).toThrow("O_DSYNC");
  });
});

describe("append()", () => {
  test("acknowledges in order and only after the write is durable", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const done: string[] = [];
    disk.run();
    journal.append([{ group: 1, payload: text("a") }], () => done.push("a"));
    journal.append([{ group: 2, payload: text("b") }], () => done.push("b"));
    journal.append([{ group: 1, payload: text("c") }], () => done.push("c"));
    expect(done).toEqual([]);
    expect(disk.operations).toEqual(["write"]);
    disk.step();
    expect(done).toEqual(["a"]);
    disk.run();
    expect(done).toEqual(["a", "b", "c"]);
  });

  test("puts everything appended during a write into one next write", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    disk.run();
    const before = disk.counts.writes;
    for (let n = 0; n < 100; n++)
      journal.append([{ group: n + 1, payload: text(`${n}`) }], () => undefined);
    disk.run();
    expect(disk.counts.writes - before).toBe(2);
    expect(journal.status.appends).toBe(100);
  });

  test("puts what acknowledgements append into one write", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const again = () => {
      journal.append([{ group: 1, payload: text("again") }], () => undefined);
    };
    for (let n = 0; n < 10; n++) journal.append([{ group: 1, payload: text("once") }], again);
    disk.run();
    // Header, the ten (all appended while the segment was made), the ten that followed.
    expect(disk.counts.writes).toBe(3);
  });

  test("copies records before it returns", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const payload = text("before");
    journal.append([{ group: 1, payload }], () => undefined);
    payload.fill(0);
    disk.run();
    expect(recovered(disk).groups).toEqual({ 1: ["before"] });
  });

  test("numbers records one by one, and higher after a restart", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const payload = text("x");
    const first = journal.append(
      [
        { group: 1, payload },
        { group: 2, payload },
      ],
      () => undefined,
    );
    const second = journal.append([{ group: 1, payload }], () => undefined);
    expect(second).toBe(first + 2);
    disk.run();
    const { journal: again, recovery } = recovered(disk);
    const found = [...(recovery.groups.get(1) ?? [])];
    expect(found.map(({ sequence }) => sequence)).toEqual([first, second]);
    expect(again.append([{ group: 1, payload }], () => undefined)).toBeGreaterThan(second);
  });

  test("never gives a number again that was handed out before a crash, though its record was not written", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    journal.append([{ group: 1, payload: text("kept") }], () => undefined);
    disk.run();
    const records = Array.from({ length: 100 }, () => ({ group: 1, payload: text("lost") }));
    const lost = journal.append(records, () => undefined) + records.length - 1;
    disk.crash({ kind: "none" });
    const { journal: again } = recovered(disk);
    expect(again.append([{ group: 1, payload: text("x") }], () => undefined)).toBeGreaterThan(lost);
  });

  test("keeps numbering upwards when everything was released and removed", () => {
    const disk = new SimDisk({ seed: 1 });
    let last = 0;
    for (let opening = 0; opening < 4; opening++) {
      const { journal } = recovered(disk);
      const sequence = journal.append([{ group: 1, payload: text("x") }], () => undefined);
      expect(sequence).toBeGreaterThan(last);
      last = sequence;
      disk.run();
      journal.release(1, sequence);
      disk.run();
      disk.crash();
    }
    expect(disk.list().length).toBeLessThanOrEqual(2);
  });

  test("refuses beyond the bound on pending bytes, then takes again", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk, { pendingBytesMax: 10_000 });
    const payload = new Uint8Array(4000);
    journal.append([{ group: 1, payload }], () => undefined);
    journal.append([{ group: 1, payload }], () => undefined);
    expect(journal.pendingBytes).toBe(2 * recordBytes(4000));
    expect(() => journal.append([{ group: 1, payload }], () => undefined)).toThrow(Problem);
    disk.run();
    expect(journal.pendingBytes).toBe(0);
    journal.append([{ group: 1, payload }], () => undefined);
    disk.run();
    expect(recovered(disk).recovery.groups.get(1)?.length).toBe(3);
  });

  test("tells the others when one acknowledgement throws", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const told: number[] = [];
    journal.append([{ group: 1, payload: text("a") }], () => {
      throw new Error("planted");
    });
    journal.append([{ group: 2, payload: text("b") }], () => told.push(2));
    expect(() => disk.run()).toThrow("planted");
    expect(told).toEqual([2]);
    journal.append([{ group: 2, payload: text("c") }], () => told.push(3));
    disk.run();
    expect(told).toEqual([2, 3]);
  });

  test("stops for good at the first error of the disk", () => {
    const disk = new SimDisk({ seed: 3 });
    const { journal, fatal } = open(disk);
    const told: string[] = [];
    disk.run();
    disk.failNext("write", new Error("EIO"));
    journal.append([{ group: 1, payload: text("a") }], () => told.push("a"));
    journal.append([{ group: 1, payload: text("b") }], () => told.push("b"));
    disk.run();
    expect(told).toEqual([]);
    expect(fatal.map(({ message }) => message)).toEqual(["EIO"]);
    expect(disk.pending).toBe(0);
    expect(() => journal.append([{ group: 1, payload: text("c") }], () => undefined)).toThrow(
      "Journal is stopped",
    );
  });

  test.each(["create", "write", "sync"] as const)(
    "stops when %s fails while a segment is made",
    (what) => {
      const disk = new SimDisk({ seed: 3 });
      disk.failNext(what, new Error("ENOSPC"));
      const { journal, fatal } = open(disk);
      const told: string[] = [];
      journal.append([{ group: 1, payload: text("a") }], () => told.push("a"));
      disk.run();
      expect(told).toEqual([]);
      expect(fatal.length).toBe(1);
    },
  );
});

describe("segments", () => {
  const options = { segmentBytes: 4096 };
  const payload = new Uint8Array(1000).fill(7);

  test("are closed when full and deleted oldest first once released", () => {
    const disk = new SimDisk({ seed: 5 });
    const { journal } = open(disk, options);
    const sequences: number[] = [];
    for (let n = 0; n < 20; n++) {
      sequences.push(journal.append([{ group: (n % 2) + 1, payload }], () => undefined));
      disk.run();
    }
    expect(journal.status.segments).toBe(7);
    expect(journal.pinning(3)).toEqual([1, 2]);
    journal.release(1, sequences.at(-2) as number);
    disk.run();
    expect(journal.status.segments).toBe(7);
    expect(journal.pinning(3)).toEqual([2]);
    journal.release(2, sequences[9] as number);
    disk.run();
    expect(journal.status.segments).toBe(4);
    journal.release(2, sequences.at(-1) as number);
    disk.run();
    expect(journal.status.segments).toBe(1);
    expect(journal.pinning(0)).toEqual([]);
    expect(disk.list()).toEqual([segmentName(7)]);
  });

  test("hold a write larger than themselves", () => {
    const disk = new SimDisk({ seed: 5 });
    const { journal } = open(disk, options);
    const large = new Uint8Array(100_000).fill(9);
    journal.append([{ group: 1, payload }], () => undefined);
    journal.append([{ group: 1, payload: large }], () => undefined);
    journal.append([{ group: 1, payload }], () => undefined);
    disk.run();
    const { recovery } = recovered(disk, options);
    const found = [...(recovery.groups.get(1) ?? [])];
    expect(found.map(({ payload: { byteLength } }) => byteLength)).toEqual([1000, 100_000, 1000]);
  });

  test("do not pile up over restarts", () => {
    const disk = new SimDisk({ seed: 5 });
    for (let opening = 0; opening < 10; opening++) recovered(disk, options);
    expect(disk.list().length).toBe(1);
  });
});

describe("release()", () => {
  test("is remembered over a crash once a later write carried it", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const a = journal.append([{ group: 1, payload: text("a") }], () => undefined);
    journal.append([{ group: 1, payload: text("b") }], () => undefined);
    disk.run();
    journal.release(1, a);
    journal.append([{ group: 2, payload: text("c") }], () => undefined);
    disk.run();
    disk.crash();
    expect(recovered(disk).groups).toEqual({ 1: ["b"], 2: ["c"] });
  });

  test("is remembered by a clean close", async () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const a = journal.append([{ group: 1, payload: text("a") }], () => undefined);
    disk.run();
    journal.release(1, a);
    const closed = journal.close();
    disk.run();
    await closed;
    expect(() => journal.append([], () => undefined)).toThrow("Journal is closed");
    expect(recovered(disk).groups).toEqual({});
  });

  test("that is lost only means that records are read again", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    const a = journal.append([{ group: 1, payload: text("a") }], () => undefined);
    disk.run();
    journal.release(1, a);
    disk.crash();
    expect(recovered(disk).groups).toEqual({ 1: ["a"] });
  });
});

describe("close()", () => {
  test("waits for what was appended", async () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    let told = false;
    journal.append([{ group: 1, payload: text("a") }], () => (told = true));
    const closed = journal.close();
    disk.run();
    await closed;
    expect(told).toBe(true);
    expect(disk.pending).toBe(0);
  });

  test("rejects after an error of the disk", async () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk);
    disk.failNext("write", new Error("EIO"));
    disk.run();
    let message = "";
    await journal.close().catch((error: Error) => (message = error.message));
    expect(message).toBe("Journal is stopped");
  });
});

describe("a torn end", () => {
  test.each([0, 4096])("is cut at every byte (files grow by %d)", (growthBytes) => {
    const base = new SimDisk({ seed: 1, growthBytes });
    const { journal } = open(base);
    journal.append([{ group: 1, payload: text("kept") }], () => undefined);
    base.run();
    const records = [
      { group: 1, payload: text("torn, of the first group") },
      { group: 2, payload: text("torn, of the second") },
      { group: 3, payload: text("torn 3") },
    ];
    const ends: number[] = [];
    let bytes = 0;
    for (const { payload } of records) ends.push((bytes += recordBytes(payload.byteLength)));
    for (let cut = 0; cut <= bytes; cut++) {
      const disk = base.clone(cut);
      const again = open(disk).journal;
      disk.run();
      again.append(records, () => undefined);
      disk.crash({ kind: "prefix", bytes: cut });
      const { recovery, groups } = recovered(disk);
      expect(recovery.damaged.size).toBe(0);
      expect(recovery.lost).toEqual([]);
      expect(groups[1]?.[0]).toBe("kept");
      // A record whose padding alone is missing is whole.
      const whole = Object.values(groups).flat().length - 1;
      expect(whole).toBeGreaterThanOrEqual(ends.filter((end) => end <= cut).length);
      expect(whole).toBeLessThanOrEqual(ends.filter((end) => end - 7 <= cut).length);
      // What was cut stays cut.
      expect(recovered(disk).groups).toEqual(groups);
    }
  });

  test("is cut when pages of the last write arrived out of order", () => {
    let cuts = 0;
    for (let seed = 1; seed <= 300; seed++) {
      const prng = new Prng(seed);
      const disk = new SimDisk({ seed, growthBytes: 4096 });
      const { journal } = open(disk);
      journal.append([{ group: 1, payload: text("kept") }], () => undefined);
      disk.run();
      const records = Array.from({ length: prng.between(1, 30) }, (_, n) => ({
        group: n + 2,
        payload: new Uint8Array(prng.between(1, 700)).fill(prng.between(1, 255)),
      }));
      journal.append(records, () => undefined);
      disk.crash({ kind: "sectors" });
      const { recovery } = recovered(disk);
      expect([...recovery.damaged]).toEqual([]);
      expect(recovery.groups.get(1)?.length).toBe(1);
      // What survives is a prefix.
      const groups = [...recovery.groups.keys()].filter((group) => group > 1);
      expect(ascending(groups)).toEqual(groups.map((_, n) => n + 2));
      if (recovery.tornBytes > 0) cuts += 1;
    }
    expect(cuts).toBeGreaterThan(50);
  });
});

describe("damage", () => {
  const name = segmentName(1);
  const size = recordBytes(8);

  function written(count: number, perWrite = 1): SimDisk {
    const disk = new SimDisk({ seed: 1, growthBytes: 4096 });
    const { journal } = open(disk);
    disk.run();
    for (let n = 0; n < count; n += perWrite) {
      const records = Array.from({ length: perWrite }, (_, k) => ({
        group: n + k + 1,
        payload: text(`record-${n + k}`),
      }));
      journal.append(records, () => undefined);
      disk.run();
    }
    return disk;
  }

  test("of a payload stops its group and no other", () => {
    for (let n = 0; n < 5; n++) {
      const disk = written(5);
      disk.flipBit(name, segmentHeaderBytes + n * size + 32 + 3, 2);
      const { recovery } = recovered(disk);
      expect([...recovery.damaged.keys()]).toEqual([n + 1]);
      expect(recovery.groups.size).toBe(4);
      expect(recovery.lost).toEqual([]);
    }
  });

  test("of any byte of an acknowledged record is found, whichever bit it is", () => {
    for (let at = 0; at < size; at++) {
      const disk = written(3);
      disk.flipBit(name, segmentHeaderBytes + size + at, at % 8);
      const { recovery } = recovered(disk);
      if (at < 32) {
        // The header is unreadable: it could have been anybody's.
        expect(ascending(recovery.damaged.keys())).toEqual([1, 3]);
        expect(recovery.lost.map(({ from, to }) => to - from)).toEqual([0]);
      } else expect([...recovery.damaged.keys()]).toEqual([2]);
      expect(recovery.tornBytes).toBe(0);
    }
  });

  test("stays reported until the group is released", () => {
    const disk = written(3);
    disk.flipBit(name, segmentHeaderBytes + size + 33, 0);
    expect([...recovered(disk).recovery.damaged.keys()]).toEqual([2]);
    const { journal, recovery } = recovered(disk);
    expect([...recovery.damaged.keys()]).toEqual([2]);
    const sequence = journal.append([{ group: 2, payload: text("anew") }], () => undefined);
    journal.release(2, sequence - 1);
    disk.run();
    // The release rides on the next write.
    journal.append([{ group: 1, payload: text("any") }], () => undefined);
    disk.run();
    const again = recovered(disk);
    expect(again.recovery.damaged.size).toBe(0);
    expect(again.groups[2]).toEqual(["anew"]);
  });

  test("before the last write is not taken for a torn end, though zeros", () => {
    const disk = written(3);
    disk.overwrite(name, segmentHeaderBytes + size, new Uint8Array(size));
    const { recovery } = recovered(disk);
    expect(recovery.tornBytes).toBe(0);
    expect(ascending(recovery.damaged.keys())).toEqual([1, 3]);
  });

  test("of the last write of a segment that others follow is not taken for a torn end", () => {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk, { segmentBytes: 4096 });
    for (let n = 0; n < 9; n++) {
      journal.append(
        [{ group: n + 1, payload: new Uint8Array(1000).fill(n + 1) }],
        () => undefined,
      );
      disk.run();
    }
    // The header says whose it is, the payload is zeros as if it had never been written.
    disk.overwrite(name, segmentHeaderBytes + 2 * 1032 + 32, new Uint8Array(1000));
    const before = disk.read(name);
    const { recovery } = recovered(disk, { segmentBytes: 4096 });
    expect([...recovery.damaged.keys()]).toEqual([3]);
    expect(recovery.lost).toEqual([]);
    expect(recovery.tornBytes).toBe(0);
    expect(disk.read(name)).toEqual(before);
  });

  test("of a segment's header alone loses nothing", () => {
    for (let at = 0; at < segmentHeaderBytes; at++) {
      const disk = written(3);
      disk.flipBit(name, at, 1);
      const { recovery } = recovered(disk);
      expect(recovery.groups.size).toBe(3);
      expect(recovery.damaged.size).toBe(0);
    }
  });

  /** The next opening, in which nobody but `group` needs anything, leaves one segment, whose header rots. @returns its name */
  function rotHeaderAlone(disk: SimDisk, group: number): string {
    const { journal } = open(disk);
    journal.forget(group);
    disk.run();
    const [only, ...others] = disk.list();
    expect(others).toEqual([]);
    disk.flipBit(only as string, 40, 1);
    return only as string;
  }

  test("of the header of a segment that is alone and empty gives no sequence again", () => {
    const disk = new SimDisk({ seed: 1 });
    let last = 0;
    for (let opening = 0; opening < 4; opening++) {
      // Whatever was there is released: the next opening removes it and leaves a header behind.
      const { journal } = open(disk);
      disk.run();
      const sequence = journal.append([{ group: 1, payload: new Uint8Array(9) }], () => undefined);
      expect(sequence).toBeGreaterThan(last);
      last = sequence;
      disk.run();
      journal.forget(1);
      journal.append([{ group: 2, payload: new Uint8Array(9) }], () => undefined);
      disk.run();
      journal.forget(2);
      rotHeaderAlone(disk, 2);
    }
  });

  test("of the header of a segment that is alone gives no sequence again, when nothing was listed behind it", () => {
    const disk = new SimDisk({ seed: 1 });
    let last = 0;
    for (let opening = 0; opening < 4; opening++) {
      const { journal } = open(disk);
      disk.run();
      const sequence = journal.append(
        [{ group: 1, payload: new Uint8Array(900) }],
        () => undefined,
      );
      expect(sequence).toBeGreaterThan(last);
      last = sequence;
      disk.run();
      const newest = disk.list().toSorted().at(-1) as string;
      for (let at = 0; at < 512; at++) disk.flipBit(newest, at, 3);
      // Whose records are gone is not known, so that the next segment does not list who has any.
      const alone = rotHeaderAlone(disk, 1);
      expect(disk.read(alone).byteLength).toBe(64);
    }
  });

  test("of the first sector of the newest segment hides no sequence, and gives none again", () => {
    const disk = new SimDisk({ seed: 1 });
    let last = 0;
    for (let opening = 0; opening < 4; opening++) {
      const { journal } = open(disk);
      disk.run();
      // Checkpointed once: only a loss that is known to reach further concerns it.
      const sequence = journal.append([{ group: 1, payload: new Uint8Array(9) }], () => undefined);
      expect(sequence).toBeGreaterThan(last);
      disk.run();
      journal.release(1, sequence);
      last = journal.append([{ group: 1, payload: new Uint8Array(900) }], () => undefined);
      disk.run();
      const newest = disk.list().toSorted().at(-1) as string;
      for (let at = 0; at < 512; at++) disk.flipBit(newest, at, 3);
      const { lost } = readJournal(disk).recovery;
      expect(Math.max(...lost.map(({ to }) => to))).toBeGreaterThanOrEqual(last);
    }
  });

  /** Groups 1 to 3 in the first segment, 4 to 6 in the second, and so on; a list of 3, 6, 9 groups begins the others. */
  function segmented(): SimDisk {
    const disk = new SimDisk({ seed: 1 });
    const { journal } = open(disk, { segmentBytes: 4096 });
    let sequence = 0;
    for (let n = 0; n < 12; n++) {
      // What is released is noted with the next write.
      if (n === 11) journal.release(5, sequence);
      const last = journal.append(
        [{ group: n + 1, payload: new Uint8Array(1000).fill(n + 1) }],
        () => undefined,
      );
      if (n === 4) sequence = last;
      disk.run();
    }
    return disk;
  }
  const listBytes = recordBytes(3 * 16);

  test("of the end of an earlier segment, and a missing segment, concern who had records there", () => {
    const cut = segmented();
    cut.overwrite(segmentName(2), 64 + listBytes + 2 * 1032, new Uint8Array(1032));
    const end = recovered(cut).recovery;
    expect(ascending(end.damaged.keys())).toEqual([6]);
    const missing = segmented();
    missing.removeFile(segmentName(2));
    const segment = recovered(missing).recovery;
    // The fifth needs nothing of it any more.
    expect(ascending(segment.damaged.keys())).toEqual([4, 6]);
    const unnamed = segmented();
    unnamed.flipBit(segmentName(2), 64 + listBytes + 1032 + 16, 1);
    unnamed.flipBit(segmentName(2), 64 + listBytes + 2 * 1032 + 16, 1);
    expect(ascending(recovered(unnamed).recovery.damaged.keys())).toEqual([6]);
    for (const { lost } of [end, segment]) expect(lost).toEqual([]);
  });

  test("that leaves a gap in the numbers is noticed, also of a segment shorter than the one before", () => {
    const disk = new SimDisk({ seed: 1 });
    for (const [group, bytes] of [
      [1, 1_000],
      [2, 10],
      [3, 10],
    ] as const) {
      const { journal } = open(disk);
      journal.append([{ group, payload: new Uint8Array(bytes) }], () => undefined);
      disk.run();
    }
    disk.removeFile(segmentName(2));
    expect(ascending(recovered(disk).recovery.damaged.keys())).toEqual([2]);
  });

  test("of them stays known over openings until the group is released", () => {
    const disk = segmented();
    disk.removeFile(segmentName(2));
    for (let opening = 0; opening < 3; opening++) {
      const { recovery } = recovered(disk);
      expect(ascending(recovery.damaged.keys())).toEqual([4, 6]);
    }
    const { journal } = recovered(disk);
    for (const group of [4, 6]) journal.forget(group);
    journal.append([{ group: 1, payload: text("any") }], () => undefined);
    disk.run();
    expect(recovered(disk).recovery.damaged.size).toBe(0);
  });

  test("of them concerns all groups where nothing says who had records there", () => {
    for (const how of ["end", "segment", "newest"]) {
      const disk = segmented();
      if (how === "end")
        disk.overwrite(segmentName(2), 64 + listBytes + 2 * 1032, new Uint8Array(1032));
      else if (how === "segment") disk.removeFile(segmentName(2));
      // Behind the newest there is no list, and the one that is begun after the loss must say nothing of it.
      else disk.flipBit(segmentName(4), 64 + recordBytes(9 * 16) + 16, 1);
      // The list behind it is damaged, too.
      if (how !== "newest") disk.flipBit(segmentName(3), 64 + 32 + 3, 1);
      for (let opening = 0; opening < 2; opening++) {
        const { recovery } = recovered(disk);
        expect(recovery.lost.length).toBe(1);
        expect(recovery.groups.size).toBe(how === "segment" ? 9 : 10);
        expect(ascending(recovery.damaged.keys())).toEqual(ascending(recovery.groups.keys()));
      }
    }
  });

  test("a payload that spells a record is not taken for one", () => {
    const disk = new SimDisk({ seed: 1 });
    const victim = open(disk).journal;
    disk.run();
    // The attacker knows the format, not the salt.
    const scratch = new SimDisk({ seed: 2 });
    const forger = open(scratch, { salt: 1 }).journal;
    scratch.run();
    forger.append([{ group: 7, payload: text("forged") }], () => undefined);
    scratch.run();
    const forged = scratch.read(segmentName(1)).slice(segmentHeaderBytes);
    victim.append([{ group: 1, payload: text("x") }], () => undefined);
    disk.run();
    victim.append([{ group: 2, payload: forged }], () => undefined);
    disk.run();
    victim.append([{ group: 3, payload: text("y") }], () => undefined);
    disk.run();
    disk.flipBit(name, segmentHeaderBytes + recordBytes(1) + 5, 7);
    const { recovery } = recovered(disk);
    expect(ascending(recovery.groups.keys())).toEqual([1, 3]);
  });

  test("a newer format is refused, a flipped bit in the version is no newer format", () => {
    const disk = written(1);
    disk.flipBit(name, 8, 1);
    expect(recovered(disk).recovery.groups.size).toBe(1);
    const header = disk.read(segmentName(2)).slice(0, segmentHeaderBytes);
    const view = new DataView(header.buffer);
    view.setUint32(8, formatVersion + 1, true);
    view.setUint32(60, crc32(header, 0, 60), true);
    disk.overwrite(segmentName(2), 0, header);
    expect(() => open(disk)).toThrow("start the newer program");
  });
});
