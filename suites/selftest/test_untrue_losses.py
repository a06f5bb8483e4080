"""What curve and target see of a device that trains untruly, on the losses of real runs; docs/accuracy.md lists it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformance.checks.finding import Result
from conformance.checks.loss import target_reached
from conformance.internevo.log import Steps
from conformance.metrics.curve import compare
from conformance.metrics.loss import loss_of
from conformance.spec import load_workload
from conformance.spec.curves import load_curves

ROOT = Path(__file__).resolve().parents[2]
STEPS = np.genfromtxt(ROOT / "fixtures" / "untrue-losses.csv", dtype=None, delimiter=",", names=True, encoding="utf-8")
SEED = 1024
# True devices that round in another way: those of the curve's twins, and one that they do not have.
HELD_OUT = "products-of-32"
TWINS = ("products-in-fp32", "products-in-two", "attention-by-torch", "every-kernel-otherwise")
OF = {
    (fault, seed): STEPS[(STEPS["fault"] == fault) & (STEPS["seed"] == seed)]
    for fault, seed in sorted(set(zip(STEPS["fault"].tolist(), STEPS["seed"].tolist(), strict=True)))
}
SEEDS = {
    fault: [seed for of, seed in OF if of == fault] for fault, _ in OF if fault not in (HELD_OUT, *TWINS)
}  # in which each untrue device trained
RUNS = {fault: OF[fault, SEED] for fault in SEEDS}
SEVERAL = [fault for fault, seeds in SEEDS.items() if len(seeds) > 1]
(CURVE,) = (curve for curve in load_curves() if curve.workload == "tiny-accuracy")
TARGET = load_workload("tiny-accuracy").loss_target
PAGE = (ROOT / "docs/accuracy.md").read_text("utf-8")
ROW = re.compile(r"^\| `([\w-]+)`: [^|]+ \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
LISTED = {name: cells for name, *cells in ROW.findall(PAGE)}


def cells(fault):
    """A row of the document's table, from the run itself."""
    run = RUNS[fault]
    steps = Steps.of({"step": run["step"], "loss": run["loss"], "loss_from_metric": run["mean_loss"]})
    losses = steps["loss_from_metric"]
    found = compare(CURVE, losses[None], [SEED], CURVE.origin)
    target = {Result.PASS: "reached", Result.FAIL: "missed", Result.ERROR: "open"}
    reached = target[target_reached(loss_of(steps, TARGET), TARGET, "").result]
    honest = RUNS["none"]["mean_loss"]
    effect = np.sqrt(np.square((losses / honest - 1).reshape(10, 10).mean(axis=1)).mean())
    return [
        f"{effect:.2%}",
        f"{found.relative_rms:.2%}",
        f"{found.max_deviation:+.2%}, {found.at_step}",
        caught(fault, replace(found, paired=None).agrees, found.leaves_at),
        f"{found.paired.relative_rms:.3%}: {caught(fault, found.paired.agrees, found.paired.leaves_at)}",
        reached,
    ]


def caught(fault, good, leaves_at):
    since = "" if leaves_at is None else f", from step {leaves_at}"
    return f"yes{since}" if not good else "**no**" if fault != "none" else "no: right"


def of_several(fault):
    """A row of the document's second table."""
    losses = np.array([OF[fault, seed]["mean_loss"] for seed in SEEDS[fault]])
    found = compare(CURVE, losses, SEEDS[fault], CURVE.origin)
    return (
        f"| `{fault}`, {len(losses)} runs | {found.relative_rms:.2%} of {found.bound:.2%} "
        f"| {found.max_deviation:+.2%} of {found.max_bound:.2%} "
        f"| {caught(fault, replace(found, paired=None).agrees, None)} "
        f"| {found.paired.relative_rms:.4%} of {found.paired.bound:.4%}: {caught(fault, found.paired.agrees, None)} |"
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
    found = compare(CURVE, RUNS["none"]["mean_loss"][None], [SEED], CURVE.origin)
    assert f"| {found.runs} | {found.bound:.2%}, {found.max_bound:.2%} | {found.detectable:.2%} |" in PAGE
    pair = found.paired
    assert f"bound of {pair.bound:.4%}, and a constant deviation of {pair.detectable:.4%} would be seen" in " ".join(
        PAGE.split()
    )


def test_each_reference_run_is_on_the_curve_of_the_others():
    for number, run in enumerate(CURVE.losses):
        others = tuple(losses for losses in CURVE.losses if losses is not run)
        rest = replace(CURVE, losses=others, seeds=tuple(range(len(others))))
        assert compare(rest, np.array([run])).agrees, CURVE.seeds[number]


def test_the_curves_twins_are_the_runs_that_round_otherwise():
    made = {seed: tuple(steps["mean_loss"].tolist()) for (fault, seed), steps in OF.items() if fault in TWINS}
    assert len(made) == len(CURVE.twins) == len(CURVE.seeds)
    for seed, twin in zip(CURVE.seeds, CURVE.twins, strict=True):
        assert made[seed][: len(twin)] == twin


def held_out_pair(number):
    """A pair against the bound of the others: its deviation is put on one of theirs."""
    kept = [n for n in range(len(CURVE.seeds)) if n != number]
    seeds, losses, twins = ([values[n] for n in kept] for values in (CURVE.seeds, CURVE.losses, CURVE.twins))
    rest = replace(CURVE, seeds=tuple(seeds), losses=tuple(losses), twins=tuple(twins))
    twin, run = np.array(CURVE.twins[number]), np.array(losses[0])
    run[: len(twin)] *= twin / np.array(CURVE.losses[number])[: len(twin)]
    return compare(rest, run[None], seeds[:1], CURVE.origin).paired


def test_each_twin_is_within_the_bound_of_the_others():
    used = [held_out_pair(number) for number in range(len(CURVE.seeds))]
    assert all(pair.agrees for pair in used)
    told = (
        f"{min(pair.relative_rms for pair in used):.4%} to {max(pair.relative_rms for pair in used):.4%} "
        f"of {min(pair.bound for pair in used):.4%} to {max(pair.bound for pair in used):.4%}"
    )
    assert told in " ".join(PAGE.split())


def test_a_rounding_that_no_twin_has_is_within_the_bound():
    for (fault, seed), steps in OF.items():
        if fault == HELD_OUT:
            found = compare(CURVE, steps["mean_loss"][None], [seed], CURVE.origin)
            assert found.agrees
            assert f"{found.paired.relative_rms:.4%}" in PAGE
