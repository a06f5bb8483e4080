"""A whole preflight: what it leaves behind, and how several nodes bring their results together."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conformance.checks.preflight import CHECKS
from conformance.evidence import RunDirectory, read_json
from conformance.launch.torchrun import free_port
from conformance.preflight import session
from conformance.preflight.driver import Ranks
from conformance.preflight.session import read_findings
from conformance.preflight.worker import Task
from conformance.spec.expected import load_expected

ROOT = Path(__file__).parents[3]
NODE_VARIABLES = ("NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--nodes", "2"), "needs to know which node this is"),
        (("--nodes", "2", "--node-rank", "0"), "needs the address of node 0"),
        (("--nodes", "2", "--launcher", "slurm"), "needs an allocation"),
        (("--workload", "llama-3"), "There is no workload named 'llama-3'"),
        (("--devices-per-node", "5", "--device", "cuda"), "5 device(s) were asked for"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(args, told, tmp_path):
    command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "-p", "no:cacheprovider", *args]
    environment = {name: value for name, value in os.environ.items() if name not in NODE_VARIABLES}
    result = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_expected_figures_have_sources():
    for figure in load_expected():
        assert set(figure) == {"device", "measurement", "value", "unit", "source"}
        assert figure["value"] > 0


@pytest.mark.slow
def test_every_node_gets_what_all_nodes_measured(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    port = free_port()

    def node(rank):
        out = tmp_path / f"node{rank}" / "gather"
        task = Task("gather", "cpu", str(out), 0, True, {}, 0, 1, 1, 0.0)
        mine = {"host": [{"rank": rank, "records": [{"kind": "host", "host": f"node-{rank}"}]}]}
        return session._gather(mine, task, Ranks(1, 2, rank, "127.0.0.1", port))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(node, range(2))
    assert first == second
    assert [one["rank"] for one in first["host"]] == [0, 1]


@pytest.mark.slow
def test_two_nodes_of_this_machine_pass_as_one_cluster_and_leave_their_evidence(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "-p", "no:cacheprovider", "--device", "cpu"]
    command += ["--nodes", "2", "--devices-per-node", "1", "--launcher", "local", "--run-dir", str(run), "--seed", "5"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stdout
    assert "2 x cpu on 2 node(s), the shapes of tiny-perf, small ones: this is a rehearsal" in " ".join(
        result.stdout.split()
    )
    files = RunDirectory(run)
    assert read_json(files, session.SETUP)["seed"] == 5
    assert [finding.check for finding in read_findings(run)] == list(CHECKS)
    hosts = read_json(files, "environment/preflight-host.json")["processes"]
    assert [process["rank"] for process in hosts] == [0, 1]
    steps = read_json(files, "environment/preflight-step.json")["processes"]
    assert {record["tensor"] for process in steps for record in process["records"]} == {1, 2}
    page = (run / "report.html").read_text()
    assert "training-step" in page
    assert "http" not in page.split("</style>")[1]

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == pytest.ExitCode.USAGE_ERROR
    assert "is not empty" in again.stderr
