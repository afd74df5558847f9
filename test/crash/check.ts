/**
 * What must hold after any crash, told from the directory and from what was acknowledged before:
 * - the directory is had, the journal opens without damage, every environment opens;
 * - every environment is exactly at its applied index: what its log has up to there is in its rows, what comes after is
 *   not, and nothing in it is half a write;
 * - started again, every acknowledged write is there, and every other is there whole or not at all.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { metaFromBytes } from "../../src/host/replica.ts";
import type { Environment, TenantView } from "../../src/host/ports.ts";
import { TenantState } from "../../src/host/tenant_state.ts";
import type { Command } from "../../src/machine/command.ts";
import {
  allConfigs,
  getConfig,
  getMeta,
  getText,
  historyAfter,
  listVersions,
} from "../../src/machine/queries.ts";
import { membersKey, metaKey } from "../../src/machine/keys.ts";
import type { StateView, TenantMeta } from "../../src/machine/rows.ts";
import { entryFromBytes } from "../../src/raft/codec.ts";
import { EntryKind } from "../../src/raft/types.ts";
import { LmdbEnvironments } from "../../src/store/environments.ts";
import { inspectJournal } from "../../src/store/inspect.ts";
import {
  digestOf,
  generationOf,
  hasInstallations,
  openInstallations,
  rowsOfGeneration,
} from "./restores.ts";
import { idOf, namespace, openStack, versionsPerConfig } from "./stack.ts";

interface Acknowledged {
  readonly tenant: string;
  readonly config: string;
  readonly version: number;
  readonly revision: number;
  readonly id: string;
}

/** What a child said, over all its lives. */
export class Ledger {
  /** Newest last, per tenant and config. */
  readonly writes = new Map<string, Acknowledged[]>();
  readonly made = new Set<string>();
  readonly gone = new Set<string>();
  /** Of tenants that come back from a backup: what must be in them once they are back, and who was said to be. */
  readonly restoring = new Map<string, string>();
  readonly restored = new Set<string>();
  /** Of the environment whose rows are replaced as a whole. */
  installing = 0;
  installed = 0;
  acknowledged = 0;

  take(line: string): void {
    const [what, tenant = "", config = "", version, revision, id = ""] = line.split(" ");
    if (what === "made") this.made.add(tenant);
    // From here on it may be there or not.
    if (what === "going") {
      this.made.delete(tenant);
      this.restored.delete(tenant);
    }
    if (what === "gone") {
      this.gone.add(tenant);
      this.restoring.delete(tenant);
    }
    if (what === "restoring") this.restoring.set(tenant, config);
    if (what === "restored") this.restored.add(tenant);
    if (what === "installing") this.installing = Number(tenant);
    if (what === "installed") this.installed = Number(tenant);
    if (what !== "ack") return;
    this.acknowledged += 1;
    const key = `${tenant}/${config}`;
    const list = this.writes.get(key) ?? [];
    list.push({ tenant, config, version: Number(version), revision: Number(revision), id });
    // Older versions than are kept need not be remembered.
    if (list.length > 4 * versionsPerConfig) list.splice(0, list.length - 2 * versionsPerConfig);
    this.writes.set(key, list);
  }
}

/** @returns what is wrong; empty when nothing is. Changes the directory, as a start does: give it a copy. */
export async function complaintsAfterCrash(directory: string, ledger: Ledger): Promise<string[]> {
  const complaints: string[] = [];
  const complain = (text: string): void => {
    // The first few say it.
    if (complaints.length < 20) complaints.push(text);
  };
  try {
    const journal = inspectJournal(join(directory, "journal"));
    if (journal.damaged) complain(`The journal is damaged: ${JSON.stringify(journal.findings)}`);
  } catch (error) {
    // Killed before its first segment was made.
    if (!String(error).includes("Cannot inspect")) complain(String(error));
  }
  await checkEnvironments(directory, complain);
  await checkInstallations(directory, ledger, complain);
  try {
    const stack = await openStack(
      directory,
      (error) => complain(`fatal: ${error.message}`),
      (message, fields) => complain(`${message}: ${String((fields as { err?: unknown }).err)}`),
    );
    try {
      await checkServed(stack.host, ledger, complain);
    } finally {
      await stack.close();
    }
  } catch (error) {
    complain(`Cannot be started again: ${error instanceof Error ? error.stack : String(error)}`);
  }
  return complaints;
}

type Complain = (text: string) => void;

async function checkEnvironments(directory: string, complain: Complain): Promise<void> {
  // Killed before there was one; looking must not make what a start would stumble over.
  if (!existsSync(join(directory, "tenants"))) return;
  const environments = new LmdbEnvironments({ data: directory });
  for (const name of environments.names()) {
    try {
      const environment = environments.open(name);
      checkEnvironment(environment, (text) => complain(`${name}: ${text}`));
      await environment.close();
    } catch (error) {
      const cause =
        error instanceof Error && error.cause !== undefined ? ` (${String(error.cause)})` : "";
      complain(`${name} does not open: ${String(error)}${cause}`);
    }
  }
}

/** All rows are those of one generation: the last that was said to be installed, or the one under way. */
async function checkInstallations(
  directory: string,
  { installed, installing }: Ledger,
  complain: Complain,
): Promise<void> {
  if (!hasInstallations(directory)) {
    if (installed > 0) complain(`LOST: generation ${installed} that was installed`);
    return;
  }
  try {
    const environment = openInstallations(directory);
    const generation = generationOf(environment);
    if (generation !== installed && generation !== installing)
      complain(`LOST: generation ${installed} was installed, ${generation} is there`);
    const rows = [...environment.range({ gte: " ", lt: "\x7f" })];
    const wanted = generation === 0 ? [] : rowsOfGeneration(generation);
    if (JSON.stringify(rows) !== JSON.stringify(wanted))
      complain(`the rows installed are not those of generation ${generation} alone`);
    await environment.close();
  } catch (error) {
    complain(`what is installed does not open: ${String(error)}`);
  }
}

function checkEnvironment(environment: Environment, complain: Complain): void {
  const bytes = environment.meta();
  const rows = [...environment.range({ gte: " ", lt: "\x7f" })];
  if (bytes === null) {
    if (rows.length > 0) complain("it has rows and no meta");
    return;
  }
  const meta = metaFromBytes(bytes);
  const view = new TenantState(environment) as StateView;
  // Its counters tell of rows that are still to come.
  const isRestoring = view.get<TenantMeta>("meta")?.restore !== undefined;
  if (isRestoring) checkParts(view, complain);
  const texts = isRestoring ? new Set<string>() : checkState(view, complain);
  if (meta.applied < meta.first - 1 || meta.applied > meta.last)
    complain(`applied ${meta.applied} is outside its log ${meta.first} to ${meta.last}`);
  if (environment.entry(meta.last + 1) !== undefined) complain("its log goes on behind its end");
  /** Of each config the last publish up to the applied index. */
  const newest = new Map<string, string>();
  for (let index = meta.first; index <= meta.last; index++) {
    const found = environment.entry(index);
    if (found === undefined) {
      complain(`entry ${index} of ${meta.first} to ${meta.last} is missing`);
      continue;
    }
    const entry = entryFromBytes(found);
    if (entry.index !== index) complain(`entry ${index} says it is ${entry.index}`);
    if (entry.kind === EntryKind.confChange || entry.data.length === 0) continue;
    const { action } = JSON.parse(new TextDecoder().decode(entry.data)) as Command;
    if (action.op !== "publish") continue;
    const id = idOf(action.content.text);
    if (id === null) complain(`entry ${index} is not whole`);
    else if (index <= meta.applied) newest.set(action.name, id);
    else if (texts.has(id)) complain(`entry ${index} is in the rows, which are at ${meta.applied}`);
  }
  for (const [name, id] of newest) {
    const config = getConfig(view, namespace, name);
    const text = config === null ? null : getText(view, namespace, name, config.latestVersion);
    if (text === null || idOf(text) !== id)
      complain(`the rows are at ${meta.applied}, and ${name} is not the log's ${id}`);
  }
}

/** Whole parts, and what was counted of them. */
function checkParts(view: StateView, complain: Complain): void {
  const restore = view.get<TenantMeta>("meta")?.restore;
  let [rows, last] = [0, ""];
  for (const [key] of view.range({ gte: "", lt: "\x7f" })) {
    if (key === metaKey || key === membersKey) continue;
    rows += 1;
    last = key;
  }
  if (rows !== restore?.rows || last !== restore.last)
    complain(
      `${rows} rows up to ${last} are restored, ${restore?.rows} up to ${restore?.last} counted`,
    );
}

/** Revisions without a gap, versions with a whole content each. @returns ids of all texts */
function checkState(view: StateView, complain: Complain): Set<string> {
  const ids = new Set<string>();
  const meta = getMeta(view);
  const history = historyAfter(view, meta.historyFrom - 1) ?? [];
  const last = history.at(-1)?.revision ?? meta.revision;
  if (last !== meta.revision) complain(`revision is ${meta.revision}, the history ends at ${last}`);
  for (const [n, { revision }] of history.entries())
    if (revision !== meta.historyFrom + n) complain(`the history has a gap before ${revision}`);
  for (const config of allConfigs(view)) {
    const versions = listVersions(view, config.namespace, config.name, { limit: 1_000 }).items;
    if (versions.length !== config.versions) complain(`${config.name} counts its versions wrongly`);
    if (versions.length > 0 && versions[0]?.version !== config.latestVersion)
      complain(`${config.name} is at ${config.latestVersion}, its newest version is another`);
    for (const { version } of versions) {
      const text = getText(view, config.namespace, config.name, version);
      const id = text === null ? null : idOf(text);
      if (id === null) complain(`version ${version} of ${config.name} is not whole`);
      else if (ids.has(id)) complain(`${id} is there twice`);
      else ids.add(id);
    }
  }
  return ids;
}

async function checkServed(
  host: Awaited<ReturnType<typeof openStack>>["host"],
  ledger: Ledger,
  complain: Complain,
): Promise<void> {
  const options = { consistency: "linearizable", timeoutMs: 10_000 } as const;
  const names = new Set([
    ...ledger.made,
    ...ledger.gone,
    ...ledger.restoring.keys(),
    ...[...ledger.writes.keys()].map((key) => key.split("/")[0] as string),
  ]);
  for (const tenant of names) {
    const located = await host.locate(tenant);
    if (ledger.gone.has(tenant)) {
      if (located !== null) complain(`${tenant} was deleted for good and is there`);
      continue;
    }
    if (located === null) {
      // Between `going` and `gone` nothing is promised.
      if (ledger.made.has(tenant) || ledger.restored.has(tenant) || tenant.startsWith("t"))
        complain(`${tenant} was made and is not there`);
      continue;
    }
    if (ledger.restoring.has(tenant)) {
      await host
        .read(tenant, { ...options, evenRestoring: true }, (view) =>
          checkRestored(view, tenant, ledger, (text) => complain(`${tenant}: ${text}`)),
        )
        .catch((error: unknown) => complain(`${tenant} cannot be read: ${String(error)}`));
      continue;
    }
    const writes = [...ledger.writes.values()].filter(([first]) => first?.tenant === tenant).flat();
    await host
      .read(tenant, options, (view) =>
        checkTenant(view, writes, (text) => complain(`${tenant}: ${text}`)),
      )
      .catch((error: unknown) => complain(`${tenant} cannot be read: ${String(error)}`));
  }
}

function checkRestored(
  view: TenantView,
  tenant: string,
  { restoring, restored }: Ledger,
  complain: Complain,
): void {
  if (view.get<TenantMeta>("meta")?.restore !== undefined) {
    if (restored.has(tenant)) complain("LOST: it was restored, and waits for rows");
    return checkParts(view, complain);
  }
  checkState(view, complain);
  const digest = digestOf(view.range({ gte: "", lt: "\x7f" }));
  if (digest !== restoring.get(tenant)) complain("LOST: it is not what it was restored from");
}

function checkTenant(view: TenantView, writes: readonly Acknowledged[], complain: Complain): void {
  checkState(view, complain);
  for (const { config, version, revision, id } of writes) {
    const row = getConfig(view, namespace, config);
    const latest = row?.latestVersion ?? 0;
    if (version > latest)
      complain(`LOST: ${id}, version ${version} of ${config}; it is at ${latest}`);
    else if (version > latest - versionsPerConfig) {
      const text = getText(view, namespace, config, version);
      if (text === null || idOf(text) !== id)
        complain(`LOST: ${id}, version ${version} of ${config}; there is ${text?.slice(0, 40)}`);
    }
    if (revision > view.revision)
      complain(`revision ${revision} was acknowledged, it is at ${view.revision}`);
  }
}
