"""A real Slurm cluster of two nodes on this machine, and a real InternEvo run through it."""

import base64
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from conformance.cli import main

CLUSTER = runpy.run_path(str(Path(__file__).with_name("slurm_cluster.py")))
pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.needs("internlm")]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, real_parts):
    """The environment of a running cluster; its daemons are gone afterwards."""
    absent = CLUSTER["absent_programs"]()
    if os.geteuid() != 0 or absent:
        real_parts(f"needs root and Slurm (apt-get install slurm-wlm munge); absent: {', '.join(absent) or 'root'}")
    with CLUSTER["cluster"](tmp_path_factory.mktemp("slurm")) as environ:
        yield environ


@pytest.fixture
def submit(slurm, tmp_path, capsys):
    """Submit the printed script, as it was printed to the byte: sbatch, the run directory, and what the job says."""
    run, output = tmp_path / "run", tmp_path / "slurm.out"

    def start(steps):
        assert main(["launch-script", "slurm", "tiny-perf", "--nodes", "2", "--devices-per-node", "1"]) == 0
        script = tmp_path / "run.sbatch"
        script.write_text(capsys.readouterr().out)
        options = [
            "--set",
            f"total_steps={steps}",
            "--device",
            "cpu",
            "--reports",
            str(tmp_path),
            "--run-dir",
            str(run),
        ]
        path = f"{Path(sys.executable).parent}:{slurm['PATH']}"
        waiting = subprocess.Popen(
            ["sbatch", "--wait", "--parsable", f"--output={output}", script],
            env=slurm | {"PYTEST_ADDOPTS": shlex.join(options), "PATH": path},
            cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return waiting, run, lambda: output.read_text() if output.exists() else ""

    yield start
    subprocess.run(["scancel", "--user=root"], env=slurm, check=True)  # of this cluster, whose only user we are
    CLUSTER["wait_until_idle"](slurm, Path(slurm["SLURM_CONF"]).parent)


def wait_for_step(run, step, waiting, said):
    log = run / "logs/node0/rank0.log"
    end = time.monotonic() + 300
    while not (log.exists() and f" step={step} " in log.read_text()):
        assert time.monotonic() < end, said()
        assert waiting.poll() is None, said()
        time.sleep(0.1)


def judged(run):
    """The record of the run, its faults, and its signed verdict."""
    payload = json.loads(base64.b64decode(json.loads((run / "report.dsse.json").read_text())["payload"]))
    record = json.loads((run / "environment/run.json").read_text())
    return record, json.loads((run / "environment/faults.json").read_text())["faults"], payload["predicate"]["verdict"]


def test_the_printed_script_trains_on_both_nodes_of_an_allocation(submit):
    waiting, run, said = submit(2)
    result = waiting.communicate(timeout=400)
    assert (run / "report.dsse.json").exists(), (result, said()[-3000:])
    assert waiting.returncode == 0
    record, faults, verdict = judged(run)
    assert (record["launcher"], record["outcome"]) == ("slurm", "ended")
    assert set(record["hosts"]) == {"0", "1"}
    assert [agent[0] for agent in record["agents"]] == ["srun"]
    assert faults == []
    assert " step=1 " in (run / "logs/node0/rank0.log").read_text()
    assert "Raise exception" not in (run / "logs/node1/rank1.log").read_text()
    for node in (0, 1):
        assert (run / f"environment/telemetry-node{node}.csv").read_text().startswith("timestamp, index")
    (statement,) = re.findall(r"REHEARSAL: every required check passed", said())
    assert verdict == statement.partition(":")[0]


def test_a_job_that_slurm_ends_is_signed_as_interrupted(submit, slurm, left_over):
    waiting, run, said = submit(2000)
    wait_for_step(run, 3, waiting, said)
    (job,) = running_jobs(slurm)
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True)  # as --signal=B: does
    waiting.communicate(timeout=300)
    record, _, verdict = judged(run)
    assert record["outcome"] == "interrupted", said()[-3000:]
    assert verdict == "NOT_CONFORMANT"
    assert left_over(run) == []


def test_a_rank_that_is_killed_on_the_second_node_is_named(submit, left_over, table):
    waiting, run, said = submit(2000)
    wait_for_step(run, 3, waiting, said)
    rank = min((each for each in left_over(run) if variable(each, "RANK") == "1"), key=lambda each: each.create_time())
    rank.kill()
    killed = time.time()
    waiting.communicate(timeout=300)
    record, (fault,), verdict = judged(run)
    late = datetime.fromisoformat(record["started"]).timestamp() + fault["seconds"] - killed
    table.append(("Slurm: SIGKILL of rank 1 on the second node", late, fault["message"]))
    assert (fault["kind"], fault["node"], fault["rank"]) == ("rank-died", 1, 1), said()[-3000:]
    assert "SIGKILL" in fault["message"]
    assert (record["outcome"], verdict) == ("stopped", "NOT_CONFORMANT")
    assert left_over(run) == []


def variable(process, name):
    try:
        return process.environ().get(name)
    except psutil.Error:  # it has just ended
        return None


def running_jobs(environ):
    return subprocess.run(["squeue", "-h", "-o", "%i"], env=environ, capture_output=True, text=True).stdout.split()
