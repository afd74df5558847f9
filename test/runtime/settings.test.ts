import { describe, expect, test } from "vitest";
import { readSettings, SettingsError, settingsTable } from "../../src/runtime/settings.ts";

interface Given {
  readonly args?: readonly string[];
  readonly env?: Record<string, string>;
  readonly file?: string;
}

function read({ args = [], env = {}, file }: Given) {
  return readSettings({
    args: file === undefined ? args : [...args, "--config", "c.yaml"],
    env: { PATH: "/bin", ...env },
    readFile: (path) => {
      if (file === undefined || path !== "c.yaml") throw new Error("ENOENT: no such file");
      return file;
    },
  });
}

function refusal(given: Given): string {
  try {
    read(given);
  } catch (error) {
    expect(error).toBeInstanceOf(SettingsError);
    return (error as Error).message;
  }
  throw new Error("It was not refused");
}

describe("settings", () => {
  test("the defaults are those of the contract", () => {
    expect(read({})).toEqual({
      port: 8080,
      host: "127.0.0.1",
      data: "./data",
      rootToken: null,
      cluster: "conflux",
      node: "n1",
      nats: null,
      natsNkey: null,
      natsCreds: null,
      natsCa: null,
      natsCert: null,
      natsKey: null,
      peers: null,
      zone: null,
      role: "member",
      replaceAfter: 300,
      sleepAfter: 600,
      clockDriftMax: 10,
      tenants: null,
      watchAge: 3600,
      tenantRetention: 30,
      secretKeyFile: null,
      secretKeyCommand: null,
      log: "info",
      diskReserveMib: 256,
      diskStall: 20,
      rehearsal: 100,
    });
  });

  test("the drift of clocks is percent of a kind that leaves something of a lease, or off", () => {
    const drift = (text: string) => read({ env: { CONFLUX_CLOCK_DRIFT_MAX: text } }).clockDriftMax;
    expect([drift("off"), drift("0.5"), drift("50")]).toEqual([null, 0.5, 50]);
    for (const text of ["0", "51", "-1", "none", "1e1"])
      expect(() => drift(text)).toThrow("a number of percent from 0.1 to 50, or off");
  });

  test("flags outweigh the environment, that the file, that the defaults", () => {
    const file = "port: 1\nhost: file\ndata: from-file\n";
    const env = { CONFLUX_PORT: "2", CONFLUX_HOST: "env" };
    expect(read({ args: ["--port", "3"], env, file })).toMatchObject({
      port: 3,
      host: "env",
      data: "from-file",
      node: "n1",
    });
    expect(read({ args: ["--port=4"] }).port).toBe(4);
  });

  test("a whole cluster's settings, in each of the three ways", () => {
    const expected = {
      cluster: "prod",
      node: "n2",
      nats: ["nats://a:4222", "b:4222"],
      peers: ["n1", "n2", "n3"],
      log: "debug",
      rootToken: "operator-token",
    };
    const env = {
      CONFLUX_CLUSTER: "prod",
      CONFLUX_NODE: "n2",
      CONFLUX_NATS: "nats://a:4222, b:4222",
      CONFLUX_PEERS: "n1,n2,n3",
      CONFLUX_LOG: "debug",
      CONFLUX_ROOT_TOKEN: "operator-token",
    };
    expect(read({ env })).toMatchObject(expected);
    const args = settingsTable.flatMap(({ env: name, flag }) =>
      name in env ? [flag, env[name as keyof typeof env]] : [],
    );
    expect(read({ args })).toMatchObject(expected);
    const file =
      "cluster: prod\nnode: n2\nnats: [nats://a:4222, 'b:4222']\npeers: [n1, n2, n3]\nlog: debug\nrootToken: operator-token\n";
    expect(read({ file })).toMatchObject(expected);
  });

  test.each([
    ["CONFLUX_PORT", "70000", "a whole number from 0 to 65535"],
    ["CONFLUX_PORT", "-1", "a whole number from 0 to 65535"],
    ["CONFLUX_PORT", "80a", "a whole number from 0 to 65535"],
    ["CONFLUX_PORT", "8080 ", "a whole number from 0 to 65535"],
    ["CONFLUX_HOST", "a b", "an address"],
    ["CONFLUX_DATA", " ", "a directory"],
    ["CONFLUX_CLUSTER", "a.b", "lower-case"],
    ["CONFLUX_NODE", "N1", "lower-case"],
    ["CONFLUX_PEERS", "n1,,n2", "distinct node names"],
    ["CONFLUX_PEERS", "n1,n1", "distinct node names"],
    ["CONFLUX_LOG", "loud", "fatal, error, warn, info, debug, trace, silent"],
  ])("%s=%j is refused", (name, value, allowed) => {
    const message = refusal({ env: { [name]: value } });
    expect(message).toContain(name);
    expect(message).toContain(JSON.stringify(value));
    expect(message).toContain(allowed);
    expect(message).not.toContain("\n");
  });

  test("a secret that is refused is not shown", () => {
    for (const env of [
      { CONFLUX_ROOT_TOKEN: "short" },
      { CONFLUX_ROOT_TOKEN: "cfx_read_acme_looks_like_a_key" },
      { CONFLUX_ROOT_TOKEN: "with space in it" },
      { CONFLUX_NATS: "http://user:secret@host" },
    ]) {
      const message = refusal({ env });
      expect(message).toContain(Object.keys(env)[0]);
      expect(message).not.toContain(Object.values(env)[0]);
    }
  });

  test("what is unknown is refused, wherever it stands", () => {
    expect(refusal({ args: ["--prot", "1"] })).toBe('"--prot" is not a flag: did you mean --port?');
    expect(refusal({ args: ["n1"] })).toContain('"n1" is not a flag');
    expect(refusal({ env: { CONFLUX_PROT: "1" } })).toContain(
      "CONFLUX_PROT is not a setting: did you mean CONFLUX_PORT?",
    );
    expect(refusal({ env: { CONFLUX_VERBOSITY: "1" } })).toContain("allowed are CONFLUX_PORT, ");
    expect(refusal({ file: "prot: 1" })).toContain('"prot" in c.yaml is not a setting');
  });

  test("variables of other parts of Conflux are let be, and empty ones are unset", () => {
    const env = {
      CONFLUX_URL: "u",
      CONFLUX_TOKEN: "t",
      CONFLUX_TENANT: "t",
      CONFLUX_NAMESPACE: "n",
      CONFLUX_ORACLES: "1",
      CONFLUX_NATS_SERVER: "/bin/nats-server",
      CONFLUX_PORT: "",
    };
    expect(read({ env }).port).toBe(8080);
  });

  test("flags need a value, once", () => {
    expect(refusal({ args: ["--port"] })).toContain("--port has no value");
    expect(refusal({ args: ["--port", "--host", "h"] })).toContain("--port has no value");
    expect(refusal({ args: ["--port", "1", "--port", "2"] })).toContain("--port is given twice");
    expect(refusal({ args: ["--config", "a", "--config", "b"] })).toContain("given twice");
  });

  test("a file that cannot be read, or is no mapping, is refused", () => {
    expect(refusal({ args: ["--config", "none.yaml"] })).toContain("none.yaml");
    expect(refusal({ file: "a: [" })).toContain("cannot be read as YAML");
    expect(refusal({ file: "- a" })).toContain("a YAML mapping");
    expect(refusal({ file: "port: { a: 1 }" })).toContain("port in c.yaml");
    expect(read({ file: "# nothing\n" }).port).toBe(8080);
  });

  test("contradictions are refused", () => {
    expect(refusal({ env: { CONFLUX_PEERS: "n1,n2" } })).toContain("CONFLUX_NATS is not set");
    expect(refusal({ env: { CONFLUX_NATS: "a:4222" } })).toContain("CONFLUX_PEERS is not");
    expect(refusal({ env: { CONFLUX_NATS_CA: "ca.pem" } })).toContain("CONFLUX_NATS is not set");
    const cluster = { CONFLUX_NATS: "a:4222", CONFLUX_PEERS: "n1" };
    expect(
      refusal({ env: { ...cluster, CONFLUX_NATS_NKEY: "a", CONFLUX_NATS_CREDS: "b" } }),
    ).toContain("allowed is one of them");
    expect(refusal({ env: { ...cluster, CONFLUX_NATS_CERT: "a" } })).toContain("belong together");
    const gateway = { CONFLUX_ROLE: "gateway" };
    expect(refusal({ env: gateway })).toContain("CONFLUX_NATS is not set");
    expect(refusal({ env: { ...cluster, ...gateway } })).toContain("CONFLUX_PEERS names n1");
    expect(read({ env: { ...cluster, ...gateway, CONFLUX_NODE: "g1" } }).role).toBe("gateway");
  });

  test("the table is whole: one row for each setting, each with what the documentation needs", () => {
    const names = settingsTable.map((setting) => setting.name);
    expect(new Set(names).size).toBe(names.length);
    expect([...names].sort()).toEqual(Object.keys(read({})).sort());
    for (const { env, flag, allowed, meaning } of settingsTable) {
      expect(env).toMatch(/^CONFLUX_[A-Z_]+$/);
      expect(flag).toBe(`--${env.slice("CONFLUX_".length).toLowerCase().replaceAll("_", "-")}`);
      expect(allowed).not.toBe("");
      expect(meaning).not.toBe("");
    }
  });
});
