/** A data directory that goes away under a running node. */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { NodeProcess, rootToken } from "./node_process.ts";
import { ask } from "../e2e/api.ts";

const timeoutMs = 30_000;

async function running(): Promise<NodeProcess> {
  const base = fs.mkdtempSync(join(tmpdir(), "conflux-lost-"));
  onTestFinished(() => fs.rmSync(base, { recursive: true, force: true }));
  const node = new NodeProcess({ data: join(base, "data") });
  onTestFinished(() => void node.process.kill("SIGKILL"));
  const url = await node.url;
  const made = await ask(`${url}/v1/tenants`, { token: rootToken, body: { id: "acme" } });
  expect(made.status).toBe(201);
  return node;
}

describe("a node whose data directory is removed", () => {
  const losses: Record<string, (data: string) => void> = {
    "as a whole": (data) => fs.rmSync(data, { recursive: true }),
    "and made anew under its name": (data) => {
      fs.renameSync(data, `${data}.old`);
      fs.cpSync(`${data}.old`, data, {
        recursive: true,
        filter: (path) => !path.endsWith(".sock"),
      });
    },
    "in part: its journal": (data) => fs.rmSync(join(data, "journal"), { recursive: true }),
  };
  test("ends with that line also where something finds a file gone first", async () => {
    const node = await running();
    fs.rmSync(node.data, { recursive: true });
    // The next tenant's directory cannot be synced, or even made.
    await ask(`${await node.url}/v1/tenants`, { token: rootToken, body: { id: "next" } }).catch(
      () => undefined,
    );
    await node.ended;
    const last = node.errors.trim().split("\n").at(-1);
    expect(last).toContain(`conflux: Data directory ${node.data} was removed or replaced`);
  }, 30_000);

  for (const [how, lose] of Object.entries(losses)) {
    test(
      `ends with a line that says so: ${how}`,
      async () => {
        const node = await running();
        lose(node.data);
        await node.ended;
        const last = node.errors.trim().split("\n").at(-1);
        expect(last).toContain(`conflux: Data directory ${node.data} was removed or replaced`);
      },
      timeoutMs,
    );
  }
});
