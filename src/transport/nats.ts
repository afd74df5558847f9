/**
 * Transport over core NATS, at most once: no JetStream, no queue groups, no requests.
 *
 * A node publishes to `cfx.<cluster>.<to>.<from>.<lane>` and subscribes to `cfx.<cluster>.<node>.*.<lane>`, so subjects
 * grow with nodes, never with tenants, and permissions on the third and fourth token make the sender unforgeable.
 *
 * What the client library does not do, and this room therefore must:
 * - `publish` never fails: while disconnected it drops silently, or keeps bytes and delivers them late. So every loss
 *   ends the library's connection for good and a new one with empty buffers is made here; between the two `send` says no.
 * - It queues without bound before a slow socket. So bytes since the last answered flush are counted and bounded.
 * - Its own way out of a dead but silent socket waits for that socket to take one more write. So it is closed from here.
 * - A dial that timed out leaves its socket behind. So a server is greeted once by a socket of ours before the library
 *   may dial it, several servers in parallel: one that swallows packets costs neither time nor descriptors.
 * - An exception in a subscription's callback ends the reading of its connection. So none gets there.
 * - It takes each chunk from its socket through an async generator and gives each to it with a promise, which for a frame
 *   that comes alone is a fifth of all that a process does for it. So both ways are cut short here, see `shorten`.
 *
 * Control has a connection of its own: a queue of bulk, or the server cutting a slow consumer, never delays liveness.
 */
import { createConnection, type Socket } from "node:net";
import type { Authenticator, ConnectionOptions, NatsConnection, TlsOptions } from "nats";
import { connect, credsAuthenticator, NatsError, nkeyAuthenticator, nkeys } from "nats";
import type { FrameHandler, Lane, Transport } from "../host/ports.ts";
import { assert } from "../lib/assert.ts";
import type { Identity, RefusalReason, TransportStats } from "./envelope.ts";
import {
  assertIdentity,
  FrameEncoder,
  frameBytesMax,
  FrameReceiver,
  isName,
  newStats,
} from "./envelope.ts";

/**
 * Bytes under way on a connection (handed over since the last flush the server answered) at which a lane is refused;
 * the message that crosses the limit is the last one taken, so the bound is this plus 16 MiB. Lanes of one connection
 * share the count: under pressure snapshots stop first, log entries last.
 */
export const windowBytesMax: Readonly<Record<Lane, number>> = {
  control: 8 * 1024 * 1024,
  append: 16 * 1024 * 1024,
  rpc: 8 * 1024 * 1024,
  snapshot: 4 * 1024 * 1024,
};
/** Bytes after which a flush is asked for; fewer are never waited for. */
const probeBytes = 256 * 1024;

/** The server's max_payload must be this at least; NATS's default is 1 MiB. */
export const payloadBytesNeeded = 512 * 1024;

const startMsDefault = 10_000;
/** Two unanswered pings end a connection: a dead one is noticed within three intervals. */
const pingMsDefault = 1000;
const pingsOutMax = 2;
const dialMsMax = 2000;
/** How much later than the server before it another one is tried. */
const dialStaggerMs = 100;
const reconnectMs = { low: 100, high: 250 } as const;
const closeMsMax = 1000;
const expireMs = 5000;
/** Peers whose subjects are kept ready. */
const peersMax = 4096;

/** Which connection carries a lane. */
const linkOf = {
  control: "control",
  append: "bulk",
  rpc: "bulk",
  snapshot: "bulk",
} as const satisfies Record<Lane, string>;
type LinkName = (typeof linkOf)[Lane];

export type NatsAuth =
  | { readonly user: string; readonly password: string }
  | { readonly token: string }
  /** The seed of a user nkey, `SU…`. */
  | { readonly nkeySeed: string }
  /** The content of a `.creds` file. */
  | { readonly credentials: string };

/** For a log: names and addresses, never credentials. */
export interface NatsStatus {
  readonly type:
    | "connected"
    /** A connection was lost; it is being made again. */
    | "disconnected"
    /** Making it again fails; told once per reason. */
    | "unreachable"
    /** The server complained: permissions, a slow consumer, a protocol error. */
    | "server-error"
    /** The server is about to shut down. */
    | "lame-duck";
  readonly link: LinkName;
  readonly detail: string;
}

export interface NatsOptions extends Identity {
  /** `nats://` or `tls://` URLs of the servers of one NATS cluster, or `host:port`. */
  readonly servers: readonly string[];
  /** Instead of a user and password in the URLs. */
  readonly auth?: NatsAuth;
  readonly tls?: TlsOptions;
  /** How long `start` waits for a server; null: until there is one. */
  readonly startTimeoutMs?: number | null;
  readonly pingIntervalMs?: number;
  /** Replaces `windowBytesMax`. */
  readonly windowBytes?: Partial<Record<Lane, number>>;
  readonly onStatus?: (status: NatsStatus) => void;
}

/** Why a transport could not start. The message names the servers, without credentials, and what to do. */
export class TransportError extends Error {
  override readonly name = "TransportError";
  readonly code: "invalid-settings" | "unreachable" | "refused" | "payload-too-small" | "closed";

  constructor(code: TransportError["code"], message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
  }
}

export class NatsTransport implements Transport {
  readonly stats: TransportStats = newStats();
  readonly #identity: Identity;
  readonly #servers: Servers;
  readonly #options: NatsOptions;
  readonly #encoder: FrameEncoder;
  readonly #windowBytes: Readonly<Record<Lane, number>>;
  readonly #links: Record<LinkName, Link>;
  readonly #subjects = new Map<string, Readonly<Record<Lane, string>>>();
  #receiver: FrameReceiver | null = null;
  #expiry: ReturnType<typeof setInterval> | undefined;
  #state: "new" | "started" | "closed" = "new";

  /** @throws {TransportError} `invalid-settings` */
  constructor(options: NatsOptions) {
    assertIdentity(options);
    assert(frameBytesMax <= payloadBytesNeeded, "frames are longer than the payload asked for");
    const { cluster, node, boot } = options;
    this.#identity = { cluster, node, boot };
    this.#options = options;
    this.#servers = parseServers(options.servers);
    this.#encoder = new FrameEncoder(this.#identity);
    this.#windowBytes = { ...windowBytesMax, ...options.windowBytes };
    this.#links = {
      control: this.#link("control", ["control"]),
      bulk: this.#link("bulk", ["append", "snapshot", "rpc"]),
    };
  }

  /** Both connections are up. */
  get connected(): boolean {
    return this.#links.control.up && this.#links.bulk.up;
  }

  /**
   * Resolves when the server knows both connections' subscriptions.
   * @throws {TransportError} `unreachable` after the start timeout; `refused` and `payload-too-small` at once; `closed`
   */
  async start(handler: FrameHandler): Promise<void> {
    assert(this.#state === "new", "transport was started before");
    this.#state = "started";
    const { cluster } = this.#identity;
    const receiver = new FrameReceiver({ cluster, handler, stats: this.stats });
    this.#receiver = receiver;
    this.#expiry = setInterval(() => receiver.expire(performance.now()), expireMs);

    const links = Object.values(this.#links);
    const { startTimeoutMs: startMs = startMsDefault } = this.#options;
    try {
      const started = Promise.all(links.map((link) => link.start()));
      await (startMs === null ? started : within(startMs, started));
    } catch (error) {
      const failure = links.map((link) => link.lastError).find((e) => e !== null) ?? error;
      await this.close();
      throw this.#startError(error instanceof TimeoutError ? failure : error, startMs);
    }
  }

  send(to: string, lane: Lane, bytes: Uint8Array): boolean {
    const session = this.#links[linkOf[lane]].session;
    if (session === null) return this.#refuse("disconnected");
    const subject = this.#subjectsOf(to)?.[lane];
    if (subject === undefined) return this.#refuse("unknown-peer");
    if (this.#windowBytes[lane] <= session.underWayBytes) return this.#refuse("window");
    try {
      this.#encoder.encode(lane, bytes, (frame) => {
        session.connection.publish(subject, frame);
        this.stats.framesOut++;
        this.stats.bytesOut += frame.length;
      });
    } catch (error) {
      if (!(error instanceof NatsError)) throw error;
      // Closed in this very turn, or max_payload was lowered meanwhile. Parts already sent will never be a message.
      this.#report("server-error", linkOf[lane], `Cannot publish: ${error.message}`);
      return this.#refuse("disconnected");
    }
    session.handedOver(this.#encoder.wireBytes(bytes.length));
    this.stats.messagesOut++;
    return true;
  }

  /** Lets what was sent reach the server, for a second at most. Nothing is delivered any more. */
  async close(): Promise<void> {
    this.#state = "closed";
    this.#receiver = null;
    clearInterval(this.#expiry);
    await Promise.all(Object.values(this.#links).map((link) => link.close()));
  }

  #link(name: LinkName, ofLanes: readonly Lane[]): Link {
    const { cluster, node } = this.#identity;
    const options: ConnectionOptions = {
      name: `conflux ${cluster} ${node} ${name}`,
      noEcho: true,
      reconnect: false,
      timeout: dialMsMax,
      pingInterval: this.#options.pingIntervalMs ?? pingMsDefault,
      maxPingOut: pingsOutMax,
      ...authOptions(this.#options.auth ?? this.#servers.auth),
    };
    const tls = this.#options.tls ?? (this.#servers.tls ? {} : undefined);
    if (tls !== undefined) options.tls = tls;
    return new Link({
      name,
      connection: options,
      servers: this.#servers.addresses,
      probeBytes: Math.min(probeBytes, ...ofLanes.map((lane) => this.#windowBytes[lane] / 2)),
      subscriptions: new Map(
        ofLanes.map((lane) => [
          `cfx.${cluster}.${node}.*.${lane}`,
          (subject, bytes) => this.#receive(lane, subject, bytes),
        ]),
      ),
      onStatus: (type, detail) => this.#report(type, name, detail),
      onReconnect: () => this.stats.reconnects++,
    });
  }

  #receive(lane: Lane, subject: string, bytes: Uint8Array): void {
    if (this.#receiver === null) return;
    const fromStart = `cfx.${this.#identity.cluster}.${this.#identity.node}.`.length;
    const from = subject.slice(fromStart, subject.length - lane.length - 1);
    try {
      this.#receiver.accept({ from, lane }, bytes, performance.now());
    } catch (error) {
      throwLater(error);
    }
  }

  #subjectsOf(to: string): Readonly<Record<Lane, string>> | null {
    const known = this.#subjects.get(to);
    if (known !== undefined) return known;
    const { cluster, node } = this.#identity;
    if (to === node || !isName(to)) return null;
    if (this.#subjects.size >= peersMax) this.#subjects.clear();
    const prefix = `cfx.${cluster}.${to}.${node}`;
    const subjects = {
      control: `${prefix}.control`,
      append: `${prefix}.append`,
      snapshot: `${prefix}.snapshot`,
      rpc: `${prefix}.rpc`,
    };
    this.#subjects.set(to, subjects);
    return subjects;
  }

  #refuse(reason: RefusalReason): false {
    this.stats.refused[reason]++;
    return false;
  }

  #report(type: NatsStatus["type"], link: LinkName, detail: string): void {
    try {
      this.#options.onStatus?.({ type, link, detail });
    } catch (error) {
      throwLater(error);
    }
  }

  /** To be shown: without credentials. */
  get servers(): string {
    return this.#servers.addresses.map((address) => address.url).join(", ");
  }

  #startError(cause: unknown, startMs: number | null): Error {
    if (cause instanceof TransportError) return cause;
    const { servers } = this;
    if (isRefusal(cause))
      return new TransportError(
        "refused",
        `Cannot use NATS at ${servers}: ${messageOf(cause)}; check the user and its permissions`,
        cause,
      );
    return new TransportError(
      "unreachable",
      `Cannot reach NATS at ${servers}${startMs === null ? "" : ` within ${startMs} ms`}: ${messageOf(cause)}; ` +
        "start nats-server there or set CONFLUX_NATS to where it runs",
      cause,
    );
  }
}

// --- one connection, made again for ever -------------------------------------------------------------------------------

interface LinkOptions {
  readonly name: LinkName;
  readonly connection: ConnectionOptions;
  readonly servers: readonly Address[];
  readonly probeBytes: number;
  readonly subscriptions: ReadonlyMap<string, (subject: string, bytes: Uint8Array) => void>;
  readonly onStatus: (type: NatsStatus["type"], detail: string) => void;
  readonly onReconnect: () => void;
}

class Link {
  /** The connection in use; null while there is none. */
  session: Session | null = null;
  /** Why the last dial failed; null after one that did not. */
  lastError: unknown = null;
  readonly #options: LinkOptions;
  readonly #closing = new AbortController();
  #running: Promise<void> | null = null;
  #lastServer: Address | null = null;

  constructor(options: LinkOptions) {
    this.#options = options;
  }

  get up(): boolean {
    return this.session !== null;
  }

  /** Resolves at the first connection, rejects when a server refuses it for good. Retries what may pass. */
  start(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#running = this.#run(resolve, reject).catch((error: unknown) => {
        reject(error);
        throwLater(error);
      });
    });
  }

  async close(): Promise<void> {
    this.#closing.abort();
    const session = this.session;
    this.session = null;
    if (session !== null) {
      await within(closeMsMax, session.flush()).catch(() => {});
      await session.connection.close();
    }
    // The library's dial cannot be called back; it ends by its own timeout and what it made is closed then.
    if (this.#running !== null) await within(closeMsMax, this.#running).catch(() => {});
  }

  async #run(started: () => void, failed: (error: unknown) => void): Promise<void> {
    const { onStatus, onReconnect } = this.#options;
    let connections = 0;
    while (!this.#closing.signal.aborted) {
      let session: Session;
      try {
        session = await this.#dial();
      } catch (error) {
        if (this.#closing.signal.aborted) break;
        const told = this.lastError === null ? null : messageOf(this.lastError);
        this.lastError = error;
        if (messageOf(error) !== told) onStatus("unreachable", messageOf(error));
        if (connections === 0 && isRefusal(error)) return failed(error);
        await this.#pause();
        continue;
      }
      if (this.#closing.signal.aborted) return session.connection.close();
      this.lastError = null;
      this.session = session;
      connections++;
      onStatus("connected", session.connection.getServer());
      if (connections > 1) onReconnect();
      started();
      const reason = await session.connection.closed();
      this.session = null;
      if (!this.#closing.signal.aborted)
        onStatus("disconnected", reason instanceof Error ? messageOf(reason) : session.lostBy);
    }
    failed(new TransportError("closed", "Cannot start the transport: it was closed meanwhile"));
  }

  async #dial(): Promise<Session> {
    const { connection: options, servers, subscriptions } = this.#options;
    const handshakeFirst = options.tls?.handshakeFirst === true;
    // The server just lost goes last: it is the likeliest to be still away.
    const order = shuffled(servers).sort(
      (a, b) => Number(a === this.#lastServer) - Number(b === this.#lastServer),
    );
    const server = await firstAnswering(order, handshakeFirst, this.#closing.signal);
    this.#lastServer = server;
    const connection = await connect({ ...options, servers: [server.hostPort] });
    // What came with the handshake was taken by then.
    await new Promise<void>((resolve) => void setImmediate(resolve));
    shorten(connection);
    const session = new Session(connection, this.#options.probeBytes);
    try {
      const payloadBytes = connection.info?.max_payload ?? 0;
      if (payloadBytes < payloadBytesNeeded)
        throw new TransportError(
          "payload-too-small",
          `Cannot use NATS at ${server.url}: max_payload is ${payloadBytes} bytes; ` +
            `set it to ${payloadBytesNeeded} at least, its default is 1048576`,
        );
      this.#watch(session).catch(throwLater);
      let refusal: Error | null = null;
      for (const [pattern, deliver] of subscriptions)
        connection.subscribe(pattern, {
          callback: (error, message) => {
            if (error === null) deliver(message.subject, message.data);
            else refusal = error;
          },
        });
      // The server answers in order: after this it has taken, or refused, the subscriptions.
      await within(dialMsMax, session.flush());
      if (refusal !== null) throw refusal as Error;
    } catch (error) {
      await connection.close();
      throw error;
    }
    return session;
  }

  /** Passes on what the library tells about a connection, until that is closed. */
  async #watch(session: Session): Promise<void> {
    const { onStatus } = this.#options;
    for await (const status of session.connection.status()) {
      const { permissionContext: refused } = status;
      const detail = typeof status.data === "string" ? status.data : JSON.stringify(status.data);
      switch (status.type as string) {
        case "error":
          onStatus(
            "server-error",
            refused === undefined
              ? detail
              : `${detail}: ${refused.operation} to ${refused.subject}`,
          );
          break;
        case "ldm":
          onStatus("lame-duck", detail);
          break;
        case "staleConnection":
          session.lostBy = "pings were not answered";
          await session.connection.close();
          return;
      }
    }
  }

  #pause(): Promise<void> {
    const ms = reconnectMs.low + Math.random() * (reconnectMs.high - reconnectMs.low);
    const { signal } = this.#closing;
    return new Promise((resolve) => {
      const end = (): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      signal.addEventListener("abort", end);
    });
  }
}

/** One connection and what is under way on it. */
class Session {
  readonly connection: NatsConnection;
  lostBy = "connection was closed";
  readonly #probeBytes: number;
  /** Handed over after the last flush was asked for. */
  #unprobedBytes = 0;
  /** Handed over before it; zero when it was answered. */
  #probedBytes = 0;
  #probing = false;

  constructor(connection: NatsConnection, flushBytes: number) {
    this.connection = connection;
    this.#probeBytes = flushBytes;
  }

  get underWayBytes(): number {
    return this.#unprobedBytes + this.#probedBytes;
  }

  /** Resolves when the server has taken all before it. The library's own would wait for ever on a closed connection. */
  async flush(): Promise<void> {
    const closed = this.connection.closed().then((error) => {
      throw error ?? new Error("connection was closed");
    });
    await Promise.race([this.connection.flush(), closed]);
  }

  handedOver(bytes: number): void {
    this.#unprobedBytes += bytes;
    if (!this.#probing && this.#probeBytes <= this.#unprobedBytes) this.#probe();
  }

  #probe(): void {
    this.#probing = true;
    this.#probedBytes = this.#unprobedBytes;
    this.#unprobedBytes = 0;
    this.connection.flush().then(
      () => {
        this.#probing = false;
        this.#probedBytes = 0;
        if (this.#probeBytes <= this.#unprobedBytes) this.#probe();
      },
      // The connection is gone, and the count with it.
      () => {},
    );
  }
}

// --- servers -----------------------------------------------------------------------------------------------------------

interface Address {
  readonly host: string;
  readonly port: number;
  readonly hostPort: string;
  /** To be shown: without credentials. */
  readonly url: string;
}

interface Servers {
  readonly addresses: readonly Address[];
  readonly auth: NatsAuth | undefined;
  readonly tls: boolean;
}

/** The library ignores credentials in URLs and stumbles over digits in them, so they are taken out here. */
function parseServers(servers: readonly string[]): Servers {
  if (servers.length === 0)
    throw new TransportError("invalid-settings", "Cannot use NATS: no server is given");
  const auths = new Map<string, NatsAuth | undefined>();
  let tls = false;
  const addresses = servers.map((server): Address => {
    const text = server.trim();
    const url = parseUrl(text.includes("://") ? text : `nats://${text}`);
    const shown = text.replace(/^([a-z]*:\/\/)?.*@/i, "$1");
    if (url === null || url.hostname === "" || !["nats:", "tls:"].includes(url.protocol))
      throw new TransportError(
        "invalid-settings",
        `Cannot use NATS URL ${JSON.stringify(shown)}: expected nats://host:port or tls://host:port`,
      );
    tls ||= url.protocol === "tls:";
    auths.set(`${url.username}:${url.password}`, userOf(url));
    const port = url.port === "" ? 4222 : Number(url.port);
    const hostPort = `${url.hostname}:${port}`;
    const host = url.hostname.replace(/^\[|\]$/g, "");
    return { host, port, hostPort, url: `${url.protocol}//${hostPort}` };
  });
  if (auths.size > 1)
    throw new TransportError(
      "invalid-settings",
      "Cannot use NATS URLs: their credentials differ, but they must lead to one cluster",
    );
  return { addresses, auth: [...auths.values()][0], tls };
}

function parseUrl(text: string): URL | null {
  return URL.canParse(text) ? new URL(text) : null;
}

function userOf(url: URL): NatsAuth | undefined {
  const user = decodeURIComponent(url.username);
  if (user === "") return undefined;
  // NATS's convention: a user without a password is a token.
  if (url.password === "") return { token: user };
  return { user, password: decodeURIComponent(url.password) };
}

function authOptions(auth: NatsAuth | undefined): ConnectionOptions {
  if (auth === undefined) return {};
  if ("user" in auth) return { user: auth.user, pass: auth.password };
  if ("token" in auth) return { token: auth.token };
  const encoder = new TextEncoder();
  const authenticator: Authenticator =
    "nkeySeed" in auth
      ? nkeyAuthenticator(checkedSeed(encoder.encode(auth.nkeySeed)))
      : credsAuthenticator(encoder.encode(auth.credentials));
  return { authenticator };
}

/** Found wrong only while dialing, it would be tried again for ever. */
function checkedSeed(seed: Uint8Array): Uint8Array {
  try {
    nkeys.fromSeed(seed);
  } catch (error) {
    throw new TransportError(
      "invalid-settings",
      "Cannot use the NATS nkey seed: it is not the seed of a user key, SU…",
      error,
    );
  }
  return seed;
}

/** The first server that greets, each tried a little later than the one before. Rejects with the last one's error. */
function firstAnswering(
  servers: readonly Address[],
  handshakeFirst: boolean,
  signal: AbortSignal,
): Promise<Address> {
  return new Promise((resolve, reject) => {
    const cleanups: (() => void)[] = [];
    let failures = 0;
    let started = 0;
    const finish = (): void => {
      for (const cleanup of cleanups) cleanup();
    };
    const abort = (): void => {
      finish();
      reject(new TransportError("closed", "Cannot connect: transport is closed"));
    };
    cleanups.push(() => signal.removeEventListener("abort", abort));

    const tryNext = (): void => {
      const server = servers[started++];
      if (server === undefined) return;
      const socket = createConnection({ host: server.host, port: server.port });
      const drop = (): void => {
        clearTimeout(timer);
        socket.removeAllListeners();
        // A destroyed socket may still report an error; unheard it would end the process.
        socket.on("error", () => {});
        socket.destroy();
      };
      const failed = (error: Error): void => {
        drop();
        if (++failures < servers.length) return tryNext();
        finish();
        reject(error);
      };
      const answered = (): void => {
        finish();
        resolve(server);
      };
      const timer = setTimeout(() => failed(new Error("no answer")), dialMsMax);
      cleanups.push(drop);
      socket.once("error", failed);
      socket.once("close", () => failed(new Error("connection was closed")));
      // Who speaks TLS from the first byte waits for us to speak.
      if (handshakeFirst) socket.once("connect", answered);
      else
        socket.once("data", (bytes: Uint8Array) => {
          if (new TextDecoder().decode(bytes.subarray(0, 5)) === "INFO ") answered();
          else failed(new Error("it is not a NATS server"));
        });
      if (started < servers.length) {
        const stagger = setTimeout(tryNext, dialStaggerMs);
        cleanups.push(() => clearTimeout(stagger));
      }
    };
    if (signal.aborted) abort();
    else {
      signal.addEventListener("abort", abort);
      tryNext();
    }
  });
}

// --- the library's socket -----------------------------------------------------------------------------------------------

/** What is used of the library's inside, as of the version that package.json pins. */
interface Inside {
  readonly protocol?: {
    readonly parser?: { parse(chunk: Uint8Array): void };
    readonly transport?: {
      /** Undefined from when it is closed. */
      readonly socket?: Socket;
      readonly isClosed?: boolean;
      readonly yields?: readonly Uint8Array[];
      send?(frame: Uint8Array): void;
    };
  };
}

/**
 * Chunks go from the socket to the library's parser, and its frames to the socket, without what it puts between them. A
 * library that looks different inside is left as it is. To be called before anything is subscribed to, while nothing waits.
 * @returns whether it is done
 */
export function shorten(connection: NatsConnection): boolean {
  const { parser, transport } = (connection as Inside).protocol ?? {};
  const socket = transport?.socket;
  if (parser === undefined || transport === undefined || socket === undefined) return false;
  const isKnown =
    typeof parser.parse === "function" &&
    typeof transport.send === "function" &&
    typeof transport.isClosed === "boolean" &&
    transport.yields?.length === 0 &&
    socket.listenerCount("data") === 1;
  if (!isKnown) return false;
  socket.removeAllListeners("data");
  socket.on("data", (chunk: Uint8Array) => {
    try {
      parser.parse(chunk);
    } catch {
      // It is not what a NATS server says: nothing that follows can be understood.
      void connection.close();
    }
  });
  // Whether it was written shows in what is read, or not, as the library sees it too.
  transport.send = (frame) => {
    if (!transport.isClosed) transport.socket?.write(frame);
  };
  return true;
}

// --- helpers -----------------------------------------------------------------------------------------------------------

class TimeoutError extends Error {
  override readonly name = "TimeoutError";
}

function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new TimeoutError(`no answer within ${ms} ms`)), ms);
  });
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

/** Errors that trying again does not cure: whoever set this up must act. */
function isRefusal(error: unknown): boolean {
  if (error instanceof TransportError) return error.code === "payload-too-small";
  return error instanceof NatsError && (error.isAuthError() || error.isPermissionError());
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // Node names the errors of a dial over several addresses only in its code.
  const code = (error as { code?: unknown }).code;
  const text = error.message === "" && typeof code === "string" ? code : error.message;
  return text.replaceAll("'", "");
}

/** A fault of ours must be loud, and must not end the connection it was met on. */
function throwLater(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

function shuffled<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, order: Math.random() }))
    .sort((a, b) => a.order - b.order)
    .map(({ item }) => item);
}
