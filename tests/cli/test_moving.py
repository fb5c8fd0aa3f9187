"""Exports, imports, deletions and retention on the command line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from client.mesh import METRICS, NOBODY
from conftest import clean_environment

from openmanager.cli.part import PartFile

PROGRAM = (sys.executable, "-m", "openmanager.cli")
ROWS = 10 * 360


@pytest.fixture
def command(run, own_gateway):
    """Runs a command against a mesh that may be written to."""
    return lambda *arguments: run(*arguments, gateway=own_gateway)


def now() -> datetime:
    return datetime.now(UTC).replace(second=0, microsecond=0)


def samples(metric: str, *, servers: int = 2, ticks: int = 5) -> pa.Table:
    """Return samples of some servers, a tick every minute until now: tick + server / 10."""
    server, tick = (grid.ravel() for grid in np.meshgrid(np.arange(servers), np.arange(ticks), indexing="ij"))
    return pa.table(
        {
            "time": pa.array(
                [now() - timedelta(minutes=int(ticks - each)) for each in tick], pa.timestamp("ms", "UTC")
            ),
            "server": [f"move-{each}" for each in server],
            "metric": [metric] * len(tick),
            "value": tick + server / 10,
        }
    )


def as_csv(table: pa.Table) -> str:
    rows = zip(*(table.column(name).to_pylist() for name in ("time", "server", "metric", "value")), strict=True)
    lines = [f"{when.isoformat()},{server},{metric},{value!r}" for when, server, metric, value in rows]
    return "\n".join(["time,server,metric,value", *lines, ""])


def exported(command, metric: str, tmp_path: Path) -> list[tuple[str, float]]:
    """Return the samples of a metric that are there: server and value."""
    out = tmp_path / f"read-{time.monotonic_ns()}.parquet"
    found = command("export", metric, "--last", "3h", "--output", str(out))
    if "no series of" in found.err:
        return []
    assert found.code == 0, found.err
    table = pq.read_table(out)
    return list(zip(table.column("server").to_pylist(), table.column("value").to_pylist(), strict=True))


# ── export ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_export_to_parquet_is_one_file_that_says_its_tier(command, tmp_path):
    out = tmp_path / "hour.parquet"
    found = command("export", "cpu_usage", "memory_usage", "--last", "2h", "--output", str(out))
    assert (found.code, found.out) == (0, "")
    assert re.match(rf"{2 * ROWS:,} rows of 20 series in {re.escape(str(out))}, [\d.]+ KiB, [\d.]+ s\n", found.err)
    table = pq.read_table(out)
    assert table.column_names == ["metric", "server", "time", "value"]
    assert table.column("metric").to_pylist() == ["cpu_usage"] * ROWS + ["memory_usage"] * ROWS
    assert json.loads(table.schema.metadata[b"openmanager"]) == {"tier": "raw"}
    assert [path.name for path in tmp_path.iterdir()] == ["hour.parquet"]


def test_an_export_to_csv_has_every_value_in_full_and_a_row_a_line(command, tmp_path):
    out = tmp_path / "hour.csv"
    found = command("export", METRICS[3], "cpu_usage", "--server", "web-03", "--last", "2h", "--output", str(out))
    assert found.code == 0
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[0] == ["time", "server", "metric", "value"]
    assert len(rows) == 1 + 2 * 360
    assert {(row[1], row[2]) for row in rows[1:]} == {("web-03", "cpu_usage"), ("web-03", METRICS[3])}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d0\.000Z", row[0]) for row in rows[1:])
    assert any(len(row[3]) > 12 for row in rows[1:])
    told = run_csv(command, "query", "cpu_usage", "--server", "web-03", "--last", "2h", "--raw", "--csv")
    assert [(row[0], float(row[3])) for row in rows[1:361]] == [(row[0], float(row[3])) for row in told[1:]]


def run_csv(command, *arguments: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(command(*arguments).out)))


def test_an_export_to_line_protocol_tells_environment_role_and_the_unit_of_times(command, tmp_path):
    out = tmp_path / "hour.lp"
    assert command("export", "cpu_usage", "--server", "web-01", "--last", "2h", "--output", str(out)).code == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "# openmanager precision=ms"
    assert len(lines) == 1 + 360
    pattern = r"server_metrics,environment=staging,role=web,server_id=web-01 cpu_usage=[\d.]+ \d{13}"
    assert all(re.fullmatch(pattern, line) for line in lines[1:])


@pytest.mark.parametrize(
    ("form", "start"), [("csv", b"time,server"), ("line-protocol", b"# openmanager"), ("parquet", b"PAR1")]
)
def test_an_export_to_standard_output_has_nothing_but_rows_there(own_gateway, form, start):
    arguments = ["--gateway", own_gateway, "export", "cpu_usage", "--last", "2h", "-o", "-", "--format", form]
    found = subprocess.run([*PROGRAM, *arguments], env=clean_environment(), capture_output=True, timeout=30, check=True)
    assert found.stdout.startswith(start)
    assert found.stderr == b""
    if form == "parquet":
        assert len(pq.read_table(pa.BufferReader(found.stdout))) == ROWS


def test_a_reader_that_has_seen_enough_ends_an_export_in_silence(own_gateway):
    shell = f"{' '.join(PROGRAM)} --gateway {own_gateway} export '*' --last 2h -o - | head -n 1"
    found = subprocess.run(
        shell, shell=True, env=clean_environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (found.stdout, found.stderr) == ("time,server,metric,value\n", "")


def test_an_export_as_json_says_what_it_did(command, tmp_path):
    out = tmp_path / "hour.csv"
    found = command("export", "cpu_usage", "--last", "2h", "--output", str(out), "--json")
    told = json.loads(found.out)
    assert found.err == ""
    assert (told["row_count"], told["series_count"], told["format"]) == (ROWS, 10, "csv")
    assert told["size_bytes"] == out.stat().st_size
    assert told["provenance"]["tier"] == "raw"


def test_an_export_without_rows_is_a_file_with_its_columns(command, tmp_path):
    for tier, columns in (("raw", ["value"]), ("1h", ["min", "max", "sum", "count", "last", "first", "growth"])):
        out = tmp_path / f"{tier}.parquet"
        arguments = ("--start", "2001-01-01", "--end", "2001-01-02", "--tier", tier, "--output", str(out))
        assert command("export", "cpu_usage", *arguments).code == 0
        table = pq.read_table(out)
        assert (len(table), table.column_names) == (0, ["metric", "server", "time", *columns])


def test_an_export_overwrites_nothing_unasked(command, tmp_path):
    out = tmp_path / "kept.csv"
    out.write_text("mine")
    refused = command("export", "cpu_usage", "--last", "2h", "--output", str(out))
    assert (refused.code, refused.err) == (1, f"openmanager: {out} exists: --force overwrites it\n")
    assert out.read_text() == "mine"
    assert command("export", "cpu_usage", "--last", "2h", "--output", str(out), "--force").code == 0
    assert out.read_text().startswith("time,")


def test_an_export_of_nothing_is_one_sentence_and_leaves_no_file(command, tmp_path):
    found = command("export", "nothing", "--last", "2h", "--output", str(tmp_path / "n.csv"))
    assert found.code == 1
    assert "no series of 'nothing'" in found.err
    assert found.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_export_to_where_nothing_can_be_written_is_one_sentence(command, tmp_path):
    out = tmp_path / "missing" / "n.csv"
    found = command("export", "cpu_usage", "--last", "2h", "--output", str(out))
    assert (found.code, found.err) == (1, f"openmanager: {out}: no such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--output", "x.csv"), "--last or --start is needed"),
        (("--last", "1h", "--output", "x.xlsx"), "say which --format"),
        (("--last", "1h", "--tier", "5m", "--output", "x.lp"), "no room for rollups"),
        (("--last", "1h", "--resume", "--output", "-"), "cannot be resumed"),
        (("--start", "1h", "--end", "2h", "--output", "x.csv"), "before it begins"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_export_that_cannot_be_is_a_usage_error(command, arguments, why):
    found = command("export", "cpu_usage", *arguments)
    assert found.code == 2
    assert why in found.err


@pytest.fixture(scope="module")
def many(own_gateway, tmp_path_factory) -> str:
    """A metric with more samples than two chunks of an export have."""
    path = tmp_path_factory.mktemp("many") / "many.parquet"
    pq.write_table(samples("many.samples", servers=60, ticks=7500), path)
    arguments = ["--gateway", own_gateway, "import", str(path)]
    subprocess.run([*PROGRAM, *arguments], env=clean_environment(), capture_output=True, timeout=50, check=True)
    return "many.samples"


def interrupted(command, metric: str, out: Path, form: str, monkeypatch) -> None:
    """Leave an export after its first chunk, as a machine that loses power does: the rest of its bytes is noise."""
    written = PartFile.write
    calls = []

    def once(part: PartFile, data: bytes, **state) -> None:
        calls.append(data)
        if len(calls) > 1:
            part.file.write(b"torn")
            part.file.flush()
            raise OSError(28, "No space left on device")
        written(part, data, **state)

    monkeypatch.setattr(PartFile, "write", once)
    found = command("export", metric, "--last", "7d", "--output", str(out), "--format", form)
    monkeypatch.setattr(PartFile, "write", written)
    assert found.code == 1
    assert f"{out} is not whole: the same command with --resume goes on\n" in found.err
    assert found.err.endswith(f"openmanager: {out}: no space left on device\n")
    assert not out.exists()


@pytest.mark.parametrize("form", ["parquet", "csv", "line-protocol"])
def test_an_interrupted_export_goes_on_where_it_was(command, many, tmp_path, monkeypatch, form):
    whole, out = tmp_path / "whole", tmp_path / "out"
    to = ("--output", str(out), "--format", form)
    assert command("export", many, "--last", "7d", "--output", str(whole), "--format", form).code == 0
    interrupted(command, many, out, form, monkeypatch)
    again = command("export", many, "--last", "7d", *to)
    assert "--resume goes on with it, --force begins anew" in again.err
    other = command("export", "cpu_usage", "--last", "7d", *to, "--resume")
    assert "is of something else" in other.err
    resumed = command("export", many, *to, "--resume")
    assert resumed.code == 0, resumed.err
    if form == "parquet":
        schema = samples(many).select(["metric", "server", "time", "value"]).schema
        assert pq.read_table(out).cast(schema).equals(pq.read_table(whole).cast(schema))
    else:
        # The lines of a chunk come by time, and chunks begin elsewhere after an interruption.
        assert sorted(out.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_nothing_to_resume_is_one_sentence(command, tmp_path):
    found = command("export", "cpu_usage", "--resume", "--output", str(tmp_path / "n.csv"))
    assert (found.code, found.err) == (1, f"openmanager: there is no interrupted export to {tmp_path / 'n.csv'}\n")


# ── import ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_exported_is_imported_in_every_format(command, tmp_path):
    metric = "moved.thing{a=x\\,y,b=2}"
    first = tmp_path / "first.parquet"
    pq.write_table(samples(metric), first)
    assert command("import", str(first)).code == 0
    expected = [(server, tick + int(server[-1]) / 10) for server in ("move-0", "move-1") for tick in range(5)]
    assert exported(command, "moved.thing", tmp_path) == expected
    for form in ("parquet", "csv", "lp"):
        out = tmp_path / f"again.{form}"
        assert command("export", "moved.thing", "--last", "3h", "--output", str(out)).code == 0
        found = command("import", str(out))
        assert found.code == 0, found.err
        assert re.search(r" raw +10 +0$", found.out, re.MULTILINE), found.out
    assert exported(command, "moved.thing", tmp_path) == expected


def test_times_of_other_units_and_columns_in_another_order_are_taken(command, tmp_path):
    table = samples("moved.seconds")
    seconds = [int(when.timestamp()) for when in table.column("time").to_pylist()]
    numbers = tmp_path / "numbers.csv"
    rows = zip(seconds, table.column("server").to_pylist(), table.column("value").to_pylist(), strict=True)
    numbers.write_text(
        "metric,note,value,server,time\n" + "".join(f"moved.seconds,-,{v},{s},{t}\n" for t, s, v in rows)
    )
    assert command("import", str(numbers), "--precision", "s").code == 0
    assert len(exported(command, "moved.seconds", tmp_path)) == 10
    wrong = command("import", str(numbers))
    assert wrong.code == 1
    assert re.fullmatch(
        rf"openmanager: {numbers}, line 2: the time \d+ is not between 2000 and 2200: "
        r"--precision says what whole numbers mean\n",
        wrong.err,
    )


def test_packed_files_and_several_files_are_taken(command, tmp_path):
    paths = [tmp_path / "one.csv.gz", tmp_path / "two.csv"]
    paths[0].write_bytes(gzip.compress(as_csv(samples("moved.one")).encode()))
    paths[1].write_text(as_csv(samples("moved.two")))
    found = command("import", *map(str, paths), "--json")
    told = json.loads(found.out)
    assert (told["accepted_count"], told["rejected_count"]) == (20, 0)
    assert [each["accepted_count"] for each in told["files"]] == [10, 10]
    assert len(exported(command, "moved.*", tmp_path)) >= 20


def test_what_is_rejected_is_told_with_its_reason_and_is_exit_code_1(command, tmp_path):
    table = samples("moved.bad")
    old = pa.array([datetime(2020, 1, 1, tzinfo=UTC), *table.column("time").to_pylist()[1:]], pa.timestamp("ms", "UTC"))
    values = pa.array([1.0, float("inf"), None, float("nan"), *range(6)])
    path = tmp_path / "bad.parquet"
    pq.write_table(table.set_column(0, "time", old).set_column(3, "value", values), path)
    found = command("import", str(path))
    assert found.code == 1
    assert re.search(r" raw +6 +2$", found.out, re.MULTILINE)
    assert re.search(r"^TIME_TOO_OLD +1 +moved.bad of move-0$", found.out, re.MULTILINE)
    assert re.search(r"^VALUE_NOT_FINITE +1 +moved.bad of move-0$", found.out, re.MULTILINE)
    assert len(exported(command, "moved.bad", tmp_path)) == 6


def test_lines_that_are_none_are_rejected_and_the_rest_is_taken(command, tmp_path):
    nanos = int(now().timestamp()) * 10**9
    path = tmp_path / "lines.lp"
    path.write_text(
        f'server_metrics,server_id=move-0 moved.line=1.5,note="x" {nanos}\nnonsense\n'
        f"server_metrics,server_id=move-0 moved.line=2.5 {nanos + 10**9}\n"
    )
    found = command("import", str(path))
    assert found.code == 1
    assert re.search(r"^MALFORMED_LINE +1 ", found.out, re.MULTILINE)
    assert "line 2" in found.out.replace("\n", " ")
    assert "1 fields with text left out" in found.out
    assert exported(command, "moved.line", tmp_path) == [("move-0", 1.5), ("move-0", 2.5)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"is empty: a line “time,server,metric,value” is expected first"),
        ("time,server,value\n", r"has no column 'metric' but time, server, value: .* are expected, or .*"),
        ("time,server,metric,value\nsoon,a,m,1\n", r", line 2, column time: invalid value 'soon'"),
        ("time,server,metric,value\n2026-07-01T12:00:00,a,m,1\n", r", line 2, column time: '.*' has no zone: .*"),
        (
            "time,server,metric,value\n2026-07-01T12:00:00Z,a,m,1\n2026-07-01T12:00:00Z,a,m,much\n",
            r", line 3, column value: invalid value 'much'",
        ),
        ("time,server,metric,value\n2026-07-01T12:00:00Z,a,m\n", r", line 2: Expected 4 columns, got 3.*"),
        (
            "time,server,metric,value\n2026-07-01T12:00:00Z,a,m,1\n2026-07-01T12:00:00Z,a b,m,1\n",
            r", line 3: server holds 'a b': .*",
        ),
        ("time,server,metric,value\n2026-07-01T12:00:00Z,a,m{,1\n", r", line 2: frame.metrics .*"),
        ("time,server,metric,value\n,a,m,1\n", r", line 2: it has no time"),
        (
            "time,server,metric,min,max,sum,count,last\n2026-07-01T12:00:00Z,a,m,1,1,1,1,1\n",
            r"has buckets: say of which tier .*",
        ),
    ],
    ids=lambda value: "" if value.startswith(",") else None,
)
def test_a_file_that_is_malformed_is_one_sentence_with_the_place(command, tmp_path, text, why):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    found = command("import", str(path))
    assert (found.code, found.out) == (1, "")
    assert re.fullmatch(rf"openmanager: {re.escape(str(path))} ?{why}\n", found.err), found.err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda table: table.drop_columns(["server"]), "has no column 'server'"),
        (
            lambda table: table.set_column(3, "value", table.column("server")),
            "the column value holds string where numbers",
        ),
        (lambda table: table.set_column(0, "time", table.column("value")), "the column time holds double where times"),
        (lambda table: table.set_column(1, "server", pa.nulls(len(table), pa.string())), "row 1: it has no server"),
    ],
    ids=["a column is missing", "text as value", "a double as time", "no server"],
)
def test_a_parquet_file_of_something_else_is_one_sentence(command, tmp_path, change, why):
    path = tmp_path / "bad.parquet"
    pq.write_table(change(samples("moved.odd")), path)
    found = command("import", str(path))
    assert found.code == 1
    assert why in found.err
    assert found.err.count("\n") == 1


def test_a_file_that_is_none_is_one_sentence(command, tmp_path):
    missing = tmp_path / "no.csv"
    assert command("import", str(missing)).err == f"openmanager: {missing}: there is no such file\n"
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    assert command("import", str(broken)).err == f"openmanager: {broken}: it is no Parquet file, or cut short\n"
    odd = tmp_path / "odd.doc"
    odd.write_text("")
    assert "say which --format it is" in command("import", str(odd)).err


def test_buckets_go_into_their_tier_and_back_out(command, tmp_path):
    start = now().replace(minute=0) - timedelta(days=30)
    count = 24
    table = pa.table(
        {
            "time": pa.array([start + timedelta(hours=hour) for hour in range(count)], pa.timestamp("ms", "UTC")),
            "server": ["move-0"] * count,
            "metric": ["moved.hours"] * count,
            "min": np.arange(count) - 0.5,
            "max": np.arange(count) + 0.5,
            "sum": np.arange(count) * 12.0,
            "count": np.full(count, 12),
            "last": np.arange(count) + 0.25,
        }
    )
    path, out = tmp_path / "hours.parquet", tmp_path / "out.csv"
    pq.write_table(table, path)
    found = command("import", str(path), "--tier", "1h")
    assert found.code == 0, found.out
    arguments = ("--start", start.isoformat(), "--tier", "1h", "--output")
    assert command("export", "moved.hours", *arguments, str(out)).code == 0
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[0] == ["time", "server", "metric", "min", "max", "sum", "count", "last", "first", "growth"]
    assert rows[3][3:] == ["1.5", "2.5", "24", "12", "2.25", "", ""]
    assert len(rows) == 1 + count
    back = tmp_path / "back.parquet"
    assert command("export", "moved.hours", *arguments, str(back)).code == 0
    again = json.loads(command("import", str(back), "--json").out)
    assert again["files"][0]["tier"] == "1h"


# ── series and retention ───────────────────────────────────────────────────────────────────────────────────────────


def test_series_are_listed_with_what_is_known_of_them(command):
    found = command("series", "list", "memory_usage", "--limit", "3")
    listed = re.findall(r"^(web-\d+) +memory_usage +\d+ \w+$", found.out, re.MULTILINE)
    assert listed == ["web-00", "web-01", "web-02"]
    assert "3 of 10 series, from head" in found.out
    assert max(map(len, found.out.splitlines())) <= 80
    pages = [json.loads(line) for line in command("series", "list", "memory_usage", "--json").out.splitlines()]
    assert sum(len(page["series"]) for page in pages) == 10
    assert command("series", "list", "nothing").out.startswith("no series: from head")


def test_a_deletion_asks_and_does_nothing_without_a_yes(command, tmp_path, monkeypatch):
    path = tmp_path / "gone.csv"
    path.write_text(as_csv(samples("moved.gone")))
    assert command("import", str(path)).code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    asked = command("series", "delete", "moved.gone", "--server", "move-1")
    assert asked.code == 130
    assert asked.err.startswith("5 samples and 0 buckets of 1 series would be deleted, all there is.\nDelete them")
    assert len(exported(command, "moved.gone", tmp_path)) == 10
    done = command("series", "delete", "moved.gone", "--server", "move-1", "--yes")
    assert re.match(r"5 samples and 0 buckets of 1 series deleted, .* freed\n", done.out)
    assert {server for server, _ in exported(command, "moved.gone", tmp_path)} == {"move-0"}
    reply = json.loads(command("series", "delete", "moved.gone", "--yes", "--json").out)
    assert reply["series_count"] in {"1", "2"}
    nothing = command("series", "delete", "moved.nothing")
    assert (nothing.code, nothing.err.count("\n")) == (1, 1)


def test_retention_shows_every_tier_and_the_disk(command):
    found = command("retention")
    assert found.code == 0
    assert re.search(r"^tier +kept for +oldest +newest +rows +size +B/row +waiting$", found.out, re.MULTILINE)
    assert re.search(r"^raw +14d ", found.out, re.MULTILINE)
    assert re.search(r"^5m +90d ", found.out, re.MULTILINE)
    assert re.search(r"^disk +\S+ +[\d.]+ %  [\d.]+ \w+ of [\d.]+ \w+", found.out, re.MULTILINE)
    assert "no rules and no holds" in found.out
    assert max(map(len, found.out.splitlines())) <= 80
    policy, tiers = (json.loads(line) for line in command("retention", "--json").out.splitlines())
    assert policy["policy"]["rules"] == []
    assert [tier["name"] for tier in tiers["tiers"]] == ["raw", "5m", "1h"]


def test_buckets_are_rebuilt_by_name(command):
    assert "to be computed again" in command("retention", "rebuild", "--tier", "1h", "--start", "2h").out
    assert "waiting_bucket_count" in json.loads(command("retention", "rebuild", "--start", "2h", "--json").out)
    unknown = command("retention", "rebuild", "--tier", "7m", "--start", "2h")
    assert (unknown.code, unknown.err.count("\n")) == (1, 1)


def test_a_policy_without_anybody_to_store_it_is_one_sentence(command):
    found = command("retention", "set", "--tier", "raw", "--for", "30d")
    assert (found.code, found.out, found.err.count("\n")) == (69, "", 1)
    assert "either --for or --default" in command("retention", "set", "--tier", "raw").err


def test_rules_and_holds_are_set_shown_and_taken_back(mesh, run):
    def whole(*arguments: str):
        return run(*arguments, gateway=mesh.gateway)

    made = whole("retention", "set", "--tier", "raw", "--metric", "debug.*", "--for", "30d")
    assert re.search(r"^1 +raw +debug\.\* +30d$", made.out, re.MULTILINE), made
    whole("retention", "set", "--tier", "1h", "--where", "role = web", "--for", "3650d")
    longer = whole("retention", "set", "--tier", "raw", "--metric", "debug.*", "--for", "60d")
    assert re.search(r"^2 +raw +debug\.\* +60d$", longer.out, re.MULTILINE)
    held = whole(
        "retention", "hold", "incident-42", "--metric", "cpu_usage", "--end", "2030-01-01", "--reason", "audit"
    )
    assert re.search(r"^incident-42 +cpu_usage +the beginning +2030-01-01 \d\d:\d\d +audit *$", held.out, re.MULTILINE)
    shown = whole("retention").out
    assert re.search(r"^1 +1h +all metrics where role = web +3650d$", shown, re.MULTILINE)
    assert "incident-42" in shown
    unknown = whole("retention", "release", "nobody")
    assert (unknown.code, unknown.err) == (1, "openmanager: there is no hold 'nobody'; there is incident-42\n")
    assert "incident-42" not in whole("retention", "release", "incident-42").out
    whole("retention", "set", "--tier", "1h", "--where", "role = web", "--default")
    last = json.loads(whole("retention", "set", "--tier", "raw", "--metric", "debug.*", "--default", "--json").out)
    assert (last["policy"]["rules"], last["policy"]["holds"]) == ([], [])
    missing = whole("retention", "set", "--tier", "raw", "--metric", "debug.*", "--default")
    assert (missing.code, missing.err) == (1, "openmanager: there is no rule for debug.* in raw\n")


# ── all of them ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments",
    [
        ("export",),
        ("import",),
        ("series", "list"),
        ("series", "delete"),
        ("retention",),
        ("retention", "set"),
        ("retention", "hold"),
        ("retention", "release"),
        ("retention", "rebuild"),
        ("sql",),
        ("migrate",),
    ],
    ids=" ".join,
)
def test_help_comes_with_examples(run, arguments):
    found = run(*arguments, "--help")
    assert found.code == 0
    assert found.out.startswith("Usage: openmanager")
    assert "Examples:" in found.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "cpu_usage", "--last", "1h", "--output", "-"),
        ("series", "list", "cpu_usage"),
        ("series", "delete", "cpu_usage", "--yes"),
        ("retention",),
    ],
    ids=" ".join,
)
def test_a_gateway_that_is_away_is_one_sentence_that_helps(run, arguments):
    found = run(*arguments, gateway=NOBODY)
    assert (found.code, found.out) == (69, "")
    assert f"nothing answers at {NOBODY}" in found.err


def test_help_comes_without_loading_what_is_slow():
    script = (
        "import sys\n"
        "from openmanager.cli import export, import_, migrate, retention, series, sql\n"
        "slow = {'duckdb', 'grpc', 'google.protobuf', 'numpy', 'pyarrow', 'rich'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_an_export_that_is_interrupted_by_ctrl_c_says_how_it_goes_on(tmp_path):
    from cli.slow import serving

    out = tmp_path / "slow.csv"
    with serving() as address:
        process = subprocess.Popen(
            [*PROGRAM, "--gateway", address, "export", "cpu_usage", "--last", "1h", "--output", str(out)],
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + 20
        while not PartFile.is_there(out):
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines()[0] == f"{out} is not whole: the same command with --resume goes on"
    assert "Traceback" not in err
