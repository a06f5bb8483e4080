"""A sound cluster's preflight measurements, and what can be wrong with each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from conformance.checks.preflight import ROUNDINGS, Preflight, judge
from conformance.selftest.bench import Bench, Fault
from conformance.spec.expected import load_expected

NODES, DEVICES = 2, 2
RANKS = NODES * DEVICES
TASKS = ("contract", "host", "device", "collectives", "step")


def _process(rank: int, records: list[Any]) -> dict[str, Any]:
    return {"rank": rank, "outcome": "done", "phase": "done", "seconds": 5.0, "output": "", "records": records}


def _host(node: int) -> dict[str, Any]:
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
    records: list[dict[str, Any]] = [{"kind": "host", **facts}]
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
    return _process(node, records)


def _device(rank: int) -> dict[str, Any]:
    records: list[dict[str, Any]] = [
        {"kind": "process", "host": f"node-{rank // DEVICES}", "local_rank": rank % DEVICES}
    ]
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
    at_work = {"throttle_thermal": "Not Active", "link_generation": "5", "link_generation_max": "5"}
    records.append({"kind": "loaded-health", **at_work})
    capacity = {"needed_gib": 100.0, "held_gib": 101.0, "intact": True, "problem": ""}
    records.append({"kind": "capacity", **capacity})
    return _process(rank, records)


def _collectives(rank: int) -> dict[str, Any]:
    made = {
        "operation": "all_reduce SUM",
        "dtype": "bfloat16",
        "group": "world",
        "size": RANKS,
        "error": 0.0,
        "problem": "",
    }
    speed = {"operation": "all_reduce", "size": RANKS, "busbw_gb_per_s": 300.0}
    split = {"kernel": "cross-entropy", "case": f"vocabulary over {RANKS} ranks", "provider": "native 2.8"}
    right = {"dtype": "float32", "seed": 7, "row": 3, "error": 1e-8, "worst_row": 2e-8, "not_finite": 0}
    return _process(
        rank,
        [
            {"kind": "clock", "offset_s": 0.001 * rank},
            {"kind": "over", "part": "clocks"},
            {"kind": "collective", **made},
            {"kind": "backend", "backend": "nccl", "libraries": ["libnccl.so.2"]},
            {"kind": "reduction", "avg": "scales before it sums", "float64": "kept"},
            *({"kind": "kernel", "result": name, **split, **right, "same_twice": True} for name in ("loss", "dlogits")),
            {"kind": "bandwidth", "bytes": 1 << 20, "algbw_gb_per_s": 50.0, **speed},
            {"kind": "bandwidth", "bytes": 1 << 29, "algbw_gb_per_s": 200.0, **speed},
            {"kind": "link", "sender": rank, "receiver": (rank + 1) % RANKS, "gb_per_s": (150.0, 40.0)[rank % DEVICES]},
            {"kind": "arrival", "late_seconds": 1e-5 * rank, "work_seconds": 0.02},
        ],
    )


def _step(rank: int, tensor: int) -> dict[str, Any]:
    figures = {"loss": 10.7, "expected_loss": 10.701, "grad_norm": 2.0, "expected_grad_norm": 2.001}
    return _process(rank, [{"kind": "step", "tensor": tensor, **figures}])


def sound_cluster() -> Preflight:
    """What a preflight measures on two good nodes of two devices each.

    Returns:
        The measurements, in the form that the measuring processes write.
    """
    aspects = [{"kind": "contract", "aspect": a, "state": "ok", "detail": ""} for a in ("count", "events", "float64")]
    tasks = {
        "contract": [_process(node, copy.deepcopy(aspects)) for node in range(NODES)],
        "host": [_host(node) for node in range(NODES)],
        "device": [_device(rank) for rank in range(RANKS)],
        "collectives": [_collectives(rank) for rank in range(RANKS)],
        "step": [_step(rank, tensor) for tensor in (1, 2) for rank in range(RANKS)],
    }
    setup: dict[str, Any] = {"device": "cuda", "backend": "nccl", "nodes": NODES, "ranks": RANKS, "rehearsal": False}
    return Preflight({**setup, "workload": "llama2-7b-perf"}, tasks, load_expected())


CLUSTER = Bench("cluster", lambda _: sound_cluster(), judge)


def find(preflight: Preflight, task: str, kind: str, number: int = 0, **fields: Any) -> dict[str, Any]:
    """One record of the sound cluster, to be changed.

    Args:
        preflight: The cluster.
        task: The task that wrote it.
        kind: Its kind.
        number: Which of the task's processes wrote it.
        fields: What it says.

    Returns:
        The first such record.
    """
    records = preflight.tasks[task][number]["records"]
    return next(r for r in records if r["kind"] == kind and all(r[name] == value for name, value in fields.items()))


def _changed(
    check: str, task: str, kind: str, number: int = 0, *, where: Any = None, also: Any = (), **values: Any
) -> Fault:
    """Other values in one record."""
    told = ", ".join(f"{name} {value!r}" for name, value in values.items())
    place = "".join(f" {value}" for value in (where or {}).values())
    return Fault(
        check,
        f"{kind}{place}: {told}",
        CLUSTER,
        lambda preflight: find(preflight, task, kind, number, **(where or {})).update(values),
        frozenset(also),
    )


def _kernel(kernel: str, result: str, check: str = "", **values: Any) -> Fault:
    where = {"kernel": kernel, "result": result}
    return _changed(check or f"kernel-{kernel}", "device", "kernel", 2, where=where, **values)


def _other(check: str, name: str, inject: Callable[[Preflight], object], silences: Any = ()) -> Fault:
    return Fault(check, name, CLUSTER, inject, silences=frozenset(silences))


def _all_slower(kind: str, speed: str) -> Callable[[Preflight], object]:
    """Every device does the same, and 80% of what its kind does."""

    def inject(preflight: Preflight) -> None:
        for process in preflight.tasks["device"]:
            for record in process["records"]:
                if record["kind"] == kind:
                    record[speed] *= 0.8

    return inject


def hang(preflight: Preflight) -> None:
    """One rank hangs in a collective.

    Args:
        preflight: The cluster.
    """
    process: Any = preflight.tasks["collectives"][3]
    process.update(outcome="timeout", phase="collectives: broadcast")


def _tensor_parallel_loss(preflight: Preflight) -> None:
    for process in preflight.tasks["step"]:
        if process["records"][0]["tensor"] == 2:
            process["records"][0].update(loss=10.735)


def _no_kernel(kernel: str, problem: str) -> Callable[[Preflight], object]:
    error = {"kind": "kernel-error", "kernel": kernel, "problem": problem}
    return lambda preflight: preflight.tasks["device"][1]["records"].append(error)


UNEVEN = ("speed-even",)  # one device that is slow for its kind is slower than its neighbours
COLLECTIVE = ("shim-numerics", "collective-correct", "collective-speed", "link-even", "arrival-even")
FAULTS = (
    _other("preflight-ended", "a rank hangs", hang, COLLECTIVE),
    _changed("device-contract", "contract", "contract", state="wrong"),
    _changed("device-contract", "contract", "contract", state="missing"),
    _changed("device-identity", "host", "identity", 1, driver="570.1"),
    _changed("device-identity", "host", "identity", 1, firmware="95.00"),
    _changed("device-identity", "host", "identity", 1, model="NVIDIA H100"),
    _changed("device-identity", "host", "identity", 1, uuid="GPU-0-0"),
    _changed("device-health", "host", "health", ecc_uncorrected="2"),
    _changed("device-health", "host", "health", remapping_pending="Yes"),
    _changed("device-health", "host", "health", remapping_failed="Yes"),
    _changed("device-health", "host", "health", throttle_thermal="Active"),
    _changed("device-busy", "host", "health", 1, processes="4711"),
    _changed("device-bus", "host", "health", link_width="8"),
    _changed("device-bus", "host", "health", link_generation_max="4"),
    _changed("host-limits", "host", "host", nofile=1024),
    _changed("host-limits", "host", "host", memlock_bytes=65536),
    _changed("host-shm", "host", "host", 1, shm_free_bytes=64 << 20),
    _changed("host-disk", "host", "host", disk_free_bytes=1 << 20),
    _changed("host-disk", "host", "host", disk_bytes_per_s=1e6),
    _changed("host-disk", "host", "host", disk_problem="Read-only file system", disk_bytes_per_s=None),
    _changed("host-memory", "host", "host", 1, memory_available_bytes=1 << 30),
    _changed("host-numa", "host", "health", local_cpus="96-127"),
    _changed("host-frequency", "host", "host", governor="powersave"),
    _changed("host-frequency", "host", "host", frequency_limit_khz="2000000"),
    _other(
        "host-rdma", "a port is down", lambda p: find(p, "host", "host", 1)["rdma_ports"][0].update(state="1: DOWN")
    ),
    _other(
        "host-rdma", "a port is slower", lambda p: find(p, "host", "host", 1)["rdma_ports"][0].update(rate="200 Gb/sec")
    ),
    _changed("host-rdma", "host", "host", 1, rdma_ports=[]),
    _other(
        "host-software",
        "another torch on a node",
        lambda p: find(p, "host", "host", 1)["software"].update(torch="2.10.0"),
    ),
    _other("host-software", "no torch on a node", lambda p: find(p, "host", "host", 1)["software"].pop("torch")),
    _changed("host-software", "collectives", "backend", 3, libraries=["libnccl.so.1"]),
    _changed("host-clock", "collectives", "clock", 2, offset_s=-5.0),
    _changed("host-clock", "collectives", "clock", 2, offset_s="nan"),
    _changed("gemm-correct", "device", "gemm", 1, not_finite=1),
    _changed("gemm-correct", "device", "gemm", 1, error="nan"),
    _changed("gemm-correct", "device", "gemm", 1, error=0.1),
    _changed("gemm-correct", "device", "gemm", 1, whole_error=0.03),
    _changed("gemm-correct", "device", "copy", 1, intact=False),
    _changed("gemm-speed", "device", "gemm", 1, also=UNEVEN, tflops=385.0),
    _changed("gemm-speed", "device", "gemm", 1, also=UNEVEN, tflops="nan"),
    _changed("copy-speed", "device", "copy", 1, also=UNEVEN, gb_per_s=2130.0),
    _other("gemm-speed", "every device is slow for its kind", _all_slower("gemm", "tflops")),
    _other("copy-speed", "every device is slow for its kind", _all_slower("copy", "gb_per_s")),
    _changed("speed-even", "device", "gemm", 1, also=("gemm-speed",), tflops=700.0),
    _changed("speed-even", "device", "copy", 3, where={"setting": "together"}, gb_per_s=2130.0),
    _changed("device-capacity", "device", "capacity", 3, held_gib=70.0, problem="out of memory"),
    _changed("device-capacity", "device", "capacity", 3, intact=False),
    _kernel("attention", "dq", error="nan"),
    _kernel("attention", "dq", worst_row=1.0),
    _kernel("attention", "out", error=0.05),
    _kernel("attention", "dv", not_finite=1),
    _other("kernel-attention", "the kernel cannot run", _no_kernel("attention", "RuntimeError: no kernel image")),
    _kernel("rotary", "dx", error=0.02),
    _other("kernel-rotary", "the kernel hangs", _no_kernel("rotary", "hang, no end after 30 s")),
    _kernel("rms-norm", "dweight", error=0.02),
    _kernel("linear", "dweight", error="inf"),
    _kernel("cross-entropy", "dlogits", error=1e-3),
    _kernel("embedding", "dweight", error=0.1),
    _kernel("adamw", "update", error=1e-3),
    _kernel("grad-norm", "norm", error=1e-3),
    _kernel("scatter", "out", error=1e-3),
    _kernel("attention", "dq", "kernel-determinism", same_twice=False),
    _changed("shim-numerics", "collectives", "reduction", 1, float64="computed in less than float64"),
    _changed(
        "shim-numerics",
        "contract",
        "contract",
        where={"aspect": "float64"},
        state="missing",
        detail="float64 becomes float32",
    ),
    _changed("collective-correct", "collectives", "collective", 3, error=1e-3),
    _changed("collective-correct", "collectives", "collective", 3, error="nan"),
    _changed("collective-correct", "collectives", "collective", 3, problem="RuntimeError: unsupported"),
    _changed("collective-speed", "collectives", "bandwidth", where={"bytes": 1 << 29}, algbw_gb_per_s=25.0),
    _changed("link-even", "collectives", "link", 2, gb_per_s=75.0),
    _changed("arrival-even", "collectives", "arrival", 3, late_seconds=0.01),
    _changed("training-step", "step", "step", 3, loss=10.9),
    _changed("training-step", "step", "step", 3, loss="nan"),
    _changed("training-step", "step", "step", 3, grad_norm=2.2),
    _other("training-step", "another loss with tensor parallelism", _tensor_parallel_loss),
)
