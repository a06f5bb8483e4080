"""Judgement of preflight measurements; that every fault turns its own check red, selftest/test_selftest.py shows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conformance.checks.finding import Result
from conformance.checks.preflight import CHECKS, Preflight, collective_limit, cpu_list, judge, number
from conformance.selftest.cluster import find, hang, sound_cluster
from conformance.spec import load_checks

TASKS = ("contract", "host", "device", "collectives", "step")


def test_a_sound_cluster_passes_every_check():
    findings = judge(sound_cluster())
    assert [f.check for f in findings] == list(CHECKS)
    assert {f.check: f.message for f in findings if f.result is not Result.PASS} == {}
    assert [f.check for f in findings if f.limit is None or not f.limit_source] == []


def test_every_check_of_a_preflight_is_described():
    assert set(CHECKS) == {c.id for c in load_checks().values() if "preflight" in c.applies}


@pytest.mark.parametrize("task", TASKS)
def test_what_was_not_measured_is_an_error_and_never_a_pass(task):
    preflight = sound_cluster()
    preflight.tasks[task] = []
    findings = {finding.check: finding for finding in judge(preflight)}
    for check, (needs, _) in CHECKS.items():
        if needs == task:
            assert findings[check].result is Result.ERROR, findings[check]


@pytest.mark.parametrize("task", TASKS)
def test_a_rank_that_left_nothing_is_missed(task):
    preflight = sound_cluster()
    preflight.tasks[task][:] = [one for one in preflight.tasks[task] if one["rank"] != 1]
    errors = {finding.check for finding in judge(preflight) if finding.result is Result.ERROR}
    assert errors >= {check for check, (needs, _) in CHECKS.items() if needs == task}


def test_a_device_that_tells_nothing_among_others_that_do_is_an_error():
    preflight = sound_cluster()
    health = find(preflight, "host", "health", 1)
    for name in set(health) - {"kind", "index"}:
        del health[name]
    findings = {finding.check: finding.result for finding in judge(preflight)}
    for check in ("device-health", "device-busy", "device-bus"):
        assert findings[check] is Result.ERROR


def test_a_device_that_tells_one_thing_of_its_health_is_judged_by_it():
    def change(preflight):
        for process in preflight.tasks["host"]:
            for record in process["records"]:
                if record["kind"] == "health":
                    told = {name: record[name] for name in ("kind", "index", "ecc_uncorrected")}
                    record.clear()
                    record.update(told)

    assert all_results(change)["device-health"].result is Result.PASS


def all_results(change):
    preflight = sound_cluster()
    change(preflight)
    return {finding.check: finding for finding in judge(preflight)}


def drop(preflight, task, number, **fields):
    records = preflight.tasks[task][number]["records"]
    records[:] = [r for r in records if any(r.get(name) != value for name, value in fields.items())]


@pytest.mark.parametrize(
    ("check", "task", "kind", "number", "values"),
    [
        ("host-shm", "host", "host", 1, {"shm_free_bytes": None}),
        ("host-memory", "host", "host", 1, {"memory_available_bytes": "nan"}),
        ("device-bus", "host", "health", 1, {"link_width": "nan"}),
        ("device-capacity", "device", "capacity", 1, {"held_gib": "nan"}),
        ("arrival-even", "collectives", "arrival", 1, {"late_seconds": "nan"}),
        ("link-even", "collectives", "link", 1, {"gb_per_s": "nan"}),
        ("shim-numerics", "collectives", "reduction", 1, {"avg": "sums, then divides"}),
        ("device-health", "host", "health", 1, {"throttle_software_thermal": "Active"}),
        ("device-health", "host", "health", 1, {"throttle_thermal": "nan"}),
        ("device-health", "device", "loaded-health", 1, {"throttle_thermal": "Active"}),
        ("device-health", "device", "loaded-health", 1, {"ecc_uncorrected": "2"}),
        ("device-bus", "device", "loaded-health", 1, {"link_generation": "3"}),
        ("device-bus", "device", "loaded-health", 1, {"link_generation": "nan"}),
        ("device-busy", "host", "health", 1, {"memory_used_mib": "9000"}),
        ("device-busy", "host", "health", 1, {"memory_used_mib": "nan"}),
    ],
)
def test_what_is_no_number_or_not_sound_fails_on_any_one_node_or_rank(check, task, kind, number, values):
    found = all_results(lambda preflight: find(preflight, task, kind, number).update(values))
    assert {check for check, finding in found.items() if finding.result is not Result.PASS} == {check}
    assert found[check].result is Result.FAIL
    # Strict JSON holds it.
    json.dumps([found[check].value, found[check].margin], allow_nan=False)


@pytest.mark.parametrize(
    ("checks", "task", "number", "fields"),
    [
        (("gemm-correct", "gemm-speed", "copy-speed", "speed-even"), "device", 3, {"kind": "gemm"}),
        (("gemm-speed", "speed-even"), "device", 3, {"kind": "gemm", "setting": "together"}),
        (("gemm-correct", "copy-speed"), "device", 3, {"kind": "copy"}),
        (("device-capacity",), "device", 3, {"kind": "capacity"}),
        (("kernel-attention", "kernel-determinism"), "device", 3, {"kind": "kernel", "kernel": "attention"}),
        (("kernel-attention",), "device", 3, {"kind": "kernel", "kernel": "attention", "result": "dv"}),
        (("kernel-cross-entropy",), "collectives", 3, {"kind": "kernel"}),
        (("shim-numerics",), "collectives", 3, {"kind": "reduction"}),
        (("collective-correct",), "collectives", 3, {"kind": "collective"}),
        (("collective-speed",), "collectives", 3, {"kind": "bandwidth", "bytes": 1 << 29}),
        (("link-even",), "collectives", 3, {"kind": "link"}),
        (("arrival-even",), "collectives", 3, {"kind": "arrival"}),
        (("host-clock",), "collectives", 3, {"kind": "clock"}),
        (("device-identity",), "host", 1, {"kind": "identity", "index": 1}),
        (("device-health", "device-busy", "device-bus"), "host", 1, {"kind": "health", "index": 1}),
        (("host-shm", "host-software"), "host", 1, {"kind": "host"}),
        (("training-step",), "step", 3, {"kind": "step"}),
    ],
)
def test_what_one_rank_did_not_measure_is_an_error(checks, task, number, fields):
    found = all_results(lambda preflight: drop(preflight, task, number, **fields))
    for check in checks:
        assert found[check].result is Result.ERROR, found[check]
        assert "wrote down" in found[check].message


@pytest.mark.parametrize(
    ("check", "fields"),
    [
        ("kernel-attention", {"kernel": "attention", "result": "dq"}),
        ("kernel-adamw", {"kernel": "adamw", "result": "second"}),
        ("kernel-cross-entropy", {"kernel": "cross-entropy", "case": "vocabulary over 4 ranks"}),
    ],
)
def test_a_result_that_no_rank_measured_is_an_error(check, fields):
    def change(preflight):
        for task in ("device", "collectives"):
            for rank in range(4):
                drop(preflight, task, rank, kind="kernel", **fields)

    found = all_results(change)
    assert {check for check, finding in found.items() if finding.result is Result.ERROR} == {
        check,
        "kernel-determinism",
    }


@pytest.mark.parametrize(
    ("check", "task", "kind", "change"),
    [
        ("device-bus", "host", "health", lambda record: record.pop("link_width")),
        ("device-busy", "host", "health", lambda record: record.update(processes=[4711])),
        ("host-limits", "host", "host", lambda record: record.pop("nofile")),
        ("host-frequency", "host", "host", lambda record: record.update(frequency_limit_khz="")),
        ("collective-correct", "collectives", "collective", lambda record: record.update(dtype="complex128")),
    ],
)
def test_a_malformed_record_is_an_error_of_its_check_alone(check, task, kind, change):
    found = all_results(lambda preflight: change(find(preflight, task, kind, 1)))
    assert {check for check, finding in found.items() if finding.result is not Result.PASS} == {check}
    assert found[check].result is Result.ERROR


def test_one_rank_has_no_clock_and_no_speed_to_agree_with():
    cluster = sound_cluster()
    tasks = {task: processes[:1] for task, processes in cluster.tasks.items()}
    tasks["host"][0]["records"] = [r for r in tasks["host"][0]["records"] if r.get("index", 0) == 0]
    tasks["step"][0]["records"] = [r for r in tasks["step"][0]["records"] if r.get("tensor", 1) == 1]
    found = {f.check: f.result for f in judge(Preflight({**cluster.setup, "nodes": 1, "ranks": 1}, tasks))}
    for check in ("host-clock", "speed-even", "link-even", "arrival-even", "collective-speed"):
        assert found[check] is Result.SKIP
    assert (found["training-step"], found["device-identity"]) == (Result.PASS, Result.PASS)


def test_what_was_over_on_every_rank_is_judged_although_its_task_hung():
    def change(preflight):
        for rank, process in enumerate(preflight.tasks["device"]):
            process.update(outcome="timeout", phase="kernel attention: odd")
            process["records"].append({"kind": "over", "part": "compute"})
            if rank:
                process["records"].append({"kind": "over", "part": "kernel rotary"})

    found = all_results(change)
    assert found["gemm-speed"].result is Result.PASS
    assert found["kernel-rotary"].result is Result.ERROR
    assert found["kernel-attention"].result is Result.ERROR


@pytest.mark.parametrize("ending", ["failed", "timeout", "stopped"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_kernel_that_hung_stays_a_failure_whatever_ends_the_process_or_another_later(ending, rank):
    def change(preflight):
        hang = {"kind": "kernel-error", "kernel": "rotary", "problem": "hang, no end after 30 s"}
        preflight.tasks["device"][1]["records"].append(hang)
        preflight.tasks["device"][rank].update(outcome=ending, phase="kernel scatter: 8192 in 6")

    found = all_results(change)
    assert found["kernel-rotary"].result is Result.FAIL
    assert "rank 1 (device 1 of node-0): rotary cannot run: hang, no end after 30 s" in found["kernel-rotary"].message
    assert found["preflight-ended"].result is Result.FAIL
    assert found["kernel-scatter"].result is Result.ERROR


def test_a_speed_is_told_by_how_far_it_lies_from_the_known_one_on_either_side():
    assert "gemm-square -0.4% from 773" in all_results(lambda preflight: None)["gemm-speed"].message

    def faster(preflight):
        for _, record in preflight.records("gemm"):
            record.update(tflops=793.7)

    found = all_results(faster)["gemm-speed"]
    assert found.result is Result.PASS
    assert "gemm-square +2.7% from 773" in found.message


def test_the_ceiling_is_the_median_devices_product_with_all_at_work():
    def change(preflight):
        for rank, tflops in enumerate((700.0, 710.0, 720.0, 730.0)):
            find(preflight, "device", "gemm", rank, setting="together").update(tflops=tflops)

    assert "MFU's ceiling is 715" in all_results(change)["gemm-speed"].message


def test_another_build_of_a_library_under_the_same_name_is_found():
    def change(preflight):
        for rank in range(4):
            backend = find(preflight, "collectives", "backend", rank)
            backend.update(digests={"libnccl.so.2": str(rank // 3) * 64}, versions={"NCCL": "2.28.9"})

    found = all_results(change)
    assert {check for check, finding in found.items() if finding.result is not Result.PASS} == {"host-software"}
    assert "libnccl.so.2: rank 0 0000" in found["host-software"].message
    assert "NCCL: " not in found["host-software"].message


@pytest.mark.parametrize(("speed", "result"), [(200.0, Result.PASS), (120.0, Result.FAIL), ("nan", Result.FAIL)])
def test_a_rank_that_is_slower_in_its_group_than_others_in_theirs_is_named(speed, result):
    def change(preflight):
        for rank, process in enumerate(preflight.tasks["collectives"]):
            told = {"operation": "all_reduce", "group": "data and zero1", "bytes": 1 << 29, "size": 2}
            busbw = speed if rank == 3 else 200.0
            process["records"].append({"kind": "group-bandwidth", **told, "busbw_gb_per_s": busbw})

    found = all_results(change)["collective-speed"]
    assert found.result is result
    assert "all_reduce in data and zero1 of 512 MiB" in found.message
    assert ("rank 3 in data and zero1" in found.message) is (result is Result.FAIL)


@pytest.mark.parametrize(
    ("known", "devices", "nodes", "result"),
    [
        (431.0, 4, 1, Result.FAIL),
        (310.0, 4, 1, Result.PASS),
        (431.0, 8, 1, Result.PASS),  # of another number of devices
        (431.0, 4, 2, Result.PASS),  # not of one node
    ],
)
def test_bus_bandwidth_is_held_against_as_many_devices_of_one_node_alone(known, devices, nodes, result):
    cluster = sound_cluster()
    figure = {"device": "NVIDIA H200", "measurement": f"busbw-all_reduce-{devices}-in-a-node", "value": known}
    setup = {**cluster.setup, "nodes": nodes}
    told = judge(Preflight(setup, cluster.tasks, [{**figure, "unit": "GB/s", "source": "the field"}]))
    found = next(finding for finding in told if finding.check == "collective-speed")
    assert found.result is result
    assert ("best is -3.2% from 310, the field" in found.message) is (known == 310.0)


def test_a_node_that_has_too_little_is_told_in_the_unit_of_its_limit():
    def change(preflight):
        find(preflight, "host", "host", 1).update(shm_free_bytes=1 << 29)

    found = all_results(change)["host-shm"]
    assert ": 0.5 GiB; needed 1 GiB." in found.message
    assert (found.result, found.value, found.limit, found.margin) == (Result.FAIL, 0.5, 1.0, -0.5)
    untold = all_results(lambda preflight: find(preflight, "host", "host", 1).update(shm_free_bytes=None))["host-shm"]
    assert "of node-1: none; needed 1 GiB." in untold.message
    disk = all_results(change)["host-disk"]
    assert (disk.value, disk.limit, disk.unit) == (2000.0, 20.0, "MB/s")


@pytest.mark.parametrize(("algbw", "result"), [(41.0, Result.PASS), (39.0, Result.FAIL)])
def test_a_larger_message_is_at_most_a_fifth_slower_than_a_smaller_one(algbw, result):
    def change(preflight):
        for rank in range(4):
            find(preflight, "collectives", "bandwidth", rank, bytes=1 << 29).update(algbw_gb_per_s=algbw)

    found = all_results(change)["collective-speed"]
    assert found.result is result
    told = "all_reduce 50 GB/s at 1048576 bytes, 39 at 536870912"
    assert (told in found.message) is (result is Result.FAIL)


def test_how_late_the_last_rank_is_is_told_in_milliseconds():
    found = all_results(lambda preflight: None)["arrival-even"]
    assert found.message == "Rank 3 comes last, 0.03 ms late after 20.00 ms of the same work."


def test_the_slowest_link_is_told_beside_its_limit():
    found = all_results(lambda preflight: None)["link-even"]
    assert (found.result, found.limit) == (Result.PASS, 0.8)
    assert found.limit <= found.value <= 1


def test_what_a_tool_does_not_tell_is_no_breach_of_contract():
    preflight = sound_cluster()
    for process_of_node in preflight.tasks["contract"]:
        process_of_node["records"].append({"kind": "contract", "aspect": "smi", "state": "missing", "detail": ""})
    contract = judge(preflight)[1]
    assert contract.result is Result.PASS
    assert "not told: smi" in contract.message


def test_a_hang_is_named_by_rank_and_phase():
    preflight = sound_cluster()
    preflight.setup["collective_debug"] = "NCCL_DEBUG"
    assert "NCCL_DEBUG" not in judge(preflight)[0].message
    hang(preflight)
    ended = judge(preflight)[0]
    assert "rank 3 hung" in ended.message
    assert "collectives: broadcast" in ended.message
    assert ended.message.endswith("; with NCCL_DEBUG set the collective library tells more.")
    assert ended.value == 1


@pytest.mark.parametrize(
    ("ending", "output", "told"),
    [
        ("failed", "step 1\nOSError: no disk\n\n", ": OSError: no disk"),
        ("failed", "", ""),
        ("timeout", "step 1\n", ""),
        ("stopped", "step 1\n", ""),
    ],
)
def test_a_process_that_died_is_told_with_its_last_line_if_it_left_one(ending, output, told):
    def change(preflight):
        preflight.tasks["device"][2].update(outcome=ending, output=output, phase="gemm", seconds=7.0)

    how = {"failed": "died", "timeout": "hung and was ended", "stopped": "was ended with another that died"}[ending]
    message = all_results(change)["preflight-ended"].message
    assert f"device: rank 2 {how} after 7 s in 'gemm'{told}" in message
    assert "step 1" not in message


@pytest.mark.parametrize(
    ("ending", "phase", "told"),
    [
        ("timeout", "device: waiting for turn 1", "rank 2 waited for another and was ended after 7 s in 'device: w"),
        ("alone", "nodes 1, 3", "rank 2 was left without nodes 1, 3 after 7 s."),
    ],
)
def test_a_process_that_another_one_kept_waiting_is_not_said_to_hang(ending, phase, told):
    def change(preflight):
        preflight.tasks["device"][2].update(outcome=ending, phase=phase, seconds=7.0)

    found = all_results(change)["preflight-ended"]
    assert told in found.message
    assert found.result is Result.FAIL


def test_every_rank_whose_kernel_cannot_run_is_named():
    def change(preflight):
        for rank in (1, 3):
            error = {"kind": "kernel-error", "kernel": "rotary", "problem": f"hang {rank}"}
            preflight.tasks["device"][rank]["records"].append(error)

    message = all_results(change)["kernel-rotary"].message
    assert "rotary cannot run: hang 1; rank 3" in message
    assert message.endswith("rotary cannot run: hang 3.")


def test_ranks_that_share_a_processor_are_not_compared():
    preflight = sound_cluster()
    shared = Preflight({**preflight.setup, "backend": "gloo"}, preflight.tasks, ())
    skipped = {finding.check for finding in judge(shared) if finding.result is Result.SKIP}
    assert skipped == {"speed-even", "link-even", "arrival-even", "gemm-speed", "copy-speed"}


def test_one_row_that_is_far_off_is_seen_although_the_whole_is_not():
    def change(preflight):
        rms_norm = find(preflight, "device", "kernel", 1, kernel="rms-norm", result="out", dtype="bfloat16")
        rms_norm.update(worst_row=0.1)  # beyond 16 x 3 roundings of 2^-9

    assert all_results(change)["kernel-rms-norm"].result is Result.FAIL


def test_a_node_with_another_number_of_active_ports_is_named():
    def change(preflight):
        ports = find(preflight, "host", "host", 1)["rdma_ports"]
        ports.append({**ports[0], "port": "mlx5_9/1"})

    found = all_results(change)["host-rdma"]
    assert found.result is Result.FAIL
    assert "active ports: node 0 (node-0) 1, node 1 (node-1) 2" in found.message


@pytest.mark.parametrize(("check", "roundings"), [("kernel-adamw", 16), ("kernel-cross-entropy", 256)])
def test_limits_of_fp32_kernels_are_whole_roundings_of_ieee_754(check, roundings):
    found = all_results(lambda preflight: None)[check]
    assert found.limit == roundings * np.finfo(np.float32).eps / 2


def test_limits_of_collectives_come_from_the_dtype():
    exact = {"operation": "all_reduce SUM", "dtype": "bfloat16", "size": 8}
    assert collective_limit(exact) == 0
    assert collective_limit({**exact, "operation": "all_reduce AVG"}) == 2 * 2.0**-9
    random = {**exact, "operation": "all_reduce SUM of random numbers"}
    # Small enough to see that one of many ranks was left out, whose share of a random sum is 1 / sqrt(ranks).
    for size in (2, 8):
        assert collective_limit({**random, "size": size}) < 1 / size**0.5
    assert collective_limit({**random, "size": 1}) == collective_limit({**random, "size": 2}) == 2 * 2.0**-9
    assert collective_limit({**random, "size": 10}) == (1 + 3) * 2.0**-9


def test_numbers_and_cpu_lists_are_read_as_written():
    assert number("inf") == float("inf")
    assert number("nan") != number("nan")
    assert number(None) != number(None)
    assert list(cpu_list("0-2,8")) == [0, 1, 2, 8]
    assert list(cpu_list("")) == []


@pytest.mark.parametrize(("share", "result"), [(0.92, Result.PASS), (0.88, Result.FAIL)])
@pytest.mark.parametrize(("kind", "figure"), [("gemm", "tflops"), ("copy", "gb_per_s")])
def test_devices_that_all_fall_together_when_all_work_are_found(kind, figure, share, result):
    def change(preflight):
        for _, record in preflight.records(kind):
            if record["setting"] == "together":
                record[figure] *= share

    assert all_results(change)["speed-even"].result is result


def test_open_files_are_counted_by_the_rank():
    def change(preflight):
        find(preflight, "host", "host", 1).update(nofile=1024 + 64 * preflight.setup["ranks"] - 1)

    found = all_results(change)["host-limits"]
    assert found.result is Result.FAIL
    assert f"needed {1024 + 64 * 4}" in found.message


def test_limits_and_figures_are_told_in_their_units():
    found = all_results(lambda preflight: None)
    assert found["host-memory"].limit_source == "this suite: 8 GiB a rank for imports, loaders and pinned buffers"
    assert found["preflight-ended"].limit == 0.0
    assert "all_reduce 300 at 512 MiB" in found["collective-speed"].message
