"""``conformance policy new``: a draft that holds as soon as it is signed."""

import json

import pytest

from conformance.bundle import policy
from conformance.cli import main


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lab", "acme"):
        assert main(["keygen", "-o", f"{name}.pem"]) == 0


NEW = ["policy", "new", "--name", "Example Lab", "--lab-key", "lab.pem.pub", "-o", "policy.json"]


def test_a_draft_can_be_signed_and_read(keys, tmp_path):
    assert main([*NEW, "--vendor", "ACME=acme.pem.pub"]) == 0
    assert main(["sign", "policy.json", "--type", "policy", "--signing-key", "lab.pem", "-o", "policy.dsse.json"]) == 0
    read = policy.read(tmp_path / "policy.dsse.json")
    assert {(key.name, key.role) for key in read.keys.values()} == {("Example Lab", "lab"), ("ACME", "vendor")}
    assert read.challenge_required
    assert set(read.workloads) == {f"llama2-{size}-{kind}" for size in ("7b", "70b") for kind in ("perf", "accuracy")}
    assert not read.data


@pytest.mark.parametrize(
    "options, said",
    [
        (["--vendor", "acme.pem.pub"], "expected NAME=FILE"),
        (["--vendor", "ACME=nowhere.pub"], "nowhere.pub cannot be read"),
        (["--vendor", "ACME=acme.pem"], "acme"),
        (["--vendor", "ACME=acme.pem.pub", "--workload", "llama3"], "llama3"),
        (["--vendor", "ACME=acme.pem.pub", "--days", "0"], "--days is 0"),
    ],
)
def test_bad_input_is_one_sentence(keys, tmp_path, capsys, options, said):
    assert main([*NEW, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "policy.json").exists()


def test_a_draft_does_not_replace_a_policy(keys, tmp_path):
    (tmp_path / "policy.json").write_text("{}")
    assert main([*NEW, "--vendor", "ACME=acme.pem.pub"]) == 2
    assert json.loads((tmp_path / "policy.json").read_text()) == {}
