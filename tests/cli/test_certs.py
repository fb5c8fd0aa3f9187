"""`openmanager certs`: what it makes, what it keeps to itself, and what it finds wrong."""

from __future__ import annotations

import json
import re
import shlex
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from openmanager import certificate, suite
from openmanager.authority import Authority
from openmanager.certificate import is_authority, read_certificates, read_key, signed_by
from openmanager.cli.main import main


@pytest.fixture
def run(plain, capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder; returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str]:
        code = 0
        try:
            main(["certs", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return command


@pytest.fixture
def certs(run, tmp_path) -> Path:
    assert run("init", "certs")[0] == 0
    assert run("issue", "certs", "--host", "gateway.example.net", "--host", "10.0.0.7")[0] == 0
    return tmp_path / "certs"


def leaf(folder: Path) -> x509.Certificate:
    return read_certificates((folder / "certificate.pem").read_bytes(), "")[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_authority_is_a_p256_key_that_its_owner_alone_reads_and_signs_for_ten_years(certs):
    (made,) = read_certificates((certs / "ca/ca.pem").read_bytes(), "")
    key = read_key((certs / "ca/ca.key").read_bytes(), "")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert is_authority(made)
    assert made.not_valid_after_utc - made.not_valid_before_utc >= timedelta(days=3650)
    assert (mode(certs / "ca/ca.key"), mode(certs / "ca")) == (0o400, 0o700)


def test_an_authority_that_is_there_is_kept(run, certs):
    before = (certs / "ca/ca.key").read_bytes()
    code, said = run("init", "certs")
    assert (code, "kept" in said, (certs / "ca/ca.key").read_bytes()) == (0, True, before)


def test_every_service_gets_a_certificate_of_its_own_for_its_names(certs):
    authorities = read_certificates((certs / "ca/ca.pem").read_bytes(), "")
    assert {place.name for place in certs.iterdir()} == {*suite.CERTIFIED, "ca"}
    for name in suite.CERTIFIED:
        found = leaf(certs / name)
        names = [str(each.value) for each in certificate.alternative_names(found)]
        assert names == [
            f"spiffe://openmanager/{name}",
            f"{name}.openmanager.internal",
            "gateway.example.net",
            "10.0.0.7",
            name,
            "localhost",
            "127.0.0.1",
            "::1",
        ]
        purposes = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        assert signed_by(found, authorities)
        assert not is_authority(found)
        assert mode(certs / name / "key.pem") == 0o400
        assert (certs / name / "ca.pem").read_bytes() == (certs / "ca/ca.pem").read_bytes()
    assert len({(certs / name / "key.pem").read_bytes() for name in suite.CERTIFIED}) == len(suite.CERTIFIED)


def test_a_client_may_call_but_not_serve(run, certs):
    assert run("issue", "certs", "alice", "--host", "gateway.example.net", "--days", "7")[0] == 0
    found = leaf(certs / "alice")
    assert list(certificate.identities(found)) == ["client/alice"]
    assert certificate.hosts_of(found) == []
    assert list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("ca",),
        ("Gateway",),
        ("../x",),
        ("a" * 64,),
        ("g\u0430teway",),
        ("",),
        ("-",),
        ("gateway", "--host", "a b"),
        ("gateway", "--host", ""),
        ("gateway", "--host", "*"),
        ("gateway", "--host", "x\n"),
        ("gateway", "--host", "ex\u00e4mple.net"),
        ("gateway", "--days", "0"),
        ("gateway", "--days", "826"),
    ],
)
def test_what_cannot_stand_in_a_certificate_is_refused_in_one_sentence(run, certs, arguments):
    before = sorted(certs.rglob("*"))
    code, said = run("issue", "certs", *arguments)
    assert code in {2, 78}
    assert "Traceback" not in said
    assert sorted(certs.rglob("*")) == before


def test_without_an_authority_nothing_is_issued(run, tmp_path):
    code, said = run("issue", "certs")
    assert (code, "openmanager certs init" in said) == (78, True)
    (tmp_path / "certs/ca").mkdir(parents=True)
    (tmp_path / "certs/ca/ca.pem").write_text("nonsense")
    assert run("issue", "certs")[0] == 78


def test_only_what_has_lived_two_thirds_of_its_life_is_renewed(certs):
    now = certificate.utc_now()
    authority = Authority(certs)
    old = {name: leaf(certs / name) for name in suite.CERTIFIED}
    authority.issue("client/bob", (), now=now, lifetime=timedelta(days=3))
    assert list(authority.renew(now=now + timedelta(days=1))) == []
    assert [place.name for place in authority.renew(now=now + timedelta(days=2, hours=1))] == ["bob"]
    assert {place.name for place in authority.renew(now=now + timedelta(days=21))} == {*suite.CERTIFIED, "bob"}
    for name in suite.CERTIFIED:
        found = leaf(certs / name)
        assert found.serial_number != old[name].serial_number
        assert certificate.hosts_of(found) == certificate.hosts_of(old[name])
        later = found.not_valid_after_utc - old[name].not_valid_after_utc
        assert later == pytest.approx(
            timedelta(days=21), abs=timedelta(minutes=1)
        )  # they were issued a moment before `now`


def test_an_authority_that_ends_sooner_does_not_sign(certs):
    later = certificate.utc_now() + timedelta(days=3640)
    with pytest.raises(Exception, match="holds only for"):
        Authority(certs).issue("cache", (), now=later, lifetime=timedelta(days=30))


def test_an_authority_takes_over_in_three_steps(run, certs):
    first = read_certificates((certs / "ca/ca.pem").read_bytes(), "")
    assert run("rotate", "certs")[0] == 0
    both = read_certificates((certs / "cache/ca.pem").read_bytes(), "")
    assert len(both) == 2
    assert both[1:] == first
    code, said = run("rotate", "certs", "--finish")
    assert (code, "renew it first" in said) == (78, True)
    assert run("renew", "certs", "--all")[0] == 0
    assert run("rotate", "certs", "--finish")[0] == 0
    assert read_certificates((certs / "cache/ca.pem").read_bytes(), "") == both[:1]
    assert signed_by(leaf(certs / "cache"), both[:1])


def shown(run, path: str) -> dict[str, list[str]]:
    code, said = run("show", path, "--json")
    found = {row["file"]: row["trouble"] for row in json.loads(said)}
    assert code == any(found.values())
    return found


def test_nothing_is_wrong_with_what_was_just_made(run, certs):
    files = {f"{name}/certificate.pem" for name in suite.CERTIFIED} | {"ca/ca.pem"}
    assert shown(run, "certs") == {file: [] for file in files}


def test_what_is_wrong_is_shown(run, certs):
    (certs / "gateway/key.pem").chmod(0o444)
    (certs / "ca/ca.key").chmod(0o440)
    (certs / "cache/key.pem").unlink()
    (certs / "cache/key.pem").write_bytes((certs / "metadata/key.pem").read_bytes())
    (certs / "cache/key.pem").chmod(0o400)
    now = certificate.utc_now()
    Authority(certs).issue("timeseries", (), now=now - timedelta(days=31), lifetime=timedelta(days=30))
    Authority(certs).issue("metadata", (), now=now - timedelta(days=20, hours=12), lifetime=timedelta(days=30))
    Authority(certs).issue("simulator", (), now=now + timedelta(days=2), lifetime=timedelta(days=30))
    run("init", "other")
    (certs / "simulator/ca.pem").unlink()
    (certs / "simulator/ca.pem").write_bytes((certs / "../other/ca/ca.pem").read_bytes())
    found = shown(run, "certs")
    assert found["gateway/certificate.pem"] == ["key.pem can be read by others"]
    assert found["ca/ca.pem"] == []
    assert found["cache/certificate.pem"] == ["key.pem is not its key"]
    assert found["timeseries/certificate.pem"][0].startswith("ended on ")
    assert found["metadata/certificate.pem"] == ["ends in 9 days"]
    assert found["simulator/certificate.pem"][0].startswith("holds only from ")
    assert found["simulator/certificate.pem"][1] == "ca.pem did not sign it"


def test_a_table_for_people_fits_eighty_columns_and_names_what_is_wrong(run, certs):
    (certs / "gateway/key.pem").chmod(0o444)
    code, said = run("show", "certs")
    assert code == 1
    assert "! gateway/certificate.pem: key.pem can be read by others" in said
    assert max(map(len, said.splitlines())) <= 80
    assert "PRIVATE" not in said


@pytest.mark.parametrize("content", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_that_is_no_certificate_is_refused_in_one_sentence(run, tmp_path, content):
    (tmp_path / "x.pem").write_text(content)
    code, said = run("show", "x.pem")
    assert (code, len(said.strip().splitlines())) == (78, 1)


def test_a_key_is_not_shown(run, certs):
    code, said = run("show", "certs/cache/key.pem")
    assert (code, "PRIVATE" in said) == (78, False)


def test_the_commands_of_the_page_on_tls_work(run):
    page = (Path(__file__).resolve().parents[2] / "docs/tls.md").read_text()
    console = "".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL))
    commands = [shlex.split(line)[2:] for line in console.splitlines()]
    assert len(commands) == 8
    for program, *arguments in commands:
        assert program == "certs"
        code, said = run(*arguments)
        assert code == 0, said
