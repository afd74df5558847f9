/**
 * One node of a conversation, to be run on every runtime: `talk.ts <nats url> <node> <peer>…`. Greets all peers until
 * all have greeted it and answered, on every lane, then says `done` and ends when its input does.
 */
import process from "node:process";
import { lanes } from "../../src/host/ports.ts";
import { NatsTransport } from "../../src/transport/nats.ts";

const [server = "", node = "", ...peers] = process.argv.slice(2);
const transport = new NatsTransport({ cluster: "talk", node, boot: 1, servers: [server] });

const bigBytes = 1_500_000;
const heard = new Set<string>();
await transport.start((from, _boot, lane, bytes) => {
  if (bytes.length === bigBytes) transport.send(from, lane, new TextEncoder().encode("heard you"));
  else heard.add(`${from} ${lane}`);
});
// A peer that is not there yet misses a greeting: greet again, as everything above a transport must.
const greeting = new Uint8Array(bigBytes);
while (heard.size < peers.length * lanes.length) {
  for (const peer of peers)
    for (const lane of lanes)
      if (!heard.has(`${peer} ${lane}`)) transport.send(peer, lane, greeting);
  await new Promise((resolve) => setTimeout(resolve, 100));
}
console.log("done");
// Others may still be asking.
process.stdin.resume();
await new Promise((resolve) => process.stdin.once("end", resolve));
await transport.close();
