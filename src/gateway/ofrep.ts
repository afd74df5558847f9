/**
 * OpenFeature's remote evaluation protocol (OFREP 0.3) and flagd's flag set, over the configs of a namespace.
 *
 * Two layers decide: the release rules choose the version of each config, with what can be labels of the evaluation
 * context; a config of format `flag` then evaluates its own targeting with the whole context. Every other released config
 * is a flag too, whose value is its content.
 *
 * What clients rely on: errors in OFREP's own form; an ETag that covers the flags, the whole context and the address of
 * the event stream, because clients send it back after a change of context too, and keep that address for weeks.
 */
import { hash } from "node:crypto";
import { Type } from "@sinclair/typebox";
import { Problem, type ProblemCode } from "../api/problems.ts";
import { OfrepBulk, OfrepEvaluation, OfrepFailure } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import {
  Rollouts,
  withFlagCall,
  type Encoded,
  type Flag,
  type FlagCall,
  type FlagContext,
  type Resolution,
} from "../model/flags.ts";
import { contextLabels } from "../model/evaluate.ts";
import { murmur3Text } from "../model/murmur3.ts";
import type { Labels } from "../model/release.ts";
import { loneSurrogateAt } from "../model/utf8.ts";
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
    read: (view, call, input, { sets, service }) => {
      const context = contextOf(input.body);
      const namespace = call.params["namespace"] as string;
      const set = sets.of(view, namespace);
      return evaluateAll(view, call, set, context, service.nowMs());
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
    read: (view, call, input, { sets, service }) => {
      const context = contextOf(input.body);
      const key = call.params["flag"] as string;
      const set = sets.of(view, call.params["namespace"] as string);
      const member = set.find(key);
      const chosen = member?.choose(view, contextLabels(context, set.labelNames)) ?? null;
      if (member === null || chosen === null)
        throw new Problem(
          "not-found",
          "There is no such flag, or nothing is released for this context",
        );
      const { content, rule } = chosen;
      const resolution = withFlagCall(context, service.nowMs(), (one) =>
        content.resolve(one, member, rule),
      );
      return {
        ...json(null, { status: resolution.errorCode === undefined ? 200 : 400 }),
        // Without the comma.
        body: encoded(resolution).text.slice(1),
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
      // Of a restored tenant revisions come a second time, for something else.
      let chosen = `${view.epoch} ${set.mark}`;
      const flags: string[] = [];
      for (const member of set.members) {
        const content = member.choose(view, labels)?.content;
        if (content?.isFlag !== true) continue;
        flags.push(`${JSON.stringify(member.config.name)}:${content.text}`);
        if (member.hasRules) chosen += `/${content.row.version}`;
      }
      const etag = `"${hash("sha256", chosen, "base64url")}"`;
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

/** Of a set: what is the same for everybody is encoded once and together; so is what is decided alike. */
type Part =
  | { readonly kind: "fixed"; readonly keys: readonly string[]; readonly encoded: Encoded }
  | { readonly kind: "flag"; readonly flag: Flag }
  | Alike
  | RolloutsPart
  | { readonly kind: "ruled"; readonly member: Member };

/** Flags with one targeting: what the first gives tells what the others give. */
interface Alike {
  readonly kind: "alike";
  readonly first: Flag;
  readonly flags: readonly Flag[];
  /** All of them, by what the first gives: one of its variants, or its default. */
  readonly encoded: Map<Resolution, Encoded>;
}

/** Rollouts by the targeting key. Most contexts get another mix of their variants, but of a few there are few mixes. */
interface RolloutsPart {
  readonly kind: "rollouts";
  readonly rollouts: Rollouts;
  /** Of all flags, for the context that is evaluated. */
  readonly shares: Uint8Array;
  /** Those that are joined: neighbours. */
  readonly few: readonly FewRollouts[];
}

interface FewRollouts {
  readonly from: number;
  readonly flags: readonly Flag[];
  /** By their shares, as digits of a number: its base is how many shares the flag of that digit has. */
  readonly bases: readonly number[];
  readonly encoded: (Encoded | undefined)[];
}

/** Of all that `FewRollouts.encoded` may hold. */
const mixesMax = 16;
const sharesMax = 8;
/** Longer ones are better off alone: there is a copy of each in every mix. */
const mixedBytesMax = 512;

const plans = new WeakMap<NamespaceSet, readonly Part[]>();
/** Evaluations are joined up to this many bytes. */
const joinedBytesMax = 64 * 1024;

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
  const alike = new Map<string, Flag[]>();
  const rollouts: Flag[] = [];
  let fixed: { keys: string[]; encoded: { text: string; bytes: number } } | null = null;
  for (const member of set.members) {
    if (member.hasRules) {
      parts.push({ kind: "ruled", member });
      continue;
    }
    const content = member.choose(view, {})?.content;
    if (content === undefined) continue;
    const resolution = content.isFlag
      ? content.flag.fixed
      : withFlagCall({}, 0, (nobody) => content.resolve(nobody, member, null));
    if (resolution === null) {
      const { flag } = content;
      const others = flag.decidesAs === null ? undefined : alike.get(flag.decidesAs);
      if (isMixed(flag)) rollouts.push(flag);
      else if (others !== undefined) others.push(flag);
      else if (flag.decidesAs !== null) alike.set(flag.decidesAs, [flag]);
      else parts.push({ kind: "flag", flag });
      continue;
    }
    const { text, bytes } = encoded(resolution);
    if (fixed === null || fixed.encoded.bytes + bytes > joinedBytesMax) {
      fixed = { keys: [], encoded: { text: "", bytes: 0 } };
      parts.push({ kind: "fixed", ...fixed });
    }
    fixed.keys.push(resolution.key);
    fixed.encoded.text += text;
    fixed.encoded.bytes += bytes;
  }
  for (const flags of alike.values()) {
    const [first, second] = flags as [Flag, Flag?];
    if (second === undefined) parts.push({ kind: "flag", flag: first });
    else parts.push({ kind: "alike", first, flags, encoded: new Map() });
  }
  if (rollouts.length > 0) parts.push(rolloutsPart(rollouts));
  return parts;
}

function isMixed({ rollout }: Flag): boolean {
  return (
    rollout !== null &&
    rollout.resolutions.length <= sharesMax &&
    rollout.resolutions.every((resolution) => encoded(resolution).bytes <= mixedBytesMax)
  );
}

function rolloutsPart(flags: readonly Flag[]): RolloutsPart {
  const few: { from: number; flags: Flag[]; bases: number[]; encoded: (Encoded | undefined)[] }[] =
    [];
  let mixes = Number.POSITIVE_INFINITY;
  flags.forEach((flag, from) => {
    const base = flag.rollout?.resolutions.length ?? 0;
    if (mixes * base > mixesMax) {
      few.push({ from, flags: [], bases: [], encoded: [] });
      mixes = 1;
    }
    mixes *= base;
    const last = few.at(-1);
    last?.flags.push(flag);
    last?.bases.push(base);
  });
  const rollouts = new Rollouts(
    flags.flatMap(({ rollout }) => (rollout === null ? [] : [rollout])),
  );
  return { kind: "rollouts", rollouts, shares: new Uint8Array(flags.length), few };
}

function encodedMix(
  { from, flags, bases, encoded: known }: FewRollouts,
  shares: Uint8Array,
): Encoded {
  let mix = 0;
  for (let i = 0; i < bases.length; i++)
    mix = mix * (bases[i] as number) + (shares[from + i] as number);
  const found = known[mix];
  if (found !== undefined) return found;
  const all = flags.map(({ rollout }, i) =>
    encoded(rollout?.resolutions[shares[from + i] as number] as Resolution),
  );
  const text = all.map((one) => one.text).join("");
  return (known[mix] = { text, bytes: all.reduce((sum, one) => sum + one.bytes, 0) });
}

/** Null: too much to be kept together, or the first gives no value. */
function encodedAlike(part: Alike, call: FlagCall): Encoded | null {
  const resolution = part.first.evaluate(call);
  // Those are made anew each time.
  if (resolution.errorCode !== undefined) return null;
  const known = part.encoded.get(resolution);
  if (known !== undefined) return known;
  const all = part.flags.map((flag) => encoded(flag.evaluate(call)));
  const bytes = all.reduce((sum, one) => sum + one.bytes, 0);
  if (bytes > joinedBytesMax) return null;
  const together = { text: all.map((one) => one.text).join(""), bytes };
  part.encoded.set(resolution, together);
  return together;
}

function evaluateAll(
  view: TenantView,
  call: Call,
  set: NamespaceSet,
  context: FlagContext,
  nowMs: number,
): Answer {
  const { tenant, namespace } = call.params as { tenant: string; namespace: string };
  const plan = planOf(view, set);
  const labels = contextLabels(context, set.labelNames);
  const { address, closing } = endOf(view, call, nowMs);
  const evaluate = (): string =>
    withFlagCall(context, nowMs, (one) => evaluations(view, plan, labels, one)) + closing;
  let covered = `${view.epoch} ${set.mark} ${address ?? ""}\n${identified(context)}`;
  // No revision stands for the passing of time: where flags look at it, only what they give tells.
  const early = timeMatters(view, plan, labels) ? evaluate() : null;
  if (early !== null) covered += `\n${hash("sha256", early, "base64url")}`;
  const etag = `"${hash("sha256", covered, "base64url").slice(0, 32)}"`;
  const given = call.request.headers.get("if-none-match");
  if (given !== null && noneMatch(given, etag))
    return { status: 304, headers: { etag, "cache-control": "no-cache" }, body: null };
  const answer = json(null, { etag });
  if (early !== null) return { ...answer, body: early };
  // Marks are of a tenant's own: two may have the same.
  const name = `${tenant}/${namespace} ${etag}`;
  const body = bodies.get(name) ?? evaluate();
  bodies.put(name, body);
  return { ...answer, body };
}

/** The same for equal contexts and for no others, whatever the order of their fields. */
function identified(context: FlagContext): string {
  let text = "";
  for (const name of Object.keys(context).sort()) {
    const value = context[name];
    const isText = typeof value === "string";
    const shown = isText ? value : canonical(value);
    text += `${name.length}:${name}${isText ? "=" : "~"}${shown.length}:${shown}`;
  }
  // Halves of pairs would all be the same to a hash over UTF-8; escaped they are not.
  return loneSurrogateAt(text) < 0 ? text : JSON.stringify(text);
}

/**
 * All but the end of an answer. Texts are joined, not bytes: engines only note what follows what, and copy it all at once
 * in the end, in a fifth of the time that as many copies of a few bytes each take.
 */
function evaluations(
  view: TenantView,
  plan: readonly Part[],
  labels: Labels,
  call: FlagCall,
): string {
  let text = "";
  let length = 0;
  for (const part of plan) {
    if (part.kind === "fixed") {
      length += part.encoded.bytes;
      if (length <= snapshotBytesMax) text = joined(text, part.encoded.text);
      else for (const key of part.keys) text = joined(text, tooMuch(key));
      continue;
    }
    if (part.kind === "alike") {
      const all = encodedAlike(part, call);
      if (all !== null && length + all.bytes <= snapshotBytesMax) {
        length += all.bytes;
        text = joined(text, all.text);
      } else for (const flag of part.flags) append(flag.evaluate(call));
      continue;
    }
    if (part.kind === "rollouts") {
      const hasTarget = part.rollouts.decide(call, part.shares);
      for (const few of part.few) {
        const all = hasTarget ? encodedMix(few, part.shares) : null;
        if (all !== null && length + all.bytes <= snapshotBytesMax) {
          length += all.bytes;
          text = joined(text, all.text);
        } else for (const flag of few.flags) append(flag.evaluate(call));
      }
      continue;
    }
    const resolution =
      part.kind === "flag" ? part.flag.evaluate(call) : resolved(view, part.member, labels, call);
    if (resolution !== null) append(resolution);
  }
  return opening + text;

  function append(resolution: Resolution): void {
    const given = resolution.encoded ?? encoded(resolution);
    length += given.bytes;
    text = joined(text, length <= snapshotBytesMax ? given.text : tooMuch(resolution.key));
  }
}

const opening = `{"flags":[`;

/** Each piece has a comma before it. */
function joined(text: string, piece: string): string {
  return text.length === 0 ? piece.slice(1) : text + piece;
}

/**
 * Whole answers given lately, by tenant, namespace and ETag, which covers all that they depend on: the flags, the
 * context, and the key, whose address of the stream is in them. What time may change never comes here. Kept from the
 * second time on that one is asked for: most contexts come once.
 */
export class Bodies {
  /** In order of use. */
  readonly #kept = new Map<string, string>();
  /** Hashes of names that were asked for once, each in its place by its own lower bits. The older of two gives way. */
  readonly #asked = new Uint32Array(askedMax);
  #bytes = 0;

  get(name: string): string | null {
    const body = this.#kept.get(name);
    if (body === undefined) return null;
    this.#kept.delete(name);
    this.#kept.set(name, body);
    return body;
  }

  put(name: string, body: string): void {
    if (this.#kept.has(name)) return;
    const asked = murmur3Text(name);
    const place = asked % askedMax;
    if (this.#asked[place] !== asked) {
      this.#asked[place] = asked;
      return;
    }
    this.#asked[place] = 0;
    this.#kept.set(name, body);
    this.#bytes += sizeOf(body);
    for (const [oldest, given] of this.#kept) {
      if (this.#bytes <= bodiesBytesMax) break;
      this.#kept.delete(oldest);
      this.#bytes -= sizeOf(given);
    }
  }
}

/** At most two bytes a unit. */
function sizeOf(body: string): number {
  return 2 * body.length + bodyBytesAssumed;
}

const bodiesBytesMax = 16 * 1024 * 1024;
/** What a body costs beside its bytes. */
const bodyBytesAssumed = 500;
const askedMax = 16_384;
const bodies = new Bodies();

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
  if (part.kind !== "ruled") return false;
  const content = part.member.choose(view, labels)?.content;
  return content?.isFlag === true && content.flag.usesTime;
}

/** One evaluation in OFREP's form, after a comma. */
function encoded(resolution: Resolution): Encoded {
  if (resolution.encoded === null) {
    const text = listed({ ...resolution, ...errorParts(resolution), encoded: undefined });
    resolution.encoded = { text, bytes: Buffer.byteLength(text) };
  }
  return resolution.encoded;
}

function listed(evaluation: object): string {
  return `,${JSON.stringify(evaluation)}`;
}

/** A failure has no reason. */
function errorParts({ errorCode }: Resolution): { readonly reason?: undefined } {
  return errorCode === undefined ? {} : { reason: undefined };
}

function tooMuch(key: string): string {
  const errorDetails =
    "All flags together are too much for one answer: evaluate this one by itself";
  return listed({ key, errorCode: "GENERAL", errorDetails });
}

/** What follows the flags, which tells where this client is told of changes. */
interface End {
  readonly address: string | null;
  readonly closing: string;
}

/** Many clients come with one key. */
function endOf(view: TenantView, call: Call, nowMs: number): End {
  const { token, principal } = call;
  const credential = token === null ? null : credentialOf(token);
  const { tenant, namespace } = call.params as { tenant: string; namespace: string };
  // Not for root keys: those are not for pages.
  if (principal === null || credential?.kind !== "tenant") return newEnd(namespace, null);
  const { epoch } = view;
  const window = streamWindow(nowMs);
  const key = `${token} ${namespace} ${epoch} ${window}`;
  let end = ends.get(key);
  if (end !== undefined) return end;
  const { keyId } = principal;
  const given = streamToken({ tenant, namespace, keyId, epoch, window }, credential.hash);
  end = newEnd(
    namespace,
    `/v1/tenants/${tenant}/namespaces/${namespace}/ofrep/v1/events?token=${given}`,
  );
  if (ends.size >= endsMax) ends.clear();
  ends.set(key, end);
  return end;
}

/**
 * @param address where the client is told. Browsers send no headers there, so it says itself who may; it stays the same
 *   for hours, because clients connect anew when it changes
 */
function newEnd(namespace: string, address: string | null): End {
  const metadata = JSON.stringify({ flagSetId: namespace });
  const stream = { type: "sse", endpoint: { requestUri: address }, inactivityDelaySec };
  const streams = address === null ? "" : `,"eventStreams":[${JSON.stringify(stream)}]`;
  return { address, closing: `],"metadata":${metadata}${streams}}` };
}

/** Made lately. */
const ends = new Map<string, End>();
const endsMax = 10_000;

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
