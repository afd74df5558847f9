/**
 * Recorded histories of others, with verdicts that others gave: `linearizability` in the folder CONFLUX_ORACLES, or in
 * ../shared/oracles beside the repo.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { orderViolations, until } from "./brute_force.ts";
import { check, describeResult, type Model } from "./checker.ts";
import type { Operation } from "./history.ts";
import { NIL, readKvLog, readRegisterLog } from "./logs.ts";
import { kv, register } from "./models.ts";

const oracles =
  process.env["CONFLUX_ORACLES"] ?? path.resolve(import.meta.dirname, "../../../shared/oracles");
const folder = path.join(oracles, "linearizability");
const HISTORIES = 56;

interface Case {
  readonly file: string;
  readonly linearizable: boolean;
}

function etcdCases(): Case[] {
  const file = path.join(folder, "jepsen-etcd/verdicts.json");
  if (!existsSync(file)) return [];
  const verdicts = JSON.parse(readFileSync(file, "utf8")) as Record<string, boolean>;
  return Object.entries(verdicts).map(([name, linearizable]) => ({
    file: `jepsen-etcd/${name}`,
    linearizable,
  }));
}

function kvCases(): Case[] {
  if (!existsSync(path.join(folder, "kv"))) return [];
  return readdirSync(path.join(folder, "kv"))
    .filter((name) => /-(ok|bad)\.txt$/.test(name))
    .map((name) => ({ file: `kv/${name}`, linearizable: name.endsWith("-ok.txt") }));
}

/** Compares the verdict, and whatever the checker says to prove it. */
function judge<State extends {}, Input, Output>(
  model: Model<State, Input, Output>,
  history: readonly Operation<Input, Output>[],
  linearizable: boolean,
): void {
  const result = check(model, history);
  expect(result.verdict, describeResult(result)).toBe(
    linearizable ? "linearizable" : "not-linearizable",
  );
  const part = (partition: string | number | null): Operation<Input, Output>[] =>
    history.filter(({ input }) => (model.partitionKey?.(input) ?? null) === partition);
  if (result.verdict === "linearizable") {
    for (const [partition, order] of result.orders)
      expect(orderViolations(model, part(partition), order)).toEqual([]);
    return;
  }
  const { partition, blocked } = result.furthest;
  const before = until(part(partition), blocked.returnedAt, "excluding");
  expect(check(model, before).verdict).toBe("linearizable");
  const with_ = until(part(partition), blocked.returnedAt, "including");
  expect(check(model, with_).verdict).toBe("not-linearizable");
}

const etcd = etcdCases();
const kvs = kvCases();

describe("recorded histories", () => {
  test("are there, or are missed loudly", () => {
    const found = etcd.length + kvs.length;
    if (found < HISTORIES)
      console.warn(
        `SKIPPED ${HISTORIES - found} of ${HISTORIES} recorded histories: not in ${folder}`,
      );
    expect(existsSync(folder) ? found : HISTORIES).toBeGreaterThanOrEqual(HISTORIES);
  });

  for (const { file, linearizable } of etcd) {
    test(`${file} is ${linearizable ? "" : "not "}linearizable`, () => {
      const history = readRegisterLog(readFileSync(path.join(folder, file), "utf8"));
      expect(history.length).toBeGreaterThan(0);
      judge(register(NIL), history, linearizable);
    });
  }

  for (const { file, linearizable } of kvs) {
    test(`${file} is ${linearizable ? "" : "not "}linearizable`, () => {
      const history = readKvLog(readFileSync(path.join(folder, file), "utf8"));
      expect(history.length).toBeGreaterThan(0);
      judge(kv, history, linearizable);
    });
  }
});
