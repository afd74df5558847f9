/**
 * Backups of tenants as files, one per tenant in a folder, and the way back. A file gets its name only when it is whole
 * and on the disk, so what is there is a backup; `verify` tells whether it still is one.
 */
import { createHash } from "node:crypto";
import { mkdir, open, readdir, rename, rm } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { checkRestoredMeta } from "../machine/directory.ts";
import { isRestorable } from "../machine/restore.ts";
import { isTenantName } from "../model/names.ts";
import { Problem, Unreachable } from "../sdk/admin.ts";
import type { Admin, RestoreAnswer, RestoreBegin } from "../sdk/admin.ts";

const suffix = ".ndjson";
/** A row holds at most one content. */
const lineBytesMax = 32 * 1024 * 1024;
/** Rows of a restore that travel together: one replicated command. */
const restorePartBytes = 64 * 1024;
const restorePartRows = 2_000;
/** Tries to get one part. */
const triesMax = 5;
/** How often a backup of one tenant is begun. */
const beginsMax = 3;
/** How long the server may take to be told that no more is wanted, once somebody wants to leave. */
const goodbyeMs = 2_000;
/** How long a tenant that was just made, or replaced, may take to be known everywhere. */
const beginMsMax = 30_000;

/** A file that is no whole backup. */
export class BackupError extends Error {
  override readonly name = "BackupError";
}

interface Head {
  readonly tenant: string;
  readonly epoch: number;
  readonly revision: number;
  readonly etag: string;
  readonly takenAt: string;
  readonly directory: Pick<RestoreBegin, "description" | "quotas"> & { readonly replicas?: number };
  readonly meta: RestoreBegin["meta"];
}

export interface BackupState {
  readonly tenant: string;
  readonly state: "taken" | "unchanged" | "good" | "restored" | "failed";
  readonly epoch: number | null;
  readonly revision: number | null;
  readonly rows: number | null;
  readonly bytes: number | null;
  /** Why it failed. */
  readonly error?: string;
  /** Of a restored tenant whose new key is shown this once. */
  readonly adminKey?: string;
}

/** How far it is, for a person who waits. */
export type Tell = (text: string) => void;

// --- the document --------------------------------------------------------------------------------------------------------

/** Judges a document line by line as it comes; complete only after its end. @throws BackupError */
class Judge {
  head: Head | null = null;
  rows = 0;
  bytes = 0;
  isComplete = false;
  readonly #hash = createHash("sha256");
  #last = "";

  /** @param line with its line feed. @returns the row, if it is one */
  line(line: Uint8Array): readonly [key: string, text: string] | null {
    if (this.isComplete) throw new BackupError("There is more behind its end");
    this.bytes += line.length;
    const text = Buffer.from(line).toString("utf8");
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      throw new BackupError(`Line ${this.rows + 1} is not JSON`);
    }
    if (this.head === null) {
      this.#hash.update(line);
      this.head = headOf(value);
      return null;
    }
    if (Array.isArray(value)) {
      this.#hash.update(line);
      return this.#row(value, text);
    }
    this.#end(value);
    return null;
  }

  #row(value: readonly unknown[], text: string): readonly [key: string, text: string] {
    const [key, row] = value;
    if (typeof key !== "string" || value.length !== 2 || !isRestorable(key, row))
      throw new BackupError(`Row ${this.rows + 1} is no row of a tenant`);
    if (key <= this.#last) throw new BackupError(`Row ${this.rows + 1} is out of order`);
    this.#last = key;
    this.rows += 1;
    // The text as it is: parsing and writing it again would cost, and might change a number.
    return [key, text.slice(JSON.stringify(key).length + 2, text.lastIndexOf("]"))];
  }

  #end(value: unknown): void {
    const { end } = value as { end?: { rows?: unknown; sha256?: unknown } };
    if (end?.sha256 !== this.#hash.digest("hex"))
      throw new BackupError("Its checksum is another: it was changed or damaged");
    if (end.rows !== this.rows) throw new BackupError("Rows are missing");
    this.isComplete = true;
  }

  /** After the last line. */
  done(): Head {
    if (this.head === null || !this.isComplete) throw new BackupError("It breaks off");
    return this.head;
  }
}

function headOf(value: unknown): Head {
  const head = value as Partial<Head> & { format?: unknown; version?: unknown };
  if (head?.format !== "conflux-backup") throw new BackupError("It is no backup");
  if (head.version !== 1)
    throw new BackupError(`It has version ${String(head.version)}: use a newer conflux`);
  const { tenant, epoch, revision, directory, meta } = head;
  if (
    !isTenantName(String(tenant)) ||
    !Number.isSafeInteger(epoch) ||
    !Number.isSafeInteger(revision) ||
    typeof directory !== "object" ||
    typeof meta !== "object" ||
    checkRestoredMeta(meta ?? {}) !== null
  )
    throw new BackupError("Its head lacks something");
  return head as Head;
}

async function* linesOf(path: string): AsyncGenerator<Uint8Array> {
  const file = await open(path, "r");
  try {
    let rest: Buffer = Buffer.alloc(0);
    const buffer = Buffer.alloc(256 * 1024);
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, null);
      if (bytesRead === 0) break;
      let chunk: Buffer = Buffer.concat([rest, buffer.subarray(0, bytesRead)]);
      for (let at = chunk.indexOf(10); at !== -1; at = chunk.indexOf(10)) {
        yield chunk.subarray(0, at + 1);
        chunk = chunk.subarray(at + 1);
      }
      if (chunk.length > lineBytesMax) throw new BackupError("A line is too long");
      rest = chunk;
    }
    if (rest.length > 0) yield rest;
  } finally {
    await file.close();
  }
}

async function judge(path: string): Promise<{ head: Head; rows: number; bytes: number }> {
  const judging = new Judge();
  for await (const line of linesOf(path)) judging.line(line);
  return { head: judging.done(), rows: judging.rows, bytes: judging.bytes };
}

// --- files ---------------------------------------------------------------------------------------------------------------

function fileOf(directory: string, tenant: string): string {
  return join(directory, `${tenant}${suffix}`);
}

/** Tenants that have a backup in the folder, by name. */
export async function tenantsIn(directory: string): Promise<string[]> {
  let names: string[];
  try {
    names = await readdir(directory);
  } catch (error) {
    throw new BackupError(`Cannot read folder ${directory}: ${(error as Error).message}`);
  }
  return names
    .filter((name) => name.endsWith(suffix))
    .map((name) => name.slice(0, -suffix.length))
    .filter(isTenantName)
    .sort();
}

/** The tag of the backup that is there; null when there is none, or none that begins and ends as one. */
async function tagOf(path: string): Promise<string | null> {
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch {
    return null;
  }
  try {
    const { size } = await file.stat();
    const head = Buffer.alloc(Math.min(size, 64 * 1024));
    await file.read(head, 0, head.length, 0);
    const tail = Buffer.alloc(Math.min(size, 256));
    await file.read(tail, 0, tail.length, size - tail.length);
    if (!/\n\{"end":\{"rows":\d+,"sha256":"[0-9a-f]{64}"\}\}\n$/.test(tail.toString("utf8")))
      return null;
    return headOf(JSON.parse(head.toString("utf8").split("\n", 1)[0] ?? "")).etag ?? null;
  } catch {
    return null;
  } finally {
    await file.close();
  }
}

// --- taking them ---------------------------------------------------------------------------------------------------------

async function partOf(
  admin: Admin,
  tenant: string,
  ask: {
    readonly session?: string;
    readonly part: number;
    readonly etag?: string;
    readonly signal: AbortSignal;
  },
): ReturnType<Admin["backupPart"]> {
  for (let tries = 1; ; tries++) {
    try {
      return await admin.backupPart(tenant, ask);
    } catch (error) {
      // A later part is still there for a minute: a connection that broke costs no more than itself.
      const isLast = ask.part === 0 || tries === triesMax || ask.signal.aborted;
      if (!(error instanceof Unreachable) || isLast) throw error;
    }
  }
}

/** The session that a first part begins has no name here before it came: it is waited for, a moment. */
async function firstPartOf(
  admin: Admin,
  tenant: string,
  etag: string | null,
  signal: AbortSignal,
): ReturnType<Admin["backupPart"]> {
  signal.throwIfAborted();
  const late = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const leave = (): void => {
    timer = setTimeout(() => late.abort(), goodbyeMs);
  };
  signal.addEventListener("abort", leave, { once: true });
  try {
    const ask = { part: 0, signal: late.signal };
    return await partOf(admin, tenant, { ...ask, ...(etag !== null && { etag }) });
  } finally {
    signal.removeEventListener("abort", leave);
    clearTimeout(timer);
  }
}

/** The state that it was to be of is gone with the node, or the tenant from the node, that was asked first. */
class Interrupted extends Error {}

async function backupOne(
  admin: Admin,
  directory: string,
  tenant: string,
  tell: Tell,
  signal: AbortSignal,
): Promise<BackupState> {
  const etag = await tagOf(fileOf(directory, tenant));
  for (let begins = 1; ; begins++) {
    try {
      const first = await firstPartOf(admin, tenant, etag, signal);
      if (first !== null) return await backupFrom(first, admin, directory, tenant, tell, signal);
      const nothing = { epoch: null, revision: null, rows: null, bytes: null };
      return { tenant, state: "unchanged", ...nothing };
    } catch (error) {
      if (signal.aborted)
        throw new BackupError("Stopped before it was whole: nothing of it was kept");
      if (!(error instanceof Interrupted)) throw error;
      if (begins === beginsMax) throw error.cause;
      tell(`${tenant}: begun anew`);
    }
  }
}

type Part = Awaited<ReturnType<Admin["backupPart"]>>;

/** @throws Interrupted when a later part cannot be had */
async function backupFrom(
  first: NonNullable<Part>,
  admin: Admin,
  directory: string,
  tenant: string,
  tell: Tell,
  signal: AbortSignal,
): Promise<BackupState> {
  const path = fileOf(directory, tenant);
  const aside = join(directory, `.${tenant}.part`);
  let answer: Part = first;
  const judging = new Judge();
  let file: FileHandle | null = null;
  try {
    file = await open(aside, "w", 0o600);
    let rest: Buffer = Buffer.alloc(0);
    for (let part = 0; answer !== null;) {
      const { bytes, session, isLast }: { bytes: Uint8Array; session: string; isLast: boolean } =
        answer;
      // A disk that is almost full takes less than it was given, and says so only then.
      for (let at = 0; at < bytes.length;)
        at += (await file.write(bytes, at, bytes.length - at, null)).bytesWritten;
      rest = Buffer.concat([rest, bytes]);
      for (let at = rest.indexOf(10); at !== -1; at = rest.indexOf(10)) {
        judging.line(rest.subarray(0, at + 1));
        rest = rest.subarray(at + 1);
      }
      tell(`${tenant}: ${judging.rows} rows, ${sizeText(judging.bytes)}`);
      if (isLast) break;
      part += 1;
      signal.throwIfAborted();
      answer = await partOf(admin, tenant, { session, part, signal }).catch((cause: unknown) => {
        throw new Interrupted("A part cannot be had", { cause });
      });
    }
    const head = judging.done();
    await file.sync();
    await file.close();
    await rename(aside, path);
    const { epoch, revision } = head;
    return { tenant, state: "taken", epoch, revision, rows: judging.rows, bytes: judging.bytes };
  } catch (error) {
    await file?.close().catch(() => {});
    await rm(aside, { force: true });
    // Else the server keeps the state for it for a minute, and one place fewer for others.
    if (answer?.isLast !== true)
      await admin.endBackup(tenant, first.session, AbortSignal.timeout(goodbyeMs)).catch(() => {});
    const { syscall, message } = error as NodeJS.ErrnoException;
    if (syscall === undefined) throw error;
    throw new BackupError(`Cannot write ${aside}: ${message}`, { cause: error });
  }
}

/**
 * One after the other; what fails does not keep the others from being taken.
 *
 * @param signal nobody waits for it any more: what is not whole is given up, and the server told
 */
export async function backup(
  admin: Admin,
  directory: string,
  tenants: readonly string[],
  tell: Tell,
  signal: AbortSignal = new AbortController().signal,
): Promise<BackupState[]> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  return each(tenants, (tenant) => backupOne(admin, directory, tenant, tell, signal), signal);
}

export async function verify(directory: string, tell: Tell): Promise<BackupState[]> {
  return each(await tenantsIn(directory), async (tenant) => {
    tell(`${tenant}: reading`);
    const { head, rows, bytes } = await judge(fileOf(directory, tenant));
    guardName(head, tenant);
    const { epoch, revision } = head;
    return { tenant, state: "good", epoch, revision, rows, bytes };
  });
}

function guardName(head: Head, tenant: string): void {
  if (head.tenant !== tenant)
    throw new BackupError(`It is a backup of ${head.tenant}: give it that name`);
}

async function each(
  tenants: readonly string[],
  run: (tenant: string) => Promise<BackupState>,
  signal?: AbortSignal,
): Promise<BackupState[]> {
  const states: BackupState[] = [];
  for (const tenant of tenants) {
    if (signal?.aborted === true) break;
    try {
      states.push(await run(tenant));
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      const nothing = { epoch: null, revision: null, rows: null, bytes: null };
      states.push({ tenant, state: "failed", ...nothing, error: detail });
    }
  }
  return states;
}

// --- giving them back ----------------------------------------------------------------------------------------------------

export interface RestoreOptions {
  /** Another name for the tenant; it then gets a new admin key, since its keys name the old one. */
  readonly as?: string;
  readonly replace?: boolean;
}

/** How far the target is; null when it is not being restored, or not there. */
async function restoreState(
  admin: Admin,
  tenant: string,
  isReplaced = false,
): Promise<RestoreAnswer | null> {
  try {
    return await admin.restoreState(tenant);
  } catch (error) {
    if (error instanceof Problem && error.code === "not-found") return null;
    // It may have lost all its replicas: whatever it was, it makes room.
    if (isReplaced && error instanceof Problem && error.code === "no-quorum") return null;
    throw error;
  }
}

function isSame(state: RestoreAnswer, head: Head): boolean {
  const { tenant, epoch, revision } = state.source;
  return tenant === head.tenant && epoch === head.epoch && revision === head.revision;
}

async function restoreOne(
  admin: Admin,
  directory: string,
  tenant: string,
  options: RestoreOptions,
  tell: Tell,
): Promise<BackupState> {
  const path = fileOf(directory, tenant);
  tell(`${tenant}: checking`);
  // All of it, before anything is changed.
  const { head, rows, bytes } = await judge(path);
  guardName(head, tenant);
  const target = options.as ?? tenant;
  let state = await restoreState(admin, target, options.replace);
  let adminKey: string | undefined;
  if (state !== null && !isSame(state, head))
    throw new BackupError(
      `${target} is being restored from another backup: drop that first (conflux restore --drop ${target})`,
    );
  if (state === null) {
    const begun = await admin.beginRestore(target, beginOf(head, options));
    adminKey = begun.key?.token;
    state = await begunState(admin, target, head);
  }
  await sendRows(admin, { path, target, rows, tell }, state);
  const done = await admin.finishRestore(target, rows);
  const { epoch, revision } = done;
  const restored = { tenant: target, state: "restored", epoch, revision, rows, bytes } as const;
  return adminKey === undefined ? restored : { ...restored, adminKey };
}

function beginOf(head: Head, options: RestoreOptions): RestoreBegin {
  const { tenant, epoch, revision, meta, directory } = head;
  const { description, quotas, replicas } = directory;
  return {
    source: { tenant, epoch, revision },
    meta,
    ...(description !== undefined && { description }),
    ...(quotas !== undefined && { quotas }),
    ...((replicas === 1 || replicas === 3 || replicas === 5) && { replicas }),
    ...(options.replace === true && { replace: true }),
    ...(options.as !== undefined && { adminKey: true }),
  };
}

/** Not every node knows of the new tenant at once. */
async function begunState(admin: Admin, target: string, head: Head): Promise<RestoreAnswer> {
  const end = performance.now() + beginMsMax;
  for (;;) {
    const state = await restoreState(admin, target);
    if (state !== null && isSame(state, head)) return state;
    if (performance.now() > end) throw new BackupError(`${target} does not begin to be restored`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function sendRows(
  admin: Admin,
  { path, target, rows, tell }: { path: string; target: string; rows: number; tell: Tell },
  from: RestoreAnswer,
): Promise<void> {
  const judging = new Judge();
  let { part } = from;
  let pending: (readonly [key: string, text: string])[] = [];
  let size = 0;
  const flush = async (): Promise<void> => {
    if (pending.length === 0) return;
    ({ part } = await admin.restoreRows(target, part, pending));
    tell(`${target}: restored ${judging.rows} of ${rows} rows`);
    pending = [];
    size = 0;
  };
  for await (const line of linesOf(path)) {
    const row = judging.line(line);
    // There already, from before an interruption.
    if (row === null || row[0] <= from.last) continue;
    pending.push(row);
    size += line.length;
    if (size >= restorePartBytes || pending.length >= restorePartRows) await flush();
  }
  judging.done();
  await flush();
}

export async function restore(
  admin: Admin,
  directory: string,
  tenants: readonly string[],
  options: RestoreOptions,
  tell: Tell,
): Promise<BackupState[]> {
  return each(tenants, (tenant) => restoreOne(admin, directory, tenant, options, tell));
}

/** Gives up a restore that was begun; a tenant that is whole is never touched. */
export async function drop(admin: Admin, tenant: string): Promise<void> {
  const state = await restoreState(admin, tenant);
  if (state === null) throw new BackupError(`${tenant} is not being restored`);
  await admin.deleteTenant(tenant, { purge: true });
}

export function sizeText(bytes: number): string {
  return bytes < 1024 * 1024
    ? `${Math.ceil(bytes / 1024)} KiB`
    : `${(bytes / 1024 / 1024).toFixed(1)} MiB`;
}
