/**
 * The directory: which tenants there are, under which group, on which nodes. It is the applied state of the tenant
 * `_system` on this node, read in place; there is no second copy to fall out of step with it.
 */
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
    return this.#view()?.get<TenantRow>(`ten/${name}`);
  }

  byGroup(group: number): TenantRow | undefined {
    const view = this.#view();
    const name = view?.get<string>(`grp/${group}`);
    return name === undefined ? undefined : view?.get<TenantRow>(`ten/${name}`);
  }

  *nodes(): Generator<NodeRow> {
    const view = this.#view();
    if (view === null) return;
    for (const [, row] of view.range<NodeRow>({ gte: "node/", lt: "node0" })) yield row;
  }
}
