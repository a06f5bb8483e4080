"""The journal's chain: what was appended stays, and any change to it is seen."""

import json
import os

import pytest

from conformance import journal
from conformance.errors import ConformanceError, EvidenceError, JsonError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "reports" / "journal.jsonl"
    for number in range(3):
        journal.append(path, "started", f"run{number}", workload="tiny-perf")
    return path


def test_entries_chain_and_the_head_is_the_last(path):
    head = journal.append(path, "ended", "run2", outcome="ended")
    parsed = journal.parse(path.read_bytes())
    assert [entry["run"] for entry in parsed.entries] == ["run0", "run1", "run2", "run2"]
    assert parsed.head == head
    assert parsed.entries[0]["previous"] == journal.GENESIS


@pytest.mark.parametrize("line", [0, 1])
def test_a_changed_line_breaks_the_chain(path, line):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"tiny-perf", b"tiny-pork")
    with pytest.raises(EvidenceError, match=f"line {line + 2}"):
        journal.parse(b"".join(lines))


def test_a_removed_line_breaks_the_chain(path):
    lines = path.read_bytes().splitlines(keepends=True)
    with pytest.raises(EvidenceError, match="line 2"):
        journal.parse(lines[0] + lines[2])


def test_a_cut_off_line_is_refused(path):
    with pytest.raises(EvidenceError, match="cut off"):
        journal.parse(path.read_bytes()[:-5])


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b'{"previous": NaN}\n'])
def test_what_is_not_an_entry_is_refused(line):
    with pytest.raises(ConformanceError):
        journal.parse(line)


def test_nothing_is_appended_to_a_broken_journal(path):
    broken = path.read_bytes().replace(b"run1", b"runX")
    path.write_bytes(broken)
    with pytest.raises(EvidenceError):
        journal.append(path, "started", "run3")
    assert path.read_bytes() == broken


def test_a_journal_grows_on_a_file_system_without_locks_too(path, no_locks):
    journal.append(path, "started", "run3")
    assert journal.parse(path.read_bytes()).entries[-1]["run"] == "run3"


def test_a_journal_that_cannot_be_written_is_a_sentence_with_a_next_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EvidenceError, match=r"cannot be written: .+\. Free space or choose another --reports\."):
        journal.append(tmp_path / "file" / "journal.jsonl", "started", "run")


def test_nothing_is_appended_that_could_not_be_read_again(path, monkeypatch):
    before = path.read_bytes()
    with pytest.raises(JsonError, match=r"'lauf-\\udce4' holds half of a surrogate pair"):
        journal.append(path, "started", "lauf-\udce4")
    monkeypatch.setattr(journal, "MAX_JOURNAL_BYTES", len(before) + 10)
    with pytest.raises(EvidenceError, match=r"holds more than \d+ bytes\. Start a new reports folder"):
        journal.append(path, "started", "run3")
    assert path.read_bytes() == before


def test_a_full_disk_leaves_no_half_line_and_the_chain_goes_on(small_disk):
    path = small_disk(64 << 10) / "journal.jsonl"
    journal.append(path, "started", "run")
    with (path.parent / "other").open("wb", buffering=0) as other:
        while os.statvfs(path.parent).f_bavail > 1:
            other.write(b"\0" * 4096)
        with pytest.raises(EvidenceError, match="No space left"):
            for _ in range(1000):
                journal.append(path, "ended", "run", note="x" * 900)
        before = journal.parse(path.read_bytes())
        other.truncate(0)
    journal.append(path, "ended", "run", outcome="ended")
    assert journal.parse(path.read_bytes()).entries[:-1] == before.entries


def test_an_entry_is_one_line_of_json(path):
    assert all(json.loads(line)["event"] == "started" for line in path.read_text().splitlines())


def start(run, **more):
    return {"event": "started", "run": run, "workload": "w", "plan": "p", **more}


def end(run, outcome):
    return {"event": "ended", "run": run, "outcome": outcome, "evidence": run}


@pytest.mark.parametrize(
    ("entries", "fresh", "chain"),
    [
        ([start("a"), end("a", "interrupted"), start("b", resumes="a")], [True, False], ["a"]),
        ([start("a"), start("b", resumes="a"), start("c", resumes="b")], [True, False, False], ["a", "b"]),
        ([start("a"), start("b", resumes="a"), start("c", resumes="a")], [True, False, True], ["a"]),
        ([start("a"), start("b", resumes="z")], [True, True], []),
        ([start("b", resumes="b")], [True], []),
        ([start("b", resumes="c"), start("c")], [True, True], []),
        ([start("a", workload="v"), start("b", resumes="a")], [True, True], []),
        ([start("a", plan="q"), start("b", resumes="a")], [True, True], []),
        ([start("a"), start("b", resumes=["a"])], [True, True], []),
        ([start("a"), end("a", "ended"), start("a"), start("b", resumes="a")], [True, True, False], ["a"]),
    ],
    ids=["gone on", "twice on", "forked", "of none", "of itself", "of a later one", "other workload", "other plan",
         "no name", "one name twice"],
)  # fmt: skip
def test_which_attempts_count(entries, fresh, chain):
    found = journal.attempts(entries)
    assert [one.fresh for one in found] == fresh
    assert [one.run for one in found[-1].chain()] == chain


def test_each_start_has_its_own_end():
    entries = [start("a"), end("a", "stopped"), start("a"), start("b"), end("a", "ended"), end("c", "ended")]
    assert [(one.run, one.outcome) for one in journal.attempts(entries)] == [
        ("a", "stopped"),
        ("a", "ended"),
        ("b", None),
    ]
