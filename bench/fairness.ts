/**
 * One tenant at full speed beside very many that do little: what it costs the others. Three nodes, three voters each.
 *
 * Estimate before measuring: a write of a quiet tenant takes a turn of three nodes and two journal writes, about 3 ms. The
 * busy tenant has 32 writes under way at most; a turn takes what has arrived, of whichever tenant, so a quiet write waits
 * for the turn under way and shares the next one with at most 32 others: a few milliseconds more, while a core is left.
 * On two cores for everything, the load generator and nats-server included, none is: what waits then is the process, and
 * the busy tenant is paced (src/host/DESIGN.md): 32 writes every 25 to 100 ms, which take some 20 ms of processor a round.
 *
 * Run: npm run bench -- fairness, or bun bench/fairness.ts [--tenants 1000] [--rate 100] [--seconds 10] [--connections 32]
 *      [--write]
 */
import { loadavg } from "node:os";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startCluster } from "../infra/cluster.mjs";
import { ask, inParallel, persist } from "../test/e2e/api.ts";
import { load as runLoad, type LoadResult } from "./load.ts";
import { processorSeconds } from "./processes.ts";
import { printRows, quantiles, writeReport, type Quantiles, type Row } from "./report.ts";

const { values } = parseArgs({
  options: {
    tenants: { type: "string", default: "1000" },
    rate: { type: "string", default: "100" },
    seconds: { type: "string", default: "10" },
    connections: { type: "string", default: "32" },
    write: { type: "boolean", default: false },
  },
});
const [count, rate, seconds, connections] = [
  values.tenants,
  values.rate,
  values.seconds,
  values.connections,
].map(Number) as [number, number, number, number];
const loadBefore = loadavg()[0] ?? 0;
const names = Array.from({ length: count }, (_, at) => `t${at}`);
const config = "namespaces/app/configs/c";

const cluster = await startCluster({ nodes: 3, env: { CONFLUX_LOG: "error" } });
try {
  const token = cluster.rootToken;
  const urls = cluster.nodes.map(({ url }) => url);
  for (let made = 0; made < count; made += 500) {
    const tenants = names.slice(made, made + 500).map((id) => ({ id }));
    const answer = await ask(`${urls[0]}/v1/tenants/batch`, { token, body: { tenants } });
    if (answer.status !== 201) throw new Error(JSON.stringify(answer.body));
  }
  let turn = 0;
  await inParallel(names, 16, async (tenant) => {
    const at = urls[turn++ % urls.length] as string;
    await persist([at], `/v1/tenants/${tenant}/${config}`, {
      method: "PUT",
      token,
      body: { format: "text", content: "start" },
    });
  });

  /** A write to each of the quiet tenants in turn, at a steady rate, whatever became of those before. */
  const quietly = async (): Promise<Quantiles> => {
    const times: number[] = [];
    const under: Promise<void>[] = [];
    const began = performance.now();
    for (let at = 0; at < rate * seconds; at += 1) {
      await sleep(Math.max(0, began + (at * 1_000) / rate - performance.now()));
      const tenant = names[1 + (at % (count - 1))] as string;
      const sent = performance.now();
      under.push(
        ask(`${urls[at % urls.length]}/v1/tenants/${tenant}/${config}/publish`, {
          token,
          body: { content: `${at} ${sent}` },
        }).then(({ status }) => {
          if (status >= 300) throw new Error(`A quiet tenant was refused: ${status}`);
          times.push(performance.now() - sent);
        }),
      );
    }
    await Promise.all(under);
    return quantiles(times);
  };
  const busily = (): Promise<LoadResult> =>
    runLoad({
      urls,
      connections,
      seconds,
      request: (number) => ({
        method: "POST",
        path: `/v1/tenants/${names[0]}/${config}/publish`,
        token,
        body: `{"content":"busy ${number}"}`,
      }),
    });
  const pids = cluster.nodes.flatMap(({ pid }) => pid ?? []);
  const cores = async <T>(run: Promise<T>): Promise<readonly [T, number]> => {
    const [before, at] = [processorSeconds(pids), performance.now()];
    const result = await run;
    return [result, (processorSeconds(pids) - before) / ((performance.now() - at) / 1_000)];
  };

  await quietly();
  const [alone, coresAlone] = await cores(quietly());
  const [[beside, busy], coresBeside] = await cores(Promise.all([quietly(), busily()]));
  const text = ({ p50, p99, max }: Quantiles): string =>
    `p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms, longest ${max.toFixed(1)} ms`;
  const rows: Row[] = [
    {
      what: `${count - 1} quiet tenants, ${rate} writes/s in all, alone`,
      figure: `${text(alone)}; ${coresAlone.toFixed(2)} cores`,
      wanted: "",
    },
    {
      what: "the same beside the busy one",
      figure: `${text(beside)}; ${coresBeside.toFixed(2)} cores`,
      wanted: `p99 < ${(2 * alone.p99).toFixed(1)} ms (twice)`,
    },
    {
      what: `the busy one, ${connections} writes under way`,
      figure: `${Math.round(busy.perSecond)} writes/s`,
      wanted: "",
    },
  ];
  printRows(rows);
  if (values.write)
    writeReport({
      name: "fairness",
      title: "One tenant at full speed",
      args: process.argv.slice(2),
      setting: "three nodes, nats-server and both load generators on one machine",
      load: loadBefore,
      text: "A quiet tenant's write, from being sent to being answered, with and without one other tenant that writes as fast as it can.",
      rows,
      plot: "Latency of quiet tenants' writes",
      curves: [
        { name: "alone", curve: alone.curve },
        { name: "beside the busy one", curve: beside.curve },
      ],
    });
} finally {
  await cluster.stop();
}
