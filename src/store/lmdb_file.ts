/**
 * Single values out of an LMDB file that LMDB does not have open, read page by page.
 *
 * Who wakes wants half a dozen rows, and to open an environment for them costs some forty system calls, four mappings and
 * half a millisecond or more; a tenant's few pages cost a tenth of that. Nobody else may write to the file meanwhile:
 * that is the caller's to see to. Whoever writes, reads ranges or reads much opens LMDB.
 *
 * The layout is that of data format 2 (lmdb 1.0, liblmdb/mdb.c), numbers little-endian:
 * - a page begins with 24 bytes: number, transaction, padding (2 bytes), flags (2), end of its table of nodes (2), begin
 *   of the nodes (2); both, and the nodes' places in the table, are counted from behind these 24 bytes;
 * - pages 0 and 1 are two states of the same: magic, version, address, map size, the records of the databases of free
 *   pages and of names, last page, transaction; the later transaction counts;
 * - a database's record has 48 bytes, the last 8 are its root page;
 * - a node: size of its data (4 bytes; on a branch the page below in 6), flags (2), size of its key (2), key, data. Keys
 *   are in the order of their bytes; a branch's first key stands for all below the second. Large data are elsewhere: the
 *   node then holds the number of their first page, and they begin behind its 24 bytes.
 */
import * as fs from "node:fs";

export const pageBytes = 4096;

const headerBytes = 24;
const nodeBytes = 8;
const isBranch = 0x01;
const isLeaf = 0x02;
const isElsewhere = 0x01;
const isDatabase = 0x02;
const databaseBytes = 48;
const none = 0xffff_ffff_ffff_ffffn;
/** No tree of 2 ** 48 pages is as high. */
const levelsMax = 32;

/** A value's place: in a page, or in pages of its own. */
interface Found {
  readonly page: Buffer;
  readonly from: number;
  readonly to: number;
  readonly flags: number;
}

export class LmdbFile {
  readonly #descriptor: number;
  readonly #size: number;
  readonly #path: string;
  readonly #pages = new Map<number, Buffer>();
  /** Root page of the database of names; none: nothing was ever written. */
  readonly #names: bigint;

  /**
   * Looks at the two meta pages: LMDB ends the process with a segmentation fault when it is given a file that is not its
   * own (seen on Bun and Node).
   * @throws when it is not an LMDB file, or was cut off
   */
  constructor(path: string) {
    this.#path = path;
    this.#descriptor = fs.openSync(path, "r");
    try {
      this.#size = fs.fstatSync(this.#descriptor).size;
      this.#names = this.#checked();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #checked(): bigint {
    const size = this.#size;
    if (size < 2 * pageBytes) throw new Error("Data file is shorter than its two meta pages");
    const both = this.#read(0, 2 * pageBytes);
    const metas = [both.subarray(0, pageBytes), both.subarray(pageBytes)] as const;
    for (const meta of metas)
      if (meta.readUInt32LE(24) !== 0xbeefc0de || (meta.readUInt32LE(28) & 0xffff) !== 2)
        throw new Error("Data file is not an LMDB environment of data format 2");
    const [first, second] = metas;
    const newest = second.readBigUInt64LE(152) > first.readBigUInt64LE(152) ? second : first;
    for (const at of [88, 136]) {
      const root = newest.readBigUInt64LE(at);
      if (root !== none && (root + 1n) * BigInt(pageBytes) > BigInt(size))
        throw new Error(`Data file was cut off: page ${root} lies behind its end of ${size} bytes`);
    }
    return newest.readBigUInt64LE(136);
  }

  /** Pages that were read so far. */
  get pagesRead(): number {
    return this.#pages.size;
  }

  /** Root page of a database; null: it is empty, or there is no such database. */
  root(database: string): number | null {
    const found = this.#names === none ? null : this.#find(Number(this.#names), nameOf(database));
    if (found === null) return null;
    if ((found.flags & isDatabase) === 0 || found.to - found.from < databaseBytes)
      throw this.#damaged();
    const root = found.page.readBigUInt64LE(found.from + databaseBytes - 8);
    return root === none ? null : Number(root);
  }

  /** @param root what `root` returned of the database */
  get(root: number | null, key: Uint8Array): Buffer | undefined {
    const found = root === null ? null : this.#find(root, key);
    if (found === null) return undefined;
    const { page, from, to, flags } = found;
    if ((flags & isElsewhere) === 0) return page.subarray(from, to);
    const first = this.#number(page, from);
    return this.#read(first * pageBytes + headerBytes, to - from);
  }

  #find(root: number, key: Uint8Array): Found | null {
    let at = root;
    for (let level = 0; level < levelsMax; level++) {
      const page = this.#page(at);
      const flags = page.readUInt16LE(18);
      const count = page.readUInt16LE(20) >>> 1;
      if (headerBytes + 2 * count > pageBytes || count === 0) throw this.#damaged();
      if ((flags & isLeaf) !== 0) return this.#inLeaf(page, count, key);
      if ((flags & isBranch) === 0) throw this.#damaged();
      // The last node whose key is not beyond; the first one's is not looked at.
      let [low, high] = [1, count - 1];
      while (low <= high) {
        const middle = (low + high) >>> 1;
        if (this.#compare(key, page, middle) < 0) high = middle - 1;
        else low = middle + 1;
      }
      const node = this.#node(page, high);
      at = page.readUIntLE(node, 6);
    }
    throw this.#damaged();
  }

  #inLeaf(page: Buffer, count: number, key: Uint8Array): Found | null {
    let [low, high] = [0, count - 1];
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const order = this.#compare(key, page, middle);
      if (order < 0) high = middle - 1;
      else if (order > 0) low = middle + 1;
      else {
        const node = this.#node(page, middle);
        const flags = page.readUInt16LE(node + 4);
        const from = node + nodeBytes + page.readUInt16LE(node + 6);
        const to = from + page.readUInt32LE(node);
        if ((flags & isElsewhere) === 0 && to > pageBytes) throw this.#damaged();
        return { page, from, to, flags };
      }
    }
    return null;
  }

  #compare(key: Uint8Array, page: Buffer, index: number): number {
    const node = this.#node(page, index);
    const from = node + nodeBytes;
    const to = from + page.readUInt16LE(node + 6);
    if (to > pageBytes) throw this.#damaged();
    return -page.compare(key, 0, key.byteLength, from, to);
  }

  #node(page: Buffer, index: number): number {
    const node = headerBytes + page.readUInt16LE(headerBytes + 2 * index);
    if (node + nodeBytes > pageBytes) throw this.#damaged();
    return node;
  }

  #number(page: Buffer, at: number): number {
    if (at + 8 > pageBytes) throw this.#damaged();
    return Number(page.readBigUInt64LE(at));
  }

  #page(number: number): Buffer {
    let page = this.#pages.get(number);
    if (page !== undefined) return page;
    page = this.#read(number * pageBytes, pageBytes);
    // What a page says of itself: another one was written over it, or the file is damaged.
    if (Number(page.readBigUInt64LE(0)) !== number) throw this.#damaged();
    this.#pages.set(number, page);
    return page;
  }

  #read(position: number, bytes: number): Buffer {
    if (position + bytes > this.#size) throw this.#damaged();
    const buffer = Buffer.allocUnsafeSlow(bytes);
    if (fs.readSync(this.#descriptor, buffer, 0, bytes, position) !== bytes) throw this.#damaged();
    return buffer;
  }

  #damaged(): Error {
    return new Error(`Data file is damaged: ${this.#path}`);
  }

  close(): void {
    fs.closeSync(this.#descriptor);
  }
}

/** In the database of names they are C strings. */
function nameOf(database: string): Uint8Array {
  let name = names.get(database);
  if (name === undefined) names.set(database, (name = Buffer.from(`${database}\0`)));
  return name;
}
const names = new Map<string, Uint8Array>();
