"""Charts as coordinates: nothing lost, nothing invented, for any points."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.report.chart import HEIGHT, MAX_VALUE, WIDTH, bar_chart, line_chart, nice

numbers = st.floats(-1e12, 1e12, allow_nan=False)


@given(numbers, numbers)
def test_round_values_enclose_the_range(one, other):
    low, high = sorted((one, other))
    values = nice(low, high)
    assert len(values) >= 2
    assert values == sorted(values)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert values[0] <= low + slack
    assert values[-1] >= high - slack


@given(st.lists(st.floats(width=32), max_size=40))
def test_any_values_give_a_chart_with_finite_places_inside_it_or_none(values):
    drawn = line_chart([("measured", list(enumerate(values)))])
    if sum(map(math.isfinite, values)) < 2:
        assert drawn is None
        return
    for across, down in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", dict(drawn.paths)["measured"]):
        assert -0.1 <= float(across) <= WIDTH + 0.1
        assert -0.1 <= float(down) <= HEIGHT + 0.1


@given(
    st.lists(st.floats(), max_size=10),
    st.floats(),
    st.tuples(st.floats(), st.floats()),
    st.booleans(),
)
def test_figures_as_large_as_a_log_may_hold_them_are_drawn_or_left_out(values, level, band, from_zero):
    area = [(0, *band), (1, *band)]
    drawn = line_chart([("m", list(enumerate(values)))], levels={"limit": level}, area=area, from_zero=from_zero)
    bars = bar_chart([("m", values)], [str(n) for n in range(len(values))], {"limit": level})
    assert (drawn is None) == (sum(abs(value) <= MAX_VALUE for value in values) < 2)
    assert (bars is None) == (not any(0 < value <= MAX_VALUE for value in values))
    paths = [path for chart in (drawn, bars) if chart is not None for _, path in chart.paths]
    assert not re.search("nan|inf", " ".join(paths))


def test_losses_at_the_end_of_what_a_float_holds():
    drawn = line_chart([("m", [(0, 1.7e308), (1, -1.7e308), (2, 1.0), (3, 2.0)])], levels={"limit": math.inf})
    assert drawn.paths == (("m", "M0.0 300.0L1000.0 0.0h0"),)
    assert line_chart([("m", [(0, 1.7e308), (1, -1.7e308)])]) is None


def test_zero_is_in_the_picture_also_where_all_is_below_it():
    drawn = line_chart([("m", [(0, -5.0), (1, -4.0)])], from_zero=True)
    assert [label for _, label in drawn.y_ticks] == ["-5", "-4", "-3", "-2", "-1", "0"]
    assert drawn.paths == (("m", "M0.0 300.0L1000.0 240.0h0"),)


def test_a_gap_is_a_gap():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, 1.0)]
    assert dict(line_chart([("measured", points)]).paths)["measured"].count("M") == 2


def test_a_spike_of_one_step_in_two_hundred_thousand_is_seen():
    points = [(step, 1.0) for step in range(200_000)]
    points[123_456] = (123_456, 9.0)
    path = dict(line_chart([("measured", points)], from_zero=True).paths)["measured"]
    heights = [float(down) for down in re.findall(r"[\d.]+ ([\d.]+)", path)]
    assert min(heights) == pytest.approx(HEIGHT * 0.1, abs=0.1)
    assert len(heights) < 1200


def test_levels_window_and_area_take_part_in_the_scale():
    drawn = line_chart(
        [("measured", [(0, 1.0), (10, 2.0)])], levels={"limit": 9.0}, window=(5, 99), area=[(0, 0.5, 3.0)]
    )
    assert drawn.y_ticks[-1][1] == "10"
    assert drawn.window == (500.0, 500.0)
    assert [kind for kind, _ in drawn.paths] == ["limit", "area", "measured"]


@given(st.lists(st.none() | st.floats(width=32), min_size=1, max_size=40))
def test_bars_stand_on_zero_and_only_for_what_was_measured(values):
    drawn = bar_chart([("bar-first", values)], [str(n) for n in range(len(values))])
    positive = [value for value in values if value is not None and math.isfinite(value) and value > 0]
    if not positive:
        assert drawn is None
        return
    assert len(drawn.bars) == len(positive)
    for _, x, y, width, height in drawn.bars:
        assert 0 <= x <= x + width <= WIDTH + 0.2
        assert y + height == pytest.approx(HEIGHT, abs=0.2)
    assert len(drawn.x_ticks) <= 16


def test_no_points_no_chart():
    assert line_chart([]) is None
    assert line_chart([("measured", [(1, 1.0)])]) is None
    assert bar_chart([("bar-first", [])], []) is None
