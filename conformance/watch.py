"""Watches a run while it trains: stops it at its target, warns early, removes old checkpoints."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from conformance.checks.curve import agrees
from conformance.evidence import DATA, RUN, RunDirectory, read_json, segments
from conformance.internevo.config import CHECKPOINT_FOLDER, STOP_FILE
from conformance.internevo.log import parse_log
from conformance.judgement import DUMMY, curve_of, origin_of, rank_logs, rank_records
from conformance.launch.detect import Fault, NodeView, Step
from conformance.launch.disk import Bridge
from conformance.launch.supervise import Display, Interrupted
from conformance.metrics.curve import STEPS, compare
from conformance.metrics.loss import WINDOW
from conformance.metrics.statistics import Series, variance_inflation
from conformance.metrics.target import held
from conformance.plan import Plan
from conformance.spec.curves import Curve

# InternEvo reads the stop file after every step; the order must reach it before the step that it names.
STOP_MARGIN = 10
# The newest checkpoint, and one more should it be broken.
KEPT_CHECKPOINTS = 2
# bf16 parameters, and in fp32 the optimizer's copy of them and its two moments.
BYTES_PER_PARAMETER = 2 + 3 * 4
# Standard errors that a forecast must be above the target to be told. They count the noise of the losses alone, not how
# far the line is from a real curve, so that they are no probability.
FORECAST_SIGMAS = 3.0
# Of the losses so far, the share that a forecast rests on: the newest.
FORECAST_SHARE = 0.5
# A judge looks at the last two windows, and the window is a fifth of the run at most.
JUDGED_STEPS = 10 * WINDOW


def checkpoint_bytes(plan: Plan) -> int:
    """Size of a checkpoint.

    Args:
        plan: What runs.

    Returns:
        Bytes; 0 where no checkpoints are written.
    """
    return 0 if plan.workload.checkpoint_every is None else plan.parameters * BYTES_PER_PARAMETER


def disk_bytes(plan: Plan, kept: int = 0) -> int:
    """Disk that a run's checkpoints will take: those that are kept and the one being written.

    Args:
        plan: What runs.
        kept: Complete checkpoints that lie there already, of the attempt that the run goes on from.

    Returns:
        Bytes beside these; 0 where no checkpoints are written.
    """
    if plan.workload.checkpoint_every is None:
        return 0
    return plan.parameters * BYTES_PER_PARAMETER * (1 + KEPT_CHECKPOINTS - min(kept, KEPT_CHECKPOINTS))


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


def earlier_steps(run: Path) -> Iterator[Step]:
    """Read what the earlier attempts of a resumed run logged.

    Args:
        run: Run directory.

    Yields:
        Their steps in the order in which they were made; a step that two attempts made comes twice.
    """
    for attempt in segments(RunDirectory(run)):
        for name in rank_logs(attempt):
            with attempt.open(name) as stream:
                logs = parse_log(stream, name)
            for log in logs:
                names = ["step", "loss", "tgs", "loss_from_metric" if "loss_from_metric" in log.steps else "loss"]
                for row in zip(*(log.steps[name].tolist() for name in names), strict=True):
                    yield Step(*row)


def reference_of(plan: Plan, run: Path) -> Curve | None:
    """Find the curve that the judge will hold a run against.

    Args:
        plan: What runs.
        run: Run directory; the fingerprint of the data is recorded in it.

    Returns:
        The curve; None where there is none.
    """
    dummy = plan.workload.data == DUMMY
    return curve_of(plan, DUMMY if dummy else read_json(RunDirectory(run), DATA)["digest"])


def forecast(steps: Series, losses: Series, total_steps: int) -> tuple[float, float] | None:
    """Forecast the loss at the last step, from a straight line through the newer losses over the logarithm of the step.

    Args:
        steps: Steps so far, shape (n,).
        losses: Their losses, shape (n,).
        total_steps: Steps of the run.

    Returns:
        Forecast and its standard error, widened for autocorrelation, in nats/token; None for fewer than 49 losses.
    """
    begin = int(len(losses) * (1 - FORECAST_SHARE))
    if len(losses) - begin < 25:
        return None
    x, y = np.log(steps[begin:] + 1.0), losses[begin:]
    slope, level = np.polyfit(x, y, 1)
    rest = y - (slope * x + level)
    distance = math.log(total_steps) - x.mean()
    noise = float(rest.var(ddof=2)) * (1 / len(x) + distance**2 / float(((x - x.mean()) ** 2).sum()))
    return float(slope * math.log(total_steps) + level), math.sqrt(noise * variance_inflation(rest))


class Watch:
    """A display that passes everything on, and acts on what it sees.

    Args:
        plan: What runs.
        run: Run directory.
        display: What shows the run.
        until_target: Whether to stop the run once its loss is below the target and has stayed there.
        curve: Reference curve of this plan and its data, if there is one.
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
        self._steps: list[Step] = []
        for step in earlier_steps(run):
            self._remember(step)
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
        self._remember(step)
        every = self._plan.workload.checkpoint_every
        if every is not None and step.step % every == every // 2:
            folder = self._run / "work" / CHECKPOINT_FOLDER
            # Not here: removing hundreds of GB takes long, and nobody would watch the run meanwhile.
            threading.Thread(target=remove_old_checkpoints, args=(folder,), daemon=True).start()
        if self._until_target:
            self._stop_at_target(step)
        self._warn(step)
        if self._interrupt_at is not None and step.step >= self._interrupt_at:
            raise Interrupted

    def _remember(self, step: Step) -> None:
        # As the judge merges attempts: from where one goes on, its steps stand for those that were made before.
        while self._steps and self._steps[-1].step >= step.step:
            self._steps.pop()
        self._steps.append(step)

    def _stop_at_target(self, step: Step) -> None:
        target = self._plan.workload.loss_target
        judged = self._steps[-JUDGED_STEPS:]
        series = np.array([each.loss for each in judged]), np.array([each.mean_loss for each in judged])
        reached = target is not None and held(target, *series)
        if reached and step.step >= self._stop:  # not yet ordered, or it came too late
            self._order_stop(step.step + 1 + STOP_MARGIN)
        elif not reached and self._stop > step.step + 1:
            self._order_stop(0)  # 0 is InternEvo's word for going on

    def _order_stop(self, step: int) -> None:
        path = self._run / "work" / STOP_FILE
        with Bridge().bridged():  # what was refused is ordered again after the next step
            # InternEvo reads it at any moment and dies of an empty one.
            path.with_suffix(".new").write_text(str(step))
            path.with_suffix(".new").replace(path)
            self._stop = step

    def _warn(self, step: Step) -> None:
        """Warn at the end of the curve, and of the target each time that the run has doubled."""
        count = len(self._steps)
        at_curve, doubled = count == STEPS, count >= STEPS and count & (count - 1) == 0
        if not (at_curve or doubled):
            return
        steps = np.array([each.step for each in self._steps], dtype=np.float64)
        losses = np.array([each.mean_loss for each in self._steps])
        if not np.isfinite(losses).all():
            return  # told as such
        if at_curve and self._curve is not None and steps[-1] == STEPS - 1:
            self._warn_of_curve(self._curve, losses, step)
        target, total = self._plan.workload.loss_target, self._plan.total_steps
        expected = forecast(steps, losses, total) if target is not None else None
        if expected is not None and expected[0] - FORECAST_SIGMAS * expected[1] > (target or 0.0):
            text = f"At this rate the loss will be {expected[0]:.3f} at the last step; the target is below {target}"
            self._tell("off-target", text, "The run goes on; compare its curve with the reference's.", step)

    def _warn_of_curve(self, curve: Curve, losses: Series, step: Step) -> None:
        # A curve is one of this batch: the same step is the same number of consumed tokens.
        files = RunDirectory(self._run)
        first, began = rank_records(files).get(0), ""
        if first is not None:
            began = origin_of(self._plan, read_json(files, RUN), {0: first})
        found = compare(curve, losses[None], [self._plan.seed], began)
        if found is None or found.agrees:
            return
        text = f"The loss is not on the reference curve. {agrees(found).message.removesuffix('.')}"
        self._tell("off-curve", text, "The device trains differently: see `pytest suites/preflight`.", step)

    def _tell(self, kind: str, text: str, next_step: str, step: Step) -> None:
        self._display.notice(Fault(kind, f"{text}.", next_step, None, "", None, step.step, 0.0))
