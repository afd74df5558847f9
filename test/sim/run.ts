/**
 * One simulated life of a cluster, decided by its seed: a safety phase under faults, then everything heals and liveness
 * is demanded — the cluster must converge, serve, and still have every acknowledged write.
 */
import type { Log, Tuning } from "../../src/host/node_host.ts";
import type { Replica } from "../../src/host/replica.ts";
import type { Command, Outcome } from "../../src/machine/command.ts";
import { getConfig, getText } from "../../src/machine/queries.ts";
import { Prng } from "../../src/lib/prng.ts";
import { checkHistory, type RegisterOperation } from "./history.ts";
import { Invariants } from "./invariants.ts";
import { calm, World, type SimNode, type Weather } from "./world.ts";

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
  /** Broken invariants; empty for a good run. */
  readonly violations: readonly string[];
}

interface Swarm {
  readonly nodes: number;
  readonly tenants: number;
  readonly configs: number;
  readonly clients: number;
  readonly environmentsMax: number;
  readonly stormMs: number;
  readonly weather: Weather;
  readonly crashEveryMs: number;
  readonly cutEveryMs: number;
  readonly freezeEveryMs: number;
  readonly singleVoter: boolean;
  readonly segmentBytes: number;
  readonly tuning: Tuning;
}

/** The seed draws what kind of run it is, so that a thousand seeds are a thousand kinds (swarm testing). */
function drawSwarm(prng: Prng, stormMs: number): Swarm {
  const rough = prng.chance(0.6);
  return {
    nodes: prng.chance(0.85) ? 3 : 5,
    tenants: prng.between(1, 3),
    configs: prng.between(1, 2),
    clients: prng.between(1, 5),
    environmentsMax: 1_000,
    stormMs,
    weather: {
      drop: rough ? prng.pick([0, 0.01, 0.05, 0.2]) : 0,
      duplicate: rough ? prng.pick([0, 0.02, 0.1]) : 0,
      delay: prng.pick([[0.1, 1] as const, [0.5, 20] as const, [1, 200] as const]),
      late: rough ? prng.pick([0, 0.01]) : 0,
      lateMs: prng.pick([2_000, 20_000, 120_000]),
      disk: prng.pick([[0.05, 0.4] as const, [0.2, 5] as const, [1, 60] as const]),
    },
    crashEveryMs: prng.pick([0, 2_000, 5_000]),
    cutEveryMs: prng.pick([0, 1_500, 4_000]),
    freezeEveryMs: prng.pick([0, 0, 4_000]),
    singleVoter: prng.chance(0.15),
    segmentBytes: prng.pick([4_096, 16_384, 262_144]),
    tuning: {
      checkpointBytes: prng.pick([500, 5_000, 4_000_000]),
      journalSegments: prng.pick([1, 2, 4]),
      logKeptEntries: prng.pick([0, 3, 20, 1_000]),
      sleepAfterMs: prng.pick([300, 2_000, 600_000]),
    },
  };
}

interface Acknowledged {
  readonly tenant: string;
  readonly name: string;
  readonly version: number;
  readonly text: string;
  readonly revision: number;
}

export async function runSeed(options: RunOptions): Promise<RunResult> {
  const prng = new Prng(options.seed);
  const swarm = drawSwarm(prng.fork(), options.stormMs ?? 12_000);
  const violations: string[] = [];
  const invariants = new Invariants((violation) => violations.push(violation));
  let elections = 0;
  const log = (node: string): Log => ({
    debug(fields, message) {
      if (message !== "replica.leader_changed") return;
      const { group, term, role } = fields as { group: number; term: number; role: string };
      if (role !== "leader") return;
      elections += 1;
      invariants.leader(group, term, node);
    },
    info() {},
    warn(fields, message) {
      if (message === "frame.malformed")
        violations.push(`malformed frame: ${String((fields as { err: unknown }).err)}`);
    },
    error(fields, message) {
      const { err } = fields as { err?: Error };
      violations.push(`${message}: ${err?.stack ?? JSON.stringify(fields)}`);
    },
  });
  const world = new World({
    seed: prng.uint32(),
    nodes: swarm.nodes,
    environmentsMax: swarm.environmentsMax,
    segmentBytes: swarm.segmentBytes,
    tuning: swarm.tuning,
    log,
  });
  world.trace = options.trace ?? null;
  invariants.world = world;
  let crashes = 0;

  for (const node of world.nodes) world.start(node);
  const tenants = Array.from({ length: swarm.tenants }, (_, index) => `t${index + 1}`);
  const configs = Array.from({ length: swarm.configs }, (_, index) => `c${index + 1}`);
  const check = (): boolean => {
    invariants.step();
    for (const node of world.nodes) {
      if (node.fatal !== null) violations.push(`${node.name} ended: ${node.fatal.message}`);
    }
    return violations.length > 0;
  };

  // --- preparation, in calm weather ------------------------------------------------------------------------------------
  const system: Command["actor"] = { kind: "system", keyId: "sim" };
  const proposal = (action: Command["action"]): Command => ({
    at: 1_700_000_000_000 + Math.floor(world.now),
    actor: system,
    action,
  });
  const change = async (tenant: string, action: Command["action"]): Promise<Outcome | null> => {
    for (let attempt = 0; attempt < 20; attempt++) {
      let answer: Outcome | null = null;
      let ended = false;
      const node = prng.pick(world.alive);
      node.host?.proposeWith(tenant, proposal(action), 5_000, (error, outcome) => {
        ended = true;
        if (error === null) answer = outcome ?? null;
      });
      await world.run(world.now + 6_000, () => ended || check());
      if (answer !== null || violations.length > 0) return answer;
    }
    return null;
  };
  await world.run(
    world.now + 20_000,
    () => check() || world.nodes.every((node) => node.host?.ready === true),
  );
  if (!world.nodes.every((node) => node.host?.ready === true) && violations.length === 0) {
    violations.push("the cluster did not become ready in calm weather");
  }
  for (const [index, tenant] of tenants.entries()) {
    if (violations.length > 0) break;
    const nodes = swarm.singleVoter && index === 0 ? 1 : 3;
    const outcome = await change("_system", {
      op: "directory.create",
      tenant,
      quotas: {},
      nodes: world.nodes.slice(0, nodes).map((node) => node.name),
      adminKey: { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) },
    });
    if (outcome?.ok !== true && outcome?.code !== "already-exists") {
      violations.push(`tenant ${tenant} could not be created: ${JSON.stringify(outcome)}`);
    }
    for (const name of configs) {
      const made = await change(tenant, {
        op: "config.put",
        namespace: "default",
        name,
        format: "text",
      });
      if (made?.ok !== true) violations.push(`config ${tenant}/${name}: ${JSON.stringify(made)}`);
    }
  }

  // --- storm ---------------------------------------------------------------------------------------------------------
  const history: RegisterOperation[] = [];
  const acknowledged: Acknowledged[] = [];
  let operations = 0;
  let storming = true;
  const holders = (tenant: string): SimNode[] =>
    world.alive.filter((node) => node.host?.locateNow(tenant)?.local === true);

  const client = (id: number, draw: Prng): void => {
    const next = (): void => {
      if (storming) world.after(draw.between(1, 150), act);
    };
    const act = (): void => {
      if (!storming) return;
      const tenant = draw.pick(tenants);
      const name = draw.pick(configs);
      const at = draw.chance(0.5) ? world.alive : holders(tenant);
      if (at.length === 0) return next();
      const node = draw.pick(at);
      const { life } = node;
      const key = `${tenant}/${name}`;
      operations += 1;
      const operation: RegisterOperation = {
        client: id,
        key,
        call: world.now,
        end: null,
        op: null,
      };
      // A process that dies answers nobody: the operation stays open, its outcome unknown.
      const live = (): boolean => node.life === life;
      if (draw.chance(0.55) || node.host?.locateNow(tenant)?.local !== true) {
        const text = `v${id}.${operations}`;
        operation.op = { kind: "publish", value: text, revision: null };
        history.push(operation);
        const command: Command = {
          ...proposal({
            op: "publish",
            namespace: "default",
            name,
            content: { text, hash: `sha256:${text}`, bytes: text.length },
            schemaHash: null,
          }),
          ...(draw.chance(0.5) ? { idempotency: { key: text, fingerprint: text } } : {}),
        };
        node.host?.proposeWith(tenant, command, draw.pick([500, 3_000]), (error, outcome) => {
          if (!live()) return;
          if (error === null && outcome?.ok === true) {
            operation.end = world.now;
            operation.op = { kind: "publish", value: text, revision: outcome.revision };
            const { version } = outcome.result as { version: { version: number } };
            acknowledged.push({
              tenant,
              name,
              text,
              version: version.version,
              revision: outcome.revision,
            });
          } else if (error !== null && error.code !== "outcome-unknown") {
            // Certainly not done: the checker must not be allowed to place it.
            operation.op = null;
          }
          next();
        });
        return;
      }
      node.host?.readWith(
        tenant,
        { consistency: "linearizable", timeoutMs: draw.pick([300, 2_000]) },
        (error, view) => {
          if (!live()) return;
          if (error === null && view !== undefined) {
            const config = getConfig(view, "default", name);
            const version = config?.latestVersion ?? 0;
            const value =
              version === 0 || config === null ? null : getText(view, "default", name, version);
            operation.end = world.now;
            operation.op = { kind: "read", value, revision: config?.revision ?? 0 };
            history.push(operation);
          }
          next();
        },
      );
    };
    next();
  };
  for (let id = 1; id <= swarm.clients; id++) client(id, prng.fork());

  world.weather = swarm.weather;
  const nemesis = prng.fork();
  const every = (ms: number, act: () => void): void => {
    if (ms === 0) return;
    const again = (): void => {
      if (!storming) return;
      act();
      world.after(nemesis.between(ms / 2, (ms * 3) / 2), again);
    };
    world.after(nemesis.between(ms / 2, ms), again);
  };
  every(swarm.crashEveryMs, () => {
    // Sometimes more than a minority: nothing may be lost, it may only stand still.
    const down = nemesis.chance(0.15) ? swarm.nodes : 1;
    for (let count = 0; count < down; count++) {
      const node = nemesis.pick(world.nodes);
      if (node.host === null) continue;
      invariants.crashed(node);
      world.crash(node);
      crashes += 1;
      world.after(nemesis.between(10, 3_000), () => {
        if (node.host === null) world.start(node);
      });
    }
  });
  every(swarm.cutEveryMs, () => {
    world.heal();
    if (nemesis.chance(0.3)) return;
    const victim = nemesis.pick(world.nodes);
    const oneWay = nemesis.chance(0.3);
    for (const other of world.nodes) {
      if (other === victim || nemesis.chance(0.2)) continue;
      world.cut(victim, other);
      if (!oneWay) world.cut(other, victim);
    }
  });
  every(swarm.freezeEveryMs, () => {
    world.freeze(nemesis.pick(world.nodes), nemesis.between(100, 4_000));
  });
  if (violations.length === 0) await world.run(world.now + swarm.stormMs, check);

  // --- healing: from here on it must work --------------------------------------------------------------------------------
  storming = false;
  world.weather = calm;
  world.heal();
  if (violations.length === 0) {
    for (const node of world.nodes) if (node.host === null) world.start(node);
    // Frames held back by the storm may still arrive for minutes.
    await world.run(world.now + 15_000, check);
  }
  for (const tenant of tenants) {
    for (const name of configs) {
      if (violations.length > 0) break;
      const text = `final ${tenant} ${name}`;
      const content = { text, hash: `sha256:${text}`, bytes: text.length };
      const outcome = await change(tenant, {
        op: "publish",
        namespace: "default",
        name,
        content,
        schemaHash: null,
      });
      if (outcome?.ok !== true)
        violations.push(`${tenant}/${name} cannot be written after healing`);
    }
  }
  if (violations.length === 0) {
    await world.run(world.now + 60_000, () => check() || converged(world));
    if (violations.length === 0 && !converged(world)) {
      violations.push(`replicas did not converge after healing: ${describe(world)}`);
    }
  }
  if (violations.length === 0) {
    invariants.final();
    for (const ack of acknowledged) {
      for (const replica of replicasOf(world, ack.tenant)) {
        const kept = getText(replica.view, "default", ack.name, ack.version);
        if (kept !== ack.text) {
          violations.push(
            `acknowledged write is lost: ${ack.tenant}/${ack.name} version ${ack.version} should be "${ack.text}", is ${JSON.stringify(kept)}`,
          );
        }
      }
    }
    violations.push(...checkHistory(history));
  }
  return {
    seed: options.seed,
    events: world.events,
    virtualMs: Math.round(world.now),
    traceHash: world.traceHash,
    operations,
    acknowledged: acknowledged.length,
    crashes,
    elections,
    violations,
  };
}

function* replicasOf(world: World, tenant: string): Generator<Replica> {
  for (const node of world.nodes) {
    for (const replica of node.host?.replicas() ?? []) if (replica.tenant === tenant) yield replica;
  }
}

/** Every group has one leader, and all its replicas applied all of its log. */
function converged(world: World): boolean {
  const groups = new Map<number, { applied: Set<number>; leaders: number; last: Set<number> }>();
  for (const node of world.nodes) {
    for (const replica of node.host?.replicas() ?? []) {
      const group = groups.get(replica.group) ?? {
        applied: new Set(),
        leaders: 0,
        last: new Set(),
      };
      group.applied.add(replica.raft.appliedIndex);
      group.last.add(replica.raft.lastIndex);
      if (replica.raft.isLeader) group.leaders += 1;
      groups.set(replica.group, group);
    }
  }
  for (const { applied, leaders, last } of groups.values()) {
    if (applied.size !== 1 || last.size !== 1 || leaders !== 1) return false;
    if ([...applied][0] !== [...last][0]) return false;
  }
  return true;
}

function describe(world: World): string {
  const lines: string[] = [];
  for (const node of world.nodes) {
    for (const replica of node.host?.replicas() ?? []) {
      const { role, term, lead, commitIndex, appliedIndex, lastIndex, idle } = replica.raft;
      lines.push(
        `${node.name}/${replica.tenant}: ${role} term ${term} lead ${lead} commit ${commitIndex} applied ${appliedIndex} last ${lastIndex} idle ${idle} busy ${replica.busyStoring}`,
      );
    }
  }
  return lines.join("; ");
}
