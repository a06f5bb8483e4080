"""A real Slurm cluster of two nodes on this machine, on loopback, without systemd; one device a node.

    python suites/selftest/launch/slurm_cluster.py FOLDER COMMAND ...

runs a command beside it, with the cluster's environment. Each node shows its tasks the device of its own index.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from conformance.launch.torchrun import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "sinfo", "squeue", "scontrol")
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
TaskProlog={folder}/prolog
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs={cpus} RealMemory=256 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs={cpus} RealMemory=256 Gres=gpu:1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
# Two nodes of one machine see the same devices; each takes the one of its own index.
PROLOG = """#!/bin/sh
echo "export CUDA_VISIBLE_DEVICES=$SLURM_NODEID"
"""


def absent_programs():
    """What this machine lacks of Slurm."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def search_path():
    """PATH with the folders of daemons."""
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


@contextlib.contextmanager
def cluster(folder):
    """The environment of a running cluster; its daemons are gone afterwards."""
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "prolog").write_text(PROLOG)
    (folder / "prolog").chmod(0o755)
    folder.chmod(0o755)
    names = {"host": socket.gethostname(), "folder": folder, "cpus": os.cpu_count()}
    ports = {name: free_port() for name in ("ctld", "n1", "n2")}
    (folder / "slurm.conf").write_text(CONFIG.format(**names, **ports))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    # Nothing here uses control groups, but slurmd loads a plugin all the same, and that of version 2 needs systemd.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    environ = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": search_path()}
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


def main(folder, command):
    """Run a command beside the cluster and return its exit code."""
    folder.mkdir(parents=True)
    with cluster(folder.resolve()) as environ:
        return subprocess.run(command, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
