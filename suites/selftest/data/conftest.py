from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece", reason="conformance data needs the extra data")

from conformance import data
from conformance.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
CORPUS = ROOT / "fixtures" / "corpus"
# Signs that a tokenizer or a reader of lines may treat in a way of its own.
NASTY = [
    "two  spaces,   three, and four    at the end    ",
    " a space in front; \u2581 and \u2581\u2581 as signs\u2581",
    "<s> and </s> and <unk> and <0x0A> are text here</s>",
    "caf\u00e9, na\u00efve caf\u00e9s, \u00e9\u00e9, x\u00e9(y), \u00fc1, 1\u00fc",
    "\u4eca\u5929\u5929\u6c14\u6674\u6717\uff0c\u9002\u5408\u51fa\u95e8\u3002 A\u5929B 12\u670824\u65e5",
    "\U0001f600\U0001f600 a\U0001f600b \u2029 \u0085 \x0b \x0c \x00 \x1f tab\tand\t\ttabs",
    "3.14159, 0x1F, 1e-05, v0.2.3dev20240201, 123456789",
    "snake_case(camelCase)->[it's]; C:\\new\\table #!?",
    "\u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \ud55c\uad6d\uc5b4 e\u0301",
    "",
    " ",
    "x",
]


@pytest.fixture(scope="session")
def tokenizer() -> Path:
    try:
        return data.rehearsal_tokenizer()
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The corpus and the nasty texts in every kind of file that InternEvo's script reads."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for kind in ("jsonl", "txt"):
        shutil.copyfile(CORPUS / f"corpus.{kind}", folder / f"corpus-{kind}.{kind}")
    records = [json.loads(line) for line in (CORPUS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    write(folder / "corpus-json.json", json.dumps(records, ensure_ascii=False, indent=1))
    records = [{"text": text, "n": [1, 2.50, None, float("nan"), {}]} for text in NASTY]
    write(folder / "nasty-json.json", " [" + " ,\n".join(map(json.dumps, records)) + "] \n")
    lines = [json.dumps(record, ensure_ascii=number % 2 == 0) for number, record in enumerate(records)]
    # Every end of a line, empty lines, a line that is not JSON, and no newline at the end.
    write(folder / "nasty-jsonl.jsonl", "\n".join(lines) + "\r\n" + lines[0] + "\r\r\n\nno JSON\n" + lines[1])
    write(folder / "nasty-txt.txt", "\r\n".join(NASTY) + "\rx\n\n  \n" + "\n".join(NASTY) + "y")
    return folder


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
