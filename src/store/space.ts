/**
 * How much room the disk under the data directory has, so that writes are refused before it is full: a disk that is full
 * ends a node in the middle of a write, one that is nearly full lets it vote, read and make room.
 *
 * Looked at every half second, and whenever the journal takes another mebibyte: between two looks a fast disk can be
 * filled by more than any reserve. A reserve of 256 MiB is four times what the journal keeps before it checkpoints.
 */
import * as fs from "node:fs";
import type { DiskSpace } from "../host/ports.ts";

const intervalMs = 500;
/** Below this part of the reserve nothing grows that can be refused. */
const lastPart = 1 / 4;
/** So much more than a bound must be free before it counts as passed upwards, or every write would turn it. */
const hysteresis = 1.1;

export interface DiskMonitorOptions {
  /** On the file system that is looked at. */
  readonly directory: string;
  /** 0 = never refuse. */
  readonly reserveBytes: number;
  readonly onChange: (space: DiskMonitor) => void;
}

export class DiskMonitor implements DiskSpace {
  readonly reserveBytes: number;
  level: DiskSpace["level"] = "free";
  freeBytes: number;
  oldestWriteMs = 0;
  readonly #options: DiskMonitorOptions;
  readonly #timer: NodeJS.Timeout;
  #looking = false;
  #closed = false;

  /** Throws when the file system cannot be asked. */
  constructor(options: DiskMonitorOptions) {
    this.#options = options;
    this.reserveBytes = options.reserveBytes;
    this.freeBytes = freeOf(fs.statfsSync(options.directory));
    this.level = levelOf(this.freeBytes, this.reserveBytes, this.level);
    this.#timer = setInterval(() => this.look(), intervalMs);
    this.#timer.unref();
  }

  /** One look at a time; the answer comes by `level` and `onChange`. */
  look(): void {
    if (this.#looking || this.#closed) return;
    this.#looking = true;
    fs.statfs(this.#options.directory, (error, stats) => {
      this.#looking = false;
      // A directory that is gone is the lock's to notice.
      if (error || this.#closed) return;
      this.freeBytes = freeOf(stats);
      const level = levelOf(this.freeBytes, this.reserveBytes, this.level);
      if (level === this.level) return;
      this.level = level;
      this.#options.onChange(this);
    });
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
  }
}

/** What a process without special rights may still use. */
function freeOf({ bavail, bsize }: fs.StatsFs): number {
  return bavail * bsize;
}

/** @param before the level until now: leaving it upwards takes a little more than its bound */
export function levelOf(
  freeBytes: number,
  reserveBytes: number,
  before: DiskSpace["level"],
): DiskSpace["level"] {
  const isBelow = (bytes: number, was: boolean): boolean =>
    freeBytes < (was ? bytes * hysteresis : bytes);
  if (isBelow(reserveBytes * lastPart, before === "out")) return "out";
  return isBelow(reserveBytes, before !== "free") ? "low" : "free";
}
