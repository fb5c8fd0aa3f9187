"""Generate `openmanager/api` from `protos/`; with --check, say whether the committed code is what would be generated."""

from __future__ import annotations

import filecmp
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = Path("openmanager/api")


def generate(out: Path) -> None:
    """Write message, stub and type files for every proto of ours below `protos/` into `out`."""
    # protos/google is in googleapis-common-protos already; it is there for whoever generates from protos/ alone.
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "openmanager").rglob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        f"--mypy_out=quiet:{out}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")
    for folder in [out / GENERATED, *(p for p in (out / GENERATED).rglob("*") if p.is_dir())]:
        (folder / "__init__.py").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Return the relative paths that differ between two trees."""
    names = {p.relative_to(base) for base in (left, right) for p in base.rglob("*.py*") if "__pycache__" not in p.parts}
    return sorted(
        str(name)
        for name in names
        if not ((left / name).is_file() and (right / name).is_file())
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> None:
    """Generate or check."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        generate(out)
        changed = differences(out / GENERATED, ROOT / GENERATED)
        if "--check" in sys.argv:
            if changed:
                sys.exit(f"generated code is not that of protos/ ({', '.join(changed)}): run `make protos`")
            return
        shutil.rmtree(ROOT / GENERATED, ignore_errors=True)
        shutil.copytree(out / GENERATED, ROOT / GENERATED)


if __name__ == "__main__":
    main()
