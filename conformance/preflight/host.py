"""What a node is like: limits, disk, memory, clock speed, RDMA ports, software, and the health of its devices."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from conformance.devices import Device, load_device
from conformance.errors import SourceError
from conformance.internevo.source import find_source
from conformance.preflight.probe import Journal
from conformance.preflight.worker import Task
from conformance.report.build import suite_digest

WRITE_BYTES = 256 << 20
REHEARSAL_WRITE_BYTES = 32 << 20
# Distributions that decide what is computed; every one of them must be the same on all nodes.
PACKAGES = (
    "torch", "InternEvo", "flash-attn", "numpy", "triton", "einops", "apex", "torch-npu", "torch-mlu", "torch-musa",
    "torch-gcu", "torch-sdaa", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "internevo-conformance",
)  # fmt: skip
UNLIMITED = -1
SYS = Path("/sys")


def measure(task: Task, journal: Journal) -> None:
    """Look at this node.

    Args:
        task: What is planned; ``devices`` says how many devices to look at.
        journal: Gets one record "host", and one record "identity" and one "health" for each device.
    """
    folder = Path(task.out).parent
    journal.phase("host: limits, memory, software")
    facts: dict[str, Any] = {"host": socket.gethostname(), "time": time.time(), **_limits(), **_memory(), **_cpu()}
    journal.phase("host: RDMA ports")
    facts["rdma_ports"] = _rdma_ports()
    facts["software"] = {**software(), **_trees(task)}
    journal.phase("host: writing to the run folder")
    facts |= _disk(folder, REHEARSAL_WRITE_BYTES if task.rehearsal else WRITE_BYTES)
    journal.record("host", **facts)
    device = load_device(task.device)
    for index in range(task.devices):
        journal.phase(f"host: device {index}")
        journal.record("identity", **{**device.identity(index), "index": index})
        journal.record("health", **{**_health(device, index), "index": index})


def _health(device: Device, index: int) -> dict[str, Any]:
    health: dict[str, Any] = dict(device.health(index))
    if bus := health.get("bus"):
        # nvidia-smi prints an eight-digit domain, sysfs a four-digit one.
        where = SYS / "bus/pci/devices" / str(bus).lower().removeprefix("0000")
        health["numa_node"] = _text(where / "numa_node")
        health["local_cpus"] = _text(where / "local_cpulist")
    return health


def software() -> dict[str, str]:
    """Versions that must be the same on every node.

    Returns:
        Versions by name.
    """
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _trees(task: Task) -> dict[str, str]:
    """Digests, shortened, of the suite and of InternEvo as they lie here: the same version may hold other files."""
    trees = {"suite tree": suite_digest()[:16]}
    with contextlib.suppress(SourceError):
        source = find_source(Path(task.internevo) if task.internevo else None)
        trees["InternEvo tree"] = (source.tree or "of no pin")[:16]
    return trees


def _limits() -> dict[str, Any]:
    def soft(which: int) -> int:
        value = resource.getrlimit(which)[0]
        return UNLIMITED if value == resource.RLIM_INFINITY else value

    return {"nofile": soft(resource.RLIMIT_NOFILE), "memlock_bytes": soft(resource.RLIMIT_MEMLOCK)}


def _memory() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    shm = Path("/dev/shm")
    return {
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "shm_free_bytes": shutil.disk_usage(shm).free if shm.is_dir() else None,
    }


def _cpu() -> dict[str, Any]:
    system = SYS / "devices/system"
    scaling = system / "cpu/cpu0/cpufreq"
    # One "model name" and one "physical id" for each CPU; a virtual machine may have neither.
    lines = [line.partition(":") for line in _text(Path("/proc/cpuinfo")).splitlines()]
    told = {name.strip(): [v.strip() for n, _, v in lines if n == name] for name in {n for n, _, _ in lines}}
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        "processor": next(iter(told.get("model name", ())), platform.processor()),
        "processors": len(set(told.get("physical id", ()))),
        "cores": psutil.cpu_count(logical=False),
        "system": _operating_system(),
        "cpus": os.cpu_count(),
        "cpus_allowed": allowed,
        "numa_nodes": len(list((system / "node").glob("node[0-9]*"))),
        "governor": _text(scaling / "scaling_governor"),
        "frequency_max_khz": _text(scaling / "cpuinfo_max_freq"),
        "frequency_limit_khz": _text(scaling / "scaling_max_freq"),
        "load": os.getloadavg()[0],
    }


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # no such file, or not on Linux
        return platform.system()


def _rdma_ports() -> list[dict[str, str]]:
    ports = sorted((SYS / "class/infiniband").glob("*/ports/*"))
    return [
        {
            "port": f"{port.parts[-3]}:{port.name}",
            "state": _text(port / "state"),
            "physical": _text(port / "phys_state"),
            "rate": _text(port / "rate"),
        }
        for port in ports
    ]


def _disk(folder: Path, size: int) -> dict[str, Any]:
    path = folder / f"write-test-{os.getpid()}"
    # Random, so that a file system which compresses writes it all.
    block = os.urandom(4 << 20)
    began = time.perf_counter()
    try:
        with path.open("wb") as stream:
            for _ in range(size // len(block)):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        speed: float | None = size / (time.perf_counter() - began)
        problem = ""
    except OSError as error:
        speed, problem = None, str(error.strerror)
    finally:
        path.unlink(missing_ok=True)
    return {"disk_free_bytes": shutil.disk_usage(folder).free, "disk_bytes_per_s": speed, "disk_problem": problem}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
