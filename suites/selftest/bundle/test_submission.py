"""Submissions: written from real runs, held to what their reports say, and attacked."""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import STATED

from conformance import evidence, strictjson
from conformance.bundle import archive, submission
from conformance.bundle.pack import read_reports, submit
from conformance.cli import main
from conformance.errors import EvidenceError, SignatureError
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report import dsse, keys, statement
from conformance.report.build import write_report

ROOT = Path(__file__).resolve().parents[3]
TOLD = {"nodes": 1, "accelerator": "ACME X1", "accelerators_per_node": 8, "kernel": "6.1", "framework": "2.6.0"}
SYSTEM = {**STATED, **TOLD}
SUITE = {"name": "internevo-conformance", "version": "0.1.0", "tree_digest": "0" * 64}
SIGNER = {"self_issued": True, "time": "2026-11-23T21:20:39Z"}
RUN = {"name": "a", "kind": "perf", "workload": "tiny-perf", "report_id": "1" * 64, "verdict": "REHEARSAL"}
PREDICATE = {
    "suite": SUITE,
    "vendor": "ACME",
    "system": SYSTEM,
    "runs": [RUN, {**RUN, "name": "b", "kind": "accuracy"}],
    "devices": {"same": True, "differences": []},
    "challenge": {"nonce": "2" * 64, "digest": "3" * 64},
    "redactions": [{"rule": "address", "file": "runs/a/logs/node0/rank0.log", "count": 1}],
    "signer": SIGNER,
}
SUBJECTS = dict.fromkeys(
    [
        "system.json",
        "environment/signer.pub",
        "challenge.dsse.json",
        "runs/a/report.dsse.json",
        "runs/a/journal.jsonl",
        "runs/b/report.dsse.json",
    ],
    "4" * 64,
)


def payload(predicate=PREDICATE, subjects=SUBJECTS):
    return statement.build(predicate, subjects, statement.SUBMISSION)


@pytest.fixture
def key(tmp_path):
    return keys.generate_key(tmp_path / "vendor.pem")


@pytest.fixture
def submitted(two_runs, stated, key, tmp_path):
    """A submission of two runs: its archive, its statement and the reports."""
    output = tmp_path / "s.tar"
    _, said = submit(two_runs, "ACME", stated, key, False, output)
    return output, said, read_reports(two_runs)


def test_a_submission_holds_every_file_of_its_runs_as_signed(submitted, key, two_runs):
    output, said, reports = submitted
    index = archive.read_index(output)
    assert next(iter(index.members)) == submission.STATEMENT
    envelope = archive.read_member(index, submission.STATEMENT, dsse.MAX_ENVELOPE_BYTES)
    known = {keys.key_id(key.public_key()): key.public_key()}
    verified = dsse.verify(envelope, known, payload_type=statement.PAYLOAD_TYPE)
    assert submission.load(verified.payload) == said
    present = {name: member.sha256 for name, member in index.members.items() if name != submission.STATEMENT}
    assert said.subjects == present
    for run in two_runs:
        for name in reports[run.name].subjects:
            assert archive.read_member(index, f"runs/{run.name}/{name}", 1 << 24) == (run / name).read_bytes()
    assert json.loads(archive.read_member(index, submission.SYSTEM, 1 << 16)) == said.predicate["system"]


def test_it_describes_its_runs_as_their_reports_do(submitted):
    _, said, reports = submitted
    assert [run["name"] for run in said.predicate["runs"]] == sorted(reports)
    for run in said.predicate["runs"]:
        report = reports[run["name"]]
        assert run["report_id"] == report.report_id
        assert run["verdict"] == report.predicate["verdict"] == "REHEARSAL"
        assert run["kind"] == "perf"
    assert said.predicate["devices"] == {"same": True, "differences": []}
    assert said.predicate["challenge"] is None
    assert submission.contradictions(said, reports) == []


LIES = {
    "vendor's verdict": (lambda p, s: p["runs"][0].update(verdict="CONFORMANT"), "its runs"),
    "another run's report": (lambda p, s: p["runs"][0].update(report_id="0" * 64), "its runs"),
    "a kind that it is not": (lambda p, s: p["runs"][0].update(kind="accuracy"), "its runs"),
    "a run left out": (lambda p, s: p["runs"].pop(), "its runs"),
    "a challenge unanswered": (lambda p, s: p.update(challenge={"nonce": "0" * 64, "digest": "0" * 64}), "challenge"),
    "devices said to differ": (lambda p, s: p["devices"].update(same=False), "its devices"),
    "a redaction hidden": (lambda p, s: p["redactions"].append({"rule": "r", "file": "f", "count": 1}), "redactions"),
    "more nodes": (lambda p, s: describe(p, s, nodes=4), "nodes is '4' and the evidence says '1'"),
    "another accelerator": (lambda p, s: describe(p, s, accelerator="ACME X1"), "accelerator is 'ACME X1'"),
    "another system in the file": (
        lambda p, s: s.update({submission.SYSTEM: "0" * 64}),
        "its system.json is not the system that it describes",
    ),
    "another system in the statement": (
        lambda p, s: p["system"].update(cooling="liquid"),
        "its system.json is not the system that it describes",
    ),
}


def describe(predicate, subjects, **changes):
    """State something else of the system, in the statement and in its file."""
    predicate["system"].update(changes)
    subjects[submission.SYSTEM] = hashlib.sha256(submission.system_file(predicate["system"])).hexdigest()


@pytest.mark.parametrize("lie", LIES)
def test_what_the_reports_refute_is_named(submitted, lie):
    _, said, reports = submitted
    predicate, subjects = copy.deepcopy(dict(said.predicate)), dict(said.subjects)
    change, told = LIES[lie]
    change(predicate, subjects)
    found = submission.contradictions(statement.Statement(subjects, predicate, ""), reports)
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize("there", ["1" * 64, None], ids=["another", "none"])
def test_the_challenge_of_a_submission_is_the_file_that_its_runs_answered(submitted, there):
    _, said, reports = submitted
    name = min(reports)
    subjects = {**reports[name].subjects, evidence.CHALLENGE: "0" * 64}
    reports = {**reports, name: statement.Statement(subjects, reports[name].predicate, reports[name].report_id)}
    own = {**said.subjects, **({} if there is None else {evidence.CHALLENGE: there})}
    found = submission.contradictions(statement.Statement(own, said.predicate, ""), reports)
    assert found == [f"its challenge.dsse.json is not the one that {name} answered"]


def test_a_run_that_changed_after_signing_is_not_submitted(two_runs, stated, key, tmp_path):
    with (two_runs[1] / "logs/node0/rank0.log").open("a") as log:
        log.write("one more line\n")
    with pytest.raises(EvidenceError, match=r"second differs from its report: logs/node0/rank0.log was changed"):
        submit(two_runs, "ACME", stated, key, False, tmp_path / "s.tar")
    assert not (tmp_path / "s.tar").exists()


def test_two_runs_of_one_name_are_refused(two_runs, stated, key, tmp_path):
    (tmp_path / "else").mkdir()
    shutil.copytree(two_runs[0], tmp_path / "else" / two_runs[0].name)
    with pytest.raises(EvidenceError, match="Two runs are called 'run'"):
        submit([two_runs[0], tmp_path / "else" / two_runs[0].name], "ACME", stated, key, False, tmp_path / "s.tar")


def test_an_attempt_that_another_goes_on_from_is_refused(stated, key, tmp_path):
    first, last = tmp_path / "seed1024", tmp_path / "seed1024-resumed"
    shutil.copytree(ROOT / "fixtures" / "tiny-accuracy-run", last)
    write_report(last, judge(RunDirectory(last)), None)
    shutil.copytree(last, first)
    with pytest.raises(EvidenceError, match="'seed1024-resumed' goes on from 'seed1024' and holds its evidence"):
        submit([first, last], "ACME", stated, key, False, tmp_path / "s.tar")


@pytest.mark.parametrize("vendor", ["", "  ", "AC\x1b[2JME", "A\nB", "\u202eEMCA"])
def test_a_vendor_name_that_cannot_be_shown_is_refused(two_runs, stated, key, tmp_path, vendor):
    with pytest.raises(EvidenceError, match="printable"):
        submit(two_runs, vendor, stated, key, False, tmp_path / "s.tar")


# --- the reader ------------------------------------------------------------------------------------------------------


def with_change(change):
    predicate, subjects = copy.deepcopy(PREDICATE), dict(SUBJECTS)
    change(predicate, subjects)
    return payload(predicate, subjects)


def test_a_sound_statement_is_read():
    assert submission.load(payload()).predicate == PREDICATE


FAULTS = {
    "runs out of order": (lambda p, s: p["runs"].reverse(), "ascending"),
    "a run twice": (lambda p, s: p["runs"].append(p["runs"][1]), "ascending"),
    "no run": (lambda p, s: p.update(runs=[]), "predicate.runs"),
    "a run without its report": (lambda p, s: s.pop("runs/b/report.dsse.json"), "describes runs/b/report.dsse.json"),
    "no key": (lambda p, s: s.pop("environment/signer.pub"), "describes environment/signer.pub"),
    "no system": (lambda p, s: s.pop("system.json"), "describes system.json"),
    "a challenge that is not there": (lambda p, s: s.pop("challenge.dsse.json"), "describes challenge.dsse.json"),
    "a challenge that is not told": (lambda p, s: p.update(challenge=None), "'challenge.dsse.json' belongs to none"),
    "files of no run": (lambda p, s: s.update({"runs/c/journal.jsonl": "0" * 64}), "'runs/c/journal.jsonl' belongs"),
    "a file beside the runs": (lambda p, s: s.update({"logs/x": "0" * 64}), "'logs/x' belongs to none"),
    "a run's name as a prefix": (lambda p, s: s.update({"runs/aa/x": "0" * 64}), "'runs/aa/x' belongs to none"),
    "a field unknown": (lambda p, s: p.update(floor=0), "additionalProperties"),
    "a run's field unknown": (lambda p, s: p["runs"][0].update(floor=0), "additionalProperties"),
    "a name that climbs": (lambda p, s: p["runs"][0].update(name=".."), "runs[0].name"),
    "a verdict unknown": (lambda p, s: p["runs"][0].update(verdict="GOOD"), "runs[0].verdict"),
    "no vendor": (lambda p, s: p.update(vendor=""), "predicate.vendor"),
    "a system without its cooling": (lambda p, s: p["system"].pop("cooling"), "'cooling' is a required property"),
    "a system with a field of its own": (lambda p, s: p["system"].update(speed=9), "additionalProperties"),
    "negative power": (lambda p, s: p["system"].update(power_watts_per_node=-5), "power_watts_per_node"),
    "no time of signing": (lambda p, s: p["signer"].pop("time"), "predicate.signer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_statement_that_contradicts_itself_is_refused(fault):
    change, told = FAULTS[fault]
    with pytest.raises(SignatureError, match="is refused") as caught:
        submission.load(with_change(change))
    assert told in str(caught.value)


def test_a_report_is_no_submission_and_a_submission_no_report(two_runs):
    report = dsse.parse((two_runs[0] / evidence.REPORT).read_bytes()).payload
    with pytest.raises(SignatureError, match="The submission is refused: at 'predicate"):
        submission.load(report)
    with pytest.raises(SignatureError, match="The report is refused"):
        statement.load(payload())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
places = [
    ("predicate",),
    *(("predicate", name) for name in PREDICATE),
    *(("predicate", "runs", 0, name) for name in RUN),
    ("predicate", "devices", "same"),
    ("subject",),
    ("subject", 0, "name"),
    ("subject", 0, "digest"),
    ("_type",),
]


@given(st.sampled_from(places), json_values)
def test_whatever_stands_in_a_field_the_reader_takes_it_or_says_why_not(place, value):
    document = json.loads(payload())
    holder = document
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = value
    data = strictjson.dumps(document)
    try:
        said = submission.load(data)
    except SignatureError as error:
        assert str(error).isprintable()
        return
    names = [run["name"] for run in said.predicate["runs"]]
    assert names == sorted(set(names))
    assert all(f"runs/{name}/report.dsse.json" in said.subjects for name in names)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_a_sentence(data):
    with pytest.raises(SignatureError):
        submission.load(data)


# --- devices and challenges ------------------------------------------------------------------------------------------


def device(uuid, **more):
    return {"vendor": "ACME", "model": "X1", "host": "n0", "driver": "1.0", "uuid": uuid, **more}


ALL = [device(f"u{number}") for number in range(4)]


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ({"a": ALL, "b": ALL}, []),
        ({"a": ALL, "b": ALL[::-1]}, []),
        ({"a": ALL[:2], "b": ALL}, []),
        ({"a": ALL, "b": [*ALL[:3], device("other")]}, ["b used 1 of 4 devices that a did not: uuid other."]),
        ({"a": [], "b": ALL}, ["a tells of no device."]),
        (
            {"a": ALL, "b": [*ALL[:3], device("u3", driver="2.0")]},
            ["uuid u3: its driver is '2.0' in b and '1.0' in a."],
        ),
        ({"a": ALL, "b": [*ALL[:3], device("u3", host="n1")]}, ["uuid u3: its host is 'n1' in b and 'n0' in a."]),
        (
            {"a": [{"vendor": "C", "model": "M", "host": "n0", "index": "0"}],
             "b": [{"vendor": "C", "model": "M", "host": "n1", "index": "0"}]},
            ["b used 1 of 1 devices that a did not: device 0 of n1."],
        ),
    ],
    ids=["same", "reordered", "fewer", "another", "none", "driver", "moved", "no identity"],
)  # fmt: skip
def test_devices_are_compared_by_identity(devices, told):
    assert submission.compare_devices(devices) == {"same": not told, "differences": told}


def test_differences_are_capped():
    others = [device(f"u{number}", driver="2.0", firmware="9") for number in range(60)]
    found = submission.compare_devices({"a": [device(f"u{number}") for number in range(60)], "b": others})
    assert found["same"] is False
    assert len(found["differences"]) == submission.MAX_DIFFERENCES


def report(challenge):
    return statement.Statement({}, {"challenge": challenge}, "")


def test_runs_answer_one_challenge_or_are_refused():
    first, second = ({"nonce": digit * 64, "digest": digit * 64} for digit in "12")
    assert submission.one_challenge({"preflight": report(None), "perf": report(first)}) == first
    assert submission.one_challenge({"preflight": report(None)}) is None
    with pytest.raises(EvidenceError, match="a and b answer different challenges"):
        submission.one_challenge({"a": report(first), "b": report(second)})


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_asks_by_a_template_and_packs_what_it_is_given(two_runs, stated, tmp_path, capsys):
    runs = [str(run) for run in two_runs]
    assert main(["bundle", *runs, "--vendor", "ACME"]) == 2
    printed = capsys.readouterr()
    assert "Nothing was packed" in printed.err
    filled = printed.out.replace('= ""', '= "as asked"').replace(
        'availability = "as asked"', 'availability = "preview"'
    )
    for name in ("processors_per_node", "cores_per_node", "memory_gib_per_node", "power_watts_per_node"):
        filled = filled.replace(f'{name} = "as asked"', f"{name} = 8")
    (tmp_path / "system.toml").write_text(filled)
    command = ["bundle", *runs, "--vendor", "ACME", "--system", str(tmp_path / "system.toml")]
    assert main([*command, "-o", str(tmp_path / "s.tar")]) == 0
    assert "All runs are of the same devices." in capsys.readouterr().out
    assert archive.read_index(tmp_path / "s.tar").members[submission.SYSTEM]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no name for the bundle"),
        (["-o", "x.tar"], "2 runs make a submission"),
        (["-o", "x.tar", "--system", "s.toml"], "2 runs make a submission"),
        (["--vendor", "ACME", "--system", "none.toml", "-o", "x.tar"], "none.toml cannot be read"),
        (["--vendor", "ACME", "--system", "none.toml"], "no name for the bundle"),
    ],
)
def test_a_missing_option_is_said_in_a_sentence(two_runs, options, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", *map(str, two_runs), *options]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x.tar").exists()
