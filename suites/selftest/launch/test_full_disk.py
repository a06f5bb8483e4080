"""A disk that fills within a second under a real run: the fault is named, the report signed, the journal whole."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conformance import journal

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.needs("internlm")]

ROOT = Path(__file__).parents[3]


def test_a_disk_that_fills_at_once_takes_neither_the_fault_nor_the_report(tmp_path, small_disk, left_over, table):
    disk = small_disk(330 << 20)
    run, log = disk / "run", disk / "run/logs/node0/rank0.log"
    suite = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "suites/perf", "-m", "tiny"]
    options = ["--device", "cpu", "--devices-per-node", "1", "--set", "total_steps=2000"]
    process = subprocess.Popen(
        [*suite, *options, "--reports", str(tmp_path), "--run-dir", str(run)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while not (log.exists() and " step=3 " in log.read_text()) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            # All at once, and no more: who is slower would go on into what the run frees for its own end.
            os.posix_fallocate(other.fileno(), 0, shutil.disk_usage(disk).free - (64 << 10))
            other.seek(0, os.SEEK_END)
            for _ in range(16):
                other.write(b"\0" * (4 << 10))
        begun = time.monotonic()
        said = process.communicate(timeout=240)[0]
    finally:
        process.kill()
    (fault,) = json.loads((run / "environment/faults.json").read_text())["faults"]
    told = f"{fault['message']} [to the end of the suite, report and all]"
    table.append(("InternEvo: disk filled at once", time.monotonic() - begun, told))
    assert fault["kind"] == "full-disk"
    assert fault["host"]
    assert fault["last_step"] >= 3
    assert fault["message"] in " ".join(said.split())
    assert (run / "report.dsse.json").exists(), said
    events = [entry["event"] for entry in journal.parse((tmp_path / "journal.jsonl").read_bytes()).entries]
    assert events == ["started", "ended"]
    assert (run / "journal.jsonl").read_bytes() == (tmp_path / "journal.jsonl").read_bytes()
    assert left_over(run) == []
