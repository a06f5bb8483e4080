"""Did the run end as it should? Read from the log, for a crash of InternEvo exits with 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from conformance.checks.finding import Finding, Result
from conformance.internevo.log import Event

RESUME = "Look at loss, grad_norm and loss_scale of the last logged steps; resume from the last checkpoint before them."
GO_ON = "Go on from its checkpoint with --resume RUN."
KILLED = "Look at the system log of the logging host: a process that is killed leaves no line of its own."
OUT_OF_MEMORY_SIGNS = ("out of memory", "outofmemory")


def is_out_of_memory(event: Event) -> bool:
    """Whether an exception says that a device ran out of memory.

    Args:
        event: The exception.

    Returns:
        True for torch's own type, and for any other whose text says so.
    """
    told = f"{event.type} {event.message}".lower()
    return any(sign in told for sign in OUT_OF_MEMORY_SIGNS)


def completed(
    outcome: str,
    steps_logged: int,
    last_step: int | None,
    total_steps: int | None,
    exceptions: Sequence[Event],
    at_target: bool = False,
    skipped_at_end: int = 0,
) -> Finding:
    """Whether the last planned step was logged and nothing was raised.

    InternEvo logs a step when it has updated the parameters. A run whose last updates were skipped, for an infinite or
    undefined gradient, counts its steps to the end, but nothing tells what loss it ended with.

    Args:
        outcome: How the run ended: completed, crashed, out_of_memory, stopped, truncated or unknown.
        steps_logged: Number of logged steps.
        last_step: Last logged step; None where none is.
        total_steps: Steps that the run was to have; None where nothing tells.
        exceptions: Exceptions and signals of the run's last segment.
        at_target: Whether it was stopped below its target, and had held it for a window's length.
        skipped_at_end: Steps after the last logged one whose update was skipped.

    Returns:
        The finding of check run-complete.
    """
    of = f" of {total_steps}" if total_steps is not None else ""
    told = f"{steps_logged}{of} steps logged" + (f", the last one {last_step}" if last_step is not None else "")
    base = Finding(
        "run-complete",
        Result.FAIL,
        told,
        float(steps_logged),
        "steps",
        None if total_steps is None else float(total_steps),
        "the plan, or the learning-rate schedule of the log",
    )
    if skipped_at_end:
        told += (
            f"; the updates of the {skipped_at_end} steps after it were skipped for an infinite or undefined gradient"
        )
        base = replace(base, message=f"{told}: the loss that the run ended with is not known.", next_step=RESUME)
    if outcome == "completed":
        return replace(base, result=Result.PASS, message=f"{told}; no rank raised an exception.")
    if at_target:
        message = f"{told}; stopped, its loss being below the target for as long as the window."
        return replace(base, result=Result.PASS, message=message)
    if outcome == "unknown" and total_steps is not None:
        message = f"{told}; no exception was raised, but the steps before the first of these are not in the log."
        return replace(base, result=Result.ERROR, message=message, next_step="Give the whole log.")
    if outcome == "unknown":
        message = f"{told}; no exception was raised, but nothing tells how many there should be."
        return replace(base, result=Result.ERROR, message=message, next_step="Name the workload: --workload.")
    if not exceptions and skipped_at_end:
        return base
    if not exceptions:
        stopped = outcome == "stopped"
        ending = "it was told to stop, and saved a checkpoint" if stopped else "then the log ends"
        return replace(base, message=f"{told}; {ending}.", next_step=GO_ON if stopped else KILLED)
    event = exceptions[-1]
    where = "a rank" if event.rank is None else f"rank {event.rank}"
    where += f" on {event.host}" if event.host else ""
    step = f"The traceback stands at line {event.line} of its log."
    if is_out_of_memory(event):
        step += " Take a smaller micro_bsz, more tensor or pipeline parallelism, or checkpoint=true."
    reason = f"{event.type}: {event.message}" if event.message else event.type
    return replace(base, message=f"{told}; {where} raised {reason}"[:600], next_step=step)
