/**
 * What befalls a simulated cluster: the kind of run that a seed draws, and the faults of its storm. They share one
 * generator, so the order in which they are begun is part of every seed.
 */
import type { Tuning } from "../../src/host/node_host.ts";
import { Prng } from "../../src/lib/prng.ts";
import type { Command } from "../../src/machine/command.ts";
import type { SimNode, Weather, World } from "./world.ts";

export interface Swarm {
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
export function drawSwarm(prng: Prng, stormMs: number): Swarm {
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

export class Nemesis {
  readonly #world: World;
  readonly #swarm: Swarm;
  readonly #tenants: readonly string[];
  readonly #initial: readonly SimNode[];
  readonly #proposal: (action: Command["action"]) => Command;
  readonly #draw: Prng;
  /** Generators of their own: what earlier seeds drew stays as it was. */
  readonly #scarcity: Prng;
  readonly #parting: Prng;
  readonly #scarceEveryMs: number;
  readonly #leaveEveryMs: number;
  /** Nodes whose disk was told to fail: they are right to end. */
  readonly #faulty = new Set<string>();
  /** Nodes that left and do not come back. */
  readonly #gone = new Set<SimNode>();
  /** Told to leave, with the directory's revision then. */
  readonly #leaving = new Map<SimNode, number>();
  /** Initial nodes that may come back with nothing: were they a majority, they could begin anew. */
  #returnable: number;
  /** Tenants that come and go beside the others. */
  #passing = 0;
  /** Node of whose journal a bit rotted. */
  rotten: string | null = null;
  isStorming = false;
  crashes = 0;
  moves = 0;
  departures = 0;

  constructor(options: {
    readonly seed: number;
    readonly world: World;
    readonly swarm: Swarm;
    readonly tenants: readonly string[];
    readonly proposal: (action: Command["action"]) => Command;
    readonly draw: Prng;
  }) {
    const { seed, world, swarm, tenants, proposal, draw } = options;
    this.#world = world;
    this.#swarm = swarm;
    this.#tenants = tenants;
    this.#initial = world.nodes.slice(0, swarm.nodes);
    this.#proposal = proposal;
    this.#draw = draw;
    this.#scarcity = new Prng(seed + 0x5eed);
    this.#scarceEveryMs = this.#scarcity.pick([0, 0, 0, 1_500]);
    this.#parting = new Prng(seed + 0x1ea4e);
    this.#leaveEveryMs = this.#parting.pick([0, 3_000]);
    this.#returnable = Math.ceil(swarm.nodes / 2) - 1;
  }

  /** Room on disks runs out now and then. */
  get isScarce(): boolean {
    return this.#scarceEveryMs > 0;
  }

  restart(node: SimNode): void {
    if (node.host === null && !this.#gone.has(node)) this.#world.start(node);
  }

  /** A node ended by itself, and comes back. @returns whether its disk was told to fail */
  ended(node: SimNode): boolean {
    this.crashes += 1;
    this.#world.after(this.#draw.between(10, 2_000), () => this.restart(node));
    return this.#faulty.delete(node.name);
  }

  /** Begins the storm; it ends when `isStorming` is taken back. */
  unleash(): void {
    const swarm = this.#swarm;
    const world = this.#world;
    // What a wiped disk was the only one to have would be lost, and with rot elsewhere that can be more.
    const wipes = swarm.wipes && !swarm.rot && !swarm.singleVoter;
    // Where few nodes are left, `_system` has one vote only.
    const leaves = this.#leaveEveryMs > 0 && !wipes && !swarm.rot;
    world.weather = swarm.weather;
    this.#every(swarm.crashEveryMs, () => this.#crash());
    this.#every(swarm.cutEveryMs, () => this.#cut());
    this.#every(swarm.diskFaultEveryMs, () => this.#failDisk());
    if (swarm.clockSkew) this.#every(3_000, () => this.#skewClock());
    this.#every(swarm.churnEveryMs, () => this.#churn(wipes ? [3] : [1, 3]));
    if (this.isScarce) this.#every(this.#scarceEveryMs, () => this.#changeRoom());
    this.#every(swarm.moveEveryMs, () => this.#move(swarm.rot || wipes));
    if (wipes) world.after(this.#draw.between(1_000, swarm.stormMs), () => this.#wipe());
    this.#every(swarm.drainEveryMs, () => this.#drain());
    this.#every(leaves ? this.#leaveEveryMs : 0, () => this.#tellToLeave());
    if (leaves) this.#seeOff();
    for (const spare of world.nodes.slice(swarm.nodes))
      world.after(this.#draw.between(100, swarm.stormMs), () => this.restart(spare));
    this.#every(swarm.freezeEveryMs, () => this.#freeze());
  }

  #every(ms: number, act: () => void): void {
    if (ms === 0) return;
    const again = (): void => {
      if (!this.isStorming) return;
      act();
      this.#world.after(this.#draw.between(ms / 2, (ms * 3) / 2), again);
    };
    this.#world.after(this.#draw.between(ms / 2, ms), again);
  }

  #anyAlive(draw: Prng): SimNode | null {
    const { alive } = this.#world;
    return alive.length === 0 ? null : draw.pick(alive);
  }

  #crash(): void {
    // Sometimes more than a minority: nothing may be lost, it may only stand still.
    const down = this.#draw.chance(0.15) ? this.#swarm.nodes : 1;
    for (let count = 0; count < down; count++) {
      const node = this.#draw.pick(this.#world.nodes);
      if (node.host === null) continue;
      this.#world.crash(node);
      this.crashes += 1;
      const mayRot = this.#swarm.rot && (this.rotten === null || this.rotten === node.name);
      if (mayRot && this.#world.flipBit(node)) this.rotten = node.name;
      this.#world.after(this.#draw.between(10, 3_000), () => this.restart(node));
    }
  }

  #cut(): void {
    this.#world.heal();
    if (this.#draw.chance(0.3)) return;
    const victim = this.#draw.pick(this.#world.nodes);
    const oneWay = this.#draw.chance(0.3);
    for (const other of this.#world.nodes) {
      if (other === victim || this.#draw.chance(0.2)) continue;
      this.#world.cut(victim, other);
      if (!oneWay) this.#world.cut(other, victim);
    }
  }

  #failDisk(): void {
    const node = this.#draw.pick(this.#world.nodes);
    if (node.host === null) return;
    if (this.#draw.chance(0.5)) {
      this.#world.stallDisk(node, this.#draw.between(100, 4_000));
    } else {
      this.#faulty.add(node.name);
      this.#world.failDisk(node);
    }
  }

  #skewClock(): void {
    const node = this.#draw.pick(this.#world.nodes);
    node.wallOffset = this.#draw.between(-3_600_000, 3_600_000);
  }

  /** A tenant is made, written to and purged. */
  #churn(sizes: readonly number[]): void {
    const name = `e${++this.#passing}`;
    const tell = (tenant: string, action: Command["action"], then: () => void): void => {
      const at = this.#anyAlive(this.#draw);
      at?.host?.requests.propose(tenant, this.#proposal(action), 2_000, (error) => {
        if (error === null && this.isStorming) this.#world.after(this.#draw.between(1, 400), then);
      });
    };
    const nodes = this.#world.nodes.slice(0, this.#draw.pick(sizes)).map((node) => node.name);
    const adminKey = { id: `k${name}`, kind: "admin" as const, hash: "0".repeat(64) };
    tell("_system", { op: "directory.create", tenant: name, quotas: {}, nodes, adminKey }, () => {
      tell(name, { op: "config.put", namespace: "default", name: "c", format: "text" }, () => {
        tell("_system", { op: "directory.delete", tenant: name, purge: true }, () => {});
      });
    });
  }

  #changeRoom(): void {
    const node = this.#scarcity.pick(this.#world.nodes);
    node.room.level = this.#scarcity.pick(["free", "low", "out"]);
  }

  /** @param isFragile what is only on the node whose journal rots, or whose disk is wiped, is gone with it */
  #move(isFragile: boolean): void {
    const node = this.#anyAlive(this.#draw);
    const tenant = this.#draw.pick(this.#tenants);
    const row = node?.host?.directory.tenant(tenant);
    if (row === undefined) return;
    const sizes = isFragile ? [3, this.#swarm.nodes] : [1, 2, 3, 3, this.#swarm.nodes];
    if (isFragile && row.placement.replicas.length === 1) return;
    const nodes = shuffled(this.#world.nodes, this.#draw)
      .map(({ name }) => name)
      .slice(0, this.#draw.pick(sizes));
    const generation = row.placement.generation ?? 0;
    const action = { op: "directory.move", tenant, nodes, generation } as const;
    node?.host?.requests.propose("_system", this.#proposal(action), 2_000, (error, outcome) => {
      if (error === null && outcome?.ok === true) this.moves += 1;
    });
  }

  #wipe(): void {
    const node = this.#draw.pick(this.#initial);
    if (!this.isStorming) return;
    if (node.host !== null) this.#world.crash(node);
    this.#world.wipe(node);
    this.#world.after(this.#draw.between(10, 3_000), () => this.restart(node));
  }

  #drain(): void {
    const phase = this.#draw.pick(["draining", "active"] as const);
    const { name } = this.#draw.pick(this.#world.nodes);
    const at = this.#anyAlive(this.#draw);
    const action = { op: "node.phase", node: name, phase } as const;
    at?.host?.requests.propose("_system", this.#proposal(action), 2_000, () => {});
  }

  #freeze(): void {
    this.#world.freeze(this.#draw.pick(this.#world.nodes), this.#draw.between(100, 4_000));
  }

  // --- nodes that leave ----------------------------------------------------------------------------------------------------

  #tellToLeave(): void {
    const node = this.#parting.pick(this.#world.nodes);
    // Who joins later has only the initial nodes' names to go by: one of them stays.
    const rest = this.#initial.filter(
      (one) => one !== node && !this.#leaving.has(one) && !this.#gone.has(one),
    );
    if (rest.length === 0) return;
    const at = this.#anyAlive(this.#parting)?.host;
    const revision = at?.directory.revision ?? null;
    if (at == null || revision === null || at.directory.node(node.name) === undefined) return;
    // Also when nobody answers it may have been done.
    this.#leaving.set(node, revision);
    const action = { op: "node.phase", node: node.name, phase: "leaving" } as const;
    at.requests.propose("_system", this.#proposal(action), 2_000, () => {});
  }

  #hasLeft(node: SimNode, toldAt: number): boolean {
    return this.#world.alive.some(
      ({ name, host }) =>
        name !== node.name &&
        host !== null &&
        (host.directory.revision ?? 0) > toldAt &&
        host.directory.node(node.name) === undefined,
    );
  }

  /** When the directory knows a node no more, its process ends that very moment and its disk is thrown away. */
  #seeOff(): void {
    for (const [node, toldAt] of this.#leaving) {
      if (!this.#hasLeft(node, toldAt)) continue;
      this.#leaving.delete(node);
      this.departures += 1;
      if (node.host !== null) this.#world.crash(node);
      this.#world.wipe(node);
      // Another machine of that name may come.
      const returns =
        this.#parting.chance(0.5) && (!this.#initial.includes(node) || this.#returnable-- > 0);
      if (!returns) this.#gone.add(node);
      else this.#world.after(this.#parting.between(10, 3_000), () => this.restart(node));
    }
    for (const node of this.#gone) this.#seeOffAgain(node);
    this.#world.after(SEE_OFF_MS, () => this.#seeOff());
  }

  /** What it asked when it ended may have let it in once more; nobody comes, so it is told to leave again. */
  #seeOffAgain(node: SimNode): void {
    const { alive } = this.#world;
    const isLetIn = ({ host }: SimNode): boolean => {
      const row = host?.directory.node(node.name);
      return row !== undefined && row.phase !== "leaving";
    };
    const [{ host } = { host: null }] = alive;
    if (host === null || this.#leaving.has(node) || !alive.every(isLetIn)) return;
    this.#leaving.set(node, host.directory.revision ?? 0);
    const action = { op: "node.phase", node: node.name, phase: "leaving" } as const;
    host.requests.propose("_system", this.#proposal(action), 2_000, (error) => {
      if (error !== null) this.#leaving.delete(node);
    });
  }
}

function shuffled<T>(items: readonly T[], prng: Prng): T[] {
  const left = [...items];
  return items.map(() => left.splice(prng.below(left.length), 1)[0] as T);
}
