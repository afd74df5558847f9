/**
 * Any sequence of appends, releases, crashes and closes gives back exactly what was acknowledged and not released, in
 * order and whole; and damage anywhere is never taken for good data. A failure prints the seed that repeats it.
 */
import { describe, expect, test } from "vitest";
import { Prng } from "../../src/lib/prng.ts";
import type { NodeJournal } from "../../src/store/journal.ts";
import { openJournalOn, SimDisk } from "./sim_disk.ts";

interface Appended {
  readonly group: number;
  readonly sequence: number;
  readonly payload: Uint8Array;
  acknowledged: boolean;
}

class Model {
  readonly prng: Prng;
  readonly disk: SimDisk;
  /** All that may still be in the journal, in order of their sequences. */
  records: Appended[] = [];
  readonly released = new Map<number, number>();
  journal: NodeJournal;
  crashes = 0;

  constructor(seed: number) {
    this.prng = new Prng(seed);
    this.disk = new SimDisk({ seed: seed + 1, growthBytes: this.prng.pick([0, 512, 4096]) });
    this.journal = this.#open();
  }

  append(): void {
    const { prng } = this;
    const count = prng.between(1, prng.chance(0.1) ? 40 : 4);
    const records = Array.from({ length: count }, () => ({
      group: prng.between(1, 6),
      payload: Uint8Array.from({ length: prng.below(prng.chance(0.1) ? 3000 : 90) }, () =>
        prng.chance(0.3) ? 0 : prng.below(256),
      ),
    }));
    const last = this.records.at(-1)?.sequence ?? 0;
    const mine: Appended[] = [];
    const first = this.journal.append(records, () => {
      for (const record of mine) record.acknowledged = true;
    });
    if (first <= last) throw new Error(`Sequence ${first} after ${last}`);
    records.forEach(({ group, payload }, n) => {
      mine.push({ group, sequence: first + n, payload: payload.slice(), acknowledged: false });
      payload.fill(0xee);
    });
    this.records.push(...mine);
  }

  release(): void {
    const group = this.prng.between(1, 6);
    const acknowledged = this.records.filter(
      (record) => record.group === group && record.acknowledged,
    );
    if (acknowledged.length === 0) return;
    const { sequence } = this.prng.pick(acknowledged);
    this.released.set(group, Math.max(sequence, this.released.get(group) ?? 0));
    this.journal.release(group, sequence);
  }

  releaseAll(): void {
    for (const { group, sequence } of this.records) {
      this.released.set(group, sequence);
      this.journal.release(group, sequence);
    }
    this.disk.run();
  }

  crash(): void {
    this.crashes += 1;
    this.disk.crash();
    this.journal = this.#open();
  }

  async close(): Promise<void> {
    const closed = this.journal.close();
    this.disk.run();
    await closed;
    this.journal = this.#open();
  }

  #open(): NodeJournal {
    const fatal = (error: Error): void => {
      throw error;
    };
    const { journal, recovery } = openJournalOn(this.disk, {
      salt: this.prng.uint32(),
      onFatal: fatal,
      segmentBytes: 4096,
      writeBytesMax: 2048,
    });
    expect([...recovery.damaged]).toEqual([]);
    expect(recovery.lost).toEqual([]);

    const found = [...recovery.groups]
      .flatMap(([group, list]) => {
        const sequences = Array.from(list, ({ sequence }) => sequence);
        expect(sequences).toEqual([...sequences].sort((a, b) => a - b));
        return Array.from(list, ({ sequence, payload }) => ({ group, sequence, payload }));
      })
      .sort((a, b) => a.sequence - b.sequence);
    const bySequence = new Map(this.records.map((record) => [record.sequence, record]));
    for (const { group, sequence, payload } of found) {
      const appended = bySequence.get(sequence);
      expect(appended?.group).toBe(group);
      expect(Buffer.compare(appended?.payload ?? Buffer.of(), payload)).toBe(0);
    }
    const present = new Set(found.map(({ sequence }) => sequence));
    const wanted = this.records.filter(
      ({ acknowledged, group, sequence }) =>
        acknowledged && sequence > (this.released.get(group) ?? 0),
    );
    expect(wanted.filter(({ sequence }) => !present.has(sequence))).toEqual([]);
    // What was not acknowledged may be there, but without holes.
    const unacknowledged = this.records.filter(({ acknowledged }) => !acknowledged);
    const survived = unacknowledged.filter(({ sequence }) => present.has(sequence)).length;
    expect(unacknowledged.slice(0, survived).every((r) => present.has(r.sequence))).toBe(true);

    this.records = this.records.filter(({ sequence }) => present.has(sequence));
    for (const record of this.records) record.acknowledged = true;
    return journal;
  }
}

describe("the journal", () => {
  test("gives back exactly what was acknowledged and not released", async () => {
    let crashes = 0;
    for (let seed = 1; seed <= 250; seed++) {
      try {
        const model = new Model(seed);
        for (let step = 0; step < 80; step++) {
          const what = model.prng.below(100);
          if (what < 35) model.append();
          else if (what < 80) model.disk.step();
          else if (what < 88) model.release();
          else if (what < 92) model.disk.run();
          else if (what < 98) model.crash();
          else await model.close();
        }
        model.disk.run();
        model.crash();
        model.releaseAll();
        expect(model.journal.status.segments).toBe(1);
        crashes += model.crashes;
      } catch (error) {
        throw new Error(`REPRODUCE: seed ${seed}`, { cause: error });
      }
    }
    expect(crashes).toBeGreaterThan(500);
  });

  test("never gives back a record that rotted, and names its group or all", () => {
    for (let seed = 1; seed <= 400; seed++) {
      const prng = new Prng(seed);
      const disk = new SimDisk({ seed, growthBytes: 4096 });
      const options = { salt: seed, onFatal: () => undefined, segmentBytes: 8192 };
      const { journal } = openJournalOn(disk, options);
      disk.run();
      const written = new Map<number, { group: number; payload: Uint8Array }>();
      for (let n = 0; n < 30; n++) {
        const group = prng.between(1, 5);
        const payload = Uint8Array.from({ length: prng.between(1, 900) }, () => prng.below(256));
        written.set(
          journal.append([{ group, payload }], () => undefined),
          { group, payload },
        );
        disk.run();
      }
      // Not the last write: there, a hole cannot be told from a torn one.
      journal.append([{ group: 9, payload: Uint8Array.of(9) }], () => undefined);
      disk.run();
      disk.crash();
      const names = disk.list();
      const name = prng.pick(names);
      const { length } = disk.read(name);
      const start = prng.below(length);
      const width = prng.chance(0.5) ? 1 : prng.between(1, 600);
      for (let at = start; at < Math.min(length, start + width); at++)
        disk.flipBit(name, at, prng.below(8));

      const { groups, damaged, lost } = openJournalOn(disk, options).recovery;
      const present = new Set<number>();
      for (const [group, list] of groups)
        for (const { sequence, payload } of list) {
          if (group === 9) continue;
          const original = written.get(sequence);
          if (original === undefined || Buffer.compare(original.payload, payload) !== 0)
            throw new Error(`REPRODUCE: seed ${seed}: record ${sequence} is not what was written`);
          expect(group).toBe(original.group);
          present.add(sequence);
        }
      for (const [sequence, { group }] of written) {
        if (present.has(sequence)) continue;
        const named = damaged.has(group);
        const covered = lost.some(({ from, to }) => from <= sequence && sequence <= to);
        if (!named && !covered) throw new Error(`REPRODUCE: seed ${seed}: ${sequence} vanished`);
        if (covered)
          for (const held of groups.keys())
            if (!damaged.has(held)) throw new Error(`REPRODUCE: seed ${seed}: group ${held} votes`);
      }
    }
  });
});
