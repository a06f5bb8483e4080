"""The watch over a run: it stops at the target, warns, interrupts, and removes old checkpoints."""

from dataclasses import replace

import numpy as np
import pytest

from conformance.launch.detect import Step
from conformance.launch.supervise import Interrupted
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload
from conformance.spec.curves import Curve
from conformance.watch import STOP_MARGIN, Watch, disk_bytes, forecast, held, remove_old_checkpoints

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
        watch.step(Step(number, float(loss), 100.0))


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


def test_it_does_not_stop_unasked(run):
    feed(Watch(LONG, run, Shown()), noisy(TARGET - 1, 600))
    assert stop_of(run) is None


def test_held_wants_the_upper_bound_below():
    assert held(np.full(40, 1.0) + noisy(0, 40), 1.1)
    assert not held(np.full(40, 1.0) + noisy(0, 40), 1.001)
    assert not held(np.array([1.0, np.nan] * 20), 1.1)
    assert not held(np.full(19, 1.0), 1.1)


def curve_of(losses):
    runs = tuple(tuple((losses * (1 + noisy(0, 100, seed) / 10)).tolist()) for seed in range(5))
    return Curve("tiny-accuracy", 2, 100, 1024, "dummy", tuple(range(5)), runs, "made up")


def test_a_run_off_its_curve_is_warned_of_at_step_100(run):
    losses = 5 + 5 * np.exp(-np.arange(100) / 20)
    for factor, expected in ((1.0, []), (1.1, ["off-curve"])):
        shown = Shown()
        feed(Watch(TINY, run, shown, curve=curve_of(losses)), losses * factor)
        assert [fault.kind for fault in shown.notices if fault.kind == "off-curve"] == expected


def test_a_run_that_will_not_make_it_is_warned_of_and_goes_on(run):
    steps = np.arange(1000)
    for end, expected in ((TARGET + 1, True), (TARGET - 1, False)):
        shown = Shown()
        slow = end + 0.3 * (np.log(2000) - np.log(steps + 1)) + noisy(0, 1000)
        feed(Watch(LONG, run, shown), slow)
        assert ("off-target" in {fault.kind for fault in shown.notices}) is expected
        assert shown.steps[-1] == 999


def test_a_forecast_is_within_its_error():
    line = 8 - 0.5 * np.log(np.arange(1000) + 1)
    value, error = forecast(line + noisy(0, 1000), 4000)
    assert abs(value - (8 - 0.5 * np.log(4000))) < 4 * error < 0.2
    assert forecast(line[:48], 4000) is None


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
    assert disk_bytes(make_plan(load_workload("tiny-perf"), Topology(1, 2))) == 0
