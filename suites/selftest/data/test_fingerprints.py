from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from conformance import data
from conformance.data.fingerprints import bins, meta_path, read_meta
from conformance.errors import ConformanceError, DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer):
    """Two shards of different documents."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in "ab":
        lines = [json.dumps({"text": f"document {number} of {name}"}) for number in range(9)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    data.prepare([folder / "a.jsonl", folder / "b.jsonl"], tokenizer, folder / "out", workers=1)
    return folder / "out"


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "out")


def test_it_counts_what_lies_there(folder):
    found = data.fingerprint(folder)
    assert found == data.read_fingerprint(folder)
    lines = [line for path in bins(data.train_folder(folder)) for line in path.read_bytes().splitlines()]
    assert (found.documents, found.tokens) == (len(lines), sum(len(json.loads(line)["tokens"]) for line in lines))
    assert (found.mode, found.vocabulary, found.repeated) == ("raw", 32000, ())
    assert data.Fingerprint.from_json(json.loads(json.dumps(found.to_json()))) == found


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(folder):
    a, b = bins(data.train_folder(folder))
    for one, two in ((a, b), (meta_path(a), meta_path(b))):
        one.rename(folder / "held")
        two.rename(one)
        (folder / "held").rename(two)


def truncate(folder):
    """Leave out the last document, as an index of fewer rows does."""
    path = bins(data.train_folder(folder))[1]
    rows = np.array(read_meta(path))
    with meta_path(path).open("wb") as file:
        np.save(file, rows[:-1])


CHANGES = {
    "a byte of a shard": lambda folder: change_byte(bins(data.train_folder(folder))[1]),
    "a document left out of the index": truncate,
    "the order": swap,
    "a shard less": lambda folder: bins(data.train_folder(folder))[1].unlink(),
    "the tokenizer": lambda folder: change_byte(folder / "tokenizer.model"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_changes_it(change, folder):
    change(folder)
    assert data.fingerprint(folder).digest != data.read_fingerprint(folder).digest


def test_the_options_are_part_of_it(folder):
    found = data.fingerprint(folder)
    assert replace(found, mode="field:text").digest != found.digest
    assert replace(found, vocabulary=32001).digest != found.digest


def test_names_are_not_part_of_it(folder):
    before = data.fingerprint(folder)
    for path in (data.train_folder(folder) / "en").iterdir():
        path.rename(path.with_name("x" + path.name))
    assert data.fingerprint(folder).digest == before.digest


def test_a_repeated_shard_is_named(folder):
    a, b = bins(data.train_folder(folder))
    shutil.copyfile(a, b)
    shutil.copyfile(meta_path(a), meta_path(b))
    assert data.fingerprint(folder).repeated == ("en/b-00000.bin",)


def test_shards_come_by_name(tmp_path):
    for name in ("en/b.bin", "en/a.bin", "cn/z.bin", "code/y.bin", "en/a.bin.meta"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in bins(tmp_path)]
    assert found == ["cn/z.bin", "code/y.bin", "en/a.bin", "en/b.bin"]


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "0" * 64},
        {"tokens": 1},
        {"documents": True},
        {"shards": []},
        {"shards": [{}]},
        {"shards": [3]},
        {"shards": None},
        {"vocabulary": "x"},
        {"mode": 3},
        {"tokenizer": None},
        {"version": 2},
    ],
    ids=str,
)
def test_a_record_that_contradicts_itself_is_refused(change, folder):
    with pytest.raises(DataError):
        data.Fingerprint.from_json({**data.fingerprint(folder).to_json(), **change})
    (folder / "fingerprint.json").write_text(json.dumps({**data.fingerprint(folder).to_json(), **change}))
    with pytest.raises(DataError):
        data.read_fingerprint(folder)


@pytest.mark.parametrize("field", ["name", "bytes", "sha256", "meta_sha256", "documents", "tokens"])
@pytest.mark.parametrize("value", [None, [], {}, 1.5, "9", -1])
def test_a_shard_of_other_types_is_refused(field, value, folder):
    record = data.fingerprint(folder).to_json()
    record["shards"][0][field] = value
    # Even where digest and sums fit the strange value.
    try:
        shards = tuple(data.Shard(**shard) for shard in record["shards"])
        record = data.Fingerprint(record["mode"], record["tokenizer"], record["vocabulary"], shards).to_json()
    except TypeError:
        pass
    if field in ("name", "sha256", "meta_sha256") and value == "9":
        return  # a text
    with pytest.raises(DataError):
        data.Fingerprint.from_json(record)


@pytest.mark.parametrize("value", [None, [], 3, "x"])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(DataError, match="malformed"):
        data.Fingerprint.from_json(value)


def test_an_unfinished_folder_is_refused(folder):
    (folder / "fingerprint.json").unlink()
    with pytest.raises(DataError, match=r"no finished data folder.* conformance data prepare"):
        data.fingerprint(folder)


def test_a_record_with_a_key_twice_is_refused(folder):
    text = (folder / "fingerprint.json").read_text()
    (folder / "fingerprint.json").write_text(text.replace("{", '{"mode": "raw", ', 1))
    with pytest.raises(ConformanceError, match="twice"):
        data.fingerprint(folder)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        b"",
        b"junk",
        np.zeros((2, 2), "int64"),
        np.zeros((2, 3), "int32"),
        np.zeros(4, "int32"),
        np.array([[{}, {}]], dtype=object),
    ],
    ids=lambda rows: f"{getattr(rows, 'dtype', rows)}{getattr(rows, 'shape', '')}",
)
def test_an_index_that_is_none_is_refused(rows, folder):
    meta = meta_path(bins(data.train_folder(folder))[0])
    meta.unlink()
    if isinstance(rows, bytes):
        meta.write_bytes(rows)
    elif rows is not None:
        with meta.open("wb") as file:
            np.save(file, rows, allow_pickle=True)
    with pytest.raises(DataError, match=r"\.meta is no index of documents"):
        data.fingerprint(folder)
