/**
 * The command where something is wrong between it and the nodes, on its own disk, or with who reads it: exit codes,
 * what it says, and what it leaves behind.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { text } from "node:stream/consumers";
import { describe, expect, onTestFinished, test } from "vitest";
import { backup } from "../../src/cli/backup.ts";
import { serve } from "../../src/runtime/serve.ts";
import { Admin } from "../../src/sdk/admin.ts";
import { Harness } from "../gateway/harness.ts";
import { rootToken } from "../gateway/solo_service.ts";
import { Peer, type PeerRequest } from "../sdk/peer.ts";

/** Each test starts several processes. */
const timeoutMs = 60_000;
const root = path.resolve(import.meta.dirname, "../..");
const bun = path.join(root, "node_modules/.bin/bun");
const command = path.join(root, "src/cli/conflux.ts");

interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

interface How {
  readonly url: string;
  readonly token?: string;
  /** Run by a shell as `"$@"`, with what stands around it. */
  readonly shell?: string;
}

function start(words: readonly string[], { url, token = "t", shell }: How): ChildProcess {
  const args = [bun, command, ...words];
  const child = spawn(
    shell === undefined ? bun : "bash",
    shell === undefined ? args.slice(1) : ["-c", shell, "bash", ...args],
    {
      env: { ...process.env, CONFLUX_URL: url, CONFLUX_TOKEN: token, CONFLUX_TENANT: "acme" },
      stdio: ["ignore", "pipe", "pipe"],
    },
  );
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
}

async function ended(child: ChildProcess): Promise<Ran> {
  const code = new Promise<number | null>((resolve) => child.on("close", resolve));
  const [out, err] = await Promise.all([
    text(child.stdout as NodeJS.ReadableStream),
    text(child.stderr as NodeJS.ReadableStream),
  ]);
  return { code: await code, out, err };
}

function run(words: readonly string[], how: How): Promise<Ran> {
  return ended(start(words, how));
}

async function folder(): Promise<string> {
  const made = await mkdtemp(path.join(tmpdir(), "conflux-faults-"));
  onTestFinished(() => rm(made, { recursive: true, force: true }));
  return made;
}

interface World {
  readonly h: Harness;
  readonly url: string;
  /** Requests so far, as `GET /path?query`. */
  readonly asked: string[];
  /** Called with each before it is answered. */
  before: (asked: string) => Promise<void> | void;
}

/** A real gateway with a tenant of several backup parts. */
async function world(bytes = 100_000): Promise<World> {
  const h = new Harness();
  const asked: string[] = [];
  const made: { -readonly [K in keyof World]: World[K] } = { h, url: "", asked, before: () => {} };
  const server = await serve(
    async (request, info) => {
      const { pathname, search } = new URL(request.url);
      const line = `${request.method} ${pathname}${search}`;
      asked.push(line);
      await made.before(line);
      return h.gateway().fetch(request, info);
    },
    { host: "127.0.0.1", port: 0 },
  );
  onTestFinished(async () => {
    h.close();
    await server.stop(0);
  });
  made.url = server.url;
  await h.tenant("acme", { replicas: 1 });
  for (let n = 0; n < 24; n++)
    await h.call("PUT", `/v1/tenants/acme/namespaces/default/configs/c${n}`, {
      body: { format: "text", content: `${n} ${"x".repeat(bytes)}` },
    });
  return made;
}

function reply(socket: Socket, status: string, type: string, body: string, more = ""): void {
  socket.end(
    `HTTP/1.1 ${status}\r\ncontent-type: ${type}\r\n${more}content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}

/** What every verb that speaks with a node is asked to do here; `FOLDER` has a manifest and takes files. */
const verbs: readonly string[] = [
  "get",
  "get a",
  "get a -o json",
  "describe a",
  "history a",
  "eval a",
  "eval a --explain",
  "feedback a",
  "publish a --content x",
  "release a --default 1",
  "rollback a",
  "promote a --from other",
  "delete a",
  "diff -f FOLDER/manifests",
  "apply -f FOLDER/manifests",
  "apply -f FOLDER/manifests --prune",
  "export acme -f FOLDER/out",
  "gen types -f FOLDER/types.d.ts",
  "keys list",
  "keys create --kind read",
  "keys rotate k",
  "keys delete k",
  "audit list",
  "audit export",
  "audit verify",
  "namespaces list",
  "namespaces set x --protect",
  "tenants list",
  "tenants create x",
  "tenants get acme",
  "tenants delete x",
  "secrets rotate",
  "issuers list",
  "cluster status",
  "cluster tenants",
  "cluster upgrade",
  "backup --to FOLDER/backups acme",
];

async function everyVerb(url: string, check: (words: string, ran: Ran) => void): Promise<void> {
  const at = await folder();
  await mkdir(path.join(at, "manifests"));
  await writeFile(
    path.join(at, "manifests/acme.yaml"),
    "tenant: acme\nnamespaces:\n  default:\n    configs:\n      a:\n        format: text\n        variants: { one: { content: hello } }\n        release: { default: one }\n",
  );
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let at_ = next++; at_ < verbs.length; at_ = next++) {
      const words = verbs[at_] as string;
      const ran = await run(words.replaceAll("FOLDER", at).split(" "), { url });
      check(words, ran);
    }
  };
  await Promise.all([worker(), worker(), worker()]);
  // Nothing that would be taken for what was asked for.
  const left = (await readdir(at, { recursive: true })).filter(
    (name) => !name.includes("manifests"),
  );
  expect(left.filter((name) => name !== "backups")).toEqual([]);
}

describe("every verb", () => {
  test(
    "says that JSON of another service is no answer of a node, and never that something was done",
    async () => {
      const peer = await Peer.start((socket) => reply(socket, "200 OK", "application/json", "{}"));
      onTestFinished(() => peer[Symbol.asyncDispose]());
      await everyVerb(peer.url, (words, { code, out, err }) => {
        expect([words, code]).toEqual([words, 1]);
        const told = "is not a Conflux gateway (HTTP 200, application/json)";
        expect([words, err]).toEqual([words, expect.stringContaining(told)]);
        expect(err).not.toContain("may have been made");
        if (!words.startsWith("backup")) expect([words, out]).toEqual([words, ""]);
      });
    },
    timeoutMs,
  );
});

describe("a node that does not answer as it should", () => {
  const config = JSON.stringify({ namespace: "default", name: "a", release: 7, rules: [] });
  const requestId = "x-request-id: r\r\n";

  function admin(url: string | string[]): Admin {
    return new Admin({ url, token: "t", requestMs: 100, totalMs: 1_000 });
  }

  async function peer(script: (socket: Socket, request: PeerRequest, n: number) => void) {
    const made = await Peer.start(script);
    onTestFinished(() => made[Symbol.asyncDispose]());
    return made;
  }

  test("in the middle of an answer is asked again; a change under the same key", async () => {
    for (const cut of ["reset", "silence"]) {
      const bad = await peer((socket, _request, n) => {
        if (n > 2) return reply(socket, "200 OK", "application/json", config, requestId);
        socket.write(
          `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n${requestId}content-length: 999\r\n\r\n{"name`,
        );
        if (cut === "reset") setTimeout(() => socket.resetAndDestroy(), 5);
      });
      const where = { tenant: "acme", namespace: "default" };
      expect(await admin(bad.url).rollback(where, "a")).toMatchObject({ release: 7 });
      const keys = bad.requests.map(({ headers }) => headers["idempotency-key"]);
      expect([keys.length, new Set(keys).size]).toEqual([3, 1]);
    }
  });

  test("leaves open whether a change was made, but not whether one was sent at all", async () => {
    const where = { tenant: "acme", namespace: "default" };
    const deaf = await peer((socket) => socket.resetAndDestroy());
    const failed = (done: Promise<unknown>): Promise<string> =>
      done.then(
        () => "done",
        (error: unknown) => (error as Error).constructor.name,
      );
    expect(await failed(admin(deaf.url).rollback(where, "a"))).toBe("Unanswered");
    expect(await failed(admin(deaf.url).config(where, "a"))).toBe("Unreachable");
    await deaf[Symbol.asyncDispose]();
    expect(await failed(admin(deaf.url).rollback(where, "a"))).toBe("Unreachable");
    // Another service beside a node: the node is asked, and once all were something else it is told at once.
    const page = await peer((socket) => reply(socket, "200 OK", "text/html", "<html>"));
    const node = await peer((socket) =>
      reply(socket, "200 OK", "application/json", config, requestId),
    );
    const both = admin([page.url, node.url]);
    expect(await both.config(where, "a")).toMatchObject({ release: 7 });
    expect(await failed(admin([page.url, page.url]).rollback(where, "a"))).toBe("Foreign");
    expect(page.requests.length).toBe(3);
  });

  test(
    "is told to whoever waits: a proxy's 502, a watch that does not begin",
    async () => {
      const page = await peer((socket) =>
        reply(socket, "502 Bad Gateway", "text/html", "<html>nginx</html>", "retry-after: 60\r\n"),
      );
      const child = start(["watch"], { url: page.url });
      const lines: string[] = [];
      for await (const chunk of child.stderr as AsyncIterable<Buffer>) {
        lines.push(chunk.toString());
        break;
      }
      child.kill("SIGINT");
      expect(lines.join("")).toContain("HTTP 502 of http://127.0.0.1");
      const deaf = await peer((socket) => socket.resetAndDestroy());
      const { code, err } = await run(["rollback", "a"], { url: deaf.url });
      expect([code, err]).toEqual([1, expect.stringContaining("may have been made")]);
    },
    timeoutMs,
  );
});

describe("a backup", () => {
  test(
    "that is stopped gives its place back at once, and leaves nothing",
    async () => {
      for (const [signal, expected] of [
        ["SIGINT", 130],
        ["SIGTERM", 143],
      ] as const) {
        const at = await world();
        const to = path.join(await folder(), "backups");
        let child: ChildProcess | null = null;
        at.before = (asked) => {
          if (!asked.includes("part=1")) return;
          child?.kill(signal);
          // Not answered while it still wants it.
          return new Promise((resolve) => setTimeout(resolve, 300));
        };
        child = start(["backup", "--to", to, "acme", "other"], { url: at.url, token: rootToken });
        const { code, out, err } = await ended(child);
        expect([code, err]).toEqual([expected, expect.stringContaining("Stopped before it was")]);
        expect(out).not.toContain("other");
        expect(at.asked.at(-1)).toContain("over=true");
        expect(at.h.cluster.service("n1").openSnapshots).toBe(0);
        expect(await readdir(to)).toEqual([]);
      }
    },
    timeoutMs,
  );

  test("that is stopped while it begins waits for the name of its session", async () => {
    const at = await world();
    const to = await folder();
    const stop = new AbortController();
    at.before = () => stop.abort();
    const admin = new Admin({ url: at.url, token: rootToken });
    const [state] = await backup(admin, to, ["acme", "other"], () => {}, stop.signal);
    expect(state).toMatchObject({ state: "failed", error: expect.stringContaining("Stopped") });
    expect(at.asked.length).toBe(2);
    expect(at.asked[1]).toContain("over=true");
    expect(at.h.cluster.service("n1").openSnapshots).toBe(0);
  });

  test(
    "that the disk has no room for fails, gives its place back and leaves the one before",
    async () => {
      const at = await world();
      const to = await folder();
      const how = { url: at.url, token: rootToken };
      expect((await run(["backup", "--to", to, "acme"], how)).code).toBe(0);
      const before = await readFile(path.join(to, "acme.ndjson"));
      await at.h.call("PUT", "/v1/tenants/acme/namespaces/default/configs/more", { body: {} });
      // In blocks of 1,024 bytes; the last write before the bound is a short one.
      const shell = `trap '' XFSZ; ulimit -f 1500; exec "$@"`;
      const { code, err } = await run(["backup", "--to", to, "acme"], { ...how, shell });
      expect([code, err]).toEqual([1, expect.stringMatching(/Cannot write .*EFBIG/)]);
      expect(await readdir(to)).toEqual(["acme.ndjson"]);
      expect((await readFile(path.join(to, "acme.ndjson"))).equals(before)).toBe(true);
      expect(at.h.cluster.service("n1").openSnapshots).toBe(0);
    },
    timeoutMs,
  );
});

describe("what is written", () => {
  test(
    "to a full disk is not passed over in silence, and a change is made all the same",
    async () => {
      const { h, url } = await world(10);
      const token = rootToken;
      const full = `"$@" > /dev/full`;
      for (const words of [["get"], ["publish", "c1", "--content", "new"]]) {
        const { code, err } = await run(words, { url, token, shell: full });
        expect([words, code, err]).toEqual([words, 1, expect.stringContaining("ENOSPC")]);
      }
      const value = await h.call("GET", "/v1/tenants/acme/namespaces/default/values/c1");
      expect(value.text).toBe("new");
      const to = await folder();
      await writeFile(path.join(to, "acme.yaml"), "tenant: acme\n");
      await h.call("PUT", "/v1/tenants/acme/namespaces/default/configs/big", {
        body: { format: "text", content: "x".repeat(900_000) },
      });
      const shell = `trap '' XFSZ; ulimit -f 100; exec "$@"`;
      const { code, err } = await run(["export", "acme", "-f", to], { url, token, shell });
      expect([code, err]).toEqual([1, expect.stringContaining(`Cannot write ${to}`)]);
      for (const name of await readdir(to, { recursive: true })) {
        expect(name).not.toContain(".part");
        const isFile = /big/.test(name) && !(await readFile(path.join(to, name)).catch(() => null));
        expect([name, isFile]).toEqual([name, false]);
      }
    },
    timeoutMs,
  );

  test(
    "to who has gone ends what reads, and not what changes",
    async () => {
      const { h, url } = await world(10);
      const shell = `"$@" | true; exit "\${PIPESTATUS[0]}"`;
      const many = Array.from({ length: 3 }, () => ["get", "-o", "json"]);
      for (const words of [...many, ["publish", "c1", "--content", "new"]]) {
        const { code, err } = await run(words, { url, token: rootToken, shell });
        expect([words, code, err]).toEqual([words, 0, ""]);
      }
      const value = await h.call("GET", "/v1/tenants/acme/namespaces/default/values/c1");
      expect(value.text).toBe("new");
    },
    timeoutMs,
  );
});
