"""The live line of a run: step, loss, TGS and time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from conformance.launch.supervise import Step
from conformance.plan import Plan

# Where there is no terminal, a line at most this often.
PLAIN_INTERVAL_SECONDS = 10.0


class LiveProgress:
    """A progress bar on a terminal, a line now and then elsewhere.

    Args:
        console: Where to.
        title: What runs.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._total = 0
        self._first: tuple[float, int] | None = None
        self._printed = 0.0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, figures="planning")

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def watch(self, plan: Plan) -> Callable[[Step], None]:
        """Begin to show a run.

        Args:
            plan: What runs.

        Returns:
            What to call for each step.
        """
        self._total = plan.total_steps
        figures = f"{plan.cards} ranks starting: imports, data, model"
        self._bar.update(self._task, total=self._total, figures=figures)
        if not self._console.is_terminal:
            self._console.print(f"{self._title}: {figures}")
        return self._step

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _step(self, step: Step) -> None:
        now = time.monotonic()
        self._first = self._first or (now, step.step)
        left = self._seconds_left(now, step.step)
        figures = f"step {step.step}  loss {step.loss:.4f}  TGS {step.tgs:,.0f}  left {left}"
        self._bar.update(self._task, completed=step.step + 1, figures=figures)
        last = step.step + 1 >= self._total
        if not self._console.is_terminal and (now - self._printed >= PLAIN_INTERVAL_SECONDS or last):
            self._printed = now
            self._console.print(f"{self._title}: {figures}")

    def _seconds_left(self, now: float, step: int) -> str:
        begun, first = self._first or (now, step)
        if step == first:
            return "?"
        seconds = (now - begun) / (step - first) * (self._total - 1 - step)
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
