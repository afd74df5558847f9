/** The route that wraps the data keys of secret configs anew. */
import { SecretsRotate, SecretsRotated } from "../api/schemas.ts";
import type { TenantView } from "../host/ports.ts";
import { under } from "../machine/keys.ts";
import { getText } from "../machine/queries.ts";
import type { ConfigRow, VersionRow } from "../machine/rows.ts";
import { change, changedAnswer } from "./changes.ts";
import { json } from "./http.ts";
import { route, type Route } from "./route.ts";
import type { Secrets } from "./secrets.ts";

const rewrapsAtOnce = 200;

interface Rewrap {
  readonly namespace: string;
  readonly name: string;
  readonly version: number;
  readonly hash: string;
  readonly text: string;
}

export const secretRoutes: readonly Route[] = [
  route({
    method: "POST",
    path: "/v1/tenants/:tenant/secrets/rotate",
    id: "rotateSecrets",
    tag: "secrets",
    summary: "Wrap data keys with the active key, some at a time: repeat it while there are more",
    body: SecretsRotate,
    bodyRequired: false,
    responses: { 200: { description: "Done so far", schema: SecretsRotated } },
    handle: async (call, _input, context) => {
      const tenant = call.params["tenant"] as string;
      const { secrets, service } = context;
      secrets.needKey();
      const { found, error } = await service.read(
        tenant,
        { consistency: "linearizable" },
        (view): { found: Rewrap[]; error: unknown } => {
          const found: Rewrap[] = [];
          try {
            for (const one of rewraps(view, secrets)) {
              found.push(one);
              if (found.length > rewrapsAtOnce) break;
            }
            return { found, error: null };
          } catch (error) {
            return { found, error };
          }
        },
      );
      // What cannot be opened must not pass for rotated.
      if (error !== null) throw error;
      const items = found.slice(0, rewrapsAtOnce);
      const answer = {
        rotated: items.length,
        key: secrets.activeKey,
        more: found.length > items.length,
      };
      if (items.length === 0) return json(answer);
      const changed = await change<"secrets.rewrap">(call, context, {
        op: "secrets.rewrap",
        items,
      });
      return changedAnswer(changed, answer);
    },
  }),
];

/** Deleted configs too: they can be undeleted. */
function* rewraps(view: TenantView, secrets: Secrets): Iterable<Rewrap> {
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
