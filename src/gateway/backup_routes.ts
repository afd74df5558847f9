/** Routes of backups and of their way back. */
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import {
  RestoreAnswer,
  RestoreBegin,
  RestoreBegun,
  RestoreFinish,
  RestoreFinished,
  RestoreProgress,
  RestoreRows,
} from "../api/schemas.ts";
import { getMeta } from "../machine/queries.ts";
import { checkTenantName } from "../model/names.ts";
import { change, changeDirectory, changedAnswer } from "./changes.ts";
import { invalid, json } from "./http.ts";
import { route, type Context, type Route } from "./route.ts";
import { guardReplayedKey, tenantAnswer, tokenFor } from "./tenants.ts";
import { hashToken } from "./tokens.ts";
import { mediaType } from "./backup.ts";

const T = "/v1/tenants/:tenant";

/** One row may be a content of some MiB, escaped twice. */
const restoreBodyBytesMax = 10 * 1024 * 1024;

export const backupRoutes: readonly Route[] = [
  route({
    method: "GET",
    path: `${T}/backup`,
    id: "getBackup",
    tag: "backup",
    summary:
      "The whole tenant at one revision, as NDJSON; its end line has the sha256 of all before",
    query: {
      part: Type.Optional(
        Type.Integer({
          minimum: 0,
          description: "0: take it in parts, each of which can be repeated",
        }),
      ),
      session: Type.Optional(
        Type.String({
          maxLength: 256,
          description: "Of the first part's Conflux-Backup-Session, with the next part's number",
        }),
      ),
      over: Type.Optional(
        Type.Boolean({ description: "true, with a session: no more of its parts are wanted" }),
      ),
    },
    responses: {
      200: { description: "The backup, or a part of it", media: mediaType, schema: Type.String() },
      204: { description: "The session is over" },
    },
    handle: (call, { query }, { backups }) => backups.answer(call, query),
  }),
  route({
    method: "POST",
    path: `${T}/restore`,
    id: "beginRestore",
    tag: "backup",
    summary: "Make a tenant whose rows follow from a backup; it answers 503 until it is finished",
    byDirectory: true,
    body: RestoreBegin,
    responses: {
      201: { description: "Begun; a token is shown this once", schema: RestoreBegun },
      200: { description: "What would be made", schema: RestoreBegun },
    },
    handle: async (call, { body }, context) => {
      const tenant = call.params["tenant"] as string;
      const wrongName = checkTenantName(tenant);
      if (wrongName !== null) throw new Problem("invalid-name", wrongName);
      const { keyId, token } = tokenFor(call, tenant, "admin");
      const changed = await changeDirectory<"directory.create">(call, context, {
        op: "directory.create",
        tenant,
        quotas: body.quotas ?? {},
        nodes: placed(context, tenant, body.replicas),
        adminKey: { id: keyId, kind: "admin", hash: hashToken(token) },
        restore: { source: body.source, meta: body.meta, adminKey: body.adminKey === true },
        ...(body.description !== undefined && { description: body.description }),
        ...(body.replace === true && { replace: true }),
      });
      const made = changed.result.tenant;
      guardReplayedKey(made.adminKeyId, keyId);
      const key = { id: keyId, kind: "admin", ...(!call.dryRun && { token }) };
      return changedAnswer(
        changed,
        { ...tenantAnswer(made), ...(body.adminKey === true && { key }) },
        { revision: made.revision, location: `/v1/tenants/${tenant}/restore` },
      );
    },
  }),
  route({
    method: "GET",
    path: `${T}/restore`,
    id: "getRestore",
    tag: "backup",
    summary: "How far a restore is, to go on with it",
    responses: { 200: { description: "What is there", schema: RestoreAnswer } },
    handle: async (call, _input, { service }) => {
      const tenant = call.params["tenant"] as string;
      const options = { consistency: "linearizable", evenRestoring: true } as const;
      const state = await service.read(tenant, options, (view) => {
        call.revision = view.revision;
        return getMeta(view).restore;
      });
      if (state === undefined)
        throw new Problem("not-found", `Tenant ${tenant} is not being restored`);
      const { source, part, rows, last } = state;
      return json({ source, part, rows, last });
    },
  }),
  route({
    method: "PUT",
    path: `${T}/restore/rows/:part`,
    id: "putRestoreRows",
    tag: "backup",
    summary: "The next rows of a backup; a part that is repeated has effect once",
    body: RestoreRows,
    bodyBytesMax: restoreBodyBytesMax,
    responses: { 200: { description: "How far it is", schema: RestoreProgress } },
    handle: async (call, { body }, context) => {
      const part = call.params["part"] as string;
      if (!/^\d{1,9}$/.test(part)) throw invalid("Number parts with whole numbers from 0");
      const rows = body.rows.map(([key, text], at) => [key, rowOf(text, at)] as const);
      const action = { op: "restore.rows", part: Number(part), rows } as const;
      // Its number makes it repeatable; a record for each of thousands would push out those of clients.
      const changed = await change<"restore.rows">(call, context, action, { isOnce: true });
      return changedAnswer(changed, changed.result);
    },
  }),
  route({
    method: "POST",
    path: `${T}/restore/finish`,
    id: "finishRestore",
    tag: "backup",
    summary: "All rows are there: check them against the backup's counters and open the tenant",
    body: RestoreFinish,
    responses: {
      201: { description: "It is a tenant now", schema: RestoreFinished },
      200: { description: "What would be answered", schema: RestoreFinished },
    },
    handle: async (call, { body }, context: Context) => {
      const action = { op: "restore.finish", rows: body.rows } as const;
      const changed = await change<"restore.finish">(call, context, action);
      return changedAnswer(
        changed,
        { ...changed.result, revision: changed.revision },
        { location: `/v1/tenants/${call.params["tenant"]}` },
      );
    },
  }),
];

/** As many replicas as it had; where there are fewer nodes, as a new tenant gets. */
function placed({ service }: Context, tenant: string, replicas?: number): readonly string[] {
  const isRoom = replicas === undefined || replicas <= service.cluster().nodes.length;
  return service.place(tenant, isRoom ? replicas : undefined);
}

function rowOf(text: string, at: number): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const detail = "Give each row as JSON text";
    throw new Problem("invalid", detail, {
      errors: [{ pointer: `/rows/${at}/1`, detail }],
      cause: error,
    });
  }
}
