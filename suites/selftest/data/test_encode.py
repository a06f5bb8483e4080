from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformance.data.encode import documents
from conformance.data.inputs import Block, Input

BROKEN = [
    (b'{"text": "\xff"}\n', "byte 10 of the line is not UTF-8"),
    (b'{"text": "cut\n', "the line is not JSON"),
    (b'["text"]\n', "the line is no JSON object"),
    (b"\n", "the line is not JSON"),
    (b"[" * 100_000 + b"\n", "the line is not JSON"),
]
BROKEN_FIELD = [
    *((line, fault) for line, fault in BROKEN if "object" not in fault),
    (b'["text"]\n', "it has no text in the field 'text'"),
    (b'{"content": "x"}\n', "it has no text in the field 'text'"),
    (b'{"text": 3}\n', "it has no text in the field 'text'"),
    (b'{"text": "\\ud83d"}\n', "its field 'text' holds half of a surrogate pair"),
]


def block(kind, records):
    return Block(Input(Path(f"a.{kind}"), "a", kind, "gz", 0), 0, 0, 0, records)


@pytest.mark.parametrize(("line", "fault"), BROKEN)
def test_a_broken_line_stays_a_document_where_it_is_text(line, fault):
    ((text, found),) = documents(block("jsonl", line), None)
    assert found == fault
    assert text == (None if b"\xff" in line else line.decode())


@pytest.mark.parametrize(("line", "fault"), BROKEN_FIELD)
def test_a_broken_line_has_no_field(line, fault):
    assert list(documents(block("jsonl", line), "text")) == [(None, fault)]


@pytest.mark.parametrize("record", ['["text"]', '{"text": null}', '{"text": "\\udc00"}', "7"])
def test_a_broken_record_has_no_field(record):
    ((text, fault),) = documents(block("json", [record]), "text")
    assert text is None
    assert fault


def test_a_record_is_written_as_json_writes_it():
    record = '{"b": 1.50, "a": "\u00e9", "b": NaN, "c": [ ]}'
    assert list(documents(block("json", [record]), None)) == [(json.dumps(json.loads(record)), "")]


def test_lines_of_text_are_stripped_and_empty_ones_left_out():
    lines = "\u00a0 a\t\n\n \u2003 \nb c\r\n".encode()
    assert list(documents(block("txt", lines), None)) == [("a", ""), (None, ""), (None, ""), ("b c", "")]
