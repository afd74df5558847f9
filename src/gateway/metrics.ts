/**
 * Metrics of this node in Prometheus' text format. Requests are counted as they end; everything else is read when asked
 * for. No label names a tenant: with a hundred thousand of them that would be the node's largest data structure.
 */
import process from "node:process";
import { Counter, Gauge, Registry, type Histogram } from "prom-client";
import type { ClusterStatus } from "../host/ports.ts";
import type { WatchTotals } from "./limits.ts";
import type { Context, Route } from "./route.ts";

/** From a read in memory to a change that waits for an election, in seconds. */
const latencyBuckets = [
  0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
];

/** Of one route and class of answers. */
class Endings {
  readonly labels: { readonly route: string; readonly status: string };
  /** By the first of `latencyBuckets` that is long enough, and one beyond them. */
  readonly counts = new Float64Array(latencyBuckets.length + 1);
  seconds = 0;

  constructor(route: string, status: string) {
    this.labels = { route, status };
  }

  observe(seconds: number): void {
    let at = 0;
    while (at < latencyBuckets.length && seconds > (latencyBuckets[at] as number)) at++;
    this.counts[at] = (this.counts[at] as number) + 1;
    this.seconds += seconds;
  }
}

const durationsName = "conflux_http_request_duration_seconds";

/** As the registry asks for it when it is read. A histogram of its own looks up labels for every request: 5 µs of each. */
function* samplesOf({ labels, counts, seconds }: Endings) {
  let count = 0;
  for (let i = 0; i < counts.length; i++) {
    count += counts[i] as number;
    const le = latencyBuckets[i] ?? "+Inf";
    yield { metricName: `${durationsName}_bucket`, labels: { le, ...labels }, value: count };
  }
  yield { metricName: `${durationsName}_sum`, labels, value: seconds };
  yield { metricName: `${durationsName}_count`, labels, value: count };
}

export class Metrics {
  readonly #registry = new Registry();
  /** By route and class of status, so that a request looks nothing up by label. */
  readonly #endings = new Map<Route, (Endings | undefined)[]>();
  readonly #refresh: ((status: ClusterStatus, watchers: number, requests: number) => void)[] = [];

  #watches: WatchTotals = { bytes: 0, held: 0, waiting: 0 };

  constructor() {
    const registers = [this.#registry];
    const durations = {
      name: durationsName,
      help: "Requests by route and class of answer; watches are not among them",
      type: "histogram",
      aggregator: "sum",
      get: () => ({
        ...durations,
        values: [...this.#endings.values()].flatMap((endings) =>
          endings.flatMap((ending) => (ending === undefined ? [] : [...samplesOf(ending)])),
        ),
      }),
    };
    // Whatever has a name and `get` will do; the types know the classes only.
    this.#registry.registerMetric(durations as unknown as Histogram);
    const gauge = (
      name: string,
      help: string,
      read: (status: ClusterStatus, watchers: number, requests: number) => number,
    ): void => {
      const made = new Gauge({ name, help, registers });
      this.#refresh.push((...seen) => made.set(read(...seen)));
    };
    const counter = (name: string, help: string, read: (status: ClusterStatus) => number): void => {
      const made = new Counter({ name, help, registers });
      this.#refresh.push((status) => {
        made.reset();
        made.inc(read(status));
      });
    };
    gauge("conflux_ready", "Whether this node serves", (s) => Number(s.ready));
    gauge("conflux_transport_connected", "Whether messages flow", (s) => Number(s.connected));
    gauge("conflux_nodes", "Nodes this node knows", (s) => s.nodes.length);
    gauge(
      "conflux_nodes_alive",
      "Nodes this node hears, itself among them",
      (s) => s.nodes.filter((node) => node.alive || node.self).length,
    );
    gauge(
      "conflux_clock_ahead_seconds",
      "How far the wall clock here is ahead of the middle of all nodes; beyond 10 either way the middle counts",
      (s) => s.clockAheadMs / 1_000,
    );
    gauge("conflux_tenants", "Tenants in the directory", (s) => s.tenants);
    gauge("conflux_replicas_warm", "Replicas in memory here", (s) => s.replicas.warm);
    gauge("conflux_replicas_leading", "Groups led from here", (s) => s.replicas.leaders);
    gauge(
      "conflux_admission_pace_seconds",
      "Between batches of writes of busy tenants; 0: nobody is held up",
      (s) => s.admission.paceMs / 1_000,
    );
    gauge(
      "conflux_admission_waiting",
      "Writes of busy tenants that wait for their batch",
      (s) => s.admission.waiting,
    );
    counter("conflux_admission_held_total", "Writes that waited", (s) => s.admission.held);
    counter("conflux_admission_refused_total", "Writes refused", (s) => s.admission.refused);
    counter(
      "conflux_admission_quiet_total",
      "Writes of quiet tenants beside a busy one",
      (s) => s.admission.quiet,
    );
    counter(
      "conflux_admission_late_total",
      "Those of them that were late",
      (s) => s.admission.late,
    );
    gauge("conflux_environments_open", "Open environments", (s) => s.environments.open);
    gauge("conflux_environments_cap", "Environments that may be open", (s) => s.environments.cap);
    gauge("conflux_journal_segments", "Segments of the journal", (s) => s.journal.segments);
    gauge("conflux_journal_bytes", "Bytes of the journal", (s) => s.journal.bytes);
    counter("conflux_journal_appends_total", "Records appended", (s) => s.journal.appends);
    counter("conflux_journal_syncs_total", "Durable writes", (s) => s.journal.syncs);
    gauge(
      "conflux_disk_free_bytes",
      "Room on the disk of the data directory",
      (s) => s.disk?.freeBytes ?? Number.NaN,
    );
    gauge(
      "conflux_disk_reserve_bytes",
      "Below this writes are refused",
      (s) => s.disk?.reserveBytes ?? Number.NaN,
    );
    gauge(
      "conflux_disk_oldest_write_seconds",
      "How long the oldest write under way has been so",
      (s) => (s.disk?.oldestWriteMs ?? Number.NaN) / 1_000,
    );
    gauge("conflux_watchers", "Open watches on this node", (_s, watchers) => watchers);
    counter("conflux_watch_bytes_total", "Sent to watches", () => this.#watches.bytes);
    gauge(
      "conflux_watches_held",
      "Watches that wait because their tenant was sent what it may be",
      () => this.#watches.waiting,
    );
    counter("conflux_watches_held_total", "How often one had to", () => this.#watches.held);
    gauge("conflux_http_requests_in_flight", "Requests under way", (_s, _w, requests) => requests);
    gauge(
      "process_resident_memory_bytes",
      "Memory of the process",
      () => process.memoryUsage().rss,
    );
    gauge("process_start_time_seconds", "When it started, Unix time", () =>
      Math.round(Date.now() / 1000 - process.uptime()),
    );
    counter("process_cpu_seconds_total", "Processor time of the process", () => {
      const { user, system } = process.cpuUsage();
      return (user + system) / 1e6;
    });
    const alive = new Gauge({
      name: "conflux_node_alive",
      help: "Whether this node hears that one",
      labelNames: ["node"],
      registers,
    });
    this.#refresh.push((status) => {
      alive.reset();
      for (const node of status.nodes)
        alive.set({ node: node.name }, Number(node.alive || node.self));
    });
  }

  /** A request ended. */
  ended(route: Route, status: number, seconds: number): void {
    let endings = this.#endings.get(route);
    if (endings === undefined) this.#endings.set(route, (endings = []));
    const kind = Math.floor(status / 100);
    endings[kind] ??= new Endings(route.id, `${kind}xx`);
    endings[kind].observe(seconds);
  }

  text({ service, watches }: Context, requests: number, sent: WatchTotals): Promise<string> {
    const status = service.cluster();
    this.#watches = sent;
    for (const refresh of this.#refresh) refresh(status, watches.count, requests);
    return this.#registry.metrics();
  }
}
