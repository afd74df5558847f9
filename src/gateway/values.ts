/**
 * Routes of effective values: what a client with its labels gets.
 */
import { createHash } from "node:crypto";
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import { ExplainAnswer, ValuesAnswer, type EffectiveValue } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import { effective, effectiveAll, explainEffective, getText } from "../machine/queries.ts";
import { mediaType } from "../model/content.ts";
import { checkLabels } from "../model/names.ts";
import type { Labels } from "../model/release.ts";
import { invalid, json } from "./http.ts";
import { route, type Route } from "./route.ts";

const N = "/v1/tenants/:tenant/namespaces/:namespace";

/** All contents of one snapshot together; what is beyond comes without, and is read by itself. */
export const snapshotBytesMax = 8 * 1024 * 1024;

const labelPrefix = "label.";
const noLabels: Labels = {};

/** The labels in `label.<name>=<value>` parameters. @throws Problem `invalid` */
export function labelsOf(query: URLSearchParams): Labels {
  if (query.size === 0) return noLabels;
  const labels: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const [parameter, value] of query) {
    if (!parameter.startsWith(labelPrefix)) continue;
    const name = parameter.slice(labelPrefix.length);
    if (Object.hasOwn(labels, name))
      throw invalid("Give each label once", [
        { pointer: `/query/${parameter}`, detail: "Given more than once" },
      ]);
    labels[name] = value;
  }
  const errors = checkLabels(labels);
  const first = errors[0];
  if (first !== undefined)
    throw invalid(
      first.detail,
      errors.map((error) => ({
        pointer: error.pointer === "" ? "/query" : `/query/label.${error.pointer.slice(1)}`,
        detail: error.detail,
      })),
    );
  return labels;
}

export const valueRoutes: readonly Route[] = [
  route({
    method: "GET",
    path: `${N}/values/:name`,
    id: "getValue",
    tag: "values",
    summary: "The content for these labels, as it is; or with explain the reasons",
    labels: true,
    query: {
      explain: Type.Optional(
        Type.Boolean({ description: "Answer JSON with the rule-by-rule reasoning" }),
      ),
    },
    responses: {
      200: {
        description:
          "The content in its media type, with Conflux-Version and Conflux-Rule (absent for the default); with explain=true an Explanation",
        media: "*/*",
        schema: Type.Union([Type.String(), ExplainAnswer]),
      },
    },
    read: (view, call, { query }) => {
      const { namespace, name } = call.params as { namespace: string; name: string };
      const labels = labelsOf(call.query);
      if (query.explain === true)
        return explainAnswer(view, namespace, name, labels, call.principal);
      const value = effective(view, namespace, name, labels);
      if (value === null)
        throw new Problem(
          "not-found",
          `Nothing is released for these labels as ${namespace}/${name}`,
        );
      const headers: Record<string, string> = {
        "content-type": mediaType(value.format),
        "cache-control": "no-cache",
        // Content is the tenant's: a browser must never take it for a page.
        "x-content-type-options": "nosniff",
        // Over version and content: whatever changes what these labels get changes it.
        etag: `"${value.version}-${value.hash.slice("sha256:".length, "sha256:".length + 32)}"`,
        "conflux-version": String(value.version),
      };
      if (value.rule !== null) headers["conflux-rule"] = value.rule;
      return { status: 200, headers, body: value.text };
    },
  }),
  route({
    method: "GET",
    path: `${N}/values`,
    id: "getValues",
    tag: "values",
    summary: "All values of a namespace for these labels: one snapshot",
    labels: true,
    responses: {
      200: {
        description: `Values by name; contents beyond ${snapshotBytesMax} bytes in all are left out`,
        schema: ValuesAnswer,
      },
    },
    read: (view, call, _input, { sets }) => {
      const labels = labelsOf(call.query);
      const set = sets.of(view, call.params["namespace"] as string);
      const digest = createHash("sha256").update(set.mark);
      const values: string[] = [];
      let bytes = 0;
      for (const member of set.members) {
        const content = member.choose(view, labels)?.content;
        if (content === undefined) continue;
        digest.update(`/${content.row.version}`);
        const fits = bytes + content.row.bytes <= snapshotBytesMax;
        if (fits) bytes += content.row.bytes;
        values.push(fits ? content.json : content.jsonWithoutText);
      }
      const tag = digest.digest("base64url").slice(0, 32);
      return {
        ...json(null, { etag: `"${view.epoch}-${view.revision}-${tag}"` }),
        body: `{"revision":${view.revision},"values":{${values.join(",")}}}`,
      };
    },
  }),
];

/** @param valueBytesMax contents longer than this are left out */
export function snapshotOf(
  view: TenantView,
  namespace: string,
  labels: Labels,
  bytesMax: number,
  valueBytesMax = Number.POSITIVE_INFINITY,
): Record<string, EffectiveValue> {
  const values: Record<string, EffectiveValue> = {};
  let bytes = 0;
  for (const value of effectiveAll(view, namespace, labels)) {
    const fits = value.bytes <= valueBytesMax && bytes + value.bytes <= bytesMax;
    const content = fits ? getText(view, value.namespace, value.name, value.version) : null;
    if (content !== null) bytes += value.bytes;
    values[value.name] = {
      version: value.version,
      hash: value.hash,
      format: value.format,
      ...(content !== null && { content }),
    };
  }
  return values;
}

function explainAnswer(
  view: TenantView,
  namespace: string,
  name: string,
  labels: Labels,
  principal: { readonly kind: string } | null,
) {
  // Client keys see values, never rules.
  if (principal?.kind === "client")
    throw new Problem("forbidden", "A client key may not see rules");
  const { detail, version, rule, rules, chain, release, ...found } = explainEffective(
    view,
    namespace,
    name,
    labels,
  );
  return json({
    name,
    namespace: found.namespace,
    chain,
    revision: view.revision,
    release,
    version,
    rule,
    reason: detail,
    rules,
  });
}
