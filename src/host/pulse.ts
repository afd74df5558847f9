/**
 * When a node looks at what time brings: every PULSE_MS while something is under way here, and for a moment after; else
 * with each heartbeat, which leaves anyway. At rest it so wakes 7 times a second, and not 57: what many nodes with few
 * busy tenants pay for is mostly this (bench/density.ts).
 *
 * Nothing may be late for it. What comes in from outside ends in a turn, and that rouses the node; what has a time of its
 * own is asked at every look, and keeps the node awake for as long as that is nearer than the next one (`isBusy`).
 */
import { HEARTBEAT_MS } from "./liveness.ts";
import type { Clock } from "./ports.ts";
import { TICK_MS } from "./replica.ts";

/** Retries, campaigns and time-outs are looked at this often. */
export const PULSE_MS = 25;
/** Looks at which nothing was to be done before the next one comes with a heartbeat. */
const CALM_PULSES = 10;
/** What is due before this has passed must not wait for the next heartbeat, which may be late itself. */
export const REST_MS = HEARTBEAT_MS + 2 * PULSE_MS;

export interface PulseHooks {
  /** Every HEARTBEAT_MS. */
  heartbeat(): void;
  /** Every PULSE_MS, at rest with each heartbeat. */
  pulse(): void;
  /** Every TICK_MS, and never at rest. */
  tick(): void;
  /** Something is waiting for one of the next pulses or ticks, or is due within REST_MS. */
  isBusy(): boolean;
}

export class Pulse {
  readonly #clock: Clock;
  readonly #hooks: PulseHooks;
  #heartbeat: (() => void) | null = null;
  /** Stop what runs only while this node is awake; none: it rests. */
  #timers: (() => void)[] = [];
  #calm = 0;

  constructor(clock: Clock, hooks: PulseHooks) {
    this.#clock = clock;
    this.#hooks = hooks;
  }

  start(): void {
    this.#heartbeat = this.#clock.every(HEARTBEAT_MS, () => {
      this.#hooks.heartbeat();
      if (this.#timers.length === 0) this.#look();
    });
    this.rouse();
  }

  /** Something is under way. */
  rouse(): void {
    this.#calm = 0;
    if (this.#timers.length > 0 || this.#heartbeat === null) return;
    this.#timers = [
      this.#clock.every(TICK_MS, () => this.#hooks.tick()),
      this.#clock.every(PULSE_MS, () => this.#look()),
    ];
  }

  #look(): void {
    this.#hooks.pulse();
    if (this.#hooks.isBusy()) return this.rouse();
    this.#calm += 1;
    if (this.#calm >= CALM_PULSES) this.#rest();
  }

  #rest(): void {
    for (const stop of this.#timers) stop();
    this.#timers = [];
  }

  stop(): void {
    this.#heartbeat?.();
    this.#heartbeat = null;
    this.#rest();
  }
}
