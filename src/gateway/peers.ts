/**
 * What a gateway asks of the gateways of other nodes: to answer a request for a tenant that has no replica here, and to
 * read or change the directory (`_system`) when that has none here.
 *
 * A message is a length, a header of JSON, and the bytes of a body. It travels between nodes of one cluster only, which
 * the transport has authenticated; a forwarded request still carries the caller's own key and is checked again there.
 */
import { NotHere, Problem, problems, type ProblemCode } from "../api/problems.ts";
import type { ConfigService, TenantView } from "../host/ports.ts";
import type { Command, Outcome } from "../machine/command.ts";
import { metaKey } from "../machine/keys.ts";
import { dryRun } from "../machine/machine.ts";
import type { TenantMeta } from "../machine/rows.ts";
import { systemTenant } from "../model/names.ts";
import { revisionTag, type Answer, type Call, type RequestInfo } from "./http.ts";

export interface RowRange {
  readonly gte: string;
  readonly lt: string;
  readonly limit: number;
}

type Row = readonly [key: string, row: unknown];
type Consistency = "linearizable" | "stale";

type RequestHeader =
  | {
      readonly kind: "http";
      readonly method: string;
      readonly target: string;
      readonly headers: Readonly<Record<string, string>>;
      readonly address: string | null;
    }
  | { readonly kind: "row"; readonly key: string; readonly consistency: Consistency }
  | { readonly kind: "rows"; readonly range: RowRange }
  | { readonly kind: "propose"; readonly command: Command; readonly rehearsal: boolean };

type ResponseHeader =
  | {
      readonly kind: "http";
      readonly status: number;
      readonly headers: Readonly<Record<string, string>>;
    }
  | { readonly kind: "value"; readonly value: unknown }
  | {
      readonly kind: "problem";
      readonly code: ProblemCode;
      readonly detail: string;
      readonly retryAfter: number | null;
    };

/** What of a request matters to the node that answers it. */
const forwardedHeaders = [
  "accept",
  "authorization",
  "conflux-min-revision",
  "content-type",
  "idempotency-key",
  "if-match",
  "if-none-match",
  "last-event-id",
  "x-api-key",
] as const;

/** Marks an answer that says nothing but: ask another node. */
const notHereHeader = "conflux-not-here";

export const exchangeTimeoutMs = 15_000;

/** Failures of an exchange that prove that nothing was carried out. */
const notExecuted: ReadonlySet<ProblemCode> = new Set(["not-ready", "overloaded", "no-quorum"]);

export type Fetch = (request: Request, info: RequestInfo) => Response | Promise<Response>;

export class Peers {
  readonly #service: ConfigService;
  readonly #fetch: Fetch;

  /** @param fetch the gateway's own: it answers what other nodes forward */
  constructor(service: ConfigService, fetch: Fetch) {
    this.#service = service;
    this.#fetch = fetch;
    service.onExchange((from, bytes) => this.#answer(from, bytes));
  }

  // --- the directory ---------------------------------------------------------------------------------------------------

  async systemRow<T>(key: string, consistency: Consistency): Promise<T | undefined> {
    const nodes = await this.#elsewhere();
    if (nodes === null)
      return this.#service.read(systemTenant, { consistency }, (view) => view.get<T>(key));
    const value = await this.#ask(nodes, { kind: "row", key, consistency }, true);
    return value === null ? undefined : (value as T);
  }

  /** Linearizable; with the ETag of the row, which is empty when there is none. */
  async taggedRow<T extends { readonly revision: number }>(
    key: string,
  ): Promise<{ readonly row: T | undefined; readonly etag: string }> {
    // First: an epoch that ended before the row was read matches nothing.
    const meta = await this.systemRow<TenantMeta>(metaKey, "stale");
    const row = await this.systemRow<T>(key, "linearizable");
    const { semantics } = this.#service;
    const etag = row === undefined ? "" : revisionTag(semantics, meta?.epoch ?? 0, row.revision);
    return { row, etag };
  }

  /** Linearizable. */
  async systemRows<T>(range: RowRange): Promise<readonly (readonly [string, T])[]> {
    const nodes = await this.#elsewhere();
    const rows =
      nodes === null
        ? await this.#service.read(systemTenant, { consistency: "linearizable" }, (view) =>
            rowsOf(view, range),
          )
        : await this.#ask(nodes, { kind: "rows", range }, true);
    return rows as readonly (readonly [string, T])[];
  }

  /** A rehearsal tells what the command would do, and does nothing. */
  async systemPropose(command: Command, rehearsal = false): Promise<Outcome> {
    const nodes = await this.#elsewhere();
    if (nodes === null) return this.#propose(command, rehearsal);
    const answer = await this.#ask(nodes, { kind: "propose", command, rehearsal }, rehearsal);
    return answer as Outcome;
  }

  #propose(command: Command, rehearsal: boolean): Promise<Outcome> {
    return rehearsal
      ? this.#service.read(systemTenant, { consistency: "linearizable" }, (view) =>
          dryRun(view, command),
        )
      : this.#service.propose(systemTenant, command);
  }

  /** Null: the directory has a replica here. */
  async #elsewhere(): Promise<readonly string[] | null> {
    if (this.#service.locateNow(systemTenant)?.local === true) return null;
    const place = await this.#service.locate(systemTenant);
    if (place === null) throw new Problem("not-ready", "The cluster's directory is not known yet");
    return place.local ? null : place.nodes;
  }

  async #ask(nodes: readonly string[], header: RequestHeader, safe: boolean): Promise<unknown> {
    return this.#firstOf(nodes, safe, async (node) => {
      const answer = decode<ResponseHeader>(
        await this.#service.exchange(node, encode(header, null), exchangeTimeoutMs),
      );
      if (answer.header.kind === "problem") throw problemOf(answer.header);
      if (answer.header.kind !== "value") throw new Problem("internal", "Wrong kind of answer");
      return answer.header.value;
    });
  }

  // --- requests ----------------------------------------------------------------------------------------------------------

  /** Has the call answered by the first of `nodes` that can. @throws Problem */
  async forward(
    call: Call,
    nodes: readonly string[],
    body: Uint8Array | null,
    options: {
      readonly target?: string;
      readonly timeoutMs?: number;
      /** It changes nothing, so that another node may be asked after one failed. Default: as the method says. */
      readonly safe?: boolean;
      /** A header that is not passed on. */
      readonly without?: string;
    } = {},
  ): Promise<Answer> {
    const headers: Record<string, string> = { "x-request-id": call.requestId };
    for (const name of forwardedHeaders) {
      if (name === options.without) continue;
      const value = call.request.headers.get(name);
      if (value !== null) headers[name] = value;
    }
    const method = call.request.method === "HEAD" ? "GET" : call.request.method;
    const message = encode(
      {
        kind: "http",
        method,
        target: options.target ?? call.target,
        headers,
        address: call.info.remoteAddress ?? null,
      },
      body,
    );
    const timeoutMs = options.timeoutMs ?? exchangeTimeoutMs;
    return this.#firstOf(nodes, options.safe ?? method === "GET", async (node) => {
      const answer = decode<ResponseHeader>(await this.#service.exchange(node, message, timeoutMs));
      if (answer.header.kind === "problem") throw problemOf(answer.header);
      if (answer.header.kind !== "http") throw new Problem("internal", "Wrong kind of answer");
      const { status, headers: received } = answer.header;
      if (received[notHereHeader] !== undefined)
        throw new NotHere(call.params["tenant"] as string, node);
      return {
        status,
        headers: { ...received },
        // A response to these may not have a body, not even an empty one.
        body: status === 204 || status === 304 ? null : answer.body,
      };
    });
  }

  async #firstOf<T>(
    nodes: readonly string[],
    safe: boolean,
    attempt: (node: string) => Promise<T>,
  ): Promise<T> {
    let last: unknown = new Problem("no-quorum", "No node that holds this tenant is known");
    for (const node of nodes) {
      try {
        return await attempt(node);
      } catch (error) {
        last = error;
        if (!safe && !(error instanceof Problem && notExecuted.has(error.code))) break;
      }
    }
    // What changes nothing has no outcome that one could not know.
    if (safe && last instanceof Problem && last.code === "outcome-unknown")
      throw new Problem("no-quorum", "None of the nodes that could tell answers");
    throw last;
  }

  /** Answers what another node's gateway asked. */
  async #answer(from: string, bytes: Uint8Array): Promise<Uint8Array> {
    try {
      const { header, body } = decode<RequestHeader>(bytes);
      switch (header.kind) {
        case "http":
          return await this.#answerHttp(from, header, body);
        case "row":
          return value(
            (await this.#service.read(systemTenant, { consistency: header.consistency }, (view) =>
              view.get(header.key),
            )) ?? null,
          );
        case "rows":
          return value(
            await this.#service.read(systemTenant, { consistency: "linearizable" }, (view) =>
              rowsOf(view, header.range),
            ),
          );
        case "propose":
          return value(await this.#propose(header.command, header.rehearsal));
        default:
          throw new Problem("invalid", "This node does not know such a request");
      }
    } catch (error) {
      const problem =
        error instanceof Problem ? error : new Problem("internal", "The other node failed");
      return encode(
        {
          kind: "problem",
          code: problem.code,
          detail: problem.message,
          retryAfter: problem.retryAfter,
        },
        null,
      );
    }
  }

  async #answerHttp(
    from: string,
    header: RequestHeader & { readonly kind: "http" },
    body: Uint8Array,
  ): Promise<Uint8Array> {
    const request = new Request(`http://localhost${header.target}`, {
      method: header.method,
      headers: header.headers,
      ...(body.length > 0 && { body: new Uint8Array(body) }),
    });
    const response = await this.#fetch(request, {
      remoteAddress: header.address ?? undefined,
      forwardedBy: from,
    });
    const headers: Record<string, string> = {};
    response.headers.forEach((text, name) => {
      headers[name] = text;
    });
    return encode(
      { kind: "http", status: response.status, headers },
      new Uint8Array(await response.arrayBuffer()),
    );
  }
}

/** What a node answers to a forwarded request for a tenant that it does not hold: never forwarded a second time. */
export function notHereAnswer(answer: Answer): Answer {
  return { ...answer, headers: { ...answer.headers, [notHereHeader]: "1" } };
}

function rowsOf(view: TenantView, { gte, lt, limit }: RowRange): Row[] {
  const rows: Row[] = [];
  for (const row of view.range({ gte, lt })) {
    rows.push(row);
    if (rows.length === limit) break;
  }
  return rows;
}

function problemOf(header: ResponseHeader & { readonly kind: "problem" }): Problem {
  // An older or newer node may know codes that this one does not.
  const code = Object.hasOwn(problems, header.code) ? header.code : "internal";
  return new Problem(
    code,
    header.detail,
    header.retryAfter === null ? {} : { retryAfter: header.retryAfter },
  );
}

// --- messages --------------------------------------------------------------------------------------------------------

const lengthBytes = 4;
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

function value(of: unknown): Uint8Array {
  return encode({ kind: "value", value: of }, null);
}

export function encode(
  header: RequestHeader | ResponseHeader,
  body: Uint8Array | null,
): Uint8Array<ArrayBuffer> {
  const head = encoder.encode(JSON.stringify(header));
  const bytes = new Uint8Array(lengthBytes + head.length + (body?.length ?? 0));
  new DataView(bytes.buffer).setUint32(0, head.length);
  bytes.set(head, lengthBytes);
  if (body !== null) bytes.set(body, lengthBytes + head.length);
  return bytes;
}

/** @throws Problem `invalid` when it is no such message */
export function decode<H>(bytes: Uint8Array): {
  readonly header: H;
  readonly body: Uint8Array<ArrayBuffer>;
} {
  if (bytes.length < lengthBytes) throw new Problem("invalid", "Message is too short");
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
  const end = lengthBytes + length;
  if (end > bytes.length) throw new Problem("invalid", "Message is shorter than it says");
  return {
    header: JSON.parse(decoder.decode(bytes.subarray(lengthBytes, end))) as H,
    body: new Uint8Array(bytes.subarray(end)),
  };
}
