"""A run of many earlier attempts is read in a time that its files bound, or refused."""

import pytest

from conformance.bundle import archive
from conformance.bundle.verify import BundleEvidence
from conformance.errors import EvidenceError
from conformance.evidence import MAX_SEGMENTS, RunDirectory, Segment, segments, take_over
from conformance.redaction import redact_run


class Named:
    """Evidence of which only the names are asked."""

    def __init__(self, names):
        self.known, self.asked = tuple(sorted(names)), 0

    def names(self):
        self.asked += 1
        return self.known


def records(count):
    return [f"environment/segment{number}/run.json" for number in range(count)]


def test_more_segments_than_any_run_has_are_refused():
    assert len(segments(Named(records(MAX_SEGMENTS)))) == MAX_SEGMENTS
    with pytest.raises(EvidenceError, match=r"holds 301 earlier attempts; at most 300 are read\."):
        segments(Named(records(MAX_SEGMENTS + 1)))


def test_a_run_that_could_not_be_read_is_not_begun(tmp_path):
    for name in records(MAX_SEGMENTS):
        (tmp_path / "earlier" / name).parent.mkdir(parents=True)
        (tmp_path / "earlier" / name).write_text("{}")
    with pytest.raises(EvidenceError, match=r"goes on from 300 earlier attempts; at most 300 are read\. Begin anew"):
        take_over(tmp_path / "earlier", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "earlier/environment/segment299/run.json").unlink()
    take_over(tmp_path / "earlier", tmp_path / "new")
    assert len(segments(RunDirectory(tmp_path / "new"))) == MAX_SEGMENTS - 1


def test_what_is_only_named_like_a_segment_belongs_to_the_attempt_that_left_it(tmp_path):
    left = ["logs/segment0.log", "logs/segment12345/rank0.log"]
    (tmp_path / "earlier/environment").mkdir(parents=True)
    for name in left:
        (tmp_path / "earlier" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "earlier" / name).write_text(f"{name} 10.0.0.7\n")
    take_over(tmp_path / "earlier", tmp_path / "new")
    (segment,) = segments(RunDirectory(tmp_path / "new"))
    assert list(segment.names()) == left
    for name in left:
        with segment.open(name) as stream:
            assert stream.read() == f"{name} 10.0.0.7\n".encode()
    assert [each["file"] for each in redact_run(tmp_path / "earlier")] == left


def test_a_run_that_goes_on_keeps_its_own_patch_files(tmp_path):
    """Those are what it trains with."""
    for run in ("earlier", "new"):
        (tmp_path / run / "patches").mkdir(parents=True)
        (tmp_path / run / "patches/own.diff").write_text(f"of the {run} one")
    (tmp_path / "earlier/patches/more.diff").touch()
    take_over(tmp_path / "earlier", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new/patches").iterdir()] == ["own.diff"]
    assert (tmp_path / "new/patches/own.diff").read_text() == "of the new one"


def test_the_names_of_all_files_are_gone_through_once(tmp_path):
    files = Named([*records(3), "environment/run.json"])
    segment = Segment(files, 1)
    assert segment.names() is segment.names()
    assert segment.names() == ("environment/run.json", "environment/segment0/run.json")
    assert files.asked == 1
    archive.write_bundle(tmp_path / "x.tar", dict.fromkeys(("report.dsse.json", *records(3)), b"{}"))
    bundle = BundleEvidence(archive.read_index(tmp_path / "x.tar"))
    assert bundle.names() is bundle.names()
    assert bundle.digests() is bundle.digests()
