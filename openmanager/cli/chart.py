"""Charts of reports: one drawing for SVG, wide and narrow, light and dark, and for PNG."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import textwrap
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from openmanager.errors import FailedPreconditionError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Inches; a page shows 72 of a wide one's units as 108 pixels, and as many of a narrow one's, so that letters are alike.
WIDE, NARROW = 8.9, 3.4
DPI = 180
MARGIN = 0.15
SMALL, PLAIN, LARGE = 8.0, 8.5, 13.0
# Of Okabe and Ito's colours, which people tell apart who are colour-blind; what they mean is said by form too.
INK, QUIET, LINE, GROUND = "#1b1f24", "#515b66", "#dde2e8", "#ffffff"
BLUE, ORANGE, RED, SKY, GREEN, GREY = "#0072b2", "#e69f00", "#c03d00", "#56b4e9", "#009e73", "#8a949e"
# What becomes of them on a dark ground.
DARK = {
    INK: "#e6e9ed",
    QUIET: "#a3adb8",
    LINE: "#333b44",
    GROUND: "#14171b",
    BLUE: "#5cb8f0",
    RED: "#ff8f5c",
    GREY: "#7d8893",
}
_FAMILY = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"
# Of a legend, in a line.
WIDE_LETTERS, NARROW_LETTERS = 120, 18
# Digits of a path that nobody sees.
_LONG = re.compile(r"\d+\.\d{3,}")
_SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart: what it shows in words for who does not see it, and the same figures as a table of HTML.

    `draw` takes an empty figure, and whether it is a narrow one. `height` is in inches; `narrow_height` where less width
    needs more of it.
    """

    title: str
    alt: str
    height: float
    draw: Callable[[Figure, bool], None]
    table: str = ""
    narrow_height: float = 0.0


def ready() -> None:
    """Import what draws; FailedPreconditionError when the extra `report` is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as err:
        raise FailedPreconditionError(
            "--html and --png draw with Matplotlib: pip install 'openmanager[report]'"
        ) from err
    mpl.use("agg")
    # That it looks for fonts, or that there is no home to remember them in, is nobody's concern.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


@contextlib.contextmanager
def _drawing(chart: Chart, *, narrow: bool = False, is_svg: bool = False) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans", "font.size": PLAIN, "text.parse_math": False, "axes.unicode_minus": True,
        "svg.fonttype": "none", "svg.hashsalt": "openmanager", "path.simplify_threshold": 0.2,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": QUIET, "axes.linewidth": 0.6,
        "axes.labelcolor": QUIET, "axes.labelsize": SMALL, "axes.titlesize": PLAIN, "axes.titlelocation": "left",
        "axes.titlecolor": INK, "text.color": INK, "xtick.color": QUIET, "ytick.color": QUIET,
        "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
        "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.6,
        "legend.frameon": False, "legend.fontsize": SMALL, "legend.handlelength": 1.6, "legend.borderpad": 0.1,
        "legend.borderaxespad": 0.2,
        "figure.facecolor": "none" if is_svg else GROUND, "axes.facecolor": "none", "savefig.facecolor": "auto",
        "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.02, "timezone": "UTC",
    }  # fmt: skip
    # A letter that the font does not have is drawn as a box in PNG; SVG takes it from the reader's fonts.
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mpl.rcdefaults()  # not as a user has set up drawings of their own
        mpl.rcParams.update(style)
        height = (chart.narrow_height or chart.height) if narrow else chart.height
        figure = Figure(figsize=(NARROW if narrow else WIDE, height))
        chart.draw(figure, narrow)
        yield figure


def svg(chart: Chart, *, narrow: bool) -> bytes:
    """Return a chart as a document of SVG, whose colours follow the reader's choice of light or dark."""
    # What is read is what was written just now.
    from xml.etree import ElementTree as ET

    out = io.BytesIO()
    with _drawing(chart, narrow=narrow, is_svg=True) as figure:
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(out.getvalue())  # noqa: S314
    for each in root.findall(f"{_SVG}metadata"):
        root.remove(each)
    for each in root.iter():
        if "style" in each.attrib:
            each.set("style", _variables(each.get("style", "")))
        if "d" in each.attrib:
            each.set("d", _LONG.sub(_short, each.get("d", "")))
    style = ET.Element(f"{_SVG}style")
    light, dark = (
        ";".join(f"--{key[1:]}:{value}" for key, value in some) for some in (zip(DARK, DARK, strict=True), DARK.items())
    )
    style.text = (
        f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}text{{font-family:{_FAMILY}!important}}"
    )
    root.insert(0, style)
    ET.register_namespace("", _SVG[1:-1])
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    found: bytes = ET.tostring(root, encoding="utf-8")
    return found


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def _variables(style: str) -> str:
    for colour in DARK:
        style = style.replace(colour, f"var(--{colour[1:]})")
    return style


def html(chart: Chart) -> str:
    """Return a chart as HTML: the picture for wide and for narrow screens, its words, and its table."""
    wide, narrow = (b64encode(svg(chart, narrow=each)).decode() for each in (False, True))
    ratio = f'width="{round(WIDE * 108)}" height="{round(chart.height * 108)}"'
    table = f"<details><summary>These figures as a table</summary>{chart.table}</details>" if chart.table else ""
    return (
        f'<figure><picture><source media="screen and (max-width:52rem)" srcset="data:image/svg+xml;base64,{narrow}">'
        f'<img src="data:image/svg+xml;base64,{wide}" alt="{escape(chart.alt)}" {ratio}></picture>'
        f"<figcaption>{escape(chart.title)}</figcaption>{table}</figure>"
    )


def png(heading: str, remarks: Sequence[str], charts: Sequence[Chart], *, software: str) -> bytes:
    """Return charts below each other as one PNG, with a heading and remarks above them."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    strips = [_text([heading], LARGE, INK, bold=True), _text(remarks, PLAIN, QUIET)]
    for each in charts:
        strips += [_text([each.title], PLAIN + 1.5, INK, bold=True), _pixels(each)]
    # A page has margins of its own; a picture is given them.
    edge = round(MARGIN * DPI)
    whole = np.pad(np.vstack(strips)[..., :3], ((edge, edge), (edge, edge), (0, 0)), constant_values=255)
    image = Image.fromarray(whole)
    said = PngInfo()
    for name, text in (
        ("Title", heading),
        ("Description", "\n".join(each.alt for each in charts)),
        ("Software", software),
    ):
        said.add_itxt(name, text)
    out = io.BytesIO()
    image.save(out, format="png", optimize=True, dpi=(DPI, DPI), pnginfo=said)
    return out.getvalue()


def _pixels(chart: Chart) -> NDArray[np.uint8]:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _drawing(chart) as figure:
        canvas: Any = FigureCanvasAgg(figure)
        figure.set_dpi(DPI)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba()).copy()


def _text(lines: Sequence[str], size: float, colour: str, *, bold: bool = False) -> NDArray[np.uint8]:
    """Return lines of text as wide as a chart, broken where they are longer."""
    # The mean width of a letter, as a share of its height.
    most = int(WIDE * 72 / (size * (0.66 if bold else 0.56)))
    broken = [part for line in lines for part in textwrap.wrap(line, most)] or [""]
    height = (len(broken) * size * 1.5 + size) / 72

    def draw(figure: Figure, _: bool) -> None:  # noqa: FBT001
        weight = "bold" if bold else "normal"
        edge = size * 0.7 / 72 / height
        figure.text(
            0,
            1 - edge,
            "\n".join(broken),
            size=size,
            color=colour,
            weight=weight,
            va="top",
            linespacing=1.4,
        )

    return _pixels(Chart(title="", alt="", height=height, draw=draw))


# ── parts of drawings ──────────────────────────────────────────────────────────────────────────────────────────────


def dates(nanos: NDArray[np.int64]) -> Any:
    """Return moments, int64[K] in nanoseconds since the epoch, as axes take them."""
    return nanos.astype("datetime64[ns]").astype("datetime64[ms]")


def time_axis(axes: Axes, start: int, end: int, *, narrow: bool) -> None:
    """Let an axis go from `start` to `end`, nanoseconds since the epoch, with few marks in UTC."""
    import numpy as np
    from matplotlib import dates as ticks

    made: Any = ticks
    locator = made.AutoDateLocator(minticks=3, maxticks=5 if narrow else 9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(made.ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set(color=QUIET, size=SMALL)
    axes.set_xlim(*dates(np.array([start, end])))


def legend(figure: Figure, axes: Iterable[Axes], *, narrow: bool) -> None:
    """Put one legend for some axes above them."""
    found: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if not found:
        return
    fitting = 1 if max(map(len, found)) > NARROW_LETTERS else 2
    if not narrow:
        fitting = next(n for n in range(len(found), 0, -1) if n * max(map(len, found)) < WIDE_LETTERS or n == 1)
    figure.legend(list(found.values()), list(found), loc="outside upper left", ncols=fitting, columnspacing=1.4)


def unit(axes: Axes, symbol: str, name: str = "") -> None:
    """Say above an axis of values what they are of, and in which unit."""
    axes.set_title(f"{name}, {symbol}" if name and symbol else name or symbol, color=INK if name else QUIET)


def shorten(name: str, most: int) -> str:
    """Return a name that fits, its middle left out where it is longer."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - most // 2 - 1) :]}"
