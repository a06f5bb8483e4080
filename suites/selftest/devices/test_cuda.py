"""The NVIDIA plugin against an nvidia-smi that is made up: parsing, visibility, and faults all the way to findings."""

from __future__ import annotations

import json
import sys

import pytest

from conformance.checks.finding import Result
from conformance.checks.preflight import Preflight, judge
from conformance.devices.cuda import HEALTH_FIELDS, IDENTITY_FIELDS, CudaDevice
from conformance.devices.health import misunderstood
from conformance.preflight.driver import Ranks, run_task
from conformance.preflight.worker import Task

GPU = {
    "name": "NVIDIA H200",
    "serial": "[N/A]",
    "driver_version": "580.159.04",
    "vbios_version": "96.00.CF.00.05",
    "memory.total": "143771",
    "ecc.errors.uncorrected.volatile.total": "0",
    "remapped_rows.pending": "No",
    "remapped_rows.failure": "No",
    "clocks_throttle_reasons.hw_thermal_slowdown": "Not Active",
    "clocks_throttle_reasons.hw_power_brake_slowdown": "Not Active",
    "clocks_throttle_reasons.sw_thermal_slowdown": "Not Active",
    "pcie.link.width.current": "16",
    "pcie.link.width.max": "16",
    "pcie.link.gen.current": "1",
    "pcie.link.gen.max": "5",
    "pci.bus_id": "00000000:3B:00.0",
    "memory.used": "4",
    "temperature.gpu": "31",
    "clocks.sm": "345",
    "clocks.max.sm": "1980",
}
SMI = """#!{python}
import json, sys
state = json.load(open({state!r}))
query, fields = sys.argv[1].split("=")
fields = fields.split(",")
if query == "--query-compute-apps":
    rows = [[str(app[field]) for field in fields] for app in state["apps"]]
elif any(field not in gpu for gpu in state["gpus"] for field in fields):
    sys.exit(2)
else:
    rows = [[gpu[field] for field in fields] for gpu in state["gpus"]]
print("\\n".join(", ".join(row) for row in rows))
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Write what nvidia-smi knows; two good devices to begin with."""
    state = tmp_path / "state.json"
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI.format(python=sys.executable, state=str(state)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(*changes, apps=()):
        gpus = [{**GPU, "index": str(i), "uuid": f"GPU-{i}"} for i in range(2)]
        for gpu, change in zip(gpus, changes, strict=False):
            gpu.update(change)
        state.write_text(json.dumps({"gpus": gpus, "apps": list(apps)}))

    write()
    return write


def test_identity_leaves_out_what_is_not_told(smi):
    assert CudaDevice().count() == 2
    identity = CudaDevice().identity(1)
    assert identity["uuid"] == "GPU-1"
    assert identity["memory"] == "143771 MiB"
    assert "serial" not in identity


def test_health_has_every_figure(smi):
    smi(apps=[{"pid": 4711, "gpu_uuid": "GPU-1"}])
    health = CudaDevice().health(0)
    assert set(health) == {*HEALTH_FIELDS, "processes"}
    assert health["processes"] == ""
    assert misunderstood(health) == []
    assert CudaDevice().health(1)["processes"] == "4711"


def test_a_field_that_the_driver_does_not_know_costs_that_field_alone(smi, tmp_path):
    document = json.loads((tmp_path / "state.json").read_text())
    for gpu in document["gpus"]:
        del gpu["remapped_rows.pending"]
    (tmp_path / "state.json").write_text(json.dumps(document))
    health = CudaDevice().health(1)
    assert "remapping_pending" not in health
    assert health["link_width"] == "16"


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [("1", ["GPU-1"]), ("1,0", ["GPU-1", "GPU-0"]), ("GPU-1", ["GPU-1"]), ("", []), ("7", [])],
)
def test_visible_devices_choose_and_order(smi, monkeypatch, visible, uuids):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device = CudaDevice()
    assert [device.identity(index)["uuid"] for index in range(device.count())] == uuids
    if not uuids:
        assert device.absence() == "of 2 devices that nvidia-smi lists, CUDA_VISIBLE_DEVICES shows none"


def test_a_machine_without_the_tool_has_no_devices(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert CudaDevice().count() == 0
    assert CudaDevice().health(0) == {}
    assert CudaDevice().identity(0) == {"vendor": "NVIDIA"}
    assert CudaDevice().absence() == "there is no nvidia-smi in PATH"
    assert "uuid" in IDENTITY_FIELDS


def findings(folder):
    task = Task("host", "cuda", str(folder / "host"), 1, True, {}, 0, 1, 1, 0.0, devices=2)
    processes = [one.to_json() for one in run_task(task, Ranks(1), 60)]
    setup = {"device": "cuda", "backend": "nccl", "nodes": 1, "ranks": 2, "rehearsal": True}
    return {finding.check: finding for finding in judge(Preflight(setup, {"host": processes}))}


def test_sound_devices_pass_the_checks_on_their_health(smi, tmp_path):
    found = findings(tmp_path)
    for check in ("device-identity", "device-health", "device-busy", "device-bus"):
        assert found[check].result is Result.PASS, found[check]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"driver_version": "570.86"}, "device-identity"),
        ({"name": "NVIDIA H100"}, "device-identity"),
        ({"ecc.errors.uncorrected.volatile.total": "3"}, "device-health"),
        ({"remapped_rows.pending": "Yes"}, "device-health"),
        ({"clocks_throttle_reasons.hw_thermal_slowdown": "Active"}, "device-health"),
        ({"pcie.link.width.current": "8"}, "device-bus"),
    ],
)
def test_a_fault_that_the_tool_tells_becomes_a_failure(smi, tmp_path, change, check):
    smi(change)
    assert findings(tmp_path)[check].result is Result.FAIL


def test_a_busy_device_is_named_with_its_process(smi, tmp_path):
    smi(apps=[{"pid": 4711, "gpu_uuid": "GPU-1"}])
    busy = findings(tmp_path)["device-busy"]
    assert busy.result is Result.FAIL
    assert "device 1 of node 0 is used by process 4711" in busy.message
