/**
 * Bytes in and out, by hand: fixed little-endian layout, no BigInt, nothing looked up by name. A writer grows and is
 * reused; a reader never reads past the end and says so with `MalformedError`, because what it reads came from outside.
 */
import { assert } from "./assert.ts";

/** Bytes from a wire or a disk that are not what they claim to be. */
export class MalformedError extends Error {
  override readonly name = "MalformedError";
}

const HIGH = 0x1_0000_0000;
/** The high half of the largest safe integer. */
const HIGH_MAX = 0x1f_ffff;

export class ByteWriter {
  // No DataView: asking small arrays for their buffer makes engines move them, which cost more than the writing.
  #bytes: Uint8Array<ArrayBuffer>;
  #length = 0;

  constructor(capacity = 256) {
    this.#bytes = new Uint8Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  /** Forgets what was written, keeps the memory. */
  clear(): void {
    this.#length = 0;
  }

  u8(value: number): void {
    const at = this.#take(1);
    this.#bytes[at] = value;
  }

  u16(value: number): void {
    const at = this.#take(2);
    this.#bytes[at] = value;
    this.#bytes[at + 1] = value >>> 8;
  }

  u32(value: number): void {
    const at = this.#take(4);
    putU32(this.#bytes, at, value);
  }

  /** A safe non-negative integer, as two halves. */
  u53(value: number): void {
    assert(Number.isSafeInteger(value) && value >= 0, "only safe integers are written");
    const at = this.#take(8);
    putU32(this.#bytes, at, value);
    putU32(this.#bytes, at + 4, Math.floor(value / HIGH));
  }

  /** The bytes as they are; their length is the caller's to write. */
  bytes(value: Uint8Array): void {
    const at = this.#take(value.length);
    this.#bytes.set(value, at);
  }

  /** Overwrites a u32 that was written before its value was known. */
  patchU32(at: number, value: number): void {
    assert(at + 4 <= this.#length, "only what was written can be patched");
    putU32(this.#bytes, at, value);
  }

  /** What was written, as a view that the next write may overwrite. */
  view(): Uint8Array<ArrayBuffer> {
    // A view of all of it would be one object more: whoever knew the size has it as it is.
    return this.#length === this.#bytes.length
      ? this.#bytes
      : this.#bytes.subarray(0, this.#length);
  }

  /** What was written, as a copy. */
  copy(): Uint8Array<ArrayBuffer> {
    return this.#bytes.slice(0, this.#length);
  }

  #take(size: number): number {
    const at = this.#length;
    const length = at + size;
    if (length > this.#bytes.length) {
      let capacity = Math.max(16, this.#bytes.length);
      while (capacity < length) capacity *= 2;
      const grown = new Uint8Array(capacity);
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
    }
    this.#length = length;
    return at;
  }
}

export class ByteReader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get offset(): number {
    return this.#at;
  }

  get remaining(): number {
    return this.#bytes.length - this.#at;
  }

  u8(): number {
    return this.#bytes[this.#take(1)] as number;
  }

  u16(): number {
    const at = this.#take(2);
    return (this.#bytes[at] as number) | ((this.#bytes[at + 1] as number) << 8);
  }

  u32(): number {
    return getU32(this.#bytes, this.#take(4));
  }

  u53(): number {
    const at = this.#take(8);
    const high = getU32(this.#bytes, at + 4);
    if (high > HIGH_MAX) throw new MalformedError("An integer is beyond 2^53");
    return high * HIGH + getU32(this.#bytes, at);
  }

  /** A view into what is being read; it keeps the whole of it alive. */
  view(length: number): Uint8Array {
    const at = this.#take(length);
    return this.#bytes.subarray(at, at + length);
  }

  /** A copy, to be kept. */
  copy(length: number): Uint8Array {
    const at = this.#take(length);
    return this.#bytes.slice(at, at + length);
  }

  /** Ends reading: bytes left over are as wrong as bytes missing. */
  end(): void {
    if (this.remaining !== 0) throw new MalformedError(`${this.remaining} bytes too many`);
  }

  #take(size: number): number {
    const at = this.#at;
    if (size > this.#bytes.length - at) {
      throw new MalformedError(`Bytes end early: ${size} wanted at ${at} of ${this.#bytes.length}`);
    }
    this.#at = at + size;
    return at;
  }
}

function putU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

function getU32(bytes: Uint8Array, at: number): number {
  const low = (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
  return (low | ((bytes[at + 2] as number) << 16) | ((bytes[at + 3] as number) << 24)) >>> 0;
}
