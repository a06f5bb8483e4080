"""A claim on a folder: one process at a time, and none that was killed."""

import os
import signal
import subprocess
import sys

import pytest

from conformance.errors import LaunchError
from conformance.launch.claim import claimed

HOLD = """
import os, signal, subprocess, sys
from pathlib import Path
from conformance.errors import LaunchError
from conformance.launch.claim import claimed
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
