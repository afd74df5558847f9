/**
 * `bun test/store/damage.ts`: what `conflux journal inspect` says of a journal in which one bit is another. A node writes,
 * its directory is copied while it runs, as a crash would leave it, and a bit in the middle of the copy's records turns.
 */
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import process from "node:process";
import { payloadStart, readSegment, recordsIn } from "../../src/store/journal_format.ts";
import { command, namespace, node, openStack } from "../crash/stack.ts";

const base = fs.mkdtempSync(join(tmpdir(), "conflux-damage-"));

function fatal(error: Error): never {
  throw error;
}

function inspect(directory: string): void {
  const cli = resolve(import.meta.dirname, "../../src/cli/conflux.ts");
  const { status, stdout } = spawnSync(process.execPath, [cli, "journal", "inspect", directory]);
  console.log(`$ conflux journal inspect ${directory}\n${String(stdout)}exit code ${status}\n`);
}

try {
  const [data, copy] = [join(base, "data"), join(base, "copy")];
  const stack = await openStack(data, fatal, () => undefined, { tuning: {} });
  for (const tenant of ["acme", "globex"]) {
    const adminKey = { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) } as const;
    const create = { op: "directory.create", tenant, quotas: {}, nodes: [node], adminKey } as const;
    await stack.host.propose("_system", command(create));
    await stack.host.propose(
      tenant,
      command({ op: "config.put", namespace, name: "limits", format: "text" }),
    );
    for (let n = 1; n <= 20; n++) {
      const content = { text: `${n}`, hash: `sha256:${n}`, bytes: 2 };
      const publish = { op: "publish", namespace, name: "limits", content, schemaHash: null };
      await stack.host.propose(tenant, command(publish as Parameters<typeof command>[0]));
    }
  }
  fs.cpSync(data, copy, { recursive: true, filter: (name) => !name.endsWith(".sock") });
  await stack.close();
  inspect(copy);

  const [name = ""] = fs.readdirSync(join(copy, "journal")).sort();
  const segment = join(copy, "journal", name);
  const bytes = new Uint8Array(fs.readFileSync(segment));
  const records = [...recordsIn(bytes, readSegment(bytes, name, true))];
  const record = records[Math.floor(records.length / 2)];
  if (record === undefined) throw new Error("The journal is empty");
  const at = payloadStart(record) + 20;
  bytes[at] = (bytes[at] as number) ^ 1;
  fs.writeFileSync(segment, bytes);
  console.log(`One bit at ${at} of ${name} turned.\n`);
  inspect(copy);
} finally {
  fs.rmSync(base, { recursive: true, force: true });
}
