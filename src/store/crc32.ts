/**
 * CRC-32 with the runtime's help: short inputs go through the tables in JavaScript, since the call into native code
 * costs more than they do; long ones through node:zlib where the runtime has it (Node 20 has not).
 */
import * as zlib from "node:zlib";
import { crc32Table } from "../lib/crc32.ts";

/** Below this the tables are faster than making a view and calling native code. Measured on Bun 1.4 and Node 22. */
const nativeBytesMin = 256;

const native = (zlib as { crc32?: (data: Uint8Array) => number }).crc32;

export function crc32(bytes: Uint8Array, start: number, end: number): number {
  if (native !== undefined && end - start >= nativeBytesMin)
    return native(bytes.subarray(start, end));
  return crc32Table(bytes, start, end);
}
