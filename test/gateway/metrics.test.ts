/** What operators look at and are woken by must be there: names in dashboards rot silently. */
import { readFileSync } from "node:fs";
import path from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { routes } from "../../src/gateway/gateway.ts";
import { Harness } from "./harness.ts";

const infra = path.resolve(import.meta.dirname, "../../infra");

interface Rules {
  readonly groups: readonly {
    readonly rules: readonly { readonly alert: string; readonly expr: string }[];
  }[];
}
interface Dashboard {
  readonly panels: readonly { readonly targets: readonly { readonly expr: string }[] }[];
}

describe("metrics in infra/alerts.yaml and infra/grafana.json", () => {
  const rules = parse(readFileSync(path.join(infra, "alerts.yaml"), "utf8")) as Rules;
  const dashboard = JSON.parse(readFileSync(path.join(infra, "grafana.json"), "utf8")) as Dashboard;
  const expressions = [
    ...rules.groups.flatMap((group) => group.rules.map((rule) => rule.expr)),
    ...dashboard.panels.flatMap((panel) => panel.targets.map((target) => target.expr)),
  ];
  const h = new Harness();
  let text = "";
  beforeAll(async () => {
    await h.call("GET", "/metrics", { token: null });
    text = (await h.call("GET", "/metrics", { token: null })).text;
  });
  test.each(expressions)("%s", (expression) => {
    const names = expression.match(/\b(conflux|process)_[a-z_]+\b/g) ?? [];
    expect(names.length).toBeGreaterThan(0);
    for (const name of names) expect(text, name).toMatch(new RegExp(`^${name}(\\{| )`, "m"));
    for (const [, pattern] of expression.matchAll(/route=~"([^"]+)"/g))
      for (const alternative of (pattern as string).split("|"))
        expect(
          routes.some((route) => new RegExp(`^(${alternative})$`).test(route.id)),
          alternative,
        ).toBe(true);
  });
});
