/** A disk that takes a write and never ends it: the system call is held by strace. */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { ask } from "../e2e/api.ts";
import { canInject } from "./kills.ts";
import { NodeProcess, rootToken } from "./node_process.ts";

// The journal's writes, and nothing that the node does on its main thread.
const held = ["-e", "trace=pwritev", "-e", "inject=pwritev:delay_enter=100000000:when=10+"];

// Skipped where strace may not trace: nothing else holds a system call.
describe.skipIf(!canInject)("a node whose disk does not end a write", () => {
  test("ends with a line that says so, so that others take over", async () => {
    const base = fs.mkdtempSync(join(tmpdir(), "conflux-stall-"));
    const node = new NodeProcess({
      data: join(base, "data"),
      env: { CONFLUX_DISK_STALL: "2" },
      under: ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "signal=none", ...held],
    });
    // strace would wait for the end of the call that it holds.
    onTestFinished(async () => {
      await node.kill();
      fs.rmSync(base, { recursive: true, force: true });
    });
    const url = await node.url;
    const said = new Promise<void>((resolve) => {
      const look = (): void => {
        if (node.errors.includes("conflux: The disk")) resolve();
      };
      const watcher = fs.watch(base, look);
      // A busy machine may lose the event of the very line.
      const timer = setInterval(look, 200);
      onTestFinished(() => {
        watcher.close();
        clearInterval(timer);
      });
    });
    let isSaid = false;
    void said.then(() => (isSaid = true));
    for (let n = 0; !isSaid; n++) {
      const made = ask(`${url}/v1/tenants`, { token: rootToken, body: { id: `t${n}` } });
      // The one that is held is never answered.
      await Promise.race([made.catch(() => undefined), said]);
    }
    expect(node.errors).toContain("disk.slow");
    expect(node.errors).toContain("The disk has not ended a write within 2 s");
  }, 60_000);
});
