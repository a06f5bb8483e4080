"""A rank that the others wait for is named: from looks at threads, from telemetry, from InternEvo's own words."""

import json

import pytest

from conformance.launch.detect import Detector, Limits, NodeView
from conformance.launch.slow import lower

WINDOW = 10
HEADER = "timestamp, index, uuid, utilization.gpu [%], clocks.current.sm [MHz]\n"


def line(step):
    return f"x -- tflops=1.0 step={step} loss=2.5 tgs (tokens/gpu/second)=100.5 x=1 \n".encode()


@pytest.fixture
def detector():
    """Two nodes of two ranks, some steps in."""
    made = Detector(2, 100, Limits(slow_samples=WINDOW), started=0.0)
    for step in range(3):
        made.feed("logs/node0/rank0.log", line(step), now=float(step))
    return made


def watch(detector, looks, waiting, seconds=1.0):
    """Notices of so many looks at nodes whose ranks wait where ``waiting(rank, look)`` says so."""
    found = []
    for look in range(looks):
        views = {}
        for node in (0, 1):
            ranks = {rank: waiting(rank, look) for rank in (2 * node, 2 * node + 1)}
            parts = (tuple(r for r, waits in ranks.items() if waits is side) for side in (True, False))
            views[node] = NodeView(f"host{'AB'[node]}", 0.0, None, 1 << 40, (), *parts)
        found += detector.slow(10.0 + look * seconds, views)
    return found


def test_a_rank_that_never_waits_while_the_others_do(detector):
    assert watch(detector, WINDOW - 1, lambda rank, look: rank != 3) == []  # not before the window is full
    (notice,) = watch(detector, 3 * WINDOW, lambda rank, look: rank != 3)  # and once
    assert (notice.kind, notice.rank, notice.node, notice.host, notice.last_step) == ("slow-rank", 3, 1, "hostB", 2)
    assert notice.message == (
        "Rank 3 on hostB (node 1) keeps the others waiting: it waited 0% of the time, they 100%; last good step: 2."
    )


@pytest.mark.parametrize(
    "waiting",
    [
        lambda rank, look: False,  # ranks that spin while they wait look alike
        lambda rank, look: True,  # and so do ranks that all wait for their data
        lambda rank, look: (look + rank) % 2 == 0,
        lambda rank, look: (look + rank) % 5 == 0 and rank != 3,  # a little less than the others
    ],
)
def test_ranks_that_wait_alike(detector, waiting):
    assert watch(detector, 3 * WINDOW, waiting) == []


def test_looks_that_come_too_soon_are_not_counted_twice(detector):
    assert watch(detector, WINDOW, lambda rank, look: rank != 3, seconds=0.25) == []


def test_the_start_is_not_looked_at():
    detector = Detector(2, 100, Limits(slow_samples=WINDOW), started=0.0)
    assert watch(detector, 3 * WINDOW, lambda rank, look: rank != 3) == []
    detector.feed("logs/node0/rank0.log", line(99), now=3.0)
    assert watch(detector, 3 * WINDOW, lambda rank, look: rank != 3) == []


def telemetry(detector, node, *devices, rows=WINDOW):
    detector.feed(f"environment/telemetry-node{node}.csv", HEADER.encode(), now=1.0)
    text = "".join(
        f"t, {index}, GPU-{node}{index}, {percent} %, {clock} MHz\n"
        for _ in range(rows)
        for index, (percent, clock) in enumerate(devices)
    ).encode()
    for place in range(0, len(text), 7):  # in any pieces
        detector.feed(f"environment/telemetry-node{node}.csv", text[place : place + 7], now=1.0)


def notices(detector):
    nodes = {node: NodeView(f"host{node}", 0.0, None, 1 << 40) for node in (0, 1)}
    return detector.slow(100.0, nodes)


def test_a_clock_below_the_others(detector):
    record = json.dumps({"device": {"uuid": "GPU-11"}}).encode()
    detector.feed("environment/rank3.json", record[:9], now=1.0)
    detector.feed("environment/rank3.json", record[9:], now=1.0)
    telemetry(detector, 0, (99, 1755), (99, 1740))
    telemetry(detector, 1, (99, 1755), (99, 1200))
    (notice,) = notices(detector)
    assert (notice.kind, notice.rank, notice.host) == ("slow-rank", 3, "host1")
    assert (
        "Rank 3, device 1 on host1 (node 1) holds a clock of 1200 MHz while busy, the others 1755 MHz" in notice.message
    )


def test_less_load_than_the_others(detector):
    telemetry(detector, 0, (99, 1755), (99, 1755))
    telemetry(detector, 1, (60, 1755), (99, 1755))
    (notice,) = notices(detector)
    assert (notice.rank, notice.node) == (None, 1)  # no record tells whose device it is: none is guessed
    assert "Device 0 on host1 (node 1) is busy 60% of the time, the others, which wait for it, 99%" in notice.message


@pytest.mark.parametrize(
    "devices",
    [
        [(99, 1755), (99, 1700)],
        [(99, 1755), (80, 1755)],
        [(99, 1755), (0, 210)],  # a device that is not the run's
        [(30, 1755), (30, 210)],  # idle devices show their idle clock
    ],
)
def test_devices_that_run_alike(detector, devices):
    telemetry(detector, 0, *devices)
    assert notices(detector) == []


def told(detector, *uuids):
    for rank, uuid in enumerate(uuids):
        record = json.dumps({"device": {"uuid": uuid}}).encode()
        detector.feed(f"environment/rank{rank}.json", record, now=1.0)


@pytest.mark.parametrize(("foreign", "seen"), [((99, 1200), "clock"), ((60, 1755), "busy")])
def test_a_device_of_another_job_is_not_the_runs(detector, foreign, seen):
    told(detector, "GPU-00", "GPU-01", "GPU-10")
    telemetry(detector, 0, (99, 1755), (99, 1755), foreign)
    telemetry(detector, 1, (99, 1755), (99, 1755), foreign)
    # Of node 1 a rank has not told its device: there the third could be the run's.
    (notice,) = notices(detector)
    assert notice.node == 1
    assert seen in notice.message


def test_devices_that_the_tool_names_otherwise_than_the_ranks_are_all_watched(detector):
    told(detector, "PCI-0", "PCI-1", "PCI-2", "PCI-3")
    telemetry(detector, 0, (99, 1755), (99, 1200))
    (notice,) = notices(detector)
    assert "Device 1 on host0" in notice.message


def test_a_row_that_does_not_tell_load_and_clock_is_no_sample(detector):
    telemetry(detector, 0, (99, 1755), ("[N/A]", 1200), (99, "[N/A]"))
    assert notices(detector) == []


def test_a_moment_is_not_enough(detector):
    telemetry(detector, 0, (99, 1755), (99, 300), rows=WINDOW // 2 - 1)
    assert notices(detector) == []


DIAGNOSES = [
    (b"Rank 3 is slower than avg on fwd-bwd, Hostname h, its time 3.20, avg 2.50, CPU temp 1", "fwd-bwd: 3.20 s, aver"),
    (b"Rank 3 GPU is slower than avg, Hostname h, tflops 300.00, avg 450.00, CPU temp 1", "its device: 300.00 TFLOPS"),
]


@pytest.mark.parametrize(("words", "told"), DIAGNOSES)
def test_internevos_own_diagnosis(detector, words, told):
    text = b"2026-01-01 00:00:00,000\tWARNING gputest.py:154 in timer_diagnosis -- " + words + b"\n"
    detector.feed("logs/node1/rank3.log", text, now=3.0)
    detector.feed("logs/node1/rank3.log", text, now=3.0)
    (notice,) = notices(detector)
    assert (notice.kind, notice.rank, notice.host) == ("slow-rank", 3, "host1")
    assert told in notice.message


def test_a_rank_slower_than_its_own_past_is_not_slower_than_the_others(detector):
    words = DIAGNOSES[0][0].replace(b"than avg", b"than hist avg").replace(b", avg", b", hist_avg")
    detector.feed("logs/node1/rank3.log", words + b"\n", now=3.0)
    assert notices(detector) == []


def test_several_are_named_lowest_first():
    values = {"a": 1.0, "b": 2.0, "c": 10.0, "d": 10.0, "e": 10.0}
    assert [key for key, *_ in lower(values, lambda own, others: own < 0.9 * others)] == ["a", "b"]
    assert list(lower({"a": 1.0}, lambda own, others: True)) == []
