/**
 * Routes of effective values: what a client with its labels gets.
 */
import { createHash } from "node:crypto";
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import { ExplainAnswer, ValuesAnswer, type EffectiveValue } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import { versionKey } from "../machine/keys.ts";
import {
  effectiveConfig,
  effectiveConfigs,
  effectiveOf,
  explainEffective,
  getText,
} from "../machine/queries.ts";
import type { ConfigRow, VersionRow } from "../machine/rows.ts";
import { judgedAt } from "../machine/schedules.ts";
import { mediaType } from "../model/content.ts";
import { checkLabels } from "../model/names.ts";
import type { Labels, ReleasedRules, ReleasedVersion } from "../model/release.ts";
import { invalid, json, type Answer, type Call, type Principal } from "./http.ts";
import type { NamespaceSet } from "./namespace_sets.ts";
import { authorizeSecrets, openedText, openText, readsSecrets, type Secrets } from "./secrets.ts";
import { route, type Route } from "./route.ts";

const N = "/v1/tenants/:tenant/namespaces/:namespace";

/** All contents of one snapshot together; what is beyond comes without, and is read by itself. */
export const snapshotBytesMax = 8 * 1024 * 1024;

export const rulesQuery = {
  rules: Type.Optional(
    Type.Boolean({
      description:
        "Instead of effective values the releases with their rules and contents (version: the release, content: a ReleasedRules as JSON), for whoever evaluates them itself. Not for client keys, not with labels",
    }),
  ),
};

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
      return { status: 200, headers, body: text };
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

/**
 * What whoever evaluates rules himself needs of a config, in the form of a value: `version` is the release, `content` its
 * rules and the contents that they name, as JSON.
 */
export function releaseOf(view: TenantView, config: ConfigRow): Required<EffectiveValue> {
  const { namespace, name, release, rules, format } = config;
  const versions: Record<number, ReleasedVersion> = {};
  let bytes = 0;
  for (const version of [...rules.map((rule) => rule.version), config.default]) {
    if (version === null || Object.hasOwn(versions, version)) continue;
    const row = view.get<VersionRow>(versionKey(namespace, name, version));
    if (row === undefined) continue;
    bytes += row.bytes;
    const content = bytes > snapshotBytesMax ? null : getText(view, namespace, name, version);
    versions[version] = {
      hash: row.hash,
      format: row.format,
      ...(content !== null && { content }),
    };
  }
  const released: ReleasedRules = {
    release,
    rules,
    default: config.default,
    judgedAt: judgedAt(config),
    versions,
  };
  const content = JSON.stringify(released);
  const hash = `sha256:${createHash("sha256").update(content).digest("hex")}`;
  return { version: release, hash, format, content };
}

/** The same for all of a namespace. Contents longer than `valueBytesMax` are left out. */
export function releasesOf(
  view: TenantView,
  namespace: string,
  bytesMax: number,
  valueBytesMax = Number.POSITIVE_INFINITY,
): Record<string, EffectiveValue> {
  const values: Record<string, EffectiveValue> = {};
  let bytes = 0;
  for (const config of effectiveConfigs(view, namespace)) {
    // What is evaluated elsewhere is kept there: secrets are not given away so.
    if (config.secret === true) continue;
    const { content, ...value } = releaseOf(view, config);
    const length = Buffer.byteLength(content);
    const fits = length <= valueBytesMax && bytes + length <= bytesMax;
    if (fits) bytes += length;
    values[config.name] = fits ? { ...value, content } : value;
  }
  return values;
}

/** Rules are not for everybody who may have values. @throws Problem */
export function refuseRules(query: URLSearchParams, principal: Principal | null): void {
  if (principal?.kind === "client")
    throw new Problem("forbidden", "A client key may not see rules");
  for (const parameter of query.keys())
    if (parameter.startsWith(labelPrefix))
      throw invalid("Leave out labels: with rules=true whoever asks evaluates them", [
        { pointer: `/query/${parameter}`, detail: "Rules do not depend on labels" },
      ]);
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

/** A value as clients get it; without its content when that is null. */
export function valueAnswer(
  { version, hash, format }: Pick<EffectiveValue, "version" | "hash" | "format">,
  content: string | null,
): EffectiveValue {
  return { version, hash, format, ...(content !== null && { content }) };
}

/**
 * @param secrets opens the values of secret configs; null: they are not there
 * @param valueBytesMax contents longer than this are left out
 */
export function snapshotOf(
  view: TenantView,
  namespace: string,
  labels: Labels,
  secrets: Secrets | null,
  { bytesMax, valueBytesMax }: { readonly bytesMax: number; readonly valueBytesMax: number },
): Record<string, EffectiveValue> {
  const values: Record<string, EffectiveValue> = {};
  let bytes = 0;
  for (const config of effectiveConfigs(view, namespace)) {
    const secret = config.secret === true;
    if (secret && secrets === null) continue;
    const value = effectiveOf(view, config, labels);
    if (value === null) continue;
    const fits = value.bytes <= valueBytesMax && bytes + value.bytes <= bytesMax;
    const { version } = value;
    const content = !fits
      ? null
      : secret && secrets !== null
        ? openedText(view, secrets, value, { version, secret })
        : getText(view, value.namespace, value.name, version);
    if (content !== null) bytes += value.bytes;
    values[value.name] = valueAnswer(value, content);
  }
  return values;
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
