/**
 * Feature flags of Unleash: what its API gives to clients (`/api/client/features`), or what the export of its admin UI
 * holds. Activation strategies become targeting of flagd, which says who gets a flag as they did
 * (https://docs.getunleash.io/reference/activation-strategies); percentages hold, but Unleash hashes otherwise, so other
 * users are in. What cannot be said is left out with its whole strategy: nobody gets a flag who did not get it before.
 */
import { checkConfigName, shown } from "../../model/names.ts";
import { isFields, laidOut, type Fields, type ImportFile, type Importing } from "./importing.ts";

const hint = "Give the answer of /api/client/features, or an export of the admin UI";

export function fromUnleash(file: ImportFile, out: Importing): void {
  const given = out.json(file, hint);
  if (!isFields(given) || !Array.isArray(given["features"]))
    return out.fail(`/features: Give the list of features. ${hint}`);
  const features = new Map<string, Feature>();
  for (const feature of Array.isArray(given["featureEnvironments"])
    ? exported(given, out)
    : served(given, out)) {
    if (features.has(feature.name))
      out.problem(`${feature.at}: Feature ${shown(feature.name)} comes twice`);
    features.set(feature.name, feature);
  }
  const converter = new Converter(features, segmentsOf(given), out);
  for (const name of features.keys()) if (out.isWanted(name)) converter.add(name);
  converter.end();
}

// --- what Unleash says -----------------------------------------------------------------------------------------------------

interface Feature {
  /** JSON Pointer. */
  readonly at: string;
  readonly name: string;
  readonly isEnabled: boolean;
  readonly description: string;
  readonly strategies: readonly Fields[];
  readonly variants: readonly Fields[];
  readonly dependencies: readonly Fields[];
  readonly tags: Readonly<Record<string, string>>;
  readonly hasImpressions: boolean;
}

function served(given: Fields, out: Importing): Feature[] {
  return (given["features"] as unknown[]).map((one, index) => {
    const feature = objectAt(one, `/features/${index}`, out);
    return featureOf(feature, feature, {}, `/features/${index}`, out);
  });
}

/** An export has strategies, environments, tags and dependencies beside the features. */
function exported(given: Fields, out: Importing): Feature[] {
  const environments = listAt(given, "featureEnvironments", "", out);
  const known = [...new Set(environments.map((one) => one["environment"]).filter(isText))];
  const asked = out.options.environment;
  if (asked !== null && !known.includes(asked))
    out.fail(
      `--environment: There is no ${shown(asked)} in the export: it has ${known.join(", ") || "none"}`,
    );
  if (asked === null && known.length > 1)
    out.fail(`Name one by --environment: the export has ${known.join(", ")}`);
  /** Those of the environment, by the feature that they are of. */
  const byFeature = (list: readonly Fields[]): ReadonlyMap<unknown, readonly Fields[]> =>
    grouped(
      list.filter(
        ({ environment }) => asked === null || environment === undefined || environment === asked,
      ),
      (one) => one["featureName"] ?? one["feature"],
    );
  const environmentsOf = byFeature(environments);
  const strategiesOf = byFeature(listAt(given, "featureStrategies", "", out));
  const tagsOf = byFeature(listAt(given, "featureTags", "", out));
  const dependenciesOf = byFeature(listAt(given, "dependencies", "", out));
  const order = ({ sortOrder }: Fields): number => (typeof sortOrder === "number" ? sortOrder : 0);
  const features: Feature[] = [];
  for (const [index, feature] of listAt(given, "features", "", out).entries()) {
    const at = `/features/${index}`;
    const { name } = feature;
    if (feature["archived"] === true) {
      out.leftOut(String(name), "it is archived");
      continue;
    }
    const [environment] = environmentsOf.get(name) ?? [];
    const parts = {
      enabled: environment?.["enabled"] === true,
      variants: environment?.["variants"] ?? feature["variants"],
      strategies: (strategiesOf.get(name) ?? [])
        .map((one) => ({ ...one, name: one["name"] ?? one["strategyName"] }))
        .toSorted((a, b) => order(a) - order(b)),
      dependencies: (dependenciesOf.get(name) ?? []).flatMap((one) =>
        listAt(one, "dependencies", "/dependencies", out),
      ),
    };
    const tags = grouped(tagsOf.get(name) ?? [], ({ tagType }) => String(tagType ?? "tag"));
    const joinedTags = [...tags].map(
      ([type, list]) =>
        [`unleash-${type}`, list.map(({ tagValue }) => String(tagValue)).join(", ")] as const,
    );
    features.push(featureOf(feature, parts, Object.fromEntries(joinedTags), at, out));
  }
  return features;
}

function grouped<K>(list: readonly Fields[], keyOf: (one: Fields) => K): Map<K, Fields[]> {
  const groups = new Map<K, Fields[]>();
  for (const one of list) {
    const key = keyOf(one);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [one]);
    else group.push(one);
  }
  return groups;
}

function featureOf(
  feature: Fields,
  parts: Fields,
  tags: Readonly<Record<string, string>>,
  at: string,
  out: Importing,
): Feature {
  const { name, description, type, project, stale, impressionData } = feature;
  if (!isText(name)) return out.fail(`${at}/name: Give the name of the feature`);
  return {
    at,
    name,
    isEnabled: parts["enabled"] === true,
    description: isText(description) ? description : "",
    strategies: listAt(parts, "strategies", at, out),
    variants: listAt(parts, "variants", at, out),
    dependencies: listAt(parts, "dependencies", at, out),
    tags: {
      ...(isText(type) && { "unleash-type": type }),
      ...(isText(project) && { "unleash-project": project }),
      ...(stale === true && { "unleash-stale": "true" }),
      ...tags,
    },
    hasImpressions: impressionData === true,
  };
}

function segmentsOf(given: Fields): ReadonlyMap<unknown, Fields> {
  const segments = given["segments"];
  return new Map(
    (Array.isArray(segments) ? (segments as unknown[]) : [])
      .filter(isFields)
      .map((one) => [one["id"], one] as const),
  );
}

function isText(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}

function objectAt(value: unknown, at: string, out: Importing): Fields {
  return isFields(value) ? value : out.fail(`${at}: Give an object. ${hint}`);
}

/** Absent and null are empty. */
function listAt(of: Fields, name: string, at: string, out: Importing): readonly Fields[] {
  const list = of[name] ?? [];
  if (!Array.isArray(list)) return out.fail(`${at}/${name}: Give a list`);
  return (list as unknown[]).map((one, index) => objectAt(one, `${at}/${name}/${index}`, out));
}

function textsOf(value: unknown): string[] {
  if (!Array.isArray(value)) return [];
  return (value as unknown[]).filter(isText).map((text) => text.trim());
}

// --- logic -----------------------------------------------------------------------------------------------------------------

type Logic = boolean | { readonly [operator: string]: unknown };

function and(parts: readonly Logic[]): Logic {
  return parts.includes(false) ? false : joined("and", parts, true);
}

function or(parts: readonly Logic[]): Logic {
  return parts.includes(true) ? true : joined("or", parts, false);
}

/** @param neutral changes nothing, and is what is left of nothing */
function joined(operator: "and" | "or", parts: readonly Logic[], neutral: boolean): Logic {
  const open = parts
    .filter((part) => part !== neutral)
    .flatMap((part) =>
      typeof part === "object" && part[operator] ? (part[operator] as Logic[]) : [part],
    );
  return open.length === 0
    ? neutral
    : open.length === 1
      ? (open[0] as Logic)
      : { [operator]: open };
}

function not(part: Logic): Logic {
  return typeof part === "boolean" ? !part : { "!": [part] };
}

/** Whom Unleash calls the user is the target here. */
function attribute(name: string): Logic {
  // A dot in a name would be a step.
  return { var: name === "userId" ? "targetingKey" : name.replaceAll(/[\\.]/g, "\\$&") };
}

// --- conversion --------------------------------------------------------------------------------------------------------------

/** What cannot be said; the message says what it is. */
class Inexpressible extends Error {}

interface Decision {
  readonly isOn: Logic;
  /** Gives the name of a variant, or null. */
  readonly variant: unknown;
  /** Whether all strategies are in it. */
  readonly isWhole: boolean;
}

/** Of all features together, those of segments counted for each that uses them. */
const constraintsMax = 250_000;

class Converter {
  readonly #features: ReadonlyMap<string, Feature>;
  readonly #segments: ReadonlyMap<unknown, Fields>;
  readonly #out: Importing;
  readonly #decisions = new Map<string, Decision>();
  /** Those with percentages. */
  #rollouts = 0;
  #disabled = 0;
  #constraints = 0;

  constructor(
    features: ReadonlyMap<string, Feature>,
    segments: ReadonlyMap<unknown, Fields>,
    out: Importing,
  ) {
    this.#features = features;
    this.#segments = segments;
    this.#out = out;
  }

  add(key: string): void {
    const feature = this.#features.get(key) as Feature;
    const out = this.#out;
    const name = out.nameOf(key);
    if (name === null) return;
    const { isOn, variant } = this.#withParents(feature);
    const state = feature.isEnabled ? "ENABLED" : "DISABLED";
    if (!feature.isEnabled) this.#disabled += 1;
    if (JSON.stringify([isOn, variant]).includes('"fractional"')) this.#rollouts += 1;
    if (name !== key)
      out.note(key, `its name is ${name} now: that is the key that clients have to ask for`);
    if (feature.hasImpressions)
      out.leftOut(key, "that clients tell about impressions: there is nothing like it");
    const common = {
      key,
      format: "flag",
      description: feature.description,
      tags: feature.tags,
    } as const;
    const flag = {
      state,
      variants: { on: true, off: false },
      defaultVariant: isOn === true ? "on" : "off",
      ...(typeof isOn !== "boolean" && { targeting: { if: [isOn, "on", "off"] } }),
    };
    out.add({ ...common, name, content: laidOut(flag) });
    const all = [
      feature.variants,
      ...feature.strategies.map((one) => listAt(one, "variants", feature.at, out)),
    ].flat();
    if (all.length === 0) return;
    const variantKey = `${key}.variant`;
    const variantName = out.options.renames.has(variantKey)
      ? out.nameOf(variantKey)
      : `${name}.variant`;
    if (variantName === null) return;
    if (checkConfigName(variantName) !== null)
      return out.problem(
        `${shown(variantKey)}: Its name would be too long: give it one of 128 characters at most by --rename KEY=NAME`,
      );
    out.note(key, `says whether it is on; its variants are flag ${variantName}`);
    const values = variantValues(variantKey, all, out);
    const variantFlag = {
      state,
      variants: Object.fromEntries(values),
      // Where there is none Unleash gives "disabled", that is the default of the code.
      defaultVariant: null,
      ...(isFields(variant) && { targeting: variant }),
      ...(isText(variant) && { defaultVariant: variant }),
    };
    out.add({
      ...common,
      key: variantKey,
      name: variantName,
      content: laidOut(variantFlag),
    });
  }

  end(): void {
    if (this.#rollouts > 0)
      this.#out.note(
        "",
        `${this.#rollouts} ${this.#rollouts === 1 ? "flag has" : "flags have"} percentages: as many users are in as before, but not the same ones, as Unleash hashes otherwise. Whom Unleash would decide about at random, without a user or session, is not in`,
      );
    if (this.#disabled > 0)
      this.#out.note(
        "",
        `${this.#disabled} ${this.#disabled === 1 ? "flag is" : "flags are"} disabled: clients get the default of their code, which is false where it was right for Unleash`,
      );
  }

  // --- who gets it

  /** As the strategies say, the switch of the environment left aside. */
  #decision(feature: Feature): Decision {
    const known = this.#decisions.get(feature.name);
    if (known !== undefined) return known;
    const made = this.#decided(feature);
    this.#decisions.set(feature.name, made);
    return made;
  }

  #decided(feature: Feature): Decision {
    const { name, variants, at } = feature;
    const active = feature.strategies.filter((one) => one["disabled"] !== true);
    const shared =
      variants.length === 0
        ? null
        : this.#pick(name, variants, feature.variants[0]?.["stickiness"]);
    // Without strategies a feature is on for everybody; when all are switched off, for nobody.
    if (feature.strategies.length === 0) return { isOn: true, variant: shared, isWhole: true };
    if (active.length === 0)
      this.#out.note(name, "all its strategies are disabled: it is off for everybody");
    const conditions: Logic[] = [];
    const branches: unknown[] = [];
    let isWhole = true;
    for (const [index, strategy] of active.entries())
      try {
        const condition = this.#strategy(strategy, feature);
        const own = listAt(strategy, "variants", `${at}/strategies/${index}`, this.#out);
        conditions.push(condition);
        const parameters = isFields(strategy["parameters"]) ? strategy["parameters"] : {};
        const stickiness = own[0]?.["stickiness"] ?? parameters["stickiness"];
        const group = isText(parameters["groupId"]) ? parameters["groupId"] : name;
        branches.push(condition, own.length === 0 ? shared : this.#pick(group, own, stickiness));
      } catch (error) {
        if (!(error instanceof Inexpressible)) throw error;
        isWhole = false;
        this.#out.leftOut(
          name,
          `its strategy ${shown(String(strategy["title"] || strategy["name"]))} (${error.message}): who got it only by that gets it no more`,
        );
      }
    return { isOn: or(conditions), variant: chain(branches), isWhole };
  }

  /** A feature that depends on others is on where they are as it wants them. */
  #withParents(feature: Feature): Decision {
    const own = this.#decision(feature);
    if (feature.dependencies.length === 0) return own;
    try {
      const wanted = and(feature.dependencies.map((one) => this.#parent(one)));
      const names = feature.dependencies.map((one) => shown(String(one["feature"]))).join(", ");
      this.#out.note(
        feature.name,
        `depends on ${names}, whose targeting is copied into it: change both`,
      );
      return { ...own, isOn: and([wanted, own.isOn]), variant: chain([wanted, own.variant]) };
    } catch (error) {
      if (!(error instanceof Inexpressible)) throw error;
      this.#out.leftOut(feature.name, `${error.message}: it is off for everybody`);
      return { isOn: false, variant: null, isWhole: false };
    }
  }

  #parent({ feature: name, enabled, variants }: Fields): Logic {
    const parent = this.#features.get(String(name));
    if (parent === undefined)
      throw new Inexpressible(`it depends on ${shown(String(name))}, which is not in the export`);
    // Unleash goes one step only.
    if (parent.dependencies.length > 0) return false;
    const { isOn, variant, isWhole } = this.#decision(parent);
    if (enabled !== false) {
      if (!parent.isEnabled) return false;
      const names = textsOf(variants);
      if (names.length === 0) return isOn;
      // Without a variant Unleash says "disabled".
      const isNone = names.includes("disabled") && (variant === null || { "!": [variant] });
      return and([isOn, or([variant !== null && { in: [variant, names] }, isNone])]);
    }
    if (!parent.isEnabled) return true;
    if (!isWhole)
      throw new Inexpressible(
        `it wants ${shown(parent.name)} to be off, of which a strategy is left out`,
      );
    return not(isOn);
  }

  /** @throws Inexpressible */
  #strategy(strategy: Fields, feature: Feature): Logic {
    const parameters = isFields(strategy["parameters"]) ? strategy["parameters"] : {};
    const constraints = this.#constraintsOf(strategy, feature.at);
    const segments = Array.isArray(strategy["segments"]) ? (strategy["segments"] as unknown[]) : [];
    for (const id of segments) {
      const segment = this.#segments.get(id);
      if (!Array.isArray(segment?.["constraints"]))
        throw new Inexpressible(
          `segment ${shown(String(segment?.["name"] ?? id))}, whose constraints are not in the export (/api/client/features has them)`,
        );
      for (const one of this.#constraintsOf(segment, "/segments")) constraints.push(one);
    }
    return and([...constraints, this.#activation(strategy["name"], parameters, feature)]);
  }

  /** @throws Inexpressible */
  #constraintsOf(of: Fields, at: string): Logic[] {
    const list = listAt(of, "constraints", at, this.#out);
    this.#constraints += 1 + list.length;
    if (this.#constraints > constraintsMax)
      this.#out.fail(
        `Import ${constraintsMax} constraints at most at once: take a part by --prefix`,
      );
    return list.map(constraint);
  }

  #activation(strategy: unknown, parameters: Fields, feature: Feature): Logic {
    const out = this.#out;
    const group = isText(parameters["groupId"]) ? parameters["groupId"] : "";
    const atRandom = (): void =>
      out.note(feature.name, "a percentage that was drawn anew each time sticks to the user here");
    switch (strategy) {
      case "default":
        return true;
      case "flexibleRollout": {
        const { rollout, stickiness = "default" } = parameters;
        if (stickiness === "random") atRandom();
        return rolledOut(rollout, group || feature.name, stickiness);
      }
      case "gradualRolloutUserId":
        return rolledOut(parameters["percentage"], group, "userId");
      case "gradualRolloutSessionId":
        return rolledOut(parameters["percentage"], group, "sessionId");
      case "gradualRolloutRandom":
        atRandom();
        return rolledOut(parameters["percentage"], group || feature.name, "default");
      case "userWithId":
        return oneOf("userId", splitList(parameters["userIds"]));
      case "remoteAddress": {
        const addresses = splitList(parameters["IPs"]);
        const odd = addresses.filter(isOddRange);
        if (odd.length > 0)
          out.leftOut(
            feature.name,
            `the ranges ${odd.slice(0, 5).map(shown).join(", ")} of addresses: only those of /8, /16 and /24 can be said`,
          );
        return addressIn(
          "remoteAddress",
          addresses.filter((one) => !isOddRange(one)),
        );
      }
      case "applicationHostname":
        throw new Inexpressible("it goes by the host that a client runs on");
      default:
        throw new Inexpressible(`it is a strategy of your own, ${shown(String(strategy))}`);
    }
  }

  /** The name of a variant by weight; null: there is none to give. */
  #pick(group: string, variants: readonly Fields[], stickiness: unknown): unknown {
    const weighted = variants
      .map(
        ({ name, weight }) => [String(name), Math.max(0, Math.floor(Number(weight) || 0))] as const,
      )
      .filter(([, weight]) => weight > 0);
    if (weighted.length === 0) return null;
    const overrides = variants.flatMap((variant) =>
      (Array.isArray(variant["overrides"]) ? (variant["overrides"] as unknown[]) : [])
        .filter(isFields)
        .flatMap(({ contextName, values }) => [
          oneOf(String(contextName), textsOf(values)),
          String(variant["name"]),
        ]),
    );
    const [only] = weighted;
    if (weighted.length === 1) return chain([...overrides, true, only?.[0]]);
    const id = sticky(stickiness, ["userId", "sessionId", "remoteAddress"]);
    // Not the text that rollouts go by: who is early in that would always get the first variant.
    const buckets = { fractional: [{ cat: ["variant:", group, ":", id] }, ...weighted] };
    return chain([...overrides, id, buckets]);
  }
}

/** Conditions, each with a result after it: the first that holds gives it, else it is null. */
function chain(branches: readonly unknown[]): unknown {
  const open: unknown[] = [];
  let otherwise: unknown = null;
  for (let i = 0; i + 1 < branches.length; i += 2) {
    const [condition, result] = [branches[i], branches[i + 1]];
    if (condition === true) {
      otherwise = result;
      break;
    }
    if (condition !== false) open.push(condition, result);
  }
  const isAlwaysNull = otherwise === null && open.every((part, i) => i % 2 === 0 || part === null);
  if (isAlwaysNull || open.length === 0) return otherwise;
  return { if: [...open, otherwise] };
}

function splitList(value: unknown): string[] {
  if (!isText(value)) return [];
  return value
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

/** What addresses of an IPv4 range begin with; null: that cannot be said. */
function rangeStart(range: string): string | null {
  const [address = "", bits] = range.split("/");
  const octets = address.split(".");
  const count = { "8": 1, "16": 2, "24": 3 }[bits ?? ""];
  if (
    count === undefined ||
    octets.length !== 4 ||
    !octets.every((octet) => /^\d{1,3}$/.test(octet))
  )
    return null;
  return `${octets.slice(0, count).join(".")}.`;
}

function isOddRange(address: string): boolean {
  return address.includes("/") && rangeStart(address) === null;
}

/** @param addresses none of them an odd range */
function addressIn(name: string, addresses: readonly string[]): Logic {
  const starts = addresses.map(rangeStart).filter((start) => start !== null);
  const whole = addresses.filter((one) => !one.includes("/"));
  return or([
    oneOf(name, whole),
    ...starts.map((start) => ({ starts_with: [attribute(name), start] })),
  ]);
}

function oneOf(name: string, values: readonly string[]): Logic {
  return values.length === 0 ? false : { in: [attribute(name), values] };
}

/** Whom a percentage goes by: an attribute, or the first that is there. */
function sticky(stickiness: unknown, otherwise: readonly string[]): Logic {
  if (isText(stickiness) && stickiness !== "default" && stickiness !== "random")
    return attribute(stickiness);
  return { or: otherwise.map(attribute) };
}

function rolledOut(percentage: unknown, group: string, stickiness: unknown): Logic {
  const share = Math.min(100, Math.floor(Number(percentage)));
  if (!(share > 0)) return false;
  const isByDefault = !isText(stickiness) || stickiness === "default" || stickiness === "random";
  // Who has nothing to go by is in at random, and so is everybody.
  if (share === 100 && isByDefault) return true;
  const id = sticky(stickiness, ["userId", "sessionId"]);
  if (share === 100) return { "!!": [id] };
  const bucket = { fractional: [{ cat: [group, ":", id] }, ["in", share], ["out", 100 - share]] };
  return and([id, { "===": [bucket, "in"] }]);
}

// --- constraints -------------------------------------------------------------------------------------------------------------

const comparisons: Readonly<Record<string, string>> = {
  NUM_GT: ">",
  NUM_GTE: ">=",
  NUM_LT: "<",
  NUM_LTE: "<=",
  SEMVER_EQ: "=",
  SEMVER_GT: ">",
  SEMVER_LT: "<",
};

/** @throws Inexpressible */
function constraint(one: Fields): Logic {
  const holds = constraintHolds(one);
  return one["inverted"] === true ? not(holds) : holds;
}

function constraintHolds(one: Fields): Logic {
  const { contextName, operator, value } = one;
  const name = String(contextName);
  const values = textsOf(one["values"]);
  const of = attribute(name);
  const isCased = values.some((text) => text.toLowerCase() !== text.toUpperCase());
  if (
    one["caseInsensitive"] === true &&
    isCased &&
    /^(?:IN|NOT_IN|STR_\w+)$/.test(String(operator))
  )
    throw new Inexpressible(`it compares ${shown(name)} without regard to case`);
  switch (operator) {
    case "IN":
      return oneOf(name, values);
    case "NOT_IN":
      return not(oneOf(name, values));
    case "IN_CIDR":
      if (values.some(isOddRange))
        throw new Inexpressible(`it names ranges other than /8, /16 and /24 for ${shown(name)}`);
      return addressIn(name, values);
    case "STR_STARTS_WITH":
    case "STR_ENDS_WITH":
    case "STR_CONTAINS":
      if (operator === "STR_CONTAINS") return or(values.map((text) => ({ in: [text, of] })));
      return or(
        values.map((text) => ({
          [operator === "STR_STARTS_WITH" ? "starts_with" : "ends_with"]: [of, text],
        })),
      );
    case "NUM_EQ":
    case "NUM_GT":
    case "NUM_GTE":
    case "NUM_LT":
    case "NUM_LTE": {
      const number = Number(value);
      if (Number.isNaN(number)) return false;
      const compared = operator === "NUM_EQ" ? "==" : (comparisons[operator] as string);
      // What is not there would be a zero.
      return { and: [{ "!==": [of, null] }, { [compared]: [of, number] }] };
    }
    case "DATE_AFTER":
    case "DATE_BEFORE": {
      // Unleash compares with the present, whatever attribute is named.
      const seconds = Math.ceil(Date.parse(String(value)) / 1000);
      if (Number.isNaN(seconds)) return false;
      return { [operator === "DATE_AFTER" ? ">=" : "<"]: [{ var: "$flagd.timestamp" }, seconds] };
    }
    case "SEMVER_EQ":
    case "SEMVER_GT":
    case "SEMVER_LT":
      return { sem_ver: [of, comparisons[operator], String(value)] };
    default:
      throw new Inexpressible(`its operator ${shown(String(operator))} cannot be said`);
  }
}

// --- variants ----------------------------------------------------------------------------------------------------------------

/** By name. Values have one type: that of the payloads where they agree, else text. Without a payload it is the name. */
function variantValues(
  key: string,
  variants: readonly Fields[],
  out: Importing,
): Map<string, unknown> {
  const payloads = new Map<string, { readonly type: string; readonly value: string }>();
  for (const { name, payload } of variants) {
    const given = isFields(payload) ? payload : {};
    const { type, value } = given;
    const made =
      typeof value === "string"
        ? { type: String(type), value }
        : { type: "none", value: String(name) };
    const before = payloads.get(String(name));
    if (before !== undefined && (before.type !== made.type || before.value !== made.value))
      out.leftOut(
        key,
        `the payload of another variant ${shown(String(name))}: a name has one value here`,
      );
    else payloads.set(String(name), made);
  }
  const all = [...payloads];
  const as = (type: string, parse: (value: string) => unknown): Map<string, unknown> | null => {
    if (!all.every(([, payload]) => payload.type === type)) return null;
    const parsed = all.map(([name, { value }]) => [name, parse(value)] as const);
    return parsed.some(([, value]) => value === undefined) ? null : new Map(parsed);
  };
  const typed = as("number", numberIn) ?? as("json", objectIn);
  if (typed !== null) return typed;
  if (all.some(([, { type }]) => type === "number" || type === "json"))
    out.note(
      key,
      "its payloads are not all numbers, and not all JSON objects: they are carried over as texts",
    );
  return new Map(all.map(([name, { value }]) => [name, value]));
}

function numberIn(text: string): number | undefined {
  const number = Number(text);
  return text.trim() === "" || !Number.isFinite(number) ? undefined : number;
}

function objectIn(text: string): Fields | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isFields(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
