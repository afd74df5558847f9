/**
 * A disk that becomes full under a real node: its data are on a file system of 96 MiB that only it sees, made in a
 * namespace of its own.
 */
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import type { DiskSpace } from "../../src/host/ports.ts";
import { levelOf } from "../../src/store/space.ts";
import { ask, eventually } from "../e2e/api.ts";
import { NodeProcess, rootToken } from "./node_process.ts";

const mebibyte = 2 ** 20;
const timeoutMs = 60_000;
const withMount = ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c"];
const mounted = (path: string, size: string): string[] => [
  ...withMount,
  `mount -t tmpfs -o size=${size} tmpfs "${path}" && exec "$@"`,
  "sh",
];

/** Some machines let nobody but root make namespaces, and some not even root. */
const canMount =
  spawnSync("unshare", [...mounted("/mnt", "1m").slice(1), "true"], { stdio: "ignore" }).status ===
  0;

function temporary(): string {
  const directory = fs.mkdtempSync(join(tmpdir(), "conflux-disk-"));
  onTestFinished(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A node with a tenant on a disk of its own, and how to write to it. */
async function nodeOnSmallDisk(size: string, reserveMib: number) {
  const data = temporary();
  const node = new NodeProcess({
    data,
    env: { CONFLUX_DISK_RESERVE_MIB: String(reserveMib) },
    under: mounted(data, size),
  });
  onTestFinished(() => void node.process.kill("SIGKILL"));
  const url = await node.url;
  const made = await ask(`${url}/v1/tenants`, { token: rootToken, body: { id: "acme" } });
  expect(made.status, JSON.stringify(made.body)).toBe(201);
  const token = made.body.key.token as string;
  const base = `${url}/v1/tenants/acme/namespaces/default`;
  const put = (name: string, content: string) =>
    ask(`${base}/configs/${name}`, { method: "PUT", token, body: { format: "text", content } });
  const level = async (): Promise<string> => {
    const status = await ask(`${url}/v1/cluster/status`, { token: rootToken });
    return status.body.disk.level;
  };
  return { node, data, url, base, token, put, level };
}

describe("a disk that becomes full", () => {
  // Skipped where no user namespace can be made: then nothing can be mounted without rights this test must not ask for.
  test.skipIf(!canMount)(
    "refuses writes while votes, reads and deletions go on, and takes writes again when there is room",
    async () => {
      const { node, data, url, base, token, put, level } = await nodeOnSmallDisk("96m", 32);
      expect((await put("before", "1")).status).toBe(201);
      const ballast = node.within(join(data, "ballast"));
      // 20 MiB are left, or a little less: below the reserve, far above nothing.
      const { bavail, bsize } = fs.statfsSync(node.within(data));
      fs.writeFileSync(ballast, new Uint8Array(bavail * bsize - 20 * mebibyte));
      await eventually("the node sees it", async () => (await level()) === "low");

      const refused = await put("during", "1");
      expect(refused.status).toBe(503);
      expect(refused.body.code).toBe("disk-full");
      expect(refused.body.detail).toMatch(/has \d+ MiB of disk left and keeps 32 MiB free/);
      expect(refused.headers.get("retry-after")).not.toBe(null);
      const tenant = await ask(`${url}/v1/tenants`, { token: rootToken, body: { id: "other" } });
      expect(tenant.body.code).toBe("disk-full");
      // A linearizable read: the group has a leader and answers.
      expect((await ask(`${base}/values/before`, { token })).body).toBe("1");
      expect((await ask(`${base}/configs/during`, { token })).status).toBe(404);
      const deleted = await ask(`${base}/configs/before`, { method: "DELETE", token });
      expect(deleted.status, JSON.stringify(deleted.body)).toBeLessThan(300);
      expect((await ask(`${url}/readyz`)).status).toBe(200);

      fs.rmSync(ballast);
      await eventually("there is room again", async () => (await level()) === "free");
      expect((await put("after", "1")).status).toBe(201);
      expect(await node.kill("SIGTERM")).toBe(0);
    },
    timeoutMs,
  );

  // Skipped for the same reason.
  test.skipIf(!canMount)(
    "is not filled by writes as fast as they go: they are refused with room left",
    async () => {
      const { node, data, put } = await nodeOnSmallDisk("160m", 64);
      let refused = 0;
      let free = Infinity;
      const write = async (writer: number): Promise<void> => {
        for (let n = 0; refused < 20; n++) {
          const { status, body } = await put(`c${writer}-${n}`, `${n}`.padEnd(200_000, "x"));
          const { bavail, bsize } = fs.statfsSync(node.within(data));
          free = Math.min(free, bavail * bsize);
          if (status === 201) continue;
          if (body.code === "quota-exceeded") throw new Error("The tenant's quota came first");
          expect(body.code).toBe("disk-full");
          refused += 1;
        }
      };
      await Promise.all(Array.from({ length: 8 }, (_, writer) => write(writer)));
      // Not asked whether it still is short of disk: a checkpoint may have given journal segments free since.
      expect(free).toBeGreaterThan(16 * mebibyte);
      // Everything acknowledged is in a checkpoint after a good end, on the disk as it is.
      expect(await node.kill("SIGTERM")).toBe(0);
    },
    timeoutMs,
  );
});

describe("a disk without inodes", () => {
  // Skipped for the same reason.
  test.skipIf(!canMount)(
    "takes no new tenant's directory, and does when there are some again, without a restart",
    async () => {
      const { node, data, url } = await nodeOnSmallDisk("96m,nr_inodes=120", 8);
      const fillers: string[] = [];
      try {
        for (;;) {
          const path = node.within(join(data, `filler-${fillers.length}`));
          fs.mkdirSync(path);
          fillers.push(path);
        }
      } catch (error) {
        expect((error as NodeJS.ErrnoException).code).toBe("ENOSPC");
      }
      const made = ask(`${url}/v1/tenants`, { token: rootToken, body: { id: "late" } });
      const config = `${url}/v1/tenants/late/namespaces/default/configs/c`;
      const put = () =>
        ask(config, {
          method: "PUT",
          token: rootToken,
          body: { format: "text", content: "1" },
        });
      await made;
      const refused = await put();
      expect(refused.status, JSON.stringify(refused.body)).toBe(503);
      for (const path of fillers) fs.rmdirSync(path);
      await eventually("it is made", async () => (await put()).status < 300);
      expect(await node.kill("SIGTERM")).toBe(0);
    },
    timeoutMs,
  );
});

describe("levelOf()", () => {
  test("counts a bound as passed upwards only well above it", () => {
    const seen: string[] = [];
    let level: DiskSpace["level"] = "free";
    for (const freeBytes of [101, 99, 105, 111, 99, 24, 26, 28, 111]) {
      level = levelOf(freeBytes, 100, level);
      seen.push(level);
    }
    expect(seen.join()).toBe("free,low,low,free,low,out,out,low,free");
    expect(levelOf(0, 0, "free")).toBe("free");
  });
});
