"""What curve and target see of a device that trains untruly, on the losses of real runs; docs/accuracy.md lists it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conformance.checks.curve import agrees
from conformance.checks.finding import Result
from conformance.checks.loss import target_reached
from conformance.metrics.curve import compare
from conformance.metrics.loss import loss_of
from conformance.spec import load_workload
from conformance.spec.curves import load_curves

ROOT = Path(__file__).resolve().parents[2]
TABLE = pd.read_csv(ROOT / "fixtures" / "untrue-losses.csv", keep_default_na=False)
SEED = 1024
RUNS = {fault: steps.reset_index(drop=True) for fault, steps in TABLE[TABLE["seed"] == SEED].groupby("fault")}
SEVERAL = [fault for fault, runs in TABLE.groupby("fault") if runs["seed"].nunique() > 1]
(CURVE,) = (curve for curve in load_curves() if curve.workload == "tiny-accuracy")
TARGET = load_workload("tiny-accuracy").loss_target
PAGE = (ROOT / "docs/accuracy.md").read_text("utf-8")
ROW = re.compile(r"^\| `([\w-]+)`: [^|]+ \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
LISTED = {name: cells for name, *cells in ROW.findall(PAGE)}


def cells(fault):
    """A row of the document's table, from the run itself."""
    steps = RUNS[fault].rename(columns={"mean_loss": "loss_from_metric"})
    losses = steps["loss_from_metric"].to_numpy()
    found = compare(CURVE, losses[None])
    seen = agrees(found).result is Result.FAIL
    since = "" if found.leaves_at is None else f", from step {found.leaves_at}"
    target = {Result.PASS: "reached", Result.FAIL: "missed", Result.ERROR: "open"}
    reached = target[target_reached(loss_of(steps, TARGET), TARGET, "").result]
    honest = RUNS["none"]["mean_loss"].to_numpy()
    effect = np.sqrt(np.square((losses / honest - 1).reshape(10, 10).mean(axis=1)).mean())
    return [
        f"{effect:.2%}",
        f"{found.relative_rms:.2%}",
        f"{found.max_deviation:+.2%}, {found.at_step}",
        f"yes{since}" if seen else "**no**" if fault != "none" else "no: right",
        reached,
    ]


def of_several(fault):
    """A row of the document's second table."""
    runs = TABLE[TABLE["fault"] == fault]
    found = compare(CURVE, np.array([run["mean_loss"] for _, run in runs.groupby("seed")]))
    seen = "yes" if agrees(found).result is Result.FAIL else "**no**"
    return (
        f"| `{fault}`, {runs['seed'].nunique()} runs | {found.relative_rms:.2%} of {found.bound:.2%} "
        f"| {found.max_deviation:+.2%} of {found.max_bound:.2%} | {seen} |"
    )


def test_every_fault_is_listed():
    assert set(LISTED) == set(RUNS)
    assert all(steps["step"].tolist() == list(range(100)) for steps in RUNS.values())


@pytest.mark.parametrize("fault", RUNS)
def test_the_document_lists_what_is_seen_of_it(fault):
    assert LISTED[fault] == cells(fault)


@pytest.mark.parametrize("fault", SEVERAL)
def test_the_document_lists_what_several_runs_show(fault):
    assert of_several(fault) in PAGE


def test_the_bounds_are_the_documents():
    found = compare(CURVE, RUNS["none"]["mean_loss"].to_numpy()[None])
    assert f"| {found.runs} | {found.bound:.2%}, {found.max_bound:.2%} | {found.detectable:.2%} |" in PAGE


def test_each_reference_run_is_on_the_curve_of_the_others():
    for number, run in enumerate(CURVE.losses):
        others = tuple(losses for losses in CURVE.losses if losses is not run)
        rest = replace(CURVE, losses=others, seeds=tuple(range(len(others))))
        assert compare(rest, np.array([run])).agrees, CURVE.seeds[number]
