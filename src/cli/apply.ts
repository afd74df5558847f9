/**
 * Manifests: the desired state of tenants as files, and how it is made true.
 *
 * Three steps, each of use alone: read (files → checked manifests), plan (manifest and what the server has → the least
 * change), execute (plan → transactions). A plan's operations hold only if nothing moved meanwhile: every transaction
 * carries the revisions that were read, and when one no longer holds, the tenant is read and planned again. Applying
 * twice changes nothing the second time; what a manifest does not name is left alone, unless pruning is asked for.
 */
import { createHash, randomUUID } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, normalize, relative } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { isAlias, isMap, isScalar, LineCounter, parseDocument, stringify, visit } from "yaml";
import { Problem } from "../api/problems.ts";
import { QuotasSchema } from "../api/schemas.ts";
import type {
  ConfigAnswer,
  ConfigDetailAnswer,
  KeyCreate,
  KeyCreated,
  TenantCreate,
  TenantUpdate,
  TransactionOperation,
  TransactionRequest,
} from "../api/schemas.ts";
import { prepareContent } from "../model/content.ts";
import { checkConfigName, checkNamespaceName, checkTenantName } from "../model/names.ts";
import { contentFormats } from "../model/release.ts";
import type { ContentFormat, ReleaseRule } from "../model/release.ts";
import { validateRules } from "../model/rules.ts";
import { Admin } from "../sdk/admin.ts";
import type { Where } from "../sdk/admin.ts";
import { suggestion } from "../lib/nearest.ts";

// --- manifests ------------------------------------------------------------------------------------------------------------

export interface Manifest {
  readonly file: string;
  readonly tenant: string;
  readonly description?: string;
  readonly replicas?: number;
  readonly quotas?: NonNullable<TenantCreate["quotas"]>;
  /** Keys by name, which is their description. Their secrets are made when they are, and shown once. */
  readonly keys: readonly ManifestKey[];
  readonly namespaces: readonly ManifestNamespace[];
}

export interface ManifestKey {
  readonly name: string;
  readonly kind: KeyCreate["kind"];
  /** Absent: all. */
  readonly namespaces?: readonly string[];
}

export interface ManifestNamespace {
  readonly namespace: string;
  readonly extends?: string | null;
  readonly protected?: boolean;
  readonly configs: readonly ManifestConfig[];
}

export interface ManifestConfig {
  readonly name: string;
  readonly format: ContentFormat;
  readonly description?: string;
  readonly tags?: Readonly<Record<string, string>>;
  /** A JSON Schema; null removes it. */
  readonly schema?: unknown;
  readonly variants: ReadonlyMap<string, Variant>;
  /** Absent: releases are left alone. */
  readonly release?: {
    /** Null: whatever rules there are stay. */
    readonly rules: readonly ManifestRule[] | null;
    readonly default: string | null;
  };
}

export interface Variant {
  readonly content: string;
  readonly hash: string;
  readonly message?: string;
  /** Made before the config got its schema, or got another one: it is not held against the one it has now. */
  readonly beforeSchema?: boolean;
}

export type ManifestRule = Omit<ReleaseRule, "version"> & { readonly variant: string };

export interface ManifestProblem {
  readonly file: string;
  /** From 1; 0 = the file as a whole. */
  readonly line: number;
  /** JSON Pointer. */
  readonly pointer: string;
  readonly detail: string;
}

/** Manifests that cannot be used, with all that was found wrong in them. */
export class ManifestError extends Error {
  override readonly name = "ManifestError";
  readonly problems: readonly ManifestProblem[];

  constructor(problems: readonly ManifestProblem[]) {
    super(
      problems
        .map(({ file, line, pointer, detail }) => {
          const at = line === 0 ? file : `${file}:${line}`;
          return pointer === "" ? `${at}: ${detail}` : `${at}: ${pointer}: ${detail}`;
        })
        .join("\n"),
    );
    this.problems = problems;
  }
}

const manifestFile = /\.(ya?ml|json)$/;

/**
 * Reads one manifest, or all that stand directly in a folder.
 * @throws ManifestError
 */
export async function readManifests(path: string): Promise<Manifest[]> {
  const problems: ManifestProblem[] = [];
  const whole = (file: string, detail: string): void => {
    problems.push({ file, line: 0, pointer: "", detail });
  };
  let files: string[] = [];
  try {
    const isFolder = (await stat(path)).isDirectory();
    files = isFolder
      ? (await readdir(path))
          .filter((name) => manifestFile.test(name))
          .map((name) => join(path, name))
      : [path];
    if (files.length === 0) whole(path, "There is no manifest (*.yaml, *.yml or *.json) here");
  } catch (error) {
    whole(path, `Cannot read it: ${systemReason(error)}`);
  }
  const manifests: Manifest[] = [];
  const fileOf = new Map<string, string>();
  for (const file of files.toSorted()) {
    const read = await readManifest(file, problems);
    if (read === null) continue;
    const other = fileOf.get(read.tenant);
    if (other !== undefined)
      whole(file, `Tenant ${read.tenant} has a manifest already: ${basename(other)}`);
    fileOf.set(read.tenant, file);
    manifests.push(read);
  }
  if (problems.length > 0) throw new ManifestError(problems);
  return manifests;
}

async function readManifest(file: string, problems: ManifestProblem[]): Promise<Manifest | null> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    const detail = `Cannot read it: ${systemReason(error)}`;
    problems.push({ file, line: 0, pointer: "", detail });
    return null;
  }
  // JSON is YAML; one parser gives both their line numbers and refuses keys that come twice.
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  if (document.errors.length > 0) {
    for (const error of document.errors.slice(0, errorsShownMax))
      problems.push({
        file,
        line: lines.linePos(error.pos[0]).line,
        pointer: "",
        detail: error.message,
      });
    return null;
  }
  visit(document, {
    Scalar: (_key, { value, source = "", range }) => {
      if (!/^[-+]?\d+$/.test(source) || typeof value !== "number") return;
      if (Number.isFinite(value) && BigInt(source) === BigInt(value)) return;
      problems.push({
        file,
        line: lines.linePos(range?.[0] ?? 0).line,
        pointer: "",
        detail: `Put ${source} in quotes, or give the whole content as text: as a number it would lose digits`,
      });
    },
  });
  const lineOf = (path: readonly string[]): number => {
    // The deepest part of the path that is there.
    for (let depth = path.length; depth > 0; depth -= 1) {
      const parent: unknown =
        depth === 1 ? document.contents : document.getIn(path.slice(0, depth - 1), true);
      const key = path[depth - 1];
      if (isMap(parent)) {
        const pair = parent.items.find(
          (item) => isScalar(item.key) && String(item.key.value) === key,
        );
        if (pair !== undefined && isScalar(pair.key) && pair.key.range)
          return lines.linePos(pair.key.range[0]).line;
      } else if (parent !== undefined && !isAlias(parent)) {
        const node: unknown = document.getIn(path.slice(0, depth), true);
        const range = (node as { range?: [number, number, number] | null } | undefined)?.range;
        if (range) return lines.linePos(range[0]).line;
      }
    }
    return 1;
  };
  const reader = new ManifestReader(dirname(file), (path, detail) => {
    const pointer = path
      .map((part) => `/${part.replaceAll("~", "~0").replaceAll("/", "~1")}`)
      .join("");
    problems.push({ file, line: lineOf(path), pointer, detail });
  });
  return reader.manifest(file, document.toJS() as unknown);
}

const errorsShownMax = 5;
const keyKinds: readonly ManifestKey["kind"][] = ["admin", "write", "read", "client"];

type Path = readonly string[];
type Fields = Readonly<Record<string, unknown>>;

/** Checks a manifest field by field, telling everything that is wrong, and gives what is right. */
class ManifestReader {
  readonly #folder: string;
  readonly #tell: (path: Path, detail: string) => void;

  constructor(folder: string, tell: (path: Path, detail: string) => void) {
    this.#folder = folder;
    this.#tell = tell;
  }

  async manifest(file: string, value: unknown): Promise<Manifest | null> {
    const fields = this.#fields(
      value,
      [],
      ["tenant", "description", "replicas", "quotas", "keys", "namespaces"],
    );
    if (fields === null) return null;
    const tenant = this.#text(fields, "tenant", []);
    if (tenant === undefined) {
      if (fields["tenant"] === undefined) this.#tell([], "Name the tenant: `tenant: name`");
      return null;
    }
    this.#name(tenant, ["tenant"], checkTenantName);
    const description = this.#text(fields, "description", []);
    const replicas = fields["replicas"];
    if (replicas !== undefined && replicas !== 1 && replicas !== 3 && replicas !== 5)
      this.#tell(["replicas"], "Give 1, 3 or 5 replicas");
    const quotas = this.#quotas(fields["quotas"]);
    const keys = this.#entries(fields["keys"], ["keys"]).flatMap(([name, one]) =>
      this.#key(name, one, ["keys", name]),
    );
    const namespaces: ManifestNamespace[] = [];
    for (const [name, one] of this.#entries(fields["namespaces"], ["namespaces"]))
      namespaces.push(...(await this.#namespace(name, one, ["namespaces", name])));
    return {
      file,
      tenant,
      ...(description !== undefined && { description }),
      ...(typeof replicas === "number" && { replicas }),
      ...(quotas !== undefined && { quotas }),
      keys,
      namespaces,
    };
  }

  #key(name: string, value: unknown, path: Path): ManifestKey[] {
    const fields = this.#fields(value, path, ["kind", "namespaces"]);
    if (fields === null) return [];
    const { kind, namespaces } = fields;
    if (!keyKinds.includes(kind as ManifestKey["kind"])) {
      this.#tell([...path, "kind"], `Give one of the kinds ${keyKinds.join(", ")}`);
      return [];
    }
    if (namespaces === undefined) return [{ name, kind: kind as ManifestKey["kind"] }];
    if (!Array.isArray(namespaces) || namespaces.length === 0) {
      this.#tell([...path, "namespaces"], "Give a list of namespaces, or leave it out for all");
      return [];
    }
    namespaces.forEach((one: unknown, i) => {
      const at = [...path, "namespaces", String(i)];
      if (typeof one !== "string") this.#tell(at, "Give a text");
      else this.#name(one, at, checkNamespaceName);
    });
    return [
      { name, kind: kind as ManifestKey["kind"], namespaces: namespaces as readonly string[] },
    ];
  }

  #quotas(value: unknown): Manifest["quotas"] {
    if (value === undefined) return undefined;
    const path = ["quotas"];
    const fields = this.#fields(value, path, Object.keys(QuotasSchema.properties));
    for (const [name, quota] of Object.entries(fields ?? {}))
      if (!Number.isSafeInteger(quota) || (quota as number) < 0)
        this.#tell([...path, name], "Give a whole number from 0");
    return fields ?? {};
  }

  async #namespace(namespace: string, value: unknown, path: Path): Promise<ManifestNamespace[]> {
    this.#name(namespace, path, checkNamespaceName);
    const fields = this.#fields(value ?? {}, path, ["extends", "protected", "configs"]);
    if (fields === null) return [];
    const isOpen = fields["extends"] === null;
    const base = isOpen ? null : this.#text(fields, "extends", path);
    if (typeof base === "string") this.#name(base, [...path, "extends"], checkNamespaceName);
    const isProtected = fields["protected"];
    if (isProtected !== undefined && typeof isProtected !== "boolean")
      this.#tell([...path, "protected"], "Give true or false");
    const configs: ManifestConfig[] = [];
    for (const [name, one] of this.#entries(fields["configs"], [...path, "configs"])) {
      const config = await this.#config(name, one, [...path, "configs", name]);
      if (config !== null) configs.push(config);
    }
    return [
      {
        namespace,
        ...(base !== undefined && { extends: base }),
        ...(typeof isProtected === "boolean" && { protected: isProtected }),
        configs,
      },
    ];
  }

  async #config(name: string, value: unknown, path: Path): Promise<ManifestConfig | null> {
    this.#name(name, path, checkConfigName);
    const fields = this.#fields(value, path, [
      "format",
      "content",
      "contentFile",
      "description",
      "tags",
      "schema",
      "variants",
      "release",
    ]);
    if (fields === null) return null;
    const format = fields["format"] as ContentFormat;
    if (!contentFormats.includes(format)) {
      this.#tell([...path, "format"], `Give one of the formats ${contentFormats.join(", ")}`);
      return null;
    }
    const description = this.#text(fields, "description", path);
    const tags = this.#tags(fields["tags"], [...path, "tags"]);
    const schema = this.#schema(fields["schema"], [...path, "schema"]);
    const common = {
      name,
      format,
      ...(description !== undefined && { description }),
      ...(tags !== undefined && { tags }),
      ...(schema !== undefined && { schema }),
    };
    const isSingle = fields["content"] !== undefined || fields["contentFile"] !== undefined;
    if (!isSingle) {
      const variants = new Map<string, Variant>();
      for (const [key, one] of this.#entries(fields["variants"], [...path, "variants"])) {
        const at = [...path, "variants", key];
        const known = ["content", "contentFile", "message", "beforeSchema"];
        const variant = await this.#variant(one, at, format, known);
        if (variant !== null) variants.set(key, variant);
      }
      const release = this.#release(fields["release"], [...path, "release"], fields["variants"]);
      return { ...common, variants, ...(release !== undefined && { release }) };
    }
    for (const other of ["variants", "release"])
      if (fields[other] !== undefined)
        this.#tell([...path, other], `Give either one content, or variants with a release`);
    const { content, contentFile } = fields;
    const one = await this.#variant({ content, contentFile }, path, format, null);
    if (one === null) return null;
    return {
      ...common,
      variants: new Map([["content", one]]),
      release: { rules: null, default: "content" },
    };
  }

  async #variant(
    value: unknown,
    path: Path,
    format: ContentFormat,
    known: readonly string[] | null,
  ): Promise<Variant | null> {
    const fields = known === null ? (value as Fields) : this.#fields(value, path, known);
    if (fields === null) return null;
    const { content, contentFile } = fields;
    if ((content === undefined) === (contentFile === undefined)) {
      this.#tell(path, "Give either content or contentFile");
      return null;
    }
    const at = [...path, contentFile === undefined ? "content" : "contentFile"];
    const given =
      contentFile === undefined
        ? this.#content(content, at, format)
        : await this.#contentFile(contentFile, at);
    const message = this.#text(fields, "message", path);
    const { beforeSchema } = fields;
    if (beforeSchema !== undefined && typeof beforeSchema !== "boolean")
      this.#tell([...path, "beforeSchema"], "Give true or false");
    if (given === null) return null;
    // As the server does it: what is refused there must be found before anything is changed.
    const { text, errors } = prepareContent(format, given);
    for (const { pointer, detail, line, column } of errors.slice(0, errorsShownMax)) {
      const place = line === undefined ? pointer : `line ${line}, column ${column}`;
      this.#tell(at, `Not valid ${format}: ${detail}${place && ` (${place})`}`);
    }
    if (errors.length > 0) return null;
    return {
      content: text,
      hash: hashOf(text),
      ...(message !== undefined && { message }),
      ...(beforeSchema === true && { beforeSchema }),
    };
  }

  /** Text, or for formats that have values the value itself. */
  #content(value: unknown, path: Path, format: ContentFormat): string | null {
    if (typeof value === "string") return value;
    if (format === "json" || format === "flag") return JSON.stringify(value, null, 2);
    if (format === "yaml" && value !== null) return stringify(value);
    this.#tell(path, "Give the content as text (a block `|` keeps its lines)");
    return null;
  }

  async #contentFile(value: unknown, path: Path): Promise<string | null> {
    if (typeof value !== "string" || value === "") {
      this.#tell(path, "Give a path from the manifest's folder");
      return null;
    }
    const file = normalize(value);
    // A manifest must not be a way to publish any file of the machine it is applied on.
    if (isAbsolute(file) || file.split(/[/\\]/)[0] === "..") {
      this.#tell(path, `Give a path within the manifest's folder: got ${value}`);
      return null;
    }
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
        await readFile(join(this.#folder, file)),
      );
    } catch (error) {
      const reason = error instanceof TypeError ? "it is not UTF-8" : systemReason(error);
      this.#tell(path, `Cannot read ${relative(".", join(this.#folder, file))}: ${reason}`);
      return null;
    }
  }

  #tags(value: unknown, path: Path): ManifestConfig["tags"] {
    if (value === undefined) return undefined;
    const entries = this.#entries(value, path);
    for (const [name, tag] of entries)
      if (typeof tag !== "string") this.#tell([...path, name], "Give a text (put it in quotes)");
    return Object.fromEntries(entries) as Record<string, string>;
  }

  #schema(value: unknown, path: Path): unknown {
    if (typeof value !== "string") return value;
    try {
      return JSON.parse(value) as unknown;
    } catch (error) {
      this.#tell(path, `Give the schema as JSON: ${(error as Error).message}`);
      return undefined;
    }
  }

  #release(value: unknown, path: Path, variants: unknown): ManifestConfig["release"] {
    if (value === undefined) return undefined;
    const fields = this.#fields(value, path, ["rules", "default"]);
    if (fields === null) return undefined;
    const names = isFields(variants) ? Object.keys(variants) : [];
    const known = (name: unknown, at: Path): void => {
      if (typeof name !== "string" || !names.includes(name)) {
        const hint = suggestion(String(name), names);
        this.#tell(
          at,
          `Name one of the variants: ${JSON.stringify(name) ?? "nothing"} is none; ${hint}`,
        );
      }
    };
    if (fields["default"] === undefined)
      this.#tell(path, "Give a default: a variant, or null for nothing");
    else if (fields["default"] !== null) known(fields["default"], [...path, "default"]);
    const rules: unknown = fields["rules"] ?? [];
    if (!Array.isArray(rules)) {
      this.#tell([...path, "rules"], "Give the rules as a list, first match first");
      return undefined;
    }
    // The model's own checks, which know versions where a manifest has variants.
    const asVersions = (rules as unknown[]).map((rule, i) => {
      if (!isFields(rule)) return rule;
      const at = [...path, "rules", String(i)];
      const { variant, ...rest } = rule;
      if ("version" in rest) this.#tell([...at, "version"], "Name a variant instead of a version");
      known(variant, [...at, "variant"]);
      return { ...rest, version: 1 };
    });
    for (const { pointer, detail } of validateRules(asVersions)) {
      const parts = pointer.split("/").slice(1);
      const unescaped = parts.map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
      this.#tell([...path, "rules", ...unescaped], detail);
    }
    return { rules: rules as ManifestRule[], default: fields["default"] as string | null };
  }

  // --- pieces

  #fields(value: unknown, path: Path, known: readonly string[]): Fields | null {
    if (!isFields(value)) {
      this.#tell(path, `Give fields: ${known.join(", ")}`);
      return null;
    }
    for (const name of Object.keys(value))
      if (!known.includes(name))
        this.#tell([...path, name], `There is no field ${name}; ${suggestion(name, known)}`);
    return value;
  }

  #entries(value: unknown, path: Path): [string, unknown][] {
    if (value === undefined || value === null) return [];
    if (isFields(value)) return Object.entries(value);
    this.#tell(path, "Give names with values");
    return [];
  }

  #text(fields: Fields, name: string, path: Path): string | undefined {
    const value = fields[name];
    if (value === undefined || typeof value === "string") return value;
    this.#tell([...path, name], "Give a text");
    return undefined;
  }

  #name(name: string, path: Path, check: (name: string) => string | null): void {
    const wrong = check(name);
    if (wrong !== null) this.#tell(path, wrong);
  }
}

function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function hashOf(text: string): string {
  return `sha256:${createHash("sha256").update(text, "utf8").digest("hex")}`;
}

function systemReason(error: unknown): string {
  const code = (error as { code?: unknown }).code;
  if (code === "ENOENT") return "there is no such file or folder";
  if (code === "EACCES") return "no permission";
  if (code === "EISDIR") return "it is a folder";
  return error instanceof Error ? error.message : String(error);
}

// --- plan -----------------------------------------------------------------------------------------------------------------

export type PlanAction = "create" | "update" | "delete" | "unchanged";

export interface PlanStep {
  readonly kind: "tenant" | "key" | "namespace" | "config";
  readonly namespace: string;
  readonly name: string;
  readonly action: PlanAction;
  /** What is different, for people. */
  readonly reasons: readonly string[];
  readonly operations: readonly TransactionOperation[];
  /** When the default gets another content: that, and the version it takes the place of. */
  readonly newDefault: { readonly content: string; readonly instead: number } | null;
  /** What the operations were planned on. */
  readonly condition: NonNullable<TransactionRequest["if"]>[number] | null;
}

export interface Plan {
  readonly tenant: string;
  readonly create: TenantCreate | null;
  readonly update: TenantUpdate | null;
  readonly keys: readonly ManifestKey[];
  /** The tenant first, then keys, namespaces, configs. */
  readonly steps: readonly PlanStep[];
}

export interface Progress {
  readonly tenant: string;
  readonly phase: "read" | "apply";
  readonly done: number;
  readonly total: number;
}

export type OnProgress = (progress: Progress) => void;

const readsAtOnce = 8;

/** Compares a manifest with what the server has. */
export async function planManifest(
  admin: Admin,
  manifest: Manifest,
  onProgress: OnProgress = () => undefined,
  /** Whether configs that the manifest does not name are deleted. */
  prune = false,
): Promise<Plan> {
  const { tenant, description, replicas, quotas } = manifest;
  const present = await orNull(admin.tenant(tenant));
  if (present !== null && present.deletedAt !== null)
    throw new Problem(
      "tenant-deleted",
      `Undelete tenant ${tenant} first (\`conflux tenants undelete ${tenant}\`), or take its manifest away`,
    );
  const steps: PlanStep[] = [];
  let update: TenantUpdate | null = null;
  const reasons: string[] = [];
  if (present !== null) {
    const newDescription = description !== undefined && description !== present.description;
    const newQuotas =
      quotas !== undefined && !isDeepStrictEqual({ ...present.quotas, ...quotas }, present.quotas);
    if (newDescription) reasons.push("description");
    if (newQuotas) reasons.push("quotas");
    if (newDescription || newQuotas)
      update = {
        ...(newDescription && { description }),
        ...(newQuotas && { quotas: { ...present.quotas, ...quotas } }),
      };
  }
  steps.push({
    kind: "tenant",
    namespace: "",
    name: tenant,
    action: present === null ? "create" : update === null ? "unchanged" : "update",
    reasons,
    operations: [],
    newDefault: null,
    condition: null,
  });

  const keys = await missingKeys(admin, manifest, present !== null);
  for (const { name } of keys) steps.push({ ...nothing, kind: "key", name, action: "create" });
  for (const namespace of manifest.namespaces) {
    const step = await planNamespace(admin, tenant, namespace, present !== null);
    if (step !== null) steps.push(step);
  }

  const wanted = manifest.namespaces.flatMap(({ namespace, configs }) =>
    configs.map((config) => ({ where: { tenant, namespace }, config })),
  );
  let done = 0;
  for (let at = 0; at < wanted.length; at += readsAtOnce) {
    const planned = await Promise.all(
      wanted.slice(at, at + readsAtOnce).map(async ({ where, config }) => {
        const held = present === null ? null : await orNull(admin.config(where, config.name));
        const versions = held === null ? [] : await versionsOf(admin, where, config, held);
        return planConfig(where.namespace, config, held, versions);
      }),
    );
    steps.push(...planned);
    done += planned.length;
    onProgress({ tenant, phase: "read", done, total: wanted.length });
  }
  if (prune && present !== null) steps.push(...(await planPrune(admin, manifest)));
  return {
    tenant,
    keys,
    create:
      present !== null
        ? null
        : {
            id: tenant,
            ...(description !== undefined && { description }),
            ...(replicas !== undefined && { replicas }),
            ...(quotas !== undefined && { quotas }),
          },
    update,
    steps,
  };
}

const nothing = {
  namespace: "",
  reasons: [],
  operations: [],
  newDefault: null,
  condition: null,
} as const;

/** @throws Problem `conflict` for a key that is there and may something else */
async function missingKeys(
  admin: Admin,
  { tenant, keys }: Manifest,
  tenantExists: boolean,
): Promise<readonly ManifestKey[]> {
  if (keys.length === 0 || !tenantExists) return keys;
  const held = new Map((await admin.keys(tenant)).map((key) => [key.description, key]));
  return keys.filter(({ name, kind, namespaces = null }) => {
    const key = held.get(name);
    if (key === undefined) return true;
    const isSame =
      key.kind === kind &&
      isDeepStrictEqual(key.namespaces?.toSorted() ?? null, namespaces?.toSorted() ?? null);
    if (!isSame)
      throw new Problem(
        "conflict",
        `Give key ${name} another name in the manifest, or delete it first (\`conflux keys delete ${key.id}\`): it is there with other rights, and those cannot be changed`,
      );
    return false;
  });
}

/**
 * A key's name is no condition that the server could hold a change to, so of two that apply the same at once each would
 * make one. The Idempotency-Key says what is made, and so both are given the same key.
 * @throws Problem `conflict` when somebody else made it meanwhile
 */
async function createKeyOnce(admin: Admin, tenant: string, wanted: KeyCreate): Promise<KeyCreated> {
  const of: unknown[] = ["conflux apply", tenant, wanted];
  for (;;) {
    const idempotencyKey = `apply-${createHash("sha256").update(JSON.stringify(of)).digest("hex")}`;
    const made = await admin
      .createKey(tenant, wanted, { idempotencyKey })
      .catch((error: unknown) => {
        // Only who made it with the same key of his own may be told the token.
        if (error instanceof Problem && error.code === "idempotency-mismatch") return null;
        throw error;
      });
    const held = await admin.keys(tenant);
    if (made !== null && held.some(({ id }) => id === made.id)) return made;
    if (held.some(({ description }) => description === wanted.description))
      throw new Problem(
        "conflict",
        `Key ${wanted.description} was made by somebody else meanwhile`,
      );
    // What was answered is of an earlier time, and deleted since.
    of.push(made?.id ?? randomUUID());
  }
}

async function planPrune(admin: Admin, { tenant, namespaces }: Manifest): Promise<PlanStep[]> {
  const kept = new Set(
    namespaces.flatMap(({ namespace, configs }) =>
      configs.map(({ name }) => `${namespace}/${name}`),
    ),
  );
  const steps: PlanStep[] = [];
  for (const { namespace } of await admin.namespaces(tenant))
    for (const config of await admin.configs({ tenant, namespace })) {
      const { name, secret } = config;
      // Secret configs never stand in manifests, so that one is not named means nothing.
      if (secret || kept.has(`${namespace}/${name}`)) continue;
      const target = { namespace, name };
      steps.push({
        ...nothing,
        ...target,
        kind: "config",
        action: "delete",
        operations: [{ op: "config.delete", ...target }],
        condition: conditionOf(config),
      });
    }
  return steps;
}

/** That it still is as it was read. Servers before level 9 tell no tag. */
export function conditionOf({
  namespace,
  name,
  etag,
  revision,
}: ConfigAnswer): NonNullable<TransactionRequest["if"]>[number] {
  return { namespace, name, ...(etag === undefined ? { revision } : { etag }) };
}

interface HeldVersion {
  readonly version: number;
  readonly hash: string;
}

/** Versions that there are, oldest first, as far as the manifest needs them. */
async function versionsOf(
  admin: Admin,
  where: Where,
  config: ManifestConfig,
  held: ConfigDetailAnswer,
): Promise<readonly HeldVersion[]> {
  const { latestHash, latestVersion } = held;
  const named = [held.default, ...held.rules.map(({ version }) => version)];
  const isEnough =
    named.every((version) => version === null || version === latestVersion) &&
    [...config.variants.values()].every(({ hash }) => hash === latestHash);
  if (isEnough) return latestHash === null ? [] : [{ version: latestVersion, hash: latestHash }];
  const all = await admin.versions(where, config.name);
  return all.toSorted((a, b) => a.version - b.version);
}

/** The least change that makes `held` what the manifest wants. Pure. */
export function planConfig(
  namespace: string,
  config: ManifestConfig,
  held: ConfigDetailAnswer | null,
  /** Of `held`, oldest first. */
  versions: readonly HeldVersion[],
): PlanStep {
  return new ConfigPlan(namespace, config, held, versions).step();
}

type ConfigPut = TransactionOperation & { readonly op: "config.put" };
type ManifestRelease = NonNullable<ManifestConfig["release"]>;

/** Gathers the operations on one config, in the order in which they are to be done, and why each is. */
class ConfigPlan {
  readonly #config: ManifestConfig;
  readonly #held: ConfigDetailAnswer | null;
  readonly #target: { readonly namespace: string; readonly name: string };
  /** By content; of versions with the same one, the newest. Those to be made are among them once they are planned. */
  readonly #numbers: Map<string, number>;
  readonly #hashes: ReadonlyMap<number, string>;
  /** Variants to be made that are not held against the schema: it is put after them, and what was there is off meanwhile. */
  readonly #older: readonly (readonly [string, Variant])[];
  readonly #finalSchema: unknown;
  readonly #isSchemaLate: boolean;
  readonly #operations: TransactionOperation[] = [];
  readonly #reasons: string[] = [];

  constructor(
    namespace: string,
    config: ManifestConfig,
    held: ConfigDetailAnswer | null,
    versions: readonly HeldVersion[],
  ) {
    this.#config = config;
    this.#held = held;
    this.#target = { namespace, name: config.name };
    this.#numbers = new Map(versions.map(({ hash, version }) => [hash, version]));
    this.#hashes = new Map(versions.map(({ hash, version }) => [version, hash]));
    this.#older = [...config.variants].filter(
      ([, one]) => one.beforeSchema === true && !this.#numbers.has(one.hash),
    );
    this.#finalSchema = config.schema === undefined ? (held?.schema ?? null) : config.schema;
    this.#isSchemaLate = this.#older.length > 0 && this.#finalSchema !== null;
  }

  step(): PlanStep {
    const held = this.#held;
    if (held === null) this.#create();
    else this.#changeMetadata(held);
    this.#makeVersions();
    const { release } = this.#config;
    if (release !== undefined) this.#release(release);
    return {
      kind: "config",
      ...this.#target,
      newDefault: this.#newDefault(),
      action: held === null ? "create" : this.#operations.length > 0 ? "update" : "unchanged",
      reasons: this.#reasons,
      operations: this.#operations,
      condition: held === null ? { ...this.#target, absent: true } : conditionOf(held),
    };
  }

  #put(fields: Omit<ConfigPut, "op" | "namespace" | "name">): void {
    this.#operations.push({ op: "config.put", ...this.#target, ...fields });
  }

  #create(): void {
    const { format, description, tags, schema } = this.#config;
    this.#put({
      format,
      ...(description !== undefined && { description }),
      ...(tags !== undefined && { tags }),
      ...(schema !== undefined && schema !== null && !this.#isSchemaLate && { schema }),
    });
  }

  #changeMetadata(held: ConfigDetailAnswer): void {
    const { format, description, tags, schema } = this.#config;
    const changed: string[] = [];
    if (format !== held.format) changed.push("format");
    if (description !== undefined && description !== held.description) changed.push("description");
    if (tags !== undefined && !isDeepStrictEqual(tags, { ...held.tags })) changed.push("tags");
    if (schema !== undefined && !isDeepStrictEqual(schema, held.schema ?? null))
      changed.push("schema");
    if (changed.length === 0 && !this.#isSchemaLate) return;
    this.#put({
      ...(changed.includes("format") && { format }),
      ...(changed.includes("description") && { description }),
      ...(changed.includes("tags") && { tags }),
      ...(this.#isSchemaLate ? { schema: null } : changed.includes("schema") && { schema }),
    });
    this.#reasons.push(...changed);
  }

  #makeVersions(): void {
    this.#makeEach(this.#older);
    if (this.#isSchemaLate) this.#put({ schema: this.#finalSchema });
    // Those that are made already are passed by.
    this.#makeEach([...this.#config.variants]);
  }

  #makeEach(variants: readonly (readonly [string, Variant])[]): void {
    for (const [variant, { content, hash, message }] of variants) {
      if (this.#numbers.has(hash)) continue;
      // Known beforehand: the next one, as long as the condition holds.
      const made = this.#operations.filter(({ op }) => op === "version.create").length;
      this.#numbers.set(hash, (this.#held?.latestVersion ?? 0) + made + 1);
      this.#operations.push({
        op: "version.create",
        ...this.#target,
        content,
        ...(message !== undefined && { message }),
      });
      const isOnly = this.#config.variants.size === 1;
      if (this.#held !== null) this.#reasons.push(isOnly ? "content" : `content of ${variant}`);
    }
  }

  #release(release: ManifestRelease): void {
    const held = this.#held;
    const wanted = {
      rules:
        release.rules === null
          ? (held?.rules ?? [])
          : release.rules.map((rule) => {
              const present = held?.rules.find(({ id }) => id === rule.id)?.version;
              return ruleWith(rule, this.#numberOf(rule.variant, present), held);
            }),
      default: release.default === null ? null : this.#numberOf(release.default, held?.default),
    };
    const isNew = held === null || held.release === null;
    const newRules = isNew || !isDeepStrictEqual(plain(wanted.rules), plain(held.rules));
    const newDefault = isNew || wanted.default !== held.default;
    if (!newRules && !newDefault) return;
    this.#operations.push({
      op: "release.put",
      ...this.#target,
      ...wanted,
    } as TransactionOperation);
    if (!isNew && newRules) this.#reasons.push("rules");
    if (!isNew && newDefault && this.#reasons.length === 0) this.#reasons.push("default");
    if (held !== null && isNew) this.#reasons.push("release");
  }

  /** @param present named so far; it stays when it has that content */
  #numberOf(variant: string, present: number | null | undefined): number {
    const { hash } = this.#config.variants.get(variant) as Variant;
    const isSame = typeof present === "number" && this.#hashes.get(present) === hash;
    return isSame ? present : (this.#numbers.get(hash) as number);
  }

  #newDefault(): PlanStep["newDefault"] {
    const { release, variants } = this.#config;
    const named = release?.default ?? null;
    const after = named === null ? undefined : variants.get(named);
    const before = this.#held?.default ?? null;
    const isOther =
      after !== undefined && before !== null && this.#hashes.get(before) !== after.hash;
    return isOther ? { content: after.content, instead: before } : null;
  }
}

/** A manifest's rule as the API has it. What the server fixed when it first saw the rule stays as it is. */
function ruleWith(
  { variant: _variant, ...rule }: ManifestRule,
  version: number,
  held: ConfigDetailAnswer | null,
): ReleaseRule {
  if (rule.rollout === undefined) return { ...rule, version };
  const before = held?.rules.find(({ id }) => id === rule.id)?.rollout;
  const salt = rule.rollout.salt ?? before?.salt;
  const algorithm = rule.rollout.algorithm ?? before?.algorithm;
  return {
    ...rule,
    rollout: {
      ...rule.rollout,
      ...(salt !== undefined && { salt }),
      ...(algorithm !== undefined && { algorithm }),
    },
    version,
  };
}

/** Without prototypes and undefined fields, which the comparison would take for differences. */
function plain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value)) as unknown;
}

/** Null for what is not there. */
export async function orNull<T>(answer: Promise<T>): Promise<T | null> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof Problem && error.code === "not-found") return null;
    throw error;
  }
}

async function planNamespace(
  admin: Admin,
  tenant: string,
  manifest: ManifestNamespace,
  tenantExists: boolean,
): Promise<PlanStep | null> {
  const { namespace } = manifest;
  const wanted = {
    ...(manifest.extends !== undefined && { extends: manifest.extends }),
    ...(manifest.protected !== undefined && { protected: manifest.protected }),
  };
  if (Object.keys(wanted).length === 0 && manifest.configs.length > 0) return null;
  const held = tenantExists ? await orNull(admin.namespace({ tenant, namespace })) : null;
  const reasons: string[] = [];
  if (held !== null) {
    if (wanted.extends !== undefined && wanted.extends !== held.extends) reasons.push("extends");
    if (wanted.protected !== undefined && wanted.protected !== held.protected)
      reasons.push("protected");
  }
  const isChange = held === null || reasons.length > 0;
  return {
    kind: "namespace",
    namespace,
    name: "",
    action: held === null ? "create" : isChange ? "update" : "unchanged",
    reasons,
    operations: isChange ? [{ op: "namespace.put", namespace, ...wanted }] : [],
    newDefault: null,
    condition: null,
  };
}

// --- execute --------------------------------------------------------------------------------------------------------------

export interface Applied {
  readonly tenant: string;
  readonly steps: readonly PlanStep[];
  /** Of a tenant that was created: shown this once. */
  readonly adminKey: { readonly id: string; readonly token: string } | null;
  /** The tenant's revision after the last change; null when nothing changed. */
  readonly revision: number | null;
}

/** How often a tenant is planned anew when somebody else changes it at the same time. */
const plansMax = 4;
/** With a condition for each at most, as many as the server takes. */
const operationsAtOnce = 250;
/** A transaction is one log entry: kept well below what the server takes. */
const charsAtOnce = 2 * 1024 * 1024;

export interface ApplyOptions {
  readonly onProgress?: OnProgress;
  /**
   * Hears of every key that was made, also when what follows fails: nobody can ask for it again. Without it no keys are
   * made but the admin's of a new tenant. `name` null: that one.
   */
  readonly onKey?: (tenant: string, name: string | null, token: string) => void;
  readonly prune?: boolean;
}

/** Makes one manifest true. */
export async function applyManifest(
  admin: Admin,
  manifest: Manifest,
  { onProgress = () => undefined, onKey, prune = false }: ApplyOptions = {},
): Promise<Applied> {
  let adminKey: Applied["adminKey"] = null;
  let revision: number | null = null;
  // What was changed by an earlier plan of this run is not "unchanged" in the summary.
  const changed = new Map<string, PlanStep>();
  for (let round = 1; ; round += 1) {
    const plan = await planManifest(admin, manifest, onProgress, prune);
    const { tenant } = plan;
    try {
      if (plan.create !== null) {
        const { key } = await admin.createTenant(plan.create);
        adminKey = { id: key.id, token: key.token };
        onKey?.(tenant, null, key.token);
      }
      if (plan.update !== null) await admin.updateTenant(tenant, plan.update);
      for (const step of plan.steps)
        if (step.kind === "tenant" && step.action !== "unchanged") changed.set(keyOf(step), step);
      for (const { name, kind, namespaces } of onKey === undefined ? [] : plan.keys) {
        const key = await createKeyOnce(admin, tenant, {
          kind,
          description: name,
          ...(namespaces !== undefined && { namespaces: [...namespaces] }),
        });
        onKey?.(tenant, name, key.token);
        const step: PlanStep = { ...nothing, kind: "key", name, action: "create" };
        changed.set(keyOf(step), step);
      }
      const steps = plan.steps.filter(({ operations }) => operations.length > 0);
      let done = 0;
      for (const batch of batches(steps)) {
        const answer = await admin.transaction(tenant, {
          if: batch.flatMap(({ condition }) => (condition === null ? [] : [condition])),
          then: batch.flatMap(({ operations }) => operations),
        });
        revision = answer.revision;
        for (const step of batch) changed.set(keyOf(step), step);
        done += batch.length;
        onProgress({ tenant, phase: "apply", done, total: steps.length });
      }
      return {
        tenant,
        steps: plan.steps.map((step) => changed.get(keyOf(step)) ?? step),
        adminKey,
        revision,
      };
    } catch (error) {
      if (!(error instanceof Problem && movedMeanwhile(error)) || round === plansMax) throw error;
    }
  }
}

function keyOf({ kind, namespace, name }: PlanStep): string {
  return `${kind}/${namespace}/${name}`;
}

/** Somebody else changed what the plan was made on (or made it true already). */
function movedMeanwhile({ code }: Problem): boolean {
  return code === "precondition-failed" || code === "conflict" || code === "already-exists";
}

/** Steps that go into one transaction each, in order. A config is never split: its version numbers were counted. */
function* batches(steps: readonly PlanStep[]): Generator<PlanStep[]> {
  let batch: PlanStep[] = [];
  let operations = 0;
  let chars = 0;
  for (const step of steps) {
    const stepChars = JSON.stringify(step.operations).length;
    const isFull =
      operations + step.operations.length > operationsAtOnce || chars + stepChars > charsAtOnce;
    if (isFull && batch.length > 0) {
      yield batch;
      [batch, operations, chars] = [[], 0, 0];
    }
    batch.push(step);
    operations += step.operations.length;
    chars += stepChars;
  }
  if (batch.length > 0) yield batch;
}

/**
 * Makes all manifests of a folder (or one) true, through anything that answers requests: the gateway of this process,
 * before it listens. A tenant that cannot be made so does not keep the others from it, nor the node from starting.
 * @returns a line per tenant that says what was done
 * @throws ManifestError before anything is changed
 */
export async function applyDirectory(options: {
  readonly folder: string;
  readonly token: string;
  readonly url: string;
  readonly fetch: (request: Request) => Promise<Response>;
}): Promise<string> {
  const { folder, token, url, fetch } = options;
  const manifests = await readManifests(folder);
  const admin = new Admin({ url, token, fetch: (to, init) => fetch(new Request(to, init)) });
  const lines: string[] = [];
  for (const manifest of manifests) {
    try {
      lines.push(summaryOf(await applyManifest(admin, manifest)));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      lines.push(`${manifest.tenant}: not applied: ${error.message} (${error.code})`);
    }
  }
  return lines.join("\n");
}

/** `acme: 2 created, 1 updated, 4 unchanged`, counting configs. */
export function summaryOf({ tenant, steps }: Pick<Applied, "tenant" | "steps">): string {
  const count = (action: PlanAction): number =>
    steps.filter((step) => step.kind === "config" && step.action === action).length;
  const isNew = steps.some((step) => step.kind === "tenant" && step.action === "create");
  const deleted = count("delete");
  const counts = `${count("create")} created, ${count("update")} updated, ${deleted > 0 ? `${deleted} deleted, ` : ""}${count("unchanged")} unchanged`;
  return `${tenant}${isNew ? " (new)" : ""}: ${counts}`;
}
