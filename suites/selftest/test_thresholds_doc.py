"""docs/metrics.md says of every figure of a real log how small a change of it is seen, and says so truly."""

import re
import runpy
from itertools import product
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
tools = runpy.run_path(str(DOCS / "thresholds.py"))
LOGS, ALONE, ALL = tools["LOGS"], tools["ALONE"], tools["ALL"]
SECTION = (DOCS / "metrics.md").read_text("utf-8").split(tools["BEGIN"])[1].split(tools["END"])[0]
ROWS = dict(re.findall(r"(?m)^\| `([^`]+)` \| (.*) \|$", SECTION))
REASONS = dict(re.findall(r"(?m)^- `([^`]+)` (.+)$", SECTION))
WAYS = {"+": tools["UP"], "\N{MINUS SIGN}": tools["DOWN"]}
FIELDS = dict.fromkeys(field for log in LOGS.values() for field in tools["fields"](log))


def told(field):
    """Log, steps and way of each entry of a row, with the share it tells, None where it tells that none is seen."""
    cells = ROWS[field].split(" | ")
    for (log, steps), cell in zip(product(LOGS.values(), (ALONE, ALL)), cells, strict=False):
        for entry in cell.split():
            share = None if entry[1:] == "none" else float(entry[1:-1]) / 100
            yield log, steps, WAYS[entry[0]], share


def test_the_logs_are_green_and_every_field_has_its_row():
    assert all(tools["red"](b"".join(log.lines()), log.plan) == frozenset() for log in LOGS.values())
    assert list(ROWS) == list(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_change_of_twice_what_is_told_is_refused(field):
    entries = list(told(field))
    assert entries
    assert (field in REASONS) is any(share is None for *_, share in entries)
    for log, steps, way, share in entries:
        size = 0.9 if share is None else 2 * share if way == tools["UP"] else min(2 * share, 0.9)
        seen = tools["red"](tools["forged"](log, field, way * size, steps), log.plan)
        assert bool(seen) is (share is not None), (log.name, steps, way)


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_told_is_the_smallest_of_those_tried(field):
    log = LOGS["performance"]
    for steps, way, share in [(steps, way, share) for one, steps, way, share in told(field) if one is log]:
        sizes = tools["SIZES"] if way == tools["UP"] else tools["SIZES_DOWN"]
        smaller = [size for size in sizes if share is not None and size < 0.99 * share]
        if smaller:
            assert not tools["red"](tools["forged"](log, field, way * smaller[-1], steps), log.plan), (steps, way)
