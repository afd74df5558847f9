/** A state on its way from node to node: what arrives is whole and of one transfer, or nothing. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { chainOf, encodePart, encodeRows, ItemKind } from "../../src/host/codec.ts";
import type { Replica } from "../../src/host/replica.ts";
import { SnapshotExchange } from "../../src/host/snapshots.ts";
import { emptyConfState } from "../../src/raft/raft.ts";
import type { Message } from "../../src/raft/types.ts";
import { message } from "../raft/helpers.ts";
import { MemoryStaging } from "./memory_environment.ts";

type Rows = readonly (readonly [string, string])[];

const partBytes = 1_000;

interface Item {
  readonly to: string;
  readonly kind: number;
  readonly item: Uint8Array;
}

/** One node's exchange, with a replica that stages into memory; what is deferred runs when the test says so. */
class Side {
  readonly items: Item[] = [];
  readonly received: { message: Message; rows: Rows }[] = [];
  readonly ended: boolean[] = [];
  readonly stagings: MemoryStaging[] = [];
  deferred: (() => void)[] = [];
  now = 0;
  /** What is staged is written when this is called. */
  writes: (() => void)[] = [];
  holdWrites = false;
  readonly replica = {
    group: 2,
    halted: null,
    stage: () => {
      const staging = new MemoryStaging((run) => {
        if (this.holdWrites) this.writes.push(run);
        else run();
      });
      this.stagings.push(staging);
      return staging;
    },
    discard: (staging: MemoryStaging) => staging.discard(),
  } as unknown as Replica;
  readonly exchange = new SnapshotExchange(1, partBytes, 16, {
    now: () => this.now,
    defer: (run) => void this.deferred.push(run),
    send: (to, kind, item) => {
      this.items.push({ to, kind, item: item.slice() });
      return true;
    },
    receiver: () => this.replica,
    received: (_replica, of, staging) =>
      void this.received.push({ message: of, rows: (staging as MemoryStaging).rows }),
    sent: (_replica, _to, ok) => void this.ended.push(ok),
    contained: (_replica, run) => run(),
  });

  /** Ends the turn, and the turns that follow from it. */
  turn(): void {
    for (let run = this.deferred.shift(); run !== undefined; run = this.deferred.shift()) run();
  }

  pass(ms: number): void {
    this.now += ms;
    this.exchange.expire(this.now);
    this.turn();
  }
}

function rowsOf(name: string, parts: number): Rows {
  return Array.from({ length: parts }, (_, at) => [`${name}${at}`, "ä".repeat(partBytes)]);
}

/** All that an exchange asks of a sending replica. */
function replicaWith(rows: Rows): Replica & { open: number } {
  const replica = {
    group: 2,
    incarnation: 1,
    halted: null,
    raft: { isLeader: true },
    open: 0,
    snapshot() {
      replica.open += 1;
      return { index: 7, term: 3, rows: () => rows, close: () => void (replica.open -= 1) };
    },
  };
  return replica as unknown as Replica & { open: number };
}

function install(index: number, from = 1, term = 3): Message {
  const snapshot = { index, term: 3, confState: { ...emptyConfState(), voters: [1, 2] } };
  return message("installSnapshot", { to: 2, from, term, snapshot });
}

/** Hands everything over until both sides are silent. */
function settle(sender: Side, receiver: Side): void {
  do {
    sender.turn();
    for (const { item } of sender.items.splice(0)) receiver.exchange.onPart("n1", item);
    for (const { item } of receiver.items.splice(0)) sender.exchange.onAck("n2", item);
  } while (sender.items.length + receiver.items.length + sender.deferred.length > 0);
}

describe("a snapshot on its way", () => {
  test("arrives whole, one part a turn, and its sender is told", () => {
    const [sender, receiver] = [new Side(), new Side()];
    const replica = replicaWith(rowsOf("a", 30));
    sender.exchange.send(replica, "n2", install(7));
    expect(sender.items).toHaveLength(1);
    sender.turn();
    // No more than its credit leaves at once.
    expect(sender.items).toHaveLength(8);
    settle(sender, receiver);
    expect(receiver.received).toEqual([{ message: install(7), rows: rowsOf("a", 30) }]);
    expect(sender.ended).toEqual([true]);
    expect(replica.open).toBe(0);
    expect(sender.exchange.status.sending + receiver.exchange.status.receiving).toBe(0);
  });

  test("makes no long turn: one part's rows are drawn a turn, whatever its size and however acknowledgements come", () => {
    const [sender, receiver] = [new Side(), new Side()];
    const many = Array.from({ length: 20_000 }, (_, at) => [`r${at}`, "x".repeat(20)] as const);
    let drawn = 0;
    const counted = {
      *[Symbol.iterator]() {
        for (const row of many) {
          drawn += 1;
          yield row;
        }
      },
    } as unknown as Rows;
    const perTurn: number[] = [];
    const turn = (run: () => void): void => {
      const before = drawn;
      run();
      perTurn.push(drawn - before);
    };
    turn(() => sender.exchange.send(replicaWith(counted), "n2", install(7)));
    while (sender.items.length + receiver.items.length + sender.deferred.length > 0) {
      for (const run of sender.deferred.splice(0)) turn(run);
      for (const { item } of sender.items.splice(0)) receiver.exchange.onPart("n1", item);
      // All that came back arrives in one turn.
      turn(() => {
        for (const { item } of receiver.items.splice(0)) sender.exchange.onAck("n2", item);
      });
    }
    expect(receiver.received[0]?.rows).toEqual(many);
    // Rows of 22 to 26 characters until there are 1,000 of them, and the one behind that tells that it is full.
    expect(Math.max(...perTurn)).toBeLessThanOrEqual(Math.ceil(partBytes / 22) + 1);
    expect(perTurn.filter((rows) => rows > 0).length).toBeGreaterThan(400);
  });

  test("waits for what is written: neither side holds more than the credit", () => {
    const [sender, receiver] = [new Side(), new Side()];
    receiver.holdWrites = true;
    sender.exchange.send(replicaWith(rowsOf("a", 30)), "n2", install(7));
    settle(sender, receiver);
    expect(receiver.writes).toHaveLength(8);
    expect(receiver.received).toEqual([]);
    for (let writes = 0; receiver.received.length === 0; writes++) {
      expect(writes).toBeLessThan(100);
      receiver.writes.shift()?.();
      settle(sender, receiver);
      expect(receiver.writes.length).toBeLessThanOrEqual(8);
    }
    expect(receiver.received[0]?.rows).toEqual(rowsOf("a", 30));
  });

  test("whose parts are lost, doubled, damaged or late goes on where it was, and arrives once and whole", () => {
    const parts = rowsOf("a", 12);
    const fates = fc.array(
      fc.constantFrom("on", "on", "on", "lost", "doubled", "late", "damaged", "no ack"),
      { minLength: 30, maxLength: 30 },
    );
    fc.assert(
      fc.property(fates, (plan) => {
        const [sender, receiver] = [new Side(), new Side()];
        let late: Uint8Array[] = [];
        let at = 0;
        let delivered = 0;
        sender.exchange.send(replicaWith(parts), "n2", install(7));
        for (let round = 0; sender.ended.length === 0; round++) {
          expect(round).toBeLessThan(100);
          sender.turn();
          for (const { item } of sender.items.splice(0)) {
            const fate = plan[at++] ?? "on";
            if (fate === "late") late.push(item);
            if (fate === "damaged") {
              item[(at * 37) % item.length] = (item[(at * 37) % item.length] as number) ^ 4;
            }
            if (fate === "lost" || fate === "late") continue;
            for (let times = fate === "doubled" ? 2 : 1; times > 0; times--) {
              delivered += 1;
              receiver.exchange.onPart("n1", item);
            }
            if (fate === "no ack") receiver.items.length = 0;
          }
          for (const { item } of receiver.items.splice(0)) sender.exchange.onAck("n2", item);
          if (round % 3 === 2) {
            for (const item of late) receiver.exchange.onPart("n1", item);
            late = [];
          }
          sender.pass(500);
          receiver.pass(500);
        }
        expect(sender.ended).toEqual([true]);
        expect(receiver.received).toEqual([{ message: install(7), rows: parts }]);
        // From the start again it would be far more.
        expect(delivered).toBeLessThan(200);
      }),
      { numRuns: 60 },
    );
  });

  test("survives a connection that is gone for seconds", () => {
    const [sender, receiver] = [new Side(), new Side()];
    sender.exchange.send(replicaWith(rowsOf("a", 20)), "n2", install(7));
    sender.turn();
    for (const { item } of sender.items.splice(0, 3)) receiver.exchange.onPart("n1", item);
    for (const { item } of receiver.items.splice(0)) sender.exchange.onAck("n2", item);
    for (let second = 0; second < 10; second++) {
      sender.pass(1_000);
      receiver.pass(1_000);
      sender.items.length = 0;
    }
    sender.pass(1_000);
    settle(sender, receiver);
    expect(receiver.received).toEqual([{ message: install(7), rows: rowsOf("a", 20) }]);
    expect(receiver.stagings).toHaveLength(1);
  });

  test("that is asked for again goes on, in the name of whoever leads now", () => {
    const [sender, receiver] = [new Side(), new Side()];
    const replica = replicaWith(rowsOf("a", 20));
    sender.exchange.send(replica, "n2", install(7));
    sender.exchange.send(replica, "n2", install(9, 1, 5));
    settle(sender, receiver);
    // The state is still the one that was taken.
    expect(receiver.received).toEqual([{ message: install(7, 1, 5), rows: rowsOf("a", 20) }]);
    expect(sender.ended).toEqual([true]);
  });

  test("is not continued by the parts of another transfer or sender, nor begun in the middle", () => {
    const receiver = new Side();
    const take = (from: string, transfer: number, at: number, name: string, term = 3): void => {
      const bytes = encodeRows([[`${name}${at}`, "1"]]);
      const before = at === 0 ? 0 : chainOf(0, encodeRows([[`${name}0`, "1"]]));
      const head = { transfer, group: 2, incarnation: 1, to: 2, part: at, last: at === 1 };
      const chain = chainOf(before, bytes);
      receiver.exchange.onPart(
        from,
        encodePart({ ...head, message: install(7, 1, term), chain }, bytes),
      );
    };
    const keys = (): string[][] => receiver.received.map(({ rows }) => rows.map(([key]) => key));
    take("n1", 1, 1, "a");
    take("n1", 2, 0, "b");
    take("n1", 3, 1, "c");
    expect(keys()).toEqual([]);
    // Two that lead one after the other may number their transfers alike.
    take("n1", 4, 0, "d");
    take("n3", 4, 0, "e");
    take("n1", 4, 1, "d");
    expect(keys()).toEqual([]);
    // A chain that does not lead here.
    take("n3", 4, 1, "d");
    expect(keys()).toEqual([]);
    take("n3", 5, 0, "f", 4);
    // The leader of an earlier term comes too late.
    take("n1", 6, 0, "g");
    take("n3", 5, 1, "f", 4);
    expect(keys()).toEqual([["f0", "f1"]]);
    expect(receiver.stagings.filter(({ discarded }) => discarded)).toHaveLength(3);
  });

  test("that nobody acknowledges, or that is one too many, is reported as not sent, so that it is tried again", () => {
    const sender = new Side();
    const replicas = Array.from({ length: 17 }, () => replicaWith([]));
    for (const replica of replicas) sender.exchange.send(replica, "n2", install(7));
    expect(sender.ended).toEqual([false]);
    expect(sender.items.filter(({ kind }) => kind === ItemKind.snapshot)).toHaveLength(16);
    sender.pass(60_000);
    expect(sender.ended).toEqual(Array.from({ length: 17 }, () => false));
    expect(replicas.map(({ open }) => open)).toEqual(replicas.map(() => 0));
  });

  test("is refused by a node that takes in as many as it can, and forgotten there when its sender falls silent", () => {
    const receiver = new Side();
    for (let transfer = 1; transfer <= 17; transfer++) {
      const bytes = encodeRows([]);
      const head = { transfer, group: transfer, incarnation: 1, to: 2, part: 0, last: false };
      const part = { ...head, message: install(7), chain: chainOf(0, bytes) };
      receiver.exchange.onPart("n1", encodePart(part, bytes));
    }
    expect(receiver.stagings).toHaveLength(16);
    expect(receiver.exchange.status.receiving).toBe(16);
    receiver.pass(60_000);
    expect(receiver.exchange.status.receiving).toBe(0);
    expect(receiver.stagings.every(({ discarded }) => discarded)).toBe(true);
  });

  test("is acknowledged by its receiver alone, and ends with its sender's leadership", () => {
    const [sender, receiver] = [new Side(), new Side()];
    const replica = replicaWith(rowsOf("a", 1));
    sender.exchange.send(replica, "n2", install(7));
    for (const { item } of sender.items.splice(0)) receiver.exchange.onPart("n1", item);
    const [ack] = receiver.items;
    sender.exchange.onAck("n3", ack?.item as Uint8Array);
    expect(sender.ended).toEqual([]);
    sender.exchange.onAck("n2", ack?.item as Uint8Array);
    expect(sender.ended).toEqual([true]);
    sender.exchange.send(replica, "n2", install(8));
    (replica.raft as { isLeader: boolean }).isLeader = false;
    sender.pass(10);
    expect(sender.ended).toEqual([true, false]);
    expect(replica.open).toBe(0);
  });
});
