/** One gateway, or several, over the twin of the host; and a client that speaks HTTP with them. */
import { FormatRegistry } from "@sinclair/typebox";
import { Value } from "@sinclair/typebox/value";
import {
  createGateway,
  routes,
  type Gateway,
  type GatewaySettings,
} from "../../src/gateway/gateway.ts";
import { headersOf } from "../../src/gateway/openapi.ts";
import { hashToken } from "../../src/gateway/tokens.ts";
import { rootToken, SoloCluster } from "./solo_service.ts";

FormatRegistry.Set("date-time", (text) => new Date(text).toISOString() === text);

/** Every answer of every test is held against the schema that its route declares. */
function checkAnswer(method: string, path: string, answer: Answer): void {
  const parts = (path.split("?")[0] as string).split("/");
  const route = routes.find((one) => {
    const expected = one.path.split("/");
    return (
      one.method === method &&
      expected.length === parts.length &&
      expected.every((part, i) => part.startsWith(":") || part === parts[i])
    );
  });
  if (answer.headers.get("x-request-id") === null) throw new Error("An answer has no request id");
  if (answer.status >= 400 && route?.responses[answer.status] === undefined) {
    if (answer.text === "") return;
    if (answer.headers.get("content-type") !== "application/problem+json")
      throw new Error(`Not a problem document: ${answer.text}`);
    return;
  }
  if (route === undefined || answer.status === 304 || answer.status === 204) return;
  const declared = route.responses[answer.status];
  if (declared === undefined) throw new Error(`${route.id} does not declare ${answer.status}`);
  const isReal = answer.headers.get("conflux-dry-run") === null;
  for (const name of Object.keys(headersOf(route, answer.status)))
    if (answer.headers.get(name) === null && (isReal || name !== "Location"))
      throw new Error(`${route.id} answers ${answer.status} without ${name}`);
  if (declared.schema === undefined || declared.media === "*/*") return;
  const type = answer.headers.get("content-type");
  if (type?.startsWith("text/event-stream") === true || type === "application/x-ndjson") return;
  const error = Value.Errors(declared.schema, answer.body).First();
  if (error !== undefined)
    throw new Error(`${route.id} answers ${error.path}: ${error.message}: ${answer.text}`);
}

export interface LogLine {
  readonly level: string;
  readonly fields: object;
  readonly event: string;
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  // oxlint-disable-next-line typescript/no-explicit-any -- tests read what they expect
  readonly body: any;
  readonly text: string;
}

export interface Options {
  readonly token?: string | null;
  readonly body?: unknown;
  readonly raw?: BodyInit;
  readonly headers?: Record<string, string>;
}

export class Harness {
  readonly cluster: SoloCluster;
  readonly gateways = new Map<string, Gateway>();
  readonly logged: LogLine[] = [];

  constructor(
    options: {
      nodes?: readonly string[];
      settings?: Partial<GatewaySettings>;
      isDebug?: boolean;
      /** Gateways with other settings over the same state. */
      cluster?: SoloCluster;
    } = {},
  ) {
    this.cluster =
      options.cluster ?? new SoloCluster(options.nodes ?? ["n1"], hashToken(rootToken));
    const line =
      (level: string) =>
      (fields: object, event: string): void => {
        this.logged.push({ level, fields, event });
      };
    for (const [node, service] of this.cluster.services)
      this.gateways.set(
        node,
        createGateway({
          service,
          log: {
            debug: line("debug"),
            info: line("info"),
            warn: line("warn"),
            error: line("error"),
            isLevelEnabled: () => options.isDebug ?? false,
          },
          settings: { version: "0.0.0-test", ...options.settings },
        }),
      );
  }

  gateway(node = "n1"): Gateway {
    return this.gateways.get(node) as Gateway;
  }

  request(method: string, path: string, options: Options = {}): Request {
    const { token = rootToken, body, raw, headers = {} } = options;
    const sent = raw ?? (body === undefined ? undefined : JSON.stringify(body));
    return new Request(`http://localhost${path}`, {
      method,
      headers: {
        ...(token !== null && { authorization: `Bearer ${token}` }),
        ...(sent !== undefined && { "content-type": "application/json" }),
        ...headers,
      },
      ...(sent !== undefined && { body: sent, duplex: "half" }),
    });
  }

  async call(
    method: string,
    path: string,
    options: Options & { readonly node?: string } = {},
  ): Promise<Answer> {
    const response = await this.gateway(options.node).fetch(this.request(method, path, options), {
      remoteAddress: "192.0.2.1",
    });
    const text = await response.text();
    const isJson = /[/+]json/.test(response.headers.get("content-type") ?? "");
    const answer = {
      status: response.status,
      headers: response.headers,
      body: isJson && text !== "" ? (JSON.parse(text) as unknown) : text,
      text,
    };
    if (method !== "HEAD") checkAnswer(method, path, answer);
    return answer;
  }

  /** @returns the tenant's first admin token */
  async tenant(id: string, body: object = {}): Promise<string> {
    const answer = await this.call("POST", "/v1/tenants", { body: { id, ...body } });
    if (answer.status !== 201) throw new Error(`No tenant: ${answer.text}`);
    return answer.body.key.token as string;
  }

  async key(
    tenant: string,
    kind: string,
    options: { namespaces?: readonly string[]; expiresAt?: string } = {},
  ): Promise<{ id: string; token: string }> {
    const answer = await this.call("POST", `/v1/tenants/${tenant}/keys`, {
      body: { kind, ...options },
    });
    if (answer.status !== 201) throw new Error(`No key: ${answer.text}`);
    return answer.body as { id: string; token: string };
  }

  close(): void {
    for (const gateway of this.gateways.values()) gateway.close();
  }
}

export interface Frame {
  readonly event: string;
  readonly id: string | undefined;
  // oxlint-disable-next-line typescript/no-explicit-any -- tests read what they expect
  readonly data: any;
}

/** Reads a stream of server-sent events frame by frame. */
export class FrameReader {
  readonly comments: string[] = [];
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #decoder = new TextDecoder();
  #text = "";

  constructor(response: Response) {
    if (response.body === null) throw new Error("No stream");
    this.#reader = response.body.getReader();
  }

  /** Null at the end of the stream. */
  async next(timeoutMs = frameWaitMs): Promise<Frame | null> {
    for (;;) {
      const end = this.#text.indexOf("\n\n");
      if (end >= 0) {
        const block = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 2);
        const frame = this.#parse(block);
        if (frame !== null) return frame;
        continue;
      }
      const { done, value } = await within(this.#reader.read(), timeoutMs);
      if (done) return null;
      this.#text += this.#decoder.decode(value, { stream: true });
    }
  }

  /** The next frame that is not a bookmark. */
  async nextNews(timeoutMs = frameWaitMs): Promise<Frame | null> {
    for (;;) {
      const frame = await this.next(timeoutMs);
      if (frame === null || frame.event !== "bookmark") return frame;
    }
  }

  #parse(block: string): Frame | null {
    const fields = new Map<string, string>();
    for (const line of block.split("\n")) {
      if (line.startsWith(":")) this.comments.push(line);
      const colon = line.indexOf(": ");
      if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 2));
    }
    const event = fields.get("event");
    if (event === undefined) return null;
    return { event, id: fields.get("id"), data: JSON.parse(fields.get("data") ?? "null") };
  }

  async cancel(): Promise<void> {
    await this.#reader.cancel();
  }
}

/** A busy machine may take seconds over what usually takes milliseconds; less than the runner's own patience. */
const frameWaitMs = 15_000;

export async function within<T>(promise: Promise<T>, ms: number): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`Nothing within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
