"""The live line of a run: step, loss and TGS against target and floor, time left, and the state of the nodes."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import ParamSpec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from conformance.launch.detect import SILENT_SECONDS, Fault, NodeView, Step
from conformance.plan import Plan
from conformance.spec.floors import find_floor, load_floors

# Where there is no terminal, a line at most this often.
PLAIN_INTERVAL_SECONDS = 10.0
# More nodes than this in trouble are counted, not listed.
MAX_LISTED = 4
P = ParamSpec("P")


def is_live(console: Console) -> bool:
    """Whether a console can show what changes in place: FORCE_COLOR makes no terminal of a file, and some are dumb.

    Args:
        console: Where to.

    Returns:
        Whether rich draws there, and somebody sees it.
    """
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _only_shows(show: Callable[P, None]) -> Callable[P, None]:
    """Keep from a run whatever showing it raises: a reader who went away ends no run, and no run is blamed for it.

    rich makes a SystemExit of a closed pipe; a full disk behind stdout raises what the run directory's would.
    Interrupted, a KeyboardInterrupt that a signal may raise meanwhile, passes.
    """

    @functools.wraps(show)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        with contextlib.suppress(Exception, SystemExit):
            show(*args, **kwargs)

    return shown


class LiveProgress:
    """A progress bar on a terminal, a line now and then elsewhere; nothing where neither can be shown any more.

    Args:
        console: Where to.
        title: What runs.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._live = is_live(console)
        self._title = title
        self._total = 0
        self._first: tuple[float, int] | None = None
        self._printed = 0.0
        self._starting = self._figures = self._target = self._floor = self._nodes = ""
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=None, figures="planning")

    def __enter__(self) -> LiveProgress:
        _only_shows(self._bar.start)()
        return self

    def watch(self, plan: Plan) -> LiveProgress:
        """Begin to show a run.

        Args:
            plan: What runs.

        Returns:
            Itself: what to call for each step, and for the state of the nodes.
        """
        self._total = plan.total_steps
        target = plan.workload.loss_target
        self._target = "" if target is None else f" (target {target:g})"
        floor = find_floor(load_floors(), plan.workload.name, "tgs", None)
        self._floor = "" if floor is None else f" (floor {floor.value:,.0f})"
        self._starting = f"{plan.cards} rank{'s' * (plan.cards > 1)} starting: imports, data, model"
        self._show(self._starting, 0)
        return self

    @_only_shows
    def waiting(self, missing: Sequence[int], seconds: float) -> None:
        """Show which nodes have not arrived; where there is no terminal, now and then.

        Args:
            missing: Their indices; none where all have arrived, and the ranks start.
            seconds: Since when they are awaited.
        """
        if not missing:
            self._show(self._starting, None, False)
            return
        listed = ", ".join(map(str, missing[:MAX_LISTED]))
        more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
        text = f"waiting for node{'s' if len(missing) > 1 else ''} {listed}{more} ({seconds:.0f} s)"
        # The first second is no news: nodes do not start in the same instant.
        if seconds >= 1:
            self._show(text, None, self._is_due())

    @_only_shows
    def notice(self, fault: Fault) -> None:
        """Show at once what goes wrong, or why the run is being ended, in a line that stays.

        Args:
            fault: The fault.
        """
        self._print(f"{fault.message} {fault.next_step}")

    @_only_shows
    def nodes(self, views: Mapping[int, NodeView]) -> None:
        """Show the state of the nodes; where there is no terminal, when it changes.

        Args:
            views: What is known of each node; empty of those that have not arrived.
        """
        if any(view.exit_code == 0 for view in views.values()):
            return  # the run is over, or what ended it is about to be named
        state = describe_nodes(views) if len(views) > 1 else ""
        if state != self._nodes:
            self._nodes = state
            self._show(self._figures, None)

    @_only_shows
    def step(self, step: Step) -> None:
        """Show a step; where there is no terminal, now and then.

        Args:
            step: The step.
        """
        now = time.monotonic()
        self._first = self._first or (now, step.step)
        left = self._seconds_left(now, step.step)
        loss = f"loss {step.loss:.4f}{self._target}"
        figures = f"step {step.step}  {loss}  TGS {step.tgs:,.0f}{self._floor}  left {left}"
        self._show(figures, step.step + 1, self._is_due() or step.step + 1 >= self._total)

    def _is_due(self) -> bool:
        """Whether the last plain line is long enough ago for another."""
        return time.monotonic() - self._printed >= PLAIN_INTERVAL_SECONDS

    @_only_shows
    def _show(self, figures: str, completed: int | None, due: bool = True) -> None:
        self._figures = figures
        text = f"{figures}  {self._nodes}".rstrip()
        self._bar.update(self._task, total=self._total or None, completed=completed, figures=text)
        if due and not self._live:
            self._printed = time.monotonic()
            self._print(text)

    def _print(self, text: str) -> None:
        """Print a line as it stands: what a rank's error says in brackets is no markup, and nothing in it is obeyed."""
        line = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
        self._console.print(f"{self._title}: {line}", soft_wrap=True, markup=False, emoji=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _only_shows(self._bar.stop)()

    def _seconds_left(self, now: float, step: int) -> str:
        begun, first = self._first or (now, step)
        if step == first:
            return "?"
        seconds = (now - begun) / (step - first) * (self._total - 1 - step)
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def describe_nodes(views: Mapping[int, NodeView]) -> str:
    """Say in a few words how the nodes of a run are.

    Args:
        views: What is known of each node.

    Returns:
        Such as "4 nodes up" or "3 nodes up, node 2 (hostC) silent".
    """
    odd = []
    for node, view in sorted(views.items()):
        if view.exit_code is not None:
            odd.append(f"node {node} ({view.host}) ended")
        elif view.silent_seconds > SILENT_SECONDS:
            odd.append(f"node {node} ({view.host}) silent")
        elif view.stopped:
            odd.append(f"node {node} ({view.host}) has stopped ranks")
    more = [f"{len(odd) - MAX_LISTED} more in trouble"] if len(odd) > MAX_LISTED else []
    up = len(views) - len(odd)
    return ", ".join([f"{up} node{'' if up == 1 else 's'} up", *odd[:MAX_LISTED], *more])
