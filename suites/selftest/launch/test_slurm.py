"""A real Slurm cluster of two nodes on this machine, and a real InternEvo run through it."""

import base64
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.cli import main
from conformance.launch.torchrun import free_port

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo", "scontrol")
CONFIG = """
ClusterName=rehearsal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs={cpus} RealMemory=256 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs={cpus} RealMemory=256 Gres=gpu:1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a running cluster; its daemons are gone afterwards."""
    search = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=search) is None]
    if os.geteuid() != 0 or absent:
        pytest.skip(f"needs root and Slurm (apt-get install slurm-wlm munge); absent: {', '.join(absent) or 'root'}")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    folder.chmod(0o755)
    names = {"host": socket.gethostname(), "folder": folder, "cpus": os.cpu_count()}
    ports = {name: free_port() for name in ("ctld", "n1", "n2")}
    (folder / "slurm.conf").write_text(CONFIG.format(**names, **ports))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    environ = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": search}
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    daemons = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            with (folder / "daemons.log").open("ab") as output:
                daemons.append(subprocess.Popen(command, env=environ, stdout=output, stderr=output))
            time.sleep(0.5)
        wait_until_idle(environ, folder)
        yield environ
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait_until_idle(environ, folder):
    for _ in range(100):
        told = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %t"], env=environ, capture_output=True, text=True)
        if told.stdout.split() == ["n1", "idle", "n2", "idle"]:
            return
        time.sleep(0.3)
    logs = "\n".join(f"{log}: {log.read_text()[-1500:]}" for log in folder.glob("*.log"))
    raise AssertionError(f"Slurm did not come up: {told.stdout} {told.stderr}\n{logs}")


def test_the_printed_script_trains_on_both_nodes_of_an_allocation(slurm, tmp_path, capsys):
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")
    assert main(["launch-script", "slurm", "tiny-perf", "--nodes", "2", "--devices-per-node", "1"]) == 0
    script, run, output = tmp_path / "run.sbatch", tmp_path / "run", tmp_path / "slurm.out"
    script.write_text(capsys.readouterr().out)  # submitted as it was printed, to the byte
    options = ["--set", "total_steps=2", "--device", "cpu", "--reports", str(tmp_path), "--run-dir", str(run)]
    path = f"{Path(sys.executable).parent}:{slurm['PATH']}"
    result = subprocess.run(
        ["sbatch", "--wait", f"--output={output}", script],
        env=slurm | {"PYTEST_ADDOPTS": shlex.join(options), "PATH": path},
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    said = output.read_text() if output.exists() else ""
    assert (run / "report.dsse.json").exists(), result.stdout + result.stderr + said[-3000:]
    assert result.returncode == 0
    record = json.loads((run / "environment/run.json").read_text())
    assert record["launcher"] == "slurm"
    assert record["outcome"] == "ended"
    assert set(record["hosts"]) == {"0", "1"}
    assert json.loads((run / "environment/faults.json").read_text())["faults"] == []
    assert " step=1 " in (run / "logs/node0/rank0.log").read_text()
    assert "Raise exception" not in (run / "logs/node1/rank1.log").read_text()
    for node in (0, 1):
        assert (run / f"environment/telemetry-node{node}.csv").read_text().startswith("timestamp, index")
    (statement,) = re.findall(r"REHEARSAL: every required check passed", said)
    payload = json.loads(base64.b64decode(json.loads((run / "report.dsse.json").read_text())["payload"]))
    assert payload["predicate"]["verdict"] == statement.partition(":")[0]
