"""The processes of a run on this machine: started, looked at, ended, and none of them left behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from conformance.errors import LaunchError
from conformance.launch.detect import LOOK_SECONDS, UNKNOWN_BYTES, NodeView
from conformance.launch.disk import Bridge
from conformance.launch.guard import dismiss, guard, kill_marked
from conformance.launch.torchrun import RUN_MARK, telemetry_mark

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
        self._looked = 0.0
        self._states: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((), (), ())
        self._disk, self._free = Bridge(), UNKNOWN_BYTES
        logs = launch.run / "logs" / f"node{launch.node_rank}"
        logs.mkdir(parents=True, exist_ok=True)
        self._guard = guard(self._mark, telemetry_mark(self._mark))
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
                dismiss(self._guard)
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
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._states = self._look()
        with self._disk.bridged():
            self._free = shutil.disk_usage(self._run).free
        return NodeView(
            socket.gethostname(),
            0.0,
            self.exit_code,
            self._free,
            *self._states,
            disk_seconds=self._disk.seconds,
            disk_error=self._disk.error,
        )

    def _look(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The ranks that are stopped, those that wait, and those that work."""
        stopped: list[int] = []
        waiting: list[int] = []
        working: list[int] = []
        for rank, worker in sorted(self._ranks().items()):
            with contextlib.suppress(psutil.Error, OSError):  # it has just ended
                if worker.status() == psutil.STATUS_STOPPED:
                    stopped.append(rank)
                (waiting if _waits(worker.pid) else working).append(rank)
        return tuple(stopped), tuple(waiting), tuple(working)

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
        dismiss(self._guard)
        return killed

    def _ranks(self) -> dict[int, psutil.Process]:
        """torchrun's own children by rank: looked for until all are there, then remembered."""
        if not self._workers or len(self._workers) < self._devices:
            # A child between fork and exec still has torchrun's own environment, where LOCAL_RANK may stand alone.
            with contextlib.suppress(psutil.Error, OSError, ValueError, KeyError):
                for child in psutil.Process(self._process.pid).children():
                    variables = child.environ()
                    if "LOCAL_RANK" in variables:
                        self._workers[int(variables["RANK"])] = child
                        self._devices = int(variables["LOCAL_WORLD_SIZE"])
        return self._workers


# Ctrl-C, a scheduler's preemption, a closed terminal.
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def signals_raise(error: type[BaseException]) -> contextlib.AbstractContextManager[None]:
    """Raise an exception in place of the first SIGINT, SIGTERM or SIGHUP; those after it are ignored meanwhile.

    Args:
        error: What to raise, with the signal's name.

    Returns:
        What to do so in.
    """

    def heed(name: str) -> None:
        raise error(name)

    return signals_heeded(heed)


@contextlib.contextmanager
def signals_heeded(heed: Callable[[str], None]) -> Iterator[None]:
    """Call a function in place of the first SIGINT, SIGTERM or SIGHUP; those after it are ignored meanwhile.

    Args:
        heed: Called with the signal's name.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        # A second signal must not break what the first one started.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        heed(signal.Signals(number).name)

    # nohup's choice to ignore SIGHUP stands.
    numbers = [number for number in _ENDING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let no SIGINT, SIGTERM or SIGHUP break what is done meanwhile; the first that came is delivered afterwards."""
    came: list[str] = []
    with signals_heeded(came.append):
        yield
    if came:
        signal.raise_signal(signal.Signals[came[0]])


def _waits(process: int) -> bool:
    """Whether none of its threads runs, could run, waits for a disk or is stopped: it waits for somebody else."""
    with os.scandir(f"/proc/{process}/task") as threads:
        return not any(_state(thread.path) in (b"R", b"D", b"T", b"t") for thread in threads)


def _state(thread: str) -> bytes:
    """State of a thread as /proc tells it; not through pathlib, for a rank has hundreds, and this takes a third."""
    with contextlib.suppress(OSError):  # it has just ended
        descriptor = os.open(f"{thread}/stat", os.O_RDONLY)
        try:
            return os.read(descriptor, 300).rpartition(b")")[2].split()[0]
        finally:
            os.close(descriptor)
    return b""


class LogReader:
    """Reads what was appended to a run's logs, telemetry and ranks' records since the last look.

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
        records = self._logs.parent / "environment"
        watched = (self._logs.glob("node*/*.log"), records.glob("telemetry-node*.csv"), records.glob("rank*.json"))
        for log in sorted(itertools.chain(*watched)):
            with log.open("rb") as stream:
                stream.seek(self._offsets.get(log, 0))
                fresh = stream.read()
            if fresh:
                self._offsets[log] = self._offsets.get(log, 0) + len(fresh)
                yield log.relative_to(self._logs.parent).as_posix(), fresh
