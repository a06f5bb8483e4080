"""A node other than 0: join node 0, train under its orders, hand over what was logged, and learn the verdict.

As a program, ``python -m conformance.launch.follow ADDRESS PORT NODE RUN_DIR``, it is what the launchers "local" and
"slurm" start on each node; NODE is the word slurm where Slurm tells.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance import evidence
from conformance.devices import load_device
from conformance.errors import ConformanceError, EvidenceError
from conformance.internevo.worker import Settings
from conformance.launch import telemetry, torchrun
from conformance.launch.detect import Step
from conformance.launch.node import Launch, Node, signals_held, signals_raise
from conformance.launch.supervise import POLL_SECONDS, Display, Interrupted
from conformance.launch.team import RUN, STOP_WITH_STACKS, Member

# Left in the run's work folder by node 0: a node that reads the same there shares the folder with it.
TOKEN = "token"


def follow(
    member: Member,
    run_dir: Path | None,
    reports: Path,
    settings: Callable[[Path], Settings] | None = None,
    display: Display | None = None,
) -> tuple[Path, Mapping[str, Any], bool]:
    """Take part in a run to its end.

    Args:
        member: This node, which has the job.
        run_dir: Run directory here; None for one of node 0's name in ``reports``.
        reports: The reports folder.
        settings: Makes the workers' settings for a run directory of this node's own; None for node 0's settings.
        display: Shows the steps that node 0 tells; None where nobody looks.

    Returns:
        The run directory here, what node 0 published, and whether this node was interrupted.

    Raises:
        ConformanceError: This node cannot take part, or node 0 is gone.
    """
    job = member.job
    run = run_dir or reports / job["run"]
    try:
        run, shared = _prepare(run, job, settings)
    except ConformanceError as error:
        member.ready(str(error))
        raise
    try:
        member.ready()
    except BaseException:
        if not shared:
            shutil.rmtree(run, ignore_errors=True)  # the same command, given again, is to find it free
        raise
    command = torchrun.command(
        run,
        nodes=job["nodes"],
        devices_per_node=job["devices_per_node"],
        rendezvous=torchrun.Rendezvous(job["address"], job["port"], member.node),
        config=f"../{evidence.CONFIG}",
        seed=job["seed"],
    )
    member.begin(None if shared else run)
    launch = Launch(command, torchrun.environment(run, member.node), run, member.node)
    with signals_raise(Interrupted):
        with telemetry.sampled(job["settings"]["device"], run, member.node):
            interrupted = _train(member, launch, display)
        return run, member.finish(), interrupted


def _train(member: Member, launch: Launch, display: Display | None) -> bool:
    """Run this node's ranks until they end, node 0 says so, or node 0 is lost; return whether a signal came."""
    node: Node | None = None
    interrupted, lost = False, False
    shown: Step | None = None
    try:
        node = Node(launch)
        while node.exit_code is None and member.order == RUN and not lost:
            member.tell(node.view())
            if display and member.step not in (None, shown):
                shown = member.step
                display.step(shown)
            time.sleep(POLL_SECONDS)
            lost = member.silent_seconds > member.lost_seconds
    except Interrupted:
        interrupted = True
    finally:
        try:
            with signals_held():
                if node:
                    # Before its ranks end: those that lose them are not to be taken for the cause.
                    member.tell(replace(node.view(), interrupted=interrupted))
                    if lost or member.order == STOP_WITH_STACKS:
                        node.dump_stacks()
                    node.end()
                    member.tell(replace(node.view(), interrupted=interrupted))
        except Interrupted:  # too late to be the cause, of which node 0 is told; what was logged is still handed over
            interrupted = True
    return interrupted


def _prepare(run: Path, job: Mapping[str, Any], settings: Callable[[Path], Settings] | None) -> tuple[Path, bool]:
    """Make the run directory, unless node 0's is visible here; return it and whether it is."""
    load_device(job["settings"]["device"])  # a node that lacks the plugin says so, and is not lost without a word
    token = run / "work" / TOKEN
    if token.is_file() and token.read_text() == job["token"]:
        return run.resolve(), True
    run = evidence.create_run_directory(run)
    try:
        (run / evidence.CONFIG).write_text(job["config"], encoding="utf-8")
        (settings(run) if settings else Settings(**job["settings"])).write(run)
    except BaseException as error:
        shutil.rmtree(run, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise EvidenceError(
            f"The run directory {run} cannot be written: {error.strerror}.", "Free space or choose another --run-dir."
        ) from error
    return run, False


def main(argv: list[str]) -> int:
    """Run as a program.

    Args:
        argv: Address and port of node 0, index of this node or the word slurm, run directory.

    Returns:
        0 when this node's part was done, whatever the verdict; 2 when it could not be.
    """
    address, port, name, run = argv
    if name == "slurm":
        # srun may reach this node by another network than the coordinator's host name tells.
        name, address = os.environ["SLURM_NODEID"], os.environ.get("SLURM_LAUNCH_NODE_IPADDR", address)
    try:
        follow(Member(address, int(port), int(name), None), Path(run), Path(run).parent)
    except ConformanceError as error:
        print(f"node {name}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    # The thread that talks to node 0 may hang in a dead connection; nothing here is left to clean up.
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
