"""Signing again: more keys on one envelope, in a file or in a bundle, and a lab's policy."""

import json
import re

import pytest

from conformance import strictjson
from conformance.bundle import archive
from conformance.bundle.pack import pack
from conformance.bundle.verify import verify
from conformance.cli import main
from conformance.report import dsse, keys, statement


@pytest.fixture
def pair(tmp_path):
    return [keys.generate_key(tmp_path / f"{name}.pem") for name in ("vendor", "operator")]


@pytest.fixture
def envelope(tmp_path, pair):
    (tmp_path / "a.dsse.json").write_bytes(dsse.sign(b"{}", statement.PAYLOAD_TYPE, pair[:1]))
    return tmp_path / "a.dsse.json"


def add(tmp_path, file, *options):
    return main(["sign", str(file), "-o", str(tmp_path / "out"), *map(str, options)])


def test_a_second_key_signs_the_same_bytes(tmp_path, envelope, pair, capsys):
    assert add(tmp_path, envelope, "--signing-key", tmp_path / "operator.pem") == 0
    public = {keys.key_id(key.public_key()): key.public_key() for key in pair}
    both = dsse.verify((tmp_path / "out").read_bytes(), public, payload_type=statement.PAYLOAD_TYPE, threshold=2)
    assert both.payload == b"{}"
    assert both.key_ids == set(public)
    told = capsys.readouterr().out
    assert all(name in told for name in public)
    assert re.findall(r"signed by (\w+)  \(new\)", told) == [keys.key_id(pair[1].public_key())]


def test_a_bundle_is_signed_again_and_nothing_else_of_it_changes(tmp_path, run, sign, pair):
    sign()
    pack(run, tmp_path / "x.tar")
    out = tmp_path / "signed.tar.gz"
    assert main(["sign", str(tmp_path / "x.tar"), "--signing-key", str(tmp_path / "operator.pem"), "-o", str(out)]) == 0
    before, after = archive.read_index(tmp_path / "x.tar"), archive.read_index(out)
    digests = [{name: member.sha256 for name, member in index.members.items()} for index in (before, after)]
    assert digests[0].pop("report.dsse.json") != digests[1].pop("report.dsse.json")
    assert digests[0] == digests[1]
    signatures = dsse.parse(archive.read_member(after, "report.dsse.json", dsse.MAX_ENVELOPE_BYTES)).signatures
    assert len(signatures) == 2
    assert [a.answer for a in verify(out).answers] == [a.answer for a in verify(tmp_path / "x.tar").answers]


def refusal(tmp_path, capsys, file, *options):
    assert add(tmp_path, file, *options) == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


def test_a_key_signs_once(tmp_path, envelope, capsys):
    assert "two signatures name the same key" in refusal(
        tmp_path, capsys, envelope, "--signing-key", tmp_path / "vendor.pem"
    )


def test_a_file_that_is_no_envelope_is_refused(tmp_path, pair, capsys):
    (tmp_path / "p.json").write_text("{}")
    assert "The signed envelope is refused" in refusal(
        tmp_path, capsys, tmp_path / "p.json", "--signing-key", tmp_path / "vendor.pem"
    )


def test_a_file_that_is_not_there_is_refused(tmp_path, pair, capsys):
    for name in ("none.dsse.json", "none.tar"):
        told = refusal(tmp_path, capsys, tmp_path / name, "--signing-key", tmp_path / "vendor.pem")
        assert name in told


def test_nothing_is_overwritten(tmp_path, envelope, pair, capsys):
    (tmp_path / "out").write_text("mine")
    assert add(tmp_path, envelope, "--signing-key", tmp_path / "operator.pem") == 2
    assert "not overwritten" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_locked_key_wants_its_passphrase(tmp_path, envelope, capsys, monkeypatch):
    keys.generate_key(tmp_path / "locked.pem", "open sesame")
    told = refusal(tmp_path, capsys, envelope, "--signing-key", tmp_path / "locked.pem")
    assert "locked.pem is encrypted" in told
    assert "--passphrase-env" in told
    monkeypatch.setenv("SECRET", "open sesame")
    assert add(tmp_path, envelope, "--signing-key", tmp_path / "locked.pem", "--passphrase-env", "SECRET") == 0


def test_a_policy_that_no_verifier_would_take_is_not_written(tmp_path, pair, capsys):
    (tmp_path / "p.json").write_bytes(strictjson.dumps({"version": 1}))
    told = refusal(tmp_path, capsys, tmp_path / "p.json", "--type", "policy", "--signing-key", tmp_path / "vendor.pem")
    assert "The policy is refused" in told


def test_a_policy_is_signed(tmp_path, pair):
    from conformance.bundle import policy

    public = keys.public_pem(pair[0].public_key()).decode()
    times = {"valid_from": "2026-01-01T00:00:00Z", "valid_until": "2030-01-01T00:00:00Z", "revoked": None}
    document = {
        "version": 1,
        "name": "a lab",
        "issued": "2026-06-01T00:00:00Z",
        "expires": "2027-06-01T00:00:00Z",
        "keys": [{"public_key": public, "name": "a lab", "role": "lab", **times}],
        "required_roles": ["vendor"],
        "challenge_required": False,
        "suites": [{"version": "0.1.0", "tree_digest": "0" * 64}],
        "workloads": [
            {"name": "tiny-perf", "digest": "0" * 64, "runs": 1, "preflights": 0, "max_attempts": None}
        ],
        "data": [],
        "floors": [],
        "patches": [],
        "waivers": [],
        "limits": {"members": 10000, "member_bytes": 1 << 30, "total_bytes": 1 << 31},
    }  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(document, indent=2))
    assert add(tmp_path, tmp_path / "p.json", "--type", "policy", "--signing-key", tmp_path / "vendor.pem") == 0
    assert policy.read(tmp_path / "out").name == "a lab"
