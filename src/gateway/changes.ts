/**
 * How a change reaches the replicated state: who asks, under which Idempotency-Key, really or as a dry run; and how the
 * machine's refusal becomes a problem.
 */
import { createHash } from "node:crypto";
import { Problem } from "../api/problems.ts";
import { dryRun, spreadMsMax } from "../machine/machine.ts";
import {
  tagsLevel,
  watchesLevel,
  type Action,
  type Command,
  type Outcome,
  type Precondition,
} from "../machine/command.ts";
import type { ResultOf } from "../machine/results.ts";
import { checkIdempotencyKey } from "../model/names.ts";
import {
  canonical,
  durationMs,
  ifMatch,
  ifNoneMatchAny,
  invalid,
  json,
  revisionTag,
  type Answer,
  type Call,
} from "./http.ts";
import type { Context } from "./route.ts";
import type { Secrets } from "./secrets.ts";

const sealedTriesMax = 16;
const dryRunHeader = "conflux-dry-run";

export type ActionOf<Op extends Action["op"]> = Extract<Action, { op: Op }>;

export interface Changed<Op extends Action["op"]> {
  readonly result: ResultOf<Op>;
  /** Something new was made. */
  readonly created: boolean;
  /** For the answer: Idempotent-Replay, Conflux-Dry-Run. */
  readonly headers: Record<string, string>;
  readonly revision: number;
  /** The ETag of what is at this revision now; null: nothing is, after a dry run. */
  tag(revision: number): string | null;
}

/**
 * Builds the action from what is known of the state. Called again with `linearizable` when the machine found that the
 * state had moved on meanwhile.
 */
export type Build<Op extends Action["op"]> = (
  consistency: "stale" | "linearizable",
) => ActionOf<Op> | Promise<ActionOf<Op>>;

/** Proposes to the tenant in the path. @throws Problem */
export async function change<Op extends Action["op"]>(
  call: Call,
  context: Context,
  action: ActionOf<Op> | Build<Op>,
  /** The action itself has effect once, however often it is proposed: its key is not kept. */
  { isOnce = false }: { readonly isOnce?: boolean } = {},
): Promise<Changed<Op>> {
  const tenant = call.params["tenant"] as string;
  // What a dry run foretells is at a revision that another change will have.
  let present: number | null = null;
  let isSealed = false;
  const send = (built: ActionOf<Op>): Promise<Outcome> => {
    call.proposed ||= !call.dryRun;
    const { idempotency, ...rest } = commandOf(call, built, context);
    const command = isOnce || idempotency === undefined ? rest : { ...rest, idempotency };
    isSealed = hasSecret(built);
    return call.dryRun
      ? context.service.read(
          tenant,
          { consistency: "linearizable", evenRestoring: true },
          (view) => {
            present = view.revision;
            return dryRun(view, command);
          },
        )
      : context.service.propose(tenant, command);
  };
  const attempt = (consistency: "stale" | "linearizable"): Promise<Outcome> => {
    const built = typeof action === "function" ? action(consistency) : action;
    return built instanceof Promise ? built.then(send) : send(built);
  };
  let outcome = await attempt("stale");
  // What is sealed names the version it becomes: of many that publish at once each but one has to seal anew.
  for (let tries = 1; tries <= (isSealed ? sealedTriesMax : 1); tries++) {
    if (outcome.ok || outcome.code !== "conflict" || typeof action !== "function") break;
    outcome = await attempt("linearizable");
  }
  call.revision = present ?? outcome.revision;
  return changed<Op>(call, context, outcome);
}

/** Proposes to the directory. @throws Problem */
export async function changeDirectory<Op extends Action["op"]>(
  call: Call,
  context: Context,
  action: ActionOf<Op>,
): Promise<Changed<Op>> {
  call.proposed ||= !call.dryRun;
  const command = commandOf(call, action, context);
  call.proposed ||= !call.dryRun;
  const outcome = await context.peers.systemPropose(
    command.actor.kind === "root" ? command : ofTenant(command, call),
    call.dryRun,
  );
  if (outcome.ok && !call.dryRun && isSeenAtOnce(action)) {
    await context.service.directoryReached(outcome.revision);
  }
  return changed<Op>(call, context, outcome);
}

/** Once it is answered no node may act upon what was before. A new tenant is asked for where it is not known yet. */
function isSeenAtOnce(action: Action): boolean {
  return (
    action.op === "directory.delete" ||
    action.op === "directory.undelete" ||
    (action.op === "directory.create" && action.replace === true)
  );
}

/** The directory knows root keys only. An admin of a tenant was checked here, against the tenant's own state. */
function ofTenant(command: Command, call: Call): Command {
  const { actor, idempotency, ...rest } = command;
  const { keyId, requestId = call.requestId, address } = actor;
  const tenant = call.params["tenant"] as string;
  return {
    ...rest,
    actor: {
      kind: "system",
      keyId: `${tenant}.${keyId}`,
      requestId,
      ...(address !== undefined && { address }),
    },
    // Tenants share the directory: what one of them calls a request must mean nothing to another, nor to the operator.
    ...(idempotency !== undefined && {
      idempotency: { ...idempotency, key: `${tenant}.${sha256(idempotency.key)}` },
    }),
  };
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

function changed<Op extends Action["op"]>(
  call: Call,
  { service }: Context,
  outcome: Outcome,
): Changed<Op> {
  if (!outcome.ok) throw refused(outcome);
  const headers: Record<string, string> = {};
  if (outcome.replayed === true) headers["idempotent-replay"] = "true";
  if (call.dryRun) headers[dryRunHeader] = "true";
  return {
    result: outcome.result as ResultOf<Op>,
    created: outcome.created,
    headers,
    revision: outcome.revision,
    tag: (revision) =>
      call.dryRun ? null : revisionTag(service.semantics, outcome.epoch, revision),
  };
}

function refused(outcome: Outcome & { readonly ok: false }): Problem {
  const { place } = outcome;
  return new Problem(
    outcome.code,
    outcome.detail,
    place === undefined
      ? {}
      : { errors: [{ pointer: `/${place.list}/${place.index}`, detail: outcome.detail }] },
  );
}

function commandOf(call: Call, action: Action, { secrets, service }: Context): Command {
  const { principal, requestId, info } = call;
  if (principal === null) throw new Error("A change needs a principal");
  const address = info.remoteAddress;
  const spread = call.query.get("spread");
  const spreadMs = spread === null ? 0 : durationMs("spread", spread, spreadMsMax);
  if (service.semantics < watchesLevel && (spreadMs > 0 || limitsBandwidth(action)))
    throw new Problem(
      "conflict",
      `Run \`conflux cluster upgrade\` first: this needs level ${watchesLevel}, and the cluster is at ${service.semantics}`,
    );
  const idempotency = call.dryRun ? null : idempotencyOf(call, hasSecret(action) ? secrets : null);
  return {
    at: service.nowMs(),
    actor: {
      kind: principal.kind,
      keyId: principal.keyId,
      requestId,
      ...(principal.issuer !== undefined && {
        issuer: principal.issuer,
        ...(principal.namespaces !== null && { namespaces: principal.namespaces }),
      }),
      ...(address !== undefined && { address }),
    },
    ...(idempotency !== null && { idempotency }),
    semantics: service.semantics,
    ...(spreadMs > 0 && { spreadMs }),
    action,
  };
}

function limitsBandwidth(action: Action): boolean {
  const tenants = action.op === "directory.createMany" ? action.tenants : [action];
  return tenants.some(
    (one) =>
      ("quotas" in one && one.quotas?.watchBytesPerSecond !== undefined) ||
      ("quotaChanges" in one && one.quotaChanges?.watchBytesPerSecond !== undefined),
  );
}

/** The `Idempotency-Key` of the request; null when there is none. @throws Problem */
export function idempotencyKeyOf(call: Call): string | null {
  const key = call.request.headers.get("idempotency-key");
  if (key === null) return null;
  const error = checkIdempotencyKey(key);
  if (error !== null) throw invalid(error);
  return key;
}

function hasSecret(action: Action): boolean {
  if (action.op === "transaction") return action.then.some(hasSecret);
  return "content" in action && action.content?.secret !== undefined;
}

/** @param secrets for bodies that hold secrets: a plain hash of them would let a short one be guessed */
function idempotencyOf(
  call: Call,
  secrets: Secrets | null,
): NonNullable<Command["idempotency"]> | null {
  const key = idempotencyKeyOf(call);
  if (key === null) return null;
  const text = `${call.request.method}\n${call.target}\n${canonical(call.body)}`;
  const fingerprint = secrets?.mac(text) ?? sha256(text);
  return { key, fingerprint };
}

/** `If-Match` and `If-None-Match: *` of the request. */
export function precondition(call: Call, { service }: Context): Precondition {
  const match = ifMatch(call.request);
  const none = ifNoneMatchAny(call.request);
  // Below the level there are none with an epoch, and who does not know them would judge otherwise.
  const isKnown = service.semantics >= tagsLevel;
  return {
    ...(match !== undefined && {
      ifMatch: match === "*" || isKnown ? match : match.filter((tag) => typeof tag === "number"),
    }),
    ...(none !== undefined && { ifNoneMatch: none }),
  };
}

/**
 * 201 when something new was made, else 200. A dry run made nothing that a tag or an address could name.
 *
 * @param options.revision of what the answer shows
 */
export function changedAnswer(
  of: Changed<Action["op"]>,
  body: unknown,
  options: { readonly revision?: number; readonly location?: string } = {},
): Answer {
  const headers = { ...of.headers };
  const isReal = headers[dryRunHeader] === undefined;
  const etag = options.revision === undefined ? null : of.tag(options.revision);
  if (of.created && isReal && options.location !== undefined)
    headers["location"] = options.location;
  return json(body, {
    status: of.created ? 201 : 200,
    headers,
    ...(etag !== null && { etag }),
  });
}
