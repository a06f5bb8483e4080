"""Energy per token from what nvidia-smi prints."""

import pytest

from conformance.metrics.energy import MIN_SAMPLES, busy_watts, joules_per_token

HEADER = "timestamp, index, uuid, utilization.gpu [%], memory.used [MiB], power.draw [W], clocks.current.sm [MHz]"


def rows(watts, index=0, busy="98 %", count=MIN_SAMPLES):
    return [f"2026/11/23 21:19:55.000, {index}, GPU-1, {busy}, 70000 MiB, {watts} W, 1980 MHz"] * count


def test_mean_power_over_tokens_per_second():
    lines = [HEADER, *rows(600), *rows(700, index=1)]
    assert busy_watts(lines) == {"0": 600.0, "1": 700.0}
    assert joules_per_token({"a": lines}, 6500.0) == pytest.approx(0.1)


def test_what_no_device_draws_is_no_measurement():
    assert busy_watts([HEADER, *rows(100_000), *rows(100_001, index=1)]) == {"0": 100_000.0}


def test_two_nodes_are_averaged_over_their_devices():
    assert joules_per_token({"a": [HEADER, *rows(600)], "b": [HEADER, *rows(800)]}, 700.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [HEADER],
        ["timestamp, index, utilization.gpu [%]", *rows(600)],
        [HEADER, *rows(600, count=MIN_SAMPLES - 1)],
        [HEADER, *rows("[N/A]")],
        [HEADER, *rows(600, busy="3 %")],
        [HEADER, *rows(10**8)],
        [HEADER, *rows(600), *rows(600, index=1, count=3)],
        [HEADER, *("garbage" for _ in range(100))],
    ],
    ids=["empty", "no row", "no power", "too few", "not told", "idle", "absurd", "one device too few", "garbage"],
)
def test_what_tells_no_power_gives_no_figure(lines):
    assert joules_per_token({"a": lines}, 100.0) is None


def test_no_speed_gives_no_figure():
    assert joules_per_token({"a": [HEADER, *rows(600)]}, 0.0) is None
