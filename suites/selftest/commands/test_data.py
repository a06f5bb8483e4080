from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("sentencepiece", reason="conformance data needs the extra data")

from conformance import data
from conformance.cli import main
from conformance.errors import DataError


@pytest.fixture
def tokenizer():
    try:
        return str(data.rehearsal_tokenizer())
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\nbroken\n{"text": "two"}\n')
    return str(path)


def test_prepare_fingerprint_check(source, tokenizer, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["data", "prepare", source, "--tokenizer", tokenizer, "--out", out, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    digest = data.fingerprint(tmp_path / "out").digest
    assert printed.startswith("Inputs: 1 file of 0.0 MB: a.jsonl.\n")
    assert "Broken lines: 1." in printed
    assert f"{source}, line 2: the line is not JSON" in printed
    assert f"{out}: 3 documents" in printed
    assert digest in printed

    assert main(["data", "fingerprint", out]) == 0
    assert digest in capsys.readouterr().out
    assert main(["data", "fingerprint", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == data.fingerprint(tmp_path / "out").to_json()
    assert main(["data", "check", out]) == 0
    assert capsys.readouterr().out.startswith("PASS: 3 documents")

    shard = data.train_folder(tmp_path / "out") / "en/a-00000.bin"
    shard.write_bytes(shard.read_bytes().replace(b"[1, ", b"[7, ", 1))
    assert main(["data", "fingerprint", out]) == 1
    assert f"was prepared as {digest}; its files have changed" in capsys.readouterr().out
    assert main(["data", "check", out]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_progress_goes_to_stderr_with_rate_and_time_left(tokenizer, tmp_path, capsys, monkeypatch):
    from conformance.commands import data as command
    from conformance.data import inputs

    monkeypatch.setattr(command, "PLAIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 2**18)
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one"}\n' * 200_000)
    out = str(tmp_path / "out")
    assert main(["data", "prepare", str(source), "--tokenizer", tokenizer, "--out", out, "--workers", "1"]) == 0
    printed, told = capsys.readouterr()
    assert "preparing" not in printed
    lines = told.splitlines()
    assert len(lines) >= 10
    assert re.fullmatch(r"preparing: \d of 3 MB, \d+\.\d MB/s, \d+ s left, [\d,]+ tokens", lines[-2])


def test_progress_moves_no_cursor_in_a_file(capsys, monkeypatch):
    from conformance.commands import data as command

    monkeypatch.setattr(command, "PLAIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with command._shown("preparing") as show:
        show(1_000_000, 3_000_000, "7 tokens")
    told = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().err)  # colours were asked for
    assert re.fullmatch(r"preparing: 1 of 3 MB, .*, 7 tokens\n", told)


def test_bad_input_is_a_sentence(source, tokenizer, tmp_path, capsys):
    command = ["data", "prepare", source, "--tokenizer", tokenizer, "--out", str(tmp_path / "out")]
    assert main([*command, "--strict"]) == 2
    assert capsys.readouterr().err.startswith(f"conformance data: {source}, line 2: the line is not JSON.")
    assert main(["data", "check", str(tmp_path / "out")]) == 2
    assert "no finished data folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("", [], "holds no text in 0 bytes."),
        ('{"txt": 1}\n', ["--field", "text"], "holds no record with a text in the field 'text' in 11 bytes; 1 lines"),
    ],
)
def test_inputs_without_a_document_are_told(text, options, told, source, tokenizer, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(text)
    command = ["data", "prepare", source, "--tokenizer", tokenizer, "--out", str(tmp_path / "out"), *options]
    for _ in range(2):  # also when it goes on
        assert main([*command, "--workers", "1"]) == 2
        assert f"{source} {told}" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--workers", "0"], ["--workers", "x"], ["--raw", "--field", "text"]])
def test_options_that_make_no_sense_are_refused(options, source, tokenizer, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "prepare", source, "--tokenizer", tokenizer, "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()
