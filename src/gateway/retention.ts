/**
 * Purges tenants that were deleted longer ago than deleted ones are kept. Done by the node that leads the directory, so
 * that it is done once; a successor goes on with what is left.
 */
import type { ConfigService } from "../host/ports.ts";
import { tagsLevel } from "../machine/command.ts";
import { tagOf } from "../machine/draft.ts";
import { under } from "../machine/keys.ts";
import type { TenantRow } from "../machine/rows.ts";
import { systemTenant } from "../model/names.ts";

/** The rest waits for the next time. */
const purgesAtOnce = 100;
/** By so much the wall clock may have gained on the monotonic one between two looks. */
const gainMsMax = 60_000;

/**
 * What is purged is gone, so a wall clock that was just put forward is not taken at its word: only when it has gone on
 * steadily since the look before. Who wakes after a long sleep, or was set right, purges at the second look.
 */
export class SteadyClock {
  #wallMs: number;
  #monotonicMs: number;

  constructor(wallMs: number, monotonicMs: number) {
    this.#wallMs = wallMs;
    this.#monotonicMs = monotonicMs;
  }

  /** Whether it did since the last call. */
  isSteady(wallMs: number, monotonicMs: number): boolean {
    const gainedMs = wallMs - this.#wallMs - (monotonicMs - this.#monotonicMs);
    this.#wallMs = wallMs;
    this.#monotonicMs = monotonicMs;
    return gainedMs <= gainMsMax;
  }
}

/** @returns the tenants that were purged */
export async function purgeExpired(
  service: ConfigService,
  retentionMs: number,
  nowMs: number,
): Promise<readonly string[]> {
  if (service.locateNow(systemTenant)?.local !== true) return [];
  if ((await service.group(systemTenant)).leader !== service.node) return [];
  const expired = await service.read(systemTenant, { consistency: "linearizable" }, (view) => {
    const found: { readonly tenant: string; readonly tag: string | number }[] = [];
    for (const [, row] of view.range<TenantRow>(under("ten"))) {
      if (row.deletedAt === null || row.deletedAt + retentionMs > nowMs) continue;
      const { tenant, revision } = row;
      const isKnown = service.semantics >= tagsLevel;
      found.push({ tenant, tag: isKnown ? tagOf(view.epoch, revision) : revision });
      if (found.length === purgesAtOnce) break;
    }
    return found;
  });
  const purged: string[] = [];
  for (const { tenant, tag } of expired) {
    const outcome = await service.propose(systemTenant, {
      at: nowMs,
      actor: { kind: "system", keyId: "retention" },
      semantics: service.semantics,
      // Undeleted in this moment, it stays.
      action: { op: "directory.delete", tenant, purge: true, ifMatch: [tag] },
    });
    if (outcome.ok) purged.push(tenant);
  }
  return purged;
}
