import { describe, expect, test } from "vitest";
import { bruteForce, orderViolations, sequentialRegister } from "./brute_force.ts";
import { check, describeResult, type Model } from "./checker.ts";
import { History, unknown, type Operation } from "./history.ts";
import {
  kv,
  register,
  versionedRegister,
  type KvInput,
  type RegisterInput,
  type RegisterOutput,
  type VersionedInput,
  type VersionedOutput,
} from "./models.ts";

type RegisterOperation = Operation<RegisterInput, RegisterOutput>;
type VersionedOperation = Operation<VersionedInput, VersionedOutput>;
type Span = readonly [calledAt: number, returnedAt: number];
const at = ([calledAt, returnedAt]: Span): { calledAt: number; returnedAt: number } => ({
  calledAt,
  returnedAt,
});

const read = (value: number, span: Span): RegisterOperation => ({
  client: "reader",
  input: { op: "read" },
  output: value,
  ...at(span),
});
const write = (value: number, span: Span): RegisterOperation => ({
  client: "writer",
  input: { op: "write", value },
  output: true,
  ...at(span),
});
const cas = (
  from: number,
  to: number,
  output: boolean | typeof unknown,
  span: Span,
): RegisterOperation => ({
  client: "swapper",
  input: { op: "cas", from, to },
  output,
  ...at(span),
});
const lost = (operation: RegisterOperation): RegisterOperation => ({
  ...operation,
  output: unknown,
  returnedAt: Infinity,
});

describe("check() of a register", () => {
  const cases: [what: string, linearizable: boolean, history: RegisterOperation[]][] = [
    ["nothing at all", true, []],
    ["one after the other", true, [write(1, [1, 2]), read(1, [3, 4])]],
    ["a stale read", false, [write(1, [1, 2]), read(0, [3, 4])]],
    ["a read beside a write sees the old value", true, [write(1, [1, 4]), read(0, [2, 3])]],
    ["a read beside a write sees the new value", true, [write(1, [1, 4]), read(1, [2, 3])]],
    ["equal times overlap", true, [write(1, [1, 2]), read(0, [2, 3])]],
    [
      "new then old, beside one write",
      false,
      [write(1, [1, 10]), read(1, [2, 3]), read(0, [4, 5])],
    ],
    ["new then old, at the same time", true, [write(1, [1, 10]), read(1, [2, 5]), read(0, [4, 6])]],
    ["a value out of the air", false, [write(1, [1, 2]), read(2, [1, 2])]],
    [
      "a lost write is seen much later",
      true,
      [lost(write(1, [1, 2])), read(0, [3, 4]), read(1, [5, 6])],
    ],
    ["a lost write never happens", true, [lost(write(1, [1, 2])), read(0, [3, 4])]],
    [
      "a lost write happens twice",
      false,
      [lost(write(1, [1, 2])), read(1, [3, 4]), write(2, [5, 6]), read(1, [7, 8])],
    ],
    ["a lost write is seen before its call", false, [read(1, [1, 2]), lost(write(1, [3, 4]))]],
    ["nothing but lost ones", true, [lost(write(1, [1, 2])), lost(cas(5, 6, true, [1, 2]))]],
    [
      "a lost cas is needed",
      true,
      [write(1, [1, 2]), lost(cas(1, 2, true, [3, 4])), read(2, [5, 6])],
    ],
    ["a lost cas that finds nothing", false, [lost(cas(1, 2, true, [1, 2])), read(2, [5, 6])]],
    [
      "two lost ones in a row are needed",
      true,
      [lost(cas(1, 2, true, [1, 2])), lost(write(1, [1, 2])), read(2, [5, 6])],
    ],
    ["a cas refused though it fits", false, [write(1, [1, 2]), cas(1, 2, false, [3, 4])]],
    ["two cas of one value", false, [cas(0, 1, true, [1, 9]), cas(0, 2, true, [1, 9])]],
    [
      "an answer without content, but an answer",
      false,
      [{ ...write(1, [1, 2]), output: unknown }, read(0, [3, 4])],
    ],
    [
      "only one order of many",
      true,
      [
        cas(3, 4, true, [1, 9]),
        cas(2, 3, true, [1, 9]),
        cas(1, 2, true, [1, 9]),
        cas(0, 1, true, [1, 9]),
      ],
    ],
  ];
  test.each(cases)("judges %s", (_what, linearizable, history) => {
    const result = check(register(0), history);
    expect(result.verdict).toBe(linearizable ? "linearizable" : "not-linearizable");
    expect(bruteForce(sequentialRegister, 0, history)).toBe(linearizable);
    if (result.verdict === "linearizable")
      expect(orderViolations(register(0), history, result.orders.get(null) ?? [])).toEqual([]);
  });

  test("refuses operations that end before they begin", () => {
    expect(() => check(register(0), [read(0, [2, 1])])).toThrow(/from 2 to 1/);
    expect(() => check(register(0), [read(0, [0, NaN])])).toThrow(/from 0 to NaN/);
  });

  test("names the longest order and what has no place in it", () => {
    const history = [
      write(1, [1, 2]),
      write(2, [3, 8]),
      read(2, [4, 5]),
      lost(cas(3, 4, true, [3, 4])),
      lost(cas(2, 5, true, [3, 4])),
      read(1, [6, 7]),
      read(9, [9, 10]),
    ];
    const result = check(register(0), history);
    expect(describeResult(result)).toBe(
      [
        `Not linearizable, after ${result.steps} steps: 3 of 7 operations placed`,
        '  client writer, 1–2: {"op":"write","value":1} → true',
        '  client writer, 3–8: {"op":"write","value":2} → true',
        '  client reader, 4–5: {"op":"read"} → 2',
        "State after them: 2",
        "No order found also serves the return at 7 of",
        '  client reader, 6–7: {"op":"read"} → 1',
        "Called by then and not placed:",
        '  client swapper, 3–?: {"op":"cas","from":3,"to":4} → unknown: without effect here',
        '  client swapper, 3–?: {"op":"cas","from":2,"to":5} → unknown: possible here, but leads no further',
        '  client reader, 6–7: {"op":"read"} → 1: impossible here',
      ].join("\n"),
    );
  });

  test("names the order with the most required and the fewest optional operations", () => {
    const history = [
      lost(write(8, [0, 1])),
      write(1, [1, 10]),
      write(2, [1, 10]),
      read(9, [2, 3]),
      write(3, [4, 5]),
    ];
    const result = check(register(0), history);
    expect(result.verdict).toBe("not-linearizable");
    if (result.verdict === "linearizable") return;
    const { placed, blocked, unplaced } = result.furthest;
    expect(placed).toEqual([history[1], history[2]]);
    expect(blocked).toBe(history[3]);
    expect(unplaced).toEqual([
      { operation: history[0], here: "possible" },
      { operation: history[3], here: "impossible" },
    ]);
  });

  test("shows the end of a long order", () => {
    const history = Array.from({ length: 50 }, (_, n) => write(n, [2 * n, 2 * n + 1]));
    const text = describeResult(check(register(0), [...history, read(7, [200, 201])]));
    expect(text).toContain("50 of 51 operations placed\n  … 30 before these\n");
    expect(text.split("\n").length).toBeLessThan(30);
  });
});

describe("check() within its budget", () => {
  /** Any order of the writes is as good as another, and none helps. */
  const hard = Array.from({ length: 24 }, (_, n) => write(n, [1, 2]));
  hard.push(read(99, [3, 4]));

  test("leaves open what it did not finish, and says how far it came", () => {
    const result = check(register(0), hard, { stepsMax: 1_000 });
    expect(result.verdict).toBe("undecided");
    expect(result.steps).toBeLessThan(1_100);
    expect(describeResult(result)).toMatch(/^Undecided after \d+ steps.*: 24 of 25 operations/);
  });

  test("is decided by another partition, but only to the worse", () => {
    const hardKey = hard.map(({ input, ...operation }): Operation<KvInput, string> => ({
      ...operation,
      input:
        input.op === "write"
          ? { op: "put", key: "hard", value: String(input.value) }
          : { op: "get", key: "hard" },
      output: input.op === "write" ? "" : "99",
    }));
    const get = (output: string): Operation<KvInput, string> => ({
      client: 0,
      input: { op: "get", key: "easy" },
      output,
      ...at([1, 2]),
    });
    expect(check(kv, [...hardKey, get("")], { stepsMax: 1_000 }).verdict).toBe("undecided");
    const result = check(kv, [...hardKey, get("x")], { stepsMax: 1_000 });
    expect(result.verdict).toBe("not-linearizable");
    expect(describeResult(result)).toMatch(/in partition "easy"/);
  });

  test("passes over many lost writes that nobody saw", () => {
    const publishes = Array.from({ length: 60 }, (_, n): VersionedOperation => ({
      client: n,
      input: { op: "publish", config: "a", value: `lost ${n}` },
      output: unknown,
      calledAt: n,
      returnedAt: Infinity,
    }));
    const seen = (value: string, revision: number, span: Span): VersionedOperation => ({
      client: "reader",
      input: { op: "read", config: "a" },
      output: { value, revision },
      ...at(span),
    });
    const twice = [seen("lost 7", 3, [100, 101]), seen("lost 9", 5, [102, 103])];
    const good = check(versionedRegister(), [...publishes, ...twice]);
    expect(good.verdict).toBe("linearizable");
    const bad = check(versionedRegister(), [...publishes, ...twice, seen("lost 7", 6, [104, 105])]);
    expect(bad.verdict).toBe("not-linearizable");
    expect(bad.steps).toBeLessThan(100_000);
  });

  test("stays small where a history is long", () => {
    const history = Array.from({ length: 20_000 }, (_, n) =>
      n % 2 === 0 ? write(n, [10 * n, 10 * n + 25]) : read(n - 1, [10 * n, 10 * n + 25]),
    );
    const result = check(register(0), history);
    expect(result.verdict).toBe("linearizable");
    expect(result.steps).toBeLessThan(100_000);
  });
});

describe("check() of keys and values", () => {
  const history = new History<KvInput, string>();
  const done = (input: KvInput, output = ""): void =>
    history.returned(history.call("c", input), output);
  done({ op: "put", key: "a", value: "1" });
  done({ op: "append", key: "b", value: "x" });
  done({ op: "append", key: "a", value: "2" });
  done({ op: "get", key: "a" }, "12");
  done({ op: "get", key: "b" }, "x");
  const good = history.operations();
  done({ op: "get", key: "b" }, "12");

  test("takes each key for itself", () => {
    const result = check(kv, good);
    expect(result.verdict).toBe("linearizable");
    if (result.verdict !== "linearizable") return;
    expect([...result.orders].map(([key, order]) => [key, order.length])).toEqual([
      ["a", 3],
      ["b", 2],
    ]);
  });

  test("names the key that is wrong", () => {
    const result = check(kv, history.operations());
    expect(result.verdict).toBe("not-linearizable");
    if (result.verdict === "linearizable") return;
    expect(result.furthest).toMatchObject({ partition: "b", operations: 3, state: "x" });
  });

  test("takes all together where the model has no partitions", () => {
    const together: Model<string, KvInput, string> = {
      init: kv.init,
      step: (...given) => kv.step(...given),
      stateKey: (state) => kv.stateKey(state),
    };
    expect(check(together, good).verdict).toBe("not-linearizable");
  });
});

describe("check() of a versioned register", () => {
  const publish = (
    value: string,
    output: number | typeof unknown,
    span: Span,
    config = "a",
  ): VersionedOperation => ({
    client: "publisher",
    input: { op: "publish", config, value },
    output,
    ...at(span),
  });
  const seen = (value: string | null, revision: number, span: Span): VersionedOperation => ({
    client: "reader",
    input: { op: "read", config: "a" },
    output: { value, revision },
    ...at(span),
  });
  const maybe = (value: string, calledAt: number): VersionedOperation =>
    publish(value, unknown, [calledAt, Infinity]);

  const cases: [what: string, linearizable: boolean, history: VersionedOperation[]][] = [
    [
      "one after the other",
      true,
      [seen(null, 0, [1, 2]), publish("x", 1, [3, 4]), seen("x", 1, [5, 6])],
    ],
    [
      "gaps between revisions",
      true,
      [publish("x", 3, [1, 2]), publish("y", 7, [3, 4]), seen("y", 7, [5, 6])],
    ],
    ["revisions that go back", false, [publish("x", 3, [1, 2]), publish("y", 2, [3, 4])]],
    ["one revision given twice", false, [publish("x", 3, [1, 9]), publish("y", 3, [1, 9])]],
    [
      "revisions give the order",
      false,
      [publish("x", 2, [1, 9]), publish("y", 1, [1, 9]), seen("y", 1, [10, 11])],
    ],
    ["the revision of another value", false, [publish("x", 1, [1, 2]), seen("x", 2, [3, 4])]],
    [
      "configs share the count, not the value",
      true,
      [publish("x", 2, [1, 2]), publish("y", 1, [3, 4], "b"), seen("x", 2, [5, 6])],
    ],
    [
      "a lost publish has the revision it is seen with",
      true,
      [publish("x", 1, [1, 2]), maybe("y", 3), seen("y", 5, [5, 6]), seen("y", 5, [7, 8])],
    ],
    [
      "a lost publish has one revision",
      false,
      [maybe("y", 3), seen("y", 5, [5, 6]), seen("y", 6, [7, 8])],
    ],
    [
      "a lost publish gets no revision of the past",
      false,
      [publish("x", 4, [1, 2]), maybe("y", 3), seen("y", 4, [5, 6])],
    ],
    [
      "what follows a lost publish that was seen is above it",
      false,
      [maybe("y", 1), seen("y", 5, [2, 3]), publish("z", 5, [4, 5])],
    ],
    [
      "what follows one that nobody saw need not be",
      true,
      [maybe("y", 1), publish("z", 1, [4, 5]), seen("z", 1, [6, 7])],
    ],
    [
      "what follows one that returned without a revision is above it",
      false,
      [publish("y", unknown, [1, 2]), publish("z", 1, [4, 5])],
    ],
    [
      "a lost publish lands after a later one",
      true,
      [maybe("y", 1), publish("z", 1, [4, 5]), seen("y", 2, [6, 7])],
    ],
    [
      "two lost ones, the first seen",
      true,
      [maybe("x", 1), maybe("y", 1), seen("x", 1, [2, 3]), seen("y", 2, [4, 5])],
    ],
    [
      "two lost ones, one revision",
      false,
      [maybe("x", 1), maybe("y", 1), seen("x", 1, [2, 3]), seen("y", 1, [4, 5])],
    ],
  ];
  test.each(cases)("judges %s", (_what, linearizable, history) => {
    const result = check(versionedRegister(), history);
    expect(result.verdict).toBe(linearizable ? "linearizable" : "not-linearizable");
  });

  test("begins where it is told to", () => {
    const model = versionedRegister({ value: "first", revision: 3 });
    expect(check(model, [seen("first", 3, [1, 2])]).verdict).toBe("linearizable");
    expect(check(model, [publish("x", 3, [1, 2])]).verdict).toBe("not-linearizable");
  });
});

describe("History", () => {
  test("stamps calls and returns with their order, keeps the open ones and drops the refused ones", () => {
    const history = new History<string, number>();
    const a = history.call("A", "a");
    const b = history.call("B", "b");
    const c = history.call("C", "c");
    history.returned(b, 2);
    history.refused(a);
    expect(history.operations()).toEqual([
      { client: "B", input: "b", output: 2, calledAt: 2, returnedAt: 4 },
      { client: "C", input: "c", output: unknown, calledAt: c, returnedAt: Infinity },
    ]);
    expect(() => history.returned(b, 3)).toThrow(/not open/);
    expect(() => history.refused(a)).toThrow(/not open/);
  });
});
