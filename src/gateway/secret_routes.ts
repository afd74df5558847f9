/** The route that wraps the data keys of secret configs anew. */
import { SecretsRotate, SecretsRotated } from "../api/schemas.ts";
import { change, changedAnswer } from "./changes.ts";
import { json } from "./http.ts";
import { route, type Route } from "./route.ts";
import { rewraps, type Rewrap } from "./secrets.ts";

const rewrapsAtOnce = 200;

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
