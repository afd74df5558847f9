/** Real nodes in the simulated world, with fair weather until a test says otherwise, and what tests ask of them. */
import { expect } from "vitest";
import type { Problem } from "../../src/api/problems.ts";
import type { Tuning } from "../../src/host/node_host.ts";
import type { Levels } from "../../src/host/versions.ts";
import type { TenantView } from "../../src/host/ports.ts";
import type { Replica } from "../../src/host/replica.ts";
import type { Command, Outcome } from "../../src/machine/command.ts";
import { getConfig, getText } from "../../src/machine/queries.ts";
import { World, type SimNode } from "../sim/world.ts";
import { command, createTenant } from "./scripted_node.ts";

export class Cluster {
  readonly world: World;

  constructor(
    options: {
      nodes?: number;
      spares?: number;
      segmentBytes?: number;
      tuning?: Partial<Tuning>;
      /** By node, in order: what their versions know. */
      levels?: readonly Levels[];
    } = {},
  ) {
    const { levels = [], ...rest } = options;
    this.world = new World({ seed: 1, nodes: 3, ...rest });
    for (const [at, of] of levels.entries()) this.node(at).levels = of;
    for (const node of this.world.nodes.slice(0, options.nodes ?? 3)) this.world.start(node);
  }

  node(at: number): SimNode {
    return this.world.nodes[at] as SimNode;
  }

  async pass(ms: number): Promise<void> {
    await this.world.run(this.world.now + ms);
  }

  async until(what: string, condition: () => boolean, ms = 10_000): Promise<void> {
    await this.world.run(this.world.now + ms, condition);
    expect(condition(), `${what}, within ${ms} ms`).toBe(true);
  }

  async ready(): Promise<void> {
    await this.until("ready", () => this.world.alive.every((node) => node.host?.ready === true));
  }

  propose(
    node: SimNode,
    tenant: string,
    of: Command,
    ms = 5_000,
  ): { outcome: Outcome | null; problem: Problem | null } {
    const answer: { outcome: Outcome | null; problem: Problem | null } = {
      outcome: null,
      problem: null,
    };
    node.host?.requests.propose(tenant, of, ms, (error, outcome) => {
      answer.problem = error;
      answer.outcome = outcome ?? null;
    });
    return answer;
  }

  async change(node: SimNode, tenant: string, of: Command): Promise<Outcome> {
    const answer = this.propose(node, tenant, of);
    await this.until("an answer", () => answer.outcome !== null || answer.problem !== null);
    if (answer.outcome === null) throw new Error(answer.problem?.message ?? "no answer");
    return answer.outcome;
  }

  async read<T>(node: SimNode, tenant: string, query: (view: TenantView) => T): Promise<T> {
    const answers: (T | Problem)[] = [];
    node.host?.requests.read(tenant, { consistency: "linearizable" }, (error, view) => {
      answers.push(error ?? query(view as TenantView));
    });
    await this.until("an answer", () => answers.length > 0);
    const [answer] = answers;
    if (answer instanceof Error) throw answer;
    return answer as T;
  }

  async create(tenant: string, nodes?: readonly string[]): Promise<void> {
    const outcome = await this.change(
      this.node(0),
      "_system",
      command(createTenant(tenant, nodes)),
    );
    expect(outcome.ok).toBe(true);
    const put = command({ op: "config.put", namespace: "app", name: "c", format: "text" });
    expect((await this.change(this.node(0), tenant, put)).ok).toBe(true);
  }

  replicas(tenant: string): { node: SimNode; replica: Replica }[] {
    return this.world.nodes.flatMap((node) =>
      [...(node.host?.replicas() ?? [])]
        .filter((replica) => replica.tenant === tenant)
        .map((replica) => ({ node, replica })),
    );
  }

  leader(tenant: string): SimNode | null {
    const leading = this.replicas(tenant).filter(({ replica }) => replica.raft.isLeader);
    leading.sort((a, b) => b.replica.raft.term - a.replica.raft.term);
    return leading[0]?.node ?? null;
  }
}

export function publish(text: string, idempotency?: string): Command {
  const content = { text, hash: `sha256:${text}`, bytes: text.length };
  return command(
    { op: "publish", namespace: "app", name: "c", content, schemaHash: null },
    idempotency,
  );
}

export function latest(view: TenantView): string | null {
  const version = getConfig(view, "app", "c")?.latestVersion ?? 0;
  return version === 0 ? null : getText(view, "app", "c", version);
}

export function versions(view: TenantView): number {
  return getConfig(view, "app", "c")?.latestVersion ?? 0;
}

export async function ready(
  options: ConstructorParameters<typeof Cluster>[0] = {},
): Promise<Cluster> {
  const cluster = new Cluster(options);
  await cluster.ready();
  return cluster;
}
