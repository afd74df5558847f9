/** What child.ts writes and its killer expects. */
export function payloadFor(group: number, length: number): Uint8Array {
  return new Uint8Array(length).fill((group * 7 + length) % 256);
}
