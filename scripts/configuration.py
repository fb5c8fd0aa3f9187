"""Generate docs/configuration.md from the settings; with --check, say whether the file is what would be generated."""

from __future__ import annotations

import sys
import typing
from datetime import timedelta
from itertools import groupby
from pathlib import Path

from openmanager import suite
from openmanager.config import Key, Secret, Size, keys, show, show_size

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Defaults, then a TOML file (`OPENMANAGER_CONFIG` names it), then the environment, then flags; an unknown key or variable
is an error (exit code 78). The key `interval` in the section `simulator` is `[simulator] interval = "10s"` in the file
and `OPENMANAGER_SIMULATOR_INTERVAL` in the environment. A secret can be read from a file: `DATABASE_URL_FILE` names it, and is
read again when the secret is refused.
`openmanager config show --diff` prints what is not the default and where it came from. Tracing follows the standard
`OTEL_*` variables.

Durations are written `250ms`, `10s`, `5m`, `24h`, `14d`; sizes `64MiB`. This page is generated: `make docs`.
"""


def kind(key: Key) -> str:
    """Return the name of a setting's type."""
    if choices := typing.get_args(key.kind):
        return " or ".join(f"`{choice}`" if choice else "empty" for choice in choices)
    names = {Size: "size", timedelta: "duration", Secret: "secret", bool: "true or false", str: "text", Path: "path"}
    return names.get(key.kind, getattr(key.kind, "__name__", str(key.kind)))


def default(key: Key) -> str:
    """Return a default as it would be written."""
    if key.kind is Size:
        return f"`{show_size(key.default)}`"
    text = show(key.default)
    return f"`{text}`" if text and key.kind is not Secret else "empty"


def render() -> str:
    """Return the page."""
    parts = [HEAD]
    for section, found in groupby(keys(suite.sections()), key=lambda key: key.section):
        about = (suite.sections()[section].__doc__ or "").strip().splitlines()[0]
        parts.append(
            f"\n## `[{section}]`\n\n{about}\n\n| key | variable | type | default | meaning |\n|---|---|---|---|---|"
        )
        parts.extend(f"| `{k.name}` | `{k.variable}` | {kind(k)} | {default(k)} | {k.doc} |" for k in found)
    return "\n".join(parts) + "\n"


def main() -> None:
    """Generate or check."""
    text = render()
    if "--check" in sys.argv:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            sys.exit("docs/configuration.md is not that of the settings: run `make docs`")
        return
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
