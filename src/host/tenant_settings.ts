/**
 * What the directory says of a tenant goes into the tenant's own state, where it is judged: at its beginning what it is
 * and its first key, later its quotas. The group's leader proposes it, whoever that is when there is news.
 */
import type { TenantAction } from "../machine/command.ts";
import { sameQuotas, type TenantMeta } from "../machine/rows.ts";
import { SYSTEM_GROUP, type Directory } from "./directory.ts";
import type { Clock } from "./ports.ts";
import type { ProposalResult, Replica } from "./replica.ts";
import { PROPOSE_TIMEOUT_MS, type Requests } from "./requests.ts";

export interface TenantSettingsParts {
  readonly clock: Clock;
  readonly directory: Directory;
  readonly requests: Requests;
}

export interface TenantSettingsHooks {
  /** The replica of this group that is in memory. */
  present(group: number): Replica | null;
  /** Runs something of a replica, whose outcome is then sent out. */
  act(replica: Replica, run: () => void): void;
  /** To the leader, which this replica is, within its turn or `act`. */
  propose(
    replica: Replica,
    action: TenantAction,
    deadline: number,
    done: (result: ProposalResult) => void,
  ): void;
}

export class TenantSettings {
  readonly #parts: TenantSettingsParts;
  readonly #hooks: TenantSettingsHooks;
  /** In which term a leader proposed its tenant's first command. */
  readonly #begun = new WeakMap<Replica, number>();

  constructor(parts: TenantSettingsParts, hooks: TenantSettingsHooks) {
    this.#parts = parts;
    this.#hooks = hooks;
  }

  /** Its first command is applied, or in the log before whatever is proposed now. */
  hasBegun(replica: Replica): boolean {
    return replica.initialised || this.#begun.get(replica) === replica.raft.term;
  }

  /** Call within the turn in which the replica's leader changed. */
  leaderChanged(replica: Replica): void {
    if (replica.raft.isLeader && !replica.initialised) this.#begin(replica);
    else this.#settle(replica);
  }

  /** The directory has news of the tenant. Not within the turn of a replica. */
  lookSoon(replica: Replica): void {
    this.#parts.clock.defer(() => {
      if (this.#isHere(replica)) this.#hooks.act(replica, () => this.#settle(replica));
    });
  }

  #isHere(replica: Replica): boolean {
    return this.#hooks.present(replica.group) === replica && replica.halted === null;
  }

  #deadline(): number {
    return this.#parts.clock.monotonicMs() + PROPOSE_TIMEOUT_MS;
  }

  /** The first leader of a group writes down what the directory says of it, once. */
  #begin(replica: Replica): void {
    const { directory, requests } = this.#parts;
    const { tenant, group } = replica;
    const row = group === SYSTEM_GROUP ? null : directory.byGroup(group);
    if (row === undefined) return;
    const action: TenantAction = {
      op: "tenant.init",
      tenant,
      quotas: row?.quotas ?? {},
      keys:
        row === null || row.restore?.adminKey === false
          ? []
          : [{ ...row.adminKey, kind: "admin", description: "made with the tenant" }],
      ...(row?.epoch !== undefined && { epoch: row.epoch }),
      ...(row?.restore !== undefined && { restore: row.restore }),
    };
    this.#begun.set(replica, replica.raft.term);
    this.#hooks.propose(replica, action, this.#deadline(), (result) => {
      if (result.kind === "applied") return;
      // Not at once: a leader that hands over takes nothing, and says so in the same breath (simulation, seed 10050).
      const again = (): void => {
        if (this.#isHere(replica) && replica.raft.isLeader && !replica.initialised)
          this.#begin(replica);
      };
      requests.retry(group, this.#deadline(), again, () => {});
    });
  }

  #settle(replica: Replica): void {
    if (!replica.raft.isLeader || !replica.initialised || replica.group === SYSTEM_GROUP) return;
    const row = this.#parts.directory.byGroup(replica.group);
    const meta = replica.view.get<TenantMeta>("meta");
    if (row === undefined || meta === undefined) return;
    const { quotas, revision } = row;
    const isNews = revision > (meta.quotasRevision ?? 0);
    if (!isNews || sameQuotas(quotas, meta.quotas)) return;
    // Refused or lost, it is tried again by the next leader, or with the next change of the directory's row.
    const action: TenantAction = { op: "tenant.quotas", quotas, revision };
    this.#hooks.propose(replica, action, this.#deadline(), () => {});
  }
}
