/**
 * Frames of watches: one event each, encoded once, whoever gets it.
 */

const encoder = new TextEncoder();

/** One event. Encoded once, whoever gets it. */
export class Frame {
  readonly event: "sync" | "commit" | "bookmark" | "goodbye";
  /** Cursor; null on goodbye, so that the one before stays the last. */
  readonly id: string | null;
  readonly epoch: number;
  readonly revision: number;
  /** JSON text; it holds no line break, so it is one line of the stream. */
  readonly data: string;
  /** Of a commit: over how long those who watch are told of it. */
  readonly spreadMs: number;
  #bytes: Uint8Array<ArrayBuffer> | null = null;

  constructor(event: Frame["event"], id: string | null, at: Cursor, data: string, spreadMs = 0) {
    this.event = event;
    this.spreadMs = spreadMs;
    this.id = id;
    this.epoch = at.epoch;
    this.revision = at.revision;
    this.data = data;
  }

  /** Of a goodbye. */
  get reason(): string {
    return (JSON.parse(this.data) as { reason?: string }).reason ?? "moved";
  }

  get bytes(): Uint8Array<ArrayBuffer> {
    // Clients of OFREP listen to `message` only, and look at the type within.
    const event = this.data.startsWith(`{"type":`) ? "message" : this.event;
    const id = this.id === null ? "" : `id: ${this.id}\n`;
    this.#bytes ??= encoder.encode(`event: ${event}\n${id}data: ${this.data}\n\n`);
    return this.#bytes;
  }

  get json(): string {
    const id = this.id === null ? "" : `"id":${JSON.stringify(this.id)},`;
    return `{"event":"${this.event}",${id}"data":${this.data}}`;
  }
}

/** `<epoch>-<revision>`. */
export interface Cursor {
  readonly epoch: number;
  readonly revision: number;
}

export function parseCursor(text: string): Cursor | null {
  const match = /^(\d{1,15})-(\d{1,15})$/.exec(text);
  return match === null ? null : { epoch: Number(match[1]), revision: Number(match[2]) };
}

export function frame(event: Frame["event"], at: Cursor, data: unknown): Frame {
  const { epoch, revision } = at;
  // Whoever passes it on to others needs to know, so it is in the data.
  const { spreadMs } = data as { readonly spreadMs?: number };
  const text = JSON.stringify(data);
  return new Frame(event, `${epoch}-${revision}`, { epoch, revision }, text, spreadMs);
}

export function bookmark(at: Cursor, filter?: { readonly kind: string }): Frame {
  const { revision } = at;
  return frame(
    "bookmark",
    at,
    filter?.kind === "flags" ? { type: "bookmark", revision } : { revision },
  );
}

export function goodbye(reason: string): Frame {
  return new Frame("goodbye", null, { epoch: 0, revision: 0 }, JSON.stringify({ reason }));
}

export function joined(frames: readonly Frame[]): Uint8Array<ArrayBuffer> {
  const [first] = frames;
  return frames.length === 1 && first !== undefined
    ? first.bytes
    : Buffer.concat(frames.map((one) => one.bytes));
}

export function sizeOf(frames: readonly Frame[]): number {
  return frames.reduce((sum, { data }) => sum + data.length, 0);
}

/** A sign of life for one who has no cursor yet. */
export const comment = encoder.encode(": waiting\n\n");

export const hello = encoder.encode(": conflux\nretry: 1000\n\n");

/** Frames that go out together, in one piece whose bytes all share. */
export class Batch {
  readonly frames: readonly Frame[];
  /** Of all its frames; -1: of several, or one begins another. */
  readonly epoch: number;
  /** One who was told no more than this gets all of it. */
  readonly after: number;
  /** Of the last frame. */
  readonly revision: number;
  readonly hasBookmark: boolean;
  /** Nothing but bookmarks. */
  readonly isQuiet: boolean;
  /** Cursor of the last frame that has one. */
  readonly id: string | null;
  #bytes: Uint8Array<ArrayBuffer> | null = null;

  /** @param frames in order */
  constructor(frames: readonly Frame[]) {
    this.frames = frames;
    const [first] = frames;
    const last = frames.at(-1);
    const isOne = frames.every((one) => one.epoch === first?.epoch && one.event !== "sync");
    this.epoch = isOne && first !== undefined ? first.epoch : -1;
    this.after = first === undefined ? -1 : first.revision - (first.event === "commit" ? 1 : 0);
    this.revision = last?.revision ?? 0;
    this.hasBookmark = frames.some((one) => one.event === "bookmark");
    this.isQuiet = this.hasBookmark && frames.every((one) => one.event === "bookmark");
    this.id = frames.findLast((one) => one.id !== null)?.id ?? null;
  }

  get bytes(): Uint8Array<ArrayBuffer> {
    this.#bytes ??= joined(this.frames);
    return this.#bytes;
  }
}
