"""A table of steps gives back what it took, bit by bit, however small it keeps it."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.internevo.log import Steps
from conformance.internevo.log.steps import Rows, stack

N = 10_000
RNG = np.random.default_rng(0)
COLUMNS = {
    "constant": np.full(N, 16384.0),
    "undefined": np.full(N, np.nan),
    "count": np.arange(N) * 1048576.0,
    "small": RNG.integers(0, 100, N).astype(float),
    "speed": np.round(RNG.normal(13000, 100, N), 2),
    "metric": np.round(RNG.normal(2, 0.1, N), 4),
    "rate": RNG.random(N) * 1e-4,
    "huge": RNG.random(N) * 1e308,
    "some undefined": np.where(np.arange(N) % 7, np.round(RNG.random(N), 4), np.nan),
    "infinite": np.where(np.arange(N) % 7, 1.0, -np.inf),
    "signed zeros": np.where(np.arange(N) % 2, 0.0, -0.0),
    "below zero": np.round(RNG.normal(0, 1e5, N), 4),
    "too large": np.round(RNG.normal(0, 1, N) * 1e12),
}


def bits(values):
    return np.asarray(values, np.float64).view(np.int64).tolist()


@pytest.mark.parametrize("count", [0, 1, 255, 256, 4096, 4097, N])
def test_every_bit_comes_back(count):
    steps = Steps.of({name: values[:count] for name, values in COLUMNS.items()})
    assert (list(steps), len(steps)) == (list(COLUMNS), count)
    for name, values in COLUMNS.items():
        assert bits(steps[name]) == bits(values[:count]), name


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=64) | st.floats(0, 2e5).map(lambda x: round(x, 4)), min_size=1, max_size=8))
def test_every_bit_of_any_number_comes_back(values):
    values = [struct.unpack("d", struct.pack("d", value))[0] for value in values] * 300
    assert bits(Steps.of({"x": values})["x"]) == bits(values)


def test_a_long_table_takes_half_the_room_of_plain_numbers():
    steps = Steps.of({name: COLUMNS[name] for name in ("constant", "small", "speed", "metric", "rate")})
    kept = sum(values.nbytes for block in steps._blocks for values, _, _ in block._packed.values())
    assert kept < 0.5 * 5 * 8 * N


def test_rows_may_come_in_any_portions():
    rows = Rows(("metric", "rate"))
    values = np.array([COLUMNS["metric"], COLUMNS["rate"]])
    for begin, end in pairwise([0, 1, 2, 300, 300, 5000, 5001, N]):
        rows.add(values[:, begin:end])
    steps = rows.steps()
    assert (bits(steps["metric"]), bits(steps["rate"])) == (bits(values[0]), bits(values[1]))


@pytest.mark.parametrize(
    "chosen", [slice(0), slice(100, 200), slice(None), RNG.permutation(N), COLUMNS["small"] > 50, np.array([7, 7, 3])]
)
def test_rows_are_chosen_as_numpy_chooses_them(chosen):
    whole = Steps.of(COLUMNS).fixing("segment", 3)
    steps, rest = whole.take(chosen, slice(5))
    assert (list(steps), len(rest)) == ([*COLUMNS, "segment"], 5)
    for name, values in COLUMNS.items():
        assert bits(steps[name]) == bits(values[chosen]), name
        assert bits(rest[name]) == bits(values[:5]), name
    assert steps["segment"].tolist() == [3] * len(steps)
    assert bits(whole.take(chosen)[0]["metric"]) == bits(COLUMNS["metric"][chosen])


def test_tables_are_put_one_below_the_other():
    first = Steps.of({"step": range(1000), "a": COLUMNS["rate"][:1000]}).fixing("segment", 0)
    second = Steps.of({"b": [0.5, 0.25], "step": [7, 8]}).fixing("segment", 1)
    steps = stack([first, second])
    assert list(steps) == ["step", "a", "segment", "b"]
    assert steps["step"].tolist() == [*range(1000), 7, 8]
    assert steps["segment"].tolist() == [0] * 1000 + [1, 1]
    assert bits(steps["a"][:1000]) == bits(COLUMNS["rate"][:1000])
    assert np.isnan(steps["a"][1000:]).all()
    assert steps["b"][1000:].tolist() == [0.5, 0.25]
    assert stack([first]) is first


def test_whoever_works_with_pandas_gets_a_frame():
    steps = Steps.of({"line": [1, 2], "time": [0.0, np.nan], "step": [0, 1], "loss": [10.5, 9.25]})
    frame = steps.frame()
    assert frame.dtypes.astype(str).to_dict() == {
        "line": "int64",
        "time": "datetime64[ms]",
        "step": "int64",
        "loss": "float64",
    }
    assert frame["time"].isna().tolist() == [False, True]
    assert list(steps.only(["loss", "step"])) == ["step", "loss"]


def test_a_column_that_is_handed_out_is_the_takers_own():
    steps = Steps.of({"loss": [1.0, 2.0]}).fixing("segment", 0)
    for name in steps:
        steps[name][:] = 9
        assert 9 not in steps[name]
    assert steps.get("lr") is None
    assert "lr" not in steps


def test_chosen_rows_keep_their_times():
    steps = Steps.of({"line": range(600), "time": [np.nan, *range(599)], "step": range(600)})
    for part in steps.take(slice(0, 300), slice(0, 3)):
        assert (np.isnat(part["time"][0]), part["time"][1:3].astype(int).tolist()) == (True, [0, 1])
