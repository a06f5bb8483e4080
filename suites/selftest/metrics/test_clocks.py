"""Telemetry of any form is counted to what reading it row by row gives, and each row by the time that it stands for."""

import io
import statistics
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conformance.errors import EvidenceError
from conformance.launch.samples import MAX_DEVICES, samples
from conformance.launch.slow import BUSY_PERCENT
from conformance.metrics import clocks
from conformance.metrics.clocks import MAX_CLOCKS, busy_clocks, median_clock

HEADER = "timestamp, index, uuid, utilization.gpu [%], power.draw [W], clocks.current.sm [MHz]\n"
# What tells no time stands for a second.
ROW = "now, {}, GPU-1, {}, 650.12 W, {}\n"

relaxed = settings(deadline=None, max_examples=100)


def row_by_row(data):
    found, first, last, span = {}, None, None, 1
    for sample in samples(io.TextIOWrapper(io.BytesIO(data), errors="replace")):
        if first in (None, sample.device):
            now = sample.second if sample.second >= 0 else None
            span = 1
            if None not in (now, last):
                span = max(0, min(60, (now - last + 43_200) % 86_400 - 43_200))
            first, last = sample.device, now
        if sample.busy_percent >= BUSY_PERCENT and sample.clock_mhz >= 0 and span:
            found.setdefault(sample.device, Counter())[sample.clock_mhz] += span
    return found


def pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a_busy_device_is_counted_and_an_idle_one_is_not():
    rows = [ROW.format(n % 8, "99 %" if n % 3 else "49.9 %", f"{1700 + n % 5} MHz") for n in range(4000)]
    data = (HEADER + "".join(rows)).encode()
    found = busy_clocks(pieces(data, 10_000))
    assert sum(sum(count.values()) for count in found.values()) == 2666
    assert found == row_by_row(data)
    assert set(found) == set("01234567")


def test_rows_of_one_form_are_not_read_one_by_one(monkeypatch):
    monkeypatch.setattr(clocks._Counting, "_add_rows", lambda self, block: pytest.fail("read row by row"))
    data = (HEADER + "".join(ROW.format(n % 8, "100 %", "1755 MHz") for n in range(1000))).encode()
    assert sum(sum(count.values()) for count in busy_clocks(pieces(data, 1000)).values()) == 1000


@pytest.mark.parametrize(
    "names", [("9", "10", "11", "12"), ("1:0", "1:1"), (":0", ":1")], ids=["two digits", "card and chip", "chip"]
)
def test_devices_in_the_first_column_keep_their_names(names):
    rows = [f"{name}, 100 %, 1755 MHz\n" for name in names]
    data = ("index, utilization.gpu [%], clocks.current.sm [MHz]\n" + "".join(rows)).encode()
    assert busy_clocks([data]) == {name: {1755: 1} for name in names}


CELLS = st.sampled_from(
    [
        *("0", "7", "00", "15", " 3", "3 ", "99 %", "50", "49.99", "1.5", "1234567890", "-5"),
        *(
            "1755 MHz",
            "100000",
            "100001 MHz",
            "",
            "[N/A]",
            "x",
            "0x7",
            "\t9",
            "9\t",
            '"1"',
            "1,2",
            "1\n2",
            "1\r",
            "é",
            "٣",
        ),
    ]
)


TIMES = st.sampled_from(
    [
        *("2026/01/01 00:00:00.000", "2026/01/01 00:00:01.900", "2026-01-01T00:01:03", "2026/01/01 23:59:59.000"),
        *("2026/01/01 00:59:30.1", "2026/01/01 12:00:00", "2026/01/01 00:00:0", "2026/01/01 99:99:99", "2026/01/01"),
        *("2026/01/01 00-00-00", "2026/01/01 0a:00:00", "2026/01/01 00:00:00é", "now", "", "\t2026/01/01 00:00:07"),
    ]
)


@relaxed
@example([("now", "", "99 %", "1755 MHz")], 300, False, 0)
@given(
    st.lists(st.tuples(TIMES, CELLS, CELLS, CELLS), max_size=12),
    st.integers(1, 300),
    st.booleans(),
    st.integers(0, 40),
)
def test_whatever_the_cells_hold_and_wherever_the_pieces_are_cut(cells, size, dos, lost):
    text = HEADER + "".join(ROW.replace("now", "{}").format(*row) for row in cells)
    if lost % 2:  # the index first
        text = "".join(line.partition(", ")[2] for line in text.splitlines(keepends=True))
    data = text.replace("\n", "\r\n" if dos else "\n").encode()
    data = data[: len(data) - lost]
    assert busy_clocks(pieces(data, size)) == row_by_row(data)


@relaxed
@given(st.binary(max_size=300))
def test_bytes_at_random(data):
    assert busy_clocks([HEADER.encode() + data]) == row_by_row(HEADER.encode() + data)
    assert busy_clocks([data]) == row_by_row(data)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_rows_may_end_as_on_any_system(end):
    data = (HEADER + ROW.format(3, 99, 1755) * 50).replace("\n", end).encode()
    for size in (7, 10_000):
        assert busy_clocks(pieces(data, size)) == {"3": {1755: 50}}


def test_a_row_without_end_takes_no_memory():
    data = HEADER.encode() + b"9" * 500_000 + b"\n" + ROW.format(3, 99, 1755).encode()
    assert busy_clocks(pieces(data, 1000)) == {"3": {1755: 1}}


@relaxed
@given(st.dictionaries(st.integers(0, 3000), st.integers(1, 5), min_size=1))
def test_the_median_of_counts_is_that_of_what_was_counted(counts):
    assert median_clock(Counter(counts)) == statistics.median(Counter(counts).elements())


def test_devices_stand_in_the_order_in_which_they_were_seen_whatever_the_form_of_later_rows():
    whole = [ROW.format(n, "100 %", "1755 MHz") for n in range(4)]
    torn = "torn" + ROW.format(3, "100 %", "1755 MHz") + ROW.format("05", "100 %", "1755 MHz")
    found = busy_clocks([(HEADER + "".join(whole)).encode(), f"torn\n{torn}".encode()])
    assert list(found) == ["0", "1", "2", "3", "05"]
    assert found["3"] == {1755: 2}


def rows(*seconds, clock=1755, devices=2, busy="99 %"):
    """A row of each device at each second."""
    return "".join(
        f"2026/01/01 {s // 3600 % 24:02}:{s // 60 % 60:02}:{s % 60:02}.3, {n}, GPU-{n}, {busy}, 650.12 W, {clock} MHz\n"
        for s in seconds
        for n in range(devices)
    )


def counted(text, size=4096):
    data = (HEADER + text).encode()
    found = busy_clocks(pieces(data, size))
    assert found == row_by_row(data)
    return found


def test_what_a_device_held_over_days_counts_by_days():
    fast, slow = rows(*range(6 * 3600)), rows(*range(6 * 3600 + 59, 24 * 3600, 60), clock=1200)
    found = counted(fast + slow, 1 << 19)
    assert found["0"] == found["1"] == {1755: 6 * 3600, 1200: 18 * 3600}
    assert median_clock(found["1"]) == 1200


@pytest.mark.parametrize(
    ("seconds", "held"),
    [
        ((0, 1, 3, 3, 4), 1 + 1 + 2 + 0 + 1),
        ((86_399, 86_400, 86_402), 1 + 1 + 2),  # over midnight
        ((0, 60, 121, 3600), 1 + 60 + 60 + 60),  # nobody saw what was in a gap
        ((3600, 3601, 1, 2), 1 + 1 + 0 + 1),  # a clock that was set back
        ((0, 43_200, 43_201), 1 + 0 + 1),  # half a day is as far back as it is ahead
    ],
    ids=["a second", "midnight", "gap", "set back", "half a day"],
)
def test_a_row_stands_for_the_time_since_the_one_before(seconds, held):
    for devices in (1, 3):
        assert counted(rows(*seconds, devices=devices)) == {str(n): {1755: held} for n in range(devices)}


def test_time_goes_on_where_a_device_does_nothing():
    found = counted(rows(0, 1) + rows(2, 3, 4, busy="0 %") + rows(5))
    assert found["1"] == {1755: 3}


def test_time_goes_on_from_block_to_block_and_from_rows_of_another_form():
    text = rows(0, 1) + "torn\n" + rows(2, 4) + "torn\n" + rows(7)
    for size in (1, 60, 150, 400):
        assert counted(text, size)["1"] == {1755: 1 + 1 + 1 + 2 + 3}


@pytest.mark.parametrize("blank", [" ", ""])
@pytest.mark.parametrize("torn", ["", "torn\n"], ids=["by columns", "by rows"])
def test_what_counts_at_the_limits(blank, torn):
    rows = [
        *(("0", "50 %", "1 MHz"), ("0", "49.99 %", "2 MHz"), ("0", "49 %", "3 MHz"), ("0", "[N/A]", "4 MHz")),
        *(("1", "99 %", "0 MHz"), ("1", "99 %", "100000 MHz"), ("1", "99 %", "100001 MHz"), ("1", "99 %", "[N/A]")),
        ("123456789", "99 %", "5 MHz"),
    ]
    text = HEADER + "".join(ROW.format(*row) for row in rows) + torn
    found = busy_clocks([text.replace(", ", f",{blank}").encode()])
    assert found == {"0": {1: 1}, "1": {0: 1, 100_000: 1}, "123456789": {5: 1}}


def test_a_device_of_a_number_that_no_column_holds():
    text = HEADER + ROW.format("9999999999", "99 %", "1 MHz") + ROW.format("07", "99 %", "1 MHz")
    assert busy_clocks([text.encode()]) == {"9999999999": {1: 1}, "07": {1: 1}}


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("index,utilization.gpu,clocks.sm,timestamp", "0,99,1,now"),  # its time would stand behind the end
        ("timestamp,said,index,utilization.gpu,clocks.sm", "2026/01/01,12:00:00,0,99,1"),  # and in the next cell
        ("timestamp,index,utilization.gpu,clocks.sm", "2026/01/01 0::00:00,0,99,1"),
        ("timestamp,index,utilization.gpu,clocks.sm", "2026/01/01 :0:00:00,0,99,1"),
        ("index,utilization.gpu,clocks.sm", "0,99,1"),
    ],
)
def test_a_row_that_tells_no_time_stands_for_a_second(header, row):
    assert busy_clocks([f"{header}\n{row}\n{row}\n{row}\n".encode()]) == {"0": {1: 3}}


def test_a_time_without_a_fraction_at_the_end_of_the_file():
    text = "index,utilization.gpu,clocks.sm,timestamp\n0,99,1,2026-01-01T12:34:56\n0,99,1,2026-01-01T12:35:08\n"
    assert busy_clocks([text.encode()]) == {"0": {1: 1 + 12}}


def test_devices_of_another_job_are_left_out_where_the_runs_are_known():
    text = rows(0, 1, devices=3) + ROW.format(3, "60 %", "1200 MHz")
    data = (HEADER + text).encode()
    assert set(busy_clocks([data])) == {"0", "1", "2", "3"}
    assert set(busy_clocks([data], {"GPU-0", "GPU-2", "GPU-9"})) == {"0", "2"}
    # Of a tool that names them otherwise nobody knows which they are.
    assert set(busy_clocks([data], {"PCI-0"})) == {"0", "1", "2", "3"}
    assert set(busy_clocks([data.replace(b"uuid", b"id")], {"GPU-0"})) == {"0", "1", "2", "3"}
    assert set(busy_clocks([data + b"torn\n" + ROW.format("1:0", 99, 1755).encode()], {"GPU-1"})) == {"1", "3", "1:0"}


def test_telemetry_of_more_devices_than_a_node_has_is_refused():
    for name in ("{}", "card {}"):
        text = "".join(ROW.format(name.format(n), "99 %", "1755 MHz") for n in range(MAX_DEVICES))
        assert len(busy_clocks([(HEADER + text).encode()])) == MAX_DEVICES
        text += ROW.format(name.format(MAX_DEVICES), "99 %", "1755 MHz")
        with pytest.raises(EvidenceError, match="names more than 1024 devices; no node has as many"):
            busy_clocks(pieces((HEADER + text).encode(), 4096))


def test_more_clocks_than_devices_have_are_refused():
    assert MAX_CLOCKS == 1 << 16
    text = "".join(ROW.format(n % 2, "99 %", f"{n // 2} MHz") for n in range(MAX_CLOCKS))
    assert sum(map(len, busy_clocks(pieces((HEADER + text).encode(), 1 << 19)).values())) == MAX_CLOCKS
    text += ROW.format(2, "99 %", "0 MHz")
    with pytest.raises(EvidenceError, match="tells more than 65536 clocks"):
        busy_clocks(pieces((HEADER + text).encode(), 1 << 19))
