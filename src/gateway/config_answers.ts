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

export function configAnswer(info: ConfigInfo): ConfigAnswer {
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
  };
}

export function configDetail(row: ConfigRow): ConfigDetailAnswer {
  return {
    ...configAnswer(configInfo(row)),
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
