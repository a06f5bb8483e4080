"""The learning-rate schedule against PyTorch's and InternEvo's own schedulers, and against real logs."""

import importlib.metadata
import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformance.internevo.log import parse_log
from conformance.metrics.schedule import expected_lr, fit_residual, fit_total_steps
from conformance.spec import load_workload

LOGS = Path(__file__).resolve().parents[3] / "reference_logs"
OPTIMIZER = load_workload("llama2-7b-perf").optimizer


def steps(name):
    (run,) = parse_log(io.BytesIO((LOGS / name).read_bytes()))
    return run.steps["lr"], run.steps["step"] + 1.0


@pytest.mark.parametrize(("warmup_ratio", "total"), [(0.01, 12), (0.01, 20), (0.025, 200), (0.25, 40)])
def test_the_expected_rates_are_those_of_internevos_scheduler(warmup_ratio, total):
    torch = pytest.importorskip("torch")
    try:
        files = importlib.metadata.files("internevo") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the internevo wheel")
    path = next(f.locate() for f in files if f.match("internlm/solver/lr_scheduler.py"))
    spec = importlib.util.spec_from_file_location("lr_scheduler", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=OPTIMIZER.lr)
    scheduler = module.FineTuneCosineAnnealingWarmupLR(
        optimizer, total_steps=total, warmup_ratio=warmup_ratio, eta_min=OPTIMIZER.eta_min
    )
    rates = []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    forms = expected_lr(replace(OPTIMIZER, warmup_ratio=warmup_ratio), total, np.arange(1.0, total + 1))
    assert any(np.allclose(rates, form, rtol=1e-9, atol=0) for form in forms)


@pytest.mark.parametrize(
    ("name", "total"), [("h200-7b-slice24-v0.2.3.log", 12), ("h200-124m-data-exhausted-v0.3.1.log", 600)]
)
def test_a_real_log_tells_how_long_its_schedule_is(name, total):
    assert fit_total_steps(*steps(name)) == total


@pytest.mark.parametrize("total", [20, 1000, 200_000])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_part_of_a_schedule_tells_its_length(total, share):
    updates = np.arange(1.0, int(total * share) + 1)
    for form in expected_lr(replace(OPTIMIZER, warmup_ratio=0.025), total, updates):
        assert fit_total_steps(form, updates) == total


def test_a_rate_that_was_changed_is_far_from_the_curve():
    rates, updates = steps("h200-124m-data-exhausted-v0.3.1.log")
    honest = fit_residual(rates, updates)
    rates[30] *= 1.001
    assert honest.max() < 1e-6 * rates.max() < fit_residual(rates, updates)[30]


def test_a_rate_that_was_changed_by_so_little_that_the_end_stays_tells_no_length():
    rates, updates = steps("h200-124m-data-exhausted-v0.3.1.log")
    rates[30] *= 1.00001
    assert fit_total_steps(rates, updates) is None


def test_four_rates_after_the_peak_are_enough_and_three_are_not():
    rates, updates = steps("h200-124m-data-exhausted-v0.3.1.log")
    end = int(np.argmax(rates)) + 5
    assert fit_total_steps(rates[:end], updates[:end]) == 600
    assert fit_total_steps(rates[: end - 1], updates[: end - 1]) is None


def test_a_rate_two_before_the_peak_is_held_against_the_line():
    rates, updates = steps("h200-124m-data-exhausted-v0.3.1.log")
    before = int(np.argmax(rates)) - 2
    rates[before] *= 0.999
    assert fit_residual(rates, updates)[before] > 1e-6 * rates.max()


def test_the_rate_after_the_peak_is_held_against_the_curve_too():
    rates, updates = steps("h200-124m-data-exhausted-v0.3.1.log")
    after = int(np.argmax(rates)) + 1
    rates[after] *= 0.999
    assert fit_residual(rates, updates)[after] > 1e-6 * rates.max()


@pytest.mark.parametrize(
    "rates",
    [
        *([], [1e-4], [1e-4] * 10, [1e-4, 2e-4, 3e-4], [np.nan] * 8, [0.0] * 8, list(np.linspace(1e-4, 1e-5, 12))),
        np.arange(12.0, 0.0, -1.0),
        [2e-4, 1e-4, 2e-4, 1e-4, 2e-4],
    ],
    ids=["none", "one", "constant", "warm-up only", "undefined", "zero", "linear", "whole numbers", "in turn"],
)
def test_rates_that_show_no_cosine_tell_no_length(rates):
    assert fit_total_steps(np.array(rates), np.arange(len(rates)) + 1.0) is None


def test_missing_steps_tell_no_length():
    rates, updates = steps("h200-124m-data-exhausted-v0.3.1.log")
    assert fit_total_steps(np.delete(rates, 40), np.delete(updates, 40)) is None
