/**
 * A load generator: keep-alive HTTP/1.1 over plain sockets, one request at a time per connection. Written for this,
 * because fetch costs more than the server it measures.
 */
import { connect, type Socket } from "node:net";

export interface LoadOptions {
  readonly urls: readonly string[];
  readonly connections: number;
  readonly seconds: number;
  /** The next request of a connection: its head's first line, headers and body. */
  readonly request: (number: number) => {
    readonly method: string;
    readonly path: string;
    readonly token: string;
    readonly body?: string;
  };
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

export async function load(options: LoadOptions): Promise<LoadResult> {
  const latencies: number[] = [];
  let failures = 0;
  let firstFailure: string | null = null;
  let number = 0;
  const startedAt = performance.now();
  const endAt = startedAt + options.seconds * 1_000;
  await Promise.all(
    Array.from({ length: options.connections }, async (_, connection) => {
      const url = new URL(options.urls[connection % options.urls.length] as string);
      const line = new Connection(url);
      await line.open();
      while (performance.now() < endAt) {
        const sentAt = performance.now();
        const { status, body } = await line.send(options.request(number++));
        latencies.push(performance.now() - sentAt);
        if (status >= 300) {
          failures += 1;
          firstFailure ??= `${status} ${body}`;
        }
      }
      line.close();
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

interface Response {
  readonly status: number;
  readonly body: string;
}

class Connection {
  readonly #url: URL;
  #socket: Socket | null = null;
  #buffer: Buffer = Buffer.alloc(0);
  #waiting: { resolve: (response: Response) => void; reject: (error: Error) => void } | null = null;

  constructor(url: URL) {
    this.#url = url;
  }

  open(): Promise<void> {
    return new Promise((resolve, reject) => {
      const socket = connect(
        { host: this.#url.hostname, port: Number(this.#url.port), noDelay: true },
        resolve,
      );
      socket.on("error", (error) => {
        reject(error);
        this.#waiting?.reject(error);
      });
      socket.on("data", (chunk) => this.#received(chunk));
      this.#socket = socket;
    });
  }

  send(request: ReturnType<LoadOptions["request"]>): Promise<Response> {
    const { method, path, token, body = "" } = request;
    const length = Buffer.byteLength(body);
    const head =
      `${method} ${path} HTTP/1.1\r\nhost: ${this.#url.host}\r\nauthorization: Bearer ${token}\r\n` +
      (length === 0
        ? "\r\n"
        : `content-type: application/json\r\ncontent-length: ${length}\r\n\r\n`);
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.#socket?.write(head + body);
    });
  }

  close(): void {
    this.#socket?.destroy();
  }

  #received(chunk: Buffer): void {
    this.#buffer = this.#buffer.length === 0 ? chunk : Buffer.concat([this.#buffer, chunk]);
    const headEnd = this.#buffer.indexOf("\r\n\r\n");
    if (headEnd < 0) return;
    const head = this.#buffer.toString("latin1", 0, headEnd).toLowerCase();
    const length = Number(/\r\ncontent-length: *(\d+)/.exec(head)?.[1] ?? 0);
    const end = headEnd + 4 + length;
    if (this.#buffer.length < end) return;
    const body = this.#buffer.toString("utf8", headEnd + 4, end);
    this.#buffer = this.#buffer.subarray(end);
    this.#waiting?.resolve({ status: Number(head.slice(9, 12)), body });
  }
}
