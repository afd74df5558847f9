/**
 * Calls between nodes, over the rpc lane: forwarding of proposals and of the gateway's requests. A call ends exactly
 * once: answered, refused before it left, or unknown (the peer may have acted on it).
 */
import { ByteReader, ByteWriter } from "../lib/bytes.ts";

/** Calls in flight from this node; more are refused at once. */
export const CALLS_MAX = 20_000;

export const Method = {
  propose: 1,
  exchange: 2,
  status: 3,
  transfer: 4,
  acquaintance: 5,
  join: 6,
  runs: 7,
  reached: 8,
} as const;
export type Method = (typeof Method)[keyof typeof Method];

export type CallResult =
  | { readonly kind: "ok"; readonly bytes: Uint8Array }
  /** Never left this node: trying elsewhere or again is safe. */
  | { readonly kind: "not-sent" }
  /** No answer: it may have happened. */
  | { readonly kind: "unknown" };

export type CallHandler = (
  from: string,
  payload: Uint8Array,
  respond: (bytes: Uint8Array) => void,
) => void;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

const REQUEST = 1;
const RESPONSE = 2;

interface Call {
  readonly node: string;
  readonly deadline: number;
  readonly done: (result: CallResult) => void;
}

/** Which calls of one peer were taken: a frame that arrives twice must not be executed twice. */
interface Taken {
  boot: number;
  /** Calls up to here are too old to tell: not taken. */
  floor: number;
  readonly recent: Set<number>;
}

/** Calls of one peer remembered to tell repeats; what comes later than this many others is dropped. */
const REMEMBERED_MAX = 8_192;

export class Rpc {
  readonly #taken = new Map<string, Taken>();
  readonly #calls = new Map<number, Call>();
  readonly #handlers = new Map<Method, CallHandler>();
  readonly #queue: (node: string, item: Uint8Array, call: number | null) => void;
  readonly #boot: number;
  readonly #bootOf: (node: string) => number;
  #next: number;

  /**
   * `queue` takes one item for a node; when it cannot leave, `notSent` is called with its call. `bootOf` says under which
   * boot a node was heard last; 0: never.
   */
  constructor(
    boot: number,
    queue: (node: string, item: Uint8Array, call: number | null) => void,
    bootOf: (node: string) => number = () => 0,
  ) {
    this.#next = firstId(boot);
    this.#queue = queue;
    this.#boot = boot;
    this.#bootOf = bootOf;
  }

  serve(method: Method, handler: CallHandler): void {
    this.#handlers.set(method, handler);
  }

  call(
    node: string,
    method: Method,
    payload: Uint8Array,
    deadline: number,
    done: (result: CallResult) => void,
  ): void {
    if (this.#calls.size >= CALLS_MAX) return done({ kind: "not-sent" });
    const id = this.#next++;
    this.#calls.set(id, { node, deadline, done });
    const item = encodeItem({ kind: REQUEST, id, method, boot: this.#bootOf(node) }, payload);
    this.#queue(node, item, id);
  }

  /** `call` with a question and an answer in JSON; null: there is none. */
  ask<T>(
    node: string,
    method: Method,
    question: unknown,
    deadline: number,
    done: (answer: T | null) => void,
  ): void {
    this.call(node, method, encodeJson(question), deadline, (result) => {
      done(result.kind === "ok" ? decodeJson<T | null>(result.bytes) : null);
    });
  }

  /** `serve` for questions of `ask`. */
  answer<T>(
    method: Method,
    handler: (from: string, question: T, respond: (answer: unknown) => void) => void,
  ): void {
    this.serve(method, (from, payload, respond) => {
      handler(from, decodeJson<T>(payload), (answer) => respond(encodeJson(answer)));
    });
  }

  /** `item` is one item as it was queued at the other end; a malformed one throws. */
  receive(from: string, boot: number, item: Uint8Array): void {
    const reader = new ByteReader(item);
    const kind = reader.u8();
    const id = reader.u53();
    const method = reader.u8() as Method;
    const toBoot = reader.u53();
    const payload = reader.view(reader.remaining);
    if (kind === RESPONSE) {
      const call = this.#calls.get(id);
      // Answers after the deadline, or of a node that was not asked, mean nothing any more.
      if (call === undefined || call.node !== from) return;
      this.#calls.delete(id);
      call.done({ kind: "ok", bytes: payload });
      return;
    }
    const handler = this.#handlers.get(method);
    // What was meant for an earlier life of this node may have been executed in it, and that is forgotten (seed 5000291).
    if (toBoot !== 0 && toBoot !== this.#boot) return;
    if (kind !== REQUEST || handler === undefined || !this.#isNew(from, boot, id)) return;
    handler(from, payload, (bytes) => {
      this.#queue(from, encodeItem({ kind: RESPONSE, id, method, boot: 0 }, bytes), null);
    });
  }

  #isNew(from: string, boot: number, id: number): boolean {
    let taken = this.#taken.get(from);
    if (taken === undefined || taken.boot < boot) {
      taken = { boot, floor: 0, recent: new Set() };
      this.#taken.set(from, taken);
    }
    if (taken.boot > boot || id <= taken.floor || taken.recent.has(id)) return false;
    taken.recent.add(id);
    if (taken.recent.size > REMEMBERED_MAX) {
      // Ids come in nearly rising order, and a set iterates in the order of arrival.
      for (const oldest of taken.recent) {
        taken.recent.delete(oldest);
        taken.floor = Math.max(taken.floor, oldest);
        break;
      }
    }
    return true;
  }

  notSent(id: number): void {
    this.#end(id, { kind: "not-sent" });
  }

  nodeDown(node: string): void {
    for (const [id, call] of this.#calls) {
      if (call.node === node) this.#end(id, { kind: "unknown" });
    }
  }

  expire(now: number): void {
    for (const [id, call] of this.#calls) {
      if (call.deadline <= now) this.#end(id, { kind: "unknown" });
    }
  }

  /** Nothing comes any more. */
  close(): void {
    for (const id of this.#calls.keys()) this.#end(id, { kind: "unknown" });
  }

  #end(id: number, result: CallResult): void {
    const call = this.#calls.get(id);
    if (call === undefined) return;
    this.#calls.delete(id);
    call.done(result);
  }
}

export function encodeJson(value: unknown): Uint8Array {
  return encoder.encode(JSON.stringify(value));
}

function decodeJson<T>(bytes: Uint8Array): T {
  return JSON.parse(decoder.decode(bytes)) as T;
}

/** Numbers of another life of this node are never given again: a late answer must not pass for one of this life. */
export function firstId(boot: number): number {
  return (boot % 2 ** 20) * 2 ** 32 + 1;
}

/** `boot`: of the node that is asked; 0 in answers, and where it is not known. */
function encodeItem(
  head: {
    readonly kind: number;
    readonly id: number;
    readonly method: Method;
    readonly boot: number;
  },
  payload: Uint8Array,
): Uint8Array {
  const writer = new ByteWriter(payload.length + 24);
  writer.u8(head.kind);
  writer.u53(head.id);
  writer.u8(head.method);
  writer.u53(head.boot);
  writer.bytes(payload);
  return writer.view();
}
