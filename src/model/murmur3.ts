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

// --- one text after many others ----------------------------------------------------------------------------------------

/** One step of the hash, by a block that was mixed. */
function step(h: number, mixed: number): number {
  const turned = h ^ mixed;
  return (Math.imul((turned << 13) | (turned >>> 19), 5) + 0xe6546b64) | 0;
}

/** Four units from `at` on, or as many as there are. */
function block(text: string, at: number): number {
  let bits = 0;
  for (let i = Math.min(at + 4, text.length) - 1; i >= at; i--)
    bits = (bits << 8) | text.charCodeAt(i);
  return bits;
}

// oxlint-disable-next-line no-control-regex -- what is one byte each in UTF-8
const ascii = /^[\x00-\x7f]*$/;

/** The beginning of texts, hashed as far as it alone decides. */
export class HashedPrefix {
  readonly text: string;
  readonly isAscii: boolean;
  readonly state: number;
  /** Its bytes in the block that it shares with what follows. */
  readonly carry: number;

  constructor(text: string) {
    this.text = text;
    this.isAscii = ascii.test(text);
    const whole = text.length & ~3;
    let h = 0;
    for (let i = 0; i < whole; i += 4) h = step(h, mix(block(text, i)));
    this.state = h;
    this.carry = block(text, whole);
  }
}

/** Many of them side by side: a walk over numbers takes a fraction of one from object to object. */
export class HashedPrefixes {
  readonly each: readonly HashedPrefix[];
  readonly isAscii: boolean;
  readonly lengths: Int32Array;
  readonly states: Int32Array;
  readonly carries: Int32Array;

  constructor(each: readonly HashedPrefix[]) {
    this.each = each;
    this.isAscii = each.every((one) => one.isAscii);
    this.lengths = Int32Array.from(each, (one) => one.text.length);
    this.states = Int32Array.from(each, (one) => one.state);
    this.carries = Int32Array.from(each, (one) => one.carry);
  }
}

/** The end of many texts: what it adds is worked out once for each place in a block where it may begin. */
export class HashedSuffix {
  readonly #text: string;
  readonly #isAscii: boolean;
  readonly #places: (Place | undefined)[] = [];

  constructor(text: string) {
    this.#text = text;
    this.#isAscii = ascii.test(text);
  }

  /** The same as `murmur3Text(prefix.text + text)`. */
  after(prefix: HashedPrefix): number {
    if (!this.#isAscii || !prefix.isAscii) return murmur3Text(prefix.text + this.#text);
    return this.#after(prefix.text.length, prefix.state, prefix.carry);
  }

  /** The same for each of `prefixes`, into `hashes`. */
  afterEach(prefixes: HashedPrefixes, hashes: Uint32Array): void {
    const { each, lengths, states, carries } = prefixes;
    if (!this.#isAscii || !prefixes.isAscii)
      for (let i = 0; i < each.length; i++) hashes[i] = this.after(each[i] as HashedPrefix);
    else
      for (let i = 0; i < lengths.length; i++)
        hashes[i] = this.#after(lengths[i] as number, states[i] as number, carries[i] as number);
  }

  #after(prefixLength: number, state: number, carry: number): number {
    const length = prefixLength + this.#text.length;
    const begins = prefixLength & 3;
    const place = (this.#places[begins] ??= placeOf(this.#text, begins));
    let h = state;
    if (begins > 0) {
      const shared = mix(carry | place.first);
      if (place.isWithin) return finish(h ^ shared, length);
      h = step(h, shared);
    }
    const { blocks } = place;
    for (let i = 0; i < blocks.length; i++) h = step(h, blocks[i] as number);
    return finish(h ^ place.tail, length);
  }
}

interface Place {
  /** Its bytes in the block that it shares with what comes before. */
  readonly first: number;
  /** It ends before that block does. */
  readonly isWithin: boolean;
  /** Mixed. */
  readonly blocks: readonly number[];
  /** Mixed; 0: none. */
  readonly tail: number;
}

function placeOf(text: string, begins: number): Place {
  const from = begins === 0 ? 0 : 4 - begins;
  const blocks: number[] = [];
  let at = from;
  for (; at + 4 <= text.length; at += 4) blocks.push(mix(block(text, at)));
  return {
    first: block(text.slice(0, from), 0) << (8 * begins),
    isWithin: text.length < from,
    blocks,
    tail: at < text.length ? mix(block(text, at)) : 0,
  };
}
