import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Backoff } from "../../src/sdk/http.ts";
import {
  EventStreamParser,
  FrameError,
  frameOf,
  framesOf,
  parseCursor,
  Snapshot,
} from "../../src/sdk/watch.ts";
import type { Frame, StreamEvent, Taken } from "../../src/sdk/watch.ts";

const utf8 = new TextEncoder();

function parse(...chunks: (string | Uint8Array)[]): StreamEvent[] {
  const parser = new EventStreamParser();
  return chunks.flatMap((chunk) =>
    parser.push(typeof chunk === "string" ? utf8.encode(chunk) : chunk),
  );
}

/** Cuts bytes at the given places. */
function cut(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const at = [...new Set(places.map((place) => place % (bytes.length + 1)))].toSorted(
    (a, b) => a - b,
  );
  const chunks = [];
  let from = 0;
  for (const place of [...at, bytes.length]) {
    chunks.push(bytes.slice(from, place));
    from = place;
  }
  return chunks;
}

describe("EventStreamParser", () => {
  const check = (text: string, expected: Partial<StreamEvent>[]): void => {
    expect(parse(text)).toMatchObject(expected);
    expect(parse(text)).toHaveLength(expected.length);
  };

  // The examples of the standard, §9.2.6.
  test("joins data lines", () =>
    check("data: YHOO\ndata: +2\ndata: 10\n\n", [{ data: "YHOO\n+2\n10" }]));
  test("follows the standard's second example", () =>
    check(
      ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
      [
        { data: "first event", id: "1" },
        { data: "second event", id: "" },
      ],
    ));
  test("follows the standard's third example", () =>
    check("data\n\ndata\ndata\n\ndata:", [{ data: "" }, { data: "\n" }]));
  test("strips one space after the colon", () =>
    check("data:test\n\ndata: test\n\ndata:  test\n\n", [
      { data: "test" },
      { data: "test" },
      { data: " test" },
    ]));
  test("dispatches nothing without data, and forgets the type", () =>
    check("event: a\n\ndata: x\n\n", [{ type: "message", data: "x" }]));
  test("keeps the id over events and ignores one with NUL", () =>
    check("id: 7\ndata: a\n\nid: 8\0\ndata: b\n\n", [{ id: "7" }, { id: "7" }]));
  test("takes the id of an event without data", () =>
    check("id: 7\n\ndata: b\n\n", [{ data: "b", id: "7" }]));
  test("knows CR, LF and CRLF", () =>
    check("data: a\rdata: b\r\rdata: c\r\n\r\ndata: d\n\n", [
      { data: "a\nb" },
      { data: "c" },
      { data: "d" },
    ]));
  test("strips one byte order mark", () => check("\uFEFFdata: a\n\n", [{ data: "a" }]));
  test("ignores unknown fields and comments", () =>
    check(":x\nfoo: bar\ndata: a\n:y\n\n", [{ data: "a" }]));

  test("does not wait for the LF of a CRLF", () => {
    const parser = new EventStreamParser();
    expect(parser.push(utf8.encode("data: a\r\n\r"))).toHaveLength(1);
    expect(parser.push(utf8.encode("\ndata: b\n\n"))).toMatchObject([{ data: "b" }]);
  });

  test("reads retry, digits only", () => {
    const parser = new EventStreamParser();
    parser.pushText("retry: 250\n\n");
    expect(parser.retryMs).toBe(250);
    parser.pushText("retry: soon\n\n");
    expect(parser.retryMs).toBe(250);
  });

  const line = fc.oneof(
    fc.tuple(fc.constantFrom("data", "event", "id", "retry", "", "foo"), fc.string()).map(
      // oxlint-disable-next-line no-control-regex
      ([field, value]) => `${field}:${value.replace(/[\r\n]/g, "")}`,
    ),
    fc.constantFrom("data: ä€😀", "data", "", "", ""),
  );
  const ending = fc.constantFrom("\n", "\r", "\r\n");

  test("gives the same events for any chunking", () => {
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.array(fc.tuple(line, ending), { maxLength: 30 }),
        fc.array(fc.nat(), { maxLength: 40 }),
        (mark, lines, places) => {
          const text = (mark ? "\uFEFF" : "") + lines.map(([a, b]) => a + b).join("");
          const bytes = utf8.encode(text);
          expect(parse(...cut(bytes, places))).toEqual(parse(bytes));
        },
      ),
      { numRuns: 500 },
    );
  });

  test("gives back what was written, whatever the line ending", () => {
    const event = fc.record({
      type: fc.constantFrom("sync", "commit", "bookmark"),
      data: fc.array(
        fc.string().map((text) => text.replace(/[\r\n]/g, "")),
        { minLength: 1 },
      ),
      id: fc.constantFrom("1-1", "1-20", "2-3"),
    });
    fc.assert(
      fc.property(fc.array(event), ending, fc.array(fc.nat()), (events, end, places) => {
        const text = events
          .map(({ type, data, id }) =>
            [`event: ${type}`, `id: ${id}`, ...data.map((one) => `data: ${one}`), "", ""].join(end),
          )
          .join("");
        expect(parse(...cut(utf8.encode(text), places))).toEqual(
          events.map(({ type, data, id }) => ({ type, id, data: data.join("\n") })),
        );
      }),
    );
  });
});

describe("Backoff", () => {
  test("draws from 0 up to a ceiling that doubles to the cap", () => {
    const highest = new Backoff(100, 1000, () => 1);
    expect([1, 2, 3, 4, 5, 6].map(() => highest.next())).toEqual([100, 200, 400, 800, 1000, 1000]);
    highest.reset();
    expect(highest.next(50)).toBe(150);
    const lowest = new Backoff(100, 1000, () => 0);
    expect([lowest.next(), lowest.next(7)]).toEqual([0, 7]);
  });

  test("does not grow with how often one was told to come back", () => {
    const highest = new Backoff(100, 1000, () => 1);
    expect([1, 2, 3, 4].map(() => highest.soon())).toEqual([100, 100, 100, 100]);
    // As wide as half the floor, or many that were told the same at the same time stay together.
    expect([highest.soon(50), highest.soon(1000), highest.next()]).toEqual([150, 1500, 100]);
    const lowest = new Backoff(100, 1000, () => 0);
    expect([lowest.soon(), lowest.soon(1000)]).toEqual([0, 1000]);
  });

  test("stays finite after very many failures", () => {
    const backoff = new Backoff(100, 10_000, () => 0.999);
    for (let n = 0; n < 2000; n += 1) expect(backoff.next()).toBeLessThan(10_000);
  });
});

test("parseCursor() takes the last dash and refuses what has no revision", () => {
  expect(parseCursor("3-17")).toEqual({ epoch: "3", revision: 17 });
  expect(parseCursor("a-b-17")).toEqual({ epoch: "a-b", revision: 17 });
  for (const text of ["", "17", "-17", "3-", "3-x", "3--", "3-99999999999999999"])
    expect(parseCursor(text)).toBeNull();
});

// --- snapshot -----------------------------------------------------------------------------------------------------------

interface Put {
  readonly name: string;
  /** Null: released no more. */
  readonly content: string | null;
  readonly large: boolean;
}

const hashOf = (content: string): string => `sha256:of ${content}`;

function wire(put: Put, version: number): Record<string, unknown> {
  if (put.content === null) return { type: "delete", name: put.name };
  return {
    name: put.name,
    version,
    hash: hashOf(put.content),
    format: "text",
    ...(put.large ? {} : { content: put.content }),
  };
}

function frame(event: string, id: string, data: unknown): Frame {
  return { event, id, data };
}

function sync(epoch: number, revision: number, puts: readonly Put[]): Frame {
  const values = Object.fromEntries(puts.map((put) => [put.name, wire(put, revision)]));
  return frame("sync", `${epoch}-${revision}`, { revision, values });
}

function commit(epoch: number, revision: number, puts: readonly Put[]): Frame {
  const changes = puts.map((put) => wire(put, revision));
  return frame("commit", `${epoch}-${revision}`, { revision, at: 0, changes });
}

function contents(snapshot: Snapshot): Record<string, string> {
  return Object.fromEntries(
    snapshot.names().map((name) => [name, snapshot.get(name)?.content as string]),
  );
}

describe("Snapshot", () => {
  const a1: Put = { name: "a", content: "1", large: false };
  const a2: Put = { name: "a", content: "2", large: false };
  const b1: Put = { name: "b", content: "1", large: false };

  test("a sync replaces everything and says what changed", () => {
    const snapshot = new Snapshot();
    snapshot.take(sync(1, 5, [a1, b1]));
    const taken = snapshot.take(sync(1, 9, [a2]));
    expect(contents(snapshot)).toEqual({ a: "2" });
    expect(taken).toMatchObject({
      kind: "swapped",
      revision: 9,
      changes: [
        { name: "b", new: null },
        { name: "a", old: { content: "1" }, new: { content: "2" } },
      ],
    });
  });

  test("a commit that was seen already changes nothing", () => {
    const snapshot = new Snapshot();
    snapshot.take(sync(1, 5, [a1]));
    expect(snapshot.take(commit(1, 5, [a2])).kind).toBe("nothing");
    expect(snapshot.take(commit(1, 4, [a2])).kind).toBe("nothing");
    expect(contents(snapshot)).toEqual({ a: "1" });
  });

  test("an older sync of the same epoch is refused, one of another epoch is taken", () => {
    const snapshot = new Snapshot();
    snapshot.take(sync(1, 5, [a2]));
    expect(snapshot.take(sync(1, 4, [a1])).kind).toBe("behind");
    expect(contents(snapshot)).toEqual({ a: "2" });
    expect(snapshot.take(sync(2, 1, [a1])).kind).toBe("swapped");
    expect(snapshot.cursor).toBe("2-1");
  });

  test("a commit without the sync of its epoch is a broken stream", () => {
    const snapshot = new Snapshot();
    expect(() => snapshot.take(commit(1, 5, [a1]))).toThrow(FrameError);
    snapshot.take(sync(1, 5, [a1]));
    expect(() => snapshot.take(commit(2, 6, [a1]))).toThrow(FrameError);
  });

  test("a bookmark moves the cursor and no value", () => {
    const snapshot = new Snapshot();
    snapshot.take(sync(1, 5, [a1]));
    expect(snapshot.take(frame("bookmark", "1-8", { revision: 8 }))).toEqual({
      kind: "swapped",
      revision: 8,
      changes: [],
    });
    expect(snapshot.cursor).toBe("1-8");
    expect(snapshot.take(frame("bookmark", "1-7", {})).kind).toBe("nothing");
    expect(snapshot.revision).toBe(8);
  });

  test("nothing is served before the large contents are there", () => {
    const snapshot = new Snapshot();
    snapshot.take(sync(1, 5, [a1]));
    const large: Put = { name: "b", content: "big", large: true };
    expect(snapshot.take(commit(1, 6, [a2, large])).kind).toBe("incomplete");
    expect(contents(snapshot)).toEqual({ a: "1" });
    expect(snapshot.cursor).toBe("1-5");
    expect(snapshot.missing()).toMatchObject([{ name: "b", revision: 6 }]);
    expect(snapshot.fill("b", hashOf("other"), "other").kind).toBe("nothing");
    expect(snapshot.fill("b", hashOf("big"), "big").kind).toBe("swapped");
    expect(contents(snapshot)).toEqual({ a: "2", b: "big" });
    expect(snapshot.cursor).toBe("1-6");
  });

  test("a large content that was superseded is no longer waited for", () => {
    const snapshot = new Snapshot();
    snapshot.take(sync(1, 5, []));
    snapshot.take(commit(1, 6, [{ name: "a", content: "big", large: true }]));
    expect(snapshot.take(commit(1, 7, [a1]))).toMatchObject({ kind: "swapped", revision: 7 });
  });

  test.each([
    ["no JSON", { type: "sync", id: "1-1", data: "{" }],
    ["no cursor", { type: "sync", id: "", data: '{"values":{}}' }],
    ["no values", { type: "sync", id: "1-1", data: "{}" }],
    ["an array", { type: "sync", id: "1-1", data: "[]" }],
    ["a value without hash", { type: "sync", id: "1-1", data: '{"values":{"a":{"version":1}}}' }],
    ["a value that is null", { type: "sync", id: "1-1", data: '{"values":{"a":null}}' }],
  ])("a frame with %s is refused", (_, event) => {
    expect(() => new Snapshot().take(frameOf(event))).toThrow(FrameError);
  });

  test.each([[null], [{}], [{ frames: {} }], [{ frames: [null] }], [{ frames: [{ id: "1-1" }] }]])(
    "an answer to a long poll such as %j is refused",
    (body) => expect(() => framesOf(body)).toThrow(FrameError),
  );

  test("names out of Object.prototype are names like any other", () => {
    const snapshot = new Snapshot();
    const data = '{"values":{"__proto__":{"version":1,"hash":"h","format":"text","content":"x"}}}';
    snapshot.take(frameOf({ type: "sync", id: "1-1", data }));
    expect(snapshot.names()).toEqual(["__proto__"]);
    expect(snapshot.get("toString")).toBeUndefined();
  });

  // A history of commits is served to a client over connections that are cut, repeat frames, start over with a sync or
  // resume by cursor; large contents come late or not at all. What the client serves must be the state at some revision
  // of the history, never an older one than before, and its changes must add up to it.
  test("serves only states of the history, in order, over any cuts", () => {
    const put = fc.record({
      name: fc.constantFrom("a", "b", "c"),
      content: fc.option(fc.constantFrom("1", "2", "3"), { freq: 4 }),
      large: fc.boolean(),
    });
    const step = fc.record({
      kind: fc.constantFrom(
        "next",
        "next",
        "next",
        "repeat",
        "reconnect",
        "sync",
        "bookmark",
        "fill",
      ),
      pick: fc.nat(),
    });
    fc.assert(
      fc.property(
        fc.array(fc.uniqueArray(put, { minLength: 1, selector: (one) => one.name }), {
          minLength: 1,
          maxLength: 12,
        }),
        fc.array(step, { maxLength: 60 }),
        (history, steps) => {
          const states: Record<string, string>[] = [{}];
          for (const puts of history) {
            const state = { ...(states.at(-1) as Record<string, string>) };
            for (const { name, content } of puts) {
              if (content === null) delete state[name];
              else state[name] = content;
            }
            states.push(state);
          }
          const all = (revision: number): Put[] =>
            Object.entries(states[revision] as Record<string, string>).map(([name, content]) => ({
              name,
              content,
              large: name === "c",
            }));

          const snapshot = new Snapshot();
          const told: Record<string, string> = {};
          let served = 0;
          let sent = 0; // what this connection has sent up to
          let synced = false;
          const check = (taken: Taken): void => {
            expect(snapshot.revision).toBeGreaterThanOrEqual(served);
            served = snapshot.revision;
            expect(contents(snapshot)).toEqual(states[served] ?? {});
            if (taken.kind !== "swapped") return;
            expect(taken.revision).toBe(served);
            for (const change of taken.changes) {
              expect(change.old?.content).toBe(told[change.name]);
              if (change.new === null) delete told[change.name];
              else told[change.name] = change.new.content;
            }
            expect(told).toEqual(states[served]);
          };
          for (const { kind, pick } of steps) {
            if (!synced || kind === "sync") {
              synced = true;
              sent = Math.max(sent, pick % states.length);
              check(snapshot.take(sync(1, sent, all(sent))));
            } else if (kind === "next" && sent < history.length) {
              sent += 1;
              check(snapshot.take(commit(1, sent, history[sent - 1] as Put[])));
            } else if (kind === "repeat" && sent > 0) {
              const old = 1 + (pick % sent);
              if (snapshot.live) check(snapshot.take(commit(1, old, history[old - 1] as Put[])));
            } else if (kind === "reconnect") {
              snapshot.restart();
              if (snapshot.live) sent = snapshot.revision;
              else synced = false;
            } else if (kind === "bookmark" && snapshot.live) {
              check(snapshot.take(frame("bookmark", `1-${sent}`, {})));
            } else if (kind === "fill") {
              const missing = snapshot.missing();
              const one = missing[pick % Math.max(1, missing.length)];
              if (one !== undefined) {
                const content = (states[sent] as Record<string, string>)[one.name] as string;
                check(snapshot.fill(one.name, hashOf(content), content));
              }
            }
          }
        },
      ),
      { numRuns: 1000 },
    );
  });
});
