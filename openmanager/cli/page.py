"""A report as one page of HTML: nothing is loaded from anywhere, legible on paper, whatever is not ours escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from openmanager.cli.page_style import STYLE

# Tables of so many columns are scrolled on a narrow screen.
MANY = 5
# What the page may load, should anything in it ever ask for more: nothing but what it holds itself.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """What is HTML already."""

    __slots__ = ()


def document(title: str, header: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a page: its title in plain text, its head, and its numbered sections (plain title, HTML)."""
    contents = "".join(f'<li><a href="#s{at}">{escape(name)}</a></li>' for at, (name, _) in enumerate(sections, 1))
    body = "".join(
        f'<section aria-labelledby="s{at}"><h2 id="s{at}">{at}. {escape(name)}</h2>{text}</section>'
        for at, (name, text) in enumerate(sections, 1)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'{header}<nav aria-label="Contents"><ol>{contents}</ol></nav><main>{body}</main></body></html>\n'
    )


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    nothing: str = "none",
    *,
    classes: Mapping[str, str],
    heads: Mapping[str, str],
) -> str:
    """Return a table, or a word where it has no rows.

    `classes` says how a column is set: `n` numbers to the right, `t` times and `w` words in one line, `i` broken anywhere, `s` the
    same but not too narrow;
    `heads` what stands above it, where that is not its name.
    """
    if not rows:
        return quiet(nothing)
    shown = ((name, heads.get(name) or name.replace("_", " ").capitalize()) for name in columns)
    head = "".join(f'<th scope="col"{_class(name, classes)}>{escape(title)}</th>' for name, title in shown)
    body = "".join(f"<tr>{_row(columns, row, classes)}</tr>" for row in rows)
    size = ' class="many"' if len(columns) >= MANY else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table{size}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(columns: Sequence[str], row: Mapping[str, Any], classes: Mapping[str, str]) -> str:
    first, *others = columns
    cells = "".join(f"<td{_class(name, classes)}>{_cell(row.get(name, ''))}</td>" for name in others)
    return f'<th scope="row"{_class(first, classes)}>{_cell(row.get(first, ""))}</th>{cells}'


def _class(name: str, classes: Mapping[str, str]) -> str:
    return f' class="{classes[name]}"' if name in classes else ""


def _cell(value: Any) -> str:
    return value if isinstance(value, Html) else escape(f"{value:,}" if isinstance(value, int) else str(value))


def facts(named: Mapping[str, str]) -> str:
    """Return names with what they are."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{_cell(value)}</dd>' for name, value in named.items())}</dl>"


def quiet(words: str) -> str:
    """Return a remark."""
    return f'<p class="quiet">{escape(words)}</p>'


def lines(some: Iterable[str]) -> Html:
    """Return lines of HTML."""
    return Html("<br>".join(some))


def code(text: str) -> Html:
    """Return a text that stands for itself, such as an id."""
    return Html(f"<code>{escape(text)}</code>")
