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
        PASS where the trailing window's interval and the last step are below the target, FAIL where neither is; else
        ERROR with the number of steps that would settle it.
    """
    low, high = loss.window_ci95 or (-math.inf, math.inf)
    told = (
        f"mean loss of the last {loss.window} steps {loss.window_mean:.4f} ({low:.4f} to {high:.4f}), last step "
        f"{loss.last:.4f}, loss_from_metric {'not logged' if loss.from_metric is None else f'{loss.from_metric:.4f}'}; "
        f"target below {target}"
    )
    base = Finding(
        "loss-target", Result.ERROR, told, loss.window_mean, _UNIT, target, source, 1 - loss.window_mean / target
    )
    if high < target and loss.last < target:
        return replace(base, result=Result.PASS, message=f"{told}.")
    if not low < target and not loss.last < target:
        step = "Train on, or look for the step at which the curve leaves the reference's."
        return replace(base, result=Result.FAIL, message=f"{told}.", next_step=step)
    step = "Continue the run from its last checkpoint by that many steps."
    return replace(base, message=f"inconclusive: {told}; {_settled_by(loss, target, low, high)}.", next_step=step)


def _settled_by(loss: Loss, target: float, low: float, high: float) -> str:
    """How many further steps would make window and last step agree."""
    gap = abs(loss.window_mean - target)
    if high < target:
        # The window is clear and the last step is one noisy value: wait until one is likely to be below.
        below = min(max(loss.window_below or 0.0, 0.01), 0.99)
        steps = max(1, math.ceil(math.log(0.05) / math.log(1 - below)))
        return f"the window is below and the last step is not: {steps} further steps would settle it"
    if loss.window_mean >= target and -loss.slope * loss.window > high - low:
        steps = math.ceil(gap / -loss.slope)
        return f"at its slope of {loss.slope:.2e} a step the window would get there in {steps} further steps"
    half = (high - low) / 2
    if gap == 0 or not math.isfinite(half):
        return "no number of further steps can be given"
    steps = max(1, math.ceil(loss.window * ((half / gap) ** 2 - 1)))
    return f"the window is within its noise of the target: {steps} further steps would settle it"


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
