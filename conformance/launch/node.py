"""The processes of a run on this machine: started, looked at, ended, and none of them left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from conformance.errors import LaunchError
from conformance.launch.detect import NodeView
from conformance.launch.torchrun import RUN_MARK

# torchrun gives its workers 30 s to end after SIGTERM; a rank that ignores it that long is killed.
GRACE_SECONDS = 10.0
# faulthandler writes a stack in milliseconds; the logs of other nodes arrive once a second.
STACK_SECONDS = 2.0


@dataclass(frozen=True)
class Launch:
    """What to start on a node.

    Args:
        command: torchrun and its arguments.
        environment: Its environment, which marks the node's processes.
        run: Run directory; torchrun's own output goes to logs/node<rank>/agent.log.
        node_rank: Index of the node.
    """

    command: list[str]
    environment: Mapping[str, str]
    run: Path
    node_rank: int


class Node:
    """torchrun and its workers on this machine.

    Args:
        launch: What to start.

    Raises:
        LaunchError: The launcher could not be started.
    """

    def __init__(self, launch: Launch) -> None:
        self._run = launch.run
        self._mark = launch.environment[RUN_MARK]
        self._workers: dict[int, psutil.Process] = {}
        self._devices = 0
        logs = launch.run / "logs" / f"node{launch.node_rank}"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "agent.log").open("ab") as output:
            try:
                # A session of its own: the terminal's Ctrl-C reaches us alone, and we end the run in order.
                self._process = subprocess.Popen(
                    launch.command,
                    env=launch.environment,
                    stdout=output,
                    stderr=output,
                    cwd=launch.run / "work",
                    start_new_session=True,
                )
            except OSError as error:
                raise LaunchError(f"{launch.command[0]} could not be started: {error.strerror}.") from error

    @property
    def exit_code(self) -> int | None:
        """torchrun's exit code; None while it runs."""
        return self._process.poll()

    def view(self) -> NodeView:
        """This node as it is now.

        Returns:
            Its view, for the detector.
        """
        stopped = []
        for rank, worker in self._ranks().items():
            with contextlib.suppress(psutil.Error):
                if worker.status() == psutil.STATUS_STOPPED:
                    stopped.append(rank)
        free = shutil.disk_usage(self._run).free
        return NodeView(socket.gethostname(), 0.0, self.exit_code, free, tuple(sorted(stopped)))

    def dump_stacks(self) -> None:
        """Have every rank write its stacks to its log; a rank that a signal has stopped is let go on for it."""
        for worker in self._ranks().values():
            with contextlib.suppress(psutil.Error):
                worker.send_signal(signal.SIGUSR1)
                worker.resume()
        time.sleep(STACK_SECONDS)

    def end(self) -> int:
        """Ask the launcher to end, then kill whatever still carries the node's mark.

        Returns:
            How many processes had to be killed one by one.
        """
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        killed = kill_marked(self._mark)
        self._process.wait()
        return killed

    def _ranks(self) -> dict[int, psutil.Process]:
        """torchrun's own children by rank: looked for until all are there, then remembered."""
        if not self._workers or len(self._workers) < self._devices:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                for child in psutil.Process(self._process.pid).children():
                    variables = child.environ()
                    if "LOCAL_RANK" in variables:
                        self._workers[int(variables["RANK"])] = child
                        self._devices = int(variables["LOCAL_WORLD_SIZE"])
        return self._workers


@contextlib.contextmanager
def signals_raise(error: type[BaseException]) -> Iterator[None]:
    """Raise an exception in place of SIGINT, SIGTERM and SIGHUP, once.

    Args:
        error: What to raise.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        # A second signal must not break the clean-up that the first one started.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise error

    # nohup's choice to ignore SIGHUP stands.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_marked(mark: str) -> int:
    """Kill every process on this machine that carries a mark, whatever became of its parents.

    Args:
        mark: Value of RUN_MARK in their environment.

    Returns:
        How many were killed.
    """
    killed = 0
    while survivors := _marked(mark):
        for survivor in survivors:
            with contextlib.suppress(psutil.Error):
                survivor.kill()
        _, alive = psutil.wait_procs(survivors, timeout=GRACE_SECONDS)
        killed += len(survivors) - len(alive)
        if alive:  # in an uninterruptible call; nothing more can be done from here
            break
    return killed


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(RUN_MARK) == mark
            ):
                found.append(process)
    return found


class LogReader:
    """Reads what was appended to a run's logs since the last look.

    Args:
        logs: The run's logs folder.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._offsets: dict[Path, int] = {}

    def new_bytes(self) -> Iterator[tuple[str, bytes]]:
        """What each log has more than at the last call.

        Yields:
            The log's name, such as logs/node0/rank0.log, and its new bytes.
        """
        for log in sorted(self._logs.glob("node*/*.log")):
            with log.open("rb") as stream:
                stream.seek(self._offsets.get(log, 0))
                fresh = stream.read()
            if fresh:
                self._offsets[log] = self._offsets.get(log, 0) + len(fresh)
                yield log.relative_to(self._logs.parent).as_posix(), fresh
