"""Real measurements of a device with injected faults: each fault must turn its check red, and no other."""

from __future__ import annotations

import dataclasses
import re
import runpy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("torch")

from conformance.checks.finding import Result
from conformance.checks.preflight import Preflight, judge
from conformance.devices import load_device
from conformance.evidence import create_run_directory
from conformance.launch.launcher import Place
from conformance.launch.torchrun import free_port
from conformance.preflight import meeting, session
from conformance.preflight.driver import Ranks, run_task
from conformance.preflight.worker import Task
from conformance.spec import load_workload
from conformance.spec.expected import load_expected

PLUGIN = Path(__file__).parent / "faulty_device"
SEEN = runpy.run_path(str(PLUGIN / "faulty_device.py"))["SEEN"]
MODEL = load_workload("tiny-perf").model
SETUP = {
    "device": "faulty",
    "backend": "gloo",
    "nodes": 1,
    "ranks": 2,
    "rehearsal": True,
    "workload": "tiny-perf",
}


def measured(task, faults, folder, *, ranks=2, setup=SETUP, **more):
    """Findings by check of one task on the faulty device."""
    processes = processes_of(task, faults, folder, ranks=ranks, **more)
    setup = {**setup, "ranks": ranks}
    return {finding.check: finding for finding in judge(Preflight(setup, {task: processes}))}


def processes_of(task, faults, folder, *, limit=400, ranks=2, **fields):
    """What the processes of one task write on the faulty device."""
    todo = Task(
        task,
        "faulty",
        str(folder / task),
        seed=20,
        rehearsal=True,
        model=dataclasses.asdict(MODEL),
        tokens=256,
        tensor=1,
        pipeline=1,
        capacity_gib=0.05,
        devices=2,
        workload="tiny-perf",
        **fields,
    )
    extra = {"FAULTS": ",".join(faults), "PYTHONPATH": str(PLUGIN)}
    return [one.to_json() for one in run_task(todo, Ranks(ranks, port=free_port()), limit, extra)]


def red(findings):
    return {check for check, finding in findings.items() if finding.result is Result.FAIL}


def seen(*faults):
    """The checks that must turn red for these faults."""
    return {check for fault in faults for check in SEEN[fault].split()}


def test_every_fault_of_the_device_is_injected_by_a_test():
    assert [fault for fault in SEEN if f'"{fault}"' not in Path(__file__).read_text("utf-8")] == []


@pytest.mark.slow
def test_each_fault_of_a_device_turns_its_own_check_red(tmp_path):
    faults = ["nan-in-one-element-of-products", "dropped-row-of-the-attention-gradient", "silent-fp16-in-linear"]
    findings = measured("device", faults, tmp_path)
    assert red(findings) == seen(*faults)
    assert "elements not finite" in findings["gemm-correct"].message
    assert "dq" in findings["kernel-attention"].message
    assert "not finite" in findings["kernel-linear"].message


@pytest.mark.slow
def test_each_kernel_that_is_off_by_2_percent_turns_its_own_check_red(tmp_path):
    faults = [
        "rotary-off-by-2-percent", "rms-norm-off-by-2-percent", "cross-entropy-off-by-2-percent",
        "scatter-off-by-2-percent", "embedding-off-by-2-percent", "adamw-off-by-2-percent",
        "grad-norm-off-by-2-percent",
    ]  # fmt: skip
    findings = measured("device", faults, tmp_path, ranks=1)
    assert red(findings) == seen(*faults) - {"training-step"}


@pytest.mark.slow
def test_a_kernel_that_hangs_is_ended_and_hides_no_other(tmp_path):
    faults = ["hang-in-rms-norm", "embedding-off-by-2-percent"]
    findings = measured("device", faults, tmp_path, kernel_seconds=20.0)
    assert red(findings) == seen(*faults)
    assert "rms-norm cannot run: hang, no end after 20 s" in findings["kernel-rms-norm"].message
    green = {"preflight-ended", "gemm-correct", "kernel-attention", "kernel-scatter", "device-capacity"}
    assert {findings[check].result for check in green} == {Result.PASS}
    assert findings["kernel-determinism"].result is Result.ERROR


@pytest.mark.slow
def test_a_kernel_that_hung_stays_a_failure_when_its_process_crashes_in_another(tmp_path):
    faults = ["hang-in-rms-norm", "crash-in-scatter"]
    findings = measured("device", faults, tmp_path, ranks=1, kernel_seconds=20.0)
    assert red(findings) == seen(*faults)
    assert "rms-norm cannot run: hang, no end after 20 s" in findings["kernel-rms-norm"].message
    assert "rank 0 died" in findings["preflight-ended"].message
    assert "in 'kernel scatter" in findings["kernel-scatter"].message
    assert findings["kernel-scatter"].result is Result.ERROR


@pytest.mark.slow
@pytest.mark.long
def test_kernels_that_hang_on_one_of_two_nodes_are_named_and_cost_the_other_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTS", "hang-in-rotary-rms-norm-and-scatter-on-rank-1")
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN))
    monkeypatch.syspath_prepend(PLUGIN)
    monkeypatch.setattr(session, "Task", partial(Task, kernel_seconds=20.0))
    monkeypatch.setattr(session, "check_contract", lambda *args: [])
    monkeypatch.setattr(session, "_tasks", lambda plan: [("device", 1), ("collectives", 1)])
    monkeypatch.setitem(session.LIMITS, "collectives", 40)  # as long as both kernels take to hang
    port = free_port() - meeting.PORT

    def on_node(rank):
        place = Place("torchrun", 2, rank, "127.0.0.1", port)
        run = create_run_directory(tmp_path / f"node{rank}")
        return session.run_preflight(load_device("faulty"), session.Request("tiny-perf", place, 1, 7, None), run)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(on_node, range(2))
    assert first == second
    found = {finding.check: finding for finding in first}
    unmeasured = ["linear", "cross-entropy", "embedding", "adamw", "grad-norm", "scatter"]
    assert red(found) == {f"kernel-{name}" for name in ("rotary", "rms-norm", *unmeasured)}
    for name in ("rotary", "rms-norm"):
        told = rf"rank 1 .*: {name} cannot run: hang, no end after 20 s\."
        assert re.fullmatch(told, found[f"kernel-{name}"].message)
    for name in unmeasured:
        told = rf"rank 1 .*: {name} cannot run: not measured, because rotary and rms-norm hung\."
        assert re.fullmatch(told, found[f"kernel-{name}"].message)
    green = ("preflight-ended", "gemm-correct", "kernel-attention", "device-capacity", "collective-correct")
    assert {found[check].result for check in green} == {Result.PASS}


@pytest.mark.slow
def test_slow_devices_and_what_their_health_tells_only_at_work_are_named(tmp_path):
    alone = {**SETUP, "backend": "abacus"}  # ranks of a CPU share it, and are not compared
    faults = ["slow-products-on-rank-1", "slow-copies-on-rank-1", "throttled-at-work", "slow-link-at-work"]
    faults += ["scatter-not-the-same-twice", "cpu-that-is-called-h200", "half-of-the-memory"]
    tasks = {
        "device": processes_of("device", faults, tmp_path),
        "host": processes_of("host", faults, tmp_path, ranks=1),
    }
    findings = {finding.check: finding for finding in judge(Preflight(alone, tasks, load_expected()))}
    assert red(findings) == seen(*faults) - {"arrival-even"}
    assert "rank 1 does its product alone at" in findings["speed-even"].message
    assert "rank 1 does its copy alone at" in findings["speed-even"].message
    assert "scatter out" in findings["kernel-determinism"].message
    assert "at work: throttle_thermal is Active" in findings["device-health"].message
    assert "at work: generation 3 of 5" in findings["device-bus"].message
    products = [r for one in tasks["device"] for r in one["records"] if r["kind"] == "gemm" and r["name"] == "query"]
    assert len({product["whole_error"] for product in products}) == 2  # each rank multiplies its own numbers


@pytest.mark.slow
def test_half_a_links_bandwidth_slow_sums_lost_precision_and_a_late_rank_are_named(tmp_path):
    alone = {**SETUP, "backend": "abacus"}
    faults = ["half-bandwidth-from-rank-1", "slow-large-sums", "float64-in-float32-over-ranks"]
    faults += ["slow-products-on-rank-1"]
    findings = measured("collectives", faults, tmp_path, setup=alone)
    assert red(findings) == seen(*faults) - {"speed-even"}
    assert "rank 1 to 0" in findings["link-even"].message
    assert "slower for large messages than for smaller ones: all_reduce" in findings["collective-speed"].message
    assert "computed in less than float64" in findings["shim-numerics"].message
    assert "Rank 1 comes last" in findings["arrival-even"].message
    assert findings["host-clock"].result is Result.PASS


@pytest.mark.slow
def test_another_driver_and_a_busy_device_on_one_of_two_nodes_are_named(tmp_path):
    faults = ["other-driver-on-node-1", "busy-on-node-1"]
    processes = processes_of("host", faults, tmp_path)
    findings = {f.check: f for f in judge(Preflight({**SETUP, "nodes": 2, "ranks": 4}, {"host": processes}))}
    assert red(findings) == seen(*faults)
    assert findings["device-identity"].message == "driver differs: 580.1, 580.2."
    assert "device 0 of node 1 is used by process 4711" in findings["device-busy"].message


@pytest.mark.slow
def test_a_step_whose_loss_is_off_by_2_percent_is_found(tmp_path):
    findings = measured("step", ["cross-entropy-off-by-2-percent"], tmp_path, ranks=1)
    assert red(findings) == {"training-step"}
    assert "loss" in findings["training-step"].message


@pytest.mark.slow
def test_a_wrong_sum_and_a_wrong_clock_are_found(tmp_path):
    faults = ["wrong-sum-on-rank-1", "clock-5-s-off-on-rank-1"]
    findings = measured("collectives", faults, tmp_path)
    assert red(findings) >= seen(*faults)
    assert "rank 1: all_reduce SUM" in findings["collective-correct"].message
    assert findings["host-clock"].value == pytest.approx(5, abs=0.1)


@pytest.mark.slow
def test_a_hang_is_ended_and_named(tmp_path):
    findings = measured("collectives", ["hang-in-broadcast-on-rank-1"], tmp_path, limit=60)
    assert red(findings) == {"preflight-ended"}
    assert "rank 1 hung and was ended" in findings["preflight-ended"].message
    assert "broadcast" in findings["preflight-ended"].message
    assert findings["collective-correct"].result is Result.ERROR
    # What was measured before is kept.
    assert findings["host-clock"].result is Result.PASS


@pytest.mark.slow
def test_a_crash_is_told_with_its_last_words(tmp_path):
    findings = measured("collectives", ["crash-on-rank-1"], tmp_path)
    assert "preflight-ended" in red(findings)
    assert "rank 1 died" in findings["preflight-ended"].message
    assert "the driver is gone" in findings["preflight-ended"].message


@pytest.mark.slow
def test_each_fault_of_a_plugin_is_an_aspect_of_the_contract(tmp_path):
    faults = ["count-imports-torch", "no-model", "events-do-not-time", "rng-is-not-restored", "memory-is-not-counted"]
    findings = measured("contract", faults, tmp_path, ranks=1)
    assert red(findings) == seen(*faults)
    told = findings["device-contract"].message
    for words in ("count() imported torch", "identity() lacks model"):
        assert words in told


@pytest.mark.slow
def test_faults_behind_activation_are_found_too(tmp_path):
    faults = ["events-do-not-time", "rng-is-not-restored", "memory-is-not-counted", "no-streams"]
    findings = measured("contract", faults, tmp_path, ranks=1)
    told = findings["device-contract"].message
    for words in ("events: ", "rng: ", "memory: ", "streams: "):
        assert words in told
    for words in ("synchronise: ", "bf16: ", "autocast: ", "collectives: "):
        assert words not in told
