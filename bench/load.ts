/**
 * A load generator: one request at a time per connection, over plain sockets. Written for this, because fetch and the
 * clients of the peers cost more than the servers they measure. On Bun it uses Bun's own sockets, which cost a third of
 * those of node:net; no promise is made and no body decoded per request. The same code drives Conflux (HTTP/1.1) and its
 * peers (HTTP/1.1, the protocol of NATS, that of Redis), so that a difference between them is not the client's.
 */
import { randomBytes } from "node:crypto";
import { connect } from "node:net";

export interface LoadRequest {
  readonly method: string;
  /** With the protocol of NATS: the subject. */
  readonly path: string;
  /** Sent as Authorization: Bearer. */
  readonly token?: string;
  /** ASCII. */
  readonly body?: string;
  /** Sent as it is instead of all that: a command of Redis. */
  readonly raw?: string;
}

export type Protocol = "http" | "nats" | "redis";

export interface LoadOptions {
  /** Connections are dealt out over these in turn. */
  readonly urls: readonly string[];
  readonly connections: number;
  readonly seconds: number;
  /** `http` unless told. */
  readonly protocol?: Protocol;
  /** The next request; `number` counts over all connections. Called right before it is sent. */
  readonly request: (number: number) => LoadRequest;
  /** Each connection sends at most one request in so many milliseconds; without it the next follows each answer. */
  readonly everyMs?: number;
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

/** A request without an answer for so long has failed, and its connection is not used again. */
const answerMsMax = 15_000;

/** What this file uses of Bun's sockets; the compiler knows Node's types only. */
export interface RawSocket {
  /** @returns how many bytes were taken, or nothing when all of them are */
  write(text: string): unknown;
  /** Reads nothing more. */
  pause(): unknown;
  end(): void;
}
interface Handlers {
  /** The memory of the chunk is used again afterwards. */
  data(chunk: Buffer): void;
  closed(error: Error): void;
  drain(): void;
}
const bun = (
  globalThis as {
    readonly Bun?: {
      connect(options: {
        hostname: string;
        port: number;
        socket: {
          data(socket: RawSocket, chunk: Uint8Array): void;
          close(): void;
          drain(): void;
        };
      }): Promise<RawSocket>;
    };
  }
).Bun;

/** A plain TCP connection. @throws when nobody listens there */
export async function openSocket(url: URL, handlers: Handlers): Promise<RawSocket> {
  const { hostname, port, host } = url;
  const closed = (): void => handlers.closed(new Error(`${host} closed the connection`));
  if (bun !== undefined) {
    const socket = {
      data: (_: RawSocket, chunk: Uint8Array) =>
        handlers.data(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)),
      close: closed,
      drain: () => handlers.drain(),
    };
    return await bun.connect({ hostname, port: Number(port), socket });
  }
  return await new Promise((resolve, reject) => {
    const socket = connect({ host: hostname, port: Number(port), noDelay: true }, () =>
      resolve({
        write: (text) => void socket.write(text),
        pause: () => socket.pause(),
        end: () => void socket.end(),
      }),
    );
    socket.on("error", (error) => {
      reject(error);
      handlers.closed(error);
    });
    socket.on("close", closed);
    socket.on("data", (chunk) => handlers.data(chunk));
  });
}

export async function load(options: LoadOptions): Promise<LoadResult> {
  const latencies: number[] = [];
  let failures = 0;
  let firstFailure: string | null = null;
  let number = 0;
  const startedAt = performance.now();
  const endAt = startedAt + options.seconds * 1_000;
  const lines = Array.from({ length: options.connections }, (_, index) => {
    const url = new URL(options.urls[index % options.urls.length] as string);
    return new Connection(url, options.protocol ?? "http", options.everyMs ?? 0, {
      next: () => (performance.now() < endAt ? options.request(number++) : null),
      answered: (status, ms, body) => {
        latencies.push(ms);
        if ((status >= 400 || status < 200) && options.forgive?.(status) !== true) {
          failures += 1;
          firstFailure ??= `${status} ${body()}`;
        }
      },
    });
  });
  const watchdog = setInterval(() => {
    for (const line of lines) line.giveUpAfter(answerMsMax);
  }, 1_000);
  try {
    await Promise.all(lines.map((line) => line.run(options.request(number++))));
  } finally {
    clearInterval(watchdog);
  }
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

interface Told {
  /** Gives the next request; null ends the connection. */
  next(): LoadRequest | null;
  answered(status: number, ms: number, body: () => string): void;
}

class Connection {
  readonly #url: URL;
  readonly #protocol: Protocol;
  readonly #everyMs: number;
  readonly #told: Told;
  readonly #heads = new Map<string, string>();
  /** Of NATS: where this connection's answers go. */
  readonly #inbox = `_INBOX.${randomBytes(8).toString("hex")}`;
  #socket: RawSocket | null = null;
  #unread: Buffer | null = null;
  #unsent = "";
  #sentAt = 0;
  #isWaiting = false;
  #end: { resolve: () => void; reject: (error: Error) => void } | null = null;

  constructor(url: URL, protocol: Protocol, everyMs: number, told: Told) {
    this.#url = url;
    this.#protocol = protocol;
    this.#everyMs = everyMs;
    this.#told = told;
  }

  async run(first: LoadRequest): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#end = { resolve, reject };
      openSocket(this.#url, {
        data: (chunk) => this.#received(chunk),
        closed: reject,
        drain: () => this.#flush(),
      }).then((socket) => {
        this.#socket = socket;
        if (this.#protocol === "nats")
          this.#unsent = `CONNECT ${natsConnect}\r\nSUB ${this.#inbox} 1\r\n`;
        this.#send(first);
      }, reject);
    });
    this.#socket?.end();
  }

  giveUpAfter(ms: number): void {
    if (!this.#isWaiting || performance.now() - this.#sentAt < ms) return;
    this.#isWaiting = false;
    this.#told.answered(0, performance.now() - this.#sentAt, () => `no answer for ${ms} ms`);
    this.#end?.resolve();
  }

  #send(request: LoadRequest): void {
    this.#unsent += this.#encode(request);
    this.#sentAt = performance.now();
    this.#isWaiting = true;
    this.#flush();
  }

  #encode({ method, path, token, body = "", raw }: LoadRequest): string {
    if (raw !== undefined) return raw;
    if (this.#protocol === "nats")
      return `PUB ${path} ${this.#inbox} ${body.length}\r\n${body}\r\n`;
    const headers = this.#headersOf(token);
    return body === ""
      ? `${method} ${path} HTTP/1.1\r\n${headers}\r\n`
      : `${method} ${path} HTTP/1.1\r\n${headers}content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
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
    let bytes = this.#unread === null ? chunk : Buffer.concat([this.#unread, chunk]);
    this.#unread = null;
    while (bytes.length > 0) {
      const { status, start, end } = parsers[this.#protocol](bytes);
      if (end > bytes.length) {
        // Bun uses the memory of a chunk again.
        this.#unread = Buffer.from(bytes);
        return;
      }
      const answer = bytes;
      bytes = bytes.subarray(end);
      if (status === ping) {
        this.#unsent += "PONG\r\n";
        this.#flush();
      } else if (status !== nothing && this.#isWaiting) {
        this.#isWaiting = false;
        this.#told.answered(status, performance.now() - this.#sentAt, () =>
          answer.toString("utf8", start, end),
        );
        this.#goOn();
      }
    }
  }

  #goOn(): void {
    const wait = this.#everyMs === 0 ? 0 : this.#sentAt + this.#everyMs - performance.now();
    if (wait > 0) {
      setTimeout(() => this.#next(), wait);
      return;
    }
    this.#next();
  }

  #next(): void {
    const next = this.#told.next();
    if (next === null) this.#end?.resolve();
    else this.#send(next);
  }
}

// --- answers -----------------------------------------------------------------------------------------------------------------

interface Frame {
  /** Of HTTP, or in its sense. */
  readonly status: number;
  /** Of the body. */
  readonly start: number;
  /** Infinity: it is not all here, and nobody knows yet how long it is. */
  readonly end: number;
}

/** Statuses of what is no answer. */
const nothing = -1;
const ping = -2;

const unfinished: Frame = { status: nothing, start: 0, end: Number.POSITIVE_INFINITY };

const parsers = { http: httpAnswer, nats: natsAnswer, redis: redisAnswer };

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

export const natsConnect =
  '{"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1,"lang":"bench","version":"1"}';

/** https://docs.nats.io/reference/reference-protocols/nats-protocol; JetStream answers with JSON or with headers. */
function natsAnswer(bytes: Buffer): Frame {
  const lineEnd = bytes.indexOf("\r\n");
  if (lineEnd < 0) return unfinished;
  const start = lineEnd + 2;
  // MSG and HMSG are the only ones that carry something.
  const isMessage = bytes[0] === 0x4d;
  if (!isMessage && bytes[0] !== 0x48) {
    if (bytes[0] === 0x2d) return { status: 500, start: 0, end: start };
    return {
      status: bytes[1] === 0x49 && bytes[0] === 0x50 ? ping : nothing,
      start: 0,
      end: start,
    };
  }
  const line = bytes.toString("latin1", 0, lineEnd);
  const end = start + Number(line.slice(line.lastIndexOf(" ") + 1)) + 2;
  if (end > bytes.length) return unfinished;
  // {"error":… or NATS/1.0 503; a message that was read has headers, but no status.
  const isError = isMessage
    ? bytes[start + 2] === 0x65 && bytes[start + 3] === 0x72
    : bytes[start + 8] === 0x20;
  return { status: isError ? 500 : 200, start, end };
}

// --- streams -----------------------------------------------------------------------------------------------------------------

export interface StreamOptions {
  readonly url: string;
  /** Sent as it is. */
  readonly opening: string;
  /** In what comes back: from here on nothing is missed. */
  readonly ready: RegExp;
  /** What is wrong, if it comes before that. */
  readonly refused: RegExp;
  /** Global; matches each thing that was watched, whose number is its first group, read by `decode`. */
  readonly item: RegExp;
  readonly decode?: (group: string) => string;
  readonly onItem: (number: number) => void;
}

/** The longest item, that may come in two pieces. */
const itemBytesMax = 64;

/** A watcher, of whatever protocol sends text. Resolves when it is ready. @returns what closes it */
export async function follow(options: StreamOptions): Promise<() => void> {
  let socket: RawSocket | null = null;
  let isReady = false;
  let text = "";
  let last = "";
  let unsent = options.opening;
  const flush = (): void => {
    if (unsent === "") return;
    const written = socket?.write(unsent);
    unsent = typeof written === "number" ? unsent.slice(written) : "";
  };
  await new Promise<void>((resolve, reject) => {
    const data = (chunk: Buffer): void => {
      text += chunk.toString("latin1");
      if (!isReady) {
        if (options.refused.test(text)) return reject(new Error(`Refused: ${text}`));
        if (!options.ready.test(text)) return;
        isReady = true;
        text = "";
        return resolve();
      }
      if (text.includes("PING\r\n")) {
        unsent += "PONG\r\n";
        flush();
      }
      let end = 0;
      for (const match of text.matchAll(options.item)) {
        const group = match[1] as string;
        end = match.index + match[0].length;
        // A frame may say it more than once.
        if (group === last) continue;
        last = group;
        options.onItem(Number(options.decode === undefined ? group : options.decode(group)));
      }
      text = text.slice(Math.max(end, text.length - itemBytesMax));
    };
    openSocket(new URL(options.url), { data, closed: reject, drain: flush }).then((opened) => {
      socket = opened;
      flush();
    }, reject);
  });
  return () => socket?.end();
}
