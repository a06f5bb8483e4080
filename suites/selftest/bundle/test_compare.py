"""A row of the comparison: figures that follow from what was verified."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.bundle import compare
from conformance.checks.finding import Verdict

SPEED = {"median": 4000.0, "ci95": [3990.0, 4010.0]}


def rows(monkeypatch, devices=({},) * 2, **metrics):
    """Compare one bundle of a training run and a preflight."""
    preflight = SimpleNamespace(name="a", predicate={"kind": "preflight"})
    rebuilt = {
        "metrics": {"tgs": SPEED, **metrics},
        "devices": [{"vendor": "ACME", "model": "X1", **device} for device in devices],
        "plan": {"tokens_per_step": 32768, "cards": 2},
        "verdict": "REHEARSAL",
    }
    predicate = {"kind": "accuracy", "workload": {"name": "w"}}
    run = SimpleNamespace(name="b", predicate=predicate, rebuilt=rebuilt, steps=())
    told = {"report_id": "1", "verdict": Verdict.REHEARSAL, "vendor": "ACME", "predicate": {}}
    verified = SimpleNamespace(runs=[preflight, run], answers=(), **told)
    monkeypatch.setattr(compare, "verify", lambda path, bench: verified)
    monkeypatch.setattr(compare.archive, "read_index", lambda path: SimpleNamespace(members={}))
    made, left_out = compare.compare([Path("x.tar")], bench=None)
    assert left_out == []
    return made


def test_utilisation_is_the_verified_reports_and_says_over_what(monkeypatch):
    mfu = {"declared_peak": 0.4, "measured_ceiling": 0.5, "measured_ceiling_causal": 0.45, "ceiling": "preflight-2"}
    (row,) = rows(monkeypatch, tflops={"model": 400.0, "recomputed": 420.0}, mfu=mfu)
    assert (row["mfu"], row["ceiling"]) == (0.5, "preflight-2")
    assert (row["tflops"], row["tgs"], row["devices"]) == (420.0, 4000.0, 2)


def test_without_a_speed_there_is_no_utilisation(monkeypatch):
    (row,) = rows(monkeypatch, tflops=None, mfu=None)
    assert (row["mfu"], row["ceiling"]) == (None, None)


def test_hours_to_the_target_are_steps_at_the_median_speed(monkeypatch):
    (row,) = rows(monkeypatch, loss={"held_since": 1799, "window_mean": 1.7})
    assert row["hours_to_target"] == pytest.approx(1800 * 32768 / 2 / 4000 / 3600)
    assert rows(monkeypatch, loss={"held_since": None})[0]["hours_to_target"] is None


def test_runs_are_ranked_among_those_of_as_many_layers(monkeypatch):
    (row,) = rows(monkeypatch, num_layers=8)
    assert (row["workload"], row["layers"], row["group"]) == ("w", 8, "w, 8 layers")


def test_energy_is_that_of_the_runs_own_devices(monkeypatch):
    header = "index, uuid, utilization.gpu [%], power.draw [W]"
    csv = "\n".join(
        [header, *(f"{n}, GPU-{n}, 99 %, {watts} W" for n, watts in enumerate((600, 200)) for _ in range(60))]
    )
    monkeypatch.setattr(compare, "telemetry", lambda files: {"environment/telemetry-node0.csv": [csv.encode()]})
    assert rows(monkeypatch)[0]["joules_per_token"] == pytest.approx(400 / 4000)
    (row,) = rows(monkeypatch, devices=[{"uuid": "GPU-0"}])
    assert row["joules_per_token"] == pytest.approx(600 / 4000)
    assert rows(monkeypatch, tgs=None)[0]["joules_per_token"] is None
