/**
 * What both clients of the SDK (the live one and the management one) know of HTTP: how a failed answer becomes an error
 * class, how long to wait before trying again, and how to wait. `fetch` and timers only.
 */
import { Problem, problems } from "../api/problems.ts";
import type { ProblemBody, ProblemCode, ProblemDetailError } from "../api/problems.ts";

/** What the SDK needs of `fetch`: the platform's, or a function that hands the request to a gateway in this process. */
export type Fetch = (request: string, init: RequestInit) => Promise<Response>;

/** A key, or a function that gives the present one (asked before each request, so keys can be rotated). */
export type Token = string | (() => string | Promise<string>);

/** A failure that the server told. `code` is the thing to branch on. */
export class ServerProblem extends Problem {
  readonly title: string;
  /** Names this one request in the server's log; empty when an intermediary answered. */
  readonly requestId: string;
  readonly #status: number;

  constructor(
    code: ProblemCode,
    detail: string,
    answer: {
      status: number;
      title: string;
      requestId: string;
      errors?: readonly ProblemDetailError[];
      retryAfter?: number;
    },
  ) {
    super(code, detail, {
      ...(answer.errors === undefined ? {} : { errors: answer.errors }),
      ...(answer.retryAfter === undefined ? {} : { retryAfter: answer.retryAfter }),
    });
    this.title = answer.title;
    this.requestId = answer.requestId;
    this.#status = answer.status;
  }

  override get status(): number {
    return this.#status;
  }
}

/** No answer came: refused connection, unknown host, cut connection, time over. What was asked may have happened. */
export class Unreachable extends Error {
  override readonly name = "Unreachable";
  readonly url: string;

  constructor(url: string, reason: string, cause?: unknown) {
    super(`Cannot reach ${url}: ${reason}`, cause === undefined ? undefined : { cause });
    this.url = url;
  }
}

/** Something answers there that is no gateway: a proxy's page, or another service. */
export class Foreign extends Unreachable {
  constructor(url: string, { status, headers }: Pick<Response, "status" | "headers">) {
    const type = headers.get("content-type") ?? "nothing of a type";
    super(url, `what answers there is not a Conflux gateway (HTTP ${status}, ${type})`);
  }
}

/** A change was sent and nobody said what became of it: it may or may not have happened. */
export class Unanswered extends Unreachable {
  constructor({ url, message, cause }: Unreachable) {
    super(url, "", cause);
    this.message = message;
  }
}

/** Runtimes wrap the true reason of a failed fetch ("fetch failed") in causes; the innermost says most. */
export function reasonOf(error: unknown): string {
  let inner: unknown = error;
  for (let depth = 0; depth < 5; depth += 1) {
    const cause: unknown = inner instanceof Error ? inner.cause : undefined;
    if (cause === undefined || cause === null) break;
    inner = cause;
  }
  if (!(inner instanceof Error)) return String(inner);
  if (inner.name === "TimeoutError") return "no answer in time";
  const code = (inner as { code?: unknown }).code;
  // Bun's advice to programmers is none to whoever reads this.
  if (inner.message !== "") return inner.message.replace(/ For more information, pass .*$/, "");
  return typeof code === "string" ? code : inner.name;
}

/** An intermediary's answer carries no code of ours; the status says which of ours comes nearest. */
function codeOfStatus(status: number): ProblemCode {
  if (status === 401) return "unauthorized";
  if (status === 403) return "forbidden";
  if (status === 404) return "not-found";
  if (status === 405) return "method-not-allowed";
  if (status === 409) return "conflict";
  if (status === 410) return "tenant-deleted";
  if (status === 412) return "precondition-failed";
  if (status === 413) return "body-too-large";
  if (status === 415) return "unsupported-media-type";
  if (status === 429) return "too-many-requests";
  if (status === 504) return "outcome-unknown";
  if (status === 502 || status === 503) return "overloaded";
  return status >= 500 ? "internal" : "invalid";
}

/** Reads a failed answer to its end and gives what it says. */
export async function problemOf(response: Response): Promise<ServerProblem> {
  let body: Partial<ProblemBody> = {};
  try {
    const parsed: unknown = JSON.parse(await response.text());
    if (typeof parsed === "object" && parsed !== null) body = parsed;
  } catch {
    // Not ours: a proxy's page. The status is all there is.
  }
  const status = response.status;
  const code =
    typeof body.code === "string" && Object.hasOwn(problems, body.code)
      ? body.code
      : codeOfStatus(status);
  const title = typeof body.title === "string" ? body.title : "Not an answer of Conflux";
  const retryAfter = Number(response.headers.get("retry-after") ?? "x");
  return new ServerProblem(
    code,
    typeof body.detail === "string"
      ? body.detail
      : `${title} (HTTP ${status} of ${response.url.split("?", 1)[0]}, without a reason: is this Conflux?)`,
    {
      status,
      title,
      requestId:
        typeof body.requestId === "string"
          ? body.requestId
          : (response.headers.get("x-request-id") ?? ""),
      ...(Array.isArray(body.errors) ? { errors: body.errors } : {}),
      ...(Number.isFinite(retryAfter) && retryAfter >= 0 ? { retryAfter } : {}),
    },
  );
}

/**
 * Exponential backoff with full jitter: uniform over 0 … min(cap, base · 2^n). Of all jitters this one spreads a herd
 * of clients that lost the same server best.
 */
export class Backoff {
  readonly capMs: number;
  #baseMs: number;
  #failures = 0;
  readonly #random: () => number;

  constructor(baseMs: number, capMs: number, random: () => number = Math.random) {
    this.#baseMs = baseMs;
    this.capMs = capMs;
    this.#random = random;
  }

  /** Milliseconds to wait after one more failure, and at least `floorMs` (what the server asked for). */
  next(floorMs = 0): number {
    const ceiling = Math.min(this.capMs, this.#baseMs * 2 ** Math.min(this.#failures, 30));
    this.#failures += 1;
    return floorMs + Math.floor(this.#random() * ceiling);
  }

  /**
   * Milliseconds to wait for who was told to come back: `floorMs` and up to the first step, or half the floor where that
   * is more. It is no failure, so however often it happens the waits stay what they are.
   */
  soon(floorMs = 0): number {
    return floorMs + Math.floor(this.#random() * Math.max(this.#baseMs, floorMs / 2));
  }

  reset(): void {
    this.#failures = 0;
  }

  /** The server's wish (`retry:` of an event stream) for the first step. */
  get baseMs(): number {
    return this.#baseMs;
  }

  set baseMs(value: number) {
    this.#baseMs = Math.min(this.capMs, Math.max(1, value));
  }
}

/** Resolves after `ms`, or at once when the signal fires; never rejects. */
export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const finish = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", finish);
      resolve();
    };
    const timer = setTimeout(finish, ms);
    signal.addEventListener("abort", finish);
  });
}

/** Base URLs without the slash at the end; refuses what is not http(s). */
export function baseUrls(url: string | readonly string[]): readonly string[] {
  const list = typeof url === "string" ? url.split(",") : url;
  const urls = list.map((one) => {
    const text = one.trim();
    if (!/^https?:\/\//.test(text) || !URL.canParse(text))
      throw new TypeError(
        `Cannot use url ${JSON.stringify(one)}: want http(s)://host[:port][/path]`,
      );
    return text.replace(/\/+$/, "");
  });
  if (urls.length === 0) throw new TypeError("Cannot connect: no url is given");
  return urls;
}

/** Path segments, each encoded. */
export function path(...segments: readonly string[]): string {
  return segments.map((segment) => `/${encodeURIComponent(segment)}`).join("");
}

/** A random id: for Idempotency-Key. */
export function randomId(): string {
  // Not randomUUID: browsers give it to secure origins only.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
