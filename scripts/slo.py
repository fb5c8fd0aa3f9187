"""Write deploy/slo/alerts.yaml from slo.yaml beside it; `--check` fails when it is not what this file makes.

For each objective the share that was bad is recorded over every window, and an alert holds a long and a short window
against a rate at which the budget is burnt (multi-window, multi-burn-rate: the Site Reliability Workbook, chapter 5).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "deploy" / "slo" / "slo.yaml"
TARGET = ROOT / "deploy" / "slo" / "alerts.yaml"
RECORD = "openmanager:slo_bad:ratio"
HEAD = "# Generated from slo.yaml by `make slo`.\n"


def rules(slo: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups of recording and alerting rules."""
    rates, groups = slo["burn_rates"], []
    for objective in slo["objectives"]:
        found = [*_records(objective, rates), *_burns(objective, rates)]
        groups.append({"name": f"openmanager-slo-{objective['name']}", "interval": "30s", "rules": found})
    groups.append({"name": "openmanager-conditions", "interval": "30s", "rules": [*map(_condition, slo["conditions"])]})
    return {"groups": groups}


def windows(rates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every window that a rate of burning is looked at over."""
    return list(dict.fromkeys(each[side] for each in rates for side in ("long", "short")))


def bad(objective: Mapping[str, Any], window: str) -> str:
    """Return the share of a window that was bad, in PromQL; nothing where there was nothing to be bad."""
    expression: str = objective.get("share") or f"({objective['bad']}) / ({objective['total']} > 0)"
    return expression.replace("$window", window)


def _records(objective: Mapping[str, Any], rates: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for window in windows(rates):
        yield {
            "record": f"{RECORD}_{window}",
            "labels": {"slo": objective["name"]},
            "expr": bad(objective, window),
        }


def _burns(objective: Mapping[str, Any], rates: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    chosen = f'{{slo="{objective["name"]}"}}'
    for each in rates:
        limit = f"{each['factor'] * (1 - objective['objective']):.6g}"
        sides = [f"{RECORD}_{each[side]}{chosen} > {limit}" for side in ("long", "short")]
        about = f"{objective['about']}: the budget burns {each['factor']:g} times too fast over {each['long']}"
        yield {
            "alert": objective["alert"],
            "expr": " and ".join(sides),
            "labels": {"severity": each["severity"], "window": each["long"]},
            "annotations": _annotations(objective["alert"], about),
        }


def _condition(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "alert": found["alert"],
        "expr": found["expr"],
        "for": found["for"],
        "labels": {"severity": found["severity"]},
        "annotations": _annotations(found["alert"], found["about"]),
    }


def _annotations(alert: str, about: str) -> dict[str, str]:
    return {"summary": about, "runbook": f"docs/runbooks/{alert}.md"}


def text(slo: Mapping[str, Any]) -> str:
    """Return the file."""
    return HEAD + yaml.safe_dump(rules(slo), sort_keys=False, allow_unicode=True, width=10_000)


def main() -> None:
    """Write the file, or hold it against what it should be."""
    made = text(yaml.safe_load(SOURCE.read_text(encoding="utf-8")))
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(made, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != made:
        sys.exit("deploy/slo/alerts.yaml is out of date: run `make slo`")


if __name__ == "__main__":
    main()
