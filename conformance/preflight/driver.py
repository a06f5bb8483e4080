"""Starts the measuring processes of this node, ends them when their time is over, and collects what they wrote."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.launch.guard import dismiss, guard
from conformance.launch.torchrun import RUN_MARK, SETTLED
from conformance.preflight.probe import add_to, told_in
from conformance.preflight.worker import Task

POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0  # between two looks at what the processes wrote
KILL_SECONDS = 10.0  # for a driver to let go of a process that was killed
GRACE_SECONDS = 5.0
LAST_LINES = 12


@dataclass(frozen=True)
class Ranks:
    """The processes of one task on this node, and where all nodes' ranks meet.

    Args:
        local: Processes on this node.
        nodes: Nodes.
        node_rank: Index of this node.
        address: Address of node 0.
        port: TCP port on node 0.
    """

    local: int
    nodes: int = 1
    node_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.local * self.nodes

    def environment(self, local_rank: int) -> dict[str, str]:
        """What torch.distributed reads, as torchrun sets it, and what a run settles too.

        Args:
            local_rank: Index of the process on this node.

        Returns:
            Environment variables.
        """
        return {
            "RANK": str(self.node_rank * self.local + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_WORLD_SIZE": str(self.local),
            "GROUP_RANK": str(self.node_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            **SETTLED,
        }


@dataclass(frozen=True)
class Measured:
    """What one process measured, and how it ended.

    Args:
        rank: Its rank.
        outcome: "done"; "timeout" (it was ended); "stopped" (it was ended because another one failed); "failed" (it
            ended early); "alone" (it was not started, for want of the nodes in ``phase``).
        phase: The last thing it began.
        seconds: How long it ran.
        records: Its measurements.
        output: The end of what it printed, for a process that is not done.
    """

    rank: int
    outcome: str
    phase: str
    seconds: float
    records: tuple[dict[str, Any], ...]
    output: str

    def to_json(self) -> dict[str, Any]:
        """The same as JSON.

        Returns:
            What :func:`conformance.checks.preflight.judge` reads.
        """
        return {
            "rank": self.rank,
            "outcome": self.outcome,
            "phase": self.phase,
            "seconds": round(self.seconds, 3),
            "records": list(self.records),
            "output": self.output,
        }


def run_task(
    task: Task, ranks: Ranks, limit_seconds: float, extra: Mapping[str, str] | None = None
) -> tuple[Measured, ...]:
    """Run a task's processes on this node under a hard time limit.

    A process that fails ends the others after a short grace: in a collective they would wait for it to the limit. One
    that is over the limit of a phase is ended, and begins anew after it; the task has as much longer as the process
    that needs most.

    Args:
        task: What to measure.
        ranks: The processes.
        limit_seconds: After this time, whatever still runs is killed.
        extra: Further environment variables.

    Returns:
        What each process of this node measured, by rank.
    """
    out = Path(task.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    task_file = out.with_suffix(".task.json")
    task.write(task_file)
    began = time.monotonic()
    mark = f"{out}:{ranks.node_rank}"
    watch = guard(mark)
    variables = {**(extra or {}), RUN_MARK: mark}
    processes = [_start(task_file, ranks, local_rank, variables) for local_rank in range(ranks.local)]
    ended: dict[int, float] = {}
    longer = [0.0] * ranks.local
    grace = math.inf
    look = began
    try:
        while len(ended) < len(processes) and time.monotonic() < min(began + limit_seconds + max(longer), grace):
            if time.monotonic() > look + LOOK_SECONDS:
                look = time.monotonic()
                late = {n: _overdue(_journal(task, ranks, n)) for n in range(ranks.local) if n not in ended}
                for number, phase in late.items():
                    if phase is not None:
                        _kill([processes[number]])
                        add_to(_journal(task, ranks, number), phase["otherwise"])
                        processes[number] = _start(task_file, ranks, number, variables)
                        longer[number] += phase["seconds"]
            for number, process in enumerate(processes):
                if number not in ended and process.poll() is not None:
                    ended[number] = time.monotonic() - began
                    if process.returncode:
                        grace = min(grace, time.monotonic() + GRACE_SECONDS)
            time.sleep(POLL_SECONDS)
    finally:
        _kill(processes)
        dismiss(watch)
    unended = time.monotonic() - began, "stopped" if grace < math.inf else "timeout"
    return tuple(
        _collect(task, ranks, number, process.returncode, ended.get(number), unended)
        for number, process in enumerate(processes)
    )


def _journal(task: Task, ranks: Ranks, number: int) -> Path:
    return Path(f"{task.out}.rank{ranks.node_rank * ranks.local + number}.jsonl")


def _overdue(path: Path) -> dict[str, Any] | None:
    """The phase that a process is in, where it is over the phase's limit."""
    line = (told_in(path) or [{}])[-1]
    late = "otherwise" in line and time.monotonic() > line["at"] + line["seconds"]
    return line if late else None


def _start(task_file: Path, ranks: Ranks, local_rank: int, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1", **ranks.environment(local_rank), **extra}
    with _output(task_file, local_rank).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "conformance.preflight.worker", str(task_file)],
            env=environment,
            cwd=task_file.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _output(task_file: Path, local_rank: int) -> Path:
    return task_file.with_name(task_file.name.replace(".task.json", f".local{local_rank}.log"))


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:  # the whole session: a worker's own children too
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + KILL_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _collect(
    task: Task, ranks: Ranks, number: int, code: int | None, ended: float | None, unended: tuple[float, str]
) -> Measured:
    rank = ranks.node_rank * ranks.local + number
    lines = told_in(_journal(task, ranks, number))
    phases = [line["phase"] for line in lines if "phase" in line]
    done = ended is not None and code == 0 and phases[-1:] == ["done"]
    log = _output(Path(task.out).with_suffix(".task.json"), number)
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    return Measured(
        rank=rank,
        outcome="done" if done else unended[1] if ended is None else "failed",
        phase=phases[-1] if phases else "before its first line",
        seconds=unended[0] if ended is None else ended,
        records=tuple(line for line in lines if "kind" in line),
        output="" if done else "\n".join(text[-LAST_LINES:]),
    )
