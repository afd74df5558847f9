/** Backup files: what is whole and what is not, and restores that were interrupted. */
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { backup, drop, restore, verify } from "../../src/cli/backup.ts";
import { Admin } from "../../src/sdk/admin.ts";
import { Harness } from "../gateway/harness.ts";
import { rootToken } from "../gateway/solo_service.ts";

const quiet = (): void => {};

interface World {
  readonly h: Harness;
  readonly admin: Admin;
  readonly to: string;
  /** Answers in place of the gateway when it gives one. */
  intercept: (request: Request, count: number) => Response | null;
}

async function world(): Promise<World> {
  const h = new Harness();
  const to = await mkdtemp(path.join(tmpdir(), "conflux-backup-"));
  onTestFinished(async () => {
    h.close();
    await rm(to, { recursive: true });
  });
  let count = 0;
  const made: World = {
    h,
    to,
    intercept: () => null,
    admin: new Admin({
      url: "http://gateway.test",
      token: rootToken,
      totalMs: 200,
      fetch: async (url, init) => {
        const request = new Request(url, init);
        return made.intercept(request, count++) ?? h.gateway().fetch(request);
      },
    }),
  };
  await h.tenant("acme");
  for (let n = 0; n < 40; n++)
    await h.call("PUT", `/v1/tenants/acme/namespaces/app/configs/c${n}`, {
      body: { format: "text", content: `${n} ${"x".repeat(80_000)}` },
    });
  return made;
}

function gone(): Response {
  const broken = new ReadableStream({ pull: (controller) => controller.error(new Error("cut")) });
  return new Response(broken, { status: 200 });
}

describe("a backup", () => {
  test("is one file, readable by its owner alone, and good", async () => {
    const { admin, to } = await world();
    expect(await backup(admin, to, ["acme"], quiet)).toMatchObject([{ state: "taken" }]);
    expect(await readdir(to)).toEqual(["acme.ndjson"]);
    // It holds hashes of keys, and all contents.
    expect((await stat(path.join(to, "acme.ndjson"))).mode & 0o777).toBe(0o600);
    expect(await verify(to, quiet)).toMatchObject([{ tenant: "acme", state: "good" }]);
  });

  test("whose parts get lost is gone on with; one that is not finished leaves the old file", async () => {
    const at = await world();
    at.intercept = (request, count) =>
      request.url.includes("/backup") && count % 2 === 1 ? gone() : null;
    expect(await backup(at.admin, at.to, ["acme"], quiet)).toMatchObject([{ state: "taken" }]);
    const before = await readFile(path.join(at.to, "acme.ndjson"), "utf8");
    await at.h.call("PUT", "/v1/tenants/acme/namespaces/app/configs/more", { body: {} });
    at.intercept = (request) => (request.url.includes("part=2") ? gone() : null);
    const failed = await backup(at.admin, at.to, ["acme", "nobody"], quiet);
    expect(failed).toMatchObject([{ state: "failed" }, { state: "failed" }]);
    expect(await readdir(at.to)).toEqual(["acme.ndjson"]);
    expect(await readFile(path.join(at.to, "acme.ndjson"), "utf8")).toBe(before);
    at.intercept = () => null;
    expect(await backup(at.admin, at.to, ["acme"], quiet)).toMatchObject([{ state: "taken" }]);
    expect(await backup(at.admin, at.to, ["acme"], quiet)).toMatchObject([{ state: "unchanged" }]);
  });

  test("is begun anew when it is over on the node that it was begun on", async () => {
    const at = await world();
    let begun = 0;
    at.intercept = (request) => {
      if (request.url.includes("part=0")) begun += 1;
      const moved = begun === 1 && request.url.includes("part=2");
      return moved
        ? Response.json({ code: "not-found", detail: "It is over" }, { status: 404 })
        : null;
    };
    expect(await backup(at.admin, at.to, ["acme"], quiet)).toMatchObject([{ state: "taken" }]);
    expect(begun).toBe(2);
    expect(await verify(at.to, quiet)).toMatchObject([{ state: "good" }]);
  });

  test("is not good when anything of it is another, missing, doubled or of another name", async () => {
    const { admin, to } = await world();
    await backup(admin, to, ["acme"], quiet);
    const file = path.join(to, "acme.ndjson");
    const text = await readFile(file, "utf8");
    const lines = text.split("\n");
    const broken: [string, string][] = [
      ["flipped", text.replace("xxxx", "xxyx")],
      ["short", lines.slice(0, -2).join("\n")],
      ["cut in a row", text.slice(0, text.length / 2)],
      ["without a row", [...lines.slice(0, 5), ...lines.slice(6)].join("\n")],
      ["a row twice", [...lines.slice(0, 5), lines[4], ...lines.slice(5)].join("\n")],
      ["more behind", `${text}["key/x",{}]\n`],
      ["empty", ""],
      ["of a later version", text.replace('"version":1', '"version":2')],
      ["no backup", "{}\n"],
    ];
    for (const [why, content] of broken) {
      await writeFile(file, content);
      expect([why, await verify(to, quiet)]).toMatchObject([why, [{ state: "failed" }]]);
      expect([why, await restore(admin, to, ["acme"], { as: "new" }, quiet)]).toMatchObject([
        why,
        [{ state: "failed" }],
      ]);
      // It is taken anew instead of being taken for unchanged, where its ends show it.
      if (["short", "empty", "no backup", "cut in a row"].includes(why))
        expect(await backup(admin, to, ["acme"], quiet)).toMatchObject([{ state: "taken" }]);
    }
    await writeFile(path.join(to, "other.ndjson"), text);
    expect(await verify(to, quiet)).toContainEqual(
      expect.objectContaining({ tenant: "other", state: "failed" }),
    );
    await expect(admin.tenant("new")).rejects.toMatchObject({ code: "not-found" });
  });
});

describe("a restore", () => {
  test("that was interrupted is gone on with where it was, or dropped", async () => {
    const at = await world();
    await backup(at.admin, at.to, ["acme"], quiet);
    at.intercept = (request) =>
      request.url.endsWith("/rows/2") ? new Response("{}", { status: 500 }) : null;
    const first = await restore(at.admin, at.to, ["acme"], { as: "copy" }, quiet);
    expect(first).toMatchObject([{ state: "failed" }]);
    const before = await at.admin.restoreState("copy");
    expect(before).toMatchObject({ part: 2 });
    await expect(at.admin.configs({ tenant: "copy", namespace: "app" })).rejects.toMatchObject({
      code: "restoring",
    });

    const sent: string[] = [];
    at.intercept = (request) => {
      if (request.method === "PUT") sent.push(new URL(request.url).pathname);
      return null;
    };
    const second = await restore(at.admin, at.to, ["acme"], { as: "copy" }, quiet);
    expect(second).toMatchObject([{ state: "restored", tenant: "copy" }]);
    expect(sent[0]).toBe("/v1/tenants/copy/restore/rows/2");
    const [source, copy] = await Promise.all(
      ["acme", "copy"].map((tenant) => at.admin.configs({ tenant, namespace: "app" })),
    );
    // The same, of a history of its own.
    const untagged = (of: typeof copy) => of?.map(({ etag: _etag, ...rest }) => rest);
    expect(untagged(copy)).toEqual(untagged(source));
    expect(copy?.[0]?.etag).not.toBe(source?.[0]?.etag);
    await expect(drop(at.admin, "copy")).rejects.toThrow("not being restored");

    at.intercept = (request) =>
      request.url.endsWith("/rows/1") ? new Response("{}", { status: 500 }) : null;
    await restore(at.admin, at.to, ["acme"], { as: "half" }, quiet);
    // A later backup is another state: half of each would be neither.
    await at.h.call("PUT", "/v1/tenants/acme/namespaces/app/configs/more", { body: {} });
    at.intercept = () => null;
    await backup(at.admin, at.to, ["acme"], quiet);
    const mixed = await restore(at.admin, at.to, ["acme"], { as: "half" }, quiet);
    expect(mixed).toMatchObject([{ state: "failed", error: expect.stringContaining("--drop") }]);
    await drop(at.admin, "half");
    expect(await restore(at.admin, at.to, ["acme"], { as: "half" }, quiet)).toMatchObject([
      { state: "restored" },
    ]);
  });
});
