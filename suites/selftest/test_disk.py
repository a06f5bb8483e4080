"""Disk is asked for before the cards are: as much as the checkpoints will take, on the disk that will hold them."""

import shutil
from collections import namedtuple

import pytest

from conformance import pipeline
from conformance.cli import main
from conformance.errors import LaunchError
from conformance.internevo.config import CHECKPOINT_FOLDER
from conformance.pipeline import MIN_FREE_BYTES
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload

PLAN = make_plan(load_workload("llama2-7b-accuracy"), Topology(8, 8))
ONE = 7_241_732_096 * 14  # bytes of a checkpoint
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Free bytes by folder; disks of hundreds of GB are not to be had here."""
    disks = {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, disks[path]))
    return disks


@pytest.mark.parametrize(("space", "enough"), [(3 * ONE + MIN_FREE_BYTES, True), (3 * ONE + MIN_FREE_BYTES - 1, False)])
def test_a_run_needs_three_checkpoints(tmp_path, free, space, enough):
    free[tmp_path] = space
    if enough:
        pipeline._require_space(tmp_path, PLAN, None)
        return
    with pytest.raises(LaunchError, match=rf"{3 * ONE >> 20} MiB of it for checkpoints"):
        pipeline._require_space(tmp_path, PLAN, None)


@pytest.fixture
def resumed(tmp_path):
    """An attempt that was resumed once: its checkpoints lie where the first attempt's do, on another disk."""
    run, earlier, disk = tmp_path / "run", tmp_path / "earlier", tmp_path / "disk"
    for step in (200, 400):
        (disk / str(step)).mkdir(parents=True)
        (disk / str(step) / f"{step}.step").touch()
    (earlier / "work").mkdir(parents=True)
    (earlier / "work" / CHECKPOINT_FOLDER).symlink_to(disk)
    run.mkdir()
    return run, earlier, disk


@pytest.mark.parametrize(
    ("on_run", "on_disk", "refused"),
    [
        (MIN_FREE_BYTES, ONE + MIN_FREE_BYTES, ""),  # two lie there already
        (MIN_FREE_BYTES, ONE, "disk"),
        (9 * ONE, ONE, "disk"),
        (MIN_FREE_BYTES - 1, 9 * ONE, "run"),
    ],
)
def test_a_resumed_run_needs_one_more_where_the_first_ones_checkpoints_lie(resumed, free, on_run, on_disk, refused):
    run, earlier, disk = resumed
    free |= {run: on_run, disk: on_disk}
    if not refused:
        pipeline._require_space(run, PLAN, earlier)
        return
    with pytest.raises(LaunchError, match=rf"holds \S*/{refused} has"):
        pipeline._require_space(run, PLAN, earlier)


def test_a_run_that_writes_no_checkpoints_needs_room_for_its_logs(tmp_path, free):
    free[tmp_path] = MIN_FREE_BYTES
    pipeline._require_space(tmp_path, make_plan(load_workload("llama2-7b-perf"), Topology(4, 8)), None)


def test_the_plan_tells_it_beforehand(capsys):
    assert main(["plan", "llama2-7b-accuracy", "--nodes", "8", "--devices-per-node", "8"]) == 0
    assert f"{3 * ONE / 1e9:,.1f} GB free" in capsys.readouterr().out
    assert main(["plan", "llama2-7b-perf", "--nodes", "4", "--devices-per-node", "8"]) == 0
    assert "GB free" not in capsys.readouterr().out
