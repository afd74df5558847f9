/**
 * A route as data: what it is called with, for whom it is, what it answers. Authentication, OpenAPI and the matrix of
 * access tests are all made from the one table of these.
 */
import { Type, type Static, type TObject, type TProperties, type TSchema } from "@sinclair/typebox";
import type { ConfigService, TenantView } from "../host/ports.ts";
import type { Answer, Call } from "./http.ts";
import type { NamespaceSets } from "./namespace_sets.ts";
import type { Backups } from "./backup.ts";
import type { Peers } from "./peers.ts";
import { accessOf, type Access, type RouteId } from "./access.ts";
import type { Feedback } from "./feedback.ts";
import type { Secrets } from "./secrets.ts";
import type { Watches } from "./watches.ts";

export type Method = "GET" | "PUT" | "POST" | "PATCH" | "DELETE";

export interface ResponseSpec {
  readonly description: string;
  readonly schema?: TSchema;
  /** Default: application/json. */
  readonly media?: string;
}

/** What the gateway offers to its routes. */
export interface Context {
  readonly service: ConfigService;
  readonly peers: Peers;
  readonly watches: Watches;
  readonly secrets: Secrets;
  readonly sets: NamespaceSets;
  readonly feedback: Feedback;
  readonly backups: Backups;
  readonly version: string;
  readonly routes: readonly Route[];
  /** In Prometheus' text format. */
  readonly metrics: () => Promise<string>;
}

interface RouteFacts {
  readonly method: Method;
  /** With `:name` for parameters. */
  readonly path: string;
  /** The operationId, and the row of the table of access. */
  readonly id: RouteId;
  readonly tag: string;
  readonly summary: string;
  readonly access: Access;
  readonly responses: Readonly<Record<number, ResponseSpec>>;
  /** Whether `label.<name>` may stand in the query. */
  readonly labels: boolean;
  readonly body: TSchema | null;
  readonly bodyRequired: boolean;
  readonly bodyBytesMax: number;
  readonly query: TObject | null;
  /** Changes something: takes Idempotency-Key and dryRun. */
  readonly change: boolean;
  /** Takes If-Match and If-None-Match: *. */
  readonly guarded: boolean;
  /** The form of its failures: RFC 9457, or that of OpenFeature's clients. */
  readonly errors: "problem" | "ofrep";
  /** Without a quorum it answers from what is known here, as watches do: flags that are old beat none. */
  readonly available: boolean;
  /** A root key needs no replica of the tenant here: the directory answers. */
  readonly byDirectory: boolean;
  /** Also for the directory's own tenant, `_system`. */
  readonly system: boolean;
}

export interface Route extends RouteFacts {
  /** Answers from one view of the tenant, in the same read in which the key was checked. With a body, by POST. */
  readonly read?: (view: TenantView, call: Call, input: Input, context: Context) => Answer;
  readonly handle?: (call: Call, input: Input, context: Context) => Answer | Promise<Answer>;
}

export interface Input {
  // oxlint-disable-next-line typescript/no-explicit-any -- each route's own types were checked where it was defined
  readonly query: any;
  // oxlint-disable-next-line typescript/no-explicit-any -- as above
  readonly body: any;
}

/** Bodies without content stay small. */
export const smallBodyBytesMax = 64 * 1024;
/** Content of 1 MiB may take several times that as JSON text with escapes. */
export const contentBodyBytesMax = 4 * 1024 * 1024;
/** A transaction may carry many contents; also bounded by what one log entry may hold. */
export const transactionBodyBytesMax = 8 * 1024 * 1024;

export const readQuery = {
  consistency: Type.Optional(
    Type.Union([Type.Literal("linearizable"), Type.Literal("stale")], {
      description: "Default linearizable: sees every change that was answered before",
    }),
  ),
};
export const dryRunQuery = {
  dryRun: Type.Optional(
    Type.Boolean({ description: "Answer what the change would do, and change nothing" }),
  ),
};
/** Of changes that reach clients. */
export const spreadQuery = {
  spread: Type.Optional(
    Type.String({
      description:
        "Tell watchers within this time, each at a moment of its own, e.g. 30s or 500ms, up to 3600s; default: all at once. What is published without it goes out at once, and takes along what was held back before it. Reads see the change at once",
    }),
  ),
};
export const listQuery = {
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000, description: "Default 100" })),
  cursor: Type.Optional(
    Type.String({ maxLength: 1_024, description: "`next` of the page before" }),
  ),
};
export const listLimitDefault = 100;

interface Spec<Q extends TProperties, B extends TSchema> {
  readonly method: Method;
  readonly path: string;
  readonly id: RouteId;
  readonly tag: string;
  readonly summary: string;
  readonly labels?: boolean;
  readonly query?: Q;
  readonly body?: B;
  readonly bodyRequired?: boolean;
  readonly bodyBytesMax?: number;
  readonly guarded?: boolean;
  readonly errors?: Route["errors"];
  readonly available?: boolean;
  readonly byDirectory?: boolean;
  readonly system?: boolean;
  readonly responses: Readonly<Record<number, ResponseSpec>>;
  readonly read?: (
    view: TenantView,
    call: Call,
    input: { query: Static<TObject<Q>>; body: Static<B> },
    context: Context,
  ) => Answer;
  readonly handle?: (
    call: Call,
    input: { query: Static<TObject<Q>>; body: Static<B> },
    context: Context,
  ) => Answer | Promise<Answer>;
}

export function route<Q extends TProperties = {}, B extends TSchema = TSchema>(
  spec: Spec<Q, B>,
): Route {
  const change = spec.method !== "GET" && spec.read === undefined;
  const properties: TProperties = {
    ...spec.query,
    ...(change && dryRunQuery),
    ...(spec.read !== undefined && readQuery),
  };
  return {
    method: spec.method,
    path: spec.path,
    id: spec.id,
    tag: spec.tag,
    summary: spec.summary,
    access: accessOf(spec.id),
    responses: spec.responses,
    labels: spec.labels ?? false,
    query: Object.keys(properties).length === 0 ? null : Type.Object(properties),
    body: spec.body ?? null,
    bodyRequired: spec.bodyRequired ?? spec.body !== undefined,
    bodyBytesMax: spec.bodyBytesMax ?? smallBodyBytesMax,
    change,
    guarded: spec.guarded ?? false,
    errors: spec.errors ?? "problem",
    available: spec.available ?? false,
    byDirectory: spec.byDirectory ?? false,
    system: spec.system ?? false,
    ...(spec.read !== undefined && { read: spec.read }),
    ...(spec.handle !== undefined && { handle: spec.handle }),
  };
}
