/** The only globals beyond the language that the pure floors may use, all deterministic: text to bytes and back, addresses. */
declare class TextEncoder {
  encode(text?: string): Uint8Array<ArrayBuffer>;
}
declare class TextDecoder {
  constructor(label?: string, options?: { fatal?: boolean; ignoreBOM?: boolean });
  decode(bytes?: Uint8Array): string;
}
declare class URL {
  constructor(reference: string, base?: string);
  readonly href: string;
}
declare function decodeURIComponent(text: string): string;
