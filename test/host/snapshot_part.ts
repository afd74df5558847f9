/** A snapshot of a single part, as a peer would send it. */
import { chainOf, encodePart, encodeRows } from "../../src/host/codec.ts";
import type { Message } from "../../src/raft/types.ts";

export function onlyPart(
  message: Message,
  rows: readonly (readonly [key: string, text: string])[],
  head: { readonly transfer?: number; readonly group?: number } = {},
): Uint8Array {
  const bytes = encodeRows(rows);
  return encodePart(
    {
      transfer: 1,
      group: 1,
      incarnation: 1,
      to: message.to,
      part: 0,
      last: true,
      message,
      chain: chainOf(0, bytes),
      ...head,
    },
    bytes,
  );
}
