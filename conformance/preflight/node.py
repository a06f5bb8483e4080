"""A preflight on several nodes: the same command on each, or one program a node that srun or this process starts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.checks.finding import Finding
from conformance.devices import Device, load_device
from conformance.errors import ConformanceError, LaunchError
from conformance.evidence import create_run_directory
from conformance.launch import torchrun
from conformance.launch.guard import dismiss, guard, kill_marked
from conformance.launch.launcher import Place
from conformance.preflight.session import FINDINGS, LIMITS, Request, longest, read_findings, run_preflight

# What node 0 is at, in a file beside its order.
DOING = "doing.txt"
LOOK_SECONDS = 0.2
END_SECONDS = 10.0  # for srun to end its tasks
# Both steps, and the time that srun needs to start.
NODE_SECONDS = sum(map(longest, LIMITS)) + longest("step") + 60


def run_on_all_nodes(
    device: Device, request: Request, run: Path, told: Callable[[str], None] = lambda line: None
) -> list[Finding]:
    """Measure on all nodes, and judge.

    Args:
        device: The device plugin.
        request: What is to be measured.
        run: An empty run directory; on a file system of all nodes where srun starts them.
        told: Called with what begins, in words.

    Returns:
        One finding for each check.

    Raises:
        ConformanceError: The nodes could not be started, or one of them failed.
    """
    if request.nodes == 1 or request.place.launcher == "torchrun":
        return run_preflight(device, request, run, told)
    told(f"starting {request.nodes} nodes")
    order = run / "work" / "order.json"
    place = dataclasses.replace(request.place, launcher="torchrun", address=request.place.address or _first_host())
    order.write_text(json.dumps({"device": device.name, **_plain(dataclasses.replace(request, place=place))}))
    program = [sys.executable, "-m", "conformance.preflight.node", str(order)]
    if request.place.launcher == "slurm":
        step = [
            "srun",
            f"--nodes={request.nodes}",
            f"--ntasks={request.nodes}",
            "--ntasks-per-node=1",
            "--cpu-bind=none",
        ]
        commands = [[*step, *program]]
    else:
        commands = [[*program, str(rank)] for rank in range(request.nodes)]
    first = order.parent / "node0"
    try:
        _run(commands, order.parent, told)
    except ConformanceError:
        if not (first / FINDINGS).is_file():
            raise
    finally:  # what node 0 measured is kept, and judged if it could be, whatever became of the others
        for path in sorted((first / "environment").iterdir()) if first.is_dir() else ():
            shutil.copyfile(path, run / "environment" / path.name)
    return read_findings(run)


def _plain(request: Request) -> dict[str, Any]:
    fields = dataclasses.asdict(request)
    return {**fields, "internevo": None if request.internevo is None else str(request.internevo.resolve())}


def _first_host() -> str:
    """Where srun starts node 0: on the allocation's first node, which is this one inside sbatch."""
    if "SLURMD_NODENAME" in os.environ:
        return os.uname().nodename
    command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise LaunchError(
            f"`{' '.join(command)}` does not tell the allocation's first node: {error}.", "Start inside sbatch."
        ) from error


def _run(commands: list[list[str]], folder: Path, told: Callable[[str], None]) -> None:
    """Start the nodes, tell what node 0 is at, and see all of them gone."""
    log, mark, said = folder / "nodes.log", torchrun.mark(folder, "nodes"), ""
    end, watch = time.monotonic() + NODE_SECONDS, guard(mark)
    started: list[subprocess.Popen[bytes]] = []
    try:
        with log.open("wb") as output:
            started.extend(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {torchrun.RUN_MARK: mark},
                    start_new_session=True,
                )
                for command in commands
            )
        while any(process.poll() is None for process in started) and time.monotonic() < end:
            doing = (folder / DOING).read_text() if (folder / DOING).exists() else ""
            if doing and doing != said:
                told(said := doing)
            time.sleep(LOOK_SECONDS)
    except OSError as error:
        raise ConformanceError(f"{commands[0][0]} could not be started: {error.strerror}.") from error
    finally:
        late = [process for process in started if process.poll() is None]
        for process in late:  # srun ends its tasks on other machines when it is asked to, and not when it is killed
            process.terminate()
        for process in late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        kill_marked(mark)
        dismiss(watch)
    codes = [process.wait() for process in started]
    if any(codes):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said_why = [line for line in lines if line.startswith("node ")]  # as main() does; srun adds lines of its own
        words = (said_why or lines[-1:] or [f"exit codes {codes}."])[0]
        raise ConformanceError(f"A node's preflight failed: {words}", f"See {log}.")


def main(argv: list[str]) -> int:
    """Measure as one node of several.

    Args:
        argv: The order, and the node's rank; srun tells the rank through SLURM_PROCID.

    Returns:
        0 when it was measured, whatever was found; 2 when it could not be.
    """
    order = Path(argv[0])
    fields = json.loads(order.read_text())
    rank = int(argv[1]) if len(argv) > 1 else int(os.environ["SLURM_PROCID"])
    place = Place(**{**fields.pop("place"), "node_rank": rank})
    internevo = fields.pop("internevo")

    def told(what: str) -> None:
        if rank == 0:
            (order.parent / DOING).write_text(what)

    try:
        device = load_device(fields.pop("device"))
        run = create_run_directory(order.parent / f"node{rank}")
        request = Request(place=place, internevo=Path(internevo) if internevo else None, **fields)
        run_preflight(device, request, run, told)
    except ConformanceError as error:
        print(f"node {rank}: {error}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
