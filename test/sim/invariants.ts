/**
 * What must hold after every step of a simulated run, whatever the seed did. Names follow the extended Raft paper
 * (figure 3) and the thesis.
 */
import type { Replica } from "../../src/host/replica.ts";
import type { SimNode, World } from "./world.ts";

interface Seen {
  readonly life: number;
  term: number;
  commit: number;
  applied: number;
  /** Entries up to here were compared with the committed ones. */
  compared: number;
}

/** How many events pass between two comparisons of whole logs: they cost as much as the logs are long. */
const LOGS_EVERY = 500;

export class Invariants {
  world: World | null = null;
  readonly #violated: (violation: string) => void;
  readonly #leaders = new Map<string, string>();
  /** Per group: term and data of each committed entry, as first seen applied anywhere. */
  readonly #committed = new Map<number, Map<number, string>>();
  readonly #seen = new Map<string, Seen>();
  /** Highest term a node was seen in, per group, over all its lives. */
  readonly #terms = new Map<string, number>();
  #steps = 0;

  constructor(violated: (violation: string) => void) {
    this.#violated = violated;
  }

  /** Election safety: at most one leader per term. */
  leader(group: number, term: number, node: string): void {
    const key = `${group}/${term}`;
    const other = this.#leaders.get(key);
    if (other === undefined) this.#leaders.set(key, node);
    else if (other !== node) {
      this.#violated(
        `election safety: ${other} and ${node} both lead group ${group} in term ${term}`,
      );
    }
  }

  crashed(node: SimNode): void {
    for (const key of this.#seen.keys())
      if (key.startsWith(`${node.name}/`)) this.#seen.delete(key);
  }

  step(): void {
    this.#steps += 1;
    if (this.#steps % 16 !== 0) return;
    const world = this.world as World;
    for (const node of world.nodes) {
      for (const replica of node.host?.replicas() ?? []) this.#replica(node, replica);
    }
    if (this.#steps % LOGS_EVERY < 16) this.#logMatching(world);
  }

  #replica(node: SimNode, replica: Replica): void {
    const { term, commitIndex, appliedIndex, lastIndex } = replica.raft;
    const name = `${node.name}/${replica.tenant}`;
    let seen = this.#seen.get(name);
    if (seen === undefined || seen.life !== node.life) {
      seen = { life: node.life, term: 0, commit: 0, applied: 0, compared: 0 };
      this.#seen.set(name, seen);
    }
    if (replica.raft.isLeader) this.leader(replica.group, term, node.name);
    if (commitIndex < seen.commit)
      this.#violated(`${name}: commit went back from ${seen.commit} to ${commitIndex}`);
    if (appliedIndex < seen.applied)
      this.#violated(`${name}: applied went back from ${seen.applied} to ${appliedIndex}`);
    if (term < seen.term) this.#violated(`${name}: term went back from ${seen.term} to ${term}`);
    if (appliedIndex > commitIndex || commitIndex > lastIndex) {
      this.#violated(
        `${name}: not applied ${appliedIndex} ≤ commit ${commitIndex} ≤ last ${lastIndex}`,
      );
    }
    seen.commit = commitIndex;
    seen.applied = appliedIndex;
    seen.term = term;
    this.#stateMachineSafety(name, replica, seen, appliedIndex);
  }

  /** State-machine safety: no two replicas ever apply different entries at one index. */
  #stateMachineSafety(name: string, replica: Replica, seen: Seen, applied: number): void {
    let committed = this.#committed.get(replica.group);
    if (committed === undefined) {
      committed = new Map();
      this.#committed.set(replica.group, committed);
    }
    const from = Math.max(seen.compared + 1, replica.log.firstIndex());
    const entries = from > applied ? [] : (replica.log.entries(from, applied + 1, Infinity) ?? []);
    for (const entry of entries) {
      const digest = `${entry.term}:${entry.kind}:${hash(entry.data)}`;
      const known = committed.get(entry.index);
      if (known === undefined) committed.set(entry.index, digest);
      else if (known !== digest) {
        this.#violated(
          `state-machine safety: ${name} applied ${digest} at ${entry.index}, others ${known}`,
        );
      }
    }
    seen.compared = applied;
  }

  /** Log matching: entries of equal index and term have equal logs before them. */
  #logMatching(world: World): void {
    const groups = new Map<number, Replica[]>();
    for (const node of world.nodes) {
      for (const replica of node.host?.replicas() ?? []) {
        groups.set(replica.group, [...(groups.get(replica.group) ?? []), replica]);
      }
    }
    for (const [group, replicas] of groups) {
      for (const left of replicas) {
        for (const right of replicas) if (left.id < right.id) this.#match(group, left, right);
      }
    }
  }

  #match(group: number, left: Replica, right: Replica): void {
    const first = Math.max(left.log.firstIndex(), right.log.firstIndex());
    const last = Math.min(left.log.lastIndex(), right.log.lastIndex());
    let matched = false;
    for (let index = last; index >= first; index--) {
      const same = left.log.term(index) === right.log.term(index);
      if (matched && !same) {
        this.#violated(
          `log matching: group ${group} replicas ${left.id} and ${right.id} differ at ${index}`,
        );
        return;
      }
      matched ||= same;
    }
  }

  /** After healing: equal applied index means equal state, row by row. */
  final(): void {
    const states = new Map<number, { name: string; rows: string }>();
    const world = this.world as World;
    for (const node of world.nodes) {
      for (const replica of node.host?.replicas() ?? []) {
        const rows = JSON.stringify([...replica.snapshotRows()]);
        const other = states.get(replica.group);
        if (other === undefined) states.set(replica.group, { name: node.name, rows });
        else if (other.rows !== rows) {
          this.#violated(`states differ: group ${replica.group} on ${other.name} and ${node.name}`);
        }
      }
    }
    void this.#terms;
  }
}

function hash(bytes: Uint8Array): number {
  let value = 0x811c9dc5;
  for (const byte of bytes) value = Math.imul(value ^ byte, 0x01000193);
  return value >>> 0;
}
