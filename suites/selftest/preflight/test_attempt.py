"""A preflight as a run: journalled, redacted, signed, packed, and judged again from its evidence alone."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from conformance import evidence, journal
from conformance.bundle import archive
from conformance.bundle.pack import pack, read_report
from conformance.bundle.verify import verify
from conformance.checks.finding import Result, Verdict
from conformance.cli import main
from conformance.devices.cpu import CpuDevice
from conformance.errors import ConformanceError, EvidenceError, LaunchError
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.launch.launcher import Place
from conformance.launch.supervise import Interrupted
from conformance.preflight import attempt as attempt_module
from conformance.preflight.attempt import attempt
from conformance.preflight.session import Request

MEASURED = Path(__file__).parents[3] / "fixtures/tiny-preflight-run/environment"
REQUEST = Request("tiny-perf", Place("torchrun", 1, 0, "127.0.0.1", 29500), 1, 1024, None)


@pytest.fixture
def measured(monkeypatch):
    """Measuring takes a minute; what a real one left stands in for it."""

    def leave(device, request, run, told):
        shutil.copytree(MEASURED, run / "environment", dirs_exist_ok=True)

    monkeypatch.setattr(attempt_module, "run_on_all_nodes", leave)


@pytest.fixture
def preflight(measured, tmp_path):
    run = evidence.create_run_directory(tmp_path / "reports" / "pre")
    attempt(CpuDevice(), REQUEST, run, tmp_path / "reports", None)
    return run


def rewrite(run, name, change):
    value = json.loads((run / name).read_text())
    change(value)
    evidence.write_json(run, name, value)


def test_it_leaves_a_signed_report_that_verifies(preflight, tmp_path):
    report = read_report(preflight).predicate
    assert report["kind"] == "preflight"
    assert report["internevo"] is None
    assert report["workload"]["name"] == "tiny-perf"
    assert report["verdict"] == "REHEARSAL"
    assert len(report["findings"]) == 36
    assert report["devices"] == [
        {
            "host": "vm", "plugin": "cpu", "index": "0", "vendor": "AuthenticAMD", "model": "AMD EPYC",
            "architecture": "x86_64",
        }
    ]  # fmt: skip
    (host,) = report["environment"]["hosts"]
    assert host["memory_bytes"] > 1 << 30
    assert host["processor"] == "AMD EPYC"
    assert report["metrics"]["by_device"][0]["gemm_together_tflops"] > 0
    pack(preflight, tmp_path / "pre.tar")
    verification = verify(tmp_path / "pre.tar")
    assert {answer.id for answer in verification.answers if answer.answer == "no"} == set()
    assert verification.verdict is Verdict.REHEARSAL


def test_the_journal_tells_of_it_and_not_of_an_attempt_at_the_workload(preflight):
    entries = journal.parse((preflight / evidence.JOURNAL).read_bytes()).entries
    assert [(one["event"], one.get("workload")) for one in entries] == [("started", "preflight"), ("ended", None)]
    assert entries[0]["shapes"] == "tiny-perf"
    assert entries[1]["evidence"] == evidence.attempt_digest(RunDirectory(preflight))


def test_one_that_fails_is_in_the_journal_too(monkeypatch, tmp_path):
    def fail(device, request, run, told):
        raise ConformanceError("The nodes do not meet.")

    monkeypatch.setattr(attempt_module, "run_on_all_nodes", fail)
    run = evidence.create_run_directory(tmp_path / "reports" / "pre")
    with pytest.raises(ConformanceError, match="do not meet"):
        attempt(CpuDevice(), REQUEST, run, tmp_path / "reports", None)
    entries = journal.parse((tmp_path / "reports" / evidence.JOURNAL).read_bytes()).entries
    assert [one.get("outcome") for one in entries] == [None, "failed"]
    assert not (run / evidence.REPORT).exists()


def test_a_full_disk_takes_neither_its_end_from_the_journal_nor_the_cause_from_what_is_said(monkeypatch, tmp_path):
    def fail(device, request, run, told):
        raise LaunchError("Node 1 did not arrive.")

    def full(run):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(attempt_module, "run_on_all_nodes", fail)
    monkeypatch.setattr(attempt_module, "redact_run", full)
    run = evidence.create_run_directory(tmp_path / "reports" / "pre")
    with pytest.raises(EvidenceError, match=r"^Node 1 did not arrive\. Evidence and report of .* No space left"):
        attempt(CpuDevice(), REQUEST, run, tmp_path / "reports", None)
    entries = journal.parse((tmp_path / "reports" / evidence.JOURNAL).read_bytes()).entries
    assert [one.get("outcome") for one in entries] == [None, "failed"]


@pytest.mark.parametrize("name", ["redact_run", "report_on"])
def test_a_signal_after_the_measuring_waits_for_the_report(measured, monkeypatch, tmp_path, name):
    real, said = getattr(attempt_module, name), []

    def called(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(attempt_module, name, called)
    run = evidence.create_run_directory(tmp_path / "reports" / "pre")
    with pytest.raises(Interrupted, match="SIGTERM"):
        attempt(CpuDevice(), REQUEST, run, tmp_path / "reports", None, said.append)
    assert read_report(run).predicate["verdict"] == "REHEARSAL"
    assert said == ["SIGTERM came after the end: it is heeded once the report is signed"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_while_it_measures_it_counts_as_going_on(monkeypatch, tmp_path, capsys):
    codes = []

    def leave(device, request, run, told):
        shutil.copytree(MEASURED, run / "environment", dirs_exist_ok=True)
        codes.append(main(["report", str(run)]))

    monkeypatch.setattr(attempt_module, "run_on_all_nodes", leave)
    run = evidence.create_run_directory(tmp_path / "reports" / "pre")
    attempt(CpuDevice(), REQUEST, run, tmp_path / "reports", None)
    assert codes == [2]
    assert "still goes on" in capsys.readouterr().err


def test_what_it_measured_is_redacted_before_it_is_signed(measured, monkeypatch, tmp_path):
    def leave(device, request, run, told):
        shutil.copytree(MEASURED, run / "environment", dirs_exist_ok=True)
        rewrite(run, "environment/preflight-step.json", lambda v: v["processes"][0].update(output="at 10.0.0.7\n"))

    monkeypatch.setattr(attempt_module, "run_on_all_nodes", leave)
    run = evidence.create_run_directory(tmp_path / "reports" / "pre")
    attempt(CpuDevice(), REQUEST, run, tmp_path / "reports", None)
    assert read_report(run).predicate["redactions"] == [
        {"rule": "address", "file": "environment/preflight-step.json", "count": 1}
    ]
    assert "10.0.0.7" not in (run / "environment/preflight-step.json").read_text()


def test_a_better_figure_in_the_report_is_refuted_by_the_evidence(preflight, tmp_path):
    from conformance.report import dsse, keys, statement
    from conformance.report.build import local_key_path

    document = json.loads(dsse.parse((preflight / evidence.REPORT).read_bytes()).payload)
    document["predicate"]["metrics"]["by_device"][0]["gemm_together_tflops"] *= 2
    subjects = {one["name"]: one["digest"]["sha256"] for one in document["subject"]}
    key = keys.load_private_key(local_key_path())
    payload = statement.build(document["predicate"], subjects)
    (preflight / evidence.REPORT).write_bytes(dsse.sign(payload, statement.PAYLOAD_TYPE, [key]))
    pack(preflight, tmp_path / "pre.tar")
    (no,) = [answer for answer in verify(tmp_path / "pre.tar").answers if answer.answer == "no"]
    assert "gemm_together_tflops" in no.message


def test_a_fault_in_the_evidence_turns_the_verdict(preflight):
    rewrite(preflight, "environment/preflight-step.json", lambda v: v["processes"][0].update(outcome="failed"))
    judged = judge(RunDirectory(preflight))
    assert judged.verdict is Verdict.NOT_CONFORMANT
    assert next(f for f in judged.findings if f.check == "preflight-ended").result is Result.FAIL


def test_a_task_that_is_missing_leaves_it_open(preflight):
    (preflight / "environment/preflight-device.json").unlink()
    assert judge(RunDirectory(preflight)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("environment/preflight.json", lambda v: v.pop("workload")),
        ("environment/preflight.json", lambda v: v.update(nodes=0)),
        ("environment/preflight.json", lambda v: v.update(ranks="two")),
        ("environment/preflight-device.json", lambda v: v.update(processes={})),
        ("environment/preflight-device.json", lambda v: v["processes"].append(7)),
        ("environment/preflight-device.json", lambda v: v["processes"][0].pop("records")),
    ],
)
def test_evidence_that_was_edited_is_refused_in_a_sentence(preflight, name, change):
    rewrite(preflight, name, change)
    with pytest.raises(EvidenceError):
        judge(RunDirectory(preflight))


def test_a_record_that_was_edited_leaves_its_check_open(preflight):
    rewrite(preflight, "environment/preflight-host.json", lambda v: v["processes"][0]["records"][0].pop("nofile"))
    judged = judge(RunDirectory(preflight))
    assert [f.check for f in judged.findings if f.result is Result.ERROR] == ["host-limits"]
    assert judged.verdict is Verdict.INCONCLUSIVE


def test_the_bundle_holds_what_was_measured(preflight, tmp_path):
    index = pack(preflight, tmp_path / "pre.tar")
    assert {name for name in index.members if name.startswith("environment/preflight")} == {
        f"environment/{path.name}" for path in MEASURED.iterdir()
    }
    assert archive.read_member(index, evidence.PREFLIGHT, 1 << 20) == (preflight / evidence.PREFLIGHT).read_bytes()
