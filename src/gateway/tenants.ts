/**
 * Routes of tenants, their keys, namespaces, usage, audit and Raft group.
 */
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import {
  AuditPage,
  type AuditRecord,
  GroupAnswer,
  KeyAnswer,
  KeyCreate,
  KeyCreated,
  KeyRotate,
  KeyRotated,
  listOf,
  NamespaceAnswer,
  NamespacePut,
  TenantAnswer,
  TenantCreate,
  TenantCreated,
  TenantsCreate,
  TenantsCreated,
  TenantUpdate,
  TransferRequest,
  UsageAnswer,
} from "../api/schemas.ts";
import type { NewTenant } from "../machine/command.ts";
import { tenantKey, under } from "../machine/keys.ts";
import {
  getKey,
  getMeta,
  getNamespace,
  getQuotas,
  listAudit,
  listKeys,
  listNamespaces,
} from "../machine/queries.ts";
import { keyInfo, tenantInfo, type KeyInfo, type TenantInfo } from "../machine/results.ts";
import {
  isLeaving,
  type AuditRow,
  type KeyRow,
  type NamespaceRow,
  type TenantRow,
} from "../machine/rows.ts";
import { checkNamespaceName, checkTenantName } from "../model/names.ts";
import { parseTime } from "../model/time.ts";
import { authorizeNamespace, covers } from "./auth.ts";
import {
  change,
  changeDirectory,
  type ActionOf,
  changedAnswer,
  idempotencyKeyOf,
  precondition,
} from "./changes.ts";
import { invalid, json, revisionTag, time, type Answer, type Call } from "./http.ts";
import type { ConfigService } from "../host/ports.ts";
import {
  contentBodyBytesMax,
  listLimitDefault,
  listQuery,
  route,
  type Context,
  type Route,
} from "./route.ts";
import { hashToken, newToken, type TenantKeyKind } from "./tokens.ts";

/** Long enough to bring the new key to everybody within a deployment or two. */
const overlapSecondsDefault = 3_600;

/** Audit records of one export; it goes on with `since`. */
const exportMax = 10_000;
const exportPage = 500;

const T = "/v1/tenants/:tenant";
const N = `${T}/namespaces/:namespace`;

const directoryRoutes: readonly Route[] = [
  route({
    method: "POST",
    path: "/v1/tenants",
    id: "createTenant",
    tag: "tenants",
    summary: "Create a tenant with a Raft group of its own and a first admin key",
    body: TenantCreate,
    responses: {
      201: { description: "Created; the token is shown this once", schema: TenantCreated },
    },
    handle: async (call, { body }, context) => {
      const { keyId, token, command } = newTenant(call, context, body, "");
      const changed = await changeDirectory<"directory.create">(call, context, {
        op: "directory.create",
        ...command,
      });
      const { tenant } = changed.result;
      guardReplayedKey(tenant.adminKeyId, keyId);
      return changedAnswer(
        changed,
        // A rehearsal made no key: its token would never work.
        {
          ...tenantAnswer(tenant),
          key: { id: keyId, kind: "admin", ...(!call.dryRun && { token }) },
        },
        { revision: tenant.revision, location: `/v1/tenants/${tenant.tenant}` },
      );
    },
  }),
  route({
    method: "POST",
    path: "/v1/tenants/batch",
    id: "createTenants",
    tag: "tenants",
    summary:
      "Create many tenants, all or none of them, each as one alone; they cost nothing until they are used",
    body: TenantsCreate,
    bodyBytesMax: contentBodyBytesMax,
    responses: {
      201: { description: "Created; the tokens are shown this once", schema: TenantsCreated },
    },
    handle: async (call, { body }, context) => {
      const made = body.tenants.map((one, at) => newTenant(call, context, one, `/tenants/${at}`));
      const changed = await changeDirectory<"directory.createMany">(call, context, {
        op: "directory.createMany",
        tenants: made.map(({ command }) => command),
      });
      const items = changed.result.tenants.map(({ tenant, group, adminKeyId, nodes }, at) => {
        const { keyId, token } = made[at] as (typeof made)[number];
        guardReplayedKey(adminKeyId, keyId);
        const key = { id: keyId, kind: "admin", ...(!call.dryRun && { token }) };
        return { id: tenant, group, replicas: nodes, key };
      });
      return changedAnswer(changed, { items });
    },
  }),
  route({
    method: "GET",
    path: "/v1/tenants",
    id: "listTenants",
    tag: "tenants",
    summary: "All tenants, by name",
    query: {
      ...listQuery,
      deleted: Type.Optional(Type.Boolean({ description: "Only deleted ones" })),
    },
    responses: { 200: { description: "Tenants", schema: listOf(TenantAnswer) } },
    handle: async (_call, { query }, context) => {
      const { limit = listLimitDefault, cursor, deleted = false } = query;
      return json(await listTenants(context, { limit, cursor, deleted }));
    },
  }),
  route({
    method: "GET",
    path: T,
    id: "getTenant",
    tag: "tenants",
    summary: "A tenant",
    byDirectory: true,
    responses: { 200: { description: "The tenant", schema: TenantAnswer } },
    handle: async (call, _input, context) => {
      const { row, etag } = await tenantRow(call, context);
      return json(tenantAnswer(tenantInfo(row)), { etag });
    },
  }),
  route({
    method: "PATCH",
    path: T,
    id: "updateTenant",
    tag: "tenants",
    summary:
      "Change a tenant's description or, with a root key, its quotas and how many replicas it has",
    byDirectory: true,
    guarded: true,
    body: TenantUpdate,
    responses: { 200: { description: "As it is now", schema: TenantAnswer } },
    handle: async (call, { body }, context) => {
      if (body.quotas !== undefined && call.principal?.kind !== "root")
        throw new Problem("forbidden", "Only root keys may change quotas");
      const moves =
        body.replicas === undefined ? null : await resizing(call, context, body.replicas);
      const changed = await changeDirectory<"directory.update">(call, context, {
        op: "directory.update",
        tenant: call.params["tenant"] as string,
        ...(body.description !== undefined && { description: body.description }),
        ...(body.quotas !== undefined && { quotaChanges: body.quotas }),
        ...precondition(call, context),
      });
      if (moves !== null) {
        const moved = await changeDirectory<"directory.move">(call, context, moves);
        return changedAnswer(moved, tenantAnswer(moved.result.tenant), {
          revision: moved.result.tenant.revision,
        });
      }
      const { tenant } = changed.result;
      return changedAnswer(changed, tenantAnswer(tenant), { revision: tenant.revision });
    },
  }),
  route({
    method: "DELETE",
    path: T,
    id: "deleteTenant",
    tag: "tenants",
    summary: "Delete a tenant; it can be undeleted unless purged",
    byDirectory: true,
    guarded: true,
    query: { purge: Type.Optional(Type.Boolean({ description: "Final: nothing of it is kept" })) },
    responses: { 200: { description: "As it was", schema: TenantAnswer } },
    handle: async (call, { query }, context) => {
      const changed = await changeDirectory<"directory.delete">(call, context, {
        op: "directory.delete",
        tenant: call.params["tenant"] as string,
        purge: query.purge ?? false,
        ...precondition(call, context),
      });
      return changedAnswer(changed, tenantAnswer(changed.result.tenant));
    },
  }),
  route({
    method: "POST",
    path: `${T}/undelete`,
    id: "undeleteTenant",
    tag: "tenants",
    summary: "Take back a deletion",
    byDirectory: true,
    responses: { 200: { description: "As it is now", schema: TenantAnswer } },
    handle: async (call, _input, context) => {
      const changed = await changeDirectory<"directory.undelete">(call, context, {
        op: "directory.undelete",
        tenant: call.params["tenant"] as string,
      });
      const { tenant } = changed.result;
      return changedAnswer(changed, tenantAnswer(tenant), { revision: tenant.revision });
    },
  }),
];

const keyRoutes: readonly Route[] = [
  route({
    method: "POST",
    path: `${T}/keys`,
    id: "createKey",
    tag: "keys",
    summary: "Create a key",
    body: KeyCreate,
    responses: {
      201: { description: "Created; the token is shown this once", schema: KeyCreated },
    },
    handle: async (call, { body }, context) => {
      body.namespaces?.forEach((namespace, i) => {
        const detail = checkNamespaceName(namespace);
        if (detail !== null)
          throw new Problem("invalid-name", detail, {
            errors: [{ pointer: `/namespaces/${i}`, detail }],
          });
      });
      const { keyId, token } = tokenFor(call, call.params["tenant"] as string, body.kind);
      const changed = await change<"key.create">(call, context, {
        op: "key.create",
        key: {
          id: keyId,
          kind: body.kind,
          hash: hashToken(token),
          ...(body.namespaces !== undefined && { namespaces: body.namespaces }),
          ...(body.expiresAt !== undefined && {
            expiresAt: expiry(body.expiresAt, context.service.nowMs()),
          }),
          ...(body.description !== undefined && { description: body.description }),
          ...(body.scopes !== undefined && { scopes: body.scopes }),
        },
      });
      guardReplayedKey(changed.result.key.id, keyId);
      return changedAnswer(
        changed,
        { ...keyAnswer(changed.result.key), ...(!call.dryRun && { token }) },
        { location: keyPath(call, keyId) },
      );
    },
  }),
  route({
    method: "POST",
    path: `${T}/keys/:key/rotate`,
    id: "rotateKey",
    tag: "keys",
    summary: "A new key in the place of this one, which holds on for the overlap",
    body: KeyRotate,
    bodyRequired: false,
    responses: {
      201: { description: "Created; the token is shown this once", schema: KeyRotated },
    },
    handle: async (call, { body }, context) => {
      const tenant = call.params["tenant"] as string;
      const id = call.params["key"] as string;
      const find = (consistency: "stale" | "linearizable"): Promise<KeyRow | null> =>
        context.service.read(tenant, { consistency }, (view) => getKey(view, id));
      const old = (await find("stale")) ?? (await find("linearizable"));
      if (old === null) throw noKey(id);
      const { keyId, token } = tokenFor(call, tenant, old.kind);
      const changed = await change<"key.rotate">(call, context, {
        op: "key.rotate",
        id,
        key: { id: keyId, hash: hashToken(token) },
        overlapMs: (body.overlapSeconds ?? overlapSecondsDefault) * 1_000,
      });
      const { key, replaced } = changed.result;
      guardReplayedKey(key.id, keyId);
      return changedAnswer(
        changed,
        {
          ...keyAnswer(key),
          ...(!call.dryRun && { token }),
          replaces: { id: replaced.id, expiresAt: time(replaced.expiresAt) },
        },
        { location: keyPath(call, keyId) },
      );
    },
  }),
  route({
    method: "GET",
    path: `${T}/keys`,
    id: "listKeys",
    tag: "keys",
    summary: "All keys, without their secrets",
    query: listQuery,
    responses: { 200: { description: "Keys", schema: listOf(KeyAnswer) } },
    read: (view, call, { query }) => {
      const { items, next } = listKeys(view, query);
      const mine = items.filter((row) => reaches(call, row));
      return json({ items: mine.map((row) => keyAnswer(keyInfo(row))), ...(next && { next }) });
    },
  }),
  route({
    method: "GET",
    path: `${T}/keys/:key`,
    id: "getKey",
    tag: "keys",
    summary: "A key, without its secret",
    responses: { 200: { description: "The key", schema: KeyAnswer } },
    read: (view, call) => {
      const row = getKey(view, call.params["key"] as string);
      if (row === null || !reaches(call, row)) throw noKey(call.params["key"] as string);
      return json(keyAnswer(keyInfo(row)));
    },
  }),
  route({
    method: "DELETE",
    path: `${T}/keys/:key`,
    id: "deleteKey",
    tag: "keys",
    summary: "Revoke a key: at once, and its watches end",
    responses: { 200: { description: "Revoked", schema: Type.Object({ id: Type.String() }) } },
    handle: async (call, _input, context) => {
      const id = call.params["key"] as string;
      const changed = await change<"key.delete">(call, context, { op: "key.delete", id });
      return changedAnswer(changed, { id: changed.result.id });
    },
  }),
];

const namespaceRoutes: readonly Route[] = [
  route({
    method: "GET",
    path: `${T}/namespaces`,
    id: "listNamespaces",
    tag: "namespaces",
    summary: "Namespaces that the key covers, by name",
    query: listQuery,
    responses: { 200: { description: "Namespaces", schema: listOf(NamespaceAnswer) } },
    read: (view, call, { query }) => {
      const { items, next } = listNamespaces(view, query);
      const mine = items.filter(
        (row) => call.principal !== null && covers(call.principal, row.namespace),
      );
      return json({ items: mine.map(namespaceAnswer), ...(next && { next }) });
    },
  }),
  route({
    method: "GET",
    path: N,
    id: "getNamespace",
    tag: "namespaces",
    summary: "A namespace's options",
    responses: { 200: { description: "The namespace", schema: NamespaceAnswer } },
    read: (view, call, _input, { service }) => {
      const row = getNamespace(view, call.params["namespace"] as string);
      if (row === null)
        throw new Problem("not-found", `There is no namespace ${call.params["namespace"]}`);
      const etag = revisionTag(service.semantics, view.epoch, row.revision);
      return json(namespaceAnswer(row), { etag });
    },
  }),
  route({
    method: "PUT",
    path: N,
    id: "putNamespace",
    tag: "namespaces",
    summary: "Set what a namespace extends and whether deletes in it are refused",
    guarded: true,
    body: NamespacePut,
    responses: {
      200: { description: "As it is now", schema: NamespaceAnswer },
      201: { description: "Created", schema: NamespaceAnswer },
    },
    handle: async (call, { body }, context) => {
      if (typeof body.extends === "string") {
        const detail = checkNamespaceName(body.extends);
        if (detail !== null)
          throw new Problem("invalid-name", detail, { errors: [{ pointer: "/extends", detail }] });
        // Extending is reading: a key must not reach through its own namespace into others.
        if (call.principal !== null) authorizeNamespace(call.principal, body.extends);
      }
      const changed = await change<"namespace.put">(call, context, {
        op: "namespace.put",
        namespace: call.params["namespace"] as string,
        ...body,
        ...precondition(call, context),
      });
      const row = changed.result.namespace;
      return changedAnswer(changed, namespaceAnswer(row), {
        revision: row.revision,
        location: `/v1/tenants/${call.params["tenant"]}/namespaces/${row.namespace}`,
      });
    },
  }),
];

const careRoutes: readonly Route[] = [
  route({
    method: "GET",
    path: `${T}/usage`,
    id: "getUsage",
    tag: "tenants",
    summary: "What the tenant uses, and may use",
    system: true,
    responses: { 200: { description: "Usage", schema: UsageAnswer } },
    read: (view) => {
      const meta = getMeta(view);
      return json({
        revision: meta.revision,
        epoch: view.epoch,
        historyFrom: meta.historyFrom,
        configs: meta.configs,
        deletedConfigs: meta.deleted,
        namespaces: meta.namespaces,
        keys: meta.keys,
        bytes: meta.bytes,
        requests: meta.usage?.requests ?? 0,
        limitedRequests: meta.usage?.limited ?? 0,
        watchBytes: meta.usage?.watchBytes ?? 0,
        heldWatches: meta.usage?.watchesHeld ?? 0,
        quotas: getQuotas(view),
      });
    },
  }),
  route({
    method: "GET",
    path: `${T}/audit`,
    id: "listAudit",
    tag: "tenants",
    summary: "Who changed what, oldest first",
    system: true,
    query: {
      since: Type.Optional(
        Type.Integer({ minimum: 0, description: "Records after this sequence; `next` of a page" }),
      ),
      limit: Type.Optional(
        Type.Integer({
          minimum: 1,
          maximum: exportMax,
          description: "Default 100; JSON gives at most 1000",
        }),
      ),
      format: Type.Optional(Type.Union([Type.Literal("json"), Type.Literal("ndjson")])),
    },
    responses: {
      200: {
        description: `Records; as NDJSON (one record a line, up to ${exportMax} unless limit says less) they come as a stream, and go on with since`,
        schema: AuditPage,
      },
    },
    handle: async (call, { query }, { service }) => {
      const tenant = call.params["tenant"] as string;
      const { format = "json", limit, since = 0 } = query;
      if (format === "ndjson") return exportAudit(call, service, { since, limit });
      return service.read(tenant, { consistency: "linearizable" }, (view) => {
        call.revision = view.revision;
        const { items, next } = listAudit(view, { since, ...(limit !== undefined && { limit }) });
        const { auditAnchor, auditHead } = getMeta(view);
        return json({
          items: items.map(auditAnswer),
          ...(next && { next: String(Number(next)) }),
          anchor: auditAnchor ?? null,
          head: auditHead ?? null,
        });
      });
    },
  }),
  route({
    method: "GET",
    path: `${T}/group`,
    id: "getGroup",
    tag: "tenants",
    summary: "The tenant's Raft group",
    system: true,
    responses: { 200: { description: "The group", schema: GroupAnswer } },
    handle: async (call, _input, { service }) => {
      const { tenant: _name, ...group } = await service.group(call.params["tenant"] as string);
      call.revision = group.revision;
      return json(group);
    },
  }),
  route({
    method: "POST",
    path: `${T}/group/transfer`,
    id: "transferGroup",
    tag: "tenants",
    summary: "Ask the leadership of the tenant's group to move",
    system: true,
    body: TransferRequest,
    responses: {
      200: { description: "Asked", schema: Type.Object({ to: Type.String() }) },
    },
    handle: async (call, { body }, { service }) => {
      if (!call.dryRun) await service.transfer(call.params["tenant"] as string, body.to);
      return json({ to: body.to });
    },
  }),
];

export const tenantRoutes: readonly Route[] = [
  ...directoryRoutes,
  ...keyRoutes,
  ...namespaceRoutes,
  ...careRoutes,
];

// --- tenants -------------------------------------------------------------------------------------------------------------

async function tenantRow(
  call: Call,
  { peers }: Context,
): Promise<{ readonly row: TenantRow; readonly etag: string }> {
  const tenant = call.params["tenant"] as string;
  const { row, etag } = await peers.taggedRow<TenantRow>(tenantKey(tenant));
  if (row === undefined) throw new Problem("not-found", `There is no tenant ${tenant}`);
  return { row, etag };
}

/** Other replicas are added or taken away by the group's leader; that it is asked for is what is answered. */
async function resizing(
  call: Call,
  context: Context,
  replicas: number,
): Promise<ActionOf<"directory.move">> {
  if (call.principal?.kind !== "root")
    throw new Problem("forbidden", "Only root keys may change how many replicas a tenant has");
  const { tenant, placement } = (await tenantRow(call, context)).row;
  const present = placement.replicas.filter((replica) => !isLeaving(replica));
  const keep = present.map(({ node }) => node);
  const nodes = context.service.place(tenant, replicas, keep);
  return { op: "directory.move", tenant, nodes, generation: placement.generation ?? 0 };
}

async function listTenants(
  { peers }: Context,
  options: { limit: number; cursor: string | undefined; deleted: boolean },
): Promise<{ items: unknown[]; next?: string }> {
  const { gte, lt } = under("ten");
  const items: unknown[] = [];
  let from = options.cursor === undefined ? gte : after(options.cursor);
  for (;;) {
    const rows = await peers.systemRows<TenantRow>({ gte: from, lt, limit: options.limit + 1 });
    for (const [, row] of rows) {
      if ((row.deletedAt !== null) !== options.deleted) continue;
      if (items.length === options.limit) return { items, next: (items.at(-1) as TenantAnswer).id };
      items.push(tenantAnswer(tenantInfo(row)));
    }
    const last = rows.at(-1)?.[1].tenant;
    if (rows.length <= options.limit || last === undefined) return { items };
    from = after(last);
  }
}

/** The first key that can follow a tenant's: names hold no zero byte. */
function after(tenant: string): string {
  return `ten/${tenant}\u0000`;
}

export function tenantAnswer(row: TenantInfo): TenantAnswer {
  return {
    id: row.tenant,
    description: row.description,
    quotas: row.quotas,
    replicas: row.placement.replicas.map((replica) => replica.node),
    group: row.group,
    incarnation: row.incarnation,
    createdAt: time(row.createdAt),
    deletedAt: time(row.deletedAt),
    revision: row.revision,
  };
}

// --- keys ----------------------------------------------------------------------------------------------------------------

export function tokenFor(
  call: Call,
  tenant: string,
  kind: TenantKeyKind,
): { readonly keyId: string; readonly token: string } {
  const idempotencyKey = idempotencyKeyOf(call);
  return newToken({
    kind,
    tenant,
    ...(idempotencyKey !== null &&
      call.token !== null && { repeatable: { callerToken: call.token, idempotencyKey } }),
  });
}

/** What the directory is told of a tenant to be made, and the token that only the caller is told. */
function newTenant(
  call: Call,
  context: Context,
  wanted: TenantCreate,
  pointer: string,
): { readonly keyId: string; readonly token: string; readonly command: NewTenant } {
  const { id, quotas = {}, description } = wanted;
  const wrongName = checkTenantName(id);
  if (wrongName !== null)
    throw new Problem("invalid-name", wrongName, {
      errors: [{ pointer: `${pointer}/id`, detail: wrongName }],
    });
  const { keyId, token } = tokenFor(call, id, "admin");
  const command: NewTenant = {
    tenant: id,
    quotas,
    nodes: context.service.place(id, wanted.replicas),
    adminKey: { id: keyId, kind: "admin", hash: hashToken(token) },
    ...(description !== undefined && { description }),
  };
  return { keyId, token, command };
}

function keyPath(call: Call, id: string): string {
  return `/v1/tenants/${call.params["tenant"]}/keys/${id}`;
}

function noKey(id: string): Problem {
  return new Problem("not-found", `There is no key ${id}`);
}

/** The token of a repeat is derived from the caller's own; with another one it would be a token that never works. */
export function guardReplayedKey(stored: string, derived: string): void {
  if (stored !== derived)
    throw new Problem(
      "idempotency-mismatch",
      "Repeat it with the same key as the first time: the new token was derived from that",
    );
}

/** A limited admin key has to do with keys that are limited to the same namespaces, and no others. */
function reaches(call: Call, row: KeyRow): boolean {
  const { principal } = call;
  if (principal === null) return false;
  if (principal.namespaces === null) return true;
  return row.namespaces?.every((namespace) => covers(principal, namespace)) ?? false;
}

function expiry(text: string, nowMs: number): number {
  const at = parseTime(text);
  const detail =
    at === null
      ? "Give an RFC 3339 time such as 2030-01-31T12:00:00Z"
      : at <= nowMs
        ? "Give a time in the future"
        : null;
  if (at === null || detail !== null)
    throw invalid(`/expiresAt: ${detail}`, [{ pointer: "/expiresAt", detail: detail ?? "" }]);
  return at;
}

function keyAnswer(row: KeyInfo): KeyAnswer {
  return {
    id: row.id,
    kind: row.kind,
    namespaces: row.namespaces === null ? null : [...row.namespaces],
    expiresAt: time(row.expiresAt),
    scopes: [...(row.scopes ?? [])],
    description: row.description,
    createdAt: time(row.createdAt),
    lastUsedAt: time(row.lastUsedAt ?? null),
    replacedBy: row.replacedBy ?? null,
  };
}

// --- the rest --------------------------------------------------------------------------------------------------------------

function namespaceAnswer(row: NamespaceRow): NamespaceAnswer {
  return {
    namespace: row.namespace,
    extends: row.extends,
    protected: row.protected,
    revision: row.revision,
    createdAt: time(row.createdAt),
  };
}

/** Reads page by page as the client reads: no more than one is held here. */
async function exportAudit(
  call: Call,
  service: ConfigService,
  options: { readonly since: number; readonly limit: number | undefined },
): Promise<Answer> {
  const tenant = call.params["tenant"] as string;
  let { since, limit: left = exportMax } = options;
  const page = (consistency: "linearizable" | "stale"): Promise<string> =>
    service.read(tenant, { consistency }, (view) => {
      call.revision ??= view.revision;
      const { items } = listAudit(view, { since, limit: Math.min(left, exportPage) });
      left -= items.length;
      since = items.at(-1)?.sequence ?? since;
      // The last page is known by being short.
      if (items.length < exportPage) left = 0;
      return items.map((row) => `${JSON.stringify(auditAnswer(row))}\n`).join("");
    });
  let next: string | null = await page("linearizable");
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>(
    {
      pull: async (controller) => {
        if (next !== null && next !== "") controller.enqueue(encoder.encode(next));
        if (left === 0) return controller.close();
        next = await page("stale");
        // A pull that enqueued nothing is not called again.
        if (next === "") controller.close();
      },
    },
    { highWaterMark: 0 },
  );
  return {
    status: 200,
    headers: { "content-type": "application/x-ndjson", "cache-control": "no-cache" },
    body,
  };
}

function auditAnswer(row: AuditRow): AuditRecord {
  const { before = null, after = null, previous = null, hash = null } = row;
  return { ...row, at: time(row.at), before, after, previous, hash };
}
