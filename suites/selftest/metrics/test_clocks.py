"""Telemetry of any form is counted to what reading it row by row gives."""

import io
import statistics
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conformance.launch.samples import samples
from conformance.launch.slow import BUSY_PERCENT
from conformance.metrics import clocks
from conformance.metrics.clocks import busy_clocks, median_clock

HEADER = "timestamp, index, uuid, utilization.gpu [%], power.draw [W], clocks.current.sm [MHz]\n"
ROW = "2026/01/01 00:00:00.000, {}, GPU-1, {}, 650.12 W, {}\n"

relaxed = settings(deadline=None, max_examples=100)


def row_by_row(data):
    found = {}
    for sample in samples(io.TextIOWrapper(io.BytesIO(data), errors="replace")):
        if sample.busy_percent >= BUSY_PERCENT:
            found.setdefault(sample.index, Counter())[sample.clock_mhz] += 1
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
    monkeypatch.setattr(clocks, "_count_rows", lambda header, block: pytest.fail("read row by row"))
    data = (HEADER + "".join(ROW.format(n % 8, "100 %", "1755 MHz") for n in range(1000))).encode()
    assert sum(sum(count.values()) for count in busy_clocks(pieces(data, 1000)).values()) == 1000


@pytest.mark.parametrize("names", [("9", "10", "11", "12"), ("1:0", "1:1")], ids=["two digits", "card and chip"])
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


@relaxed
@example([("", "99 %", "1755 MHz")], 300, False, 0)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=12), st.integers(1, 300), st.booleans(), st.integers(0, 40))
def test_whatever_the_cells_hold_and_wherever_the_pieces_are_cut(cells, size, dos, lost):
    text = HEADER + "".join(ROW.format(*row) for row in cells)
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
