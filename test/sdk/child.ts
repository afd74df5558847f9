/** Follows a server on whatever runtime runs this, and prints what it sees as lines of JSON. */
import process from "node:process";
import { Conflux } from "../../src/sdk/mod.ts";

const [url = "", token = "", tenant = "", count = "1"] = process.argv.slice(2);
// Not `await using`: Node 22 runs this as it is, and does not know it.
const conflux = new Conflux({ url, token, tenant, labels: { region: "eu" } });
const changes = conflux.watch();
console.log(JSON.stringify({ ready: await conflux.ready({ timeoutMs: 10_000 }) }));
let seen = 0;
for await (const { name, old, new: value, revision } of changes) {
  console.log(JSON.stringify({ name, old, new: value, revision }));
  seen += 1;
  if (seen === Number(count)) break;
}
await conflux.close();
