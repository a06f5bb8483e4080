from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.data import inputs
from conformance.data.inputs import Block, Input, blocks, find_inputs, lines
from conformance.errors import DataError

ENDS = st.lists(
    st.sampled_from(["\r", "\n", "\r\n", "a", "\u4e2d", "\u2028", "\x0b", "\x0c", "\x85", " "]), max_size=60
)


def source(path, kind="jsonl", packing=""):
    return Input(path, "a", kind, packing, path.stat().st_size)


def packed(data: bytes, packing: str) -> bytes:
    if packing == "gz":
        return gzip.compress(data)
    if not packing:
        return data
    zstd = pytest.importorskip("backports.zstd")
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})  # as the command zstd does


@settings(deadline=None)
@given(ENDS.map("".join))
def test_lines_end_where_text_mode_ends_them(text):
    block = Block(Input(Path("a"), "a", "txt", "gz", 0), 0, 0, 0, text.encode())
    expected = list(io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    found = [line.decode() for line in lines(block)]
    assert [line.rstrip("\r\n") + "\n" * line.endswith(("\r", "\n")) for line in found] == expected
    assert "".join(found) == text


@pytest.mark.parametrize("packing", ["", "gz", "zst"])
@settings(deadline=None)
@given(text=ENDS.map("".join), size=st.integers(1, 40), start=st.integers(0, 5))
def test_blocks_are_the_file_from_any_of_them_on(packing, text, size, start, tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "a"
    path.write_bytes(packed(text.encode(), packing))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "BLOCK_BYTES", size)
        found = list(blocks(source(path, packing=packing), 0))
        assert b"".join(line for block in found for line in lines(block)) == text.encode()
        assert all(block.end - block.start >= size for block in found[:-1])
        assert [block.start for block in found[1:]] == [block.end for block in found[:-1]]
        # What goes on in the middle cuts as before.
        for block in found[start : start + 1]:
            assert next(blocks(source(path, packing=packing), block.start)) == block


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    records=st.lists(JSON, max_size=12),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    chars=st.integers(8, 40),
    start=st.integers(0, 4),
)
def test_records_are_those_of_the_array(records, indent, ascii_only, chars, start, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "a.json"
    path.write_bytes((" " + json.dumps(records, indent=indent, ensure_ascii=ascii_only) + "\n").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "READ_CHARS", chars)
        patch.setattr(inputs, "BLOCK_BYTES", chars)
        found = [record for block in blocks(source(path, "json"), min(start, len(records))) for record in block.records]
    assert [json.dumps(json.loads(record)) for record in found] == [json.dumps(record) for record in records[start:]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no JSON array"),
        ('{"text": 1}', "no JSON array"),
        ("[", "not JSON"),
        ("[1, 2", "not JSON"),
        ("[1 2]", "not JSON: no comma after a record"),
        ("[1,]", "not JSON"),
        ('[{"a": }]', "not JSON"),
        ("[" * 100_000, "recursion"),
        ("[" + "1" * 5000 + "]", "digits"),
        (b"[1, \xff]", "codec can't decode"),
    ],
)
def test_a_file_that_is_no_array_is_refused(text, fault, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"a\.json cannot be read: .*{fault}"):
        list(blocks(source(path, "json"), 0))


@pytest.mark.parametrize("packing", ["gz", "zst"])
@pytest.mark.parametrize("fault", ["cut", "flipped", "plain"])
def test_a_damaged_archive_is_refused(packing, fault, tmp_path):
    path = tmp_path / f"a.jsonl.{packing}"
    good = packed(bytes(range(256)) * 999, packing)
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :]
    path.write_bytes({"cut": good[:-9], "flipped": flipped, "plain": b"plain text\n"}[fault])
    with pytest.raises(DataError, match=r"cannot be read: .* Download the file again"):
        list(blocks(source(path, packing=packing), 0))


@pytest.mark.parametrize("packing", ["", "gz"])
def test_a_line_that_no_shard_could_hold_is_refused(packing, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_DOCUMENT_BYTES", 2**20)
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(packed(b"x" * 2**21, packing))
    with pytest.raises(DataError, match="a line of more than 1 MiB after byte 0"):
        list(blocks(source(path, packing=packing), 0))


def test_the_longest_block_fits_a_shard():
    # An id takes 8 bytes at most: 6 digits, a comma and a space; a byte of text is one id at most.
    assert 8 * (inputs.BLOCK_BYTES + inputs.MAX_DOCUMENT_BYTES) < 2**31 - 1


def test_a_folder_stands_for_its_text_files_by_name(tmp_path):
    for name in ("b.jsonl.zst", "a.txt", "c.json", "d_2019-30.head.jsonl", "README.md", "x.tar.gz", "e.jsonl.part"):
        (tmp_path / name).write_bytes(b"x")
    found = find_inputs([tmp_path])
    assert [(one.name, one.kind, one.packing) for one in found] == [
        ("a", "txt", ""),
        ("b", "jsonl", "zst"),
        ("c", "json", ""),
        ("d_2019-30.head", "jsonl", ""),
    ]


def test_what_cannot_be_prepared_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(b"x")
    for paths, fault in [
        (["none.jsonl"], r"no file .*none\.jsonl"),
        (["x.parquet"], r"x\.parquet is no kind of text"),
        (["empty"], "holds no text file"),
        (["a.jsonl", "a.txt"], r"a\.jsonl and .*a\.txt would both become a-00000\.bin"),
    ]:
        with pytest.raises(DataError, match=fault):
            find_inputs([tmp_path / path for path in paths])
