/**
 * Who is calling, and whether a route is for them.
 *
 * A tenant's keys live in the tenant's own state, so they are as consistent as its data; root keys live in the
 * directory's. A key that is not found in what this node knows is looked for once more after a linearizable read: it may
 * have been made a moment ago through another node.
 */
import { Problem } from "../api/problems.ts";
import type { TenantView } from "../host/ports.ts";
import { keyKey, rootKeyKey } from "../machine/keys.ts";
import type { KeyRow, RootKeyRow } from "../machine/rows.ts";
import { isIssuedToken, type Principal } from "./http.ts";
import type { Peers } from "./peers.ts";
import type { Access } from "./access.ts";
import {
  equalHashes,
  hashToken,
  looksLikeStreamToken,
  looksLikeTenantToken,
  parseStreamToken,
  parseToken,
  streamTokenHolds,
  type TenantToken,
} from "./tokens.ts";

export type Credential =
  | { readonly kind: "tenant"; readonly key: TenantToken; readonly hash: string }
  | { readonly kind: "root"; readonly hash: string }
  /** Opens the stream of one namespace's flags, for the key that it was made of. */
  | { readonly kind: "stream"; readonly token: NonNullable<ReturnType<typeof parseStreamToken>> }
  /** Of an identity provider: see issuers.ts. */
  | { readonly kind: "issued" }
  /** Has the form of a tenant's key, but was never one of ours. */
  | { readonly kind: "broken" };

/** Tokens seen lately: hashing one costs more than looking it up. */
const credentialsMax = 10_000;
const issued: Credential = { kind: "issued" };
const credentials = new Map<string, Credential>();

export function credentialOf(token: string): Credential {
  if (isIssuedToken(token)) return issued;
  let credential = credentials.get(token);
  if (credential === undefined) {
    if (credentials.size >= credentialsMax) credentials.clear();
    credential = readCredential(token);
    credentials.set(token, credential);
  }
  return credential;
}

function readCredential(token: string): Credential {
  if (looksLikeStreamToken(token)) {
    const stream = parseStreamToken(token);
    return stream === null ? { kind: "broken" } : { kind: "stream", token: stream };
  }
  if (!looksLikeTenantToken(token)) return { kind: "root", hash: hashToken(token) };
  const key = parseToken(token);
  return key === null ? { kind: "broken" } : { kind: "tenant", key, hash: hashToken(token) };
}

export function unauthorized(detail = "This key is not known, or no longer valid"): Problem {
  return new Problem("unauthorized", detail);
}

/** The principal of a tenant's key by the tenant's state; null when it does not hold. */
export function principalIn(
  view: TenantView,
  credential: Credential & { readonly kind: "tenant" | "stream" },
  nowMs: number,
): Principal | null {
  const isStream = credential.kind === "stream";
  const { keyId } = isStream ? credential.token : credential.key;
  const row = view.get<KeyRow>(keyKey(keyId));
  if (row === undefined || (row.expiresAt !== null && row.expiresAt <= nowMs)) return null;
  const { kind, id, namespaces, expiresAt, scopes = [] } = row;
  const principal = { kind, keyId: id, namespaces, expiresAt, scopes };
  if (!isStream) return equalHashes(row.hash, credential.hash) ? principal : null;
  const { token } = credential;
  const made = { ...token, tenant: view.tenant };
  if (!streamTokenHolds(made, row.hash, { epoch: view.epoch, ms: nowMs })) return null;
  return covers(principal, token.namespace)
    ? { ...principal, namespaces: [token.namespace] }
    : null;
}

/** Null when no such root key is known. */
export async function rootPrincipal(peers: Peers, hash: string): Promise<Principal | null> {
  const key = rootKeyKey(hash);
  const row =
    (await peers.systemRow<RootKeyRow>(key, "stale")) ??
    (await peers.systemRow<RootKeyRow>(key, "linearizable"));
  if (row === undefined) return null;
  return { kind: "root", keyId: row.keyId, namespaces: null, expiresAt: null };
}

/** @throws Problem `forbidden` */
export function authorize(
  access: Access,
  principal: Principal,
  namespace: string | undefined,
): void {
  if (principal.kind === "root") return;
  if (!access.kinds.includes(principal.kind))
    throw new Problem(
      "forbidden",
      `${principal.kind === "admin" ? "An" : "A"} ${principal.kind} key may not do that`,
    );
  if (access.limited === "refused" && principal.namespaces !== null)
    throw new Problem("forbidden", "A key that is limited to namespaces may not do that");
  if (namespace !== undefined) authorizeNamespace(principal, namespace);
}

/** @throws Problem `forbidden`, whether or not there is such a namespace */
export function authorizeNamespace(principal: Principal, namespace: string): void {
  if (!covers(principal, namespace))
    throw new Problem("forbidden", "This key is limited to other namespaces");
}

export function covers(principal: Principal, namespace: string): boolean {
  return principal.namespaces === null || principal.namespaces.includes(namespace);
}
