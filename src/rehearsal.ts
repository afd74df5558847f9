/**
 * What a node does again and again, done once it is ready and before it is asked: a runtime compiles code when it has run
 * for a while, and until then requests take several times as long as later ones. Three hosts of a cluster that nobody else
 * knows, in this process, over a network of their own and a directory in memory where there is one, elect leaders, write,
 * read, stop and start again; then nothing is left of them. What it gains and costs: `npm run bench -- wake`.
 *
 * It shares nothing with the node beside which it runs but its time, of which the node's own requests come first; it ends
 * after so many requests or so long, and what fails in it ends it and nothing else.
 */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createGateway, type Gateway, type Logger } from "./gateway/gateway.ts";
import { hashToken } from "./gateway/tokens.ts";
import { SYSTEM_TENANT } from "./host/directory.ts";
import { NodeHost } from "./host/node_host.ts";
import type { Clock, ConfigService } from "./host/ports.ts";
import type { Action } from "./machine/command.ts";
import { openJournalDisk } from "./store/disk.ts";
import { LmdbEnvironments } from "./store/environments.ts";
import { NodeJournal } from "./store/journal.ts";
import { LoopbackNetwork } from "./transport/loopback.ts";

const names = ["r1", "r2", "r3"] as const;
const cluster = "rehearsal";
const token = "cfx_root_rehearsal";
/** Each is new once, and found on the disk after every new start. */
const tenantsCount = 12;
/** Of each host: the node's own environments need the descriptors. */
const environmentsMax = 8;
/** What was promised in an earlier life, and who might take over what a host leads that stops, is not waited for. */
const skipMs = 2_000;
const busyWaitMs = 5;
/** What is written is of no use to anybody. */
const memoryDirectory = "/dev/shm";

const nothing = (): void => {};
const silent: Logger = { debug: nothing, info: nothing, warn: nothing, error: nothing };

export interface RehearsalOptions {
  /** It ends after so many, and after so long. */
  readonly requests: number;
  readonly limitMs: number;
  /** Names its directory: the same for every start of a node, and for no two nodes. */
  readonly name: string;
  /** The node itself has something to do. */
  readonly isBusy: () => boolean;
  readonly signal: AbortSignal;
}

export interface Rehearsed {
  readonly requests: number;
  readonly ms: number;
  /** Why it ended early; null: it did not. */
  readonly error: Error | null;
}

/** Resolves when it is over, however it ended, and nothing is left of it. */
export async function rehearse(options: RehearsalOptions): Promise<Rehearsed> {
  const startedAt = performance.now();
  const rehearsal = new Rehearsal(options, startedAt + options.limitMs);
  let error: Error | null = null;
  try {
    await rehearsal.run();
  } catch (thrown) {
    error = asError(thrown);
  }
  try {
    await rehearsal.end();
  } catch (thrown) {
    error ??= asError(thrown);
  }
  return { requests: rehearsal.requests, ms: performance.now() - startedAt, error };
}

class Rehearsal {
  readonly #options: RehearsalOptions;
  readonly #endAt: number;
  readonly #directory: string;
  #hosts: readonly NodeHost[] = [];
  /** The gateway's: between two lives the one that was stopped, which its timers may ask. */
  #first: NodeHost | null = null;
  #gateway: Gateway | null = null;
  #boot = 0;
  #skippedMs = 0;
  #fault: Error | null = null;
  requests = 0;

  constructor(options: RehearsalOptions, endAt: number) {
    this.#options = options;
    this.#endAt = endAt;
    const above = fs.existsSync(memoryDirectory) ? memoryDirectory : tmpdir();
    this.#directory = join(above, `conflux-rehearsal-${options.name}`);
  }

  get #isOver(): boolean {
    const { requests, signal } = this.#options;
    return signal.aborted || this.requests >= requests || performance.now() >= this.#endAt;
  }

  async run(): Promise<void> {
    // Of an earlier start that was killed in the middle of it.
    fs.rmSync(this.#directory, { recursive: true, force: true });
    fs.mkdirSync(this.#directory, { mode: 0o700 });
    await this.#start();
    await this.#register();
    const tenants = Array.from({ length: tenantsCount }, (_, at) => ({ id: `t${at}` }));
    await this.#ask("POST", "/v1/tenants/batch", { tenants });
    for (const { id } of tenants) {
      if (this.#isOver) return;
      await this.#ask("PUT", configOf(id), { format: "text", content: "x" });
      await this.#use(id);
    }
    while (!this.#isOver) {
      await this.#stop();
      await this.#start();
      for (const { id } of tenants) if (!this.#isOver) await this.#use(id);
    }
  }

  async #use(tenant: string): Promise<void> {
    await this.#ask("GET", `/v1/tenants/${tenant}/namespaces/app/values/c`);
    await this.#ask("POST", `${configOf(tenant)}/publish`, { content: `${this.requests}` });
  }

  async #ask(method: string, path: string, body?: unknown): Promise<void> {
    while (this.#options.isBusy() && !this.#isOver) await sleep(busyWaitMs);
    if (this.#isOver) return;
    const request = new Request(`http://localhost${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const answer = await (this.#gateway as Gateway).fetch(request, {});
    const text = await answer.text();
    if (this.#fault !== null) throw this.#fault;
    if (answer.status >= 300) throw new Error(`${method} ${path} was answered with ${text}`);
    this.requests += 1;
  }

  async #start(): Promise<void> {
    this.#boot += 1;
    const network = new LoopbackNetwork();
    this.#hosts = names.map((node, seed) => this.#host(node, seed, network));
    this.#first = this.#hosts[0] ?? null;
    this.#skippedMs += skipMs;
    for (const host of this.#hosts) await host.start();
    const [first] = this.#hosts as [NodeHost];
    await first.read(SYSTEM_TENANT, { consistency: "linearizable" }, nothing);
    for (const host of this.#hosts) host.registered = true;
    this.#gateway ??= createGateway({
      service: this.#service(),
      log: silent,
      settings: { version: "0" },
    });
  }

  /** The first host as it is now, or was last: making a gateway costs more than a start. */
  #service(): ConfigService {
    return new Proxy({} as ConfigService, {
      get: (_none, key: keyof ConfigService) => {
        const first = this.#first as ConfigService;
        const value: unknown = first[key];
        return typeof value === "function" ? (value.bind(first) as unknown) : value;
      },
    });
  }

  #host(node: string, seed: number, network: LoopbackNetwork): NodeHost {
    const data = join(this.#directory, node);
    fs.mkdirSync(data, { recursive: true });
    const identity = { cluster, node, boot: this.#boot };
    const onFatal = (error: Error): void => {
      this.#fault ??= error;
    };
    const disk = openJournalDisk(join(data, "journal"));
    return new NodeHost({
      ...identity,
      version: "0",
      peers: names,
      transportKind: "loopback",
      journal: new NodeJournal({ disk, salt: seed, onFatal }),
      environments: new LmdbEnvironments({ data, capMax: environmentsMax }),
      transport: network.join(identity),
      clock: this.#clock(),
      seed,
      log: silent,
      onFatal,
    });
  }

  #clock(): Clock {
    return {
      monotonicMs: () => performance.now() + this.#skippedMs,
      wallMs: () => Date.now() + this.#skippedMs,
      defer: (run) => {
        setImmediate(run);
      },
      every: (ms, run) => {
        const timer = setInterval(run, ms);
        return () => clearInterval(timer);
      },
    };
  }

  async #register(): Promise<void> {
    const [first] = this.#hosts as [NodeHost];
    const { node: keyOf, semantics, levels, levelToBegin: level, systemInitial: initial } = first;
    const change = async (action: Action): Promise<void> => {
      const actor = { kind: "system", keyId: keyOf } as const;
      const command = { at: Date.now(), actor, semantics, action };
      const outcome = await first.propose(SYSTEM_TENANT, command);
      if (!outcome.ok) throw new Error(outcome.detail);
    };
    for (const node of names)
      await change({ op: "node.register", node, boot: this.#boot, initial, level, levels });
    const hash = hashToken(token);
    await change({ op: "rootKey.put", node: keyOf, keyId: hash.slice(0, 13), hash });
  }

  async #stop(): Promise<void> {
    const stopped = Promise.all(this.#hosts.map((host) => host.stop()));
    this.#hosts = [];
    this.#skippedMs += skipMs;
    await stopped;
  }

  async end(): Promise<void> {
    this.#gateway?.close();
    try {
      await this.#stop();
    } finally {
      fs.rmSync(this.#directory, { recursive: true, force: true });
    }
  }
}

function configOf(tenant: string): string {
  return `/v1/tenants/${tenant}/namespaces/app/configs/c`;
}

function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}
