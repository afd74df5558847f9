/**
 * Metrics of this node in Prometheus' text format, read when asked for: nothing is counted on the way of a request.
 */
import type { Context } from "./route.ts";

interface Metric {
  readonly name: string;
  readonly type: "gauge" | "counter";
  readonly help: string;
  readonly value: number;
}

export function metricsText({ service, watches }: Context): string {
  const cluster = service.cluster();
  const alive = cluster.nodes.filter((node) => node.alive || node.self).length;
  const { disk } = cluster;
  const metrics: readonly Metric[] = [
    gauge("conflux_ready", "Whether this node serves", Number(cluster.ready)),
    gauge("conflux_transport_connected", "Whether messages flow", Number(cluster.connected)),
    gauge("conflux_nodes_alive", "Nodes this node hears, itself among them", alive),
    gauge("conflux_nodes", "Nodes this node knows", cluster.nodes.length),
    gauge("conflux_tenants", "Tenants in the directory", cluster.tenants),
    gauge("conflux_replicas_warm", "Replicas in memory here", cluster.replicas.warm),
    gauge("conflux_replicas_leading", "Groups led from here", cluster.replicas.leaders),
    gauge("conflux_environments_open", "Open environments", cluster.environments.open),
    gauge("conflux_environments_cap", "Environments that may be open", cluster.environments.cap),
    gauge("conflux_journal_segments", "Segments of the journal", cluster.journal.segments),
    gauge("conflux_journal_bytes", "Bytes of the journal", cluster.journal.bytes),
    counter("conflux_journal_appends_total", "Records appended", cluster.journal.appends),
    counter("conflux_journal_syncs_total", "Durable writes", cluster.journal.syncs),
    ...(disk === null
      ? []
      : [
          gauge(
            "conflux_disk_free_bytes",
            "Room on the disk of the data directory",
            disk.freeBytes,
          ),
          gauge("conflux_disk_reserve_bytes", "Below this writes are refused", disk.reserveBytes),
        ]),
    gauge("conflux_watchers", "Open watches on this node", watches.count),
  ];
  return metrics
    .map(
      ({ name, type, help, value }) =>
        `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${name} ${value}\n`,
    )
    .join("");
}

function gauge(name: string, help: string, value: number): Metric {
  return { name, type: "gauge", help, value };
}

function counter(name: string, help: string, value: number): Metric {
  return { name, type: "counter", help, value };
}
