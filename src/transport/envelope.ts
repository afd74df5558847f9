/**
 * The envelope around every frame on the wire, and what receivers do with it.
 *
 * A message is cut into parts of at most `partBytesMax`; each part travels as one frame, so that no frame comes near
 * NATS's default max_payload of 1 MiB. Bytes from the network are never trusted: whatever does not decode, or is of
 * another cluster, version, sender or an older life of the sender, is dropped and counted. The receive path never throws.
 *
 * Frame, big-endian:
 *
 *      0  3  "CFX"
 *      3  1  protocol version
 *      4  4  CRC-32 of everything behind it
 *      8  8  cluster key
 *     16  8  boot epoch of the sender
 *     24  8  message number, growing per sender
 *     32  4  bytes of the whole message
 *     36  2  part number, from 0
 *     38  2  parts
 *     40  1  lane
 *     41  1  length n of the sender's name
 *     42  n  sender's name
 *   42+n     this part's bytes
 *
 * TCP's checksum misses what goes wrong in a proxy or in memory, and a flipped bit in an entry would be replicated
 * faithfully: hence the CRC.
 */
import { crc32 } from "node:zlib";
import type { FrameHandler, Lane } from "../host/ports.ts";
import { lanes } from "../host/ports.ts";
import { assert, assertSafeInteger } from "../lib/assert.ts";

export const protocolVersion = 1;

/** The longest message `send` takes. */
export const messageBytesMax = 16 * 1024 * 1024;
/** The longest part of a message in one frame, without the envelope. */
export const partBytesMax = 448 * 1024;

/** Messages of all senders that are being put together may hold this much; further ones are dropped. */
const reassemblyBytesMax = 64 * 1024 * 1024;
/** A message whose next part did not come for so long is given up. */
const reassemblyMsMax = 10_000;
/** Senders remembered by boot epoch; the one heard of longest ago is forgotten first. */
const sendersMax = 4096;

const headerBytes = 42;
const nameBytesMax = 63;
/** The longest frame. NATS's max_payload must allow it. */
export const frameBytesMax = headerBytes + nameBytesMax + partBytesMax;

const crcOffset = 4;
const checkedOffset = 8;

// --- names -----------------------------------------------------------------------------------------------------------

const namePattern = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** Whether it is a node's or cluster's name: a DNS label, and so a safe token of a NATS subject. */
export function isName(name: string): boolean {
  return namePattern.test(name);
}

export function assertName(name: string, what: string): void {
  assert(isName(name), `${what} is not a lower-case DNS label: ${JSON.stringify(name)}`);
}

// --- counters --------------------------------------------------------------------------------------------------------

/** Why a received frame or message was not delivered. */
export const dropReasons = [
  /** Cut short, contradicting itself, or its CRC is wrong. */
  "malformed",
  "unknown-version",
  "foreign-cluster",
  /** Sender or lane differ from those of the address it came by. */
  "wrong-address",
  /** From before the sender's last start. */
  "old-boot",
  /** A message of which parts were lost; counted once per message. */
  "incomplete",
  /** Too many messages being put together at once. */
  "no-room",
] as const;
export type DropReason = (typeof dropReasons)[number];

/** Why `send` returned false. */
export const refusalReasons = ["disconnected", "unknown-peer", "window"] as const;
export type RefusalReason = (typeof refusalReasons)[number];

/** Counters since the transport was made. Bytes include the envelope. */
export interface TransportStats {
  messagesOut: number;
  framesOut: number;
  bytesOut: number;
  messagesIn: number;
  framesIn: number;
  bytesIn: number;
  /** Connections made again after a loss. */
  reconnects: number;
  /** Received and not delivered. */
  readonly dropped: Record<DropReason, number>;
  /** Not sent. */
  readonly refused: Record<RefusalReason, number>;
}

export function newStats(): TransportStats {
  return {
    messagesOut: 0,
    framesOut: 0,
    bytesOut: 0,
    messagesIn: 0,
    framesIn: 0,
    bytesIn: 0,
    reconnects: 0,
    dropped: {
      malformed: 0,
      "unknown-version": 0,
      "foreign-cluster": 0,
      "wrong-address": 0,
      "old-boot": 0,
      incomplete: 0,
      "no-room": 0,
    },
    refused: { disconnected: 0, "unknown-peer": 0, window: 0 },
  };
}

// --- sending ---------------------------------------------------------------------------------------------------------

/** Who a transport speaks for. */
export interface Identity {
  /** Name of the cluster; frames of others are not delivered. */
  readonly cluster: string;
  /** Name of this node, unique in the cluster. */
  readonly node: string;
  /** Grows with each start of this node. */
  readonly boot: number;
}

export function assertIdentity(identity: Identity): void {
  assertName(identity.cluster, "Cluster name");
  assertName(identity.node, "Node name");
  assertSafeInteger(identity.boot, "boot");
}

/** Turns messages of one node into frames. */
export class FrameEncoder {
  readonly #header: Uint8Array;
  readonly #partBytes: number;
  #message = 0;

  /** `partBytes` is for tests; both ends must agree on it. */
  constructor(identity: Identity, partBytes = partBytesMax) {
    assertIdentity(identity);
    const { node } = identity;
    this.#partBytes = partBytes;
    const header = new Uint8Array(headerBytes + node.length);
    header.set([0x43, 0x46, 0x58, protocolVersion]);
    const key = clusterKey(identity.cluster);
    writeUint32(header, 8, key[0]);
    writeUint32(header, 12, key[1]);
    writeUint53(header, 16, identity.boot);
    header[41] = node.length;
    for (let i = 0; i < node.length; i++) header[headerBytes + i] = node.charCodeAt(i);
    this.#header = header;
  }

  /** Calls `use` with each frame of the message in order. Frames are fresh memory: `bytes` may change afterwards. */
  encode(lane: Lane, bytes: Uint8Array, use: (frame: Uint8Array) => void): void {
    assert(bytes.length <= messageBytesMax, `Message is longer than 16 MiB: ${bytes.length}`);
    const message = this.#message++;
    const parts = partsOf(bytes.length, this.#partBytes);
    assert(parts <= 0xffff, "message has more parts than the envelope can count");
    for (let part = 0; part < parts; part++) {
      const start = part * this.#partBytes;
      const end = Math.min(bytes.length, start + this.#partBytes);
      const frame = new Uint8Array(this.#header.length + end - start);
      frame.set(this.#header);
      writeUint53(frame, 24, message);
      writeUint32(frame, 32, bytes.length);
      writeUint16(frame, 36, part);
      writeUint16(frame, 38, parts);
      frame[40] = lanes.indexOf(lane);
      frame.set(parts === 1 ? bytes : bytes.subarray(start, end), this.#header.length);
      writeUint32(frame, crcOffset, crc32(frame.subarray(checkedOffset)));
      use(frame);
    }
  }

  /** Bytes on the wire of a message of this length. */
  wireBytes(messageBytes: number): number {
    return messageBytes + partsOf(messageBytes, this.#partBytes) * this.#header.length;
  }
}

/** An empty message is one empty part. */
function partsOf(messageBytes: number, partBytes: number): number {
  return Math.max(1, Math.ceil(messageBytes / partBytes));
}

// --- receiving -------------------------------------------------------------------------------------------------------

export interface Frame {
  readonly cluster: ClusterKey;
  readonly from: string;
  readonly boot: number;
  readonly lane: Lane;
  /** Number of the message at its sender. */
  readonly message: number;
  /** Length of the whole message in bytes. */
  readonly messageBytes: number;
  readonly part: number;
  readonly parts: number;
  /** A view into the bytes given. */
  readonly payload: Uint8Array;
}

/**
 * Takes a frame apart.
 * @returns why not, when it is not a whole and consistent frame of this version
 */
export function decodeFrame(
  bytes: Uint8Array,
  partBytes = partBytesMax,
): Frame | "malformed" | "unknown-version" {
  if (bytes.length < headerBytes) return "malformed";
  if (bytes[0] !== 0x43 || bytes[1] !== 0x46 || bytes[2] !== 0x58) return "malformed";
  // Before anything else: another version may place and check the rest differently.
  if (bytes[3] !== protocolVersion) return "unknown-version";
  if (readUint32(bytes, crcOffset) !== crc32(bytes.subarray(checkedOffset))) return "malformed";

  const fromBytes = bytes[41] as number;
  const payloadOffset = headerBytes + fromBytes;
  if (nameBytesMax < fromBytes || bytes.length < payloadOffset) return "malformed";
  let from = "";
  for (let i = headerBytes; i < payloadOffset; i++) from += String.fromCharCode(bytes[i] as number);
  if (!isName(from)) return "malformed";

  const boot = readUint53(bytes, 16);
  const message = readUint53(bytes, 24);
  const lane = lanes[bytes[40] as number];
  if (boot === null || message === null || lane === undefined) return "malformed";

  // The parts' sizes follow from the whole's, so that nobody can make us wait for parts that do not add up.
  const messageBytes = readUint32(bytes, 32);
  const part = readUint16(bytes, 36);
  const parts = readUint16(bytes, 38);
  if (messageBytesMax < messageBytes) return "malformed";
  if (parts !== partsOf(messageBytes, partBytes) || parts <= part) return "malformed";
  // A plain array also where `bytes` is a Buffer, whose slice() would not copy, against what handlers rely on.
  const payload = new Uint8Array(
    bytes.buffer,
    bytes.byteOffset + payloadOffset,
    bytes.length - payloadOffset,
  );
  const expected = part < parts - 1 ? partBytes : messageBytes - part * partBytes;
  if (payload.length !== expected) return "malformed";

  const cluster: ClusterKey = [readUint32(bytes, 8), readUint32(bytes, 12)];
  return { cluster, from, boot, lane, message, messageBytes, part, parts, payload };
}

/** A message whose later parts are still to come. */
interface Assembly {
  readonly message: number;
  readonly parts: number;
  readonly bytes: Uint8Array;
  nextPart: number;
  touchedMs: number;
}

interface Sender {
  boot: number;
  heardMs: number;
  /** At most one per lane. */
  readonly assemblies: Map<Lane, Assembly>;
  /** Number of the last message given up, so that its late parts do not count as another. */
  incomplete: number;
}

/** The receiving end of one node: checks frames, puts messages together, delivers them. */
export class FrameReceiver {
  readonly #cluster: ClusterKey;
  readonly #handler: FrameHandler;
  readonly #stats: TransportStats;
  readonly #partBytes: number;
  readonly #senders = new Map<string, Sender>();
  #assemblyBytes = 0;

  constructor(options: {
    cluster: string;
    handler: FrameHandler;
    stats: TransportStats;
    /** For tests; both ends must agree on it. */
    partBytes?: number;
  }) {
    this.#cluster = clusterKey(options.cluster);
    this.#handler = options.handler;
    this.#stats = options.stats;
    this.#partBytes = options.partBytes ?? partBytesMax;
  }

  /**
   * Takes one frame that came by the address of `from` and `lane`, and calls the handler when it completes a message.
   * Throws only what the handler throws.
   */
  accept(address: { from: string; lane: Lane }, bytes: Uint8Array, nowMs: number): void {
    this.#stats.framesIn++;
    this.#stats.bytesIn += bytes.length;
    const frame = decodeFrame(bytes, this.#partBytes);
    if (typeof frame === "string") return this.#drop(frame);
    const [high, low] = this.#cluster;
    if (frame.cluster[0] !== high || frame.cluster[1] !== low) return this.#drop("foreign-cluster");
    // Only the address is guarded by the server's permissions.
    if (frame.from !== address.from || frame.lane !== address.lane)
      return this.#drop("wrong-address");

    const sender = this.#senders.get(frame.from) ?? this.#meet(frame, nowMs);
    if (frame.boot < sender.boot) return this.#drop("old-boot");
    if (sender.boot < frame.boot) {
      this.#abandonAll(sender);
      sender.boot = frame.boot;
      sender.incomplete = -1;
    }
    sender.heardMs = nowMs;

    const message = frame.parts === 1 ? frame.payload : this.#assemble(sender, frame, nowMs);
    if (message === null) return;
    if (frame.parts === 1 && sender.assemblies.size > 0) this.#abandon(sender, frame.lane);
    this.#stats.messagesIn++;
    this.#handler(frame.from, frame.boot, frame.lane, message);
  }

  /** Gives up messages that wait for parts since too long. To be called every few seconds. */
  expire(nowMs: number): void {
    if (this.#assemblyBytes === 0) return;
    for (const sender of this.#senders.values())
      for (const [lane, assembly] of sender.assemblies)
        if (reassemblyMsMax < nowMs - assembly.touchedMs) this.#abandon(sender, lane);
  }

  #meet(frame: Frame, nowMs: number): Sender {
    if (this.#senders.size >= sendersMax) {
      const [name, oldest] = [...this.#senders].reduce((a, b) =>
        b[1].heardMs < a[1].heardMs ? b : a,
      );
      this.#abandonAll(oldest);
      this.#senders.delete(name);
    }
    const { boot } = frame;
    const sender: Sender = { boot, heardMs: nowMs, assemblies: new Map(), incomplete: -1 };
    this.#senders.set(frame.from, sender);
    return sender;
  }

  /** Parts come in order or the message is lost: a connection keeps their order, and a new one starts anew. */
  #assemble(sender: Sender, frame: Frame, nowMs: number): Uint8Array | null {
    let assembly = sender.assemblies.get(frame.lane);
    if (assembly !== undefined && assembly.message !== frame.message) {
      this.#abandon(sender, frame.lane);
      assembly = undefined;
    }
    if (assembly === undefined) {
      if (frame.part !== 0) {
        if (sender.incomplete !== frame.message) this.#drop("incomplete");
        sender.incomplete = frame.message;
        return null;
      }
      if (reassemblyBytesMax < this.#assemblyBytes + frame.messageBytes) this.expire(nowMs);
      if (reassemblyBytesMax < this.#assemblyBytes + frame.messageBytes) {
        this.#drop("no-room");
        sender.incomplete = frame.message;
        return null;
      }
      assembly = {
        message: frame.message,
        parts: frame.parts,
        bytes: new Uint8Array(frame.messageBytes),
        nextPart: 0,
        touchedMs: nowMs,
      };
      sender.assemblies.set(frame.lane, assembly);
      this.#assemblyBytes += frame.messageBytes;
    }
    if (frame.part !== assembly.nextPart || frame.messageBytes !== assembly.bytes.length) {
      this.#abandon(sender, frame.lane);
      return null;
    }
    assembly.bytes.set(frame.payload, frame.part * this.#partBytes);
    assembly.nextPart++;
    assembly.touchedMs = nowMs;
    if (assembly.nextPart < assembly.parts) return null;
    sender.assemblies.delete(frame.lane);
    this.#assemblyBytes -= assembly.bytes.length;
    return assembly.bytes;
  }

  #abandon(sender: Sender, lane: Lane): void {
    const assembly = sender.assemblies.get(lane);
    if (assembly === undefined) return;
    sender.assemblies.delete(lane);
    this.#assemblyBytes -= assembly.bytes.length;
    sender.incomplete = assembly.message;
    this.#drop("incomplete");
  }

  #abandonAll(sender: Sender): void {
    for (const lane of sender.assemblies.keys()) this.#abandon(sender, lane);
  }

  #drop(reason: DropReason): void {
    this.#stats.dropped[reason]++;
  }
}

// --- bytes -----------------------------------------------------------------------------------------------------------

type ClusterKey = readonly [high: number, low: number];

/** Two FNV-1a hashes of the name. A mistake is to be caught here, not an attacker: he is the permissions' business. */
function clusterKey(cluster: string): ClusterKey {
  let high = 0x811c9dc5;
  let low = 0xcbf29ce4;
  for (let i = 0; i < cluster.length; i++) {
    high = Math.imul(high ^ cluster.charCodeAt(i), 0x01000193);
    low = Math.imul(low ^ cluster.charCodeAt(cluster.length - 1 - i), 0x01000193);
  }
  return [high >>> 0, low >>> 0];
}

function writeUint16(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value >>> 8;
  bytes[offset + 1] = value;
}

function writeUint32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value >>> 24;
  bytes[offset + 1] = value >>> 16;
  bytes[offset + 2] = value >>> 8;
  bytes[offset + 3] = value;
}

function writeUint53(bytes: Uint8Array, offset: number, value: number): void {
  writeUint32(bytes, offset, Math.floor(value / 0x1_0000_0000));
  writeUint32(bytes, offset + 4, value >>> 0);
}

function readUint16(bytes: Uint8Array, offset: number): number {
  return ((bytes[offset] as number) << 8) | (bytes[offset + 1] as number);
}

function readUint32(bytes: Uint8Array, offset: number): number {
  return ((readUint16(bytes, offset) << 16) | readUint16(bytes, offset + 2)) >>> 0;
}

/** Null when it is past what a number holds exactly. */
function readUint53(bytes: Uint8Array, offset: number): number | null {
  const high = readUint32(bytes, offset);
  if (high >= 0x20_0000) return null;
  return high * 0x1_0000_0000 + readUint32(bytes, offset + 4);
}
