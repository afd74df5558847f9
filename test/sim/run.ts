/**
 * One simulated life of a cluster, decided by its seed: a safety phase under faults, then everything heals and liveness
 * is demanded — the cluster must converge, serve, and still have every acknowledged write.
 */
import type { Tuning } from "../../src/host/node_host.ts";
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
  /** Placements that the directory took. */
  readonly moves: number;
  /** Nodes that left for good. */
  readonly departures: number;
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
  readonly diskFaultEveryMs: number;
  readonly churnEveryMs: number;
  /** Tenants get other nodes, more or fewer of them. */
  readonly moveEveryMs: number;
  /** One node comes back with an empty disk, once. */
  readonly wipes: boolean;
  readonly drainEveryMs: number;
  /** Nodes that join while it storms. */
  readonly spares: number;
  readonly clockSkew: boolean;
  /** One bit of one node's journal rots at one of its crashes. */
  readonly rot: boolean;
  readonly singleVoter: boolean;
  readonly segmentBytes: number;
  readonly tuning: Omit<Tuning, "replaceAfterMs" | "balanceAfterMs">;
  readonly replaceAfterMs: number;
  readonly balanceAfterMs: number;
}

/** The seed draws what kind of run it is, so that a thousand seeds are a thousand kinds (swarm testing). */
function drawSwarm(prng: Prng, stormMs: number): Swarm {
  const rough = prng.chance(0.6);
  const swarm = {
    nodes: prng.chance(0.85) ? 3 : 5,
    tenants: prng.between(1, 3),
    configs: prng.between(1, 2),
    clients: prng.between(1, 5),
    environmentsMax: prng.pick([19, 22, 1_000]),
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
    diskFaultEveryMs: prng.pick([0, 0, 3_000]),
    churnEveryMs: prng.pick([0, 0, 2_500]),
    clockSkew: prng.chance(0.3),
    rot: prng.chance(0.1),
    singleVoter: prng.chance(0.15),
    segmentBytes: prng.pick([4_096, 16_384, 262_144]),
    tuning: {
      checkpointBytes: prng.pick([500, 5_000, 4_000_000]),
      restoreCheckpointBytes: 500,
      journalSegments: prng.pick([1, 2, 4]),
      // Where segments are small that is reached.
      journalSegmentsMax: 8,
      logKeptEntries: prng.pick([0, 3, 20, 1_000]),
      logKeptBytes: prng.pick([0, 2_000, 1_000_000]),
      logKeptBytesForLagging: prng.pick([0, 5_000, 1_000_000]),
      snapshotPartBytes: prng.pick([1, 300, 100_000]),
      sleepAfterMs: prng.pick([300, 2_000, 600_000]),
    },
    // Drawn last, so that the seeds of before kept their kind.
    replaceAfterMs: prng.pick([2_500, 20_000, 300_000]),
    wipes: prng.chance(0.3),
    drainEveryMs: prng.pick([0, 0, 4_000]),
    spares: prng.pick([0, 0, 0, 1, 2]),
    moveEveryMs: prng.pick([0, 700, 2_000, 5_000]),
    balanceAfterMs: prng.pick([200, 2_000, 10_000]),
  };
  // Where none sleep for want of use they sleep for want of room.
  const awakeMax = swarm.tuning.sleepAfterMs === 600_000 ? 3 : swarm.environmentsMax - 16;
  const awakeLimit = swarm.environmentsMax;
  const directoryCheckpointBytes = swarm.tuning.checkpointBytes / 4;
  const tuning = { ...swarm.tuning, directoryCheckpointBytes, awakeMax, awakeLimit };
  return { ...swarm, tuning };
}

/** Those who leave are looked for this often. */
const SEE_OFF_MS = 20;

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
  // A generator of its own: what earlier seeds drew stays as it was.
  const scarcity = new Prng(options.seed + 0x5eed);
  const scarceEveryMs = scarcity.pick([0, 0, 0, 1_500]);
  const parting = new Prng(options.seed + 0x1ea4e);
  const leaveEveryMs = parting.pick([0, 3_000]);
  const violations: string[] = [];
  const invariants = new Invariants((violation) => violations.push(violation));
  let elections = 0;
  let rotten: string | null = null;
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
      // What rotted is found and the replica stopped, as it must be.
      if (message === "replica.journal_damaged" && rotten === node) return;
      const { err } = fields as { err?: Error };
      violations.push(`${message}: ${err?.stack ?? JSON.stringify(fields)}`);
    },
  });
  const world = new World({
    seed: prng.uint32(),
    nodes: swarm.nodes,
    spares: swarm.spares,
    environmentsMax: swarm.environmentsMax,
    clockSkew: swarm.clockSkew,
    segmentBytes: swarm.segmentBytes,
    tuning: {
      ...swarm.tuning,
      replaceAfterMs: swarm.replaceAfterMs,
      balanceAfterMs: swarm.balanceAfterMs,
    },
    log,
  });
  world.trace = options.trace ?? null;
  invariants.world = world;
  world.onThrown = (error) =>
    violations.push(`thrown: ${error instanceof Error ? error.stack : String(error)}`);
  world.onSent = (lane, bytes) => invariants.sent(lane, bytes);
  let crashes = 0;
  let moves = 0;
  const nemesis = prng.fork();
  /** Nodes whose disk was told to fail: they are right to end. */
  const faulty = new Set<string>();
  /** Nodes that left and do not come back. */
  const gone = new Set<SimNode>();
  let departures = 0;
  const restart = (node: SimNode): void => {
    if (node.host === null && !gone.has(node)) world.start(node);
  };

  const initial = world.nodes.slice(0, swarm.nodes);
  for (const node of initial) world.start(node);
  /** Revision of each config when it was made. */
  const created = new Map<string, number>();
  const tenants = Array.from({ length: swarm.tenants }, (_, index) => `t${index + 1}`);
  const configs = Array.from({ length: swarm.configs }, (_, index) => `c${index + 1}`);
  const check = (): boolean => {
    const ended = world.reap();
    invariants.step();
    if (ended !== null) {
      if (!faulty.delete(ended.name))
        violations.push(`${ended.name} ended without a fault of its disk`);
      crashes += 1;
      world.after(nemesis.between(10, 2_000), () => restart(ended));
    }
    return violations.length > 0;
  };

  // --- preparation, in calm weather ------------------------------------------------------------------------------------
  const system: Command["actor"] = { kind: "system", keyId: "sim" };
  const proposal = (action: Command["action"]): Command => ({
    at: 1_700_000_000_000 + Math.floor(world.now),
    actor: system,
    semantics: semanticsNow,
    action,
  });
  const change = async (tenant: string, action: Command["action"]): Promise<Outcome | null> => {
    for (let attempt = 0; attempt < 20; attempt++) {
      let answer: Outcome | null = null;
      let ended = false;
      const node = prng.pick(world.alive);
      node.host?.requests.propose(tenant, proposal(action), 5_000, (error, outcome) => {
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
    () => check() || initial.every((node) => node.host?.ready === true),
  );
  if (!initial.every((node) => node.host?.ready === true) && violations.length === 0) {
    violations.push("the cluster did not become ready in calm weather");
  }
  for (const [index, tenant] of tenants.entries()) {
    if (violations.length > 0) break;
    const nodes = swarm.singleVoter && index === 0 ? 1 : prng.pick([3, swarm.nodes]);
    const outcome = await change("_system", {
      op: "directory.create",
      tenant,
      quotas: {},
      nodes: initial.slice(0, nodes).map((node) => node.name),
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
      if (made?.ok === true) created.set(`${tenant}/${name}`, made.revision);
      else violations.push(`config ${tenant}/${name}: ${JSON.stringify(made)}`);
    }
  }

  // --- storm ---------------------------------------------------------------------------------------------------------
  const history: RegisterOperation[] = [];
  const acknowledged: Acknowledged[] = [];
  const refused: { readonly key: string; readonly text: string }[] = [];
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
        const text = `${tenant} v${id}.${operations}`;
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
          // What nodes do by themselves is taken without room too.
          ...(scarceEveryMs > 0 && { actor: { kind: "admin", keyId: `k${tenant}` } }),
          ...(draw.chance(0.5) ? { idempotency: { key: text, fingerprint: text } } : {}),
        };
        node.host?.requests.propose(tenant, command, draw.pick([500, 3_000]), (error, outcome) => {
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
            refused.push({ key, text });
          }
          next();
        });
        return;
      }
      node.host?.requests.read(
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

  // --- watchers ------------------------------------------------------------------------------------------------------
  const followers = tenants.map(
    (tenant) => new Follower(world, tenant, prng.fork(), (text) => violations.push(text)),
  );
  for (const follower of followers) follower.follow();

  world.weather = swarm.weather;
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
      world.crash(node);
      crashes += 1;
      if (swarm.rot && (rotten === null || rotten === node.name) && world.flipBit(node)) {
        rotten = node.name;
      }
      world.after(nemesis.between(10, 3_000), () => restart(node));
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
  every(swarm.diskFaultEveryMs, () => {
    const node = nemesis.pick(world.nodes);
    if (node.host === null) return;
    if (nemesis.chance(0.5)) {
      world.stallDisk(node, nemesis.between(100, 4_000));
    } else {
      faulty.add(node.name);
      world.failDisk(node);
    }
  });
  if (swarm.clockSkew) {
    every(3_000, () => {
      nemesis.pick(world.nodes).wallOffset = nemesis.between(-3_600_000, 3_600_000);
    });
  }
  // What a wiped disk was the only one to have would be lost, and with rot elsewhere that can be more.
  const wipes = swarm.wipes && !swarm.rot && !swarm.singleVoter;
  // Where few nodes are left, `_system` has one vote only.
  const leaves = leaveEveryMs > 0 && !wipes && !swarm.rot;
  /** Initial nodes that may come back with nothing: were they a majority, they could begin anew. */
  let returnable = Math.ceil(swarm.nodes / 2) - 1;
  /** Tenants that come and go beside the others. */
  let passing = 0;
  every(swarm.churnEveryMs, () => {
    const name = `e${++passing}`;
    const at = (): SimNode | null => (world.alive.length === 0 ? null : nemesis.pick(world.alive));
    const tell = (tenant: string, action: Command["action"], then: () => void): void => {
      at()?.host?.requests.propose(tenant, proposal(action), 2_000, (error) => {
        if (error === null && storming) world.after(nemesis.between(1, 400), then);
      });
    };
    const nodes = world.nodes.slice(0, nemesis.pick(wipes ? [3] : [1, 3])).map((node) => node.name);
    const adminKey = { id: `k${name}`, kind: "admin" as const, hash: "0".repeat(64) };
    tell("_system", { op: "directory.create", tenant: name, quotas: {}, nodes, adminKey }, () => {
      tell(name, { op: "config.put", namespace: "default", name: "c", format: "text" }, () => {
        tell("_system", { op: "directory.delete", tenant: name, purge: true }, () => {});
      });
    });
  });
  if (scarceEveryMs > 0)
    every(scarceEveryMs, () => {
      scarcity.pick(world.nodes).room.level = scarcity.pick(["free", "low", "out"]);
    });
  every(swarm.moveEveryMs, () => {
    const node = world.alive.length === 0 ? null : nemesis.pick(world.alive);
    const tenant = nemesis.pick(tenants);
    const row = node?.host?.directory.tenant(tenant);
    if (row === undefined) return;
    // What is only on the node whose journal rots is gone with it.
    const isFragile = swarm.rot || wipes;
    const sizes = isFragile ? [3, swarm.nodes] : [1, 2, 3, 3, swarm.nodes];
    if (isFragile && row.placement.replicas.length === 1) return;
    const nodes = shuffled(world.nodes, nemesis)
      .map(({ name }) => name)
      .slice(0, nemesis.pick(sizes));
    const generation = row.placement.generation ?? 0;
    const action = { op: "directory.move", tenant, nodes, generation } as const;
    node?.host?.requests.propose("_system", proposal(action), 2_000, (error, outcome) => {
      if (error === null && outcome?.ok === true) moves += 1;
    });
  });
  if (wipes) {
    world.after(nemesis.between(1_000, swarm.stormMs), () => {
      const node = nemesis.pick(initial);
      if (!storming) return;
      if (node.host !== null) world.crash(node);
      world.wipe(node);
      world.after(nemesis.between(10, 3_000), () => restart(node));
    });
  }
  every(swarm.drainEveryMs, () => {
    const phase = nemesis.pick(["draining", "active"] as const);
    const { name } = nemesis.pick(world.nodes);
    const at = world.alive.length === 0 ? null : nemesis.pick(world.alive);
    const action = { op: "node.phase", node: name, phase } as const;
    at?.host?.requests.propose("_system", proposal(action), 2_000, () => {});
  });
  // Told to leave; when the directory knows a node no more, its process ends that very moment and its disk is thrown away.
  const leaving = new Map<SimNode, number>();
  every(leaves ? leaveEveryMs : 0, () => {
    const node = parting.pick(world.nodes);
    // Who joins later has only the initial nodes' names to go by: one of them stays.
    const rest = initial.filter((one) => one !== node && !leaving.has(one) && !gone.has(one));
    if (rest.length === 0) return;
    const at = world.alive.length === 0 ? undefined : parting.pick(world.alive).host;
    const revision = at?.directory.revision ?? null;
    if (at == null || revision === null || at.directory.node(node.name) === undefined) return;
    // Also when nobody answers it may have been done.
    leaving.set(node, revision);
    const action = { op: "node.phase", node: node.name, phase: "leaving" } as const;
    at.requests.propose("_system", proposal(action), 2_000, () => {});
  });
  const hasLeft = (node: SimNode, toldAt: number): boolean =>
    world.alive.some(
      ({ name, host }) =>
        name !== node.name &&
        host !== null &&
        (host.directory.revision ?? 0) > toldAt &&
        host.directory.node(node.name) === undefined,
    );
  const seeOff = (): void => {
    for (const [node, toldAt] of leaving) {
      if (!hasLeft(node, toldAt)) continue;
      leaving.delete(node);
      departures += 1;
      if (node.host !== null) world.crash(node);
      world.wipe(node);
      // Another machine of that name may come.
      const returns = parting.chance(0.5) && (!initial.includes(node) || returnable-- > 0);
      if (!returns) gone.add(node);
      else world.after(parting.between(10, 3_000), () => restart(node));
    }
    world.after(SEE_OFF_MS, seeOff);
  };
  if (leaves) seeOff();
  for (const spare of world.nodes.slice(swarm.nodes)) {
    world.after(nemesis.between(100, swarm.stormMs), () => restart(spare));
  }
  every(swarm.freezeEveryMs, () => {
    world.freeze(nemesis.pick(world.nodes), nemesis.between(100, 4_000));
  });
  if (violations.length === 0) await world.run(world.now + swarm.stormMs, check);

  // --- healing: from here on it must work --------------------------------------------------------------------------------
  storming = false;
  world.weather = calm;
  world.heal();
  for (const node of world.nodes) node.room.level = "free";
  if (violations.length === 0) {
    for (const node of world.nodes) restart(node);
    // Frames held back by the storm may still arrive for minutes.
    await world.run(world.now + 15_000, check);
  }
  for (const tenant of tenants) {
    // An only voter on the node whose journal rotted stays stopped until it is restored; that is what it owes.
    if (rotten === "n1" && swarm.singleVoter && tenant === tenants[0]) continue;
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
        violations.push(
          `${tenant}/${name} cannot be written after healing: ${JSON.stringify(outcome)} ${describe(world)}`,
        );
    }
  }
  // Whose directory rotted knows of nothing until it is restored.
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
  if (violations.length === 0) {
    const misplaced = (): string | null => placed(seeing, waits);
    const settled = (): boolean => converged(world, isLeft) && misplaced() === null;
    await world.run(world.now + 60_000, () => check() || settled());
    if (violations.length === 0 && !settled()) {
      violations.push(
        `replicas did not converge after healing: ${misplaced() ?? ""} ${describe(world)}`,
      );
    }
  }
  if (violations.length === 0) {
    invariants.final(isLeft);
    for (const follower of followers) follower.judge(isLeft);
    violations.push(...judgeVersions(world, tenants, configs));
    for (const ack of acknowledged) {
      for (const replica of replicasOf(world, ack.tenant, isLeft)) {
        const kept = getText(replica.view, "default", ack.name, ack.version);
        if (kept !== ack.text) {
          violations.push(
            `acknowledged write is lost: ${ack.tenant}/${ack.name} version ${ack.version} should be "${ack.text}", is ${JSON.stringify(kept)}`,
          );
        }
      }
    }
    const published = publishedIn(world, tenants, configs);
    for (const { key, text } of refused)
      if (published.get(key)?.has(text) === true)
        violations.push(`a refused change was not made: ${key} has "${text}"`);
    violations.push(...checkHistory(history, created, published));
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
    moves,
    departures,
    violations,
  };
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

function shuffled<T>(items: readonly T[], prng: Prng): T[] {
  const left = [...items];
  return items.map(() => left.splice(prng.below(left.length), 1)[0] as T);
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
