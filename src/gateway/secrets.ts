/**
 * Contents of secret configs, sealed before they are proposed: log, journal, rows, snapshots and backups hold them only
 * so. An envelope: each version has a data key of its own, which a key of the operator's key file wraps.
 *
 * What must stay true: a sealed text opens only as the version of the config that it was sealed for; plaintext is never
 * kept, and never in a message; hashes of plaintext are keyed, so that nobody guesses a short secret from its hash.
 *
 * AES-256-GCM by node:crypto rather than WebCrypto: values are answered within one synchronous view of the state.
 */
import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes } from "node:crypto";
import { Problem } from "../api/problems.ts";
import type { TenantView } from "../host/ports.ts";
import { under } from "../machine/keys.ts";
import { getText } from "../machine/queries.ts";
import type { ConfigRow, VersionRow } from "../machine/rows.ts";
import type { Principal } from "./http.ts";

/** In a frame of a watch, and more than any secret needs. */
export const secretBytesMax = 64 * 1024;
const keyBytes = 32;
const ivBytes = 12;
const tagBytes = 16;
const keysMax = 100;
const algorithm = "aes-256-gcm";

export interface SecretKey {
  readonly id: string;
  readonly key: Uint8Array;
}

/** What a sealed text is bound to. */
export interface SecretPlace {
  readonly tenant: string;
  readonly namespace: string;
  readonly name: string;
  readonly version: number;
}

/** The text that is stored. Binary parts in base64. */
interface Envelope {
  readonly sealed: 1;
  /** Id of the key that wraps the data key. */
  readonly key: string;
  /** Data key: iv, ciphertext, tag. */
  readonly wrapped: string;
  /** Content: iv, ciphertext, tag. */
  readonly data: string;
}

/**
 * A key file: a line for each key, `<id>:<32 bytes in base64>`, the first for what is sealed from now on; empty lines and
 * those that begin with # are left out.
 * @throws Error without anything of the keys in its message
 */
export function readSecretKeys(text: string): readonly SecretKey[] {
  const keys: SecretKey[] = [];
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === "" || line.startsWith("#")) continue;
    const match = /^([a-zA-Z0-9._-]{1,64}):([A-Za-z0-9+/]{43}=)$/.exec(line.trim());
    if (match === null)
      throw new Error(`line ${i + 1} is not <id>:<32 bytes in base64> (openssl rand -base64 32)`);
    const [, id, encoded] = match as unknown as [string, string, string];
    if (keys.some((known) => known.id === id)) throw new Error(`line ${i + 1} repeats an id`);
    keys.push({ id, key: Buffer.from(encoded, "base64") });
  }
  if (keys.length === 0) throw new Error("it holds no key");
  if (keys.length > keysMax) throw new Error(`it holds more than ${keysMax} keys`);
  return keys;
}

export class Secrets {
  readonly #keys: ReadonlyMap<string, Uint8Array>;
  readonly #active: SecretKey | null;
  readonly #macKey: Uint8Array | null;

  /** @param keys none: secrets can neither be sealed nor opened here */
  constructor(keys: readonly SecretKey[]) {
    this.#keys = new Map(keys.map(({ id, key }) => [id, key]));
    this.#active = keys[0] ?? null;
    // Separate from wrapping; the last key stays the same while newer ones are put before it.
    const oldest = keys.at(-1);
    this.#macKey =
      oldest === undefined
        ? null
        : new Uint8Array(hkdfSync("sha256", oldest.key, "", "conflux secret hash", keyBytes));
  }

  /** Key that seals now; null: none. */
  get activeKey(): string | null {
    return this.#active?.id ?? null;
  }

  /** @throws Problem `secrets-unavailable` */
  needKey(): void {
    this.#needActive();
  }

  /** @throws Problem `secrets-unavailable` */
  seal(place: SecretPlace, text: string): string {
    const active = this.#needActive();
    const dataKey = randomBytes(keyBytes);
    const envelope: Envelope = {
      sealed: 1,
      key: active.id,
      wrapped: encrypt(active.key, dataKey, bound(place, "key")),
      data: encrypt(dataKey, Buffer.from(text, "utf8"), bound(place, "data")),
    };
    return JSON.stringify(envelope);
  }

  /** @throws Problem `secrets-unavailable` */
  open(place: SecretPlace, sealed: string): string {
    const envelope = JSON.parse(sealed) as Envelope;
    return decrypt(this.#dataKey(place, envelope), envelope.data, bound(place, "data")).toString(
      "utf8",
    );
  }

  /** The same content under the active key; null: it is already. @throws Problem `secrets-unavailable` */
  rewrap(place: SecretPlace, sealed: string): string | null {
    const active = this.#needActive();
    const envelope = JSON.parse(sealed) as Envelope;
    if (envelope.key === active.id) return null;
    const wrapped = encrypt(active.key, this.#dataKey(place, envelope), bound(place, "key"));
    return JSON.stringify({ ...envelope, key: active.id, wrapped } satisfies Envelope);
  }

  /** Keyed, so that equal contents of one config are known to be equal here and nowhere else. */
  hash(place: Omit<SecretPlace, "version">, text: string): string {
    const { tenant, namespace, name } = place;
    return `sha256:${this.mac(JSON.stringify([tenant, namespace, name, text]))}`;
  }

  /** HMAC-SHA256, hex. @throws Problem `secrets-unavailable` */
  mac(text: string): string {
    if (this.#macKey === null) throw noKey();
    return createHmac("sha256", this.#macKey).update(text).digest("hex");
  }

  #needActive(): SecretKey {
    if (this.#active === null) throw noKey();
    return this.#active;
  }

  #dataKey(place: SecretPlace, envelope: Envelope): Uint8Array {
    if (this.#active === null) throw noKey();
    const key = this.#keys.get(envelope.key);
    if (key === undefined)
      throw unavailable(`CONFLUX_SECRET_KEY_FILE of this node has no key ${envelope.key}`);
    return decrypt(key, envelope.wrapped, bound(place, "key"));
  }
}

function noKey(): Problem {
  return unavailable(
    "Set CONFLUX_SECRET_KEY_FILE on every node: without a key there are no secrets",
  );
}

function unavailable(detail: string): Problem {
  return new Problem("secrets-unavailable", detail);
}

function bound(place: SecretPlace, part: "key" | "data"): Buffer {
  const { tenant, namespace, name, version } = place;
  return Buffer.from(JSON.stringify(["conflux secret", part, tenant, namespace, name, version]));
}

function encrypt(key: Uint8Array, plain: Uint8Array, bound_: Uint8Array): string {
  const iv = randomBytes(ivBytes);
  const cipher = createCipheriv(algorithm, key, iv);
  cipher.setAAD(bound_);
  return Buffer.concat([iv, cipher.update(plain), cipher.final(), cipher.getAuthTag()]).toString(
    "base64",
  );
}

function decrypt(key: Uint8Array, encoded: string, bound_: Uint8Array): Buffer {
  const bytes = Buffer.from(encoded, "base64");
  const decipher = createDecipheriv(algorithm, key, bytes.subarray(0, ivBytes), {
    authTagLength: tagBytes,
  });
  decipher.setAAD(bound_);
  decipher.setAuthTag(bytes.subarray(-tagBytes));
  try {
    return Buffer.concat([decipher.update(bytes.subarray(ivBytes, -tagBytes)), decipher.final()]);
  } catch {
    throw unavailable(
      "This node's key does not open it: all nodes need the same CONFLUX_SECRET_KEY_FILE, and what is sealed must be as it was written",
    );
  }
}

// --- rotation ----------------------------------------------------------------------------------------------------------------

export interface Rewrap {
  readonly namespace: string;
  readonly name: string;
  readonly version: number;
  readonly hash: string;
  readonly text: string;
}

/** Deleted configs too: they can be undeleted. */
export function* rewraps(view: TenantView, secrets: Secrets): Generator<Rewrap, void> {
  for (const [, config] of view.range<ConfigRow>(under("cfg"))) {
    if (config.secret !== true) continue;
    const { namespace, name } = config;
    for (const [, { version, hash }] of view.range<VersionRow>(under(`ver/${namespace}/${name}`))) {
      const text = getText(view, namespace, name, version);
      if (text === null) continue;
      const next = secrets.rewrap({ tenant: view.tenant, namespace, name, version }, text);
      if (next !== null) yield { namespace, name, version, hash, text: next };
    }
  }
}

/**
 * By which key the tenant's secrets are wrapped: empty without secrets, `k2` when all are by that one, `k2+` when others
 * are as well. Rotation raises no revision.
 */
export function wrappedBy(view: TenantView, secrets: Secrets): string {
  let has = false;
  for (const [, { secret }] of view.range<ConfigRow>(under("cfg"))) has ||= secret === true;
  if (!has) return "";
  try {
    const { done } = rewraps(view, secrets).next();
    return `${secrets.activeKey}${done === true ? "" : "+"}`;
  } catch (error) {
    if (error instanceof Problem) return "+";
    throw error;
  }
}

// --- who may read ------------------------------------------------------------------------------------------------------------

export function readsSecrets(principal: Principal | null): boolean {
  return principal?.scopes?.includes("secrets") === true;
}

/** @throws Problem `forbidden` */
export function authorizeSecrets(principal: Principal | null): void {
  if (!readsSecrets(principal))
    throw new Problem("forbidden", "Use a key with the scope secrets: the value is secret");
}

/** The content of a version in plain, secret or not; null: there is none. @throws Problem */
export function openText(
  view: TenantView,
  secrets: Secrets,
  of: { readonly namespace: string; readonly name: string },
  version: { readonly version: number; readonly secret?: boolean },
): string | null {
  const { namespace, name } = of;
  const text = getText(view, namespace, name, version.version);
  if (text === null || version.secret !== true) return text;
  return secrets.open({ tenant: view.tenant, namespace, name, version: version.version }, text);
}

/** The same for frames: what cannot be opened here comes without content, and is asked for by itself. */
export function openedText(
  view: TenantView,
  secrets: Secrets,
  of: { readonly namespace: string; readonly name: string },
  version: { readonly version: number; readonly secret?: boolean },
): string | null {
  try {
    return openText(view, secrets, of, version);
  } catch (error) {
    if (error instanceof Problem) return null;
    throw error;
  }
}
