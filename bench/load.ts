/**
 * A load generator: keep-alive HTTP/1.1 over plain sockets, one request at a time per connection. Written for this,
 * because fetch costs more than the server it measures. On Bun it uses Bun's own sockets, which cost a third of those of
 * node:net; no promise is made and no body decoded per request. The same code drives Conflux and its peers.
 */
import { connect } from "node:net";

export interface LoadRequest {
  readonly method: string;
  readonly path: string;
  /** Sent as Authorization: Bearer. */
  readonly token?: string;
  readonly body?: string;
  /** Sent as it is instead of all that: a command of Redis. */
  readonly raw?: string;
}

export interface LoadOptions {
  /** Connections are dealt out over these in turn. */
  readonly urls: readonly string[];
  readonly connections: number;
  readonly seconds: number;
  /** The next request; `number` counts over all connections. */
  readonly request: (number: number) => LoadRequest;
  /** Called with every answer that is not 2xx or 3xx instead of counting it as a failure; true: it is none. */
  readonly forgive?: (status: number) => boolean;
}

export interface LoadResult {
  readonly requests: number;
  readonly perSecond: number;
  /** Milliseconds. */
  readonly p50: number;
  readonly p99: number;
  readonly failures: number;
  readonly firstFailure: string | null;
}

/** What this file uses of Bun's sockets; the compiler knows Node's types only. */
interface RawSocket {
  write(text: string): unknown;
  end(): void;
}
interface Handlers {
  data(socket: RawSocket, chunk: Uint8Array): void;
  close(): void;
  drain(socket: RawSocket): void;
}
const bun = (
  globalThis as {
    readonly Bun?: {
      connect(options: { hostname: string; port: number; socket: Handlers }): Promise<RawSocket>;
    };
  }
).Bun;

export async function load(options: LoadOptions): Promise<LoadResult> {
  const latencies: number[] = [];
  let failures = 0;
  let firstFailure: string | null = null;
  let number = 0;
  const startedAt = performance.now();
  const endAt = startedAt + options.seconds * 1_000;
  await Promise.all(
    Array.from({ length: options.connections }, async (_, index) => {
      const url = new URL(options.urls[index % options.urls.length] as string);
      const line = new Connection(url, (status, ms, body) => {
        latencies.push(ms);
        if (status >= 400 || status < 200) {
          if (options.forgive?.(status) !== true) {
            failures += 1;
            firstFailure ??= `${status} ${body()}`;
          }
        }
        return performance.now() < endAt ? options.request(number++) : null;
      });
      await line.run(options.request(number++));
    }),
  );
  const seconds = (performance.now() - startedAt) / 1_000;
  latencies.sort((left, right) => left - right);
  const at = (share: number): number =>
    latencies[Math.floor(latencies.length * share)] ?? Number.NaN;
  return {
    requests: latencies.length,
    perSecond: latencies.length / seconds,
    p50: at(0.5),
    p99: at(0.99),
    failures,
    firstFailure,
  };
}

/** Told of an answer, gives the next request; null ends the connection. */
type Answered = (status: number, ms: number, body: () => string) => LoadRequest | null;

class Connection {
  readonly #url: URL;
  readonly #answered: Answered;
  readonly #heads = new Map<string, string>();
  #socket: RawSocket | null = null;
  #unread: Buffer | null = null;
  #unsent = "";
  #sentAt = 0;
  #end: { resolve: () => void; reject: (error: Error) => void } | null = null;

  constructor(url: URL, answered: Answered) {
    this.#url = url;
    this.#answered = answered;
  }

  async run(first: LoadRequest): Promise<void> {
    const { hostname, port } = this.#url;
    await new Promise<void>((resolve, reject) => {
      this.#end = { resolve, reject };
      const closed = (): void => reject(new Error(`${hostname}:${port} closed the connection`));
      if (bun !== undefined) {
        const socket: Handlers = {
          data: (_, chunk) =>
            this.#received(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)),
          close: closed,
          drain: () => this.#flush(),
        };
        bun.connect({ hostname, port: Number(port), socket }).then((opened) => {
          this.#socket = opened;
          this.#send(first);
        }, reject);
        return;
      }
      const socket = connect({ host: hostname, port: Number(port), noDelay: true }, () => {
        this.#socket = {
          write: (text) => socket.write(text) && undefined,
          end: () => socket.end(),
        };
        this.#send(first);
      });
      socket.on("error", reject);
      socket.on("close", closed);
      socket.on("data", (chunk) => this.#received(chunk));
    });
    this.#socket?.end();
  }

  #send({ method, path, token, body = "", raw }: LoadRequest): void {
    if (raw !== undefined) {
      this.#sentAt = performance.now();
      this.#unsent = raw;
      return this.#flush();
    }
    const length = body === "" ? 0 : Buffer.byteLength(body);
    const headers = this.#headersOf(token);
    this.#sentAt = performance.now();
    this.#unsent =
      length === 0
        ? `${method} ${path} HTTP/1.1\r\n${headers}\r\n`
        : `${method} ${path} HTTP/1.1\r\n${headers}content-type: application/json\r\ncontent-length: ${length}\r\n\r\n${body}`;
    this.#flush();
  }

  /** Bun takes as much as fits and says how many bytes that were; what is sent here is ASCII. */
  #flush(): void {
    if (this.#unsent === "") return;
    const written = this.#socket?.write(this.#unsent);
    this.#unsent = typeof written === "number" ? this.#unsent.slice(written) : "";
  }

  #headersOf(token = ""): string {
    let headers = this.#heads.get(token);
    if (headers === undefined) {
      headers = `host: ${this.#url.host}\r\n${token === "" ? "" : `authorization: Bearer ${token}\r\n`}`;
      if (this.#heads.size < 10_000) this.#heads.set(token, headers);
    }
    return headers;
  }

  #received(chunk: Buffer): void {
    const bytes = this.#unread === null ? chunk : Buffer.concat([this.#unread, chunk]);
    // "H" begins an answer of HTTP; all else is Redis.
    const { status, start, end } = bytes[0] === 0x48 ? httpAnswer(bytes) : redisAnswer(bytes);
    if (end > bytes.length) {
      // Bun uses the memory of a chunk again.
      this.#unread = Buffer.from(bytes);
      return;
    }
    this.#unread = null;
    const ms = performance.now() - this.#sentAt;
    const next = this.#answered(status, ms, () => bytes.toString("utf8", start, end));
    if (next === null) this.#end?.resolve();
    else this.#send(next);
  }
}

interface Frame {
  readonly status: number;
  /** Of the body. */
  readonly start: number;
  /** Infinity: it is not all here, and nobody knows yet how long it is. */
  readonly end: number;
}

const unfinished: Frame = { status: 0, start: 0, end: Number.POSITIVE_INFINITY };

function httpAnswer(bytes: Buffer): Frame {
  const headEnd = bytes.indexOf("\r\n\r\n");
  if (headEnd < 0) return unfinished;
  const head = bytes.toString("latin1", 0, headEnd + 2);
  const start = headEnd + 4;
  const status = Number(head.slice(9, 12));
  const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1];
  if (length !== undefined || !/\r\ntransfer-encoding: *chunked/i.test(head))
    return { status, start, end: start + Number(length ?? 0) };
  const last = bytes.indexOf("0\r\n\r\n", start, "latin1");
  return last < 0 ? unfinished : { status, start, end: last + 5 };
}

/** `+OK`, `-ERR …` or `$<bytes>` and the bytes. */
function redisAnswer(bytes: Buffer): Frame {
  const lineEnd = bytes.indexOf("\r\n");
  if (lineEnd < 0) return unfinished;
  const status = bytes[0] === 0x2d ? 500 : 200;
  const length = bytes[0] === 0x24 ? Number(bytes.toString("latin1", 1, lineEnd)) : -1;
  return { status, start: 0, end: lineEnd + 2 + (length >= 0 ? length + 2 : 0) };
}
