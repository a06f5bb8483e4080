"""Evidence that its maker spoiled and signed: the verifier always answers, and never with a traceback."""

import copy
import hashlib
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import ACCURACY, STATED, VENDOR, Lab, accept_accuracy, edit, end_journal, members_of, payload_of

from conformance import evidence, journal, strictjson
from conformance.bundle import archive, submission
from conformance.bundle import verify as verifying
from conformance.bundle.verify import verify
from conformance.checks.finding import Verdict
from conformance.commands.verify import print_verification
from conformance.errors import ConformanceError
from conformance.report import html


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lab, and the members of an honest bundle of a resumed accuracy run."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    bundle = lab.bundle(lab.accuracy(lab.challenge(workloads=(ACCURACY,))))
    return lab, members_of(bundle)


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """A lab, and the members of an honest submission of a run and a preflight."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    return lab, members_of(lab.with_preflight())


def resigned(lab, members, changed):
    """Put other bytes into a bundle and sign that, as a maker with key and patience does."""
    members = {**members, **changed}
    predicate = payload_of(members[evidence.REPORT])["predicate"]
    return lab.written({**members, **lab.signed_again(predicate, members)})


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


def spoil(data, document):
    """Draw a place of a document and put something else there, or take it away; the document that comes of it."""
    place = data.draw(st.sampled_from(list(places(document))))
    new = data.draw(VALUES)
    if not place:
        return new
    holder = document
    for step in place[:-1]:
        holder = holder[step]
    if data.draw(st.booleans()) or isinstance(holder, list):
        holder[place[-1]] = new
    else:
        del holder[place[-1]]
    return document


def shown(verification):
    """Everything that people are shown of a verification; what is printed holds nothing that moves a cursor."""
    with redirect_stdout(io.StringIO()) as terminal:
        print_verification(verification)
    assert all(line.isprintable() for line in terminal.getvalue().splitlines())
    return json.dumps(verification.to_json()), html.render_verification(verification, "x", {"time": "now"})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_stands_in_the_evidence_is_answered(made, data):
    lab, members = made
    name = data.draw(st.sampled_from(NAMES))
    document = spoil(data, json.loads(members[name]))
    changed = json.dumps(document).encode()
    verification = verify(resigned(lab, members, {name: changed}), lab.bench(accept_accuracy))
    shown(verification)
    if json.loads(members[name]) == document:
        return
    # The journal quotes the evidence; whatever was changed is no longer what the run left.
    assert verification.verdict is Verdict.NOT_CONFORMANT


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_stands_in_the_evidence_of_a_submission_is_answered(submitted, data):
    lab, members = submitted
    run = data.draw(st.sampled_from(["perf", "preflight"]))
    prefix = f"{submission.RUNS}{run}/"
    files = (name for name in members if name.startswith(prefix) and name.endswith(".json"))
    name = data.draw(st.sampled_from(sorted(name for name in files if not name.endswith(".dsse.json"))))
    document = spoil(data, json.loads(members[name]))
    changed = {name.removeprefix(prefix): json.dumps(document).encode()}
    verification = verify(lab.resubmitted(members, run, changed=changed), lab.bench())
    shown(verification)
    if json.loads(members[name]) != document:
        assert verification.verdict is Verdict.NOT_CONFORMANT


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_a_report_in_a_submission_claims_is_answered(submitted, data):
    lab, members = submitted
    run = data.draw(st.sampled_from(["perf", "preflight"]))
    honest = payload_of(members[f"{submission.RUNS}{run}/{evidence.REPORT}"])["predicate"]
    claimed = copy.deepcopy(honest)
    # A schema leaves these open; what stands elsewhere it mostly refuses.
    part = data.draw(st.sampled_from(["plan", "environment", "devices", "metrics", "findings", "internevo", "verdict"]))
    claimed[part] = spoil(data, claimed[part])
    try:
        path = lab.resubmitted(members, run, lambda predicate: predicate.update(claimed))
    except ConformanceError as error:
        assert str(error)
        return
    verification = verify(path, lab.bench())
    shown(verification)
    if json.dumps(claimed, sort_keys=True) != json.dumps(honest, sort_keys=True):
        assert verification.verdict is Verdict.NOT_CONFORMANT


CLAIMS = {
    "a host that is a number": lambda p: p["environment"].update(hosts=[{"processor": [1]}]),
    "a port without a rate": lambda p: p["environment"].update(hosts=[{"rdma_ports": [{}]}]),
    "memory in words": lambda p: p["environment"].update(hosts=[{"memory_bytes": "much"}]),
    "no plan": lambda p: p.update(plan={}),
    "nodes in a list": lambda p: p["plan"].update(nodes=[1]),
    "a device's memory in a list": lambda p: p["devices"][0].update(memory=[1]),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_of_no_known_kind_is_a_difference(submitted, claim):
    lab, members = submitted
    verification = verify(lab.resubmitted(members, "perf", CLAIMS[claim]), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert [answer.id for answer in verification.answers if answer.answer == "no"] == ["recomputed"]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("environment/run.json", "command", [1]),
        ("environment/run.json", "command", "x"),
        ("environment/rank0.json", "kernels", 5),
        ("environment/rank0.json", "packages", [1]),
    ],
)
def test_evidence_that_no_page_could_show_is_refused_before_there_is_one(made, name, field, value):
    lab, members = made
    changed = json.dumps({**json.loads(members[name]), field: value}).encode()
    verification = verify(resigned(lab, members, {name: changed}), lab.bench(accept_accuracy))
    told = next(answer.message for answer in verification.answers if answer.id == "recomputed")
    assert "differs at the whole (" in told
    shown(verification)


def test_a_run_of_the_first_day_of_the_calendar_is_refused(tmp_path):
    lab = Lab(tmp_path)
    run = lab.run()
    edit(run / evidence.RUN, lambda record: record.update(started="0001-01-01T00:00:00+23:59"))
    end_journal(run)
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
    submit([run], VENDOR, STATED, lab.key["vendor"], False, lab.folder / "s.tar")

    def know(document):
        document["keys"].append(lab.entry("second", "vendor", "Other Silicon"))

    verification = verify(lab.folder / "s.tar", lab.bench(know))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    told = next(answer.message for answer in verification.answers if answer.id == "trust")
    assert told == "A run is signed by the key of another vendor: 'Other Silicon'."


def test_more_earlier_attempts_than_any_run_has_are_not_read(made):
    lab, members = made
    record = members["environment/segment0/run.json"]
    more = {f"environment/segment{number}/run.json": record for number in range(1, evidence.MAX_SEGMENTS + 1)}
    verification = verify(resigned(lab, members, more), lab.bench(accept_accuracy))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    told = next(answer.message for answer in verification.answers if answer.id == "recomputed")
    assert "holds 301 earlier attempts; at most 300 are read." in told
    shown(verification)


def test_more_reports_than_fit_in_memory_are_not_read(submitted, monkeypatch):
    lab, members = submitted
    size = sum(len(data) for name, data in members.items() if name.endswith((evidence.REPORT, "submission.dsse.json")))
    monkeypatch.setattr(verifying, "MAX_ENVELOPES_BYTES", size)
    assert verify(lab.written(members), lab.bench()).verdict is Verdict.REHEARSAL
    monkeypatch.setattr(verifying, "MAX_ENVELOPES_BYTES", size - 1)
    monkeypatch.setattr(verifying.archive, "read_member", lambda *_: pytest.fail("read before it was refused"))
    verification = verify(lab.written(members), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    (refusal,) = [answer for answer in verification.answers if answer.answer == "no"]
    assert refusal.id == "signature"
    assert refusal.message == f"The 3 signed files have {size:,} bytes; at most {size - 1:,} are read."
    shown(verification)


def lists(size):
    """A list of about so many bytes that holds empty lists: they take thirty times as much memory once it is parsed."""
    return b"[" + b",".join([b"[]"] * (size // 3)) + b"]"


def journal_of(count, size):
    """A journal of so many entries of so many bytes."""
    lines, head = [], journal.GENESIS
    for _ in range(count):
        lines.append(b'{"a":%s,"previous":"%s"}\n' % (lists(size - 100), head.encode()))
        head = hashlib.sha256(lines[-1][:-1]).hexdigest()
    return b"".join(lines)


WIDE = {
    "rank records": lambda: {f"environment/rank{n}.json": b'{"a":%s}' % lists(4_190_000) for n in range(1000, 1006)},
    "an earlier attempt's": lambda: {
        f"environment/segment0/rank{n}.json": b'{"a":%s}' % lists(4_190_000) for n in range(1000, 1006)
    },
    "a journal": lambda: {evidence.JOURNAL: journal_of(2, strictjson.MAX_BYTES)},
    "tasks of a preflight": lambda: {
        "environment/preflight-device.json": b'{"task":"device","processes":%s}' % lists(20_000_000)
    },
    "tasks of another name": lambda: {
        f"environment/ceiling/preflight-{n}/{n}": b'{"task":"%d","processes":%s}' % (n, lists(7_000_000))
        for n in range(3)
    },
}


@pytest.mark.parametrize("kind", WIDE)
def test_json_that_would_not_fit_in_memory_is_not_parsed(made, monkeypatch, kind):
    lab, members = made
    bundle = resigned(lab, members, WIDE[kind]())
    monkeypatch.setattr(verifying, "_facts", lambda *_: pytest.fail("parsed before it was refused"))
    verification = verify(bundle, lab.bench(accept_accuracy))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    (refusal,) = [answer for answer in verification.answers if answer.answer == "no"]
    assert refusal.id == "schema"
    assert re.fullmatch(
        r"The bundle's JSON would take some [\d,]+ MiB of memory at once; at most 768 are given to it. "
        r"Submit fewer runs in one bundle\.",
        refusal.message,
    )
    shown(verification)


def test_the_tasks_of_only_one_preflight_are_held_at_once(submitted, monkeypatch):
    lab, members = submitted
    again = {name.replace("/preflight/", "/second/"): data for name, data in members.items() if "/preflight/" in name}
    index = archive.read_index(lab.written({**members, **again}))
    at_once, in_all = verifying._memory(index, {})
    tasks = sum(strictjson.memory(data) for name, data in members.items() if "/environment/preflight-" in name)
    assert in_all - at_once == tasks > 100_000
    monkeypatch.setattr(verifying, "MAX_PARSED_IN_ALL_BYTES", 0)
    told = verify(lab.written(members), lab.bench()).answers[-1].message
    assert re.match(r"The bundle's JSON would take some \d MiB of memory in all; at most 0 are given to it\.", told)


def test_an_honest_bundle_of_a_large_system_fits_in_memory(made, submitted):
    ranks = 4096 * strictjson.memory(made[1]["environment/rank0.json"])
    assert ranks < verifying.MAX_PARSED_BYTES / 5
    preflight = Path(__file__).parents[3] / "reports/example/h200x2-slice.tar"
    members = members_of(preflight)
    tasks = sum(strictjson.memory(data) for name, data in members.items() if "t/environment/preflight-" in name)
    kept = sum(strictjson.memory(data) for name, data in members.items() if "/environment/ceiling/" in name) / 2
    thousand = 1024 / 2  # times its two devices
    assert thousand * tasks + 2 * ranks < verifying.MAX_PARSED_BYTES
    assert thousand * (tasks + 3 * kept) + 2 * ranks < verifying.MAX_PARSED_IN_ALL_BYTES
