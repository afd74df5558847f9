/**
 * The directory: which tenants there are, under which group, on which nodes. It is the applied state of the tenant
 * `_system` on this node, read in place; there is no second copy to fall out of step with it.
 */
import { moveKey, nodeKey, regrowKey, systemKey, under } from "../machine/keys.ts";
import { getTenant, listNodes, tenantOfGroup } from "../machine/queries.ts";
import type { NodeRow, SystemRow, TenantRow } from "../machine/rows.ts";
import type { TenantView } from "./ports.ts";

export const SYSTEM_TENANT = "_system";
export const SYSTEM_GROUP = 1;

export class Directory {
  readonly #view: () => TenantView | null;

  constructor(view: () => TenantView | null) {
    this.#view = view;
  }

  /** Of what is known here; null while nothing is. */
  get revision(): number | null {
    return this.#view()?.revision ?? null;
  }

  tenant(name: string): TenantRow | undefined {
    const view = this.#view();
    return view === null ? undefined : (getTenant(view, name) ?? undefined);
  }

  groupOf(tenant: string): number | undefined {
    return tenant === SYSTEM_TENANT ? SYSTEM_GROUP : this.tenant(tenant)?.group;
  }

  byGroup(group: number): TenantRow | undefined {
    const view = this.#view();
    const name = view === null ? null : tenantOfGroup(view, group);
    return name === null ? undefined : this.tenant(name);
  }

  /** Tenants some of whose replicas are joining or leaving, by group, from the one after `after`. */
  moving(after: number, limit: number): readonly TenantRow[] {
    return this.#named({ gte: moveKey(after + 1), lt: under("move").lt }, limit);
  }

  /** Tenants that shall have as many replicas again as before a recovery, in the same way. */
  regrowing(after: number, limit: number): readonly TenantRow[] {
    return this.#named({ gte: regrowKey(after + 1), lt: under("regrow").lt }, limit);
  }

  #named(range: { readonly gte: string; readonly lt: string }, limit: number): TenantRow[] {
    const view = this.#view();
    const rows: TenantRow[] = [];
    if (view === null) return rows;
    for (const [, name] of view.range<string>(range)) {
      const row = this.tenant(name);
      if (row !== undefined) rows.push(row);
      if (rows.length === limit) break;
    }
    return rows;
  }

  /** Where the group of `_system` is; undefined until the first node registered. */
  system(): SystemRow | undefined {
    return this.#view()?.get<SystemRow>(systemKey);
  }

  node(name: string): NodeRow | undefined {
    return this.#view()?.get<NodeRow>(nodeKey(name));
  }

  /** By name, from the one after `after`. */
  tenants(after: string, limit: number): readonly TenantRow[] {
    const rows: TenantRow[] = [];
    const { lt } = under("ten");
    // Names hold no zero byte.
    for (const [, row] of this.#view()?.range<TenantRow>({ gte: `ten/${after}\u0000`, lt }) ?? []) {
      rows.push(row);
      if (rows.length === limit) break;
    }
    return rows;
  }

  nodes(): readonly NodeRow[] {
    const view = this.#view();
    return view === null ? [] : listNodes(view);
  }
}
