/**
 * A tenant's state as one document, taken at one revision while writing goes on, and its way back.
 *
 * The document is NDJSON: a head, one line per row in order of keys, and an end with the number of rows and the sha256 of
 * every byte before it. It comes as one stream, or in parts that can be asked for again: these also pass through a node
 * without a replica, whose frames are bounded, and survive a lost connection.
 *
 *   {"format":"conflux-backup","version":1,"tenant":…,"epoch":…,"revision":…,"takenAt":…,"directory":{…},"meta":{…}}
 *   ["cfg/default/name",{…}]
 *   {"end":{"rows":12,"sha256":"…"}}
 */
import { createHash, type Hash } from "node:crypto";
import { Problem } from "../api/problems.ts";
import type { ConfigService, TenantSnapshot } from "../host/ports.ts";
import { membersKey, metaKey, tenantKey } from "../machine/keys.ts";
import { restoredMeta } from "../machine/directory.ts";
import type { TenantRow } from "../machine/rows.ts";
import { invalid, noneMatch, time, type Answer, type Call } from "./http.ts";
import type { Peers } from "./peers.ts";
import { wrappedBy, type Secrets } from "./secrets.ts";

/** Being read on this node at once; each holds a view of its tenant. */
const readersMax = 8;
/** A reader that nobody asks for this long ends: its view keeps space of the tenant's environment. */
const idleMsMax = 60_000;
/** What is made within one turn. */
const sliceBytes = 128 * 1024;
const partBytes = 1024 * 1024;

/** Sessions remembered, each with its last part; the oldest are forgotten first. */
const sessionsMax = 64;

const sessionHeader = "conflux-backup-session";
const endHeader = "conflux-backup-end";
export const mediaType = "application/x-ndjson";

const encoder = new TextEncoder();

// --- reading -------------------------------------------------------------------------------------------------------------

/** The document of one snapshot, drawn piece by piece. */
class Reader {
  readonly etag: string;
  readonly #snapshot: TenantSnapshot;
  readonly #head: string;
  readonly #rows: Iterator<readonly [key: string, text: string]>;
  readonly #hash: Hash = createHash("sha256");
  readonly #closed: () => void;
  #begun = false;
  #count = 0;
  ended = false;
  isClosed = false;
  #idle: ReturnType<typeof setTimeout> | undefined;

  constructor(
    snapshot: TenantSnapshot,
    of: { readonly row: TenantRow; readonly wrapped: string; readonly software: string },
    closed: () => void,
  ) {
    const { epoch, revision, meta } = snapshot;
    const { row, wrapped, software } = of;
    this.etag = `"${epoch}-${revision}-${row.revision}${wrapped === "" ? "" : `-${wrapped}`}"`;
    this.#snapshot = snapshot;
    this.#rows = snapshot.rows()[Symbol.iterator]();
    this.#closed = closed;
    this.#head = JSON.stringify({
      format: "conflux-backup",
      version: 1,
      tenant: row.tenant,
      epoch,
      revision,
      etag: this.etag,
      takenAt: time(Date.now()),
      software,
      directory: {
        description: row.description,
        quotas: row.quotas,
        replicas: row.placement.replicas.length,
      },
      meta: restoredMeta(meta),
    });
    this.#touch();
  }

  #touch(): void {
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => this.close(), idleMsMax);
    // A test's process may end before.
    (this.#idle as { unref?: () => void }).unref?.();
  }

  /** At most about a slice; synchronous. */
  #slice(): string {
    const lines: string[] = [];
    let size = 0;
    if (!this.#begun) {
      this.#begun = true;
      lines.push(this.#head, "\n");
    }
    while (size < sliceBytes) {
      const next = this.#rows.next();
      if (next.done === true) {
        this.ended = true;
        break;
      }
      const [key, text] = next.value;
      // What is of the place where it is does not come along; the counters are in the head.
      if (key === metaKey || key === membersKey) continue;
      this.#count += 1;
      size += key.length + text.length;
      lines.push("[", JSON.stringify(key), ",", text, "]\n");
    }
    return lines.join("");
  }

  /** The next piece of about `bytesMax`, made over several turns. Null after the end. @throws Problem when it is closed */
  async next(bytesMax: number): Promise<Uint8Array<ArrayBuffer> | null> {
    if (this.ended) return null;
    const chunks: Uint8Array[] = [];
    let size = 0;
    while (size < bytesMax && !this.ended) {
      if (this.isClosed) throw over();
      const bytes = encoder.encode(this.#slice());
      this.#hash.update(bytes);
      chunks.push(bytes);
      size += bytes.length;
      if (size < bytesMax && !this.ended) await nextTurn();
    }
    if (this.ended) {
      const end = { rows: this.#count, sha256: this.#hash.digest("hex") };
      chunks.push(encoder.encode(`${JSON.stringify({ end })}\n`));
      // The view is of no more use, and others wait for a place.
      this.close();
    } else this.#touch();
    return new Uint8Array(Buffer.concat(chunks));
  }

  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    clearTimeout(this.#idle);
    this.#snapshot.close();
    this.#closed();
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}

function over(): Problem {
  return new Problem("not-found", "This backup is over: begin another one");
}

/** A backup that is taken in parts. The last part is kept, for whoever did not get it. */
interface Session {
  readonly tenant: string;
  readonly reader: Reader;
  part: number;
  bytes: Promise<Uint8Array<ArrayBuffer>>;
}

/** All backups that are being taken through this node. */
export class Backups {
  readonly #service: ConfigService;
  readonly #peers: Peers;
  readonly #secrets: Secrets;
  readonly #software: string;
  readonly #readers = new Set<Reader>();
  #opening = 0;
  readonly #sessions = new Map<string, Session>();

  constructor(service: ConfigService, peers: Peers, secrets: Secrets, software: string) {
    this.#service = service;
    this.#peers = peers;
    this.#secrets = secrets;
    this.#software = software;
  }

  get count(): number {
    return this.#readers.size;
  }

  close(): void {
    for (const reader of this.#readers) reader.close();
    this.#sessions.clear();
  }

  async #open(call: Call): Promise<Reader> {
    if (this.#readers.size + this.#opening >= readersMax)
      throw new Problem("overloaded", `${readersMax} backups are being taken on this node`);
    this.#opening += 1;
    try {
      return await this.#opened(call);
    } finally {
      this.#opening -= 1;
    }
  }

  async #opened(call: Call): Promise<Reader> {
    const tenant = call.params["tenant"] as string;
    const row = await this.#peers.systemRow<TenantRow>(tenantKey(tenant), "stale");
    if (row === undefined) throw new Problem("not-found", `There is no tenant ${tenant}`);
    // Before the snapshot: one that is newer than its tag is taken once more, and never too seldom.
    const wrapped = await this.#service.read(tenant, { consistency: "linearizable" }, (view) =>
      wrappedBy(view, this.#secrets),
    );
    const snapshot = await this.#service.snapshot(tenant);
    call.revision = snapshot.revision;
    const of = { row, wrapped, software: this.#software };
    const reader = new Reader(snapshot, of, () => this.#readers.delete(reader));
    this.#readers.add(reader);
    return reader;
  }

  /** On a node that holds the tenant. */
  async answer(
    call: Call,
    query: { session?: string; part?: number; over?: boolean },
  ): Promise<Answer> {
    if (query.session !== undefined)
      return this.#part(call, query.session, query.over === true ? null : (query.part ?? 0));
    const reader = await this.#open(call);
    const headers: Record<string, string> = {
      "content-type": mediaType,
      "cache-control": "no-store",
      etag: reader.etag,
    };
    const known = call.request.headers.get("if-none-match");
    if (call.head || (known !== null && noneMatch(known, reader.etag))) {
      reader.close();
      return { status: call.head ? 200 : 304, headers, body: null };
    }
    if (query.part === undefined) return { status: 200, headers, body: streamOf(reader) };
    if (query.part !== 0) {
      reader.close();
      throw invalid("Begin with part 0; further parts belong to its session");
    }
    const id = crypto.randomUUID();
    const session: Session = {
      tenant: call.params["tenant"] as string,
      reader,
      part: 0,
      bytes: partOf(reader),
    };
    this.#sessions.set(id, session);
    this.#dropOldest();
    return this.#sessionAnswer(session, `${this.#service.node}.${id}`, headers);
  }

  /** @param part null: no more are wanted, and the view is given back at once */
  async #part(call: Call, name: string, part: number | null): Promise<Answer> {
    const dot = name.lastIndexOf(".");
    const node = name.slice(0, Math.max(0, dot));
    if (node !== this.#service.node) {
      // Whichever node was asked, the view is where it was opened.
      if (call.info.forwardedBy !== undefined || !this.#isNode(node)) throw over();
      return this.#peers.forward(call, [node], null);
    }
    const session = this.#sessions.get(name.slice(dot + 1));
    if (session === undefined || session.tenant !== call.params["tenant"]) throw over();
    if (part === null) {
      session.reader.close();
      this.#sessions.delete(name.slice(dot + 1));
      return { status: 204, headers: {}, body: null };
    }
    if (part === session.part + 1 && !session.reader.ended) {
      await session.bytes;
      // Asked twice at once: the second gets what the first made.
      if (part === session.part + 1) {
        session.part = part;
        session.bytes = partOf(session.reader);
      }
    }
    if (part !== session.part) throw invalid(`Ask for part ${session.part}, or for the next`);
    return this.#sessionAnswer(session, name, {
      "content-type": mediaType,
      "cache-control": "no-store",
    });
  }

  async #sessionAnswer(
    session: Session,
    name: string,
    headers: Record<string, string>,
  ): Promise<Answer> {
    const body = await session.bytes;
    headers[sessionHeader] = name;
    if (session.reader.ended) headers[endHeader] = "true";
    return { status: 200, headers, body };
  }

  #isNode(name: string): boolean {
    return this.#service.cluster().nodes.some((node) => node.name === name && !node.self);
  }

  #dropOldest(): void {
    for (const [id, { reader }] of this.#sessions) {
      // One that was left alone in the middle is over; of one that ended the last part may be asked for again.
      const isOver = reader.isClosed && !reader.ended;
      if (isOver || this.#sessions.size > sessionsMax) {
        reader.close();
        this.#sessions.delete(id);
      }
    }
  }

  /** On a node that does not: part by part, since frames between nodes are bounded. */
  async relay(call: Call, nodes: readonly string[]): Promise<Answer> {
    const target = call.target.split("?", 1)[0] as string;
    const session = call.query.get("session");
    if (session !== null) {
      const node = session.slice(0, Math.max(0, session.lastIndexOf(".")));
      if (!this.#isNode(node)) throw over();
      return this.#peers.forward(call, [node], null);
    }
    if (call.query.has("part")) return this.#peers.forward(call, nodes, null);
    const first = await this.#peers.forward(call, nodes, null, { target: `${target}?part=0` });
    const name = first.headers[sessionHeader];
    if (first.status !== 200 || name === undefined) return first;
    const { [sessionHeader]: _session, [endHeader]: _end, ...headers } = first.headers;
    const node = name.slice(0, name.lastIndexOf("."));
    const ask = (query: string): Promise<Answer> =>
      this.#peers.forward(call, [node], null, {
        target: `${target}?session=${encodeURIComponent(name)}&${query}`,
        without: "if-none-match",
      });
    let answer = first;
    let part = 0;
    const body = new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          if (answer.body instanceof Uint8Array) controller.enqueue(answer.body);
          if (answer.headers[endHeader] !== undefined) return controller.close();
          part += 1;
          answer = await ask(`part=${part}`);
          if (answer.status !== 200) controller.error(new Error("The backup broke off"));
        },
        // The client has gone away: others wait for the place. Where it is not heard, the place is free a minute later.
        cancel: async () => void (await ask("over=true").catch(() => null)),
      },
      { highWaterMark: 0 },
    );
    return { status: 200, headers, body };
  }
}

async function partOf(reader: Reader): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = await reader.next(partBytes);
  return bytes ?? new Uint8Array(0);
}

/** Reads on as the client takes it; a client that goes away closes the view. */
function streamOf(reader: Reader): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const bytes = await reader.next(sliceBytes);
        if (bytes !== null) return controller.enqueue(bytes);
        reader.close();
        controller.close();
      },
      cancel: () => reader.close(),
    },
    { highWaterMark: 0 },
  );
}
