/**
 * What each route asks of who calls it: the one table. Nothing is enforced from anywhere else: `route()` takes what it
 * needs from here, so that a route without a row is refused at start and by the compiler. From the same rows come
 * docs/access.md and the matrix of tests that holds every cell of it (test/gateway/access.test.ts).
 */
import type { TenantKeyKind } from "./tokens.ts";

/**
 * public: no key is asked for; cluster: root keys only; tenant and namespace: root, or a key of the tenant in the path,
 * which for `namespace` must cover the namespace in the path.
 */
export type Scope = "public" | "cluster" | "tenant" | "namespace";

/**
 * What a key that is limited to namespaces meets. path: it must cover the namespace in the path; named: those that the
 * query, the body or the key in the path name; filtered: it is let in, and shown only what it covers; hidden: what it
 * does not cover is not found; refused: what is done here reaches beyond namespaces.
 */
export type Limited = "path" | "named" | "filtered" | "hidden" | "refused";

export interface Access {
  readonly scope: Scope;
  /** Kinds of a tenant's keys that are let in. Root keys always are. */
  readonly kinds: readonly TenantKeyKind[];
  readonly limited: Limited;
}

const everyKind: readonly TenantKeyKind[] = ["admin", "write", "read", "client"];
const readers: readonly TenantKeyKind[] = ["admin", "write", "read"];
const writers: readonly TenantKeyKind[] = ["admin", "write"];
const admins: readonly TenantKeyKind[] = ["admin"];

const open: Access = { scope: "public", kinds: [], limited: "filtered" };
const cluster: Access = { scope: "cluster", kinds: [], limited: "refused" };
/** Acts on one tenant, and is the operator's all the same. */
const operator: Access = { scope: "tenant", kinds: [], limited: "refused" };

function tenant(kinds: readonly TenantKeyKind[], limited: Limited): Access {
  return { scope: "tenant", kinds, limited };
}

function namespace(kinds: readonly TenantKeyKind[]): Access {
  return { scope: "namespace", kinds, limited: "path" };
}

export const accessTable = {
  livez: open,
  readyz: open,
  metrics: open,
  openapi: open,
  getProblem: open,

  getClusterStatus: cluster,
  listMembers: cluster,
  joinNode: cluster,
  leaveNode: cluster,
  drainNode: cluster,
  undrainNode: cluster,
  repairReplica: cluster,
  upgradeCluster: cluster,
  listClusterTenants: cluster,
  putIssuer: cluster,
  listIssuers: cluster,
  getIssuer: cluster,
  deleteIssuer: cluster,
  createTenant: cluster,
  createTenants: cluster,
  listTenants: cluster,

  getTenant: tenant(readers, "filtered"),
  updateTenant: tenant(admins, "refused"),
  deleteTenant: operator,
  undeleteTenant: operator,
  transferGroup: operator,
  getBackup: tenant(admins, "refused"),
  beginRestore: operator,
  getRestore: operator,
  putRestoreRows: operator,
  finishRestore: operator,
  getUsage: tenant(readers, "refused"),
  listAudit: tenant(admins, "refused"),
  getGroup: tenant(readers, "refused"),

  rotateSecrets: tenant(admins, "refused"),
  createKey: tenant(admins, "named"),
  listKeys: tenant(admins, "filtered"),
  getKey: tenant(admins, "hidden"),
  deleteKey: tenant(admins, "named"),
  rotateKey: tenant(admins, "named"),

  listNamespaces: tenant(readers, "filtered"),
  getNamespace: namespace(readers),
  putNamespace: namespace(admins),

  putConfig: namespace(writers),
  listConfigs: namespace(readers),
  getConfig: namespace(readers),
  deleteConfig: namespace(writers),
  undeleteConfig: namespace(writers),
  createVersion: namespace(writers),
  listVersions: namespace(readers),
  getVersion: namespace(readers),
  deleteVersions: namespace(writers),
  diffVersions: namespace(readers),
  putRelease: namespace(writers),
  getRelease: namespace(readers),
  publish: namespace(writers),
  rollback: namespace(writers),
  listReleases: namespace(readers),
  runTransaction: tenant(writers, "named"),

  getValue: namespace(everyKind),
  getValues: namespace(everyKind),
  watchTenant: tenant(readers, "named"),
  watchValues: namespace(everyKind),

  evaluateFlags: namespace(everyKind),
  evaluateFlag: namespace(everyKind),
  watchFlags: namespace(everyKind),
  getFlagSet: namespace(readers),
  postFeedback: namespace(everyKind),
  getFeedback: namespace(readers),
} as const satisfies Record<string, Access>;

export type RouteId = keyof typeof accessTable;

/** @throws Error when the table has no such row */
export function accessOf(id: RouteId): Access {
  const access: Access | undefined = Object.hasOwn(accessTable, id) ? accessTable[id] : undefined;
  if (access === undefined) throw new Error(`Route ${id} has no row in the table of access`);
  return access;
}

// --- what the table foretells ------------------------------------------------------------------------------------------------

/** How a caller stands to the tenant and namespace that are asked for. */
export type Caller =
  /** No key, or one that never was: of no known form, unknown root, or of a tenant's form but mistyped. */
  | { readonly key: "none" | "garbage" }
  | { readonly key: "root" }
  /** A key of this tenant that has expired or was revoked. */
  | { readonly key: "expired" | "revoked"; readonly tenant: "own" | "foreign" }
  | {
      readonly key: TenantKeyKind;
      readonly tenant: "own" | "foreign";
      /** Namespaces it is limited to; the one asked for is `inside`. */
      readonly limit: "none" | "inside" | "outside";
    };

/** What the caller is answered: let in, or the status of the refusal. */
export type Verdict = "ok" | 401 | 403 | 404;

export function verdict(access: Access, caller: Caller): Verdict {
  const { scope, kinds, limited } = access;
  if (scope === "public") return "ok";
  switch (caller.key) {
    case "none":
    case "garbage":
      return 401;
    case "root":
      return "ok";
    case "expired":
    case "revoked":
      // Its form alone says that it can never be for this, so that nothing is looked up.
      return scope === "cluster" || caller.tenant === "foreign" ? 403 : 401;
    default:
      if (scope === "cluster" || caller.tenant === "foreign" || !kinds.includes(caller.key))
        return 403;
      if (caller.limit === "none" || limited === "filtered") return "ok";
      if (limited === "refused") return 403;
      return caller.limit === "inside" ? "ok" : limited === "hidden" ? 404 : 403;
  }
}

interface Documented {
  readonly id: string;
  readonly method: string;
  readonly path: string;
  readonly access: Access;
}

const columns: readonly (readonly [title: string, Caller])[] = [
  ["none, garbage", { key: "none" }],
  ["expired, revoked", { key: "expired", tenant: "own" }],
  ["root", { key: "root" }],
  ...everyKind.map(
    (key) => [key, { key, tenant: "own", limit: "none" }] satisfies [string, Caller],
  ),
  ["limited to it", { key: "admin", tenant: "own", limit: "inside" }],
  ["limited to others", { key: "admin", tenant: "own", limit: "outside" }],
  ["other tenant's", { key: "admin", tenant: "foreign", limit: "none" }],
];

/** docs/access.md. A test compares them. */
export function accessDocument(routes: readonly Documented[]): string {
  const row = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  const head = ["route", "", ...columns.map(([title]) => title), "limited keys"];
  const lines = routes.map(({ id, method, path, access }) =>
    row([
      `\`${id}\``,
      `${method} \`${path.replaceAll(/:([a-z]+)/g, "{$1}")}\``,
      ...columns.map(([, caller]) => {
        const cell = verdict(access, caller);
        return cell === "ok" ? "✓" : String(cell);
      }),
      access.scope === "public" ? "" : access.limited,
    ]),
  );
  return [
    "# Who may do what",
    "",
    "Generated from `src/gateway/access.ts`, the table that the gateway enforces; `test/gateway/access.test.ts` asks every route with every key and compares.",
    "✓ is let in; a number is the status of the refusal.",
    "A key of another tenant is refused whatever its kind, and before anything is looked up.",
    "The columns of limited keys show an admin key; other kinds are refused where they are without a limit.",
    "",
    "How limited keys fare: *path*, the namespace in the path must be among theirs; *named*, those that the query, the body or the key in question name; *filtered*, they are let in and shown only what they cover; *hidden*, what they do not cover is not found; *refused*, what is done reaches beyond namespaces.",
    "",
    row(head),
    row(head.map(() => "---")),
    ...lines,
    "",
  ].join("\n");
}
