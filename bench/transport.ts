/**
 * How fast frames move between two nodes, both in this process: over loopback, over a nats-server of its own, and over
 * the NATS client alone with nothing of ours around it.
 *
 * Estimate, for one core shared by both ends: NATS's client alone moves about 1M messages/s of 128 B and 500–700 MB/s in
 * large ones. The envelope adds, per frame, one allocation, one copy of the payload and two CRCs (2 × 0.3 µs at 128 B,
 * 2 × 25 µs at 64 KiB on Node), the subject's text and a name check: about 2 µs on top of the client's 1–3 µs for a small
 * frame. So expect half of what the client does alone at 128 B, 300–400k frames/s, and two thirds of it from 4 KiB on,
 * and a round trip of 0.15–0.3 ms. The loopback has no socket and no text protocol: twice as many small frames.
 * Found so far: the envelope costs 2–3 µs a frame (the loopback's whole time), the text protocol of the longer frame and
 * the flush probes another 2 µs: twice to four times the client alone at 128 B, so the host must fill its frames.
 * On a shared machine the processor time per frame, both ends together, says more than the rate.
 *
 *     node bench/transport.ts     bun bench/transport.ts     deno run -A bench/transport.ts
 */
import process from "node:process";
import { connect } from "nats";
import { startNatsServer } from "../infra/nats_server.mjs";
import type { Transport } from "../src/host/ports.ts";
import { LoopbackNetwork } from "../src/transport/loopback.ts";
import { NatsTransport } from "../src/transport/nats.ts";

const runMs = 1000;
const rounds = 2;
/** The client alone has no window of its own. */
const aloneBytesMax = 16 * 1024 * 1024;

/** Rate and cost of frames of `size` bytes that arrived, best of the rounds. */
async function oneWay(
  send: (bytes: Uint8Array, underWay: number) => boolean,
  heard: { count: number },
  size: number,
): Promise<string> {
  const bytes = new Uint8Array(size);
  let rate = 0;
  let cpu = Infinity;
  for (let round = 0; round < rounds; round++) {
    heard.count = 0;
    let sent = 0;
    const start = performance.now();
    const used = process.cpuUsage();
    while (performance.now() - start < runMs) {
      for (let i = 0; i < 256 && send(bytes, sent - heard.count); i++) sent++;
      await new Promise((resolve) => setImmediate(resolve));
    }
    while (heard.count < sent) await new Promise((resolve) => setImmediate(resolve));
    const { user, system } = process.cpuUsage(used);
    rate = Math.max(rate, (sent * 1000) / (performance.now() - start));
    cpu = Math.min(cpu, (user + system) / sent);
  }
  const megabytes = ((rate * size) / 1e6).toFixed(0);
  return `${(rate / 1000).toFixed(1)}k/s ${megabytes} MB/s ${cpu.toFixed(1)} µs`;
}

const sizes = [
  ["128 B", 128],
  ["4 KiB", 4096],
  ["64 KiB", 65_536],
] as const;

async function measure(name: string, a: Transport, b: Transport): Promise<Record<string, string>> {
  const heard = { count: 0 };
  let answered: () => void = () => {};
  await a.start(() => answered());
  await b.start((from, _boot, lane, bytes) => {
    if (lane === "control") b.send(from, lane, bytes);
    else heard.count++;
  });
  const row: Record<string, string> = { transport: name };
  for (const [label, size] of sizes)
    row[label] = await oneWay((bytes) => a.send("b", "append", bytes), heard, size);
  const trips: number[] = [];
  const ping = new Uint8Array(128);
  for (let i = 0; i < 6000; i++) {
    const start = performance.now();
    const answer = new Promise<void>((resolve) => (answered = resolve));
    a.send("b", "control", ping);
    await answer;
    if (i >= 1000) trips.push(performance.now() - start);
  }
  trips.sort((x, y) => x - y);
  const at = (share: number): string => (trips[Math.floor(trips.length * share)] ?? 0).toFixed(3);
  row["round trip p50"] = `${at(0.5)} ms`;
  row["p99"] = `${at(0.99)} ms`;
  await a.close();
  await b.close();
  return row;
}

async function measureAlone(url: string): Promise<Record<string, string>> {
  const [a, b] = [await connect({ servers: url, noEcho: true }), await connect({ servers: url })];
  const heard = { count: 0 };
  b.subscribe("bench.*.frames", { callback: () => heard.count++ });
  await b.flush();
  const row: Record<string, string> = { transport: "nats client alone" };
  for (const [label, size] of sizes) {
    const publish = (bytes: Uint8Array, underWay: number): boolean => {
      if (aloneBytesMax < underWay * size) return false;
      a.publish("bench.a.frames", bytes);
      return true;
    };
    row[label] = await oneWay(publish, heard, size);
  }
  await a.close();
  await b.close();
  return row;
}

const node = (name: string) => ({ cluster: "bench", node: name, boot: 1 });
const network = new LoopbackNetwork();
const server = await startNatsServer();
const nats = (name: string) => new NatsTransport({ ...node(name), servers: [server.url] });
console.table([
  await measure("loopback", network.join(node("a")), network.join(node("b"))),
  await measure("nats", nats("a"), nats("b")),
  await measureAlone(server.url),
]);
await server.stop();
