/**
 * Routes of configs: metadata, versions, releases, history, and transactions over all of them.
 */
import { isDeepStrictEqual } from "node:util";
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import {
  ConfigAnswer,
  ConfigDetailAnswer,
  ConfigPut,
  ContentPut,
  DiffAnswer,
  listOf,
  PublishAnswer,
  ReleaseAnswer,
  ReleasePut,
  RollbackRequest,
  TransactionAnswer,
  transactionOperations,
  TransactionRequest,
  VersionAnswer,
  VersionContentAnswer,
  VersionsDelete,
  VersionsDeleteAnswer,
  type TransactionOperation,
} from "../api/schemas.ts";
import type { ConfigService, TenantView } from "../host/ports.ts";
import { tagsLevel, type ConfigAction, type TransactionCondition } from "../machine/command.ts";
import {
  getConfig,
  getQuotas,
  getRelease,
  getText,
  getVersion,
  latestVersion,
  listConfigs,
  listReleases,
  listVersions,
} from "../machine/queries.ts";
import { configInfo, type ConfigInfo, type ResultOf } from "../machine/results.ts";
import type { ConfigRow, ReleaseRow, VersionRow } from "../machine/rows.ts";
import { authorizeNamespace } from "./auth.ts";
import { change, changedAnswer, precondition, type Build, type Changed } from "./changes.ts";
import { buildAction, resultingShape, shapeOf, type Known, type Shape } from "./contents.ts";
import { unifiedDiff } from "./diff.ts";
import { authorizeSecrets, openText } from "./secrets.ts";
import {
  check,
  invalid,
  json,
  parsedTag,
  revisionTag,
  time,
  type Answer,
  type Call,
} from "./http.ts";
import {
  contentBodyBytesMax,
  listQuery,
  route,
  spreadQuery,
  transactionBodyBytesMax,
  type Context,
  type Route,
} from "./route.ts";
import { configAnswer, configDetail, releaseAnswer, versionAnswer } from "./config_answers.ts";

const T = "/v1/tenants/:tenant";
const N = `${T}/namespaces/:namespace`;
const C = `${N}/configs/:name`;

const metadataRoutes: readonly Route[] = [
  route({
    method: "PUT",
    path: C,
    id: "putConfig",
    tag: "configs",
    summary:
      "Create a config, with content as version 1 released as default; or change its metadata",
    guarded: true,
    body: ConfigPut,
    bodyRequired: false,
    bodyBytesMax: contentBodyBytesMax,
    responses: {
      200: { description: "Changed", schema: ConfigAnswer },
      201: { description: "Created", schema: ConfigAnswer },
    },
    handle: async (call, { body }, context) =>
      configChanged(call, await changeConfig(call, context, { op: "config.put", ...body })),
  }),
  route({
    method: "GET",
    path: `${N}/configs`,
    id: "listConfigs",
    tag: "configs",
    summary: "Configs of a namespace, by name",
    query: {
      ...listQuery,
      prefix: Type.Optional(Type.String({ maxLength: 128, description: "Of the name" })),
      deleted: Type.Optional(Type.Boolean({ description: "Only deleted ones" })),
    },
    responses: { 200: { description: "Configs", schema: listOf(ConfigAnswer) } },
    read: (view, call, { query }, { service }) => {
      const { items, next } = listConfigs(view, call.params["namespace"] as string, query);
      return json({
        items: items.map((row) => configAnswer(configInfo(row), configTag(service, view, row))),
        ...(next !== undefined && { next }),
      });
    },
  }),
  route({
    method: "GET",
    path: C,
    id: "getConfig",
    tag: "configs",
    summary: "A config: metadata, schema, latest version and the release in force",
    responses: { 200: { description: "The config", schema: ConfigDetailAnswer } },
    read: (view, call, _input, { service }) => {
      const row = configOf(view, call);
      const etag = configTag(service, view, row);
      return json(configDetail(row, etag), { etag });
    },
  }),
  route({
    method: "DELETE",
    path: C,
    id: "deleteConfig",
    tag: "configs",
    summary: "Delete a config; it can be undeleted",
    query: spreadQuery,
    guarded: true,
    responses: { 200: { description: "As it was", schema: ConfigAnswer } },
    handle: async (call, _input, context) =>
      configChanged(call, await changeConfig(call, context, { op: "config.delete" })),
  }),
  route({
    method: "POST",
    path: `${C}/undelete`,
    id: "undeleteConfig",
    tag: "configs",
    summary: "Take back a deletion",
    query: spreadQuery,
    guarded: true,
    responses: { 200: { description: "As it is now", schema: ConfigAnswer } },
    handle: async (call, _input, context) =>
      configChanged(call, await changeConfig(call, context, { op: "config.undelete" })),
  }),
];

const versionRoutes: readonly Route[] = [
  route({
    method: "POST",
    path: `${C}/versions`,
    id: "createVersion",
    tag: "versions",
    summary: "Add a version; it reaches nobody until it is released",
    guarded: true,
    body: ContentPut,
    bodyBytesMax: contentBodyBytesMax,
    responses: {
      200: { description: "The latest version has this content already", schema: VersionAnswer },
      201: { description: "Created", schema: VersionAnswer },
    },
    handle: async (call, { body }, context) => {
      const changed = await changeConfig(call, context, { op: "version.create", ...body });
      const { version, config } = changed.result;
      return changedAnswer(changed, versionAnswer(version), {
        revision: config.revision,
        location: versionPath(call, version.version),
      });
    },
  }),
  route({
    method: "GET",
    path: `${C}/versions`,
    id: "listVersions",
    tag: "versions",
    summary: "Versions, newest first, without their content",
    query: listQuery,
    responses: { 200: { description: "Versions", schema: listOf(VersionAnswer) } },
    read: (view, call, { query }) => {
      const { namespace, name } = configOf(view, call);
      const { items, next } = listVersions(view, namespace, name, query);
      return json({ items: items.map(versionAnswer), ...(next !== undefined && { next }) });
    },
  }),
  route({
    method: "GET",
    path: `${C}/versions/:version`,
    id: "getVersion",
    tag: "versions",
    summary: "A version with its content, by number or by sha256:…",
    responses: { 200: { description: "The version", schema: VersionContentAnswer } },
    read: (view, call, _input, { secrets }) => {
      const given = call.params["version"] as string;
      const row = configOf(view, call);
      const version = versionOf(view, row, given);
      if (version.secret === true) authorizeSecrets(call.principal);
      const content = openText(view, secrets, row, version);
      if (content === null) throw new Error("A version has no text");
      return json(
        { ...versionAnswer(version), content },
        {
          // Of a restored tenant versions come a second time, for something else.
          etag: `"${view.epoch}-${row.uid}-${version.version}"`,
          headers: {
            // By hash it is the same for ever; a number may be given again once the config was made anew.
            "cache-control":
              version.secret === true
                ? "no-store"
                : `private, max-age=${given.startsWith("sha256:") ? 31_536_000 : 86_400}, immutable`,
            vary: "Authorization, X-API-Key",
          },
        },
      );
    },
  }),
  route({
    method: "DELETE",
    path: `${C}/versions`,
    id: "deleteVersions",
    tag: "versions",
    summary: "Delete versions that no release in force names",
    guarded: true,
    body: VersionsDelete,
    responses: { 200: { description: "Deleted", schema: VersionsDeleteAnswer } },
    handle: async (call, { body }, context) => {
      const changed = await changeConfig(call, context, { op: "version.delete", ...body });
      return changedAnswer(changed, { deleted: changed.result.deleted });
    },
  }),
  route({
    method: "GET",
    path: `${C}/diff`,
    id: "diffVersions",
    tag: "versions",
    summary: "Differences of two versions, line by line",
    query: {
      from: Type.Optional(
        Type.String({ description: "Number or hash; default: what is released" }),
      ),
      to: Type.Optional(Type.String({ description: "Number or hash; default: the latest" })),
    },
    responses: { 200: { description: "Differences", schema: DiffAnswer } },
    read: (view, call, { query }) => diffAnswer(view, configOf(view, call), query),
  }),
];

const releaseRoutes: readonly Route[] = [
  route({
    method: "PUT",
    path: `${C}/release`,
    id: "putRelease",
    tag: "releases",
    summary: "Release versions by rules",
    query: spreadQuery,
    guarded: true,
    body: ReleasePut,
    bodyBytesMax: contentBodyBytesMax,
    responses: { 200: { description: "The release in force", schema: ReleaseAnswer } },
    handle: async (call, { body }, context) =>
      released(await changeConfig(call, context, { op: "release.put", ...body })),
  }),
  route({
    method: "GET",
    path: `${C}/release`,
    id: "getRelease",
    tag: "releases",
    summary: "The release in force",
    responses: { 200: { description: "The release", schema: ReleaseAnswer } },
    read: (view, call, _input, { service }) => {
      const row = configOf(view, call);
      const release = getRelease(view, row.namespace, row.name);
      if (release === null)
        throw new Problem("not-found", `Nothing of ${row.namespace}/${row.name} was released yet`);
      return json(releaseAnswer(release), { etag: configTag(service, view, row) });
    },
  }),
  route({
    method: "POST",
    path: `${C}/publish`,
    id: "publish",
    tag: "releases",
    summary: "A new version, released as default with the rules kept, in one revision",
    query: spreadQuery,
    guarded: true,
    body: ContentPut,
    bodyBytesMax: contentBodyBytesMax,
    responses: {
      200: { description: "This content is the default already", schema: PublishAnswer },
      201: { description: "Published", schema: PublishAnswer },
    },
    handle: async (call, { body }, context) => {
      const changed = await changeConfig(call, context, { op: "publish", ...body });
      return changedAnswer(changed, resultAnswer("publish", changed.result, changed), {
        revision: changed.result.config.revision,
        location: versionPath(call, changed.result.version.version),
      });
    },
  }),
  route({
    method: "POST",
    path: `${C}/rollback`,
    id: "rollback",
    tag: "releases",
    summary: "A new release equal to an older one; without toRelease the one before",
    query: spreadQuery,
    guarded: true,
    body: RollbackRequest,
    bodyRequired: false,
    responses: { 200: { description: "The release in force", schema: ReleaseAnswer } },
    handle: async (call, { body }, context) =>
      released(await changeConfig(call, context, { op: "rollback", ...body })),
  }),
  route({
    method: "GET",
    path: `${C}/history`,
    id: "listReleases",
    tag: "releases",
    summary: "Releases, newest first",
    query: listQuery,
    responses: { 200: { description: "Releases", schema: listOf(ReleaseAnswer) } },
    read: (view, call, { query }) => {
      const { namespace, name } = configOf(view, call);
      const { items, next } = listReleases(view, namespace, name, query);
      return json({ items: items.map(releaseAnswer), ...(next !== undefined && { next }) });
    },
  }),
];

const transactionRoute: Route = route({
  method: "POST",
  path: `${T}/transactions`,
  id: "runTransaction",
  tag: "transactions",
  summary: "Changes of many configs and namespaces: all or nothing, in one revision",
  query: spreadQuery,
  body: TransactionRequest,
  bodyBytesMax: transactionBodyBytesMax,
  responses: { 200: { description: "Done", schema: TransactionAnswer } },
  handle: async (call, { body }, context) => {
    const operations = body.then.map((operation, i) => checkOperation(operation, `/then/${i}`));
    const conditions = (body.if ?? []).map((condition, i) => conditionOf(condition, i, context));
    guardScope(call, [...conditions, ...operations], operations);
    const changed = await change<"transaction">(call, context, async (consistency) => ({
      op: "transaction",
      if: conditions,
      then: await known(call, context, consistency, (state) => buildAll(operations, state)),
    }));
    return changedAnswer(
      { ...changed, created: false },
      {
        revision: changed.revision,
        results: changed.result.results.map(({ result }, i) =>
          resultAnswer((operations[i] as TransactionOperation).op, result as never, changed),
        ),
      },
    );
  },
});

export const configRoutes: readonly Route[] = [
  ...metadataRoutes,
  ...versionRoutes,
  ...releaseRoutes,
  transactionRoute,
];

// --- changes -------------------------------------------------------------------------------------------------------------

type ConfigOp = Exclude<ConfigAction["op"], "namespace.put">;
type OperationOf<Op extends ConfigOp> = Omit<
  Extract<TransactionOperation, { op: Op }>,
  "namespace" | "name"
> & { readonly op: Op };

/** One operation on the config in the path. */
function changeConfig<Op extends ConfigOp>(
  call: Call,
  context: Context,
  operation: OperationOf<Op>,
): Promise<Changed<Op>> {
  const { namespace, name } = call.params;
  const whole = { ...operation, namespace, name } as unknown as TransactionOperation;
  const guard = precondition(call, context);
  const built = (state: Known): ConfigAction => ({ ...buildAction(whole, state, ""), ...guard });
  const build = (consistency: "stale" | "linearizable"): ConfigAction | Promise<ConfigAction> =>
    needsState(whole)
      ? known(call, context, consistency, built)
      : built({ ...nothingKnown, secrets: context.secrets, tenant: "" });
  return change<Op>(call, context, build as unknown as Build<Op>);
}

/** Whether content comes with it, which is held against what the config is. */
function needsState(operation: TransactionOperation): boolean {
  return "content" in operation && operation.content !== undefined;
}

const nothingKnown = { shape: () => null, contentBytesMax: Number.POSITIVE_INFINITY };

/**
 * Runs `build` over the tenant's state: as it is known here, and if that lacks something, once more over the newest.
 */
function known<T>(
  call: Call,
  context: Context,
  consistency: "stale" | "linearizable",
  build: (state: Known) => T | Promise<T>,
): T | Promise<T> {
  const tenant = call.params["tenant"] as string;
  const view =
    consistency === "stale" ? context.service.viewNow(tenant, { evenUnborn: true }) : null;
  if (view === null) return knownLater(call, context, consistency, build);
  const state = knownOf(view, call);
  const again = (error: unknown): Promise<T> => rebuilt(call, context, build, state, error);
  try {
    const built = build(asKnown(call, context, state));
    return built instanceof Promise ? built.catch(again) : built;
  } catch (error) {
    return again(error);
  }
}

async function knownLater<T>(
  call: Call,
  context: Context,
  consistency: "stale" | "linearizable",
  build: (state: Known) => T | Promise<T>,
): Promise<T> {
  const tenant = call.params["tenant"] as string;
  const state = await context.service.read(tenant, { consistency, evenUnborn: true }, (view) =>
    knownOf(view, call),
  );
  try {
    return await build(asKnown(call, context, state));
  } catch (error) {
    if (consistency !== "stale") throw error;
    return await rebuilt(call, context, build, state, error);
  }
}

/** Once more, after `error`, if the newest state is another than `before`. */
async function rebuilt<T>(
  call: Call,
  context: Context,
  build: (state: Known) => T | Promise<T>,
  before: KnownState,
  error: unknown,
): Promise<T> {
  if (!(error instanceof Problem)) throw error;
  const tenant = call.params["tenant"] as string;
  const newest = await context.service.read(tenant, { consistency: "linearizable" }, (view) =>
    knownOf(view, call),
  );
  // What is wrong in itself is not parsed twice: a hostile text takes all the time that parsers are given.
  if (isDeepStrictEqual(newest, before)) throw error;
  return build(asKnown(call, context, newest));
}

function knownOf(view: TenantView, call: Call): KnownState {
  return { contentBytesMax: getQuotas(view).contentBytes, shapes: collectShapes(view, call) };
}

function asKnown(call: Call, { secrets }: Context, { contentBytesMax, shapes }: KnownState): Known {
  return {
    tenant: call.params["tenant"] as string,
    secrets,
    contentBytesMax,
    shape: (namespace, name) => shapes.get(`${namespace}/${name}`) ?? null,
  };
}

interface KnownState {
  readonly contentBytesMax: number;
  readonly shapes: Shapes;
}

type Shapes = ReadonlyMap<string, Shape | null>;

/** The shapes of all configs that the request names. */
function collectShapes(view: TenantView, call: Call): Shapes {
  const shapes = new Map<string, Shape | null>();
  const body = call.body as { readonly then?: readonly unknown[] } | undefined;
  const targets =
    call.params["name"] !== undefined
      ? [call.params]
      : ((body?.then ?? []) as readonly Readonly<Record<string, string>>[]);
  for (const { namespace, name } of targets) {
    if (namespace === undefined || name === undefined) continue;
    shapes.set(`${namespace}/${name}`, shapeOf(getConfig(view, namespace, name)));
  }
  return shapes;
}

// --- transactions --------------------------------------------------------------------------------------------------------

function checkOperation(operation: unknown, pointer: string): TransactionOperation {
  const op = (operation as { op?: unknown } | null)?.op;
  if (typeof op !== "string" || !Object.hasOwn(transactionOperations, op))
    throw invalid(`${pointer}/op: Give one of ${Object.keys(transactionOperations).join(", ")}`, [
      { pointer: `${pointer}/op`, detail: "This operation is not known here" },
    ]);
  return check(transactionOperations[op as keyof typeof transactionOperations], operation, pointer);
}

function guardScope(
  call: Call,
  touched: readonly { readonly namespace: string }[],
  operations: readonly TransactionOperation[],
): void {
  const { principal } = call;
  if (principal === null) throw new Error("A transaction needs a principal");
  for (const { namespace } of touched) authorizeNamespace(principal, namespace);
  for (const operation of operations) {
    if (operation.op !== "namespace.put") continue;
    if (principal.kind === "write")
      throw new Problem("forbidden", "A write key may not set options of namespaces");
    if (typeof operation.extends === "string") authorizeNamespace(principal, operation.extends);
  }
}

/** Contents are parsed for at most about so long before others of the event loop get their turn. */
const parseMsMax = 20;

/** Later operations see what earlier ones made of a config. */
async function buildAll(
  operations: readonly TransactionOperation[],
  state: Known,
): Promise<ConfigAction[]> {
  const made = new Map<string, Shape | null>();
  const present: Known = {
    ...state,
    shape: (namespace, name) => {
      const key = `${namespace}/${name}`;
      return made.has(key) ? (made.get(key) ?? null) : state.shape(namespace, name);
    },
  };
  const actions: ConfigAction[] = [];
  let turnFrom = performance.now();
  for (const [i, operation] of operations.entries()) {
    if (performance.now() - turnFrom > parseMsMax) {
      await new Promise((resolve) => setImmediate(resolve));
      turnFrom = performance.now();
    }
    const pointer = `/then/${i}`;
    const action = buildAction(operation, present, pointer);
    actions.push(action);
    if (operation.op === "config.put")
      made.set(
        `${operation.namespace}/${operation.name}`,
        resultingShape(operation, present, pointer),
      );
    if (operation.op === "config.delete")
      made.set(`${operation.namespace}/${operation.name}`, null);
    const content = "content" in action ? action.content : undefined;
    if (content?.secret === undefined || action.op === "namespace.put") continue;
    const { namespace, name } = action;
    const shape = present.shape(namespace, name);
    if (shape === null || shape.latestHash === content.hash) continue;
    const { version: latestVersion } = content.secret;
    made.set(`${namespace}/${name}`, { ...shape, latestVersion, latestHash: content.hash });
  }
  return actions;
}

/** @throws Problem `invalid`, or `precondition-failed` for a tag that nothing here can have */
function conditionOf(
  condition: NonNullable<TransactionRequest["if"]>[number],
  i: number,
  { service }: Context,
): TransactionCondition {
  const { namespace, name, revision, absent, etag } = condition;
  const refusal = (detail: string): Problem =>
    invalid(`/if/${i}: ${detail}`, [{ pointer: `/if/${i}`, detail }]);
  if ([revision, absent, etag].filter((one) => one !== undefined).length !== 1)
    throw refusal("Give one of etag, revision and absent");
  if (etag === undefined)
    return {
      namespace,
      name,
      ...(absent === true ? { absent } : { revision: revision as number }),
    };
  const tag = parsedTag(etag);
  if (tag === null) throw refusal('Give the etag as it came, like "1790000000-7" with its quotes');
  if (typeof tag === "number") return { namespace, name, revision: tag };
  // A node that does not know tags would take no heed of this one.
  if (service.semantics >= tagsLevel) return { namespace, name, tag };
  const detail = `Read ${namespace}/${name} again: its etag is another`;
  throw new Problem("precondition-failed", detail, { errors: [{ pointer: `/if/${i}`, detail }] });
}

// --- reads ---------------------------------------------------------------------------------------------------------------

function configTag(
  { semantics }: Pick<ConfigService, "semantics">,
  { epoch }: TenantView,
  { revision }: ConfigRow,
): string {
  return revisionTag(semantics, epoch, revision);
}

function configOf(view: TenantView, call: Call): ConfigRow {
  const { namespace, name } = call.params as { namespace: string; name: string };
  const row = getConfig(view, namespace, name);
  if (row === null) throw new Problem("not-found", `There is no config ${namespace}/${name}`);
  return row;
}

function versionOf(view: TenantView, row: ConfigRow, given: string): VersionRow {
  if (!/^\d{1,15}$|^sha256:[0-9a-f]{64}$/.test(given))
    throw invalid("Name a version by its number or by sha256:<64 hex digits>");
  const version = getVersion(
    view,
    row.namespace,
    row.name,
    given.startsWith("sha256:") ? given : Number(given),
  );
  if (version === null)
    throw new Problem("not-found", `There is no version ${given} of ${row.namespace}/${row.name}`);
  return version;
}

function diffAnswer(
  view: TenantView,
  row: ConfigRow,
  query: { readonly from?: string; readonly to?: string },
): Answer {
  const latest = latestVersion(view, row);
  if (latest === null)
    throw new Problem("not-found", `${row.namespace}/${row.name} has no versions yet`);
  const to = query.to === undefined ? latest : versionOf(view, row, query.to);
  const from =
    query.from !== undefined
      ? versionOf(view, row, query.from)
      : row.default === null
        ? to
        : versionOf(view, row, String(row.default));
  // Of secrets only whether they are equal is told.
  const text = ({ version, secret }: VersionRow): string =>
    secret === true ? "" : (getText(view, row.namespace, row.name, version) ?? "");
  return json({
    from: versionAnswer(from),
    to: versionAnswer(to),
    equal: from.hash === to.hash,
    unified: unifiedDiff(text(from), text(to), [
      `${row.name} version ${from.version}`,
      `${row.name} version ${to.version}`,
    ]),
  });
}

// --- answers -------------------------------------------------------------------------------------------------------------

function versionPath(call: Call, version: number): string {
  const { tenant, namespace, name } = call.params;
  return `/v1/tenants/${tenant}/namespaces/${namespace}/configs/${name}/versions/${version}`;
}

function configChanged(
  call: Call,
  changed: Changed<"config.put" | "config.delete" | "config.undelete">,
): Answer {
  const { config } = changed.result;
  return changedAnswer(changed, configAnswer(config, changed.tag(config.revision)), {
    revision: config.revision,
    location: call.target.split("?", 1)[0] as string,
  });
}

/** A release replaces the one before: 200, although it is a new one. */
function released(changed: Changed<"release.put" | "rollback">): Answer {
  return changedAnswer({ ...changed, created: false }, releaseAnswer(changed.result.release), {
    revision: changed.result.config.revision,
  });
}

function resultAnswer<Op extends TransactionOperation["op"]>(
  op: Op,
  result: ResultOf<Op>,
  { tag }: Pick<Changed<Op>, "tag">,
): unknown {
  const any = result as Partial<ResultOf<"publish">> &
    Partial<ResultOf<"namespace.put">> &
    Partial<ResultOf<"version.delete">>;
  switch (op) {
    case "publish":
      return {
        ...versionAnswer(any.version as VersionRow),
        release: releaseAnswer(any.release as ReleaseRow),
      };
    case "version.create":
      return versionAnswer(any.version as VersionRow);
    case "version.delete":
      return { deleted: any.deleted };
    case "release.put":
    case "rollback":
      return releaseAnswer(any.release as ReleaseRow);
    case "namespace.put": {
      const row = any.namespace as NonNullable<typeof any.namespace>;
      return { ...row, createdAt: time(row.createdAt) };
    }
    default: {
      const config = any.config as ConfigInfo;
      return configAnswer(config, tag(config.revision));
    }
  }
}
