import fc from "fast-check";
import { expect, test } from "vitest";
import { HashedPrefix, HashedSuffix, murmur3, murmur3Text } from "../../src/model/murmur3.ts";
import { utf8Encode } from "../../src/model/utf8.ts";

test("a text in two parts has the hash of the whole, wherever they meet", () => {
  const parts = fc.oneof(
    fc.string({ unit: "binary-ascii", maxLength: 14 }),
    fc.string({ unit: "binary", maxLength: 5 }),
  );
  fc.assert(
    fc.property(parts, fc.array(parts, { minLength: 1, maxLength: 5 }), (end, beginnings) => {
      // One end after many beginnings: what it keeps of one must not disturb the next.
      const suffix = new HashedSuffix(end);
      for (const beginning of beginnings) {
        const hash = suffix.after(new HashedPrefix(beginning));
        expect(hash).toBe(murmur3Text(beginning + end));
        expect(hash).toBe(murmur3(utf8Encode(beginning + end)));
      }
    }),
  );
});
