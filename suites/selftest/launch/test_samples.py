"""A row of telemetry is what a tool printed, and nothing where it printed something else."""

import pytest

from conformance.launch.samples import UNTOLD, Interval, Sample, of_run, samples, uuids_of

HEADER = "timestamp, index, uuid, utilization.gpu [%], power.draw [W], clocks.current.sm [MHz]"


def one(**cells):
    told = {"time": "2026/01/01 00:01:07.345", "busy": "50 %", "watts": "650.12 W", "clock": "1755 MHz", **cells}
    line = "{time}, 0, GPU-0, {busy}, {watts}, {clock}".format(**told)
    (sample,) = samples([HEADER, line, line[:10]])
    return sample


def test_a_row_is_read():
    assert one() == Sample("0", 50.0, 1755, "GPU-0", 650.12, 67)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ({"busy": "[N/A]"}, {"busy_percent": UNTOLD}),
        ({"clock": "[N/A]"}, {"clock_mhz": UNTOLD}),
        ({"clock": "100000 MHz"}, {"clock_mhz": 100_000}),
        ({"clock": "100001 MHz"}, {"clock_mhz": UNTOLD}),
        ({"watts": "100000.0 W"}, {"watts": 100_000.0}),
        ({"watts": "100000.1 W"}, {"watts": UNTOLD}),
        ({"time": "2026-01-01T23:59:59+00:00"}, {"second": 86_399}),
        ({"time": "2026/01/01 00:00:00"}, {"second": 0}),
        ({"time": "2026/01/01 00:00:0"}, {"second": UNTOLD}),
        ({"time": "2026/01/01 0::00:00"}, {"second": UNTOLD}),
        ({"time": "now"}, {"second": UNTOLD}),
    ],
)
def test_what_a_cell_does_not_tell_is_untold(cell, told):
    sample = one(**cell)
    assert {name: getattr(sample, name) for name in told} == told
    assert UNTOLD < 0


@pytest.mark.parametrize(
    "header", ["index, clocks.sm [MHz]", "utilization.gpu [%], clocks.sm [MHz]", "", "no telemetry"]
)
def test_a_tool_that_does_not_tell_device_and_load_has_no_rows(header):
    assert list(samples([header, "1, 2"])) == []


def test_columns_that_are_not_there_are_untold():
    assert list(samples(["index, utilization.gpu [%]", "3, 99 %"])) == [Sample("3", 99.0, UNTOLD)]


@pytest.mark.parametrize(
    ("seconds", "stands"),
    [
        ((0, 1, 3, 3), [1, 1, 2, 0]),
        ((86_399, 0, 2), [1, 1, 2]),
        ((0, 60, 121, 3600), [1, 60, 60, 60]),
        ((3600, 3599, 3601), [1, 0, 2]),
        ((0, 43_200, 0), [1, 0, 0]),  # half a day is as far back as it is ahead
        ((0, UNTOLD, 5, 6), [1, 1, 1, 1]),
    ],
)
def test_a_row_stands_for_the_time_since_the_one_before_of_the_first_device(seconds, stands):
    interval = Interval()
    assert [interval.of(Sample("a", 99.0, 1755, second=second)) for second in seconds] == stands
    interval = Interval()
    rows = [Sample(device, 99.0, 1755, second=second) for second in seconds for device in ("a", "b")]
    assert [interval.of(row) for row in rows][1::2] == stands


@pytest.mark.parametrize(
    ("devices", "known"),
    [
        ([{"uuid": "GPU-0"}, {"uuid": "GPU-1"}], {"GPU-0", "GPU-1"}),
        ([{"uuid": "GPU-0"}, {"uuid": "GPU-0"}], {"GPU-0"}),
        ([{"uuid": "GPU-0"}, {}], set()),
        ([{"uuid": "GPU-0"}, {"uuid": ""}], set()),
        ([{"uuid": "GPU-0"}, {"uuid": ["GPU-1"]}], set()),
        ([{"uuid": "GPU-0"}, None], set()),
        ([], set()),
    ],
)
def test_the_runs_devices_are_known_where_each_tells_its_uuid(devices, known):
    assert uuids_of(devices) == known


def test_the_runs_devices_are_chosen_in_their_order_and_all_where_none_is_known():
    shown = {2: "GPU-2", 0: "GPU-0", 1: "GPU-1"}
    assert of_run(shown, {"GPU-0", "GPU-2"}) == [2, 0]
    assert of_run(shown, {"PCI-0"}) == of_run(shown, ()) == [2, 0, 1]
