/**
 * Trees of keys and values: etcd as `etcdctl get --prefix … -w json` or its HTTP gateway write them, Consul as
 * `consul kv export` or its HTTP API do. Each key becomes a config of its own.
 */
import {
  base64Bytes,
  formatOfKey,
  formatOfText,
  isFields,
  textOf,
  type ImportFile,
  type Importing,
} from "./importing.ts";

const etcdHint = "Give what `etcdctl get --prefix / -w json` writes";

export function fromEtcd(file: ImportFile, out: Importing): void {
  const answer = out.json(file, etcdHint);
  if (!isFields(answer) || !isFields(answer["header"]))
    out.fail(`This is no answer of etcd. ${etcdHint}`);
  const { kvs = [] } = answer;
  if (!Array.isArray(kvs)) out.fail(`/kvs: Give a list of keys with values. ${etcdHint}`);
  if (answer["more"] === true)
    out.leftOut(
      "",
      "the keys beyond the limit that the export was made with: it says there are more",
    );
  for (const [index, kv] of (kvs as unknown[]).entries()) {
    const at = `/kvs/${index}`;
    if (!isFields(kv)) out.fail(`${at}: Give an object with key and value. ${etcdHint}`);
    const { key, value = "", lease = 0 } = kv;
    const name = typeof key === "string" ? base64Bytes(key) : null;
    const content = typeof value === "string" ? base64Bytes(value) : null;
    if (name === null) out.problem(`${at}/key: Give the key in base64`);
    if (content === null) out.problem(`${at}/value: Give the value in base64`);
    if (name === null || content === null) continue;
    const text = textOf(name);
    if (text === null) {
      out.leftOut(JSON.stringify(Buffer.from(name).toString("latin1")), "a key that is not UTF-8");
      continue;
    }
    const isLeased = lease !== 0 && lease !== "0";
    if (!addPair(text, content, {}, out)) continue;
    if (isLeased)
      out.note(text, "hangs on a lease in etcd and goes with it; here it is a config that stays");
  }
}

const consulHint = "Give what `consul kv export` writes";

export function fromConsul(file: ImportFile, out: Importing): void {
  const pairs = out.json(file, consulHint);
  if (!Array.isArray(pairs)) out.fail(`Give a list of keys with values. ${consulHint}`);
  for (const [index, pair] of (pairs as unknown[]).entries()) {
    const at = `/${index}`;
    if (!isFields(pair)) out.fail(`${at}: Give an object with key, flags and value. ${consulHint}`);
    // The HTTP API has the same with capitals.
    const field = (name: string): unknown =>
      pair[name] ?? pair[`${name[0]?.toUpperCase()}${name.slice(1)}`];
    const key = field("key");
    const value = field("value") ?? "";
    if (typeof key !== "string" || key === "") {
      out.problem(`${at}/key: Give the key as a text`);
      continue;
    }
    const content = typeof value === "string" ? base64Bytes(value) : null;
    if (content === null) {
      out.problem(`${at}/value: Give the value of ${JSON.stringify(key)} in base64`);
      continue;
    }
    addPair(key, content, consulTags(key, field, out), out);
  }
}

function consulTags(
  key: string,
  field: (name: string) => unknown,
  out: Importing,
): Record<string, string> {
  const tags: Record<string, string> = {};
  const flags = field("flags");
  if (Number.isSafeInteger(flags) && flags !== 0) tags["consul-flags"] = String(flags);
  else if (typeof flags === "number" && flags !== 0)
    out.leftOut(key, "its flags, which have more digits than a number of JSON keeps");
  for (const name of ["namespace", "partition"]) {
    const value = field(name);
    if (typeof value === "string" && value !== "") tags[`consul-${name}`] = value;
  }
  return tags;
}

/** @returns whether it is carried over */
function addPair(
  key: string,
  value: Uint8Array,
  tags: Record<string, string>,
  out: Importing,
): boolean {
  if (!out.isWanted(key)) return false;
  // What a tree of keys has for its folders.
  if (value.length === 0 && (key.endsWith("/") || key === out.options.prefix)) {
    out.note(key, "a folder, of which nothing has to be kept");
    return false;
  }
  const content = textOf(value);
  if (content === null) {
    out.leftOut(
      key,
      `its value is not UTF-8 (${value.length} bytes): a config is text; base64 is a way to keep it`,
    );
    return false;
  }
  const name = out.nameOf(key);
  if (name === null) return false;
  out.look([key]);
  out.add({ key, name, format: formatOfKey(key) ?? formatOfText(content), content, tags });
  return true;
}
