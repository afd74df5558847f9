/** Configuration changes as the data of log entries. An empty change has no bytes, so that no size limit refuses it. */
import { ByteReader, ByteWriter, MalformedError } from "../lib/bytes.ts";
import { ChangeKind, type ConfChange } from "./types.ts";

const TRANSITIONS = ["auto", "jointImplicit", "jointExplicit"] as const;
const KIND_MAX = ChangeKind.addLearner;
const NO_BYTES = new Uint8Array(0);

export function encodeConfChange(change: ConfChange): Uint8Array {
  if (change.changes.length === 0 && change.context.length === 0 && change.transition === "auto") {
    return NO_BYTES;
  }
  const writer = new ByteWriter(16 + 9 * change.changes.length + change.context.length);
  writer.u8(TRANSITIONS.indexOf(change.transition));
  writer.u16(change.changes.length);
  for (const { kind, id } of change.changes) {
    writer.u8(kind);
    writer.u53(id);
  }
  writer.u32(change.context.length);
  writer.bytes(change.context);
  return writer.view();
}

/** @throws MalformedError */
export function decodeConfChange(bytes: Uint8Array): ConfChange {
  if (bytes.length === 0) return { transition: "auto", changes: [], context: NO_BYTES };
  const reader = new ByteReader(bytes);
  const transition = TRANSITIONS[reader.u8()];
  if (transition === undefined) throw new MalformedError("Unknown transition");
  const count = reader.u16();
  if (count * 9 > reader.remaining) throw new MalformedError(`More changes than bytes: ${count}`);
  const changes: { kind: ChangeKind; id: number }[] = [];
  for (let i = 0; i < count; i++) {
    const kind = reader.u8();
    if (kind > KIND_MAX) throw new MalformedError(`Unknown kind of change: ${kind}`);
    changes.push({ kind: kind as ChangeKind, id: reader.u53() });
  }
  const context = reader.copy(reader.u32());
  reader.end();
  return { transition, changes, context };
}
