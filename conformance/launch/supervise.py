"""Watch a started run: report its steps, name its faults, end it on every node when it has to end."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conformance.launch.detect import Detector, Fault, NodeView, Step, told_late
from conformance.launch.disk import FULL, Bridge
from conformance.launch.node import Launch, LogReader, Node, signals_held

POLL_SECONDS = 0.5
# Held free for the end of a run: a disk that others fill in a second leaves no time to end it before it is full.
RESERVE = "work/reserve"
RESERVE_BYTES = 32 << 20


@dataclass(frozen=True)
class Ending:
    """How a run ended; completion is judged from the logs, never from this.

    Args:
        exit_code: torchrun's exit code, of the first node where it is not 0; negative for a signal.
        interrupted: Whether the user or the scheduler asked for the end.
        left_over: Processes of the run on this node that had to be killed one by one.
        fault: What went wrong, as far as it was seen; the supervisor ended the run for it, where it had not ended.
        notices: Ranks that were slower than the rest; the run went on.
        signal: Name of a signal that came, also where the run ended or was being ended for another reason.
    """

    exit_code: int
    interrupted: bool
    left_over: int
    fault: Fault | None = None
    notices: tuple[Fault, ...] = ()
    signal: str = ""


class Interrupted(KeyboardInterrupt):
    """A signal, which it names, asked for the end; what lets it through ends as after Ctrl-C."""


class Display(Protocol):
    """What shows a run while it goes on; it raises nothing for want of a terminal."""

    def waiting(self, missing: Sequence[int], seconds: float) -> None:
        """Show which nodes have not arrived, and since when; none of them where all have."""

    def nodes(self, views: Mapping[int, NodeView]) -> None:
        """Show the state of the nodes."""

    def step(self, step: Step) -> None:
        """Show a step."""

    def notice(self, fault: Fault) -> None:
        """Show at once what goes wrong, or why the run is being ended."""


class Team(Protocol):
    """The other nodes of a run, as node 0 sees them."""

    def views(self) -> Mapping[int, NodeView]:
        """What is known of each of them now; their new log bytes lie in the run directory when this returns."""

    def step(self, step: Step) -> None:
        """Tell them the newest step."""

    def stop(self, with_stacks: bool) -> None:
        """Have them end the run, capturing the stacks of their ranks first, and wait until they have."""


def reserve(run: Path) -> None:
    """Take the room that the end of a run needs, so that faults and report can be written on a full disk.

    Args:
        run: Run directory; :func:`supervise` gives the room back when the run ends.
    """
    with (run / RESERVE).open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, RESERVE_BYTES)


def supervise(
    run: Path,
    launch: Launch | None,
    detector: Detector,
    display: Display,
    team: Team | None = None,
) -> Ending:
    """Start a run's processes on this node and watch the run on every node to its end.

    Args:
        run: Run directory.
        launch: What to start here; None where all ranks are on other nodes. All its processes are gone afterwards.
        detector: Names what goes wrong.
        display: Shows every new step that the logs tell, and the state of the nodes at every look.
        team: The other nodes.

    Returns:
        How it ended. :class:`Interrupted` ends the run cleanly and is told by ``interrupted``; one that comes when the
        run has ended, or is being ended, by ``signal`` alone.

    Raises:
        LaunchError: torchrun could not be started.
    """
    reader, disk = LogReader(run / "logs"), Bridge()
    node: Node | None = None
    interrupted, left_over, signal = False, 0, ""
    fault: Fault | None = None
    notices: list[Fault] = []
    views: dict[int, NodeView] = {}
    try:
        node = Node(launch) if launch else None
        while True:
            steps: list[Step] = []
            with disk.bridged():
                # Nodes first, logs after: what a node wrote before it ended is read before it counts as ended.
                views = dict(team.views()) if team else {}
                if launch and node:
                    views[launch.node_rank] = node.view()
                _read(reader, detector, steps)
            for step in steps:
                display.step(step)
            if team and steps:
                team.step(steps[-1])
            display.nodes(views)
            for notice in detector.slow(time.monotonic(), views):
                notices.append(notice)
                display.notice(notice)
            if disk.error:  # what cannot be read now is not to be taken for what was never written
                fault = detector.disk_error(time.monotonic(), 0, socket.gethostname(), disk.seconds, disk.error)
            else:
                fault = detector.look(time.monotonic(), views)
            over = not disk.error and all(view.exit_code is not None for view in views.values())
            if fault is not None or over:
                break
            time.sleep(POLL_SECONDS)
        if fault is not None:
            display.notice(fault)
    except Interrupted as told:
        interrupted, signal = fault is None, str(told)
        display.notice(detector.told_to_end(time.monotonic(), signal) if interrupted else told_late(signal))
    except OSError as error:
        if error.errno not in FULL:
            raise
        fault = detector.disk_full(time.monotonic(), socket.gethostname(), str(error.strerror))
        display.notice(fault)
    finally:
        hung = fault is not None and fault.kind in ("stall", "lost-node")
        try:
            with signals_held():
                with contextlib.suppress(OSError):  # whatever the file system refuses, the run is ended
                    (run / RESERVE).unlink(missing_ok=True)
                left_over = _end(node, team, hung)
                with contextlib.suppress(OSError):
                    _read(reader, detector, [])
        except Interrupted as told:
            signal = str(told)
            display.notice(told_late(signal))
    if fault is not None and hung:
        fault = detector.explained(fault, views)
    # A node that was told to end is the scheduler's wish as much as a signal here.
    interrupted = interrupted or any(view.interrupted for view in views.values())
    codes = [node.exit_code if node else 0, *(view.exit_code for view in views.values())]
    return Ending(next((code for code in codes if code), 0), interrupted, left_over, fault, tuple(notices), signal)


def _read(reader: LogReader, detector: Detector, steps: list[Step]) -> None:
    """Read what the logs have gained, and add its steps: those that were read stay, should a later log be refused."""
    now = time.monotonic()
    for name, data in reader.new_bytes():
        steps += detector.feed(name, data, now)


def _end(node: Node | None, team: Team | None, hung: bool) -> int:
    """End the run on every node; return how many processes had to be killed one by one on this one."""
    if hung and node:
        node.dump_stacks()
    try:
        if team:
            team.stop(hung)
    finally:
        left_over = node.end() if node else 0
    return left_over
