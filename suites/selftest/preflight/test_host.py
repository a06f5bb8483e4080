"""What is read of a node: a system that shows a fault where the kernel would show it turns the right check red."""

from __future__ import annotations

import resource
import shutil
from types import SimpleNamespace

import psutil
import pytest

from conformance.checks.finding import Result
from conformance.checks.preflight import Preflight, judge
from conformance.preflight import host
from conformance.preflight.probe import Journal, told_in
from conformance.preflight.worker import Task

HOST = (
    "device-identity", "device-health", "device-busy", "device-bus", "host-limits", "host-shm", "host-disk",
    "host-memory", "host-numa", "host-frequency", "host-rdma", "host-software",
)  # fmt: skip
DEVICE = SimpleNamespace(
    # A plugin may tell more than is asked, also under the record's own names.
    identity=lambda index: {"vendor": "Abacus", "model": "A1", "uuid": f"AB-{index}", "index": "7", "kind": "A"},
    health=lambda index: {
        "bus": f"00000000:{index + 1}7:00.0", "ecc_uncorrected": "0", "processes": "", "link_width": "16",
        "link_width_max": "16",
    },
)  # fmt: skip
SOUND = {
    "class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
    "class/infiniband/mlx5_0/ports/1/phys_state": "5: LinkUp",
    "class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
    "class/infiniband/mlx5_1/ports/1/state": "4: ACTIVE",
    "class/infiniband/mlx5_1/ports/1/phys_state": "5: LinkUp",
    "class/infiniband/mlx5_1/ports/1/rate": "400 Gb/sec (4X NDR)",
    "devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3500000",
    "devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "3500000",
    "devices/system/node/node0/cpulist": "0-63",
    "devices/system/node/node1/cpulist": "64-127",
    "bus/pci/devices/0000:17:00.0/numa_node": "0",
    "bus/pci/devices/0000:17:00.0/local_cpulist": "0-63",
    "bus/pci/devices/0000:27:00.0/numa_node": "0",
    "bus/pci/devices/0000:27:00.0/local_cpulist": "0-63",
}
LIMITS = {resource.RLIMIT_NOFILE: 65536, resource.RLIMIT_MEMLOCK: resource.RLIM_INFINITY}


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Look at a node of two devices with this in /sys and these limits and sizes, and judge what was seen."""
    monkeypatch.setattr(host, "SYS", tmp_path / "sys")
    monkeypatch.setattr(host, "load_device", lambda name: DEVICE)
    monkeypatch.setattr(host, "_trees", lambda task: {})

    def findings(sys=None, limits=None, memory=1 << 40, disk=1 << 40, shm=64 << 30):
        for name, text in {**SOUND, **(sys or {})}.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        soft = {**LIMITS, **(limits or {})}
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft[which], soft[which]))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1 << 40, available=memory))
        free = lambda path: SimpleNamespace(free=shm if str(path) == "/dev/shm" else disk)  # noqa: E731
        monkeypatch.setattr(shutil, "disk_usage", free)
        (tmp_path / "run").mkdir(exist_ok=True)
        task = Task("host", "abacus", str(tmp_path / "run/host"), 0, True, {}, 0, 1, 1, 0.0, devices=2)
        host.measure(task, Journal(tmp_path / "journal"))
        records = [line for line in told_in(tmp_path / "journal") if "kind" in line]
        process = {"rank": 0, "outcome": "done", "phase": "done", "seconds": 1.0, "output": "", "records": records}
        setup = {"device": "abacus", "backend": "accl", "nodes": 1, "ranks": 2, "rehearsal": False}
        return {f.check: f for f in judge(Preflight(setup, {"host": [process]})) if f.check in HOST}

    return findings


def test_a_sound_node_passes(look):
    found = look()
    assert {check: f.message for check, f in found.items() if f.result is not Result.PASS} == {}
    assert found["host-rdma"].message == "2 active ports, 400 Gb/sec (4X NDR)."


@pytest.mark.parametrize(
    ("check", "words", "fault"),
    [
        ("host-rdma", "mlx5_1:1 is 1: DOWN", {"sys": {"class/infiniband/mlx5_1/ports/1/state": "1: DOWN"}}),
        ("host-rdma", "different rates", {"sys": {"class/infiniband/mlx5_1/ports/1/rate": "200 Gb/sec (4X HDR)"}}),
        ("host-frequency", "powersave", {"sys": {"devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave"}}),
        ("host-frequency", "57%", {"sys": {"devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2000000"}}),
        ("host-numa", "device 1", {"sys": {"bus/pci/devices/0000:27:00.0/local_cpulist": "4096-4127"}}),
        ("host-limits", "1024 open files", {"limits": {resource.RLIMIT_NOFILE: 1024}}),
        ("host-limits", "65536 bytes", {"limits": {resource.RLIMIT_MEMLOCK: 65536}}),
        ("host-memory", "1 GiB", {"memory": 1 << 30}),
        ("host-disk", "0.5 GiB", {"disk": 1 << 29}),
        ("host-shm", "0.0625 GiB", {"shm": 64 << 20}),
    ],
)
def test_a_fault_of_a_node_turns_its_own_check_red(look, check, words, fault):
    found = look(**fault)
    assert {name for name, f in found.items() if f.result is not Result.PASS} == {check}
    assert found[check].result is Result.FAIL
    assert words in found[check].message


def test_a_run_folder_that_takes_no_more_is_told(small_disk):
    seen = host._disk(small_disk(1 << 20), 8 << 20)
    assert (seen["disk_problem"], seen["disk_bytes_per_s"]) == ("No space left on device", None)
