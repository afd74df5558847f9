/**
 * The pure half of the live client: bytes of an event stream in, events out; events in, a snapshot and its changes out.
 * No network, no timers, no chance, so that every cut, order and repetition can be tested.
 *
 * Invariants: a snapshot is swapped whole, per commit; within an epoch the revision never goes back; the cursor to
 * resume from is that of the snapshot being served, never of one that is still incomplete.
 */
import type { ContentFormat } from "../model/release.ts";

// --- event stream (https://html.spec.whatwg.org/multipage/server-sent-events.html §9.2.6) ------------------------------

export interface StreamEvent {
  /** `message` when the stream named none. */
  readonly type: string;
  readonly data: string;
  /** The last id the stream gave, here or before; "" = none. */
  readonly id: string;
}

/** Longer than any frame of a server with sane limits; beyond it the peer is broken or hostile. */
export const eventCharsMax = 256 * 1024 * 1024;

/** Parses an event stream that comes in arbitrary pieces. An event that was not finished by a blank line is never given. */
export class EventStreamParser {
  /** Strips a byte order mark and replaces malformed UTF-8, as the standard asks. */
  readonly #decoder = new TextDecoder();
  /** Pieces of the line that has not ended yet: joined once, so that a long line costs no more than its length. */
  #line: string[] = [];
  #chars = 0;
  /** The last piece ended in CR: an LF that follows belongs to it. */
  #afterCr = false;
  #type = "";
  #data: string[] = [];
  #id = "";
  #retryMs: number | null = null;

  /** What the stream last asked for as the time before a reconnect; null = nothing. */
  get retryMs(): number | null {
    return this.#retryMs;
  }

  push(bytes: Uint8Array): StreamEvent[] {
    return this.pushText(this.#decoder.decode(bytes, { stream: true }));
  }

  pushText(text: string): StreamEvent[] {
    const events: StreamEvent[] = [];
    let from = 0;
    if (this.#afterCr && text.length > 0) {
      this.#afterCr = false;
      if (text.charCodeAt(0) === 10) from = 1;
    }
    const lineEnd = /\r\n?|\n/g;
    lineEnd.lastIndex = from;
    for (let match = lineEnd.exec(text); match !== null; match = lineEnd.exec(text)) {
      this.#line.push(text.slice(from, match.index));
      from = match.index + match[0].length;
      if (match[0] === "\r" && from === text.length) this.#afterCr = true;
      const line = this.#line.length === 1 ? (this.#line[0] as string) : this.#line.join("");
      this.#line = [];
      const event = this.#take(line);
      if (event !== null) events.push(event);
    }
    if (from < text.length) this.#line.push(text.slice(from));
    this.#chars += text.length;
    if (events.length > 0) this.#chars = text.length - from;
    if (this.#chars > eventCharsMax)
      throw new FrameError(`An event is longer than ${eventCharsMax} characters`);
    return events;
  }

  #take(line: string): StreamEvent | null {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return null; // a comment
    const field = colon === -1 ? line : line.slice(0, colon);
    let value = colon === -1 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id") {
      if (!value.includes("\0")) this.#id = value;
    } else if (field === "retry" && /^[0-9]+$/.test(value)) this.#retryMs = Number(value);
    return null;
  }

  #dispatch(): StreamEvent | null {
    const type = this.#type === "" ? "message" : this.#type;
    const data = this.#data;
    this.#type = "";
    this.#data = [];
    // The standard dispatches nothing for an event without a data line.
    return data.length === 0 ? null : { type, data: data.join("\n"), id: this.#id };
  }
}

// --- snapshot -----------------------------------------------------------------------------------------------------------

/** A frame that breaks the contract. The connection is not to be trusted further; start over with a full snapshot. */
export class FrameError extends Error {
  override readonly name = "FrameError";
}

/** One message of a watch, however it came: as an event of a stream or in the answer to a long poll. */
export interface Frame {
  readonly event: string;
  /** Cursor; "" = none. */
  readonly id: string;
  readonly data: unknown;
}

export function frameOf(event: StreamEvent): Frame {
  try {
    return { event: event.type, id: event.id, data: JSON.parse(event.data) as unknown };
  } catch (error) {
    throw new FrameError(`Frame \`${event.type}\` is not JSON`, { cause: error });
  }
}

/** The frames of a long poll's answer. */
export function framesOf(body: unknown): Frame[] {
  if (!isObject(body) || !Array.isArray(body["frames"]))
    throw new FrameError("The answer to a long poll has no frames");
  return (body["frames"] as unknown[]).map((frame) => {
    if (!isObject(frame) || typeof frame["event"] !== "string")
      throw new FrameError("A frame of a long poll has no event");
    const { event, id, data } = frame;
    return { event, id: typeof id === "string" ? id : "", data };
  });
}

/** A value as the server holds it for this client's labels. */
export interface Held {
  readonly version: number;
  readonly hash: string;
  readonly format: ContentFormat;
  readonly content: string;
}

/** Content is absent when it is above the server's limit for values within frames. */
export type WireValue = Omit<Held, "content"> & { readonly content?: string };

export interface HeldChange {
  readonly name: string;
  readonly old: Held | null;
  readonly new: Held | null;
}

export type Taken =
  /** The snapshot (or only its cursor) moved on. `changes` may be empty. */
  | { readonly kind: "swapped"; readonly revision: number; readonly changes: readonly HeldChange[] }
  /** Contents are missing; `missing()` names them, and nothing is swapped before they are filled in. */
  | { readonly kind: "incomplete" }
  /** Known already, or not for us. */
  | { readonly kind: "nothing" }
  /** The server is behind what this client has seen: take it elsewhere, or later. */
  | { readonly kind: "behind" }
  | { readonly kind: "goodbye"; readonly reason: string };

export interface Cursor {
  readonly epoch: string;
  readonly revision: number;
}

/** `<epoch>-<revision>`; null when it is something else. The epoch is only ever compared for equality. */
export function parseCursor(text: string): Cursor | null {
  const match = /^(.+)-([0-9]{1,16})$/.exec(text);
  if (match === null) return null;
  const revision = Number(match[2]);
  return Number.isSafeInteger(revision) ? { epoch: match[1] as string, revision } : null;
}

/** The effective values of one client: takes frames, serves a snapshot. */
export class Snapshot {
  readonly #values = new Map<string, Held>();
  #cursor: Cursor | null = null;
  #cursorText = "";
  #confirmed = false;

  /** The newest frames that are not served yet, merged; null when all are. */
  #pending: {
    replace: boolean;
    cursor: Cursor;
    cursorText: string;
    readonly values: Map<string, WireValue | null>;
  } | null = null;

  /** Whether a server ever said that this is what there is. */
  get live(): boolean {
    return this.#confirmed;
  }

  /**
   * Begins with what was kept from before. With a cursor the server only tells what changed since; without one it sends
   * everything. Ignored once a server was heard.
   */
  seed(values: Readonly<Record<string, Held>>, cursorText: string): Taken {
    if (this.#confirmed) return { kind: "nothing" };
    const cursor = parseCursor(cursorText);
    const changes = this.#replace(Object.entries(values));
    this.#cursor = cursor;
    this.#cursorText = cursor === null ? "" : cursorText;
    return { kind: "swapped", revision: this.revision, changes };
  }

  /** 0 before the first snapshot. */
  get revision(): number {
    return this.#cursor?.revision ?? 0;
  }

  /** Where to resume; "" = from the start. */
  get cursor(): string {
    return this.#cursorText;
  }

  get(name: string): Held | undefined {
    return this.#values.get(name);
  }

  names(): string[] {
    return [...this.#values.keys()];
  }

  /** A new connection resumes from what is served: what was waiting for contents comes again. */
  restart(): void {
    this.#pending = null;
  }

  take(frame: Frame): Taken {
    switch (frame.event) {
      case "sync":
        return this.#sync(frame);
      case "commit":
        return this.#commit(frame);
      case "bookmark":
        return this.#bookmark(frame);
      case "goodbye":
        return { kind: "goodbye", reason: reasonOfGoodbye(frame.data) };
      default:
        return { kind: "nothing" }; // a later server may say more
    }
  }

  /** Values whose content must be fetched before anything more is served. */
  missing(): { readonly name: string; readonly value: WireValue; readonly revision: number }[] {
    const pending = this.#pending;
    if (pending === null) return [];
    const list = [];
    for (const [name, value] of pending.values) {
      if (value !== null && value.content === undefined)
        list.push({ name, value, revision: pending.cursor.revision });
    }
    return list;
  }

  /** Gives a content that was missing. Ignored when the value became another one meanwhile. */
  fill(name: string, hash: string, content: string): Taken {
    const pending = this.#pending;
    const value = pending?.values.get(name);
    if (!pending || !value || value.hash !== hash || value.content !== undefined)
      return { kind: "nothing" };
    pending.values.set(name, { ...value, content });
    return this.#settle();
  }

  #sync(frame: Frame): Taken {
    const { cursor, body } = opened(frame);
    // What was kept from before binds nobody: the server may have been restored since.
    const seen = this.#confirmed ? this.#cursor : null;
    if (seen !== null && seen.epoch === cursor.epoch && cursor.revision < seen.revision)
      return { kind: "behind" };
    const values = new Map<string, WireValue | null>();
    if (!isObject(body["values"])) throw new FrameError("Frame `sync` has no values");
    for (const [name, value] of Object.entries(body["values"]))
      values.set(name, this.#known(name, wireValue(name, value)));
    this.#pending = { replace: true, cursor, cursorText: frame.id, values };
    return this.#settle();
  }

  #commit(frame: Frame): Taken {
    const { cursor, body } = opened(frame);
    const at = this.#pending?.cursor ?? this.#cursor;
    // Without a snapshot of the same history there is nothing that these changes could be changes of.
    if (at === null || at.epoch !== cursor.epoch)
      throw new FrameError("Frame `commit` came without the `sync` of its epoch");
    if (cursor.revision <= at.revision) return { kind: "nothing" };
    const changes = body["changes"];
    if (!Array.isArray(changes)) throw new FrameError("Frame `commit` has no changes");
    const values = new Map<string, WireValue | null>();
    for (const change of changes as unknown[]) {
      if (!isObject(change) || typeof change["name"] !== "string")
        throw new FrameError("Frame `commit` has a change without a name");
      const name = change["name"];
      // Nothing is released for these labels any more.
      const gone = change["type"] === "delete";
      values.set(name, gone ? null : this.#known(name, wireValue(name, change)));
    }
    if (this.#pending === null)
      this.#pending = { replace: false, cursor, cursorText: frame.id, values };
    else {
      for (const [name, value] of values) this.#pending.values.set(name, value);
      this.#pending.cursor = cursor;
      this.#pending.cursorText = frame.id;
    }
    return this.#settle();
  }

  #bookmark(frame: Frame): Taken {
    const cursor = parseCursor(frame.id);
    const at = this.#pending ?? { cursor: this.#cursor };
    if (cursor === null || at.cursor === null) return { kind: "nothing" };
    if (cursor.epoch !== at.cursor.epoch || cursor.revision < at.cursor.revision)
      return { kind: "nothing" };
    if (this.#pending === null) {
      this.#cursor = cursor;
      this.#cursorText = frame.id;
      this.#confirmed = true;
      return { kind: "swapped", revision: cursor.revision, changes: [] };
    }
    this.#pending.cursor = cursor;
    this.#pending.cursorText = frame.id;
    return { kind: "incomplete" };
  }

  /** A content this client already holds need not be fetched again. */
  #known(name: string, value: WireValue): WireValue {
    if (value.content !== undefined) return value;
    const held = this.#values.get(name);
    return held !== undefined && held.hash === value.hash
      ? { ...value, content: held.content }
      : value;
  }

  #settle(): Taken {
    const pending = this.#pending;
    if (pending === null) return { kind: "nothing" };
    for (const value of pending.values.values())
      if (value !== null && value.content === undefined) return { kind: "incomplete" };
    const values = [...pending.values] as [string, Held | null][];
    const changes = pending.replace ? this.#replace(values) : this.#merge(values);
    this.#cursor = pending.cursor;
    this.#cursorText = pending.cursorText;
    this.#confirmed = true;
    this.#pending = null;
    return { kind: "swapped", revision: this.revision, changes };
  }

  #replace(values: readonly (readonly [string, Held | null])[]): HeldChange[] {
    const kept = new Set(values.map(([name]) => name));
    const gone = this.names().filter((name) => !kept.has(name));
    return this.#merge([...gone.map((name) => [name, null] as const), ...values]);
  }

  #merge(values: readonly (readonly [string, Held | null])[]): HeldChange[] {
    const changes: HeldChange[] = [];
    for (const [name, value] of values) {
      const old = this.#values.get(name) ?? null;
      if (value === null) this.#values.delete(name);
      else this.#values.set(name, value);
      if (!same(old, value)) changes.push({ name, old, new: value });
    }
    return changes;
  }
}

export function same(a: Held | null, b: Held | null): boolean {
  return a === b || (a !== null && b !== null && a.version === b.version && a.hash === b.hash);
}

function opened(frame: Frame): { cursor: Cursor; body: Record<string, unknown> } {
  const cursor = parseCursor(frame.id);
  if (cursor === null) throw new FrameError(`Frame \`${frame.event}\` has no cursor`);
  if (!isObject(frame.data)) throw new FrameError(`Frame \`${frame.event}\` is not an object`);
  return { cursor, body: frame.data };
}

function wireValue(name: string, value: unknown): WireValue {
  if (!isObject(value)) throw new FrameError(`Value of ${name} is not an object`);
  const { version, hash, format, content } = value;
  if (typeof version !== "number" || typeof hash !== "string" || typeof format !== "string")
    throw new FrameError(`Value of ${name} lacks version, hash or format`);
  if (typeof content === "string")
    return { version, hash, format: format as ContentFormat, content };
  return { version, hash, format: format as ContentFormat };
}

function reasonOfGoodbye(data: unknown): string {
  return isObject(data) && typeof data["reason"] === "string" ? data["reason"] : "unknown";
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
