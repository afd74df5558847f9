/** What the end-to-end tests share: requests, event streams, retries as a careful client would make them, the command. */
import { execFile } from "node:child_process";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";

const root = path.resolve(import.meta.dirname, "../..");

/** The command as operators run it, in a process of its own. */
export function conflux(
  words: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<{ readonly code: number; readonly out: string; readonly err: string }> {
  return new Promise((resolve) => {
    execFile(
      path.join(root, "node_modules/.bin/bun"),
      [path.join(root, "src/cli/conflux.ts"), ...words],
      { encoding: "utf8", env: { ...process.env, ...env }, maxBuffer: 64 * 1024 * 1024 },
      (error, out, err) => resolve({ code: Number(error?.code ?? 0), out, err }),
    );
  });
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  // Answers are JSON of many shapes; each test checks the ones it reads.
  // oxlint-disable-next-line typescript/no-explicit-any
  readonly body: any;
}

export interface Ask {
  readonly method?: string;
  readonly token?: string;
  readonly body?: unknown;
  readonly headers?: Record<string, string>;
  readonly timeoutMs?: number;
}

/** One request; JSON or text back. Throws when nobody answers. */
export async function ask(url: string, options: Ask = {}): Promise<Answer> {
  const response = await fetch(url, {
    method: options.method ?? (options.body === undefined ? "GET" : "POST"),
    headers: {
      ...(options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }),
      ...(options.body === undefined ? {} : { "content-type": "application/json" }),
      ...options.headers,
    },
    ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
    signal: AbortSignal.timeout(options.timeoutMs ?? 15_000),
  });
  const text = await response.text();
  const json = (response.headers.get("content-type") ?? "").includes("json");
  return {
    status: response.status,
    headers: response.headers,
    body: json ? JSON.parse(text) : text,
  };
}

/** Repeats until the answer is neither a fault of the moment nor a broken connection, going round the nodes. */
export async function persist(
  urls: readonly string[],
  path: string,
  options: Ask,
  deadlineMs = 60_000,
): Promise<Answer & { readonly tries: number }> {
  const end = Date.now() + deadlineMs;
  let last = "";
  for (let tries = 1; Date.now() < end; tries++) {
    const url = urls[tries % urls.length] as string;
    try {
      const answer = await ask(url + path, { timeoutMs: 6_000, ...options });
      if (![429, 502, 503, 504].includes(answer.status)) return { ...answer, tries };
      last = `${answer.status} ${JSON.stringify(answer.body)}`;
    } catch (error) {
      last = String(error);
    }
    await sleep(50);
  }
  throw new Error(`${path} was not answered within ${deadlineMs} ms: ${last}`);
}

/** A new tenant, and a key of kind `client` for it. */
export async function tenantWithClient(
  urls: readonly string[],
  rootToken: string,
  id: string,
): Promise<{ admin: string; client: { readonly id: string; readonly token: string } }> {
  const made = await persist(urls, "/v1/tenants", { token: rootToken, body: { id } });
  if (made.status !== 201) throw new Error(JSON.stringify(made.body));
  const admin = made.body.key.token as string;
  const key = await persist(urls, `/v1/tenants/${id}/keys`, {
    token: admin,
    body: { kind: "client" },
  });
  if (key.status !== 201) throw new Error(JSON.stringify(key.body));
  return { admin, client: key.body };
}

export interface Frame {
  readonly event: string;
  readonly id: string | null;
  // oxlint-disable-next-line typescript/no-explicit-any
  readonly data: any;
}

/** Frames of one event stream until it ends or `signal` aborts. Throws when the connection breaks. */
export async function* frames(
  url: string,
  headers: Record<string, string>,
  signal: AbortSignal,
): AsyncGenerator<Frame> {
  const response = await fetch(url, { headers, signal });
  if (response.status !== 200)
    throw new Error(`${url}: ${response.status} ${await response.text()}`);
  let rest = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    rest += decoder.decode(chunk, { stream: true });
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const block = rest.slice(0, end);
      rest = rest.slice(end + 2);
      const fields = new Map<string, string>();
      for (const line of block.split("\n")) {
        const colon = line.indexOf(":");
        if (colon <= 0) continue;
        const name = line.slice(0, colon);
        const value = line.slice(colon + 1).replace(/^ /, "");
        fields.set(name, fields.has(name) ? `${fields.get(name)}\n${value}` : value);
      }
      if (!fields.has("data")) continue;
      yield {
        event: fields.get("event") ?? "message",
        id: fields.get("id") ?? null,
        data: JSON.parse(fields.get("data") as string),
      };
    }
  }
}

/** Runs `act` on every item, `width` at a time. */
export async function inParallel<T>(
  items: readonly T[],
  width: number,
  act: (item: T) => Promise<void>,
): Promise<void> {
  let next = 0;
  await Promise.all(
    Array.from({ length: width }, async () => {
      for (let index = next++; index < items.length; index = next++) await act(items[index] as T);
    }),
  );
}

/** Polls until it holds; the bound is for a failing test only. */
export async function eventually(
  what: string,
  holds: () => boolean | Promise<boolean>,
  ms = 30_000,
): Promise<void> {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    if (await holds()) return;
    await sleep(25);
  }
  throw new Error(`Did not come true within ${ms} ms: ${what}`);
}

/** All replicas of the tenant have everything that is committed; the node asked leads it or knows who does. */
export async function hasItAll(url: string, tenant: string, token: string): Promise<boolean> {
  const { status, body } = await ask(`${url}/v1/tenants/${tenant}/group`, { token });
  return (
    status === 200 &&
    body.replicas.every(({ match }: { match: number | null }) => (match ?? -1) >= body.commit)
  );
}

/** Follows a tenant over any nodes, resuming with the last cursor, and keeps every commit it was told. */
export class Follower {
  readonly commits: Frame[] = [];
  readonly syncs: Frame[] = [];
  cursor: string | null = null;
  resumes = 0;
  readonly #abort = new AbortController();
  readonly done: Promise<void>;

  constructor(urls: readonly string[], path: string, token: string, start: number) {
    this.done = this.#follow(urls, path, token, start);
  }

  async #follow(
    urls: readonly string[],
    path: string,
    token: string,
    start: number,
  ): Promise<void> {
    for (let turn = start; !this.#abort.signal.aborted; turn++) {
      try {
        const headers: Record<string, string> = { authorization: `Bearer ${token}` };
        if (this.cursor !== null) headers["last-event-id"] = this.cursor;
        for await (const frame of frames(
          `${urls[turn % urls.length]}${path}`,
          headers,
          this.#abort.signal,
        )) {
          if (frame.event === "commit") this.commits.push(frame);
          if (frame.event === "sync") this.syncs.push(frame);
          if (frame.id !== null) this.cursor = frame.id;
        }
      } catch {
        // The node died, or is not up yet: go on elsewhere with the cursor.
      }
      this.resumes += 1;
      if (!this.#abort.signal.aborted) await sleep(20);
    }
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await this.done;
  }
}
