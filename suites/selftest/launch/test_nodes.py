"""The same command typed on two nodes that share no folder: node 0 judges and signs, the other ends as it does."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.launch.launcher import _free_pair

pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def start(reports, *options):
    command = [sys.executable, "-m", "pytest", "suites/perf", "-q", "-m", "tiny", "--device", "cpu"]
    command += ["--nodes", "2", "--devices-per-node", "1", "--set", "total_steps=2", "--reports", str(reports)]
    return subprocess.Popen(
        [*command, *map(str, options)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_nodes_with_one_verdict(tmp_path):
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")
    meeting = ["--launcher", "torchrun", "--master-addr", "127.0.0.1", "--master-port", _free_pair()]
    nodes = [start(tmp_path / str(rank), *meeting, "--node-rank", rank) for rank in (0, 1)]
    said = [node.communicate(timeout=500)[0] for node in nodes]
    (run,) = (path.parent for path in (tmp_path / "0").glob("*/report.dsse.json"))
    assert (run / "logs/node1/rank1.log").stat().st_size > 0, said
    assert (run / "environment/rank1.json").exists()
    assert (run / "environment/telemetry-node1.csv").exists()
    assert json.loads((run / "environment/run.json").read_text())["outcome"] == "ended"
    theirs = tmp_path / "1" / run.name
    assert not (theirs / "report.dsse.json").exists()
    assert (theirs / "logs/node1/rank1.log").read_bytes() == (run / "logs/node1/rank1.log").read_bytes()
    assert "REHEARSAL" in said[0], said
    assert "REHEARSAL" in said[1], said
    assert "on node 0" in said[1]
    assert nodes[0].returncode == nodes[1].returncode
