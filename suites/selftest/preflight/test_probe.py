"""What the measurements rest on: comparing, timing, and writing down what is not finite."""

import json
import math
import time

import pytest

from conformance.preflight.probe import Journal, plain, relative_error, spread, told_in

pytestmark = pytest.mark.needs("torch")


@pytest.fixture(autouse=True)
def imported():
    """Importing torch takes seconds, which collecting the tests need not wait for."""
    global torch
    import torch


def test_a_wrong_row_that_the_norm_hides_is_seen_by_row():
    torch.manual_seed(1)
    exact = torch.randn(4096, 64, dtype=torch.float64)
    got = exact.clone()
    got[17] = 0
    told = relative_error(got, exact)
    assert told["error"] < 2**-5
    assert told["worst_row"] == pytest.approx(1)
    assert told["row"] == 17


def test_rounding_noise_in_a_row_that_should_be_zero_is_no_fault():
    exact = torch.ones(8, 4, dtype=torch.float64)
    exact[3] = 0
    got = exact.clone()
    got[3] = 1e-5
    assert relative_error(got, exact)["worst_row"] < 0.01


def test_nan_and_infinity_stay_visible():
    exact = torch.ones(4, 4)
    got = exact.clone()
    got[2, 1] = math.nan
    told = relative_error(got, exact)
    assert math.isnan(told["error"])
    assert told["not_finite"] == 1
    assert told["row"] == 2
    assert plain({"error": told["error"], "all": [math.inf, 1.0]}) == {"error": "nan", "all": ["inf", 1.0]}


def test_an_all_zero_result_is_wholly_wrong():
    exact = torch.randn(16, 4)
    assert relative_error(torch.zeros_like(exact), exact)["error"] == pytest.approx(1)


def test_spread_is_robust_to_one_slow_sample():
    told = spread([1.0, 1.0, 1.01, 1.01, 1.02, 1.02, 1.0, 9.0])
    assert told["seconds"] == pytest.approx(1.01)
    assert told["spread"] < 0.05


def test_the_journal_is_strict_json_line_by_line(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.phase("begin")
    journal.record("kernel", error=math.nan)
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert lines[0]["phase"] == "begin"
    assert time.monotonic() - 60 < lines[0]["at"] <= time.monotonic()  # no clock that NTP may set
    assert lines[1] == {"kind": "kernel", "error": "nan"}


@pytest.mark.parametrize("before", ["", '{"phase": "begin"}\n', '{"phase": "begin"}\n{"kind": "ker', "{"])
def test_a_cut_line_swallows_no_line_after_it(tmp_path, before):
    path = tmp_path / "journal.jsonl"
    path.write_text(before)
    Journal(path).record("kernel-error", kind="a plugin's own", hung=True)
    assert told_in(path)[-1] == {"kind": "kernel-error", "hung": True}
    assert len(told_in(path)) == before.count("\n") + 1
