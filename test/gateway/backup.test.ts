/** Backups through the API: one revision, checksummed, in one stream or in parts, here or through another node; and back. */
import { createHash } from "node:crypto";
import { afterEach, describe, expect, test } from "vitest";
import { Harness } from "./harness.ts";
import { rootToken } from "./solo_service.ts";

const open: Harness[] = [];
afterEach(() => {
  for (const h of open.splice(0)) h.close();
});

async function world(nodes: readonly string[] = ["n1"], holders?: number): Promise<Harness> {
  const h = new Harness({ nodes });
  open.push(h);
  await h.tenant("acme", {
    description: "d",
    quotas: { configs: 77 },
    ...(holders !== undefined && { replicas: holders }),
  });
  return h;
}

async function fill(h: Harness, configs: number, bytes: number): Promise<void> {
  for (let n = 0; n < configs; n++)
    await h.call("PUT", `/v1/tenants/acme/namespaces/app/configs/c${n}`, {
      body: { format: "text", content: `${n} ${"ä".repeat(bytes / 2)}` },
    });
}

interface Document {
  readonly head: {
    readonly tenant: string;
    readonly epoch: number;
    readonly revision: number;
    readonly etag: string;
    readonly directory: object;
    readonly meta: Record<string, number>;
  };
  readonly rows: readonly (readonly [key: string, row: unknown])[];
  readonly end: { readonly rows: number; readonly sha256: string };
}

/** Takes it apart as anybody could, and holds it against its own end. */
function parse(text: string): Document {
  const lines = text.trimEnd().split("\n");
  const last = lines.pop() as string;
  const { end } = JSON.parse(last) as { end: Document["end"] };
  const before = text.slice(0, text.length - last.length - 1);
  expect(createHash("sha256").update(before).digest("hex")).toBe(end.sha256);
  const [head, ...rows] = lines.map((line) => JSON.parse(line) as never);
  expect(rows).toHaveLength(end.rows);
  return { head: head as never, rows, end };
}

async function inParts(h: Harness, node: string): Promise<string> {
  let text = "";
  let session = "";
  for (let part = 0; ; part++) {
    const query = session === "" ? "part=0" : `session=${session}&part=${part}`;
    const answer = await h.call("GET", `/v1/tenants/acme/backup?${query}`, { node });
    expect(answer.status).toBe(200);
    // A part whose answer was lost is asked for again.
    if (part > 0) {
      const again = await h.call("GET", `/v1/tenants/acme/backup?${query}`, { node });
      expect(again.text).toBe(answer.text);
    }
    session = answer.headers.get("conflux-backup-session") as string;
    text += answer.text;
    if (answer.headers.get("conflux-backup-end") !== null) return text;
    expect(part).toBeLessThan(20);
  }
}

async function restore(
  h: Harness,
  name: string,
  { head, rows }: Document,
  more: object = {},
  partRows = 7,
) {
  const { tenant, epoch, revision } = head;
  const begun = await h.call("POST", `/v1/tenants/${name}/restore`, {
    body: { source: { tenant, epoch, revision }, meta: head.meta, ...head.directory, ...more },
  });
  if (begun.status !== 201) return begun;
  for (let part = 0; part * partRows < rows.length; part++) {
    const some = rows.slice(part * partRows, (part + 1) * partRows);
    const sent = await h.call("PUT", `/v1/tenants/${name}/restore/rows/${part}`, {
      body: { rows: some.map(([key, row]) => [key, JSON.stringify(row)]) },
    });
    expect(sent.body).toMatchObject({ part: part + 1 });
  }
  const done = await h.call("POST", `/v1/tenants/${name}/restore/finish`, {
    body: { rows: rows.length },
  });
  return { ...done, key: begun.body.key as { token: string } | undefined };
}

describe("GET backup", () => {
  test("is one revision of all rows, whatever is written while it is read", async () => {
    const h = await world();
    await fill(h, 20, 40_000);
    const response = await h.gateway().fetch(h.request("GET", "/v1/tenants/acme/backup"));
    expect(response.headers.get("content-type")).toBe("application/x-ndjson");
    const revision = Number(response.headers.get("conflux-revision"));
    const reader = response.body?.getReader() as ReadableStreamDefaultReader<Uint8Array>;
    let bytes = (await reader.read()).value as Uint8Array;
    await fill(h, 3, 10);
    await h.call("PUT", "/v1/tenants/acme/namespaces/app/configs/later", { body: {} });
    for (let next = await reader.read(); !next.done; next = await reader.read())
      bytes = Buffer.concat([bytes, next.value]);
    const { head, rows } = parse(new TextDecoder().decode(bytes));
    expect(head).toMatchObject({
      tenant: "acme",
      revision,
      directory: { description: "d", quotas: { configs: 77 }, replicas: 1 },
      meta: { configs: 20 },
    });
    expect(rows.map(([key]) => key)).not.toContain("cfg/app/later");
    expect(rows.filter(([key]) => key.startsWith("cfg/"))).toHaveLength(20);
    expect(h.cluster.service("n1").openSnapshots).toBe(0);
  });

  test("in parts is the same document, also through a node without a replica", async () => {
    const h = await world(["n1", "n2", "n3"], 1);
    await fill(h, 60, 100_000);
    const direct = parse(await inParts(h, "n1"));
    const through = parse(await inParts(h, "n3"));
    expect(through.rows).toEqual(direct.rows);
    const whole = await h.call("GET", "/v1/tenants/acme/backup", { node: "n2" });
    expect(whole.headers.get("etag")).toBe(direct.head.etag);
    expect(parse(whole.text).rows).toEqual(direct.rows);
    // No frame between nodes carried more than about a part.
    const { exchanges } = h.cluster.service("n2");
    expect(exchanges.length).toBeGreaterThan(5);
  });

  test("is not taken again when nothing changed", async () => {
    const h = await world();
    await fill(h, 1, 10);
    const path = "/v1/tenants/acme/backup";
    const etag = (await h.call("GET", path)).headers.get("etag") as string;
    const same = await h.call("GET", `${path}?part=0`, { headers: { "if-none-match": etag } });
    expect(same.status).toBe(304);
    await h.call("PATCH", "/v1/tenants/acme", { body: { description: "other" } });
    const other = await h.call("GET", path, { headers: { "if-none-match": etag } });
    expect(other.status).toBe(200);
    const later = await h.call("HEAD", path);
    expect(later.headers.get("etag")).toBe(other.headers.get("etag"));
    expect(h.cluster.service("n1").openSnapshots).toBe(0);
  });

  test("is bounded in number, and given back by clients that go away", async () => {
    const h = await world();
    await fill(h, 10, 100_000);
    const responses: Response[] = [];
    for (let n = 0; n < 8; n++)
      responses.push(await h.gateway().fetch(h.request("GET", "/v1/tenants/acme/backup")));
    const refused = await h.call("GET", "/v1/tenants/acme/backup");
    expect(refused.body).toMatchObject({ status: 503, code: "overloaded" });
    for (const response of responses) await response.body?.cancel();
    expect(h.cluster.service("n1").openSnapshots).toBe(0);
    parse((await h.call("GET", "/v1/tenants/acme/backup")).text);
  });

  test("through a node without a replica gives its place back when the client goes away", async () => {
    const h = await world(["n1", "n2"], 1);
    await fill(h, 30, 100_000);
    const path = "/v1/tenants/acme/backup";
    for (const node of ["n1", "n2"])
      for (let n = 0; n < 10; n++) {
        const response = await h.gateway(node).fetch(h.request("GET", path));
        expect(response.status).toBe(200);
        const reader = response.body?.getReader() as ReadableStreamDefaultReader<Uint8Array>;
        await reader.read();
        const open = ["n1", "n2"].map((one) => h.cluster.service(one).openSnapshots);
        expect(open.filter((count) => count === 1)).toHaveLength(1);
        await reader.cancel();
        expect(h.cluster.service("n1").openSnapshots).toBe(0);
        expect(h.cluster.service("n2").openSnapshots).toBe(0);
      }
  });

  test("in parts gives its place back with the last of them, and still has that one", async () => {
    const h = await world();
    await fill(h, 2, 100);
    const sessions: string[] = [];
    for (let n = 0; n < 20; n++) {
      const only = await h.call("GET", "/v1/tenants/acme/backup?part=0");
      expect([only.status, only.headers.get("conflux-backup-end")]).toEqual([200, "true"]);
      sessions.push(only.headers.get("conflux-backup-session") as string);
    }
    expect(h.cluster.service("n1").openSnapshots).toBe(0);
    const again = await h.call("GET", `/v1/tenants/acme/backup?session=${sessions[3]}&part=0`);
    parse(again.text);
    // Asked for at once they do not slip past the bound.
    const many = await Promise.all(
      Array.from({ length: 20 }, async () =>
        h.gateway().fetch(h.request("GET", "/v1/tenants/acme/backup")),
      ),
    );
    expect(many.filter(({ status }) => status === 200)).toHaveLength(8);
    for (const response of many) await response.body?.cancel();
  });

  test("in parts keeps to its order, its tenant and its session", async () => {
    const h = await world();
    await h.tenant("other");
    await fill(h, 30, 100_000);
    const first = await h.call("GET", "/v1/tenants/acme/backup?part=0");
    const session = first.headers.get("conflux-backup-session") as string;
    const status = async (tenant: string, query: string): Promise<number> =>
      (await h.call("GET", `/v1/tenants/${tenant}/backup?${query}`)).status;
    expect(await status("acme", `session=${session}&part=2`)).toBe(400);
    expect(await status("other", `session=${session}&part=1`)).toBe(404);
    expect(await status("acme", "session=n1.nothing&part=1")).toBe(404);
    expect(await status("acme", "session=nonsense&part=1")).toBeGreaterThanOrEqual(400);
    expect(await status("acme", "part=1")).toBe(400);
    expect(await status("acme", `session=${session}&part=1`)).toBe(200);
    expect(await status("acme", `session=${session}&part=0`)).toBe(400);
    expect(await status("_system", "part=0")).toBe(400);
    expect(await status("other", `session=${session}&over=true`)).toBe(404);
    expect(h.cluster.service("n1").openSnapshots).toBe(1);
    expect(await status("acme", `session=${session}&over=true`)).toBe(204);
    expect(await status("acme", `session=${session}&part=2`)).toBe(404);
    await h.gateway().fetch(h.request("GET", "/v1/tenants/acme/backup?part=0"));
    expect(h.cluster.service("n1").openSnapshots).toBe(1);
    h.close();
    expect(h.cluster.service("n1").openSnapshots).toBe(0);
  });
});

describe("restore", () => {
  test("makes the same tenant under another name: values, versions, releases, keys; and a cursor of before gets a sync", async () => {
    const h = await world();
    await fill(h, 12, 100);
    const N = "/v1/tenants/acme/namespaces/app";
    await h.call("POST", `${N}/configs/c1/publish`, { body: { content: "second" } });
    await h.call("POST", `${N}/configs/c1/rollback`, { body: {} });
    await h.call("DELETE", `${N}/configs/c2`);
    const reader = await h.key("acme", "read");
    const copy = parse((await h.call("GET", "/v1/tenants/acme/backup")).text);
    const done = await restore(h, "copy", copy, { adminKey: true });
    expect(done.status).toBe(201);
    expect(done.body.revision).toBe(copy.head.revision + 1);
    expect(done.body.epoch).toBeGreaterThan(copy.head.epoch);
    for (const path of [
      "/namespaces",
      "/namespaces/app/configs",
      "/namespaces/app/configs/c1",
      "/namespaces/app/configs/c1/versions",
      "/namespaces/app/configs/c1/history",
      "/namespaces/app/values",
    ]) {
      const bodyOf = async (tenant: string): Promise<object> => {
        const { text } = await h.call("GET", `/v1/tenants/${tenant}${path}`);
        // That of the whole tenant is one further, and tags are of a history of their own.
        const body = JSON.parse(text.replaceAll(/"etag":"\\"\d+-/g, '"etag":"\\"'));
        const { revision: _revision, ...rest } = body as { revision?: number };
        return rest;
      };
      expect(await bodyOf("copy")).toEqual(await bodyOf("acme"));
    }
    expect((await h.call("GET", "/v1/tenants/copy")).body.quotas).toEqual({ configs: 77 });
    const token = (done as { key?: { token: string } }).key?.token as string;
    expect((await h.call("GET", "/v1/tenants/copy/keys", { token })).body.items).toHaveLength(3);
    // A key of the source is one of the source's name alone.
    expect((await h.call("GET", "/v1/tenants/copy", { token: reader.token })).status).toBe(403);
    const cursor = `${copy.head.epoch}-${copy.head.revision}`;
    const poll = await h.call("GET", `/v1/tenants/copy/watch?wait=0s&since=${cursor}`);
    expect(poll.body.frames[0]).toMatchObject({
      event: "sync",
      id: `${done.body.epoch}-${done.body.revision}`,
    });
  });

  test("answers 503 until it is finished, tells how far it is, and can be dropped", async () => {
    const h = await world();
    await fill(h, 3, 10);
    const copy = parse((await h.call("GET", "/v1/tenants/acme/backup")).text);
    const { tenant, epoch, revision } = copy.head;
    const body = { source: { tenant, epoch, revision }, meta: copy.head.meta };
    expect((await h.call("POST", "/v1/tenants/half/restore", { body })).status).toBe(201);
    const rows = copy.rows.slice(0, 4).map(([key, row]) => [key, JSON.stringify(row)]);
    await h.call("PUT", "/v1/tenants/half/restore/rows/0", { body: { rows } });
    for (const [method, path, sent] of [
      ["GET", "/namespaces", undefined],
      ["GET", "/watch?wait=0s", undefined],
      ["GET", "/backup", undefined],
      ["PUT", "/namespaces/app/configs/new", {}],
    ] as const) {
      const answer = await h.call(method, `/v1/tenants/half${path}`, {
        ...(sent !== undefined && { body: sent }),
      });
      expect([path, answer.status, answer.body.code]).toEqual([path, 503, "restoring"]);
    }
    const state = await h.call("GET", "/v1/tenants/half/restore");
    expect(state.body).toMatchObject({ part: 1, rows: 4, last: copy.rows[3]?.[0] });
    const early = await h.call("POST", "/v1/tenants/half/restore/finish", { body: { rows: 4 } });
    expect(early.body).toMatchObject({ status: 409, code: "conflict" });
    expect((await h.call("DELETE", "/v1/tenants/half?purge=true")).status).toBe(200);
    expect((await h.call("GET", "/v1/tenants/half/restore")).status).toBe(404);
    expect((await h.call("GET", "/v1/tenants/acme/restore")).status).toBe(404);
  });

  test("refuses a name that is taken unless told to replace it, and does so once", async () => {
    const h = await world();
    await fill(h, 2, 10);
    const copy = parse((await h.call("GET", "/v1/tenants/acme/backup")).text);
    const refused = await restore(h, "acme", copy);
    expect(refused.body).toMatchObject({ status: 409, code: "already-exists" });
    await h.call("PUT", "/v1/tenants/acme/namespaces/app/configs/after", { body: {} });
    const before = await h.call("GET", "/v1/tenants/acme");
    const done = await restore(h, "acme", copy, { replace: true });
    expect(done.status).toBe(201);
    expect((await h.call("GET", "/v1/tenants/acme/namespaces/app/configs/after")).status).toBe(404);
    const after = await h.call("GET", "/v1/tenants/acme");
    expect(after.body.group).toBeGreaterThan(before.body.group);
    expect((await h.call("GET", "/v1/cluster/status")).body.tenants).toBe(1);
  });

  test("counts versions on, and takes none of them for what was called so before", async () => {
    const h = await world();
    const C = "/v1/tenants/acme/namespaces/app/configs/c";
    const flag = (on: boolean) => ({
      content: { state: "ENABLED", variants: { x: on, y: !on }, defaultVariant: "x" },
    });
    await h.call("PUT", C, { body: { format: "flag", ...flag(false) } });
    const copy = parse((await h.call("GET", "/v1/tenants/acme/backup")).text);
    const ofContent = [
      "/v1/tenants/acme/namespaces/app/values",
      "/v1/tenants/acme/namespaces/app/values/c",
      "/v1/tenants/acme/namespaces/app/flagd.json",
      `${C}/versions/2`,
    ];
    // As many changes before it as a restore is, so that its revision comes again as well.
    await h.call("PUT", "/v1/tenants/acme/namespaces/other/configs/c", { body: {} });
    const old = await h.call("POST", `${C}/publish`, { body: flag(true) });
    const before = await Promise.all(ofContent.map((path) => h.call("GET", path)));
    expect((await restore(h, "acme", copy, { replace: true })).status).toBe(201);
    const content = { state: "DISABLED", variants: { x: true, z: true }, defaultVariant: "z" };
    const published = await h.call("POST", `${C}/publish`, { body: { content } });
    expect([published.body.version, published.body.revision]).toEqual([2, old.body.revision]);
    for (const [i, path] of ofContent.entries()) {
      const etag = before[i]?.headers.get("etag") as string;
      const after = await h.call("GET", path, { headers: { "if-none-match": etag } });
      expect([path, after.status]).toEqual([path, 200]);
      expect(after.text).toContain("DISABLED");
    }
  });

  test("is bound by its own quotas, and knows nothing of who told what of versions before", async () => {
    const h = await world();
    await fill(h, 1, 10);
    const { token } = await h.key("acme", "read");
    const copy = parse((await h.call("GET", "/v1/tenants/acme/backup")).text);
    const N = "/v1/tenants/acme/namespaces/app";
    const ask = () => h.call("GET", `${N}/values/c0`, { token });
    await restore(h, "acme", copy, { replace: true });
    const first = await ask();
    expect(first.status).toBe(200);
    const values = [{ name: "c0", version: 1, state: "applied" }];
    await h.call("POST", `${N}/feedback`, { body: { instance: "pod-1", values } });
    expect((await h.call("GET", `${N}/configs/c0/feedback`)).body.instances).toBe(1);
    await restore(h, "acme", copy, { replace: true, quotas: { requestsPerSecond: 0 } });
    const second = await ask();
    const revisions = [first, second].map(({ headers }) => headers.get("conflux-revision"));
    expect([second.status, revisions[1]]).toEqual([429, revisions[0]]);
    expect((await h.call("GET", `${N}/configs/c0/feedback`)).body.instances).toBe(0);
  });

  test("lets in nothing that is no row, and tells which one", async () => {
    const h = await world();
    const body = { source: { tenant: "x", epoch: 1, revision: 1 }, meta: {} };
    const wrong = await h.call("POST", "/v1/tenants/bad/restore", { body });
    expect(wrong.status).toBe(400);
    const meta = parse((await h.call("GET", "/v1/tenants/acme/backup")).text).head.meta;
    await h.call("POST", "/v1/tenants/bad/restore", { body: { ...body, meta } });
    const put = (rows: unknown) =>
      h.call("PUT", "/v1/tenants/bad/restore/rows/0", { body: { rows } });
    const broken = await put([
      ["cfg/a/b", "{}"],
      ["cfg/a/c", "{"],
    ]);
    expect(broken.body.errors[0].pointer).toBe("/rows/1/1");
    expect((await put([["root/x", "{}"]])).body).toMatchObject({ code: "invalid" });
    expect((await put([["cfg/a/b", "{}"]])).body).toMatchObject({ code: "invalid" });
    expect((await put([["meta", "{}"]])).body).toMatchObject({ code: "invalid" });
    const nowhere = await h.call("PUT", "/v1/tenants/bad/restore/rows/x", { body: { rows: [] } });
    expect(nowhere.status).toBe(400);
    expect(h.request("GET", "/").headers.get("authorization")).toContain(rootToken);
  });
});
