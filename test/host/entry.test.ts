/** How nodes with empty disks come into the directory's group (src/host/entry.ts). */
import { describe, expect, test } from "vitest";
import { Entry, type Acquaintance, type SystemIdentity } from "../../src/host/entry.ts";
import { World } from "../sim/world.ts";

const peers = ["n1", "n2", "n3"];

/** `n2`, and what it asks of whom. */
function unentered(): {
  readonly entry: Entry;
  readonly alive: Set<string>;
  readonly asked: string[];
  readonly answer: (node: string, what: Acquaintance) => void;
  readonly entered: SystemIdentity[];
} {
  const alive = new Set<string>();
  const asked: string[] = [];
  const entered: SystemIdentity[] = [];
  const waiting = new Map<string, (answer: Acquaintance | null) => void>();
  const entry = new Entry("n2", peers, 0, {
    alive: (node) => alive.has(node),
    known: () => peers,
    ask: (node, done) => {
      asked.push(node);
      waiting.set(node, done);
    },
    join: (node) => asked.push(`${node} to join`),
    enter: (identity) => entered.push(identity),
  });
  return { entry, alive, asked, answer: (node, what) => waiting.get(node)?.(what), entered };
}

describe("a node with an empty disk", () => {
  test("asks each of the others as soon as it is heard of, and then now and then", () => {
    const { entry, alive, asked } = unentered();
    entry.round(0);
    expect(asked).toEqual([]);
    alive.add("n1");
    entry.round(10);
    expect(asked).toEqual(["n1"]);
    alive.add("n3");
    entry.round(20);
    entry.round(250);
    expect(asked).toEqual(["n1", "n3"]);
    entry.round(260);
    expect(asked).toEqual(["n1", "n3", "n1"]);
  });

  test("asks back whoever asks it, though it has yet to hear of that one", () => {
    const { entry, asked, answer, entered } = unentered();
    entry.askedBy("n3", 0);
    entry.askedBy("n3", 10);
    entry.askedBy("n1", 10);
    expect(asked).toEqual(["n3", "n1"]);
    answer("n3", "nothing");
    entry.askedBy("n3", 1_000);
    expect(asked).toEqual(["n3", "n1"]);
    answer("n1", "nothing");
    entry.round(200);
    expect(entered.map(({ id }) => id)).toEqual([2]);
    entry.askedBy("n1", 1_000);
    expect(asked).toEqual(["n3", "n1"]);
  });

  test("asks nobody back who has no say in whether all begins here, and nobody once it joins", () => {
    const { entry, alive, asked, answer } = unentered();
    entry.askedBy("n4", 0);
    expect(asked).toEqual([]);
    alive.add("n1");
    entry.round(0);
    answer("n1", "directory");
    entry.round(10);
    entry.askedBy("n3", 20);
    expect(asked).toEqual(["n1", "n1 to join"]);
  });
});

describe("initial nodes that start for the first time", () => {
  test.each(peers)("all begin as first members, whenever %s comes to it", async (late) => {
    for (let delay = 0; delay < 1_500; delay += 37) {
      // Each seed has other delays of network and disks: that frames are lost on who still reads its journal is part of it.
      const world = new World({ seed: delay + 1, nodes: 3 });
      for (const node of world.nodes)
        if (node.name === late) world.after(delay, () => world.start(node));
        else world.start(node);
      const isReady = (): boolean => world.nodes.every(({ host }) => host?.ready === true);
      await world.run(20_000, isReady);
      expect(isReady()).toBe(true);
      await world.run(world.now + 1_000);
      for (const { host } of world.nodes) {
        const replicas = host?.directory.system()?.placement.replicas;
        expect(replicas, `${late} after ${delay} ms`).toEqual(
          peers.map((node, at) => ({ id: at + 1, node })),
        );
      }
    }
  });
});
