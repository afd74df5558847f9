/**
 * People and workloads with tokens of their own identity provider: JSON Web Tokens of issuers that root has named.
 *
 * A token is checked once and remembered until it ends; at every request the issuer's row is looked at, so that a changed
 * or deleted issuer counts at once. Who may do what is said by the issuer's rules, over the token's claims.
 *
 * What must stay true: signatures are public-key ones of the algorithms that root allowed; nothing is fetched but what a
 * root key named, over TLS (or from this machine, when root said so), without redirects, within a size and a time; a
 * stranger's tokens cause at most one fetch per issuer every few seconds.
 */
import { Type } from "@sinclair/typebox";
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  customFetch,
  decodeJwt,
  errors,
  importJWK,
  jwtVerify,
  type JSONWebKeySet,
  type JWTPayload,
  type JWTVerifyGetKey,
} from "jose";
import { Problem } from "../api/problems.ts";
import { IssuerAnswer, IssuerPut, listOf } from "../api/schemas.ts";
import { issuersMax } from "../machine/directory.ts";
import { issuerKey, under } from "../machine/keys.ts";
import type { ClaimSource, IssuerRow } from "../machine/rows.ts";
import { isName } from "../model/names.ts";
import { unauthorized } from "./auth.ts";
import { changeDirectory, changedAnswer, precondition } from "./changes.ts";
import { invalid, json, time, type Call, type Principal } from "./http.ts";
import type { Peers } from "./peers.ts";
import { listLimitDefault, listQuery, route, type Route } from "./route.ts";
import { hashToken } from "./tokens.ts";

const fetchMsMax = 3_000;
const fetchBytesMax = 256 * 1024;
/** A fetch that failed is not tried again within this. */
const failurePauseMs = 5_000;
/** Keys are fetched anew for a key id that is not among them, at most this often. */
const keysCooldownMs = 30_000;
const keysAgeMs = 600_000;
const keysPerSetMax = 50;
/** Tokens that were checked. Each is at most as long as `tokenLengthMax` in http.ts. */
const verifiedMax = 1_000;
const namespacesMax = 100;
const clockSkewDefault = 30;
const algorithmsDefault = ["RS256", "ES256", "EdDSA"];

interface Verified {
  readonly issuer: string;
  /** Of the issuer's row it was checked by. */
  readonly revision: number;
  readonly claims: JWTPayload;
  readonly expiresAt: number;
}

interface KeySource {
  readonly revision: number;
  /** Of the wall clock on the monotonic one, when it was made. */
  readonly wallOrigin: number;
  readonly get: JWTVerifyGetKey;
}

export class Issuers {
  readonly #peers: Peers;
  readonly #nowMs: () => number;
  readonly #verified = new Map<string, Verified>();
  readonly #sources = new Map<string, KeySource>();
  /** As they were when they were listed last: where to look first. */
  #known: readonly IssuerRow[] = [];
  #listing: Promise<readonly IssuerRow[]> | null = null;

  constructor(peers: Peers, nowMs: () => number) {
    this.#peers = peers;
    this.#nowMs = nowMs;
  }

  /** What the token allows for the tenant. @throws Problem `unauthorized`, `forbidden`, `issuer-unavailable` */
  async principal(token: string, tenant: string | null): Promise<Principal> {
    const { row, claims, expiresAt } = await this.#check(token);
    const grant = tenant === null ? null : grantOf(row, claims, tenant);
    if (grant === null)
      throw new Problem(
        "forbidden",
        tenant === null
          ? "Only root keys may do that"
          : "This token is for other tenants, by the rules of its issuer",
      );
    return { ...grant, keyId: keyIdOf(row.name, claims), expiresAt, issuer: row.name };
  }

  async #check(token: string): Promise<{ row: IssuerRow; claims: JWTPayload; expiresAt: number }> {
    const known = this.#verified.get(token);
    if (known !== undefined) {
      const row = await this.#peers.systemRow<IssuerRow>(issuerKey(known.issuer), "stale");
      if (row?.revision === known.revision && known.expiresAt > this.#nowMs())
        return { row, ...known };
      this.#verified.delete(token);
    }
    const row = await this.#issuerOf(token);
    const claims = await this.#verify(token, row);
    // jwtVerify asked for it.
    const expiresAt = (claims.exp as number) * 1_000 + row.clockSkewSeconds * 1_000;
    if (this.#verified.size >= verifiedMax) this.#verified.clear();
    this.#verified.set(token, { issuer: row.name, revision: row.revision, claims, expiresAt });
    return { row, claims, expiresAt };
  }

  async #issuerOf(token: string): Promise<IssuerRow> {
    let issuer: unknown;
    try {
      issuer = decodeJwt(token).iss;
    } catch {
      throw unauthorized();
    }
    const isIt = (row: IssuerRow): boolean => row.issuer === issuer;
    const hint = this.#known.find(isIt);
    const row = hint && (await this.#peers.systemRow<IssuerRow>(issuerKey(hint.name), "stale"));
    if (row !== undefined && isIt(row)) return row;
    const now = (await this.#list()).find(isIt);
    if (now === undefined) throw unauthorized("The issuer of this token is not known here");
    return now;
  }

  /** Whoever asks at the same time waits for the same answer. */
  #list(): Promise<readonly IssuerRow[]> {
    this.#listing ??= this.#peers
      .systemRows<IssuerRow>({ ...under("iss"), limit: issuersMax })
      .then((found) => (this.#known = found.map(([, row]) => row)))
      .finally(() => (this.#listing = null));
    return this.#listing;
  }

  async #verify(token: string, row: IssuerRow): Promise<JWTPayload> {
    try {
      const { payload } = await jwtVerify(token, this.#keysOf(row), {
        issuer: row.issuer,
        audience: [...row.audience],
        algorithms: [...row.algorithms],
        clockTolerance: row.clockSkewSeconds,
        requiredClaims: ["exp", "sub"],
        currentDate: new Date(this.#nowMs()),
      });
      return payload;
    } catch (error) {
      if (error instanceof Problem) throw error;
      if (error instanceof errors.JWTExpired) throw unauthorized("This token has expired");
      if (error instanceof errors.JWTClaimValidationFailed)
        throw unauthorized(`This token is not for here: its claim ${error.claim} does not fit`);
      if (error instanceof errors.JWKSTimeout || error instanceof errors.JWKSInvalid)
        throw unavailable(row.name, error);
      if (error instanceof errors.JOSEError)
        throw unauthorized("The signature of this token is not one of its issuer");
      throw unavailable(row.name, error);
    }
  }

  #keysOf(row: IssuerRow): JWTVerifyGetKey {
    let source = this.#sources.get(row.name);
    const wallOrigin = Date.now() - performance.now();
    // Its ages are by the wall clock: keys that were read before it was set back would count for as much longer.
    const isSet = source !== undefined && Math.abs(source.wallOrigin - wallOrigin) > keysCooldownMs;
    if (source === undefined || source.revision !== row.revision || isSet) {
      if (this.#sources.size >= issuersMax) this.#sources.clear();
      source = { revision: row.revision, wallOrigin, get: keySource(row) };
      this.#sources.set(row.name, source);
    }
    return source.get;
  }
}

function unavailable(name: string, cause: unknown): Problem {
  return new Problem(
    "issuer-unavailable",
    `The keys of issuer ${name} cannot be read now: repeat it, or use a key of the tenant`,
    { cause, retryAfter: failurePauseMs / 1_000 },
  );
}

// --- keys of issuers -------------------------------------------------------------------------------------------------------

function keySource(row: IssuerRow): JWTVerifyGetKey {
  if (row.jwks !== null) return createLocalJWKSet(row.jwks as JSONWebKeySet);
  const fetchBounded = boundedFetch(row);
  let failedAt = Number.NEGATIVE_INFINITY;
  let remote: Promise<JWTVerifyGetKey> | null = null;
  const open = async (): Promise<JWTVerifyGetKey> => {
    const uri = row.jwksUri ?? (await discover(row, fetchBounded));
    return createRemoteJWKSet(new URL(uri), {
      timeoutDuration: fetchMsMax,
      cooldownDuration: keysCooldownMs,
      cacheMaxAge: keysAgeMs,
      [customFetch]: async (url: string): Promise<Response> => {
        try {
          return await fetchBounded(url);
        } catch (error) {
          failedAt = performance.now();
          throw unavailable(row.name, error);
        }
      },
    });
  };
  return async (header, token) => {
    if (performance.now() - failedAt < failurePauseMs) throw unavailable(row.name, null);
    remote ??= open().catch((error: unknown) => {
      failedAt = performance.now();
      remote = null;
      throw unavailable(row.name, error);
    });
    return (await remote)(header, token);
  };
}

/** OpenID Connect Discovery 1.0 §4. */
async function discover(
  row: IssuerRow,
  fetchBounded: (url: string) => Promise<Response>,
): Promise<string> {
  const base = row.issuer.replace(/\/$/, "");
  const answer = await fetchBounded(`${base}/.well-known/openid-configuration`);
  const { issuer, jwks_uri: uri } = (await answer.json()) as Record<string, unknown>;
  if (issuer !== row.issuer || typeof uri !== "string") throw new Error("Not about this issuer");
  const wrong = wrongUrl(uri, row.insecureHttp);
  if (wrong !== null) throw new Error(wrong);
  return uri;
}

function boundedFetch(row: IssuerRow): (url: string) => Promise<Response> {
  return async (url) => {
    const wrong = wrongUrl(url, row.insecureHttp);
    if (wrong !== null) throw new Error(wrong);
    const answer = await fetch(url, {
      // Who may answer for an issuer was named by root, not by the issuer's own redirects.
      redirect: "error",
      headers: { accept: "application/json" },
      signal: AbortSignal.timeout(fetchMsMax),
    });
    if (answer.status !== 200 || answer.body === null)
      throw new Error(`The issuer answers with status ${answer.status}`);
    const chunks: Uint8Array[] = [];
    let length = 0;
    for await (const chunk of answer.body as unknown as AsyncIterable<Uint8Array>) {
      length += chunk.length;
      if (length > fetchBytesMax) throw new Error(`The issuer sends more than ${fetchBytesMax}`);
      chunks.push(chunk);
    }
    return new Response(Buffer.concat(chunks), { status: 200 });
  };
}

const loopbackHosts: ReadonlySet<string> = new Set(["127.0.0.1", "[::1]", "localhost"]);

/** Null when it may be fetched. */
function wrongUrl(text: string, insecureHttp: boolean): string | null {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (url === null || url.username !== "" || url.password !== "" || url.hash !== "")
    return "Give an absolute URL without user and fragment";
  if (url.protocol === "https:") return null;
  if (url.protocol === "http:" && insecureHttp && loopbackHosts.has(url.hostname)) return null;
  return "Give an https URL; http is for 127.0.0.1, [::1] and localhost only, with insecureHttp";
}

// --- what a token allows -----------------------------------------------------------------------------------------------------

type Grant = Pick<Principal, "kind" | "namespaces">;

function grantOf(row: IssuerRow, claims: JWTPayload, tenant: string): Grant | null {
  for (const rule of row.rules) {
    const isFor =
      typeof rule.tenant === "string"
        ? rule.tenant === tenant
        : valuesOf(claims, rule.tenant.claim).includes(tenant);
    if (!isFor || !matches(rule.match, claims)) continue;
    if (rule.namespaces === null || isList(rule.namespaces))
      return { kind: rule.kind, namespaces: rule.namespaces };
    const namespaces = valuesOf(claims, rule.namespaces.claim)
      .flatMap((value) => value.split(" "))
      .filter((value) => isName(value))
      .slice(0, namespacesMax);
    // Without the claim it is limited to nothing, not unlimited.
    return namespaces.length === 0 ? null : { kind: rule.kind, namespaces };
  }
  return null;
}

function isList(namespaces: readonly string[] | ClaimSource): namespaces is readonly string[] {
  return Array.isArray(namespaces);
}

function matches(match: IssuerRow["rules"][number]["match"], claims: JWTPayload): boolean {
  return Object.entries(match).every(([claim, wanted]) => {
    const values = valuesOf(claims, claim);
    return wanted.some((one) => values.includes(one));
  });
}

/** A claim's values as text: of a list each, of anything else its one. */
function valuesOf(claims: JWTPayload, claim: string): readonly string[] {
  let value: unknown = claims;
  const steps = claim.startsWith("/") ? claim.slice(1).split("/") : [claim];
  for (const step of steps) {
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, step)) return [];
    value = (value as Record<string, unknown>)[step];
  }
  return (Array.isArray(value) ? value : [value])
    .filter((one) => ["string", "number", "boolean"].includes(typeof one))
    .map(String);
}

/** Shown in histories and audits: as the issuer names the caller, or a hash where that could break a line. */
function keyIdOf(issuer: string, claims: JWTPayload): string {
  const subject = claims.sub ?? "";
  return `${issuer}:${/^[\x21-\x7e]{1,200}$/.test(subject) ? subject : hashToken(subject)}`;
}

// --- routes ------------------------------------------------------------------------------------------------------------------

const one = "/v1/issuers/:issuer";

export const issuerRoutes: readonly Route[] = [
  route({
    method: "PUT",
    path: one,
    id: "putIssuer",
    tag: "issuers",
    summary: "Take tokens of an identity provider as keys, by rules over their claims",
    guarded: true,
    body: IssuerPut,
    responses: {
      200: { description: "As it is now", schema: IssuerAnswer },
      201: { description: "Created", schema: IssuerAnswer },
    },
    handle: async (call, { body }, context) => {
      const name = nameOf(call);
      const issuer = { name, ...(await checked(body)) };
      const changed = await changeDirectory<"issuer.put">(call, context, {
        op: "issuer.put",
        issuer,
        ...precondition(call, context),
      });
      const row = changed.result.issuer;
      return changedAnswer(changed, issuerAnswer(row), {
        revision: row.revision,
        location: `/v1/issuers/${name}`,
      });
    },
  }),
  route({
    method: "GET",
    path: "/v1/issuers",
    id: "listIssuers",
    tag: "issuers",
    summary: "All issuers, by name",
    query: listQuery,
    responses: { 200: { description: "Issuers", schema: listOf(IssuerAnswer) } },
    handle: async (_call, { query }, { peers }) => {
      const { limit = listLimitDefault, cursor = "" } = query;
      const rows = await peers.systemRows<IssuerRow>({ ...under("iss"), limit: issuersMax });
      const left = rows.map(([, row]) => row).filter(({ name }) => name > cursor);
      const items = left.slice(0, limit);
      const next = left.length > limit ? items.at(-1)?.name : undefined;
      return json({ items: items.map(issuerAnswer), ...(next !== undefined && { next }) });
    },
  }),
  route({
    method: "GET",
    path: one,
    id: "getIssuer",
    tag: "issuers",
    summary: "An issuer",
    responses: { 200: { description: "The issuer", schema: IssuerAnswer } },
    handle: async (call, _input, { peers }) => {
      const name = nameOf(call);
      const { row, etag } = await peers.taggedRow<IssuerRow>(issuerKey(name));
      if (row === undefined) throw new Problem("not-found", `There is no issuer ${name}`);
      return json(issuerAnswer(row), { etag });
    },
  }),
  route({
    method: "DELETE",
    path: one,
    id: "deleteIssuer",
    tag: "issuers",
    summary: "Take no tokens of it any more: at once, and their watches end",
    guarded: true,
    responses: { 200: { description: "Deleted", schema: Type.Object({ name: Type.String() }) } },
    handle: async (call, _input, context) => {
      const changed = await changeDirectory<"issuer.delete">(call, context, {
        op: "issuer.delete",
        name: nameOf(call),
        ...precondition(call, context),
      });
      return changedAnswer(changed, changed.result);
    },
  }),
];

function nameOf(call: Call): string {
  const name = call.params["issuer"] as string;
  if (isName(name)) return name;
  throw new Problem("invalid-name", "Name the issuer within the grammar of names", {
    errors: [{ pointer: "/path/issuer", detail: "Outside the grammar" }],
  });
}

/** Of private and symmetric keys (RFC 7518 §6). */
const secretParameters = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

async function checked(
  body: IssuerPut,
): Promise<Omit<IssuerRow, "name" | "createdAt" | "revision">> {
  const wrong = (pointer: string, detail: string): never => {
    throw invalid(`${pointer}: ${detail}`, [{ pointer, detail }]);
  };
  const { jwks, jwksUri, insecureHttp = false } = body;
  if (jwks !== undefined && jwksUri !== undefined)
    wrong("/jwksUri", "Give the keys or where they are, not both");
  for (const [pointer, url] of [
    ["/jwksUri", jwksUri],
    // Discovery begins at it.
    ["/issuer", jwks === undefined && jwksUri === undefined ? body.issuer : undefined],
  ] as const) {
    const detail = url === undefined ? null : wrongUrl(url, insecureHttp);
    if (detail !== null) wrong(pointer, detail);
  }
  if (jwks !== undefined && jwks.keys.length > keysPerSetMax)
    wrong("/jwks/keys", `Give at most ${keysPerSetMax} keys`);
  for (const [i, key] of (jwks?.keys ?? []).entries()) {
    const pointer = `/jwks/keys/${i}`;
    const { kty, alg } = key as { kty?: unknown; alg?: string };
    const isSecret = secretParameters.some((parameter) => Object.hasOwn(key, parameter));
    if (isSecret || !["RSA", "EC", "OKP"].includes(String(kty)))
      wrong(pointer, "Give public keys of type RSA, EC or OKP, and nothing secret");
    try {
      await importJWK(key, alg ?? (kty === "RSA" ? "RS256" : kty === "OKP" ? "EdDSA" : "ES256"));
    } catch {
      wrong(pointer, "This key cannot be used");
    }
  }
  return {
    issuer: body.issuer,
    audience: typeof body.audience === "string" ? [body.audience] : body.audience,
    jwks: jwks === undefined ? null : jwks,
    jwksUri: jwksUri ?? null,
    algorithms: body.algorithms ?? algorithmsDefault,
    clockSkewSeconds: body.clockSkewSeconds ?? clockSkewDefault,
    insecureHttp,
    rules: body.rules.map((rule) => ({
      match: Object.fromEntries(
        Object.entries(rule.match ?? {}).map(([claim, value]) => [
          claim,
          typeof value === "string" ? [value] : value,
        ]),
      ),
      tenant: rule.tenant,
      kind: rule.kind,
      namespaces: rule.namespaces ?? null,
    })),
  };
}

function issuerAnswer(row: IssuerRow): IssuerAnswer {
  return { ...row, createdAt: time(row.createdAt) } as unknown as IssuerAnswer;
}
