/**
 * A small server over `serve`, for the contract that all three runtimes must keep. Prints one line of JSON with its port,
 * stops in good order on a signal.
 */
import process from "node:process";
import { webStream, type Sink } from "../../src/gateway/streams.ts";
import { runtime } from "../../src/runtime/runtime.ts";
import { serve } from "../../src/runtime/serve.ts";
import { onStopSignal } from "../../src/runtime/signals.ts";
import { openStream } from "../../src/runtime/streams.ts";

const state = { cancelled: 0, produced: 0, broken: 0 };
const chunk = new Uint8Array(64 * 1024).fill(0x61);

function ticking(): ReadableStream<Uint8Array> {
  let timer: ReturnType<typeof setInterval>;
  return new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(new TextEncoder().encode(": hello\n\n"));
      timer = setInterval(() => controller.enqueue(new TextEncoder().encode("data: tick\n\n")), 20);
    },
    cancel() {
      clearInterval(timer);
      state.cancelled++;
    },
  });
}

function endless(): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>({
    pull(controller) {
      state.produced += chunk.length;
      controller.enqueue(chunk);
    },
    cancel() {
      state.cancelled++;
    },
  });
}

/** As large as no socket takes at once, and then it breaks, while the client may not have taken a thing. */
function breaking(): ReadableStream<Uint8Array> {
  let pieces = 0;
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      if (pieces++ < 2) return controller.enqueue(new Uint8Array(8 * 1024 * 1024));
      await new Promise((resolve) => setImmediate(resolve));
      state.broken++;
      controller.error(new Error("broken"));
    },
  });
}

/** Each piece of the pushed stream is filled with its own number. */
export const pushedPieces = 200;

/** As much at once as the client takes, until it is whole. */
function pushed(): ReadableStream<Uint8Array> {
  let sink: Sink | null = null;
  let piece = 0;
  const push = (): void => {
    for (let goesOn = true; goesOn && piece < pushedPieces;) {
      state.produced += chunk.length;
      goesOn = sink?.write(new Uint8Array(chunk.length).fill(piece++)) ?? false;
    }
    if (piece === pushedPieces) sink?.end();
  };
  return (openStream ?? webStream)({
    open: (given) => {
      sink = given;
      push();
    },
    drained: push,
    gone: () => state.cancelled++,
  });
}

export async function handle(
  request: Request,
  info: { readonly remoteAddress?: string | undefined },
): Promise<Response> {
  const { pathname, search } = new URL(request.url);
  switch (pathname) {
    case "/echo":
      return Response.json(
        {
          method: request.method,
          // As the gateway takes it.
          path: /^http:\/\/[^/]+([^?]*)/.exec(request.url)?.[1],
          search,
          header: request.headers.get("x-test"),
          body: await request.text(),
          remoteAddress: info.remoteAddress,
        },
        { status: 201, headers: { "x-answer": "yes" } },
      );
    case "/count": {
      let bytes = 0;
      const reader = request.body?.getReader();
      for (;;) {
        const part = await reader?.read();
        if (part === undefined || part.done) break;
        bytes += part.value.length;
      }
      return Response.json({ bytes });
    }
    case "/early":
      return new Response("too large", { status: 413 });
    case "/ticking":
      return new Response(ticking(), { headers: { "content-type": "text/event-stream" } });
    case "/endless":
      return new Response(endless());
    case "/breaking":
      return new Response(breaking());
    case "/pushed":
      return new Response(pushed());
    case "/state":
      return Response.json({ ...state, runtime: runtime.name });
    case "/empty":
      return new Response(null, { status: 204 });
    case "/boom":
      throw new Error("secret");
    default:
      return new Response("no", { status: 404 });
  }
}

export async function start(): Promise<{
  readonly url: string;
  readonly port: number;
  readonly occupied: string;
  stop(gracefulMs: number): Promise<void>;
}> {
  const server = await serve(handle, { host: "127.0.0.1", port: 0 });
  const occupied = await serve(handle, { host: "127.0.0.1", port: server.port }).then(
    () => "not refused",
    (error: unknown) => String(error),
  );
  return { ...server, occupied };
}

if (process.argv[2] === "serve") {
  const server = await start();
  process.stdout.write(
    `${JSON.stringify({ url: server.url, port: server.port, occupied: server.occupied })}\n`,
  );
  onStopSignal((signal) => {
    void server.stop(200).then(() => {
      process.stdout.write(`stopped by ${signal}\n`, () => process.exit(0));
    });
  });
}
