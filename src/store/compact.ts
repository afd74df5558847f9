/**
 * Frees the pages that a tenant's environments on a stopped node do not use any more. LMDB never gives space back to the
 * file system by itself: after a snapshot was installed, or much was deleted, half of a file and more can be free.
 */
import * as fs from "node:fs";
import { join } from "node:path";
import { LmdbEnvironments } from "./environments.ts";
import { lockDirectory } from "./lock.ts";

export interface Compacted {
  /** `tenant.group.replica` */
  readonly environment: string;
  readonly bytesBefore: number;
  readonly bytesAfter: number;
}

/**
 * @param data a node's data directory
 * @throws Error when it is none, or has nothing of the tenant; DirectoryInUseError while a node runs on it
 */
export async function compactTenant(data: string, tenant: string): Promise<readonly Compacted[]> {
  if (!fs.existsSync(join(data, "conflux.json")))
    throw new Error(`Cannot compact in ${data}: it is no data directory of a node`);
  const lock = await lockDirectory(data);
  try {
    const environments = new LmdbEnvironments({ data });
    const names = environments
      .names()
      .filter((name) => /^(.+)\.\d+\.\d+$/.exec(name)?.[1] === tenant);
    if (names.length === 0)
      throw new Error(`Cannot compact tenant ${tenant}: nothing of it is in ${data}`);
    const done: Compacted[] = [];
    for (const environment of names) {
      const { before, after } = await environments.compact(environment);
      done.push({ environment, bytesBefore: before, bytesAfter: after });
    }
    return done;
  } finally {
    lock.release();
  }
}
