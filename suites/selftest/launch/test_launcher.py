"""A process's place in a run, from options and from what torchrun, Slurm and Kubernetes set."""

import json
import os
import subprocess
import sys
import time

import pytest

from conformance.errors import LaunchError
from conformance.launch import torchrun
from conformance.launch.launcher import DEFAULT_PORT, agents, find_place
from conformance.preflight.driver import Ranks


def place(nodes, environ=None, launcher=None, node_rank=None, master_addr=None, master_port=None):
    found = find_place(nodes, launcher, node_rank, master_addr, master_port, environ or {})
    return found.launcher, found.node_rank, found.address, found.port


def test_options():
    assert place(4, node_rank=3, master_addr="n0", master_port=1234) == ("torchrun", 3, "n0", 1234)


@pytest.mark.parametrize("name", ["RANK", "NODE_RANK", "GROUP_RANK"])
def test_the_environment_of_the_benchmarks_own_command(name):
    environ = {name: "2", "MASTER_ADDR": "n0", "MASTER_PORT": "23456"}
    assert place(4, environ) == ("torchrun", 2, "n0", 23456)


def test_the_environment_of_a_pytorchjob():
    environ = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
    assert place(4, environ) == ("torchrun", 3, "job-master-0", 23456)


# As the training operator 1.8 sets them for 4 pods with nprocPerNode: "8".
ELASTIC = {
    "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "32", "RANK": "1",
    "PET_MASTER_ADDR": "job-master-0", "PET_MASTER_PORT": "23456", "PET_NPROC_PER_NODE": "8", "PET_NNODES": "4",
    "PET_NODE_RANK": "1",
}  # fmt: skip


def test_the_environment_of_a_pytorchjob_that_counts_processes():
    assert place(4, ELASTIC) == ("torchrun", 1, "job-master-0", 23456)
    assert place(4, {name: value for name, value in ELASTIC.items() if not name.startswith("MASTER_")})[2:] == (
        "job-master-0", 23456,
    )  # fmt: skip


def test_no_variable_of_torchruns_own_options_reaches_it(monkeypatch, tmp_path):
    for name, value in {**ELASTIC, "PET_MAX_RESTARTS": "3", "PET_RDZV_BACKEND": "etcd"}.items():
        monkeypatch.setenv(name, value)
    given = torchrun.environment(tmp_path)
    assert [name for name in given if name.startswith("PET_")] == ["PET_LOG_DIR"]
    assert given["RANK"] == "1"


@pytest.mark.needs("torch")
def test_torchrun_leaves_nothing_outside_the_run_directory(monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "run/work").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    command = [sys.executable, "-m", "torch.distributed.run", "--master_port", str(torchrun.free_port()), "--no-python"]
    subprocess.run([*command, "true"], env=torchrun.environment(tmp_path / "run"), check=True, timeout=60)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in (tmp_path / "run" / "work").iterdir()] == ["torchrun"]


CLOCK = """
import logging, time
logging.basicConfig(format="%(asctime)s", level=logging.INFO)
logging.Formatter.converter = lambda self, seconds: time.localtime({seconds})
logging.info("")
print(time.localtime().tm_gmtoff)
"""


@pytest.mark.parametrize("node", [0, 1])
def test_every_rank_of_every_node_logs_in_utc_whatever_zone_is_set_there(node, monkeypatch, tmp_path):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    change = 1792890000  # 25 October 2026, 01:00 UTC: there the clock goes back from 3 to 2
    found = [
        subprocess.run(
            [sys.executable, "-c", CLOCK.format(seconds=change + after)], env=torchrun.environment(tmp_path, node),
            capture_output=True, text=True, check=True,
        )
        for after in (-600, 600)
    ]  # fmt: skip
    assert [one.stderr[:19] for one in found] == ["2026-10-25 00:50:00", "2026-10-25 01:10:00"]
    assert {one.stdout for one in found} == {"0\n"}


def test_the_zone_of_a_run_is_recorded_and_no_node_differs_in_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert torchrun.recorded(torchrun.environment(tmp_path))["TZ"] == "UTC"
    theirs = torchrun.recorded({"TZ": "America/New_York", "OMP_SCHEDULE": "dynamic"})
    assert torchrun.differing(torchrun.recorded({"TZ": "Europe/Berlin"}), theirs) == {"OMP_SCHEDULE": "dynamic"}


def test_devices_are_counted_by_bus_as_nvidia_smi_does_that_tells_who_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    for given in (torchrun.environment(tmp_path), Ranks(2).environment(1)):  # a run's, and a preflight's
        assert given["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_recorded_variable_that_is_no_utf_8_can_be_written(tmp_path):
    program = (
        "import os; from pathlib import Path; from conformance.evidence import write_json;"
        "from conformance.launch.torchrun import recorded;"
        "write_json(Path.cwd(), 'it.json', recorded(os.environ))"
    )
    given = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    given |= {b"NCCL_TOPO_FILE": b"/opt/ger\xe4t/topo.xml"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=given, check=True, timeout=60)
    assert json.loads((tmp_path / "it.json").read_text())["NCCL_TOPO_FILE"] == r"/opt/ger\udce4t/topo.xml"


def test_options_come_before_the_environment():
    environ = {"RANK": "3", "MASTER_ADDR": "n0", "MASTER_PORT": "23456"}
    assert place(4, environ, node_rank=1, master_addr="n9", master_port=5) == ("torchrun", 1, "n9", 5)


def test_torchruns_own_port_is_the_default():
    assert place(2, node_rank=0, master_addr="n0")[3] == DEFAULT_PORT


def test_one_node_needs_nothing_and_ignores_the_pods_variables():
    assert place(1, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x"})[:3] == ("torchrun", 0, "127.0.0.1")


def test_inside_an_allocation_slurm_starts_the_nodes():
    environ = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NUM_NODES": "2"}
    assert place(2, environ) == ("slurm", 0, "", DEFAULT_PORT + 2 * 234)
    assert place(2, environ | {"SLURM_STEP_ID": "4294967290"})[0] == "slurm"  # as salloc's own shell had it
    assert place(1, environ)[0] == "torchrun"


@pytest.mark.parametrize("options", [{"node_rank": 1, "master_addr": "n0"}, {"node_rank": 1}, {"master_addr": "n0"}])
def test_who_says_which_node_this_is_types_the_command_on_each_inside_an_allocation_too(options):
    """Started by ssh with the job's environment, each would start all nodes, on the same devices."""
    environ = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NUM_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n0"}
    assert place(2, environ)[0] == "slurm"  # the variables alone say nothing: a site may set them everywhere
    assert place(2, environ, **options) == ("torchrun", 1, "n0", DEFAULT_PORT)


@pytest.mark.parametrize("launcher", ["slurm", "local"])
@pytest.mark.parametrize("name", ["node_rank", "master_addr"])
def test_a_launcher_that_starts_all_nodes_heeds_no_word_on_one(launcher, name):
    option, value = {"node_rank": ("--node-rank", 0), "master_addr": ("--master-addr", "n0")}[name]
    with pytest.raises(LaunchError, match=f"--launcher {launcher} starts all nodes .* heeds no {option}\\."):
        place(2, {"SLURM_JOB_ID": "1"}, launcher=launcher, **{name: value})


@pytest.mark.parametrize("port", [0, 65535, 99999])
@pytest.mark.parametrize(("nodes", "launcher"), [(1, "torchrun"), (2, "torchrun"), (2, "slurm"), (2, "local")], ids=str)
def test_a_port_that_nodes_cannot_meet_on_is_refused(nodes, launcher, port):
    environ, told = {"SLURM_JOB_ID": "1"}, f"to meet on is {port}; expected 1 to 65534, "
    options = {"node_rank": 0, "master_addr": "n0"} if launcher == "torchrun" else {}
    with pytest.raises(LaunchError, match=told):
        place(nodes, environ, launcher=launcher, master_port=port, **options)
    if launcher == "torchrun" and nodes > 1:
        with pytest.raises(LaunchError, match=told):
            place(nodes, environ | {"MASTER_PORT": str(port)}, **options)
    assert place(nodes, environ, launcher=launcher, master_port=65534, **options)[3] == 65534


def test_a_pytest_on_every_node_under_srun_is_torchruns_way():
    environ = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "NODE_RANK": "1", "MASTER_ADDR": "n0"}
    assert place(2, environ) == ("torchrun", 1, "n0", DEFAULT_PORT)


@pytest.mark.parametrize(
    ("environ", "options", "said"),
    [
        ({}, {"node_rank": 0}, "address of node 0"),
        ({"MASTER_ADDR": "n0"}, {}, "which node this is"),
        ({"MASTER_ADDR": "n0"}, {"node_rank": 4}, "expected 0 to 3"),
        ({"MASTER_ADDR": "n0", "RANK": "first"}, {}, "RANK is 'first'"),
        ({"MASTER_ADDR": "n0", "RANK": "1", "WORLD_SIZE": "32"}, {}, "do not count 4 nodes"),
        ({}, {"launcher": "slurm"}, "SLURM_JOB_ID is not set"),
        ({"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2"}, {}, "the allocation has 2"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_a_sentence(environ, options, said):
    with pytest.raises(LaunchError, match=said):
        place(4, environ, **options)


def test_the_index_of_one_node_of_several_is_not_taken_for_a_run_on_one():
    with pytest.raises(LaunchError, match="--node-rank 3 is not the index of one node"):
        place(1, node_rank=3)
    assert place(1, node_rank=0)[1] == 0


@pytest.fixture
def run(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("srun: error: no such partition", "srun: error: no such partition"),
        ("node 1: Node 0 is gone.\nsrun: error: n2: task 1: Exited with exit code 2", "node 1: Node 0 is gone."),
        ("Traceback:\nImportError: libx.so\nsrun: error: n2: task 1: Exited with exit code 1", "ImportError: libx.so"),
        ("", "an agent ended with exit code 1"),
    ],
)
def test_an_srun_that_fails_is_told_in_the_words_of_who_failed(printed, told, run, monkeypatch):
    (run / "bin").mkdir()
    (run / "bin" / "srun").write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{printed}\nEND\nexit 1\n")
    (run / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{run / 'bin'}:/usr/bin:/bin")
    with agents(find_place(2, "slurm", None, None, None, {"SLURM_JOB_ID": "1"}), run) as failed:
        end = time.monotonic() + 10
        while not failed() and time.monotonic() < end:
            time.sleep(0.05)
        assert failed() == told


def test_an_srun_that_is_not_there_is_a_sentence(run, monkeypatch):
    monkeypatch.setenv("PATH", str(run))
    with (
        pytest.raises(LaunchError, match="srun could not be started"),
        agents(find_place(2, "slurm", None, None, None, {"SLURM_JOB_ID": "1"}), run),
    ):
        pass


def test_nothing_is_started_where_the_same_command_is_typed_on_every_node(run):
    with agents(find_place(2, "torchrun", 0, "n0", None, {}), run) as failed:
        assert failed() == ""
    assert not (run / "work" / "agents.log").exists()
