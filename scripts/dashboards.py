"""Write Grafana's dashboards, deploy/grafana/dashboards; `--check` fails when they are not what this file makes.

The fleet's samples are in InfluxDB or in VictoriaMetrics, as the deployment chooses, so that a panel about servers asks
both: the one that is not used answers nothing. What the mesh says of itself is in VictoriaMetrics, the inventory in
PostgreSQL, traces in Tempo.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slo
import yaml

with warnings.catch_warnings():
    # The SDK would rather have the next schema, which Grafana 12 does not take from files.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
    from grafana_foundation_sdk.cog import builder, variants
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as kinds
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards"
HEIGHT = 8
# Of a series that has no value for a while.
STALE = "5m"
# What VictoriaMetrics' answers call their numbers: tables of both stores are merged where columns are called the same.
TO_VALUE = '\n  |> rename(columns: {_value: "Value"})'

VICTORIA = kinds.DataSourceRef(type_val="prometheus", uid="victoriametrics")
INFLUX = kinds.DataSourceRef(type_val="influxdb", uid="influxdb")
POSTGRES = kinds.DataSourceRef(type_val="grafana-postgresql-datasource", uid="postgresql")
TEMPO = kinds.DataSourceRef(type_val="tempo", uid="tempo")
MIXED = kinds.DataSourceRef(type_val="datasource", uid="-- Mixed --")

Panel = timeseries.Panel | stat.Panel | table.Panel | statetimeline.Panel
# The choices at the top of a dashboard, as each language has them.
PROMETHEUS_CHOICE = 'environment=~"$environment",role=~"$role"'
FLUX_CHOICE = "r.environment =~ /^${environment:regex}$/ and r.role =~ /^${role:regex}$/"


@dataclass(frozen=True, kw_only=True)
class Query(variants.Dataquery, builder.Builder[variants.Dataquery]):
    """A query of a data source that the SDK has no type for."""

    datasource: kinds.DataSourceRef
    fields: dict[str, Any]

    def build(self) -> Query:
        """Return itself: there is nothing left to choose."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Return what Grafana keeps of it."""
        return {"datasource": self.datasource, **self.fields}


Target = prometheus.Dataquery | Query


# --- queries ------------------------------------------------------------------------------------------------------


def metrics(expression: str, *, now: bool = False, ref: str = "A") -> prometheus.Dataquery:
    """Return a query in MetricsQL; `now` for one row of the newest values a series instead of the range."""
    query = prometheus.Dataquery().datasource(VICTORIA).expr(expression).ref_id(ref).legend_format("__auto")
    return query.instant().format(PromQueryFormat.TABLE) if now else query.range()


def flux(text: str, *, ref: str = "B") -> Query:
    """Return a query in Flux."""
    return Query(datasource=INFLUX, fields={"refId": ref, "query": text})


def sql(text: str, *, ref: str = "A") -> Query:
    """Return a query of the inventory that gives a table."""
    shape = {"refId": ref, "rawSql": text, "rawQuery": True, "format": "table", "editorMode": "code"}
    return Query(datasource=POSTGRES, fields=shape)


def flux_of(metric: str, choice: str) -> str:
    """Return the samples of a metric in the range that is shown, of the servers that are chosen."""
    return (
        "from(bucket: v.defaultBucket)\n"
        "  |> range(start: v.timeRangeStart, stop: v.timeRangeStop)\n"
        f'  |> filter(fn: (r) => r._measurement == "server_metrics" and r._field == "{metric}")\n'
        f"  |> filter(fn: (r) => {choice})\n"
    )


def fleet(metric: str, by: str) -> list[Target]:
    """Return the mean of a metric over the servers that are chosen, by a label."""
    return [
        metrics(f"avg(avg_over_time(server_metrics_{metric}{{{PROMETHEUS_CHOICE}}}[$__rate_interval])) by ({by})"),
        flux(
            flux_of(metric, FLUX_CHOICE)
            + f'  |> group(columns: ["{by}"])\n'
            + "  |> aggregateWindow(every: v.windowPeriod, fn: mean, createEmpty: false)\n"
            + '  |> yield(name: "mean")'
        ),
    ]


def busiest(metric: str) -> list[Target]:
    """Return the ten servers of which a metric is highest now."""
    return [
        metrics(
            f"topk(10, max(last_over_time(server_metrics_{metric}{{{PROMETHEUS_CHOICE}}}[{STALE}])) by (server_id))",
            now=True,
        ),
        flux(
            flux_of(metric, FLUX_CHOICE)
            + "  |> last()\n"
            + "  |> group()\n"
            + '  |> keep(columns: ["server_id", "_value"])\n'
            + '  |> top(n: 10, columns: ["_value"])'
            + TO_VALUE
        ),
    ]


def of_server(metric: str) -> list[Target]:
    """Return a metric of the server that is chosen."""
    return [
        metrics(
            f'max(avg_over_time(server_metrics_{metric}{{server_id=~"$server"}}[$__rate_interval])) by (server_id)'
        ),
        flux(
            flux_of(metric, "r.server_id =~ /^${server:regex}$/")
            + '  |> group(columns: ["server_id"])\n'
            + "  |> aggregateWindow(every: v.windowPeriod, fn: mean, createEmpty: false)\n"
            + '  |> yield(name: "mean")'
        ),
    ]


def unusual(metric: str) -> list[Target]:
    """Return how many standard deviations a server is from its own mean of the range that is shown: the ten furthest."""
    now = f"avg(last_over_time(server_metrics_{metric}{{{PROMETHEUS_CHOICE}}}[{STALE}])) by (server_id)"
    usual = f"server_metrics_{metric}{{{PROMETHEUS_CHOICE}}}[$__range]"
    return [
        metrics(
            f"topk(10, abs({now} - avg(avg_over_time({usual})) by (server_id))"
            f" / (avg(stddev_over_time({usual})) by (server_id) > 0))",
            now=True,
        ),
        flux(
            f'import "math"\ndata = {flux_of(metric, FLUX_CHOICE)}'
            '  |> group(columns: ["server_id"])\n'
            "newest = data |> last()\n"
            "spread = data |> stddev()\n"
            "usual = data |> mean()\n"
            'both = join(tables: {usual: usual, spread: spread}, on: ["server_id"])\n'
            'join(tables: {both: both, newest: newest}, on: ["server_id"])\n'
            "  |> filter(fn: (r) => r._value_spread > 0.0)\n"
            "  |> map(fn: (r) => ({server_id: r.server_id,"
            " _value: math.abs(x: r._value - r._value_usual) / r._value_spread}))\n"
            "  |> group()\n"
            '  |> top(n: 10, columns: ["_value"])' + TO_VALUE
        ),
    ]


def days_until(metric: str, limit: int) -> list[Target]:
    """Return the ten servers that reach a limit first, in days, going on as in the range that is shown."""
    series = f"server_metrics_{metric}{{{PROMETHEUS_CHOICE}}}[$__range]"
    return [
        metrics(
            f"bottomk(10, ({limit} - max(last_over_time({series})) by (server_id))"
            f" / (max(deriv({series})) by (server_id) > 0) / 86400)",
            now=True,
        ),
        flux(
            f"data = {flux_of(metric, FLUX_CHOICE)}"
            '  |> group(columns: ["server_id"])\n'
            "  |> aggregateWindow(every: 10m, fn: mean, createEmpty: false)\n"
            "first = data |> first()\n"
            "last = data |> last()\n"
            'join(tables: {first: first, last: last}, on: ["server_id"])\n'
            "  |> filter(fn: (r) => r._value_last > r._value_first)\n"
            "  |> map(fn: (r) => ({server_id: r.server_id,"
            f" _value: ({limit}.0 - r._value_last) / (r._value_last - r._value_first)"
            " * float(v: int(v: r._time_last) - int(v: r._time_first)) / 86400000000000.0}))\n"
            "  |> group()\n"
            '  |> bottom(n: 10, columns: ["_value"])' + TO_VALUE
        ),
    ]


def in_a_week(metric: str) -> list[Target]:
    """Return where the mean of a role is a week from now, going on as in the range that is shown."""
    series = f"server_metrics_{metric}{{{PROMETHEUS_CHOICE}}}[$__range]"
    return [
        metrics(f"avg(predict_linear({series}, 604800)) by (role)", now=True),
        flux(
            f"data = {flux_of(metric, FLUX_CHOICE)}"
            '  |> group(columns: ["role"])\n'
            "  |> aggregateWindow(every: 10m, fn: mean, createEmpty: false)\n"
            "first = data |> first()\n"
            "last = data |> last()\n"
            'join(tables: {first: first, last: last}, on: ["role"])\n'
            "  |> filter(fn: (r) => r._time_last > r._time_first)\n"
            "  |> map(fn: (r) => ({role: r.role, _value: r._value_last + (r._value_last - r._value_first)"
            " * 604800000000000.0 / float(v: int(v: r._time_last) - int(v: r._time_first))}))\n"
            "  |> group()" + TO_VALUE
        ),
    ]


# --- panels -------------------------------------------------------------------------------------------------------


def finish(panel: Any, title: str, targets: Sequence[Target], *, about: str, unit: str, width: int) -> Any:
    """Give a panel what every panel has."""
    sources = {source.uid: source for source in (target.build().datasource for target in targets)}
    panel.datasource(next(iter(sources.values())) if len(sources) == 1 else MIXED)
    for target in targets:
        panel.with_target(target)
    return panel.title(title).description(about).unit(unit).height(HEIGHT).span(width)


def lines(
    title: str, targets: Sequence[Target], *, about: str, name: str, unit: str = "short", width: int = 12
) -> timeseries.Panel:
    """Return curves; `name` is the label that a curve is called by."""
    legend = common.VizLegendOptions().show_legend(True).display_mode(kinds.LegendDisplayMode.LIST)
    panel = timeseries.Panel().fill_opacity(5).min(0).display_name(f"${{__field.labels.{name}}}")
    panel.legend(legend.placement(kinds.LegendPlacement.BOTTOM))
    return finish(panel, title, targets, about=about, unit=unit, width=width)


def number(title: str, targets: Sequence[Target], *, about: str, unit: str = "short", width: int = 4) -> stat.Panel:
    """Return one number."""
    reduced = common.ReduceDataOptions().calcs(["lastNotNull"]).fields("")
    panel = stat.Panel().reduce_options(reduced).no_value("0")
    return finish(panel, title, targets, about=about, unit=unit, width=width)


def rows(title: str, targets: Sequence[Target], *, about: str, unit: str = "short", width: int = 12) -> table.Panel:
    """Return a table; the rows of different stores are put below each other."""
    panel = table.Panel().show_header(True)
    columns: dict[str, Any] = {"renameByName": {"server_id": "server"}, "excludeByName": {"Time": True}}
    if len(targets) > 1:
        # By the names that columns come with: what is renamed first is not merged.
        panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        columns["indexByName"] = {"server_id": 0, "role": 0, "Value": 1}
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=columns))
    return finish(panel, title, targets, about=about, unit=unit, width=width)


def states(title: str, targets: Sequence[Target], *, about: str, name: str, width: int = 12) -> statetimeline.Panel:
    """Return what was 0 and what was 1, when."""
    panel = statetimeline.Panel().display_name(name).show_value(kinds.VisibilityMode.NEVER)
    steps = [models.Threshold(value=None, color="green"), models.Threshold(value=1, color="red")]
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    return finish(panel, title, targets, about=about, unit="short", width=width)


def to_traces(query: str) -> dashboard.DashboardLink:
    """Return a link from a series to the traces of its time that a query of Tempo finds."""
    left = {
        "datasource": "tempo",
        "queries": [{"refId": "A", "datasource": TEMPO, "queryType": "traceql", "query": query, "limit": 20}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    panes = json.dumps({"traces": left}, cls=JSONEncoder, separators=(",", ":"))
    # Grafana replaces what it knows in an address; its braces and dollars stay as they are.
    address = "/explore?schemaVersion=1&panes=" + urllib.parse.quote(panes, safe="${}._:")
    return dashboard.DashboardLink("Traces of this").type("link").url(address).target_blank(True)


# --- dashboards ---------------------------------------------------------------------------------------------------


def board(uid: str, title: str, about: str, since: str = "now-1h") -> dashboard.Dashboard:
    """Return an empty dashboard with the links to the others."""
    others = dashboard.DashboardLink("OpenManager").type("dashboards").tags(["openmanager"]).as_dropdown(True)
    made = dashboard.Dashboard(title).uid(uid).description(about).tags(["openmanager"]).readonly()
    return made.refresh("30s").time(since, "now").timezone("browser").link(others.keep_time(True).include_vars(True))


def choice(name: str, query: str, *, several: bool = True) -> dashboard.QueryVariable:
    """Return a choice at the top of a dashboard out of the inventory."""
    made = dashboard.QueryVariable(name).label(name).datasource(POSTGRES).query(query).definition(query)
    made.refresh(models.VariableRefresh.ON_DASHBOARD_LOAD).sort(models.VariableSort.ALPHABETICAL_ASC)
    if not several:
        return made
    everything = models.VariableOption(text="All", value="$__all", selected=True)
    return made.multi(True).include_all(True).all_value(".*").current(everything)


def with_choices(made: dashboard.Dashboard) -> dashboard.Dashboard:
    """Let people choose environments and roles."""
    for name in ("environment", "role"):
        made.with_variable(
            choice(name, f"SELECT DISTINCT coalesce({name}, '') FROM servers WHERE deleted_at IS NULL ORDER BY 1")
        )
    return made


# Between dollars a quote in a name ends nothing, and of what was escaped no two dollars are left.
SQL_CHOICE = r"$$\A(?:${%s:regex})\Z$$"
CHOSEN = (
    f"deleted_at IS NULL AND coalesce(environment, '') ~ {SQL_CHOICE % 'environment'}"
    f" AND coalesce(role, '') ~ {SQL_CHOICE % 'role'}"
)


def fleet_board() -> dashboard.Dashboard:
    """Return the dashboard of the whole fleet."""
    made = with_choices(board("openmanager-fleet", "Fleet", "All servers: how many, how busy, and which most."))
    made.with_panel(
        number("Servers", [sql(f"SELECT count(*) AS servers FROM servers WHERE {CHOSEN}")], about="In the inventory.")
    )
    made.with_panel(
        number(
            "New in a day",
            [sql(f"SELECT count(*) AS servers FROM servers WHERE {CHOSEN} AND created_at > now() - interval '1 day'")],
            about="Servers that were registered in the last 24 hours.",
        )
    )
    made.with_panel(
        rows(
            "Servers by environment and role",
            [
                sql(
                    "SELECT coalesce(environment, '') AS environment, coalesce(role, '') AS role, count(*) AS servers"
                    f" FROM servers WHERE {CHOSEN} GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
                )
            ],
            about="Of the inventory.",
            width=16,
        )
    )
    for metric, title in (("cpu_usage", "Processor"), ("memory_usage", "Memory"), ("disk_usage", "Disk")):
        made.with_panel(
            lines(
                f"{title}, by role",
                fleet(metric, "role"),
                about=f"Mean of {metric} over the servers of a role.",
                name="role",
                unit="percent",
                width=8,
            )
        )
    for metric, title, unit in (
        ("response_time", "Response time", "ms"),
        ("request_rate", "Requests", "reqps"),
        ("error_rate", "Errors", "percent"),
    ):
        made.with_panel(
            lines(
                f"{title}, by environment",
                fleet(metric, "environment"),
                about=f"Mean of {metric} over the servers of an environment.",
                name="environment",
                unit=unit,
                width=8,
            )
        )
    for metric, title in (("cpu_usage", "Busiest processors"), ("disk_usage", "Fullest disks")):
        panel = rows(title, busiest(metric), about=f"The ten servers whose {metric} is highest now.", unit="percent")
        opened = (
            dashboard.DashboardLink("Open the server")
            .type("link")
            .url("/d/openmanager-server?var-server=${__value.text}")
        )
        made.with_panel(panel.override_by_name("server", [value("links", [opened.build()])]))
    return made


def server_board() -> dashboard.Dashboard:
    """Return the dashboard of one server."""
    made = board("openmanager-server", "Server", "One server, or several beside each other.")
    made.with_variable(choice("server", "SELECT id FROM servers WHERE deleted_at IS NULL ORDER BY 1"))
    made.with_panel(
        rows(
            "Inventory",
            [
                sql(
                    "SELECT id, hostname, environment, role, location, created_at, updated_at FROM servers"
                    f" WHERE deleted_at IS NULL AND id ~ {SQL_CHOICE % 'server'} ORDER BY id LIMIT 100"
                )
            ],
            about="What is known of it.",
            width=24,
        )
    )
    for metric, title, unit in (
        ("cpu_usage", "Processor", "percent"),
        ("memory_usage", "Memory", "percent"),
        ("disk_usage", "Disk", "percent"),
        ("response_time", "Response time", "ms"),
        ("request_rate", "Requests", "reqps"),
        ("error_rate", "Errors", "percent"),
        ("network_in", "Network in", "short"),
        ("network_out", "Network out", "short"),
        ("active_connections", "Connections", "short"),
    ):
        made.with_panel(lines(title, of_server(metric), about=f"{metric}.", name="server_id", unit=unit, width=8))
    return made


def value(name: str, given: Any) -> models.DynamicConfigValue:
    """Return a setting of a column."""
    return models.DynamicConfigValue(id_val=name, value=given)


def storage_board() -> dashboard.Dashboard:
    """Return the dashboard of stores and of what happens when one is away."""
    made = board("openmanager-storage", "Storage and failover", "Whether stores are there, and what waits for them.")
    made.with_panel(
        states(
            "Breakers",
            [metrics("max(openmanager_breaker_open) by (job, openmanager_store, openmanager_operation)")],
            about="Red while calls are kept from a store or a service because they failed.",
            name="${__field.labels.job} → ${__field.labels.openmanager_store} ${__field.labels.openmanager_operation}",
        )
    )
    made.with_panel(
        states(
            "Readers of the log that are not well",
            [
                metrics(
                    'max(openmanager_consumer_status{openmanager_state!="ok"}) by (openmanager_consumer_name, openmanager_state)'
                )
            ],
            about="Red while a reader is in a state other than OK: the state is in the name.",
            name="${__field.labels.openmanager_consumer_name} ${__field.labels.openmanager_state}",
        )
    )
    made.with_panel(
        lines(
            "How far readers are behind",
            [metrics("max(openmanager_consumer_lag_seconds) by (openmanager_consumer_name)")],
            about="How long ago a reader that is behind took something.",
            name="openmanager_consumer_name",
            unit="s",
        )
    )
    made.with_panel(
        lines(
            "Samples that wait",
            [
                metrics(
                    'sum(openmanager_consumer_samples{openmanager_sample_fate="waiting"}) by (openmanager_consumer_name)'
                )
            ],
            about="Acknowledged samples that a reader has yet to take.",
            name="openmanager_consumer_name",
        )
    )
    made.with_panel(
        lines(
            "Samples that were delivered",
            [
                metrics(
                    'sum(rate(openmanager_consumer_samples{openmanager_sample_fate="delivered"}[$__rate_interval]))'
                    " by (openmanager_consumer_name)"
                )
            ],
            about="Of each reader, a second.",
            name="openmanager_consumer_name",
            unit="cps",
        )
    )
    failed = lines(
        "Calls that found somebody away",
        [
            metrics(
                'sum(rate(rpc_server_call_duration_seconds_count{rpc_grpc_status_code=~"4|14"}[$__rate_interval]))'
                " by (job, rpc_service) > 0"
            )
        ],
        about="Calls a second that ended with DEADLINE_EXCEEDED (4) or UNAVAILABLE (14).",
        name="rpc_service",
        unit="reqps",
    )
    made.with_panel(
        failed.data_links([to_traces('{ resource.service.name = "${__field.labels.job}" && status = error }')])
    )
    return made


CALLS = "rpc_server_call_duration_seconds"
METHOD_TRACES = (
    '{ resource.service.name = "${__field.labels.job}"'
    ' && name = "${__field.labels.rpc_service}/${__field.labels.rpc_method}" }'
)


def mesh_board() -> dashboard.Dashboard:
    """Return the dashboard of the services themselves."""
    made = board(
        "openmanager-mesh", "Mesh", "What the services are asked, how long it takes, and whether the books balance."
    )
    made.with_panel(
        lines(
            "Calls",
            [metrics(f"sum(rate({CALLS}_count[$__rate_interval])) by (job)")],
            about="Served calls a second, by service.",
            name="job",
            unit="reqps",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Calls that failed",
            [
                metrics(
                    f'sum(rate({CALLS}_count{{rpc_grpc_status_code!~"0|1|3|5"}}[$__rate_interval])) by (job)'
                    f" / sum(rate({CALLS}_count[$__rate_interval])) by (job)"
                )
            ],
            about="Share of calls that ended with an error that is not the caller's own.",
            name="job",
            unit="percentunit",
            width=8,
        ).data_links([to_traces('{ resource.service.name = "${__field.labels.job}" && status = error }')])
    )
    made.with_panel(
        lines(
            "Latency, by service",
            [metrics(f"histogram_quantile(0.99, sum(rate({CALLS}_bucket[$__rate_interval])) by (job, le))")],
            about="99 of 100 calls took no longer.",
            name="job",
            unit="s",
            width=8,
        ).data_links([to_traces('{ resource.service.name = "${__field.labels.job}" && kind = server }')])
    )
    made.with_panel(
        lines(
            "Slowest methods",
            [
                metrics(
                    "topk_avg(10, histogram_quantile(0.95,"
                    f" sum(rate({CALLS}_bucket[$__rate_interval])) by (job, rpc_service, rpc_method, le)))"
                )
            ],
            about="95 of 100 calls took no longer. Choose a curve to see its traces.",
            name="rpc_method",
            unit="s",
        ).data_links([to_traces(METHOD_TRACES)])
    )
    made.with_panel(
        lines(
            "Most asked methods",
            [metrics(f"topk_avg(10, sum(rate({CALLS}_count[$__rate_interval])) by (job, rpc_service, rpc_method))")],
            about="Calls a second. Choose a curve to see its traces.",
            name="rpc_method",
            unit="reqps",
        ).data_links([to_traces(METHOD_TRACES)])
    )
    made.with_panel(
        lines(
            "Ledger",
            [metrics("sum(openmanager_consumer_samples) by (openmanager_consumer_name)")],
            about="What became of samples, all fates together: of each reader what was accepted, so that curves coincide.",
            name="openmanager_consumer_name",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Queues",
            [metrics("max(openmanager_consumer_position) - min(openmanager_consumer_position)")],
            about="Positions of the log between its first reader and its last.",
            name="__name__",
            width=8,
        ).display_name("positions")
    )
    made.with_panel(
        lines(
            "Samples that were not delivered",
            [
                metrics(
                    'sum(openmanager_consumer_samples{openmanager_sample_fate=~"dead_lettered|resynced|damaged"})'
                    " by (openmanager_sample_fate)"
                )
            ],
            about="Dead letters, samples that were caught up with otherwise, and samples that were damaged: normally none.",
            name="openmanager_sample_fate",
            width=8,
        )
    )
    made.with_panel(
        rows(
            "What an AI was asked, by model",
            [
                sql(
                    "SELECT model, count(*) AS interactions, round(avg(latency_seconds)::numeric, 2) AS seconds,"
                    " round(avg(user_rating)::numeric, 2) AS rating FROM ai_interactions"
                    " WHERE $__timeFilter(created_at) GROUP BY model ORDER BY 2 DESC, 1"
                )
            ],
            about="Interactions that were recorded in the time that is shown.",
            width=24,
        )
    )
    return made


def capacity_board() -> dashboard.Dashboard:
    """Return the dashboard of what is unusual, and of what is coming."""
    about = (
        "What the detector finds unusual, and what the fleet runs out of. `openmanager forecast` says how sure that is."
    )
    made = with_choices(board("openmanager-capacity", "Anomalies and capacity", about, "now-24h"))
    made.with_panel(
        number(
            "Servers with an anomaly",
            [metrics("count(openmanager_anomaly_score) or vector(0)")],
            about="Now, as the detector has it: `openmanager anomalies`.",
            width=6,
        )
    )
    made.with_panel(
        lines(
            "Anomalies, by severity",
            [metrics("count(openmanager_anomaly_score) by (openmanager_severity)")],
            about="Servers that have one.",
            name="openmanager_severity",
            width=9,
        )
    )
    made.with_panel(
        rows(
            "The most unusual servers",
            [
                metrics(
                    "topk(10, max(openmanager_anomaly_score) by (openmanager_server_id, openmanager_severity))",
                    now=True,
                )
            ],
            about="By the score of their anomaly.",
            width=9,
        )
    )
    for metric, title in (("cpu_usage", "Processor unlike itself"), ("response_time", "Response time unlike itself")):
        made.with_panel(
            rows(
                title,
                unusual(metric),
                about=f"Standard deviations of {metric} from the server's own mean of the time that is shown.",
            )
        )
    made.with_panel(
        rows(
            "Days until the disk is 90 % full",
            days_until("disk_usage", 90),
            about="The ten that are first, if they go on as in the time that is shown.",
            unit="d",
        )
    )
    for metric, title in (("disk_usage", "Disk in a week"), ("memory_usage", "Memory in a week")):
        made.with_panel(
            rows(
                title,
                in_a_week(metric),
                about=f"Mean {metric} of a role, if it goes on as in the time that is shown.",
                unit="percent",
                width=6,
            )
        )
    return made


def bad(objective: Mapping[str, Any], window: str) -> str:
    """Return the share of a window that was bad; none where all was well, and nothing where nothing was asked."""
    nothing = f" or 0 * ({objective['total']})".replace("$window", window) if "total" in objective else ""
    return f"({slo.bad(objective, window)}{nothing})"


def burn(objective: Mapping[str, Any], rates: Sequence[Mapping[str, Any]]) -> timeseries.Panel:
    """Return how much faster than it lasts the budget of an objective burns, over each window, with the limits of alerts."""
    budget = 1 - objective["objective"]
    targets = [
        metrics(f'label_set({bad(objective, window)} / {budget:.6g}, "window", "{window}")', ref=chr(ord("A") + at))
        for at, window in enumerate(slo.windows(rates))
    ]
    limits = ", ".join(f"{each['factor']:g} over {each['long']} and {each['short']}" for each in rates)
    panel = lines(
        f"Burn of the budget: {objective['name']}",
        targets,
        about=f"At 1 it lasts just as long as it has to. Somebody is told above {limits}.",
        name="window",
    )
    colours = {"critical": "red", "warning": "orange"}
    steps = [models.Threshold(value=None, color="green")]
    steps += [
        models.Threshold(value=each["factor"], color=colours[each["severity"]])
        for each in sorted(rates, key=lambda each: float(each["factor"]))
    ]
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds_style(style)


def kept(panel: stat.Panel, least: float) -> stat.Panel:
    """Return a panel of what is promised: green from a value on, red below."""
    steps = [models.Threshold(value=None, color="red"), models.Threshold(value=least, color="green")]
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    return panel.no_value("nothing was asked")


def slo_board() -> dashboard.Dashboard:
    """Return the dashboard of what the mesh promises of itself, out of deploy/slo/slo.yaml."""
    promised = yaml.safe_load(slo.SOURCE.read_text(encoding="utf-8"))
    objectives, rates = promised["objectives"], promised["burn_rates"]
    made = board(
        "openmanager-slo", "Objectives", "What the mesh promises of itself, and how much it may still fail.", "now-6h"
    )
    for objective in objectives:
        panel = number(
            f"Good, of the time that is shown: {objective['name']}",
            [metrics(f"1 - {bad(objective, '$__range')}", now=True)],
            about=f"Promised: {100 * objective['objective']:g} % of {objective['about']}.",
            unit="percentunit",
            width=6,
        )
        made.with_panel(kept(panel, objective["objective"]).decimals(3))
    for objective in objectives:
        panel = number(
            f"Left of the budget: {objective['name']}",
            [metrics(f"1 - {bad(objective, promised['window'])} / {1 - objective['objective']:.6g}", now=True)],
            about=f"Of what may be bad in {promised['window']}, as far back as metrics are kept. Below 0 it is broken.",
            unit="percentunit",
            width=6,
        )
        made.with_panel(kept(panel, 0.1).decimals(1))
    for objective in objectives:
        made.with_panel(burn(objective, rates))
    made.with_panel(
        lines(
            "Hot state behind the log",
            [metrics("max(openmanager_hot_staleness_seconds) by (job)")],
            about="Of the gateway that is furthest behind. Above 10 s it counts against freshness.",
            name="job",
            unit="s",
        )
    )
    expressions = {each["alert"]: each["expr"] for each in promised["conditions"]}
    made.with_panel(
        number(
            "Samples in which books differ",
            [metrics(expressions["LedgerUnbalanced"].removesuffix(" != 0"))],
            about="Readers of the log account for the same samples, all fates together: then it is 0.",
            width=6,
        )
    )
    made.with_panel(
        number(
            "Dead letters",
            [metrics(f"sum({expressions['DeadLetters'].removesuffix(' > 0')})")],
            about="Samples that a reader has refused for good.",
            width=6,
        )
    )
    return made


BOARDS: dict[str, Callable[[], dashboard.Dashboard]] = {
    "fleet": fleet_board,
    "server": server_board,
    "storage": storage_board,
    "mesh": mesh_board,
    "capacity": capacity_board,
    "slo": slo_board,
}


def render(name: str) -> str:
    """Return the file of a dashboard."""
    made = BOARDS[name]().build()
    for place, panel in enumerate(made.panels or [], 1):
        panel.id_val = place
    return JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False).encode(made) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write every dashboard, or with `--check` say which are not what is written here."""
    wanted = {f"{name}.json": render(name) for name in BOARDS}
    there = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("*")} if FOLDER.is_dir() else {}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if "--check" in arguments:
        for name in stale:
            print(f"deploy/grafana/dashboards/{name} is not what scripts/dashboards.py makes: run make dashboards")
        return int(bool(stale))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
