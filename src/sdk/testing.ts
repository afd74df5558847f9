/**
 * For tests of programs that use the SDK: the client itself without a network, its values set by the test. What is set
 * is there when the call returns, and callbacks have run.
 */
import type { ContentFormat } from "../model/release.ts";
import { Conflux } from "./client.ts";
import type { ConfigTypes, ConfluxOptions } from "./client.ts";

export class TestConflux<T extends ConfigTypes = Record<string, unknown>> extends Conflux<T> {
  #revision = 0;
  readonly #versions = new Map<string, number>();

  constructor(
    values: Partial<T> = {},
    options: Pick<ConfluxOptions<T>, "defaults" | "schemas" | "onError"> = {},
  ) {
    super({ tenant: "test", offline: true, ...options });
    this.take({ event: "sync", id: `1-${++this.#revision}`, data: { values: {} } });
    this.setAll(values);
  }

  /** As if this had been published: in its own revision. */
  set<K extends keyof T & string>(name: K, value: T[K]): void {
    this.setAll({ [name]: value } as unknown as Partial<T>);
  }

  /** As if these had been published together: in one revision. */
  setAll(values: Partial<T>): void {
    const changes = Object.entries(values).map(([name, value]) => this.#put(name, value));
    this.#commit(changes);
  }

  /** As if nothing were released any more. */
  delete(name: keyof T & string): void {
    this.#commit([{ type: "delete", name }]);
  }

  #put(name: string, value: unknown): object {
    const version = (this.#versions.get(name) ?? 0) + 1;
    this.#versions.set(name, version);
    const format: ContentFormat = "json";
    return {
      type: "put",
      name,
      version,
      hash: `test:${version}`,
      format,
      content: JSON.stringify(value),
    };
  }

  #commit(changes: readonly object[]): void {
    this.take({ event: "commit", id: `1-${++this.#revision}`, data: { changes } });
  }
}
