"""A row of the comparison: figures that follow from what was verified."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance import evidence, judgement
from conformance.bundle import compare
from conformance.checks.finding import Verdict

SPEED = {"median": 4000.0, "ci95": [3990.0, 4010.0]}


def rows(monkeypatch, preflights=(), kept=None, **metrics):
    """Compare one bundle of a training run that began at 5 and of preflights: (when each began, TFLOPS, device)."""
    kind = {"kind": "preflight"}
    measured = {f"runs/p{n}/": one for n, one in enumerate(preflights)}
    before = [
        SimpleNamespace(name=f"p{n}", predicate=kind, rebuilt={"environment": {"started": str(when)}})
        for n, (when, _, _) in enumerate(preflights)
    ]
    rebuilt = {
        "metrics": {"tgs": SPEED, **metrics},
        "devices": [{"vendor": "ACME", "model": "X1", "uuid": "X1"}] * 2,
        "plan": {"tokens_per_step": 32768, "cards": 2},
        "verdict": "REHEARSAL",
        "environment": {"started": "5"},
    }
    predicate = {"kind": "accuracy", "workload": {"name": "w"}}
    run = SimpleNamespace(name="b", predicate=predicate, rebuilt=rebuilt, steps=())
    told = {"report_id": "1", "verdict": Verdict.REHEARSAL, "vendor": "ACME", "predicate": {}}
    verified = SimpleNamespace(runs=[*before, run], answers=(), **told)
    monkeypatch.setattr(compare, "verify", lambda path, bench: verified)
    monkeypatch.setattr(compare.archive, "read_index", lambda path: SimpleNamespace(members={}))
    names = () if kept is None else (evidence.CEILING_OF,)
    monkeypatch.setattr(
        compare, "BundleEvidence", lambda index, prefix: SimpleNamespace(prefix=prefix, names=lambda: names)
    )
    monkeypatch.setattr(evidence, "read_json", json_of(measured, kept))
    monkeypatch.setattr(judgement, "read_tasks", lambda files: measured[files.prefix])
    monkeypatch.setattr(judgement, "by_device", lambda one: [{"gemm_together_tflops": one[1]}])
    monkeypatch.setattr(judgement, "devices", lambda one, plugin: [{"vendor": "ACME", "model": "X1", "uuid": one[2]}])
    made, left_out = compare.compare([Path("x.tar")], bench=None)
    assert left_out == []
    return made


def json_of(measured, kept):
    def read_json(files, name):
        if name == evidence.CEILING_OF:
            return {"run": kept}
        return {"started": str(measured[files.prefix][0]), "device": "x", "rehearsal": False}

    return read_json


FLOPS = {"model": 400.0, "recomputed": 420.0}
KEPT = {"measured_ceiling": 0.4, "ceiling": "k"}


@pytest.mark.parametrize(
    ("kept", "mfu", "preflights", "expected"),
    [
        (None, None, [(2, 500.0, "X1"), (4, 800.0, "X1"), (3, 640.0, "X1")], 0.5),
        (None, None, [(4, 800.0, "X1"), (6, 500.0, "X1")], 0.5),
        (None, None, [(3, 800.0, "X1"), (4, 500.0, "X2")], 0.5),
        (None, {"measured_ceiling": 0.6, "ceiling": "expected.toml"}, [(4, 800.0, "X1")], 0.5),
        ("k", KEPT, [(2, 500.0, "X1"), (4, 800.0, "X1")], 0.4),
        ("other devices", KEPT, [(4, 800.0, "X1")], 0.5),
        (None, None, [(6, 500.0, "X1")], None),
        (None, None, [], None),
    ],
    ids=[
        "the newest",
        "none after the run",
        "of its devices",
        "none kept",
        "the kept one",
        "kept in vain",
        "after",
        "none",
    ],
)
def test_utilisation_is_over_the_ceiling_that_the_run_kept_else_the_newest_before_it(
    monkeypatch, kept, mfu, preflights, expected
):
    (row,) = rows(monkeypatch, preflights, kept, tflops=FLOPS, mfu=mfu)
    assert row["mfu"] == expected
    assert (row["tflops"], row["tgs"], row["devices"]) == (420.0, 4000.0, 2)


def test_without_a_speed_there_is_no_utilisation(monkeypatch):
    assert rows(monkeypatch, [(4, 800.0, "X1")])[0]["mfu"] is None


def test_hours_to_the_target_are_steps_at_the_median_speed(monkeypatch):
    (row,) = rows(monkeypatch, loss={"held_since": 1799, "window_mean": 1.7})
    assert row["hours_to_target"] == pytest.approx(1800 * 32768 / 2 / 4000 / 3600)
    assert rows(monkeypatch, loss={"held_since": None})[0]["hours_to_target"] is None


def test_runs_are_ranked_among_those_of_as_many_layers(monkeypatch):
    (row,) = rows(monkeypatch, [], num_layers=8)
    assert (row["workload"], row["layers"], row["group"]) == ("w", 8, "w, 8 layers")
