"""A claim on a folder: one process at a time, and none that was killed."""

import os
import signal
import subprocess
import sys

import pytest

from conformance.claim import LOCK, claimed, lock
from conformance.errors import ConformanceError, LaunchError

HOLD = """
import os, signal, subprocess, sys
from pathlib import Path
from conformance.errors import LaunchError
from conformance.claim import claimed
with claimed(Path(sys.argv[1]), LaunchError("taken")):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=-3, stderr=-3)
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_claim_ends_with_the_process_that_was_killed_and_not_with_its_children(tmp_path):
    holder = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, timeout=50)
    child = int(holder.stdout)
    try:
        os.kill(child, 0)  # it lives, and holds nothing
        refused = pytest.raises(LaunchError, match="taken")
        with claimed(tmp_path, LaunchError("mine")), refused, claimed(tmp_path, LaunchError("taken")):
            pytest.fail("claimed twice")
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("wait", [True, False])
def test_where_the_file_system_knows_no_locks_nobody_waits_for_one(tmp_path, no_locks, wait):
    with (tmp_path / "file").open("ab") as one, (tmp_path / "file").open("ab") as other:
        assert [lock(stream, wait) for stream in (one, other)] == [False, False]


def test_a_locked_file_is_told_from_one_that_cannot_be_locked(tmp_path):
    with (tmp_path / "file").open("ab") as one, (tmp_path / "file").open("ab") as other:
        assert lock(one)
        with pytest.raises(BlockingIOError):
            lock(other, wait=False)


def test_where_the_file_system_knows_no_locks_nobody_is_refused(tmp_path, no_locks):
    with claimed(tmp_path, LaunchError("first")), claimed(tmp_path, LaunchError("second")):
        assert (tmp_path / LOCK).is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    told = pytest.raises(ConformanceError, match=r"file cannot be written: .+\. Choose another folder\.")
    with told, claimed(tmp_path / "file", LaunchError("taken")):
        pytest.fail("claimed")
