import { describe, expect, test } from "vitest";
import { AuditChain, auditGenesis, auditHash, type ChainedRecord } from "../../src/model/audit.ts";

function chainOf(length: number): ChainedRecord[] {
  const records: ChainedRecord[] = [];
  let previous = auditGenesis;
  for (let sequence = 1; sequence <= length; sequence++) {
    const facts = {
      sequence,
      revision: sequence,
      at: 1_000 * sequence,
      actor: { kind: "admin", keyId: "k1" },
      action: "publish",
      target: `app/c${sequence}`,
      requestId: `r${sequence}`,
      address: null,
      before: null,
      after: `sha256:${sequence}`,
    };
    const hash = auditHash(previous, facts);
    records.push({ ...facts, previous, hash });
    previous = hash;
  }
  return records;
}

function verified(
  records: readonly ChainedRecord[],
  anchor: { sequence: number; hash: string } | null = null,
): string | null {
  const chain = new AuditChain(anchor);
  for (const record of records) {
    const wrong = chain.next(record);
    if (wrong !== null) return wrong;
  }
  return null;
}

describe("the chain", () => {
  const whole = chainOf(5);

  test("holds as it was written, also when its beginning is no longer kept", () => {
    expect(verified(whole)).toBeNull();
    const anchor = { sequence: 2, hash: whole[1]?.hash as string };
    expect(verified(whole.slice(2), anchor)).toBeNull();
  });

  test.each([
    ["revision", 9],
    ["at", 1],
    ["actor", { kind: "admin", keyId: "k2" }],
    ["action", "delete"],
    ["target", "app/other"],
    ["requestId", null],
    ["address", "192.0.2.9"],
    ["before", "sha256:0"],
    ["after", null],
  ])("shows a changed %s", (field, value) => {
    const changed = whole.map((record, i) => (i === 2 ? { ...record, [field]: value } : record));
    expect(verified(changed)).toBe("Record 3 was changed");
  });

  test("shows a changed record with a hash to fit, at the one after it", () => {
    const third = { ...(whole[2] as ChainedRecord), target: "app/other" };
    const forged = { ...third, hash: auditHash(third.previous as string, third) };
    const changed = whole.map((record, i) => (i === 2 ? forged : record));
    expect(verified(changed)).toBe("Record 4 does not follow the one before it");
  });

  test("shows one that was left out, put in, or cut off at the beginning", () => {
    expect(verified(whole.filter((_, i) => i !== 2))).toContain("Record 3 is missing");
    const renumbered = whole
      .filter((_, i) => i !== 2)
      .map((record, i) => ({ ...record, sequence: i + 1 }));
    expect(verified(renumbered)).toContain("Record 3 does not follow");
    expect(verified(whole.slice(2))).toContain("Record 3 does not follow");
    expect(verified([...whole, whole[4] as ChainedRecord])).toContain("Record 6 is missing");
  });

  test("may begin late, but never loses its hashes again", () => {
    const unchained = { ...(whole[0] as ChainedRecord), previous: null, hash: null };
    expect(verified([unchained])).toBeNull();
    expect(verified([whole[0] as ChainedRecord, { ...unchained, sequence: 2 }])).toContain("lost");
  });
});
