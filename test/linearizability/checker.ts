/**
 * Is there an order of these operations that a sequential object could have served, in which every operation takes effect
 * between its call and its return? The search is Wing and Gong's (1993) with Lowe's memory of configurations (2017):
 * place an operation that was called before the first return not yet passed, step the model, go on; take the last one
 * back where nothing fits. Three things keep it small:
 *
 * - Parts of a history that do not touch each other are checked each for itself (Horn and Kroening's P-compositionality).
 * - A configuration is the first return not yet passed, which of the operations around it are placed, which optional ones
 *   are spent, and the state. One that differs from an earlier one only by more optional ones spent offers nothing new.
 * - An optional operation, one without a known return, is tried after the required ones. It stays available where it does
 *   not change the state, and where what follows it comes to the same without it.
 *
 * A history counts as served when every operation with a known return has its place; optional ones may be left over.
 */
import { unknown, type Operation, type Unknown } from "./history.ts";

export interface Model<State extends {}, Input, Output> {
  readonly init: State;
  /**
   * The state after the operation, or null if it cannot have this output in this state. With an unknown output: the state
   * after it took effect. States are values: a step never changes the one it is given.
   */
  step(state: State, input: Input, output: Output | Unknown): State | null;
  /** Equal for equal states and only for them. */
  stateKey(state: State): string | number;
  /** Operations with different keys do not see each other. Absent: they all do. */
  partitionKey?(input: Input): string | number;
}

export interface CheckOptions {
  /** Steps per partition, of the model or along the memory of configurations, after which the question stays open. */
  readonly stepsMax?: number;
}

/** How far the search came in the partition that was not served. */
export interface Furthest<State, Input, Output> {
  readonly partition: string | number | null;
  readonly operations: number;
  /**
   * The longest order found, without needless optional operations. It serves the history up to the return of `blocked`;
   * where the verdict is not open, that is the first return that no order serves.
   */
  readonly placed: readonly Operation<Input, Output>[];
  /** The state after `placed`. */
  readonly state: State;
  readonly blocked: Operation<Input, Output>;
  /** All that was called before `blocked` returned and has no place, `blocked` included. */
  readonly unplaced: readonly Unplaced<Input, Output>[];
}

export interface Unplaced<Input, Output> {
  readonly operation: Operation<Input, Output>;
  /** What the model makes of it after `placed`. Where it is possible, it leads no further, unless the verdict is open. */
  readonly here: "impossible" | "without effect" | "possible";
}

export type Result<State, Input, Output> =
  | {
      readonly verdict: "linearizable";
      readonly steps: number;
      /** An order that serves the history, for each partition. */
      readonly orders: ReadonlyMap<string | number | null, readonly Operation<Input, Output>[]>;
    }
  | {
      readonly verdict: "not-linearizable" | "undecided";
      readonly steps: number;
      readonly furthest: Furthest<State, Input, Output>;
    };

/** A second or two. */
const STEPS_MAX = 2_000_000;

/** A partition that is not linearizable decides; one that stays open does only if there is no such other. */
export function check<State extends {}, Input, Output>(
  model: Model<State, Input, Output>,
  history: readonly Operation<Input, Output>[],
  options: CheckOptions = {},
): Result<State, Input, Output> {
  const orders = new Map<string | number | null, readonly Operation<Input, Output>[]>();
  let steps = 0;
  let open: Furthest<State, Input, Output> | null = null;
  for (const [partition, operations] of partitions(model, history)) {
    const search = new Search(model, partition, operations);
    const verdict = search.run(options.stepsMax ?? STEPS_MAX);
    steps += search.steps;
    if (verdict === "not-linearizable") return { verdict, steps, furthest: search.furthest() };
    if (verdict === "linearizable") orders.set(partition, search.placed());
    else open ??= search.furthest();
  }
  if (open !== null) return { verdict: "undecided", steps, furthest: open };
  return { verdict: "linearizable", steps, orders };
}

const PLACED_SHOWN = 20;

/** The result in words, for the message of a failed test. */
export function describeResult<State, Input, Output>(result: Result<State, Input, Output>): string {
  if (result.verdict === "linearizable") return `Linearizable, after ${result.steps} steps`;
  const { partition, operations, placed, state, blocked, unplaced } = result.furthest;
  const where = partition === null ? "" : ` in partition ${shown(partition)}`;
  const title =
    result.verdict === "undecided"
      ? `Undecided${where} after ${result.steps} steps; the search came furthest so`
      : `Not linearizable${where}, after ${result.steps} steps`;
  const further =
    result.verdict === "undecided" ? ", not tried to the end" : ", but leads no further";
  const hidden = Math.max(0, placed.length - PLACED_SHOWN);
  return [
    `${title}: ${placed.length} of ${operations} operations placed`,
    ...(hidden > 0 ? [`  … ${hidden} before these`] : []),
    ...placed.slice(hidden).map((operation) => `  ${operationLine(operation)}`),
    `State after them: ${shown(state)}`,
    `No order found also serves the return at ${blocked.returnedAt} of`,
    `  ${operationLine(blocked)}`,
    "Called by then and not placed:",
    ...unplaced.map(
      ({ operation, here }) =>
        `  ${operationLine(operation)}: ${here} here${here === "possible" ? further : ""}`,
    ),
  ].join("\n");
}

function operationLine<Input, Output>(operation: Operation<Input, Output>): string {
  const { client, input, output, calledAt, returnedAt } = operation;
  const until = returnedAt === Infinity ? "?" : String(returnedAt);
  return `client ${client}, ${calledAt}–${until}: ${shown(input)} → ${shown(output)}`;
}

function shown(value: unknown): string {
  return value === unknown ? "unknown" : JSON.stringify(value);
}

function partitions<State extends {}, Input, Output>(
  model: Model<State, Input, Output>,
  history: readonly Operation<Input, Output>[],
): Map<string | number | null, Operation<Input, Output>[]> {
  const parts = new Map<string | number | null, Operation<Input, Output>[]>();
  for (const operation of history) {
    const { calledAt, returnedAt } = operation;
    if (!(calledAt <= returnedAt) || !Number.isFinite(calledAt))
      throw new Error(`Cannot check an operation from ${calledAt} to ${returnedAt}`);
    const key = model.partitionKey?.(operation.input) ?? null;
    const part = parts.get(key);
    if (part === undefined) parts.set(key, [operation]);
    else part.push(operation);
  }
  return parts;
}

/** Before the first node; nodes are numbered from 1 in order of time. */
const REQUIRED = 0;

class Search<State extends {}, Input, Output> {
  #modelSteps = 0;
  readonly #model: Model<State, Input, Output>;
  readonly #partition: string | number | null;
  readonly #operations: readonly Operation<Input, Output>[];

  /** Per node the index of its operation; per call the node of its return, 0 for an optional one; per return -1. */
  readonly #operationOf: Int32Array;
  readonly #returnOf: Int32Array;
  /**
   * Three chains, each in order of time, of what is not placed: required calls from REQUIRED, optional calls from
   * `#optional`, returns from `#returns`. All end in `#end`, which is greater than any node.
   */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #optional: number;
  readonly #returns: number;
  readonly #end: number;

  /**
   * Per operation its bit in `#taken`. Required ones that do not overlap may share one, which each of them flips: all that
   * returned before the limit are placed, so that limit and bit together say which. Optional ones have their own, from a
   * word's border on.
   */
  readonly #bitOf: Int32Array;
  readonly #taken: Uint32Array;
  readonly #memo: Memo;

  readonly #states: State[] = [];
  readonly #stateIds = new Map<string | number, number>();
  #state: number;

  /** Placed calls and the states before them. */
  readonly #stack: Int32Array;
  readonly #stateStack: Int32Array;
  #depth = 0;
  #optionalPlaced = 0;

  #furthestReturn = 0;
  #furthestDepth = 0;
  #furthestOptional = 0;
  #furthestState = 0;
  readonly #furthestStack: Int32Array;

  constructor(
    model: Model<State, Input, Output>,
    partition: string | number | null,
    operations: readonly Operation<Input, Output>[],
  ) {
    this.#model = model;
    this.#partition = partition;
    this.#operations = operations;

    const events = eventsInOrder(operations);
    const nodes = events.length;
    this.#optional = nodes + 1;
    this.#returns = nodes + 2;
    this.#end = nodes + 3;
    this.#operationOf = new Int32Array(nodes + 1);
    this.#returnOf = new Int32Array(nodes + 1);
    this.#next = new Int32Array(nodes + 4);
    this.#previous = new Int32Array(nodes + 4);

    this.#bitOf = new Int32Array(operations.length);
    const callOf = new Int32Array(operations.length);
    const last = { required: REQUIRED, optional: this.#optional, returns: this.#returns };
    const append = (chain: keyof typeof last, node: number): void => {
      this.#next[last[chain]] = node;
      this.#previous[node] = last[chain];
      last[chain] = node;
    };
    const freeBits: number[] = [];
    let bits = 0;
    for (let node = 1; node <= nodes; node++) {
      const event = events[node - 1] as number;
      const index = event >> 1;
      this.#operationOf[node] = index;
      if ((event & 1) === 1) {
        this.#returnOf[node] = -1;
        this.#returnOf[callOf[index] as number] = node;
        freeBits.push(this.#bitOf[index] as number);
        append("returns", node);
      } else if (isRequired(operations[index])) {
        callOf[index] = node;
        this.#bitOf[index] = freeBits.pop() ?? bits++;
        append("required", node);
      } else append("optional", node);
    }
    append("required", this.#end);
    append("optional", this.#end);
    append("returns", this.#end);

    const requiredWords = Math.ceil(bits / 32);
    bits = requiredWords * 32;
    for (let index = 0; index < operations.length; index++)
      if (!isRequired(operations[index])) this.#bitOf[index] = bits++;
    this.#taken = new Uint32Array(Math.ceil(bits / 32));
    this.#memo = new Memo(requiredWords, this.#taken.length);

    this.#stack = new Int32Array(operations.length);
    this.#stateStack = new Int32Array(operations.length);
    this.#furthestStack = new Int32Array(operations.length);
    this.#state = this.#stateId(model.init);
  }

  run(stepsMax: number): "linearizable" | "not-linearizable" | "undecided" {
    let limit = this.#next[this.#returns] as number;
    let node = this.#candidateAfter(REQUIRED, limit);
    while (limit !== this.#end) {
      if (node === this.#end) {
        this.#noteFurthest(limit);
        if (this.#depth === 0) return "not-linearizable";
        node = this.#takeBack();
        limit = this.#next[this.#returns] as number;
        node = this.#candidateAfter(node, limit);
      } else if (this.steps >= stepsMax) {
        this.#noteFurthest(limit);
        return "undecided";
      } else if (this.#place(node, limit)) {
        limit = this.#next[this.#returns] as number;
        node = this.#candidateAfter(REQUIRED, limit);
      } else {
        node = this.#candidateAfter(node, limit);
      }
    }
    return "linearizable";
  }

  get steps(): number {
    return this.#modelSteps + this.#memo.steps;
  }

  placed(): Operation<Input, Output>[] {
    return this.#operationsOf(this.#stack.subarray(0, this.#depth));
  }

  furthest(): Furthest<State, Input, Output> {
    const placed = this.#operationsOf(this.#furthestStack.subarray(0, this.#furthestDepth));
    const state = this.#states[this.#furthestState] as State;
    const blocked = this.#operationAt(this.#furthestReturn);
    const done = new Set(placed);
    const unplaced = this.#operations
      .filter((operation) => operation.calledAt <= blocked.returnedAt && !done.has(operation))
      .map((operation) => ({ operation, here: this.#effect(state, operation) }));
    const operations = this.#operations.length;
    return { partition: this.#partition, operations, placed, state, blocked, unplaced };
  }

  /** The next call to try before the return `limit`: the required ones, then the optional ones, then the end. */
  #candidateAfter(node: number, limit: number): number {
    let candidate = this.#next[node] as number;
    if (candidate < limit) return candidate;
    if (node !== REQUIRED && this.#returnOf[node] === 0) return this.#end;
    candidate = this.#next[this.#optional] as number;
    return candidate < limit ? candidate : this.#end;
  }

  /** Places the call if it can take effect here and leads to a new configuration. */
  #place(node: number, limit: number): boolean {
    const state = this.#step(this.#state, node);
    if (state === -1) return false;
    if (state === this.#state && this.#returnOf[node] === 0) return false;
    const before = this.#depth - 1;
    if (before >= 0 && this.#returnOf[this.#stack[before] as number] === 0) {
      // The limit has not moved since the optional call before this one, so this one was a candidate there too.
      if (this.#step(this.#stateStack[before] as number, node) === state) return false;
    }
    const limitAfter = this.#returnOf[node] === limit ? (this.#next[limit] as number) : limit;
    this.#flip(node);
    if (!this.#memo.add(limitAfter, state, this.#taken)) {
      this.#flip(node);
      return false;
    }
    this.#unlink(node);
    this.#stack[this.#depth] = node;
    this.#stateStack[this.#depth] = this.#state;
    this.#depth += 1;
    if (this.#returnOf[node] === 0) this.#optionalPlaced += 1;
    this.#state = state;
    return true;
  }

  /** Takes back the call that was placed last, and gives it. */
  #takeBack(): number {
    this.#depth -= 1;
    const node = this.#stack[this.#depth] as number;
    if (this.#returnOf[node] === 0) this.#optionalPlaced -= 1;
    this.#state = this.#stateStack[this.#depth] as number;
    this.#relink(node);
    this.#flip(node);
    return node;
  }

  /** The state after the call, or -1 if it cannot take effect in this one. */
  #step(from: number, node: number): number {
    this.#modelSteps += 1;
    const { input, output } = this.#operationAt(node);
    const state = this.#model.step(this.#states[from] as State, input, output);
    return state === null ? -1 : this.#stateId(state);
  }

  #stateId(state: State): number {
    const key = this.#model.stateKey(state);
    let id = this.#stateIds.get(key);
    if (id === undefined) {
      id = this.#states.push(state) - 1;
      this.#stateIds.set(key, id);
    }
    return id;
  }

  /** Takes the call's bit, or gives it back. */
  #flip(node: number): void {
    const bit = this.#bitOf[this.#operationOf[node] as number] as number;
    this.#taken[bit >>> 5] = (this.#taken[bit >>> 5] as number) ^ (1 << (bit & 31));
  }

  #unlink(call: number): void {
    this.#skip(call);
    const end = this.#returnOf[call] as number;
    if (end !== 0) this.#skip(end);
  }

  #skip(node: number): void {
    const [previous, next] = [this.#previous[node] as number, this.#next[node] as number];
    this.#next[previous] = next;
    this.#previous[next] = previous;
  }

  /** Undoes the last unlink: what it skipped still knows its neighbours. */
  #relink(call: number): void {
    const end = this.#returnOf[call] as number;
    if (end !== 0) this.#restore(end);
    this.#restore(call);
  }

  #restore(node: number): void {
    this.#next[this.#previous[node] as number] = node;
    this.#previous[this.#next[node] as number] = node;
  }

  /** Past the most returns; then with the most required operations, then with the fewest optional ones. */
  #noteFurthest(limit: number): void {
    if (limit < this.#furthestReturn) return;
    if (limit === this.#furthestReturn) {
      const required = this.#depth - this.#optionalPlaced;
      const requiredFurthest = this.#furthestDepth - this.#furthestOptional;
      if (required < requiredFurthest) return;
      if (required === requiredFurthest && this.#depth >= this.#furthestDepth) return;
    }
    this.#furthestReturn = limit;
    this.#furthestDepth = this.#depth;
    this.#furthestOptional = this.#optionalPlaced;
    this.#furthestState = this.#state;
    this.#furthestStack.set(this.#stack.subarray(0, this.#depth));
  }

  #effect(
    state: State,
    { input, output }: Operation<Input, Output>,
  ): Unplaced<Input, Output>["here"] {
    const after = this.#model.step(state, input, output);
    if (after === null) return "impossible";
    const same = this.#model.stateKey(after) === this.#model.stateKey(state);
    return same ? "without effect" : "possible";
  }

  #operationsOf(nodes: Int32Array): Operation<Input, Output>[] {
    return Array.from(nodes, (node) => this.#operationAt(node));
  }

  #operationAt(node: number): Operation<Input, Output> {
    return this.#operations[this.#operationOf[node] as number] as Operation<Input, Output>;
  }
}

const isRequired = (operation: { readonly returnedAt: number } | undefined): boolean =>
  operation?.returnedAt !== Infinity;

/** Calls as twice the operation's index, returns as one more; of equal times calls come first. */
function eventsInOrder(operations: readonly Operation<unknown, unknown>[]): number[] {
  const events: number[] = [];
  for (let index = 0; index < operations.length; index++) {
    events.push(index << 1);
    if (isRequired(operations[index])) events.push((index << 1) | 1);
  }
  const timeOf = (event: number): number => {
    const { calledAt, returnedAt } = operations[event >> 1] as Operation<unknown, unknown>;
    return (event & 1) === 0 ? calledAt : returnedAt;
  };
  return events.sort((a, b) => timeOf(a) - timeOf(b) || (a & 1) - (b & 1) || a - b);
}

function mixed(value: number): number {
  let z = Math.imul(value ^ 0x5bd1e995, 0x9e3779b9);
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return z ^ (z >>> 16);
}

/** Words of a row before those of what was taken: hash, state, limit, and the next row of the same bucket. */
const HASH = 0;
const STATE = 1;
const LIMIT = 2;
const NEXT = 3;
const TAKEN = 4;

/** The configurations that were reached. Row 0 stands for none. */
class Memo {
  /** Rows that were compared. */
  steps = 0;
  readonly #requiredWords: number;
  readonly #stride: number;
  #rows: Uint32Array;
  #buckets = new Uint32Array(64);
  #count = 1;

  constructor(requiredWords: number, words: number) {
    this.#requiredWords = requiredWords;
    this.#stride = TAKEN + words;
    this.#rows = new Uint32Array(64 * this.#stride);
  }

  /** False if as good a configuration is there: whatever can follow this one could follow that one. */
  add(limit: number, state: number, taken: Uint32Array): boolean {
    let hash = mixed(mixed(state) ^ limit);
    for (let word = 0; word < this.#requiredWords; word++)
      hash = mixed(hash ^ (taken[word] as number));
    hash >>>= 0;
    const bucket = hash & (this.#buckets.length - 1);
    const first = this.#buckets[bucket] as number;
    for (let row = first; row !== 0; row = this.#rows[row * this.#stride + NEXT] as number)
      if (this.#covers(row * this.#stride, hash, limit, state, taken)) return false;

    if ((this.#count + 1) * this.#stride > this.#rows.length) this.#growRows();
    const at = this.#count * this.#stride;
    this.#rows[at + HASH] = hash;
    this.#rows[at + STATE] = state;
    this.#rows[at + LIMIT] = limit;
    this.#rows[at + NEXT] = first;
    this.#rows.set(taken, at + TAKEN);
    this.#buckets[bucket] = this.#count;
    this.#count += 1;
    if (this.#count > this.#buckets.length) this.#growBuckets();
    return true;
  }

  #covers(at: number, hash: number, limit: number, state: number, taken: Uint32Array): boolean {
    const rows = this.#rows;
    if (rows[at] !== hash || rows[at + STATE] !== state || rows[at + LIMIT] !== limit) return false;
    this.steps += 1;
    const from = at + TAKEN;
    let word = 0;
    for (; word < this.#requiredWords; word++) if (rows[from + word] !== taken[word]) return false;
    for (; word < taken.length; word++)
      if (((rows[from + word] as number) & ~(taken[word] as number)) !== 0) return false;
    return true;
  }

  #growRows(): void {
    const rows = new Uint32Array(this.#rows.length * 2);
    rows.set(this.#rows);
    this.#rows = rows;
  }

  #growBuckets(): void {
    this.#buckets = new Uint32Array(this.#buckets.length * 4);
    for (let row = 1; row < this.#count; row++) {
      const at = row * this.#stride;
      const bucket = (this.#rows[at + HASH] as number) & (this.#buckets.length - 1);
      this.#rows[at + NEXT] = this.#buckets[bucket] as number;
      this.#buckets[bucket] = row;
    }
  }
}
