import { describe, expect, test } from "vitest";
import { Method, Rpc, type CallResult } from "../../src/host/rpc.ts";

interface Sent {
  readonly node: string;
  readonly item: Uint8Array;
  readonly call: number | null;
}

function side(): { rpc: Rpc; sent: Sent[] } {
  const sent: Sent[] = [];
  return {
    rpc: new Rpc(1, (node, item, call) => sent.push({ node, item: item.slice(), call })),
    sent,
  };
}

const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);

describe("Rpc", () => {
  test("a call is answered by the handler of the other side, once", () => {
    const one = side();
    const two = side();
    const results: CallResult[] = [];
    two.rpc.serve(Method.status, (from, payload, respond) => {
      expect(from).toBe("n1");
      respond(bytes(...payload, 9));
    });
    one.rpc.call("n2", Method.status, bytes(1, 2), 100, (result) => results.push(result));
    two.rpc.receive("n1", 1, (one.sent[0] as Sent).item);
    const answer = two.sent[0] as Sent;
    one.rpc.receive("n2", 1, answer.item);
    one.rpc.receive("n2", 1, answer.item);
    expect(results).toEqual([{ kind: "ok", bytes: bytes(1, 2, 9) }]);
  });

  test("a call for an earlier life of the other side is not executed in a later one", () => {
    const sent: Uint8Array[] = [];
    const asking = new Rpc(
      1,
      (_node, item) => void sent.push(item.slice()),
      () => 7,
    );
    asking.call("n2", Method.propose, bytes(1), 100, () => {});
    const lives = [7, 8].map((boot) => {
      const executed: number[] = [];
      const rpc = new Rpc(boot, () => {});
      rpc.serve(Method.propose, (_from, payload) => executed.push(payload.length));
      rpc.receive("n1", 1, sent[0] as Uint8Array);
      return executed;
    });
    expect(lives).toEqual([[1], []]);
  });

  test("what never left may be tried again, what may have arrived is unknown", () => {
    const { rpc, sent } = side();
    const results: string[] = [];
    rpc.call("n2", Method.status, bytes(), 100, ({ kind }) => results.push(`a ${kind}`));
    rpc.call("n2", Method.status, bytes(), 100, ({ kind }) => results.push(`b ${kind}`));
    rpc.call("n2", Method.status, bytes(), 200, ({ kind }) => results.push(`c ${kind}`));
    rpc.call("n3", Method.status, bytes(), 200, ({ kind }) => results.push(`d ${kind}`));
    rpc.notSent((sent[0] as Sent).call as number);
    rpc.expire(100);
    rpc.nodeDown("n3");
    rpc.expire(1_000);
    expect(results).toEqual(["a not-sent", "b unknown", "d unknown", "c unknown"]);
  });

  test("a call that arrives twice is executed once, also when its repeat comes much later", () => {
    const { rpc } = side();
    const caller = side();
    let executed = 0;
    rpc.serve(Method.propose, () => {
      executed += 1;
    });
    for (let call = 0; call < 20_000; call++) {
      caller.rpc.call("n2", Method.propose, bytes(), 100, () => {});
    }
    const items = caller.sent.map(({ item }) => item);
    rpc.receive("n1", 1, items[0] as Uint8Array);
    for (const item of items) {
      rpc.receive("n1", 1, item);
      rpc.receive("n1", 1, item);
    }
    rpc.receive("n1", 1, items[0] as Uint8Array);
    expect(executed).toBe(items.length);
    // After a restart the caller counts from the beginning again; what its earlier life sent is dropped.
    rpc.receive("n1", 2, items[0] as Uint8Array);
    rpc.receive("n1", 1, items[1] as Uint8Array);
    expect(executed).toBe(items.length + 1);
  });

  test("an answer from a node that was not asked is not taken", () => {
    const { rpc, sent } = side();
    const other = side();
    other.rpc.serve(Method.status, (_from, _payload, respond) => respond(bytes(7)));
    const results: string[] = [];
    rpc.call("n2", Method.status, bytes(), 100, ({ kind }) => results.push(kind));
    other.rpc.receive("n1", 1, (sent[0] as Sent).item);
    rpc.receive("n3", 1, (other.sent[0] as Sent).item);
    expect(results).toEqual([]);
  });
});
