/**
 * What an accepted command answers with, by its `op`. Small, without contents and secrets: results are kept with the
 * idempotency records.
 */
import type {
  ConfigRow,
  IssuerRow,
  KeyRow,
  Member,
  NamespaceRow,
  NodeRow,
  Quotas,
  ReleaseRow,
  TenantRow,
  VersionRow,
} from "./rows.ts";
import type { Action } from "./command.ts";

/** A config without its schema's text and its rules. */
export interface ConfigInfo extends Omit<
  ConfigRow,
  "schema" | "rules" | "pruneFrom" | "judgedAt" | "dueAt"
> {
  readonly schemaHash: string | null;
  /** How many rules the release in force has. */
  readonly rules: number;
}

export type KeyInfo = Omit<KeyRow, "hash">;
export type TenantInfo = Omit<TenantRow, "adminKey" | "restore"> & { readonly adminKeyId: string };

export interface ConfigResult {
  readonly config: ConfigInfo;
}

export interface ConfigPutResult extends ConfigResult {
  /** At creation with content. */
  readonly version: VersionRow | null;
  readonly release: ReleaseRow | null;
}

export interface VersionResult extends ConfigResult {
  /** The new version, or the latest when its content is the same. */
  readonly version: VersionRow;
}

export interface VersionDeleteResult extends ConfigResult {
  readonly deleted: readonly number[];
}

export interface ReleaseResult extends ConfigResult {
  readonly release: ReleaseRow;
}

export interface PublishResult extends VersionResult, ReleaseResult {}

/** What each op answers with. */
export interface ResultByOp {
  "config.put": ConfigPutResult;
  "config.delete": ConfigResult;
  "config.undelete": ConfigResult;
  "version.create": VersionResult;
  "version.delete": VersionDeleteResult;
  "release.put": ReleaseResult;
  publish: PublishResult;
  rollback: ReleaseResult;
  "namespace.put": { readonly namespace: NamespaceRow };
  /** One per action, in their order. */
  transaction: {
    readonly results: readonly { readonly created: boolean; readonly result: unknown }[];
  };
  /** How many configs' rules were judged anew. */
  "schedule.pass": { readonly passed: number };
  "key.create": { readonly key: KeyInfo };
  "secrets.rewrap": { readonly rewrapped: number };
  "key.delete": { readonly id: string };
  "key.rotate": { readonly key: KeyInfo; readonly replaced: KeyInfo };
  "usage.record": { readonly keys: number };
  "tenant.init": { readonly tenant: string; readonly epoch: number };
  "restore.rows": { readonly part: number; readonly rows: number };
  "restore.finish": { readonly tenant: string; readonly epoch: number; readonly rows: number };
  "tenant.recover": { readonly tenant: string; readonly epoch: number };
  "tenant.quotas": { readonly quotas: Required<Quotas> };
  "directory.create": { readonly tenant: TenantInfo };
  "directory.createMany": {
    readonly tenants: readonly {
      readonly tenant: string;
      readonly group: number;
      readonly adminKeyId: string;
      readonly nodes: readonly string[];
    }[];
  };
  "directory.update": { readonly tenant: TenantInfo };
  "directory.delete": { readonly tenant: TenantInfo; readonly purged: boolean };
  "directory.undelete": { readonly tenant: TenantInfo };
  "directory.move": { readonly tenant: TenantInfo };
  "directory.settle": { readonly tenant: TenantInfo };
  "node.register": { readonly node: NodeRow };
  "node.join": {
    readonly id: number;
    readonly initial: readonly Member[];
    /** Of the group of `_system`; absent: 1. */
    readonly incarnation?: number;
  };
  "node.phase": { readonly node: NodeRow };
  "node.remove": { readonly node: string };
  "system.place": { readonly generation: number };
  "system.settle": { readonly generation: number };
  "system.level": { readonly level: number; readonly before: number };
  "directory.recover": { readonly tenants: readonly string[] };
  "issuer.put": { readonly issuer: IssuerRow };
  "issuer.delete": { readonly name: string };
  "rootKey.put": { readonly keyId: string; readonly node: string };
}

export type ResultOf<Op extends Action["op"]> = ResultByOp[Op];

/** Field by field: every replica makes one for every change, and what is left of a row takes engines much longer. */
export function configInfo(row: ConfigRow): ConfigInfo {
  const info: ConfigInfo = {
    namespace: row.namespace,
    name: row.name,
    uid: row.uid,
    format: row.format,
    description: row.description,
    tags: row.tags,
    revision: row.revision,
    createdAt: row.createdAt,
    updatedAt: row.updatedAt,
    latestVersion: row.latestVersion,
    latestHash: row.latestHash,
    versions: row.versions,
    release: row.release,
    default: row.default,
    deletedAt: row.deletedAt,
    schemaHash: row.schema?.hash ?? null,
    rules: row.rules.length,
  };
  return row.secret === true ? { ...info, secret: true } : info;
}

export function keyInfo(row: KeyRow): KeyInfo {
  const { hash: _secret, ...rest } = row;
  return rest;
}

export function tenantInfo(row: TenantRow): TenantInfo {
  const { adminKey, restore: _source, ...rest } = row;
  return { ...rest, adminKeyId: adminKey.id };
}
