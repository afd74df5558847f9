/**
 * The chain of a tenant's audit: each record carries the hash of the one before it and its own, so that a record that was
 * changed, left out or put in shows, to the server and to whoever keeps an export.
 */
import { contentHash } from "./content.ts";

/** What a record's hash is over, in this order, with the hash before it at the beginning. */
export interface AuditFacts {
  readonly sequence: number;
  readonly revision: number;
  /** Milliseconds since 1970. */
  readonly at: number;
  readonly actor: { readonly kind: string; readonly keyId: string };
  readonly action: string;
  readonly target: string;
  readonly requestId: string | null;
  readonly address: string | null;
  /**
   * What the command found and what it left: of a new version or a publication the hash of the latest content, else the
   * hash of the target's row; null: there was none.
   */
  readonly before: string | null;
  readonly after: string | null;
}

/** What the first record of a tenant follows. */
export const auditGenesis = `sha256:${"0".repeat(64)}`;

export function auditHash(previous: string, facts: AuditFacts): string {
  const { actor } = facts;
  return contentHash(
    JSON.stringify([
      previous,
      facts.sequence,
      facts.revision,
      facts.at,
      actor.kind,
      actor.keyId,
      facts.action,
      facts.target,
      facts.requestId,
      facts.address,
      facts.before,
      facts.after,
    ]),
  );
}

export interface ChainedRecord extends AuditFacts {
  /** Null in records from before there was a chain. */
  readonly previous: string | null;
  readonly hash: string | null;
}

/** Goes along the records in their order, from the first that is kept. */
export class AuditChain {
  /** What the next record must follow; null: the first of the chain is still to come. */
  head: string | null;
  #sequence: number | null;
  #isChained = false;

  /** @param anchor the last record that is no longer kept; null: the beginning is kept, or what was before had no chain */
  constructor(anchor: { readonly sequence: number; readonly hash: string } | null) {
    this.head = anchor?.hash ?? null;
    this.#sequence = anchor?.sequence ?? null;
    this.#isChained = anchor !== null;
  }

  /** @returns what is wrong with the record; null: nothing */
  next(record: ChainedRecord): string | null {
    const { sequence, previous, hash } = record;
    const expected = this.#sequence === null ? sequence : this.#sequence + 1;
    if (sequence !== expected) return `Record ${expected} is missing: ${sequence} comes next`;
    this.#sequence = sequence;
    if (hash === null || previous === null)
      return this.#isChained ? `Record ${sequence} has lost its hash` : null;
    if (previous !== (this.head ?? auditGenesis))
      return `Record ${sequence} does not follow the one before it`;
    if (auditHash(previous, record) !== hash) return `Record ${sequence} was changed`;
    this.#isChained = true;
    this.head = hash;
    return null;
  }
}
