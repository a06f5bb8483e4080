"""Outlives the suite on a machine, and kills what a run left there when the suite itself was killed.

Nothing inside a process can answer SIGKILL. A guard holds the read end of a pipe whose write end the suite alone has:
when the suite is gone, however it went, the pipe ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import psutil

from conformance.launch.torchrun import RUN_MARK

# A killed process is gone in milliseconds, unless it hangs in the kernel.
KILL_SECONDS = 10.0


def guard(*marks: str) -> subprocess.Popen[bytes]:
    """Start what kills every process with one of these marks as soon as this process is gone.

    Args:
        marks: Values of RUN_MARK on this machine.

    Returns:
        The guard, for :func:`dismiss`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "conformance.launch.guard", *marks],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # An agent of several nodes on one machine has a mark itself; its guard must outlive it.
        env={name: value for name, value in os.environ.items() if name != RUN_MARK},
        start_new_session=True,
    )


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """End a guard, when what it guards has ended.

    Args:
        guard: The guard.
    """
    guard.kill()
    guard.communicate()


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
        _, alive = psutil.wait_procs(survivors, timeout=KILL_SECONDS)
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


def main(marks: list[str]) -> None:
    """Wait for the suite's end, then kill.

    Args:
        marks: Values of RUN_MARK.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the suite this way is answered by the suite itself
    sys.stdin.buffer.read()
    for mark in marks:
        kill_marked(mark)


if __name__ == "__main__":
    main(sys.argv[1:])
