"""Watches an accuracy run while it trains: stops it at its target, warns early, removes old checkpoints."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from conformance.internevo.config import CHECKPOINT_FOLDER, STOP_FILE
from conformance.launch.detect import Fault, NodeView, Step
from conformance.launch.supervise import Display, Interrupted
from conformance.metrics.curve import STEPS, compare
from conformance.metrics.loss import MIN_WINDOW, WINDOW
from conformance.metrics.statistics import Series, mean_interval
from conformance.plan import Plan
from conformance.spec.curves import Curve

# InternEvo reads the stop file after every step; the order must reach it before the step that it names.
STOP_MARGIN = 10
# The newest checkpoint, and one more should it be broken.
KEPT_CHECKPOINTS = 2
# bf16 parameters, and in fp32 the optimizer's copy of them and its two moments.
BYTES_PER_PARAMETER = 2 + 3 * 4
# Standard deviations below its forecast that a run must still be above the target to be warned of: one false warning in
# a thousand runs.
FORECAST_SIGMAS = 3.0
# Of the losses so far, the share that a forecast rests on: the newest.
FORECAST_SHARE = 0.5


def disk_bytes(plan: Plan) -> int:
    """Disk that a run's checkpoints take: those that are kept and the one being written.

    Args:
        plan: What runs.

    Returns:
        Bytes; 0 where no checkpoints are written.
    """
    if plan.workload.checkpoint_every is None:
        return 0
    return plan.parameters * BYTES_PER_PARAMETER * (KEPT_CHECKPOINTS + 1)


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Find the checkpoints that InternEvo would resume from.

    Args:
        folder: InternEvo's checkpoint folder; a checkpoint is complete once it holds a file ``N.step``.

    Returns:
        Step and folder of each, the oldest first.
    """
    return sorted((int(flag.stem), flag.parent) for flag in folder.glob("*/*.step") if flag.stem.isdecimal())


def remove_old_checkpoints(folder: Path) -> None:
    """Remove all complete checkpoints but the newest; InternEvo itself keeps every one.

    Args:
        folder: InternEvo's checkpoint folder.
    """
    for _, old in complete_checkpoints(folder)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old, ignore_errors=True)


def held(losses: Series, target: float) -> bool:
    """Whether the loss is below the target and has been for a window's length.

    Args:
        losses: Losses so far, shape (n,).
        target: Loss to be below.

    Returns:
        True where the mean of every one of the last windows, and the upper 95% bound of the newest, is below.
    """
    size = min(WINDOW, max(MIN_WINDOW, len(losses) // 5))
    tail = losses[-2 * size :]
    if len(tail) < 2 * size:
        return False
    means = np.convolve(tail, np.full(size, 1 / size), mode="valid")
    interval = mean_interval(tail[-size:])
    return bool((means < target).all()) and interval is not None and interval[1] < target


def forecast(losses: Series, total_steps: int) -> tuple[float, float] | None:
    """Forecast the loss at the last step, from a straight line through the newer losses over the logarithm of the step.

    Loss curves flatten faster than that line, so that it errs on the hopeful side.

    Args:
        losses: Losses from step 0, shape (n,).
        total_steps: Steps of the run.

    Returns:
        Forecast and its standard error, in nats/token; None for fewer than 49 losses.
    """
    begin = int(len(losses) * (1 - FORECAST_SHARE))
    if len(losses) - begin < 25:
        return None
    x, y = np.log(np.arange(begin, len(losses)) + 1.0), losses[begin:]
    slope, level = np.polyfit(x, y, 1)
    rest = y - (slope * x + level)
    distance = math.log(total_steps) - x.mean()
    noise = float(rest.var(ddof=2)) * (1 / len(x) + distance**2 / float(((x - x.mean()) ** 2).sum()))
    return float(slope * math.log(total_steps) + level), math.sqrt(noise)


class Watch:
    """A display that passes everything on, and acts on what it sees.

    Args:
        plan: What runs.
        run: Run directory.
        display: What shows the run.
        until_target: Whether to stop the run once its loss is below the target and has stayed there.
        curve: Reference curve of this plan, if there is one.
        interrupt_at: Step after which to end this attempt, as a preemption would; None for never.
    """

    def __init__(
        self,
        plan: Plan,
        run: Path,
        display: Display,
        *,
        until_target: bool = False,
        curve: Curve | None = None,
        interrupt_at: int | None = None,
    ) -> None:
        self._plan, self._run, self._display = plan, run, display
        self._until_target, self._curve, self._interrupt_at = until_target, curve, interrupt_at
        self._losses: list[float] = []
        self._begin: int | None = None
        self._stop = 0

    def waiting(self, missing: Sequence[int], seconds: float) -> None:
        """Pass on which nodes have not arrived, and since when."""
        self._display.waiting(missing, seconds)

    def nodes(self, views: Mapping[int, NodeView]) -> None:
        """Pass on the state of the nodes."""
        self._display.nodes(views)

    def notice(self, fault: Fault) -> None:
        """Pass on what went wrong without ending the run."""
        self._display.notice(fault)

    def step(self, step: Step) -> None:
        """Show a step, and do what it calls for.

        Args:
            step: The step.

        Raises:
            Interrupted: This attempt is to end here.
        """
        self._display.step(step)
        self._begin = step.step if self._begin is None else self._begin
        self._losses.append(step.loss)
        every = self._plan.workload.checkpoint_every
        if every is not None and step.step % every == every // 2:
            folder = self._run / "work" / CHECKPOINT_FOLDER
            # Not here: removing hundreds of GB takes long, and nobody would watch the run meanwhile.
            threading.Thread(target=remove_old_checkpoints, args=(folder,), daemon=True).start()
        if self._until_target:
            self._stop_at_target(step)
        count = len(self._losses)
        if count == STEPS or (count > STEPS and count & (count - 1) == 0):
            self._warn(step)
        if self._interrupt_at is not None and step.step >= self._interrupt_at:
            raise Interrupted

    def _stop_at_target(self, step: Step) -> None:
        target = self._plan.workload.loss_target
        reached = target is not None and held(np.array(self._losses[-10 * WINDOW :]), target)
        if reached and step.step >= self._stop:  # not yet ordered, or it came too late
            self._order_stop(step.step + 1 + STOP_MARGIN)
        elif not reached and self._stop > step.step + 1:
            self._order_stop(0)  # 0 is InternEvo's word for going on

    def _order_stop(self, step: int) -> None:
        self._stop = step
        path = self._run / "work" / STOP_FILE
        # InternEvo reads it at any moment and dies of an empty one.
        path.with_suffix(".new").write_text(str(step))
        path.with_suffix(".new").replace(path)

    def _warn(self, step: Step) -> None:
        """Warn at the end of the curve, and of the target each time that the run has doubled."""
        losses = np.array(self._losses)
        if self._begin != 0 or not np.isfinite(losses).all():
            return
        if len(losses) == STEPS and self._curve is not None:
            found = compare(self._curve, losses[None])
            if found is not None and found.leaves_at is not None:
                text = f"The loss left the reference curve at step {found.leaves_at}, by {found.max_deviation:+.1%}"
                self._tell("off-curve", text, "The device trains differently: see `pytest suites/preflight`.", step)
        target, total = self._plan.workload.loss_target, self._plan.total_steps
        expected = forecast(losses, total) if target is not None else None
        if expected is not None and expected[0] - FORECAST_SIGMAS * expected[1] > (target or 0.0):
            text = f"At this rate the loss will be {expected[0]:.3f} at the last step; the target is below {target}"
            self._tell("off-target", text, "The run goes on; compare its curve with the reference's.", step)

    def _tell(self, kind: str, text: str, next_step: str, step: Step) -> None:
        self._display.notice(Fault(kind, f"{text}.", next_step, None, "", None, step.step, 0.0))
