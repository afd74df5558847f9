/**
 * What answers in a namespace, kept ready between requests: its released configs, inherited ones included, with the
 * versions that were asked for, parsed and compiled.
 *
 * What must stay true: a set shows the state of the view it is taken from. It is built from one view, and taken again
 * for a later revision only when the history says that nothing of it changed; times in rules pass by commits, so labels
 * and revision alone decide. Versions never change, so they outlive the set. All of it can be thrown away at any moment.
 */
import { createHash } from "node:crypto";
import type { EffectiveValue } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import { versionKey } from "../machine/keys.ts";
import { effectiveConfigs, getText, historyAfter, namespaceChain } from "../machine/queries.ts";
import type { ConfigRow, StoredChange, VersionRow } from "../machine/rows.ts";
import { judgedAt } from "../machine/schedules.ts";
import { evaluate } from "../model/evaluate.ts";
import { Flag, type FlagCall, type FlagDefinition, type Resolution } from "../model/flags.ts";
import type { Labels } from "../model/release.ts";

export interface NamespaceSetsLimits {
  /** Contents held, all sets together; what is in use longest ago goes first. */
  readonly bytesMax: number;
  readonly setsMax: number;
}

const limitsDefault: NamespaceSetsLimits = { bytesMax: 64 * 1024 * 1024, setsMax: 10_000 };
/** What a config costs beside its content, and how often a content may be held: as text, value and encoded. */
const memberBytesAssumed = 1_000;
const copiesAssumed = 4;
/** A set that is further behind is built anew: reading that much history would cost as much. */
const revisionsBehindMax = 1_000;

/** Which version these labels get, and by which rule. */
export interface Chosen {
  readonly content: Content;
  readonly rule: string | null;
}

/** One version, read once. */
export class Content {
  readonly name: string;
  readonly row: VersionRow;
  readonly text: string;
  #value: { readonly value: unknown } | null = null;
  #flag: Flag | null = null;
  readonly #resolutions = new Map<Resolution["reason"], Resolution>();
  #json: string | null = null;

  constructor(name: string, row: VersionRow, text: string) {
    this.name = name;
    this.row = row;
    this.text = text;
  }

  /** Name and value as a field of `Values`, encoded once. */
  get json(): string {
    this.#json ??= this.#encode({ content: this.text });
    return this.#json;
  }

  get jsonWithoutText(): string {
    return this.#encode({});
  }

  #encode(more: { readonly content?: string }): string {
    const { version, hash, format } = this.row;
    const value: EffectiveValue = { version, hash, format, ...more };
    return `${JSON.stringify(this.name)}:${JSON.stringify(value)}`;
  }

  get isFlag(): boolean {
    return this.row.format === "flag";
  }

  /** JSON as its value, other formats as text: what the SDK gives. */
  get value(): unknown {
    this.#value ??= {
      value: this.row.format === "json" || this.isFlag ? JSON.parse(this.text) : this.text,
    };
    return this.#value.value;
  }

  get flag(): Flag {
    this.#flag ??= new Flag(this.name, this.value as FlagDefinition);
    return this.#flag;
  }

  /**
   * What evaluation gives. A config that is no flag is one all the same, with its versions as variants and the release
   * rules as targeting; null is nobody's value, so there the default of the code applies.
   */
  resolve(call: FlagCall, member: Member, rule: string | null): Resolution {
    if (this.isFlag) return this.flag.evaluate(call);
    const reason = rule !== null ? "TARGETING_MATCH" : member.hasRules ? "DEFAULT" : "STATIC";
    let resolution = this.#resolutions.get(reason);
    if (resolution === undefined) {
      const { value } = this;
      const { version } = this.row;
      resolution = {
        key: this.name,
        reason,
        ...(value !== null && { value, variant: `v${version}` }),
        encoded: null,
      };
      this.#resolutions.set(reason, resolution);
    }
    return resolution;
  }
}

/** A config that answers in the namespace. */
export class Member {
  readonly config: ConfigRow;
  readonly #contents: Map<number, Content>;
  readonly #took: (bytes: number) => void;

  /** @param contents of this config, by version, from the set before */
  constructor(config: ConfigRow, contents: Map<number, Content>, took: (bytes: number) => void) {
    this.config = config;
    this.#contents = contents;
    this.#took = took;
  }

  get contents(): Map<number, Content> {
    return this.#contents;
  }

  get hasRules(): boolean {
    return this.config.rules.length > 0;
  }

  /** Null: nothing is released for these labels. */
  choose(view: TenantView, labels: Labels): Chosen | null {
    const { config } = this;
    const { version, rule } = this.hasRules
      ? evaluate(config, labels, judgedAt(config))
      : { version: config.default, rule: null };
    if (version === null) return null;
    const content = this.#contents.get(version) ?? this.#read(view, version);
    return content === null ? null : { content, rule };
  }

  #read(view: TenantView, version: number): Content | null {
    const { namespace, name } = this.config;
    const row = view.get<VersionRow>(versionKey(namespace, name, version));
    const text = row === undefined ? null : getText(view, namespace, name, version);
    if (row === undefined || text === null) return null;
    const content = new Content(name, row, text);
    this.#contents.set(version, content);
    this.#took(row.bytes * copiesAssumed);
    return content;
  }
}

export class NamespaceSet {
  readonly epoch: number;
  /** It shows this revision, and those before down to its last change. */
  revision: number;
  readonly chain: readonly string[];
  /** Those that are not secret. */
  readonly members: readonly Member[];
  /** Their contents are sealed, and never kept here in plain. */
  readonly secrets: readonly ConfigRow[];
  readonly #byName: ReadonlyMap<string, Member>;
  /** Labels that some rule looks at. */
  readonly labelNames: readonly string[];
  /** Equal marks: the same configs in the same state. */
  readonly mark: string;
  /** What it holds. */
  bytes = 0;

  /** @param before of the same history; @param counted is told of bytes that it holds from now on */
  constructor(
    view: TenantView,
    namespace: string,
    before: NamespaceSet | null,
    counted: (bytes: number) => void,
  ) {
    const took = (bytes: number): void => {
      this.bytes += bytes;
      counted(bytes);
    };
    this.epoch = view.epoch;
    this.revision = view.revision;
    this.chain = namespaceChain(view, namespace);
    const all = effectiveConfigs(view, namespace);
    const configs = all.filter((config) => config.secret !== true);
    this.secrets = all.filter((config) => config.secret === true);
    took(configs.length * memberBytesAssumed);
    this.members = configs.map((config) => {
      const known = before?.find(config.name);
      const contents = new Map<number, Content>();
      if (known?.config.uid === config.uid)
        // Of the others nobody may ask any more.
        for (const version of [config.default, ...config.rules.map((rule) => rule.version)]) {
          const content = version === null ? undefined : known.contents.get(version);
          if (content === undefined || contents.has(content.row.version)) continue;
          contents.set(content.row.version, content);
          took(content.row.bytes * copiesAssumed);
        }
      return new Member(config, contents, took);
    });
    this.#byName = new Map(this.members.map((member) => [member.config.name, member]));
    const names = new Set<string>();
    const digest = createHash("sha256").update(this.chain.join("/"));
    for (const config of all) {
      for (const rule of config.rules) {
        for (const name of Object.keys(rule.match)) names.add(name);
        if (rule.rollout !== undefined) names.add(rule.rollout.by);
      }
      digest.update(`\n${config.namespace}/${config.name} ${config.uid} ${config.revision}`);
      digest.update(` ${config.rules.length === 0 ? "" : judgedAt(config)}`);
    }
    this.labelNames = [...names];
    this.mark = digest.digest("base64url");
  }

  find(name: string): Member | null {
    return this.#byName.get(name) ?? null;
  }

  /** Whether a change may have changed it. */
  concerns(change: StoredChange): boolean {
    return concernsChain(this.chain, change);
  }
}

/** Whether a change may change what answers where these namespaces are asked. */
export function concernsChain(chain: readonly string[], change: StoredChange): boolean {
  switch (change.type) {
    case "release":
    case "schedule":
    case "delete":
    case "undelete":
    case "namespace":
    // Its row says when it last changed, and what it is called by.
    case "put":
      return chain.includes(change.namespace);
    default:
      return false;
  }
}

export class NamespaceSets {
  readonly #limits: NamespaceSetsLimits;
  /** In order of use. */
  readonly #sets = new Map<string, NamespaceSet>();
  #bytes = 0;

  constructor(limits: Partial<NamespaceSetsLimits> = {}) {
    this.#limits = { ...limitsDefault, ...limits };
  }

  /** Sets and bytes held. */
  get size(): { readonly sets: number; readonly bytes: number } {
    return { sets: this.#sets.size, bytes: this.#bytes };
  }

  /** As of the view. Valid with this view only: it may have to read versions from it. */
  of(view: TenantView, namespace: string): NamespaceSet {
    const key = `${view.tenant}/${namespace}`;
    const known = this.#sets.get(key) ?? null;
    const isKept = known !== null && isCurrent(known, view);
    const set = isKept ? known : this.#build(view, namespace, known);
    this.#sets.delete(key);
    this.#sets.set(key, set);
    const { bytesMax, setsMax } = this.#limits;
    for (const [oldest, { bytes }] of this.#sets) {
      if (oldest === key || (this.#sets.size <= setsMax && this.#bytes <= bytesMax)) break;
      this.#sets.delete(oldest);
      this.#bytes -= bytes;
    }
    return set;
  }

  #build(view: TenantView, namespace: string, before: NamespaceSet | null): NamespaceSet {
    if (before !== null) this.#bytes -= before.bytes;
    // A restored tenant counts on from its backup: its next version may be another than the one that was called so.
    const ofThis = before?.epoch === view.epoch ? before : null;
    return new NamespaceSet(view, namespace, ofThis, (bytes) => {
      this.#bytes += bytes;
    });
  }
}

/** Takes it to the view's revision when nothing of it changed since. */
function isCurrent(set: NamespaceSet, view: TenantView): boolean {
  if (set.epoch !== view.epoch || set.revision > view.revision) return false;
  if (set.revision === view.revision) return true;
  const rows =
    view.revision - set.revision > revisionsBehindMax ? null : historyAfter(view, set.revision);
  if (rows === null || rows.some(({ changes }) => changes.some((change) => set.concerns(change))))
    return false;
  set.revision = view.revision;
  return true;
}
