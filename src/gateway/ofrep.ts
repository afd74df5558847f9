/**
 * OpenFeature's remote evaluation protocol (OFREP 0.3) and flagd's flag set, over the configs of a namespace.
 *
 * Two layers decide: the release rules choose the version of each config, with the texts of the evaluation context as
 * labels; a config of format `flag` then evaluates its own targeting with the whole context. Every other released config
 * is a flag too, whose value is its content.
 *
 * What clients rely on: errors in OFREP's own form; an ETag that covers the flags, the whole context and the address of
 * the event stream, because clients send it back after a change of context too, and keep that address for weeks.
 */
import { createHash } from "node:crypto";
import { Type } from "@sinclair/typebox";
import { Problem, type ProblemCode } from "../api/problems.ts";
import { OfrepBulk, OfrepEvaluation, OfrepFailure } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import { FlagCall, type Flag, type FlagContext, type Resolution } from "../model/flags.ts";
import type { Labels } from "../model/release.ts";
import { credentialOf } from "./auth.ts";
import { canonical, json, noneMatch, type Answer, type Call } from "./http.ts";
import type { Member, NamespaceSet } from "./namespace_sets.ts";
import { route, type Route } from "./route.ts";
import { streamToken, streamWindow } from "./tokens.ts";
import { labelsOf, snapshotBytesMax } from "./values.ts";

const N = "/v1/tenants/:tenant/namespaces/:namespace";
const tag = "openfeature";

/** How long a hidden page keeps its stream. */
const inactivityDelaySec = 120;
const contextBytesMax = 64 * 1024;

const body = Type.Object(
  {
    context: Type.Optional(
      Type.Object(
        { targetingKey: Type.Optional(Type.String()) },
        { additionalProperties: true, description: "The evaluation context" },
      ),
    ),
  },
  { additionalProperties: true },
);

const failures = {
  400: { description: "Cannot be evaluated", schema: OfrepFailure },
  401: { description: "The key is not known", schema: OfrepFailure },
  403: { description: "The key may not", schema: OfrepFailure },
  413: { description: "The context is too large", schema: OfrepFailure },
  429: { description: "Too fast: not before Retry-After", schema: OfrepFailure },
  500: { description: "It failed here", schema: OfrepFailure },
  503: { description: "Not now: not before Retry-After", schema: OfrepFailure },
};

export const ofrepRoutes: readonly Route[] = [
  route({
    method: "POST",
    path: `${N}/ofrep/v1/evaluate/flags`,
    id: "evaluateFlags",
    tag,
    summary: "All flags for a context (OFREP bulk evaluation)",
    body,
    bodyRequired: false,
    bodyBytesMax: contextBytesMax,
    errors: "ofrep",
    available: true,
    query: {
      flagConfigEtag: Type.Optional(
        Type.String({ maxLength: 256, description: "`etag` of the event that led here" }),
      ),
      flagConfigLastModified: Type.Optional(
        Type.String({ maxLength: 64, description: "`lastModified` of that event" }),
      ),
    },
    responses: {
      200: { description: "Evaluations", schema: OfrepBulk },
      304: { description: "As If-None-Match says: the same for this context" },
      ...failures,
    },
    read: (view, call, input, { sets }) => {
      const context = contextOf(input.body);
      const namespace = call.params["namespace"] as string;
      const set = sets.of(view, namespace);
      return evaluateAll(view, call, set, context, Date.now());
    },
  }),
  route({
    method: "POST",
    path: `${N}/ofrep/v1/evaluate/flags/:flag`,
    id: "evaluateFlag",
    tag,
    summary: "One flag for a context (OFREP)",
    body,
    bodyRequired: false,
    bodyBytesMax: contextBytesMax,
    errors: "ofrep",
    available: true,
    responses: {
      200: { description: "Its evaluation", schema: OfrepEvaluation },
      404: { description: "There is no such flag", schema: OfrepFailure },
      ...failures,
    },
    read: (view, call, input, { sets }) => {
      const context = contextOf(input.body);
      const key = call.params["flag"] as string;
      const set = sets.of(view, call.params["namespace"] as string);
      const member = set.find(key);
      const chosen = member?.choose(view, labelsIn(set, context)) ?? null;
      if (member === null || chosen === null)
        throw new Problem(
          "not-found",
          "There is no such flag, or nothing is released for this context",
        );
      const { content, rule } = chosen;
      const resolution = content.resolve(new FlagCall(context, Date.now()), member, rule);
      return {
        ...json(null, { status: resolution.errorCode === undefined ? 200 : 400 }),
        body: encoded(resolution),
      };
    },
  }),
  route({
    method: "GET",
    path: `${N}/flagd.json`,
    id: "getFlagSet",
    tag,
    summary: "The flags as flagd reads them: any flagd can follow this address",
    labels: true,
    responses: { 200: { description: "A flag set", schema: Type.Unknown() } },
    read: (view, call, _input, { sets }) => {
      const namespace = call.params["namespace"] as string;
      const set = sets.of(view, namespace);
      const labels = labelsOf(call.query);
      let chosen = set.mark;
      const flags: string[] = [];
      for (const member of set.members) {
        const content = member.choose(view, labels)?.content;
        if (content?.isFlag !== true) continue;
        flags.push(`${JSON.stringify(member.config.name)}:${content.text}`);
        if (member.hasRules) chosen += `/${content.row.version}`;
      }
      const etag = `"${createHash("sha256").update(chosen).digest("base64url")}"`;
      const answer = json(null, { etag });
      const metadata = JSON.stringify({ flagSetId: namespace });
      const schema = "https://flagd.dev/schema/v0/flags.json";
      return {
        ...answer,
        body: `{"$schema":"${schema}","flags":{${flags.join(",")}},"metadata":${metadata}}`,
      };
    },
  }),
];

function contextOf(given: unknown): FlagContext {
  return (given as { context?: FlagContext } | undefined)?.context ?? {};
}

/** Texts in the context are labels, as far as rules look at them. */
function labelsIn(set: NamespaceSet, context: FlagContext): Labels {
  const labels: Record<string, string> = {};
  for (const name of set.labelNames) {
    const value = Object.hasOwn(context, name) ? context[name] : undefined;
    if (typeof value === "string") labels[name] = value;
  }
  return labels;
}

/** Of a set, in order: what is the same for everybody is encoded once, neighbours together. */
type Part =
  | { readonly kind: "fixed"; readonly keys: readonly string[]; readonly text: string }
  | { readonly kind: "flag"; readonly flag: Flag }
  | { readonly kind: "ruled"; readonly member: Member };

const plans = new WeakMap<NamespaceSet, readonly Part[]>();
/** Neighbours are joined up to this many characters. */
const fixedTextMax = 64 * 1024;

function planOf(view: TenantView, set: NamespaceSet): readonly Part[] {
  let plan = plans.get(set);
  if (plan === undefined) {
    plan = newPlan(view, set);
    plans.set(set, plan);
  }
  return plan;
}

function newPlan(view: TenantView, set: NamespaceSet): readonly Part[] {
  const parts: Part[] = [];
  for (const member of set.members) {
    if (member.hasRules) {
      parts.push({ kind: "ruled", member });
      continue;
    }
    const content = member.choose(view, {})?.content;
    if (content === undefined) continue;
    const resolution = content.isFlag ? content.flag.fixed : content.resolve(nobody, member, null);
    if (resolution === null) {
      parts.push({ kind: "flag", flag: content.flag });
      continue;
    }
    const text = encoded(resolution);
    const last = parts.at(-1);
    if (last?.kind === "fixed" && last.text.length + text.length < fixedTextMax)
      parts[parts.length - 1] = {
        kind: "fixed",
        keys: [...last.keys, resolution.key],
        text: `${last.text},${text}`,
      };
    else parts.push({ kind: "fixed", keys: [resolution.key], text });
  }
  return parts;
}

const nobody = new FlagCall({}, 0);

function evaluateAll(
  view: TenantView,
  call: Call,
  set: NamespaceSet,
  context: FlagContext,
  nowMs: number,
): Answer {
  const plan = planOf(view, set);
  const labels = labelsIn(set, context);
  const evaluate = (): string => {
    const one = new FlagCall(context, nowMs);
    const texts: string[] = [];
    let length = 0;
    for (const part of plan) {
      if (part.kind === "fixed") {
        length += part.text.length;
        if (length <= snapshotBytesMax) texts.push(part.text);
        else for (const key of part.keys) texts.push(tooMuch(key));
        continue;
      }
      const resolution =
        part.kind === "flag" ? part.flag.evaluate(one) : resolved(view, part.member, labels, one);
      if (resolution === null) continue;
      const text = encoded(resolution);
      length += text.length;
      texts.push(length <= snapshotBytesMax ? text : tooMuch(resolution.key));
    }
    return texts.join(",");
  };
  const address = addressOf(view, call, nowMs);
  const digest = createHash("sha256");
  digest.update(`${view.epoch} ${set.mark} ${address ?? ""}\n${canonical(context)}`);
  // No revision stands for the passing of time: where flags look at it, only what they give tells.
  const early = timeMatters(view, plan, labels) ? evaluate() : null;
  if (early !== null) digest.update(early);
  const etag = `"${digest.digest("base64url").slice(0, 32)}"`;
  const given = call.request.headers.get("if-none-match");
  if (given !== null && noneMatch(given, etag))
    return { status: 304, headers: { etag, "cache-control": "no-cache" }, body: null };
  const metadata = `"metadata":${JSON.stringify({ flagSetId: call.params["namespace"] })}`;
  const stream = { type: "sse", endpoint: { requestUri: address }, inactivityDelaySec };
  const streams = address === null ? "" : `,"eventStreams":[${JSON.stringify(stream)}]`;
  return {
    ...json(null, { etag }),
    body: `{"flags":[${early ?? evaluate()}],${metadata}${streams}}`,
  };
}

function resolved(
  view: TenantView,
  member: Member,
  labels: Labels,
  call: FlagCall,
): Resolution | null {
  const chosen = member.choose(view, labels);
  return chosen === null ? null : chosen.content.resolve(call, member, chosen.rule);
}

/** Of plans without rules it is known once and for all. */
const timeless = new WeakSet<readonly Part[]>();

function timeMatters(view: TenantView, plan: readonly Part[], labels: Labels): boolean {
  if (timeless.has(plan)) return false;
  if (plan.some((part) => usesTime(view, part, labels))) return true;
  if (plan.every((part) => part.kind !== "ruled")) timeless.add(plan);
  return false;
}

function usesTime(view: TenantView, part: Part, labels: Labels): boolean {
  if (part.kind === "flag") return part.flag.usesTime;
  if (part.kind === "fixed") return false;
  const content = part.member.choose(view, labels)?.content;
  return content?.isFlag === true && content.flag.usesTime;
}

/** One evaluation in OFREP's form. */
function encoded(resolution: Resolution): string {
  resolution.text ??= JSON.stringify({ ...resolution, ...errorParts(resolution), text: undefined });
  return resolution.text;
}

/** A failure has no reason. */
function errorParts({ errorCode }: Resolution): { readonly reason?: undefined } {
  return errorCode === undefined ? {} : { reason: undefined };
}

function tooMuch(key: string): string {
  const errorDetails =
    "All flags together are too much for one answer: evaluate this one by itself";
  return JSON.stringify({ key, errorCode: "GENERAL", errorDetails });
}

/**
 * Where this client is told of changes. Browsers send no headers there, so the address itself says who may; it stays the
 * same for hours, because clients connect anew when it changes. Null for root keys: those are not for pages.
 */
function addressOf(view: TenantView, call: Call, nowMs: number): string | null {
  const { token, principal } = call;
  const credential = token === null ? null : credentialOf(token);
  if (principal === null || credential?.kind !== "tenant") return null;
  const { tenant, namespace } = call.params as { tenant: string; namespace: string };
  const { epoch } = view;
  const window = streamWindow(nowMs);
  const key = `${token} ${namespace} ${epoch} ${window}`;
  const known = addresses.get(key);
  if (known !== undefined) return known;
  const given = streamToken(
    { tenant, namespace, keyId: principal.keyId, epoch, window },
    credential.hash,
  );
  const address = `/v1/tenants/${tenant}/namespaces/${namespace}/ofrep/v1/events?token=${given}`;
  if (addresses.size >= addressesMax) addresses.clear();
  addresses.set(key, address);
  return address;
}

/** Made lately: many clients come with one key. */
const addresses = new Map<string, string>();
const addressesMax = 10_000;

const errorCodes: Partial<Record<ProblemCode, string>> = {
  "not-found": "FLAG_NOT_FOUND",
  "malformed-json": "PARSE_ERROR",
  "unsupported-media-type": "PARSE_ERROR",
  invalid: "INVALID_CONTEXT",
};

/** The last part of its path, as it came. */
function partOf(target: string): string {
  const path = target.split("?", 1)[0] as string;
  return path.slice(path.lastIndexOf("/") + 1);
}

/** A problem as clients of OFREP understand it: they look for the flag's key and for one of OFREP's codes. */
export function ofrepFailure(problem: Problem, call: Call, answer: Answer): Answer {
  // Not even decoded, it is told as it came: clients read no failure of a flag without a key.
  const given = (call.params as Readonly<Record<string, string | null>>)["flag"];
  const key = given === null ? partOf(call.target) : given;
  const status = problem.code === "unsupported-media-type" ? 400 : answer.status;
  const failure = {
    ...(key !== undefined && { key }),
    errorCode: errorCodes[problem.code] ?? "GENERAL",
    errorDetails: problem.message,
  };
  return {
    status,
    headers: { ...answer.headers, "content-type": "application/json; charset=utf-8" },
    body: JSON.stringify(failure),
  };
}
