/**
 * A twin of the host behind the gateway: the real machine over rows in memory, without Raft. Several services over one
 * cluster stand for several nodes, so that forwarding and relaying can be tested without a network.
 */
import { NotHere, Problem } from "../../src/api/problems.ts";
import type {
  ClusterStatus,
  CommitEvent,
  ConfigService,
  GroupStatus,
  ReadOptions,
  Replacement,
  TenantSnapshot,
  TenantView,
  ViewOptions,
  WatchListener,
} from "../../src/host/ports.ts";
import { semanticsNow, type Command, type Outcome } from "../../src/machine/command.ts";
import { apply } from "../../src/machine/machine.ts";
import type { StateTransaction, TenantMeta, TenantRow } from "../../src/machine/rows.ts";

class Rows implements StateTransaction {
  readonly #rows = new Map<string, unknown>();
  #sorted: string[] | null = null;

  get<T>(key: string): T | undefined {
    return this.#rows.get(key) as T | undefined;
  }

  *range<T>(range: {
    gte: string;
    lt: string;
    reverse?: boolean;
  }): Generator<readonly [string, T]> {
    this.#sorted ??= [...this.#rows.keys()].sort();
    const keys = this.#sorted.filter((key) => key >= range.gte && key < range.lt);
    if (range.reverse === true) keys.reverse();
    for (const key of keys) yield [key, this.#rows.get(key) as T];
  }

  put(key: string, row: unknown): void {
    if (!this.#rows.has(key)) this.#sorted = null;
    // Rows are JSON: what cannot be written down must not survive here either.
    this.#rows.set(key, JSON.parse(JSON.stringify(row)));
  }

  add(key: string, row: unknown): void {
    this.put(key, row);
  }
  delete(key: string): void {
    this.#rows.delete(key);
    this.#sorted = null;
  }
}

export class SoloTenant implements TenantView {
  readonly tenant: string;
  readonly rows = new Rows();
  readonly listeners = new Set<WatchListener>();

  constructor(tenant: string) {
    this.tenant = tenant;
  }

  get<T>(key: string): T | undefined {
    return this.rows.get<T>(key);
  }

  range<T>(range: { gte: string; lt: string; reverse?: boolean }): Iterable<readonly [string, T]> {
    return this.rows.range<T>(range);
  }

  get epoch(): number {
    return this.get<TenantMeta>("meta")?.epoch ?? 0;
  }

  get revision(): number {
    return this.get<TenantMeta>("meta")?.revision ?? 0;
  }

  apply(command: Command): Outcome {
    const { outcome, commit } = apply(this.rows, JSON.parse(JSON.stringify(command)) as Command);
    if (commit !== null) {
      const event: CommitEvent = commit;
      for (const listener of this.listeners) listener.commit(event, this);
    }
    return outcome;
  }
}

export const rootToken = "root-token-of-the-tests";

export class SoloCluster {
  readonly tenants = new Map<string, SoloTenant>();
  readonly services = new Map<string, SoloService>();
  readonly #incarnations = new Map<string, number>();
  readonly nodes: readonly string[];

  constructor(nodes: readonly string[], rootHash: string) {
    this.nodes = nodes;
    const system = this.#open("_system");
    const by = { kind: "system", keyId: "system" } as const;
    system.apply({
      at: Date.now(),
      actor: by,
      action: { op: "tenant.init", tenant: "_system", quotas: {}, keys: [] },
    });
    for (const node of nodes) {
      const initial = nodes.map((name, at) => ({ node: name, id: at + 1 }));
      const action = { op: "node.register", node, boot: 1, initial } as const;
      system.apply({ at: Date.now(), actor: by, action });
      this.services.set(node, new SoloService(node, this));
    }
    system.apply({
      at: Date.now(),
      actor: by,
      action: { op: "rootKey.put", node: nodes[0] as string, keyId: "root1", hash: rootHash },
    });
  }

  #open(name: string): SoloTenant {
    const tenant = new SoloTenant(name);
    this.tenants.set(name, tenant);
    return tenant;
  }

  get system(): SoloTenant {
    return this.tenants.get("_system") as SoloTenant;
  }

  row(tenant: string): TenantRow | undefined {
    return this.system.get<TenantRow>(`ten/${tenant}`);
  }

  service(node: string): SoloService {
    return this.services.get(node) as SoloService;
  }

  /** The tenant's state, made when the directory has it. */
  state(tenant: string, evenDeleted = false): SoloTenant {
    if (tenant === "_system") return this.system;
    const row = this.row(tenant);
    if (row === undefined) throw new Problem("not-found", `No tenant is called "${tenant}"`);
    if (row.deletedAt !== null && !evenDeleted)
      throw new Problem("tenant-deleted", `Tenant "${tenant}" is deleted`);
    let state = this.tenants.get(tenant);
    // Purged and made again: nothing of the earlier one is left.
    if (state !== undefined && this.#incarnations.get(tenant) !== row.incarnation)
      state = undefined;
    if (state === undefined) {
      state = this.#open(tenant);
      this.#incarnations.set(tenant, row.incarnation);
      const { restore, epoch } = row;
      state.apply({
        // Epoch 1, so that tests can name cursors.
        at: 1_000,
        actor: { kind: "system", keyId: "system" },
        semantics: semanticsNow,
        action: {
          op: "tenant.init",
          tenant,
          quotas: row.quotas,
          keys:
            restore?.adminKey !== false
              ? [{ ...row.adminKey, kind: "admin", description: "made with the tenant" }]
              : [],
          ...(restore !== undefined && { restore, epoch: epoch as number }),
        },
      });
    }
    const quotas = { quotas: row.quotas, revision: row.revision };
    state.apply({
      at: 1_000,
      actor: { kind: "system", keyId: "system" },
      semantics: semanticsNow,
      action: { op: "tenant.quotas", ...quotas },
    });
    return state;
  }
}

export class SoloService implements ConfigService {
  readonly node: string;
  ready = true;
  readonly semantics = semanticsNow;
  /** What its version knows, as it says. */
  levels: { readonly min: number; readonly max: number } | null = { min: 1, max: semanticsNow };
  /** The tenant whose replica leaves this node in the moment in which it is read next. */
  leaving: string | null = null;
  /** Reads that it answers before it leaves. */
  staysFor = 0;
  /** It is there again as soon as somebody asks where it is. */
  comesBack = false;
  readonly #left = new Set<string>();
  /** What it holds can be read without asking other nodes. */
  leads = true;
  /** Answers `exchange` as if the node were gone. */
  isDown = false;
  readonly exchanges: { node: string; bytes: number }[] = [];
  openSnapshots = 0;
  readonly proposals: { tenant: string; command: Command }[] = [];
  readonly #cluster: SoloCluster;
  #answer: ((from: string, request: Uint8Array) => Promise<Uint8Array>) | null = null;

  constructor(node: string, cluster: SoloCluster) {
    this.node = node;
    this.#cluster = cluster;
  }

  /** As every node of a real cluster does; else the first one has it alone. */
  knowsDirectory = false;

  #holders(tenant: string): readonly string[] | null {
    if (tenant === "_system")
      return [this.knowsDirectory ? this.node : (this.#cluster.nodes[0] as string)];
    const row = this.#cluster.row(tenant);
    if (row === undefined) return null;
    const nodes = row.placement.replicas.map((replica) => replica.node);
    return this.#left.has(tenant) ? nodes.filter((node) => node !== this.node) : nodes;
  }

  async locate(
    tenant: string,
  ): Promise<{ local: true } | { local: false; nodes: readonly string[] } | null> {
    if (this.comesBack) {
      this.leaving = null;
      this.#left.clear();
    }
    const holders = this.#holders(tenant);
    if (holders === null) return null;
    return holders.includes(this.node) ? { local: true } : { local: false, nodes: holders };
  }

  locateNow(tenant: string): { local: boolean } | undefined {
    if (tenant !== "_system" && this.#cluster.row(tenant) === undefined) return undefined;
    return { local: this.#holders(tenant)?.includes(this.node) ?? false };
  }

  #local(tenant: string, evenDeleted = false): SoloTenant {
    if (this.#holders(tenant)?.includes(this.node) === false) throw new NotHere(tenant);
    return this.#cluster.state(tenant, evenDeleted);
  }

  async propose(tenant: string, command: Command): Promise<Outcome> {
    this.proposals.push({ tenant, command });
    return this.#local(tenant).apply(command);
  }

  viewNow(tenant: string, { consistency = "stale" }: ViewOptions = {}): TenantView | null {
    if (this.locateNow(tenant)?.local !== true) return null;
    if (consistency === "linearizable" && (!this.leads || tenant === this.leaving)) return null;
    const row = this.#cluster.row(tenant);
    if (row !== undefined && row.deletedAt !== null) return null;
    const state = this.#cluster.state(tenant);
    return state.get<TenantMeta>("meta")?.restore === undefined ? state : null;
  }

  async read<T>(tenant: string, options: ReadOptions, query: (view: TenantView) => T): Promise<T> {
    if (tenant === this.leaving && this.staysFor-- <= 0) this.#left.add(tenant);
    const state = this.#local(tenant, options.evenDeleted);
    if (options.evenRestoring !== true) guardRestored(state);
    if (options.minRevision !== undefined && options.minRevision > state.revision)
      throw new Problem("not-caught-up", `Revision ${options.minRevision} is not here yet`);
    return query(state);
  }

  async watch(
    tenant: string,
    start: (view: TenantView) => void,
    listener: WatchListener,
  ): Promise<() => void> {
    const state = this.#local(tenant);
    guardRestored(state);
    start(state);
    state.listeners.add(listener);
    return () => state.listeners.delete(listener);
  }

  async snapshot(tenant: string): Promise<TenantSnapshot> {
    const state = this.#local(tenant);
    guardRestored(state);
    const rows = [...state.range({ gte: "", lt: "\x7f" })].map(
      ([key, row]) => [key, JSON.stringify(row)] as const,
    );
    this.openSnapshots += 1;
    const close = (): void => void (this.openSnapshots -= 1);
    const meta = state.get<TenantMeta>("meta") as TenantMeta;
    return { epoch: state.epoch, revision: state.revision, meta, rows: () => rows, close };
  }

  async group(tenant: string): Promise<GroupStatus> {
    const { revision, epoch } = this.#local(tenant);
    return {
      tenant,
      group: this.#cluster.row(tenant)?.group ?? 1,
      leader: this.node,
      term: 1,
      commit: revision,
      applied: revision,
      revision,
      epoch,
      replicas: (this.#holders(tenant) ?? []).map((node, i) => ({
        node,
        id: i + 1,
        role: node === this.node ? "leader" : "voter",
        match: revision,
        state: node === this.node ? "self" : "replicate",
      })),
    };
  }

  cluster(): ClusterStatus {
    return {
      cluster: "test",
      node: this.node,
      version: "0.0.0",
      ready: this.ready,
      transport: "loopback",
      connected: true,
      nodes: this.#cluster.nodes.map((name) => ({
        name,
        self: name === this.node,
        alive: !this.#cluster.service(name).isDown,
        heardMsAgo: name === this.node ? null : 1,
        boot: 1,
        version: "0.0.0",
        levels: this.#cluster.service(name).levels,
        leaders: 1,
      })),
      absences: [{ node: "n9", from: 1_000, until: 3_500, reason: "silent" }],
      clockAheadMs: 0,
      level: this.semantics,
      replicas: {
        warm: this.#cluster.tenants.size,
        leaders: this.#cluster.tenants.size,
        given: 0,
      },
      admission: { paceMs: 0, waiting: 0, held: 0, refused: 0, quiet: 0, late: 0 },
      journal: { segments: 1, bytes: 0, appends: 0, syncs: 0 },
      disk: null,
      environments: { open: 1, cap: 100 },
      quarantine: [],
      tenants: this.#cluster.system.get<TenantMeta>("meta")?.tenants ?? 0,
    };
  }

  nowMs(): number {
    return Date.now();
  }

  place(_tenant: string, replicas: number | undefined): readonly string[] {
    const { nodes } = this.#cluster;
    if (replicas !== undefined && replicas > nodes.length)
      throw new Problem("invalid", `Cannot place ${replicas} replicas`, {
        errors: [{ pointer: "/replicas", detail: `must be at most ${nodes.length}` }],
      });
    return nodes.slice(0, replicas ?? 1);
  }

  /** Where state is never damaged, nothing has to move. */
  async repair(tenant: string): Promise<Replacement> {
    const nodes = this.#holders(tenant);
    if (nodes === null) throw new Problem("not-found", `There is no tenant "${tenant}"`);
    return { op: "directory.move", tenant, nodes, lost: [], generation: 0 };
  }

  /** All of them have one directory. */
  async directoryReached(): Promise<void> {}

  async transfer(tenant: string, toNode: string): Promise<void> {
    if (this.#holders(tenant)?.includes(toNode) !== true)
      throw new Problem("invalid", `Node "${toNode}" holds no replica`);
  }

  async exchange(node: string, request: Uint8Array): Promise<Uint8Array> {
    this.exchanges.push({ node, bytes: request.length });
    const peer = this.#cluster.service(node);
    if (peer === undefined || peer.isDown || peer.#answer === null)
      throw new Problem("no-quorum", `Node "${node}" cannot be reached`);
    return peer.#answer(this.node, request);
  }

  onExchange(handler: (from: string, request: Uint8Array) => Promise<Uint8Array>): void {
    this.#answer = handler;
  }
}

function guardRestored(state: SoloTenant): void {
  if (state.get<TenantMeta>("meta")?.restore !== undefined)
    throw new Problem("restoring", `Tenant "${state.tenant}" is being restored`);
}
