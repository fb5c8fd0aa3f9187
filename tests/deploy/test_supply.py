"""What the program is made of: locks, licences, the bill of materials, known vulnerabilities, and the wheel itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import licences
import pytest
import sbom
import vulnerabilities
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from dependencies import LOCK, LOCKS, ROOT, Pin, parse, pins
from licences import Exempt, Policy

HASH = "--hash=sha256:" + 64 * "a"
GOOD = f"a==1.0 \\\n    {HASH}\nb-c==2 ; sys_platform == 'linux' \\\n    {HASH} \\\n    {HASH}\n"
POLICY = Policy(
    permissive=frozenset({"MIT", "Apache-2.0"}), exceptions={"pathspec": Exempt(licence="MPL-2.0", reason="")}
)


# --- locks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_is_versions_with_their_hashes_and_nothing_else(lock):
    assert len(pins(lock)) > 4


def test_a_pin_is_read_with_its_marker_and_hashes():
    first, second = parse(GOOD)
    assert (first.name, first.version, first.marker, first.hashes) == ("a", "1.0", "", ("a" * 64,))
    assert (second.marker, len(second.hashes), second.is_installed) == ("sys_platform == 'linux'", 2, True)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.net/simple\n",
        "--extra-index-url https://example.net/simple\n",
        "--find-links /wheels\n",
        "--trusted-host example.net\n",
        "d==1\n",
        f"d>=1 \\\n    {HASH}\n",
        f"d==1.* \\\n    {HASH}\n",
        "d==1 \\\n    --hash=md5:" + "a" * 32 + "\n",
        f"d @ https://example.net/d.whl \\\n    {HASH}\n",
        "-e .\n",
        "-r other.lock\n",
    ],
)
def test_a_lock_with_an_address_or_without_a_hash_is_refused(line):
    with pytest.raises(ValueError, match=r"not a version pinned with its hashes"):
        parse(GOOD + line)


# --- licences -----------------------------------------------------------------------------------------------------


def test_every_dependency_has_a_licence_that_it_may_have():
    policy = Policy.load()
    assert licences.complaints(licences.licences(policy), policy) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("MIT", ""),
        ("GPL-3.0-only OR MIT", ""),
        ("Apache-2.0 AND MIT", ""),
        ("GPL-3.0-only AND MIT", "not permissive"),
        ("AGPL-3.0-or-later", "not permissive"),
        ("Apache-2.0 WITH LLVM-exception", "not permissive"),
        ("LicenseRef-Proprietary", "does not say its licence"),
        ("", "does not say its licence"),
    ],
)
def test_a_licence_is_permissive_or_complained_of(text, wrong):
    found = licences.complaint("new", text, POLICY)
    assert wrong in found
    assert bool(found) == bool(wrong)


def test_an_exception_is_for_one_licence_and_no_longer_than_it_is_needed():
    found = {text: licences.complaint("pathspec", text, POLICY) for text in ("MPL-2.0", "GPL-3.0-only", "MIT")}
    assert found == {
        "MPL-2.0": "",
        "GPL-3.0-only": "pathspec is excepted for MPL-2.0, and has GPL-3.0-only now",
        "MIT": "pathspec needs no exception any more",
    }
    assert licences.complaints({}, POLICY) == ["pathspec is in scripts/licences.toml, and in no lock"]


def test_what_a_package_says_comes_before_what_was_read():
    words = {"MIT License": "MIT"}
    assert licences.licence(["Copyright 2001\nAll rights", "MIT License"], "Apache-2.0", words) == "MIT"
    assert licences.licence(["see the file"], "Apache-2.0", words) == "Apache-2.0"
    assert licences.licence(["see the file"], "", words) == ""


# --- the bill of materials ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bill() -> str:
    return sbom.render(sbom.bill(), "")


def test_the_bill_is_valid_and_has_everything_that_is_installed_with_hashes_and_licence(bill):
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    components = {each["name"]: each for each in json.loads(bill)["components"]}
    installed = {pin.name: pin for pin in pins(LOCK) if pin.is_installed}
    for kept in licences.VENDORED:
        found = components.pop(kept.name)
        assert (found["version"], found["purl"]) == (kept.version, f"pkg:npm/{kept.name}@{kept.version}")
        files = {each["comment"]: each["hashes"][0]["content"] for each in found["externalReferences"]}
        for name, content in files.items():
            assert hashlib.sha256((ROOT / kept.folder / name).read_bytes()).hexdigest() == content
        assert "LICENSE" in files
        assert f"{kept.version})" in (ROOT / kept.folder / "uPlot.esm.js").read_text()[:500]
    assert {name: each["version"] for name, each in components.items()} == {
        name: pin.version for name, pin in installed.items()
    }
    for name, pin in installed.items():
        (files,) = components[name]["externalReferences"]
        assert {each["content"] for each in files["hashes"]} == set(pin.hashes)
        assert components[name]["licenses"]


def test_the_bill_says_what_is_needed_by_whom_and_what_for(bill):
    found = json.loads(bill)
    scopes = {each["name"]: each["scope"] for each in found["components"]}
    assert (scopes["grpcio"], scopes["duckdb"], scopes["pytest"]) == ("required", "optional", "excluded")
    needs = {each["ref"].partition("@")[0]: each.get("dependsOn", []) for each in found["dependencies"]}
    assert any(each.startswith("pkg:pypi/aiohttp@") for each in needs["pkg:pypi/openmanager"])
    assert any(each.startswith("pkg:pypi/yarl@") for each in needs["pkg:pypi/aiohttp"])


def test_the_bill_is_the_same_each_time_and_tells_no_address(bill, tmp_path):
    clean = {name: text for name, text in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, "-W", "error", sbom.__file__, str(tmp_path / "bill.json")]
    subprocess.run(command, env={**clean, "PYTHONHASHSEED": "7"}, check=True, timeout=30)
    assert bill == (tmp_path / "bill.json").read_text()
    assert re.findall(r"https?://(?!cyclonedx\.org/schema)", bill) == []


def test_the_time_of_the_bill_is_the_one_that_is_asked_for():
    found = json.loads(sbom.render(Bom(), "1700000000"))
    assert found["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


# --- known vulnerabilities ----------------------------------------------------------------------------------------

WANTED = [Pin(name=name, version="1", marker="", hashes=("",)) for name in ("a", "b")]
CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found"}
HIT = {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"], "aliases": []}]}


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ([CLEAN, {**CLEAN, "name": "b"}], 0, "nothing is known against any of 2 dependencies"),
        ([CLEAN, HIT], 1, "b 1: PYSEC-1, mended in 2"),
        ([HIT], 1, "NOT KNOWN: the data could not be had for 1 of 2 dependencies: a"),
        ([CLEAN, SKIPPED], 3, "NOT KNOWN: the data could not be had for 1 of 2 dependencies: b"),
        ([CLEAN], 3, "NOT KNOWN: the data could not be had for 1 of 2 dependencies: b"),
        ([], 3, "NOT KNOWN: the data could not be had for 2 of 2 dependencies: a, b"),
    ],
)
def test_nothing_is_called_clean_that_was_not_looked_up(answers, code, said):
    found, lines = vulnerabilities.judge(json.dumps({"dependencies": answers, "fixes": []}), WANTED)
    assert found == code
    assert said in lines
    assert any("nothing is known" in line for line in lines) == (code == 0)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"dependencies": 3}', '{"dependencies": [{}]}', "<html>"])
def test_no_answer_is_no_clean_answer(text):
    code, lines = vulnerabilities.judge(text, WANTED)
    assert code == 3
    assert lines[0].startswith("NOT KNOWN")


def test_without_a_way_to_the_data_the_look_up_says_so():
    proxy = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"), "http://127.0.0.1:1")
    clean = {name: text for name, text in os.environ.items() if name.lower() not in {"no_proxy", "all_proxy"}}
    done = subprocess.run(
        [sys.executable, vulnerabilities.__file__],
        env={**clean, **proxy},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 3, done
    assert done.stdout.startswith("NOT KNOWN")
    assert "no known" not in done.stdout.lower() + done.stderr.lower()


# --- the wheel ----------------------------------------------------------------------------------------------------


def test_the_wheel_is_the_same_bytes_wherever_and_whenever_it_is_built(tmp_path):
    one = wheel(tmp_path / "one", umask=0o022)
    other = wheel(tmp_path / "elsewhere" / "other", umask=0o077, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def wheel(folder: Path, *, umask: int, **variables: str) -> Path:
    """Copy what a wheel is made of, as somebody with a umask gets it now, and build it."""
    folder.mkdir(parents=True)
    before = os.umask(umask)
    try:
        for name in ("openmanager", "gateway", "services"):
            shutil.copytree(
                ROOT / name,
                folder / name,
                copy_function=shutil.copyfile,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, folder / name)
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"],
            cwd=folder,
            env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000", **variables},
            capture_output=True,
            check=True,
            timeout=30,
        )
    finally:
        os.umask(before)
    (made,) = (folder / "out").iterdir()
    return made
