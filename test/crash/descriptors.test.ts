/** Connections that have all descriptors of a real node: it goes on, for those that were connected before. */
import * as fs from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { ask } from "../e2e/api.ts";
import { NodeProcess, rootToken } from "./node_process.ts";

const descriptors = 160;
const tenants = Array.from({ length: 8 }, (_, n) => `t${n}`);

async function connected(url: URL): Promise<Socket> {
  const socket = connect(Number(url.port), url.hostname);
  socket.on("error", () => {});
  await new Promise<void>((resolve) => socket.on("connect", () => resolve()));
  return socket;
}

/** @returns the status line of the answer, or what came instead of one */
function say(socket: Socket, method: string, path: string, body = ""): Promise<string> {
  return new Promise((resolve) => {
    if (socket.destroyed) return resolve("ended before");
    setTimeout(() => resolve("no answer"), 15_000).unref();
    socket.once("data", (data) => resolve(data.toString().split("\r\n", 1)[0] as string));
    socket.once("close", () => resolve("ended"));
    socket.write(
      `${method} ${path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${rootToken}\r\n` +
        `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
  });
}

// Where the system does not tell what a process holds nobody knows when they are gone.
test.skipIf(!fs.existsSync("/proc/self/fd"))(
  "a node without a descriptor left for sockets reads and writes tenants that slept, and does not end",
  async () => {
    const base = fs.mkdtempSync(join(tmpdir(), "conflux-descriptors-"));
    const data = join(base, "data");
    const limited = ["bash", "-c", `ulimit -n ${descriptors}; exec "$@"`, "limited"];
    const nodes: NodeProcess[] = [];
    const sockets: Socket[] = [];
    const start = (under: readonly string[]): NodeProcess => {
      const node = new NodeProcess({ data, under });
      nodes.push(node);
      return node;
    };
    onTestFinished(async () => {
      for (const socket of sockets) socket.destroy();
      for (const node of nodes) await node.kill();
      fs.rmSync(base, { recursive: true, force: true });
    });
    const first = start([]);
    const url = await first.url;
    for (const id of tenants) {
      await ask(`${url}/v1/tenants`, { token: rootToken, body: { id } });
      const path = `${url}/v1/tenants/${id}/namespaces/default/configs/c`;
      await ask(path, { token: rootToken, method: "PUT", body: { format: "text" } });
      await ask(`${path}/publish`, { token: rootToken, body: { content: "x" } });
    }
    expect(await first.kill("SIGTERM")).toBe(0);

    const node = start(limited);
    const at = new URL(await node.url);
    const early = await Promise.all(tenants.map(() => connected(at)));
    sockets.push(...early);
    for (let n = 0; n < descriptors; n++) sockets.push(await connected(at));
    const held = (): number => fs.readdirSync(`/proc/${node.pid}/fd`).length;
    for (let n = 0; n < 500 && held() < descriptors; n++) {
      await sleep(20);
      // A connection that says nothing for ten seconds is closed.
      if (n % 100 === 0) for (const socket of early) await say(socket, "GET", "/livez");
    }
    expect(held()).toBeGreaterThanOrEqual(descriptors);
    for (const [n, id] of tenants.entries()) {
      const path = `/v1/tenants/${id}/namespaces/default`;
      const socket = early[n] as Socket;
      expect(await say(socket, "GET", `${path}/values/c`)).toBe("HTTP/1.1 200 OK");
      const body = JSON.stringify({ content: "y" });
      expect(await say(socket, "POST", `${path}/configs/c/publish`, body)).toContain("201");
    }
    // All is checkpointed at the end, and nothing was stopped by a fault.
    expect(await node.kill("SIGTERM")).toBe(0);
    expect(node.errors).toBe("");
  },
  60_000,
);
