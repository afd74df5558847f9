/** Routes of apply feedback. */
import { Type } from "@sinclair/typebox";
import { Problem } from "../api/problems.ts";
import { FeedbackAnswer, FeedbackPost, type FeedbackItem } from "../api/schemas.ts";
import type { ConfigService, TenantView } from "../host/ports.ts";
import { checkConfigName, systemTenant } from "../model/names.ts";
import { json, type Call } from "./http.ts";
import { route, type Context, type Route } from "./route.ts";
import { keptMs } from "./feedback.ts";

const N = "/v1/tenants/:tenant/namespaces/:namespace";
const gatherTimeoutMs = 2_000;
const rejectionsShownMax = 20;

export const feedbackRoutes: readonly Route[] = [
  route({
    method: "POST",
    path: `${N}/feedback`,
    id: "postFeedback",
    tag: "feedback",
    summary: "An instance tells which versions it took, or refused and why",
    body: FeedbackPost,
    responses: {
      204: { description: "Noted, in the memory of one node, for a quarter of an hour" },
    },
    handle: async (call, { body }, { feedback, service }) => {
      const { namespace } = call.params as { namespace: string };
      for (const [i, { name }] of body.values.entries()) {
        const wrong = checkConfigName(name);
        if (wrong !== null)
          throw new Problem("invalid-name", wrong, {
            errors: [{ pointer: `/values/${i}/name`, detail: wrong }],
          });
      }
      const tenant = await historyOf(call, service);
      const at = service.nowMs();
      if (!call.dryRun)
        for (const { name, version, state, reason = "" } of body.values)
          feedback.add(tenant, `${namespace}/${name}`, body.instance, {
            version,
            reason: state === "applied" ? null : reason,
            at,
            toldMs: performance.now(),
          });
      return { status: 204, headers: {}, body: null };
    },
  }),
  route({
    method: "GET",
    path: `${N}/configs/:name/feedback`,
    id: "getFeedback",
    tag: "feedback",
    summary: "Per version, how many instances took or refused it, and why",
    query: {
      local: Type.Optional(
        Type.Boolean({ description: "Only what this node was told, and all of it one by one" }),
      ),
    },
    responses: {
      200: {
        description: `What instances told in the last ${keptMs / 60_000} minutes, each its last word`,
        schema: FeedbackAnswer,
      },
    },
    handle: async (call, { query }, context) => {
      const { tenant, namespace, name } = call.params as Record<string, string>;
      const told = await historyOf(call, context.service);
      const here = context.feedback.of(told, `${namespace}/${name}`);
      if (query.local === true) return json({ ...summaryOf(here), items: here, missing: [] });
      const { items, missing } = await fromOthers(call, context, tenant as string);
      return json({ ...summaryOf([...here, ...items]), missing });
    },
  }),
];

/** The tenant as it is now: one that was made again, or restored, has other versions, and may be somebody else's. */
function historyOf({ params: { tenant } }: Call, service: ConfigService): Promise<string> {
  const named = (view: TenantView): string => `${view.tenant} ${view.epoch}`;
  return service.read(tenant as string, { consistency: "stale" }, named);
}

/** What the tenant's other nodes were told. */
async function fromOthers(
  call: Call,
  { service, peers }: Context,
  tenant: string,
): Promise<{ readonly items: readonly FeedbackItem[]; readonly missing: readonly string[] }> {
  if (tenant === systemTenant) return { items: [], missing: [] };
  const { replicas } = await service.group(tenant);
  const others = replicas.map((replica) => replica.node).filter((node) => node !== service.node);
  const missing: string[] = [];
  const path = call.target.split("?", 1)[0] as string;
  const lists = await Promise.all(
    others.map(async (node): Promise<readonly FeedbackItem[]> => {
      try {
        const answer = await peers.forward(call, [node], null, {
          target: `${path}?local=true`,
          timeoutMs: gatherTimeoutMs,
        });
        const text = new TextDecoder().decode(answer.body as Uint8Array);
        if (answer.status === 200) return (JSON.parse(text) as { items: FeedbackItem[] }).items;
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
      }
      missing.push(node);
      return [];
    }),
  );
  return { items: lists.flat(), missing };
}

function summaryOf(all: readonly FeedbackItem[]) {
  // An instance that changed nodes is known to both: its last word counts.
  const latest = new Map<string, FeedbackItem>();
  for (const item of all) {
    const known = latest.get(item.instance);
    if (known === undefined || known.at < item.at) latest.set(item.instance, item);
  }
  const versions = new Map<number, FeedbackItem[]>();
  for (const item of latest.values()) {
    const items = versions.get(item.version);
    if (items === undefined) versions.set(item.version, [item]);
    else items.push(item);
  }
  return {
    instances: latest.size,
    versions: [...versions]
      .sort(([a], [b]) => b - a)
      .map(([version, items]) => {
        const rejected = items.filter((item) => item.state === "rejected");
        return {
          version,
          applied: items.length - rejected.length,
          rejected: rejected.length,
          rejections: rejected
            .sort((a, b) => (a.at < b.at ? 1 : -1))
            .slice(0, rejectionsShownMax)
            .map(({ instance, reason = "", at }) => ({ instance, reason, at })),
        };
      }),
  };
}
