/**
 * The least that a cluster of this shape can cost: three processes that take requests over HTTP (Elysia), send frames to
 * each other through one nats-server, and write what they are given to journals with O_DSYNC, a majority before the
 * answer; reads are answered by the leader at once, and by followers when it has told them how far it is. There is no
 * Raft, no check, no key, no state: what comes is bytes, and everything of a turn of the event loop shares one frame and
 * one write. What Conflux costs beyond it is what Conflux does; no change of that comes below it.
 *
 * Estimate, microseconds of processor time over all processes at 64 connections, on an idle machine: a request and its
 * answer 20 at the node and 15 at the client; of a write, its share of three journal writes and of four frames 10: 45.
 * A read 40. A lone write: three journal writes of 100 and four frames of 150: 1,000.
 *
 * Run: bun bench/skeleton.ts [--seconds 5] [--connections 64]; `npm run bench -- budget` has its figures beside Conflux's.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { Elysia } from "elysia";
import { connect } from "nats";
import { root } from "../infra/bootstrap.mjs";
import { startNatsServer } from "../infra/nats_server.mjs";
import { serve } from "../src/runtime/serve.ts";
import { openJournalDisk } from "../src/store/disk.ts";
import type { JournalFile } from "../src/store/journal.ts";
import { shorten } from "../src/transport/nats.ts";
import { load, type LoadRequest } from "./load.ts";
import { microsPerRequest, processorSeconds } from "./processes.ts";

// --- a node ------------------------------------------------------------------------------------------------------------------

const leader = 0;
const nodes = 3;

/** What frames say. A frame is its kind, who sent it, a number and bytes. */
const Kind = { entries: 0, durable: 1, forward: 2, done: 3, ask: 4, index: 5 } as const;
type Kind = (typeof Kind)[keyof typeof Kind];
const headBytes = 6;

/** About what Conflux answers: as many headers and bytes. */
const writeAnswer = JSON.stringify({ pad: "x".repeat(420) });
const readAnswer = JSON.stringify({ n: 1, pad: "x".repeat(100) });
const headers = {
  "content-type": "application/json; charset=utf-8",
  "cache-control": "no-cache",
  etag: '"1234"',
  "conflux-revision": "1234",
  "x-request-id": "0123456789ab",
};

interface Write {
  readonly bytes: Uint8Array;
  readonly done: () => void;
}

class Node {
  readonly #self: number;
  readonly #file: JournalFile;
  readonly #publish: (to: number, frame: Uint8Array) => void;
  #isTurn = false;
  /** Of this turn; a follower forwards them. */
  #writes: Write[] = [];
  #reads: (() => void)[] = [];
  /** What waits for the journal, and up to which number that goes. */
  #unwritten: Uint8Array[] = [];
  #unwrittenTo = 0;
  #position = 0;
  #isWriting = false;
  /** By number of the batch; numbers of the leader's, and those that a follower forwarded or asks. */
  readonly #waiting = new Map<number, readonly (() => void)[]>();
  readonly #asked = new Map<number, readonly (() => void)[]>();
  #batch = 0;
  /** The leader's: up to where each node has it. */
  readonly #durable = [0, 0, 0];
  #committed = 0;

  constructor(self: number, file: JournalFile, publish: (to: number, frame: Uint8Array) => void) {
    this.#self = self;
    this.#file = file;
    this.#publish = publish;
  }

  write(bytes: Uint8Array): Promise<void> {
    return new Promise((done) => {
      this.#writes.push({ bytes, done });
      this.#schedule();
    });
  }

  read(): Promise<void> | null {
    if (this.#self === leader) return null;
    return new Promise((done) => {
      this.#reads.push(done);
      this.#schedule();
    });
  }

  #schedule(): void {
    if (this.#isTurn) return;
    this.#isTurn = true;
    setImmediate(() => this.#turn());
  }

  #turn(): void {
    this.#isTurn = false;
    if (this.#reads.length > 0) {
      this.#asked.set(++this.#batch, this.#reads);
      this.#reads = [];
      this.#send(leader, Kind.ask, this.#batch);
    }
    if (this.#writes.length === 0) return;
    const number = ++this.#batch;
    const bytes = Buffer.concat(this.#writes.map((write) => write.bytes));
    this.#waiting.set(
      number,
      this.#writes.map((write) => write.done),
    );
    this.#writes = [];
    if (this.#self !== leader) return this.#send(leader, Kind.forward, number, bytes);
    for (let to = 0; to < nodes; to++)
      if (to !== leader) this.#send(to, Kind.entries, number, bytes);
    this.#append(number, bytes);
  }

  #append(number: number, bytes: Uint8Array): void {
    this.#unwritten.push(bytes);
    this.#unwrittenTo = number;
    if (!this.#isWriting) this.#writeJournal();
  }

  /** One write at a time, with all that came meanwhile. */
  #writeJournal(): void {
    const to = this.#unwrittenTo;
    const bytes = Buffer.concat(this.#unwritten);
    this.#unwritten = [];
    this.#isWriting = true;
    this.#file.write(this.#position, bytes, (error) => {
      if (error !== null) throw error;
      this.#position += bytes.length;
      this.#isWriting = false;
      if (this.#unwritten.length > 0) this.#writeJournal();
      if (this.#self === leader) this.#reached(leader, to);
      else this.#send(leader, Kind.durable, to);
    });
  }

  #reached(node: number, to: number): void {
    this.#durable[node] = to;
    const second = [...this.#durable].sort((left, right) => right - left)[1] as number;
    while (this.#committed < second) this.#finish(this.#waiting, ++this.#committed);
  }

  #finish(of: Map<number, readonly (() => void)[]>, number: number): void {
    for (const done of of.get(number) ?? []) done();
    of.delete(number);
  }

  #send(to: number, kind: Kind, number: number, bytes?: Uint8Array): void {
    const frame = new Uint8Array(headBytes + (bytes?.length ?? 0));
    frame[0] = kind;
    frame[1] = this.#self;
    new DataView(frame.buffer).setUint32(2, number);
    if (bytes !== undefined) frame.set(bytes, headBytes);
    this.#publish(to, frame);
  }

  received(frame: Uint8Array): void {
    const kind = frame[0] as Kind;
    const from = frame[1] as number;
    const number = new DataView(frame.buffer, frame.byteOffset).getUint32(2);
    switch (kind) {
      case Kind.entries:
        return this.#append(number, frame.slice(headBytes));
      case Kind.durable:
        return this.#reached(from, number);
      case Kind.forward:
        this.#writes.push({
          bytes: frame.slice(headBytes),
          done: () => this.#send(from, Kind.done, number),
        });
        return this.#schedule();
      case Kind.done:
        return this.#finish(this.#waiting, number);
      case Kind.ask:
        return this.#send(from, Kind.index, number);
      case Kind.index:
        return this.#finish(this.#asked, number);
    }
  }
}

async function node(self: number, natsUrl: string, folder: string): Promise<void> {
  const connection = await connect({ servers: natsUrl, noEcho: true });
  await new Promise((resolve) => void setImmediate(resolve));
  shorten(connection);
  const disk = openJournalDisk(folder);
  const file = await new Promise<JournalFile>((resolve, reject) => {
    disk.create("journal", (error, created) =>
      error ? reject(error) : resolve(created as JournalFile),
    );
  });
  const one = new Node(self, file, (to, frame) => connection.publish(`bones.${to}`, frame));
  connection.subscribe(`bones.${self}`, { callback: (_error, { data }) => one.received(data) });
  await connection.flush();
  const read = (): Response =>
    new Response(readAnswer, { headers: { ...headers, "conflux-version": "12" } });
  const app = new Elysia()
    .post("/v1/tenants/:tenant/namespaces/:namespace/configs/:name/publish", ({ request }) =>
      request
        .arrayBuffer()
        .then((body) => one.write(new Uint8Array(body)))
        .then(() => new Response(writeAnswer, { status: 201, headers: { ...headers } })),
    )
    .get("/v1/tenants/:tenant/namespaces/:namespace/values/:name", () => {
      const asked = one.read();
      return asked === null ? read() : asked.then(read);
    });
  const { url } = await serve((request) => app.fetch(request), { host: "127.0.0.1", port: 0 });
  console.log(url);
}

// --- three of them, measured ---------------------------------------------------------------------------------------------------

export interface BareRun {
  readonly perSecond: number;
  readonly p50: number;
  /** Microseconds of processor time per request: the three nodes, nats-server, the client. */
  readonly nodes: number;
  readonly nats: number;
  readonly client: number;
  readonly total: number;
}

export interface Skeleton {
  readonly publish: BareRun;
  readonly read: BareRun;
  /** One connection. */
  readonly alone: BareRun;
}

export async function measureSkeleton(connections: number, seconds: number): Promise<Skeleton> {
  const folder = mkdtempSync(join(tmpdir(), "conflux-skeleton-"));
  const nats = await startNatsServer();
  const children: ChildProcess[] = [];
  try {
    const urls: string[] = [];
    for (let self = 0; self < nodes; self++) {
      const args = [import.meta.filename, "--node", `${self}`, "--nats", nats.url];
      const child = spawn(process.execPath, [...args, "--folder", join(folder, `n${self}`)], {
        cwd: root,
        stdio: ["ignore", "pipe", "inherit"],
      });
      children.push(child);
      urls.push(
        await new Promise<string>((resolve, reject) => {
          createInterface(child.stdout).once("line", resolve);
          child.once("exit", () => reject(new Error("A node of the skeleton ended")));
        }),
      );
    }
    const pids = children.map((child) => child.pid as number);
    const path = "/v1/tenants/t0/namespaces/app";
    const token = `cfx_t0_${"0".repeat(60)}`;
    const publish = (number: number): LoadRequest => ({
      method: "POST",
      path: `${path}/configs/limits/publish`,
      token,
      body: `{"content":{"n":${number},"pad":"${"x".repeat(100)}"}}`,
    });
    const read = (): LoadRequest => ({ method: "GET", path: `${path}/values/limits`, token });
    const run = async (
      request: (number: number) => LoadRequest,
      width: number,
    ): Promise<BareRun> => {
      // As long as Conflux is warmed.
      await load({ urls, connections, seconds: Math.max(5, seconds), request });
      const before = [processorSeconds(pids), processorSeconds([nats.pid])] as const;
      const own = process.cpuUsage();
      const result = await load({ urls, connections: width, seconds, request });
      const { user, system } = process.cpuUsage(own);
      if (result.failures > 0) throw new Error(`The skeleton failed: ${result.firstFailure}`);
      const micros = (used: number): number => microsPerRequest(used, result.requests);
      const ofNodes = micros(processorSeconds(pids) - before[0]);
      const ofNats = micros(processorSeconds([nats.pid]) - before[1]);
      const client = (user + system) / result.requests;
      const total = ofNodes + ofNats + client;
      const { perSecond, p50 } = result;
      return { perSecond, p50, nodes: ofNodes, nats: ofNats, client, total };
    };
    return {
      publish: await run(publish, connections),
      read: await run(read, connections),
      alone: await run(publish, 1),
    };
  } finally {
    for (const child of children) child.kill("SIGKILL");
    await nats.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      seconds: { type: "string", default: "5" },
      connections: { type: "string", default: "64" },
      node: { type: "string" },
      nats: { type: "string", default: "" },
      folder: { type: "string", default: "" },
    },
  });
  if (values.node !== undefined) await node(Number(values.node), values.nats, values.folder);
  else {
    const found = await measureSkeleton(Number(values.connections), Number(values.seconds));
    for (const [name, run] of Object.entries(found))
      console.log(
        `${name.padEnd(8)} ${run.perSecond.toFixed(0).padStart(7)}/s  p50 ${run.p50.toFixed(2)} ms  nodes ${run.nodes.toFixed(0)} + nats-server ${run.nats.toFixed(0)} + client ${run.client.toFixed(0)} = ${run.total.toFixed(0)} µs`,
      );
    process.exit(0);
  }
}
