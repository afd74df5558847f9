/** A node as people run it, in a process of its own: started on any runtime, also under another program; ended hard. */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { closeSync, openSync, readFileSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import process from "node:process";
import { runCommand, runtimeEnv } from "../../infra/bootstrap.mjs";

export type Runtime = "bun" | "deno" | "node";

export const rootToken = "root-of-the-crash-tests";
const root = resolve(import.meta.dirname, "../..");

export interface NodeOptions {
  readonly data: string;
  readonly runtime?: Runtime;
  readonly env?: Readonly<Record<string, string>>;
  /** A program with its arguments that is given the node's command line, e.g. strace. It must become the node or end with it. */
  readonly under?: readonly string[];
  readonly args?: readonly string[];
}

/** Of all that were started and have not ended: for the end of a test run. */
const running = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

export class NodeProcess {
  readonly process: ChildProcess;
  readonly data: string;
  /** A file: of a pipe, what a process wrote just before it was killed is sometimes lost under load. */
  readonly #log: string;
  #said: string | null = null;
  /** Resolves to the exit code, or null when a signal ended it. */
  readonly ended: Promise<number | null>;
  readonly #ready: Promise<string>;

  constructor({ data, runtime = "bun", env = {}, under = [], args = [] }: NodeOptions) {
    this.data = data;
    const node = runCommand(runtime, "src/main.ts", ["start", "--data", data, ...args]);
    const [program, ...words] = [...under, node.command, ...node.args] as [string, ...string[]];
    this.#log = `${data}.stderr`;
    const log = openSync(this.#log, "w");
    this.process = spawn(program, words, {
      cwd: root,
      stdio: ["ignore", "pipe", log],
      env: {
        ...runtimeEnv,
        // Nothing that the tests themselves are told by.
        ...Object.fromEntries(
          Object.entries(process.env).filter(([name]) => !name.startsWith("CONFLUX_")),
        ),
        CONFLUX_ROOT_TOKEN: rootToken,
        CONFLUX_PORT: "0",
        CONFLUX_LOG: "warn",
        // Ended at once, it would only take time.
        CONFLUX_REHEARSAL: "0",
        ...env,
      },
    });
    closeSync(log);
    running.add(this.process);
    this.ended = new Promise((done) => {
      this.process.once("close", (code) => {
        running.delete(this.process);
        this.#said = readFileSync(this.#log, "utf8");
        rmSync(this.#log);
        done(code);
      });
    });
    let said = "";
    this.#ready = new Promise((done, fail) => {
      this.process.stdout?.setEncoding("utf8").on("data", (text: string) => {
        said += text;
        const url = /listens on (http:\S+)/.exec(said)?.[1];
        if (url !== undefined) done(url);
      });
      void this.ended.then((code) => {
        fail(new Error(`Node ended with ${code} before it was ready: ${this.errors}`));
      });
    });
    // Whoever does not wait for it does not care either.
    this.#ready.catch(() => undefined);
  }

  /** Everything it said on standard error: its log and its last line. */
  get errors(): string {
    return this.#said ?? readFileSync(this.#log, "utf8");
  }

  /** The gateway's address once the node serves; rejects when it ends before. */
  get url(): Promise<string> {
    return this.#ready;
  }

  get pid(): number {
    return this.process.pid as number;
  }

  /** A path of its file system as this process reaches it, should the node have a mount of its own. */
  within(path: string): string {
    return join(`/proc/${this.pid}/root`, path);
  }

  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<number | null> {
    this.process.kill(signal);
    return this.ended;
  }
}
