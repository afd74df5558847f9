/**
 * Zip archives as export buttons make them (APPNOTE.TXT 6.3): read from their directory, stored or deflated, every
 * checksum looked at. Encrypted, split and 64-bit archives are refused.
 */
import { inflateRawSync } from "node:zlib";
import { crc32Table } from "../../lib/crc32.ts";
import {
  importBytesMax,
  importConfigsMax,
  ImportError,
  textOf,
  type ImportFile,
} from "./importing.ts";

const endSignature = 0x06054b50;
const entrySignature = 0x02014b50;
const fileSignature = 0x04034b50;
const endBytes = 22;
const entryBytes = 46;
const fileBytes = 30;
const commentBytesMax = 0xffff;

export function isZip(bytes: Uint8Array): boolean {
  return bytes.length >= endBytes && bytes[0] === 0x50 && bytes[1] === 0x4b;
}

/**
 * Its files, without folders.
 * @throws ImportError
 */
export function unzip(bytes: Uint8Array): ImportFile[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = endOf(view);
  const count = view.getUint16(end + 10, true);
  let at = view.getUint32(end + 16, true);
  if (count === 0xffff || at === 0xffffffff) broken("it is a 64-bit zip: pack it anew without");
  if (count > importConfigsMax) broken(`it has ${count} files: ${importConfigsMax} are the most`);
  const files: ImportFile[] = [];
  let total = 0;
  for (let i = 0; i < count; i += 1) {
    if (at + entryBytes > end || view.getUint32(at, true) !== entrySignature)
      broken("its directory is damaged or cut off");
    const nameLength = view.getUint16(at + 28, true);
    const next =
      at + entryBytes + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    if (next > end) broken("its directory is damaged or cut off");
    const path = textOf(bytes.subarray(at + entryBytes, at + entryBytes + nameLength));
    if (path === null) broken("the name of a file in it is not UTF-8");
    if (!path.endsWith("/")) {
      total += view.getUint32(at + 24, true);
      if (total > importBytesMax)
        broken(`its files have more than ${importBytesMax / 1024 / 1024} MiB: export a part`);
      files.push({ path, bytes: contentOf(view, at, path) });
    }
    at = next;
  }
  return files;
}

/** Where the end of the directory is: the last thing but for a comment. */
function endOf(view: DataView): number {
  const last = view.byteLength - endBytes;
  for (let at = last; at >= Math.max(0, last - commentBytesMax); at -= 1)
    if (
      view.getUint32(at, true) === endSignature &&
      at + endBytes + view.getUint16(at + 20, true) === view.byteLength
    )
      return at;
  return broken("its end is missing: it was cut off, or is no zip");
}

function contentOf(view: DataView, entry: number, path: string): Uint8Array {
  const wrong = (what: string): never => broken(`${JSON.stringify(path)} in it ${what}`);
  if ((view.getUint16(entry + 8, true) & 1) !== 0)
    wrong("is encrypted: export it without a password");
  const method = view.getUint16(entry + 10, true);
  const checksum = view.getUint32(entry + 16, true);
  const packedLength = view.getUint32(entry + 20, true);
  const length = view.getUint32(entry + 24, true);
  const header = view.getUint32(entry + 42, true);
  if (header + fileBytes > view.byteLength || view.getUint32(header, true) !== fileSignature)
    wrong("is not where the directory says");
  const start =
    header + fileBytes + view.getUint16(header + 26, true) + view.getUint16(header + 28, true);
  if (start + packedLength > view.byteLength) wrong("is cut off");
  const packed = new Uint8Array(view.buffer, view.byteOffset + start, packedLength);
  let bytes = packed;
  if (method === 8)
    try {
      bytes = inflateRawSync(packed, { maxOutputLength: Math.max(length, 1) });
    } catch {
      wrong("is damaged");
    }
  else if (method !== 0) wrong("is packed in a way other than deflate: pack it anew");
  if (bytes.length !== length || crc32Table(bytes, 0, bytes.length) !== checksum)
    wrong("is damaged");
  return bytes;
}

function broken(what: string): never {
  throw new ImportError([`Give a whole zip: ${what}`]);
}
