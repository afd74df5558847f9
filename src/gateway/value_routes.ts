/**
 * Routes of effective values.
 */
import { createHash } from "node:crypto";
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import { ExplainAnswer, ValuesAnswer } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import { effectiveConfig, effectiveOf, explainEffective } from "../machine/queries.ts";
import type { ConfigRow } from "../machine/rows.ts";
import { mediaType } from "../model/content.ts";
import type { Labels } from "../model/release.ts";
import { json, type Answer, type Call } from "./http.ts";
import type { NamespaceSet } from "./namespace_sets.ts";
import { authorizeSecrets, openText, readsSecrets, type Secrets } from "./secrets.ts";
import { route, type Route } from "./route.ts";
import {
  labelsOf,
  noLabels,
  refuseRules,
  releaseOf,
  releasesOf,
  snapshotBytesMax,
  valueAnswer,
} from "./values.ts";

const N = "/v1/tenants/:tenant/namespaces/:namespace";

export const rulesQuery = {
  rules: Type.Optional(
    Type.Boolean({
      description:
        "Instead of effective values the releases with their rules and contents (version: the release, content: a ReleasedRules as JSON), for whoever evaluates them itself. Not for client keys, not with labels",
    }),
  ),
};

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
      ...rulesQuery,
    },
    responses: {
      200: {
        description:
          "The content in its media type, with Conflux-Version and Conflux-Rule (absent for the default); with explain=true an Explanation",
        media: "*/*",
        schema: Type.Union([Type.String(), ExplainAnswer]),
      },
    },
    read: (view, call, { query }, { secrets }) => {
      const { namespace, name } = call.params as { namespace: string; name: string };
      if (query.rules === true) return releaseAnswer(view, namespace, name, call);
      const labels = labelsOf(call.query);
      if (query.explain === true)
        return explainAnswer(view, namespace, name, labels, call.principal);
      const config = effectiveConfig(view, namespace, name);
      const known = config === null ? undefined : plainAnswers.get(config);
      if (known !== undefined) return known;
      const value = config === null ? null : effectiveOf(view, config, labels);
      const text = value === null ? null : secretText(view, secrets, config, value, call);
      if (value === null || text === null)
        throw new Problem(
          "not-found",
          `Nothing is released for these labels as ${namespace}/${name}`,
        );
      const headers: Record<string, string> = {
        "content-type": mediaType(value.format),
        "cache-control": config?.secret === true ? "no-store" : "no-cache",
        // Content is the tenant's: a browser must never take it for a page.
        "x-content-type-options": "nosniff",
        // Over version and content: whatever changes what these labels get changes it.
        etag: `"${value.version}-${value.hash.slice("sha256:".length, "sha256:".length + 32)}"`,
        "conflux-version": String(value.version),
      };
      if (value.rule !== null) headers["conflux-rule"] = value.rule;
      if (config === null || !isPlain(config, text)) return { status: 200, headers, body: text };
      const answer = { status: 200, headers, shared: new Headers(headers), body: text };
      plainAnswers.set(config, answer);
      return answer;
    },
  }),
  route({
    method: "GET",
    path: `${N}/values`,
    id: "getValues",
    tag: "values",
    summary: "All values of a namespace for these labels: one snapshot",
    labels: true,
    query: rulesQuery,
    responses: {
      200: {
        description: `Values by name; contents beyond ${snapshotBytesMax} bytes in all are left out`,
        schema: ValuesAnswer,
      },
    },
    read: (view, call, { query }, { sets, secrets }) => {
      if (query.rules === true) return releasesAnswer(view, call);
      const labels = labelsOf(call.query);
      const set = sets.of(view, call.params["namespace"] as string);
      const open = set.labelNames.length > 0 ? allOf(view, set, labels) : fixedOf(view, set);
      const { chosen, text } =
        readsSecrets(call.principal) && set.secrets.length > 0
          ? withSecrets(view, set, labels, secrets, open)
          : open;
      const tag = createHash("sha256").update(chosen).digest("base64url").slice(0, 32);
      const hasSecrets = chosen !== open.chosen;
      return {
        ...json(null, {
          etag: `"${view.epoch}-${view.revision}-${tag}"`,
          ...(hasSecrets && { headers: { "cache-control": "no-store" } }),
        }),
        body: `{"revision":${view.revision},"values":{${text}}}`,
      };
    },
  }),
];

/** Of configs whose value is the same for everybody: as long as the row is the same object, nothing of it has changed. */
const plainAnswers = new WeakMap<ConfigRow, Answer>();
/** Longer ones are not kept in memory for it. */
const plainLengthMax = 4_096;

function isPlain({ rules, secret }: ConfigRow, text: string): boolean {
  return rules.length === 0 && secret !== true && text.length <= plainLengthMax;
}

interface Encoded {
  /** Equal for equal values. */
  readonly chosen: string;
  readonly text: string;
}

const fixed = new WeakMap<NamespaceSet, Encoded>();

/** Of a set in which no rule looks at labels: the same for everybody. */
function fixedOf(view: TenantView, set: NamespaceSet): Encoded {
  let encoded = fixed.get(set);
  if (encoded === undefined) {
    encoded = allOf(view, set, noLabels);
    fixed.set(set, encoded);
  }
  return encoded;
}

function allOf(view: TenantView, set: NamespaceSet, labels: Labels): Encoded {
  // What has no rules is the same as long as the set is.
  let chosen = set.mark;
  const values: string[] = [];
  let bytes = 0;
  for (const member of set.members) {
    const content = member.choose(view, labels)?.content;
    if (content === undefined) continue;
    if (member.hasRules) chosen += `/${content.row.version}`;
    const fits = bytes + content.row.bytes <= snapshotBytesMax;
    if (fits) bytes += content.row.bytes;
    values.push(fits ? content.json : content.jsonWithoutText);
  }
  return { chosen, text: values.join(",") };
}

/** Never kept: they are opened for each request. */
function withSecrets(
  view: TenantView,
  set: NamespaceSet,
  labels: Labels,
  secrets: Secrets,
  open: Encoded,
): Encoded {
  let { chosen } = open;
  const values = open.text === "" ? [] : [open.text];
  let bytes = open.text.length;
  for (const config of set.secrets) {
    const value = effectiveOf(view, config, labels);
    if (value === null) continue;
    const { version } = value;
    chosen += `/secret ${config.name} ${version}`;
    const fits = bytes + value.bytes <= snapshotBytesMax;
    const content = fits ? openText(view, secrets, config, { version, secret: true }) : null;
    if (fits) bytes += value.bytes;
    values.push(`${JSON.stringify(config.name)}:${JSON.stringify(valueAnswer(value, content))}`);
  }
  return { chosen, text: values.join(",") };
}

function secretText(
  view: TenantView,
  secrets: Secrets,
  config: ConfigRow | null,
  value: { readonly namespace: string; readonly name: string; readonly version: number },
  call: Call,
): string | null {
  const secret = config?.secret === true;
  if (secret) authorizeSecrets(call.principal);
  return openText(view, secrets, value, { version: value.version, secret });
}

function releasesAnswer(view: TenantView, call: Call): Answer {
  refuseRules(call.query, call.principal);
  const values = releasesOf(view, call.params["namespace"] as string, snapshotBytesMax);
  const digest = createHash("sha256");
  for (const [name, { hash }] of Object.entries(values)) digest.update(`${name} ${hash}\n`);
  const tag = digest.digest("base64url").slice(0, 32);
  const etag = `"${view.epoch}-${view.revision}-${tag}"`;
  return json({ revision: view.revision, values }, { etag });
}

function releaseAnswer(view: TenantView, namespace: string, name: string, call: Call): Answer {
  refuseRules(call.query, call.principal);
  const config = effectiveConfig(view, namespace, name);
  if (config === null)
    throw new Problem("not-found", `Nothing is released as ${namespace}/${name}`);
  if (config.secret === true)
    throw new Problem("forbidden", "Ask for the value: secrets are not given with their rules");
  const { version, hash, content } = releaseOf(view, config);
  return {
    status: 200,
    headers: {
      "content-type": "application/json; charset=utf-8",
      "cache-control": "no-cache",
      "x-content-type-options": "nosniff",
      etag: `"r${version}-${hash.slice("sha256:".length, "sha256:".length + 32)}"`,
      "conflux-version": String(version),
    },
    body: content,
  };
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
