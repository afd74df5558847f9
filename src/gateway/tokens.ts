/**
 * Keys as people carry them: `cfx_<kind>_<tenant>_<keyId>_<secret+checksum>`.
 *
 * The prefix lets secret scanners find a leaked one; kind and tenant let the gateway refuse a key for another tenant
 * without asking anybody; the checksum tells a typing error from a guess. Only the sha256 of the whole token is kept: the
 * secret has 256 bits of chance, so a slow hash would protect nothing.
 */
import { createHash, createHmac, randomBytes } from "node:crypto";
import type { KeyKind } from "../machine/rows.ts";

export type TenantKeyKind = Exclude<KeyKind, "root">;

export interface TenantToken {
  readonly kind: TenantKeyKind;
  readonly tenant: string;
  readonly keyId: string;
}

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
export const secretBytes = 32;
/** 62^43 > 2^256 > 62^42. */
const secretDigits = 43;
/** 62^6 > 2^32 > 62^5. */
const checksumDigits = 6;
const keyIdBytes = 9;
const keyIdDigits = 13;

const tenantForm =
  /^cfx_(admin|write|read|client)_([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)_([0-9A-Za-z]{1,32})_([0-9A-Za-z]{49})$/;

/** Root tokens of operators may have any form but this one. */
export function looksLikeTenantToken(token: string): boolean {
  return /^cfx_(admin|write|read|client)_/.test(token);
}

/** @param secret 32 bytes of chance */
export function makeToken(owner: TenantToken, secret: Uint8Array): string {
  const body = `cfx_${owner.kind}_${owner.tenant}_${owner.keyId}_${base62(secret, secretDigits)}`;
  return body + checksum(body);
}

/** The operator's token as the server makes it when none was given. */
export function makeRootToken(): string {
  const body = `cfx_root_${base62(randomBytes(secretBytes), secretDigits)}`;
  return body + checksum(body);
}

/** Null when it is not a tenant's token, or was mistyped. */
export function parseToken(token: string): TenantToken | null {
  const match = tenantForm.exec(token);
  if (match === null) return null;
  if (token.slice(-checksumDigits) !== checksum(token.slice(0, -checksumDigits))) return null;
  return {
    kind: match[1] as TenantKeyKind,
    tenant: match[2] as string,
    keyId: match[3] as string,
  };
}

/** sha256 over the whole token, lower-case hex: what the state keeps. */
export function hashToken(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

/** Compares two hex hashes in a time that does not depend on where they differ. */
export function equalHashes(a: string, b: string): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= a.charCodeAt(i) ^ b.charCodeAt(i);
  return difference === 0;
}

export interface NewTokenOptions {
  readonly kind: TenantKeyKind;
  readonly tenant: string;
  /**
   * With an Idempotency-Key the repeat must be answered with the same token, which nobody keeps. So id and secret are
   * derived from what only the caller knows: his own token, and the key of the request.
   */
  readonly repeatable?: { readonly callerToken: string; readonly idempotencyKey: string };
}

export function newToken({ kind, tenant, repeatable }: NewTokenOptions): {
  readonly keyId: string;
  readonly token: string;
} {
  const chance =
    repeatable === undefined
      ? randomBytes(64)
      : createHmac("sha512", repeatable.callerToken)
          .update(JSON.stringify(["conflux key", tenant, repeatable.idempotencyKey, kind]))
          .digest();
  const keyId = base62(chance.subarray(0, keyIdBytes), keyIdDigits);
  const secret = chance.subarray(chance.length - secretBytes);
  return { keyId, token: makeToken({ kind, tenant, keyId }, secret) };
}

// --- addresses of event streams ------------------------------------------------------------------------------------------

/**
 * Who may listen to the changes of a namespace's flags, for addresses: they end up in logs and in the storage of
 * browsers, so this opens nothing else, and not for long. It is made from the key's hash, which every replica has, so
 * nothing is kept for it, and it ends with the key.
 */
export interface StreamToken {
  readonly tenant: string;
  readonly namespace: string;
  readonly keyId: string;
  /** Of the tenant's history: after a restore it is another one. */
  readonly epoch: number;
  /** When it was made, in windows since 1970. */
  readonly window: number;
}

/** Addresses change at the end of a window, and are taken until the end of the next one. */
const streamWindowMs = 12 * 3_600_000;
const streamForm =
  /^cfx_stream_([0-9A-Za-z]{1,64})_(\d{1,15})_(\d{1,15})_([a-z0-9._-]{1,128})_([0-9a-f]{32})$/;

export function streamWindow(nowMs: number): number {
  return Math.floor(nowMs / streamWindowMs);
}

export function looksLikeStreamToken(token: string): boolean {
  return token.startsWith("cfx_stream_");
}

/** @param keyHash of the key that it stands for, as the state keeps it */
export function streamToken(of: StreamToken, keyHash: string): string {
  const { namespace, keyId, epoch, window } = of;
  return `cfx_stream_${keyId}_${epoch}_${window}_${namespace}_${streamMac(of, keyHash)}`;
}

/** Null when it has not the form of one. */
export function parseStreamToken(
  token: string,
): (Omit<StreamToken, "tenant"> & { readonly mac: string }) | null {
  const match = streamForm.exec(token);
  if (match === null) return null;
  const [, keyId, epoch, window, namespace, mac] = match as unknown as string[];
  return {
    keyId: keyId as string,
    epoch: Number(epoch),
    window: Number(window),
    namespace: namespace as string,
    mac: mac as string,
  };
}

/** Whether it was made of this key for this tenant, in this history, and not too long ago. */
export function streamTokenHolds(
  token: StreamToken & { readonly mac: string },
  keyHash: string,
  now: { readonly epoch: number; readonly ms: number },
): boolean {
  const age = streamWindow(now.ms) - token.window;
  return (
    equalHashes(token.mac, streamMac(token, keyHash)) &&
    token.epoch === now.epoch &&
    // One of the next window was made by a node whose clock is a little ahead.
    age >= -1 &&
    age <= 1
  );
}

function streamMac(
  { tenant, namespace, keyId, epoch, window }: StreamToken,
  keyHash: string,
): string {
  return createHmac("sha256", Buffer.from(keyHash, "hex"))
    .update(JSON.stringify(["conflux flag stream", tenant, namespace, keyId, epoch, window]))
    .digest("hex")
    .slice(0, 32);
}

/** Big-endian, padded with zeros to `digits`. */
export function base62(bytes: Uint8Array, digits: number): string {
  let value = bytes.length === 0 ? 0n : BigInt(`0x${Buffer.from(bytes).toString("hex")}`);
  let text = "";
  while (value > 0n) {
    text = (alphabet[Number(value % 62n)] as string) + text;
    value /= 62n;
  }
  return text.padStart(digits, "0");
}

function checksum(text: string): string {
  let value = crc32(text);
  let digits = "";
  for (let i = 0; i < checksumDigits; i++) {
    digits = (alphabet[value % 62] as string) + digits;
    value = Math.floor(value / 62);
  }
  return digits;
}

const crcTable = new Uint32Array(256).map((_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});

/** CRC-32 (IEEE 802.3) of ASCII text. */
export function crc32(text: string): number {
  let value = 0xffffffff;
  for (let i = 0; i < text.length; i++)
    value = (value >>> 8) ^ (crcTable[(value ^ text.charCodeAt(i)) & 0xff] as number);
  return (value ^ 0xffffffff) >>> 0;
}
