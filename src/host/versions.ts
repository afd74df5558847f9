/**
 * Which commands may be proposed while nodes of different versions are together.
 *
 * A version of the program knows the levels of commands (`Envelope.semantics`) from one to another. The cluster has a
 * level of its own, in the directory, raised on purpose when every node knows the next one, and never lowered: until then
 * everybody proposes as the older ones would, so that nodes can be upgraded one by one, and back. A node that does not
 * know the cluster's level ends, and says what to install: it could not apply what it is sent.
 */
import { levelFirst, semanticsNow } from "../machine/command.ts";

/** The levels of commands that a version knows, both ends among them. */
export interface Levels {
  readonly min: number;
  readonly max: number;
}

export const levelsHere: Levels = { min: 1, max: semanticsNow };

/** What a node says of itself with each heartbeat. */
export interface NodeNews {
  readonly version: string;
  readonly levels: Levels;
  /** The cluster's level as it knows it; 0: it does not yet. */
  readonly level: number;
  /** Groups led there that others could lead; null: it should lead no more than it does. */
  readonly leaders: number | null;
}

export class Versions {
  readonly #version: string;
  readonly #levels: Levels;
  readonly #level: () => number | null;
  readonly #news = new Map<string, NodeNews>();

  /** @param level the cluster's, as the directory here has it; null while there is none */
  constructor(version: string, levels: Levels, level: () => number | null) {
    this.#version = version;
    this.#levels = levels;
    this.#level = level;
  }

  /** The cluster's; null while nothing is known of it here. */
  get level(): number | null {
    return this.#level();
  }

  /** What commands that are proposed here say: what everybody can apply. */
  get semantics(): number {
    return Math.min(this.#level() ?? levelFirst, this.#levels.max);
  }

  get levels(): Levels {
    return this.#levels;
  }

  heard(node: string, news: NodeNews): void {
    this.#news.set(node, news);
  }

  /** Undefined: it said nothing of the kind. */
  newsOf(node: string): NodeNews | undefined {
    return this.#news.get(node);
  }

  /** What everybody of these knows who was heard, and this node. */
  common(nodes: Iterable<string>): number {
    let level = this.#levels.max;
    for (const node of nodes) level = Math.min(level, this.#news.get(node)?.levels.max ?? level);
    return level;
  }

  /** Why this version must not run in this cluster, by its own directory or what another node says; null when it may. */
  get refusal(): string | null {
    // It is never lowered: who names a lower one than others do has yet to hear of the newest.
    let newest = this.#level() ?? 0;
    let of = "";
    for (const [node, { level, version }] of this.#news) {
      if (level <= newest) continue;
      newest = level;
      of = `, where node ${node} runs version ${version}`;
    }
    return this.#refusalAt(newest, of);
  }

  #refusalAt(level: number, of: string): string | null {
    const { min, max } = this.#levels;
    if (level === 0 || (level >= min && level <= max)) return null;
    const advice =
      level > max
        ? "install the version that the other nodes run"
        : `run a version that knows level ${level} until the cluster's level was raised`;
    return `Version ${this.#version} knows levels ${min} to ${max} and the cluster is at level ${level}${of}: ${advice}`;
  }
}
