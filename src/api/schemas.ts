/**
 * The public contract as data: the JSON that goes in and comes out of every route. The gateway validates requests with
 * these, OpenAPI is generated from them, clients take their types from them.
 *
 * Times are RFC 3339 in UTC with milliseconds. Revisions, versions and releases are whole numbers counted from 1.
 * Objects are closed: a field that is not listed is refused, because a misspelled field that is ignored is a change that
 * silently does not happen.
 */
import {
  Type,
  type Static,
  type TInteger,
  type TNull,
  type TOptional,
  type TProperties,
  type TSchema,
  type TString,
  type TUnion,
  type TUnsafe,
} from "@sinclair/typebox";

const closed = { additionalProperties: false } as const;

/** A request's object: closed, named in OpenAPI. */
function request<P extends TProperties>($id: string, properties: P, description?: string) {
  return Type.Object(properties, { ...closed, $id, ...(description && { description }) });
}

/** An answer's object: open, because later versions may add fields and clients must not mind. */
function answer<P extends TProperties>($id: string, properties: P, description?: string) {
  return Type.Object(properties, { $id, ...(description && { description }) });
}

function orNull<T extends TSchema>(schema: T) {
  return Type.Union([schema, Type.Null()]);
}

function literals<const T extends readonly string[]>(values: T) {
  return Type.Union(values.map((value) => Type.Literal(value))) as unknown as TUnsafe<T[number]>;
}

/**
 * The schema a place is documented with, when it is checked by other means: rules by the model, operations of a
 * transaction one by one. A symbol, so that it is never served.
 */
export const documentedAs: unique symbol = Symbol("documentedAs");

function documented<T extends TSchema>(schema: T): TUnsafe<Static<T>> {
  return Type.Unknown({ [documentedAs]: schema });
}

const Time = Type.String({ format: "date-time" });
const Count = Type.Integer({ minimum: 0 });
const Positive = Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER });
const Name = Type.String({ description: "[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?" });
const TenantName = Type.String({ description: "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?" });
const Hash = Type.String({ description: "sha256:<hex> over the UTF-8 bytes of the content" });
const Description = Type.String({ maxLength: 4_096 });
const Message = Type.String({ maxLength: 4_096 });

export const Format = literals(["json", "yaml", "toml", "properties", "text", "flag"]);

const Tags = Type.Record(Type.String(), Type.String({ maxLength: 1_024 }), {
  description:
    "At most 64; names of 1 to 128 characters without quotes, backslashes and control characters",
});

/** What may stand as content in a request. */
export const ContentInput = Type.Unknown({
  description:
    "The content as text. Formats json and flag also take the JSON value itself, unless it is a string: that is always text.",
});

export const SchemaInput = Type.Unknown({
  description: "A JSON Schema (2020-12) as JSON or as text; null removes it.",
});

// --- problems ----------------------------------------------------------------------------------------------------------

export const ProblemAnswer = answer(
  "Problem",
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer(),
    detail: Type.String(),
    code: Type.String(),
    requestId: Type.String(),
    errors: Type.Optional(
      Type.Array(Type.Object({ pointer: Type.String(), detail: Type.String() })),
    ),
  },
  "RFC 9457 application/problem+json",
);

export const ProblemTypeAnswer = answer("ProblemType", {
  code: Type.String(),
  status: Type.Integer(),
  title: Type.String(),
  retryable: Type.Boolean({ description: "Whether repeating the same request may help" }),
});

// --- tenants and keys ----------------------------------------------------------------------------------------------------

const quotaMeanings = {
  configs: "Configs that are not deleted",
  contentBytes: "UTF-8 bytes of one content",
  rulesPerRelease: "Rules of one release",
  versionsPerConfig: "Versions kept; older ones that no release needs go",
  keys: "Keys, expired ones included",
  bytes: "Contents of all kept versions together",
  auditRecords: "Audit records kept",
  auditDays: "Days that an audit record is kept at most",
  watchers: "Watches open at once, on each node",
  watchBytesPerSecond:
    "Sent to all watches together, on each node that clients watch at, with bursts of 5 s (what feeds the watches of a node without a replica counts once where it comes from, too); beyond it streams are told later, and the latest of each at once",
  requestsPerSecond: "Of all keys together, on each node, with bursts of 5 s",
  writesPerSecond: "Changes among them",
  requestsPerSecondPerKey: "Of each key by itself",
} as const;
const quotaFields = (of: (description: string) => TSchema): Record<QuotaName, TSchema> =>
  Object.fromEntries(
    Object.entries(quotaMeanings).map(([name, description]) => [name, of(description)]),
  ) as Record<QuotaName, TSchema>;
type QuotaName = keyof typeof quotaMeanings;
export const quotaNames = Object.keys(quotaMeanings) as QuotaName[];

const quotaMax = Number.MAX_SAFE_INTEGER;
const Quota = (description: string) => Type.Integer({ minimum: 0, maximum: quotaMax, description });

export const QuotasSchema = request(
  "Quotas",
  quotaFields((text) => Type.Optional(Quota(text))) as Record<QuotaName, TOptional<TInteger>>,
);
const QuotaChangesSchema = request(
  "QuotaChanges",
  quotaFields((text) => Type.Optional(orNull(Quota(text)))) as Record<
    QuotaName,
    TOptional<TUnion<[TInteger, TNull]>>
  >,
  "What is left out stays; null: back to the default",
);

const ReplicaCount = Type.Unsafe<number>(
  Type.Union([Type.Literal(1), Type.Literal(3), Type.Literal(5)], {
    description: "Voters; default 3 where possible",
  }),
);

export const TenantCreate = request("TenantCreate", {
  id: TenantName,
  replicas: Type.Optional(ReplicaCount),
  quotas: Type.Optional(QuotasSchema),
  description: Type.Optional(Description),
});
export type TenantCreate = Static<typeof TenantCreate>;

export const TenantsCreate = request("TenantsCreate", {
  tenants: Type.Array(TenantCreate, { minItems: 1, maxItems: 500 }),
});
export type TenantsCreate = Static<typeof TenantsCreate>;

export const TenantUpdate = request("TenantUpdate", {
  quotas: Type.Optional(QuotaChangesSchema),
  description: Type.Optional(Description),
  replicas: Type.Optional(ReplicaCount),
});
export type TenantUpdate = Static<typeof TenantUpdate>;

const tenantFields = {
  id: TenantName,
  description: Type.String(),
  quotas: QuotasSchema,
  replicas: Type.Array(Type.String(), { description: "Names of the nodes that hold a replica" }),
  group: Count,
  incarnation: Count,
  createdAt: Time,
  deletedAt: orNull(Time),
  revision: Type.Integer({ description: "Directory revision of the last change" }),
};

export const TenantAnswer = answer("Tenant", tenantFields);
export type TenantAnswer = Static<typeof TenantAnswer>;

const KeyKindName = literals(["admin", "write", "read", "client"]);

/** Typed as if always there: who asked for a dry run knows that no key was made. */
const Token = Type.Optional(
  Type.String({ description: "Shown this once; absent in a dry run, which makes no key" }),
) as unknown as TString;
const keySecret = Type.Object({ id: Type.String(), kind: KeyKindName, token: Token });

export const TenantCreated = answer("TenantCreated", { ...tenantFields, key: keySecret });
export type TenantCreated = Static<typeof TenantCreated>;

export const TenantsCreated = answer(
  "TenantsCreated",
  {
    items: Type.Array(
      Type.Object({
        id: TenantName,
        group: Count,
        replicas: Type.Array(Type.String(), { description: "Names of the nodes" }),
        key: keySecret,
      }),
    ),
  },
  "In the order asked for; the tokens are shown this once",
);

// --- backup and restore ------------------------------------------------------------------------------------------------------

const Whole = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const ChainHash = Type.String({ pattern: "^sha256:[0-9a-f]{64}$" });
const RestoreSource = Type.Object(
  { tenant: Type.String({ maxLength: 63 }), epoch: Whole, revision: Whole },
  { additionalProperties: false },
);

export const RestoreBegin = request("RestoreBegin", {
  source: RestoreSource,
  meta: Type.Object(
    {
      revision: Whole,
      historyFrom: Whole,
      at: Whole,
      configs: Whole,
      deleted: Whole,
      namespaces: Whole,
      keys: Whole,
      bytes: Whole,
      audits: Whole,
      auditHead: Type.Optional(ChainHash),
      auditFrom: Type.Optional(Whole),
      auditAnchor: Type.Optional(
        Type.Object({ sequence: Whole, hash: ChainHash }, { additionalProperties: false }),
      ),
      idempotencyFrom: Whole,
      idempotencyTo: Whole,
    },
    { additionalProperties: false, description: "`meta` of the backup's first line" },
  ),
  description: Type.Optional(Description),
  quotas: Type.Optional(QuotasSchema),
  replicas: Type.Optional(
    Type.Unsafe<number>(
      Type.Union([Type.Literal(1), Type.Literal(3), Type.Literal(5)], {
        description: "As it had; where there are fewer nodes, as a new tenant gets",
      }),
    ),
  ),
  replace: Type.Optional(
    Type.Boolean({ description: "Purge the tenant that has the name; default: refuse" }),
  ),
  adminKey: Type.Optional(
    Type.Boolean({ description: "Make an admin key; default: the backup's keys only" }),
  ),
});
export type RestoreBegin = Static<typeof RestoreBegin>;

export const RestoreBegun = answer("RestoreBegun", {
  ...tenantFields,
  key: Type.Optional(keySecret),
});
export type RestoreBegun = Static<typeof RestoreBegun>;

export const RestoreRows = request("RestoreRows", {
  rows: Type.Array(Type.Tuple([Type.String({ maxLength: 2_048 }), Type.String()]), {
    maxItems: 10_000,
    description: "Key and JSON text of each row, in order of keys",
  }),
});
export type RestoreRows = Static<typeof RestoreRows>;

export const RestoreAnswer = answer("Restore", {
  source: RestoreSource,
  part: Type.Integer({ description: "The number of the part that is expected next, from 0" }),
  rows: Type.Integer({ description: "How many are there" }),
  last: Type.String({ description: "Key of the last of them" }),
});
export type RestoreAnswer = Static<typeof RestoreAnswer>;

export const RestoreProgress = answer("RestoreProgress", {
  part: Type.Integer(),
  rows: Type.Integer(),
});
export type RestoreProgress = Static<typeof RestoreProgress>;

export const RestoreFinish = request("RestoreFinish", { rows: Whole });
export type RestoreFinish = Static<typeof RestoreFinish>;

export const RestoreFinished = answer("RestoreFinished", {
  tenant: Type.String(),
  epoch: Type.Integer({ description: "Cursors of other epochs get a sync" }),
  revision: Type.Integer(),
  rows: Type.Integer(),
});
export type RestoreFinished = Static<typeof RestoreFinished>;
const KeyScope = literals(["secrets"]);

export const KeyCreate = request("KeyCreate", {
  kind: KeyKindName,
  namespaces: Type.Optional(
    Type.Array(Name, {
      minItems: 1,
      maxItems: 100,
      uniqueItems: true,
      description: "Absent: all of them",
    }),
  ),
  expiresAt: Type.Optional(Type.String({ description: "RFC 3339, in the future" })),
  scopes: Type.Optional(
    Type.Array(KeyScope, {
      maxItems: 1,
      description: "secrets: reads the values of secret configs",
    }),
  ),
  description: Type.Optional(Description),
});
export type KeyCreate = Static<typeof KeyCreate>;

const keyFields = {
  id: Type.String(),
  kind: KeyKindName,
  namespaces: orNull(Type.Array(Name)),
  expiresAt: orNull(Time),
  scopes: Type.Array(KeyScope),
  description: Type.String(),
  createdAt: Time,
  lastUsedAt: orNull(
    Type.String({ format: "date-time", description: "To about a minute; null: not known to be" }),
  ),
  replacedBy: orNull(Type.String({ description: "Key that it was rotated to" })),
};

export const KeyAnswer = answer("Key", keyFields);
export type KeyAnswer = Static<typeof KeyAnswer>;
export const KeyCreated = answer(
  "KeyCreated",
  { ...keyFields, token: Token },
  "The token is shown once; only its hash is kept",
);
export type KeyCreated = Static<typeof KeyCreated>;

export const KeyRotate = request("KeyRotate", {
  overlapSeconds: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: 31_536_000,
      description: "How long the old key holds on; default 3600; 0 ends it at once",
    }),
  ),
});
export type KeyRotate = Static<typeof KeyRotate>;

export const KeyRotated = answer("KeyRotated", {
  ...keyFields,
  token: Token,
  replaces: Type.Object({ id: Type.String(), expiresAt: orNull(Time) }),
});
export type KeyRotated = Static<typeof KeyRotated>;

export const SecretsRotate = request("SecretsRotate", {});
export const SecretsRotated = answer("SecretsRotated", {
  rotated: Type.Integer({ description: "Versions that were wrapped anew" }),
  key: orNull(Type.String({ description: "Id of the active key" })),
  more: Type.Boolean({ description: "Whether there are more: repeat it" }),
});
export type SecretsRotated = Static<typeof SecretsRotated>;

export const UsageAnswer = answer("Usage", {
  revision: Count,
  epoch: Count,
  historyFrom: Count,
  configs: Count,
  deletedConfigs: Count,
  namespaces: Count,
  keys: Count,
  bytes: Type.Integer({ description: "All kept versions of all configs" }),
  requests: Type.Integer({
    minimum: 0,
    description:
      "Since the tenant was made, told about once a minute; what a node had not told when it was killed is missing",
  }),
  limitedRequests: Type.Integer({ minimum: 0, description: "Of them refused with 429" }),
  watchBytes: Type.Integer({ minimum: 0, description: "Sent to watches; told like requests" }),
  heldWatches: Type.Integer({
    minimum: 0,
    description: "How often a watch had to wait because of watchBytesPerSecond; told like requests",
  }),
  quotas: Type.Object(quotaFields(Quota) as Record<QuotaName, TInteger>),
});
export type UsageAnswer = Static<typeof UsageAnswer>;

export const AuditRecord = answer("AuditRecord", {
  sequence: Count,
  revision: Count,
  at: Time,
  actor: Type.Object({ kind: Type.String(), keyId: Type.String() }),
  action: Type.String(),
  target: Type.String(),
  requestId: orNull(Type.String()),
  address: orNull(Type.String()),
  before: orNull(
    Type.String({
      description:
        "What the change found: for new content the hash of the latest before, else a hash of the target with all its settings",
    }),
  ),
  after: orNull(Type.String({ description: "What the change left, in the same way" })),
  previous: orNull(
    Type.String({ description: "Hash of the record before; null: from before there was a chain" }),
  ),
  hash: orNull(
    Type.String({
      description:
        "sha256 over the JSON text of [previous, sequence, revision, at in ms since 1970, actor.kind, actor.keyId, action, target, requestId, address, before, after]",
    }),
  ),
});
export type AuditRecord = Static<typeof AuditRecord>;

export const AuditPage = answer("AuditPage", {
  items: Type.Array(AuditRecord),
  next: Type.Optional(Type.String({ description: "Send it as `since` for the next page" })),
  anchor: orNull(
    Type.Object(
      { sequence: Count, hash: Type.String() },
      { description: "The last record that is no longer kept" },
    ),
  ),
  head: orNull(Type.String({ description: "Hash of the newest record" })),
});
export type AuditPage = Static<typeof AuditPage>;

export const GroupAnswer = answer("Group", {
  leader: orNull(Type.String()),
  term: Count,
  commit: Count,
  applied: Count,
  revision: Count,
  epoch: Count,
  group: Count,
  replicas: Type.Array(
    Type.Object({
      node: Type.String(),
      id: Count,
      role: Type.String(),
      match: orNull(Count),
      state: Type.String(),
    }),
  ),
});
export type GroupAnswer = Static<typeof GroupAnswer>;

export const TransferRequest = request("GroupTransfer", { to: Type.String() });
export type TransferRequest = Static<typeof TransferRequest>;

// --- issuers ---------------------------------------------------------------------------------------------------------------

const ClaimName = Type.String({
  minLength: 1,
  maxLength: 256,
  description: "A claim, or a JSON Pointer into the claims, e.g. /realm_access/roles",
});
const Claim = Type.Object({ claim: ClaimName }, closed);
const ClaimValue = Type.String({ maxLength: 1_024 });

const IssuerRule = Type.Object(
  {
    match: Type.Optional(
      Type.Record(
        Type.String({ minLength: 1, maxLength: 256 }),
        Type.Union([ClaimValue, Type.Array(ClaimValue, { minItems: 1, maxItems: 100 })]),
        { description: "Claims, each of which must have (one of) the values", maxProperties: 20 },
      ),
    ),
    tenant: Type.Union([TenantName, Claim], {
      description: "For which tenant, by name or by a claim that names it or several",
    }),
    kind: KeyKindName,
    namespaces: Type.Optional(
      orNull(
        Type.Union([Type.Array(Name, { minItems: 1, maxItems: 100 }), Claim], {
          description: "Absent: all of them",
        }),
      ),
    ),
  },
  closed,
);

/** Public-key signatures only: with a shared secret whoever can check a token can make one. */
const Algorithm = literals([
  "RS256",
  "RS384",
  "RS512",
  "PS256",
  "PS384",
  "PS512",
  "ES256",
  "ES384",
  "ES512",
  "EdDSA",
]);

export const IssuerPut = request("IssuerPut", {
  issuer: Type.String({ minLength: 1, maxLength: 512, description: "The claim iss, exactly" }),
  audience: Type.Union([ClaimValue, Type.Array(ClaimValue, { minItems: 1, maxItems: 20 })], {
    description: "The claim aud must hold (one of) them",
  }),
  jwks: Type.Optional(
    Type.Object(
      { keys: Type.Array(Type.Record(Type.String(), Type.Unknown()), { minItems: 1 }) },
      { description: "Public keys; without them and jwksUri they are found by discovery" },
    ),
  ),
  jwksUri: Type.Optional(Type.String({ maxLength: 1_024 })),
  algorithms: Type.Optional(
    Type.Array(Algorithm, {
      minItems: 1,
      maxItems: 10,
      uniqueItems: true,
      description: "Default RS256, ES256, EdDSA",
    }),
  ),
  clockSkewSeconds: Type.Optional(
    Type.Integer({ minimum: 0, maximum: 300, description: "Default 30" }),
  ),
  insecureHttp: Type.Optional(
    Type.Boolean({ description: "Fetch keys by http, from this machine only; for trying out" }),
  ),
  rules: Type.Array(IssuerRule, {
    minItems: 1,
    maxItems: 100,
    description: "The first that matches the token and the tenant counts",
  }),
});
export type IssuerPut = Static<typeof IssuerPut>;

export const IssuerAnswer = answer("Issuer", {
  name: Name,
  issuer: Type.String(),
  audience: Type.Array(Type.String()),
  jwks: Type.Unknown(),
  jwksUri: orNull(Type.String()),
  algorithms: Type.Array(Algorithm),
  clockSkewSeconds: Count,
  insecureHttp: Type.Boolean(),
  rules: Type.Array(
    Type.Object({
      match: Type.Record(Type.String(), Type.Array(Type.String())),
      tenant: Type.Union([Type.String(), Claim]),
      kind: KeyKindName,
      namespaces: orNull(Type.Union([Type.Array(Type.String()), Claim])),
    }),
  ),
  createdAt: Time,
  revision: Type.Integer({ description: "Directory revision of the last change" }),
});
export type IssuerAnswer = Static<typeof IssuerAnswer>;

// --- namespaces and configs ---------------------------------------------------------------------------------------------

export const NamespacePut = request("NamespacePut", {
  extends: Type.Optional(orNull(Name)),
  protected: Type.Optional(Type.Boolean()),
});
export type NamespacePut = Static<typeof NamespacePut>;

export const NamespaceAnswer = answer("Namespace", {
  namespace: Name,
  extends: orNull(Name),
  protected: Type.Boolean(),
  revision: Count,
  createdAt: Time,
});
export type NamespaceAnswer = Static<typeof NamespaceAnswer>;

const Label = Type.String({ maxLength: 1_024 });
const LabelOrLabels = Type.Union([Label, Type.Array(Label, { minItems: 1, maxItems: 1_000 })]);

const LabelOperators = Type.Object(
  {
    not: Type.Optional(LabelOrLabels),
    prefix: Type.Optional(Label),
    suffix: Type.Optional(Label),
    exists: Type.Optional(Type.Boolean()),
    semver: Type.Optional(Label),
    gt: Type.Optional(Type.Number()),
    gte: Type.Optional(Type.Number()),
    lt: Type.Optional(Type.Number()),
    lte: Type.Optional(Type.Number()),
  },
  { ...closed, minProperties: 1 },
);

export const Rule = request("Rule", {
  id: Name,
  match: Type.Record(Type.String(), Type.Union([LabelOrLabels, LabelOperators])),
  rollout: Type.Optional(
    Type.Object(
      {
        percentage: Type.Number({ minimum: 0, maximum: 100 }),
        by: Type.String(),
        salt: Type.Optional(Type.String({ maxLength: 256 })),
        algorithm: Type.Optional(Type.Literal("murmur3-100k")),
      },
      closed,
    ),
  ),
  from: Type.Optional(Type.String({ description: "RFC 3339" })),
  until: Type.Optional(Type.String({ description: "RFC 3339" })),
  version: Positive,
});

const configPutFields = {
  format: Type.Optional(Format),
  content: Type.Optional(ContentInput),
  schema: Type.Optional(SchemaInput),
  secret: Type.Optional(
    Type.Boolean({
      description:
        "Contents are sealed, and shown to keys with the scope secrets only; said at creation, and never changed",
    }),
  ),
  description: Type.Optional(Description),
  tags: Type.Optional(Tags),
};
const contentFields = { content: ContentInput, message: Type.Optional(Message) };
const versionDeleteFields = {
  versions: Type.Array(Positive, { minItems: 1, maxItems: 1_000, uniqueItems: true }),
};
const releasePutFields = {
  rules: Type.Array(documented(Rule)),
  default: orNull(Positive),
  message: Type.Optional(Message),
};
const rollbackFields = {
  toRelease: Type.Optional(Positive),
  message: Type.Optional(Message),
};

export const ConfigPut = request("ConfigPut", configPutFields);
export type ConfigPut = Static<typeof ConfigPut>;
export const ContentPut = request("ContentPut", contentFields);
export type ContentPut = Static<typeof ContentPut>;
export const VersionsDelete = request("VersionsDelete", versionDeleteFields);
export type VersionsDelete = Static<typeof VersionsDelete>;
export const ReleasePut = request("ReleasePut", releasePutFields);
export type ReleasePut = Static<typeof ReleasePut>;
export const RollbackRequest = request("Rollback", rollbackFields);
export type RollbackRequest = Static<typeof RollbackRequest>;

const releaseFields = {
  release: Count,
  rules: Type.Array(Rule),
  default: orNull(Count),
};

const configFields = {
  namespace: Name,
  name: Name,
  uid: Type.String({ description: "Tells a config from one that had its name before" }),
  format: Format,
  description: Type.String(),
  tags: Type.Record(Type.String(), Type.String()),
  secret: Type.Boolean(),
  schemaHash: orNull(Hash),
  revision: Type.Integer({ description: "Revision of its last change" }),
  etag: Type.Optional(
    Type.String({
      description:
        "For If-Match and the conditions of a transaction: it never matches again once the config was changed or the tenant restored. Absent in dry runs and watches",
    }),
  ),
  createdAt: Time,
  updatedAt: Time,
  latestVersion: Type.Integer({ minimum: 0, description: "0: none yet" }),
  latestHash: orNull(Hash),
  versions: Type.Integer({ minimum: 0, description: "How many are kept" }),
  release: orNull(Type.Integer({ description: "Number of the release in force" })),
  default: orNull(Type.Integer({ description: "Version its default names" })),
  ruleCount: Count,
  deletedAt: orNull(Time),
};
export const ConfigAnswer = answer("Config", configFields);
export type ConfigAnswer = Static<typeof ConfigAnswer>;

export const ConfigDetailAnswer = answer("ConfigDetail", {
  ...configFields,
  schema: Type.Unknown({ description: "The JSON Schema its content is checked with, or null" }),
  rules: Type.Array(Rule),
});
export type ConfigDetailAnswer = Static<typeof ConfigDetailAnswer>;

const versionFields = {
  version: Count,
  hash: Hash,
  bytes: Count,
  format: Format,
  schemaHash: orNull(Hash),
  message: Type.String(),
  at: Time,
  by: Type.String(),
  revision: Count,
};
export const VersionAnswer = answer("Version", versionFields);
export type VersionAnswer = Static<typeof VersionAnswer>;
export const VersionContentAnswer = answer("VersionWithContent", {
  ...versionFields,
  content: Type.String({ description: "The content as text" }),
});
export type VersionContentAnswer = Static<typeof VersionContentAnswer>;

export const ReleaseAnswer = answer("Release", {
  ...releaseFields,
  message: Type.String(),
  at: Time,
  by: Type.String(),
  revision: Count,
  rollbackOf: orNull(Count),
});
export type ReleaseAnswer = Static<typeof ReleaseAnswer>;

export const ConfigPutAnswer = answer("ConfigPutDone", {
  ...configFields,
  created: Type.Boolean(),
});
export type ConfigPutAnswer = Static<typeof ConfigPutAnswer>;

export const VersionsDeleteAnswer = answer("VersionsDeleted", {
  deleted: Type.Array(Count),
});

export const PublishAnswer = answer("Published", {
  ...versionFields,
  release: ReleaseAnswer,
});
export type PublishAnswer = Static<typeof PublishAnswer>;

export const DiffAnswer = answer("Diff", {
  from: VersionAnswer,
  to: VersionAnswer,
  equal: Type.Boolean(),
  unified: Type.String({ description: "Line differences in unified form, three lines around" }),
});
export type DiffAnswer = Static<typeof DiffAnswer>;

// --- transactions --------------------------------------------------------------------------------------------------------

const target = { namespace: Name, name: Name };

function operation<const Op extends string, P extends TProperties>(op: Op, properties: P) {
  return Type.Object({ op: Type.Literal(op), ...properties }, closed);
}

/** By `op`, so that an error can say which field of which operation is wrong. */
export const transactionOperations = {
  "config.put": operation("config.put", { ...target, ...configPutFields }),
  "config.delete": operation("config.delete", target),
  "config.undelete": operation("config.undelete", target),
  "version.create": operation("version.create", { ...target, ...contentFields }),
  "version.delete": operation("version.delete", { ...target, ...versionDeleteFields }),
  "release.put": operation("release.put", { ...target, ...releasePutFields }),
  publish: operation("publish", { ...target, ...contentFields }),
  rollback: operation("rollback", { ...target, ...rollbackFields }),
  "namespace.put": operation("namespace.put", {
    namespace: Name,
    extends: Type.Optional(orNull(Name)),
    protected: Type.Optional(Type.Boolean()),
  }),
} as const;

export type TransactionOperation = Static<
  (typeof transactionOperations)[keyof typeof transactionOperations]
>;
const TransactionOperation = Type.Union(Object.values(transactionOperations), {
  $id: "TransactionOperation",
});

export const transactionOperationsMax = 256;

export const TransactionRequest = request("Transaction", {
  if: Type.Optional(
    Type.Array(
      Type.Object(
        {
          ...target,
          etag: Type.Optional(
            Type.String({
              maxLength: 64,
              description: "The config's, as it came, with its quotes",
            }),
          ),
          revision: Type.Optional(
            Type.Integer({
              minimum: 1,
              description: "The config's; refused once the tenant was restored or recovered",
            }),
          ),
          absent: Type.Optional(Type.Literal(true)),
        },
        { ...closed, description: "One of etag, revision and absent" },
      ),
      { maxItems: transactionOperationsMax },
    ),
  ),
  then: Type.Array(documented(TransactionOperation), {
    minItems: 1,
    maxItems: transactionOperationsMax,
  }),
});
export type TransactionRequest = Static<typeof TransactionRequest>;

export const TransactionAnswer = answer("TransactionDone", {
  revision: Count,
  results: Type.Array(Type.Unknown(), { description: "What each operation alone would answer" }),
});

// --- effective values and watch -------------------------------------------------------------------------------------------

export const EffectiveValue = answer("EffectiveValue", {
  version: Count,
  hash: Hash,
  format: Format,
  content: Type.Optional(Type.String({ description: "Absent in a watch when over 64 KiB" })),
});
export type EffectiveValue = Static<typeof EffectiveValue>;

export const ValuesAnswer = answer("Values", {
  revision: Count,
  values: Type.Record(Type.String(), EffectiveValue),
});
export type ValuesAnswer = Static<typeof ValuesAnswer>;

export const ExplainAnswer = answer("Explanation", {
  name: Name,
  namespace: orNull(
    Type.String({ description: "Where the config was found: it, or one that it extends" }),
  ),
  chain: Type.Array(Type.String(), { description: "Namespaces looked at, nearest first" }),
  revision: Count,
  release: Count,
  version: orNull(Count),
  rule: orNull(Type.String()),
  reason: Type.String(),
  rules: Type.Array(
    Type.Object({
      rule: Type.String(),
      version: Count,
      outcome: literals(["won", "schedule", "labels", "rollout", "not-reached"]),
      detail: Type.String(),
      labels: Type.Array(Type.Unknown()),
      rollout: Type.Unknown(),
    }),
    { description: "Rule by rule, in order" },
  ),
});

export const watchFrameKinds = ["sync", "commit", "bookmark", "goodbye"] as const;

export const WatchFrame = answer(
  "WatchFrame",
  {
    event: literals(watchFrameKinds),
    id: Type.Optional(
      Type.String({
        description: "Cursor <epoch>-<revision>; send it as `since`; none on goodbye",
      }),
    ),
    data: Type.Unknown({
      description:
        "sync: {revision, configs:[Config…]} or, on a namespace's watch, {revision, values:{name: EffectiveValue}}. " +
        'commit: {revision, at, changes:[…]}; on a namespace\'s watch a change is {type: "put", name, …EffectiveValue}, or {type: "delete", name} once nothing is released for these labels. ' +
        "bookmark: {revision}: everything up to it was sent. goodbye: {reason}: the stream ends, come back with the last cursor unless the reason is unauthorized.",
    }),
  },
  "In SSE form: event, id and data lines of one event",
);
export interface WatchFrame {
  readonly event: (typeof watchFrameKinds)[number];
  readonly id?: string;
  readonly data: unknown;
}

export const WatchPoll = answer(
  "WatchPoll",
  {
    frames: Type.Array(WatchFrame, {
      description:
        "In order. Never empty: when nothing happened in time it holds one bookmark. The last id is the next `since`.",
    }),
  },
  "The same frames as the stream's, by long polling",
);

// --- apply feedback --------------------------------------------------------------------------------------------------------

const Instance = Type.String({
  pattern: "^[!-~]{1,128}$",
  description: "What the client calls itself: a pod, a host, a device",
});
const FeedbackState = literals(["applied", "rejected"]);
const Reason = Type.String({ maxLength: 500 });

export const FeedbackPost = request("FeedbackPost", {
  instance: Instance,
  values: Type.Array(
    Type.Object(
      { name: Name, version: Positive, state: FeedbackState, reason: Type.Optional(Reason) },
      closed,
    ),
    { minItems: 1, maxItems: 200 },
  ),
});

const FeedbackItem = Type.Object({
  instance: Instance,
  version: Positive,
  state: FeedbackState,
  reason: Type.Optional(Reason),
  at: Time,
});
export type FeedbackItem = Static<typeof FeedbackItem>;

export const FeedbackAnswer = answer("Feedback", {
  instances: Count,
  versions: Type.Array(
    Type.Object({
      version: Positive,
      applied: Count,
      rejected: Count,
      rejections: Type.Array(Type.Object({ instance: Instance, reason: Reason, at: Time }), {
        description: "The latest 20",
      }),
    }),
    { description: "Newest first" },
  ),
  missing: Type.Array(Type.String(), { description: "Nodes that did not say what they were told" }),
  items: Type.Optional(Type.Array(FeedbackItem, { description: "With local=true" })),
});
export type FeedbackAnswer = Static<typeof FeedbackAnswer>;

// --- cluster ---------------------------------------------------------------------------------------------------------------

const NodeEntry = Type.Object({
  name: Type.String(),
  self: Type.Boolean(),
  alive: Type.Boolean(),
  heardMsAgo: orNull(Type.Number()),
  boot: orNull(Type.Number()),
  version: orNull(Type.String({ description: "As the node says itself; null: it did not" })),
  levels: orNull(Type.Object({ min: Type.Integer(), max: Type.Integer() })),
  leaders: orNull(
    Type.Integer({
      minimum: 0,
      description: "Groups with other voters that are led there; null: not said, or no more taken",
    }),
  ),
});

export const ClusterStatusAnswer = answer("ClusterStatus", {
  cluster: Type.String(),
  node: Type.String(),
  version: Type.String(),
  ready: Type.Boolean(),
  transport: literals(["loopback", "nats"]),
  connected: Type.Boolean(),
  nodes: Type.Array(NodeEntry),
  absences: Type.Array(
    Type.Object({
      node: Type.String(),
      from: Time,
      until: orNull(Time),
      seconds: Type.Number(),
      reason: literals(["silent", "restarted"]),
    }),
    { description: "Whom this node lost since its start, oldest first; `until` null: still" },
  ),
  clockAheadMs: Type.Integer({
    description:
      "How far this node's wall clock is ahead of the middle of all that it hears; behind: below 0. Beyond 10 s it goes by the middle",
  }),
  level: orNull(
    Type.Integer({ description: "Commands up to this level are used: all nodes must know it" }),
  ),
  replicas: Type.Object({
    warm: Count,
    leaders: Count,
    given: Type.Integer({
      minimum: 0,
      description: "Leaderships given away since the start, so that nodes lead alike",
    }),
  }),
  admission: Type.Object(
    {
      paceMs: Type.Number({ minimum: 0, description: "Between their batches; 0: nobody waits" }),
      waiting: Count,
      held: Count,
      refused: Count,
      quiet: Count,
      late: Count,
    },
    { description: "How writes of busy tenants are let in here beside those of quiet ones" },
  ),
  journal: Type.Object({ segments: Count, bytes: Count, appends: Count, syncs: Count }),
  environments: Type.Object({ open: Count, cap: Count }),
  quarantine: Type.Array(
    Type.Object({ group: Count, tenant: orNull(Type.String()), reason: Type.String() }),
    { description: "Replicas on this node that damage or a fault keeps from serving, at most 100" },
  ),
  disk: orNull(
    Type.Object({
      level: literals(["free", "low", "out"]),
      freeBytes: Count,
      reserveBytes: Count,
      oldestWriteMs: Type.Number({
        description: "How long the oldest write under way has been so; see CONFLUX_DISK_STALL",
      }),
    }),
  ),
  tenants: Count,
});

export const ClusterMember = answer("ClusterMember", {
  node: Type.String(),
  zone: orNull(Type.String()),
  alive: Type.Boolean(),
  self: Type.Boolean(),
  heardMsAgo: orNull(Type.Number()),
  boot: orNull(Type.Number()),
  registeredAt: orNull(Time),
  phase: literals(["active", "draining", "leaving"]),
  role: literals(["member", "gateway"]),
  system: orNull(literals(["voter", "learner", "joining", "leaving"])),
});

export const NodeRequest = request("NodeRequest", {
  node: Type.String({ maxLength: 128, description: "Name of a node" }),
});

export const UpgradeRequest = request("UpgradeRequest", {
  level: Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: 1_000_000,
      description: "Default: the highest that all nodes know",
    }),
  ),
});

export const UpgradeAnswer = answer("Upgrade", {
  level: Type.Integer({ description: "Of the cluster, from now on" }),
  before: Type.Integer(),
});

export const RepairRequest = request("RepairRequest", {
  tenant: TenantName,
});

export const RepairAnswer = answer("Repair", {
  node: Type.String(),
  tenant: Type.String(),
});

export const JoinRequest = request("JoinRequest", {
  node: Type.String({ maxLength: 128, description: "Name of a node" }),
  zone: Type.Optional(
    Type.String({ maxLength: 128, pattern: "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" }),
  ),
});

export const NodeAnswer = answer("Node", {
  node: Type.String(),
  zone: orNull(Type.String()),
  phase: literals(["active", "draining", "leaving"]),
});

export const tenantStates = ["leaderless", "under-replicated"] as const;

export const ClusterTenant = answer("ClusterTenant", {
  tenant: TenantName,
  group: Count,
  replicas: Type.Array(
    Type.Object({
      node: Type.String(),
      id: Count,
      state: literals(["voter", "joining", "leaving", "lost", "learner"]),
      alive: Type.Boolean({ description: "Whether the node that was asked hears its node" }),
    }),
  ),
  state: literals(["ok", ...tenantStates]),
});

export const HealthAnswer = answer("Health", { status: literals(["ok", "starting"]) });

/** A page of a list. */
export function listOf<T extends TSchema>(item: T) {
  return Type.Object({
    items: Type.Array(item),
    next: Type.Optional(Type.String({ description: "Send it as `cursor` for the next page" })),
  });
}

// --- OpenFeature: the forms are OFREP's, not ours ------------------------------------------------------------------------

const FlagMetadata = Type.Optional(
  Type.Record(Type.String(), Type.Union([Type.Boolean(), Type.String(), Type.Number()])),
);

export const OfrepFailure = answer("OfrepFailure", {
  key: Type.Optional(Type.String({ description: "Absent when the whole request failed" })),
  errorCode: Type.String({
    description: "FLAG_NOT_FOUND, PARSE_ERROR, INVALID_CONTEXT or GENERAL",
  }),
  errorDetails: Type.Optional(Type.String()),
  metadata: FlagMetadata,
});

export const OfrepEvaluation = answer("OfrepEvaluation", {
  key: Type.String(),
  reason: Type.String({ description: "STATIC, TARGETING_MATCH, DEFAULT or DISABLED" }),
  value: Type.Optional(
    Type.Unknown({ description: "Absent where the default of the code applies" }),
  ),
  variant: Type.Optional(Type.String()),
  metadata: FlagMetadata,
});

export const OfrepBulk = answer("OfrepBulk", {
  flags: Type.Array(Type.Union([OfrepEvaluation, OfrepFailure])),
  metadata: FlagMetadata,
  eventStreams: Type.Optional(
    Type.Array(
      Type.Object({
        type: Type.Literal("sse"),
        endpoint: Type.Object({ requestUri: Type.String() }),
        inactivityDelaySec: Count,
      }),
    ),
  ),
});
