/**
 * The rows of a tenant's state: plain JSON by ASCII key. Rows are never changed in place; a change puts a new one.
 *
 * Keys (n padded to 16 digits so that text order is number order):
 *   meta                      TenantMeta            ns/<ns>                     NamespaceRow
 *   cfg/<ns>/<name>           ConfigRow             ver/<ns>/<name>/<n>         VersionRow
 *   txt/<ns>/<name>/<n>       string (the content)  rel/<ns>/<name>/<n>         ReleaseRow
 *   key/<keyId>               KeyRow                hist/<revision>             HistoryRow
 *   aud/<n>                   AuditRow              idem/<key>                  IdempotencyRow
 *   idq/<n>                   string (an idempotency key, in order of use)
 *   del/<revision>/<ns>/<name>  true (a soft-deleted config, in order of deletion)
 *   due/<ms>/<ns>/<name>      true (a config whose rules begin or end next at this time)
 * and in `_system` also:
 *   ten/<tenant>              TenantRow             grp/<group>                 string (tenant)
 *   node/<node>               NodeRow               root/<sha256 of the token>  RootKeyRow
 *   iss/<name>                IssuerRow
 *   system                    SystemRow
 *   move/<group>              string (a tenant some of whose replicas are joining or leaving)
 *   regrow/<group>            string (a tenant that shall have more replicas again, see `TenantRow.regrow`)
 * and, written by the replica itself and not by a command:
 *   host/members              Member[] (of the group's configuration, from its first change on)
 */
import type { AuditFacts } from "../model/audit.ts";
import type { ContentFormat, ReleaseRule } from "../model/release.ts";
/** Rows by key, synchronously. Rows must not be changed in place. */
export interface StateView {
  get<T = unknown>(key: string): T | undefined;
  /** Ascending (or descending) over gte ≤ key < lt. */
  range<T = unknown>(range: {
    gte: string;
    lt: string;
    reverse?: boolean;
  }): Iterable<readonly [key: string, row: T]>;
}

export interface StateTransaction extends StateView {
  put(key: string, row: unknown): void;
  /** `put` of a row that does not exist. */
  add(key: string, row: unknown): void;
  delete(key: string): void;
}

export type KeyKind = "root" | "admin" | "write" | "read" | "client";

/** A key as it is made; its token is nowhere. */
export interface NewKey {
  readonly id: string;
  readonly kind: Exclude<KeyKind, "root">;
  /** sha256 over the whole token, hex. */
  readonly hash: string;
  readonly namespaces?: readonly string[];
  readonly expiresAt?: number;
  readonly description?: string;
  readonly scopes?: readonly "secrets"[];
}

/** Limits of a tenant; absent = the default of `defaultQuotas`. */
export interface Quotas {
  readonly configs?: number;
  readonly contentBytes?: number;
  readonly rulesPerRelease?: number;
  readonly versionsPerConfig?: number;
  readonly keys?: number;
  /** All versions of all configs together. */
  readonly bytes?: number;
  /** Audit records kept. */
  readonly auditRecords?: number;
  /** How long each is kept at most. */
  readonly auditDays?: number;
  /** Open at once, on each node. */
  readonly watchers?: number;
  /** Sent to all of them together, on each node. */
  readonly watchBytesPerSecond?: number;
  /** On each node, in bursts of a few seconds' worth. */
  readonly requestsPerSecond?: number;
  /** Changes among them. */
  readonly writesPerSecond?: number;
  /** Of each key by itself. */
  readonly requestsPerSecondPerKey?: number;
}

export type QuotaChanges = { readonly [Name in keyof Quotas]?: number | null };

export const defaultQuotas: Required<Quotas> = {
  configs: 10_000,
  contentBytes: 1_048_576,
  rulesPerRelease: 100,
  versionsPerConfig: 1_000,
  keys: 1_000,
  bytes: 1_073_741_824,
  auditRecords: 50_000,
  auditDays: 400,
  watchers: 100_000,
  // Beyond what a node can do: who wants a limit sets one.
  watchBytesPerSecond: 1_000_000_000_000,
  requestsPerSecond: 1_000_000,
  writesPerSecond: 1_000_000,
  requestsPerSecondPerKey: 1_000_000,
};

export function sameQuotas(a: Quotas, b: Quotas): boolean {
  const names = Object.keys(defaultQuotas) as (keyof Quotas)[];
  return names.every((name) => a[name] === b[name]);
}

export interface TenantMeta {
  /** Empty until `tenant.init`. */
  readonly tenant: string;
  /** The tenant's commit counter. */
  readonly revision: number;
  /** Changes on restore, so that a cursor of another history is told apart. */
  readonly epoch: number;
  /** It went on from a backup or a survivor: revisions known from before may be of other changes. Absent: not that is known. */
  readonly isContinued?: true;
  /** Oldest revision still in the history. */
  readonly historyFrom: number;
  /** Time of the last command that was kept, milliseconds; never goes back. */
  readonly at: number;
  /** Configs that are not deleted. */
  readonly configs: number;
  /** Deleted configs that can still be undeleted. */
  readonly deleted: number;
  readonly namespaces: number;
  readonly keys: number;
  /** Contents of all kept versions, UTF-8 bytes. */
  readonly bytes: number;
  /** Sequence of the newest audit row; 0 = none yet. */
  readonly audits: number;
  /** Hash of that row; absent: there is no chain yet. */
  readonly auditHead?: string;
  /** Sequence of the oldest audit row that is kept; absent: by their number alone. */
  readonly auditFrom?: number;
  /** The last row that is not kept, when it was in the chain. */
  readonly auditAnchor?: { readonly sequence: number; readonly hash: string };
  /** Idempotency records are those with idempotencyFrom ≤ n < idempotencyTo. */
  readonly idempotencyFrom: number;
  readonly idempotencyTo: number;
  readonly quotas: Quotas;
  /** The earliest time at which a rule of any config begins or ends; null or absent: none will. */
  readonly dueAt?: number | null;
  /** Revision of the directory's row that they are from; absent: as the tenant was made. */
  readonly quotasRevision?: number;
  /** As nodes told it; absent: nothing yet. */
  readonly usage?: UsageTotals;
  /** While rows of a backup come in; the tenant takes nothing else then. */
  readonly restore?: RestoreState;
  /** `_system` only: the next group number. */
  readonly nextGroup?: number;
  readonly tenants?: number;
  /** `_system` only: the newest epoch given to a tenant. */
  readonly lastEpoch?: number;
}

/** What of a backed-up meta row comes back; the rest is of the place where it is restored. */
export type RestoredMeta = Pick<
  TenantMeta,
  | "revision"
  | "historyFrom"
  | "at"
  | "configs"
  | "deleted"
  | "namespaces"
  | "keys"
  | "bytes"
  | "audits"
  | "auditHead"
  | "auditFrom"
  | "auditAnchor"
  | "idempotencyFrom"
  | "idempotencyTo"
>;

/** Where a backup is from: a tenant's state at one revision. */
export interface RestoreSource {
  readonly tenant: string;
  readonly epoch: number;
  readonly revision: number;
}

/** What is counted of the rows as they come, and must be what the backup's meta row says. */
export interface RestoreCounts {
  readonly configs: number;
  readonly deleted: number;
  readonly namespaces: number;
  readonly keys: number;
  readonly bytes: number;
}

export interface RestoreState {
  readonly source: RestoreSource;
  /** The part that is expected next. */
  readonly part: number;
  readonly rows: number;
  /** The last key that came. */
  readonly last: string;
  readonly counts: RestoreCounts;
  /** Made when it is finished. */
  readonly keys: readonly NewKey[];
}

/** Since the tenant was made. What a node counted and could not tell before it ended is missing. */
export interface UsageTotals {
  readonly requests: number;
  /** Of them refused with 429. */
  readonly limited: number;
  /** Sent to watches; absent: nothing was told. */
  readonly watchBytes?: number;
  /** How often a watch had to wait for the tenant's bandwidth. */
  readonly watchesHeld?: number;
}

export interface NamespaceRow {
  readonly namespace: string;
  readonly extends: string | null;
  readonly protected: boolean;
  readonly revision: number;
  readonly createdAt: number;
}

export interface ConfigRow {
  readonly namespace: string;
  readonly name: string;
  /** Distinguishes a config from one that had its name before. */
  readonly uid: string;
  readonly format: ContentFormat;
  readonly description: string;
  readonly tags: Readonly<Record<string, string>>;
  readonly schema: { readonly text: string; readonly hash: string } | null;
  /** Its contents are sealed: what txt/ holds says nothing without the operator's keys. */
  readonly secret?: true;
  /** Revision of the last change of anything about it: its ETag. */
  readonly revision: number;
  readonly createdAt: number;
  readonly updatedAt: number;
  /** Highest version number ever given; 0 = none yet. */
  readonly latestVersion: number;
  /** Hash of that version; null when there is none, or it was deleted. */
  readonly latestHash: string | null;
  /** How many versions are kept. */
  readonly versions: number;
  /** Nothing below this version is there to be pruned; absent: 1. Saves the search from passing what is gone. */
  readonly pruneFrom?: number;
  /** The release in force; 0 = never released. */
  readonly release: number;
  readonly rules: readonly ReleaseRule[];
  readonly default: number | null;
  /**
   * As of when `from` and `until` of the rules are judged, milliseconds: on every replica the same, whatever its clock.
   * Absent in rows of older versions: `updatedAt`.
   */
  readonly judgedAt?: number;
  /** When a rule begins or ends next after that; null: none does. */
  readonly dueAt?: number | null;
  readonly deletedAt: number | null;
}

export interface VersionRow {
  /** Sealed; `hash` is keyed then, and `bytes` of the plain content. */
  readonly secret?: true;
  readonly version: number;
  readonly hash: string;
  readonly bytes: number;
  readonly format: ContentFormat;
  readonly schemaHash: string | null;
  readonly message: string;
  readonly at: number;
  readonly revision: number;
  readonly by: string;
}

export interface ReleaseRow {
  readonly release: number;
  readonly rules: readonly ReleaseRule[];
  readonly default: number | null;
  readonly message: string;
  readonly at: number;
  readonly revision: number;
  readonly by: string;
  /** The release it repeats, when it is a rollback. */
  readonly rollbackOf: number | null;
}

export interface KeyRow {
  readonly id: string;
  readonly kind: Exclude<KeyKind, "root">;
  readonly hash: string;
  /** Null: all namespaces. */
  readonly namespaces: readonly string[] | null;
  readonly expiresAt: number | null;
  readonly description: string;
  readonly createdAt: number;
  /** What it may beside what its kind may. */
  readonly scopes?: readonly "secrets"[];
  /** About, and never too late; absent: not yet. */
  readonly lastUsedAt?: number;
  /** The key that takes its place; it holds on until it expires. */
  readonly replacedBy?: string;
}

/** One change as watchers and history see it. */
export interface StoredChange {
  readonly type:
    | "put"
    | "version"
    | "version-delete"
    | "release"
    /** Rules of the release in force began or ended. */
    | "schedule"
    | "delete"
    | "undelete"
    | "namespace"
    | "key"
    | "key-delete"
    | "tenant"
    | "issuer"
    | "node";
  readonly namespace: string;
  readonly name: string;
  readonly version?: number;
  readonly hash?: string;
  readonly release?: number;
}

export interface HistoryRow {
  readonly revision: number;
  readonly at: number;
  /** See `Envelope.spreadMs`. */
  readonly spreadMs?: number;
  readonly changes: readonly StoredChange[];
}

export interface AuditRow extends Omit<AuditFacts, "before" | "after"> {
  /** See model/audit.ts. All four are absent in rows from before there was a chain. */
  readonly before?: string | null;
  readonly after?: string | null;
  readonly previous?: string;
  readonly hash?: string;
}

export interface IdempotencyRow {
  readonly fingerprint: string;
  /** Its place in idq/: tells a record from an earlier one of the same key. */
  readonly sequence: number;
  readonly at: number;
  readonly revision: number;
  readonly created: boolean;
  readonly result: unknown;
}

/** A replica and its node. */
export interface Member {
  readonly node: string;
  readonly id: number;
}

export interface PlacedReplica extends Member {
  /**
   * Absent: a voter. `joining`: shall be one, and may not be yet. `leaving`: shall be none, and may still be one. `lost`:
   * the same, and it can never come back. All until the group's leader settles the move. `learner` (of `_system` only):
   * has everything and no vote.
   */
  readonly state?: "joining" | "leaving" | "lost" | "learner";
  /**
   * Of one whose state was changed by a move: it had a vote when the placement was settled last, so what its group decided
   * until then it may have been needed for. Absent where a command of before level 7 changed it.
   */
  readonly settled?: boolean;
  /** Revision of the directory that placed it; absent: the tenant's incarnation. */
  readonly since?: number;
}

export function isLeaving({ state }: PlacedReplica): boolean {
  return state === "leaving" || state === "lost";
}

/** It had a vote when the tenant's placement was settled last. */
export function wasSettled(replica: PlacedReplica): boolean {
  // Before level 7 one that was called back could not be told from a new one.
  return replica.settled ?? replica.state !== "joining";
}

/**
 * A tenant's replicas that had a vote when its placement was settled last: while it moves they serve it, and it takes a
 * majority of them to let others in.
 */
export function settledReplicas<R extends PlacedReplica>(replicas: readonly R[]): readonly R[] {
  const settled = replicas.filter(wasSettled);
  // Before level 7 all may have been sent away and called back (simulation, seeds 3003971 and 850).
  return settled.length > 0 ? settled : replicas;
}

/** Its disk was lost since it was placed there, so it is not there any more. */
export function isLost(
  replica: PlacedReplica,
  row: Pick<TenantRow, "incarnation">,
  node: NodeRow | undefined,
): boolean {
  return node?.diskSince !== undefined && (replica.since ?? row.incarnation) < node.diskSince;
}

export interface StoredPlacement {
  readonly replicas: readonly PlacedReplica[];
  /** Grows with each move, so that what was meant for an earlier one is told apart; absent: never moved. */
  readonly generation?: number;
}

/** Where the group of `_system` is; there from the first node on that joined. */
export interface SystemRow {
  readonly placement: StoredPlacement;
  readonly initial: readonly Member[];
  readonly nextReplica: number;
  /** Grows with each unsafe recovery; absent: 1. */
  readonly incarnation?: number;
  /** Commands of this level (`Envelope.semantics`) and below may be proposed; absent: `levelFirst`. It only grows. */
  readonly level?: number;
}

export interface TenantRow {
  readonly tenant: string;
  readonly group: number;
  /**
   * Grows when the tenant is recreated under the same name or restored. The directory's revision at that time, so that
   * it grows over a purge too; after an unsafe recovery the time of that, in seconds.
   */
  readonly incarnation: number;
  readonly placement: StoredPlacement;
  /** The group's members before its first log entry; absent: those of the placement, which never changed. */
  readonly initial?: readonly Member[];
  readonly nextReplica: number;
  /** Replicas that it had before an unsafe recovery left it with one: it gets as many again when there are nodes. */
  readonly regrow?: number;
  readonly description: string;
  readonly quotas: Quotas;
  readonly adminKey: { readonly id: string; readonly hash: string };
  /** Given by the directory, one to each tenant it ever made; absent: the tenant's own beginning, in seconds. */
  readonly epoch?: number;
  /** Made from a backup: what its group begins with. */
  readonly restore?: {
    readonly source: RestoreSource;
    readonly meta: RestoredMeta;
    /** Whether the key made with it is to be one of the tenant's. */
    readonly adminKey?: boolean;
  };
  readonly createdAt: number;
  readonly deletedAt: number | null;
  readonly revision: number;
}

export interface NodeRow {
  readonly node: string;
  readonly zone: string | null;
  readonly boot: number;
  readonly registeredAt: number;
  /** Names its data directory; absent until it said so. */
  readonly disk?: string;
  /** Revision at which this disk took the place of another, or of none: replicas placed here before are lost. */
  readonly diskSince?: number;
  /** Draining: gets no replicas, and those it has go elsewhere. Leaving: the same, and it is removed when it has none. */
  readonly phase?: "draining" | "leaving";
  /** It forwards, and never gets a replica of a tenant, nor a vote in `_system`. */
  readonly role?: "gateway";
}

export interface RootKeyRow {
  /** The node that brought it last. */
  readonly node: string;
  /** All nodes that brought this token: it goes with the last of them. */
  readonly nodes: readonly string[];
  readonly keyId: string;
  readonly createdAt: number;
}

/** Where a value comes from in a token's claims: a claim's name, or a JSON Pointer into them. */
export interface ClaimSource {
  readonly claim: string;
}

/** Who may do what: the first rule that matches a token, for the tenant that is asked for, counts. */
export interface IssuerRule {
  /** Claims and the values of which each must have one. */
  readonly match: Readonly<Record<string, readonly string[]>>;
  readonly tenant: string | ClaimSource;
  readonly kind: Exclude<KeyKind, "root">;
  /** Null: all of them. */
  readonly namespaces: readonly string[] | ClaimSource | null;
}

/** Whose JSON Web Tokens are taken as keys. */
export interface IssuerRow {
  readonly name: string;
  /** The claim `iss`. */
  readonly issuer: string;
  readonly audience: readonly string[];
  /** Public keys; null: they are fetched. */
  readonly jwks: { readonly keys: readonly object[] } | null;
  /** Null: found by OpenID Connect discovery. */
  readonly jwksUri: string | null;
  readonly algorithms: readonly string[];
  readonly clockSkewSeconds: number;
  /** Keys may be fetched without TLS, from this machine only. */
  readonly insecureHttp: boolean;
  readonly rules: readonly IssuerRule[];
  readonly createdAt: number;
  readonly revision: number;
}
