/** One contract, kept by the runtime that runs the tests and by each of the three in a process of its own. */
import { spawn, type ChildProcess } from "node:child_process";
import { connect } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runtime } from "../../src/runtime/runtime.ts";
import { ListenError, serve } from "../../src/runtime/serve.ts";
import { handle, pushedPieces, start } from "./serve_fixture.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const fixture = join(root, "test/runtime/serve_fixture.ts");
const bin = (name: string): string => join(root, "node_modules/.bin", name);

interface Subject {
  readonly url: string;
  readonly port: number;
  readonly occupied: string;
}

const runtimes: readonly [string, readonly string[]][] = [
  ["node", [bin("node"), "--no-warnings", "--experimental-strip-types", fixture, "serve"]],
  ["bun", [bin("bun"), fixture, "serve"]],
  ["deno", [bin("deno"), "run", "--allow-all", "--no-check", fixture, "serve"]],
];

function contract(subject: () => Subject): void {
  const at = (path: string): string => `${subject().url}${path}`;
  const state = async () =>
    (await (await fetch(at("/state"))).json()) as {
      cancelled: number;
      produced: number;
      broken: number;
      runtime: string;
    };
  const until = async (holds: () => Promise<boolean>): Promise<void> => {
    for (let i = 0; i < 200; i++) {
      if (await holds()) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error("It did not happen");
  };

  /** What comes for these bytes, up to the first answer's end. */
  const exchanged = (bytes: string): Promise<string> =>
    new Promise((resolve, reject) => {
      let text = "";
      const socket = connect(subject().port, "127.0.0.1", () => socket.write(bytes));
      socket.on("error", reject);
      socket.on("close", () => resolve(text));
      socket.on("data", (data: Buffer) => {
        text += data.toString();
        const [head = "", body = ""] = text.split("\r\n\r\n", 2);
        const length = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0);
        if (text.includes("\r\n\r\n") && body.length >= length) socket.destroy();
      });
    });

  test("method, headers, query and body come through, and who asked", async () => {
    const response = await fetch(at("/echo?a=%20b"), {
      method: "PUT",
      headers: { "x-test": "v" },
      body: "bödy",
    });
    expect([response.status, response.headers.get("x-answer")]).toEqual([201, "yes"]);
    expect(await response.json()).toEqual({
      method: "PUT",
      path: "/echo",
      search: "?a=%20b",
      header: "v",
      body: "bödy",
      remoteAddress: "127.0.0.1",
    });
  });

  test.each([
    ["HTTP/1.0 without a Host", "GET /echo?a=1 HTTP/1.0\r\n\r\n", 201],
    ["an empty Host", "GET /echo?a=1 HTTP/1.1\r\nHost:\r\n\r\n", 201],
    ["a Host with a path", "GET /empty HTTP/1.1\r\nHost: x/echo?\r\n\r\n", 400],
    ["a Host with a space", "GET /echo HTTP/1.1\r\nHost: x y\r\n\r\n", 400],
    ["no host, two slashes", "GET //x/echo HTTP/1.0\r\n\r\n", 404],
    ["two slashes", "GET //x/echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 404],
    ["no host, dots", "GET /empty/../echo HTTP/1.0\r\n\r\n", 201],
    ["dots", "GET /empty/%2e./echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 201],
  ])("the path is that of the request line: %s", async (_what, head, status) => {
    const text = await exchanged(head);
    expect(Number(/^HTTP\/1\.[01] (\d+)/.exec(text)?.[1])).toBe(status);
    if (status === 201) expect(text).toContain('"path":"/echo"');
  });

  test("an answer that is there at once says how long it is", async () => {
    const { headers } = await fetch(at("/echo"));
    expect(headers.get("transfer-encoding")).toBe(null);
    expect(Number(headers.get("content-length"))).toBeGreaterThan(10);
  });

  test("HEAD and 204 have no body", async () => {
    const head = await fetch(at("/echo"), { method: "HEAD" });
    expect([head.status, head.headers.get("x-answer"), await head.text()]).toEqual([
      201,
      "yes",
      "",
    ]);
    const empty = await fetch(at("/empty"));
    expect([empty.status, await empty.text()]).toEqual([204, ""]);
    await (await fetch(at("/ticking"), { method: "HEAD" })).text();
  });

  test("a body of any length streams in, also without a length announced", async () => {
    const bytes = new Uint8Array(10 * 1024 * 1024);
    const known = await fetch(at("/count"), { method: "POST", body: bytes });
    expect(await known.json()).toEqual({ bytes: bytes.length });
    let left = 100;
    const stream = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (left-- === 0) controller.close();
        else controller.enqueue(new Uint8Array(10_000));
      },
    });
    const chunked = await fetch(at("/count"), {
      method: "POST",
      body: stream,
      duplex: "half",
    } as RequestInit);
    expect(await chunked.json()).toEqual({ bytes: 1_000_000 });
  });

  test("an answer that comes before the body was read arrives", async () => {
    const response = await fetch(at("/early"), { method: "POST", body: new Uint8Array(5_000_000) });
    expect([response.status, await response.text()]).toEqual([413, "too large"]);
  });

  test("the first bytes of a stream leave at once, and a client that goes ends it", async () => {
    const before = (await state()).cancelled;
    const abort = new AbortController();
    const response = await fetch(at("/ticking"), { signal: abort.signal });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    const first = await reader.read();
    expect(new TextDecoder().decode(first.value)).toContain(": hello");
    await reader.read();
    abort.abort();
    await until(async () => (await state()).cancelled > before);
  });

  test("what is pushed arrives whole and in order", async () => {
    const bytes = new Uint8Array(await (await fetch(at("/pushed"))).arrayBuffer());
    expect(bytes.length).toBe(pushedPieces * 64 * 1024);
    for (let at = 0; at < bytes.length; at += 4_096) expect(bytes[at]).toBe(at >> 16);
  });

  for (const path of ["/endless", "/pushed"])
    test(`a client that does not read stops the stream from being made: ${path}`, async () => {
      const before = await state();
      const socket = connect(subject().port, "127.0.0.1");
      socket.on("error", () => {});
      socket.pause();
      socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
      let last = -1;
      await until(async () => {
        const produced = (await state()).produced - before.produced;
        const isSteady = produced === last && produced > 0;
        last = produced;
        return isSteady;
      });
      expect(last).toBeLessThan((pushedPieces * 64 * 1024 * 3) / 4);
      socket.destroy();
      await until(async () => (await state()).cancelled > before.cancelled);
    });

  test("an answer that breaks while a slow client takes it ends that connection alone", async () => {
    const before = await state();
    const socket = connect(subject().port, "127.0.0.1");
    socket.on("error", () => {});
    const closed = new Promise<void>((resolve) => socket.on("close", () => resolve()));
    socket.write("GET /breaking HTTP/1.1\r\nHost: localhost\r\n\r\n");
    socket.pause();
    // The others read on only once it was taken.
    if (before.runtime === "node") await until(async () => (await state()).broken > before.broken);
    socket.resume();
    await closed;
    expect((await fetch(at("/state"))).status).toBe(200);
  });

  test("a handler that fails is a bare 500", async () => {
    const response = await fetch(at("/boom"));
    expect(response.status).toBe(500);
    expect(await response.text()).not.toContain("secret");
  });

  test("garbage on the wire harms nobody", async () => {
    for (const bytes of [
      "\u0000\u0001\u0002\r\n\r\n",
      "GET\r\n\r\n",
      "GET http://[ HTTP/1.1\r\n\r\n",
    ]) {
      await new Promise<void>((resolve) => {
        const socket = connect(subject().port, "127.0.0.1");
        socket.on("error", () => {});
        socket.on("close", () => resolve());
        socket.on("data", () => socket.end());
        socket.write(bytes);
        setTimeout(() => socket.destroy(), 300);
      });
    }
    expect((await fetch(at("/state"))).status).toBe(200);
  });

  test("an occupied port is refused with a line that names the setting", () => {
    expect(subject().occupied).toContain(`CONFLUX_PORT ${subject().port} is already in use`);
  });
}

describe(`serve() here, on ${runtime.name}`, () => {
  let server: Awaited<ReturnType<typeof start>>;
  beforeAll(async () => {
    server = await start();
  });
  afterAll(() => server.stop(0));
  contract(() => server);

  test("a host that is not of this machine is refused", async () => {
    for (const host of ["192.0.2.77", "nobody.invalid"]) {
      const error = await serve(handle, { host, port: 0 }).catch((e: unknown) => e);
      expect(error).toBeInstanceOf(ListenError);
      expect(String(error)).toContain(`CONFLUX_HOST ${host} is not an address`);
    }
  });

  test("stop lets a request under way finish, and cuts what does not end", async () => {
    const own = await start();
    const response = await fetch(`${own.url}/ticking`);
    // The route ticks until it is cut: a stop that waited for its end would not come back.
    await own.stop(100);
    await response.text().catch(() => {});
    await expect(fetch(`${own.url}/state`)).rejects.toThrow();
  });
});

describe.each(runtimes)("serve() on %s", (_name, [command, ...args]) => {
  let child: ChildProcess;
  let subject: Subject;
  let output = "";

  beforeAll(async () => {
    child = spawn(command as string, args, { stdio: ["ignore", "pipe", "pipe"] });
    let errors = "";
    child.stderr?.on("data", (data: Buffer) => (errors += data.toString()));
    const line = await new Promise<string>((resolve, reject) => {
      child.stdout?.on("data", (data: Buffer) => {
        output += data.toString();
        if (output.includes("\n")) resolve(output.split("\n")[0] as string);
      });
      child.on("exit", (code) => reject(new Error(`Exited with ${code}: ${errors}`)));
    });
    subject = JSON.parse(line) as Subject;
  }, 30_000);
  afterAll(() => {
    child.kill("SIGKILL");
  });

  contract(() => subject);

  test("a signal stops it in good order, even with a stream open", async () => {
    const response = await fetch(`${subject.url}/ticking`);
    const code = new Promise((resolve) => child.on("exit", resolve));
    child.kill("SIGTERM");
    expect(await code).toBe(0);
    expect(output).toContain("stopped by SIGTERM");
    await response.text().catch(() => {});
  });
});
