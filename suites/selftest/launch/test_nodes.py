"""The container command of the printed PyTorchJob in two pods: node 0 judges and signs, the other ends as it does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.cli import main
from conformance.launch.launcher import _free_pair

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

ROOT = Path(__file__).parents[3]


def variables(rank, port):
    """What the training operator sets in a pod, by its version 1.8: the older ones set the first five."""
    master = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    elastic = {"PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": str(rank), "PET_NNODES": "2"}
    odd = {"OMP_SCHEDULE": "dynamic"} if rank else {}  # of no consequence, and told
    return {"PYTHONUNBUFFERED": "0"} | master | elastic | odd


def start_pod(command, reports, rank, port, steps):
    mounted = [reports if part == "/reports" else part for part in json.loads(command)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    fewer = {"PATH": path, "PYTEST_ADDOPTS": f"--device cpu --set total_steps={steps} -p no:cacheprovider"}
    return subprocess.Popen(
        mounted, cwd=ROOT, env=os.environ | variables(rank, port) | fewer,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture
def start(tmp_path, capsys):
    """Start two pods for so many steps."""
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")

    def pods(steps):
        assert main(["launch-script", "kubernetes", "tiny-perf", "--nodes", "2", "--devices-per-node", "1"]) == 0
        manifest, port = capsys.readouterr().out, _free_pair()
        assert re.findall(r"^    (\w+):\n      replicas: (\d+)$", manifest, re.M) == [("Master", "1"), ("Worker", "1")]
        commands = re.findall(r"^ +command: (\[.*\])$", manifest, re.M)  # a test of launch-script parses all the YAML
        return [start_pod(one, str(tmp_path / str(rank)), rank, port, steps) for rank, one in enumerate(commands)]

    return pods


def test_two_pods_with_one_verdict(tmp_path, start):
    nodes = start(2)
    said = [node.communicate(timeout=500)[0] for node in nodes]
    (run,) = (path.parent for path in (tmp_path / "0").glob("*/report.dsse.json"))
    assert (run / "logs/node1/rank1.log").stat().st_size > 0, said
    assert (run / "environment/rank1.json").exists()
    assert (run / "environment/telemetry-node1.csv").exists()
    record = json.loads((run / "environment/run.json").read_text())
    assert (record["outcome"], record["launcher"]) == ("ended", "torchrun")
    assert record["environment"]["WORLD_SIZE"] == "2"
    assert record["environment_differs"] == {"1": {"OMP_SCHEDULE": "dynamic"}}
    assert set(record["hosts"]) == {"0", "1"}
    theirs = tmp_path / "1" / run.name
    assert not (theirs / "report.dsse.json").exists()
    assert (theirs / "logs/node1/rank1.log").read_bytes() == (run / "logs/node1/rank1.log").read_bytes()
    assert "REHEARSAL" in said[0], said
    assert "REHEARSAL" in said[1], said
    assert "on node 0" in said[1]
    assert "FAIL run-environment" in said[0], said
    assert [node.returncode for node in nodes] == [0, 0]  # advice


def test_ctrl_c_on_node_0_ends_the_other_in_the_same_way(tmp_path, start, left_over):
    nodes = start(2000)
    end = time.monotonic() + 300
    while not any(" step=3 " in log.read_text() for log in (tmp_path / "0").glob("*/logs/node0/rank0.log")):
        assert time.monotonic() < end
        time.sleep(0.2)
    nodes[0].send_signal(signal.SIGINT)
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [pytest.ExitCode.INTERRUPTED] * 2, said
    assert all("The run was interrupted" in each and "NOT_CONFORMANT" in each for each in said), said
    assert not any("Traceback" in each for each in said), said
    runs = [path for rank in "01" for path in (tmp_path / rank).glob("*-tiny-perf")]
    assert len(runs) == 2
    assert left_over(*runs) == []
