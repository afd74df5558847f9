/** Commands for who manages configs and who asks what clients get. */
import process from "node:process";
import { parse as parseYaml } from "yaml";
import { contentFormats } from "../model/release.ts";
import type { ContentFormat } from "../model/release.ts";
import type { TransactionRequest } from "../api/schemas.ts";
import { Problem } from "../sdk/admin.ts";
import type { Admin, ConfigDetailAnswer, ReleaseAnswer, ReleasePut, Where } from "../sdk/admin.ts";
import { Conflux } from "../sdk/mod.ts";
import { conditionOf, orNull } from "./apply.ts";
import { bench } from "./bench.ts";
import type { BenchResult } from "./bench.ts";
import { writeWhole } from "./export.ts";
import { typesDocument } from "./gen_types.ts";
import type { TypedConfig } from "./gen_types.ts";
import { UsageError } from "./arguments.ts";
import { suggestion } from "../lib/nearest.ts";
import { fields, plainText, print, printContent, ProgressLine, table } from "./output.ts";
import { spreadOf, messageOf, readText } from "./command.ts";
import type { Context } from "./command.ts";

export async function get(context: Context): Promise<void> {
  const { admin, where, options } = context;
  const head = ["NAME", "FORMAT", "VERSIONS", "DEFAULT", "RULES", "RELEASE", "UPDATED"];
  if (options.has("version") && !options.has("content"))
    throw new UsageError("Option --version goes with --content");
  if (context.words.length === 0) {
    if (options.has("content")) throw new UsageError("Name the config whose content is wanted");
    const list = await admin.configs(where);
    context.show(list, () =>
      table(
        head,
        list.map((one) => [
          one.name,
          one.format,
          one.latestVersion,
          one.default,
          one.ruleCount,
          one.release,
          one.updatedAt,
        ]),
      ),
    );
    return;
  }
  const config = await admin.config(where, context.name);
  if (!options.has("content")) {
    context.show(config, () =>
      table(head, [
        [
          config.name,
          config.format,
          config.latestVersion,
          config.default,
          config.rules.length,
          config.release,
          config.updatedAt,
        ],
      ]),
    );
    return;
  }
  const version = options.get("version") ?? config.default;
  if (version === null) throw new Error(`Nothing is released as default: name a --version`);
  const held = await admin.version(where, context.name, version);
  if (context.format === "table") printContent(held.content);
  else context.show(held, () => "");
}

export async function describe(context: Context): Promise<void> {
  const { admin, where, name } = context;
  const config = await admin.config(where, name);
  const versions = await admin.versions(where, name);
  context.show({ ...config, versionList: versions }, () =>
    [
      fields([
        ["name", config.name],
        ["namespace", config.namespace],
        ["format", config.format],
        ["description", config.description],
        [
          "tags",
          Object.entries(config.tags)
            .map(([tag, value]) => `${tag}=${value}`)
            .join(" "),
        ],
        ["schema", config.schemaHash],
        ["revision", config.revision],
        ["created", config.createdAt],
        ["updated", config.updatedAt],
        ["release", config.release],
        ["default", config.default === null ? null : `version ${config.default}`],
      ]),
      "",
      config.rules.length === 0 ? "no rules" : rulesTable(config),
      "",
      table(
        ["VERSION", "HASH", "BYTES", "AT", "BY", "MESSAGE"],
        versions
          .toSorted((a, b) => b.version - a.version)
          .slice(0, 20)
          .map((one) => [
            one.version,
            one.hash.slice(0, 19),
            one.bytes,
            one.at,
            one.by,
            one.message,
          ]),
      ),
    ].join("\n"),
  );
}

function rulesTable({ rules }: Pick<ConfigDetailAnswer, "rules">): string {
  return table(
    ["RULE", "MATCH", "ROLLOUT", "FROM", "UNTIL", "VERSION"],
    rules.map(({ id, match, rollout, from, until, version }) => [
      id,
      JSON.stringify(match),
      rollout === undefined ? null : `${rollout.percentage} % by ${rollout.by}`,
      from,
      until,
      version,
    ]),
  );
}

export async function remove(context: Context): Promise<void> {
  const { admin, where, name } = context;
  if (context.options.has("undelete")) {
    const config = await admin.undeleteConfig(where, name);
    context.show(config, () => `Undeleted ${where.namespace}/${name}`);
    return;
  }
  const config = await admin.deleteConfig(where, name);
  const back = `conflux delete ${name} -n ${where.namespace} --undelete`;
  context.show(config, () => `Deleted ${where.namespace}/${name}; \`${back}\` brings it back`);
}

export async function publish(context: Context): Promise<void> {
  const { admin, where, name, options } = context;
  const file = options.get("file");
  const given = options.get("content");
  if ((file === undefined) === (given === undefined))
    throw new UsageError("Give the content by either -f FILE or --content TEXT");
  const content = given ?? (await readText(file as string));
  const message = messageOf(options);
  const format = options.get("format");
  if (format !== undefined && !contentFormats.includes(format as ContentFormat))
    throw new UsageError(`Option --format takes ${contentFormats.join(", ")}: got ${format}`);
  try {
    if (options.has("no-release")) {
      if (options.has("spread"))
        throw new UsageError("Give --spread to the release: nobody is told of a version");
      const made = await admin.createVersion(where, name, { content, ...message });
      const text = `${where.namespace}/${name} has version ${made.version}; nobody gets it yet`;
      context.show(made, () => text);
      return;
    }
    const done = await admin.publish(where, name, { content, ...message }, spreadOf(options));
    context.show(
      done,
      () =>
        `Published ${where.namespace}/${name} version ${done.version}, release ${done.release.release}`,
    );
  } catch (error) {
    const isMissing = error instanceof Problem && error.code === "not-found";
    if (!isMissing) throw error;
    if (format === undefined)
      throw new UsageError(
        `There is no config ${where.namespace}/${name}; give its --format to create it`,
      );
    const secret = options.has("secret");
    const body = { format: format as ContentFormat, content, ...(secret && { secret }) };
    const done = await admin.putConfig(where, name, body, { ifNoneMatch: "*" });
    context.show(done, () => `Created ${where.namespace}/${name} with version 1, released`);
  }
}

export async function release(context: Context): Promise<void> {
  const { admin, where, name, options } = context;
  const rulesFile = options.get("rules");
  if (options.has("default") && options.has("no-default"))
    throw new UsageError("Give either --default or --no-default");
  if (rulesFile !== undefined && options.has("no-rules"))
    throw new UsageError("Give either --rules or --no-rules");
  const flags = ["default", "no-default", "rules", "no-rules"];
  if (!flags.some((flag) => options.has(flag)))
    throw new UsageError("Say what to release: --default, --no-default, --rules or --no-rules");
  const config = await admin.config(where, name);
  let { rules } = config as Pick<ReleasePut, "rules">;
  if (options.has("no-rules")) rules = [];
  else if (rulesFile !== undefined) {
    const parsed: unknown = parseYaml(await readText(rulesFile));
    const list = Array.isArray(parsed) ? parsed : (parsed as { rules?: unknown } | null)?.rules;
    if (!Array.isArray(list)) throw new UsageError("The file of --rules must hold a list of rules");
    rules = list as ReleasePut["rules"];
  }
  const chosen = options.count("default") ?? config.default;
  const done = await admin.putRelease(
    where,
    name,
    { rules, default: options.has("no-default") ? null : chosen, ...messageOf(options) },
    // What is kept of the release in force was just read: it must still be that.
    { ifMatch: config.etag ?? `"${config.revision}"`, ...spreadOf(options) },
  );
  context.show(done, () => releasedText(where, name, done));
}

/** What changes between reading and publishing, on either side, is refused by the conditions of the transaction. */
export async function promote(context: Context): Promise<void> {
  const { admin, where, options, words } = context;
  const namespace = options.get("from");
  if (namespace === undefined) throw new UsageError("Name the namespace to take from: --from NAME");
  if (namespace === where.namespace)
    throw new UsageError("Name two namespaces: --from where it is, -n where it shall be");
  const source = { ...where, namespace };
  const names = words.length > 0 ? words : (await admin.configs(source)).map(({ name }) => name);
  if (names.length === 0) throw new UsageError(`There are no configs in namespace ${namespace}`);
  const conditions: NonNullable<TransactionRequest["if"]> = [];
  const operations: TransactionRequest["then"] = [];
  const promoted: string[] = [];
  for (const name of names) {
    const from = await admin.config(source, name);
    if (from.default === null) continue;
    const to = await orNull(admin.config(where, name));
    if (from.secret && to !== null && !to.secret)
      throw new UsageError(`${namespace}/${name} is secret and ${where.namespace}/${name} is not`);
    const { content, hash } = await admin.version(source, name, from.default);
    const held = to?.default == null ? null : await admin.version(where, name, to.default);
    if (held?.hash === hash) continue;
    const target = { namespace: where.namespace, name };
    promoted.push(name);
    conditions.push(conditionOf(from));
    if (to !== null) {
      conditions.push(conditionOf(to));
      operations.push({ op: "publish", ...target, content, ...messageOf(options) });
      continue;
    }
    const { format, description, tags, schema } = from;
    const secret = from.secret;
    const shape = {
      format,
      description,
      tags,
      ...(schema !== null && { schema }),
      ...(secret && { secret }),
    };
    conditions.push({ ...target, absent: true });
    operations.push({ op: "config.put", ...target, ...shape, content });
  }
  const route = `from ${namespace} to ${where.namespace}`;
  if (operations.length === 0) {
    context.show({ promoted }, () => `Nothing to promote ${route}: it is all there`);
    return;
  }
  const { revision } = await admin.transaction(
    where.tenant,
    { if: conditions, then: operations },
    spreadOf(options),
  );
  context.show(
    { revision, promoted },
    () => `Promoted ${promoted.join(", ")} ${route} in revision ${revision}`,
  );
}

export async function rollback(context: Context): Promise<void> {
  const { admin, where, name, options } = context;
  const to = options.count("to");
  const body = { ...(to !== undefined && { toRelease: to }), ...messageOf(options) };
  const done = await admin.rollback(where, name, body, spreadOf(options));
  context.show(done, () => `${releasedText(where, name, done)}, equal to ${done.rollbackOf}`);
}

function releasedText({ namespace }: Where, name: string, done: ReleaseAnswer): string {
  const rules = done.rules.length === 1 ? "1 rule" : `${done.rules.length} rules`;
  const fallback = done.default === null ? "no default" : `default version ${done.default}`;
  return `Released ${namespace}/${name} as release ${done.release}: ${rules}, ${fallback}`;
}

export async function evaluate(context: Context): Promise<void> {
  const { admin, where, options } = context;
  const labels = options.pairs("label");
  if (context.words.length === 0) {
    if (options.has("explain")) throw new UsageError("Name the config to explain");
    const all = await admin.values(where, labels);
    context.show(all, () =>
      table(
        ["NAME", "VERSION", "FORMAT", "CONTENT"],
        Object.entries(all.values).map(([name, one]) => [
          name,
          one.version,
          one.format,
          one.content?.replaceAll(/\s+/g, " ").trim() ?? "(large)",
        ]),
      ),
    );
    return;
  }
  if (options.has("explain")) {
    const explained = await admin.explain(where, context.name, labels);
    context.show(explained, () => explanation(explained));
    return;
  }
  const value = await admin.value(where, context.name, labels);
  if (context.format === "table") printContent(value.content);
  else context.show(value, () => "");
}

export async function feedback(context: Context): Promise<void> {
  const told = await context.admin.feedback(context.where, context.name);
  context.show(told, () =>
    table(
      ["VERSION", "APPLIED", "REJECTED", "LAST REASON"],
      told.versions.map(({ version, applied, rejected, rejections }) => [
        version,
        applied,
        rejected,
        rejections[0] === undefined ? "" : `${rejections[0].instance}: ${rejections[0].reason}`,
      ]),
    ),
  );
}

/** Each is a socket, and a config. */
const benchConnectionsMax = 1_000;

export async function runBench(context: Context): Promise<number> {
  const { admin, where, options } = context;
  const line = new ProgressLine();
  let results: readonly BenchResult[];
  try {
    const asked = {
      connections: options.count("connections") ?? 16,
      seconds: options.count("seconds") ?? 5,
      bytes: options.count("bytes") ?? 128,
    };
    if (asked.connections > benchConnectionsMax)
      throw new UsageError(`Option --connections takes at most ${benchConnectionsMax}`);
    results = await bench(admin, where, asked, (text) => line.show(text));
  } finally {
    line.end();
  }
  context.show(results, () =>
    table(
      ["WHAT", "DONE", "PER SECOND", "P50 MS", "P99 MS", "FAILED"],
      results.map(({ what, done, perSecond, p50, p99, failed }) => [
        what,
        done,
        perSecond,
        p50,
        p99,
        Object.entries(failed)
          .map(([code, count]) => `${count} ${code}`)
          .join(", "),
      ]),
    ),
  );
  return results.some(({ done }) => done === 0) ? 1 : 0;
}

export async function generate(context: Context): Promise<void> {
  const { admin, where, options } = context;
  if (context.name !== "types")
    throw new UsageError(
      `There is no ${context.name} here; ${suggestion(context.name, ["types"])}`,
    );
  const { values } = await admin.values(where);
  const own = await admin.configs(where);
  const names = new Set([...own.map((config) => config.name), ...Object.keys(values)]);
  const configs: TypedConfig[] = [];
  for (const name of [...names].sort()) {
    const value = values[name];
    // What is inherited has its schema elsewhere; its content says enough.
    const detail = own.some((one) => one.name === name) ? await admin.config(where, name) : null;
    configs.push({
      name,
      format: detail?.format ?? value?.format ?? "json",
      schema: detail?.schema ?? null,
      content: value?.content ?? null,
    });
  }
  const document = typesDocument(configs, `${where.tenant}/${where.namespace}`);
  const file = options.get("file");
  if (file === undefined) return printContent(document);
  await writeWhole(file, document);
  print(`Wrote types of ${configs.length} configs to ${file}`);
}

function explanation(explained: Awaited<ReturnType<Admin["explain"]>>): string {
  const { name, namespace, version, rule, reason, rules, revision } = explained;
  const head = fields([
    ["config", namespace === null ? name : `${namespace}/${name}`],
    ["version", version],
    ["rule", rule ?? (version === null ? null : "the default")],
    ["reason", reason],
    ["revision", revision],
  ]);
  const lines = rules.map((one) => {
    const { rule, outcome, detail } = one;
    return `  ${plainText(`${rule}: ${outcome}. ${detail}`)}`;
  });
  return [head, ...(lines.length === 0 ? [] : ["rules", ...lines])].join("\n");
}

export async function watch(context: Context): Promise<void> {
  const { options } = context;
  const stop = new AbortController();
  process.once("SIGINT", () => stop.abort());
  process.once("SIGTERM", () => stop.abort());
  context.onRetry = tellOnce;
  if (options.has("label") || options.has("values")) await watchValues(context, stop.signal);
  else await watchChanges(context, stop.signal);
}

let toldLast = "";
let toldAt = Number.NEGATIVE_INFINITY;
const toldAgainMs = 60_000;

/** Somebody waits for what does not come: why, when it is another reason than before, and each minute. */
function tellOnce(error: unknown): void {
  const message = error instanceof Error ? error.message : String(error);
  const now = performance.now();
  if (message === toldLast && now - toldAt < toldAgainMs) return;
  toldLast = message;
  toldAt = now;
  process.stderr.write(`Trying again: ${plainText(message)}\n`);
}

/** Every change of configs, for people who manage them. */
async function watchChanges(context: Context, signal: AbortSignal): Promise<void> {
  const { admin, options, format } = context;
  const { tenant, namespace } = context.where;
  const only = context.words[0];
  const frames = admin.watch(tenant, {
    since: options.get("since") ?? "now",
    spread: false,
    signal,
    ...(!options.has("all") && { namespace }),
    ...(only !== undefined && { prefix: only }),
  });
  let left = options.count("count") ?? Infinity;
  for await (const frame of frames) {
    const { at = "", changes } = frame.data as {
      at?: string;
      changes?: { type: string; namespace: string; name: string; version?: number }[];
    };
    const shown = changes?.filter(({ name }) => only === undefined || name === only);
    if (frame.event === "bookmark" || (changes !== undefined && shown?.length === 0)) continue;
    if (format !== "table") {
      print(JSON.stringify({ cursor: frame.id, event: frame.event, data: frame.data }));
    } else if (shown === undefined) print(`${frame.id}  ${frame.event}`);
    else {
      for (const { type, namespace: ns, name, version } of shown)
        print(
          plainText(
            `${frame.id}  ${at}  ${type} ${ns}${name && `/${name}`}${version === undefined ? "" : ` version ${version}`}`,
          ),
        );
    }
    if (--left <= 0) return;
  }
}

/** What a client with these labels gets, as it changes. */
async function watchValues(context: Context, signal: AbortSignal): Promise<void> {
  const { options, token, format, url } = context;
  const conflux = new Conflux({
    url: url.split(","),
    ...context.where,
    labels: options.pairs("label"),
    ...(token !== undefined && { token }),
    ...(context.words[0] !== undefined && { name: context.words[0] }),
    onError: tellOnce,
  });
  try {
    const changes = conflux.watch({ signal });
    // Rejects when the key is refused; a server that is away is waited for.
    await conflux.ready();
    let left = options.count("count") ?? Infinity;
    for await (const { name, revision, new: value, entry } of changes) {
      const { version } = entry;
      if (format !== "table") print(JSON.stringify({ name, revision, version, value }));
      else if (version === null) print(`${revision}  ${name} is no longer released`);
      else {
        const text = typeof value === "string" ? value : JSON.stringify(value);
        print(`${revision}  ${name} version ${version}  ${plainText(text)}`);
      }
      if (--left <= 0) return;
    }
  } finally {
    await conflux.close();
  }
}

export async function history(context: Context): Promise<void> {
  const { admin, where, name } = context;
  const releases = await admin.history(where, name);
  context.show(releases, () =>
    table(
      ["RELEASE", "REVISION", "AT", "BY", "DEFAULT", "RULES", "MESSAGE"],
      releases.map((one) => [
        one.release,
        one.revision,
        one.at,
        one.by,
        one.default,
        one.rules.length,
        one.rollbackOf === null ? one.message : `rollback to ${one.rollbackOf}  ${one.message}`,
      ]),
    ),
  );
}
