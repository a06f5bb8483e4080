"""NVIDIA's telemetry: NVML's answers are made up, what reads them is the suite's own."""

import subprocess
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from conformance.devices import nvml
from conformance.devices.cuda import CudaDevice
from conformance.launch.samples import Sample, samples
from conformance.metrics.energy import MIN_SECONDS, busy_watts


def refuse(*arguments):
    raise nvml.pynvml.NVMLError(nvml.pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def driver(monkeypatch):
    """Two devices at work."""
    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda device: f"GPU-{device}",
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=99 - device),
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(used=5 << 30),
        "nvmlDeviceGetPowerUsage": lambda device: 650_120,
        "nvmlDeviceGetTemperature": lambda device, sensor: 61,
        "nvmlDeviceGetClockInfo": lambda device, clock: 1695 if clock == nvml.pynvml.NVML_CLOCK_SM else 3201,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda device: 4,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(nvml.pynvml, name, answer)


def printed(capsys, monkeypatch, seconds):
    """What is printed until a sleep too many, each a second long."""
    sleeps = []

    def sleep(interval):
        sleeps.append(timedelta(seconds=interval))
        if len(sleeps) >= seconds:
            raise KeyboardInterrupt

    start = datetime(2026, 1, 1, 23, 59, 30)
    monkeypatch.setattr(nvml, "datetime", SimpleNamespace(now=lambda: start + sum(sleeps, timedelta())))
    monkeypatch.setattr(nvml.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        nvml.main()
    return capsys.readouterr().out.splitlines()


def test_each_device_has_a_row_a_second_that_the_suite_reads(driver, capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, MIN_SECONDS)
    assert len(lines) == 1 + 2 * MIN_SECONDS
    assert lines[1].endswith(", 0, GPU-0, 99 %, 5120 MiB, 650.12 W, 61, 1695 MHz, 3201 MHz, 0x0000000000000004")
    told = [Sample(str(n), 99.0 - n, 1695, f"GPU-{n}", 650.12, 86_400 - 30) for n in (0, 1)]
    assert list(samples(lines))[:2] == told
    assert busy_watts(["\n".join(lines).encode()]) == {"0": pytest.approx(650.12), "1": pytest.approx(650.12)}


def test_a_question_that_the_driver_does_not_know_costs_that_cell_alone(driver, capsys, monkeypatch):
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetPowerUsage", refuse)
    lines = printed(capsys, monkeypatch, 1)
    assert ", 5120 MiB, [N/A], 61, " in lines[1]
    assert len(list(samples(lines))) == 2


def test_without_a_driver_the_file_says_why_and_has_no_samples(capsys, monkeypatch):
    def absent():
        raise nvml.pynvml.NVMLError(nvml.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(nvml.pynvml, "nvmlInit", absent)
    nvml.main()
    assert capsys.readouterr().out == "no telemetry: NVML does not answer (NVML Shared Library Not Found)\n"


def test_the_plugins_command_prints_what_the_driver_says_or_why_not():
    with subprocess.Popen(CudaDevice().telemetry_command(), stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        process.kill()
    assert first.startswith(("timestamp, index, uuid, utilization.gpu [%]", "no telemetry: NVML does not answer"))
