"""Did the run learn? The loss held against the workload's target, by its window and by its last step."""

from __future__ import annotations

import math
from dataclasses import replace

from conformance.checks.finding import Finding, Result
from conformance.metrics.loss import Loss

_UNIT = "nats/token"


def target_reached(loss: Loss, target: float, source: str) -> Finding:
    """Hold the loss against the target.

    Args:
        loss: The run's loss.
        target: Loss to be below.
        source: Where the target comes from.

    Returns:
        PASS where the trailing window's interval, the last step and the window's mean over all ranks are below the
        target, FAIL where neither window nor last step is; else ERROR with the number of steps that would settle it.
    """
    low, high = loss.window_ci95 or (-math.inf, math.inf)
    every = loss.from_metric_window_mean
    told = (
        f"mean loss of the last {loss.window} steps {loss.window_mean:.4f} ({low:.4f} to {high:.4f}), last step "
        f"{loss.last:.4f}, loss_from_metric {'not logged' if every is None else f'{every:.4f} over these steps'}; "
        f"target below {target}"
    )
    base = Finding(
        "loss-target", Result.ERROR, told, loss.window_mean, _UNIT, target, source, 1 - loss.window_mean / target
    )
    # One rank's loss is a sample of all ranks'; what is below the target is the loss over all of them.
    if high < target and loss.last < target and (every is None or every < target):
        return replace(base, result=Result.PASS, message=f"{told}.")
    if not low < target and not loss.last < target:
        step = "Train on, or look for the step at which the curve leaves the reference's."
        return replace(base, result=Result.FAIL, message=f"{told}.", next_step=step)
    step = "Continue the run from its last checkpoint by that many steps."
    return replace(base, message=f"inconclusive: {told}; {_settled_by(loss, target, low, high)}.", next_step=step)


def _settled_by(loss: Loss, target: float, low: float, high: float) -> str:
    """How many further steps would make window, last step and all ranks agree."""
    mean, whose = loss.window_mean, "the window"
    if high < target and loss.last < target and loss.from_metric_window_mean is not None:
        mean, whose = loss.from_metric_window_mean, "the mean over all ranks"
    elif high < target:
        # The window is clear and the last step is one noisy value: wait until one is likely to be below.
        below = min(max(loss.window_below or 0.0, 0.01), 0.99)
        steps = max(1, math.ceil(math.log(0.05) / math.log(1 - below)))
        return f"the window is below and the last step is not: {_further(steps)} would settle it"
    gap = abs(mean - target)
    if mean >= target and -loss.slope * loss.window > high - low:
        steps = math.ceil(gap / -loss.slope)
        return f"at its slope of {loss.slope:.2e} a step {whose} would get there in {_further(steps)}"
    half = (high - low) / 2
    if gap == 0 or not math.isfinite(half) or (high < target and gap > half):
        return f"{whose} is not below it, and no number of further steps can be given"
    if gap > half:  # the last step is one lucky value
        return f"{whose} is above and the last step is not: {_further(1)} would settle it"
    steps = max(1, math.ceil(loss.window * ((half / gap) ** 2 - 1)))
    return f"{whose} is within its noise of the target: {_further(steps)} would settle it"


def _further(steps: int) -> str:
    return f"{steps} further step{'' if steps == 1 else 's'}"


def defined(loss: Loss) -> Finding:
    """Whether every logged loss is a number.

    Args:
        loss: The run's loss.

    Returns:
        The finding of check loss-defined.
    """
    if not loss.undefined:
        return Finding("loss-defined", Result.PASS, "Every logged loss is a finite number.", 0.0, "steps")
    shown = ", ".join(map(str, loss.undefined[:5]))
    message = f"The loss is nan or infinite at {len(loss.undefined)} steps or more, first: {shown}."
    step = "Look at grad_norm and loss_scale before the first of them; compare one step with `pytest suites/preflight`."
    return Finding("loss-defined", Result.FAIL, message, float(len(loss.undefined)), "steps", 0.0, next_step=step)
