"""Ask what is known to be vulnerable of what the lock pins: pip-audit, and no answer that was not given.

Arguments go to pip-audit, such as `--vulnerability-service osv`. Ends with code 0 only when every dependency was looked
up and nothing is known against any; with 1 when something is known; with 3 when the data could not be had for all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from dependencies import LOCK, Pin, pins

FOUND = 1
UNKNOWN = 3
SECONDS = 300


def ask(arguments: Sequence[str]) -> tuple[str, str]:
    """Return what pip-audit writes, and, when that is nothing, why."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
    options = ["--format", "json", "--progress-spinner", "off", *arguments]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {SECONDS} s"
    return done.stdout, "" if done.stdout.strip() else done.stderr.strip().rpartition("\n")[2]


def judge(text: str, wanted: Sequence[Pin]) -> tuple[int, list[str]]:
    """Return the exit code and the lines for pip-audit's JSON; what is not in it, or was skipped, is not known.

    pip-audit itself ends well and says that nothing is known when it had to skip everything.
    """
    try:
        answers = {each["name"]: each for each in json.loads(text)["dependencies"]}
    except (ValueError, KeyError, TypeError):
        answers = {}
    known = {name: each["vulns"] for name, each in answers.items() if "vulns" in each}
    lines = [
        f"{name} {answers[name]['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for name, vulnerabilities in sorted(known.items())
        for found in vulnerabilities
    ]
    missing = sorted({pin.name for pin in wanted} - set(known))
    if missing:
        some = f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}"
        lines.append(f"NOT KNOWN: the data could not be had for {len(missing)} of {len(wanted)} dependencies: {some}")
        lines += [f"pip-audit says: {why}" for why in [answers.get(missing[0], {}).get("skip_reason")] if why]
    elif not lines:
        lines.append(f"nothing is known against any of {len(wanted)} dependencies")
    return FOUND if any(known.values()) else UNKNOWN if missing else 0, lines


def main() -> None:
    """Ask and judge."""
    text, trouble = ask(sys.argv[1:])
    code, lines = judge(text, [pin for pin in pins(LOCK) if pin.is_installed])
    print("\n".join(lines))
    if trouble:
        print(f"pip-audit says: {trouble}")
    sys.exit(code)


if __name__ == "__main__":
    main()
