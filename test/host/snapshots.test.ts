/** A state on its way from node to node: what arrives is whole and of one transfer, or nothing. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { encodeChunk, ItemKind } from "../../src/host/codec.ts";
import type { Replica } from "../../src/host/replica.ts";
import { SnapshotExchange } from "../../src/host/snapshots.ts";
import { emptyConfState } from "../../src/raft/raft.ts";
import type { Message } from "../../src/raft/types.ts";
import { message } from "../raft/helpers.ts";

type Rows = readonly (readonly [string, string])[];

interface Item {
  readonly to: string;
  readonly kind: number;
  readonly item: Uint8Array;
}

interface Side {
  readonly exchange: SnapshotExchange;
  readonly items: Item[];
  readonly received: { message: Message; rows: Rows }[];
  readonly ended: boolean[];
  now: number;
}

function side(): Side {
  const side: Side = {
    items: [],
    received: [],
    ended: [],
    now: 0,
    exchange: new SnapshotExchange(1, {
      now: () => side.now,
      send: (to, kind, item) => {
        side.items.push({ to, kind, item: item.slice() });
        return true;
      },
      received: (_group, _incarnation, of, rows) => void side.received.push({ message: of, rows }),
      sent: (_replica, _to, ok) => void side.ended.push(ok),
    }),
  };
  return side;
}

function rowsOf(name: string, parts: number): Rows {
  return Array.from({ length: parts }, (_, at) => [`${name}${at}`, "x".repeat(256 * 1024)]);
}

/** All that an exchange asks of a replica. */
function replicaWith(rows: Rows): Replica {
  return { group: 2, incarnation: 1, snapshotRows: () => rows } as unknown as Replica;
}

function install(index: number, from = 1): Message {
  const snapshot = { index, term: 3, confState: { ...emptyConfState(), voters: [1, 2] } };
  return message("installSnapshot", { to: 2, from, term: 3, snapshot });
}

/** Hands everything over until both sides are silent. */
function settle(sender: Side, receiver: Side): void {
  while (sender.items.length + receiver.items.length > 0) {
    for (const { item } of sender.items.splice(0)) receiver.exchange.onChunk("n1", item);
    for (const { item } of receiver.items.splice(0)) sender.exchange.onAck("n2", item);
  }
}

describe("a snapshot on its way", () => {
  test("arrives whole, and its sender is told", () => {
    const [sender, receiver] = [side(), side()];
    sender.exchange.send(replicaWith(rowsOf("a", 9)), "n2", install(7));
    // No more than its credit leaves at once.
    expect(sender.items).toHaveLength(4);
    settle(sender, receiver);
    expect(receiver.received).toEqual([{ message: install(7), rows: rowsOf("a", 9) }]);
    expect(sender.ended).toEqual([true]);
  });

  test("whose parts are lost, doubled or out of order arrives whole or not at all, and is tried anew from the start", () => {
    const parts = rowsOf("a", 6);
    const fates = fc.array(fc.constantFrom("on", "on", "on", "lost", "doubled", "late"), {
      minLength: 12,
      maxLength: 12,
    });
    fc.assert(
      fc.property(fates, (plan) => {
        const [sender, receiver] = [side(), side()];
        const late: Uint8Array[] = [];
        let at = 0;
        sender.exchange.send(replicaWith(parts), "n2", install(7));
        while (sender.items.length + receiver.items.length > 0) {
          for (const { item } of sender.items.splice(0)) {
            const fate = plan[at++] ?? "on";
            if (fate === "late") late.push(item);
            if (fate === "on" || fate === "doubled") receiver.exchange.onChunk("n1", item);
            if (fate === "doubled") receiver.exchange.onChunk("n1", item);
          }
          for (const { item } of receiver.items.splice(0)) sender.exchange.onAck("n2", item);
        }
        for (const item of late) receiver.exchange.onChunk("n1", item);
        receiver.items.length = 0;
        sender.now = receiver.now = 60_000;
        sender.exchange.expire(sender.now);
        receiver.exchange.expire(receiver.now);
        expect(sender.ended).toHaveLength(1);
        sender.exchange.send(replicaWith(parts), "n2", install(8));
        settle(sender, receiver);
        for (const { rows } of receiver.received) expect(rows).toEqual(parts);
        expect(receiver.received.at(-1)?.message.snapshot?.index).toBe(8);
        expect(sender.ended).toEqual([sender.ended[0] as boolean, true]);
      }),
      { numRuns: 60 },
    );
  });

  test("is not continued by the parts of another transfer or sender, nor begun in the middle", () => {
    const receiver = side();
    const take = (from: string, transfer: number, at: number, name: string): void => {
      const chunk = { transfer, group: 2, incarnation: 1, to: 2, part: at, last: at === 1 };
      const head = at === 0 ? install(7) : null;
      const rows = [[`${name}${at}`, "1"] as const];
      receiver.exchange.onChunk(from, encodeChunk({ ...chunk, message: head, rows }));
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
    take("n3", 5, 0, "f");
    take("n3", 5, 1, "f");
    expect(keys()).toEqual([["f0", "f1"]]);
  });

  test("that nobody acknowledges, or that is one too many, is reported as not sent, so that it is tried again", () => {
    const sender = side();
    for (let at = 0; at < 17; at++) sender.exchange.send(replicaWith([]), "n2", install(7));
    expect(sender.ended).toEqual([false]);
    sender.exchange.expire(60_000);
    expect(sender.ended).toEqual(Array.from({ length: 17 }, () => false));
    expect(sender.items.filter(({ kind }) => kind === ItemKind.snapshot)).toHaveLength(16);
  });

  test("is acknowledged by its receiver alone", () => {
    const [sender, receiver] = [side(), side()];
    sender.exchange.send(replicaWith(rowsOf("a", 1)), "n2", install(7));
    for (const { item } of sender.items.splice(0)) receiver.exchange.onChunk("n1", item);
    const [ack] = receiver.items;
    sender.exchange.onAck("n3", ack?.item as Uint8Array);
    expect(sender.ended).toEqual([]);
    sender.exchange.onAck("n2", ack?.item as Uint8Array);
    expect(sender.ended).toEqual([true]);
  });
});
