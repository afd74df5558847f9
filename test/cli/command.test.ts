/** The command as people run it: a process of its own, against a real gateway. */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { describe, expect, onTestFinished, test } from "vitest";
import { applyDirectory } from "../../src/cli/apply.ts";
import { serve } from "../../src/runtime/serve.ts";
import { settingsTable } from "../../src/runtime/settings.ts";
import { Harness } from "../gateway/harness.ts";
import { rootToken } from "../gateway/solo_service.ts";

/** Each test starts several processes; Bun's own bound of five seconds is for tests that do not. */
const timeoutMs = 60_000;

const root = path.resolve(import.meta.dirname, "../..");
const bin = path.resolve(
  path.dirname(createRequire(import.meta.url).resolve("vitest/package.json")),
  "../.bin",
);
const command = path.join(root, "src/cli/conflux.ts");
const runtimes = {
  bun: ["run"],
  deno: ["run", "--quiet", "--no-prompt", "-A"],
  node: ["--disable-warning=ExperimentalWarning"],
} as const;

interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

type Env = Readonly<Record<string, string>>;

function start(args: readonly string[], env: Env, runtime: keyof typeof runtimes): ChildProcess {
  const {
    CONFLUX_URL: _u,
    CONFLUX_TOKEN: _k,
    CONFLUX_TENANT: _t,
    CONFLUX_NAMESPACE: _n,
    ...clean
  } = process.env;
  const child = spawn(path.join(bin, runtime), [...runtimes[runtime], command, ...args], {
    cwd: root,
    env: { ...clean, ...env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  return child;
}

async function run(
  args: readonly string[],
  env: Env = {},
  options: { readonly stdin?: string; readonly runtime?: keyof typeof runtimes } = {},
): Promise<Ran> {
  const child = start(args, env, options.runtime ?? "bun");
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  child.stdin?.end(options.stdin ?? "");
  const [out, err] = await Promise.all([
    text(child.stdout as NodeJS.ReadableStream),
    text(child.stderr as NodeJS.ReadableStream),
  ]);
  return { code: await ended, out, err };
}

/** A gateway, the environment to reach it as tenant `acme`, and as root. */
async function gateway(): Promise<{ harness: Harness; env: Env; rootEnv: Env }> {
  const harness = new Harness();
  const server = await serve((request, info) => harness.gateway().fetch(request, info), {
    host: "127.0.0.1",
    port: 0,
  });
  onTestFinished(async () => {
    harness.close();
    await server.stop(0);
  });
  const CONFLUX_TOKEN = await harness.tenant("acme", { replicas: 1 });
  const CONFLUX_URL = server.url;
  // The tenant is read from its key.
  return {
    harness,
    env: { CONFLUX_URL, CONFLUX_TOKEN },
    rootEnv: { CONFLUX_URL, CONFLUX_TOKEN: rootToken },
  };
}

async function folder(): Promise<string> {
  const made = await mkdtemp(path.join(tmpdir(), "conflux-cli-"));
  onTestFinished(() => rm(made, { recursive: true }));
  return made;
}

/** Lines of a running command, one at a time. */
async function* lines(child: ChildProcess): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of child.stdout as AsyncIterable<Buffer>) {
    rest += chunk.toString();
    for (let end = rest.indexOf("\n"); end !== -1; end = rest.indexOf("\n")) {
      yield rest.slice(0, end);
      rest = rest.slice(end + 1);
    }
  }
}

describe("help and errors", () => {
  test(
    "help lists the commands, and each has its own",
    async () => {
      const all = await run(["--help"]);
      expect(all).toMatchObject({ code: 0, err: "" });
      const names = [...all.out.matchAll(/^ {2}([a-z]+) /gm)].map(([, name]) => name as string);
      for (const name of "start apply diff export import get describe delete publish release rollback eval gen feedback watch history keys audit namespaces tenants secrets issuers cluster journal".split(
        " ",
      ))
        expect(names).toContain(name);
      const one = await run(["eval", "--help"]);
      expect(one).toMatchObject({ code: 0, err: "" });
      expect(one.out).toMatch(/^Usage: conflux eval \[NAME\]/);
      expect(one.out).toMatch(/-l, --label K=V/);
      expect(await run(["help", "eval"])).toEqual(one);
    },
    timeoutMs,
  );

  test(
    "help of start lists every setting; the version is the package's",
    async () => {
      const help = await run(["start", "--help"], { CONFLUX_PORT: "not looked at" });
      expect(help).toMatchObject({ code: 0, err: "" });
      for (const { flag, env, allowed, meaning } of settingsTable)
        for (const text of [flag, env, allowed, meaning]) expect(help.out).toContain(text);
      const manifest = JSON.parse(await readFile(path.join(root, "package.json"), "utf8")) as {
        version: string;
      };
      expect((await run(["--version"])).out).toBe(`conflux ${manifest.version}\n`);
    },
    timeoutMs,
  );

  test.each([
    [["aply"], /no command aply; did you mean apply\?/],
    [["get", "--namespce", "x"], /no option --namespce; did you mean --namespace\?/],
    [["get", "a", "b"], /Usage: conflux get/],
    [["get"], /Name the tenant by --tenant or CONFLUX_TENANT/],
    [["get", "--tenant", "a", "-o", "xml"], /--output takes table, json, yaml: got xml/],
    [["get", "--tenant", "a", "--url", "localhost"], /Cannot use url "localhost"/],
    [["--tenant", "a", "get"], /Put the command before its options/],
    [["apply"], /Name the manifests: -f PATH/],
    [["apply", "-f", "/nowhere"], /Manifests are not valid; nothing was changed\n.*no such file/],
    [["import", "x", "--from", "etc"], /--from takes flagd, .+: got etc; did you mean etcd\?/],
    [["import", "x", "--from", "etcd", "--apply", "-f", "y"], /Give one of -f FOLDER, --diff/],
    [["publish", "a", "--tenant", "a"], /either -f FILE or --content/],
    [["release", "a", "--tenant", "a"], /Say what to release/],
    [["keys", "craete", "--tenant", "a"], /no craete here; did you mean create\?/],
    [["get", "a", "--tenant", "a", "--version", "1"], /--version goes with --content/],
    [["promote", "--from", "a", "-n", "a", "--tenant", "a"], /Name two namespaces/],
    [["audit", "verify", "--tenant", "a", "--head", "x"], /--head takes what verify said, sha256:/],
    [["tenants", "get"], /Say which one to get/],
    [["tenants", "list", "--purge"], /list takes no --purge\n/],
    [["keys", "rotate", "k", "--tenant", "a", "--kind", "read"], /no --kind; it takes --overlap/],
    [["cluster", "recover", "data", "--nodes", "a"], /recover takes no --nodes; it takes --gone/],
    [["tenants", "update", "a"], /Say what to change: --replicas, --description or --quota/],
    [["tenants", "create", "a", "--quota", "confgs=1"], /no quota confgs; did you mean configs\?/],
    [
      ["tenants", "update", "a", "--quota", "keys=x"],
      /Quota keys takes a whole number, or default/,
    ],
    [["tenants", "transfer", "a"], /Name the node that shall lead: --to NODE/],
    [
      ["cluster", "tenants", "--state", "odd"],
      /--state takes leaderless or under-replicated: got odd/,
    ],
    [["namespaces", "set", "a", "--tenant", "a"], /Say what to set: --extends NAME/],
  ])(
    "%j is refused",
    async (args, message) => {
      const { code, out, err } = await run(args);
      expect(err).toMatch(message);
      expect({ code, out }).toEqual({ code: 1, out: "" });
    },
    timeoutMs,
  );

  test(
    "a server that is not there is told within seconds",
    async () => {
      const { code, err } = await run(["cluster", "status", "--url", "http://127.0.0.1:1"]);
      expect(code).toBe(1);
      expect(err).toMatch(/^error: Cannot reach http:\/\/127\.0\.0\.1:1: .+\n {2}Start a node/);
    },
    timeoutMs,
  );

  test(
    "a refusal tells code, detail, request id and what to do",
    async () => {
      const { env } = await gateway();
      const wrong = await run(["get"], {
        ...env,
        CONFLUX_TOKEN: "nonsense",
        CONFLUX_TENANT: "acme",
      });
      expect(wrong.code).toBe(1);
      expect(wrong.err).toMatch(/^error: No valid key was given \(unauthorized, HTTP 401\)\n/);
      expect(wrong.err).toMatch(/\n {2}request id: \S+\n {2}Give a valid key by --token/);
      const invalid = await run(["publish", "a", "--format", "json", "--content", "{"], env);
      expect(invalid.err).toMatch(/invalid-content, HTTP 422/);
      expect(invalid.err).toMatch(/at \/content: /);
    },
    timeoutMs,
  );
});

test(
  "a config's life: publish, release, eval, history, rollback, delete",
  async () => {
    const { env } = await gateway();
    const made = await folder();
    const rules = path.join(made, "rules.yaml");
    await writeFile(rules, "- id: gold\n  match: { tier: gold }\n  version: 2\n");
    const ok = async (args: readonly string[], stdin?: string): Promise<string> => {
      const ran = await run(args, env, stdin === undefined ? {} : { stdin });
      expect(ran.err).toBe("");
      expect(ran.code).toBe(0);
      return ran.out;
    };
    expect(await ok(["publish", "limits", "--format", "json", "--content", '{"max":1}'])).toBe(
      "Created default/limits with version 1, released\n",
    );
    const elsewhere = await run(["eval", "limits", "--explain"], {
      ...env,
      CONFLUX_NAMESPACE: "elsewhere",
    });
    expect(elsewhere.out).toMatch(/^config +limits\nversion +-\nrule +-\nreason +Nothing/);
    const named = { ...env, CONFLUX_NAMESPACE: "default" };
    expect((await run(["eval", "limits"], named)).out).toBe('{"max":1}');
    expect(await ok(["publish", "limits", "-f", "-", "-m", "more"], '{"max":2}')).toBe(
      "Published default/limits version 2, release 2\n",
    );
    expect(await ok(["release", "limits", "--default", "1", "--rules", rules])).toBe(
      "Released default/limits as release 3: 1 rule, default version 1\n",
    );
    expect(await ok(["eval", "limits"])).toBe('{"max":1}');
    expect(await ok(["eval", "limits", "--label", "tier=gold"])).toBe('{"max":2}');
    expect(await ok(["eval", "limits", "-l", "tier=gold", "--explain"])).toMatch(/gold: won\. /);
    expect(await ok(["eval"])).toMatch(/^limits +1 +json +\{"max":1\}$/m);
    expect(await ok(["get", "limits", "--content", "--version", "2"])).toBe('{"max":2}');
    expect(JSON.parse(await ok(["get", "-o", "json"]))).toMatchObject([{ name: "limits" }]);
    expect(await ok(["get", "limits", "-o", "yaml"])).toMatch(/^latestVersion: 2$/m);
    expect(await ok(["describe", "limits"])).toMatch(/^gold +\{"tier":"gold"\}/m);
    expect(await ok(["rollback", "limits", "--to", "2", "--spread", "1s"])).toBe(
      "Released default/limits as release 4: 0 rules, default version 2, equal to 2\n",
    );
    expect(await ok(["history", "limits"])).toMatch(/^4 .* rollback to 2$/m);
    expect(await ok(["release", "limits", "--no-default"])).toMatch(/0 rules, no default/);
    expect(await ok(["delete", "limits"])).toMatch(/^Deleted default\/limits/);
    expect(await ok(["get"])).toBe("NAME  FORMAT  VERSIONS  DEFAULT  RULES  RELEASE  UPDATED\n");
    expect(await ok(["delete", "limits", "--undelete"])).toBe("Undeleted default/limits\n");
  },
  timeoutMs,
);

test(
  "apply makes manifests true, once; diff tells before",
  async () => {
    const { rootEnv } = await gateway();
    const made = await folder();
    const file = path.join(made, "shop.yaml");
    const write = (limits: string): Promise<void> =>
      writeFile(
        file,
        `tenant: shop
replicas: 1
namespaces:
  base:
    configs:
      banner: { format: text, content: Welcome }
  prod:
    extends: base
    configs:
      limits:
        format: json
        schema: '{ "type": "object" }'
        variants:
          small: { content: '${limits}' }
          large: { content: '{"max":9}' }
        release:
          rules:
            - { id: gold, match: { tier: gold }, rollout: { percentage: 50, by: user }, variant: large }
          default: small
`,
      );
    await write('{"max":1}');
    const f = ["-f", made];
    const before = await run(["diff", ...f], rootEnv);
    expect(before).toMatchObject({ code: 2, err: "" });
    expect(before.out.split("\n").slice(0, -1)).toEqual([
      "+ tenant shop",
      "+ namespace shop/prod",
      "+ config shop/base/banner",
      "+ config shop/prod/limits",
    ]);
    const first = await run(["apply", ...f], rootEnv);
    expect(first).toMatchObject({ code: 0, err: "" });
    expect(first.out).toMatch(/^admin key of shop, shown this once: cfx_admin_shop_/m);
    expect(first.out).toMatch(/^shop \(new\): 2 created, 0 updated, 0 unchanged$/m);
    expect(await run(["diff", ...f], rootEnv)).toMatchObject({ code: 0, out: "No differences\n" });
    expect((await run(["apply", ...f], rootEnv)).out).toBe(
      "shop: 0 created, 0 updated, 2 unchanged\n",
    );
    const shop = { ...rootEnv, CONFLUX_TENANT: "shop" };
    expect((await run(["eval", "banner", "-n", "prod"], shop)).out).toBe("Welcome");
    const revision = async (): Promise<unknown> =>
      JSON.parse((await run(["tenants", "get", "shop", "-o", "json"], shop)).out).usage.revision;
    const was = await revision();

    await write('{"max":2}');
    const changed = await run(["diff", ...f], rootEnv);
    expect(changed.code).toBe(2);
    expect(changed.out).toMatch(/^~ config shop\/prod\/limits: content of small\n/);
    expect(changed.out).toMatch(/^ {2}-\{"max":1\}\n {2}\+\{"max":2\}$/m);
    expect(await revision()).toBe(was);
    const second = await run(["apply", ...f, "-o", "json"], rootEnv);
    expect(JSON.parse(second.out)).toMatchObject([
      { tenant: "shop", steps: [{}, {}, { action: "unchanged" }, { action: "update" }] },
    ]);
    expect(await revision()).toBe((was as number) + 1);

    await write('{"max":');
    const broken = await run(["apply", ...f], rootEnv);
    expect(broken.code).toBe(1);
    expect(broken.err).toMatch(/nothing was changed\n.*:\d+: .*Not valid json/);
    expect(await revision()).toBe((was as number) + 1);
  },
  timeoutMs,
);

test(
  "apply shows the key of a tenant that it created and could not finish",
  async () => {
    const { rootEnv } = await gateway();
    const made = await folder();
    const manifest = `tenant: half
namespaces:
  prod: { configs: { c: { format: json, schema: { type: object }, content: "1" } } }
`;
    await writeFile(path.join(made, "half.yaml"), manifest);
    const broken = await run(["apply", "-f", made], rootEnv);
    expect(broken).toMatchObject({ code: 1, out: "" });
    expect(broken.err).toMatch(/invalid-content, HTTP 422/);
    const token = /^admin key of half, shown this once: (\S+)$/m.exec(broken.err)?.[1] ?? "";
    const keys = await run(["keys", "list"], { ...rootEnv, CONFLUX_TOKEN: token });
    expect(keys).toMatchObject({ code: 0, err: "" });
  },
  timeoutMs,
);

test(
  "apply reads again when somebody else changes the same at the same time",
  async () => {
    const { harness, rootEnv, env } = await gateway();
    const made = await folder();
    await writeFile(
      path.join(made, "acme.yaml"),
      "tenant: acme\nnamespaces:\n  default:\n    configs:\n      a: { format: text, content: mine }\n",
    );
    const runs = await Promise.all(
      Array.from({ length: 4 }, () => run(["apply", "-f", made], rootEnv)),
    );
    expect(runs.map(({ err }) => err).join("")).toBe("");
    expect((await run(["eval", "a"], env)).out).toBe("mine");
    expect((await harness.call("GET", "/v1/tenants/acme/usage")).body.configs).toBe(1);
  },
  timeoutMs,
);

test(
  "watch follows changes and values until it is interrupted",
  async () => {
    const { env } = await gateway();
    await run(["publish", "a", "--format", "json", "--content", "1"], env);
    const changes = start(["watch", "-o", "json"], env, "bun");
    const values = start(["watch", "a", "--label", "x=y"], env, "bun");
    const changeLines = lines(changes);
    const valueLines = lines(values);
    expect((await valueLines.next()).value).toMatch(/^\d+ {2}a version 1 {2}1$/);
    // A stream from now on has no first line that says that it began: publish until it tells.
    const first = changeLines.next();
    let told = false;
    const noted = first.then((line) => {
      told = true;
      return line;
    });
    for (let n = 2; !told; n += 1) await run(["publish", "a", "--content", String(n)], env);
    expect(JSON.parse((await noted).value as string)).toMatchObject({
      event: "commit",
      data: { changes: [{ namespace: "default", name: "a" }, {}] },
    });
    expect((await valueLines.next()).value).toMatch(/^\d+ {2}a version 2 {2}2$/);
    for (const child of [changes, values]) {
      const ended = new Promise((resolve) => child.on("exit", resolve));
      child.kill("SIGINT");
      expect(await ended).toBe(0);
    }
  },
  timeoutMs,
);

test(
  "watch ends with the problem when the key is refused",
  async () => {
    const { env } = await gateway();
    for (const args of [["watch"], ["watch", "--values"]]) {
      const ran = await run([...args, "--tenant", "acme"], { ...env, CONFLUX_TOKEN: "nonsense" });
      expect(ran.code).toBe(1);
      expect(ran.err).toMatch(/unauthorized, HTTP 401/);
    }
  },
  timeoutMs,
);

test(
  "keys and tenants",
  async () => {
    const { env, rootEnv } = await gateway();
    const created = await run(["keys", "create", "--kind", "read", "--only", "prod"], env);
    expect(created.out).toMatch(/\ncfx_read_acme_\S+\n$/);
    const list = await run(["keys", "list", "-o", "json"], env);
    const keys = JSON.parse(list.out) as { id: string; kind: string }[];
    const { id } = keys.find(({ kind }) => kind === "read") as { id: string };
    const rotated = await run(["keys", "rotate", id, "--overlap", "60"], env);
    expect(rotated.out).toMatch(/ ends \d{4}-.*\ncfx_read_acme_\S+\n$/);
    expect((await run(["keys", "delete", id], env)).out).toBe(`Deleted key ${id}\n`);
    expect((await run(["tenants", "create", "shop", "--replicas", "1"], rootEnv)).out).toMatch(
      /^Created tenant shop; .*\ncfx_admin_shop_/,
    );
    expect((await run(["tenants", "list"], rootEnv)).out).toMatch(/^shop /m);
    const update = ["tenants", "update", "shop", "--description", "Shoes", "--quota", "configs=7"];
    expect((await run(update, rootEnv)).out).toBe("Updated tenant shop\n");
    const changed = await run(["tenants", "get", "shop"], rootEnv);
    expect(changed.out).toMatch(/^description +Shoes$/m);
    expect(changed.out).toMatch(/^configs +0 of 7$/m);
    await run(["tenants", "update", "shop", "--quota", "configs=default"], rootEnv);
    expect((await run(["tenants", "get", "shop"], rootEnv)).out).toMatch(/^configs +0 of 10000$/m);
    expect((await run(["tenants", "group", "shop"], rootEnv)).out).toMatch(/^leader +\S+$/m);
    expect((await run(["cluster", "tenants"], rootEnv)).out).toMatch(/^shop +\d+ +ok /m);
    const none = await run(["cluster", "tenants", "--state", "leaderless"], rootEnv);
    expect(none.out).toBe("TENANT  GROUP  STATE  NODES\n");
    const set = await run(["namespaces", "set", "prod", "--extends", "base", "--protect"], env);
    expect(set.out).toMatch(/^prod +base +yes /m);
    await run(["namespaces", "set", "prod", "--unprotect"], env);
    expect((await run(["namespaces", "list"], env)).out).toMatch(/^prod +base +no /m);
    expect((await run(["tenants", "delete", "shop"], rootEnv)).out).toMatch(
      /^Deleted tenant shop; /,
    );
    expect((await run(["tenants", "undelete", "shop"], rootEnv)).code).toBe(0);
    expect((await run(["tenants", "delete", "shop", "--purge"], rootEnv)).code).toBe(0);
    expect((await run(["tenants", "list"], env)).err).toMatch(/forbidden, HTTP 403/);
    expect((await run(["cluster", "status"], rootEnv)).out).toMatch(/^cluster /);
    const issuer = path.join(await folder(), "idp.yaml");
    await writeFile(
      issuer,
      "issuer: https://id.example\naudience: conflux\nrules:\n  - { tenant: acme, kind: read }\n",
    );
    const put = await run(["issuers", "put", "idp", "-f", issuer], rootEnv);
    expect(put.out).toMatch(/^keys +by discovery$/m);
    expect((await run(["issuers", "list"], rootEnv)).out).toMatch(/^idp +https:\/\/id\.example/m);
    expect((await run(["issuers", "delete", "idp"], rootEnv)).out).toBe("Deleted issuer idp\n");
    expect((await run(["audit", "list"], env)).out).toMatch(/ key\.rotate +/);
    const exported = await run(["audit", "export"], env);
    const records = exported.out.trim().split("\n");
    const { hash } = JSON.parse(records.at(-1) as string) as { hash: string };
    const verified = await run(["audit", "verify", "--head", hash], env);
    expect(verified).toMatchObject({ code: 0, err: "" });
    expect(verified.out).toContain(`${records.length} records`);
    const foreign = await run(["audit", "verify", "--head", `sha256:${"0".repeat(64)}`], env);
    expect(foreign.code).toBe(1);
  },
  timeoutMs,
);

test.each(["deno", "node"] as const)(
  "runs on %s too",
  async (runtime) => {
    const { env, rootEnv } = await gateway();
    const made = await folder();
    const file = path.join(made, "acme.yaml");
    await writeFile(
      file,
      "tenant: acme\nnamespaces:\n  default:\n    configs:\n      a: { format: text, content: x }\n",
    );
    const applied = await run(["apply", "-f", file], rootEnv, { runtime });
    expect(applied).toMatchObject({
      code: 0,
      out: "+ config acme/default/a\nacme: 1 created, 0 updated, 0 unchanged\n",
      err: "",
    });
    expect(await run(["eval", "a"], env, { runtime })).toEqual({ code: 0, out: "x", err: "" });
    expect((await run(["gte"], env, { runtime })).err).toMatch(/did you mean get\?/);
  },
  timeoutMs,
);

test(
  "a deleted tenant is not applied, and keeps no other from it",
  async () => {
    const { harness, rootEnv } = await gateway();
    const made = await folder();
    await writeFile(path.join(made, "acme.yaml"), "tenant: acme\nnamespaces: {}\n");
    await writeFile(path.join(made, "shop.yaml"), "tenant: shop\nreplicas: 1\n");
    await harness.call("DELETE", "/v1/tenants/acme");
    const ran = await run(["apply", "-f", made], rootEnv);
    expect(ran.code).toBe(1);
    expect(ran.err).toMatch(/tenant-deleted, HTTP 410\)\n {2}Undelete tenant acme first/);
    const lines = await applyDirectory({
      folder: made,
      token: rootToken,
      url: "http://localhost",
      fetch: async (request) => harness.gateway().fetch(request),
    });
    expect(lines.split("\n")).toEqual([
      expect.stringMatching(/^acme: not applied: Undelete tenant acme first .*\(tenant-deleted\)$/),
      "shop (new): 0 created, 0 updated, 0 unchanged",
    ]);
  },
  timeoutMs,
);

test(
  "start runs a node, applies manifests, and stops when asked",
  async () => {
    const data = await folder();
    const args = ["start", "--port", "0", "--data", data, "--tenants", "tenants", "--log", "error"];
    const child = start(args, {}, "bun");
    const out = lines(child);
    const listens = (await out.next()).value as string;
    const url = /listens on (http:\S+)/.exec(listens)?.[1] as string;
    expect((await out.next()).value).toBe("acme (new): 4 created, 0 updated, 0 unchanged");
    const token = (await readFile(path.join(data, "root-token"), "utf8")).trim();
    const env = { CONFLUX_URL: url, CONFLUX_TOKEN: token, CONFLUX_TENANT: "acme" };
    expect((await run(["eval", "banner", "-n", "staging"], env)).out).toBe("This is staging");
    const ended = new Promise((resolve) => child.on("exit", resolve));
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
  },
  timeoutMs,
);

describe("conflux backup and restore", () => {
  test(
    "take, skip, verify, give back under another name or over a tenant, and tell what failed by exit codes",
    async () => {
      const { harness, env, rootEnv } = await gateway();
      const to = await folder();
      await harness.tenant("beta");
      const put = (tenant: string, content: string) =>
        harness.call("PUT", `/v1/tenants/${tenant}/namespaces/app/configs/c${content.length}`, {
          body: { format: "text", content },
        });
      await put("acme", "one");
      const own = await run(["backup", "--to", to], env);
      expect([own.code, own.err]).toEqual([0, ""]);
      expect(own.out).toContain("taken");
      // A tenant's key is not for others, nor for the list of all.
      expect((await run(["backup", "--to", to, "beta"], env)).code).toBe(1);
      const all = await run(["backup", "--to", to, "--all", "-o", "json"], rootEnv);
      expect(all.code).toBe(0);
      expect(JSON.parse(all.out)).toMatchObject([
        { tenant: "acme", state: "unchanged" },
        { tenant: "beta", state: "taken" },
      ]);
      expect((await run(["backup", "verify", to])).code).toBe(0);

      const taken = await run(["restore", "--from", to, "acme"], rootEnv);
      expect([taken.code, taken.err]).toEqual([1, expect.stringContaining("acme exists")]);
      await put("acme", "after");
      const replaced = await run(["restore", "--from", to, "acme", "--replace"], rootEnv);
      expect([replaced.code, replaced.err]).toEqual([0, ""]);
      expect(
        (await harness.call("GET", "/v1/tenants/acme/namespaces/app/values")).text,
      ).not.toContain("c5");
      // The tenant's own key came back with it.
      expect((await run(["get", "-n", "app"], env)).out).toContain("c3");
      const copy = await run(["restore", "--from", to, "acme", "--as", "copy"], rootEnv);
      const key = /admin key of copy, shown this once: (\S+)/.exec(copy.out)?.[1] as string;
      const asCopy = { ...env, CONFLUX_TOKEN: key };
      expect((await run(["get", "-n", "app"], asCopy)).out).toContain("c3");

      const file = path.join(to, "acme.ndjson");
      const text = await readFile(file, "utf8");
      await writeFile(file, text.replace('"one"', '"two"'));
      const damaged = await run(["backup", "verify", to]);
      expect([damaged.code, damaged.err]).toEqual([
        1,
        expect.stringContaining("acme: Its checksum"),
      ]);
      expect(damaged.out).toMatch(/beta +good/);
      expect((await run(["restore", "--from", to, "acme", "--as", "bad"], rootEnv)).code).toBe(1);
      expect((await harness.call("GET", "/v1/tenants/bad")).status).toBe(404);
      expect((await run(["backup"], env)).code).toBe(1);
      expect((await run(["restore", "--from", to, "--drop", "x"], rootEnv)).code).toBe(1);
    },
    2 * timeoutMs,
  );
});

test(
  "gen types writes what programs compile against; feedback shows what instances told",
  async () => {
    const { harness, env } = await gateway();
    const schema = { type: "object", required: ["max"], properties: { max: { type: "integer" } } };
    await harness.call("PUT", "/v1/tenants/acme/namespaces/default/configs/limits", {
      body: { content: { max: 1 }, schema },
    });
    const types = await run(["gen", "types"], env);
    expect([types.code, types.err]).toEqual([0, ""]);
    expect(types.out).toContain(
      "export interface Configs {\n  readonly limits: {\n    readonly max: number;\n  };\n}\n",
    );
    expect((await run(["gen", "tips"], env)).err).toContain(
      "There is no tips here; did you mean types?",
    );
    await harness.call("POST", "/v1/tenants/acme/namespaces/default/feedback", {
      body: {
        instance: "pod-1",
        values: [{ name: "limits", version: 1, state: "rejected", reason: "too low" }],
      },
    });
    const told = await run(["feedback", "limits"], env);
    expect(told.out.trim().split("\n").at(-1)?.split(/ {2,}/)).toEqual([
      "1",
      "0",
      "1",
      "pod-1: too low",
    ]);
  },
  timeoutMs,
);

test(
  "bench tells what was done, and leaves no config behind",
  async () => {
    const { env } = await gateway();
    const args = ["bench", "--seconds", "1", "--connections", "2", "-o", "json"];
    const ran = await run(args, env);
    expect([ran.code, ran.err]).toEqual([0, ""]);
    const results = JSON.parse(ran.out) as { what: string; done: number; failed: object }[];
    expect(results.map(({ what, failed }) => [what, failed])).toEqual([
      ["publish", {}],
      ["read", {}],
    ]);
    for (const { done } of results) expect(done).toBeGreaterThan(0);
    expect(JSON.parse((await run(["get", "-o", "json"], env)).out)).toEqual([]);
    const many = await run(["bench", "--connections", "1001"], env);
    expect([many.code, many.err]).toEqual([1, "error: Option --connections takes at most 1000\n"]);
  },
  timeoutMs,
);
