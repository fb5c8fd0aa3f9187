"""What the verifier found, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import render
from openmanager.cli.progress import Bar
from openmanager.errors import FailedPreconditionError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from openmanager.audit_file import Verdict


def verify_files(file: Path, checkpoints: Path, keys: tuple[Path, ...], *, tolerance: float = 5.0) -> Verdict:
    """Return what is wrong with a log, showing how far it is."""
    from openmanager.audit_file import verify

    known = [_key(path) for path in keys]
    with Bar("verifying") as bar:

        def show(done: int, total: int) -> None:
            bar.show(done, total, f"{render.show_bytes(done)} of {render.show_bytes(total)}")

        try:
            return verify(file, checkpoints, known, tolerance_nanos=round(tolerance * 1e9), progress=show)
        except OSError as err:
            raise FailedPreconditionError(f"{err.filename or file} cannot be read: {err.strerror}") from err


def _key(path: Path) -> Ed25519PublicKey:
    from openmanager.audit_file import public_key

    try:
        return public_key(path.read_bytes())
    except (ValueError, TypeError) as err:
        raise click.BadParameter(f"{path} is not an Ed25519 public key in PEM", param_hint="--key") from err


def json_of(verdict: Verdict) -> str:
    """Return a verdict as JSON."""
    return json.dumps(verdict_document(verdict), indent=2)


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as programs read it."""
    from dataclasses import asdict

    return {"sound": verdict.is_sound, **asdict(verdict), "uncovered_count": verdict.uncovered_count}


def print_verdict(found: Verdict) -> None:
    """Say what was found."""
    from rich.text import Text

    out = render.console()
    for problem in found.problems:
        out.print(Text(f"✗ {problem.where}: {problem.what}", style="bold red"), soft_wrap=True)
    for notice in found.notices:
        out.print(Text(f"! {notice}", style="yellow"), soft_wrap=True)
    if found.is_sound:
        count = found.entry_count - found.uncovered_count
        signed = f", {found.signed_count:,} of them signed" if found.signed_count else ""
        what = f"✓ {show_entries(count)}, numbers {found.first_number:,}–{found.covered_number:,}, are as they were"
        vouched = render.show_count(found.checkpoint_count, "checkpoint")
        out.print(Text(f"{what}: {vouched}{signed}", style="green"), soft_wrap=True)
    if found.is_sound and found.uncovered_count:
        what = f"! {show_entries(found.uncovered_count)} after the last checkpoint are not covered: nothing is said of them"
        out.print(Text(what, style="yellow"), soft_wrap=True)


def show_entries(count: int) -> str:
    """Return a number of entries."""
    return f"{count:,} {'entry' if count == 1 else 'entries'}"
