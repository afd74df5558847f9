/** Routes of watches. */
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import { WatchPoll } from "../api/schemas.ts";
import { checkConfigName, checkNamespaceName, isName } from "../model/names.ts";
import { accessOf } from "./access.ts";
import { authorizeNamespace, covers } from "./auth.ts";
import { route, type Route } from "./route.ts";
import { readsSecrets } from "./secrets.ts";
import { rulesQuery } from "./value_routes.ts";
import { labelsOf, refuseRules } from "./values.ts";
import type { EffectiveFilter, FlagFilter, TenantFilter } from "./watch_sources.ts";
import { waitMsOf, watchTag } from "./watches.ts";

const T = "/v1/tenants/:tenant";

const watchQuery = {
  spread: Type.Optional(
    Type.Boolean({
      description:
        "false: be told at once also of what was published to be told within a time; for the few who watch over it",
    }),
  ),
  since: Type.Optional(
    Type.String({
      maxLength: 64,
      description:
        "Cursor of the last frame received, as its id gave it, or now; without it, of another epoch, compacted or ahead, the watch begins with a sync. A Last-Event-ID header outweighs it",
    }),
  ),
  wait: Type.Optional(
    Type.String({
      description: "Long polling: wait at most this long, e.g. 30s or 500ms, up to 60s",
    }),
  ),
};

const watchResponses = {
  200: {
    description:
      "Frames as server-sent events (event, id, data); with `wait` as one JSON object (WatchPoll)",
    schema: WatchPoll,
  },
};

export const watchRoutes: readonly Route[] = [
  route({
    method: "GET",
    path: `${T}/watch`,
    id: "watchTenant",
    tag: watchTag,
    summary: "Changes of a tenant's configs, each revision whole and in order",
    query: {
      ...watchQuery,
      namespace: Type.Optional(Type.String()),
      prefix: Type.Optional(Type.String({ maxLength: 128, description: "Of the config's name" })),
      content: Type.Optional(
        Type.Boolean({ description: "Contents up to 64 KiB come along; default true" }),
      ),
      history: Type.Optional(
        Type.Union([Type.Literal("latest"), Type.Literal("every")], {
          description:
            "latest (default): whoever reads too slowly, or comes too late, is told the latest of each, in one commit that says coalesced, or in a sync. every: each revision, or goodbye; a cursor that is compacted gives 410",
        }),
      ),
    },
    responses: watchResponses,
    handle: (call, { query }, { watches }) => {
      const { principal } = call;
      if (principal === null) throw new Error("A watch needs a principal");
      const { namespace = null, prefix = "", content = true, history = "latest", wait } = query;
      if (namespace !== null) {
        if (!isName(namespace))
          throw new Problem("invalid-name", checkNamespaceName(namespace) ?? "Wrong namespace");
        authorizeNamespace(principal, namespace);
      }
      const filter: TenantFilter = {
        kind: "tenant",
        tenant: call.params["tenant"] as string,
        namespace,
        prefix,
        content,
        every: history === "every",
        // A key that covers the one namespace sees what any other sees of it, and shares the feed.
        namespaces: namespace === null ? principal.namespaces : null,
        keys: covers(principal, "") && (principal.kind === "admin" || principal.kind === "root"),
      };
      const access = tenantAccess;
      return wait === undefined
        ? watches.stream(call, filter, access)
        : watches.poll(call, filter, access, waitMsOf(wait));
    },
  }),
  route({
    method: "GET",
    path: `${T}/namespaces/:namespace/watch`,
    id: "watchValues",
    tag: watchTag,
    summary: "The effective values for these labels, then their changes only",
    labels: true,
    query: {
      ...watchQuery,
      name: Type.Optional(Type.String({ description: "Only this config" })),
      ...rulesQuery,
    },
    responses: watchResponses,
    handle: (call, { query }, { watches }) => {
      const { name = null, wait, rules = false } = query;
      if (rules) refuseRules(call.query, call.principal);
      if (name !== null && !isName(name))
        throw new Problem("invalid-name", checkConfigName(name) ?? "Wrong name");
      const filter: EffectiveFilter = {
        kind: "effective",
        tenant: call.params["tenant"] as string,
        namespace: call.params["namespace"] as string,
        labels: labelsOf(call.query),
        name,
        rules,
        secrets: readsSecrets(call.principal),
      };
      return wait === undefined
        ? watches.stream(call, filter, valuesAccess)
        : watches.poll(call, filter, valuesAccess, waitMsOf(wait));
    },
  }),
  route({
    method: "GET",
    path: `${T}/namespaces/:namespace/ofrep/v1/events`,
    id: "watchFlags",
    tag: watchTag,
    summary: "When flags are to be evaluated again: the event stream of OFREP",
    query: {
      ...watchQuery,
      token: Type.Optional(
        Type.String({
          maxLength: 512,
          description:
            "Instead of a key in a header; part of the address that a bulk evaluation gave",
        }),
      ),
    },
    responses: watchResponses,
    handle: (call, { query: { wait } }, { watches }) => {
      const { tenant, namespace } = call.params as { tenant: string; namespace: string };
      const filter: FlagFilter = { kind: "flags", tenant, namespace };
      return wait === undefined
        ? watches.stream(call, filter, valuesAccess)
        : watches.poll(call, filter, valuesAccess, waitMsOf(wait));
    },
  }),
];

const tenantAccess = accessOf("watchTenant");
const valuesAccess = accessOf("watchValues");
