/** The same client, unbuilt, on every runtime. */
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import path from "node:path";
import { text } from "node:stream/consumers";
import { expect, test } from "vitest";
import { commit, Peer, streamHead, sync } from "./peer.ts";

const bin = path.resolve(
  path.dirname(createRequire(import.meta.url).resolve("vitest/package.json")),
  "../.bin",
);

test.each([
  ["bun", ["run"]],
  ["deno", ["run", "--quiet", "--allow-net", "--no-prompt"]],
  ["node", ["--disable-warning=ExperimentalWarning"]],
])("follows a server over a cut on %s", async (runtime, args) => {
  await using peer = await Peer.start((socket, _, number) => {
    if (number === 1) socket.end(streamHead + sync("1-1", { a: "1" }));
    else socket.write(streamHead + commit("1-2", { a: '{"ä":2}' }));
  });
  const child = spawn(
    path.join(bin, runtime),
    [...args, path.join(import.meta.dirname, "child.ts"), peer.url, "t", "acme", "2"],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  const [out, errors] = await Promise.all([text(child.stdout), text(child.stderr)]);
  expect(errors).toBe("");
  expect(
    out
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as unknown),
  ).toEqual([
    { ready: "live" },
    { name: "a", new: 1, revision: 1 },
    { name: "a", old: 1, new: { ä: 2 }, revision: 2 },
  ]);
  expect(await ended).toBe(0);
});
