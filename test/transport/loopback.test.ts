import { describe, expect, test } from "vitest";
import { LoopbackNetwork } from "../../src/transport/loopback.ts";
import { bytesOf, listen, textOf, transportContract } from "./contract.ts";
import { until } from "./until.ts";

transportContract("LoopbackNetwork", () => {
  const network = new LoopbackNetwork();
  return Promise.resolve({
    join: (identity) => network.join(identity),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  });
});

describe("LoopbackNetwork", () => {
  const join = (network: LoopbackNetwork, node: string, boot = 1) =>
    listen(network.join({ cluster: "acme", node, boot }));

  test("a single node is connected and has no peers", async () => {
    const { transport } = await join(new LoopbackNetwork(), "alone");
    expect(transport.connected).toBe(true);
    expect(transport.send("other", "control", bytesOf("x"))).toBe(false);
  });

  test("cut() loses both directions silently, heal() restores them", async () => {
    const network = new LoopbackNetwork();
    const [a, b, c] = [
      await join(network, "a"),
      await join(network, "b"),
      await join(network, "c"),
    ];
    a.transport.send("b", "append", bytesOf("under way when it is cut"));
    network.cut("a", "b");
    expect(a.transport.send("b", "append", bytesOf("lost"))).toBe(true);
    expect(b.transport.send("a", "append", bytesOf("lost"))).toBe(true);
    a.transport.send("c", "append", bytesOf("c"));
    await until(() => c.heard.length === 1, "the message to c");
    network.heal("a", "b");
    a.transport.send("b", "append", bytesOf("after"));
    await until(() => b.heard.length === 1, "the message after healing");
    expect([a.heard.length, textOf(b.heard[0]?.bytes as Uint8Array)]).toEqual([0, "after"]);
  });

  test("cutOneWay() leaves the other direction", async () => {
    const network = new LoopbackNetwork();
    const [a, b] = [await join(network, "a"), await join(network, "b")];
    network.cutOneWay("a", "b");
    a.transport.send("b", "append", bytesOf("x"));
    b.transport.send("a", "append", bytesOf("y"));
    await until(() => a.heard.length === 1, "the other direction");
    expect(b.heard.length).toBe(0);
  });

  test("send() says false when 8 MiB are under way, and true after they left", async () => {
    const network = new LoopbackNetwork();
    const [a, b] = [await join(network, "a"), await join(network, "b")];
    const chunk = new Uint8Array(1024 * 1024);
    let taken = 0;
    while (a.transport.send("b", "snapshot", chunk)) taken++;
    expect(taken).toBe(8);
    expect(a.transport.stats.refused.window).toBe(1);
    // Another lane, and another peer, have windows of their own.
    expect(a.transport.send("b", "control", chunk)).toBe(true);
    await until(() => b.heard.length === 9, "what was taken");
    expect(a.transport.send("b", "snapshot", chunk)).toBe(true);
  });

  test("nodes that answer each other for ever leave timers their turn", async () => {
    const network = new LoopbackNetwork();
    const a = network.join({ cluster: "acme", node: "a", boot: 1 });
    const b = network.join({ cluster: "acme", node: "b", boot: 1 });
    for (const transport of [a, b])
      await transport.start((from, _, lane, bytes) => {
        transport.send(from, lane, bytes);
      });
    a.send("b", "control", bytesOf("x"));
    let fired = false;
    setTimeout(() => (fired = true), 1);
    await until(() => fired, "the timer");
    await a.close();
    await b.close();
  });
});
