import { crc32 } from "node:zlib";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { FrameHandler, Lane } from "../../src/host/ports.ts";
import { lanes } from "../../src/host/ports.ts";
import type { Frame, TransportStats } from "../../src/transport/envelope.ts";
import {
  decodeFrame,
  dropReasons,
  FrameEncoder,
  FrameReceiver,
  isName,
  messageBytesMax,
  newStats,
} from "../../src/transport/envelope.ts";

const identity = { cluster: "acme", node: "node-1", boot: 3 };
const partBytes = 16;

interface Delivered {
  readonly lane: Lane;
  readonly bytes: Uint8Array;
}

function receiver(size = partBytes): {
  accept: (frame: Uint8Array, lane?: Lane, nowMs?: number, from?: string) => void;
  expire: (nowMs: number) => void;
  delivered: Delivered[];
  stats: TransportStats;
} {
  const delivered: Delivered[] = [];
  const stats = newStats();
  const handler: FrameHandler = (_from, _boot, lane, bytes) =>
    delivered.push({ lane, bytes: bytes.slice() });
  const frames = new FrameReceiver({ cluster: "acme", handler, stats, partBytes: size });
  return {
    accept: (frame, lane = "append", nowMs = 0, from = "node-1") =>
      frames.accept({ from, lane }, frame, nowMs),
    expire: (nowMs) => frames.expire(nowMs),
    delivered,
    stats,
  };
}

function framesOf(encoder: FrameEncoder, bytes: Uint8Array, lane: Lane = "append"): Uint8Array[] {
  const frames: Uint8Array[] = [];
  encoder.encode(lane, bytes, (frame) => frames.push(frame));
  return frames;
}

function frameOf(payload: Uint8Array, change: Partial<typeof identity> = {}): Uint8Array {
  const encoder = new FrameEncoder({ ...identity, ...change }, partBytes);
  return framesOf(encoder, payload)[0] as Uint8Array;
}

/** Makes the CRC right again after a change, so that the checks behind it are met. */
function sealed(frame: Uint8Array): Uint8Array {
  new DataView(frame.buffer).setUint32(4, crc32(frame.subarray(8)));
  return frame;
}

function drops(stats: TransportStats): Record<string, number> {
  return Object.fromEntries(Object.entries(stats.dropped).filter(([, count]) => count > 0));
}

const arbitraryLane = fc.constantFrom(...lanes);
const arbitraryMessages = fc.array(
  fc.record({ lane: arbitraryLane, bytes: fc.uint8Array({ maxLength: 100 }) }),
  { maxLength: 8 },
);

describe("frames", () => {
  test("keep their layout: nodes of two releases must understand each other", () => {
    const frame = frameOf(new TextEncoder().encode("hi"));
    expect(Buffer.from(frame).toString("hex")).toBe(
      "434658012dbaecdd" +
        "45fd71aff8e77d2e" +
        "0000000000000003" +
        "0000000000000000" +
        "00000002" +
        "00000001" +
        "01" +
        "066e6f64652d31" +
        "6869",
    );
  });

  test("put messages of any size together again, on every lane", () => {
    fc.assert(
      fc.property(arbitraryMessages, (messages) => {
        const encoder = new FrameEncoder(identity, partBytes);
        const { accept, delivered, stats } = receiver();
        let wireBytes = 0;
        for (const { lane, bytes } of messages) {
          wireBytes += encoder.wireBytes(bytes.length);
          for (const frame of framesOf(encoder, bytes, lane)) accept(frame, lane);
        }
        expect(delivered).toEqual(messages);
        expect(drops(stats)).toEqual({});
        expect(stats.bytesIn).toBe(wireBytes);
      }),
    );
  });

  test("that are lost, doubled or out of order never make a message nobody sent", () => {
    fc.assert(
      fc.property(
        arbitraryMessages,
        fc.array(fc.tuple(fc.nat(), fc.nat(), fc.constantFrom("lose", "double", "swap"))),
        (messages, faults) => {
          const encoder = new FrameEncoder(identity, partBytes);
          const sent = messages.flatMap(({ lane, bytes }) =>
            framesOf(encoder, bytes, lane).map((frame) => ({ lane, frame })),
          );
          for (const [at, other, fault] of faults) {
            if (sent.length === 0) break;
            const i = at % sent.length;
            const frame = sent[i] as (typeof sent)[number];
            if (fault === "lose") sent.splice(i, 1);
            else if (fault === "double") sent.splice(other % sent.length, 0, frame);
            else {
              const j = other % sent.length;
              [sent[i], sent[j]] = [sent[j] as typeof frame, frame];
            }
          }
          const { accept, delivered } = receiver();
          for (const { lane, frame } of sent) accept(frame, lane);
          const known = new Set(messages.map(({ lane, bytes }) => `${lane} ${bytes.join()}`));
          for (const { lane, bytes } of delivered)
            expect(known.has(`${lane} ${bytes.join()}`)).toBe(true);
        },
      ),
    );
  });

  test("with any bit flipped are dropped", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: partBytes }), fc.nat(), (payload, at) => {
        const frame = frameOf(payload);
        const bit = at % (frame.length * 8);
        frame[bit >> 3] = (frame[bit >> 3] as number) ^ (1 << (bit & 7));
        const { accept, delivered, stats } = receiver();
        accept(frame);
        expect(delivered).toEqual([]);
        expect(drops(stats)).toEqual({ [bit >> 3 === 3 ? "unknown-version" : "malformed"]: 1 });
      }),
    );
  });

  test("cut short or made longer are dropped, also when their CRC is right", () => {
    const whole = frameOf(new Uint8Array(10));
    for (let length = 0; length < whole.length; length++) {
      expect(decodeFrame(whole.slice(0, length), partBytes)).toBe("malformed");
      if (length >= 8)
        expect(decodeFrame(sealed(whole.slice(0, length)), partBytes)).toBe("malformed");
    }
    const longer = new Uint8Array(whole.length + 1);
    longer.set(whole);
    expect(decodeFrame(sealed(longer), partBytes)).toBe("malformed");
  });

  test("of any bytes decode to something consistent, or to a reason", () => {
    const template = frameOf(new Uint8Array(10));
    const check = (bytes: Uint8Array): void => {
      const frame = decodeFrame(bytes, partBytes);
      if (typeof frame === "string") return;
      expect(frame.part).toBeLessThan(frame.parts);
      expect(frame.messageBytes).toBeLessThanOrEqual(messageBytesMax);
      expect(frame.payload.length).toBeLessThanOrEqual(partBytes);
      expect(isName(frame.from)).toBe(true);
      expect(Number.isSafeInteger(frame.boot) && Number.isSafeInteger(frame.message)).toBe(true);
    };
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), check));
    // Close to real ones: the header's bytes changed at random behind a right CRC.
    const mutation = fc.tuple(fc.integer({ min: 8, max: template.length - 1 }), fc.nat(255));
    fc.assert(
      fc.property(fc.array(mutation, { minLength: 1, maxLength: 6 }), (mutations) => {
        const frame = template.slice();
        for (const [at, value] of mutations) frame[at] = value;
        check(sealed(frame));
        const { accept, stats } = receiver();
        accept(frame);
        expect(stats.framesIn).toBe(1);
      }),
      { numRuns: 1000 },
    );
  });

  test("hold numbers up to 2^53 - 1 and refuse larger ones", () => {
    const boot = Number.MAX_SAFE_INTEGER;
    const frame = frameOf(new Uint8Array(0), { boot });
    expect((decodeFrame(frame, partBytes) as Frame).boot).toBe(boot);
    frame[16] = 0xff;
    expect(decodeFrame(sealed(frame), partBytes)).toBe("malformed");
  });
});

describe("FrameReceiver", () => {
  test("drops what is not for it, by reason", () => {
    const { accept, delivered, stats } = receiver();
    const payload = new Uint8Array(4);
    const otherVersion = frameOf(payload);
    otherVersion[3] = 2;
    accept(new Uint8Array(3));
    accept(otherVersion);
    accept(frameOf(payload, { cluster: "acmf" }));
    accept(frameOf(payload, { node: "node-2" }));
    accept(frameOf(payload), "control");
    accept(frameOf(payload));
    accept(frameOf(payload, { boot: 2 }));
    expect(drops(stats)).toEqual({
      malformed: 1,
      "unknown-version": 1,
      "foreign-cluster": 1,
      "wrong-address": 2,
      "old-boot": 1,
    });
    expect(delivered.length).toBe(1);
    expect(Object.keys(stats.dropped)).toEqual([...dropReasons]);
  });

  test("tells clusters with like names apart", () => {
    const keys = ["acme", "acm", "emca", "acme-", "aacme", "acme1", "acme2"].flatMap((cluster) => {
      if (!isName(cluster)) return [];
      const frame = decodeFrame(frameOf(new Uint8Array(0), { cluster }), partBytes) as Frame;
      return [frame.cluster.join()];
    });
    expect(new Set(keys).size).toBe(keys.length);
  });

  test("gives up an incomplete message when a newer one starts on its lane, and counts it once", () => {
    const encoder = new FrameEncoder(identity, partBytes);
    const { accept, delivered, stats } = receiver();
    const [first, second, third] = framesOf(encoder, new Uint8Array(40).fill(1));
    accept(first as Uint8Array);
    accept(second as Uint8Array);
    for (const frame of framesOf(encoder, new Uint8Array(40).fill(2), "control"))
      accept(frame, "control");
    expect(drops(stats)).toEqual({});
    for (const frame of framesOf(encoder, new Uint8Array(20).fill(3))) accept(frame);
    accept(third as Uint8Array);
    expect(drops(stats)).toEqual({ incomplete: 1 });
    expect(delivered.map(({ lane, bytes }) => [lane, bytes[0]])).toEqual([
      ["control", 2],
      ["append", 3],
    ]);
  });

  test("gives up an incomplete message when its sender starts anew", () => {
    const { accept, delivered, stats } = receiver();
    const old = framesOf(new FrameEncoder(identity, partBytes), new Uint8Array(20).fill(1));
    const young = framesOf(
      new FrameEncoder({ ...identity, boot: 4 }, partBytes),
      new Uint8Array(20).fill(2),
    );
    // Both lives number their messages from zero.
    for (const frame of [old[0], young[0], old[1], young[1]]) accept(frame as Uint8Array);
    expect(delivered.map(({ bytes }) => [...bytes])).toEqual([Array(20).fill(2)]);
    expect(drops(stats)).toEqual({ incomplete: 1, "old-boot": 1 });
  });

  test("gives up an incomplete message after ten seconds without a part", () => {
    const encoder = new FrameEncoder(identity, partBytes);
    const { accept, expire, delivered, stats } = receiver();
    const [first, second, third] = framesOf(encoder, new Uint8Array(40)) as [
      Uint8Array,
      Uint8Array,
      Uint8Array,
    ];
    accept(first, "append", 0);
    accept(second, "append", 9000);
    expire(19_000);
    expect(drops(stats)).toEqual({});
    expire(19_001);
    accept(third, "append", 19_002);
    expect([drops(stats), delivered]).toEqual([{ incomplete: 1 }, []]);
  });

  test("holds 64 MiB of incomplete messages at most", () => {
    const { accept, stats, expire, delivered } = receiver(448 * 1024);
    const encoders = Array.from(
      { length: 5 },
      (_, i) => new FrameEncoder({ ...identity, node: `node-${i}` }),
    );
    const longest = new Uint8Array(messageBytesMax);
    const starts = encoders.map((encoder) => framesOf(encoder, longest)[0] as Uint8Array);
    starts.forEach((frame, i) => accept(frame, "append", 0, `node-${i}`));
    expect(drops(stats)).toEqual({ "no-room": 1 });
    // Messages of one part need no room.
    const short = framesOf(encoders[4] as FrameEncoder, new Uint8Array(3))[0] as Uint8Array;
    accept(short, "append", 0, "node-4");
    expect(delivered.length).toBe(1);
    expire(10_001);
    accept(starts[4] as Uint8Array, "rpc", 10_001, "node-4");
    expect(drops(stats)).toMatchObject({ "no-room": 1, incomplete: 4 });
  });

  test("remembers 4,096 senders and forgets the one heard of longest ago", () => {
    const { accept, delivered, stats } = receiver();
    const say = (i: number, boot: number, nowMs: number): void =>
      accept(frameOf(new Uint8Array(1), { node: `n${i}`, boot }), "append", nowMs, `n${i}`);
    for (let i = 0; i < 4096; i++) say(i, 5, i === 0 ? 5000 : i);
    say(4096, 5, 5001);
    say(0, 4, 5002);
    expect(drops(stats)).toEqual({ "old-boot": 1 });
    say(1, 4, 5003);
    expect(drops(stats)).toEqual({ "old-boot": 1 });
    expect(delivered.length).toBe(4098);
  });

  test("passes on what the handler throws", () => {
    const frames = new FrameReceiver({
      cluster: "acme",
      stats: newStats(),
      partBytes,
      handler: () => {
        throw new Error("of the host");
      },
    });
    const frame = frameOf(new Uint8Array(1));
    expect(() => frames.accept({ from: "node-1", lane: "append" }, frame, 0)).toThrow(
      "of the host",
    );
  });
});

test("isName() takes DNS labels in lower case", () => {
  for (const name of ["a", "0", "node-1", "a--b", "a".repeat(63)]) expect(isName(name)).toBe(true);
  for (const name of ["", "-", "-a", "a-", "A", "a.b", "a_b", "a b", "ä", "*", ">", "a\n"])
    expect(isName(name)).toBe(false);
  expect(isName("a".repeat(64))).toBe(false);
});
