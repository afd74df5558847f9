import { expect, test } from "vitest";
import { Prng } from "../../src/lib/prng.ts";
import { crc32Table } from "../../src/lib/crc32.ts";
import { crc32 } from "../../src/store/crc32.ts";

/** By the definition, bit by bit. */
function plain(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 0 ? crc >>> 1 : 0xedb88320 ^ (crc >>> 1);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

test("crc32() gives the published check value", () => {
  expect(crc32(new TextEncoder().encode("123456789"), 0, 9)).toBe(0xcbf43926);
});

test("crc32() agrees with the definition, by table and natively, at every offset", () => {
  const prng = new Prng(1);
  const bytes = Uint8Array.from({ length: 3000 }, () => prng.below(256));
  for (let n = 0; n < 300; n++) {
    const start = prng.below(40);
    const end = start + prng.below(prng.chance(0.5) ? 50 : 2900);
    const expected = plain(bytes.subarray(start, end));
    expect(crc32(bytes, start, end)).toBe(expected);
    expect(crc32Table(bytes, start, end)).toBe(expected);
  }
});
