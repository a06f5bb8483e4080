"""Energy per token from what nvidia-smi prints."""

import tracemalloc

import pytest

from conformance.launch.samples import MAX_DEVICES
from conformance.metrics import energy
from conformance.metrics.energy import MIN_SECONDS

HEADER = "timestamp, index, uuid, utilization.gpu [%], memory.used [MiB], power.draw [W], clocks.current.sm [MHz]"


def rows(watts, index=0, busy="98 %", count=MIN_SECONDS, time="now"):
    """Rows that tell no time stand for a second each."""
    return [f"{time}, {index}, GPU-{index}, {busy}, 70000 MiB, {watts} W, 1980 MHz"] * count


def pieces(lines):
    data = "\n".join(lines).encode()
    return [data[at : at + 1000] for at in range(0, len(data), 1000)]


def busy_watts(lines, uuids=()):
    return energy.busy_watts(pieces(lines), uuids)


def joules_per_token(telemetry, tgs, uuids=()):
    return energy.joules_per_token({name: pieces(lines) for name, lines in telemetry.items()}, tgs, uuids)


def test_mean_power_over_tokens_per_second():
    lines = [HEADER, *rows(600), *rows(700, index=1)]
    assert busy_watts(lines) == {"0": 600.0, "1": 700.0}
    assert joules_per_token({"a": lines}, 6500.0) == pytest.approx(0.1)


def test_a_minute_at_half_load_is_enough():
    assert busy_watts([HEADER, *rows(1, busy="50 %", count=60), *rows(0, index=1)]) == {"0": 1.0, "1": 0.0}
    assert joules_per_token({"a": [HEADER, *rows(1)]}, 0.5) == pytest.approx(2.0)


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
        [HEADER, *rows(600, count=MIN_SECONDS - 1)],
        [HEADER, *rows("[N/A]")],
        [HEADER, *rows(600, busy="3 %")],
        [HEADER, *rows(10**8)],
        [HEADER, *rows(600), *rows(600, index=1, count=3)],
        [HEADER, *("garbage" for _ in range(100))],
        [HEADER, *rows(600, count=61, time="2026/11/23 21:19:55.000")],
        [HEADER, *(line for n in range(MAX_DEVICES + 1) for line in rows(600, index=n))],
    ],
    ids=[
        "empty",
        "no row",
        "no power",
        "too few",
        "not told",
        "idle",
        "absurd",
        "one device too few",
        "garbage",
        "at one moment",
        "no node",
    ],
)
def test_what_tells_no_power_gives_no_figure(lines):
    assert joules_per_token({"a": lines}, 100.0) is None


def test_no_speed_gives_no_figure():
    assert joules_per_token({"a": [HEADER, *rows(600)]}, 0.0) is None


def test_power_over_days_counts_by_days():
    lines = [
        f"2026/11/23 {s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}.000, 0, GPU-0, 98 %, 70000 MiB, {watts} W, 1980 MHz"
        for watts, seconds in ((700, range(3600)), (350, range(3659, 4 * 3600, 60)))
        for s in seconds
    ]
    assert busy_watts([HEADER, *lines]) == {"0": pytest.approx((700 + 3 * 350) / 4)}


def test_devices_of_another_job_are_left_out():
    lines = [HEADER, *rows(700), *rows(700, index=1), *rows(250, index=2)]
    assert joules_per_token({"a": lines}, 1000.0, {"GPU-0", "GPU-1"}) == pytest.approx(0.7)
    assert joules_per_token({"a": lines}, 1000.0) == pytest.approx(0.55)


def test_a_row_without_end_takes_no_memory():
    lines = iter([HEADER.encode() + b"\n", *([b"9" * (1 << 20)] * 64), b"\n", "\n".join(rows(600)).encode()])
    tracemalloc.start()
    try:
        assert energy.busy_watts(lines) == {"0": 600.0}
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
