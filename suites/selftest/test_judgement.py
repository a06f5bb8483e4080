"""Judging a real run's evidence, and the same evidence with one fault in it."""

import hashlib
import json
import tracemalloc

import pytest

from conformance import evidence
from conformance.bundle.pack import read_report
from conformance.checks.finding import Finding, Result, Verdict, verdict
from conformance.errors import ConformanceError
from conformance.evidence import KeptPreflight, RunDirectory
from conformance.judgement import judge, kept_patches, newest_ceilings, rank_records
from conformance.selftest.run import FAULTS, RUN, keep_preflight
from conformance.spec import load_checks

DEVICE = f"{evidence.CEILING}preflight-device.json"


def results(run):
    judgement = judge(RunDirectory(run))
    return judgement.verdict, {f.check: f for f in judgement.findings}


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_real_rehearsal_passes_and_certifies_nothing(run):
    result, found = results(run)
    assert result is Verdict.REHEARSAL
    assert {f.result for f in found.values()} <= {Result.PASS, Result.SKIP}
    assert found["run-ranks"].value == 2
    required = {c.id for c in load_checks().values() if c.severity == "required" and "perf" in c.applies}
    assert required <= set(found)


def test_findings_from_the_log_name_it(run):
    _, found = results(run)
    assert {f.evidence for f in found.values() if f.check.startswith("log-")} == {"logs/node0/rank0.log"}


@pytest.mark.parametrize(("ceiling", "result"), [(1.0, "REHEARSAL"), (1e-6, "NOT_CONFORMANT"), (None, "REHEARSAL")])
def test_more_flops_than_the_device_can_do_decide_where_that_is_known(run, monkeypatch, ceiling, result):
    monkeypatch.setattr("conformance.judgement.known_ceiling", lambda device: ceiling)
    verdict_given, found = results(run)
    assert verdict_given.value == result
    expected = Result.SKIP if ceiling is None else Result.PASS if ceiling == 1.0 else Result.FAIL
    assert found["log-utilisation"].result is expected


def needed(run):
    return judge(RunDirectory(run)).metrics["tflops"]["model_causal"]


def test_a_speed_beyond_what_the_runs_own_preflight_measured_is_refused(run):
    keep_preflight(run, needed(run) / 1.04)
    assert results(run)[1]["log-utilisation"].result is Result.PASS
    assert judge(RunDirectory(run)).metrics["mfu"]["ceiling"] == "a-preflight"
    edit_json(run / DEVICE, lambda told: [p["records"][0].update(tflops=needed(run) / 1.06) for p in told["processes"]])
    verdict_given, found = results(run)
    assert found["log-utilisation"].result is Result.FAIL
    assert "the GEMM ceiling of a-preflight" in found["log-utilisation"].message
    assert verdict_given is Verdict.NOT_CONFORMANT


def test_a_preflight_that_shows_more_does_not_replace_what_the_device_is_known_to_do(run, monkeypatch):
    half = needed(run) / 2
    monkeypatch.setattr("conformance.judgement.known_ceiling", lambda device: half)
    keep_preflight(run, 100 * half)
    assert results(run)[1]["log-utilisation"].result is Result.FAIL


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("preflight.json", lambda told: told.update(rehearsal=True)),
        ("preflight.json", lambda told: told.pop("started")),
        ("preflight-host.json", lambda told: told["processes"][0]["records"].pop()),
        ("preflight-host.json", lambda told: told["processes"][0]["records"][0].update(host="other")),
        ("preflight-device.json", lambda told: told["processes"].clear()),
        ("run.json", lambda told: told.clear()),
    ],
    ids=["rehearsal", "no time", "one device less", "another host", "no product", "no name"],
)
def test_what_is_no_preflight_of_the_runs_devices_limits_nothing(run, name, change):
    keep_preflight(run, 1e-6)
    assert results(run)[1]["log-utilisation"].result is Result.FAIL
    edit_json(run / evidence.CEILING / name, change)
    assert results(run)[1]["log-utilisation"].result is Result.SKIP


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.bench is RUN], ids=lambda fault: f"{fault.check}: {fault.name}"
)
def test_a_fault_decides_the_verdict_unless_its_check_is_advisory(run, fault):
    fault.inject(run)
    result, found = results(run)
    assert found[fault.check].message
    advisory = load_checks()[fault.check].severity == "advisory"
    assert result is (Verdict.REHEARSAL if advisory else Verdict.NOT_CONFORMANT)


def test_each_preflight_is_read_once_for_all_systems(run):
    keep_preflight(run, 2.0)
    read = []

    class Counted(KeptPreflight):
        def open(self, name):
            read.append(name)
            return super().open(name)

    records = rank_records(RunDirectory(run)).values()
    system = [{"host": rank["host"], **rank["device"]} for rank in records]
    found = newest_ceilings({"a": Counted(RunDirectory(run))}, [system, system[:1], [], [{"uuid": "another"}]])
    assert found == [("a", 2.0), ("a", 2.0), None, None]
    assert len(read) == len(set(read)) == 3


def test_a_patch_file_of_any_size_takes_no_memory(run):
    (run / "patches").mkdir()
    with (run / "patches/large.diff").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        kept = kept_patches(RunDirectory(run))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept == {"large.diff": hashlib.sha256(bytes(64 << 20)).hexdigest()}
    assert peak < 8 << 20


def test_an_unruled_patch_file_leaves_the_verdict_open(run):
    (run / "patches").mkdir()
    (run / "patches/fast.diff").write_text("--- a\n+++ b\n")
    digest = hashlib.sha256((run / "patches/fast.diff").read_bytes()).hexdigest()
    declared = [{"name": "fast.diff", "sha256": digest, "changes": ["train.py"]}]
    edit_json(run / "environment/run.json", lambda r: r.update(patch_files=declared))
    result, found = results(run)
    assert found["patches-declared"].result is Result.ERROR
    assert result is Verdict.INCONCLUSIVE
    (run / "patches/fast.diff").write_text("other\n")
    assert results(run)[1]["patches-declared"].result is Result.FAIL


def test_a_variable_that_a_node_set_otherwise_is_told_with_both_values(run):
    differs = {"1": {"NCCL_ALGO": "Tree", "OMP_NUM_THREADS": None}}
    record = {"environment": {"OMP_NUM_THREADS": "8"}, "environment_differs": differs, "hosts": {"1": "node-b"}}
    edit_json(run / "environment/run.json", lambda r: r.update(record))
    verdict_given, found = results(run)
    assert found["run-computing"].message == "NCCL_ALGO is 'Tree' on node 1 (node-b), and not set on node 0."
    assert found["run-environment"].message == "OMP_NUM_THREADS is not set on node 1 (node-b), and '8' on node 0."
    assert {found[check].result for check in ("run-computing", "run-environment")} == {Result.FAIL}
    assert verdict_given is Verdict.NOT_CONFORMANT


def test_metrics_in_two_logs_are_refused(run):
    (run / "logs/node0/rank1.log").write_text((run / "logs/node0/rank0.log").read_text())
    result, found = results(run)
    assert found["run-steps"].result is Result.FAIL
    assert "2 logs" in found["run-steps"].message
    assert result is Verdict.NOT_CONFORMANT


@pytest.mark.parametrize("left", ["", '{"rank": 1, "device": {"vend', "[]"], ids=["empty", "cut", "no record"])
def test_a_record_that_a_killed_rank_left_in_part_is_none(run, left):
    (run / "environment/rank1.json").write_text(left)
    result, found = results(run)
    assert {check for check, finding in found.items() if finding.result is Result.FAIL} == {"run-ranks"}
    assert "missing ranks: [1]" in found["run-ranks"].message
    assert result is Verdict.NOT_CONFORMANT


def test_and_its_run_is_reported(run, sign):
    (run / "environment/rank1.json").write_text("")
    sign()
    assert [device["rank"] for device in read_report(run).predicate["devices"]] == [0]


def test_a_run_whose_device_did_not_say_who_it_is_fails_and_is_reported(run, sign):
    edit_json(run / "environment/rank1.json", lambda r: r.update(device={"plugin": "cuda", "index": "1"}))
    found = {finding.check: finding for finding in sign().findings}
    assert found["run-uniform"].result is Result.FAIL
    told = read_report(run).predicate["devices"][1]
    assert (told["vendor"], told["model"]) == ("unknown", "unknown")


def test_an_exception_on_another_rank_is_seen(run):
    log = run / "logs/node0/rank1.log"
    log.write_text(
        log.read_text()
        + "2026-11-23 21:00:00,000\tERROR train.py:324 in <module> -- Raise exception from vm with rank id: 1\n"
        + 'Traceback (most recent call last):\n  File "train.py", line 1, in <module>\n    main()\nValueError: broken\n'
    )
    _, found = results(run)
    assert found["run-complete"].result is Result.FAIL
    assert "ValueError" in found["run-complete"].message


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(workload="llama3"),
        lambda r: r.update(nodes="1"),
        lambda r: r.update(extra=1),
        lambda r: r.pop("seed"),
        lambda r: r["overrides"].update(micro_num="2"),
        lambda r: r["overrides"].update(micro_num=64),
    ],
)
def test_a_request_that_cannot_be_planned_is_one_sentence(run, change):
    edit_json(run / "configs/request.json", change)
    with pytest.raises(ConformanceError):
        judge(RunDirectory(run))


class TestVerdict:
    required = ("a", "b")

    def of(self, official=True, **by_check):
        found = [Finding(check, Result(result), "told") for check, result in by_check.items()]
        return verdict(found, self.required, official)

    def test_all_required_pass(self):
        assert self.of(a="PASS", b="PASS") is Verdict.CONFORMANT
        assert self.of(a="PASS", b="PASS", official=False) is Verdict.REHEARSAL

    def test_a_failure_outweighs_everything_also_where_it_is_not_required(self):
        assert self.of(a="PASS", b="PASS", c="FAIL") is Verdict.NOT_CONFORMANT
        assert self.of(a="FAIL", b="ERROR", official=False) is Verdict.NOT_CONFORMANT

    @pytest.mark.parametrize("open_result", ["SKIP", "ERROR"])
    def test_a_required_check_that_was_not_made_leaves_an_official_verdict_open(self, open_result):
        assert self.of(a="PASS", b=open_result) is Verdict.INCONCLUSIVE

    def test_an_absent_required_check_leaves_it_open(self):
        assert self.of(a="PASS") is Verdict.INCONCLUSIVE
        assert self.of(a="PASS", official=False) is Verdict.INCONCLUSIVE

    def test_nothing_tested_is_never_green(self):
        assert self.of() is Verdict.INCONCLUSIVE
        assert self.of(a="SKIP", b="SKIP", official=False) is Verdict.INCONCLUSIVE
        assert verdict([Finding("c", Result.PASS, "told")], (), True) is Verdict.INCONCLUSIVE
