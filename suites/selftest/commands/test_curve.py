"""conformance curve: from runs to a curve, what makes none, and other runs held against one."""

import json
import re
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
        set_seed(run, seed)
        made.append(run)
    return made


def set_seed(run, seed):
    path = run / "configs/request.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": seed}))
    for name in LOGS:
        text = (run / name).read_text()
        (run / name).write_text(re.sub(r"numpy: \d+", f"numpy: {seed}", text))


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
        (shorten, "differ in more than their seed"),
        (lambda runs: (runs[1] / LOGS[1]).write_text(""), "is no reference"),
    ],
)
def test_what_makes_no_curve_is_one_sentence(runs, tmp_path, capsys, spoil, told):
    spoil(runs)
    assert make(runs, tmp_path / "c.json") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def compare(runs, *options):
    return main(["curve", "compare", *map(str, runs), *map(str, options)])


def scale(runs, factor):
    """The losses of all ranks, the whole run through."""
    for run in runs:
        for name in LOGS:
            text = (run / name).read_text()
            edited = re.sub(
                r"loss_from_metric=(\S+)", lambda found: f"loss_from_metric={float(found[1]) * factor:.4f}", text
            )
            (run / name).write_text(edited)


def test_honest_runs_are_on_the_suites_own_curve(runs, capsys):
    assert compare(runs[:1]) == 0
    one = capsys.readouterr().out
    assert one.startswith("tiny-accuracy, mean of 1 run of seed 1024.\nPASS: Over the first 100 steps")
    assert compare(runs) == 0
    three = capsys.readouterr().out
    assert three.startswith("tiny-accuracy, mean of 3 runs of seed 1024, 1, 2.\nPASS: ")
    assert bound(three) < bound(one)


def bound(told):
    return float(re.search(r"bound ([\d.]+)%", told)[1])


def test_what_one_run_hides_in_its_noise_several_show(runs):
    """All three are the same run: what is added to it stands out of the narrower bound first."""
    while compare(runs) == 0:
        scale(runs, 1.002)
    assert compare(runs[:1]) == 0


def test_runs_are_held_against_a_curve_of_the_vendors_own(runs, tmp_path, capsys):
    assert make(runs, tmp_path / "c.json") == 0
    assert compare(runs[:1], "--curve", tmp_path / "c.json") == 0
    assert "curve of 3 reference runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (set_seed_of_first, "have the same seed"),
        (shorten, "differ in more than their seed"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(runs, capsys, spoil, told):
    spoil(runs)
    assert compare(runs) == 2
    assert told in capsys.readouterr().err


def test_a_curve_of_other_data_is_none_of_theirs(runs, tmp_path, capsys):
    assert make(runs, tmp_path / "c.json") == 0
    value = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**value, "data": "f" * 64}))
    assert compare(runs, "--curve", tmp_path / "c.json") == 2
    assert "is no curve of tiny-accuracy as it was run here" in capsys.readouterr().err


def tell_generator(runs, name="cpu"):
    """As the CPU's plugin has recorded it since the fixture was made."""
    for run in runs:
        for path in run.glob("environment/**/rank*.json"):
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "device": {**record["device"], "generator": name}}))


@pytest.fixture
def twins(runs, tmp_path):
    """The same runs once more, rounded in another way."""
    tell_generator(runs)
    made = []
    for number, run in enumerate(runs):
        made.append(shutil.copytree(run, tmp_path / f"twin-{run.name}"))
        scale(made[-1:], 1.00005 + number / 50_000)
    return made


def make_with(runs, twins, out):
    return main(["curve", "make", *map(str, runs), "--twins", *map(str, twins), "-o", str(out)])


def test_a_run_is_held_against_the_one_of_its_own_seed(runs, twins, tmp_path, capsys):
    assert make_with(runs, twins, tmp_path / "c.json") == 0
    curve = read_curve(tmp_path / "c.json")
    assert curve.origin == "InternEvo 0.2.2, cpu, dp 2 x tp 1 x pp 1, 2 x 1 sequences"
    assert [len(twin) for twin in curve.twins] == [6, 6, 6]
    assert curve.twins[1][0] == pytest.approx(curve.losses[1][0] * 1.00007, abs=1e-4)
    assert compare(runs[:1], "--curve", tmp_path / "c.json") == 0
    assert "from the reference run of its seed by 0.0005%" in capsys.readouterr().out
    scale(runs[:1], 1.002)
    assert compare(runs[:1], "--curve", tmp_path / "c.json") == 1
    assert "it leaves that run at step 0" in capsys.readouterr().out


def test_a_run_on_another_generator_is_held_against_the_curve_alone(runs, twins, tmp_path, capsys):
    assert make_with(runs, twins, tmp_path / "c.json") == 0
    tell_generator(runs, "abacus")
    assert compare(runs[:1], "--curve", tmp_path / "c.json") == 0
    assert "No reference run began with its weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil",
    [
        lambda runs, twins: set_seed(twins[0], 7),
        lambda runs, twins: twins.__setitem__(0, runs[0]),
        lambda runs, twins: tell_generator(twins, "abacus"),
        lambda runs, twins: tell_generator([*runs, *twins], ""),
    ],
    ids=["another seed", "the run itself", "other weights", "weights unknown"],
)
def test_what_is_no_twin_is_one_sentence(runs, twins, tmp_path, capsys, spoil):
    spoil(runs, twins)
    assert make_with(runs, twins, tmp_path / "c.json") == 2
    assert "are no second runs of the same seeds" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()
