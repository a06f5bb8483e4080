from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from conformance.commands import internevo
from conformance.errors import SourceError
from conformance.internevo import source
from conformance.internevo.gittree import entry_of, tree_id
from conformance.internevo.source import Pin

TAG = "v0.2.3dev20240201"


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    internevo.configure(parser)
    return internevo.run(parser.parse_args(words))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "checkout"
    (root / "internlm").mkdir(parents=True)
    (root / "internlm" / "__init__.py").write_text("")
    (root / "train.py").write_text("import internlm\n")
    entries = [entry for path in ("internlm/__init__.py", "train.py") if (entry := entry_of(root, path))]
    (tmp_path / f"{TAG}.txt").write_text("".join(f"{entry.mode} {entry.id} {entry.path}\n" for entry in entries))
    monkeypatch.setattr(source, "PINS", {TAG: Pin(TAG, "0" * 40, tree_id(entries))})
    monkeypatch.setattr(source, "PIN_DIR", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_check_passes_a_pinned_tree(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(checkout)) == 0
    printed = capsys.readouterr().out
    assert f"equal to {TAG}" in printed and "PASS" in printed


def test_check_names_what_differs_and_what_was_added(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "train.py").write_text("import torch\n")
    (checkout / "notes.txt").write_text("x")
    assert run("check", str(checkout), "--tag", TAG) == 1
    printed = capsys.readouterr().out
    assert "edited: train.py" in printed
    assert "untracked: notes.txt" in printed
    assert f"FAIL: this is not the pinned {TAG}." in printed


def test_an_unknown_tag_is_answered_with_the_known_ones(checkout: Path) -> None:
    for words in (["check", str(checkout)], ["get"]):
        with pytest.raises(SourceError, match=f"no pin for 'v9'.*It has {TAG}"):
            run(*words, "--tag", "v9")


def test_get_fetches_and_says_where(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"], ["tag", TAG]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *command], cwd=checkout, check=True)
    assert run("get", "--from", str(checkout)) == 0
    where = str(source.fetched_path(source.PINS[TAG]))
    assert capsys.readouterr().out.startswith(f"{where}: equal to {TAG}")
