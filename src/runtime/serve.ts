/**
 * Serves a fetch handler over HTTP/1.1 on Bun, Deno and Node alike.
 *
 * What all three must keep: the body of a request and of a response stream; a client that goes away cancels the response
 * stream; a client that reads slowly slows the stream (pull is not called); a stream
 * is not cut for a silence of a minute.
 */
import { lookup } from "node:dns/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { bun, deno } from "./runtime.ts";

export interface RequestInfo {
  readonly remoteAddress?: string | undefined;
}

export type FetchHandler = (request: Request, info: RequestInfo) => Response | Promise<Response>;

export interface ServeOptions {
  readonly host: string;
  /** 0 picks a free one. */
  readonly port: number;
}

export interface HttpServer {
  readonly port: number;
  readonly url: string;
  /** Takes no new connections, lets requests under way finish for `gracefulMs`, then cuts them. */
  stop(gracefulMs: number): Promise<void>;
}

/** The gateway refuses by its own, lower limits with a proper answer; this one only ends what is absurd. */
const requestBytesMax = 256 * 1024 * 1024;

/** The port could not be bound. The message names the setting. */
export class ListenError extends Error {
  override readonly name = "ListenError";
}

/** @throws ListenError */
export async function serve(handler: FetchHandler, options: ServeOptions): Promise<HttpServer> {
  try {
    // Runtimes tell a name that nobody knows in ways of their own, down to "file already exists".
    await lookup(options.host);
    if (bun !== undefined) return serveOnBun(handler, options);
    if (deno !== undefined) return serveOnDeno(handler, options);
    return await serveOnNode(handler, options);
  } catch (error) {
    throw listenError(error, options);
  }
}

function listenError(error: unknown, { host, port }: ServeOptions): unknown {
  if (!(error instanceof Error)) return error;
  const code = `${(error as { code?: string }).code ?? ""} ${error.name} ${error.message}`;
  if (/EADDRINUSE|AddrInUse|Address already in use|port .* in use/i.test(code))
    return new ListenError(
      `CONFLUX_PORT ${port} is already in use on ${host}: stop what listens there, or choose another port (0 picks a free one)`,
      { cause: error },
    );
  if (/EACCES|PermissionDenied/.test(code))
    return new ListenError(
      `CONFLUX_PORT ${port} may not be bound by this user: choose one above 1023`,
      { cause: error },
    );
  if (/EADDRNOTAVAIL|AddrNotAvailable|ENOTFOUND|EAI_|failed to lookup|Failed to listen/i.test(code))
    return new ListenError(`CONFLUX_HOST ${host} is not an address of this machine`, {
      cause: error,
    });
  return error;
}

function urlOf(host: string, port: number): string {
  return `http://${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** Waits for `graceful`, at most `ms`, then calls `cut` and waits again. */
async function stopWithin(graceful: Promise<unknown>, ms: number, cut: () => void): Promise<void> {
  const timer = setTimeout(cut, ms);
  await graceful;
  clearTimeout(timer);
}

// --- Bun ---------------------------------------------------------------------------------------------------------------

function serveOnBun(handler: FetchHandler, { host, port }: ServeOptions): HttpServer {
  if (bun === undefined) throw new Error("Not on Bun");
  const server = bun.serve({
    hostname: host,
    port,
    // Bun has no bound of its own for heads that never end, so connections on which nothing moves are cut: late enough
    // for every wait and every pause of a stream (bookmarks come within 15 s, long polls end within 60 s).
    idleTimeout: 120,
    maxRequestBodySize: requestBytesMax,
    development: false,
    // Outside development Bun would share the port with whoever else asks for it, and split the requests silently.
    reusePort: false,
    fetch: (request, self) => {
      const placed = withAuthority(request);
      if (placed === null) return new Response(null, { status: 400 });
      return handler(placed, {
        // Asked for only where it is written down: looking it up for every read would cost more than the read.
        get remoteAddress() {
          return self.requestIP(request)?.address;
        },
      });
    },
    error: () => new Response(null, { status: 500 }),
  });
  return {
    port: server.port,
    url: urlOf(host, server.port),
    stop: (gracefulMs) =>
      stopWithin(server.stop(false), gracefulMs, () => {
        void server.stop(true);
      }),
  };
}

/** Where no Host came, as HTTP/1.0 allows, or one that is none, Bun gives the path alone. Null: it is not even that. */
function withAuthority(request: Request): Request | null {
  const { url } = request;
  if (url.startsWith("http://")) return request;
  const isPath = url.startsWith("/") && isHost(request.headers.get("host"));
  return isPath ? new Request(new URL(`http://localhost${url}`), request) : null;
}

/** Signs that would begin a path, a query or another host where a URL is put together of it (RFC 9112 §3.2). */
const hostEnd = /[\s/?#@\\]/;

function isHost(host: string | null): boolean {
  return host === null || !hostEnd.test(host);
}

// --- Deno --------------------------------------------------------------------------------------------------------------

/** `.` or `..`, which URLs resolve (RFC 3986 §5.2.4). */
const dotSegment = /\/(?:\.|%2e)/i;

function serveOnDeno(handler: FetchHandler, { host, port }: ServeOptions): HttpServer {
  if (deno === undefined) throw new Error("Not on Deno");
  const abort = new AbortController();
  const underWay = new Set<Promise<unknown>>();
  let isStopping = false;
  const server = deno.serve(
    {
      hostname: host,
      port,
      signal: abort.signal,
      onListen: () => {},
      onError: () => new Response(null, { status: 500 }),
    },
    (request, info) => {
      if (isStopping) return new Response(null, { status: 503, headers: { connection: "close" } });
      // Deno puts it before the path as it is, and leaves the path as it is.
      if (!isHost(request.headers.get("host"))) return new Response(null, { status: 400 });
      const placed = dotSegment.test(request.url)
        ? new Request(new URL(request.url), request)
        : request;
      const { completed } = info;
      underWay.add(completed);
      void Promise.allSettled([completed]).then(() => underWay.delete(completed));
      return handler(placed, { remoteAddress: info.remoteAddr.hostname });
    },
  );
  return {
    port: server.addr.port,
    url: urlOf(host, server.addr.port),
    // Its own shutdown can no longer be cut short once it was begun, so what is under way is waited for here.
    stop: async (gracefulMs) => {
      isStopping = true;
      let timer: ReturnType<typeof setTimeout> | undefined;
      const late = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, gracefulMs);
      });
      await Promise.race([Promise.allSettled(underWay), late]);
      clearTimeout(timer);
      abort.abort();
      await server.finished;
    },
  };
}

// --- Node --------------------------------------------------------------------------------------------------------------

async function serveOnNode(
  handler: FetchHandler,
  { host, port }: ServeOptions,
): Promise<HttpServer> {
  const serveOne = (incoming: IncomingMessage, outgoing: ServerResponse): void => {
    void answer(handler, incoming, outgoing);
  };
  const server = createServer(serveOne);
  // An Expect that Node does not know it would refuse by itself; the others pass it over, as RFC 9110 §10.1.1 allows.
  server.on("checkExpectation", serveOne);
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => {
      server.off("error", reject);
      resolve();
    });
  });
  const bound = (server.address() as AddressInfo).port;
  return {
    port: bound,
    url: urlOf(host, bound),
    stop: (gracefulMs) => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeIdleConnections();
      return stopWithin(closed, gracefulMs, () => server.closeAllConnections());
    },
  };
}

async function answer(
  handler: FetchHandler,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
): Promise<void> {
  // A client that resets the connection is its own affair; without a listener the event would end the process.
  outgoing.on("error", () => {});
  incoming.on("error", () => {});
  let response: Response;
  try {
    const request = toRequest(incoming);
    response =
      request === null
        ? new Response(null, { status: 400 })
        : await handler(request, { remoteAddress: incoming.socket.remoteAddress });
  } catch {
    response = new Response(null, { status: 500 });
  }
  try {
    await write(response, incoming.method === "HEAD", outgoing);
  } catch {
    outgoing.destroy();
  }
}

/** Null when Node's parser let through what the fetch standard does not: a forbidden method or a broken target. */
function toRequest(incoming: IncomingMessage): Request | null {
  if (!isHost(incoming.headers.host ?? null)) return null;
  const method = incoming.method ?? "GET";
  const headers = new Headers();
  try {
    for (let i = 0; i + 1 < incoming.rawHeaders.length; i += 2)
      headers.append(incoming.rawHeaders[i] as string, incoming.rawHeaders[i + 1] as string);
    // The authority is irrelevant here and comes from the client: a fixed one cannot confuse anything behind. Before a
    // path it is put as text: of a path that begins with two slashes URL would take the first part for an authority.
    const target = incoming.url ?? "/";
    const url = new URL(target.startsWith("/") ? `http://localhost${target}` : target);
    if (method === "GET" || method === "HEAD")
      return new Request(`http://localhost${url.pathname}${url.search}`, { method, headers });
    return new Request(`http://localhost${url.pathname}${url.search}`, {
      method,
      headers,
      body: bodyStream(incoming),
      duplex: "half",
    } as RequestInit);
  } catch {
    return null;
  }
}

function bodyStream(incoming: IncomingMessage): ReadableStream<Uint8Array> {
  let ended = false;
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        incoming.pause();
        incoming.on("data", (chunk: Uint8Array) => {
          incoming.pause();
          if (!ended) controller.enqueue(chunk);
        });
        incoming.on("end", () => {
          if (!ended) controller.close();
          ended = true;
        });
        incoming.on("close", () => {
          if (!ended) controller.error(new Error("Client went away"));
          ended = true;
        });
      },
      pull() {
        incoming.resume();
      },
      cancel() {
        // The rest is read and dropped: cutting it off would lose the answer that says why.
        ended = true;
        incoming.resume();
      },
    },
    { highWaterMark: 0 },
  );
}

async function write(response: Response, head: boolean, outgoing: ServerResponse): Promise<void> {
  const headers: string[] = [];
  response.headers.forEach((value, name) => {
    headers.push(name, value);
  });
  const body = response.body;
  if (body === null || head || outgoing.destroyed) {
    outgoing.writeHead(response.status, headers).end();
    await body?.cancel();
    return;
  }
  const reader = body.getReader();
  let gone = false;
  outgoing.on("close", () => {
    gone = true;
    reader.cancel().catch(() => {});
  });
  const { chunks, next } = await atOnce(reader);
  if (next === null && !response.headers.has("content-length")) {
    const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    headers.push("content-length", String(length));
  }
  outgoing.writeHead(response.status, headers);
  for (const chunk of chunks) if (!outgoing.write(chunk)) await drained(outgoing);
  for (let part = await next; part?.done === false && !gone; part = await reader.read())
    if (!outgoing.write(part.value)) await drained(outgoing);
  outgoing.end();
}

type Reader = ReadableStreamDefaultReader<Uint8Array>;
/** A stream that always has more is not gathered, but sent as it comes. */
const chunksAtOnceMax = 2;

/** What there is before the event loop goes on, and what is read next; null: that was all, so its length is known. */
async function atOnce(
  reader: Reader,
): Promise<{ chunks: Uint8Array[]; next: ReturnType<Reader["read"]> | null }> {
  const chunks: Uint8Array[] = [];
  const later = new Promise<null>((resolve) => setImmediate(resolve, null));
  for (;;) {
    const next = reader.read();
    if (chunks.length === chunksAtOnceMax) {
      // It may fail while the client takes what there is: whoever reads on is told, nobody else.
      next.catch(() => {});
      return { chunks, next };
    }
    const part = await Promise.race([next, later]);
    if (part === null) return { chunks, next };
    if (part.done) return { chunks, next: null };
    chunks.push(part.value);
  }
}

function drained(outgoing: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const settle = (): void => {
      outgoing.off("drain", settle);
      outgoing.off("close", settle);
      resolve();
    };
    outgoing.on("drain", settle);
    outgoing.on("close", settle);
    if (outgoing.destroyed) settle();
  });
}
