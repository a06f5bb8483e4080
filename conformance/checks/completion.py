"""Did the run end as it should? Read from the log, for a crash of InternEvo exits with 0."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.checks.finding import Finding, Result
from conformance.internevo.log import Event

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


def completed(outcome: str, last_step: int | None, total_steps: int | None, exceptions: Sequence[Event]) -> Finding:
    """Whether the last planned step was logged and nothing was raised.

    Args:
        outcome: How the run ended: completed, crashed, out_of_memory, stopped, truncated or unknown.
        last_step: Last logged step; None where none is.
        total_steps: Steps that the run was to have; None where nothing tells.
        exceptions: Exceptions and signals of the run's last segment.

    Returns:
        The finding of check run-complete.
    """
    done = 0 if last_step is None else last_step + 1
    of = f" of {total_steps}" if total_steps is not None else ""
    told = f"{done}{of} steps were logged"
    common = {"value": float(done), "unit": "steps", "limit_source": "the plan, or the learning-rate schedule"}
    if total_steps is not None:
        common["limit"] = float(total_steps)
    if outcome == "completed":
        return Finding("run-complete", Result.PASS, f"{told}, and no rank raised an exception.", **common)
    if outcome == "unknown":
        message = f"{told}; nothing tells how many there should be, and no exception was raised."
        return Finding("run-complete", Result.ERROR, message, **common, next_step="Name the workload: --workload.")
    if exceptions:
        event = exceptions[-1]
        where = f"rank {event.rank}" if event.rank is not None else "a rank"
        host = f" on {event.host}" if event.host else ""
        message = f"{told}; then {where}{host} raised {event.type}{': ' + event.message if event.message else ''}"
        step = (
            "Take a smaller micro_bsz, more tensor or pipeline parallelism, or checkpoint=true."
            if is_out_of_memory(event)
            else f"The traceback stands at line {event.line} of the log. The exit code was no help: InternEvo exits with 0."
        )
        return Finding("run-complete", Result.FAIL, f"{message[:600]}.", **common, next_step=step)
    ending = {"stopped": "then the run was stopped", "truncated": "then the log breaks off"}.get(outcome, outcome)
    step = "Look at the system log of the logging host: a process that is killed leaves no line."
    return Finding("run-complete", Result.FAIL, f"{told}; {ending}.", **common, next_step=step)
