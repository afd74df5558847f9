/**
 * A scripted peer: a TCP server that answers each HTTP request with the bytes a test wants, whole or cut, and may keep
 * silent. It stands for the network and what is in it, not for Conflux.
 */
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";

export interface PeerRequest {
  readonly method: string;
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
}

export type Script = (socket: Socket, request: PeerRequest, number: number) => void;

export class Peer implements AsyncDisposable {
  readonly url: string;
  readonly requests: PeerRequest[] = [];
  readonly #server: Server;
  readonly #sockets: Set<Socket>;

  private constructor(server: Server, sockets: Set<Socket>, port: number) {
    this.#server = server;
    this.#sockets = sockets;
    this.url = `http://127.0.0.1:${port}`;
  }

  static async start(script: Script): Promise<Peer> {
    const sockets = new Set<Socket>();
    let peer: Peer | null = null;
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("close", () => sockets.delete(socket));
      socket.on("error", () => socket.destroy());
      let text = "";
      socket.on("data", (bytes: Buffer) => {
        text += bytes.toString("latin1");
        for (let end = text.indexOf("\r\n\r\n"); end !== -1; end = text.indexOf("\r\n\r\n")) {
          const [first = "", ...lines] = text.slice(0, end).split("\r\n");
          text = text.slice(end + 4);
          const [method = "", url = ""] = first.split(" ");
          const headers = Object.fromEntries(
            lines.map((line) => {
              const colon = line.indexOf(":");
              return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
            }),
          );
          const request = { method, url, headers };
          peer?.requests.push(request);
          script(socket, request, peer?.requests.length ?? 0);
        }
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    if (address === null || typeof address === "string") throw new Error("No port");
    peer = new Peer(server, sockets, address.port);
    return peer;
  }

  /** Cuts all connections. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
  }
}

export const streamHead =
  "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\nconnection: close\r\n\r\n";

/** A whole answer. */
export function answer(
  status: number,
  body: string,
  headers: Readonly<Record<string, string>> = {},
): string {
  const all = {
    "content-length": String(Buffer.byteLength(body)),
    connection: "close",
    ...headers,
  };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `HTTP/1.1 ${status} X\r\n${lines.join("")}\r\n${body}`;
}

export function problem(
  status: number,
  code: string,
  headers: Record<string, string> = {},
): string {
  const body = { type: `x:${code}`, title: code, status, detail: `${code} it is`, code };
  return answer(status, JSON.stringify({ ...body, requestId: "r1" }), {
    "content-type": "application/problem+json",
    ...headers,
  });
}

export interface WireText {
  readonly [name: string]: string | null;
}

let nextVersion = 0;

function value(content: string): Record<string, unknown> {
  nextVersion += 1;
  return { version: nextVersion, hash: `sha256:of ${content}`, format: "json", content };
}

export function sync(cursor: string, values: WireText): string {
  const revision = Number(cursor.split("-")[1]);
  const held = Object.fromEntries(
    Object.entries(values).map(([name, content]) => [name, value(content as string)]),
  );
  return `event: sync\nid: ${cursor}\ndata: ${JSON.stringify({ revision, values: held })}\n\n`;
}

export function commit(cursor: string, values: WireText): string {
  const revision = Number(cursor.split("-")[1]);
  const changes = Object.entries(values).map(([name, content]) =>
    content === null ? { type: "delete", name } : { type: "put", name, ...value(content) },
  );
  return `event: commit\nid: ${cursor}\ndata: ${JSON.stringify({ revision, at: 0, changes })}\n\n`;
}

export function bookmark(cursor: string): string {
  const revision = Number(cursor.split("-")[1]);
  return `event: bookmark\nid: ${cursor}\ndata: ${JSON.stringify({ revision })}\n\n`;
}

export const goodbye = (reason: string): string =>
  `event: goodbye\ndata: ${JSON.stringify({ reason })}\n\n`;

/** The answer to a long poll with the frames of this event stream. */
export function polled(stream: string): string {
  const frames = stream
    .split("\n\n")
    .filter((event) => event !== "")
    .map((event) => {
      const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      return { event: fields["event"], id: fields["id"], data: JSON.parse(fields["data"] ?? "") };
    });
  return answer(200, JSON.stringify({ frames }), {
    "content-type": "application/json; charset=utf-8",
  });
}
