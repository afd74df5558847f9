/**
 * One simulated life of a cluster, decided by its seed: a safety phase under faults, then everything heals and liveness
 * is demanded — the cluster must converge, serve, and still have every acknowledged write.
 */
import type { Log } from "../../src/host/ports.ts";
import type { Replica } from "../../src/host/replica.ts";
import { semanticsNow, type Command, type Outcome } from "../../src/machine/command.ts";
import {
  getConfig,
  getHistoryRow,
  getText,
  getVersion,
  historyAfter,
} from "../../src/machine/queries.ts";
import {
  isLeaving,
  type HistoryRow,
  type PlacedReplica,
  type TenantRow,
} from "../../src/machine/rows.ts";
import { Prng } from "../../src/lib/prng.ts";
import { checkHistory, type RegisterOperation } from "./history.ts";
import { Invariants } from "./invariants.ts";
import { drawSwarm, Nemesis, type Swarm } from "./nemesis.ts";
import { calm, World, type SimNode } from "./world.ts";

export interface RunOptions {
  readonly seed: number;
  /** Virtual milliseconds of faults. */
  readonly stormMs?: number;
  readonly trace?: (line: string) => void;
}

export interface RunResult {
  readonly seed: number;
  readonly events: number;
  readonly virtualMs: number;
  readonly traceHash: number;
  readonly operations: number;
  readonly acknowledged: number;
  readonly crashes: number;
  readonly elections: number;
  /** Placements that the directory took. */
  readonly moves: number;
  /** Nodes that left for good. */
  readonly departures: number;
  /** Broken invariants; empty for a good run. */
  readonly violations: readonly string[];
}

interface Acknowledged {
  readonly tenant: string;
  readonly name: string;
  readonly version: number;
  readonly text: string;
  readonly revision: number;
}

export function runSeed(options: RunOptions): Promise<RunResult> {
  return new Run(options).toEnd();
}

const system: Command["actor"] = { kind: "system", keyId: "sim" };

class Run {
  readonly #seed: number;
  readonly #prng: Prng;
  readonly #swarm: Swarm;
  readonly #world: World;
  readonly #nemesis: Nemesis;
  readonly #invariants: Invariants;
  readonly #violations: string[] = [];
  readonly #initial: readonly SimNode[];
  readonly #tenants: readonly string[];
  readonly #configs: readonly string[];
  /** Revision of each config when it was made. */
  readonly #created = new Map<string, number>();
  readonly #history: RegisterOperation[] = [];
  readonly #acknowledged: Acknowledged[] = [];
  readonly #refused: { readonly key: string; readonly text: string }[] = [];
  #operations = 0;
  #elections = 0;

  constructor({ seed, stormMs = 12_000, trace }: RunOptions) {
    this.#seed = seed;
    this.#prng = new Prng(seed);
    const swarm = drawSwarm(this.#prng.fork(), stormMs);
    this.#swarm = swarm;
    this.#invariants = new Invariants((violation) => this.#violations.push(violation));
    const { nodes, spares, environmentsMax, clockSkew, segmentBytes } = swarm;
    const { replaceAfterMs, balanceAfterMs } = swarm;
    const world = new World({
      seed: this.#prng.uint32(),
      nodes,
      spares,
      environmentsMax,
      clockSkew,
      segmentBytes,
      tuning: { ...swarm.tuning, replaceAfterMs, balanceAfterMs },
      log: (node) => this.#logOf(node),
    });
    world.trace = trace ?? null;
    world.onThrown = (error) =>
      this.#violations.push(`thrown: ${error instanceof Error ? error.stack : String(error)}`);
    world.onSent = (lane, bytes) => this.#invariants.sent(lane, bytes);
    this.#world = world;
    this.#invariants.world = world;
    this.#initial = world.nodes.slice(0, nodes);
    this.#tenants = Array.from({ length: swarm.tenants }, (_, index) => `t${index + 1}`);
    this.#configs = Array.from({ length: swarm.configs }, (_, index) => `c${index + 1}`);
    this.#nemesis = new Nemesis({
      seed,
      world,
      swarm,
      tenants: this.#tenants,
      proposal: (action) => this.#proposal(action),
      draw: this.#prng.fork(),
    });
  }

  async toEnd(): Promise<RunResult> {
    await this.#prepare();
    const followers = await this.#storm();
    await this.#heal();
    await this.#judge(followers);
    const { events, now, traceHash } = this.#world;
    const { crashes, moves, departures } = this.#nemesis;
    return {
      seed: this.#seed,
      events,
      virtualMs: Math.round(now),
      traceHash,
      operations: this.#operations,
      acknowledged: this.#acknowledged.length,
      crashes,
      elections: this.#elections,
      moves,
      departures,
      violations: this.#violations,
    };
  }

  get #isGood(): boolean {
    return this.#violations.length === 0;
  }

  #logOf(node: string): Log {
    return {
      debug: (fields, message) => {
        if (message !== "replica.leader_changed") return;
        const { group, term, role } = fields as { group: number; term: number; role: string };
        if (role !== "leader") return;
        this.#elections += 1;
        this.#invariants.leader(group, term, node);
      },
      info() {},
      warn: (fields, message) => {
        if (message === "frame.malformed")
          this.#violations.push(`malformed frame: ${String((fields as { err: unknown }).err)}`);
      },
      error: (fields, message) => {
        // What rotted is found and the replica stopped, as it must be.
        if (message === "replica.journal_damaged" && this.#nemesis.rotten === node) return;
        const { err } = fields as { err?: Error };
        this.#violations.push(`${message}: ${err?.stack ?? JSON.stringify(fields)}`);
      },
    };
  }

  /** After each event. @returns whether the run is over: something is broken */
  #check(): boolean {
    const ended = this.#world.reap();
    this.#invariants.step();
    if (ended !== null && !this.#nemesis.ended(ended))
      this.#violations.push(`${ended.name} ended without a fault of its disk`);
    return !this.#isGood;
  }

  #proposal(action: Command["action"]): Command {
    return {
      at: 1_700_000_000_000 + Math.floor(this.#world.now),
      actor: system,
      semantics: semanticsNow,
      action,
    };
  }

  /** Repeated until it is answered; null: it never was. */
  async #change(tenant: string, action: Command["action"]): Promise<Outcome | null> {
    for (let attempt = 0; attempt < 20; attempt++) {
      let answer: Outcome | null = null;
      let ended = false;
      const node = this.#prng.pick(this.#world.alive);
      node.host?.requests.propose(tenant, this.#proposal(action), 5_000, (error, outcome) => {
        ended = true;
        if (error === null) answer = outcome ?? null;
      });
      await this.#world.run(this.#world.now + 6_000, () => ended || this.#check());
      if (answer !== null || !this.#isGood) return answer;
    }
    return null;
  }

  // --- preparation, in calm weather ------------------------------------------------------------------------------------

  async #prepare(): Promise<void> {
    for (const node of this.#initial) this.#world.start(node);
    const isReady = (): boolean => this.#initial.every((node) => node.host?.ready === true);
    await this.#world.run(this.#world.now + 20_000, () => this.#check() || isReady());
    if (!isReady() && this.#isGood)
      this.#violations.push("the cluster did not become ready in calm weather");
    if (this.#isGood) this.#demandFirstMembers();
    for (const [index, tenant] of this.#tenants.entries()) {
      if (!this.#isGood) break;
      await this.#makeTenant(tenant, this.#swarm.singleVoter && index === 0);
    }
  }

  /**
   * Who starts in calm weather begins as a first member of the directory. One that came in anew instead would have its old
   * vote to lose first: the storm's lost disk would be the second one (seed 270).
   */
  #demandFirstMembers(): void {
    for (const { name, host } of this.#initial) {
      const { replicas = [] } = host?.directory.system()?.placement ?? {};
      if (replicas.every(({ id, state }) => id <= this.#initial.length && state === undefined))
        continue;
      const found = JSON.stringify(replicas);
      this.#violations.push(`not all began as first members, as ${name} knows: ${found}`);
    }
  }

  async #makeTenant(tenant: string, isSingleVoter: boolean): Promise<void> {
    const nodes = isSingleVoter ? 1 : this.#prng.pick([3, this.#swarm.nodes]);
    const outcome = await this.#change("_system", {
      op: "directory.create",
      tenant,
      quotas: {},
      nodes: this.#initial.slice(0, nodes).map((node) => node.name),
      adminKey: { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) },
    });
    if (outcome?.ok !== true && outcome?.code !== "already-exists")
      this.#violations.push(`tenant ${tenant} could not be created: ${JSON.stringify(outcome)}`);
    for (const name of this.#configs) {
      const action = { op: "config.put", namespace: "default", name, format: "text" } as const;
      const made = await this.#change(tenant, action);
      if (made?.ok === true) this.#created.set(`${tenant}/${name}`, made.revision);
      else this.#violations.push(`config ${tenant}/${name}: ${JSON.stringify(made)}`);
    }
  }

  // --- storm ---------------------------------------------------------------------------------------------------------

  async #storm(): Promise<readonly Follower[]> {
    this.#nemesis.isStorming = true;
    for (let id = 1; id <= this.#swarm.clients; id++) this.#actSoon(id, this.#prng.fork());
    const followers = this.#tenants.map(
      (tenant) =>
        new Follower(this.#world, tenant, this.#prng.fork(), (text) => this.#violations.push(text)),
    );
    for (const follower of followers) follower.follow();
    this.#nemesis.unleash();
    if (this.#isGood)
      await this.#world.run(this.#world.now + this.#swarm.stormMs, () => this.#check());
    return followers;
  }

  /** A client does one thing after the other, as long as it storms. */
  #actSoon(client: number, draw: Prng): void {
    if (this.#nemesis.isStorming)
      this.#world.after(draw.between(1, 150), () => this.#act(client, draw));
  }

  #act(client: number, draw: Prng): void {
    if (!this.#nemesis.isStorming) return;
    const tenant = draw.pick(this.#tenants);
    const name = draw.pick(this.#configs);
    const { alive } = this.#world;
    const hasIt = (node: SimNode): boolean => node.host?.locateNow(tenant)?.local === true;
    const at = draw.chance(0.5) ? alive : alive.filter(hasIt);
    if (at.length === 0) return this.#actSoon(client, draw);
    const node = draw.pick(at);
    this.#operations += 1;
    const operation: RegisterOperation = {
      client,
      key: `${tenant}/${name}`,
      call: this.#world.now,
      end: null,
      op: null,
    };
    const target = { tenant, name, node, operation, draw };
    if (draw.chance(0.55) || !hasIt(node)) this.#publish(target);
    else this.#read(target);
  }

  #publish({ tenant, name, node, operation, draw }: Attempt): void {
    const { client, key } = operation;
    const { life } = node;
    const text = `${tenant} v${client}.${this.#operations}`;
    operation.op = { kind: "publish", value: text, revision: null };
    this.#history.push(operation);
    const command: Command = {
      ...this.#proposal(publishOf(name, text)),
      // What nodes do by themselves is taken without room too.
      ...(this.#nemesis.isScarce && { actor: { kind: "admin", keyId: `k${tenant}` } }),
      ...(draw.chance(0.5) ? { idempotency: { key: text, fingerprint: text } } : {}),
    };
    node.host?.requests.propose(tenant, command, draw.pick([500, 3_000]), (error, outcome) => {
      // A process that dies answers nobody: the operation stays open, its outcome unknown.
      if (node.life !== life) return;
      if (error === null && outcome?.ok === true) {
        const { revision } = outcome;
        operation.end = this.#world.now;
        operation.op = { kind: "publish", value: text, revision };
        const { version } = (outcome.result as { version: { version: number } }).version;
        this.#acknowledged.push({ tenant, name, text, version, revision });
      } else if (error !== null && error.code !== "outcome-unknown") {
        // Certainly not done: the checker must not be allowed to place it.
        operation.op = null;
        this.#refused.push({ key, text });
      }
      this.#actSoon(client, draw);
    });
  }

  #read({ tenant, name, node, operation, draw }: Attempt): void {
    const { life } = node;
    node.host?.requests.read(
      tenant,
      { consistency: "linearizable", timeoutMs: draw.pick([300, 2_000]) },
      (error, view) => {
        if (node.life !== life) return;
        if (error === null && view !== undefined) {
          const config = getConfig(view, "default", name);
          const version = config?.latestVersion ?? 0;
          const value =
            version === 0 || config === null ? null : getText(view, "default", name, version);
          operation.end = this.#world.now;
          operation.op = { kind: "read", value, revision: config?.revision ?? 0 };
          this.#history.push(operation);
        }
        this.#actSoon(operation.client, draw);
      },
    );
  }

  // --- healing: from here on it must work --------------------------------------------------------------------------------

  async #heal(): Promise<void> {
    const world = this.#world;
    this.#nemesis.isStorming = false;
    world.weather = calm;
    world.heal();
    for (const node of world.nodes) node.room.level = "free";
    if (this.#isGood) {
      for (const node of world.nodes) this.#nemesis.restart(node);
      // Frames held back by the storm may still arrive for minutes.
      await world.run(world.now + 15_000, () => this.#check());
    }
    for (const tenant of this.#tenants) {
      // An only voter on the node whose journal rotted stays stopped until it is restored; that is what it owes.
      const hasRotted = this.#nemesis.rotten === "n1" && tenant === this.#tenants[0];
      if (hasRotted && this.#swarm.singleVoter) continue;
      for (const name of this.#configs) {
        if (!this.#isGood) break;
        const outcome = await this.#change(tenant, publishOf(name, `final ${tenant} ${name}`));
        if (outcome?.ok !== true)
          this.#violations.push(
            `${tenant}/${name} cannot be written after healing: ${JSON.stringify(outcome)} ${describe(world)}`,
          );
      }
    }
  }

  async #judge(followers: readonly Follower[]): Promise<void> {
    const world = this.#world;
    // Whose directory rotted knows of nothing until it is restored.
    const { rotten } = this.#nemesis;
    const seeing = world.alive.filter(({ name }) => name !== rotten);
    const damaged = world.nodes.find(({ name }) => name === rotten);
    const waits = (row: TenantRow): boolean => waitsFor(damaged, row);
    // Of a move that waits, those that its group's leader does not count any more were left behind already.
    const isLeft = (replica: Replica, on: SimNode): boolean => {
      const row = seeing[0]?.host?.directory.tenant(replica.tenant);
      const waitsForRepair = row !== undefined && waits(row);
      if (!waitsForRepair && !(on === damaged && isStopped(on, "_system"))) return false;
      const leader = [...replicasOf(world, replica.tenant)].find(({ raft }) => raft.isLeader);
      return leader === undefined || ![...leader.voters()].some(([id]) => id === replica.id);
    };
    if (this.#isGood) {
      const misplaced = (): string | null => placed(seeing, waits);
      const settled = (): boolean => converged(world, isLeft) && misplaced() === null;
      await world.run(world.now + 60_000, () => this.#check() || settled());
      if (this.#isGood && !settled())
        this.#violations.push(
          `replicas did not converge after healing: ${misplaced() ?? ""} ${describe(world)}`,
        );
    }
    if (!this.#isGood) return;
    this.#invariants.final(isLeft);
    for (const follower of followers) follower.judge(isLeft);
    this.#violations.push(...judgeVersions(world, this.#tenants, this.#configs));
    this.#judgeAcknowledged(isLeft);
    const published = publishedIn(world, this.#tenants, this.#configs);
    for (const { key, text } of this.#refused)
      if (published.get(key)?.has(text) === true)
        this.#violations.push(`a refused change was not made: ${key} has "${text}"`);
    this.#violations.push(...checkHistory(this.#history, this.#created, published));
  }

  #judgeAcknowledged(isLeft: (replica: Replica, on: SimNode) => boolean): void {
    for (const { tenant, name, version, text } of this.#acknowledged)
      for (const replica of replicasOf(this.#world, tenant, isLeft)) {
        const kept = getText(replica.view, "default", name, version);
        if (kept !== text)
          this.#violations.push(
            `acknowledged write is lost: ${tenant}/${name} version ${version} should be "${text}", is ${JSON.stringify(kept)}`,
          );
      }
  }
}

/** What a client does to one config through one node. */
interface Attempt {
  readonly tenant: string;
  readonly name: string;
  readonly node: SimNode;
  readonly operation: RegisterOperation;
  readonly draw: Prng;
}

function publishOf(name: string, text: string): Command["action"] {
  const content = { text, hash: `sha256:${text}`, bytes: text.length };
  return { op: "publish", namespace: "default", name, content, schemaHash: null };
}

/** Watches one tenant through any node that has it, resuming after its cursor, as a gateway would. */
class Follower {
  readonly #world: World;
  readonly #tenant: string;
  readonly #draw: Prng;
  readonly #violated: (text: string) => void;
  readonly #rows: HistoryRow[] = [];
  #cursor: number | null = null;
  #node: SimNode | null = null;
  #life = 0;

  constructor(world: World, tenant: string, draw: Prng, violated: (text: string) => void) {
    this.#world = world;
    this.#tenant = tenant;
    this.#draw = draw;
    this.#violated = violated;
  }

  follow(): void {
    const again = (): void => this.#world.after(this.#draw.between(20, 200), () => this.follow());
    if (this.#node !== null && this.#node.life === this.#life) return again();
    this.#node = null;
    const holders = this.#world.alive.filter(
      (node) => node.host?.locateNow(this.#tenant)?.local === true,
    );
    if (holders.length === 0) return again();
    const node = this.#draw.pick(holders);
    const { life } = node;
    const leave = (): void => {
      if (this.#life === life) this.#node = null;
    };
    node.host?.watchWith(
      this.#tenant,
      (view) => {
        if (this.#cursor === null) this.#cursor = view.revision;
        for (const row of historyAfter(view, this.#cursor) ?? []) this.#take(row);
      },
      { commit: (event) => this.#take(event), end: leave },
      (error) => {
        if (error !== null) return;
        this.#node = node;
        this.#life = life;
      },
    );
    again();
  }

  #take(row: HistoryRow): void {
    const cursor = this.#cursor ?? 0;
    // A replica that is behind tells again what another one told before: the cursor knows.
    if (row.revision <= cursor) return;
    if (row.revision !== cursor + 1) {
      this.#violated(
        `watch gapless: ${this.#tenant} went from revision ${cursor} to ${row.revision}`,
      );
    }
    this.#cursor = row.revision;
    this.#rows.push({ ...row });
  }

  /** Everything told is what the history says; and a follower of a tenant that lives has reached its end. */
  judge(isLeft: (replica: Replica, on: SimNode) => boolean): void {
    for (const replica of replicasOf(this.#world, this.#tenant, isLeft)) {
      for (const row of this.#rows) {
        const kept = getHistoryRow(replica.view, row.revision);
        if (kept !== null && JSON.stringify(kept.changes) !== JSON.stringify(row.changes)) {
          this.#violated(`watch tells the history: ${this.#tenant} revision ${row.revision}`);
        }
      }
      if (this.#cursor !== null && this.#cursor > replica.view.revision) {
        this.#violated(`watch tells only what is committed: ${this.#tenant} at ${this.#cursor}`);
      }
    }
  }
}

/** Nothing was applied twice (idempotent replay, calls executed once), and no tenant holds what is another's. */
function judgeVersions(
  world: World,
  tenants: readonly string[],
  configs: readonly string[],
): string[] {
  const violations: string[] = [];
  for (const tenant of tenants) {
    for (const replica of replicasOf(world, tenant)) {
      for (const name of configs) {
        const last = getConfig(replica.view, "default", name)?.latestVersion ?? 0;
        const texts = new Set<string>();
        for (let version = 1; version <= last; version++) {
          const text = getText(replica.view, "default", name, version);
          if (text === null) continue;
          if (texts.has(text))
            violations.push(`applied once: ${tenant}/${name} has "${text}" twice`);
          if (!text.includes(tenant))
            violations.push(`tenant isolation: ${tenant}/${name} holds "${text}"`);
          texts.add(text);
        }
      }
    }
  }
  return violations;
}

/** What was published, and at which revision, by tenant and config; absent where no replica can say all of it. */
function publishedIn(
  world: World,
  tenants: readonly string[],
  configs: readonly string[],
): Map<string, ReadonlyMap<string, number>> {
  const published = new Map<string, ReadonlyMap<string, number>>();
  for (const tenant of tenants) {
    const [first, ...others] = replicasOf(world, tenant);
    if (first === undefined) continue;
    const { view } = others.reduce(
      (best, one) => (one.view.revision > best.view.revision ? one : best),
      first,
    );
    for (const name of configs) {
      const last = getConfig(view, "default", name)?.latestVersion ?? 0;
      const revisions = new Map<string, number>();
      for (let version = 1; version <= last; version++) {
        const text = getText(view, "default", name, version);
        const row = getVersion(view, "default", name, version);
        if (text !== null && row !== null) revisions.set(text, row.revision);
      }
      if (revisions.size === last) published.set(`${tenant}/${name}`, revisions);
    }
  }
  return published;
}

function* replicasOf(
  world: World,
  tenant: string,
  isLeft?: (replica: Replica, on: SimNode) => boolean,
): Generator<Replica> {
  for (const node of world.nodes) {
    for (const replica of node.host?.replicas() ?? []) {
      if (replica.tenant !== tenant || replica.halted !== null) continue;
      if (isLeft?.(replica, node) !== true) yield replica;
    }
  }
}

/**
 * Whoever is awake applied all of its log, equally far, and no group has two leaders. (One of them may be asleep.) Not so
 * where a move waits for a repair: those that leave are behind already.
 */
function converged(world: World, isLeft: (replica: Replica, on: SimNode) => boolean): boolean {
  const groups = new Map<
    number,
    { applied: Set<number>; leaders: number; awake: number; size: number }
  >();
  for (const node of world.nodes) {
    for (const replica of node.host?.replicas() ?? []) {
      if (replica.halted !== null || isLeft(replica, node)) continue;
      const { raft, group: number } = replica;
      if (raft.appliedIndex !== raft.lastIndex) return false;
      const group = groups.get(number) ?? {
        applied: new Set(),
        leaders: 0,
        awake: 0,
        size: replica.members.size,
      };
      group.applied.add(raft.appliedIndex);
      group.awake += 1;
      if (raft.isLeader) group.leaders += 1;
      groups.set(number, group);
    }
  }
  for (const { applied, leaders, awake, size } of groups.values()) {
    if (applied.size !== 1 || leaders > 1 || (leaders === 0 && awake === size)) return false;
  }
  return true;
}

/** A move to a node cannot end while its replica, or its directory, is stopped by damage: until somebody repairs it. */
function waitsFor(node: SimNode | undefined, row: TenantRow): boolean {
  const { replicas } = row.placement;
  const voting = replicas.filter(({ state }) => state !== "joining" && state !== "learner");
  const own = replicas.filter((one) => one.node === node?.name);
  // One that leaves is only missed where its group has no majority without it.
  const isMissed = (one: PlacedReplica): boolean =>
    !isLeaving(one) || (voting.includes(one) && (voting.length - 1) * 2 <= voting.length);
  if (!own.some(isMissed)) return false;
  return isStopped(node, "_system") || isStopped(node, row.tenant);
}

function isStopped(node: SimNode | undefined, tenant: string): boolean {
  for (const replica of node?.host?.replicas() ?? [])
    if (replica.halted !== null && replica.tenant === tenant) return true;
  return false;
}

/** What is not where the directory wants it, but for tenants that wait; null when everything is. */
function placed(nodes: readonly SimNode[], waits: (row: TenantRow) => boolean): string | null {
  const directory = nodes[0]?.host?.directory;
  const moving = directory
    ?.moving(0, 100)
    .find((row) => !row.tenant.startsWith("e") && !waits(row));
  if (moving !== undefined) return `${moving.tenant} moves: ${JSON.stringify(moving.placement)}`;
  for (const node of nodes) {
    for (const name of node.environments.names()) {
      const [tenant = "", , id] = name.split(".");
      if (tenant === "_system" || tenant.startsWith("e")) continue;
      const row = directory?.tenant(tenant);
      if (row !== undefined && waits(row)) continue;
      const replicas = row?.placement.replicas ?? [];
      if (!replicas.some((each) => each.node === node.name && each.id === Number(id)))
        return `${node.name} still has ${name}`;
    }
    for (const replica of node.host?.replicas() ?? []) {
      const row = directory?.tenant(replica.tenant);
      if (row === undefined || replica.halted !== null || waits(row)) continue;
      const wanted = row.placement.replicas.map(({ id }) => id).sort((a, b) => a - b);
      const { voters, votersOutgoing, learners } = replica.conf;
      if (voters.join() !== wanted.join() || votersOutgoing.length + learners.length > 0)
        return `${node.name}/${replica.tenant} has ${JSON.stringify(replica.conf)}`;
    }
  }
  return null;
}

function describe(world: World): string {
  const lines: string[] = [];
  for (const node of world.nodes) {
    for (const replica of node.host?.replicas() ?? []) {
      if (replica.halted !== null) {
        lines.push(`${node.name}/${replica.tenant}: halted`);
        continue;
      }
      const { role, term, lead, commitIndex, appliedIndex, lastIndex, idle } = replica.raft;
      lines.push(
        `${node.name}/${replica.tenant}#${replica.id} of ${replica.conf.voters.join("+")}: ${role} term ${term} lead ${lead} commit ${commitIndex} applied ${appliedIndex} last ${lastIndex} idle ${idle} busy ${replica.busyStoring}`,
      );
    }
  }
  return lines.join("; ");
}
