/**
 * Effective values: what a client with its labels gets.
 */
import { createHash } from "node:crypto";
import { Problem } from "../api/problems.ts";
import type { EffectiveValue } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import { versionKey } from "../machine/keys.ts";
import { effectiveConfigs, effectiveOf, getText } from "../machine/queries.ts";
import type { ConfigRow, VersionRow } from "../machine/rows.ts";
import { judgedAt } from "../machine/schedules.ts";
import { checkLabels } from "../model/names.ts";
import type { Labels, ReleasedRules, ReleasedVersion } from "../model/release.ts";
import { invalid, type Principal } from "./http.ts";
import { openedText, type Secrets } from "./secrets.ts";

/** All contents of one snapshot together; what is beyond comes without, and is read by itself. */
export const snapshotBytesMax = 8 * 1024 * 1024;

const labelPrefix = "label.";
export const noLabels: Labels = {};

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
