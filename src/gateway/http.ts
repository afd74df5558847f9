/**
 * HTTP as the routes need it: a call with its parsed parts, answers as data, problems as RFC 9457.
 *
 * Answers stay plain until the very end, so that headers which every answer carries are added once, before the Response
 * is built: changing the headers of a built Response costs more than everything else here.
 */
import type { Static, TObject, TSchema } from "@sinclair/typebox";
import { TypeCompiler, type TypeCheck } from "@sinclair/typebox/compiler";
import { Problem, problems, type ProblemBody, type ProblemDetailError } from "../api/problems.ts";
import { tagsLevel } from "../machine/command.ts";
import { tagOf } from "../machine/draft.ts";
import type { KeyKind } from "../machine/rows.ts";
import { memberCount, parseJsonText, placeOf, repeatedName, scanJson } from "../model/json.ts";
import { escapePointer, shown } from "../model/names.ts";
import type { OpenStream } from "./streams.ts";

export interface RequestInfo {
  readonly remoteAddress?: string | undefined;
  /** Set when another node's gateway sent it here: it must be answered here or not at all. */
  readonly forwardedBy?: string;
}

/** Who is calling, as far as this call concerns. */
export interface Principal {
  readonly kind: KeyKind;
  readonly keyId: string;
  /** Null: all of them. */
  readonly namespaces: readonly string[] | null;
  readonly expiresAt: number | null;
  /** What it may beside what its kind may. */
  readonly scopes?: readonly "secrets"[];
  /** Whose token it is, when it is none of ours. */
  readonly issuer?: string;
}

/** One request on its way through a route. */
export interface Call {
  readonly request: Request;
  readonly requestId: string;
  readonly info: RequestInfo;
  /** Path and query as they came. */
  readonly target: string;
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  readonly token: string | null;
  /** The answer must have no body. */
  readonly head: boolean;
  dryRun: boolean;
  /** The body as it came, once it was read: it may have to be sent on, or read again, when the tenant leaves meanwhile. */
  bytes: Uint8Array | null;
  /** What it says, once that was looked at. */
  body: unknown;
  /** A change was proposed, whatever became of it. */
  proposed: boolean;
  principal: Principal | null;
  /** The tenant's revision this answer reflects; null outside tenants. */
  revision: number | null;
  /** For the answer's headers; null: nobody set a limit. */
  rateLimit: { readonly policy: string; readonly state: string } | null;
}

export interface Answer {
  readonly status: number;
  readonly headers: Record<string, string>;
  /** These headers as an object that many answers use; then `headers` must stay as they are. */
  readonly shared?: Headers;
  readonly body: string | Uint8Array<ArrayBuffer> | ReadableStream<Uint8Array> | null;
}

// --- answers -----------------------------------------------------------------------------------------------------------

export function json(
  value: unknown,
  options: { status?: number; etag?: string; headers?: Record<string, string> } = {},
): Answer {
  const headers: Record<string, string> = {
    "content-type": "application/json; charset=utf-8",
    // Answers depend on the key that asked, and change at any time: caches must ask again.
    "cache-control": "no-cache",
    ...options.headers,
  };
  if (options.etag !== undefined) headers["etag"] = options.etag;
  return { status: options.status ?? 200, headers, body: JSON.stringify(value) };
}

/**
 * From here on the body of a late answer goes out as a stream of one chunk. Bun writes the head of such an answer together
 * only when its body is shorter than this; before a longer one every name and value of the head is a system call of its
 * own, thirty in all, which costs several times what the answer does (oven-sh/bun#41341). A stream has its head in one
 * piece, and costs 25 µs. An answer within the turn of the event loop that brought the request needs neither.
 */
const streamedBytesMin = 15 * 1024;
const utf8Bytes = new TextEncoder();

/**
 * A body as a Response takes it best.
 * @param openStream null: the answer is not late, or the runtime does not mind
 */
export function bodyInit(body: Answer["body"], openStream: OpenStream | null): Answer["body"] {
  if (body === null || body instanceof ReadableStream || body.length < streamedBytesMin)
    return body;
  if (openStream === null) return body;
  return openStream({
    open(sink) {
      sink.write(typeof body === "string" ? utf8Bytes.encode(body) : body);
      sink.end();
    },
    drained() {},
    gone() {},
  });
}

/** Where the meaning of each code is written down, relative to any server. */
export function problemType(code: string): string {
  return `/problems/${code}`;
}

export function problemAnswer(problem: Problem, requestId: string): Answer {
  const { status, title } = problems[problem.code];
  const body: ProblemBody = {
    type: problemType(problem.code),
    title,
    status,
    detail: problem.message,
    code: problem.code,
    requestId,
    ...(problem.errors.length > 0 && { errors: problem.errors }),
  };
  const headers: Record<string, string> = {
    "content-type": "application/problem+json",
    "cache-control": "no-store",
  };
  if (status === 401) headers["www-authenticate"] = 'Bearer realm="conflux"';
  if (problem.retryAfter !== null && (status === 429 || status === 503))
    headers["retry-after"] = String(Math.max(1, Math.ceil(problem.retryAfter)));
  return { status, headers, body: JSON.stringify(body) };
}

export function invalid(detail: string, errors: readonly ProblemDetailError[] = []): Problem {
  return new Problem("invalid", detail, { errors });
}

/** RFC 3339 in UTC. */
export function time(ms: number): string;
export function time(ms: number | null): string | null;
export function time(ms: number | null): string | null {
  return ms === null ? null : new Date(ms).toISOString();
}

// --- reading what came --------------------------------------------------------------------------------------------------

const requestIdForm = /^[A-Za-z0-9._-]{1,128}$/;

/** The caller's own id when it is fit to be logged and echoed; else null. */
export function givenRequestId(request: Request): string | null {
  const given = request.headers.get("x-request-id");
  return given !== null && requestIdForm.test(given) ? given : null;
}

const tokenLengthMax = 512;
/** Tokens of issuers carry their claims. */
const issuedTokenLengthMax = 8_192;
const bearer = /^bearer /i;

/** Whether it has the form of a signed JSON Web Token (RFC 7515 §7.1), of which the header begins with `{"`. */
export function isIssuedToken(token: string): boolean {
  return token.startsWith("eyJ") && /^[\w-]+\.[\w-]+\.[\w-]+$/.test(token);
}

/** `Authorization: Bearer` or `X-API-Key`; null when neither holds something that could be a token. */
export function tokenOf(request: Request): string | null {
  const authorization = request.headers.get("authorization");
  let token: string | null;
  if (authorization === null) token = request.headers.get("x-api-key");
  else token = bearer.test(authorization) ? authorization.slice("bearer ".length).trim() : null;
  if (token === null || token === "") return null;
  return token.length > (isIssuedToken(token) ? issuedTokenLengthMax : tokenLengthMax)
    ? null
    : token;
}

/**
 * Reads a body of at most `bytesMax`, counting while it arrives: a chunked body announces no length, and an announced
 * one may lie.
 */
function readBody(request: Request, bytesMax: number): Promise<Uint8Array> {
  const announced = request.headers.get("content-length");
  if (announced === null) return readChunks(request, bytesMax);
  if (Number(announced) > bytesMax) return Promise.reject(tooLarge(bytesMax));
  // Without asking for `body`: Bun would make a stream of what it has, and read it through that.
  return request.arrayBuffer().then((buffer) => {
    if (buffer.byteLength > bytesMax) throw tooLarge(bytesMax);
    return new Uint8Array(buffer);
  });
}

async function readChunks(request: Request, bytesMax: number): Promise<Uint8Array> {
  if (request.body === null) return new Uint8Array(0);
  const chunks: Uint8Array[] = [];
  let length = 0;
  const reader = request.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > bytesMax) {
      await reader.cancel();
      throw tooLarge(bytesMax);
    }
    chunks.push(value);
  }
  return chunks.length === 1 ? (chunks[0] as Uint8Array) : Buffer.concat(chunks, length);
}

function tooLarge(bytesMax: number): Problem {
  return new Problem("body-too-large", `Send a body of at most ${bytesMax} bytes`);
}

/** A body that takes longer holds up a place among the requests under way for nothing. */
const bodyMsMax = 30_000;
/** How often bodies on their way are looked at. A timer for each would cost more than reading it. */
const bodiesCheckMs = 1_000;
/** When it is too late for a body, and what happens then. */
interface Arriving {
  readonly deadline: number;
  readonly late: () => void;
}
const arriving = new Set<Arriving>();
let bodiesCheck: ReturnType<typeof setInterval> | null = null;

function checkBodies(): void {
  const now = performance.now();
  for (const body of arriving) {
    // In order of arrival: the first that is in time has only such behind it.
    if (body.deadline > now) break;
    arriving.delete(body);
    body.late();
  }
  if (arriving.size > 0 || bodiesCheck === null) return;
  clearInterval(bodiesCheck);
  bodiesCheck = null;
}

/** The bytes of a body, for forwarding it unread. Client faults while sending are `invalid`. */
export function bodyBytes(request: Request, bytesMax: number): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const body: Arriving = {
      deadline: performance.now() + bodyMsMax,
      late: () => reject(invalid(`Send the whole body within ${bodyMsMax / 1_000} s`)),
    };
    arriving.add(body);
    bodiesCheck ??= setInterval(checkBodies, bodiesCheckMs);
    readBody(request, bytesMax).then(
      (bytes) => {
        arriving.delete(body);
        resolve(bytes);
      },
      (error: unknown) => {
        arriving.delete(body);
        reject(
          error instanceof Problem
            ? error
            : new Problem("invalid", "The body ended before it was complete", { cause: error }),
        );
      },
    );
  });
}

const utf8 = new TextDecoder("utf-8", { fatal: true });
/** Deeper documents exist only to exhaust stacks. */
const jsonDepthMax = 128;

/** @returns undefined when there is no body */
export async function jsonBody(call: Call, bytesMax: number): Promise<unknown> {
  const { request } = call;
  const bytes = (call.bytes ??= await bodyBytes(request, bytesMax));
  if (bytes.length === 0) return undefined;
  const encoding = request.headers.get("content-encoding");
  if (encoding !== null && encoding.toLowerCase() !== "identity")
    throw new Problem(
      "unsupported-media-type",
      `Send the body as it is, without Content-Encoding: ${shown(encoding)}`,
    );
  const type = request.headers.get("content-type");
  const media = type?.split(";", 1)[0]?.trim().toLowerCase();
  if (media !== "application/json")
    throw new Problem(
      "unsupported-media-type",
      `Send Content-Type: application/json${media === undefined ? "" : `, not ${shown(media)}`}`,
    );
  return parseJson(bytes);
}

export function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = utf8.decode(bytes);
  } catch (error) {
    throw new Problem("malformed-json", "The body is not UTF-8", { cause: error });
  }
  const { depth, inexact, members } = survey(text);
  if (depth > jsonDepthMax)
    throw new Problem("malformed-json", `Nest JSON at most ${jsonDepthMax} levels deep`);
  if (inexact !== null) {
    // The place, not what stands there: it may be meant for a secret.
    const { line, column } = placeOf(text, inexact);
    throw invalid(
      `Send the integer at line ${line}, column ${column} within a string, or the whole content as text: as a JSON number it would lose digits`,
    );
  }
  let value: unknown;
  try {
    value = parseJsonText(text);
  } catch (error) {
    // In our words: those of engines differ, and some of them quote the body.
    const { detail, line, column } = scanJson(text) ?? { detail: "", line: 1, column: 1 };
    const place = `line ${line}, column ${column}`;
    throw new Problem("malformed-json", `The body is not JSON: ${detail} (${place})`, {
      cause: error,
    });
  }
  // Counting is cheap; where a name was given twice is looked for only when one was.
  if (memberCount(value) !== members) throw givenTwice(text);
  return value;
}

/** The parser keeps the last of several: which one was meant nobody can know (RFC 8259 §4). */
function givenTwice(text: string): Problem {
  const pointer = repeatedName(text) ?? "";
  return invalid(`Give each name once in its object: ${shown(pointer)} comes twice`, [
    { pointer, detail: "Given more than once" },
  ]);
}

interface Survey {
  readonly depth: number;
  /** Where the first integer begins that parsing would silently change. */
  readonly inexact: number | null;
  /** Of all its objects together, if it is JSON. */
  readonly members: number;
}

/** What parsing would not tell of a JSON text. */
function survey(text: string): Survey {
  let depth = 0;
  let deepest = 0;
  let members = 0;
  let quoted = false;
  let inexact: number | null = null;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (quoted) {
      if (code === 0x5c) i++;
      else if (code === 0x22) quoted = false;
    } else if (code === 0x22) quoted = true;
    else if (code === 0x3a) members++;
    else if (code === 0x7b || code === 0x5b) deepest = Math.max(deepest, ++depth);
    else if (code === 0x7d || code === 0x5d) depth--;
    else if (code >= 0x30 && code <= 0x39) {
      const start = i;
      while (isOfNumber(text.charCodeAt(i + 1))) i++;
      if (inexact === null && i - start >= exactDigits && isInexact(text.slice(start, i + 1)))
        inexact = start;
    }
  }
  return { depth: deepest, inexact, members };
}

/** Integers of so many digits are exact as doubles. */
const exactDigits = 15;
/** Longer ones are beyond every double. */
const finiteDigitsMax = 309;

/** Fractions are rounded by everybody who reads JSON; whoever writes an integer means each of its digits. */
function isInexact(number: string): boolean {
  if (!/^\d+$/.test(number)) return false;
  return number.length > finiteDigitsMax || BigInt(number) !== exactly(Number(number));
}

function exactly(value: number): bigint | null {
  return Number.isFinite(value) ? BigInt(value) : null;
}

/** Digits, point, exponent and signs. */
function isOfNumber(code: number): boolean {
  return (
    (code >= 0x30 && code <= 0x39) ||
    code === 0x2e ||
    code === 0x65 ||
    code === 0x45 ||
    code === 0x2b ||
    code === 0x2d
  );
}

/**
 * The same JSON value gives the same text, whatever the order of its fields. Undefined stays empty. Not always JSON: a
 * number beyond a double was read as infinite, and is no null.
 */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "number") return String(value);
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "";
  const fields = Object.keys(value).sort();
  const object = value as Record<string, unknown>;
  return `{${fields.map((field) => `${JSON.stringify(field)}:${canonical(object[field])}`).join(",")}}`;
}

// --- checks against schemas ---------------------------------------------------------------------------------------------

const compiled = new WeakMap<TSchema, TypeCheck<TSchema>>();
const errorsShownMax = 10;

/** @throws Problem `invalid` with one entry per wrong place */
export function check<T extends TSchema>(schema: T, value: unknown, pointer = ""): Static<T> {
  let checker = compiled.get(schema);
  if (checker === undefined) {
    checker = TypeCompiler.Compile(schema);
    compiled.set(schema, checker);
  }
  if (checker.Check(value)) return value;
  if (value === undefined) throw invalid("Send a body of JSON");
  const errors: ProblemDetailError[] = [];
  for (const error of checker.Errors(value)) {
    // A missing field is reported twice: as missing, and as of the wrong type.
    if (errors.some((known) => known.pointer === pointer + error.path)) continue;
    errors.push({ pointer: pointer + error.path, detail: explain(error) });
    if (errors.length === errorsShownMax) break;
  }
  throw invalid(summary(errors), errors);
}

function summary(errors: readonly ProblemDetailError[]): string {
  const first = errors[0];
  if (first === undefined) return "The body is not what this route takes";
  const more = errors.length > 1 ? ` (and ${errors.length - 1} more)` : "";
  return `${first.pointer === "" ? "The body" : first.pointer}: ${first.detail}${more}`;
}

function explain(error: { readonly message: string; readonly schema: TSchema }): string {
  const choices = error.schema["anyOf"] as readonly TSchema[] | undefined;
  if (choices !== undefined)
    return choices.every((choice) => choice["const"] !== undefined)
      ? `Expected one of ${choices.map(choiceText).join(", ")}`
      : `Expected ${choices.map(choiceText).join(" or ")}`;
  if (error.message !== "Unexpected property") return error.message;
  // The schema is that of the object which the field is in.
  const known = Object.keys((error.schema["properties"] ?? {}) as object);
  return `This field is not known here: ${known.length === 0 ? "there are none" : `known are ${known.join(", ")}`}`;
}

function choiceText(choice: TSchema): string {
  if (choice["const"] !== undefined) return JSON.stringify(choice["const"]);
  const { type, minimum } = choice as { readonly type?: string; readonly minimum?: number };
  const from = minimum === undefined ? "" : ` from ${minimum}`;
  return `${type ?? "another value"}${from}`;
}

/** A parameter like 500ms or 30s. @throws Problem `invalid` */
export function durationMs(name: string, text: string, msMax: number): number {
  const match = /^(\d{1,7})(ms|s)$/.exec(text);
  const ms = match === null ? null : Number(match[1]) * (match[2] === "s" ? 1_000 : 1);
  if (ms === null || ms > msMax)
    throw invalid(`Give ${name} as 500ms or 30s, at most ${msMax / 1_000}s`, [
      { pointer: `/query/${name}`, detail: "Not such a duration" },
    ]);
  return ms;
}

/**
 * Query parameters against the properties of a schema: each at most once, none unknown; `label.*` only where `labels`
 * says so. Numbers and booleans are written as in JSON.
 */
export function readQuery(
  query: URLSearchParams,
  schema: TObject | null,
  labels: boolean,
): Readonly<Record<string, unknown>> {
  const known = readLately.get(query);
  if (known?.schema === schema && known.labels === labels) return known.values;
  const values = Object.freeze(valuesOf(query, schema, labels));
  readLately.set(query, { schema, labels, values });
  return values;
}

/** For which route a query was read last: the gateway gives the same object for the same text. */
const readLately = new WeakMap<
  URLSearchParams,
  {
    readonly schema: TObject | null;
    readonly labels: boolean;
    readonly values: Readonly<Record<string, unknown>>;
  }
>();

/** Queries in which something is percent-encoded, but not as UTF-8: the parameter, as far as it can be read. */
const illEncoded = new WeakMap<URLSearchParams, string>();

/** A query as it came, without the question mark. What is wrong with its encoding `readQuery` tells. */
export function parseQuery(text: string): URLSearchParams {
  const query = new URLSearchParams(text);
  if (!text.includes("%") || isUtf8(text)) return query;
  const pair = text.split("&").find((one) => !isUtf8(one)) ?? "";
  const [name = ""] = new URLSearchParams(pair).keys();
  illEncoded.set(query, name);
  return query;
}

/** A sign % that encodes nothing is taken as it is, as the URL standard has it. */
function isUtf8(encoded: string): boolean {
  try {
    decodeURIComponent(encoded.replaceAll(/%(?![0-9a-f]{2})/gi, "%25"));
    return true;
  } catch {
    return false;
  }
}

function valuesOf(
  query: URLSearchParams,
  schema: TObject | null,
  labels: boolean,
): Record<string, unknown> {
  const broken = illEncoded.get(query);
  if (broken !== undefined) {
    const detail = "Percent-encode the query as UTF-8";
    throw invalid(detail, [{ pointer: `/query/${escapePointer(broken)}`, detail }]);
  }
  const values: Record<string, unknown> = {};
  for (const [name, text] of query) {
    if (labels && name.startsWith("label.")) continue;
    const property =
      schema !== null && Object.hasOwn(schema.properties, name)
        ? (schema.properties[name] as TSchema)
        : undefined;
    if (property === undefined) {
      const known = [...Object.keys(schema?.properties ?? {}), ...(labels ? ["label.<name>"] : [])];
      throw invalid(
        `Leave out the query parameter ${shown(name)}: ${known.length === 0 ? "there are none here" : `known are ${known.join(", ")}`}`,
        [{ pointer: `/query/${escapePointer(name)}`, detail: "This parameter is not known here" }],
      );
    }
    if (Object.hasOwn(values, name))
      throw invalid(`Give the query parameter ${name} once`, [
        { pointer: `/query/${name}`, detail: "Given more than once" },
      ]);
    values[name] = fromText(text, property);
  }
  if (schema !== null) check(schema, values, "/query");
  return values;
}

function fromText(text: string, schema: TSchema): unknown {
  const type = schema["type"] as string | undefined;
  if (type === "integer" && /^-?\d{1,16}$/.test(text)) return Number(text);
  if (type === "boolean" && (text === "true" || text === "false")) return text === "true";
  return text;
}

// --- preconditions --------------------------------------------------------------------------------------------------------

/**
 * The strong ETag of something that changes with a revision. Without the epoch as long as there may be nodes that do not
 * know tags which name it.
 *
 * @param level of the cluster
 */
export function revisionTag(level: number, epoch: number, revision: number): string {
  return level < tagsLevel ? `"${revision}"` : `"${tagOf(epoch, revision)}"`;
}

/** The inverse of `revisionTag`: `<epoch>-<revision>`, a revision alone, or null for what is no tag of ours. */
export function parsedTag(tag: string): string | number | null {
  // Strong comparison (RFC 9110 §8.8.3.2): a weak tag never matches.
  const match = /^"(?:(\d{1,15})-)?(\d{1,15})"$/.exec(tag);
  if (match === null) return null;
  return match[1] === undefined ? Number(match[2]) : `${match[1]}-${match[2]}`;
}

/** `If-Match` of a change: the tags named, which may be none when they are not ours. Undefined: not given. */
export function ifMatch(request: Request): readonly (string | number)[] | "*" | undefined {
  const header = request.headers.get("if-match");
  if (header === null) return undefined;
  if (header.trim() === "*") return "*";
  return header.split(",").flatMap((tag) => parsedTag(tag.trim()) ?? []);
}

/** `If-None-Match` of a change: only `*`, create only. */
export function ifNoneMatchAny(request: Request): "*" | undefined {
  const header = request.headers.get("if-none-match");
  if (header === null) return undefined;
  if (header.trim() !== "*")
    throw invalid("Send If-None-Match: * on a change: other tags guard reads only");
  return "*";
}

/** Whether a read may be answered with 304. Weak comparison, as RFC 9110 §13.1.2 asks. */
export function noneMatch(header: string, etag: string): boolean {
  if (header.trim() === "*") return true;
  return header.split(",").some((tag) => tag.trim().replace(/^W\//, "") === etag);
}

/** `Conflux-Min-Revision`: what the answer must at least reflect. @throws Problem `invalid` */
export function minRevisionOf(request: Request): number | undefined {
  const header = request.headers.get("conflux-min-revision");
  if (header === null) return undefined;
  if (!/^\d{1,15}$/.test(header))
    throw invalid("Send Conflux-Min-Revision as a whole number, as Conflux-Revision gave it");
  return Number(header);
}
