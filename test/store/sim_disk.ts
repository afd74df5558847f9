/**
 * A disk in memory with the ways real ones fail: what was not synced is lost or half there when the power goes, pages
 * of one write arrive in any order or only up to some byte, names come and go with the directory's sync, bits flip, a
 * write fails. Nothing happens by itself: the caller completes one pending operation after the other, so a simulator
 * decides the order and the moment of a crash. Deterministic by its seed.
 */
import { Prng } from "../../src/lib/prng.ts";
import { NodeJournal } from "../../src/store/journal.ts";
import type {
  DiskDone,
  JournalDisk,
  JournalFile,
  JournalOptions,
  NodeJournalRecovery,
} from "../../src/store/journal.ts";

const sectorBytes = 512;

export interface SimDiskOptions {
  readonly seed: number;
  /** Files grow in steps of zeros, as the real disk's do; 0 = by what is written. */
  readonly growthBytes?: number;
}

/** How much of a write that was under way survives a crash; without it the seed decides. */
export type Survival =
  | { readonly kind: "none" }
  | { readonly kind: "all" }
  | { readonly kind: "prefix"; readonly bytes: number }
  | { readonly kind: "sectors" };

/** A journal over it that has read what is there; what it began then is pending. */
export function openJournalOn(
  disk: SimDisk,
  options: Omit<JournalOptions, "disk">,
): { readonly journal: NodeJournal; readonly recovery: NodeJournalRecovery } {
  const journal = new NodeJournal({ ...options, disk });
  let outcome: { error: Error | null; found: NodeJournalRecovery | null } | null = null;
  journal.open((error, found) => {
    outcome = { error, found };
  });
  while (outcome === null && disk.step(0));
  const { error, found } = outcome as unknown as NonNullable<typeof outcome>;
  if (found === null) throw error as Error;
  return { journal, recovery: found };
}

interface SimFile {
  bytes: Uint8Array;
}

interface Operation {
  readonly what: "read" | "truncate" | "write" | "create" | "remove" | "sync" | "close" | "turn";
  /** Makes the effect, then tells. Not called when the disk crashes first. */
  readonly complete: () => void;
  /** What is left of it when the disk crashes first. */
  readonly crash: (survival: Survival | null) => void;
  readonly fail: (error: Error) => void;
}

export class SimDisk implements JournalDisk {
  readonly #prng: Prng;
  readonly #growthBytes: number;
  /** Names as the running system sees them, and as they are found after a crash. */
  #names = new Map<string, SimFile>();
  #durableNames = new Map<string, SimFile>();
  #pending: Operation[] = [];
  #generation = 0;
  #failures: { what: Operation["what"]; after: number; error: Error }[] = [];
  readonly counts = { writes: 0, bytes: 0, syncs: 0, crashes: 0 };

  constructor(options: SimDiskOptions) {
    this.#prng = new Prng(options.seed);
    this.#growthBytes = options.growthBytes ?? 0;
  }

  // --- time ------------------------------------------------------------------------------------------------------

  get pending(): number {
    return this.#pending.length;
  }

  /** What the pending operations are, oldest first. */
  get operations(): readonly Operation["what"][] {
    return this.#pending.map(({ what }) => what);
  }

  /** Completes one of the pending operations. @returns false when there was none */
  step(index: number = this.#prng.below(Math.max(1, this.#pending.length))): boolean {
    const [operation] = this.#pending.splice(index, 1);
    if (operation === undefined) return false;
    const failure = this.#failures.find(({ what }) => what === operation.what);
    if (failure !== undefined && failure.after-- <= 0) {
      this.#failures = this.#failures.filter((other) => other !== failure);
      operation.fail(failure.error);
    } else operation.complete();
    return true;
  }

  /** Completes everything, also what the completions start. */
  run(): void {
    while (this.step());
  }

  // --- faults ----------------------------------------------------------------------------------------------------

  /** The power goes: nothing pending is told, and of what was not durable the seed (or `survival`) leaves some. */
  crash(survival: Survival | null = null): void {
    this.counts.crashes += 1;
    this.#generation += 1;
    for (const operation of this.#pending) operation.crash(survival);
    this.#pending = [];
    this.#failures = [];
    const names = new Set([...this.#names.keys(), ...this.#durableNames.keys()]);
    for (const name of [...names].sort()) {
      const running = this.#names.get(name);
      const durable = this.#durableNames.get(name);
      // A change of the directory that was not synced may have reached the disk or not.
      const file = running === durable || this.#prng.chance(0.5) ? durable : running;
      if (file === undefined) this.#durableNames.delete(name);
      else this.#durableNames.set(name, file);
    }
    this.#names = new Map(this.#durableNames);
  }

  /** The operation of this kind that completes after `after` others of it fails, once. */
  failNext(what: Operation["what"], error: Error, after = 0): void {
    this.#failures.push({ what, after, error });
  }

  flipBit(name: string, at: number, bit: number): void {
    const { bytes } = this.#file(name);
    bytes[at] = (bytes[at] as number) ^ (1 << bit);
  }

  overwrite(name: string, at: number, patch: Uint8Array): void {
    this.#file(name).bytes.set(patch, at);
  }

  removeFile(name: string): void {
    this.#names.delete(name);
    this.#durableNames.delete(name);
  }

  /** A copy of what a crash now would leave at best, for trying the same moment in many ways. */
  clone(seed: number): SimDisk {
    const copy = new SimDisk({ seed, growthBytes: this.#growthBytes });
    for (const [name, file] of this.#names) {
      const same: SimFile = { bytes: file.bytes.slice() };
      copy.#names.set(name, same);
      copy.#durableNames.set(name, same);
    }
    return copy;
  }

  // --- port ------------------------------------------------------------------------------------------------------

  list(): readonly string[] {
    return [...this.#names.keys()];
  }

  read(name: string): Uint8Array {
    return this.#file(name).bytes.slice();
  }

  load(name: string, done: (error: Error | null, bytes: Uint8Array | null) => void): void {
    this.#later({
      what: "read",
      complete: () => done(null, this.read(name)),
      crash: () => undefined,
      fail: (error) => done(error, null),
    });
  }

  defer(run: () => void): void {
    this.#later({ what: "turn", complete: run, crash: () => undefined, fail: run });
  }

  truncate(name: string, size: number, done: DiskDone): void {
    const truncate = (): void => {
      const file = this.#file(name);
      file.bytes = file.bytes.slice(0, size);
    };
    this.#later({
      what: "truncate",
      complete: () => {
        truncate();
        done(null);
      },
      crash: () => {
        if (this.#prng.chance(0.5)) truncate();
      },
      fail: done,
    });
  }

  create(name: string, done: (error: Error | null, file: JournalFile | null) => void): void {
    this.#later({
      what: "create",
      complete: () => {
        if (this.#names.has(name)) return done(new Error(`EEXIST: ${name}`), null);
        const file: SimFile = { bytes: new Uint8Array(0) };
        this.#names.set(name, file);
        done(null, this.#open(file));
      },
      crash: () => {
        if (!this.#names.has(name) && this.#prng.chance(0.5))
          this.#durableNames.set(name, { bytes: new Uint8Array(0) });
      },
      fail: (error) => done(error, null),
    });
  }

  remove(name: string, done: DiskDone): void {
    this.#later({
      what: "remove",
      complete: () => {
        this.#file(name);
        this.#names.delete(name);
        done(null);
      },
      crash: () => {
        if (this.#prng.chance(0.5)) this.#durableNames.delete(name);
      },
      fail: done,
    });
  }

  syncDirectory(done: DiskDone): void {
    this.#later({
      what: "sync",
      complete: () => {
        this.counts.syncs += 1;
        this.#durableNames = new Map(this.#names);
        done(null);
      },
      crash: () => undefined,
      fail: done,
    });
  }

  #open(file: SimFile): JournalFile {
    let busy = false;
    const finish = (done: DiskDone, error: Error | null): void => {
      busy = false;
      done(error);
    };
    return {
      write: (position, bytes, done) => {
        if (busy) throw new Error("SimDisk: a second operation on a file that has one under way");
        busy = true;
        const expected = bytes.slice();
        this.#later({
          what: "write",
          complete: () => {
            if (Buffer.compare(bytes, expected) !== 0)
              throw new Error("SimDisk: bytes were changed while they were being written");
            this.#grow(file, position + bytes.byteLength, true);
            file.bytes.set(bytes, position);
            this.counts.writes += 1;
            this.counts.bytes += bytes.byteLength;
            finish(done, null);
          },
          crash: (survival) => this.#tear(file, position, expected, survival),
          fail: (error) => {
            // Nobody knows what of a failed write is there.
            this.#tear(file, position, expected, null);
            finish(done, error);
          },
        });
      },
      close: (done) => {
        if (busy) throw new Error("SimDisk: closed while an operation is under way");
        this.#later({
          what: "close",
          complete: () => done(null),
          crash: () => undefined,
          fail: done,
        });
      },
    };
  }

  #tear(file: SimFile, position: number, bytes: Uint8Array, wanted: Survival | null): void {
    const survival = wanted ?? this.#drawSurvival(bytes.byteLength);
    if (survival.kind === "none") return;
    if (survival.kind === "prefix" || survival.kind === "all") {
      const length = survival.kind === "all" ? bytes.byteLength : survival.bytes;
      this.#grow(file, position + length, this.#prng.chance(0.5));
      file.bytes.set(bytes.subarray(0, length), position);
      return;
    }
    this.#grow(file, position + bytes.byteLength, true);
    for (let from = 0; from < bytes.byteLength;) {
      const to = Math.min(bytes.byteLength, from - ((position + from) % sectorBytes) + sectorBytes);
      if (this.#prng.chance(0.5)) file.bytes.set(bytes.subarray(from, to), position + from);
      from = to;
    }
  }

  #drawSurvival(length: number): Survival {
    switch (this.#prng.below(5)) {
      case 0:
        return { kind: "none" };
      case 1:
        return { kind: "all" };
      case 2:
        return { kind: "sectors" };
      default:
        return { kind: "prefix", bytes: this.#prng.between(0, length) };
    }
  }

  #grow(file: SimFile, end: number, inSteps: boolean): void {
    const step = inSteps ? Math.max(1, this.#growthBytes) : 1;
    const size = Math.max(file.bytes.byteLength, Math.ceil(end / step) * step);
    if (size === file.bytes.byteLength) return;
    const grown = new Uint8Array(size);
    grown.set(file.bytes);
    file.bytes = grown;
  }

  #later(operation: Operation): void {
    const generation = this.#generation;
    const alive = (): boolean => generation === this.#generation;
    this.#pending.push({
      ...operation,
      complete: () => {
        if (alive()) operation.complete();
      },
    });
  }

  #file(name: string): SimFile {
    const file = this.#names.get(name);
    if (file === undefined) throw new Error(`ENOENT: ${name}`);
    return file;
  }
}
