"""The ways of docs/verify-by-hand.md, run as a reader would: on a good bundle, and on ones that must fail."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from conformance import strictjson
from conformance.bundle.archive import write_bundle
from conformance.report import dsse, keys, statement

DOCS = Path(__file__).parents[3] / "docs"
SCRIPT = DOCS / "verify_by_hand.py"
FILES = {"logs/node0/rank0.log": b"step=0 loss=10.5\n" * 1000, "configs/internevo.py": b"", "journal.jsonl": b"{}\n"}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    keys.generate_key(tmp_path / "vendor.pem")
    return tmp_path / "vendor.pem"


def envelope(key: Path, signers: int = 1, files: Mapping[str, bytes] = FILES) -> bytes:
    """A signed statement about files; its predicate is of no interest here."""
    document = {
        "_type": statement.STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256(files[name]).hexdigest()}} for name in sorted(files)],
        "predicateType": statement.PREDICATE_TYPE,
        "predicate": {},
    }
    others = [keys.generate_key(key.with_name(f"other{number}-{signers}.pem")) for number in range(signers - 1)]
    return dsse.sign(strictjson.dumps(document), statement.PAYLOAD_TYPE, [keys.load_private_key(key), *others])


def by_openssl(bundle: Path, key: Path) -> subprocess.CompletedProcess[str]:
    script = re.search(r"```sh\n(.*?)```", (DOCS / "verify-by-hand.md").read_text("utf-8"), re.DOTALL)
    assert script is not None
    scratch = bundle.with_suffix(".scratch")
    scratch.mkdir()
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "BUNDLE": str(bundle), "KEY": str(key)}
    return subprocess.run(["bash", "-c", script[1]], cwd=scratch, env=environment, capture_output=True, text=True)


def by_python(bundle: Path, key: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, bundle, key], capture_output=True, text=True)


Way = Callable[[Path, Path], "subprocess.CompletedProcess[str]"]
ways = pytest.mark.parametrize("way", [by_openssl, by_python])


@ways
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("signers", [1, 3])
def test_good_bundle(tmp_path: Path, key: Path, way: Way, suffix: str, signers: int) -> None:
    report = envelope(key, signers)
    write_bundle(tmp_path / f"b.{suffix}", {"report.dsse.json": report, **FILES})
    result = way(tmp_path / f"b.{suffix}", keys.public_key_path(key))
    assert result.returncode == 0, result.stderr
    assert keys.key_id(keys.load_private_key(key).public_key()) in result.stdout
    assert statement.report_id(dsse.parse(report).payload) in result.stdout


def other_payload(report: bytes) -> bytes:
    old = dsse.parse(report)
    payload = old.payload.replace(b"v1", b"v2")
    return dsse._dump(dsse.Envelope(payload, old.payload_type, old.signatures))


FAULTS: dict[str, Callable[[bytes], dict[str, bytes]]] = {
    "file changed": lambda report: {"report.dsse.json": report, **FILES, "journal.jsonl": b"{ }\n"},
    "file added": lambda report: {"report.dsse.json": report, **FILES, "logs/more": b""},
    "file missing": lambda report: {"report.dsse.json": report, **dict(list(FILES.items())[1:])},
    "payload changed": lambda report: {"report.dsse.json": other_payload(report), **FILES},
}


@ways
def test_good_submission(tmp_path: Path, key: Path, way: Way) -> None:
    files = {f"runs/one/{name}": data for name, data in FILES.items()} | {"runs/one/report.dsse.json": b"signed"}
    write_bundle(tmp_path / "s.tar", {"submission.dsse.json": envelope(key, 2, files), **files})
    result = way(tmp_path / "s.tar", keys.public_key_path(key))
    assert result.returncode == 0, result.stderr
    changed = files | {"runs/one/report.dsse.json": b"other"}
    write_bundle(tmp_path / "c.tar", {"submission.dsse.json": envelope(key, 1, files), **changed})
    assert way(tmp_path / "c.tar", keys.public_key_path(key)).returncode != 0


@ways
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_bundle(tmp_path: Path, key: Path, way: Way, fault: str) -> None:
    write_bundle(tmp_path / "b.tar", dict(FAULTS[fault](envelope(key))))
    assert way(tmp_path / "b.tar", keys.public_key_path(key)).returncode != 0


@ways
def test_another_key(tmp_path: Path, key: Path, way: Way) -> None:
    write_bundle(tmp_path / "b.tar", {"report.dsse.json": envelope(key), **FILES})
    keys.generate_key(tmp_path / "stranger.pem")
    assert way(tmp_path / "b.tar", tmp_path / "stranger.pem.pub").returncode != 0


def test_the_script_is_short_and_independent() -> None:
    text = SCRIPT.read_text("utf-8")
    assert len(text.splitlines()) <= 40
    assert "conformance" not in text


def test_documented_openssl_key_signs(tmp_path: Path) -> None:
    text = (DOCS / "verify-by-hand.md").read_text("utf-8")
    commands = re.search(r"```\n(openssl genpkey.*?)```", text, re.DOTALL)
    assert commands is not None
    subprocess.run(["bash", "-ec", commands[1]], cwd=tmp_path, check=True)
    public = keys.load_public_key(tmp_path / "vendor.pem.pub")
    assert keys.key_id(public) == keys.key_id(keys.load_private_key(tmp_path / "vendor.pem").public_key())
