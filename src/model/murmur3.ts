/**
 * murmur3_x86_32, after Austin Appleby's public-domain description (SMHasher). Chosen because every language has it, so
 * that a client in any of them can compute the same bucket.
 */
import { utf8Encode } from "./utf8.ts";

function mix(k: number): number {
  const scaled = Math.imul(k, 0xcc9e2d51);
  return Math.imul((scaled << 15) | (scaled >>> 17), 0x1b873593);
}

function finish(state: number, length: number): number {
  let h = state ^ length;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** An unsigned 32-bit number. */
export function murmur3(bytes: Uint8Array, seed = 0): number {
  let h = seed | 0;
  const whole = bytes.length & ~3;
  for (let i = 0; i < whole; i += 4) {
    const k =
      (bytes[i] as number) |
      ((bytes[i + 1] as number) << 8) |
      ((bytes[i + 2] as number) << 16) |
      ((bytes[i + 3] as number) << 24);
    h ^= mix(k);
    h = (h << 13) | (h >>> 19);
    h = (Math.imul(h, 5) + 0xe6546b64) | 0;
  }
  let tail = 0;
  for (let i = bytes.length - 1; i >= whole; i--) tail = (tail << 8) | (bytes[i] as number);
  if (whole < bytes.length) h ^= mix(tail);
  return finish(h, bytes.length);
}

/** The same over the UTF-8 bytes of a text. */
export function murmur3Text(text: string, seed = 0): number {
  // Most texts are ASCII: then units are bytes, and nothing needs to be allocated.
  let h = seed | 0;
  const { length } = text;
  const whole = length & ~3;
  let seen = 0;
  for (let i = 0; i < whole; i += 4) {
    const a = text.charCodeAt(i);
    const b = text.charCodeAt(i + 1);
    const c = text.charCodeAt(i + 2);
    const d = text.charCodeAt(i + 3);
    seen |= a | b | c | d;
    h ^= mix(a | (b << 8) | (c << 16) | (d << 24));
    h = (h << 13) | (h >>> 19);
    h = (Math.imul(h, 5) + 0xe6546b64) | 0;
  }
  let tail = 0;
  for (let i = length - 1; i >= whole; i--) {
    const unit = text.charCodeAt(i);
    seen |= unit;
    tail = (tail << 8) | unit;
  }
  if (seen > 0x7f) return murmur3(utf8Encode(text), seed);
  if (whole < length) h ^= mix(tail);
  return finish(h, length);
}
