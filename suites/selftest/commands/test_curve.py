"""conformance curve make: from runs to a curve, and what makes none."""

import json
import shutil
from pathlib import Path

import pytest

from conformance.cli import main
from conformance.spec.curves import read_curve

FIXTURE = Path(__file__).resolve().parents[3] / "fixtures" / "tiny-accuracy-run"
LOGS = ("logs/node0/rank0.log", "logs/segment0/node0/rank0.log")


@pytest.fixture
def runs(tmp_path):
    """Three runs: a real one, and the same under other seeds."""
    made = []
    for seed in (1024, 1, 2):
        run = tmp_path / f"seed{seed}"
        shutil.copytree(FIXTURE, run)
        request = json.loads((run / "configs/request.json").read_text())
        (run / "configs/request.json").write_text(json.dumps({**request, "seed": seed}))
        for name in LOGS:
            text = (run / name).read_text()
            (run / name).write_text(text.replace("numpy: 1024", f"numpy: {seed}"))
        made.append(run)
    return made


@pytest.fixture(autouse=True)
def today(monkeypatch):
    """The fixture's journal, configuration and patches are those of the day it was made; other tests judge them."""
    from conformance.commands import curve

    other = ("run-attempts", "run-config", "patches-declared")
    monkeypatch.setattr(curve, "NOT_ASKED", (*curve.NOT_ASKED, *other))


def make(runs, out):
    return main(["curve", "make", *map(str, runs), "-o", str(out)])


def test_runs_of_several_seeds_make_a_curve(runs, tmp_path, capsys):
    assert make(runs, tmp_path / "c.json") == 0
    curve = read_curve(tmp_path / "c.json")
    assert (curve.workload, curve.seeds, curve.steps) == ("tiny-accuracy", (1024, 1, 2), 100)
    assert curve.total_steps == 100
    assert curve.data == json.loads((FIXTURE / "environment/data.json").read_text())["digest"]
    assert "InternEvo 0.2.2" in curve.source
    assert "3 runs of 100 steps" in capsys.readouterr().out


def set_seed_of_first(runs):
    shutil.copytree(runs[0], runs[2], dirs_exist_ok=True)


def shorten(runs):
    path = runs[2] / "configs/request.json"
    request = json.loads(path.read_text())
    path.write_text(json.dumps({**request, "overrides": {"total_steps": 99}}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda runs: runs.pop(), "takes 3 runs or more; got 2"),
        (set_seed_of_first, "have the same seed"),
        (shorten, "is no reference"),
        (lambda runs: (runs[1] / LOGS[1]).write_text(""), "is no reference"),
    ],
)
def test_what_makes_no_curve_is_one_sentence(runs, tmp_path, capsys, spoil, told):
    spoil(runs)
    assert make(runs, tmp_path / "c.json") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()
