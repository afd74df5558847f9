/** The parts by themselves: quorum, progress, log, bytes. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ByteReader, ByteWriter, MalformedError } from "../../src/lib/bytes.ts";
import {
  decodeMessage,
  encodeMessage,
  entryFromBytes,
  entryToBytes,
} from "../../src/raft/codec.ts";
import { decodeConfChange, encodeConfChange } from "../../src/raft/conf_codec.ts";
import { RaftLog } from "../../src/raft/log.ts";
import { Inflights, Progress } from "../../src/raft/progress.ts";
import { jointCommitted, jointVote, Vote } from "../../src/raft/quorum.ts";
import { emptyConfState } from "../../src/raft/raft.ts";
import type { ConfChange, Entry, EntryKind, Message, MessageType } from "../../src/raft/types.ts";
import { entry } from "./helpers.ts";
import { MemoryLog } from "./memory_log.ts";

const ids = fc.uniqueArray(fc.integer({ min: 1, max: 9 }), { maxLength: 7 });
const u53 = fc.oneof(
  fc.constantFrom(0, 1, 0xffff_ffff, 0x1_0000_0000, Number.MAX_SAFE_INTEGER),
  fc.maxSafeNat(),
);
const data = fc.uint8Array({ maxLength: 40 });
const anyEntry: fc.Arbitrary<Entry> = fc.record({
  index: u53,
  term: u53,
  kind: fc.constantFrom<EntryKind>(0, 1),
  data,
});
const confState = fc.record({
  voters: ids,
  votersOutgoing: ids,
  learners: ids,
  learnersNext: ids,
  autoLeave: fc.boolean(),
});
const anyMessage: fc.Arbitrary<Message> = fc.record({
  type: fc.integer({ min: 0, max: 16 }).map((type) => type as MessageType),
  to: u53,
  from: u53,
  term: u53,
  logTerm: u53,
  index: u53,
  commit: u53,
  reject: fc.boolean(),
  rejectHint: u53,
  context: u53,
  entries: fc.array(anyEntry, { maxLength: 5 }),
  snapshot: fc.option(fc.record({ index: u53, term: u53, confState })),
});

function messageBytes(m: Message): Uint8Array {
  const writer = new ByteWriter(4);
  encodeMessage(writer, m);
  return writer.copy();
}

function messageFrom(bytes: Uint8Array): Message {
  const reader = new ByteReader(bytes);
  const m = decodeMessage(reader);
  reader.end();
  return m;
}

describe("quorum", () => {
  const acked = (indexes: readonly number[]) => (id: number) => indexes[id] ?? 0;

  test("the committed index is the highest that a majority of both halves has", () => {
    fc.assert(
      fc.property(
        ids,
        ids,
        fc.array(fc.nat(8), { minLength: 10, maxLength: 10 }),
        (a, b, indexes) => {
          const holds = (voters: readonly number[], index: number): boolean =>
            voters.filter((id) => acked(indexes)(id) >= index).length * 2 > voters.length ||
            voters.length === 0;
          let expected = Infinity;
          if (a.length + b.length > 0) {
            expected = Math.max(
              ...Array.from({ length: 9 }, (_, i) => i).filter((i) => holds(a, i) && holds(b, i)),
            );
          }
          expect(jointCommitted(a, b, acked(indexes))).toBe(expected);
        },
      ),
    );
  });

  test("a vote is won when both halves have a majority, lost when one cannot get it any more", () => {
    const votes = fc.array(fc.constantFrom<Vote>(0, 1, 2), { minLength: 10, maxLength: 10 });
    fc.assert(
      fc.property(ids, ids, votes, (a, b, answers) => {
        const count = (voters: readonly number[], vote: Vote): number =>
          voters.filter((id) => answers[id] === vote).length;
        const won = [a, b].every((v) => v.length === 0 || count(v, Vote.granted) * 2 > v.length);
        const lost = [a, b].some((v) => v.length > 0 && count(v, Vote.refused) * 2 >= v.length);
        const result = jointVote(a, b, (id) => answers[id] ?? Vote.none);
        expect(result).toBe(won ? "won" : lost ? "lost" : "pending");
      }),
    );
  });
});

describe("inflights", () => {
  test("is full at its count or its bytes, and frees what arrived", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(9), fc.boolean()), { maxLength: 60 }), (steps) => {
        const inflights = new Inflights(5, 20);
        let model: { index: number; bytes: number }[] = [];
        let index = 0;
        for (const [amount, adds] of steps) {
          if (adds && !inflights.full) {
            index += 1;
            inflights.add(index, amount);
            model.push({ index, bytes: amount });
          } else {
            const upTo = index - amount;
            inflights.freeTo(upTo);
            model = model.filter((each) => each.index > upTo);
          }
          const bytes = model.reduce((sum, each) => sum + each.bytes, 0);
          expect(inflights.count).toBe(model.length);
          expect(inflights.full).toBe(model.length >= 5 || bytes >= 20);
        }
      }),
    );
  });
});

describe("progress", () => {
  const peer = (state: "probe" | "replicate", match: number, next: number): Progress => {
    const progress = new Progress(2, false, next, new Inflights(3, Infinity));
    progress.reset(next, match);
    if (state === "replicate") progress.becomeReplicate();
    progress.next = next;
    return progress;
  };

  for (const [state, match, next, rejected, hint, taken, nextAfter] of [
    // Replicating: a rejection at or below what is acknowledged is old; a newer one goes back to what is.
    ["replicate", 5, 10, 5, 5, false, 10],
    ["replicate", 5, 10, 4, 4, false, 10],
    ["replicate", 5, 10, 9, 9, true, 6],
    // Probing: only the answer to the probe under way counts.
    ["probe", 0, 0, 0, 0, false, 0],
    ["probe", 0, 10, 5, 5, false, 10],
    ["probe", 0, 10, 9, 9, true, 9],
    ["probe", 0, 10, 9, 2, true, 3],
    ["probe", 0, 2, 1, 1, true, 1],
    ["probe", 0, 10, 9, 0, true, 1],
  ] as const) {
    test(`${state} at ${match}/${next}, rejected at ${rejected} with hint ${hint}: next is ${nextAfter}`, () => {
      const progress = peer(state, match, next);
      expect(progress.maybeDecrease(rejected, hint)).toBe(taken);
      expect(progress.next).toBe(nextAfter);
    });
  }

  test("an old acknowledgement moves nothing back", () => {
    const progress = peer("replicate", 5, 10);
    expect(progress.maybeUpdate(4)).toBe(false);
    expect(progress.maybeUpdate(7)).toBe(true);
    expect(progress).toMatchObject({ match: 7, next: 10 });
  });

  test("a full window pauses, and probing sends one message at a time", () => {
    const progress = peer("replicate", 0, 1);
    for (let i = 0; i < 3; i++) progress.sentEntries(1, 1);
    expect(progress.isPaused).toBe(true);
    progress.becomeProbe();
    expect([progress.isPaused, progress.next]).toEqual([false, 1]);
    progress.sentEntries(1, 1);
    expect(progress.isPaused).toBe(true);
  });

  test("after a snapshot it is probed from behind it", () => {
    const progress = peer("probe", 3, 4);
    progress.becomeSnapshot(10);
    expect(progress.isPaused).toBe(true);
    progress.becomeProbe();
    expect(progress).toMatchObject({ state: "probe", next: 11, pendingSnapshot: 0 });
  });
});

describe("log", () => {
  const newLog = (terms: readonly number[], commit = 0): { log: RaftLog; stored: MemoryLog } => {
    const stored = new MemoryLog(emptyConfState());
    stored.kept = terms.map((term, i) => entry(i + 1, term, "abc"));
    const options = { commit, applied: 0, applyingBytesMax: Infinity, applyUnstable: false };
    return { log: new RaftLog(stored, options), stored };
  };

  test("replacing a committed entry is a broken invariant", () => {
    const { log } = newLog([1, 1, 1], 2);
    expect(() => log.append([entry(2, 2)])).toThrow("is committed");
    expect(() => log.maybeAppend(1, 1, [entry(2, 2)], 0)).toThrow("is committed");
  });

  test("committing beyond the end is a broken invariant: something acknowledged is lost", () => {
    expect(() => newLog([1]).log.commitTo(2)).toThrow("the log ends at 1");
    expect(() => newLog([1], 2)).toThrow("before its commit index");
  });

  test("an acknowledgement of an entry that was replaced marks nothing durable", () => {
    const { log } = newLog([1]);
    log.append([entry(2, 1), entry(3, 1)]);
    log.takeUnstable();
    log.append([entry(2, 2)]);
    log.stableTo(2, 1);
    log.stableTo(3, 1);
    expect(log.takeUnstable()).toMatchObject([{ index: 2, term: 2 }]);
    log.stableTo(2, 2);
    expect(log.hasUnstable).toBe(false);
  });

  test("nothing is applied before it is durable, nor beyond the quota", () => {
    const stored = new MemoryLog(emptyConfState());
    const log = new RaftLog(stored, {
      commit: 0,
      applied: 0,
      applyingBytesMax: 7,
      applyUnstable: false,
    });
    const entries = [entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 1)];
    log.append(entries);
    log.commitTo(4);
    expect(log.hasCommitted).toBe(false);
    stored.append(log.takeUnstable());
    log.stableTo(4, 1);
    // Three bytes each.
    expect(log.takeCommitted().map((each) => each.index)).toEqual([1, 2]);
    expect(log.takeCommitted()).toEqual([]);
    log.appliedTo(2, 6);
    expect(log.takeCommitted().map((each) => each.index)).toEqual([3, 4]);
  });

  test("a snapshot hides what is stored, and holds up applying until it is installed", () => {
    const { log, stored } = newLog([1, 1]);
    const snapshot = { index: 10, term: 3, confState: emptyConfState() };
    log.restore(snapshot);
    log.append([entry(11, 3)]);
    expect([log.firstIndex, log.lastIndex, log.commit]).toEqual([11, 11, 10]);
    expect([log.term(2), log.term(10), log.term(11)]).toEqual([-1, 3, 3]);
    log.commitTo(11);
    expect(log.takeSnapshot()).toBe(snapshot);
    expect(log.takeSnapshot()).toBe(null);
    stored.install(snapshot);
    stored.append(log.takeUnstable());
    expect(log.hasCommitted).toBe(false);
    log.snapshotStable(10);
    log.appliedTo(10, 0);
    log.stableTo(11, 3);
    expect(log.takeCommitted().map((each) => each.index)).toEqual([11]);
  });

  test("reads across stored and unstable entries keep to the limit and give at least one", () => {
    fc.assert(
      fc.property(fc.nat(6), fc.nat(6), fc.nat(30), (storedCount, unstableCount, bytesMax) => {
        const { log } = newLog(Array.from({ length: storedCount }, () => 1));
        log.append(
          Array.from({ length: unstableCount }, (_, i) => entry(storedCount + 1 + i, 1, "abc")),
        );
        const count = storedCount + unstableCount;
        for (let low = 1; low <= count; low++) {
          const entries = log.entriesFrom(low, bytesMax) ?? [];
          const fit = Math.max(1, Math.min(count - low + 1, Math.floor(bytesMax / 3)));
          expect(entries.map((each) => each.index)).toEqual(
            Array.from({ length: fit }, (_, i) => low + i),
          );
        }
      }),
    );
  });
});

describe("codec", () => {
  test("messages, entries and configuration changes come back as they were", () => {
    fc.assert(
      fc.property(anyMessage, (m) => {
        expect(messageFrom(messageBytes(m))).toEqual(m);
      }),
    );
    fc.assert(
      fc.property(anyEntry, (e) => {
        expect(entryFromBytes(entryToBytes(e))).toEqual(e);
      }),
    );
    const change: fc.Arbitrary<ConfChange> = fc.record({
      transition: fc.constantFrom("auto", "jointImplicit", "jointExplicit"),
      changes: fc.array(fc.record({ kind: fc.constantFrom(0, 1, 2, 3), id: u53 }), {
        maxLength: 4,
      }),
      context: data,
    });
    fc.assert(
      fc.property(change, (c) => {
        expect(decodeConfChange(encodeConfChange(c))).toEqual(c);
      }),
    );
  });

  test("a heartbeat is short, leaving a joint configuration has no bytes", () => {
    const beat = { type: 2, to: 1, from: 2, term: 3, commit: 4 } as const;
    const m = { ...beat, logTerm: 0, index: 0, reject: false, rejectHint: 0, context: 0 };
    expect(messageBytes({ ...m, entries: [], snapshot: null })).toHaveLength(35);
    const leave = { transition: "auto", changes: [], context: new Uint8Array(0) } as const;
    expect(encodeConfChange(leave)).toHaveLength(0);
  });

  test("bytes that are cut short or lengthened are refused", () => {
    fc.assert(
      fc.property(anyMessage, fc.nat(), (m, at) => {
        const whole = messageBytes(m);
        const cut = whole.subarray(0, at % whole.length);
        expect(() => messageFrom(cut)).toThrow(MalformedError);
        expect(() => messageFrom(Uint8Array.of(...whole, 0))).toThrow(MalformedError);
      }),
    );
  });

  test("any other bytes are refused as malformed or are a message of safe integers", () => {
    const check = (bytes: Uint8Array): void => {
      try {
        const m = messageFrom(bytes);
        for (const value of [m.term, m.index, m.commit, ...m.entries.map((e) => e.index)]) {
          expect(Number.isSafeInteger(value)).toBe(true);
        }
      } catch (error) {
        expect(error).toBeInstanceOf(MalformedError);
      }
    };
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), check));
    fc.assert(
      fc.property(anyMessage, fc.nat(), fc.integer({ min: 1, max: 255 }), (m, at, flip) => {
        const bytes = messageBytes(m);
        const place = at % bytes.length;
        bytes[place] = (bytes[place] as number) ^ flip;
        check(bytes);
      }),
    );
  });
});
