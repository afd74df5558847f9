/** The real gateway over real HTTP, for tests of its clients. */
import { onTestFinished } from "vitest";
import { serve } from "../../src/runtime/serve.ts";
import { Admin } from "../../src/sdk/admin.ts";
import type { Where } from "../../src/sdk/admin.ts";
import { Conflux } from "../../src/sdk/mod.ts";
import type { ConfluxOptions } from "../../src/sdk/mod.ts";
import { Harness } from "../gateway/harness.ts";

export const where: Where = { tenant: "acme", namespace: "default" };
export const timing = { backoffBaseMs: 5, backoffCapMs: 40, firstBytesMs: 1_000 };

export class Served {
  readonly harness: Harness;
  readonly urls: readonly string[];
  readonly admin: Admin;
  readonly adminKey: string;
  readonly clientKey: { readonly id: string; readonly token: string };

  private constructor(
    harness: Harness,
    urls: readonly string[],
    adminKey: string,
    clientKey: { id: string; token: string },
  ) {
    this.harness = harness;
    this.urls = urls;
    this.adminKey = adminKey;
    this.clientKey = clientKey;
    this.admin = new Admin({ url: this.url, token: adminKey });
  }

  static async start(nodes: readonly string[] = ["n1"]): Promise<Served> {
    const harness = new Harness({ nodes, settings: { watch: { bookmarkMs: 200 } } });
    const urls: string[] = [];
    for (const node of nodes) {
      const gateway = harness.gateway(node);
      const server = await serve((request, info) => gateway.fetch(request, info), {
        host: "127.0.0.1",
        port: 0,
      });
      urls.push(server.url);
      onTestFinished(() => server.stop(0));
    }
    onTestFinished(() => harness.close());
    const adminKey = await harness.tenant("acme", { replicas: nodes.length });
    return new Served(harness, urls, adminKey, await harness.key("acme", "client"));
  }

  get url(): string {
    return this.urls[0] as string;
  }

  conflux(more: Partial<ConfluxOptions> = {}): Conflux {
    const { token } = this.clientKey;
    const conflux = new Conflux({ url: this.urls, token, ...where, timing, ...more });
    onTestFinished(() => conflux.close());
    return conflux;
  }

  async put(name: string, value: unknown): Promise<void> {
    await this.admin.putConfig(where, name, { format: "json", content: JSON.stringify(value) });
  }

  async publish(name: string, value: unknown): Promise<void> {
    await this.admin.publish(where, name, { content: JSON.stringify(value) });
  }
}

export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}
