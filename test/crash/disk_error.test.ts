/** System calls for the directory of the tenants' names that fail, as strace injects it, under a real node. */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { ask } from "../e2e/api.ts";
import { canInject } from "./kills.ts";
import { NodeProcess, rootToken } from "./node_process.ts";

/** A node of whose calls of this kind, on the directory of its tenants, some fail; what strace saw is in `trace`. */
async function nodeWith(call: string, fault: string) {
  const base = fs.mkdtempSync(join(tmpdir(), "conflux-error-"));
  const data = join(base, "data");
  const trace = join(base, "trace");
  const only = ["-P", join(data, "tenants"), "-e", `trace=${call}`, "-e", "signal=none"];
  const under = [
    "strace",
    "-D",
    "-f",
    "-qq",
    "-o",
    trace,
    ...only,
    "-e",
    `inject=${call}:${fault}`,
  ];
  const node = new NodeProcess({ data, under });
  onTestFinished(async () => {
    await node.kill();
    fs.rmSync(base, { recursive: true, force: true });
  });
  const url = await node.url;
  const create = (id: string) => ask(`${url}/v1/tenants`, { token: rootToken, body: { id } });
  const injected = (): boolean => fs.readFileSync(trace, "utf8").includes("INJECTED");
  return { node, create, injected };
}

// Skipped where strace may not trace: nothing else makes a system call fail.
describe.skipIf(!canInject)("a node that makes a tenant's directory durable", () => {
  test.each(["EIO", "ENOSPC"])(
    "ends with a line that says so when the disk says %s: a sync that failed is not tried again",
    async (code) => {
      const { node, create } = await nodeWith("fsync", `error=${code}:when=4+`);
      let isOver = false;
      void node.ended.then(() => (isOver = true));
      for (let n = 0; !isOver && n < 20; n++)
        await Promise.race([create(`t${n}`).catch(() => undefined), node.ended]);
      await node.ended;
      expect(node.errors).toMatch(
        new RegExp(`^conflux: Cannot write the environment of tenant t\\d+: ${code}`, "m"),
      );
    },
    60_000,
  );

  test("waits when it has no descriptor left for that, and loses nobody", async () => {
    const { create, injected } = await nodeWith("openat", "error=EMFILE:when=5..8");
    for (const tenant of ["a", "b", "c", "d"]) expect((await create(tenant)).status).toBe(201);
    expect(injected()).toBe(true);
  }, 60_000);
});
