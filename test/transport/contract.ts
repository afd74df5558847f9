/** What every transport owes the host, run on the twin (loopback) and the real one (NATS). */
import { describe, expect, test } from "vitest";
import type { Lane, Transport } from "../../src/host/ports.ts";
import { lanes } from "../../src/host/ports.ts";
import { AssertionError } from "../../src/lib/assert.ts";
import type { Identity, TransportStats } from "../../src/transport/envelope.ts";
import { messageBytesMax } from "../../src/transport/envelope.ts";
import { until } from "./until.ts";

export interface World {
  join(identity: Identity): Transport & { readonly stats: TransportStats };
  [Symbol.asyncDispose](): Promise<void>;
}

export interface Heard {
  readonly from: string;
  readonly boot: number;
  readonly lane: Lane;
  readonly bytes: Uint8Array;
}

/** A started node that remembers what it hears. */
export async function listen<T extends Transport>(
  transport: T,
): Promise<{ readonly transport: T; readonly heard: Heard[] }> {
  const heard: Heard[] = [];
  await transport.start((from, boot, lane, bytes) => {
    heard.push({ from, boot, lane, bytes: bytes.slice() });
  });
  return { transport, heard };
}

export function bytesOf(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

export function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

export function transportContract(name: string, makeWorld: () => Promise<World>): void {
  const node = (node: string, boot = 1, cluster = "acme"): Identity => ({ cluster, node, boot });

  describe(`${name} as a transport`, () => {
    test("send() reaches the node addressed, with sender, boot, lane and bytes", async () => {
      await using world = await makeWorld();
      const a = await listen(world.join(node("a", 7)));
      const b = await listen(world.join(node("b")));
      const c = await listen(world.join(node("c")));
      for (const lane of lanes) expect(a.transport.send("b", lane, bytesOf(lane))).toBe(true);
      await until(() => b.heard.length === lanes.length, "all lanes at b");
      expect(b.heard.map((h) => `${h.from} ${h.boot} ${h.lane} ${textOf(h.bytes)}`).sort()).toEqual(
        lanes.map((lane) => `a 7 ${lane} ${lane}`).sort(),
      );
      expect([a.heard, c.heard]).toEqual([[], []]);
      expect(b.transport.stats).toMatchObject({ messagesIn: 4, framesIn: 4 });
      expect(a.transport.stats).toMatchObject({ messagesOut: 4, framesOut: 4 });
      expect(a.transport.stats.bytesOut).toBe(b.transport.stats.bytesIn);
    });

    test("send() keeps the order per peer and lane", async () => {
      await using world = await makeWorld();
      const a = await listen(world.join(node("a")));
      const b = await listen(world.join(node("b")));
      const count = 2000;
      // Some longer than one part, which must not be overtaken.
      const sizeOf = (i: number): number => (i % 500 === 499 ? 1_000_000 : 8 + (i % 100));
      for (let i = 0; i < count; i++) {
        const bytes = new Uint8Array(sizeOf(i));
        new DataView(bytes.buffer).setUint32(0, i);
        const lane = lanes[i % lanes.length] as Lane;
        await until(() => a.transport.send("b", lane, bytes), `message ${i} is taken`);
      }
      await until(() => b.heard.length === count, "all messages at b");
      for (const lane of lanes) {
        const numbers = b.heard
          .filter((h) => h.lane === lane)
          .map((h) => new DataView(h.bytes.buffer).getUint32(0));
        expect(numbers).toEqual(
          Array.from({ length: count }, (_, i) => i).filter((i) => lanes[i % 4] === lane),
        );
      }
    }, 20_000);

    test("send() takes from nothing up to 16 MiB, and fails loudly beyond", async () => {
      await using world = await makeWorld();
      const a = await listen(world.join(node("a")));
      const b = await listen(world.join(node("b")));
      const longest = new Uint8Array(messageBytesMax);
      for (let i = 0; i < longest.length; i += 997) longest[i] = i;
      expect(a.transport.send("b", "snapshot", new Uint8Array(0))).toBe(true);
      expect(a.transport.send("b", "snapshot", longest)).toBe(true);
      await until(() => b.heard.length === 2, "both at b");
      expect(b.heard[0]?.bytes.length).toBe(0);
      expect(Buffer.compare(b.heard[1]?.bytes as Uint8Array, longest)).toBe(0);
      const tooLong = new Uint8Array(messageBytesMax + 1);
      expect(() => a.transport.send("b", "control", tooLong)).toThrow(AssertionError);
    }, 20_000);

    test("send() copies: the caller may reuse its buffer at once", async () => {
      await using world = await makeWorld();
      const a = await listen(world.join(node("a")));
      const b = await listen(world.join(node("b")));
      const buffer = bytesOf("before");
      a.transport.send("b", "append", buffer);
      buffer.set(bytesOf("after!"));
      await until(() => b.heard.length === 1, "the message");
      expect(textOf(b.heard[0]?.bytes as Uint8Array)).toBe("before");
    });

    test("send() never delivers before it returns", async () => {
      await using world = await makeWorld();
      const a = await listen(world.join(node("a")));
      const b = await listen(world.join(node("b")));
      a.transport.send("b", "control", bytesOf("x"));
      expect(b.heard.length).toBe(0);
      await Promise.resolve();
      expect(b.heard.length).toBe(0);
      await until(() => b.heard.length === 1, "the message");
    });

    test("a handler may answer at once", async () => {
      await using world = await makeWorld();
      const a = world.join(node("a"));
      const b = world.join(node("b"));
      let rounds = 0;
      await a.start((from, _, lane) => {
        rounds++;
        if (rounds < 200) a.send(from, lane, bytesOf("ping"));
      });
      await b.start((from, _, lane, bytes) => {
        b.send(from, lane, bytes);
      });
      a.send("b", "rpc", bytesOf("ping"));
      await until(() => rounds === 200, "200 rounds");
    });

    test("send() says false to itself, to names outside the grammar, before start and after close", async () => {
      await using world = await makeWorld();
      const transport = world.join(node("a"));
      const hello = bytesOf("hello");
      expect(transport.connected).toBe(false);
      expect(transport.send("b", "rpc", hello)).toBe(false);
      const b = await listen(world.join(node("b")));
      const a = await listen(transport);
      expect(a.transport.connected).toBe(true);
      for (const name of ["a", "", "B", "b.c", "*", ">", "b c", "-b", "b".repeat(64)])
        expect(a.transport.send(name, "rpc", hello)).toBe(false);
      expect(a.transport.send("b", "rpc", hello)).toBe(true);
      await until(() => b.heard.length === 1, "the one message");
      await a.transport.close();
      expect(a.transport.connected).toBe(false);
      expect(a.transport.send("b", "rpc", hello)).toBe(false);
      expect(a.transport.stats.refused).toMatchObject({ disconnected: 2, "unknown-peer": 9 });
      expect([a.heard.length, b.heard.length]).toEqual([0, 1]);
    });

    test("a closed node hears nothing more and can be closed again", async () => {
      await using world = await makeWorld();
      const a = await listen(world.join(node("a")));
      const b = await listen(world.join(node("b")));
      const c = await listen(world.join(node("c")));
      await b.transport.close();
      await b.transport.close();
      a.transport.send("b", "control", bytesOf("x"));
      a.transport.send("c", "control", bytesOf("y"));
      await until(() => c.heard.length === 1, "the message to c");
      expect(b.heard).toEqual([]);
    });

    test("nodes of another cluster neither hear nor are heard", async () => {
      await using world = await makeWorld();
      const b = await listen(world.join(node("b")));
      const a = await listen(world.join(node("a")));
      const foreign = await listen(world.join(node("a", 1, "other")));
      const foreignB = await listen(world.join(node("b", 1, "other")));
      foreign.transport.send("b", "append", bytesOf("from the other cluster"));
      await until(() => foreignB.heard.length === 1, "the message within the other cluster");
      a.transport.send("b", "append", bytesOf("from our own"));
      await until(() => b.heard.length === 1, "our message");
      expect(textOf(b.heard[0]?.bytes as Uint8Array)).toBe("from our own");
      expect(foreignB.heard.length).toBe(1);
    });

    test("messages of a node's older life are dropped and counted", async () => {
      await using world = await makeWorld();
      const b = await listen(world.join(node("b")));
      const old = await listen(world.join(node("a", 5)));
      expect(old.transport.send("b", "append", bytesOf("old"))).toBe(true);
      await until(() => b.heard.length === 1, "the old life's message while it was the newest");
      const young = await listen(world.join(node("a", 6)));
      expect(young.transport.send("b", "append", bytesOf("young"))).toBe(true);
      await until(() => b.heard.length === 2, "the new life's message");
      expect(old.transport.send("b", "append", bytesOf("late"))).toBe(true);
      await until(() => b.transport.stats.dropped["old-boot"] === 1, "the drop");
      expect(b.heard.map((h) => h.boot)).toEqual([5, 6]);
    });

    test("start() is for once", async () => {
      await using world = await makeWorld();
      const a = await listen(world.join(node("a")));
      await expect((async () => a.transport.start(() => {}))()).rejects.toThrow(AssertionError);
    });

    test("names outside the grammar are refused before anything is sent", async () => {
      await using world = await makeWorld();
      for (const name of ["A", "a.b", "a*", ">", "", "-a", "a-", "a".repeat(64)]) {
        expect(() => world.join(node(name))).toThrow(AssertionError);
        expect(() => world.join(node("a", 1, name))).toThrow(AssertionError);
      }
      expect(() => world.join(node("a", -1))).toThrow(AssertionError);
      expect(() => world.join(node("a", 0.5))).toThrow(AssertionError);
    });
  });
}
