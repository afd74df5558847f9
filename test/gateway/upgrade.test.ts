import { afterEach, expect, test } from "vitest";
import { semanticsNow } from "../../src/machine/command.ts";
import { Harness } from "./harness.ts";

let open: Harness[] = [];
afterEach(() => {
  for (const h of open) h.close();
  open = [];
});

function setup(): Harness {
  const h = new Harness({ nodes: ["n1", "n2", "n3"] });
  open.push(h);
  return h;
}

test("an upgrade goes as far as every node knows, names who knows less, and is in the audit", async () => {
  const h = setup();
  const upgrade = (body: object) => h.call("POST", "/v1/cluster/upgrade", { body });
  expect(await upgrade({})).toMatchObject({ status: 200, body: { level: semanticsNow } });

  const later = { min: 1, max: semanticsNow + 2 };
  for (const node of ["n1", "n2"]) h.cluster.service(node).levels = later;
  const refused = await upgrade({ level: semanticsNow + 1 });
  expect([refused.status, refused.body.code]).toEqual([409, "conflict"]);
  expect(refused.body.detail).toBe(
    `Upgrade node "n3" first: its version 0.0.0 knows levels up to ${semanticsNow}, not ${semanticsNow + 1}`,
  );
  h.cluster.service("n3").isDown = true;
  expect((await upgrade({})).body.detail).toContain('Bring back node "n3" first');
  h.cluster.service("n3").isDown = false;

  h.cluster.service("n3").levels = { min: 1, max: semanticsNow + 1 };
  const raised = await upgrade({});
  expect(raised.body).toMatchObject({ level: semanticsNow + 1, before: semanticsNow });
  expect((await upgrade({ level: semanticsNow })).body.code).toBe("conflict");
  const audit = await h.call("GET", "/v1/tenants/_system/audit");
  expect(JSON.stringify(audit.body)).toContain("system.level");
  expect((await upgrade({ level: 0 })).status).toBe(400);
});
