"""`openmanager plan`: what it prints, what it can be given, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from openmanager.cli.main import main

from .conftest import Result, Run

DOC = (Path(__file__).parent.parent.parent / "docs" / "capacity.md").read_text(encoding="utf-8")


@pytest.fixture
def offline(plain, capsys) -> Run:
    """Runs a command that asks nobody, as the program would."""

    def command(*arguments: str) -> Result:
        code = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return command


def test_the_page_shows_what_it_prints(offline):
    shown = re.search(r"\$ openmanager plan\n(.*?)```", DOC, re.DOTALL)
    assert shown
    assert shown[1].split() == offline("plan").out.split()


def test_it_says_the_same_to_programs(offline):
    found = json.loads(offline("plan", "--servers", "2000", "--retention", "raw=7d,5m=30d", "--json").out)
    assert found["workload"]["series"] == 2000 * 511
    assert {tier["name"]: tier["retention"] for tier in found["tiers"]}["raw"] == 7 * 86_400
    assert sum(part["disk_bytes"] for part in found["parts"]) == pytest.approx(found["disk_bytes"])
    assert sum(tier["disk_bytes"] for tier in found["tiers"]) < found["disk_bytes"]
    assert found["headroom"] == 0.5


def test_what_is_not_known_is_null_and_no_number(offline):
    out = offline("plan", "--engine", "influxdb", "--machine", "8:32GiB:1TiB", "--costs", "--json").out
    assert "NaN" not in out
    found = json.loads(out)
    assert found["self_hosted_month"] is None
    assert {part["name"]: part["memory_bytes"] for part in found["parts"]}["influxdb"] is None
    assert found["unit_costs"]["row_bytes"]["raw"]["source"]


def test_every_unit_cost_says_where_it_was_measured(offline):
    out = offline("plan", "--costs").out
    assert "timeseries.cores_per_rate" in out
    assert "bench" in out


def test_prices_that_were_printed_can_be_given_changed(offline, tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text(offline("plan", "--print-prices").out.replace("month = 30.0", "month = 12.5"))
    assert json.loads(offline("plan", "--prices", str(file), "--json").out)["self_hosted_month"] == 12.5


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--servers", "0"], "servers is not between"),
        (["--servers", "1000001"], "servers is not between"),
        (["--servers", "many"], "--servers"),
        (["--metrics", "-1"], "metrics is not between"),
        (["--interval", "999ms"], "interval is not between"),
        (["--interval", "fast"], "--interval"),
        (["--interval", "9" * 400 + "s"], "--interval"),
        (["--retention", "raw"], "--retention"),
        (["--retention", "raw=forever"], "--retention"),
        (["--retention", "raw=" + "9" * 20 + "d"], "--retention"),
        (["--retention", "2h=1d"], "names '2h'"),
        (["--headroom", "nan"], "headroom is not between"),
        (["--headroom", "100"], "headroom is not between"),
        (["--machine", "8"], "machine"),
        (["--machine", "8:64MiB:1TiB"], "machine"),
        (["--engine", "mongo"], "--engine"),
        (["--prices", "/nowhere.toml"], "--prices"),
        (["--prices", "/dev/zero"], "more than"),
    ],
)
def test_bad_input_is_refused_by_its_name_with_exit_code_2(offline, words, why):
    found = offline("plan", *words)
    assert found.code == 2
    assert why in found.err
    assert "Traceback" not in found.err
