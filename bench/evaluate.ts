/**
 * Evaluation in the process of a service: one `ConfluxServer`, rules held, labels of each call its own.
 *
 * Estimate before measuring: a map look-up, a few comparisons of strings and for a rollout one murmur3 over some twenty
 * bytes: 100 to 400 ns, so 2.5 to 10 million a second on one core.
 *
 * Run: bun bench/evaluate.ts [--seconds 2]      the same on Node and Deno
 */
import process from "node:process";
import { parseArgs } from "node:util";
import type { ReleasedRules } from "../src/model/release.ts";
import { ConfluxServer } from "../src/sdk/server.ts";

const { values } = parseArgs({ options: { seconds: { type: "string", default: "2" } } });

const versions = Object.fromEntries(
  [1, 2, 3].map((version) => [
    version,
    { hash: `h${version}`, format: "json" as const, content: `{"max":${version}}` },
  ]),
);
const region = Array.from({ length: 10 }, (_, i) => ({
  id: `region-${i}`,
  match: { region: `r${i}`, plan: ["gold", "silver"] },
  version: 2,
}));
const half = {
  id: "half",
  match: {},
  rollout: { percentage: 50, by: "user", salt: "s" },
  version: 3,
};
const releases: Record<string, ReleasedRules["rules"]> = {
  "no rules": [],
  "one rule on a label": region.slice(0, 1),
  "ten rules of two labels, the last matches": region,
  "a rollout of half the users": [half],
  "ten rules that do not match, then a rollout": [...region.slice(0, 9), half],
};
const conflux = new ConfluxServer({
  tenant: "bench",
  offline: true,
  bootstrap: {
    values: Object.fromEntries(
      Object.entries(releases).map(([name, rules]) => {
        const released: ReleasedRules = { release: 1, rules, default: 1, judgedAt: 0, versions };
        return [
          name,
          { version: 1, hash: name, format: "json", content: JSON.stringify(released) },
        ];
      }),
    ),
  },
});
await conflux.ready();
const labels = Array.from({ length: 1_024 }, (_, i) => ({
  region: "r9",
  plan: "gold",
  user: `user-${i}`,
}));

console.log(
  `${process.versions["bun"] === undefined ? "" : `Bun ${process.versions["bun"]}, `}Node API ${process.versions.node}`,
);
for (const name of Object.keys(releases)) {
  let seen = 0;
  const run = (count: number): void => {
    for (let i = 0; i < count; i++)
      if (conflux.evaluate(name, labels[i & 1_023] as (typeof labels)[0]) !== undefined) seen++;
  };
  run(200_000);
  const startedAt = performance.now();
  let count = 0;
  while (performance.now() - startedAt < Number(values.seconds) * 1_000) {
    run(100_000);
    count += 100_000;
  }
  const perSecond = (count * 1_000) / (performance.now() - startedAt);
  if (seen !== count + 200_000) throw new Error("An evaluation gave nothing");
  console.log(
    `${name.padEnd(48)} ${(perSecond / 1e6).toFixed(2).padStart(7)} million/s  ${(1e9 / perSecond).toFixed(0).padStart(5)} ns`,
  );
}
await conflux.close();
