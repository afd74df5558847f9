/**
 * The client for servers: holds the rules and contents of a namespace, and decides in this process what each caller's
 * labels get, by the same code as the platform. Needs a key that may see rules (admin, write or read).
 *
 * Times of rules take effect when the platform says so, so that all processes change over together.
 */
import { evaluate } from "../model/evaluate.ts";
import type { Labels, ReleasedRules } from "../model/release.ts";
import { Conflux, valueOf } from "./client.ts";
import type { ConfigTypes, ConfluxOptions, Entry, ValueFound } from "./client.ts";
import type { Held } from "./watch.ts";

/** A release, read once: what each version of it is. */
interface Release extends ReleasedRules {
  readonly found: ReadonlyMap<number, ValueFound>;
}

/**
 * Labels given here are those of the process; labels of a call are added to them, and outweigh them. Changes tell what
 * the labels of the process get.
 */
export class ConfluxServer<T extends ConfigTypes = Record<string, unknown>> extends Conflux<T> {
  readonly #labels: Labels;

  constructor(options: ConfluxOptions<T>) {
    const { labels = {}, ...others } = options;
    super(others);
    this.#labels = labels;
  }

  /** The value for these labels; `fallback`, else the default of the options, where nothing is released for them. */
  evaluate<K extends keyof T & string>(name: K, labels: Labels): T[K] | undefined;
  evaluate<K extends keyof T & string>(name: K, labels: Labels, fallback: T[K]): T[K];
  evaluate(name: string, labels: Labels, fallback?: unknown): unknown {
    const read = this.readOf(name) as Release | undefined;
    const found = read === undefined ? null : this.#found(read, this.#merged(labels));
    return found === null ? this.defaultOf(name, fallback) : found.value;
  }

  /** The value for these labels, with where it comes from. */
  evaluateEntry<K extends keyof T & string>(
    name: K,
    labels: Labels,
    fallback?: T[K],
  ): Entry<T[K] | undefined> {
    const merged = this.#merged(labels);
    return this.entryOf(name, fallback, (read) => this.#found(read as Release, merged)) as Entry<
      T[K] | undefined
    >;
  }

  protected override parameters(): Readonly<Record<string, string>> {
    return { rules: "true" };
  }

  /** All versions are read at once: a release is taken whole or not at all. */
  protected override read(name: string, held: Held): Release {
    const released = JSON.parse(held.content) as ReleasedRules;
    const found = new Map<number, ValueFound>();
    for (const [version, { hash, format, content }] of Object.entries(released.versions)) {
      if (content === undefined)
        throw new RangeError("The contents of its versions are together over 8 MiB");
      const value = this.fitting(name, valueOf({ format, content }));
      found.set(Number(version), { value, version: Number(version), hash, format });
    }
    return { ...released, found };
  }

  protected override valueFor(read: unknown): ValueFound | null {
    return this.#found(read as Release, this.#labels);
  }

  #merged(labels: Labels): Labels {
    for (const _ in this.#labels) return { ...this.#labels, ...labels };
    return labels;
  }

  #found(release: Release, labels: Labels): ValueFound | null {
    const { version, rule } = evaluate(release, labels, release.judgedAt);
    const found = version === null ? undefined : release.found.get(version);
    if (found === undefined) return null;
    return release.rules.length === 0 ? found : { ...found, rule };
  }
}
