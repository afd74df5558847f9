/**
 * A data directory as this version of the program leaves it after a crash, kept in the repository, so that every later
 * version can be shown to read it: `golden/v<N>.json.gz` holds its files, the versions of its formats, and what every tenant's rows
 * must be. Each tenant has a checkpoint and, in the journal, entries that are not in it.
 *
 *   bun test/store/golden.ts write N   makes golden/v<N>.json.gz (see CONTRIBUTING, How formats change)
 *   … golden.ts check FILE             opens it and says what differs, one line each; exit code 1 then
 */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { gunzipSync, gzipSync } from "node:zlib";
import { open } from "lmdb";
import { dataFormat } from "../../src/store/data_dir.ts";
import { formatVersion } from "../../src/store/journal_format.ts";
import { QuarantineDirectory } from "../../src/store/quarantine.ts";
import { command, namespace, node, openStack } from "../crash/stack.ts";

interface Golden {
  readonly formats: { readonly data: number; readonly journal: number };
  /** Base64 by path. */
  readonly files: Readonly<Record<string, string>>;
  /** Rows of each tenant, once everything in the journal is applied. */
  readonly rows: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  /** Tenants that must not be served from it. */
  readonly quarantined?: readonly string[];
}

export const formatsNow: Golden["formats"] = { data: dataFormat, journal: formatVersion };
const tenants = ["_system", "acme", "shop"];
/** Since format 2: its replica is in quarantine. */
const stopped = "stopped";
/** Nothing is checkpointed by itself: what is in the environments is there because the node was stopped. */
const bounds = { tuning: { checkpointBytes: 2 ** 40, sleepAfterMs: 2 ** 40 } };

type Stack = Awaited<ReturnType<typeof openStack>>;

function fatal(error: Error): void {
  throw error;
}

export function readGolden(file: string): Golden {
  return JSON.parse(gunzipSync(fs.readFileSync(file)).toString("utf8")) as Golden;
}

async function rowsOf({ host }: Stack): Promise<Record<string, Record<string, unknown>>> {
  const rows: Record<string, Record<string, unknown>> = {};
  for (const tenant of tenants)
    rows[tenant] = await host.read(tenant, { consistency: "linearizable" }, (view) =>
      Object.fromEntries(view.range({ gte: "", lt: "\x7f" })),
    );
  return rows;
}

async function change({ host }: Stack, tenant: string, action: Parameters<typeof command>[0]) {
  const outcome = await host.propose(tenant, command(action));
  if (!outcome.ok) throw new Error(outcome.detail);
}

async function publish(stack: Stack, tenant: string, name: string, text: string): Promise<void> {
  const content = { text, hash: `sha256:${text}`, bytes: Buffer.byteLength(text) };
  await change(stack, tenant, { op: "publish", namespace, name, content, schemaHash: null });
}

async function write(file: string): Promise<void> {
  const base = fs.mkdtempSync(join(tmpdir(), "conflux-golden-"));
  try {
    const directory = join(base, "data");
    const first = await openStack(directory, fatal, undefined, bounds);
    for (const tenant of [...tenants.slice(1), stopped]) {
      const adminKey = { id: `k${tenant}`, kind: "admin", hash: "0".repeat(64) } as const;
      await change(first, "_system", {
        op: "directory.create",
        tenant,
        quotas: {},
        nodes: [node],
        adminKey,
      });
      for (const name of ["banner", "limits"])
        await change(first, tenant, { op: "config.put", namespace, name, format: "text" });
      for (const n of [1, 2, 3]) await publish(first, tenant, "banner", `${tenant} ${n} ä€😀`);
    }
    await first.close();
    const second = await openStack(directory, fatal, undefined, bounds);
    for (const tenant of tenants.slice(1)) {
      await publish(second, tenant, "limits", `${tenant} after the checkpoint`);
      await change(second, tenant, { op: "config.delete", namespace, name: "banner" });
    }
    const rows = await rowsOf(second);
    // As a crash here would leave it.
    const files: Record<string, string> = {};
    for (const name of fs.readdirSync(directory, { recursive: true, encoding: "utf8" }).sort()) {
      const path = join(directory, name);
      if (!fs.statSync(path).isFile() || /lock/.test(name)) continue;
      // Without the space that no record took yet.
      const bytes = fs.readFileSync(path);
      files[name] = bytes.toString("base64");
    }
    const group = second.host.directory.tenant(stopped)?.group ?? 0;
    await second.close();
    const crashed = join(base, "crashed");
    unpack(files, crashed);
    const [acme] = fs
      .readdirSync(join(crashed, "tenants"))
      .filter((name) => name.startsWith("acme."));
    const dataFile = join("tenants", acme as string, "data.mdb");
    await undoRows(join(crashed, dataFile));
    files[dataFile] = fs.readFileSync(join(crashed, dataFile)).toString("base64");
    const remains = { group, replica: 1, reason: "Journal record is damaged", records: [] };
    new QuarantineDirectory(crashed).keep([remains], null);
    const quarantineFile = join("quarantine", `${group}.json`);
    files[quarantineFile] = fs.readFileSync(join(crashed, quarantineFile)).toString("base64");
    const golden: Golden = { formats: formatsNow, files, rows, quarantined: [stopped] };
    fs.mkdirSync(dirname(file), { recursive: true });
    fs.writeFileSync(file, gzipSync(JSON.stringify(golden), { level: 9 }));
  } finally {
    fs.rmSync(base, { recursive: true, force: true });
  }
}

function unpack(files: Golden["files"], directory: string): void {
  for (const [name, bytes] of Object.entries(files)) {
    const path = join(directory, name);
    fs.mkdirSync(dirname(path), { recursive: true });
    fs.writeFileSync(path, Buffer.from(bytes, "base64"));
  }
}

/** As a crash leaves it in the middle of a large commit: half of the rows are there as text alone. */
async function undoRows(path: string): Promise<void> {
  const root = open({ path, noSubdir: true, maxDbs: 4 });
  const state = root.openDB<string, string>("state", { encoding: "string" });
  const binary = { encoding: "binary", keyEncoding: "binary" } as const;
  const meta = root.openDB<Uint8Array, Uint8Array>("meta", binary);
  const rows = [...state.getRange({})].filter((_, at) => at % 2 === 0);
  for (const [at, part] of [rows.slice(0, 3), rows.slice(3)].entries()) {
    const lines = part.map(({ key, value }) => `${key}\t${value}\n`);
    // A deletion is a line without a tab.
    await meta.put(Uint8Array.of(4, 0, at), Buffer.from(`${lines.join("")}zz/deleted\n`));
    for (const { key } of part) await state.remove(key);
  }
  await state.put("zz/deleted", "1");
  await root.close();
}

/** @returns what is not as it was when the directory was written */
async function check(file: string): Promise<string[]> {
  const { files, rows, quarantined = [] } = readGolden(file);
  const base = fs.mkdtempSync(join(tmpdir(), "conflux-golden-"));
  const differences: string[] = [];
  const told = new Set<string>();
  try {
    unpack(files, base);
    const stack = await openStack(
      base,
      fatal,
      (message, fields) => {
        const { tenant = "", err } = fields as { tenant?: string; err?: unknown };
        if (quarantined.includes(tenant)) told.add(tenant);
        else differences.push(`${message}: ${String(err)}`);
      },
      bounds,
    );
    const found = await rowsOf(stack);
    for (const [tenant, expected] of Object.entries(rows)) {
      const there = found[tenant] ?? {};
      for (const key of new Set([...Object.keys(expected), ...Object.keys(there)])) {
        const [was, is] = [JSON.stringify(expected[key]), JSON.stringify(there[key])];
        if (was !== is) differences.push(`${tenant} ${key}: was ${was}, is ${is}`);
      }
    }
    for (const tenant of quarantined) {
      const served = await stack.host
        .read(tenant, { consistency: "stale" }, () => true)
        .catch(String);
      if (served === true || !told.has(tenant)) differences.push(`${tenant} is in no quarantine`);
    }
    await stack.close();
  } finally {
    fs.rmSync(base, { recursive: true, force: true });
  }
  return differences;
}

const [what, word] = process.argv.slice(2);
if (what === "write" && word !== undefined)
  await write(join(import.meta.dirname, "golden", `v${word}.json.gz`));
if (what === "check" && word !== undefined) {
  const differences = await check(word);
  for (const difference of differences) console.log(difference);
  process.exit(differences.length === 0 ? 0 : 1);
}
