/**
 * The changes of one command before they count: reads see them, the state does not. `flush` writes them all; a command
 * that is refused is dropped with its draft, so nothing of it can remain.
 */
import { assert } from "../lib/assert.ts";
import { tagsLevel } from "./command.ts";
import type { Actor, Command, Precondition, RejectCode } from "./command.ts";
import { metaKey, namespaceKey } from "./keys.ts";
import { defaultQuotas } from "./rows.ts";
import type {
  NamespaceRow,
  Quotas,
  StateTransaction,
  StateView,
  StoredChange,
  TenantMeta,
} from "./rows.ts";

/** An expected refusal: thrown inside `apply` and turned into an outcome there, never seen outside. */
export class Refusal {
  readonly code: RejectCode;
  readonly detail: string;
  place: { readonly list: "if" | "then"; readonly index: number } | null = null;

  constructor(code: RejectCode, detail: string) {
    this.code = code;
    this.detail = detail;
  }
}

export function refuse(code: RejectCode, detail: string): never {
  // oxlint-disable-next-line no-throw-literal -- no stack is wanted: refusals are answers, and frequent
  throw new Refusal(code, detail);
}

/**
 * The entity tag of what changes with a revision. Revisions are counted anew from where a restore or a recovery goes on,
 * so that only with the epoch they name one change and no other.
 */
export function tagOf(epoch: number, revision: number): string {
  return `${epoch}-${revision}`;
}

/** From here on the revisions that clients know may be of other changes than those of this state. */
export function leaveFirstHistory(draft: Draft): void {
  if (draft.semantics >= tagsLevel) draft.meta.isContinued = true;
}

/** RFC 9110 §13.1: judged against what the change would replace. */
export function guardPrecondition(
  draft: Draft,
  condition: Precondition,
  row: { readonly revision: number } | undefined,
): void {
  const { ifMatch, ifNoneMatch } = condition;
  if (ifNoneMatch !== undefined && row !== undefined)
    refuse("precondition-failed", `Leave it as it is: it exists since revision ${row.revision}`);
  if (ifMatch === undefined) return;
  if (row === undefined) refuse("precondition-failed", "Create it without If-Match: there is none");
  if (ifMatch === "*" || ifMatch.includes(tagOf(draft.meta.epoch, row.revision))) return;
  if (draft.meta.isContinued !== true && ifMatch.includes(row.revision)) return;
  refuse("precondition-failed", `Read it again: it is at revision ${row.revision}`);
}

export const emptyMeta: TenantMeta = {
  tenant: "",
  revision: 0,
  epoch: 0,
  historyFrom: 1,
  at: 0,
  configs: 0,
  deleted: 0,
  namespaces: 0,
  keys: 0,
  bytes: 0,
  audits: 0,
  idempotencyFrom: 1,
  idempotencyTo: 1,
  quotas: {},
};

export type Writable<T> = { -readonly [K in keyof T]: T[K] };

export interface DraftAudit {
  readonly action: string;
  readonly target: string;
  /** Of the row that is meant; absent: none. */
  readonly key?: string;
}

interface DraftRow {
  readonly key: string;
  /** Undefined = deleted. */
  row: unknown;
  /** The state has none. */
  readonly isAdded: boolean;
}

/** Most commands change fewer rows than this: comparing keys is less work than a map made for them. */
const rowsWithoutMap = 16;

export class Draft implements StateView {
  /** The revision these changes get, if there are any. */
  readonly revision: number;
  /** The tenant's time; a restore brings its own. */
  at: number;
  readonly meta: Writable<TenantMeta>;
  readonly actor: Actor;
  /** See `Envelope.semantics`. */
  readonly semantics: number;
  readonly changes: StoredChange[] = [];
  readonly audits: DraftAudit[] = [];
  /** Rows of due/ were changed: the earliest of them may be another. */
  dueMoved = false;
  /** Something is to be kept although nothing changed that has a revision. */
  isTouched = false;
  readonly #base: StateTransaction;
  /** In the order in which they were first changed. */
  readonly #rows: DraftRow[] = [];
  /** The same by key, once there are many. */
  #byKey: Map<string, DraftRow> | null = null;
  #deleted = 0;

  constructor(
    base: StateTransaction,
    meta: TenantMeta,
    command: Pick<Command, "at" | "actor" | "semantics">,
  ) {
    this.#base = base;
    this.actor = command.actor;
    this.semantics = command.semantics ?? 1;
    this.meta = { ...meta };
    this.revision = meta.revision + 1;
    this.at = Math.max(meta.at, command.at);
  }

  get<T = unknown>(key: string): T | undefined {
    const own = this.#own(key);
    return own === undefined ? this.#base.get<T>(key) : (own.row as T | undefined);
  }

  /** As the command found it. */
  before<T = unknown>(key: string): T | undefined {
    return this.#base.get<T>(key);
  }

  put(key: string, row: unknown): void {
    assert(row !== undefined, "a row is never undefined: that would delete it");
    this.#set(key, row);
  }

  /** Of a row that does not exist: numbers are not given twice. One that this command deleted is put like any other. */
  add(key: string, row: unknown): void {
    const deleted = this.#deleted === 0 ? undefined : this.#own(key);
    if (deleted === undefined) this.#addOwn({ key, row, isAdded: true });
    else deleted.row = row;
  }

  delete(key: string): void {
    this.#deleted += 1;
    this.#set(key, undefined);
  }

  #own(key: string): DraftRow | undefined {
    if (this.#byKey !== null) return this.#byKey.get(key);
    for (const own of this.#rows) if (own.key === key) return own;
    return undefined;
  }

  #set(key: string, row: unknown): void {
    const own = this.#own(key);
    if (own === undefined) this.#addOwn({ key, row, isAdded: false });
    else own.row = row;
  }

  #addOwn(own: DraftRow): void {
    this.#rows.push(own);
    if (this.#byKey !== null) this.#byKey.set(own.key, own);
    else if (this.#rows.length > rowsWithoutMap)
      this.#byKey = new Map(this.#rows.map((each) => [each.key, each]));
  }

  *range<T = unknown>(range: {
    gte: string;
    lt: string;
    reverse?: boolean;
  }): Iterable<readonly [key: string, row: T]> {
    const sign = range.reverse === true ? -1 : 1;
    const own = this.#rows
      .filter(({ key }) => key >= range.gte && key < range.lt)
      .map(({ key, row }) => [key, row] as const)
      .sort(([a], [b]) => (a < b ? -sign : sign));
    let next = 0;
    for (const [key, row] of this.#base.range<T>(range)) {
      while (next < own.length) {
        const [ownKey, ownRow] = own[next] as [string, unknown];
        if (sign * (ownKey < key ? -1 : 1) > 0 || ownKey === key) break;
        next++;
        if (ownRow !== undefined) yield [ownKey, ownRow as T];
      }
      if (this.#own(key) === undefined) yield [key, row];
    }
    for (; next < own.length; next++) {
      const [ownKey, ownRow] = own[next] as [string, unknown];
      if (ownRow !== undefined) yield [ownKey, ownRow as T];
    }
  }

  change(change: StoredChange): void {
    this.changes.push(change);
  }

  quota(name: keyof Quotas): number {
    return this.meta.quotas[name] ?? defaultQuotas[name];
  }

  /** A namespace exists once something is put into it. */
  ensureNamespace(namespace: string): void {
    if (this.get(namespaceKey(namespace)) !== undefined) return;
    this.addNamespace({
      namespace,
      extends: null,
      protected: false,
      revision: this.revision,
      createdAt: this.at,
    });
  }

  addNamespace(row: NamespaceRow): void {
    if (this.meta.namespaces >= namespacesMax)
      refuse("quota-exceeded", `Use a namespace that exists: there are ${namespacesMax}`);
    this.meta.namespaces++;
    this.put(namespaceKey(row.namespace), row);
  }

  flush(): void {
    this.put(metaKey, this.meta);
    for (const { key, row, isAdded } of this.#rows) {
      if (row === undefined) this.#base.delete(key);
      else if (isAdded) this.#base.add(key, row);
      else this.#base.put(key, row);
    }
  }
}

export const namespacesMax = 10_000;
