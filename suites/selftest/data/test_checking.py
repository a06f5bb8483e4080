from __future__ import annotations

import json
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from conformance import data
from conformance.data import checking
from conformance.data.fingerprints import bins, measure, meta_path, read_meta
from conformance.errors import DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("prepared")
    lines = [json.dumps({"text": f"document {number}"}) for number in range(99)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    data.prepare([folder / "a.jsonl"], tokenizer, folder / "out", workers=1)
    return folder / "out"


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "out")


def shard(folder):
    return bins(data.train_folder(folder))[0]


def edit(folder, change):
    """Change the lines and the index, and record the result as if it had been prepared so."""
    path = shard(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    rows = np.array(read_meta(path)).tolist()
    change(lines, rows)
    path.write_bytes(b"".join(lines))
    with meta_path(path).open("wb") as file:
        np.save(file, np.array(rows, dtype=np.int32))
    found = measure(folder, "raw", 32000)
    (folder / "fingerprint.json").write_text(json.dumps(found.to_json()))


def test_a_good_folder_has_no_fault(folder):
    told: list[tuple[int, int]] = []
    assert data.check(folder, lambda done, total: told.append((done, total))) == []
    size = shard(folder).stat().st_size
    assert told[-1] == (size, size)


def test_a_worker_that_is_killed_is_told_in_a_sentence(folder, monkeypatch):
    monkeypatch.setattr(checking, "_start_worker", os._exit)
    with pytest.raises(DataError, match=r"worker process was killed, most likely for memory\. Free some, and check"):
        data.check(folder)


def test_ctrl_c_is_told_by_the_parent_alone():
    with ProcessPoolExecutor(1, get_context("spawn"), checking._start_worker, (5,)) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() is signal.SIG_IGN


def test_every_slice_is_checked(folder, monkeypatch):
    monkeypatch.setattr(checking, "SLICE_BYTES", 300)
    tasks = checking.slices(shard(folder))
    assert len(tasks) > 5
    assert [first for _, first, _ in tasks] == [0, *(last for _, _, last in tasks[:-1])]
    assert tasks[-1][2] == 99
    assert data.check(folder) == []
    edit(folder, replace(97, b"[1,", b"[32000,"))
    assert data.check(folder) == [
        f"{shard(folder)}, document 97 at byte {offset(folder, 97)}: {NO_ID.format('32000')}."
    ]


def offset(folder, number):
    return int(read_meta(shard(folder))[number, 0])


def replace(number, old, new):
    """Change a line of the same number of tokens; the offsets behind it follow."""

    def change(lines, rows):
        before = len(lines[number])
        lines[number] = lines[number].replace(old, new, 1)
        for row in rows[number + 1 :]:
            row[0] += len(lines[number]) - before

    return change


def shift(number, by):
    def change(lines, rows):
        rows[number][0] += by

    return change


def recount(lines, rows):
    rows[5][1] -= 1


def leave_out(lines, rows):
    del rows[5]


def leave_out_first(lines, rows):
    del rows[0]


def leave_out_last(lines, rows):
    del rows[-1]


NO_ID = "b'{}' is no token id below 32000"
NO_LINE = 'it is not one line of the form {"tokens": [1, 2]}'
FAULTS = {
    "an id as large as the vocabulary": (replace(5, b"[1,", b"[32000,"), NO_ID.format("32000")),
    "a negative id": (replace(5, b"[1,", b"[-1,"), NO_ID.format("-1")),
    "a fraction": (replace(5, b"[1,", b"[1.0,"), NO_ID.format("1.0")),
    "a leading zero": (replace(5, b"[1,", b"[01,"), NO_ID.format("01")),
    "no space": (replace(5, b"[1, ", b"[1,"), "is no token id below 32000"),
    "another key": (replace(5, b"tokens", b"toKens"), NO_LINE),
    "no newline": (replace(5, b"\n", b""), NO_LINE),
    "an empty line between": (replace(5, b"\n", b"\n\n"), NO_LINE),
    "a wrong count": (recount, "tokens, its index says"),
    "an offset before": (shift(5, -1), NO_LINE),
    "an offset behind": (shift(5, 1), NO_LINE),
    "an offset below zero": (shift(5, -(2**30)), "it begins at byte"),
    "an offset beyond the end": (shift(98, 2**30), "it begins at byte"),
    "a document left out": (leave_out, NO_LINE),
    "the first document left out": (leave_out_first, "the first document begins at byte"),
    "the last document left out": (leave_out_last, NO_LINE),
}


@pytest.mark.parametrize(("change", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(change, fault, folder):
    edit(folder, change)
    found = data.check(folder)
    assert any(fault in one for one in found)


def test_a_change_after_the_preparation_is_found(folder):
    path = shard(folder)
    path.write_bytes(path.read_bytes().replace(b"[1, ", b"[2, ", 1))
    (fault,) = data.check(folder)
    assert "fingerprint" in fault


def test_a_repeated_shard_is_found(folder):
    path = shard(folder)
    for one in (path, meta_path(path)):
        shutil.copyfile(one, one.with_name("b" + one.name))
    (folder / "fingerprint.json").write_text(json.dumps(measure(folder, "raw", 32000).to_json()))
    assert data.check(folder) == ["en/ba-00000.bin holds the same bytes as an earlier shard."]


def record(folder, vocabulary=32000):
    (folder / "fingerprint.json").write_text(json.dumps(measure(folder, "raw", vocabulary).to_json()))


def test_an_index_of_no_documents_is_found(folder):
    path = shard(folder)
    with meta_path(path).open("wb") as file:
        np.save(file, np.zeros((0, 2), dtype=np.int32))
    record(folder)
    assert data.check(folder) == [f"{path}: its index lists no document; the file has {path.stat().st_size} bytes."]


@pytest.mark.parametrize("vocabulary", [99_999, 31_999])
def test_another_vocabulary_than_the_tokenizers_is_found(folder, vocabulary):
    record(folder, vocabulary)
    assert data.check(folder) == [f"{folder / 'tokenizer.model'} has 32000 entries; recorded is {vocabulary}."]


def test_ids_are_held_against_the_tokenizer_not_the_record(folder):
    edit(folder, replace(5, b"[1,", b"[32000,"))
    record(folder, 99_999)
    assert any(NO_ID.format("32000") in fault for fault in data.check(folder))


@pytest.mark.parametrize("name", ["notes.txt", "en/notes.txt", "cn", "en/b-00000.bin.meta", ".cache/x"])
def test_what_is_no_shard_is_found_among_them(folder, name):
    stray = data.train_folder(folder) / name
    if name == "cn":
        stray.mkdir()
    else:
        stray.parent.mkdir(exist_ok=True)
        stray.write_text("x")
    expected = f"{stray} is no shard; InternEvo reads all of this folder."
    assert expected in data.check(folder)


def test_a_shard_without_a_type_is_found(folder):
    path = shard(folder)
    for one in (path, meta_path(path)):
        one.rename(data.train_folder(folder) / one.name)
    record(folder)
    assert any(f"{data.train_folder(folder) / path.name} is no shard" in fault for fault in data.check(folder))


def test_many_faults_are_cut_short(folder):
    def change(lines, rows):
        for row in rows:
            row[1] += 1

    edit(folder, change)
    assert len(data.check(folder)) == checking.MAX_FAULTS
