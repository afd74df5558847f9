import { spawn } from "node:child_process";
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { connect, nkeys } from "nats";
import { describe, expect, test } from "vitest";
import type { NatsServer } from "../../infra/nats_server.mjs";
import { startNatsServer } from "../../infra/nats_server.mjs";
import { lanes } from "../../src/host/ports.ts";
import { FrameEncoder } from "../../src/transport/envelope.ts";
import type { NatsOptions, NatsStatus } from "../../src/transport/nats.ts";
import { NatsTransport, shorten, TransportError } from "../../src/transport/nats.ts";
import type { Heard } from "./contract.ts";
import { bytesOf, listen, textOf, transportContract } from "./contract.ts";
import { until } from "./until.ts";

/** Servers and nodes of one test, ended with it: nodes first. */
class World {
  readonly #endings: (() => Promise<void>)[] = [];

  async server(options?: Parameters<typeof startNatsServer>[0]): Promise<NatsServer> {
    const server = await startNatsServer(options);
    this.#endings.unshift(() => server.stop());
    return server;
  }

  node(
    server: NatsServer | string,
    node: string,
    more: Partial<NatsOptions> = {},
  ): { transport: NatsTransport; statuses: NatsStatus[] } {
    const statuses: NatsStatus[] = [];
    const transport = new NatsTransport({
      cluster: "acme",
      node,
      boot: 1,
      servers: [typeof server === "string" ? server : server.url],
      onStatus: (status) => statuses.push(status),
      ...more,
    });
    this.#endings.unshift(() => transport.close());
    return { transport, statuses };
  }

  async started(
    server: NatsServer | string,
    name: string,
    more: Partial<NatsOptions> = {},
  ): Promise<{ transport: NatsTransport; statuses: NatsStatus[]; heard: Heard[] }> {
    const { transport, statuses } = this.node(server, name, more);
    const { heard } = await listen(transport);
    return { transport, statuses, heard };
  }

  onEnd(ending: () => Promise<void>): void {
    this.#endings.unshift(ending);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const end of this.#endings) await end();
  }
}

transportContract("NatsTransport", async () => {
  const world = new World();
  const server = await world.server();
  return {
    join: (identity) => world.node(server, identity.node, identity).transport,
    [Symbol.asyncDispose]: () => world[Symbol.asyncDispose](),
  };
});

describe("NatsTransport against frames nobody of the cluster would send", () => {
  test("drops and counts them, and goes on", async () => {
    await using world = new World();
    const server = await world.server();
    const b = await world.started(server, "b");
    const raw = await connect({ servers: server.url });
    const frame = (cluster: string, node: string): Uint8Array => {
      let made: Uint8Array = new Uint8Array(0);
      new FrameEncoder({ cluster, node, boot: 1 }).encode("rpc", bytesOf("x"), (f) => (made = f));
      return made;
    };
    const version2 = frame("acme", "a");
    version2[3] = 2;
    raw.publish("cfx.acme.b.a.rpc", bytesOf("not a frame at all"));
    raw.publish("cfx.acme.b.a.rpc");
    raw.publish("cfx.acme.b.a.rpc", version2);
    raw.publish("cfx.acme.b.a.rpc", frame("other", "a"));
    raw.publish("cfx.acme.b.a.rpc", frame("acme", "c"));
    raw.publish("cfx.acme.b.a.append", frame("acme", "a"));
    raw.publish("cfx.acme.b.a.rpc", frame("acme", "a"));
    await raw.flush();
    await raw.close();
    await until(() => b.heard.length === 1, "the one good frame");
    await until(() => b.transport.stats.framesIn === 7, "all frames");
    expect(b.transport.stats.dropped).toMatchObject({
      malformed: 2,
      "unknown-version": 1,
      "foreign-cluster": 1,
      "wrong-address": 2,
    });
  });
});

describe("NatsTransport when the server goes away", () => {
  test("send() says false until it is back, and nothing from before arrives late", async () => {
    await using world = new World();
    const server = await world.server();
    const a = await world.started(server, "a");
    const b = await world.started(server, "b");
    a.transport.send("b", "append", bytesOf("before"));
    await until(() => b.heard.length === 1, "the message before");

    await server.kill();
    // Until the loss is noticed messages are taken, and are lost.
    await until(() => {
      a.transport.send("b", "append", bytesOf("lost"));
      return !a.transport.connected;
    }, "a notices");
    await until(
      () => a.statuses.filter((s) => s.type === "disconnected").length === 2,
      "both links",
    );
    for (const lane of lanes)
      expect(a.transport.send("b", lane, bytesOf("while it is away"))).toBe(false);

    await world.server({ port: server.port });
    await until(() => a.transport.connected && b.transport.connected, "both are back");
    for (const lane of lanes) expect(a.transport.send("b", lane, bytesOf("after"))).toBe(true);
    await until(() => b.heard.length >= 1 + lanes.length, "the messages after");
    expect(b.heard.map((h) => textOf(h.bytes))).toEqual(["before", ...lanes.map(() => "after")]);
    expect(a.transport.stats.reconnects).toBe(2);
    expect(a.statuses.map((s) => s.type).filter((type) => type !== "unreachable")).toEqual([
      "connected",
      "connected",
      "disconnected",
      "disconnected",
      "connected",
      "connected",
    ]);
    // Tried many times meanwhile, told once per link.
    expect(a.statuses.filter((s) => s.type === "unreachable").length).toBeLessThanOrEqual(2);
  }, 20_000);

  test("a server that is there but silent is given up after unanswered pings, under load too", async () => {
    await using world = new World();
    const server = await world.server();
    const a = await world.started(server, "a", { pingIntervalMs: 100 });
    const b = await world.started(server, "b", { pingIntervalMs: 100 });
    const chunk = new Uint8Array(440 * 1024);
    server.signal("SIGSTOP");
    // Fills the kernel's buffers, so that the library's own goodbye to the socket would wait for ever.
    while (a.transport.send("b", "append", chunk));
    await until(() => !a.transport.connected, "a gives it up");
    await until(() => a.statuses.some((s) => s.detail === "pings were not answered"), "the reason");
    expect(a.transport.send("b", "append", chunk)).toBe(false);
    server.signal("SIGCONT");
    await until(() => a.transport.connected && b.transport.connected, "both are back");
    expect(a.transport.send("b", "control", bytesOf("after"))).toBe(true);
    await until(() => b.heard.some((h) => textOf(h.bytes) === "after"), "the message after");
  }, 20_000);

  test("start() takes a server that comes up a little later", async () => {
    await using world = new World();
    const gone = await startNatsServer();
    await gone.kill();
    const a = world.node(gone.url, "a");
    const started = listen(a.transport);
    await until(() => a.statuses.some((s) => s.type === "unreachable"), "a vain attempt");
    await world.server({ port: gone.port });
    await started;
    expect(a.transport.connected).toBe(true);
    expect(a.transport.stats.reconnects).toBe(0);
  });

  test("of several servers a living one is taken, quickly", async () => {
    await using world = new World();
    // Takes connections, and never says a word.
    const silent = await fakeServer(world, () => {});
    const gone = await startNatsServer();
    await gone.kill();
    const server = await world.server();
    const servers = [silent, gone.url, server.url];
    for (let i = 0; i < 5; i++) {
      const { transport } = world.node(server, `a${i}`, { servers, startTimeoutMs: 1500 });
      await transport.start(() => {});
      expect(transport.connected).toBe(true);
    }
  });

  test("of a NATS cluster that loses a server the nodes move to another, and hear each other", async () => {
    await using world = new World();
    const ports = await Promise.all([freePort(), freePort()]);
    const config = (own: number): string => `cluster {
      name: fleet
      listen: "127.0.0.1:${ports[own]}"
      routes: [${ports.map((port) => `"nats://127.0.0.1:${port}"`).join(", ")}]
    }`;
    const first = await world.server({ config: config(0) });
    const second = await world.server({ config: config(1) });
    const a = await world.started(first, "a", { servers: [first.url, second.url] });
    const b = await world.started(second, "b");
    await until(() => {
      a.transport.send("b", "control", bytesOf("hello"));
      return b.heard.length > 0;
    }, "the route between the servers");
    await first.kill();
    await until(() => {
      a.transport.send("b", "control", bytesOf("moved"));
      return b.heard.some((h) => textOf(h.bytes) === "moved" && a.transport.connected);
    }, "a message by way of the second");
  }, 20_000);
});

describe("NatsTransport's send window", () => {
  const windowBytes = {
    control: 512 * 1024,
    append: 256 * 1024,
    rpc: 128 * 1024,
    snapshot: 65_536,
  };

  test("is bounded while the server does not read, and opens again", async () => {
    await using world = new World();
    const server = await world.server();
    const more = { windowBytes, pingIntervalMs: 60_000 };
    const a = await world.started(server, "a", more);
    const b = await world.started(server, "b", more);
    server.signal("SIGSTOP");
    const chunk = new Uint8Array(16 * 1024);
    const taken: Record<string, number> = {};
    // Snapshots are refused first, log entries last; control has a connection of its own.
    for (const lane of ["snapshot", "rpc", "append", "control"] as const) {
      taken[lane] = 0;
      while (a.transport.send("b", lane, chunk)) taken[lane]++;
    }
    expect(taken).toEqual({ snapshot: 4, rpc: 4, append: 8, control: 32 });
    expect(a.transport.stats.refused.window).toBe(4);
    for (const lane of lanes) expect(a.transport.send("b", lane, chunk)).toBe(false);

    server.signal("SIGCONT");
    await until(() => b.heard.length === 48, "all that was taken");
    await until(() => lanes.every((lane) => a.transport.send("b", lane, chunk)), "all lanes open");
    expect(a.transport.stats.reconnects).toBe(0);
  }, 20_000);

  test("lets a stream pass at full speed", async () => {
    await using world = new World();
    const server = await world.server();
    const a = await world.started(server, "a", { windowBytes });
    const b = await world.started(server, "b", { windowBytes });
    const chunk = new Uint8Array(40_000);
    for (let i = 0; i < 500; i++)
      await until(() => a.transport.send("b", "snapshot", chunk), `chunk ${i} is taken`);
    await until(() => b.heard.length === 500, "all chunks");
    expect(a.transport.stats.refused.window).toBeGreaterThan(0);
  }, 20_000);
});

describe("NatsTransport.start() refuses, saying what to do,", () => {
  async function startError(transport: NatsTransport): Promise<TransportError> {
    const error: unknown = await transport
      .start(() => {})
      .then(
        () => null,
        (e: unknown) => e,
      );
    expect(error).toBeInstanceOf(TransportError);
    expect(transport.connected).toBe(false);
    return error as TransportError;
  }

  test("a max_payload that is too small", async () => {
    await using world = new World();
    const server = await world.server({ config: "max_payload: 262144" });
    const { code, message } = await startError(world.node(server, "a").transport);
    expect(code).toBe("payload-too-small");
    expect(message).toBe(
      `Cannot use NATS at ${server.url}: max_payload is 262144 bytes; ` +
        "set it to 524288 at least, its default is 1048576",
    );
  });

  test("a server that is not there", async () => {
    await using world = new World();
    const gone = await startNatsServer();
    await gone.kill();
    const server = `nats://me:secret123@127.0.0.1:${gone.port}`;
    const a = world.node(server, "a", { startTimeoutMs: 300 });
    const { code, message } = await startError(a.transport);
    expect(code).toBe("unreachable");
    expect(message).toContain(`Cannot reach NATS at nats://127.0.0.1:${gone.port} within 300 ms: `);
    expect(message).toContain("ECONNREFUSED");
    expect(message).toContain("CONFLUX_NATS");
    expect(JSON.stringify([message, a.statuses])).not.toContain("secret123");
  });

  test("what is not a NATS server, or says nothing", async () => {
    await using world = new World();
    const web = await fakeServer(world, (socket) =>
      socket.write("HTTP/1.1 400 Bad Request\r\n\r\n"),
    );
    const silent = await fakeServer(world, () => {});
    const more = { startTimeoutMs: 300 };
    expect((await startError(world.node(web, "a", more).transport)).message).toContain(
      "it is not a NATS server",
    );
    expect((await startError(world.node(silent, "a", more).transport)).message).toContain(
      "no answer within 300 ms",
    );
  });

  test("a wrong password, at once and without printing it", async () => {
    await using world = new World();
    const config = "authorization { user: conflux, password: correct }";
    const server = await world.server({ config });
    const url = (password: string): string => `nats://conflux:${password}@127.0.0.1:${server.port}`;
    const { code, message } = await startError(world.node(url("secret123"), "a").transport);
    expect(code).toBe("refused");
    expect(message).toMatch(/Authorization Violation/i);
    expect(message).not.toContain("secret123");
    await world.started(url("correct"), "a");
    const auth = { user: "conflux", password: "correct" };
    await world.started(server, "b", { auth });
  });

  test("a token or key that is wrong", async () => {
    await using world = new World();
    const server = await world.server({ config: 'authorization { token: "t0ken" }' });
    const { code } = await startError(world.node(server, "a", { auth: { token: "x" } }).transport);
    expect(code).toBe("refused");
    await world.started(server, "a", { auth: { token: "t0ken" } });
    await world.started(`nats://t0ken@127.0.0.1:${server.port}`, "b");
    expect(() => world.node(server, "c", { auth: { nkeySeed: "SUnonsense" } })).toThrow(
      "Cannot use the NATS nkey seed",
    );
  });

  test("servers that cannot be meant", async () => {
    const servers = (...list: string[]) =>
      new NatsTransport({ cluster: "acme", node: "a", boot: 1, servers: list });
    expect(() => servers()).toThrow("no server is given");
    expect(() => servers("http://me:secret123@h")).toThrow('Cannot use NATS URL "http://h"');
    expect(() => servers("nats://me:secret123@h:99999")).toThrow(
      'Cannot use NATS URL "nats://h:99999"',
    );
    expect(() => servers("nats://a:1@h", "nats://b:2@i")).toThrow("their credentials differ");
  });
});

describe("NatsTransport under permissions", () => {
  /** A server where every node has a key that allows its own subjects only. */
  async function guarded(world: World, names: readonly string[]) {
    const keys = new Map(names.map((name) => [name, nkeys.createUser()]));
    const users = names.map(
      (name) => `{
        nkey: ${keys.get(name)?.getPublicKey()}
        permissions { publish: "cfx.acme.*.${name}.*", subscribe: "cfx.acme.${name}.>" }
      }`,
    );
    const server = await world.server({ config: `authorization { users: [${users.join(",")}] }` });
    const auth = (name: string) => ({
      nkeySeed: textOf(keys.get(name)?.getSeed() as Uint8Array),
    });
    return { server, auth };
  }

  test("nodes with keys of their own hear each other", async () => {
    await using world = new World();
    const { server, auth } = await guarded(world, ["a", "b"]);
    const a = await world.started(server, "a", { auth: auth("a") });
    const b = await world.started(server, "b", { auth: auth("b") });
    for (const lane of lanes) a.transport.send("b", lane, bytesOf("x"));
    await until(() => b.heard.length === lanes.length, "all lanes");
  });

  test("start() is refused to a node that is not the key's", async () => {
    await using world = new World();
    const { server, auth } = await guarded(world, ["a", "b"]);
    const { transport } = world.node(server, "b", { auth: auth("a") });
    await expect(transport.start(() => {})).rejects.toThrow(/Permissions Violation/);
  });

  test("a refused publication is reported, and the connection stays", async () => {
    await using world = new World();
    const keys = nkeys.createUser();
    const server = await world.server({
      config: `authorization { users: [{
        nkey: ${keys.getPublicKey()}
        permissions { publish: "cfx.acme.b.a.*", subscribe: "cfx.acme.a.>" }
      }]}`,
    });
    const auth = { nkeySeed: textOf(keys.getSeed()) };
    const a = await world.started(server, "a", { auth });
    a.transport.send("c", "append", bytesOf("x"));
    await until(() => a.statuses.some((s) => s.type === "server-error"), "the report");
    expect(a.statuses.find((s) => s.type === "server-error")).toEqual({
      type: "server-error",
      link: "bulk",
      detail: "PERMISSIONS_VIOLATION: publish to cfx.acme.c.a.append",
    });
    expect(a.transport.connected).toBe(true);
  });
});

describe("NatsTransport when the server cuts it", () => {
  test("reports the reason and connects again", async () => {
    await using world = new World();
    const sockets: Socket[] = [];
    const url = await fakeServer(world, (socket) => {
      socket.write('INFO {"server_id":"x","version":"2.9.10","proto":1,"max_payload":1048576}\r\n');
      socket.on("data", (data) => {
        for (const ping of data.toString().match(/PING\r\n/g) ?? []) {
          socket.write(ping.replace("I", "O"));
          sockets.push(socket);
        }
      });
    });
    const a = await world.started(url, "a");
    for (const socket of new Set(sockets.splice(0))) socket.end("-ERR 'Slow Consumer'\r\n");
    await until(() => a.transport.stats.reconnects === 2, "both connections again");
    expect(a.statuses.filter((s) => s.type === "disconnected").map((s) => s.detail)).toEqual([
      "Slow Consumer",
      "Slow Consumer",
    ]);
  });
});

describe("the library's ways to its socket", () => {
  test("are those that are cut short, and messages go both ways after it", async () => {
    await using world = new World();
    const { url } = await world.server();
    const connection = await connect({ servers: url, reconnect: false });
    world.onEnd(() => connection.close());
    // An update of the library that looks different inside must not pass unnoticed: it would only be slower.
    expect(shorten(connection)).toBe(true);
    const heard: string[] = [];
    connection.subscribe("here", {
      callback: (_error, message) => heard.push(textOf(message.data)),
    });
    for (const text of ["one", "x".repeat(600_000), "two"])
      connection.publish("here", bytesOf(text));
    await connection.flush();
    expect(heard.map(({ length }) => length)).toEqual([3, 600_000, 3]);
    await connection.close();
  });

  test("end the connection when what comes is no NATS", async () => {
    await using world = new World();
    const sockets = new Set<Socket>();
    const url = await fakeServer(world, (socket) => {
      socket.write('INFO {"server_id":"x","version":"2.9.10","proto":1,"max_payload":1048576}\r\n');
      socket.on("data", (data) => {
        for (const ping of data.toString().match(/PING\r\n/g) ?? []) {
          socket.write(ping.replace("I", "O"));
          sockets.add(socket);
        }
      });
    });
    const a = await world.started(url, "a");
    for (const socket of sockets) socket.write("HTTP/1.1 200 OK\r\n\r\n");
    await until(() => a.transport.stats.reconnects === 2, "both connections again");
  });
});

describe("NatsTransport.close()", () => {
  test("lets what was sent before reach its peer", async () => {
    await using world = new World();
    const server = await world.server();
    const a = await world.started(server, "a");
    const b = await world.started(server, "b");
    for (let i = 0; i < 100; i++) a.transport.send("b", "append", new Uint8Array(40_000));
    await a.transport.close();
    await until(() => b.heard.length === 100, "everything sent");
  });

  test("ends soon with a server that does not answer", async () => {
    await using world = new World();
    const server = await world.server();
    const a = await world.started(server, "a");
    server.signal("SIGSTOP");
    await a.transport.close();
    server.signal("SIGCONT");
  });

  test("ends a start under way", async () => {
    await using world = new World();
    const silent = await fakeServer(world, () => {});
    const { transport } = world.node(silent, "a");
    const started = transport
      .start(() => {})
      .then(
        () => null,
        (error: unknown) => error,
      );
    await transport.close();
    expect(await started).toMatchObject({ name: "TransportError", code: "closed" });
  });
});

describe("NatsTransport on every runtime", () => {
  test("Node, Bun and Deno understand each other", async () => {
    await using world = new World();
    const server = await world.server();
    const bin = (name: string): string =>
      fileURLToPath(new URL(`../../node_modules/.bin/${name}`, import.meta.url));
    const script = fileURLToPath(new URL("talk.ts", import.meta.url));
    const runtimes = {
      node: [bin("node"), "--disable-warning=ExperimentalWarning"],
      bun: [bin("bun")],
      deno: [bin("deno"), "run", "-A"],
    };
    const names = Object.keys(runtimes);
    const talks = Object.entries(runtimes).map(([name, [command = "", ...args]]) => {
      const peers = names.filter((peer) => peer !== name);
      const child = spawn(command, [...args, script, server.url, name, ...peers], {
        stdio: ["pipe", "pipe", "inherit"],
      });
      const talk = { name, output: "", code: null as number | null, end: () => child.stdin.end() };
      child.stdout.on("data", (data: Buffer) => (talk.output += data.toString()));
      child.once("close", (code) => (talk.code = code ?? -1));
      world.onEnd(async () => {
        child.kill("SIGKILL");
      });
      return talk;
    });
    await until(() => talks.every((t) => t.output === "done\n"), "all have talked", 30_000);
    for (const talk of talks) talk.end();
    await until(() => talks.every((t) => t.code !== null), "all have ended");
    expect(talks.map((t) => [t.name, t.code])).toEqual(names.map((name) => [name, 0]));
  }, 45_000);
});

describe("startNatsServer()", () => {
  test("says why a server did not come up", async () => {
    await using world = new World();
    const server = await world.server();
    await expect(startNatsServer({ port: server.port })).rejects.toThrow(/address already in use/);
    await expect(startNatsServer({ config: "nonsense {" })).rejects.toThrow(/it ended at once/);
  });

  test("the server ends when the process that started it is killed", async () => {
    const launcher = new URL("../../infra/nats_server.mjs", import.meta.url).href;
    const code = `import { startNatsServer } from ${JSON.stringify(launcher)};
      console.log((await startNatsServer()).pid);
      setInterval(() => {}, 1000);`;
    const node = fileURLToPath(new URL("../../node_modules/.bin/node", import.meta.url));
    const parent = spawn(node, ["--input-type=module", "-e", code], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    let output = "";
    parent.stdout.on("data", (data: Buffer) => (output += data.toString()));
    await until(() => output.endsWith("\n"), "the server's pid");
    const pid = Number(output);
    expect(isAlive(pid)).toBe(true);
    parent.kill("SIGKILL");
    await until(() => !isAlive(pid), "the server's end");
  });
});

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function listening(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

/** For what must know its port before it starts. */
async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listening(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Something that is no nats-server, or a strange one. */
async function fakeServer(world: World, onSocket: (socket: Socket) => void): Promise<string> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    onSocket(socket);
  });
  world.onEnd(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `nats://127.0.0.1:${await listening(server)}`;
}
