/**
 * Histories of concurrent operations, as their clients saw them. Times may be of any clock that all clients share; of two
 * events at the same time the call counts as the earlier one, so that equal times mean overlap, never order.
 */

/** The output of an operation whose client never learned it. */
export const unknown: unique symbol = Symbol("unknown");
export type Unknown = typeof unknown;

export interface Operation<Input, Output> {
  readonly client: number | string;
  readonly input: Input;
  readonly output: Output | Unknown;
  readonly calledAt: number;
  /** Infinity when it is not known to have returned: it may take effect at any time after its call, or never. */
  readonly returnedAt: number;
}

/** Takes down operations as they are called and end, and stamps them with their order. */
export class History<Input, Output> {
  readonly #operations = new Map<number, Operation<Input, Output>>();
  #time = 0;

  /** Gives the number under which the operation is to be ended. One that is not ended stays unknown. */
  call(client: number | string, input: Input): number {
    const id = this.#tick();
    const open = { client, input, output: unknown, calledAt: id, returnedAt: Infinity } as const;
    this.#operations.set(id, open);
    return id;
  }

  returned(id: number, output: Output): void {
    const operation = this.#open(id);
    this.#operations.set(id, { ...operation, output, returnedAt: this.#tick() });
  }

  /** It certainly had no effect, and told its client nothing: it is left out. */
  refused(id: number): void {
    this.#open(id);
    this.#operations.delete(id);
  }

  /** In order of their calls. */
  operations(): Operation<Input, Output>[] {
    return [...this.#operations.values()];
  }

  #open(id: number): Operation<Input, Output> {
    const operation = this.#operations.get(id);
    if (operation === undefined || operation.returnedAt !== Infinity)
      throw new Error(`Cannot end operation ${id}: it is not open`);
    return operation;
  }

  #tick(): number {
    this.#time += 1;
    return this.#time;
  }
}
