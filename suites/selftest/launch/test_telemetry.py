"""Telemetry is a process of its own; it keeps every sample of a performance run, and a day's in bounded space."""

import itertools
import os
import stat
import subprocess
import sys
import time

import pytest

from conformance.checks.finding import Result
from conformance.checks.supervision import even
from conformance.launch import telemetry
from conformance.launch.telemetry import FULL_RATE_SECONDS, THIN_SECONDS, sampled, thinned
from conformance.metrics.energy import busy_watts

HEADER = "timestamp, index, utilization.gpu [%]"


def rows(seconds, devices=2, jitter=0.0):
    yield 0.0, HEADER
    for second in range(seconds):
        for index in range(devices):
            yield second + jitter * (second % 3), f"2026/01/01 {second}, {index}, 99 %"


def test_every_sample_of_six_hours_is_kept():
    hours = list(rows(int(FULL_RATE_SECONDS) + 1))
    assert list(thinned(hours)) == [line for _, line in hours]


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_after_that_one_a_minute_of_each_device_is_kept_as_it_was_printed(jitter):
    day = list(rows(24 * 3600, jitter=jitter))
    kept = list(thinned(day))
    full = 1 + 2 * (int(FULL_RATE_SECONDS) + 1)
    assert kept[:full] == [line for _, line in day[:full]]
    assert set(kept) <= {line for _, line in day}  # nothing is averaged
    late = kept[full:]
    minutes = (24 * 3600 - FULL_RATE_SECONDS) / THIN_SECONDS
    assert len(late) == pytest.approx(2 * minutes, rel=0.02)
    for index in "01":
        seconds = [int(line.split()[1].rstrip(",")) for line in late if line.split(", ")[1] == index]
        gaps = {after - before for before, after in itertools.pairwise(seconds)}
        assert gaps <= {59, 60, 61}


def test_a_day_of_eight_devices_stays_small():
    line = "2026/01/01 00:00:00.000, 0, GPU-4ab8b9a7-3c4c-9d6b-2b4e-bc1f1f1f1f1f, 100 %, 71234 MiB, 650.12 W, 65, "
    line += "1755 MHz, 2619 MHz, 0x0000000000000004"
    day = ((second, line.replace(", 0,", f", {index},")) for second in range(24 * 3600) for index in range(8))
    assert sum(len(kept) + 1 for kept in thinned(day)) < 30e6


def test_a_tool_that_tells_no_index_keeps_its_rows_of_a_performance_run():
    assert list(thinned([(0.0, "power"), (1.0, "1 W"), (2.0, "2 W")])) == ["power", "1 W", "2 W"]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A vendor's tool that prints a row every 0.1 s, deaf to SIGTERM."""
    path = tmp_path / "vendor-smi"
    path.write_text(
        f"#!{sys.executable}\nimport signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"print({HEADER!r}, flush=True)\n"
        "while True:\n    print('now, 0, 99 %', flush=True)\n    time.sleep(0.1)\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(telemetry, "_tool", lambda device: [str(path)])
    (tmp_path / "environment").mkdir()
    return path


def test_a_vendors_tool_is_sampled_and_gone_afterwards(tool, tmp_path, left_over):
    file = tmp_path / "environment/telemetry-node3.csv"
    with sampled("vendor", tmp_path, 3):
        end = time.monotonic() + 30
        while file.read_text().count("99 %") < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert left_over(tmp_path) != []
    assert file.read_text().startswith(HEADER + "\nnow, 0, 99 %\n")
    # The kernel ends a killed orphan in its own time.
    end = time.monotonic() + 30
    while left_over(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    assert left_over(tmp_path) == []


def test_a_device_without_a_tool_leaves_word_of_it_that_no_check_takes_for_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, "_tool", lambda device: None)
    (tmp_path / "environment").mkdir()
    with sampled("vendor", tmp_path, 3):
        pass
    lines = (tmp_path / "environment/telemetry-node3.csv").read_text().splitlines()
    assert lines == ["no telemetry: the device plugin vendor names no tool that prints it"]
    assert even({"environment/telemetry-node3.csv": [lines[0].encode()]}).result is Result.SKIP
    assert busy_watts([lines[0].encode()]) == {}


def test_a_sampler_whose_suite_is_gone_ends_by_itself(tool):
    command = [sys.executable, "-m", "conformance.launch.telemetry", str(os.getpid() + 1), str(tool)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=30)
