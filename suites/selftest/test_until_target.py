"""A run that was stopped at its target is complete by the rule that the watch stops it by, and by no weaker one."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from honest_log import Run

from conformance.analysis import analyze
from conformance.checks.finding import Result
from conformance.spec import load_workload

ROOT = Path(__file__).resolve().parents[2]
# The window of 100 steps is below 2.1 from about step 500 on.
RUN = Run(total_steps=1200, loss=2.0)
HIGH = replace(RUN, loss=3.0)
WORKLOAD = replace(load_workload("llama2-7b-accuracy"), loss_target=2.1)


def stopped(text, step):
    """InternEvo saves a checkpoint when it is told to stop."""
    saved = "2026-01-01 09:00:00,000\tINFO model_checkpoint.py:1239 in save_checkpoint -- "
    return text + f"{saved}Saving checkpoint to `local:ckpt/{step}` at batch count:{step}...\n".encode()


def completed(data, **expected):
    (run,) = analyze(io.BytesIO(data), **expected)
    assert run.outcome == "stopped"
    (finding,) = (f for f in run.findings if f.check == "run-complete")
    assert run.complete is (finding.result is Result.PASS)
    return finding.result


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (lambda: stopped(RUN.text(last=720), 720), Result.PASS),
        (lambda: stopped(RUN.text(last=560), 560), Result.FAIL),  # below, and not yet for a window's length
        (lambda: stopped(HIGH.text(last=720), 720), Result.FAIL),
        (lambda: stopped(RUN.text(last=15), 15), Result.FAIL),
        # 20 steps of its own, which go on from 700 that count.
        (lambda: stopped(RUN.text(last=700) + RUN.text(first=690, last=710), 710), Result.PASS),
        # 80 steps of its own are below; the window of the whole run reaches back to those that are not.
        (lambda: stopped(HIGH.text(last=610) + RUN.text(first=600, last=680), 680), Result.FAIL),
    ],
    ids=["legal", "too early", "above", "few steps", "legal, resumed", "too early, resumed"],
)
def test_an_early_end(data, result):
    assert completed(data(), workload=WORKLOAD) is result


def test_an_early_end_without_a_target_is_none():
    assert completed(stopped(RUN.text(last=720), 720), workload=replace(WORKLOAD, loss_target=None)) is Result.FAIL


def test_the_loss_over_all_ranks_must_have_been_held_too():
    text = stopped(RUN.text(last=720), 720).replace(b"loss_from_metric=2.0", b"loss_from_metric=2.4")
    text = text.replace(b"loss_from_metric=1.9", b"loss_from_metric=2.3")
    assert completed(text, workload=WORKLOAD) is Result.FAIL
