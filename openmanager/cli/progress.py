"""How far a long command is: a bar on standard error, where that is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from openmanager.cli import render

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """A bar with what was done in words; a context manager."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        err = Console(stderr=True)
        self.is_shown = err.is_terminal
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14 if err.width < 100 else 30),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=None, done="")

    def __enter__(self) -> Self:
        """Show it."""
        if self.is_shown:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        if self.is_shown:
            self._progress.stop()

    def show(self, done: float, total: float | None, words: str, *, title: str | None = None) -> None:
        """Show that `done` of `total` is done, in words; None for a total that is not known."""
        more: dict[str, Any] = {} if title is None else {"description": title}
        self._progress.update(self._task, completed=done, total=total, done=words, **more)

    def retitle(self, title: str) -> None:
        """Say what is going on now."""
        self._progress.update(self._task, description=title)


def show_rate(count: float, seconds: float) -> str:
    """Return how many rows came in a second."""
    return f"{count / max(seconds, 0.001):,.0f}/s"


def show_rows(count: int) -> str:
    """Return a number of rows with three digits or so."""
    if count < 1_000_000:
        return render.show_count(count, "row")
    return f"{count / 1e6:,.1f} M rows" if count < 1e9 else f"{count / 1e9:,.2f} G rows"
