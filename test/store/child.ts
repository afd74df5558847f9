/**
 * What the tests start as a process of its own, to kill it. Every line on standard output is written before the next
 * step, so that the killer's knowledge is never ahead of what happened here.
 *
 *   lock DIR            takes the directory, says "locked BOOT" or "refused MESSAGE", then waits to be killed
 *   journal DIR SEED    appends and releases for ever, says "ack GROUP SEQUENCE" and "release GROUP SEQUENCE"
 *   environment DIR     commits for ever, says "ack N"
 */
import * as fs from "node:fs";
import process from "node:process";
import { Prng } from "../../src/lib/prng.ts";
import { openDataDirectory } from "../../src/store/data_dir.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import { payloadFor } from "./child_data.ts";
import { openJournalIn } from "./open_journal.ts";

function say(line: string): void {
  fs.writeSync(1, `${line}\n`);
}

async function lock(directory: string): Promise<void> {
  try {
    const data = await openDataDirectory({ directory, cluster: "test", node: "a", peers: ["a"] });
    say(`locked ${data.boot}`);
  } catch (error) {
    say(`refused ${(error as Error).message}`);
    process.exit(0);
  }
  setInterval(() => undefined, 1000);
}

async function journal(directory: string, seed: number): Promise<void> {
  const prng = new Prng(seed);
  const { journal: opened, recovery } = await openJournalIn(directory, {
    salt: prng.uint32(),
    onFatal: (error) => {
      say(`fatal ${error.message}`);
      process.exit(1);
    },
    segmentBytes: 64 * 1024,
  });
  say(`ready ${recovery.groups.size}`);
  const step = (): void => {
    const groups = Array.from({ length: prng.between(1, 20) }, () => prng.between(1, 50));
    const records = groups.map((group) => ({ group, payload: payloadFor(group, prng.below(400)) }));
    const first = opened.append(records, () => {
      say(groups.map((group, n) => `ack ${group} ${first + n}`).join("\n"));
      if (prng.chance(0.3)) {
        const n = prng.below(groups.length);
        say(`release ${groups[n] as number} ${first + n}`);
        opened.release(groups[n] as number, first + n);
      }
      step();
    });
  };
  // Several in flight at once.
  for (let n = 0; n < 3; n++) step();
}

function environment(directory: string): void {
  const opened = new LmdbEnvironments({ data: directory }).open("acme");
  const meta = opened.meta();
  let last = meta === null ? 0 : Number(new TextDecoder().decode(meta));
  say(`ready ${last}`);
  const step = (): void => {
    const number = last + 1;
    const bytes = new TextEncoder().encode(String(number));
    const rows = Array.from(
      { length: 30 },
      (_, n) => [`row/${n}`, `${number}`.repeat(50)] as const,
    );
    const done = (error: Error | null): void => {
      if (error !== null) {
        say(`failed ${error.message}: ${String(error.cause)}`);
        process.exit(1);
      }
      last = number;
      say(`ack ${number}`);
      step();
    };
    if (number % 5 === 0) {
      const staging = opened.stage();
      for (const row of rows) staging.add([row], () => {});
      opened.install(staging, bytes, done);
      return;
    }
    const entriesDeleted = [{ low: 0, high: number - 5 }];
    opened.commit({ meta: bytes, rows, entries: [[number, bytes]], entriesDeleted }, done);
  };
  step();
}

const [mode, directory, seed] = process.argv.slice(2) as [string, string, string | undefined];
if (mode === "lock") await lock(directory);
else if (mode === "journal") await journal(directory, Number(seed));
else if (mode === "environment") environment(directory);
else throw new Error(`Unknown mode: ${mode}`);
