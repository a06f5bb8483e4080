from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from conformance.commands import keygen
from conformance.errors import KeyFileError
from conformance.report import keys


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    keygen.configure(parser)
    return keygen.run(parser.parse_args(arguments))


def test_makes_a_pair_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vendor.pem"
    assert run("-o", str(path)) == 0
    out = capsys.readouterr().out
    assert str(path) in out
    assert str(path) + ".pub" in out
    assert keys.key_id(keys.load_private_key(path).public_key()) in out


def test_passphrase_comes_from_the_named_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_SECRET", "open sesame")
    run("-o", str(tmp_path / "k.pem"), "--passphrase-env", "KEY_SECRET")
    keys.load_private_key(tmp_path / "k.pem", "open sesame")
    with pytest.raises(KeyFileError, match="is encrypted"):
        keys.load_private_key(tmp_path / "k.pem")


def test_passphrase_need_not_be_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_SECRET", "caf\udce9")
    run("-o", str(tmp_path / "k.pem"), "--passphrase-env", "KEY_SECRET")
    keys.load_private_key(tmp_path / "k.pem", "caf\udce9")


@pytest.mark.parametrize(("value", "reason"), [(None, "KEY_SECRET is not set"), ("", "passphrase is empty")])
def test_missing_passphrase_makes_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, reason: str
) -> None:
    monkeypatch.delenv("KEY_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("KEY_SECRET", value)
    with pytest.raises(KeyFileError, match=reason):
        run("-o", str(tmp_path / "k.pem"), "--passphrase-env", "KEY_SECRET")
    assert list(tmp_path.iterdir()) == []


def test_existing_key_is_kept(tmp_path: Path) -> None:
    run("-o", str(tmp_path / "k.pem"))
    before = (tmp_path / "k.pem").read_bytes()
    with pytest.raises(KeyFileError, match="not overwritten"):
        run("-o", str(tmp_path / "k.pem"))
    assert (tmp_path / "k.pem").read_bytes() == before
