"""Reports of anomalies, trends and forecasts: what is in them, what cannot get into them, and files that cannot be written."""

from __future__ import annotations

import base64
import struct
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from openmanager.cli import chart, page, plot, report
from openmanager.cli.chart import Chart
from openmanager.cli.progress import Bar
from openmanager.cli.report import Report, Section
from openmanager.cli.report_series import table, thinned
from openmanager.cli.unit import Unit
from openmanager.cli.usual import learn
from openmanager.client import Provenance
from openmanager.errors import FailedPreconditionError
from openmanager.runtime import telemetry

HOSTILE = """evil"><script>alert(1)</script> $\\frac{x$ id="s1" #0072b2 var(--x) \u202e日本 ☃"""
HOUR = 3600 * 10**9
TRACE = "ab" * 16
# What a page may hold: nothing that runs, frames, loads, or sends.
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "dl", "dt", "dd", "nav", "ol", "li", "a",
    "main", "section", "div", "strong", "figure", "picture", "source", "img", "figcaption", "details", "summary", "table",
    "caption", "thead", "tbody", "tr", "th", "td", "code", "br",
}  # fmt: skip


class Page(HTMLParser):
    """The elements of a page, its texts, and its pictures: alternative text and the SVG of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.alts: list[str] = []
        self.pictures: list[bytes] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        named = dict(attrs)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        for name in ("src", "srcset"):
            if name in named:
                kind, _, data = str(named[name]).partition(",")
                assert kind == "data:image/svg+xml;base64"
                self.pictures.append(base64.b64decode(data, validate=True))
        if tag == "img":
            self.alts.append(str(named["alt"]))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def line_chart(name: str) -> Chart:
    def draw(figure: Any, narrow: bool) -> None:  # noqa: FBT001
        axes = figure.subplots()
        times = 1_782_900_000 * 10**9 + HOUR * np.arange(48)
        axes.plot(chart.dates(times), np.arange(48.0), color=chart.BLUE, label=name)
        chart.unit(axes, "%", name)
        chart.time_axis(axes, int(times[0]), int(times[-1]), narrow=narrow)
        chart.legend(figure, [axes], narrow=narrow)

    rows = [{"server": name, "now": "1 %"}]
    return Chart(title=name, alt=f"of {name}", height=2.0, draw=draw, table=table("now", ("server", "now"), rows))


def report_on(name: str, charts: int = 1, **about: Any) -> Report:
    parts = [*(line_chart(name) for _ in range(charts)), page.facts({name: name})]
    return Report(
        title=name,
        lead=[f"{name} is well."],
        asked={"Asked": name},
        provenance=Provenance(source="head", tier="raw", as_of=datetime(2026, 7, 1, tzinfo=UTC), **about),
        sections=[Section(title=name, parts=parts)],
        made=datetime(2026, 7, 1, 12, tzinfo=UTC),
    )


def test_a_page_says_what_was_asked_of_whom_and_when():
    texts = Page(report.as_html(report_on("web-1"), TRACE, Bar("")).decode()).texts
    assert "web-1 is well." in texts
    assert "head, tier raw, as of 2026-07-01 00:00:00Z" in texts
    assert any(text.startswith("2026-07-01 12:00:00Z with OpenManager ") for text in texts)
    assert TRACE in texts
    assert not any("degraded" in text for text in texts)


def test_a_page_says_first_that_an_answer_is_not_whole():
    page = Page(report.as_html(report_on("web-1", partial=True, reason="blocks are away"), TRACE, Bar("")).decode())
    assert "This answer is partial: blocks are away." in page.texts


def test_hostile_names_are_only_ever_text():
    found = Page(report.as_html(report_on(HOSTILE), TRACE, Bar("")).decode())
    assert found.tags <= KNOWN
    assert found.handlers == []
    assert found.alts == [f"of {HOSTILE}"]
    assert HOSTILE in found.texts  # as it is, in the title, the contents, the table
    assert len(found.pictures) == 2  # for wide and narrow screens
    for picture in found.pictures:
        drawing = ET.fromstring(picture)
        assert {each.tag.rpartition("}")[2] for each in drawing.iter()} <= {
            "svg", "style", "defs", "g", "path", "text", "use", "clipPath", "rect", "tspan",
        }  # fmt: skip
        assert "".join(drawing.itertext()).count(HOSTILE) >= 1
        assert not any(name.rpartition("}")[2].startswith("on") for each in drawing.iter() for name in each.attrib)


def test_a_picture_follows_the_readers_choice_of_light_or_dark():
    drawing = chart.svg(line_chart("web-1"), narrow=False).decode()
    assert "prefers-color-scheme:dark" in drawing
    assert f"var(--{chart.BLUE[1:]})" in drawing
    assert f"stroke: {chart.BLUE}" not in drawing


def test_a_png_has_its_words_and_no_more_charts_than_anybody_scrolls():
    image = report.as_png(report_on(HOSTILE, charts=report.MAX_DRAWN + 3), TRACE, Bar(""))
    fewer = report.as_png(report_on("web-1", charts=1), TRACE, Bar(""))
    assert HOSTILE.encode() in image  # its title and what it shows, for who does not see it
    (width, height), (_, low) = (struct.unpack(">II", some[16:24]) for some in (image, fewer))
    assert width == round(chart.WIDE * chart.DPI) + 2 * round(chart.MARGIN * chart.DPI)
    assert low < height < 8 * low


def test_nothing_is_asked_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'openmanager\[report\]'"):
        report.run({"html": tmp_path / "a.html", "png": None}, never)
    assert list(tmp_path.iterdir()) == []


def never(client: Any, bar: Any) -> Any:
    raise AssertionError("asked")


@pytest.mark.parametrize("command", [("forecast", "m"), ("trend", "m"), ("anomalies",), ("anomalies", "detect")])
def test_a_file_that_cannot_be_written_is_told_in_a_sentence_before_anything_is_asked(run, tmp_path: Path, command):
    missing, taken = tmp_path / "no" / "a.html", tmp_path / "taken"
    taken.write_text("of yesterday")
    nobody = "127.0.0.1:1"
    found = run(*command, "--html", str(missing), gateway=nobody)
    assert (found.code, found.err) == (1, f"openmanager: {missing}: no such file or directory\n")
    assert run(*command, "--png", str(taken / "a.png"), gateway=nobody).err == (
        f"openmanager: {taken / 'a.png'}: not a directory\n"
    )
    assert run(*command, "--png", "/dev/null", gateway=nobody).err == "openmanager: /dev/null is no file\n"
    assert run(*command, "--html", str(taken), "--png", str(taken), gateway=nobody).code == 2
    # And a report that did not come leaves the old one.
    assert run(*command, "--html", str(taken), gateway=nobody).code == 69
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("taken", "of yesterday")]


@pytest.mark.parametrize("when", ["asking", "drawing", "writing"])
def test_an_interrupt_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str):
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    path = tmp_path / "a.html"
    monkeypatch.setattr(report.connection, "run", interrupted if when == "asking" else lambda _: report_on("web-1"))
    if when == "drawing":
        monkeypatch.setattr(chart, "svg", interrupted)
    if when == "writing":
        monkeypatch.setattr("openmanager.cli.part.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.run({"html": path, "png": None}, never)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(report.connection, "run", lambda _: report_on("web-1"))

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openmanager.cli.part.os.fsync", full)
    with pytest.raises(FailedPreconditionError, match="no space left on device"):
        report.run({"html": tmp_path / "a.html", "png": None}, never)
    assert list(tmp_path.iterdir()) == []


def test_a_report_names_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(report.connection, "run", lambda _: report_on("Web-1"))
    files = {"html": tmp_path / "a.html", "png": tmp_path / "a.png"}
    report.run(files, never)
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.partition(": ")[0] for line in said.err.splitlines()] == [str(path) for path in files.values()]
    assert files["html"].read_bytes().startswith(b"<!doctype html>")
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert {each.name for each in tmp_path.iterdir()} == {"a.html", "a.png"}


def test_the_calls_of_a_report_carry_the_trace_that_it_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    carried = []

    def asked(_: Any) -> Report:
        carried.append(telemetry.trace_parent())
        return report_on("web-1")

    monkeypatch.setattr(report.connection, "run", asked)
    report.run({"html": tmp_path / "a.html", "png": None}, never)
    _, trace, _, sampled = carried[0].split("-")
    assert trace in Page((tmp_path / "a.html").read_text()).texts
    assert sampled == "01"


@pytest.mark.parametrize(
    ("ucum", "value", "shown", "change"),
    [
        ("%", 93.414, "93.41 %", "+93.4 points"),
        ("By", 1.5 * 2**30, "1.5 GiB", "+1.5 GiB"),
        ("By/s", -2048.0, "−2 KiB/s", "−2 KiB/s"),
        ("1", 0.25, "0.25", "+0.25"),
        ("{request}/s", 1234.5, "1,234 request/s", "+1,234 request/s"),
        ("", 3.0, "3", "+3"),
        ("%", float("nan"), "–", None),
    ],
)
def test_numbers_have_their_units(ucum: str, value: float, shown: str, change: str | None):
    assert Unit(ucum).show(value) == shown
    assert change is None or Unit(ucum).show_change(value) == change


def test_what_openmanager_calls_a_usage_is_in_percent_and_a_counter_is_a_rate():
    assert Unit.of("cpu_usage", "").show(3) == "3 %"
    assert Unit.of("system.network.io{a=b}", "By", is_rate=True).show_range(0, 4096) == "0 to 4 KiB/s"


@pytest.mark.parametrize(("hours", "name"), [(400, "hour of the week"), (100, "hour of the day"), (5, "hours before")])
def test_usual_is_by_the_finest_season_that_was_seen_often_enough(hours: int, name: str):
    times = 1_782_900_000 * 10**9 // HOUR * HOUR + HOUR * np.arange(hours)
    low = (times // HOUR % 24).astype(float)
    found = learn(plot.Line(times=times, values=low), plot.Line(times=times, values=low + 10))
    assert found is not None
    assert found.name == name
    if hours > 24:
        at_low, at_high = found.at(times[:24])
        assert at_low.tolist() == pytest.approx(low[:24].tolist())
        assert at_high.tolist() == pytest.approx((low[:24] + 10).tolist())


def test_nothing_is_usual_of_two_hours():
    two = plot.Line(times=HOUR * np.arange(2), values=np.zeros(2))
    assert learn(two, two) is None
    assert learn(plot.Line(times=two.times[:0], values=two.values[:0]), two) is None


def test_a_table_beside_a_chart_covers_all_of_it():
    for length in (0, 1, 5, 24, 1000):
        parts = thinned(length)
        assert len(parts) == min(length, 24)
        assert [at for part in parts for at in range(part.start, part.stop)] == list(range(length))


def test_a_name_that_is_too_long_is_shortened_in_its_middle():
    assert chart.shorten("web-1", 10) == "web-1"
    assert chart.shorten("abcdefghijklmnop", 9) == "abcd…mnop"
