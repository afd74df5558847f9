/**
 * Commands: the only way a tenant's state changes. A command is data, validated before it was proposed (content parsed,
 * hashed, checked against its schema), and applied on every replica with the same result. Encoded as JSON text.
 */
import type { ContentFormat, ReleaseRule } from "../model/release.ts";
import type {
  IssuerRow,
  KeyKind,
  Member,
  NewKey,
  QuotaChanges,
  Quotas,
  TenantRow,
} from "./rows.ts";

/** Who asked, as written into history and audit. The machine checks again that the key still holds. */
export interface Actor {
  readonly kind: KeyKind | "system";
  readonly keyId: string;
  readonly requestId?: string;
  readonly address?: string;
  /**
   * Who vouched for the caller, instead of a key in the tenant's state: then the gateway that checked the token says
   * what it allows.
   */
  readonly issuer?: string;
  /** With `issuer` only; absent: all of them. */
  readonly namespaces?: readonly string[];
}

export interface Envelope {
  /** Wall clock of the proposer, milliseconds; the machine never lets a tenant's time go back. */
  readonly at: number;
  readonly actor: Actor;
  /** A repeat with the same key and fingerprint gets the first answer; with another fingerprint it is refused. */
  readonly idempotency?: { readonly key: string; readonly fingerprint: string };
  /**
   * Which meaning the command has where that has changed over time; absent: 1. A committed command keeps its meaning on
   * every replica for ever, so a new meaning is a new number here. 2: deleting versions heeds the namespace's protection.
   * 3: audit rows are chained, with the hashes of what was before and after. 4: the directory gives each tenant its epoch.
   * 5: a node that is removed takes the root keys along that only it had.
   * 6: nothing is placed on a node that leaves, or has left. 7: while a tenant moves, the directory remembers who had a
   * vote before. 8: a commit says over how long its watchers are told, and quotas and usage know the bytes of watches.
   * 9: entity tags name the epoch, and a state that did not begin as its tenant did says so.
   * 10: a replica that has yet to leave may be called back to a node that leaves.
   */
  readonly semantics?: number;
  /** Watchers are told of what it changes within this time, each at its own moment; absent: all at once. */
  readonly spreadMs?: number;
  readonly action: Action;
}

/** What commands that are made now say. */
export const semanticsNow = 10;
/** From which on replicas know `Envelope.spreadMs`, the quota `watchBytesPerSecond`, and what `usage.record` says of watches. */
export const watchesLevel = 8;
/** From which on replicas know entity tags that name the epoch, in `Precondition.ifMatch` and in conditions. */
export const tagsLevel = 9;
/** From which on a node that leaves keeps what was to go from there and cannot. */
export const callBackLevel = 10;
/** Of clusters whose directory says nothing: the one at which it began to. */
export const levelFirst = 6;

export type Command = Envelope;

/** Text as it will be served, with the sha256 (`sha256:<hex>`) over its UTF-8 bytes and their number. */
export interface Content {
  readonly text: string;
  readonly hash: string;
  readonly bytes: number;
  /** Sealed before it was proposed, as this version and no other. */
  readonly secret?: { readonly version: number };
}

/** HTTP's preconditions, judged where the change is applied. */
export interface Precondition {
  /**
   * "*" for any existing; else entity tags, one of which must hold: `<epoch>-<revision>`, or, as they were below
   * `tagsLevel`, the revision alone, which holds only in the history that the tenant began with.
   */
  readonly ifMatch?: readonly (string | number)[] | "*";
  /** Create only. */
  readonly ifNoneMatch?: "*";
}

interface Target extends Precondition {
  readonly namespace: string;
  readonly name: string;
}

/** Says with which schema the content was checked: the machine refuses when it is no longer the config's. */
interface Checked {
  /** Hash of the schema's text, or null when the config had none. */
  readonly schemaHash: string | null;
  /** The format it was checked as; refused when it is no longer the config's. */
  readonly format?: ContentFormat;
}

/** One change of one config or namespace: what a transaction is made of. */
export type ConfigAction =
  | ({
      readonly op: "config.put";
      readonly format?: ContentFormat;
      readonly description?: string;
      readonly tags?: Readonly<Record<string, string>>;
      /** JSON Schema text; null removes it. */
      readonly schema?: { readonly text: string; readonly hash: string } | null;
      /** At creation only: version 1, released as default. On an existing config it must be its latest content. */
      readonly content?: Content;
      readonly secret?: boolean;
    } & Target)
  | ({ readonly op: "config.delete" } & Target)
  | ({ readonly op: "config.undelete" } & Target)
  | ({
      readonly op: "version.create";
      readonly content: Content;
      readonly message?: string;
    } & Target &
      Checked)
  | ({ readonly op: "version.delete"; readonly versions: readonly number[] } & Target)
  | ({
      readonly op: "release.put";
      readonly rules: readonly ReleaseRule[];
      /** A version number, or null: nothing for clients that no rule matches. */
      readonly default: number | null;
      readonly message?: string;
    } & Target)
  | ({ readonly op: "publish"; readonly content: Content; readonly message?: string } & Target &
      Checked)
  | ({ readonly op: "rollback"; readonly toRelease?: number; readonly message?: string } & Target)
  | ({
      readonly op: "namespace.put";
      readonly namespace: string;
      readonly extends?: string | null;
      readonly protected?: boolean;
    } & Precondition);

export interface TransactionCondition {
  readonly namespace: string;
  readonly name: string;
  /** The config's revision must be this, in the history that the tenant began with … */
  readonly revision?: number;
  /** … or its entity tag, `<epoch>-<revision>` … */
  readonly tag?: string;
  /** … or it must not exist. */
  readonly absent?: boolean;
}

/** A tenant whose group goes on from one replica. */
export interface RecoveredTenant {
  readonly tenant: string;
  readonly group: number;
  readonly incarnation: number;
  readonly epoch: number;
  /** The one replica that goes on. */
  readonly replica: Member;
}

/** `_system` itself goes on from one replica. */
export interface RecoveredSystem {
  readonly incarnation: number;
  readonly voter: Member;
  /** Other nodes that are still there; each begins with a new replica that has no vote. */
  readonly learners: readonly Member[];
}

export type TenantAction =
  | ConfigAction
  | {
      readonly op: "transaction";
      readonly if: readonly TransactionCondition[];
      readonly then: readonly ConfigAction[];
    }
  /** Rules whose time has come by this command's time begin or end. Proposed by the group's leader, by its clock. */
  | { readonly op: "schedule.pass" }
  | { readonly op: "key.create"; readonly key: NewKey }
  /** Sealed texts with their data keys wrapped by another key: the contents stay as they are. */
  | {
      readonly op: "secrets.rewrap";
      readonly items: readonly {
        readonly namespace: string;
        readonly name: string;
        readonly version: number;
        /** Of the version, lest it be another of the same number. */
        readonly hash: string;
        readonly text: string;
      }[];
    }
  | { readonly op: "key.delete"; readonly id: string }
  /** A new key in the place of another, which holds on for the overlap; 0 ends it at once. */
  | {
      readonly op: "key.rotate";
      readonly id: string;
      /** Everything but this and the description comes from the old key. */
      readonly key: Pick<NewKey, "id" | "hash">;
      readonly overlapMs: number;
    }
  /** What a node counted since it last told, so that it outlives the node: no revision, no history. */
  | {
      readonly op: "usage.record";
      readonly requests: number;
      /** Of them refused with 429. */
      readonly limited: number;
      /** Sent to watches. */
      readonly watchBytes?: number;
      /** How often one of them had to wait for the bandwidth of its tenant. */
      readonly watchesHeld?: number;
      /** Keys that were used and when, milliseconds. */
      readonly keys: readonly { readonly id: string; readonly at: number }[];
    }
  /** The first command of a tenant's group, proposed by its first leader from the directory's record. */
  | {
      readonly op: "tenant.init";
      readonly tenant: string;
      readonly quotas: Quotas;
      readonly keys: readonly NewKey[];
      /** As the directory gave it; absent: the time, in seconds. */
      readonly epoch?: number;
      /** Its rows follow from a backup; `keys` are made after them. */
      readonly restore?: NonNullable<TenantRow["restore"]>;
    }
  /** A bounded part of a backup's rows, in order of keys; parts are numbered from 0. */
  | {
      readonly op: "restore.rows";
      readonly part: number;
      readonly rows: readonly (readonly [key: string, row: unknown])[];
    }
  /** All `rows` are there: from here on it is a tenant. */
  | { readonly op: "restore.finish"; readonly rows: number }
  | {
      readonly op: "tenant.quotas";
      readonly quotas: Quotas;
      /** Of the directory's row they are from: older ones than those in force change nothing. Absent: always newer. */
      readonly revision?: number;
    }
  /** The group lost its quorum and goes on from this replica alone: what it did not have is lost (recovery.ts). */
  | { readonly op: "tenant.recover"; readonly epoch: number; readonly replica: Member };

/** A tenant for the directory. */
export interface NewTenant {
  readonly tenant: string;
  readonly description?: string;
  readonly quotas: Quotas;
  /** Nodes that get a voter; the machine numbers group and replicas. */
  readonly nodes: readonly string[];
  readonly adminKey: NewKey;
}

/** A gateway forwards and holds nothing of a tenant. */
export type NodeRole = "member" | "gateway";

/** Only in the group of `_system`. */
export type SystemAction =
  | ({
      readonly op: "directory.create";
      /** Made from a backup. */
      readonly restore?: NonNullable<TenantRow["restore"]>;
      /** A tenant that has the name is purged in the same moment. */
      readonly replace?: boolean;
    } & NewTenant)
  | {
      /** All or none of them. Their groups begin when they are first used. */
      readonly op: "directory.createMany";
      readonly tenants: readonly NewTenant[];
    }
  | ({
      readonly op: "directory.update";
      readonly tenant: string;
      readonly description?: string;
      /** All of them. */
      readonly quotas?: Quotas;
      /** These alone; null: back to the default. */
      readonly quotaChanges?: QuotaChanges;
    } & Precondition)
  | ({
      readonly op: "directory.delete";
      readonly tenant: string;
      readonly purge: boolean;
    } & Precondition)
  | { readonly op: "directory.undelete"; readonly tenant: string }
  /** Says where the voters shall be; the group's leader makes it so, and settles it. */
  | {
      readonly op: "directory.move";
      readonly tenant: string;
      readonly nodes: readonly string[];
      /** Replicas that lost what they promised: they leave, and their nodes get new ones. */
      readonly lost?: readonly number[];
      /** Refused when the placement is not of this generation (0: never moved) any more. */
      readonly generation: number;
    }
  /** The group's configuration is what this generation of the placement asked for. */
  | { readonly op: "directory.settle"; readonly tenant: string; readonly generation: number }
  | {
      readonly op: "node.register";
      readonly node: string;
      readonly boot: number;
      readonly zone?: string;
      /** Refused when the node is known with another: it has to join. */
      readonly disk?: string;
      /** Members of the group of `_system` before its first log entry; the first to register says so. */
      readonly initial?: readonly Member[];
      /** With `initial`: the level at which a new cluster begins. */
      readonly level?: number;
      /** What it can apply; refused when the cluster's level is not among them. */
      readonly levels?: { readonly min: number; readonly max: number };
      /** Refused for a gateway where the node may have replicas; absent: as it was. */
      readonly role?: NodeRole;
    }
  /** A node that is new, or whose disk is: it gets a replica of `_system` under a new id. */
  | {
      readonly op: "node.join";
      readonly node: string;
      readonly disk: string;
      readonly zone?: string;
      /** Absent: member. */
      readonly role?: NodeRole;
    }
  | {
      readonly op: "node.phase";
      readonly node: string;
      readonly phase: "active" | "draining" | "leaving";
      readonly zone?: string;
    }
  /** It holds nothing any more: it leaves the directory and the group of `_system`. */
  | { readonly op: "node.remove"; readonly node: string }
  /** Which replicas of `_system` shall have a vote; the others learn. */
  | {
      readonly op: "system.place";
      readonly voters: readonly number[];
      readonly generation: number;
    }
  | { readonly op: "system.settle"; readonly generation: number }
  /** From here on commands of this level may be proposed, and nodes that do not know it have to end. */
  | { readonly op: "system.level"; readonly level: number }
  /** Groups that lost their quorum go on from one replica each; nodes that are gone are forgotten (recovery.ts). */
  | {
      readonly op: "directory.recover";
      readonly epoch: number;
      readonly system?: RecoveredSystem;
      readonly gone: readonly string[];
      readonly tenants: readonly RecoveredTenant[];
    }
  | ({
      readonly op: "issuer.put";
      readonly issuer: Omit<IssuerRow, "createdAt" | "revision">;
    } & Precondition)
  | ({ readonly op: "issuer.delete"; readonly name: string } & Precondition)
  /** One root key per node that brings one; another token from the same node replaces it. */
  | {
      readonly op: "rootKey.put";
      readonly node: string;
      readonly keyId: string;
      readonly hash: string;
    };

export type Action = TenantAction | SystemAction;

/** Why the machine refused. Each is a code of the problem table (a type test in host/ holds it). */
export type RejectCode =
  | "not-found"
  | "already-exists"
  | "precondition-failed"
  | "conflict"
  | "in-use"
  | "invalid"
  | "quota-exceeded"
  | "idempotency-mismatch"
  | "protected"
  | "forbidden"
  | "unauthorized"
  | "tenant-deleted"
  | "restoring";

export type Outcome =
  | {
      readonly ok: true;
      /** The tenant's revision after this command. */
      readonly revision: number;
      /** Of the state that it was applied to. */
      readonly epoch: number;
      /**
       * True when the command made something new: a config, version, release, namespace, key, tenant or node. False for
       * changed metadata and deletions, and when nothing changed (content equal to the latest version). Whether anything
       * changed at all is told by `Applied.commit`.
       */
      readonly created: boolean;
      /** What the API answers with: shape by action (see results.ts). */
      readonly result: unknown;
      /** The stored answer of an earlier command with the same idempotency key. */
      readonly replayed?: true;
    }
  | {
      readonly ok: false;
      readonly code: RejectCode;
      readonly detail: string;
      readonly revision: number;
      /** In a transaction: which of `then` was refused, or which of `if` did not hold. */
      readonly place?: { readonly list: "if" | "then"; readonly index: number };
    };
