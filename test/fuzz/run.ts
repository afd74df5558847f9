/**
 * Sends what the generator makes, one request after the other, and holds every answer against what any request is owed:
 * an answer in time, never a fault of the server, a documented shape, and no change by what was refused.
 */
import { Validator } from "@cfworker/json-schema";
import * as fc from "fast-check";
import { problems, type ProblemCode } from "../../src/api/problems.ts";
import { Generator, type FuzzRequest, type OpenApi, type Operation, type Who } from "./requests.ts";

export interface Sent {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
}

export interface Target {
  readonly tokens: Readonly<Record<Who, string>>;
  /** Of keys that may be deleted. */
  readonly keyIds: readonly string[];
  /** Of a stream the beginning is enough. */
  send(
    request: {
      readonly method: string;
      readonly target: string;
      readonly isStream: boolean;
    } & Pick<FuzzRequest, "headers" | "body">,
  ): Promise<Sent>;
  /** What a refused request must leave as it is. */
  state(): Promise<string>;
}

export interface Finding {
  readonly what: string;
  readonly request: FuzzRequest;
}

export interface Report {
  readonly requests: number;
  readonly byStatus: ReadonlyMap<number, number>;
  readonly operations: ReadonlySet<string>;
  readonly findings: readonly Finding[];
}

/** The server's own bounds of waits are well below. */
const answerMsMax = 15_000;
const findingsMax = 20;
/** Drawn at once; only the seed of a batch is needed to have it again. */
const batchSize = 100;
/** Refusals that are no fault: what was asked for is not here yet. */
const allowedFaults: readonly ProblemCode[] = ["not-caught-up"];

/** Takes away the tenant, the node or the keys that the run stands on. */
function isExcluded({ id, method, path }: Operation, who: Who | null): boolean {
  if (path.startsWith("/v1/cluster/") && method !== "GET") return who === "root";
  return id === "transferGroup";
}

/** Puts an empty tenant that waits for its rows in the place of one that the run stands on. */
function replacesTenant({ operation, body }: FuzzRequest): boolean {
  return operation.id === "beginRestore" && body !== null && /"replace":\s*true/.test(body);
}

export class Fuzzer {
  readonly #document: OpenApi;
  readonly #target: Target;
  readonly #generator: Generator;
  readonly #validators = new Map<string, Validator>();
  readonly #byStatus = new Map<number, number>();
  readonly #operations = new Set<string>();
  readonly #findings: Finding[] = [];
  #requests = 0;
  #state: string | null = null;

  constructor(document: OpenApi, target: Target) {
    this.#document = document;
    this.#target = target;
    this.#generator = new Generator(document, target.keyIds);
  }

  get report(): Report {
    return {
      requests: this.#requests,
      byStatus: this.#byStatus,
      operations: this.#operations,
      findings: this.#findings,
    };
  }

  get operations(): readonly Operation[] {
    return this.#generator.operations;
  }

  /** One batch, the same for the same seed; what it meets depends on what came before. */
  async batch(seed: number): Promise<void> {
    const requests = fc.sample(this.#generator.request(isExcluded), { seed, numRuns: batchSize });
    for (const request of requests) {
      if (this.#findings.length >= findingsMax) return;
      if (replacesTenant(request)) continue;
      await this.send(request);
    }
  }

  async send(request: FuzzRequest): Promise<void> {
    const { operation, who } = request;
    const state = (this.#state ??= await this.#target.state());
    let sent: Sent;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error("no answer in time")), answerMsMax);
    });
    try {
      const token = who === null ? undefined : this.#target.tokens[who];
      const sending = this.#target.send({
        method: operation.method,
        target: request.target,
        isStream: operation.isWatch,
        headers: {
          ...(token !== undefined && { authorization: `Bearer ${token}` }),
          ...request.headers,
        },
        body: request.body,
      });
      sent = await Promise.race([sending, late]);
    } catch (error) {
      this.#found(request, error instanceof Error ? error.message : String(error));
      this.#state = null;
      return;
    } finally {
      clearTimeout(timer);
    }
    this.#requests += 1;
    this.#byStatus.set(sent.status, (this.#byStatus.get(sent.status) ?? 0) + 1);
    if (sent.status < 400) this.#operations.add(operation.id);
    for (const what of this.#wrong(operation, sent))
      this.#found(request, `${what}: ${sent.text.slice(0, 300)}`);
    const mayChange =
      sent.status < 400 && operation.method !== "GET" && !request.target.includes("dryRun=true");
    this.#state = mayChange ? null : await this.#target.state();
    if (!mayChange && this.#state !== state)
      this.#found(request, `${sent.status}, and yet something changed`);
  }

  #found(request: FuzzRequest, what: string): void {
    this.#findings.push({ what, request });
  }

  /** What this answer owes and does not give. */
  *#wrong(operation: Operation, { status, headers, text }: Sent): Iterable<string> {
    if (status < 100 || status > 599) yield `status ${status}`;
    if (headers.get("x-request-id") === null) yield "no x-request-id";
    if (/\n\s+at .+:\d+/.test(text)) yield "a stack leaks";
    if (status < 400) {
      const schema = operation.answers[status];
      const media = headers.get("content-type") ?? "";
      if (schema === undefined && ![204, 304].includes(status))
        yield `${operation.id} does not document ${status}`;
      if (schema == null || !media.startsWith("application/json")) return;
      const { valid, errors } = this.#validator(`${operation.id} ${status}`, schema).validate(
        JSON.parse(text),
      );
      if (!valid)
        yield `not as documented: ${errors.at(-1)?.instanceLocation} ${errors.at(-1)?.error}`;
      return;
    }
    if (operation.answers[status] != null) return;
    if (headers.get("content-type") !== "application/problem+json")
      return yield "no problem document";
    const body = JSON.parse(text) as Partial<Record<string, unknown>>;
    const code = body["code"] as ProblemCode;
    if (!Object.hasOwn(problems, code)) return yield "an unknown code";
    if (problems[code].status !== status || body["status"] !== status)
      yield "another status than its code";
    if (status >= 500 && !allowedFaults.includes(code)) yield "a fault";
    if (typeof body["detail"] !== "string" || body["detail"] === "") yield "no detail";
    if (body["requestId"] !== headers.get("x-request-id")) yield "another request id";
  }

  #validator(key: string, schema: object): Validator {
    let validator = this.#validators.get(key);
    if (validator === undefined) {
      const { components } = this.#document;
      validator = new Validator({ ...schema, components }, "2020-12", false);
      this.#validators.set(key, validator);
    }
    return validator;
  }
}

/** Tenants and keys that a run needs, made with the root token. */
export async function prepare(
  rootToken: string,
  post: (path: string, body: object) => Promise<unknown>,
): Promise<Pick<Target, "tokens" | "keyIds">> {
  const tenant = async (id: string): Promise<string> =>
    ((await post("/v1/tenants", { id })) as { key: { token: string } }).key.token;
  const key = async (kind: string, namespaces?: readonly string[]): Promise<string> => {
    const made = await post("/v1/tenants/acme/keys", { kind, ...(namespaces && { namespaces }) });
    return (made as { token: string }).token;
  };
  const tokens: Record<Who, string> = {
    root: rootToken,
    admin: await tenant("acme"),
    foreign: await tenant("other"),
    write: await key("write"),
    read: await key("read"),
    client: await key("client"),
    scoped: await key("admin", ["dev"]),
  };
  const passing = [await key("write"), await key("read", ["app"]), await key("client")];
  return { tokens, keyIds: passing.map((token) => token.split("_")[3] as string) };
}

export function describeFinding({ what, request }: Finding): string {
  const { operation, mood, who, target, headers, body } = request;
  const shown =
    body === null
      ? ""
      : `\n    body: ${body.length > 400 ? `${body.slice(0, 400)}… (${body.length} chars)` : body}`;
  return `${what}\n    ${operation.method} ${target.slice(0, 300)} (${operation.id}, ${mood}, as ${who})\n    headers: ${JSON.stringify(headers).slice(0, 300)}${shown}`;
}
