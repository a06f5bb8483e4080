"""The watch over a run: it stops at the target, warns, interrupts, and removes old checkpoints."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformance.internevo.log import parse_log
from conformance.launch.detect import Detector, Limits, Step
from conformance.launch.supervise import Interrupted
from conformance.metrics.target import held
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload
from conformance.spec.curves import Curve
from conformance.watch import (
    STOP_MARGIN,
    Watch,
    disk_bytes,
    earlier_steps,
    forecast,
    reference_of,
    remove_old_checkpoints,
)

ROOT = Path(__file__).resolve().parents[2]
RESUMED = ROOT / "fixtures" / "tiny-accuracy-run"

TINY = make_plan(load_workload("tiny-accuracy"), Topology(1, 2))
LONG = replace(TINY, total_steps=2000)
TARGET = TINY.workload.loss_target


class Shown:
    def __init__(self):
        self.steps, self.notices = [], []

    def step(self, step):
        self.steps.append(step.step)

    def notice(self, fault):
        self.notices.append(fault)

    def waiting(self, missing, seconds): ...

    def nodes(self, views): ...


def feed(watch, losses, first=0):
    for number, loss in enumerate(losses, first):
        watch.step(Step(number, float(loss), 100.0, float(loss)))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path


def stop_of(run):
    path = run / "work" / "stop"
    return int(path.read_text()) if path.exists() else None


def noisy(level, count, seed=1):
    return np.random.default_rng(seed).normal(level, 0.02, count)


def test_it_stops_once_the_loss_was_held(run):
    watch = Watch(LONG, run, Shown(), until_target=True)
    feed(watch, noisy(TARGET + 0.5, 500))
    assert stop_of(run) is None
    feed(watch, noisy(TARGET - 0.2, 150), 500)
    assert stop_of(run) is None  # the window's mean is below, and not yet for a window more
    feed(watch, noisy(TARGET - 0.2, 50), 650)
    assert 650 < stop_of(run) - STOP_MARGIN <= 700


def test_a_stop_is_taken_back_when_the_loss_rises(run):
    watch = Watch(LONG, run, Shown(), until_target=True)
    feed(watch, noisy(TARGET - 0.2, 20))
    assert stop_of(run) > 0
    feed(watch, [TARGET + 9], 20)
    assert stop_of(run) == 0


def test_an_order_that_came_too_late_is_given_again(run):
    watch = Watch(LONG, run, Shown(), until_target=True)
    feed(watch, noisy(TARGET - 0.2, 20))
    first = stop_of(run)
    feed(watch, noisy(TARGET - 0.2, first), 20)
    assert stop_of(run) > first


def test_an_order_that_could_not_be_written_is_given_again_and_ends_no_run(run, monkeypatch):
    watch = Watch(LONG, run, Shown(), until_target=True)
    with monkeypatch.context() as network:
        network.setattr(Path, "replace", lambda *_: refused(errno.ESTALE))
        feed(watch, noisy(TARGET - 0.2, 20))
    assert stop_of(run) is None
    feed(watch, noisy(TARGET - 0.2, 1), 20)
    assert stop_of(run) == 21 + STOP_MARGIN


def test_an_order_for_which_the_disk_has_no_room_is_told(run, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda *_: refused(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device"):
        feed(Watch(LONG, run, Shown(), until_target=True), noisy(TARGET - 0.2, 20))


def refused(number):
    raise OSError(number, os.strerror(number))


def test_it_does_not_stop_unasked(run):
    feed(Watch(LONG, run, Shown()), noisy(TARGET - 1, 600))
    assert stop_of(run) is None


def write_segment(run, number, losses, first=0, means=None):
    """What an earlier attempt leaves in the run that resumes it."""
    folder = run / f"logs/segment{number}/node0"
    folder.mkdir(parents=True)
    means = losses if means is None else means
    lines = [
        f"2026-01-01 00:00:00,000\tINFO t.py:1 in f -- tflops=1.0 step={step} loss={loss} "
        f"tgs (tokens/gpu/second)=100.5 loss_from_metric={mean} \n"
        for step, (loss, mean) in enumerate(zip(losses, means, strict=True), first)
    ]
    (folder / "rank0.log").write_text("".join(lines))
    (folder / "rank1.log").write_text("nothing of interest\n")


def test_a_resumed_run_is_stopped_by_all_of_its_losses(run):
    write_segment(run, 0, noisy(TARGET - 0.2, 600))
    watch = Watch(LONG, run, Shown(), until_target=True)
    feed(watch, noisy(TARGET - 0.2, 5), 500)
    assert stop_of(run) == 501 + STOP_MARGIN  # it was held before the resumption, and still is


def test_a_resumed_run_is_not_stopped_while_its_window_reaches_back_above(run):
    write_segment(run, 0, noisy(TARGET + 0.5, 600))
    watch = Watch(LONG, run, Shown(), until_target=True)
    feed(watch, noisy(TARGET - 0.2, 100), 600)
    assert stop_of(run) is None  # a window of this attempt alone would have 20 steps


def test_the_loss_over_all_ranks_must_be_below_too(run):
    watch = Watch(LONG, run, Shown(), until_target=True)
    for number, loss in enumerate(noisy(TARGET - 0.2, 100)):
        watch.step(Step(number, float(loss), 100.0, TARGET + 0.1))
    assert stop_of(run) is None


def test_what_earlier_attempts_logged_is_read_in_their_order(run):
    write_segment(run, 0, [1.0, 2.0, 3.0], means=[1.5, 2.5, 3.5])
    write_segment(run, 1, [4.0, 5.0], first=2)
    assert [(step.step, step.loss, step.mean_loss) for step in earlier_steps(run)] == [
        (0, 1.0, 1.5),
        (1, 2.0, 2.5),
        (2, 3.0, 3.5),
        (2, 4.0, 4.0),
        (3, 5.0, 5.0),
    ]


def test_held_wants_the_upper_bound_below():
    assert held(1.1, np.full(40, 1.0) + noisy(0, 40))
    assert not held(1.001, np.full(40, 1.0) + noisy(0, 40))
    assert not held(1.1, np.array([1.0, np.nan] * 20))
    assert not held(1.1, np.full(19, 1.0))
    assert not held(1.1, np.array([]))
    assert not held(1.1, np.full(40, 1.0), np.full(40, 1.2))


def test_held_wants_every_mean_of_a_window_s_length():
    losses = np.full(40, 1.0) + noisy(0, 40)
    losses[-19] = 3.0  # in windows that end within the last ten steps
    assert not held(1.1, losses)
    losses[-19], losses[-21] = 1.0, 3.0  # in none
    assert held(1.1, losses)


def made_up(losses):
    runs = tuple(tuple((losses * (1 + noisy(0, 100, seed) / 10)).tolist()) for seed in range(5))
    return Curve("tiny-accuracy", 2, 100, 1024, "dummy", tuple(range(5)), runs, "made up")


DESCENT = 5 + 5 * np.exp(-np.arange(100) / 20)
# Within the bound of the largest block, beyond that of the root mean square: a deviation that stays.
STAYING = np.where(np.arange(100) < 20, 1.0, 1.006)


@pytest.mark.parametrize(
    ("factor", "told"), [(1.0, False), (1.1, True), (STAYING, True)], ids=["on", "off", "stays off"]
)
def test_a_run_off_its_curve_is_warned_of_at_step_100(run, factor, told):
    shown = Shown()
    feed(Watch(TINY, run, shown, curve=made_up(DESCENT)), DESCENT * factor)
    assert [fault.kind for fault in shown.notices if fault.kind == "off-curve"] == ["off-curve"] * told


def test_a_resumed_run_is_warned_of_too(run):
    write_segment(run, 0, DESCENT[:66] * 1.1)
    shown = Shown()
    feed(Watch(TINY, run, shown, curve=made_up(DESCENT)), DESCENT[60:] * 1.1, 60)
    assert "off-curve" in {fault.kind for fault in shown.notices}


def test_a_rank_that_left_its_record_in_part_does_not_end_the_run(run):
    (run / "environment").mkdir(exist_ok=True)
    (run / "environment/rank0.json").write_text('{"rank": 0, "dev')
    shown = Shown()
    feed(Watch(TINY, run, shown, curve=made_up(DESCENT)), DESCENT * 1.1)
    assert "off-curve" in {fault.kind for fault in shown.notices}


def test_only_the_loss_over_all_ranks_is_held_against_the_curve(run):
    shown = Shown()
    watch = Watch(TINY, run, shown, curve=made_up(DESCENT))
    for step, loss in enumerate(DESCENT):
        watch.step(Step(step, float(loss) * 1.1, 100.0, float(loss)))
    assert shown.notices == []


def test_a_real_honest_run_that_was_resumed_is_not_warned_of(run):
    """As the supervisor reads its log; its rank's own loss would be off the curve."""
    shutil.copytree(RESUMED / "logs/segment0", run / "logs/segment0")
    (run / "environment").mkdir()
    shutil.copy(RESUMED / "environment/data.json", run / "environment")
    shown = Shown()
    curve = reference_of(TINY, run)
    assert curve is not None
    watch = Watch(TINY, run, shown, curve=curve)
    name = "logs/node0/rank0.log"
    for step in Detector(2, 100, Limits(), started=0.0).feed(name, (RESUMED / name).read_bytes(), now=1.0):
        watch.step(step)
    assert (len(shown.steps), shown.notices) == (40, [])


def test_a_run_on_other_data_has_no_curve(run):
    (run / "environment").mkdir()
    digest = json.loads((RESUMED / "environment/data.json").read_text())
    (run / "environment/data.json").write_text(json.dumps({**digest, "digest": "f" * 64}))
    assert reference_of(TINY, run) is None


def test_a_performance_run_is_warned_of_too(run):
    plan = make_plan(load_workload("slice-7b-perf"), Topology(1, 1), {"num_layers": 6, "total_steps": 100})
    curve = reference_of(plan, run)
    for factor, expected in ((1.0, []), (1.3, ["off-curve"])):
        shown = Shown()
        feed(Watch(plan, run, shown, curve=curve), np.array(curve.losses[0]) * factor)
        assert [fault.kind for fault in shown.notices] == expected


def test_a_run_that_will_not_make_it_is_warned_of_and_goes_on(run):
    steps = np.arange(1000)
    for end, expected in ((TARGET + 1, True), (TARGET - 1, False)):
        shown = Shown()
        slow = end + 0.3 * (np.log(2000) - np.log(steps + 1)) + noisy(0, 1000)
        feed(Watch(LONG, run, shown), slow)
        assert ("off-target" in {fault.kind for fault in shown.notices}) is expected
        assert shown.steps[-1] == 999


def test_a_forecast_is_within_its_error():
    steps = np.arange(1000)
    line = 8 - 0.5 * np.log(steps + 1)
    value, error = forecast(steps, line + noisy(0, 1000), 4000)
    assert abs(value - (8 - 0.5 * np.log(4000))) < 4 * error < 0.2
    assert forecast(steps[:48], line[:48], 4000) is None


def real_losses():
    """An accuracy run of 400 steps on an H200, which ends at a mean loss of 3.20."""
    path = ROOT / "reference_logs/h200-120m-resumed-v0.3.1.log"
    with path.open("rb") as stream:
        first, second = (log.steps for log in parse_log(stream, path.name))
    whole = [*first["loss"][first["step"] < second["step"][0]], *second["loss"]]
    assert len(whole) == 400
    return whole


@pytest.mark.parametrize(("target", "told"), [(3.25, set()), (2.6, {"off-target"})], ids=["reached", "far off"])
def test_what_a_real_run_is_warned_of(run, target, told):
    plan = make_plan(load_workload("slice-120m-accuracy"), Topology(1, 1), {})
    plan = replace(plan, total_steps=400, workload=replace(plan.workload, loss_target=target))
    shown = Shown()
    feed(Watch(plan, run, shown), real_losses())
    assert {fault.kind for fault in shown.notices} == told


def test_it_ends_an_attempt_where_it_is_told_to(run):
    watch = Watch(TINY, run, Shown(), interrupt_at=65)
    feed(watch, noisy(5, 65))
    with pytest.raises(Interrupted):
        feed(watch, [5.0], 65)


def test_only_complete_old_checkpoints_are_removed(tmp_path):
    for name in ("20", "40", "60", "80"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pt").write_text("x")
    for name in ("20", "40", "60"):
        (tmp_path / name / f"{name}.step").write_text("")
    (tmp_path / "pings").mkdir()
    remove_old_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["40", "60", "80", "pings"]


def test_disk_needed():
    # Of the 7B model one checkpoint is 7.24e9 x 14 bytes.
    seven = make_plan(load_workload("llama2-7b-accuracy"), Topology(8, 8))
    assert disk_bytes(seven) == 7_241_732_096 * 14 * 3
    # A resumed run has those that are kept already, and writes one more.
    assert [disk_bytes(seven, kept) for kept in (1, 2, 5)] == [7_241_732_096 * 14 * n for n in (2, 1, 1)]
    assert disk_bytes(make_plan(load_workload("tiny-perf"), Topology(1, 2))) == 0
