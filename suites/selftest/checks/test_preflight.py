"""Judgement of preflight measurements: a sound cluster passes everything, and every fault turns its own check red."""

from __future__ import annotations

import copy

import pytest

from conformance.checks.finding import Result
from conformance.checks.preflight import CHECKS, ROUNDINGS, Preflight, collective_limit, cpu_list, judge, number
from conformance.preflight.session import load_expected
from conformance.spec import load_checks

NODES, DEVICES = 2, 2
RANKS = NODES * DEVICES
TASKS = ("contract", "host", "device", "collectives", "step")


def process(rank, records):
    return {"rank": rank, "outcome": "done", "phase": "done", "seconds": 5.0, "output": "", "records": records}


def host(node):
    software = {"python": "3.11.7", "torch": "2.11.0", "nvidia-nccl-cu13": "2.28"}
    port = {"port": "mlx5_0:1", "state": "4: ACTIVE", "physical": "5: LinkUp", "rate": "400 Gb/sec"}
    facts = {
        "host": f"node-{node}",
        "nofile": 65536,
        "memlock_bytes": -1,
        "memory_available_bytes": 1 << 40,
        "shm_free_bytes": 64 << 30,
        "disk_free_bytes": 1 << 40,
        "disk_bytes_per_s": 2e9,
        "disk_problem": "",
        "cpus_allowed": list(range(64)),
        "numa_nodes": 2,
        "governor": "performance",
        "frequency_max_khz": "3500000",
        "frequency_limit_khz": "3500000",
        "rdma_ports": [port],
        "software": software,
    }
    records = [{"kind": "host", **facts}]
    for index in range(DEVICES):
        identity = {
            "vendor": "NVIDIA",
            "model": "NVIDIA H200",
            "driver": "580.1",
            "firmware": "96.00",
            "memory": "143771 MiB",
        }
        records.append({"kind": "identity", "index": index, **identity, "uuid": f"GPU-{node}-{index}"})
        health = {
            "ecc_uncorrected": "0",
            "remapping_pending": "No",
            "remapping_failed": "No",
            "throttle_thermal": "Not Active",
            "throttle_power_brake": "Not Active",
            "link_width": "16",
            "link_width_max": "16",
            "link_generation_max": "5",
            "local_cpus": "0-31",
            "processes": "",
        }
        records.append({"kind": "health", "index": index, **health})
    return process(node, records)


def device(rank):
    records = [{"kind": "process", "host": f"node-{rank // DEVICES}", "local_rank": rank % DEVICES}]
    for setting in ("alone", "together"):
        product = {"name": "square", "tflops": 770.0, "error": 0.0017, "whole_error": 0.0016, "not_finite": 0}
        records.append({"kind": "gemm", "setting": setting, **product})
        records.append({"kind": "copy", "setting": setting, "gb_per_s": 4260.0, "intact": True})
    for kernel, result in ROUNDINGS:
        dtype = "float32" if kernel in ("cross-entropy", "adamw", "grad-norm", "scatter") else "bfloat16"
        good = 1e-8 if dtype == "float32" else 0.001
        told = {"case": "plain", "provider": "native 2.8", "dtype": dtype, "seed": 7, "row": 3}
        measured = {"error": good, "worst_row": 2 * good, "not_finite": 0, "same_twice": True}
        records.append({"kind": "kernel", "kernel": kernel, "result": result, **told, **measured})
    capacity = {"needed_gib": 100.0, "held_gib": 101.0, "intact": True, "problem": ""}
    records.append({"kind": "capacity", **capacity})
    return process(rank, records)


def collectives(rank):
    made = {
        "operation": "all_reduce SUM",
        "dtype": "bfloat16",
        "group": "world",
        "size": RANKS,
        "error": 0.0,
        "problem": "",
    }
    speed = {"operation": "all_reduce", "size": RANKS, "busbw_gb_per_s": 300.0}
    return process(
        rank,
        [
            {"kind": "clock", "offset_s": 0.001 * rank},
            {"kind": "collective", **made},
            {"kind": "backend", "backend": "nccl", "libraries": ["libnccl.so.2"]},
            {"kind": "reduction", "avg": "scales before it sums", "float64": "kept"},
            {"kind": "bandwidth", "bytes": 1 << 20, "algbw_gb_per_s": 50.0, **speed},
            {"kind": "bandwidth", "bytes": 1 << 29, "algbw_gb_per_s": 200.0, **speed},
            {"kind": "link", "sender": rank, "receiver": (rank + 1) % RANKS, "gb_per_s": (150.0, 40.0)[rank % DEVICES]},
            {"kind": "arrival", "late_seconds": 1e-5 * rank, "work_seconds": 0.02},
        ],
    )


def step(rank, tensor):
    figures = {"loss": 10.7, "expected_loss": 10.701, "grad_norm": 2.0, "expected_grad_norm": 2.001}
    return process(rank, [{"kind": "step", "tensor": tensor, **figures}])


def sound():
    aspects = [{"kind": "contract", "aspect": a, "state": "ok", "detail": ""} for a in ("count", "events", "float64")]
    tasks = {
        "contract": [process(node, copy.deepcopy(aspects)) for node in range(NODES)],
        "host": [host(node) for node in range(NODES)],
        "device": [device(rank) for rank in range(RANKS)],
        "collectives": [collectives(rank) for rank in range(RANKS)],
        "step": [step(rank, tensor) for tensor in (1, 2) for rank in range(RANKS)],
    }
    setup = {"device": "cuda", "backend": "nccl", "nodes": NODES, "ranks": RANKS, "rehearsal": False}
    return Preflight({**setup, "workload": "llama2-7b-perf"}, tasks, load_expected())


def find(preflight, task, kind, number=0, **fields):
    """One record of the sound cluster, to be changed."""
    return next(
        record
        for record in preflight.tasks[task][number]["records"]
        if record["kind"] == kind and all(record[name] == value for name, value in fields.items())
    )


def changed(task, kind, number=0, *, where=None, **values):
    """A fault: other values in one record."""

    def inject(preflight):
        find(preflight, task, kind, number, **(where or {})).update(values)

    return inject


def hung(preflight):
    preflight.tasks["collectives"][3].update(outcome="timeout", phase="collectives: broadcast")


def kernel_fault(kernel, result, **values):
    return changed("device", "kernel", 2, where={"kernel": kernel, "result": result}, **values)


BUSY = changed("host", "health", 1, processes="4711")
FAULTS = {
    "preflight-ended": [hung],
    "device-contract": [
        changed("contract", "contract", state="wrong"),
        changed("contract", "contract", state="missing"),
    ],
    "device-identity": [
        changed("host", "identity", 1, driver="570.1"),
        changed("host", "identity", 1, firmware="95.00"),
        changed("host", "identity", 1, model="NVIDIA H100"),
        changed("host", "identity", 1, uuid="GPU-0-0"),
    ],
    "device-health": [
        changed("host", "health", ecc_uncorrected="2"),
        changed("host", "health", remapping_pending="Yes"),
        changed("host", "health", remapping_failed="Yes"),
        changed("host", "health", throttle_thermal="Active"),
    ],
    "device-busy": [BUSY],
    "device-bus": [changed("host", "health", link_width="8"), changed("host", "health", link_generation_max="4")],
    "host-limits": [changed("host", "host", nofile=1024), changed("host", "host", memlock_bytes=65536)],
    "host-shm": [changed("host", "host", 1, shm_free_bytes=64 << 20)],
    "host-disk": [
        changed("host", "host", disk_free_bytes=1 << 20),
        changed("host", "host", disk_bytes_per_s=1e6),
        changed("host", "host", disk_problem="Read-only file system", disk_bytes_per_s=None),
    ],
    "host-memory": [changed("host", "host", 1, memory_available_bytes=1 << 30)],
    "host-numa": [changed("host", "health", local_cpus="96-127")],
    "host-frequency": [
        changed("host", "host", governor="powersave"),
        changed("host", "host", frequency_limit_khz="2000000"),
    ],
    "host-rdma": [
        lambda p: find(p, "host", "host", 1)["rdma_ports"][0].update(state="1: DOWN"),
        lambda p: find(p, "host", "host", 1)["rdma_ports"][0].update(rate="200 Gb/sec"),
        changed("host", "host", 1, rdma_ports=[]),
    ],
    "host-software": [
        lambda p: find(p, "host", "host", 1)["software"].update(torch="2.10.0"),
        lambda p: find(p, "host", "host", 1)["software"].pop("torch"),
        changed("collectives", "backend", 3, libraries=["libnccl.so.1"]),
    ],
    "host-clock": [
        changed("collectives", "clock", 2, offset_s=-5.0),
        changed("collectives", "clock", 2, offset_s="nan"),
    ],
    "gemm-correct": [
        changed("device", "gemm", 1, not_finite=1),
        changed("device", "gemm", 1, error="nan"),
        changed("device", "gemm", 1, error=0.1),
        changed("device", "gemm", 1, whole_error=0.03),
        changed("device", "copy", 1, intact=False),
    ],
    "gemm-speed": [changed("device", "gemm", 1, tflops=385.0), changed("device", "gemm", 1, tflops="nan")],
    "copy-speed": [changed("device", "copy", 1, gb_per_s=2130.0)],
    "speed-even": [
        changed("device", "gemm", 1, tflops=700.0),
        changed("device", "copy", 3, where={"setting": "together"}, gb_per_s=2130.0),
    ],
    "device-capacity": [
        changed("device", "capacity", 3, held_gib=70.0, problem="out of memory"),
        changed("device", "capacity", 3, intact=False),
    ],
    "kernel-attention": [
        kernel_fault("attention", "dq", error="nan"),
        kernel_fault("attention", "dq", worst_row=1.0),
        kernel_fault("attention", "out", error=0.05),
        kernel_fault("attention", "dv", not_finite=1),
        lambda p: p.tasks["device"][1]["records"].append(
            {"kind": "kernel-error", "kernel": "attention", "problem": "RuntimeError: no kernel image"}
        ),
    ],
    "kernel-rotary": [kernel_fault("rotary", "dx", error=0.02)],
    "kernel-rms-norm": [kernel_fault("rms-norm", "dweight", error=0.02)],
    "kernel-linear": [kernel_fault("linear", "dweight", error="inf")],
    "kernel-cross-entropy": [kernel_fault("cross-entropy", "dlogits", error=1e-3)],
    "kernel-embedding": [kernel_fault("embedding", "dweight", error=0.1)],
    "kernel-adamw": [kernel_fault("adamw", "update", error=1e-3)],
    "kernel-grad-norm": [kernel_fault("grad-norm", "norm", error=1e-3)],
    "kernel-scatter": [kernel_fault("scatter", "out", error=1e-3)],
    "kernel-determinism": [kernel_fault("attention", "dq", same_twice=False)],
    "shim-numerics": [
        changed("collectives", "reduction", 1, float64="computed in less than float64"),
        changed("contract", "contract", where={"aspect": "float64"}, state="missing", detail="float64 becomes float32"),
    ],
    "collective-correct": [
        changed("collectives", "collective", 3, error=1e-3),
        changed("collectives", "collective", 3, error="nan"),
        changed("collectives", "collective", 3, problem="RuntimeError: unsupported"),
    ],
    "collective-speed": [changed("collectives", "bandwidth", where={"bytes": 1 << 29}, algbw_gb_per_s=25.0)],
    "link-even": [changed("collectives", "link", 2, gb_per_s=75.0)],
    "arrival-even": [changed("collectives", "arrival", 3, late_seconds=0.01)],
    "training-step": [
        changed("step", "step", 3, loss=10.9),
        changed("step", "step", 3, loss="nan"),
        changed("step", "step", 3, grad_norm=2.2),
        lambda p: [q["records"][0].update(loss=10.735) for q in p.tasks["step"] if q["records"][0]["tensor"] == 2],
    ],
}
CASES = [
    pytest.param(check, fault, id=f"{check}-{n}") for check, faults in FAULTS.items() for n, fault in enumerate(faults)
]


def test_a_sound_cluster_passes_every_check():
    findings = judge(sound())
    assert [f.check for f in findings] == list(CHECKS)
    assert {f.check: f.message for f in findings if f.result is not Result.PASS} == {}


def test_every_check_is_described_and_has_a_negative_control():
    assert set(CHECKS) == set(FAULTS) == {c.id for c in load_checks().values() if "preflight" in c.applies}


@pytest.mark.parametrize(("check", "fault"), CASES)
def test_a_fault_turns_its_check_red_and_hardly_another(check, fault):
    preflight = copy.deepcopy(sound())
    fault(preflight)
    red = {finding.check for finding in judge(preflight) if finding.result is Result.FAIL}
    assert check in red
    # A device that is slow for its kind is slower than its neighbours.
    assert red - {check} <= {"speed-even", "gemm-speed"}


@pytest.mark.parametrize("task", TASKS)
def test_what_was_not_measured_is_an_error_and_never_a_pass(task):
    preflight = copy.deepcopy(sound())
    preflight.tasks[task] = []
    findings = {finding.check: finding for finding in judge(preflight)}
    for check, (needs, _) in CHECKS.items():
        if needs == task:
            assert findings[check].result is Result.ERROR, findings[check]


@pytest.mark.parametrize("task", TASKS)
def test_a_rank_that_left_nothing_is_missed(task):
    preflight = copy.deepcopy(sound())
    preflight.tasks[task][:] = [one for one in preflight.tasks[task] if one["rank"] != 1]
    errors = {finding.check for finding in judge(preflight) if finding.result is Result.ERROR}
    assert errors >= {check for check, (needs, _) in CHECKS.items() if needs == task}


def test_a_device_that_tells_nothing_among_others_that_do_is_an_error():
    preflight = copy.deepcopy(sound())
    health = find(preflight, "host", "health", 1)
    for name in set(health) - {"kind", "index"}:
        del health[name]
    findings = {finding.check: finding.result for finding in judge(preflight)}
    for check in ("device-health", "device-busy", "device-bus"):
        assert findings[check] is Result.ERROR


def test_what_a_tool_does_not_tell_is_no_breach_of_contract():
    preflight = copy.deepcopy(sound())
    for process_of_node in preflight.tasks["contract"]:
        process_of_node["records"].append({"kind": "contract", "aspect": "smi", "state": "missing", "detail": ""})
    contract = judge(preflight)[1]
    assert contract.result is Result.PASS
    assert "not told: smi" in contract.message


def test_a_hang_is_named_by_rank_and_phase():
    preflight = copy.deepcopy(sound())
    hung(preflight)
    ended = judge(preflight)[0]
    assert "rank 3 hung" in ended.message
    assert "collectives: broadcast" in ended.message


def test_ranks_that_share_a_processor_are_not_compared():
    preflight = sound()
    shared = Preflight({**preflight.setup, "backend": "gloo"}, preflight.tasks, ())
    skipped = {finding.check for finding in judge(shared) if finding.result is Result.SKIP}
    assert skipped == {"speed-even", "link-even", "arrival-even", "gemm-speed", "copy-speed"}


def test_limits_of_collectives_come_from_the_dtype():
    exact = {"operation": "all_reduce SUM", "dtype": "bfloat16", "size": 8}
    assert collective_limit(exact) == 0
    assert collective_limit({**exact, "operation": "all_reduce AVG"}) == 2 * 2.0**-9
    random = {**exact, "operation": "all_reduce SUM of random numbers"}
    # Small enough to see that one of many ranks was left out, whose share of a random sum is 1 / sqrt(ranks).
    for size in (2, 8):
        assert collective_limit({**random, "size": size}) < 1 / size**0.5


def test_numbers_and_cpu_lists_are_read_as_written():
    assert number("inf") == float("inf")
    assert number("nan") != number("nan")
    assert number(None) != number(None)
    assert list(cpu_list("0-2,8")) == [0, 1, 2, 8]
    assert list(cpu_list("")) == []
