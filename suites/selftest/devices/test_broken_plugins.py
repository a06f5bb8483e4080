"""Plugins of third parties that raise, hang, lie or lack members: each told in a sentence, none waited for."""

import subprocess
import sys

import pytest

from conformance import devices
from conformance.devices import count_devices, detect_device, known_devices, load_device
from conformance.devices.health import misunderstood
from conformance.errors import DeviceError

PLUGINS = """
import time
from conformance.devices.cpu import CpuDevice

class Sound(CpuDevice):
    name = "sound"
    visible_devices = "SOUND_VISIBLE_DEVICES"
    def count(self): return 2
    def identity(self, index): return {"vendor": "A", "model": "B", "uuid": f"u{index}", "driver": "1"}

class RaisingIdentity(Sound):
    name = "raising-identity"
    def identity(self, index): raise IndexError("smi printed nothing")
    def health(self, index): return {"link_width_max": 16}

class HangingIdentity(Sound):
    name = "hanging-identity"
    def identity(self, index): time.sleep(1000)

class RaisingCount(Sound):
    name = "raising-count"
    def count(self): raise RuntimeError("driver not loaded")

class HangingCount(Sound):
    name = "hanging-count"
    def count(self): time.sleep(1000)

class Bare:
    name = "bare"
    def count(self): return 1

class Misnamed(Sound):
    name = "Other"
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Installs some of the classes above as plugins, for this process and those that it starts."""
    (tmp_path / "broken_plugins.py").write_text(PLUGINS)
    metadata = tmp_path / "broken_plugins-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugins\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def install(**classes):
        rows = [f"{name.replace('_', '-')} = broken_plugins:{value}" for name, value in classes.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[conformance.devices]", *rows]) + "\n")

    return install


def device_check(*args):
    command = [sys.executable, "-m", "conformance.cli", "device-check", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_plugin_that_raises_is_told_aspect_by_aspect(plugins):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    plugins(raising_identity="RaisingIdentity")
    result = device_check("raising-identity")
    told = " ".join(result.stdout.split())
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert "missing identity IndexError: smi printed nothing" in told
    assert "missing visible devices IndexError: smi printed nothing" in told
    assert "wrong set count() is 2, torch.cuda.device_count() is 1" in told
    assert "wrong smi health(): link_width_max is 16, expected a string of digits" in told


@pytest.mark.slow
def test_a_plugin_that_hangs_is_ended_with_its_own_process(plugins, tmp_path):
    from conformance.preflight.contract_run import check_contract

    plugins(hanging_identity="HangingIdentity")
    rows = {row["aspect"]: row for row in check_contract(load_device("hanging-identity"), tmp_path / "probe", 15)}
    assert rows["count"]["state"] == "ok"
    assert "hung in 'contract: identity'" in rows["identity"]["detail"]
    assert "hung in 'contract: identity'" in rows["visible devices"]["detail"]


def test_a_list_goes_on_after_one_that_cannot_be_asked(plugins, monkeypatch):
    monkeypatch.setattr(devices, "COUNT_SECONDS", 0.5)
    plugins(raising_count="RaisingCount", hanging_count="HangingCount", bare="Bare", misnamed="Misnamed", sound="Sound")
    rows = {name: (where, count) for name, where, count in known_devices()}
    assert rows["sound"] == ("broken_plugins:Sound", 2)
    assert "RuntimeError: driver not loaded" in rows["raising-count"][0]
    assert "no answer within 0 s" in rows["hanging-count"][0]
    assert "has no backend and no visible_devices" in rows["bare"][0]
    assert "has the name 'Other', expected 'misnamed'" in rows["misnamed"][0]
    assert "cpu" in rows


def test_a_search_stops_at_one_that_cannot_be_asked(plugins):
    plugins(raising_count="RaisingCount")
    with pytest.raises(DeviceError, match="'raising-count' cannot count its devices: RuntimeError: driver not loaded"):
        detect_device()


def test_a_plugin_that_never_answers_does_not_hold_the_suite(plugins, monkeypatch):
    monkeypatch.setattr(devices, "COUNT_SECONDS", 0.5)
    plugins(hanging_count="HangingCount")
    with pytest.raises(DeviceError, match="no answer"):
        count_devices(load_device("hanging-count"))


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({"temperature": "31"}, "'temperature' is no name that a check reads"),
        ({"ecc_uncorrected": 0}, "ecc_uncorrected is 0, expected a string of digits"),
        ({"ecc_uncorrected": "nan"}, "ecc_uncorrected is 'nan'"),
        ({"throttle_thermal": "yes"}, "throttle_thermal is 'yes', expected one of the strings Not Active"),
        ({"processes": [4711]}, "processes is [4711]"),
        ({"processes": "4711, 4712"}, "expected ids separated by spaces"),
        ({"bus": "slot 3"}, "expected a PCI id"),
    ],
)
def test_health_that_no_check_would_understand(health, told):
    assert told in misunderstood(health)[0]


def test_sound_health_is_understood():
    sound = {"ecc_uncorrected": "0", "remapping_pending": "No", "throttle_thermal": "Not Active", "link_width": "16"}
    assert misunderstood({**sound, "bus": "00000000:3B:00.0", "processes": "1 2", "memory_used_mib": "4"}) == []
    assert misunderstood({"processes": ""}) == []
