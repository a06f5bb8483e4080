"""Steady state is found by its rule, and speed and TFLOPS are figures that can be checked by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from honest_log import Run

from conformance.internevo.log import Steps, parse_log
from conformance.internevo.log.steps import stack
from conformance.metrics.throughput import tflops, throughput
from conformance.spec import load_workload

ROOT = Path(__file__).resolve().parents[3]


def frame(tgs, **columns):
    return Steps.of({"step": np.arange(len(tgs)), "tgs": tgs, **columns})


def test_the_real_run_of_12_steps():
    (run,) = parse_log(io.BytesIO((ROOT / "reference_logs" / "h200-7b-slice24-v0.2.3.log").read_bytes()))
    speed = throughput(run.steps)
    used = run.steps["tgs"][1:]
    assert (speed.steady.first, speed.steady.last, speed.steady.used, speed.steady.excluded) == (1, 11, 11, 1)
    assert speed.median == np.median(used) == 12078.36
    assert speed.mean == pytest.approx(used.mean())
    assert speed.min == used.min()
    assert speed.cov == pytest.approx(used.std(ddof=1) / used.mean())
    assert (speed.last, speed.last_tgs_10, speed.trimmed_mean) == (12047.97, 11524.85, None)
    assert speed.ci95[0] <= speed.median <= speed.ci95[1]
    model = load_workload("slice-7b-perf").model
    flops = tflops(run.steps, speed, model)
    assert flops.recomputed == pytest.approx(speed.median * 4.064910e10 / 1e12, rel=1e-6)
    assert flops.logged == pytest.approx(flops.recomputed, rel=1e-4)
    assert flops.model_causal < flops.model < flops.recomputed


def test_the_benchmarks_20_steps():
    steps = frame([57.0] + [100.0, 101.0, 99.0] * 6 + [94.0])
    speed = throughput(steps)
    assert (speed.steady.first, speed.steady.used, speed.steady.settled) == (1, 19, True)
    assert speed.steady.rule.startswith("steps 1..19 count (19 of 20); the first step never counts")
    # The last step alone, as one benchmark takes it, is 6% off.
    assert (speed.median, speed.last) == (100, 94)
    assert speed.outliers == (19,)


@pytest.mark.parametrize("slow", [1, 2, 3, 4, 5])
def test_warm_up_of_several_steps_is_left_out(slow):
    speed = throughput(frame([60.0 + 5 * i for i in range(slow)] + [100.0, 100.5] * 10))
    assert (speed.steady.excluded, speed.steady.settled) == (slow, True)


def test_no_more_than_a_quarter_is_left_out_and_the_rule_says_so():
    speed = throughput(frame([*np.linspace(50, 100, 15), *[100.0] * 5]))
    assert (speed.steady.excluded, speed.steady.settled) == (5, False)
    assert "had not settled" in speed.steady.rule
    assert speed.drift > 0.2


def test_warm_up_of_one_step_more_than_a_quarter_has_not_settled():
    steady = throughput(frame([60.0, 65.0, 70.0, 75.0, 80.0, 85.0, *[100.0] * 14])).steady
    assert (steady.excluded, steady.settled) == (5, False)


def test_three_steps_in_a_row_end_warm_up_whatever_the_next_one_does():
    assert throughput(frame([50.0, 100.0, 100.0, 100.0, 60.0, *[100.0] * 15])).steady.excluded == 1


def test_drift_is_the_change_from_the_first_steady_step_to_the_last():
    speed = throughput(frame(np.arange(1000.0, 1020.0)))
    assert (speed.steady.first, speed.steady.last) == (1, 19)
    assert speed.drift == pytest.approx(18 / 1010)


def test_a_fast_beginning_does_not_count_either():
    assert throughput(frame([150.0, 150.0, 150.0, *[100.0] * 17])).median == 100
    assert throughput(frame([150.0, 150.0, 150.0, *[100.0] * 17])).steady.excluded == 3


def test_one_lucky_step_does_not_end_warm_up():
    assert throughput(frame([50.0, 100.0, 60.0, 70.0, *[100.0] * 16])).steady.excluded == 4


def test_a_resumed_process_warms_up_again():
    run = Run(total_steps=80)
    first, second = (parse_log(io.BytesIO(part))[0].steps for part in (run.text(last=40), run.text(first=40)))
    merged = stack([first.fixing("segment", 0), second.fixing("segment", 1)])
    speed = throughput(merged)
    assert "after each resumption (1)" in speed.steady.rule
    assert speed.steady.used == 78
    assert speed.min > 0.95 * speed.median


def test_sister_benchmarks_figures():
    tgs = np.arange(1.0, 31.0)
    assert throughput(frame(tgs)).trimmed_mean == tgs[10:-10].mean()
    assert throughput(frame(tgs[:20])).trimmed_mean is None
    assert throughput(frame([0.5] * 12, **{"tgs/last_tgs_10": [0.0] * 10 + [0.5] * 2})).last_tgs_10 == 0.5
    assert throughput(frame([0.5] * 9, **{"tgs/last_tgs_10": [0.0] * 9})).last_tgs_10 is None


@pytest.mark.parametrize("tgs", [[], [np.nan], [0.0], [-1.0], [np.inf]])
def test_without_a_step_of_positive_speed_there_is_no_throughput(tgs):
    assert throughput(frame(tgs)) is None


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_steps_all_count(n):
    speed = throughput(frame([10.0] * n))
    assert (speed.steady.used, speed.ci95) == (n, None)


def test_without_a_shape_only_the_logged_tflops_stand():
    steps = frame([10.0] * 8, tflops=[2.0] * 8)
    flops = tflops(steps, throughput(steps), None)
    assert (flops.logged, flops.recomputed, flops.model, flops.model_causal) == (2.0, None, None, None)


def test_the_band_is_two_percent_where_a_run_has_no_noise():
    steady = [1000.0] * 20
    speed = throughput(frame([*steady[:14], 1015.0, *steady[:5]]))
    assert speed.outliers == ()
    assert "within 2.0% of the second half's median of 1000" in speed.steady.rule
    assert throughput(frame([*steady[:14], 1020.0, *steady[:5]])).outliers == ()
    assert throughput(frame([*steady[:14], 1025.0, *steady[:5]])).outliers == (14,)
