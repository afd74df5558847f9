/**
 * Keys of rows (see rows.ts). Names hold no slash, and "0" follows "/" in ASCII: everything under a prefix is one range.
 */

const zeros = "0".repeat(16);

/** Numbers up to 2^53 in text order. */
export function padded(n: number): string {
  const text = String(n);
  return zeros.slice(text.length) + text;
}

export const metaKey = "meta";
/** Written by the replica when a configuration change is applied. */
export const membersKey = "host/members";

export function namespaceKey(namespace: string): string {
  return `ns/${namespace}`;
}
export function configKey(namespace: string, name: string): string {
  if (namespace !== lastConfig.namespace || name !== lastConfig.name)
    lastConfig = { namespace, name, key: `cfg/${namespace}/${name}` };
  return lastConfig.key;
}
/** A command asks for the key of its config several times, and a key that was used before is compared in no time. */
let lastConfig = { namespace: "", name: "", key: "cfg//" };
export function versionKey(namespace: string, name: string, version: number): string {
  return `ver/${namespace}/${name}/${padded(version)}`;
}
export function textKey(namespace: string, name: string, version: number): string {
  return `txt/${namespace}/${name}/${padded(version)}`;
}
export function releaseKey(namespace: string, name: string, release: number): string {
  return `rel/${namespace}/${name}/${padded(release)}`;
}
export function deletedKey(revision: number, namespace: string, name: string): string {
  return `del/${padded(revision)}/${namespace}/${name}`;
}
export function dueKey(dueAt: number, namespace: string, name: string): string {
  return `due/${padded(dueAt)}/${namespace}/${name}`;
}
export function keyKey(id: string): string {
  return `key/${id}`;
}
export function historyKey(revision: number): string {
  return `hist/${padded(revision)}`;
}
export function auditKey(sequence: number): string {
  return `aud/${padded(sequence)}`;
}
/** Of rows that are written once with each command, and hardly ever read. */
export function isRecordKey(key: string): boolean {
  return key.startsWith("hist/") || key.startsWith("aud/");
}
export function idempotencyKey(key: string): string {
  return `idem/${key}`;
}
export function idempotencyQueueKey(n: number): string {
  return `idq/${padded(n)}`;
}
export function tenantKey(tenant: string): string {
  if (tenant !== lastTenant.tenant) lastTenant = { tenant, key: `ten/${tenant}` };
  return lastTenant.key;
}
/** As with `lastConfig`. */
let lastTenant = { tenant: "", key: "ten/" };
export function groupKey(group: number): string {
  return `grp/${padded(group)}`;
}
export const systemKey = "system";

export function moveKey(group: number): string {
  return `move/${padded(group)}`;
}
export function regrowKey(group: number): string {
  return `regrow/${padded(group)}`;
}
export function nodeKey(node: string): string {
  return `node/${node}`;
}
export function issuerKey(name: string): string {
  return `iss/${name}`;
}
export function rootKeyKey(hash: string): string {
  return `root/${hash}`;
}

/** All keys that continue `prefix` after a slash. */
export function under(prefix: string): { gte: string; lt: string } {
  return { gte: `${prefix}/`, lt: `${prefix}0` };
}
