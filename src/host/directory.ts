/**
 * The directory: which tenants there are, under which group, on which nodes. It is the applied state of the tenant
 * `_system` on this node, read in place; there is no second copy to fall out of step with it.
 */
import { getTenant, listNodes, tenantOfGroup } from "../machine/queries.ts";
import type { NodeRow, TenantRow } from "../machine/rows.ts";
import type { TenantView } from "./ports.ts";

export const SYSTEM_TENANT = "_system";
export const SYSTEM_GROUP = 1;

export class Directory {
  readonly #view: () => TenantView | null;

  constructor(view: () => TenantView | null) {
    this.#view = view;
  }

  tenant(name: string): TenantRow | undefined {
    const view = this.#view();
    return view === null ? undefined : (getTenant(view, name) ?? undefined);
  }

  byGroup(group: number): TenantRow | undefined {
    const view = this.#view();
    const name = view === null ? null : tenantOfGroup(view, group);
    return name === null ? undefined : this.tenant(name);
  }

  nodes(): readonly NodeRow[] {
    const view = this.#view();
    return view === null ? [] : listNodes(view);
  }
}
