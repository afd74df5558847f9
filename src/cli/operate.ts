/** Commands for who runs a tenant or the cluster: keys, audit, tenants, nodes, backups, and files of stopped nodes. */
import process from "node:process";
import { parse as parseYaml } from "yaml";
import { AuditChain } from "../model/audit.ts";
import { isTenantName } from "../model/names.ts";
import { quotaNames, tenantStates } from "../api/schemas.ts";
import type { IssuerPut } from "../sdk/admin.ts";
import { UsageError } from "./arguments.ts";
import { backup, drop, restore, sizeText, tenantsIn, verify } from "./backup.ts";
import type { BackupState } from "./backup.ts";
import type { Options, OptionSpecs } from "./arguments.ts";
import { natsConfigOptions, writeNatsConfig } from "./nats_config.ts";
import { suggestion } from "../lib/nearest.ts";
import { fields, plainText, print, printContent, ProgressLine, table } from "./output.ts";
import { keyText, readText, refuseOthers, Stop, verbOf } from "./command.ts";
import type { Context } from "./command.ts";

export const recoverOptions = {
  gone: {
    type: "string",
    value: "N1,N2,…",
    help: "recover: nodes that will never come back; without it, what is there is listed",
  },
  apply: { type: "string", value: "HASH", help: "recover: do what the plan of this hash says" },
  yes: { type: "boolean", help: "recover: do it, whatever the plan says" },
} as const satisfies OptionSpecs;

const keyKinds = ["admin", "write", "read", "client"] as const;

export async function keys(context: Context): Promise<void> {
  const { admin, tenant, options } = context;
  const [verb, id] = verbOf(context, {
    list: [0],
    create: [0, "kind", "only", "expires", "scope", "description"],
    rotate: [1, "overlap"],
    delete: [1],
  });
  if (verb === "list") {
    const list = await admin.keys(tenant);
    context.show(list, () =>
      table(
        ["ID", "KIND", "NAMESPACES", "EXPIRES", "USED", "CREATED", "DESCRIPTION"],
        list.map((key) => [
          key.id,
          key.kind,
          key.namespaces?.join(",") ?? "all",
          key.expiresAt ?? "never",
          key.lastUsedAt ?? "-",
          key.createdAt,
          key.description,
        ]),
      ),
    );
  } else if (verb === "create") {
    const kind = options.get("kind") as (typeof keyKinds)[number] | undefined;
    if (kind === undefined || !keyKinds.includes(kind))
      throw new UsageError(`Give the key's kind: --kind ${keyKinds.join(" | ")}`);
    const only = options.all("only");
    const scope = options.get("scope");
    if (scope !== undefined && scope !== "secrets")
      throw new UsageError(`Option --scope takes secrets: got ${scope}`);
    const expiresAt = options.get("expires");
    const description = options.get("description");
    const key = await admin.createKey(tenant, {
      kind,
      ...(only.length > 0 && { namespaces: [...only] }),
      ...(scope !== undefined && { scopes: [scope] }),
      ...(expiresAt !== undefined && { expiresAt }),
      ...(description !== undefined && { description }),
    });
    context.show(key, () => `Created key ${key.id}; its token, shown this once:\n${key.token}`);
  } else if (verb === "rotate") {
    const overlap = options.get("overlap");
    if (overlap !== undefined && !/^\d{1,8}$/.test(overlap))
      throw new UsageError(`Option --overlap takes a whole number of seconds: got ${overlap}`);
    const key = await admin.rotateKey(tenant, id as string, {
      ...(overlap !== undefined && { overlapSeconds: Number(overlap) }),
    });
    context.show(
      key,
      () =>
        `Created key ${key.id}; ${id} ends ${key.replaces.expiresAt ?? "now"}; the new token, shown this once:\n${key.token}`,
    );
  } else {
    await admin.deleteKey(tenant, id as string);
    context.show({ id, deleted: true }, () => `Deleted key ${id}`);
  }
}

/** A page, as large as the server gives. */
const auditShownMax = 1_000;

export async function audit(context: Context): Promise<number | void> {
  const { admin, tenant, options } = context;
  const [verb] = verbOf(context, {
    list: [0, "since"],
    export: [0, "since"],
    verify: [0, "head"],
  });
  if (verb === "verify") return verifyAudit(context);
  const since = options.get("since") === undefined ? 0 : (options.count("since") as number);
  if (verb === "export") {
    for await (const record of admin.auditRecords(tenant, since))
      printContent(`${JSON.stringify(record)}\n`);
    return;
  }
  const { items, next } = await admin.auditPage(tenant, { since, limit: auditShownMax });
  context.show(items, () =>
    table(
      ["SEQUENCE", "AT", "ACTOR", "ACTION", "TARGET", "ADDRESS", "REQUEST"],
      items.map((record) => [
        record.sequence,
        record.at,
        `${record.actor.kind} ${record.actor.keyId}`,
        record.action,
        record.target,
        record.address,
        record.requestId,
      ]),
    ),
  );
  if (next !== undefined)
    process.stderr.write(`… and more: go on with --since ${next}, or take all by audit export\n`);
}

/** Goes by the records alone; the server is not asked whether it is honest. */
async function verifyAudit(context: Context): Promise<number> {
  const { admin, tenant, options } = context;
  const noted = options.get("head");
  if (noted !== undefined && !/^sha256:[0-9a-f]{64}$/.test(noted))
    throw new UsageError(`Option --head takes what verify said, sha256:…: got ${noted}`);
  const { anchor } = await admin.auditPage(tenant, { limit: 1 });
  const chain = new AuditChain(anchor);
  let isNotedFound = noted === undefined || noted === anchor?.hash;
  let records = 0;
  let wrong: string | null = null;
  for await (const record of admin.auditRecords(tenant)) {
    records++;
    wrong = chain.next({ ...record, at: Date.parse(record.at) });
    if (wrong !== null) break;
    isNotedFound ||= record.hash === noted;
  }
  if (wrong === null && !isNotedFound) wrong = "The head that was noted is not in the chain";
  const result = { ok: wrong === null, records, head: chain.head, wrong };
  context.show(result, () =>
    wrong === null
      ? `${records} records are as they were written; note the head: ${chain.head ?? "none yet"}`
      : `Tampered with: ${wrong}`,
  );
  return wrong === null ? 0 : 1;
}

export async function secrets(context: Context): Promise<void> {
  const { admin, tenant } = context;
  verbOf(context, { rotate: [0] });
  const line = new ProgressLine();
  let rotated = 0;
  let key: string | null;
  for (;;) {
    const done = await admin.rotateSecrets(tenant);
    rotated += done.rotated;
    key = done.key;
    if (!done.more) break;
    line.show(`${tenant}: ${rotated} versions`);
  }
  line.end();
  context.show({ rotated, key }, () => `Wrapped ${rotated} versions with key ${key}`);
}

export async function issuers(context: Context): Promise<void> {
  const { admin, options } = context;
  const [verb, given] = verbOf(context, {
    list: [0],
    get: [1],
    put: [1, "file"],
    delete: [1],
  });
  const name = given as string;
  if (verb === "list") {
    const list = await admin.issuers();
    context.show(list, () =>
      table(
        ["NAME", "ISSUER", "AUDIENCE", "RULES"],
        list.map((one) => [one.name, one.issuer, one.audience.join(","), one.rules.length]),
      ),
    );
  } else if (verb === "delete") {
    await admin.deleteIssuer(name);
    context.show({ name, deleted: true }, () => `Deleted issuer ${name}`);
  } else {
    const file = options.get("file");
    if (verb === "put" && file === undefined) throw new UsageError("Name the file: -f FILE");
    const issuer =
      verb === "get"
        ? await admin.issuer(name)
        : await admin.putIssuer(name, parseYaml(await readText(file as string)) as IssuerPut);
    context.show(issuer, () =>
      fields([
        ["issuer", issuer.issuer],
        ["audience", issuer.audience.join(", ")],
        ["keys", issuer.jwks === null ? (issuer.jwksUri ?? "by discovery") : "given"],
        ["rules", issuer.rules.map((rule) => JSON.stringify(rule)).join("\n")],
      ]),
    );
  }
}

export async function namespaces(context: Context): Promise<void> {
  const { admin, tenant, options } = context;
  const [verb, given] = verbOf(context, {
    list: [0],
    set: [1, "extends", "no-extends", "protect", "unprotect"],
  });
  if (options.has("extends") && options.has("no-extends"))
    throw new UsageError("Give either --extends or --no-extends");
  if (options.has("protect") && options.has("unprotect"))
    throw new UsageError("Give either --protect or --unprotect");
  const base = options.has("no-extends") ? null : options.get("extends");
  const isProtected = options.has("protect") ? true : options.has("unprotect") ? false : undefined;
  if (verb === "set" && base === undefined && isProtected === undefined)
    throw new UsageError("Say what to set: --extends NAME, --no-extends, --protect or --unprotect");
  const list =
    verb === "list"
      ? await admin.namespaces(tenant)
      : [
          await admin.putNamespace(
            { tenant, namespace: given as string },
            {
              ...(base !== undefined && { extends: base }),
              ...(isProtected !== undefined && { protected: isProtected }),
            },
          ),
        ];
  context.show(list, () =>
    table(
      ["NAMESPACE", "EXTENDS", "PROTECTED", "CREATED"],
      list.map((one) => [one.namespace, one.extends, one.protected ? "yes" : "no", one.createdAt]),
    ),
  );
}

/** `configs=500`; `configs=default` takes a limit of the tenant's own away. */
function quotasOf(options: Options): Record<string, number | null> {
  return Object.fromEntries(
    Object.entries(options.pairs("quota")).map(([name, text]) => {
      if (!quotaNames.some((one) => one === name))
        throw new UsageError(`There is no quota ${name}; ${suggestion(name, quotaNames)}`);
      if (text === "default") return [name, null];
      if (!/^\d{1,15}$/.test(text))
        throw new UsageError(`Quota ${name} takes a whole number, or default: got ${text}`);
      return [name, Number(text)];
    }),
  );
}

export async function tenants(context: Context): Promise<void> {
  const [verb, given] = verbOf(context, {
    list: [0],
    create: [1, "replicas", "description", "quota"],
    get: [1],
    update: [1, "replicas", "description", "quota"],
    delete: [1, "purge"],
    undelete: [1],
    group: [1],
    transfer: [1, "to"],
    compact: [1, "data"],
  });
  const id = given as string;
  if (verb === "compact") return compactTenants(context, id);
  const { admin, options } = context;
  if (verb === "list") {
    const list = await admin.tenants();
    context.show(list, () =>
      table(
        ["TENANT", "REPLICAS", "CREATED", "DELETED", "DESCRIPTION"],
        list.map((one) => [
          one.id,
          one.replicas.join(","),
          one.createdAt,
          one.deletedAt,
          one.description,
        ]),
      ),
    );
  } else if (verb === "create" || verb === "update") {
    const replicas = options.count("replicas");
    const description = options.get("description");
    const quotas = quotasOf(options);
    const body = {
      ...(replicas !== undefined && { replicas }),
      ...(description !== undefined && { description }),
    };
    if (verb === "update") {
      const update = { ...body, ...(options.has("quota") && { quotas }) };
      if (Object.keys(update).length === 0)
        throw new UsageError("Say what to change: --replicas, --description or --quota");
      const one = await admin.updateTenant(id, update);
      context.show(
        one,
        () =>
          `Updated tenant ${id}${replicas === undefined ? "" : `; its replicas are changed while it serves, \`conflux tenants group ${id}\` shows them`}`,
      );
      return;
    }
    const own = Object.entries(quotas).filter((pair): pair is [string, number] => pair[1] !== null);
    const made = await admin.createTenant({
      id,
      ...body,
      ...(own.length > 0 && { quotas: Object.fromEntries(own) }),
    });
    context.show(
      made,
      () => `Created tenant ${id}; its admin key, shown this once:\n${made.key.token}`,
    );
  } else if (verb === "get") {
    const one = await admin.tenant(id);
    const usage = await admin.usage(id);
    context.show({ ...one, usage }, () =>
      fields([
        ["tenant", one.id],
        ["description", one.description],
        ["replicas", one.replicas.join(", ")],
        ["created", one.createdAt],
        ["deleted", one.deletedAt],
        ["revision", usage.revision],
        ["configs", `${usage.configs} of ${usage.quotas.configs}`],
        ["bytes", `${usage.bytes} of ${usage.quotas.bytes}`],
        ["keys", `${usage.keys} of ${usage.quotas.keys}`],
      ]),
    );
  } else if (verb === "group") {
    await showGroup(context, id);
  } else if (verb === "transfer") {
    const to = options.get("to");
    if (to === undefined) throw new UsageError("Name the node that shall lead: --to NODE");
    await admin.transferGroup(id, to);
    context.show({ id, to }, () => `Asked the leader of tenant ${id} to hand over to ${to}`);
  } else if (verb === "delete") {
    const purge = options.has("purge");
    await admin.deleteTenant(id, { purge });
    context.show({ id, deleted: true, purged: purge }, () =>
      purge
        ? `Deleted tenant ${id} for good`
        : `Deleted tenant ${id}; \`conflux tenants undelete ${id}\` brings it back`,
    );
  } else {
    const one = await admin.undeleteTenant(id);
    context.show(one, () => `Undeleted tenant ${id}`);
  }
}

async function showGroup(context: Context, tenant: string): Promise<void> {
  const group = await context.admin.group(tenant);
  context.show(group, () =>
    [
      fields([
        ["leader", group.leader],
        ["term", group.term],
        ["commit", group.commit],
        ["revision", group.revision],
      ]),
      "",
      table(
        ["NODE", "REPLICA", "ROLE", "MATCH", "STATE"],
        group.replicas.map(({ node, id, role, match, state }) => [node, id, role, match, state]),
      ),
    ].join("\n"),
  );
}

async function compactTenants(context: Context, tenant: string): Promise<void> {
  const data = context.options.get("data");
  if (data === undefined) throw new UsageError("Say with --data where the stopped node's data is");
  // Not for every command: the store is the node's.
  const { compactTenant } = await import("../store/compact.ts");
  const compacted = await compactTenant(data, tenant);
  context.show(compacted, () =>
    table(
      ["ENVIRONMENT", "BYTES BEFORE", "BYTES AFTER"],
      compacted.map(({ environment, bytesBefore, bytesAfter }) => [
        environment,
        String(bytesBefore),
        String(bytesAfter),
      ]),
    ),
  );
}

export async function cluster(context: Context): Promise<void> {
  if (context.words[0] === "recover") {
    refuseOthers(context.options, "recover", Object.keys(recoverOptions));
    return recoverCluster(context);
  }
  const [verb, node] = verbOf(context, {
    status: [0],
    members: [0],
    tenants: [0, "state"],
    join: [1],
    leave: [1],
    drain: [1],
    undrain: [1],
    repair: [2],
    upgrade: [0],
    "nats-config": [0, ...Object.keys(natsConfigOptions)],
  });
  if (verb === "nats-config") return showNatsConfig(context);
  if (verb === "members") return showMembers(context);
  if (verb === "tenants") return showPlacements(context);
  if (verb === "upgrade") {
    const { level, before } = await context.admin.upgradeCluster();
    context.show({ level, before }, () =>
      level === before
        ? `The cluster is at level ${level} already, the highest that all nodes know`
        : `The cluster is at level ${level}, before ${before}: older versions may not come back`,
    );
    return;
  }
  if (verb === "repair") {
    const repair = await context.admin.repairReplica(node as string, context.words[2] as string);
    context.show(
      repair,
      () => `Tenant ${repair.tenant} gets a new replica on node ${repair.node} from the others`,
    );
    return;
  }
  if (verb !== "status") {
    const member = await context.admin.setMember(
      node as string,
      verb as "join" | "leave" | "drain" | "undrain",
    );
    context.show(member, () => `Node ${member.node} is ${member.phase}`);
    return;
  }
  const status = await context.admin.clusterStatus();
  context.show(status, () =>
    [
      fields([
        ["cluster", status.cluster],
        ["asked", `${status.node}, version ${status.version}`],
        ["ready", status.ready ? "yes" : "no"],
        ["transport", `${status.transport}, ${status.connected ? "connected" : "disconnected"}`],
        ["level", status.level ?? "not known yet"],
        ["clock", clockShown(status.clockAheadMs)],
        ["tenants", status.tenants],
        ["replicas here", `${status.replicas.warm} warm, ${status.replicas.leaders} leaders`],
      ]),
      "",
      table(
        ["NODE", "ALIVE", "HEARD", "BOOT", "VERSION", "LEVELS", "LEADERS"],
        status.nodes.map(({ name, self, alive, heardMsAgo, boot, version, levels, leaders }) => [
          name,
          alive ? "yes" : "no",
          self ? "itself" : heardMsAgo === null ? "never" : `${Math.round(heardMsAgo)} ms ago`,
          boot,
          version ?? "?",
          levels === null ? "?" : `${levels.min}-${levels.max}`,
          // What it said last; others lead them by now.
          alive ? leaders : null,
        ]),
      ),
      ...(status.absences.length === 0
        ? []
        : [
            "",
            table(
              ["LOST", "FROM", "UNTIL", "SECONDS", "WHY"],
              status.absences
                .slice(-10)
                .map(({ node, from, until, seconds, reason }) => [
                  node,
                  from,
                  until ?? "now",
                  seconds.toFixed(1),
                  reason,
                ]),
            ),
          ]),
    ].join("\n"),
  );
}

/** Groups in tables for people; `-o json` has all. */
const groupsShownMax = 50;

async function recoverCluster(context: Context): Promise<void> {
  const { options } = context;
  const directories = context.words.slice(1);
  if (directories.length === 0)
    throw new UsageError("Name the data directories of all nodes that are left, stopped");
  const gone = (options.get("gone") ?? "").split(",").filter((name) => name !== "");
  // Not for every command: host and store are the node's.
  const { groupInWords, recover } = await import("./recover.ts");
  const line = new ProgressLine();
  const apply = options.get("apply") ?? null;
  let recovery: Awaited<ReturnType<typeof recover>>;
  try {
    recovery = await recover(directories, { gone, apply, yes: options.has("yes") }, (text) =>
      line.show(text),
    );
  } finally {
    line.end();
  }
  context.show(recovery, () => {
    const { found, plan, hash, applied } = recovery;
    const parts: string[] = [];
    if (!applied) {
      const shown = found.slice(0, groupsShownMax);
      parts.push(
        table(
          [
            "TENANT",
            "GROUP",
            "NODE",
            "REPLICA",
            "TERM",
            "LAST",
            "COMMIT",
            "APPLIED",
            "REVISION",
            "VOTERS",
            "STATE",
          ],
          shown.map((one) => [
            one.tenant,
            one.group,
            one.node,
            one.id,
            one.term,
            one.index,
            one.commit,
            one.applied,
            one.revision,
            one.voters.join(","),
            one.damaged === null ? "intact" : "damaged",
          ]),
        ),
      );
      if (found.length > shown.length)
        parts.push(`… and ${found.length - shown.length} more (-o json)`);
    }
    if (plan === null) {
      parts.push("To plan a recovery, name the nodes that are gone for good: --gone N1,N2,…");
      return parts.join("\n\n");
    }
    const concerned = plan.tenants.filter(({ verdict }) => verdict !== "whole");
    const words = [plan.system, ...concerned].slice(0, groupsShownMax).map(groupInWords);
    if (concerned.length >= groupsShownMax)
      words.push(`… and ${concerned.length + 1 - groupsShownMax} more tenants (-o json)`);
    const whole = plan.tenants.length - concerned.length;
    words.push(`${whole} of ${plan.tenants.length} tenants keep their majority.`);
    parts.push(words.join("\n"));
    if (plan.system.verdict !== "recover")
      parts.push(
        "Nothing lost its majority: start the nodes, and let the others leave or come back.",
      );
    else if (applied)
      parts.push(
        "Done. Start these nodes; then start new ones in the place of the others, each with an empty data directory.",
      );
    else
      parts.push(
        `Nothing was changed. To do this, with the nodes still stopped: the same command with --apply ${hash}`,
      );
    return parts.join("\n\n");
  });
}

async function showMembers(context: Context): Promise<void> {
  const members = await context.admin.members();
  context.show(members, () =>
    table(
      ["NODE", "ZONE", "ALIVE", "PHASE", "ROLE", "SYSTEM"],
      members.items.map(({ node, zone, alive, phase, role, system }) => [
        node,
        zone,
        alive ? "yes" : "no",
        phase,
        role,
        system,
      ]),
    ),
  );
}

async function showPlacements(context: Context): Promise<void> {
  const state = context.options.get("state");
  if (state !== undefined && !tenantStates.some((one) => one === state))
    throw new UsageError(`Option --state takes ${tenantStates.join(" or ")}: got ${state}`);
  const placed = await context.admin.clusterTenants(state);
  context.show(placed, () =>
    table(
      ["TENANT", "GROUP", "STATE", "NODES"],
      placed.map(({ tenant, group, state: how, replicas }) => [
        tenant,
        group,
        how,
        replicas
          .map(({ node, state: phase, alive }) => {
            const remark = alive ? (phase === "voter" ? "" : phase) : "away";
            return remark === "" ? node : `${node} (${remark})`;
          })
          .join(", "),
      ]),
    ),
  );
}

async function showNatsConfig(context: Context): Promise<void> {
  const { urls, servers, nodes } = await writeNatsConfig(context.options);
  context.show({ urls, servers, nodes }, () =>
    [
      "Start the servers, each on its host:",
      ...servers.map((file) => `  nats-server -c ${file}`),
      "and the nodes, each with its own key:",
      ...nodes.map(
        ({ node, file, kept }) =>
          `  CONFLUX_NODE=${node} CONFLUX_NATS=${urls.join(",")} CONFLUX_NATS_NKEY=${file}${kept ? "" : "  (new)"}`,
      ),
    ].join("\n"),
  );
}

export async function runBackup(context: Context): Promise<number> {
  const { options, words } = context;
  const to = options.get("to");
  const line = new ProgressLine();
  const tell = (text: string): void => line.show(text);
  if (to === undefined) {
    const [verb, folder, ...rest] = words;
    if (verb !== "verify" || folder === undefined || rest.length > 0)
      throw new UsageError("Say where backups go (--to DIR), or which to check (verify DIR)");
    return showBackups(context, await verify(folder, tell), line);
  }
  if (options.has("all") && words.length > 0)
    throw new UsageError("Name tenants, or take all of them with --all");
  const { admin } = context;
  const tenants = options.has("all")
    ? (await admin.tenants()).map(({ id }) => id)
    : words.length > 0
      ? words
      : [context.tenant];
  for (const tenant of tenants)
    if (!isTenantName(tenant)) throw new UsageError(`${tenant} is not the name of a tenant`);
  const stop = new Stop();
  const states = await backup(admin, to, tenants, tell, stop.signal);
  const code = showBackups(context, states, line);
  return stop.code ?? code;
}

export async function runRestore(context: Context): Promise<number> {
  const { options, words, admin } = context;
  const from = options.get("from");
  const dropped = options.get("drop");
  if ((from === undefined) === (dropped === undefined))
    throw new UsageError("Say where the backups are (--from DIR), or which restore to --drop");
  if (dropped !== undefined) {
    await drop(admin, dropped);
    print(`Dropped the restore of ${dropped}: nothing of it is left`);
    return 0;
  }
  const folder = from as string;
  const as = options.get("as");
  const tenants = words.length > 0 ? words : await tenantsIn(folder);
  if (tenants.length === 0) throw new UsageError(`There are no backups in ${folder}`);
  if (as !== undefined && tenants.length > 1)
    throw new UsageError("Name the one tenant that gets another name by --as");
  const line = new ProgressLine();
  const states = await restore(
    admin,
    folder,
    tenants,
    { ...(as !== undefined && { as }), replace: options.has("replace") },
    (text) => line.show(text),
  );
  return showBackups(context, states, line);
}

/** @returns 1 when one failed */
function showBackups(context: Context, states: readonly BackupState[], line: ProgressLine): number {
  line.end();
  context.show(states, () =>
    table(
      ["TENANT", "STATE", "EPOCH", "REVISION", "ROWS", "SIZE"],
      states.map(({ tenant, state, epoch, revision, rows, bytes }) => [
        tenant,
        state,
        epoch,
        revision,
        rows,
        bytes === null ? null : sizeText(bytes),
      ]),
    ),
  );
  for (const { tenant, adminKey } of states)
    if (adminKey !== undefined && context.format === "table")
      print(keyText({ tenant, name: null, token: adminKey }));
  const failed = states.filter(({ error }) => error !== undefined);
  for (const { tenant, error } of failed)
    process.stderr.write(`error: ${tenant}: ${plainText(error ?? "")}\n`);
  return failed.length > 0 ? 1 : 0;
}

/** Groups shown as a table; JSON has them all. */
export async function journal(context: Context): Promise<number> {
  const [verb, directory] = context.words as [string, string];
  if (verb !== "inspect")
    throw new UsageError(`There is no ${verb} here; ${suggestion(verb, ["inspect"])}`);
  // Not for every command: the store is the node's.
  const { inspectJournal } = await import("../store/inspect.ts");
  const report = inspectJournal(directory);
  const only = context.options.count("group");
  const groups = report.groups.filter(({ group }) => only === undefined || group === only);
  const findings = report.findings.filter(
    ({ group }) => only === undefined || group === null || group === only,
  );
  context.show({ ...report, groups, findings }, () => {
    const parts = [
      table(
        ["segment", "state", "file bytes", "used", "records", "groups", "sequences"],
        report.segments.map((segment) => [
          segment.file,
          segment.state,
          segment.fileBytes,
          segment.usedBytes,
          segment.records,
          segment.groups,
          span(segment.firstSequence, segment.lastSequence),
        ]),
      ),
      table(
        ["group", "replica", "records", "unreleased", "payload bytes", "sequences", "state"],
        // What needs a decision first.
        groups
          .toSorted((a, b) => Number(b.damaged !== null) - Number(a.damaged !== null))
          .slice(0, groupsShownMax)
          .map((group) => [
            group.group,
            group.environment,
            group.records,
            group.unreleased,
            group.payloadBytes,
            span(group.firstSequence, group.lastSequence),
            group.damaged === null ? "intact" : "damaged",
          ]),
      ),
    ];
    if (groups.length > groupsShownMax)
      parts.push(`… and ${groups.length - groupsShownMax} more groups (-o json, or --group ID)`);
    for (const { file, at, end, means } of findings)
      parts.push(`${file}${at === null ? "" : `, bytes ${at} to ${end}`}:\n  ${means}`);
    for (const { group, replica, reason } of report.quarantine)
      parts.push(
        `quarantine/${group}.json:\n  replica ${replica ?? "of unknown id"} of group ${group} stays stopped until it is repaired: ${reason}`,
      );
    if (report.lost !== null)
      parts.push(
        `quarantine/lost.json:\n  every replica stays stopped whose checkpoint does not reach ${report.lost.to}: ${report.lost.where}`,
      );
    parts.push(report.damaged ? "The journal is damaged." : "The journal is intact.");
    return parts.join("\n\n");
  });
  return report.damaged ? 2 : 0;
}

function clockShown(aheadMs: number): string {
  if (aheadMs === 0) return "as the others'";
  return `${Math.abs(aheadMs)} ms ${aheadMs > 0 ? "ahead of" : "behind"} the others'`;
}

function span(first: number | null, last: number | null): string | null {
  if (first === null || last === null) return null;
  return first === last ? String(first) : `${first} to ${last}`;
}
