import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  base62,
  crc32,
  equalHashes,
  hashToken,
  looksLikeTenantToken,
  makeRootToken,
  makeToken,
  newToken,
  parseToken,
} from "../../src/gateway/tokens.ts";

const kind = fc.constantFrom("admin", "write", "read", "client" as const);
const tenant = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);
const keyId = fc.stringMatching(/^[0-9A-Za-z]{1,32}$/);
const secret = fc.uint8Array({ minLength: 32, maxLength: 32 });

describe("tokens", () => {
  test("what was made can be parsed", () => {
    fc.assert(
      fc.property(kind, tenant, keyId, secret, (k, t, id, bytes) => {
        const token = makeToken({ kind: k, tenant: t, keyId: id }, bytes);
        expect(parseToken(token)).toEqual({ kind: k, tenant: t, keyId: id });
        expect(looksLikeTenantToken(token)).toBe(true);
      }),
    );
  });

  test("one changed character is noticed without asking anybody", () => {
    fc.assert(
      fc.property(kind, tenant, keyId, secret, fc.nat(), (k, t, id, bytes, at) => {
        const token = makeToken({ kind: k, tenant: t, keyId: id }, bytes);
        const i = at % token.length;
        const changed = token[i] === "x" ? "y" : "x";
        expect(parseToken(token.slice(0, i) + changed + token.slice(i + 1))).toBeNull();
      }),
    );
  });

  test("anything else is no token", () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        expect(parseToken(text)).toBeNull();
      }),
    );
    for (const text of ["", "cfx_", "cfx_admin_acme_id_", makeRootToken()])
      expect(parseToken(text)).toBeNull();
  });

  test("different secrets give different tokens of equal length", () => {
    fc.assert(
      fc.property(secret, secret, (a, b) => {
        const owner = { kind: "read", tenant: "t", keyId: "k" } as const;
        const same = Buffer.compare(a, b) === 0;
        expect(makeToken(owner, a) === makeToken(owner, b)).toBe(same);
        expect(makeToken(owner, a)).toHaveLength(makeToken(owner, b).length);
      }),
    );
  });

  test("base62 keeps the order of numbers and fits what it is padded to", () => {
    expect(base62(new Uint8Array([0]), 3)).toBe("000");
    expect(base62(new Uint8Array([61]), 3)).toBe("00z");
    expect(base62(new Uint8Array([62]), 3)).toBe("010");
    expect(base62(new Uint8Array(32).fill(255), 43)).toHaveLength(43);
  });

  test("crc32 is the one of IEEE 802.3", () => {
    expect(crc32("123456789")).toBe(0xcbf43926);
    expect(crc32("")).toBe(0);
  });

  test("a repeat with the same key and caller gives the same token, anything else another", () => {
    const from = { callerToken: "root-token", idempotencyKey: "k1" };
    const make = (change: Partial<typeof from>, of = "acme", k: "read" | "write" = "read") =>
      newToken({ kind: k, tenant: of, repeatable: { ...from, ...change } });
    expect(make({})).toEqual(make({}));
    const others = [
      make({ callerToken: "other-token" }),
      make({ idempotencyKey: "k2" }),
      make({}, "emca"),
      make({}, "acme", "write"),
      newToken({ kind: "read", tenant: "acme" }),
      newToken({ kind: "read", tenant: "acme" }),
    ];
    const tokens = new Set([make({}).token, ...others.map((other) => other.token)]);
    expect(tokens.size).toBe(others.length + 1);
    for (const { token, keyId: id } of others) expect(parseToken(token)?.keyId).toBe(id);
  });

  test("only equal hashes are equal", () => {
    expect(equalHashes(hashToken("a"), hashToken("a"))).toBe(true);
    expect(equalHashes(hashToken("a"), hashToken("b"))).toBe(false);
    expect(equalHashes(hashToken("a"), "")).toBe(false);
  });
});
