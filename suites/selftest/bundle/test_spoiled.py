"""Evidence that its maker spoiled and signed: the verifier always answers, and never with a traceback."""

import io
import json
import runpy
import shutil
from contextlib import redirect_stdout
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance import evidence
from conformance.bundle import archive
from conformance.bundle.trust import _moment
from conformance.bundle.verify import verify
from conformance.checks.finding import Verdict
from conformance.commands.verify import print_verification
from conformance.report import dsse, statement

lab_tools = runpy.run_path(str(Path(__file__).with_name("lab.py")))
Lab = lab_tools["Lab"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lab, and the members of an honest bundle of a resumed accuracy run."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    bundle = lab.bundle(lab.accuracy(lab.challenge(workloads=(lab_tools["ACCURACY"],))))
    index = archive.read_index(bundle)
    return lab, {name: archive.open_member(index, name).read() for name in index.members}


def resigned(lab, members, changed):
    """Put other bytes into a bundle and sign that, as a maker with key and patience does."""
    members = {**members, **changed}
    document = json.loads(dsse.parse(members[evidence.REPORT]).payload)
    subjects = {name: lab_tools["hashlib"].sha256(data).hexdigest() for name, data in members.items()}
    del subjects[evidence.REPORT]
    payload = statement.build(document["predicate"], subjects)
    members[evidence.REPORT] = dsse.sign(payload, statement.PAYLOAD_TYPE, [lab.key["vendor"]])
    path = lab.folder / "spoiled.tar"
    path.unlink(missing_ok=True)
    archive.write_bundle(path, members)
    return path


NAMES = [
    *("configs/request.json", "environment/run.json", "environment/rank0.json", "environment/data.json"),
    *("environment/faults.json", "environment/redactions.json", "environment/segment0/run.json"),
    "environment/segment0/rank1.json",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.sampled_from(["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value, at=()):
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_stands_in_the_evidence_is_answered(made, data):
    lab, members = made
    name = data.draw(st.sampled_from(NAMES))
    document = json.loads(members[name])
    place = data.draw(st.sampled_from(list(places(document))))
    new = data.draw(VALUES)
    if place:
        holder = document
        for step in place[:-1]:
            holder = holder[step]
        if data.draw(st.booleans()) or isinstance(holder, list):
            holder[place[-1]] = new
        else:
            del holder[place[-1]]
    else:
        document = new
    changed = json.dumps(document).encode()
    verification = verify(resigned(lab, members, {name: changed}), lab.bench(lab_tools["accept_accuracy"]))
    if json.loads(members[name]) == document:
        return
    # The journal quotes the evidence; whatever was changed is no longer what the run left.
    assert verification.verdict is Verdict.NOT_CONFORMANT
    with redirect_stdout(io.StringIO()) as terminal:
        print_verification(verification)
    assert all(line.isprintable() for line in terminal.getvalue().splitlines())


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01", "now", None])
def test_a_moment_that_has_no_utc_is_none(text):
    assert _moment(text) is None
    assert _moment("2026-11-24T01:00:00+01:00") == datetime(2026, 11, 24, tzinfo=timezone.utc)


def test_a_run_of_the_first_day_of_the_calendar_is_refused(tmp_path):
    lab = Lab(tmp_path)
    run = lab.run()
    lab_tools["edit"](run / evidence.RUN, lambda record: record.update(started="0001-01-01T00:00:00+23:59"))
    lab_tools["end_journal"](run)
    verification = verify(lab.bundle(run), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert next(a.message for a in verification.answers if a.id == "challenge").startswith("The run does not tell when")


def test_a_file_added_to_a_copy_makes_no_second_run(tmp_path):
    lab = Lab(tmp_path)
    first = lab.run("first")
    second = Path(shutil.copytree(first, first.with_name("second")))
    (second / "environment/note.txt").write_text("another run\n")
    verification = verify(lab.submission([first, second]), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    told = next(answer.message for answer in verification.answers if answer.id == "runs")
    assert told == "first and second are one and the same run."


def test_another_vendors_run_in_ones_own_submission(tmp_path):
    from conformance.bundle.pack import submit
    from conformance.evidence import RunDirectory
    from conformance.judgement import judge
    from conformance.report.build import write_report

    lab = Lab(tmp_path)
    run = lab.run()
    write_report(run, judge(RunDirectory(run)), lab.path["second"])
    submit([run], lab_tools["VENDOR"], lab_tools["STATED"], lab.key["vendor"], False, lab.folder / "s.tar")

    def know(document):
        document["keys"].append(lab.entry("second", "vendor", "Other Silicon"))

    verification = verify(lab.folder / "s.tar", lab.bench(know))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    told = next(answer.message for answer in verification.answers if answer.id == "trust")
    assert told == "A run is signed by the key of another vendor: 'Other Silicon'."
