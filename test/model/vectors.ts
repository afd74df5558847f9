/**
 * Prints one digest per function over many inputs, the same ones on every runtime: replicas and clients on different
 * runtimes must agree on every hash, canonical form, bucket, time and decision.
 */
import { createHash } from "node:crypto";
import process from "node:process";
import { Prng } from "../../src/lib/prng.ts";
import { contentHash, prepareContent } from "../../src/model/content.ts";
import { bucketOf, evaluate } from "../../src/model/evaluate.ts";
import { canonicalJson } from "../../src/model/json.ts";
import type { ReleaseRule } from "../../src/model/release.ts";
import { parseTime } from "../../src/model/time.ts";
import { utf8Encode } from "../../src/model/utf8.ts";

const count = 1_000;
const prng = new Prng(20_261_121);
const units = [
  "a",
  "Z",
  "0",
  " ",
  "\n",
  '"',
  "\\",
  "é",
  "ß",
  "\u2028",
  "中",
  "😀",
  "\u{10ffff}",
  "\0",
  "\ufeff",
];

function text(): string {
  return Array.from({ length: prng.below(12) }, () => prng.pick(units)).join("");
}

/** Of any bits: a power would be rounded by each engine in its own way. */
function number(): number {
  const view = new DataView(new ArrayBuffer(8));
  view.setUint32(0, prng.uint32());
  view.setUint32(4, prng.uint32());
  const value = view.getFloat64(0);
  return Number.isFinite(value) ? value : prng.uint32() / 8;
}

function json(depth: number): unknown {
  const kind = prng.below(depth > 3 ? 4 : 6);
  if (kind === 0) return null;
  if (kind === 1) return prng.chance(0.5);
  if (kind === 2) return number();
  if (kind === 3) return text();
  const items = Array.from({ length: prng.below(4) }, () => json(depth + 1));
  return kind === 4 ? items : Object.fromEntries(items.map((item) => [text(), item]));
}

function rule(id: string): ReleaseRule {
  const operators = [
    text(),
    [text(), text()],
    { not: text() },
    { prefix: prng.pick(units) },
    { semver: prng.pick([">=1.2.0 <2.0.0", "^0.3.1", "~1.0.0-rc.1"]) },
    { gte: number(), lt: number() },
    { exists: prng.chance(0.5) },
  ];
  return {
    id,
    match: prng.chance(0.3) ? {} : { a: prng.pick(operators), b: prng.pick(operators) },
    ...(prng.chance(0.5) && {
      rollout: { percentage: prng.below(100_001) / 1_000, by: "a", salt: text() },
    }),
    version: prng.between(1, 5),
  };
}

const inputs: Readonly<Record<string, () => unknown>> = {
  contentHash: () => contentHash(text()),
  utf8: () => [...utf8Encode(text())],
  canonicalJson: () => canonicalJson(json(0)),
  bucketOf: () => bucketOf(text(), text()),
  parseTime: () =>
    parseTime(
      `${prng.between(1_000, 9_999)}-0${prng.between(1, 9)}-${prng.between(10, 31)}T${prng.between(10, 25)}:30:59.${prng.below(1_000)}${prng.pick(["Z", "+14:00", "-09:30"])}`,
    ),
  evaluate: () => {
    const release = { rules: [rule("r1"), rule("r2"), rule("r3")], default: 9 };
    const labels = {
      a: prng.pick([text(), "1.2.3", "v0.3.5", "1e3", ".5"]),
      ...(prng.chance(0.5) && { b: text() }),
    };
    return evaluate(release, labels, 0);
  },
  // Errors too: what one node refuses, another must not take.
  yaml: () => prepareContent("yaml", `a: ${text()}\nb: [${text()}]\n`),
  toml: () => prepareContent("toml", `a = ${String(number())}\nb = ${JSON.stringify(text())}\n`),
  properties: () => prepareContent("properties", `${text()}\n${text()}=${text()}`),
  json: () => prepareContent("json", json(0)),
};

const digests: Record<string, string> = {};
for (const [name, make] of Object.entries(inputs)) {
  const digest = createHash("sha256");
  for (let i = 0; i < count; i++) digest.update(`${JSON.stringify(make())}\n`);
  digests[name] = digest.digest("hex").slice(0, 16);
}
process.stdout.write(`${JSON.stringify(digests)}\n`);
