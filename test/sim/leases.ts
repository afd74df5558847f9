/**
 * Storms made for leader leases: one tenant that is read on every node all the time while its leaders are cut off,
 * stopped, suspended, transferred and restarted, on clocks that differ as much as they may. Versions of one config only
 * grow, so a stale read shows by itself: it sees less than what was acknowledged before it was asked. Where replicas sleep
 * soon there are lulls, in which nobody asks and the storm goes on: leaders fall asleep and wake into whatever came of it.
 * In some, disks get short of room, and who leads there gives it away.
 */
import type { Command, Outcome } from "../../src/machine/command.ts";
import type { TenantView } from "../../src/host/ports.ts";
import { getConfig } from "../../src/machine/queries.ts";
import { Prng } from "../../src/lib/prng.ts";
import { calm, World, type SimNode } from "./world.ts";

export interface LeaseRun {
  readonly seed: number;
  readonly reads: number;
  /** Of these, answered by a leader without asking anybody. */
  readonly byLease: number;
  readonly writes: number;
  /** Leaders that the storm saw. */
  readonly leaders: number;
  /** How often one that slept led on. */
  readonly woken: number;
  readonly violations: readonly string[];
}

const STORM_MS = 12_000;
/** Replicas are looked at every second, and checkpointed before they sleep. */
const FALL_ASLEEP_MS = 2_500;
const TENANT = "t1";

/** What a node's clock may gain or lose; both ends are drawn. */
export const CLOCK_RATES = [0.9, 1, 1.1] as const;

export async function runLeases(seed: number): Promise<LeaseRun> {
  const prng = new Prng(seed);
  const nodes = prng.chance(0.75) ? 3 : 5;
  const violations: string[] = [];
  const world = new World({
    seed: prng.uint32(),
    nodes,
    clockRates: Array.from({ length: nodes }, () => prng.pick(CLOCK_RATES)),
    tuning: { sleepAfterMs: prng.pick([300, 600_000]) },
  });
  let [hasLulls, isLull] = [false, false];
  /** The last one that was seen to lead: it may sleep. */
  let ledLast: SimNode | undefined;
  let woken = 0;
  let calmUntil = 0;
  const nemesis = prng.fork();
  const draw = prng.fork();
  let storming = true;
  let [reads, byLease, writes] = [0, 0, 0];
  let acknowledged = 0;
  const leaders = new Set<string>();
  let leading10msAgo: readonly string[] = [];
  const actor: Command["actor"] = { kind: "system", keyId: "sim" };
  const command = (action: Command["action"]): Command => ({
    at: 1_700_000_000_000 + Math.floor(world.now),
    actor,
    action,
  });
  let proposed = 0;
  /** Never the same content twice, which would be no new version. */
  const publish = (): Command["action"] => {
    const text = `v${++proposed}`;
    const content = { text, hash: `sha256:${text}`, bytes: text.length };
    return { op: "publish", namespace: "default", name: "c1", content, schemaHash: null };
  };
  const replicaOn = (node: SimNode) => {
    for (const replica of node.host?.replicas() ?? [])
      if (replica.tenant === TENANT && replica.halted === null) return replica;
    return undefined;
  };
  const leading = (): SimNode[] =>
    world.alive.filter((node) => replicaOn(node)?.raft.isLeader === true);
  const change = async (tenant: string, action: Command["action"]): Promise<void> => {
    for (let attempt = 0; attempt < 20; attempt++) {
      let outcome: Outcome | undefined;
      let ended = false;
      draw.pick(world.alive).host?.requests.propose(tenant, command(action), 3_000, (_, answer) => {
        outcome = answer;
        ended = true;
      });
      await world.run(world.now + 4_000, () => ended);
      if (outcome?.ok === true || outcome?.code === "already-exists") return;
    }
    violations.push(`could not prepare ${action.op}`);
  };

  for (const node of world.nodes) world.start(node);
  await world.run(world.now + 20_000, () => world.nodes.every(({ host }) => host?.ready === true));
  await change("_system", {
    op: "directory.create",
    tenant: TENANT,
    quotas: {},
    nodes: world.nodes.map(({ name }) => name),
    adminKey: { id: "k1", kind: "admin", hash: "0".repeat(64) },
  });
  await change(TENANT, { op: "config.put", namespace: "default", name: "c1", format: "text" });

  const read = (): void => {
    if (!storming) return;
    world.after(draw.between(1, 12), read);
    if (world.alive.length === 0 || isLull) return;
    // Most are asked of who takes itself for the leader: nobody else could answer from a lease that is none.
    const [node = hasLulls ? ledLast : undefined] = draw.chance(0.75)
      ? leading()
      : [draw.pick(world.alive)];
    if (node === undefined) return;
    world.within(node, () => {
      const before = acknowledged;
      const { now } = world;
      const look = (view: TenantView): void => {
        const seen = getConfig(view, "default", "c1")?.latestVersion ?? 0;
        if (seen < before)
          violations.push(
            `stale read: ${node.name} asked at ${now.toFixed(1)} shows version ${seen}, ${before} was acknowledged`,
          );
      };
      const options = { consistency: "linearizable", timeoutMs: 400 } as const;
      const viewNow = node.host?.viewNow(TENANT, options) ?? null;
      if (viewNow !== null) look(viewNow);
      let isLocal = true;
      node.host?.requests.read(TENANT, options, (error, view) => {
        if (error !== null || view === undefined) return;
        reads += 1;
        if (isLocal) byLease += 1;
        look(view);
      });
      isLocal = false;
    });
  };
  const write = (): void => {
    if (!storming) return;
    world.after(draw.between(5, 40), write);
    if (world.alive.length === 0 || isLull) return;
    const node = draw.pick(world.alive);
    const { life } = node;
    world.within(node, () => {
      node.host?.requests.propose(TENANT, command(publish()), 1_000, (error, outcome) => {
        if (error !== null || outcome?.ok !== true || node.life !== life) return;
        writes += 1;
        const { version } = outcome.result as { version: { version: number } };
        acknowledged = Math.max(acknowledged, version.version);
      });
    });
  };
  const watch = (): void => {
    const now = leading();
    ledLast = now[0] ?? ledLast;
    const names = now.map((node) => `${node.name} ${node.boot} ${replicaOn(node)?.raft.term ?? 0}`);
    // A leader that is none any more in its term never leads it again, but for one that slept.
    for (const name of names) {
      if (leaders.has(name) && !leading10msAgo.includes(name)) woken += 1;
      leaders.add(name);
    }
    leading10msAgo = names;
    if (storming) world.after(10, watch);
  };
  const lull = (): void => {
    if (!storming) return;
    isLull = !isLull;
    if (isLull) {
      world.heal();
      calmUntil = world.now + FALL_ASLEEP_MS;
    }
    const ms = isLull ? FALL_ASLEEP_MS + nemesis.between(1, 3_000) : nemesis.between(200, 1_500);
    world.after(ms, lull);
  };
  const restart = (node: SimNode): void => {
    if (node.host === null) world.start(node);
  };
  const strike = (): void => {
    if (!storming) return;
    world.after(nemesis.between(100, 2_500), strike);
    if (world.now < calmUntil) return;
    const [leader = hasLulls ? ledLast : undefined] = leading();
    const victim = leader !== undefined && nemesis.chance(0.8) ? leader : nemesis.pick(world.nodes);
    const others = world.nodes.filter((node) => node !== victim);
    switch (nemesis.below(8)) {
      case 0:
        world.heal();
        return;
      case 1:
      case 2: {
        world.heal();
        const isOneWay = nemesis.chance(0.5);
        for (const other of others) {
          world.cut(victim, other);
          if (!isOneWay) world.cut(other, victim);
        }
        return;
      }
      case 3:
        world.freeze(victim, nemesis.between(200, 2_500));
        return;
      case 4:
        if (victim.frozenUntil <= world.now) world.suspend(victim, nemesis.between(200, 4_000));
        return;
      case 5: {
        // Followers that forget what they promised, while the leader is cut off from them.
        for (const other of others) {
          if (nemesis.chance(0.8)) {
            world.cut(victim, other);
            world.cut(other, victim);
          }
          if (other.host === null || nemesis.chance(0.3)) continue;
          world.crash(other);
          world.after(nemesis.between(1, 60), () => restart(other));
        }
        return;
      }
      case 6: {
        // A transfer, and the old leader hears nothing of how it ended.
        const replica = leader === undefined ? undefined : replicaOn(leader);
        if (leader === undefined || replica === undefined) return;
        const heirs = [...replica.voters()].filter(([id]) => id !== replica.id);
        const [id, name] = nemesis.pick(heirs);
        world.within(leader, () => replica.raft.transferLeadership(id));
        world.after(nemesis.between(1, 30), () => {
          for (const other of world.nodes) {
            if (other === leader) continue;
            world.cut(other, leader);
            if (other.name !== name) world.cut(leader, other);
          }
        });
        return;
      }
      default:
        // By more than a suspension takes: the two together must not look as if nothing had happened.
        victim.wallOffset += nemesis.pick([-1, 1]) * nemesis.between(10_000, 3_600_000);
    }
  };
  world.weather = {
    ...calm,
    delay: prng.pick([[0.1, 1] as const, [1, 40] as const, [20, 400] as const]),
    late: prng.pick([0, 0.02]),
    lateMs: 3_000,
  };
  for (let client = 0; client < 3; client++) read();
  write();
  watch();
  strike();
  // Drawn last, so that the seeds of before kept their kind.
  hasLulls = prng.chance(0.6);
  if (hasLulls) world.after(500, lull);
  const isScarce = prng.chance(0.4);
  const scarcity = prng.fork();
  /** Who leads without room gives it away: leaderships end in the middle of everything else. */
  const fill = (): void => {
    if (!storming) return;
    scarcity.pick(world.nodes).room.level = scarcity.pick(["free", "low", "out"]);
    world.after(scarcity.between(300, 2_000), fill);
  };
  if (isScarce) world.after(1_000, fill);
  await world.run(world.now + STORM_MS, () => world.reap() !== null || violations.length > 0);
  storming = false;
  return { seed, reads, byLease, writes, leaders: leaders.size, woken, violations };
}
