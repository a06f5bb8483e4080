"""How the nodes of a run are started: the same command on each, Slurm's srun, or several agents on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from conformance.errors import LaunchError
from conformance.launch import torchrun
from conformance.launch.guard import dismiss, guard, kill_marked

# torchrun's own default.
DEFAULT_PORT = 29500
# The one after it is used too.
LAST_PORT = 65534
# How long a started agent may take to end after its run has.
AGENT_SECONDS = 30.0
# SLURM_INTERACTIVE_STEP of slurm.h: the shell that salloc opens on sites with LaunchParameters=use_interactive_step.
INTERACTIVE_STEP = str(0xFFFFFFFA)


@dataclass(frozen=True)
class Place:
    """This process's place in a run.

    Args:
        launcher: torchrun, slurm or local.
        nodes: Number of nodes.
        node_rank: Index of this node; 0 for the one that judges.
        address: Host name or address of node 0.
        port: torchrun's rendezvous port on node 0; the suite's own is the one after it.

    Raises:
        LaunchError: There is no such port, or none after it.
    """

    launcher: str
    nodes: int
    node_rank: int
    address: str
    port: int

    def __post_init__(self) -> None:
        if not 1 <= self.port <= LAST_PORT:
            raise LaunchError(
                f"The port to meet on is {self.port}; expected 1 to {LAST_PORT}, for the one after it is used too.",
                "Give another --master-port, or set another MASTER_PORT.",
            )


def find_place(
    nodes: int,
    launcher: str | None,
    node_rank: int | None,
    master_addr: str | None,
    master_port: int | None,
    environ: Mapping[str, str],
) -> Place:
    """Tell this process's place from the options, else from the environment.

    Args:
        nodes: Number of nodes.
        launcher: --launcher; None for torchrun where node_rank or master_addr is given, else for slurm inside an
            allocation of several nodes, else torchrun.
        node_rank: --node-rank.
        master_addr: --master-addr.
        master_port: --master-port.
        environ: Environment variables. Kubernetes' PyTorchJob sets RANK to the index of the pod and, if new enough,
            PET_NODE_RANK too; WORLD_SIZE counts pods, or processes where the job says nprocPerNode.

    Returns:
        The place.

    Raises:
        LaunchError: Something is missing, or contradicts the rest.
    """
    given = {"--node-rank": node_rank, "--master-addr": master_addr}
    own = [name for name, value in given.items() if value is not None]
    if own and launcher in ("slurm", "local"):
        raise LaunchError(
            f"--launcher {launcher} starts all nodes from this one command, and heeds no {' or '.join(own)}.",
            "Leave it out, or type the command on every node with --launcher torchrun.",
        )
    launcher = launcher or ("torchrun" if own else _usual_launcher(nodes, environ))
    if nodes == 1 and node_rank:
        raise LaunchError(f"--node-rank {node_rank} is not the index of one node.", "Give --nodes on every node too.")
    if nodes == 1 or launcher == "local":
        return Place(launcher, nodes, 0, "127.0.0.1", _free_pair() if master_port is None else master_port)
    if launcher == "slurm":
        return _slurm_place(nodes, master_port, environ)
    rank = _node_rank(nodes, environ) if node_rank is None else node_rank
    address = master_addr or environ.get("PET_MASTER_ADDR") or environ.get("MASTER_ADDR")
    if not address:
        raise LaunchError(
            f"--nodes {nodes} needs the address of node 0.", "Give --master-addr, or set MASTER_ADDR, on every node."
        )
    if not 0 <= rank < nodes:
        raise LaunchError(f"This node's index is {rank}; expected 0 to {nodes - 1} with --nodes {nodes}.")
    ports = (master_port, _number("PET_MASTER_PORT", environ), _number("MASTER_PORT", environ), DEFAULT_PORT)
    return Place(launcher, nodes, rank, address, next(port for port in ports if port is not None))


def _usual_launcher(nodes: int, environ: Mapping[str, str]) -> str:
    # With a step id this process was itself started by srun, once a node, as torchrun is; or by salloc, as its shell.
    inside = "SLURM_JOB_ID" in environ and environ.get("SLURM_STEP_ID", INTERACTIVE_STEP) == INTERACTIVE_STEP
    return "slurm" if nodes > 1 and inside else "torchrun"


def _node_rank(nodes: int, environ: Mapping[str, str]) -> int:
    for name in ("NODE_RANK", "GROUP_RANK", "PET_NODE_RANK", "RANK"):
        rank = _number(name, environ)
        if rank is None:
            continue
        world = _number("WORLD_SIZE", environ)
        if name == "RANK" and world not in (None, nodes):
            raise LaunchError(
                f"RANK={rank} and WORLD_SIZE={world} do not count {nodes} nodes.",
                "Give --node-rank, or --nodes the number of pods.",
            )
        return rank
    raise LaunchError(
        f"--nodes {nodes} needs to know which node this is.",
        "Give --node-rank (0 on the first node), or set NODE_RANK, on every node.",
    )


def _slurm_place(nodes: int, master_port: int | None, environ: Mapping[str, str]) -> Place:
    job, allocated = _number("SLURM_JOB_ID", environ), _number("SLURM_JOB_NUM_NODES", environ)
    if job is None:
        raise LaunchError(
            "--launcher slurm needs an allocation, and this is none: SLURM_JOB_ID is not set.",
            "Start inside sbatch or salloc; `conformance launch-script slurm` prints a script.",
        )
    if allocated is not None and allocated < nodes:
        raise LaunchError(f"--nodes {nodes}, but the allocation has {allocated}.", "Ask sbatch for as many nodes.")
    # Jobs that share a node get ports of their own: two each.
    return Place("slurm", nodes, 0, "", DEFAULT_PORT + 2 * (job % 1000) if master_port is None else master_port)


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    text = environ.get(name, "")
    if text and not text.isdecimal():
        raise LaunchError(f"{name} is {text!r} in the environment; expected a whole number.")
    return int(text) if text else None


def _free_pair() -> int:
    for _ in range(100):
        port = torchrun.free_port()
        with contextlib.suppress(LaunchError):
            torchrun.require_free_port(port + 1)
            return port
    raise LaunchError("No two free ports in a row were found on this machine.", "Give --master-port.")


def agent_commands(place: Place, run: Path) -> list[list[str]]:
    """What starts the other nodes.

    Args:
        place: This process's place.
        run: Run directory, visible on every node that Slurm starts.

    Returns:
        Commands; none where the user starts each node.
    """
    program = [sys.executable, "-m", "conformance.launch.follow"]
    port = str(place.port + 1)
    if place.launcher == "local":
        return [[*program, "127.0.0.1", port, str(node), str(run)] for node in range(1, place.nodes)]
    if place.launcher == "slurm" and place.nodes > 1:
        step = ["srun", f"--nodes={place.nodes}", f"--ntasks={place.nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
        return [[*step, *program, os.uname().nodename, port, "slurm", str(run)]]
    return []


@contextlib.contextmanager
def agents(place: Place, run: Path) -> Iterator[Callable[[], str]]:
    """Start what takes part on the other nodes, where this launcher does that, and see it gone afterwards.

    Args:
        place: This process's place.
        run: Run directory, visible on every node that Slurm starts.

    Yields:
        What tells why a started agent ended early; empty while none has.
    """
    commands = agent_commands(place, run)
    output = run / "work" / "agents.log"
    mark = torchrun.mark(run, "agents")
    watch = guard(mark) if commands else None
    started: list[subprocess.Popen[bytes]] = []

    def failed() -> str:
        codes = [process.poll() for process in started]
        if all(code is None for code in codes):
            return ""
        lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
        # A node says why itself, or its traceback does; srun then adds that a task of its own has ended.
        said = [line for line in lines if line.startswith("node ")][:1] or [
            line for line in lines if not line.startswith("srun: ")
        ]
        ended = f"an agent ended with exit code {next(code for code in codes if code is not None)}"
        return (said or lines or [ended])[-1]

    try:
        for command in commands:
            with output.open("ab") as stream:
                try:
                    started.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.DEVNULL,
                            stdout=stream,
                            stderr=stream,
                            env=os.environ | {torchrun.RUN_MARK: mark},
                            start_new_session=True,
                        )
                    )
                except OSError as error:
                    raise LaunchError(f"{command[0]} could not be started: {error.strerror}.") from error
        yield failed
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        for process in started:
            _see_gone(process)
        if place.launcher == "local":
            for node in range(1, place.nodes):
                kill_marked(torchrun.mark(run, node))
        if watch:
            dismiss(watch)


def _see_gone(process: subprocess.Popen[bytes]) -> None:
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(AGENT_SECONDS)
            return
