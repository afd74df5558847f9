/**
 * The tour of the README, and its way in from other systems, as a reader would follow them: the commands are run, and
 * print what it says they print.
 */
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { runCommand } from "../../infra/bootstrap.mjs";
import { ask, eventually } from "./api.ts";

const root = path.resolve(import.meta.dirname, "../..");
const end = "--- end of a block ---";

interface Block {
  readonly commands: string;
  readonly output: string;
}

/** Blocks of commands, each with what follows it as output. */
function blocksOf(readme: string, title: string): readonly Block[] {
  const section = new RegExp(`^## ${title}$([\\s\\S]*?)^## `, "m").exec(readme)?.[1] ?? "";
  const fences = [...section.matchAll(/^```(sh)?\n([\s\S]*?)^```$/gm)];
  const blocks: Block[] = [];
  for (const [i, [, language, commands]] of fences.entries()) {
    if (language !== "sh") continue;
    const next = fences[i + 1];
    blocks.push({
      commands: commands as string,
      output: next === undefined || next[1] === "sh" ? "" : (next[2] as string),
    });
  }
  return blocks;
}

/** Without times, ids, hashes and the widths of columns, which are others each time. */
function masked(text: string): string {
  return text
    .replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, "<time>")
    .replace(/sha256:[0-9a-f]{64}/g, "<hash>")
    .replace(/\b(?=\w*\d)\w{10,16}\b/g, "<id>")
    .replace(/ +/g, " ")
    .replace(/ $/gm, "")
    .trim();
}

let server: ChildProcess;
let data: string;
let env: NodeJS.ProcessEnv;

beforeAll(async () => {
  data = await mkdtemp(path.join(tmpdir(), "conflux-tour-"));
  const { command, args } = runCommand(
    "bun",
    "src/main.ts",
    `start --port 0 --data ${data} --log error`.split(" "),
  );
  server = spawn(command, args, { cwd: root, stdio: ["ignore", "pipe", "inherit"] });
  const lines = createInterface({ input: server.stdout as NodeJS.ReadableStream });
  const url = await new Promise<string>((resolve) => {
    lines.on("line", (line) => {
      const found = /listens on (http:\S+)/.exec(line)?.[1];
      if (found !== undefined) resolve(found);
    });
  });
  await eventually("ready", async () => (await ask(`${url}/readyz`)).status === 200);
  const token = (await readFile(path.join(data, "root-token"), "utf8")).trim();
  env = { ...process.env, CONFLUX_URL: url, CONFLUX_TOKEN: token, CONFLUX_TENANT: "tour" };
});

afterAll(async () => {
  const ended = new Promise((resolve) => server.once("exit", resolve));
  server.kill("SIGTERM");
  await ended;
  await rm(data, { recursive: true });
});

test("the tour's commands print what the README says", async () => {
  const readme = await readFile(path.join(root, "README.md"), "utf8");
  // The first only says how to reach a server.
  const tour = blocksOf(readme, "A tour").slice(1);
  const moving = blocksOf(readme, "Moving in");
  expect([tour.length, moving.length]).toEqual([5, 2]);
  const blocks = [...tour, ...moving];
  const { command, args } = runCommand("bun", "src/cli/conflux.ts", []);
  const words = [command, ...args].map((word) => `'${word}'`).join(" ");
  const script = [
    "set -euo pipefail",
    `conflux() { ${words} "$@"; }`,
    ...blocks.map(({ commands }) => `${commands}echo '${end}'`),
  ].join("\n");
  const run = promisify(execFile);
  const { stdout } = await run("bash", ["-c", script], { cwd: root, env, timeout: 120_000 });
  const printed = stdout.split(`${end}\n`);
  for (const [i, { commands, output }] of blocks.entries())
    expect(`${commands}\n${masked(printed[i] as string)}`).toBe(`${commands}\n${masked(output)}`);
});

test("a flag is published and asked for by OFREP as the README says", async () => {
  const readme = await readFile(path.join(root, "README.md"), "utf8");
  const flag = /^```json new-checkout\n([\s\S]*?)^```$/m.exec(readme)?.[1] as string;
  const [, commands = "", output = ""] =
    /^```sh\n(conflux publish new-checkout [\s\S]*?)^```\n\n```json\n([\s\S]*?)^```$/m.exec(
      readme,
    ) ?? [];
  const folder = await mkdtemp(path.join(data, "flag-"));
  await writeFile(path.join(folder, "new-checkout.json"), flag);
  const url = env["CONFLUX_URL"] as string;
  const made = await ask(`${url}/v1/tenants`, {
    token: env["CONFLUX_TOKEN"] as string,
    body: { id: "shop" },
  });
  expect(made.status).toBe(201);
  const { command, args } = runCommand("bun", path.join(root, "src/cli/conflux.ts"), []);
  const words = [command, ...args].map((word) => `'${word}'`).join(" ");
  const script = `set -euo pipefail\nconflux() { ${words} "$@"; }\n${commands.replaceAll("http://127.0.0.1:8080", url)}`;
  const { stdout } = await promisify(execFile)("bash", ["-c", script], {
    cwd: folder,
    env: { ...env, CONFLUX_TENANT: "shop" },
    timeout: 60_000,
  });
  expect(commands).toContain("/ofrep/v1/evaluate/flags/new-checkout");
  expect(stdout.trim().split("\n").at(-1)).toBe(output.trim());
});
