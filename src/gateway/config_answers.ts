/** Rows of configs in the form of the contract. */
import type {
  ConfigAnswer,
  ConfigDetailAnswer,
  ReleaseAnswer,
  VersionAnswer,
} from "../api/schemas.ts";
import { configInfo, type ConfigInfo } from "../machine/results.ts";
import type { ConfigRow, ReleaseRow, VersionRow } from "../machine/rows.ts";
import { time } from "./http.ts";

/** @param etag null: the answer is of no moment that a tag could name */
export function configAnswer(info: ConfigInfo, etag: string | null): ConfigAnswer {
  const { rules, release, createdAt, updatedAt, deletedAt, ...rest } = info;
  return {
    ...rest,
    tags: { ...rest.tags },
    secret: rest.secret ?? false,
    release: release === 0 ? null : release,
    ruleCount: rules,
    createdAt: time(createdAt),
    updatedAt: time(updatedAt),
    deletedAt: time(deletedAt),
    // Below the level at which tags name the epoch there are nodes that take none in a transaction's conditions.
    ...(etag?.includes("-") === true && { etag }),
  };
}

export function configDetail(row: ConfigRow, etag: string | null): ConfigDetailAnswer {
  return {
    ...configAnswer(configInfo(row), etag),
    schema: row.schema === null ? null : (JSON.parse(row.schema.text) as unknown),
    rules: row.rules as ConfigDetailAnswer["rules"],
  };
}

export function versionAnswer(row: VersionRow): VersionAnswer {
  return {
    version: row.version,
    hash: row.hash,
    bytes: row.bytes,
    format: row.format,
    schemaHash: row.schemaHash,
    message: row.message,
    at: time(row.at),
    by: row.by,
    revision: row.revision,
  };
}

export function releaseAnswer(row: ReleaseRow): ReleaseAnswer {
  return {
    release: row.release,
    rules: row.rules as ReleaseAnswer["rules"],
    default: row.default,
    message: row.message,
    at: time(row.at),
    by: row.by,
    revision: row.revision,
    rollbackOf: row.rollbackOf,
  };
}
